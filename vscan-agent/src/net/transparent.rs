//! Sockets that speak with addresses of others.
//!
//! * The tproxy listener takes what nftables redirects; `getsockname` of an accepted connection is the
//!   server's address after DNAT, [`original_destination`] what the client dialled.
//! * An upstream leg is bound to the client's address and carries the upstream mark.
//! * A [`DataListener`] listens on an address of somebody else: its socket is the steering rule.

use super::close::prepare_leg;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use std::{
    hash::{BuildHasher, RandomState},
    io,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

/// Connections that may wait to be accepted on the tproxy listener. A gateway sees bursts: the
/// kernel's own ceiling (`net.core.somaxconn`) applies.
const TPROXY_BACKLOG: i32 = 4096;

/// A data channel has one peer; the rest is for strangers that are turned away.
const DATA_BACKLOG: i32 = 8;

/// Tries to find a port that is free on every address of a data channel, or that differs from the
/// client's on an upstream leg. Collisions are rare; this many in a row mean that ports have run out.
const PORT_ATTEMPTS: u32 = 32;

/// Listens for redirected connections.
///
/// `address` must be a loopback address: a wildcard listener would capture forwarded traffic to its
/// port of any host.
///
/// # Errors
/// `EPERM` without CAP_NET_RAW, `EADDRINUSE` when the port is busy.
pub fn tproxy_listener(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = transparent_socket(address.ip())?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(TPROXY_BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// What the client dialled, before any DNAT (`SO_ORIGINAL_DST`), from conntrack.
///
/// # Errors
/// `ENOENT` where conntrack does not know the connection.
pub fn original_destination(client_leg: &TcpStream) -> io::Result<SocketAddr> {
    let socket = SockRef::from(client_leg);
    let address = match client_leg.local_addr()? {
        SocketAddr::V4(_) => socket.original_dst_v4()?,
        SocketAddr::V6(_) => socket.original_dst_v6()?,
    };
    address.as_socket().ok_or_else(|| io::Error::other("SO_ORIGINAL_DST is not an IP address"))
}

/// Dials `server` from `client`'s address, with another port than the client's.
///
/// With equal ports both legs would share one conntrack entry, and masquerade would skip the second.
///
/// # Errors
/// What connect(2) returns, `TimedOut` after `timeout`, `EPERM` without CAP_NET_RAW.
pub async fn connect_upstream(
    client: SocketAddr,
    server: SocketAddr,
    mark: u32,
    timeout: Duration,
) -> io::Result<TcpStream> {
    let mut attempts = 0;
    loop {
        let socket = transparent_socket(client.ip())?;
        socket.set_mark(mark)?;
        socket.bind(&SocketAddr::new(client.ip(), 0).into())?;
        let bound = socket.local_addr()?.as_socket().map(|local| local.port());
        attempts += 1;
        if bound == Some(client.port()) && attempts < PORT_ATTEMPTS {
            continue;
        }
        return connect(socket, server, timeout).await;
    }
}

/// Dials `to` from exactly `from` (an active FTP data channel: the server's address and port 20).
///
/// Falls back to a port of the kernel's choice where that four-tuple still waits in TIME_WAIT.
///
/// # Errors
/// What connect(2) returns, `TimedOut` after `timeout`, `EACCES` for a port below 1024 without
/// CAP_NET_BIND_SERVICE.
pub async fn connect_from(
    from: SocketAddr,
    to: SocketAddr,
    mark: u32,
    timeout: Duration,
) -> io::Result<TcpStream> {
    match connect_bound(from, to, mark, timeout).await {
        Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable && from.port() != 0 => {
            connect_bound(SocketAddr::new(from.ip(), 0), to, mark, timeout).await
        }
        result => result,
    }
}

async fn connect_bound(
    from: SocketAddr,
    to: SocketAddr,
    mark: u32,
    timeout: Duration,
) -> io::Result<TcpStream> {
    let socket = transparent_socket(from.ip())?;
    socket.set_reuse_address(true)?;
    socket.set_mark(mark)?;
    socket.bind(&from.into())?;
    connect(socket, to, timeout).await
}

async fn connect(socket: Socket, to: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
    let connecting = TcpSocket::from_std_stream(socket.into()).connect(to);
    let stream = tokio::time::timeout(timeout, connecting)
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no answer"))??;
    prepare_leg(&stream)?;
    Ok(stream)
}

/// A listener for one FTP data channel, on one port of one or two addresses.
///
/// Behind a port forward the client may arrive at the address it dialled or at the server's own,
/// depending on how the firewall treats the data port: both are listened on, either is taken.
#[derive(Debug)]
pub struct DataListener {
    port: u16,
    listeners: Vec<TcpListener>,
}

impl DataListener {
    /// Listens on a free port of all `addresses` (duplicates are ignored), for a peer that reaches
    /// us through the guarded interfaces.
    ///
    /// # Errors
    /// `EADDRINUSE` when no common free port was found, `EPERM` without CAP_NET_RAW.
    pub fn bind(addresses: &[IpAddr]) -> io::Result<Self> {
        let mut last = io::Error::new(io::ErrorKind::InvalidInput, "no address to listen on");
        for _ in 0..PORT_ATTEMPTS {
            match Self::bind_once(addresses) {
                Ok(listener) => return Ok(listener),
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => last = error,
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }

    fn bind_once(addresses: &[IpAddr]) -> io::Result<Self> {
        let port = data_port();
        let mut listeners: Vec<TcpListener> = Vec::with_capacity(1);
        for (index, address) in addresses.iter().enumerate() {
            if addresses[..index].contains(address) {
                continue;
            }
            let socket = transparent_socket(*address)?;
            socket.set_reuse_address(true)?;
            if address.is_ipv6() {
                socket.set_only_v6(true)?;
            }
            socket.bind(&SocketAddr::new(*address, port).into())?;
            socket.listen(DATA_BACKLOG)?;
            listeners.push(TcpListener::from_std(socket.into())?);
        }
        if listeners.is_empty() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "no address to listen on"));
        }
        Ok(Self { port, listeners })
    }

    /// The port to announce.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Takes the next connection, from whomever; the caller compares the peer's address, and drops
    /// the listener once the right one has come.
    ///
    /// # Errors
    /// What accept(2) returns.
    pub async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let accepted = match self.listeners.as_slice() {
            [only] => only.accept().await?,
            [first, second, ..] => tokio::select! {
                accepted = first.accept() => accepted?,
                accepted = second.accept() => accepted?,
            },
            [] => return Err(io::Error::new(io::ErrorKind::NotConnected, "not listening")),
        };
        prepare_leg(&accepted.0)?;
        Ok(accepted)
    }
}

/// A port of the local range for a data channel, none that can be guessed from the last.
///
/// Not left to the kernel: asked for any port, it passes over all that are in TIME_WAIT, one by one.
/// A gateway closes its data channels first, so that these are thousands, and bind(2) took a
/// millisecond. Asked for a certain port, with `SO_REUSEADDR`, it takes one of those too.
fn data_port() -> u16 {
    static STATE: OnceLock<(RandomState, RangeInclusive<u16>)> = OnceLock::new();
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let (state, range) = STATE.get_or_init(|| (RandomState::new(), local_port_range()));
    let span = u64::from(range.end() - range.start()) + 1;
    let offset = state.hash_one(COUNT.fetch_add(1, Ordering::Relaxed)) % span;
    range.start() + u16::try_from(offset).unwrap_or(0)
}

/// `net.ipv4.ip_local_port_range`, ip(7); the kernel's default where it cannot be read.
fn local_port_range() -> RangeInclusive<u16> {
    const DEFAULT: RangeInclusive<u16> = 32768..=60999;
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range");
    let ports: Vec<u16> =
        text.unwrap_or_default().split_whitespace().flat_map(str::parse).collect();
    match ports[..] {
        [low, high] if 0 < low && low <= high => low..=high,
        _ => DEFAULT,
    }
}

fn transparent_socket(address: IpAddr) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(SocketAddr::new(address, 0)),
        Type::STREAM.nonblocking(),
        Some(Protocol::TCP),
    )?;
    match address {
        IpAddr::V4(_) => socket.set_ip_transparent_v4(true)?,
        IpAddr::V6(_) => socket.set_ip_transparent_v6(true)?,
    }
    Ok(socket)
}

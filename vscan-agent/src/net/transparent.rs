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
    os::fd::AsFd,
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::net::{TcpListener, TcpStream};

/// Connections that may wait to be accepted on the tproxy listener. A gateway sees bursts: the
/// kernel's own ceiling (`net.core.somaxconn`) applies.
const TPROXY_BACKLOG: i32 = 4096;

/// A data channel has one peer; the rest is for strangers that are turned away.
const DATA_BACKLOG: i32 = 8;

/// Tries to find a port that is free on every address of a data channel, or that differs from the
/// client's on an upstream leg. Collisions are rare; this many in a row mean that ports have run out.
const PORT_ATTEMPTS: u32 = 32;

/// Listens for redirected connections; accept(2) waits for them.
///
/// `address` must be a loopback address: a wildcard listener would capture forwarded traffic to its
/// port of any host. Connections are prepared as legs before they are accepted.
///
/// # Errors
/// `EPERM` without CAP_NET_RAW, `EADDRINUSE` when the port is busy.
pub fn tproxy_listener(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = transparent_socket(address.ip())?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    // What is accepted has it from here.
    prepare_leg(&socket)?;
    socket.listen(TPROXY_BACKLOG)?;
    socket.set_nonblocking(false)?;
    Ok(socket.into())
}

/// What the client dialled, before any DNAT (`SO_ORIGINAL_DST`), from conntrack; `local` is the leg's own address.
///
/// # Errors
/// `ENOENT` where conntrack does not know the connection.
pub fn original_destination(client_leg: &impl AsFd, local: SocketAddr) -> io::Result<SocketAddr> {
    let socket = SockRef::from(client_leg);
    let address = match local {
        SocketAddr::V4(_) => socket.original_dst_v4()?,
        SocketAddr::V6(_) => socket.original_dst_v6()?,
    };
    address.as_socket().ok_or_else(|| io::Error::other("SO_ORIGINAL_DST is not an IP address"))
}

/// An upstream leg whose connection is under way.
#[derive(Debug)]
pub struct Dialling(Socket);

impl Dialling {
    /// Waits until it is there.
    ///
    /// # Errors
    /// What connect(2) comes to, `TimedOut` after `timeout`.
    pub async fn connected(self, timeout: Duration) -> io::Result<TcpStream> {
        let stream = TcpStream::from_std(self.0.into())?;
        let connected = async {
            stream.writable().await?;
            stream.take_error()?.map_or(Ok(()), Err)
        };
        tokio::time::timeout(timeout, connected)
            .await
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no answer"))??;
        Ok(stream)
    }
}

/// Dials `server` from `client`'s address, with another port than the client's. It does not wait for anything.
///
/// With equal ports both legs would share one conntrack entry, and masquerade would skip the second. The same holds for the
/// ports of the client's other connections to that server, which are mostly of the other kind (`Kind`).
///
/// # Errors
/// What connect(2) returns at once, `EADDRINUSE` and `EADDRNOTAVAIL` when ports have run out, `EPERM` without CAP_NET_RAW.
pub fn dial_upstream(client: SocketAddr, server: SocketAddr, mark: u32) -> io::Result<Dialling> {
    on_some_port(|attempt| {
        let kind = if attempt < PORT_ATTEMPTS / 2 { Kind::Bound } else { Kind::Any };
        let port = local_port(kind);
        if port == client.port() {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        dial_from(SocketAddr::new(client.ip(), port), server, mark)
    })
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
    let dialling = match dial_from(from, to, mark) {
        Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable && from.port() != 0 => {
            dial_from(SocketAddr::new(from.ip(), 0), to, mark)
        }
        result => result,
    };
    dialling?.connected(timeout).await
}

fn dial_from(from: SocketAddr, to: SocketAddr, mark: u32) -> io::Result<Dialling> {
    let socket = transparent_socket(from.ip())?;
    socket.set_reuse_address(true)?;
    socket.set_mark(mark)?;
    socket.bind(&from.into())?;
    prepare_leg(&socket)?;
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        Ok(()) | Err(_) => Ok(Dialling(socket)),
    }
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
        on_some_port(|_| Self::bind_once(addresses))
    }

    fn bind_once(addresses: &[IpAddr]) -> io::Result<Self> {
        let port = local_port(Kind::Any);
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

/// Tries ports, by the attempt's number, until one is free: a listener has it, or the server's last connection from there
/// is not over.
fn on_some_port<T>(mut attempt: impl FnMut(u32) -> io::Result<T>) -> io::Result<T> {
    use io::ErrorKind::{AddrInUse, AddrNotAvailable};
    let mut last = io::Error::from(AddrInUse);
    for number in 0..PORT_ATTEMPTS {
        match attempt(number) {
            Err(error) if matches!(error.kind(), AddrInUse | AddrNotAvailable) => last = error,
            done => return done,
        }
    }
    Err(last)
}

/// A port of the local range, none that can be guessed from the last. To be bound with `SO_REUSEADDR`.
///
/// Not left to the kernel: asked for any port, it passes over all that are in TIME_WAIT, one by one. A gateway closes its
/// data channels first, and upstream legs where the client does, so that these are thousands: bind(2) took a millisecond,
/// and for one client no more than 28,000 legs a minute were to be had, to whichever servers. Asked for a certain port, it
/// takes one of those too; and connect(2) takes it even for the same server, if both use timestamps (RFC 6191).
fn local_port(kind: Kind) -> u16 {
    static STATE: OnceLock<(RandomState, RangeInclusive<u16>)> = OnceLock::new();
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let (state, range) = STATE.get_or_init(|| (RandomState::new(), local_port_range()));
    let span = u64::from(range.end() - range.start()) + 1;
    let mut offset = state.hash_one(COUNT.fetch_add(1, Ordering::Relaxed)) % span;
    if kind == Kind::Bound && offset % 2 == 0 && offset + 1 < span {
        offset += 1;
    }
    range.start() + u16::try_from(offset).unwrap_or(0)
}

/// Which ports of the range. Linux gives every second one to connect(2), from the first on, and the ones between to bind(2),
/// until either runs out (`__inet_hash_connect`, `inet_csk_find_open_port`): those of clients are of the former kind.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Those that connect(2) leaves alone.
    Bound,
    Any,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_accepted_is_a_leg_already() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = tproxy_listener(address.parse().unwrap()).unwrap();
            let _client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (leg, _) = listener.accept().unwrap();
            let leg = SockRef::from(&leg);
            assert_eq!(leg.linger().unwrap(), Some(Duration::ZERO), "it ends with a reset");
            assert!(leg.tcp_nodelay().unwrap());
        }
    }
}

//! What the tests of the kernel state stand on: a lab of namespaces, and a small transparent gateway without vscan's own.

#![expect(dead_code, reason = "each test program uses its part")]

use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use vscan_agent::{
    config::Config,
    kernel::{Kernel, marks::Marks},
};
use vscan_tests::{
    host::{Door, Host},
    lab::{Family, Lab},
    raw::Peer,
};

/// How kernel state is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// BPF on tcx.
    Tcx,
    /// BPF on clsact.
    Clsact,
    /// nftables alone.
    Nft,
}

/// All.
pub(crate) const WAYS: [Way; 3] = [Way::Tcx, Way::Clsact, Way::Nft];

impl Way {
    /// Whether the BPF programs run.
    pub(crate) fn bpf(self) -> bool {
        self != Self::Nft
    }

    fn toml(self) -> &'static str {
        match self {
            Self::Tcx => "steering = \"bpf\"\nattach = \"tcx\"",
            Self::Clsact => "steering = \"bpf\"\nattach = \"clsact\"",
            Self::Nft => "steering = \"nft\"",
        }
    }
}

/// A bpffs of a test's own, unmounted when dropped.
#[derive(Debug)]
pub(crate) struct Bpffs(PathBuf);

impl Bpffs {
    pub(crate) fn mount(lab: &Lab) -> Result<Self> {
        let path = lab.dir().join("bpffs");
        std::fs::create_dir(&path)?;
        let status = Command::new("mount").args(["-t", "bpf", "none"]).arg(&path).status()?;
        ensure!(status.success(), "cannot mount a bpffs");
        Ok(Self(path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Where an agent of the test pins.
    pub(crate) fn pins(&self) -> PathBuf {
        self.0.join("vscan")
    }

    /// Everything that is pinned.
    pub(crate) fn pinned(&self) -> Vec<String> {
        let mut all = Vec::new();
        for build in std::fs::read_dir(self.pins()).into_iter().flatten().flatten() {
            for pin in std::fs::read_dir(build.path()).into_iter().flatten().flatten() {
                all.push(format!(
                    "{}/{}",
                    build.file_name().to_string_lossy(),
                    pin.file_name().to_string_lossy()
                ));
            }
        }
        all.sort();
        all
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// A configuration for a lab's gateway; `more` goes into `[gateway]`, `rest` behind it.
pub(crate) fn config(way: Way, bpffs: &Bpffs, more: &str, rest: &str) -> Config {
    let text = format!(
        "[gateway]\ninterfaces = [\"lan0\", \"wan0\"]\ninside = [\"10.1.0.0/16\", \"fd00:1::/32\"]\n{}\n{more}\n\
         [paths]\nbpffs = {:?}\n{rest}",
        way.toml(),
        bpffs.pins()
    );
    match Config::parse(&text, Path::new("test.toml")) {
        Ok(config) => config,
        Err(errors) => panic!("{errors}\n{text}"),
    }
}

/// Installs the kernel state in the lab's gateway, and beats once.
pub(crate) fn install(lab: &Lab, config: &Config) -> Result<Kernel> {
    let kernel = try_install(lab, config)?;
    kernel.beat()?;
    Ok(kernel)
}

/// Installs the kernel state; no beat.
pub(crate) fn try_install(lab: &Lab, config: &Config) -> Result<Kernel> {
    lab.gateway.within(|| Ok(Kernel::install(config)?))
}

/// A gateway: takes what is redirected, says what it saw, and relays from the client's address.
#[derive(Debug)]
pub(crate) struct Relay {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Relay {
    pub(crate) fn start(lab: &Lab, config: &Config) -> Result<Self> {
        let marks = Marks::of(&config.gateway.marks);
        let port = config.gateway.tproxy_port.get();
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for address in [IpAddr::from([127, 0, 0, 1]), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
            let listener = lab.gateway.within(|| {
                let socket = transparent(address)?;
                socket.set_reuse_address(true)?;
                socket.bind(&SocketAddr::new(address, port).into())?;
                socket.listen(64)?;
                Ok(TcpListener::from(socket))
            })?;
            listener.set_nonblocking(true)?;
            let (stop, door) = (Arc::clone(&stop), lab.gateway.door());
            threads.push(std::thread::spawn(move || accept(&listener, &stop, &door, marks)));
        }
        Ok(Self { stop, threads })
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn accept(listener: &TcpListener, stop: &AtomicBool, door: &Door, marks: Marks) {
    while !stop.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((client, peer)) => {
                let door = door.clone();
                std::thread::spawn(move || {
                    // the test sees it: its connection ends
                    drop(relay(client, peer, &door, marks));
                });
            }
            // polled, so that it can be stopped
            Err(_) => std::thread::sleep(Duration::from_millis(2)),
        }
    }
    // Closing is not enough: a process that another test is just starting holds a copy until its exec.
    let _ = SockRef::from(listener).shutdown(Shutdown::Both);
}

fn relay(mut client: TcpStream, peer: SocketAddr, door: &Door, marks: Marks) -> Result<()> {
    door.enter()?;
    client.set_nonblocking(false)?;
    let server = client.local_addr()?;
    let socket = SockRef::from(&client);
    let dialled =
        if server.is_ipv4() { socket.original_dst_v4()? } else { socket.original_dst_v6()? };
    let dialled = dialled.as_socket().context("no address")?;
    let upstream = transparent(peer.ip())?;
    upstream.set_mark(marks.upstream)?;
    loop {
        upstream.bind(&SocketAddr::new(peer.ip(), 0).into())?;
        if upstream.local_addr()?.as_socket().map(|a| a.port()) != Some(peer.port()) {
            break;
        }
    }
    upstream.connect_timeout(&server.into(), Duration::from_secs(5)).context("upstream")?;
    let upstream = TcpStream::from(upstream);
    client.write_all(format!("gateway {} {dialled} {server}\n", peer.ip()).as_bytes())?;
    let (mut from, mut to) = (upstream.try_clone()?, client.try_clone()?);
    let back = std::thread::spawn(move || {
        let _ = std::io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    });
    let mut upstream = upstream;
    let _ = std::io::copy(&mut client, &mut upstream);
    let _ = upstream.shutdown(Shutdown::Write);
    let _ = back.join();
    Ok(())
}

/// A socket that may have any address.
pub(crate) fn transparent(address: IpAddr) -> Result<Socket> {
    let domain = Domain::for_address(SocketAddr::new(address, 0));
    let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
    match address {
        IpAddr::V4(_) => socket.set_ip_transparent_v4(true)?,
        IpAddr::V6(_) => socket.set_ip_transparent_v6(true)?,
    }
    Ok(socket)
}

/// A server that says whom it sees, then sends back what it gets.
pub(crate) fn serve(host: &Host, port: u16) -> Result<()> {
    let listener = vscan_tests::raw::listen(host, port)?;
    // lives until the process ends: the namespace goes with the lab
    std::thread::spawn(move || {
        while let Ok((mut stream, peer)) = listener.accept() {
            std::thread::spawn(move || {
                let seen = vscan_tests::raw::plain(peer).ip();
                let _ = stream.write_all(format!("server {seen}\n").as_bytes());
                let mut buffer = [0; 16384];
                while let Ok(length @ 1..) = stream.read(&mut buffer) {
                    if stream.write_all(&buffer[..length]).is_err() {
                        break;
                    }
                }
            });
        }
    });
    Ok(())
}

/// What a connection met.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Met {
    /// What the gateway saw: client, server as dialled, server; none if it passed.
    pub gateway: Option<(IpAddr, SocketAddr, SocketAddr)>,
    /// What the server saw: the client.
    pub server: IpAddr,
}

/// Connects, reads who answers, sends a line through and back.
pub(crate) fn meet(from: &Host, source: Option<IpAddr>, to: SocketAddr) -> Result<(Peer, Met)> {
    let mut peer = Peer::connect_from(from, source, to)?;
    peer.set_limit(Duration::from_secs(5))?;
    let mut line = peer.line().with_context(|| format!("first line of {to}"))?;
    let mut gateway = None;
    if let Some(words) = line.trim().strip_prefix("gateway ") {
        let words: Vec<&str> = words.split(' ').collect();
        gateway = Some((words[0].parse()?, words[1].parse()?, words[2].parse()?));
        line = peer.line()?;
    }
    let server = line.trim().strip_prefix("server ").context("no server")?.parse()?;
    echo(&mut peer)?;
    Ok((peer, Met { gateway, server }))
}

/// Sends a line and gets it back.
pub(crate) fn echo(peer: &mut Peer) -> Result<()> {
    peer.send("to and fro\r\n")?;
    let line = peer.line()?;
    ensure!(line.trim() == "to and fro", "{line:?}");
    Ok(())
}

/// A short name for messages.
pub(crate) fn case(way: Way, family: Family, port: u16) -> String {
    format!("{way:?} {family:?} port {port}")
}

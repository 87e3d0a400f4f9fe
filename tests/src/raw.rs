//! A TCP peer by script: sends exact bytes, and tells a clean end of file from a reset.

use crate::host::Host;
use anyhow::{Context, Result, bail, ensure};
use socket2::{Domain, Protocol, Socket, Type};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

/// A read or write waits at most this long; the tests' own limits are shorter.
const LIMIT: Duration = Duration::from_secs(20);

/// How the other side's stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// A FIN: what came is all there is.
    Fin,
    /// A reset: what came is not all.
    Reset,
}

/// One connection, read by lines or to its end.
#[derive(Debug)]
pub struct Peer {
    stream: TcpStream,
    held: Vec<u8>,
}

impl Peer {
    /// Connects from this host.
    pub fn connect(from: &Host, to: SocketAddr) -> Result<Self> {
        Self::connect_from(from, None, to)
    }

    /// Connects from this host, bound to one of its addresses.
    pub fn connect_from(from: &Host, source: Option<IpAddr>, to: SocketAddr) -> Result<Self> {
        let stream = from.within(|| connect(source, to, LIMIT))?;
        Self::new(stream)
    }

    /// Takes over a connected stream.
    pub fn new(stream: TcpStream) -> Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_write_timeout(Some(LIMIT))?;
        Ok(Self { stream, held: Vec::new() })
    }

    /// The stream itself, for what is not offered here.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Reads wait at most this long from now on.
    pub fn set_limit(&self, limit: Duration) -> Result<()> {
        Ok(self.stream.set_read_timeout(Some(limit))?)
    }

    /// Sends exactly these bytes.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> Result<()> {
        self.stream.write_all(bytes.as_ref()).context("cannot send")
    }

    fn fill(&mut self) -> std::io::Result<usize> {
        let mut buffer = [0; 16 * 1024];
        let count = self.stream.read(&mut buffer)?;
        self.held.extend_from_slice(&buffer[..count]);
        Ok(count)
    }

    /// The next line with its end; an error at the end of the stream.
    pub fn line(&mut self) -> Result<String> {
        loop {
            if let Some(at) = self.held.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.held.drain(..=at).collect();
                return Ok(String::from_utf8_lossy(&line).into_owned());
            }
            ensure!(
                self.fill().context("no line came")? > 0,
                "end of file instead of a line, after {:?}",
                String::from_utf8_lossy(&self.held)
            );
        }
    }

    /// The next reply of FTP or SMTP, all its lines; ends at `NNN `.
    pub fn reply(&mut self) -> Result<String> {
        let mut reply = String::new();
        loop {
            let line = self.line()?;
            let last = line.as_bytes().get(3) == Some(&b' ')
                && line.as_bytes().iter().take(3).all(u8::is_ascii_digit);
            reply.push_str(&line);
            if last {
                return Ok(reply);
            }
        }
    }

    /// The next reply, which has to begin with `code`.
    pub fn expect(&mut self, code: &str) -> Result<String> {
        let reply = self.reply()?;
        let last = reply.lines().last().unwrap_or_default();
        ensure!(last.starts_with(code), "expected {code}, got {reply:?}");
        Ok(reply)
    }

    /// Sends a line (CRLF is put behind it) and gives the reply, which has to begin with `code`.
    pub fn ask(&mut self, line: &str, code: &str) -> Result<String> {
        self.send(format!("{line}\r\n"))?;
        self.expect(code).with_context(|| format!("after {line:?}"))
    }

    /// Exactly `count` bytes.
    pub fn take(&mut self, count: usize) -> Result<Vec<u8>> {
        while self.held.len() < count {
            ensure!(self.fill().context("bytes are missing")? > 0, "end of file too soon");
        }
        Ok(self.held.drain(..count).collect())
    }

    /// All bytes until the stream ends, and how it ended.
    pub fn drain(&mut self) -> Result<(Vec<u8>, End)> {
        let end = loop {
            match self.fill() {
                Ok(0) => break End::Fin,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => break End::Reset,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    bail!("the stream does not end")
                }
                Err(error) => return Err(error.into()),
            }
        };
        Ok((std::mem::take(&mut self.held), end))
    }

    /// Says that no more will be sent (FIN).
    pub fn finish(&self) -> Result<()> {
        Ok(self.stream.shutdown(std::net::Shutdown::Write)?)
    }

    /// Ends the connection by a reset.
    pub fn reset(self) -> Result<()> {
        let socket = Socket::from(self.stream);
        socket.set_linger(Some(Duration::ZERO))?;
        Ok(())
    }
}

/// Connects the calling thread's network to `to`, optionally from `source`, within `limit`.
pub fn connect(source: Option<IpAddr>, to: SocketAddr, limit: Duration) -> Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
    if let Some(source) = source {
        socket.bind(&SocketAddr::new(source, 0).into())?;
    }
    socket.connect_timeout(&to.into(), limit).with_context(|| format!("cannot connect to {to}"))?;
    Ok(socket.into())
}

/// As [`connect`], from this very address and port, also if they were in use a moment ago.
pub fn connect_again(source: SocketAddr, to: SocketAddr, limit: Duration) -> Result<TcpStream> {
    crate::wait::until("the last connection does not end", limit, || {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.bind(&source.into())?;
        match socket.connect_timeout(&to.into(), limit) {
            Ok(()) => Ok(Some(socket.into())),
            // Ours waits for the last ACK of the connection before.
            Err(error) if error.kind() == ErrorKind::AddrNotAvailable => Ok(None),
            Err(error) => {
                Err(error).with_context(|| format!("cannot connect from {source} to {to}"))
            }
        }
    })
}

/// How a connection attempt goes; a time-out shows a silent drop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// Established.
    Connected,
    /// Answered by a reset.
    Refused,
    /// No answer in time.
    Silent,
}

/// Tries to connect from `host` (from one of its addresses) within `limit`.
pub fn attempt(
    host: &Host,
    source: Option<IpAddr>,
    to: SocketAddr,
    limit: Duration,
) -> Result<Attempt> {
    host.within(|| match connect(source, to, limit) {
        Ok(_) => Ok(Attempt::Connected),
        Err(error) => match error.downcast_ref::<std::io::Error>().map(std::io::Error::kind) {
            Some(ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset) => Ok(Attempt::Refused),
            Some(ErrorKind::TimedOut | ErrorKind::WouldBlock) => Ok(Attempt::Silent),
            _ => Err(error),
        },
    })
}

/// Listens on this host, all addresses of both families.
pub fn listen(host: &Host, port: u16) -> Result<TcpListener> {
    host.within(|| {
        let socket = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP))?;
        socket.set_only_v6(false)?;
        socket.set_reuse_address(true)?;
        socket.bind(&SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, port)).into())?;
        // Deep enough for a thousand connections at once.
        socket.listen(1024)?;
        Ok(socket.into())
    })
}

/// Accepts one connection; gives the peer's address in its plain form.
pub fn accept(listener: &TcpListener) -> Result<(Peer, SocketAddr)> {
    let (stream, address) = listener.accept()?;
    Ok((Peer::new(stream)?, plain(address)))
}

/// An IPv4 address mapped into IPv6 becomes IPv4 again.
pub fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

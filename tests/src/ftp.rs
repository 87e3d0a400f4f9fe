//! FTP peers of our own: a server and a client, real on the wire, without a bottleneck, for benchmarks and
//! for tests that look at single replies.

use crate::host::{Door, Host};
use crate::raw::{self, Peer};
use anyhow::{Context, Result, bail, ensure};
use socket2::{Domain, Protocol, Socket, Type};
use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Reads and writes wait at most this long.
const LIMIT: Duration = Duration::from_secs(60);

/// Bytes of one read or write of data.
const CHUNK: usize = 256 * 1024;

/// A file of the server.
#[derive(Clone, Debug)]
pub enum File {
    /// These bytes.
    Bytes(Arc<[u8]>),
    /// As many bytes of this block, over and over: large files cost no memory.
    Repeated(Arc<[u8]>, u64),
}

impl From<Vec<u8>> for File {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Bytes(bytes.into())
    }
}

/// What the server knows and what it has seen.
#[derive(Debug, Default)]
struct State {
    files: HashMap<String, File>,
    commands: Vec<(SocketAddr, String)>,
    aborted: Vec<String>,
}

impl State {
    /// As most servers do: without a position the file is replaced, with one what lies behind the piece
    /// stays.
    fn store(&mut self, name: &str, from: usize, append: bool, piece: &[u8]) {
        let mut content = match self.files.remove(name) {
            Some(File::Bytes(bytes)) if append || from > 0 => bytes.to_vec(),
            Some(_) | None => Vec::new(),
        };
        let from = if append { content.len() } else { from };
        content.resize(content.len().max(from + piece.len()), 0);
        content[from..from + piece.len()].copy_from_slice(piece);
        self.files.insert(name.to_owned(), content.into());
    }
}

/// A server: any user, any password; files in memory.
#[derive(Clone, Debug)]
pub struct Server {
    state: Arc<Mutex<State>>,
}

/// How a server behaves.
#[derive(Clone, Copy, Debug)]
pub struct Behaviour {
    /// Whether commands are recorded; a benchmark does not want that.
    pub record: bool,
    /// Whether PASV and EPSV are answered; else 502.
    pub passive: bool,
    /// Whether EPSV is; else 500.
    pub epsv: bool,
    /// The address in a 227, if not the server's own.
    pub announced: Option<Ipv4Addr>,
    /// The final reply to a transfer comes before its data end.
    pub early: bool,
    /// How long a download pauses behind each [`PIECE`]: a slow link.
    pub pause: Duration,
}

/// Bytes between two pauses.
pub const PIECE: usize = 256 * 1024;

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            record: true,
            passive: true,
            epsv: true,
            announced: None,
            early: false,
            pause: Duration::ZERO,
        }
    }
}

impl Server {
    /// Listens on the host's `port`, both families.
    pub fn start(host: &Host, port: u16, behaviour: Behaviour) -> Result<Self> {
        let listener = raw::listen(host, port)?;
        let state = Arc::new(Mutex::new(State::default()));
        let server = Self { state: Arc::clone(&state) };
        let door = host.door();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { return };
                let (state, door) = (Arc::clone(&state), door.clone());
                // A session's end, clean or not, is the client's to judge.
                std::thread::spawn(move || session(stream, &door, &state, behaviour));
            }
        });
        Ok(server)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Puts a file there.
    pub fn put(&self, name: &str, file: impl Into<File>) {
        self.state().files.insert(name.to_owned(), file.into());
    }

    /// A file that is there, completely received.
    pub fn file(&self, name: &str) -> Option<Vec<u8>> {
        match self.state().files.get(name)? {
            File::Bytes(bytes) => Some(bytes.to_vec()),
            File::Repeated(..) => None,
        }
    }

    /// Removes a file.
    pub fn remove(&self, name: &str) {
        self.state().files.remove(name);
    }

    /// All commands so far, with the client's address.
    pub fn commands(&self) -> Vec<(SocketAddr, String)> {
        self.state().commands.clone()
    }

    /// Names of uploads that ended by a reset.
    pub fn aborted(&self) -> Vec<String> {
        self.state().aborted.clone()
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

enum Data {
    None,
    Passive(TcpListener),
    Active(SocketAddr),
}

impl Data {
    fn open(self, local: SocketAddr) -> Result<TcpStream> {
        let stream = match self {
            Self::None => bail!("425 no data connection was arranged"),
            Self::Passive(listener) => listener.accept()?.0,
            Self::Active(to) => {
                let socket =
                    Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
                socket.set_reuse_address(true)?;
                socket.bind(&SocketAddr::new(local.ip(), 20).into())?;
                socket.connect_timeout(&to.into(), LIMIT)?;
                socket.into()
            }
        };
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(LIMIT))?;
        Ok(stream)
    }
}

fn session(
    stream: TcpStream,
    door: &Door,
    state: &Mutex<State>,
    behaviour: Behaviour,
) -> Result<()> {
    // Data connections belong to the server's host.
    door.enter()?;
    let local = raw::plain(stream.local_addr()?);
    let from = raw::plain(stream.peer_addr()?);
    let mut peer = Peer::new(stream)?;
    peer.set_limit(LIMIT)?;
    peer.send("220 lab server\r\n")?;
    let mut data = Data::None;
    let mut buffer = Vec::new();
    let mut restart = 0;
    loop {
        let Ok(line) = peer.line() else { return Ok(()) };
        let line = line.trim_end();
        if behaviour.record {
            lock(state).commands.push((from, line.to_owned()));
        }
        let (verb, argument) = line.split_once(' ').unwrap_or((line, ""));
        let answer = match verb.to_ascii_uppercase().as_str() {
            "USER" => "331 password?".to_owned(),
            "PASS" => "230 welcome".to_owned(),
            "SYST" => "215 UNIX Type: L8".to_owned(),
            "FEAT" => {
                "211-Features:\r\n EPRT\r\n EPSV\r\n REST STREAM\r\n SIZE\r\n211 End".to_owned()
            }
            "TYPE" | "CWD" | "NOOP" | "MODE" | "STRU" => "200 ok".to_owned(),
            "REST" => match argument.parse() {
                Ok(at) => {
                    restart = at;
                    format!("350 at {at}")
                }
                Err(_) => "501 at which byte?".to_owned(),
            },
            "PWD" => "257 \"/\" is current".to_owned(),
            "EPSV" if behaviour.passive && !behaviour.epsv => "500 what?".to_owned(),
            "PASV" | "EPSV" if behaviour.passive => {
                let listener = TcpListener::bind((local.ip(), 0))?;
                let port = listener.local_addr()?.port();
                data = Data::Passive(listener);
                match (verb, local.ip()) {
                    ("PASV", IpAddr::V4(address)) => {
                        let [a, b, c, d] = behaviour.announced.unwrap_or(address).octets();
                        let [high, low] = port.to_be_bytes();
                        format!("227 Entering Passive Mode ({a},{b},{c},{d},{high},{low}).")
                    }
                    ("PASV", IpAddr::V6(_)) => "522 use EPSV".to_owned(),
                    _ => format!("229 Entering Extended Passive Mode (|||{port}|)"),
                }
            }
            "PORT" => match port_argument(argument) {
                Some(to) => {
                    data = Data::Active(to);
                    "200 PORT ok".to_owned()
                }
                None => "501 what address?".to_owned(),
            },
            "EPRT" => match eprt_argument(argument) {
                Some(to) => {
                    data = Data::Active(to);
                    "200 EPRT ok".to_owned()
                }
                None => "501 what address?".to_owned(),
            },
            "SIZE" => match lock(state).files.get(argument) {
                Some(File::Bytes(bytes)) => format!("213 {}", bytes.len()),
                Some(File::Repeated(_, length)) => format!("213 {length}"),
                None => "550 no such file".to_owned(),
            },
            "DELE" => match lock(state).files.remove(argument) {
                Some(_) => "250 gone".to_owned(),
                None => "550 no such file".to_owned(),
            },
            "LIST" | "NLST" | "MLSD" => {
                let mut names: Vec<String> = lock(state).files.keys().cloned().collect();
                names.sort();
                peer.send("150 here it comes\r\n")?;
                let mut stream = std::mem::replace(&mut data, Data::None).open(local)?;
                if behaviour.early {
                    peer.send("226 done\r\n")?;
                }
                stream.write_all((names.join("\r\n") + "\r\n").as_bytes())?;
                "226 done".to_owned()
            }
            "RETR" => {
                let file = lock(state).files.get(argument).cloned();
                match file {
                    None => "550 no such file".to_owned(),
                    Some(file) => {
                        peer.send("150 here it comes\r\n")?;
                        let stream = std::mem::replace(&mut data, Data::None).open(local)?;
                        if behaviour.early {
                            peer.send("226 done\r\n")?;
                        }
                        let from = std::mem::take(&mut restart);
                        match send(stream, &file, from, behaviour.pause) {
                            Ok(()) => "226 done".to_owned(),
                            Err(_) => "426 the data connection broke".to_owned(),
                        }
                    }
                }
            }
            "STOR" | "APPE" => {
                peer.send("150 go ahead\r\n")?;
                let mut stream = std::mem::replace(&mut data, Data::None).open(local)?;
                if behaviour.early {
                    peer.send("226 stored\r\n")?;
                }
                buffer.clear();
                match stream.read_to_end(&mut buffer) {
                    Ok(_) => {
                        let from = std::mem::take(&mut restart);
                        lock(state).store(argument, from, verb == "APPE", &buffer);
                        "226 stored".to_owned()
                    }
                    Err(_) => {
                        lock(state).aborted.push(argument.to_owned());
                        "426 the data connection broke".to_owned()
                    }
                }
            }
            "QUIT" => {
                peer.send("221 bye\r\n")?;
                return Ok(());
            }
            _ => "502 not here".to_owned(),
        };
        if !(behaviour.early && answer.starts_with("226")) {
            peer.send(format!("{answer}\r\n"))?;
        }
    }
}

fn send(mut stream: TcpStream, file: &File, from: usize, pause: Duration) -> std::io::Result<()> {
    match file {
        File::Bytes(bytes) => {
            for piece in bytes.get(from..).unwrap_or_default().chunks(PIECE) {
                stream.write_all(piece)?;
                std::thread::sleep(pause);
            }
        }
        File::Repeated(block, length) => {
            let mut left = *length;
            while left > 0 {
                let count = usize::try_from(left).unwrap_or(usize::MAX).min(block.len());
                stream.write_all(&block[..count])?;
                left -= count as u64;
            }
        }
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    // The client closes; a reset tells that it did not get everything.
    std::io::copy(&mut stream, &mut std::io::sink())?;
    Ok(())
}

fn port_argument(argument: &str) -> Option<SocketAddr> {
    let numbers: Vec<u8> = argument.split(',').map(str::parse).collect::<Result<_, _>>().ok()?;
    let [a, b, c, d, high, low] = numbers.try_into().ok()?;
    Some((Ipv4Addr::new(a, b, c, d), u16::from_be_bytes([high, low])).into())
}

fn eprt_argument(argument: &str) -> Option<SocketAddr> {
    let mut fields = argument.split(argument.chars().next()?).skip(2);
    let address: IpAddr = fields.next()?.parse().ok()?;
    Some(SocketAddr::new(address, fields.next()?.parse().ok()?))
}

/// How a client asks for data connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// PASV (IPv4 only).
    Pasv,
    /// EPSV.
    Epsv,
    /// PORT (IPv4 only).
    Port,
    /// EPRT.
    Eprt,
}

/// A client, logged in.
#[derive(Debug)]
pub struct Client {
    control: Peer,
    door: Door,
    mode: Mode,
    buffer: Vec<u8>,
}

/// How a transfer ended: bytes received, how the data connection ended, and the final reply. The data part
/// is missing when the server refused before any.
#[derive(Debug)]
pub struct Transfer {
    /// For downloads, what came.
    pub data: Option<(Vec<u8>, raw::End)>,
    /// The last reply.
    pub reply: String,
}

enum Arranged {
    /// Real clients connect before they ask for the file.
    Connected(TcpStream),
    Here(TcpListener),
}

impl Client {
    /// Connects from a host and logs in.
    pub fn connect(from: &Host, to: SocketAddr, mode: Mode) -> Result<Self> {
        Self::greet(Peer::connect(from, to)?, from.door(), mode)
    }

    /// Takes over a stream of that host and logs in. Must run on a thread inside of the host for active
    /// mode.
    pub fn greet(mut control: Peer, door: Door, mode: Mode) -> Result<Self> {
        control.set_limit(LIMIT)?;
        control.expect("220")?;
        control.ask("USER alice", "331")?;
        control.ask("PASS secret", "230")?;
        control.ask("TYPE I", "200")?;
        Ok(Self { control, door, mode, buffer: vec![0; CHUNK] })
    }

    /// The control connection.
    pub fn control(&mut self) -> &mut Peer {
        &mut self.control
    }

    fn arrange(&mut self) -> Result<Arranged> {
        let server = self.control.stream().peer_addr()?;
        let local = self.control.stream().local_addr()?;
        match self.mode {
            Mode::Pasv => {
                let reply = self.control.ask("PASV", "227")?;
                let inner = reply.split(['(', ')']).nth(1).context("no address in the 227")?;
                let to = port_argument(inner).context("a wrong address in the 227")?;
                ensure!(to.ip() == server.ip(), "the 227 announces {to}, dialled was {server}");
                Ok(Arranged::Connected(raw::connect(None, to, LIMIT)?))
            }
            Mode::Epsv => {
                let reply = self.control.ask("EPSV", "229")?;
                let port = reply.split('|').nth(3).context("no port in the 229")?.parse()?;
                let to = SocketAddr::new(server.ip(), port);
                Ok(Arranged::Connected(raw::connect(None, to, LIMIT)?))
            }
            Mode::Port | Mode::Eprt => {
                let listener = TcpListener::bind((local.ip(), 0))?;
                let port = listener.local_addr()?.port();
                let command = match (self.mode, local.ip()) {
                    (Mode::Port, IpAddr::V4(ip)) => {
                        let [a, b, c, d] = ip.octets();
                        let [high, low] = port.to_be_bytes();
                        format!("PORT {a},{b},{c},{d},{high},{low}")
                    }
                    (_, ip @ IpAddr::V4(_)) => format!("EPRT |1|{ip}|{port}|"),
                    (_, ip @ IpAddr::V6(_)) => format!("EPRT |2|{ip}|{port}|"),
                };
                self.control.ask(&command, "200")?;
                Ok(Arranged::Here(listener))
            }
        }
    }

    /// Arranges a data connection and asks for the transfer; the connection, or the reply that refuses.
    fn begin(&mut self, command: &str) -> Result<std::result::Result<TcpStream, String>> {
        let server = self.control.stream().peer_addr()?.ip();
        let arranged = self.arrange()?;
        self.control.send(format!("{command}\r\n"))?;
        let first = self.control.reply()?;
        if !first.starts_with('1') {
            return Ok(Err(first));
        }
        match arranged {
            Arranged::Connected(stream) => Ok(Ok(stream)),
            Arranged::Here(listener) => {
                let (stream, from) = listener.accept()?;
                ensure!(from.ip() == server, "data came from {from}, dialled was {server}");
                Ok(Ok(stream))
            }
        }
    }

    /// Runs `work` where sockets of the client's host are made.
    fn on_host<T: Send>(&mut self, work: impl FnOnce(&mut Self) -> Result<T> + Send) -> Result<T> {
        let door = self.door.clone();
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                door.enter()?;
                work(self)
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Downloads a file, or a listing when `command` is one.
    pub fn download(&mut self, command: &str) -> Result<Transfer> {
        self.on_host(|client| client.download_here(command))
    }

    /// As [`Client::download`], on a thread that is inside of the client's host already.
    pub fn download_here(&mut self, command: &str) -> Result<Transfer> {
        let mut content = Vec::new();
        let (end, reply) = self.receive(command, &mut |bytes| content.extend_from_slice(bytes))?;
        Ok(Transfer { data: end.map(|end| (content, end)), reply })
    }

    /// Downloads and gives every piece to `sink`; how the data connection ended, and the final reply.
    pub fn receive(
        &mut self,
        command: &str,
        sink: &mut dyn FnMut(&[u8]),
    ) -> Result<(Option<raw::End>, String)> {
        let mut stream = match self.begin(command)? {
            Ok(stream) => stream,
            Err(refusal) => return Ok((None, refusal)),
        };
        stream.set_read_timeout(Some(LIMIT))?;
        let end = loop {
            match stream.read(&mut self.buffer) {
                Ok(0) => break raw::End::Fin,
                Ok(count) => sink(&self.buffer[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {
                    break raw::End::Reset;
                }
                Err(error) => return Err(error).context("data"),
            }
        };
        drop(stream);
        let reply = self.control.reply().with_context(|| format!("data ended with {end:?}"))?;
        Ok((Some(end), reply))
    }

    /// Uploads a file.
    pub fn upload(&mut self, name: &str, content: &[u8]) -> Result<Transfer> {
        self.on_host(|client| client.upload_here(name, content))
    }

    /// As [`Client::upload`], on a thread that is inside of the client's host already.
    pub fn upload_here(&mut self, name: &str, content: &[u8]) -> Result<Transfer> {
        self.store_here(&format!("STOR {name}"), content, Duration::ZERO)
    }

    /// Uploads a file or a piece of one with this command, pausing behind each [`PIECE`].
    pub fn store(&mut self, command: &str, content: &[u8], pause: Duration) -> Result<Transfer> {
        self.on_host(|client| client.store_here(command, content, pause))
    }

    fn store_here(&mut self, command: &str, content: &[u8], pause: Duration) -> Result<Transfer> {
        self.store_pieces(command, content.chunks(PIECE), pause)
    }

    /// Uploads the same block so many times, on a thread that is inside of the client's host already; the reply.
    pub fn send_blocks(&mut self, command: &str, block: &[u8], times: usize) -> Result<String> {
        Ok(self.store_pieces(command, std::iter::repeat_n(block, times), Duration::ZERO)?.reply)
    }

    fn store_pieces<'a>(
        &mut self,
        command: &str,
        pieces: impl Iterator<Item = &'a [u8]>,
        pause: Duration,
    ) -> Result<Transfer> {
        let mut stream = match self.begin(command)? {
            Ok(stream) => stream,
            Err(refusal) => return Ok(Transfer { data: None, reply: refusal }),
        };
        for piece in pieces {
            stream.write_all(piece).context("sending the file")?;
            std::thread::sleep(pause);
        }
        stream.shutdown(std::net::Shutdown::Write)?;
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).context("after the file")?;
        ensure!(rest.is_empty(), "bytes came back on an upload");
        Ok(Transfer { data: None, reply: self.control.reply()? })
    }

    /// Says QUIT and waits for a clean end.
    pub fn quit(mut self) -> Result<()> {
        self.control.ask("QUIT", "221")?;
        let (rest, end) = self.control.drain()?;
        ensure!(rest.is_empty() && end == raw::End::Fin, "after QUIT: {rest:?} {end:?}");
        Ok(())
    }
}

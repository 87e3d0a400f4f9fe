//! Client, server, scanner and gateway of the driver's tests.

use crate::{
    config::{self, Config, Protocol},
    gateway::Gateway,
    net::{Seqpacket, seqpacket},
    observe::{FlowOpen, Observer},
    quarantine,
    spool::Spool,
};
use std::{
    collections::HashMap,
    fs::File,
    io::{self, IoSlice},
    net::SocketAddr,
    os::{fd::AsFd, unix::fs::FileExt},
    path::Path,
    sync::{Arc, Mutex},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpSocket, TcpStream},
    task::JoinHandle,
};
use vscan_proto::ftp::address::{format_port, parse_227, parse_port};
use vscan_scan::{
    report::{Finding, Report, Verdict},
    wire::{Answer, Content, DATAGRAM_MAX, Request, ToGateway},
};

/// What the test's scanner detects.
pub(super) const INFECTED: &[u8] = b"VSCAN-DRIVER-TEST-PATTERN";

/// `spool.hold_max` of the test's gateway.
pub(super) const HOLD_MAX: u64 = 20 << 20;

/// Bytes that are no repetition of anything short.
pub(super) fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

/// What the scripted server does.
#[derive(Clone, Copy)]
pub(super) struct Behaviour {
    /// PASV is known.
    pub(super) passive: bool,
    /// Downloads stop half way, with an orderly end of data and a 426.
    pub(super) breaks_off: bool,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self { passive: true, breaks_off: false }
    }
}

#[derive(Default)]
struct Disk {
    files: HashMap<String, Vec<u8>>,
    heard: Vec<String>,
}

/// A gateway between clients and one server, on loopback.
pub(super) struct Peers {
    pub(super) gateway: Arc<Gateway>,
    server: SocketAddr,
    serving: JoinHandle<()>,
    disk: Arc<Mutex<Disk>>,
    sessions: Vec<JoinHandle<()>>,
    _directory: tempfile::TempDir,
}

impl Peers {
    pub(super) async fn start(behaviour: Behaviour) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let text = "[gateway]\ninterfaces = [\"lo\"]\ninside = [\"127.0.0.0/8\"]\n\
                    [scan]\nskip_extensions = [\"iso\"]\nverify_type = false\n";
        let config = Config::parse(text, Path::new("vscan.toml")).unwrap();
        let spool =
            Spool::new(&directory.path().join("spool"), 64 << 20, 256 << 20, HOLD_MAX).unwrap();
        let store = quarantine::Store::open(
            &directory.path().join("quarantine"),
            config::Quarantine::default(),
        );
        let gateway = Gateway::new(config, Observer::without_events(), spool, store.unwrap());
        start_scanner(&gateway).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = listener.local_addr().unwrap();
        let disk = Arc::new(Mutex::new(Disk::default()));
        let shared = Arc::clone(&disk);
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&shared), behaviour));
            }
        });
        Self {
            gateway: Arc::new(gateway),
            server,
            serving,
            disk,
            sessions: Vec::new(),
            _directory: directory,
        }
    }

    /// A client's connection, caught by the gateway.
    pub(super) async fn connect(&mut self) -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (client, accepted) =
            tokio::try_join!(TcpStream::connect(address), listener.accept()).unwrap();
        let (leg, client_addr) = accepted;
        crate::net::close::prepare_leg(&leg).unwrap();
        let mark = self.gateway.config().gateway.marks.upstream;
        let upstream = crate::net::dial_upstream(client_addr, self.server, mark);
        let flow = self.gateway.observer.flows.open(FlowOpen {
            protocol: Protocol::Ftp,
            client: client_addr,
            server: self.server,
            real_server: self.server,
            direction: config::Direction::Internal,
        });
        let gateway = Arc::clone(&self.gateway);
        self.sessions.push(tokio::spawn(async move {
            if let Some(closing) = super::super::run(&gateway, leg, upstream, &flow).await {
                closing.closed().await;
            }
        }));
        client
    }

    pub(super) async fn login(&mut self) -> Client {
        let mut client = Client::new(self.connect().await);
        assert_eq!(client.line().await.unwrap(), "220 ready");
        assert_eq!(client.command("USER joe").await, "230 in");
        client
    }

    pub(super) fn put(&self, name: &str, content: &[u8]) {
        self.disk.lock().unwrap().files.insert(name.to_owned(), content.to_vec());
    }

    pub(super) fn stored(&self, name: &str) -> Option<Vec<u8>> {
        self.disk.lock().unwrap().files.get(name).cloned()
    }

    pub(super) fn heard(&self) -> Vec<String> {
        self.disk.lock().unwrap().heard.clone()
    }

    /// Nobody listens there any more when this returns.
    pub(super) async fn stop_server(&mut self) {
        self.serving.abort();
        let stopped = (&mut self.serving).await;
        assert!(stopped.is_err_and(|error| error.is_cancelled()));
    }

    /// Waits until all sessions are over.
    pub(super) async fn ended(&mut self) {
        for session in self.sessions.drain(..) {
            session.await.unwrap();
        }
    }
}

/// Attaches a scanner of two workers to the gateway.
async fn start_scanner(gateway: &Gateway) {
    let (ours, theirs) = seqpacket::pair(DATAGRAM_MAX).unwrap();
    let rules = crate::scanner::process::Rules { version: "test".into(), ..Default::default() };
    gateway.scanner.attach(ours, rules).unwrap();
    let control = Seqpacket::new(theirs).unwrap();
    let mut workers = Vec::new();
    for slot in 0..2 {
        let (worker, theirs) = seqpacket::pair(DATAGRAM_MAX).unwrap();
        let announced = ToGateway::Worker { slot, pid: 1 };
        let message = postcard::to_stdvec(&announced).unwrap();
        control.send(&[IoSlice::new(&message)], &[theirs.as_fd()]).await.unwrap();
        workers.push(tokio::spawn(scan(Seqpacket::new(worker).unwrap())));
    }
    tokio::spawn(async move {
        // The control socket stays open for as long as the workers work.
        for worker in workers {
            let _ = worker.await;
        }
        drop(control);
    });
}

async fn scan(socket: Seqpacket) {
    let mut buffer = vec![0; DATAGRAM_MAX];
    loop {
        let Ok(received) = socket.receive(&mut buffer).await else { return };
        if received.len == 0 {
            return;
        }
        let request: Request = postcard::from_bytes(&buffer[..received.len]).unwrap();
        let content = match request.content {
            Content::Inline(bytes) => bytes,
            Content::Descriptor { len } => {
                let file = File::from(received.descriptors.into_iter().next().unwrap());
                let mut bytes = vec![0; len as usize];
                file.read_exact_at(&mut bytes, 0).unwrap();
                bytes
            }
        };
        let infected = memchr::memmem::find(&content, INFECTED).is_some();
        let mut report = Report { error: None, ..Report::error("") };
        report.verdict = if infected { Verdict::Infected } else { Verdict::Clean };
        if infected {
            report.findings = vec![Finding {
                name: "Test.Pattern".to_owned(),
                engine: "test".to_owned(),
                ..Finding::default()
            }];
        }
        let answer = Answer::Report(Box::new(report));
        let response = answer.responses(request.id).unwrap().next().unwrap();
        let response = postcard::to_stdvec(&response).unwrap();
        if socket.send(&[IoSlice::new(&response)], &[]).await.is_err() {
            return;
        }
    }
}

/// The scripted server: as much FTP as the driver can show.
async fn serve(stream: TcpStream, disk: Arc<Mutex<Disk>>, behaviour: Behaviour) {
    // A client that goes away ends the session.
    let _ = dialogue(BufReader::new(stream), &disk, behaviour).await;
}

async fn dialogue(
    mut control: BufReader<TcpStream>,
    disk: &Mutex<Disk>,
    behaviour: Behaviour,
) -> io::Result<()> {
    control.write_all(b"220 ready\r\n").await?;
    let mut listener = None;
    let mut active = None;
    loop {
        let mut line = String::new();
        if control.read_line(&mut line).await? == 0 {
            return Ok(());
        }
        let line = line.trim_end().to_owned();
        disk.lock().unwrap().heard.push(line.clone());
        let (verb, argument) = line.split_once(' ').unwrap_or((&line, ""));
        let reply = match verb {
            "USER" => "230 in\r\n".to_owned(),
            "PASV" if behaviour.passive => {
                let bound = TcpListener::bind("127.0.0.1:0").await?;
                let numbers = format_port(bound.local_addr()?).unwrap();
                listener = Some(bound);
                // An address of no use, as servers behind NAT announce it.
                let numbers = numbers.replacen("127,0,0,1", "10,99,0,1", 1);
                format!("227 Passive ({numbers})\r\n")
            }
            "PORT" => {
                active = parse_port(argument.as_bytes()).ok();
                "200 ok\r\n".to_owned()
            }
            "RETR" | "LIST" | "STOR" => {
                control.write_all(b"150 coming\r\n").await?;
                let data = match (listener.take(), active.take()) {
                    (Some(listener), _) => listener.accept().await?.0,
                    (None, Some(address)) => TcpStream::connect(address).await?,
                    (None, None) => return Err(io::ErrorKind::NotConnected.into()),
                };
                transfer(verb, argument, data, disk, behaviour).await
            }
            "AUTH" => {
                control.write_all(b"234 go\r\n").await?;
                return echo(control).await;
            }
            "NOOP" => "200 ok\r\n".to_owned(),
            "QUIT" => return control.write_all(b"221 bye\r\n").await,
            _ => "502 unknown\r\n".to_owned(),
        };
        control.write_all(reply.as_bytes()).await?;
    }
}

async fn transfer(
    verb: &str,
    name: &str,
    mut data: TcpStream,
    disk: &Mutex<Disk>,
    behaviour: Behaviour,
) -> String {
    if verb == "STOR" {
        let Some(content) = read_all(&mut data).await else {
            return "426 reset\r\n".to_owned();
        };
        disk.lock().unwrap().files.insert(name.to_owned(), content);
        return format!("226 stored {name}\r\n");
    }
    let content = {
        let disk = disk.lock().unwrap();
        match verb {
            "LIST" => {
                disk.files.keys().map(|name| format!("{name}\r\n")).collect::<String>().into()
            }
            _ => disk.files.get(name).cloned().unwrap_or_default(),
        }
    };
    let length = if behaviour.breaks_off { content.len() / 2 } else { content.len() };
    if behaviour.breaks_off {
        let _ = data.write_all(&content[..length]).await;
        data.set_zero_linger().unwrap();
        return "426 broken off\r\n".to_owned();
    }
    match data.write_all(&content[..length]).await {
        Ok(()) => "226 sent\r\n".to_owned(),
        Err(_) => "426 reset\r\n".to_owned(),
    }
}

async fn echo(mut control: BufReader<TcpStream>) -> io::Result<()> {
    let mut buffer = [0; 100];
    loop {
        let count = control.read(&mut buffer).await?;
        if count == 0 {
            return Ok(());
        }
        control.write_all(&buffer[..count]).await?;
    }
}

/// Reads to the end of data; `None` when it ends with a reset.
pub(super) async fn read_all(data: &mut TcpStream) -> Option<Vec<u8>> {
    let mut content = Vec::new();
    data.read_to_end(&mut content).await.ok().map(|_| content)
}

pub(super) async fn connect_from(host: &str, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(host.parse().unwrap(), 0))?;
    socket.connect(to).await
}

/// A client that is driven line by line.
pub(super) struct Client {
    control: BufReader<TcpStream>,
}

impl Client {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self { control: BufReader::new(stream) }
    }

    pub(super) async fn send(&mut self, command: &str) {
        self.write(format!("{command}\r\n").as_bytes()).await;
    }

    pub(super) async fn write(&mut self, bytes: &[u8]) {
        self.control.write_all(bytes).await.unwrap();
    }

    /// Sends bytes whose last one is urgent (RFC 854, Synch).
    pub(super) fn write_urgent(&mut self, bytes: &[u8]) {
        let socket = socket2::SockRef::from(self.control.get_ref());
        assert_eq!(socket.send_out_of_band(bytes).unwrap(), bytes.len());
    }

    pub(super) async fn read_exact(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.control.read_exact(&mut bytes).await.unwrap();
        bytes
    }

    /// The next reply line; `None` at the end of the dialogue.
    pub(super) async fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        match self.control.read_line(&mut line).await {
            Ok(0) | Err(_) => None,
            Ok(_) => Some(line.trim_end().to_owned()),
        }
    }

    pub(super) async fn command(&mut self, command: &str) -> String {
        self.send(command).await;
        self.line().await.unwrap()
    }

    pub(super) async fn passive(&mut self) -> SocketAddr {
        let reply = self.command("PASV").await;
        parse_227(reply.as_bytes()).expect("a 227")
    }

    /// Gives a transfer command; the data connection and the first reply.
    async fn begin(&mut self, command: &str, active: bool) -> (Option<TcpStream>, String) {
        if !active {
            let address = self.passive().await;
            let data = TcpStream::connect(address).await.unwrap();
            return (Some(data), self.command(command).await);
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let numbers = format_port(listener.local_addr().unwrap()).unwrap();
        let reply = self.command(&format!("PORT {numbers}")).await;
        assert_eq!(reply, "200 PORT command successful.");
        let reply = self.command(command).await;
        if !reply.starts_with('1') {
            return (None, reply);
        }
        let (data, from) = listener.accept().await.unwrap();
        assert_eq!(from.port(), 20);
        (Some(data), reply)
    }

    /// A download: the data, unless they ended with a reset or never came, and the final reply.
    pub(super) async fn transfer(
        &mut self,
        command: &str,
        active: bool,
    ) -> (Option<Vec<u8>>, String) {
        let (data, first) = self.begin(command, active).await;
        if !first.starts_with('1') {
            return (None, first);
        }
        let content = read_all(&mut data.unwrap()).await;
        (content, self.line().await.unwrap())
    }

    pub(super) async fn retrieve(&mut self, name: &str, active: bool) -> (Option<Vec<u8>>, String) {
        self.transfer(&format!("RETR {name}"), active).await
    }

    /// An upload: the final reply.
    pub(super) async fn store(&mut self, name: &str, content: &[u8], active: bool) -> String {
        let (data, first) = self.begin(&format!("STOR {name}"), active).await;
        assert!(first.starts_with("150"), "{first}");
        let mut data = data.unwrap();
        data.write_all(content).await.unwrap();
        drop(data);
        self.line().await.unwrap()
    }

    /// An upload that has sent some bytes and not ended.
    pub(super) async fn begin_store(&mut self, name: &str) -> TcpStream {
        let (data, first) = self.begin(&format!("STOR {name}"), false).await;
        assert!(first.starts_with("150"), "{first}");
        let mut data = data.unwrap();
        data.write_all(&pattern(100_000)).await.unwrap();
        data
    }
}

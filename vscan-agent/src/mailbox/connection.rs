//! One IMAP connection (RFC 3501, RFC 9051): connecting, running a command, and the bounds of both. What goes over the wire
//! is `vscan_proto::imap`'s, logging in is [`super::login`]'s, what the answers mean for a scan is decided elsewhere.
//!
//! A command has an answer within [`Patience::answer`] of the last byte that came, and ends within `COMMAND_TIME` and
//! `COMMAND_BYTES`, or the connection is given up: nothing waits for a server for ever, whatever it sends.

use super::tls;
pub use super::{
    login::{Login, Mechanism, Secret},
    tls::Security,
};
use rustls::pki_types::ServerName;
use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};
use thiserror::Error;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;
use vscan_proto::imap::{Code, Command, Data, Kind, Reader, Response, Status};

/// Bytes read at a time. An idle connection reads with [`IDLE_READ`] and holds no buffer.
const READ_SIZE: usize = 64 << 10;

/// Bytes read at a time while nothing is awaited but news.
const IDLE_READ: usize = 512;

/// The longest response that is held, in bytes; what is longer is read over. A piece of a message is 1 MiB, and a search
/// is asked for in portions of [`super::folder::SEARCH_MAX`].
const RESPONSE_MAX: usize = 4 << 20;

/// Bytes that one command may bring: far more than any batch that is asked for. A server that never ends stops here.
const COMMAND_BYTES: u64 = 128 << 20;

/// Time that one command may take, whatever comes meanwhile.
const COMMAND_TIME: Duration = Duration::from_secs(900);

/// How a connection begins.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Name or address of the server; its certificate must be for this name.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// How the connection is protected.
    pub security: Security,
}

/// How long a server may take.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// To accept a connection and shake hands.
    pub connect: Duration,
    /// To send the next byte of an answer.
    pub answer: Duration,
}

/// What ended a command or the connection.
#[derive(Debug, Error)]
pub enum Error {
    /// The connection broke, or could not be made.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// No TLS with this server: its certificate, or what came is no TLS.
    #[error("TLS: {0}")]
    Tls(String),
    /// The server took too long.
    #[error("the server did not answer {0} in time")]
    Silent(&'static str),
    /// The server said NO.
    #[error("{command} was refused: {text}")]
    No {
        /// The command.
        command: &'static str,
        /// The server's words.
        text: String,
        /// Its code said that the mailbox is full (RFC 5530, RFC 9208).
        over_quota: bool,
    },
    /// The server said BAD: it does not understand us.
    #[error("{command} was not understood: {text}")]
    Bad {
        /// The command.
        command: &'static str,
        /// The server's words.
        text: String,
    },
    /// The login was refused.
    #[error("login refused: {0}")]
    Login(String),
    /// The server said goodbye.
    #[error("the server closed the connection: {0}")]
    Bye(String),
    /// What came is no IMAP, or nothing that the command can have as an answer.
    #[error("a response that cannot be understood: {0}")]
    Malformed(String),
    /// Part of an answer was read over; the connection is in order.
    #[error("an answer that cannot be understood: {0}")]
    Unreadable(String),
    /// The server sends more than anybody asked for.
    #[error("the server sends without end in answer to {0}")]
    Endless(&'static str),
    /// The server lacks something that we cannot do without.
    #[error("the server does not offer {0}")]
    Missing(&'static str),
    /// A name or text that IMAP cannot carry.
    #[error("{0} cannot be written in IMAP")]
    Unspeakable(String),
}

impl Error {
    /// Whether the connection can go on: the server refused one command.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        matches!(
            self,
            Self::No { .. } | Self::Bad { .. } | Self::Unspeakable(_) | Self::Unreadable(_)
        )
    }
}

/// The stream below IMAP.
trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

/// A connection.
pub struct Connection {
    wire: Box<dyn Wire>,
    reader: Reader,
    buffer: Vec<u8>,
    answer: Duration,
    tags: u64,
    /// What the server can do, in capitals.
    pub(super) capabilities: Vec<String>,
    /// What ENABLE has turned on, in capitals.
    pub(super) enabled: Vec<String>,
    /// What could not be understood of the last command's answer.
    pub(super) unreadable: Option<String>,
    /// The last command, and what it has brought so far.
    spent: (Instant, u64),
    ends: (SocketAddr, SocketAddr),
    moved: (u64, u64),
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection")
            .field("capabilities", &self.capabilities)
            .field("enabled", &self.enabled)
            .finish_non_exhaustive()
    }
}

impl Connection {
    /// Connects, protects the connection as asked, and logs in.
    ///
    /// # Errors
    /// Any [`enum@Error`]. Plaintext that a server, or somebody between, sends behind its answer to STARTTLS is no TLS record,
    /// and [`Error::Tls`].
    pub async fn open(
        endpoint: &Endpoint,
        login: &Login,
        patience: Patience,
    ) -> Result<Self, Error> {
        let connecting = Self::connect(endpoint, patience.answer);
        let (mut connection, greeted) = timeout(patience.connect, connecting)
            .await
            .map_err(|_| Error::Silent("the connection"))??;
        connection.begin();
        if !greeted {
            connection.greeting().await?;
        }
        connection.log_in(login).await?;
        Ok(connection)
    }

    /// The connection, and whether its greeting has been read.
    async fn connect(endpoint: &Endpoint, answer: Duration) -> Result<(Self, bool), Error> {
        let mut stream = TcpStream::connect((endpoint.host.as_str(), endpoint.port)).await?;
        stream.set_nodelay(true)?;
        let ends = (stream.local_addr()?, stream.peer_addr()?);
        let (wire, greeted): (Box<dyn Wire>, bool) = match &endpoint.security {
            Security::None => (Box::new(stream), false),
            Security::Tls(config) => {
                let tls = TlsConnector::from(Arc::clone(config));
                (Box::new(shake_hands(&tls, endpoint, stream).await?), false)
            }
            Security::StartTls(config) => {
                tls::start(&mut stream).await?;
                let tls = TlsConnector::from(Arc::clone(config));
                (Box::new(shake_hands(&tls, endpoint, stream).await?), true)
            }
        };
        let connection = Self {
            wire,
            reader: Reader::new(RESPONSE_MAX),
            buffer: Vec::new(),
            answer,
            tags: 0,
            capabilities: Vec::new(),
            enabled: Vec::new(),
            unreadable: None,
            spent: (Instant::now(), 0),
            ends,
            moved: (0, 0),
        };
        Ok((connection, greeted))
    }

    async fn greeting(&mut self) -> Result<(), Error> {
        match self.response("the connection").await? {
            Response::Status(Status { kind: Kind::Ok, .. }) => Ok(()),
            Response::Status(Status { kind: Kind::PreAuth, .. }) => {
                // Whose mailbox that is we do not know.
                Err(Error::Missing("a login: the connection is somebody's already"))
            }
            Response::Status(Status { kind: Kind::Bye, text, .. }) => Err(Error::Bye(text)),
            other => Err(Error::Malformed(format!("no greeting but {other:?}"))),
        }
    }

    /// Its two ends: ours, and the server's.
    #[must_use]
    pub fn ends(&self) -> (SocketAddr, SocketAddr) {
        self.ends
    }

    /// Bytes that were sent and received since this was last asked, without TLS around them.
    pub fn take_moved(&mut self) -> (u64, u64) {
        std::mem::take(&mut self.moved)
    }

    /// Whether the server offers this, e.g. `IDLE` or `AUTH=PLAIN`.
    #[must_use]
    pub fn has(&self, capability: &str) -> bool {
        self.capabilities.iter().any(|has| has.eq_ignore_ascii_case(capability))
    }

    /// Whether this was turned on at the login, e.g. `QRESYNC`.
    #[must_use]
    pub fn is_enabled(&self, extension: &str) -> bool {
        self.enabled.iter().any(|has| has.eq_ignore_ascii_case(extension))
    }

    /// Runs a command to its end; `on` gets the data that come meanwhile, also those that nobody asked for. Gives the code of
    /// its end.
    ///
    /// # Errors
    /// [`Error::No`] and [`Error::Bad`] leave the connection usable, all others do not.
    pub async fn run(
        &mut self,
        name: &'static str,
        command: Command,
        on: impl FnMut(Data),
    ) -> Result<Option<Code>, Error> {
        self.run_with(name, command, on, |_| {}).await
    }

    /// As [`run`](Self::run); `coded` gets the codes of untagged OK, as SELECT sends them.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub async fn run_with(
        &mut self,
        name: &'static str,
        command: Command,
        mut on: impl FnMut(Data),
        mut coded: impl FnMut(Code),
    ) -> Result<Option<Code>, Error> {
        self.begin();
        let tag = self.tag();
        let mut pieces = command.pieces(&tag).into_iter();
        if let Some(first) = pieces.next() {
            self.send(name, &[&first]).await?;
        }
        loop {
            match self.response(name).await? {
                Response::Data(data) => on(data),
                Response::Continue(_) => {
                    // A literal, and the line behind it.
                    let (Some(literal), Some(line)) = (pieces.next(), pieces.next()) else {
                        return Err(Error::Malformed(format!("a question in answer to {name}")));
                    };
                    self.send(name, &[&literal, &line]).await?;
                }
                Response::Tagged { tag: other, status } if other == tag.as_bytes() => {
                    return finished(name, status);
                }
                Response::Tagged { tag, .. } => {
                    let tag = tag.escape_ascii();
                    return Err(Error::Malformed(format!("an answer to {tag}, which nobody sent")));
                }
                Response::Status(Status { kind: Kind::Bye, text, .. }) => {
                    return Err(Error::Bye(text));
                }
                Response::Status(status) => {
                    if let Some(code) = status.code {
                        coded(code);
                    }
                }
                Response::Unreadable(what) => self.note_unreadable(what),
            }
        }
    }

    /// What a command could not do without, if part of its answer was not understood.
    ///
    /// # Errors
    /// [`Error::Unreadable`]
    pub(super) fn understood(&mut self) -> Result<(), Error> {
        self.unreadable.take().map_or(Ok(()), |what| Err(Error::Unreadable(what)))
    }

    pub(super) fn note_unreadable(&mut self, what: String) {
        tracing::debug!("a response was read over: {what}");
        self.unreadable = Some(what);
    }

    /// Says goodbye; whether the server hears it does not matter.
    pub async fn log_out(mut self) {
        const PATIENCE: Duration = Duration::from_secs(2);
        let _ = timeout(PATIENCE, self.run("LOGOUT", Command::new("LOGOUT"), |_| {})).await;
    }

    /// Begins a command: its time and its bytes count from now on.
    pub(super) fn begin(&mut self) {
        self.spent = (Instant::now(), 0);
        self.unreadable = None;
    }

    /// The next command's tag.
    pub(super) fn tag(&mut self) -> String {
        self.tags += 1;
        format!("v{}", self.tags)
    }

    /// Sends all of this, within the patience for an answer for each piece.
    pub(super) async fn send(&mut self, name: &'static str, pieces: &[&[u8]]) -> Result<(), Error> {
        let gather = pieces.iter().map(|piece| piece.len()).sum::<usize>() <= READ_SIZE;
        let gathered;
        let one;
        let pieces = if gather && pieces.len() > 1 {
            gathered = pieces.concat();
            one = [gathered.as_slice()];
            &one[..]
        } else {
            pieces
        };
        for piece in pieces.iter().flat_map(|piece| piece.chunks(READ_SIZE)) {
            timeout(self.answer, self.wire.write_all(piece))
                .await
                .map_err(|_| Error::Silent(name))??;
            self.moved.0 += piece.len() as u64;
        }
        timeout(self.answer, self.wire.flush()).await.map_err(|_| Error::Silent(name))??;
        Ok(())
    }

    /// The next response, within the bounds of a command.
    pub(super) async fn response(&mut self, name: &'static str) -> Result<Response, Error> {
        loop {
            if let Some(raw) = self.reader.next_response() {
                return Ok(Response::parse(&raw));
            }
            let (began, bytes) = self.spent;
            if bytes > COMMAND_BYTES {
                return Err(Error::Endless(name));
            }
            let left = COMMAND_TIME.saturating_sub(began.elapsed());
            // Patience counts from the last byte: a large answer over a slow line is no silence.
            let count = timeout(self.answer.min(left), self.fill())
                .await
                .map_err(|_| Error::Silent(name))??;
            self.spent.1 += count as u64;
        }
    }

    async fn fill(&mut self) -> Result<usize, Error> {
        self.buffer.resize(READ_SIZE, 0);
        let count = self.wire.read(&mut self.buffer).await?;
        if count == 0 {
            return Err(Error::Io(io::ErrorKind::UnexpectedEof.into()));
        }
        self.moved.1 += count as u64;
        self.reader.push(&self.buffer[..count]);
        Ok(count)
    }

    /// The next response, however long it takes, with next to no memory while nothing comes. Nothing is lost when it is dropped.
    pub(super) async fn news(&mut self) -> Result<Response, Error> {
        loop {
            if let Some(raw) = self.reader.next_response() {
                return Ok(Response::parse(&raw));
            }
            self.buffer = Vec::new();
            let mut few = [0; IDLE_READ];
            let count = self.wire.read(&mut few).await?;
            if count == 0 {
                return Err(Error::Io(io::ErrorKind::UnexpectedEof.into()));
            }
            self.reader.push(&few[..count]);
            self.moved.1 += count as u64;
            self.spent.1 += count as u64;
            if self.spent.1 > COMMAND_BYTES {
                return Err(Error::Endless("IDLE"));
            }
        }
    }
}

async fn shake_hands(
    tls: &TlsConnector,
    endpoint: &Endpoint,
    stream: TcpStream,
) -> Result<tokio_rustls::client::TlsStream<TcpStream>, Error> {
    let name = ServerName::try_from(endpoint.host.clone())
        .map_err(|_| Error::Unspeakable(format!("the server name {:?}", endpoint.host)))?;
    tls.connect(name, stream).await.map_err(|error| {
        // What rustls has to say stands inside.
        match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(inner) => Error::Tls(inner.to_string()),
            None => Error::Io(error),
        }
    })
}

/// What a tagged status means.
pub(super) fn finished(command: &'static str, status: Status) -> Result<Option<Code>, Error> {
    let Status { kind, code, text } = status;
    match kind {
        Kind::Ok => Ok(code),
        Kind::No => Err(Error::No { command, text, over_quota: code == Some(Code::OverQuota) }),
        Kind::Bad => Err(Error::Bad { command, text }),
        Kind::Bye => Err(Error::Bye(text)),
        Kind::PreAuth => Err(Error::Malformed(format!("PREAUTH in answer to {command}"))),
    }
}

//! One IMAP connection (RFC 3501, RFC 9051): connecting, TLS, logging in, and the few commands that a
//! scan needs. Parsing and literals are imap-next's; what the answers mean for a scan is decided elsewhere.
//!
//! A command has an answer within [`Patience::answer`] of the last byte that came, or the connection is given up: nothing
//! waits for a server for ever.

use super::ascii::Ascii;
use imap_next::{
    Interrupt, Io, State,
    client::{Client, Event, Options},
    imap_types::{
        auth::{AuthMechanism, AuthenticateData},
        command::{Command, CommandBody},
        core::TagGenerator,
        response::{
            Bye, Capability, Code, Data, GreetingKind, Status, StatusBody, StatusKind, Tagged,
        },
        secret::Secret,
    },
};
use rustls::{ClientConfig, pki_types::ServerName};
use std::{io, sync::Arc, time::Duration};
use thiserror::Error;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;

/// Bytes read at a time.
const READ_SIZE: usize = 64 << 10;

/// The longest response that is accepted, in bytes. Messages are fetched in pieces far below it; a folder listing or a
/// search in a folder with a million messages stays below it too.
const RESPONSE_MAX: u32 = 16 << 20;

/// The longest greeting or answer to STARTTLS, in bytes: one line (RFC 9051 has no limit, servers stay below 1 KiB).
const LINE_MAX: usize = 8 << 10;

/// Bytes of a response that could not be understood that are shown.
const SHOWN_MAX: usize = 200;

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

/// How a connection is protected.
#[derive(Clone, Debug)]
pub enum Security {
    /// TLS from the first byte (RFC 8314).
    Tls(Arc<ClientConfig>),
    /// TLS after STARTTLS (RFC 9051 6.2.1), or no connection.
    StartTls(Arc<ClientConfig>),
    /// None: passwords and mail travel in the clear.
    None,
}

/// Who logs in, and how.
#[derive(Clone, Debug)]
pub enum Login {
    /// AUTHENTICATE PLAIN (RFC 4616) where the server offers it, else LOGIN.
    Password {
        /// Whose mailbox it is; empty: that of `user`.
        on_behalf_of: String,
        /// Who logs in.
        user: String,
        /// The password.
        password: Secret<String>,
    },
    /// AUTHENTICATE XOAUTH2, with an access token.
    XOAuth2 {
        /// Whose mailbox it is.
        user: String,
        /// The token.
        token: Secret<String>,
    },
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
    /// What came is no IMAP.
    #[error("a response that cannot be understood: {0}")]
    Malformed(String),
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
        matches!(self, Self::No { .. } | Self::Bad { .. } | Self::Unspeakable(_))
    }
}

/// The stream below IMAP.
trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

/// A connection.
pub struct Connection {
    wire: Box<dyn Wire>,
    client: Client,
    tags: TagGenerator,
    capabilities: Vec<Capability<'static>>,
    answer: Duration,
    buffer: Vec<u8>,
    ascii: Ascii,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection")
            .field("capabilities", &self.capabilities)
            .finish_non_exhaustive()
    }
}

impl Connection {
    /// Connects, protects the connection as asked, and logs in.
    ///
    /// # Errors
    /// Any [`enum@Error`]. Plaintext that a server, or somebody between, sends behind its answer to STARTTLS is
    /// [`Error::Malformed`].
    pub async fn open(
        endpoint: &Endpoint,
        login: &Login,
        patience: Patience,
    ) -> Result<Self, Error> {
        let connecting = Self::connect(endpoint, patience.answer);
        let mut connection = timeout(patience.connect, connecting)
            .await
            .map_err(|_| Error::Silent("the connection"))??;
        connection.greeting().await?;
        connection.log_in(login).await?;
        Ok(connection)
    }

    async fn connect(endpoint: &Endpoint, answer: Duration) -> Result<Self, Error> {
        let mut stream = TcpStream::connect((endpoint.host.as_str(), endpoint.port)).await?;
        stream.set_nodelay(true)?;
        let name = || {
            ServerName::try_from(endpoint.host.clone())
                .map_err(|_| Error::Unspeakable(format!("the server name {:?}", endpoint.host)))
        };
        let (wire, greeted): (Box<dyn Wire>, bool) = match &endpoint.security {
            Security::None => (Box::new(stream), false),
            Security::Tls(config) => {
                let tls = TlsConnector::from(Arc::clone(config));
                (Box::new(tls.connect(name()?, stream).await?), false)
            }
            Security::StartTls(config) => {
                start_tls(&mut stream).await?;
                let tls = TlsConnector::from(Arc::clone(config));
                (Box::new(tls.connect(name()?, stream).await?), true)
            }
        };
        let mut options = Options::default();
        options.max_response_size = RESPONSE_MAX;
        options.discard_greeting = greeted;
        let mut connection = Self {
            wire,
            client: Client::new(options),
            tags: TagGenerator::new(),
            capabilities: Vec::new(),
            answer,
            buffer: Vec::new(),
            ascii: Ascii::default(),
        };
        if greeted {
            connection.capability().await?;
        }
        Ok(connection)
    }

    async fn greeting(&mut self) -> Result<(), Error> {
        if !self.capabilities.is_empty() {
            return Ok(());
        }
        loop {
            if let Event::GreetingReceived { greeting } = self.event("the connection").await? {
                if greeting.kind == GreetingKind::Bye {
                    return Err(Error::Bye(greeting.text.to_string()));
                }
                return Ok(());
            }
        }
    }

    async fn log_in(&mut self, login: &Login) -> Result<(), Error> {
        if self.capabilities.is_empty() {
            self.capability().await?;
        }
        let refused = |error| match error {
            Error::No { text, .. } | Error::Bad { text, .. } => Error::Login(text),
            other => other,
        };
        match login {
            Login::Password { on_behalf_of, user, password } => {
                let plain = self.has(&Capability::Auth(AuthMechanism::Plain));
                if plain {
                    let secret = format!("{on_behalf_of}\0{user}\0{}", password.declassify());
                    self.authenticate(AuthMechanism::Plain, secret.into_bytes())
                        .await
                        .map_err(refused)?;
                } else if !on_behalf_of.is_empty() {
                    return Err(Error::Missing(
                        "AUTH=PLAIN, which a login on behalf of others needs",
                    ));
                } else if self.has(&Capability::LoginDisabled) {
                    return Err(Error::Missing("LOGIN on a connection without TLS"));
                } else {
                    let body = CommandBody::login(user.clone(), password.declassify().clone())
                        .map_err(|_| Error::Unspeakable("the user name or password".to_owned()))?;
                    self.run("LOGIN", body, |_| {}).await.map_err(refused)?;
                }
            }
            Login::XOAuth2 { user, token } => {
                if !self.has(&Capability::Auth(AuthMechanism::XOAuth2)) {
                    return Err(Error::Missing("AUTH=XOAUTH2"));
                }
                let secret =
                    format!("user={user}\u{1}auth=Bearer {}\u{1}\u{1}", token.declassify());
                self.authenticate(AuthMechanism::XOAuth2, secret.into_bytes())
                    .await
                    .map_err(refused)?;
            }
        }
        // Servers offer more to those they know.
        self.capability().await
    }

    async fn authenticate(
        &mut self,
        mechanism: AuthMechanism<'static>,
        secret: Vec<u8>,
    ) -> Result<(), Error> {
        const COMMAND: &str = "AUTHENTICATE";
        let body = CommandBody::Authenticate { mechanism, initial_response: None };
        let command = Command { tag: self.tags.generate(), body };
        self.client.enqueue_command(command);
        let mut secret = Some(secret);
        loop {
            match self.event(COMMAND).await? {
                Event::AuthenticateContinuationRequestReceived { .. } => {
                    // A second question is an error report (XOAUTH2): answered by nothing, then refused.
                    let data = AuthenticateData::r#continue(secret.take().unwrap_or_default());
                    let _ = self.client.set_authenticate_data(data);
                }
                Event::AuthenticateStatusReceived { status, .. } => {
                    return finished(COMMAND, status).map(drop);
                }
                _ => {}
            }
        }
    }

    /// Asks what the server can do.
    async fn capability(&mut self) -> Result<(), Error> {
        let mut capabilities = Vec::new();
        self.run("CAPABILITY", CommandBody::Capability, |data| {
            if let Data::Capability(list) = data {
                capabilities = list.into_inner();
            }
        })
        .await?;
        self.capabilities = capabilities;
        Ok(())
    }

    /// Whether the server offers this.
    #[must_use]
    pub fn has(&self, capability: &Capability<'_>) -> bool {
        self.capabilities.contains(capability)
    }

    /// Runs a command to its end; `on` gets the data that come meanwhile, also those that nobody asked for.
    ///
    /// # Errors
    /// [`Error::No`] and [`Error::Bad`] leave the connection usable, all others do not.
    pub async fn run(
        &mut self,
        name: &'static str,
        body: CommandBody<'static>,
        on: impl FnMut(Data<'static>),
    ) -> Result<Option<Code<'static>>, Error> {
        self.run_with(name, body, on, |_| {}).await
    }

    /// As [`run`](Self::run); `coded` gets the codes of untagged OK, as SELECT sends them.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub async fn run_with(
        &mut self,
        name: &'static str,
        body: CommandBody<'static>,
        mut on: impl FnMut(Data<'static>),
        mut coded: impl FnMut(Code<'static>),
    ) -> Result<Option<Code<'static>>, Error> {
        let tag = self.tags.generate();
        self.client.enqueue_command(Command { tag: tag.clone(), body });
        loop {
            match self.event(name).await? {
                Event::DataReceived { data } => on(data),
                Event::StatusReceived { status: Status::Untagged(body) } => {
                    if let Some(code) = body.code {
                        coded(code);
                    }
                }
                Event::StatusReceived { status: Status::Bye(Bye { text, .. }) } => {
                    return Err(Error::Bye(text.to_string()));
                }
                Event::StatusReceived { status } => {
                    if let Status::Tagged(tagged) = &status
                        && tagged.tag == tag
                    {
                        return finished(name, status);
                    }
                }
                Event::CommandRejected { status, .. } => return finished(name, status),
                _ => {}
            }
        }
    }

    /// Waits in IDLE (RFC 2177) until the server tells of a change, or until `most` is over. True: something
    /// changed.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub async fn idle(&mut self, most: Duration) -> Result<bool, Error> {
        const COMMAND: &str = "IDLE";
        self.client.enqueue_command(Command { tag: self.tags.generate(), body: CommandBody::Idle });
        let mut changed = false;
        let mut ending = false;
        let until = tokio::time::Instant::now() + most;
        loop {
            let event = if ending || changed {
                if !ending {
                    ending = true;
                    self.client.set_idle_done();
                }
                self.event(COMMAND).await?
            } else {
                match tokio::time::timeout_at(until, self.next()).await {
                    Ok(event) => event?,
                    Err(_) => {
                        ending = true;
                        self.client.set_idle_done();
                        continue;
                    }
                }
            };
            match event {
                Event::DataReceived { data: Data::Exists(_) | Data::Fetch { .. } } => {
                    changed = true
                }
                Event::IdleRejected { status, .. } => {
                    return finished(COMMAND, status).map(|_| false);
                }
                Event::StatusReceived { status: Status::Bye(Bye { text, .. }) } => {
                    return Err(Error::Bye(text.to_string()));
                }
                Event::StatusReceived { status: status @ Status::Tagged(_) } => {
                    return finished(COMMAND, status).map(|_| changed);
                }
                _ => {}
            }
        }
    }

    /// Says goodbye; whether the server hears it does not matter.
    pub async fn log_out(mut self) {
        const PATIENCE: Duration = Duration::from_secs(2);
        let _ = timeout(PATIENCE, self.run("LOGOUT", CommandBody::Logout, |_| {})).await;
    }

    /// The next event, within the patience for an answer.
    async fn event(&mut self, command: &'static str) -> Result<Event, Error> {
        let mut silence = self.answer;
        loop {
            // Patience counts from the last byte: a large answer over a slow line is no silence.
            match timeout(silence, self.step()).await {
                Ok(Ok(Some(event))) => return Ok(event),
                Ok(Ok(None)) => silence = self.answer,
                Ok(Err(error)) => return Err(error),
                Err(_) => return Err(Error::Silent(command)),
            }
        }
    }

    /// The next event, however long it takes.
    async fn next(&mut self) -> Result<Event, Error> {
        loop {
            if let Some(event) = self.step().await? {
                return Ok(event);
            }
        }
    }

    /// One step: an event, or bytes moved. Nothing is lost when it is dropped while it waits for input.
    async fn step(&mut self) -> Result<Option<Event>, Error> {
        match self.client.next() {
            Ok(event) => Ok(Some(event)),
            Err(Interrupt::Io(Io::Output(bytes))) => {
                self.wire.write_all(&bytes).await?;
                self.wire.flush().await?;
                Ok(None)
            }
            Err(Interrupt::Io(Io::NeedMoreInput)) => {
                self.buffer.resize(READ_SIZE, 0);
                let count = self.wire.read(&mut self.buffer).await?;
                if count == 0 {
                    return Err(Error::Io(io::ErrorKind::UnexpectedEof.into()));
                }
                self.ascii.clean(&mut self.buffer[..count]);
                self.client.enqueue_input(&self.buffer[..count]);
                Ok(None)
            }
            Err(Interrupt::Error(error)) => Err(malformed(&error)),
        }
    }
}

/// What could not be understood, with its beginning: for the log of an operator whose server sends it.
fn malformed(error: &imap_next::client::Error) -> Error {
    use imap_next::client::Error as E;
    let (E::ExpectedCrlfGotLf { discarded_bytes }
    | E::MalformedMessage { discarded_bytes }
    | E::ResponseTooLong { discarded_bytes }) = error;
    let bytes = discarded_bytes.declassify();
    let shown = bytes[..bytes.len().min(SHOWN_MAX)].escape_ascii();
    Error::Malformed(format!("{error}: {shown}"))
}

/// What a tagged status means.
fn finished(
    command: &'static str,
    status: Status<'static>,
) -> Result<Option<Code<'static>>, Error> {
    let StatusBody { kind, code, text } = match status {
        Status::Tagged(Tagged { body, .. }) | Status::Untagged(body) => body,
        Status::Bye(Bye { text, .. }) => return Err(Error::Bye(text.to_string())),
    };
    let text = text.to_string();
    match kind {
        StatusKind::Ok => Ok(code),
        StatusKind::No => {
            Err(Error::No { command, text, over_quota: matches!(code, Some(Code::OverQuota)) })
        }
        StatusKind::Bad => Err(Error::Bad { command, text }),
    }
}

/// The plaintext part of STARTTLS: the greeting, the command, its answer, and not one byte more.
async fn start_tls(stream: &mut TcpStream) -> Result<(), Error> {
    let greeting = line(stream).await?;
    if !greeting.to_ascii_uppercase().starts_with("* OK") {
        return Err(Error::Bye(greeting));
    }
    stream.write_all(b"vscan STARTTLS\r\n").await?;
    loop {
        let answer = line(stream).await?;
        let upper = answer.to_ascii_uppercase();
        if upper.starts_with("VSCAN OK") {
            return Ok(());
        }
        if !upper.starts_with("* ") {
            return Err(Error::Missing("STARTTLS"));
        }
    }
}

/// Reads one line and nothing behind it, so that TLS begins where the server began it: what was put behind the answer in
/// plaintext is then no TLS record, and the handshake fails.
async fn line(stream: &mut TcpStream) -> Result<String, Error> {
    let mut line = Vec::new();
    loop {
        let byte = stream.read_u8().await?;
        match byte {
            b'\n' => break,
            byte if line.len() < LINE_MAX => line.push(byte),
            _ => return Err(Error::Malformed("a line without end".to_owned())),
        }
    }
    Ok(String::from_utf8_lossy(line.trim_ascii_end()).into_owned())
}

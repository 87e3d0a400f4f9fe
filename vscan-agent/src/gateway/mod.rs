//! The gateway: one task per session, from the accepted connection to its end.
//!
//! [`process`] is the process around it, [`inspect`] what happens to an object, `ftp` and `smtp` drive
//! the session machines of `vscan-proto`. Nothing here parses mail or archives.

mod accept;
pub mod ftp;
pub mod inspect;
mod lookout;
mod outbound;
pub mod process;
mod scan;
mod services;
pub mod smtp;
mod tally;
mod translation;
mod treat;
mod uninspected;
mod workers;

use crate::{
    config::{Config, OutboundAction, Protocol},
    net::{self, Dialling},
    notify::Notifier,
    observe::{FlowHandle, FlowOpen, Observer},
    quarantine,
    scanner::Scanner,
    spool::Spool,
    tls::{ClosedBook, Reluctant, Tls, Wire},
};
use inspect::ErrorLedger;
use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError, RwLock},
};
use tokio::{
    io::AsyncWriteExt,
    net::TcpStream,
    sync::{OwnedSemaphorePermit, Semaphore, watch},
};
use workers::Place;

pub use inspect::{About, Inspection, Outcome, Stored};
pub use translation::Translation;
pub use treat::Treated;

/// What all sessions share.
#[derive(Debug)]
pub struct Gateway {
    config: RwLock<Arc<Config>>,
    /// Metrics, events, flow table.
    pub observer: Observer,
    /// Held objects.
    pub spool: Spool,
    /// The scanner process.
    pub scanner: Scanner,
    /// How our own connections are translated on their way.
    pub translation: Translation,
    /// What FTP sessions remember of files.
    memory: Arc<ftp::Memory>,
    /// Where blocked objects are kept.
    pub quarantine: quarantine::Store,
    /// Who is told by mail.
    pub notifier: Notifier,
    sessions: Arc<Semaphore>,
    draining: watch::Sender<bool>,
    ledger: Mutex<ErrorLedger>,
    steering: RwLock<String>,
    /// What hosts inside send.
    watched: outbound::Watched,
    tls: RwLock<Arc<Tls>>,
    /// Whose TLS cannot be opened.
    pub closed_book: ClosedBook,
    /// Who refuses the TLS that it announces.
    pub reluctant: Reluctant,
}

impl Gateway {
    /// A gateway without a scanner or kernel state yet.
    pub fn new(
        config: Config,
        observer: Observer,
        spool: Spool,
        quarantine: quarantine::Store,
    ) -> Self {
        let scanner = Scanner::new();
        scanner.remember(config.scan.cache.memory);
        scanner.set_clamd(config.scan.clamd.as_ref(), Some(observer.metrics.clamd()));
        spool.look_ahead(&scanner);
        Self {
            notifier: Notifier::in_memory(observer.clone()),
            sessions: Arc::new(Semaphore::new(config.gateway.max_sessions.get())),
            config: RwLock::new(Arc::new(config)),
            observer,
            spool,
            scanner,
            translation: Translation::default(),
            memory: Arc::default(),
            quarantine,
            draining: watch::Sender::new(false),
            ledger: Mutex::default(),
            steering: RwLock::default(),
            watched: outbound::Watched::new(),
            tls: RwLock::default(),
            closed_book: ClosedBook::default(),
            reluctant: Reluctant::default(),
        }
    }

    /// Notices go into this queue, which survives the process, instead of one in memory.
    #[must_use]
    pub fn with_notifier(mut self, notifier: Notifier) -> Self {
        self.notifier = notifier;
        self
    }

    /// What `[tls]` comes to, as of now. A session keeps the one that it began with.
    pub fn tls(&self) -> Arc<Tls> {
        Arc::clone(&self.tls.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// New sessions get these certificates.
    pub fn set_tls(&self, tls: Tls) {
        self.observer.metrics.tls.set_expiries(tls.ages());
        *self.tls.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(tls);
    }

    /// The configuration, as of now. A session keeps the one that it began with.
    pub fn config(&self) -> Arc<Config> {
        Arc::clone(&self.config.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// New sessions get this configuration.
    pub fn set_config(&self, config: Config) {
        if self.config().scan.cache != config.scan.cache {
            self.scanner.remember(config.scan.cache.memory);
        }
        let clamd = config.scan.clamd.as_ref();
        self.scanner.set_clamd(clamd, Some(self.observer.metrics.clamd()));
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
    }

    /// Kernel state is installed; connections are steered like this.
    pub fn set_steering(&self, steering: String) {
        *self.steering.write().unwrap_or_else(PoisonError::into_inner) = steering;
    }

    /// How connections are steered, in words; empty before kernel state is installed.
    pub fn steering(&self) -> String {
        self.steering.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Becomes true when sessions are to end at their next safe point: between two transfers or
    /// messages, with 421.
    pub fn draining(&self) -> watch::Receiver<bool> {
        self.draining.subscribe()
    }

    /// From now on sessions end at their next safe point.
    pub fn drain(&self) {
        self.draining.send_replace(true);
    }

    /// Decides whether a connection, which does not block and was accepted `from` a client, becomes a session.
    pub fn admit(&self, client: std::net::TcpStream, from: SocketAddr) -> Admission {
        let Ok(server) = client.local_addr() else {
            return Admission::Gone;
        };
        let config = self.config();
        let Some(protocol) = config.protocol(server.port()) else {
            // Nobody was steered here: somebody dialled the listener itself.
            self.observer.metrics.anomaly_without_flow("listener_dialled");
            tracing::warn!(client = %from, "connection to the redirect listener itself was reset");
            return Admission::Gone;
        };
        if protocol == Protocol::Smtp && self.mail_connection(&config, from.ip()) {
            self.observer.metrics.session_refused(protocol, "sends_too_much");
            if config.outbound.action == OutboundAction::Cut {
                return Admission::Gone;
            }
            return Admission::Refused(client, Refusal::SendsTooMuch);
        }
        let Ok(permit) = Arc::clone(&self.sessions).try_acquire_owned() else {
            self.observer.metrics.session_refused(protocol, "max_sessions");
            return Admission::Refused(client, Refusal::Busy(protocol));
        };
        let flow = self.observer.flows.open(FlowOpen {
            protocol,
            client: from,
            // Without conntrack there is no NAT either, and both are the same.
            server: net::original_destination(&client, server).unwrap_or(server),
            real_server: server,
            direction: config.direction(from.ip(), server.ip()),
        });
        let upstream = net::dial_upstream(from, server, config.gateway.marks.upstream);
        Admission::Session(Session { client, upstream, flow, _permit: permit })
    }

    /// Waits for the upstream leg of a session to `server`.
    ///
    /// # Errors
    /// As [`net::dial_upstream`] and [`Dialling::connected`].
    pub async fn connected(
        &self,
        upstream: io::Result<Dialling>,
        server: SocketAddr,
    ) -> io::Result<TcpStream> {
        let config = self.config();
        let connected = async { upstream?.connected(config.gateway.connect_timeout).await };
        connected.await.inspect_err(|_| {
            if let Some(protocol) = config.protocol(server.port()) {
                self.observer.metrics.session_refused(protocol, "unreachable");
            }
        })
    }

    /// Dials the server as the client once more, where the first connection has to be given up.
    ///
    /// # Errors
    /// As [`Self::connected`].
    pub async fn redial(&self, client: SocketAddr, server: SocketAddr) -> io::Result<TcpStream> {
        let mark = self.config().gateway.marks.upstream;
        self.connected(net::dial_upstream(client, server, mark), server).await
    }
}

/// What becomes of an accepted connection.
#[derive(Debug)]
pub enum Admission {
    /// It ended before it began, or was reset.
    Gone,
    /// Not now: tell it by [`Refusal::tell`].
    Refused(std::net::TcpStream, Refusal),
    /// It is to be served.
    Session(Session),
}

/// Why a connection is not served now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// There are too many sessions.
    Busy(Protocol),
    /// The host sends too much mail.
    SendsTooMuch,
}

impl Refusal {
    /// Tells the client, and closes.
    pub async fn tell(self, client: std::net::TcpStream) {
        // Without descriptors it is reset.
        let Ok(client) = TcpStream::from_std(client) else { return };
        match self {
            Self::Busy(protocol) => {
                refuse(client, protocol, "too many sessions, try again later").await;
            }
            Self::SendsTooMuch => farewell(client, SENDS_TOO_MUCH).await,
        }
    }
}

/// What a host hears that sends too much mail (RFC 5321 section 3.8, RFC 3463 section 3.8).
const SENDS_TOO_MUCH: &str = "421 4.7.0 Too much mail from this host, try again later\r\n";

/// A session that is to be served.
#[derive(Debug)]
pub struct Session {
    client: std::net::TcpStream,
    /// Dialled as the client. The server makes its greeting while the session finds its thread.
    upstream: io::Result<Dialling>,
    /// Its place in the flow table, and its addresses.
    pub flow: FlowHandle,
    _permit: OwnedSemaphorePermit,
}

impl Session {
    /// Serves it to its end, on the runtime that this is called in, where it has its `place`.
    async fn serve(self, gateway: Arc<Gateway>, place: Place) {
        // A leg without a descriptor for its events is reset.
        let Ok(client) = TcpStream::from_std(self.client) else { return };
        let closing = match self.flow.opened().protocol {
            Protocol::Ftp => ftp::run(&gateway, client, self.upstream, &self.flow).await,
            Protocol::Smtp => smtp::run(&gateway, client, self.upstream, &self.flow).await,
            // No port is one of mailboxes: nobody was steered here.
            Protocol::Mailbox => {
                net::abort(client);
                None
            }
        };
        // Its thread has nothing more to do for it, but to wait: the next one may have its place.
        drop(place);
        if let Some(closing) = closing {
            self.flow.set_state("closing");
            Box::pin(closing.closed()).await;
        }
    }
}

/// The legs of a session that has ended in order.
#[derive(Debug)]
#[must_use]
pub struct Closing {
    client: Wire,
    upstream: Wire,
}

impl Closing {
    /// Closes them behind what was written. Each waits for its peer; that one of them is gone already changes nothing.
    pub async fn closed(self) {
        let _ = tokio::join!(self.client.close_gracefully(), self.upstream.close_gracefully());
    }
}

/// Turns a client away with 421 (RFC 959 5.4, RFC 5321 3.8), and closes.
pub async fn refuse(client: TcpStream, protocol: Protocol, why: &str) {
    let line = match protocol {
        Protocol::Ftp | Protocol::Mailbox => format!("421 {why}\r\n"),
        Protocol::Smtp => format!("421 4.3.2 {why}\r\n"),
    };
    farewell(client, &line).await;
}

async fn farewell(mut client: TcpStream, line: &str) {
    if client.write_all(line.as_bytes()).await.is_ok() {
        // The client may be gone already; there is nothing left to tell it.
        let _ = net::close_gracefully(client).await;
    }
}

/// Repeats `command` without reading a word: the gateway has to stop listening before it holds more
/// answers than sockets do.
#[cfg(test)]
async fn heard_no_more(client: &TcpStream, command: &[u8]) {
    let commands = command.repeat(10_000);
    let patience = std::time::Duration::from_millis(500);
    let mut sent = 0;
    while let Ok(result) = tokio::time::timeout(patience, client.writable()).await {
        result.unwrap();
        match client.try_write(&commands) {
            Ok(count) => sent += count,
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
        }
        assert!(sent < 32 << 20, "it goes on listening");
    }
}

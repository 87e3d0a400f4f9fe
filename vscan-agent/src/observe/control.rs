//! The control socket: what the command line asks a running gateway.
//!
//! A Unix stream socket, mode 0660. A client sends one [`Request`] as a line of JSON and reads [`Answer`]s, one a
//! line, until the gateway closes. Clients are bounded in number, length of the request and time.

use super::id::FlowId;
use super::record::{FlowChange, FlowRecord};
use super::{BlindSpots, Observer, Usage};
use crate::mailbox::{orders::Progress, service::Service, status::AccountRecord};
use crate::notify::{self, Notice, Notifier};
use crate::outbound::Sender;
use crate::scanner;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::timeout;

/// Clients at one time; more wait.
const CLIENTS_MAX: usize = 32;

/// Longest request, in bytes.
const REQUEST_MAX: u64 = 4096;

/// How long a client may take to send its request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a client may leave an answer unread.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// Uninspected flows that are listed at most.
const UNINSPECTED_MAX: usize = 10_000;

/// Answers are gathered to this many bytes before they are written.
const BATCH: usize = 64 << 10;

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// How the gateway fares; answered by [`Answer::Status`].
    Status,
    /// Flows; answered by [`Answer::Flow`] for each, then [`Answer::Done`].
    Flows {
        /// How many closed ones at most.
        closed: usize,
        /// End with [`Answer::Listed`] instead, and go on with [`Answer::Change`] and [`Answer::Missed`].
        follow: bool,
    },
    /// End a flow; answered by [`Answer::Done`].
    Kill {
        /// Which.
        id: FlowId,
    },
    /// What hosts inside send by mail; answered by [`Answer::Sender`] for each, the busiest first, then [`Answer::Done`].
    Senders,
    /// Let a host send mail again; answered by [`Answer::Done`].
    Unblock {
        /// Which.
        host: IpAddr,
    },
    /// The accounts whose mailboxes are scanned; answered by [`Answer::Mailbox`] for each, then [`Answer::Done`].
    Mailboxes,
    /// Scan a mailbox or a folder of it; answered by [`Answer::Looked`] for each message and folder, then [`Answer::Done`].
    ScanMailbox {
        /// `ACCOUNT` or `ACCOUNT/FOLDER`.
        what: String,
        /// It is only told what would be done.
        dry_run: bool,
    },
    /// Read configuration and rules again; answered by [`Answer::Done`] when it is done.
    Reload,
    /// The notices that wait and those that were given up; answered by [`Answer::Notice`] for each, then [`Answer::Done`].
    Notices,
    /// Try notices again at once; answered by [`Answer::Notice`] for each, then [`Answer::Done`].
    RetryNotices {
        /// Which; none: all.
        ids: Vec<u64>,
    },
    /// Delete notices, all or none; answered by [`Answer::Done`].
    DeleteNotices {
        /// Which.
        ids: Vec<u64>,
    },
}

/// What the gateway says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Answer {
    /// To [`Request::Status`].
    Status(Box<Status>),
    /// One flow.
    Flow(FlowRecord),
    /// One host that sends mail.
    Sender(Sender),
    /// One notice.
    Notice(Box<Notice>),
    /// One account whose mailbox is scanned.
    Mailbox(Box<AccountRecord>),
    /// One step of a scan.
    Looked {
        /// What was looked at.
        progress: Progress,
    },
    /// The flows that there are have been listed; changes follow.
    Listed,
    /// One change of a flow.
    Change(FlowChange),
    /// The client was too slow, and this many changes are missing here.
    Missed {
        /// How many.
        changes: u64,
    },
    /// It is done, or the list is complete.
    Done,
    /// It could not be done.
    Error {
        /// Why, and what to do.
        error: String,
    },
}

/// How the gateway fares.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the program.
    pub version: String,
    /// Process id of the gateway.
    pub pid: u32,
    /// Seconds since the gateway started.
    pub uptime: f64,
    /// The configuration file.
    pub config: PathBuf,
    /// How connections are steered, in words; empty before kernel state is installed.
    pub steering: String,
    /// The guarded interfaces.
    pub interfaces: Vec<String>,
    /// Whether the gateway takes no more sessions and lets the others end.
    pub draining: bool,
    /// Sessions that are open.
    pub sessions: u64,
    /// Sessions that may be open.
    pub sessions_max: u64,
    /// Sessions accepted since the start.
    pub sessions_total: u64,
    /// Objects judged since the start, by verdict.
    pub objects: Objects,
    /// Flows that passed uninspected since the start.
    pub uninspected_total: u64,
    /// The same by reason: `tls`, `exempt`, ...
    pub uninspected: BTreeMap<String, u64>,
    /// What was not read, by protocol, direction, reason and peer.
    #[serde(default)]
    pub blind: BlindSpots,
    /// Whether the rules are older than `scan.rules_age_max`.
    #[serde(default)]
    pub rules_too_old: bool,
    /// The scanner.
    pub scanner: scanner::Status,
    /// Bytes of held objects in memory.
    pub spool_memory: u64,
    /// Bytes of held objects on disk.
    pub spool_disk: u64,
    /// What the quarantine holds.
    pub quarantine: Usage,
    /// What the queue of notices holds.
    pub notices: notify::Counts,
    /// Events lost since the start.
    pub events_lost: u64,
    /// Seconds since the last heartbeat; none before the first.
    pub heartbeat_age: Option<f64>,
}

/// Numbers of objects by verdict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Objects {
    /// Clean ones.
    pub clean: u64,
    /// Infected ones.
    pub infected: u64,
    /// Unscannable ones.
    pub unscannable: u64,
    /// Those at which the scanner failed.
    pub error: u64,
}

impl Status {
    /// What the observer knows; the gateway fills in the rest.
    #[must_use]
    pub fn of(observer: &Observer) -> Self {
        let metrics = &observer.metrics;
        let uninspected = metrics.uninspected_by_reason();
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime: metrics.uptime().as_secs_f64(),
            sessions: metrics.sessions(),
            sessions_total: metrics.sessions_total(),
            objects: metrics.objects(),
            uninspected_total: uninspected.values().sum(),
            uninspected,
            blind: metrics.meter.spots(),
            quarantine: metrics.quarantine(),
            events_lost: metrics.events_lost(),
            heartbeat_age: metrics.heartbeat_age(),
            ..Self::default()
        }
    }
}

/// A future in a box, so that [`Backend`] can be a trait object.
pub type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The gateway, as the control socket and the HTTP responder need it.
pub trait Backend: Send + Sync + 'static {
    /// Its observer.
    fn observer(&self) -> &Observer;

    /// Its queue of notices.
    fn notifier(&self) -> &Notifier;

    /// Brings the gauges up to date, before they are read.
    fn refresh(&self);

    /// How it fares; see [`Status::of`].
    fn status(&self) -> Status;

    /// The mailboxes that are scanned.
    fn mailboxes(&self) -> Option<&Service> {
        None
    }

    /// What hosts inside send by mail, the busiest first.
    fn senders(&self) -> Vec<Sender>;

    /// Lets a host send mail again. False: it was not blocked.
    fn unblock(&self, host: IpAddr) -> bool;

    /// Reads configuration and rules again.
    ///
    /// # Errors
    /// What is wrong with them; the old ones go on.
    fn reload(&self) -> Boxed<'_, Result<(), String>>;

    /// Whether new sessions are served.
    ///
    /// # Errors
    /// Why not, in words; `/healthz` says so with 503.
    fn health(&self) -> Result<(), String>;
}

/// Takes the socket's path. A socket that nobody listens on is replaced.
///
/// # Errors
/// `AddrInUse`: another agent answers there. Otherwise what the file system says.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            format!(
                "another vscan runs with the control socket {}; stop it, or set paths.control",
                path.display()
            ),
        ));
    }
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    // bound under another name first: under its own it never has a wrong mode
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    match std::fs::remove_file(&new) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(&new)?;
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o660))?;
    std::fs::rename(&new, path)?;
    Ok(listener)
}

/// Serves clients for ever.
pub async fn serve(listener: UnixListener, backend: Arc<dyn Backend>) {
    let places = Arc::new(Semaphore::new(CLIENTS_MAX));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let backend = Arc::clone(&backend);
                tokio::spawn(async move {
                    if let Err(e) = client(stream, &*backend).await {
                        tracing::debug!("control client: {e}");
                    }
                    drop(place);
                });
            }
            Err(e) => {
                tracing::warn!("control socket: {e}");
                // out of descriptors: others have to end first
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn client(stream: UnixStream, backend: &dyn Backend) -> io::Result<()> {
    let (reading, writing) = stream.into_split();
    let mut reading = BufReader::new(reading.take(REQUEST_MAX));
    let mut out = Out { writing, batch: Vec::new() };
    let mut line = Vec::new();
    timeout(REQUEST_TIMEOUT, reading.read_until(b'\n', &mut line)).await??;
    let request = match serde_json::from_slice(&line) {
        Ok(request) => request,
        Err(e) => return out.end(&Answer::Error { error: format!("not a request: {e}") }).await,
    };
    match request {
        Request::Status => out.end(&Answer::Status(Box::new(backend.status()))).await,
        Request::Kill { id } => {
            let killed = backend.observer().flows.kill(id);
            let error = || Answer::Error { error: format!("no flow {id} is open") };
            out.end(&if killed { Answer::Done } else { error() }).await
        }
        Request::Senders => {
            for sender in backend.senders() {
                out.put(&Answer::Sender(sender)).await?;
            }
            out.end(&Answer::Done).await
        }
        Request::Mailboxes => {
            for record in backend.mailboxes().map_or_else(Vec::new, Service::records) {
                out.put(&Answer::Mailbox(Box::new(record))).await?;
            }
            out.end(&Answer::Done).await
        }
        Request::ScanMailbox { what, dry_run } => {
            let none = || Err("no mailboxes are scanned here".to_owned());
            let asked = backend.mailboxes().map_or_else(none, |all| all.scan(&what, dry_run));
            let mut told = match asked {
                Ok(told) => told,
                Err(error) => return out.end(&Answer::Error { error }).await,
            };
            let mut gone = [0];
            loop {
                let progress = tokio::select! {
                    progress = told.recv() => progress,
                    // end of file, or bytes where none belong
                    _ = reading.read(&mut gone) => return Ok(()),
                };
                let Some(progress) = progress else { return out.end(&Answer::Done).await };
                out.put(&Answer::Looked { progress }).await?;
                if told.is_empty() {
                    out.flush().await?;
                }
            }
        }
        Request::Unblock { host } => {
            let error = || Answer::Error { error: format!("{host} is not blocked") };
            out.end(&if backend.unblock(host) { Answer::Done } else { error() }).await
        }
        Request::Reload => {
            let answer = match backend.reload().await {
                Ok(()) => Answer::Done,
                Err(error) => Answer::Error { error },
            };
            out.end(&answer).await
        }
        Request::Notices => notices(backend.notifier().queue().list(), &mut out).await,
        Request::RetryNotices { ids } => {
            let queue = backend.notifier().queue();
            let tried = crate::blocking::in_place(|| {
                let ids = queue.retry(&ids, jiff::Timestamp::now())?;
                ids.into_iter().filter_map(|id| queue.get(id).transpose()).collect()
            });
            backend.notifier().wake();
            notices(tried, &mut out).await
        }
        Request::DeleteNotices { ids } => {
            let queue = backend.notifier().queue();
            let deleted = crate::blocking::in_place(|| queue.delete(&ids));
            backend.notifier().wake();
            notices(deleted.map(|()| Vec::new()), &mut out).await
        }
        Request::Flows { closed, follow } => {
            let flows = &backend.observer().flows;
            // from before the listing: nothing falls between the two
            let changes = follow.then(|| flows.follow());
            let (closed, open) = flows.closed_and_open(closed);
            let uninspected = flows.uninspected(UNINSPECTED_MAX);
            for flow in closed.into_iter().chain(uninspected).chain(open) {
                out.put(&Answer::Flow(flow)).await?;
            }
            let Some(mut changes) = changes else { return out.end(&Answer::Done).await };
            out.end(&Answer::Listed).await?;
            let mut gone = [0];
            loop {
                let change = tokio::select! {
                    change = changes.recv() => change,
                    // end of file, or bytes where none belong
                    _ = reading.read(&mut gone) => return Ok(()),
                };
                match change {
                    Ok(change) => out.put(&Answer::Change((*change).clone())).await?,
                    Err(RecvError::Lagged(changes)) => out.put(&Answer::Missed { changes }).await?,
                    Err(RecvError::Closed) => return out.end(&Answer::Done).await,
                }
                if changes.is_empty() {
                    out.flush().await?;
                }
            }
        }
    }
}

async fn notices(found: Result<Vec<Notice>, notify::QueueError>, out: &mut Out) -> io::Result<()> {
    match found {
        Ok(notices) => {
            for notice in notices {
                out.put(&Answer::Notice(Box::new(notice))).await?;
            }
            out.end(&Answer::Done).await
        }
        Err(error) => out.end(&Answer::Error { error: error.to_string() }).await,
    }
}

/// Answers on their way to a client.
struct Out {
    writing: tokio::net::unix::OwnedWriteHalf,
    batch: Vec<u8>,
}

impl Out {
    async fn put(&mut self, answer: &Answer) -> io::Result<()> {
        serde_json::to_writer(&mut self.batch, answer)?;
        self.batch.push(b'\n');
        if self.batch.len() >= BATCH { self.flush().await } else { Ok(()) }
    }

    async fn end(&mut self, answer: &Answer) -> io::Result<()> {
        self.put(answer).await?;
        self.flush().await
    }

    async fn flush(&mut self) -> io::Result<()> {
        timeout(WRITE_TIMEOUT, self.writing.write_all(&self.batch)).await??;
        self.batch.clear();
        Ok(())
    }
}

/// The client's side: sends a request and gives the answers one by one.
///
/// Blocking; for the command line.
#[derive(Debug)]
pub struct Asked {
    lines: io::BufReader<std::os::unix::net::UnixStream>,
}

/// Asks the gateway behind the socket.
///
/// # Errors
/// Nobody listens there, or permission is denied.
pub fn ask(path: &Path, request: &Request) -> io::Result<Asked> {
    let mut stream = std::os::unix::net::UnixStream::connect(path)?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    io::Write::write_all(&mut stream, &line)?;
    Ok(Asked { lines: io::BufReader::new(stream) })
}

impl Iterator for Asked {
    type Item = io::Result<Answer>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut line = String::new();
        match io::BufRead::read_line(&mut self.lines, &mut line) {
            Ok(0) => None,
            Ok(_) => Some(serde_json::from_str(&line).map_err(|e| {
                io::Error::other(format!("{e}; is the running vscan of another version?"))
            })),
            Err(e) => Some(Err(e)),
        }
    }
}

//! The event log: JSON lines in the shape of Suricata's EVE, written by a thread of its own.
//!
//! The data path never waits for it: an event that finds the queue full, or that the disk refuses, is counted as
//! lost. The file is opened again when it was renamed or removed (logrotate) and on [`EventLog::reopen`].

use super::metrics::Metrics;
use serde::Serialize;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{
    Receiver, RecvTimeoutError, SyncSender, TryRecvError, TrySendError, sync_channel,
};
use std::time::{Duration, Instant};

/// What an event is about; EVE's `event_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum EventKind {
    /// A flow ended.
    Flow,
    /// An FTP command or transfer.
    Ftp,
    /// An SMTP message.
    Smtp,
    /// An object was judged.
    Object,
    /// An object was not clean.
    Alert,
    /// A peer behaved oddly.
    Anomaly,
    /// A notice was made, sent, delayed, given up or held back.
    Notice,
    /// The agent itself: start, reload, lost events, a failing quarantine.
    Agent,
}

impl EventKind {
    /// The word in `event_type`, also the key of the event's own fields.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Flow => "flow",
            Self::Ftp => "ftp",
            Self::Smtp => "smtp",
            Self::Object => "object",
            Self::Alert => "alert",
            Self::Anomaly => "anomaly",
            Self::Notice => "notice",
            Self::Agent => "agent",
        }
    }
}

/// Events that wait for the writer; at 1 KiB each, 8 MiB.
const QUEUE: usize = 8192;

/// The writer gathers this much before it writes, in bytes, unless [`FLUSH`] comes first.
const BUFFER: usize = 64 << 10;

/// An event is in the file after this time at the latest.
const FLUSH: Duration = Duration::from_millis(200);

/// How long the writer sleeps when the queue is empty.
const PAUSE: Duration = Duration::from_millis(50);

/// How often the writer looks whether the file was renamed.
const LOOK: Duration = Duration::from_secs(1);

enum Message {
    Line(Vec<u8>),
    Reopen,
    Flush(SyncSender<()>),
}

/// Where events go. Cheap to clone.
#[derive(Clone, Debug)]
pub struct EventLog {
    queue: Option<SyncSender<Message>>,
    metrics: Arc<Metrics>,
}

impl EventLog {
    /// Opens (creates, appends to) the file and starts the writer.
    ///
    /// # Errors
    /// The file cannot be opened, or no thread started.
    pub fn open(path: &Path, metrics: Arc<Metrics>) -> io::Result<Self> {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        let (queue, messages) = sync_channel(QUEUE);
        let writer = Writer {
            file: Some(create(path)?),
            path: path.to_owned(),
            buffer: Vec::with_capacity(BUFFER),
            waiting: 0,
            lost: 0,
            failing: false,
            metrics: Arc::clone(&metrics),
        };
        std::thread::Builder::new()
            .name("events".to_owned())
            .spawn(move || writer.run(&messages))?;
        Ok(Self { queue: Some(queue), metrics })
    }

    /// A log that drops everything, uncounted; for tests of other parts.
    #[must_use]
    pub fn discarding(metrics: Arc<Metrics>) -> Self {
        Self { queue: None, metrics }
    }

    /// Puts an event into the queue. Never waits.
    pub(super) fn put(&self, event: &impl Serialize) {
        let Some(queue) = &self.queue else { return };
        let mut line = Vec::with_capacity(512);
        if let Err(e) = serde_json::to_writer(&mut line, event) {
            tracing::error!("an event cannot be written as JSON: {e}");
            self.metrics.event_lost(1);
            return;
        }
        line.push(b'\n');
        match queue.try_send(Message::Line(line)) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.metrics.event_lost(1)
            }
        }
    }

    /// An event that belongs to no flow.
    pub fn agent(&self, fields: &impl Serialize) {
        self.put(&AgentEvent { timestamp: now(), event_type: EventKind::Agent, agent: fields });
    }

    /// What became of a notice.
    pub fn notice(&self, fields: &impl Serialize) {
        self.put(&NoticeEvent { timestamp: now(), event_type: EventKind::Notice, notice: fields });
    }

    /// Opens the file again, for a log that was rotated.
    pub fn reopen(&self) {
        if let Some(queue) = &self.queue {
            // a full queue: the writer finds the new name by itself within a second
            let _ = queue.try_send(Message::Reopen);
        }
    }

    /// Waits until everything that was put before is in the file, two seconds at most; for the end of a process.
    pub fn flush(&self) {
        let Some(queue) = &self.queue else { return };
        let (done, wait) = sync_channel(1);
        let deadline = Instant::now() + Duration::from_secs(2);
        let mut message = Message::Flush(done);
        loop {
            match queue.try_send(message) {
                Ok(()) => break,
                Err(TrySendError::Full(back)) if Instant::now() < deadline => {
                    message = back;
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(_) => return,
            }
        }
        let _ = wait.recv_timeout(deadline.saturating_duration_since(Instant::now()));
    }
}

#[derive(Serialize)]
struct AgentEvent<'a, T> {
    timestamp: String,
    event_type: EventKind,
    agent: &'a T,
}

#[derive(Serialize)]
struct NoticeEvent<'a, T> {
    timestamp: String,
    event_type: EventKind,
    notice: &'a T,
}

/// RFC 3339 with microseconds, in UTC.
pub(super) fn now() -> String {
    format!("{:.6}", jiff::Timestamp::now())
}

/// Readable for its owner and group: names of files, senders and recipients are in it.
fn create(path: &Path) -> io::Result<File> {
    let mut file =
        OpenOptions::new().create(true).read(true).append(true).mode(0o640).open(path)?;
    let length = file.metadata()?.len();
    let mut last = [b'\n'];
    if length > 0 {
        file.read_exact_at(&mut last, length - 1)?;
    }
    // a full disk or a kill may have left half a line: what follows must not become a part of it
    if last != [b'\n'] {
        file.write_all(b"\n")?;
    }
    Ok(file)
}

/// The next message, or a time-out at `until` or before.
///
/// Not by waiting in the channel: each event of an idle moment would then wake this thread, which
/// costs the sender a system call and the machine two context switches.
fn next(messages: &Receiver<Message>, until: Instant) -> Result<Message, RecvTimeoutError> {
    let wait = match messages.try_recv() {
        Ok(message) => return Ok(message),
        Err(TryRecvError::Disconnected) => return Err(RecvTimeoutError::Disconnected),
        Err(TryRecvError::Empty) => until.saturating_duration_since(Instant::now()),
    };
    std::thread::sleep(wait.min(PAUSE));
    messages.try_recv().map_err(|error| match error {
        TryRecvError::Disconnected => RecvTimeoutError::Disconnected,
        TryRecvError::Empty => RecvTimeoutError::Timeout,
    })
}

struct Writer {
    path: PathBuf,
    file: Option<File>,
    buffer: Vec<u8>,
    /// Lines in the buffer.
    waiting: u64,
    /// Lines lost since the last complaint.
    lost: u64,
    failing: bool,
    metrics: Arc<Metrics>,
}

impl Writer {
    fn run(mut self, messages: &Receiver<Message>) {
        let mut flush_at = None;
        let mut look_at = Instant::now() + LOOK;
        loop {
            let until = flush_at.unwrap_or(look_at).min(look_at);
            match next(messages, until) {
                Ok(Message::Line(line)) => {
                    self.buffer.extend_from_slice(&line);
                    self.waiting += 1;
                    flush_at.get_or_insert_with(|| Instant::now() + FLUSH);
                }
                Ok(Message::Reopen) => {
                    self.write();
                    self.reopen();
                }
                Ok(Message::Flush(done)) => {
                    self.write();
                    let _ = done.try_send(());
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    self.write();
                    return;
                }
            }
            let now = Instant::now();
            if self.buffer.len() >= BUFFER || flush_at.is_some_and(|at| at <= now) {
                self.write();
            }
            if self.buffer.is_empty() {
                flush_at = None;
            }
            if look_at <= now {
                look_at = now + LOOK;
                if self.file.is_none() || self.moved() {
                    self.write();
                    self.reopen();
                }
            }
        }
    }

    /// Whether the open file is no longer the one that has the name.
    fn moved(&self) -> bool {
        let Some(open) = self.file.as_ref().and_then(|f| f.metadata().ok()) else { return true };
        match std::fs::metadata(&self.path) {
            Ok(named) => (named.dev(), named.ino()) != (open.dev(), open.ino()),
            Err(_) => true,
        }
    }

    fn reopen(&mut self) {
        match create(&self.path) {
            Ok(file) => self.file = Some(file),
            Err(e) => self.complain(&e),
        }
    }

    fn write(&mut self) {
        if self.waiting == 0 {
            return;
        }
        let result = match &mut self.file {
            Some(file) => file.write_all(&self.buffer),
            None => Err(io::ErrorKind::NotFound.into()),
        };
        match result {
            Ok(()) => {
                self.metrics.event_written(self.waiting);
                if self.failing {
                    self.failing = false;
                    tracing::warn!(lost = self.lost, "the event log is written again");
                    self.lost = 0;
                }
            }
            Err(e) => {
                self.metrics.event_lost(self.waiting);
                self.lost += self.waiting;
                self.complain(&e);
                self.file = None;
            }
        }
        self.buffer.clear();
        self.waiting = 0;
    }

    fn complain(&mut self, error: &io::Error) {
        if !self.failing {
            tracing::error!(path = %self.path.display(), "the event log cannot be written, events are lost: {error}");
        }
        self.failing = true;
    }
}

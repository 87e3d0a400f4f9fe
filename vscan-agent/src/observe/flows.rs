//! The flow table: what every session does now, and the last ones that ended.
//!
//! A [`FlowHandle`] belongs to its session; dropping it closes the flow. What goes on in the kernel without the
//! gateway comes from an [`UninspectedSource`].

use super::eve::{AlertFields, Denied, FlowEvent, FlowFields, ObjectFields};
use super::events::{EventKind, EventLog};
use super::id::{FlowId, FlowIds};
use super::meter::{Blind, Whose};
use super::metrics::Metrics;
use super::record::{Change, FlowChange, FlowRecord, TransferRecord};
use super::tls::{Side, TlsRecord};
use super::wire;
use crate::config::{Direction, Protocol, Treatment};
use jiff::Timestamp;
use serde::Serialize;
use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;
use tokio::sync::broadcast;
use tokio::task::AbortHandle;
use vscan_proto::ftp::VerbName;
use vscan_scan::report::{Report, Verdict};

/// Parts of the table that are locked each by itself: opening and closing on many cores seldom meet.
const SHARDS: usize = 16;

/// Closed flows that are kept for `vscan flows`.
const CLOSED_MAX: usize = 4096;

/// Changes that a slow follower may be behind; past it the follower is told how many it missed.
const FOLLOW_MAX: usize = 1024;

/// Longest user or sender that is kept, in bytes: RFC 5321 4.5.3.1 has 64 + 1 + 255 at most.
const USER_MAX: usize = 320;

/// Longest object name that is kept, in bytes: NAME_MAX of Linux.
const OBJECT_MAX: usize = 255;

/// What is known of a flow when it is accepted.
#[derive(Clone, Copy, Debug)]
pub struct FlowOpen {
    /// Its protocol.
    pub protocol: Protocol,
    /// The client.
    pub client: SocketAddr,
    /// The server as dialled.
    pub server: SocketAddr,
    /// The server after DNAT.
    pub real_server: SocketAddr,
    /// From client to server.
    pub direction: Direction,
}

impl FlowOpen {
    /// Whether it crosses the gateway: connections of our own to mailboxes hide nothing from anybody.
    fn crosses(&self) -> bool {
        self.protocol != Protocol::Mailbox
    }

    fn whose(&self) -> Whose {
        Whose {
            protocol: self.protocol,
            direction: self.direction,
            client: self.client.ip(),
            server: self.real_server.ip(),
        }
    }
}

/// Where flows come from that pass uninspected, and who else can end a flow: the kernel's maps.
pub trait UninspectedSource: Send + Sync {
    /// The flows that pass now, at most `limit`.
    fn flows(&self, limit: usize) -> Vec<FlowRecord>;

    /// Makes the kernel drop the packets of an intercepted or uninspected flow.
    ///
    /// # Errors
    /// Says why it could not.
    fn kill(&self, client: SocketAddr, server: SocketAddr) -> Result<(), String>;

    /// Brings the kernel's counters into the metrics; called before each scrape.
    fn scrape(&self, metrics: &Metrics);
}

/// The flow table. Cheap to clone.
#[derive(Clone)]
pub struct FlowTable(Arc<Shared>);

struct Shared {
    ids: FlowIds,
    shards: [Mutex<HashMap<FlowId, Arc<Flow>>>; SHARDS],
    closed: Mutex<VecDeque<FlowRecord>>,
    changes: broadcast::Sender<Arc<FlowChange>>,
    uninspected: OnceLock<Arc<dyn UninspectedSource>>,
    metrics: Arc<Metrics>,
    events: EventLog,
}

impl fmt::Debug for FlowTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FlowTable").field("open", &self.len()).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // what is behind these locks stays right when a holder panics: single assignments and map operations
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl FlowTable {
    pub(super) fn new(metrics: Arc<Metrics>, events: EventLog) -> Self {
        Self(Arc::new(Shared {
            ids: FlowIds::new(Timestamp::now().as_second().unsigned_abs()),
            shards: std::array::from_fn(|_| Mutex::default()),
            closed: Mutex::default(),
            changes: broadcast::Sender::new(FOLLOW_MAX),
            uninspected: OnceLock::new(),
            metrics,
            events,
        }))
    }

    /// A new flow; it is open until the handle is dropped.
    #[must_use]
    pub fn open(&self, open: FlowOpen) -> FlowHandle {
        let flow = Arc::new(Flow {
            id: self.0.ids.next(),
            open,
            started: Timestamp::now(),
            from_client: AtomicU64::new(0),
            from_server: AtomicU64::new(0),
            tls: AtomicBool::new(false),
            unread: AtomicU64::new(0),
            detail: Mutex::new(Detail::default()),
            shared: Arc::clone(&self.0),
        });
        lock(self.0.shard(flow.id)).insert(flow.id, Arc::clone(&flow));
        self.0.metrics.session_opened(open.protocol);
        if open.crosses() {
            self.0.metrics.meter.session(open.protocol, open.direction);
        }
        self.0.changed(Change::Opened, &flow, None);
        FlowHandle(flow)
    }

    /// Open flows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.shards.iter().map(|s| lock(s).len()).sum()
    }

    /// Whether no flow is open.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All open flows in the order in which they were opened, intercepted ones only.
    #[must_use]
    pub fn intercepted(&self) -> Vec<FlowRecord> {
        let mut flows: Vec<Arc<Flow>> = Vec::new();
        for shard in &self.0.shards {
            flows.extend(lock(shard).values().cloned());
        }
        flows.sort_by_key(|f| (f.started, f.id));
        flows.iter().map(|f| f.record(None)).collect()
    }

    /// The flows that pass in the kernel without the gateway, at most `limit`.
    #[must_use]
    pub fn uninspected(&self, limit: usize) -> Vec<FlowRecord> {
        self.0.uninspected.get().map_or_else(Vec::new, |source| source.flows(limit))
    }

    /// The last flows that ended, the oldest first, at most `limit`.
    #[must_use]
    pub fn closed(&self, limit: usize) -> Vec<FlowRecord> {
        let closed = lock(&self.0.closed);
        closed.iter().skip(closed.len().saturating_sub(limit)).cloned().collect()
    }

    /// The last flows that ended, at most `limit`, and all that are open, none missing and none twice.
    #[must_use]
    pub fn closed_and_open(&self, limit: usize) -> (Vec<FlowRecord>, Vec<FlowRecord>) {
        // In this order: one that ends meanwhile is in both lists, not in neither.
        let mut open = self.intercepted();
        let closed = self.closed(limit);
        let ended: HashSet<FlowId> = closed.iter().filter_map(|flow| flow.id).collect();
        open.retain(|flow| flow.id.is_none_or(|id| !ended.contains(&id)));
        (closed, open)
    }

    /// Changes from now on. A follower that is slow misses some and is told how many.
    #[must_use]
    pub fn follow(&self) -> broadcast::Receiver<Arc<FlowChange>> {
        self.0.changes.subscribe()
    }

    /// An open flow.
    #[must_use]
    pub fn find(&self, id: FlowId) -> Option<Arc<Flow>> {
        lock(self.0.shard(id)).get(&id).cloned()
    }

    /// Ends a session: its task is aborted, which resets both legs. False: no such flow is open.
    #[must_use]
    pub fn kill(&self, id: FlowId) -> bool {
        let Some(flow) = self.find(id) else { return false };
        let abort = lock(&flow.detail).abort.take();
        match (abort, self.0.uninspected.get()) {
            (Some(task), _) => task.abort(),
            (None, Some(kernel)) => {
                if let Err(e) = kernel.kill(flow.open.client, flow.open.server) {
                    tracing::warn!(flow = %id, "cannot be ended: {e}");
                    return false;
                }
            }
            (None, None) => return false,
        }
        true
    }

    /// Ends all mail connections of a host, those too that pass uninspected where the kernel can end them.
    pub fn kill_mail_of(&self, host: IpAddr) {
        let of_host = |flow: &FlowRecord| {
            flow.protocol == Protocol::Smtp && flow.client.ip().to_canonical() == host
        };
        for id in self.intercepted().iter().filter(|f| of_host(f)).filter_map(|f| f.id) {
            // one that is gone meanwhile needs no end
            let _ = self.kill(id);
        }
        if let Some(kernel) = self.0.uninspected.get() {
            for flow in kernel.flows(usize::MAX).iter().filter(|flow| of_host(flow)) {
                if let Err(error) = kernel.kill(flow.client, flow.server) {
                    tracing::debug!(%host, "an uninspected connection goes on: {error}");
                }
            }
        }
    }

    /// Says where uninspected flows come from. Only the first call counts.
    pub fn set_uninspected(&self, source: Arc<dyn UninspectedSource>) {
        let _ = self.0.uninspected.set(source);
    }

    /// Brings what the kernel knows into the metrics.
    pub fn scrape(&self) {
        if let Some(source) = self.0.uninspected.get() {
            source.scrape(&self.0.metrics);
        }
    }
}

impl Shared {
    fn shard(&self, id: FlowId) -> &Mutex<HashMap<FlowId, Arc<Flow>>> {
        let n = usize::try_from(id.get() % SHARDS as u64).unwrap_or(0);
        &self.shards[n]
    }

    fn changed(&self, change: Change, flow: &Flow, ended: Option<Timestamp>) {
        if self.changes.receiver_count() > 0 {
            // no receiver any more is no error
            let _ = self.changes.send(Arc::new(FlowChange { change, flow: flow.record(ended) }));
        }
    }
}

/// A flow that its session holds open.
#[derive(Debug)]
pub struct FlowHandle(Arc<Flow>);

impl FlowHandle {
    /// For tasks beside the session's own: the flow closes with the handle all the same.
    #[must_use]
    pub fn share(&self) -> Arc<Flow> {
        Arc::clone(&self.0)
    }
}

impl Deref for FlowHandle {
    type Target = Flow;

    fn deref(&self) -> &Flow {
        &self.0
    }
}

impl Drop for FlowHandle {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// One intercepted flow.
pub struct Flow {
    id: FlowId,
    open: FlowOpen,
    started: Timestamp,
    from_client: AtomicU64,
    from_server: AtomicU64,
    tls: AtomicBool,
    /// Bytes that were relayed since then.
    unread: AtomicU64,
    detail: Mutex<Detail>,
    shared: Arc<Shared>,
}

struct Detail {
    state: &'static str,
    command: Option<VerbName>,
    transfer: Option<Transfer>,
    user: Option<Box<[u8]>>,
    /// The object in hand.
    object: Option<Box<[u8]>>,
    /// The object of `verdict`, if it was not clean.
    caught: Option<Box<[u8]>>,
    verdict: Option<Verdict>,
    detection: Option<Box<str>>,
    objects: u64,
    opened: Option<Box<TlsRecord>>,
    abort: Option<AbortHandle>,
}

struct Transfer {
    moved: Arc<AtomicU64>,
    began: Instant,
}

impl Transfer {
    fn record(&self) -> TransferRecord {
        let (bytes, seconds) =
            (self.moved.load(Ordering::Relaxed), self.began.elapsed().as_secs_f64());
        // In its first moment the average says nothing, but it has to be a number.
        TransferRecord { bytes, seconds, rate: bytes as f64 / seconds.max(0.001) }
    }
}

impl Default for Detail {
    fn default() -> Self {
        Self {
            state: "open",
            command: None,
            transfer: None,
            user: None,
            object: None,
            caught: None,
            verdict: None,
            detection: None,
            objects: 0,
            opened: None,
            abort: None,
        }
    }
}

impl fmt::Debug for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flow")
            .field("id", &self.id)
            .field("open", &self.open)
            .finish_non_exhaustive()
    }
}

/// An object and what became of it, for events, metrics and the flow table.
#[derive(Clone, Copy, Debug)]
pub struct Judged<'a> {
    /// Its name on the wire: path of a file, or sender and subject as the driver chooses; may be empty.
    pub name: &'a [u8],
    /// `file` or `message`.
    pub kind: &'static str,
    /// Who sent it to whom.
    pub direction: Direction,
    /// Bytes.
    pub size: u64,
    /// BLAKE3 of its bytes, in hexadecimal.
    pub blake3: &'a str,
    /// What the scanner says.
    pub report: &'a Report,
    /// What is done with it.
    pub action: Treatment,
    /// What was done to its portions.
    pub treated: &'a [crate::gateway::Treated],
    /// Which rule of the policy said so, as in [`Decision`](crate::policy::Decision).
    pub rule: &'a str,
    /// Identity in the quarantine, if a copy is kept.
    pub quarantine: Option<&'a str>,
    /// Where a message lies that is no longer on its way.
    pub stored: Option<&'a crate::gateway::Stored<'a>>,
    /// Seconds from the object's completion to its verdict.
    pub seconds: f64,
}

impl Flow {
    /// Its identity.
    #[must_use]
    pub fn id(&self) -> FlowId {
        self.id
    }

    /// What was known when it was accepted.
    #[must_use]
    pub fn opened(&self) -> &FlowOpen {
        &self.open
    }

    /// What goes on, as one word for the listing.
    pub fn set_state(&self, state: &'static str) {
        lock(&self.detail).state = state;
    }

    /// What goes on, and the command that it goes on for; `None`: the client has the word.
    pub fn set_command(&self, state: &'static str, command: Option<VerbName>) {
        let mut detail = lock(&self.detail);
        detail.state = state;
        detail.command = command;
    }

    /// A transfer begins, whose sender's bytes are counted in `moved`.
    pub fn begin_transfer(&self, moved: Arc<AtomicU64>) {
        lock(&self.detail).transfer = Some(Transfer { moved, began: Instant::now() });
    }

    /// The transfer is over.
    pub fn end_transfer(&self) {
        lock(&self.detail).transfer = None;
    }

    /// FTP user or SMTP sender, as it came over the wire.
    pub fn set_user(&self, user: &[u8]) {
        lock(&self.detail).user = Some(clipped(user, USER_MAX));
    }

    /// What [`set_user`](Self::set_user) was told.
    #[must_use]
    pub fn user(&self) -> Option<Box<[u8]>> {
        lock(&self.detail).user.clone()
    }

    /// The object in hand: a file's path, as it came over the wire.
    pub fn set_object(&self, name: &[u8]) {
        lock(&self.detail).object = Some(clipped(name, OBJECT_MAX));
    }

    /// Counts bytes that were received, of the session and its data channels.
    pub fn add_bytes(&self, from_client: u64, from_server: u64) {
        self.from_client.fetch_add(from_client, Ordering::Relaxed);
        self.from_server.fetch_add(from_server, Ordering::Relaxed);
        let bytes = from_client + from_server;
        self.shared.metrics.bytes(self.open.protocol, from_client, from_server);
        if self.open.crosses() {
            self.shared.metrics.meter.bytes(self.open.protocol, self.open.direction, bytes);
        }
        if self.tls.load(Ordering::Relaxed) {
            self.unread.fetch_add(bytes, Ordering::Relaxed);
            self.shared.metrics.meter.bytes_unread(&self.open.whose(), Blind::Tls, bytes);
        }
    }

    /// A file or message passed unread, or not read whole; bytes.
    pub fn object_unread(&self, reason: Blind, bytes: u64) {
        if self.open.crosses() {
            self.shared.metrics.meter.object_unread(&self.open.whose(), reason, bytes);
        }
    }

    /// Notes a verdict; the flow keeps the worst.
    fn judge(&self, verdict: Verdict, detection: Option<&str>) {
        {
            let mut detail = lock(&self.detail);
            detail.objects += 1;
            if detail.verdict.is_none_or(|worst| verdict > worst) {
                detail.verdict = Some(verdict);
                detail.detection = detection.map(|d| clipped_str(d, OBJECT_MAX));
                detail.caught =
                    if verdict == Verdict::Clean { None } else { detail.object.clone() };
            }
        }
        self.shared.changed(Change::Judged, self, None);
    }

    /// From now on the session is TLS that passes uninspected, and is counted as such.
    pub fn set_tls_passed(&self) {
        if !self.tls.swap(true, Ordering::Relaxed) {
            lock(&self.detail).state = "tls";
            self.shared.metrics.tls_passed();
            self.shared.metrics.meter.session_unread(&self.open.whose(), Blind::Tls);
            self.shared.changed(Change::Judged, self, None);
        }
    }

    /// TLS was opened, and this is what the handshakes have settled.
    pub fn set_tls(&self, record: TlsRecord) {
        self.shared.metrics.tls.opened(self.open.protocol, &record);
        lock(&self.detail).opened = Some(Box::new(record));
    }

    /// A handshake failed: an anomaly, and a counter of its own.
    pub fn tls_failed(&self, side: Side, detail: impl fmt::Display) {
        self.shared.metrics.tls.failed(self.open.protocol, side);
        let name = match side {
            Side::Client => "tls_client_failed",
            Side::Server => "tls_server_failed",
        };
        self.anomaly(name, detail);
    }

    /// How [`FlowTable::kill`] ends the session.
    pub fn set_abort(&self, task: AbortHandle) {
        lock(&self.detail).abort = Some(task);
    }

    /// The peer behaved oddly: an event and a counter. `name` is one snake_case word, `detail` says more.
    pub fn anomaly(&self, name: &'static str, detail: impl fmt::Display) {
        #[derive(Serialize)]
        struct Anomaly {
            r#type: &'static str,
            event: &'static str,
            detail: String,
        }
        self.shared.metrics.anomaly(self.open.protocol, name);
        tracing::debug!(flow = %self.id, anomaly = name, "{detail}");
        let detail = clipped_str(&detail.to_string(), 512).into_string();
        self.event(EventKind::Anomaly, &Anomaly { r#type: "applayer", event: name, detail });
    }

    /// The `[[access]]` rules refused something in the session: a counter, and an event if `tell`.
    pub fn denied(&self, denied: &Denied, tell: bool) {
        self.shared.metrics.denied(self.open.protocol, denied.r#type);
        if tell {
            let kind = match self.open.protocol {
                Protocol::Ftp => EventKind::Ftp,
                Protocol::Smtp | Protocol::Mailbox => EventKind::Smtp,
            };
            self.event(kind, denied);
        }
    }

    /// An event of this flow; its own fields stand under the kind's name.
    pub fn event(&self, kind: EventKind, fields: &impl Serialize) {
        self.shared.events.put(&FlowEvent { flow: self, kind, fields, more: None });
    }

    /// An object was judged: flow table, counters, an `object` event, and an `alert` if it is not clean.
    pub fn judged(&self, judged: &Judged<'_>) {
        let report = judged.report;
        if lock(&self.detail).object.is_none() && !judged.name.is_empty() {
            self.set_object(judged.name);
        }
        let detection = report.explanation();
        self.judge(report.verdict, detection);
        self.shared.metrics.object(
            self.open.protocol,
            judged.direction,
            report.verdict,
            judged.action,
            judged.size,
            report.unread.iter().map(|u| u.reason),
        );
        if matches!(report.verdict, Verdict::Unscannable | Verdict::Error)
            && judged.action.leaves_it()
        {
            self.object_unread(Blind::Unscannable, judged.size);
        }
        let object = ObjectFields::new(judged);
        self.event(EventKind::Object, &object);
        if report.verdict != Verdict::Clean {
            let told_only = judged.stored.is_some_and(|stored| stored.dry_run);
            let alert = AlertFields {
                action: if judged.action.leaves_it() || told_only { "allowed" } else { "blocked" },
                signature: detection.unwrap_or("unknown"),
                category: crate::config::verdict_str(report.verdict),
                severity: if report.verdict == Verdict::Infected { 1 } else { 2 },
            };
            let more = serde_json::to_value(&object).ok();
            self.shared.events.put(&FlowEvent {
                flow: self,
                kind: EventKind::Alert,
                fields: &alert,
                more: more.as_ref(),
            });
        }
    }

    fn record(&self, ended: Option<Timestamp>) -> FlowRecord {
        let detail = lock(&self.detail);
        let until = ended.unwrap_or_else(Timestamp::now);
        let object = detail.caught.as_deref().or(detail.object.as_deref());
        FlowRecord {
            id: Some(self.id),
            protocol: self.open.protocol,
            direction: self.open.direction,
            state: if ended.is_some() { "closed" } else { detail.state }.to_owned(),
            client: self.open.client,
            server: self.open.server,
            real_server: self.open.real_server,
            command: detail.command.filter(|_| ended.is_none()).map(|c| c.as_str().to_owned()),
            transfer: detail.transfer.as_ref().filter(|_| ended.is_none()).map(Transfer::record),
            user: detail.user.as_deref().map(|u| wire::text(u).into_owned()),
            object: object.map(|o| wire::text(o).into_owned()),
            objects: detail.objects,
            bytes_from_client: self.from_client.load(Ordering::Relaxed),
            bytes_from_server: self.from_server.load(Ordering::Relaxed),
            verdict: detail.verdict,
            detection: detail.detection.as_deref().map(str::to_owned),
            uninspected: self.tls.load(Ordering::Relaxed).then(|| "tls".to_owned()),
            tls: detail.opened.as_deref().cloned(),
            started: self.started,
            ended,
            age: until.duration_since(self.started).as_secs_f64().max(0.0),
        }
    }

    fn close(&self) {
        let ended = Timestamp::now();
        let record = self.record(Some(ended));
        self.shared.metrics.session_closed(self.open.protocol);
        if self.tls.load(Ordering::Relaxed) {
            self.shared.metrics.tls_ended();
            let unread = self.unread.load(Ordering::Relaxed);
            self.shared.metrics.meter.session_ended(&self.open.whose(), Blind::Tls, unread);
        }
        // A look at a mailbox that found nothing new: they come every half minute, of each account.
        let noted = record.protocol != Protocol::Mailbox || record.objects > 0;
        if noted {
            self.event(
                EventKind::Flow,
                &FlowFields {
                    start: format!("{:.6}", record.started),
                    end: format!("{ended:.6}"),
                    age: record.age,
                    state: "closed",
                    direction: record.direction,
                    user: record.user.as_deref(),
                    bytes_toserver: record.bytes_from_client,
                    bytes_toclient: record.bytes_from_server,
                    objects: record.objects,
                    verdict: record.verdict.map(crate::config::verdict_str),
                    uninspected: record.uninspected.as_deref(),
                    tls: record.tls.as_ref(),
                },
            );
        }
        self.shared.changed(Change::Closed, self, Some(ended));
        if noted {
            let mut closed = lock(&self.shared.closed);
            if closed.len() >= CLOSED_MAX {
                closed.pop_front();
            }
            closed.push_back(record);
        }
        // Last: a listing that misses it among the open ones finds it among the closed.
        lock(self.shared.shard(self.id)).remove(&self.id);
    }
}

fn clipped(bytes: &[u8], max: usize) -> Box<[u8]> {
    bytes[..bytes.len().min(max)].into()
}

fn clipped_str(text: &str, max: usize) -> Box<str> {
    text[..text.floor_char_boundary(max)].into()
}

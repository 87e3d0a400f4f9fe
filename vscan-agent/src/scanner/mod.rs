//! The client of the scanner process: gives objects to its workers and waits for their reports.
//!
//! The scanner process itself is the crate `vscan-scan`; the messages are in [`vscan_scan::wire`].
//! What lives here: which worker takes which object, deadlines, the one retry, the change to a new
//! set of rules, and in [`cache`] what was scanned before. What a report leads to is decided elsewhere ([`crate::policy`]).

mod ahead;
pub mod cache;
mod generation;
pub mod process;

use crate::{
    clamd::{self, Clamd},
    config,
    spool::Object,
};
pub use ahead::Ahead;
use cache::{Cache, Found, InProcess, Key, Store};
use generation::{Failure, Generation};
use std::{
    io,
    os::fd::OwnedFd,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{sync::watch, time::Instant};
use vscan_scan::{
    repair::{self, Plan},
    report::Report,
    wire::{ANSWER_MAX, Answer, Ask, Content, ObjectKind, Request},
};

/// How often an object is tried: a worker may die of a neighbour's doing, but not twice.
const ATTEMPTS: u32 = 2;

/// The worker is told to stop by itself this much before it would be killed, so that what it found
/// until then still reaches us (`Reason::Time`).
const GRACE: Duration = Duration::from_millis(500);

/// Bytes of the longest plan: with an inline object it still fits into a datagram.
const PLAN_MAX: usize = 32 * 1024;

/// What is to be scanned.
#[derive(Clone, Debug)]
pub struct Job {
    /// File or message.
    pub kind: ObjectKind,
    /// Its name as the peer gave it.
    pub name: Option<String>,
    /// Its bytes.
    pub object: Object,
    /// Whether the report is to have hashes, tags, metadata and the long tree: slower, and longer.
    pub detail: bool,
    /// Passwords to try on encrypted parts, besides those that a message itself tells.
    pub passwords: Vec<String>,
}

impl Job {
    /// An object without a name and without wishes.
    pub fn new(kind: ObjectKind, object: Object) -> Self {
        Self { kind, name: None, object, detail: false, passwords: Vec::new() }
    }
}

/// How the scanner fares.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Status {
    /// Identity of engine and rules, and of clamd; empty while there is no scanner.
    pub rules: String,
    /// Number of rules.
    pub rule_count: u64,
    /// Seconds since the youngest file of rules was changed, where that is known.
    #[serde(default)]
    pub rules_age: Option<u64>,
    /// Workers that are alive.
    pub workers: u64,
    /// Workers that are scanning.
    pub busy: u64,
    /// Workers that ended without being asked to, since the gateway started.
    pub crashes: u64,
    /// Workers that were killed at their deadline or because nobody waited any more.
    pub kills: u64,
    /// The clamd beside it, if one is configured.
    #[serde(default)]
    pub clamd: Option<clamd::Status>,
    /// What is remembered.
    #[serde(default)]
    pub cache: CacheStatus,
}

/// How much is remembered, and how often that helped, since the gateway started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct CacheStatus {
    /// Objects whose report was there.
    pub hits: u64,
    /// Objects that had to be scanned; none are counted while nothing is remembered.
    pub misses: u64,
    /// Parts of scanned objects that the worker had scanned before.
    pub part_hits: u64,
    /// Parts of scanned objects that it had not.
    pub part_misses: u64,
    /// Reports that are kept now.
    pub reports: u64,
    /// Bytes that they take.
    pub bytes: u64,
}

/// Hands objects to whichever worker is free. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Scanner {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    current: watch::Sender<Option<Arc<Generation>>>,
    next_id: AtomicU64,
    counts: Arc<Counts>,
    cache: RwLock<Option<Arc<Cache>>>,
    clamd: RwLock<Option<Arc<Clamd>>>,
}

/// Events since the gateway started.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    crashes: AtomicU64,
    kills: AtomicU64,
    objects: cache::Counts,
    parts: cache::Counts,
}

impl Default for Scanner {
    fn default() -> Self {
        Self::new()
    }
}

impl Scanner {
    /// A client without a scanner yet: objects wait for one until their deadline.
    pub fn new() -> Self {
        Self {
            shared: Arc::new(Shared {
                current: watch::Sender::new(None),
                next_id: AtomicU64::new(1),
                counts: Arc::default(),
                cache: RwLock::default(),
                clamd: RwLock::default(),
            }),
        }
    }

    /// From now on reports are kept in this process, in so many bytes; none: not at all. What is kept already is
    /// forgotten.
    pub fn remember(&self, bytes: Option<u64>) {
        self.remember_in(bytes.map(|bytes| Arc::new(InProcess::new(bytes)) as Arc<dyn Store>));
    }

    /// From now on reports are kept there.
    pub fn remember_in(&self, store: Option<Arc<dyn Store>>) {
        let cache = store.map(|store| Arc::new(Cache::new(store)));
        *self.shared.cache.write().unwrap_or_else(PoisonError::into_inner) = cache;
    }

    fn cache(&self) -> Option<Arc<Cache>> {
        self.shared.cache.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Starts a scanner process for this program alone, as `vscan scan` does.
    ///
    /// The process ends with the calling thread, or when the client and the returned handle are dropped.
    ///
    /// # Errors
    /// [`process::StartError`].
    pub async fn start_local(
        spec: &process::Spec,
    ) -> Result<(Self, process::Process), process::StartError> {
        let mut process = process::spawn(spec)?.ready().await?;
        let scanner = Self::new();
        scanner.set_clamd(spec.clamd.as_ref(), None);
        if let Some(control) = process.control.take() {
            scanner
                .attach(control, process.rules.clone())
                .map_err(|error| process::StartError::NotReady(error.to_string()))?;
        }
        Ok((scanner, process))
    }

    /// From now on new objects go to the scanner process behind `control`; those under way stay
    /// where they are, and the former process ends when the last of them is done.
    ///
    /// # Errors
    /// The descriptor is not a socket that can be polled.
    pub fn attach(&self, control: OwnedFd, rules: process::Rules) -> io::Result<()> {
        let counts = Arc::clone(&self.shared.counts);
        let number = self.shared.next_id.fetch_add(1, Ordering::Relaxed);
        let generation = Generation::start(control, number, rules, counts)?;
        self.shared.current.send_replace(Some(generation));
        Ok(())
    }

    /// From now on this clamd is asked too, or none. One with the same configuration goes on.
    pub fn set_clamd(&self, config: Option<&config::Clamd>, counters: Option<&clamd::Counters>) {
        let mut clamd = self.shared.clamd.write().unwrap_or_else(PoisonError::into_inner);
        if clamd.as_ref().map(|clamd| clamd.config()) != config {
            *clamd = config.map(|c| Arc::new(Clamd::new(c.clone(), counters.cloned())));
        }
    }

    /// The clamd that is asked too.
    pub fn clamd(&self) -> Option<Arc<Clamd>> {
        self.shared.clamd.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Scans one object, with at most `deadline` for each of two attempts, and asks clamd about it at the same time.
    ///
    /// Never fails: what goes wrong is a report with `Verdict::Error`. When the caller goes away in
    /// mid-scan, the worker is replaced. What was scanned before is not scanned again, if reports are kept.
    pub async fn scan(&self, job: Job, deadline: Duration) -> Report {
        let clamd = self.clamd();
        // What is kept is kept under what clamd knew by then; while that is not known nothing is.
        let known = match &clamd {
            Some(clamd) => clamd.version().await.ok().and_then(|_| clamd.identity()),
            None => Some(String::new()),
        };
        let (Some(cache), Some(known)) = (self.cache(), known) else {
            return self.scan_anew(&job, clamd.as_deref(), deadline).await.0;
        };
        let current = self.shared.current.borrow().as_ref().map_or(0, |current| current.number());
        let counts = &self.shared.counts.objects;
        let until = Instant::now() + deadline;
        let lead = match cache.find(Key::of(&job, current, &known), until).await {
            Found::Report(report) => {
                counts.hits.fetch_add(1, Ordering::Relaxed);
                return report;
            }
            Found::Nothing(lead) => Some(lead),
            Found::Late => None,
        };
        counts.misses.fetch_add(1, Ordering::Relaxed);
        let (report, scanner) = self.scan_anew(&job, clamd.as_deref(), deadline).await;
        // Under the process that made it, which may be another than was asked at first.
        cache.put(Key::of(&job, scanner, &known), &report, lead).await;
        report
    }

    /// The report with what clamd says, and the number of the scanner process that made it.
    async fn scan_anew(
        &self,
        job: &Job,
        clamd: Option<&Clamd>,
        deadline: Duration,
    ) -> (Report, u64) {
        let Some(clamd) = clamd else { return self.look(job, deadline).await };
        let ((mut report, scanner), said) =
            tokio::join!(self.look(job, deadline), clamd.scan(&job.object));
        let said = match said {
            clamd::Outcome::Infected(name) if self.allows(job, &name, deadline).await => {
                clamd::Outcome::Clean
            }
            said => said,
        };
        report.rules = with_clamd(report.rules, clamd);
        clamd::add(said, job.name.as_deref(), &mut report);
        (report, scanner)
    }

    /// What the scanner's own engines find.
    async fn look(&self, job: &Job, deadline: Duration) -> (Report, u64) {
        let ask = Ask::Report { detail: job.detail };
        match self.ask(job, ask, ANSWER_MAX, deadline).await {
            Ok((Answer::Report(report), scanner)) => {
                let parts = &self.shared.counts.parts;
                let known = u64::from(report.known);
                parts.hits.fetch_add(known, Ordering::Relaxed);
                let others = u64::from(report.parts).saturating_sub(known);
                parts.misses.fetch_add(others, Ordering::Relaxed);
                (*report, scanner)
            }
            Ok((Answer::Repair(_) | Answer::Allowed(_) | Answer::Ahead(_), _)) => {
                (Report::error("the scanner answered another question"), 0)
            }
            Err(why) => (Report::error(why), 0),
        }
    }

    /// Whether an allow list lets the object pass though clamd found something of this name.
    async fn allows(&self, job: &Job, name: &str, deadline: Duration) -> bool {
        let ask = Ask::Allowed { name: name.to_owned() };
        matches!(self.ask(job, ask, ANSWER_MAX, deadline).await, Ok((Answer::Allowed(true), _)))
    }

    /// Asks for the edits that carry out the plan, with at most `deadline` for each of two attempts.
    ///
    /// The job is that of the scan whose report numbers the parts. Never fails: what goes wrong is
    /// [`repair::Answer::Unrepairable`]. Edits are sorted, do not overlap, and lie inside the object;
    /// whatever they are, the edited object has to be scanned before it is delivered.
    pub async fn repair(&self, job: Job, plan: Plan, deadline: Duration) -> repair::Answer {
        let unrepairable = |why: String| repair::Answer::Unrepairable { why };
        if postcard::experimental::serialized_size(&plan).is_ok_and(|len| len > PLAN_MAX) {
            return unrepairable(format!("a plan of more than {PLAN_MAX} bytes"));
        }
        // Where bytes are encoded again all of them come back.
        let most = ANSWER_MAX + usize::try_from(plan.size_max).unwrap_or(usize::MAX / 2);
        let repaired = match self.ask(&job, Ask::Repair(plan), most, deadline).await {
            Ok((Answer::Repair(repair::Answer::Repaired(repaired)), _)) => repaired,
            Ok((Answer::Repair(unrepairable), _)) => return unrepairable,
            Ok((Answer::Report(_) | Answer::Allowed(_) | Answer::Ahead(_), _)) => {
                return unrepairable("the scanner answered another question".to_owned());
            }
            Err(why) => return unrepairable(why),
        };
        // The worker reads hostile bytes: what it says is checked.
        let mut at = 0;
        for edit in &repaired.edits {
            match edit.at.checked_add(edit.len) {
                Some(end) if edit.at >= at && end <= job.object.len() => at = end,
                _ => return unrepairable("the scanner gave edits that do not fit".to_owned()),
            }
        }
        repair::Answer::Repaired(repaired)
    }

    fn generation(&self) -> Option<Arc<Generation>> {
        self.shared.current.borrow().clone()
    }

    fn next_number(&self) -> u64 {
        self.shared.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// One question with its two attempts: the answer and the number of the process that gave it, or why there is none.
    async fn ask(
        &self,
        job: &Job,
        ask: Ask,
        most: usize,
        deadline: Duration,
    ) -> Result<(Answer, u64), String> {
        let mut last = String::new();
        let mut attempts = 0;
        let mut until = Instant::now() + deadline;
        while attempts < ATTEMPTS {
            attempts += 1;
            match self.attempt(job, &ask, most, until).await {
                Ok(answer) => return Ok(answer),
                // It never had the object: this was no attempt.
                Err(Failure::Stale) => {
                    attempts -= 1;
                    continue;
                }
                Err(Failure::NoWorker) => {
                    return Err("no scanner was free before the deadline".to_owned());
                }
                Err(Failure::Deadline) => last = "scan exceeded its deadline".to_owned(),
                Err(Failure::Crashed(cause)) => last = format!("scanner worker ended: {cause}"),
                Err(Failure::Io(error)) => last = format!("scanner: {error}"),
            }
            until = Instant::now() + deadline;
            tracing::warn!(object = %job.object.hash().to_hex(), len = job.object.len(), "{last}");
        }
        Err(last)
    }

    /// Identity of engine and rules, as of now; empty while there is no scanner.
    pub fn rules(&self) -> String {
        let rules = self
            .shared
            .current
            .borrow()
            .as_ref()
            .map_or_else(String::new, |g| g.rules().to_owned());
        match self.clamd() {
            Some(clamd) if !rules.is_empty() => with_clamd(rules, &clamd),
            Some(_) | None => rules,
        }
    }

    /// Workers, rules and failures, as of now.
    pub fn status(&self) -> Status {
        let mut status =
            self.shared.current.borrow().as_ref().map_or_else(Status::default, |g| g.status());
        status.crashes = self.shared.counts.crashes.load(Ordering::Relaxed);
        status.kills = self.shared.counts.kills.load(Ordering::Relaxed);
        let cache = &mut status.cache;
        (cache.hits, cache.misses) = self.shared.counts.objects.read();
        (cache.part_hits, cache.part_misses) = self.shared.counts.parts.read();
        (cache.reports, cache.bytes) = self.cache().map_or((0, 0), |cache| cache.held());
        if let Some(clamd) = self.clamd() {
            if !status.rules.is_empty() {
                status.rules = with_clamd(status.rules, &clamd);
            }
            status.clamd = Some(clamd.status());
        }
        status
    }

    async fn attempt(
        &self,
        job: &Job,
        ask: &Ask,
        most: usize,
        until: Instant,
    ) -> Result<(Answer, u64), Failure> {
        let mut current = self.shared.current.subscribe();
        // Whoever looked at it while it arrived has less to do.
        let ahead = job.object.ahead().filter(|_| matches!(ask, Ask::Report { .. }));
        if let Some(ahead) = ahead {
            let _ = tokio::time::timeout_at(until, ahead.settled()).await;
        }
        let (generation, worker, object) = loop {
            let generation = current.borrow_and_update().clone();
            let taking = async {
                if let Some(generation) = generation {
                    let looked = ahead.and_then(|ahead| ahead.worker(&generation));
                    if let Some((worker, object)) = looked {
                        return Some((generation, worker, Some(object)));
                    }
                    if let Some(worker) = generation.take().await {
                        return Some((generation, worker, None));
                    }
                }
                // No scanner, or its process has ended: wait for the next one.
                let _ = current.changed().await;
                None
            };
            match tokio::time::timeout_at(until, taking).await {
                Ok(Some(taken)) => break taken,
                Ok(None) => {}
                Err(_) => return Err(Failure::NoWorker),
            }
        };
        let content = match job.object.inline() {
            Some(bytes) => Content::Inline(bytes.to_vec()),
            None => Content::Descriptor { len: job.object.len() },
        };
        let time_limit = until.saturating_duration_since(Instant::now()).saturating_sub(GRACE);
        let request = Request {
            id: self.shared.next_id.fetch_add(1, Ordering::Relaxed),
            object,
            ask: ask.clone(),
            kind: job.kind,
            name: job.name.clone(),
            passwords: job.passwords.clone(),
            time_limit_ms: u64::try_from(time_limit.as_millis()).unwrap_or(u64::MAX).max(1),
            content,
        };
        let descriptor = job.object.descriptor().map_err(Failure::Io)?;
        let number = generation.number();
        let answer = generation.ask(worker, &request, descriptor, most, until).await?;
        Ok((answer, number))
    }
}

/// The identity of the rules with that of clamd.
fn with_clamd(rules: String, clamd: &Clamd) -> String {
    match clamd.identity() {
        Some(identity) => format!("{rules}, {identity}"),
        None => format!("{rules}, ClamAV ?"),
    }
}

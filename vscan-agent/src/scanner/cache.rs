//! What was scanned before: raw reports under everything that shaped them, in a [`Store`]; and who waits for a scan of
//! the same content that is under way.
//!
//! What policy makes of a report is not here, nor what a file's type adds to it: all that is done to the report of a
//! scan and to a kept one alike. What a clamd says is in the report, and its version in the key. The parts of objects are
//! remembered by the scanner's workers.

use super::Job;
use quick_cache::{Weighter, sync};
use std::{
    collections::HashMap,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};
use vscan_scan::{
    report::{Reason, Report, Verdict},
    wire::ObjectKind,
};

/// Seconds of a day.
const DAY: u64 = 86_400;

/// What the smallest report counts for at least, in bytes: it bounds their number.
const REPORT_MIN: u64 = 512;

/// Reports of mail with an attachment take about this much; a store makes room for as many entries.
const REPORT_USUAL: u64 = 1024;

/// What a report is kept under: BLAKE3 over the hash of the content and all that shaped the report besides.
///
/// That is kind and name of the object, the passwords that were tried, the wish for details, the day (lines of allow
/// lists end with one, UTC), and the scanner process, which alone knows its rules down to what they include, its
/// limits and its code: it counts by its number in this gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key([u8; 32]);

impl Key {
    /// `beside`: what others know that are asked too; empty if nobody is.
    pub(super) fn of(job: &Job, scanner: u64, beside: &str) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let own = Self::on(job, scanner, now.as_secs() / DAY);
        if beside.is_empty() {
            return own;
        }
        Self(*blake3::Hasher::new().update(&own.0).update(beside.as_bytes()).finalize().as_bytes())
    }

    fn on(job: &Job, scanner: u64, day: u64) -> Self {
        // Every field has one place and its length before it.
        let mut hasher = blake3::Hasher::new();
        hasher.update(job.object.hash().as_bytes());
        for number in [job.object.len(), scanner, day, job.passwords.len() as u64] {
            hasher.update(&number.to_le_bytes());
        }
        let kind = match job.kind {
            ObjectKind::File => 0,
            ObjectKind::Message => 1,
        };
        hasher.update(&[kind, u8::from(job.detail), u8::from(job.name.is_some())]);
        for text in job.name.iter().chain(&job.passwords) {
            hasher.update(&(text.len() as u64).to_le_bytes()).update(text.as_bytes());
        }
        Self(*hasher.finalize().as_bytes())
    }

    /// Its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// An answer that may take its time.
pub type Later<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Where reports are kept: in this process ([`InProcess`]), or wherever an implementation puts them. Losing one is no
/// harm; giving another's would be.
pub trait Store: Send + Sync + std::fmt::Debug {
    /// The report, if there is one.
    fn get<'a>(&'a self, key: &'a Key) -> Later<'a, Option<Report>>;

    /// Keeps a report for as long as there is room.
    fn put<'a>(&'a self, key: Key, report: &'a Report) -> Later<'a, ()>;

    /// How much is kept now: reports, and bytes.
    fn held(&self) -> (u64, u64);
}

/// Reports in this process's memory; what is asked for least goes first.
#[derive(Debug)]
pub struct InProcess(sync::Cache<Key, Arc<Report>, Weight>);

impl InProcess {
    /// Room for so many bytes.
    #[must_use]
    pub fn new(bytes: u64) -> Self {
        let entries = usize::try_from(bytes / REPORT_USUAL).unwrap_or(usize::MAX).max(1);
        Self(sync::Cache::with_weighter(entries, bytes, Weight))
    }
}

impl Store for InProcess {
    fn get<'a>(&'a self, key: &'a Key) -> Later<'a, Option<Report>> {
        let found = self.0.get(key);
        Box::pin(std::future::ready(found.map(|report| Report::clone(&report))))
    }

    fn put<'a>(&'a self, key: Key, report: &'a Report) -> Later<'a, ()> {
        self.0.insert(key, Arc::new(report.clone()));
        Box::pin(std::future::ready(()))
    }

    fn held(&self) -> (u64, u64) {
        (self.0.len() as u64, self.0.weight())
    }
}

#[derive(Clone, Debug)]
struct Weight;

impl Weighter<Key, Arc<Report>> for Weight {
    fn weight(&self, _: &Key, report: &Arc<Report>) -> u64 {
        weight(report)
    }
}

/// Bytes that a report takes in memory, about.
fn weight(report: &Report) -> u64 {
    let texts =
        |texts: &[String]| texts.iter().map(|t| size_of::<String>() + t.len()).sum::<usize>();
    let findings = report.findings.iter().map(|f| {
        let detail = f.detail.as_ref().map_or(0, |d| {
            let meta = d.meta.iter().map(|(k, v)| 2 * size_of::<String>() + k.len() + v.len());
            texts(&d.tags) + meta.sum::<usize>()
        });
        size_of_val(f) + f.name.len() + f.engine.len() + texts(&f.path) + detail
    });
    let unread = report.unread.iter().map(|u| size_of_val(u) + u.detail.len() + texts(&u.path));
    let tree = report.tree.iter().map(|p| {
        let hashes = p.hashes.as_ref().map_or(0, |h| h.blake3.len() + h.sha256.len());
        size_of_val(p)
            + p.name.len()
            + texts(&p.other_names)
            + p.declared.len()
            + p.kind.len()
            + hashes
    });
    let own =
        size_of_val(report) + report.kind.len() + report.rules.len() + report.mail.notice.len();
    let sum = own + findings.sum::<usize>() + unread.sum::<usize>() + tree.sum::<usize>();
    (sum as u64 + size_of::<Key>() as u64).max(REPORT_MIN)
}

/// Whether the report would be the same the next time. A failure would not, nor what was left unread for want of
/// time or memory.
fn is_lasting(report: &Report) -> bool {
    report.verdict != Verdict::Error
        && report.error.is_none()
        && !report.timely
        && !report.unread.iter().any(|u| matches!(u.reason, Reason::Time | Reason::Memory))
}

/// How often something was known, and how often not.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) hits: AtomicU64,
    pub(super) misses: AtomicU64,
}

/// A store with those who wait for what will be in it.
#[derive(Debug)]
pub(super) struct Cache {
    store: Arc<dyn Store>,
    flights: Flights,
}

/// What there is of a content.
pub(super) enum Found {
    /// Its report, of a scan that another one asked for.
    Report(Report),
    /// Nothing: the caller scans it, and tells by this.
    Nothing(Lead),
    /// Another scan of it takes longer than the caller waits.
    Late,
}

impl Cache {
    pub(super) fn new(store: Arc<dyn Store>) -> Self {
        Self { store, flights: Flights::default() }
    }

    pub(super) fn held(&self) -> (u64, u64) {
        self.store.held()
    }

    /// The report kept under the key, or of the scan that goes on for it, for which it waits until `until`.
    pub(super) async fn find(&self, key: Key, until: Instant) -> Found {
        loop {
            if let Some(report) = self.store.get(&key).await {
                return Found::Report(report);
            }
            let mut other = match self.flights.join(key) {
                Ok(lead) => {
                    // It may have landed between the two questions.
                    return match self.store.get(&key).await {
                        Some(report) => Found::Report(report),
                        None => Found::Nothing(lead),
                    };
                }
                Err(other) => other,
            };
            match timeout_at(until, other.wait_for(Option::is_some)).await {
                Ok(Ok(report)) => {
                    if let Some(report) = report.as_deref() {
                        return Found::Report(report.clone());
                    }
                }
                // It came to nothing that others could take: the next one tries for itself.
                Ok(Err(_)) => {}
                Err(_) => return Found::Late,
            }
        }
    }

    /// Keeps a report, if it lasts, and gives it to those who wait for it.
    pub(super) async fn put(&self, key: Key, report: &Report, lead: Option<Lead>) {
        if !is_lasting(report) {
            return;
        }
        // What a worker knew and how long it took is said of one scan.
        let kept = Report { known: 0, ahead: 0, micros: 0, ..report.clone() };
        self.store.put(key, &kept).await;
        if let Some(lead) = lead {
            lead.land(kept);
        }
    }
}

type Landing = watch::Receiver<Option<Arc<Report>>>;

/// The contents that are being scanned now.
#[derive(Clone, Debug, Default)]
struct Flights(Arc<Mutex<HashMap<Key, Landing>>>);

impl Flights {
    /// Leads a scan of this content, or waits for the one that goes on.
    fn join(&self, key: Key) -> Result<Lead, Landing> {
        let mut flights = self.lock();
        if let Some(landing) = flights.get(&key) {
            return Err(landing.clone());
        }
        let (report, landing) = watch::channel(None);
        flights.insert(key, landing);
        Ok(Lead { flights: self.clone(), key, report })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Landing>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The one that scans a content. Dropped before [`Lead::land`], the next one takes over.
#[derive(Debug)]
pub(super) struct Lead {
    flights: Flights,
    key: Key,
    report: watch::Sender<Option<Arc<Report>>>,
}

impl Lead {
    fn land(self, report: Report) {
        if self.report.receiver_count() > 1 {
            self.report.send_replace(Some(Arc::new(report)));
        }
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        self.flights.lock().remove(&self.key);
    }
}

impl Counts {
    pub(super) fn read(&self) -> (u64, u64) {
        (self.hits.load(Ordering::Relaxed), self.misses.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests;

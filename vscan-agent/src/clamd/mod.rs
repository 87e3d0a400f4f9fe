//! A clamd beside the scanner: asked about every object, and whatever it cannot do is never taken for clean.
//!
//! What lives here: which object goes to it and how, its deadline, its version, and what its answer adds to a report.
//! The bytes of its protocol are in `wire`. Who asks is [`crate::scanner`], so that every object is asked about,
//! wherever it came from.
//!
//! clamd calls clean what it has not read: a member over `MaxFileSize` is skipped without a word unless it is told to
//! say so (`AlertExceedsMax`, `AlertEncrypted`). What it does say of limits and encryption is `unscannable` here. The
//! scanner reads the same object with limits of its own, and the worse of both verdicts counts.

mod wire;

use crate::config::{self, ClamdLarger, ClamdMode};
use crate::spool::Object;
use prometheus::{Histogram, HistogramOpts, IntCounterVec, IntGauge, Opts};
use serde::{Deserialize, Serialize};
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;
use vscan_scan::report::{Reason, Report};
use wire::Reply;

/// The engine's name in reports.
pub const ENGINE: &str = "clamd";

/// How long a version is believed: freshclam changes it a few times a day.
const VERSION_AGE: Duration = Duration::from_secs(30);

/// How long a failure to tell it is believed: long enough for those who wait behind each other, so that a clamd that
/// hangs holds all of them as long as one.
const FAILURE_AGE: Duration = Duration::from_millis(500);

/// Time for the answer to `VERSION`, which needs no file.
const VERSION_DEADLINE: Duration = Duration::from_secs(5);

/// How often one object is sent: a clamd that restarts ends the connections that it has.
const ATTEMPTS: u32 = 2;

/// Seconds; a small file takes less than the first bound, the last is past the default deadline.
const BUCKETS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// Why clamd said nothing of an object.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody answers at its address.
    #[error("cannot be reached: {0}")]
    Connect(#[source] io::Error),
    /// The connection broke, or the object cannot be read.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It ended the connection without a whole answer.
    #[error("ended the connection without an answer")]
    Truncated,
    /// It did not answer in time.
    #[error("did not answer within {}", crate::clamd::seconds(*.0))]
    Deadline(Duration),
    /// Another has just asked, and this came of it.
    #[error("{0}")]
    Recent(String),
    /// It says that it failed.
    #[error("says: {0}")]
    Refused(String),
    /// It answered before it had the whole object.
    #[error("answered before it had everything: {0}")]
    Early(String),
    /// It said something that is no answer.
    #[error("said what is no answer: {0}")]
    NotUnderstood(String),
}

fn seconds(time: Duration) -> String {
    format!("{} s", time.as_secs_f64())
}

/// What clamd says of one object.
#[derive(Debug)]
pub enum Outcome {
    /// It found nothing.
    Clean,
    /// It was not asked, as the configuration wants it.
    Skipped,
    /// It found this.
    Infected(String),
    /// It could not read all of it.
    Unscannable(Reason, String),
    /// It failed.
    Failed(Error),
}

/// What `/metrics` tells of it; lives longer than one configuration.
#[derive(Clone, Debug)]
pub struct Counters {
    /// `vscan_clamd_requests_total`
    pub requests: IntCounterVec,
    /// `vscan_clamd_seconds`
    pub seconds: Histogram,
    /// `vscan_clamd_up`
    pub up: IntGauge,
}

/// Every value of the label `result`.
const RESULTS: [&str; 5] = ["clean", "infected", "unscannable", "skipped", "error"];

impl Counters {
    /// New ones, which are not registered anywhere.
    ///
    /// # Errors
    /// None: the names are literals.
    pub fn new() -> Result<Self, prometheus::Error> {
        let requests = Opts::new(
            "vscan_clamd_requests_total",
            "Objects that clamd was asked about, by result.",
        );
        let requests = IntCounterVec::new(requests, &["result"])?;
        for result in RESULTS {
            requests.with_label_values(&[result]);
        }
        let seconds = HistogramOpts::new(
            "vscan_clamd_seconds",
            "Time from the question about an object to clamd's answer.",
        );
        Ok(Self {
            requests,
            seconds: Histogram::with_opts(seconds.buckets(BUCKETS.to_vec()))?,
            up: IntGauge::new(
                "vscan_clamd_up",
                "Whether clamd answered when it was last asked; 0 also where none is configured.",
            )?,
        })
    }
}

/// How it fares, for `vscan status`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Where it is.
    pub address: String,
    /// Its version and that of its signatures; empty until it told.
    pub version: String,
    /// Objects that it was asked about.
    pub requests: u64,
    /// Those at which it failed.
    pub failures: u64,
    /// Why it failed at the last object; none if it did not.
    pub error: Option<String>,
}

/// One clamd. It is asked over as many connections at a time as configured.
#[derive(Debug)]
pub struct Clamd {
    config: config::Clamd,
    counters: Option<Counters>,
    connections: Semaphore,
    /// Held by whoever asks for the version.
    asking: tokio::sync::Mutex<()>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    version: Option<String>,
    asked: Option<Instant>,
    /// Why the version was not told, and when.
    mute: Option<(Instant, String)>,
    requests: u64,
    failures: u64,
    error: Option<String>,
}

impl Clamd {
    /// Asks nobody yet.
    pub fn new(config: config::Clamd, counters: Option<Counters>) -> Self {
        Self {
            connections: Semaphore::new(config.connections.get()),
            config,
            counters,
            asking: tokio::sync::Mutex::default(),
            state: Mutex::default(),
        }
    }

    /// Its configuration.
    pub fn config(&self) -> &config::Clamd {
        &self.config
    }

    /// Its version and that of its signatures, as it was last told; none until then, and while it does not answer.
    ///
    /// What it found under one identity it finds under the same again.
    pub fn identity(&self) -> Option<String> {
        let version = lock(&self.state).version.clone()?;
        let ignored: Vec<&str> = self.config.ignore.iter().map(config::Glob::as_str).collect();
        Some(match ignored.as_slice() {
            [] => version,
            ignored => format!("{version} without {}", ignored.join(" ")),
        })
    }

    /// Its version and that of its signatures, e.g. `ClamAV 1.4.6/27500/Sun Nov 22 08:24:51 2026`; asked for anew
    /// when it was last told half a minute ago.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn version(&self) -> Result<String, Error> {
        let known = || {
            let state = lock(&self.state);
            if let Some((at, why)) = &state.mute
                && at.elapsed() < FAILURE_AGE
            {
                return Some(Err(Error::Recent(why.clone())));
            }
            let fresh = state.asked.is_some_and(|at| at.elapsed() < VERSION_AGE);
            state.version.clone().filter(|_| fresh).map(Ok)
        };
        if let Some(known) = known() {
            return known;
        }
        let _asking = self.asking.lock().await;
        if let Some(known) = known() {
            return known;
        }
        let deadline = VERSION_DEADLINE.min(self.config.deadline);
        let asked = tokio::time::timeout(deadline, wire::version(&self.config.address)).await;
        let told = asked.unwrap_or(Err(Error::Deadline(deadline)));
        let mut state = lock(&self.state);
        state.version = told.as_ref().ok().cloned();
        state.asked = Some(Instant::now());
        state.mute = told.as_ref().err().map(|error| (Instant::now(), error.to_string()));
        drop(state);
        if told.is_ok()
            && let Some(counters) = &self.counters
        {
            counters.up.set(1);
        }
        told
    }

    /// Asks about one object, within the deadline.
    ///
    /// Never fails: what goes wrong is [`Outcome::Failed`].
    pub async fn scan(&self, object: &Object) -> Outcome {
        let started = Instant::now();
        let outcome = if object.len() <= self.config.size_max {
            match tokio::time::timeout(self.config.deadline, self.ask(object)).await {
                Ok(Ok(reply)) => self.outcome(reply),
                Ok(Err(error)) => Outcome::Failed(error),
                Err(_) => Outcome::Failed(Error::Deadline(self.config.deadline)),
            }
        } else if self.config.larger == ClamdLarger::Skip {
            Outcome::Skipped
        } else {
            let detail = format!("clamd: larger than size_max = {} bytes", self.config.size_max);
            Outcome::Unscannable(Reason::Size, detail)
        };
        self.count(&outcome, started.elapsed());
        outcome
    }

    /// How it fares.
    pub fn status(&self) -> Status {
        let state = lock(&self.state);
        Status {
            address: self.config.address.to_string(),
            version: state.version.clone().unwrap_or_default(),
            requests: state.requests,
            failures: state.failures,
            error: state.error.clone(),
        }
    }

    async fn ask(&self, object: &Object) -> Result<Reply, Error> {
        // The version of before: what is found may be younger than it says, never older.
        self.version().await?;
        let Ok(_permit) = self.connections.acquire().await else {
            return Err(io::Error::from(io::ErrorKind::NotConnected).into());
        };
        let mut by_descriptor = match (self.config.mode, &self.config.address) {
            (ClamdMode::Fildes, _) => true,
            (ClamdMode::Auto, config::ClamdAddress::Unix(_)) => object.inline().is_none(),
            (ClamdMode::Auto, config::ClamdAddress::Tcp(_)) | (ClamdMode::Instream, _) => false,
        };
        let mut attempts = 0;
        loop {
            attempts += 1;
            let asked = if by_descriptor {
                wire::fildes(&self.config.address, object).await
            } else {
                wire::instream(&self.config.address, object).await
            };
            match asked {
                // It may not open what it was given, as where AppArmor confines it: it can have the bytes.
                Err(Error::Refused(why))
                    if by_descriptor && self.config.mode == ClamdMode::Auto =>
                {
                    tracing::debug!("clamd on a descriptor: {why}");
                    by_descriptor = false;
                    attempts = 0;
                }
                Err(Error::Io(_) | Error::Truncated) if attempts < ATTEMPTS => {}
                asked => return asked,
            }
        }
    }

    fn outcome(&self, reply: Reply) -> Outcome {
        match reply {
            Reply::Clean => Outcome::Clean,
            Reply::TooLarge => Outcome::Unscannable(
                Reason::Size,
                "clamd: larger than its StreamMaxLength".to_owned(),
            ),
            Reply::Found(name) => match unread(&name) {
                _ if self.config.ignore.iter().any(|glob| glob.matches(&name)) => Outcome::Clean,
                Some(reason) => Outcome::Unscannable(reason, format!("clamd: {name}")),
                None => Outcome::Infected(name),
            },
        }
    }

    fn count(&self, outcome: &Outcome, time: Duration) {
        let (result, asked) = match outcome {
            Outcome::Clean => ("clean", true),
            Outcome::Skipped => ("skipped", false),
            Outcome::Infected(_) => ("infected", true),
            Outcome::Unscannable(..) => ("unscannable", true),
            Outcome::Failed(_) => ("error", true),
        };
        let mut state = lock(&self.state);
        if asked {
            state.requests += 1;
            state.error = None;
        }
        if let Outcome::Failed(error) = outcome {
            state.failures += 1;
            state.error = Some(error.to_string());
            // What is next said of it shall not stem from before.
            state.asked = None;
            tracing::warn!("clamd at {}: {error}", self.config.address);
        }
        drop(state);
        if let Some(counters) = &self.counters {
            counters.requests.with_label_values(&[result]).inc();
            if asked {
                counters.seconds.observe(time.as_secs_f64());
                counters.up.set(i64::from(!matches!(outcome, Outcome::Failed(_))));
            }
        }
    }
}

/// Asks for its version, for commands: outside of any runtime.
///
/// # Errors
/// [`Error`].
pub fn version_now(config: &config::Clamd) -> Result<String, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(Clamd::new(config.clone(), None).version())
}

/// Adds what clamd said of an object to its report: the worse verdict counts.
pub fn add(outcome: Outcome, name: Option<&str>, report: &mut Report) {
    let path: Vec<String> = name.into_iter().map(str::to_owned).collect();
    match outcome {
        Outcome::Clean | Outcome::Skipped => {}
        Outcome::Infected(found) => report.add_finding(&found, ENGINE, &path, 0),
        Outcome::Unscannable(reason, detail) => report.add_unread(reason, &detail, &path, 0),
        Outcome::Failed(error) => report.add_error(&format!("clamd {error}")),
    }
}

/// What detections mean that are none: clamd tells of what it did not read by such names.
fn unread(name: &str) -> Option<Reason> {
    if name.starts_with("Heuristics.Encrypted.") {
        return Some(Reason::Encrypted);
    }
    let limit = name.strip_prefix("Heuristics.Limits.Exceeded")?;
    Some(match limit.trim_start_matches('.') {
        "MaxScanSize" => Reason::Unpacked,
        "MaxFiles" => Reason::Members,
        "MaxRecursion" => Reason::Depth,
        "MaxScanTime" => Reason::Time,
        limit if limit.starts_with("Email") => Reason::Headers,
        _ => Reason::Size,
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;

//! `vscan scan`: files through the same scanner process as the gateway's objects, and past the same clamd.

mod print;
mod walk;

use super::args::{Output, ScanArgs};
use super::failure::{EX_CONFIG, EX_OSERR, EX_SOFTWARE, EX_UNAVAILABLE, Failure};
use crate::config::Config;
use crate::scanner::process::{Process, Spec, StartError};
use crate::scanner::{Job, Scanner};
use crate::spool::Object;
use print::Printer;
use serde::Serialize;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use vscan_scan::report::Report;
use vscan_scan::wire::ObjectKind;
use walk::{Found, What};

/// Files that are read ahead, beside those that the workers have.
const AHEAD: usize = 2;

/// A file and what was found.
#[derive(Debug, Serialize)]
pub(super) struct Scanned {
    /// Its path; `-` is standard input.
    pub(super) path: String,
    /// Bytes; none where it could not be read.
    pub(super) size: Option<u64>,
    /// Wall-clock time from its opening to its verdict.
    pub(super) seconds: f64,
    #[serde(flatten)]
    pub(super) report: Report,
}

/// How files are scanned.
#[derive(Clone, Copy, Debug)]
pub(super) struct Manner {
    /// Reports with hashes, tags, metadata and the long tree.
    pub(super) detail: bool,
    /// Every file is a mail message.
    pub(super) message: bool,
    /// For each of two attempts.
    pub(super) deadline: Duration,
    /// Bytes of standard input that are read; more of it is over the limit anyway.
    pub(super) size_max: u64,
    /// Files that are scanned at one time.
    pub(super) workers: usize,
}

impl Manner {
    pub(super) fn of(config: &Config) -> Self {
        Self {
            detail: false,
            message: false,
            deadline: config.scan.deadline,
            size_max: config.scan.limits.object_size,
            workers: config.scan.workers.get(),
        }
    }
}

/// What comes of a walk: a file that was scanned, or something that was left out.
#[derive(Debug)]
pub(super) enum Outcome {
    Scanned(Box<Scanned>),
    LeftOut { path: PathBuf, why: &'static str },
}

/// Scans; the exit code is that of [`Printer::end`].
pub(super) fn run(
    args: &ScanArgs,
    config: &Config,
    output: Output,
    out: &mut dyn Write,
) -> Result<u8, Failure> {
    for path in args.paths.iter().filter(|path| path.as_os_str() != walk::STDIN) {
        path.symlink_metadata().map_err(|e| Failure::file(path, &e))?;
    }
    let rules = if args.rules.is_empty() { &config.scan.rules } else { &args.rules };
    let manner =
        Manner { detail: output == Output::Json, message: args.message, ..Manner::of(config) };
    with_scanner(config, rules, async |scanner, _| {
        let mut printer = Printer::new(output, args.quiet, out);
        let (paths, bar) = (args.paths.clone(), printer.progress());
        each(scanner, paths, manner, |found| bar.found(found), |result| printer.print(&result))
            .await?;
        printer.end()
    })
}

/// Runs `work` with a scanner of its own over these rules.
pub(super) fn with_scanner<T>(
    config: &Config,
    rules: &[PathBuf],
    work: impl AsyncFnOnce(&Scanner, &Process) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let spec = Spec {
        program: super::check::scanner(config)?,
        rules: rules.to_vec(),
        rules_key: config.rules_key(),
        limits: serde_json::to_string(&config.scan.limits)
            .map_err(|e| Failure::new(EX_CONFIG, e))?,
        workers: config.scan.workers.get(),
        threads: config.scan.threads.get(),
        clamd: config.scan.clamd.clone(),
    };
    // one thread: the scanner's life is bound to it
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::new(EX_OSERR, e))?;
    runtime.block_on(async {
        let started = Scanner::start_local(&spec).await;
        let (scanner, mut process) = started.map_err(|e| match e {
            StartError::Program { .. } => Failure::new(EX_UNAVAILABLE, e),
            StartError::Refused(_) | StartError::NotReady(_) => Failure::new(EX_CONFIG, e),
        })?;
        let result = work(&scanner, &process).await;
        drop(scanner);
        // it may have ended already, with its socket
        let _ = process.child.kill();
        let _ = process.child.wait();
        result
    })
}

/// Scans everything under the paths, as many files at a time as there are workers; `found` hears how many files there
/// are so far, `done` each result, in no order.
pub(super) async fn each(
    scanner: &Scanner,
    paths: Vec<PathBuf>,
    manner: Manner,
    mut found: impl FnMut(u64),
    mut done: impl FnMut(Outcome) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut files = walk::start(paths);
    let mut running: JoinSet<Scanned> = JoinSet::new();
    let (mut count, mut more) = (0, true);
    while more || !running.is_empty() {
        tokio::select! {
            next = files.recv(), if more && running.len() < manner.workers + AHEAD => match next {
                None => more = false,
                Some(Found { path, what: What::LeftOut(why) }) => {
                    done(Outcome::LeftOut { path, why })?;
                }
                Some(file) => {
                    count += 1;
                    found(count);
                    let scanner = scanner.clone();
                    running.spawn(async move { one(&scanner, file, manner).await });
                }
            },
            Some(ended) = running.join_next() => {
                let scanned = ended.map_err(|e| Failure::new(EX_SOFTWARE, e))?;
                done(Outcome::Scanned(Box::new(scanned)))?;
            }
        }
    }
    Ok(())
}

async fn one(scanner: &Scanner, file: Found, manner: Manner) -> Scanned {
    let started = Instant::now();
    let path = file.path.to_string_lossy().into_owned();
    let message =
        manner.message || file.path.extension().is_some_and(|e| e.eq_ignore_ascii_case("eml"));
    let name = file_name(&file.path);
    let opened = tokio::task::spawn_blocking(move || walk::open(&file, manner.size_max)).await;
    let opened: std::io::Result<Object> = opened.unwrap_or_else(|e| Err(std::io::Error::other(e)));
    let (size, report) = match opened {
        Ok(object) => {
            let kind = if message { ObjectKind::Message } else { ObjectKind::File };
            let size = object.len();
            let job = Job { name, detail: manner.detail, ..Job::new(kind, object) };
            (Some(size), scanner.scan(job, manner.deadline).await)
        }
        Err(error) => (None, Report::error(error.to_string())),
    };
    Scanned { path, size, seconds: started.elapsed().as_secs_f64(), report }
}

fn file_name(path: &Path) -> Option<String> {
    (path.as_os_str() != walk::STDIN)
        .then(|| path.file_name().map(|n| n.to_string_lossy().into_owned()))
        .flatten()
}

//! `vscan scan`: files through the same scanner process as the gateway's objects.

use super::args::{Output, ScanArgs};
use super::failure::{EX_CONFIG, EX_OSERR, EX_UNAVAILABLE, Failure};
use super::table::{Colour, Screen};
use crate::config::{Config, verdict_str};
use crate::observe::wire::printable;
use crate::scanner::process::{Spec, StartError};
use crate::scanner::{Job, Scanner};
use crate::spool::Object;
use serde::Serialize;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use tokio::task::JoinSet;
use vscan_scan::report::{Report, Verdict};
use vscan_scan::wire::ObjectKind;

/// A file and what was found.
#[derive(Debug, Serialize)]
struct Scanned {
    path: String,
    #[serde(flatten)]
    report: Report,
}

/// Scans; the exit code is 0, 1 (infected) or 2 (something could not be scanned).
pub(super) fn run(
    args: &ScanArgs,
    config: &Config,
    output: Output,
    out: &mut dyn Write,
) -> Result<u8, Failure> {
    for path in &args.paths {
        path.symlink_metadata().map_err(|e| Failure::file(path, &e))?;
    }
    // one thread: the scanner's life is bound to it
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::new(EX_OSERR, e))?;
    runtime.block_on(scan(args, config, output, out))
}

async fn scan(
    args: &ScanArgs,
    config: &Config,
    output: Output,
    out: &mut dyn Write,
) -> Result<u8, Failure> {
    let rules = if args.rules.is_empty() { &config.scan.rules } else { &args.rules };
    let workers = config.scan.workers.get();
    let spec = Spec {
        program: super::check::scanner(config)?,
        rules: rules.clone(),
        rules_key: config.rules_key(),
        limits: serde_json::to_string(&config.scan.limits)
            .map_err(|e| Failure::new(EX_CONFIG, e))?,
        workers,
    };
    let (scanner, mut process) = Scanner::start_local(&spec).await.map_err(|e| match e {
        StartError::Program { .. } => Failure::new(EX_UNAVAILABLE, e),
        StartError::Refused(_) | StartError::NotReady(_) => Failure::new(EX_CONFIG, e),
    })?;
    let result = files(args, config, output, out, &scanner).await;
    drop(scanner);
    // it may have ended already, with its socket
    let _ = process.child.kill();
    let _ = process.child.wait();
    result
}

async fn files(
    args: &ScanArgs,
    config: &Config,
    output: Output,
    out: &mut dyn Write,
    scanner: &Scanner,
) -> Result<u8, Failure> {
    let mut printer = Printer::new(output, args.quiet, out);
    let mut todo: VecDeque<PathBuf> = args.paths.iter().cloned().collect();
    let mut running: JoinSet<Scanned> = JoinSet::new();
    while let Some(path) = todo.pop_front() {
        match below(&path) {
            Ok(Some(inside)) => {
                for path in inside.into_iter().rev() {
                    todo.push_front(path);
                }
                continue;
            }
            Ok(None) => {}
            Err(e) => {
                printer.print(&unread(&path, &e))?;
                continue;
            }
        }
        if !path.symlink_metadata().is_ok_and(|m| m.is_file()) && !args.paths.contains(&path) {
            // links, sockets, devices: nothing that a transfer could carry
            continue;
        }
        let object = match File::open(&path).and_then(Object::of_file) {
            Ok(object) => object,
            Err(e) => {
                printer.print(&unread(&path, &e))?;
                continue;
            }
        };
        while running.len() >= config.scan.workers.get() {
            finish(&mut running, &mut printer).await?;
        }
        let message =
            args.message || path.extension().is_some_and(|e| e.eq_ignore_ascii_case("eml"));
        let kind = if message { ObjectKind::Message } else { ObjectKind::File };
        let job = Job {
            name: path.file_name().map(|n| n.to_string_lossy().into_owned()),
            detail: output == Output::Json,
            ..Job::new(kind, object)
        };
        let (scanner, deadline) = (scanner.clone(), config.scan.deadline);
        running.spawn(async move {
            Scanned { path: shown(&path), report: scanner.scan(job, deadline).await }
        });
    }
    while !running.is_empty() {
        finish(&mut running, &mut printer).await?;
    }
    printer.end()
}

async fn finish(running: &mut JoinSet<Scanned>, printer: &mut Printer<'_>) -> Result<(), Failure> {
    match running.join_next().await {
        Some(Ok(scanned)) => printer.print(&scanned),
        Some(Err(e)) => Err(Failure::new(super::failure::EX_SOFTWARE, e)),
        None => Ok(()),
    }
}

/// What is in a directory, sorted; none for anything else. Links to directories that were found on the way are not
/// followed.
fn below(path: &Path) -> io::Result<Option<Vec<PathBuf>>> {
    if !path.symlink_metadata()?.is_dir() {
        return Ok(None);
    }
    let mut inside: Vec<PathBuf> =
        std::fs::read_dir(path)?.map(|entry| entry.map(|e| e.path())).collect::<io::Result<_>>()?;
    inside.sort();
    Ok(Some(inside))
}

fn unread(path: &Path, error: &io::Error) -> Scanned {
    Scanned { path: shown(path), report: Report::error(error.to_string()) }
}

fn shown(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Prints results as they come (JSON: at the end), and keeps count.
struct Printer<'a> {
    output: Output,
    quiet: bool,
    screen: Screen,
    out: &'a mut dyn Write,
    array: Vec<serde_json::Value>,
    infected: bool,
    unsure: bool,
}

impl<'a> Printer<'a> {
    fn new(output: Output, quiet: bool, out: &'a mut dyn Write) -> Self {
        Self {
            output,
            quiet,
            screen: Screen::of_stdout(),
            out,
            array: Vec::new(),
            infected: false,
            unsure: false,
        }
    }

    fn print(&mut self, scanned: &Scanned) -> Result<(), Failure> {
        let report = &scanned.report;
        let colour = match report.verdict {
            Verdict::Clean => Colour::Green,
            Verdict::Infected => Colour::Red,
            Verdict::Unscannable => Colour::Yellow,
            Verdict::Error => Colour::Magenta,
        };
        self.infected |= report.verdict == Verdict::Infected;
        self.unsure |= matches!(report.verdict, Verdict::Unscannable | Verdict::Error);
        if self.quiet && report.verdict == Verdict::Clean {
            return Ok(());
        }
        if self.output == Output::Json {
            self.array.push(serde_json::to_value(scanned).map_err(io::Error::from)?);
            return Ok(());
        }
        let verdict = colour.paint(verdict_str(report.verdict), self.screen);
        write!(self.out, "{}: {verdict}", printable(&scanned.path))?;
        let mut details: Vec<String> = report
            .findings
            .iter()
            .map(|f| {
                if f.path.len() > 1 {
                    format!("{} in {}", f.name, f.path.join(" > "))
                } else {
                    f.name.clone()
                }
            })
            .collect();
        details
            .extend(report.unread.iter().map(|u| format!("{}: {}", u.reason.as_str(), u.detail)));
        details.extend(report.error.clone());
        if !details.is_empty() {
            write!(self.out, " {}", printable(&details.join(", ")))?;
        }
        writeln!(self.out)?;
        Ok(self.out.flush()?)
    }

    fn end(self) -> Result<u8, Failure> {
        if self.output == Output::Json {
            super::json(&self.array, self.out)?;
        }
        Ok(if self.infected {
            1
        } else if self.unsure {
            2
        } else {
            0
        })
    }
}

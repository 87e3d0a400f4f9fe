//! `vscan rules test`: rules on files that are known to be clean.

use super::super::args::Output;
use super::super::check::{Checked, Task, Timed, check_rules};
use super::super::failure::Failure;
use super::super::scan::{self, Manner, Outcome};
use super::super::table::{Colour, Screen};
use crate::config::Config;
use crate::observe::wire::printable;
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use vscan_scan::report::Verdict;

/// Files that are named for one rule.
const EXAMPLES_MAX: usize = 5;

/// What came of it.
#[derive(Debug, Default, Serialize)]
pub(super) struct Trial {
    /// Files of the corpus.
    pub(super) files: u64,
    /// Their bytes.
    bytes: u64,
    /// What was found in them, though they are clean.
    pub(super) hits: Vec<Hits>,
    /// Those that could not be scanned.
    errors: Vec<Failed>,
    /// Those of which not all could be read.
    unscannable: u64,
}

/// One rule or signature that finds something.
#[derive(Debug, Serialize)]
pub(super) struct Hits {
    pub(super) name: String,
    engine: String,
    /// In how many files.
    pub(super) files: u64,
    /// Some of them.
    pub(super) examples: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Failed {
    path: String,
    error: String,
}

/// All that `test` tells in JSON.
#[derive(Serialize)]
struct Told<'a> {
    rules: u64,
    version: &'a str,
    #[serde(flatten)]
    trial: &'a Trial,
    /// The slowest first; the time of all files of the corpus together.
    slowest: &'a [Timed],
}

/// Tries rules; the exit code is 0, 1 (hits) or 2 (errors).
pub(super) fn run(
    config: &Config,
    rules: &[PathBuf],
    corpus: &[PathBuf],
    slowest: usize,
    output: Output,
    out: &mut dyn Write,
) -> Result<u8, Failure> {
    let rules = if rules.is_empty() { &config.scan.rules } else { rules };
    let corpus = if corpus.is_empty() { &config.scan.update.corpus } else { corpus };
    for path in corpus {
        path.metadata().map_err(|e| Failure::file(path, &e))?;
    }
    let measured = !corpus.is_empty() && slowest > 0;
    let task = if measured { Task::Measure(corpus) } else { Task::Check };
    let checked = check_rules(config, rules, task)?;
    super::refuse(&checked)?;
    let trial = on(config, rules, corpus)?;
    let slowest = &checked.times[..slowest.min(checked.times.len())];
    if output == Output::Json {
        let told = Told { rules: checked.rules, version: &checked.version, trial: &trial, slowest };
        super::super::json(&told, out)?;
    } else {
        print(&checked, &trial, slowest, out)?;
    }
    Ok(match trial {
        Trial { hits, .. } if !hits.is_empty() => 1,
        Trial { errors, .. } if !errors.is_empty() => 2,
        _ => 0,
    })
}

/// Has the rules look at the files of a corpus, in all their parts. No clamd is asked: it has rules of its own.
pub(super) fn on(config: &Config, rules: &[PathBuf], corpus: &[PathBuf]) -> Result<Trial, Failure> {
    let mut trial = Trial::default();
    if corpus.is_empty() {
        return Ok(trial);
    }
    let mut config = config.clone();
    config.scan.clamd = None;
    let mut hits: BTreeMap<(String, String), Hits> = BTreeMap::new();
    scan::with_scanner(&config, rules, async |scanner, _| {
        let manner = Manner::of(&config);
        scan::each(
            scanner,
            corpus.to_vec(),
            manner,
            |_| (),
            |outcome| {
                let Outcome::Scanned(scanned) = outcome else { return Ok(()) };
                trial.files += 1;
                trial.bytes += scanned.size.unwrap_or(0);
                let report = &scanned.report;
                trial.unscannable += u64::from(!report.unread.is_empty());
                if let Some(error) = &report.error {
                    trial.errors.push(Failed { path: scanned.path.clone(), error: error.clone() });
                }
                if report.verdict != Verdict::Infected {
                    return Ok(());
                }
                let mut names: Vec<_> =
                    report.findings.iter().map(|f| (f.name.clone(), f.engine.clone())).collect();
                names.sort();
                names.dedup();
                for (name, engine) in names {
                    let hit = hits.entry((name.clone(), engine.clone())).or_insert(Hits {
                        name,
                        engine,
                        files: 0,
                        examples: Vec::new(),
                    });
                    hit.files += 1;
                    if hit.examples.len() < EXAMPLES_MAX {
                        hit.examples.push(scanned.path.clone());
                    }
                }
                Ok(())
            },
        )
        .await
    })?;
    trial.hits = hits.into_values().collect();
    trial.hits.sort_by_key(|hit| std::cmp::Reverse(hit.files));
    for hit in &mut trial.hits {
        // They came in no order.
        hit.examples.sort();
    }
    Ok(trial)
}

fn print(
    checked: &Checked,
    trial: &Trial,
    slowest: &[Timed],
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let screen = Screen::of_stdout();
    writeln!(out, "{} rules and signatures, {}", checked.rules, checked.version)?;
    if trial.files == 0 {
        writeln!(
            out,
            "they compile; no clean files to try them on (--corpus, scan.update.corpus)"
        )?;
        return Ok(());
    }
    writeln!(
        out,
        "{} files, {}, {} of them not readable as a whole",
        trial.files,
        super::super::table::bytes(trial.bytes),
        trial.unscannable
    )?;
    for hit in &trial.hits {
        let name = Colour::Red.paint(&printable(&hit.name), screen);
        writeln!(
            out,
            "{name} ({}) finds something in {} files:",
            printable(&hit.engine),
            hit.files
        )?;
        for example in &hit.examples {
            writeln!(out, "  {}", printable(example))?;
        }
        if hit.files > hit.examples.len() as u64 {
            writeln!(out, "  ...")?;
        }
    }
    for failed in &trial.errors {
        writeln!(out, "{}: {}", printable(&failed.path), printable(&failed.error))?;
    }
    if !slowest.is_empty() {
        writeln!(out, "slowest rules, on the files as they are:")?;
    }
    for timed in slowest {
        #[expect(clippy::cast_precision_loss, reason = "microseconds below 2^53")]
        let millis = timed.micros as f64 / 1e3;
        let rules = printable(&timed.rules.join(", ")).into_owned();
        writeln!(out, "  {millis:10.3} ms in {:6} runs  {rules}", timed.runs)?;
    }
    if trial.hits.is_empty() && trial.errors.is_empty() {
        writeln!(out, "nothing is found in clean files")?;
    }
    Ok(())
}

//! Speed of the rules, for `cargo xtask bench`: each measurement is one line of JSON.
//!
//! `rate BENCH SCANNER RULES PE-DIR`. Both sides of a ratio look at the same bytes in the same run, file by file in
//! turn, by the processor time of one thread, so that what else the machine does falls on both.
//!
//! `rate units RULES [apart] elf|text|pe DIR|PATH...` is for those who work on the planner: which units run on these files,
//! and at what cost; with `apart`, which rules would.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program for the terminal")]

mod corpus;
mod hashes;
mod literals;
mod process;
mod rules;
mod units;

use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where everything is.
struct Places {
    scanner: PathBuf,
    rules: PathBuf,
    programs: PathBuf,
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["units", rules, ref paths @ ..] => units::run(Path::new(rules), paths),
        [bench, scanner, rules, programs] => {
            let path = PathBuf::from;
            let places =
                Places { scanner: path(scanner), rules: path(rules), programs: path(programs) };
            match bench {
                "literal-filter-10k" => literals::run(&places),
                "rules-6k-binaries" => rules::binaries(&places),
                "rules-6k-text" => rules::text(&places),
                "rules-6k-archive" => rules::archives(&places),
                "threads-4" => process::threads(&places),
                "large-object-4" => process::large(&places),
                "last-byte-100m" => process::last_byte(&places),
                "rss-6k" => process::memory(&places),
                "hashes-10m" => hashes::memory(&places),
                other => bail!("there is no measurement {other}"),
            }
        }
        _ => bail!("rate BENCH SCANNER RULES PE-DIR | rate units RULES [apart] PATH..."),
    }
}

/// Tells a figure, and what it is compared with.
fn tell(value: f64, baseline: Option<f64>) {
    println!("{}", serde_json::json!({ "value": value, "baseline": baseline }));
}

/// The processor time of this thread.
fn cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Megabytes in a second.
fn rate(bytes: u64, time: Duration) -> f64 {
    bytes as f64 / time.as_secs_f64() / 1e6
}

/// The rule files in a directory, in order.
fn rule_files(dir: &Path) -> Result<Vec<(PathBuf, Vec<u8>)>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "yar" || e == "yara") {
            files.push((path.clone(), std::fs::read(&path)?));
        }
    }
    files.sort();
    Ok(files)
}

//! `bench`: speed and memory of the gateway against plain forwarding.
//!
//! Two labs stand side by side, one with `vscan run` on its gateway, one that only forwards. Rounds alternate
//! between them within one run, so that whatever else the machine does falls on both; the medians are
//! compared. Clients and servers are the lab's own, because real ones would be the bottleneck.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::json;
use vscan_tests::{
    agent::{Settings, Steering, Vscan},
    ftp,
    lab::{Lab, Topology},
    load::{self, Done},
    smtp,
};

use crate::Output;

/// Rounds of each side; an odd number has a median that was measured.
const ROUNDS: usize = 7;
/// How long one round lasts.
const ROUND: Duration = Duration::from_millis(1000);
/// A round before those that count: caches, page tables, TCP's memory of the peer.
const WARM_UP: Duration = Duration::from_millis(300);

/// The port of other traffic.
const OTHER_PORT: u16 = 7000;
/// The large file: an extension that is not scanned, so its bytes are only relayed.
const LARGE: &str = "large.iso";
/// Its length.
const LARGE_BYTES: u64 = 1 << 30;
/// Idle control sessions.
const IDLE: usize = 1000;

/// What is measured, and the figure to reach.
struct Bench {
    name: &'static str,
    unit: &'static str,
    /// Units of the result for one that is counted.
    scale: f64,
    /// The ratio to reach, or the value where there is none.
    goal: f64,
    run: fn(&Side<'_>, Duration) -> Result<Done>,
}

const BENCHES: &[Bench] = &[
    Bench {
        name: "other-traffic",
        unit: "MB/s",
        scale: 1e-6,
        goal: 0.98,
        run: |side, time| load::stream(side.lab, OTHER_PORT, time),
    },
    Bench {
        name: "ftp-relay-1g",
        unit: "MB/s",
        scale: 1e-6,
        goal: 0.95,
        run: |side, _| load::download(side.lab, LARGE),
    },
    Bench {
        name: "ftp-10k-s8",
        unit: "files/s",
        scale: 1.0,
        goal: 0.5,
        run: |side, time| load::files(side.lab, 8, 10 << 10, time),
    },
    Bench {
        name: "ftp-1m-s8",
        unit: "files/s",
        scale: 1.0,
        goal: 0.25,
        run: |side, time| load::files(side.lab, 8, 1 << 20, time),
    },
    Bench {
        name: "smtp-2k-s4",
        unit: "messages/s",
        scale: 1.0,
        goal: 0.5,
        run: |side, time| load::messages(side.lab, 4, 2 << 10, time),
    },
    Bench {
        name: "smtp-100k-s4",
        unit: "messages/s",
        scale: 1.0,
        goal: 0.5,
        run: |side, time| load::messages(side.lab, 4, 100 << 10, time),
    },
];

/// The last one has no baseline: memory that plain forwarding does not take.
const IDLE_SESSION: &str = "idle-session";
/// KiB for each session.
const IDLE_GOAL: f64 = 10.0;

/// One lab with its servers.
struct Side<'lab> {
    lab: &'lab Lab,
    _ftp: ftp::Server,
    _smtp: smtp::Sink,
}

impl<'lab> Side<'lab> {
    fn new(lab: &'lab Lab) -> Result<Self> {
        load::prepare(lab)?;
        let ftp = ftp::Server::start(
            lab.server(),
            21,
            ftp::Behaviour { record: false, ..ftp::Behaviour::default() },
        )?;
        let block: Vec<u8> = vscan_tests::fixtures::random(1 << 20, 1);
        ftp.put(LARGE, ftp::File::Repeated(block.into(), LARGE_BYTES));
        for size in [10 << 10, 1 << 20] {
            load::put_files(&ftp, size);
        }
        let smtp = smtp::Sink::start(
            lab.server(),
            25,
            smtp::Behaviour { keep: false, ..smtp::Behaviour::default() },
        )?;
        Ok(Self { lab, _ftp: ftp, _smtp: smtp })
    }
}

/// Runs the benchmarks of these names, or all.
pub(crate) fn run(names: &[String], output: Output) -> Result<()> {
    let all: Vec<&str> = BENCHES.iter().map(|bench| bench.name).chain([IDLE_SESSION]).collect();
    if let Some(unknown) = names.iter().find(|name| !all.contains(&name.as_str())) {
        bail!("there is no benchmark {unknown}; there are: {}", all.join(", "));
    }
    let wanted = |name: &str| names.is_empty() || names.iter().any(|wanted| wanted == name);
    crate::demo::prepare(output)?;

    if output == Output::Text {
        println!(
            "{:<14} {:>12} {:>12} {:<11} {:>6} {:>6}",
            "bench", "vscan", "forwarding", "unit", "ratio", "goal"
        );
    }
    if BENCHES.iter().any(|bench| wanted(bench.name)) {
        let [guarded, plain] = [Lab::new(Topology::Plain)?, Lab::new(Topology::Plain)?];
        let sides = [Side::new(&guarded)?, Side::new(&plain)?];
        let _vscan = Vscan::start(&guarded, &settings())?;
        for bench in BENCHES.iter().filter(|bench| wanted(bench.name)) {
            let [value, baseline] =
                compare(bench, &sides).with_context(|| bench.name.to_owned())?;
            report(output, bench.name, bench.unit, value, Some(baseline), bench.goal);
        }
    }
    if wanted(IDLE_SESSION) {
        // An agent of its own: memory that others left behind would hide what is looked for.
        let lab = Lab::new(Topology::Plain)?;
        let _side = Side::new(&lab)?;
        let vscan = Vscan::start(&lab, &settings())?;
        let value = load::idle(&lab, vscan.processes().gateway, IDLE)?;
        report(output, IDLE_SESSION, "KiB", value, None, IDLE_GOAL);
    }
    Ok(())
}

/// The shipped rules and limits; files that need no scan are told by their extension.
fn settings() -> Settings {
    let mut settings = Settings::new(Steering::Bpf).with("scan", "skip_extensions = [\"iso\"]");
    let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    settings = settings.with("scan", &format!("workers = {cores}"));
    settings.tell = false;
    settings
}

/// The medians of both sides, in the bench's unit.
fn compare(bench: &Bench, sides: &[Side<'_>; 2]) -> Result<[f64; 2]> {
    let mut rates = [Vec::new(), Vec::new()];
    for side in sides {
        (bench.run)(side, WARM_UP)?;
    }
    for round in 0..ROUNDS {
        // Who begins alternates too.
        for turn in [round % 2, 1 - round % 2] {
            let done = (bench.run)(&sides[turn], ROUND)?;
            rates[turn].push(done.rate() * bench.scale);
        }
    }
    Ok(rates.map(median))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn report(output: Output, name: &str, unit: &str, value: f64, baseline: Option<f64>, goal: f64) {
    let ratio = baseline.map(|baseline| value / baseline);
    match output {
        Output::Json => {
            let line = json!({
                "name": name, "value": value, "unit": unit, "baseline": baseline, "ratio": ratio,
            });
            println!("{line}");
        }
        Output::Text => {
            let figure = |value: Option<f64>, digits: usize| {
                value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
            };
            let reached = ratio.map_or(value <= goal, |ratio| ratio >= goal);
            println!(
                "{name:<14} {value:>12.1} {:>12} {unit:<11} {:>6} {goal:>6} {}",
                figure(baseline, 1),
                figure(ratio, 3),
                if reached { "" } else { "(not reached)" },
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_one() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![5.0]), 5.0);
    }
}

//! `bench`: speed and memory of the gateway against plain forwarding.
//!
//! Two labs stand side by side, one with `vscan run` on its gateway, one that only forwards. Rounds alternate
//! between them within one run, so that whatever else the machine does falls on both; the medians are
//! compared.
//!
//! **What the ratios mean.** Servers are real ones: vsftpd (a process for each session, files in memory)
//! and Postfix's smtp-sink, which takes every message and keeps none, so that no queue on a disk is
//! measured. The clients are our own threads, which say one command, wait for its reply, and say the
//! next, as most real clients do; their contents differ from one object to the next. Everything
//! shares the cores of one machine: a real server elsewhere would leave more of them to the gateway.
//!
//! **What a ratio can be.** A client that waits for each reply pays for every wake-up on the way: eight for a
//! message sent straight to the server, sixteen through any proxy, eighteen where a scanner is asked. With the
//! wake-ups alike that is 0.5 and 0.44. HAProxy 2.6 in the gateway's place, which relays and reads nothing, reached
//! 0.46 to 0.49 at smtp-2k, 0.47 to 0.82 at smtp-100k, 0.10 to 0.15 at ftp-10k (data connections relayed as
//! well) and 0.33 to 0.36 at ftp-relay, on four virtual cores that had other work to do.
//!
//! The benches whose names end in `-synthetic` take the lab's own servers and, for SMTP, clients that
//! pipeline: threads of this very process that do next to nothing for an object. Forwarding is
//! as fast as the kernel there, ten times faster than any mail or file server; what counts is the gateway's own
//! figure, which says how much it can do at most. They have no goal, and run only when they are named.

mod ftp_tls;
mod hold;
mod known;
mod mailbox;
mod rules;
mod smtp_tls;

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde_json::json;
use vscan_tests::{
    agent::{Settings, Steering, Vscan},
    ftp,
    lab::{Lab, Topology},
    load::{self, Dialogue, Done},
    peers::{SmtpSink, Vsftpd},
    smtp,
};

use crate::Output;

/// Rounds of each side; an odd number has a median that was measured.
const ROUNDS: usize = 15;
/// How long one round lasts.
const ROUND: Duration = Duration::from_millis(500);
/// A round before those that count: caches, page tables, TCP's memory of the peer.
const WARM_UP: Duration = Duration::from_millis(300);

/// The port of other traffic.
const OTHER_PORT: u16 = 7000;
/// The large file: an extension that is not scanned, so its bytes are only relayed.
const LARGE: &str = "large.iso";
/// What it is uploaded as.
const LARGE_UP: &str = "large-up.iso";
/// Its length.
const LARGE_BYTES: u64 = 1 << 30;
/// Idle control sessions.
const IDLE: usize = 1000;

/// Sizes of the files that are downloaded and uploaded, in bytes.
const SMALL: usize = 10 << 10;
const MIDDLE: usize = 1 << 20;

/// Sessions at once.
const FTP_SESSIONS: usize = 8;
const SMTP_SESSIONS: usize = 4;
/// More than there are cores and scanner processes: a queue would build up here.
const MANY_SESSIONS: usize = 32;

/// What is measured, and the figure to reach.
struct Bench {
    name: &'static str,
    unit: &'static str,
    /// Units of the result for one that is counted.
    scale: f64,
    /// The ratio to reach; none: only run by name, with the lab's own servers.
    goal: Option<f64>,
    run: fn(&Lab, Duration) -> Result<Done>,
}

const FILES: &str = "files/s";
const MESSAGES: &str = "messages/s";
const MEGABYTES: &str = "MB/s";

const BENCHES: &[Bench] = &[
    Bench {
        name: "other-traffic",
        unit: MEGABYTES,
        scale: 1e-6,
        goal: Some(0.98),
        run: |lab, time| load::stream(lab, OTHER_PORT, time),
    },
    Bench {
        name: "ftp-relay-1g",
        unit: MEGABYTES,
        scale: 1e-6,
        goal: Some(0.95),
        run: |lab, _| load::download(lab, LARGE),
    },
    Bench {
        name: "ftp-relay-up-1g",
        unit: MEGABYTES,
        scale: 1e-6,
        goal: Some(0.95),
        run: |lab, _| load::upload(lab, LARGE_UP, LARGE_BYTES),
    },
    Bench {
        name: "ftp-10k-s8",
        unit: FILES,
        scale: 1.0,
        goal: Some(0.6),
        run: |lab, time| load::files(lab, FTP_SESSIONS, SMALL, time),
    },
    Bench {
        name: "ftp-1m-s8",
        unit: FILES,
        scale: 1.0,
        goal: Some(0.25),
        run: |lab, time| load::files(lab, FTP_SESSIONS, MIDDLE, time),
    },
    Bench {
        name: "smtp-2k-s4",
        unit: MESSAGES,
        scale: 1.0,
        goal: Some(0.6),
        run: |lab, time| load::messages(lab, SMTP_SESSIONS, 2 << 10, Dialogue::Lockstep, time),
    },
    Bench {
        name: "smtp-2k-s32",
        unit: MESSAGES,
        scale: 1.0,
        goal: Some(0.6),
        run: |lab, time| load::messages(lab, MANY_SESSIONS, 2 << 10, Dialogue::Lockstep, time),
    },
    Bench {
        name: "smtp-2k-connect-s4",
        unit: MESSAGES,
        scale: 1.0,
        goal: Some(0.5),
        run: |lab, time| load::messages(lab, SMTP_SESSIONS, 2 << 10, Dialogue::Connecting, time),
    },
    Bench {
        name: "smtp-100k-s4",
        unit: MESSAGES,
        scale: 1.0,
        goal: Some(0.6),
        run: |lab, time| load::messages(lab, SMTP_SESSIONS, 100 << 10, Dialogue::Lockstep, time),
    },
    Bench {
        name: "smtp-5m-s4",
        unit: MESSAGES,
        scale: 1.0,
        goal: Some(0.5),
        run: |lab, time| load::messages(lab, SMTP_SESSIONS, 5 << 20, Dialogue::Lockstep, time),
    },
    Bench {
        name: "ftp-10k-s8-synthetic",
        unit: FILES,
        scale: 1.0,
        goal: None,
        run: |lab, time| load::files(lab, FTP_SESSIONS, SMALL, time),
    },
    Bench {
        name: "ftp-1m-s8-synthetic",
        unit: FILES,
        scale: 1.0,
        goal: None,
        run: |lab, time| load::files(lab, FTP_SESSIONS, MIDDLE, time),
    },
    Bench {
        name: "smtp-2k-s4-synthetic",
        unit: MESSAGES,
        scale: 1.0,
        goal: None,
        run: |lab, time| load::messages(lab, SMTP_SESSIONS, 2 << 10, Dialogue::Pipelined, time),
    },
    Bench {
        name: "smtp-100k-s4-synthetic",
        unit: MESSAGES,
        scale: 1.0,
        goal: None,
        run: |lab, time| load::messages(lab, SMTP_SESSIONS, 100 << 10, Dialogue::Pipelined, time),
    },
];

/// The last one has no baseline: memory that plain forwarding does not take.
const IDLE_SESSION: &str = "idle-session";
/// KiB for each session.
const IDLE_GOAL: f64 = 10.0;

/// What the gateway adds to the time of a message, in the slowest hundredth.
const ADDED: &str = "smtp-2k-added-p99";
/// Milliseconds.
const ADDED_GOAL: f64 = 2.0;

/// The gateway's growth while large messages are in flight.
const IN_FLIGHT: &str = "smtp-5m-s32-memory";
/// MiB of resident memory.
const IN_FLIGHT_GOAL: f64 = 64.0;
/// How long they send.
const IN_FLIGHT_TIME: Duration = Duration::from_secs(5);
/// How often memory is looked at.
const SAMPLE: Duration = Duration::from_millis(10);

/// Those that compare nothing by rate.
const OTHERS: [&str; 3] = [ADDED, IN_FLIGHT, IDLE_SESSION];

/// The servers of one lab.
enum Servers {
    Real { _ftp: Box<Vsftpd>, _smtp: Box<SmtpSink> },
    Own { _ftp: ftp::Server, _smtp: smtp::Sink },
}

impl Servers {
    fn real(lab: &Lab) -> Result<Self> {
        load::prepare(lab)?;
        Ok(Self::Real {
            _ftp: Box::new(load::vsftpd(lab.server(), &[SMALL, MIDDLE], (LARGE, LARGE_BYTES))?),
            _smtp: Box::new(SmtpSink::start(lab.server())?),
        })
    }

    fn own(lab: &Lab) -> Result<Self> {
        load::prepare(lab)?;
        let ftp = ftp::Server::start(
            lab.server(),
            21,
            ftp::Behaviour { record: false, ..ftp::Behaviour::default() },
        )?;
        for size in [SMALL, MIDDLE] {
            load::put_files(&ftp, size);
        }
        let smtp = smtp::Sink::start(
            lab.server(),
            25,
            smtp::Behaviour { keep: false, ..smtp::Behaviour::default() },
        )?;
        Ok(Self::Own { _ftp: ftp, _smtp: smtp })
    }
}

/// Runs the benchmarks of these names, or all that have a goal.
pub(crate) fn run(names: &[String], output: Output) -> Result<()> {
    let all: Vec<&str> = BENCHES
        .iter()
        .map(|bench| bench.name)
        .chain(OTHERS)
        .chain(hold::NAMES)
        .chain(known::NAMES)
        .chain(mailbox::NAMES)
        .chain(smtp_tls::NAMES)
        .chain(rules::names())
        .chain(ftp_tls::NAMES)
        .collect();
    if let Some(unknown) = names.iter().find(|name| !all.contains(&name.as_str())) {
        bail!("there is no benchmark {unknown}; there are: {}", all.join(", "));
    }
    let named = |name: &str| names.iter().any(|wanted| wanted == name);
    let wanted = |bench: &&Bench| named(bench.name) || names.is_empty() && bench.goal.is_some();
    crate::demo::prepare(output)?;

    if output == Output::Text {
        println!(
            "{:<22} {:>12} {:>12} {:<11} {:>6} {:>6}",
            "bench", "vscan", "forwarding", "unit", "ratio", "goal"
        );
    }
    let (real, synthetic): (Vec<_>, Vec<_>) =
        BENCHES.iter().filter(wanted).partition(|bench| bench.goal.is_some());
    for (benches, serve) in
        [(real, Servers::real as fn(&Lab) -> Result<Servers>), (synthetic, Servers::own)]
    {
        if benches.is_empty() {
            continue;
        }
        let labs = [Lab::new(Topology::Plain)?, Lab::new(Topology::Plain)?];
        let _servers = [serve(&labs[0])?, serve(&labs[1])?];
        let _vscan = Vscan::start(&labs[0], &settings())?;
        for bench in benches {
            let [value, baseline] = compare(bench, &labs).context(bench.name)?;
            report(output, bench.name, bench.unit, value, Some(baseline), bench.goal);
        }
    }
    if names.is_empty() || named(ADDED) {
        added(output)?;
    }
    if names.is_empty() || named(IN_FLIGHT) {
        in_flight(output)?;
    }
    if names.is_empty() || named(IDLE_SESSION) {
        // An agent of its own: memory that others left behind would hide what is looked for.
        let lab = Lab::new(Topology::Plain)?;
        let _servers = Servers::own(&lab)?;
        let vscan = Vscan::start(&lab, &settings())?;
        let value = load::idle(&lab, vscan.processes().gateway, IDLE)?;
        report(output, IDLE_SESSION, "KiB", value, None, Some(IDLE_GOAL));
    }
    hold::run(|name| names.is_empty() || named(name), output)?;
    known::run(|name| names.is_empty() || named(name), output)?;
    mailbox::run(|name| names.is_empty() || named(name), output)?;
    smtp_tls::run(|name| names.is_empty() || named(name), output)?;
    rules::run(|name| names.is_empty() || named(name), output)?;
    ftp_tls::run(|name| names.is_empty() || named(name), output)?;
    Ok(())
}

/// How much later the slowest hundredth of the messages has its 250 than without a gateway, in milliseconds.
fn added(output: Output) -> Result<()> {
    let labs = [Lab::new(Topology::Plain)?, Lab::new(Topology::Plain)?];
    let _servers = [Servers::real(&labs[0])?, Servers::real(&labs[1])?];
    let _vscan = Vscan::start(&labs[0], &settings())?;
    let mut times = [Vec::new(), Vec::new()];
    for lab in &labs {
        load::message_times(lab, 2 << 10, WARM_UP)?;
    }
    for round in 0..ROUNDS {
        for turn in [round % 2, 1 - round % 2] {
            times[turn].extend(load::message_times(&labs[turn], 2 << 10, ROUND)?);
        }
    }
    let [value, baseline] = times.map(|mut times| {
        times.sort_by(f64::total_cmp);
        times[times.len() * 99 / 100] * 1e3
    });
    report_less(output, ADDED, "ms", value - baseline, None, ADDED_GOAL);
    Ok(())
}

/// The gateway's growth while 32 sessions send messages of 5 MiB, in MiB. What the spool holds is in memory files, which
/// do not count as resident.
fn in_flight(output: Output) -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let _servers = Servers::real(&lab)?;
    let vscan = Vscan::start(&lab, &settings())?;
    let gateway = vscan.processes().gateway;
    load::messages(&lab, 1, 2 << 10, Dialogue::Lockstep, WARM_UP)?;
    let before = load::resident(gateway)?;
    let over = AtomicBool::new(false);
    let most = std::thread::scope(|scope| -> Result<f64> {
        let watcher = scope.spawn(|| -> Result<f64> {
            let mut most = before;
            while !over.load(Ordering::Relaxed) {
                most = most.max(load::resident(gateway)?);
                std::thread::sleep(SAMPLE);
            }
            Ok(most)
        });
        let sent = load::messages(&lab, MANY_SESSIONS, 5 << 20, Dialogue::Lockstep, IN_FLIGHT_TIME);
        over.store(true, Ordering::Relaxed);
        sent?;
        watcher.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    report_less(output, IN_FLIGHT, "MiB", (most - before) / 1024.0, None, IN_FLIGHT_GOAL);
    Ok(())
}

/// The shipped rules and limits; files that need no scan are told by their extension.
fn settings() -> Settings {
    let mut settings = Settings::new(Steering::Bpf)
        .with("scan", "skip_extensions = [\"iso\"]\nverify_type = false")
        // The clients' objects come again after a while; what is measured is objects that nobody has seen.
        .with("", "[scan.cache]\nmemory = \"none\"");
    let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    settings = settings.with("scan", &format!("workers = {cores}"));
    settings.tell = false;
    settings
}

/// The medians of both sides, in the bench's unit.
fn compare(bench: &Bench, labs: &[Lab; 2]) -> Result<[f64; 2]> {
    let mut rates = [Vec::new(), Vec::new()];
    for lab in labs {
        (bench.run)(lab, WARM_UP)?;
    }
    for round in 0..ROUNDS {
        // Who begins alternates too.
        for turn in [round % 2, 1 - round % 2] {
            let done = (bench.run)(&labs[turn], ROUND)?;
            rates[turn].push(done.rate() * bench.scale);
        }
    }
    Ok(rates.map(median))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn report(
    output: Output,
    name: &str,
    unit: &str,
    value: f64,
    baseline: Option<f64>,
    goal: Option<f64>,
) {
    let ratio = baseline.map(|baseline| value / baseline);
    let missed = goal.is_some_and(|goal| ratio.map_or(value > goal, |ratio| ratio < goal));
    print(output, name, unit, [Some(value), baseline, ratio, goal], missed);
}

/// As [`report`], for what is to be as little as possible.
fn report_less(
    output: Output,
    name: &str,
    unit: &str,
    value: f64,
    baseline: Option<f64>,
    goal: f64,
) {
    let ratio = baseline.map(|baseline| value / baseline);
    let missed = ratio.unwrap_or(value) > goal;
    print(output, name, unit, [Some(value), baseline, ratio, Some(goal)], missed);
}

fn print(output: Output, name: &str, unit: &str, figures: [Option<f64>; 4], missed: bool) {
    let [value, baseline, ratio, goal] = figures;
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
            let digits = if value.is_some_and(|value| value < 10.0) { 3 } else { 1 };
            println!(
                "{name:<22} {:>12} {:>12} {unit:<11} {:>6} {:>6} {}",
                figure(value, digits),
                figure(baseline, digits),
                figure(ratio, 3),
                goal.map_or_else(|| "-".to_owned(), |goal| goal.to_string()),
                if missed { "(not reached)" } else { "" },
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

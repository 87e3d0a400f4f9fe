//! `vscan status`

use super::args::Output;
use super::failure::{EX_UNAVAILABLE, Failure};
use super::table::{Colour, Screen, age, bytes};
use crate::observe::control::{Answer, Request, Status};
use crate::observe::wire::printable;
use crate::observe::{BlindPeer, BlindSpots, Unread};
use crate::scanner::CacheStatus;
use std::io::{self, Write};
use std::path::Path;

pub(super) fn run(control: &Path, output: Output, out: &mut dyn Write) -> Result<(), Failure> {
    match super::client::ask_once(control, &Request::Status)? {
        Answer::Status(status) => Ok(print(&status, output, Screen::of_stdout(), out)?),
        other => Err(Failure::new(
            EX_UNAVAILABLE,
            format!("an answer that was not asked for: {other:?}"),
        )),
    }
}

fn print(status: &Status, output: Output, screen: Screen, out: &mut dyn Write) -> io::Result<()> {
    if output == Output::Json {
        return super::json(status, out);
    }
    let state = match (status.draining, status.steering.is_empty(), status.scanner.workers) {
        (true, _, _) => Colour::Yellow.paint("stopping, sessions come to their end", screen),
        (false, true, _) => Colour::Yellow.paint("starting, nothing is intercepted yet", screen),
        (false, false, 0) => Colour::Red.paint("no scanner: objects wait and are refused", screen),
        (false, false, _) => Colour::Green.paint("running", screen),
    };
    let heartbeat = match status.heartbeat_age {
        // the kernel gives the gateway up after 2.5 s
        Some(seconds) if seconds > 2.5 => {
            Colour::Red.paint(&format!("last {} ago", age(seconds)), screen)
        }
        Some(seconds) => format!("last {} ago", age(seconds)),
        None => "none yet".to_owned(),
    };
    let objects = status.objects;
    let infected = format!("{} infected", objects.infected);
    let infected =
        if objects.infected > 0 { Colour::Red.paint(&infected, screen) } else { infected };
    let lost = match status.events_lost {
        0 => "none lost".to_owned(),
        n => Colour::Red.paint(&format!("{n} lost"), screen),
    };
    let notices = format!("{} waiting", status.notices.waiting);
    let notices = match status.notices.dead {
        0 => notices,
        n => Colour::Red.paint(&format!("{notices}, {n} given up: see `vscan notices`"), screen),
    };
    let scanner = &status.scanner;
    let lines = [
        ("vscan", format!("{}, pid {}, up {}", status.version, status.pid, age(status.uptime))),
        ("state", state),
        ("configuration", printable(&status.config.display().to_string()).into_owned()),
        ("steering", status.steering.clone()),
        ("interfaces", status.interfaces.join(", ")),
        ("heartbeat", heartbeat),
        (
            "sessions",
            format!(
                "{} open of {}, {} since the start",
                status.sessions, status.sessions_max, status.sessions_total
            ),
        ),
        (
            "objects",
            format!(
                "{} clean, {infected}, {} unscannable, {} errors",
                objects.clean, objects.unscannable, objects.error
            ),
        ),
        ("uninspected", uninspected(status)),
        (
            "scanner",
            format!(
                "{} workers, {} busy, {} crashes, {} killed",
                scanner.workers, scanner.busy, scanner.crashes, scanner.kills
            ),
        ),
        ("cache", cached(&scanner.cache)),
        ("rules", rules(status, screen)),
        ("clamd", scanner.clamd.as_ref().map_or_else(String::new, |c| clamd(c, screen))),
        (
            "spool",
            format!(
                "{} in memory, {} on disk",
                bytes(status.spool_memory),
                bytes(status.spool_disk)
            ),
        ),
        (
            "quarantine",
            format!("{} objects, {}", status.quarantine.objects, bytes(status.quarantine.bytes)),
        ),
        ("notices", notices),
        ("events", lost),
    ];
    for (name, value) in lines {
        let value = if value.is_empty() { "-" } else { &value };
        writeln!(out, "{}  {value}", Colour::Dim.paint(&format!("{name:>13}"), screen))?;
        if name == "uninspected" {
            for line in blind_spots(&status.blind) {
                writeln!(out, "{:>13}  {line}", "")?;
            }
        }
    }
    Ok(())
}

/// Which share of what came by was not read, by protocol and direction, and the peers that it is most of.
fn blind_spots(blind: &BlindSpots) -> Vec<String> {
    let mut lines = Vec::new();
    for spot in blind.spots.iter().filter(|spot| !spot.unread.is_empty()) {
        let flows: u64 = spot.unread.iter().map(|unread| unread.flows).sum();
        let unread: u64 = spot.unread.iter().map(|unread| unread.bytes).sum();
        let reasons: Vec<String> = spot.unread.iter().map(of_reason).collect();
        lines.push(format!(
            "{} {}: {flows} of {} flows ({}), {} of {} ({}): {}",
            spot.protocol,
            spot.direction,
            spot.flows,
            share(flows, spot.flows),
            bytes(unread),
            bytes(spot.bytes),
            share(unread, spot.bytes),
            reasons.join(", "),
        ));
    }
    if !blind.peers.is_empty() {
        lines.push("most of it:".to_owned());
    }
    for peer in &blind.peers {
        let BlindPeer { peer, protocol, reason, count, bytes: size } = *peer;
        lines.push(format!("  {peer}  {protocol} {}  {count}x  {}", reason.as_str(), bytes(size)));
    }
    lines
}

fn of_reason(unread: &Unread) -> String {
    let count = match (unread.flows, unread.objects) {
        (0, 0) => String::new(),
        (flows, 0) => format!("{flows} flows, "),
        (_, objects) => format!("{objects} objects, "),
    };
    format!("{} ({count}{})", unread.reason.as_str(), bytes(unread.bytes))
}

/// A share in percent. A hundredth of a percent that is there is not rounded to nothing.
#[expect(clippy::cast_precision_loss, reason = "shown with two digits")]
fn share(part: u64, whole: u64) -> String {
    if part == 0 || whole == 0 {
        return "0 %".to_owned();
    }
    let percent = part as f64 / whole as f64 * 100.0;
    if percent < 0.01 { "< 0.01 %".to_owned() } else { format!("{percent:.2} %") }
}

/// What did not have to be scanned.
fn cached(cache: &CacheStatus) -> String {
    format!(
        "{} of {} objects, {} of {} parts known before; {} reports, {}",
        cache.hits,
        cache.hits + cache.misses,
        cache.part_hits,
        cache.part_hits + cache.part_misses,
        cache.reports,
        bytes(cache.bytes)
    )
}

fn rules(status: &Status, screen: Screen) -> String {
    let scanner = &status.scanner;
    let text = format!("{} ({})", scanner.rule_count, printable(&scanner.rules));
    #[expect(clippy::cast_precision_loss, reason = "seconds below 2^53")]
    match scanner.rules_age.map(|seconds| age(seconds as f64)) {
        Some(age) if status.rules_too_old => {
            let warning = format!("{age} old: `vscan rules update` renews them");
            format!("{text}, {}", Colour::Red.paint(&warning, screen))
        }
        Some(age) => format!("{text}, {age} old"),
        None => text,
    }
}

fn clamd(clamd: &crate::clamd::Status, screen: Screen) -> String {
    let version = match clamd.version.as_str() {
        "" => "of a version that it did not tell yet",
        version => version,
    };
    let text = printable(&format!(
        "{version} at {}, {} objects, {} failures",
        clamd.address, clamd.requests, clamd.failures
    ))
    .into_owned();
    match &clamd.error {
        None => text,
        Some(error) => {
            let error = format!("it {}: objects are refused", printable(error));
            format!("{text}; {}", Colour::Red.paint(&error, screen))
        }
    }
}

/// How many flows passed uninspected, and why.
fn uninspected(status: &Status) -> String {
    let reasons: Vec<_> =
        status.uninspected.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    let reasons = if reasons.is_empty() {
        String::new()
    } else {
        printable(&format!(" ({})", reasons.join(", "))).into_owned()
    };
    format!("{} flows{reasons}", status.uninspected_total)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Direction, Protocol};
    use crate::observe::control::Objects;
    use crate::observe::{Blind, Spot};
    use crate::scanner;

    #[test]
    fn says_what_is_wrong_first() {
        let status = Status {
            version: "0.1.0".to_owned(),
            pid: 7,
            uptime: 3700.0,
            steering: "bpf (tcx)".to_owned(),
            sessions_max: 8192,
            heartbeat_age: Some(4.0),
            objects: Objects { clean: 3, infected: 1, unscannable: 0, error: 0 },
            uninspected_total: 3,
            uninspected: [("exempt".to_owned(), 1), ("tls".to_owned(), 2)].into(),
            scanner: scanner::Status::default(),
            ..Status::default()
        };
        let mut out = Vec::new();
        print(&status, Output::Table, Screen { colour: false, width: None }, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.starts_with("        vscan  0.1.0, pid 7, up 1h01m\n"), "{text}");
        assert!(text.contains("        state  no scanner"), "{text}");
        assert!(text.contains("  uninspected  3 flows (1 exempt, 2 tls)\n"), "{text}");
        assert!(text.contains("    heartbeat  last 4.0s ago\n"), "{text}");
        assert!(
            text.contains("      objects  3 clean, 1 infected, 0 unscannable, 0 errors\n"),
            "{text}"
        );
    }
    #[test]
    fn blind_spots_say_their_share_and_their_peers() {
        let unread = |reason, flows, objects, bytes| Unread { reason, flows, objects, bytes };
        let blind = BlindSpots {
            spots: vec![
                Spot {
                    protocol: Protocol::Ftp,
                    direction: Direction::Outbound,
                    flows: 8,
                    bytes: 4 << 20,
                    unread: vec![
                        unread(Blind::Tls, 2, 0, 1 << 20),
                        unread(Blind::ExcludedType, 0, 3, 1 << 20),
                    ],
                },
                Spot {
                    protocol: Protocol::Smtp,
                    direction: Direction::Inbound,
                    flows: 5,
                    bytes: 100,
                    unread: Vec::new(),
                },
            ],
            peers: vec![BlindPeer {
                peer: "192.0.2.1".parse().unwrap(),
                protocol: Protocol::Ftp,
                reason: Blind::Tls,
                count: 2,
                bytes: 1 << 20,
            }],
        };
        assert_eq!(
            blind_spots(&blind),
            [
                "ftp outbound: 2 of 8 flows (25.00 %), 2.0M of 4.0M (50.00 %): \
                 tls (2 flows, 1.0M), excluded_type (3 objects, 1.0M)",
                "most of it:",
                "  192.0.2.1  ftp tls  2x  1.0M",
            ]
        );
        assert_eq!(share(1, 1 << 40), "< 0.01 %");
    }
}

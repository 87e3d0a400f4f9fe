//! Mail over TLS that is opened: messages with a connection of their own each, and handshakes by themselves.
//!
//! The messages go through the gateway, and directly between the same two parties. The handshakes are counted by the
//! processor time that the process between takes, vscan's or HAProxy's: both open TLS on both legs, with certificates of
//! the same kind (P-256), without resumption. The server lies outside: vscan shows a certificate that it made, and verifies
//! the server's, which HAProxy here does not.

use std::time::Duration;

use anyhow::{Context, Result};
use vscan_tests::{
    agent::{Settings, Steering, Vscan},
    lab::{Family, Lab, Topology},
    load, load_tls,
    smtps::Pki,
};

use crate::Output;

/// Messages of 2 KiB over STARTTLS on both legs.
const MESSAGES: &str = "smtp-tls-2k-s4";
const MESSAGES_GOAL: f64 = 0.4;

/// Connections that open TLS on both legs.
const HANDSHAKES: &str = "tls-handshakes";
const HANDSHAKES_GOAL: f64 = 0.9;

/// Memory of a session that does nothing, with TLS on both legs; the plain one's is measured beside it.
const IDLE: &str = "idle-tls-session";

pub(super) const NAMES: [&str; 3] = [MESSAGES, HANDSHAKES, IDLE];

/// How long one round of handshakes lasts: processor time is counted in hundredths.
const ROUND: Duration = Duration::from_secs(2);
const ROUNDS: usize = 5;

/// Runs those that are wanted.
pub(super) fn run(wanted: impl Fn(&str) -> bool, output: Output) -> Result<()> {
    if !NAMES.iter().any(|name| wanted(name)) {
        return Ok(());
    }
    let labs = [Lab::new(Topology::Plain)?, Lab::new(Topology::Plain)?];
    let pkis = [Pki::new(&labs[0])?, Pki::new(&labs[1])?];
    for (lab, pki) in labs.iter().zip(&pkis) {
        load::prepare(lab)?;
        load_tls::serve(lab.server(), pki)?;
    }
    let mut settings = Settings::new(Steering::Bpf)
        .with("smtp", "tls_ports = [465]\nstarttls = \"terminate\"")
        .with("", "[scan.cache]\nmemory = \"none\"\n")
        .with("", &pkis[0].outbound(""));
    settings.tell = false;
    if wanted(IDLE) {
        // An agent of its own: memory that others left behind would hide what is looked for.
        let vscan = Vscan::start(&labs[0], &settings)?;
        let gateway = vscan.processes().gateway;
        let value = load_tls::idle(&labs[0], &pkis[0], gateway, super::IDLE)?;
        super::report(output, IDLE, "KiB", value, None, None);
    }
    if !(wanted(MESSAGES) || wanted(HANDSHAKES)) {
        return Ok(());
    }
    let vscan = Vscan::start(&labs[0], &settings)?;
    if wanted(MESSAGES) {
        let run = |turn: usize, time| {
            load_tls::messages(&labs[turn], &pkis[turn], super::SMTP_SESSIONS, 2 << 10, time)
                .context(MESSAGES)
        };
        let mut rates = [Vec::new(), Vec::new()];
        for turn in [0, 1] {
            run(turn, super::WARM_UP)?;
        }
        for round in 0..super::ROUNDS {
            for turn in [round % 2, 1 - round % 2] {
                rates[turn].push(run(turn, super::ROUND)?.rate());
            }
        }
        let [value, baseline] = rates.map(super::median);
        let goal = Some(MESSAGES_GOAL);
        super::report(output, MESSAGES, super::MESSAGES, value, Some(baseline), goal);
    }
    if wanted(HANDSHAKES) {
        let haproxy = load_tls::haproxy(&labs[1], &pkis[1])?;
        let pids = [vscan.processes().gateway, haproxy.pid()];
        // vscan stands on the way to the server, HAProxy is dialled.
        let addresses = [
            labs[0].dial(Family::V4, load_tls::IMPLICIT),
            ([10, 1, 0, 1], load_tls::IMPLICIT).into(),
        ];
        let run = |turn: usize, time| {
            load_tls::handshakes(
                &labs[turn],
                &pkis[turn],
                addresses[turn],
                pids[turn],
                super::SMTP_SESSIONS,
                time,
            )
            .context(HANDSHAKES)
        };
        let mut rates = [Vec::new(), Vec::new()];
        for turn in [0, 1] {
            run(turn, super::WARM_UP)?;
        }
        for round in 0..ROUNDS {
            for turn in [round % 2, 1 - round % 2] {
                rates[turn].push(run(turn, ROUND)?.rate());
            }
        }
        let [value, baseline] = rates.map(super::median);
        let goal = Some(HANDSHAKES_GOAL);
        super::report(output, HANDSHAKES, "handshakes", value, Some(baseline), goal);
    }
    Ok(())
}

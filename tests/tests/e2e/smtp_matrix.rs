//! Real mail servers × real clients × families × topologies.

use anyhow::{Result, bail, ensure};
use vscan_tests::agent::{Settings, Steering, Vscan};
use vscan_tests::lab::Family;
use vscan_tests::lab::{Lab, Topology};
use vscan_tests::raw::Peer;
use vscan_tests::smtp_matrix::{EXTENSIONS, Relays, Running, SERVERS, Servers, TOPOLOGIES, cells};

#[test]
fn plain() -> Result<()> {
    matrix(Topology::Plain, Steering::Bpf)
}

#[test]
fn masquerade() -> Result<()> {
    matrix(Topology::Masquerade, Steering::Nft)
}

#[test]
fn port_forward() -> Result<()> {
    matrix(Topology::Forward, Steering::Bpf)
}

/// All servers in one lab, side by side; to each come all clients, one after the other.
fn matrix(topology: Topology, steering: Steering) -> Result<()> {
    ensure!(TOPOLOGIES.contains(&topology), "the README does not know of {topology:?}");
    let lab = Lab::new(topology)?;
    let ports = SERVERS.map(|server| server.port().to_string()).join(", ");
    let settings = Settings::new(steering).with("smtp", &format!("ports = [{ports}]"));
    let vscan = Vscan::start(&lab, &settings)?;
    let relays = Relays::start(&lab)?;
    let failed: Vec<String> = std::thread::scope(|scope| {
        let (lab, relays) = (&lab, &relays);
        let threads = SERVERS.map(|server| scope.spawn(move || column(lab, relays, server)));
        threads
            .into_iter()
            .flat_map(|thread| {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
            .collect()
    });
    if !failed.is_empty() {
        bail!("{topology:?}: {} cells failed\n{}", failed.len(), failed.join("\n"));
    }
    let metrics = vscan.metrics()?;
    let count = |verdict| metrics.sum("vscan_objects_total", &[("verdict", verdict)]);
    let all = SERVERS.into_iter().flat_map(cells).count();
    ensure!(count("clean") == 2.0 * all as f64, "{} clean mails", count("clean"));
    ensure!(count("infected") == all as f64, "{} infected mails", count("infected"));
    Ok(())
}

/// What went wrong with one server.
fn column(lab: &Lab, relays: &Relays<'_>, kind: Servers) -> Vec<String> {
    let server = match kind.start(lab) {
        Ok(server) => server,
        Err(error) => return vec![format!("{}: {error:#}", kind.name())],
    };
    let mut failed: Vec<String> = cells(kind)
        .filter_map(|cell| {
            let error = cell.run(lab, relays, &server).err()?;
            Some(format!("{}: {error:#}", cell.name()))
        })
        .collect();
    failed.extend(not_offered(lab, kind).err().map(|error| format!("{}: {error:#}", kind.name())));
    failed.extend(unused(kind, &server));
    failed
}

/// The server's extensions are what the README says, and they come through.
fn not_offered(lab: &Lab, kind: Servers) -> Result<()> {
    let mut peer = Peer::connect(lab.client(), lab.dial(Family::V4, kind.port()))?;
    peer.expect("220")?;
    let reply = peer.ask("EHLO client.example", "250")?;
    let offered = |name: &&&str| {
        reply.lines().any(|line| line.get(4..).and_then(|l| l.split(' ').next()) == Some(**name))
    };
    let offers: Vec<_> = EXTENSIONS.iter().filter(offered).copied().collect();
    ensure!(offers == kind.offers(), "offers {offers:?}");
    Ok(())
}

/// Extensions that a server's own log does not show to have been used, where it would.
fn unused(kind: Servers, server: &Running) -> Vec<String> {
    let marks: &[&str] = match kind {
        // BDAT by Exim as relay.
        Servers::Postfix => &["bdat=1"],
        Servers::Exim => {
            &["P=utf8esmtp", "A=login:alice", "A=plain:alice", "A=cram:alice", "M8S=", " K S="]
        }
        Servers::OpenSmtpd => &["NOTIFY=FAILURE", "BODY=8BITMIME", "SIZE="],
        Servers::Aiosmtpd => &["AUTH", "SMTPUTF8"],
    };
    let log = server.log();
    marks
        .iter()
        .filter(|mark| !log.contains(**mark))
        .map(|mark| format!("{}: no {mark} in its log:\n{log}", kind.name()))
        .collect()
}

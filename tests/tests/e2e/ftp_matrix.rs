//! Real FTP servers × real clients × data modes × families × topologies.

use anyhow::{Context, Result, bail, ensure};
use std::collections::HashMap;
use std::time::Duration;
use vscan_tests::agent::{Settings, Steering, Vscan};
use vscan_tests::ftp::Mode;
use vscan_tests::ftp_matrix::{SERVERS, Servers, TOPOLOGIES, cells};
use vscan_tests::lab::{Lab, Topology};
use vscan_tests::wait;

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
    let settings = Settings::new(steering).with("ftp", &format!("ports = [{ports}]"));
    let vscan = Vscan::start(&lab, &settings)?;
    let failed: Vec<String> = std::thread::scope(|scope| {
        let lab = &lab;
        let threads = SERVERS.map(|server| scope.spawn(move || column(lab, server)));
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
    // The event of a transfer is written beside it, a little later.
    let mut last = Ok(());
    let complete = wait::until_true("events are missing", Duration::from_secs(10), || {
        last = ran_as_it_says(&vscan);
        last.is_ok()
    });
    last.and(complete)
}

/// What went wrong with one server.
fn column(lab: &Lab, kind: Servers) -> Vec<String> {
    let server = match kind.start(lab) {
        Ok(server) => server,
        Err(error) => return vec![format!("{}: {error:#}", kind.name())],
    };
    cells()
        .filter_map(|cell| {
            let error = cell.run(lab, kind, &server).err()?;
            Some(format!("{} {}: {error:#}", kind.name(), cell.name()))
        })
        .collect()
}

/// Each client has really asked in the way that its cell says, and each file was judged.
fn ran_as_it_says(vscan: &Vscan<'_>) -> Result<()> {
    let mut asked: HashMap<String, Vec<(String, String, u64)>> = HashMap::new();
    for event in vscan.events()? {
        if event["event_type"] == "ftp" && event["ftp"]["inspected"] == true {
            let field = |name: &str| event["ftp"][name].as_str().unwrap_or_default().to_owned();
            let port = event["dest_port"].as_u64().unwrap_or_default();
            let name = field("name").trim_start_matches('/').to_owned();
            asked.entry(name).or_default().push((field("data"), field("outcome"), port));
        }
    }
    for cell in cells() {
        let mode = match cell.mode {
            Mode::Pasv => "PASV",
            Mode::Epsv => "EPSV",
            Mode::Port => "PORT",
            Mode::Eprt => "EPRT",
        };
        let mut wanted = vec![("good", "delivered"), ("bad", "blocked")];
        if cell.client.uploads() {
            wanted.extend([("up", "delivered"), ("up-bad", "blocked")]);
        }
        for (file, outcome) in wanted {
            let name = format!("{file}-{}", cell.name());
            let found = asked.get(&name).with_context(|| format!("nobody asked for {name}"))?;
            for server in SERVERS {
                let one = (mode.to_owned(), outcome.to_owned(), u64::from(server.port()));
                let count = found.iter().filter(|seen| **seen == one).count();
                ensure!(count == 1, "{} {name}: wanted {one:?}, found {found:?}", server.name());
            }
        }
    }
    Ok(())
}

//! Supervisor, gateway and scanner: separate, with the rights they need and no others; killable without loss;
//! gone without a trace.

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use std::collections::BTreeSet;
use std::time::Duration;
use vscan_tests::agent::{self, Settings, Steering, Vscan, status_field};
use vscan_tests::ftp::{Behaviour, Client, Mode, Server};
use vscan_tests::host::signal;
use vscan_tests::lab::{Family, Lab, Topology};
use vscan_tests::raw::{End, Peer};
use vscan_tests::smtp::{self, Sink, wire};
use vscan_tests::{fixtures, on_both, wait};

on_both!(
    capabilities,
    scanner_processes_may_die_at_work,
    a_clean_stop_leaves_nothing,
    a_stop_drains,
    cleanup_after_a_kill,
    two_agents_in_two_namespaces,
);

/// Bits of capability sets (linux/capability.h).
const NAMES: &[(u32, &str)] = &[
    (8, "setpcap"),
    (10, "net_bind_service"),
    (12, "net_admin"),
    (13, "net_raw"),
    (38, "perfmon"),
    (39, "bpf"),
];

fn set(pid: u32, field: &str) -> Result<BTreeSet<String>> {
    let bits = u64::from_str_radix(&status_field(pid, field)?, 16)?;
    Ok((0..64)
        .filter(|bit| bits & (1 << bit) != 0)
        .map(|bit| {
            let known = NAMES.iter().find(|(number, _)| *number == bit);
            known.map_or_else(|| format!("capability {bit}"), |(_, name)| (*name).to_owned())
        })
        .collect())
}

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// What the kernel says that they may do, against what the design says.
fn capabilities(steering: Steering) -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let vscan = Vscan::start(&lab, &Settings::new(steering))?;
    let all = vscan.processes();
    ensure!(all.gateway != 0 && all.scanner != 0 && all.workers.len() == 2, "{all:?}");

    assert_eq!(set(all.supervisor, "CapEff")?, names(&["net_admin", "bpf", "perfmon"]));
    // The gateway's two to hand on, and what it takes to empty a child's bounding set.
    let kept = ["net_admin", "bpf", "perfmon", "net_raw", "net_bind_service", "setpcap"];
    let has = set(all.supervisor, "CapPrm")?;
    ensure!(has.is_subset(&names(&kept)), "supervisor CapPrm: {has:?}");

    let gateway = names(&["net_raw", "net_bind_service"]);
    for field in ["CapPrm", "CapEff", "CapBnd"] {
        let has = set(all.gateway, field)?;
        ensure!(has.is_subset(&gateway), "gateway {field}: {has:?}");
    }
    assert_eq!(set(all.gateway, "CapEff")?, gateway);
    for pid in all.workers.iter().chain([&all.scanner]) {
        for field in ["CapPrm", "CapEff", "CapInh", "CapAmb", "CapBnd"] {
            let has = set(*pid, field)?;
            ensure!(has.is_empty(), "scanner process {pid} {field}: {has:?}");
        }
        assert_eq!(status_field(*pid, "NoNewPrivs")?, "1");
    }
    for pid in &all.workers {
        assert_eq!(status_field(*pid, "Seccomp")?, "2", "a worker runs under a filter");
        let files = std::fs::read_dir(format!("/proc/{pid}/fd"))?.count();
        ensure!(files <= 6, "a worker holds {files} descriptors");
    }
    Ok(())
}

/// CPU time of a process in clock ticks (10 ms); proc(5), fields 14 and 15 of `stat`.
fn cpu_ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default().split(' ');
    fields.skip(12).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum()
}

/// The worker at work, then the zygote, are killed in mid-scan: the transfer ends well, the verdicts are right.
fn scanner_processes_may_die_at_work(steering: Steering) -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let server = Server::start(lab.server(), 21, Behaviour::default())?;
    // A rule that looks at every byte by itself: slow enough that a scan can be hit.
    let rules = lab.dir().join("slow");
    std::fs::create_dir(&rules)?;
    let slow = "rule slow { condition: filesize > 1000000 and for any i in (0..filesize - 1) : ( uint8(i) == 300 ) }";
    std::fs::write(rules.join("slow.yar"), slow)?;
    let shipped = agent::repository().join("deploy/rules");
    let line = format!("rules = [\"{}\", \"{}\"]", shipped.display(), rules.display());
    let settings = Settings::new(steering).with("scan", &line);
    let vscan = Vscan::start(&lab, &settings)?;
    for (seed, victim) in [(1, "worker"), (2, "zygote")] {
        // Another content each time: what was scanned once is known.
        let large = fixtures::random(24_000_000, seed);
        let before = vscan.processes();
        let hit = std::thread::scope(|scope| {
            let upload = scope.spawn(|| -> Result<String> {
                let to = lab.dial(Family::V4, 21);
                let mut client = Client::connect(lab.client(), to, Mode::Epsv)?;
                Ok(client.upload("large", &large)?.reply)
            });
            let ticks = |pid: &u32| (*pid, cpu_ticks(*pid));
            let idle: Vec<_> = before.workers.iter().map(ticks).collect();
            let hit = wait::until("no worker was busy", Duration::from_secs(20), || {
                let busy = idle.iter().find(|(pid, ticks)| cpu_ticks(*pid) > *ticks);
                let hit =
                    busy.map(|(pid, _)| if victim == "worker" { *pid } else { before.scanner });
                hit.iter().for_each(|pid| signal(*pid, Signal::KILL));
                Ok(hit)
            });
            let reply = upload.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            ensure!(reply == "226 stored\r\n", "{victim} killed: {reply}");
            hit
        });
        let hit = hit?;
        ensure!(server.file("large").is_some_and(|file| file == large), "{victim}");
        server.remove("large");
        let old = match victim {
            "worker" => vec![hit],
            _ => [&before.workers[..], &[before.scanner]].concat(),
        };
        let after = vscan.wait_for_processes(&old).with_context(|| victim)?;
        assert_eq!(after.gateway, before.gateway, "{victim}");
        let mut client = Client::connect(lab.client(), lab.dial(Family::V4, 21), Mode::Epsv)?;
        let reply = client.upload("bad", &fixtures::eicar())?.reply;
        ensure!(reply.contains("blocked by vscan"), "{victim}: {reply}");
    }
    ensure!(vscan.metrics()?.sum("vscan_scanner_restarts_total", &[]) >= 1.0);
    Ok(())
}

fn a_clean_stop_leaves_nothing(steering: Steering) -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let before = agent::leftovers(&lab.gateway)?;
    ensure!(before.is_empty(), "the lab is not clean: {before:?}");
    let vscan = Vscan::start(&lab, &Settings::new(steering))?;
    ensure!(!agent::leftovers(&lab.gateway)?.is_empty(), "nothing was installed?");
    let log = vscan.log();
    ensure!(log.contains("ready"), "no log line says that it is ready: {log}");
    let (status, left) = vscan.stop()?;
    ensure!(status.success(), "{status}");
    ensure!(left.is_empty(), "left behind: {left:?}");
    Ok(())
}

/// SIGTERM: a mail in transmission is finished, an idle session is ended, then the agent ends.
fn a_stop_drains(steering: Steering) -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let sink = Sink::start(lab.server(), 25, smtp::Behaviour::default())?;
    let settings = Settings::new(steering);
    let vscan = Vscan::start(&lab, &settings)?;
    let mut client = smtp::Client::connect(lab.client(), lab.dial(Family::V4, 25))?;
    let mut idle = Peer::connect(lab.client(), lab.dial(Family::V6, 25))?;
    idle.expect("220")?;
    let peer = client.peer();
    peer.ask("MAIL FROM:<a@client.example>", "250")?;
    peer.ask("RCPT TO:<b@server.example>", "250")?;
    peer.ask("DATA", "354")?;
    let mail = wire(&fixtures::message("drained", "text"));
    let (first, second) = mail.split_at(40);
    peer.send(first)?;
    vscan.process().signal(Signal::TERM);
    wait::until_true("the stop was not heard", Duration::from_secs(2), || {
        ["drain", "stop"].iter().any(|word| vscan.log().to_lowercase().contains(word))
    })
    .with_context(|| vscan.log())?;
    peer.send(second)?;
    peer.expect("250")?;
    let status = vscan.process().wait(Duration::from_secs(10))?;
    ensure!(status.success(), "{status}");
    assert_eq!(sink.messages(), [mail]);
    let left = agent::leftovers(&lab.gateway)?;
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}

fn cleanup_after_a_kill(steering: Steering) -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let settings = Settings::new(steering);
    let vscan = Vscan::start(&lab, &settings)?;
    let config = vscan.config().to_owned();
    agent::kill(vscan.processes().supervisor)?;
    wait::until_true("processes stay", Duration::from_secs(2), || {
        vscan.processes().gateway == 0 && vscan.processes().scanner == 0
    })?;
    ensure!(!agent::leftovers(&lab.gateway)?.is_empty(), "closed means that the rules stay");
    let output = vscan.cli(&["cleanup"])?;
    ensure!(output.success(), "{output:?}");
    let left = agent::leftovers(&lab.gateway)?;
    ensure!(left.is_empty(), "{left:?}");
    // Nothing to clean is no error; and a new agent starts from there, as after a kill.
    ensure!(vscan.cli(&["cleanup"])?.success());
    drop(vscan);
    let again = Vscan::start_with(&lab, &settings, config.clone())?;
    agent::kill(again.processes().supervisor)?;
    drop(again);
    let third = Vscan::start_with(&lab, &settings, config)?;
    let (status, left) = third.stop()?;
    ensure!(status.success() && left.is_empty(), "{status} {left:?}");
    Ok(())
}

fn two_agents_in_two_namespaces(steering: Steering) -> Result<()> {
    let labs = [Lab::new(Topology::Plain)?, Lab::new(Topology::Plain)?];
    let servers = [
        Server::start(labs[0].server(), 21, Behaviour::default())?,
        Server::start(labs[1].server(), 21, Behaviour::default())?,
    ];
    let first = Vscan::start(&labs[0], &Settings::new(steering))?;
    let second = Vscan::start(&labs[1], &Settings::new(steering))?;
    let upload = |lab: &Lab, content: &[u8]| -> Result<String> {
        let mut client = Client::connect(lab.client(), lab.dial(Family::V4, 21), Mode::Epsv)?;
        Ok(client.upload("file", content)?.reply)
    };
    ensure!(upload(&labs[0], b"one")?.starts_with("226"));
    let (status, left) = first.stop()?;
    ensure!(status.success() && left.is_empty(), "{left:?}");
    ensure!(upload(&labs[1], b"two")?.starts_with("226"));
    ensure!(upload(&labs[1], &fixtures::eicar())?.starts_with("550"));
    assert_eq!(second.flows()?.len(), 2);
    assert_eq!(servers[1].file("file").as_deref(), Some(&b"two"[..]));
    let mut direct = Client::connect(labs[0].client(), labs[0].dial(Family::V4, 21), Mode::Epsv)?;
    ensure!(direct.upload("bad", &fixtures::eicar())?.reply.starts_with("226"), "nobody is there");
    ensure!(direct.download("RETR bad")?.data.is_some_and(|(_, end)| end == End::Fin));
    Ok(())
}

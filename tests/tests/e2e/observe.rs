//! What an operator sees and does: flows, events, metrics, reload, quarantine, doctor and the rest.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;
use vscan_tests::agent::{self, Settings, Steering, Vscan};
use vscan_tests::ftp::{Behaviour, Client, Mode, Server};
use vscan_tests::lab::{FAMILIES, Family, Lab, STRICT, Topology, inside_second};
use vscan_tests::raw::{End, Peer};
use vscan_tests::smtp::{self, Sink, wire};
use vscan_tests::{fixtures, on_both, wait};

on_both!(
    one_flow_id_through_flows_and_events,
    filters,
    metrics_and_health,
    exempt_networks_pass_and_are_counted,
    denied_networks_do_not,
    reload_takes_new_rules,
    reload_keeps_the_old_on_errors,
    a_killed_flow_is_reset,
    quarantine,
    a_full_disk_keeps_the_block,
);

fn session(lab: &Lab, family: Family) -> Result<Client> {
    Client::connect(lab.client(), lab.dial(family, 21), Mode::Epsv)
}

/// The same identity in the flow table and in every kind of event.
fn one_flow_id_through_flows_and_events(steering: Steering) -> Result<()> {
    let lab = Lab::new(Topology::Forward)?;
    let _server = Server::start(lab.server(), 21, Behaviour::default())?;
    let _sink = Sink::start(lab.server(), 25, smtp::Behaviour::default())?;
    let vscan = Vscan::start(&lab, &Settings::new(steering))?;
    let mut ftp = session(&lab, Family::V4)?;
    ftp.upload("evil\x1b[31m.com", &fixtures::eicar())?;
    ftp.upload("good.bin", &fixtures::random(5000, 1))?;
    let mut mail = smtp::Client::connect(lab.client(), lab.dial(Family::V6, 25))?;
    mail.send(&wire(&fixtures::message_with_attachment("x", "a.com", &fixtures::eicar())))?;

    let flows = vscan.flows()?;
    assert_eq!(flows.len(), 2, "{flows:?}");
    let find = |protocol: &str| {
        let found = flows.iter().find(|flow| flow["protocol"] == protocol);
        found.with_context(|| format!("no {protocol} flow: {flows:?}"))
    };
    let of_ftp = find("ftp")?;
    assert_eq!(of_ftp["user"], "alice");
    assert_eq!(of_ftp["verdict"], "infected");
    assert_eq!(of_ftp["direction"], "inbound");
    assert_eq!(of_ftp["server"], "192.0.2.1:21");
    assert_eq!(of_ftp["real_server"], "10.1.0.2:21");
    assert_eq!(of_ftp["objects"], 2);
    ensure!(of_ftp["detection"].as_str().is_some_and(|name| name.contains("EICAR")), "{of_ftp}");
    ensure!(of_ftp["bytes_from_client"].as_u64().is_some_and(|bytes| bytes > 5000), "{of_ftp}");
    let of_smtp = find("smtp")?;
    assert_eq!(of_smtp["user"], "alice@client.example");
    assert_eq!(of_smtp["verdict"], "infected");

    // For people: aligned, and no escape sequence of a file name reaches the terminal.
    let table = vscan.cli(&["flows"])?;
    ensure!(table.success() && !table.out.contains('\x1b'), "{table:?}");
    ensure!(table.out.contains("alice") && table.out.contains("192.0.2.1:21"), "{}", table.out);

    ftp.quit()?;
    mail.quit()?;
    for (flow, kinds) in [
        (of_ftp, ["ftp", "object", "alert", "flow"]),
        (of_smtp, ["smtp", "object", "alert", "flow"]),
    ] {
        let id = &flow["id"];
        for kind in kinds {
            let event = vscan.wait_for_event(kind, |event| event["flow_id"] == *id)?;
            for key in [
                "timestamp",
                "src_ip",
                "src_port",
                "dest_ip",
                "dest_port",
                "proto",
                "app_proto",
                kind,
            ] {
                ensure!(!event[key].is_null(), "{kind} event without {key}: {event}");
            }
        }
        let alert = vscan.wait_for_event("alert", |event| event["flow_id"] == *id)?;
        assert_eq!(alert["alert"]["action"], "blocked");
        ensure!(alert["alert"]["signature"].as_str().is_some_and(|name| name.contains("EICAR")));
    }
    let ids: BTreeSet<String> = vscan
        .events()?
        .iter()
        .filter(|event| event["event_type"] != "agent")
        .map(|event| event["flow_id"].to_string())
        .collect();
    assert_eq!(ids.len(), 2, "{ids:?}");
    Ok(())
}

fn filters(steering: Steering) -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let _server = Server::start(lab.server(), 21, Behaviour::default())?;
    let _sink = Sink::start(lab.server(), 25, smtp::Behaviour::default())?;
    let vscan = Vscan::start(&lab, &Settings::new(steering))?;
    let mut clean = session(&lab, Family::V4)?;
    clean.upload("good", b"good")?;
    let mut infected = session(&lab, Family::V6)?;
    infected.upload("bad", &fixtures::eicar())?;
    let _mail = smtp::Client::connect(lab.client(), lab.dial(Family::V4, 25))?;
    let count = |filter: &[&str]| -> Result<usize> {
        let listing = vscan.json(&[&["flows"][..], filter].concat())?;
        Ok(listing.as_array().map_or(0, Vec::len))
    };
    assert_eq!(count(&[])?, 3);
    assert_eq!(count(&["--protocol", "ftp"])?, 2);
    assert_eq!(count(&["--verdict", "infected"])?, 1);
    assert_eq!(count(&["--verdict", "clean"])?, 1);
    assert_eq!(count(&["--port", "25"])?, 1);
    assert_eq!(count(&["--from-ip", "10.1.0.2"])?, 2);
    assert_eq!(count(&["--from-ip", "fd00:1::/32"])?, 1);
    assert_eq!(count(&["--to-ip", "192.0.2.9"])?, 0);
    assert_eq!(count(&["--protocol", "ftp", "--from-ip", "10.1.0.2"])?, 1);

    // --follow shows what comes.
    let mut follow = lab.gateway.command(agent::program("vscan")?);
    follow.args(["flows", "--follow", "-o", "json", "--config"]).arg(vscan.config());
    let follow = lab.gateway.start("follow", follow)?;
    wait::until("the follower shows nothing", Duration::from_secs(5), || {
        let mut client = session(&lab, Family::V4)?;
        client.upload("worse", &fixtures::eicar())?;
        client.quit()?;
        Ok(follow.log().contains("infected").then_some(()))
    })?;
    let lines = follow.log();
    for line in lines.lines().take(lines.lines().count().saturating_sub(1)) {
        serde_json::from_str::<Value>(line).with_context(|| format!("no JSON line: {line}"))?;
    }
    Ok(())
}

fn metrics_and_health(steering: Steering) -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let _server = Server::start(lab.server(), 21, Behaviour::default())?;
    let vscan = Vscan::start(&lab, &Settings::new(steering))?;
    let mut client = session(&lab, Family::V4)?;
    client.upload("file", &fixtures::random(10_000, 1))?;
    let metrics = vscan.metrics()?;
    assert_eq!(metrics.sum("vscan_build_info", &[]), 1.0);
    assert_eq!(metrics.sum("vscan_sessions", &[("protocol", "ftp")]), 1.0);
    assert_eq!(metrics.sum("vscan_objects_total", &[("verdict", "clean")]), 1.0);
    ensure!(metrics.sum("vscan_bytes_total", &[("sender", "client")]) >= 10_000.0);
    ensure!(metrics.sum("vscan_scan_seconds_count", &[]) >= 1.0);
    ensure!(metrics.sum("vscan_scanner_rules", &[]) >= 1.0);
    assert_eq!(metrics.sum("vscan_events_lost_total", &[]), 0.0);
    // No addresses as labels, base units.
    ensure!(!metrics.0.contains("10.1.0.2") && !metrics.0.contains("192.0.2.2"), "{}", metrics.0);
    for line in metrics.0.lines().filter(|line| line.starts_with("# TYPE vscan_")) {
        if line.ends_with(" counter") {
            ensure!(line.contains("_total counter"), "{line}");
        }
    }
    agent::http(&lab.gateway, "/healthz")?;
    let status = vscan.json(&["status"])?;
    ensure!(status.to_string().contains(steering.word()), "{status}");
    Ok(())
}

/// A listed network passes uninspected, and is shown and counted as such.
fn exempt_networks_pass_and_are_counted(steering: Steering) -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let server = Server::start(lab.server(), 21, Behaviour::default())?;
    // What is refused is not offered: that tells who answers.
    let settings = Settings::new(steering)
        .with("gateway", "exempt = [\"10.1.0.2\", \"fd00:1::2\"]")
        .with("ftp", "resume = \"refuse\"");
    let vscan = Vscan::start(&lab, &settings)?;
    for family in FAMILIES {
        let mut client = session(&lab, family)?;
        ensure!(client.upload("bad", &fixtures::eicar())?.reply.starts_with("226"), "{family:?}");
        wait::until("no uninspected flow is shown", Duration::from_secs(10), || {
            let flows = vscan.flows()?;
            let shown = flows.iter().any(|flow| {
                flow["uninspected"] == "exempt"
                    && flow["client"]
                        .as_str()
                        .is_some_and(|client| client.contains(&lab.seen_as(family).to_string()))
            });
            Ok(shown.then_some(()))
        })
        .with_context(|| format!("{family:?}: {:?}", vscan.flows()))?;
        client.quit()?;
    }
    ensure!(server.file("bad").is_some());
    wait::until("the flows are not counted", Duration::from_secs(10), || {
        let exempt = [("reason", "exempt")];
        let count = vscan.metrics()?.sum("vscan_flows_uninspected_total", &exempt);
        Ok((count >= 2.0).then_some(()))
    })?;
    if steering == Steering::Bpf {
        wait::until("their bytes are not counted", Duration::from_secs(20), || {
            let status = vscan.json(&["status"])?;
            let peers = status["blind"]["peers"].as_array().map_or(0, Vec::len);
            let unread = &status["blind"]["spots"][0]["unread"][0];
            let counted = unread["reason"] == "exempt"
                && unread["flows"].as_u64() >= Some(2)
                && unread["bytes"].as_u64() > Some(500);
            Ok((counted && peers == 2).then_some(()))
        })
        .with_context(|| format!("{:?}", vscan.json(&["status"])))?;
    }
    // The other inside address is not exempt.
    let to = lab.dial(Family::V4, 21);
    let peer = Peer::connect_from(lab.client(), Some(inside_second(Family::V4)), to)?;
    let mut client = Client::greet(peer, lab.client().door(), Mode::Epsv)?;
    let features = client.control().ask("FEAT", "211")?;
    ensure!(!features.contains("REST"), "not inspected: {features}");
    Ok(())
}

fn denied_networks_do_not(steering: Steering) -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let _server = Server::start(lab.server(), 21, Behaviour::default())?;
    let settings = Settings::new(steering).with("gateway", "deny = [\"10.1.0.3\", \"fd00:1::3\"]");
    let _vscan = Vscan::start(&lab, &settings)?;
    for family in FAMILIES {
        let to = lab.dial(family, 21);
        let limit = Duration::from_millis(400);
        let second = Some(inside_second(family));
        let attempt = vscan_tests::raw::attempt(lab.client(), second, to, limit)?;
        ensure!(attempt != vscan_tests::raw::Attempt::Connected, "{family:?}");
        session(&lab, family)?.quit()?;
    }
    Ok(())
}

const RULE: &str = "rule Lab_Word { strings: $a = \"xyzzy-plugh\" condition: $a }\n";

/// Rules of our own beside the shipped ones.
fn with_rules(lab: &Lab, steering: Steering) -> Result<(std::path::PathBuf, Settings)> {
    let rules = lab.dir().join("rules.d");
    fs::create_dir(&rules)?;
    let shipped = agent::repository().join("deploy/rules");
    let line = format!("rules = [\"{}\", \"{}\"]", shipped.display(), rules.display());
    fs::write(rules.join("none.yar"), "rule Lab_None { condition: false }\n")?;
    Ok((rules, Settings::new(steering).with("scan", &line)))
}

/// By command and by SIGHUP; sessions that are open see the new rules with their next object.
fn reload_takes_new_rules(steering: Steering) -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let _server = Server::start(lab.server(), 21, Behaviour::default())?;
    let (rules, settings) = with_rules(&lab, steering)?;
    let vscan = Vscan::start(&lab, &settings)?;
    let before = vscan.processes();
    let mut client = session(&lab, Family::V4)?;
    let word = b"here: xyzzy-plugh";
    ensure!(client.upload("word", word)?.reply.starts_with("226"));
    fs::write(rules.join("word.yar"), RULE)?;
    let output = vscan.cli(&["reload"])?;
    ensure!(output.success(), "{output:?}");
    wait::until("the new rule does not catch", Duration::from_secs(10), || {
        Ok(client.upload("word", word)?.reply.contains("Lab_Word").then_some(()))
    })?;
    fs::remove_file(rules.join("word.yar"))?;
    vscan.process().signal(rustix::process::Signal::HUP);
    wait::until("the old rule still catches", Duration::from_secs(10), || {
        Ok(client.upload("word", word)?.reply.starts_with("226").then_some(()))
    })?;
    ensure!(client.upload("bad", &fixtures::eicar())?.reply.starts_with("550"));
    client.quit()?;
    assert_eq!(vscan.processes().gateway, before.gateway, "a reload is no restart");
    ensure!(vscan.metrics()?.sum("vscan_reloads_total", &[("result", "done")]) >= 2.0);
    Ok(())
}

fn reload_keeps_the_old_on_errors(steering: Steering) -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let server = Server::start(lab.server(), 21, Behaviour::default())?;
    let (rules, settings) = with_rules(&lab, steering)?;
    let vscan = Vscan::start(&lab, &settings)?;
    let before = vscan.processes();
    let works = |client: &mut Client, what: &str| -> Result<()> {
        let reply = client.upload("bad", &fixtures::eicar())?.reply;
        ensure!(reply.contains("blocked by vscan"), "{what}: {reply}");
        let reply = client.upload("good", b"good")?.reply;
        ensure!(reply.starts_with("226"), "{what}: {reply}");
        Ok(())
    };
    let mut client = session(&lab, Family::V4)?;
    fs::write(rules.join("broken.yar"), "rule broken { condition: nonsense }\n")?;
    let output = vscan.cli(&["reload"])?;
    let said = format!("{}{}", output.out, output.err);
    ensure!(!output.success() && said.contains("broken.yar"), "{output:?}");
    works(&mut client, "after broken rules")?;
    fs::remove_file(rules.join("broken.yar"))?;

    let config = fs::read_to_string(vscan.config())?;
    fs::write(vscan.config(), format!("{config}\n[nonsense]\nkey = 1\n"))?;
    let output = vscan.cli(&["reload"])?;
    let said = format!("{}{}", output.out, output.err);
    ensure!(!output.success() && said.contains("nonsense"), "{output:?}");
    works(&mut client, "after a broken configuration")?;
    fs::write(vscan.config(), config)?;
    ensure!(vscan.cli(&["reload"])?.success());
    works(&mut client, "after a good one")?;
    works(&mut session(&lab, Family::V6)?, "in a new session")?;
    client.quit()?;
    let now = vscan.processes();
    assert_eq!((now.gateway, now.supervisor), (before.gateway, before.supervisor));
    // `vscan reload` saw the broken configuration itself; the agent refused the broken rules.
    ensure!(vscan.metrics()?.sum("vscan_reloads_total", &[("result", "refused")]) >= 1.0);
    ensure!(server.file("bad").is_none());
    Ok(())
}

/// A flow that is ended by hand ends by a reset on both sides.
fn a_killed_flow_is_reset(steering: Steering) -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let sink = Sink::start(lab.server(), 25, smtp::Behaviour::default())?;
    let vscan = Vscan::start(&lab, &Settings::new(steering))?;
    let mut client = smtp::Client::connect(lab.client(), lab.dial(Family::V4, 25))?;
    let flows = vscan.flows()?;
    let id = flows[0]["id"].as_str().context("no id")?;
    let output = vscan.cli(&["kill", id])?;
    ensure!(output.success(), "{output:?}");
    assert_eq!(client.peer().drain()?.1, End::Reset);
    wait::until_true("the server's leg stays", Duration::from_secs(5), || {
        sink.sessions().iter().all(|session| session.closed && session.reset)
    })
}

fn quarantine(steering: Steering) -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let server = Server::start(lab.server(), 21, Behaviour::default())?;
    let _sink = Sink::start(lab.server(), 25, smtp::Behaviour::default())?;
    let settings = Settings::new(steering)
        .with("", "[[treat]]\nverdict = \"infected\"\naction = \"quarantine\"\n");
    let vscan = Vscan::start(&lab, &settings)?;
    let mut client = session(&lab, Family::V4)?;
    ensure!(client.upload("bad.com", &fixtures::eicar())?.reply.starts_with("550"));
    ensure!(server.file("bad.com").is_none());
    let mail = wire(&fixtures::message_with_attachment("x", "a.com", &fixtures::eicar()));
    let mut sender = smtp::Client::connect(lab.client(), lab.dial(Family::V4, 25))?;
    ensure!(sender.send(&mail)?.starts_with("550"));

    let entries = vscan.json(&["quarantine", "list"])?;
    let entries = entries.as_array().context("no list")?;
    assert_eq!(entries.len(), 2, "{entries:?}");
    let file = entries.iter().find(|entry| entry["protocol"] == "ftp").context("no file")?;
    let id = file["id"].as_str().context("no id")?;
    assert_eq!(file["size"], 68);
    let shown = vscan.json(&["quarantine", "show", id])?;
    ensure!(
        shown.to_string().contains("EICAR") && shown.to_string().contains("bad.com"),
        "{shown}"
    );
    let to = lab.dir().join("released");
    for _ in 0..2 {
        let output = vscan.cli(&["quarantine", "release", id, "--to", &to.to_string_lossy()])?;
        ensure!(output.success(), "{output:?}");
        assert_eq!(fs::read(&to)?, fixtures::eicar());
    }
    ensure!(vscan.cli(&["quarantine", "delete", id])?.success());
    let left = vscan.json(&["quarantine", "list"])?;
    assert_eq!(left.as_array().map(Vec::len), Some(1));
    ensure!(!vscan.cli(&["quarantine", "show", id])?.success());
    // It works on the directory: the agent may be down.
    let config = vscan.config().to_owned();
    let (status, _) = vscan.stop()?;
    ensure!(status.success());
    let output = agent::cli(&lab.gateway, &config, &["quarantine", "list", "-o", "json"])?;
    assert_eq!(agent::json(&output.out)?.as_array().map(Vec::len), Some(1), "{output:?}");
    Ok(())
}

/// Nothing can be kept: the refusal stands, and it is said that no copy was kept.
fn a_full_disk_keeps_the_block(steering: Steering) -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let _server = Server::start(lab.server(), 21, Behaviour::default())?;
    let settings = Settings::new(steering)
        .with("", "[[treat]]\nverdict = \"infected\"\naction = \"quarantine\"\n");
    lab.gateway
        .sh("mkdir -p state/quarantine && mount -t tmpfs -o size=64k tmpfs state/quarantine && \
         head -c 64k /dev/zero > state/quarantine/filler || true")?;
    let vscan = Vscan::start(&lab, &settings)?;
    let mut client = session(&lab, Family::V4)?;
    for _ in 0..3 {
        let reply = client.upload("bad.com", &fixtures::eicar())?.reply;
        ensure!(reply.contains("blocked by vscan"), "{reply}");
        ensure!(client.upload("good", b"good")?.reply.starts_with("226"));
    }
    ensure!(vscan.metrics()?.sum("vscan_quarantine_failures_total", &[]) >= 3.0);
    client.quit()
}

/// `scan`, `check`, `doctor`, `completions`, `man`: what they say and how they end.
#[test]
fn commands_without_an_agent() -> Result<()> {
    let lab = Lab::with_firewall(Topology::Plain, STRICT)?;
    let config = Settings::new(Steering::Bpf).write(&lab)?;
    let run = |args: &[&str]| agent::cli(&lab.gateway, &config, args);
    let check = run(&["check"])?;
    ensure!(check.success(), "{check:?}");

    let good = lab.gateway.dir().join("good.bin");
    let bad = lab.gateway.dir().join("bad.com");
    fs::write(&good, fixtures::random(100_000, 1))?;
    fs::write(&bad, fixtures::eicar())?;
    let (good, bad) = (good.to_string_lossy(), bad.to_string_lossy());
    let clean = run(&["scan", &good])?;
    ensure!(clean.code() == 0, "{clean:?}");
    let infected = run(&["scan", &bad, &good])?;
    ensure!(infected.code() == 1 && infected.out.contains("EICAR"), "{infected:?}");
    let listing = agent::json(&run(&["scan", "-o", "json", &bad])?.out)?;
    ensure!(listing.to_string().contains("\"infected\""), "{listing}");

    let doctor = run(&["doctor"])?;
    ensure!(doctor.out.contains("forward") && doctor.out.contains("firewall"), "{doctor:?}");
    let doctor = agent::json(&run(&["doctor", "-o", "json"])?.out)?;
    ensure!(doctor.is_array() || doctor.is_object());

    let vscan = agent::program("vscan")?;
    let vscan = vscan.to_string_lossy();
    for shell in ["bash", "zsh", "fish"] {
        let output = lab.gateway.run([&vscan, "completions", shell])?;
        ensure!(output.success() && output.out.contains("quarantine"), "{shell}: {output:?}");
    }
    let output = lab.gateway.run([&vscan, "man"])?;
    ensure!(output.success() && output.out.contains(".TH"), "{output:?}");
    let status = run(&["status"])?;
    ensure!(!status.success() && !status.err.is_empty(), "no agent runs: {status:?}");
    Ok(())
}

//! Bad input: configurations that cannot work, and peers that misbehave.

use anyhow::{Context, Result, ensure};
use std::fs;
use std::io::{Read, Write};
use std::time::{Duration, Instant};
use vscan_tests::agent::{self, Settings, Steering, Vscan, status_field};
use vscan_tests::ftp::{Behaviour, Client, Mode, Server};
use vscan_tests::host::Output;
use vscan_tests::lab::{FAMILIES, Family, Lab, Topology};
use vscan_tests::raw::{self, Peer};
use vscan_tests::smtp::{self, Sink};
use vscan_tests::{fixtures, on_both, wait};

on_both!(
    a_thousand_idle_connections,
    garbage,
    lines_without_end,
    a_server_line_without_end,
    resets_at_any_moment,
    too_many_sessions,
    a_server_that_cannot_be_reached,
    a_missing_interface,
    a_busy_port,
    unreadable_rules,
);

/// Runs `vscan run` with this configuration; it has to end by itself, leaving nothing.
fn fails(lab: &Lab, settings: &Settings) -> Result<Output> {
    let config = settings.write(lab)?;
    let output = agent::cli(&lab.gateway, &config, &["run"])?;
    ensure!(!output.success(), "it started: {}{}", output.out, output.err);
    let left = agent::leftovers(&lab.gateway)?;
    ensure!(left.is_empty(), "half installed: {left:?}");
    ensure!(!output.err.contains("panicked"), "{}", output.err);
    Ok(output)
}

fn says(output: &Output, code: i32, words: &[&str]) -> Result<()> {
    ensure!(output.code() == code, "exit code {}, expected {code}: {}", output.code(), output.err);
    for word in words {
        ensure!(output.err.contains(word), "the message does not name {word:?}: {}", output.err);
    }
    Ok(())
}

#[test]
fn an_unknown_key() -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let settings = Settings::new(Steering::Nft)
        .with("gateway", "on_agent_dwon = \"open\"")
        .with("smtp", "prots = [25]\nstarttls = \"maybe\"");
    // All of it at once, each with its place.
    let line = |text: &str, key: &str| {
        let number = text.lines().position(|line| line.starts_with(key)).map_or(0, |at| at + 1);
        format!("vscan.toml:{number}:")
    };
    let text = fs::read_to_string(settings.write(&lab)?)?;
    let places = ["on_agent_dwon", "prots", "starttls"].map(|key| line(&text, key));
    for command in ["run", "check"] {
        let config = settings.write(&lab)?;
        let output = agent::cli(&lab.gateway, &config, &[command])?;
        let mut words = vec!["on_agent_dwon", "prots", "maybe"];
        words.extend(places.iter().map(String::as_str));
        says(&output, 78, &words).with_context(|| command)?;
    }
    fails(&lab, &settings)?;
    Ok(())
}

fn a_missing_interface(steering: Steering) -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let settings = Settings::new(steering);
    let config = settings.write(&lab)?;
    let text = fs::read_to_string(&config)?.replace("\"wan0\"", "\"wan7\"");
    fs::write(&config, text)?;
    let output = agent::cli(&lab.gateway, &config, &["run"])?;
    ensure!(!output.success() && output.err.contains("wan7"), "{output:?}");
    ensure!((64..=78).contains(&output.code()), "exit code {}", output.code());
    let left = agent::leftovers(&lab.gateway)?;
    ensure!(left.is_empty(), "half installed: {left:?}");
    let check = agent::cli(&lab.gateway, &config, &["check"])?;
    ensure!(
        !check.success() && format!("{}{}", check.out, check.err).contains("wan7"),
        "{check:?}"
    );
    Ok(())
}

fn a_busy_port(steering: Steering) -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let _taken = raw::listen(&lab.gateway, 12321)?;
    let output = fails(&lab, &Settings::new(steering))?;
    ensure!((64..=78).contains(&output.code()), "exit code {}", output.code());
    says(&output, output.code(), &["12321"])
}

fn unreadable_rules(steering: Steering) -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let rules = lab.dir().join("rules");
    fs::create_dir(&rules)?;
    let lines = format!("rules = [\"{}\"]", rules.display());
    let missing = format!("rules = [\"{}/none\"]", rules.display());
    let output = fails(&lab, &Settings::new(steering).with("scan", &missing))?;
    ensure!((64..=78).contains(&output.code()), "exit code {}", output.code());
    says(&output, output.code(), &["none"])?;
    fs::write(rules.join("good.yar"), "rule good { condition: false }\n")?;
    fs::write(rules.join("bad.yar"), "rule bad {\n  condition:\n    no_such_word\n}\n")?;
    let output = fails(&lab, &Settings::new(steering).with("scan", &lines))?;
    says(&output, 65, &["bad.yar", "no_such_word"])
}

/// Without CAP_BPF: `bpf` does not start and says why, `auto` goes on with nftables and says so.
#[test]
fn without_cap_bpf() -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let bounded = "setpriv --bounding-set -bpf,-perfmon,-sys_admin --inh-caps -all";
    let run = |steering: Steering, word: &str| -> Result<(std::path::PathBuf, String)> {
        let config = Settings::new(steering).write(&lab)?;
        let text = fs::read_to_string(&config)?.replace("steering = \"bpf\"", word);
        fs::write(&config, text)?;
        let command = format!(
            "{bounded} {} run --config {}",
            agent::program("vscan")?.display(),
            config.display()
        );
        Ok((config, command))
    };
    let (_, command) = run(Steering::Bpf, "steering = \"bpf\"")?;
    let output = lab.gateway.run(["sh", "-c", &format!("exec {command}")])?;
    ensure!(!output.success() && output.err.to_uppercase().contains("BPF"), "{output:?}");
    ensure!((64..=78).contains(&output.code()), "exit code {}", output.code());
    let left = agent::leftovers(&lab.gateway)?;
    ensure!(left.is_empty(), "half installed: {left:?}");

    let (config, command) = run(Steering::Bpf, "steering = \"auto\"")?;
    let mut shell = lab.gateway.command("sh");
    shell.args(["-c", &format!("exec {command}")]);
    let process = lab.gateway.start("vscan-auto", shell)?;
    process.wait_for_log("ready", Duration::from_secs(30))?;
    let status = agent::cli(&lab.gateway, &config, &["status", "-o", "json"])?;
    ensure!(status.success() && status.out.contains("nft"), "{status:?}");
    process.signal(rustix::process::Signal::TERM);
    ensure!(process.wait(Duration::from_secs(10))?.success());
    Ok(())
}

/// Bytes of memory of a process that are its own.
fn resident(pid: u32) -> Result<u64> {
    let text = status_field(pid, "VmRSS")?;
    Ok(text.split(' ').next().unwrap_or_default().parse::<u64>()? * 1024)
}

fn serves(lab: &Lab, server: &Server, name: &str) -> Result<()> {
    let begin = Instant::now();
    let mut client = Client::connect(lab.client(), lab.dial(Family::V4, 21), Mode::Epsv)?;
    let reply = client.upload(name, b"still served")?.reply;
    ensure!(reply == "226 stored\r\n", "{name}: {reply}");
    ensure!(server.file(name).is_some());
    client.quit()?;
    ensure!(
        begin.elapsed() < Duration::from_secs(3),
        "the next client waited {:?}",
        begin.elapsed()
    );
    Ok(())
}

fn a_thousand_idle_connections(steering: Steering) -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let server =
        Server::start(lab.server(), 21, Behaviour { record: false, ..Behaviour::default() })?;
    let vscan = Vscan::start(&lab, &Settings::new(steering))?;
    serves(&lab, &server, "before")?;
    let gateway = vscan.processes().gateway;
    let before = resident(gateway)?;
    let mut idle = Vec::new();
    for number in 0..1000 {
        let family = FAMILIES[number % 2];
        let mut peer = Peer::connect(lab.client(), lab.dial(family, 21))?;
        peer.expect("220").with_context(|| format!("connection {number}"))?;
        idle.push(peer);
    }
    let grown = resident(gateway)?.saturating_sub(before);
    println!("{} KiB for 1000 idle sessions", grown / 1024);
    ensure!(grown < 40 << 20, "{grown} bytes for 1000 idle sessions");
    assert_eq!(vscan.metrics()?.sum("vscan_sessions", &[("protocol", "ftp")]), 1000.0);
    serves(&lab, &server, "beside")?;
    for peer in &mut idle {
        peer.ask("NOOP", "200")?;
    }
    drop(idle);
    wait::until("sessions stay", Duration::from_secs(10), || {
        Ok((vscan.metrics()?.sum("vscan_sessions", &[]) == 0.0).then_some(()))
    })?;
    serves(&lab, &server, "after")
}

/// Bytes that are no protocol, from the client and from the server.
fn garbage(steering: Steering) -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let server = Server::start(lab.server(), 21, Behaviour::default())?;
    let _sink = Sink::start(lab.server(), 25, smtp::Behaviour::default())?;
    let vscan = Vscan::start(&lab, &Settings::new(steering))?;
    let gateway = vscan.processes().gateway;
    let pieces: [&[u8]; 6] = [
        b"\0\0\0\0\r\n\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\xff\xf4\xff\xf2ABOR\r\n",
        b"USER \xff\xfe\x80\r\nPASS %n%s\r\nSTOR ../../\x1b[31m\r\n",
        b"PORT 1,2,3\r\nEPRT |9|x|y|\r\nPASV\r\nPASV\r\nRETR\r\nDATA\r\n.\r\n",
    ];
    for port in [21, 25] {
        for piece in pieces {
            let mut peer = Peer::connect(lab.client(), lab.dial(Family::V4, port))?;
            peer.expect("220")?;
            peer.send(piece)?;
            peer.finish()?;
            // Whatever is answered: it ends, one way or the other.
            peer.drain().with_context(|| format!("port {port}: {piece:?}"))?;
        }
        for seed in 0..20 {
            let mut peer = Peer::connect(lab.client(), lab.dial(Family::V6, port))?;
            // The far end may hang up in the midst.
            let _ = peer.send(fixtures::random(20_000, seed));
            let _ = peer.finish();
            peer.drain().with_context(|| format!("port {port}, seed {seed}"))?;
        }
    }
    assert_eq!(vscan.processes().gateway, gateway, "the gateway died of it");
    ensure!(vscan.metrics()?.sum("vscan_anomalies_total", &[]) > 0.0);
    serves(&lab, &server, "after")
}

/// A server's greeting without end: the client hears of it, the gateway does not collect it.
fn a_server_line_without_end(steering: Steering) -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let listeners = [raw::listen(lab.server(), 21)?, raw::listen(lab.server(), 25)?];
    let vscan = Vscan::start(&lab, &Settings::new(steering))?;
    let before = resident(vscan.processes().gateway)?;
    let block = vec![b'2'; 1 << 20];
    for (port, listener) in [21, 25].into_iter().zip(&listeners) {
        let mut client = Peer::connect(lab.client(), lab.dial(Family::V4, port))?;
        let (mut server, _) = raw::accept(listener)?;
        let taken = (0..50).take_while(|_| server.send(&block).is_ok()).count();
        ensure!(taken < 50, "port {port}: all of it was taken");
        let (came, _) = client.drain()?;
        ensure!(came.len() < 2 << 20, "port {port}: {} bytes came through", came.len());
    }
    let grown = resident(vscan.processes().gateway)?.saturating_sub(before);
    ensure!(grown < 16 << 20, "{grown} bytes more");
    Ok(())
}

/// 50 MB without a line end from the client, in both protocols: refused soon, in bounded memory.
fn lines_without_end(steering: Steering) -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let server = Server::start(lab.server(), 21, Behaviour::default())?;
    let _sink = Sink::start(lab.server(), 25, smtp::Behaviour::default())?;
    let vscan = Vscan::start(&lab, &Settings::new(steering))?;
    let gateway = vscan.processes().gateway;
    let before = resident(gateway)?;
    let block = vec![b'x'; 1 << 20];
    for port in [21, 25] {
        let mut peer = Peer::connect(lab.client(), lab.dial(Family::V4, port))?;
        peer.expect("220")?;
        let mut sent = 0;
        for _ in 0..50 {
            if peer.send(&block).is_err() {
                break;
            }
            sent += block.len();
        }
        let answer = peer.drain();
        println!("port {port}: {sent} bytes taken, then {answer:?}");
        answer.with_context(|| format!("port {port}"))?;
    }
    let grown = resident(gateway)?.saturating_sub(before);
    ensure!(grown < 16 << 20, "{grown} bytes more");
    for name in ["ftp", "smtp"] {
        let count = vscan.metrics()?.sum("vscan_anomalies_total", &[("protocol", name)]);
        ensure!(count >= 1.0, "no anomaly for {name}");
    }
    assert_eq!(vscan.processes().gateway, gateway);
    serves(&lab, &server, "after")
}

/// Clients that go away by a reset at every step of both dialogues.
fn resets_at_any_moment(steering: Steering) -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let server = Server::start(lab.server(), 21, Behaviour::default())?;
    let sink = Sink::start(lab.server(), 25, smtp::Behaviour::default())?;
    let vscan = Vscan::start(&lab, &Settings::new(steering))?;
    let gateway = vscan.processes().gateway;
    let ftp = ["USER alice", "PASS x", "TYPE I", "EPSV", "LIST", "EPSV", "STOR half", "NOOP"];
    let smtp = [
        "EHLO x",
        "MAIL FROM:<a@b.example>",
        "RCPT TO:<c@d.example>",
        "DATA",
        "half a mail",
        ".",
        "QUIT",
    ];
    for (port, lines) in [(21, &ftp[..]), (25, &smtp[..])] {
        for steps in 0..=lines.len() {
            for wait_for_reply in [true, false] {
                let mut peer = Peer::connect(lab.client(), lab.dial(Family::V4, port))?;
                if wait_for_reply {
                    peer.expect("220")?;
                }
                for line in &lines[..steps] {
                    peer.send(format!("{line}\r\n"))?;
                    let answered = !["LIST", "STOR half", "half a mail"].contains(line);
                    if wait_for_reply && answered && peer.reply().is_err() {
                        break;
                    }
                }
                peer.reset()?;
            }
        }
    }
    wait::until("sessions stay", Duration::from_secs(10), || {
        Ok((vscan.metrics()?.sum("vscan_sessions", &[]) == 0.0).then_some(()))
    })?;
    assert_eq!(vscan.processes().gateway, gateway);
    ensure!(server.file("half").is_none(), "a broken upload became a file");
    let whole = b"half a mail\r\n.\r\n".to_vec();
    ensure!(sink.messages().iter().all(|mail| *mail == whole), "{:?}", sink.messages());
    wait::until_true("the server still has sessions", Duration::from_secs(5), || {
        sink.sessions().iter().all(|session| session.closed)
    })?;
    serves(&lab, &server, "after")
}

fn too_many_sessions(steering: Steering) -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let server = Server::start(lab.server(), 21, Behaviour::default())?;
    let settings = Settings::new(steering).with("gateway", "max_sessions = 3");
    let vscan = Vscan::start(&lab, &settings)?;
    let mut held = Vec::new();
    for _ in 0..3 {
        let mut peer = Peer::connect(lab.client(), lab.dial(Family::V4, 21))?;
        peer.expect("220")?;
        held.push(peer);
    }
    let mut refused = Peer::connect(lab.client(), lab.dial(Family::V4, 21))?;
    refused.expect("421")?;
    ensure!(vscan.metrics()?.sum("vscan_sessions_refused_total", &[]) >= 1.0);
    drop(held);
    wait::until("sessions stay", Duration::from_secs(5), || {
        Ok((vscan.metrics()?.sum("vscan_sessions", &[]) == 0.0).then_some(()))
    })?;
    serves(&lab, &server, "after")
}

/// 421 with the reason, for a server that refuses; the client is not left waiting.
fn a_server_that_cannot_be_reached(steering: Steering) -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let _vscan = Vscan::start(&lab, &Settings::new(steering))?;
    for family in FAMILIES {
        for port in [21, 25] {
            let stream = lab
                .client()
                .within(|| raw::connect(None, lab.dial(family, port), Duration::from_secs(2)));
            // A gateway that asks the server first would pass the refusal on as it is.
            let Ok(mut stream) = stream else { continue };
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            ensure!(answer.starts_with("421 "), "{family:?} {port}: {answer:?}");
            let _ = stream.write_all(b"QUIT\r\n");
        }
    }
    Ok(())
}

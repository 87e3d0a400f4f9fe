//! The agent dead or hung: what new connections meet, and when; what happens to those in progress.

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use std::time::{Duration, Instant};
use vscan_tests::agent::{self, Settings, Steering, Vscan};
use vscan_tests::ftp::{Client, Mode, Server};
use vscan_tests::host::signal;
use vscan_tests::lab::{FAMILIES, Family, Firewall, Lab, STRICT, Topology};
use vscan_tests::raw::{self, Attempt, End, Peer};
use vscan_tests::smtp::{self, Behaviour, Sink, wire};
use vscan_tests::{fixtures, on_both, wait};

on_both!(
    killed_and_open,
    killed_and_closed,
    hung_and_open,
    hung_and_closed,
    flows_in_progress_are_reset,
    a_hung_gateway_is_replaced,
    a_restart_leaves_alone_what_passed,
    a_gateway_that_dies_is_replaced,
);

/// Dead: new connections follow `on_agent_down` within this time.
const DEAD: Duration = Duration::from_secs(1);

/// Hung: within this time.
const HUNG: Duration = Duration::from_secs(3);

/// The supervisor kills a hung gateway after 10 s without a beat; then a new one starts.
const REPLACED: Duration = Duration::from_secs(16);

/// How one attempt at a new connection goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Through the gateway: the extension that vscan takes out is gone.
    Inspected,
    /// Past the gateway: the extension is there.
    Direct,
    /// Not at all.
    Refused,
    /// Accepted, but nobody speaks.
    Stuck,
}

/// A sink whose EHLO reply shows whether vscan was between.
fn sink(lab: &Lab) -> Result<Sink> {
    let extensions = vec!["PIPELINING".to_owned(), "XEXCH50".to_owned()];
    Sink::start(lab.server(), 25, Behaviour { extensions, ..Behaviour::default() })
}

fn way(lab: &Lab, family: Family) -> Result<Way> {
    let to = lab.dial(family, 25);
    let limit = Duration::from_millis(300);
    let stream = match lab.client().within(|| raw::connect(None, to, limit)) {
        Ok(stream) => stream,
        Err(_) => return Ok(Way::Refused),
    };
    let mut peer = Peer::new(stream)?;
    peer.set_limit(limit)?;
    let answer = peer.expect("220").and_then(|_| peer.ask("EHLO client.example", "250"));
    Ok(match answer {
        Ok(reply) if reply.contains("XEXCH50") => Way::Direct,
        Ok(_) => Way::Inspected,
        Err(_) => Way::Stuck,
    })
}

/// Both firewalls, both families: from `down` on, new connections go `wanted` within `limit`, and stay so.
fn new_connections(
    settings: &Settings,
    wanted: Way,
    limit: Duration,
    down: impl Fn(&Vscan<'_>) -> Result<()>,
) -> Result<()> {
    for firewall in [Firewall::default(), STRICT] {
        for family in FAMILIES {
            let lab = Lab::with_firewall(Topology::Plain, firewall)?;
            let _sink = sink(&lab)?;
            let vscan = Vscan::start(&lab, settings)?;
            assert_eq!(way(&lab, family)?, Way::Inspected);
            down(&vscan)?;
            let start = Instant::now();
            let mut seen = Vec::new();
            loop {
                let now = way(&lab, family)?;
                seen.push((start.elapsed(), now));
                if now == wanted {
                    break;
                }
                ensure!(start.elapsed() < limit, "{firewall:?} {family:?}: {seen:?}");
            }
            println!("{firewall:?} {family:?}: {wanted:?} after {:?}", start.elapsed());
            for _ in 0..3 {
                assert_eq!(way(&lab, family)?, wanted, "{firewall:?} {family:?}: not lasting");
            }
        }
    }
    Ok(())
}

/// Everything at once, the supervisor first: nobody is left to tidy up.
fn kill_all(vscan: &Vscan<'_>) -> Result<()> {
    let all = vscan.processes();
    agent::kill(all.supervisor)?;
    wait::until_true("processes outlive the supervisor", Duration::from_secs(2), || {
        !vscan
            .host()
            .processes()
            .iter()
            .any(|pid| [all.gateway, all.scanner].contains(pid) || all.workers.contains(pid))
    })
}

fn hang_gateway(vscan: &Vscan<'_>) -> Result<()> {
    let gateway = vscan.processes().gateway;
    ensure!(gateway != 0, "no gateway process");
    signal(gateway, Signal::STOP);
    Ok(())
}

fn killed_and_open(steering: Steering) -> Result<()> {
    new_connections(&Settings::new(steering).open(), Way::Direct, DEAD, kill_all)
}

fn killed_and_closed(steering: Steering) -> Result<()> {
    new_connections(&Settings::new(steering), Way::Refused, DEAD, kill_all)
}

fn hung_and_open(steering: Steering) -> Result<()> {
    new_connections(&Settings::new(steering).open(), Way::Direct, HUNG, hang_gateway)
}

fn hung_and_closed(steering: Steering) -> Result<()> {
    new_connections(&Settings::new(steering), Way::Refused, HUNG, hang_gateway)
}

/// Control connections and a held transfer: both ends see a reset, never an end of file.
fn flows_in_progress_are_reset(steering: Steering) -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let listeners = [raw::listen(lab.server(), 21)?, raw::listen(lab.server(), 25)?];
    let vscan = Vscan::start(&lab, &Settings::new(steering))?;
    let mut ends = Vec::new();
    for (port, listener) in [21, 25].into_iter().zip(&listeners) {
        for family in FAMILIES {
            let mut client = Peer::connect(lab.client(), lab.dial(family, port))?;
            let (mut server, _) = raw::accept(listener)?;
            server.send("220 here\r\n")?;
            client.expect("220")?;
            ends.push((client, server));
        }
    }
    // A held upload: the client's data connection ends at the gateway. Its server answers by itself, for
    // the gateway may ask it things of its own.
    let (mut control, server) = ends.remove(0);
    let server = std::thread::spawn(move || answer_until_the_end(server));
    control.ask("USER alice", "331")?;
    control.ask("PASS secret", "230")?;
    let reply = control.ask("EPSV", "229")?;
    let port = reply.split('|').nth(3).context("no port")?.parse()?;
    let mut data = Peer::connect(lab.client(), (lab.dial(FAMILIES[0], 21).ip(), port).into())?;
    control.ask("STOR file", "150")?;
    data.send(fixtures::random(100_000, 1))?;

    agent::kill(vscan.processes().gateway)?;
    let (_, end) = data.drain()?;
    assert_eq!(end, End::Reset, "the held upload");
    assert_eq!(control.drain()?.1, End::Reset, "its control connection");
    let server = server.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    assert_eq!(server?, End::Reset, "its control connection, towards the server");
    for (client, server) in &mut ends {
        assert_eq!(client.drain()?.1, End::Reset, "towards the client");
        assert_eq!(server.drain()?.1, End::Reset, "towards the server");
    }
    Ok(())
}

/// A server that lets anybody in and has no data connections; tells how its session ended.
fn answer_until_the_end(mut peer: Peer) -> Result<End> {
    loop {
        let line = match peer.line() {
            Ok(line) => line,
            Err(error) => {
                let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
                let reset = kind == Some(std::io::ErrorKind::ConnectionReset);
                return Ok(if reset { End::Reset } else { End::Fin });
            }
        };
        let answer = match line.split([' ', '\r']).next().unwrap_or_default() {
            "USER" => "331 password",
            "PASS" => "230 in",
            "PASV" => "227 Entering Passive Mode (192,0,2,2,200,200)",
            "EPSV" => "229 Entering Extended Passive Mode (|||51400|)",
            _ => "200 ok",
        };
        peer.send(format!("{answer}\r\n"))?;
    }
}

/// SIGSTOP for good: existing flows end when the supervisor kills the gateway, then service is back.
fn a_hung_gateway_is_replaced(steering: Steering) -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let _sink = sink(&lab)?;
    let vscan = Vscan::start(&lab, &Settings::new(steering).open())?;
    let mut old = Peer::connect(lab.client(), lab.dial(Family::V4, 25))?;
    old.expect("220")?;
    let before = vscan.processes();
    hang_gateway(&vscan)?;
    let start = Instant::now();
    assert_eq!(old.drain()?.1, End::Reset);
    let reset = start.elapsed();
    println!("the old flow was reset after {reset:?}");
    ensure!(reset < Duration::from_secs(12), "too late: {reset:?}");
    let after = vscan.wait_for_processes(&[before.gateway])?;
    wait::until("new connections are not inspected again", REPLACED, || {
        Ok((way(&lab, Family::V4)? == Way::Inspected).then_some(()))
    })?;
    assert_eq!(after.scanner, before.scanner, "the scanner was not to blame");
    assert_eq!(after.supervisor, before.supervisor);
    Ok(())
}

fn a_restart_leaves_alone_what_passed(steering: Steering) -> Result<()> {
    let lab = Lab::new(Topology::Masquerade)?;
    let sink = sink(&lab)?;
    let settings = Settings::new(steering).open();
    let vscan = Vscan::start(&lab, &settings)?;
    let config = vscan.config().to_owned();
    kill_all(&vscan)?;
    let mut passed = Vec::new();
    for family in FAMILIES {
        wait::until("nothing passes", DEAD, || {
            Ok((way(&lab, family)? == Way::Direct).then_some(()))
        })?;
        passed.push(smtp::Client::connect(lab.client(), lab.dial(family, 25))?);
    }
    drop(vscan);
    let _again = Vscan::start_with(&lab, &settings, config)?;
    for family in FAMILIES {
        assert_eq!(way(&lab, family)?, Way::Inspected, "{family:?}");
    }
    // These were never inspected; taking them over now would break them.
    for mut client in passed {
        let mail = wire(&fixtures::message("meanwhile", "text"));
        ensure!(client.send(&mail)?.starts_with("250"));
        client.quit()?;
    }
    assert_eq!(sink.messages().len(), 2);
    Ok(())
}

/// With closed, what comes while the gateway is away is refused; then all is as before.
fn a_gateway_that_dies_is_replaced(steering: Steering) -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let server = Server::start(lab.server(), 21, vscan_tests::ftp::Behaviour::default())?;
    let vscan = Vscan::start(&lab, &Settings::new(steering))?;
    let to = lab.dial(Family::V4, 21);
    for _ in 0..3 {
        let before = vscan.processes();
        agent::kill(before.gateway)?;
        let after = vscan.wait_for_processes(&[before.gateway])?;
        assert_eq!((after.supervisor, after.scanner), (before.supervisor, before.scanner));
        wait::until("no service", Duration::from_secs(5), || {
            let attempt = raw::attempt(lab.client(), None, to, Duration::from_millis(300))?;
            Ok((attempt == Attempt::Connected).then_some(()))
        })?;
        let mut client = Client::connect(lab.client(), to, Mode::Epsv)?;
        ensure!(client.upload("bad", &fixtures::eicar())?.reply.starts_with("550"));
        ensure!(client.upload("good", b"good")?.reply.starts_with("226"));
        client.quit()?;
    }
    ensure!(server.file("bad").is_none() && server.file("good").is_some());
    Ok(())
}

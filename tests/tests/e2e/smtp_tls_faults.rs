//! Mail over TLS while something dies: a peer in mid-handshake or in mid-mail, the network, the scanner.

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;
use vscan_tests::agent::{Settings, Steering, Vscan};
use vscan_tests::fixtures;
use vscan_tests::host::signal;
use vscan_tests::lab::{Family, Lab, Topology};
use vscan_tests::on_both;
use vscan_tests::raw::{self, End, Peer};
use vscan_tests::smtp::wire;
use vscan_tests::smtps::Pki;
use vscan_tests::wait;

on_both!(peers_that_vanish);

const LIMIT: Duration = Duration::from_secs(15);

/// The port where a test plays the server itself.
const OWN: u16 = 2526;

fn settings(steering: Steering, pki: &Pki) -> Settings {
    Settings::new(steering)
        .with("smtp", "ports = [25, 2526]\nstarttls = \"terminate\"")
        .with("", &pki.outbound("handshake_timeout = \"2s\""))
}

/// A client up to the server's answer to STARTTLS.
fn begun(lab: &Lab, port: u16) -> Result<Peer> {
    let mut peer = Peer::connect(lab.client(), lab.dial(Family::V4, port))?;
    peer.expect("220")?;
    peer.ask("EHLO client.example", "250")?;
    peer.ask("STARTTLS", "220")?;
    Ok(peer)
}

/// The same with a server of the test's own, which has yet to answer.
fn asked(lab: &Lab, listener: &std::net::TcpListener) -> Result<(Peer, Peer)> {
    let mut client = Peer::connect(lab.client(), lab.dial(Family::V4, OWN))?;
    let (mut server, _) = raw::accept(listener)?;
    server.send("220 own\r\n")?;
    client.expect("220")?;
    client.send("EHLO c\r\n")?;
    server.line()?;
    server.send("250-own\r\n250 STARTTLS\r\n")?;
    client.reply()?;
    client.send("STARTTLS\r\n")?;
    ensure!(server.line()? == "STARTTLS\r\n");
    Ok((client, server))
}

/// The same; it has agreed.
fn both_begun(lab: &Lab, listener: &std::net::TcpListener) -> Result<(Peer, Peer)> {
    let (mut client, mut server) = asked(lab, listener)?;
    server.send("220 go\r\n")?;
    client.expect("220")?;
    Ok((client, server))
}

type Tls = rustls::StreamOwned<rustls::ClientConnection, TcpStream>;

fn say(tls: &mut Tls, command: &[u8], code: &str) -> Result<String> {
    tls.write_all(command)?;
    let mut reply = Vec::new();
    while !reply.ends_with(b"\n") || last(&reply).get(3) != Some(&b' ') {
        let mut byte = [0];
        tls.read_exact(&mut byte)?;
        reply.push(byte[0]);
    }
    let reply = String::from_utf8_lossy(&reply).into_owned();
    ensure!(reply.starts_with(code), "{reply} instead of {code}");
    Ok(reply)
}

fn last(reply: &[u8]) -> &[u8] {
    reply.trim_ascii_end().rsplit(|byte| *byte == b'\n').next().unwrap_or_default()
}

/// Up to the 354.
fn sending(lab: &Lab, pki: &Pki) -> Result<Tls> {
    let peer = begun(lab, 25)?;
    let mut tls = pki.tls(peer.stream().try_clone()?)?;
    say(&mut tls, b"EHLO client.example\r\n", "250")?;
    say(&mut tls, b"MAIL FROM:<alice@client.example>\r\n", "250")?;
    say(&mut tls, b"RCPT TO:<bob@server.example>\r\n", "250")?;
    say(&mut tls, b"DATA\r\n", "354")?;
    Ok(tls)
}

fn none_left(vscan: &Vscan<'_>) -> Result<()> {
    wait::until("a session is left", LIMIT, || {
        Ok((vscan.json(&["status"])?["sessions"] == 0).then_some(()))
    })
}

/// Each of these ends the session, leaves nothing behind, and delivers nothing; what comes next is served.
fn peers_that_vanish(steering: Steering) -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let pki = Pki::new(&lab)?;
    let postfix = pki.postfix(lab.server(), "")?;
    let listener = raw::listen(lab.server(), OWN)?;
    let vscan = Vscan::start(&lab, &settings(steering, &pki))?;
    let gateway = vscan.processes().gateway;
    let mut hello = Vec::new();
    {
        let peer = begun(&lab, 25)?;
        let mut tls = pki.tls(peer.stream().try_clone()?)?;
        tls.conn.write_tls(&mut hello)?;
    }

    // The client goes behind half of its first message, and behind the whole, by FIN and by reset.
    for length in [hello.len() / 2, hello.len()] {
        for reset in [false, true] {
            let (mut client, mut server) = both_begun(&lab, &listener)?;
            client.send(&hello[..length])?;
            if length == hello.len() {
                // The server's handshake has begun.
                ensure!(server.take(1)? == [22]);
            }
            if reset {
                client.reset()?
            } else {
                client.finish()?
            }
            // The gateway may still wait for the server, which has no more to say.
            let (_, end) = server.drain()?;
            ensure!(end == End::Reset, "{length} bytes, reset {reset}: {end:?}");
        }
    }
    none_left(&vscan)?;

    // The server goes in the middle of its handshake, by FIN and by reset: the client hears an alert, then the end.
    for reset in [false, true] {
        let (mut client, mut server) = both_begun(&lab, &listener)?;
        client.send(&hello)?;
        server.take(5)?;
        if reset {
            server.reset()?
        } else {
            server.finish()?
        }
        let (said, _) = client.drain()?;
        ensure!(said.starts_with(&[21, 3]), "{}", said.escape_ascii());
    }
    none_left(&vscan)?;

    // The network goes, in the middle of a handshake: the deadline ends it.
    let (mut client, server) = both_begun(&lab, &listener)?;
    client.send(&hello)?;
    server.stream().set_nonblocking(false)?;
    lab.gateway.sh("ip link set wan0 down")?;
    vscan.wait_for_event("anomaly", |it| it["anomaly"]["event"] == "tls_handshake_timeout")?;
    let _ = client.drain()?;
    none_left(&vscan)?;
    lab.gateway.sh(
        "ip link set wan0 up; ip -6 addr replace 2001:db8:2::1/64 dev wan0 nodad 2>/dev/null || true",
    )?;
    drop(server);

    // Half a message, and then an end of the stream without close_notify, with it, or a reset.
    for way in 0..3 {
        let mut tls = sending(&lab, &pki).with_context(|| format!("way {way}"))?;
        tls.write_all(b"Subject: half\r\n\r\nand no more")?;
        tls.flush()?;
        match way {
            0 => tls.sock.shutdown(Shutdown::Write)?,
            1 => {
                tls.conn.send_close_notify();
                tls.flush()?;
                tls.sock.shutdown(Shutdown::Write)?;
            }
            _ => Peer::new(tls.sock.try_clone()?)?.reset()?,
        }
        let mut rest = Vec::new();
        let _ = tls.read_to_end(&mut rest);
        ensure!(!rest.starts_with(b"2"), "accepted: {}", rest.escape_ascii());
    }
    none_left(&vscan)?;
    ensure!(postfix.inbox()?.is_empty(), "half a message was delivered");

    // The scanner's workers die over a message: others take it, and the client never knows.
    let before = vscan.processes();
    before.workers.iter().for_each(|pid| signal(*pid, Signal::STOP));
    let mail = wire(&fixtures::message("scanned", "twice\r\n"));
    std::thread::scope(|scope| -> Result<()> {
        let sent = scope.spawn(|| -> Result<String> {
            let mut tls = sending(&lab, &pki)?;
            say(&mut tls, &[&mail[..], b".\r\n"].concat(), "")
        });
        wait::until("nothing is scanned", LIMIT, || {
            Ok(vscan.flows()?.iter().any(|flow| flow["state"] == "scan").then_some(()))
        })?;
        before.workers.iter().for_each(|pid| signal(*pid, Signal::KILL));
        let Ok(reply) = sent.join() else { bail!("the client panicked") };
        ensure!(reply?.starts_with("250 "));
        Ok(())
    })?;
    wait::until("not delivered", LIMIT, || Ok((postfix.inbox()?.len() == 1).then_some(())))?;
    ensure!(vscan.processes().gateway == gateway, "the gateway did not live through it");
    Ok(())
}

/// A server that refuses the TLS that it announces. Its client has a 220 by then, and learns of it in the handshake; the
/// next ones hear it from the server.
#[test]
fn a_server_that_refuses_what_it_announces() -> Result<()> {
    const REFUSAL: &str = "454 4.7.0 not today";
    let lab = Lab::new(Topology::Plain)?;
    let pki = Pki::new(&lab)?;
    let vscan = Vscan::start(&lab, &settings(Steering::Nft, &pki))?;
    let listener = raw::listen(lab.server(), OWN)?;
    let (mut client, mut server) = asked(&lab, &listener)?;
    client.expect("220")?;
    server.send(format!("{REFUSAL}\r\n"))?;
    let mut tls = pki.tls(client.stream().try_clone()?)?;
    let error = say(&mut tls, b"EHLO c\r\n", "250").err().context("a handshake with nobody")?;
    ensure!(format!("{error:#}").contains("HandshakeFailure"), "{error:#}");
    vscan.wait_for_event("anomaly", |event| {
        event["anomaly"]["event"] == "tls_server_failed" && event.to_string().contains(REFUSAL)
    })?;
    ensure!(server.drain()?.0.is_empty(), "the server heard more than STARTTLS");
    let (mut client, mut server) = asked(&lab, &listener)?;
    server.send(format!("{REFUSAL}\r\n"))?;
    ensure!(client.reply()?.trim_end() == REFUSAL);
    client.send("NOOP\r\n")?;
    ensure!(server.line()? == "NOOP\r\n");
    Ok(())
}

/// The same where it may be spoken to in the clear, on a new connection, on which nothing was said before: the client is inside
/// of TLS all the same, and so is the next one.
#[test]
fn a_server_that_refuses_and_may_be_plain() -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let pki = Pki::new(&lab)?;
    let settings = Settings::new(Steering::Nft)
        .with("smtp", "ports = [25, 2526]\nstarttls = \"terminate\"")
        .with("", &pki.outbound("upstream_tls = \"offered\""));
    let vscan = Vscan::start(&lab, &settings)?;
    let listener = raw::listen(lab.server(), OWN)?;
    let server = std::thread::spawn(move || -> Result<Vec<String>> {
        let (mut server, _) = raw::accept(&listener)?;
        server.send("220 own\r\n")?;
        let mut heard = Vec::new();
        while heard.last().is_none_or(|line| line != "QUIT\r\n") {
            let line = server.line()?;
            let answer = match line.get(..4).unwrap_or_default() {
                "ehlo" | "EHLO" if heard.is_empty() => "250-own\r\n250 STARTTLS\r\n",
                "STAR" => {
                    // The rest of it would answer the next command, were it heard.
                    server.send("454-4.7.0 not\r\n")?;
                    ensure!(server.drain()?.0.is_empty());
                    (server, _) = raw::accept(&listener)?;
                    "220 own again\r\n"
                }
                "DATA" => {
                    server.send("354 go\r\n")?;
                    while server.line()? != ".\r\n" {}
                    "250 taken\r\n"
                }
                _ => "250 ok\r\n",
            };
            server.send(answer)?;
            heard.push(line.to_uppercase());
        }
        Ok(heard)
    });
    let mail = wire(&fixtures::message("plain", "text\r\n"));
    // The server has shown nothing that could be believed.
    let client = pki.client(lab.client(), lab.dial(Family::V4, OWN));
    let told = client.with("ca", serde_json::Value::Null).send(&[&mail])?;
    ensure!(told["replies"][0].as_str().is_some_and(|it| it.starts_with("250 taken")), "{told}");
    let heard = server.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    ensure!(heard[1] == "STARTTLS\r\n" && heard[2].starts_with("EHLO"), "{heard:?}");
    vscan.wait_for_event("anomaly", |event| {
        event["anomaly"]["event"] == "tls_server_failed"
            && event.to_string().contains("spoken to in the clear")
    })?;
    Ok(())
}

/// A server that takes longer for its answer to STARTTLS than handshakes may take: its next client waits for it.
#[test]
fn a_server_that_is_slow_to_agree() -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let pki = Pki::new(&lab)?;
    let vscan = Vscan::start(&lab, &settings(Steering::Bpf, &pki))?;
    let listener = raw::listen(lab.server(), OWN)?;
    let (mut client, _server) = asked(&lab, &listener)?;
    client.expect("220")?;
    vscan.wait_for_event("anomaly", |it| it["anomaly"]["event"] == "tls_handshake_timeout")?;
    let (mut client, mut server) = asked(&lab, &listener)?;
    server.send("220 at last\r\n")?;
    ensure!(client.reply()?.trim_end() == "220 at last", "vscan's own answer");
    Ok(())
}

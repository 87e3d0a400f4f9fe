//! `[outbound]`: hosts inside that send too much mail are refused, cut, listed, and let go again.

use anyhow::{Context, Result, ensure};
use std::time::Duration;
use vscan_tests::agent::{Settings, Steering, Vscan};
use vscan_tests::lab::{Family, Lab, STRICT, Topology, inside_second};
use vscan_tests::peers::Postfix;
use vscan_tests::raw::Peer;
use vscan_tests::{fixtures, on_both, wait};

on_both!(a_mass_mailer_is_refused, a_mass_mailer_is_cut_by_the_kernel, infected_mail_counts);

const ACCESS: &str = "[[access]]\nfrom = [\"10.1.0.0/16\", \"fd00:1::/32\"]\n";

/// One message from a host inside, over a connection of its own; the last reply.
fn send(
    lab: &Lab,
    source: Option<std::net::IpAddr>,
    family: Family,
    recipients: usize,
    body: &[u8],
) -> Result<String> {
    let mut peer = Peer::connect_from(lab.client(), source, lab.dial(family, 25))?;
    let greeting = peer.reply()?;
    if !greeting.starts_with("220") {
        return Ok(greeting);
    }
    peer.ask("EHLO c", "250")?;
    peer.ask("MAIL FROM:<alice@client.example>", "250")?;
    for n in 0..recipients {
        peer.ask(&format!("RCPT TO:<bob{n}@server.example>"), "250")?;
    }
    peer.ask("DATA", "354")?;
    peer.send([b"Subject: x\r\n\r\n", body, b"\r\n.\r\n"].concat())?;
    peer.reply()
}

fn senders(vscan: &Vscan<'_>) -> Result<Vec<serde_json::Value>> {
    let list = vscan.json(&["flows", "--top-senders"])?;
    list.as_array().cloned().context("no list")
}

/// Messages and recipients are limited; the one that goes too far is refused for now, so are the host's next
/// connections, and no other host's; a reload keeps the block, the operator ends it.
fn a_mass_mailer_is_refused(steering: Steering) -> Result<()> {
    let lab = Lab::with_firewall(Topology::Masquerade, STRICT)?;
    let server = Postfix::start(lab.server())?;
    let settings = Settings::new(steering)
        .with("outbound", "messages = 3\nrecipients = 6\nblock = \"10m\"")
        .with("", ACCESS);
    let vscan = Vscan::start(&lab, &settings)?;
    for n in 0..3 {
        let reply = send(&lab, None, Family::V4, 1, b"hello")?;
        ensure!(reply.starts_with("250"), "message {n}: {reply}");
    }
    let reply = send(&lab, None, Family::V4, 1, b"hello")?;
    ensure!(reply.starts_with("421 4.7.0"), "the fourth: {reply}");
    let reply = send(&lab, None, Family::V4, 1, b"hello")?;
    ensure!(reply.starts_with("421 4.7.0"), "a new connection: {reply}");
    // another host of the same network, and its recipients
    let second = Some(inside_second(Family::V4));
    ensure!(send(&lab, second, Family::V4, 6, b"hello")?.starts_with("250"));
    let reply = send(&lab, second, Family::V4, 1, b"hello")?;
    ensure!(reply.starts_with("421 4.7.0"), "seven recipients: {reply}");

    let list = senders(&vscan)?;
    let of = |host: &str| list.iter().find(|s| s["host"] == host).context(format!("{list:?}"));
    ensure!(of("10.1.0.2")?["state"] == "blocked" && of("10.1.0.2")?["over"] == "messages");
    ensure!(of("10.1.0.2")?["minute"]["messages"] == 4, "{list:?}");
    ensure!(of("10.1.0.3")?["over"] == "recipients", "{list:?}");
    let table = vscan.cli(&["flows", "--top-senders", "-n", "1"])?;
    ensure!(table.success() && table.out.contains("blocked") && table.out.lines().count() == 2);
    vscan.wait_for_event("agent", |event| {
        event["agent"]["type"] == "sends_too_much" && event["agent"]["host"] == "10.1.0.2"
    })?;
    let metrics = vscan.metrics()?;
    ensure!(metrics.sum("vscan_outbound_exceeded_total", &[]) == 2.0, "{}", metrics.0);
    ensure!(metrics.sum("vscan_outbound_blocked_hosts", &[]) == 2.0, "{}", metrics.0);

    ensure!(vscan.cli(&["reload"])?.success());
    ensure!(send(&lab, None, Family::V4, 1, b"hello")?.starts_with("421 4.7.0"), "after a reload");
    let unblock = vscan.cli(&["unblock", "10.1.0.2"])?;
    ensure!(unblock.success(), "{unblock:?}");
    ensure!(!vscan.cli(&["unblock", "10.1.0.2"])?.success(), "it is not blocked any more");
    let reply = send(&lab, None, Family::V4, 1, b"hello")?;
    ensure!(reply.starts_with("250"), "after unblock: {reply}");
    // one file for each recipient
    wait::until_true("mails are missing or too many", Duration::from_secs(10), || {
        server.inbox().is_ok_and(|inbox| inbox.len() == 3 + 6 + 1)
    })
}

/// `action = "cut"`: open sessions are reset, new connections never come to anybody; other hosts go on.
fn a_mass_mailer_is_cut_by_the_kernel(steering: Steering) -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let _server = Postfix::start(lab.server())?;
    let settings = Settings::new(steering)
        .with("outbound", "connections = 4\naction = \"cut\"\nexempt = [\"10.1.0.3\"]")
        .with("", "");
    let vscan = Vscan::start(&lab, &settings)?;
    for family in [Family::V4, Family::V6] {
        let mut open = Vec::new();
        for _ in 0..4 {
            let mut peer = Peer::connect(lab.client(), lab.dial(family, 25))?;
            peer.expect("220")?;
            open.push(peer);
        }
        // the fifth: whatever becomes of it, nobody greets it
        let fifth = Peer::connect(lab.client(), lab.dial(family, 25));
        ensure!(fifth.and_then(|mut peer| peer.reply()).is_err(), "the fifth is served");
        for peer in &mut open {
            ensure!(peer.reply().is_err(), "an open session goes on");
        }
        let before = vscan.metrics()?.sum("vscan_sessions_refused_total", &[]);
        wait::until_true("the kernel does not refuse", Duration::from_secs(5), || {
            Peer::connect(lab.client(), lab.dial(family, 25)).is_err()
        })?;
        for _ in 0..3 {
            ensure!(Peer::connect(lab.client(), lab.dial(family, 25)).is_err());
        }
        let refused = vscan.metrics()?.sum("vscan_sessions_refused_total", &[]);
        ensure!(refused - before <= 3.0, "the gateway refused what the kernel should have");
    }
    let exempt = Some(inside_second(Family::V4));
    for _ in 0..6 {
        ensure!(send(&lab, exempt, Family::V4, 1, b"hello")?.starts_with("250"), "an exempt host");
    }
    // A table that somebody flushes is put back, with who is cut.
    vscan.host().sh("nft delete table inet vscan")?;
    wait::until_true("the table is not put back", Duration::from_secs(5), || {
        vscan.host().sh("nft list set inet vscan cut4").is_ok_and(|set| set.contains("10.1.0.2"))
    })?;
    let host = lab.client();
    ensure!(Peer::connect(host, lab.dial(Family::V4, 25)).is_err(), "after a flush");
    ensure!(vscan.cli(&["unblock", "10.1.0.2"])?.success());
    wait::until_true("not let go", Duration::from_secs(5), || {
        Peer::connect(host, lab.dial(Family::V4, 25))
            .and_then(|mut peer| peer.expect("220"))
            .is_ok()
    })?;
    ensure!(Peer::connect(host, lab.dial(Family::V6, 25)).is_err(), "the other stays cut");
    let (_, left) = vscan.stop()?;
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}

/// Infected messages are refused as ever, and too many of them block their sender.
fn infected_mail_counts(steering: Steering) -> Result<()> {
    let lab = Lab::new(Topology::Masquerade)?;
    let _server = Postfix::start(lab.server())?;
    let settings = Settings::new(steering).with("outbound", "infected = 1");
    let vscan = Vscan::start(&lab, &settings)?;
    for _ in 0..2 {
        let reply = send(&lab, None, Family::V6, 1, &fixtures::eicar())?;
        ensure!(reply.starts_with("550 5.7.1"), "{reply}");
    }
    let reply = send(&lab, None, Family::V6, 1, b"hello")?;
    ensure!(reply.starts_with("421 4.7.0"), "{reply}");
    let list = senders(&vscan)?;
    ensure!(list[0]["over"] == "infected" && list[0]["minute"]["infected"] == 2, "{list:?}");
    Ok(())
}

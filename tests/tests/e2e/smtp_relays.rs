//! Postfix as the client: mail that the gateway's own mail server sends, and LMTP. And very many recipients.

use anyhow::{Context, Result, ensure};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;
use vscan_tests::agent::{Settings, Steering, Vscan};
use vscan_tests::lab::{FAMILIES, Family, Lab, Topology};
use vscan_tests::peers::PostfixRelay;
use vscan_tests::raw::Peer;
use vscan_tests::smtp::{Behaviour, Sink, wire};
use vscan_tests::{fixtures, on_both, wait};

on_both!(a_mail_server_on_the_gateway_sends, lmtp, a_thousand_recipients);

/// Hands a message to the relay.
fn submit(lab: &Lab, recipients: &[String], message: &[u8]) -> Result<()> {
    let to = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), PostfixRelay::PORT);
    let mut peer = Peer::connect(lab.client(), to)?;
    peer.expect("220")?;
    peer.ask("EHLO client.example", "250")?;
    peer.ask("MAIL FROM:<alice@client.example>", "250")?;
    for recipient in recipients {
        peer.ask(&format!("RCPT TO:<{recipient}>"), "250")?;
    }
    peer.ask("DATA", "354")?;
    peer.send(wire(message))?;
    peer.expect("250")?;
    peer.ask("QUIT", "221")?;
    Ok(())
}

/// The relay's log has a line for this recipient with all of these words.
fn tells(relay: &PostfixRelay, recipient: &str, words: &[&str]) -> Result<()> {
    let mark = format!("to=<{recipient}>");
    let told = || {
        relay
            .log()
            .lines()
            .any(|line| line.contains(&mark) && words.iter().all(|word| line.contains(word)))
    };
    wait::until_true(&format!("{mark} {words:?}"), Duration::from_secs(15), told)
        .with_context(|| relay.log())
}

fn infected() -> Vec<u8> {
    fixtures::message_with_attachment("infected", "invoice.com", &fixtures::eicar())
}

/// What it sends leaves the machine from no guarded interface's point of view, and is scanned all the same.
fn a_mail_server_on_the_gateway_sends(steering: Steering) -> Result<()> {
    let lab = Lab::new(Topology::FromGateway)?;
    let sink = Sink::start(lab.server(), 25, Behaviour::default())?;
    let vscan = Vscan::start(&lab, &Settings::new(steering).with("smtp", "own_mail = true"))?;
    let recipient = |family: Family| format!("bob-{family:?}@server.example").to_lowercase();
    let routes = FAMILIES.map(|family| (recipient(family), lab.dial(family, 25)));
    let relay = PostfixRelay::start(lab.client(), &routes)?;
    for (number, (recipient, _)) in routes.iter().enumerate() {
        let clean = fixtures::message(&format!("from the gateway {number}"), "text");
        submit(&lab, std::slice::from_ref(recipient), &clean)?;
        tells(&relay, recipient, &["status=sent"])?;
        submit(&lab, std::slice::from_ref(recipient), &infected())?;
        tells(&relay, recipient, &["status=bounced", "550 5.7.1 Message blocked by vscan"])?;
    }
    ensure!(sink.messages().len() == FAMILIES.len(), "{:?}", sink.messages());
    let infected = [("verdict", "infected"), ("protocol", "smtp")];
    ensure!(vscan.metrics()?.sum("vscan_objects_total", &infected) == FAMILIES.len() as f64);
    Ok(())
}

/// One message for three: one has it, one is full, one is unknown; and one that nobody may have.
fn lmtp(steering: Steering) -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let sink = Sink::start(lab.server(), 24, Behaviour { lmtp: true, ..Behaviour::default() })?;
    let settings = Settings::new(steering).with("smtp", "ports = []\nlmtp_ports = [24]");
    let vscan = Vscan::start(&lab, &settings)?;
    let to = lab.dial(Family::V4, 24);
    let [bob, full, no] = ["bob", "full", "no"].map(|name| format!("{name}@server.example"));
    let routes = [&bob, &full, &no].map(|recipient| (recipient.clone(), to));
    let relay = PostfixRelay::start(lab.client(), &routes)?;
    let clean = fixtures::message("by LMTP", "text");
    submit(&lab, &[bob.clone(), full.clone(), no.clone()], &clean)?;
    tells(&relay, &bob, &["status=sent", "250 2.0.0 queued as SINK"])?;
    tells(&relay, &full, &["status=deferred", "452 4.2.2 mailbox full"])?;
    tells(&relay, &no, &["status=bounced", "550 5.1.1 nobody"])?;
    let event = vscan.wait_for_event("smtp", |event| event["smtp"]["outcome"] == "delivered")?;
    ensure!(event["smtp"]["recipients"] == 2 && event["smtp"]["delivered"] == 1, "{event}");
    submit(&lab, &[bob.clone(), full.clone()], &infected())?;
    for recipient in [&bob, &full] {
        tells(&relay, recipient, &["status=bounced", "550 5.7.1 Message blocked by vscan"])?;
    }
    ensure!(sink.messages().len() == 1, "{:?}", sink.messages());
    ensure!(sink.commands().first().is_some_and(|line| line.starts_with("LHLO")));
    Ok(())
}

/// All in one go, every tenth unknown; the answers keep their order, and one message is one message.
fn a_thousand_recipients(steering: Steering) -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let sink = Sink::start(lab.server(), 25, Behaviour::default())?;
    let vscan = Vscan::start(&lab, &Settings::new(steering))?;
    let mut peer = Peer::connect(lab.client(), lab.dial(Family::V6, 25))?;
    peer.expect("220")?;
    peer.ask("EHLO client.example", "250")?;
    let name = |n: usize| if n.is_multiple_of(10) { "no" } else { "bob" };
    let mut all = String::from("MAIL FROM:<alice@client.example>\r\n");
    for n in 0..1200 {
        all.push_str(&format!("RCPT TO:<{}{n}@server.example>\r\n", name(n)));
    }
    peer.send(format!("{all}DATA\r\n"))?;
    peer.expect("250")?;
    for n in 0..1200 {
        peer.expect(if name(n) == "no" { "550 5.1.1" } else { "250" })
            .with_context(|| format!("recipient {n}"))?;
    }
    peer.expect("354")?;
    let message = wire(&fixtures::message("for all", "text"));
    peer.send(&message)?;
    peer.expect("250 2.0.0 queued")?;
    peer.ask("QUIT", "221")?;
    ensure!(sink.messages() == [message]);
    let event = vscan.wait_for_event("smtp", |event| event["smtp"]["outcome"] == "delivered")?;
    ensure!(event["smtp"]["recipients"] == 1080 && event["smtp"]["delivered"] == 1080, "{event}");
    Ok(())
}

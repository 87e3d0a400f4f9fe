//! What the gateway's own firewall refuses stays refused; what is none of ours stays as it was.

use anyhow::{Result, ensure};
use std::time::Duration;
use vscan_tests::agent::{Settings, Steering, Vscan};
use vscan_tests::fixtures;
use vscan_tests::lab::{FAMILIES, Lab, STRICT, Topology, gateway, inside, inside_second};
use vscan_tests::on_both;
use vscan_tests::raw::{self, Attempt, Peer};
use vscan_tests::smtp::{Behaviour, Client, Sink, wire};

on_both!(
    nobody_gets_in,
    nobody_else_gets_out,
    access_rules_decide,
    only_the_forwarded_service_is_reached,
    other_traffic_and_the_ruleset_stay_as_they_were,
    published_without_nat,
);

/// Shorter than a SYN's second retry, longer than any answer here takes.
const SILENCE: Duration = Duration::from_millis(400);

fn nobody_gets_in(steering: Steering) -> Result<()> {
    for topology in [Topology::Plain, Topology::Masquerade] {
        let lab = Lab::with_firewall(topology, STRICT)?;
        lab.outside.sh("ip route replace 10.1.0.0/16 via 192.0.2.1; ip -6 route replace fd00:1::/32 via 2001:db8:2::1")?;
        let _listeners = [raw::listen(&lab.inside, 21)?, raw::listen(&lab.inside, 25)?];
        let _vscan = Vscan::start(&lab, &Settings::new(steering))?;
        for family in FAMILIES {
            for port in [21, 25] {
                let to = (inside(family), port).into();
                let attempt = raw::attempt(&lab.outside, None, to, SILENCE)?;
                assert_eq!(
                    attempt,
                    Attempt::Silent,
                    "{topology:?} {family:?} {port}: from outside"
                );
                let own = (gateway(family), port).into();
                let attempt = raw::attempt(&lab.outside, None, own, SILENCE)?;
                ensure!(
                    attempt != Attempt::Connected,
                    "{topology:?} {family:?} {port}: the gateway"
                );
            }
        }
    }
    Ok(())
}

fn nobody_else_gets_out(steering: Steering) -> Result<()> {
    let lab = Lab::with_firewall(Topology::Plain, STRICT)?;
    let _sink = Sink::start(lab.server(), 25, Behaviour::default())?;
    let _vscan = Vscan::start(&lab, &Settings::new(steering))?;
    for family in FAMILIES {
        let to = lab.dial(family, 25);
        assert_eq!(raw::attempt(&lab.inside, None, to, SILENCE)?, Attempt::Connected, "{family:?}");
        let second = Some(inside_second(family));
        let attempt = raw::attempt(&lab.inside, second, to, SILENCE)?;
        assert_eq!(attempt, Attempt::Silent, "{family:?}: not in [[access]]");
    }
    Ok(())
}

/// Deny and protocol in `[[access]]`, without a firewall: what is not ours is routed, uninspected.
fn access_rules_decide(steering: Steering) -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let hidden = Behaviour { extensions: vec!["XEXCH50".to_owned()], ..Behaviour::default() };
    let _sink = Sink::start(lab.server(), 25, hidden)?;
    let settings = Settings::new(steering).with(
        "",
        "[[access]]\naction = \"deny\"\nfrom = [\"10.1.0.3\", \"fd00:1::3\"]\n\
         [[access]]\nprotocol = \"smtp\"\nfrom = [\"10.1.0.0/16\", \"fd00:1::/32\"]\n",
    );
    let _vscan = Vscan::start(&lab, &settings)?;
    for family in FAMILIES {
        for (source, ours) in [(None, true), (Some(inside_second(family)), false)] {
            let mut peer = Peer::connect_from(&lab.inside, source, lab.dial(family, 25))?;
            peer.expect("220")?;
            let reply = peer.ask("EHLO client.example", "250")?;
            assert_eq!(!reply.contains("XEXCH50"), ours, "{family:?} {source:?}: {reply}");
        }
    }
    Ok(())
}

fn only_the_forwarded_service_is_reached(steering: Steering) -> Result<()> {
    let lab = Lab::with_firewall(Topology::Forward, STRICT)?;
    let sink = Sink::start(lab.server(), 25, Behaviour::default())?;
    let _vscan = Vscan::start(&lab, &Settings::new(steering))?;
    for family in FAMILIES {
        let mut client = Client::connect(&lab.outside, lab.dial(family, 25))?;
        ensure!(client.send(&wire(&fixtures::message("in", "x")))?.starts_with("250"));
        let past = (inside(family), 25).into();
        assert_eq!(raw::attempt(&lab.outside, None, past, SILENCE)?, Attempt::Silent, "{family:?}");
    }
    assert_eq!(sink.messages().len(), 2);
    Ok(())
}

/// A service with a public address: reached only when `publish` says so.
fn published_without_nat(steering: Steering) -> Result<()> {
    for published in [false, true] {
        let lab = Lab::new(Topology::Plain)?;
        let hidden = Behaviour { extensions: vec!["XEXCH50".to_owned()], ..Behaviour::default() };
        let _sink = Sink::start(&lab.inside, 25, hidden)?;
        let mut settings = Settings::new(steering);
        if published {
            settings = settings.with("gateway", "publish = [\"10.1.0.2:25\", \"[fd00:1::2]:25\"]");
        }
        let _vscan = Vscan::start(&lab, &settings)?;
        for family in FAMILIES {
            let mut peer = Peer::connect(&lab.outside, (inside(family), 25).into())?;
            peer.expect("220")?;
            let reply = peer.ask("EHLO client.example", "250")?;
            assert_eq!(!reply.contains("XEXCH50"), published, "{family:?}: {reply}");
        }
    }
    Ok(())
}

fn other_traffic_and_the_ruleset_stay_as_they_were(steering: Steering) -> Result<()> {
    let lab = Lab::with_firewall(Topology::Plain, STRICT)?;
    let rules = "nft list table inet firewall";
    let settings_of_the_kernel = "cd /proc/sys/net; for f in $(find ipv4/conf ipv6/conf ipv4/ip_* -type f | sort); do \
         [ -r $f ] && echo $f $(cat $f 2>/dev/null); done; true";
    let before = (lab.gateway.sh(rules)?, lab.gateway.sh(settings_of_the_kernel)?);
    let other = raw::listen(lab.server(), 7000)?;
    let vscan = Vscan::start(&lab, &Settings::new(steering))?;
    let bytes = fixtures::random(1_000_000, 4);
    for family in FAMILIES {
        let mut peer = Peer::connect(&lab.inside, lab.dial(family, 7000))?;
        let (mut far, from) = raw::accept(&other)?;
        assert_eq!(from.ip(), lab.seen_as(family));
        std::thread::scope(|scope| {
            let sender = scope.spawn(|| peer.send(&bytes));
            let got = far.take(bytes.len())?;
            ensure!(got == bytes);
            sender.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })?;
        let closed = (vscan_tests::lab::outside(family), 7001).into();
        assert_eq!(raw::attempt(&lab.inside, None, closed, SILENCE)?, Attempt::Silent);
    }
    ensure!(vscan.metrics()?.sum("vscan_sessions_total", &[]) == 0.0);
    let during = (lab.gateway.sh(rules)?, lab.gateway.sh(settings_of_the_kernel)?);
    assert_eq!(before.0, during.0, "the firewall was changed");
    let (status, left) = vscan.stop()?;
    ensure!(status.success() && left.is_empty(), "{status} {left:?}");
    let after = (lab.gateway.sh(rules)?, lab.gateway.sh(settings_of_the_kernel)?);
    assert_eq!(before, after);
    Ok(())
}

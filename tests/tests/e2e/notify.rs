//! Notices: who gets them, that they go out of a queue which survives everything, and that they make no loop.

use anyhow::{Context, Result, ensure};
use memchr::memmem;
use serde_json::Value;
use std::time::Duration;
use vscan_tests::agent::{self, Settings, Steering, Vscan};
use vscan_tests::lab::{Family, Lab, Topology};
use vscan_tests::peers::Postfix;
use vscan_tests::smtp::{Behaviour, Client, Sink, wire};
use vscan_tests::{fixtures, on_both, wait};

on_both!(notices_reach_their_parties, a_relay_that_is_down_and_killed_processes_lose_no_notice);

/// A notice is on its way at once; Postfix and its disk need some time.
const LIMIT: Duration = Duration::from_secs(15);

fn infected() -> Vec<u8> {
    wire(&fixtures::message_with_attachment("infected", "invoice.com", &fixtures::eicar()))
}

/// The delivered mails of which the header has all of these.
fn mails(postfix: &Postfix, with: &[&str]) -> Result<Vec<String>> {
    let all = postfix.inbox()?.into_iter().map(|mail| String::from_utf8_lossy(&mail).into_owned());
    Ok(all.filter(|mail| with.iter().all(|text| mail.contains(text))).collect())
}

/// Waits for one mail with all of these in it.
fn mail(postfix: &Postfix, with: &[&str]) -> Result<String> {
    wait::until(&format!("no mail with {with:?}"), LIMIT, || Ok(mails(postfix, with)?.pop()))
        .with_context(|| postfix.log())
}

fn waiting(vscan: &Vscan<'_>) -> Result<f64> {
    Ok(vscan.metrics()?.sum("vscan_notices", &[("state", "waiting")]))
}

fn events(vscan: &Vscan<'_>, result: &str) -> Result<Vec<Value>> {
    let all = vscan.events()?.into_iter().filter(|event| event["event_type"] == "notice");
    Ok(all.map(|event| event["notice"].clone()).filter(|n| n["result"] == result).collect())
}

/// Inside recipient, administrator and inside sender are told once, in mails from nobody; outside senders, the null
/// sender and lists are not. A redirected original arrives whole, past our own interception of our own connections.
fn notices_reach_their_parties(steering: Steering) -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let postfix = Postfix::start(lab.server())?;
    let settings = Settings::new(steering)
        .with("gateway", "intercept_own = true")
        .with(
            "notify",
            "relay = \"192.0.2.2\"\nname = \"gw.example\"\nadmin = [\"admin@server.example\"]\n\
             attach_max = \"1 MiB\"",
        )
        .with(
            "",
            "[[treat]]\nprotocol = \"smtp\"\nsender = \"redirected@server.example\"\n\
             action = \"block\"\nredirect = \"lab@server.example\"\n\
             [[treat]]\nverdict = \"infected\"\naction = \"quarantine\"\n\
             notify = [\"recipient\", \"sender\", \"admin\"]\n",
        );
    let vscan = Vscan::start(&lab, &settings)?;
    let mut client = Client::connect(lab.client(), lab.dial(Family::V4, 25))?;
    let bob: &[&str] = &["bob@server.example"];

    let reply = client.send_as("alice@server.example", bob, &infected())?;
    ensure!(reply.starts_with("550 5.7.1") && reply.contains("; kept as "), "{reply}");
    ensure!(reply.contains(" on gw.example"), "{reply}");
    let id = reply.split("kept as ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap_or("");
    for (to, text) in [
        ("alice@server.example", "Sent by:  10.1.0.2"),
        ("admin@server.example", "Rule:       treat[1]"),
    ] {
        let mail = mail(&postfix, &[&format!("\nTo: {to}"), text])?;
        for wanted in [
            "Return-Path: <>",
            "\nAuto-Submitted: auto-",
            "\nX-Vscan-Notice: ",
            "\nFrom: vscan <postmaster@gw.example>",
            "EICAR_Test_File in invoice.com",
            id,
        ] {
            ensure!(mail.contains(wanted), "{wanted:?} is not in {mail}");
        }
    }
    // Bob is outside here: the message was on its way out.
    ensure!(mails(&postfix, &["\nTo: bob@server.example"])?.is_empty());

    // The same again is told to nobody; nor is anything to a list, to nobody, or to an outside sender.
    client.send_as("alice@server.example", bob, &infected())?;
    let list = [b"List-Id: <l.example>\r\n".as_slice(), &infected()].concat();
    client.send_as("carol@server.example", bob, &list)?;
    client.send_as("", bob, &infected())?;
    let sum = |result: &str| -> Result<f64> {
        Ok(vscan.metrics()?.sum("vscan_notices_total", &[("result", result)]))
    };
    // Of the list's mail and of the one from nobody the administrator alone hears.
    assert_eq!((sum("queued")?, sum("suppressed")?), (4.0, 2.0));
    let held_back = |why: &str, count: usize| {
        wait::until_true(&format!("not {count} events for {why}"), LIMIT, || {
            events(&vscan, "suppressed")
                .is_ok_and(|events| events.iter().filter(|e| e["why"] == why).count() == count)
        })
    };
    held_back("duplicate", 2)?;

    let original = infected();
    client.send_as("redirected@server.example", bob, &original)?;
    let redirected = mail(&postfix, &["\nTo: lab@server.example", "IT IS NOT CLEAN"])?;
    let attached = redirected.split("original.infected").nth(1).context("no attachment")?;
    let lines: String = attached
        .lines()
        .skip_while(|l| !l.is_empty())
        .skip(1)
        .take_while(|l| !l.starts_with("--"))
        .collect();
    let message = original.strip_suffix(b".\r\n").context("the end of data")?;
    let expected: String = fixtures::base64(message).lines().collect();
    assert_eq!(lines, expected, "the original, byte for byte");

    // The notice itself, sent on across the gateway, is caught like any other, and nobody is told of it.
    wait::until_true("notices wait", LIMIT, || waiting(&vscan).is_ok_and(|n| n == 0.0))?;
    let again: String = redirected.lines().map(|line| format!("{line}\r\n")).collect();
    let reply = client.send_as("", &["lab@server.example"], &wire(again.as_bytes()))?;
    ensure!(reply.starts_with("550 5.7.1"), "{reply}");
    held_back("own notice", 1)?;
    // What only claims to be one is like any other: the administrator has heard of that already.
    let forged = again.replace("X-Vscan-Notice: ", "X-Vscan-Notice: 1");
    client.send_as("", &["lab@server.example"], &wire(forged.as_bytes()))?;
    held_back("duplicate", 3)?;
    client.quit()?;
    wait::until_true("notices wait", LIMIT, || waiting(&vscan).is_ok_and(|n| n == 0.0))?;
    assert_eq!((sum("sent")?, sum("dead")?, sum("lost")?), (5.0, 0.0, 0.0));
    let status = vscan.json(&["status"])?;
    assert_eq!(status["notices"]["waiting"], 0);
    Ok(())
}

/// No relay, a gateway killed by SIGKILL, then the whole agent: the notices are there, and arrive when the relay does.
fn a_relay_that_is_down_and_killed_processes_lose_no_notice(steering: Steering) -> Result<()> {
    const MAILS: usize = 3;
    let lab = Lab::new(Topology::Plain)?;
    let _sink = Sink::start(lab.server(), 25, Behaviour::default())?;
    let settings = Settings::new(steering)
        .with("notify", "relay = \"10.1.0.2:25\"\nadmin = [\"admin@server.example\"]\nretry = \"1h\"\ninterval = \"0s\"")
        .with("", "[[treat]]\nverdict = \"infected\"\naction = \"block\"\nnotify = [\"admin\"]\n");
    let vscan = Vscan::start(&lab, &settings)?;
    let mut client = Client::connect(lab.client(), lab.dial(Family::V4, 25))?;
    for _ in 0..MAILS {
        ensure!(client.send(&infected())?.starts_with("550"));
    }
    drop(client);
    // Refused by the relay's host at first, and noted.
    wait::until_true("no attempt", LIMIT, || {
        events(&vscan, "delayed").is_ok_and(|e| e.len() == MAILS)
    })?;
    let before = vscan.processes();
    agent::kill(before.gateway)?;
    vscan.wait_for_processes(&[before.gateway])?;
    let list = || Ok(vscan.json(&["notices", "list"]).ok());
    let listed = wait::until("no answer", LIMIT, list)?;
    let listed = listed.as_array().context("no list")?.clone();
    assert_eq!(listed.len(), MAILS, "{listed:?}");
    for notice in &listed {
        ensure!(notice["error"].as_str().is_some_and(|e| e.contains("10.1.0.2:25")), "{notice}");
        assert_eq!(
            (&notice["state"], &notice["to"]),
            (&Value::from("waiting"), &Value::from("admin@server.example"))
        );
    }
    // The queue can be looked at and changed while nothing runs.
    let after = vscan.processes();
    let config = vscan.config().to_owned();
    agent::kill(after.supervisor)?;
    wait::until_true("the agent lives on", LIMIT, || {
        vscan.host().processes().iter().all(|pid| *pid != after.gateway)
    })?;
    drop(vscan);
    let first = listed[0]["id"].to_string();
    let deleted = agent::cli(&lab.gateway, &config, &["notices", "delete", &first])?;
    ensure!(deleted.success(), "{}{}", deleted.out, deleted.err);

    let postfix = Postfix::start(lab.client())?;
    let vscan = Vscan::start_with(&lab, &settings, config)?;
    let shown = vscan.cli(&["notices", "show", &listed[1]["id"].to_string()])?;
    ensure!(
        shown.out.contains("waiting, 1 tries") && shown.out.contains("EICAR_Test_File"),
        "{}",
        shown.out
    );
    assert_eq!(mails(&postfix, &[])?.len(), 0, "an hour has not passed");
    let retried = vscan.json(&["notices", "retry"])?;
    assert_eq!(retried.as_array().map(Vec::len), Some(MAILS - 1));
    wait::until_true("notices wait", LIMIT, || waiting(&vscan).is_ok_and(|n| n == 0.0))
        .with_context(|| postfix.log())?;
    wait::until_true("a notice did not arrive", LIMIT, || {
        mails(&postfix, &["\nTo: admin@server.example"]).is_ok_and(|mails| mails.len() >= MAILS - 1)
    })?;
    let inbox = postfix.inbox()?;
    assert_eq!(inbox.len(), MAILS - 1, "each once");
    ensure!(inbox.iter().all(|mail| memmem::find(mail, b"Message-ID: <").is_some()));
    ensure!(!vscan.cli(&["notices", "delete", &first])?.success(), "it is gone");
    Ok(())
}

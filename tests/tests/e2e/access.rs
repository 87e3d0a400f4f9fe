//! Who may do what: `[[access]]` rules that ask for users, commands and addresses of mail.

use anyhow::{Result, ensure};
use std::fs;
use vscan_tests::agent::{Settings, Steering, Vscan};
use vscan_tests::ftp::{Client, Mode};
use vscan_tests::lab::{FAMILIES, Family, Lab, STRICT, Topology};
use vscan_tests::peers::{Postfix, PyFtpd, Vsftpd};
use vscan_tests::raw::{End, Peer};
use vscan_tests::{fixtures, on_both};

on_both!(a_read_only_gateway, no_anonymous_upload, senders_and_recipients);

/// Real clients read and list, and change nothing, whatever they try; behind a strict firewall.
fn a_read_only_gateway(steering: Steering) -> Result<()> {
    let lab = Lab::with_firewall(Topology::Masquerade, STRICT)?;
    let server = Vsftpd::start(lab.server(), 21)?;
    let rules =
        "[[access]]\nfrom = [\"10.1.0.2\", \"fd00:1::2\"]\ncommands = [\"read\", \"list\"]\n";
    let settings = Settings::new(steering).with("", rules);
    let vscan = Vscan::start(&lab, &settings)?;
    let check = vscan.cli(&["check"])?;
    ensure!(check.success() && check.out.contains("commands read, list"), "{check:?}");

    let content = fixtures::random(300_000, 4);
    fs::write(server.files().join("there"), &content)?;
    fs::write(server.files().join("bad"), fixtures::eicar())?;
    let here = lab.client().dir();
    fs::write(here.join("new"), &content)?;
    for options in [&["--ipv4"][..], &["--ipv6"], &["--ipv4", "-P", "-"]] {
        let curl = |more: &[&str]| lab.client().run([&["curl", "-sS"][..], options, more].concat());
        let url = |name: &str| format!("ftp://alice:x@server.example/{name}");
        let get = curl(&["-o", "got", &url("there")])?;
        ensure!(get.success() && fs::read(here.join("got"))? == content, "{options:?}: {get:?}");
        let list = curl(&[&url("")])?;
        ensure!(list.success() && list.out.contains("there"), "{options:?}: {list:?}");
        let bad = curl(&["-o", "got-bad", &url("bad")])?;
        ensure!(!bad.success(), "what may be read is scanned all the same: {bad:?}");
        let put = curl(&["-w", "%{response_code}", "-T", "new", &url("new")])?;
        ensure!(!put.success() && put.out == "550", "{options:?}: {put:?}");
    }
    let lftp = |commands: &str| {
        let script = format!(
            "set net:timeout 10; set net:max-retries 2; open -u alice,x server.example; {commands}"
        );
        lab.client().run(["lftp", "-c", &script])
    };
    ensure!(lftp("get there -o lftp-got")?.success());
    for change in ["put new", "rm there", "mv there elsewhere", "mkdir dir", "chmod 600 there"] {
        let tried = lftp(change)?;
        ensure!(!tried.success() && tried.err.contains("not permitted here by vscan"), "{tried:?}");
    }
    let left: Vec<_> = fs::read_dir(server.files())?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_>>()?;
    ensure!(left.len() == 2 && server.files().join("there").exists(), "{left:?}");
    for verb in ["STOR", "DELE", "RNFR", "MKD", "SITE"] {
        ensure!(!server.log().contains(&format!("\"{verb} ")), "{verb} reached the server");
    }
    // Behind TLS nothing could be kept back.
    let mut control = Peer::connect(lab.client(), lab.dial(Family::V4, 21))?;
    control.expect("220")?;
    control.ask("AUTH TLS", "534")?;

    vscan.wait_for_event("ftp", |event| {
        event["ftp"]["outcome"] == "denied" && event["ftp"]["command"] == "DELE"
    })?;
    let commands = [("protocol", "ftp"), ("what", "command")];
    ensure!(vscan.metrics()?.sum("vscan_access_denied_total", &commands) >= 8.0);
    Ok(())
}

/// `anonymous` reads, `alice` writes, nobody else gets in; a change of user gives no rights before the server agrees.
fn no_anonymous_upload(steering: Steering) -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let addresses = FAMILIES.map(|family| lab.dial(family, 21).ip().to_string());
    let server = PyFtpd::start(lab.server(), 21, &addresses)?;
    let rules = "[[access]]\nuser = [\"anonymous\", \"ftp\"]\ncommands = [\"read\", \"list\"]\n\
                 [[access]]\nuser = [\"ali*\"]\n";
    let vscan = Vscan::start(&lab, &Settings::new(steering).with("", rules))?;
    let content = fixtures::random(50_000, 8);
    fs::write(server.files().join("there"), &content)?;
    let here = lab.client().dir();
    fs::write(here.join("new"), &content)?;
    for family in FAMILIES {
        let option = if family == Family::V4 { "--ipv4" } else { "--ipv6" };
        let curl = |more: &[&str]| lab.client().run([&["curl", "-sS", option][..], more].concat());
        let get = curl(&["-o", "got", "ftp://server.example/there"])?;
        ensure!(get.success() && fs::read(here.join("got"))? == content, "anonymous: {get:?}");
        let put = curl(&["-w", "%{response_code}", "-T", "new", "ftp://server.example/anon"])?;
        ensure!(!put.success() && put.out == "550", "anonymous upload: {put:?}");
        let put = curl(&["-T", "new", "ftp://alice:secret@server.example/alice"])?;
        ensure!(put.success() && fs::read(server.files().join("alice"))? == content, "{put:?}");
        fs::remove_file(server.files().join("alice"))?;
        let get = curl(&["-o", "got-bob", "ftp://bob:x@server.example/there"])?;
        ensure!(get.code() == 67, "login denied: {get:?}");
        ensure!(!server.files().join("anon").exists());
    }
    ensure!(!server.log().contains("USER bob"), "a denied login reached the server");

    let mut control = Peer::connect(lab.client(), lab.dial(Family::V4, 21))?;
    control.expect("220")?;
    ensure!(control.ask("USER bob", "530")?.contains("vscan"));
    control.ask("USER anonymous", "331")?;
    control.ask("PASS x@", "230")?;
    control.ask("DELE there", "550")?;
    control.ask("USER alice", "331")?;
    control.ask("DELE there", "550")?;
    control.ask("PASS wrong", "530")?;
    control.ask("DELE there", "550")?;
    ensure!(server.files().join("there").exists());
    drop(control);

    let mut alice = Client::connect(lab.client(), lab.dial(Family::V4, 21), Mode::Epsv)?;
    let down = alice.download("RETR there")?;
    ensure!(down.data == Some((content, End::Fin)), "{}", down.reply);
    ensure!(
        alice.upload("infected", &fixtures::eicar())?.reply.starts_with("550 infected: blocked")
    );
    alice.control().ask("DELE there", "250")?;
    alice.quit()?;
    vscan.wait_for_event("ftp", |event| {
        event["ftp"]["type"] == "user" && event["ftp"]["name"] == "bob"
    })?;
    let users = [("protocol", "ftp"), ("what", "user")];
    assert_eq!(vscan.metrics()?.sum("vscan_access_denied_total", &users), 3.0);
    Ok(())
}

/// Mail leaves in the name of the own domain only, except to the postmaster; a denied recipient leaves the others.
fn senders_and_recipients(steering: Steering) -> Result<()> {
    let lab = Lab::new(Topology::Masquerade)?;
    let server = Postfix::start(lab.server())?;
    let rules = "[[access]]\nsender = [\"*@client.example\"]\nrecipient = [\"*@server.example\"]\n\
                 [[access]]\nrecipient = [\"postmaster@*\"]\n";
    let vscan = Vscan::start(&lab, &Settings::new(steering).with("", rules))?;
    let swaks = |from: &str, to: &str| {
        let server = "mail.server.example";
        lab.client().run(["swaks", "--server", server, "--from", from, "--to", to, "--body", "x"])
    };
    let sent = swaks("alice@client.example", "bob@server.example")?;
    ensure!(sent.success(), "{}", sent.out);
    let forged = swaks("alice@elsewhere.example", "bob@server.example")?;
    ensure!(!forged.success() && forged.out.contains("550 5.7.1 This recipient"), "{}", forged.out);
    let asked = swaks("alice@elsewhere.example", "postmaster@server.example")?;
    ensure!(asked.success(), "{}", asked.out);
    let routed = swaks("alice@client.example", "bob@server.example,bob%other@server.example")?;
    ensure!(routed.success() && routed.out.contains("550 5.7.1"), "{}", routed.out);
    let mut peer = Peer::connect(lab.client(), lab.dial(Family::V6, 25))?;
    peer.expect("220")?;
    peer.ask("EHLO c", "250")?;
    peer.ask("STARTTLS", "454")?;
    vscan.wait_for_event("smtp", |event| {
        event["smtp"]["type"] == "recipient" && event["smtp"]["name"] == "bob%other@server.example"
    })?;
    let denied = [("protocol", "smtp"), ("what", "recipient")];
    assert_eq!(vscan.metrics()?.sum("vscan_access_denied_total", &denied), 2.0);
    ensure!(!server.log().contains("elsewhere.example>, to=<bob"), "{}", server.log());
    Ok(())
}

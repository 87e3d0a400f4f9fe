//! Mail that lies on a server: `vscan mailbox run`, alone and beside the gateway, against a real Dovecot.

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;
use vscan_tests::agent::{self, Settings, Steering, Vscan};
use vscan_tests::fixtures;
use vscan_tests::host::Host;
use vscan_tests::imap::{Mail, Mailbox};
use vscan_tests::lab::{Lab, Topology};
use vscan_tests::peers::{Dovecot, Postfix};
use vscan_tests::wait;

/// Where Dovecot is.
const SERVER: &str = "192.0.2.2";

fn user<'a>(lab: &'a Lab, name: &'a str) -> Result<Mailbox<'a>> {
    Ok(Mailbox { from: &lab.outside, server: SERVER.parse()?, user: name })
}

fn infected(subject: &str) -> Vec<u8> {
    let message = fixtures::message_with_attachment(subject, "invoice.com", &fixtures::eicar());
    [format!("Message-ID: <{subject}@client.example>\r\n").as_bytes(), &message].concat()
}

fn clean(subject: &str) -> Vec<u8> {
    fixtures::message(subject, "Dear Bob, here it is.")
}

/// A configuration for mailboxes alone, with these tables behind it.
fn configuration(host: &Host, rules: &[PathBuf], tables: &str) -> Result<PathBuf> {
    let dir = host.dir();
    fs::write(dir.join("master"), "master\n")?;
    let rules: Vec<String> = rules.iter().map(|path| format!("\"{}\"", path.display())).collect();
    let text = format!(
        "[paths]\nrun_dir = \"{dir}/run\"\nstate_dir = \"{dir}/state\"\nevents = \"{dir}/events.json\"\n\
         [scan]\nrules = [{}]\nworkers = 2\n[quarantine]\nmin_free = \"1 MiB\"\n\
         [metrics]\nlisten = \"127.0.0.1:9464\"\n{tables}",
        rules.join(", "),
        dir = dir.display(),
    );
    let path = dir.join("mailbox.toml");
    fs::write(&path, text)?;
    Ok(path)
}

/// A section for these users of the server, with more keys.
fn section(host: &Host, name: &str, users: &[&str], more: &str) -> String {
    let users: Vec<String> = users.iter().map(|user| format!("\"{user}\"")).collect();
    format!(
        "[mailbox.{name}]\nhost = \"{SERVER}\"\nsecurity = \"insecure\"\ninterval = \"1s\"\nuser = \"admin\"\n\
         secret_file = \"{}/master\"\nusers = [{}]\n{more}\n",
        host.dir().display(),
        users.join(", ")
    )
}

fn shipped_rules() -> Vec<PathBuf> {
    vec![agent::repository().join("deploy/rules")]
}

fn subjects(mails: &[Mail]) -> Vec<&str> {
    mails.iter().map(Mail::subject).collect()
}

/// The record of an account, when what is asked for holds of it.
fn account(vscan: &Vscan<'_>, name: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
    wait::until(&format!("account {name}"), Duration::from_secs(20), || {
        let all = vscan.json(&["mailbox", "status", name])?;
        Ok(all.as_array().and_then(|all| all.iter().find(|a| wanted(a)).cloned()))
    })
}

/// What every treatment leaves in the mailbox, and that nothing else changes there: unread stays unread.
#[test]
fn every_treatment_does_what_it_says_and_unread_stays_unread() -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let _dovecot = Dovecot::start(lab.server())?;
    let users =
        ["strip", "replace", "scramble", "substitute", "tag", "pass", "delete", "default", "plain"];
    for name in users.iter().chain(&["moved", "dry"]) {
        let mailbox = user(&lab, name)?;
        mailbox.append(
            "INBOX",
            "",
            &[&clean("before"), &infected("infected"), &clean("behind")],
        )?;
        mailbox.append("INBOX", "\\Seen \\Flagged", &[&infected("read")])?;
    }
    let before = user(&lab, "strip")?.list("INBOX")?;
    let rule = |account: &str, action: &str| {
        format!(
            "[[treat]]\nprotocol = \"mailbox\"\nuser = \"staff/{account}\"\naction = \"{action}\"\n"
        )
    };
    let host = &lab.gateway;
    let mut tables = section(host, "staff", &users, "");
    for name in ["strip", "replace", "scramble", "substitute", "tag", "pass"] {
        tables.push_str(&rule(name, name));
    }
    tables.push_str(&rule("delete", "block"));
    // A rule for connections deletes nothing in a mailbox.
    tables.push_str("[[treat]]\nuser = \"staff/plain\"\naction = \"block\"\n");
    tables.push_str(&section(host, "folder", &["moved"], "quarantine_folder = \"Infected\""));
    tables.push_str(&section(host, "dry", &["dry"], "dry_run = true"));
    let vscan = Vscan::start_mailboxes(host, configuration(host, &shipped_rules(), &tables)?)?;
    for name in users {
        account(&vscan, &format!("staff/{name}"), |a| {
            a["infected"] == 1
                && (a["treated"] == 1 || name == "pass")
                && a["looked"] != Value::Null
        })?;
    }
    account(&vscan, "folder/moved", |a| a["treated"] == 1)?;
    account(&vscan, "dry/dry", |a| a["infected"] == 1)?;

    for name in users.iter().chain(&["moved", "dry"]) {
        let now = user(&lab, name)?.list("INBOX")?;
        // What is clean, and what was read already, is as it was: flags, date, bytes, identifier.
        for n in [0, 2, 3] {
            ensure!(now.contains(&before[n]), "{name}: {:?} is not as it was", before[n].subject());
        }
        let rest: Vec<&Mail> = now
            .iter()
            .filter(|mail| !before[..1].contains(mail) && !before[2..].contains(mail))
            .collect();
        match *name {
            "pass" | "dry" => ensure!(rest == [&before[1]], "{name}: {rest:?}"),
            "delete" | "default" | "plain" | "moved" => {
                ensure!(rest.is_empty(), "{name}: {rest:?}")
            }
            _ => {
                let [treated] = rest[..] else { anyhow::bail!("{name}: {rest:?}") };
                ensure!(
                    treated.is_unread() && treated.date == before[1].date,
                    "{name}: {treated:?}"
                );
                ensure!(treated.text.contains("X-Vscan: "), "{name}: {}", treated.text);
                let gone = !treated.text.contains("WDVPIVAlQEFQWzRcUFpYNTQ");
                ensure!(gone != (*name == "tag"), "{name}: {}", treated.text);
                let subject = if *name == "tag" { "[vscan] infected" } else { "infected" };
                ensure!(treated.subject() == subject, "{name}: {}", treated.subject());
            }
        }
    }
    let moved = user(&lab, "moved")?.list("Infected")?;
    ensure!(subjects(&moved) == ["infected"] && moved[0].is_unread(), "{moved:?}");
    // Deleted is deleted, all others are kept: by default, by a rule for connections, and before a substitute.
    let kept = vscan.json(&["quarantine", "list"])?;
    let mut owners: Vec<&str> =
        kept.as_array().into_iter().flatten().filter_map(|e| e["user"].as_str()).collect();
    owners.sort_unstable();
    ensure!(owners == ["staff/default", "staff/plain", "staff/substitute"], "{owners:?}");

    // Told as the gateway tells of what crosses it.
    let alert =
        vscan.wait_for_event("alert", |e| e["object"]["mailbox"]["account"] == "staff/strip")?;
    ensure!(alert["app_proto"] == "mailbox" && alert["dest_port"] == 143, "{alert}");
    ensure!(alert["object"]["mailbox"]["folder"] == "INBOX", "{alert}");
    ensure!(
        alert["object"]["action"] == "strip" && alert["alert"]["action"] == "blocked",
        "{alert}"
    );
    let dry = vscan.wait_for_event("alert", |e| e["object"]["mailbox"]["account"] == "dry/dry")?;
    ensure!(
        dry["object"]["action"] == "quarantine" && dry["alert"]["action"] == "allowed",
        "{dry}"
    );
    ensure!(dry["object"]["mailbox"]["dry_run"] == true, "{dry}");
    let flows = vscan.flows()?;
    let flow =
        flows.iter().find(|flow| flow["user"] == "staff/strip" && flow["verdict"] == "infected");
    ensure!(flow.is_some_and(|flow| flow["protocol"] == "mailbox"), "{flows:?}");
    let metrics = vscan.metrics()?;
    ensure!(metrics.sum("vscan_mailbox_messages_total", &[("result", "treated")]) == 9.0);
    ensure!(
        metrics.sum("vscan_objects_total", &[("protocol", "mailbox"), ("verdict", "infected")])
            == 11.0
    );
    let (status, left) = vscan.stop()?;
    ensure!(status.success() && left.is_empty(), "{status} {left:?}");
    Ok(())
}

/// A copy that was read already is found in another account by what was found in the first one; asking for a scan shows what
/// would be done; new rules find yesterday's mail.
#[test]
fn copies_scans_on_demand_and_new_rules() -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let _dovecot = Dovecot::start(lab.server())?;
    let (ann, bob) = (user(&lab, "ann")?, user(&lab, "bob")?);
    bob.append("INBOX", "\\Seen", &[&infected("copy"), &infected("other")])?;
    bob.append("INBOX", "", &[&clean("harmless")])?;
    let host = &lab.gateway;
    let rules = host.dir().join("rules");
    fs::create_dir(&rules)?;
    fs::copy(agent::repository().join("deploy/rules/eicar.yar"), rules.join("eicar.yar"))?;
    let more = "domain = \"server.example\"\nrescan_age = \"1d\"\nfolders = [\"*\"]\nquarantine_folder = \"Infected\"";
    let tables = section(host, "staff", &["ann", "bob"], more);
    let vscan =
        Vscan::start_mailboxes(host, configuration(host, std::slice::from_ref(&rules), &tables)?)?;
    account(&vscan, "staff/bob", |a| a["scanned"] == 1 && a["looked"] != Value::Null)?;

    // Only what is new is looked at: the read messages are not, until somebody asks, or a copy of one is found.
    let scan = vscan.cli(&["mailbox", "scan", "staff/bob/INBOX", "--dry-run"])?;
    ensure!(scan.code() == 1 && scan.out.contains("infected"), "{}{}", scan.out, scan.err);
    ensure!(scan.out.matches(", would quarantine").count() == 2, "{}", scan.out);
    ensure!(subjects(&bob.list("INBOX")?) == ["copy", "other", "harmless"]);
    ann.append("INBOX", "", &[&infected("copy")])?;
    ann.wait("INBOX", "what ann got is taken away", |mails| mails.is_empty())?;
    let left = bob.wait("INBOX", "bob's copy is taken away", |mails| mails.len() == 2)?;
    ensure!(subjects(&left) == ["other", "harmless"], "{left:?}");
    ensure!(!left[0].is_unread() && left[1].is_unread(), "{left:?}");
    ensure!(subjects(&bob.list("Infected")?) == ["copy"]);

    // A new rule: what was clean yesterday is found.
    fs::write(
        rules.join("new.yar"),
        "rule harmless { strings: $a = \"here it is\" condition: $a }\n",
    )?;
    ensure!(vscan.cli(&["reload"])?.success());
    bob.wait("INBOX", "the rescan finds it", |mails| subjects(mails) == ["other"])?;
    let missing = vscan.cli(&["mailbox", "scan", "staff/nobody"])?;
    ensure!(missing.code() == 69 && missing.err.contains("there is no account"), "{}", missing.err);
    Ok(())
}

/// Killed again and again in the middle of replacements: every message is there once, and treated in the end.
#[test]
fn killed_at_any_moment_every_message_is_there_once() -> Result<()> {
    const MESSAGES: usize = 300;
    let lab = Lab::new(Topology::Plain)?;
    let _dovecot = Dovecot::start(lab.server())?;
    let ann = user(&lab, "ann")?;
    let all: Vec<Vec<u8>> = (0..MESSAGES).map(|n| infected(&format!("number-{n}"))).collect();
    let all: Vec<&[u8]> = all.iter().map(Vec::as_slice).collect();
    ann.append("INBOX", "", &all)?;
    let host = &lab.gateway;
    let rule = "[[treat]]\nprotocol = \"mailbox\"\naction = \"replace\"\n";
    let tables = format!("{}{rule}", section(host, "staff", &["ann"], ""));
    let config = configuration(host, &shipped_rules(), &tables)?;
    let treated =
        |mails: &[Mail]| mails.iter().filter(|mail| mail.text.contains("X-Vscan: ")).count();
    let mut seen = 0;
    for round in 1..=4 {
        let vscan = Vscan::start_mailboxes(host, config.clone())?;
        wait::until("nothing is treated", Duration::from_secs(20), || {
            let mails = ann.list("INBOX")?;
            Ok((treated(&mails) >= (seen + 3).min(MESSAGES)).then_some(()))
        })?;
        // The gateway dies in the middle of whatever it does, or all of it with the supervisor.
        let processes = vscan.processes();
        let victim = if round % 2 == 0 { processes.supervisor } else { processes.gateway };
        vscan_tests::host::signal(victim, Signal::KILL);
        if round % 2 == 0 {
            vscan.process().wait(Duration::from_secs(10))?;
        } else {
            let (status, _) = vscan.stop()?;
            ensure!(status.success(), "{status}");
        }
        seen = treated(&ann.list("INBOX")?);
    }
    let vscan = Vscan::start_mailboxes(host, config)?;
    let mails = ann.wait("INBOX", "all are treated", |mails| {
        mails.len() == MESSAGES && treated(mails) == MESSAGES
    })?;
    let mut found = subjects(&mails);
    found.sort_unstable();
    found.dedup();
    ensure!(found.len() == MESSAGES, "{found:?}");
    ensure!(mails.iter().all(Mail::is_unread));
    drop(vscan);
    Ok(())
}

/// As part of `vscan run`: one scanner and one flow table for both; a reload takes accounts away and brings them back.
#[test]
fn beside_the_gateway() -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let _dovecot = Dovecot::start(lab.server())?;
    let ann = user(&lab, "ann")?;
    let host = &lab.gateway;
    fs::write(host.dir().join("master"), "master\n")?;
    let section = section(host, "staff", &["ann"], "");
    let settings = Settings::new(Steering::Nft).with("", &section);
    let vscan = Vscan::start(&lab, &settings)?;
    ann.append("INBOX", "", &[&clean("harmless"), &infected("infected")])?;
    let left = ann.wait("INBOX", "the infected one is taken away", |mails| mails.len() == 1)?;
    ensure!(subjects(&left) == ["harmless"] && left[0].is_unread());
    vscan.wait_for_event("alert", |e| e["app_proto"] == "mailbox")?;
    // A reload takes the account away, and brings it back.
    let text = fs::read_to_string(vscan.config())?;
    let without = &text[..text.find("[mailbox.").unwrap_or(text.len())];
    fs::write(vscan.config(), without)?;
    ensure!(vscan.cli(&["reload"])?.success());
    wait::until("the account is gone", Duration::from_secs(10), || {
        Ok(vscan.json(&["mailbox", "status"])?.as_array().is_some_and(Vec::is_empty).then_some(()))
    })?;
    fs::write(vscan.config(), &text)?;
    ensure!(vscan.cli(&["reload"])?.success());
    account(&vscan, "staff/ann", |a| a["looked"] != Value::Null)?;
    let (status, left) = vscan.stop()?;
    ensure!(status.success() && left.is_empty(), "{status} {left:?}");
    Ok(())
}

/// What is wrong with an account is said where somebody looks: status, check and doctor.
#[test]
fn what_is_wrong_is_said() -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let _dovecot = Dovecot::start(lab.server())?;
    let host = &lab.gateway;
    let one = |name: &str, port: u16, secret: &str| {
        format!(
            "[mailbox.{name}]\nhost = \"{SERVER}\"\nport = {port}\nsecurity = \"insecure\"\nuser = \"ann\"\n\
             secret_file = \"{}/{secret}\"\n",
            host.dir().display()
        )
    };
    fs::write(host.dir().join("wrong"), "wrong\n")?;
    fs::write(host.dir().join("right"), "secret\n")?;
    let tables = [
        one("good", 143, "right"),
        one("refused", 143, "wrong"),
        one("gone", 144, "right"),
        one("lost", 143, "nowhere"),
    ]
    .concat();
    let vscan = Vscan::start_mailboxes(host, configuration(host, &shipped_rules(), &tables)?)?;
    account(&vscan, "good", |a| a["state"] == "waiting")?;
    for (name, why) in [
        ("refused", "login refused"),
        ("gone", "Connection refused"),
        ("lost", "nowhere: No such file"),
    ] {
        let failed = account(&vscan, name, |a| a["state"] == "failed")?;
        ensure!(failed["error"][1].as_str().is_some_and(|error| error.contains(why)), "{failed}");
    }
    let check = vscan.cli(&["check"])?;
    ensure!(
        check.code() == 78 && check.out.contains("nowhere: No such file"),
        "{}{}",
        check.out,
        check.err
    );
    let doctor = vscan.cli(&["doctor"])?;
    for wanted in
        ["good can log in", "login refused", "Connection refused", "nowhere: No such file"]
    {
        ensure!(doctor.out.contains(wanted), "{wanted}: {}{}", doctor.out, doctor.err);
    }
    Ok(())
}

/// Every way in and every kind of account, through the configuration; a keyword; an archive that is cleaned in its mailbox.
#[test]
fn every_way_to_a_server() -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let host = &lab.gateway;
    let dir = host.dir().display().to_string();
    lab.server().sh(&format!(
        "cd {}; exec 2>&1
         openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30 -subj /CN=mail \
           -addext subjectAltName=IP:{SERVER} -addext basicConstraints=CA:FALSE -keyout mail.key -out mail.pem",
        lab.dir().display()
    ))?;
    let (certificate, key) = (lab.dir().join("mail.pem"), lab.dir().join("mail.key"));
    let _dovecot = Dovecot::start_with(lab.server(), Some((&certificate, &key)), "")?;
    lab.server().wait_for_port(993)?;
    let ca = certificate.display();
    let tables = format!(
        r#"
[mailbox.tls]
host = "{SERVER}"
ca = "{ca}"
user = "ann"
secret_command = ["/bin/echo", "secret"]
auth = "login"
[mailbox.start]
host = "{SERVER}"
port = 143
security = "starttls"
ca = "{ca}"
accounts_file = "{dir}/accounts"
[mailbox.doubtful]
host = "{SERVER}"
user = "ann"
secret_file = "{dir}/secret"
[mailbox.whole]
host = "{SERVER}"
security = "insecure"
user = "admin"
secret_file = "{dir}/master"
users_file = "{dir}/users"
master = "*"
which = "all"
keyword = "$VscanScanned"
[[treat]]
user = "tls"
protocol = "mailbox"
action = "clean"
"#
    );
    for (name, text) in [
        ("accounts", "bob secret\ncarl secret\n"),
        ("secret", "secret\n"),
        ("users", "dora\neve\n"),
    ] {
        fs::write(host.dir().join(name), text)?;
    }
    let archive = [("read.me", &b"all is well"[..]), ("invoice.com", &fixtures::eicar())];
    let archive = fixtures::message_with_attachment("zip", "a.zip", &fixtures::zip(&archive));
    user(&lab, "ann")?.append("INBOX", "", &[&archive])?;
    for name in ["bob", "carl", "eve"] {
        user(&lab, name)?.append("INBOX", "", &[&infected("infected"), &clean("clean")])?;
    }
    user(&lab, "dora")?.append("INBOX", "\\Seen", &[&clean("read")])?;
    user(&lab, "dora")?.append("INBOX", "", &[&clean("unread")])?;
    let vscan = Vscan::start_mailboxes(host, configuration(host, &shipped_rules(), &tables)?)?;
    let doubtful = account(&vscan, "doubtful", |a| a["state"] == "failed")?;
    let why = doubtful["error"][1].as_str().context("no reason")?;
    ensure!(why.contains("certificate"), "{why}");

    let cleaned = user(&lab, "ann")?
        .wait("INBOX", "the archive", |mails| mails.iter().any(|m| m.text.contains("X-Vscan")))?;
    let kept = fixtures::base64(&fixtures::zip(&[("read.me", b"all is well")]));
    ensure!(cleaned.len() == 1 && cleaned[0].text.contains(&kept), "{cleaned:?}");
    ensure!(cleaned[0].is_unread(), "{cleaned:?}");
    for name in ["bob", "carl", "eve"] {
        let left = user(&lab, name)?
            .wait("INBOX", "the treatment", |mails| mails.len() == 1)
            .with_context(|| name.to_owned())?;
        ensure!(left[0].subject() == "clean" && left[0].is_unread(), "{left:?}");
    }
    let marked = user(&lab, "dora")?.wait("INBOX", "the keyword", |mails| {
        mails.iter().all(|mail| mail.flags.iter().any(|flag| flag == "$VscanScanned"))
    })?;
    ensure!(marked.iter().filter(|mail| mail.is_unread()).count() == 1, "{marked:?}");
    let (status, left) = vscan.stop()?;
    ensure!(status.success() && left.is_empty(), "{status} {left:?}");
    Ok(())
}

/// Whoever a rule names is told of what was found in a mailbox, and the original goes where the rule says.
#[test]
fn everybody_concerned_is_told() -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let _dovecot = Dovecot::start(lab.server())?;
    let postfix = Postfix::start(lab.server())?;
    let ann = user(&lab, "ann")?;
    let host = &lab.gateway;
    let tables = format!(
        "[notify]\nrelay = \"192.0.2.2\"\nname = \"gw.example\"\nadmin = [\"admin@server.example\"]\n\
         domains = [\"server.example\"]\n\
         [[treat]]\nprotocol = \"mailbox\"\nfolder = \"INBOX\"\naction = \"strip\"\n\
         notify = [\"recipient\", \"addressees\", \"sender\", \"admin\"]\nredirect = \"lab@server.example\"\n{}",
        section(host, "staff", &["ann"], "domain = \"server.example\"")
    );
    let vscan = Vscan::start_mailboxes(host, configuration(host, &shipped_rules(), &tables)?)?;
    let message = String::from_utf8(infected("infected"))?;
    let message = message.replace("alice@client.example", "alice@server.example");
    ann.append("INBOX", "", &[message.as_bytes()])?;
    // The owner of the mailbox, whom the header names, the author, the administrator; and the original.
    for (to, wanted) in [
        ("ann@server.example", "mail for you was treated"),
        ("bob@server.example", "mail for you was treated"),
        ("alice@server.example", "alice@server.example"),
        ("admin@server.example", "Protocol:   mailbox, internal"),
        ("lab@server.example", "filename=\""),
    ] {
        let to = format!("\nTo: {to}");
        wait::until(&format!("no mail {to:?}"), Duration::from_secs(15), || {
            let all = postfix.inbox()?;
            let texts = all.iter().map(|mail| String::from_utf8_lossy(mail));
            Ok(texts.into_iter().any(|m| m.contains(&to) && m.contains(wanted)).then_some(()))
        })
        .with_context(|| vscan.log())?;
    }
    ann.wait("INBOX", "the message is treated", |mails| {
        mails.len() == 1 && mails[0].text.contains("X-Vscan: ")
    })?;
    Ok(())
}

/// An ordinary user guards his own mailbox: no privilege, no file outside of his home.
#[test]
fn an_ordinary_user_guards_his_own_mailbox() -> Result<()> {
    /// Alice, and her group.
    const ALICE: u32 = 30_101;
    let lab = Lab::new(Topology::Plain)?;
    let _dovecot = Dovecot::start(lab.server())?;
    let ann = user(&lab, "ann")?;
    let host = &lab.gateway;
    let home = host.dir().join("home");
    fs::create_dir(&home)?;
    for name in ["vscan", "vscan-scanner"] {
        fs::copy(agent::program(name)?, home.join(name))?;
    }
    fs::copy(agent::repository().join("deploy/rules/eicar.yar"), home.join("eicar.yar"))?;
    fs::write(home.join("secret"), "secret\n")?;
    let config = home.join("mailbox.toml");
    let text = format!(
        "[mailbox.mine]\nhost = \"{SERVER}\"\nsecurity = \"insecure\"\nuser = \"ann\"\ninterval = \"1s\"\n\
         secret_file = \"{home}/secret\"\n[scan]\nrules = [\"{home}/eicar.yar\"]\nworkers = 1\n\
         [quarantine]\nmin_free = \"1 MiB\"\n\
         [[treat]]\nprotocol = \"mailbox\"\naction = \"replace\"\nkeep = true\n",
        home = home.display()
    );
    fs::write(&config, text)?;
    host.sh(&format!("chown -R {ALICE}:{ALICE} home && chmod 700 home && chmod 600 home/secret"))?;
    let mut command = host.command("setpriv");
    command
        .args(["--reuid", &ALICE.to_string(), "--regid", &ALICE.to_string(), "--clear-groups"])
        .arg(home.join("vscan"))
        .args(["mailbox", "run", "--config"])
        .arg(&config)
        .env("HOME", &home);
    let process = host.start("vscan", command)?;
    ann.append("INBOX", "", &[&infected("infected")])?;
    let treated = ann
        .wait("INBOX", "the message is treated", |mails| {
            mails.len() == 1 && mails[0].text.contains("X-Vscan: ")
        })
        .with_context(|| process.log())?;
    ensure!(treated[0].is_unread());
    for pid in host.processes() {
        let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if line.contains("vscan") {
            for field in ["CapEff", "CapPrm", "CapAmb"] {
                let capabilities = agent::status_field(pid, field)?;
                ensure!(capabilities == "0000000000000000", "{line}: {field} {capabilities}");
            }
        }
    }
    let state = home.join(".local/state/vscan");
    ensure!(fs::read_dir(state.join("quarantine"))?.count() >= 2, "no copy was kept");
    process.signal(Signal::TERM);
    let status = process.wait(Duration::from_secs(15)).with_context(|| process.log())?;
    ensure!(status.success() && !state.join("control.sock").exists(), "{status}");
    Ok(())
}

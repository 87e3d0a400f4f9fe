//! The scanner behind the gateway: a mass mailing, processes that die while mail and files are under way, an object that
//! kills whoever reads it.

use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use vscan_tests::agent::{self, Settings, Steering, Vscan, repository};
use vscan_tests::lab::{Family, Lab, Topology};
use vscan_tests::smtp::{Behaviour, Client, Sink, wire};
use vscan_tests::{fixtures, ftp, raw, wait};

/// Messages of the mailing, and sessions that send it.
const MAILS: usize = 24;
const SESSIONS: usize = 3;
/// Scanner processes of the lab's configuration.
const WORKERS: usize = 2;

/// A client of the thread's own, which is on the client's host.
fn client(to: SocketAddr) -> Result<Client> {
    Client::on(raw::connect(None, to, Duration::from_secs(5))?)
}

/// Sends the messages from several sessions side by side, each to a recipient of its own; the replies, in the order of the
/// messages.
fn mailing(lab: &Lab, mails: &[Vec<u8>]) -> Result<Vec<String>> {
    let to = lab.dial(Family::V4, 25);
    let mut replies = vec![String::new(); mails.len()];
    let share = mails.len().div_ceil(SESSIONS);
    std::thread::scope(|scope| -> Result<()> {
        let sessions: Vec<_> = mails
            .chunks(share)
            .zip(replies.chunks_mut(share))
            .enumerate()
            .map(|(number, (mails, replies))| {
                scope.spawn(move || -> Result<()> {
                    lab.client().enter()?;
                    let mut client = client(to)?;
                    for (n, (mail, reply)) in mails.iter().zip(replies).enumerate() {
                        let recipient = format!("user-{number}-{n}@server.example");
                        *reply = client.send_as("news@client.example", &[&recipient], mail)?;
                    }
                    client.quit()
                })
            })
            .collect();
        for session in sessions {
            session.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        Ok(())
    })?;
    Ok(replies)
}

/// Hits and misses, of objects and of parts.
fn lookups(vscan: &Vscan<'_>) -> Result<[f64; 4]> {
    let metrics = vscan.metrics()?;
    let count =
        |of, result| metrics.sum("vscan_cache_lookups_total", &[("of", of), ("result", result)]);
    Ok([
        count("object", "hit"),
        count("object", "miss"),
        count("part", "hit"),
        count("part", "miss"),
    ])
}

#[test]
fn a_mass_mailing_is_scanned_once() -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let sink = Sink::start(lab.server(), 25, Behaviour::default())?;
    let vscan = Vscan::start(&lab, &Settings::new(Steering::Nft))?;
    let brochure = fixtures::random(1 << 20, 1);
    let mail = |n: usize, name: &str, attachment: &[u8]| {
        wire(&fixtures::message_with_attachment(&format!("offer {n}"), name, attachment))
    };
    let mails: Vec<_> = (0..MAILS).map(|n| mail(n, "brochure.pdf", &brochure)).collect();
    let replies = mailing(&lab, &mails)?;
    ensure!(replies.iter().all(|reply| reply.starts_with("250 2.0.0 queued")), "{replies:?}");
    let sorted = |mut mails: Vec<Vec<u8>>| {
        mails.sort();
        mails
    };
    ensure!(sorted(sink.messages()) == sorted(mails.clone()), "a message is missing or changed");

    let [objects_known, objects, known, unknown] = lookups(&vscan)?;
    assert_eq!((objects_known, objects), (0.0, MAILS as f64), "every message is another one");
    // The message as a whole is another one each time; its text and its attachment are new once to each worker.
    let parts = (known + unknown) / MAILS as f64;
    ensure!(parts >= 3.0 && parts.fract() == 0.0, "{parts} parts in a message");
    let most = MAILS as f64 + (parts - 1.0) * WORKERS as f64;
    ensure!(unknown <= most, "{unknown} parts were scanned, {most} are new");

    // The same message once more, from another session.
    let again = mailing(&lab, &mails[..1])?;
    ensure!(again[0].starts_with("250 2.0.0 queued"), "{again:?}");
    assert_eq!(lookups(&vscan)?, [1.0, objects, known, unknown], "nothing was scanned");

    // What is remembered of an infected attachment is its infection.
    let bad: Vec<_> = (0..MAILS).map(|n| mail(n, "offer.com", &fixtures::eicar())).collect();
    for _ in 0..2 {
        for reply in mailing(&lab, &bad)? {
            ensure!(reply.starts_with("550 5.7.1") && reply.contains("EICAR"), "{reply}");
        }
    }
    let [objects_known, ..] = lookups(&vscan)?;
    assert_eq!(objects_known, 1.0 + MAILS as f64, "the second time all were known");
    assert_eq!(sink.messages().len(), MAILS + 1, "nothing infected went through");
    let status = vscan.json(&["status"])?;
    let cache = &status["scanner"]["cache"];
    assert_eq!(cache["hits"].as_f64(), Some(objects_known), "{cache}");
    assert_eq!(cache["reports"].as_f64(), Some(2.0 * MAILS as f64), "{cache}");
    Ok(())
}

#[test]
fn nothing_is_remembered_when_it_is_off() -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let sink = Sink::start(lab.server(), 25, Behaviour::default())?;
    let settings = Settings::new(Steering::Nft).with("", "[scan.cache]\nmemory = \"none\"");
    let vscan = Vscan::start(&lab, &settings)?;
    let mails = vec![wire(&fixtures::message("the same", "words")); 4];
    mailing(&lab, &mails)?;
    assert_eq!(sink.messages(), mails);
    let [hits, misses, known, unknown] = lookups(&vscan)?;
    assert_eq!((hits, misses, known), (0.0, 0.0, 0.0));
    ensure!(unknown >= 4.0, "{unknown}");
    Ok(())
}

/// Whom [`killed_under_load_it_loses_nothing`] kills, in turn.
const VICTIMS: [&str; 8] =
    ["worker", "worker", "zygote", "worker", "worker", "worker", "zygote", "worker"];

/// Messages and files that have to be through between two of them.
const BETWEEN: usize = 5;

#[test]
fn killed_under_load_it_loses_nothing() -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let sink = Sink::start(lab.server(), 25, Behaviour::default())?;
    let server = ftp::Server::start(lab.server(), 21, ftp::Behaviour::default())?;
    let file = fixtures::random(300_000, 7);
    server.put("clean.bin", file.clone());
    server.put("evil.com", fixtures::eicar());
    let vscan = Vscan::start(&lab, &Settings::new(Steering::Nft))?;
    let over = AtomicBool::new(false);
    let done = AtomicUsize::new(0);
    let (lab, over, done, file) = (&lab, &over, &done, &file);
    let (mut sent, mut uploaded) = (Vec::new(), BTreeMap::new());
    std::thread::scope(|scope| -> Result<()> {
        let mailers: Vec<_> = (0..3)
            .map(|number| scope.spawn(move || mails_until(lab, number, over, done)))
            .collect();
        let movers: Vec<_> = (0..2)
            .map(|number| scope.spawn(move || files_until(lab, number, file, over, done)))
            .collect();
        let killed = kill_each(&vscan, done);
        over.store(true, Ordering::Relaxed);
        for mailer in mailers {
            sent.extend(mailer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
        }
        for mover in movers {
            uploaded.extend(mover.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
        }
        killed
    })?;
    let mut got = sink.messages();
    got.sort();
    sent.sort();
    ensure!(got == sent, "{} messages arrived, {} were accepted", got.len(), sent.len());
    ensure!(!uploaded.is_empty(), "no upload was finished");
    for (name, content) in uploaded {
        ensure!(server.file(&name).as_ref() == Some(&content), "{name} is not what was sent");
    }
    ensure!(server.file("evil-up.com").is_none(), "an infected file was stored");
    let errors = [("verdict", "error")];
    // Each object has two attempts; kills that hit both of one are possible, and its sender came again.
    let errors = vscan.metrics()?.sum("vscan_objects_total", &errors);
    ensure!(errors <= VICTIMS.len() as f64, "{errors} objects were given up");
    Ok(())
}

/// Kills the victims with SIGKILL, each when everything is there again after the one before, and in the midst of work.
fn kill_each(vscan: &Vscan<'_>, done: &AtomicUsize) -> Result<()> {
    let mut dead = Vec::new();
    for victim in VICTIMS {
        let now = vscan.wait_for_processes(&dead).with_context(|| format!("for a {victim}"))?;
        let before = done.load(Ordering::Relaxed);
        wait::until_true("nothing goes on", Duration::from_secs(20), || {
            done.load(Ordering::Relaxed) >= before + BETWEEN
        })?;
        let victims =
            if victim == "zygote" { vec![now.scanner] } else { now.workers[..1].to_vec() };
        if victim == "zygote" {
            // Its workers end with it.
            dead.extend(&now.workers);
        }
        for pid in victims {
            agent::kill(pid)?;
            dead.push(pid);
        }
    }
    vscan.wait_for_processes(&dead).map(drop)
}

/// Words in front: random bytes alone may begin as a container does, and be none.
fn unlike_others(len: usize, seed: u64) -> Vec<u8> {
    [b"words ".to_vec(), fixtures::random(len, seed)].concat()
}

/// Sends mail until it is over, every fourth of them infected; what was accepted.
fn mails_until(
    lab: &Lab,
    number: usize,
    over: &AtomicBool,
    done: &AtomicUsize,
) -> Result<Vec<Vec<u8>>> {
    lab.client().enter()?;
    let mut client = client(lab.dial(Family::V4, 25))?;
    let mut accepted = Vec::new();
    let mut n = 0;
    while !over.load(Ordering::Relaxed) {
        n += 1;
        let infected = n % 4 == 0;
        let content = if infected {
            fixtures::eicar()
        } else {
            unlike_others(50_000, n * 10 + number as u64)
        };
        let subject = format!("{number} {n}");
        let mail = wire(&fixtures::message_with_attachment(&subject, "x.bin", &content));
        loop {
            let reply = client.send_in_steps(&mail)?;
            match (infected, reply.as_bytes()[0]) {
                (false, b'2') => accepted.push(mail),
                (true, b'5') => {}
                (_, b'4') => continue,
                _ => anyhow::bail!("infected: {infected}, {reply}"),
            }
            break;
        }
        done.fetch_add(1, Ordering::Relaxed);
    }
    client.quit()?;
    Ok(accepted)
}

/// Downloads and uploads until it is over; what was stored.
fn files_until(
    lab: &Lab,
    number: usize,
    file: &[u8],
    over: &AtomicBool,
    done: &AtomicUsize,
) -> Result<BTreeMap<String, Vec<u8>>> {
    lab.client().enter()?;
    let control =
        raw::Peer::new(raw::connect(None, lab.dial(Family::V4, 21), Duration::from_secs(5))?)?;
    let mut client = ftp::Client::greet(control, lab.client().door(), ftp::Mode::Epsv)?;
    let mut stored = BTreeMap::new();
    let mut n = 0;
    while !over.load(Ordering::Relaxed) {
        n += 1;
        let got = client.download_here("RETR clean.bin")?;
        if got.reply.starts_with("226") {
            let whole = got.data.is_some_and(|(data, end)| data == file && end == raw::End::Fin);
            ensure!(whole, "a file that is not whole was said to be");
        } else {
            ensure!(got.data.is_none_or(|(data, end)| data.is_empty() || end == raw::End::Reset));
        }
        let bad = client.download_here("RETR evil.com")?;
        ensure!(!bad.reply.starts_with("226"), "an infected file came through: {}", bad.reply);
        let bad = client.upload_here("evil-up.com", &fixtures::eicar())?;
        ensure!(!bad.reply.starts_with("226"), "an infected file went through: {}", bad.reply);
        let name = format!("up-{number}-{n}");
        let content = unlike_others(100_000, n * 100 + number as u64);
        if client.upload_here(&name, &content)?.reply.starts_with("226") {
            stored.insert(name, content);
        }
        done.fetch_add(1, Ordering::Relaxed);
    }
    client.quit()?;
    Ok(stored)
}

/// What the rule of [`the_poison_is_found_and_takes_nobody_with_it`] waits for.
const POISON: &str = "this-object-keeps-its-reader-busy-for-ever";

/// One object keeps a worker busy beyond every deadline: it is retried, called an error, and refused for good the third
/// time; whoever comes beside it is served.
#[test]
fn the_poison_is_found_and_takes_nobody_with_it() -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let sink = Sink::start(lab.server(), 25, Behaviour::default())?;
    let rules = lab.gateway.dir().join("rules.d");
    fs::create_dir(&rules)?;
    // Some 10^18 turns: years.
    let rule = format!(
        "rule Poison {{ strings: $a = \"{POISON}\" condition: $a and \
         for all i in (1..1000000000) : (for all j in (1..1000000000) : (i * j + filesize > 0)) }}"
    );
    fs::write(rules.join("poison.yar"), rule)?;
    let shipped = repository().join("deploy/rules");
    let settings = Settings::new(Steering::Nft).with(
        "scan",
        &format!("rules = [\"{}\", \"{}\"]\ndeadline = \"1s\"", shipped.display(), rules.display()),
    );
    let vscan = Vscan::start(&lab, &settings)?;
    let over = AtomicBool::new(false);
    let (lab, over) = (&lab, &over);
    let beside = std::thread::scope(|scope| -> Result<Vec<Vec<u8>>> {
        let neighbour = scope.spawn(move || mails_until(lab, 0, over, &AtomicUsize::new(0)));
        let poisoned = || -> Result<()> {
            let poison = wire(&fixtures::message("poison", POISON));
            for (attempt, wanted) in ["451", "451", "554"].iter().enumerate() {
                let mut client = Client::connect(lab.client(), lab.dial(Family::V4, 25))?;
                let started = Instant::now();
                let reply = client.send(&poison)?;
                ensure!(reply.starts_with(wanted), "attempt {attempt}: {reply}");
                let took = started.elapsed();
                let (least, most) = (Duration::from_secs(2), Duration::from_secs(10));
                ensure!(took >= least && took < most, "two deadlines of a second: {took:?}");
                client.quit()?;
            }
            Ok(())
        };
        let done = poisoned();
        over.store(true, Ordering::Relaxed);
        let beside = neighbour.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        done.map(|()| beside)
    })?;
    ensure!(beside.len() > 3, "only {} messages went by meanwhile", beside.len());
    assert_eq!(sink.messages(), beside, "all of the neighbour's mail, and nothing else");
    let metrics = vscan.metrics()?;
    assert_eq!(metrics.sum("vscan_scanner_restarts_total", &[("cause", "deadline")]), 6.0);
    assert_eq!(metrics.sum("vscan_objects_total", &[("verdict", "error")]), 3.0);
    // Whoever is free again is a worker of full rights: the infected are still found.
    let bad = wire(&fixtures::message_with_attachment("bad", "x.com", &fixtures::eicar()));
    let reply = Client::connect(lab.client(), lab.dial(Family::V4, 25))?.send(&bad)?;
    ensure!(reply.starts_with("550 5.7.1"), "{reply}");
    Ok(())
}

/// Each limit of `[scan.limits]` with what goes over it: the reason, and a shell command that makes it.
const OVER: [(&str, &str); 8] = [
    ("size", "head -c 9000000 /dev/urandom"),
    // Twelve texts of a megabyte, of which hexadecimal takes two thirds away again.
    (
        "unpacked",
        "mkdir u; for i in 1 2 3 4 5 6 7 8 9 10 11 12; do \
           head -c 500000 /dev/urandom | od -An -tx1 -v | tr -d ' \\n' > u/$i; done; tar -c u | gzip",
    ),
    ("ratio", "head -c 12000000 /dev/zero | gzip -9"),
    (
        "depth",
        "echo deep > d; for i in 1 2 3 4 5 6 7 8 9 10; do gzip -c d > e; mv e d; done; cat d",
    ),
    ("members", "mkdir m; cd m; seq 500 | while read i; do echo $i > $i; done; tar -c ."),
    // What is slow for the rule, in more members than there is time for.
    ("time", "mkdir t; cd t; seq 300 | while read i; do echo slow-to-scan $i > $i; done; tar -c ."),
    // A frame of Zstandard with a window of 2 GiB.
    ("memory", "printf '\\050\\265\\057\\375\\000\\250\\001\\000\\000'"),
    ("encrypted", "echo secret > s; zip -q -P unguessable s.zip s; cat s.zip"),
];

/// Every limit ends its bomb with its own reason, in mail, in files and by hand; each is set by the configuration; and what was
/// found before it counts.
#[test]
fn every_limit_has_its_own_reason() -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let sink = Sink::start(lab.server(), 25, Behaviour::default())?;
    let server = ftp::Server::start(lab.server(), 21, ftp::Behaviour::default())?;
    let rules = lab.gateway.dir().join("rules.d");
    fs::create_dir(&rules)?;
    // A part takes a good while, and never longer than the deadline.
    fs::write(
        rules.join("slow.yar"),
        "rule Slow { strings: $a = \"slow-to-scan\" condition: $a and \
         for all i in (1..20000000) : (i + filesize > 0) and #a > 1000 }",
    )?;
    let shipped = repository().join("deploy/rules");
    let settings = Settings::new(Steering::Nft)
        .with(
            "scan",
            &format!(
                "rules = [\"{}\", \"{}\"]\ndeadline = \"3s\"",
                shipped.display(),
                rules.display()
            ),
        )
        .with(
            "scan.limits",
            "object_size = \"16 MiB\"\nunpacked_size = \"15 MiB\"\nratio = 200\ndepth = 8\nmembers = 400\n\
             headers = 20\nheader_bytes = \"4 KiB\"\nmemory = \"256 MiB\"",
        );
    let vscan = Vscan::start(&lab, &settings)?;
    let bombs = lab.gateway.dir().join("bombs");
    fs::create_dir(&bombs)?;
    let mut smtp = Client::connect(lab.client(), lab.dial(Family::V4, 25))?;
    let mut ftp = ftp::Client::connect(lab.client(), lab.dial(Family::V4, 21), ftp::Mode::Epsv)?;
    for (reason, make) in OVER {
        let path = bombs.join(reason);
        let (dir, to) = (lab.gateway.dir().join(format!("make-{reason}")), path.display());
        fs::create_dir(&dir)?;
        lab.gateway.sh(&format!("cd {}; ({make}) > {to}", dir.display()))?;
        let mut bomb = fs::read(&path)?;
        if reason == "size" {
            bomb = [&bomb[..], &bomb].concat();
            fs::write(&path, &bomb)?;
        }
        let started = Instant::now();
        let mail = wire(&fixtures::message_with_attachment(reason, "bomb", &bomb));
        let reply = smtp.send(&mail).with_context(|| reason.to_owned())?;
        let wanted = format!("550 5.7.1 Message could not be scanned by vscan: {reason}");
        ensure!(reply.starts_with(&wanted), "{reason}: {reply}");
        let reply = ftp.upload("bomb", &bomb).with_context(|| reason.to_owned())?.reply;
        ensure!(reply.starts_with("55") && reply.contains(reason), "{reason}: {reply}");
        ensure!(started.elapsed() < Duration::from_secs(20), "{reason}: {:?}", started.elapsed());
        let output = vscan.cli(&["scan", "-o", "json", &path.display().to_string()])?;
        let report: serde_json::Value = serde_json::from_str(&output.out).context(output.err)?;
        let report = report.get(0).unwrap_or(&report);
        ensure!(report["verdict"] == "unscannable", "{reason}: {report}");
        let unread = report["unread"].as_array().context("no list")?;
        ensure!(unread.iter().any(|unread| unread["reason"] == reason), "{reason}: {unread:?}");
    }
    for fields in ["X-Field: x\r\n".repeat(30), format!("X-Long: {}\r\n", "x ".repeat(3000))] {
        let message = [fields.as_bytes(), &fixtures::message("headers", "words")].concat();
        let reply = smtp.send(&wire(&message))?;
        ensure!(reply.starts_with("550 5.7.1") && reply.contains(": headers"), "{reply}");
    }
    // An infected member before the bomb.
    lab.gateway.sh(&format!(
        "cd {}; printf %s '{}' > 1-evil.com; cat ratio > 2-bomb; tar -cf evil 1-evil.com 2-bomb",
        bombs.display(),
        String::from_utf8(fixtures::eicar())?
    ))?;
    let evil = fs::read(bombs.join("evil"))?;
    let reply = smtp.send(&wire(&fixtures::message_with_attachment("evil", "x", &evil)))?;
    ensure!(reply.starts_with("550 5.7.1 Message blocked") && reply.contains("EICAR"), "{reply}");
    // Below every limit.
    let clean = wire(&fixtures::message("clean", "words"));
    ensure!(smtp.send(&clean)?.starts_with("250"));
    assert_eq!(sink.messages(), [clean]);
    ensure!(server.file("bomb").is_none(), "a bomb was stored");
    let metrics = vscan.metrics()?;
    for (reason, _) in OVER {
        // In mail and as a file.
        let count = metrics.sum("vscan_unscannable_total", &[("reason", reason)]);
        ensure!(count >= 2.0, "{reason}: {count}");
    }
    assert_eq!(metrics.sum("vscan_objects_total", &[("verdict", "error")]), 0.0);
    Ok(())
}

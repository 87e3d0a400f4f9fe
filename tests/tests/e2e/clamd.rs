//! A clamd beside the scanner, and new rules under load: what the gateway makes of both.

use anyhow::{Result, ensure};
use rustix::process::Signal;
use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use vscan_tests::agent::{self, Settings, Steering, Vscan};
use vscan_tests::fixtures;
use vscan_tests::ftp::{Client, Mode};
use vscan_tests::lab::{Family, Lab, Topology};
use vscan_tests::peers::{CLAMD_NAME, CLAMD_ONLY, Clamd, Vsftpd};
use vscan_tests::wait;

/// What only clamd knows is blocked, unless an allow list names it; without clamd nothing passes.
#[test]
fn a_file_that_only_clamd_knows_is_blocked() -> Result<()> {
    let lab = Lab::new(Topology::Masquerade)?;
    let ftp = Vsftpd::start(lab.server(), 21)?;
    let mut clamd = Clamd::start(&lab.gateway)?;
    let rules = lab.gateway.dir().join("rules");
    fs::create_dir(&rules)?;
    let own = agent::repository().join("deploy/rules/eicar.yar");
    fs::copy(own, rules.join("eicar.yar"))?;
    let socket = clamd.socket();
    let settings = Settings::new(Steering::Nft)
        .with("scan", &format!("rules = [\"{}\"]", rules.display()))
        .with(
            "",
            &format!("[scan.clamd]\naddress = \"{}\"\ndeadline = \"3s\"\n", socket.display()),
        );
    let vscan = Vscan::start(&lab, &settings)?;
    let check = vscan.cli(&["check"])?;
    ensure!(check.success() && check.out.contains("answers: ClamAV 1."), "{check:?}");

    let small = CLAMD_ONLY.to_vec();
    let large = [&fixtures::random(300_000, 7)[..], CLAMD_ONLY].concat();
    let connect = || Client::connect(lab.client(), lab.dial(Family::V4, 21), Mode::Epsv);
    let mut client = connect()?;
    for (name, content) in [("small.bin", &small), ("large.bin", &large)] {
        let up = client.upload(name, content)?;
        ensure!(up.reply.contains(CLAMD_NAME), "{name}: {}", up.reply);
    }
    ensure!(client.upload("clean.bin", &fixtures::random(300_000, 8))?.reply.starts_with("226"));
    let event = vscan
        .wait_for_event("alert", |event| event["object"]["findings"][0]["engine"] == "clamd")?;
    ensure!(
        event["object"]["rules"].as_str().is_some_and(|rules| rules.contains("ClamAV 1.")),
        "{event}"
    );
    let status = vscan.json(&["status"])?;
    ensure!(status["scanner"]["clamd"]["failures"] == 0, "{status}");
    let metrics = vscan.metrics()?;
    ensure!(metrics.sum("vscan_clamd_requests_total", &[("result", "infected")]) >= 2.0);

    // its name on an allow list
    fs::write(rules.join("ours.allow"), "name Lab.Only.* until 2999-12-31\n")?;
    ensure!(vscan.cli(&["reload"])?.success());
    let mut client = connect()?;
    let up = client.upload("allowed.bin", &small)?;
    ensure!(up.reply.starts_with("226"), "{}", up.reply);
    fs::write(rules.join("ours.allow"), "name Lab.Only.* until 2001-01-01\n")?;
    ensure!(vscan.cli(&["reload"])?.success());
    let mut client = connect()?;
    ensure!(client.upload("late.bin", &small)?.reply.contains(CLAMD_NAME), "the day is over");

    // hung, killed, and there again
    clamd.process().signal(Signal::STOP);
    let up = client.upload("hung.bin", &fixtures::random(1000, 9))?;
    ensure!(!up.reply.starts_with("226"), "{}", up.reply);
    clamd.process().signal(Signal::KILL);
    clamd.process().wait(Duration::from_secs(10))?;
    let up = client.upload("killed.bin", &fixtures::random(1000, 10))?;
    ensure!(!up.reply.starts_with("226"), "{}", up.reply);
    let check = vscan.cli(&["check"])?;
    ensure!(!check.success() && check.out.contains("cannot be reached"), "{check:?}");
    let status = vscan.cli(&["status"])?;
    ensure!(status.out.contains("objects are refused"), "{status:?}");
    clamd.restart(&lab.gateway)?;
    // What failed is believed for half a second.
    wait::until_true("nothing passes by the new clamd", Duration::from_secs(10), || {
        let up = client.upload("again.bin", &fixtures::random(1000, 11));
        up.is_ok_and(|up| up.reply.starts_with("226"))
    })?;
    for name in ["small.bin", "large.bin", "late.bin", "hung.bin", "killed.bin"] {
        ensure!(!ftp.files().join(name).exists(), "{name} was delivered");
    }
    client.quit()
}

/// New sets go into force while files pass; not one of them is dropped, and what the set finds is found.
#[test]
fn rules_change_under_load() -> Result<()> {
    let lab = Lab::new(Topology::Masquerade)?;
    let _ftp = Vsftpd::start(lab.server(), 21)?;
    let dir = lab.gateway.dir();
    let (set, corpus) = (dir.join("set"), dir.join("corpus"));
    fs::create_dir_all(&set)?;
    fs::create_dir_all(&corpus)?;
    fs::write(corpus.join("clean.txt"), "nothing that anybody looks for")?;
    let rule = |name: &str, text: &str| {
        format!("rule {name} {{ strings: $x = \"{text}\" condition: $x }}\n")
    };
    fs::write(set.join("a.yar"), rule("first", "what the first set knows"))?;
    let current = dir.join("state/rules/current");
    let settings = Settings::new(Steering::Nft)
        .with("scan", &format!("rules = [\"{}\"]", current.display()))
        .with(
            "",
            &format!(
                "[scan.update]\nsource = \"{}\"\ncorpus = [\"{}\"]\n",
                set.display(),
                corpus.display()
            ),
        );
    let config = settings.write(&lab)?;
    let first = agent::cli(&lab.gateway, &config, &["rules", "update"])?;
    ensure!(first.success(), "{first:?}");
    let vscan = Vscan::start(&lab, &settings)?;
    let connect = || Client::connect(lab.client(), lab.dial(Family::V4, 21), Mode::Epsv);
    let infected = b".. what the second set knows ..";
    ensure!(connect()?.upload("x.bin", infected)?.reply.starts_with("226"));

    let (stop, passed) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| -> Result<()> {
        let load: Vec<_> = (0..3)
            .map(|n| {
                let (stop, passed) = (&stop, &passed);
                scope.spawn(move || -> Result<()> {
                    let mut client = connect()?;
                    let mut seed = n * 1_000_000;
                    while !stop.load(Ordering::Relaxed) {
                        seed += 1;
                        let up =
                            client.upload(&format!("{n}.bin"), &fixtures::random(20_000, seed))?;
                        ensure!(up.reply.starts_with("226"), "{}", up.reply);
                        passed.fetch_add(1, Ordering::Relaxed);
                    }
                    client.quit()
                })
            })
            .collect();
        let changed = (|| {
            for n in 0..3 {
                fs::write(
                    set.join("a.yar"),
                    rule(&format!("second_{n}"), "what the second set knows"),
                )?;
                let updated = vscan.cli(&["rules", "update"])?;
                ensure!(updated.success() && updated.out.contains("has it"), "{updated:?}");
                let up = connect()?.upload("y.bin", infected)?;
                ensure!(up.reply.contains(&format!("second_{n}")), "{}", up.reply);
            }
            // neither what does not load nor what finds something in clean files
            fs::write(set.join("a.yar"), "rule broken { condition: }")?;
            ensure!(vscan.cli(&["rules", "update"])?.code() == 65);
            fs::write(set.join("a.yar"), rule("too_much", "that anybody looks for"))?;
            let refused = vscan.cli(&["rules", "update"])?;
            ensure!(refused.code() == 65 && refused.err.contains("too_much"), "{refused:?}");
            let up = connect()?.upload("y.bin", infected)?;
            ensure!(up.reply.contains("second_2"), "{}", up.reply);
            let back = vscan.cli(&["rules", "update", "--rollback"])?;
            ensure!(back.success(), "{back:?}");
            let up = connect()?.upload("y.bin", infected)?;
            ensure!(up.reply.contains("second_1"), "{}", up.reply);
            Ok(())
        })();
        stop.store(true, Ordering::Relaxed);
        for thread in load {
            thread.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
        }
        changed
    })?;
    ensure!(passed.load(Ordering::Relaxed) > 10, "there was load");
    let age = vscan.metrics()?.sum("vscan_rules_age_seconds", &[]);
    ensure!((0.0..600.0).contains(&age), "{age}");
    Ok(())
}

//! The scanner process as a whole: workers that serve, end, are replaced, and have no rights.

#![expect(clippy::unwrap_used, reason = "helpers of tests, outside of #[test] functions")]

#[expect(dead_code, reason = "shared with the tests of several threads, which use the rest")]
mod common;
#[expect(dead_code, reason = "only the mark itself is of use here")]
mod mark;
#[path = "fixtures/rar.rs"]
mod rar;

use common::{Scanner, eicar, rules};
use mark::MARK;
use rustix::process::{Pid, Signal, kill_process};
use std::io::Write;
use std::os::fd::AsFd;
use std::process::Command;
use std::time::{Duration, Instant};
use vscan_scan::channel;
use vscan_scan::repair::{self, Order, Plan, Remedy};
use vscan_scan::report::{Reason, Verdict};
use vscan_scan::wire::{Answer, Ask, Content, ObjectKind, Request, Status, ToGateway};

fn signal(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

#[test]
fn objects_are_scanned_inline_and_by_descriptor() {
    let mut scanner = Scanner::shipped(1);
    let mut worker = scanner.worker();
    let report = worker.scan(ObjectKind::File, "hello.txt", b"hello");
    assert_eq!(
        (report.verdict, report.parts, report.bytes, &*report.kind),
        (Verdict::Clean, 1, 5, "text")
    );
    assert!(report.rules.starts_with("yara-x "), "{}", report.rules);
    for inline in [true, false] {
        worker.send(ObjectKind::File, "eicar.com", &eicar(), inline);
        let report = worker.answer().unwrap();
        assert_eq!(report.verdict, Verdict::Infected, "{report:?}");
        assert_eq!(report.findings[0].name, "EICAR_Test_File");
        assert_eq!(report.findings[0].path, ["eicar.com"]);
    }
    let mut large = vec![b'\n'; 8 << 20];
    large[8..76].copy_from_slice(&eicar());
    assert_eq!(worker.scan(ObjectKind::File, "large", &large).verdict, Verdict::Infected);
    large[8] = b'x';
    assert_eq!(worker.scan(ObjectKind::File, "large", &large).verdict, Verdict::Clean);
}

fn base64(data: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for chunk in data.chunks(57) {
        for three in chunk.chunks(3) {
            let n =
                three.iter().fold(0u32, |n, &b| n << 8 | u32::from(b)) << (8 * (3 - three.len()));
            out.extend((0..4).map(|k| {
                if k > three.len() {
                    '='
                } else {
                    LETTERS[(n >> (18 - 6 * k)) as usize & 63] as char
                }
            }));
        }
        out.push_str("\r\n");
    }
    out
}

/// Every decoder and the largest reports run under the system-call filter, with the shipped rules.
#[test]
fn every_decoder_works_inside_the_sandbox() {
    let mut scanner = Scanner::shipped(1);
    let mut worker = scanner.worker();
    let eicar = eicar();
    let write = |mut w: Box<dyn Write>| w.write_all(&eicar).unwrap();
    let mut packed: Vec<(&str, Vec<u8>)> = Vec::new();
    let file = tempfile::tempdir().unwrap();
    for (name, tool) in [("gz", "gzip"), ("bz2", "bzip2"), ("xz", "xz"), ("zst", "zstd")] {
        let path = file.path().join(name);
        let out = std::fs::File::create(&path).unwrap();
        match tool {
            "gzip" => {
                write(Box::new(flate2::write::GzEncoder::new(out, flate2::Compression::default())))
            }
            "bzip2" => {
                write(Box::new(bzip2::write::BzEncoder::new(out, bzip2::Compression::default())))
            }
            "xz" => {
                let options = lzma_rust2::XzOptions::default();
                let mut writer = lzma_rust2::XzWriter::new(out, options).unwrap();
                writer.write_all(&eicar).unwrap();
                writer.finish().unwrap();
            }
            _ => std::fs::write(
                &path,
                ruzstd::encoding::compress_to_vec(
                    &eicar[..],
                    ruzstd::encoding::CompressionLevel::Fastest,
                ),
            )
            .unwrap(),
        }
        packed.push((name, std::fs::read(&path).unwrap()));
    }
    for (name, data) in &packed {
        let report = worker.scan(ObjectKind::File, name, data);
        assert_eq!((report.verdict, &report.unread[..]), (Verdict::Infected, &[][..]), "{name}");
        let message = format!(
            "From: a@b.example\r\nMIME-Version: 1.0\r\nContent-Type: application/octet-stream; name={name}\r\n\
             Content-Transfer-Encoding: base64\r\n\r\n{}",
            base64(data)
        );
        let report = worker.scan(ObjectKind::Message, "", message.as_bytes());
        assert_eq!(report.findings[0].name, "EICAR_Test_File");
        assert_eq!(report.findings[0].path[..2], ["message", name]);
    }
    // A bomb: at the ratio, and by memory that the worker gets refused.
    let mut bomb = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    bomb.write_all(&vec![0; 64 << 20]).unwrap();
    let report = worker.scan(ObjectKind::File, "bomb.gz", &bomb.finish().unwrap());
    assert_eq!((report.verdict, report.unread[0].reason), (Verdict::Unscannable, Reason::Ratio));
    // Ten thousand findings and failures make one datagram.
    let many = [&eicar[..], b"\n"].concat().repeat(20_000);
    assert_eq!(worker.scan(ObjectKind::File, "many", &many).verdict, Verdict::Infected);
    // The one worker did it all.
    assert_eq!(worker.scan(ObjectKind::File, "x", b"x").verdict, Verdict::Clean);
}

#[test]
fn memory_over_the_limit_is_told_or_costs_the_worker_only() {
    let limits = r#"{"memory": 50000000, "ratio": 4000000000}"#;
    let mut scanner = Scanner::start(&[rules()], 1, limits);
    let mut worker = scanner.worker();
    let mut bomb = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    bomb.write_all(&vec![b'x'; 150 << 20]).unwrap();
    let bomb = bomb.finish().unwrap();
    worker.send(ObjectKind::File, "bomb.gz", &bomb, false);
    match worker.answer() {
        Some(report) => {
            assert_eq!(report.verdict, Verdict::Unscannable, "{report:?}");
            assert_eq!(report.unread[0].reason, Reason::Memory);
            assert_eq!(worker.scan(ObjectKind::File, "", &eicar()).verdict, Verdict::Infected);
        }
        None => {
            assert!(scanner.exited().2.contains("signal 6"), "nothing else than an abort");
            assert_eq!(
                scanner.worker().scan(ObjectKind::File, "", &eicar()).verdict,
                Verdict::Infected
            );
        }
    }
}

#[test]
fn an_object_in_a_file_is_read_whatever_the_shared_offset() {
    let mut scanner = Scanner::shipped(1);
    let worker = scanner.worker();
    let mut buffer = vec![0; vscan_scan::wire::DATAGRAM_MAX];
    for (size, shrink) in [(68, false), (1 << 20, false), (1 << 20, true)] {
        let mut file = tempfile::tempfile().unwrap();
        let mut data = eicar();
        data.resize(size, b' ');
        file.write_all(&data).unwrap();
        if shrink {
            file.set_len(10).unwrap();
        }
        let request = Request {
            id: size as u64,
            object: None,
            ask: Ask::Report { detail: true },
            kind: ObjectKind::File,
            name: None,
            passwords: Vec::new(),
            time_limit_ms: 10_000,
            content: Content::Descriptor { len: size as u64 },
        };
        channel::send(worker.socket(), &request, Some(file.as_fd())).unwrap();
        common::readable(worker.socket());
        let answer = channel::recv_answer(worker.socket(), &mut buffer, size as u64).unwrap();
        let Some(Answer::Report(report)) = answer else { panic!("{answer:?}") };
        let expected = if shrink { Verdict::Error } else { Verdict::Infected };
        assert_eq!(report.verdict, expected, "{report:?}");
        if !shrink {
            let detail = report.findings[0].detail.as_ref().unwrap();
            assert_eq!(detail.offset, Some(0));
            let hashes = report.tree[0].hashes.as_ref().unwrap();
            assert_eq!(hashes.blake3, blake3::hash(&data).to_hex().as_str());
        }
    }
}

#[test]
fn a_dead_worker_is_replaced_and_the_gateway_told() {
    let mut scanner = Scanner::shipped(2);
    let (first, mut second) = (scanner.worker(), scanner.worker());
    assert_ne!(first.slot, second.slot);
    // Not SIGSEGV: its handler in the WebAssembly runtime returns when no instruction faulted.
    signal(first.pid, Signal::QUIT);
    let (slot, pid, cause) = scanner.exited();
    assert_eq!((slot, pid, &*cause), (first.slot, first.pid, "signal 3"));
    let mut replaced = scanner.worker();
    assert_eq!(replaced.slot, first.slot);
    assert_ne!(replaced.pid, first.pid);
    for worker in [&mut replaced, &mut second] {
        assert_eq!(worker.scan(ObjectKind::File, "", &eicar()).verdict, Verdict::Infected);
    }
}

#[test]
fn a_worker_over_its_deadline_is_killed_by_order_and_only_it() {
    let mut scanner = Scanner::shipped(1);
    let mut worker = scanner.worker();
    // Stopped, it answers nothing: what a hanging scan looks like from outside.
    signal(worker.pid, Signal::STOP);
    worker.send(ObjectKind::File, "x", b"x", true);
    scanner.kill(&worker);
    assert!(worker.answer().is_none(), "the socket tells the death");
    assert_eq!(scanner.exited(), (worker.slot, worker.pid, "killed as ordered".to_owned()));
    let mut next = scanner.worker();
    // A late order for the old worker does not hit the new one.
    scanner.kill(&worker);
    assert_eq!(next.scan(ObjectKind::File, "", &eicar()).verdict, Verdict::Infected);
}

#[test]
fn many_deaths_in_a_row_end_in_a_working_worker() {
    let mut scanner = Scanner::shipped(1);
    for _ in 0..40 {
        let worker = scanner.worker();
        signal(worker.pid, Signal::KILL);
        let (_, pid, cause) = scanner.exited();
        assert_eq!((pid, &*cause), (worker.pid, "signal 9"));
    }
    assert_eq!(scanner.worker().scan(ObjectKind::File, "", &eicar()).verdict, Verdict::Infected);
}

#[test]
fn a_gateway_that_went_away_costs_nothing_and_the_next_one_finds_fresh_workers() {
    let mut scanner = Scanner::shipped(2);
    let (first, second) = (scanner.worker(), scanner.worker());
    let old = [first.pid, second.pid];
    // The gateway dies: its sockets close. The supervisor's duplicate of the control socket stays.
    drop((first, second));
    let mut fresh = Vec::new();
    let mut ends = 0;
    while fresh.len() < 2 {
        match scanner.next() {
            (ToGateway::Exited { pid, .. }, _) => {
                assert!(old.contains(&pid));
                ends += 1;
            }
            (ToGateway::Worker { pid, .. }, Some(socket)) => fresh.push((pid, socket)),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(ends, 2);
    assert!(fresh.iter().all(|(pid, _)| !old.contains(pid)));
}

/// The processes that the zygote has forked.
fn children(scanner: &Scanner) -> Vec<i32> {
    let pid = scanner.pid();
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    children.split_whitespace().map(|n| n.parse().unwrap()).collect()
}

#[test]
fn without_a_reader_the_control_socket_fills_up_and_nobody_is_blocked() {
    let mut scanner = Scanner::shipped(1);
    // More ends and replacements than the socket takes (net.unix.max_dgram_qlen), and none of them read.
    let mut killed = Vec::new();
    for _ in 0..40 {
        let deadline = Instant::now() + Duration::from_secs(30);
        let next = loop {
            assert!(Instant::now() < deadline, "no replacement any more after {}", killed.len());
            match children(&scanner)[..] {
                [pid] if !killed.contains(&pid) && status_of(pid, "Seccomp") == "2" => break pid,
                _ => std::thread::yield_now(),
            }
        };
        signal(next, Signal::KILL);
        killed.push(next);
    }
    // The next gateway reads what there is; the last word is a living worker.
    let mut messages = 0;
    let mut worker = loop {
        messages += 1;
        match scanner.next() {
            (ToGateway::Worker { slot, pid }, Some(socket)) if !killed.contains(&pid) => {
                break common::Worker::new(slot, pid, socket);
            }
            (ToGateway::Worker { pid, .. } | ToGateway::Exited { pid, .. }, _) => {
                assert!(killed.contains(&pid))
            }
        }
    };
    assert!(messages <= 2 * 40 + 1);
    assert_eq!(worker.scan(ObjectKind::File, "", &eicar()).verdict, Verdict::Infected);
}

#[test]
fn the_zygote_ends_with_its_control_socket_and_the_workers_with_it() {
    let mut scanner = Scanner::shipped(2);
    let workers = [scanner.worker(), scanner.worker()];
    let pidfds = workers.each_ref().map(|w| {
        rustix::process::pidfd_open(
            Pid::from_raw(w.pid).unwrap(),
            rustix::process::PidfdFlags::empty(),
        )
        .unwrap()
    });
    scanner.control = None;
    assert!(scanner.wait().success());
    for pidfd in &pidfds {
        common::readable(pidfd);
    }
}

fn status_of(pid: i32, field: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line =
        status.lines().find(|l| l.starts_with(field)).unwrap_or_else(|| panic!("no {field}"));
    line.split_once(':').unwrap().1.trim().to_owned()
}

#[test]
fn zygote_and_workers_have_no_rights() {
    let mut scanner = Scanner::shipped(1);
    let worker = scanner.worker();
    let zygote = scanner.pid().cast_signed();
    for pid in [zygote, worker.pid] {
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert_eq!(status_of(pid, set), "0000000000000000", "{set} of {pid}");
        }
        assert_eq!(status_of(pid, "NoNewPrivs"), "1");
    }
    assert_eq!(status_of(zygote, "Threads"), "1", "it forks");
    assert_eq!(status_of(worker.pid, "Seccomp"), "2", "a filter");
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", worker.pid)).unwrap();
    let core = limits.lines().find(|l| l.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"));
    assert_eq!(core.split_whitespace().nth(5), Some("0"));
    let fds = std::fs::read_dir(format!("/proc/{}/fd", worker.pid)).unwrap();
    let mut fds: Vec<_> = fds.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    fds.sort();
    assert_eq!(fds, ["0", "1", "2", "3"], "null, null, errors, its socket");
}

#[test]
fn a_worker_does_not_outlive_a_killed_zygote() {
    let mut scanner = Scanner::shipped(1);
    let worker = scanner.worker();
    let pidfd = rustix::process::pidfd_open(
        Pid::from_raw(worker.pid).unwrap(),
        rustix::process::PidfdFlags::empty(),
    )
    .unwrap();
    signal(scanner.pid().cast_signed(), Signal::KILL);
    common::readable(&pidfd);
}

#[test]
fn wrong_rules_are_all_told_at_once_with_file_and_line() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("sub")).unwrap();
    std::fs::write(
        dir.path().join("a.yar"),
        "rule a { condition: true }\nrule b { condition: nothing }\n",
    )
    .unwrap();
    std::fs::write(dir.path().join("sub/c.yara"), "rule c {\n condition:\n  $missing\n}\n")
        .unwrap();
    std::fs::write(dir.path().join("ignored.txt"), "not a rule").unwrap();
    let scanner = Scanner::start(&[dir.path().to_owned(), dir.path().join("absent")], 1, "{}");
    let Status::Failed { error } = &scanner.status else { panic!("{:?}", scanner.status) };
    assert!(error.contains("a.yar:2: "), "{error}");
    assert!(error.contains("c.yara:3: "), "{error}");
    assert!(error.contains("absent: cannot be read"), "{error}");
    assert!(!error.contains("ignored"), "{error}");

    let check = |path: &std::path::Path| {
        let output = Command::new(env!("CARGO_BIN_EXE_vscan-scanner"))
            .args(["--check", "--rules"])
            .arg(path)
            .output()
            .unwrap();
        (output.status.code(), serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap())
    };
    let (code, json) = check(dir.path());
    assert_eq!(code, Some(65));
    assert_eq!(json["errors"].as_array().unwrap().len(), 2);
    assert_eq!(json["errors"][0]["line"], 2);
    let (code, json) = check(&rules());
    assert_eq!(
        (
            code,
            json["errors"].as_array().unwrap().len(),
            json["warnings"].as_array().unwrap().len()
        ),
        (Some(0), 0, 0)
    );
    let empty = tempfile::tempdir().unwrap();
    assert_eq!(
        check(empty.path()).0,
        Some(65),
        "a scanner without rules would call everything clean"
    );
}

#[test]
fn wrong_arguments_are_refused() {
    for args in
        [&["--rules"][..], &["--rules", "x"], &["--nonsense", "1"], &["--limits", "{\"dpeth\":1}"]]
    {
        let output = Command::new(env!("CARGO_BIN_EXE_vscan-scanner")).args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(64), "{args:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("usage:"), "{args:?}");
    }
}

/// Containers as their own tools make them, each opened under the system-call filter by a worker that lives on.
#[test]
fn every_container_is_opened_inside_the_sandbox() {
    let dir = tempfile::tempdir().unwrap();
    let rule = dir.path().join("mark.yar");
    let mark = std::str::from_utf8(MARK).unwrap();
    let text = "rule Mark { strings: $a = \"".to_owned()
        + mark
        + "\" condition: $a at 0 or $a at 500000 }\n\
                rule Clam { strings: $a = \"[CLAMAV]\" condition: filesize == 544 and $a at 504 }";
    std::fs::write(&rule, text).unwrap();
    let mut scanner = Scanner::start(&[rule], 1, "{}");
    let mut worker = scanner.worker();
    let fixtures = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let mut objects: Vec<(String, Vec<u8>)> = ["/usr/share/clamav-testfiles".into(), fixtures]
        .iter()
        .flat_map(|dir| std::fs::read_dir(dir).unwrap())
        .map(|entry| entry.unwrap().path())
        .map(|path| {
            (path.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read(&path).unwrap())
        })
        .collect();
    // A name in the code page of nobody is converted by the C library.
    objects.push(("version 4".into(), rar::version_4("m\u{e9}.com", MARK, false)));
    objects.push(("version 5".into(), rar::version_5("m\u{e9}\u{4e16}.com", MARK, false)));
    for (name, data) in objects {
        let report = worker.scan(ObjectKind::File, &name, &data);
        assert_ne!(report.verdict, Verdict::Error, "{name}: {report:?}");
        if name.starts_with("version") {
            assert_eq!(report.verdict, Verdict::Infected, "{name}: {report:?}");
        }
    }
}

#[test]
fn a_worker_repairs_and_long_answers_come_in_pieces() {
    let mut scanner = Scanner::shipped(1);
    let mut worker = scanner.worker();
    let eicar = String::from_utf8(eicar()).unwrap();
    // A message in quoted-printable comes back whole, since it is encoded again: more than a datagram holds.
    let inner = format!(
        "Subject: in\r\nContent-Type: multipart/mixed; boundary=i\r\n\r\n--i\r\n\r\n{}--i\r\nContent-Type: a/b\r\n\r\n{eicar}\r\n--i--\r\n",
        "clean words\r\n".repeat(40_000)
    );
    let message = format!(
        "Subject: out\r\nContent-Type: multipart/mixed; boundary=o\r\n\r\n--o\r\nContent-Type: message/rfc822\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n{}\r\n--o--\r\n",
        inner.replace('=', "=3D")
    );
    let report = worker.scan(ObjectKind::Message, "", message.as_bytes());
    assert_eq!(report.verdict, Verdict::Infected, "{report:?}");
    let order = |part| Order { part, remedies: vec![Remedy::Clean, Remedy::Replace] };
    let plan = Plan {
        orders: report.findings.iter().map(|f| order(f.part)).collect(),
        notice: "It held a virus.".into(),
        size_max: 1 << 20,
        ..Plan::default()
    };
    worker.ask(Ask::Repair(plan), ObjectKind::Message, "", message.as_bytes(), false);
    let answer = worker.any_answer().expect("the worker ended");
    let Answer::Repair(repair::Answer::Repaired(repaired)) = answer else { panic!("{answer:?}") };
    assert!(repaired.edits.iter().any(|e| e.with.len() > vscan_scan::wire::DATAGRAM_MAX));
    let out = repaired.apply(message.as_bytes());
    let again = worker.scan(ObjectKind::Message, "", &out);
    assert_eq!(again.verdict, Verdict::Clean, "{again:?}");
    assert!(String::from_utf8(out).unwrap().contains("It held a virus."));
    // The same worker goes on, and a wrong plan does not end it.
    let plan = Plan { orders: vec![order(4711)], size_max: 1, ..Plan::default() };
    worker.ask(Ask::Repair(plan), ObjectKind::Message, "", b"a: b\r\n\r\n", true);
    let answer = worker.any_answer();
    assert!(
        matches!(answer, Some(Answer::Repair(repair::Answer::Unrepairable { .. }))),
        "{answer:?}"
    );
}

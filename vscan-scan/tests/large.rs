//! Large objects, on the several threads of real workers: what they find, what they may do, and how they end.

#![expect(clippy::unwrap_used, reason = "helpers of tests, outside of #[test] functions")]

#[expect(dead_code, reason = "not all of it is of use here")]
mod common;

use common::{Scanner, Worker, eicar, rules};
use rustix::process::{Pid, Signal, kill_process};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};
use vscan_scan::report::{Report, Verdict};
use vscan_scan::wire::ObjectKind::File;
use vscan_scan::wire::{Answer, Ask};

const THREADS: u32 = 4;

/// What one worker does for some time: bytes without a pattern, so that nothing ends early.
fn large(len: usize) -> Vec<u8> {
    let mut data = vec![0; len];
    blake3::Hasher::new().finalize_xof().fill(&mut data);
    data
}

/// Nanoseconds that a thread has run (the first number of /proc/PID/task/TID/schedstat).
fn ran(task: &Path) -> u64 {
    let text = std::fs::read_to_string(task.join("schedstat")).unwrap();
    text.split_whitespace().next().unwrap().parse().unwrap()
}

/// What the helpers have run, together.
fn helped(worker: &Worker) -> u64 {
    worker.helpers().iter().map(|task| ran(task)).sum()
}

/// Waits until a helper has worked for longer than it takes to look for work.
fn until_helped(worker: &Worker, before: u64) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while helped(worker) < before + 5_000_000 {
        assert!(Instant::now() < deadline, "nobody helps");
        std::thread::yield_now();
    }
}

#[test]
fn every_thread_is_confined_and_sleeps() {
    let mut scanner = Scanner::start_with(&[rules()], 2, "{}", THREADS);
    let (mut worker, other) = (scanner.worker(), scanner.worker());
    worker.scan(File, "x", &eicar());
    for worker in [&worker, &other] {
        let helpers = worker.helpers();
        assert_eq!(helpers.len() as u32, THREADS - 1);
        for task in &helpers {
            let status = std::fs::read_to_string(task.join("status")).unwrap();
            let field = |name: &str| {
                let line = status.lines().find(|line| line.starts_with(name)).unwrap();
                line.split_once(':').unwrap().1.trim().to_owned()
            };
            for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
                assert_eq!(field(set), "0000000000000000", "{set}");
            }
            assert_eq!((&*field("NoNewPrivs"), &*field("Seccomp")), ("1", "2"));
            assert!(field("State").starts_with('S'), "{}", field("State"));
        }
    }
    let before = helped(&worker);
    for _ in 0..200 {
        worker.scan(File, "x", b"small");
    }
    assert_eq!(helped(&worker), before, "small objects wake nobody");
}

#[test]
fn several_threads_find_what_one_finds() {
    let mut one = Scanner::start_with(&[rules()], 1, "{}", 1);
    let mut many = Scanner::start_with(&[rules()], 1, "{}", THREADS);
    let (mut one, mut many) = (one.worker(), many.worker());
    assert_eq!(one.helpers().len(), 0);
    let mut data = large(24 << 20);
    // A page that carries what is found by itself, so that the walk goes on from a large part.
    data[..15].copy_from_slice(b"<!DOCTYPE html>");
    for at in [0, (1 << 20) - 33, 7_777_777, (24 << 20) - 68] {
        let mut data = data.clone();
        data[at..at + 68].copy_from_slice(&eicar());
        let before = helped(&many);
        let same = |report: Report| Report { micros: 0, ..report };
        let report = same(many.scan(File, "x.html", &data));
        assert_eq!(report, same(one.scan(File, "x.html", &data)));
        assert!(helped(&many) > before, "somebody helped");
    }
    data[..68].copy_from_slice(&eicar());
    data[68..].fill(b' ');
    let report = many.scan(File, "eicar.com", &data);
    assert_eq!(report.verdict, Verdict::Infected);
    assert_eq!(report.findings, one.scan(File, "eicar.com", &data).findings);
    assert!(report.micros > 0);
}

#[test]
fn a_worker_that_ends_in_the_middle_ends_whole_and_leaves_its_cores_to_others() {
    let mut scanner = Scanner::start_with(&[rules()], 1, "{}", THREADS);
    let data = large(192 << 20);
    // More often than there are threads: what the dead ones counted must not stay.
    for round in 0..6 {
        let mut worker = scanner.worker();
        let before = helped(&worker);
        worker.send(File, "x", &data, false);
        until_helped(&worker, before);
        let cause = if round % 2 == 0 {
            kill_process(Pid::from_raw(worker.pid).unwrap(), Signal::KILL).unwrap();
            "signal 9"
        } else {
            // What the gateway does at the deadline.
            scanner.kill(&worker);
            "killed as ordered"
        };
        assert!(worker.answer().is_none(), "the socket tells the death");
        assert_eq!(scanner.exited(), (worker.slot, worker.pid, cause.to_owned()));
        assert!(!Path::new(&format!("/proc/{}/task", worker.pid)).exists(), "no thread is left");
    }
    let mut worker = scanner.worker();
    let before = helped(&worker);
    assert_eq!(worker.scan(File, "x", &data[..64 << 20]).verdict, Verdict::Clean);
    assert!(helped(&worker) > before + 5_000_000, "helped as ever");
    assert_eq!(worker.scan(File, "", &eicar()).verdict, Verdict::Infected);
}

/// A file that grows, as the gateway's do: so many bytes at a time, of each of which the worker is told.
fn arrive(worker: &mut Worker, number: u64, data: &[u8], step: usize) -> std::fs::File {
    let file = tempfile::tempfile().unwrap();
    for (n, piece) in data.chunks(step).enumerate() {
        let at = (n * step) as u64;
        file.write_all_at(piece, at).unwrap();
        let looked = worker.look(number, &file, at + piece.len() as u64);
        assert!(matches!(looked, Some(Answer::Ahead(_))), "{looked:?}");
    }
    file
}

#[test]
fn an_object_that_was_looked_at_while_it_arrived_has_the_report_of_any_other() {
    let mut scanner = Scanner::start_with(&[rules()], 2, r#"{"known_parts": 0}"#, 2);
    let (mut worker, mut other) = (scanner.worker(), scanner.worker());
    let same = |report: Report| Report { micros: 0, ahead: 0, ..report };
    let len = 6 << 20;
    for (number, step) in [1 << 20, 4 << 20, 100_001].into_iter().enumerate() {
        let number = number as u64;
        for eicar_at in [None, Some(0)] {
            let mut data = if eicar_at.is_some() { vec![b' '; len] } else { large(len) };
            if let Some(at) = eicar_at {
                data[at..at + 68].copy_from_slice(&eicar());
            }
            let file = arrive(&mut worker, number, &data, step);
            let report = worker.report(Some(number), &file, len as u64);
            assert!(report.ahead > len as u64 - (1 << 20), "{} were looked at", report.ahead);
            assert_eq!(report.verdict == Verdict::Infected, eicar_at.is_some(), "{report:?}");
            // It is over: the next time, and for another worker, it is one like any other.
            let again = worker.report(Some(number), &file, len as u64);
            assert_eq!(again.ahead, 0);
            assert_eq!(same(again), same(report.clone()));
            assert_eq!(same(other.report(Some(number), &file, len as u64)), same(report));
        }
    }
}

#[test]
fn what_was_seen_of_one_object_says_nothing_of_another() {
    let mut scanner = Scanner::start_with(&[rules()], 1, r#"{"known_parts": 0}"#, 2);
    let mut worker = scanner.worker();
    let len = 6 << 20;
    let mut bad = vec![b' '; len];
    bad[..68].copy_from_slice(&eicar());
    let clean = vec![b' '; len];
    // Many arrive at once, each in its turn, more than are kept; then all of them are whole.
    let files: Vec<_> = (0..80u64)
        .map(|n| (n, arrive(&mut worker, n, if n % 2 == 0 { &bad } else { &clean }, len)))
        .collect();
    let mut kept = 0;
    for (number, file) in &files {
        let report = worker.report(Some(*number), file, len as u64);
        let expected = if number % 2 == 0 { Verdict::Infected } else { Verdict::Clean };
        assert_eq!(report.verdict, expected, "{number}");
        kept += usize::from(report.ahead > 0);
    }
    assert_eq!(kept, 64, "the others were forgotten");
    // One that is shorter in the end; one of which more is told than there is; one without a descriptor or number.
    let file = arrive(&mut worker, 1000, &clean, len);
    file.set_len(68).unwrap();
    file.write_all_at(&eicar(), 0).unwrap();
    assert_eq!(worker.report(Some(1000), &file, 68).verdict, Verdict::Infected);
    let told = worker.look(1001, &file, 1 << 30);
    assert_eq!(told, Some(Answer::Ahead(0)));
    assert_eq!(worker.request(Some(1002), Ask::Ahead, None, 5), Some(Answer::Ahead(0)));
    assert_eq!(worker.request(None, Ask::Ahead, Some(&file), 5), Some(Answer::Ahead(0)));
    assert_eq!(worker.look(1003, &file, 0), Some(Answer::Ahead(0)));
    // A repair does not use it up or take it for its own.
    let file = arrive(&mut worker, 1004, &bad, len);
    assert_eq!(worker.scan(File, "x", &eicar()).verdict, Verdict::Infected);
    assert!(worker.report(Some(1004), &file, len as u64).ahead > 0);
}

use super::*;
use crate::{
    net::{Seqpacket, seqpacket},
    scanner::Scanner,
    spool::{Object, Spool},
};
use std::{
    io::IoSlice,
    os::fd::{AsFd, OwnedFd},
    sync::atomic::AtomicUsize,
    time::Duration,
};
use vscan_scan::wire::{Answer, Content, DATAGRAM_MAX, Request, ToGateway};

fn object(bytes: &[u8]) -> Object {
    let directory = tempfile::tempdir().unwrap();
    let spool = Spool::new(directory.path(), 1 << 20, 1 << 20, 1 << 20).unwrap();
    let mut writer = spool.writer();
    writer.write(bytes).unwrap();
    writer.finish().unwrap()
}

fn clean() -> Report {
    Report { verdict: Verdict::Clean, error: None, ..Report::error("") }
}

#[test]
fn everything_that_shapes_a_report_makes_another_key() {
    let job = Job::new(ObjectKind::File, object(b"content"));
    let named = |name: &str| Job { name: Some(name.to_owned()), ..job.clone() };
    let trying = |passwords: &[&str]| Job {
        passwords: passwords.iter().map(|&p| p.to_owned()).collect(),
        ..job.clone()
    };
    let jobs = [
        job.clone(),
        Job::new(ObjectKind::Message, object(b"content")),
        Job::new(ObjectKind::File, object(b"Content")),
        Job { detail: true, ..job.clone() },
        named(""),
        named("a"),
        named("ab"),
        trying(&["a"]),
        trying(&["a", "b"]),
        trying(&["b", "a"]),
        trying(&["ab"]),
    ];
    let mut keys: Vec<Key> = jobs.iter().map(|job| Key::on(job, 1, 20_000)).collect();
    keys.extend([Key::on(&job, 2, 20_000), Key::on(&job, 1, 20_001)]);
    let count = keys.len();
    keys.sort_by_key(|key| key.0);
    keys.dedup();
    assert_eq!(keys.len(), count);
    let again = Job::new(ObjectKind::File, object(b"content"));
    assert_eq!(Key::on(&again, 1, 20_000), Key::on(&job, 1, 20_000), "equal bytes, equal key");
}

#[test]
fn only_what_would_be_said_again_is_kept() {
    assert!(is_lasting(&clean()));
    assert!(!is_lasting(&Report { timely: true, ..clean() }), "later another rule may find it");
    let unread = |reason| {
        let mut report = clean();
        report.add_unread(reason, "", &[], 0);
        report
    };
    for reason in [Reason::Encrypted, Reason::Ratio, Reason::Depth, Reason::Malformed] {
        assert!(is_lasting(&unread(reason)), "{reason:?}");
    }
    for reason in [Reason::Time, Reason::Memory] {
        assert!(!is_lasting(&unread(reason)), "{reason:?}");
        let mut infected = unread(reason);
        infected.add_finding("A", "yara", &[], 0);
        assert!(!is_lasting(&infected), "there may be more that was not found");
    }
    assert!(!is_lasting(&Report::error("no worker")));
    let mut half = clean();
    half.add_finding("A", "yara", &[], 0);
    half.add_error("another engine failed");
    assert!(!is_lasting(&half));
}

#[tokio::test]
async fn memory_and_number_of_reports_are_bounded() {
    let store = InProcess::new(1 << 20);
    let job = Job::new(ObjectKind::File, object(b"x"));
    let mut long = clean();
    for n in 0..100 {
        let path = vec!["a part of some name".to_owned(); 3];
        long.add_unread(Reason::Malformed, &format!("{n} and words"), &path, n);
    }
    for n in 0..20_000 {
        let report = if n % 50 == 0 { &long } else { &clean() };
        store.put(Key::on(&job, n, 0), report).await;
        let (reports, bytes) = store.held();
        assert!(bytes <= 1 << 20 && reports <= (1 << 20) / REPORT_MIN, "{reports} {bytes}");
    }
    let (reports, bytes) = store.held();
    assert!(reports > 500 && bytes > 1 << 19, "it is used: {reports} {bytes}");
    assert_eq!(store.get(&Key::on(&job, 19_999, 0)).await, Some(clean()));
    assert_eq!(store.get(&Key::on(&job, 20_000, 0)).await, None);
}

/// A scanner of `workers`, whose word for each object is `answer`'s; and how many objects it was given.
fn scanner(
    workers: u32,
    answer: fn(&[u8], usize) -> Option<Report>,
) -> (Arc<AtomicUsize>, OwnedFd) {
    let given = Arc::new(AtomicUsize::new(0));
    let (near, far) = seqpacket::pair(DATAGRAM_MAX).unwrap();
    let control = Seqpacket::new(far).unwrap();
    let count = Arc::clone(&given);
    tokio::spawn(async move {
        for slot in 0..workers {
            let (theirs, ours) = seqpacket::pair(DATAGRAM_MAX).unwrap();
            let message = postcard::to_stdvec(&ToGateway::Worker { slot, pid: 1 }).unwrap();
            control.send(&[IoSlice::new(&message)], &[theirs.as_fd()]).await.unwrap();
            tokio::spawn(worker(Seqpacket::new(ours).unwrap(), answer, Arc::clone(&count)));
        }
        while control.receive(&mut vec![0; DATAGRAM_MAX]).await.is_ok_and(|got| got.len > 0) {}
    });
    (given, near)
}

async fn worker(
    socket: Seqpacket,
    answer: fn(&[u8], usize) -> Option<Report>,
    given: Arc<AtomicUsize>,
) {
    let mut buffer = vec![0; DATAGRAM_MAX];
    while let Ok(received) = socket.receive(&mut buffer).await {
        if received.len == 0 {
            return;
        }
        let request: Request = postcard::from_bytes(&buffer[..received.len]).unwrap();
        let Content::Inline(bytes) = &request.content else { panic!("a small object") };
        let number = given.fetch_add(1, Ordering::SeqCst);
        // Whoever wants the same has time to come and wait.
        for _ in 0..50 {
            tokio::task::yield_now().await;
        }
        let Some(report) = answer(bytes, number) else { continue };
        let answer = Answer::Report(Box::new(report));
        for response in answer.responses(request.id).unwrap() {
            let message = postcard::to_stdvec(&response).unwrap();
            socket.send(&[IoSlice::new(&message)], &[]).await.unwrap();
        }
    }
}

const DEADLINE: Duration = Duration::from_secs(30);

fn remembering() -> Scanner {
    let scanner = Scanner::new();
    scanner.remember(Some(1 << 20));
    scanner
}

/// So many askers at once for the content.
async fn ask(scanner: &Scanner, bytes: &'static [u8], askers: usize) -> Vec<Report> {
    let asking = (0..askers).map(|_| {
        let scanner = scanner.clone();
        tokio::spawn(async move {
            scanner.scan(Job::new(ObjectKind::File, object(bytes)), DEADLINE).await
        })
    });
    let asking: Vec<_> = asking.collect();
    let mut reports = Vec::new();
    for one in asking {
        reports.push(one.await.unwrap());
    }
    reports
}

#[tokio::test]
async fn the_same_content_is_scanned_once_whenever_it_is_asked_for() {
    let scanner = remembering();
    let (given, control) = self::scanner(4, |bytes, _| {
        let mut report = Report { parts: 3, known: 2, micros: 7, ..clean() };
        if bytes == b"evil" {
            report.add_finding("Evil", "test", &[], 0);
        }
        Some(report)
    });
    scanner.attach(control, crate::scanner::process::Rules::default()).unwrap();
    for bytes in [&b"evil"[..], b"good"] {
        let mut reports = ask(&scanner, bytes, 20).await;
        reports.extend(ask(&scanner, bytes, 5).await);
        let verdict = if bytes == b"evil" { Verdict::Infected } else { Verdict::Clean };
        assert!(reports.iter().all(|report| report.verdict == verdict));
        let cost: u64 = reports.iter().map(|report| report.micros).sum();
        assert_eq!(cost, 7, "the time of the one scan is counted once");
    }
    assert_eq!(given.load(Ordering::SeqCst), 2);
    let cache = scanner.status().cache;
    assert_eq!((cache.hits, cache.misses, cache.reports), (48, 2, 2));
    assert_eq!((cache.part_hits, cache.part_misses), (4, 2));
}

#[tokio::test]
async fn a_failure_is_neither_kept_nor_shared() {
    let scanner = remembering();
    let (given, control) = self::scanner(4, |_, number| {
        Some(if number < 3 { Report::error("it failed") } else { clean() })
    });
    scanner.attach(control, crate::scanner::process::Rules::default()).unwrap();
    let reports = ask(&scanner, b"x", 10).await;
    let errors = reports.iter().filter(|report| report.verdict == Verdict::Error).count();
    assert_eq!((errors, given.load(Ordering::SeqCst)), (3, 4));
    assert_eq!(ask(&scanner, b"x", 3).await, vec![clean(); 3]);
    assert_eq!(given.load(Ordering::SeqCst), 4);
}

/// A scan of `x` that a worker has begun and that never ends.
async fn hanging(scanner: &Scanner, given: &AtomicUsize) -> tokio::task::JoinHandle<Report> {
    let scanning = tokio::spawn({
        let scanner = scanner.clone();
        async move { scanner.scan(Job::new(ObjectKind::File, object(b"x")), DEADLINE).await }
    });
    while given.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    scanning
}

#[tokio::test]
async fn whoever_waits_takes_over_from_one_that_goes_away() {
    let scanner = remembering();
    let (given, control) = self::scanner(2, |_, number| (number > 0).then(clean));
    scanner.attach(control, crate::scanner::process::Rules::default()).unwrap();
    let first = hanging(&scanner, &given).await;
    let second = tokio::spawn({
        let scanner = scanner.clone();
        async move { ask(&scanner, b"x", 3).await }
    });
    tokio::task::yield_now().await;
    first.abort();
    assert_eq!(second.await.unwrap(), vec![clean(); 3]);
    assert_eq!(given.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn nobody_waits_longer_for_another_than_for_itself() {
    let scanner = remembering();
    let (given, control) = self::scanner(2, |_, number| (number > 0).then(clean));
    scanner.attach(control, crate::scanner::process::Rules::default()).unwrap();
    let first = hanging(&scanner, &given).await;
    let job = Job::new(ObjectKind::File, object(b"x"));
    assert_eq!(scanner.scan(job, Duration::from_millis(100)).await, clean());
    assert_eq!(given.load(Ordering::SeqCst), 2);
    first.abort();
}

#[tokio::test]
async fn a_new_scanner_is_asked_anew_and_so_is_one_without_memory() {
    let scanner = remembering();
    let (first, control) = self::scanner(1, |_, _| Some(clean()));
    scanner.attach(control, crate::scanner::process::Rules::default()).unwrap();
    ask(&scanner, b"x", 2).await;
    // The same name of the rules does not make it the same process.
    let (second, control) = self::scanner(1, |_, _| Some(clean()));
    scanner.attach(control, crate::scanner::process::Rules::default()).unwrap();
    ask(&scanner, b"x", 2).await;
    assert_eq!((first.load(Ordering::SeqCst), second.load(Ordering::SeqCst)), (1, 1));
    scanner.remember(None);
    ask(&scanner, b"x", 2).await;
    assert_eq!(second.load(Ordering::SeqCst), 3);
    let cache = scanner.status().cache;
    assert_eq!((cache.hits, cache.misses, cache.reports), (2, 2, 0));
}

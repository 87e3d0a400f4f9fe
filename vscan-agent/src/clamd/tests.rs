//! Against servers that are no clamd, or a broken one.

use super::*;
use crate::config::{ClamdAddress, Glob};
use std::fs::File;
use std::io::Write;
use std::num::NonZeroUsize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use vscan_scan::report::Verdict;

/// What a connection does after `VERSION` was answered.
#[derive(Clone, Copy)]
enum Behaviour {
    /// Reads everything, then says this.
    Says(&'static [u8]),
    /// Says this after the command.
    Early(&'static [u8]),
    /// Reads and says nothing.
    Silent,
    /// Closes after the command.
    Closes,
    /// Closes the first connection, says that it is clean on the second.
    ClosesOnce,
}

struct Stage {
    _dir: tempfile::TempDir,
    clamd: Clamd,
}

fn config(address: ClamdAddress) -> config::Clamd {
    config::Clamd {
        address,
        mode: ClamdMode::Auto,
        deadline: Duration::from_millis(700),
        connections: NonZeroUsize::new(2).unwrap(),
        size_max: 10 << 20,
        larger: ClamdLarger::Unscannable,
        ignore: vec![Glob::new("PUA.*")],
    }
}

fn stage(behaviour: Behaviour) -> Stage {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ctl");
    let listener = UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        let mut scans = 0;
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, behaviour, scans));
            // every scan is preceded by a VERSION at first
            scans += 1;
        }
    });
    Stage { _dir: dir, clamd: Clamd::new(config(ClamdAddress::Unix(path)), None) }
}

async fn serve(mut stream: UnixStream, behaviour: Behaviour, connection: u32) {
    let mut command = Vec::new();
    while command.last() != Some(&0) {
        command.push(stream.read_u8().await.unwrap());
    }
    if command == b"zVERSION\0" {
        stream.write_all(b"ClamAV 1.4.6/27500/Sun Nov 22 08:24:51 2026\0").await.unwrap();
        return;
    }
    let mut all = Vec::new();
    match behaviour {
        Behaviour::Early(answer) => {
            let _ = stream.write_all(answer).await;
            return;
        }
        Behaviour::Closes => return,
        Behaviour::ClosesOnce if connection < 2 => return,
        Behaviour::Silent => {
            let _ = stream.read_to_end(&mut all).await;
            return;
        }
        Behaviour::Says(_) | Behaviour::ClosesOnce => {}
    }
    if command == b"zINSTREAM\0" {
        loop {
            let len = stream.read_u32().await.unwrap();
            if len == 0 {
                break;
            }
            let mut chunk = vec![0; len as usize];
            stream.read_exact(&mut chunk).await.unwrap();
            all.extend(chunk);
        }
    } else {
        stream.read_u8().await.unwrap();
    }
    let answer = if let Behaviour::Says(answer) = behaviour { answer } else { b"stream: OK\0" };
    for byte in answer {
        // split at every byte
        stream.write_all(&[*byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
}

fn object(len: usize) -> Object {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&vec![b'x'; len]).unwrap();
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
    Object::of_file(File::open(path).unwrap()).unwrap()
}

fn verdict(outcome: Outcome) -> (Verdict, Report) {
    let mut report = Report { verdict: Verdict::Clean, error: None, ..Report::error("") };
    add(outcome, Some("a.bin"), &mut report);
    (report.verdict, report)
}

#[tokio::test]
async fn what_is_no_answer_is_an_error_and_never_clean() {
    for behaviour in [
        Behaviour::Says(b"\xff\xfe garbage \0"),
        Behaviour::Says(b"\0"),
        Behaviour::Says(b"stream: OK"),
        Behaviour::Says(b"PONG\0"),
        Behaviour::Says(b"stream: Can't allocate memory ERROR\0"),
        Behaviour::Early(b"stream: OK\0"),
        Behaviour::Early(b"COMMAND READ TIMED OUT\0"),
        Behaviour::Silent,
        Behaviour::Closes,
    ] {
        // by bytes in one write, by descriptor, and by bytes in many writes
        for (len, mode) in [
            (100, ClamdMode::Auto),
            (1 << 20, ClamdMode::Auto),
            (4 << 20, ClamdMode::Instream),
            (0, ClamdMode::Instream),
        ] {
            let mut stage = stage(behaviour);
            stage.clamd.config.mode = mode;
            let (verdict, report) = verdict(stage.clamd.scan(&object(len)).await);
            // The answer to a short object may be there when it is sent: then it is one to the whole of it.
            let whole = matches!(behaviour, Behaviour::Early(b"stream: OK\0"))
                && (len <= 100 || mode == ClamdMode::Auto);
            assert!(verdict == Verdict::Error || whole, "{len}: {report:?}");
            assert_eq!(stage.clamd.status().failures, u64::from(!whole));
        }
    }
}

#[tokio::test]
async fn an_endless_answer_is_cut() {
    static ENDLESS: [u8; 100_000] = [b'a'; 100_000];
    let stage = stage(Behaviour::Early(&ENDLESS));
    let outcome = stage.clamd.scan(&object(100)).await;
    assert!(
        matches!(&outcome, Outcome::Failed(Error::NotUnderstood(said)) if said.len() < 100),
        "{outcome:?}"
    );
}

#[tokio::test]
async fn a_connection_that_ended_is_made_anew_once() {
    let stage = stage(Behaviour::ClosesOnce);
    assert!(matches!(stage.clamd.scan(&object(100)).await, Outcome::Clean));
    assert_eq!(stage.clamd.status().failures, 0);
}

#[tokio::test]
async fn nobody_there_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let clamd = Clamd::new(config(ClamdAddress::Unix(dir.path().join("none"))), None);
    let (verdict, report) = verdict(clamd.scan(&object(10)).await);
    assert_eq!(verdict, Verdict::Error);
    assert!(report.error.unwrap().starts_with("clamd cannot be reached: "));
    assert_eq!(clamd.identity(), None);
}

#[tokio::test]
async fn what_clamd_tells_of_limits_is_unscannable() {
    for (answer, reason) in [
        (&b"stream: Heuristics.Encrypted.Zip FOUND\0"[..], Reason::Encrypted),
        (b"stream: Heuristics.Encrypted.PDF FOUND\0", Reason::Encrypted),
        (b"stream: Heuristics.Limits.Exceeded.MaxFileSize FOUND\0", Reason::Size),
        (b"stream: Heuristics.Limits.Exceeded.MaxScanSize FOUND\0", Reason::Unpacked),
        (b"stream: Heuristics.Limits.Exceeded.MaxFiles FOUND\0", Reason::Members),
        (b"stream: Heuristics.Limits.Exceeded.MaxRecursion FOUND\0", Reason::Depth),
        (b"stream: Heuristics.Limits.Exceeded FOUND\0", Reason::Size),
        (b"INSTREAM size limit exceeded. ERROR\0", Reason::Size),
    ] {
        let stage = stage(Behaviour::Says(answer));
        let (verdict, report) = verdict(stage.clamd.scan(&object(10)).await);
        assert_eq!((verdict, report.unread[0].reason), (Verdict::Unscannable, reason));
        assert!(report.findings.is_empty());
    }
}

#[tokio::test]
async fn what_is_ignored_does_not_count_and_shapes_the_identity() {
    let clean = stage(Behaviour::Says(b"stream: PUA.Win.Packer FOUND\0"));
    assert!(matches!(clean.clamd.scan(&object(10)).await, Outcome::Clean));
    let identity = clean.clamd.identity().unwrap();
    assert_eq!(identity, "ClamAV 1.4.6/27500/Sun Nov 22 08:24:51 2026 without PUA.*");
    let found = stage(Behaviour::Says(b"stream: Win.Trojan.X FOUND\0"));
    let (verdict, report) = verdict(found.clamd.scan(&object(10)).await);
    assert_eq!(verdict, Verdict::Infected);
    assert_eq!((&*report.findings[0].name, &*report.findings[0].engine), ("Win.Trojan.X", ENGINE));
    assert_eq!(report.findings[0].path, ["a.bin"]);
}

#[tokio::test]
async fn larger_objects_are_unscannable_or_skipped() {
    let mut stage = stage(Behaviour::Closes);
    stage.clamd.config.size_max = 99;
    let (verdict, report) = verdict(stage.clamd.scan(&object(100)).await);
    assert_eq!((verdict, report.unread[0].reason), (Verdict::Unscannable, Reason::Size));
    stage.clamd.config.larger = ClamdLarger::Skip;
    assert!(matches!(stage.clamd.scan(&object(100)).await, Outcome::Skipped));
}

#[tokio::test]
async fn a_hung_clamd_holds_nobody_longer_than_the_deadline() {
    let stage = stage(Behaviour::Silent);
    let started = Instant::now();
    let object = object(100);
    // More than there are connections.
    let scans = (0..6).map(|_| stage.clamd.scan(&object));
    let mut scans: Vec<_> = scans.map(Box::pin).collect();
    for scan in &mut scans {
        let outcome = scan.await;
        assert!(matches!(outcome, Outcome::Failed(Error::Deadline(_))), "{outcome:?}");
    }
    assert!(started.elapsed() < Duration::from_secs(6));
}

#[tokio::test]
async fn those_who_wait_for_the_version_of_a_hung_clamd_wait_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ctl");
    // Connections lie in its queue, and nobody takes them.
    let _listener = UnixListener::bind(&path).unwrap();
    let clamd = std::sync::Arc::new(Clamd::new(config(ClamdAddress::Unix(path)), None));
    let started = Instant::now();
    let waiting: Vec<_> = (0..50)
        .map(|_| {
            let clamd = clamd.clone();
            tokio::spawn(async move { clamd.version().await.is_err() })
        })
        .collect();
    for one in waiting {
        assert!(one.await.unwrap());
    }
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
}

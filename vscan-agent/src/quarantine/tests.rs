use super::*;
use crate::config::{Direction, Protocol};
use crate::observe::{FlowOpen, Observer};
use std::process::Command;
use vscan_scan::report::{Finding, Report};

const NO_LIMITS: config::Quarantine =
    config::Quarantine { max_age: None, max_size: None, min_free: 0 };

fn store(limits: config::Quarantine) -> (tempfile::TempDir, Store) {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().join("quarantine"), limits).unwrap();
    (directory, store)
}

fn put(store: &Store, name: &[u8], content: &[u8]) -> Result<Entry, StoreError> {
    let mut report = Report { verdict: Verdict::Infected, error: None, ..Report::error("") };
    report.findings.push(Finding {
        name: "EICAR_Test_File".to_owned(),
        engine: "yara".to_owned(),
        path: vec!["message".to_owned(), "a.zip".to_owned()],
        ..Finding::default()
    });
    let flow = Observer::without_events().flows.open(FlowOpen {
        protocol: Protocol::Smtp,
        client: "10.0.0.1:1000".parse().unwrap(),
        server: "192.0.2.1:25".parse().unwrap(),
        real_server: "192.0.2.1:25".parse().unwrap(),
        direction: Direction::Outbound,
    });
    let about = About {
        flow: flow.id(),
        protocol: Protocol::Smtp,
        direction: Direction::Outbound,
        client: flow.opened().client,
        server: flow.opened().server,
        user: Some(b"a@example.org"),
        recipients: &[b"b@example.com".to_vec(), b"\xff@example.com".to_vec()],
        name,
        kind: "message",
        size: content.len() as u64,
        report: &report,
    };
    store.put(&about, &mut &content[..])
}

fn files(store: &Store) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(&store.directory)
        .unwrap()
        .map(|f| f.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn what_is_put_comes_back() {
    let (_directory, store) = store(NO_LIMITS);
    let entry = put(&store, b"in\xffvoice\x1b", b"content").unwrap();
    assert_eq!(store.show(&entry.id).unwrap(), entry);
    assert_eq!(entry.name, "in\\xffvoice\x1b");
    assert_eq!(entry.recipients, ["b@example.com", "\\xff@example.com"]);
    assert_eq!(entry.sha256, "ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73");
    assert_eq!(entry.blake3, blake3::hash(b"content").to_hex().to_string());
    let mut content = String::new();
    store.content(&entry.id).unwrap().read_to_string(&mut content).unwrap();
    assert_eq!(content, "content");
    assert_eq!(store.usage().unwrap(), Usage { objects: 1, bytes: 7 });
    assert_eq!(files(&store), [format!("{}.json", entry.id), format!("{}.object", entry.id)]);
}

#[test]
fn nobody_else_can_read_or_run_it() {
    let (_directory, store) = store(NO_LIMITS);
    let entry = put(&store, b"a", b"#!/bin/sh\n").unwrap();
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&store.directory), 0o700);
    assert_eq!(mode(&store.object(&entry.id)), 0o600);
    assert_eq!(mode(&store.description(&entry.id)), 0o600);
}

#[test]
fn entries_are_listed_in_the_order_of_time_and_bad_ones_do_not_hide_good_ones() {
    let (_directory, store) = store(NO_LIMITS);
    let mut ids: Vec<EntryId> = (0..20).map(|_| put(&store, b"a", b"x").unwrap().id).collect();
    assert_eq!(ids.iter().collect::<std::collections::HashSet<_>>().len(), 20);
    ids.sort();
    std::fs::write(store.description(&ids[3]), "{").unwrap();
    let (entries, unreadable) = store.list().unwrap();
    ids.remove(3);
    assert_eq!(entries.into_iter().map(|e| e.id).collect::<Vec<_>>(), ids);
    assert!(matches!(unreadable[..], [StoreError::BadDescription { .. }]));
}

#[test]
fn release_is_idempotent_and_leaves_a_trail() {
    let (directory, store) = store(NO_LIMITS);
    let entry = put(&store, b"a", b"content").unwrap();
    let to = directory.path().join("released");
    assert!(store.release(&entry.id, &to).unwrap().written);
    assert!(!store.release(&entry.id, &to).unwrap().written, "the second time nothing is done");
    assert_eq!(std::fs::read(&to).unwrap(), b"content");
    let entry = store.show(&entry.id).unwrap();
    assert_eq!(entry.released.len(), 1);
    assert_eq!(entry.released[0].to, to.display().to_string());
    std::fs::write(&to, "another file").unwrap();
    assert!(matches!(store.release(&entry.id, &to), Err(StoreError::TargetExists(_))));
    assert_eq!(std::fs::read(&to).unwrap(), b"another file");
    let dangling = directory.path().join("link");
    std::os::unix::fs::symlink("/nonexistent/x", &dangling).unwrap();
    assert!(matches!(store.release(&entry.id, &dangling), Err(StoreError::TargetExists(_))));
    store.delete(&entry.id).unwrap();
    let trail = std::fs::read_to_string(store.directory.join("audit.jsonl")).unwrap();
    let actions: Vec<String> = trail
        .lines()
        .map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap())
        .inspect(|l| assert_eq!(l["id"], entry.id.as_str()))
        .map(|l| l["action"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(actions, ["release", "delete"]);
    assert!(matches!(store.show(&entry.id), Err(StoreError::NoSuchEntry(_))));
    assert!(matches!(store.delete(&entry.id), Err(StoreError::NoSuchEntry(_))));
}

#[test]
fn altered_content_is_not_released() {
    let (directory, store) = store(NO_LIMITS);
    let entry = put(&store, b"a", b"content").unwrap();
    std::fs::write(store.object(&entry.id), "CONTENT").unwrap();
    let to = directory.path().join("released");
    assert!(matches!(store.release(&entry.id, &to), Err(StoreError::Altered(_))));
    assert!(!to.exists());
}

#[test]
fn retention_removes_the_old_and_the_oldest() {
    let (_directory, mut store) = store(NO_LIMITS);
    let ids: Vec<EntryId> = (0..5)
        .map(|n| {
            let mut entry = put(&store, b"a", &[b'x'; 100]).unwrap();
            // one day apart, the last one today
            let old = entry.id.clone();
            entry.time = Timestamp::now() - jiff::SignedDuration::from_hours(24 * (4 - n));
            entry.id = format!("2020010{n}-000000-00000000").parse().unwrap();
            store.describe(&entry).unwrap();
            std::fs::rename(store.object(&old), store.object(&entry.id)).unwrap();
            std::fs::remove_file(store.description(&old)).unwrap();
            entry.id
        })
        .collect();
    store.limits.max_age = Some(Duration::from_secs(86_400 * 7 / 2));
    let retained = store.retain(Timestamp::now()).unwrap();
    assert_eq!(retained, Retained { removed: 1, usage: Usage { objects: 4, bytes: 400 } });
    store.limits.max_size = Some(250);
    let retained = store.retain(Timestamp::now()).unwrap();
    assert_eq!(retained, Retained { removed: 2, usage: Usage { objects: 2, bytes: 200 } });
    assert_eq!(store.ids().unwrap(), ids[3..]);
    // a new one takes the place of the oldest, without waiting for the next retention
    let new = put(&store, b"a", &[b'y'; 100]).unwrap();
    assert!(store.usage().unwrap().bytes <= 250);
    assert!(store.show(&new.id).is_ok() && store.show(&ids[3]).is_err());
    assert!(matches!(put(&store, b"a", &[0; 251]), Err(StoreError::Full(_))));
}

#[test]
fn free_space_is_left_free() {
    let limits = config::Quarantine { min_free: u64::MAX / 2, ..NO_LIMITS };
    let (_directory, store) = store(limits);
    let error = put(&store, b"a", b"x").unwrap_err();
    assert!(
        matches!(&error, StoreError::Full(why) if why.contains("quarantine.min_free")),
        "{error}"
    );
    assert!(files(&store).is_empty());
}

#[test]
fn what_a_crash_left_behind_is_swept_and_nothing_else() {
    let (_directory, store) = store(NO_LIMITS);
    let entry = put(&store, b"a", b"x").unwrap();
    let old = SystemTime::now() - STALE * 2;
    let make = |name: &str, time: SystemTime| {
        let file = File::create(store.directory.join(name)).unwrap();
        file.set_modified(time).unwrap();
    };
    make(".new-old", old);
    make(".new-now", SystemTime::now());
    make("20200101-000000-00000000.object", old);
    make("20200101-000000-00000001.object", SystemTime::now());
    make("notes.txt", old);
    store.retain(Timestamp::now()).unwrap();
    assert_eq!(
        files(&store),
        [
            ".lock".to_owned(),
            ".new-now".to_owned(),
            "20200101-000000-00000001.object".to_owned(),
            format!("{}.json", entry.id),
            format!("{}.object", entry.id),
            "notes.txt".to_owned(),
        ]
    );
}

#[test]
fn names_cannot_leave_the_directory() {
    for text in [
        "../../../../etc/passwd00",
        "",
        "20261122-021826-1F0C59A7",
        "20261122-021826-1f0c59a7.",
        "20261122/021826/1f0c59a7",
    ] {
        assert!(text.parse::<EntryId>().is_err(), "{text}");
    }
    assert!("20261122-021826-1f0c59a7".parse::<EntryId>().is_ok());
}

/// On a file system of 1 MiB of its own. Needs root, as the tests of kernel state do.
#[test]
fn a_full_disk_is_survived() {
    let directory = tempfile::tempdir().unwrap();
    let mounted = Mounted::tmpfs(directory.path(), "1m");
    let store = Store::open(&directory.path().join("quarantine"), NO_LIMITS).unwrap();
    let first = put(&store, b"a", &vec![b'x'; 600 << 10]).unwrap();
    // more than is free, which `make_room` sees; then with other writers between its look and ours
    assert!(matches!(put(&store, b"b", &vec![b'y'; 600 << 10]), Err(StoreError::Full(_))));
    struct Filling<'a>(&'a Path, usize);
    impl Read for Filling<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let rest = vec![0; 4096];
            if let Ok(mut file) = OpenOptions::new().create(true).append(true).open(self.0) {
                while file.write_all(&rest).is_ok() {}
            }
            let n = buffer.len().min(self.1);
            self.1 -= n;
            Ok(n)
        }
    }
    let other = directory.path().join("other");
    let report = Report { verdict: Verdict::Infected, error: None, ..Report::error("") };
    let about = About {
        flow: first.flow_id,
        protocol: Protocol::Ftp,
        direction: Direction::Inbound,
        client: first.client,
        server: first.server,
        user: None,
        recipients: &[],
        name: b"c",
        kind: "file",
        size: 100,
        report: &report,
    };
    let error = store.put(&about, &mut Filling(&other, 100 << 10)).unwrap_err();
    assert!(matches!(error, StoreError::Full(_)), "{error}");
    assert_eq!(
        files(&store),
        [format!("{}.json", first.id), format!("{}.object", first.id)],
        "nothing is left behind"
    );
    // and retention makes room although its audit trail cannot be written
    let store =
        Store::open(&store.directory, config::Quarantine { max_size: Some(1000), ..NO_LIMITS })
            .unwrap();
    assert_eq!(store.retain(Timestamp::now()).unwrap().removed, 1);
    std::fs::remove_file(&other).unwrap();
    assert!(put(&store, b"d", b"fits again").is_ok());
    drop(mounted);
}

/// A file system that is unmounted when dropped.
struct Mounted<'a>(&'a Path);

impl<'a> Mounted<'a> {
    fn tmpfs(on: &'a Path, size: &str) -> Self {
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size},mode=700"), "vscan-test"])
            .arg(on)
            .status()
            .unwrap();
        assert!(status.success(), "mount needs root");
        Self(on)
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        // not in a panic within a panic
        let _ = Command::new("umount").arg("--lazy").arg(self.0).status();
    }
}

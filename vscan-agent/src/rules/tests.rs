//! Sets from every kind of origin, good and bad, and what becomes of those that are here.

use super::fetch::{Fetched, Wanted, fetch};
use super::store::{Manifest, Set, Store};
use super::unpack::unpack;
use super::*;
use crate::config::Origin;
use sha2::{Digest, Sha256};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant};

const RULES: &str = include_str!("../../tests/fixtures/a.yar");

/// A key pair of minisign's, made for this test, and its signature over [`RULES`], prehashed.
const KEY: &str = include_str!("../../tests/fixtures/minisign.pub");
const SIGNATURE: &str = include_str!("../../tests/fixtures/a.yar.minisig");
const SIGNED: i64 = 1_795_339_000;

fn wanted() -> Wanted {
    Wanted { size_max: 1 << 20, patience: Duration::from_secs(20), ..Wanted::default() }
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn archive(files: &[(&str, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, text) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o600);
        // Names that `tar` would refuse to write.
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        builder.append(&header, text.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn bring(dir: &Path, name: &str, bytes: &[u8], wanted: &Wanted) -> Result<Fetched, Error> {
    let from = dir.join(name);
    fs::write(&from, bytes).unwrap();
    let into = dir.join("into");
    let _ = fs::remove_dir_all(&into);
    fs::create_dir(&into).unwrap();
    fetch(&Origin::Path(from), wanted, &into)
}

#[test]
fn archives_and_single_files_are_unpacked() {
    let dir = tempfile::tempdir().unwrap();
    let tar = archive(&[("./a.yar", RULES), ("more/b.yar", RULES)]);
    for (name, bytes, files) in [
        ("set.tar", tar.clone(), &["a.yar", "more/b.yar"][..]),
        ("set.tar.gz", gzip(&tar), &["a.yar", "more/b.yar"]),
        ("one.yar", RULES.as_bytes().to_vec(), &["one.yar"]),
        ("two.yar.gz", gzip(RULES.as_bytes()), &["two.yar"]),
    ] {
        let fetched = bring(dir.path(), name, &bytes, &wanted()).unwrap();
        assert_eq!(fetched.sha256, sha256(&bytes));
        let to = dir.path().join(format!("to-{name}"));
        unpack(&fetched, &to, 1 << 20).unwrap();
        for file in files {
            assert_eq!(fs::read_to_string(to.join(file)).unwrap(), RULES, "{name} {file}");
        }
    }
}

#[test]
fn nothing_is_written_outside_of_a_set_and_no_more_than_may_be() {
    let dir = tempfile::tempdir().unwrap();
    let mut link = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    link.append_link(&mut header, "a.yar", "/etc/passwd").unwrap();
    let deep = format!("{}a.yar", "d/".repeat(20));
    let large = "x".repeat(3000);
    for (n, (bytes, most)) in [
        (archive(&[("../out.yar", RULES)]), 1 << 20),
        (archive(&[("/tmp/out.yar", RULES)]), 1 << 20),
        (archive(&[("a/../../out.yar", RULES)]), 1 << 20),
        (archive(&[(&deep, RULES)]), 1 << 20),
        (archive(&[("a.yar", &large), ("b.yar", &large)]), 5000),
        (archive(&[("a.yar", RULES), ("a.yar", RULES)]), 1 << 20),
        (link.into_inner().unwrap(), 1 << 20),
        (gzip(&vec![b'x'; 1 << 20]), 5000),
        (gzip(&archive(&[("a.yar", &large)]))[..60].to_vec(), 1 << 20),
        (archive(&[("a.yar", &large)])[..1024].to_vec(), 1 << 20),
        (b"PK\x03\x04 a zip".to_vec(), 1 << 20),
    ]
    .into_iter()
    .enumerate()
    {
        let fetched = bring(dir.path(), &format!("set{n}"), &bytes, &wanted()).unwrap();
        let to = dir.path().join(format!("to{n}"));
        let refused = unpack(&fetched, &to, most);
        assert!(refused.is_err(), "{n}");
    }
    assert!(!dir.path().join("out.yar").exists() && !Path::new("/tmp/out.yar").exists());
}

#[test]
fn a_set_is_what_it_is_said_to_be() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = RULES.as_bytes();
    let right = sha256(bytes);
    let told = |sha256: &str| Wanted { sha256: Some(sha256.to_owned()), ..wanted() };
    assert!(bring(dir.path(), "a.yar", bytes, &told(&right.to_uppercase())).is_ok());
    let other = bring(dir.path(), "a.yar", bytes, &told(&sha256(b"other")));
    assert!(matches!(other, Err(Error::Checksum { .. })));
    let beside = dir.path().join("a.yar.sha256");
    fs::write(&beside, format!("{right}  a.yar\n")).unwrap();
    assert!(bring(dir.path(), "a.yar", bytes, &wanted()).is_ok());
    fs::write(&beside, format!("{}  a.yar\n", sha256(b"x"))).unwrap();
    assert!(matches!(bring(dir.path(), "a.yar", bytes, &wanted()), Err(Error::Checksum { .. })));
    fs::write(&beside, "").unwrap();
    assert!(matches!(bring(dir.path(), "a.yar", bytes, &wanted()), Err(Error::Checksum { .. })));
    let small = Wanted { size_max: 5, ..wanted() };
    assert!(matches!(bring(dir.path(), "b.yar", bytes, &small), Err(Error::TooLarge(5))));
    assert!(matches!(
        fetch(&Origin::Url("http://127.0.0.1:1/a".into()), &wanted(), dir.path()),
        Err(Error::Unprotected)
    ));
}

#[test]
fn with_a_key_only_what_it_signed_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let signed = Wanted { public_key: Some(KEY.to_owned()), ..wanted() };
    let unsigned = bring(dir.path(), "a.yar", RULES.as_bytes(), &signed);
    assert!(matches!(unsigned, Err(Error::Unsigned(_))));
    fs::write(dir.path().join("a.yar.minisig"), SIGNATURE).unwrap();
    let fetched = bring(dir.path(), "a.yar", RULES.as_bytes(), &signed).unwrap();
    assert_eq!(fetched.signed, Some(SIGNED));
    let altered = bring(dir.path(), "a.yar", b"rule a { condition: false }\n", &signed);
    assert!(matches!(altered, Err(Error::Signature(_))));
    let comment = SIGNATURE.replace(&SIGNED.to_string(), "1999999999");
    fs::write(dir.path().join("a.yar.minisig"), comment).unwrap();
    let altered = bring(dir.path(), "a.yar", RULES.as_bytes(), &signed);
    assert!(matches!(altered, Err(Error::Signature(_))), "the comment is signed too");
}

#[test]
fn a_directory_is_vouched_for_by_its_list() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("from");
    fs::create_dir_all(from.join("more")).unwrap();
    fs::write(from.join("a.yar"), RULES).unwrap();
    fs::write(from.join("more/b.yar"), RULES).unwrap();
    let origin = Origin::Path(from.clone());
    let mut n = 0;
    let mut go = |wanted: &Wanted| {
        n += 1;
        let into = dir.path().join(n.to_string());
        fs::create_dir(&into).unwrap();
        fetch(&origin, wanted, &into)
    };
    let plain = go(&wanted()).unwrap();
    assert_eq!(fs::read_to_string(plain.path.join("more/b.yar")).unwrap(), RULES);
    let sum = sha256(RULES.as_bytes());
    let list = format!("{sum}  a.yar\n{sum}  ./more/b.yar\n");
    fs::write(from.join("SHA256SUMS"), &list).unwrap();
    assert_eq!(go(&wanted()).unwrap().sha256, plain.sha256, "the list is no part of the set");
    let signed = Wanted { public_key: Some(KEY.to_owned()), ..wanted() };
    assert!(matches!(go(&signed), Err(Error::Unsigned(_))));
    for wrong in [
        list.replace("a.yar", "c.yar"),
        list.replacen(&sum, &sha256(b"x"), 1),
        format!("{list}{sum}  gone.yar\n"),
        String::new(),
    ] {
        fs::write(from.join("SHA256SUMS"), wrong).unwrap();
        assert!(go(&wanted()).is_err());
    }
    fs::write(from.join("SHA256SUMS"), &list).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", from.join("c.yar")).unwrap();
    assert!(matches!(go(&wanted()), Err(Error::Malformed(_))));
}

#[test]
fn a_server_is_asked_for_the_set_and_what_lies_beside_it() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/rules/a.yar?v=1", listener.local_addr().unwrap());
    let server = std::thread::spawn(move || {
        let mut asked = Vec::new();
        while asked.len() < 3 {
            let (mut stream, _) = listener.accept().unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                head.push(byte[0]);
            }
            let head = String::from_utf8(head).unwrap();
            let path = head.split(' ').nth(1).unwrap().to_owned();
            let (status, body) = match &*path {
                "/rules/a.yar?v=1" => ("200 OK", RULES),
                "/rules/a.yar.minisig?v=1" => ("200 OK", SIGNATURE),
                _ => ("404 Not Found", "no"),
            };
            let len = body.len();
            let close = "Connection: close\r\n";
            write!(stream, "HTTP/1.1 {status}\r\n{close}Content-Length: {len}\r\n\r\n{body}")
                .unwrap();
            asked.push(path);
        }
        asked
    });
    let dir = tempfile::tempdir().unwrap();
    let signed = Wanted { public_key: Some(KEY.to_owned()), ..wanted() };
    let fetched = fetch(&Origin::Url(url), &signed, dir.path()).unwrap();
    assert_eq!((&*fetched.name, fetched.signed), ("a.yar", Some(SIGNED)));
    let asked = server.join().unwrap();
    assert_eq!(asked, ["/rules/a.yar?v=1", "/rules/a.yar.sha256?v=1", "/rules/a.yar.minisig?v=1"]);
}

/// One that never answers, and one that never ends, are waited for no longer than is said.
#[test]
fn a_server_that_hangs_is_left() {
    for head in ["", "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nrule"] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/a.yar", listener.local_addr().unwrap());
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(head.as_bytes()).unwrap();
            // Until the client has gone.
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest);
        });
        let dir = tempfile::tempdir().unwrap();
        let sha256 = Some(sha256(RULES.as_bytes()));
        let hasty = Wanted { patience: Duration::from_millis(500), sha256, ..wanted() };
        let started = Instant::now();
        let failed = fetch(&Origin::Url(url), &hasty, dir.path());
        assert!(matches!(failed, Err(Error::Http { .. })), "{failed:?}");
        assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
        server.join().unwrap();
    }
}

fn manifest(sha256: &str) -> Manifest {
    Manifest {
        source: "/x".into(),
        sha256: sha256.into(),
        signed: None,
        version: "v".into(),
        rules: 1,
        installed: jiff::Timestamp::now(),
        former: None,
    }
}

fn add(store: &Store, sha256: &str) -> Set {
    let files = store.staging().unwrap().join("files");
    fs::create_dir(&files).unwrap();
    fs::write(files.join("a.yar"), sha256).unwrap();
    store.add(&files, manifest(sha256)).unwrap()
}

#[test]
fn sets_lie_side_by_side_and_one_is_in_force() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    assert!(matches!(Store::open(dir.path()), Err(Error::Busy)));
    assert!(store.current().is_none() && store.former().is_none());
    let names = ["one", "two", "three", "four", "five"];
    let mut sets = Vec::new();
    for name in names {
        let set = add(&store, name);
        store.put_in_force(&set).unwrap();
        let seen = fs::read_to_string(store.current_path().join("a.yar")).unwrap();
        assert_eq!(seen, name);
        assert_eq!(store.current().as_ref(), Some(&set));
        sets.push(set);
    }
    assert_eq!(store.former(), Some(sets[3].clone()));
    store.prune(2).unwrap();
    let left = fs::read_dir(dir.path().join("sets")).unwrap().count();
    assert_eq!(left, 3, "the one in force and two former ones");
    // back, and forth again
    store.put_in_force(&sets[3]).unwrap();
    assert_eq!(fs::read_to_string(store.current_path().join("a.yar")).unwrap(), "four");
    store.prune(1).unwrap();
    assert!(store.current().is_some());
    store.refuse("five", true).unwrap();
    assert!(store.is_refused("five") && !store.is_refused("four"));
    store.refuse("five", false).unwrap();
    assert!(!store.is_refused("five"));
    drop(store);
    // What was on its way when an update was killed is swept away.
    fs::create_dir_all(dir.path().join("new/files")).unwrap();
    let store = Store::open(dir.path()).unwrap();
    assert!(!dir.path().join("new").exists() && store.current().is_some());
}

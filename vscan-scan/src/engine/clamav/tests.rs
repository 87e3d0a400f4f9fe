//! Each form of signature finds what it is for, and what has no like here is counted.

use super::*;
use crate::engine::{Engines, Signatures};
use crate::object::{Engine, Part};
use crate::sniff;

/// Loads files by name and content, and scans.
fn scan(files: &[(&str, &str)], data: &[u8]) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    let signatures =
        Signatures::load(&[dir.path().to_owned()], None).unwrap_or_else(|e| panic!("{e:?}"));
    let mut hits = Vec::new();
    let part = Part { data, kind: sniff::sniff(data), name: "x", path: &[], detail: false };
    Engines::new(&signatures).scan(&part, &mut hits).unwrap();
    hits.into_iter().map(|hit| format!("{}:{}", hit.engine.unwrap_or("?"), hit.name)).collect()
}

/// A Windows program with one section.
fn program(section: &[u8]) -> Vec<u8> {
    let mut file = vec![0; 0x200];
    file[..2].copy_from_slice(b"MZ");
    file[0x3c] = 0x80;
    file[0x80..0x84].copy_from_slice(b"PE\0\0");
    file[0x84..0x86].copy_from_slice(&0x14cu16.to_le_bytes());
    file[0x86] = 1;
    file[0x94] = 0xe0;
    file[0x98..0x9a].copy_from_slice(&0x10bu16.to_le_bytes());
    // entry point, image base, alignments, sizes
    for (at, value) in [
        (0xa8, 0x1000u32),
        (0xb4, 0x40_0000),
        (0xb8, 0x1000),
        (0xbc, 0x200),
        (0xd0, 0x2000),
        (0xd4, 0x200),
        (0xf4, 16),
    ] {
        file[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
    let header = 0x98 + 0xe0;
    file[header..header + 5].copy_from_slice(b".text");
    for (at, value) in
        [(8, section.len() as u32), (12, 0x1000), (16, section.len() as u32), (20, 0x200)]
    {
        file[header + at..header + at + 4].copy_from_slice(&value.to_le_bytes());
    }
    file.extend_from_slice(section);
    file
}

#[test]
fn body_signatures_find_what_they_are_for() {
    let section = [&b"\x55\x8b\xec entry"[..], &[0x90; 503]].concat();
    let exe = program(&section);
    for (signature, data, found) in [
        ("Plain:0:*:68656c6c6f20776f726c64", &b".. hello world .."[..], true),
        ("Offset:0:3:68656c6c6f", b".. hello", true),
        ("Offset:0:4:68656c6c6f", b".. hello", false),
        ("Range:0:0,5:68656c6c6f", b".. hello", true),
        ("End:0:EOF-5:68656c6c6f", b".. hello", true),
        ("End:0:EOF-6:68656c6c6f", b".. hello", false),
        ("Gap:0:*:68656c6c6f{2-4}776f726c64", b"hello...world", true),
        ("Gap:0:*:68656c6c6f{2-4}776f726c64", b"hello.world", false),
        ("Most:0:*:68656c6c6f{-4}776f726c64", b"helloworld", true),
        ("Star:0:*:68656c6c6f*776f726c64", b"hello, what a world", true),
        ("Nibble:0:*:6865??6c6?2077", b"hello w", true),
        ("Either:0:*:6865(6c6c|7979)6f20776f726c64", b"heyyo world", true),
        ("Not:0:*:6865!(6c)6c6f20776f726c64", b"hexlo world", true),
        ("Not:0:*:6865!(6c)6c6f20776f726c64", b"hello world", false),
        ("Target:1:*:656e747279", &exe, true),
        ("Target:6:*:656e747279", &exe, false),
        ("Entry:1:EP+0:558bec20656e747279", &exe, true),
        ("Entry:1:EP+1:558bec20656e747279", &exe, false),
        ("Section:1:S0+3:20656e747279", &exe, true),
        ("Within:1:SE0:656e747279", &exe, true),
    ] {
        let hits = scan(&[("a.ndb", signature)], data);
        let name = signature.split(':').next().unwrap();
        let expected: Vec<String> = found.then(|| format!("clamav:{name}")).into_iter().collect();
        assert_eq!(hits, expected, "{signature} in {}", data.escape_ascii());
    }
}

#[test]
fn logical_signatures_find_what_they_are_for() {
    let subs = "68656c6c6f;776f726c64;66726f6d20746865";
    for (logic, data, found) in [
        ("0&1", &b"hello world"[..], true),
        ("0&1&2", b"hello world", false),
        ("0|2", b"hello", true),
        ("(0&1)|2", b"from the", true),
        ("0>1", b"hello hello", true),
        ("0>1", b"hello", false),
        ("0=0&1", b"world", true),
        ("0=0&1", b"hello world", false),
        ("(0|1|2)>2", b"hello hello world", true),
        ("(0|1|2)>2,3", b"hello hello world", false),
        ("(0|1|2)>2,2", b"hello hello world", true),
        ("(0|1)<2", b"hello", true),
        ("(0|1)<2", b"hello world", true),
        ("0<2&1", b"hello hello hello world", true),
        ("0<2&1", b"world", true),
        ("0<2&1", b"hello", false),
    ] {
        let signature = format!("A.Name-1;Engine:51-255,Target:0;{logic};{subs}");
        let hits = scan(&[("a.ldb", &signature)], data);
        let expected: Vec<&str> = found.then_some("clamav:A.Name-1").into_iter().collect();
        assert_eq!(hits, expected, "{logic} in {}", data.escape_ascii());
    }
    let nocase = "N;Target:0;0;68656c6c6f::iw";
    assert_eq!(scan(&[("a.ldb", nocase)], b"H\0E\0l\0L\0o\0"), ["clamav:N"]);
    let placed = "P;Target:0;0&1;0:68656c6c6f;EOF-5:776f726c64";
    assert_eq!(scan(&[("a.ldb", placed)], b"hello world"), ["clamav:P"]);
    assert!(scan(&[("a.ldb", placed)], b"hello world.").is_empty());
    let sized = "S;Target:0,FileSize:1-10;0;68656c6c6f";
    assert_eq!(scan(&[("a.ldb", sized)], b"hello"), ["clamav:S"]);
    assert!(scan(&[("a.ldb", sized)], b"hello hello").is_empty());
}

#[test]
fn hashes_of_files_and_sections_are_known() {
    let section = [0xabu8; 64];
    let exe = program(&section);
    let hash = |algorithm: Algorithm, data: &[u8]| -> String {
        algorithm.hash(data).iter().map(|b| format!("{b:02x}")).collect()
    };
    let hdb = format!("{}:{}:Known.File", hash(Algorithm::Md5, &exe), exe.len());
    assert_eq!(scan(&[("a.hdb", &hdb)], &exe), ["hash:Known.File"]);
    let hsb = format!("{}:*:Known.Too:73", hash(Algorithm::Sha256, &exe));
    assert_eq!(scan(&[("a.hsb", &hsb)], &exe), ["hash:Known.Too"]);
    let mdb = format!("64:{}:Known.Section", hash(Algorithm::Md5, &section));
    assert_eq!(scan(&[("a.mdb", &mdb)], &exe), ["hash:Known.Section"]);
    assert!(scan(&[("a.mdb", &mdb)], &section).is_empty());
    let ign = "Known.Section\nKnown.File:0123";
    assert!(
        scan(
            &[("a.mdb", &mdb), ("b.hdb", &hdb), ("c.ign2", ign), ("d.ndb", "X:0:*:00112233445566")],
            &exe
        )
        .is_empty()
    );
    let fp = format!("{}:{}:ours", hash(Algorithm::Md5, &exe), exe.len());
    assert!(scan(&[("a.mdb", &mdb), ("a.fp", &fp)], &exe).is_empty());
    let allow = "name Known.* until 2999-12-31";
    assert!(scan(&[("a.mdb", &mdb), ("a.allow", allow)], &exe).is_empty());
    let over = "name Known.* until 2001-01-01";
    assert_eq!(scan(&[("a.mdb", &mdb), ("a.allow", over)], &exe), ["hash:Known.Section"]);
}

#[test]
fn what_has_no_like_here_is_counted() {
    let mut database = Database::default();
    let ndb = b"A:3:*:6162636465\nB:0:*:(B)6162636465\nC:0:*:61626364{x}\nD:0:VI:6162636465\nE:0:*:6162636465\nnonsense";
    assert_eq!(database.read("ndb", ndb).len(), 1);
    let ldb = b"F;Target:0;0;/a.c/\nG;Target:0,IconGroup1:x;0;616263646566\nH;Target:0;0&&;616263646566\nI;Target:0;0;616263646566";
    assert!(database.read("ldb", ldb).is_empty());
    assert_eq!(database.rule_count, 2);
    assert_eq!(database.skipped.values().sum::<u64>(), 7);
}

#[test]
fn databases_are_unpacked() {
    let mut tar = vec![0u8; 512];
    tar[..5].copy_from_slice(b"a.hdb");
    tar[124..135].copy_from_slice(b"00000000056");
    tar[156] = b'0';
    tar.extend_from_slice(b"5d41402abc4b2a76b9719d911017c592:5:Known.Hello");
    tar.resize(2048, 0);
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut gz, &tar).unwrap();
    let body = gz.finish().unwrap();
    let md5: String = Algorithm::Md5.hash(&body).iter().map(|b| format!("{b:02x}")).collect();
    let mut header =
        format!("ClamAV-VDB:22 Nov 2026 01-00 +0000:1:1:90:{md5}:sig:builder:1").into_bytes();
    header.resize(512, b' ');
    let database = [&header[..], &body].concat();
    let files = unpack(&database).unwrap();
    assert_eq!(files.len(), 1);
    assert_eq!((&*files[0].0, files[0].1.len()), ("a.hdb", 46));
    let mut bad = database.clone();
    let last = bad.len() - 1;
    bad[last] ^= 1;
    assert!(unpack(&bad).is_err());
    assert!(unpack(b"ClamAV-VDB:").is_err() && unpack(&vec![b'x'; 1000]).is_err());
    let uncompressed = [&header[..], &tar].concat();
    assert_eq!(unpack(&uncompressed).unwrap().len(), 1);
}

#[test]
fn the_first_term_stands_against_all_that_follow() {
    let all = ["*"; 4];
    for (expression, condition) in [
        ("0&1|2", "($_a0 and ($_a1 or $_a2))"),
        ("0|1&2", "($_a0 or ($_a1 and $_a2))"),
        ("(0&1)|2", "(($_a0 and $_a1) or $_a2)"),
        ("0|1|2&3", "($_a0 or ($_a1 or ($_a2 and $_a3)))"),
    ] {
        assert_eq!(logic(expression, &all).as_deref(), Some(condition), "{expression}");
    }
    assert_eq!(logic(&vec!["0"; TERMS_MAX + 1].join("|"), &all), None);
}

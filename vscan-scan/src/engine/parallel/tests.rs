//! Several threads find what one finds, wherever the seams are.

use crate::engine::hashes::Algorithm;
use crate::engine::{Engines, Signatures};
use crate::object::{Engine, Hit, Part};
use crate::process::crew::{Cores, Crew};
use crate::sniff::Kind;

/// Each way in which the filter looks, and rules that it does not decide.
const RULES: &str = r#"
rule long { strings: $a = "a long literal of many bytes, even more than a window" condition: $a }
rule middle { strings: $a = "midl-9x" condition: $a }
rule short { strings: $a = "q~#4" condition: $a }
rule in_any_case { strings: $a = "WhateverCase" nocase condition: $a }
rule in_wide { strings: $a = "wide text" wide condition: $a }
rule in_xor { strings: $a = "under an unknown key" xor condition: $a }
rule shape { strings: $a = { 81 ?? 74 63 [2-20] 80 ?? 02 73 } condition: $a }
rule shape_gap { strings: $a = { F7 4D [1-80] 3C [4-8] 50 45 } condition: $a }
rule far { strings: $a = "first of two" $b = "second of two" condition: @b[1] > @a[1] + 64 }
rule offset { strings: $a = "at its place" condition: $a at 100 }
rule count { strings: $a = "counted" condition: #a == 3 }
rule always { condition: filesize == 300 }
rule not_there { strings: $a = "nobody has it" condition: none of them and filesize == 301 }
"#;

/// What is found by the rule of that name, and by no other one.
fn samples() -> Vec<(&'static str, Vec<u8>)> {
    let wide: Vec<u8> = b"wide text".iter().flat_map(|&b| [b, 0]).collect();
    let shape = [&b"\x81\x11tc"[..], &[7; 20], b"\x80\x05\x02s"].concat();
    let gap = [&b"\xf7M"[..], &[7; 80], b"<", &[7; 8], b"PE"].concat();
    vec![
        ("long", b"a long literal of many bytes, even more than a window".to_vec()),
        ("middle", b"midl-9x".to_vec()),
        ("short", b"q~#4".to_vec()),
        ("in_any_case", b"wHATEVERcASE".to_vec()),
        ("in_wide", wide),
        ("in_xor", b"under an unknown key".iter().map(|b| b ^ 0x5b).collect()),
        ("shape", shape),
        ("shape_gap", gap),
        ("far", [&b"first of two"[..], &[b'.'; 70], b"second of two"].concat()),
        ("count", b"counted counted counted".to_vec()),
    ]
}

fn signatures(lists: &[(&str, &str)]) -> Signatures {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a.yar"), RULES).unwrap();
    for (name, text) in lists {
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    Signatures::load(&[dir.path().to_owned()], None).unwrap_or_else(|e| panic!("{}", e[0]))
}

fn helped(loaded: &Signatures, range: usize) -> Engines<'_> {
    let crew = Crew::start(3, Cores::alone(4)).unwrap();
    Engines::new(loaded).helped_from(crew, 1, range)
}

fn scan(engines: &mut Engines<'_>, data: &[u8]) -> Vec<Hit> {
    let mut hits = Vec::new();
    let part = Part { data, kind: Kind::Data, name: "x", path: &[], detail: true };
    engines.scan(&part, &mut hits).unwrap();
    hits
}

#[test]
fn what_lies_across_a_seam_is_found_at_every_offset() {
    let loaded = signatures(&[]);
    let mut alone = Engines::new(&loaded);
    for range in [4, 64] {
        let mut together = helped(&loaded, range);
        for (rule, sample) in samples() {
            for at in 0..140 {
                let data = [&vec![b'.'; at][..], &sample, b"..."].concat();
                let found = scan(&mut together, &data);
                let names: Vec<&str> = found.iter().map(|hit| &*hit.name).collect();
                assert_eq!(names, [rule], "at {at}, seams at {range}");
                assert_eq!(found, scan(&mut alone, &data));
            }
        }
    }
}

#[test]
fn order_and_details_are_those_of_one_thread() {
    let loaded = signatures(&[]);
    let (mut alone, mut together) = (Engines::new(&loaded), helped(&loaded, 64));
    let mut data = Vec::new();
    for (_, sample) in samples().into_iter().rev() {
        data.extend_from_slice(&[b'.'; 50]);
        data.extend_from_slice(&sample);
    }
    data[100..112].copy_from_slice(b"at its place");
    let expected = scan(&mut alone, &data);
    assert!(expected.len() > 8, "{expected:?}");
    assert!(expected.iter().all(|hit| hit.detail.as_ref().is_some_and(|d| d.offset.is_some())));
    for _ in 0..200 {
        assert_eq!(scan(&mut together, &data), expected);
    }
    for len in [300, 301] {
        let data = vec![b'.'; len];
        assert_eq!(scan(&mut together, &data).len(), 1);
        assert_eq!(scan(&mut together, &data), scan(&mut alone, &data));
    }
}

#[test]
fn hash_lists_are_asked_as_ever_and_before_the_rules() {
    // Three algorithms of one file, and a size that none has.
    let data = [&b"q~#4"[..], &[b'.'; 1000]].concat();
    let hex = |hash: Vec<u8>| hash.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let md5 = hex(Algorithm::Md5.hash(&data));
    let sha1 = hex(Algorithm::Sha1.hash(&data));
    let other = hex(Algorithm::Sha256.hash(&data[1..]));
    for (text, names) in [
        (format!("{md5}:1004:by.md5\n{other}:1004:other\n"), &["by.md5", "short"][..]),
        (format!("{sha1}:*:by.sha1\n{md5}:1003:wrong.size\n"), &["by.sha1", "short"]),
        (format!("{other}:1003:other\n"), &["short"]),
    ] {
        let loaded = signatures(&[("a.hashes", &text)]);
        let found = scan(&mut helped(&loaded, 64), &data);
        assert_eq!(found, scan(&mut Engines::new(&loaded), &data));
        assert_eq!(found.iter().map(|hit| &*hit.name).collect::<Vec<_>>(), names);
    }
}

#[test]
fn parts_that_are_not_large_and_crews_of_nobody_are_no_matter() {
    let loaded = signatures(&[]);
    let crew = Crew::start(0, Cores::alone(1)).unwrap();
    let mut alone = Engines::new(&loaded).helped_by(crew);
    let data = vec![b'.'; super::LARGE + 17];
    assert!(scan(&mut alone, &data).is_empty());
    let crew = Crew::start(2, Cores::alone(3)).unwrap();
    let mut together = Engines::new(&loaded).helped_by(crew);
    for len in [0, 1, super::LARGE - 1, super::LARGE, super::LARGE + super::RANGE + 3] {
        let mut data = vec![b'.'; len];
        assert!(scan(&mut together, &data).is_empty(), "{len}");
        data.extend_from_slice(b"q~#4");
        assert_eq!(scan(&mut together, &data).len(), 1, "{len}");
    }
}

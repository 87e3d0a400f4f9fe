//! ClamAV's signatures as rules of our own: what clamscan finds with a database, `vscan scan` finds with it too.

use anyhow::{Context, Result, ensure};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use vscan_tests::agent;
use vscan_tests::host::Host;
use vscan_tests::lab::{Lab, Topology};

/// What the body signatures look for.
const A: &str = "4142434445464748494a";
const B: &str = "51574552545955494f50";

/// Body signatures: target, offset, body.
const BODIES: &[&str] = &[
    "0:*:{A}",
    "0:100:{A}",
    "0:101:{A}",
    "0:0:{A}",
    "0:EOF-10:{A}",
    "0:EOF-60:{A}",
    "0:90,20:{A}",
    "0:90,5:{A}",
    "0:EOF-70,20:{A}",
    "0:*:{A}*{B}",
    "0:*:{B}*{A}",
    "0:*:{A}{6}{B}",
    "0:*:{A}{5}{B}",
    "0:*:{A}{-10}{B}",
    "0:*:{A}{3-}{B}",
    "0:*:{A}{7-9}{B}",
    "0:*:{A}{5-7}{B}",
    "0:*:4142??4445464748494a",
    "0:*:41?1434445464748494a",
    "0:*:413?434445464748494a",
    "0:*:41(42|31)434445464748494a",
    "0:*:41!(42)434445464748494a",
    "0:*:(4142|5152)434445464748494a",
    "0:*:(414243|5157)444546474849",
    "6:*:{A}",
    "4:*:{A}",
    "10:*:{A}",
];

/// Logical signatures: target, expression, subsignatures.
const LOGIC: &[&str] = &[
    "Engine:51-255,Target:0;0&1;{A};{B}",
    "Engine:51-255,Target:0;0|1;{A};{B}",
    "Engine:51-255,Target:0;0=3;{A}",
    "Engine:51-255,Target:0;0=1;{A}",
    "Engine:51-255,Target:0;0>1;{A}",
    "Engine:51-255,Target:0;0=0&1;{B};{A}",
    "Engine:51-255,Target:0;(0|1)>1,2;{A};{B}",
    "Engine:51-255,Target:0;(0|1)>2,1;{A};{B}",
    "Engine:51-255,Target:0;(0|1)=2;{A};{B}",
    "Engine:51-255,Target:0;0<2;{A}",
    "Engine:51-255,Target:0;0<2&1;{A};2e2e",
    "Engine:51-255,Target:0;1&0<1;{A};2e2e",
    "Engine:51-255,Target:0;(0|1)<2;{A};{B}",
    "Engine:51-255,Target:0;(0|1)<3&2;{A};{B};2e2e",
    "Engine:51-255,Target:0;0|1&2;{A};{B};ffeeffeeffee",
    "Engine:51-255,Target:0;2&0|1;{A};{B};ffeeffeeffee",
    "Engine:51-255,Target:0;((0&1)|(2&0));{A};{B};2e2e2e2e2e",
    "Engine:51-255,Target:0;0;{A}::w",
    "Engine:51-255,Target:0;0;{A}::wa",
    "Engine:51-255,Target:0;0;6162636465666768696a::wi",
    "Engine:51-255,Target:0;0;{A}::f",
    "Engine:51-255,Target:0;0&1;0:{A};*:2e2e2e",
    "Engine:51-255,Target:0;0;100:{A}",
    "Engine:81-255,Target:0,FileSize:100-200;0;{A}",
];

fn files(dir: &Path) -> Result<()> {
    let (a, b) = ("ABCDEFGHIJ", "QWERTYUIOP");
    let dots = |n: usize| ".".repeat(n);
    let wide: Vec<u8> = a.bytes().flat_map(|byte| [byte, 0]).collect();
    for (name, content) in [
        ("middle", format!("{}{a}{}", dots(100), dots(50)).into_bytes()),
        ("end", format!("{}{a}", dots(100)).into_bytes()),
        ("start", format!("{a}{}", dots(100)).into_bytes()),
        ("both", format!("..xx{a}yy....{b}..").into_bytes()),
        ("reversed", format!("..{b}....{a}..").into_bytes()),
        ("lower", b"....abcdefghij....".to_vec()),
        ("thrice", format!("{a}.{a}.{a}").into_bytes()),
        ("nibble", b"....A1CDEFGHIJ....".to_vec()),
        ("word", format!("say {a} now").into_bytes()),
        ("inword", format!("say{a}now").into_bytes()),
        ("wide", [b"....", &wide[..], b"...."].concat()),
        ("mail", format!("From: a@b\r\nTo: c@d\r\nSubject: x\r\n\r\n{a} {b}\r\n").into_bytes()),
        ("pdf", format!("%PDF-1.4\n{a}\n%%EOF\n").into_bytes()),
        ("known", b"hello world, this is a file of some size\n".to_vec()),
        ("allowed", format!("{a} which is let pass").into_bytes()),
        ("longer", format!("{a} which is let pass too, by another hash").into_bytes()),
        ("program", program(&[0xab; 512])),
        ("other", program(&[0xcd; 512])),
    ] {
        fs::write(dir.join(name), content)?;
    }
    Ok(())
}

/// A Windows program with one section.
fn program(section: &[u8]) -> Vec<u8> {
    let mut file = vec![0; 0x200];
    file[..2].copy_from_slice(b"MZ");
    file[0x80..0x84].copy_from_slice(b"PE\0\0");
    file[0x84..0x86].copy_from_slice(&0x14cu16.to_le_bytes());
    for (at, byte) in [(0x3c, 0x80), (0x86, 1), (0x94, 0xe0), (0x96, 2), (0x97, 1)] {
        file[at] = byte;
    }
    file[0x98..0x9a].copy_from_slice(&0x10bu16.to_le_bytes());
    // Sizes of code, entry point, image base, alignments, sizes, number of directories.
    for (at, value) in [
        (0x9c, section.len() as u32),
        (0xa8, 0x1000),
        (0xb4, 0x40_0000),
        (0xb8, 0x1000),
        (0xbc, 0x200),
        (0xd0, 0x2000),
        (0xd4, 0x200),
        (0xf4, 16),
    ] {
        file[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
    // The version of the system that it wants, and the subsystem.
    file[0xc8] = 4;
    file[0xdc] = 3;
    let header = 0x98 + 0xe0;
    file[header..header + 5].copy_from_slice(b".text");
    let len = section.len() as u32;
    for (at, value) in [(8, len), (12, 0x1000), (16, len), (20, 0x200), (36, 0x6000_0020)] {
        file[header + at..header + at + 4].copy_from_slice(&value.to_le_bytes());
    }
    file.extend_from_slice(section);
    file
}

/// By the file's name, the detections.
type Found = BTreeMap<String, BTreeSet<String>>;

#[test]
fn what_clamscan_finds_is_found() -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let host = &lab.gateway;
    let dir = host.dir().join("files");
    fs::create_dir_all(&dir)?;
    files(&dir)?;
    let numbered = |lines: &[&str], kind: &str, colon: char| -> String {
        let filled = |text: &str| text.replace("{A}", A).replace("{B}", B);
        (0..).zip(lines).map(|(n, line)| format!("T.{kind}{n}{colon}{}\n", filled(line))).collect()
    };
    let sum = |program: &str, file: &str| -> Result<String> {
        let path = dir.join(file);
        let output = host.run([program, &path.to_string_lossy()])?;
        Ok(output.out.split(' ').next().context("no sum")?.to_owned())
    };
    let size = fs::metadata(dir.join("known"))?.len();
    let length = fs::metadata(dir.join("allowed"))?.len();
    let (md5, sha1, sha256) =
        (sum("md5sum", "known")?, sum("sha1sum", "known")?, sum("sha256sum", "known")?);
    let lists =
        format!("{md5}:{size}:T.md5\n{md5}:{}:T.other\n{md5}:{size}:T.left.out\n", size + 1);
    let longer = format!("{sha1}:{size}:T.sha1\n{sha256}:*:T.sha256:73\n");
    let allowed = format!("{}:{length}:ours\n", sum("md5sum", "allowed")?);
    let sections = dir.with_file_name("sections");
    fs::create_dir_all(&sections)?;
    for (name, byte) in [("ab", 0xab), ("cd", 0xcd)] {
        fs::write(sections.join(name), [byte; 512])?;
    }
    let of_section = |program: &str, name: &str| sum(program, &format!("../sections/{name}"));
    let mdb = format!(
        "512:{}:T.mdb\n511:{}:T.mdb.size\n512:{}:T.left.out\n",
        of_section("md5sum", "ab")?,
        of_section("md5sum", "ab")?,
        of_section("md5sum", "cd")?
    );
    let msb = format!(
        "512:{}:T.msb.sha1\n*:{}:T.msb.sha256:73\n",
        of_section("sha1sum", "cd")?,
        of_section("sha256sum", "ab")?
    );
    let sfp = format!(
        "{}:{}:ours\n",
        sum("sha256sum", "longer")?,
        fs::metadata(dir.join("longer"))?.len()
    );
    // By themselves: a report has room for 32 findings.
    for (kind, databases) in [
        ("bodies", vec![("t.ndb", numbered(BODIES, "body", ':'))]),
        ("logic", vec![("t.ldb", numbered(LOGIC, "logic", ';'))]),
        ("hashes", vec![("t.hdb", lists), ("t.hsb", longer)]),
        ("sections", vec![("t.mdb", mdb), ("t.msb", msb)]),
    ] {
        let database = host.dir().join(kind);
        fs::create_dir_all(&database)?;
        for (name, text) in databases {
            fs::write(database.join(name), text)?;
        }
        fs::write(database.join("t.ign2"), "T.left.out\nT.body3\n")?;
        fs::write(database.join("t.fp"), &allowed)?;
        fs::write(database.join("t.sfp"), &sfp)?;
        let theirs = clamscan(host, &database, &dir)?;
        let ours = scan(host, &database, &dir)?;
        ensure!(!theirs.is_empty(), "clamscan finds nothing with {kind}");
        let mut missed = Vec::new();
        for (file, names) in &theirs {
            let own = ours.get(file).cloned().unwrap_or_default();
            // Of hashes one is enough: lists are asked for the file, not for all that they call it.
            if !matches!(kind, "hashes" | "sections") || own.is_disjoint(names) {
                missed.extend(names.difference(&own).map(|name| format!("{name} in {file}")));
            }
        }
        ensure!(missed.is_empty(), "not found: {missed:?}");
        let more: Vec<String> = ours
            .iter()
            .flat_map(|(file, own)| {
                let names = theirs.get(file).cloned().unwrap_or_default();
                own.difference(&names).map(|name| format!("{name} in {file}")).collect::<Vec<_>>()
            })
            .collect();
        ensure!(more.is_empty(), "found, where clamscan finds nothing: {more:?}");
    }
    Ok(())
}

fn clamscan(host: &Host, database: &Path, files: &Path) -> Result<Found> {
    let [db, files] = [database, files].map(|path| path.to_string_lossy().into_owned());
    let output = host.run(["clamscan", "--no-summary", "--allmatch", "-d", &db, &files])?;
    ensure!(!output.err.contains("Error"), "{output:?}");
    let mut found = Found::new();
    for line in output.out.lines() {
        let told = line.strip_suffix(" FOUND").and_then(|found| found.rsplit_once(": "));
        let Some((path, name)) = told else { continue };
        let file = path.rsplit('/').next().unwrap_or_default().to_owned();
        found.entry(file).or_default().insert(name.trim_end_matches(".UNOFFICIAL").to_owned());
    }
    Ok(found)
}

fn scan(host: &Host, rules: &Path, files: &Path) -> Result<Found> {
    let [rules, files] = [rules, files].map(|path| path.to_string_lossy().into_owned());
    let vscan = agent::program("vscan")?.to_string_lossy().into_owned();
    let output =
        host.run([&*vscan, "-c", "/nonexistent", "scan", "-o", "json", "--rules", &rules, &files])?;
    let mut found = Found::new();
    for scanned in agent::json(&output.out)?.as_array().context("no array")? {
        let file =
            scanned["path"].as_str().and_then(|path| path.rsplit('/').next()).unwrap_or_default();
        for finding in scanned["findings"].as_array().into_iter().flatten() {
            let name = finding["name"].as_str().unwrap_or_default().to_owned();
            found.entry(file.to_owned()).or_default().insert(name);
        }
    }
    Ok(found)
}

//! What is small and wants to be large, deep, many or long: every limit ends it with its own reason, soon.

#![expect(clippy::unwrap_used, reason = "a test outside of #[test] functions")]

#[cfg(feature = "engine")]
#[expect(dead_code, reason = "shared with the tests of the process, which use it")]
mod common;
mod mark;
#[path = "fixtures/pack.rs"]
mod pack;
#[path = "fixtures/sevenz.rs"]
mod sevenz;

use flate2::Compression;
use flate2::write::{GzEncoder, ZlibEncoder};
use mark::{MARK, Mark, fixture};
use pack::{crc32, deflate, gzip};
use std::io::Write;
use std::time::{Duration, Instant};
use vscan_scan::limits::Limits;
use vscan_scan::object::{Object, scan};
use vscan_scan::report::{Reason, Report, Verdict};
use vscan_scan::wire::ObjectKind;

/// Longer than any of these takes on a slow machine, and far shorter than the limit of time.
const SOON: Duration = Duration::from_secs(20);

#[track_caller]
fn ends(data: &[u8], reason: Reason) -> Report {
    let started = Instant::now();
    let deadline = started + Duration::from_secs(60);
    let object = Object::new(ObjectKind::File, data, deadline);
    let report = scan(&mut Mark, &Limits::default(), &object);
    assert!(report.verdict >= Verdict::Unscannable, "{report:?}");
    assert!(report.unread.iter().any(|u| u.reason == reason), "{reason:?} {:?}", report.unread);
    assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
    #[cfg(feature = "engine")]
    for memory in [Limits::default().memory, 128 << 20] {
        within(data, reason, memory);
    }
    report
}

/// The same in a worker with so much memory: it ends as soon, takes no more than that, and what it cannot read for want of
/// memory is not clean either.
#[cfg(feature = "engine")]
#[track_caller]
fn within(data: &[u8], reason: Reason, memory: u64) {
    let limits = format!("{{\"memory\": {memory}}}");
    let mut scanner = common::Scanner::start(&[common::rules()], 1, &limits);
    let mut worker = scanner.worker();
    let before = peak(worker.pid);
    let started = Instant::now();
    worker.send(ObjectKind::File, "bomb", data, false);
    let answer = worker.answer();
    assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
    match answer {
        Some(report) => {
            let took = peak(worker.pid) - before;
            // The object itself is the gateway's memory, which the worker maps.
            let most = memory + data.len() as u64;
            assert!(took <= most, "{took} bytes of {most}, {} in parts", report.bytes);
            let told = |reason| report.unread.iter().any(|u| u.reason == reason);
            assert!(report.verdict == Verdict::Unscannable, "{report:?}");
            assert!(told(reason) || told(Reason::Memory), "{reason:?}: {:?}", report.unread);
            if memory == Limits::default().memory {
                assert!(told(reason), "{reason:?}: {:?}", report.unread);
            }
        }
        // An allocation that cannot fail was refused: the gateway calls that an error.
        None => {
            assert!(memory < Limits::default().memory, "it died with all the memory it may have");
            assert!(scanner.exited().2.contains("over the memory limit"));
        }
    }
}

/// The most that a process had in memory so far, in bytes.
#[cfg(feature = "engine")]
fn peak(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// A local header of a deflated member, whose sizes are `packed` and unknown.
fn local(name: &str, packed: u32) -> Vec<u8> {
    let mut out = b"PK\x03\x04\x14\0\0\0\x08\0\0\0\0\0\0\0\0\0".to_vec();
    out.extend(packed.to_le_bytes());
    out.extend([0; 4]);
    out.extend((name.len() as u16).to_le_bytes());
    out.extend([0, 0]);
    out.extend(name.as_bytes());
    out
}

/// An entry of the directory for it.
fn central(name: &str, packed: u32, at: u32) -> Vec<u8> {
    let mut out = b"PK\x01\x02\x14\0\x14\0\0\0\x08\0\0\0\0\0\0\0\0\0".to_vec();
    out.extend(packed.to_le_bytes());
    out.extend([0; 4]);
    out.extend((name.len() as u16).to_le_bytes());
    out.extend([0; 12]);
    out.extend(at.to_le_bytes());
    out.extend(name.as_bytes());
    out
}

fn end(directory: &[u8], at: usize) -> Vec<u8> {
    let mut out = b"PK\x05\x06\0\0\0\0\0\0\0\0".to_vec();
    out.extend((directory.len() as u32).to_le_bytes());
    out.extend((at as u32).to_le_bytes());
    out.extend([0, 0]);
    out
}

/// A zip archive of deflated members.
fn zip(members: &[(String, Vec<u8>)]) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for (name, packed) in members {
        directory.extend(central(name, packed.len() as u32, out.len() as u32));
        out.extend(local(name, packed.len() as u32));
        out.extend(packed);
    }
    let at = out.len();
    out.extend(&directory);
    out.extend(end(&directory, at));
    out
}

/// The like of 42.zip: sixteen archives in each of sixteen, five deep, with much of nothing at the bottom.
#[test]
fn nested_archives_of_zeros_end() {
    let mut bomb = zip(&[("0.dll".into(), deflate(&vec![0; 64 << 20]))]);
    for level in 0..5 {
        let packed = deflate(&bomb);
        let members: Vec<_> =
            (0..16).map(|i| (format!("{level}-{i}.zip"), packed.clone())).collect();
        bomb = zip(&members);
    }
    ends(&bomb, Reason::Ratio);
}

/// Members that share one kernel, and quote each other's headers so that none seems to overlap (David Fifield, A better
/// zip bomb, 2019).
#[test]
fn overlapping_members_end() {
    let kernel = deflate(&vec![0; 4 << 20]);
    let count = 500;
    // From the last member to the first: each has a stored block with the next one's header in front.
    let mut body = kernel;
    let mut starts = Vec::new();
    for i in (0..count).rev() {
        let name = format!("{i:04}");
        let header = local(&name, body.len() as u32);
        starts.push((name, body.len(), body.len() + header.len()));
        body = [header, body].concat();
        if i > 0 {
            let len = 30 + 4u16;
            let stored = [&[0][..], &len.to_le_bytes(), &(!len).to_le_bytes()].concat();
            body = [stored, body].concat();
        }
    }
    let whole = body.len();
    let mut directory = Vec::new();
    for (name, packed, from_end) in &starts {
        let at = whole - from_end;
        directory.extend(central(name, *packed as u32, at as u32));
    }
    let mut bomb = body;
    bomb.extend(&directory);
    bomb.extend(end(&directory, whole));
    let report = ends(&bomb, Reason::Ratio);
    assert!(report.bytes < 200 << 20, "{}", report.bytes);
}

/// Bytes of one step of the quine's program, whatever it does.
const STEP: usize = 15;

/// A step that gives the `n` bytes behind it.
fn literal(n: usize) -> Vec<u8> {
    let mut out = [0, 0, 0, 0xff, 0xff].repeat(2);
    out.push(0);
    out.extend((n as u16).to_le_bytes());
    out.extend((!(n as u16)).to_le_bytes());
    out
}

/// A step that repeats the last `n` bytes, at most 258: a block of fixed codes, padded with empty ones.
fn repeat(n: usize) -> Vec<u8> {
    let mut bits = Vec::new();
    let mut put = |value: usize, count: usize, high_first: bool| {
        for i in 0..count {
            bits.push(value >> if high_first { count - 1 - i } else { i } & 1);
        }
    };
    // Length and distance with their extra bits (RFC 1951, 3.2.5).
    let (len, len_extra, len_bits) = long(n, 265, 11, 4, 1);
    let (distance, distance_extra, distance_bits) = long(n, 4, 5, 2, 1);
    put(0b010, 3, false);
    if len < 280 {
        put(len - 256, 7, true)
    } else {
        put(len - 280 + 0b1100_0000, 8, true)
    };
    put(len_extra, len_bits, false);
    put(distance, 5, true);
    put(distance_extra, distance_bits, false);
    put(0, 7, true);
    // An empty block of fixed codes as a filler, then two empty stored blocks, which end at a byte.
    while bits.len() + 3 <= 40 {
        bits.extend([0, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
    }
    bits.extend([0; 3]);
    assert!((41..=48).contains(&bits.len()), "{}", bits.len());
    bits.resize(48, 0);
    let mut out: Vec<u8> = bits
        .chunks(8)
        .map(|b| b.iter().enumerate().map(|(i, &bit)| (bit as u8) << i).sum())
        .collect();
    out.extend([0, 0, 0xff, 0xff, 0, 0, 0, 0xff, 0xff]);
    out
}

/// The code of a number whose codes have extra bits, `per` codes for each count of them.
fn long(n: usize, first: usize, base: usize, per: usize, bits: usize) -> (usize, usize, usize) {
    let (mut code, mut from, mut extra) = (first, base, bits);
    loop {
        for _ in 0..per {
            if n < from + (1 << extra) {
                return (code, n - from, extra);
            }
            (code, from) = (code + 1, from + (1 << extra));
        }
        extra += 1;
    }
}

/// A zip archive whose only member is the archive itself, byte by byte (Russ Cox, Zip files all the way down, 2010).
fn quine() -> Vec<u8> {
    // What follows the program: the end of deflate, the directory, its end. Sizes are known beforehand.
    let suffix_len = 5 + 47 + 22;
    let prefix_len = 31;
    let (p, s) = (prefix_len + STEP, suffix_len + STEP);
    let assemble = |packed: u32| {
        let prefix = local("r", packed);
        let at = prefix.len() + packed as usize;
        let directory = central("r", packed, 0);
        let suffix = [&[1, 0, 0, 0xff, 0xff][..], &directory, &end(&directory, at)].concat();
        assert_eq!((prefix.len(), suffix.len()), (prefix_len, suffix_len));
        let (l4, r4) = (literal(4 * STEP), repeat(4 * STEP));
        let pieces = [
            prefix.clone(),
            literal(p),
            prefix,
            literal(p),
            repeat(p),
            literal(STEP),
            repeat(p),
            literal(STEP),
            literal(STEP),
            l4.clone(),
            [repeat(p), literal(STEP), literal(STEP), l4.clone()].concat(),
            r4.clone(),
            l4.clone(),
            [r4.clone(), l4.clone(), r4.clone(), l4.clone()].concat(),
            r4,
            l4,
            // Here as much was given out as was read; a step that repeats itself leads on.
            [literal(0), repeat(3 * STEP), literal(0), literal(s)].concat(),
            [repeat(3 * STEP), literal(0), literal(s)].concat(),
            [repeat(s), suffix.clone()].concat(),
            repeat(s),
            suffix,
        ];
        pieces.concat()
    };
    let whole = assemble(0).len();
    // From behind the local header to before the directory.
    assemble((whole - prefix_len - 47 - 22) as u32)
}

#[test]
fn an_archive_that_holds_itself_ends() {
    let quine = quine();
    let mut inner = Vec::new();
    std::io::Read::read_to_end(&mut flate2::read::DeflateDecoder::new(&quine[31..]), &mut inner)
        .unwrap();
    assert_eq!(inner, quine, "no quine");
    let report = ends(&quine, Reason::Depth);
    assert!(report.parts > 30, "{}", report.parts);
}

#[test]
fn nothing_but_zeros_ends() {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    for _ in 0..450 {
        encoder.write_all(&vec![0; 1 << 20]).unwrap();
    }
    let report = ends(&encoder.finish().unwrap(), Reason::Ratio);
    // The ratio is 250, and the file has half a megabyte.
    assert!(report.bytes < 130 << 20, "{}", report.bytes);
}

#[test]
fn a_hundred_thousand_members_end() {
    let members: Vec<_> = (0..100_000).map(|i| (format!("{i}"), deflate(b"x"))).collect();
    let report = ends(&zip(&members), Reason::Members);
    assert_eq!(report.parts, Limits::default().members);
    let empty = gzip(b"");
    // Streams of nothing are one part; all of them are read, and it ends.
    let started = Instant::now();
    let object = empty.repeat(100_000);
    let object = Object::new(ObjectKind::File, &object, started + Duration::from_secs(60));
    assert_eq!(scan(&mut Mark, &Limits::default(), &object).verdict, Verdict::Clean);
    assert!(started.elapsed() < SOON);
}

#[test]
fn dictionaries_that_nobody_needs_are_refused() {
    // xz: the property of LZMA2 in the block header, whose checksum is made anew.
    let mut xz = lzma_rust2::XzWriter::new(Vec::new(), lzma_rust2::XzOptions::default()).unwrap();
    xz.write_all(MARK).unwrap();
    let mut xz = xz.finish().unwrap();
    let len = (usize::from(xz[12]) + 1) * 4;
    let property = 12 + xz[12..12 + len].windows(2).position(|w| w == [0x21, 1]).unwrap() + 2;
    xz[property] = 40;
    let crc = crc32(&xz[12..12 + len - 4]);
    xz[12 + len - 4..12 + len].copy_from_slice(&crc.to_le_bytes());
    ends(&xz, Reason::Memory);

    let mut lzma = b"\x5d\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\0".to_vec();
    lzma.extend([7; 100]);
    ends(&lzma, Reason::Memory);

    let mut lzip = b"LZIP\x01\x1d".to_vec();
    lzip.extend([0; 100]);
    ends(&lzip, Reason::Memory);

    // zstd: a frame with a window of 2 GiB.
    ends(b"\x28\xb5\x2f\xfd\x00\xa8\x01\0\0", Reason::Memory);

    // 7z: the dictionary in the header, whose checksums are made anew.
    let mut archive = fixture("plain-header.7z");
    let property = archive.windows(5).rposition(|w| w == [3, 1, 1, 5, 0x5d]).unwrap() + 5;
    archive[property..property + 4].copy_from_slice(&0xc000_0000u32.to_le_bytes());
    sevenz::seal(&mut archive);
    ends(&archive, Reason::Memory);

    // zip: the memory of PPMd, and the dictionary of LZMA.
    let mut ppmd = fixture("PPMd.zip");
    let body = 30 + usize::from(ppmd[26]) + usize::from(ppmd[28]);
    ppmd[body..body + 2].copy_from_slice(&0x0ff5u16.to_le_bytes());
    ends(&ppmd, Reason::Memory);
    let mut lzma = fixture("LZMA.zip");
    let property = lzma.windows(3).position(|w| w == [5, 0, 0x5d]).unwrap() + 3;
    lzma[property..property + 4].copy_from_slice(&0xc000_0000u32.to_le_bytes());
    ends(&lzma, Reason::Memory);
}

#[test]
fn filters_of_a_pdf_upon_each_other_end() {
    let zlib = |data: &[u8]| {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    };
    let packed = zlib(&zlib(&vec![0; 200 << 20]));
    let mut pdf =
        b"%PDF-1.4\n1 0 obj\n<< /Filter [ /FlateDecode /FlateDecode ] >>\nstream\n".to_vec();
    pdf.extend(&packed);
    pdf.extend(b"\nendstream\nendobj\n");
    ends(&pdf, Reason::Ratio);
}

#[test]
fn a_sparse_file_of_holes_ends() {
    let mut tar = fixture("sparse-gnu.tar");
    // Where its last piece lies, and its real size: a gigabyte further.
    let size = format!("{:011o}\0", 1u64 << 30);
    tar[483..495].copy_from_slice(size.as_bytes());
    let entry = (0..4).rev().map(|i| 386 + i * 24).find(|&at| tar[at] != 0).unwrap();
    tar[entry..entry + 12].copy_from_slice(format!("{:011o}\0", (1u64 << 30) - 512).as_bytes());
    tar[148..156].fill(b' ');
    let sum: u32 = tar[..512].iter().map(|&b| u32::from(b)).sum();
    tar[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    ends(&tar, Reason::Ratio);
}

/// What was scanned before a limit counts: infected wins.
#[test]
fn a_mark_before_the_bomb_is_found() {
    let members = [("mark".into(), deflate(MARK)), ("bomb".into(), deflate(&vec![0; 64 << 20]))];
    let data = zip(&members);
    let object = Object::new(ObjectKind::File, &data, Instant::now() + Duration::from_secs(60));
    let report = scan(&mut Mark, &Limits::default(), &object);
    assert_eq!(report.verdict, Verdict::Infected);
    assert_eq!(report.unread[0].reason, Reason::Ratio, "{report:?}");
}

/// Directories that lead to themselves, and chains of sectors that go round.
#[test]
fn circles_end() {
    let mut image = Vec::new();
    let packed = fixture("plain.iso.xz");
    std::io::Read::read_to_end(&mut lzma_rust2::XzReader::new(&packed[..], true), &mut image)
        .unwrap();
    // The subdirectory's record, by its name: its place becomes the root's.
    let name = image.windows(8).rposition(|w| w == b"DIRECTOR").unwrap();
    let root = image[16 * 2048 + 156 + 2..][..4].to_vec();
    image[name - 33 + 2..][..4].copy_from_slice(&root);
    let object = Object::new(ObjectKind::File, &image, Instant::now() + Duration::from_secs(60));
    let report = scan(&mut Mark, &Limits::default(), &object);
    assert!(report.parts < 10, "{report:?}");

    let mut ole = std::fs::read("/usr/share/clamav-testfiles/clam.ppt").unwrap();
    // Every sector of the table follows itself.
    let table = u32::from_le_bytes(ole[76..80].try_into().unwrap()) as usize;
    for (i, next) in ole[512 + table * 512..][..512].chunks_mut(4).enumerate() {
        next.copy_from_slice(&(i as u32).to_le_bytes());
    }
    let started = Instant::now();
    let object = Object::new(ObjectKind::File, &ole, started + Duration::from_secs(60));
    scan(&mut Mark, &Limits::default(), &object);
    assert!(started.elapsed() < SOON);
}

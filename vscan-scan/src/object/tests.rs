//! Archives and limits, with an engine that knows one mark.

use super::*;
use crate::limits::Limits;
use flate2::Compression;
use flate2::write::{DeflateEncoder, GzEncoder};
use std::io::Write;
use std::time::Duration;

/// Detects [`MARK`] where the rule for the EICAR file does: at the very beginning.
pub(crate) struct Marks;

pub(crate) const MARK: &[u8] =
    b"the-mark-of-the-tests-which-is-68-bytes-long-like-the-real-test-file";

impl Engine for Marks {
    fn name(&self) -> &'static str {
        "marks"
    }

    fn scan(&mut self, part: &Part<'_>, hits: &mut Vec<Hit>) -> Result<(), String> {
        let head = &part.data[..part.data.len().min(MARK.len() + 8)];
        if memchr::memmem::find(head, MARK).is_some() {
            hits.push("Mark".into());
        }
        Ok(())
    }
}

pub(crate) fn scan_with(limits: &Limits, kind: ObjectKind, data: &[u8]) -> Report {
    let deadline = Instant::now() + Duration::from_secs(60);
    scan(&mut Marks, limits, &Object::new(kind, data, deadline))
}

pub(crate) fn file(data: &[u8]) -> Report {
    scan_with(&Limits::default(), ObjectKind::File, data)
}

pub(crate) fn reasons(report: &Report) -> Vec<Reason> {
    report.unread.iter().map(|u| u.reason).collect()
}

pub(crate) fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

fn deflate(data: &[u8]) -> Vec<u8> {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

fn bzip2(data: &[u8]) -> Vec<u8> {
    let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::default());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

fn zstd(data: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(data, ruzstd::encoding::CompressionLevel::Fastest)
}

fn xz(data: &[u8]) -> Vec<u8> {
    let mut writer =
        lzma_rust2::XzWriter::new(Vec::new(), lzma_rust2::XzOptions::default()).unwrap();
    writer.write_all(data).unwrap();
    writer.finish().unwrap()
}

fn lzma(data: &[u8]) -> Vec<u8> {
    let mut writer = lzma_rust2::LzmaWriter::new_use_header(
        Vec::new(),
        &lzma_rust2::LzmaOptions::default(),
        None,
    )
    .unwrap();
    writer.write_all(data).unwrap();
    writer.finish().unwrap()
}

fn lzip(data: &[u8]) -> Vec<u8> {
    let mut writer = lzma_rust2::LzipWriter::new(Vec::new(), lzma_rust2::LzipOptions::default());
    writer.write_all(data).unwrap();
    writer.finish().unwrap()
}

/// A zip archive in the making.
#[derive(Default)]
pub(crate) struct Zip {
    local: Vec<u8>,
    central: Vec<u8>,
    count: u16,
    crc: u32,
    extra: Vec<u8>,
}

impl Zip {
    pub(crate) fn stored(self, name: &str, data: &[u8]) -> Self {
        self.summed(data).member(name, 0, 0, data, data.len())
    }

    /// The extra field of the next member.
    pub(crate) fn extra(mut self, extra: &[u8]) -> Self {
        self.extra = extra.to_vec();
        self
    }

    /// The checksum of the next member.
    pub(crate) fn summed(mut self, data: &[u8]) -> Self {
        let mut crc = flate2::Crc::new();
        crc.update(data);
        self.crc = crc.sum();
        self
    }

    pub(crate) fn deflated(self, name: &str, data: &[u8]) -> Self {
        self.summed(data).member(name, 0, 8, &deflate(data), data.len())
    }

    pub(crate) fn member(
        mut self,
        name: &str,
        flags: u16,
        method: u16,
        packed: &[u8],
        size: usize,
    ) -> Self {
        let offset = self.local.len();
        self.local.extend(b"PK\x03\x04\x14\0");
        for field in [flags, method, 0, 0] {
            self.local.extend(field.to_le_bytes());
        }
        for field in [self.crc, packed.len() as u32, size as u32] {
            self.local.extend(field.to_le_bytes());
        }
        self.local.extend((name.len() as u16).to_le_bytes());
        self.local.extend((self.extra.len() as u16).to_le_bytes());
        self.local.extend(name.as_bytes());
        self.local.extend(&self.extra);
        self.local.extend(packed);
        self.entry(name, flags, method, packed.len() as u32, size as u32, offset as u32);
        self
    }

    fn entry(&mut self, name: &str, flags: u16, method: u16, packed: u32, size: u32, offset: u32) {
        self.central.extend(b"PK\x01\x02\x14\0\x14\0");
        for field in [flags, method, 0, 0] {
            self.central.extend(field.to_le_bytes());
        }
        for field in [std::mem::take(&mut self.crc), packed, size] {
            self.central.extend(field.to_le_bytes());
        }
        self.central.extend((name.len() as u16).to_le_bytes());
        self.central.extend((self.extra.len() as u16).to_le_bytes());
        self.central.extend([0; 10]);
        self.central.extend(offset.to_le_bytes());
        self.central.extend(name.as_bytes());
        self.central.extend(std::mem::take(&mut self.extra));
        self.count += 1;
    }

    pub(crate) fn done(self) -> Vec<u8> {
        let mut out = self.local;
        let at = out.len() as u32;
        out.extend(&self.central);
        out.extend(b"PK\x05\x06\0\0\0\0");
        out.extend(self.count.to_le_bytes());
        out.extend(self.count.to_le_bytes());
        out.extend((self.central.len() as u32).to_le_bytes());
        out.extend(at.to_le_bytes());
        out.extend([0, 0]);
        out
    }
}

fn tar(members: &[(&[u8], u8, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, kind, data) in members {
        let mut header = [0u8; 512];
        header[..name.len()].copy_from_slice(name);
        header[124..135].copy_from_slice(format!("{:011o}", data.len()).as_bytes());
        header[156] = *kind;
        header[257..263].copy_from_slice(b"ustar\0");
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|&b| u32::from(b)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        out.extend(header);
        out.extend(*data);
        out.resize(out.len().next_multiple_of(512), 0);
    }
    out.resize(out.len() + 1024, 0);
    out
}

fn ar(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut out = b"!<arch>\n".to_vec();
    for (name, data) in members {
        out.extend(
            format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n", 0, 0, 0, 644, data.len())
                .as_bytes(),
        );
        out.extend(*data);
        if data.len() % 2 == 1 {
            out.push(b'\n');
        }
    }
    out
}

#[track_caller]
fn found(data: &[u8], path: &[&str]) {
    let report = file(data);
    assert_eq!(report.verdict, Verdict::Infected, "{report:#?}");
    assert_eq!(report.findings[0].path[1..], *path, "{report:#?}");
}

#[test]
fn marks_are_found_in_every_archive() {
    let mark = [MARK, b"tail"].concat();
    found(&Zip::default().stored("a.txt", b"a").stored("m.com", &mark).done(), &["m.com"]);
    found(&Zip::default().deflated("dir/m.com", &mark).done(), &["dir/m.com"]);
    found(
        &Zip::default().stored("in.zip", &Zip::default().deflated("m", &mark).done()).done(),
        &["in.zip", "m"],
    );
    found(&gzip(&mark), &["gzip"]);
    // Members that follow one another are one file: a mark cut in two by them is whole again.
    found(&[gzip(&mark[..30]), gzip(&mark[30..])].concat(), &["gzip"]);
    found(&[gzip(b"first"), mark.clone()].concat(), &["behind the end"]);
    for (name, packed) in [
        ("bzip2", bzip2(&mark)),
        ("xz", xz(&mark)),
        ("zstd", zstd(&mark)),
        ("lzma", lzma(&mark)),
        ("lzip", lzip(&mark)),
    ] {
        found(&packed, &[name]);
    }
    found(&[bzip2(&mark[..30]), bzip2(&mark[30..])].concat(), &["bzip2"]);
    found(&[xz(&mark[..30]), xz(&mark[30..])].concat(), &["xz"]);
    found(
        &[zstd(&mark[..30]), b"\x51\x2a\x4d\x18\x02\0\0\0xx".to_vec(), zstd(&mark[30..])].concat(),
        &["zstd"],
    );
    found(&zstd(&tar(&[(b"m", b'0', &mark)])), &["zstd", "m"]);
    for (method, packed) in [(12, bzip2(&mark)), (93, zstd(&mark)), (95, xz(&mark))] {
        found(&Zip::default().member("m", 0, method, &packed, mark.len()).done(), &["m"]);
    }
    found(&tar(&[(b"a", b'0', b"x"), (b"m", b'0', &mark)]), &["m"]);
    found(&gzip(&tar(&[(b"m", 0, &mark)])), &["gzip", "m"]);
    found(
        &tar(&[(b"././@LongLink", b'L', b"a/long/name\0"), (b"a", b'0', &mark)]),
        &["a/long/name"],
    );
    found(&tar(&[(b"x", b'x', b"18 path=pax/name.c\n"), (b"a", b'0', &mark)]), &["pax/name.c"]);
    found(&ar(&[("a.o/", b"odd"), ("m/", &mark)]), &["m"]);
    found(&ar(&[("#1/8", &[b"longname", &mark[..]].concat())]), &["longname"]);
}

#[test]
fn both_views_of_a_zip_are_read() {
    let whole = Zip::default().stored("clean", b"nothing").deflated("m", MARK).done();
    let end = memchr::memmem::rfind(&whole, b"PK\x05\x06").unwrap();
    let directory = memchr::memmem::find(&whole, b"PK\x01\x02").unwrap();
    found(&whole[..end], &["m"]);
    found(&whole[..directory], &["m"]);
    // Something in front: a self-extracting program, or junk.
    found(&[&b"MZ\x90\0 the stub of a program "[..], &whole].concat(), &["m"]);
    found(&[&whole[..], b"a trailer"].concat(), &["m"]);
    // A directory whose offsets are off.
    let mut shifted = Zip::default().deflated("m", MARK).done();
    let at = shifted.len() - 22 - 5;
    shifted[at] ^= 3;
    found(&shifted, &["m"]);
    assert!(file(&shifted).unread.is_empty());
    // A local member that the directory does not name.
    let mut hidden = Zip::default().deflated("m", MARK);
    hidden.central.clear();
    hidden.count = 0;
    found(&hidden.stored("clean", b"nothing").done(), &["m"]);
    // The directory calls it stored, the local header deflated: each is what some unpacker believes.
    let mut lying = Zip::default().deflated("m", MARK);
    lying.central[10] = 0;
    found(&lying.done(), &["m"]);
    // The directory says encrypted, the local header does not.
    let mut lying = Zip::default().deflated("m", MARK);
    lying.central[8] = 1;
    found(&lying.done(), &["m"]);
    // Sizes in a descriptor behind the data, no directory.
    let mut streamed = Zip::default().member("m", 8, 8, &deflate(MARK), MARK.len());
    streamed.local[18..26].fill(0);
    found(&streamed.local, &["m"]);
}

#[test]
fn what_cannot_be_read_is_said_with_its_reason() {
    for (data, reason) in [
        (Zip::default().member("m", 1, 8, b"cipher text", 11).done(), Reason::Encrypted),
        (Zip::default().member("m", 0, 99, b"cipher text", 11).done(), Reason::Encrypted),
        (Zip::default().member("m", 0, 1, b"shrunk", 4).done(), Reason::Unsupported),
        (Zip::default().member("m", 0, 14, b"lzma", 4).done(), Reason::Malformed),
        (Zip::default().member("m", 0, 8, b"\xff\xff\xff\xff", 4).done(), Reason::Malformed),
        (Zip::default().stored("m", &[7; 100]).done()[..80].to_vec(), Reason::Malformed),
        (b"PK\x03\x04 and nothing of an archive behind it".to_vec(), Reason::Malformed),
        (gzip(&[7; 1000])[..15].to_vec(), Reason::Malformed),
        (b"\x1f\x8b\x08 no header".to_vec(), Reason::Malformed),
        (b"Rar!\x1a\x07\x01\0".to_vec(), Reason::Malformed),
        (b"7z\xbc\xaf\x27\x1c\0\x04".to_vec(), Reason::Malformed),
        (b"\xfd7zXZ\0\0\x04".to_vec(), Reason::Malformed),
        (xz(&[7; 1000])[..40].to_vec(), Reason::Malformed),
        (bzip2(&[7; 1000])[..30].to_vec(), Reason::Malformed),
        (zstd(&[7; 1000])[..8].to_vec(), Reason::Malformed),
        // A window of 2 GiB.
        (b"\x28\xb5\x2f\xfd\x00\xa8\x01\0\0".to_vec(), Reason::Memory),
        (b"ITSF\x03\0\0\0".to_vec(), Reason::Malformed),
        (b"MSWIM\0\0\0".to_vec(), Reason::Unsupported),
        (tar(&[(b"m", b'0', &[1; 2000])])[..1024].to_vec(), Reason::Malformed),
        (ar(&[("m/", &[1; 2000])])[..1024].to_vec(), Reason::Malformed),
        (
            b"-----BEGIN PGP MESSAGE-----\n\nhQEMA0RndMKEQoZvAQgAmE==\n-----END PGP MESSAGE-----\n"
                .to_vec(),
            Reason::Encrypted,
        ),
    ] {
        let report = file(&data);
        assert_eq!(report.verdict, Verdict::Unscannable, "{reason:?} {report:?}");
        assert!(reasons(&report).contains(&reason), "{reason:?} {report:?}");
    }
}

#[test]
fn what_was_read_before_a_failure_counts() {
    let mut cut = gzip(&[MARK, &[7; 100_000]].concat());
    cut.truncate(cut.len() - 20);
    let report = file(&cut);
    assert_eq!(report.verdict, Verdict::Infected);
    assert_eq!(reasons(&report), [Reason::Malformed]);
    let limits = Limits { object_size: 1000, ..Limits::default() };
    let report = scan_with(&limits, ObjectKind::File, &[MARK, &[7; 100_000]].concat());
    assert_eq!((report.verdict, reasons(&report)), (Verdict::Infected, vec![Reason::Size]));
}

#[test]
fn plain_things_are_clean() {
    let mut png = b"\x89PNG\r\n\x1a\n".to_vec();
    png.extend([7; 1000]);
    for data in [
        &b""[..],
        b"hello\n",
        &png,
        &Zip::default().done(),
        &Zip::default().stored("dir/", b"").deflated("a.txt", b"text").done(),
        &gzip(b"text"),
        &[gzip(b"text"), vec![0; 512]].concat(),
        &tar(&[(b"dir/", b'5', b""), (b"a.txt", b'0', b"text")]),
        &ar(&[("debian-binary", b"2.0\n")]),
        b"The letters PK\x05\x06 and PK\x03\x04 by chance in a file that is no archive at all, of some length",
    ] {
        let report = file(data);
        assert_eq!(report.verdict, Verdict::Clean, "{report:?}");
    }
}

fn limited(limits: Limits, data: &[u8]) -> Report {
    let report = scan_with(&limits, ObjectKind::File, data);
    assert_eq!(report.verdict, Verdict::Unscannable, "{report:?}");
    report
}

#[test]
fn bombs_stop_at_the_limit_that_they_exceed() {
    let zeros = vec![0; 40 << 20];
    let bomb = gzip(&zeros);
    let report = limited(Limits::default(), &bomb);
    assert_eq!(reasons(&report), [Reason::Ratio]);
    assert!(report.bytes < 10 << 20, "{}", report.bytes);

    let report =
        limited(Limits { ratio: u32::MAX, object_size: 1 << 20, ..Limits::default() }, &bomb);
    assert_eq!(reasons(&report), [Reason::Size]);

    let many = (0..20)
        .fold(Zip::default(), |zip, i| zip.deflated(&format!("{i}"), &zeros[..1 << 20]))
        .done();
    let report = limited(Limits { unpacked_size: 4 << 20, ..Limits::default() }, &many);
    assert!(reasons(&report).contains(&Reason::Unpacked), "{report:?}");
    assert!(report.bytes < 6 << 20, "{}", report.bytes);

    let report = limited(Limits { members: 10, ..Limits::default() }, &many);
    assert!(reasons(&report).contains(&Reason::Members), "{report:?}");
    assert_eq!(report.parts, 10);

    let deep = (0..40).fold(MARK.to_vec(), |inner, _| Zip::default().stored("z", &inner).done());
    let report = limited(Limits::default(), &deep);
    assert_eq!(reasons(&report), [Reason::Depth]);
    assert_eq!(
        file(&(0..20).fold(MARK.to_vec(), |inner, _| gzip(&inner))).verdict,
        Verdict::Infected
    );
}

#[test]
fn overlapping_members_are_bounded() {
    // One packed megabyte that a thousand directory entries point to.
    let mut zip = Zip::default().deflated("0", &vec![0; 1 << 20]);
    let packed = u32::from_le_bytes(zip.local[18..22].try_into().unwrap());
    for i in 1..1000 {
        zip.entry(&format!("{i}"), 0, 8, packed, 1 << 20, 0);
    }
    let report = file(&zip.done());
    assert_eq!(report.verdict, Verdict::Clean, "{report:?}");
    assert!(report.bytes < 4 << 20, "the same bytes are read once: {}", report.bytes);
}

#[test]
fn a_passed_deadline_is_said() {
    let report =
        scan(&mut Marks, &Limits::default(), &Object::new(ObjectKind::File, b"x", Instant::now()));
    assert_eq!(reasons(&report), [Reason::Time]);
}

#[test]
fn an_engine_that_fails_never_yields_clean() {
    struct Fails;
    impl Engine for Fails {
        fn name(&self) -> &'static str {
            "fails"
        }
        fn scan(&mut self, _: &Part<'_>, _: &mut Vec<Hit>) -> Result<(), String> {
            Err("broken".into())
        }
    }
    let deadline = Instant::now() + Duration::from_secs(60);
    let report =
        scan(&mut Fails, &Limits::default(), &Object::new(ObjectKind::File, b"x", deadline));
    assert_eq!((report.verdict, report.error.as_deref()), (Verdict::Error, Some("broken")));
}

/// Members that are stored as they are lie plainly in their container: they are opened as members alone, however many
/// there are, and what no member is made of is opened besides.
#[test]
fn stored_archives_are_opened_once() {
    let cabinet = |number: u16| {
        let mut cabinet = include_bytes!("../../tests/fixtures/stored.cab").to_vec();
        // The number of its set: no two are the same.
        cabinet[32..34].copy_from_slice(&number.to_le_bytes());
        cabinet
    };
    let one = file(&cabinet(0)).parts;
    let cabinets: Vec<Vec<u8>> = (0..200).map(cabinet).collect();
    let members: Vec<(&[u8], u8, &[u8])> =
        cabinets.iter().map(|c| (&b"a.cab"[..], b'0', &c[..])).collect();
    let archive = tar(&members);
    let report = file(&archive);
    assert_eq!((report.parts, &report.unread[..]), (1 + 200 * one, &[][..]));
    // The same in a stored member of another container.
    let outer = file(&Zip::default().stored("a.tar", &archive).done());
    assert_eq!((outer.parts, &outer.unread[..]), (2 + 200 * one, &[][..]));
    // Behind the end record of a zip there is no member.
    let mut zip = Zip::default().stored("a.cab", &cabinets[0]).done();
    zip.extend(&cabinets[1]);
    let report = file(&zip);
    assert_eq!((report.parts, &report.unread[..]), (2 * one, &[][..]));
    zip.extend(cabinets[2..].concat());
    assert_eq!(reasons(&file(&zip)), [Reason::Members]);
}

//! Bytes that a decoder could pass over in silence: behind one of its bounds, in a form that another reader takes and it does
//! not, under a label that says there is nothing. Each is found, or said not to be read.

#![expect(clippy::unwrap_used, reason = "helpers of tests, outside of #[test] functions")]

#[path = "../fuzz/checks/forms.rs"]
#[expect(dead_code, reason = "the fuzz targets use the rest")]
mod forms;
mod mark;

use mark::{MARK, Mark, fixture};
use std::io::Read;
use std::time::{Duration, Instant};
use vscan_scan::limits::Limits;
use vscan_scan::object::{Object, scan};
use vscan_scan::report::{Reason, Report, Verdict};
use vscan_scan::wire::ObjectKind;

fn scanned(kind: ObjectKind, limits: &Limits, data: &[u8]) -> Report {
    let deadline = Instant::now() + Duration::from_secs(60);
    scan(&mut Mark, limits, &Object::new(kind, data, deadline))
}

fn file(data: &[u8]) -> Report {
    scanned(ObjectKind::File, &Limits::default(), data)
}

#[track_caller]
fn found(what: &str, data: &[u8]) {
    let report = file(data);
    assert_eq!(report.verdict, Verdict::Infected, "{what}: {report:?}");
}

#[track_caller]
fn said(what: &str, data: &[u8], reason: Reason) {
    let report = file(data);
    assert_eq!(report.verdict, Verdict::Unscannable, "{what}: {report:?}");
    assert!(report.unread.iter().any(|u| u.reason == reason), "{what}: {:?}", report.unread);
}

/// A chunk of three tokens that is 4096 letters (MS-OVBA 2.4.1.1.5).
const CHUNK: [u8; 6] = [0x03, 0xb0, 0x02, b'a', 0xfc, 0x0f];

#[test]
fn vba_source_that_is_too_long() {
    let begin = b"\x01\x11\xb0\x00Attribut\x00e VB_Nam";
    let module = |chunks: usize| [&begin[..], &CHUNK.repeat(chunks)].concat();
    let whole = forms::vba(&[&[0][..], &module(4000)].concat()).unwrap();
    assert_eq!(file(&whole).unread, []);
    said("a module", &forms::vba(&[&[0][..], &module(4200)].concat()).unwrap(), Reason::Size);
}

#[test]
fn uuencoded_sections_with_odd_first_lines() {
    let line = |bytes: &[u8]| {
        let mut out = vec![0x20 + bytes.len() as u8];
        for three in bytes.chunks(3) {
            let byte = |i: usize| u32::from(three.get(i).copied().unwrap_or(0));
            let n = byte(0) << 16 | byte(1) << 8 | byte(2);
            out.extend((0..4).map(|k| match n >> (18 - 6 * k) & 63 {
                0 => b'`',
                six => 0x20 + six as u8,
            }));
        }
        out.push(b'\n');
        out
    };
    let body: Vec<u8> = MARK.chunks(45).flat_map(line).chain(*b"`\nend\n").collect();
    let long = "n".repeat(5000);
    for first in [
        "begin 644 a.com".into(),
        format!("begin 644 {long}"),
        "begin 0000100644 a.com".into(),
        "begin 6 a.com".into(),
        "begin  a.com".into(),
        "begin     644   a.com".into(),
    ] {
        let section = [first.as_bytes(), b"\n", &body].concat();
        found(&first[..first.len().min(40)], &section);
        let message = [b"Subject: a\n\nHello.\n", &section[..]].concat();
        let report = scanned(ObjectKind::Message, &Limits::default(), &message);
        assert_eq!(report.verdict, Verdict::Infected, "{first} in a message: {report:?}");
    }
    let letters = "dGhlLW1hcmstb2YtdGhlLXRlc3RzLXdoaWNoLWlzLTY4LWJ5dGVzLWxvbmctbGlrZS10aGUtcmVhbC10ZXN0LWZpbGU=";
    for first in ["begin-base64 644 a", "begin-base64-encoded 644 YQ=="] {
        found(first, format!("{first}\n{letters}\n====\n").as_bytes());
    }
    // What only looks like one.
    for text in [
        "begin transaction;\nSELECT * FROM X;\nCOMMIT;\n",
        "begin 7 days later\nTHEN IT WAS OVER\n",
        "begin the line and nothing follows\n",
        "begin 644",
    ] {
        assert_eq!(file(text.as_bytes()).verdict, Verdict::Clean, "{text}");
    }
}

#[test]
fn two_bytes_are_no_gzip_file() {
    // What gzip(1), 7-Zip, libarchive and zlib refuse.
    for method in (0..=255u8).filter(|&m| m != 8) {
        let noise = [&[0x1f, 0x8b, method][..], &[0x5a; 500]].concat();
        assert_eq!(file(&noise).verdict, Verdict::Clean, "method {method}");
    }
    said(
        "the method that there is",
        &[&b"\x1f\x8b\x08"[..], &[0x5a; 500]].concat(),
        Reason::Malformed,
    );
}

fn hex(data: &[u8]) -> String {
    data.iter().map(|b| format!("{b:02x}")).collect()
}

fn pdf(dictionary: &str, between: &str, content: &str) -> Vec<u8> {
    format!("%PDF-1.4\n1 0 obj\n<< {dictionary} >>{between}stream\n{content}\nendstream\nendobj\n")
        .into_bytes()
}

#[test]
fn pdf_dictionaries_that_are_long_or_have_comments() {
    let content = hex(MARK) + ">";
    let blanks = " ".repeat(300_000);
    let not_this = "% /Filter /FlateDecode\n";
    for dictionary in [
        format!("/Filter {blanks}/AHx {blanks}"),
        format!("/Filter/AHx {blanks}{blanks}"),
        "/Filter\0/AHx".into(),
        "/Filter % a comment\n/AHx".into(),
        "/Filter [ % /FlateDecode ]\n/AHx ]".into(),
        format!("{not_this} /Filter /AHx"),
        "/Title (100% \\) and) /Filter /AHx".into(),
        "/Length%\n 5%\n /Filter%\r/AHx%".replace("5%", "5%x"),
    ] {
        found(&dictionary[..dictionary.len().min(40)], &pdf(&dictionary, "\n", &content));
    }
    for between in [" % a comment\n", "\0\n", "\n%1\n%2\n \n", &blanks] {
        found(&between[..between.len().min(10)], &pdf("/Filter /AHx", between, &content));
    }
    // The filter in an object of its own.
    let apart = format!("2 0 obj\n{blanks}% x\n/AHx\nendobj\n");
    found("apart", &[&pdf("/Filter 2 0 R", "\n", &content), apart.as_bytes()].concat());
}

/// What is called a picture is looked at only at its beginning, unless something else says that it is read.
#[test]
fn pdf_pictures_that_are_read() {
    let far = [&vec![b' '; 500_000][..], MARK].concat();
    let picture = "/Subtype /Image /Width 1 /Height 1 /Filter /AHx";
    let content = hex(&far) + ">";
    let with = |other: &str| {
        let mut whole = pdf(picture, "\n", &content);
        whole.extend(format!("2 0 obj\n<< {other} >>\nendobj\n").bytes());
        whole
    };
    assert_eq!(file(&with("/Nothing 1 0 R")).verdict, Verdict::Clean);
    for other in [
        "/EF << /F 1 0 R >>",
        "/EF % a comment\n << /F 1 0 R >>",
        "/E#46 << /F 1 0 R >>",
        "/S /JavaScript /JS 1 0 R",
        "/JS %\n1 % a comment\n 0 R",
        "/XFA [ (template) 1 0 R ]",
        "/XFA 1 0 R",
    ] {
        found(other, &with(other));
    }
    let blanks = " ".repeat(5000);
    said("long", &with(&format!("/EF << /Title ({blanks}) /F 1 0 R >>")), Reason::Size);
    let many = "/EF << /F 3 0 R >> ".repeat(10_001);
    said("many", &with(&(many + "/EF << /F 1 0 R >>")), Reason::Members);
    assert_eq!(file(&with(&"/EF << /F 3 0 R >> ".repeat(9000))).unread, []);
    let many = "/JS 3 0 R ".repeat(10_001);
    said("many scripts", &with(&(many + "/JS 1 0 R")), Reason::Members);
}

/// BER: a tag, the length, the content.
fn ber(tag: u8, content: &[u8]) -> Vec<u8> {
    [&[tag, 0x84][..], &(content.len() as u32).to_be_bytes(), content].concat()
}

#[test]
fn cms_objects_of_many_contents() {
    const PKCS7: &[u8] = b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07";
    let content = |data: &[u8]| ber(0x30, &[PKCS7, b"\x01", &ber(0xa0, &ber(0x04, data))].concat());
    let signed = |contents: &[u8]| ber(0x30, &[PKCS7, b"\x02", &ber(0xa0, contents)].concat());
    let decoys = |n: usize| content(b"nothing").repeat(n);
    found("one", &signed(&content(MARK)));
    found("the last that is read", &signed(&[decoys(63), content(MARK)].concat()));
    assert_eq!(file(&signed(&decoys(64))).unread, []);
    said("behind decoys", &signed(&[decoys(64), content(MARK)].concat()), Reason::Members);
}

#[test]
fn data_uris_with_long_media_types() {
    let page = |len: usize| {
        format!(
            "<html><a href=\"data:text/html;a={},{}\">",
            "b".repeat(len),
            String::from_utf8_lossy(MARK)
        )
    };
    found("long", page(16_000).as_bytes());
    said("longer", page(20_000).as_bytes(), Reason::Size);
    // A line of a text, and a page without any.
    for text in [
        format!("<html>data: {}", "a, b ".repeat(9000)),
        format!("<html>data:{}", "\nb".repeat(9000)),
    ] {
        assert_eq!(file(text.as_bytes()).verdict, Verdict::Clean);
    }
}

fn image(name: &str) -> Vec<u8> {
    let (packed, mut out) = (fixture(name), Vec::new());
    lzma_rust2::XzReader::new(&packed[..], true).read_to_end(&mut out).unwrap();
    out
}

#[test]
fn images_with_odd_directories() {
    const SECTOR: usize = 2048;
    let whole = image("plain.iso.xz");
    // The directory's record, and a second one of the same place that is empty: whichever is read first.
    let record = |image: &[u8]| image.windows(8).rposition(|w| w == b"DIRECTOR").unwrap() - 33;
    let at = record(&whole);
    let len = usize::from(whole[at]);
    let second: Vec<u8> = whole[at..at + len].to_vec();
    for empty_first in [true, false] {
        let mut image = whole.clone();
        let behind = (at / SECTOR + 1) * SECTOR;
        let rest = image[at + len..behind - len].to_vec();
        image[at + 2 * len..behind].copy_from_slice(&rest);
        image[at + len..at + 2 * len].copy_from_slice(&second);
        let empty = if empty_first { at } else { at + len };
        image[empty + 10..empty + 18].fill(0);
        found("two records of one place", &image);
    }
    let mut image = whole.clone();
    image[at] = 20;
    said("a record that is too short", &image, Reason::Malformed);
    // Descriptors of no volume before the true one.
    let mut image = whole.clone();
    let mut decoy = whole[16 * SECTOR..17 * SECTOR].to_vec();
    decoy[0] = 0;
    image.splice(16 * SECTOR..16 * SECTOR, decoy.repeat(64));
    said("many descriptors", &image, Reason::Members);
}

#[test]
fn arj_members_of_odd_types() {
    let whole = fixture("m1.arj");
    // Behind the main header lies the first member's.
    let starts: Vec<usize> =
        (0..whole.len() - 4).filter(|&i| whole[i..].starts_with(b"\x60\xea")).collect();
    let at = starts[1] + 4;
    let len = usize::from(u16::from_le_bytes([whole[at - 2], whole[at - 1]]));
    for kind in [1, 2, 4, 5, 77] {
        let mut archive = whole.clone();
        archive[at + 6] = kind;
        let mut crc = flate2::Crc::new();
        crc.update(&archive[at..at + len]);
        archive[at + len..at + len + 4].copy_from_slice(&crc.sum().to_le_bytes());
        found(&format!("type {kind}"), &archive);
    }
}

#[test]
fn help_files_with_long_directories() {
    let whole = std::fs::read("/usr/share/clamav-testfiles/clam.chm").unwrap();
    assert_eq!(file(&whole).unread, []);
    let limits = Limits { members: 3, ..Limits::default() };
    let report = scanned(ObjectKind::File, &limits, &whole);
    assert!(report.unread.iter().any(|u| u.reason == Reason::Members), "{report:?}");
    // A chunk of no kind before the one that lists the files.
    let chunk = whole.windows(4).position(|w| w == b"PMGL").unwrap();
    let header = whole.windows(4).position(|w| w == b"ITSP").unwrap();
    let field = |at: usize| u32::from_le_bytes(whole[at..at + 4].try_into().unwrap());
    let (len, count) = (field(header + 16) as usize, field(header + 44));
    let mut odd = whole.clone();
    odd.splice(chunk..chunk, vec![b'X'; len]);
    odd[header + 44..header + 48].copy_from_slice(&(count + 1).to_le_bytes());
    let content = u64::from_le_bytes(whole[0x58..0x60].try_into().unwrap()) + len as u64;
    odd[0x58..0x60].copy_from_slice(&content.to_le_bytes());
    assert_eq!(file(&odd).parts, file(&whole).parts);
}

#[test]
fn sparse_members_with_wrong_maps() {
    let mut archive = fixture("sparse-pax.tar");
    assert_eq!(file(&archive).verdict, Verdict::Infected);
    // The number of pieces: more than a file has.
    let major = archive.windows(18).position(|w| w == b"GNU.sparse.major=1").unwrap();
    let map = (major / 512 + 1) * 512 + 512;
    let line = archive[map..].iter().position(|&b| b == b'\n').unwrap();
    archive[map..map + line].fill(b'x');
    let report = file(&archive);
    assert!(report.unread.iter().any(|u| u.reason == Reason::Malformed), "{report:?}");
}

#[test]
fn encoded_sections_in_odd_forms() {
    let mut letters = Vec::new();
    for &b in MARK {
        letters.push(b.wrapping_add(42));
    }
    let yenc = |first: &str| [first.as_bytes(), b"\n", &letters, b"\n=yend size=68\n"].concat();
    found("yEnc", &yenc("=ybegin line=128 size=68 name=a"));
    found("yEnc without lengths of lines", &yenc("=ybegin size=68 name=a"));
    // BinHex far behind its first line: prose is none.
    let prose = format!(
        "(This file must be converted with BinHex 4.0)\n{}\n:-)\n",
        "a line\n".repeat(1000)
    );
    assert_eq!(file(prose.as_bytes()).verdict, Verdict::Clean);
    let far = format!(
        "(This file must be converted with BinHex 4.0)\n{}\n:{}\n",
        "a line\n".repeat(1000),
        "!".repeat(64)
    );
    said("BinHex far behind", far.as_bytes(), Reason::Malformed);
}

/// Formats that some program opens and this scanner does not.
#[test]
fn formats_that_are_known_only() {
    let zoo = [&b"ZOO 2.10 Archive.\x1a\0\0"[..], b"\xdc\xa7\xc4\xfd\x2a\0\0\0"].concat();
    for data in [
        &b"ALZ\x01\x0a\0\0\0BLZ\x01"[..],
        b"EGGA\0\x01\0\0\0\0",
        b"LRZI\0\x06\0\0\0\0",
        b"\x37\xe4\x53\x96\xc9\xdb\xd6\x07\0\0\0\0",
        b"\x25\xb5\x2f\xfd\0\0\0\0",
        b"\x1e\xb5\x2f\xfd\0\0\0\0",
        &zoo,
    ] {
        said(&data.escape_ascii().to_string(), data, Reason::Unsupported);
    }
}

/// Damage that takes a member away, or most of it, is told: what is left does not look like all there was.
#[test]
fn damage_is_told() {
    let at = |data: &[u8], what: &[u8]| data.windows(what.len()).position(|w| w == what).unwrap();
    // A member that is empty and says that it is not, without a directory.
    let whole = fixture("PPMd.zip");
    let mut zip = whole[..at(&whole, b"PK\x01\x02")].to_vec();
    zip[18..22].fill(0);
    said("a zip member of no bytes", &zip, Reason::Malformed);
    // Streams that end before their members do.
    for (name, place, value) in [("Deflate.7z", 76, 231), ("Deflate.7z", 72, 31)] {
        let mut archive = fixture(name);
        archive[place] = value;
        said(name, &archive, Reason::Malformed);
    }
    let short = [
        &b"PK\x03\x04\x14\0\0\0\x08\0\0\0\0\0\0\0\0\0\x05\0\0\0\xe8\x03\0\0\x01\0\0\0a"[..],
        b"\x4b\x04\0\0\0",
    ]
    .concat();
    said("a deflated member", &short, Reason::Malformed);
    // A name longer than the archive.
    let mut cpio = fixture("newc.cpio");
    let second = 6 + at(&cpio[6..], b"070701");
    cpio[second + 94..second + 102].copy_from_slice(b"0000f000");
    said("a name in a cpio archive", &cpio, Reason::Malformed);
    // Behind the end of an ARJ archive lies another one, which its size of nothing hides.
    let arj = fixture("m1.arj");
    found("behind an ARJ archive", &[&arj[..58], b"\x60\xea\0\0", &fixture("LZMA.7z")].concat());
    // Directories that tell of nothing.
    let mut cab = fixture("stored.cab");
    cab[28..30].fill(0);
    said("a cabinet", &cab, Reason::Malformed);
    let mut sis = std::fs::read("/usr/share/clamav-testfiles/clam.sis").unwrap();
    sis[20..22].fill(0);
    said("a sis file", &sis, Reason::Malformed);
    let mut ole = forms::vba(b"\x04abcdefgh").unwrap();
    let directory = ole.len() - 512;
    for entry in 1..3 {
        ole[directory + 128 * entry + 66] = 0;
    }
    said("an OLE2 file", &ole, Reason::Malformed);
    let rpm = fixture("w9.gzdio.rpm");
    let payload = rpm.windows(3).rposition(|w| w == b"\x1f\x8b\x08").unwrap();
    let mut damaged = rpm.clone();
    damaged[payload] = 0;
    said("a package", &damaged, Reason::Malformed);
    // An object of an encrypted file that its library drops.
    let pdf = fixture("aes-128.pdf");
    let stream = pdf.windows(8).position(|w| w == b"/Length ").unwrap();
    let mut damaged = pdf.clone();
    damaged.splice(stream..stream, *b"/Length (");
    let report = file(&damaged);
    assert_ne!(report.verdict, Verdict::Clean, "{report:?}");
}

//! Hostile inputs made by rule rather than by chance.

#![expect(clippy::unwrap_used, reason = "a test outside of #[test] functions")]

#[path = "../fuzz/checks/walk.rs"]
#[expect(dead_code, reason = "the fuzz targets use the rest")]
mod checks;
#[path = "../fuzz/checks/forms.rs"]
#[expect(dead_code, reason = "the fuzz targets use the rest")]
mod forms;
mod mark;
#[path = "fixtures/sevenz.rs"]
mod sevenz;

use mark::{MARK, Mark, fixture};
use rustix::time::{ClockId, clock_gettime};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};
use vscan_scan::limits::Limits;
use vscan_scan::object::{Object, scan};
use vscan_scan::report::{Reason, Report, Verdict};
use vscan_scan::sniff::Kind;
use vscan_scan::wire::ObjectKind;

fn report(data: &[u8]) -> Report {
    let deadline = Instant::now() + Duration::from_secs(60);
    scan(&mut Mark, &Limits::default(), &Object::new(ObjectKind::File, data, deadline))
}

/// What is over a bound of a decoder is found, or said not to be read: behind so many decoys nothing is clean.
#[track_caller]
fn not_clean(data: &[u8], reason: Reason) {
    let report = report(data);
    assert!(report.verdict >= Verdict::Unscannable, "{:?}", report.verdict);
    assert!(report.unread.iter().any(|u| u.reason == reason), "{:?}", report.unread);
}

#[test]
fn sections_behind_many_decoys_are_not_clean() {
    let yenc = |body: &str| format!("=ybegin line=128 size={} name=a\n{body}\n=yend\n", body.len());
    not_clean(yenc("x").repeat(1001).as_bytes(), Reason::Members);
    assert_eq!(report(yenc("x").repeat(1000).as_bytes()).unread, []);
    let binhex = "(This file must be converted with BinHex 4.0)\n\n:!!!!!!!!:\n";
    not_clean(binhex.repeat(101).as_bytes(), Reason::Members);
    let armour = "-----BEGIN PGP MESSAGE-----\n\nyxRiAAAAAABh\n=AAAA\n-----END PGP MESSAGE-----\n";
    let message = format!("Subject: a\n\n{}", armour.repeat(65));
    let deadline = Instant::now() + Duration::from_secs(60);
    let object = Object::new(ObjectKind::Message, message.as_bytes(), deadline);
    let report = scan(&mut Mark, &Limits::default(), &object);
    assert!(report.unread.iter().any(|u| u.reason == Reason::Members), "{:?}", report.unread);
}

#[test]
fn streams_behind_many_empty_ones_are_not_clean() {
    // A directory of more entries than members are read, in a file whose streams are all empty.
    let limits = Limits { members: 3, ..Limits::default() };
    let deadline = Instant::now() + Duration::from_secs(60);
    let two = forms::vba(b"\x04abcdefgh").unwrap();
    let scan = |most| {
        let limits = Limits { members: most, ..limits };
        scan(&mut Mark, &limits, &Object::new(ObjectKind::File, &two, deadline))
    };
    assert!(scan(2).unread.iter().any(|u| u.reason == Reason::Members));
    assert_eq!(scan(100).unread, []);
}

#[test]
fn a_wrong_checksum_hides_nothing() {
    let mut archive = fixture("plain-header.7z");
    let mut crc = flate2::Crc::new();
    crc.update(MARK);
    let crc = crc.sum().to_le_bytes();
    let place = archive.windows(4).rposition(|w| *w == crc).unwrap();
    archive[place] ^= 1;
    sevenz::seal(&mut archive);
    let report = report(&archive);
    assert_eq!(report.verdict, Verdict::Infected, "{report:?}");
    assert_eq!(report.unread[0].reason, Reason::Malformed, "{report:?}");
}

#[test]
fn filters_of_a_pdf_have_bounds_that_are_told() {
    let pdf = |filters: &str, body: &[u8]| {
        let head = format!("%PDF-1.4\n1 0 obj\n<< /Filter [ {filters} ] >>\nstream\n");
        [head.as_bytes(), body, b"\nendstream\nendobj\n"].concat()
    };
    let hex = |times| {
        (0..times).fold(MARK.to_vec(), |data: Vec<u8>, _| {
            data.iter().flat_map(|b| format!("{b:02x}").into_bytes()).collect()
        })
    };
    assert_eq!(report(&pdf(&"/AHx ".repeat(8), &hex(8))).verdict, Verdict::Infected);
    not_clean(&pdf(&"/AHx ".repeat(17), &hex(1)), Reason::Depth);
    // A run of 128 bytes from two, and those from a thousandth of them.
    let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
    let piece = b"\x81\0".repeat(1 << 20);
    for _ in 0..24 {
        zlib.write_all(&piece).unwrap();
    }
    not_clean(&pdf("/FlateDecode /RunLengthDecode", &zlib.finish().unwrap()), Reason::Ratio);
    let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::none());
    let runs = b"\x81\0".repeat(300_000);
    zlib.write_all(&runs).unwrap();
    // 38 MB from 600 KB are within all limits; twice as much is not.
    let small = pdf("/FlateDecode /RunLengthDecode", &zlib.finish().unwrap());
    assert_eq!(report(&small).unread, []);
    not_clean(&pdf("/RunLengthDecode", &runs.repeat(2)), Reason::Memory);
}

/// Installers carry dozens of cabinets; each is opened once.
#[test]
fn many_archives_behind_a_program_are_opened_once() {
    let (clean, cab) = (fixture("stored.cab"), fixture("mszip.cab"));
    let mut program = b"MZ\x90\0 a program".to_vec();
    for _ in 0..30 {
        program.extend(&clean);
        program.extend(b"junk");
    }
    let report_one = report(&program);
    assert!(report_one.parts < 100, "{}", report_one.parts);
    assert_eq!(report_one.unread, []);
    program.extend(&cab);
    assert_eq!(report(&program).verdict, Verdict::Infected);
    let decoys = [&b"MZ"[..], &clean.repeat(70)].concat();
    assert!(report(&decoys).unread.iter().any(|u| u.reason == Reason::Members));
}

#[test]
fn what_stands_behind_empty_streams_is_read() {
    let mut bzip2 = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::best());
    bzip2.write_all(MARK).unwrap();
    let empty = b"BZh9\x17\x72\x45\x38\x50\x90\0\0\0\0";
    let start = used();
    let many = [empty.repeat(100_000), bzip2.finish().unwrap(), empty.to_vec()].concat();
    let report = report(&many);
    assert_eq!((report.verdict, report.unread), (Verdict::Infected, vec![]));
    assert!(used() - start < SOON);
}

#[test]
fn a_long_media_type_hides_nothing() {
    use std::fmt::Write;
    let mut page = String::from("<html><a href=\"data:text/html");
    for i in 0..500 {
        write!(page, ";p{i}=v").unwrap();
    }
    page.push(',');
    page.push_str(&String::from_utf8_lossy(MARK));
    page.push_str("\">x</a></html>");
    assert_eq!(report(page.as_bytes()).verdict, Verdict::Infected);
}

/// Boundaries in each other, which show every part many times: the search for passwords ends as well.
#[test]
fn passwords_are_not_looked_for_without_end() {
    let boundaries = "bbbbbbbb";
    let mut message = String::new();
    for _ in 0..9 {
        message.push_str("Content-Type: multipart/mixed");
        for i in 1..=8 {
            message.push_str(&format!("; boundary={}", &boundaries[..i]));
        }
        message.push_str("\r\n\r\n--bbbbbbbb\r\n");
    }
    let sealed = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/encrypted/zip");
    let attached = [
        &b"Content-Type: application/zip\r\nContent-Transfer-Encoding: binary\r\n\r\n"[..],
        &std::fs::read(sealed).unwrap(),
    ]
    .concat();
    let message = [message.as_bytes(), &attached].concat();
    let start = used();
    let deadline = Instant::now() + Duration::from_secs(60);
    let object = Object::new(ObjectKind::Message, &message, deadline);
    scan(&mut Mark, &Limits { members: 200, ..Limits::default() }, &object);
    // Quotes that nothing closes.
    let quotes = "[ « ".repeat(60_000);
    let head = "Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\n";
    let message = [head.as_bytes(), quotes.as_bytes(), b"\r\n--b\r\n", &attached].concat();
    let object = Object::new(ObjectKind::Message, &message, deadline);
    let report = scan(&mut Mark, &Limits::default(), &object);
    assert!(report.unread.iter().any(|u| u.reason == Reason::Encrypted), "{:?}", report.unread);
    assert!(used() - start < SOON, "{:?}", used() - start);
}

/// Time of the processor that this thread has used: the tests run beside others.
fn used() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

/// Bytes of each repetition.
const LEN: usize = 256 * 1024;

/// Longer than any of them takes on a slow machine. What grows with the square of the length takes many times as long.
const SOON: Duration = Duration::from_millis(1000);

#[test]
fn repetitions_end_soon() {
    let kinds: &[(Kind, &[u8], &[&str])] = &[
        (
            Kind::Pdf,
            b"%PDF-1.4\n",
            &[
                "/EF <<",
                "/EF <<1 ",
                "/EF[1 0 R 2 ",
                "/JS(",
                "/JS<",
                "/JS 1 0 R ",
                "1 0 obj\n",
                "1 0 obj<</Length 1 0 R>>stream\n",
                ">>stream\n",
                ">>stream\nendstream",
                "obj<</Filter[/Fl/Fl/Fl/Fl/Fl/Fl/Fl/Fl]>>stream\n",
                "/Encrypt<<",
                "#41",
                "<</Subtype/Image/Width 1/Height 1>>stream\n",
                "endobj ",
                "obj ",
                "1 ",
                "(",
                "<<",
                "/Encrypt 1 0 R 1 0 obj",
                "<</Filter 1 0 R>>stream\n1 0 obj",
                "/Type/ObjStm>>stream\n",
                "/EF[[[",
            ],
        ),
        (
            Kind::Rtf,
            b"{\\rtf1",
            &[
                "{\\objdata ",
                "\\objdata",
                "{",
                "\\",
                "\\'",
                "\\bin1 ",
                "\\objdata 01050000020000",
                "\\bin4294967295 ",
                "\\objdata\\bin9 ",
            ],
        ),
        (
            Kind::Html,
            b"<html>",
            &[
                "data:",
                "data:,",
                "data:;base64,",
                "data:text/html,%",
                "<script",
                "<script>",
                "<script></script>",
                "data:a/b,data:",
                "<",
            ],
        ),
        (
            Kind::Mbox,
            b"From a\nFrom: b\nTo: c\n\n",
            &["\nFrom ", "\nFrom a\nFrom: b\nTo: c\n\n", "From "],
        ),
        (
            Kind::PgpMessage,
            b"-----BEGIN PGP MESSAGE-----\n\n",
            &["-----BEGIN PGP MESSAGE-----\n", "=", "A", "\n"],
        ),
        (
            Kind::Relationships,
            b"<Relationships>",
            &[
                "<Relationship TargetMode=\"External\" Target=\"a\"/>",
                "<Relationship ",
                "Target=\"",
                "<",
            ],
        ),
        (
            Kind::Zip,
            b"",
            &[
                "PK\x03\x04",
                "PK\x05\x06",
                "PK\x06\x06",
                "PK\x01\x02",
                "PK\x03\x04\x14\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
                "PK\x07\x08",
                "PK\x03\x04\x14\0\x08\0\x08\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
            ],
        ),
        (Kind::Ole, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", &["\0", "\x01", "\0\0\0\0\x01\0\0\0"]),
        (Kind::Tar, b"", &["\0"]),
        (
            Kind::Ar,
            b"!<arch>\n",
            &["a               0           0     0     100644  0         `\n"],
        ),
        (
            Kind::Nsis,
            b"\0\0\0\0\xef\xbe\xad\xdeNullsoftInst\x01\0\0\0\xff\xff\x01\0",
            &["\x01\0\0\0a", "\0\0\0\0", "\x01\0\0\u{80}a"],
        ),
        (Kind::Gzip, b"", &["\x1f\u{8b}\x08\0\0\0\0\0\0\x03\x03\0\0\0\0\0\0\0\0\0"]),
        (Kind::Zstd, b"", &["\x50\x2a\x4d\x18\0\0\0\0", "\x28\u{b5}\x2f\u{fd}\x20\0\x01\0\0"]),
        (Kind::Bzip2, b"", &["BZh9\x17\x72\x45\x38\x50\u{90}\0\0\0\0"]),
        (Kind::Arj, b"", &["\x60\u{ea}", "\x60\u{ea}\0\0"]),
        (Kind::Lha, b"", &["\x16\x5d-lh0-\0\0\0\0\0\0\0\0\0\0\0\0\x20\0\0\0\0", "-lh5-"]),
        (
            Kind::Cpio,
            b"",
            &[
                "070701000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000010000000000\0",
                "070701",
            ],
        ),
        (Kind::Sis, b"", &["\0", "\x01\0\0\0"]),
        (
            Kind::Cms,
            b"\x30\x80",
            &["\x30\u{80}", "\x24\u{80}", "\x30\x00", "\x04\x01a", "\u{a0}\u{80}"],
        ),
    ];
    let mut all: Vec<(Duration, String)> = Vec::new();
    for (kind, prefix, tokens) in kinds {
        for token in *tokens {
            let token: Vec<u8> = token.chars().map(|c| c as u32 as u8).collect();
            let data = [*prefix, &token.repeat(LEN / token.len())].concat();
            let start = used();
            checks::walk_as(*kind, &data);
            all.push((used() - start, format!("{kind:?} {}", token.escape_ascii())));
        }
    }
    let texts = [
        "--b\r\n",
        "--b\r\nContent-Type: message/rfc822\r\n\r\n",
        "--",
        "--b",
        "\r",
        "\n",
        "a: b\r\n",
        ":",
        "=",
        "=\r\n",
        "=?utf-8?q?a?=",
        "=?",
        "?=",
        "begin 644 a\nM",
        "begin 644 a\n!\n",
        "begin 644 a\n#AAAA\n",
        "begin-base64 644 a\n",
        "=ybegin line=128 size=1 name=a\n",
        "=ybegin ",
        "=yend",
        "=ypart ",
        "(This file must be converted with BinHex 4.0)\n:",
        "(This file must be converted with BinHex",
        ":",
        "A",
        "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA ",
        "AAAA AAAA ",
        "-----BEGIN PGP MESSAGE-----\n\n",
        "\0",
        "data:,",
        "<script>",
        "(",
        "\"",
        "\\",
        ";",
        "a=b;",
        "From ",
        "From a\n",
        "\nFrom a\nFrom: b\nTo: c\n\n",
        "%PDF-",
        "PK\x03\x04",
        "PK\x05\x06",
        "Rar!\x1a\x07",
        "MSCF",
        "7z\u{bc}\u{af}\x27\x1c",
        "Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n",
        "Content-Type: text/plain\r\n",
        "Content-Transfer-Encoding: base64\r\n",
        "\u{ef}\u{be}\u{ad}\u{de}NullsoftInst",
        "begin ",
        "\nbegin",
        " ",
        "\t",
        "+-",
        "+A",
        "&#65;",
        "[",
        "«",
    ];
    for front in [
        "",
        "Content-Type: multipart/mixed; boundary=b\r\n\r\n",
        "Content-Type: multipart/mixed; boundary=b; boundary=bb; boundary=bbb; boundary=bbbb\r\n\r\n",
        "Content-Type: text/plain\r\n\r\n",
        "Content-Type: text/html; charset=utf-7\r\n\r\n",
        "Content-Transfer-Encoding: base64\r\n\r\n",
        "Content-Transfer-Encoding: x-uuencode\r\n\r\n",
        "Content-Transfer-Encoding: quoted-printable\r\n\r\n",
        "Content-Transfer-Encoding: x-q\r\n\r\n",
        "Subject: ",
        "Content-Type: ",
        "Content-Type: a/b; name=\"",
        "Content-Disposition: a; filename*0=",
        "Content-Type: multipart/mixed; boundary=",
    ] {
        for token in texts {
            let token: Vec<u8> = token.chars().map(|c| c as u32 as u8).collect();
            let data = [front.as_bytes(), &token.repeat(LEN / token.len())].concat();
            let start = used();
            checks::walk(ObjectKind::Message, &data);
            all.push((used() - start, format!("message {front:?} {}", token.escape_ascii())));
        }
    }
    for token in texts {
        let token: Vec<u8> = token.chars().map(|c| c as u32 as u8).collect();
        for front in ["", "x", "MZ", "\0", "GIF89a", "%!PS\n"] {
            let data = [front.as_bytes(), &token.repeat(LEN / token.len())].concat();
            let start = used();
            checks::walk(ObjectKind::File, &data);
            all.push((used() - start, format!("file {front:?} {}", token.escape_ascii())));
        }
    }
    let slow: Vec<_> = all.iter().filter(|(took, _)| *took > SOON).collect();
    assert!(slow.is_empty(), "{slow:#?}");
}

//! Containers as their own tools make them: Debian's `clamav-testfiles`, which all hold one small program, and those
//! beside this file in `fixtures`, which hold a mark.

#![expect(clippy::unwrap_used, reason = "a test outside of #[test] functions")]

mod mark;
#[path = "fixtures/rar.rs"]
mod rar;

use mark::{MARK, Mark, fixture};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use vscan_scan::limits::Limits;
use vscan_scan::object::{Engine, Hit, Object, Part, scan};
use vscan_scan::report::{Reason, Report, Verdict};
use vscan_scan::wire::ObjectKind;

/// Where Debian's package puts them.
const CLAMAV: &str = "/usr/share/clamav-testfiles";

/// Finds parts that are these bytes and nothing else, as a hash would.
struct Exactly(Vec<u8>);

impl Engine for Exactly {
    fn name(&self) -> &'static str {
        "exactly"
    }

    fn scan(&mut self, part: &Part<'_>, hits: &mut Vec<Hit>) -> Result<(), String> {
        if part.data == self.0 {
            hits.push("Exactly".into());
        }
        Ok(())
    }
}

fn report(engine: &mut dyn Engine, data: &[u8]) -> Report {
    let deadline = Instant::now() + Duration::from_secs(60);
    scan(engine, &Limits::default(), &Object::new(ObjectKind::File, data, deadline))
}

/// Programs packed or built by others: no containers of files that this scanner opens.
const NOT_CONTAINERS: &[&str] = &[
    // PE packers
    "clam-aspack.exe",
    "clam-fsg.exe",
    "clam-mew.exe",
    "clam-pespin.exe",
    "clam-petite.exe",
    "clam-upack.exe",
    "clam-upx.exe",
    "clam-wwpack.exe",
    "clam-yc.exe",
    // AutoIt
    "clam.ea05.exe",
    "clam.ea06.exe",
    // InstallShield
    "clam_IScab_ext.exe",
    "clam_IScab_int.exe",
    "clam_ISmsi_ext.exe",
    "clam_ISmsi_int.exe",
];

fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir);
    let entries =
        entries.unwrap_or_else(|e| panic!("{}: {e}: run `cargo xtask setup`", dir.display()));
    let mut files: Vec<PathBuf> = entries.map(|e| e.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn debians_containers_are_opened() {
    let program = std::fs::read(Path::new(CLAMAV).join("clam.exe")).unwrap();
    let mut engine = Exactly(program);
    let mut missed = Vec::new();
    for path in files(Path::new(CLAMAV)) {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let report = report(&mut engine, &std::fs::read(&path).unwrap());
        if report.verdict != Verdict::Infected && !NOT_CONTAINERS.contains(&&*name) {
            missed.push(format!("{name}: {} {:?}", report.kind, report.unread));
        }
    }
    assert!(missed.is_empty(), "{missed:#?}");
}

#[test]
fn what_each_tool_packs_is_found() {
    let tar = &["gnutar.tar", "pax.tar", "ustar.tar", "v7.tar"][..];
    let cpio = &["bin.cpio", "crc.cpio", "hpodc.cpio", "newc.cpio", "odc.cpio"];
    let sevenz =
        &["LZMA.7z", "LZMA2.7z", "PPMd.7z", "BZip2.7z", "Deflate.7z", "Copy.7z", "not-solid.7z"];
    let zip = &["BZip2.zip", "Deflate64.zip", "LZMA.zip", "PPMd.zip"];
    let arj = &["m0.arj", "m1.arj", "m2.arj", "m3.arj", "m4.arj"];
    let lha = &["lh0-0.lzh", "lh0-1.lzh", "lh0-2.lzh", "lh5.lzh"];
    let cab = &["mszip.cab", "stored.cab"];
    let long = "Directory/a mark with a long name.com";
    let rpm = ["w19.zstdio.rpm", "w7.lzdio.rpm", "w7.xzdio.rpm", "w9.bzdio.rpm", "w9.gzdio.rpm"];
    let cases =
        [tar, cpio, sevenz, zip, arj, lha, cab].concat().into_iter().map(|n| (n, "mark.com"));
    let cases = cases.chain(rpm.map(|n| (n, "./opt/mark.com"))).chain([
        ("BCJ2.7z", "mark.com"),
        ("big.Z", "compress"),
        ("big-12.Z", "compress"),
        ("frame.lz4", "lz4"),
        ("linked.lz4", "lz4"),
        ("legacy.lz4", "lz4"),
        ("xz.deb", "./opt/mark.com"),
        ("zstd.deb", "./opt/mark.com"),
        ("plain.iso.xz", "DIRECTOR/A_MARK_W.COM"),
        ("joliet.iso.xz", long),
        ("udf.iso.xz", "DIRECTOR/A_MARK_W.COM"),
        ("sparse-gnu.tar", "sparse.bin"),
        ("sparse-pax.tar", "sparse.bin"),
        ("object-streams.pdf", "object-"),
        ("rc4.pdf", "object-"),
        ("aes-128.pdf", "object-"),
        ("aes-256.pdf", "object-"),
    ]);
    let mut wrong = Vec::new();
    for (name, path) in cases {
        let report = report(&mut Mark, &fixture(name));
        let last = report.findings.first().and_then(|f| f.path.last());
        if !last.is_some_and(|l| l.starts_with(path)) || !report.unread.is_empty() {
            wrong.push((name, report.kind, report.findings, report.unread));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_view_of_an_image_is_read() {
    let decoded = |name| {
        let mut out = Vec::new();
        let packed = fixture(name);
        std::io::Read::read_to_end(&mut lzma_rust2::XzReader::new(&packed[..], true), &mut out)
            .unwrap();
        out
    };
    // UDF alone: without the marks of ISO 9660.
    let mut udf = decoded("udf.iso.xz");
    for sector in 16..20 {
        udf[sector * 2048 + 1..][..5].copy_from_slice(b"BEA01");
    }
    let report_udf = report(&mut Mark, &udf);
    let long = "Directory/a mark with a long name.com";
    assert_eq!(report_udf.findings[0].path.last().unwrap(), long, "{report_udf:?}");
    assert_eq!((&*report_udf.kind, report_udf.unread.len()), ("udf", 0), "{:?}", report_udf.unread);
    // Joliet alone: the first view's root directory is gone.
    let mut iso = decoded("joliet.iso.xz");
    iso[16 * 2048 + 156..][..34].fill(0);
    let report_iso = report(&mut Mark, &iso);
    assert_eq!(report_iso.findings[0].path.last().unwrap(), long, "{report_iso:?}");
}

#[test]
fn what_is_encrypted_is_said() {
    let passwords = ["wrong".to_owned(), "secret".to_owned()];
    for name in ["encrypted.7z", "encrypted-names.7z", "encrypted.arj", "encrypted.pdf"] {
        let data = fixture(name);
        let report = report(&mut Mark, &data);
        assert_eq!(report.verdict, Verdict::Unscannable, "{name} {report:?}");
        assert_eq!(report.unread[0].reason, Reason::Encrypted, "{name} {report:?}");
        if name == "encrypted.arj" {
            continue;
        }
        let deadline = Instant::now() + Duration::from_secs(60);
        let object = Object::new(ObjectKind::File, &data, deadline);
        let object = Object { passwords: &passwords, ..object };
        let report = scan(&mut Mark, &Limits::default(), &object);
        assert_eq!(report.verdict, Verdict::Infected, "{name} {report:?}");
        assert!(report.unread.is_empty(), "{name} {report:?}");
    }
}

#[test]
fn containers_cut_off_anywhere_are_never_clean() {
    for name in [
        "LZMA.7z",
        "m1.arj",
        "lh5.lzh",
        "mszip.cab",
        "newc.cpio",
        "big.Z",
        "w9.gzdio.rpm",
        "frame.lz4",
    ] {
        let whole = fixture(name);
        // Without its first bytes nobody takes it for what it was; its last ones may be padding.
        for len in (whole.len() / 4..whole.len() * 9 / 10).step_by(7) {
            let report = report(&mut Mark, &whole[..len]);
            assert_ne!(report.verdict, Verdict::Clean, "{name} cut at {len}");
        }
    }
}

#[test]
fn rar_archives_are_opened() {
    for (name, archive) in
        [("4", rar::version_4 as fn(&str, &[u8], bool) -> Vec<u8>), ("5", rar::version_5)]
    {
        let whole = archive("dir/mark.com", MARK, false);
        let found = report(&mut Mark, &whole);
        assert_eq!(found.findings[0].path.last().unwrap(), "dir/mark.com", "{name} {found:?}");
        assert!(found.unread.is_empty(), "{name} {found:?}");
        // A second one behind it, and nothing but zeros.
        let clean = archive("readme.txt", b"read me", false);
        let found = report(&mut Mark, &[&clean[..], &whole].concat());
        assert_eq!(found.verdict, Verdict::Infected, "{name} {found:?}");
        assert_eq!(found.findings[0].path[1], "behind the end", "{name} {found:?}");
        let padded = report(&mut Mark, &[&clean[..], &[0; 500]].concat());
        assert_eq!(padded.verdict, Verdict::Clean, "{name} {padded:?}");
        let encrypted = report(&mut Mark, &archive("mark.com", MARK, true));
        let reason = encrypted.unread.first().map(|u| u.reason);
        assert_eq!(reason, Some(Reason::Encrypted), "{name} {encrypted:?}");
        if name == "4" {
            // Its file goes on in the next volume: flag 2 of the block behind the first two.
            let mut split = whole.clone();
            split[20 + 3] |= 2;
            let len = usize::from(split[20 + 5]);
            let mut crc = flate2::Crc::new();
            crc.update(&split[22..20 + len]);
            split[20..22].copy_from_slice(&(crc.sum() as u16).to_le_bytes());
            let split = report(&mut Mark, &split);
            assert!(!split.unread.is_empty(), "{split:?}");
        }
        for len in 8..whole.len() - 20 {
            let report = report(&mut Mark, &whole[..len]);
            assert_ne!(report.verdict, Verdict::Clean, "{name} cut at {len}: {report:?}");
        }
    }
}

/// Names never decide, nor do the first bytes alone: what one reader takes for an archive is one.
#[test]
fn polyglots_are_read_as_all_that_they_are() {
    let program = std::fs::read(Path::new(CLAMAV).join("clam.exe")).unwrap();
    let picture = b"GIF89a\x01\0\x01\0\x80\0\0\xff\xff\xff\0\0\0!\xf9\x04\0\0\0\0\0,\0\0\0\0\x01\0\x01\0\0\x02\x02D\x01\0;";
    let carried: Vec<(&str, Vec<u8>)> = ["LZMA.7z", "mszip.cab", "PPMd.zip", "object-streams.pdf"]
        .map(|name| (name, fixture(name)))
        .into_iter()
        .chain([
            ("rar 4", rar::version_4("m", MARK, false)),
            ("rar 5", rar::version_5("m", MARK, false)),
        ])
        .collect();
    for (name, archive) in &carried {
        for front in
            [&program[..], picture, b"a line of text\n", b"%!PS-Adobe-3.0\n", &[0, 1, 2, 3]]
        {
            for behind in [&b""[..], b"and something behind it"] {
                let report = report(&mut Mark, &[front, archive, behind].concat());
                let front = String::from_utf8_lossy(&front[..4]);
                assert_eq!(report.verdict, Verdict::Infected, "{name} behind {front}: {report:?}");
            }
        }
    }
    // LHA's magic lies at offset 2: its first byte, the header's size, can be that of a program. So does tar's at 257
    // and that of an image at 32769.
    let mut lha = fixture("lh0-0.lzh");
    let header = usize::from(lha[0]);
    lha.splice(2 + header..2 + header, std::iter::repeat_n(0, usize::from(b'M') - header));
    lha[0] = b'M';
    lha[1] = lha[2..2 + usize::from(b'M')].iter().fold(0, |sum: u8, &b| sum.wrapping_add(b));
    // Which second byte comes out is chance; any of them is LHA's checksum.
    assert_eq!(report(&mut Mark, &lha).verdict, Verdict::Infected);
    let mut image = Vec::new();
    let packed = fixture("plain.iso.xz");
    std::io::Read::read_to_end(&mut lzma_rust2::XzReader::new(&packed[..], true), &mut image)
        .unwrap();
    image[..program.len()].copy_from_slice(&program);
    assert_eq!(report(&mut Mark, &image).verdict, Verdict::Infected);
    image[..5].copy_from_slice(b"%PDF-");
    assert_eq!(report(&mut Mark, &image).verdict, Verdict::Infected);
}

/// Files that are two things by their bytes, whichever a reader takes them for.
#[test]
fn pages_mails_and_archives_in_one_file_are_all_read() {
    let zip = fixture("PPMd.zip");
    let pdf = b"%PDF-1.4\n1 0 obj\n<< /Filter /ASCIIHexDecode >>\nstream\n";
    let hex: String = MARK.iter().map(|b| format!("{b:02x}")).collect();
    let hidden_pdf = [&pdf[..], hex.as_bytes(), b">\nendstream\nendobj\n"].concat();
    let clean_pdf = [&pdf[..], b"41>\nendstream\nendobj\n"].concat();
    let escaped: String = MARK.iter().map(|b| format!("%{b:02x}")).collect();
    let page = format!("<html><a href=\"data:text/html,{escaped}\">x</a></html>");
    let quoted: String = MARK.iter().map(|b| format!("={b:02X}=\r\n")).collect();
    let mail = "From: a@b\r\nTo: c@d\r\nMIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n";
    let hidden_mail = format!(
        "{mail}Content-Type: a/b\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n{quoted}\r\n--b--\r\n"
    );
    let picture = b"GIF89a\x01\0\x01\0\x80\0\0";
    let tar = {
        let mut tar = fixture("ustar.tar");
        // Without the mark: its first member alone, and the end.
        let size = tar[124..135].iter().fold(0, |n, &d| n * 8 + usize::from(d - b'0'));
        tar.truncate(512 + size.next_multiple_of(512));
        tar.resize(tar.len() + 1024, 0);
        tar
    };
    assert_eq!(report(&mut Mark, &tar).verdict, Verdict::Clean);
    assert_eq!(report(&mut Mark, &clean_pdf).verdict, Verdict::Clean);
    for (what, front, behind) in [
        ("a page before a PDF", &b"<html><p>hello</p></html>\n"[..], &hidden_pdf[..]),
        ("a PDF before a page", &clean_pdf, page.as_bytes()),
        ("a picture before a page", picture, page.as_bytes()),
        ("a PDF before a zip", &clean_pdf, &zip),
        ("a tar before a zip", &tar, &zip),
        ("a mail before a zip", format!("{mail}\r\nhello\r\n--b--\r\n").as_bytes(), &zip),
        ("a page in a mail", mail.as_bytes(), format!("\r\n{page}\r\n--b--\r\n").as_bytes()),
        ("a mail behind a page's comment", b"X-Page: <html>\r\n", hidden_mail.as_bytes()),
    ] {
        let report = report(&mut Mark, &[front, behind].concat());
        assert_eq!(report.verdict, Verdict::Infected, "{what}: {report:?}");
    }
}

/// What no decoder opens is said to be unread, with the name of its format.
#[test]
fn formats_without_a_decoder_are_never_clean() {
    for (magic, name) in [
        (&b"\x89LZO\0\r\n\x1a\n\x10\x40"[..], "lzop"),
        (b"xar!\0\x1c\0\x01", "xar"),
        (b"RE~^\x07\0", "rar"),
        (b"ISc(\0\0", "installshield-cab"),
        (b"\x1f\xa0\0", "compress"),
        (b"\x1f\x1e\0", "pack"),
        (b"1234567**ACE**\0", "ace"),
        (b"KWAJ\x88\xf0\x27\xd1\x03\0", "kwaj"),
        (b"MSWIM\0\0\0\xd0", "wim"),
        (b"hsqs\0\0", "squashfs"),
        (b"zPQ\0\0", "zpaq"),
        (b"StuffIt (c)1997", "stuffit"),
        (b"QFI\xfb\0\0", "qcow"),
        (b"KDMV\x01\0", "vmdk"),
    ] {
        let report = report(&mut Mark, magic);
        let reasons: Vec<_> = report.unread.iter().map(|u| u.reason).collect();
        assert_eq!((&*report.kind, &reasons[..]), (name, &[Reason::Unsupported][..]), "{report:?}");
        assert_eq!(report.verdict, Verdict::Unscannable);
    }
    // Methods of zip, and of a cabinet's folder, that nothing packs today.
    let mut zip = fixture("LZMA.zip");
    for method in [1, 2, 3, 4, 5, 97] {
        for at in (0..zip.len() - 30).rev() {
            if zip[at..].starts_with(b"PK\x03\x04") {
                zip[at + 8] = method;
            } else if zip[at..].starts_with(b"PK\x01\x02") {
                zip[at + 10] = method;
            }
        }
        let report = report(&mut Mark, &zip);
        assert_eq!(report.verdict, Verdict::Unscannable, "method {method}: {report:?}");
        assert!(report.unread.iter().all(|u| u.reason == Reason::Unsupported), "{report:?}");
    }
    let mut cab = fixture("mszip.cab");
    cab[36 + 6] = 2;
    let report = report(&mut Mark, &cab);
    assert!(report.unread.iter().any(|u| u.reason == Reason::Unsupported), "{report:?}");
}

#[test]
fn containers_inside_each_other_are_opened() {
    let mut nested = fixture("lh5.lzh");
    nested = rar::version_5("a.lzh", &nested, false);
    nested = rar::version_4("a.rar", &nested, false);
    let mut tar = fixture("v7.tar");
    tar.truncate(512);
    // Size and checksum of its first member anew.
    tar[124..136].copy_from_slice(format!("{:011o}\0", nested.len()).as_bytes());
    tar[148..156].fill(b' ');
    let sum: u32 = tar.iter().map(|&b| u32::from(b)).sum();
    tar[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    tar.extend(&nested);
    tar.resize(tar.len().next_multiple_of(512) + 1024, 0);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    std::io::Write::write_all(&mut gzip, &tar).unwrap();
    let report = report(&mut Mark, &gzip.finish().unwrap());
    assert_eq!(report.verdict, Verdict::Infected, "{report:?}");
    assert_eq!(report.findings[0].path[1..], ["gzip", "readme.txt", "a.rar", "a.lzh", "mark.com"]);
}

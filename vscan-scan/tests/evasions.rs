//! What is known to get past scanners, one named case each, through the whole of this one: the process, its sandbox and
//! the shipped rules. A case is found, or what was not read is said with its reason; none is clean.
//!
//! Further tricks with mail are in `mail/evasions.rs`, bombs of every kind (42.zip, overlapping members, the archive that
//! holds itself) in `bombs.rs`, pieces of files on their way through FTP in the end-to-end tests.

#![expect(clippy::unwrap_used, reason = "helpers of tests, outside of #[test] functions")]

#[expect(dead_code, reason = "shared with the test of the process, which uses all of it")]
mod common;
#[path = "fixtures/pack.rs"]
mod pack;
#[path = "fixtures/rar.rs"]
mod rar;

use common::{Scanner, Worker, eicar};
use pack::{crc32, deflate, gzip};
use vscan_scan::report::{Reason, Report, Verdict};
use vscan_scan::wire::ObjectKind::{self, File, Message};

/// What has to come of a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Want {
    /// It is infected.
    Found,
    /// It is unscannable, for this reason among others.
    Unread(Reason),
}
use Want::{Found, Unread};

/// What the trick is, how the object comes and is called, its bytes, and what has to come of it.
type Case = (&'static str, ObjectKind, &'static str, Vec<u8>, Want);

/// All cases in one worker, so that what one leaves behind would show in the next.
#[track_caller]
fn settle(cases: Vec<Case>) {
    let mut scanner = Scanner::shipped(1);
    let mut worker = scanner.worker();
    let mut wrong = Vec::new();
    for (trick, kind, name, data, want) in cases {
        let report = worker.scan(kind, name, &data);
        if !holds(&report, want) {
            wrong.push(format!(
                "{trick}: wanted {want:?}, got {} {:?} {:?} {:?}",
                report.kind, report.verdict, report.findings, report.unread
            ));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(still(&mut worker), Verdict::Clean);
}

fn holds(report: &Report, want: Want) -> bool {
    match want {
        Found => report.verdict == Verdict::Infected,
        Unread(reason) => {
            report.verdict == Verdict::Unscannable
                && report.unread.iter().any(|u| u.reason == reason)
        }
    }
}

/// The worker is alive and finds nothing in nothing.
fn still(worker: &mut Worker) -> Verdict {
    worker.scan(File, "readme.txt", b"read me\n").verdict
}

fn base64(data: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for line in data.chunks(57) {
        for three in line.chunks(3) {
            let byte = |i: usize| usize::from(three.get(i).copied().unwrap_or(0));
            let n = byte(0) << 16 | byte(1) << 8 | byte(2);
            let letter = |k: usize| char::from(LETTERS[n >> (18 - 6 * k) & 63]);
            out.extend((0..4).map(|k| if k > three.len() { '=' } else { letter(k) }));
        }
        out.push_str("\r\n");
    }
    out
}

/// The committed object of this name.
fn fixture(name: &str) -> Vec<u8> {
    let path = [env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/", name].concat();
    std::fs::read(path).unwrap()
}

/// Every byte escaped, in short lines.
fn quoted(data: &[u8]) -> String {
    data.chunks(16)
        .map(|line| line.iter().map(|b| format!("={b:02X}")).collect::<String>() + "=\r\n")
        .collect()
}

const TOP: &str = "From: a@example.org\r\nTo: b@example.org\r\nSubject: s\r\nMIME-Version: 1.0\r\n";

/// A message with a text and one attachment of these fields.
fn mail(fields: &str, body: &str) -> String {
    format!(
        "{TOP}Content-Type: multipart/mixed; boundary=\"=_b\"\r\n\r\n--=_b\r\nContent-Type: text/plain\r\n\r\n\
         Hello.\r\n--=_b\r\n{fields}\r\n\r\n{body}\r\n--=_b--\r\n"
    )
}

/// The attachment that nothing but the structure leads to: quoted-printable, in a part that is no text.
fn hidden() -> String {
    let fields = "Content-Type: a/b\r\nContent-Transfer-Encoding: quoted-printable";
    mail(fields, &quoted(&eicar()))
}

/// The usual attachment.
fn attached() -> String {
    mail(OCTETS, &base64(&eicar()))
}

const OCTETS: &str = "Content-Type: application/octet-stream; name=a.com\r\n\
                      Content-Transfer-Encoding: base64";

#[track_caller]
fn changed(whole: &str, from: &str, to: &str) -> Vec<u8> {
    assert!(whole.contains(from), "{from}");
    whole.replacen(from, to, 1).into_bytes()
}

/// A zip archive in its three pieces: members, directory, end record.
struct Zip {
    local: Vec<u8>,
    central: Vec<u8>,
    end: Vec<u8>,
}

impl Zip {
    fn of(members: &[(&str, &[u8])]) -> Self {
        let (mut local, mut central) = (Vec::new(), Vec::new());
        for (name, data) in members {
            let packed = deflate(data);
            let mut common = Vec::from(*b"\x14\0\0\0\x08\0\0\0\0\0");
            for field in [crc32(data), packed.len() as u32, data.len() as u32, name.len() as u32] {
                common.extend(field.to_le_bytes());
            }
            central.extend([&b"PK\x01\x02\x14\0"[..], &common, &[0; 10]].concat());
            central.extend((local.len() as u32).to_le_bytes());
            central.extend(name.as_bytes());
            local.extend([&b"PK\x03\x04"[..], &common, name.as_bytes(), &packed].concat());
        }
        let mut end = b"PK\x05\x06\0\0\0\0".to_vec();
        end.extend((members.len() as u16).to_le_bytes().repeat(2));
        end.extend((central.len() as u32).to_le_bytes());
        end.extend((local.len() as u32).to_le_bytes());
        end.extend([0, 0]);
        Self { local, central, end }
    }

    fn done(&self) -> Vec<u8> {
        [&self.local[..], &self.central, &self.end].concat()
    }
}

fn zip(name: &str) -> Vec<u8> {
    Zip::of(&[("readme.txt", b"read me"), (name, &eicar())]).done()
}

/// An OpenDocument text with an embedded object, encrypted or not.
fn odf(encrypted: bool) -> Vec<u8> {
    let data = if encrypted { "<manifest:encryption-data/>" } else { "" };
    let manifest = format!(
        "<?xml version=\"1.0\"?><manifest:manifest><manifest:file-entry manifest:full-path=\"content.xml\">{data}\
         </manifest:file-entry></manifest:manifest>"
    );
    let object = if encrypted { vec![0xa5; 68] } else { eicar() };
    Zip::of(&[
        ("mimetype", b"application/vnd.oasis.opendocument.text"),
        ("META-INF/manifest.xml", manifest.as_bytes()),
        ("Object 1", &object),
    ])
    .done()
}

/// The fifteen that were measured with ClamAV's daemon 1.4.6: it missed the first seven.
#[test]
fn the_fifteen_measured_evasions() {
    let eicar = eicar();
    let whole = Zip::of(&[("a.com", &eicar)]);
    let mut nested = whole.done();
    for level in 0..20 {
        nested = Zip::of(&[(&format!("{level}.zip"), &nested)]).done();
    }
    let mut deeper = nested.clone();
    for level in 20..40 {
        deeper = Zip::of(&[(&format!("{level}.zip"), &deeper)]).done();
    }
    let zeros = gzip(&vec![0; 450 << 20]);
    let names: Vec<String> = (0..10_001).map(|i| i.to_string()).collect();
    let many: Vec<(&str, &[u8])> = names.iter().map(|name| (&name[..], &b"x"[..])).collect();
    let inner = "Content-Type: message/rfc822\r\nContent-Transfer-Encoding: base64";
    let boundary = "boundary=\"=_b\"";
    let cases = vec![
        (
            "1. a zip without its end record",
            File,
            "a.zip",
            [&whole.local[..], &whole.central].concat(),
            Found,
        ),
        ("2. a zip without its directory", File, "a.zip", whole.local.clone(), Found),
        (
            "3. a boundary that is not the one used",
            Message,
            "",
            changed(&hidden(), boundary, "boundary=\"=_c\""),
            Found,
        ),
        (
            "4. two boundaries, the first false",
            Message,
            "",
            changed(&hidden(), boundary, "boundary=x; boundary=\"=_b\""),
            Found,
        ),
        (
            "4. two boundaries, the second false",
            Message,
            "",
            changed(&hidden(), boundary, "boundary=\"=_b\"; boundary=x"),
            Found,
        ),
        (
            "5. a boundary in pieces (RFC 2231)",
            Message,
            "",
            changed(&hidden(), boundary, "boundary*0=\"=\"; boundary*1=\"_b\""),
            Found,
        ),
        (
            "6. a message in base64",
            Message,
            "",
            mail(inner, &base64(hidden().as_bytes())).into_bytes(),
            Found,
        ),
        (
            "7. base64 padded in mid-stream",
            Message,
            "",
            mail(OCTETS, &[base64(&eicar[..10]), base64(&eicar[10..])].concat()).into_bytes(),
            Found,
        ),
        ("8. junk before a zip", File, "a.zip", [&b"junk "[..], &whole.done()].concat(), Found),
        (
            "9. base64 with junk in it",
            Message,
            "",
            mail(OCTETS, &base64(&eicar).replace('F', "!F")).into_bytes(),
            Found,
        ),
        (
            "10. two transfer encodings",
            Message,
            "",
            changed(
                &hidden(),
                ": quoted-printable",
                ": 7bit\r\nContent-Transfer-Encoding: quoted-printable",
            ),
            Found,
        ),
        (
            "11. an unknown transfer encoding",
            Message,
            "",
            changed(&attached(), ": base64", ": x-base64"),
            Found,
        ),
        ("12. no closing boundary", Message, "", changed(&hidden(), "\r\n--=_b--\r\n", ""), Found),
        ("13. zip in zip, 20 deep", File, "a.zip", nested, Found),
        ("13. zip in zip, 40 deep", File, "a.zip", deeper, Unread(Reason::Depth)),
        ("14. 450 MB of zeros", File, "a.gz", zeros, Unread(Reason::Ratio)),
        ("15. 10,001 members", File, "a.zip", Zip::of(&many).done(), Unread(Reason::Members)),
    ];
    settle(cases);
}

/// What every scanner must settle besides.
#[test]
fn what_is_ambiguous_is_read_in_every_way() {
    let eicar = eicar();
    let whole = Zip::of(&[("a.com", &eicar)]);
    let lying = |change: fn(&mut Zip)| {
        let mut zip = Zip::of(&[("a.com", &common::eicar())]);
        change(&mut zip);
        zip.done()
    };
    let sealed = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/encrypted/zip");
    let utf16 = |big: bool| {
        let mark: [u8; 2] = if big { [0xfe, 0xff] } else { [0xff, 0xfe] };
        let wide = |&b: &u8| if big { [0, b] } else { [b, 0] };
        [mark.to_vec(), eicar.iter().flat_map(wide).collect()].concat()
    };
    let flood_of_fields = "X-Flood: a\r\n".repeat(2000);
    let long_field = format!("X-Flood: {}\r\n", "a".repeat(2 << 20));
    let flood = format!("{TOP}{flood_of_fields}{}", &hidden()[TOP.len()..]);
    let long = format!("{TOP}{long_field}{}", &hidden()[TOP.len()..]);
    let harmless = |fields: &str| format!("{TOP}{fields}\r\nHello.\r\n").into_bytes();
    let parts = "--b\r\n\r\nx\r\n".repeat(20_000);
    let parts = format!("{TOP}Content-Type: multipart/mixed; boundary=b\r\n\r\n{parts}--b--\r\n");
    let partial = "Content-Type: message/partial; id=a; number=1; total=2";
    // A dictionary of 1.5 GiB in an LZMA2 property byte, and a window of 2 GiB in a frame's header.
    let mut xz = fixture("plain.iso.xz")[..24].to_vec();
    let at = xz.windows(2).position(|w| w == [0x21, 0x01]).unwrap();
    xz[at + 2] = 39;
    let crc = crc32(&xz[12..20]);
    xz[20..24].copy_from_slice(&crc.to_le_bytes());
    let zstd = b"\x28\xb5\x2f\xfd\x00\xa8\x01\0\0x".to_vec();
    let named = |name: &str| mail(&OCTETS.replace("name=a.com", name), &base64(&common::eicar()));
    let cases = vec![
        (
            "the directory calls it stored, the member deflated",
            File,
            "a.zip",
            lying(|z| z.central[10] = 0),
            Found,
        ),
        (
            "the member calls itself stored, the directory deflated",
            File,
            "a.zip",
            lying(|z| z.local[8] = 0),
            Found,
        ),
        ("the directory calls it encrypted", File, "a.zip", lying(|z| z.central[8] = 1), Found),
        ("the member calls itself encrypted", File, "a.zip", lying(|z| z.local[6] = 1), Found),
        (
            "the directory calls it empty",
            File,
            "a.zip",
            lying(|z| z.central[20..28].fill(0)),
            Found,
        ),
        ("the member calls itself empty", File, "a.zip", lying(|z| z.local[18..26].fill(0)), Found),
        (
            "the directory gives another name",
            File,
            "a.zip",
            lying(|z| *z.central.last_mut().unwrap() = b'X'),
            Found,
        ),
        (
            "a second archive behind the first",
            File,
            "a.zip",
            [Zip::of(&[("b", b"b")]).done(), whole.done()].concat(),
            Found,
        ),
        (
            "a second archive before the last",
            File,
            "a.zip",
            [whole.done(), Zip::of(&[("b", b"b")]).done()].concat(),
            Found,
        ),
        (
            "a zip with junk behind it",
            File,
            "a.zip",
            [&whole.done()[..], &[b'x'; 70_000]].concat(),
            Found,
        ),
        (
            "an archive that is encrypted",
            File,
            "a.zip",
            std::fs::read(sealed).unwrap(),
            Unread(Reason::Encrypted),
        ),
        (
            "a name in pieces (RFC 2231)",
            Message,
            "",
            named("name*0=\"a.\"; name*1=com").into_bytes(),
            Found,
        ),
        (
            "a name in another alphabet (RFC 2231)",
            Message,
            "",
            named("name*=utf-8''a%2Ecom").into_bytes(),
            Found,
        ),
        (
            "a name as an encoded word (RFC 2047)",
            Message,
            "",
            named("name=\"=?utf-8?b?YS5jb20=?=\"").into_bytes(),
            Found,
        ),
        ("a NUL in a name", Message, "", named("name=\"a.txt\0.com\"").into_bytes(), Found),
        (
            "a document whose members are encrypted, not its archive",
            File,
            "a.odt",
            odf(true),
            Unread(Reason::Encrypted),
        ),
        ("a document with an object in it", File, "a.odt", odf(false), Found),
        ("a NUL in a member's name", File, "a.zip", zip("a.txt\0.com"), Found),
        ("a name from right to left", File, "a.zip", zip("a\u{202e}txt.com"), Found),
        ("a name that leads out of the directory", File, "a.zip", zip("../../../a.com"), Found),
        ("a name without a letter", File, "a.zip", zip(""), Found),
        ("more header fields than are read", Message, "", flood.into_bytes(), Found),
        ("a longer header than is read", Message, "", long.into_bytes(), Found),
        (
            "more header fields than are read, and nothing else",
            Message,
            "",
            harmless(&flood_of_fields),
            Unread(Reason::Headers),
        ),
        (
            "a longer header than is read, and nothing else",
            Message,
            "",
            harmless(&long_field),
            Unread(Reason::Headers),
        ),
        ("more parts than are read", Message, "", parts.into_bytes(), Unread(Reason::Members)),
        (
            "a fragment of a message",
            Message,
            "",
            mail(partial, "x").into_bytes(),
            Unread(Reason::Partial),
        ),
        ("a script in UTF-16, little endian", File, "a.js", utf16(false), Found),
        ("a script in UTF-16, big endian", File, "a.js", utf16(true), Found),
        ("an xz file with a huge dictionary", File, "a.xz", xz, Unread(Reason::Memory)),
        ("a zstd frame with a huge window", File, "a.zst", zstd, Unread(Reason::Memory)),
    ];
    settle(cases);
}

/// Names never decide what is parsed, nor do labels.
#[test]
fn names_and_labels_that_lie() {
    let eicar = eicar();
    let zip = zip("a.com");
    let labelled = |label: &str, data: &[u8]| {
        let fields = format!("Content-Type: {label}\r\nContent-Transfer-Encoding: base64");
        mail(&fields, &base64(data)).into_bytes()
    };
    let cases = vec![
        ("a program called a picture", File, "a.jpg", eicar.clone(), Found),
        ("an archive called a text", File, "a.txt", zip.clone(), Found),
        ("an archive called a picture", File, "a.gif", gzip(&eicar), Found),
        ("an archive called another", File, "a.rar", zip.clone(), Found),
        ("a member without an ending", File, "a", gzip(&Zip::of(&[("x", &eicar)]).done()), Found),
        ("a message called a document", File, "a.doc", hidden().into_bytes(), Found),
        (
            "a message with a byte that no text has",
            File,
            "a.eml",
            changed(&hidden(), "Subject: s", "Subject: \x01\x7f\0"),
            Found,
        ),
        (
            "a message behind 60 KB of other fields",
            File,
            "a.eml",
            [&b"X-A: b\r\n".repeat(8000)[..], hidden().as_bytes()].concat(),
            Found,
        ),
        (
            "a message whose lines end in CR",
            File,
            "a.eml",
            hidden().replace("\r\n", "\r").into_bytes(),
            Found,
        ),
        (
            "a message of one field",
            File,
            "a.eml",
            hidden().into_bytes()[hidden().find("Content-Type").unwrap()..].to_vec(),
            Found,
        ),
        (
            "a message with such a byte, attached",
            Message,
            "",
            labelled(
                "application/octet-stream",
                &changed(&hidden(), "Subject: s", "Subject: \x01"),
            ),
            Found,
        ),
        (
            "a page with bytes that no text has",
            File,
            "a.html",
            format!(
                "\0\x01\x7f<a href=\"data:a/b;base64,{}\">",
                base64(&eicar).replace("\r\n", "")
            )
            .into_bytes(),
            Found,
        ),
        ("an archive labelled a picture", Message, "", labelled("image/png", &zip), Found),
        ("an archive labelled a text", Message, "", labelled("text/plain", &zip), Found),
        ("an archive labelled a message", Message, "", labelled("message/rfc822", &zip), Found),
        (
            "a message labelled a picture",
            Message,
            "",
            labelled("image/png", hidden().as_bytes()),
            Found,
        ),
    ];
    settle(cases);
}

/// An ARJ archive of one stored member.
fn arj(data: &[u8]) -> Vec<u8> {
    let header = |kind: u8, size: u32| {
        let mut basic = vec![30, 11, 1, 2, 16, 0, kind, 0, 0, 0, 0, 0];
        basic.extend([size.to_le_bytes(), size.to_le_bytes()].concat());
        basic.resize(30, 0);
        basic.extend(b"a.com\0\0");
        let crc = crc32(&basic);
        let len = basic.len() as u16;
        [b"\x60\xea", &len.to_le_bytes()[..], &basic, &crc.to_le_bytes(), &[0, 0]].concat()
    };
    [&header(2, 0)[..], &header(0, data.len() as u32), data, b"\x60\xea\0\0"].concat()
}

/// Each type before and behind each other: whichever a reader takes the file for, the archive in it is opened.
#[test]
fn two_types_in_one_file() {
    let eicar = eicar();
    let picture = b"GIF89a\x01\0\x01\0\x80\0\0\xff\xff\xff\0\0\0!\xf9\x04\0\0\0\0\0,\0\0\0\0\x01\0\x01\0\0\x02\x02D\x01\0;";
    let program = std::fs::read("/bin/true").unwrap();
    let document = std::fs::read("/usr/share/clamav-testfiles/clam.ppt").unwrap();
    let hex: String = eicar.iter().map(|b| format!("{b:02x}")).collect();
    let pdf = |hex: &str| {
        format!(
            "%PDF-1.4\n1 0 obj\n<< /Filter /ASCIIHexDecode >>\nstream\n{hex}>\nendstream\nendobj\n"
        )
    };
    let letter = format!("{TOP}\r\nHello.\r\n");
    let clean_zip = Zip::of(&[("b", b"b")]).done();
    let mut fronts: Vec<(&str, Vec<u8>)> = vec![
        ("nothing", Vec::new()),
        ("a picture", picture.to_vec()),
        ("a program", program),
        ("a Windows program", [&b"MZ"[..], &[0x90; 600]].concat()),
        ("a document", document),
        ("a PDF", pdf("41").into_bytes()),
        ("a page", b"<html><p>Hello.</p></html>\n".to_vec()),
        ("a text", b"Hello.\n".to_vec()),
        ("an RTF text", b"{\\rtf1 Hello.}".to_vec()),
        ("a letter", letter.into_bytes()),
        ("a mail", mail("Content-Type: text/plain", "Hello.").into_bytes()),
        ("a zip", clean_zip),
        ("a gzip file", gzip(b"Hello.")),
        ("a rar", rar::version_4("b", b"b", false)),
        ("another rar", rar::version_5("b", b"b", false)),
        ("noise", vec![0, 1, 2, 3, 0xfe]),
    ];
    let behind: Vec<(&str, Vec<u8>)> = vec![
        ("a zip", zip("a.com")),
        ("a rar", rar::version_4("a.com", &eicar, false)),
        ("another rar", rar::version_5("a.com", &eicar, false)),
        ("a PDF", pdf(&hex).into_bytes()),
        ("an ARJ archive", arj(&eicar)),
    ];
    // Containers of every kind: what they hold is nothing to the shipped rules.
    for dir in
        [concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures"), "/usr/share/clamav-testfiles"]
    {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name: &str = Box::leak(path.display().to_string().into_boxed_str());
            fronts.push((name, std::fs::read(path).unwrap()));
        }
    }
    for name in ["plain.iso.xz", "joliet.iso.xz", "udf.iso.xz"] {
        let packed = fixture(name);
        let mut image = Vec::new();
        let mut reader = lzma_rust2::XzReader::new(&packed[..], true);
        std::io::Read::read_to_end(&mut reader, &mut image).unwrap();
        fronts.push((name.trim_end_matches(".xz"), image));
    }
    let mut cases = Vec::new();
    for (front, first) in &fronts {
        for (name, second) in &behind {
            // A viewer looks for a PDF in the first 1024 bytes only.
            if *name == "a PDF" && (first.len() > 1024 || front.ends_with(".pdf")) {
                continue;
            }
            let trick: &'static str = Box::leak(format!("{front} before {name}").into_boxed_str());
            cases.push((trick, File, "a", [&first[..], second].concat(), Found));
        }
    }
    settle(cases);
}

//! Messages, well-formed and not.

use super::encoding;
use crate::limits::Limits;
use crate::object::tests::{MARK, Zip, gzip, reasons, scan_with};
use crate::report::{Reason, Report, Verdict};
use crate::wire::ObjectKind;

fn scan(message: &[u8]) -> Report {
    scan_with(&Limits::default(), ObjectKind::Message, message)
}

pub(super) fn base64(data: &[u8]) -> String {
    encoding::to_base64(data, 76, "\r\n") + "\r\n"
}

pub(super) fn qp(data: &[u8]) -> String {
    data.iter()
        .enumerate()
        .map(|(i, b)| format!("{}={b:02X}", if i % 20 == 19 { "=\r\n" } else { "" }))
        .collect()
}

fn uu(data: &[u8]) -> String {
    super::uu::encode("m.com", data, "\r\n")
}

pub(super) fn mime(fields: &str, body: &str) -> String {
    format!(
        "From: a@example.org\r\nTo: b@example.org\r\nSubject: s\r\nMIME-Version: 1.0\r\n{fields}\r\n\r\n{body}"
    )
}

/// A message with a message in it.
pub(super) fn forwarded(inner: &str) -> String {
    let outer = attached("Content-Type: message/rfc822", "INNER")
        .replace("=_b", &format!("=_{}", inner.len()));
    outer.replace("INNER", inner)
}

/// A message with a text and an attachment of these fields and this body.
pub(super) fn attached(fields: &str, body: &str) -> String {
    mime(
        "Content-Type: multipart/mixed; boundary=\"=_b\"",
        &format!(
            "Preamble.\r\n--=_b\r\nContent-Type: text/plain\r\n\r\nHello.\r\n--=_b\r\n{fields}\r\n\r\n{body}\r\n--=_b--\r\n"
        ),
    )
}

pub(super) const OCTETS: &str =
    "Content-Type: application/octet-stream; name=m.com\r\nContent-Transfer-Encoding: base64";

#[track_caller]
fn found(what: &str, message: &str) -> Report {
    let report = scan(message.as_bytes());
    assert_eq!(report.verdict, Verdict::Infected, "{what}: {report:#?}\n{message}");
    report
}

#[test]
fn marks_are_found_however_they_are_encoded() {
    let mark = String::from_utf8(MARK.to_vec()).unwrap();
    let report = found("base64", &attached(OCTETS, &base64(MARK)));
    assert_eq!(report.findings[0].path, ["message", "m.com"]);
    assert!(report.unread.is_empty(), "{report:?}");
    found("plain body", &mime("X-A: b", &mark));
    found("no MIME", &format!("From: a@b.c\nSubject: s\n\n{mark}"));
    found(
        "quoted-printable",
        &attached(
            "Content-Type: text/plain\r\nContent-Transfer-Encoding: Quoted-Printable",
            &qp(MARK),
        ),
    );
    found(
        "uuencode in text",
        &mime("Content-Type: text/plain", &format!("see:\r\n{}\r\nbye", uu(MARK))),
    );
    found(
        "uuencode as encoding",
        &attached(
            "Content-Type: application/x\r\nContent-Transfer-Encoding: x-uuencode",
            &uu(MARK),
        ),
    );
    found(
        "uuencode, base64 form",
        &mime("X-A: b", &format!("begin-base64 644 m\r\n{}====\r\n", base64(MARK))),
    );
    let report = found("attached message", &forwarded(&attached(OCTETS, &base64(MARK))));
    assert_eq!(report.findings[0].path, ["message", "message", "m.com"]);
    found(
        "message in base64",
        &attached(
            "Content-Type: message/rfc822\r\nContent-Transfer-Encoding: base64",
            &base64(attached(OCTETS, &base64(MARK)).as_bytes()),
        ),
    );
    found(
        "digest",
        &mime(
            "Content-Type: multipart/digest; boundary=d",
            &format!("--d\r\n\r\n{}\r\n--d--\r\n", attached(OCTETS, &base64(MARK))),
        ),
    );
    let zip = Zip::default().deflated("m.com", MARK).done();
    let report = found(
        "zip",
        &attached(
            "Content-Type: application/zip; name=\"a b.zip\"\r\nContent-Transfer-Encoding: base64",
            &base64(&zip),
        ),
    );
    assert_eq!(report.findings[0].path, ["message", "a b.zip", "m.com"]);
    found("gzip", &attached(OCTETS, &base64(&gzip(MARK))));
    found(
        "eight levels",
        &(0..8).fold(attached(OCTETS, &base64(MARK)), |inner, _| forwarded(&inner)),
    );
    found("LF only", &attached(OCTETS, &base64(MARK)).replace("\r\n", "\n"));
    found("CR only", &attached(OCTETS, &base64(MARK)).replace("\r\n", "\r"));
}

#[test]
fn names_are_those_that_mail_readers_show() {
    for (fields, name) in [
        ("Content-Type: a/b; name=\"plain.com\"", "plain.com"),
        (
            "Content-Type: a/b; name=type.com\r\nContent-Disposition: attachment; filename=disposition.com",
            "disposition.com",
        ),
        (
            "Content-Type: a/b\r\nContent-Disposition: attachment;\r\n\tfilename*0=\"long\";\r\n\tfilename*1=\"er.com\"",
            "longer.com",
        ),
        (
            "Content-Type: a/b\r\nContent-Disposition: attachment; filename*=utf-8''m%C3%BC.com",
            "m\u{fc}.com",
        ),
        ("Content-Type: a/b; name=\"=?utf-8?B?bcO8LmNvbQ==?=\"", "m\u{fc}.com"),
    ] {
        let message =
            attached(&format!("{fields}\r\nContent-Transfer-Encoding: base64"), &base64(MARK));
        let report = found(name, &message);
        assert_eq!(report.findings[0].path.last().unwrap(), name);
    }
}

#[test]
fn malformed_messages_hide_nothing() {
    let whole = attached(OCTETS, &base64(MARK));
    let replaced = |from: &str, to: &str| {
        assert!(whole.contains(from), "{from}");
        whole.replacen(from, to, 1)
    };
    let boundary = "boundary=\"=_b\"";
    found("mismatched boundary", &replaced(boundary, "boundary=\"other\""));
    found("no boundary", &replaced("; boundary=\"=_b\"", ""));
    found("two boundaries, first right", &replaced(boundary, "boundary=\"=_b\"; boundary=\"x\""));
    found("two boundaries, last right", &replaced(boundary, "boundary=\"x\"; boundary=\"=_b\""));
    found(
        "two type fields",
        &replaced("Content-Type: multi", "Content-Type: text/plain\r\nContent-Type: multi"),
    );
    found(
        "two type fields, last wrong",
        &replaced("; boundary=\"=_b\"", "; boundary=\"=_b\"\r\nContent-Type: text/plain"),
    );
    found("boundary in pieces", &replaced(boundary, "boundary*0=\"=\"; boundary*1=\"_b\""));
    found("boundary extended", &replaced(boundary, "boundary*=us-ascii''%3D_b"));
    found("boundary folded", &replaced(boundary, "\r\n\tboundary =\r\n\t\"=_b\""));
    found("no closing boundary", whole.trim_end().strip_suffix("--=_b--").unwrap());
    found("delimiter with a tail", &whole.replace("--=_b\r\n", "--=_bx\r\n"));
    found(
        "part behind the end",
        &whole.replacen("\r\n--=_b\r\n", "\r\n--=_b--\r\n", 1).replacen(
            "Preamble.\r\n--=_b--",
            "Preamble.\r\n--=_b",
            1,
        ),
    );
    found("space before the colon", &whole.replace("Encoding:", "Encoding :"));
    found("line that is no field", &replaced("MIME-Version", "this is no field\r\nMIME-Version"));
    found(
        "no blank line after the fields of a part",
        &replaced("Hello.\r\n--=_b\r\n", "--=_b\r\n"),
    );
    found(
        "junk in base64",
        &whole.replacen(&base64(MARK)[..8], &format!("{}!*#", &base64(MARK)[..8]), 1),
    );
    let padded = format!("{}{}", base64(&MARK[..10]), base64(&MARK[10..]));
    found("padding in mid-stream", &attached(OCTETS, &padded));
    found("unknown encoding", &whole.replace(": base64", ": x-unknown"));
    found(
        "two encodings",
        &whole.replace(": base64", ": 7bit\r\nContent-Transfer-Encoding: base64"),
    );
    found("encoding with comment", &whole.replace(": base64", ": (really) BASE64;"));
    found(
        "encoding called 7bit in text",
        &whole.replace(": base64", ": 7bit").replace("application/octet-stream", "text/plain"),
    );
    found("in the preamble", &replaced("Preamble.", &base64(MARK)));
    found("in the epilogue", &format!("{whole}{}", base64(MARK)));
    found("multipart in base64", &mime(
        "Content-Type: multipart/mixed; boundary=i\r\nContent-Transfer-Encoding: base64",
        &base64(format!("Content-Type: multipart/mixed; boundary=i\r\n\r\n--i\r\n{OCTETS}\r\n\r\n{}\r\n--i--", base64(MARK)).as_bytes()),
    ));
    found(
        "data URI",
        &mime(
            "Content-Type: text/html",
            &format!("<a href=\"data:a/b;base64,{}\">", base64(MARK).replace("\r\n", "")),
        ),
    );
    let utf16: Vec<u8> = MARK.iter().flat_map(|&b| [b, 0]).collect();
    found(
        "UTF-16",
        &attached(
            "Content-Type: text/plain; charset=utf-16le\r\nContent-Transfer-Encoding: base64",
            &base64(&utf16),
        ),
    );
    found("UTF-16 with a mark", &attached(OCTETS, &base64(&[&[0xff, 0xfe][..], &utf16].concat())));
}

#[test]
fn ordinary_messages_are_clean_and_read_whole() {
    let message = attached(
        "Content-Type: image/png; name=x.png\r\nContent-Transfer-Encoding: base64",
        &base64(&[0x89; 500]),
    );
    let letter = "Hello,\r\n\r\nbegin 7 days before the start. begin 644 of it.\r\nbegin 644 files\r\n\
                  Best regards\r\n-- \r\nMe, https://example.org/a/very/long/path/of/words/that/goes/on/and/on/and/on/over/eighty/letters\r\n";
    let footer = attached(
        OCTETS,
        &format!(
            "{}\r\n______\r\nThis list is run by people who like footers, and plain text.",
            base64(&[7; 500])
        ),
    );
    for (what, message) in [
        ("attachment", message),
        (
            "letter",
            mime(
                "Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit",
                letter,
            ),
        ),
        ("footer", footer),
        ("odd encoding word", mime("Content-Transfer-Encoding: 8-bit", letter)),
        ("empty body", mime("X-A: b", "")),
        ("only a header", "From: a@b.c\r\nSubject: nothing".to_owned()),
        ("empty", String::new()),
    ] {
        let report = scan(message.as_bytes());
        assert_eq!(report.verdict, Verdict::Clean, "{what}: {report:#?}");
    }
}

#[test]
fn what_cannot_be_read_is_said_with_its_reason() {
    let text =
        "This is plain text, with words and commas; not base64 at all! Really: not (a bit) of it.";
    let report = scan(attached(OCTETS, text).as_bytes());
    assert_eq!(reasons(&report), [Reason::Malformed], "{report:?}");
    let report = scan(
        attached("Content-Type: message/partial; id=\"a\"; number=1; total=2", "From: x")
            .as_bytes(),
    );
    assert_eq!(reasons(&report), [Reason::Partial]);
    let elsewhere =
        "Content-Type: message/external-body; access-type=ftp; site=example.org; name=x";
    let report = scan(attached(elsewhere, "Content-Type: a/b\r\n\r\n").as_bytes());
    assert_eq!(reasons(&report), [Reason::External]);
    let encrypted = Zip::default().member("m", 1, 8, b"cipher text", 11).done();
    let report = scan(attached(OCTETS, &base64(&encrypted)).as_bytes());
    assert_eq!(reasons(&report), [Reason::Encrypted]);
    assert!(!report.only_encrypted_mail());
}

fn der(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![tag, 0x82];
    out.extend((body.len() as u16).to_be_bytes());
    out.extend(body);
    out
}

fn cms(kind: u8, inner: &[u8]) -> Vec<u8> {
    let oid = [0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, kind];
    der(0x30, &[&oid[..], &der(0xa0, inner)].concat())
}

#[test]
fn encrypted_mail_is_told_by_its_structure() {
    const SMIME: &str = "Content-Type: application/pkcs7-mime; smime-type=enveloped-data; name=smime.p7m\r\nContent-Transfer-Encoding: base64";
    let report = scan(attached(SMIME, &base64(&cms(3, b"cipher text"))).as_bytes());
    assert_eq!(reasons(&report), [Reason::EncryptedMail]);
    assert!(report.only_encrypted_mail());
    // The label alone encrypts nothing.
    found("called encrypted", &attached(SMIME, &base64(MARK)));

    // The whole message in armour (RFC 3156) or a part of a text.
    let armour = "-----BEGIN PGP MESSAGE-----\r\n\r\nhQEMA0RndMKEQoZvAQgAmE==\r\n=abcd\r\n-----END PGP MESSAGE-----\r\n";
    let report = scan(
        attached("Content-Type: application/octet-stream; name=encrypted.asc", armour).as_bytes(),
    );
    assert!(report.only_encrypted_mail(), "{report:?}");
    let report = scan(mime("Content-Type: text/plain", &format!("Hi,\r\n{armour}bye")).as_bytes());
    assert!(report.only_encrypted_mail(), "{report:?}");
    // Armour around data that is no message.
    let armour = |data: &[u8]| {
        let body = base64(data);
        mime(
            "X-A: b",
            &format!("-----BEGIN PGP MESSAGE-----\r\n\r\n{body}-----END PGP MESSAGE-----"),
        )
    };
    let report = scan(armour(b"\xcdjust a user").as_bytes());
    assert!(
        reasons(&report).contains(&Reason::Unsupported) && !report.only_encrypted_mail(),
        "{report:?}"
    );
}

#[test]
fn pgp_that_is_only_signed_or_compressed_is_opened() {
    let armour = |data: &[u8]| {
        let body = base64(data);
        mime(
            "X-A: b",
            &format!("-----BEGIN PGP MESSAGE-----\r\n\r\n{body}-----END PGP MESSAGE-----"),
        )
    };
    let literal = |mark: &[u8]| [&[b'b', 1, b'x', 0, 0, 0, 0][..], mark].concat();
    let body = literal(MARK);
    let new = [&[0xcb, body.len() as u8][..], &body].concat();
    let old = [&[0xad, 0, body.len() as u8][..], &body].concat();
    // Parts of 32 and 1 bytes, then the rest.
    let partial = [
        &[0xcb, 0xe5][..],
        &body[..32],
        &[0xe0],
        &body[32..33],
        &[body.len() as u8 - 33],
        &body[33..],
    ]
    .concat();
    for (what, message) in [("new", &new), ("old", &old), ("partial", &partial)] {
        let report = found(what, &armour(message));
        assert!(report.unread.is_empty(), "{what}: {report:?}");
        // Between signatures, compressed, as gpg writes it.
        let signed = [&[0xc4, 2, 3, 0][..], message, &[0xc2, 2, 4, 0]].concat();
        let mut encoder =
            flate2::write::DeflateEncoder::new(vec![0xa3, 1], flate2::Compression::default());
        std::io::Write::write_all(&mut encoder, &signed).unwrap();
        found(what, &armour(&encoder.finish().unwrap()));
    }
    let clear = format!(
        "-----BEGIN PGP SIGNED MESSAGE-----\r\nHash: SHA256\r\n\r\nsee\r\n{}-----BEGIN PGP SIGNATURE-----\r\n",
        uu(MARK)
    );
    found("clear signature", &mime("X-A: b", &clear));
}

#[test]
fn signed_mail_is_opened() {
    const SMIME: &str = "Content-Type: application/pkcs7-mime; smime-type=signed-data\r\nContent-Transfer-Encoding: base64";
    let inner = format!("{OCTETS}\r\n\r\n{}", base64(MARK));
    let data = [0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x01];
    let content = |octets: &[u8]| der(0x30, &[&data[..], &der(0xa0, octets)].concat());
    let primitive = content(&der(0x04, inner.as_bytes()));
    found("signed", &attached(SMIME, &base64(&cms(2, &primitive))));
    // In pieces and of indefinite length, as streaming signers write it.
    let (a, b) = inner.as_bytes().split_at(40);
    let pieces = [&[0x24, 0x80][..], &der(0x04, a), &der(0x04, b), &[0, 0]].concat();
    let indefinite = [&[0x30, 0x80][..], &data, &[0xa0, 0x80], &pieces, &[0, 0, 0, 0]].concat();
    found("signed in pieces", &attached(SMIME, &base64(&cms(2, &indefinite))));
    // Compressed (RFC 3274).
    let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
    std::io::Write::write_all(&mut zlib, inner.as_bytes()).unwrap();
    let packed = content(&der(0x04, &zlib.finish().unwrap()));
    let oid = [0x06, 0x0b, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x10, 0x01, 9];
    let compressed = der(0x30, &[&oid[..], &der(0xa0, &packed)].concat());
    let report = found("compressed", &attached(SMIME, &base64(&compressed)));
    assert!(report.unread.is_empty(), "{report:?}");
    // A detached signature has no content and hides none.
    let certificates = der(0xa0, &der(0x30, b"a certificate"));
    let detached = cms(2, &[der(0x30, &data), certificates].concat());
    let report = scan(attached("Content-Type: application/pkcs7-signature; name=smime.p7s\r\nContent-Transfer-Encoding: base64", &base64(&detached)).as_bytes());
    assert_eq!(report.verdict, Verdict::Clean, "{report:?}");
}

#[test]
fn limits_hold_and_are_said() {
    let limits = |limits: Limits, message: String| {
        let report = scan_with(&limits, ObjectKind::Message, message.as_bytes());
        assert_eq!(report.verdict, Verdict::Unscannable, "{report:?}");
        reasons(&report)
    };
    let deep = (0..50).fold("a: b\r\n\r\nx".to_owned(), |inner, _| forwarded(&inner));
    assert!(limits(Limits::default(), deep).contains(&Reason::Depth));
    let many = mime("Content-Type: multipart/mixed; boundary=b", &"--b\r\n\r\nx\r\n".repeat(200));
    assert_eq!(limits(Limits { members: 100, ..Limits::default() }, many), [Reason::Members]);
    assert_eq!(limits(Limits::default(), mime(&"X-A: b\r\n".repeat(2000), "")), [Reason::Headers]);
    assert_eq!(
        limits(Limits::default(), mime(&format!("X-A: {}", "b".repeat(2 << 20)), "")),
        [Reason::Headers]
    );
    let boundaries: String = (0..9).map(|i| format!("; boundary=b{i}")).collect();
    assert_eq!(
        limits(Limits::default(), mime(&format!("Content-Type: multipart/mixed{boundaries}"), "")),
        [Reason::Headers]
    );
    let flood = mime(&"Content-Type: text/plain\r\n".repeat(100), "");
    assert_eq!(limits(Limits::default(), flood), [Reason::Headers]);
}

#[test]
fn files_that_are_messages_are_opened() {
    let message = attached(OCTETS, &base64(MARK));
    let file = |data: &str| scan_with(&Limits::default(), ObjectKind::File, data.as_bytes());
    let report = file(&message);
    assert_eq!((report.verdict, &*report.kind), (Verdict::Infected, "message"));
    let report = file(&format!(
        "From a@b Mon Jan  1 00:00:00\n{}\nFrom a@b Mon Jan  1 00:00:00\n{message}",
        mime("X-A: b", "clean\r\n")
    ));
    assert_eq!((report.verdict, &*report.kind), (Verdict::Infected, "mbox"));
    let report = file(&uu(MARK));
    assert_eq!((report.verdict, &*report.kind), (Verdict::Infected, "uuencoded"));
}

#[test]
fn encodings_follow_their_standards() {
    for len in 0..100 {
        let data: Vec<u8> = (0..len).map(|i| (i * 37) as u8).collect();
        assert_eq!(encoding::base64(base64(&data).as_bytes()).data, data);
        assert_eq!(encoding::quoted_printable(qp(&data).as_bytes()), data);
        assert_eq!(super::uu::sections(uu(&data).as_bytes()).next().unwrap().data, data, "{len}");
    }
    assert_eq!(encoding::quoted_printable(b"a= \t\r\nb=3dc=x=\n=4"), b"ab=c=x=4");
    // RFC 4648 section 10.
    assert_eq!(encoding::base64(b"Zm9vYmE=").data, b"fooba");
}

proptest::proptest! {
    #[test]
    fn any_bytes_are_survived(data: Vec<u8>) {
        let _ = scan(&data);
        let _ = scan_with(&Limits::default(), ObjectKind::File, &data);
    }

    #[test]
    fn any_change_of_a_message_is_survived(at in 0usize..2000, byte: u8) {
        let zip = Zip::default().deflated("m", b"some text").stored("n", &gzip(b"more")).done();
        let mut message = attached(OCTETS, &base64(&zip)).into_bytes();
        let at = at % message.len();
        message[at] = byte;
        let _ = scan(&message);
    }

    #[test]
    fn any_change_of_an_archive_is_survived(at in 0usize..2000, byte: u8, cut in 0usize..2000) {
        let mut data = Zip::default().deflated("m", b"some text").stored("n", &gzip(b"more")).done();
        let at = at % data.len();
        data[at] = byte;
        data.truncate(data.len() - cut % data.len());
        let _ = scan_with(&Limits::default(), ObjectKind::File, &data);
    }
}

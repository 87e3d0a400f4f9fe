//! Archives and documents with something infected in them, repaired where they lie: in a message, and by themselves.

use crate::limits::Limits;
use crate::mail::encoding::to_base64;
use crate::object::tests::{MARK, Zip, gzip, scan_with};
use crate::object::{Object, repair};
use crate::repair::{Answer, Order, Plan, Remedy};
use crate::report::Verdict;
use crate::wire::ObjectKind;
use std::io::{Cursor, Read, Write};
use std::time::{Duration, Instant};

/// Cleans all findings; what was done, or why not.
fn cleaned(kind: ObjectKind, data: &[u8]) -> Result<(Vec<u8>, String), String> {
    let report = scan_with(&Limits::default(), kind, data);
    assert_eq!(report.verdict, Verdict::Infected, "{report:?}");
    let order = |part| Order { part, remedies: vec![Remedy::Clean] };
    let orders = report.findings.iter().map(|f| order(f.part)).collect();
    let plan = Plan { orders, size_max: 1 << 30, ..Plan::default() };
    let deadline = Instant::now() + Duration::from_secs(60);
    match repair(&Limits::default(), &Object::new(kind, data, deadline), &plan) {
        Answer::Repaired(repaired) => {
            let out = repaired.apply(data);
            let again = scan_with(&Limits::default(), kind, &out);
            assert_eq!(again.verdict, Verdict::Clean, "{again:?}");
            Ok((out, repaired.done[0].detail.clone()))
        }
        Answer::Unrepairable { why } => Err(why),
    }
}

fn file(data: &[u8]) -> Result<(Vec<u8>, String), String> {
    cleaned(ObjectKind::File, data)
}

fn attached(data: &[u8]) -> Vec<u8> {
    let body = to_base64(data, 76, "\r\n");
    format!(
        "Subject: x\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\nContent-Type: application/octet-stream; name=a\r\nContent-Transfer-Encoding: base64\r\n\r\n{body}\r\n--b--\r\n"
    )
    .into_bytes()
}

#[test]
fn infected_members_leave_a_zip() {
    let zip = |marked: bool| {
        let mut zip = Zip::default().deflated("a.txt", b"first").stored("b.txt", b"second");
        if marked {
            zip = zip.deflated("m.com", MARK);
        }
        zip.deflated("c.txt", b"third").done()
    };
    let (out, detail) = file(&zip(true)).unwrap();
    assert_eq!(detail, "1 member removed");
    assert_eq!(out, zip(false));
    // In a message, encoded again.
    let (out, _) = cleaned(ObjectKind::Message, &attached(&zip(true))).unwrap();
    assert_eq!(out, attached(&zip(false)));
    // A zip in a zip keeps its clean members.
    let nested = |marked| Zip::default().stored("n.zip", &zip(marked)).stored("d", b"x").done();
    let (out, detail) = file(&nested(true)).unwrap();
    assert_eq!(detail, "1 member cleaned");
    let names = |data: &[u8]| {
        let report = scan_with(&Limits::default(), ObjectKind::File, data);
        report.tree.iter().map(|p| p.name.clone()).collect::<Vec<_>>()
    };
    assert_eq!(names(&out), names(&nested(false)));
}

#[test]
fn what_is_irregular_or_empty_is_left_to_others() {
    assert!(file(&Zip::default().deflated("m.com", MARK).done()).is_err(), "nothing left");
    let zip = Zip::default().deflated("m.com", MARK).stored("a", b"x").done();
    assert!(file(&[b"junk", &zip[..]].concat()).is_err(), "junk before it");
    assert!(file(&[&zip[..], b"junk"].concat()).is_err(), "junk behind it");
    let hidden = Zip::default().stored("a", b"x").done();
    assert!(file(&[&zip[..zip.len() - 22], &hidden[..]].concat()).is_err(), "two archives");
    assert!(file(&gzip(MARK)).is_err());
}

fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, data) in files {
        let mut header = [0u8; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[124..135].copy_from_slice(format!("{:011o}", data.len()).as_bytes());
        header[156] = b'0';
        header[257..265].copy_from_slice(b"ustar\x0000");
        header[148..156].copy_from_slice(b"        ");
        let sum: u32 = header.iter().map(|&b| u32::from(b)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        out.extend(header);
        out.extend_from_slice(data);
        out.resize(out.len().next_multiple_of(512), 0);
    }
    out.resize(out.len() + 1024, 0);
    out
}

#[test]
fn infected_members_leave_a_tar_also_in_gzip() {
    let clean = tar(&[("a", b"first"), ("b", &[7; 600])]);
    let marked = tar(&[("a", b"first"), ("m.com", MARK), ("b", &[7; 600])]);
    assert_eq!(file(&marked).unwrap(), (clean.clone(), "1 member removed".to_owned()));
    let (out, _) = file(&gzip(&marked)).unwrap();
    let mut plain = Vec::new();
    flate2::read::GzDecoder::new(&out[..]).read_to_end(&mut plain).unwrap();
    assert_eq!(plain, clean);
}

#[test]
fn macros_leave_an_office_document() {
    let types = br#"<?xml version="1.0"?><Types><Default Extension="xml" ContentType="application/xml"/><Override PartName="/word/document.xml" ContentType="application/vnd.ms-word.document.macroEnabled.main+xml"/><Override PartName="/word/vbaProject.bin" ContentType="application/vnd.ms-office.vbaProject"/></Types>"#;
    let relations = br#"<Relationships><Relationship Id="1" Type="http://schemas.microsoft.com/office/2006/relationships/vbaProject" Target="vbaProject.bin"/><Relationship Id="2" Type="styles" Target="styles.xml"/></Relationships>"#;
    let document = Zip::default()
        .deflated("[Content_Types].xml", types)
        .deflated("word/document.xml", b"<document/>")
        .deflated("word/_rels/document.xml.rels", relations)
        .deflated("word/vbaProject.bin", MARK)
        .done();
    let (out, detail) = file(&document).unwrap();
    assert_eq!(detail, "macros removed");
    let archive = super::zip::Archive::parse(&out).unwrap();
    let texts: Vec<String> = archive
        .entries
        .iter()
        .map(|e| String::from_utf8(archive.content(e, 9999).unwrap()).unwrap())
        .collect();
    assert_eq!(texts.len(), 3);
    assert!(texts.iter().all(|t| !t.contains("vbaProject")), "{texts:?}");
    assert!(texts[0].contains("macroEnabled") && texts[2].contains("styles.xml"));
    // Something else that is infected in a document is no macro.
    let other = Zip::default()
        .deflated("[Content_Types].xml", types)
        .deflated("word/vbaProject.bin", b"clean")
        .deflated("word/embeddings/m.bin", MARK)
        .done();
    assert!(file(&other).is_err());
}

#[test]
fn macros_leave_an_ole_document() {
    let mut file_ = cfb::CompoundFile::create(Cursor::new(Vec::new())).unwrap();
    for storage in ["/Macros", "/Macros/VBA"] {
        file_.create_storage(storage).unwrap();
    }
    for (stream, data) in [
        ("/WordDocument", vec![0; 5000]),
        ("/Macros/VBA/Module1", MARK.to_vec()),
        ("/Macros/VBA/big", [MARK, &[3; 9000]].concat()),
    ] {
        file_.create_stream(stream).unwrap().write_all(&data).unwrap();
    }
    file_.flush().unwrap();
    let document = file_.into_inner().into_inner();
    let (out, detail) = file(&document).unwrap();
    assert_eq!(detail, "macros removed");
    assert!(memchr::memmem::find(&out, MARK).is_none(), "the bytes are gone, not only their name");
    let mut again = cfb::CompoundFile::open_strict(Cursor::new(out)).unwrap();
    assert!(!again.exists("/Macros"));
    let mut text = Vec::new();
    again.open_stream("/WordDocument").unwrap().read_to_end(&mut text).unwrap();
    assert_eq!(text, vec![0; 5000]);
}

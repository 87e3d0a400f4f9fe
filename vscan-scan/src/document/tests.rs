//! Documents with something in them, made here.

use crate::object::tests::{MARK, file, reasons};
use crate::report::{Reason, Verdict};
use flate2::Compression;
use flate2::write::ZlibEncoder;
use std::io::Write;

#[track_caller]
fn found(data: &[u8], last: &str) {
    let report = file(data);
    assert_eq!(report.verdict, Verdict::Infected, "{report:#?}");
    assert!(report.findings.iter().any(|f| f.path.last().unwrap() == last), "{report:#?}");
}

fn zlib(data: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

/// A compound file (MS-CFB) of version 3 with these streams, all beside each other.
fn ole(streams: &[(&str, Vec<u8>)]) -> Vec<u8> {
    const FREE: u32 = 0xffff_ffff;
    const END: u32 = 0xffff_fffe;
    let mut fat = vec![0xffff_fffd];
    let mut sectors: Vec<u8> = Vec::new();
    let entry = |name: &str, kind: u8, start: u32, size: u32| {
        let mut entry = vec![0; 128];
        let units: Vec<u8> = name.encode_utf16().flat_map(u16::to_le_bytes).collect();
        entry[..units.len()].copy_from_slice(&units);
        entry[64] = units.len() as u8 + 2;
        entry[66] = kind;
        entry[68..80].fill(0xff);
        entry[116..120].copy_from_slice(&start.to_le_bytes());
        entry[120..124].copy_from_slice(&size.to_le_bytes());
        entry
    };
    let mut directory = entry("Root Entry", 5, END, 0);
    for (name, content) in streams {
        // Long enough to lie outside of the mini stream.
        let size = content.len().max(4096);
        let first = fat.len() as u32;
        directory.extend(entry(name, 2, first, size as u32));
        let count = size.div_ceil(512) as u32;
        fat.extend((first + 1..first + count).chain([END]));
        sectors.extend(content);
        sectors.resize((fat.len() - 1) * 512, 0);
    }
    directory.resize(directory.len().next_multiple_of(512), 0);
    let first_directory = fat.len() as u32;
    let count = (directory.len() / 512) as u32;
    fat.extend((first_directory + 1..first_directory + count).chain([END]));
    fat.resize(128, FREE);
    let mut out = super::ole::MAGIC.to_vec();
    out.resize(24, 0);
    for field in [0x3e_u16, 3, 0xfffe, 9, 6] {
        out.extend(field.to_le_bytes());
    }
    out.resize(44, 0);
    for field in [1, first_directory, 0, 4096, END, 0, END, 0, 0] {
        out.extend(field.to_le_bytes());
    }
    out.resize(512, 0xff);
    out.extend(fat.iter().flat_map(|n| n.to_le_bytes()));
    out.extend(sectors);
    out.extend(directory);
    out
}

/// A compressed container of literals only (MS-OVBA 2.4.1).
fn vba(source: &[u8]) -> Vec<u8> {
    let mut out = vec![1];
    for chunk in source.chunks(3500) {
        let body: Vec<u8> = chunk.chunks(8).flat_map(|eight| [&[0], eight].concat()).collect();
        out.extend((0xb000 | (body.len() as u16 - 1)).to_le_bytes());
        out.extend(body);
    }
    out
}

#[test]
fn streams_and_macros_of_compound_files_are_read() {
    found(&ole(&[("Contents", MARK.to_vec())]), "Contents");
    // Behind code, at the place that the project's directory tells; and where it tells nothing.
    let source = [MARK, b"\r\nSub AutoOpen()\r\n"].concat();
    let module = [vec![7; 300], vba(&source)].concat();
    let dir = [&[0x31, 0, 4, 0, 0, 0][..], &300u32.to_le_bytes()].concat();
    found(&ole(&[("dir", vba(&dir)), ("Module1", module)]), "Module1.bas");
    let source = [&b"Attribute VB_Name = \"a\"\r\n"[..], &[b' '; 10]].concat();
    let report = file(&ole(&[("Module1", [vec![7; 300], vba(&source)].concat())]));
    assert!(
        report.tree.iter().any(|p| p.name == "Module1.bas" && p.size == source.len() as u64),
        "{report:?}"
    );
    // A packaged file, and one whose package is wrong.
    let mut package = b"\0\0\0\0\x02\0mark.com\0C:\\mark.com\0\0\0\x03\0\x05\0\0\0C:\\t\0".to_vec();
    package.extend((MARK.len() as u32).to_le_bytes());
    package.extend(MARK);
    found(&ole(&[("\u{1}Ole10Native", package)]), "mark.com");
    found(&ole(&[("\u{1}Ole10Native", [&[0; 4], MARK].concat())]), "Ole10Native");
    // A stream that no storage leads to is an entry like any other; a damaged chain gives what it can.
    let mut cut = ole(&[("Contents", [MARK, &[1; 8000]].concat())]);
    cut[512 + 4 * 4..512 + 4 * 6].fill(0xff);
    let report = file(&cut);
    assert_eq!((report.verdict, reasons(&report)), (Verdict::Infected, vec![Reason::Malformed]));
}

#[test]
fn encrypted_office_documents_are_said() {
    let mut word = vec![0; 32];
    word[11] = 1;
    for stream in [
        ("EncryptedPackage", vec![1; 100]),
        ("WordDocument", word),
        ("Workbook", b"\x09\x08\x04\0\0\0\0\0\x2f\0\x02\0\0\0".to_vec()),
        ("Current User", b"\0\0\xf6\x0f\0\0\0\0\x14\0\0\0\xdf\xc4\xd1\xf3".to_vec()),
    ] {
        let name = stream.0;
        assert_eq!(reasons(&file(&ole(&[stream]))), [Reason::Encrypted], "{name}");
    }
    let report = file(&ole(&[("Workbook", b"\x09\x08\x04\0\0\0\0\0\x0a\0\0\0".to_vec())]));
    assert_eq!(report.verdict, Verdict::Clean, "{report:?}");
}

#[test]
fn what_pdf_carries_is_found() {
    let packed = zlib(MARK);
    let stream = |dictionary: &str, data: &[u8]| {
        let head = format!("%PDF-1.4\n1 0 obj\n<< {dictionary} >>\nstream\r\n");
        [head.as_bytes(), data, b"\nendstream\nendobj\n"].concat()
    };
    let hex: String = packed.iter().map(|b| format!("{b:02X} ")).collect();
    for (dictionary, data) in [
        ("/Filter /FlateDecode", &packed[..]),
        // A length that is wrong, names with escapes, arrays, abbreviations, a filter elsewhere.
        ("/Length 3 /Filter [/Fl]", &packed),
        ("/Filter /F#6cate#44ecode", &packed),
        (
            "/Filter [ /ASCIIHexDecode /FlateDecode ] /DecodeParms [ null null ]",
            format!("{hex}>").as_bytes(),
        ),
        ("/Filter [/AHx/Fl]", hex.as_bytes()),
        (
            "/Filter 7 0 R",
            &[&packed[..], b"\nendstream endobj\n7 0 obj\n/FlateDecode\nendobj\n"].concat(),
        ),
        ("", MARK),
    ] {
        found(&stream(dictionary, data), "object-1");
    }
    // Junk in front, and no end.
    found(&[b"junk\n", &stream("/Filter /Fl", &packed)[..]].concat(), "object-1");
    let whole = stream("/Filter /Fl", &packed);
    found(&whole[..whole.len() - 18], "object-1");
    // A picture is looked at at its beginning, unless it is an embedded file as well.
    let late = zlib(&[&vec![b' '; 100_000], MARK].concat());
    let picture = stream(
        "/Subtype /Image /Width 9 /Height 9 /Filter /FlateDecode",
        &zlib(&vec![0; 20 << 20]),
    );
    assert_eq!(file(&picture).verdict, Verdict::Clean);
    let named = [
        &stream("/Subtype /Image /Width 9 /Height 9 /Filter /Fl", &late)[..],
        b"2 0 obj << /EF << /F 1 0 R >> >>",
    ]
    .concat();
    assert!(file(&named).bytes > 100_000);
    // Scripts in strings, in an object stream, in UTF-16.
    let script =
        [b"%PDF-1.4\n1 0 obj << /S /JavaScript /JS (", MARK, b"\\)\\050) >> endobj"].concat();
    found(&script, "javascript");
    let utf16: String = MARK.iter().map(|b| format!("00{b:02x}")).collect();
    let hex = format!("2 0 << /S /JavaScript /J#53 <feff{utf16}> >>");
    found(
        &stream("/Type /ObjStm /N 1 /First 4 /Filter /FlateDecode", &zlib(hex.as_bytes())),
        "javascript",
    );
}

#[test]
fn what_rtf_carries_is_found() {
    let digits: String = MARK.iter().map(|b| format!("{b:02x}")).collect();
    let header = "0105000002000000080000005061636b616765000000000000000000";
    // Package with label, path and file, as OLE's packager makes them.
    let package = [
        &b"\x02\0m.com\0C:\\m.com\0\0\0\x03\0\x04\0\0\0tmp\0"[..],
        &(MARK.len() as u32).to_le_bytes(),
        MARK,
    ]
    .concat();
    let native: String = (package.len() as u32)
        .to_le_bytes()
        .iter()
        .chain(&package)
        .map(|b| format!("{b:02X}"))
        .collect();
    found(format!("{{\\rtf1{{\\object{{\\*\\objdata {header}{native}}}}}}}").as_bytes(), "m.com");
    // What Word passes over: blanks, control words, groups, characters.
    for mess in ["\r\n", " \\par ", "{\\ignored}", "\\'41", "{\\*\\foo }", "\\bin0 "] {
        let spread: Vec<String> =
            digits.as_bytes().chunks(7).map(|c| String::from_utf8_lossy(c).into_owned()).collect();
        let rtf = format!("{{\\rt{{\\*\\objdata{mess}{}}}}}", spread.join(mess));
        found(rtf.as_bytes(), "objdata");
    }
    let raw =
        [format!("{{\\rtf1 {{\\*\\objdata \\bin{} ", MARK.len()).as_bytes(), MARK, b"}}"].concat();
    found(&raw, "objdata");
    assert_eq!(file(b"{\\rtf1 \\\\objdata is a word}").verdict, Verdict::Clean);
}

#[test]
fn what_html_carries_is_found() {
    let base64 = "dGhlLW1hcmstb2YtdGhlLXRlc3RzLXdoaWNoLWlzLTY4LWJ5dGVzLWxvbmctbGlrZS10aGUtcmVhbC10ZXN0LWZpbGU=";
    let mark = String::from_utf8_lossy(MARK);
    let escaped: String = MARK.iter().map(|b| format!("%{b:02x}")).collect();
    for (html, name) in [
        (format!("<html><a href=\"data:application/zip;base64,{base64}\">x</a>"), "data"),
        (format!("some text <A HREF='DATA:;BASE64,{}'>", base64.replace("dGhl", "dG%68l")), "data"),
        (format!("<img src=data:image/svg+xml,{escaped}>"), "data"),
        (format!("<!doctype html><SCRIPT type=a>{mark}</script>"), "script"),
        (format!("plain <script>{mark}"), "script"),
    ] {
        found(html.as_bytes(), name);
    }
    let utf16: Vec<u8> = format!("\u{feff}<script>{mark}</script>")
        .encode_utf16()
        .flat_map(u16::to_le_bytes)
        .collect();
    found(&utf16, "script");
    assert_eq!(file(b"<html>The data: one, two and <b>three</b>").parts, 1);
}

#[test]
fn links_of_ooxml_are_one_text() {
    let xml = r#"<?xml version="1.0"?><Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">
        <Relationship Id="a" Type="http://x/officeDocument/attachedTemplate" TargetMode = 'External'
        Target="&#x68;ttp&#58;//a.example/?b&amp;c"/><Relationship Id="b" Target="inner.xml"/></Relationships>"#;
    let report = file(xml.as_bytes());
    assert_eq!(report.kind, "ooxml-relationships");
    let part = report.tree.iter().find(|p| p.name == "external-targets").unwrap();
    assert_eq!(part.size as usize, "attachedTemplate http://a.example/?b&c\n".len());
}

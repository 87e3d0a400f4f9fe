//! Types and names: what is refused without a signature, and what passes unscanned because it is what it says.

use anyhow::{Result, ensure};
use std::fs;
use std::time::Duration;
use vscan_tests::agent::{Settings, Steering, Vscan};
use vscan_tests::ftp::{Client, Mode};
use vscan_tests::lab::{Family, Lab, Topology};
use vscan_tests::peers::{Postfix, Vsftpd};
use vscan_tests::raw::End;
use vscan_tests::{fixtures, on_both, wait};

on_both!(forbidden_types_in_mail_and_files);

/// Forbidden by bytes, by name and inside of archives; rules of `[[treat]]` decide on it as on a detection.
fn forbidden_types_in_mail_and_files(steering: Steering) -> Result<()> {
    let lab = Lab::new(Topology::Masquerade)?;
    let mail = Postfix::start(lab.server())?;
    let ftp = Vsftpd::start(lab.server(), 21)?;
    let settings = Settings::new(steering)
        .with("types", "forbid = [\"executable\", \"double-extension\", \"*.secret.*\"]")
        .with(
            "",
            "[[treat]]\nprotocol = \"ftp\"\ndetection = [\"forbidden: *secret*\"]\naction = \"pass\"\n",
        );
    let vscan = Vscan::start(&lab, &settings)?;
    let here = lab.client().dir();
    let program = [&b"MZ\x90\0\x03"[..], &fixtures::random(5000, 3)].concat();
    fs::write(here.join("report.bin"), fixtures::random(5000, 4))?;
    fs::write(here.join("photo.jpg"), &program)?;
    fs::write(here.join("invoice.pdf.ps1"), b"Write-Host 1\n")?;
    fs::write(here.join("a.secret.txt"), b"hello\n")?;
    let script = "import zipfile\nzipfile.ZipFile('inner.zip', 'w').write('photo.jpg')\n\
                  zipfile.ZipFile('outer.zip', 'w').write('inner.zip')";
    ensure!(lab.client().run(["/usr/bin/python3", "-c", script])?.success());
    let send = |file: &str| {
        let attach = format!("@{file}");
        lab.client().run([
            "swaks",
            "--server",
            "mail.server.example",
            "--from",
            "alice@client.example",
            "--to",
            "bob@server.example",
            "--body",
            "see this",
            "--attach-name",
            file,
            "--attach",
            &attach,
        ])
    };
    let clean = send("report.bin")?;
    ensure!(clean.success(), "{}", clean.out);
    for (file, what) in [
        ("photo.jpg", "executable"),
        ("invoice.pdf.ps1", "double-extension"),
        ("a.secret.txt", "*.secret.*"),
        ("outer.zip", "executable"),
    ] {
        let sent = send(file)?;
        let wanted = format!("550 5.7.1 Message blocked by vscan: forbidden: {what}");
        ensure!(!sent.success() && sent.out.contains(&wanted), "{file}: {}", sent.out);
    }
    vscan.wait_for_event("alert", |event| {
        event["alert"]["signature"] == "forbidden: executable"
            && event["object"]["findings"][0]["engine"] == "types"
    })?;
    wait::until_true("mail is missing or too much", Duration::from_secs(10), || {
        mail.inbox().is_ok_and(|inbox| inbox.len() == 1)
    })?;

    let mut client = Client::connect(lab.client(), lab.dial(Family::V4, 21), Mode::Epsv)?;
    let up = client.upload("setup.exe", b"only a name")?;
    ensure!(up.reply.contains("blocked by vscan: forbidden: executable"), "{}", up.reply);
    let up = client.upload("a.secret.txt", b"a rule lets it pass")?;
    ensure!(up.reply.starts_with("226"), "{}", up.reply);
    fs::write(ftp.files().join("picture.png"), &program)?;
    let down = client.download("RETR picture.png")?;
    ensure!(down.data.is_none() && down.reply.contains("forbidden: executable"), "{}", down.reply);
    fs::write(ftp.files().join("note"), b"hello")?;
    let down = client.download("RETR note")?;
    ensure!(down.data == Some((b"hello".to_vec(), End::Fin)), "{}", down.reply);
    client.quit()
}

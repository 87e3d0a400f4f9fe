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

on_both!(forbidden_types_in_mail_and_files, excluded_types_have_to_be_what_they_say);

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

/// Excluded types are spliced, whatever the direction and the mode; what only pretends to be of one is scanned; renaming
/// is no way around.
fn excluded_types_have_to_be_what_they_say(steering: Steering) -> Result<()> {
    let lab = Lab::new(Topology::Masquerade)?;
    let server = Vsftpd::start(lab.server(), 21)?;
    let settings = Settings::new(steering)
        .with("scan", "skip_extensions = [\"txt\"]\nskip_types = [\"image\"]");
    let vscan = Vscan::start(&lab, &settings)?;
    // the detection stands behind what the type is told by: who passes it has not scanned it
    let hidden = |head: &[u8]| [head, &fixtures::eicar(), &fixtures::random(300_000, 5)].concat();
    let png = hidden(b"\x89PNG\r\n\x1a\n");
    let small = [&b"\x89PNG\r\n\x1a\n"[..], &fixtures::eicar()].concat();
    let text = [&b"hello\r\n".repeat(20_000)[..], &fixtures::eicar()].concat();
    let plain = fixtures::eicar();
    let program = hidden(b"MZ\x90\0");
    for family in [Family::V4, Family::V6] {
        for mode in [Mode::Epsv, Mode::Eprt] {
            let mut client = Client::connect(lab.client(), lab.dial(family, 21), mode)?;
            for (name, content, passes) in [
                ("a.png", &png, true),
                ("small.png", &small, true),
                ("picture", &png, true),
                ("a.txt", &text, true),
                ("lie.png", &program, false),
                ("lie.txt", &program, false),
                ("lie.exe", &png, false),
                ("plain", &plain, false),
            ] {
                let label = format!("{family:?} {mode:?} {name}");
                let up = client.upload(name, content)?;
                let stored = server.files().join(name);
                ensure!(
                    up.reply.starts_with(if passes { "226" } else { "550" }),
                    "{label}: {}",
                    up.reply
                );
                ensure!(stored.exists() == passes, "{label}: stored");
                if passes {
                    ensure!(fs::read(&stored)? == *content, "{label}: the upload was changed");
                }
                fs::write(&stored, content)?;
                let down = client.download(&format!("RETR {name}"))?;
                if passes {
                    ensure!(
                        down.data == Some((content.clone(), End::Fin)),
                        "{label}: {}",
                        down.reply
                    );
                    ensure!(down.reply.starts_with("226"), "{label}: {}", down.reply);
                } else {
                    ensure!(
                        down.data.is_none() && down.reply.starts_with("550"),
                        "{label}: {}",
                        down.reply
                    );
                }
                fs::remove_file(&stored)?;
            }
            let up = client.upload("clean", b"no type at all, clean")?;
            ensure!(up.reply.starts_with("226"), "{}", up.reply);
            client.control().ask("RNFR clean", "350")?;
            client.control().ask("RNTO clean.txt", "550")?;
            client.control().ask("DELE clean", "250")?;
            client.quit()?;
        }
    }
    vscan.wait_for_event("ftp", |event| {
        event["ftp"]["name"] == "a.png" && event["ftp"]["inspected"] == false
    })?;
    vscan.wait_for_event("ftp", |event| {
        event["ftp"]["name"] == "lie.png" && event["ftp"]["inspected"] == true
    })?;
    let here = lab.client().dir();
    fs::write(here.join("b.png"), &png)?;
    let put =
        lab.client().run(["curl", "-sS", "-T", "b.png", "ftp://alice:x@server.example/b.png"])?;
    ensure!(put.success() && fs::read(server.files().join("b.png"))? == png, "{put:?}");
    let get =
        lab.client().run(["curl", "-sS", "-o", "got", "ftp://alice:x@server.example/b.png"])?;
    ensure!(get.success() && fs::read(here.join("got"))? == png, "{get:?}");
    Ok(())
}

//! Treatments: what a real server gets of a message with an infected portion, byte for byte, and what clients hear.

use anyhow::{Context, Result, ensure};
use std::fs;
use std::time::Duration;
use vscan_tests::agent::{Settings, Steering, Vscan};
use vscan_tests::ftp::{self, Mode};
use vscan_tests::lab::{Family, Lab, Topology};
use vscan_tests::peers::{Postfix, Vsftpd};
use vscan_tests::raw::End;
use vscan_tests::smtp::{Behaviour, Client, Sink, wire};
use vscan_tests::{fixtures, on_both, wait};

on_both!(
    each_treatment_changes_what_it_says,
    an_archive_without_its_infected_member_is_delivered,
    a_real_server_takes_treated_mail,
    a_real_server_takes_treated_chunks,
    what_a_lenient_server_unstuffs_is_scanned_so
);

/// Recipients by whom the rules of these tests are told apart.
const RULES: &str = r#"
[[treat]]
recipient = "strip@server.example"
action = ["strip", "block"]
[[treat]]
recipient = "replace@server.example"
action = ["clean", "replace"]
[[treat]]
recipient = "scramble@server.example"
action = "scramble"
[[treat]]
recipient = "warn@server.example"
action = "warn"
[[treat]]
recipient = "tag@server.example"
action = "tag"
subject = "[infected]"
[[treat]]
recipient = "substitute@server.example"
action = "substitute"
[[treat]]
recipient = "clean@server.example"
action = "clean"
"#;

const CLEAN: &str = "a clean text\r\n..with dots\r\n";

/// A clean text, an infected attachment, a clean attachment.
fn message() -> String {
    format!(
        "Received: from a by b; Sun, 22 Nov 2026 02:00:00 +0000\r\nX-Vscan: all is well\r\n\
         From: Alice <alice@client.example>\r\nTo: Bob <bob@server.example>\r\nSubject: three portions\r\n\
         Message-ID: <3@client.example>\r\nDate: Sun, 22 Nov 2026 02:00:00 +0000\r\nMIME-Version: 1.0\r\n\
         Content-Type: multipart/mixed; boundary=\"=-part\"\r\n\r\npreamble\r\n\
         --=-part\r\nContent-Type: text/plain\r\n\r\n{CLEAN}\
         --=-part\r\nContent-Type: application/octet-stream; name=\"eicar.com\"\r\n\
         Content-Transfer-Encoding: base64\r\n\r\n{}\
         --=-part\r\nContent-Type: application/octet-stream; name=\"clean.bin\"\r\n\
         Content-Transfer-Encoding: base64\r\n\r\n{}--=-part--\r\nepilogue\r\n",
        fixtures::base64(&fixtures::eicar()),
        fixtures::base64(&fixtures::random(5000, 3)),
    )
}

/// The message without its false header field, from the first field on.
fn rest(message: &str) -> String {
    message.replace("X-Vscan: all is well\r\n", "")
}

fn settings(steering: Steering) -> Settings {
    Settings::new(steering)
        .with("notify", "name = \"gw.example\"\nadmin = [\"postmaster@server.example\"]")
        .with("", RULES)
}

/// Sends the message to one recipient; what the server got, or the refusal.
fn sent(client: &mut Client, sink: &Sink, to: &[&str]) -> Result<Result<String, String>> {
    let before = sink.messages().len();
    let reply = client.send_as("alice@client.example", to, &wire(message().as_bytes()))?;
    if !reply.starts_with("250") {
        ensure!(sink.messages().len() == before, "refused and delivered: {reply}");
        return Ok(Err(reply));
    }
    let got = sink.messages().pop().context("accepted and not delivered")?;
    let got = String::from_utf8(got)?;
    let got = got.strip_suffix(".\r\n").context("no end")?;
    // As its receiver has it: without the stuffing.
    Ok(Ok(got.replace("\r\n..", "\r\n.")))
}

fn each_treatment_changes_what_it_says(steering: Steering) -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let sink = Sink::start(lab.server(), 25, Behaviour::default())?;
    let vscan = Vscan::start(&lab, &settings(steering))?;
    let mut client = Client::connect(lab.client(), lab.dial(Family::V4, 25))?;
    let original = rest(&message());
    let infected = format!(
        "--=-part\r\nContent-Type: application/octet-stream; name=\"eicar.com\"\r\n\
         Content-Transfer-Encoding: base64\r\n\r\n{}",
        fixtures::base64(&fixtures::eicar())
    );
    ensure!(original.contains(&infected));
    let mut to = |name: &str| -> Result<String> {
        let address = format!("{name}@server.example");
        sent(&mut client, &sink, &[address.as_str()])?
            .map_err(|reply| anyhow::anyhow!("{name}: {reply}"))
    };

    let stripped = to("strip")?;
    let field = "X-Vscan: removed 1 portion (EICAR_Test_File) by gw.example\r\n";
    assert_eq!(stripped, format!("{field}{}", original.replace(&infected, "")));

    let replaced = to("replace")?;
    let (head, tail) = original.split_once(&infected).context("the portion")?;
    let notice = replaced
        .strip_prefix(&format!(
            "X-Vscan: replaced 1 portion (EICAR_Test_File) by gw.example\r\n{head}--=-part\r\n"
        ))
        .and_then(|rest| rest.strip_suffix(tail))
        .with_context(|| replaced.clone())?;
    ensure!(notice.starts_with("Content-Type: text/plain"), "{notice}");
    for text in ["eicar.com: EICAR_Test_File", "vscan on gw.example", "postmaster@server.example"] {
        ensure!(notice.contains(text), "{text}: {notice}");
    }

    let scrambled = to("scramble")?;
    ensure!(scrambled.starts_with("X-Vscan: made unreadable 1 portion (EICAR_Test_File)"));
    ensure!(!scrambled.contains(&infected) && scrambled.contains("name=\"eicar.com\""));
    assert_eq!(scrambled.split_once("\r\n").map(|(_, rest)| rest.len()), Some(original.len()));

    let field = "X-Vscan: NOT CLEAN (EICAR_Test_File), delivered as it came by gw.example\r\n";
    assert_eq!(to("warn")?, format!("{field}{original}"));
    assert_eq!(
        to("tag")?,
        format!("{field}{}", original.replace("Subject: three", "Subject: [infected] three"))
    );

    let substitute = to("substitute")?;
    let kept = vscan.json(&["quarantine", "list"])?;
    assert_eq!(kept.as_array().map(Vec::len), Some(1));
    let id = kept[0]["id"].as_str().context("an id")?;
    for text in [
        &format!("X-Vscan: substituted (EICAR_Test_File), kept as {id} by\r\n gw.example\r\n"),
        "From: Alice <alice@client.example>\r\n",
        "Subject: three portions\r\n",
        "Message-ID: <3@client.example>\r\n",
        "Date: Sun, 22 Nov 2026 02:00:00 +0000\r\n",
        &format!("\r\n    {id}\r\n"),
        "postmaster@server.example",
    ] {
        ensure!(substitute.contains(text), "{text}: {substitute}");
    }
    ensure!(!substitute.contains("multipart") && !substitute.contains(CLEAN), "{substitute}");

    // A single file is nothing that could be cleaned; over several recipients the strictest wins.
    let refused = sent(&mut client, &sink, &["clean@server.example"])?;
    ensure!(refused.as_ref().is_err_and(|r| r.starts_with("550 5.7.1")), "{refused:?}");
    let both = sent(&mut client, &sink, &["warn@server.example", "replace@server.example"])?;
    ensure!(both.as_ref().is_ok_and(|m| m.contains("X-Vscan: replaced")), "{both:?}");
    let others = sent(&mut client, &sink, &["strip@server.example", "bob@server.example"])?;
    ensure!(others.as_ref().is_err_and(|r| r.starts_with("550 5.7.1")), "{others:?}");
    client.quit()?;

    let treated = |remedy| -> Result<f64> {
        Ok(vscan.metrics()?.sum("vscan_portions_treated_total", &[("remedy", remedy)]))
    };
    assert_eq!((treated("strip")?, treated("replace")?, treated("scramble")?), (1.0, 2.0, 1.0));
    let event = vscan.wait_for_event("object", |event| event["object"]["action"] == "strip")?;
    assert_eq!(event["object"]["treated"][0]["remedy"], "strip");
    assert_eq!(event["object"]["rule"], "treat[0]");
    Ok(())
}

/// swaks to Postfix: the treated message is stored whole, with the clean attachment in it.
/// By mail and by FTP, in both directions.
fn an_archive_without_its_infected_member_is_delivered(steering: Steering) -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let text = fixtures::random(5000, 11);
    let infected =
        fixtures::zip(&[("read.me", &text), ("invoice.com", &fixtures::eicar()), ("b.txt", b"b")]);
    let cleaned = fixtures::zip(&[("read.me", &text), ("b.txt", b"b")]);

    let sink = Sink::start(lab.server(), 25, Behaviour::default())?;
    let server = Vsftpd::start(lab.server(), 21)?;
    let rule = "[[treat]]\nprotocol = \"ftp\"\naction = \"clean\"\n";
    let vscan = Vscan::start(&lab, &settings(steering).with("", rule))?;
    let mut client = Client::connect(lab.client(), lab.dial(Family::V4, 25))?;
    let mail = fixtures::message_with_attachment("an archive", "invoices.zip", &infected);
    let reply = client.send_as("a@client.example", &["clean@server.example"], &wire(&mail))?;
    ensure!(reply.starts_with("250"), "{reply}");
    let got = String::from_utf8(sink.messages().pop().context("accepted and not delivered")?)?;
    ensure!(got.starts_with("X-Vscan: cleaned 1 portion (EICAR_Test_File)"), "{got}");
    ensure!(got.contains(&fixtures::base64(&cleaned)), "{got}");
    client.quit()?;

    fs::write(server.files().join("down.zip"), &infected)?;
    let dial = lab.dial(Family::V4, 21);
    let mut client = ftp::Client::connect(lab.client(), dial, Mode::Epsv)?;
    let down = client.download("RETR down.zip")?;
    ensure!(down.data == Some((cleaned.clone(), End::Fin)), "{}", down.reply);
    let up = client.upload("up.zip", &infected)?;
    ensure!(up.reply.starts_with("226"), "{}", up.reply);
    ensure!(fs::read(server.files().join("up.zip"))? == cleaned, "another file arrived");
    client.quit()?;
    for protocol in ["smtp", "ftp"] {
        let event = vscan.wait_for_event("alert", |event| event["app_proto"] == protocol)?;
        ensure!(event["object"]["action"] == "clean", "{event}");
    }
    Ok(())
}

fn a_real_server_takes_treated_mail(steering: Steering) -> Result<()> {
    let lab = Lab::new(Topology::Masquerade)?;
    let server = Postfix::start(lab.server())?;
    let _vscan = Vscan::start(&lab, &settings(steering))?;
    let here = lab.client().dir();
    std::fs::write(here.join("eicar.com"), fixtures::eicar())?;
    let clean = fixtures::random(200_000, 8);
    std::fs::write(here.join("report.bin"), &clean)?;
    let swaks = lab.client().run([
        "swaks",
        "--server",
        "mail.server.example",
        "--from",
        "alice@client.example",
        "--to",
        "strip@server.example",
        "--body",
        "hello there",
        "--attach",
        "@eicar.com",
        "--attach",
        "@report.bin",
    ])?;
    ensure!(swaks.success(), "{}{}", swaks.out, swaks.err);
    let mail = wait::until("the mail does not arrive", Duration::from_secs(10), || {
        Ok(server.inbox()?.pop())
    })
    .with_context(|| server.log())?;
    let mail = String::from_utf8(mail)?;
    ensure!(
        mail.contains("\nX-Vscan: removed 1 portion (EICAR_Test_File) by gw.example\n"),
        "{mail}"
    );
    ensure!(!mail.contains("eicar.com") && mail.contains("hello there"), "{mail}");
    let all: String = mail.lines().map(str::trim_end).collect();
    let wanted: String = fixtures::base64(&clean).lines().collect();
    ensure!(all.contains(&wanted), "the clean attachment was changed");
    Ok(())
}

/// A message by BDAT: what was made of it goes to Postfix as one chunk of the right length, smaller or larger than what
/// came. A recipient that only Postfix would see in a command is none: nobody else's rule speaks for it.
fn a_real_server_takes_treated_chunks(steering: Steering) -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let server = Postfix::start(lab.server())?;
    let _vscan = Vscan::start(&lab, &settings(steering))?;
    let mut client = Client::connect(lab.client(), lab.dial(Family::V4, 25))?;
    let peer = client.peer();
    let message = message();
    let (first, second) = message.split_at(message.find("epilogue").context("no epilogue")?);
    for name in ["strip", "replace"] {
        peer.ask("MAIL FROM:<alice@client.example>", "250")?;
        peer.ask(&format!("RCPT TO:<{name}@server.example>"), "250")?;
        peer.ask(" RCPT TO:<warn@server.example>", "500")?;
        peer.send(format!("BDAT {}\r\n{first}BDAT 0\r\n", first.len()))?;
        peer.send(format!("BDAT {} LAST\r\n{second}NOOP\r\n", second.len()))?;
        for answer in ["first", "empty", "last", "NOOP"] {
            peer.expect("250").context(answer)?;
        }
    }
    client.quit()?;
    let mut mails = Vec::new();
    wait::until("two mails do not arrive", Duration::from_secs(10), || {
        mails = server.inbox()?;
        Ok((mails.len() >= 2).then_some(()))
    })
    .with_context(|| server.log())?;
    ensure!(mails.len() == 2, "{} mails", mails.len());

    // As Postfix stores it, behind the fields that it puts on top.
    let original = rest(&message).replace("\r\n", "\n");
    let infected = "--=-part\nContent-Type: application/octet-stream; name=\"eicar.com\"\n";
    let (head, tail) = original.split_once(infected).context("the portion")?;
    let (_, tail) = tail.split_once("--=-part\n").context("the next portion")?;
    let stored = |field: &str| -> Result<String> {
        let mails = mails.iter().filter_map(|mail| std::str::from_utf8(mail).ok());
        let found =
            mails.filter_map(|mail| mail.find(field).map(|at| mail[at..].to_owned())).next();
        found.with_context(|| format!("no mail with {field}: {mails:?}", mails = server.log()))
    };
    let field = "X-Vscan: removed 1 portion (EICAR_Test_File) by gw.example\n";
    assert_eq!(stored(field)?, format!("{field}{head}--=-part\n{tail}"));
    let field = "X-Vscan: replaced 1 portion (EICAR_Test_File) by gw.example\n";
    let replaced = stored(field)?;
    let notice = replaced
        .strip_prefix(&format!("{field}{head}--=-part\n"))
        .and_then(|rest| rest.strip_suffix(&format!("--=-part\n{tail}")))
        .with_context(|| replaced.clone())?;
    ensure!(notice.contains("eicar.com: EICAR_Test_File"), "{notice}");
    Ok(())
}

/// Postfix takes a bare LF for a line end and a dot behind it for stuffing: what the recipient has is scanned too.
fn what_a_lenient_server_unstuffs_is_scanned_so(steering: Steering) -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let server = Postfix::start(lab.server())?;
    let vscan = Vscan::start(&lab, &settings(steering))?;
    let mut client = Client::connect(lab.client(), lab.dial(Family::V4, 25))?;
    let mail = |name: &str, portion: &[u8]| {
        let line = |bytes: &[u8]| -> String {
            let groups = bytes.chunks(3).flat_map(|chunk| {
                let [a, b, c] = [0, 1, 2].map(|n| chunk.get(n).copied().unwrap_or_default());
                [a >> 2, (a << 4 | b >> 4) & 63, (b << 2 | c >> 6) & 63, c & 63]
            });
            let sixes =
                std::iter::once(u8::try_from(bytes.len()).unwrap_or_default()).chain(groups);
            sixes.map(|six| if six == 0 { '`' } else { char::from(six + 32) }).collect()
        };
        let lines: String = portion.chunks(45).map(|bytes| format!(".{}\n", line(bytes))).collect();
        format!("Subject: {name}\r\n\r\nsee here\n.begin 644 a.com\n{lines}.`\n.end\n\r\n.\r\n")
    };
    let clean = client.send(mail("clean", &fixtures::random(300, 5)).as_bytes())?;
    ensure!(clean.starts_with("250"), "{clean}");
    let stored = wait::until("the mail does not arrive", Duration::from_secs(10), || {
        Ok(server.inbox()?.pop())
    })
    .with_context(|| server.log())?;
    let stored = String::from_utf8(stored)?;
    ensure!(stored.contains("\nbegin 644 a.com\n"), "no second reading: {stored}");

    let infected = mail("infected", &fixtures::eicar());
    let refused = client.send(infected.as_bytes())?;
    ensure!(refused.starts_with("550 5.7.1") && refused.contains("EICAR"), "{refused}");
    // By BDAT nothing is unstuffed, and no line is one of uuencode.
    let chunk = infected.strip_suffix(".\r\n").context("no end")?;
    let peer = client.peer();
    peer.ask("MAIL FROM:<alice@client.example>", "250")?;
    peer.ask("RCPT TO:<bob@server.example>", "250")?;
    peer.send(format!("BDAT {} LAST\r\n{chunk}", chunk.len()))?;
    peer.expect("250")?;
    client.quit()?;
    vscan.wait_for_event("object", |event| event["object"]["verdict"] == "infected")?;
    Ok(())
}

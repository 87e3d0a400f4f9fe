//! A second mail hidden in a first (SMTP smuggling): what servers do with it, and what is left of it behind vscan.

use anyhow::{Context, Result, ensure};
use std::fmt::Write as _;
use std::time::Duration;
use vscan_tests::agent::{Settings, Steering, Vscan, repository};
use vscan_tests::lab::{Family, Lab, Topology};
use vscan_tests::raw::Peer;
use vscan_tests::smtp::SMUGGLING;
use vscan_tests::smtp_matrix::{Running, Servers};
use vscan_tests::wait;

/// Three that parse for themselves, each in its way.
const SERVERS: [Servers; 3] = [Servers::Postfix, Servers::Exim, Servers::OpenSmtpd];

/// What became of a mail with another one in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    One,
    Two,
    /// The end is where it was faked, and the server hangs up on what follows because it takes nothing pipelined.
    End,
    Refused,
}

/// The outer mail, what hides the inner one, the inner one.
fn mail(name: &str, vector: &[u8]) -> Vec<u8> {
    let outer = format!("Subject: outer {name}\r\n\r\nouter");
    let inner = "MAIL FROM:<ceo@server.example>\r\nRCPT TO:<bob@server.example>\r\nDATA\r\n\
                 Subject: inner\r\n\r\ninner\r\n.\r\n";
    [outer.as_bytes(), vector, inner.as_bytes()].concat()
}

/// Sends it and looks how many mails the server has seen: it says 354 to each.
fn send(lab: &Lab, server: Servers, name: &str, vector: &[u8]) -> Result<Fate> {
    let mut peer = Peer::connect(lab.client(), lab.dial(Family::V4, server.port()))?;
    peer.expect("220")?;
    peer.ask("EHLO client.example", "250")?;
    peer.ask("MAIL FROM:<alice@client.example>", "250")?;
    peer.ask("RCPT TO:<bob@server.example>", "250")?;
    peer.ask("DATA", "354")?;
    peer.send(mail(name, vector))?;
    let first = peer.reply()?;
    // Not pipelined: OpenSMTPD does not know that. It may have hung up by now.
    let _ = peer.send("QUIT\r\n");
    let (rest, _) = peer.drain()?;
    let said = format!("{first}{}", String::from_utf8_lossy(&rest));
    if said.lines().any(|line| line.starts_with("354")) {
        Ok(Fate::Two)
    } else if first.starts_with("250") {
        Ok(Fate::One)
    } else if first.contains("Pipelining not supported") {
        Ok(Fate::End)
    } else {
        ensure!(first.starts_with('5') || first.starts_with('4'), "{name}: {said}");
        Ok(Fate::Refused)
    }
}

/// How many mails with these words in them are in the box.
fn count(server: &Running, words: &str) -> Result<usize> {
    let words = words.as_bytes();
    let has = |mail: &Vec<u8>| mail.windows(words.len()).any(|part| part == words);
    Ok(server.inbox()?.iter().filter(|mail| has(mail)).count())
}

#[test]
fn nothing_is_smuggled_to_real_servers() -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let running = SERVERS.map(|server| server.start(&lab));
    let mut table = String::from(
        "| end of data, as it is faked | by itself: Postfix | Exim | OpenSMTPD |\n|---|---|---|---|\n",
    );
    for server in SERVERS {
        // What is refused below is refused for its line ends.
        ensure!(send(&lab, server, "harmless", b"\r\n..\r\n")? == Fate::One, "{}", server.name());
    }
    for (name, vector) in SMUGGLING {
        let _ = write!(table, "| `{name}`");
        for server in SERVERS {
            table.push_str(match send(&lab, server, name, vector)? {
                Fate::One => " | one mail",
                Fate::Two => " | **two mails**",
                Fate::End => " | end seen",
                Fate::Refused => " | refused",
            });
        }
        table.push_str(" |\n");
    }
    let ports = SERVERS.map(|server| server.port().to_string()).join(", ");
    let ports = format!("ports = [{ports}]");
    let settings = Settings::new(Steering::Bpf).with("smtp", &ports);
    let vscan = Vscan::start(&lab, &settings)?;
    for (kind, server) in SERVERS.into_iter().zip(running) {
        let server = server?;
        let what = || format!("{}\n{}", kind.name(), server.log());
        for (name, vector) in SMUGGLING {
            let marked = format!("behind vscan {name}");
            let fate = send(&lab, kind, &marked, vector).with_context(what)?;
            ensure!(fate == Fate::Refused, "{name}: {fate:?}, {}", what());
        }
        // By BDAT a message has a length, and all of this may be in it. What it is to the server is one mail.
        if kind != Servers::OpenSmtpd {
            let mut peer = Peer::connect(lab.client(), lab.dial(Family::V4, kind.port()))?;
            peer.expect("220")?;
            peer.ask("EHLO client.example", "250")?;
            for (name, vector) in SMUGGLING {
                peer.ask("MAIL FROM:<alice@client.example>", "250")?;
                peer.ask("RCPT TO:<bob@server.example>", "250")?;
                let mail = mail(&format!("by BDAT {name}"), vector);
                let half = mail.len() / 2;
                peer.send([format!("BDAT {half}\r\n").as_bytes(), &mail[..half]].concat())?;
                peer.expect("250")?;
                let last = format!("BDAT {} LAST\r\n", mail.len() - half);
                peer.send([last.as_bytes(), &mail[half..]].concat())?;
                peer.expect("250").with_context(|| format!("{name}: {}", what()))?;
            }
            peer.ask("QUIT", "221")?;
            let wanted = SMUGGLING.len();
            wait::until("not delivered", Duration::from_secs(10), || {
                Ok((count(&server, "Subject: outer by BDAT")? >= wanted).then_some(()))
            })
            .with_context(what)?;
            ensure!(count(&server, "Subject: outer by BDAT")? == wanted, "{}", what());
        }
        ensure!(count(&server, "Subject: outer behind vscan")? == 0, "{}", what());
    }
    let refused =
        vscan.metrics()?.sum("vscan_anomalies_total", &[("name", "smtp_end_of_data_look_alike")]);
    ensure!(refused == (SERVERS.len() * SMUGGLING.len()) as f64, "{refused} refused");
    let readme = std::fs::read_to_string(repository().join("README.md"))?;
    ensure!(readme.contains(&table), "the README lacks this table:\n{table}");
    Ok(())
}

//! SMTP through the gateway: every topology, family and firewall; bytes, refusals, framing.

use crate::ftp::path_ran;
use anyhow::{Context, Result, ensure};
use std::net::SocketAddr;
use std::time::Duration;
use vscan_tests::agent::{Settings, Steering, Vscan};
use vscan_tests::lab::{FAMILIES, Family, Firewall, Lab, STRICT, Topology};
use vscan_tests::peers::Postfix;
use vscan_tests::raw::{self, End, Peer};
use vscan_tests::smtp::{Behaviour, Client, Sink, wire};
use vscan_tests::{fixtures, on_both, wait};

on_both!(
    plain,
    masquerade,
    port_forward,
    port_forward_from_another_port,
    mail_server_on_the_gateway,
    own_mail_of_the_gateway,
    every_byte_arrives,
    pipelining,
    smuggling_is_refused,
    bare_newlines_inside_lines_follow_the_configuration,
    the_dialogue_is_verbatim,
    the_server_has_the_last_word,
    a_dying_server_is_no_acceptance,
    tls_passes_and_is_counted,
    plaintext_behind_starttls_resets,
    tls_refused_and_stripped,
    chunks_are_never_commands,
    a_port_used_again_at_once,
    ports_do_not_run_out,
    real_clients,
);

fn plain(steering: Steering) -> Result<()> {
    mails(steering, Topology::Plain)
}

fn masquerade(steering: Steering) -> Result<()> {
    mails(steering, Topology::Masquerade)
}

fn port_forward(steering: Steering) -> Result<()> {
    mails(steering, Topology::Forward)
}

fn port_forward_from_another_port(steering: Steering) -> Result<()> {
    mails(steering, Topology::ForwardFromOtherPort)
}

fn mail_server_on_the_gateway(steering: Steering) -> Result<()> {
    mails(steering, Topology::OnGateway)
}

fn own_mail_of_the_gateway(steering: Steering) -> Result<()> {
    mails(steering, Topology::FromGateway)
}

/// The test file as a mail's text, and as an attachment.
fn infected() -> [Vec<u8>; 2] {
    let text = String::from_utf8_lossy(&fixtures::eicar()).into_owned();
    [
        wire(&fixtures::message("infected text", &text)),
        wire(&fixtures::message_with_attachment("infected", "invoice.com", &fixtures::eicar())),
    ]
}

fn blocked(reply: &str) -> Result<()> {
    let wanted = "550 5.7.1 Message blocked by vscan: ";
    ensure!(
        reply.starts_with(wanted) && reply.contains("EICAR"),
        "expected a refusal, got {reply:?}"
    );
    Ok(())
}

/// Clean mails arrive, infected ones are refused and the server never sees their DATA.
fn mails(steering: Steering, topology: Topology) -> Result<()> {
    for firewall in [Firewall::default(), STRICT] {
        let lab = Lab::with_firewall(topology, firewall)?;
        let sink = Sink::start(lab.server(), 25, Behaviour::default())?;
        let vscan = Vscan::start(&lab, &Settings::new(steering))?;
        let mut expected = Vec::new();
        for family in FAMILIES {
            let what = || format!("{topology:?} {firewall:?} {family:?}");
            let mut client =
                Client::connect(lab.client(), lab.dial(family, 25)).with_context(what)?;
            for round in 0..2 {
                let clean = wire(&fixtures::message(&format!("clean {round}"), "hello\r\n.\r\n"));
                ensure!(client.send(&clean)? == "250 2.0.0 queued as SINK\r\n", "{}", what());
                expected.push(clean);
                for mail in infected() {
                    blocked(&client.send(&mail)?).with_context(what)?;
                }
            }
            client.quit()?;
        }
        ensure!(sink.messages() == expected, "{topology:?} {firewall:?}: {:?}", sink.messages());
        let data = sink.commands().iter().filter(|line| line.as_str() == "DATA").count();
        assert_eq!(data, expected.len(), "DATA of refused mails: {:?}", sink.commands());
        let resets = sink.commands().iter().filter(|line| line.as_str() == "RSET").count();
        assert_eq!(resets, 8, "one RSET for each refused mail: {:?}", sink.commands());
        for (session, family) in sink.sessions().iter().zip(FAMILIES) {
            let from = session.from.map(|from| from.ip());
            assert_eq!(from, Some(lab.seen_as(family)), "{topology:?} {family:?}");
        }
        let infected = [("protocol", "smtp"), ("verdict", "infected")];
        assert_eq!(vscan.metrics()?.sum("vscan_objects_total", &infected), 8.0);
        if topology != Topology::FromGateway {
            // What the box itself sends never comes in on an interface.
            path_ran(steering, &vscan)?;
        }
    }
    Ok(())
}

/// Everything that may stand in a message, compared byte by byte on the wire.
fn every_byte_arrives(steering: Steering) -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let sink = Sink::start(lab.server(), 25, Behaviour::default())?;
    let _vscan = Vscan::start(&lab, &Settings::new(steering))?;
    let mut eight_bit = fixtures::random(100_000, 1);
    eight_bit.retain(|byte| !matches!(byte, b'\r' | b'\n'));
    let messages = [
        b".\r\n".to_vec(),
        b"\r\n.\r\n".to_vec(),
        b"x\r\n.\r\n".to_vec(),
        wire(b".\r\n..\r\n...\r\n.x\r\n"),
        b"Subject: unstuffed dots\r\n\r\n.a\r\n.b\r\n.\r\n".to_vec(),
        wire(&[b"Subject: one long line\r\n\r\n".as_slice(), &[b'x'; 300_000]].concat()),
        wire(&[b"Subject: all bytes\r\n\r\n".as_slice(), &eight_bit].concat()),
        wire(&fixtures::message_with_attachment("large", "x.bin", &fixtures::random(3_000_000, 2))),
        wire(&fixtures::message("trailing space \t ", " \t \r\n\r\n\r\n")),
    ];
    for family in FAMILIES {
        let mut client = Client::connect(lab.client(), lab.dial(family, 25))?;
        for message in &messages {
            ensure!(client.send(message)? == "250 2.0.0 queued as SINK\r\n");
        }
        client.quit()?;
    }
    let got = sink.messages();
    assert_eq!(got.len(), 2 * messages.len());
    for (number, (got, sent)) in got.iter().zip(messages.iter().cycle()).enumerate() {
        ensure!(
            got == sent,
            "message {number} was changed: {} bytes, {} sent",
            got.len(),
            sent.len()
        );
    }
    Ok(())
}

fn start(steering: Steering, more: &str, behaviour: Behaviour) -> Result<(Lab, Sink, Settings)> {
    let lab = Lab::new(Topology::Plain)?;
    let sink = Sink::start(lab.server(), 25, behaviour)?;
    Ok((lab, sink, Settings::new(steering).with("smtp", more)))
}

const ENVELOPE: &str = "MAIL FROM:<a@client.example>\r\nRCPT TO:<b@server.example>\r\nDATA\r\n";

/// Everything in one segment: two mails and the farewell, the replies in order.
fn pipelining(steering: Steering) -> Result<()> {
    let (lab, sink, settings) = start(steering, "", Behaviour::default())?;
    let _vscan = Vscan::start(&lab, &settings)?;
    let mut client = Client::connect(lab.client(), lab.dial(Family::V4, 25))?;
    let peer = client.peer();
    let clean = wire(&fixtures::message("pipelined", "text"));
    let [_, bad] = infected();
    let mut all = Vec::new();
    for mail in [&clean, &bad, &clean] {
        all.extend_from_slice(ENVELOPE.as_bytes());
        all.extend_from_slice(mail);
    }
    all.extend_from_slice(b"NOOP\r\nQUIT\r\n");
    peer.send(&all)?;
    for verdict in ["250 2.0.0 queued", "550 5.7.1", "250 2.0.0 queued"] {
        peer.expect("250")?;
        peer.expect("250")?;
        peer.expect("354")?;
        peer.expect(verdict)?;
    }
    peer.expect("250")?;
    peer.expect("221")?;
    ensure!(peer.drain()? == (Vec::new(), End::Fin));
    ensure!(sink.messages() == [clean.clone(), clean]);
    Ok(())
}

/// Published ways to hide a second mail in a first; the inner commands must never become a mail.
fn smuggling_is_refused(steering: Steering) -> Result<()> {
    let lookalikes: [&[u8]; 10] = [
        b"\n.\n",
        b"\n.\r\n",
        b"\r\n.\n",
        b"\r.\r",
        b"\r.\r\n",
        b"\r\n.\r",
        b"\n.\r",
        b"\r.\n",
        b"\r\n\0.\r\n",
        b"\r\r\n.\r\r\n",
    ];
    let (lab, sink, settings) = start(steering, "", Behaviour::default())?;
    let vscan = Vscan::start(&lab, &settings)?;
    let mut client = Client::connect(lab.client(), lab.dial(Family::V4, 25))?;
    let mut refused = 0;
    for lookalike in lookalikes {
        let smuggled = [
            b"Subject: outer\r\n\r\nouter".as_slice(),
            lookalike,
            b"MAIL FROM:<ceo@server.example>\r\nRCPT TO:<b@server.example>\r\nDATA\r\n\
              Subject: inner\r\n\r\ninner\r\n.\r\n",
        ]
        .concat();
        let reply = client.send(&smuggled)?;
        // A NUL in front of the dot is no look-alike for servers of our days; it must then arrive whole.
        if reply.starts_with("250") && lookalike == b"\r\n\0.\r\n" {
            ensure!(sink.messages().last() == Some(&smuggled));
        } else {
            ensure!(reply.starts_with("550 5.6.0"), "{lookalike:?}: {reply}");
            refused += 1;
        }
        client.peer().ask("NOOP", "250").with_context(|| format!("after {lookalike:?}"))?;
    }
    ensure!(refused >= 9);
    let clean = wire(&fixtures::message("afterwards", "text"));
    ensure!(client.send(&clean)?.starts_with("250"));
    client.quit()?;
    ensure!(!sink.commands().iter().any(|line| line.contains("ceo@")), "{:?}", sink.commands());
    ensure!(sink.messages().last() == Some(&clean));
    vscan.wait_for_event("anomaly", |event| {
        event["anomaly"]["event"].as_str().is_some_and(|name| name.starts_with("smtp_"))
    })?;
    Ok(())
}

fn bare_newlines_inside_lines_follow_the_configuration(steering: Steering) -> Result<()> {
    for (more, code) in [
        ("bare_newline = \"lookalikes\"", "250"),
        ("bare_newline = \"refuse\"", "550 5.6.0"),
        ("bare_newline = \"pass\"", "250"),
    ] {
        let (lab, sink, settings) = start(steering, more, Behaviour::default())?;
        let _vscan = Vscan::start(&lab, &settings)?;
        let mut client = Client::connect(lab.client(), lab.dial(Family::V4, 25))?;
        let mail = b"Subject: bare\r\n\r\nunix\nline ends\r and carriage returns\r\n.\r\n";
        let reply = client.send(mail)?;
        ensure!(reply.starts_with(code), "{more}: {reply}");
        if code == "250" {
            ensure!(sink.messages() == [mail.to_vec()], "{more}: changed on the way");
        } else {
            ensure!(sink.messages().is_empty(), "{more}");
        }
    }
    Ok(())
}

/// What vscan does not have to change is the server's own text.
fn the_dialogue_is_verbatim(steering: Steering) -> Result<()> {
    let extensions = [
        "PIPELINING",
        "SIZE 10240000",
        "X-Own  two  spaces",
        "8BITMIME",
        "CHUNKING",
        "BINARYMIME",
        "SMTPUTF8",
    ];
    let behaviour =
        Behaviour { extensions: extensions.map(str::to_owned).to_vec(), ..Behaviour::default() };
    let (lab, sink, settings) = start(steering, "", behaviour)?;
    let _vscan = Vscan::start(&lab, &settings)?;
    let mut peer = Peer::connect(lab.client(), lab.dial(Family::V6, 25))?;
    assert_eq!(peer.reply()?, "220 sink.example ESMTP\r\n");
    let reply = peer.ask("eHlO  Client.Example ", "250")?;
    assert_eq!(
        reply,
        "250-sink.example\r\n250-PIPELINING\r\n250-SIZE 10240000\r\n250-X-Own  two  spaces\r\n\
         250-8BITMIME\r\n250-CHUNKING\r\n250-BINARYMIME\r\n250 SMTPUTF8\r\n"
    );
    assert_eq!(peer.ask("VRFY someone", "500")?, "500 5.5.1 what?\r\n");
    assert_eq!(peer.ask("XUNKNOWN a  b", "500")?, "500 5.5.1 what?\r\n");
    assert_eq!(peer.ask("noop", "250")?, "250 2.0.0 ok\r\n");
    assert_eq!(peer.ask("QUIT", "221")?, "221 2.0.0 bye\r\n");
    assert_eq!(
        sink.commands(),
        ["eHlO  Client.Example", "VRFY someone", "XUNKNOWN a  b", "noop", "QUIT"]
    );
    Ok(())
}

/// Whatever the server answers to recipient, DATA and message is what the client gets.
fn the_server_has_the_last_word(steering: Steering) -> Result<()> {
    let behaviour =
        Behaviour { after_message: "452 4.3.1 disk full".to_owned(), ..Behaviour::default() };
    let (lab, sink, settings) = start(steering, "", behaviour)?;
    let _vscan = Vscan::start(&lab, &settings)?;
    let mut client = Client::connect(lab.client(), lab.dial(Family::V4, 25))?;
    let clean = wire(&fixtures::message("unwanted", "text"));
    assert_eq!(client.send(&clean)?, "452 4.3.1 disk full\r\n");
    assert_eq!(sink.messages().len(), 1);

    let no_data = Behaviour { data: "451 4.3.0 not now".to_owned(), ..Behaviour::default() };
    let _sink = Sink::start(lab.server(), 2525, no_data)?;
    let no_recipient = Behaviour { rcpt: "550 5.1.1 nobody".to_owned(), ..Behaviour::default() };
    let (lab, sink, settings) = start(steering, "", no_recipient)?;
    let _second = Vscan::start(&lab, &settings)?;
    let mut peer = Peer::connect(lab.client(), lab.dial(Family::V4, 25))?;
    peer.expect("220")?;
    peer.ask("EHLO client.example", "250")?;
    peer.ask("MAIL FROM:<a@client.example>", "250")?;
    assert_eq!(peer.ask("RCPT TO:<nobody@server.example>", "550")?, "550 5.1.1 nobody\r\n");
    peer.ask("QUIT", "221")?;
    ensure!(sink.messages().is_empty());

    let no_data = Behaviour { data: "451 4.3.0 not now".to_owned(), ..Behaviour::default() };
    let (lab, sink, settings) = start(steering, "", no_data)?;
    let _third = Vscan::start(&lab, &settings)?;
    let mut client = Client::connect(lab.client(), lab.dial(Family::V4, 25))?;
    assert_eq!(client.send(&clean)?, "451 4.3.0 not now\r\n");
    client.peer().ask("NOOP", "250")?;
    ensure!(sink.messages().is_empty());
    Ok(())
}

/// The server goes away after the message, before its answer: the client must not hear 250.
fn a_dying_server_is_no_acceptance(steering: Steering) -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let _vscan = Vscan::start(&lab, &Settings::new(steering))?;
    let listener = raw::listen(lab.server(), 25)?;
    for reset in [true, false] {
        let server = std::thread::scope(|scope| {
            let server = scope.spawn(|| -> Result<()> {
                let (mut peer, _) = raw::accept(&listener)?;
                peer.send("220 dying\r\n")?;
                peer.line()?;
                peer.send("250 dying\r\n")?;
                for answer in ["250 ok\r\n", "250 ok\r\n", "354 go\r\n"] {
                    peer.line()?;
                    peer.send(answer)?;
                }
                while peer.line()? != ".\r\n" {}
                if reset { peer.reset() } else { Ok(()) }
            });
            let mut client = Client::connect(lab.client(), lab.dial(Family::V4, 25))?;
            let reply = client.send(&wire(&fixtures::message("lost", "text")))?;
            ensure!(reply.starts_with('4'), "{reply}");
            server.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        server?;
    }
    Ok(())
}

/// A client that leaves first: each of its sessions keeps a port of the upstream leg in TIME_WAIT.
fn ports_do_not_run_out(steering: Steering) -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    lab.gateway.sh("echo '50000 50007' > /proc/sys/net/ipv4/ip_local_port_range")?;
    let _vscan = Vscan::start(&lab, &Settings::new(steering))?;
    let listener = raw::listen(lab.server(), 25)?;
    for family in FAMILIES {
        for number in 0..24 {
            let mut client = Peer::connect(lab.client(), lab.dial(family, 25))?;
            let (mut server, _) = raw::accept(&listener)?;
            server.send("220 mx\r\n")?;
            client.expect("220").with_context(|| format!("{family:?}, session {number}"))?;
            client.finish()?;
            ensure!(matches!(server.drain()?.1, End::Fin), "{family:?}, session {number}");
            drop(server);
            client.drain()?;
        }
    }
    Ok(())
}

/// A server that offers STARTTLS and then speaks bytes that look like TLS.
fn tls_server(lab: &Lab) -> Result<std::thread::JoinHandle<Result<Vec<u8>>>> {
    let listener = raw::listen(lab.server(), 25)?;
    Ok(std::thread::spawn(move || {
        let (mut peer, _) = raw::accept(&listener)?;
        peer.send("220 tls\r\n")?;
        peer.line()?;
        peer.send("250-tls\r\n250-STARTTLS\r\n250 SIZE 1000\r\n")?;
        let line = peer.line()?;
        if line != "STARTTLS\r\n" {
            return Ok(line.into_bytes());
        }
        peer.send("220 go ahead\r\n")?;
        let hello = peer.take(HELLO.len())?;
        peer.send(SERVER_HELLO)?;
        let _ = peer.drain();
        Ok(hello)
    }))
}

/// A TLS record (handshake, 5 bytes) each way; nobody looks behind its header.
const HELLO: &[u8] = b"\x16\x03\x01\x00\x05hello";
const SERVER_HELLO: &[u8] = b"\x16\x03\x03\x00\x05world";

fn tls_passes_and_is_counted(steering: Steering) -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let vscan = Vscan::start(&lab, &Settings::new(steering))?;
    let server = tls_server(&lab)?;
    let mut peer = Peer::connect(lab.client(), lab.dial(Family::V4, 25))?;
    peer.expect("220")?;
    ensure!(peer.ask("EHLO client", "250")?.contains("STARTTLS"));
    peer.ask("STARTTLS", "220")?;
    peer.send(HELLO)?;
    assert_eq!(peer.take(SERVER_HELLO.len())?, SERVER_HELLO);
    let flows = vscan.flows()?;
    ensure!(flows.iter().any(|flow| flow["uninspected"] == "tls"), "{flows:?}");
    ensure!(vscan.metrics()?.sum("vscan_flows_uninspected_total", &[("reason", "tls")]) == 1.0);
    let check = vscan.cli(&["check"])?;
    let told = "1 of 1 connections";
    ensure!(check.success() && check.out.contains(told), "{check:?}");
    let status = vscan.cli(&["status"])?;
    ensure!(status.out.contains("1 flows (1 tls)"), "{status:?}");
    drop(peer);
    let hello = server.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    assert_eq!(hello, HELLO);
    Ok(())
}

/// A command pipelined behind STARTTLS would be taken by the server as sent under TLS (CVE-2011-0411).
fn plaintext_behind_starttls_resets(steering: Steering) -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let vscan = Vscan::start(&lab, &Settings::new(steering))?;
    let server = tls_server(&lab)?;
    let mut peer = Peer::connect(lab.client(), lab.dial(Family::V4, 25))?;
    peer.expect("220")?;
    peer.ask("EHLO client", "250")?;
    peer.send("STARTTLS\r\nMAIL FROM:<evil@client.example>\r\n")?;
    let (_, end) = peer.drain()?;
    assert_eq!(end, End::Reset);
    vscan.wait_for_event("anomaly", |_| true)?;
    let server = server.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    ensure!(!server.is_ok_and(|bytes| bytes.starts_with(b"MAIL")));
    Ok(())
}

fn tls_refused_and_stripped(steering: Steering) -> Result<()> {
    for (word, offered) in [("refuse", false), ("strip", false)] {
        let lab = Lab::new(Topology::Plain)?;
        let settings = Settings::new(steering).with("smtp", &format!("starttls = \"{word}\""));
        let _vscan = Vscan::start(&lab, &settings)?;
        let _server = tls_server(&lab)?;
        let mut peer = Peer::connect(lab.client(), lab.dial(Family::V4, 25))?;
        peer.expect("220")?;
        let reply = peer.ask("EHLO client", "250")?;
        if word == "strip" {
            assert_eq!(reply.contains("STARTTLS"), offered, "{word}: {reply}");
        }
        peer.send("STARTTLS\r\n")?;
        let reply = peer.reply()?;
        ensure!(reply.starts_with("50") || reply.starts_with("454"), "{word}: {reply}");
    }
    Ok(())
}

/// BDAT is not offered; a client that uses it nevertheless is refused, and its bytes are bytes.
fn chunks_are_never_commands(steering: Steering) -> Result<()> {
    let (lab, sink, settings) = start(steering, "", Behaviour::default())?;
    let _vscan = Vscan::start(&lab, &settings)?;
    let mut client = Client::connect(lab.client(), lab.dial(Family::V4, 25))?;
    let peer = client.peer();
    let chunk = "RCPT TO:<smuggled@server.example>\r\n";
    peer.ask("MAIL FROM:<a@client.example>", "250")?;
    peer.ask("RCPT TO:<b@server.example>", "250")?;
    peer.send(format!("BDAT {}\r\n{chunk}NOOP\r\n", chunk.len()))?;
    peer.expect("502")?;
    peer.expect("250")?;
    ensure!(!sink.commands().iter().any(|line| line.contains("smuggled") || line.contains("BDAT")));
    Ok(())
}

/// A client comes back from the port of a connection that the gateway still has in TIME_WAIT, for it closed
/// first: the new SYN goes to the gateway's listener at once, as it would on a server.
fn a_port_used_again_at_once(steering: Steering) -> Result<()> {
    let (lab, sink, settings) = start(steering, "", Behaviour::default())?;
    let _vscan = Vscan::start(&lab, &settings)?;
    let sent_again = || -> Result<u32> {
        let line = lab.client().sh("grep '^Tcp: [0-9]' /proc/net/snmp")?;
        // RetransSegs is the twelfth number (RFC 4022's tcpRetransSegs).
        Ok(line.split_ascii_whitespace().nth(12).context("no RetransSegs")?.parse()?)
    };
    let before = sent_again()?;
    for family in FAMILIES {
        let source = SocketAddr::new(lab.seen_as(family), 40_000);
        for round in 0..5 {
            let to = lab.dial(family, 25);
            let stream =
                lab.client().within(|| raw::connect_again(source, to, Duration::from_secs(5)))?;
            let mut client = Client::on(stream)?;
            let mail = wire(&fixtures::message(&format!("round {round}"), "text"));
            ensure!(client.send(&mail)?.starts_with("250"));
            client.quit()?;
        }
    }
    assert_eq!(sent_again()? - before, 0, "segments that the client had to send again");
    assert_eq!(sink.messages().len(), 10);
    Ok(())
}

/// swaks and smtplib to Postfix.
fn real_clients(steering: Steering) -> Result<()> {
    let lab = Lab::new(Topology::Masquerade)?;
    let server = Postfix::start(lab.server())?;
    let _vscan = Vscan::start(&lab, &Settings::new(steering))?;
    let here = lab.client().dir();
    std::fs::write(here.join("eicar.com"), fixtures::eicar())?;
    std::fs::write(here.join("report.bin"), fixtures::random(50_000, 8))?;
    let swaks = |more: &[&str]| {
        let common = [
            "swaks",
            "--server",
            "mail.server.example",
            "--from",
            "alice@client.example",
            "--to",
            "bob@server.example",
        ];
        lab.client().run([&common[..], more].concat())
    };
    for option in ["-4", "-6"] {
        let clean = swaks(&[option, "--body", "hello there", "--attach", "@report.bin"])?;
        ensure!(clean.success(), "{}{}", clean.out, clean.err);
        let bad = swaks(&[option, "--body", "hello", "--attach", "@eicar.com"])?;
        ensure!(
            !bad.success() && bad.out.contains("550 5.7.1 Message blocked by vscan"),
            "{}",
            bad.out
        );
        let piped = swaks(&[option, "--pipeline", "--body", "@eicar.com"])?;
        ensure!(!piped.success() && piped.out.contains("550 5.7.1"), "{}", piped.out);
    }
    let script = r#"
import smtplib
smtp = smtplib.SMTP("mail.server.example", timeout=20)
text = "Subject: from smtplib\r\n\r\n.dot\r\nhello\r\n"
smtp.sendmail("alice@client.example", "bob@server.example", text)
try:
    smtp.sendmail("alice@client.example", "bob@server.example", "Subject: x\r\n\r\n" + open("eicar.com").read())
    raise SystemExit("not refused")
except smtplib.SMTPDataError as error:
    assert error.smtp_code == 550 and b"blocked by vscan" in error.smtp_error, error
smtp.sendmail("alice@client.example", "bob@server.example", text)
smtp.quit()
"#;
    let python = lab.client().run(["/usr/bin/python3", "-c", script])?;
    ensure!(python.success(), "smtplib: {python:?}");
    wait::until_true("four mails did not arrive", Duration::from_secs(10), || {
        server.inbox().is_ok_and(|inbox| inbox.len() >= 4)
    })
    .with_context(|| server.log())?;
    let inbox = server.inbox()?;
    assert_eq!(inbox.len(), 4, "{}", server.log());
    let signature = b"EICAR-STANDARD";
    let caught =
        inbox.iter().any(|mail| mail.windows(signature.len()).any(|part| part == signature));
    ensure!(!caught, "an infected mail was delivered");
    let client = SocketAddr::new(lab.seen_as(Family::V4), 0).ip();
    ensure!(server.log().contains(&format!("[{client}]")), "{}", server.log());
    Ok(())
}

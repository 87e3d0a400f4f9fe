//! Mail over TLS where certificates, servers or clients are out of the ordinary.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::fs;
use std::time::Duration;
use vscan_tests::agent::{Settings, Steering, Vscan};
use vscan_tests::fixtures;
use vscan_tests::lab::{Family, Lab, Topology};
use vscan_tests::peers::OpenSmtpdRelay;
use vscan_tests::raw::Peer;
use vscan_tests::smtp::{Behaviour, Sink, wire};
use vscan_tests::smtps::{NAME, Pki};
use vscan_tests::wait;

const LIMIT: Duration = Duration::from_secs(10);

/// One port for each server.
const HUGE: u16 = 2526;
const TOO_LARGE: u16 = 2527;
const BROKEN: u16 = 2528;

fn settings(steering: Steering) -> Settings {
    let smtp = "ports = [25, 2526, 2527, 2528]\ntls_ports = [465]\nstarttls = \"terminate\"";
    Settings::new(steering).with("smtp", smtp)
}

fn anomaly(vscan: &Vscan<'_>, name: &str, text: &str) -> Result<Value> {
    vscan.wait_for_event("anomaly", |event| {
        event["anomaly"]["event"] == name && event.to_string().contains(text)
    })
}

fn accepted(told: &Value) -> Result<()> {
    let reply = told["replies"][0].as_str().unwrap_or_default();
    ensure!(told["error"].is_null() && reply.starts_with("250 "), "{told}");
    Ok(())
}

/// A certificate of 55 KiB is as good as any, one of 85 is more than a handshake can carry; a server whose handshake fails
/// is spoken to in the clear where that is allowed, and only there.
#[test]
fn servers_with_huge_certificates_and_broken_tls() -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let pki = Pki::new(&lab)?;
    let _servers = [
        pki.with_names(lab.server(), HUGE, "2600")?,
        pki.with_names(lab.server(), TOO_LARGE, "4000")?,
        pki.broken(lab.server(), BROKEN)?,
    ];
    ensure!(fs::metadata(pki.path("server-2600.pem"))?.len() > 70_000, "in base64");
    let mail = wire(&fixtures::message("huge", "a certificate like a book\r\n"));
    let client = |port| pki.client(lab.client(), lab.dial(Family::V4, port));
    // What is not believed is shown with a certificate that nobody vouches for.
    let trusting = |port| client(port).with("ca", Value::Null);
    for tls in ["require", "offered"] {
        let more = format!("upstream_tls = \"{tls}\"");
        let settings = settings(Steering::Nft).with("", &pki.outbound(&more));
        let vscan = Vscan::start(&lab, &settings)?;
        let told = client(HUGE).send(&[&mail])?;
        accepted(&told)?;
        let names = told["names"].as_array().map_or(0, Vec::len);
        ensure!(names == 256 && told["names"][0] == NAME, "{names} names");
        let told = trusting(BROKEN).send(&[&mail])?;
        let arrived = !pki.inbox("broken", BROKEN).is_empty();
        if tls == "require" {
            let error = told["error"].as_str().unwrap_or_default();
            ensure!(error.contains("handshake failure"), "{told}");
            ensure!(!arrived, "in the clear");
            anomaly(&vscan, "tls_server_failed", "")?;
            let told = trusting(TOO_LARGE).send(&[&mail])?;
            ensure!(told["error"].as_str().is_some_and(|it| it.contains("handshake failure")));
        } else {
            accepted(&told)?;
            ensure!(arrived && told["inside"]["starttls"].is_null(), "{told}");
            anomaly(&vscan, "tls_server_failed", "spoken to in the clear")?;
            let flows = vscan.flows()?;
            let clear = flows
                .iter()
                .find(|flow| flow["tls"]["client"].is_object() && flow["tls"]["server"].is_null());
            ensure!(clear.is_some_and(|flow| flow["tls"]["trusted"] == false), "{flows:?}");
        }
    }
    Ok(())
}

/// A client that asks for no name: what the server's own certificate says decides, and where it must not be opened the
/// client gets to the server itself by another connection. With STARTTLS and without.
#[test]
fn names_of_the_servers_own_certificate_decide() -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let pki = Pki::new(&lab)?;
    let postfix = pki.postfix(lab.server(), "")?;
    let _implicit = pki.implicit(lab.server(), 465)?;
    let tls = pki.outbound(&format!("never_open = [\"{NAME}\"]"));
    let vscan = Vscan::start(&lab, &settings(Steering::Bpf).with("", &tls))?;
    let infected = wire(&fixtures::message_with_attachment("x", "a.com", &fixtures::eicar()));
    for (port, way) in [(25, "starttls"), (465, "implicit")] {
        let client = pki.client(lab.client(), lab.dial(Family::V4, port));
        let nameless = client
            .with("way", way)
            .with("sni", Value::Null)
            .with("ca", pki.path("theirs.pem").display().to_string());
        // It believes the server's authority alone.
        let told = nameless.send(&[&infected])?;
        accepted(&told).with_context(|| way.to_owned())?;
        ensure!(told["names"] == json!([NAME]), "{told}");
    }
    wait::until("not delivered", LIMIT, || Ok((!postfix.inbox()?.is_empty()).then_some(())))?;
    ensure!(!pki.inbox("implicit", 465).is_empty());
    wait::until("the sessions are not counted", LIMIT, || {
        let passed = vscan.metrics()?.sum("vscan_flows_uninspected_total", &[("reason", "tls")]);
        Ok((passed == 2.0).then_some(()))
    })?;
    let output = vscan.cli(&["check"])?;
    ensure!(
        output.out.contains(&format!("TLS of {NAME} (tls.never_open) passes uninspected")),
        "{}",
        output.out
    );
    Ok(())
}

/// `verify = "public"`: the authorities of the system, which OpenSSL's variable moves elsewhere.
#[test]
fn public_authorities() -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let pki = Pki::new(&lab)?;
    let _server = pki.implicit(lab.server(), 465)?;
    let public: String = pki
        .outbound("")
        .replace("\"pinned\"", "\"public\"")
        .lines()
        .filter(|line| !line.starts_with("ca = "))
        .map(|line| format!("{line}\n"))
        .collect();
    let mail = wire(&fixtures::message("public", "hello\r\n"));
    for (roots, believed) in [("theirs.pem", true), ("ours.pem", false)] {
        let settings = settings(Steering::Bpf)
            .with("", &public)
            .with_env("SSL_CERT_FILE", pki.path(roots).display().to_string());
        let vscan = Vscan::start(&lab, &settings)?;
        let client = pki.client(lab.client(), lab.dial(Family::V4, 465)).with("way", "implicit");
        let told = client.send(&[&mail])?;
        if believed {
            accepted(&told)?;
        } else {
            ensure!(told["error"].as_str().is_some_and(|it| it.contains("handshake failure")));
            anomaly(&vscan, "tls_server_failed", "UnknownIssuer")?;
        }
        // Another name than the one that the certificate has.
        let told = client.with("sni", "other.example").with("ca", Value::Null).send(&[&mail])?;
        ensure!(told["error"].as_str().is_some_and(|it| it.contains("handshake failure")));
    }
    Ok(())
}

/// Keys that systemd hands over; a certificate that has expired is told of by `check`, the metric and the log; one that
/// suits no server is none.
#[test]
fn credentials_and_certificates_of_no_use() -> Result<()> {
    let lab = Lab::new(Topology::Forward)?;
    let pki = Pki::new(&lab)?;
    let _sink = Sink::start(lab.server(), 25, Behaviour::default())?;
    let given = lab.dir().join("credentials");
    fs::create_dir(&given)?;
    let put = |name: &str| -> Result<()> {
        for end in ["pem", "key"] {
            fs::copy(pki.path(&format!("{name}.{end}")), given.join(format!("mx.{end}")))?;
        }
        Ok(())
    };
    put("operator")?;
    let tls = "[tls]\nupstream_tls = \"offered\"\n[[tls.certificate]]\n\
               chain = \"credential:mx.pem\"\nkey = \"credential:mx.key\"\n";
    let settings = settings(Steering::Nft).with("", tls);
    let without = Vscan::start(&lab, &settings).err().context("started without its key")?;
    ensure!(format!("{without:#}").contains("LoadCredential="), "{without:#}");
    let settings = settings.with_env("CREDENTIALS_DIRECTORY", given.display().to_string());
    let vscan = Vscan::start(&lab, &settings)?;
    let to = lab.dial(Family::V4, 25);
    let mail = wire(&fixtures::message("credential", "hello\r\n"));
    accepted(&pki.client(lab.client(), to).send(&[&mail])?)?;
    put("expired")?;
    let output = vscan.cli(&["reload"])?;
    ensure!(output.success(), "{}{}", output.out, output.err);
    let told = pki.client(lab.client(), to).send(&[&mail])?;
    ensure!(told["error"].as_str().is_some_and(|it| it.contains("expired")), "{told}");
    anomaly(&vscan, "tls_client_failed", "")?;
    let expiry = vscan.metrics()?.sum("vscan_tls_certificate_expiry_timestamp_seconds", &[]);
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed()?.as_secs_f64();
    ensure!(expiry > 0.0 && expiry < now, "{expiry}");
    wait::until("the log is silent", LIMIT, || {
        Ok(vscan.log().contains("the certificate has expired").then_some(()))
    })?;
    drop(vscan);
    // The command line has no credentials: the files themselves.
    let settings = Settings::new(Steering::Nft)
        .with("smtp", "starttls = \"terminate\"")
        .with("", &pki.inbound("expired", "upstream_tls = \"offered\""));
    let vscan = Vscan::start(&lab, &settings)?;
    let output = vscan.cli(&["check"])?;
    ensure!(output.out.contains("the certificate has expired"), "{}{}", output.out, output.err);
    Ok(())
}

/// A server of others, and no authority: STARTTLS is there as the server has it, and is answered by 454.
#[test]
fn no_certificate_for_a_server() -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let pki = Pki::new(&lab)?;
    let postfix = pki.postfix(lab.server(), "")?;
    let _implicit = pki.implicit(lab.server(), 465)?;
    let vscan =
        Vscan::start(&lab, &settings(Steering::Bpf).with("", &pki.inbound("operator", "")))?;
    let told = pki.client(lab.client(), lab.dial(Family::V4, 25)).send(&[])?;
    ensure!(told["error"].as_str().is_some_and(|it| it.contains("454")), "{told}");
    ensure!(told["before"].to_string().contains("starttls"), "{told}");
    anomaly(&vscan, "tls_no_certificate", "no certificate for this server")?;
    let implicit = pki.client(lab.client(), lab.dial(Family::V4, 465)).with("way", "implicit");
    let told = implicit.with("sni", "other.example").with("ca", Value::Null).send(&[])?;
    ensure!(told["error"].as_str().is_some_and(|it| it.contains("handshake failure")), "{told}");
    // In the clear it goes on, and is inspected.
    let infected = wire(&fixtures::message_with_attachment("x", "a.com", &fixtures::eicar()));
    let client = pki.client(lab.client(), lab.dial(Family::V4, 25)).with("way", "plain");
    let told = client.send(&[&infected])?;
    ensure!(told["replies"][0].as_str().is_some_and(|it| it.starts_with("550 ")), "{told}");
    ensure!(postfix.inbox()?.is_empty());
    Ok(())
}

/// A client that wants another handshake inside of TLS 1.2 does not get it.
#[test]
fn renegotiation_is_refused() -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let pki = Pki::new(&lab)?;
    let _server = pki.postfix(lab.server(), "")?;
    let vscan = Vscan::start(&lab, &settings(Steering::Nft).with("", &pki.outbound("")))?;
    let to = lab.dial(Family::V4, 25);
    let script = format!(
        "(printf 'EHLO c\\n'; sleep 1; printf 'R\\n'; sleep 1; printf 'NOOP\\nQUIT\\n'; sleep 1) | \
         openssl s_client -tls1_2 -crlf -starttls smtp -connect '{to}' -servername {NAME} -CAfile {} 2>&1",
        pki.path("ours.pem").display(),
    );
    let output = lab.client().run(["sh", "-c", &script])?;
    ensure!(output.out.contains("RENEGOTIATING"), "{}", output.out);
    ensure!(output.out.contains("no renegotiation"), "{}", output.out);
    // The gateway minds neither that nor what comes next.
    let mail = wire(&fixtures::message("next", "hello\r\n"));
    accepted(&pki.client(lab.client(), to).send(&[&mail])?)?;
    wait::until("a session is left", LIMIT, || {
        Ok((vscan.json(&["status"])?["sessions"] == 0).then_some(()))
    })?;
    Ok(())
}

/// A ClientHello that comes a byte at a time, in records of a byte each.
#[test]
fn a_hello_in_crumbs() -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let pki = Pki::new(&lab)?;
    let _server = pki.postfix(lab.server(), "")?;
    let _vscan = Vscan::start(&lab, &settings(Steering::Bpf).with("", &pki.outbound("")))?;
    let mut peer = Peer::connect(lab.client(), lab.dial(Family::V4, 25))?;
    peer.expect("220")?;
    peer.ask("EHLO c", "250")?;
    peer.ask("STARTTLS", "220")?;
    let tcp = peer.stream().try_clone()?;
    drop(peer);
    let mut tls = pki.tls(tcp)?;
    let mut hello = Vec::new();
    tls.conn.write_tls(&mut hello)?;
    // One handshake message in as many records as it has bytes (RFC 8446 section 5.1).
    let mut tcp = tls.sock.try_clone()?;
    for byte in &hello[5..] {
        for part in [&[22, 3, 1][..], &[0, 1], &[*byte]] {
            std::io::Write::write_all(&mut tcp, part)?;
        }
    }
    std::io::Write::write_all(&mut tls, b"EHLO c\r\n")?;
    let mut answer = [0; 4];
    std::io::Read::read_exact(&mut tls, &mut answer)?;
    ensure!(&answer == b"250-", "{}", answer.escape_ascii());
    Ok(())
}

/// OpenSMTPD as a client that insists on TLS.
#[test]
fn opensmtpd_relays() -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let pki = Pki::new(&lab)?;
    let postfix = pki.postfix(lab.server(), "")?;
    let vscan = Vscan::start(&lab, &settings(Steering::Bpf).with("", &pki.outbound("")))?;
    let relay = OpenSmtpdRelay::start(lab.client(), lab.dial(Family::V4, 25))?;
    let infected = fixtures::message_with_attachment("bad", "a.com", &fixtures::eicar());
    let clean = fixtures::message("good", "hello\r\n.dot\r\n");
    for (mail, result) in [(&clean, "result=\"Ok\""), (&infected, "result=\"PermFail\"")] {
        let mut peer = Peer::connect(lab.client(), ([127, 0, 0, 1], OpenSmtpdRelay::PORT).into())?;
        peer.expect("220")?;
        peer.ask("EHLO c", "250")?;
        peer.ask("MAIL FROM:<alice@client.example>", "250")?;
        peer.ask("RCPT TO:<bob@server.example>", "250")?;
        peer.ask("DATA", "354")?;
        peer.send(wire(mail))?;
        peer.expect("250")?;
        peer.ask("QUIT", "221")?;
        wait::until("it has not relayed", LIMIT, || Ok(relay.log().contains(result).then_some(())))
            .with_context(|| relay.log())?;
    }
    ensure!(relay.log().contains("Message blocked by vscan"), "{}", relay.log());
    wait::until("not delivered", LIMIT, || Ok((!postfix.inbox()?.is_empty()).then_some(())))?;
    ensure!(postfix.inbox()?.len() == 1);
    let flow = wait::until("no flow with TLS", LIMIT, || {
        Ok(vscan.flows()?.into_iter().find(|flow| flow["tls"]["client"].is_object()))
    })?;
    ensure!(flow["uninspected"].is_null(), "{flow}");
    Ok(())
}

/// A server is greeted by vscan while its client makes its handshake, and hears that greeting once; a client that calls
/// itself by another name inside is heard too.
#[test]
fn a_greeting_is_heard_once() -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let pki = Pki::new(&lab)?;
    let postfix = pki.postfix(lab.server(), "")?;
    let _vscan = Vscan::start(&lab, &settings(Steering::Bpf).with("", &pki.outbound("")))?;
    for (inside, heard) in [("outside.example", "ehlo=2 "), ("inside.example", "ehlo=3 ")] {
        let mut peer = Peer::connect(lab.client(), lab.dial(Family::V4, 25))?;
        peer.expect("220")?;
        peer.ask("EHLO outside.example", "250")?;
        peer.ask("STARTTLS", "220")?;
        let tcp = peer.stream().try_clone()?;
        let mut tls = pki.tls(tcp)?;
        std::io::Write::write_all(&mut tls, format!("EHLO {inside}\r\nQUIT\r\n").as_bytes())?;
        let mut said = String::new();
        // Postfix goes without close_notify.
        let _ = std::io::Read::read_to_string(&mut tls, &mut said);
        ensure!(said.matches("250-PIPELINING").count() == 1, "{said}");
        ensure!(!said.contains("STARTTLS") && said.contains("\n221 "), "{said}");
        wait::until("what Postfix has heard", LIMIT, || {
            Ok(postfix.log().contains(heard).then_some(()))
        })
        .with_context(|| postfix.log())?;
    }
    Ok(())
}

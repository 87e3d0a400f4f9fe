//! Mail over TLS that is opened: real servers and clients, both ways, and everything that can go wrong.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::fs;
use std::time::Duration;
use vscan_tests::agent::{self, Settings, Steering, Vscan};
use vscan_tests::lab::{FAMILIES, Family, Lab, Topology};
use vscan_tests::peers::{EximRelay, PostfixRelay};
use vscan_tests::raw::{self, Peer};
use vscan_tests::smtp::{Behaviour, Sink, wire};
use vscan_tests::smtps::{NAME, Pki};
use vscan_tests::{fixtures, wait};

/// A mail is delivered within this time.
const LIMIT: Duration = Duration::from_secs(10);

/// The server programs, by their ports.
const PORTS: [u16; 2] = [25, 2526];

fn infected(name: &str) -> Vec<u8> {
    wire(&fixtures::message_with_attachment(name, "invoice.com", &fixtures::eicar()))
}

/// Without the final dot and with the dots unstuffed, and this system's line ends: as in a mailbox.
fn stored(message: &[u8]) -> Vec<u8> {
    message.iter().copied().filter(|byte| *byte != b'\r').collect()
}

/// The message as it is, without stuffing: smtplib does that.
fn text(name: &str) -> Vec<u8> {
    fixtures::message(name, "hello\r\n.dot\r\n..\r\n").to_vec()
}

fn refused(reply: &Value) -> Result<()> {
    let reply = reply.as_str().unwrap_or_default();
    ensure!(reply.starts_with("550 5.7.1 Message blocked by vscan: "), "not refused: {reply}");
    Ok(())
}

fn outbound(steering: Steering, pki: &Pki, more: &str) -> Settings {
    Settings::new(steering)
        .with("smtp", "ports = [25, 2526, 2527]\ntls_ports = [465]\nstarttls = \"terminate\"")
        .with("", &pki.outbound(more))
}

fn flow_with_tls(vscan: &Vscan<'_>) -> Result<Value> {
    wait::until("no flow with TLS", LIMIT, || {
        Ok(vscan.flows()?.into_iter().find(|flow| flow["tls"]["client"].is_object()))
    })
}

#[test]
fn real_servers_and_clients_through_a_router() -> Result<()> {
    peers(Topology::Plain, Steering::Bpf)
}

#[test]
fn real_servers_and_clients_behind_masquerade() -> Result<()> {
    peers(Topology::Masquerade, Steering::Nft)
}

/// Clean mails arrive byte for byte, infected ones do not, from every client to every server over both families; each
/// client verifies what it is shown.
fn peers(topology: Topology, steering: Steering) -> Result<()> {
    let lab = Lab::new(topology)?;
    let pki = Pki::new(&lab)?;
    let vscan = Vscan::start(&lab, &outbound(steering, &pki, ""))?;
    let postfix = pki.postfix(lab.server(), "")?;
    let exim = pki.exim(lab.server(), PORTS[1])?;
    let inbox = |port: u16| if port == 25 { postfix.inbox() } else { exim.inbox() };
    let logs = || format!("{}\n{}", postfix.log(), exim.log());
    let all = || PORTS.into_iter().flat_map(|port| FAMILIES.map(|family| (port, family)));
    let recipient = |port: u16, family: Family, client: &str| {
        format!("{client}-{port}-{family:?}@server.example").to_lowercase()
    };
    let routes: Vec<_> = ["postfix", "exim"]
        .into_iter()
        .flat_map(|client| {
            all().map(move |(port, family)| (recipient(port, family, client), (port, family)))
        })
        .map(|(to, (port, family))| (to, lab.dial(family, port)))
        .collect();
    let ca = pki.path("ours.pem");
    let encrypted = "smtp_tls_security_level = encrypt\nsmtp_tls_loglevel = 1\n";
    let relay = PostfixRelay::start_with(lab.client(), &routes, encrypted)?;
    let exim_relay = EximRelay::with_transport(lab.client(), &routes, "  hosts_require_tls = *\n")?;
    let mut expected = Vec::new();
    for (port, family) in all() {
        let what = || format!("port {port} {family:?}\n{}", logs());
        let to = lab.dial(family, port);
        let name = |client: &str| format!("{client} {port} {family:?}");
        let mut note = |client: &str| {
            let message = text(&name(client));
            expected.push((port, stored(&message)));
            message
        };
        // Python's smtplib, in both versions of TLS.
        for version in ["1.2", "1.3"] {
            let client = pki.client(lab.client(), to).with("version", version);
            let mail = note(&format!("smtplib {version}"));
            let told = client.send(&[&mail, &infected("bad")]).with_context(what)?;
            ensure!(told["error"].is_null(), "{told} {}", what());
            ensure!(told["version"] == format!("TLSv{version}"), "{told}");
            ensure!(told["names"] == serde_json::json!([NAME]), "{told}");
            ensure!(told["inside"]["starttls"].is_null(), "STARTTLS inside: {told}");
            let first = told["replies"][0].as_str().unwrap_or_default();
            ensure!(first.starts_with("250 "), "{told} {}", what());
            refused(&told["replies"][1]).with_context(what)?;
        }
        // Programs that read a file.
        let dir = lab.client().dir();
        for (client, bad) in [("swaks", false), ("curl", false), ("swaks", true), ("curl", true)] {
            let mail = if bad { infected("bad") } else { note(client) };
            let file = dir.join(format!("{client}.eml"));
            let mut bytes = mail.clone();
            if client == "swaks" {
                bytes = stored(&mail);
                bytes.pop();
            }
            fs::write(&file, bytes)?;
            let (file, ca) = (file.display(), ca.display());
            let script = match client {
                "swaks" => format!(
                    "swaks --server '{}' --port {port} --tls --tls-verify --tls-ca-path {ca} --tls-sni {NAME} \
                     --ehlo client.example --from alice@client.example --to bob@server.example --data @{file}",
                    to.ip()
                ),
                _ => format!(
                    "curl -sS -v --ssl-reqd --cacert {ca} --connect-to {NAME}:{port}:{to} \
                     smtp://{NAME}:{port}/client.example --mail-from alice@client.example \
                     --mail-rcpt bob@server.example -T {file}"
                ),
            };
            let output = lab.client().run(["sh", "-c", &script])?;
            let said = format!("{}{}", output.out, output.err);
            if bad {
                ensure!(said.contains("550 5.7.1 Message blocked by vscan"), "{said} {}", what());
            } else {
                ensure!(output.success(), "{client}: {said} {}", what());
            }
        }
        // openssl s_client verifies the chain and the name.
        let check = format!(
            "printf 'QUIT\\n' | openssl s_client -quiet -crlf -starttls smtp -connect '{to}' -servername {NAME} \
             -verify_hostname {NAME} -verify_return_error -CAfile {} 2>&1",
            ca.display()
        );
        let output = lab.client().run(["sh", "-c", &check])?;
        ensure!(output.out.contains("221 "), "s_client: {}{}", output.out, what());
        // Relays.
        let mail = note("exim");
        let file = dir.join("exim.eml");
        fs::write(&file, stored(&mail))?;
        let to = recipient(port, family, "exim");
        let said = exim_relay.send("alice@client.example", &to, &file)?;
        ensure!(said.contains(" => ") && said.contains("X=TLS"), "{said} {}", what());
        let mail = note("postfix");
        let to = recipient(port, family, "postfix");
        let relayed = relay_by_postfix(&lab, &relay, &to, &mail).with_context(what)?;
        ensure!(relayed.contains("status=sent"), "{relayed} {}", what());
        let bad = relay_by_postfix(&lab, &relay, &to, &infected("bad"))?;
        ensure!(bad.contains("status=bounced") && bad.contains("blocked by vscan"), "{bad}");
    }
    for port in PORTS {
        let wanted: Vec<_> =
            expected.iter().filter(|(at, _)| *at == port).map(|(_, message)| message).collect();
        wait::until("not delivered", LIMIT, || {
            Ok((inbox(port)?.len() >= wanted.len()).then_some(()))
        })
        .with_context(logs)?;
        let got: Vec<_> = inbox(port)?.iter().map(|message| stored(message)).collect();
        ensure!(got.len() == wanted.len(), "{} mails instead of {}", got.len(), wanted.len());
        for message in wanted {
            let count = got.iter().filter(|got| got.ends_with(message)).count();
            ensure!(count == 1, "{count} times: {}", String::from_utf8_lossy(message));
        }
    }
    let flow = flow_with_tls(&vscan)?;
    ensure!(flow["tls"]["trusted"] == true && flow["uninspected"].is_null(), "{flow}");
    ensure!(flow["tls"]["server"]["version"] == "TLSv1.3", "{flow}");
    let event = vscan.wait_for_event("flow", |event| event["flow"]["tls"].is_object())?;
    ensure!(
        event["flow"]["tls"]["client"]["cipher"].as_str().is_some_and(|it| it.starts_with("TLS_"))
    );
    let metrics = vscan.metrics()?;
    ensure!(metrics.sum("vscan_tls_handshakes_total", &[("leg", "client")]) >= 20.0);
    ensure!(metrics.sum("vscan_flows_uninspected", &[("reason", "tls")]) == 0.0);
    Ok(())
}

fn relay_by_postfix(lab: &Lab, relay: &PostfixRelay, to: &str, mail: &[u8]) -> Result<String> {
    let mark = format!("to=<{to}>");
    let said = || -> Vec<String> {
        relay.log().lines().filter(|line| line.contains(&mark)).map(str::to_owned).collect()
    };
    let before = said().len();
    let local = std::net::SocketAddr::from(([127, 0, 0, 1], PostfixRelay::PORT));
    let mut peer = Peer::connect(lab.client(), local)?;
    peer.expect("220")?;
    peer.ask("EHLO client.example", "250")?;
    peer.ask("MAIL FROM:<alice@client.example> BODY=8BITMIME", "250")?;
    peer.ask(&format!("RCPT TO:<{to}>"), "250")?;
    peer.ask("DATA", "354")?;
    peer.send(wire(mail))?;
    peer.expect("250")?;
    peer.ask("QUIT", "221")?;
    wait::until("the relay has not tried", LIMIT, || Ok(said().get(before).cloned()))
        .with_context(|| relay.log())
}

/// The operator's certificate for a server inside: one with TLS, one without, and one that begins with it.
#[test]
fn inbound_with_the_operators_certificate() -> Result<()> {
    let lab = Lab::new(Topology::Forward)?;
    let pki = Pki::new(&lab)?;
    let settings = Settings::new(Steering::Bpf)
        .with("smtp", "ports = [25, 2526]\ntls_ports = [2527]\nstarttls = \"terminate\"")
        .with("", &pki.inbound("operator", "upstream_tls = \"offered\""));
    let vscan = Vscan::start(&lab, &settings)?;
    let postfix = pki.postfix(lab.server(), "")?;
    let sink = Sink::start(lab.server(), 2526, Behaviour::default())?;
    let _implicit = pki.implicit(lab.server(), 2527)?;
    for family in FAMILIES {
        for (port, way, name) in
            [(25, "starttls", Some(NAME)), (2526, "starttls", None), (2527, "implicit", Some(NAME))]
        {
            let mail = text(&format!("{port} {family:?}"));
            let client = pki
                .client(lab.client(), lab.dial(family, port))
                .with("way", way)
                .with("sni", name.map_or(Value::Null, Value::from));
            let told = client.send(&[&mail, &infected("bad"), &mail])?;
            ensure!(told["error"].is_null(), "{port} {told}");
            ensure!(told["names"] == serde_json::json!([NAME]), "{told}");
            refused(&told["replies"][1])?;
            ensure!(told["replies"][2].as_str().is_some_and(|it| it.starts_with("250")), "{told}");
        }
    }
    wait::until("not delivered", LIMIT, || Ok((postfix.inbox()?.len() == 4).then_some(())))?;
    ensure!(postfix.log().contains("TLS connection established from"), "{}", postfix.log());
    ensure!(sink.messages().len() == 4 && !sink.commands().iter().any(|it| it == "STARTTLS"));
    ensure!(fs::read(pki.path("inbox-implicit-2527"))?.windows(5).any(|it| it == b"hello"));
    let plain = vscan
        .flows()?
        .into_iter()
        .filter(|flow| flow["tls"]["client"].is_object() && flow["tls"]["server"].is_null());
    ensure!(plain.count() == 2, "legs in the clear are shown as such");
    Ok(())
}

/// A server whose certificate is not believed: with "require" and pinning nobody gets in, and nothing goes in the clear;
/// opportunistic clients see a certificate that nobody vouches for.
#[test]
fn servers_that_are_not_believed() -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let pki = Pki::new(&lab)?;
    // The servers' certificates are from another authority than the one that is pinned.
    let wrong = pki.outbound("").replace("theirs.pem", "ours.pem");
    let settings = |tls: &str| {
        Settings::new(Steering::Nft).with("smtp", "starttls = \"terminate\"").with("", tls)
    };
    // That it also asks for the client's certificate does not make it one that insists on it, which would pass.
    let postfix = pki.postfix(lab.server(), "smtpd_tls_ask_ccert = yes\n")?;
    let to = lab.dial(Family::V4, 25);
    let vscan = Vscan::start(&lab, &settings(&wrong))?;
    for ca in [Value::from(pki.path("ours.pem").display().to_string()), Value::Null] {
        let told = pki.client(lab.client(), to).with("ca", ca).send(&[&text("x")])?;
        let error = told["error"].as_str().unwrap_or_default();
        ensure!(error.contains("handshake failure"), "{told}");
    }
    vscan.wait_for_event("anomaly", |event| event["anomaly"]["event"] == "tls_server_failed")?;
    ensure!(!postfix.log().contains("client=") || postfix.inbox()?.is_empty());
    drop(vscan);
    let lenient = pki.outbound("").replace("\"pinned\"", "\"opportunistic\"");
    let lenient: String = lenient
        .lines()
        .filter(|line| !line.starts_with("ca = "))
        .map(|it| format!("{it}\n"))
        .collect();
    let _vscan = Vscan::start(&lab, &settings(&lenient))?;
    let told = pki.client(lab.client(), to).send(&[&text("x")])?;
    let error = told["error"].as_str().unwrap_or_default();
    ensure!(error.contains("CERTIFICATE_VERIFY_FAILED"), "vouched for a stranger: {told}");
    let told = pki.client(lab.client(), to).with("ca", Value::Null).send(&[&text("x")])?;
    ensure!(told["error"].is_null() && told["replies"][0] != Value::Null, "{told}");
    Ok(())
}

/// Lists, rules, servers without TLS: what is not opened passes and is counted, or is refused.
#[test]
fn rules_and_lists() -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let pki = Pki::new(&lab)?;
    let rules = "never_open = [\"*.closed.example\"]\n\
        [[tls.rule]]\naction = \"refuse\"\nserver_name = \"refused.example\"\n\
        [[tls.rule]]\naction = \"pass\"\nto = \"2001:db8:2::2\"\n";
    let vscan = Vscan::start(&lab, &outbound(Steering::Bpf, &pki, rules))?;
    let postfix = pki.postfix(lab.server(), "")?;
    let theirs = pki.path("theirs.pem").display().to_string();
    let _sink = Sink::start(lab.server(), 2526, Behaviour::default())?;
    let to = lab.dial(Family::V4, 25);
    // A name on the list, with the server's own certificate, which is for another name.
    let listed =
        pki.client(lab.client(), to).with("ca", Value::Null).with("sni", "mx.closed.example");
    let told = listed.send(&[&infected("passes")])?;
    ensure!(told["error"].is_null(), "{told}");
    // A network.
    let told = pki.client(lab.client(), lab.dial(Family::V6, 25)).with("ca", theirs).send(&[])?;
    ensure!(told["error"].is_null() && told["names"] == serde_json::json!([NAME]), "{told}");
    let passed = |flow: &Value| flow["uninspected"] == "tls";
    let count = || -> Result<usize> { Ok(vscan.flows()?.iter().filter(|it| passed(it)).count()) };
    ensure!(count()? == 2, "{:?}", vscan.flows()?);
    // A name that is refused.
    let client = pki.client(lab.client(), to).with("ca", Value::Null);
    let told = client.with("sni", "refused.example").send(&[])?;
    ensure!(told["error"].as_str().is_some_and(|it| it.contains("access denied")), "{told}");
    // Any other is opened.
    let told = pki.client(lab.client(), to).send(&[&infected("bad")])?;
    refused(&told["replies"][0]).with_context(|| told.to_string())?;
    ensure!(postfix.inbox()?.len() == 1);
    // A server without TLS has none.
    let client = pki.client(lab.client(), lab.dial(Family::V4, 2526)).with("way", "plain");
    let told = client.send(&[])?;
    ensure!(!told["before"].to_string().contains("starttls"), "{told}");
    Ok(())
}

/// Plaintext on either side of STARTTLS, garbage instead of a handshake, handshakes without end.
#[test]
fn bad_input_around_the_handshake() -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let pki = Pki::new(&lab)?;
    let vscan = Vscan::start(&lab, &outbound(Steering::Bpf, &pki, "handshake_timeout = \"2s\""))?;
    let listener = raw::listen(lab.server(), 25)?;
    let behaviours: [(&[u8], &[u8], &str); 6] = [
        (b"STARTTLS\r\nMAIL FROM:<evil@x>\r\n", b"220 go\r\n", "smtp_commands_behind_starttls"),
        (b"STARTTLS\r\n", b"220 go\r\n250 evil\r\n", "smtp_plaintext_behind_starttls"),
        (b"STARTTLS\r\n", b"220 go\r\n", "smtp_not_tls"),
        (b"STARTTLS\r\n", b"220 go\r\n", "tls_client_failed"),
        (b"STARTTLS\r\n", b"220 go\r\n", "tls_handshake_timeout"),
        (b"STARTTLS\r\n", b"220 go\r\n", "tls_server_failed"),
    ];
    for (number, (command, answer, anomaly)) in behaviours.into_iter().enumerate() {
        let mut client = Peer::connect(lab.client(), lab.dial(Family::V4, 25))?;
        let (mut server, _) = raw::accept(&listener)?;
        server.send("220 mx\r\n")?;
        client.expect("220")?;
        client.send("EHLO c\r\n")?;
        server.line()?;
        server.send("250-mx\r\n250 STARTTLS\r\n")?;
        client.reply()?;
        client.send(command)?;
        // What is injected is met before the server hears anything.
        if number > 0 {
            ensure!(server.line()? == "STARTTLS\r\n");
            server.send(answer)?;
        }
        match number {
            0 | 1 => {}
            2 => {
                client.expect("220")?;
                client.send("EHLO in the clear\r\n")?;
            }
            3 => {
                client.expect("220")?;
                client.send(b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\xff")?;
            }
            // Nothing, and a ClientHello that is answered by nothing that is TLS.
            4 => drop(client.expect("220")?),
            _ => {
                client.expect("220")?;
                client.send(client_hello())?;
                server.take(5)?;
                server.send("HTTP/1.1 400 Bad Request\r\n\r\n")?;
            }
        }
        let wanted = |event: &Value| event["anomaly"]["event"] == anomaly;
        vscan.wait_for_event("anomaly", wanted).with_context(|| anomaly.to_owned())?;
        let (rest, _) = server.drain()?;
        ensure!(number > 0 || rest.is_empty(), "{anomaly}: {}", rest.escape_ascii());
        ensure!(
            !rest.windows(4).any(|it| it == b"evil" || it == b"EHLO"),
            "{anomaly}: {}",
            rest.escape_ascii()
        );
        let (said, _) = client.drain()?;
        ensure!(!said.windows(4).any(|it| it == b"evil"), "{anomaly}: {}", said.escape_ascii());
    }
    Ok(())
}

/// A ClientHello as openssl makes it, of TLS 1.2.
fn client_hello() -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0, 2, 0xc0, 0x2b, 1, 0]);
    let extensions: &[u8] = &[
        0, 10, 0, 4, 0, 2, 0, 23, // supported_groups: secp256r1
        0, 11, 0, 2, 1, 0, // ec_point_formats: uncompressed
        0, 13, 0, 4, 0, 2, 4, 3, // signature_algorithms: ecdsa_secp256r1_sha256
        0, 23, 0, 0, // extended_master_secret
    ];
    body.extend([0, extensions.len() as u8]);
    body.extend(extensions);
    let mut hello = vec![22, 3, 1, 0, body.len() as u8 + 4, 1, 0, 0, body.len() as u8];
    hello.extend(body);
    hello
}

/// A client with a certificate of its own: it is noticed, and passes from then on.
#[test]
fn clients_with_certificates_pass() -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let pki = Pki::new(&lab)?;
    let vscan = Vscan::start(&lab, &outbound(Steering::Nft, &pki, ""))?;
    // One that believes both, as any does that knows the operator's authority.
    let both = pki.path("both.pem").display().to_string();
    // Postfix asks, and takes what it gets.
    let postfix = pki.postfix(lab.server(), "smtpd_tls_ask_ccert = yes\n")?;
    let to = lab.dial(Family::V4, 25);
    let told = pki.client(lab.client(), to).send(&[&infected("no certificate")])?;
    refused(&told["replies"][0]).with_context(|| told.to_string())?;
    let told = pki.client(lab.client(), to).with("certificate", true).send(&[&text("x")])?;
    let error = told["error"].to_string();
    ensure!(error.contains("421") || error.contains("Disconnected"), "{told}");
    let certain = pki.client(lab.client(), to).with("certificate", true).with("ca", both.clone());
    let told = certain.send(&[&text("with a certificate")])?;
    ensure!(told["error"].is_null(), "{told}\n{}", postfix.log());
    vscan.wait_for_event("anomaly", |it| it["anomaly"]["event"] == "tls_client_certificate")?;
    // Servers that insist say so before the client has an answer (1.2), or behind it (1.3).
    let demanding =
        [pki.demanding(lab.server(), 2526, "1.2")?, pki.demanding(lab.server(), 2527, "1.3")?];
    for (port, process) in [2526, 2527].into_iter().zip(&demanding) {
        let to = lab.dial(Family::V4, port);
        let client =
            pki.client(lab.client(), to).with("certificate", true).with("ca", both.clone());
        // With 1.3 the first attempt finds it out.
        let told = (0..2)
            .map(|_| client.send(&[&text("x")]))
            .find(|told| told.as_ref().is_ok_and(|told| told["error"].is_null()));
        ensure!(told.is_some(), "port {port}: {}", process.log());
        ensure!(process.log().contains("client.example"), "port {port}: {}", process.log());
    }
    Ok(())
}

/// New certificates by a reload; old ones are told of; a key that does not fit changes nothing.
#[test]
fn certificates_are_reloaded_and_looked_at() -> Result<()> {
    let lab = Lab::new(Topology::Forward)?;
    let pki = Pki::new(&lab)?;
    let settings = Settings::new(Steering::Nft)
        .with("smtp", "starttls = \"terminate\"")
        .with("", &pki.inbound("operator", "upstream_tls = \"offered\""));
    let vscan = Vscan::start(&lab, &settings)?;
    let _sink = Sink::start(lab.server(), 25, Behaviour::default())?;
    let to = lab.dial(Family::V4, 25);
    let works = || -> Result<()> {
        let told = pki.client(lab.client(), to).send(&[&text("x")])?;
        ensure!(told["error"].is_null(), "{told}");
        Ok(())
    };
    works()?;
    let expiry = |vscan: &Vscan<'_>| -> Result<f64> {
        Ok(vscan.metrics()?.sum("vscan_tls_certificate_expiry_timestamp_seconds", &[]))
    };
    let before = expiry(&vscan)?;
    // A key that is not the certificate's: refused, and the former goes on.
    let (key, chain) = (pki.path("operator.key"), pki.path("operator.pem"));
    let good = fs::read(&key)?;
    fs::copy(pki.path("server.key"), &key)?;
    let output = vscan.cli(&["reload"])?;
    ensure!(
        !output.success() && output.err.contains("the key is not that of the certificate"),
        "{}{}",
        output.out,
        output.err
    );
    works()?;
    let output = vscan.cli(&["check"])?;
    ensure!(!output.success(), "{}", output.out);
    fs::write(&key, good)?;
    // One that expires soon.
    fs::copy(pki.path("short.key"), &key)?;
    fs::copy(pki.path("short.pem"), &chain)?;
    let output = vscan.cli(&["reload"])?;
    ensure!(output.success(), "{}{}", output.out, output.err);
    works()?;
    ensure!(expiry(&vscan)? < before - 86_400.0 * 200.0, "the metric tells of the old one");
    // It has three days from the second in which it was made, which may not be over.
    wait::until("check tells of it", LIMIT, || {
        let output = vscan.cli(&["check"])?;
        Ok(output.out.contains("expires in 2 days").then_some(()))
    })
}

/// The gateway is killed in mid-mail, then the supervisor, whose end is the gateway's: the server never gets a whole one.
#[test]
fn killed_in_mid_mail() -> Result<()> {
    for supervisor in [false, true] {
        killed(supervisor).with_context(|| format!("supervisor: {supervisor}"))?;
    }
    Ok(())
}

fn killed(supervisor: bool) -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let pki = Pki::new(&lab)?;
    let settings = outbound(Steering::Bpf, &pki, "");
    let mut vscan = Vscan::start(&lab, &settings)?;
    let before = vscan.processes();
    let postfix = pki.postfix(lab.server(), "")?;
    let to = lab.dial(Family::V4, 25);
    let client = pki.client(lab.client(), to).with("linger", true);
    std::thread::scope(|scope| -> Result<()> {
        let sending = scope.spawn(|| client.send(&[&text("cut")]));
        wait::until("no message under way", LIMIT, || {
            Ok(vscan.flows()?.iter().any(|flow| flow["state"] == "data").then_some(()))
        })?;
        agent::kill(if supervisor { before.supervisor } else { before.gateway })?;
        // What it prints is from before.
        let _ = sending.join();
        Ok(())
    })?;
    if supervisor {
        agent::wait_until_gone(before.gateway)?;
        let config = vscan.config().to_owned();
        vscan = Vscan::start_with(&lab, &settings, config)?;
    } else {
        vscan.wait_for_processes(&[before.gateway])?;
    }
    wait::until("the agent does not come back", LIMIT, || {
        let told = pki.client(lab.client(), to).send(&[&text("after")])?;
        Ok(told["error"].is_null().then_some(()))
    })?;
    wait::until("not delivered", LIMIT, || Ok((!postfix.inbox()?.is_empty()).then_some(())))?;
    let inbox = postfix.inbox()?;
    ensure!(inbox.len() == 1, "{} mails", inbox.len());
    ensure!(!inbox[0].windows(3).any(|it| it == b"cut"));
    drop(vscan);
    Ok(())
}

/// Clients resume; records of a byte each are as good as any.
#[test]
fn resumed_sessions_and_authentication() -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let pki = Pki::new(&lab)?;
    let vscan = Vscan::start(&lab, &outbound(Steering::Nft, &pki, ""))?;
    let exim = pki.exim(lab.server(), 2526)?;
    let to = lab.dial(Family::V4, 2526);
    let client = pki.client(lab.client(), to).with("login", true);
    let told = client.send(&[&text("authenticated"), &infected("bad")])?;
    ensure!(told["error"].is_null(), "{told}\n{}", exim.log());
    refused(&told["replies"][1])?;
    ensure!(
        exim.log().contains("A=plain:alice") || exim.log().contains("A=cram:alice"),
        "{}",
        exim.log()
    );
    let session = lab.client().dir().join("session");
    for resumed in [false, true] {
        let option = if resumed { "-sess_in" } else { "-sess_out" };
        let script = format!(
            "(printf 'EHLO c\\n'; sleep 1; printf 'QUIT\\n') | openssl s_client -crlf -starttls smtp -connect '{to}' \
             -servername {NAME} {option} {} -CAfile {} 2>&1",
            session.display(),
            pki.path("ours.pem").display(),
        );
        let output = lab.client().run(["sh", "-c", &script])?;
        let reused = output.out.lines().any(|line| line.starts_with("Reused, "));
        ensure!(reused == resumed, "{}", output.out);
    }
    wait::until("no resumed flow", LIMIT, || {
        Ok(vscan.flows()?.iter().any(|flow| flow["tls"]["client"]["resumed"] == true).then_some(()))
    })?;
    if exim.inbox()?.len() != 1 {
        bail!("{} mails", exim.inbox()?.len());
    }
    Ok(())
}

//! FTPS that is opened: real servers and clients, both versions of TLS, data connections that resume the dialogue's
//! session, ends that are cut off.

use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::PathBuf;
use std::time::Duration;
use vscan_tests::agent::{Settings, Steering, Vscan, kill};
use vscan_tests::ftps::{Ftps, IMPLICIT, Script};
use vscan_tests::host::Output;
use vscan_tests::lab::{FAMILIES, Family, Lab, Topology};
use vscan_tests::raw::Peer;
use vscan_tests::{fixtures, on_both, wait};

on_both!(implicit_tls, opened_sessions_are_shown);

const LIMIT: Duration = Duration::from_secs(20);

/// curl as alice, who believes the operator's authority alone.
fn curl(lab: &Lab, pki: &Ftps, more: &[&str]) -> Result<Output> {
    let ca = pki.authority();
    let common =
        ["curl", "-sS", "--max-time", "30", "-u", "alice:secret", "--ssl-reqd", "--cacert"];
    lab.client().run([&common[..], &[&ca], more].concat())
}

/// A lab, its certificates, and the servers on ports 21, 2121 and 2122.
struct World {
    lab: Lab,
    pki: Ftps,
    servers: Vec<(u16, &'static str, PathBuf)>,
    _running: Box<dyn std::any::Any>,
}

impl World {
    fn new(topology: Topology) -> Result<Self> {
        let lab = Lab::new(topology)?;
        let pki = Ftps::new(&lab)?;
        let vsftpd = pki.vsftpd(lab.server(), 21, "require_ssl_reuse=YES\n")?;
        let proftpd = pki.proftpd(lab.server(), 2121)?;
        let pureftpd = pki.pureftpd(lab.server(), 2122)?;
        let servers = vec![
            (21, "vsftpd", vsftpd.files().clone()),
            (2121, "proftpd", proftpd.files().clone()),
            (2122, "pure-ftpd", pureftpd.files().clone()),
        ];
        Ok(Self { lab, pki, servers, _running: Box::new((vsftpd, proftpd, pureftpd)) })
    }

    fn settings(&self, steering: Steering, ftp: &str) -> Settings {
        let ftp = format!("ports = [21, 2121, 2122]\ntls = \"terminate\"\n{ftp}");
        Settings::new(steering).with("ftp", &ftp).with("", &self.pki.settings())
    }
}

/// Up, down, and what is infected; with every server, version and family, by curl passive and by ftplib active.
fn files_pass(world: &World, versions: &[&str], ftp: &str) -> Result<()> {
    let World { lab, pki, servers, .. } = world;
    let vscan = Vscan::start(lab, &world.settings(Steering::Bpf, ftp))?;
    let here = lab.client().dir();
    let file = fixtures::random(300_000, 3);
    fs::write(here.join("up"), &file)?;
    fs::write(here.join("bad"), fixtures::eicar())?;
    for (port, server, files) in servers {
        for version in versions {
            for family in FAMILIES {
                let what = format!("{server} TLS {version} {family:?}");
                let tls = format!("--tlsv{version}");
                let number = if family == Family::V4 { "4" } else { "6" };
                let dash = format!("-{number}");
                let way = [tls.as_str(), "--tls-max", version, &dash];
                let url = |name: &str| format!("ftp://server.example:{port}/{name}");
                let run = |more: &[&str]| curl(lab, pki, &[&way[..], more].concat());
                let put = run(&["-T", "up", &url("file")])?;
                ensure!(put.success(), "{what}: {put:?}");
                ensure!(fs::read(files.join("file"))? == file, "{what}: the upload was changed");
                let get = run(&["-o", "got", &url("file")])?;
                ensure!(get.success(), "{what}: {get:?}");
                ensure!(fs::read(here.join("got"))? == file, "{what}: the download was changed");
                let bad = run(&["-T", "bad", &url("bad")])?;
                ensure!(!bad.success() && bad.err.contains("550"), "{what}: {bad:?}");
                ensure!(!files.join("bad").exists(), "{what}: it was stored");
                fs::write(files.join("worse"), fixtures::eicar())?;
                let _ = fs::remove_file(here.join("got"));
                let worse = run(&["-o", "got", &url("worse")])?;
                ensure!(!worse.success(), "{what}: {worse:?}");
                ensure!(fs::read(here.join("got")).unwrap_or_default().is_empty(), "{what}");
                fs::remove_file(files.join("worse"))?;
                // ftplib resumes no session of its own: that the data connections do is the gateway's doing.
                let port = port.to_string();
                let arguments = ["server.example", &port, version, number, "active", ""];
                let said = pki.python(lab.client(), Script::Client, &arguments)?;
                ensure!(said.success() && said.out.contains("all is well"), "{what}: {said:?}");
                ensure!(
                    fs::read(files.join("by-python"))? == file,
                    "{what}: the upload was changed"
                );
            }
        }
    }
    let caught = vscan.metrics()?.sum("vscan_objects_total", &[("verdict", "infected")]);
    ensure!(caught as usize == servers.len() * versions.len() * 2 * 3, "{caught}");
    ensure!(vscan.metrics()?.sum("vscan_flows_uninspected_total", &[]) == 0.0);
    Ok(())
}

#[test]
fn every_server_and_version_held() -> Result<()> {
    files_pass(&World::new(Topology::Plain)?, &["1.2", "1.3"], "")
}

#[test]
fn behind_masquerade_streamed() -> Result<()> {
    let mut world = World::new(Topology::Masquerade)?;
    // ProFTPD gives no ticket with every transfer, and refuses data connections with 425 when none is left: a reset one gives
    // none.
    world.servers.retain(|(_, server, _)| *server != "proftpd");
    files_pass(&world, &["1.3"], "delivery = \"stream\"\n")
}

/// lftp and Python's ftplib, which end TLS on data connections themselves and wait for the other end's word.
#[test]
fn other_clients() -> Result<()> {
    let world = World::new(Topology::Plain)?;
    let World { lab, pki, servers, .. } = &world;
    let settings = world.settings(Steering::Bpf, "").with("scan", "skip_extensions = [\"txt\"]");
    let vscan = Vscan::start(lab, &settings)?;
    let here = lab.client().dir();
    let text = "what every server has\n".repeat(20_000);
    fs::write(here.join("up.txt"), &text)?;
    let file = fixtures::random(200_000, 5);
    fs::write(here.join("up"), &file)?;
    fs::write(here.join("bad"), fixtures::eicar())?;
    for (port, server, files) in servers {
        let lftp = format!(
            "debug 8; set ssl:ca-file {}; set ftp:ssl-force yes; set ftp:ssl-protect-data yes; set net:max-retries 1; set ftp:passive-mode off; \
             set net:timeout 20; open -u alice,secret ftp://server.example:{port}; put up -o by-lftp; \
             get by-lftp -o lftp-got; cls; put bad",
            pki.authority()
        );
        let _ = fs::remove_file(here.join("lftp-got"));
        let said = lab.client().run(["lftp", "-c", &lftp])?;
        ensure!(said.err.contains("550"), "{server}: {said:?}");
        ensure!(said.out.contains("by-lftp"), "{server}: {said:?}");
        ensure!(fs::read(files.join("by-lftp"))? == file, "{server}: the upload was changed");
        ensure!(fs::read(here.join("lftp-got"))? == file, "{server}: the download was changed");
        // Told by its first bytes, which are decrypted and not lost; the other is no text.
        let url = |name: &str| format!("ftp://server.example:{port}/{name}");
        let put = curl(lab, pki, &["-T", "up.txt", &url("file.txt")])?;
        let get = curl(lab, pki, &["-o", "got.txt", &url("file.txt")])?;
        ensure!(put.success() && get.success(), "{server}: {put:?} {get:?}");
        ensure!(fs::read_to_string(files.join("file.txt"))? == text, "{server}");
        ensure!(fs::read_to_string(here.join("got.txt"))? == text, "{server}");
        let bad = curl(lab, pki, &["-T", "bad", &url("bad.pdf")])?;
        ensure!(!bad.success() && bad.err.contains("550"), "{server}: {bad:?}");
        // vsftpd does not know CCC.
        let ccc = if *port == 21 { "" } else { "ccc" };
        let arguments = ["server.example", &port.to_string(), "1.3", "4", "passive", ccc];
        let said = pki.python(lab.client(), Script::Client, &arguments)?;
        ensure!(said.success() && said.out.contains("all is well"), "{server}: {said:?}");
        ensure!(fs::read(files.join("by-python"))? == file, "{server}: the upload was changed");
    }
    let metrics = vscan.metrics()?;
    ensure!(metrics.sum("vscan_flows_uninspected_total", &[]) == 0.0);
    let texts = metrics.sum("vscan_objects_uninspected_total", &[("reason", "excluded_type")]);
    ensure!(texts as usize == 2 * servers.len(), "{texts}");
    Ok(())
}

/// Data without close_notify are not complete, in neither direction; unless the peer is known for it.
#[test]
fn cut_off_data_are_not_complete() -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let pki = Ftps::new(&lab)?;
    let vsftpd = pki.vsftpd(lab.server(), 21, "")?;
    let _cutting = pki.cutting_server(lab.server(), 2121)?;
    let file = fixtures::random(100_000, 9);
    fs::write(lab.client().dir().join("up"), &file)?;
    for lenient in [false, true] {
        let ftp = format!(
            "ports = [21, 2121]\ntls = \"terminate\"\n{}",
            if lenient { "no_close_notify = [\"192.0.2.0/24\", \"10.1.0.2\"]\n" } else { "" }
        );
        let settings = Settings::new(Steering::Bpf).with("ftp", &ftp).with("", &pki.settings());
        let vscan = Vscan::start(&lab, &settings)?;
        let cut = pki.python(lab.client(), Script::CuttingClient, &["server.example", "21"])?;
        let stored = vsftpd.files().join("cut");
        ensure!(cut.success(), "{cut:?}");
        ensure!(cut.out.contains(if lenient { "226" } else { "426" }), "{cut:?}");
        ensure!(stored.exists() == lenient, "lenient {lenient}");
        let _ = fs::remove_file(lab.client().dir().join("got"));
        let got = curl(&lab, &pki, &["-o", "got", "ftp://server.example:2121/file"])?;
        let arrived = fs::read(lab.client().dir().join("got")).unwrap_or_default();
        ensure!(got.success() == lenient, "lenient {lenient}: {got:?}");
        ensure!(arrived.is_empty() != lenient, "lenient {lenient}: {} bytes", arrived.len());
        vscan
            .wait_for_event("anomaly", |event| event["anomaly"]["event"] == "ftp_tls_truncated")?;
    }
    Ok(())
}

/// Port 990: TLS from the first byte.
fn implicit_tls(steering: Steering) -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let pki = Ftps::new(&lab)?;
    let vsftpd = pki.vsftpd(lab.server(), IMPLICIT, "implicit_ssl=YES\n")?;
    let settings = Settings::new(steering)
        .with("ftp", "tls_ports = [990]\ntls = \"terminate\"\n")
        .with("", &pki.settings());
    let vscan = Vscan::start(&lab, &settings)?;
    let file = fixtures::random(300_000, 4);
    fs::write(lab.client().dir().join("up"), &file)?;
    fs::write(lab.client().dir().join("bad"), fixtures::eicar())?;
    for family in ["-4", "-6"] {
        let url = |name: &str| format!("ftps://server.example:{IMPLICIT}/{name}");
        let put = curl(&lab, &pki, &[family, "-T", "up", &url("file")])?;
        ensure!(put.success(), "{family}: {put:?}");
        ensure!(fs::read(vsftpd.files().join("file"))? == file);
        let get = curl(&lab, &pki, &[family, "-o", "got", &url("file")])?;
        ensure!(get.success() && fs::read(lab.client().dir().join("got"))? == file, "{get:?}");
        let bad = curl(&lab, &pki, &[family, "-T", "bad", &url("bad")])?;
        ensure!(!bad.success() && bad.err.contains("550"), "{family}: {bad:?}");
    }
    ensure!(vscan.metrics()?.sum("vscan_objects_total", &[("verdict", "infected")]) == 2.0);
    Ok(())
}

/// What is open says so; what may not be opened passes and is counted; what is no TLS, or never ends, is ended.
fn opened_sessions_are_shown(steering: Steering) -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let pki = Ftps::new(&lab)?;
    let vsftpd = pki.vsftpd(lab.server(), 21, "")?;
    fs::write(vsftpd.files().join("bad"), fixtures::eicar())?;
    let tls = pki.settings().replacen(
        "[tls]\n",
        "[tls]\nnever_open = [\"closed.example\"]\nhandshake_timeout = \"2s\"\n",
        1,
    );
    let settings = Settings::new(steering).with("ftp", "tls = \"terminate\"\n").with("", &tls);
    let vscan = Vscan::start(&lab, &settings)?;
    let bad = curl(&lab, &pki, &["ftp://server.example/bad"])?;
    ensure!(!bad.success(), "{bad:?}");
    let flow = vscan.wait_for_event("flow", |event| event["dest_port"] == 21)?;
    ensure!(flow["flow"]["uninspected"].is_null(), "{flow}");

    // Never opened by its name: the server's own certificate, and its own authority.
    let resolve = "closed.example:21:192.0.2.2";
    let passed = lab.client().run([
        "curl",
        "-sSk",
        "--max-time",
        "20",
        "-u",
        "alice:secret",
        "--ssl-reqd",
        "--resolve",
        resolve,
        "-o",
        "got",
        "ftp://closed.example/bad",
    ])?;
    ensure!(passed.success(), "{passed:?}");
    ensure!(fs::read(lab.client().dir().join("got"))? == fixtures::eicar());
    wait::until("the session that passed is not counted", LIMIT, || {
        let counted = vscan.metrics()?.sum("vscan_flows_uninspected_total", &[("reason", "tls")]);
        Ok((counted == 1.0).then_some(()))
    })?;

    for (hello, anomaly) in [
        (&b"USER alice\r\n"[..], "ftp_no_tls_record"),
        (&b"\x16\x03\x01\x02\x00\x01\x00"[..], "ftp_tls_timeout"),
    ] {
        let mut peer = Peer::connect(lab.client(), lab.dial(Family::V4, 21))?;
        peer.expect("220")?;
        peer.ask("AUTH TLS", "234")?;
        peer.send(hello)?;
        let _ = peer.drain();
        vscan
            .wait_for_event("anomaly", |event| event["anomaly"]["event"] == anomaly)
            .with_context(|| anomaly.to_owned())?;
    }
    // A server that is not the one that was asked for: the client is not let in either.
    let resolve = "other.example:21:192.0.2.2";
    let other = curl(&lab, &pki, &["--resolve", resolve, "ftp://other.example/bad"])?;
    // CURLE_SSL_CONNECT_ERROR
    ensure!(other.code() == 35, "{other:?}");
    vscan.wait_for_event("anomaly", |event| event["anomaly"]["event"] == "tls_server_failed")?;
    // None of this is left.
    ensure!(vscan.json(&["status"])?["sessions"] == 0);
    Ok(())
}

/// The gateway dies in mid-transfer: neither side takes what it has for a whole file.
#[test]
fn a_dead_gateway_completes_nothing() -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let pki = Ftps::new(&lab)?;
    let vsftpd = pki.vsftpd(lab.server(), 21, "")?;
    fs::write(vsftpd.files().join("large.iso"), fixtures::random(40 << 20, 1))?;
    fs::write(lab.client().dir().join("large.iso"), fixtures::random(40 << 20, 2))?;
    for upload in [false, true] {
        let settings = Settings::new(Steering::Bpf)
            .with("ftp", "tls = \"terminate\"\n")
            .with("scan", "skip_extensions = [\"iso\"]\nverify_type = false\n")
            .with("", &pki.settings());
        let vscan = Vscan::start(&lab, &settings)?;
        let gateway = vscan.processes().gateway;
        let ended = std::thread::scope(|scope| {
            let transfer = scope.spawn(|| {
                let url = "ftp://server.example/";
                let slow = ["--limit-rate", "2M", "--retry", "0"];
                let way: [&str; 3] = if upload {
                    ["-T", "large.iso", "ftp://server.example/up.iso"]
                } else {
                    ["-o", "got.iso", "ftp://server.example/large.iso"]
                };
                ensure!(way[2].starts_with(url));
                curl(&lab, &pki, &[&slow[..], &way].concat())
            });
            wait::until("no transfer", LIMIT, || {
                let flows = vscan.flows()?;
                let moved = flows.iter().any(|flow| {
                    flow["transfer"]["bytes"].as_u64().is_some_and(|bytes| bytes > 1 << 20)
                });
                Ok(moved.then_some(()))
            })?;
            kill(gateway)?;
            transfer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })?;
        ensure!(!ended.success(), "upload {upload}: {ended:?}");
        ensure!(!ended.err.contains("226"), "{ended:?}");
    }
    ensure!(!vsftpd.log().contains("OK UPLOAD"), "{}", vsftpd.log());
    Ok(())
}

/// A server that insists on a certificate of the client's: where it is inside the session passes, with TLS 1.2 at once,
/// with 1.3, where the server says so behind its handshake, from the next one on. One outside could say so to have its files
/// pass: nothing does.
#[test]
fn clients_with_certificates_pass() -> Result<()> {
    for (topology, inside) in [(Topology::Forward, true), (Topology::Plain, false)] {
        let lab = Lab::new(topology)?;
        let pki = Ftps::new(&lab)?;
        let ca = pki.path("theirs.pem");
        let insists = format!("require_cert=YES\nvalidate_cert=YES\nca_certs_file={ca}\n");
        let vsftpd = pki.vsftpd(lab.server(), 21, &insists)?;
        let proftpd = pki.proftpd_with(
            lab.server(),
            2121,
            &format!("TLSProtocol TLSv1.2\nTLSVerifyClient on\nTLSCACertificateFile {ca}\n"),
        )?;
        let settings = Settings::new(Steering::Bpf)
            .with("ftp", "ports = [21, 2121]\ntls = \"terminate\"")
            .with("", &if inside { pki.inbound() } else { pki.settings() });
        let vscan = Vscan::start(&lab, &settings)?;
        let both = pki.path("both.pem");
        let (certificate, key) = (pki.path("client.crt"), pki.path("client.key"));
        for (port, files, at_once) in [(21, vsftpd.files(), false), (2121, proftpd.files(), true)] {
            fs::write(files.join("file"), "content")?;
            let url = format!("ftp://server.example:{port}/file");
            let connect = format!("server.example:{port}:{}", lab.dial(Family::V4, port));
            let run = |more: &[&str]| {
                // Its size is asked for on the dialogue: data ports that are not opened are not forwarded.
                let common = [
                    &["curl", "-sSI", "--max-time", "30", "-u", "alice:secret", "--ssl-reqd"][..],
                    &["--cacert", &both, "--connect-to", &connect, &url],
                    more,
                ];
                lab.client().run(common.concat())
            };
            let with = ["--cert", &certificate, "--key", &key];
            let first = run(&with)?;
            ensure!(first.success() == (inside && at_once), "{topology:?} {port}: {first:?}");
            let second = run(&with)?;
            ensure!(second.success() == inside, "{topology:?} {port}: {second:?}");
            ensure!(second.out.contains("Content-Length: 7") == inside, "{second:?}");
            // One that has none gets no further than without a gateway.
            let none = run(&[])?;
            ensure!(!none.success(), "{topology:?} {port}: {none:?}");
        }
        let noted = |it: &serde_json::Value| it["anomaly"]["event"] == "tls_client_certificate";
        vscan.wait_for_event("anomaly", noted)?;
        let passed = if inside { 5.0 } else { 0.0 };
        wait::until("sessions that passed are not counted", LIMIT, || {
            let counted =
                vscan.metrics()?.sum("vscan_flows_uninspected_total", &[("reason", "tls")]);
            Ok((counted == passed).then_some(()))
        })?;
    }
    Ok(())
}

/// Through a port forward, with the operator's own certificate; and openssl's s_client at both kinds of port.
#[test]
fn behind_a_port_forward() -> Result<()> {
    let lab = Lab::new(Topology::Forward)?;
    let pki = Ftps::new(&lab)?;
    let vsftpd = pki.vsftpd(lab.server(), 21, "require_ssl_reuse=YES\n")?;
    // A port that the lab forwards.
    let implicit = 2121;
    let _implicit = pki.proftpd_implicit(lab.server(), implicit)?;
    let settings = Settings::new(Steering::Bpf)
        .with("ftp", "tls_ports = [2121]\ntls = \"terminate\"")
        .with("", &pki.inbound());
    let vscan = Vscan::start(&lab, &settings)?;
    let here = lab.client().dir();
    let file = fixtures::random(300_000, 8);
    fs::write(here.join("up"), &file)?;
    fs::write(here.join("bad"), fixtures::eicar())?;
    let theirs = pki.path("theirs.pem");
    for family in FAMILIES {
        let at = lab.dial(family, 21);
        let connect = format!("server.example:21:{at}");
        let run = |more: &[&str]| {
            let common = [
                &["curl", "-sS", "--max-time", "30", "-u", "alice:secret", "--ssl-reqd"][..],
                &["--cacert", &theirs, "--connect-to", &connect],
                more,
            ];
            lab.client().run(common.concat())
        };
        let put = run(&["-T", "up", "ftp://server.example/file"])?;
        ensure!(put.success(), "{family:?}: {put:?}");
        ensure!(fs::read(vsftpd.files().join("file"))? == file, "{family:?}");
        let get = run(&["-o", "got", "ftp://server.example/file"])?;
        ensure!(get.success() && fs::read(here.join("got"))? == file, "{family:?}: {get:?}");
        let bad = run(&["-T", "bad", "ftp://server.example/bad"])?;
        ensure!(!bad.success() && bad.err.contains("550"), "{family:?}: {bad:?}");
        for (port, way) in [(21, "-starttls ftp"), (implicit, "")] {
            let to = lab.dial(family, port);
            let check = format!(
                "printf 'NOOP\\nQUIT\\n' | openssl s_client -quiet -crlf {way} -connect '{to}' \
                 -servername server.example -verify_hostname server.example -verify_return_error \
                 -CAfile {theirs} 2>&1",
            );
            let output = lab.client().run(["sh", "-c", &check])?;
            ensure!(output.out.contains("221 "), "{to}: {}", output.out);
        }
    }
    let metrics = vscan.metrics()?;
    ensure!(metrics.sum("vscan_flows_uninspected_total", &[]) == 0.0);
    ensure!(metrics.sum("vscan_tls_handshakes_total", &[("leg", "client")]) >= 10.0);
    Ok(())
}

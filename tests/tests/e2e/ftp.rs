//! FTP through the gateway: every topology, family, mode and firewall; clean and infected. Real clients are in `ftp_matrix`.

use anyhow::{Context, Result, ensure};
use std::fs;
use vscan_tests::agent::{Settings, Steering, Vscan};
use vscan_tests::ftp::{Behaviour, Client, Mode, Server};
use vscan_tests::lab::{FAMILIES, Family, Firewall, Lab, STRICT, Topology};
use vscan_tests::peers::Vsftpd;
use vscan_tests::raw::End;
use vscan_tests::{fixtures, on_both};

const MODES: [Mode; 4] = [Mode::Pasv, Mode::Epsv, Mode::Port, Mode::Eprt];

on_both!(
    plain,
    masquerade,
    port_forward,
    port_forward_from_another_port,
    server_on_the_gateway,
    server_without_passive_mode,
    skipped_extensions_pass_both_ways,
    a_session_goes_on_after_refusals,
    resume_is_refused,
    bounce_is_refused,
    a_late_refusal_of_the_server_reaches_the_client,
    an_unscannable_file_is_refused,
    the_scanner_s_words_are_in_the_reply,
);

fn plain(steering: Steering) -> Result<()> {
    transfers(steering, Topology::Plain)
}

fn masquerade(steering: Steering) -> Result<()> {
    transfers(steering, Topology::Masquerade)
}

fn port_forward(steering: Steering) -> Result<()> {
    transfers(steering, Topology::Forward)
}

fn port_forward_from_another_port(steering: Steering) -> Result<()> {
    transfers(steering, Topology::ForwardFromOtherPort)
}

fn server_on_the_gateway(steering: Steering) -> Result<()> {
    transfers(steering, Topology::OnGateway)
}

/// Clean files come through byte by byte, infected ones do not, in every mode, with and without a strict
/// firewall; the server sees the client's address and the path was ours.
fn transfers(steering: Steering, topology: Topology) -> Result<()> {
    for firewall in [Firewall::default(), STRICT] {
        let lab = Lab::with_firewall(topology, firewall)?;
        let server = Vsftpd::start(lab.server(), 21)?;
        let vscan = Vscan::start(&lab, &Settings::new(steering))?;
        fs::write(server.files().join("bad"), fixtures::eicar())?;
        for family in FAMILIES {
            for mode in MODES {
                if family == Family::V6 && matches!(mode, Mode::Pasv | Mode::Port) {
                    continue;
                }
                transfer(&lab, &server, family, mode).with_context(|| {
                    format!("{topology:?} {firewall:?} {family:?} {mode:?}\n{}", server.log())
                })?;
            }
            let seen = lab.seen_as(family).to_string();
            ensure!(
                server.log().contains(&seen),
                "the server did not see {seen}: {}",
                server.log()
            );
        }
        let gateways = ["192.0.2.1", "2001:db8:2::1", "10.1.0.1", "fd00:1::1", "127.0.0.1"];
        let seen = FAMILIES.map(|family| lab.seen_as(family).to_string());
        for gateway in gateways.iter().filter(|gateway| !seen.iter().any(|seen| seen == *gateway)) {
            let wanted = format!("{gateway}\"");
            ensure!(
                !server.log().contains(&wanted),
                "the server saw the gateway: {}",
                server.log()
            );
        }
        let metrics = vscan.metrics()?;
        ensure!(
            metrics.sum("vscan_sessions_total", &[("protocol", "ftp")]) >= 6.0,
            "{}",
            metrics.0
        );
        let infected = [("protocol", "ftp"), ("verdict", "infected")];
        assert_eq!(metrics.sum("vscan_objects_total", &infected), 12.0);
        path_ran(steering, &vscan)?;
    }
    Ok(())
}

/// `226-vscan: ...` of what was delivered, by real clients' and our own reading; where a copy is kept of what was not.
fn the_scanner_s_words_are_in_the_reply(steering: Steering) -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let server = Vsftpd::start(lab.server(), 21)?;
    fs::write(server.files().join("good"), b"nothing in it")?;
    fs::write(server.files().join("bad"), fixtures::eicar())?;
    let rules = "[[treat]]\nverdict = \"infected\"\nname = [\"bad\"]\naction = \"quarantine\"\n\
                 [[treat]]\nuser = [\"alice\"]\naction = \"pass\"\n";
    let settings = Settings::new(steering).with("ftp", "announce = true").with("", rules);
    let _vscan = Vscan::start(&lab, &settings)?;
    let mut client = Client::connect(lab.client(), lab.dial(Family::V4, 21), Mode::Epsv)?;
    let down = client.download("RETR good")?;
    ensure!(down.reply.starts_with("226-vscan: scanned, clean\r\n226 "), "{}", down.reply);
    let up = client.upload("up", &fixtures::eicar())?;
    ensure!(
        up.reply.starts_with("226-vscan: NOT CLEAN, delivered by policy: EICAR"),
        "{}",
        up.reply
    );
    let bad = client.download("RETR bad")?;
    ensure!(bad.data.is_none() && bad.reply.starts_with("550 bad: blocked"), "{}", bad.reply);
    ensure!(bad.reply.contains("; kept as ") && bad.reply.contains(" on "), "{}", bad.reply);
    let url = format!("ftp://alice:secret@{}/good", lab.dial(Family::V4, 21).ip());
    let curl = lab.client().run(["curl", "-sS", "-v", &url])?;
    ensure!(curl.success() && curl.out.contains("nothing in it"), "{}", curl.err);
    ensure!(curl.err.contains("< 226-vscan: scanned, clean"), "{}", curl.err);
    Ok(())
}

/// The kernel's counters show which path was taken.
pub(crate) fn path_ran(steering: Steering, vscan: &Vscan) -> Result<()> {
    let metrics = vscan.metrics()?;
    // Packets, not SYNs: a forward from another port is recognised by the server's answers only.
    let packets = metrics.sum("vscan_kernel_count", &[("name", "packets")]);
    match steering {
        Steering::Bpf => ensure!(packets >= 1.0, "BPF counted nothing: {}", metrics.0),
        Steering::Nft => ensure!(packets == 0.0, "BPF counted, but nft was asked for"),
    }
    Ok(())
}

fn transfer(lab: &Lab, server: &Vsftpd, family: Family, mode: Mode) -> Result<()> {
    let mut client = Client::connect(lab.client(), lab.dial(family, 21), mode)?;
    let file = fixtures::random(100_003, mode as u64);
    let up = client.upload("up", &file)?;
    ensure!(up.reply.starts_with("226"), "clean upload: {}", up.reply);
    ensure!(fs::read(server.files().join("up"))? == file, "the upload was changed");
    let down = client.download("RETR up")?;
    ensure!(down.data == Some((file, End::Fin)), "the download was changed: {}", down.reply);
    ensure!(down.reply.starts_with("226"), "clean download: {}", down.reply);

    let up = client.upload("infected", &fixtures::eicar())?;
    refused(&up.reply, "infected")?;
    ensure!(!server.files().join("infected").exists(), "the infected file reached the server");
    let down = client.download("RETR bad")?;
    ensure!(down.data.is_none(), "something came of the infected file: {down:?}");
    refused(&down.reply, "bad")?;

    client.control().ask("NOOP", "200").context("after the refusals")?;
    let list = client.download("LIST")?;
    let (listing, end) = list.data.context("no listing")?;
    ensure!(end == End::Fin && String::from_utf8_lossy(&listing).contains("bad"));
    ensure!(list.reply.starts_with("226"), "{}", list.reply);
    let empty = client.upload("empty", b"")?;
    ensure!(empty.reply.starts_with("226"), "an empty file: {}", empty.reply);
    client.quit()?;
    fs::remove_file(server.files().join("up"))?;
    Ok(())
}

/// The wording is a promise.
fn refused(reply: &str, name: &str) -> Result<()> {
    let wanted = format!("550 {name}: blocked by vscan: ");
    ensure!(
        reply.starts_with(&wanted) && reply.contains("EICAR"),
        "expected {wanted:?}, got {reply:?}"
    );
    Ok(())
}

/// Where the server refuses passive mode, the upstream side goes active.
fn server_without_passive_mode(steering: Steering) -> Result<()> {
    for topology in [Topology::Plain, Topology::Masquerade, Topology::Forward] {
        let lab = Lab::with_firewall(topology, STRICT)?;
        let behaviour = Behaviour { passive: false, ..Behaviour::default() };
        let server = Server::start(lab.server(), 21, behaviour)?;
        let _vscan = Vscan::start(&lab, &Settings::new(steering))?;
        for family in FAMILIES {
            let file = fixtures::random(50_000, 5);
            let mut client = Client::connect(lab.client(), lab.dial(family, 21), Mode::Epsv)?;
            let up = client.upload("up", &file)?;
            ensure!(up.reply.starts_with("226"), "{topology:?} {family:?}: {}", up.reply);
            ensure!(server.file("up").as_deref() == Some(&file[..]));
            let down = client.download("RETR up")?;
            ensure!(down.data == Some((file, End::Fin)), "{topology:?} {family:?}: {}", down.reply);
            client.quit()?;
        }
    }
    Ok(())
}

/// Files that need no scanning go through at once, whatever is in them.
fn skipped_extensions_pass_both_ways(steering: Steering) -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let server = Server::start(lab.server(), 21, Behaviour::default())?;
    let settings =
        Settings::new(steering).with("scan", "skip_extensions = [\"iso\"]\nverify_type = false");
    let _vscan = Vscan::start(&lab, &settings)?;
    for mode in [Mode::Epsv, Mode::Eprt] {
        let mut client = Client::connect(lab.client(), lab.dial(Family::V4, 21), mode)?;
        let file = [fixtures::eicar(), fixtures::random(5_000_000, 3)].concat();
        let up = client.upload("image.iso", &file)?;
        ensure!(up.reply == "226 stored\r\n", "{}", up.reply);
        ensure!(server.file("image.iso").as_deref() == Some(&file[..]));
        let down = client.download("RETR image.iso")?;
        ensure!(
            down.data == Some((file, End::Fin)) && down.reply == "226 done\r\n",
            "{}",
            down.reply
        );
        let up = client.upload("image.bin", &fixtures::eicar())?;
        refused(&up.reply, "image.bin")?;
    }
    Ok(())
}

fn a_session_goes_on_after_refusals(steering: Steering) -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let server = Server::start(lab.server(), 21, Behaviour::default())?;
    server.put("bad", fixtures::eicar());
    let _vscan = Vscan::start(&lab, &Settings::new(steering))?;
    let mut client = Client::connect(lab.client(), lab.dial(Family::V6, 21), Mode::Epsv)?;
    for round in 0..20 {
        refused(&client.download("RETR bad")?.reply, "bad")?;
        refused(&client.upload("worse", &fixtures::eicar())?.reply, "worse")?;
        let missing = client.download("RETR missing")?;
        ensure!(missing.reply == "550 no such file\r\n", "round {round}: {}", missing.reply);
        let file = fixtures::random(1000 * round, round as u64);
        ensure!(client.upload("file", &file)?.reply == "226 stored\r\n");
        ensure!(client.download("RETR file")?.data == Some((file, End::Fin)));
    }
    client.quit()?;
    let stored = server.commands().iter().any(|(_, command)| command.starts_with("STOR worse"));
    ensure!(!stored, "the server heard of the infected upload");
    Ok(())
}

/// Where pieces are refused no transfer begins anywhere but at its first byte.
fn resume_is_refused(steering: Steering) -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let server = Server::start(lab.server(), 21, Behaviour::default())?;
    server.put("bad", fixtures::eicar());
    let settings = Settings::new(steering).with("ftp", "resume = \"refuse\"");
    let _vscan = Vscan::start(&lab, &settings)?;
    let mut client = Client::connect(lab.client(), lab.dial(Family::V4, 21), Mode::Epsv)?;
    let features = client.control().ask("FEAT", "211")?;
    ensure!(!features.contains("REST") && features.contains("EPSV"), "{features}");
    client.control().ask("REST 34", "502")?;
    refused(&client.download("RETR bad")?.reply, "bad")?;
    client.control().ask("APPE file", "502")?;
    client.control().ask("MODE Z", "504")?;
    client.control().ask("STRU R", "504")?;
    client.quit()?;
    let pieces = ["REST 34", "APPE", "MODE Z", "STRU R"];
    let relayed =
        |(_, command): &(_, String)| pieces.iter().any(|piece| command.starts_with(piece));
    ensure!(!server.commands().iter().any(relayed), "{:?}", server.commands());
    Ok(())
}

/// A PORT that points elsewhere is refused and counted.
fn bounce_is_refused(steering: Steering) -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let _server = Server::start(lab.server(), 21, Behaviour::default())?;
    let vscan = Vscan::start(&lab, &Settings::new(steering))?;
    let mut client = Client::connect(lab.client(), lab.dial(Family::V4, 21), Mode::Epsv)?;
    client.control().ask("PORT 10,1,0,3,10,10", "50")?;
    client.control().ask("EPRT |1|192.0.2.2|2000|", "50")?;
    vscan.wait_for_event("anomaly", |event| event["anomaly"]["event"] == "ftp_bounce")?;
    ensure!(vscan.metrics()?.sum("vscan_anomalies_total", &[("name", "ftp_bounce")]) >= 2.0);
    ensure!(client.upload("file", b"still here")?.reply == "226 stored\r\n");
    Ok(())
}

/// A final acceptance always comes from the real server: so does its refusal.
fn a_late_refusal_of_the_server_reaches_the_client(steering: Steering) -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let server = Vsftpd::start(lab.server(), 21)?;
    let _vscan = Vscan::start(&lab, &Settings::new(steering))?;
    fs::create_dir(server.files().join("directory"))?;
    let mut client = Client::connect(lab.client(), lab.dial(Family::V4, 21), Mode::Epsv)?;
    let up = client.upload("directory", b"cannot replace a directory")?;
    ensure!(up.reply.starts_with("553"), "{}", up.reply);
    let up = client.upload("no/such/directory/file", b"content")?;
    ensure!(up.reply.starts_with("553"), "{}", up.reply);
    let log = server.log();
    let own = log.lines().filter(|line| line.contains("553 Could not create file")).count();
    ensure!(own >= 2, "the server's own refusals were expected: {log}");
    client.quit()
}

/// Not read means not clean: an encrypted archive and a file over the limit are refused for good.
fn an_unscannable_file_is_refused(steering: Steering) -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let server = Server::start(lab.server(), 21, Behaviour::default())?;
    let settings = Settings::new(steering).with("scan.limits", "object_size = \"1 MiB\"");
    let vscan = Vscan::start(&lab, &settings)?;
    let mut client = Client::connect(lab.client(), lab.dial(Family::V4, 21), Mode::Epsv)?;
    let up = client.upload("large", &fixtures::random(1_100_000, 6))?;
    ensure!(up.reply.starts_with("550"), "{}", up.reply);
    let zip = encrypted_zip()?;
    let up = client.upload("secret.zip", &zip)?;
    ensure!(up.reply.starts_with("550"), "{}", up.reply);
    ensure!(server.file("large").is_none() && server.file("secret.zip").is_none());
    for reason in ["size", "encrypted"] {
        let count = vscan.metrics()?.sum("vscan_unscannable_total", &[("reason", reason)]);
        ensure!(count >= 1.0, "{reason} was not counted");
    }
    client.quit()
}

/// A zip archive whose one member says that it is encrypted; only its headers matter here.
fn encrypted_zip() -> Result<Vec<u8>> {
    let name = b"a.txt";
    let data = fixtures::random(24, 11);
    let length = u32::try_from(data.len())?.to_le_bytes();
    // Version 2.0, flag bit 0 (encrypted), stored (APPNOTE 4.4.4).
    let common =
        [&[20, 0, 1, 0, 0, 0, 0, 0, 0x21, 0x5a][..], &[1, 2, 3, 4], &length, &length].concat();
    let mut zip = [b"PK\x03\x04".as_slice(), &common, &[5, 0, 0, 0], name, &data].concat();
    let directory = u32::try_from(zip.len())?.to_le_bytes();
    let entry = [
        b"PK\x01\x02\x14\x00".as_slice(),
        &common,
        &[5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        name,
    ]
    .concat();
    let size = u32::try_from(entry.len())?.to_le_bytes();
    zip.extend_from_slice(&entry);
    zip.extend_from_slice(
        &[b"PK\x05\x06\0\0\0\0\x01\0\x01\0".as_slice(), &size, &directory, &[0, 0]].concat(),
    );
    Ok(zip)
}

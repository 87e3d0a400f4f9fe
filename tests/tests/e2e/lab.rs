//! The lab itself, without vscan: what the other tests take for granted.

use anyhow::{Result, ensure};
use std::time::{Duration, Instant};
use vscan_tests::ftp::{self, Mode};
use vscan_tests::lab::{FAMILIES, Family, Firewall, Lab, ROUTED, STRICT, Topology, inside_second};
use vscan_tests::peers::{Postfix, PyFtpd, Vsftpd};
use vscan_tests::raw::{self, Attempt, Peer};
use vscan_tests::{fixtures, load, smtp};

#[test]
fn every_topology_connects_and_shows_the_expected_address() -> Result<()> {
    for topology in ROUTED.into_iter().chain([Topology::OnGateway, Topology::FromGateway]) {
        for firewall in [Firewall::default(), STRICT] {
            let begin = Instant::now();
            let lab = Lab::with_firewall(topology, firewall)?;
            println!("{topology:?} {firewall:?}: {:?}", begin.elapsed());
            let listener = raw::listen(lab.server(), 21)?;
            for family in FAMILIES {
                let mut client = Peer::connect(lab.client(), lab.dial(family, 21))?;
                let (mut server, from) = raw::accept(&listener)?;
                assert_eq!(from.ip(), lab.seen_as(family), "{topology:?} {family:?}");
                server.send("220 hello\r\n")?;
                assert_eq!(client.reply()?, "220 hello\r\n");
            }
        }
    }
    Ok(())
}

#[test]
fn the_firewall_refuses_what_it_should() -> Result<()> {
    let lab = Lab::with_firewall(Topology::Plain, STRICT)?;
    let _listeners = [raw::listen(lab.server(), 21)?, raw::listen(lab.server(), 22)?];
    let _inside = raw::listen(&lab.inside, 21)?;
    let limit = Duration::from_millis(300);
    for family in FAMILIES {
        let to = lab.dial(family, 21);
        assert_eq!(raw::attempt(&lab.inside, None, to, limit)?, Attempt::Connected);
        let other = Some(inside_second(family));
        assert_eq!(raw::attempt(&lab.inside, other, to, limit)?, Attempt::Silent);
        assert_eq!(raw::attempt(&lab.inside, None, lab.dial(family, 22), limit)?, Attempt::Silent);
        let back = (vscan_tests::lab::inside(family), 21).into();
        assert_eq!(raw::attempt(&lab.outside, None, back, limit)?, Attempt::Silent);
    }
    Ok(())
}

#[test]
fn vsftpd_takes_and_gives_files() -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let server = Vsftpd::start(lab.server(), 21)?;
    let file = fixtures::random(300_000, 1);
    let path = lab.dir().join("file");
    std::fs::write(&path, &file)?;
    let url = "ftp://alice:x@server.example/up.bin";
    for option in ["--ipv4", "--ipv6"] {
        let put = ["curl", "-sS", option, "-T", &path.to_string_lossy(), url].map(str::to_owned);
        let put = lab.client().run(put)?;
        ensure!(put.success(), "{}\n{}", put.err, server.log());
        assert_eq!(std::fs::read(server.files().join("up.bin"))?, file);
        let back = lab.dir().join("back");
        let get = ["curl", "-sS", option, "-P", "-", "-o", &back.to_string_lossy(), url]
            .map(str::to_owned);
        let get = lab.client().run(get)?;
        ensure!(get.success(), "{}\n{}", get.err, server.log());
        assert_eq!(std::fs::read(&back)?, file);
    }
    ensure!(server.log().contains("10.1.0.2") && server.log().contains("fd00:1::2"));
    Ok(())
}

#[test]
fn pyftpdlib_and_lftp() -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let addresses = FAMILIES.map(|family| vscan_tests::lab::outside(family).to_string());
    let server = PyFtpd::start(lab.server(), 21, &addresses)?;
    std::fs::write(server.files().join("file"), b"content")?;
    let out = lab.client().run([
        "lftp",
        "-c",
        "set net:timeout 5; open -u alice,secret ftp://192.0.2.2; cat file",
    ])?;
    ensure!(out.out.contains("content"), "{out:?} {}", server.log());
    Ok(())
}

#[test]
fn postfix_takes_mail() -> Result<()> {
    let lab = Lab::new(Topology::Masquerade)?;
    let server = Postfix::start(lab.server())?;
    let mail = lab.client().run([
        "swaks",
        "--server",
        "server.example",
        "--from",
        "a@client.example",
        "--to",
        "bob@server.example",
        "--body",
        "hello there",
    ])?;
    ensure!(mail.success(), "{}{}\n{}", mail.out, mail.err, server.log());
    let mail = vscan_tests::wait::until("no mail came", Duration::from_secs(5), || {
        Ok(server.inbox()?.pop())
    })?;
    ensure!(String::from_utf8_lossy(&mail).contains("hello there"));
    ensure!(
        String::from_utf8_lossy(&mail).contains("[192.0.2.1]"),
        "{}",
        String::from_utf8_lossy(&mail)
    );
    Ok(())
}

#[test]
fn our_own_ftp_peers_agree_in_every_mode() -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let server = ftp::Server::start(lab.server(), 21, ftp::Behaviour::default())?;
    let file = fixtures::random(1_000_000, 2);
    for family in FAMILIES {
        for mode in [Mode::Pasv, Mode::Epsv, Mode::Port, Mode::Eprt] {
            if family == Family::V6 && matches!(mode, Mode::Pasv | Mode::Port) {
                continue;
            }
            let mut client = ftp::Client::connect(lab.client(), lab.dial(family, 21), mode)?;
            let up = client.upload("file", &file)?;
            assert_eq!(up.reply, "226 stored\r\n");
            let down = client.download("RETR file")?;
            assert_eq!(down.data, Some((file.clone(), raw::End::Fin)), "{family:?} {mode:?}");
            assert_eq!(down.reply, "226 done\r\n");
            let list = client.download("LIST")?;
            assert_eq!(list.data, Some((b"file\r\n".to_vec(), raw::End::Fin)));
            client.quit()?;
            server.remove("file");
        }
    }
    ensure!(server.commands().len() > 40);
    Ok(())
}

#[test]
fn our_own_smtp_peers_keep_every_byte() -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let sink = smtp::Sink::start(lab.server(), 25, smtp::Behaviour::default())?;
    let mut body = fixtures::random(200_000, 3);
    body.retain(|&byte| byte != b'\r' && byte != b'\n');
    let messages = [
        smtp::wire(&fixtures::message("one", "a line\r\n.\r\n..dots")),
        smtp::wire(&body),
        b".\r\n".to_vec(),
    ];
    let mut client = smtp::Client::connect(lab.client(), lab.dial(Family::V6, 25))?;
    for message in &messages {
        assert_eq!(client.send(message)?, "250 2.0.0 queued as SINK\r\n");
    }
    client.quit()?;
    assert_eq!(sink.messages(), messages);
    let session = sink.sessions().remove(0);
    ensure!(session.quit && session.from.is_some_and(|from| from.ip() == lab.seen_as(Family::V6)));
    Ok(())
}

#[test]
fn load_generators_generate_load() -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    load::prepare(&lab)?;
    let behaviour = ftp::Behaviour { record: false, ..ftp::Behaviour::default() };
    let server = ftp::Server::start(lab.server(), 21, behaviour)?;
    server.put("large", ftp::File::Repeated(fixtures::random(1 << 20, 1).into(), 100 << 20));
    load::put_files(&server, 10_000);
    let quiet = smtp::Behaviour { keep: false, ..smtp::Behaviour::default() };
    let _sink = smtp::Sink::start(lab.server(), 25, quiet)?;
    let time = Duration::from_millis(200);
    let stream = load::stream(&lab, 7000, time)?;
    let large = load::download(&lab, "large")?;
    let files = load::files(&lab, 8, 10_000, time)?;
    let messages = load::messages(&lab, 4, 2_000, load::Dialogue::Pipelined, time)?;
    println!(
        "{:.0} MB/s, {:.0} MB/s, {:.0} files/s, {:.0} messages/s",
        stream.rate() / 1e6,
        large.rate() / 1e6,
        files.rate(),
        messages.rate()
    );
    assert_eq!(large.count, f64::from(100 << 20));
    ensure!(stream.count > 1e6 && files.count > 20.0 && messages.count > 20.0);
    Ok(())
}

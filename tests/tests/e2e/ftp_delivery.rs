//! How files get to their receivers: held until the verdict, or streamed but for their last bytes; slow
//! links, and servers that do not wait.

use crate::ftp_resume::{infected, settings};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::time::{Duration, Instant};
use vscan_tests::agent::{self, Settings, Steering, Vscan};
use vscan_tests::ftp::{Behaviour, Client, File, Mode, PIECE, Server};
use vscan_tests::lab::{Family, Lab, Topology};
use vscan_tests::peers::{ProFtpd, Vsftpd};
use vscan_tests::raw::End;
use vscan_tests::{fixtures, on_both, wait};

on_both!(
    a_streamed_file_arrives_while_it_is_sent,
    an_infected_stream_is_torn_and_not_begun_again,
    what_a_stream_left_at_the_server_is_deleted,
    a_server_without_patience_gets_its_command_early,
);

fn streaming(lab: &Lab, steering: Steering) -> Result<Settings> {
    Ok(settings(lab, steering)?.with("ftp", "delivery = \"stream\"\nhold_back = \"128 KiB\""))
}

fn connect(lab: &Lab) -> Result<Client> {
    Client::connect(lab.client(), lab.dial(Family::V4, 21), Mode::Epsv)
}

/// A slow link: the held file comes at once when all of it is there, the streamed one piece by piece.
fn a_streamed_file_arrives_while_it_is_sent(steering: Steering) -> Result<()> {
    const PIECES: usize = 12;
    let pause = Duration::from_millis(100);
    let lab = Lab::new(Topology::Plain)?;
    let server = Server::start(lab.server(), 21, Behaviour { pause, ..Behaviour::default() })?;
    let file = fixtures::random(PIECES * PIECE, 31);
    server.put("file", file.clone());
    for (streams, settings) in
        [(false, settings(&lab, steering)?), (true, streaming(&lab, steering)?)]
    {
        let vscan = Vscan::start(&lab, &settings)?;
        let mut client = connect(&lab)?;
        let begun = Instant::now();
        let (mut got, mut first) = (Vec::new(), None);
        let (end, reply) = lab.client().within(|| {
            client.receive("RETR file", &mut |bytes| {
                first.get_or_insert_with(|| begun.elapsed());
                got.extend_from_slice(bytes);
            })
        })?;
        ensure!(end == Some(End::Fin) && got == file, "{reply}");
        let first = first.context("no bytes")?;
        // The link alone takes a second and more.
        let link = pause * PIECES as u32;
        ensure!((first < link / 2) == streams, "the first byte after {first:?} of {link:?}");
        let up = client.store("STOR up", &file, Duration::ZERO)?;
        ensure!(up.reply == "226 stored\r\n", "{}", up.reply);
        ensure!(server.file("up").as_deref() == Some(&file[..]));
        client.quit()?;
        drop(vscan);
    }
    Ok(())
}

fn an_infected_stream_is_torn_and_not_begun_again(steering: Steering) -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let server = Server::start(lab.server(), 21, Behaviour::default())?;
    let bad = infected(3_000_000, 2_999_900);
    server.put("bad", bad.clone());
    let vscan = Vscan::start(&lab, &streaming(&lab, steering)?)?;
    let mut client = connect(&lab)?;
    let torn = client.download("RETR bad")?;
    let (got, end) = torn.data.context("nothing was streamed")?;
    ensure!(end == End::Reset, "{} bytes looked whole", got.len());
    ensure!(torn.reply.contains("550 bad: blocked by vscan: Piece_Pattern"), "{}", torn.reply);
    ensure!(got.len() <= bad.len() - (128 << 10), "{} bytes came", got.len());
    // Again, again from where it was torn, under another name, and on another connection.
    ensure!(client.download("RETR bad")?.data.is_none(), "it was begun again");
    client.control().ask(&format!("REST {}", got.len()), "350")?;
    let rest = client.download("RETR bad")?;
    ensure!(rest.data.is_none() && rest.reply.contains("Piece_Pattern"), "{rest:?}");
    server.put("other", bad.clone());
    let other = client.download("RETR other")?;
    ensure!(other.data.is_none_or(|(data, end)| data.is_empty() && end == End::Reset));
    let mut again = connect(&lab)?;
    ensure!(again.download("RETR bad")?.data.is_none(), "another session began it again");
    // What lies there now is another file.
    let good = fixtures::random(3_000_000, 9);
    server.put("bad", good.clone());
    let clean = again.download("RETR bad")?;
    ensure!(clean.data == Some((good, End::Fin)), "{}", clean.reply);
    again.quit()?;
    client.control().ask("NOOP", "200")?;
    drop(vscan);
    Ok(())
}

fn what_a_stream_left_at_the_server_is_deleted(steering: Steering) -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let server = Vsftpd::start(lab.server(), 21)?;
    let _vscan = Vscan::start(&lab, &streaming(&lab, steering)?)?;
    let bad = infected(3_000_000, 2_999_900);
    let good = fixtures::random(3_000_000, 2);
    let mut client = connect(&lab)?;
    for round in 0..2 {
        let up = client.upload("new", &bad)?;
        ensure!(up.reply.starts_with("550 new: blocked by vscan: Piece_Pattern"), "{}", up.reply);
        ensure!(!up.reply.contains("left"), "{round}: {}", up.reply);
        ensure!(!server.files().join("new").exists(), "{round}: remains\n{}", server.log());
    }
    ensure!(client.upload("old", &good)?.reply.starts_with("226"), "{}", server.log());
    ensure!(fs::read(server.files().join("old"))? == good);
    let up = client.upload("old", &bad)?;
    ensure!(up.reply.contains("a part of it is left on the server"), "{}", up.reply);
    ensure!(server.files().join("old").exists(), "a file that was there was deleted");
    // The next try does not touch it.
    let before = fs::read(server.files().join("old"))?;
    let up = client.upload("old", &bad)?;
    ensure!(up.reply.starts_with("550 old: blocked by vscan: Piece_Pattern"), "{}", up.reply);
    ensure!(fs::read(server.files().join("old"))? == before);
    client.quit()
}

/// ProFTPD ends sessions without a transfer, whatever else they say.
fn a_server_without_patience_gets_its_command_early(steering: Steering) -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let server = ProFtpd::start_with(lab.server(), 21, "TimeoutNoTransfer 3\n")?;
    let settings = settings(&lab, steering)?.with("ftp", "server_patience = \"1s\"");
    let _vscan = Vscan::start(&lab, &settings)?;
    let pause = Duration::from_millis(500);
    let good = fixtures::random(9 * PIECE, 3);
    let bad = infected(9 * PIECE, 1_000_000);
    let mut client = connect(&lab)?;
    let up = client.store("STOR slow", &good, pause).with_context(|| server.log())?;
    ensure!(up.reply.starts_with("226"), "{}\n{}", up.reply, server.log());
    ensure!(fs::read(server.files().join("slow"))? == good);
    let up = client.store("STOR bad", &bad, pause).with_context(|| server.log())?;
    ensure!(up.reply.starts_with("550 bad: blocked by vscan"), "{}\n{}", up.reply, server.log());
    ensure!(!server.files().join("bad").exists(), "an empty file stays behind");
    // Refused early, too; the client hears it at its end, before the server's patience is over again.
    let up = client.store("STOR no/such/place", &good[..4 * PIECE], pause)?;
    ensure!(up.reply.starts_with("55"), "{}\n{}", up.reply, server.log());
    client.quit()
}

/// What was streamed when the gateway died is torn on both sides.
#[test]
fn a_killed_gateway_leaves_nothing_that_looks_whole() -> Result<()> {
    let pause = Duration::from_millis(50);
    let lab = Lab::new(Topology::Plain)?;
    let server = Server::start(lab.server(), 21, Behaviour { pause, ..Behaviour::default() })?;
    let file = fixtures::random(20 * PIECE, 17);
    server.put("file", file.clone());
    let vscan = Vscan::start(&lab, &streaming(&lab, Steering::Bpf)?)?;
    let mut client = connect(&lab)?;
    let gateway = vscan.processes().gateway;
    let (mut got, mut killed) = (0, false);
    let cut = lab.client().within(|| {
        client.receive("RETR file", &mut |bytes| {
            got += bytes.len();
            if !killed {
                killed = true;
                agent::kill(gateway).ok();
            }
        })
    });
    ensure!(killed && got < file.len(), "{got} bytes");
    let error = format!("{:#}", cut.err().context("it was acknowledged")?);
    ensure!(error.contains("data ended with Reset"), "{error}");

    vscan.wait_for_processes(&[gateway])?;
    let mut client =
        wait::until("no session begins", Duration::from_secs(10), || Ok(connect(&lab).ok()))?;
    let gateway = vscan.processes().gateway;
    let cut = std::thread::scope(|scope| -> Result<_> {
        let sending = scope.spawn(|| client.store("STOR up", &file, pause));
        wait::until_true("the server does not hear of it", Duration::from_secs(10), || {
            server.commands().iter().any(|(_, command)| command == "STOR up")
        })?;
        agent::kill(gateway)?;
        Ok(sending.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })?;
    ensure!(cut.is_err(), "an upload was accepted: {cut:?}");
    wait::until_true("the server still waits", Duration::from_secs(10), || {
        server.aborted().contains(&"up".to_owned())
    })?;
    ensure!(server.file("up").is_none(), "half a file looks whole");
    Ok(())
}

/// A receiver that takes nothing stops the sender, and the gateway holds no more than its spool.
#[test]
fn a_slow_receiver_slows_the_sender() -> Result<()> {
    const LENGTH: u64 = 200 << 20;
    const STEADY: u32 = 50;
    let lab = Lab::new(Topology::Plain)?;
    let server = Server::start(lab.server(), 21, Behaviour::default())?;
    server.put("large", File::Repeated(fixtures::random(1 << 20, 4).into(), LENGTH));
    let vscan = Vscan::start(&lab, &streaming(&lab, Steering::Bpf)?)?;
    let mut client = connect(&lab)?;
    let mut got = 0;
    let (mut stopped, mut pauses) = (0, 0);
    let (end, reply) = lab.client().within(|| {
        client.receive("RETR large", &mut |bytes| {
            got += bytes.len() as u64;
            if got > 4 << 20 && pauses == 0 {
                pauses += 1;
                // Nothing is read for as long as the gateway still takes something: until it has taken no more in
                // many looks at it.
                let mut same = 0;
                let steady = wait::until("the gateway takes all", Duration::from_secs(60), || {
                    let held = vscan.metrics()?.sum("vscan_spool_bytes", &[]) as u64;
                    same = if held == stopped { same + 1 } else { 0 };
                    stopped = held;
                    Ok((same >= STEADY).then_some(()))
                });
                pauses += i32::from(steady.is_err());
            }
        })
    })?;
    ensure!(end == Some(End::Fin) && got == LENGTH && reply.starts_with("226"), "{got}: {reply}");
    ensure!(pauses == 1 && stopped < LENGTH / 2, "{stopped} bytes were taken meanwhile");
    client.quit()
}

/// Large files are looked at by a worker while they come, in either direction. What is in them is found wherever it is,
/// also when those who looked are gone by the end.
#[test]
fn a_large_file_is_looked_at_while_it_arrives() -> Result<()> {
    const LEN: usize = 40_000_000;
    let lab = Lab::new(Topology::Plain)?;
    let server = Server::start(lab.server(), 21, Behaviour::default())?;
    let vscan = Vscan::start(&lab, &settings(&lab, Steering::Nft)?)?;
    let looked =
        || Ok::<_, anyhow::Error>(vscan.metrics()?.sum("vscan_scan_ahead_bytes_total", &[]));
    let good = fixtures::random(LEN, 5);
    server.put("good", good.clone());
    let mut client = connect(&lab)?;
    let got = client.download("RETR good")?;
    ensure!(got.data.is_some_and(|(data, _)| data == good), "{}", got.reply);
    let first = looked()?;
    ensure!(first >= f64::from(4 << 20), "{first} bytes were looked at");
    for at in [0, (20 << 20) - 10, LEN - 100] {
        let name = format!("bad-{at}");
        server.put(&name, infected(LEN, at));
        let torn = client.download(&format!("RETR {name}"))?;
        ensure!(torn.data.is_none() && torn.reply.contains("Piece_Pattern"), "{}", torn.reply);
        let up = client.upload(&format!("up-{name}"), &infected(LEN, at + 1))?;
        ensure!(up.reply.contains("Piece_Pattern"), "{}", up.reply);
    }
    let second = looked()?;
    ensure!(second >= 2.0 * first.min(f64::from(8 << 20)), "{second} bytes were looked at");
    client.quit()?;

    // All workers end in the middle of an upload.
    let mut client = connect(&lab)?;
    let bad = infected(LEN, 1000);
    let up = std::thread::scope(|scope| -> Result<_> {
        let up = scope.spawn(|| client.upload("killed", &bad));
        wait::until_true("no file arrives", Duration::from_secs(20), || {
            vscan.metrics().is_ok_and(|m| m.sum("vscan_spool_bytes", &[("where", "disk")]) > 1e7)
        })?;
        for pid in vscan.processes().workers {
            agent::kill(pid)?;
        }
        up.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    ensure!(up.reply.contains("Piece_Pattern"), "{}", up.reply);
    ensure!(server.file("killed").is_none(), "it went through");
    Ok(())
}

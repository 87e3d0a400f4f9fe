//! What goes wrong on the way: connections that break after every line and at many bytes of a whole look with its
//! treatments, servers that are killed, full mailboxes, folders that cannot be changed, messages that vanish.

use crate::stage::*;
use anyhow::{Context, Result, ensure};
use std::time::{Duration, Instant};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use vscan_agent::mailbox::{
    connection::{Connection, Error},
    folder::Uid,
    name::FolderName,
    pass::{self, Fetched, Judge, Sentence, Tally},
    replace,
};
use vscan_proto::imap::{Command, Flag};
use vscan_tests::{
    host::{Host, LabDir},
    peers::Dovecot,
};

/// Where a connection is cut.
#[derive(Clone, Copy, Debug)]
enum Cut {
    /// Behind so many lines of what the client sends.
    Sent(usize),
    /// Behind so many lines of what the server sends.
    Received(usize),
    /// Behind so many bytes, whoever sends them.
    Bytes(usize),
    /// Not at all.
    Never,
}

/// What went through, in lines of the client, lines of the server, bytes.
#[derive(Clone, Copy, Debug, Default)]
struct Passed {
    sent: usize,
    received: usize,
    bytes: usize,
}

impl Passed {
    fn is_over(&self, cut: Cut) -> bool {
        match cut {
            Cut::Sent(lines) => self.sent >= lines,
            Cut::Received(lines) => self.received >= lines,
            Cut::Bytes(bytes) => self.bytes >= bytes,
            Cut::Never => false,
        }
    }
}

/// Stands before port 143 for one connection, and cuts it. Ends when the server has ended its session, so that whatever it was
/// told is done.
async fn cutter(listener: TcpListener, cut: Cut) -> Result<Passed> {
    let (client, _) = listener.accept().await?;
    let server = TcpStream::connect("127.0.0.1:143").await?;
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let mut passed = Passed::default();
    let (mut up, mut down) = ([0_u8; 4096], [0_u8; 4096]);
    let mut over = passed.is_over(cut);
    while !over {
        // Byte by byte where it counts, so that nothing goes through behind the cut.
        let (bytes, is_client) = tokio::select! {
            read = from_client.read(&mut up) => (&up[..read.unwrap_or(0)], true),
            read = from_server.read(&mut down) => (&down[..read.unwrap_or(0)], false),
        };
        if bytes.is_empty() {
            break;
        }
        let mut through = 0;
        for byte in bytes {
            passed.bytes += 1;
            through += 1;
            if *byte == b'\n' {
                if is_client { passed.sent += 1 } else { passed.received += 1 }
            }
            over = passed.is_over(cut);
            if over {
                break;
            }
        }
        // A peer that is gone is what the next read shows.
        let _ = if is_client {
            to_server.write_all(&bytes[..through]).await
        } else {
            to_client.write_all(&bytes[..through]).await
        };
    }
    drop((from_client, to_client));
    drop(to_server);
    while !matches!(from_server.read(&mut down).await, Ok(0) | Err(_)) {}
    Ok(passed)
}

/// One round of an account: connect, complete what was left, look.
async fn round(port: u16, stage: &Stage, judge: &mut BySubject) -> Result<Tally> {
    let mut connection = open_at(port, password("ann", "secret")).await?;
    replace::resume(&mut connection, &stage.buffer, "ann", |_| {}).await?;
    let (buffer, spool, folder) = (&stage.buffer, &stage.spool, inbox());
    let tally = pass::pass(&mut connection, buffer, spool, scope(), &folder, judge).await?;
    connection.log_out().await;
    Ok(tally)
}

async fn cut_round(cut: Cut, stage: &Stage) -> Result<(Passed, bool)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    let cutter = tokio::spawn(cutter(listener, cut));
    let done = round(port, stage, &mut BySubject::default()).await;
    Ok((cutter.await??, done.is_ok()))
}

/// Puts three messages there anew: two clean ones, and one that is replaced between them.
async fn fill(connection: &mut Connection) -> Result<()> {
    let exists = connection.select(&inbox()).await?.exists;
    if exists > 0 {
        let all = Command::new("STORE 1:* +FLAGS.SILENT (\\Deleted)");
        connection.run("STORE", all, |_| {}).await?;
        connection.run("EXPUNGE", Command::new("EXPUNGE"), |_| {}).await?;
    }
    let flags = [flag("Flagged"), Flag::new("Important").unwrap()];
    for subject in ["clean-1", "replace-1", "clean-2"] {
        connection.append(&inbox(), &flags, DATE, mail(subject, "body").into()).await?;
    }
    Ok(())
}

fn subjects(all: &[vscan_agent::mailbox::folder::Summary]) -> Vec<String> {
    all.iter().map(subject).collect()
}

#[test]
fn a_connection_that_breaks_anywhere_loses_nothing_and_doubles_nothing() -> Result<()> {
    on_both(|stage| async move {
        let mut direct = connect("ann").await?;
        fill(&mut direct).await?;
        let (whole, done) = cut_round(Cut::Never, &stage).await?;
        ensure!(done && whole.sent > 12 && whole.received > 30, "{whole:?}");
        let lines = (0..=whole.sent).map(Cut::Sent).chain((0..=whole.received).map(Cut::Received));
        let bytes = (0..whole.bytes).step_by(101).map(Cut::Bytes);
        let mut broken = 0;
        for cut in lines.chain(bytes) {
            fill(&mut direct).await?;
            let (_, done) = cut_round(cut, &stage).await?;
            broken += usize::from(!done);
            let there = subjects(&snapshot("ann", &inbox()).await?);
            let versions = there.iter().filter(|s| *s == "replace-1" || *s == "treated").count();
            assert!((1..=2).contains(&versions), "{cut:?}: {there:?}");
            // And afterwards all is as if nothing had happened.
            round(143, &stage, &mut BySubject::default())
                .await
                .with_context(|| format!("{cut:?}"))?;
            let after = snapshot("ann", &inbox()).await?;
            assert_eq!(subjects(&after), ["clean-1", "clean-2", "treated"], "{cut:?}");
            for summary in &after {
                let important = summary.has_flag("Important") && summary.has_flag("\\Flagged");
                assert!(important && summary.flags.len() == 2, "{cut:?}: {summary:?}");
                assert!(summary.date.as_deref().unwrap_or_default().contains("1-Mar-2024"));
            }
            assert!(stage.buffer.pending("ann")?.is_empty(), "{cut:?}");
        }
        ensure!(broken > whole.sent + whole.received, "{broken} of the cuts were felt");
        Ok(())
    })
}

#[test]
fn a_server_that_is_killed_is_an_error_and_nothing_is_fetched_twice_behind_it() -> Result<()> {
    let lab = LabDir::new()?;
    let host = Host::new("mail", &lab, "")?;
    let first = Dovecot::start(&host)?;
    let stage = Stage::new(lab.path())?;
    let server = std::sync::Mutex::new(Some(first));
    let (host, server) = (&host, &server);
    within(host, || async move {
        let mut connection = connect("ann").await?;
        for n in 0..3 {
            let message = mail(&format!("clean-{n}"), "");
            connection.append(&inbox(), &[], None, message.into()).await?;
        }
        look(&stage, scope(), &mut BySubject::default()).await?;
        connection.examine(&inbox()).await?;
        let idle = tokio::spawn(async move {
            let began = Instant::now();
            (connection.idle(Duration::from_secs(60)).await, began.elapsed())
        });
        drop(server.lock().unwrap().take());
        // All of its processes, as when a machine goes down.
        for pid in host.processes().into_iter().filter(|pid| *pid != std::process::id()) {
            vscan_tests::host::signal(pid, rustix::process::Signal::KILL);
        }
        let (ended, waited) = idle.await?;
        assert!(ended.is_err() && waited < Duration::from_secs(30), "{ended:?} after {waited:?}");
        assert!(matches!(connect("ann").await, Err(Error::Io(_))));
        *server.lock().unwrap() = Some(Dovecot::start(host)?);
        let mut connection = connect("ann").await?;
        connection.append(&inbox(), &[], None, mail("clean-new", "").into()).await?;
        let mut judge = BySubject::default();
        look(&stage, scope(), &mut judge).await?;
        assert_eq!(judge.seen, ["clean-new"]);
        Ok(())
    })
}

#[test]
fn a_full_mailbox_keeps_its_message_and_says_why() -> Result<()> {
    let quota = "mail_plugins = quota\nplugin {\n quota = count:User quota\n quota_vsizes = yes\n \
                 quota_rule = *:bytes=4000\n quota_grace = 0\n}\n";
    on(Kind::Dovecot, quota, |stage| async move {
        let mut connection = connect("ann").await?;
        let body = "x".repeat(3600);
        connection.append(&inbox(), &[], DATE, mail("replace-1", &body).into()).await?;
        let full = connection.append(&inbox(), &[], None, mail("clean", &body).into()).await;
        assert!(matches!(full, Err(Error::No { over_quota: true, .. })), "{full:?}");
        let before = snapshot("ann", &inbox()).await?;
        let mut judge = BySubject { larger: 2000, ..BySubject::default() };
        let tally = look(&stage, scope(), &mut judge).await?;
        assert_eq!((tally.found, tally.treated), (1, 0));
        assert!(judge.failures[0].contains("uota"), "{:?}", judge.failures);
        let after = snapshot("ann", &inbox()).await?;
        assert_eq!(subjects(&after), ["replace-1"]);
        assert_eq!(after[0].uid, before[0].uid);
        assert!(stage.buffer.pending("ann")?.is_empty(), "the server has nothing of it");
        Ok(())
    })
}

#[test]
fn folders_of_others_and_folders_that_cannot_be_changed() -> Result<()> {
    on(Kind::Cyrus, "", |stage| async move {
        // Both mailboxes come into being by a login.
        for user in ["ann", "bob"] {
            let mut connection = connect(user).await?;
            connection.append(&inbox(), &[], None, mail("replace-1", user).into()).await?;
            connection.log_out().await;
        }
        let mut admin = open(password("admin", "master")).await?;
        for folder in ["user/ann", "user/bob"] {
            let command = Command::new(&format!("SETACL {folder} ann lr"));
            admin.run("SETACL", command, |_| {}).await?;
        }
        let mut connection = connect("ann").await?;
        let all = connection.list_all().await?;
        let names: Vec<String> = all.iter().map(|listed| listed.name.to_string()).collect();
        let delegated = FolderName::from_unicode("Other Users/bob");
        assert!(names.contains(&delegated.to_string()), "{names:?}");
        for folder in [inbox(), delegated] {
            let mut judge = BySubject::default();
            let (buffer, spool) = (&stage.buffer, &stage.spool);
            let tally =
                pass::pass(&mut connection, buffer, spool, scope(), &folder, &mut judge).await?;
            assert_eq!((tally.found, tally.treated), (1, 0), "{folder}");
            assert_eq!(judge.failures.len(), 1, "{folder}: {:?}", judge.failures);
            assert_eq!(subjects(&snapshot("ann", &folder).await?), ["replace-1"]);
        }
        Ok(())
    })
}

/// Removes the second message while the first is judged.
struct Meddler {
    own: Connection,
    seen: Vec<String>,
}

impl Judge for Meddler {
    fn rules(&self) -> u64 {
        0
    }

    async fn judge(&mut self, fetched: Fetched<'_>) -> (bool, Sentence) {
        if self.seen.is_empty() {
            let second = fetched.summary.uid.checked_add(1).unwrap();
            self.own.remove(second).await.unwrap();
        }
        self.seen.push(subject(fetched.summary));
        BySubject::default().judge(fetched).await
    }

    fn failed(&mut self, _: &FolderName, _: Uid, _: &str) {}

    fn rescans(&mut self, _: usize) -> usize {
        0
    }
}

#[test]
fn messages_that_vanish_meanwhile_are_passed_over() -> Result<()> {
    on_both(|stage| async move {
        let mut connection = connect("ann").await?;
        for n in 0..3 {
            // So large that they come in several pieces.
            let body = format!("{}\r\n", "x".repeat(70)).repeat(30_000);
            let message = mail(&format!("replace-{n}"), &body);
            connection.append(&inbox(), &[], None, message.into()).await?;
        }
        let mut own = connect("ann").await?;
        own.select(&inbox()).await?;
        let mut meddler = Meddler { own, seen: Vec::new() };
        let (buffer, spool, folder) = (&stage.buffer, &stage.spool, inbox());
        let tally =
            pass::pass(&mut connection, buffer, spool, scope(), &folder, &mut meddler).await?;
        // Whether the second can still be read depends on the server. It is not there afterwards, and neither is another version
        // of it.
        assert!((2..=3).contains(&tally.scanned), "{tally:?} {:?}", meddler.seen);
        let left = subjects(&snapshot("ann", &inbox()).await?);
        assert_eq!(left, ["treated", "treated"], "{tally:?}");
        Ok(())
    })
}

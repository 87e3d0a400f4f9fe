//! What is asked of a server at the second look and all later ones: what has changed, and nothing twice.

use crate::stage::*;
use anyhow::{Context, Result};
use std::{sync::Arc, time::Duration};
use vscan_agent::{
    mailbox::{
        buffer::Buffer,
        connection::Connection,
        folder::Store,
        name::FolderName,
        pass::{self, Scope, Tally},
    },
    spool::Spool,
};
use vscan_proto::imap::{Command, Flag};
use vscan_tests::{
    host::LabDir,
    imap_server::{Behaviour, Server},
};

async fn look_by(
    connection: &mut Connection,
    buffer: &Buffer,
    spool: &Spool,
    scope: Scope<'_>,
    judge: &mut BySubject,
) -> Result<Tally> {
    Ok(pass::pass(connection, buffer, spool, scope, &inbox(), judge).await?)
}

#[test]
fn what_was_read_and_what_is_gone_leaves_the_buffer_and_new_settings_look_again() -> Result<()> {
    on_both(|stage| async move {
        let mut connection = connect("ann").await?;
        assert!(connection.is_enabled("QRESYNC"), "{connection:?}");
        for n in 0..5 {
            let flags = if n == 4 { vec![Flag::seen()] } else { Vec::new() };
            let message = mail(&format!("clean-{n}"), "");
            connection.append(&inbox(), &flags, None, message.into()).await?;
        }
        look(&stage, scope(), &mut BySubject::default()).await?;
        assert_eq!(stage.buffer.len("ann")?, 4);
        let all = snapshot("ann", &inbox()).await?;
        connection.select(&inbox()).await?;
        connection.store(all[0].uid, Store::Add, &[Flag::seen()]).await?;
        connection.remove(all[1].uid).await?;
        connection.append(&inbox(), &[], None, mail("clean-new", "").into()).await?;
        let mut judge = BySubject::default();
        look(&stage, scope(), &mut judge).await?;
        assert_eq!(judge.seen, ["clean-new"]);
        assert_eq!(stage.buffer.len("ann")?, 3, "one was read, one is gone");
        // Unread again: it is looked at again.
        connection.store(all[0].uid, Store::Remove, &[Flag::seen()]).await?;
        let mut judge = BySubject::default();
        look(&stage, scope(), &mut judge).await?;
        assert_eq!(judge.seen, ["clean-0"]);
        // Now read ones too: nothing has changed on the server, and yet they are looked at.
        let mut judge = BySubject::default();
        look(&stage, Scope { unread: false, ..scope() }, &mut judge).await?;
        assert_eq!(judge.seen, ["clean-4"]);
        Ok(())
    })
}

#[test]
fn news_of_several_folders_come_over_one_connection() -> Result<()> {
    on(Kind::Dovecot, "", |_stage| async move {
        let mut connection = connect("ann").await?;
        assert!(connection.can_watch(), "{connection:?}");
        let other = FolderName::from_unicode("Entwürfe & Co");
        let create = Command::new("CREATE").string(other.as_wire_str(), false).context("name")?;
        connection.run("CREATE", create, |_| {}).await?;
        let folders = [inbox(), other.clone()];
        assert!(connection.watch(&folders, Duration::from_millis(50)).await?.is_empty());
        let appending = {
            let other = other.clone();
            tokio::spawn(async move {
                let mut writer = connect("ann").await?;
                writer.append(&other, &[], None, mail("new", "").into()).await?;
                anyhow::Ok(())
            })
        };
        let told = connection.watch(&folders, Duration::from_secs(30)).await?;
        assert_eq!(told, std::slice::from_ref(&other));
        appending.await??;
        assert_eq!(connection.examine(&other).await?.exists, 1);
        Ok(())
    })
}

#[test]
fn folders_tell_their_use() -> Result<()> {
    let boxes = "namespace inbox {\n inbox = yes\n mailbox Junk {\n  special_use = \\Junk\n  auto = create\n }\n}\n";
    on(Kind::Dovecot, boxes, |_stage| async move {
        let mut connection = connect("ann").await?;
        let all = connection.list_all().await?;
        let junk: Vec<String> =
            all.iter().filter(|f| f.is("\\Junk")).map(|f| f.name.to_string()).collect();
        assert_eq!(junk, ["Junk"]);
        Ok(())
    })
}

/// Runs `work` beside a server of this behaviour, with a buffer for this many messages.
fn beside<F: Future<Output = Result<()>>>(
    behaviour: Behaviour,
    capacity: u64,
    work: impl FnOnce(Server, Buffer, Spool) -> F,
) -> Result<()> {
    let lab = LabDir::new()?;
    let server = Server::start(behaviour)?;
    let buffer = Buffer::open(&lab.path().join("buffer.redb"), capacity)?;
    let spool = Spool::new(lab.path(), 64 << 20, 256 << 20, 64 << 20)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(work(server, buffer, spool))
}

#[test]
fn what_had_to_leave_a_full_buffer_is_not_fetched_again() -> Result<()> {
    let behaviour = Behaviour { messages: 20, ..Behaviour::default() };
    beside(behaviour, 5, |server, buffer, spool| async move {
        let port = server.address().port();
        let mut connection = open_at(port, password("ann", "secret")).await?;
        let mut judge = BySubject::default();
        look_by(&mut connection, &buffer, &spool, scope(), &mut judge).await?;
        assert_eq!((judge.seen.len(), buffer.len("ann")?), (20, 5));
        server.take_commands();
        look_by(&mut connection, &buffer, &spool, scope(), &mut judge).await?;
        assert_eq!(judge.seen.len(), 20);
        let heard = server.take_commands();
        assert!(!heard.iter().any(|command| command.contains("BODY.PEEK[]")), "{heard:?}");
        // New ones are.
        server.change(|behaviour| behaviour.messages = 22);
        let mut connection = open_at(port, password("ann", "secret")).await?;
        look_by(&mut connection, &buffer, &spool, scope(), &mut judge).await?;
        assert_eq!(judge.seen[20..], ["21", "22"]);
        Ok(())
    })
}

#[test]
fn a_message_that_the_server_does_not_give_out_is_told_of_and_keeps_no_other_back() -> Result<()> {
    // The second cannot be read, and so no command that asks for it together with others is answered.
    let instead = |command: &str| {
        let asked = command.starts_with("UID FETCH") && command.contains("BODY.PEEK[]");
        let set = command.split(' ').nth(2).unwrap_or_default();
        (asked && (set == "2" || set.contains(':')))
            .then(|| b"TAG NO [SERVERBUG] cannot be read\r\n".to_vec())
    };
    let behaviour = Behaviour { messages: 3, instead: Arc::new(instead), ..Behaviour::default() };
    beside(behaviour, 100, |server, buffer, spool| async move {
        let port = server.address().port();
        let mut judge = BySubject::default();
        for _ in 0..5 {
            let mut connection = open_at(port, password("ann", "secret")).await?;
            look_by(&mut connection, &buffer, &spool, scope(), &mut judge).await?;
        }
        assert_eq!(judge.seen, ["1", "3"]);
        assert_eq!(judge.failures.len(), 3, "{:?}", judge.failures);
        assert!(judge.failures[0].contains("cannot be read"));
        Ok(())
    })
}

#[test]
fn nothing_is_left_out_where_a_server_gives_short_pieces_or_counts_wrong() -> Result<()> {
    // It says that the message is longer than it is, or gives it out in pieces that are too short.
    for short in [false, true] {
        let instead = move |command: &str| {
            let (_, piece) = command.split_once("BODY.PEEK[]<")?;
            let offset: usize = piece.split_once('.')?.0.parse().ok()?;
            let message = "Subject: x\r\n\r\n0123456789";
            let rest = message.get(offset..).unwrap_or_default();
            let rest = if short && offset == 0 { &rest[..14] } else { rest };
            let length = rest.len();
            let answer =
                format!("* 1 FETCH (UID 1 BODY[]<{offset}> {{{length}}}\r\n{rest})\r\nTAG OK\r\n");
            Some(answer.into_bytes())
        };
        let behaviour = Behaviour {
            messages: 1,
            message: Arc::new(|_| format!("Subject: x\r\n\r\n{}", "y".repeat(30)).into_bytes()),
            instead: Arc::new(instead),
            ..Behaviour::default()
        };
        beside(behaviour, 100, |server, buffer, spool| async move {
            let port = server.address().port();
            let mut connection = open_at(port, password("ann", "secret")).await?;
            let mut judge = BySubject::default();
            look_by(&mut connection, &buffer, &spool, scope(), &mut judge).await?;
            assert_eq!(judge.bytes, [24], "short {short}");
            Ok(())
        })?;
    }
    Ok(())
}

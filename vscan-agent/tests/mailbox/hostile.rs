//! Servers that are up to no good, or broken: an error of the right kind, soon, and little memory held.

use crate::stage::*;
use anyhow::Result;
use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};
use vscan_agent::mailbox::{
    connection::{Connection, Error, Patience},
    folder::{SearchKey, Uid},
    pass::{self, Tally},
};
use vscan_tests::{
    host::LabDir,
    imap_server::{Behaviour, Server},
};

/// Runs `work` beside a server of this behaviour.
fn beside<F: Future<Output = Result<()>>>(
    behaviour: Behaviour,
    work: impl FnOnce(Server, Stage) -> F,
) -> Result<()> {
    let lab = LabDir::new()?;
    let server = Server::start(behaviour)?;
    let stage = Stage::new(lab.path())?;
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(work(server, stage))
}

/// A behaviour that says this instead of what it should, once a command begins with `to`.
fn says(to: &'static str, answer: impl Into<Vec<u8>>) -> Behaviour {
    let answer = answer.into();
    Behaviour {
        messages: 3,
        instead: Arc::new(move |command| command.starts_with(to).then(|| answer.clone())),
        ..Behaviour::default()
    }
}

async fn look_at(address: SocketAddr, stage: &Stage, judge: &mut BySubject) -> Result<Tally> {
    let mut connection = open_at(address.port(), password("ann", "secret")).await?;
    let inbox = inbox();
    Ok(pass::pass(&mut connection, &stage.buffer, &stage.spool, scope(), &inbox, judge).await?)
}

#[test]
fn what_is_no_answer_ends_the_look_with_an_error() -> Result<()> {
    let long = "x".repeat(6 << 20);
    let deep = "(".repeat(5000);
    let cases: Vec<(&'static str, Vec<u8>)> = vec![
        ("CAPABILITY", b"* BYE no\r\n".to_vec()),
        ("CAPABILITY", b"zzz OK who?\r\n".to_vec()),
        ("CAPABILITY", b"+ go on\r\n".to_vec()),
        ("EXAMINE", b"TAG OK no validity\r\n".to_vec()),
        ("EXAMINE", b"* OK [UIDVALIDITY 0]\r\nTAG OK\r\n".to_vec()),
        ("EXAMINE", b"* 4294967295 EXISTS\r\n* OK [UIDVALIDITY 1]\r\nTAG OK\r\n".to_vec()),
        ("EXAMINE", b"TAG NO no such folder\r\n".to_vec()),
        ("UID SEARCH", b"TAG OK nothing at all\r\n".to_vec()),
        ("UID SEARCH", b"* SEARCH 1 2 x\r\nTAG OK\r\n".to_vec()),
        ("UID SEARCH", b"* ESEARCH UID ALL 1:4294967295\r\nTAG OK\r\n".to_vec()),
        ("UID SEARCH", format!("* SEARCH {long}\r\nTAG OK\r\n").into_bytes()),
        ("UID SEARCH", b"TAG BAD what?\r\n".to_vec()),
        ("UID FETCH", b"+ more\r\n".to_vec()),
        ("UID FETCH", b"* BYE enough\r\n".to_vec()),
        ("UID FETCH", b"TAG NO not now\r\n".to_vec()),
    ];
    for (to, answer) in cases {
        let shown = answer[..answer.len().min(60)].escape_ascii().to_string();
        beside(says(to, answer), |server, stage| async move {
            let mut judge = BySubject::default();
            let done = look_at(server.address(), &stage, &mut judge).await;
            assert!(done.is_err(), "{to}: {shown}: {done:?}");
            assert!(judge.seen.is_empty(), "{to}: {shown}");
            Ok(())
        })?;
    }
    // Data that nobody asked for, and what cannot be understood, beside what was asked for.
    let noise = format!(
        "* 99 FETCH (UID 77 FLAGS ())\r\n* FLAGS ()\r\n* XYZZY {{3}}\r\nabc (\r\n\u{e9}\u{1}\r\n\
         * 5 FETCH {deep}\r\n* 6 FETCH (UID 1 BODY[] {{5000000}}\r\n{}\r\n* 3 EXPUNGE\r\n* 9 EXISTS\r\n\
         * NO careful\r\n* VANISHED 3:*\r\n* OK [ALERT \"]\"] {{4}}\r\n",
        &long[..5_000_001]
    );
    for to in ["EXAMINE", "UID SEARCH", "UID FETCH"] {
        let noise = noise.clone();
        let instead = move |command: &str| {
            let own: &[u8] = match command {
                _ if !command.starts_with(to) => return None,
                _ if to == "EXAMINE" => b"* 1 EXISTS\r\n* OK [UIDVALIDITY 1]\r\nTAG OK\r\n",
                _ if to == "UID SEARCH" => b"* SEARCH 1\r\nTAG OK\r\n",
                _ if command.contains("RFC822.SIZE") => {
                    b"* 1 FETCH (UID 1 FLAGS () RFC822.SIZE 4 BODY[HEADER]<0> {12}\r\nSubject: x\r\n)\r\nTAG OK\r\n"
                }
                _ => b"* 1 FETCH (UID 1 BODY[]<0> {4}\r\nabcd)\r\nTAG OK\r\n",
            };
            Some([noise.as_bytes(), own].concat())
        };
        let behaviour =
            Behaviour { messages: 1, instead: Arc::new(instead), ..Behaviour::default() };
        beside(behaviour, |server, stage| async move {
            let mut judge = BySubject::default();
            let done = look_at(server.address(), &stage, &mut judge).await;
            if to == "UID SEARCH" {
                // Part of the result may have been in what was read over.
                assert!(done.is_err());
            } else {
                let expect: &[&str] = if to == "EXAMINE" { &["1"] } else { &["x"] };
                assert_eq!(judge.seen, expect, "{to}: {done:?}");
            }
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn a_message_that_makes_its_server_say_too_much_keeps_no_other_from_being_scanned() -> Result<()> {
    // The second message's structure, and its header, are larger than any response may be.
    let long = "x".repeat(5 << 20);
    let instead = move |command: &str| {
        let structure = command.contains("BODYSTRUCTURE");
        structure.then(|| {
            let one = |uid: u32| {
                format!(
                    "* {uid} FETCH (UID {uid} FLAGS () RFC822.SIZE 90 BODY[HEADER]<0> {{12}}\r\n\
                     Subject: {uid}\r\n BODYSTRUCTURE (\"text\" \"plain\" NIL NIL NIL \"7bit\" 9 1))\r\n"
                )
            };
            let two = format!("* 2 FETCH (UID 2 FLAGS () BODYSTRUCTURE (\"{long}\"))\r\n");
            [one(1), two, one(3), "TAG OK\r\n".to_owned()].concat().into_bytes()
        })
    };
    let behaviour = Behaviour { messages: 3, instead: Arc::new(instead), ..Behaviour::default() };
    beside(behaviour, |server, stage| async move {
        let mut judge = BySubject::default();
        let mut connection = open_at(server.address().port(), password("ann", "secret")).await?;
        let scope = pass::Scope { skip_plain: true, ..scope() };
        let folder = inbox();
        let tally =
            pass::pass(&mut connection, &stage.buffer, &stage.spool, scope, &folder, &mut judge)
                .await?;
        assert_eq!((tally.settled, tally.scanned), (2, 1), "{:?}", judge.seen);
        assert_eq!(judge.seen, ["2"]);
        Ok(())
    })
}

#[test]
fn an_endless_answer_ends_in_little_memory() -> Result<()> {
    alone("hostile::an_endless_answer_ends_in_little_memory", || {
        // Lines without end, of every kind: each is more than any command may bring.
        let floods: [&[u8]; 4] = [
            b"* 1 EXISTS\r\n",
            b"xxxxxxxxxxxxxxxx",
            b"* 1 FETCH (UID 1 FLAGS ())\r\n",
            b"* X ({99999999999}\r\n",
        ];
        let before = resident()?;
        for unit in floods {
            let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
            let port = listener.local_addr()?.port();
            let flood = unit.repeat((1 << 20) / unit.len());
            std::thread::spawn(move || -> std::io::Result<()> {
                use std::io::Write as _;
                let (mut stream, _) = listener.accept()?;
                stream.write_all(b"* OK\r\n")?;
                while stream.write_all(&flood).is_ok() {}
                Ok(())
            });
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let ended = runtime.block_on(open_at(port, password("ann", "secret")));
            assert!(matches!(ended, Err(Error::Endless(_))), "{ended:?}");
            let grown = resident()?.saturating_sub(before);
            assert!(grown < 32 << 20, "{grown} bytes more are resident");
        }
        Ok(())
    })
}

#[test]
fn a_server_that_falls_silent_is_given_up() -> Result<()> {
    let behaviour = says("UID SEARCH", "* SEARCH 1 2 {400}\r\nabc");
    beside(behaviour, |server, _| async move {
        let patience =
            Patience { connect: Duration::from_secs(5), answer: Duration::from_millis(300) };
        let endpoint = endpoint(server.address().port());
        let login = password("ann", "secret");
        let mut connection = Connection::open(&endpoint, &login, patience).await?;
        let began = Instant::now();
        let ended = connection.search(3, &[SearchKey::All]).await;
        assert!(matches!(ended, Err(Error::Silent(_))), "{ended:?}");
        assert!(began.elapsed() < Duration::from_secs(5));
        Ok(())
    })
}

#[test]
fn more_of_a_message_than_was_asked_for_is_not_held() -> Result<()> {
    let behaviour = says("UID FETCH", "* 1 FETCH (UID 1 BODY[]<0> {9}\r\n123456789)\r\nTAG OK\r\n");
    beside(behaviour, |server, _| async move {
        let mut connection = open_at(server.address().port(), password("ann", "secret")).await?;
        let uid = Uid::MIN;
        let five = std::num::NonZeroU32::new(5).unwrap();
        let piece = connection.piece(uid, 0, five).await;
        assert!(matches!(piece, Err(Error::Unreadable(_))), "{piece:?}");
        let nine = std::num::NonZeroU32::new(9).unwrap();
        let piece = connection.piece(uid, 0, nine).await?;
        assert_eq!(piece.as_deref(), Some(&b"123456789"[..]));
        // Another place than was asked for is none.
        assert_eq!(connection.piece(uid, 7, nine).await?, None);
        Ok(())
    })
}

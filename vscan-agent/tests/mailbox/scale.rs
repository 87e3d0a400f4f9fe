//! Much of everything: a hundred thousand messages, a thousand accounts.

use crate::stage::*;
use anyhow::{Context, Result};
use std::sync::Arc;
use vscan_agent::{
    mailbox::{
        buffer::Buffer,
        folder::SEARCH_MAX,
        pass::{self, Scope},
    },
    spool::Spool,
};
use vscan_tests::{
    host::LabDir,
    imap_server::{Behaviour, Server},
    wait,
};

const MESSAGES: u32 = 100_000;
const ACCOUNTS: usize = 1000;

#[test]
fn a_hundred_thousand_messages() -> Result<()> {
    alone("scale::a_hundred_thousand_messages", hundred_thousand)
}

fn hundred_thousand() -> Result<()> {
    let lab = LabDir::new()?;
    let buffer = Buffer::open(&lab.path().join("buffer.redb"), u64::from(MESSAGES) * 2)?;
    let spool = Spool::new(lab.path(), 64 << 20, 256 << 20, 64 << 20)?;
    let server = Server::start(Behaviour {
        capabilities: "IMAP4rev1 AUTH=PLAIN CONDSTORE".to_owned(),
        messages: MESSAGES,
        keep: true,
        ..Behaviour::default()
    })?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let port = server.address().port();
        let mut connection = open_at(port, password("ann", "secret")).await?;
        let before = resident()?;
        let scope = Scope { unread: false, ..scope() };
        let mut judge = BySubject::default();
        let folder = inbox();
        let tally =
            pass::pass(&mut connection, &buffer, &spool, scope, &folder, &mut judge).await?;
        assert_eq!((tally.messages, tally.scanned), (MESSAGES, MESSAGES));
        assert_eq!(buffer.len("ann")?, u64::from(MESSAGES));
        let grown = resident()?.saturating_sub(before);
        assert!(grown < 128 << 20, "{} MiB more are resident", grown >> 20);
        server.take_commands();
        // Nothing has changed: by one number.
        let tally =
            pass::pass(&mut connection, &buffer, &spool, scope, &folder, &mut judge).await?;
        assert_eq!(tally.scanned, 0);
        let heard = server.take_commands();
        assert_eq!(heard, ["EXAMINE \"INBOX\" (CONDSTORE)"]);
        Ok(())
    })
}

#[test]
fn a_folder_larger_than_one_search_is_searched_in_portions() -> Result<()> {
    let messages = SEARCH_MAX * 2 + 5;
    for capabilities in ["IMAP4rev1 AUTH=PLAIN", "IMAP4rev1 AUTH=PLAIN ESEARCH"] {
        let server = Server::start(Behaviour {
            capabilities: capabilities.to_owned(),
            messages,
            ..Behaviour::default()
        })?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let found = runtime.block_on(async {
            let port = server.address().port();
            let mut connection = open_at(port, password("ann", "secret")).await?;
            let exists = connection.examine(&inbox()).await?.exists;
            anyhow::Ok(
                connection
                    .search(exists, &[vscan_agent::mailbox::folder::SearchKey::Undeleted])
                    .await?,
            )
        })?;
        assert_eq!(found.len(), messages as usize);
        assert_eq!(found.last().context("none")?.get(), messages);
        let searches = server.take_commands();
        let searches = searches.iter().filter(|command| command.starts_with("UID SEARCH"));
        assert_eq!(searches.count(), 3);
    }
    Ok(())
}

/// What a thousand connections that wait take, on both sides of them: the scanner's and this process's server's.
#[test]
fn a_thousand_accounts_wait_in_little_memory() -> Result<()> {
    alone("scale::a_thousand_accounts_wait_in_little_memory", thousand_accounts)
}

fn thousand_accounts() -> Result<()> {
    /// Bytes for each: a thread of the server, and the connection.
    const EACH: u64 = 48 << 10;
    let server =
        Arc::new(Server::start(Behaviour { messages: 1, keep: false, ..Behaviour::default() })?);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let port = server.address().port();
    let before = resident()?;
    let (end, ended) = tokio::sync::watch::channel(());
    // Not all at once: the server's queue of connections is short.
    let turns = Arc::new(tokio::sync::Semaphore::new(20));
    let accounts: Vec<_> = (0..ACCOUNTS)
        .map(|n| {
            let (mut ended, turns) = (ended.clone(), Arc::clone(&turns));
            runtime.spawn(async move {
                let turn = turns.acquire().await?;
                let mut connection = open_at(port, password(&format!("user{n}"), "x")).await?;
                connection.examine(&inbox()).await?;
                drop(turn);
                tokio::select! {
                    told = connection.idle(std::time::Duration::from_secs(100)) => drop(told?),
                    _ = ended.changed() => {}
                }
                anyhow::Ok(())
            })
        })
        .collect();
    wait::until_true("not all accounts wait", std::time::Duration::from_secs(60), || {
        server.idle() == ACCOUNTS
    })?;
    let each = resident()?.saturating_sub(before) / ACCOUNTS as u64;
    drop(end);
    for account in accounts {
        runtime.block_on(account)??;
    }
    assert!(each < EACH, "{each} bytes for each account");
    Ok(())
}

//! All accounts of all sections: started, changed by a reload, watched, and ended.
//!
//! They run in the gateway's process, on threads of their own: they share its scanner, cache, quarantine and notices.

use super::{
    account::{Account, AccountScope, Credentials, PATIENCE, Shared},
    buffer::Buffer,
    connection::{Connection, Endpoint},
    judge::{Guard, Rate},
    name::FolderName,
    orders::{Copies, Order, Orders, Progress},
    secret::{self, Named},
    status::{AccountRecord, AccountStatus, State},
    tls::{Security, client_config},
};
use crate::{
    config::{Config, Glob, Mailbox, MailboxSecurity, Which},
    gateway::Gateway,
};
use std::{
    collections::HashMap,
    io,
    os::unix::fs::DirBuilderExt,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    runtime::{Builder, Handle, Runtime},
    sync::{Semaphore, mpsc},
    task::JoinSet,
    time::timeout,
};

/// The directory of the buffers, in the state directory.
const DIRECTORY: &str = "mailbox";

/// Threads for all accounts: they wait for servers and the scanner, which has processes of its own.
const THREADS: usize = 2;

/// How long accounts may take to finish the message in hand.
const FINISH: Duration = Duration::from_secs(20);

/// How often sections are tried again that could not be started.
const RETRY: Duration = Duration::from_secs(30);

/// Answers that wait for who asked for a scan.
const REPLIES_WAITING: usize = 64;

/// All accounts.
#[derive(Debug)]
pub struct Service {
    gateway: Arc<Gateway>,
    held: Mutex<Held>,
    /// One change at a time.
    changing: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Held {
    /// Made when the first section starts.
    runtime: Option<Runtime>,
    sections: Vec<Section>,
    /// What was found, by server: sections of one server share it.
    copies: HashMap<String, Arc<Copies>>,
}

impl Drop for Held {
    fn drop(&mut self) {
        // A runtime cannot be waited for inside of another one.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

#[derive(Debug)]
struct Section {
    config: Mailbox,
    tasks: JoinSet<()>,
    accounts: Vec<Listed>,
    /// Why it could not be started.
    error: Option<String>,
}

#[derive(Debug)]
struct Listed {
    name: String,
    status: Arc<AccountStatus>,
    orders: Arc<Orders>,
}

impl Service {
    /// Nothing yet; [`configure`](Self::configure) starts it.
    #[must_use]
    pub fn new(gateway: Arc<Gateway>) -> Self {
        Self { gateway, held: Mutex::default(), changing: tokio::sync::Mutex::default() }
    }

    /// Starts what the configuration has, ends what it has no longer, and begins anew what it has otherwise. Accounts of
    /// sections that stay as they are go on.
    pub async fn configure(&self, config: &Config) {
        let _one = self.changing.lock().await;
        let stays = |section: &Section| {
            section.error.is_none() && config.mailboxes.contains(&section.config)
        };
        let (stay, end) = std::mem::take(&mut self.lock().sections).into_iter().partition(stays);
        self.lock().sections = stay;
        end_all(end).await;
        for mailbox in &config.mailboxes {
            if self.lock().sections.iter().any(|section| section.config == *mailbox) {
                continue;
            }
            let handle = match self.lock().handle() {
                Ok(handle) => handle,
                Err(error) => return tracing::error!("no threads for mailboxes: {error}"),
            };
            let section = match self.start(config, mailbox, &handle) {
                Ok(section) => section,
                Err(error) => {
                    tracing::error!(mailbox = mailbox.name, "{error}");
                    Section::failed(mailbox, error)
                }
            };
            self.lock().sections.push(section);
        }
    }

    /// Tries again, for ever, what could not be started: a file that was not there, a database that was in use.
    pub async fn tend(&self) {
        loop {
            tokio::time::sleep(RETRY).await;
            if self.lock().sections.iter().any(|section| section.error.is_some()) {
                self.configure(&self.gateway.config()).await;
            }
        }
    }

    /// Ends all accounts, each after the message in hand.
    pub async fn stop(&self) {
        let _one = self.changing.lock().await;
        let all = std::mem::take(&mut self.lock().sections);
        end_all(all).await;
    }

    /// Every account, sorted by name.
    #[must_use]
    pub fn records(&self) -> Vec<AccountRecord> {
        let held = self.lock();
        let all = held.sections.iter().flat_map(|section| &section.accounts);
        let mut records: Vec<AccountRecord> = all.map(|account| account.status.record()).collect();
        records.sort_by(|a, b| a.account.cmp(&b.account));
        records
    }

    /// Brings the gauges up to date.
    pub fn refresh(&self) {
        let held = self.lock();
        let accounts = || held.sections.iter().flat_map(|section| &section.accounts);
        let metrics = &self.gateway.observer.metrics;
        for state in State::ALL {
            let count = accounts().filter(|account| account.status.state() == *state).count();
            metrics.set_mailbox_accounts(*state, count);
        }
        metrics.set_mailbox_backlog(accounts().map(|account| account.status.backlog()).sum());
    }

    /// Has all messages of an account, or of one folder of it, scanned: `account`, or `account/folder`.
    ///
    /// # Errors
    /// In words: there is no such account, or too many scans of it wait.
    pub fn scan(&self, what: &str, dry_run: bool) -> Result<mpsc::Receiver<Progress>, String> {
        let held = self.lock();
        let named = |name: &str| {
            let mut all = held.sections.iter().flat_map(|section| &section.accounts);
            all.find(|account| account.name == name)
        };
        let folder = || {
            let slashes = what.rmatch_indices('/');
            slashes.into_iter().find_map(|(at, _)| Some((named(&what[..at])?, &what[at + 1..])))
        };
        let (account, folder) = match named(what) {
            Some(account) => (account, None),
            None => match folder() {
                Some((account, folder)) => (account, Some(FolderName::from_unicode(folder))),
                None => {
                    return Err(format!(
                        "there is no account {what}; `vscan mailbox status` lists them"
                    ));
                }
            },
        };
        let (reply, replies) = mpsc::channel(REPLIES_WAITING);
        if !account.orders.ask(Order { folder, dry_run, reply }) {
            return Err(format!("too many scans of {} wait already", account.name));
        }
        Ok(replies)
    }

    fn start(
        &self,
        config: &Config,
        mailbox: &Mailbox,
        handle: &Handle,
    ) -> Result<Section, String> {
        let named = secret::accounts(mailbox)?;
        let shared = Arc::new(self.shared(config, mailbox)?);
        let rate = mailbox.rescan.as_ref().map(|rescan| Arc::new(Rate::new(rescan.rate)));
        let mut section = Section {
            config: mailbox.clone(),
            tasks: JoinSet::new(),
            accounts: Vec::new(),
            error: None,
        };
        for Named { name, user, credentials } in named {
            let status = Arc::new(AccountStatus::new(&name));
            let orders = Arc::new(Orders::default());
            let owner = mailbox.address(&user);
            if let (Some(copies), Some(address)) = (&shared.copies, &owner) {
                copies.register(address, Arc::clone(&orders));
            }
            let judge = Guard {
                gateway: Arc::clone(&self.gateway),
                account: name.clone(),
                owner: vec![owner.unwrap_or_else(|| user.clone()).into_bytes()],
                quarantine_folder: mailbox
                    .quarantine_folder
                    .as_deref()
                    .map(FolderName::from_unicode),
                copies: shared.copies.clone(),
                orders: Arc::clone(&orders),
                rate: rate.clone(),
                dry_run: mailbox.dry_run,
                status: Arc::clone(&status),
                flow: None,
                listener: None,
            };
            let account = Account {
                shared: Arc::clone(&shared),
                name: name.clone(),
                credentials,
                judge,
                scope: AccountScope {
                    unread: mailbox.which == Which::Unread,
                    skip_plain: mailbox.skip_plain,
                    remember_read: mailbox.remember_read,
                    rescan_age: mailbox.rescan.as_ref().map(|rescan| rescan.age.as_secs()),
                    dry_run: mailbox.dry_run,
                },
                status: Arc::clone(&status),
                orders: Arc::clone(&orders),
                copies_seen: 0,
            };
            section.tasks.spawn_on(account.run(), handle);
            section.accounts.push(Listed { name, status, orders });
        }
        tracing::info!(
            mailbox = mailbox.name,
            accounts = section.accounts.len(),
            "scanning mailboxes"
        );
        Ok(section)
    }

    fn shared(&self, config: &Config, mailbox: &Mailbox) -> Result<Shared, String> {
        let directory = config.paths.state_dir.join(DIRECTORY);
        let quarantine = mailbox.quarantine_folder.as_deref().map(Glob::new);
        Ok(Shared {
            endpoint: endpoint(mailbox)?,
            buffer: Arc::new(buffer(&directory, mailbox)?),
            spool: self.gateway.spool.clone(),
            connections: Arc::new(Semaphore::new(mailbox.connections.get())),
            folders: mailbox.folders.clone(),
            exclude: mailbox.exclude.iter().cloned().chain(quarantine).collect(),
            rescan_folders: mailbox.rescan.as_ref().map_or(Vec::new(), |r| r.folders.clone()),
            keyword: mailbox.keyword.clone(),
            interval: mailbox.interval,
            idle: mailbox.idle,
            copies: mailbox.copies.then(|| self.lock().copies(&mailbox.host)),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    fn copies(&mut self, host: &str) -> Arc<Copies> {
        Arc::clone(self.copies.entry(host.to_ascii_lowercase()).or_default())
    }

    fn handle(&mut self) -> io::Result<Handle> {
        if self.runtime.is_none() {
            let runtime = Builder::new_multi_thread()
                .worker_threads(THREADS)
                .thread_name("mailbox")
                .enable_all()
                .build()?;
            self.runtime = Some(runtime);
        }
        self.runtime
            .as_ref()
            .map(|runtime| runtime.handle().clone())
            .ok_or(io::ErrorKind::Other.into())
    }
}

impl Section {
    /// It stands for its accounts, with what is wrong.
    fn failed(mailbox: &Mailbox, error: String) -> Self {
        let status = Arc::new(AccountStatus::new(&mailbox.name));
        status.failed(Some(State::Failed), &error);
        let orders = Arc::default();
        Self {
            config: mailbox.clone(),
            tasks: JoinSet::new(),
            accounts: vec![Listed { name: mailbox.name.clone(), status, orders }],
            error: Some(error),
        }
    }
}

/// Ends sections. What is not finished in time is broken off: the journal of replacements says how far it had got.
async fn end_all(mut sections: Vec<Section>) {
    for account in sections.iter().flat_map(|section| &section.accounts) {
        account.orders.stop();
    }
    let ended = async {
        for section in &mut sections {
            while section.tasks.join_next().await.is_some() {}
        }
    };
    if timeout(FINISH, ended).await.is_err() {
        tracing::warn!("some mailboxes do not finish in time");
        for section in &mut sections {
            section.tasks.shutdown().await;
        }
    }
}

fn buffer(directory: &Path, mailbox: &Mailbox) -> Result<Buffer, String> {
    let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", directory.display());
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true).mode(0o700).create(directory).map_err(|error| failed(&error))?;
    let path = directory.join(format!("{}.redb", mailbox.name));
    Buffer::open(&path, mailbox.remember.get() as u64).map_err(|error| failed(&error))
}

fn endpoint(mailbox: &Mailbox) -> Result<Endpoint, String> {
    let tls = || client_config(mailbox.ca.as_deref()).map_err(|error| error.to_string());
    Ok(Endpoint {
        host: mailbox.host.clone(),
        port: mailbox.port.get(),
        security: match mailbox.security {
            MailboxSecurity::Tls => Security::Tls(tls()?),
            MailboxSecurity::Starttls => Security::StartTls(tls()?),
            MailboxSecurity::None | MailboxSecurity::Insecure => Security::None,
        },
    })
}

/// Whether everything is there that a section names: secrets, users, certificates. Asks no server.
///
/// # Errors
/// In words: what is not.
pub fn check(mailbox: &Mailbox) -> Result<(), String> {
    endpoint(mailbox)?;
    let accounts = secret::accounts(mailbox)?;
    accounts.first().map_or(Ok(()), |account| account.credentials.login().map(drop))
}

/// Logs in to the first account of a section and out again: whether it could be scanned.
///
/// # Errors
/// In words: why not.
pub async fn probe(mailbox: &Mailbox) -> Result<String, String> {
    let accounts = secret::accounts(mailbox)?;
    let Some(first) = accounts.first() else { return Err("no users are named".to_owned()) };
    let login = first.credentials.login()?;
    let endpoint = endpoint(mailbox)?;
    let opening = Connection::open(&endpoint, &login, PATIENCE);
    let place = format!("{}:{}", mailbox.host, mailbox.port);
    let opened = timeout(PATIENCE.connect, opening).await;
    let connection = opened
        .map_err(|_| format!("{place} does not answer"))?
        .map_err(|error| format!("{place}: {error}"))?;
    connection.log_out().await;
    Ok(format!("{place}: {} can log in, {} accounts", first.name, accounts.len()))
}

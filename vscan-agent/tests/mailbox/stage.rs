//! Mail servers in namespaces of their own, and what a scanner has beside them.

use anyhow::{Context as _, Result};
use std::{path::Path, time::Duration};
use vscan_agent::{
    mailbox::{
        buffer::Buffer,
        connection::{Connection, Endpoint, Error, Patience},
        folder::{SearchKey, Summary, Uid},
        login::{Login, Mechanism, Secret},
        name::FolderName,
        pass::{self, Fetched, Judge, Scope, Sentence, Tally},
        replace::TOKEN_FIELD,
        tls::Security,
    },
    spool::Spool,
};
use vscan_proto::imap::Flag;
use vscan_tests::{
    host::{Host, LabDir},
    peers::{Cyrus, Dovecot},
};

pub(crate) const PATIENCE: Patience =
    Patience { connect: Duration::from_secs(10), answer: Duration::from_secs(20) };

/// Which server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Dovecot,
    Cyrus,
}

/// What a scanner has.
pub(crate) struct Stage {
    pub(crate) buffer: Buffer,
    pub(crate) spool: Spool,
}

impl Stage {
    pub(crate) fn new(dir: &Path) -> Result<Self> {
        Ok(Self {
            buffer: Buffer::open(&dir.join("buffer.redb"), 1000)?,
            spool: Spool::new(dir, 64 << 20, 256 << 20, 64 << 20)?,
        })
    }
}

/// Runs `work` beside each of the servers.
pub(crate) fn on_both<F: Future<Output = Result<()>>>(
    work: impl Fn(Stage) -> F + Sync,
) -> Result<()> {
    std::thread::scope(|scope| {
        let [first, second] = [Kind::Dovecot, Kind::Cyrus].map(|kind| {
            let work = &work;
            scope.spawn(move || on(kind, "", work).with_context(|| format!("{kind:?}")))
        });
        first.join().map_err(|_| anyhow::anyhow!("Dovecot: see above"))??;
        second.join().map_err(|_| anyhow::anyhow!("Cyrus: see above"))?
    })
}

/// Runs `work` beside a server with these settings more.
pub(crate) fn on<F: Future<Output = Result<()>>>(
    kind: Kind,
    more: &str,
    work: impl Fn(Stage) -> F + Sync,
) -> Result<()> {
    let lab = LabDir::new()?;
    let host = Host::new("mail", &lab, "")?;
    let _server = match kind {
        Kind::Dovecot => (Some(Dovecot::start_with(&host, None, more)?), None),
        Kind::Cyrus => (None, Some(Cyrus::start_with(&host, None, more)?)),
    };
    let stage = Stage::new(lab.path())?;
    within(&host, || work(stage))
}

/// Runs `work` in a host's network.
pub(crate) fn within<F: Future<Output = Result<()>>>(
    host: &Host,
    work: impl FnOnce() -> F + Send,
) -> Result<()> {
    host.within(|| {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            // Every thread has to be in the host's network.
            .on_thread_start({
                let door = host.door();
                move || door.enter().unwrap()
            })
            .build()?;
        runtime.block_on(work())
    })
}

pub(crate) fn password(user: &str, password: &str) -> Login {
    Login::Password {
        mechanism: Mechanism::Any,
        on_behalf_of: String::new(),
        user: user.to_owned(),
        password: Secret::new(password.to_owned()),
    }
}

pub(crate) async fn connect(user: &str) -> Result<Connection, Error> {
    open(password(user, "secret")).await
}

pub(crate) async fn open(login: Login) -> Result<Connection, Error> {
    open_at(143, login).await
}

pub(crate) async fn open_at(port: u16, login: Login) -> Result<Connection, Error> {
    Connection::open(&endpoint(port), &login, PATIENCE).await
}

pub(crate) fn endpoint(port: u16) -> Endpoint {
    Endpoint { host: "127.0.0.1".to_owned(), port, security: Security::None }
}

pub(crate) fn inbox() -> FolderName {
    FolderName::from_unicode("INBOX")
}

pub(crate) fn mail(subject: &str, body: &str) -> Vec<u8> {
    format!(
        "From: a@example.org\r\nTo: b@example.org\r\nSubject: {subject}\r\n\
         Message-ID: <{subject}@example.org>\r\n\r\n{body}\r\n"
    )
    .into_bytes()
}

pub(crate) const DATE: Option<&str> = Some("01-Mar-2024 12:34:56 +0530");

/// Every particular of every message, as one who looks on sees it.
pub(crate) async fn snapshot(user: &str, folder: &FolderName) -> Result<Vec<Summary>> {
    let mut connection = connect(user).await?;
    let exists = connection.examine(folder).await?.exists;
    let uids = connection.search(exists, &[SearchKey::All]).await?;
    let mut all = connection.summaries(&uids, true, false).await?;
    all.sort_by_key(|summary| summary.uid);
    connection.log_out().await;
    Ok(all)
}

/// A judge by words in the subject.
#[derive(Default)]
pub(crate) struct BySubject {
    pub(crate) rules: u64,
    pub(crate) seen: Vec<String>,
    pub(crate) bytes: Vec<u64>,
    pub(crate) failures: Vec<String>,
    pub(crate) rescans: usize,
    /// By so many bytes a replacement is larger than it has to be.
    pub(crate) larger: usize,
}

impl Judge for BySubject {
    fn rules(&self) -> u64 {
        self.rules
    }

    async fn judge(&mut self, fetched: Fetched<'_>) -> (bool, Sentence) {
        let header = fetched.summary.header.clone().unwrap_or_default();
        let header = String::from_utf8(header.to_vec()).unwrap();
        let subject = header.lines().find_map(|line| line.strip_prefix("Subject: "));
        let subject = subject.unwrap_or_default().to_owned();
        self.bytes.push(fetched.object.map_or(0, |object| object.len()));
        self.seen.push(subject.clone());
        match subject.split('-').next() {
            Some("replace") => {
                let token = format!("token-{}", fetched.summary.uid);
                let mut with = format!("{TOKEN_FIELD}: {token}\r\n").into_bytes();
                with.extend(mail("treated", &"x".repeat(self.larger)));
                (false, Sentence::Replace { with, token })
            }
            Some("remove") => (false, Sentence::Remove),
            Some("move") => (false, Sentence::Move(FolderName::from_unicode("Quarantäne"))),
            Some("fail") => (false, Sentence::Again),
            _ => (true, Sentence::Leave),
        }
    }

    fn failed(&mut self, _: &FolderName, _: Uid, why: &str) {
        self.failures.push(why.to_owned());
    }

    fn rescans(&mut self, _: usize) -> usize {
        self.rescans
    }
}

pub(crate) fn scope() -> Scope<'static> {
    Scope { account: "ann", unread: true, ..Scope::default() }
}

pub(crate) async fn look(stage: &Stage, scope: Scope<'_>, judge: &mut BySubject) -> Result<Tally> {
    let mut connection = connect("ann").await?;
    let tally =
        pass::pass(&mut connection, &stage.buffer, &stage.spool, scope, &inbox(), judge).await?;
    connection.log_out().await;
    Ok(tally)
}

pub(crate) fn flag(name: &str) -> Flag {
    Flag::new(&format!("\\{name}")).unwrap()
}

pub(crate) fn subject(summary: &Summary) -> String {
    let header = String::from_utf8(summary.header.clone().unwrap_or_default().to_vec()).unwrap();
    header.lines().find_map(|l| l.strip_prefix("Subject: ")).unwrap_or_default().to_owned()
}

/// Bytes of this process's memory that are resident.
pub(crate) fn resident() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib << 10)
}

/// Runs the work of the test of this name in a process of its own, where nothing else takes memory, and as many files can be
/// open as the system allows.
pub(crate) fn alone(name: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
    const MARK: &str = "VSCAN_TEST_ALONE";
    if std::env::var_os(MARK).is_some() {
        let resource = rustix::process::Resource::Nofile;
        let limit = rustix::process::getrlimit(resource);
        let most = rustix::process::Rlimit { current: limit.maximum, ..limit };
        rustix::process::setrlimit(resource, most)?;
        return work();
    }
    let output = std::process::Command::new(std::env::current_exe()?)
        .args(["--exact", name, "--nocapture", "--test-threads", "1"])
        .env(MARK, "1")
        .output()?;
    anyhow::ensure!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

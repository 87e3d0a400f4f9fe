//! One account: connects, looks at its folders, waits for the next time, and begins again after whatever went wrong.

use super::{
    buffer::Buffer,
    connection::{Connection, Endpoint, Error, Patience},
    login::Login,
    name::FolderName,
    orders::{Copies, Order, Orders, Progress},
    pass::{self, Judge, PassError, Scope, Tally},
    replace,
    status::{AccountStatus, State},
    watch::NOTIFY_MAX,
};
use crate::{blocking, config::Glob, spool::Spool};
use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    sync::Semaphore,
    time::{sleep, timeout},
};

/// Time to connect, and the longest silence inside an answer.
pub(super) const PATIENCE: Patience =
    Patience { connect: Duration::from_secs(30), answer: Duration::from_secs(120) };

/// The first pause after an error; each further one is twice as long.
const PAUSE_MIN: Duration = Duration::from_secs(5);

/// The longest pause after an error.
const PAUSE_MAX: Duration = Duration::from_secs(600);

/// How long one IDLE lasts: servers may end one after 30 minutes (RFC 2177), routers forget a silent connection earlier.
const IDLE_MAX: Duration = Duration::from_secs(9 * 60);

/// What all accounts of a mailbox section share.
#[derive(Debug)]
pub struct Shared {
    /// Where the server is.
    pub endpoint: Endpoint,
    /// The buffer of scanned messages.
    pub buffer: Arc<Buffer>,
    /// Where messages are held while they are scanned.
    pub spool: Spool,
    /// Connections that may be open at one time.
    pub connections: Arc<Semaphore>,
    /// The folders that are scanned.
    pub folders: Vec<Glob>,
    /// Those of them that are not.
    pub exclude: Vec<Glob>,
    /// Folders whose messages are scanned again by new rules; empty: all that are scanned.
    pub rescan_folders: Vec<Glob>,
    /// The keyword that marks scanned messages on the server.
    pub keyword: Option<String>,
    /// Time between two looks.
    pub interval: Duration,
    /// Whether a connection may be kept to hear of new mail at once.
    pub idle: bool,
    /// What was found in one account and is looked for in the others; none: nothing.
    pub copies: Option<Arc<Copies>>,
}

/// How an account logs in; asked anew for each login, since secrets change.
pub trait Credentials: Send {
    /// The login. May wait for a disk or a command.
    ///
    /// # Errors
    /// In words: the secret cannot be read.
    fn login(&self) -> Result<Login, String>;
}

/// One account.
#[derive(Debug)]
pub struct Account<C, J> {
    /// What it shares.
    pub shared: Arc<Shared>,
    /// Its name here, e.g. `support` or `company/ann`.
    pub name: String,
    /// How it logs in.
    pub credentials: C,
    /// Who judges its messages.
    pub judge: J,
    /// What passes are to do.
    pub scope: AccountScope,
    /// What is told of it.
    pub status: Arc<AccountStatus>,
    /// What it is told.
    pub orders: Arc<Orders>,
    /// The first announcement of a copy that it has not looked for.
    pub copies_seen: u64,
}

/// [`Scope`] without what every pass has of its own.
#[derive(Clone, Copy, Debug)]
pub struct AccountScope {
    /// Unread messages only.
    pub unread: bool,
    /// Messages whose structure shows only plain text are not fetched.
    pub skip_plain: bool,
    /// See [`Scope::remember_read`].
    pub remember_read: bool,
    /// See [`Scope::rescan_age`].
    pub rescan_age: Option<u64>,
    /// Treatments are told of, not carried out.
    pub dry_run: bool,
}

/// Why a round ended early.
#[derive(Debug, thiserror::Error)]
pub enum RoundError {
    /// The server, the connection, the buffer.
    #[error(transparent)]
    Pass(#[from] PassError),
    /// The secret.
    #[error("{0}")]
    Secret(String),
}

impl From<Error> for RoundError {
    fn from(error: Error) -> Self {
        Self::Pass(error.into())
    }
}

/// What one look is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    /// What is new.
    New,
    /// All, whatever is known; with what is found only told of, or not.
    All { dry_run: bool },
}

impl<C: Credentials, J: Judge> Account<C, J> {
    /// Goes on until it is told to stop, or is dropped.
    pub async fn run(mut self) {
        let mut pause = PAUSE_MIN;
        while !self.orders.stopping() {
            let began = Instant::now();
            let outcome = self.session().await;
            self.judge.closed();
            let wait = match outcome {
                Ok(()) => {
                    pause = PAUSE_MIN;
                    self.status.set_state(State::Waiting);
                    self.shared.interval.saturating_sub(began.elapsed())
                }
                Err(error) => {
                    self.status.failed(Some(State::Failed), &error.to_string());
                    tracing::warn!(account = %self.name, "{error}");
                    self.disappoint(&error).await;
                    if let RoundError::Pass(PassError::Server(Error::Login(_))) = error {
                        // Many servers lock an account after a few refused logins.
                        pause = PAUSE_MAX;
                    }
                    let wait = jittered(pause);
                    pause = (pause * 2).min(PAUSE_MAX);
                    wait
                }
            };
            if !self.orders.stopping() {
                tokio::select! {
                    () = sleep(wait) => {}
                    () = self.orders.woken() => {}
                }
            }
        }
    }

    /// One connection: a round, and more of them for as long as the connection may be kept.
    async fn session(&mut self) -> Result<(), RoundError> {
        let shared = Arc::clone(&self.shared);
        let permit = shared.connections.acquire().await;
        let _permit = permit.map_err(|_| Error::Io(io::ErrorKind::Interrupted.into()))?;
        let mut connection = self.connect().await?;
        let keeps = shared.idle && connection.has("IDLE");
        loop {
            self.status.set_state(State::Looking);
            while let Some(order) = self.orders.take() {
                self.serve(&mut connection, &order).await?;
            }
            let folders = self.round(&mut connection).await?;
            self.judge.moved(connection.take_moved());
            // Others that wait for a connection come first.
            let keeps = keeps && shared.connections.available_permits() > 0;
            let Some(first) = folders.first().filter(|_| keeps && !self.orders.stopping()) else {
                connection.log_out().await;
                return Ok(());
            };
            self.status.set_state(State::Waiting);
            let orders = Arc::clone(&self.orders);
            let most = shared.interval.min(IDLE_MAX);
            tokio::select! {
                waited = wait(&mut connection, first, &folders, most) => waited?,
                // In the middle of a command: this connection is of no more use.
                () = orders.woken() => {
                    orders.wake();
                    return Ok(());
                }
            }
        }
    }

    /// Connects and completes what was left.
    async fn connect(&mut self) -> Result<Connection, RoundError> {
        let login = blocking::in_place(|| self.credentials.login()).map_err(RoundError::Secret)?;
        let opening = Connection::open(&self.shared.endpoint, &login, PATIENCE);
        // A server that trickles its answers is not waited for without end.
        let opened = timeout(PATIENCE.connect + PATIENCE.answer, opening).await;
        let mut connection = opened.map_err(|_| Error::Silent("the login"))??;
        self.judge.connected(connection.ends());
        let done = |old: &super::buffer::Replacement| {
            tracing::info!(uid = old.old, folder = old.folder, "a replacement was completed");
        };
        replace::resume(&mut connection, &self.shared.buffer, &self.name, done)
            .await
            .map_err(PassError::from)?;
        Ok(connection)
    }

    /// Looks at every folder once; which they are, the one first where new mail arrives.
    async fn round(&mut self, connection: &mut Connection) -> Result<Vec<FolderName>, RoundError> {
        let folders = self.folders(connection).await?;
        let (next, copies) = match &self.shared.copies {
            Some(copies) => copies.since(self.copies_seen, &self.name),
            None => (0, Vec::new()),
        };
        for folder in &folders {
            if let Err(error) = self.look(connection, folder, Look::New, &copies).await? {
                tracing::debug!(account = %self.name, %folder, "{error}");
            }
            if self.orders.stopping() {
                return Ok(Vec::new());
            }
        }
        self.copies_seen = next;
        self.status.round(self.shared.buffer.len(&self.name).map_err(PassError::from)?);
        Ok(folders)
    }

    /// A scan that somebody asked for.
    async fn serve(
        &mut self,
        connection: &mut Connection,
        order: &Order,
    ) -> Result<(), RoundError> {
        let folders = match &order.folder {
            Some(folder) => vec![folder.clone()],
            None => self.folders(connection).await?,
        };
        self.judge.reports_to(Some((order.dry_run, order.reply.clone())));
        let mut outcome = Ok(());
        for folder in &folders {
            let look = Look::All { dry_run: order.dry_run || self.scope.dry_run };
            let told = match self.look(connection, folder, look, &[]).await {
                Ok(Ok(tally)) => Progress::Folder { folder: folder.to_string(), tally },
                Ok(Err(error)) => Progress::Failed { error: format!("{folder}: {error}") },
                Err(error) => {
                    let told = Progress::Failed { error: error.to_string() };
                    outcome = Err(error);
                    told
                }
            };
            // Who asked may have gone: then nobody waits for the rest.
            if order.reply.send(told).await.is_err() || outcome.is_err() || self.orders.stopping() {
                break;
            }
        }
        self.judge.reports_to(None);
        outcome
    }

    /// Tells those whose scans cannot be made now.
    async fn disappoint(&mut self, error: &RoundError) {
        while let Some(order) = self.orders.take() {
            // Who asked may have gone.
            let _ = order.reply.send(Progress::Failed { error: error.to_string() }).await;
        }
    }

    /// Looks at a folder. One that cannot be opened does not keep us from the others: why not.
    async fn look(
        &mut self,
        connection: &mut Connection,
        folder: &FolderName,
        look: Look,
        copies: &[String],
    ) -> Result<Result<Tally, Error>, RoundError> {
        let shared = Arc::clone(&self.shared);
        let (anew, dry_run) = match look {
            Look::New => (false, self.scope.dry_run),
            Look::All { dry_run } => (true, dry_run),
        };
        let name = folder.to_string();
        let rescans = shared.rescan_folders.is_empty()
            || shared.rescan_folders.iter().any(|glob| glob.matches(&name));
        let scope = Scope {
            account: &self.name,
            unread: self.scope.unread && !anew,
            skip_plain: self.scope.skip_plain && !anew,
            remember_read: self.scope.remember_read,
            keyword: shared.keyword.as_deref(),
            rescan_age: self.scope.rescan_age.filter(|_| rescans && !anew),
            dry_run,
            anew,
        };
        let (buffer, spool, judge) = (&shared.buffer, &shared.spool, &mut self.judge);
        let mut done = pass::pass(connection, buffer, spool, scope, folder, judge).await;
        if let (Ok(tally), false) = (&mut done, copies.is_empty()) {
            let found = pass::copies(connection, buffer, spool, scope, folder, judge, copies).await;
            match found {
                Ok(found) => tally.add(found),
                Err(error) => done = Err(error),
            }
        }
        self.judge.moved(connection.take_moved());
        match done {
            Ok(tally) => {
                self.status.looked(folder, tally);
                self.judge.looked(tally);
                Ok(Ok(tally))
            }
            Err(PassError::Server(error)) if error.is_refusal() => {
                self.status.refused(folder, &error.to_string());
                Ok(Err(error))
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn folders(&self, connection: &mut Connection) -> Result<Vec<FolderName>, Error> {
        let shared = &self.shared;
        let literal = |glob: &Glob| !glob.as_str().contains(['*', '?']);
        if shared.folders.iter().all(literal) {
            // Named one by one: nothing has to be listed.
            return Ok(shared
                .folders
                .iter()
                .map(|g| FolderName::from_unicode(g.as_str()))
                .collect());
        }
        let wanted = |name: &FolderName| {
            let name = name.to_string();
            shared.folders.iter().any(|glob| glob.matches(&name))
                && !shared.exclude.iter().any(|glob| glob.matches(&name))
        };
        let mut folders: Vec<FolderName> = connection
            .list_all()
            .await?
            .into_iter()
            .filter(|listed| listed.selectable && wanted(&listed.name))
            .map(|listed| listed.name)
            .collect();
        folders.sort_by_key(|name| (name.as_wire_str() != "INBOX", name.as_wire_str().to_owned()));
        folders.dedup();
        Ok(folders)
    }
}

/// Waits until the server tells of a change, or the time is over: by NOTIFY in all folders, else by IDLE in the first.
async fn wait(
    connection: &mut Connection,
    first: &FolderName,
    folders: &[FolderName],
    most: Duration,
) -> Result<(), Error> {
    if (2..=NOTIFY_MAX).contains(&folders.len()) && connection.can_watch() {
        match connection.watch(folders, most).await {
            // It does not want to be asked for so many.
            Err(Error::No { .. } | Error::Bad { .. }) => {}
            watched => return watched.map(drop),
        }
    }
    connection.examine(first).await?;
    connection.idle(most).await.map(drop)
}

/// A pause between three quarters and five quarters: accounts that failed together do not come back together.
fn jittered(pause: Duration) -> Duration {
    use std::hash::{BuildHasher, RandomState};
    let spread = RandomState::new().hash_one(0_u8) % 512;
    pause.mul_f64(0.75 + spread as f64 / 1024.0)
}

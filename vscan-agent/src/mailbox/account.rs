//! One account: connects, looks at its folders, waits for the next time, and begins again after whatever went wrong.

use super::{
    buffer::Buffer,
    connection::{Connection, Endpoint, Error, Patience},
    login::Login,
    name::FolderName,
    pass::{self, Judge, PassError, Scope, Tally},
    replace,
    status::AccountStatus,
};
use crate::{config::Glob, spool::Spool};
use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{sync::Semaphore, time::sleep};

/// Time to connect, and the longest silence inside an answer.
const PATIENCE: Patience =
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
    /// Time between two looks.
    pub interval: Duration,
    /// Whether a connection may be kept to hear of new mail at once.
    pub idle: bool,
}

/// How an account logs in; asked anew for each login, since secrets change.
pub trait Credentials: Send {
    /// The login.
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
    /// What passes are to do; `account` is the account's name.
    pub scope: AccountScope,
    /// What is told of it.
    pub status: Arc<AccountStatus>,
}

/// [`Scope`] without what every pass has of its own.
#[derive(Clone, Copy, Debug)]
pub struct AccountScope {
    /// Unread messages only.
    pub unread: bool,
    /// Messages whose structure shows only plain text are not fetched.
    pub skip_plain: bool,
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

impl<C: Credentials, J: Judge> Account<C, J> {
    /// Goes on until it is dropped.
    pub async fn run(mut self) {
        let mut pause = PAUSE_MIN;
        loop {
            let began = Instant::now();
            match self.session().await {
                Ok(()) => {
                    pause = PAUSE_MIN;
                    sleep(self.shared.interval.saturating_sub(began.elapsed())).await;
                }
                Err(error) => {
                    self.status.failed(&error.to_string());
                    tracing::warn!(account = %self.name, "{error}");
                    if let RoundError::Pass(PassError::Server(Error::Login(_))) = error {
                        // Many servers lock an account after a few refused logins.
                        pause = PAUSE_MAX;
                    }
                    sleep(jittered(pause)).await;
                    pause = (pause * 2).min(PAUSE_MAX);
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
            let first = self.round(&mut connection, None).await?;
            // Others that wait for a connection come first.
            let Some(first) = first.filter(|_| keeps && shared.connections.available_permits() > 0)
            else {
                connection.log_out().await;
                return Ok(());
            };
            connection.examine(&first).await?;
            self.status.waiting();
            connection.idle(shared.interval.max(IDLE_MAX.min(shared.interval * 2))).await?;
        }
    }

    /// Connects and completes what was left.
    async fn connect(&mut self) -> Result<Connection, RoundError> {
        let login = self.credentials.login().map_err(RoundError::Secret)?;
        let mut connection = Connection::open(&self.shared.endpoint, &login, PATIENCE).await?;
        self.status.connected();
        let done = |old: &super::buffer::Replacement| {
            tracing::info!(uid = old.old, folder = old.folder, "a replacement was completed");
        };
        replace::resume(&mut connection, &self.shared.buffer, &self.name, done)
            .await
            .map_err(PassError::from)?;
        Ok(connection)
    }

    /// Looks at every folder once, or at the one given; the first folder, where new mail arrives.
    ///
    /// # Errors
    /// [`RoundError`]
    pub async fn round(
        &mut self,
        connection: &mut Connection,
        only: Option<&FolderName>,
    ) -> Result<Option<FolderName>, RoundError> {
        let folders = match only {
            Some(folder) => vec![folder.clone()],
            None => self.folders(connection).await?,
        };
        for folder in &folders {
            match self.look(connection, folder, only.is_some()).await {
                Ok(tally) => self.status.looked(folder, tally),
                // One folder that cannot be opened does not keep us from the others.
                Err(PassError::Server(error)) if error.is_refusal() => {
                    self.status.refused(folder, &error.to_string());
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(folders.into_iter().next())
    }

    async fn look(
        &mut self,
        connection: &mut Connection,
        folder: &FolderName,
        anew: bool,
    ) -> Result<Tally, PassError> {
        let AccountScope { unread, skip_plain, rescan_age, dry_run } = self.scope;
        let scope = Scope {
            account: &self.name,
            unread: unread && !anew,
            skip_plain: skip_plain && !anew,
            rescan_age,
            dry_run,
            anew,
        };
        let shared = &self.shared;
        pass::pass(connection, &shared.buffer, &shared.spool, scope, folder, &mut self.judge).await
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
            .list("*")
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

/// A pause between three quarters and five quarters: accounts that failed together do not come back together.
fn jittered(pause: Duration) -> Duration {
    use std::hash::{BuildHasher, RandomState};
    let spread = RandomState::new().hash_one(0_u8) % 512;
    pause.mul_f64(0.75 + spread as f64 / 1024.0)
}

//! The notices that wait, on disk: what is in here survives every process and a loss of power.
//!
//! One redb file. A notice is in it from before the object's fate is told to anybody until the relay has taken it.
//! Nothing here is asynchronous; every change waits for the disk.

use crate::config::{Address, Notify};
use crate::quarantine::EntryId;
use jiff::{SignedDuration, Timestamp};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

const NOTICES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("notices");
/// What was told when: the key of detection and parties, and seconds since 1970.
const TOLD: TableDefinition<'_, &[u8], i64> = TableDefinition::new("told");
const SECRETS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("secrets");

/// Memory for pages of the file; the queue is short or somebody has to look at it.
const CACHE: usize = 1 << 20;

/// Keys of told notices that are remembered; the oldest are forgotten first.
const TOLD_MAX: usize = 16_384;

/// Notices that were given up and are kept to be looked at; the oldest are dropped first, with a warning.
const DEAD_MAX: usize = 1000;

/// The longest pause between two attempts.
const PAUSE_MAX: Duration = Duration::from_secs(3600);

/// In which time `per_hour` counts.
const HOUR: SignedDuration = SignedDuration::from_hours(1);

/// Why the queue could not do something.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// Another process has it: a running agent.
    #[error("{} is in use by a running agent", .0.display())]
    InUse(PathBuf),
    /// There is no such notice.
    #[error("there is no notice {0}")]
    NoSuchNotice(u64),
    /// The file or the disk failed.
    #[error("notice queue {}: {why}", path.display())]
    Failed {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        why: String,
    },
}

/// Whether a notice is still tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It waits for its next attempt.
    Waiting,
    /// It was given up, and is kept to be looked at.
    Dead,
}

/// A notice.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Notice {
    /// Its number, never used again.
    pub id: u64,
    /// When it was made.
    pub created: Timestamp,
    /// To whom it goes.
    pub to: String,
    /// Why to this address: `recipient`, `addressees`, `sender`, `admin` or `redirect`.
    pub role: String,
    /// Its subject.
    pub subject: String,
    /// Its text.
    pub body: String,
    /// The object that is attached to it.
    pub attach: Option<EntryId>,
    /// The flow that it is about.
    pub flow_id: String,
    /// The detection that it is about.
    pub detection: String,
    /// Whether it is still tried.
    pub state: State,
    /// Attempts so far.
    pub attempts: u32,
    /// When it is tried next.
    pub next: Timestamp,
    /// Why the last attempt failed.
    pub error: Option<String>,
}

/// A notice that is to be made.
#[derive(Clone, Debug)]
pub(super) struct Draft {
    /// To whom.
    pub(super) to: Address,
    /// As in [`Notice::role`].
    pub(super) role: &'static str,
    /// Subject and text, when it is known how many were held back before.
    pub(super) text: (String, String),
    /// As in [`Notice::attach`].
    pub(super) attach: Option<EntryId>,
    /// As in [`Notice::flow_id`].
    pub(super) flow_id: String,
    /// As in [`Notice::detection`].
    pub(super) detection: String,
    /// What makes two of them the same.
    pub(super) key: [u8; 32],
}

/// Whether one more may be sent to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leave {
    /// It may; so many were held back since the last one.
    Granted(u64),
    /// The same was told a short time ago.
    Duplicate,
    /// The address had its share of this hour.
    Rate,
    /// The queue is full.
    Full,
}

/// What was attempted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Attempt {
    /// The relay has taken it.
    Taken,
    /// Not now.
    Later(String),
    /// Never.
    Refused(String),
}

/// How many notices there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Those that wait.
    pub waiting: u64,
    /// Those that were given up.
    pub dead: u64,
}

/// The queue.
#[derive(Debug)]
pub struct Queue {
    path: PathBuf,
    database: Database,
    secret: [u8; 32],
    index: Mutex<Index>,
}

/// What is asked for often, in memory.
#[derive(Debug, Default)]
struct Index {
    next_id: u64,
    waiting: BTreeMap<u64, Timestamp>,
    dead: BTreeMap<u64, ()>,
    told: HashMap<[u8; 32], Timestamp>,
    recent: HashMap<String, Recent>,
}

/// What an address got lately.
#[derive(Debug, Default)]
struct Recent {
    sent: Vec<Timestamp>,
    held_back: u64,
}

impl Queue {
    /// Opens the file; creates it for its owner alone if it does not exist.
    ///
    /// # Errors
    /// [`QueueError::InUse`], or the file system failed.
    pub fn open(path: &Path) -> Result<Self, QueueError> {
        if let Some(parent) = path.parent() {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(parent)
                .map_err(|error| failed(path)(error.to_string()))?;
        }
        let mut create = OpenOptions::new();
        create.create(true).truncate(false).read(true).write(true).mode(0o600);
        let file = create.open(path).map_err(|error| failed(path)(error.to_string()))?;
        // Both take a lock on the file.
        let opened = redb::backends::FileBackend::new(file)
            .and_then(|file| Database::builder().set_cache_size(CACHE).create_with_backend(file));
        let database = opened.map_err(|error| match error {
            redb::DatabaseError::DatabaseAlreadyOpen => QueueError::InUse(path.to_owned()),
            other => failed(path)(other.to_string()),
        })?;
        Self::over(path, database)
    }

    /// A queue that ends with the process.
    ///
    /// # Errors
    /// There is no memory.
    pub(super) fn in_memory() -> Result<Self, QueueError> {
        let path = Path::new("(memory)");
        let backend = redb::backends::InMemoryBackend::new();
        let database = Database::builder().set_cache_size(CACHE).create_with_backend(backend);
        Self::over(path, database.map_err(|error| failed(path)(error.to_string()))?)
    }

    fn over(path: &Path, database: Database) -> Result<Self, QueueError> {
        let (secret, index) = load(&database).map_err(|error| failed(path)(error.to_string()))?;
        Ok(Self { path: path.to_owned(), database, secret, index: Mutex::new(index) })
    }

    /// The key that marks notices as ours.
    pub(super) fn secret(&self) -> &[u8; 32] {
        &self.secret
    }

    /// Whether a notice with this key may go to this address now; counts it if not.
    pub(super) fn leave(
        &self,
        to: &Address,
        key: &[u8; 32],
        config: &Notify,
        now: Timestamp,
    ) -> Leave {
        let mut index = self.index();
        let full = index.waiting.len() >= config.queue_max.get();
        let told = index.told.get(key).is_some_and(|then| within(*then, now, config.interval));
        let recent = index.recent.entry(to.as_str().to_lowercase()).or_default();
        recent.sent.retain(|then| now.duration_since(*then) < HOUR);
        let leave = if told {
            Leave::Duplicate
        } else if config.per_hour.is_some_and(|most| recent.sent.len() >= most.get()) {
            Leave::Rate
        } else if full {
            Leave::Full
        } else {
            return Leave::Granted(recent.held_back);
        };
        recent.held_back += 1;
        leave
    }

    /// Puts notices into the queue, all or none. When this returns, they survive a loss of power.
    ///
    /// # Errors
    /// The disk failed; nothing is in the queue then.
    pub(super) fn put(
        &self,
        drafts: Vec<Draft>,
        config: &Notify,
        now: Timestamp,
    ) -> Result<Vec<Notice>, QueueError> {
        let mut index = self.index();
        let mut id = index.next_id;
        let mut keys = Vec::new();
        let notices: Vec<Notice> = drafts
            .into_iter()
            .map(|draft| {
                keys.push(draft.key);
                let (subject, body) = draft.text;
                let notice = Notice {
                    id,
                    created: now,
                    to: draft.to.as_str().to_owned(),
                    role: draft.role.to_owned(),
                    subject,
                    body,
                    attach: draft.attach,
                    flow_id: draft.flow_id,
                    detection: draft.detection,
                    state: State::Waiting,
                    attempts: 0,
                    next: now,
                    error: None,
                };
                id += 1;
                notice
            })
            .collect();
        let forgotten = index.forget(config.interval, now);
        self.change(|write| {
            let mut table = write.open_table(NOTICES)?;
            for notice in &notices {
                table.insert(notice.id, encode(notice)?.as_slice())?;
            }
            let mut told = write.open_table(TOLD)?;
            for key in &keys {
                told.insert(key.as_slice(), now.as_second())?;
            }
            for key in &forgotten {
                told.remove(key.as_slice())?;
            }
            // A number is not used again, also when the last notice is gone.
            write.open_table(SECRETS)?.insert("next", id.to_le_bytes().as_slice())?;
            Ok(())
        })?;
        index.next_id = id;
        for (notice, key) in notices.iter().zip(keys) {
            index.waiting.insert(notice.id, now);
            index.told.insert(key, now);
            let recent = index.recent.entry(notice.to.to_lowercase()).or_default();
            recent.sent.push(now);
            recent.held_back = 0;
        }
        Ok(notices)
    }

    /// The notices whose time has come, the oldest first.
    pub(super) fn due(&self, now: Timestamp, most: usize) -> Result<Vec<Notice>, QueueError> {
        let ids: Vec<u64> = {
            let index = self.index();
            let due = index.waiting.iter().filter(|(_, next)| **next <= now);
            due.map(|(id, _)| *id).take(most).collect()
        };
        ids.into_iter().filter_map(|id| self.get(id).transpose()).collect()
    }

    /// When the next notice is due.
    pub(super) fn next_due(&self) -> Option<Timestamp> {
        self.index().waiting.values().min().copied()
    }

    /// Notes what became of attempts, all in one.
    ///
    /// # Errors
    /// The disk failed; then they are attempted again.
    pub(super) fn attempted(
        &self,
        attempts: &[(u64, Attempt)],
        config: &Notify,
        now: Timestamp,
    ) -> Result<Vec<Notice>, QueueError> {
        let mut index = self.index();
        let mut changed = Vec::new();
        for (id, attempt) in attempts {
            // Deleted by an operator meanwhile.
            let Some(mut notice) = self.get(*id)? else { continue };
            notice.attempts = notice.attempts.saturating_add(1);
            match attempt {
                Attempt::Taken => {}
                Attempt::Later(why) => {
                    notice.error = Some(why.clone());
                    if within(notice.created, now, config.expire) {
                        notice.next = now + pause(config.retry, notice.attempts);
                    } else {
                        notice.state = State::Dead;
                    }
                }
                Attempt::Refused(why) => {
                    notice.error = Some(why.clone());
                    notice.state = State::Dead;
                }
            }
            changed.push((notice, *attempt == Attempt::Taken));
        }
        let newly_dead = changed.iter().filter(|(n, _)| n.state == State::Dead).count();
        let too_many = (index.dead.len() + newly_dead).saturating_sub(DEAD_MAX);
        let dropped: Vec<u64> = index.dead.keys().take(too_many).copied().collect();
        self.change(|write| {
            let mut table = write.open_table(NOTICES)?;
            for (notice, taken) in &changed {
                if *taken {
                    table.remove(notice.id)?;
                } else {
                    table.insert(notice.id, encode(notice)?.as_slice())?;
                }
            }
            for id in &dropped {
                table.remove(id)?;
            }
            Ok(())
        })?;
        for id in dropped {
            tracing::warn!(
                notice = id,
                "a notice that was given up is dropped: there are too many"
            );
            index.dead.remove(&id);
        }
        for (notice, taken) in &changed {
            index.forget_notice(notice.id);
            match notice.state {
                _ if *taken => {}
                State::Waiting => {
                    index.waiting.insert(notice.id, notice.next);
                }
                State::Dead => {
                    index.dead.insert(notice.id, ());
                }
            }
        }
        Ok(changed.into_iter().map(|(notice, _)| notice).collect())
    }

    /// One notice.
    ///
    /// # Errors
    /// The disk failed.
    pub fn get(&self, id: u64) -> Result<Option<Notice>, QueueError> {
        let get = || -> Result<Option<Notice>, redb::Error> {
            let read = self.database.begin_read()?;
            let table = read.open_table(NOTICES)?;
            let value = table.get(id)?;
            Ok(value.and_then(|value| decode(id, value.value())))
        };
        get().map_err(|error| failed(&self.path)(error.to_string()))
    }

    /// All notices, the oldest first.
    ///
    /// # Errors
    /// The disk failed.
    pub fn list(&self) -> Result<Vec<Notice>, QueueError> {
        let list = || -> Result<Vec<Notice>, redb::Error> {
            let read = self.database.begin_read()?;
            let table = read.open_table(NOTICES)?;
            let mut notices = Vec::new();
            for entry in table.iter()? {
                let (id, value) = entry?;
                notices.extend(decode(id.value(), value.value()));
            }
            Ok(notices)
        };
        list().map_err(|error| failed(&self.path)(error.to_string()))
    }

    /// Has notices tried again now: those named, or all. Those that were given up get their whole time anew.
    ///
    /// # Errors
    /// There is no notice of a number (then none is changed), or the disk failed.
    pub fn retry(&self, ids: &[u64], now: Timestamp) -> Result<Vec<u64>, QueueError> {
        let mut index = self.index();
        let wanted: Vec<u64> = if ids.is_empty() {
            index.waiting.keys().chain(index.dead.keys()).copied().collect()
        } else {
            ids.to_vec()
        };
        let mut notices = Vec::new();
        for id in &wanted {
            let mut notice = self.get(*id)?.ok_or(QueueError::NoSuchNotice(*id))?;
            if notice.state == State::Dead {
                notice.created = now;
                notice.attempts = 0;
            }
            notice.state = State::Waiting;
            notice.next = now;
            notices.push(notice);
        }
        self.change(|write| {
            let mut table = write.open_table(NOTICES)?;
            for notice in &notices {
                table.insert(notice.id, encode(notice)?.as_slice())?;
            }
            Ok(())
        })?;
        for id in &wanted {
            index.dead.remove(id);
            index.waiting.insert(*id, now);
        }
        Ok(wanted)
    }

    /// Deletes notices.
    ///
    /// # Errors
    /// There is no notice of a number (then none is deleted), or the disk failed.
    pub fn delete(&self, ids: &[u64]) -> Result<(), QueueError> {
        let mut index = self.index();
        for id in ids {
            if !index.waiting.contains_key(id) && !index.dead.contains_key(id) {
                return Err(QueueError::NoSuchNotice(*id));
            }
        }
        self.change(|write| {
            let mut table = write.open_table(NOTICES)?;
            for id in ids {
                table.remove(id)?;
            }
            Ok(())
        })?;
        for id in ids {
            index.forget_notice(*id);
        }
        Ok(())
    }

    /// How many there are.
    pub fn counts(&self) -> Counts {
        let index = self.index();
        let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        Counts { waiting: count(index.waiting.len()), dead: count(index.dead.len()) }
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A change that is on disk when this returns, or did not happen.
    fn change(
        &self,
        work: impl FnOnce(&redb::WriteTransaction) -> Result<(), redb::Error>,
    ) -> Result<(), QueueError> {
        let change = || -> Result<(), redb::Error> {
            let write = self.database.begin_write()?;
            work(&write)?;
            write.commit()?;
            Ok(())
        };
        change().map_err(|error| failed(&self.path)(error.to_string()))
    }
}

impl Index {
    /// Forgets what may be told again; the keys of it.
    fn forget(&mut self, interval: Duration, now: Timestamp) -> Vec<[u8; 32]> {
        let mut old: Vec<[u8; 32]> = Vec::new();
        if self.told.len() >= TOLD_MAX {
            let mut all: Vec<_> = self.told.iter().map(|(key, then)| (*then, *key)).collect();
            all.sort_unstable();
            old.extend(all.into_iter().take(TOLD_MAX / 4).map(|(_, key)| key));
        }
        old.extend(self.told.iter().filter(|(_, t)| !within(**t, now, interval)).map(|(k, _)| *k));
        for key in &old {
            self.told.remove(key);
        }
        self.recent.retain(|_, recent| {
            recent.held_back > 0 || recent.sent.iter().any(|t| now.duration_since(*t) < HOUR)
        });
        if self.recent.len() >= TOLD_MAX {
            // What it held back is in the metrics and the event log.
            self.recent.clear();
        }
        old
    }

    fn forget_notice(&mut self, id: u64) {
        self.waiting.remove(&id);
        self.dead.remove(&id);
    }
}

/// Reads what is there, or makes the tables.
fn load(database: &Database) -> Result<([u8; 32], Index), redb::Error> {
    let write = database.begin_write()?;
    let mut index = Index { next_id: 1, ..Index::default() };
    let secret;
    {
        let notices = write.open_table(NOTICES)?;
        for entry in notices.iter()? {
            let (id, value) = entry?;
            let id = id.value();
            index.next_id = id + 1;
            match decode(id, value.value()) {
                Some(Notice { state: State::Waiting, next, .. }) => {
                    index.waiting.insert(id, next);
                }
                Some(Notice { state: State::Dead, .. }) => {
                    index.dead.insert(id, ());
                }
                None => {}
            }
        }
        let told = write.open_table(TOLD)?;
        for entry in told.iter()? {
            let (key, seconds) = entry?;
            if let (Ok(key), Ok(then)) =
                (<[u8; 32]>::try_from(key.value()), Timestamp::from_second(seconds.value()))
            {
                index.told.insert(key, then);
            }
        }
        let mut secrets = write.open_table(SECRETS)?;
        let stored = secrets.get("notices")?.and_then(|v| <[u8; 32]>::try_from(v.value()).ok());
        secret = match stored {
            Some(secret) => secret,
            None => {
                let fresh = random()?;
                secrets.insert("notices", fresh.as_slice())?;
                fresh
            }
        };
        let next = secrets.get("next")?.and_then(|v| <[u8; 8]>::try_from(v.value()).ok());
        index.next_id = index.next_id.max(next.map_or(1, u64::from_le_bytes));
    }
    write.commit()?;
    Ok((secret, index))
}

fn random() -> io::Result<[u8; 32]> {
    let mut bytes = [0; 32];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn encode(notice: &Notice) -> Result<Vec<u8>, redb::Error> {
    serde_json::to_vec(notice).map_err(|error| redb::Error::Io(error.into()))
}

/// None, and a word in the log, for what another version wrote and this one cannot read.
fn decode(id: u64, bytes: &[u8]) -> Option<Notice> {
    serde_json::from_slice(bytes)
        .inspect_err(|error| tracing::error!(notice = id, "a notice cannot be read: {error}"))
        .ok()
}

fn failed(path: &Path) -> impl Fn(String) -> QueueError + '_ {
    move |why| QueueError::Failed { path: path.to_owned(), why }
}

/// Whether less than `time` has passed. A clock that was put back does not keep notices back for ever.
fn within(then: Timestamp, now: Timestamp, time: Duration) -> bool {
    now.duration_since(then).unsigned_abs() < time
}

/// The pause after so many attempts: it doubles with each.
fn pause(first: Duration, attempts: u32) -> Duration {
    let doubled = first.saturating_mul(1 << attempts.saturating_sub(1).min(16));
    doubled.min(PAUSE_MAX.max(first))
}

#[cfg(test)]
mod tests;

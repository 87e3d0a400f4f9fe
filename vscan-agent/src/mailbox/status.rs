//! What the mailbox scanner tells of itself: accounts, folders, positions, backlogs, the last error.

use super::{name::FolderName, pass::Tally};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};
use vscan_scan::report::Verdict;

/// Folders of an account that are told of one by one.
const FOLDERS_MAX: usize = 200;

/// Characters of an error that are kept.
const ERROR_MAX: usize = 300;

/// What an account does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It has not been connected yet.
    #[default]
    New,
    /// It is being looked through.
    Looking,
    /// It waits for the next look, or for the server to tell of new mail.
    Waiting,
    /// It cannot be looked at; it is tried again.
    Failed,
}

impl State {
    /// All states.
    pub const ALL: &[Self] = &[Self::New, Self::Looking, Self::Waiting, Self::Failed];

    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Looking => "looking",
            Self::Waiting => "waiting",
            Self::Failed => "failed",
        }
    }
}

/// One account, for `vscan mailbox status`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AccountRecord {
    /// Its name.
    pub account: String,
    /// What it does.
    pub state: State,
    /// When it was last looked at whole.
    pub looked: Option<Timestamp>,
    /// Messages fetched and judged since the start.
    pub scanned: u64,
    /// Messages settled without being fetched.
    pub settled: u64,
    /// Messages that are known in the buffer.
    pub remembered: u64,
    /// Messages that were infected.
    pub infected: u64,
    /// Messages that could not be read whole.
    pub unscannable: u64,
    /// Messages that were treated.
    pub treated: u64,
    /// Treatments that could not be carried out.
    pub untreated: u64,
    /// The last error, and when.
    pub error: Option<(Timestamp, String)>,
    /// Its folders.
    pub folders: Vec<FolderRecord>,
}

/// One folder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FolderRecord {
    /// Its name in Unicode.
    pub folder: String,
    /// Messages in it.
    pub messages: u32,
    /// The identifier up to which it has been looked at.
    pub position: u32,
    /// Messages that wait for a rescan.
    pub backlog: u32,
    /// When it was last looked at.
    pub looked: Timestamp,
    /// Why it could not be opened.
    pub error: Option<String>,
}

/// What is told of one account, while it goes on.
#[derive(Debug)]
pub struct AccountStatus {
    held: Mutex<Held>,
}

#[derive(Debug)]
struct Held {
    record: AccountRecord,
    folders: BTreeMap<String, FolderRecord>,
}

impl AccountStatus {
    /// Nothing yet.
    #[must_use]
    pub fn new(account: &str) -> Self {
        let record = AccountRecord { account: account.to_owned(), ..AccountRecord::default() };
        Self { held: Mutex::new(Held { record, folders: BTreeMap::new() }) }
    }

    /// As of now.
    #[must_use]
    pub fn record(&self) -> AccountRecord {
        let held = self.lock();
        AccountRecord { folders: held.folders.values().cloned().collect(), ..held.record.clone() }
    }

    /// What it does now.
    #[must_use]
    pub fn state(&self) -> State {
        self.lock().record.state
    }

    /// Messages that wait for a rescan.
    #[must_use]
    pub fn backlog(&self) -> u64 {
        self.lock().folders.values().map(|folder| u64::from(folder.backlog)).sum()
    }

    pub(super) fn set_state(&self, state: State) {
        self.lock().record.state = state;
    }

    /// It cannot be looked at, or something went wrong with a message.
    pub(super) fn failed(&self, state: Option<State>, why: &str) {
        let record = &mut self.lock().record;
        if let Some(state) = state {
            record.state = state;
        }
        record.error = Some((Timestamp::now(), why.chars().take(ERROR_MAX).collect()));
    }

    /// A round is complete; so many messages are remembered.
    pub(super) fn round(&self, remembered: u64) {
        let record = &mut self.lock().record;
        record.looked = Some(Timestamp::now());
        record.remembered = remembered;
    }

    /// A message was judged.
    pub(super) fn judged(&self, verdict: Verdict) {
        let record = &mut self.lock().record;
        match verdict {
            Verdict::Infected => record.infected += 1,
            Verdict::Unscannable => record.unscannable += 1,
            Verdict::Clean | Verdict::Error => {}
        }
    }

    /// A treatment could not be carried out.
    pub(super) fn untreated(&self, why: &str) {
        self.lock().record.untreated += 1;
        self.failed(None, why);
    }

    /// A folder was looked at.
    pub(super) fn looked(&self, folder: &FolderName, tally: Tally) {
        let mut held = self.lock();
        let record = &mut held.record;
        record.scanned += u64::from(tally.scanned);
        record.settled += u64::from(tally.settled);
        record.treated += u64::from(tally.treated);
        held.folder(FolderRecord {
            folder: folder.to_string(),
            messages: tally.messages,
            position: tally.position.saturating_sub(1),
            backlog: tally.backlog,
            looked: Timestamp::now(),
            error: None,
        });
    }

    /// A folder could not be opened.
    pub(super) fn refused(&self, folder: &FolderName, why: &str) {
        self.lock().folder(FolderRecord {
            folder: folder.to_string(),
            messages: 0,
            position: 0,
            backlog: 0,
            looked: Timestamp::now(),
            error: Some(why.chars().take(ERROR_MAX).collect()),
        });
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    fn folder(&mut self, record: FolderRecord) {
        if self.folders.len() < FOLDERS_MAX || self.folders.contains_key(&record.folder) {
            self.folders.insert(record.folder.clone(), record);
        }
    }
}

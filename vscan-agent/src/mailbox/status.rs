//! What the mailbox scanner tells of itself: accounts, folders, positions, backlogs, the last error.

use super::{name::FolderName, pass::Tally};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Folders of an account that are told of one by one.
const FOLDERS_MAX: usize = 200;

/// Characters of an error that are kept.
const ERROR_MAX: usize = 300;

/// One account, for `vscan mailbox status`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AccountRecord {
    /// Its name.
    pub account: String,
    /// What it does: `waiting`, `connected`, `failed`, or nothing yet.
    pub state: String,
    /// When it was last looked at whole.
    pub looked: Option<Timestamp>,
    /// Messages fetched and judged since the start.
    pub scanned: u64,
    /// Messages settled without being fetched.
    pub settled: u64,
    /// Messages that were not clean.
    pub found: u64,
    /// Messages that were treated.
    pub treated: u64,
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
    record: Mutex<(AccountRecord, BTreeMap<String, FolderRecord>)>,
}

impl AccountStatus {
    /// Nothing yet.
    #[must_use]
    pub fn new(account: &str) -> Self {
        let record = AccountRecord { account: account.to_owned(), ..AccountRecord::default() };
        Self { record: Mutex::new((record, BTreeMap::new())) }
    }

    /// As of now.
    #[must_use]
    pub fn record(&self) -> AccountRecord {
        let held = self.lock();
        AccountRecord { folders: held.1.values().cloned().collect(), ..held.0.clone() }
    }

    pub(super) fn connected(&self) {
        self.lock().0.state = "connected".to_owned();
    }

    pub(super) fn waiting(&self) {
        self.lock().0.state = "waiting".to_owned();
    }

    pub(super) fn failed(&self, why: &str) {
        let record = &mut self.lock().0;
        record.state = "failed".to_owned();
        record.error = Some((Timestamp::now(), why.chars().take(ERROR_MAX).collect()));
    }

    pub(super) fn looked(&self, folder: &FolderName, tally: Tally) {
        let mut held = self.lock();
        let record = &mut held.0;
        record.looked = Some(Timestamp::now());
        record.scanned += u64::from(tally.scanned);
        record.settled += u64::from(tally.settled);
        record.found += u64::from(tally.found);
        record.treated += u64::from(tally.treated);
        held.folder(folder, tally.messages, tally.backlog, None);
    }

    pub(super) fn refused(&self, folder: &FolderName, why: &str) {
        let why = why.chars().take(ERROR_MAX).collect();
        self.lock().folder(folder, 0, 0, Some(why));
    }

    fn lock(&self) -> MutexGuard<'_, (AccountRecord, BTreeMap<String, FolderRecord>)> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

trait Folders {
    fn folder(&mut self, folder: &FolderName, messages: u32, backlog: u32, error: Option<String>);
}

impl Folders for (AccountRecord, BTreeMap<String, FolderRecord>) {
    fn folder(&mut self, folder: &FolderName, messages: u32, backlog: u32, error: Option<String>) {
        let name = folder.to_string();
        if self.1.len() < FOLDERS_MAX || self.1.contains_key(&name) {
            let looked = Timestamp::now();
            let record = FolderRecord { folder: name.clone(), messages, backlog, looked, error };
            self.1.insert(name, record);
        }
    }
}

//! One look at one folder: what is new is fetched without a trace, judged, noted in the buffer, and treated.
//!
//! What to do with a message is a [`Judge`]'s business; how a folder is read and changed is here.

use super::{
    buffer::{Buffer, BufferError, Entry, FolderState, Status},
    connection::{Connection, Error},
    folder::{Opened, SearchKey, Store, Summary, Uid},
    name::FolderName,
    replace::{self, Place, ReplaceError},
};
use crate::spool::{Object, Spool, SpoolError};
use std::{
    collections::HashMap,
    num::{NonZeroU32, NonZeroU64},
    time::{SystemTime, UNIX_EPOCH},
};
use thiserror::Error as ThisError;

/// Bytes of a message that are fetched at a time: what is in memory of it, whatever its length.
const PIECE: NonZeroU32 = NonZeroU32::new(1 << 20).unwrap();

/// Messages whose particulars, headers included, are held in memory at a time.
const BATCH: usize = 64;

/// After this many failures of the scanner on a message it is left as it is, and told of.
const FAILURES_MAX: u8 = 3;

/// What is done with a message.
#[derive(Debug)]
pub enum Sentence {
    /// It stays as it is.
    Leave,
    /// The scanner failed: it is scanned again at the next look.
    Again,
    /// This takes its place; it carries the token in its header.
    Replace {
        /// The message.
        with: Vec<u8>,
        /// The token.
        token: String,
    },
    /// It goes to another folder.
    Move(FolderName),
    /// It is removed; whoever says so has kept a copy, or was told not to.
    Remove,
}

/// A message to be judged.
#[derive(Debug)]
pub struct Fetched<'a> {
    /// Its folder.
    pub folder: &'a FolderName,
    /// What is known of it.
    pub summary: &'a Summary,
    /// Its bytes, or why they could not be held.
    pub object: Result<&'a Object, &'a SpoolError>,
}

/// Decides what is done with a message that was fetched.
pub trait Judge: Send {
    /// The rules that it would judge by now, as [`Entry::rules`].
    fn rules(&self) -> u64;

    /// The verdict on one message and its sentence; `clean` when there is nothing about it.
    fn judge(&mut self, fetched: Fetched<'_>) -> impl Future<Output = (bool, Sentence)> + Send;

    /// A treatment could not be carried out.
    fn failed(&mut self, folder: &FolderName, uid: Uid, why: &str);

    /// How many messages with older rules may be scanned again now.
    fn rescans(&mut self) -> usize;
}

/// What a pass is to do.
#[derive(Clone, Copy, Debug)]
pub struct Scope<'a> {
    /// The account, as the buffer names it.
    pub account: &'a str,
    /// Unread messages only.
    pub unread: bool,
    /// Messages whose structure shows only plain text are not fetched.
    pub skip_plain: bool,
    /// How long ago a message may have been scanned to be scanned again by new rules, in seconds; none: never.
    pub rescan_age: Option<u64>,
    /// Treatments are told of, not carried out.
    pub dry_run: bool,
    /// Everything is scanned, whatever the buffer knows.
    pub anew: bool,
}

/// What a pass did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Messages in the folder.
    pub messages: u32,
    /// Messages that were fetched and judged.
    pub scanned: u32,
    /// Messages that were settled without being fetched.
    pub settled: u32,
    /// Messages that were not clean.
    pub found: u32,
    /// Messages that were treated.
    pub treated: u32,
    /// Messages that are left for the next look.
    pub backlog: u32,
}

/// Why a pass ended early. What was noted until then stays noted.
#[derive(Debug, ThisError)]
pub enum PassError {
    /// The server, or the connection to it.
    #[error(transparent)]
    Server(#[from] Error),
    /// The buffer or the journal.
    #[error(transparent)]
    Buffer(#[from] BufferError),
}

impl From<ReplaceError> for PassError {
    fn from(error: ReplaceError) -> Self {
        match error {
            ReplaceError::Server(error) => Self::Server(error),
            ReplaceError::Journal(error) => Self::Buffer(error),
        }
    }
}

/// Looks at one folder.
///
/// # Errors
/// [`PassError`]
pub async fn pass<J: Judge>(
    connection: &mut Connection,
    buffer: &Buffer,
    spool: &Spool,
    scope: Scope<'_>,
    folder: &FolderName,
    judge: &mut J,
) -> Result<Tally, PassError> {
    let opened = connection.examine(folder).await?;
    let validity = opened.uid_validity.ok_or(Error::Missing("UIDVALIDITY"))?;
    let mut pass = Pass {
        connection,
        buffer,
        spool,
        scope,
        folder,
        judge,
        validity,
        tally: Tally { messages: opened.exists, ..Tally::default() },
        failed: false,
        noted: Vec::new(),
        sentenced: Vec::new(),
    };
    let done = pass.run(&opened).await;
    // Also what was judged before the connection broke is not judged again.
    let state = done.as_ref().ok().copied().flatten();
    pass.flush(state)?;
    done?;
    pass.carry_out().await?;
    Ok(pass.tally)
}

struct Pass<'a, J> {
    connection: &'a mut Connection,
    buffer: &'a Buffer,
    spool: &'a Spool,
    scope: Scope<'a>,
    folder: &'a FolderName,
    judge: &'a mut J,
    validity: NonZeroU32,
    tally: Tally,
    /// The scanner failed on a message that will be scanned again.
    failed: bool,
    noted: Vec<(Uid, Entry)>,
    sentenced: Vec<(Summary, Entry, Sentence)>,
}

impl<J: Judge> Pass<'_, J> {
    async fn run(&mut self, opened: &Opened) -> Result<Option<FolderState>, PassError> {
        let account = self.scope.account;
        let last = self.buffer.folder(account, self.folder)?;
        let now = FolderState {
            uid_validity: self.validity.get(),
            uid_next: opened.uid_next.map_or(0, Uid::get),
            highest_modseq: opened.highest_modseq.map(NonZeroU64::get),
            rules: self.judge.rules(),
        };
        // A server that counts its changes says by one number that there were none (RFC 7162 3.1.2.1).
        if now.highest_modseq.is_some() && last == Some(now) && !self.scope.anew {
            return Ok(Some(now));
        }
        let known: HashMap<Uid, Entry> =
            self.buffer.known(account, self.folder, self.validity)?.into_iter().collect();
        let renumbered = match last {
            Some(last) if last.uid_validity != self.validity.get() => self.former(last)?,
            Some(_) | None => HashMap::new(),
        };
        let mut keys = vec![SearchKey::Undeleted];
        if self.scope.unread {
            keys.push(SearchKey::Unseen);
        }
        let listed = self.connection.search(opened.exists, &keys).await?;
        let fresh: Vec<Uid> =
            listed.iter().copied().filter(|uid| self.wants(&known, *uid)).collect();
        if self.scope.rescan_age.is_none() {
            // Sorted by the server's promise to count upwards.
            let gone: Vec<Uid> =
                known.keys().copied().filter(|uid| listed.binary_search(uid).is_err()).collect();
            self.buffer.forget(account, self.folder, self.validity, &gone)?;
        }
        for batch in fresh.chunks(BATCH) {
            let summaries = self.connection.summaries(batch, true, self.scope.skip_plain).await?;
            for summary in summaries {
                let failures = match known.get(&summary.uid).map(|entry| entry.status) {
                    Some(Status::Failed(count)) => count,
                    _ => 0,
                };
                self.one(summary, &renumbered, failures).await?;
            }
            self.flush(None)?;
        }
        let due = self.rescans_due(&known, now.rules);
        let most = if due.is_empty() { 0 } else { self.judge.rescans() };
        let (turn, rest) = due.split_at(most.min(due.len()));
        for batch in turn.chunks(BATCH) {
            for summary in self.connection.summaries(batch, true, false).await? {
                self.one(summary, &HashMap::new(), 0).await?;
            }
            self.flush(None)?;
        }
        self.tally.backlog = u32::try_from(rest.len()).unwrap_or(u32::MAX);
        // A folder with something left to do is not one that has been seen whole.
        Ok((self.tally.backlog == 0 && !self.failed).then_some(now))
    }

    /// What the buffer knows of the folder under its former identifiers, by header.
    fn former(&self, last: FolderState) -> Result<HashMap<[u8; 16], Entry>, PassError> {
        let Some(validity) = NonZeroU32::new(last.uid_validity) else { return Ok(HashMap::new()) };
        let known = self.buffer.known(self.scope.account, self.folder, validity)?;
        let uids: Vec<Uid> = known.iter().map(|(uid, _)| *uid).collect();
        self.buffer.forget(self.scope.account, self.folder, validity, &uids)?;
        Ok(known.into_iter().map(|(_, entry)| (entry.digest, entry)).collect())
    }

    fn wants(&self, known: &HashMap<Uid, Entry>, uid: Uid) -> bool {
        self.scope.anew
            || match known.get(&uid).map(|entry| entry.status) {
                None => true,
                Some(Status::Failed(count)) => count < FAILURES_MAX,
                Some(Status::Clean | Status::Plain | Status::Left | Status::Treated) => false,
            }
    }

    /// Messages that were scanned by other rules, the youngest first.
    fn rescans_due(&self, known: &HashMap<Uid, Entry>, rules: u64) -> Vec<Uid> {
        let Some(age) = self.scope.rescan_age else { return Vec::new() };
        let since = now().saturating_sub(age);
        let mut due: Vec<Uid> = known
            .iter()
            .filter(|(_, entry)| entry.rules != rules && entry.at >= since)
            .map(|(uid, _)| *uid)
            .collect();
        due.sort_unstable_by(|a, b| b.cmp(a));
        due
    }

    async fn one(
        &mut self,
        summary: Summary,
        renumbered: &HashMap<[u8; 16], Entry>,
        failures: u8,
    ) -> Result<(), PassError> {
        let digest = digest(&summary);
        if let Some(entry) = renumbered.get(&digest) {
            self.noted.push((summary.uid, *entry));
            return Ok(());
        }
        let entry = |status, rules| Entry::new(status, digest, rules, now());
        let rules = self.judge.rules();
        if self.scope.skip_plain && summary.plain == Some(true) {
            self.tally.settled += 1;
            self.noted.push((summary.uid, entry(Status::Plain, rules)));
            return Ok(());
        }
        let Some(object) = self.retrieve(&summary).await? else { return Ok(()) };
        let fetched = Fetched { folder: self.folder, summary: &summary, object: object.as_ref() };
        let (clean, sentence) = self.judge.judge(fetched).await;
        self.tally.scanned += 1;
        self.tally.found += u32::from(!clean);
        let status = match &sentence {
            Sentence::Leave if clean => Status::Clean,
            Sentence::Again => Status::Failed(failures + 1),
            Sentence::Leave | Sentence::Replace { .. } | Sentence::Move(_) | Sentence::Remove => {
                Status::Left
            }
        };
        self.failed |= matches!(status, Status::Failed(count) if count < FAILURES_MAX);
        let entry = entry(status, rules);
        match sentence {
            Sentence::Leave | Sentence::Again => self.noted.push((summary.uid, entry)),
            // Not noted before it is done: what is interrupted is judged again.
            sentence if !self.scope.dry_run => self.sentenced.push((summary, entry, sentence)),
            _ => self.noted.push((summary.uid, entry)),
        }
        Ok(())
    }

    /// Fetches a message piece by piece; `None`: it has vanished.
    async fn retrieve(
        &mut self,
        summary: &Summary,
    ) -> Result<Option<Result<Object, SpoolError>>, PassError> {
        let mut writer = self.spool.writer();
        let mut offset = 0;
        loop {
            let Some(piece) = self.connection.piece(summary.uid, offset, PIECE).await? else {
                return Ok(None);
            };
            let length = u32::try_from(piece.len()).unwrap_or(u32::MAX);
            if let Err(error) = writer.write(&piece) {
                return Ok(Some(Err(error)));
            }
            // The announced size is what most servers stored; the end is where a piece is short.
            if length < PIECE.get() {
                return Ok(Some(writer.finish()));
            }
            let Some(next) = offset.checked_add(length) else {
                return Ok(Some(Err(SpoolError::TooLarge { limit: u64::from(u32::MAX) })));
            };
            offset = next;
        }
    }

    fn flush(&mut self, state: Option<FolderState>) -> Result<(), PassError> {
        if !self.noted.is_empty() || state.is_some() {
            let account = self.scope.account;
            self.buffer.note(account, self.folder, self.validity, &self.noted, state)?;
            self.noted.clear();
        }
        Ok(())
    }

    /// Treats what was sentenced, in the folder opened for changes.
    async fn carry_out(&mut self) -> Result<(), PassError> {
        if self.sentenced.is_empty() {
            return Ok(());
        }
        let opened = self.connection.select(self.folder).await?;
        if opened.uid_validity != Some(self.validity) {
            // Nobody knows which message is which any more: the next look begins anew.
            return Ok(());
        }
        for (summary, mut entry, sentence) in std::mem::take(&mut self.sentenced) {
            let uid = summary.uid;
            let done = if opened.writable {
                self.treat(&summary, sentence).await
            } else {
                Err(PassError::Server(Error::No {
                    command: "SELECT",
                    text: "the folder is read-only".to_owned(),
                    over_quota: false,
                }))
            };
            match done {
                Ok(new) => {
                    self.tally.treated += 1;
                    entry.status = Status::Treated;
                    if let Some(new) = new {
                        self.noted.push((new, entry));
                    }
                }
                Err(PassError::Server(error))
                    if error.is_refusal() || matches!(error, Error::Missing(_)) =>
                {
                    self.judge.failed(self.folder, uid, &error.to_string());
                    self.noted.push((uid, entry));
                }
                Err(error) => {
                    self.flush(None)?;
                    return Err(error);
                }
            }
        }
        self.flush(None)
    }

    async fn treat(
        &mut self,
        summary: &Summary,
        sentence: Sentence,
    ) -> Result<Option<Uid>, PassError> {
        let place =
            Place { account: self.scope.account, folder: self.folder, validity: self.validity };
        match sentence {
            Sentence::Leave | Sentence::Again => Ok(Some(summary.uid)),
            Sentence::Replace { with, token } => Ok(replace::replace(
                self.connection,
                self.buffer,
                place,
                summary,
                &token,
                with.into(),
            )
            .await?),
            Sentence::Move(folder) => {
                self.connection.move_to(summary.uid, &folder).await?;
                Ok(None)
            }
            Sentence::Remove => {
                self.connection.remove(summary.uid).await?;
                Ok(None)
            }
        }
    }
}

/// Marks a message as scanned for everybody who looks at the folder.
///
/// # Errors
/// As [`Connection::run`].
pub async fn mark(
    connection: &mut Connection,
    uid: Uid,
    keyword: &vscan_proto::imap::Flag,
) -> Result<(), Error> {
    connection.store(uid, Store::Add, std::slice::from_ref(keyword)).await
}

fn digest(summary: &Summary) -> [u8; 16] {
    let hash = blake3::hash(summary.header.as_deref().unwrap_or_default());
    let mut digest = [0; 16];
    digest.copy_from_slice(&hash.as_bytes()[..16]);
    digest
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

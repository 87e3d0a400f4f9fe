//! One look at one folder: what is new is fetched without a trace, judged, noted in the buffer, and treated.
//!
//! What to do with a message is a [`Judge`]'s business; how a folder is read and changed is here: which messages are
//! looked at in `choice`, how they are fetched in `fetch`, what follows in `carry_out`.

mod carry_out;
mod choice;
mod fetch;

use super::{
    buffer::{Buffer, BufferError, Entry, FolderState, Status},
    connection::{Connection, Error},
    folder::{Change, Opened, SearchKey, Summary, Uid},
    name::FolderName,
    orders::Progress,
    replace::ReplaceError,
};
use crate::spool::{Object, Spool, SpoolError};
use bytes::Bytes;
use fetch::Retrieved;
use serde::{Deserialize, Serialize};
use std::{
    collections::HashMap,
    net::SocketAddr,
    num::{NonZeroU32, NonZeroU64},
    time::{SystemTime, UNIX_EPOCH},
};
use thiserror::Error as ThisError;
use tokio::sync::mpsc;
use vscan_proto::imap::Flag;

/// So many of them: a megabyte at most.
const AHEAD: usize = 16;

/// Messages whose particulars, headers included, are held in memory at a time.
const BATCH: usize = 64;

/// After this many failures of the scanner on a message it is left as it is, and told of.
const FAILURES_MAX: u8 = 3;

/// Bytes of messages that are to be put in the place of others: past it they are, before the next one is judged.
const HELD_MAX: usize = 32 << 20;

/// Messages with one Message-ID that are looked at in a folder: whoever gives the same to many gains nothing.
const COPIES_MAX: usize = 16;

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

    /// How many of `wanted` messages with older rules may be scanned again now.
    fn rescans(&mut self, wanted: usize) -> usize;

    /// Whether the pass is to end before the next message.
    fn stopping(&self) -> bool {
        false
    }

    /// A connection was made, with these ends: ours, and the server's.
    fn connected(&mut self, _ends: (SocketAddr, SocketAddr)) {}

    /// Bytes that went over it, to the server and from it.
    fn moved(&mut self, _bytes: (u64, u64)) {}

    /// It was closed.
    fn closed(&mut self) {}

    /// A folder was looked at.
    fn looked(&mut self, _tally: Tally) {}

    /// From now on somebody wants to hear of each message, and whether it is only told what would be done.
    fn reports_to(&mut self, _listener: Option<(bool, mpsc::Sender<Progress>)>) {}
}

/// What a pass is to do.
#[derive(Clone, Copy, Debug, Default)]
pub struct Scope<'a> {
    /// The account, as the buffer names it.
    pub account: &'a str,
    /// Unread messages only.
    pub unread: bool,
    /// Messages whose structure shows only plain text are not fetched.
    pub skip_plain: bool,
    /// Messages stay in the buffer that are no longer looked at, because they were read or are gone.
    pub remember_read: bool,
    /// The keyword that marks scanned messages on the server.
    pub keyword: Option<&'a str>,
    /// How long ago a message may have been scanned to be scanned again by new rules, in seconds; none: never.
    pub rescan_age: Option<u64>,
    /// Treatments are told of, not carried out.
    pub dry_run: bool,
    /// Everything is scanned, whatever the buffer knows.
    pub anew: bool,
}

/// What a pass did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
    /// The identifier that the next message will have.
    pub position: u32,
}

impl Tally {
    fn of(opened: &Opened) -> Self {
        let position = opened.uid_next.map_or(0, Uid::get);
        Self { messages: opened.exists, position, ..Self::default() }
    }

    /// Adds what a second look at the same folder did.
    pub(super) fn add(&mut self, other: Self) {
        self.scanned += other.scanned;
        self.settled += other.settled;
        self.found += other.found;
        self.treated += other.treated;
    }
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
    let mut pass = Pass::begin(connection, buffer, spool, scope, folder, judge, &opened)?;
    let done = pass.run(&opened).await;
    pass.end(done).await
}

/// Looks in one folder for messages with these Message-IDs, whatever the buffer knows of them: copies of messages in which
/// something was found elsewhere.
///
/// # Errors
/// [`PassError`]
pub async fn copies<J: Judge>(
    connection: &mut Connection,
    buffer: &Buffer,
    spool: &Spool,
    scope: Scope<'_>,
    folder: &FolderName,
    judge: &mut J,
    message_ids: &[String],
) -> Result<Tally, PassError> {
    let opened = connection.examine(folder).await?;
    let mut pass = Pass::begin(connection, buffer, spool, scope, folder, judge, &opened)?;
    let done = pass.find_copies(message_ids).await.map(|()| None);
    pass.end(done).await
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
    /// Something will be looked at again: the folder has not been seen whole.
    unfinished: bool,
    noted: Vec<(Uid, Entry)>,
    sentenced: Vec<(Summary, Entry, Sentence)>,
    /// Bytes of messages in `sentenced`.
    held: usize,
    /// Beginnings of messages that were fetched ahead of their turn.
    ahead: HashMap<Uid, Bytes>,
}

impl<'a, J: Judge> Pass<'a, J> {
    fn begin(
        connection: &'a mut Connection,
        buffer: &'a Buffer,
        spool: &'a Spool,
        scope: Scope<'a>,
        folder: &'a FolderName,
        judge: &'a mut J,
        opened: &Opened,
    ) -> Result<Self, PassError> {
        Ok(Self {
            connection,
            buffer,
            spool,
            scope,
            folder,
            judge,
            validity: opened.uid_validity.ok_or(Error::Missing("UIDVALIDITY"))?,
            tally: Tally::of(opened),
            unfinished: false,
            noted: Vec::new(),
            sentenced: Vec::new(),
            held: 0,
            ahead: HashMap::new(),
        })
    }

    /// Also what was judged before the connection broke is not judged again.
    async fn end(
        mut self,
        done: Result<Option<FolderState>, PassError>,
    ) -> Result<Tally, PassError> {
        let state = done.as_ref().ok().copied().flatten();
        self.flush(state)?;
        done?;
        Ok(self.tally)
    }

    async fn run(&mut self, opened: &Opened) -> Result<Option<FolderState>, PassError> {
        let account = self.scope.account;
        let last = self.buffer.folder(account, self.folder)?;
        let now = FolderState {
            uid_validity: self.validity.get(),
            uid_next: opened.uid_next.map_or(0, Uid::get),
            highest_modseq: opened.highest_modseq.map(NonZeroU64::get),
            rules: self.judge.rules(),
            scope: self.scope.bits(),
        };
        // A server that counts its changes says by one number that there were none (RFC 7162 3.1.2.1).
        if now.highest_modseq.is_some() && last == Some(now) && !self.scope.anew {
            return Ok(None);
        }
        let known = self.known()?;
        let renumbered = match last {
            Some(last) if last.uid_validity != self.validity.get() => self.former(last)?,
            Some(_) | None => HashMap::new(),
        };
        let (listed, gone) = match self.since(last, now) {
            Some(since) => {
                let (mut listed, gone) = self.changed(since, now).await?;
                // What failed did not change by that.
                let left = |(_, entry): &(&Uid, &Entry)| matches!(entry.status, Status::Failed(_));
                listed.extend(known.iter().filter(left).map(|(uid, _)| *uid));
                listed.sort_unstable();
                listed.dedup();
                listed.retain(|uid| !gone.contains(uid));
                (listed, gone)
            }
            None => {
                let listed = self.listed().await?;
                // Sorted by the server's promise to count upwards.
                let absent = |uid: &Uid| listed.binary_search(uid).is_err();
                let gone = known.keys().copied().filter(absent).collect();
                (listed, gone)
            }
        };
        // What had to leave a full buffer is not taken for new.
        let evicted = match last.filter(|last| last.uid_validity == now.uid_validity) {
            Some(last) if last.scope == now.scope && self.buffer.is_full(account)? => last.uid_next,
            Some(_) | None => 0,
        };
        let fresh: Vec<Uid> = listed
            .into_iter()
            .filter(|uid| self.wants(&known, *uid))
            .filter(|uid| uid.get() >= evicted || known.contains_key(uid) || self.scope.anew)
            .collect();
        if !self.scope.remember_read && self.scope.keyword.is_none() {
            let gone: Vec<Uid> = gone.into_iter().filter(|uid| known.contains_key(uid)).collect();
            self.buffer.forget(account, self.folder, self.validity, &gone)?;
        }
        for batch in fresh.chunks(BATCH) {
            let structure = self.scope.skip_plain;
            self.batch(batch, structure, &known, &renumbered).await?;
            if self.judge.stopping() {
                return Ok(None);
            }
        }
        let due = self.rescans_due(&known, now.rules);
        let most = if due.is_empty() { 0 } else { self.judge.rescans(due.len()) };
        let (turn, rest) = due.split_at(most.min(due.len()));
        for batch in turn.chunks(BATCH) {
            let there = self.batch(batch, false, &HashMap::new(), &HashMap::new()).await?;
            // What is no longer in the folder is not due for ever.
            let gone: Vec<Uid> = batch.iter().copied().filter(|uid| !there.contains(uid)).collect();
            self.buffer.forget(account, self.folder, self.validity, &gone)?;
            if self.judge.stopping() {
                return Ok(None);
            }
        }
        self.tally.backlog = u32::try_from(rest.len()).unwrap_or(u32::MAX);
        let whole = self.tally.backlog == 0 && !self.unfinished && !self.scope.leaves_no_note();
        Ok(whole.then_some(now))
    }

    /// Judges messages, notes and treats them; those that are still there.
    async fn batch(
        &mut self,
        uids: &[Uid],
        structure: bool,
        known: &HashMap<Uid, Entry>,
        renumbered: &HashMap<[u8; 16], Entry>,
    ) -> Result<Vec<Uid>, PassError> {
        let mut there = Vec::new();
        let mut marked = Vec::new();
        let summaries = self.connection.summaries(uids, true, structure).await?;
        for (n, summary) in summaries.iter().enumerate() {
            if n.is_multiple_of(AHEAD) {
                let end = summaries.len().min(n + AHEAD);
                self.fetch_ahead(&summaries[n..end], renumbered).await?;
            }
            there.push(summary.uid);
            let failures = match known.get(&summary.uid).map(|entry| entry.status) {
                Some(Status::Failed(count)) => count,
                _ => 0,
            };
            self.one(summary.clone(), renumbered, failures).await?;
            if self.held > HELD_MAX {
                marked.append(&mut self.flush(None)?);
                self.carry_out(&mut marked).await?;
            }
            if self.judge.stopping() {
                break;
            }
        }
        marked.append(&mut self.flush(None)?);
        self.carry_out(&mut marked).await?;
        Ok(there)
    }

    async fn find_copies(&mut self, message_ids: &[String]) -> Result<(), PassError> {
        let known = self.known()?;
        let rules = self.judge.rules();
        for message_id in message_ids {
            let field = SearchKey::Header("Message-ID".to_owned(), message_id.clone());
            let keys = [SearchKey::Undeleted, field];
            let mut found = self.connection.search(self.tally.messages, &keys).await?;
            found.retain(|uid| match known.get(uid) {
                Some(entry) => entry.rules != rules && entry.status != Status::Treated,
                None => true,
            });
            found.truncate(COPIES_MAX);
            // HEADER looks for a part of the field: what another message only mentions is none.
            let summaries = self.connection.summaries(&found, true, false).await?;
            let copies: Vec<Uid> = summaries
                .into_iter()
                .filter(|summary| summary.envelope.message_id == message_id.as_bytes())
                .map(|summary| summary.uid)
                .collect();
            self.batch(&copies, false, &known, &HashMap::new()).await?;
            if self.judge.stopping() {
                break;
            }
        }
        Ok(())
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
        let object = match self.retrieve(&summary).await? {
            Retrieved::Object(object) => object,
            Retrieved::Gone => return Ok(()),
            Retrieved::Refused(why) => {
                // One message that the server does not give out keeps no other from being scanned.
                self.judge.failed(self.folder, summary.uid, &why);
                let failures = failures + 1;
                self.unfinished |= failures < FAILURES_MAX;
                self.noted.push((summary.uid, entry(Status::Failed(failures), rules)));
                return Ok(());
            }
        };
        let fetched = Fetched { folder: self.folder, summary: &summary, object: object.as_ref() };
        let (clean, sentence) = self.judge.judge(fetched).await;
        self.tally.scanned += 1;
        self.tally.found += u32::from(!clean);
        let status = match &sentence {
            Sentence::Leave if clean => Status::Clean,
            Sentence::Leave => Status::Left,
            Sentence::Again => Status::Failed(failures + 1),
            Sentence::Replace { .. } | Sentence::Move(_) | Sentence::Remove => {
                if self.scope.dry_run {
                    Status::Told
                } else {
                    // If its treatment fails.
                    Status::Failed(failures + 1)
                }
            }
        };
        let treated = !self.scope.dry_run && !matches!(sentence, Sentence::Leave | Sentence::Again);
        let entry = entry(status, rules);
        if treated {
            // Not noted before it is done: what is interrupted is judged again.
            if let Sentence::Replace { with, .. } = &sentence {
                self.held += with.len();
            }
            self.sentenced.push((summary, entry, sentence));
        } else {
            self.unfinished |= matches!(status, Status::Failed(count) if count < FAILURES_MAX);
            self.noted.push((summary.uid, entry));
        }
        Ok(())
    }
}

impl Scope<'_> {
    /// What decides which messages are looked at, as [`FolderState::scope`].
    fn bits(&self) -> u8 {
        u8::from(self.unread) | u8::from(self.skip_plain) << 1 | u8::from(self.dry_run) << 2
    }

    /// A look that somebody asked for, to see what would be done: the next one is as if it had not been.
    fn leaves_no_note(&self) -> bool {
        self.anew && self.dry_run
    }
}

fn flag(keyword: &str) -> Result<Flag, Error> {
    Flag::new(keyword).ok_or_else(|| Error::Unspeakable(format!("the keyword {keyword:?}")))
}

fn digest(summary: &Summary) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(summary.header.as_deref().unwrap_or_default());
    hasher.update(&summary.size.to_le_bytes());
    let hash = hasher.finalize();
    let mut digest = [0; 16];
    digest.copy_from_slice(&hash.as_bytes()[..16]);
    digest
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

//! What sessions remember of files for one another: versions that were scanned whole, so that a later
//! piece of one needs no second fetch; which version a client has pieces of; what was caught; which
//! uploads are under way; and how long servers wait.
//!
//! It lives in memory alone. A version counts only for the rules that it was scanned with, and those
//! are compiled anew whenever the gateway starts, so that nothing kept on disk could be used after it.
//! What is forgotten costs one more fetch. Names are keys, never proof: bytes go on only if their
//! hashes are those of the version.

use crate::{
    blocks::{BLOCK, BlockHash, block_hash},
    spool::Object,
};
use bytes::Bytes;
use std::{
    collections::HashMap,
    hash::Hash,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio::{sync::Notify, time::timeout_at};

/// Block hashes kept in all: 32 bytes for each 64 KiB of the files, so 16 MiB stand for 32 GiB.
const BLOCKS_MAX: usize = 512 * 1024;

/// Files, clients' files, caught files and servers that are remembered, each.
const ENTRIES_MAX: usize = 4096;

/// How long a caught file is refused by its beginning alone: long enough for clients that try again
/// by themselves, short enough for a server that has got a clean one.
const CAUGHT_FOR: Duration = Duration::from_secs(600);

/// How long a client that has pieces of a version, but not its beginning, gets no other version from
/// the beginning on: long enough for a download in segments whose first one is tried again.
const PIECES_FOR: Duration = Duration::from_secs(600);

/// How much of the time after which a server gave up it is trusted to wait the next time.
const PATIENCE_PART: (u32, u32) = (3, 4);

/// A file at a server, as clients call it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) server: SocketAddr,
    pub(super) path: Bytes,
}

/// Content that was scanned whole and found clean.
#[derive(Debug)]
pub(super) struct Version {
    hash: blake3::Hash,
    len: u64,
    blocks: Vec<BlockHash>,
    rules: String,
}

impl Version {
    pub(super) fn of(object: &Object, rules: String) -> Self {
        Self { hash: object.hash(), len: object.len(), blocks: object.blocks(), rules }
    }

    /// One that no object begins with.
    fn unknown() -> Self {
        let hash = blake3::hash(b"unknown");
        Self { hash, len: u64::MAX, blocks: Vec::new(), rules: String::new() }
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Whether these bytes are the whole block of this number.
    pub(super) fn has_block(&self, index: u64, bytes: &[u8]) -> bool {
        let offset = index * BLOCK as u64;
        let whole = self.len.saturating_sub(offset).min(BLOCK as u64);
        let hash = usize::try_from(index).ok().and_then(|index| self.blocks.get(index));
        if bytes.is_empty() || whole != bytes.len() as u64 {
            return false;
        }
        match (self.blocks.len(), hash) {
            (1, Some(hash)) => blake3::hash(bytes).as_bytes() == hash,
            (_, Some(hash)) => block_hash(offset, bytes) == *hash,
            (_, None) => false,
        }
    }

    /// Whether an object begins with all of this version.
    fn begins(&self, object: &Object) -> io::Result<bool> {
        if self.hash == object.hash() || self.len == 0 {
            return Ok(true);
        }
        if object.len() < self.len {
            return Ok(false);
        }
        let theirs = object.blocks();
        let last = self.blocks.len() - 1;
        if self.blocks[..last] != theirs[..last] {
            return Ok(false);
        }
        let mut bytes = vec![0; BLOCK];
        let offset = (last * BLOCK) as u64;
        let count = usize::try_from(self.len - offset).unwrap_or(BLOCK);
        let mut filled = 0;
        while filled < count {
            match object.read_at(&mut bytes[filled..count], offset + filled as u64)? {
                0 => return Ok(false),
                read => filled += read,
            }
        }
        Ok(self.has_block(last as u64, &bytes[..count]))
    }
}

/// What a client has pieces of.
#[derive(Clone, Debug)]
struct Given {
    version: Arc<Version>,
    at: Instant,
    /// Whether that may include its beginning.
    begins: bool,
}

impl Given {
    /// Whether what begins at `restart`, of a transfer begun then, may be put together with it.
    fn meets(&self, restart: u64, begun: Instant) -> bool {
        restart > 0 || self.at > begun || !self.begins && self.at + PIECES_FOR > begun
    }
}

/// A caught file.
#[derive(Debug)]
pub(super) struct Caught {
    /// Hash of its first block.
    prefix: BlockHash,
    pub(super) reason: String,
    until: Instant,
}

impl Caught {
    /// Whether a file that begins like this is taken for it.
    pub(super) fn begins(&self, prefix: &BlockHash) -> bool {
        self.prefix == *prefix && Instant::now() < self.until
    }
}

/// Entries of which the one that was not touched for the longest time goes first.
#[derive(Debug)]
struct Recent<K, V> {
    entries: HashMap<K, (V, u64)>,
    clock: u64,
}

impl<K, V> Default for Recent<K, V> {
    fn default() -> Self {
        Self { entries: HashMap::new(), clock: 0 }
    }
}

impl<K: Clone + Eq + Hash, V> Recent<K, V> {
    fn get(&mut self, key: &K) -> Option<&V> {
        self.clock += 1;
        let (value, touched) = self.entries.get_mut(key)?;
        *touched = self.clock;
        Some(value)
    }

    fn put(&mut self, key: K, value: V) -> Option<V> {
        self.clock += 1;
        let old = self.entries.insert(key, (value, self.clock));
        old.map(|(value, _)| value)
    }

    fn remove(&mut self, key: &K) -> Option<V> {
        self.entries.remove(key).map(|(value, _)| value)
    }

    fn drop_oldest(&mut self) -> Option<V> {
        let oldest = self.entries.iter().min_by_key(|(_, (_, touched))| *touched)?.0.clone();
        self.remove(&oldest)
    }

    fn len(&self) -> usize {
        self.entries.len()
    }
}

#[derive(Debug, Default)]
struct State {
    versions: Recent<Key, Arc<Version>>,
    given: Recent<(IpAddr, Key), Given>,
    /// Block hashes in both.
    blocks: usize,
    caught: Recent<Key, Arc<Caught>>,
    prefixes: Recent<BlockHash, Instant>,
    /// Files that are being fetched whole, and how often.
    fetches: HashMap<Key, usize>,
    /// Uploads under way, by server and last part of the name: how many, and whether one of them is
    /// joined with what the server has.
    uploads: HashMap<Key, (usize, bool)>,
    patience: Recent<SocketAddr, Duration>,
}

impl State {
    /// What the client has pieces of: of this file, or, where it goes on at `restart` with one that it has nothing
    /// of here, of the one of the same path at another server. A host with several addresses may be two servers that
    /// each have another version.
    fn given(&mut self, place: &(IpAddr, Key), restart: u64) -> Option<Given> {
        let given = self.given.get(place).cloned();
        if given.is_some() || restart == 0 {
            return given;
        }
        let (client, key) = place;
        let elsewhere = self
            .given
            .entries
            .iter()
            .filter(|((to, other), _)| to == client && other.path == key.path);
        elsewhere.max_by_key(|(_, (given, _))| given.at).map(|(_, (given, _))| given.clone())
    }

    fn put_given(&mut self, place: (IpAddr, Key), given: Given) {
        self.blocks += given.version.blocks.len();
        if let Some(old) = self.given.put(place, given) {
            self.blocks -= old.version.blocks.len();
        }
        self.make_room();
    }

    fn make_room(&mut self) {
        while self.versions.len() > ENTRIES_MAX || self.blocks > BLOCKS_MAX {
            match self.versions.drop_oldest() {
                Some(version) => self.blocks -= version.blocks.len(),
                None => break,
            }
        }
        while self.given.len() > ENTRIES_MAX || self.blocks > BLOCKS_MAX {
            match self.given.drop_oldest() {
                Some(given) => self.blocks -= given.version.blocks.len(),
                None => break,
            }
        }
    }
}

/// The memory, shared by all sessions.
#[derive(Debug, Default)]
pub struct Memory {
    state: Mutex<State>,
    fetched: Notify,
}

impl Memory {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The version of a file that a piece for this client may be of, after waiting for a fetch of it that
    /// is under way. Where there is none, the caller's own fetch is announced.
    pub(super) async fn recall(
        self: &Arc<Self>,
        key: &Key,
        client: IpAddr,
        restart: u64,
        rules: &str,
        patience: Duration,
    ) -> Result<Arc<Version>, Fetch> {
        let until = tokio::time::Instant::now() + patience;
        loop {
            let fetched = self.fetched.notified();
            tokio::pin!(fetched);
            fetched.as_mut().enable();
            {
                let mut state = self.state();
                let version = state.versions.get(key).filter(|version| version.rules == rules);
                let version = version.cloned();
                let given = state.given(&(client, key.clone()), restart);
                // A client that has pieces of another version gets none of this one.
                let fits = |version: &Arc<Version>| {
                    given.as_ref().is_none_or(|given| given.version.hash == version.hash)
                };
                if let Some(version) = version.filter(fits) {
                    return Ok(version);
                }
                if !state.fetches.contains_key(key) {
                    drop(state);
                    return Err(self.fetch(key.clone()));
                }
            }
            if timeout_at(until, fetched).await.is_err() {
                return Err(self.fetch(key.clone()));
            }
        }
    }

    /// The file is being fetched whole until the returned value is dropped.
    pub(super) fn fetch(self: &Arc<Self>, key: Key) -> Fetch {
        *self.state().fetches.entry(key.clone()).or_default() += 1;
        Fetch { memory: Arc::clone(self), key }
    }

    /// Whether the client may have this content from `restart` on; if so, that it has is remembered.
    ///
    /// It may not where it has pieces of another version, which would make a third one together that
    /// nobody scanned. One that only went on where the other ended is no other. `clean`: the version is one to check
    /// later pieces against; what goes on by policy, or was treated, is scanned anew each time.
    #[expect(clippy::too_many_arguments, reason = "each is a fact of the one transfer")]
    pub(super) fn give(
        &self,
        client: IpAddr,
        key: &Key,
        restart: u64,
        begun: Instant,
        object: &Object,
        version: &Arc<Version>,
        clean: bool,
    ) -> io::Result<bool> {
        let place = (client, key.clone());
        let mut before = self.state().given(&place, restart);
        loop {
            // The object is read without the lock.
            let known = before.as_ref();
            let meets = known.is_some_and(|given| given.meets(restart, begun));
            if let Some(given) = known.filter(|_| meets)
                && !given.version.begins(object)?
            {
                return Ok(false);
            }
            let mut state = self.state();
            let now = state.given(&place, restart);
            if now.as_ref().map(|given| given.at) != before.as_ref().map(|given| given.at) {
                // Another segment was given meanwhile.
                before = now;
                continue;
            }
            let begins = restart == 0 || meets && now.is_some_and(|given| given.begins);
            let version = Arc::clone(version);
            if clean {
                state.blocks += version.blocks.len();
                if let Some(old) = state.versions.put(key.clone(), Arc::clone(&version)) {
                    state.blocks -= old.blocks.len();
                }
            }
            state.put_given(place, Given { version, at: Instant::now(), begins });
            return Ok(true);
        }
    }

    /// Whether the client may have a piece of this version, whose bytes are checked one block after the other; if so,
    /// that it has is remembered.
    pub(super) fn checked(
        &self,
        client: IpAddr,
        key: &Key,
        restart: u64,
        version: &Arc<Version>,
    ) -> bool {
        let place = (client, key.clone());
        let mut state = self.state();
        let given = state.given(&place, restart);
        if given.as_ref().is_some_and(|given| given.version.hash != version.hash) {
            return false;
        }
        let begins = restart == 0 || given.is_some_and(|given| given.begins);
        let given = Given { version: Arc::clone(version), at: Instant::now(), begins };
        state.put_given(place, given);
        true
    }

    /// Whether the client has got bytes that a transfer from the beginning on may have to be of one version with.
    pub(super) fn has_pieces(&self, client: IpAddr, key: &Key) -> bool {
        let given = self.state().given(&(client, key.clone()), 0);
        given.is_some_and(|given| given.meets(0, Instant::now()))
    }

    /// The client has got bytes of a file before its verdict, of a transfer begun then: nothing that is not behind
    /// `received` belongs to them (`None`: nothing at all, it is not here any more).
    pub(super) fn streamed(
        &self,
        client: IpAddr,
        key: Key,
        begun: Instant,
        received: Option<&Object>,
    ) {
        let version = received.map_or_else(Version::unknown, |o| Version::of(o, String::new()));
        let place = (client, key);
        let mut state = self.state();
        // What another transfer gave meanwhile is what this one is to be compared with.
        if state.given(&place, 0).is_some_and(|given| given.meets(0, begun)) {
            return;
        }
        let given = Given { version: Arc::new(version), at: Instant::now(), begins: true };
        state.put_given(place, given);
    }

    /// What the server has is not that version any more.
    pub(super) fn forget(&self, key: &Key) {
        let mut state = self.state();
        if let Some(version) = state.versions.remove(key) {
            state.blocks -= version.blocks.len();
        }
    }

    /// A file was caught.
    pub(super) fn catch(&self, key: Key, prefix: BlockHash, reason: String) {
        let until = Instant::now() + CAUGHT_FOR;
        let mut state = self.state();
        state.caught.put(key, Arc::new(Caught { prefix, reason, until }));
        state.prefixes.put(prefix, until);
        while state.caught.len() > ENTRIES_MAX {
            state.caught.drop_oldest();
        }
        while state.prefixes.len() > ENTRIES_MAX {
            state.prefixes.drop_oldest();
        }
    }

    /// What was caught under this name.
    pub(super) fn caught(&self, key: &Key) -> Option<Arc<Caught>> {
        let mut state = self.state();
        let caught = state.caught.get(key).cloned()?;
        if Instant::now() < caught.until {
            return Some(caught);
        }
        state.caught.remove(key);
        None
    }

    /// Whether a caught file, of whatever name, begins like this.
    pub(super) fn caught_beginning(&self, prefix: &BlockHash) -> bool {
        self.state().prefixes.get(prefix).is_some_and(|until| Instant::now() < *until)
    }

    /// An upload begins; `None` where it cannot be told what the file would become together with another
    /// that is under way. Servers read names in their own ways, so the last part of them has to do.
    pub(super) fn claim(self: &Arc<Self>, key: &Key, joined: bool) -> Option<Claim> {
        let name = key.path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        let key = Key { server: key.server, path: name.to_ascii_lowercase().into() };
        let mut state = self.state();
        let (count, has_joined) = state.uploads.entry(key.clone()).or_default();
        if *count > 0 && (joined || *has_joined) {
            return None;
        }
        *count += 1;
        *has_joined = joined;
        drop(state);
        Some(Claim { memory: Arc::clone(self), key })
    }

    /// A server gave up waiting for an upload after this time.
    pub(super) fn gave_up(&self, server: SocketAddr, after: Duration) {
        let mut state = self.state();
        let (part, whole) = PATIENCE_PART;
        let patience = after * part / whole;
        let known = state.patience.get(&server).copied().unwrap_or(patience);
        state.patience.put(server, patience.min(known));
        while state.patience.len() > ENTRIES_MAX {
            state.patience.drop_oldest();
        }
    }

    /// How long a server waits for an upload, if it once did not.
    pub(super) fn patience(&self, server: SocketAddr) -> Option<Duration> {
        self.state().patience.get(&server).copied()
    }
}

/// A fetch of a whole file that is under way.
#[derive(Debug)]
pub(super) struct Fetch {
    memory: Arc<Memory>,
    key: Key,
}

impl Drop for Fetch {
    fn drop(&mut self) {
        let mut state = self.memory.state();
        if let Some(count) = state.fetches.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                state.fetches.remove(&self.key);
            }
        }
        drop(state);
        self.memory.fetched.notify_waiters();
    }
}

/// An upload that is under way.
#[derive(Debug)]
pub(super) struct Claim {
    memory: Arc<Memory>,
    key: Key,
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut state = self.memory.state();
        if let Some((count, joined)) = state.uploads.get_mut(&self.key) {
            *count -= 1;
            *joined = false;
            if *count == 0 {
                state.uploads.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests;

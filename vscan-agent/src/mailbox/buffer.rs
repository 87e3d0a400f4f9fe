//! The scanned-message buffer: which messages were scanned, by which rules, with what result; and the journal of treatments
//! that are under way on a server. Durable (redb), of a fixed size for each account, first in, first out.

use super::{folder::Uid, name::FolderName};
use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};
use serde::{Deserialize, Serialize};
use std::{num::NonZeroU32, path::Path};
use thiserror::Error;

/// Account, folder, validity, identifier.
type Key = (&'static str, &'static str, u32, u32);

const ENTRIES: TableDefinition<'_, Key, &[u8]> = TableDefinition::new("entries");
/// Account and number of arrival to an entry's key: the oldest leaves first.
const ORDER: TableDefinition<'_, (&str, u64), (&str, u32, u32)> = TableDefinition::new("order");
/// Account to: next number of arrival, entries.
const COUNTS: TableDefinition<'_, &str, (u64, u64)> = TableDefinition::new("counts");
const FOLDERS: TableDefinition<'_, (&str, &str), &[u8]> = TableDefinition::new("folders");
const JOURNAL: TableDefinition<'_, (&str, u64), &[u8]> = TableDefinition::new("journal");

/// Bytes of the database that are held in memory at most.
const CACHE: usize = 16 << 20;

/// The buffer cannot be read or written.
#[derive(Debug, Error)]
#[error("the buffer of scanned messages: {0}")]
pub struct BufferError(String);

macro_rules! from_redb {
    ($($error:ty),+) => {
        $(impl From<$error> for BufferError {
            fn from(error: $error) -> Self {
                Self(error.to_string())
            }
        })+
    };
}
from_redb!(
    redb::DatabaseError,
    redb::TransactionError,
    redb::TableError,
    redb::StorageError,
    redb::CommitError,
    redb::SetDurabilityError,
    postcard::Error
);

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Status {
    /// Nothing was found.
    Clean,
    /// Settled by its structure, not fetched.
    Plain,
    /// Something was found, or could not be read, and was left as it is.
    Left,
    /// It was treated, and what lies there now is the result.
    Treated,
    /// The scanner, or its treatment, failed this many times.
    Failed(u8),
    /// It was told what would be done with it, and nothing was.
    Told,
}

/// A message in the buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// What became of it.
    pub status: Status,
    /// The first bytes of the BLAKE3 of its header and size: by it a message is known again when its folder got new identifiers.
    pub digest: [u8; 16],
    /// The rules that it was scanned with: the first bytes of the BLAKE3 of their version.
    pub rules: u64,
    /// When, in seconds since 1970.
    pub at: u64,
    /// Its number of arrival here.
    arrival: u64,
}

impl Entry {
    /// An entry to be noted.
    #[must_use]
    pub fn new(status: Status, digest: [u8; 16], rules: u64, at: u64) -> Self {
        Self { status, digest, rules, at, arrival: 0 }
    }
}

/// A folder as it was last seen whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FolderState {
    /// The validity of its identifiers.
    pub uid_validity: u32,
    /// The identifier of the next message then.
    pub uid_next: u32,
    /// Its last change then (CONDSTORE).
    pub highest_modseq: Option<u64>,
    /// The rules then, as in [`Entry::rules`].
    pub rules: u64,
    /// Which messages were looked at, and how: what was seen otherwise is seen again.
    pub scope: u8,
}

/// A treatment that replaces a message on the server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replacement {
    /// The folder, as on the wire.
    pub folder: String,
    /// The validity of its identifiers.
    pub uid_validity: u32,
    /// The message that is replaced.
    pub old: u32,
    /// The value of the header field that the new message carries, by which it is found again.
    pub token: String,
    /// The new message, once the server has it and told its identifier.
    pub new: Option<u32>,
}

/// The buffer.
#[derive(Debug)]
pub struct Buffer {
    database: Database,
    /// Messages of each account.
    capacity: u64,
}

impl Buffer {
    /// Opens or makes the buffer.
    ///
    /// # Errors
    /// [`BufferError`]; also when another process has it open.
    pub fn open(path: &Path, capacity: u64) -> Result<Self, BufferError> {
        Self::with(Database::builder().set_cache_size(CACHE).create(path)?, capacity)
    }

    fn with(database: Database, capacity: u64) -> Result<Self, BufferError> {
        let write = database.begin_write()?;
        write.open_table(ENTRIES)?;
        write.open_table(ORDER)?;
        write.open_table(COUNTS)?;
        write.open_table(FOLDERS)?;
        write.open_table(JOURNAL)?;
        write.commit()?;
        Ok(Self { database, capacity })
    }

    /// A folder's last state.
    ///
    /// # Errors
    /// [`BufferError`]
    pub fn folder(
        &self,
        account: &str,
        folder: &FolderName,
    ) -> Result<Option<FolderState>, BufferError> {
        let table = self.database.begin_read()?.open_table(FOLDERS)?;
        let value = table.get((account, folder.as_wire_str()))?;
        value.map(|value| Ok(postcard::from_bytes(value.value())?)).transpose()
    }

    /// Every message of a folder that the buffer knows, by identifier.
    ///
    /// # Errors
    /// [`BufferError`]
    pub fn known(
        &self,
        account: &str,
        folder: &FolderName,
        validity: NonZeroU32,
    ) -> Result<Vec<(Uid, Entry)>, BufferError> {
        let table = self.database.begin_read()?.open_table(ENTRIES)?;
        let key = |uid| (account, folder.as_wire_str(), validity.get(), uid);
        let mut known = Vec::new();
        for item in table.range(key(0)..=key(u32::MAX))? {
            let (key, value) = item?;
            if let Some(uid) = Uid::new(key.value().3) {
                known.push((uid, postcard::from_bytes(value.value())?));
            }
        }
        Ok(known)
    }

    /// Notes messages and the folder's state in one step; the oldest of the account leave when there are too many.
    ///
    /// # Errors
    /// [`BufferError`]; then nothing has changed.
    pub fn note(
        &self,
        account: &str,
        folder: &FolderName,
        validity: NonZeroU32,
        entries: &[(Uid, Entry)],
        state: Option<FolderState>,
    ) -> Result<(), BufferError> {
        let mut write = self.database.begin_write()?;
        // What is lost when the process is killed in the middle of a look is scanned again. The end of the look, and the
        // journal, wait for the disk.
        if state.is_none() {
            write.set_durability(Durability::None)?;
        }
        {
            let mut table = write.open_table(ENTRIES)?;
            let mut order = write.open_table(ORDER)?;
            let mut counts = write.open_table(COUNTS)?;
            let (mut next, mut count) = counts.get(account)?.map_or((0, 0), |value| value.value());
            for (uid, entry) in entries {
                let key = (account, folder.as_wire_str(), validity.get(), uid.get());
                let entry = Entry { arrival: next, ..*entry };
                let former = table.insert(key, postcard::to_stdvec(&entry)?.as_slice())?;
                match former
                    .map(|value| postcard::from_bytes::<Entry>(value.value()))
                    .transpose()?
                {
                    Some(former) => drop(order.remove((account, former.arrival))?),
                    None => count += 1,
                }
                order.insert((account, next), (folder.as_wire_str(), validity.get(), uid.get()))?;
                next += 1;
            }
            while count > self.capacity {
                let oldest =
                    order.range((account, 0)..=(account, u64::MAX))?.next().transpose()?.map(
                        |(key, value)| {
                            let (folder, validity, uid) = value.value();
                            (key.value().1, folder.to_owned(), validity, uid)
                        },
                    );
                let Some((arrival, folder, validity, uid)) = oldest else { break };
                order.remove((account, arrival))?;
                table.remove((account, folder.as_str(), validity, uid))?;
                count -= 1;
            }
            counts.insert(account, (next, count))?;
            if let Some(state) = state {
                let mut folders = write.open_table(FOLDERS)?;
                let value = postcard::to_stdvec(&state)?;
                folders.insert((account, folder.as_wire_str()), value.as_slice())?;
            }
        }
        write.commit()?;
        Ok(())
    }

    /// Forgets messages of a folder.
    ///
    /// # Errors
    /// [`BufferError`]; then nothing has changed.
    pub fn forget(
        &self,
        account: &str,
        folder: &FolderName,
        validity: NonZeroU32,
        uids: &[Uid],
    ) -> Result<(), BufferError> {
        if uids.is_empty() {
            return Ok(());
        }
        let mut write = self.database.begin_write()?;
        write.set_durability(Durability::None)?;
        {
            let mut table = write.open_table(ENTRIES)?;
            let mut order = write.open_table(ORDER)?;
            let mut counts = write.open_table(COUNTS)?;
            let (next, mut count) = counts.get(account)?.map_or((0, 0), |value| value.value());
            for uid in uids {
                let key = (account, folder.as_wire_str(), validity.get(), uid.get());
                let former = table.remove(key)?;
                if let Some(former) = former {
                    let entry: Entry = postcard::from_bytes(former.value())?;
                    order.remove((account, entry.arrival))?;
                    count -= 1;
                }
            }
            counts.insert(account, (next, count))?;
        }
        write.commit()?;
        Ok(())
    }

    /// Whether the oldest messages of an account have to leave.
    ///
    /// # Errors
    /// [`BufferError`]
    pub fn is_full(&self, account: &str) -> Result<bool, BufferError> {
        Ok(self.len(account)? >= self.capacity)
    }

    /// How many messages of an account the buffer knows.
    ///
    /// # Errors
    /// [`BufferError`]
    pub fn len(&self, account: &str) -> Result<u64, BufferError> {
        let table = self.database.begin_read()?.open_table(COUNTS)?;
        Ok(table.get(account)?.map_or(0, |value| value.value().1))
    }

    /// Writes down a replacement before it begins, and again when it has got further. On disk when this returns.
    ///
    /// # Errors
    /// [`BufferError`]: then the replacement must not begin, or go on.
    pub fn journal(
        &self,
        account: &str,
        number: u64,
        replacement: &Replacement,
    ) -> Result<(), BufferError> {
        let mut write = self.database.begin_write()?;
        write.set_durability(Durability::Immediate)?;
        let value = postcard::to_stdvec(replacement)?;
        write.open_table(JOURNAL)?.insert((account, number), value.as_slice())?;
        write.commit()?;
        Ok(())
    }

    /// Strikes a replacement that is complete, or that was given up before the server had the new message.
    ///
    /// # Errors
    /// [`BufferError`]: it is looked at again after a restart, which finds it complete.
    pub fn strike(&self, account: &str, number: u64) -> Result<(), BufferError> {
        let write = self.database.begin_write()?;
        write.open_table(JOURNAL)?.remove((account, number))?;
        write.commit()?;
        Ok(())
    }

    /// The replacements of an account that were begun and not struck.
    ///
    /// # Errors
    /// [`BufferError`]
    pub fn pending(&self, account: &str) -> Result<Vec<(u64, Replacement)>, BufferError> {
        let table = self.database.begin_read()?.open_table(JOURNAL)?;
        let mut pending = Vec::new();
        for item in table.range((account, 0)..=(account, u64::MAX))? {
            let (key, value) = item?;
            pending.push((key.value().1, postcard::from_bytes(value.value())?));
        }
        Ok(pending)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use redb::backends::InMemoryBackend;

    fn buffer(capacity: u64) -> Buffer {
        let database = Database::builder().create_with_backend(InMemoryBackend::new()).unwrap();
        Buffer::with(database, capacity).unwrap()
    }

    fn uid(number: u32) -> Uid {
        Uid::new(number).unwrap()
    }

    fn entry(number: u32) -> (Uid, Entry) {
        (uid(number), Entry::new(Status::Clean, [0; 16], 7, u64::from(number)))
    }

    fn known(buffer: &Buffer, account: &str, folder: &FolderName) -> Vec<u32> {
        let known = buffer.known(account, folder, uid(1)).unwrap();
        known.into_iter().map(|(uid, _)| uid.get()).collect()
    }

    #[test]
    fn the_oldest_leave_first_and_each_account_has_its_own_room() {
        let buffer = buffer(3);
        let (inbox, other) = (FolderName::from_unicode("INBOX"), FolderName::from_unicode("b"));
        let note = |account, folder: &FolderName, number| {
            buffer.note(account, folder, uid(1), &[entry(number)], None).unwrap();
        };
        for number in 1..=3 {
            note("ann", &inbox, number);
        }
        note("bob", &inbox, 9);
        // Noted again: the youngest now.
        note("ann", &inbox, 1);
        note("ann", &other, 4);
        assert_eq!(known(&buffer, "ann", &inbox), [1, 3]);
        assert_eq!(known(&buffer, "ann", &other), [4]);
        assert_eq!(known(&buffer, "bob", &inbox), [9]);
        assert_eq!(buffer.len("ann").unwrap(), 3);
        buffer.forget("ann", &inbox, uid(1), &[uid(3), uid(77)]).unwrap();
        assert_eq!(buffer.len("ann").unwrap(), 2);
        note("ann", &inbox, 5);
        assert_eq!(known(&buffer, "ann", &inbox), [1, 5]);
    }

    #[test]
    fn everything_survives_being_closed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("buffer.redb");
        let inbox = FolderName::from_unicode("Entwürfe");
        let state = FolderState {
            uid_validity: 1,
            uid_next: 8,
            highest_modseq: Some(5),
            rules: 7,
            scope: 1,
        };
        let replacement = Replacement {
            folder: "INBOX".to_owned(),
            uid_validity: 1,
            old: 3,
            token: "t".to_owned(),
            new: None,
        };
        {
            let buffer = Buffer::open(&path, 100).unwrap();
            buffer.note("ann", &inbox, uid(1), &[entry(3)], Some(state)).unwrap();
            buffer.journal("ann", 1, &replacement).unwrap();
            assert!(Buffer::open(&path, 100).is_err(), "one process at a time");
        }
        let buffer = Buffer::open(&path, 100).unwrap();
        assert_eq!(buffer.folder("ann", &inbox).unwrap(), Some(state));
        assert_eq!(known(&buffer, "ann", &inbox), [3]);
        assert_eq!(buffer.pending("ann").unwrap(), [(1, replacement)]);
        assert!(buffer.pending("bob").unwrap().is_empty());
        buffer.strike("ann", 1).unwrap();
        assert!(buffer.pending("ann").unwrap().is_empty());
    }
}

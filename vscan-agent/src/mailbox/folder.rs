//! Commands on folders and messages, as a scan uses them: nothing here changes a flag unless its name says so.

use super::{
    connection::{Connection, Error},
    name::FolderName,
};
use bytes::Bytes;
use std::{
    collections::HashMap,
    num::{NonZeroU32, NonZeroU64},
};
use vscan_proto::imap::{Code, Command, Data, Envelope, Fetch, Flag, NumberSet};

/// The unique identifier of a message in its folder (RFC 9051 2.3.1.1).
pub type Uid = NonZeroU32;

/// Ranges of identifiers in one command: its line stays below 8 KiB, the usual limit of servers.
const RANGES: usize = 350;

/// Messages that one search looks at: what it finds then fits a response, also where the server lists each of them.
pub const SEARCH_MAX: u32 = 200_000;

/// Messages in a folder. Nobody has more; a server that says so would keep us searching for ever.
const FOLDER_MAX: u32 = 20_000_000;

/// Folders of an account that are taken note of.
const FOLDERS_MAX: usize = 50_000;

/// Bytes of a header that are fetched: all of it, for every message that a mail server accepts (Postfix takes 100 KiB, and
/// what lies behind 64 KiB nobody shows). A header without end would be a response without end.
const HEADER_MAX: u32 = 64 << 10;

/// A folder as EXAMINE or SELECT opened it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Opened {
    /// Validity of its identifiers; `None` is a server without identifiers, which is not scanned.
    pub uid_validity: Option<NonZeroU32>,
    /// The identifier of the next message.
    pub uid_next: Option<Uid>,
    /// Messages.
    pub exists: u32,
    /// Messages that no session has been told of before.
    pub recent: u32,
    /// The last change (CONDSTORE, RFC 7162).
    pub highest_modseq: Option<NonZeroU64>,
    /// Whether keywords can be set.
    pub takes_keywords: bool,
    /// Whether messages can be changed at all.
    pub writable: bool,
}

/// What is known of a message before it is fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Its identifier.
    pub uid: Uid,
    /// Its flags; `\Recent` is left out, since nobody can set it.
    pub flags: Vec<Flag>,
    /// Whether `\Recent` was among them.
    pub recent: bool,
    /// When it arrived, as the server writes it: `01-Mar-2024 12:34:56 +0530`.
    pub date: Option<String>,
    /// Its length in bytes, as the server says; not all count.
    pub size: u64,
    /// Its last change, where the server counts them (CONDSTORE).
    pub modseq: Option<u64>,
    /// Its header, if it was asked for: the first 64 KiB.
    pub header: Option<Bytes>,
    /// Whether its structure shows text only, if that was asked for and could be read.
    pub plain: Option<bool>,
    /// Who wrote to whom, as the server reads the header, if the header was asked for.
    pub envelope: Envelope,
}

impl Summary {
    /// Whether its reader has read it.
    #[must_use]
    pub fn is_seen(&self) -> bool {
        self.has_flag("\\Seen")
    }

    /// Whether it has this flag or keyword.
    #[must_use]
    pub fn has_flag(&self, name: &str) -> bool {
        self.flags.iter().any(|flag| flag.is(name))
    }
}

/// A folder in a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub name: FolderName,
    /// Whether it holds messages.
    pub selectable: bool,
    /// What stands between the levels of its name.
    pub delimiter: Option<char>,
    /// Its attributes, e.g. `\HasNoChildren`; its use (RFC 6154), e.g. `\Junk`.
    pub attributes: Vec<String>,
}

impl Listed {
    /// Whether it has this attribute, in whatever case.
    #[must_use]
    pub fn is(&self, attribute: &str) -> bool {
        self.attributes.iter().any(|has| has.eq_ignore_ascii_case(attribute))
    }
}

/// What messages are searched for by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SearchKey {
    /// All of them.
    All,
    /// Not marked as deleted.
    Undeleted,
    /// Marked as deleted.
    Deleted,
    /// Not read.
    Unseen,
    /// Without this keyword.
    Unkeyword(Flag),
    /// With this header field, and this text in it.
    Header(String, String),
    /// These identifiers.
    Uids(NumberSet),
}

/// What is done to flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// They are added.
    Add,
    /// They are taken away.
    Remove,
}

/// A message that has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Which.
    pub uid: Uid,
    /// Whether it is read.
    pub seen: bool,
    /// Whether it is marked as deleted.
    pub deleted: bool,
}

/// What has changed in a folder.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Messages that are new or have other flags, ascending.
    pub changed: Vec<Change>,
    /// Messages that are gone. `None`: the server does not tell (without QRESYNC).
    pub vanished: Option<NumberSet>,
}

impl Connection {
    fn utf8(&self) -> bool {
        self.is_enabled("UTF8=ACCEPT")
    }

    /// `words` and the folder's name.
    fn on_folder(&self, words: &str, folder: &FolderName) -> Result<Command, Error> {
        Command::new(words)
            .string(&folder.on_wire(self.utf8()), self.utf8())
            .ok_or_else(|| Error::Unspeakable(format!("the folder name {folder}")))
    }

    /// The folders whose names match (`*` and `%`, RFC 9051 6.3.9), with their uses where the server knows them.
    ///
    /// # Errors
    /// As [`Connection::run`]; [`Error::Unreadable`].
    pub async fn list(&mut self, pattern: &str) -> Result<Vec<Listed>, Error> {
        let utf8 = self.utf8();
        let pattern = FolderName::from_unicode(pattern).on_wire(utf8);
        let mut command = Command::new("LIST \"\"")
            .string(&pattern, utf8)
            .ok_or_else(|| Error::Unspeakable(format!("the folder pattern {pattern:?}")))?;
        if self.has("LIST-EXTENDED") && self.has("SPECIAL-USE") {
            command = command.text(" RETURN (SPECIAL-USE)");
        }
        let mut listed = Vec::new();
        self.run("LIST", command, |data| {
            if let Data::List { attributes, delimiter, name } = data
                && listed.len() < FOLDERS_MAX
            {
                let folder = Listed {
                    name: FolderName::from_wire(&name, utf8),
                    selectable: true,
                    delimiter,
                    attributes,
                };
                let selectable = !folder.is("\\Noselect") && !folder.is("\\NonExistent");
                listed.push(Listed { selectable, ..folder });
            }
        })
        .await?;
        self.understood()?;
        Ok(listed)
    }

    /// All folders: one's own, those that others share or delegate, and everybody's. Servers leave the latter out of `*`, or do
    /// not; where they name their namespaces (RFC 2342), those that are not in `*` are listed too.
    ///
    /// # Errors
    /// As [`list`](Self::list).
    pub async fn list_all(&mut self) -> Result<Vec<Listed>, Error> {
        let mut all = self.list("*").await?;
        if self.has("NAMESPACE") || self.has("IMAP4REV2") {
            let mut prefixes = Vec::new();
            self.run("NAMESPACE", Command::new("NAMESPACE"), |data| {
                if let Data::Namespace { personal, others, shared } = data {
                    prefixes = [personal, others, shared].concat();
                }
            })
            .await?;
            for place in prefixes {
                let prefix = FolderName::from_wire(&place.prefix, self.utf8());
                let within =
                    |listed: &Listed| listed.name.as_wire_str().starts_with(prefix.as_wire_str());
                if !place.prefix.is_empty() && !all.iter().any(within) {
                    all.extend(self.list(&format!("{prefix}*")).await?);
                }
            }
        }
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all.dedup_by(|a, b| a.name == b.name);
        Ok(all)
    }

    /// Opens a folder for reading: no flag changes, `\Recent` stays.
    ///
    /// # Errors
    /// As [`Connection::run`].
    pub async fn examine(&mut self, folder: &FolderName) -> Result<Opened, Error> {
        self.open_folder("EXAMINE", folder).await
    }

    /// Opens a folder for a treatment. Its messages are no longer `\Recent` for others.
    ///
    /// # Errors
    /// As [`Connection::run`].
    pub async fn select(&mut self, folder: &FolderName) -> Result<Opened, Error> {
        self.open_folder("SELECT", folder).await
    }

    async fn open_folder(
        &mut self,
        name: &'static str,
        folder: &FolderName,
    ) -> Result<Opened, Error> {
        let mut command = self.on_folder(name, folder)?;
        if self.has("CONDSTORE") || self.has("QRESYNC") {
            command = command.text(" (CONDSTORE)");
        }
        let mut opened = Opened::default();
        let (mut exists, mut recent) = (0, 0);
        let code = self
            .run_with(
                name,
                command,
                |data| match data {
                    Data::Exists(count) => exists = count,
                    Data::Recent(count) => recent = count,
                    _ => {}
                },
                |code| match code {
                    Code::UidValidity(value) => opened.uid_validity = Some(value),
                    Code::UidNext(uid) => opened.uid_next = Some(uid),
                    Code::HighestModSeq(value) => opened.highest_modseq = Some(value),
                    Code::PermanentFlags { any, .. } => opened.takes_keywords = any,
                    _ => {}
                },
            )
            .await?;
        if exists > FOLDER_MAX {
            return Err(Error::Malformed(format!("a folder of {exists} messages")));
        }
        opened.exists = exists;
        opened.recent = recent;
        opened.writable = code == Some(Code::ReadWrite);
        Ok(opened)
    }

    /// The identifiers of the messages of the open folder that match all keys, ascending. `exists`: how many messages it has;
    /// large folders are searched in portions.
    ///
    /// # Errors
    /// As [`Connection::run`]; [`Error::Unreadable`].
    pub async fn search(&mut self, exists: u32, keys: &[SearchKey]) -> Result<Vec<Uid>, Error> {
        let extended = self.has("ESEARCH") || self.has("IMAP4REV2");
        let mut found = Vec::new();
        let mut first = 1_u32;
        loop {
            let last = first.saturating_add(SEARCH_MAX - 1);
            let mut command = Command::new("UID SEARCH");
            if extended {
                command = command.text(" RETURN (ALL)");
            }
            if exists > SEARCH_MAX {
                let last = if last >= exists { "*".to_owned() } else { last.to_string() };
                command = command.text(&format!(" {first}:{last}"));
            }
            for key in keys {
                command = written(command, key)?;
            }
            // More than there are is an absurdity that is not to be held.
            let most = SEARCH_MAX as usize * 2;
            let before = found.len();
            let mut answered = false;
            self.run("UID SEARCH", command, |data| {
                let uids: &mut dyn Iterator<Item = u32> = match &data {
                    Data::Search(uids) => &mut uids.iter().copied(),
                    Data::ExtendedSearch(Some(set)) => &mut set.numbers(),
                    Data::ExtendedSearch(None) => &mut std::iter::empty(),
                    _ => return,
                };
                answered = true;
                let room = most.saturating_sub(found.len() - before);
                found.extend(uids.take(room).filter_map(Uid::new));
            })
            .await?;
            self.understood()?;
            if found.len() - before >= most || !answered {
                return Err(Error::Malformed("the result of a search".to_owned()));
            }
            if exists <= SEARCH_MAX || last >= exists {
                break;
            }
            first = last + 1;
        }
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }

    /// What has changed in the open folder since the change of this number, by CONDSTORE and, where it is on, QRESYNC (RFC 7162).
    ///
    /// # Errors
    /// As [`Connection::run`]; [`Error::Unreadable`].
    pub async fn changes(&mut self, since: u64) -> Result<Changes, Error> {
        let qresync = self.is_enabled("QRESYNC");
        let vanished = if qresync { " VANISHED" } else { "" };
        let command = Command::new("UID FETCH 1:* (UID FLAGS)")
            .text(&format!(" (CHANGEDSINCE {since}{vanished})"));
        let mut changes =
            Changes { changed: Vec::new(), vanished: qresync.then(NumberSet::default) };
        let mut absurd = false;
        self.run("UID FETCH", command, |data| match data {
            Data::Fetch(Fetch { uid: Some(uid), flags: Some(flags), .. }) => {
                let has = |name| flags.iter().any(|flag| flag.is(name));
                let change = Change { uid, seen: has("\\Seen"), deleted: has("\\Deleted") };
                absurd |= changes.changed.len() >= FOLDER_MAX as usize;
                if !absurd {
                    changes.changed.push(change);
                }
            }
            Data::Vanished { uids, .. } => {
                if let Some(vanished) = &mut changes.vanished {
                    absurd |= !vanished.extend(&uids);
                }
            }
            _ => {}
        })
        .await?;
        self.understood()?;
        if absurd {
            return Err(Error::Malformed("more changes than there are messages".to_owned()));
        }
        // The last word on a message counts.
        changes.changed.reverse();
        changes.changed.sort_by_key(|change| change.uid);
        changes.changed.dedup_by_key(|change| change.uid);
        Ok(changes)
    }

    /// Flags, date and size of messages, and their headers or structure if wanted. Messages that have vanished are left out.
    ///
    /// # Errors
    /// As [`Connection::run`].
    pub async fn summaries(
        &mut self,
        uids: &[Uid],
        header: bool,
        structure: bool,
    ) -> Result<Vec<Summary>, Error> {
        let mut items = "UID FLAGS INTERNALDATE RFC822.SIZE".to_owned();
        if self.has("CONDSTORE") || self.has("QRESYNC") {
            items.push_str(" MODSEQ");
        }
        if header {
            items.push_str(&format!(" ENVELOPE BODY.PEEK[HEADER]<0.{HEADER_MAX}>"));
        }
        let mut plain = items.clone();
        if structure {
            items.push_str(" BODYSTRUCTURE");
        }
        let mut found = self.ask(uids, &items).await?;
        if self.unreadable.is_some() {
            // What a message made its server say (a structure without end) is not asked for again. Others have vanished.
            let left: Vec<Uid> =
                uids.iter().copied().filter(|uid| !found.contains_key(uid)).collect();
            plain = plain.replace(" ENVELOPE", "");
            found.extend(self.ask(&left, &plain).await?);
        }
        // In the order in which they were asked for.
        Ok(uids.iter().filter_map(|uid| found.remove(uid)).collect())
    }

    async fn ask(&mut self, uids: &[Uid], items: &str) -> Result<HashMap<Uid, Summary>, Error> {
        let mut found = HashMap::new();
        let mut unreadable = None;
        self.fetch(
            uids,
            items,
            |uid, fetch| {
                // What comes without being asked for (flags that another client changed) has no size.
                if let (Some(size), Some(flags)) = (fetch.size, fetch.flags) {
                    let Fetch { recent, date, modseq, header, plain, envelope, .. } = fetch;
                    let envelope = envelope.unwrap_or_default();
                    let summary =
                        Summary { uid, flags, recent, date, size, modseq, header, plain, envelope };
                    found.entry(uid).or_insert(summary);
                }
            },
            &mut unreadable,
        )
        .await?;
        self.unreadable = unreadable;
        Ok(found)
    }

    /// A piece of a message, from `offset` on; shorter at its end, `None` when the message has vanished.
    ///
    /// # Errors
    /// As [`Connection::run`]; [`Error::Unreadable`]: the server sent more than was asked for.
    pub async fn piece(
        &mut self,
        uid: Uid,
        offset: u32,
        length: NonZeroU32,
    ) -> Result<Option<Bytes>, Error> {
        let mut pieces = self.pieces(&[uid], offset, length).await?;
        Ok(pieces.remove(&uid))
    }

    /// A piece of each of these messages, of the same place and length. Those that have vanished are left out.
    ///
    /// # Errors
    /// As [`piece`](Self::piece).
    pub async fn pieces(
        &mut self,
        uids: &[Uid],
        offset: u32,
        length: NonZeroU32,
    ) -> Result<HashMap<Uid, Bytes>, Error> {
        let mut pieces = HashMap::new();
        let mut unreadable = None;
        let items = format!("UID BODY.PEEK[]<{offset}.{length}>");
        self.fetch(
            uids,
            &items,
            |uid, fetch| {
                if let Some((origin, bytes)) = fetch.body
                    && (origin == offset || bytes.is_empty())
                {
                    pieces.entry(uid).or_insert(bytes);
                }
            },
            &mut unreadable,
        )
        .await?;
        if pieces.values().any(|bytes| bytes.len() > length.get() as usize) {
            return Err(Error::Unreadable("more of a message than was asked for".to_owned()));
        }
        match unreadable {
            Some(what) if pieces.len() < uids.len() => Err(Error::Unreadable(what)),
            _ => Ok(pieces),
        }
    }

    /// Fetches `items` of these messages; `on` gets what comes of them, and of no other ones.
    async fn fetch(
        &mut self,
        uids: &[Uid],
        items: &str,
        mut on: impl FnMut(Uid, Fetch),
        unreadable: &mut Option<String>,
    ) -> Result<(), Error> {
        let mut numbers: Vec<u32> = uids.iter().map(|uid| uid.get()).collect();
        numbers.sort_unstable();
        for set in NumberSet::of(&numbers).split(RANGES) {
            let command = Command::new("UID FETCH").text(&format!(" {set} ({items})"));
            self.run("UID FETCH", command, |data| {
                if let Data::Fetch(fetch) = data
                    && let Some(uid) = fetch.uid
                    && numbers.binary_search(&uid.get()).is_ok()
                {
                    on(uid, fetch);
                }
            })
            .await?;
            if let Some(what) = self.unreadable.take() {
                *unreadable = Some(what);
            }
        }
        Ok(())
    }

    /// Adds a message to a folder; its identifier, where the server tells it (UIDPLUS, RFC 4315).
    ///
    /// # Errors
    /// As [`Connection::run`]; a full mailbox is [`Error::No`] with `over_quota`.
    pub async fn append(
        &mut self,
        folder: &FolderName,
        flags: &[Flag],
        date: Option<&str>,
        message: Bytes,
    ) -> Result<Option<Uid>, Error> {
        let mut command = self.on_folder("APPEND", folder)?;
        if !flags.is_empty() {
            let names: Vec<&str> = flags.iter().map(Flag::as_str).collect();
            command = command.text(&format!(" ({})", names.join(" ")));
        }
        if let Some(date) = date {
            command = command
                .string(date, false)
                .ok_or_else(|| Error::Unspeakable("a date".to_owned()))?;
        }
        let command = if self.utf8() && !message.is_ascii() {
            command.utf8_literal(message)
        } else {
            command.literal(message)
        };
        match self.run("APPEND", command, |_| {}).await? {
            Some(Code::AppendUid { uid, .. }) => Ok(Some(uid)),
            _ => Ok(None),
        }
    }

    /// Removes one message of the selected folder for good, and no other one that is marked as deleted.
    ///
    /// # Errors
    /// As [`Connection::run`]; [`Error::Missing`] where the server lacks UIDPLUS and others are marked as deleted, which
    /// EXPUNGE would take with it.
    pub async fn remove(&mut self, uid: Uid) -> Result<(), Error> {
        let expunge = if self.has("UIDPLUS") || self.has("IMAP4REV2") {
            Command::new("UID EXPUNGE").text(&format!(" {uid}"))
        } else {
            let others = self.search(0, &[SearchKey::Deleted]).await?;
            if others.iter().any(|other| *other != uid) {
                return Err(Error::Missing(
                    "UIDPLUS, and the folder has other messages that are marked as deleted",
                ));
            }
            Command::new("EXPUNGE")
        };
        self.store(uid, Store::Add, &[Flag::deleted()]).await?;
        self.run("UID EXPUNGE", expunge, |_| {}).await?;
        Ok(())
    }

    /// Adds or removes flags of one message of the selected folder.
    ///
    /// # Errors
    /// As [`Connection::run`].
    pub async fn store(&mut self, uid: Uid, what: Store, flags: &[Flag]) -> Result<(), Error> {
        let sign = match what {
            Store::Add => '+',
            Store::Remove => '-',
        };
        let names: Vec<&str> = flags.iter().map(Flag::as_str).collect();
        let names = names.join(" ");
        let command =
            Command::new("UID STORE").text(&format!(" {uid} {sign}FLAGS.SILENT ({names})"));
        self.run("UID STORE", command, |_| {}).await?;
        Ok(())
    }

    /// Moves one message of the selected folder to another one, which is made if it does not exist.
    ///
    /// # Errors
    /// As [`Connection::run`] and [`Connection::remove`].
    pub async fn move_to(&mut self, uid: Uid, folder: &FolderName) -> Result<(), Error> {
        match self.try_move(uid, folder).await {
            Err(Error::No { over_quota: false, .. }) => {
                let command = self.on_folder("CREATE", folder)?;
                // It may exist, and the move have failed for another reason: then the second try says so.
                match self.run("CREATE", command, |_| {}).await {
                    Ok(_) | Err(Error::No { .. }) => {}
                    Err(error) => return Err(error),
                }
                self.try_move(uid, folder).await
            }
            result => result,
        }
    }

    async fn try_move(&mut self, uid: Uid, folder: &FolderName) -> Result<(), Error> {
        if self.has("MOVE") || self.has("IMAP4REV2") {
            let command = self.on_folder(&format!("UID MOVE {uid}"), folder)?;
            self.run("UID MOVE", command, |_| {}).await?;
            return Ok(());
        }
        let command = self.on_folder(&format!("UID COPY {uid}"), folder)?;
        self.run("UID COPY", command, |_| {}).await?;
        self.remove(uid).await
    }
}

fn written(command: Command, key: &SearchKey) -> Result<Command, Error> {
    Ok(match key {
        SearchKey::All => command.text(" ALL"),
        SearchKey::Undeleted => command.text(" UNDELETED"),
        SearchKey::Deleted => command.text(" DELETED"),
        SearchKey::Unseen => command.text(" UNSEEN"),
        SearchKey::Unkeyword(flag) => command.text(&format!(" UNKEYWORD {}", flag.as_str())),
        SearchKey::Uids(set) => command.text(&format!(" UID {set}")),
        SearchKey::Header(field, value) => {
            // Other than ASCII needs a CHARSET, which servers may refuse.
            let unspeakable = || Error::Unspeakable(format!("the search for {value:?}"));
            if !value.is_ascii() {
                return Err(unspeakable());
            }
            command
                .text(" HEADER")
                .string(field, false)
                .and_then(|command| command.string(value, false))
                .ok_or_else(unspeakable)?
        }
    })
}

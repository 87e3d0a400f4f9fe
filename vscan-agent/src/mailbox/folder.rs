//! Commands on folders and messages, as a scan uses them: nothing here changes a flag unless its name says so.

use super::{
    connection::{Connection, Error},
    name::FolderName,
};
use imap_next::imap_types::{
    body::{BodyStructure, SpecificFields},
    command::{CommandBody, SelectParameter},
    core::{AString, IString, Literal, NString, Vec1},
    datetime::DateTime,
    extensions::{binary::LiteralOrLiteral8, uidplus::UidElement},
    fetch::{MacroOrMessageDataItemNames, MessageDataItem, MessageDataItemName, Section},
    flag::{Flag, FlagFetch, FlagNameAttribute, FlagPerm, StoreResponse, StoreType},
    mailbox::ListMailbox,
    response::{Capability, Code, Data},
    search::SearchKey,
    sequence::SequenceSet,
};
use std::num::{NonZeroU32, NonZeroU64};

/// The unique identifier of a message in its folder (RFC 9051 2.3.1.1).
pub type Uid = NonZeroU32;

/// Messages whose particulars are asked for at a time: a command line stays below 8 KiB, the usual limit of servers.
pub const BATCH: usize = 500;

/// A folder as EXAMINE or SELECT opened it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Opened {
    /// Validity of its identifiers; `None` is a server without identifiers, which is not scanned.
    pub uid_validity: Option<NonZeroU32>,
    /// The identifier of the next message.
    pub uid_next: Option<Uid>,
    /// Messages.
    pub exists: u32,
    /// The last change (CONDSTORE, RFC 7162).
    pub highest_modseq: Option<NonZeroU64>,
    /// Whether keywords can be set.
    pub takes_keywords: bool,
    /// Whether messages can be changed at all.
    pub writable: bool,
}

/// What is known of a message before it is fetched.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// Its identifier.
    pub uid: Uid,
    /// Its flags; `\Recent` is left out, since nobody can set it.
    pub flags: Vec<Flag<'static>>,
    /// When it arrived.
    pub date: Option<DateTime>,
    /// Its length in bytes.
    pub size: u32,
    /// Its header, if it was asked for.
    pub header: Option<Vec<u8>>,
    /// Whether its structure shows text only, if that was asked for.
    pub plain: Option<bool>,
}

impl Summary {
    /// Whether its reader has read it.
    #[must_use]
    pub fn is_seen(&self) -> bool {
        self.flags.contains(&Flag::Seen)
    }
}

/// A folder in a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub name: FolderName,
    /// Whether it holds messages.
    pub selectable: bool,
}

impl Connection {
    /// The folders whose names match (`*` and `%`, RFC 9051 6.3.9).
    ///
    /// # Errors
    /// As [`Connection::run`].
    pub async fn list(&mut self, pattern: &str) -> Result<Vec<Listed>, Error> {
        let wildcard = ListMailbox::try_from(pattern.to_owned())
            .map_err(|_| Error::Unspeakable(format!("the folder pattern {pattern:?}")))?;
        let reference = FolderName::from_unicode("").to_wire();
        let reference = reference.ok_or_else(|| Error::Unspeakable("no folder".to_owned()))?;
        let body = CommandBody::List { reference, mailbox_wildcard: wildcard };
        let mut listed = Vec::new();
        self.run("LIST", body, |data| {
            if let Data::List { items, mailbox, .. } = data
                && let Some(name) = FolderName::from_wire(&mailbox)
            {
                let selectable = !items.iter().any(|item| match item {
                    FlagNameAttribute::Noselect => true,
                    other => other.to_string().eq_ignore_ascii_case("\\NonExistent"),
                });
                listed.push(Listed { name, selectable });
            }
        })
        .await?;
        Ok(listed)
    }

    /// Opens a folder for reading: no flag changes, `\Recent` stays.
    ///
    /// # Errors
    /// As [`Connection::run`].
    pub async fn examine(&mut self, folder: &FolderName) -> Result<Opened, Error> {
        let (mailbox, parameters) = self.opening(folder)?;
        self.open_folder("EXAMINE", CommandBody::Examine { mailbox, parameters }).await
    }

    /// Opens a folder for a treatment. Its messages are no longer `\Recent` for others.
    ///
    /// # Errors
    /// As [`Connection::run`].
    pub async fn select(&mut self, folder: &FolderName) -> Result<Opened, Error> {
        let (mailbox, parameters) = self.opening(folder)?;
        self.open_folder("SELECT", CommandBody::Select { mailbox, parameters }).await
    }

    fn opening(
        &self,
        folder: &FolderName,
    ) -> Result<(imap_next::imap_types::mailbox::Mailbox<'static>, Vec<SelectParameter>), Error>
    {
        let parameters = if self.has(&Capability::CondStore) || self.has(&Capability::QResync) {
            vec![SelectParameter::CondStore]
        } else {
            Vec::new()
        };
        Ok((speak(folder)?, parameters))
    }

    async fn open_folder(
        &mut self,
        name: &'static str,
        body: CommandBody<'static>,
    ) -> Result<Opened, Error> {
        let mut opened = Opened::default();
        let mut exists = 0;
        let code = self
            .run_with(
                name,
                body,
                |data| {
                    if let Data::Exists(count) = data {
                        exists = count;
                    }
                },
                |code| match code {
                    Code::UidValidity(value) => opened.uid_validity = Some(value),
                    Code::UidNext(uid) => opened.uid_next = Some(uid),
                    Code::HighestModSeq(value) => opened.highest_modseq = Some(value),
                    Code::PermanentFlags(flags) => {
                        opened.takes_keywords = flags.contains(&FlagPerm::Asterisk);
                    }
                    _ => {}
                },
            )
            .await?;
        opened.exists = exists;
        opened.writable = matches!(code, Some(Code::ReadWrite));
        Ok(opened)
    }

    /// The identifiers of the messages that match, ascending.
    ///
    /// # Errors
    /// As [`Connection::run`].
    pub async fn search(&mut self, keys: Vec1<SearchKey<'static>>) -> Result<Vec<Uid>, Error> {
        let mut found = Vec::new();
        let body = CommandBody::Search { charset: None, criteria: keys, uid: true };
        self.run("UID SEARCH", body, |data| {
            if let Data::Search(uids, _) = data {
                found.extend(uids);
            }
        })
        .await?;
        found.sort_unstable();
        found.dedup();
        Ok(found)
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
        let mut names = vec![
            MessageDataItemName::Uid,
            MessageDataItemName::Flags,
            MessageDataItemName::InternalDate,
            MessageDataItemName::Rfc822Size,
        ];
        if header {
            let section = Some(Section::Header(None));
            names.push(MessageDataItemName::BodyExt { section, partial: None, peek: true });
        }
        if structure {
            names.push(MessageDataItemName::BodyStructure);
        }
        let mut summaries = Vec::new();
        for batch in uids.chunks(BATCH) {
            self.fetch(batch, names.clone(), |items| summaries.extend(summary(items))).await?;
        }
        Ok(summaries)
    }

    /// A piece of a message, from `offset` on; shorter at its end, `None` when the message has vanished.
    ///
    /// # Errors
    /// As [`Connection::run`].
    pub async fn piece(
        &mut self,
        uid: Uid,
        offset: u32,
        length: NonZeroU32,
    ) -> Result<Option<Vec<u8>>, Error> {
        let names = vec![
            MessageDataItemName::Uid,
            MessageDataItemName::BodyExt {
                section: None,
                partial: Some((offset, length)),
                peek: true,
            },
        ];
        let mut piece = None;
        self.fetch(&[uid], names, |items| {
            let mine =
                items.iter().any(|item| matches!(item, MessageDataItem::Uid(u) if *u == uid));
            for item in items {
                if let MessageDataItem::BodyExt { section: None, origin, data } = item
                    && mine
                    && origin.unwrap_or(0) == offset
                {
                    piece = Some(bytes(data));
                }
            }
        })
        .await?;
        Ok(piece)
    }

    async fn fetch(
        &mut self,
        uids: &[Uid],
        names: Vec<MessageDataItemName<'static>>,
        mut on: impl FnMut(Vec<MessageDataItem<'static>>),
    ) -> Result<(), Error> {
        let Ok(sequence_set) = SequenceSet::try_from(uids) else { return Ok(()) };
        let body = CommandBody::Fetch {
            sequence_set,
            macro_or_item_names: MacroOrMessageDataItemNames::MessageDataItemNames(names),
            uid: true,
            modifiers: Vec::new(),
        };
        self.run("UID FETCH", body, |data| {
            if let Data::Fetch { items, .. } = data {
                on(items.into_inner());
            }
        })
        .await?;
        Ok(())
    }

    /// Adds a message to a folder; its identifier, where the server tells it (UIDPLUS, RFC 4315).
    ///
    /// # Errors
    /// As [`Connection::run`]; a full mailbox is [`Error::No`] with `over_quota`.
    pub async fn append(
        &mut self,
        folder: &FolderName,
        flags: Vec<Flag<'static>>,
        date: Option<DateTime>,
        message: Vec<u8>,
    ) -> Result<Option<Uid>, Error> {
        let literal = Literal::try_from(message)
            .map_err(|_| Error::Unspeakable("a message with NUL bytes".to_owned()))?;
        let message = LiteralOrLiteral8::Literal(literal);
        let body = CommandBody::Append { mailbox: speak(folder)?, flags, date, message };
        match self.run("APPEND", body, |_| {}).await? {
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
        let one = SequenceSet::from(uid);
        let expunge = if self.has(&Capability::UidPlus) {
            CommandBody::ExpungeUid { sequence_set: one }
        } else {
            let others = self.search(Vec1::from(SearchKey::Deleted)).await?;
            if others.iter().any(|other| *other != uid) {
                return Err(Error::Missing(
                    "UIDPLUS, and the folder has other messages that are marked as deleted",
                ));
            }
            CommandBody::Expunge
        };
        self.store(uid, StoreType::Add, vec![Flag::Deleted]).await?;
        self.run("UID EXPUNGE", expunge, |_| {}).await?;
        Ok(())
    }

    /// Adds or removes flags of one message of the selected folder.
    ///
    /// # Errors
    /// As [`Connection::run`].
    pub async fn store(
        &mut self,
        uid: Uid,
        kind: StoreType,
        flags: Vec<Flag<'static>>,
    ) -> Result<(), Error> {
        let body = CommandBody::Store {
            sequence_set: SequenceSet::from(uid),
            kind,
            response: StoreResponse::Silent,
            flags,
            uid: true,
            modifiers: Vec::new(),
        };
        self.run("UID STORE", body, |_| {}).await?;
        Ok(())
    }

    /// Moves one message of the selected folder to another one, which is made if it does not exist.
    ///
    /// # Errors
    /// As [`Connection::run`] and [`Connection::remove`].
    pub async fn move_to(&mut self, uid: Uid, folder: &FolderName) -> Result<(), Error> {
        match self.try_move(uid, folder).await {
            Err(Error::No { over_quota: false, .. }) => {
                let body = CommandBody::Create { mailbox: speak(folder)? };
                // It may exist, and the move have failed for another reason: then the second try says so.
                match self.run("CREATE", body, |_| {}).await {
                    Ok(_) | Err(Error::No { .. }) => {}
                    Err(error) => return Err(error),
                }
                self.try_move(uid, folder).await
            }
            result => result,
        }
    }

    async fn try_move(&mut self, uid: Uid, folder: &FolderName) -> Result<(), Error> {
        let (sequence_set, mailbox) = (SequenceSet::from(uid), speak(folder)?);
        if self.has(&Capability::Move) {
            let body = CommandBody::Move { sequence_set, mailbox, uid: true };
            self.run("UID MOVE", body, |_| {}).await?;
            return Ok(());
        }
        self.run("UID COPY", CommandBody::Copy { sequence_set, mailbox, uid: true }, |_| {})
            .await?;
        self.remove(uid).await
    }
}

fn speak(folder: &FolderName) -> Result<imap_next::imap_types::mailbox::Mailbox<'static>, Error> {
    folder.to_wire().ok_or_else(|| Error::Unspeakable(format!("the folder name {folder:?}")))
}

/// A key that finds messages with this header field.
///
/// # Errors
/// [`Error::Unspeakable`].
pub fn with_header(field: &str, value: &str) -> Result<SearchKey<'static>, Error> {
    let string = |text: &str| {
        AString::try_from(text.to_owned())
            .map_err(|_| Error::Unspeakable(format!("the search for {text:?}")))
    };
    Ok(SearchKey::Header(string(field)?, string(value)?))
}

fn summary(items: Vec<MessageDataItem<'static>>) -> Option<Summary> {
    let (mut uid, mut flags, mut date, mut size) = (None, Vec::new(), None, None);
    let (mut header, mut plain) = (None, None);
    for item in items {
        match item {
            MessageDataItem::Uid(value) => uid = Some(value),
            MessageDataItem::Flags(list) => {
                flags = list
                    .into_iter()
                    .filter_map(|flag| match flag {
                        FlagFetch::Flag(flag) => Some(flag),
                        FlagFetch::Recent => None,
                    })
                    .collect();
            }
            MessageDataItem::InternalDate(value) => date = Some(value),
            MessageDataItem::Rfc822Size(value) => size = Some(value),
            MessageDataItem::BodyExt { section: Some(Section::Header(None)), data, .. } => {
                header = Some(bytes(data));
            }
            MessageDataItem::BodyStructure(structure) => plain = Some(is_plain(&structure)),
            _ => {}
        }
    }
    // What comes without being asked for (flags that another client changed) has no size.
    Some(Summary { uid: uid?, flags, date, size: size?, header, plain })
}

fn bytes(data: NString<'static>) -> Vec<u8> {
    match data.0 {
        Some(IString::Literal(literal)) => literal.into_inner().into_owned(),
        Some(IString::Quoted(quoted)) => quoted.into_inner().into_owned().into_bytes(),
        None => Vec::new(),
    }
}

/// Whether a message is nothing but text that is shown, in one portion or as alternatives: no attachment, no HTML.
fn is_plain(structure: &BodyStructure<'_>) -> bool {
    match structure {
        BodyStructure::Multi { .. } => false,
        BodyStructure::Single { body, extension_data } => {
            let text = matches!(
                &body.specific,
                SpecificFields::Text { subtype, .. } if subtype.as_ref().eq_ignore_ascii_case(b"plain")
            );
            let disposed = extension_data
                .as_ref()
                .and_then(|data| data.tail.as_ref())
                .is_some_and(|tail| tail.disposition.is_some());
            text && !disposed
                && body
                    .basic
                    .parameter_list
                    .iter()
                    .all(|(name, _)| !name.as_ref().eq_ignore_ascii_case(b"name"))
        }
    }
}

/// Which identifiers a set names.
#[must_use]
pub fn covers(set: &[UidElement], uid: Uid) -> bool {
    set.iter().any(|element| match element {
        UidElement::Single(single) => *single == uid,
        UidElement::Range(a, b) => (*a.min(b)..=*a.max(b)).contains(&uid),
    })
}

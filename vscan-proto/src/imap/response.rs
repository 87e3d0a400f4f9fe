//! What responses say (RFC 9051 section 7), as far as a scan of mailboxes has a use for it.

use super::reader::Raw;
use super::set::NumberSet;
use super::structure;
use super::value::{Value, number, values};
use bytes::Bytes;
use std::num::{NonZeroU32, NonZeroU64};

/// Bytes of a response that could not be understood that are shown.
const SHOWN_MAX: usize = 200;

/// A response.
#[derive(Clone, Debug, PartialEq)]
pub enum Response {
    /// `+`: the server waits for more of a command; what it says.
    Continue(Bytes),
    /// A command has ended.
    Tagged {
        /// Which.
        tag: Bytes,
        /// How.
        status: Status,
    },
    /// `* OK`, `* NO`, `* BAD`, `* BYE`, `* PREAUTH`.
    Status(Status),
    /// Data, asked for or not.
    Data(Data),
    /// Known by its beginning, and not understood: what it is, in words fit to be logged.
    Unreadable(String),
}

/// How a command or the connection fares.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    /// Which word it was.
    pub kind: Kind,
    /// What stands in brackets.
    pub code: Option<Code>,
    /// The words behind; not valid UTF-8 is replaced.
    pub text: String,
}

/// The word of a status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It went well.
    Ok,
    /// It did not.
    No,
    /// It was not understood.
    Bad,
    /// The server hangs up.
    Bye,
    /// The connection is somebody's without a login.
    PreAuth,
}

/// What stands in brackets in a status (RFC 9051 7.1, RFC 5530, RFC 7162, RFC 4315, RFC 5465).
#[derive(Clone, Debug, PartialEq)]
pub enum Code {
    /// Validity of the folder's identifiers.
    UidValidity(NonZeroU32),
    /// The next message's identifier.
    UidNext(NonZeroU32),
    /// The last change.
    HighestModSeq(NonZeroU64),
    /// Flags that can be set for good; `\*`: new keywords too.
    PermanentFlags {
        /// New keywords too.
        any: bool,
        /// These.
        flags: Vec<Flag>,
    },
    /// The folder is open for reading only.
    ReadOnly,
    /// The folder is open for changes.
    ReadWrite,
    /// Where an added message lies.
    AppendUid {
        /// Validity of its identifier.
        validity: NonZeroU32,
        /// Its identifier.
        uid: NonZeroU32,
    },
    /// Where copied or moved messages lie.
    CopyUid {
        /// Validity of their identifiers.
        validity: NonZeroU32,
        /// Their identifiers.
        to: NumberSet,
    },
    /// The mailbox is full.
    OverQuota,
    /// The folder does not exist and could be made.
    TryCreate,
    /// The folder exists already.
    AlreadyExists,
    /// What the server can do.
    Capability(Vec<String>),
    /// No more changes are told of.
    NotificationOverflow,
    /// Another one, by its word in capitals.
    Other(String),
}

/// A flag or keyword, as the server writes it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Flag(Box<str>);

impl Flag {
    /// A flag (`\Seen`) or keyword of this name; `None`: it is no atom.
    #[must_use]
    pub fn new(name: &str) -> Option<Self> {
        let word = name.strip_prefix('\\').unwrap_or(name);
        let special = |byte: u8| !byte.is_ascii_graphic() || b"(){%*\"\\]".contains(&byte);
        (!word.is_empty() && !word.bytes().any(special)).then(|| Self(name.into()))
    }

    /// `\Seen`: read.
    #[must_use]
    pub fn seen() -> Self {
        Self("\\Seen".into())
    }

    /// `\Deleted`: to be removed by the next EXPUNGE.
    #[must_use]
    pub fn deleted() -> Self {
        Self("\\Deleted".into())
    }

    /// As on the wire.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is this one; case does not matter.
    #[must_use]
    pub fn is(&self, name: &str) -> bool {
        self.0.eq_ignore_ascii_case(name)
    }
}

/// Data.
#[derive(Clone, Debug, PartialEq)]
pub enum Data {
    /// What the server can do, in capitals.
    Capability(Vec<String>),
    /// What ENABLE has turned on, in capitals.
    Enabled(Vec<String>),
    /// Messages in the folder.
    Exists(u32),
    /// New messages that no other session has been told of.
    Recent(u32),
    /// The message of this number is gone.
    Expunge(u32),
    /// The messages of these identifiers are gone (RFC 7162).
    Vanished {
        /// They were gone before this session.
        earlier: bool,
        /// Which.
        uids: NumberSet,
    },
    /// The answer to SEARCH: numbers or identifiers.
    Search(Vec<u32>),
    /// The answer to an extended SEARCH: `None`, nothing was found.
    ExtendedSearch(Option<NumberSet>),
    /// Of one message.
    Fetch(Fetch),
    /// A folder.
    List {
        /// `\Noselect` and others.
        attributes: Vec<String>,
        /// What stands between the levels of its name.
        delimiter: Option<char>,
        /// Its name, as on the wire.
        name: String,
    },
    /// A folder's figures.
    Status {
        /// Its name, as on the wire.
        name: String,
        /// What is told of it.
        figures: Figures,
    },
    /// Where folders are: each a prefix and its delimiter (RFC 2342).
    Namespace {
        /// One's own.
        personal: Vec<Namespace>,
        /// Other users'.
        others: Vec<Namespace>,
        /// Everybody's.
        shared: Vec<Namespace>,
    },
    /// Something that a scan has no use for.
    Other,
}

/// The answer to STATUS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Messages.
    pub messages: Option<u32>,
    /// Messages that nobody has read.
    pub unseen: Option<u32>,
    /// The next message's identifier.
    pub uid_next: Option<u32>,
    /// Validity of the identifiers.
    pub uid_validity: Option<u32>,
    /// The last change.
    pub highest_modseq: Option<u64>,
}

/// A place for folders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// What its folders' names begin with, as on the wire.
    pub prefix: String,
    /// What stands between levels.
    pub delimiter: Option<char>,
}

/// What is told of one message.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Fetch {
    /// Its number in the folder.
    pub number: u32,
    /// Its identifier.
    pub uid: Option<NonZeroU32>,
    /// Its flags, `\Recent` left out.
    pub flags: Option<Vec<Flag>>,
    /// Whether `\Recent` was among them.
    pub recent: bool,
    /// When it arrived, as the server writes it: `01-Mar-2024 12:34:56 +0530`.
    pub date: Option<String>,
    /// Its length in bytes.
    pub size: Option<u64>,
    /// Its last change.
    pub modseq: Option<u64>,
    /// Its header, or the beginning of it.
    pub header: Option<Bytes>,
    /// A piece of it, and where that begins. No bytes: NIL.
    pub body: Option<(u32, Bytes)>,
    /// Whether its structure is plain text only.
    pub plain: Option<bool>,
    /// Who wrote to whom.
    pub envelope: Option<Envelope>,
}

/// Addressees of a message that are taken note of.
pub const ADDRESSEES_MAX: usize = 1000;

/// Who wrote to whom (RFC 9051 section 7.5.2): the server's reading of the header, hostile as that may be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Envelope {
    /// The first author's address; empty: it names none.
    pub from: Vec<u8>,
    /// The addresses in To, Cc and Bcc, [`ADDRESSEES_MAX`] at most.
    pub to: Vec<Vec<u8>>,
    /// The Message-ID with its brackets; empty: it has none.
    pub message_id: Vec<u8>,
}

impl Response {
    /// Understands a response.
    #[must_use]
    pub fn parse(raw: &Raw) -> Self {
        match raw {
            Raw::Whole(bytes) => parse(bytes).unwrap_or_else(|why| unreadable(bytes, &why)),
            Raw::TooLong(head) => unreadable(head, "it is too long"),
        }
    }
}

fn unreadable(bytes: &[u8], why: &str) -> Response {
    let shown = bytes[..bytes.len().min(SHOWN_MAX)].escape_ascii();
    Response::Unreadable(format!("{why}: {shown}"))
}

/// The first word of `bytes`, and what stands behind the space.
fn word(bytes: &Bytes) -> (Bytes, Bytes) {
    let end = memchr::memchr(b' ', bytes).unwrap_or(bytes.len());
    (bytes.slice(..end), bytes.slice((end + 1).min(bytes.len())..))
}

fn parse(bytes: &Bytes) -> Result<Response, String> {
    let (tag, rest) = word(bytes);
    if tag.as_ref() == b"+" {
        return Ok(Response::Continue(rest));
    }
    let (first, behind) = word(&rest);
    if let Some(kind) = kind(&first) {
        let status = status(kind, &behind);
        return Ok(if tag.as_ref() == b"*" {
            Response::Status(status)
        } else {
            Response::Tagged { tag, status }
        });
    }
    if tag.as_ref() != b"*" {
        return Err("it is no response".to_owned());
    }
    data(&first, &behind).map(Response::Data)
}

fn kind(word: &[u8]) -> Option<Kind> {
    [
        (&b"OK"[..], Kind::Ok),
        (b"NO", Kind::No),
        (b"BAD", Kind::Bad),
        (b"BYE", Kind::Bye),
        (b"PREAUTH", Kind::PreAuth),
    ]
    .into_iter()
    .find_map(|(name, kind)| word.eq_ignore_ascii_case(name).then_some(kind))
}

fn status(kind: Kind, rest: &Bytes) -> Status {
    let (code, text) = match rest.first() {
        Some(b'[') => match closing(rest) {
            Some(end) => (code(&rest.slice(1..end)), &rest[end + 1..]),
            None => (None, &rest[..]),
        },
        _ => (None, &rest[..]),
    };
    Status { kind, code, text: String::from_utf8_lossy(text.trim_ascii()).into_owned() }
}

/// Where the bracket that `rest` begins with is closed; inside of quotes it is not.
fn closing(rest: &[u8]) -> Option<usize> {
    let mut quoted = false;
    let mut at = 1;
    loop {
        match rest.get(at)? {
            b'"' => quoted = !quoted,
            b'\\' if quoted => at += 1,
            b']' if !quoted => return Some(at),
            _ => {}
        }
        at += 1;
    }
}

fn code(inner: &Bytes) -> Option<Code> {
    let (name, rest) = word(inner);
    let name = String::from_utf8_lossy(&name).to_ascii_uppercase();
    let arguments = values(&rest).ok()?;
    let first = arguments.first();
    let code = match name.as_str() {
        "UIDVALIDITY" => Code::UidValidity(first?.number()?),
        "UIDNEXT" => Code::UidNext(first?.number()?),
        "HIGHESTMODSEQ" => Code::HighestModSeq(first?.number()?),
        "PERMANENTFLAGS" => {
            let flags = first?.list()?;
            let any = flags.iter().any(|flag| flag.is("\\*"));
            Code::PermanentFlags { any, flags: flags.iter().filter_map(flag).collect() }
        }
        "READ-ONLY" => Code::ReadOnly,
        "READ-WRITE" => Code::ReadWrite,
        "APPENDUID" => {
            Code::AppendUid { validity: first?.number()?, uid: arguments.get(1)?.number()? }
        }
        "COPYUID" => Code::CopyUid {
            validity: first?.number()?,
            to: NumberSet::parse(arguments.get(2)?.bytes()?)?,
        },
        "OVERQUOTA" => Code::OverQuota,
        "TRYCREATE" => Code::TryCreate,
        "ALREADYEXISTS" => Code::AlreadyExists,
        "CAPABILITY" => Code::Capability(words(&arguments)),
        "NOTIFICATIONOVERFLOW" => Code::NotificationOverflow,
        _ => Code::Other(name),
    };
    Some(code)
}

/// Words in capitals; what is no text is left out.
fn words(values: &[Value]) -> Vec<String> {
    values
        .iter()
        .filter_map(Value::bytes)
        .map(|bytes| String::from_utf8_lossy(bytes).to_ascii_uppercase())
        .collect()
}

fn flag(value: &Value) -> Option<Flag> {
    let Value::Atom(bytes) = value else { return None };
    Flag::new(std::str::from_utf8(bytes).ok()?)
}

fn data(first: &Bytes, rest: &Bytes) -> Result<Data, String> {
    if let Some(count) = number::<u32>(first) {
        let (what, rest) = word(rest);
        return Ok(match what.to_ascii_uppercase().as_slice() {
            b"EXISTS" => Data::Exists(count),
            b"RECENT" => Data::Recent(count),
            b"EXPUNGE" => Data::Expunge(count),
            b"FETCH" => Data::Fetch(fetch(count, &rest)?),
            _ => Data::Other,
        });
    }
    let name = first.to_ascii_uppercase();
    if name == b"SEARCH" {
        return search(rest).map(Data::Search);
    }
    let known =
        [&b"CAPABILITY"[..], b"ENABLED", b"VANISHED", b"ESEARCH", b"LIST", b"STATUS", b"NAMESPACE"];
    if !known.contains(&name.as_slice()) {
        return Ok(Data::Other);
    }
    let values = values(rest).map_err(|error| error.to_string())?;
    let what = String::from_utf8_lossy(&name).into_owned();
    let missing = || format!("{what} lacks something");
    match name.as_slice() {
        b"CAPABILITY" => Ok(Data::Capability(words(&values))),
        b"ENABLED" => Ok(Data::Enabled(words(&values))),
        b"VANISHED" => {
            let earlier = values.len() > 1;
            let uids = values.last().and_then(|set| NumberSet::parse(set.bytes()?));
            Ok(Data::Vanished { earlier, uids: uids.ok_or_else(missing)? })
        }
        b"ESEARCH" => {
            let at =
                values.iter().position(|value| matches!(value, Value::Atom(_)) && value.is("ALL"));
            let Some(at) = at else { return Ok(Data::ExtendedSearch(None)) };
            let set = values.get(at + 1).and_then(|set| NumberSet::parse(set.bytes()?));
            Ok(Data::ExtendedSearch(Some(set.ok_or_else(missing)?)))
        }
        b"LIST" => list(&values).ok_or_else(missing),
        b"STATUS" => figures(&values).ok_or_else(missing),
        _ => namespaces(&values).ok_or_else(missing),
    }
}

/// `SEARCH`'s numbers; what stands in parentheses (RFC 7162) is no result.
fn search(rest: &Bytes) -> Result<Vec<u32>, String> {
    let end = memchr::memchr(b'(', rest).unwrap_or(rest.len());
    rest[..end]
        .split(|byte| *byte == b' ')
        .filter(|word| !word.is_empty())
        .map(|word| number(word).ok_or_else(|| "a search's result that is no number".to_owned()))
        .collect()
}

fn text(value: &Value) -> Option<String> {
    value.bytes().map(|bytes| String::from_utf8_lossy(bytes).into_owned())
}

/// NIL is no delimiter; an error is something else.
fn delimiter(value: &Value) -> Option<Option<char>> {
    match value {
        Value::Nil => Some(None),
        other => Some(text(other)?.chars().next()),
    }
}

fn list(values: &[Value]) -> Option<Data> {
    let [attributes, separator, name, ..] = values else { return None };
    let attributes = attributes.list()?.iter().filter_map(text).collect();
    // A folder may be called NIL.
    let name = if *name == Value::Nil { "NIL".to_owned() } else { text(name)? };
    Some(Data::List { attributes, delimiter: delimiter(separator)?, name })
}

fn figures(values: &[Value]) -> Option<Data> {
    let [name, pairs, ..] = values else { return None };
    let mut figures = Figures::default();
    for pair in pairs.list()?.chunks(2) {
        let [name, value] = pair else { return None };
        match name.bytes()?.to_ascii_uppercase().as_slice() {
            b"MESSAGES" => figures.messages = value.number(),
            b"UNSEEN" => figures.unseen = value.number(),
            b"UIDNEXT" => figures.uid_next = value.number(),
            b"UIDVALIDITY" => figures.uid_validity = value.number(),
            b"HIGHESTMODSEQ" => figures.highest_modseq = value.number(),
            _ => {}
        }
    }
    Some(Data::Status { name: text(name)?, figures })
}

fn namespaces(values: &[Value]) -> Option<Data> {
    let places = |value: &Value| -> Option<Vec<Namespace>> {
        match value {
            Value::Nil => Some(Vec::new()),
            Value::List(places) => places
                .iter()
                .map(|place| {
                    let [prefix, separator, ..] = place.list()? else { return None };
                    Some(Namespace { prefix: text(prefix)?, delimiter: delimiter(separator)? })
                })
                .collect(),
            Value::Atom(_) | Value::Text(_) => None,
        }
    };
    let [personal, others, shared, ..] = values else { return None };
    Some(Data::Namespace {
        personal: places(personal)?,
        others: places(others)?,
        shared: places(shared)?,
    })
}

fn fetch(number: u32, rest: &Bytes) -> Result<Fetch, String> {
    let values = values(rest).map_err(|error| error.to_string())?;
    let missing = || "FETCH lacks something".to_owned();
    let items = values.first().and_then(Value::list).ok_or_else(missing)?;
    let mut fetch = Fetch { number, ..Fetch::default() };
    for pair in items.chunks(2) {
        let [name, value] = pair else { return Err(missing()) };
        let Value::Atom(name) = name else { return Err(missing()) };
        item(&mut fetch, &name.to_ascii_uppercase(), value).ok_or_else(missing)?;
    }
    Ok(fetch)
}

fn item(fetch: &mut Fetch, name: &[u8], value: &Value) -> Option<()> {
    match name {
        b"UID" => fetch.uid = Some(value.number()?),
        b"FLAGS" => {
            let flags = value.list()?;
            fetch.recent = flags.iter().any(|flag| flag.is("\\Recent"));
            let others = flags.iter().filter(|flag| !flag.is("\\Recent"));
            fetch.flags = Some(others.filter_map(flag).collect());
        }
        b"INTERNALDATE" => {
            let date = text(value)?;
            // It goes back to the server in quotes.
            let fine = |c: char| c == ' ' || (c.is_ascii_graphic() && !matches!(c, '"' | '\\'));
            fetch.date = date.chars().all(fine).then_some(date);
        }
        b"RFC822.SIZE" => fetch.size = Some(value.number()?),
        b"MODSEQ" => fetch.modseq = Some(value.list()?.first()?.number()?),
        b"ENVELOPE" => fetch.envelope = envelope(value),
        b"BODYSTRUCTURE" => fetch.plain = Some(structure::is_plain(value)),
        _ => {
            let data = || match value {
                Value::Nil => Some(Bytes::new()),
                other => other.bytes().cloned(),
            };
            if let Some(origin) = section(name, b"BODY[HEADER]")
                && origin == 0
            {
                fetch.header = Some(data()?);
            } else if let Some(origin) = section(name, b"BODY[]") {
                fetch.body = Some((origin, data()?));
            }
        }
    }
    Some(())
}

/// `None`: it is no envelope.
fn envelope(value: &Value) -> Option<Envelope> {
    let [_date, _subject, from, _sender, _reply, to, cc, bcc, _answered, message_id, ..] =
        value.list()?
    else {
        return None;
    };
    let addresses = |value: &'_ Value| -> Vec<Vec<u8>> {
        value.list().unwrap_or_default().iter().filter_map(address).collect()
    };
    let mut addressees = [addresses(to), addresses(cc), addresses(bcc)].concat();
    addressees.truncate(ADDRESSEES_MAX);
    Some(Envelope {
        from: addresses(from).into_iter().next().unwrap_or_default(),
        to: addressees,
        message_id: message_id.bytes().map(|id| id.to_vec()).unwrap_or_default(),
    })
}

/// `None` for the name of a group, which has no host.
fn address(value: &Value) -> Option<Vec<u8>> {
    let [_name, _route, local, host, ..] = value.list()? else { return None };
    let (local, host) = (local.bytes()?, host.bytes()?);
    let both = !local.is_empty() && !host.is_empty();
    both.then(|| [local, &b"@"[..], host].concat())
}

/// Where a piece of this section begins: `BODY[]<100>` at 100, `BODY[]` at 0.
fn section(name: &[u8], section: &[u8]) -> Option<u32> {
    match name.strip_prefix(section)? {
        b"" => Some(0),
        origin => number(origin.strip_prefix(b"<")?.strip_suffix(b">")?),
    }
}

#[cfg(test)]
mod tests;

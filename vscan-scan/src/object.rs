//! The walk through an object: every part is given to the engine, then opened by every decoder that fits.
//!
//! The walk keeps the limits. It is the only place that writes to the report, so that nothing can be
//! left out without being noted. Decoders live in `mail`, `archive` and `document`, engines in
//! [`crate::engine`].

mod opened;

use crate::limits::{Limits, RATIO_FLOOR, RATIO_FLOOR_ALL};
use crate::report::{self, Detail, Hashes, Reason, Report, TREE_DETAIL_MAX, TREE_MAX, Verdict};
use crate::sniff::{self, Kind};
use crate::wire::ObjectKind;
use crate::{archive, document, mail, repair};
use opened::Opened;
use std::io::Read;
use std::rc::Rc;
use std::time::Instant;

/// One part as an engine sees it.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    /// Its bytes, decoded.
    pub data: &'a [u8],
    /// Its type.
    pub kind: Kind,
    /// Its name, the last of its path; may be empty.
    pub name: &'a str,
    /// Names from the object down to it.
    pub path: &'a [String],
    /// Whether [`Hit::detail`] is wanted.
    pub detail: bool,
}

/// One detection of an engine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hit {
    /// Its name.
    pub name: String,
    /// The engine, where it is not the one that was asked: several may stand behind it.
    pub engine: Option<&'static str>,
    /// More, where [`Part::detail`] asks for it.
    pub detail: Option<Detail>,
}

impl From<&str> for Hit {
    fn from(name: &str) -> Self {
        Self { name: name.to_owned(), engine: None, detail: None }
    }
}

/// What tells whether bytes are infected.
pub trait Engine {
    /// The word used in findings, e.g. `yara`.
    fn name(&self) -> &'static str;

    /// Appends all detections in the part.
    ///
    /// # Errors
    /// In words, when the engine failed; the report then is at least `error`.
    fn scan(&mut self, part: &Part<'_>, hits: &mut Vec<Hit>) -> Result<(), String>;
}

/// One object to be scanned.
#[derive(Clone, Copy, Debug)]
pub struct Object<'a> {
    /// Its bytes.
    pub data: &'a [u8],
    /// What it is to be read as.
    pub kind: ObjectKind,
    /// Its name as the peer gave it.
    pub name: Option<&'a str>,
    /// When to stop; `Reason::Time`.
    pub deadline: Instant,
    /// Passwords to try on encrypted parts, before those that the object itself tells.
    pub passwords: &'a [String],
    /// Makes the hashes of a part, where details are wanted.
    pub details: Option<fn(&[u8]) -> Hashes>,
}

impl<'a> Object<'a> {
    /// An object without a name, of which no details are wanted.
    pub fn new(kind: ObjectKind, data: &'a [u8], deadline: Instant) -> Self {
        Self { data, kind, name: None, deadline, passwords: &[], details: None }
    }
}

/// Scans an object with all its parts. `micros` and `rules` of the report are left to the caller.
pub fn scan(engine: &mut dyn Engine, limits: &Limits, object: &Object<'_>) -> Report {
    walk(engine, limits, object, None, None).0
}

/// The same for an object whose bytes are taken for this type, whatever they begin with: so each decoder can be
/// tested by itself.
pub fn scan_as(
    engine: &mut dyn Engine,
    limits: &Limits,
    object: &Object<'_>,
    kind: Kind,
) -> Report {
    walk(engine, limits, object, Some(kind), None).0
}

/// Walks an object without any engine, and keeps how each part lies in its parent.
pub(crate) fn trace(limits: &Limits, object: &Object<'_>) -> (Report, Trace) {
    struct Nothing;
    impl Engine for Nothing {
        fn name(&self) -> &'static str {
            "nothing"
        }
        fn scan(&mut self, _: &Part<'_>, _: &mut Vec<Hit>) -> Result<(), String> {
            Ok(())
        }
    }
    let object = Object { details: None, ..*object };
    let (report, trace) = walk(&mut Nothing, limits, &object, None, Some(Trace::default()));
    (report, trace.unwrap_or_default())
}

fn walk(
    engine: &mut dyn Engine,
    limits: &Limits,
    object: &Object<'_>,
    taken_for: Option<Kind>,
    trace: Option<Trace>,
) -> (Report, Option<Trace>) {
    let name = object.name.unwrap_or_default();
    let mut walk = Walk {
        engine,
        limits,
        deadline: object.deadline,
        report: Report { verdict: Verdict::Clean, error: None, ..Report::error("") },
        path: vec![if name.is_empty() && object.kind == ObjectKind::Message {
            "message".into()
        } else {
            name.into()
        }],
        size: object.data.len() as u64,
        unpacked: 0,
        depth: 0,
        stopped: false,
        hits: Vec::new(),
        number: None,
        details: object.details,
        trace,
        object: object.data,
        kind: object.kind,
        known: object.passwords,
        passwords: None,
        opened: Opened::new(OPENED_BUDGET),
    };
    let mut data = object.data;
    if data.len() as u64 > limits.object_size {
        walk.note(Reason::Size, &format!("{} bytes, read {}", data.len(), limits.object_size));
        data = &data[..limits.object_size as usize];
    }
    let kind = taken_for.unwrap_or_else(|| match object.kind {
        ObjectKind::Message => Kind::Message,
        ObjectKind::File => sniff::sniff(data),
    });
    walk.report.kind = kind.label().to_owned();
    if object.kind == ObjectKind::Message {
        walk.report.mail = mail::facts::of(data);
    }
    walk.visit(data, kind, Place::File, About::default(), &mut |_| {});
    (walk.report, walk.trace)
}

/// Walks the object again and says by which edits the plan is carried out. Limits, kind, name and passwords
/// are those of the scan that numbered the parts.
pub fn repair(limits: &Limits, object: &Object<'_>, plan: &repair::Plan) -> repair::Answer {
    mail::repair::repair(limits, object, plan)
}

/// Where a part lies; it decides how encrypted content is called, and whether text is searched for encoded sections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// A file by itself, or a member of an archive.
    File,
    /// A leaf of a message.
    Mail,
}

impl Place {
    pub(crate) fn encrypted(self) -> Reason {
        match self {
            Place::File => Reason::Encrypted,
            Place::Mail => Reason::EncryptedMail,
        }
    }
}

/// What a decoder knows of a part beyond its bytes and its name.
#[derive(Clone, Debug, Default)]
pub(crate) struct About {
    /// See [`report::Part::declared`].
    pub(crate) declared: String,
    /// See [`report::Part::other_names`].
    pub(crate) other_names: Vec<String>,
    /// How it lies in the part that is being opened.
    pub(crate) origin: Origin,
    /// What was not read on the way to it.
    pub(crate) notes: Vec<(Reason, String)>,
}

/// How a part lies in its parent, as a repair has to know.
#[derive(Clone, Debug, Default)]
pub(crate) enum Origin {
    /// Inside, in a way that only its decoder knows.
    #[default]
    Inside,
    /// It is an entity of a message.
    Portion(mail::Portion),
    /// It is encoded in these bytes of a text, and nothing else is.
    Section(std::ops::Range<usize>),
}

/// A part as a repair sees it.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) parent: Option<u32>,
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) origin: Origin,
    /// Of its bytes, to know it again.
    pub(crate) hash: u64,
}

/// All parts, by their numbers, and how many entities each multipart has.
#[derive(Clone, Debug, Default)]
pub(crate) struct Trace {
    pub(crate) nodes: Vec<Node>,
    pub(crate) multiparts: Vec<usize>,
}

/// A hash by which a repair knows a part's bytes again within one process.
pub(crate) fn hash(data: &[u8]) -> u64 {
    use std::hash::Hasher;
    let mut hasher = std::hash::DefaultHasher::new();
    hasher.write(data);
    hasher.finish()
}

/// The state of a walk.
pub(crate) struct Walk<'e> {
    engine: &'e mut dyn Engine,
    pub(crate) limits: &'e Limits,
    deadline: Instant,
    report: Report,
    path: Vec<String>,
    /// Bytes of the object itself.
    size: u64,
    unpacked: u64,
    depth: u32,
    stopped: bool,
    hits: Vec<Hit>,
    /// The part that is being opened.
    number: Option<u32>,
    details: Option<fn(&[u8]) -> Hashes>,
    trace: Option<Trace>,
    /// The object's bytes and how they are read, for the passwords that it tells.
    object: &'e [u8],
    kind: ObjectKind,
    known: &'e [String],
    passwords: Option<Rc<[String]>>,
    /// Archives that were opened.
    opened: Opened,
}

/// Bytes decoded between two looks at the limits.
const CHUNK: usize = 64 * 1024;

/// Bytes hashed to know again archives that were opened: an image of many stored ones, seen on some levels. Half a second.
const OPENED_BUDGET: u64 = 1 << 30;

impl Walk<'_> {
    /// A part with its type by its bytes.
    pub(crate) fn part(&mut self, name: &str, data: &[u8], place: Place) {
        self.part_as(name, data, sniff::sniff(data), place);
    }

    /// A part whose type its container fixes.
    pub(crate) fn part_as(&mut self, name: &str, data: &[u8], kind: Kind, place: Place) {
        self.part_with(name, data, kind, place, About::default(), &mut |_| {});
    }

    /// A part of which its container knows more, and what else is to be looked at inside it.
    pub(crate) fn part_with(
        &mut self,
        name: &str,
        data: &[u8],
        kind: Kind,
        place: Place,
        about: About,
        also: &mut dyn FnMut(&mut Self),
    ) {
        self.within(name, |walk| walk.visit(data, kind, place, about, also));
    }

    /// Passwords to try on what is encrypted: those of the configuration, then those that the message tells.
    /// Looked for when they are asked for first.
    pub(crate) fn passwords(&mut self) -> Rc<[String]> {
        if let Some(passwords) = &self.passwords {
            return Rc::clone(passwords);
        }
        let told = mail::passwords::told(self.limits, self.object, self.kind);
        let mut all = self.known.to_vec();
        all.extend(told.into_iter().filter(|one| !self.known.contains(one)));
        let all: Rc<[String]> = all.into();
        self.passwords = Some(Rc::clone(&all));
        all
    }

    /// Keeps that there is a multipart with so many entities; its number.
    pub(crate) fn multipart(&mut self, entities: usize) -> usize {
        let Some(trace) = &mut self.trace else { return 0 };
        trace.multiparts.push(entities);
        trace.multiparts.len() - 1
    }

    /// Decodes `encoded` bytes through `reader` and takes the result as a part.
    pub(crate) fn decoded(&mut self, name: &str, encoded: u64, reader: &mut dyn Read) {
        self.within(name, |walk| {
            let data = walk.decode(encoded, reader);
            walk.visit(&data, sniff::sniff(&data), Place::File, About::default(), &mut |_| {});
        });
    }

    /// The same, and gives what was decoded to the caller as well.
    pub(crate) fn decoded_too(
        &mut self,
        name: &str,
        encoded: u64,
        reader: &mut dyn Read,
    ) -> Vec<u8> {
        let data = self.within(name, |walk| walk.decode(encoded, reader));
        self.part(name, &data, Place::File);
        data
    }

    /// Runs `f` with `name` appended to the path.
    pub(crate) fn within<T>(&mut self, name: &str, f: impl FnOnce(&mut Self) -> T) -> T {
        self.path.push(name.to_owned());
        let result = f(self);
        self.path.pop();
        result
    }

    /// Runs `f` one level deeper, or notes that the levels are used up.
    pub(crate) fn deeper(&mut self, f: impl FnOnce(&mut Self)) {
        if self.depth >= self.limits.depth {
            self.note(Reason::Depth, &format!("more than {} levels", self.limits.depth));
            return;
        }
        self.depth += 1;
        f(self);
        self.depth -= 1;
    }

    /// Notes that something at the current path was not read.
    pub(crate) fn note(&mut self, reason: Reason, detail: &str) {
        self.report.add_unread(reason, detail, &self.path, self.number.unwrap_or(0));
    }

    /// True when nothing more is read: a limit that holds for the whole object was reached, and noted.
    pub(crate) fn stopped(&mut self) -> bool {
        if !self.stopped && Instant::now() >= self.deadline {
            self.note(Reason::Time, "the time limit was reached");
            self.stopped = true;
        }
        self.stopped
    }

    /// Reads a decoder to its end or to a limit, which is noted together with what fails, a panic of a decoder
    /// included. What was decoded before counts.
    fn decode(&mut self, encoded: u64, reader: &mut dyn Read) -> Vec<u8> {
        let mut data = Vec::new();
        if self.stopped() {
            return data;
        }
        let room = self.limits.unpacked_size.saturating_sub(self.unpacked);
        let most = room.min(self.limits.object_size);
        loop {
            let len = data.len();
            if len as u64 > most {
                data.truncate(most as usize);
                if room < self.limits.object_size {
                    self.note(
                        Reason::Unpacked,
                        &format!("more than {} bytes in all", self.limits.unpacked_size),
                    );
                    self.stopped = true;
                } else {
                    self.note(Reason::Size, &format!("more than {most} bytes"));
                }
                return data;
            }
            if len as u64 > RATIO_FLOOR
                && len as u64 / encoded.max(1) >= u64::from(self.limits.ratio)
            {
                self.note(Reason::Ratio, &format!("more than {} bytes from {encoded}", len));
                return data;
            }
            if self.stopped() {
                return data;
            }
            if data.try_reserve(CHUNK).is_err() {
                self.note(Reason::Memory, "no memory for the decoded bytes");
                return data;
            }
            data.resize(len + CHUNK, 0);
            match archive::caught(|| reader.read(&mut data[len..])) {
                Ok(0) => {
                    data.truncate(len);
                    return data;
                }
                Ok(n) => data.truncate(len + n),
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => data.truncate(len),
                Err(e) => {
                    data.truncate(len);
                    let memory = e.kind() == std::io::ErrorKind::OutOfMemory;
                    self.note(
                        if memory { Reason::Memory } else { Reason::Malformed },
                        &e.to_string(),
                    );
                    return data;
                }
            }
        }
    }

    fn visit(
        &mut self,
        data: &[u8],
        kind: Kind,
        place: Place,
        mut about: About,
        also: &mut dyn FnMut(&mut Self),
    ) {
        if self.stopped() {
            return;
        }
        if self.report.parts >= self.limits.members {
            self.note(Reason::Members, &format!("more than {} parts", self.limits.members));
            self.stopped = true;
            return;
        }
        if self.depth > 0 {
            self.unpacked += data.len() as u64;
            if sniff::is_carried(data) {
                self.opened.keep(data);
            }
        }
        let parent = self.number.replace(self.report.parts);
        for (reason, detail) in std::mem::take(&mut about.notes) {
            self.note(reason, &detail);
        }
        self.list(parent, data, kind, about);
        self.run_engine(data, kind);
        self.enter(data, kind, place, also);
        self.number = parent;
    }

    /// Puts the part into the report's tree.
    fn list(&mut self, parent: Option<u32>, data: &[u8], kind: Kind, about: About) {
        let name = self.path.last().cloned().unwrap_or_default();
        if let Some(trace) = &mut self.trace {
            let (origin, hash) = (about.origin, hash(data));
            trace.nodes.push(Node { parent, name: name.clone(), kind, origin, hash });
        }
        let part = report::Part {
            number: self.report.parts,
            parent,
            name,
            other_names: about.other_names,
            declared: about.declared,
            kind: kind.label().to_owned(),
            size: data.len() as u64,
            hashes: self.details.map(|hashes| hashes(data)),
        };
        let most = if self.details.is_some() { TREE_DETAIL_MAX } else { TREE_MAX };
        self.report.add_part(part, most);
    }

    /// Opens a part that was scanned, unless a limit is reached.
    fn enter(&mut self, data: &[u8], kind: Kind, place: Place, also: &mut dyn FnMut(&mut Self)) {
        if self.unpacked > self.limits.unpacked_size {
            self.note(
                Reason::Unpacked,
                &format!("more than {} bytes in all", self.limits.unpacked_size),
            );
            self.stopped = true;
            return;
        }
        if self.unpacked > RATIO_FLOOR_ALL
            && self.unpacked / self.size.max(1) >= u64::from(self.limits.ratio)
        {
            let what = format!("more than {} bytes in all from {}", self.unpacked, self.size);
            self.note(Reason::Ratio, &what);
            self.stopped = true;
            return;
        }
        if self.depth >= self.limits.depth {
            // Only what could hold parts is unread here: in mail texts do.
            let text = matches!(kind, Kind::Text | Kind::Html) && place == Place::Mail;
            let other = || !sniff::also(data, kind, &mut |_| false).found.is_empty();
            if text || !kind.is_leaf() || other() {
                self.note(Reason::Depth, &format!("more than {} levels", self.limits.depth));
            }
            return;
        }
        self.deeper(|walk| {
            walk.open(data, kind, place);
            also(walk);
        });
    }

    fn run_engine(&mut self, data: &[u8], kind: Kind) {
        let number = self.report.parts;
        self.report.parts += 1;
        self.report.bytes += data.len() as u64;
        let mut hits = std::mem::take(&mut self.hits);
        hits.clear();
        let name = self.path.last().map_or("", String::as_str);
        let part = Part { data, kind, name, path: &self.path, detail: self.details.is_some() };
        let result = self.engine.scan(&part, &mut hits);
        for hit in hits.drain(..) {
            let engine = hit.engine.unwrap_or(self.engine.name());
            self.report.add_detailed(&hit.name, engine, &self.path, number, hit.detail);
        }
        if let Err(e) = result {
            self.report.add_error(&e);
        }
        self.hits = hits;
    }

    /// Opens a part by every decoder that fits: a polyglot has more than one.
    fn open(&mut self, data: &[u8], kind: Kind, place: Place) {
        self.open_as(data, kind, place, true);
        // The members of an encrypted document (OpenDocument 1.3 part 2, 4.8.4) are not encrypted to the archive.
        if self.path.last().is_some_and(|name| name == document::ODF_MANIFEST)
            && memchr::memmem::find(data, b"encryption-data").is_some()
        {
            self.note(place.encrypted(), "encrypted OpenDocument file");
        }
        // Scripts and pages in UTF-16: patterns are written for plain text.
        if let Some(big_endian) = match data {
            [0xff, 0xfe, ..] => Some(false),
            [0xfe, 0xff, ..] => Some(true),
            _ => None,
        } {
            let text = mail::encoding::narrow(&data[2..], big_endian);
            let name = self.path.last().cloned().unwrap_or_default();
            self.part(&name, &text, place);
        }
        let also = sniff::also(data, kind, &mut |archive| self.opened.knows(archive));
        if also.more {
            self.note(Reason::Members, "more archives behind other bytes than are opened");
        }
        for (kind, at) in also.found {
            if self.stopped() {
                return;
            }
            if sniff::is_carried(&data[at..]) {
                self.opened.keep(&data[at..]);
            }
            self.open_as(&data[at..], kind, place, false);
        }
    }

    /// Opens a part by one decoder. `begins`: the type is the one that its first bytes tell.
    fn open_as(&mut self, data: &[u8], kind: Kind, place: Place, begins: bool) {
        match kind {
            Kind::Message => mail::message(self, data),
            Kind::Mbox => mail::mbox(self, data),
            Kind::Gzip | Kind::Bzip2 | Kind::Xz | Kind::Lzma | Kind::Lzip | Kind::Zstd => {
                archive::stream::open(self, data, kind)
            }
            Kind::Lz4 => archive::lz4::open(self, data),
            Kind::Ar => archive::ar::open(self, data),
            Kind::Cpio => archive::cpio::open(self, data),
            Kind::Rpm => archive::rpm::open(self, data),
            Kind::SevenZip => archive::sevenz::open(self, data),
            Kind::Rar => archive::rar::open(self, data, begins),
            Kind::Cab => archive::cab::open(self, data, begins),
            Kind::Arj => archive::arj::open(self, data),
            Kind::Lha => archive::lha::open(self, data),
            Kind::Compress => archive::compress::open(self, data),
            Kind::Szdd => archive::szdd::open(self, data),
            Kind::Iso => archive::iso::open(self, data),
            Kind::Udf => archive::udf::open(self, data),
            Kind::Chm => archive::chm::open(self, data),
            Kind::Nsis => archive::nsis::open(self, data),
            Kind::Sis => archive::sis::open(self, data),
            Kind::Cms => mail::cms::open(self, data, place),
            Kind::Uuencoded | Kind::Yenc | Kind::Binhex => {
                mail::sweep::sections(self, data, place, &mail::sweep::Lies::Here);
            }
            Kind::Tnef => mail::tnef::open(self, data, place),
            Kind::Ole => document::ole::open(self, data),
            Kind::Pdf => document::pdf::open(self, data),
            Kind::Relationships => document::ooxml::external(self, data),
            // Text that is HTML as well was read as text already.
            Kind::Html if !begins => document::html::open(self, data),
            Kind::Text | Kind::Html | Kind::PgpMessage | Kind::Rtf => {
                if place == Place::Mail {
                    mail::sweep::text(self, data, &mail::sweep::Lies::Here);
                } else if kind == Kind::PgpMessage {
                    mail::pgp::armoured(self, data, place);
                }
                match kind {
                    Kind::Html => document::html::open(self, data),
                    Kind::Rtf => document::rtf::open(self, data),
                    _ => {}
                }
            }
            Kind::Unsupported(name) => {
                self.note(Reason::Unsupported, &format!("{name} cannot be opened"))
            }
            Kind::Zip => archive::zip::open(self, data, begins),
            Kind::Tar => archive::tar::open(self, data),
            Kind::Data | Kind::Exe | Kind::Elf | Kind::Lnk | Kind::Media => {}
        }
    }
}

#[cfg(test)]
#[path = "object/tests.rs"]
pub(crate) mod tests;

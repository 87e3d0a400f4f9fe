//! What a scan finds out: the verdict, the findings, and what was not read and why.

use serde::{Deserialize, Serialize};

/// The outcome for one object, the worst of its parts and engines.
///
/// The order is the order of severity of `Ord`: `Clean < Error < Unscannable < Infected`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Read whole; nothing found.
    Clean,
    /// The scanner failed: crash, deadline, no worker. Says nothing about the object.
    Error,
    /// Something could not be read: encrypted, over a limit, undecodable.
    Unscannable,
    /// A detection.
    Infected,
}

/// Why something was not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// The object or a part exceeds `object_size`.
    Size,
    /// Cumulative decoded bytes exceed `unpacked_size`.
    Unpacked,
    /// Decoded-to-encoded ratio exceeds `ratio`.
    Ratio,
    /// Nesting exceeds `depth`.
    Depth,
    /// More parts or members than `members`.
    Members,
    /// Header count or bytes exceed `headers`.
    Headers,
    /// The time limit inside the worker was reached.
    Time,
    /// The memory limit inside the worker was reached.
    Memory,
    /// Encrypted content: an archive member, a document.
    Encrypted,
    /// Mail encrypted end to end, S/MIME (RFC 8551) or OpenPGP (RFC 3156 or inline): proven by its structure,
    /// not by its label. A reason of its own, because policy passes it by default.
    EncryptedMail,
    /// A known container whose decoder failed.
    Malformed,
    /// A known container for which there is no decoder.
    Unsupported,
    /// A fragment of a message or file whose other fragments are elsewhere: message/partial (RFC 2046 section
    /// 5.2.2), a yEnc file in several messages.
    Partial,
    /// Content that is elsewhere and fetched by the reader: message/external-body (RFC 2046 section 5.2.3).
    External,
}

impl Reason {
    /// The word used in configuration, events and replies, e.g. `encrypted-mail`.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::Size => "size",
            Reason::Unpacked => "unpacked",
            Reason::Ratio => "ratio",
            Reason::Depth => "depth",
            Reason::Members => "members",
            Reason::Headers => "headers",
            Reason::Time => "time",
            Reason::Memory => "memory",
            Reason::Encrypted => "encrypted",
            Reason::EncryptedMail => "encrypted-mail",
            Reason::Malformed => "malformed",
            Reason::Unsupported => "unsupported",
            Reason::Partial => "partial",
            Reason::External => "external",
        }
    }
}

/// One detection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Name of the detection, e.g. the rule's name.
    pub name: String,
    /// The engine that says so: `yara`, `hash`, ...
    pub engine: String,
    /// Path of part names from the object down to the part, e.g. `["message", "invoice.zip"]`.
    pub path: Vec<String>,
    /// The number of the part: parts are numbered as the walk visits them, the object itself is 0.
    #[serde(default)]
    pub part: u32,
    /// More of it, where [`Ask::Report`](crate::wire::Ask) wants details.
    #[serde(default)]
    pub detail: Option<Detail>,
}

/// What an engine knows of a detection besides its name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Detail {
    /// Tags of the rule.
    pub tags: Vec<String>,
    /// Metadata of the rule, name and value.
    pub meta: Vec<(String, String)>,
    /// Where in the part the first match begins, in bytes.
    pub offset: Option<u64>,
}

/// Something that was not read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unread {
    /// Why.
    pub reason: Reason,
    /// Path of part names, as in [`Finding::path`].
    pub path: Vec<String>,
    /// What happened, in words.
    pub detail: String,
    /// The number of the part that is unread or holds it, as in [`Finding::part`].
    #[serde(default)]
    pub part: u32,
}

/// One part of the object's tree.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Its number, as in [`Finding::part`].
    pub number: u32,
    /// The number of the part that it was found in; none for the object.
    pub parent: Option<u32>,
    /// Its name, as most readers show it; may be empty. Shortened in its middle: its ending stays.
    pub name: String,
    /// The other names that a reader could show: each field and each way of decoding counts.
    pub other_names: Vec<String>,
    /// The media type that its header declares, in lower case, e.g. `application/pdf`; empty where none does.
    pub declared: String,
    /// Its type by its bytes, as in [`Report::kind`].
    pub kind: String,
    /// Its bytes, decoded.
    pub size: u64,
    /// Its hashes, where details are wanted.
    pub hashes: Option<Hashes>,
}

/// Hashes of a part's decoded bytes, in lower-case hexadecimal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hashes {
    /// BLAKE3.
    pub blake3: String,
    /// SHA-256.
    pub sha256: String,
}

/// What the header of a message says about who may be told of it. Whoever wrote the message wrote this too.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MailFacts {
    /// A program or a mailing list sent it: nobody is to be answered (RFC 3834 section 2).
    pub automatic: bool,
    /// The value of its field `X-Vscan-Notice`, which notices of a gateway carry; empty without one.
    pub notice: String,
}

/// The report on one object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The worst of findings and unread parts.
    pub verdict: Verdict,
    /// All detections, the first of which names the object's infection. Bounded.
    pub findings: Vec<Finding>,
    /// All that was not read. Bounded.
    pub unread: Vec<Unread>,
    /// Why the scanner failed, for [`Verdict::Error`].
    pub error: Option<String>,
    /// Sniffed type of the object, e.g. `zip`, `message`.
    pub kind: String,
    /// Parts read, the object itself included.
    pub parts: u32,
    /// The parts, in the sequence of their numbers; at most [`TREE_MAX`], or [`TREE_DETAIL_MAX`] where
    /// details are wanted.
    #[serde(default)]
    pub tree: Vec<Part>,
    /// Parts that `tree` had no room for.
    #[serde(default)]
    pub unlisted: u32,
    /// What the header of a message says about who is to be told of it.
    #[serde(default)]
    pub mail: MailFacts,
    /// Parts whose bytes the worker had given to its engines before, so that it knew what they find.
    #[serde(default)]
    pub known: u32,
    /// Bytes of the object that were looked at while it arrived.
    #[serde(default)]
    pub ahead: u64,
    /// Rules were asked whose answer changes with the time: it holds for this time alone.
    #[serde(default)]
    pub timely: bool,
    /// Bytes given to the engines, decoded parts included.
    pub bytes: u64,
    /// Microseconds of CPU time that the scan took.
    pub micros: u64,
    /// Identity of engine and rules.
    pub rules: String,
}

/// At most this many findings are kept; the first one names the infection, the rest is for the log.
pub const FINDINGS_MAX: usize = 32;

/// At most this many unread parts are kept; each reason is kept at least once, there being fewer reasons.
pub const UNREAD_MAX: usize = 32;

/// Parts in [`Report::tree`]: enough for all that mail carries; a large archive has more, and nobody reads them.
pub const TREE_MAX: usize = 1000;

/// Parts in [`Report::tree`] where details are wanted. The default limit of members.
pub const TREE_DETAIL_MAX: usize = 10_000;

/// Other names of a part that are kept.
pub const OTHER_NAMES_MAX: usize = 8;

/// Bytes of a part's name that are kept, more than a file system takes.
pub const NAME_MAX: usize = 256;

/// At most this many names in a path, and bytes in a name or a text. With the two limits above the
/// largest report without its tree takes `64 * (8 + 1) * 96` bytes, 54 KiB.
pub const PATH_MAX: usize = 8;

/// See [`PATH_MAX`].
pub const TEXT_MAX: usize = 96;

impl Report {
    /// A report for a scan that could not take place.
    pub fn error(why: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Error,
            findings: Vec::new(),
            unread: Vec::new(),
            error: Some(clip(why.into())),
            kind: String::new(),
            parts: 0,
            tree: Vec::new(),
            unlisted: 0,
            mail: MailFacts::default(),
            known: 0,
            ahead: 0,
            timely: false,
            bytes: 0,
            micros: 0,
            rules: String::new(),
        }
    }

    /// The words for the verdict: the first detection, the first reason, or the error.
    pub fn explanation(&self) -> Option<&str> {
        match self.verdict {
            Verdict::Clean => None,
            Verdict::Infected => self.findings.first().map(|finding| finding.name.as_str()),
            Verdict::Unscannable => self.unread.first().map(|unread| unread.reason.as_str()),
            Verdict::Error => Some(self.error.as_deref().unwrap_or("error")),
        }
    }

    /// Adds a detection, shortened and bounded; duplicates are dropped.
    pub fn add_finding(&mut self, name: &str, engine: &str, path: &[String], part: u32) {
        self.add_detailed(name, engine, path, part, None);
    }

    /// Adds a detection with what the engine knows of it.
    pub fn add_detailed(
        &mut self,
        name: &str,
        engine: &str,
        path: &[String],
        part: u32,
        detail: Option<Detail>,
    ) {
        self.raise(Verdict::Infected);
        let finding = Finding {
            name: clip(name.to_owned()),
            engine: clip(engine.to_owned()),
            path: clip_path(path),
            part,
            detail: detail.map(Detail::clipped),
        };
        if self.findings.len() < FINDINGS_MAX && !self.findings.contains(&finding) {
            self.findings.push(finding);
        }
    }

    /// Adds something that was not read, shortened and bounded. When the list is full, a reason that it
    /// does not hold yet takes the place of its last repeated one: no reason is ever lost.
    pub fn add_unread(&mut self, reason: Reason, detail: &str, path: &[String], part: u32) {
        self.raise(Verdict::Unscannable);
        let unread =
            Unread { reason, path: clip_path(path), detail: clip(detail.to_owned()), part };
        if self.unread.contains(&unread) {
            return;
        }
        if self.unread.len() < UNREAD_MAX {
            self.unread.push(unread);
        } else if self.unread.iter().all(|u| u.reason != reason) {
            let repeated = (0..self.unread.len())
                .rev()
                .find(|&i| self.unread[..i].iter().any(|u| u.reason == self.unread[i].reason));
            if let Some(i) = repeated {
                self.unread[i] = unread;
            }
        }
    }

    /// Adds a part to the tree, its names shortened, or counts it when there are `most` already.
    pub fn add_part(&mut self, mut part: Part, most: usize) {
        if self.tree.len() >= most {
            self.unlisted += 1;
            return;
        }
        part.name = clip_name(part.name);
        part.other_names.truncate(OTHER_NAMES_MAX);
        part.other_names = part.other_names.into_iter().map(clip_name).collect();
        part.declared = clip(part.declared);
        self.tree.push(part);
    }

    /// Notes that the scanner itself failed; what was found before still counts.
    pub fn add_error(&mut self, why: &str) {
        self.raise(Verdict::Error);
        self.error.get_or_insert_with(|| clip(why.to_owned()));
    }

    /// True when everything that was not read is mail encrypted end to end, and nothing was found in the rest.
    pub fn only_encrypted_mail(&self) -> bool {
        self.verdict == Verdict::Unscannable
            && self.error.is_none()
            && self.unread.iter().all(|u| u.reason == Reason::EncryptedMail)
    }

    fn raise(&mut self, verdict: Verdict) {
        self.verdict = self.verdict.max(verdict);
    }
}

impl Detail {
    fn clipped(mut self) -> Self {
        self.tags.truncate(DETAIL_MAX);
        self.tags = self.tags.into_iter().map(clip).collect();
        self.meta.truncate(DETAIL_MAX);
        self.meta =
            self.meta.into_iter().map(|(name, value)| (clip(name), clip_name(value))).collect();
        self
    }
}

/// Tags, and metadata, of one detection that are kept.
const DETAIL_MAX: usize = 32;

/// Shortens in the middle: the ending of a name says what it is.
fn clip_name(name: String) -> String {
    if name.len() <= NAME_MAX {
        return name;
    }
    let head = name.floor_char_boundary(NAME_MAX / 2 - 3);
    let tail = name.ceil_char_boundary(name.len() - NAME_MAX / 2);
    format!("{}…{}", &name[..head], &name[tail..])
}

fn clip(mut text: String) -> String {
    if text.len() > TEXT_MAX {
        let end = text.floor_char_boundary(TEXT_MAX - 3);
        text.truncate(end);
        text.push('…');
    }
    text
}

/// Keeps the outermost and the innermost names of a path that is too long.
fn clip_path(path: &[String]) -> Vec<String> {
    let mut out: Vec<String> = if path.len() <= PATH_MAX {
        path.to_vec()
    } else {
        let (head, tail) = (PATH_MAX / 2, PATH_MAX - PATH_MAX / 2 - 1);
        let dots = std::iter::once("…".to_owned());
        path[..head]
            .iter()
            .cloned()
            .chain(dots)
            .chain(path[path.len() - tail..].iter().cloned())
            .collect()
    };
    for name in &mut out {
        *name = clip(std::mem::take(name));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clean() -> Report {
        Report { verdict: Verdict::Clean, error: None, ..Report::error("") }
    }

    #[test]
    fn the_worst_verdict_wins_whatever_the_order() {
        let mut report = clean();
        report.add_finding("A", "yara", &[], 0);
        report.add_unread(Reason::Depth, "", &[], 0);
        report.add_error("x");
        assert_eq!(report.verdict, Verdict::Infected);
        let mut report = clean();
        report.add_error("x");
        assert_eq!(report.verdict, Verdict::Error);
        report.add_unread(Reason::EncryptedMail, "", &[], 0);
        assert_eq!(report.verdict, Verdict::Unscannable);
        assert!(!report.only_encrypted_mail(), "an error is not passed as encrypted mail");
    }

    #[test]
    fn the_largest_report_fits_into_a_datagram_and_keeps_every_reason() {
        let mut report = clean();
        let path: Vec<String> = (0..40).map(|i| format!("{i}{}", "é".repeat(500))).collect();
        for i in 0..200 {
            report.add_finding(&format!("{i}{}", "n".repeat(500)), "yara", &path, 0);
            report.add_unread(Reason::Malformed, &format!("{i}{}", "d".repeat(500)), &path, 0);
        }
        report.add_unread(Reason::Time, "late", &path, 0);
        report.add_unread(Reason::Encrypted, "later", &path, 0);
        report.add_error(&"e".repeat(10_000));
        for reason in [Reason::Malformed, Reason::Time, Reason::Encrypted] {
            assert!(report.unread.iter().any(|u| u.reason == reason), "{reason:?} is lost");
        }
        let bytes = postcard::to_stdvec(&report).unwrap();
        assert!(bytes.len() < crate::wire::DATAGRAM_MAX - 4096, "{}", bytes.len());
    }

    #[test]
    fn the_tree_is_bounded_and_keeps_the_endings_of_names() {
        let mut report = clean();
        let name = format!("{}.pdf.exe", "ü".repeat(500));
        let part = Part { name: name.clone(), other_names: vec![name; 20], ..Part::default() };
        for _ in 0..TREE_MAX + 5 {
            report.add_part(part.clone(), TREE_MAX);
        }
        assert_eq!((report.tree.len(), report.unlisted), (TREE_MAX, 5));
        let part = &report.tree[0];
        assert!(part.name.len() <= NAME_MAX && part.name.ends_with(".pdf.exe"), "{}", part.name);
        assert_eq!(part.other_names.len(), OTHER_NAMES_MAX);
        assert!(part.other_names.iter().all(|n| n.ends_with("ü.pdf.exe")));
    }
}

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
        }
    }
}

/// One detection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Name of the detection, e.g. the rule's name.
    pub name: String,
    /// The engine that says so: `yara`, `hash`, ...
    pub engine: String,
    /// Path of part names from the object down to the part, e.g. `["message", "invoice.zip"]`.
    pub path: Vec<String>,
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

/// At most this many names in a path, and bytes in a name or a text. With the two limits above the
/// largest report takes `64 * (8 + 1) * 96` bytes, 54 KiB, and fits into a datagram.
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
    pub fn add_finding(&mut self, name: &str, engine: &str, path: &[String]) {
        self.raise(Verdict::Infected);
        let finding = Finding {
            name: clip(name.to_owned()),
            engine: clip(engine.to_owned()),
            path: clip_path(path),
        };
        if self.findings.len() < FINDINGS_MAX && !self.findings.contains(&finding) {
            self.findings.push(finding);
        }
    }

    /// Adds something that was not read, shortened and bounded. When the list is full, a reason that it
    /// does not hold yet takes the place of its last repeated one: no reason is ever lost.
    pub fn add_unread(&mut self, reason: Reason, detail: &str, path: &[String]) {
        self.raise(Verdict::Unscannable);
        let unread = Unread { reason, path: clip_path(path), detail: clip(detail.to_owned()) };
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
        report.add_finding("A", "yara", &[]);
        report.add_unread(Reason::Depth, "", &[]);
        report.add_error("x");
        assert_eq!(report.verdict, Verdict::Infected);
        let mut report = clean();
        report.add_error("x");
        assert_eq!(report.verdict, Verdict::Error);
        report.add_unread(Reason::EncryptedMail, "", &[]);
        assert_eq!(report.verdict, Verdict::Unscannable);
        assert!(!report.only_encrypted_mail(), "an error is not passed as encrypted mail");
    }

    #[test]
    fn the_largest_report_fits_into_a_datagram_and_keeps_every_reason() {
        let mut report = clean();
        let path: Vec<String> = (0..40).map(|i| format!("{i}{}", "é".repeat(500))).collect();
        for i in 0..200 {
            report.add_finding(&format!("{i}{}", "n".repeat(500)), "yara", &path);
            report.add_unread(Reason::Malformed, &format!("{i}{}", "d".repeat(500)), &path);
        }
        report.add_unread(Reason::Time, "late", &path);
        report.add_unread(Reason::Encrypted, "later", &path);
        report.add_error(&"e".repeat(10_000));
        for reason in [Reason::Malformed, Reason::Time, Reason::Encrypted] {
            assert!(report.unread.iter().any(|u| u.reason == reason), "{reason:?} is lost");
        }
        let bytes = postcard::to_stdvec(&report).unwrap();
        assert!(bytes.len() < crate::wire::DATAGRAM_MAX - 4096, "{}", bytes.len());
    }
}

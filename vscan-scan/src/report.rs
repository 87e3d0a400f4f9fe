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
    /// Encrypted content.
    Encrypted,
    /// A known container whose decoder failed.
    Malformed,
    /// A known container for which there is no decoder.
    Unsupported,
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

impl Report {
    /// A report for a scan that could not take place.
    pub fn error(why: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Error,
            findings: Vec::new(),
            unread: Vec::new(),
            error: Some(why.into()),
            kind: String::new(),
            parts: 0,
            bytes: 0,
            micros: 0,
            rules: String::new(),
        }
    }

}

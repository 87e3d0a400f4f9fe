//! What is written down about an object that is kept.

use crate::config::{Direction, Protocol};
use crate::observe::FlowId;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::atomic::{AtomicU32, Ordering};
use vscan_scan::report::{Finding, Report, Verdict};

/// The name of an entry: `20261122-021826-1f0c59a7`, the time (UTC) and eight hexadecimal digits.
///
/// No other text is one, so a name can be joined to a path without leaving the directory.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct EntryId(String);

impl EntryId {
    /// A new name, different from all others of this second with great probability; the store makes sure.
    pub(crate) fn new(time: Timestamp, flow: Option<FlowId>) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let mut hash = blake3::Hasher::new();
        hash.update(&time.as_nanosecond().to_le_bytes());
        hash.update(&flow.map_or(0, FlowId::get).to_le_bytes());
        hash.update(&std::process::id().to_le_bytes());
        hash.update(&COUNT.fetch_add(1, Ordering::Relaxed).to_le_bytes());
        let tail = &hash.finalize().to_hex()[..8];
        Self(format!("{}-{tail}", time.strftime("%Y%m%d-%H%M%S")))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// The text is not the name of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an entry is named as `vscan quarantine list` shows it, e.g. 20261122-021826-1f0c59a7")]
pub struct NotAnEntryId;

impl FromStr for EntryId {
    type Err = NotAnEntryId;

    fn from_str(text: &str) -> Result<Self, NotAnEntryId> {
        let shape = text.len() == 24
            && text.bytes().enumerate().all(|(n, b)| match n {
                8 | 15 => b == b'-',
                0..15 => b.is_ascii_digit(),
                _ => b.is_ascii_digit() || (b'a'..=b'f').contains(&b),
            });
        if shape { Ok(Self(text.to_owned())) } else { Err(NotAnEntryId) }
    }
}

impl TryFrom<String> for EntryId {
    type Error = NotAnEntryId;

    fn try_from(text: String) -> Result<Self, NotAnEntryId> {
        text.parse()
    }
}

impl From<EntryId> for String {
    fn from(id: EntryId) -> Self {
        id.0
    }
}

/// What the gateway knows about an object that it wants kept.
#[derive(Clone, Copy, Debug)]
pub struct About<'a> {
    /// The flow that carried it.
    pub flow: FlowId,
    /// Its protocol.
    pub protocol: Protocol,
    /// From its sender to its receiver.
    pub direction: Direction,
    /// The client of the session.
    pub client: SocketAddr,
    /// The server as dialled.
    pub server: SocketAddr,
    /// FTP user or SMTP sender, as it came over the wire.
    pub user: Option<&'a [u8]>,
    /// SMTP recipients, as they came over the wire.
    pub recipients: &'a [Vec<u8>],
    /// Its name, as it came over the wire; may be empty.
    pub name: &'a [u8],
    /// `file` or `message`.
    pub kind: &'static str,
    /// Bytes.
    pub size: u64,
    /// What the scanner says.
    pub report: &'a Report,
}

/// An object that is kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Its name here.
    pub id: EntryId,
    /// When it came.
    pub time: Timestamp,
    /// The flow that carried it.
    pub flow_id: FlowId,
    /// Its protocol.
    pub protocol: Protocol,
    /// From its sender to its receiver.
    pub direction: Direction,
    /// The client of the session.
    pub client: SocketAddr,
    /// The server as dialled.
    pub server: SocketAddr,
    /// FTP user or SMTP sender; `\xNN` for bytes that are no UTF-8.
    pub user: Option<String>,
    /// SMTP recipients.
    pub recipients: Vec<String>,
    /// Its name on the wire.
    pub name: String,
    /// `file` or `message`.
    pub kind: String,
    /// The type that its content says.
    pub r#type: String,
    /// Bytes.
    pub size: u64,
    /// SHA-256 of its bytes, in hexadecimal.
    pub sha256: String,
    /// BLAKE3 of its bytes, in hexadecimal.
    pub blake3: String,
    /// The verdict.
    pub verdict: Verdict,
    /// The first detection, or the first reason for not having read something.
    pub detection: Option<String>,
    /// All detections.
    pub findings: Vec<Finding>,
    /// Engine and rules that said so.
    pub rules: String,
    /// Copies that were given out.
    pub released: Vec<Released>,
}

/// A copy that was given out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Released {
    /// When.
    pub time: Timestamp,
    /// Where to.
    pub to: String,
    /// By which user of the system: the login behind sudo, if there is one, and the user id.
    pub by: String,
}

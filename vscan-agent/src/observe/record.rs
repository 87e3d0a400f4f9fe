//! One flow as listings, events and the command line see it.

use super::id::FlowId;
use super::tls::TlsRecord;
use crate::config::{Direction, Protocol};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use vscan_scan::report::Verdict;

/// A snapshot of a flow, intercepted or not.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FlowRecord {
    /// Identity; none for a flow that never reached the gateway.
    pub id: Option<FlowId>,
    /// Protocol, by the server's port.
    pub protocol: Protocol,
    /// From client to server.
    pub direction: Direction,
    /// What goes on, as one word: `open`, `transfer`, `closed`, ...
    pub state: String,
    /// The client.
    pub client: SocketAddr,
    /// The server as the client dialled it.
    pub server: SocketAddr,
    /// The server after DNAT.
    pub real_server: SocketAddr,
    /// FTP user or SMTP sender; `\xNN` for bytes that are no UTF-8.
    pub user: Option<String>,
    /// The command that is being worked off: its verb, in capitals.
    #[serde(default)]
    pub command: Option<String>,
    /// The transfer that goes on.
    #[serde(default)]
    pub transfer: Option<TransferRecord>,
    /// The object that made the verdict, or else the last one.
    pub object: Option<String>,
    /// Objects that were judged.
    pub objects: u64,
    /// Bytes that came from the client.
    pub bytes_from_client: u64,
    /// Bytes that came from the server.
    pub bytes_from_server: u64,
    /// The worst verdict so far.
    #[serde(with = "verdict")]
    pub verdict: Option<Verdict>,
    /// The detection, or the reason for not having read something, of that verdict.
    pub detection: Option<String>,
    /// Why the flow passes uninspected: `tls`, `exempt`, `agent_down`, ...
    pub uninspected: Option<String>,
    /// What the handshakes have settled, if TLS was opened.
    #[serde(default)]
    pub tls: Option<TlsRecord>,
    /// When it was accepted or first seen.
    pub started: Timestamp,
    /// When it was closed.
    pub ended: Option<Timestamp>,
    /// Seconds from start to end, or to now.
    pub age: f64,
}

/// A transfer under way.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct TransferRecord {
    /// Bytes that came from the sender so far.
    pub bytes: u64,
    /// Seconds since it began.
    pub seconds: f64,
    /// Bytes per second, on the average since it began.
    pub rate: f64,
}

/// `Option<Verdict>` as a word or null, in the spelling of configuration and metrics.
mod verdict {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use vscan_scan::report::Verdict;

    #[expect(clippy::ref_option, reason = "the signature that serde asks for")]
    pub(super) fn serialize<S: Serializer>(v: &Option<Verdict>, s: S) -> Result<S::Ok, S::Error> {
        v.map(crate::config::verdict_str).serialize(s)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        d: D,
    ) -> Result<Option<Verdict>, D::Error> {
        Option::<Verdict>::deserialize(d)
    }
}

/// What happened to a flow, for those who follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// It was accepted.
    Opened,
    /// An object of it was judged, or it went over to TLS.
    Judged,
    /// It ended.
    Closed,
}

/// A change of a flow.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FlowChange {
    /// What happened.
    pub change: Change,
    /// The flow after it.
    #[serde(flatten)]
    pub flow: FlowRecord,
}

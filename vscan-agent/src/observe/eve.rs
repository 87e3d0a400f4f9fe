//! The shapes of a flow's events: EVE's common fields, and what is special to each kind.

use super::events::{EventKind, now};
use super::flows::{Flow, Judged};
use super::tls::TlsRecord;
use super::wire;
use crate::config::{Direction, Treatment};
use serde::Serialize;

/// EVE: the common fields, then the kind's own under its name.
pub(super) struct FlowEvent<'a, T> {
    pub(super) flow: &'a Flow,
    pub(super) kind: EventKind,
    pub(super) fields: &'a T,
    /// The object of an alert.
    pub(super) more: Option<&'a serde_json::Value>,
}

impl<T: Serialize> Serialize for FlowEvent<'_, T> {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeMap;
        let open = self.flow.opened();
        let mut map = s.serialize_map(None)?;
        map.serialize_entry("timestamp", &now())?;
        map.serialize_entry("event_type", &self.kind)?;
        map.serialize_entry("flow_id", &self.flow.id())?;
        map.serialize_entry("src_ip", &open.client.ip())?;
        map.serialize_entry("src_port", &open.client.port())?;
        map.serialize_entry("dest_ip", &open.server.ip())?;
        map.serialize_entry("dest_port", &open.server.port())?;
        if open.real_server != open.server {
            map.serialize_entry("real_dest_ip", &open.real_server.ip())?;
            map.serialize_entry("real_dest_port", &open.real_server.port())?;
        }
        map.serialize_entry("proto", "TCP")?;
        map.serialize_entry("app_proto", &open.protocol)?;
        map.serialize_entry(self.kind.as_str(), self.fields)?;
        if let Some(more) = self.more {
            map.serialize_entry("object", more)?;
        }
        map.end()
    }
}

#[derive(Serialize)]
pub(super) struct FlowFields<'a> {
    pub(super) start: String,
    pub(super) end: String,
    pub(super) age: f64,
    pub(super) state: &'static str,
    pub(super) direction: Direction,
    pub(super) user: Option<&'a str>,
    pub(super) bytes_toserver: u64,
    pub(super) bytes_toclient: u64,
    pub(super) objects: u64,
    pub(super) verdict: Option<&'static str>,
    pub(super) uninspected: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) tls: Option<&'a TlsRecord>,
}

/// Something that the `[[access]]` rules refused in a session.
#[derive(Clone, Debug, Serialize)]
pub struct Denied {
    /// What: `user`, `command`, `sender`, `recipient`.
    pub(super) r#type: &'static str,
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    command: Option<String>,
    /// The name, the command's argument or the address, as it came over the wire.
    name: String,
}

impl Denied {
    /// A login, or a command with its verb; wire bytes.
    #[must_use]
    pub fn ftp(command: Option<&[u8]>, what: &[u8]) -> Self {
        Self {
            r#type: if command.is_some() { "command" } else { "user" },
            outcome: "denied",
            command: command.map(|verb| wire::text(verb).to_ascii_uppercase()),
            name: wire::text(what).into_owned(),
        }
    }

    /// A sender's or recipient's address; wire bytes.
    #[must_use]
    pub fn smtp(recipient: bool, address: &[u8]) -> Self {
        Self {
            r#type: if recipient { "recipient" } else { "sender" },
            outcome: "denied",
            command: None,
            name: wire::text(address).into_owned(),
        }
    }
}

#[derive(Serialize)]
pub(super) struct AlertFields<'a> {
    pub(super) action: &'static str,
    pub(super) signature: &'a str,
    pub(super) category: &'static str,
    pub(super) severity: u8,
}

#[derive(Serialize)]
pub(super) struct ObjectFields<'a> {
    pub(super) name: String,
    pub(super) kind: &'static str,
    pub(super) r#type: &'a str,
    pub(super) direction: Direction,
    pub(super) size: u64,
    blake3: &'a str,
    pub(super) verdict: &'static str,
    pub(super) action: Treatment,
    pub(super) rule: &'a str,
    pub(super) findings: &'a [vscan_scan::report::Finding],
    pub(super) unread: &'a [vscan_scan::report::Unread],
    pub(super) error: Option<&'a str>,
    pub(super) parts: u32,
    pub(super) rules: &'a str,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub(super) treated: &'a [crate::gateway::Treated],
    pub(super) quarantine: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mailbox: Option<&'a crate::gateway::Stored<'a>>,
    pub(super) seconds: f64,
}

impl<'a> ObjectFields<'a> {
    pub(super) fn new(judged: &Judged<'a>) -> Self {
        let report = judged.report;
        Self {
            name: wire::text(judged.name).into_owned(),
            kind: judged.kind,
            r#type: &report.kind,
            direction: judged.direction,
            size: judged.size,
            blake3: judged.blake3,
            verdict: crate::config::verdict_str(report.verdict),
            action: judged.action,
            rule: judged.rule,
            findings: &report.findings,
            unread: &report.unread,
            error: report.error.as_deref(),
            parts: report.parts,
            rules: &report.rules,
            treated: judged.treated,
            quarantine: judged.quarantine,
            mailbox: judged.stored,
            seconds: judged.seconds,
        }
    }
}

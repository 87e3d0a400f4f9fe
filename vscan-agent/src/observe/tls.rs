//! TLS that was opened, as flow table, events and metrics have it.

use super::metrics::Maker;
use crate::config::Protocol;
use crate::tls::Settled;
use prometheus::{IntCounterVec, IntGaugeVec};
use serde::{Deserialize, Serialize};

/// What the handshakes of a session have settled.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TlsRecord {
    /// The name that the client asked for.
    pub sni: Option<String>,
    /// The client's leg; none: in the clear.
    pub client: Option<TlsLeg>,
    /// The server's leg; none: in the clear.
    pub server: Option<TlsLeg>,
    /// Whether the server's certificate is believed.
    pub trusted: bool,
}

/// TLS of one leg.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TlsLeg {
    /// `TLSv1.2` or `TLSv1.3`.
    pub version: String,
    /// The cipher suite, by its name in IANA's m.
    pub cipher: String,
    /// Whether an earlier session was resumed.
    pub resumed: bool,
}

impl From<Settled> for TlsLeg {
    fn from(settled: Settled) -> Self {
        Self {
            version: settled.version.to_owned(),
            cipher: settled.cipher,
            resumed: settled.resumed,
        }
    }
}

/// Which leg of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The client's.
    Client,
    /// The server's.
    Server,
}

impl Side {
    fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
        }
    }
}

/// Counters of TLS.
#[derive(Debug)]
pub struct TlsMetrics {
    handshakes: IntCounterVec,
    failed: IntCounterVec,
    expiry: IntGaugeVec,
}

impl TlsMetrics {
    pub(super) fn new(m: &Maker) -> Self {
        Self {
            handshakes: m.counters(
                "vscan_tls_handshakes_total",
                "Handshakes that were completed, by leg and version.",
                &["protocol", "leg", "version"],
            ),
            failed: m.counters(
                "vscan_tls_handshakes_failed_total",
                "Handshakes that failed, by leg.",
                &["protocol", "leg"],
            ),
            expiry: m.gauges(
                "vscan_tls_certificate_expiry_timestamp_seconds",
                "When the operator's certificates expire, by their file.",
                &["file"],
            ),
        }
    }

    /// The handshakes of a session are made.
    pub(super) fn opened(&self, protocol: Protocol, record: &TlsRecord) {
        for (side, leg) in [(Side::Client, &record.client), (Side::Server, &record.server)] {
            let Some(leg) = leg else { continue };
            self.handshakes
                .with_label_values(&[protocol.as_str(), side.as_str(), &leg.version])
                .inc();
        }
    }

    /// A handshake failed.
    pub fn failed(&self, protocol: Protocol, side: Side) {
        self.failed.with_label_values(&[protocol.as_str(), side.as_str()]).inc();
    }

    /// When the operator's certificates expire.
    pub fn set_expiries(&self, ages: &[crate::tls::Age]) {
        self.expiry.reset();
        for age in ages {
            let gauge = self.expiry.with_label_values(&[&age.file]);
            // Of a chain what expires first.
            if gauge.get() == 0 || age.not_after < gauge.get() {
                gauge.set(age.not_after);
            }
        }
    }
}

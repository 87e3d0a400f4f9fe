//! Metrics, events, the flow table and the control socket.
//!
//! Everything here is told by the sessions what happens; nothing here decides anything or waits for a disk.

pub mod control;
mod eve;
mod events;
mod flows;
pub mod http;
mod id;
pub mod logging;
mod meter;
mod metrics;
mod record;
#[cfg(test)]
mod tests;
mod tls;
pub mod wire;

pub use eve::Denied;
pub use events::{EventKind, EventLog};
pub use flows::{Flow, FlowHandle, FlowOpen, FlowTable, Judged, UninspectedSource};
pub use id::{FlowId, NotAFlowId};
pub use meter::{Blind, BlindPeer, BlindSpots, Meter, Spot, Unread, Whose};
pub use metrics::Metrics;
pub use record::{Change, FlowChange, FlowRecord, TransferRecord};
pub use tls::{Side, TlsLeg, TlsMetrics, TlsRecord};

use serde::{Deserialize, Serialize};
use std::io;
use std::path::Path;
use std::sync::Arc;

/// What the quarantine holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Entries.
    pub objects: u64,
    /// Bytes of their content.
    pub bytes: u64,
}

/// Metrics, flow table and event log of one gateway. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Observer {
    /// Counters and gauges.
    pub metrics: Arc<Metrics>,
    /// What every session does.
    pub flows: FlowTable,
    /// Where events go.
    pub events: EventLog,
}

impl Observer {
    /// Opens the event log and starts its writer.
    ///
    /// # Errors
    /// The event log cannot be opened.
    pub fn new(events: &Path) -> io::Result<Self> {
        let metrics = Arc::new(Metrics::new());
        let events = EventLog::open(events, Arc::clone(&metrics))?;
        Ok(Self::assemble(metrics, events))
    }

    /// An observer that writes no events, for tests of other parts.
    #[must_use]
    pub fn without_events() -> Self {
        let metrics = Arc::new(Metrics::new());
        let events = EventLog::discarding(Arc::clone(&metrics));
        Self::assemble(metrics, events)
    }

    fn assemble(metrics: Arc<Metrics>, events: EventLog) -> Self {
        let flows = FlowTable::new(Arc::clone(&metrics), events.clone());
        Self { metrics, flows, events }
    }

    /// The text for `/metrics`.
    #[must_use]
    pub fn render_metrics(&self) -> Vec<u8> {
        self.flows.scrape();
        self.metrics.render()
    }
}

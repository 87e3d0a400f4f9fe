//! The identity of a flow: one through the flow table, the events, the log and the quarantine.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};

/// The identity of a flow, written as twelve hexadecimal digits.
///
/// 48 bits: the lower 28 count the flows of a process, the upper 20 tell processes apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FlowId(u64);

const COUNTER_BITS: u32 = 28;

impl FlowId {
    /// The number behind the digits.
    #[must_use]
    pub fn get(self) -> u64 {
        self.0
    }
}

/// Gives out identities.
#[derive(Debug)]
pub(super) struct FlowIds {
    prefix: u64,
    next: AtomicU64,
}

impl FlowIds {
    /// `seed` differs from one process to the next; a clock's seconds do (20 bits of them: twelve days).
    pub(super) fn new(seed: u64) -> Self {
        Self { prefix: (seed & 0xf_ffff) << COUNTER_BITS, next: AtomicU64::new(1) }
    }

    pub(super) fn next(&self) -> FlowId {
        let n = self.next.fetch_add(1, Ordering::Relaxed) & ((1 << COUNTER_BITS) - 1);
        FlowId(self.prefix | n)
    }
}

impl fmt::Display for FlowId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:012x}", self.0)
    }
}

/// The text is not the identity of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a flow is named by its twelve hexadecimal digits, as `vscan flows` shows them")]
pub struct NotAFlowId;

impl FromStr for FlowId {
    type Err = NotAFlowId;

    fn from_str(text: &str) -> Result<Self, NotAFlowId> {
        let hex = text.len() == 12 && text.bytes().all(|b| b.is_ascii_hexdigit());
        u64::from_str_radix(text, 16).ok().filter(|_| hex).map(Self).ok_or(NotAFlowId)
    }
}

impl TryFrom<String> for FlowId {
    type Error = NotAFlowId;

    fn try_from(text: String) -> Result<Self, NotAFlowId> {
        text.parse()
    }
}

impl From<FlowId> for String {
    fn from(id: FlowId) -> Self {
        id.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::{FlowId, FlowIds};

    #[test]
    fn written_and_read_back() {
        let ids = FlowIds::new(0x1234_5678_9abc);
        let id = ids.next();
        assert_eq!(id.to_string(), "89abc0000001");
        assert_eq!(id.to_string().parse(), Ok(id));
        assert!("89abc000001".parse::<FlowId>().is_err());
        assert!("+9abc0000001".parse::<FlowId>().is_err());
        assert_eq!(serde_json::to_string(&id).unwrap(), "\"89abc0000001\"");
    }
}

//! `[outbound]`: how much mail a host inside may send. What is counted, and what becomes of a host that sends more, is
//! `crate::outbound`'s business.

use super::read::{Reader, Table, Wrong};
use super::terms::OutboundAction;
use super::value::OrNone;
use ipnet::IpNet;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::Duration;

/// `[outbound]`: limits by host and minute; none: no limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outbound {
    /// SMTP connections.
    pub connections: Option<NonZeroU32>,
    /// Messages.
    pub messages: Option<NonZeroU32>,
    /// Recipients, of all messages together.
    pub recipients: Option<NonZeroU32>,
    /// Infected messages.
    pub infected: Option<NonZeroU32>,
    /// What becomes of a host over a limit.
    pub action: OutboundAction,
    /// For how long.
    pub block: Duration,
    /// Hosts without limits: mail servers.
    pub exempt: Vec<IpNet>,
}

impl Outbound {
    /// Whether the host has no limits.
    #[must_use]
    pub fn is_exempt(&self, host: IpAddr) -> bool {
        let host = host.to_canonical();
        self.exempt.iter().any(|net| net.contains(&host))
    }
}

impl Default for Outbound {
    fn default() -> Self {
        Self {
            connections: None,
            messages: None,
            recipients: None,
            infected: None,
            action: OutboundAction::Refuse,
            block: Duration::from_secs(10 * 60),
            exempt: Vec::new(),
        }
    }
}

/// The longest time that a host is blocked for: the kernel's set counts in milliseconds, and a mistake should end.
const BLOCK_MAX: Duration = Duration::from_secs(30 * 86_400);

pub(super) fn read(r: &mut Reader<'_>, root: &mut Table<'_, '_>) -> Outbound {
    let mut t = root.table(r, "outbound");
    let d = Outbound::default();
    let mut limit = |key| t.opt::<OrNone<NonZeroU32>>(r, key).and_then(OrNone::into_option);
    let [connections, messages, recipients, infected] =
        ["connections", "messages", "recipients", "infected"].map(&mut limit);
    let outbound = Outbound {
        connections,
        messages,
        recipients,
        infected,
        action: t.get(r, "action", d.action),
        block: t.get(r, "block", d.block),
        exempt: t.list(r, "exempt", d.exempt),
    };
    if outbound.block.is_zero() || outbound.block > BLOCK_MAX {
        let wrong = Wrong::new("`outbound.block` must be more than 0 and at most 30d");
        r.report(t.span_of("block"), wrong);
    }
    t.finish(r);
    outbound
}

//! How much mail each host inside sends, and which of them have sent too much. Pure: the time is an argument.
//!
//! Counted are hosts inside that open SMTP connections through the gateway. Sums run over the last minute, in steps of
//! five seconds. The table belongs to the process, not to a configuration: a reload changes limits, not counts.

mod window;

#[cfg(test)]
mod tests;

use crate::config::{Outbound, OutboundAction};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};
use window::Window;

/// Hosts that are remembered; about 350 bytes each.
pub const HOSTS_MAX: usize = 16_384;

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum What {
    /// SMTP connections.
    Connections,
    /// Messages that were sent to their end.
    Messages,
    /// Accepted recipients of these.
    Recipients,
    /// Messages that were found infected.
    Infected,
}

impl What {
    /// All, in the order of [`Numbers`].
    pub const ALL: [Self; 4] =
        [Self::Connections, Self::Messages, Self::Recipients, Self::Infected];

    /// The word in configuration, events and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Messages => "messages",
            Self::Recipients => "recipients",
            Self::Infected => "infected",
        }
    }

    fn limit(self, limits: &Outbound) -> Option<u32> {
        match self {
            Self::Connections => limits.connections,
            Self::Messages => limits.messages,
            Self::Recipients => limits.recipients,
            Self::Infected => limits.infected,
        }
        .map(NonZeroU32::get)
    }
}

/// A host has sent too much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// Of what.
    pub what: What,
    /// How much of it within a minute.
    pub count: u64,
    /// How much there may be.
    pub limit: u32,
    /// From when on it may send again.
    pub until: Instant,
}

/// What to do about something that a host does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ruling {
    /// Nothing.
    Fine,
    /// This took the host over a limit.
    Exceeds(Block),
    /// It was over one before.
    Blocked(Block),
}

/// Numbers of what is counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Numbers {
    /// SMTP connections.
    pub connections: u64,
    /// Messages.
    pub messages: u64,
    /// Recipients.
    pub recipients: u64,
    /// Infected messages.
    pub infected: u64,
}

/// A host and what it sends.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sender {
    /// Its address.
    pub host: IpAddr,
    /// `sending`, `quiet` (nothing within a minute), `exempt`, `blocked`, or `over` a limit that only alerts.
    pub state: String,
    /// Over which limit it is, if it is blocked.
    pub over: Option<What>,
    /// For how long it is blocked still, in seconds.
    pub blocked_for: Option<f64>,
    /// Within the last minute.
    pub minute: Numbers,
    /// Since it is known.
    pub total: Numbers,
    /// Seconds since it was last active.
    pub idle: f64,
}

/// The hosts.
#[derive(Debug)]
pub struct Table {
    hosts: HashMap<IpAddr, Host>,
    origin: Instant,
    max: usize,
}

#[derive(Debug)]
struct Host {
    windows: [Window; 4],
    totals: [u64; 4],
    last: Instant,
    block: Option<Block>,
}

impl Table {
    /// No host yet.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self::with_room(now, HOSTS_MAX)
    }

    fn with_room(now: Instant, max: usize) -> Self {
        Self { hosts: HashMap::new(), origin: now, max }
    }

    /// The host opens a connection.
    pub fn connection(&mut self, limits: &Outbound, host: IpAddr, now: Instant) -> Ruling {
        self.count(limits, host, now, &[(What::Connections, 1)])
    }

    /// The host has sent a message to its end.
    pub fn message(
        &mut self,
        limits: &Outbound,
        host: IpAddr,
        recipients: u32,
        now: Instant,
    ) -> Ruling {
        self.count(limits, host, now, &[(What::Messages, 1), (What::Recipients, recipients)])
    }

    /// The message was infected.
    pub fn infected(&mut self, limits: &Outbound, host: IpAddr, now: Instant) -> Ruling {
        self.count(limits, host, now, &[(What::Infected, 1)])
    }

    /// Lets a blocked host send again, with a clean slate. False: it is not blocked.
    pub fn unblock(&mut self, host: IpAddr, now: Instant) -> bool {
        let Some(known) = self.hosts.get_mut(&host.to_canonical()) else { return false };
        let blocked = known.block.take().is_some_and(|block| block.until > now);
        if blocked {
            known.windows = Default::default();
        }
        blocked
    }

    /// How many hosts are blocked.
    #[must_use]
    pub fn blocked(&self, now: Instant) -> usize {
        self.hosts.values().filter(|host| host.blocked_at(now).is_some()).count()
    }

    /// The hosts, blocked ones first, then by recipients and messages within the last minute, then in all.
    #[must_use]
    pub fn senders(&self, limits: &Outbound, now: Instant) -> Vec<Sender> {
        let tick = self.tick(now);
        let mut senders: Vec<Sender> = self
            .hosts
            .iter()
            .map(|(address, host)| {
                let minute = host.windows.each_ref().map(|window| window.sum(tick));
                let block = host.blocked_at(now);
                let state = if block.is_some() && limits.action == OutboundAction::Alert {
                    "over"
                } else if block.is_some() {
                    "blocked"
                } else if limits.is_exempt(*address) {
                    "exempt"
                } else if minute == [0; 4] {
                    "quiet"
                } else {
                    "sending"
                };
                Sender {
                    host: *address,
                    state: state.to_owned(),
                    over: block.map(|block| block.what),
                    blocked_for: block.map(|b| b.until.duration_since(now).as_secs_f64()),
                    minute: Numbers::from(minute),
                    total: Numbers::from(host.totals),
                    idle: now.saturating_duration_since(host.last).as_secs_f64(),
                }
            })
            .collect();
        senders.sort_by_key(|s| {
            let rank = |n: Numbers| (n.recipients, n.messages, n.connections);
            std::cmp::Reverse((s.over.is_some(), rank(s.minute), rank(s.total), s.host))
        });
        senders
    }

    fn tick(&self, now: Instant) -> u64 {
        window::tick(now.saturating_duration_since(self.origin))
    }

    fn count(
        &mut self,
        limits: &Outbound,
        address: IpAddr,
        now: Instant,
        counts: &[(What, u32)],
    ) -> Ruling {
        let address = address.to_canonical();
        let tick = self.tick(now);
        if !self.hosts.contains_key(&address) && !self.make_room(now) {
            return Ruling::Fine;
        }
        let host = self.hosts.entry(address).or_insert_with(|| Host {
            windows: Default::default(),
            totals: [0; 4],
            last: now,
            block: None,
        });
        host.last = now;
        for (what, n) in counts {
            let index = *what as usize;
            host.windows[index].add(tick, *n);
            host.totals[index] = host.totals[index].saturating_add(u64::from(*n));
        }
        if limits.is_exempt(address) {
            host.block = None;
            return Ruling::Fine;
        }
        if let Some(block) = host.blocked_at(now) {
            return Ruling::Blocked(block);
        }
        for (what, _) in counts {
            let count = host.windows[*what as usize].sum(tick);
            if let Some(limit) = what.limit(limits).filter(|limit| count > u64::from(*limit)) {
                let block = Block { what: *what, count, limit, until: now + limits.block };
                host.block = Some(block);
                return Ruling::Exceeds(block);
            }
        }
        Ruling::Fine
    }

    /// Whether one more host can be remembered: the quiet ones go first, then the one that was quiet for longest. Who is
    /// blocked stays.
    fn make_room(&mut self, now: Instant) -> bool {
        if self.hosts.len() < self.max {
            return true;
        }
        let quiet = |host: &Host| now.saturating_duration_since(host.last) > window::LENGTH;
        self.hosts.retain(|_, host| !quiet(host) || host.blocked_at(now).is_some());
        if self.hosts.len() < self.max {
            return true;
        }
        let free = self.hosts.iter().filter(|(_, host)| host.blocked_at(now).is_none());
        let Some(oldest) = free.min_by_key(|(_, host)| host.last).map(|(address, _)| *address)
        else {
            return false;
        };
        self.hosts.remove(&oldest);
        true
    }
}

impl Host {
    fn blocked_at(&self, now: Instant) -> Option<Block> {
        self.block.filter(|block| block.until > now)
    }
}

impl From<[u64; 4]> for Numbers {
    fn from([connections, messages, recipients, infected]: [u64; 4]) -> Self {
        Self { connections, messages, recipients, infected }
    }
}

/// How long a block lasts from now on.
#[must_use]
pub fn remaining(block: &Block, now: Instant) -> Duration {
    block.until.saturating_duration_since(now)
}

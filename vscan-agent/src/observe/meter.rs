//! The blind-spot meter: what came by, and which part of it nobody read, by protocol, direction, reason and peer.
//!
//! Sessions tell it of bytes that they relay unread, `gateway::uninspected` of what the kernel let pass. A flow's direction
//! is that from its client to its server. Bytes of the kernel's flows are those of packets, headers included.

use super::metrics::Maker;
use crate::config::{Direction, Protocol};
use prometheus::{IntCounter, IntCounterVec};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Peers that are remembered, by reason; of more the one with the fewest bytes is forgotten.
const PEERS_MAX: usize = 1024;

/// Peers that are told, those with the most bytes first.
const PEERS_TOLD: usize = 10;

/// Label of what was seen where neither protocol nor direction is known.
const UNKNOWN: &str = "unknown";

/// Why bytes were not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Blind {
    /// A TLS session that was relayed.
    Tls,
    /// An exempt network.
    Exempt,
    /// Opened while the agent was down or hung, with `on_agent_down = "open"`.
    AgentDown,
    /// Left to the firewall: no `[[access]]`, not published, or opened before the agent came.
    NotSteered,
    /// A file of a type or extension that passes unscanned.
    ExcludedType,
    /// A file or message that could not be read whole, and that `[[treat]]` lets pass all the same.
    Unscannable,
}

impl Blind {
    const ALL: [Self; 6] = [
        Self::Tls,
        Self::Exempt,
        Self::AgentDown,
        Self::NotSteered,
        Self::ExcludedType,
        Self::Unscannable,
    ];

    /// The word in metrics, events and listings.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tls => "tls",
            Self::Exempt => "exempt",
            Self::AgentDown => "agent_down",
            Self::NotSteered => "not_steered",
            Self::ExcludedType => "excluded_type",
            Self::Unscannable => "unscannable",
        }
    }

    /// Whether it is about single files and messages of a session, not about whole connections.
    const fn is_of_objects(self) -> bool {
        match self {
            Self::ExcludedType | Self::Unscannable => true,
            Self::Tls | Self::Exempt | Self::AgentDown | Self::NotSteered => false,
        }
    }
}

/// What was not read of one kind of traffic, for one reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unread {
    /// Why.
    pub reason: Blind,
    /// Whole connections.
    pub flows: u64,
    /// Single files and messages.
    pub objects: u64,
    /// Bytes.
    pub bytes: u64,
}

/// One kind of traffic, and what was not read of it, since the start of the gateway.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spot {
    /// Its protocol.
    pub protocol: Protocol,
    /// From client to server.
    pub direction: Direction,
    /// All connections that came by, read or not.
    pub flows: u64,
    /// All their bytes.
    pub bytes: u64,
    /// What was not read; reasons without anything are left out.
    pub unread: Vec<Unread>,
}

/// A peer of which something was not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlindPeer {
    /// The party outside; between two that are both inside or both outside, the server.
    pub peer: IpAddr,
    /// The protocol.
    pub protocol: Protocol,
    /// Why.
    pub reason: Blind,
    /// Connections, or files and messages.
    pub count: u64,
    /// Bytes.
    pub bytes: u64,
}

/// What the meter knows, for the status, the event log and the check.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlindSpots {
    /// By protocol and direction; kinds of traffic that did not come by are left out.
    pub spots: Vec<Spot>,
    /// The peers with the most bytes.
    pub peers: Vec<BlindPeer>,
}

impl BlindSpots {
    /// All connections, and those of them that were not read.
    #[must_use]
    pub fn flows(&self) -> (u64, u64) {
        self.sum(|spot| spot.flows, |unread| unread.flows)
    }

    /// All bytes, and those of them that were not read.
    #[must_use]
    pub fn bytes(&self) -> (u64, u64) {
        self.sum(|spot| spot.bytes, |unread| unread.bytes)
    }

    fn sum(&self, all: impl Fn(&Spot) -> u64, of: impl Fn(&Unread) -> u64) -> (u64, u64) {
        self.spots.iter().fold((0, 0), |(seen, unread), spot| {
            (seen + all(spot), unread + spot.unread.iter().map(&of).sum::<u64>())
        })
    }
}

#[derive(Debug)]
struct Counters {
    flows: IntCounter,
    objects: IntCounter,
    bytes: IntCounter,
}

/// One kind of traffic.
#[derive(Debug)]
struct Kind {
    flows: IntCounter,
    bytes: IntCounter,
    unread: [Counters; Blind::ALL.len()],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct PeerKey {
    peer: IpAddr,
    protocol: Protocol,
    reason: Blind,
}

#[derive(Clone, Copy, Debug, Default)]
struct Told {
    count: u64,
    bytes: u64,
}

/// Whose traffic it is.
#[derive(Clone, Copy, Debug)]
pub struct Whose {
    /// The protocol.
    pub protocol: Protocol,
    /// From client to server.
    pub direction: Direction,
    /// The client.
    pub client: IpAddr,
    /// The server, behind any port forward.
    pub server: IpAddr,
}

impl Whose {
    fn peer(&self) -> IpAddr {
        match self.direction {
            Direction::Inbound => self.client,
            Direction::Outbound | Direction::Internal | Direction::Transit => self.server,
        }
        .to_canonical()
    }
}

/// The meter.
#[derive(Debug)]
pub struct Meter {
    kinds: Vec<Kind>,
    /// Whole connections of which only the reason is known.
    unplaced: [IntCounter; Blind::ALL.len()],
    peers: Mutex<HashMap<PeerKey, Told>>,
}

impl Meter {
    pub(super) fn new(m: &Maker) -> Self {
        let kind = ["protocol", "direction"];
        let why = ["protocol", "direction", "reason"];
        let flows = m.counters(
            "vscan_seen_flows_total",
            "Connections that came by, inspected or not. Direction: from client to server.",
            &kind,
        );
        let bytes = m.counters(
            "vscan_seen_bytes_total",
            "Bytes of the connections that came by, inspected or not.",
            &kind,
        );
        let unread_flows = m.counters(
            "vscan_flows_uninspected_total",
            "Connections that passed uninspected as a whole, by reason.",
            &why,
        );
        let unread_objects = m.counters(
            "vscan_objects_uninspected_total",
            "Files and messages of inspected connections that passed unread or not read whole, by reason.",
            &why,
        );
        let unread_bytes = m.counters(
            "vscan_bytes_uninspected_total",
            "Bytes that passed uninspected, by reason.",
            &why,
        );
        let mut kinds = Vec::new();
        for protocol in Protocol::ALL {
            for direction in Direction::ALL {
                let (p, d) = (protocol.as_str(), direction.as_str());
                kinds.push(Kind {
                    flows: flows.with_label_values(&[p, d]),
                    bytes: bytes.with_label_values(&[p, d]),
                    unread: Blind::ALL.map(|reason| {
                        let of =
                            |all: &IntCounterVec| all.with_label_values(&[p, d, reason.as_str()]);
                        if reason.is_of_objects() {
                            Counters {
                                flows: never(),
                                objects: of(&unread_objects),
                                bytes: of(&unread_bytes),
                            }
                        } else {
                            Counters {
                                flows: of(&unread_flows),
                                objects: never(),
                                bytes: of(&unread_bytes),
                            }
                        }
                    }),
                });
            }
        }
        let unplaced = Blind::ALL.map(|reason| {
            if reason == Blind::Exempt || reason == Blind::AgentDown {
                unread_flows.with_label_values(&[UNKNOWN, UNKNOWN, reason.as_str()])
            } else {
                never()
            }
        });
        Self { kinds, unplaced, peers: Mutex::default() }
    }

    fn kind(&self, protocol: Protocol, direction: Direction) -> &Kind {
        &self.kinds[protocol as usize * Direction::ALL.len() + direction as usize]
    }

    fn unread(&self, whose: &Whose, reason: Blind) -> &Counters {
        &self.kind(whose.protocol, whose.direction).unread[reason as usize]
    }

    /// A connection came to the gateway.
    pub(super) fn session(&self, protocol: Protocol, direction: Direction) {
        self.kind(protocol, direction).flows.inc();
    }

    /// A session received bytes, read or not.
    pub(super) fn bytes(&self, protocol: Protocol, direction: Direction, bytes: u64) {
        self.kind(protocol, direction).bytes.inc_by(bytes);
    }

    /// A session goes on unread from now on; its peer is remembered when it ends.
    pub(super) fn session_unread(&self, whose: &Whose, reason: Blind) {
        self.unread(whose, reason).flows.inc();
    }

    /// So many bytes of a session, already counted as having come by, were not read.
    pub(super) fn bytes_unread(&self, whose: &Whose, reason: Blind, bytes: u64) {
        self.unread(whose, reason).bytes.inc_by(bytes);
    }

    /// A session that went on unread has ended, with so many bytes.
    pub(super) fn session_ended(&self, whose: &Whose, reason: Blind, bytes: u64) {
        self.remember(whose, reason, 1, bytes);
    }

    /// A file or message of a session was not read, or not read whole.
    pub(super) fn object_unread(&self, whose: &Whose, reason: Blind, bytes: u64) {
        let unread = self.unread(whose, reason);
        unread.objects.inc();
        unread.bytes.inc_by(bytes);
        self.remember(whose, reason, 1, bytes);
    }

    /// Connections passed without coming to the gateway.
    pub fn passed(&self, whose: &Whose, reason: Blind, flows: u64) {
        self.kind(whose.protocol, whose.direction).flows.inc_by(flows);
        self.unread(whose, reason).flows.inc_by(flows);
        self.remember(whose, reason, flows, 0);
    }

    /// Bytes passed without coming to the gateway.
    pub fn bytes_passed(&self, whose: &Whose, reason: Blind, bytes: u64) {
        self.kind(whose.protocol, whose.direction).bytes.inc_by(bytes);
        self.unread(whose, reason).bytes.inc_by(bytes);
        self.remember(whose, reason, 0, bytes);
    }

    /// Connections passed without coming to the gateway, nobody knows whose.
    pub fn passed_unplaced(&self, reason: Blind, flows: u64) {
        self.unplaced[reason as usize].inc_by(flows);
    }

    /// Connections that passed uninspected as a whole, by reason.
    pub(super) fn flows_by_reason(&self) -> impl Iterator<Item = (Blind, u64)> {
        Blind::ALL.into_iter().map(|reason| {
            let placed = self.kinds.iter().map(|kind| kind.unread[reason as usize].flows.get());
            (reason, placed.sum::<u64>() + self.unplaced[reason as usize].get())
        })
    }

    /// What is known.
    #[must_use]
    pub fn spots(&self) -> BlindSpots {
        let mut spots = Vec::new();
        for &protocol in Protocol::ALL {
            for &direction in Direction::ALL {
                let kind = self.kind(protocol, direction);
                let of = |reason: Blind| {
                    let unread = &kind.unread[reason as usize];
                    Unread {
                        reason,
                        flows: unread.flows.get(),
                        objects: unread.objects.get(),
                        bytes: unread.bytes.get(),
                    }
                };
                let unread: Vec<Unread> = Blind::ALL
                    .into_iter()
                    .map(of)
                    .filter(|u| u.flows + u.objects + u.bytes > 0)
                    .collect();
                let (flows, bytes) = (kind.flows.get(), kind.bytes.get());
                if flows + bytes > 0 || !unread.is_empty() {
                    spots.push(Spot { protocol, direction, flows, bytes, unread });
                }
            }
        }
        BlindSpots { spots, peers: self.peers() }
    }

    fn peers(&self) -> Vec<BlindPeer> {
        let mut peers: Vec<BlindPeer> = self
            .remembered()
            .iter()
            .map(|(key, told)| BlindPeer {
                peer: key.peer,
                protocol: key.protocol,
                reason: key.reason,
                count: told.count,
                bytes: told.bytes,
            })
            .collect();
        peers.sort_by_key(|p| {
            (std::cmp::Reverse((p.bytes, p.count)), p.peer, p.protocol.as_str(), p.reason)
        });
        peers.truncate(PEERS_TOLD);
        peers
    }

    fn remembered(&self) -> MutexGuard<'_, HashMap<PeerKey, Told>> {
        // sums stay right when a holder panics
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember(&self, whose: &Whose, reason: Blind, count: u64, bytes: u64) {
        let key = PeerKey { peer: whose.peer(), protocol: whose.protocol, reason };
        let mut peers = self.remembered();
        if peers.len() >= PEERS_MAX && !peers.contains_key(&key) {
            let least = peers.iter().min_by_key(|(_, told)| (told.bytes, told.count));
            if let Some(least) = least.map(|(key, _)| *key) {
                peers.remove(&least);
            }
        }
        let told = peers.entry(key).or_default();
        told.count += count;
        told.bytes += bytes;
    }
}

/// A counter of what does not exist for a reason: never counted, never shown.
#[expect(clippy::expect_used, reason = "a literal name")]
fn never() -> IntCounter {
    IntCounter::new("vscan_never", "Never shown.").expect("a valid name")
}

#[cfg(test)]
mod tests {
    use super::super::metrics::Metrics;
    use super::*;

    fn whose(direction: Direction, client: &str, server: &str) -> Whose {
        Whose {
            protocol: Protocol::Ftp,
            direction,
            client: client.parse().unwrap(),
            server: server.parse().unwrap(),
        }
    }

    #[test]
    fn shares_are_of_all_that_came_by() {
        let metrics = Metrics::new();
        let meter = &metrics.meter;
        assert_eq!(meter.spots(), BlindSpots::default());
        let out = whose(Direction::Outbound, "10.0.0.1", "192.0.2.1");
        meter.session(Protocol::Ftp, Direction::Outbound);
        meter.bytes(Protocol::Ftp, Direction::Outbound, 1000);
        meter.session_unread(&out, Blind::Tls);
        meter.bytes_unread(&out, Blind::Tls, 600);
        meter.session_ended(&out, Blind::Tls, 600);
        meter.passed(&out, Blind::Exempt, 2);
        meter.bytes_passed(&out, Blind::Exempt, 5000);
        let inbound = whose(Direction::Inbound, "198.51.100.7", "10.0.0.9");
        meter.session(Protocol::Ftp, Direction::Inbound);
        meter.bytes(Protocol::Ftp, Direction::Inbound, 300);
        meter.object_unread(&inbound, Blind::ExcludedType, 200);
        let spots = meter.spots();
        assert_eq!((spots.flows(), spots.bytes()), ((4, 3), (6300, 5800)));
        assert_eq!(spots.spots.len(), 2);
        let unread = |spot: &Spot| {
            spot.unread.iter().map(|u| (u.reason, u.flows, u.objects, u.bytes)).collect::<Vec<_>>()
        };
        assert_eq!(unread(&spots.spots[0]), [(Blind::ExcludedType, 0, 1, 200)]);
        assert_eq!(unread(&spots.spots[1]), [(Blind::Tls, 1, 0, 600), (Blind::Exempt, 2, 0, 5000)]);
        let peers: Vec<_> =
            spots.peers.iter().map(|p| (p.peer.to_string(), p.reason, p.count, p.bytes)).collect();
        assert_eq!(
            peers,
            [
                ("192.0.2.1".to_owned(), Blind::Exempt, 2, 5000),
                ("192.0.2.1".to_owned(), Blind::Tls, 1, 600),
                ("198.51.100.7".to_owned(), Blind::ExcludedType, 1, 200),
            ]
        );
        let text = String::from_utf8(metrics.render()).unwrap();
        let line = "vscan_bytes_uninspected_total{direction=\"outbound\",protocol=\"ftp\",reason=\"tls\"} 600";
        assert!(text.contains(line), "{text}");
        assert!(!text.contains("vscan_never"), "{text}");
    }

    #[test]
    fn peers_are_bounded_and_the_largest_stay() {
        let metrics = Metrics::new();
        let meter = &metrics.meter;
        let large = whose(Direction::Outbound, "10.0.0.1", "192.0.2.1");
        meter.bytes_passed(&large, Blind::Exempt, 1 << 20);
        for n in 0..2 * PEERS_MAX {
            let server = format!("10.9.{}.{}", n / 256, n % 256);
            meter.bytes_passed(&whose(Direction::Outbound, "10.0.0.1", &server), Blind::Exempt, 1);
        }
        assert_eq!(meter.remembered().len(), PEERS_MAX);
        assert_eq!(meter.spots().peers[0].bytes, 1 << 20);
        assert_eq!(meter.spots().peers.len(), PEERS_TOLD);
    }
}

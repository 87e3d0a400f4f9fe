//! What the gateway sees and may do through the map descriptors that the supervisor hands over: it has neither CAP_BPF nor
//! CAP_NET_ADMIN, and needs none for maps that it holds (Linux 5.19).

use std::{
    collections::HashMap,
    net::SocketAddr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use aya::maps::{Array, HashMap as BpfMap, Map, MapData, PerCpuArray, RingBuf};
use serde::{Deserialize, Serialize};
use vscan_common::{Counter, Event, Flow, FlowKey, event, flow, names};

use super::{bpf::adopt, monotonic_ns};

/// The maps cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    /// A descriptor is missing: agent and kernel state are of different builds.
    #[error("the supervisor did not hand over the map {0}")]
    Missing(&'static str),
    /// The kernel refused.
    #[error("BPF maps: {0}")]
    Map(#[from] aya::maps::MapError),
    /// Nothing that could be killed.
    #[error("no such flow")]
    NoFlow,
}

/// One direction's packets and bytes, headers included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

/// Why a flow passes without the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Why {
    /// An exempt network.
    Exempt,
    /// It was opened while the agent was down or hung.
    AgentDown,
    /// nftables left it to the firewall: no `[[access]]`, not published, or opened before the agent came.
    NotSteered,
}

/// How far a flow is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// A SYN was seen, no answer where one would be seen.
    Opening,
    /// Data flows.
    Open,
    /// An end was seen.
    Closed,
}

/// A flow as the BPF programs see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// The client.
    pub client: SocketAddr,
    /// The server as the client dialled it.
    pub server: SocketAddr,
    /// The server that answers: another one behind DNAT. None until it answered.
    pub real_server: Option<SocketAddr>,
    /// What the client sent.
    pub from_client: Traffic,
    /// What the server sent.
    pub from_server: Traffic,
    /// Time since the first packet.
    pub age: Duration,
    /// Time since the last packet.
    pub idle: Duration,
    /// Why it passes, unless it is intercepted.
    pub why: Why,
    /// How far it is.
    pub phase: Phase,
    /// Whether it was reset on request.
    pub killed: bool,
}

/// What became of a connection that does not reach the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// Dropped: a denied network.
    Denied,
    /// Dropped: over the rate limit.
    Limited,
    /// Passes uninspected: an exempt network.
    Exempt,
    /// Opened while the agent is down or hangs.
    AgentDown,
}

/// An event of the BPF programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Happened {
    /// What.
    pub what: What,
    /// Where the packet came from.
    pub from: SocketAddr,
    /// Where it went.
    pub to: SocketAddr,
}

/// The counters of the BPF programs, since the maps were made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters([u64; Counter::ALL.len()]);

impl Counters {
    /// The value of one.
    #[must_use]
    pub const fn of(&self, counter: Counter) -> u64 {
        self.0[counter as usize]
    }

    /// All, with their names.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Counter::ALL.iter().zip(self.0).map(|((_, name), value)| (*name, value))
    }
}

/// The gateway's side of the BPF maps.
pub struct View {
    flows: BpfMap<MapData, FlowKey, Flow>,
    kill: Mutex<BpfMap<MapData, FlowKey, u8>>,
    counters: PerCpuArray<MapData, u64>,
    heartbeat: Array<MapData, u64>,
    events: Mutex<RingBuf<MapData>>,
    events_fd: OwnedFd,
}

impl std::fmt::Debug for View {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("View").finish_non_exhaustive()
    }
}

impl View {
    /// From the names and descriptors of [`Kernel::gateway_descriptors`](super::Kernel::gateway_descriptors); none when
    /// there are none, which means that nftables steers alone.
    ///
    /// # Errors
    /// The descriptors are not those maps.
    pub fn new<N: AsRef<str>>(descriptors: Vec<(N, OwnedFd)>) -> Result<Option<Self>, ViewError> {
        if descriptors.is_empty() {
            return Ok(None);
        }
        let mut maps: HashMap<String, OwnedFd> =
            descriptors.into_iter().map(|(name, fd)| (name.as_ref().to_owned(), fd)).collect();
        let mut take = |name: &'static str| maps.remove(name).ok_or(ViewError::Missing(name));
        let events = take(names::EVENTS)?;
        let events_fd = events.try_clone().map_err(aya::maps::MapError::IoError)?;
        let map = |fd: OwnedFd| -> Result<Map, ViewError> { Ok(adopt(fd)?) };
        Ok(Some(Self {
            flows: map(take(names::FLOWS)?)?.try_into()?,
            kill: Mutex::new(map(take(names::KILL)?)?.try_into()?),
            counters: map(take(names::COUNTERS)?)?.try_into()?,
            heartbeat: map(take(names::HEARTBEAT)?)?.try_into()?,
            events: Mutex::new(map(events)?.try_into()?),
            events_fd,
        }))
    }

    /// All flows to our ports that the programs remember, whoever handles them: the two directions joined, across NAT too.
    #[must_use]
    pub fn flows(&self) -> Vec<Seen> {
        // a walk over a map that changes may see an element twice or not at all; gone ones are skipped
        let all: HashMap<FlowKey, Flow> = self.flows.iter().filter_map(Result::ok).collect();
        join(&all, monotonic_ns())
    }

    /// The flows that pass without the gateway: `is_ours` says of a client and the server it dialled whether the gateway
    /// has a session for them.
    pub fn uninspected(&self, is_ours: impl Fn(SocketAddr, SocketAddr) -> bool) -> Vec<Seen> {
        let mut flows = self.flows();
        flows.retain(|f| f.phase != Phase::Closed && !is_ours(f.client, f.server));
        flows
    }

    /// Has both directions of a flow reset with their next packet.
    ///
    /// # Errors
    /// [`ViewError::NoFlow`] if the programs do not know it.
    pub fn kill(&self, client: SocketAddr, server: SocketAddr) -> Result<(), ViewError> {
        let key = FlowKey::new(client, server);
        let all: HashMap<FlowKey, Flow> = self.flows.iter().filter_map(Result::ok).collect();
        let known = all.get(&key).ok_or(ViewError::NoFlow)?;
        let reply =
            reply_of(&all, &answers(&all), &key, known).map_or(key.reversed(), |(key, _)| key);
        let mut kill = self.kill.lock().unwrap_or_else(PoisonError::into_inner);
        kill.insert(key, 0, 0)?;
        kill.insert(reply, 0, 0)?;
        Ok(())
    }

    /// Lets a killed flow's addresses and ports be used again; done by the agent when it is gone.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn forget_killed(&self) -> Result<(), ViewError> {
        let mut kill = self.kill.lock().unwrap_or_else(PoisonError::into_inner);
        let keys: Vec<FlowKey> = kill.keys().filter_map(Result::ok).collect();
        let now = monotonic_ns();
        for key in keys {
            let seen = self.flows.get(&key, 0).map_or(0, |f| f.last_ns);
            if now.saturating_sub(seen) > KILL_FOR.as_nanos() as u64 {
                // another process may have removed it
                let _ = kill.remove(&key);
            }
        }
        Ok(())
    }

    /// What happened since the last call, in order. Readable (poll(2)) when there is something.
    pub fn events(&self) -> Vec<Happened> {
        let mut ring = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        let mut events = Vec::new();
        while let Some(item) = ring.next() {
            if let Some(event) = event_of(&item) {
                events.push(event);
            }
        }
        events
    }

    /// The counters, summed over the CPUs.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn counters(&self) -> Result<Counters, ViewError> {
        let mut sums = Counters::default();
        for (index, sum) in (0..).zip(&mut sums.0) {
            *sum = self.counters.get(&index, 0)?.iter().sum();
        }
        Ok(sums)
    }

    /// Age of the last heartbeat; none while the agent counts as down.
    #[must_use]
    pub fn heartbeat_age(&self) -> Option<Duration> {
        match self.heartbeat.get(&0, 0) {
            Ok(beat) if beat != 0 => {
                Some(Duration::from_nanos(monotonic_ns().saturating_sub(beat)))
            }
            Ok(_) | Err(_) => None,
        }
    }
}

/// How long after its last packet a killed flow stays killed: longer than TCP's first retransmissions.
const KILL_FOR: Duration = Duration::from_secs(120);

impl AsFd for View {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.events_fd.as_fd()
    }
}

/// The answering directions by the number that their SYN-ACK acknowledged.
type Answers<'a> = HashMap<u32, Vec<(FlowKey, &'a Flow)>>;

fn answers(all: &HashMap<FlowKey, Flow>) -> Answers<'_> {
    let mut answers: Answers<'_> = HashMap::new();
    for (key, flow) in all.iter().filter(|(_, flow)| flow.flags & flow::SYN_ACK != 0) {
        answers.entry(flow.isn).or_default().push((*key, flow));
    }
    answers
}

/// The direction that answers `key`: the reverse one, or behind NAT the one whose SYN-ACK acknowledged the same number.
fn reply_of<'a>(
    all: &'a HashMap<FlowKey, Flow>,
    answers: &Answers<'a>,
    key: &FlowKey,
    known: &Flow,
) -> Option<(FlowKey, &'a Flow)> {
    let reverse = key.reversed();
    if let Some(flow) = all.get(&reverse) {
        return Some((reverse, flow));
    }
    if known.isn == 0 {
        return None;
    }
    // masquerade keeps the server, DNAT the client, and a random number agrees by chance once in 2^32
    let fits = |k: &FlowKey| k.src == key.dst || k.dst == key.src;
    answers.get(&known.isn)?.iter().copied().find(|(k, _)| fits(k))
}

fn join(all: &HashMap<FlowKey, Flow>, now: u64) -> Vec<Seen> {
    let since = |then: u64| Duration::from_nanos(now.saturating_sub(then));
    let answers = answers(all);
    all.iter()
        // only the opener's direction begins a flow: replies to our own upstream legs have none
        .filter(|(_, f)| f.flags & flow::SYN != 0)
        .map(|(key, from_client)| {
            let reply = reply_of(all, &answers, key, from_client);
            let empty = Flow::default();
            let from_server = reply.map_or(&empty, |(_, f)| f);
            let flags = from_client.flags | from_server.flags;
            Seen {
                client: key.from(),
                server: key.to(),
                real_server: reply.map(|(k, _)| k.from()),
                from_client: Traffic { packets: from_client.packets, bytes: from_client.bytes },
                from_server: Traffic { packets: from_server.packets, bytes: from_server.bytes },
                age: since(from_client.first_ns),
                idle: since(from_client.last_ns.max(from_server.last_ns)),
                why: match flags {
                    f if f & flow::EXEMPT != 0 => Why::Exempt,
                    f if f & flow::DOWN != 0 => Why::AgentDown,
                    _ => Why::NotSteered,
                },
                phase: match flags {
                    f if f & (flow::FIN | flow::RST) != 0 => Phase::Closed,
                    // an ACK from the client is a second packet that is no SYN sent again
                    f if f & flow::SYN_ACK != 0 => Phase::Open,
                    _ => Phase::Opening,
                },
                killed: flags & flow::KILLED != 0,
            }
        })
        .collect()
}

fn event_of(bytes: &[u8]) -> Option<Happened> {
    let word = |at: usize| bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
    if bytes.len() != size_of::<Event>() {
        return None;
    }
    let address = |at: usize| {
        Some(vscan_common::Address([word(at)?, word(at + 4)?, word(at + 8)?, word(at + 12)?]))
    };
    let port = |at: usize| bytes.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes);
    // the layout of Event: the key, then the kind
    let key = FlowKey { src: address(0)?, dst: address(16)?, sport: port(32)?, dport: port(34)? };
    let what = match word(36)? {
        event::DENIED => What::Denied,
        event::LIMITED => What::Limited,
        event::EXEMPT => What::Exempt,
        event::DOWN => What::AgentDown,
        _ => return None,
    };
    Some(Happened { what, from: key.from(), to: key.to() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(flags: u32, isn: u32, bytes: u64) -> Flow {
        Flow { flags, isn, bytes, packets: 1, first_ns: 10, last_ns: 20, ..Flow::default() }
    }

    fn key(from: &str, to: &str) -> FlowKey {
        FlowKey::new(from.parse().unwrap(), to.parse().unwrap())
    }

    #[test]
    fn directions_join_across_nat() {
        let mut all = HashMap::new();
        // masqueraded: the server answers the gateway's outside address
        all.insert(key("192.168.0.2:40000", "198.51.100.7:21"), flow(flow::SYN, 77, 100));
        all.insert(key("198.51.100.7:21", "203.0.113.1:1025"), flow(flow::SYN_ACK, 77, 900));
        // an upstream leg of the gateway: no opener's direction comes in
        all.insert(key("198.51.100.7:21", "192.168.0.2:50000"), flow(flow::SYN_ACK, 78, 1));
        let seen = join(&all, 30);
        assert_eq!(seen.len(), 1);
        assert_eq!((seen[0].from_client.bytes, seen[0].from_server.bytes), (100, 900));
        assert_eq!(seen[0].phase, Phase::Open);
        assert_eq!(seen[0].real_server, Some("198.51.100.7:21".parse().unwrap()));
    }

    #[test]
    fn a_dnated_server_is_found_and_named() {
        let mut all = HashMap::new();
        all.insert(key("198.51.100.9:999", "203.0.113.1:25"), flow(flow::SYN | flow::EXEMPT, 5, 1));
        all.insert(key("192.168.0.9:25", "198.51.100.9:999"), flow(flow::SYN_ACK, 5, 2));
        let seen = join(&all, 30);
        assert_eq!(seen[0].real_server, Some("192.168.0.9:25".parse().unwrap()));
        assert_eq!(seen[0].why, Why::Exempt);
    }

    #[test]
    fn events_are_read_by_their_layout() {
        let mut bytes = Vec::new();
        let k = key("192.0.2.1:40000", "[2001:db8::1]:21");
        for word in k.src.0.into_iter().chain(k.dst.0) {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend(k.sport.to_ne_bytes());
        bytes.extend(k.dport.to_ne_bytes());
        bytes.extend(event::LIMITED.to_ne_bytes());
        let happened = event_of(&bytes).unwrap();
        assert_eq!((happened.what, happened.from, happened.to), (What::Limited, k.from(), k.to()));
        assert_eq!(event_of(&bytes[..36]), None);
    }
}

//! What the BPF programs and the agent share: map keys and values, ring-buffer events.
//!
//! Nothing here allocates, and every type is `repr(C)` without padding, so that both sides read the same bytes.
//! How packets become these values is `vscan-ebpf`'s business; what they mean to a user, the agent's.
#![no_std]

#[cfg(feature = "user")]
mod user;

/// Names of the maps and programs in the BPF object.
pub mod names {
    /// Array of one [`Settings`](super::Settings).
    pub const SETTINGS: &str = "SETTINGS";
    /// Array of one `u64`: the last beat, in ns of `CLOCK_MONOTONIC` (`bpf_ktime_get_ns`); 0: down.
    pub const HEARTBEAT: &str = "HEARTBEAT";
    /// Longest-prefix trie: [`Address`](super::Address) to flags [`net`](super::net).
    pub const NETS: &str = "NETS";
    /// LRU hash: [`FlowKey`](super::FlowKey) to [`Flow`](super::Flow).
    pub const FLOWS: &str = "FLOWS";
    /// LRU hash: [`FlowKey`](super::FlowKey) of flows to reset, to a `u8` without meaning.
    pub const KILL: &str = "KILL";
    /// LRU hash: client [`Address`](super::Address) to a `u64`, the theoretical arrival time in ns.
    pub const RATE: &str = "RATE";
    /// Ring buffer of [`Event`](super::Event).
    pub const EVENTS: &str = "EVENTS";
    /// Per-CPU array of `u64`, indexed by [`Counter`](super::Counter).
    pub const COUNTERS: &str = "COUNTERS";
    /// The maps that are pinned and that both sides use.
    pub const PINNED: [&str; 8] = [SETTINGS, HEARTBEAT, NETS, FLOWS, KILL, RATE, EVENTS, COUNTERS];
    /// The program for devices whose packets begin with an Ethernet header.
    pub const PROGRAM_L2: &str = "vscan_l2";
    /// The program for devices whose packets begin with the IP header.
    pub const PROGRAM_L3: &str = "vscan_l3";
}

/// An IP address in network byte order; IPv4 as `::ffff:a.b.c.d` (RFC 4291 2.5.5.2).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Address(pub [u32; 4]);

impl Address {
    /// Bits that stand before an IPv4 prefix in its mapped form.
    pub const V4_PREFIX: u32 = 96;

    /// The mapped form of an IPv4 address, whose four bytes are in network order in memory.
    #[inline(always)]
    #[must_use]
    pub const fn v4(raw: u32) -> Self {
        Self([0, 0, 0xffff_u32.to_be(), raw])
    }
}

/// One direction of a TCP connection, as it is on the wire where it enters: before any NAT of ours.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// Where packets come from.
    pub src: Address,
    /// Where they go.
    pub dst: Address,
    /// Source port.
    pub sport: u16,
    /// Destination port.
    pub dport: u16,
}

impl FlowKey {
    /// The other direction, where no NAT stands between.
    #[must_use]
    pub const fn reversed(self) -> Self {
        Self { src: self.dst, dst: self.src, sport: self.dport, dport: self.sport }
    }
}

/// What one direction of a flow did so far.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// Packets, segments of aggregated ones each.
    pub packets: u64,
    /// Bytes, headers of all layers included.
    pub bytes: u64,
    /// When the first came, ns of `CLOCK_MONOTONIC`.
    pub first_ns: u64,
    /// When the last came, ns of `CLOCK_MONOTONIC`.
    pub last_ns: u64,
    /// The sequence number of the opener's SYN: from the SYN, or the SYN-ACK's acknowledgement - 1. NAT leaves it
    /// alone, so it joins the two directions where addresses differ. 0 when neither was seen.
    pub isn: u32,
    /// Where the flow enters.
    pub ifindex: u32,
    /// [`flow`] flags.
    pub flags: u32,
    /// Always 0.
    pub reserved: u32,
}

/// Flags of [`Flow`].
pub mod flow {
    /// A SYN without ACK was seen: this is the opener's direction.
    pub const SYN: u32 = 1;
    /// A SYN with ACK was seen: this is the server's direction.
    pub const SYN_ACK: u32 = 1 << 1;
    /// A FIN was seen.
    pub const FIN: u32 = 1 << 2;
    /// A RST was seen.
    pub const RST: u32 = 1 << 3;
    /// Passes uninspected: an exempt network.
    pub const EXEMPT: u32 = 1 << 4;
    /// Opened while the agent was down or hung.
    pub const DOWN: u32 = 1 << 5;
    /// Was reset on request.
    pub const KILLED: u32 = 1 << 6;
}

/// Flags of networks; the value of a longer prefix contains the flags of all that cover it.
pub mod net {
    /// Clients whose connections to our ports are dropped.
    pub const DENY: u32 = 1;
    /// Clients or servers whose connections pass uninspected.
    pub const EXEMPT: u32 = 1 << 1;
}

/// What the programs go by.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// A heartbeat older than this is none, in ns.
    pub ttl_ns: u64,
    /// Rate limit: ns that one new connection takes of a client's share; 0: no limit.
    pub rate_ns: u64,
    /// Rate limit: how far ahead of its share a client may be, in ns.
    pub burst_ns: u64,
    /// The mark bits that are ours.
    pub mask: u32,
    /// The mark of a connection that passes uninspected.
    pub bypass: u32,
    /// The mark of a connection that comes while the agent is down.
    pub down: u32,
    /// The mark of a packet whose connection is to be reset.
    pub reset: u32,
    /// Bit per TCP port that is ours: bit `p % 8` of byte `p / 8`.
    pub ports: [u8; PORT_BYTES],
}

/// Bytes of a bit for every port.
pub const PORT_BYTES: usize = 65536 / 8;

impl Settings {
    /// Settings that touch nothing: no mark, no port.
    pub const NONE: Self = Self {
        ttl_ns: 0,
        rate_ns: 0,
        burst_ns: 0,
        mask: 0,
        bypass: 0,
        down: 0,
        reset: 0,
        ports: [0; PORT_BYTES],
    };

    /// Whether a port is one of ours.
    #[inline(always)]
    #[must_use]
    pub const fn is_ours(&self, port: u16) -> bool {
        self.ports[(port >> 3) as usize] & (1 << (port & 7)) != 0
    }

    /// Makes a port one of ours.
    pub const fn add_port(&mut self, port: u16) {
        self.ports[(port >> 3) as usize] |= 1 << (port & 7);
    }
}

/// Index into the counters.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counter {
    /// Packets from or to our ports.
    Packets,
    /// Their bytes.
    Bytes,
    /// New connections to our ports, SYNs sent again included.
    Syns,
    /// SYNs dropped: a denied network.
    Denied,
    /// SYNs dropped: over the rate limit.
    Limited,
    /// SYNs marked to pass uninspected: an exempt network.
    Exempt,
    /// SYNs marked because the agent is down or hangs.
    Down,
    /// Packets marked to be reset.
    Killed,
    /// Fragments, left to nftables.
    Fragments,
    /// Packets whose headers were too many or cut off, left to nftables.
    Unreadable,
    /// Events that found the ring buffer full.
    EventsLost,
}

impl Counter {
    /// All counters with their names, in the order of their indices.
    pub const ALL: [(Self, &'static str); 11] = [
        (Self::Packets, "packets"),
        (Self::Bytes, "bytes"),
        (Self::Syns, "syns"),
        (Self::Denied, "denied"),
        (Self::Limited, "limited"),
        (Self::Exempt, "exempt"),
        (Self::Down, "down"),
        (Self::Killed, "killed"),
        (Self::Fragments, "fragments"),
        (Self::Unreadable, "unreadable"),
        (Self::EventsLost, "events_lost"),
    ];
}

/// A SYN that does not reach the agent. What does, the agent sees itself: no more is reported, for each event wakes it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// The direction.
    pub key: FlowKey,
    /// One of [`event`].
    pub kind: u32,
}

/// Kinds of [`Event`].
pub mod event {
    /// A SYN was dropped: a denied network.
    pub const DENIED: u32 = 1;
    /// A SYN was dropped: over the rate limit.
    pub const LIMITED: u32 = 2;
    /// A SYN was marked to pass uninspected: an exempt network.
    pub const EXEMPT: u32 = 3;
    /// A SYN was marked because the agent is down or hangs.
    pub const DOWN: u32 = 4;
}

// the layouts are an interface between two compilers: no padding, the same everywhere
const _: () = assert!(size_of::<FlowKey>() == 36);
const _: () = assert!(size_of::<Flow>() == 48);
const _: () = assert!(size_of::<Event>() == 40);
const _: () = assert!(size_of::<Settings>() == 40 + PORT_BYTES);

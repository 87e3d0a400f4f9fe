//! From the bytes of a packet to the TCP segment in it. Reads only; what it means is decided elsewhere.

use vscan_common::{Address, FlowKey};

/// A packet's bytes, as far as they can be read.
pub trait Packet {
    /// A value of a plain integer type at this offset; none past the end.
    fn load<T: Plain>(&self, at: usize) -> Option<T>;
}

/// Integers, and arrays of them: any bytes are a value.
///
/// # Safety
/// Every bit pattern of the type's size is a valid value of it.
pub unsafe trait Plain: Copy {}
// SAFETY: an integer.
unsafe impl Plain for u8 {}
// SAFETY: an integer.
unsafe impl Plain for u16 {}
// SAFETY: an integer.
unsafe impl Plain for u32 {}
// SAFETY: an array of integers.
unsafe impl Plain for [u32; 4] {}

/// Where the packet's bytes begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// With an Ethernet header.
    Ethernet,
    /// With the IP header: WireGuard, ppp, tun, tunnels.
    Ip,
}

/// What is in a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// A TCP header at `tcp`, over the IP header at `ip`.
    Tcp {
        /// Whether it is IPv6.
        v6: bool,
        /// Offset of the IP header.
        ip: usize,
        /// Offset of the TCP header.
        tcp: usize,
    },
    /// Not TCP over IP.
    Other,
    /// A fragment: only the first of them has ports, so nftables decides after reassembly.
    Fragment,
    /// The bytes end before the TCP header does.
    Short,
    /// More headers than are walked.
    Deep,
}

const ETH_LEN: usize = 14;
const ETH_TYPE: usize = 12;
const VLAN_LEN: usize = 4;
/// Tags that are walked: the kernel takes the outer one off before tc sees the packet, QinQ leaves one, and an odd
/// driver both.
const VLAN_MAX: usize = 2;
const ETH_P_IP: u16 = 0x0800;
const ETH_P_IPV6: u16 = 0x86dd;
const ETH_P_8021Q: u16 = 0x8100;
const ETH_P_8021AD: u16 = 0x88a8;

const IPPROTO_HOPOPTS: u8 = 0;
const IPPROTO_TCP: u8 = 6;
const IPPROTO_ROUTING: u8 = 43;
const IPPROTO_FRAGMENT: u8 = 44;
const IPPROTO_AH: u8 = 51;
const IPPROTO_DSTOPTS: u8 = 60;
const IPPROTO_MH: u8 = 135;

/// Length of the fixed IPv6 header (RFC 8200 3).
const IPV6_LEN: usize = 40;
/// Extension headers that are walked. RFC 8200 4.1 lists six, none of which sensibly comes more than once.
const EXT_MAX: usize = 8;
/// Length of a TCP header without options (RFC 9293 3.1).
const TCP_LEN: usize = 20;
/// Don't-fragment aside: more fragments, and the offset (RFC 791 3.1).
const FRAG_MASK: u16 = 0x3fff;

/// Looks for the TCP header.
#[inline(always)]
pub fn find<P: Packet>(packet: &P, start: Start) -> Found {
    match start {
        // two bytes: the verifier learns nothing from a check for one at the very start
        Start::Ip => match packet.load::<u16>(0).map(|word| u16::from_be(word) >> 12) {
            Some(4) => ipv4(packet, 0),
            Some(6) => ipv6(packet, 0),
            Some(_) => Found::Other,
            None => Found::Short,
        },
        Start::Ethernet => ethernet(packet),
    }
}

#[inline(always)]
fn ethernet<P: Packet>(packet: &P) -> Found {
    let mut at = ETH_TYPE;
    for _ in 0..=VLAN_MAX {
        let Some(kind) = packet.load::<u16>(at) else {
            return Found::Short;
        };
        match u16::from_be(kind) {
            ETH_P_IP => return ipv4(packet, at + ETH_LEN - ETH_TYPE),
            ETH_P_IPV6 => return ipv6(packet, at + ETH_LEN - ETH_TYPE),
            ETH_P_8021Q | ETH_P_8021AD => at += VLAN_LEN,
            _ => return Found::Other,
        }
    }
    Found::Deep
}

#[inline(always)]
fn ipv4<P: Packet>(packet: &P, ip: usize) -> Found {
    // the protocol first: what is not TCP leaves here
    match packet.load::<u8>(ip + 9) {
        Some(IPPROTO_TCP) => {}
        Some(_) => return Found::Other,
        None => return Found::Short,
    }
    let (Some(first), Some(fragment)) = (packet.load::<u8>(ip), packet.load::<u16>(ip + 6)) else {
        return Found::Short;
    };
    if u16::from_be(fragment) & FRAG_MASK != 0 {
        return Found::Fragment;
    }
    let length = ((first & 0xf) as usize) * 4;
    if first >> 4 != 4 || length < 20 {
        return Found::Other;
    }
    Found::Tcp { v6: false, ip, tcp: ip + length }
}

#[inline(always)]
fn ipv6<P: Packet>(packet: &P, ip: usize) -> Found {
    let Some(mut next) = packet.load::<u8>(ip + 6) else {
        return Found::Short;
    };
    let mut at = ip + IPV6_LEN;
    for _ in 0..=EXT_MAX {
        // lengths count units of 8 bytes besides the first (RFC 8200 4.2), of AH 4 bytes besides two (RFC 4302 2.2)
        let (unit, extra) = match next {
            IPPROTO_TCP => return Found::Tcp { v6: true, ip, tcp: at },
            IPPROTO_FRAGMENT => return Found::Fragment,
            IPPROTO_HOPOPTS | IPPROTO_ROUTING | IPPROTO_DSTOPTS | IPPROTO_MH => (8, 1),
            IPPROTO_AH => (4, 2),
            _ => return Found::Other,
        };
        let Some(word) = packet.load::<u16>(at).map(u16::from_be) else {
            return Found::Short;
        };
        next = (word >> 8) as u8;
        at += ((word & 0xff) as usize + extra) * unit;
    }
    Found::Deep
}

/// Source and destination port of the TCP header at `tcp`.
#[inline(always)]
pub fn ports<P: Packet>(packet: &P, tcp: usize) -> Option<(u16, u16)> {
    Some((u16::from_be(packet.load(tcp)?), u16::from_be(packet.load(tcp + 2)?)))
}

/// What accounting needs of a TCP segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The direction it belongs to.
    pub key: FlowKey,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// Flags, byte 13 of the header (RFC 9293 3.1).
    pub flags: u8,
}

/// FIN flag.
pub const FIN: u8 = 0x01;
/// SYN flag.
pub const SYN: u8 = 0x02;
/// RST flag.
pub const RST: u8 = 0x04;
/// ACK flag.
pub const ACK: u8 = 0x10;

impl Segment {
    /// Whether it opens a connection.
    #[inline(always)]
    #[must_use]
    pub const fn opens(&self) -> bool {
        self.flags & (FIN | SYN | RST | ACK) == SYN
    }

    /// Whether it answers an opening one.
    #[inline(always)]
    #[must_use]
    pub const fn answers(&self) -> bool {
        self.flags & (FIN | SYN | RST | ACK) == SYN | ACK
    }
}

/// Reads the segment that [`find`] found.
#[inline(always)]
pub fn segment<P: Packet>(
    packet: &P,
    v6: bool,
    ip: usize,
    tcp: usize,
    (sport, dport): (u16, u16),
) -> Option<Segment> {
    let (src, dst) = if v6 {
        (Address(packet.load(ip + 8)?), Address(packet.load(ip + 24)?))
    } else {
        (Address::v4(packet.load(ip + 12)?), Address::v4(packet.load(ip + 16)?))
    };
    // one check for the whole header
    packet.load::<u8>(tcp + TCP_LEN - 1)?;
    Some(Segment {
        key: FlowKey { src, dst, sport, dport },
        seq: u32::from_be(packet.load(tcp + 4)?),
        ack: u32::from_be(packet.load(tcp + 8)?),
        flags: packet.load(tcp + 13)?,
    })
}

#[cfg(test)]
mod tests;

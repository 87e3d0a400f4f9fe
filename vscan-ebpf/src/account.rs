//! How a segment changes what is known of its direction.

use vscan_common::{Flow, flow};

use crate::parse::{FIN, RST, Segment};

/// The flags that a segment adds.
#[inline(always)]
#[must_use]
pub const fn flags(segment: &Segment) -> u32 {
    let mut flags = 0;
    if segment.opens() {
        flags |= flow::SYN;
    }
    if segment.answers() {
        flags |= flow::SYN_ACK;
    }
    if segment.flags & FIN != 0 {
        flags |= flow::FIN;
    }
    if segment.flags & RST != 0 {
        flags |= flow::RST;
    }
    flags
}

/// The opener's initial sequence number, if this segment shows it.
#[inline(always)]
#[must_use]
pub const fn isn(segment: &Segment) -> u32 {
    if segment.opens() {
        segment.seq
    } else if segment.answers() {
        segment.ack.wrapping_sub(1)
    } else {
        0
    }
}

/// Whether the segment begins a connection of which `known` knows nothing: addresses and ports come again.
#[inline(always)]
#[must_use]
pub const fn begins_anew(segment: &Segment, known: &Flow) -> bool {
    (segment.opens() || segment.answers()) && known.isn != isn(segment)
}

/// A direction of which this is the first segment.
#[inline(always)]
#[must_use]
pub const fn first(segment: &Segment, packets: u64, bytes: u64, now: u64, ifindex: u32) -> Flow {
    Flow {
        packets,
        bytes,
        first_ns: now,
        last_ns: now,
        isn: isn(segment),
        ifindex,
        flags: flags(segment),
        reserved: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse::{ACK, SYN};
    use vscan_common::FlowKey;

    fn segment(flags: u8, seq: u32, ack: u32) -> Segment {
        Segment { key: FlowKey::default(), seq, ack, flags }
    }

    #[test]
    fn both_directions_show_the_openers_number() {
        let syn = segment(SYN, u32::MAX, 0);
        let answer = segment(SYN | ACK, 77, 0);
        assert_eq!(isn(&syn), isn(&answer));
        assert_eq!(isn(&segment(ACK, 5, 6)), 0);
    }

    #[test]
    fn ports_used_again_begin_anew() {
        let known = first(&segment(SYN, 1000, 0), 1, 60, 5, 2);
        assert_eq!(known.flags, flow::SYN);
        assert!(!begins_anew(&segment(SYN, 1000, 0), &known));
        assert!(begins_anew(&segment(SYN, 1001, 0), &known));
        assert!(!begins_anew(&segment(ACK, 9, 9), &known));
    }
}

//! The packet marks, all within one mask: what nftables, the BPF programs and the gateway's sockets agree on.

use crate::config;

/// Every mark that vscan uses: the four that the configuration names, and the rest found beside them in the mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marks {
    /// The bits that belong to vscan.
    pub mask: u32,
    /// On packets: delivered to the gateway. On connections (ct): a client leg.
    pub client: u32,
    /// `SO_MARK` of upstream legs; on connections: an upstream leg.
    pub upstream: u32,
    /// On packets and connections: passes uninspected.
    pub bypass: u32,
    /// On connections: related to ours by a conntrack helper.
    pub related: u32,
    /// `SO_MARK` of active FTP data legs to the client, which leave with the address that they are bound to even where
    /// masquerade would choose another (a secondary outside address). Otherwise as `upstream`.
    pub active: u32,
    /// On packets: a new connection while the agent is down or hangs.
    pub down: u32,
    /// On packets: the connection is to be reset.
    pub reset: u32,
}

impl Marks {
    /// The marks of a configuration, which has proven that the four are different, not 0 and within the mask.
    #[must_use]
    pub fn of(marks: &config::Marks) -> Self {
        let taken = [marks.client, marks.upstream, marks.bypass, marks.related];
        // the values of a mask, from the highest down: mask, then (v - 1) & mask. Four different ones that are not 0 need
        // three bits, which have seven.
        let mut value = marks.mask;
        let mut free = || {
            while taken.contains(&value) {
                value = value.wrapping_sub(1) & marks.mask;
            }
            let found = value;
            value = value.wrapping_sub(1) & marks.mask;
            found
        };
        Self {
            mask: marks.mask,
            client: marks.client,
            upstream: marks.upstream,
            bypass: marks.bypass,
            related: marks.related,
            active: free(),
            down: free(),
            reset: free(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_seven_differ_even_in_three_bits() {
        for marks in [
            config::Marks::default(),
            config::Marks { client: 0x10, upstream: 0x70, bypass: 0x60, related: 0x20, mask: 0x70 },
            config::Marks {
                client: 1,
                upstream: 1 << 31,
                bypass: 0x10,
                related: 0x11,
                mask: 0x8000_0011,
            },
        ] {
            let m = Marks::of(&marks);
            let mut all =
                vec![m.client, m.upstream, m.bypass, m.related, m.active, m.down, m.reset];
            assert!(all.iter().all(|v| *v != 0 && v & !m.mask == 0), "{m:x?}");
            all.sort_unstable();
            all.dedup();
            assert_eq!(all.len(), 7, "{m:x?}");
        }
    }
}

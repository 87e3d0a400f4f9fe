//! What is done with a packet that opens a connection. Pure: the facts come as arguments.

use vscan_common::net;

/// What becomes of a SYN to one of our ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Goes on, to be steered by nftables.
    Steer,
    /// Is dropped: a denied network.
    Deny,
    /// Is dropped: over the rate limit.
    Limit,
    /// Passes uninspected: an exempt network.
    Exempt,
    /// The agent is down or hangs; nftables knows whether that means open or closed.
    Down,
}

/// Decides from the flags of the two ends' networks, the rate limit and the heartbeat.
///
/// Denied before all else; who is exempt is not limited, since the limit protects the gateway.
#[inline(always)]
#[must_use]
pub const fn on_syn(client: u32, server: u32, limited: bool, stale: bool) -> Action {
    if client & net::DENY != 0 {
        Action::Deny
    } else if (client | server) & net::EXEMPT != 0 {
        Action::Exempt
    } else if limited {
        Action::Limit
    } else if stale {
        Action::Down
    } else {
        Action::Steer
    }
}

/// Whether a heartbeat counts as none: never beaten (0), or longer ago than `ttl` ns.
#[inline(always)]
#[must_use]
pub const fn is_stale(now: u64, beat: u64, ttl: u64) -> bool {
    // a beat may be newer than `now`, which was read before
    beat == 0 || now.saturating_sub(beat) > ttl
}

/// A client's token bucket as a theoretical arrival time (the generic cell rate algorithm, ITU-T I.371): one number
/// a client. Gives the new value, or none when the connection is over the limit.
///
/// `each` is what one connection costs, `burst` how far ahead a client may be; all in ns.
#[inline(always)]
#[must_use]
pub const fn admit(arrival: u64, now: u64, each: u64, burst: u64) -> Option<u64> {
    let start = if arrival > now { arrival } else { now };
    if start - now > burst { None } else { Some(start + each) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deny_then_exempt_then_limit_then_down() {
        assert_eq!(on_syn(0, 0, false, false), Action::Steer);
        assert_eq!(on_syn(net::DENY | net::EXEMPT, 0, true, true), Action::Deny);
        assert_eq!(on_syn(0, net::DENY, false, false), Action::Steer);
        assert_eq!(on_syn(net::EXEMPT, 0, true, true), Action::Exempt);
        assert_eq!(on_syn(0, net::EXEMPT, true, true), Action::Exempt);
        assert_eq!(on_syn(0, 0, true, true), Action::Limit);
        assert_eq!(on_syn(0, 0, false, true), Action::Down);
    }

    #[test]
    fn a_heartbeat_gets_old() {
        assert!(is_stale(5, 0, 100));
        assert!(!is_stale(1100, 1000, 100));
        assert!(is_stale(1101, 1000, 100));
        assert!(!is_stale(1000, 1001, 100));
    }

    #[test]
    fn a_bucket_gives_its_burst_then_its_rate() {
        // 10 a second, 5 at once
        let (each, burst) = (100, 4 * 100);
        let mut arrival = 0;
        let mut admitted = 0;
        for _ in 0..20 {
            if let Some(next) = admit(arrival, 1000, each, burst) {
                arrival = next;
                admitted += 1;
            }
        }
        assert_eq!(admitted, 5);
        assert_eq!(admit(arrival, 1099, each, burst), None);
        arrival = admit(arrival, 1100, each, burst).expect("one more after its time");
        assert_eq!(admit(arrival, 1100, each, burst), None);
        // a long silence gives the burst back, and no more
        let mut admitted = 0;
        while let Some(next) = admit(arrival, 1_000_000, each, burst) {
            arrival = next;
            admitted += 1;
        }
        assert_eq!(admitted, 5);
    }
}

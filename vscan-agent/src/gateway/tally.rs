//! What of the kernel's flows has been brought into the meter: their bytes only grow, and each is counted once.

use crate::kernel::{Phase, Seen, Why};
use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
};

type Key = (SocketAddr, SocketAddr);

#[derive(Clone, Copy, Debug)]
struct Known {
    bytes: u64,
    /// Whether the meter has been told of it.
    counted: bool,
}

/// Flows that pass without the gateway, as far as they are counted.
#[derive(Debug, Default)]
pub(super) struct Tally {
    known: HashMap<Key, Known>,
    begun: bool,
}

impl Tally {
    /// Takes in what the kernel knows now. `is_ours` says of a client and the server that it dialled whether the gateway
    /// serves, or has just served, them. `grown` hears of each flow that passes: the bytes since the last time, and whether
    /// it is new.
    pub(super) fn update(
        &mut self,
        seen: &[Seen],
        is_ours: impl Fn(SocketAddr, SocketAddr) -> bool,
        mut grown: impl FnMut(&Seen, u64, bool),
    ) {
        let first = !std::mem::replace(&mut self.begun, true);
        let mut there = HashSet::with_capacity(seen.len());
        for flow in seen {
            let key = (flow.client, flow.server);
            if is_ours(flow.client, flow.server) {
                continue;
            }
            there.insert(key);
            let bytes = flow.from_client.bytes + flow.from_server.bytes;
            let known = self.known.get(&key).copied();
            // Fewer bytes than before: another connection with the same ports.
            let known = known.filter(|known| known.bytes <= bytes);
            let passes = match flow.why {
                Why::Exempt | Why::AgentDown => true,
                // A session that is about to reach the gateway, or has just left it, looks the same for a moment.
                Why::NotSteered => {
                    known.is_some_and(|known| known.counted)
                        || known.is_some() && flow.phase == Phase::Open
                }
            };
            // What ended before there was anybody to count belongs to an earlier gateway, unless there was none.
            let earlier = first && flow.phase == Phase::Closed && flow.why == Why::Exempt;
            if passes && !earlier {
                let new = known.is_none_or(|known| !known.counted);
                let before = known.filter(|known| known.counted).map_or(0, |known| known.bytes);
                if new || bytes > before {
                    grown(flow, bytes - before, new);
                }
            }
            self.known.insert(key, Known { bytes, counted: passes });
        }
        self.known.retain(|key, _| there.contains(key));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Traffic;
    use std::time::Duration;

    fn seen(port: u16, bytes: u64, why: Why, phase: Phase) -> Seen {
        Seen {
            client: ([10, 0, 0, 1], port).into(),
            server: ([192, 0, 2, 1], 21).into(),
            real_server: None,
            from_client: Traffic { packets: 1, bytes },
            from_server: Traffic::default(),
            age: Duration::ZERO,
            idle: Duration::ZERO,
            why,
            phase,
            killed: false,
        }
    }

    fn told(tally: &mut Tally, flows: &[Seen], ours: u16) -> Vec<(u16, u64, bool)> {
        let mut told = Vec::new();
        tally.update(
            flows,
            |client, _| client.port() == ours,
            |flow, bytes, new| told.push((flow.client.port(), bytes, new)),
        );
        told
    }

    #[test]
    fn each_byte_counts_once() {
        let mut tally = Tally::default();
        let flow = |bytes, phase| seen(1, bytes, Why::Exempt, phase);
        assert_eq!(told(&mut tally, &[flow(100, Phase::Open)], 0), [(1, 100, true)]);
        assert_eq!(told(&mut tally, &[flow(100, Phase::Open)], 0), []);
        assert_eq!(told(&mut tally, &[flow(250, Phase::Closed)], 0), [(1, 150, false)]);
        assert_eq!(told(&mut tally, &[flow(250, Phase::Closed)], 0), []);
        // the same ports again
        assert_eq!(told(&mut tally, &[flow(60, Phase::Open)], 0), [(1, 60, true)]);
    }

    #[test]
    fn what_ended_before_the_start_is_not_counted_unless_nobody_was_there() {
        let mut tally = Tally::default();
        let flows = [
            seen(1, 100, Why::Exempt, Phase::Closed),
            seen(2, 100, Why::AgentDown, Phase::Closed),
            seen(3, 100, Why::Exempt, Phase::Open),
        ];
        assert_eq!(told(&mut tally, &flows, 0), [(2, 100, true), (3, 100, true)]);
        assert_eq!(told(&mut tally, &flows, 0), []);
    }

    #[test]
    fn sessions_of_the_gateway_pass_for_nothing_else() {
        let mut tally = Tally::default();
        let flow = |bytes, phase| seen(1, bytes, Why::NotSteered, phase);
        assert_eq!(told(&mut tally, &[flow(10, Phase::Open)], 0), [], "not accepted yet");
        assert_eq!(told(&mut tally, &[flow(90, Phase::Open)], 1), []);
        assert_eq!(told(&mut tally, &[flow(100, Phase::Closed)], 0), [], "closed and forgotten");
        let mut tally = Tally::default();
        assert_eq!(told(&mut tally, &[flow(10, Phase::Open)], 0), []);
        assert_eq!(told(&mut tally, &[flow(90, Phase::Open)], 0), [(1, 90, true)]);
        assert_eq!(told(&mut tally, &[flow(99, Phase::Closed)], 0), [(1, 9, false)]);
    }
}

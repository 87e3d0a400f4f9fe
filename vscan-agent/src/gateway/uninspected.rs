//! What the kernel lets by without the gateway, brought into flow table, metrics and event log.

use super::{Gateway, tally::Tally};
use crate::{
    config::{Config, OnAgentDown},
    kernel::{Counts, Happened, Phase, Seen, View, What, Why},
    observe::{Blind, BlindSpots, FlowRecord, Metrics, UninspectedSource, Whose},
};
use jiff::{Timestamp, ToSpan};
use serde::Serialize;
use std::{
    collections::HashSet,
    net::SocketAddr,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};
use tokio::io::{Interest, unix::AsyncFd};

/// How often the kernel's flows are looked at when nobody asks: well before an LRU map of 32768 flows forgets one that
/// has ended.
const LOOK: Duration = Duration::from_secs(10);

/// Reads the BPF maps behind the descriptors from now on. Without descriptors nftables steers alone,
/// and only the supervisor's counters tell of what passed.
pub(super) fn watch(gateway: &Arc<Gateway>, names: Vec<String>, descriptors: Vec<OwnedFd>) {
    let named = names.into_iter().zip(descriptors).collect();
    let view = match View::new(named) {
        Ok(Some(view)) => Arc::new(view),
        Ok(None) => return,
        Err(error) => return tracing::error!("BPF maps cannot be read: {error}"),
    };
    let source = Arc::new(KernelFlows {
        view: Arc::clone(&view),
        gateway: Arc::downgrade(gateway),
        tally: Mutex::default(),
    });
    gateway.observer.flows.set_uninspected(Arc::clone(&source) as Arc<dyn UninspectedSource>);
    tokio::spawn(look(Arc::downgrade(&source)));
    tokio::spawn(follow(view, Arc::downgrade(gateway)));
}

/// Brings the kernel's flows into the meter again and again.
async fn look(source: Weak<KernelFlows>) {
    let mut interval = tokio::time::interval(LOOK);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        let Some(source) = source.upgrade() else { return };
        // A walk over a full map takes some 50 ms.
        if tokio::task::spawn_blocking(move || source.count()).await.is_err() {
            return;
        }
    }
}

/// Follows the ring buffer until the gateway ends.
async fn follow(view: Arc<View>, gateway: Weak<Gateway>) {
    let ready = view.as_fd().try_clone_to_owned().and_then(|descriptor| {
        // SAFETY: an OwnedFd always returns the same descriptor, and stays open until it is dropped.
        unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) }
            .map_err(|error| error.into_parts().1)
    });
    let ready = match ready {
        Ok(ready) => ready,
        Err(error) => return tracing::error!("BPF events cannot be followed: {error}"),
    };
    while let Ok(mut guard) = ready.readable().await {
        guard.clear_ready();
        let Some(gateway) = gateway.upgrade() else { return };
        for happened in view.events() {
            tell(&gateway, &happened);
        }
    }
}

fn tell(gateway: &Gateway, happened: &Happened) {
    #[derive(Serialize)]
    struct Passed {
        r#type: &'static str,
        reason: &'static str,
        src: SocketAddr,
        dest: SocketAddr,
    }
    let (r#type, reason) = match happened.what {
        What::Exempt => ("uninspected", "exempt"),
        What::AgentDown => match gateway.config().gateway.on_agent_down {
            OnAgentDown::Open => ("uninspected", "agent_down"),
            OnAgentDown::Closed => ("refused", "agent_down"),
        },
        What::Denied => ("dropped", "denied"),
        What::Limited => ("dropped", "rate_limited"),
    };
    if r#type == "uninspected" {
        let config = gateway.config();
        let why = if happened.what == What::Exempt { Blind::Exempt } else { Blind::AgentDown };
        let meter = &gateway.observer.metrics.meter;
        // A port forward from another port hides the protocol.
        match config.protocol(happened.to.port()) {
            Some(protocol) => {
                let (client, server) = (happened.from.ip(), happened.to.ip());
                let direction = config.direction(client, server);
                meter.passed(&Whose { protocol, direction, client, server }, why, 1);
            }
            None => meter.passed_unplaced(why, 1),
        }
    }
    let passed = Passed { r#type, reason, src: happened.from, dest: happened.to };
    gateway.observer.events.agent(&passed);
}

/// How often the event log says what was not inspected.
const SUMMARY: Duration = Duration::from_secs(3600);

/// Tells of the blind spots again and again; [`summarise`] is called once more when the gateway stops.
pub(super) async fn tell_of_blind_spots(gateway: Weak<Gateway>) {
    loop {
        tokio::time::sleep(SUMMARY).await;
        let Some(gateway) = gateway.upgrade() else { return };
        summarise(&gateway);
    }
}

/// An event with what came by since the start, and what of it was not inspected.
pub(super) fn summarise(gateway: &Gateway) {
    #[derive(Serialize)]
    struct Summary {
        r#type: &'static str,
        #[serde(flatten)]
        blind: BlindSpots,
    }
    gateway.observer.flows.scrape();
    let blind = gateway.observer.metrics.meter.spots();
    if !blind.spots.is_empty() {
        gateway.observer.events.agent(&Summary { r#type: "blind_spots", blind });
    }
}

#[derive(Debug)]
struct KernelFlows {
    view: Arc<View>,
    gateway: Weak<Gateway>,
    tally: Mutex<Tally>,
}

impl KernelFlows {
    /// Brings what passed since the last time into the meter, and says what passes now.
    fn count(&self) -> Vec<Seen> {
        let Some(gateway) = self.gateway.upgrade() else { return Vec::new() };
        let (config, meter) = (gateway.config(), &gateway.observer.metrics.meter);
        let mut tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
        let mut flows = self.view.flows();
        // In this order: a session that ends meanwhile is among the closed.
        let ours = ours(&gateway);
        let is_ours = |client, server| ours.contains(&(client, server));
        tally.update(&flows, is_ours, |seen, bytes, new| {
            let Some(whose) = whose(&config, seen) else { return };
            let why = blind(seen.why);
            meter.bytes_passed(&whose, why, bytes);
            // The others are told by events.
            if new && seen.why == Why::NotSteered {
                meter.passed(&whose, why, 1);
            }
        });
        flows.retain(|flow| {
            flow.phase != Phase::Closed && !ours.contains(&(flow.client, flow.server))
        });
        flows
    }

    fn seen(&self) -> Vec<Seen> {
        let Some(gateway) = self.gateway.upgrade() else { return Vec::new() };
        let ours = ours(&gateway);
        self.view.uninspected(|client, server| ours.contains(&(client, server)))
    }
}

impl UninspectedSource for KernelFlows {
    fn flows(&self, limit: usize) -> Vec<FlowRecord> {
        let Some(gateway) = self.gateway.upgrade() else { return Vec::new() };
        let config = gateway.config();
        self.seen().into_iter().filter_map(|seen| record(&config, seen)).take(limit).collect()
    }

    fn kill(&self, client: SocketAddr, server: SocketAddr) -> Result<(), String> {
        self.view.kill(client, server).map_err(|error| error.to_string())
    }

    fn scrape(&self, metrics: &Metrics) {
        count(metrics, &self.count());
        match self.view.counters() {
            Ok(counters) => {
                counters.iter().for_each(|(name, value)| metrics.set_kernel(name, value))
            }
            Err(error) => tracing::error!("BPF counters cannot be read: {error}"),
        }
        if let Err(error) = self.view.forget_killed() {
            tracing::error!("BPF kill map: {error}");
        }
    }
}

/// The flows that the gateway serves or has served last.
fn ours(gateway: &Gateway) -> HashSet<(SocketAddr, SocketAddr)> {
    let (closed, open) = gateway.observer.flows.closed_and_open(usize::MAX);
    closed.iter().chain(&open).map(|flow| (flow.client, flow.server)).collect()
}

/// Whose traffic it is; none where the protocol is not known.
fn whose(config: &Config, seen: &Seen) -> Option<Whose> {
    let server = seen.real_server.unwrap_or(seen.server);
    Some(Whose {
        protocol: config.protocol(server.port()).or(config.protocol(seen.server.port()))?,
        direction: config.direction(seen.client.ip(), server.ip()),
        client: seen.client.ip(),
        server: server.ip(),
    })
}

fn blind(why: Why) -> Blind {
    match why {
        Why::Exempt => Blind::Exempt,
        Why::AgentDown => Blind::AgentDown,
        Why::NotSteered => Blind::NotSteered,
    }
}

fn record(config: &Config, seen: Seen) -> Option<FlowRecord> {
    let now = Timestamp::now();
    let whose = whose(config, &seen)?;
    let nanos = i64::try_from(seen.age.as_nanos()).unwrap_or(i64::MAX);
    Some(FlowRecord {
        id: None,
        protocol: whose.protocol,
        direction: whose.direction,
        state: match seen.phase {
            Phase::Opening => "opening",
            Phase::Open => "passing",
            Phase::Closed => "closed",
        }
        .to_owned(),
        client: seen.client,
        server: seen.server,
        real_server: seen.real_server.unwrap_or(seen.server),
        command: None,
        transfer: None,
        user: None,
        object: None,
        objects: 0,
        bytes_from_client: seen.from_client.bytes,
        bytes_from_server: seen.from_server.bytes,
        verdict: None,
        detection: None,
        uninspected: Some(blind(seen.why).as_str().to_owned()),
        tls: None,
        started: now.checked_sub(nanos.nanoseconds()).unwrap_or(now),
        ended: None,
        age: seen.age.as_secs_f64(),
    })
}

/// What the supervisor tells of what passes, where nftables steers alone.
#[derive(Debug, Default)]
pub(super) struct Passing {
    counted: Counts,
    tally: Tally,
    seen: Option<Arc<Mutex<Vec<Seen>>>>,
}

impl Passing {
    /// Takes over the supervisor's latest message.
    pub(super) fn update(&mut self, gateway: &Arc<Gateway>, counts: Counts, now: Vec<Seen>) {
        let (config, meter) = (gateway.config(), &gateway.observer.metrics.meter);
        // Conntrack's list says whose they are, but misses those that came and went between two messages.
        let (mut exempt, mut down) = (0, 0);
        self.tally.update(
            &now,
            |_, _| false,
            |seen, bytes, new| {
                let Some(whose) = whose(&config, seen) else { return };
                let why = blind(seen.why);
                meter.bytes_passed(&whose, why, bytes);
                if new {
                    meter.passed(&whose, why, 1);
                    *(if seen.why == Why::Exempt { &mut exempt } else { &mut down }) += 1;
                }
            },
        );
        let unplaced =
            |now: u64, before: u64, placed: u64| now.saturating_sub(before).saturating_sub(placed);
        meter.passed_unplaced(Blind::Exempt, unplaced(counts.exempt, self.counted.exempt, exempt));
        meter.passed_unplaced(
            Blind::AgentDown,
            unplaced(counts.down_passed, self.counted.down_passed, down),
        );
        self.counted = counts;
        let seen = self.seen.get_or_insert_with(|| {
            let seen = Arc::new(Mutex::new(Vec::new()));
            let source = NftFlows { seen: Arc::clone(&seen), gateway: Arc::downgrade(gateway) };
            gateway.observer.flows.set_uninspected(Arc::new(source));
            seen
        });
        *seen.lock().unwrap_or_else(PoisonError::into_inner) = now;
    }
}

#[derive(Debug)]
struct NftFlows {
    seen: Arc<Mutex<Vec<Seen>>>,
    gateway: Weak<Gateway>,
}

impl NftFlows {
    fn open(&self) -> Vec<Seen> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.iter().filter(|flow| flow.phase != Phase::Closed).copied().collect()
    }
}

impl UninspectedSource for NftFlows {
    fn flows(&self, limit: usize) -> Vec<FlowRecord> {
        let Some(gateway) = self.gateway.upgrade() else { return Vec::new() };
        let config = gateway.config();
        self.open().into_iter().filter_map(|seen| record(&config, seen)).take(limit).collect()
    }

    fn kill(&self, _client: SocketAddr, _server: SocketAddr) -> Result<(), String> {
        Err("without BPF programs vscan ends its own sessions only".to_owned())
    }

    fn scrape(&self, metrics: &Metrics) {
        count(metrics, &self.open());
    }
}

fn count(metrics: &Metrics, seen: &[Seen]) {
    for why in [Why::Exempt, Why::AgentDown, Why::NotSteered] {
        let count = seen.iter().filter(|flow| flow.why == why).count();
        metrics.set_uninspected_now(blind(why).as_str(), count as u64);
    }
}

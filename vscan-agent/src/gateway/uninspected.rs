//! What the kernel lets by without the gateway, brought into flow table, metrics and event log.

use super::Gateway;
use crate::{
    config::{Config, OnAgentDown},
    kernel::{Counts, Happened, Phase, Seen, View, What, Why},
    observe::{FlowRecord, Metrics, UninspectedSource},
};
use jiff::{Timestamp, ToSpan};
use serde::Serialize;
use std::{
    collections::HashSet,
    net::SocketAddr,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Mutex, PoisonError, Weak},
};
use tokio::io::{Interest, unix::AsyncFd};

/// Reads the BPF maps behind the descriptors from now on. Without descriptors nftables steers alone,
/// and only the supervisor's counters tell of what passed.
pub(super) fn watch(gateway: &Arc<Gateway>, names: Vec<String>, descriptors: Vec<OwnedFd>) {
    let named = names.into_iter().zip(descriptors).collect();
    let view = match View::new(named) {
        Ok(Some(view)) => Arc::new(view),
        Ok(None) => return,
        Err(error) => return tracing::error!("BPF maps cannot be read: {error}"),
    };
    let source = KernelFlows { view: Arc::clone(&view), gateway: Arc::downgrade(gateway) };
    gateway.observer.flows.set_uninspected(Arc::new(source));
    tokio::spawn(follow(view, Arc::downgrade(gateway)));
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
        What::Open | What::Close => return,
        What::Exempt => ("uninspected", "exempt"),
        What::AgentDown => match gateway.config().gateway.on_agent_down {
            OnAgentDown::Open => ("uninspected", "agent_down"),
            OnAgentDown::Closed => ("refused", "agent_down"),
        },
        What::Denied => ("dropped", "denied"),
        What::Limited => ("dropped", "rate_limited"),
    };
    if r#type == "uninspected" {
        gateway.observer.metrics.uninspected(reason, 1);
    }
    let passed = Passed { r#type, reason, src: happened.from, dest: happened.to };
    gateway.observer.events.agent(&passed);
}

#[derive(Debug)]
struct KernelFlows {
    view: Arc<View>,
    gateway: Weak<Gateway>,
}

impl KernelFlows {
    fn seen(&self) -> Vec<Seen> {
        let Some(gateway) = self.gateway.upgrade() else { return Vec::new() };
        let ours: HashSet<(SocketAddr, SocketAddr)> =
            gateway.observer.flows.intercepted().iter().map(|f| (f.client, f.server)).collect();
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
        count(metrics, &self.seen());
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

fn record(config: &Config, seen: Seen) -> Option<FlowRecord> {
    let now = Timestamp::now();
    let real_server = seen.real_server.unwrap_or(seen.server);
    let nanos = i64::try_from(seen.age.as_nanos()).unwrap_or(i64::MAX);
    Some(FlowRecord {
        id: None,
        protocol: config.protocol(real_server.port()).or(config.protocol(seen.server.port()))?,
        direction: config.direction(seen.client.ip(), real_server.ip()),
        state: match seen.phase {
            Phase::Opening => "opening",
            Phase::Open => "passing",
            Phase::Closed => "closed",
        }
        .to_owned(),
        client: seen.client,
        server: seen.server,
        real_server,
        command: None,
        transfer: None,
        user: None,
        object: None,
        objects: 0,
        bytes_from_client: seen.from_client.bytes,
        bytes_from_server: seen.from_server.bytes,
        verdict: None,
        detection: None,
        uninspected: Some(reason(seen.why).to_owned()),
        started: now.checked_sub(nanos.nanoseconds()).unwrap_or(now),
        ended: None,
        age: seen.age.as_secs_f64(),
    })
}

/// What the supervisor tells of what passes, where nftables steers alone.
#[derive(Debug, Default)]
pub(super) struct Passing {
    counted: Counts,
    seen: Option<Arc<Mutex<Vec<Seen>>>>,
}

impl Passing {
    /// Takes over the supervisor's latest message.
    pub(super) fn update(&mut self, gateway: &Arc<Gateway>, counts: Counts, now: Vec<Seen>) {
        let metrics = &gateway.observer.metrics;
        metrics.uninspected("exempt", counts.exempt.saturating_sub(self.counted.exempt));
        metrics
            .uninspected("agent_down", counts.down_passed.saturating_sub(self.counted.down_passed));
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
        metrics.set_uninspected_now(reason(why), count as u64);
    }
}

fn reason(why: Why) -> &'static str {
    match why {
        Why::Exempt => "exempt",
        Why::AgentDown => "agent_down",
        Why::NotSteered => "not_steered",
    }
}

//! What becomes of hosts inside that send too much mail: counted in `crate::outbound`, refused here, cut by the kernel.

use super::Gateway;
use crate::{
    config::{Config, OutboundAction},
    observe::FlowOpen,
    outbound::{self, Block, Ruling, Sender},
};
use jiff::{Timestamp, ToSpan};
use serde::Serialize;
use std::{
    net::IpAddr,
    sync::{Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};
use tokio::sync::mpsc;

/// Orders that may wait for the supervisor.
pub(super) const ORDERS_WAITING: usize = 256;

/// What the kernel is to do about a host, by way of the supervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// Refuse its new SMTP connections for so long.
    Cut(IpAddr, Duration),
    /// No longer.
    Uncut(IpAddr),
}

/// The gateway's part of it.
#[derive(Debug)]
pub(super) struct Watched {
    table: Mutex<outbound::Table>,
    orders: OnceLock<mpsc::Sender<Order>>,
}

impl Watched {
    pub(super) fn new() -> Self {
        Self { table: Mutex::new(outbound::Table::new(Instant::now())), orders: OnceLock::new() }
    }

    /// Where orders go. Only the first call counts.
    pub(super) fn connect(&self, orders: mpsc::Sender<Order>) {
        let _ = self.orders.set(orders);
    }

    fn table(&self) -> std::sync::MutexGuard<'_, outbound::Table> {
        // whole after every step: a panic in between leaves at worst a count too few
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn order(&self, order: Order) {
        if let Some(orders) = self.orders.get()
            && orders.try_send(order).is_err()
        {
            tracing::error!(?order, "the kernel is not told: too many orders wait");
        }
    }
}

impl Gateway {
    /// A host opens an SMTP connection; whether it is refused.
    pub(super) fn mail_connection(&self, config: &Config, host: IpAddr) -> bool {
        self.mails(config, host, |table, now| table.connection(&config.outbound, host, now))
    }

    /// A message has come to its end; whether it is refused.
    pub(super) fn mail_message(&self, config: &Config, flow: &FlowOpen, recipients: u32) -> bool {
        let host = flow.client.ip();
        self.mails(config, host, |table, now| {
            table.message(&config.outbound, host, recipients, now)
        })
    }

    /// It was infected, and is refused for that.
    pub(super) fn mail_infected(&self, config: &Config, flow: &FlowOpen) {
        let host = flow.client.ip();
        self.mails(config, host, |table, now| table.infected(&config.outbound, host, now));
    }

    fn mails(
        &self,
        config: &Config,
        host: IpAddr,
        count: impl FnOnce(&mut outbound::Table, Instant) -> Ruling,
    ) -> bool {
        if !config.is_inside(host) {
            return false;
        }
        let now = Instant::now();
        let ruling = count(&mut self.watched.table(), now);
        match ruling {
            Ruling::Fine => return false,
            Ruling::Blocked(_) => {}
            Ruling::Exceeds(block) => self.exceeds(config, host.to_canonical(), &block, now),
        }
        config.outbound.action != OutboundAction::Alert
    }

    /// A host has gone over a limit at this moment.
    fn exceeds(&self, config: &Config, host: IpAddr, block: &Block, now: Instant) {
        #[derive(Serialize)]
        struct Blocked {
            r#type: &'static str,
            host: IpAddr,
            over: &'static str,
            count: u64,
            limit: u32,
            action: OutboundAction,
            until: Option<Timestamp>,
        }
        let (over, action) = (block.what.as_str(), config.outbound.action);
        let time = outbound::remaining(block, now);
        self.observer.metrics.sends_too_much(over);
        tracing::warn!(%host, over, count = block.count, limit = block.limit, %action, "a host sends too much mail");
        let millis = i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
        self.observer.events.agent(&Blocked {
            r#type: "sends_too_much",
            host,
            over,
            count: block.count,
            limit: block.limit,
            action,
            until: Timestamp::now().checked_add(millis.milliseconds()).ok(),
        });
        if action == OutboundAction::Cut {
            self.watched.order(Order::Cut(host, time));
            self.observer.flows.kill_mail_of(host);
        }
    }

    /// What hosts inside send, the busiest first.
    pub(super) fn senders(&self) -> Vec<Sender> {
        self.watched.table().senders(&self.config().outbound, Instant::now())
    }

    /// How many hosts are blocked.
    pub(super) fn blocked_senders(&self) -> usize {
        self.watched.table().blocked(Instant::now())
    }

    /// Lets a host send again. False: it was not blocked, as far as this process knows.
    pub(super) fn unblock(&self, host: IpAddr) -> bool {
        let host = host.to_canonical();
        let blocked = self.watched.table().unblock(host, Instant::now());
        // in any case: the kernel remembers longer than a gateway that was started anew
        self.watched.order(Order::Uncut(host));
        if blocked {
            #[derive(Serialize)]
            struct Unblocked {
                r#type: &'static str,
                host: IpAddr,
            }
            self.observer.events.agent(&Unblocked { r#type: "unblocked", host });
        }
        blocked
    }
}

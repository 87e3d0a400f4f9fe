//! Counters and gauges, in base units, without addresses or names from the wire as labels.

use super::Usage;
use super::control::Objects;
use super::meter::Meter;
use super::tls::TlsMetrics;
use crate::clamd;
use crate::config::{Direction, Protocol, Treatment, verdict_str};
use crate::mailbox::status::State;
use crate::outbound::What;
use prometheus::{
    Encoder, Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry, TextEncoder,
};
use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;
use std::time::Instant;
use vscan_scan::report::{Reason, Verdict};

/// Everything that `/metrics` shows. The methods say what happened; the names stand in the fields' creation.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    sessions: IntGaugeVec,
    sessions_total: IntCounterVec,
    sessions_refused: IntCounterVec,
    /// By protocol, as in [`Protocol::ALL`], those from clients and those from servers. They are counted with every read: no
    /// label is looked for.
    bytes: Vec<[IntCounter; 2]>,
    objects: IntCounterVec,
    object_bytes: IntCounterVec,
    unread: IntCounterVec,
    scan_seconds: Histogram,
    scan_cpu_seconds: prometheus::Counter,
    scan_ahead_bytes: IntCounter,
    scanner_workers: IntGaugeVec,
    scanner_restarts: IntCounterVec,
    scanner_rules: IntGauge,
    cache_lookups: IntCounterVec,
    cache_reports: IntGauge,
    cache_bytes: IntGauge,
    rules_info: IntGaugeVec,
    rules_age: Gauge,
    rules_age_max: Gauge,
    clamd: clamd::Counters,
    anomalies: IntCounterVec,
    denied: IntCounterVec,
    outbound: IntCounterVec,
    blocked_senders: IntGauge,
    uninspected: IntGaugeVec,
    /// The blind-spot meter.
    pub meter: Meter,
    /// TLS that is opened.
    pub tls: TlsMetrics,
    kernel: IntGaugeVec,
    events_written: IntCounter,
    events_lost: IntCounter,
    spool_bytes: IntGaugeVec,
    spool_refused: IntCounter,
    quarantine_objects: IntGauge,
    quarantine_bytes: IntGauge,
    quarantine_failures: IntCounter,
    mail_doubled: IntCounter,
    mail_doubtful: IntCounter,
    portions: IntCounterVec,
    unrepaired: IntCounterVec,
    notices: IntCounterVec,
    notices_waiting: IntGaugeVec,
    mailbox_messages: IntCounterVec,
    mailbox_accounts: IntGaugeVec,
    mailbox_backlog: IntGauge,
    reloads: IntCounterVec,
    heartbeat_age: Gauge,
    resident: IntGauge,
    open_files: IntGauge,
    last_beat: Mutex<Option<Instant>>,
    started: Instant,
}

/// Seconds; a 2 KiB message takes less than the first bound, the last is past the default deadline.
const SCAN_BUCKETS: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// Registers metrics; the names and labels are literals of this file, so a failure is a mistake in it.
pub(super) struct Maker(Registry);

impl Maker {
    #[expect(clippy::expect_used, reason = "names are literals of this file, tested below")]
    fn add<C: prometheus::core::Collector + Clone + 'static>(
        &self,
        made: Result<C, prometheus::Error>,
    ) -> C {
        let made = made.expect("a valid metric");
        self.0.register(Box::new(made.clone())).expect("a metric of its own name");
        made
    }

    fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.add(IntCounter::new(name, help))
    }

    pub(super) fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.add(IntCounterVec::new(Opts::new(name, help), labels))
    }

    fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.add(IntGauge::new(name, help))
    }

    #[expect(clippy::expect_used, reason = "names are literals, tested below")]
    fn clamd(&self) -> clamd::Counters {
        let made = clamd::Counters::new().expect("valid metrics");
        self.add(Ok(made.requests.clone()));
        self.add(Ok(made.seconds.clone()));
        self.add(Ok(made.up.clone()));
        made
    }

    pub(super) fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.add(IntGaugeVec::new(Opts::new(name, help), labels))
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All metrics at zero, in a registry of their own.
    #[must_use]
    pub fn new() -> Self {
        let m = Maker(Registry::new());
        let build = m.gauges("vscan_build_info", "The version that runs; always 1.", &["version"]);
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        let bytes = m.counters(
            "vscan_bytes_total",
            "Bytes that sessions and their data channels received, by sender.",
            &["protocol", "sender"],
        );
        let bytes = Protocol::ALL
            .iter()
            .map(|p| {
                ["client", "server"].map(|sender| bytes.with_label_values(&[p.as_str(), sender]))
            })
            .collect();
        let metrics = Self {
            sessions: m.gauges("vscan_sessions", "Sessions that are open now.", &["protocol"]),
            sessions_total: m.counters(
                "vscan_sessions_total",
                "Sessions that were accepted.",
                &["protocol"],
            ),
            sessions_refused: m.counters(
                "vscan_sessions_refused_total",
                "Sessions that were refused, by reason.",
                &["protocol", "reason"],
            ),
            bytes,
            objects: m.counters(
                "vscan_objects_total",
                "Files and messages that were judged.",
                &["protocol", "direction", "verdict", "action"],
            ),
            object_bytes: m.counters(
                "vscan_object_bytes_total",
                "Bytes of the files and messages that were judged.",
                &["protocol", "direction"],
            ),
            unread: m.counters(
                "vscan_unscannable_total",
                "Files and messages that could not be read whole, by reason.",
                &["reason"],
            ),
            scan_seconds: m.add(Histogram::with_opts(
                HistogramOpts::new(
                    "vscan_scan_seconds",
                    "Time from an object's completion to its verdict.",
                )
                .buckets(SCAN_BUCKETS.to_vec()),
            )),
            scan_cpu_seconds: m.add(prometheus::Counter::new(
                "vscan_scan_cpu_seconds_total",
                "CPU time that scanner workers spent on objects.",
            )),
            scan_ahead_bytes: m.counter(
                "vscan_scan_ahead_bytes_total",
                "Bytes of objects that scanner workers looked at while they arrived.",
            ),
            scanner_workers: m.gauges(
                "vscan_scanner_workers",
                "Scanner workers, by state.",
                &["state"],
            ),
            scanner_restarts: m.counters(
                "vscan_scanner_restarts_total",
                "Scanner workers that were replaced, by cause.",
                &["cause"],
            ),
            cache_lookups: m.counters(
                "vscan_cache_lookups_total",
                "Objects, and parts of scanned objects, that were scanned before (hit) or not (miss).",
                &["of", "result"],
            ),
            cache_reports: m.gauge("vscan_cache_reports", "Reports that are kept."),
            cache_bytes: m.gauge("vscan_cache_bytes", "Memory that kept reports take."),
            scanner_rules: m.gauge("vscan_scanner_rules", "Rules that are loaded."),
            rules_info: m.gauges(
                "vscan_rules_info",
                "What objects are judged by: engines, rules, clamd; always 1.",
                &["version"],
            ),
            rules_age: m.add(Gauge::new(
                "vscan_rules_age_seconds",
                "Time since the youngest file of rules was changed; NaN while that is not known.",
            )),
            rules_age_max: m.add(Gauge::new(
                "vscan_rules_age_max_seconds",
                "scan.rules_age_max; infinite where rules may have any age.",
            )),
            clamd: m.clamd(),
            anomalies: m.counters(
                "vscan_anomalies_total",
                "Oddities of peers, by name.",
                &["protocol", "name"],
            ),
            outbound: m.counters(
                "vscan_outbound_exceeded_total",
                "Times that a host inside went over a limit of [outbound], by limit.",
                &["limit"],
            ),
            blocked_senders: m.gauge(
                "vscan_outbound_blocked_hosts",
                "Hosts inside that are blocked for having sent too much mail.",
            ),
            denied: m.counters(
                "vscan_access_denied_total",
                "What [[access]] rules refused in sessions: users, commands, senders, recipients.",
                &["protocol", "what"],
            ),
            uninspected: m.gauges(
                "vscan_flows_uninspected",
                "Flows that pass uninspected now, by reason.",
                &["reason"],
            ),
            meter: Meter::new(&m),
            tls: TlsMetrics::new(&m),
            kernel: m.gauges(
                "vscan_kernel_count",
                "Counters of the BPF programs since they were loaded, by name.",
                &["name"],
            ),
            events_written: m.counter("vscan_events_total", "Events that were written."),
            events_lost: m.counter(
                "vscan_events_lost_total",
                "Events that were lost to a slow or failing event log.",
            ),
            spool_bytes: m.gauges("vscan_spool_bytes", "Bytes of held objects.", &["where"]),
            spool_refused: m.counter(
                "vscan_spool_refused_total",
                "Objects that found no room in the spool.",
            ),
            quarantine_objects: m.gauge("vscan_quarantine_objects", "Objects in the quarantine."),
            quarantine_bytes: m
                .gauge("vscan_quarantine_bytes", "Bytes of the objects in the quarantine."),
            quarantine_failures: m.counter(
                "vscan_quarantine_failures_total",
                "Blocked objects of which no copy could be kept.",
            ),
            mail_doubled: m.counter(
                "vscan_mail_doubled_total",
                "Messages that a server accepted while their client was gone, and that may come twice.",
            ),
            mail_doubtful: m.counter(
                "vscan_mail_doubtful_total",
                "Messages whose server was lost between their end and its answer: accepted or not, they come again.",
            ),
            portions: m.counters(
                "vscan_portions_treated_total",
                "Portions of messages and files that were changed before delivery, by remedy.",
                &["remedy"],
            ),
            unrepaired: m.counters(
                "vscan_treatments_failed_total",
                "Treatments that were not possible or did not help, so that the next one was taken, by cause.",
                &["cause"],
            ),
            notices: m.counters(
                "vscan_notices_total",
                "What became of notices: queued, sent, delayed, dead, suppressed, lost.",
                &["result"],
            ),
            notices_waiting: m.gauges(
                "vscan_notices",
                "Notices in the queue, by state.",
                &["state"],
            ),
            mailbox_messages: m.counters(
                "vscan_mailbox_messages_total",
                "Messages in mailboxes: scanned, settled by their structure, treated, and those whose treatment failed.",
                &["result"],
            ),
            mailbox_accounts: m.gauges(
                "vscan_mailbox_accounts",
                "Accounts whose mailboxes are scanned, by state.",
                &["state"],
            ),
            mailbox_backlog: m.gauge(
                "vscan_mailbox_backlog",
                "Messages in mailboxes that wait to be scanned again by new rules.",
            ),
            reloads: m.counters("vscan_reloads_total", "Reloads, by result.", &["result"]),
            heartbeat_age: m.add(Gauge::new(
                "vscan_heartbeat_age_seconds",
                "Time since the gateway last told the kernel that it lives.",
            )),
            resident: m.gauge(
                "process_resident_memory_bytes",
                "Resident memory of the gateway process.",
            ),
            open_files: m.gauge("process_open_fds", "Open descriptors of the gateway process."),
            last_beat: Mutex::new(None),
            started: Instant::now(),
            registry: m.0,
        };
        metrics.start_at_zero();
        metrics
    }

    /// A series that appears with its first count hides that count from `rate()`: the known ones begin at 0.
    fn start_at_zero(&self) {
        for protocol in Protocol::ALL {
            let p = protocol.as_str();
            self.sessions.with_label_values(&[p]);
            self.sessions_total.with_label_values(&[p]);
            for reason in ["max_sessions", "unreachable"] {
                self.sessions_refused.with_label_values(&[p, reason]);
            }
            for direction in Direction::ALL {
                let d = direction.as_str();
                self.object_bytes.with_label_values(&[p, d]);
                self.objects.with_label_values(&[p, d, "clean", "pass"]);
                self.objects.with_label_values(&[p, d, "infected", "block"]);
            }
        }
        for (protocol, what) in
            [("ftp", "user"), ("ftp", "command"), ("smtp", "sender"), ("smtp", "recipient")]
        {
            self.denied.with_label_values(&[protocol, what]);
        }
        for what in What::ALL {
            self.outbound.with_label_values(&[what.as_str()]);
        }
        for state in ["ready", "busy"] {
            self.scanner_workers.with_label_values(&[state]);
        }
        for cause in ["crash", "deadline"] {
            self.scanner_restarts.with_label_values(&[cause]);
        }
        for of in ["object", "part"] {
            for result in ["hit", "miss"] {
                self.cache_lookups.with_label_values(&[of, result]);
            }
        }
        for place in ["memory", "disk"] {
            self.spool_bytes.with_label_values(&[place]);
        }
        for remedy in ["clean", "scramble", "replace", "strip"] {
            self.portions.with_label_values(&[remedy]);
        }
        for cause in ["unrepairable", "not_clean", "no_copy", "spool", "size"] {
            self.unrepaired.with_label_values(&[cause]);
        }
        for result in ["queued", "sent", "delayed", "dead", "suppressed", "lost"] {
            self.notices.with_label_values(&[result]);
        }
        for result in ["scanned", "settled", "treated", "untreated"] {
            self.mailbox_messages.with_label_values(&[result]);
        }
        for state in State::ALL {
            self.mailbox_accounts.with_label_values(&[state.as_str()]);
        }
        for result in ["done", "refused"] {
            self.reloads.with_label_values(&[result]);
        }
        self.uninspected.with_label_values(&["tls"]);
    }

    pub(super) fn session_opened(&self, protocol: Protocol) {
        self.sessions.with_label_values(&[protocol.as_str()]).inc();
        self.sessions_total.with_label_values(&[protocol.as_str()]).inc();
    }

    pub(super) fn session_closed(&self, protocol: Protocol) {
        self.sessions.with_label_values(&[protocol.as_str()]).dec();
    }

    /// Sessions that are open now.
    #[must_use]
    pub fn sessions(&self) -> u64 {
        let open = |p: &Protocol| self.sessions.with_label_values(&[p.as_str()]).get().max(0);
        Protocol::ALL.iter().map(open).sum::<i64>().unsigned_abs()
    }

    /// A connection was answered with 421 or reset: `max_sessions`, `unreachable`, ...
    pub fn session_refused(&self, protocol: Protocol, reason: &'static str) {
        self.sessions_refused.with_label_values(&[protocol.as_str(), reason]).inc();
    }

    pub(super) fn bytes(&self, protocol: Protocol, from_client: u64, from_server: u64) {
        let [clients, servers] = &self.bytes[protocol as usize];
        if from_client > 0 {
            clients.inc_by(from_client);
        }
        if from_server > 0 {
            servers.inc_by(from_server);
        }
    }

    pub(super) fn object(
        &self,
        protocol: Protocol,
        direction: Direction,
        verdict: Verdict,
        action: Treatment,
        bytes: u64,
        reasons: impl Iterator<Item = Reason>,
    ) {
        let (p, d) = (protocol.as_str(), direction.as_str());
        let labels = [p, d, verdict_str(verdict), action.as_str()];
        self.objects.with_label_values(&labels).inc();
        self.object_bytes.with_label_values(&[p, d]).inc_by(bytes);
        let mut seen = Vec::new();
        for reason in reasons {
            if !seen.contains(&reason) {
                seen.push(reason);
                self.unread.with_label_values(&[reason.as_str()]).inc();
            }
        }
    }

    /// A portion was changed before its message or file was delivered.
    pub fn portion_treated(&self, remedy: &'static str) {
        self.portions.with_label_values(&[remedy]).inc();
    }

    /// A treatment came to nothing, and the next one is taken.
    pub fn treatment_failed(&self, cause: &'static str) {
        self.unrepaired.with_label_values(&[cause]).inc();
    }

    /// Something became of a notice.
    pub fn notice(&self, result: &'static str) {
        self.notices.with_label_values(&[result]).inc();
    }

    /// Something became of messages in mailboxes: `scanned`, `settled`, `treated`, `untreated`.
    pub fn mailbox(&self, result: &'static str, messages: u32) {
        self.mailbox_messages.with_label_values(&[result]).inc_by(u64::from(messages));
    }

    /// How many accounts are in this state.
    pub fn set_mailbox_accounts(&self, state: State, accounts: usize) {
        let gauge = self.mailbox_accounts.with_label_values(&[state.as_str()]);
        gauge.set(accounts.try_into().unwrap_or(i64::MAX));
    }

    /// How many messages in mailboxes wait for a rescan.
    pub fn set_mailbox_backlog(&self, messages: u64) {
        self.mailbox_backlog.set(messages.try_into().unwrap_or(i64::MAX));
    }

    /// How many notices are in the queue.
    pub fn set_notices(&self, counts: crate::notify::Counts) {
        let set = |state, n: u64| {
            self.notices_waiting.with_label_values(&[state]).set(n.try_into().unwrap_or(i64::MAX));
        };
        set("waiting", counts.waiting);
        set("dead", counts.dead);
    }

    /// A scan ended: wall-clock seconds from the request to the verdict, and the worker's CPU time.
    pub fn scanned(&self, seconds: f64, cpu_micros: u64) {
        self.scan_seconds.observe(seconds);
        #[expect(clippy::cast_precision_loss, reason = "microseconds below 2^53")]
        self.scan_cpu_seconds.inc_by(cpu_micros as f64 / 1e6);
    }

    /// So many bytes of an object were looked at while it arrived.
    pub fn looked_ahead(&self, bytes: u64) {
        self.scan_ahead_bytes.inc_by(bytes);
    }

    /// How many scanner workers there are and how many of them have an object.
    pub fn set_workers(&self, ready: usize, busy: usize) {
        let set = |state, n: usize| {
            self.scanner_workers.with_label_values(&[state]).set(n.try_into().unwrap_or(i64::MAX));
        };
        set("ready", ready);
        set("busy", busy);
    }

    /// How many scanner workers ended so far, by themselves and because they were killed at their deadline.
    pub fn set_worker_ends(&self, crashes: u64, kills: u64) {
        for (cause, now) in [("crash", crashes), ("deadline", kills)] {
            let counter = self.scanner_restarts.with_label_values(&[cause]);
            // one caller at a time, the scrape: nothing is counted between the two
            counter.inc_by(now.saturating_sub(counter.get()));
        }
    }

    /// What was scanned before, as counted so far, and what is kept.
    pub fn set_cache(&self, cache: &crate::scanner::CacheStatus) {
        for (of, result, now) in [
            ("object", "hit", cache.hits),
            ("object", "miss", cache.misses),
            ("part", "hit", cache.part_hits),
            ("part", "miss", cache.part_misses),
        ] {
            let counter = self.cache_lookups.with_label_values(&[of, result]);
            // one caller at a time, the scrape: nothing is counted between the two
            counter.inc_by(now.saturating_sub(counter.get()));
        }
        self.cache_reports.set(cache.reports.try_into().unwrap_or(i64::MAX));
        self.cache_bytes.set(cache.bytes.try_into().unwrap_or(i64::MAX));
    }

    /// What objects are judged by, and how old it is.
    pub fn set_rules(
        &self,
        scanner: &crate::scanner::Status,
        age_max: Option<std::time::Duration>,
    ) {
        self.scanner_rules.set(scanner.rule_count.try_into().unwrap_or(i64::MAX));
        self.rules_info.reset();
        if !scanner.rules.is_empty() {
            self.rules_info.with_label_values(&[&scanner.rules]).set(1);
        }
        #[expect(clippy::cast_precision_loss, reason = "seconds below 2^53")]
        self.rules_age.set(scanner.rules_age.map_or(f64::NAN, |age| age as f64));
        self.rules_age_max.set(age_max.map_or(f64::INFINITY, |age| age.as_secs_f64()));
    }

    /// What is counted of clamd.
    pub fn clamd(&self) -> &clamd::Counters {
        &self.clamd
    }

    pub(super) fn anomaly(&self, protocol: Protocol, name: &'static str) {
        self.anomalies.with_label_values(&[protocol.as_str(), name]).inc();
    }

    pub(super) fn denied(&self, protocol: Protocol, what: &'static str) {
        self.denied.with_label_values(&[protocol.as_str(), what]).inc();
    }

    /// A host inside went over a limit of `[outbound]`.
    pub fn sends_too_much(&self, limit: &'static str) {
        self.outbound.with_label_values(&[limit]).inc();
    }

    /// How many hosts are blocked for it.
    pub fn set_blocked_senders(&self, hosts: usize) {
        self.blocked_senders.set(hosts.try_into().unwrap_or(i64::MAX));
    }

    /// An oddity outside of any flow's session.
    pub fn anomaly_without_flow(&self, name: &'static str) {
        self.anomalies.with_label_values(&["none", name]).inc();
    }

    pub(super) fn tls_passed(&self) {
        self.uninspected.with_label_values(&["tls"]).inc();
    }

    pub(super) fn tls_ended(&self) {
        self.uninspected.with_label_values(&["tls"]).dec();
    }

    /// How many flows pass uninspected now, beside those of [`FlowHandle::set_tls_passed`](super::Flow::set_tls_passed).
    pub fn set_uninspected_now(&self, reason: &'static str, flows: u64) {
        self.uninspected.with_label_values(&[reason]).set(flows.try_into().unwrap_or(i64::MAX));
    }

    /// The value of a kernel counter.
    pub fn set_kernel(&self, name: &'static str, value: u64) {
        self.kernel.with_label_values(&[name]).set(value.try_into().unwrap_or(i64::MAX));
    }

    pub(super) fn event_written(&self, n: u64) {
        self.events_written.inc_by(n);
    }

    pub(super) fn event_lost(&self, n: u64) {
        self.events_lost.inc_by(n);
    }

    pub(super) fn uptime(&self) -> std::time::Duration {
        self.started.elapsed()
    }

    pub(super) fn sessions_total(&self) -> u64 {
        Protocol::ALL
            .iter()
            .map(|p| self.sessions_total.with_label_values(&[p.as_str()]).get())
            .sum()
    }

    pub(super) fn objects(&self) -> Objects {
        let mut objects = Objects::default();
        for (labels, count) in series(&self.objects) {
            match labels.get("verdict").map(String::as_str) {
                Some("clean") => objects.clean += count,
                Some("infected") => objects.infected += count,
                Some("unscannable") => objects.unscannable += count,
                _ => objects.error += count,
            }
        }
        objects
    }

    /// Flows that passed uninspected since the start, by reason; those without any are left out.
    pub(super) fn uninspected_by_reason(&self) -> BTreeMap<String, u64> {
        self.meter
            .flows_by_reason()
            .map(|(reason, count)| (reason.as_str().to_owned(), count))
            .filter(|(_, count)| *count > 0)
            .collect()
    }

    pub(super) fn quarantine(&self) -> Usage {
        let value = |gauge: &IntGauge| gauge.get().max(0).unsigned_abs();
        Usage { objects: value(&self.quarantine_objects), bytes: value(&self.quarantine_bytes) }
    }

    /// Events that were lost so far.
    #[must_use]
    pub fn events_lost(&self) -> u64 {
        self.events_lost.get()
    }

    /// Bytes of held objects.
    pub fn set_spool(&self, memory: u64, disk: u64) {
        let set = |place, n: u64| {
            self.spool_bytes.with_label_values(&[place]).set(n.try_into().unwrap_or(i64::MAX));
        };
        set("memory", memory);
        set("disk", disk);
    }

    /// An object found no room in the spool.
    pub fn spool_refused(&self) {
        self.spool_refused.inc();
    }

    /// What the quarantine holds.
    pub fn set_quarantine(&self, usage: Usage) {
        let Usage { objects, bytes } = usage;
        self.quarantine_objects.set(objects.try_into().unwrap_or(i64::MAX));
        self.quarantine_bytes.set(bytes.try_into().unwrap_or(i64::MAX));
    }

    /// A blocked object of which no copy could be kept.
    pub fn quarantine_failed(&self) {
        self.quarantine_failures.inc();
    }

    /// A server was lost after it had a message and before its answer.
    pub fn mail_doubtful(&self) {
        self.mail_doubtful.inc();
    }

    /// A server accepted a message whose client was gone (RFC 1047).
    pub fn mail_doubled(&self) {
        self.mail_doubled.inc();
    }

    /// A reload was done, or refused because what is new is wrong.
    pub fn reloaded(&self, done: bool) {
        self.reloads.with_label_values(&[if done { "done" } else { "refused" }]).inc();
    }

    /// The gateway told the kernel (by way of the supervisor) that it lives.
    pub fn beat(&self) {
        let mut last = self.last_beat.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *last = Some(Instant::now());
    }

    /// Seconds since the last [`beat`](Self::beat); none before the first.
    #[must_use]
    pub fn heartbeat_age(&self) -> Option<f64> {
        let last = *self.last_beat.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        last.map(|at| at.elapsed().as_secs_f64())
    }

    /// The text exposition of everything.
    #[must_use]
    pub fn render(&self) -> Vec<u8> {
        self.heartbeat_age.set(self.heartbeat_age().unwrap_or(f64::NAN));
        self.resident.set(resident_bytes().unwrap_or(0));
        let fds = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
        // one of them is the directory itself
        self.open_files.set(i64::try_from(fds).unwrap_or(i64::MAX) - 1);
        let mut out = Vec::with_capacity(16 << 10);
        if let Err(e) = TextEncoder::new().encode(&self.registry.gather(), &mut out) {
            tracing::error!("metrics cannot be encoded: {e}");
        }
        out
    }
}

/// Labels and value of every series of a counter.
fn series(counters: &IntCounterVec) -> Vec<(HashMap<String, String>, u64)> {
    use prometheus::core::Collector;
    let mut out = Vec::new();
    for family in counters.collect() {
        for metric in family.get_metric() {
            let labels = metric.get_label();
            let labels =
                labels.iter().map(|l| (l.name().to_owned(), l.value().to_owned())).collect();
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a counter of integers, given as a float"
            )]
            out.push((labels, metric.get_counter().get_value() as u64));
        }
    }
    out
}

/// Resident memory of this process in bytes: proc_pid_statm(5), second field, in pages.
fn resident_bytes() -> Option<i64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: i64 = statm.split(' ').nth(1)?.parse().ok()?;
    Some(pages * i64::try_from(rustix::param::page_size()).ok()?)
}

//! What the keys of each section mean, and what must hold between them.

use super::forbid::{self, SkippedType};
use super::read::{Reader, Scalar, Table, Wrong};
use super::types::{
    Config, Ftp, Gateway, HOLD_BACK_MIN, Log, Marks, Metrics, Paths, Quarantine, RateLimit, Scan,
    Smtp, Spool,
};
use super::value::{EhloKeyword, Extension, OrNone, Size};
use super::{access, cache, clamd, mailbox, notify, outbound, tls, treat, update};
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::time::Duration;
use vscan_scan::limits::{Limits, THREADS_MAX};

/// Reads the whole document. What it returns is right only if `r` has no problems afterwards.
pub(super) fn document(r: &mut Reader<'_>, mut root: Table<'_, '_>) -> Config {
    let config = Config {
        gateway: gateway(r, &mut root),
        paths: paths(r, &mut root),
        access: root.tables(r, "access").into_iter().map(|t| access::read(r, t)).collect(),
        ftp: ftp(r, &mut root),
        smtp: smtp(r, &mut root),
        scan: scan(r, &mut root),
        treat: treat::rules(r, &mut root),
        types: forbid::read(r, &mut root),
        outbound: outbound::read(r, &mut root),
        quarantine: quarantine(r, &mut root),
        spool: spool(r, &mut root),
        metrics: metrics(r, &mut root),
        log: log(r, &mut root),
        notify: notify::section(r, &mut root),
        mailboxes: mailbox::sections(r, &mut root),
        tls: tls::read(r, &mut root),
    };
    between(r, &mut root, &config);
    notify::between(r, &root, &config);
    tls::between(r, &root, &config);
    root.finish(r);
    config
}

fn gateway(r: &mut Reader<'_>, root: &mut Table<'_, '_>) -> Gateway {
    let there = root.has("gateway");
    let mut t = root.table(r, "gateway");
    let d = Gateway::default();
    for (key, example) in
        [("interfaces", "[\"lan0\", \"wan0\"]"), ("inside", "[\"192.168.0.0/16\"]")]
    {
        // The scanner of mailboxes needs no gateway.
        if !t.has(key) && (there || !root.has("mailbox")) {
            let help = format!("write {key} = {example} below [gateway]");
            if there {
                r.report(t.span(), Wrong::new(format!("`gateway.{key}` is missing")).help(help));
            } else {
                r.report_document(format!("`gateway.{key}` is missing"), help);
            }
        }
    }
    let mut marks = t.table(r, "marks");
    let gateway = Gateway {
        interfaces: distinct(r, &mut t, "interfaces"),
        inside: filled(r, &mut t, "inside"),
        exempt: t.list(r, "exempt", d.exempt),
        deny: t.list(r, "deny", d.deny),
        on_agent_down: t.get(r, "on_agent_down", d.on_agent_down),
        steering: t.get(r, "steering", d.steering),
        attach: t.get(r, "attach", d.attach),
        publish: t.list(r, "publish", d.publish),
        intercept_own: t.get(r, "intercept_own", d.intercept_own),
        rate_limit: rate_limit(r, &mut t),
        marks: read_marks(r, &mut marks, d.marks),
        table: t.get(r, "table", d.table),
        tproxy_port: t.get(r, "tproxy_port", d.tproxy_port),
        max_sessions: t.get(r, "max_sessions", d.max_sessions),
        workers: t.get(r, "workers", d.workers),
        busy_poll: busy_poll(r, &mut t, d.busy_poll),
        drain: t.get(r, "drain", d.drain),
        connect_timeout: positive(r, &mut t, "connect_timeout", d.connect_timeout),
        idle_timeout: positive(r, &mut t, "idle_timeout", d.idle_timeout),
    };
    marks.finish(r);
    t.finish(r);
    gateway
}

/// The longest time that a thread may look out for an event, and take a core's time from a host that has other guests.
const BUSY_POLL_MAX: Duration = Duration::from_millis(10);

fn busy_poll(r: &mut Reader<'_>, t: &mut Table<'_, '_>, otherwise: Duration) -> Duration {
    let time = t.get(r, "busy_poll", otherwise);
    if time > BUSY_POLL_MAX {
        let most = format!("`{}` must be at most {BUSY_POLL_MAX:?}", t.name("busy_poll"));
        r.report(
            t.span_of("busy_poll"),
            Wrong::new(most).help("a hundred microseconds are enough"),
        );
    }
    time
}

/// A list that must not be empty.
fn filled<T: Scalar>(r: &mut Reader<'_>, t: &mut Table<'_, '_>, key: &'static str) -> Vec<T> {
    let empty =
        t.raw(key).is_some_and(|raw| raw.get_ref().as_array().is_some_and(|a| a.is_empty()));
    if empty {
        r.report(t.span_of(key), Wrong::new(format!("`{}` must not be empty", t.name(key))));
    }
    t.list(r, key, Vec::new())
}

/// A list that must not be empty nor name a thing twice.
fn distinct<T: Scalar + PartialEq + std::fmt::Display>(
    r: &mut Reader<'_>,
    t: &mut Table<'_, '_>,
    key: &'static str,
) -> Vec<T> {
    let list: Vec<T> = filled(r, t, key);
    for (n, value) in list.iter().enumerate() {
        if list[..n].contains(value) {
            let wrong = Wrong::new(format!("`{}` names {value} twice", t.name(key)));
            r.report(t.span_of(key), wrong);
        }
    }
    list
}

pub(super) fn positive(
    r: &mut Reader<'_>,
    t: &mut Table<'_, '_>,
    key: &'static str,
    default: Duration,
) -> Duration {
    let value = t.get(r, key, default);
    if value.is_zero() {
        r.report(t.span_of(key), Wrong::new(format!("`{}` must be more than 0", t.name(key))));
    }
    value
}

pub(super) fn size(
    r: &mut Reader<'_>,
    t: &mut Table<'_, '_>,
    key: &'static str,
    default: u64,
) -> u64 {
    let Size(value) = t.get(r, key, Size(default));
    if value == 0 {
        r.report(t.span_of(key), Wrong::new(format!("`{}` must be more than 0", t.name(key))));
    }
    value
}

pub(super) fn number(
    r: &mut Reader<'_>,
    t: &mut Table<'_, '_>,
    key: &'static str,
    default: u32,
) -> u32 {
    let value = t.get(r, key, default);
    if value == 0 {
        r.report(t.span_of(key), Wrong::new(format!("`{}` must be more than 0", t.name(key))));
    }
    value
}

fn size_u32(r: &mut Reader<'_>, t: &mut Table<'_, '_>, key: &'static str, default: u32) -> u32 {
    let value = size(r, t, key, default.into());
    u32::try_from(value).unwrap_or_else(|_| {
        r.report(t.span_of(key), Wrong::new(format!("`{}` must be less than 4 GiB", t.name(key))));
        default
    })
}

/// Whole seconds, rounded up.
fn seconds(duration: Duration) -> u32 {
    duration.as_millis().div_ceil(1000).try_into().unwrap_or(u32::MAX)
}

fn rate_limit(r: &mut Reader<'_>, t: &mut Table<'_, '_>) -> Option<RateLimit> {
    if t.raw("rate_limit")?.get_ref().as_table().is_none() {
        let wrong = Wrong::new("`gateway.rate_limit` must be a table")
            .help("write rate_limit = { per_second = 50, burst = 100 }");
        r.report(t.span_of("rate_limit"), wrong);
        return None;
    }
    let mut t = t.table(r, "rate_limit");
    let per_second = t.opt(r, "per_second");
    let burst = t.opt(r, "burst").or(per_second);
    if !t.has("per_second") {
        let wrong = Wrong::new("`gateway.rate_limit.per_second` is missing")
            .help("write rate_limit = { per_second = 50, burst = 100 }");
        r.report(t.span(), wrong);
    }
    t.finish(r);
    Some(RateLimit { per_second: per_second?, burst: burst? })
}

fn read_marks(r: &mut Reader<'_>, t: &mut Table<'_, '_>, d: Marks) -> Marks {
    let mask = number(r, t, "mask", d.mask);
    let keys = ["client", "upstream", "bypass", "related"];
    let defaults = [d.client, d.upstream, d.bypass, d.related];
    let mut values = [0; 4];
    for n in 0..keys.len() {
        values[n] = number(r, t, keys[n], defaults[n]);
        if values[n] & !mask != 0 {
            let wrong = Wrong::new(format!(
                "`{}` = {:#x} has bits outside of the mask {mask:#x}",
                t.name(keys[n]),
                values[n]
            ))
            .help("set mask and all four marks together");
            r.report(t.span_of(keys[n]), wrong);
        }
        if let Some(same) = values[..n].iter().position(|v| *v == values[n]) {
            let wrong =
                Wrong::new(format!("`{}` equals `{}`", t.name(keys[n]), t.name(keys[same])));
            r.report(t.span_of(keys[n]), wrong);
        }
    }
    let [client, upstream, bypass, related] = values;
    Marks { client, upstream, bypass, related, mask }
}

pub(super) fn paths(r: &mut Reader<'_>, root: &mut Table<'_, '_>) -> Paths {
    let mut t = root.table(r, "paths");
    // Without a gateway any user may run it, who has no other directories than his own.
    let d = if root.has("gateway") { Paths::default() } else { Paths::of_user() };
    let run_dir = t.get(r, "run_dir", d.run_dir);
    let state_dir = t.get(r, "state_dir", d.state_dir);
    let events = d.events;
    let d = Paths { events, ..Paths::below(&run_dir, &state_dir) };
    let paths = Paths {
        control: t.get(r, "control", d.control),
        bpffs: t.get(r, "bpffs", d.bpffs),
        spool: t.get(r, "spool", d.spool),
        quarantine: t.get(r, "quarantine", d.quarantine),
        events: t.get(r, "events", d.events),
        scanner: t.opt(r, "scanner"),
        run_dir,
        state_dir,
    };
    // sockaddr_un.sun_path holds 108 bytes with the final NUL (unix(7)); 4 are for the name it is first bound by
    if paths.control.as_os_str().len() > 103 {
        let wrong = Wrong::new(
            "`paths.control` is longer than 103 bytes, the most that a socket's path can have",
        );
        r.report(t.span_of("control"), wrong);
    }
    t.finish(r);
    paths
}

fn ftp(r: &mut Reader<'_>, root: &mut Table<'_, '_>) -> Ftp {
    let mut t = root.table(r, "ftp");
    let d = Ftp::default();
    let patience = t.opt::<OrNone<Duration>>(r, "server_patience");
    let ftp = Ftp {
        ports: t.list(r, "ports", d.ports),
        tls_ports: t.list(r, "tls_ports", d.tls_ports),
        delivery: t.get(r, "delivery", d.delivery),
        hold_back: size(r, &mut t, "hold_back", d.hold_back),
        tls: t.get(r, "tls", d.tls),
        no_close_notify: t.list(r, "no_close_notify", d.no_close_notify),
        resume: t.get(r, "resume", d.resume),
        noop_interval: positive(r, &mut t, "noop_interval", d.noop_interval),
        announce: t.get(r, "announce", d.announce),
        server_patience: patience.and_then(OrNone::into_option),
    };
    if ftp.hold_back < HOLD_BACK_MIN {
        let wrong =
            Wrong::new(format!("`ftp.hold_back` must be at least {} KiB", HOLD_BACK_MIN >> 10));
        r.report(t.span_of("hold_back"), wrong);
    }
    t.finish(r);
    ftp
}

fn smtp(r: &mut Reader<'_>, root: &mut Table<'_, '_>) -> Smtp {
    let mut t = root.table(r, "smtp");
    let d = Smtp::default();
    let smtp = Smtp {
        ports: t.list(r, "ports", d.ports),
        tls_ports: t.list(r, "tls_ports", d.tls_ports),
        lmtp_ports: t.list(r, "lmtp_ports", d.lmtp_ports),
        delivery: t.get(r, "delivery", d.delivery),
        starttls: t.get(r, "starttls", d.starttls),
        bare_newline: t.get(r, "bare_newline", d.bare_newline),
        hide_extensions: t
            .list::<EhloKeyword>(r, "hide_extensions", Vec::new())
            .into_iter()
            .map(|EhloKeyword(keyword)| keyword)
            .collect(),
        own_mail: t.get(r, "own_mail", d.own_mail),
        noop_interval: positive(r, &mut t, "noop_interval", d.noop_interval),
    };
    t.finish(r);
    smtp
}

fn scan(r: &mut Reader<'_>, root: &mut Table<'_, '_>) -> Scan {
    let mut t = root.table(r, "scan");
    let d = Scan::default();
    let rules: Vec<PathBuf> =
        if t.has("rules") { filled(r, &mut t, "rules") } else { t.list(r, "rules", d.rules) };
    let mut limits = t.table(r, "limits");
    let cache = cache::read(r, &mut t);
    let deadline = positive(r, &mut t, "deadline", d.deadline);
    let clamd = clamd::read(r, &mut t);
    let update = update::read(r, &mut t);
    let rules_age_max = t.opt::<OrNone<Duration>>(r, "rules_age_max");
    let scan = Scan {
        rules,
        rules_age_max: rules_age_max.map_or(d.rules_age_max, OrNone::into_option),
        clamd,
        update,
        rules_key: t.opt(r, "rules_key"),
        skip_extensions: t
            .list::<Extension>(r, "skip_extensions", Vec::new())
            .into_iter()
            .map(|Extension(e)| e)
            .collect(),
        skip_types: t
            .list::<SkippedType>(r, "skip_types", Vec::new())
            .into_iter()
            .map(|SkippedType(name)| name)
            .collect(),
        verify_type: t.get(r, "verify_type", d.verify_type),
        limits: Limits {
            object_size: size(r, &mut limits, "object_size", d.limits.object_size),
            unpacked_size: size(r, &mut limits, "unpacked_size", d.limits.unpacked_size),
            ratio: number(r, &mut limits, "ratio", d.limits.ratio),
            depth: number(r, &mut limits, "depth", d.limits.depth),
            members: number(r, &mut limits, "members", d.limits.members),
            headers: number(r, &mut limits, "headers", d.limits.headers),
            header_bytes: size_u32(r, &mut limits, "header_bytes", d.limits.header_bytes),
            seconds: seconds(deadline),
            memory: size(r, &mut limits, "memory", d.limits.memory),
            known_parts: if cache.memory.is_some() { d.limits.known_parts } else { 0 },
        },
        cache,
        deadline,
        workers: t.get(r, "workers", d.workers),
        threads: t.get(r, "threads", d.threads),
    };
    // the most that the scanner takes
    if scan.threads.get() > THREADS_MAX as usize {
        let wrong = format!("`scan.threads` must be at most {THREADS_MAX}");
        r.report(t.span_of("threads"), Wrong::new(wrong));
    }
    if scan.workers.get() > 1024 {
        r.report(t.span_of("workers"), Wrong::new("`scan.workers` must be at most 1024"));
    }
    limits.finish(r);
    t.finish(r);
    scan
}

fn quarantine(r: &mut Reader<'_>, root: &mut Table<'_, '_>) -> Quarantine {
    let mut t = root.table(r, "quarantine");
    let d = Quarantine::default();
    let max_age = t.opt::<OrNone<Duration>>(r, "max_age");
    let max_size = t.opt::<OrNone<Size>>(r, "max_size");
    let quarantine = Quarantine {
        max_age: max_age.map_or(d.max_age, OrNone::into_option),
        max_size: max_size.map_or(d.max_size, |v| v.into_option().map(|Size(n)| n)),
        min_free: t.get(r, "min_free", Size(d.min_free)).0,
    };
    t.finish(r);
    quarantine
}

fn spool(r: &mut Reader<'_>, root: &mut Table<'_, '_>) -> Spool {
    let mut t = root.table(r, "spool");
    let d = Spool::default();
    let spool = Spool {
        memory: size(r, &mut t, "memory", d.memory),
        disk: size(r, &mut t, "disk", d.disk),
        hold_max: size(r, &mut t, "hold_max", d.hold_max),
    };
    if spool.hold_max > spool.disk {
        let wrong = Wrong::new(format!(
            "`spool.hold_max` ({} bytes) is more than `spool.disk` ({} bytes): such an object could never be held",
            spool.hold_max, spool.disk
        ));
        r.report(t.span_of("hold_max"), wrong);
    }
    t.finish(r);
    spool
}

fn metrics(r: &mut Reader<'_>, root: &mut Table<'_, '_>) -> Metrics {
    let mut t = root.table(r, "metrics");
    let listen = t.opt::<OrNone<std::net::SocketAddr>>(r, "listen");
    // Scanners of mailboxes are many on one machine: each of its users may have one.
    let default = Metrics::default().listen.filter(|_| root.has("gateway"));
    let metrics = Metrics { listen: listen.map_or(default, OrNone::into_option) };
    t.finish(r);
    metrics
}

fn log(r: &mut Reader<'_>, root: &mut Table<'_, '_>) -> Log {
    let mut t = root.table(r, "log");
    let d = Log::default();
    let log = Log { level: t.get(r, "level", d.level), format: t.get(r, "format", d.format) };
    if let Err(e) = tracing_subscriber::EnvFilter::try_new(&log.level) {
        let wrong =
            Wrong::new(format!("`log.level`: {e}")).help("write error, warn, info, debug or trace");
        r.report(t.span_of("level"), wrong);
    }
    t.finish(r);
    log
}

/// What must hold between sections.
fn between(r: &mut Reader<'_>, root: &mut Table<'_, '_>, c: &Config) {
    let taken = |ports: &[NonZeroU16]| ports.contains(&c.gateway.tproxy_port);
    let all = [
        ("ftp", "ports", &c.ftp.ports),
        ("ftp", "tls_ports", &c.ftp.tls_ports),
        ("smtp", "ports", &c.smtp.ports),
        ("smtp", "tls_ports", &c.smtp.tls_ports),
        ("smtp", "lmtp_ports", &c.smtp.lmtp_ports),
    ];
    for (section, key, ports) in all {
        let at = root.table_span(section, key);
        for (n, port) in ports.iter().enumerate() {
            if ports[..n].contains(port) {
                r.report(at.clone(), Wrong::new(format!("`{section}.{key}` names {port} twice")));
            }
        }
        if taken(ports) {
            let wrong = Wrong::new(format!(
                "`{section}.{key}` contains {}, the port of `gateway.tproxy_port`",
                c.gateway.tproxy_port
            ));
            r.report(at, wrong);
        }
    }
    if let Some(port) = c.ftp.tls_ports.iter().find(|p| c.ftp.ports.contains(p)) {
        let wrong = Wrong::new(format!("port {port} is in both `ftp.ports` and `ftp.tls_ports`"))
            .help("write ports that begin with TLS into `ftp.tls_ports` alone");
        r.report(root.table_span("ftp", "tls_ports"), wrong);
    }
    if let Some(port) = c.smtp.all_ports().find(|p| c.ftp.tls_ports.contains(p)) {
        let wrong = Wrong::new(format!("port {port} is in both `ftp.tls_ports` and `[smtp]`"))
            .help("the protocol is known by the port: write it into one of them");
        r.report(root.table_span("ftp", "tls_ports"), wrong);
    }
    if let Some(port) = c.smtp.ports.iter().find(|p| c.ftp.ports.contains(p)) {
        let wrong = Wrong::new(format!("port {port} is in both `ftp.ports` and `smtp.ports`"))
            .help("the protocol is known by the port: write it into one of them");
        r.report(root.table_span("smtp", "ports"), wrong);
    }
    for (other, ports) in [
        ("ftp.ports", &c.ftp.ports),
        ("smtp.ports", &c.smtp.ports),
        ("smtp.lmtp_ports", &c.smtp.lmtp_ports),
    ] {
        if let Some(port) = c.smtp.tls_ports.iter().find(|p| ports.contains(p)) {
            let wrong =
                Wrong::new(format!("port {port} is in both `{other}` and `smtp.tls_ports`"))
                    .help("how a session begins is known by the port: write it into one of them");
            r.report(root.table_span("smtp", "tls_ports"), wrong);
        }
    }
    for (other, ports) in [("ftp.ports", &c.ftp.ports), ("smtp.ports", &c.smtp.ports)] {
        if let Some(port) = c.smtp.lmtp_ports.iter().find(|p| ports.contains(p)) {
            let wrong =
                Wrong::new(format!("port {port} is in both `{other}` and `smtp.lmtp_ports`"))
                    .help("the protocol is known by the port: write it into one of them");
            r.report(root.table_span("smtp", "lmtp_ports"), wrong);
        }
    }
    if c.ftp.all_ports().next().is_none()
        && c.smtp.all_ports().next().is_none()
        && c.mailboxes.is_empty()
    {
        r.report(
            root.table_span("ftp", "ports"),
            Wrong::new("`ftp.ports` and `smtp.ports` are both empty: nothing to do"),
        );
    }
}

//! The sections of the configuration and their defaults.

use super::access::Access;
use super::cache::Cache;
use super::clamd::Clamd;
use super::forbid::Types;
use super::notify::Notify;
use super::outbound::Outbound;
use super::terms::{
    Attach, BareNewline, Delivery, FtpDelivery, FtpTls, LogFormat, OnAgentDown, Resume, Steering,
    TlsAction,
};
use super::tls::Tls;
use super::treat::Treat;
use super::update::Update;
use ipnet::IpNet;
use serde::Serialize;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::{NonZeroU16, NonZeroU32, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::time::Duration;
use vscan_scan::limits::{Limits, THREADS_MAX};

/// The configuration: proven, immutable, shared by `Arc`.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// `[gateway]`
    pub gateway: Gateway,
    /// `[paths]`
    pub paths: Paths,
    /// `[[access]]`, first match wins; empty: clients inside may reach everything
    pub access: Vec<Access>,
    /// `[ftp]`
    pub ftp: Ftp,
    /// `[smtp]`
    pub smtp: Smtp,
    /// `[scan]`
    pub scan: Scan,
    /// `[[treat]]`, first match wins
    pub treat: Vec<Treat>,
    /// `[types]`
    pub types: Types,
    /// `[outbound]`
    pub outbound: Outbound,
    /// `[quarantine]`
    pub quarantine: Quarantine,
    /// `[spool]`
    pub spool: Spool,
    /// `[metrics]`
    pub metrics: Metrics,
    /// `[log]`
    pub log: Log,
    /// `[notify]`
    pub notify: Notify,
    /// `[mailbox.NAME]`
    pub mailboxes: Vec<super::mailbox::Mailbox>,
    /// `[tls]`
    pub tls: Tls,
}

/// `[gateway]`: where the gateway stands and how it is reached.
#[derive(Clone, Debug, PartialEq)]
pub struct Gateway {
    /// The guarded interfaces. Empty only where there is no `[gateway]`, but mailboxes.
    pub interfaces: Vec<Interface>,
    /// The networks that the gateway protects. Empty as `interfaces` may be.
    pub inside: Vec<IpNet>,
    /// Networks whose connections pass uninspected, as client or as server.
    pub exempt: Vec<IpNet>,
    /// Networks whose connections to our ports are dropped, by client.
    pub deny: Vec<IpNet>,
    /// What happens to new connections while the agent is dead or hangs.
    pub on_agent_down: OnAgentDown,
    /// How connections are steered.
    pub steering: Steering,
    /// How BPF programs are attached.
    pub attach: Attach,
    /// Services inside that are public without DNAT.
    pub publish: Vec<Published>,
    /// Whether the gateway's own outgoing connections are intercepted too.
    pub intercept_own: bool,
    /// New connections per client address and second; none: unlimited. BPF steering only.
    pub rate_limit: Option<RateLimit>,
    /// Packet marks.
    pub marks: Marks,
    /// The routing table for intercepted packets.
    pub table: TableNumber,
    /// The port that tproxy hands connections to, on 127.0.0.1 and ::1.
    pub tproxy_port: NonZeroU16,
    /// Sessions at one time; more are refused with 421.
    pub max_sessions: NonZeroUsize,
    /// Threads that move bytes.
    pub workers: NonZeroUsize,
    /// How long each of them looks out for its next event before it sleeps; zero: it does not.
    pub busy_poll: Duration,
    /// How long sessions may go on after a stop was asked for.
    pub drain: Duration,
    /// How long connecting to a server may take.
    pub connect_timeout: Duration,
    /// How long a session may be silent on both legs.
    pub idle_timeout: Duration,
}

/// `[gateway.marks]`: the packet marks that vscan uses, all within `mask`, all different, none 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marks {
    /// Packets of client legs, and of replies on upstream legs, that are delivered to the gateway.
    pub client: u32,
    /// Packets that the gateway sends on upstream legs.
    pub upstream: u32,
    /// Connections that pass uninspected.
    pub bypass: u32,
    /// Connections that a conntrack helper relates to ours.
    pub related: u32,
    /// The bits that belong to vscan.
    pub mask: u32,
}

/// New connections that one client address may open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// Sustained rate, per second.
    pub per_second: NonZeroU32,
    /// How many may come at once.
    pub burst: NonZeroU32,
}

/// A service that is public: an address or network, and perhaps one port of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    /// Where the server is.
    pub net: IpNet,
    /// Its port; none: every port of the protocols.
    pub port: Option<NonZeroU16>,
}

/// A name that a network interface can have: 1 to 15 bytes (`IFNAMSIZ` - 1), no slash, colon or white space.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Interface(String);

impl Interface {
    /// None when the kernel would refuse the name (`dev_valid_name`).
    #[must_use]
    pub fn new(name: &str) -> Option<Self> {
        let fits = (1..=15).contains(&name.len()) && name != "." && name != "..";
        let clean =
            !name.bytes().any(|b| b == b'/' || b == b':' || b == b'"' || b <= b' ' || b == 0x7f);
        (fits && clean).then(|| Self(name.to_owned()))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Interface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// The number of a routing table that may belong to vscan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableNumber(NonZeroU32);

impl TableNumber {
    /// None for the tables that the system uses: 0, 253, 254, 255.
    #[must_use]
    pub fn new(number: u32) -> Option<Self> {
        NonZeroU32::new(number).filter(|n| !(253..=255).contains(&n.get())).map(Self)
    }

    /// The number.
    #[must_use]
    pub fn get(self) -> u32 {
        self.0.get()
    }
}

/// `[paths]`: every place that vscan writes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// Base of what lives as long as the agent.
    pub run_dir: PathBuf,
    /// Base of what survives it.
    pub state_dir: PathBuf,
    /// The control socket.
    pub control: PathBuf,
    /// Directory for pinned maps and links, on a bpffs.
    pub bpffs: PathBuf,
    /// Directory for objects too large for memory; its files have no names.
    pub spool: PathBuf,
    /// Directory of the quarantine.
    pub quarantine: PathBuf,
    /// The event log.
    pub events: PathBuf,
    /// The scanner's program; none: `vscan-scanner` beside `vscan`.
    pub scanner: Option<PathBuf>,
}

impl Paths {
    /// The paths below the two base directories.
    #[must_use]
    pub fn below(run_dir: &Path, state_dir: &Path) -> Self {
        Self {
            control: run_dir.join("control.sock"),
            bpffs: PathBuf::from("/sys/fs/bpf/vscan"),
            spool: state_dir.join("spool"),
            quarantine: state_dir.join("quarantine"),
            events: PathBuf::from("/var/log/vscan/events.json"),
            scanner: None,
            run_dir: run_dir.to_owned(),
            state_dir: state_dir.to_owned(),
        }
    }

    /// The paths of whoever runs this process: the system's for root, below his own directories for others
    /// (XDG Base Directory Specification).
    #[must_use]
    pub fn of_user() -> Self {
        let absolute = |variable| {
            std::env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute())
        };
        let state = || {
            let home = absolute("HOME").map(|home| home.join(".local/state"));
            absolute("XDG_STATE_HOME").or(home).map(|base| base.join("vscan"))
        };
        match state() {
            Some(state) if !rustix::process::geteuid().is_root() => {
                let run =
                    absolute("XDG_RUNTIME_DIR").map_or(state.clone(), |run| run.join("vscan"));
                Self { events: state.join("events.json"), ..Self::below(&run, &state) }
            }
            _ => Self::default(),
        }
    }
}

impl Default for Paths {
    fn default() -> Self {
        Self::below(Path::new("/run/vscan"), Path::new("/var/lib/vscan"))
    }
}

/// `[ftp]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ftp {
    /// Server ports; with `tls_ports` empty as well FTP is not intercepted.
    pub ports: Vec<NonZeroU16>,
    /// Server ports where connections begin with TLS.
    pub tls_ports: Vec<NonZeroU16>,
    /// How files are delivered.
    pub delivery: FtpDelivery,
    /// With `FtpDelivery::Stream`: bytes that wait for the verdict. At least [`HOLD_BACK_MIN`].
    pub hold_back: u64,
    /// What happens on `AUTH`, and on `tls_ports`.
    pub tls: FtpTls,
    /// Clients and servers whose TLS data may end without close_notify.
    pub no_close_notify: Vec<IpNet>,
    /// What happens on `REST` and `APPE`.
    pub resume: Resume,
    /// How often the server is kept awake while an upload is held.
    pub noop_interval: Duration,
    /// How long a server waits for an upload that is held, while it is kept awake; none: it is learnt.
    pub server_patience: Option<Duration>,
    /// Whether the reply to a file that was delivered says what the scanner says of it.
    pub announce: bool,
}

impl Ftp {
    /// All ports on which FTP is intercepted.
    pub fn all_ports(&self) -> impl Iterator<Item = NonZeroU16> {
        self.ports.iter().chain(&self.tls_ports).copied()
    }

    /// Whether connections to a server's port begin with TLS.
    #[must_use]
    pub fn is_implicit(&self, port: u16) -> bool {
        self.tls_ports.iter().any(|p| p.get() == port)
    }
}

/// Least `ftp.hold_back`: the first block of a file tells whether it was caught before, and is to be
/// here before anything goes on.
pub const HOLD_BACK_MIN: u64 = 128 << 10;

/// `[smtp]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Smtp {
    /// Server ports.
    pub ports: Vec<NonZeroU16>,
    /// Server ports where connections begin with TLS (RFC 8314).
    pub tls_ports: Vec<NonZeroU16>,
    /// Server ports where LMTP is spoken (RFC 2033). With all empty, mail is not intercepted.
    pub lmtp_ports: Vec<NonZeroU16>,
    /// How messages are delivered.
    pub delivery: Delivery,
    /// What happens on `STARTTLS`.
    pub starttls: TlsAction,
    /// Which bare newlines are refused.
    pub bare_newline: BareNewline,
    /// Extensions that are taken out of the EHLO reply, besides those that vscan cannot follow.
    pub hide_extensions: Vec<String>,
    /// Whether mail that a server on the gateway itself sends is intercepted too.
    pub own_mail: bool,
    /// How often the server is kept awake while a message is held.
    pub noop_interval: Duration,
}

impl Smtp {
    /// All ports on which mail is intercepted.
    pub fn all_ports(&self) -> impl Iterator<Item = NonZeroU16> {
        self.ports.iter().chain(&self.tls_ports).chain(&self.lmtp_ports).copied()
    }

    /// Whether connections to a server's port begin with TLS.
    #[must_use]
    pub fn begins_with_tls(&self, port: u16) -> bool {
        self.tls_ports.iter().any(|p| p.get() == port)
    }

    /// Whether LMTP is spoken on a server's port.
    #[must_use]
    pub fn speaks_lmtp(&self, port: u16) -> bool {
        self.lmtp_ports.iter().any(|p| p.get() == port)
    }
}

/// `[scan]`
#[derive(Clone, Debug, PartialEq)]
pub struct Scan {
    /// Files and directories of rules. Never empty.
    pub rules: Vec<PathBuf>,
    /// The secret that authenticates compiled rules; none: `rules.key` in the state directory.
    pub rules_key: Option<PathBuf>,
    /// Rules whose newest file is older than this are told of; none: never.
    pub rules_age_max: Option<Duration>,
    /// `[scan.clamd]`: a clamd that is asked too.
    pub clamd: Option<Clamd>,
    /// `[scan.update]`: where new rules come from.
    pub update: Update,
    /// Extensions (lower case, without the dot) of files that are not scanned.
    pub skip_extensions: Vec<String>,
    /// Types of files that are not scanned, by their first bytes: names of formats and classes of `vscan_scan::formats`.
    pub skip_types: Vec<String>,
    /// Whether a file whose name and first bytes do not agree is scanned all the same.
    pub verify_type: bool,
    /// `[scan.limits]`: past them an object is `unscannable`, with the limit's name as its reason. `seconds` is not
    /// configured by itself: it is `deadline`, rounded up.
    pub limits: Limits,
    /// `[scan.cache]`
    pub cache: Cache,
    /// Wall-clock time that one attempt at an object may take; after it the worker is ended.
    pub deadline: Duration,
    /// Scanner processes.
    pub workers: NonZeroUsize,
    /// Most threads that one of them takes for a large part.
    pub threads: NonZeroUsize,
}

impl Scan {
    /// Whether the name's extension is one of those that are not scanned.
    #[must_use]
    pub fn skips_extension(&self, name: &[u8]) -> bool {
        extension(name).is_some_and(|e| self.skip_extensions.iter().any(|s| s.as_bytes() == e))
    }
}

/// The extension of a name from the wire, in lower case (ASCII), without the dot.
#[must_use]
pub fn extension(name: &[u8]) -> Option<Vec<u8>> {
    let base = name.rsplit(|b| *b == b'/' || *b == b'\\').next()?;
    let dot = base.iter().rposition(|b| *b == b'.')?;
    let extension = &base[dot + 1..];
    (!extension.is_empty()).then(|| extension.to_ascii_lowercase())
}

/// `[quarantine]`: how much is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quarantine {
    /// Older objects are removed; none: never.
    pub max_age: Option<Duration>,
    /// The oldest objects are removed when all together are larger, in bytes; none: never.
    pub max_size: Option<u64>,
    /// Bytes that stay free on the file system; an object that would take them is not kept.
    pub min_free: u64,
}

/// `[spool]`: where held objects wait for their verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spool {
    /// Bytes of memory for all held objects together.
    pub memory: u64,
    /// Bytes of disk for all held objects together.
    pub disk: u64,
    /// A larger object is `unscannable: size`, in bytes.
    pub hold_max: u64,
}

/// `[metrics]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metrics {
    /// Address of `/metrics` and `/healthz`; none: not served.
    pub listen: Option<SocketAddr>,
}

/// `[log]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// What is logged, as `error`, `warn`, `info`, `debug`, `trace` or a filter such as `info,vscan_agent::net=debug`.
    pub level: String,
    /// How it looks.
    pub format: LogFormat,
}

/// Threads or processes by default: one per core.
fn cores() -> NonZeroUsize {
    std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)
}

const MIB: u64 = 1 << 20;

const fn port(port: u16) -> NonZeroU16 {
    match NonZeroU16::new(port) {
        Some(port) => port,
        None => panic!("a default port is 0"),
    }
}

const fn count(n: usize) -> NonZeroUsize {
    match NonZeroUsize::new(n) {
        Some(n) => n,
        None => panic!("a default number is 0"),
    }
}

impl Default for Gateway {
    /// Everything but interfaces and inside networks, which have no default.
    fn default() -> Self {
        Self {
            interfaces: Vec::new(),
            inside: Vec::new(),
            exempt: Vec::new(),
            deny: Vec::new(),
            on_agent_down: OnAgentDown::Closed,
            steering: Steering::Auto,
            attach: Attach::Auto,
            publish: Vec::new(),
            intercept_own: false,
            rate_limit: None,
            marks: Marks::default(),
            table: TableNumber(NonZeroU32::MIN.saturating_add(180)),
            tproxy_port: port(12321),
            max_sessions: count(8192),
            workers: cores(),
            busy_poll: Duration::from_micros(100),
            drain: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(20),
            // longer than the five minutes that RFC 5321 4.5.3.2.7 asks of servers and the usual 15 of FTP servers
            idle_timeout: Duration::from_secs(30 * 60),
        }
    }
}

impl Default for Marks {
    fn default() -> Self {
        Self { client: 0x81, upstream: 0x82, bypass: 0x88, related: 0x84, mask: 0xff }
    }
}

impl Default for Ftp {
    fn default() -> Self {
        Self {
            ports: vec![port(21)],
            tls_ports: Vec::new(),
            delivery: FtpDelivery::Hold,
            hold_back: MIB,
            tls: FtpTls::Pass,
            no_close_notify: Vec::new(),
            resume: Resume::Whole,
            noop_interval: Duration::from_secs(30),
            announce: false,
            server_patience: None,
        }
    }
}

impl Default for Smtp {
    fn default() -> Self {
        Self {
            ports: vec![port(25)],
            tls_ports: Vec::new(),
            lmtp_ports: Vec::new(),
            delivery: Delivery::Hold,
            starttls: TlsAction::Pass,
            bare_newline: BareNewline::Lookalikes,
            hide_extensions: Vec::new(),
            own_mail: false,
            // within the five minutes of RFC 5321 4.5.3.2.7, and seldom: Exim hangs up at the eleventh NOOP of a session
            noop_interval: Duration::from_secs(4 * 60),
        }
    }
}

impl Default for Scan {
    fn default() -> Self {
        Self {
            rules: vec![PathBuf::from("/etc/vscan/rules.d")],
            rules_key: None,
            // sets of signatures that nobody renews fall behind within weeks
            rules_age_max: Some(Duration::from_secs(30 * 86_400)),
            clamd: None,
            update: Update::default(),
            skip_extensions: Vec::new(),
            skip_types: Vec::new(),
            verify_type: true,
            limits: Limits { seconds: 20, ..Limits::default() },
            cache: Cache::default(),
            // two attempts fit into the 45 s that FTP clients wait for the 150 of a download
            deadline: Duration::from_secs(20),
            workers: cores(),
            threads: NonZeroUsize::new(cores().get().min(THREADS_MAX as usize)).unwrap_or(cores()),
        }
    }
}

impl Default for Quarantine {
    fn default() -> Self {
        Self {
            max_age: Some(Duration::from_secs(30 * 86_400)),
            max_size: Some(1024 * MIB),
            min_free: 256 * MIB,
        }
    }
}

impl Default for Spool {
    fn default() -> Self {
        Self { memory: 256 * MIB, disk: 4096 * MIB, hold_max: 256 * MIB }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self { listen: Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9321)) }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { level: "info".to_owned(), format: LogFormat::Auto }
    }
}

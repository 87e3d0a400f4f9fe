//! Kernel state: BPF programs and maps, the nftables table, rules and routes.
//!
//! The supervisor holds a [`Kernel`]; the gateway gets a [`View`] of the maps; `doctor` asks [`probe`] and [`firewall`].
//! nftables steers, BPF makes the exceptions and counts; without BPF, nftables does both. No traffic is read here.

mod bpf;
mod conntrack;
pub mod firewall;
pub mod marks;
mod netlink;
mod nft;
pub mod probe;
mod route;
mod ruleset;
mod view;
mod watch;

use std::{
    collections::HashMap,
    fmt, io,
    net::IpAddr,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

pub use bpf::{Attach, BpfError};
pub use nft::{Counts, NftError};
pub use view::{Counters, Happened, Phase, Seen, Traffic, View, ViewError, What, Why};
pub use vscan_common::Counter;

use self::{bpf::Bpf, firewall::Foreign, marks::Marks, ruleset::Plan};
use crate::config::{self, Config};

/// The address by which `peer` knows the local end of a TCP connection of this host, from conntrack: another one than
/// `local`'s where the connection is masqueraded or translated otherwise.
///
/// # Errors
/// `ENOENT` where conntrack does not know the connection, `EPERM` without CAP_NET_ADMIN.
pub fn known_as(
    local: std::net::SocketAddr,
    peer: std::net::SocketAddr,
) -> io::Result<std::net::IpAddr> {
    conntrack::known_as(local, peer)
}

/// A heartbeat older than this is none: ten missed beats.
pub const HEARTBEAT_TTL: Duration = Duration::from_millis(2500);
/// The heartbeat as the BPF programs see it runs out a little sooner than nftables' own, so that they decide and count where
/// both could.
const HEARTBEAT_TTL_BPF: Duration = Duration::from_millis(2400);
/// How often the gateway beats.
pub const HEARTBEAT_EVERY: Duration = Duration::from_millis(250);

/// Kernel state cannot be set up, changed or removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A guarded interface does not exist.
    #[error("interface {name} (gateway.interfaces) does not exist; there are: {there}")]
    NoInterface {
        /// Its name.
        name: String,
        /// Those that do.
        there: String,
    },
    /// A firewall refuses forwarded traffic by default, and nothing says what vscan may take out of its hands.
    #[error(
        "{chain} drops forwarded connections unless it accepts them, and an intercepted connection does not pass \
         through it: say with [[access]] which ones it accepts, for example\n  [[access]]\n  action = \"allow\"\n  \
         from = [{from}]\n  to = []\n  protocol = [\"ftp\", \"smtp\"]"
    )]
    Forward {
        /// The chain, as `family table chain`.
        chain: String,
        /// The inside networks, as TOML.
        from: String,
    },
    /// BPF was asked for and is not possible.
    #[error("{0}; or let nftables steer alone: gateway.steering = \"auto\" or \"nft\"")]
    Bpf(#[from] BpfError),
    /// nftables is not possible.
    #[error(transparent)]
    Nft(#[from] NftError),
    /// Rules and routes are not possible.
    #[error("{step}: {error}{}", hint(error))]
    Route {
        /// What was being done.
        step: String,
        /// What the kernel says.
        error: io::Error,
    },
    /// Something that concerns a mask or a table cannot be changed while the agent runs.
    #[error("{0} cannot be changed by a reload: restart vscan")]
    NeedsRestart(&'static str),
}

fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => " (CAP_NET_ADMIN is needed)",
        Some(libc::ENETDOWN) => " (is lo up? `ip link set lo up`)",
        _ => "",
    }
}

impl Error {
    /// The exit code (sysexits.h).
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        const EX_UNAVAILABLE: u8 = 69;
        const EX_OSERR: u8 = 71;
        const EX_NOPERM: u8 = 77;
        const EX_CONFIG: u8 = 78;
        match self {
            Self::NoInterface { .. } | Self::Forward { .. } | Self::NeedsRestart(_) => EX_CONFIG,
            Self::Bpf(BpfError::Permission) => EX_NOPERM,
            Self::Bpf(_) | Self::Nft(NftError::Absent(_)) => EX_UNAVAILABLE,
            Self::Nft(NftError::Refused(text)) if text.contains("not permitted") => EX_NOPERM,
            Self::Nft(NftError::Kernel(error)) | Self::Route { error, .. }
                if error.raw_os_error() == Some(libc::EPERM) =>
            {
                EX_NOPERM
            }
            Self::Nft(_) | Self::Route { .. } => EX_OSERR,
        }
    }
}

/// How connections are steered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Steering {
    /// BPF programs make exceptions and count; nftables steers.
    Bpf(Attach),
    /// nftables does it alone.
    Nft {
        /// Why.
        reason: String,
    },
}

impl fmt::Display for Steering {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bpf(Attach::Tcx) => write!(f, "bpf (tcx)"),
            Self::Bpf(Attach::Clsact) => write!(f, "bpf (clsact)"),
            Self::Nft { reason } => write!(f, "nft ({reason})"),
        }
    }
}

/// The kernel state of one agent. When it is dropped, everything stays: [`uninstall`](Self::uninstall) removes it.
#[derive(Debug)]
pub struct Kernel {
    shared: Arc<Mutex<State>>,
    steering: Steering,
    // stops its thread when dropped
    _watch: watch::Watch,
}

/// What the watching thread needs as well.
#[derive(Debug)]
struct State {
    config: Config,
    marks: Marks,
    bpf: Option<Bpf>,
    beat: nft::Beat,
    /// Hosts whose SMTP connections are refused, and until when: a table that is put back has to know.
    cut: HashMap<IpAddr, Instant>,
    guard_local: bool,
}

impl Kernel {
    /// Sets everything up: programs, table, rule and route. New connections are treated as with a dead agent until the
    /// first [`beat`](Self::beat). What an earlier agent left, of this build or another, is taken over or replaced.
    ///
    /// # Errors
    /// [`Error`]; nothing stays half installed.
    pub fn install(config: &Config) -> Result<Self, Error> {
        let marks = Marks::of(&config.gateway.marks);
        let links = route::links()
            .map_err(|error| Error::Route { step: "listing interfaces".to_owned(), error })?;
        for interface in &config.gateway.interfaces {
            if !links.contains_key(interface.as_str()) {
                return Err(Error::NoInterface {
                    name: interface.to_string(),
                    there: links.keys().cloned().collect::<Vec<_>>().join(", "),
                });
            }
        }
        let guard_local = judge(config, &Foreign::read()?)?;
        // removed again unless everything succeeds
        let mut undo = Undo { config, armed: !is_installed(config) };
        let (mut bpf, steering, logger) = load_bpf(config, &marks)?;
        let wanted = interfaces(config);
        if let Some(bpf) = &mut bpf
            && let Some((_, error)) = bpf.follow(&wanted, &links).into_iter().next()
        {
            return Err(error.into());
        }
        let plan = Plan { config, marks, limit_rate: bpf.is_none(), guard_local };
        nft::install(plan, true)?;
        route::install(&marks, config.gateway.table.get())
            .map_err(|(step, error)| Error::Route { step, error })?;
        match &bpf {
            Some(bpf) => bpf.remove_others()?,
            // an earlier agent may have had programs, which would go on marking
            None => drop(bpf::cleanup(&config.paths.bpffs, &links)),
        }
        let beat = nft::Beat::new().map_err(NftError::from)?;
        let state =
            State { config: config.clone(), marks, bpf, beat, cut: HashMap::new(), guard_local };
        let shared = Arc::new(Mutex::new(state));
        let watch = watch::Watch::start(Arc::clone(&shared), logger)
            .map_err(|error| Error::Route { step: "watching interfaces".to_owned(), error })?;
        undo.armed = false;
        Ok(Self { shared, steering, _watch: watch })
    }

    /// How connections are steered, and why so.
    #[must_use]
    pub fn steering(&self) -> &Steering {
        &self.steering
    }

    /// The agent lives: to be called every [`HEARTBEAT_EVERY`], and only while sessions make progress. Takes
    /// microseconds.
    ///
    /// A table that someone flushed (`nft flush ruleset`) is put back.
    ///
    /// # Errors
    /// The kernel refused: the agent counts as down after [`HEARTBEAT_TTL`].
    pub fn beat(&self) -> Result<(), Error> {
        let mut state = lock(&self.shared);
        match state.beat.beat(HEARTBEAT_TTL) {
            Ok(()) => {}
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {
                tracing::warn!("the table inet vscan was removed by someone else: putting it back");
                let plan = state.plan();
                nft::install(plan, true)?;
                state.beat.beat(HEARTBEAT_TTL).map_err(NftError::from)?;
                state.cut_again().map_err(NftError::from)?;
            }
            Err(e) => return Err(NftError::from(e).into()),
        }
        if let Some(bpf) = &mut state.bpf {
            bpf.beat(monotonic_ns())?;
        }
        Ok(())
    }

    /// New SMTP connections of a host are refused for so long, or no longer.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn cut(&self, host: IpAddr, time: Option<Duration>) -> Result<(), Error> {
        let mut state = lock(&self.shared);
        state.cut.retain(|_, until| *until > Instant::now());
        match time {
            Some(time) => drop(state.cut.insert(host, Instant::now() + time)),
            None => drop(state.cut.remove(&host)),
        }
        Ok(state.beat.cut(host, time).map_err(NftError::from)?)
    }

    /// The agent does not live: new connections go by `on_agent_down` from now on, until the next beat.
    ///
    /// # Errors
    /// The kernel refused; the heartbeat runs out by itself.
    pub fn down(&self) -> Result<(), Error> {
        let mut state = lock(&self.shared);
        if let Some(bpf) = &mut state.bpf {
            bpf.beat(0)?;
        }
        match state.beat.stop() {
            // the table is gone: no heartbeat either
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            other => other.map_err(|e| NftError::from(e).into()),
        }
    }

    /// Goes by another configuration from now on: networks, ports, interfaces, access, what happens without an agent.
    /// There is no moment without steering, and connections keep their marks.
    ///
    /// # Errors
    /// [`Error`]; the former configuration goes on.
    pub fn update(&self, config: &Config) -> Result<(), Error> {
        let mut state = lock(&self.shared);
        let (old, new) = (&state.config, config);
        let fixed = [
            (old.gateway.marks != new.gateway.marks, "gateway.marks"),
            (old.gateway.table != new.gateway.table, "gateway.table"),
            (old.gateway.tproxy_port != new.gateway.tproxy_port, "gateway.tproxy_port"),
            (old.gateway.steering != new.gateway.steering, "gateway.steering"),
            (old.gateway.attach != new.gateway.attach, "gateway.attach"),
            (old.paths.bpffs != new.paths.bpffs, "paths.bpffs"),
        ];
        if let Some((_, what)) = fixed.into_iter().find(|(changed, _)| *changed) {
            return Err(Error::NeedsRestart(what));
        }
        let links = route::links()
            .map_err(|error| Error::Route { step: "listing interfaces".to_owned(), error })?;
        for interface in &new.gateway.interfaces {
            // one that was guarded already may be away for a while
            if !links.contains_key(interface.as_str())
                && !old.gateway.interfaces.contains(interface)
            {
                return Err(Error::NoInterface {
                    name: interface.to_string(),
                    there: links.keys().cloned().collect::<Vec<_>>().join(", "),
                });
            }
        }
        let guard_local = judge(new, &Foreign::read()?)?;
        let limit_rate = state.bpf.is_none();
        let marks = state.marks;
        // the rules first: they alone steer
        nft::install(Plan { config: new, marks, limit_rate, guard_local }, false)?;
        if let Some(bpf) = &mut state.bpf {
            bpf.configure(new, &marks, HEARTBEAT_TTL_BPF)?;
            for (interface, error) in bpf.follow(&interfaces(new), &links) {
                tracing::warn!(interface, %error, "no BPF program: nftables steers alone there");
            }
        }
        state.config = new.clone();
        state.guard_local = guard_local;
        Ok(())
    }

    /// The descriptors that the gateway's [`View`] is made from; empty when nftables steers alone.
    ///
    /// # Errors
    /// The pins are gone.
    pub fn gateway_descriptors(&self) -> Result<Vec<(&'static str, OwnedFd)>, Error> {
        match &lock(&self.shared).bpf {
            Some(bpf) => Ok(bpf.descriptors()?),
            None => Ok(Vec::new()),
        }
    }

    /// What the rules counted since they were installed.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn counts(&self) -> Result<Counts, Error> {
        Ok(nft::counts().map_err(NftError::from)?)
    }

    /// The connections that pass uninspected because they are exempt or came while the agent was down, from conntrack: the
    /// way to show them where nftables steers alone and there is no [`View`]. Finished ones stay in it for a while, as
    /// [`Phase::Closed`].
    ///
    /// # Errors
    /// The kernel refused.
    pub fn passing(&self) -> Result<Vec<Seen>, Error> {
        let state = lock(&self.shared);
        let is_exempt = |address: std::net::IpAddr| {
            state.config.gateway.exempt.iter().any(|net| net.contains(&address))
        };
        Ok(conntrack::passing(&state.marks, is_exempt).map_err(NftError::from)?)
    }

    /// Removes everything: programs, pins, table, rule and route.
    ///
    /// # Errors
    /// What could not be removed; the rest is.
    pub fn uninstall(self) -> Result<(), Error> {
        let config = lock(&self.shared).config.clone();
        drop(self);
        cleanup(&config).map(drop)
    }
}

impl State {
    fn cut_again(&mut self) -> io::Result<()> {
        let now = Instant::now();
        self.cut.retain(|_, until| *until > now);
        self.cut.iter().try_for_each(|(host, until)| self.beat.cut(*host, Some(*until - now)))
    }

    fn plan(&self) -> Plan<'_> {
        Plan {
            config: &self.config,
            marks: self.marks,
            limit_rate: self.bpf.is_none(),
            guard_local: self.guard_local,
        }
    }
}

/// Removes everything that an agent with this configuration left in the kernel; says what. For an agent that runs, see
/// [`Kernel::uninstall`].
///
/// # Errors
/// The first thing that could not be removed; the rest is.
pub fn cleanup(config: &Config) -> Result<Vec<String>, Error> {
    let mut removed = Vec::new();
    let mut first_error = None;
    // the rule first: without it marked packets take their usual way
    match route::uninstall(config.gateway.table.get()) {
        Ok(0) => {}
        Ok(_) => removed.push(format!("rule and route, table {}", config.gateway.table.get())),
        Err(error) => {
            first_error.get_or_insert(Error::Route { step: "removing rules".to_owned(), error });
        }
    }
    match nft::remove() {
        Ok(true) => removed.push("nftables table inet vscan".to_owned()),
        Ok(false) => {}
        Err(error) => {
            first_error.get_or_insert(error.into());
        }
    }
    match route::links() {
        Ok(links) => match bpf::cleanup(&config.paths.bpffs, &links) {
            Ok(more) => removed.extend(more),
            Err(error) => {
                first_error.get_or_insert(error.into());
            }
        },
        Err(error) => {
            first_error
                .get_or_insert(Error::Route { step: "listing interfaces".to_owned(), error });
        }
    }
    first_error.map_or(Ok(removed), Err)
}

/// Removes what was installed when a later step fails.
struct Undo<'a> {
    config: &'a Config,
    armed: bool,
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        if self.armed
            && let Err(error) = cleanup(self.config)
        {
            tracing::warn!(%error, "could not take back what was installed");
        }
    }
}

/// Whether an earlier agent's state is in place, which stays when a new one cannot start.
fn is_installed(config: &Config) -> bool {
    nft::exists().unwrap_or(false)
        && route::is_installed(config.gateway.table.get()).unwrap_or(false)
}

type Logger = aya_log::EbpfLogger<watch::Forward>;

fn load_bpf(
    config: &Config,
    marks: &Marks,
) -> Result<(Option<Bpf>, Steering, Option<Logger>), Error> {
    let load = || -> Result<_, BpfError> {
        let mut bpf = Bpf::load(config, marks, HEARTBEAT_TTL_BPF)?;
        let logger = bpf.logger(watch::Forward)?;
        bpf.start()?;
        Ok((bpf, logger))
    };
    let nft = |reason: String| Ok((None, Steering::Nft { reason }, None));
    match config.gateway.steering {
        config::Steering::Nft => nft("by configuration".to_owned()),
        config::Steering::Bpf => {
            let (bpf, logger) = load()?;
            let steering = Steering::Bpf(bpf.attach());
            Ok((Some(bpf), steering, Some(logger)))
        }
        config::Steering::Auto => match load() {
            Ok((bpf, logger)) => {
                let steering = Steering::Bpf(bpf.attach());
                Ok((Some(bpf), steering, Some(logger)))
            }
            Err(error) => {
                tracing::warn!(%error, "no BPF programs: nftables steers alone");
                nft(error.to_string())
            }
        },
    }
}

/// Whether the configuration may take connections out of a foreign firewall's hands; gives whether servers on this machine
/// are guarded only where `publish` says so.
fn judge(config: &Config, foreign: &Foreign) -> Result<bool, Error> {
    if !config.access.is_empty() {
        return Ok(false);
    }
    if let Some(chain) = foreign.forward.first() {
        let from: Vec<String> = config.gateway.inside.iter().map(|n| format!("\"{n}\"")).collect();
        return Err(Error::Forward { chain: chain.to_string(), from: from.join(", ") });
    }
    Ok(!foreign.input.is_empty())
}

fn interfaces(config: &Config) -> Vec<String> {
    config.gateway.interfaces.iter().map(ToString::to_string).collect()
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    // every change is one call into the kernel: a panic leaves nothing half done here
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `CLOCK_MONOTONIC`, which `bpf_ktime_get_ns` reads.
fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

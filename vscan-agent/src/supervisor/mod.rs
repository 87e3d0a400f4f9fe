//! `vscan run`: sets up kernel state, starts and watches gateway and scanner, restarts them.
//!
//! It reads no traffic. It has one thread: the children's lives are bound to it
//! (`PR_SET_PDEATHSIG`), so that a killed supervisor leaves no process behind, and the kernel goes on
//! applying `on_agent_down`.

pub mod channel;
pub mod gateway;
pub mod privileges;

use crate::{
    config::{self, Config, ConfigErrors},
    kernel::{self, Kernel, Steering},
    scanner::process::{self, Process, StartError},
    tls::Tls,
};
use channel::{
    Duty, PASSING_MAX, ToGateway, ToSupervisor, bytes_to_descriptor, text_to_descriptor,
};
use gateway::{Gateway, GatewayError};
use sd_notify::NotifyState;
use std::{
    future::Future,
    io,
    net::IpAddr,
    net::SocketAddr,
    os::fd::AsFd,
    path::{Path, PathBuf},
    pin::Pin,
    process::ExitCode,
    time::Duration,
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};

/// How often children and interfaces are looked after, besides SIGCHLD.
const TICK: Duration = Duration::from_millis(500);

/// How often the gateway is told what passes without it, where it cannot read that from BPF maps.
/// Each time conntrack's table is walked.
const PASSING_EVERY: Duration = Duration::from_secs(2);

/// Restarts wait longer and longer, up to this, when a process ends right after its start.
const BACKOFF_MAX: Duration = Duration::from_secs(10);

/// A process that lived this long is restarted at once.
const LIVED_LONG: Duration = Duration::from_secs(5);

/// How much longer than `gateway.drain` the gateway may take to exit.
const DRAIN_GRACE: Duration = Duration::from_secs(2);

/// How long an idle scanner may take to exit.
const SCANNER_STOP: Duration = Duration::from_secs(3);

/// What stands for the steering where nothing is steered.
const MAILBOXES_ALONE: &str = "nothing is intercepted, mailboxes are scanned";

/// Exit codes of sysexits.h that `vscan run` gives.
pub mod exit {
    /// Rules that do not load.
    pub const DATAERR: u8 = 65;
    /// Something needed is not there: an interface, a kernel feature, the scanner program.
    pub const UNAVAILABLE: u8 = 69;
    /// A bug, or a process that cannot be started.
    pub const SOFTWARE: u8 = 70;
    /// The system refuses: ports in use, descriptors.
    pub const OSERR: u8 = 71;
    /// A file cannot be made: sockets, spool, events.
    pub const CANTCREAT: u8 = 73;
    /// Capabilities are missing.
    pub const NOPERM: u8 = 77;
    /// The configuration is wrong.
    pub const CONFIG: u8 = 78;
}

/// Why `vscan run` gives up, with its exit code.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct Fatal {
    /// An exit code of sysexits.h.
    pub code: u8,
    /// What, where, and what to do.
    pub error: String,
}

impl Fatal {
    fn new(code: u8, error: impl ToString) -> Self {
        Self { code, error: error.to_string() }
    }
}

/// Runs until SIGTERM or SIGINT. Leaves no rule, route, pin or process behind, whatever the outcome.
pub fn run(config_path: &Path, duty: Duty) -> ExitCode {
    let privileges = match duty {
        Duty::Everything => privileges::prepare().and_then(|()| privileges::settle()),
        Duty::Mailboxes => privileges::renounce(),
    };
    let outcome = privileges
        .map_err(|error| Fatal::new(exit::NOPERM, error))
        .and_then(|()| {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(|error| Fatal::new(exit::OSERR, error))
        })
        .and_then(|runtime| runtime.block_on(supervise(config_path, duty)));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(fatal) => {
            tracing::error!("{fatal}");
            ExitCode::from(fatal.code)
        }
    }
}

async fn supervise(path: &Path, duty: Duty) -> Result<(), Fatal> {
    let mut signals = Signals::new().map_err(|error| Fatal::new(exit::OSERR, error))?;
    let (config, text) = read_config(path).map_err(|error| Fatal::new(exit::CONFIG, error))?;
    suits(&config, duty).map_err(|error| Fatal::new(exit::CONFIG, error))?;
    let mut supervisor = tokio::select! {
        started = Supervisor::start(path, config, text, duty) => started?,
        // Stopped while starting: what was started so far ends with its handles.
        _ = signals.terminate.recv() => return Ok(()),
        _ = signals.interrupt.recv() => return Ok(()),
    };
    let outcome = supervisor.watch(&mut signals).await;
    supervisor.stop(&mut signals).await;
    outcome
}

/// Whether a configuration has what there is to be done.
fn suits(config: &Config, duty: Duty) -> Result<(), String> {
    match duty {
        Duty::Everything if config.gateway.interfaces.is_empty() => {
            Err("the configuration has no [gateway]; `vscan mailbox run` scans mailboxes alone")
        }
        Duty::Mailboxes if config.mailboxes.is_empty() => {
            Err("the configuration has no [mailbox.NAME], so there is nothing to scan")
        }
        Duty::Everything | Duty::Mailboxes => Ok(()),
    }
    .map_err(str::to_owned)
}

/// Reads the file once: what is checked here is what the gateway gets.
fn read_config(path: &Path) -> Result<(Config, String), ConfigErrors> {
    let text = config::read_text(path)?;
    Ok((Config::parse(&text, path)?, text))
}

/// Reads the files that `[tls]` names and proves that they are of use: the gateway gets them as they are now.
fn read_keys(config: &Config) -> Result<Vec<u8>, String> {
    let (tls, material) = Tls::load(config).map_err(|error| error.to_string())?;
    for age in tls.ages() {
        if let Some(complaint) = age.complaint(config.tls.expiry_warning) {
            tracing::warn!("{complaint}");
        }
    }
    material.to_bytes().map_err(|error| error.to_string())
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    child: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            child: signal(SignalKind::child())?,
        })
    }
}

/// A scanner that is loading its rules.
type Loading = Pin<Box<dyn Future<Output = Result<Process, StartError>>>>;

/// A configuration whose scanner is loading: it takes effect when that is ready.
struct Pending {
    config: Config,
    text: String,
    keys: Vec<u8>,
    scanner: Loading,
}

struct Supervisor {
    duty: Duty,
    path: PathBuf,
    config: Config,
    text: String,
    /// What the gateway gets of the files that `[tls]` names.
    keys: Vec<u8>,
    _socket: ControlSocket,
    /// There until the stop, unless it is for mailboxes alone.
    kernel: Option<Kernel>,
    steering: String,
    gateway: Option<Gateway>,
    scanner: Option<Process>,
    /// A scanner that replaces one that died, while it loads.
    reviving: Option<Loading>,
    pending: Option<Pending>,
    /// Former scanners, until they have finished.
    leaving: Vec<Process>,
    gateway_restart: Restart,
    scanner_restart: Restart,
}

/// The gateway's control socket: a gateway that is killed leaves it behind.
struct ControlSocket(PathBuf);

impl Drop for ControlSocket {
    fn drop(&mut self) {
        // A gateway that ended by itself has removed it.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// When a process that ended may be started again.
struct Restart {
    backoff: Duration,
    at: Instant,
}

impl Restart {
    fn new() -> Self {
        Self { backoff: Duration::ZERO, at: Instant::now() }
    }

    /// The process ended; it had been started at `started`.
    fn ended(&mut self, started: Instant) {
        self.backoff = if started.elapsed() > LIVED_LONG {
            Duration::ZERO
        } else {
            (self.backoff * 2).clamp(Duration::from_millis(250), BACKOFF_MAX)
        };
        self.at = Instant::now() + self.backoff;
    }
}

fn scanner_spec(config: &Config) -> Result<process::Spec, Fatal> {
    let program = match &config.paths.scanner {
        Some(program) => program.clone(),
        None => process::beside_this_program().map_err(|error| Fatal::new(exit::OSERR, error))?,
    };
    let limits = serde_json::to_string(&config.scan.limits)
        .map_err(|error| Fatal::new(exit::SOFTWARE, error))?;
    Ok(process::Spec {
        program,
        rules: config.scan.rules.clone(),
        rules_key: config.rules_key(),
        limits,
        workers: config.scan.workers.get(),
        threads: config.scan.threads.get(),
        clamd: config.scan.clamd.clone(),
    })
}

fn start_error(error: StartError) -> Fatal {
    let code = match &error {
        StartError::Program { .. } => exit::UNAVAILABLE,
        StartError::Refused(_) => exit::DATAERR,
        StartError::NotReady(_) => exit::SOFTWARE,
    };
    Fatal::new(code, error)
}

impl Supervisor {
    /// Starts everything; kernel state comes last, so that nothing is steered before it is served.
    async fn start(path: &Path, config: Config, text: String, duty: Duty) -> Result<Self, Fatal> {
        let scanner = process::spawn(&scanner_spec(&config)?)
            .map_err(start_error)?
            .ready()
            .await
            .map_err(start_error)?;
        report_scanner(&scanner);
        let keys = read_keys(&config).map_err(|error| Fatal::new(exit::CONFIG, error))?;
        let gateway =
            Gateway::start(path, &text, &keys, duty).await.map_err(|error| match error {
                GatewayError::Failed { code, error } => Fatal::new(code, error),
                GatewayError::Io(error) => Fatal::new(exit::SOFTWARE, error),
            })?;
        let socket = ControlSocket(config.paths.control.clone());
        let kernel = match duty {
            Duty::Everything => Some(
                Kernel::install(&config).map_err(|error| Fatal::new(error.exit_code(), error))?,
            ),
            Duty::Mailboxes => None,
        };
        let steering = |kernel: &Kernel| kernel.steering().to_string();
        let mut supervisor = Self {
            duty,
            path: path.to_owned(),
            config,
            text,
            keys,
            _socket: socket,
            steering: kernel.as_ref().map_or_else(|| MAILBOXES_ALONE.to_owned(), steering),
            kernel,
            gateway: Some(gateway),
            scanner: Some(scanner),
            reviving: None,
            pending: None,
            leaving: Vec::new(),
            gateway_restart: Restart::new(),
            scanner_restart: Restart::new(),
        };
        supervisor.introduce().await;
        supervisor.beat();
        let steering = supervisor.steering.clone();
        tracing::info!(steering, "vscan is ready");
        notify(&[NotifyState::Ready, NotifyState::Status(&format!("steering: {steering}"))]);
        Ok(supervisor)
    }

    /// Tells a fresh gateway of scanner and kernel.
    async fn introduce(&mut self) {
        self.send_scanner().await;
        let maps = match self.kernel.as_ref().map_or(Ok(Vec::new()), Kernel::gateway_descriptors) {
            Ok(maps) => maps,
            Err(error) => {
                tracing::error!("the gateway cannot read the BPF maps: {error}");
                Vec::new()
            }
        };
        let names = maps.iter().map(|(name, _)| (*name).to_owned()).collect();
        let descriptors: Vec<_> = maps.iter().map(|(_, map)| map.as_fd()).collect();
        let message = ToGateway::Kernel { names, steering: self.steering.clone() };
        if let Some(gateway) = &self.gateway
            && let Err(error) = gateway.channel.send(&message, &descriptors).await
        {
            tracing::error!("gateway: {error}");
        }
    }

    async fn send_scanner(&self) {
        let (Some(gateway), Some(scanner)) = (&self.gateway, &self.scanner) else { return };
        let Some(control) = &scanner.control else { return };
        let message = ToGateway::Scanner { rules: scanner.rules.clone() };
        if let Err(error) = gateway.channel.send(&message, &[control.as_fd()]).await {
            tracing::error!("gateway: {error}");
        }
    }

    /// Where nftables steers alone, the gateway cannot see what passes without it.
    async fn send_passing(&self) {
        let (Some(gateway), Some(kernel)) = (&self.gateway, &self.kernel) else { return };
        if !matches!(kernel.steering(), Steering::Nft { .. }) {
            return;
        }
        let told = kernel.counts().and_then(|counts| Ok((counts, kernel.passing()?)));
        let (counts, mut seen) = match told {
            Ok(told) => told,
            Err(error) => return tracing::warn!("what passes uninspected is not known: {error}"),
        };
        seen.truncate(PASSING_MAX);
        let message = ToGateway::Passing { counts, seen };
        if let Err(error) = gateway.channel.send(&message, &[]).await {
            tracing::debug!("gateway: {error}");
        }
    }

    /// Asks conntrack for the gateway, which may not.
    async fn send_known_as(&self, question: u64, local: SocketAddr, peer: SocketAddr) {
        let Some(gateway) = &self.gateway else { return };
        let address = kernel::known_as(local, peer)
            .inspect_err(|error| tracing::debug!("conntrack on {local} to {peer}: {error}"))
            .ok();
        if let Err(error) =
            gateway.channel.send(&ToGateway::KnownAs { question, address }, &[]).await
        {
            tracing::debug!("gateway: {error}");
        }
    }

    async fn watch(&mut self, signals: &mut Signals) -> Result<(), Fatal> {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut passing = interval(PASSING_EVERY);
        passing.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = signals.terminate.recv() => return Ok(()),
                _ = signals.interrupt.recv() => return Ok(()),
                _ = signals.hangup.recv() => self.reload().await,
                _ = signals.child.recv() => self.look_after().await?,
                _ = tick.tick() => {
                    if sd_notify::watchdog_enabled().is_some() {
                        notify(&[NotifyState::Watchdog]);
                    }
                    self.look_after().await?;
                }
                _ = passing.tick() => self.send_passing().await,
                message = receive(self.gateway.as_ref()) => match message {
                    Ok(Some(ToSupervisor::Beat)) => {
                        if let Some(gateway) = &mut self.gateway {
                            gateway.last_beat = Instant::now();
                        }
                        self.beat();
                    }
                    Ok(Some(ToSupervisor::Reload)) => self.reload().await,
                    Ok(Some(ToSupervisor::Cut { host, time })) => self.cut(host, Some(time)),
                    Ok(Some(ToSupervisor::Uncut { host })) => self.cut(host, None),
                    Ok(Some(ToSupervisor::KnownAs { question, local, peer })) => {
                        self.send_known_as(question, local, peer).await;
                    }
                    Ok(Some(ToSupervisor::Failed { error, .. })) => tracing::error!("gateway: {error}"),
                    Ok(Some(ToSupervisor::Listening)) => {}
                    Ok(None) => self.gateway_gone("it closed its channel").await,
                    Err(error) => self.gateway_gone(&error.to_string()).await,
                },
                loaded = ready(self.pending.as_mut().map(|pending| &mut pending.scanner)) => {
                    if let Some(pending) = self.pending.take() {
                        let outcome = self.apply(pending, loaded).await;
                        self.reloaded(outcome).await;
                    }
                }
                revived = ready(self.reviving.as_mut()) => {
                    self.reviving = None;
                    match revived {
                        Ok(scanner) => {
                            report_scanner(&scanner);
                            self.scanner = Some(scanner);
                            self.send_scanner().await;
                        }
                        Err(error) => {
                            tracing::error!("{error}");
                            self.scanner_restart.ended(Instant::now());
                        }
                    }
                }
            }
        }
    }

    fn beat(&self) {
        beat(self.kernel.as_ref());
    }

    /// The kernel refuses new SMTP connections of a host for so long, or no longer.
    fn cut(&self, host: IpAddr, time: Option<Duration>) {
        if let Some(Err(error)) = self.kernel.as_ref().map(|kernel| kernel.cut(host, time)) {
            tracing::error!(%host, "what the kernel refuses cannot be changed: {error}");
        }
    }

    /// Reaps, restarts, and kills what hangs.
    async fn look_after(&mut self) -> Result<(), Fatal> {
        if let Some(gateway) = &mut self.gateway {
            if let Some(status) = gateway.ended() {
                self.gateway_gone(&status.to_string()).await;
            } else if gateway.hangs() {
                self.gateway_gone("it hangs").await;
            }
        }
        if self.gateway.is_none() && Instant::now() >= self.gateway_restart.at {
            match Gateway::start(&self.path, &self.text, &self.keys, self.duty).await {
                Ok(gateway) => {
                    tracing::info!(pid = gateway.pid(), "gateway restarted");
                    self.gateway = Some(gateway);
                    self.introduce().await;
                    self.beat();
                }
                Err(error) => {
                    tracing::error!("{error}");
                    self.gateway_restart.ended(Instant::now());
                }
            }
        }
        if let Some(scanner) = &mut self.scanner
            && let Ok(Some(status)) = scanner.child.try_wait()
        {
            tracing::error!("the scanner ended: {status}");
            self.scanner = None;
            self.scanner_restart.ended(Instant::now());
        }
        if self.scanner.is_none()
            && self.reviving.is_none()
            && Instant::now() >= self.scanner_restart.at
        {
            match process::spawn(&scanner_spec(&self.config)?) {
                Ok(starting) => self.reviving = Some(Box::pin(starting.ready())),
                Err(error) => {
                    tracing::error!("{error}");
                    self.scanner_restart.ended(Instant::now());
                }
            }
        }
        self.leaving.retain_mut(|process| !matches!(process.child.try_wait(), Ok(Some(_))));
        Ok(())
    }

    async fn gateway_gone(&mut self, why: &str) {
        if let Some(Err(error)) = self.kernel.as_ref().map(Kernel::down) {
            tracing::error!("{error}");
        }
        if let Some(mut gateway) = self.gateway.take() {
            tracing::error!(pid = gateway.pid(), "the gateway is gone: {why}");
            gateway.kill();
            self.gateway_restart.ended(gateway.started);
        }
    }

    /// Reads the configuration again and starts a scanner with it; see [`Self::apply`].
    async fn reload(&mut self) {
        if self.pending.is_some() {
            return self.reloaded(Err("a reload is under way".to_owned())).await;
        }
        let read = read_config(&self.path).map_err(|error| error.to_string());
        let prepared = read.and_then(|(config, text)| {
            suits(&config, self.duty)?;
            reloadable(&self.config, &config)?;
            let keys = read_keys(&config)?;
            let spec = scanner_spec(&config).map_err(|fatal| fatal.error)?;
            let starting = process::spawn(&spec).map_err(|error| error.to_string())?;
            Ok(Pending { config, text, keys, scanner: Box::pin(starting.ready()) })
        });
        match prepared {
            Ok(pending) => self.pending = Some(pending),
            Err(error) => self.reloaded(Err(error)).await,
        }
    }

    /// The new scanner is ready: from here on the new configuration holds, everywhere or nowhere.
    async fn apply(
        &mut self,
        pending: Pending,
        loaded: Result<Process, StartError>,
    ) -> Result<(), String> {
        let scanner = loaded.map_err(|error| error.to_string())?;
        if let Some(kernel) = &self.kernel {
            kernel.update(&pending.config).map_err(|error| error.to_string())?;
        }
        self.config = pending.config;
        self.text = pending.text;
        self.keys = pending.keys;
        report_scanner(&scanner);
        self.leaving.extend(self.scanner.replace(scanner));
        // The former zygote ends when the gateway has dropped its end too, and its workers are idle.
        for process in &mut self.leaving {
            process.control = None;
        }
        self.send_scanner().await;
        let message = ToGateway::Reload { file: self.path.clone() };
        let text = text_to_descriptor(&self.text).map_err(|error| error.to_string())?;
        let keys = bytes_to_descriptor(&self.keys).map_err(|error| error.to_string())?;
        if let Some(gateway) = &self.gateway {
            gateway
                .channel
                .send(&message, &[text.as_fd(), keys.as_fd()])
                .await
                .map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    async fn reloaded(&mut self, outcome: Result<(), String>) {
        match &outcome {
            Ok(()) => tracing::info!("configuration and rules reloaded"),
            Err(error) => {
                tracing::error!("not reloaded, the former configuration goes on: {error}")
            }
        }
        let message = ToGateway::Reloaded { error: outcome.err() };
        if let Some(gateway) = &self.gateway
            && let Err(error) = gateway.channel.send(&message, &[]).await
        {
            tracing::error!("gateway: {error}");
        }
    }

    /// Drains the gateway, takes back kernel state, ends the scanner.
    async fn stop(&mut self, signals: &mut Signals) {
        notify(&[NotifyState::Stopping]);
        tracing::info!("stopping");
        if let Some(gateway) = &mut self.gateway {
            let until = Instant::now() + self.config.gateway.drain + DRAIN_GRACE;
            if gateway.channel.send(&ToGateway::Drain, &[]).await.is_ok() {
                loop {
                    tokio::select! {
                        message = gateway.channel.receive::<ToSupervisor>() => match message {
                            // It goes on beating while it drains: its sessions go on.
                            Ok(Some(_)) => beat(self.kernel.as_ref()),
                            Ok(None) | Err(_) => break,
                        },
                        () = sleep_until(until) => {
                            tracing::warn!("the gateway does not finish, its sessions are reset");
                            break;
                        }
                        _ = signals.terminate.recv() => break,
                        _ = signals.interrupt.recv() => break,
                    }
                }
            }
        }
        self.gateway = None;
        if let Some(Err(error)) = self.kernel.take().map(Kernel::uninstall) {
            tracing::error!("kernel state stays behind, `vscan cleanup` removes it: {error}");
        }
        self.pending = None;
        self.reviving = None;
        let mut scanners: Vec<_> = self.leaving.drain(..).chain(self.scanner.take()).collect();
        let until = Instant::now() + SCANNER_STOP;
        for scanner in &mut scanners {
            scanner.control = None;
        }
        while scanners.iter_mut().any(|scanner| matches!(scanner.child.try_wait(), Ok(None))) {
            if tokio::time::timeout_at(until, signals.child.recv()).await.is_err() {
                break;
            }
        }
        for mut scanner in scanners {
            let _ = scanner.child.kill();
            let _ = scanner.child.wait();
        }
        tracing::info!("stopped");
    }
}

/// Whether a running agent can go over from one configuration to another.
fn reloadable(old: &Config, new: &Config) -> Result<(), String> {
    let fixed = [
        ("[paths]", old.paths == new.paths),
        ("[spool]", old.spool == new.spool),
        ("[metrics] listen", old.metrics == new.metrics),
        ("[gateway] tproxy_port", old.gateway.tproxy_port == new.gateway.tproxy_port),
        ("[gateway] workers", old.gateway.workers == new.gateway.workers),
        ("[gateway] busy_poll", old.gateway.busy_poll == new.gateway.busy_poll),
        ("[gateway] max_sessions", old.gateway.max_sessions == new.gateway.max_sessions),
        ("[gateway] marks", old.gateway.marks == new.gateway.marks),
        ("[gateway] table", old.gateway.table == new.gateway.table),
        ("[gateway] steering", old.gateway.steering == new.gateway.steering),
        ("[gateway] attach", old.gateway.attach == new.gateway.attach),
    ];
    let changed: Vec<&str> =
        fixed.iter().filter(|(_, same)| !same).map(|(name, _)| *name).collect();
    if changed.is_empty() {
        return Ok(());
    }
    Err(format!("{} cannot change while vscan runs: restart it", changed.join(", ")))
}

fn beat(kernel: Option<&Kernel>) {
    if let Some(Err(error)) = kernel.map(Kernel::beat) {
        tracing::error!("heartbeat: {error}");
    }
}

async fn receive(gateway: Option<&Gateway>) -> io::Result<Option<ToSupervisor>> {
    match gateway {
        Some(gateway) => Ok(gateway.channel.receive().await?.map(|(message, _)| message)),
        None => std::future::pending().await,
    }
}

/// The outcome of a future that may not be there: then it never comes.
async fn ready<T>(future: Option<&mut Pin<Box<dyn Future<Output = T>>>>) -> T {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

fn report_scanner(scanner: &Process) {
    for warning in &scanner.warnings {
        tracing::warn!("rules: {warning}");
    }
    tracing::info!(
        rules = scanner.rules.count,
        version = scanner.rules.version,
        millis = scanner.millis,
        "rules loaded"
    );
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!("service manager: {error}");
    }
}

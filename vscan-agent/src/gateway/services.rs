//! What the gateway offers besides sessions: control socket, metrics and health, retention.

use super::{Gateway, process::Failure, uninspected};
use crate::{
    mailbox::service::Service,
    notify::{self, Notifier},
    observe::{
        Observer,
        control::{self, Backend, Boxed, Status},
        http,
    },
    outbound::Sender,
    supervisor::exit,
};
use jiff::Timestamp;
use std::{io, net::IpAddr, path::PathBuf, sync::Arc, time::Duration};
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot},
    task::JoinSet,
};

/// How often the quarantine drops what is too old or too much.
const RETENTION: Duration = Duration::from_secs(60);

/// Above this age of the last heartbeat the gateway calls itself unhealthy: new connections are
/// treated as `on_agent_down` says by then.
const BEAT_OVERDUE: f64 = 2.5;

/// An operator's request for a reload, to be answered with what became of it.
pub(super) type ReloadRequest = oneshot::Sender<Result<(), String>>;

/// The running services; they end when this is dropped.
pub(super) struct Services {
    _tasks: JoinSet<()>,
    control: PathBuf,
}

/// Opens control socket and metrics port, and starts serving them.
pub(super) async fn start(
    gateway: &Arc<Gateway>,
    file: PathBuf,
    reload: mpsc::Sender<ReloadRequest>,
    mailboxes: &Arc<Service>,
) -> Result<Services, Failure> {
    let config = gateway.config();
    let path = config.paths.control.clone();
    let socket = control::bind(&path).map_err(|error| {
        let hint = match error.kind() {
            io::ErrorKind::AddrInUse => {
                "; another vscan answers there: stop it, or set [paths] control"
            }
            _ => "",
        };
        let what = format!("control socket {}", path.display());
        Failure::new(exit::CANTCREAT, &what, format!("{error}{hint}"))
    })?;
    let backend: Arc<dyn Backend> = Arc::new(Operated {
        gateway: Arc::clone(gateway),
        file,
        reload,
        mailboxes: Arc::clone(mailboxes),
    });
    let mut tasks = JoinSet::new();
    if let Some(listen) = config.metrics.listen {
        let listener = TcpListener::bind(listen).await.map_err(|error| {
            let hint = match error.kind() {
                io::ErrorKind::AddrInUse => "; another program has the port: set [metrics] listen",
                io::ErrorKind::AddrNotAvailable => {
                    "; no interface has that address: set [metrics] listen"
                }
                _ => "",
            };
            Failure::new(exit::OSERR, &format!("metrics on {listen}"), format!("{error}{hint}"))
        })?;
        tasks.spawn(http::serve(listener, Arc::clone(&backend)));
    }
    tasks.spawn(control::serve(socket, backend));
    tasks.spawn(retain(Arc::clone(gateway)));
    tasks.spawn(uninspected::tell_of_blind_spots(Arc::downgrade(gateway)));
    tasks.spawn(watch_age(Arc::clone(gateway)));
    tasks.spawn(notify::run(Arc::clone(gateway)));
    let mailboxes = Arc::clone(mailboxes);
    tasks.spawn(async move { mailboxes.tend().await });
    Ok(Services { _tasks: tasks, control: path })
}

impl Services {
    /// Ends them and removes the control socket.
    pub(super) fn stop(self) {
        if let Err(error) = std::fs::remove_file(&self.control)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!("control socket {}: {error}", self.control.display());
        }
    }
}

async fn retain(gateway: Arc<Gateway>) {
    let mut interval = tokio::time::interval(RETENTION);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        let gateway = Arc::clone(&gateway);
        let retained = tokio::task::spawn_blocking(move || {
            let retained = gateway.quarantine.retain(Timestamp::now());
            if let Ok(retained) = &retained {
                gateway.observer.metrics.set_quarantine(retained.usage);
            }
            retained
        });
        match retained.await {
            Ok(Ok(retained)) if retained.removed > 0 => {
                tracing::info!(removed = retained.removed, "quarantine: old objects removed");
            }
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::error!("quarantine: {error}"),
            Err(error) => tracing::error!("quarantine: {error}"),
        }
    }
}

/// How often the age of the rules is looked at, and how often it is told of.
const AGE_EVERY: Duration = Duration::from_secs(60);
const AGE_TOLD_EVERY: Duration = Duration::from_secs(86_400);

/// The age of rules that are older than they may be.
fn too_old(gateway: &Gateway) -> Option<Duration> {
    let max = gateway.config().scan.rules_age_max?;
    gateway.scanner.status().rules_age.map(Duration::from_secs).filter(|age| *age > max)
}

/// Tells the log once a day of rules that are too old.
async fn watch_age(gateway: Arc<Gateway>) {
    let mut interval = tokio::time::interval(AGE_EVERY);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut told: Option<std::time::Instant> = None;
    loop {
        interval.tick().await;
        let Some(age) = too_old(&gateway) else {
            told = None;
            continue;
        };
        if told.is_none_or(|at| at.elapsed() > AGE_TOLD_EVERY) {
            told = Some(std::time::Instant::now());
            tracing::warn!(
                "no file of rules is younger than {} days (scan.rules_age_max): `vscan rules update` renews them",
                age.as_secs() / 86_400
            );
        }
    }
}

/// The gateway, as operators see it.
struct Operated {
    gateway: Arc<Gateway>,
    file: PathBuf,
    reload: mpsc::Sender<ReloadRequest>,
    mailboxes: Arc<Service>,
}

impl Backend for Operated {
    fn observer(&self) -> &Observer {
        &self.gateway.observer
    }

    fn notifier(&self) -> &Notifier {
        &self.gateway.notifier
    }

    fn mailboxes(&self) -> Option<&Service> {
        Some(&self.mailboxes)
    }

    fn refresh(&self) {
        self.mailboxes.refresh();
        let metrics = &self.gateway.observer.metrics;
        let (memory, disk) = self.gateway.spool.used();
        metrics.set_spool(memory, disk);
        metrics.set_blocked_senders(self.gateway.blocked_senders());
        let scanner = self.gateway.scanner.status();
        metrics.set_rules(&scanner, self.gateway.config().scan.rules_age_max);
        let count = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        metrics.set_worker_ends(scanner.crashes, scanner.kills);
        metrics.set_cache(&scanner.cache);
        metrics
            .set_workers(count(scanner.workers.saturating_sub(scanner.busy)), count(scanner.busy));
    }

    fn status(&self) -> Status {
        let config = self.gateway.config();
        let (spool_memory, spool_disk) = self.gateway.spool.used();
        self.gateway.observer.flows.scrape();
        Status {
            config: self.file.clone(),
            steering: self.gateway.steering(),
            interfaces: config.gateway.interfaces.iter().map(ToString::to_string).collect(),
            draining: *self.gateway.draining().borrow(),
            sessions_max: config.gateway.max_sessions.get() as u64,
            rules_too_old: too_old(&self.gateway).is_some(),
            scanner: self.gateway.scanner.status(),
            spool_memory,
            spool_disk,
            quarantine: self.gateway.quarantine.usage().unwrap_or_default(),
            notices: self.gateway.notifier.queue().counts(),
            ..Status::of(&self.gateway.observer)
        }
    }

    fn senders(&self) -> Vec<Sender> {
        self.gateway.senders()
    }

    fn unblock(&self, host: IpAddr) -> bool {
        self.gateway.unblock(host)
    }

    fn reload(&self) -> Boxed<'_, Result<(), String>> {
        Box::pin(async {
            let (answer, answered) = oneshot::channel();
            self.reload.send(answer).await.map_err(|_| "the gateway is stopping".to_owned())?;
            answered.await.map_err(|_| "the gateway is stopping".to_owned())?
        })
    }

    fn health(&self) -> Result<(), String> {
        if self.gateway.scanner.status().workers == 0 {
            return Err("no scanner worker is alive".to_owned());
        }
        match self.gateway.observer.metrics.heartbeat_age() {
            Some(age) if age <= BEAT_OVERDUE => Ok(()),
            Some(age) => Err(format!("the last heartbeat is {age:.1} s old")),
            None => Err("no heartbeat yet".to_owned()),
        }
    }
}

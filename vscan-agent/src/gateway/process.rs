//! The gateway's process: started by the supervisor, ended by it or by the end of its channel.

use super::{
    Gateway,
    accept::Acceptors,
    outbound::{ORDERS_WAITING, Order},
    services::{self, ReloadRequest},
    translation::Asked,
    uninspected,
    workers::{Pool, Workers},
};
use crate::{
    config::Config,
    mailbox::service::Service,
    net::tproxy_listener,
    notify::{self, Notifier},
    observe::{Observer, logging},
    quarantine,
    spool::Spool,
    supervisor::{
        channel::{
            Channel, DESCRIPTOR_VARIABLE, Duty, ToGateway, ToSupervisor, descriptor_to_bytes,
            descriptor_to_text,
        },
        exit,
    },
    tls::{Material, Tls},
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    os::fd::{FromRawFd, OwnedFd},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};
use tokio::sync::mpsc;

/// How often the gateway shows that its workers make progress.
const BEAT: Duration = Duration::from_millis(250);

/// Reload requests that may wait for the supervisor.
const RELOADS_WAITING: usize = 16;

/// Why the gateway cannot start.
pub(super) struct Failure {
    pub(super) code: u8,
    pub(super) error: String,
}

impl Failure {
    pub(super) fn new(code: u8, what: &str, error: impl ToString) -> Self {
        Self { code, error: format!("{what}: {}", error.to_string()) }
    }
}

/// Runs the gateway as the supervisor's child.
pub fn main() -> ExitCode {
    // it was started as /proc/self/exe: ps(1) and the kernel's log would call it "exe"
    let _ = rustix::thread::set_name(c"vscan-gateway");
    match inherited_channel() {
        Ok(descriptor) => start(descriptor),
        Err(error) => {
            tracing::error!("{error}; `vscan run` starts the gateway");
            ExitCode::from(64)
        }
    }
}

fn inherited_channel() -> Result<OwnedFd, String> {
    let number = std::env::var(DESCRIPTOR_VARIABLE).map_err(|_| "no channel to a supervisor")?;
    let number: i32 =
        number.parse().map_err(|_| format!("{DESCRIPTOR_VARIABLE}={number} is no descriptor"))?;
    // SAFETY: the supervisor passed exactly this descriptor on for this purpose; nothing else in this
    // process knows it. Were it another file, Seqpacket operations would fail, not misbehave.
    let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
    rustix::io::fcntl_setfd(&descriptor, rustix::io::FdFlags::CLOEXEC)
        .map_err(|error| format!("{DESCRIPTOR_VARIABLE}={number}: {error}"))?;
    Ok(descriptor)
}

fn start(descriptor: OwnedFd) -> ExitCode {
    // The number of workers is in the configuration, which comes over the channel: a small runtime
    // reads it, the real one serves.
    let first = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let started = first.map_err(|error| error.to_string()).and_then(|runtime| {
        let copy = rustix::io::fcntl_dupfd_cloexec(&descriptor, 3).map_err(|e| e.to_string())?;
        runtime.block_on(async {
            let channel = Channel::new(copy).map_err(|error| error.to_string())?;
            match channel.receive().await.map_err(|error| error.to_string())? {
                Some((ToGateway::Start { file, duty }, attached)) => {
                    let (config, tls) = configured(attached, &file)?;
                    Ok((config, tls, file, duty))
                }
                other => Err(format!("the supervisor began with {other:?}")),
            }
        })
    });
    let (config, tls, file, duty) = match started {
        Ok(started) => started,
        Err(error) => {
            tracing::error!("{error}");
            return ExitCode::from(exit::SOFTWARE);
        }
    };
    logging::init(&config.log);
    raise_descriptor_limit();
    // One thread more than sessions have: the operator's requests, metrics, notices.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("services")
        .enable_all()
        .build();
    let started = runtime.and_then(|runtime| {
        let count = match duty {
            Duty::Everything => config.gateway.workers.get(),
            Duty::Mailboxes => 1,
        };
        Workers::start(count, config.gateway.busy_poll).map(|workers| (runtime, workers))
    });
    match started {
        Ok((runtime, workers)) => {
            let code = runtime.block_on(run(descriptor, config, tls, file, duty, workers.pool()));
            workers.stop();
            code
        }
        Err(error) => {
            tracing::error!("no threads: {error}");
            ExitCode::from(exit::OSERR)
        }
    }
}

/// The configuration and what `[tls]` comes to, as the supervisor attaches them.
fn configured(attached: Vec<OwnedFd>, file: &Path) -> Result<(Config, Tls), String> {
    let [text, keys] =
        <[OwnedFd; 2]>::try_from(attached).map_err(|_| "no configuration attached".to_owned())?;
    let text = descriptor_to_text(text).map_err(|error| error.to_string())?;
    let config = Config::parse(&text, file).map_err(|error| error.to_string())?;
    let material = descriptor_to_bytes(keys)
        .and_then(|bytes| Material::from_bytes(&bytes))
        .map_err(|error| error.to_string())?;
    let tls = Tls::new(&config, &material).map_err(|error| error.to_string())?;
    Ok((config, tls))
}

/// A session holds two sockets and more. Started by hand, a process may have 1024 descriptors by the
/// soft limit and many times that by the hard one.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!("descriptors: {error}");
    }
}

async fn run(
    descriptor: OwnedFd,
    config: Config,
    tls: Tls,
    file: PathBuf,
    duty: Duty,
    pool: Pool,
) -> ExitCode {
    let channel = match Channel::new(descriptor) {
        Ok(channel) => Arc::new(channel),
        Err(error) => {
            tracing::error!("channel: {error}");
            return ExitCode::from(exit::SOFTWARE);
        }
    };
    match serve(&channel, config, tls, file, duty, &pool).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { code, error }) => {
            let message = ToSupervisor::Failed { code, error };
            // Without a supervisor nobody waits for the answer.
            let _ = channel.send(&message, &[]).await;
            ExitCode::from(code)
        }
    }
}

async fn serve(
    channel: &Arc<Channel>,
    config: Config,
    tls: Tls,
    file: PathBuf,
    duty: Duty,
    pool: &Pool,
) -> Result<(), Failure> {
    let listeners = match duty {
        Duty::Everything => listen(&config)?,
        Duty::Mailboxes => Vec::new(),
    };
    let observer = Observer::new(&config.paths.events)
        .map_err(|error| Failure::new(exit::CANTCREAT, "event log", error))?;
    let spool = Spool::new(
        &config.paths.spool,
        config.spool.memory,
        config.spool.disk,
        config.spool.hold_max,
    )
    .map_err(|error| {
        Failure::new(exit::CANTCREAT, &format!("spool {}", config.paths.spool.display()), error)
    })?;
    let quarantine = quarantine::Store::open(&config.paths.quarantine, config.quarantine.clone())
        .map_err(|error| Failure::new(exit::CANTCREAT, "quarantine", error))?;
    let templates = notify::Templates::load(config.notify.templates.as_deref())
        .map_err(|error| Failure::new(exit::CONFIG, "notices", error))?;
    let notifier = Notifier::open(&config.paths.state_dir, templates, observer.clone())
        .map_err(|error| Failure::new(exit::CANTCREAT, "notices", error))?;
    let gateway = Gateway::new(config, observer, spool, quarantine).with_notifier(notifier);
    gateway.set_tls(tls);
    let gateway = Arc::new(gateway);
    let (reload, reloads) = mpsc::channel(RELOADS_WAITING);
    let (order, orders) = mpsc::channel(ORDERS_WAITING);
    gateway.watched.connect(order);
    let mailboxes = Arc::new(Service::new(Arc::clone(&gateway)));
    let services = services::start(&gateway, file, reload, &mailboxes).await?;
    let beating = tokio::spawn(beat(Arc::clone(channel), Arc::clone(&gateway), pool.clone()));
    channel
        .send(&ToSupervisor::Listening, &[])
        .await
        .map_err(|error| Failure::new(exit::SOFTWARE, "supervisor", error))?;
    mailboxes.configure(&gateway.config()).await;
    let mut acceptors = Acceptors::start(listeners, &gateway, pool)
        .map_err(|error| Failure::new(exit::OSERR, "no threads", error))?;
    let stop = tokio::select! {
        () = acceptors.ended() => {
            return Err(Failure::new(exit::SOFTWARE, "accept", "a thread has ended"));
        }
        stop = converse(channel, &gateway, &mailboxes, reloads, orders) => stop,
    };
    acceptors.stop();
    if stop {
        tracing::info!(sessions = gateway.observer.flows.len(), "draining");
        gateway.drain();
        // The supervisor sets the deadline, and kills us at its end; sessions reset then.
        let ended = async {
            mailboxes.stop().await;
            acceptors.sessions_ended().await;
        };
        tokio::select! {
            () = ended => {}
            () = supervisor_gone(channel) => {}
        }
    }
    beating.abort();
    services.stop();
    uninspected::summarise(&gateway);
    gateway.observer.events.flush();
    Ok(())
}

fn listen(config: &Config) -> Result<Vec<TcpListener>, Failure> {
    let port = config.gateway.tproxy_port.get();
    [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)]
        .into_iter()
        .filter_map(|address| {
            let address = SocketAddr::new(address, port);
            match tproxy_listener(address) {
                Ok(listener) => Some(Ok(listener)),
                // A machine without IPv6 has no ::1, and no IPv6 to intercept.
                Err(error)
                    if address.is_ipv6()
                        && matches!(
                            error.raw_os_error(),
                            Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)
                        ) =>
                {
                    None
                }
                Err(error) => {
                    let hint = match error.kind() {
                        io::ErrorKind::AddrInUse => {
                            "; another program, or another vscan, has the port: \
                             choose another [gateway] tproxy_port"
                        }
                        io::ErrorKind::PermissionDenied => "; CAP_NET_RAW is missing",
                        _ => "",
                    };
                    let what = format!("cannot listen on {address}");
                    Some(Err(Failure::new(exit::OSERR, &what, format!("{error}{hint}"))))
                }
            }
        })
        .collect()
}

/// Answers the supervisor and passes operators' reloads on; true when it wants the gateway to
/// drain, false when it is gone.
async fn converse(
    channel: &Arc<Channel>,
    gateway: &Arc<Gateway>,
    mailboxes: &Arc<Service>,
    mut reloads: mpsc::Receiver<ReloadRequest>,
    mut orders: mpsc::Receiver<Order>,
) -> bool {
    let mut waiting: Vec<ReloadRequest> = Vec::new();
    let (mut questions, mut asked) = (gateway.translation.questions(), Asked::default());
    let mut passing = uninspected::Passing::default();
    loop {
        let received = tokio::select! {
            received = channel.receive::<ToGateway>() => received,
            Some(order) = orders.recv() => {
                let message = match order {
                    Order::Cut(host, time) => ToSupervisor::Cut { host, time },
                    Order::Uncut(host) => ToSupervisor::Uncut { host },
                };
                if channel.send(&message, &[]).await.is_err() {
                    return false;
                }
                continue;
            }
            Some(answer) = reloads.recv() => {
                waiting.push(answer);
                if waiting.len() == 1 && channel.send(&ToSupervisor::Reload, &[]).await.is_err() {
                    return false;
                }
                continue;
            }
            Some(question) = questions.recv() => {
                if channel.send(&asked.ask(question), &[]).await.is_err() {
                    return false;
                }
                continue;
            }
        };
        let (message, mut attached) = match received {
            Ok(Some(received)) => received,
            Ok(None) => return false,
            Err(error) => {
                tracing::error!("message of the supervisor: {error}");
                continue;
            }
        };
        match message {
            ToGateway::Scanner { rules } => {
                let Some(control) = attached.pop() else { continue };
                if let Err(error) = gateway.scanner.attach(control, rules) {
                    tracing::error!("scanner: {error}");
                }
            }
            ToGateway::Kernel { names, steering } => {
                gateway.set_steering(steering);
                uninspected::watch(gateway, names, attached);
            }
            ToGateway::KnownAs { question, address } => asked.answered(question, address),
            ToGateway::Passing { counts, seen } => passing.update(gateway, counts, seen),
            ToGateway::Reload { file } => {
                match configured(attached, &file) {
                    Ok((config, tls)) => {
                        logging::set_level(&config.log.level);
                        match notify::Templates::load(config.notify.templates.as_deref()) {
                            Ok(templates) => gateway.notifier.set_templates(templates),
                            Err(error) => tracing::error!("{error}; the former ones go on"),
                        }
                        gateway.set_tls(tls);
                        gateway.set_config(config);
                        // Accounts finish what they have in hand first; the supervisor does not wait for that.
                        let (mailboxes, gateway) = (Arc::clone(mailboxes), Arc::clone(gateway));
                        tokio::spawn(async move { mailboxes.configure(&gateway.config()).await });
                    }
                    Err(error) => tracing::error!("{error}"),
                }
                gateway.observer.events.reopen();
            }
            ToGateway::Reloaded { error } => {
                gateway.observer.metrics.reloaded(error.is_none());
                for answer in waiting.drain(..) {
                    // Whoever asked may have gone.
                    let _ = answer.send(error.clone().map_or(Ok(()), Err));
                }
            }
            ToGateway::Drain => return true,
            ToGateway::Start { .. } => tracing::error!("the supervisor started us twice"),
        }
    }
}

async fn supervisor_gone(channel: &Channel) {
    while let Ok(Some(_)) = channel.receive::<ToGateway>().await {}
}

/// Beats while session workers make progress, every one of them: each beat goes through a task
/// of its own on every worker's queue, as sessions do.
async fn beat(channel: Arc<Channel>, gateway: Arc<Gateway>, pool: Pool) {
    let mut interval = tokio::time::interval(BEAT);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        if !pool.progress().await || channel.send(&ToSupervisor::Beat, &[]).await.is_err() {
            return;
        }
        gateway.observer.metrics.beat();
    }
}

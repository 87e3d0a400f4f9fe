//! A thread that follows the interfaces as they come and go, puts back rules and routes that others remove, and brings the BPF programs' messages into the log.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Mutex},
    thread::JoinHandle,
};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::{Logger, State, interfaces, lock, netlink::Socket, route};

/// The thread; stopped when dropped.
#[derive(Debug)]
pub(super) struct Watch {
    stop: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

/// How often everything is looked at even if nobody says that something changed.
const ANYWAY: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };

impl Watch {
    pub(super) fn start(state: Arc<Mutex<State>>, logger: Option<Logger>) -> io::Result<Self> {
        let stop = eventfd(0, EventfdFlags::CLOEXEC)?;
        let stopped = stop.try_clone()?;
        let monitor = route::monitor()?;
        let thread = std::thread::Builder::new()
            .name("kernel-watch".to_owned())
            .spawn(move || watch(&state, monitor, logger, &stopped))?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // an eventfd takes a number; writing cannot fail below its maximum
        let _ = rustix::io::write(&self.stop, &1_u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn watch(state: &Mutex<State>, mut monitor: Socket, mut logger: Option<Logger>, stop: &OwnedFd) {
    let mut missing = Vec::new();
    let mut refused = Vec::new();
    loop {
        let (stopped, logged) = {
            let mut fds = vec![
                PollFd::new(stop, PollFlags::IN),
                PollFd::from_borrowed_fd(monitor.as_fd(), PollFlags::IN),
            ];
            if let Some(logger) = &logger {
                fds.push(PollFd::from_borrowed_fd(logger.as_fd(), PollFlags::IN));
            }
            // interrupted or failed: everything is looked at, which is what a time-out does
            let _ = poll(&mut fds, Some(&ANYWAY));
            (!fds[0].revents().is_empty(), fds.get(2).is_some_and(|f| !f.revents().is_empty()))
        };
        if let Some(logger) = &mut logger {
            logger.flush();
        }
        if stopped {
            return;
        }
        let changed = match monitor.poll() {
            Ok(messages) => !messages.is_empty(),
            // messages were lost: look at everything
            Err(_) => true,
        };
        if logged && !changed {
            continue;
        }
        follow(&mut lock(state), &mut missing, &mut refused);
    }
}

/// Attaches to what came, lets go of what went; says each change once.
fn follow(state: &mut State, missing: &mut Vec<String>, refused: &mut Vec<String>) {
    let links = match route::links() {
        Ok(links) => links,
        Err(error) => {
            tracing::warn!(%error, "interfaces cannot be listed");
            return;
        }
    };
    // systemd-networkd, for one, removes rules and routes that it does not know when it starts
    let lo = links.get("lo").map_or(1, |link| link.index);
    match route::restore(&state.marks, state.config.gateway.table.get(), lo) {
        Ok(false) => {}
        Ok(true) => tracing::warn!(
            table = state.config.gateway.table.get(),
            "the rule or the route for marked packets was removed by someone else: put back"
        ),
        Err(error) => tracing::warn!(%error, "the rule and the route for marked packets"),
    }
    let wanted = interfaces(&state.config);
    for name in &wanted {
        let (is_there, was_missing) = (links.contains_key(name), missing.contains(name));
        if !is_there && !was_missing {
            tracing::warn!(interface = %name, "guarded interface is gone; it is guarded again when it is back");
            missing.push(name.clone());
        } else if is_there && was_missing {
            tracing::info!(interface = %name, "guarded interface is back");
            missing.retain(|n| n != name);
        }
    }
    if let Some(bpf) = &mut state.bpf {
        let errors = bpf.follow(&wanted, &links);
        for (interface, error) in &errors {
            if !refused.contains(interface) {
                tracing::warn!(%interface, %error, "no BPF program: nftables steers alone there");
            }
        }
        *refused = errors.into_iter().map(|(interface, _)| interface).collect();
    }
}

/// Hands the BPF programs' messages to the agent's log.
#[derive(Clone, Copy, Debug)]
pub(super) struct Forward;

impl log::Log for Forward {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let message = record.args();
        match record.level() {
            log::Level::Error => tracing::error!(target: "vscan_ebpf", "{message}"),
            log::Level::Warn => tracing::warn!(target: "vscan_ebpf", "{message}"),
            log::Level::Info => tracing::info!(target: "vscan_ebpf", "{message}"),
            log::Level::Debug => tracing::debug!(target: "vscan_ebpf", "{message}"),
            log::Level::Trace => tracing::trace!(target: "vscan_ebpf", "{message}"),
        }
    }

    fn flush(&self) {}
}

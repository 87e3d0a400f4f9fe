//! The zygote: one thread, the compiled rules, and as many workers as there are places, each with its helpers.
//!
//! It waits for three things at once: orders from the gateway, the end of a worker (by its pidfd), and the
//! time to fork again. What it has to tell is bounded by the number of places: of each at most its last end
//! and its present worker wait for room in the control socket, so a gateway that is gone costs nothing.

use super::crew::{Cores, Crew, STACK};
use super::sys::{self, Forked};
use super::{sandbox, worker};
use crate::channel;
use crate::engine::{Engines, Signatures};
use crate::limits::Limits;
use crate::object::{Engine, Part};
use crate::sniff::Kind;
use crate::wire::{DATAGRAM_MAX, ToGateway, ToZygote};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Time in which a worker has to stand; it takes a few milliseconds.
const SETUP_TIMEOUT: Duration = Duration::from_secs(10);
/// Wait before the second attempt to fork a worker that fails to stand; doubled for each further one.
const RETRY_FIRST: Duration = Duration::from_millis(100);
/// Longest such wait.
const RETRY_MAX: Duration = Duration::from_secs(10);
/// A worker that ended sooner than this did little work.
const SHORT_LIFE: Duration = Duration::from_secs(1);
/// So many short lives in a row are taken for a defect, not for a malicious object, and slow the replacement
/// down to one each [`RETRY_FIRST`].
const SHORT_LIVES_MAX: u32 = 16;

/// A zygote that cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A worker does not stand.
    #[error("worker: {0}")]
    Setup(String),
    /// A system call failed.
    #[error("{0}: {1}")]
    Call(&'static str, #[source] io::Error),
    /// The zygote's own sandbox.
    #[error(transparent)]
    Sandbox(#[from] sandbox::Error),
}

/// What the zygote is to run.
#[derive(Debug)]
pub struct Config {
    /// Limits for the workers.
    pub limits: Limits,
    /// Number of workers.
    pub workers: u32,
    /// Most threads that one worker takes for a large part.
    pub threads: u32,
    /// The control socket.
    pub control: OwnedFd,
}

/// The zygote with its workers.
pub struct Zygote<'r> {
    loaded: &'r Signatures,
    config: Config,
    pid: Pid,
    data_bytes: u64,
    slots: Vec<Slot>,
    /// Threads at work in each slot.
    working: &'static [AtomicU32],
    /// Cores that there are.
    cores: u32,
}

#[derive(Debug, Default)]
struct Slot {
    worker: Option<Worker>,
    /// The end of the last worker, not told yet.
    exited: Option<ToGateway>,
    /// When to fork again, if there is no worker.
    retry_at: Option<Instant>,
    failures: u32,
    short_lives: u32,
}

#[derive(Debug)]
struct Worker {
    pid: Pid,
    pidfd: OwnedFd,
    started: Instant,
    /// The gateway's end of its socket, not handed over yet.
    announce: Option<OwnedFd>,
    ordered: bool,
}

impl<'r> Zygote<'r> {
    /// Gives up all rights and forks the workers. Returns what is doubtful as well.
    ///
    /// # Errors
    /// When the sandbox or a worker does not stand: then nothing may be scanned.
    pub fn start(loaded: &'r Signatures, config: Config) -> Result<(Self, Vec<String>), Error> {
        let fail = |what| move |e: io::Error| Error::Call(what, e);
        let threads =
            std::fs::read_dir("/proc/self/task").map_err(fail("/proc/self/task"))?.count();
        if threads != 1 {
            return Err(Error::Call(
                "fork",
                io::Error::other(format!("the zygote has {threads} threads")),
            ));
        }
        // What the decoders load must be loaded before no file can be opened any more.
        crate::archive::prepare();
        // Compiling rules leaves more behind than it keeps.
        sys::trim();
        let stacks = STACK as u64 * u64::from(config.threads.saturating_sub(1));
        let data_bytes =
            own_data_bytes().map_err(fail("/proc/self/statm"))? + config.limits.memory + stacks;
        let working = sys::shared_counters(config.workers as usize).map_err(fail("mmap"))?;
        // Who asks for more threads than there are cores shall have them.
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
        let cores = cores.max(config.threads);
        let mut warnings = Vec::new();
        sandbox::drop_capabilities()?;
        if !sandbox::landlock()? {
            warnings
                .push("this kernel has no landlock; seccomp alone confines the scanner".to_owned());
        }
        rustix::io::ioctl_fionbio(&config.control, true)
            .map_err(|e| Error::Call("control socket", e.into()))?;
        let slots = (0..config.workers).map(|_| Slot::default()).collect();
        let pid = rustix::process::getpid();
        let mut zygote = Self { loaded, config, pid, data_bytes, slots, working, cores };
        for slot in 0..zygote.slots.len() {
            let worker = zygote.fork_worker(slot)?;
            zygote.slots[slot].worker = Some(worker);
        }
        Ok((zygote, warnings))
    }

    /// Runs until the control socket ends.
    ///
    /// # Errors
    /// Those of poll(2) and of the control socket.
    pub fn run(mut self) -> Result<(), Error> {
        let mut buffer = vec![0; DATAGRAM_MAX];
        loop {
            self.revive();
            let told = self.announce()?;
            let events = self.wait(told)?;
            if events.control.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR)
                && !self.orders(&mut buffer)?
            {
                // The workers end by PDEATHSIG.
                return Ok(());
            }
            for slot in events.ended {
                self.reap(slot)?;
            }
        }
    }

    fn wait(&self, told: Told) -> Result<Events, Error> {
        let control =
            if told == Told::NoRoom { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
        let mut fds = vec![PollFd::new(&self.config.control, control)];
        let mut places = Vec::new();
        for (i, slot) in self.slots.iter().enumerate() {
            if let Some(worker) = &slot.worker {
                fds.push(PollFd::new(&worker.pidfd, PollFlags::IN));
                places.push(i);
            }
        }
        let now = Instant::now();
        let retry = self.slots.iter().filter_map(|s| s.retry_at).min();
        let retry = retry.map(|at| at.saturating_duration_since(now));
        let timeout = match told {
            // The socket has room, the kernel's count of descriptors in flight has not: poll(2) does not wait for that.
            Told::TooMany => Some(retry.map_or(RETRY_FIRST, |d| d.min(RETRY_FIRST))),
            Told::All | Told::NoRoom => retry,
        };
        let timeout = timeout.map(timespec);
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(Error::Call("poll", e.into())),
        }
        let ended = places
            .into_iter()
            .zip(&fds[1..])
            .filter(|(_, fd)| !fd.revents().is_empty())
            .map(|(i, _)| i)
            .collect();
        Ok(Events { control: fds[0].revents(), ended })
    }

    /// Reads all orders. False at the end of the control socket.
    fn orders(&mut self, buffer: &mut [u8]) -> Result<bool, Error> {
        loop {
            match channel::recv::<ToZygote>(&self.config.control, buffer) {
                Ok(Some((ToZygote::Kill { slot, pid }, _))) => {
                    let worker = self.slots.get_mut(slot as usize).and_then(|s| s.worker.as_mut());
                    if let Some(worker) = worker.filter(|w| w.pid.as_raw_nonzero().get() == pid) {
                        worker.ordered = true;
                        // It may have ended by itself in the meantime.
                        let _ = pidfd_send_signal(&worker.pidfd, Signal::KILL);
                    }
                }
                Ok(None) => return Ok(false),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(e) if e.kind() == io::ErrorKind::ConnectionReset => return Ok(false),
                Err(e) if e.kind() == io::ErrorKind::InvalidData => {
                    tracing::warn!("control socket: {e}")
                }
                Err(e) => return Err(Error::Call("control socket", e)),
            }
        }
    }

    fn reap(&mut self, slot: usize) -> Result<(), Error> {
        let place = &mut self.slots[slot];
        let Some(worker) = &place.worker else { return Ok(()) };
        let status = waitid(
            WaitId::PidFd(worker.pidfd.as_fd()),
            WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
        );
        let (code, signal) = match status {
            Ok(Some(status)) => (status.exit_status(), status.terminating_signal()),
            Ok(None) => return Ok(()),
            Err(e) => return Err(Error::Call("waitid", e.into())),
        };
        let short = worker.started.elapsed() < SHORT_LIFE
            && code != Some(worker::EXIT_CLIENT_GONE)
            && !worker.ordered;
        let cause = cause(code, signal, worker.ordered);
        let pid = worker.pid.as_raw_nonzero().get();
        if code == Some(worker::EXIT_CLIENT_GONE) {
            tracing::debug!(slot, pid, cause, "worker ended");
        } else {
            tracing::warn!(slot, pid, cause, "worker ended");
        }
        self.working[slot].store(0, Ordering::Relaxed);
        place.short_lives = if short { place.short_lives + 1 } else { 0 };
        let delay = if place.short_lives > SHORT_LIVES_MAX { RETRY_FIRST } else { Duration::ZERO };
        place.worker = None;
        place.exited = Some(ToGateway::Exited { slot: slot as u32, pid, cause });
        place.retry_at = Some(Instant::now() + delay);
        Ok(())
    }

    /// Forks the workers whose time has come.
    fn revive(&mut self) {
        for slot in 0..self.slots.len() {
            if self.slots[slot].retry_at.is_none_or(|at| at > Instant::now()) {
                continue;
            }
            match self.fork_worker(slot) {
                Ok(worker) => {
                    let place = &mut self.slots[slot];
                    place.worker = Some(worker);
                    place.retry_at = None;
                    place.failures = 0;
                }
                Err(e) => {
                    let place = &mut self.slots[slot];
                    place.failures += 1;
                    let delay = (RETRY_FIRST * (1 << place.failures.min(7))).min(RETRY_MAX);
                    place.retry_at = Some(Instant::now() + delay);
                    let cause = format!(
                        "cannot be replaced: {e}; next attempt in {} ms",
                        delay.as_millis()
                    );
                    tracing::error!(slot, attempt = place.failures, cause, "worker");
                    place.exited = Some(ToGateway::Exited { slot: slot as u32, pid: 0, cause });
                }
            }
        }
    }

    /// Tells the gateway what it does not know yet, as far as there is room.
    fn announce(&mut self) -> Result<Told, Error> {
        for (i, slot) in self.slots.iter_mut().enumerate() {
            if let Some(exited) = &slot.exited {
                match told(channel::send(&self.config.control, exited, None))? {
                    Told::All => {}
                    full => return Ok(full),
                }
                slot.exited = None;
            }
            let Some(worker) = &mut slot.worker else { continue };
            if let Some(socket) = &worker.announce {
                let message =
                    ToGateway::Worker { slot: i as u32, pid: worker.pid.as_raw_nonzero().get() };
                match told(channel::send(&self.config.control, &message, Some(socket.as_fd())))? {
                    Told::All => {}
                    full => return Ok(full),
                }
                worker.announce = None;
            }
        }
        Ok(Told::All)
    }

    /// Forks a worker and waits until it stands.
    fn fork_worker(&self, slot: usize) -> Result<Worker, Error> {
        let (ours, theirs) = channel::pair().map_err(|e| Error::Call("socketpair", e))?;
        let (ready_in, ready_out) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
            .map_err(|e| Error::Call("pipe", e.into()))?;
        let pid = match sys::fork().map_err(|e| Error::Call("fork", e))? {
            Forked::Child => self.child(slot, theirs, ready_out),
            Forked::Parent(pid) => pid,
        };
        drop((theirs, ready_out));
        let pidfd = pidfd_open(pid, PidfdFlags::empty())
            .map_err(|e| Error::Call("pidfd_open", e.into()))?;
        let mut said = String::new();
        let mut fds = [PollFd::new(&ready_in, PollFlags::IN)];
        let timeout = timespec(SETUP_TIMEOUT);
        if poll(&mut fds, Some(&timeout)) == Ok(1) {
            let _ = std::fs::File::from(ready_in).read_to_string(&mut said);
        }
        if said != READY {
            let _ = pidfd_send_signal(&pidfd, Signal::KILL);
            let status = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED);
            let how = status
                .ok()
                .flatten()
                .map(|s| cause(s.exit_status(), s.terminating_signal(), false))
                .unwrap_or_default();
            return Err(Error::Setup(if said.is_empty() {
                format!("ended while it was set up: {how}")
            } else {
                said
            }));
        }
        Ok(Worker { pid, pidfd, started: Instant::now(), announce: Some(ours), ordered: false })
    }

    /// The child's side of the fork. The pipe says that it stands, or what is wrong.
    fn child(&self, slot: usize, socket: OwnedFd, ready: OwnedFd) -> ! {
        let mut ready = std::fs::File::from(ready);
        let refuse = |ready: &mut std::fs::File, e: &dyn std::fmt::Display| -> ! {
            let _ = write!(ready, "{e}");
            sys::exit(71)
        };
        // The default one would look for a backtrace in the file system.
        std::panic::set_hook(Box::new(|info| {
            let mut text = format!("vscan-scanner: worker: {info}\n");
            text.truncate(text.floor_char_boundary(4096));
            let _ = io::stderr().write_all(text.as_bytes());
        }));
        // Memory and lazily set-up tables before the doors close.
        let mut engines = Engines::new(self.loaded).remembering(self.config.limits.known_parts);
        let warm = Part { data: b"vscan", kind: Kind::Text, name: "", path: &[], detail: false };
        if let Err(e) = engines.scan(&warm, &mut Vec::new()) {
            refuse(&mut ready, &e);
        }
        let filter = match sandbox::worker_filter(std::process::id()) {
            Ok(filter) => filter,
            Err(e) => refuse(&mut ready, &e),
        };
        let _ = rustix::thread::set_name(c"vscan-worker");
        let (socket, ready) = match sys::keep_only(socket, OwnedFd::from(ready)) {
            Ok(kept) => kept,
            Err(_) => sys::exit(71),
        };
        let mut ready = std::fs::File::from(ready);
        if let Err(e) = sandbox::confine_worker(self.pid, self.data_bytes) {
            refuse(&mut ready, &e);
        }
        sys::compute();
        let cores = Cores::new(self.working, slot, self.cores);
        let helpers = self.config.threads.saturating_sub(1) as usize;
        let mut engines = match Crew::start(helpers, cores) {
            Ok(crew) => engines.helped_by(crew),
            Err(e) => refuse(&mut ready, &format!("helpers: {e}")),
        };
        // Behind the filter only close(2) is left for the pipe: the word goes ahead, and what follows it revokes it.
        let _ = ready.write_all(READY.as_bytes());
        if let Err(e) = sandbox::filter(&filter) {
            refuse(&mut ready, &e);
        }
        drop(ready);
        worker::serve(socket, &mut engines, cores, &self.config.limits, &self.loaded.version)
    }
}

/// What a worker says when it stands.
const READY: &str = "ready";

struct Events {
    control: PollFlags,
    ended: Vec<usize>,
}

/// What became of a message to the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    /// Sent, or there is nobody to send to any more, which the next read of the socket tells.
    All,
    /// No room in the socket.
    NoRoom,
    /// Too many descriptors in flight to a gateway that does not read (unix(7), ETOOMANYREFS).
    TooMany,
}

fn told(sent: io::Result<()>) -> Result<Told, Error> {
    match sent {
        Ok(()) => Ok(Told::All),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(Told::NoRoom),
        Err(e) if e.raw_os_error() == Some(libc::ETOOMANYREFS) => Ok(Told::TooMany),
        Err(e)
            if matches!(e.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) =>
        {
            Ok(Told::All)
        }
        Err(e) => Err(Error::Call("control socket", e)),
    }
}

/// How a worker ended, in words.
fn cause(code: Option<i32>, signal: Option<i32>, ordered: bool) -> String {
    match (code, signal) {
        (_, Some(libc::SIGKILL)) if ordered => "killed as ordered".into(),
        (_, Some(libc::SIGSYS)) => "signal 31: a system call that the sandbox forbids".into(),
        (_, Some(libc::SIGABRT)) => "signal 6: aborted, most likely over the memory limit".into(),
        (_, Some(libc::SIGBUS)) => "signal 7: the object's file shrank or its disk failed".into(),
        (_, Some(signal)) => format!("signal {signal}"),
        (Some(worker::EXIT_CLIENT_GONE), _) => "its client is gone".into(),
        (Some(worker::EXIT_PROTOCOL), _) => "received what is no request".into(),
        (Some(worker::EXIT_PANIC), _) => "panicked".into(),
        (Some(code), None) => format!("exit code {code}"),
        (None, None) => "unknown".into(),
    }
}

fn timespec(duration: Duration) -> Timespec {
    // Rounded up, so that the loop does not turn before the time has come.
    Timespec {
        tv_sec: duration.as_secs().cast_signed(),
        tv_nsec: i64::from(duration.subsec_nanos()) + 1,
    }
}

/// Private writable memory of this process: the field `data` of /proc/PID/statm, in bytes.
fn own_data_bytes() -> io::Result<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm")?;
    let pages = statm.split_ascii_whitespace().nth(5).and_then(|n| n.parse::<u64>().ok());
    let pages = pages.ok_or_else(|| io::Error::other("no data field"))?;
    Ok(pages * rustix::param::page_size() as u64)
}

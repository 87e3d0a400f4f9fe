//! The workers of one scanner process, from its first announcement to its last object.

use super::{Counts, Status, process::Rules};
use crate::net::Seqpacket;
use std::{
    io::{self, IoSlice},
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    time::Duration,
};
use tokio::{
    sync::{Semaphore, watch},
    time::{Instant, timeout_at},
};
use vscan_scan::wire::{Answer, AnswerError, DATAGRAM_MAX, Pieces, Request, ToGateway, ToZygote};

/// How long the zygote may take to announce the end of a worker whose socket is closed already.
const ANNOUNCEMENT: Duration = Duration::from_secs(1);

/// Why an attempt gave no report.
#[derive(Debug)]
pub(super) enum Failure {
    /// All workers were busy, or there was none, until the deadline.
    NoWorker,
    /// The worker did not answer in time; it has been killed.
    Deadline,
    /// The worker had ended before it got the object, or ended with its whole process.
    Stale,
    /// The worker ended while it had the object.
    Crashed(String),
    /// The socket failed.
    Io(io::Error),
}

/// A worker that waits for an object.
#[derive(Debug)]
pub(super) struct Worker {
    slot: u32,
    pid: i32,
    /// Registered with a runtime only while it works: with that of whoever waits for it, so that its
    /// answer wakes no other thread.
    socket: OwnedFd,
    buffer: Vec<u8>,
}

/// One scanner process.
#[derive(Debug)]
pub(super) struct Generation {
    /// Which one it is, of all that this client has had.
    number: u64,
    rules: Rules,
    control: Arc<Seqpacket>,
    /// Waiting workers; `free` counts them and queues who wants one.
    waiting: Mutex<Vec<Worker>>,
    free: Semaphore,
    /// Process ids of the workers that were announced and have not ended.
    alive: watch::Sender<Vec<i32>>,
    /// Workers that were killed on purpose and have not been announced as ended yet.
    killed: Mutex<Vec<i32>>,
    counts: Arc<Counts>,
    reader: Mutex<Option<tokio::task::AbortHandle>>,
}

impl Generation {
    pub(super) fn start(
        control: OwnedFd,
        number: u64,
        rules: Rules,
        counts: Arc<Counts>,
    ) -> io::Result<Arc<Self>> {
        let generation = Arc::new(Self {
            number,
            rules,
            control: Arc::new(Seqpacket::new(control)?),
            waiting: Mutex::default(),
            free: Semaphore::new(0),
            alive: watch::Sender::new(Vec::new()),
            killed: Mutex::default(),
            counts,
            reader: Mutex::default(),
        });
        // The reader must not keep the generation alive: it ends with its last user.
        let control = Arc::clone(&generation.control);
        let weak = Arc::downgrade(&generation);
        let reader = tokio::spawn(async move {
            let mut buffer = vec![0; DATAGRAM_MAX];
            loop {
                let received = control.receive(&mut buffer).await;
                let Some(generation) = weak.upgrade() else { return };
                match received {
                    Ok(received) if received.len > 0 => {
                        generation.handle(&buffer[..received.len], received.descriptors);
                    }
                    Ok(_) => {
                        tracing::error!("the scanner process has ended");
                        return generation.close();
                    }
                    Err(error) => {
                        tracing::error!("scanner control socket: {error}");
                        return generation.close();
                    }
                }
            }
        });
        *lock(&generation.reader) = Some(reader.abort_handle());
        Ok(generation)
    }

    pub(super) fn number(&self) -> u64 {
        self.number
    }

    pub(super) fn rules(&self) -> &str {
        &self.rules.version
    }

    /// Waits for a free worker; `None` when the scanner process has ended.
    pub(super) async fn take(&self) -> Option<Worker> {
        loop {
            self.free.acquire().await.ok()?.forget();
            if let Some(worker) = lock(&self.waiting).pop() {
                return Some(worker);
            }
        }
    }

    /// A worker that waits, without waiting for it: the one with this process id, or else the one that has waited longest,
    /// if another one is left for whoever comes.
    pub(super) fn take_waiting(&self, wanted: Option<i32>) -> Option<Worker> {
        let mut waiting = lock(&self.waiting);
        let place = match wanted {
            Some(pid) => waiting.iter().position(|worker| worker.pid == pid)?,
            None if waiting.len() > 1 || self.alive.borrow().len() == 1 => 0,
            None => return None,
        };
        // Whoever has a permit already comes before.
        self.free.try_acquire().ok()?.forget();
        (place < waiting.len()).then(|| waiting.remove(place))
    }

    pub(super) fn status(&self) -> Status {
        let alive = self.alive.borrow().len() as u64;
        Status {
            rules: self.rules.version.clone(),
            rule_count: self.rules.count,
            rules_age: self.rules.age(),
            workers: alive,
            busy: alive.saturating_sub(lock(&self.waiting).len() as u64),
            ..Status::default()
        }
    }

    pub(super) async fn ask(
        self: Arc<Self>,
        worker: Worker,
        request: &Request,
        descriptor: Option<OwnedFd>,
        most: usize,
        until: Instant,
    ) -> Result<Answer, Failure> {
        let message =
            postcard::to_stdvec(request).map_err(|error| Failure::Io(io::Error::other(error)))?;
        let mut busy = Busy { generation: self, worker: Some(worker) };
        let Some(worker) = &mut busy.worker else { return Err(Failure::NoWorker) };
        let descriptors: Vec<_> = descriptor.iter().map(AsFd::as_fd).collect();
        let mut socket =
            Seqpacket::register_receiver(worker.socket.as_fd()).map_err(Failure::Io)?;
        let parts = [IoSlice::new(&message)];
        let sent = match socket.try_send(&parts, &descriptors) {
            // Its buffer has room for a request, and it has answered the one before.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                drop(socket);
                socket = Seqpacket::register(worker.socket.as_fd()).map_err(Failure::Io)?;
                timeout_at(until, socket.send(&parts, &descriptors)).await
            }
            sent => Ok(sent),
        };
        match sent {
            Ok(Ok(())) => {}
            Ok(Err(error)) if is_gone(&error) => {
                drop(socket);
                busy.worker = None;
                return Err(Failure::Stale);
            }
            Ok(Err(error)) => return Err(Failure::Io(error)),
            Err(_) => return Err(Failure::Deadline),
        }
        worker.buffer.resize(DATAGRAM_MAX, 0);
        let mut pieces = Pieces::new(request.id, most);
        let answer = loop {
            let received = match timeout_at(until, socket.receive(&mut worker.buffer)).await {
                Ok(Ok(received)) => received.len,
                Ok(Err(error)) if is_gone(&error) => 0,
                // The worker is in an unknown state: `busy` has it killed.
                Ok(Err(error)) => return Err(Failure::Io(error)),
                Err(_) => return Err(Failure::Deadline),
            };
            if received == 0 {
                break None;
            }
            let answer = postcard::from_bytes(&worker.buffer[..received])
                .map_err(AnswerError::from)
                .and_then(|response| pieces.push(response))
                .map_err(|error| Failure::Io(io::Error::other(error)))?;
            if answer.is_some() {
                break answer;
            }
        };
        drop(socket);
        let Some(answer) = answer else {
            // Ended by itself: nobody to kill. The cause is in the zygote's announcement, and the log.
            let pid = worker.pid;
            busy.worker = None;
            if busy.generation.ends_with(pid).await {
                return Err(Failure::Stale);
            }
            return Err(Failure::Crashed("it closed its socket".to_owned()));
        };
        busy.finish();
        Ok(answer)
    }

    fn handle(&self, message: &[u8], mut descriptors: Vec<OwnedFd>) {
        match (postcard::from_bytes(message), descriptors.pop()) {
            (Ok(ToGateway::Worker { slot, pid }), Some(descriptor)) => {
                match rustix::io::ioctl_fionbio(&descriptor, true) {
                    Ok(()) => {
                        self.alive.send_modify(|alive| alive.push(pid));
                        self.put(Worker { slot, pid, socket: descriptor, buffer: Vec::new() });
                    }
                    Err(error) => tracing::error!("scanner worker {pid}: {error}"),
                }
            }
            (Ok(ToGateway::Worker { pid, .. }), None) => {
                tracing::error!("scanner worker {pid} was announced without its socket");
            }
            (Ok(ToGateway::Exited { slot, pid, cause }), _) => {
                // One that was never announced may end too.
                self.alive.send_modify(|alive| alive.retain(|one| *one != pid));
                let mut waiting = lock(&self.waiting);
                let before = waiting.len();
                waiting.retain(|worker| worker.pid != pid);
                if waiting.len() < before {
                    self.free.forget_permits(before - waiting.len());
                }
                drop(waiting);
                let mut killed = lock(&self.killed);
                if let Some(index) = killed.iter().position(|victim| *victim == pid) {
                    killed.swap_remove(index);
                    return;
                }
                self.counts.crashes.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(slot, pid, "scanner worker ended: {cause}");
            }
            (Err(error), _) => tracing::error!("scanner control message not understood: {error}"),
        }
    }

    /// The scanner process has ended: whoever waits for a worker of it looks for another one.
    fn close(&self) {
        self.free.close();
        self.alive.send_modify(|_| {});
    }

    /// A worker has closed its socket: whether it ended because the whole process did. Otherwise the
    /// zygote announces its end, and what it was scanning may be the cause.
    async fn ends_with(&self, pid: i32) -> bool {
        let mut alive = self.alive.subscribe();
        let announced = alive.wait_for(|alive| self.free.is_closed() || !alive.contains(&pid));
        let told = tokio::time::timeout(ANNOUNCEMENT, announced).await.is_ok();
        told && self.free.is_closed()
    }

    /// The worker waits from now on.
    pub(super) fn put(&self, worker: Worker) {
        lock(&self.waiting).push(worker);
        self.free.add_permits(1);
    }
}

impl Worker {
    pub(super) fn pid(&self) -> i32 {
        self.pid
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        // The reader holds the control socket: without it the process sees the end and exits.
        if let Some(reader) = lock(&self.reader).take() {
            reader.abort();
        }
    }
}

/// A worker at work. Dropped before [`Busy::finish`] it is killed: it is over its deadline, or the
/// caller does not wait any more, and what it would answer must not be taken for another's report.
struct Busy {
    generation: Arc<Generation>,
    worker: Option<Worker>,
}

impl Busy {
    fn finish(&mut self) {
        if let Some(worker) = self.worker.take() {
            self.generation.put(worker);
        }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let Some(worker) = self.worker.take() else { return };
        self.generation.counts.kills.fetch_add(1, Ordering::Relaxed);
        lock(&self.generation.killed).push(worker.pid);
        let kill = ToZygote::Kill { slot: worker.slot, pid: worker.pid };
        let Ok(message) = postcard::to_stdvec(&kill) else { return };
        if let Err(error) = self.generation.control.try_send(&[IoSlice::new(&message)], &[]) {
            // Closing its socket ends it too, once it is done with the object.
            tracing::error!(pid = worker.pid, "scanner worker cannot be killed: {error}");
        }
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

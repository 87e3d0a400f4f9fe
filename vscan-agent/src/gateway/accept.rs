//! Accepts what is steered here: a thread for each listener, which waits in accept(2) itself.
//!
//! Accepted by a runtime, a connection woke the runtime's poller, that a task, and the task the session's thread; and it
//! was put into one epoll, only to be moved into another. All that time its client waits for a greeting.

use super::{Admission, Gateway, workers::Pool};
use rustix::{
    io::Errno,
    net::{Shutdown, SocketAddrAny, SocketFlags, acceptfrom_with, shutdown},
};
use std::{
    convert::Infallible,
    io,
    net::{SocketAddr, TcpListener, TcpStream},
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};
use tokio::{
    runtime::Handle,
    sync::{Notify, mpsc},
};

/// Accepting pauses this long when descriptors or memory have run out: they do not come back by themselves, and the
/// processor is left to what could free them.
const PAUSE: Duration = Duration::from_millis(50);

/// The threads that accept.
#[derive(Debug)]
pub(super) struct Acceptors {
    listeners: Vec<Arc<TcpListener>>,
    threads: Vec<JoinHandle<()>>,
    ended: Arc<Notify>,
    /// Every session and every thread has the other end: nothing ever comes but the end of them all.
    sessions: mpsc::Receiver<Infallible>,
}

/// What a thread needs.
struct Acceptor {
    gateway: Arc<Gateway>,
    pool: Pool,
    /// The runtime of those that are turned away.
    services: Handle,
    session: mpsc::Sender<Infallible>,
    ended: Arc<Notify>,
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        self.ended.notify_one();
    }
}

impl Acceptors {
    /// Starts a thread for each of the listeners, which block.
    ///
    /// # Errors
    /// There are no threads left.
    pub(super) fn start(
        listeners: Vec<TcpListener>,
        gateway: &Arc<Gateway>,
        pool: &Pool,
    ) -> io::Result<Self> {
        let (session, sessions) = mpsc::channel(1);
        let ended = Arc::new(Notify::new());
        let listeners: Vec<_> = listeners.into_iter().map(Arc::new).collect();
        let mut threads = Vec::with_capacity(listeners.len());
        for listener in &listeners {
            let listener = Arc::clone(listener);
            let acceptor = Acceptor {
                gateway: Arc::clone(gateway),
                pool: pool.clone(),
                services: Handle::current(),
                session: session.clone(),
                ended: Arc::clone(&ended),
            };
            let thread = thread::Builder::new()
                .name("accept".to_owned())
                .spawn(move || acceptor.run(&listener))?;
            threads.push(thread);
        }
        Ok(Self { listeners, threads, ended, sessions })
    }

    /// Returns when a thread has ended that nobody has stopped: nothing is accepted any more.
    pub(super) async fn ended(&self) {
        self.ended.notified().await;
    }

    /// Stops accepting; who waits to be accepted is reset. The sessions that were begun go on.
    pub(super) fn stop(&mut self) {
        for listener in self.listeners.drain(..) {
            // Wakes its thread. It fails on nothing that listens.
            let _ = shutdown(&listener, Shutdown::Both);
        }
        for thread in self.threads.drain(..) {
            // One that panicked has been told of by the panic.
            let _ = thread.join();
        }
    }

    /// Returns when all sessions have ended, once accepting has stopped.
    pub(super) async fn sessions_ended(&mut self) {
        let _: Option<Infallible> = self.sessions.recv().await;
    }
}

impl Acceptor {
    fn run(&self, listener: &TcpListener) {
        loop {
            match acceptfrom_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
                Ok((client, from)) => self.admit(client.into(), from),
                // It does not listen any more.
                Err(Errno::INVAL) => return,
                // The client was faster.
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(error) => {
                    self.gateway.observer.metrics.anomaly_without_flow("accept_failed");
                    tracing::error!("accept: {error}");
                    thread::sleep(PAUSE);
                }
            }
        }
    }

    fn admit(&self, client: TcpStream, from: Option<SocketAddrAny>) {
        // The listener is one for internet addresses.
        let Some(from) = from.and_then(|from| SocketAddr::try_from(from).ok()) else { return };
        let session = match self.gateway.admit(client, from) {
            Admission::Gone => return,
            Admission::Refused(client, refusal) => {
                let alive = self.session.clone();
                self.services.spawn(async move {
                    refusal.tell(client).await;
                    drop(alive);
                });
                return;
            }
            Admission::Session(session) => session,
        };
        // Without threads the gateway is about to end.
        let Some(place) = self.pool.place() else { return };
        let (flow, handle, alive) =
            (session.flow.share(), place.handle.clone(), self.session.clone());
        let lookout = Arc::clone(&place.lookout);
        // Boxed, or the task would have room for it twice: for what is moved and where it is moved to.
        let serving = Box::pin(session.serve(Arc::clone(&self.gateway), place));
        let task = handle.spawn(async move {
            lookout.watch(serving).await;
            drop(alive);
        });
        flow.set_abort(task.abort_handle());
    }
}

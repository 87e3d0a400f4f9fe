//! The threads that sessions run on: a runtime of one thread each, and which session goes where.
//!
//! A session stays on its thread. With one runtime of many threads, an event woke one thread to
//! poll, another to take over the polling, and often a third to run the session: at a few thousand short
//! messages a second, that cost more than the messages did.

use super::lookout::Lookout;
use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::runtime::{Builder, Handle, Runtime};

/// How often each thread's clock ticks, to no end of its own.
///
/// A timer that is set for earlier than its runtime's next wake-up makes tokio write to an eventfd and turn its loop once
/// more for nothing. Sessions set timers for every object, for seconds ahead, and almost none of them ever fires: while the
/// next tick is nearer than that, they cost nothing.
const TICK: Duration = Duration::from_millis(500);

/// The runtimes; dropped outside of any of them, when all is over.
pub(super) struct Workers {
    runtimes: Vec<Runtime>,
    pool: Pool,
}

/// Gives sessions their place.
#[derive(Clone, Debug)]
pub(super) struct Pool(Arc<[Worker]>);

#[derive(Debug)]
struct Worker {
    handle: Handle,
    sessions: Arc<AtomicUsize>,
    lookout: Arc<Lookout>,
}

/// A session's place on a thread, until it only waits for its legs' ends.
#[derive(Debug)]
pub(super) struct Place {
    /// Where to spawn it.
    pub(super) handle: Handle,
    /// What looks out for its events.
    pub(super) lookout: Arc<Lookout>,
    sessions: Arc<AtomicUsize>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.sessions.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Workers {
    /// Starts `count` threads, each of which looks out for an event for so long before it sleeps.
    ///
    /// # Errors
    /// There are no threads or descriptors left.
    pub(super) fn start(count: usize, busy_poll: Duration) -> io::Result<Self> {
        let runtimes: Vec<Runtime> = (0..count)
            .map(|_| {
                // Not a current-thread runtime: this one can go on with the other sessions while one
                // waits for a disk (`blocking::in_place`).
                Builder::new_multi_thread()
                    .worker_threads(1)
                    .thread_name("session")
                    // Whoever looks out turns the runtime's wheel, which new sessions must not wait for.
                    .global_queue_interval(1)
                    .enable_all()
                    .build()
            })
            .collect::<io::Result<_>>()?;
        for runtime in &runtimes {
            runtime.spawn(async {
                loop {
                    tokio::time::sleep(TICK).await;
                }
            });
        }
        let workers = runtimes.iter().map(|runtime| {
            let lookout = Arc::new(Lookout::new(busy_poll));
            let looking = Arc::clone(&lookout);
            runtime.spawn(async move { looking.run().await });
            Worker { handle: runtime.handle().clone(), sessions: Arc::default(), lookout }
        });
        let pool = Pool(workers.collect());
        Ok(Self { runtimes, pool })
    }

    /// Where sessions get their places.
    pub(super) fn pool(&self) -> Pool {
        self.pool.clone()
    }

    /// Ends the threads, and what still runs on them; sessions reset their legs.
    pub(super) fn stop(self) {
        drop(self.runtimes);
    }
}

impl Pool {
    /// A place on the thread that has the fewest sessions; `None` if there are no threads.
    pub(super) fn place(&self) -> Option<Place> {
        let worker = self.0.iter().min_by_key(|worker| worker.sessions.load(Ordering::Relaxed))?;
        worker.sessions.fetch_add(1, Ordering::Relaxed);
        Some(Place {
            handle: worker.handle.clone(),
            lookout: Arc::clone(&worker.lookout),
            sessions: Arc::clone(&worker.sessions),
        })
    }

    /// Returns when every thread has run a task that was put behind those that it had to run:
    /// all of them make progress. False when one has ended.
    pub(super) async fn progress(&self) -> bool {
        let probes: Vec<_> = self
            .0
            .iter()
            .map(|worker| worker.handle.spawn(async { tokio::task::yield_now().await }))
            .collect();
        for probe in probes {
            if probe.await.is_err() {
                return false;
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_are_spread_and_places_given_back() {
        let workers = Workers::start(3, Duration::ZERO).unwrap();
        let pool = workers.pool();
        let counts =
            || -> Vec<_> { pool.0.iter().map(|w| w.sessions.load(Ordering::Relaxed)).collect() };
        let mut places: Vec<_> = (0..7).map(|_| pool.place().unwrap()).collect();
        let mut spread = counts();
        spread.sort_unstable();
        assert_eq!(spread, [2, 2, 3]);
        places.truncate(1);
        assert_eq!(counts().iter().sum::<usize>(), 1);
        workers.stop();
    }

    #[test]
    fn a_thread_that_hangs_makes_no_progress() {
        let workers = Workers::start(2, Duration::ZERO).unwrap();
        let pool = workers.pool();
        let (release, hangs) = std::sync::mpsc::channel::<()>();
        let (started, has_started) = std::sync::mpsc::channel();
        let place = pool.place().unwrap();
        place.handle.spawn(async move {
            started.send(()).unwrap();
            hangs.recv().unwrap();
        });
        has_started.recv().unwrap();
        let watcher = Builder::new_current_thread().enable_all().build().unwrap();
        watcher.block_on(async {
            let waited = std::time::Duration::from_millis(300);
            assert!(tokio::time::timeout(waited, pool.progress()).await.is_err());
            release.send(()).unwrap();
            assert!(pool.progress().await);
        });
        workers.stop();
    }
}

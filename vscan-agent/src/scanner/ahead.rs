//! Objects that a worker looks at while they arrive, so that little is left to do when their last byte has come.
//!
//! A worker is asked for a moment at a time, and only when it waits anyhow: a transfer that takes hours holds none. The
//! first one that looks stays the object's, for it keeps what it saw; if it is busy when the object is whole, another one
//! begins anew. That costs time, never a finding.

use super::{
    Scanner,
    generation::{Generation, Worker},
};
use std::{
    fs::File,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    runtime::Handle,
    sync::watch,
    time::{Instant, timeout},
};
use vscan_scan::wire::{ANSWER_MAX, Answer, Ask, Content, ObjectKind, Request};

/// A worker is asked to look when so many bytes have come since: some hundredth of a second of its time.
const STEP: u64 = 4 << 20;

/// Longest time that one look may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// One object that arrives.
#[derive(Clone, Debug)]
pub struct Ahead {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    scanner: Scanner,
    number: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Bytes that the worker was told of.
    told: u64,
    /// Number of its process, and its process id.
    worker: Option<(u64, i32)>,
    /// The look that goes on: it is over when nobody can tell any more.
    look: Option<watch::Receiver<()>>,
    /// It failed, or its worker is gone.
    over: bool,
}

impl State {
    fn is_looked_at(&self) -> bool {
        self.look.as_ref().is_some_and(|look| look.has_changed().is_ok())
    }
}

impl Ahead {
    /// An object that begins to arrive.
    #[must_use]
    pub fn new(scanner: &Scanner) -> Self {
        let number = scanner.next_number();
        let shared = Shared { scanner: scanner.clone(), number, state: Mutex::default() };
        Self { shared: Arc::new(shared) }
    }

    /// So many bytes of it are in the file, and will not change.
    pub fn grown(&self, file: &File, len: u64) {
        let mut state = self.lock();
        if state.over || len < state.told + STEP || state.is_looked_at() {
            return;
        }
        let (Ok(runtime), Some(generation)) =
            (Handle::try_current(), self.shared.scanner.generation())
        else {
            return;
        };
        if state.worker.is_some_and(|(number, _)| number != generation.number()) {
            // Other rules by now: what was seen is of no use.
            state.over = true;
            return;
        }
        let wanted = state.worker.map(|(_, pid)| pid);
        let Some(worker) = generation.take_waiting(wanted) else { return };
        match crate::spool::reopen(file) {
            Ok(descriptor) => {
                let (looking, look) = watch::channel(());
                state.told = len;
                state.worker = Some((generation.number(), worker.pid()));
                state.look = Some(look);
                let looked = self.clone().look(generation, worker, descriptor, len);
                runtime.spawn(async move {
                    looked.await;
                    drop(looking);
                });
            }
            Err(error) => {
                tracing::debug!("an object that arrives: {error}");
                state.over = true;
                generation.put(worker);
            }
        }
    }

    async fn look(
        self,
        generation: Arc<Generation>,
        worker: Worker,
        descriptor: OwnedFd,
        len: u64,
    ) {
        let request = Request {
            id: self.shared.scanner.next_number(),
            object: Some(self.shared.number),
            ask: Ask::Ahead,
            kind: ObjectKind::File,
            name: None,
            passwords: Vec::new(),
            time_limit_ms: u64::try_from(PATIENCE.as_millis()).unwrap_or(u64::MAX),
            content: Content::Descriptor { len },
        };
        let until = Instant::now() + PATIENCE;
        let looked = generation.ask(worker, &request, Some(descriptor), ANSWER_MAX, until).await;
        if !matches!(looked, Ok(Answer::Ahead(_))) {
            tracing::debug!("an object that arrives is not looked at any more: {looked:?}");
            self.lock().over = true;
        }
    }

    /// Waits until nobody looks.
    pub(super) async fn settled(&self) {
        let look = self.lock().look.clone();
        if let Some(mut look) = look {
            // Nothing is ever sent: it ends with the look.
            let _ = timeout(PATIENCE, look.changed()).await;
        }
    }

    /// The worker that has looked at it, if it waits, and the object's number with it.
    pub(super) fn worker(&self, generation: &Generation) -> Option<(Worker, u64)> {
        let state = self.lock();
        let (number, pid) = state.worker.filter(|_| !state.over && !state.is_looked_at())?;
        if number != generation.number() {
            return None;
        }
        Some((generation.take_waiting(Some(pid))?, self.shared.number))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

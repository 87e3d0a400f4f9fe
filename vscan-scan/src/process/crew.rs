//! A worker's helpers: threads that lend it a hand with large parts, as long as no other worker wants their cores.
//!
//! They are started before the last doors close, for a worker may start none, and sleep until work is lent to them.
//! All that they have is the worker's: one address space, one memory limit, one end. What is split, and how, is
//! [`crate::engine`]'s business.

#![expect(unsafe_code, reason = "work is lent to threads that live longer than it")]

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Bytes of a helper's stack. WebAssembly may take 512 KiB of it (wasmtime's default), yara-x and the matching of regular
/// expressions the rest; only what is touched is memory.
pub const STACK: usize = 2 << 20;

/// How many threads of all workers are at work, each worker in a place of its own: memory that the workers of a scanner
/// process share.
///
/// It only decides who helps, and nobody waits for it: a worker that was taken over by what it read can, by wrong
/// numbers, let others work alone, or with more threads than there are cores.
#[derive(Clone, Copy, Debug)]
pub struct Cores {
    working: &'static [AtomicU32],
    own: usize,
    most: u32,
}

impl Cores {
    /// The place `own` among all. `most`: cores that there are.
    pub fn new(working: &'static [AtomicU32], own: usize, most: u32) -> Self {
        Self { working, own, most }
    }

    /// Those of a process that has no others beside it.
    pub fn alone(most: u32) -> Self {
        Self::new(Box::leak(Box::new([AtomicU32::new(0)])), 0, most)
    }

    /// The worker itself is at work, or waits. It asks nobody.
    pub fn work(&self, working: bool) {
        self.working[self.own].store(u32::from(working), Ordering::Relaxed);
    }

    fn sum(&self) -> u64 {
        self.working.iter().map(|one| u64::from(one.load(Ordering::Relaxed))).sum()
    }

    /// One more thread, if there is a core for it.
    fn take(&self) -> bool {
        self.working[self.own].fetch_add(1, Ordering::Relaxed);
        let room = self.sum() <= u64::from(self.most);
        if !room {
            self.give_back();
        }
        room
    }

    fn give_back(&self) {
        self.working[self.own].fetch_sub(1, Ordering::Relaxed);
    }
}

/// The helpers of one worker. They end with the process.
#[derive(Debug)]
pub struct Crew {
    shared: Arc<Shared>,
    helpers: usize,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Work was lent, or helpers are called again.
    called: Condvar,
    /// A helper stands ready, or has left.
    left: Condvar,
    cores: Cores,
}

#[derive(Debug, Default)]
struct State {
    work: Option<Work>,
    /// Counts the calls: a helper answers each once.
    call: u64,
    /// Helpers that sleep or work, no longer start.
    standing: usize,
    /// Helpers at work.
    inside: usize,
    panic: Option<Box<dyn Any + Send>>,
}

#[derive(Clone, Copy)]
struct Work(&'static (dyn Fn(&Helper<'_>) + Sync));

impl std::fmt::Debug for Work {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Work")
    }
}

/// A helper at work.
#[derive(Debug)]
pub struct Helper<'a> {
    cores: &'a Cores,
}

impl Helper<'_> {
    /// Whether there are more threads at work than cores: then the helper should return.
    pub fn is_in_the_way(&self) -> bool {
        self.cores.sum() > u64::from(self.cores.most)
    }
}

impl Crew {
    /// Starts so many helpers, and waits until they stand: from then on they make no system call that a worker may not make.
    ///
    /// # Errors
    /// Those of pthread_create(3).
    pub fn start(helpers: usize, cores: Cores) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            called: Condvar::new(),
            left: Condvar::new(),
            cores,
        });
        for _ in 0..helpers {
            let shared = Arc::clone(&shared);
            let thread = std::thread::Builder::new().name("vscan-helper".into()).stack_size(STACK);
            thread.spawn(move || shared.serve())?;
        }
        let mut state = shared.lock();
        while state.standing < helpers {
            state = wait(&shared.left, state);
        }
        drop(state);
        Ok(Self { shared, helpers })
    }

    /// Number of helpers.
    pub fn helpers(&self) -> usize {
        self.helpers
    }

    /// The cores that it counts by.
    pub fn cores(&self) -> &Cores {
        &self.shared.cores
    }

    /// Calls those that are not at work, if there is a core for one: for work that came up since they left.
    pub fn call(&self) {
        let cores = &self.shared.cores;
        if cores.sum() < u64::from(cores.most) {
            let mut state = self.shared.lock();
            if state.work.is_some() && state.inside < self.helpers {
                state.call += 1;
                self.shared.called.notify_all();
            }
        }
    }

    /// Runs `own` here and, meanwhile, `work` in each helper for which there is a core. Returns when all have returned.
    ///
    /// # Panics
    /// With the panic of `own` or, if it has none, the first of a helper.
    pub fn lend<T>(&self, work: &(dyn Fn(&Helper<'_>) + Sync), own: impl FnOnce() -> T) -> T {
        // SAFETY: the reference is used by helpers between their entry, counted under the lock while `work` is set, and
        // their leaving. `Lent` takes it back and waits until none is inside, also when `own` unwinds.
        let work = Work(unsafe {
            std::mem::transmute::<
                &(dyn Fn(&Helper<'_>) + Sync),
                &'static (dyn Fn(&Helper<'_>) + Sync),
            >(work)
        });
        {
            let mut state = self.shared.lock();
            state.work = Some(work);
            state.call += 1;
        }
        self.shared.called.notify_all();
        let lent = Lent(&self.shared);
        let result = own();
        drop(lent);
        let panic = self.shared.lock().panic.take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
        result
    }
}

/// Work that helpers may have.
struct Lent<'a>(&'a Shared);

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.work = None;
        while state.inside > 0 {
            state = wait(&self.0.left, state);
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The life of a helper.
    fn serve(&self) -> ! {
        let mut answered = 0;
        let mut state = self.lock();
        state.standing += 1;
        self.left.notify_all();
        loop {
            let work = match state.work {
                Some(work) if state.call != answered => work,
                _ => {
                    state = wait(&self.called, state);
                    continue;
                }
            };
            answered = state.call;
            if !self.cores.take() {
                continue;
            }
            state.inside += 1;
            drop(state);
            let done = catch_unwind(AssertUnwindSafe(|| (work.0)(&Helper { cores: &self.cores })));
            self.cores.give_back();
            state = self.lock();
            state.inside -= 1;
            if let Err(panic) = done {
                state.panic.get_or_insert(panic);
            }
            if state.inside == 0 {
                self.left.notify_all();
            }
        }
    }
}

fn wait<'a>(on: &Condvar, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
    on.wait(state).unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;
    use std::sync::atomic::AtomicUsize;

    #[test]
    fn all_work_at_the_same_time_and_nobody_after_it() {
        let crew = Crew::start(3, Cores::alone(4)).unwrap();
        for round in 0..200 {
            crew.cores().work(true);
            let (together, inside) = (Barrier::new(4), AtomicUsize::new(0));
            let text = format!("{round}");
            let work = |_: &Helper<'_>| {
                inside.fetch_add(1, Ordering::SeqCst);
                together.wait();
                assert_eq!(text.parse::<i32>().unwrap(), round);
                inside.fetch_sub(1, Ordering::SeqCst);
            };
            let said = crew.lend(&work, || {
                together.wait();
                round
            });
            assert_eq!((said, inside.load(Ordering::SeqCst)), (round, 0));
            crew.cores().work(false);
        }
        assert_eq!(crew.cores().sum(), 0);
    }

    #[test]
    fn no_more_threads_than_cores_and_a_helper_leaves_when_another_worker_begins() {
        let working = Box::leak(Box::new([const { AtomicU32::new(0) }; 2]));
        let crew = Crew::start(3, Cores::new(working, 0, 2)).unwrap();
        let other = Cores::new(working, 1, 2);
        crew.cores().work(true);
        let (most, entered) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let work = |helper: &Helper<'_>| {
            most.fetch_max(crew.cores().sum() as usize, Ordering::SeqCst);
            entered.fetch_add(1, Ordering::SeqCst);
            while !helper.is_in_the_way() {
                std::thread::yield_now();
            }
        };
        crew.lend(&work, || {
            while entered.load(Ordering::SeqCst) == 0 {
                std::thread::yield_now();
            }
            other.work(true);
            // It has left, and no other one comes while the second worker is at work.
            while crew.shared.lock().inside > 0 {
                std::thread::yield_now();
            }
            crew.call();
            assert_eq!(entered.load(Ordering::SeqCst), 1);
            other.work(false);
            crew.call();
            while entered.load(Ordering::SeqCst) == 1 {
                std::thread::yield_now();
            }
            other.work(true);
        });
        assert!(most.load(Ordering::SeqCst) <= 3, "two, and one that asks");
        other.work(false);
        // Numbers that another worker has written wrong keep nobody from working alone.
        working[1].store(u32::MAX, Ordering::Relaxed);
        let helped = AtomicUsize::new(0);
        let work = |_: &Helper<'_>| {
            helped.fetch_add(1, Ordering::SeqCst);
        };
        assert_eq!(crew.lend(&work, || 7), 7);
        assert_eq!(helped.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn a_panic_comes_back_to_the_one_who_lent_the_work() {
        let crew = Crew::start(2, Cores::alone(3)).unwrap();
        let entered = AtomicUsize::new(0);
        let wait = || {
            while entered.load(Ordering::SeqCst) == 0 {
                std::thread::yield_now();
            }
        };
        let helper = |_: &Helper<'_>| {
            entered.fetch_add(1, Ordering::SeqCst);
            panic!("of a helper");
        };
        let told = catch_unwind(AssertUnwindSafe(|| crew.lend(&helper, wait))).unwrap_err();
        assert_eq!(told.downcast_ref(), Some(&"of a helper"));
        entered.store(0, Ordering::SeqCst);
        let done = AtomicUsize::new(0);
        let slow = |_: &Helper<'_>| {
            entered.fetch_add(1, Ordering::SeqCst);
            std::thread::sleep(std::time::Duration::from_millis(20));
            done.fetch_add(1, Ordering::SeqCst);
        };
        let own = || {
            wait();
            panic!("of the owner");
        };
        assert!(catch_unwind(AssertUnwindSafe(|| crew.lend(&slow, own))).is_err());
        let (entered, done) = (entered.load(Ordering::SeqCst), done.load(Ordering::SeqCst));
        assert_eq!(entered, done, "nobody is inside when the owner unwinds");
        assert_eq!(crew.lend(&|_| {}, || 1), 1, "and the crew goes on");
    }
}

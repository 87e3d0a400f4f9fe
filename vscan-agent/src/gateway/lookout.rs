//! Busy polling: a session's thread looks out for its next event for a while before it sleeps.
//!
//! Who sends to a thread that sleeps has to wake it, on another core: that takes 2 microseconds where idle cores poll, and 23 in
//! a virtual machine that halts them. In a dialogue of two parties next door it is the better part of each answer's way. So
//! a thread to which events have come sooner than it may wait looks out for the next one; across the Internet, where answers
//! take longer, it does not begin. Whoever else wants the core has it meanwhile (sched_yield(2)); who computes there for so long
//! that events would have to wait ends it for a while.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};
use tokio::sync::Notify;

/// The scale that a thread's luck is counted on, and from where on looking out pays. An event that came soon is a step up,
/// another one two steps down.
const LUCK_MAX: u32 = 32;
const LUCK_ENOUGH: u32 = 4;

/// Who has the core for longer than this, in nanoseconds, is no peer that says a word and sleeps again, but has things to compute: it keeps
/// the core for a slice of time, some milliseconds, whenever it is offered.
const CORE_LOST: u64 = 1_000_000;

/// For how long looking out is barred when the core was lost, in nanoseconds: the shortest time first, then twice as long
/// whenever it is lost again within as much time behind the bar's end.
const BAR_MIN: u64 = 50_000_000;
const BAR_MAX: u64 = 3_200_000_000;

/// One thread's. It is used there alone, but for moments in which the thread's work moves to another because a session waits for
/// a disk: what is lost by that is a chance to look out.
#[derive(Debug)]
pub(super) struct Lookout {
    /// For how long, in nanoseconds; 0: not at all.
    limit: u64,
    /// What times are counted from, in nanoseconds.
    start: Instant,
    /// Since when no session has had anything to do.
    quiet_since: AtomicU64,
    luck: AtomicU32,
    /// Until when it is barred, and how long that is.
    barred_until: AtomicU64,
    bar: AtomicU64,
    looking: AtomicBool,
    begin: Notify,
}

impl Lookout {
    pub(super) fn new(limit: Duration) -> Self {
        Self {
            limit: u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX),
            start: Instant::now(),
            quiet_since: AtomicU64::new(0),
            luck: AtomicU32::new(0),
            barred_until: AtomicU64::new(0),
            bar: AtomicU64::new(0),
            looking: AtomicBool::new(false),
            begin: Notify::new(),
        }
    }

    /// Runs a session, whose events are looked out for.
    pub(super) async fn watch<T>(&self, mut session: Pin<Box<impl Future<Output = T>>>) -> T {
        if self.limit == 0 {
            return session.await;
        }
        poll_fn(|cx| {
            self.event(self.now());
            let polled = session.as_mut().poll(cx);
            self.quiet(self.now());
            polled
        })
        .await
    }

    /// The thread's task that looks out. It never ends.
    pub(super) async fn run(&self) {
        loop {
            self.begin.notified().await;
            self.looking.store(true, Ordering::Relaxed);
            loop {
                // The runtime asks the kernel what has come, and runs those whom it is for.
                tokio::task::yield_now().await;
                let now = self.now();
                if self.waited(now) >= self.limit {
                    break;
                }
                thread::yield_now();
                let then = self.now();
                if then - now > CORE_LOST {
                    self.lost(then);
                    break;
                }
            }
            self.looking.store(false, Ordering::Relaxed);
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// For how long no session has had anything to do.
    fn waited(&self, now: u64) -> u64 {
        now.saturating_sub(self.quiet_since.load(Ordering::Relaxed))
    }

    /// A session has something to do.
    fn event(&self, now: u64) {
        let soon = self.waited(now) < self.limit;
        let luck = self.luck.load(Ordering::Relaxed);
        let luck = if soon { (luck + 1).min(LUCK_MAX) } else { luck.saturating_sub(2) };
        self.luck.store(luck, Ordering::Relaxed);
    }

    /// It has done it.
    fn quiet(&self, now: u64) {
        self.quiet_since.store(now, Ordering::Relaxed);
        if self.pays(now) && !self.looking.load(Ordering::Relaxed) {
            self.begin.notify_one();
        }
    }

    /// Somebody else had the core for too long.
    fn lost(&self, now: u64) {
        let (until, bar) =
            (self.barred_until.load(Ordering::Relaxed), self.bar.load(Ordering::Relaxed));
        let again = now < until.saturating_add(bar);
        let bar = if again { (bar * 2).min(BAR_MAX) } else { BAR_MIN };
        self.bar.store(bar, Ordering::Relaxed);
        self.barred_until.store(now + bar, Ordering::Relaxed);
    }

    fn pays(&self, now: u64) -> bool {
        self.luck.load(Ordering::Relaxed) >= LUCK_ENOUGH
            && now >= self.barred_until.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use tokio::runtime::Builder;

    const LIMIT: Duration = Duration::from_micros(100);

    /// Events that come so long after the last, in microseconds; whether looking out pays then.
    fn after(lookout: &Lookout, now: &mut u64, gaps: &[u64]) -> bool {
        for gap in gaps {
            *now += gap * 1000;
            lookout.event(*now);
            *now += 5_000;
            lookout.quiet(*now);
        }
        lookout.pays(*now)
    }

    #[test]
    fn it_pays_where_answers_come_soon() {
        let (lookout, mut now) = (Lookout::new(LIMIT), 0);
        assert!(!lookout.pays(now));
        assert!(!after(&lookout, &mut now, &[40, 99, 0]), "too few to tell");
        assert!(after(&lookout, &mut now, &[20]));
        assert!(after(&lookout, &mut now, &[30; 40]));
        assert!(after(&lookout, &mut now, &[5_000_000]), "a pause between two messages");
        assert!(!after(&lookout, &mut now, &[20_000; 15]), "across the Internet");
        assert!(!after(&lookout, &mut now, &[100; 50]), "just too late");
        assert!(after(&lookout, &mut now, &[50; 40]), "it is noticed when that changes");
        assert!(!after(&lookout, &mut now, &[50, 20_000].repeat(40)), "as often as not");
    }

    #[test]
    fn where_others_compute_it_is_barred() {
        let (lookout, mut now) = (Lookout::new(LIMIT), 0);
        assert!(after(&lookout, &mut now, &[50; 40]));
        for bar in [50, 100, 200, 400, 800, 1600, 3200, 3200] {
            lookout.lost(now);
            now += bar * 1_000_000 - 100_000;
            assert!(!after(&lookout, &mut now, &[10; 4]), "{bar} ms");
            now += 100_000;
            assert!(lookout.pays(now), "{bar} ms");
        }
        now += BAR_MAX + 1;
        lookout.lost(now);
        assert!(lookout.pays(now + BAR_MIN), "it begins from the beginning");
    }

    #[test]
    fn a_thread_looks_out_between_events_and_sleeps_behind_them() {
        // Far more than a loaded machine takes for an event.
        let lookout = Arc::new(Lookout::new(Duration::from_millis(200)));
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let looking = Arc::clone(&lookout);
        runtime.spawn(async move { looking.run().await });
        let (watched, events) = (Arc::clone(&lookout), LUCK_MAX);
        let seen = runtime.spawn(async move {
            let session = async {
                for _ in 0..events {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                // Between this event and the next it has looked out.
                watched.looking.load(Ordering::Relaxed)
            };
            watched.watch(Box::pin(session)).await
        });
        assert!(runtime.block_on(seen).unwrap());
        let begun = Instant::now();
        while lookout.looking.load(Ordering::Relaxed) {
            assert!(begun.elapsed() < Duration::from_secs(30), "it never sleeps again");
            thread::yield_now();
        }
    }

    #[test]
    fn without_a_limit_nothing_is_looked_out_for() {
        let lookout = Lookout::new(Duration::ZERO);
        let runtime = Builder::new_current_thread().build().unwrap();
        for _ in 0..100 {
            runtime.block_on(lookout.watch(Box::pin(async {})));
        }
        assert!(!lookout.pays(lookout.now()));
    }
}

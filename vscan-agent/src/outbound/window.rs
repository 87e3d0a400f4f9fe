//! A sum over the last minute that moves on in steps.

use std::time::Duration;

/// What a window covers.
pub(super) const LENGTH: Duration = Duration::from_secs(60);

/// Seconds of one step.
const STEP: u64 = 5;

/// Steps of a window.
const STEPS: usize = 12;

/// The number of the step that a time lies in.
pub(super) fn tick(since_origin: Duration) -> u64 {
    since_origin.as_secs() / STEP
}

/// Counts by step; the newest one lies at `newest % STEPS`.
#[derive(Debug, Default)]
pub(super) struct Window {
    counts: [u32; STEPS],
    newest: u64,
}

impl Window {
    pub(super) fn add(&mut self, tick: u64, count: u32) {
        if tick > self.newest {
            for passed in self.newest + 1..=tick.min(self.newest + STEPS as u64) {
                self.counts[Self::index(passed)] = 0;
            }
            // a longer pause has emptied all of them
            self.newest = tick;
        }
        let slot = &mut self.counts[Self::index(self.newest)];
        *slot = slot.saturating_add(count);
    }

    /// What was added in this step and those before it, as many as a window has.
    pub(super) fn sum(&self, tick: u64) -> u64 {
        let oldest = (tick + 1).saturating_sub(STEPS as u64);
        let first = (self.newest + 1).saturating_sub(STEPS as u64);
        (oldest.max(first)..=self.newest).map(|at| u64::from(self.counts[Self::index(at)])).sum()
    }

    #[expect(clippy::cast_possible_truncation, reason = "less than STEPS")]
    fn index(tick: u64) -> usize {
        (tick % STEPS as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn agrees_with_a_list_of_all_that_was_added(
            steps in prop::collection::vec((0..40_u64, 0..1000_u32), 0..60),
            after in 0..30_u64,
        ) {
            let mut window = Window::default();
            let (mut now, mut all) = (0, Vec::new());
            for (pause, count) in steps {
                now += pause;
                window.add(now, count);
                all.push((now, count));
            }
            for at in [now, now + after] {
                let naive: u64 =
                    all.iter().filter(|(t, _)| t + STEPS as u64 > at).map(|(_, n)| u64::from(*n)).sum();
                prop_assert_eq!(window.sum(at), naive);
            }
        }
    }
}

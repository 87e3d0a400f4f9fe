//! Waiting for something to become true, with a limit and a reason.

use anyhow::{Result, bail};
use std::time::{Duration, Instant};

/// How often a condition is looked at: short against everything that is waited for.
const INTERVAL: Duration = Duration::from_millis(5);

/// Calls `look` until it gives a value, at most for `limit`; the error says what was waited for.
pub fn until<T>(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = look()? {
            return Ok(value);
        }
        if start.elapsed() > limit {
            bail!("waited {:.1} s in vain: {what}", limit.as_secs_f32());
        }
        std::thread::sleep(INTERVAL);
    }
}

/// As [`until`] for a plain condition.
pub fn until_true(what: &str, limit: Duration, mut look: impl FnMut() -> bool) -> Result<()> {
    until(what, limit, || Ok(look().then_some(())))
}

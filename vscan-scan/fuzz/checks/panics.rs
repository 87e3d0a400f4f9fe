//! Which panics are failures.

use std::panic;

/// Panics in the crates of others are errors of their part: the walk catches them. Ours, and those that nobody catches,
/// end the run. Called once, before the first input.
pub(crate) fn ours_alone_count() {
    let _ = panic::take_hook();
    panic::set_hook(Box::new(|info| {
        let ours = info.location().is_none_or(|at| !at.file().contains("/registry/"));
        eprintln!("{info}");
        if ours {
            std::process::abort();
        }
    }));
}

//! Any bytes as a file and a plan to clean it; see `checks::clean`.
#![no_main]

#[path = "../checks/clean.rs"]
#[allow(dead_code, reason = "each target uses some of it")]
mod checks;
#[path = "../checks/panics.rs"]
mod panics;

libfuzzer_sys::fuzz_target!(init: panics::ours_alone_count(), |data: &[u8]| checks::clean(data));

//! Any bytes as a message and a plan; see `checks::repair`.
#![no_main]

#[path = "../checks/repair.rs"]
#[allow(dead_code, reason = "each target uses some of it")]
mod checks;
#[path = "../checks/panics.rs"]
mod panics;

libfuzzer_sys::fuzz_target!(init: panics::ours_alone_count(), |data: &[u8]| checks::repair(data));

//! Any bytes as a message and a plan; see `checks::repair`.
#![no_main]

#[path = "../checks/repair.rs"]
mod checks;

libfuzzer_sys::fuzz_target!(|data: &[u8]| checks::repair(data));

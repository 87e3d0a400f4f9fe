//! Any bytes as answers of a worker; see `checks::answers`.
#![no_main]

#[path = "../checks/gateway.rs"]
#[allow(dead_code, reason = "each target uses some of it")]
mod checks;
#[path = "../checks/panics.rs"]
mod panics;

libfuzzer_sys::fuzz_target!(init: panics::ours_alone_count(), |data: &[u8]| checks::answers(data));

//! Any bytes as a file with candidates for its password; see `checks::walk_with`.
#![no_main]

#[path = "../checks/walk.rs"]
#[allow(dead_code, reason = "each target uses some of it")]
mod checks;
#[path = "../checks/panics.rs"]
mod panics;

libfuzzer_sys::fuzz_target!(init: panics::ours_alone_count(), |data: &[u8]| checks::walk_with(&["wrong".into(), "secret".into()], data));

//! Any bytes as `lz4`; see `checks::walk_as`.
#![no_main]

#[path = "../checks/walk.rs"]
#[allow(dead_code, reason = "each target uses some of it")]
mod checks;
#[path = "../checks/panics.rs"]
mod panics;

use vscan_scan::sniff::Kind;

libfuzzer_sys::fuzz_target!(init: panics::ours_alone_count(), |data: &[u8]| checks::walk_as(Kind::Lz4, data));

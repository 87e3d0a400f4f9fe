//! Any bytes as `gzip`; see `checks::walk_as`.
#![no_main]

#[path = "../checks/walk.rs"]
mod checks;

use vscan_scan::sniff::Kind;

libfuzzer_sys::fuzz_target!(|data: &[u8]| checks::walk_as(Kind::Gzip, data));

//! Any bytes behind the beginning of a uuencoded section; see `checks::walk`.
#![no_main]

#[path = "../checks/walk.rs"]
#[allow(dead_code, reason = "each target uses some of it")]
mod checks;
#[path = "../checks/panics.rs"]
mod panics;

use vscan_scan::wire::ObjectKind;

libfuzzer_sys::fuzz_target!(init: panics::ours_alone_count(), |data: &[u8]| {
    checks::walk(ObjectKind::File, &[&b"begin 644 "[..], data].concat());
});

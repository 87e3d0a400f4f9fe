//! Any bytes behind the beginning of a TNEF stream; see `checks::walk`.
#![no_main]

#[path = "../checks/walk.rs"]
mod checks;

use vscan_scan::wire::ObjectKind;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    checks::walk(ObjectKind::File, &[&b"\x78\x9f\x3e\x22\x01\0"[..], data].concat());
});

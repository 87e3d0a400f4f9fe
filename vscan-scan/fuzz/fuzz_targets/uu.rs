//! Any bytes behind the beginning of a uuencoded section; see `checks::walk`.
#![no_main]

#[path = "../checks/walk.rs"]
mod checks;

use vscan_scan::wire::ObjectKind;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    checks::walk(ObjectKind::File, &[&b"begin 644 "[..], data].concat());
});

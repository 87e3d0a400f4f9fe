//! Any bytes behind the beginning of a yEnc section; see `checks::walk`.
#![no_main]

#[path = "../checks/walk.rs"]
mod checks;

use vscan_scan::wire::ObjectKind;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    checks::walk(ObjectKind::File, &[&b"=ybegin line=128 "[..], data].concat());
});

//! Any bytes behind the beginning of a BinHex section; see `checks::walk`.
#![no_main]

#[path = "../checks/walk.rs"]
mod checks;

use vscan_scan::wire::ObjectKind;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    checks::walk(ObjectKind::File, &[&b"(This file must be converted with BinHex 4.0)\n\n:"[..], data].concat());
});

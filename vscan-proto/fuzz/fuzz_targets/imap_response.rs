//! See `checks::response`.
#![no_main]

#[path = "../checks/imap.rs"]
mod checks;

libfuzzer_sys::fuzz_target!(|data: &[u8]| checks::response(data));

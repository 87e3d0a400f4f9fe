//! See `checks::session`.
#![no_main]

#[path = "../checks/smtp.rs"]
#[expect(dead_code, reason = "each target runs one of the checks")]
mod checks;

libfuzzer_sys::fuzz_target!(|data: &[u8]| checks::session(data));

//! Any bytes as a stream of a PDF; see `forms::pdf_stream`.
#![no_main]

#[path = "../checks/walk.rs"]
#[allow(dead_code, reason = "each target uses some of it")]
mod checks;
#[path = "../checks/forms.rs"]
#[allow(dead_code, reason = "each target uses some of it")]
mod forms;
#[path = "../checks/panics.rs"]
mod panics;

use vscan_scan::wire::ObjectKind;

libfuzzer_sys::fuzz_target!(init: panics::ours_alone_count(), |data: &[u8]| {
    if let Some(whole) = forms::pdf_stream(data) {
        checks::walk(ObjectKind::File, &whole);
    }
});

//! The mark that tests hide in objects, an engine that finds it, and objects as their own tools make them.

use std::path::Path;
use vscan_scan::object::{Engine, Hit, Part};

/// As long as the EICAR test file.
pub(crate) const MARK: &[u8] =
    b"the-mark-of-the-tests-which-is-68-bytes-long-like-the-real-test-file";

/// Where the mark stands in objects that try a long match or a large window.
const FAR: usize = 500_000;

/// Finds parts that begin with the mark, or have it there.
pub(crate) struct Mark;

impl Engine for Mark {
    fn name(&self) -> &'static str {
        "mark"
    }

    fn scan(&mut self, part: &Part<'_>, hits: &mut Vec<Hit>) -> Result<(), String> {
        let far = part.data.get(FAR..).unwrap_or_default();
        if part.data.starts_with(MARK) || far.starts_with(MARK) {
            hits.push("Mark".into());
        }
        Ok(())
    }
}

/// The committed object of this name.
pub(crate) fn fixture(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)).unwrap()
}

//! The corpus of the fuzz targets, replayed: every file, whole and cut at every length, as message and as file.

#![expect(clippy::unwrap_used, reason = "a test outside of #[test] functions")]

#[path = "../fuzz/checks/walk.rs"]
mod checks;

use std::path::{Path, PathBuf};
use vscan_scan::wire::ObjectKind;

fn files(target: &str) -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let files: Vec<PathBuf> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    assert!(files.len() > 10, "the corpus is gone");
    files
}

#[test]
fn the_corpus_is_survived() {
    for target in ["message", "file"] {
        for path in files(target) {
            let data = std::fs::read(&path).unwrap();
            for kind in [ObjectKind::Message, ObjectKind::File] {
                for len in 0..=data.len() {
                    checks::walk(kind, &data[..len]);
                }
            }
        }
    }
}

//! The corpus of the fuzz targets, replayed: every file, whole and cut at every length, as message and as file.

#![expect(clippy::unwrap_used, reason = "a test outside of #[test] functions")]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use vscan_scan::limits::Limits;
use vscan_scan::object::{Engine, Object, Part, scan};
use vscan_scan::report::{Report, Verdict};
use vscan_scan::wire::ObjectKind;

struct Nothing;

impl Engine for Nothing {
    fn name(&self) -> &'static str {
        "nothing"
    }

    fn scan(&mut self, _: &Part<'_>, _: &mut Vec<String>) -> Result<(), String> {
        Ok(())
    }
}

fn files(target: &str) -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let files: Vec<PathBuf> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    assert!(files.len() > 10, "the corpus is gone");
    files
}

fn run(kind: ObjectKind, data: &[u8]) -> Report {
    let limits =
        Limits { object_size: 1 << 20, unpacked_size: 4 << 20, members: 1000, ..Limits::default() };
    let deadline = Instant::now() + Duration::from_secs(60);
    let report = scan(&mut Nothing, &limits, &Object { data, kind, name: None, deadline });
    assert!(report.parts <= limits.members);
    assert!(report.bytes <= data.len() as u64 + limits.unpacked_size + limits.object_size);
    assert_eq!(report.verdict == Verdict::Clean, report.unread.is_empty());
    report
}

#[test]
fn the_corpus_is_survived() {
    for target in ["message", "file"] {
        for path in files(target) {
            let data = std::fs::read(&path).unwrap();
            for kind in [ObjectKind::Message, ObjectKind::File] {
                for len in 0..=data.len() {
                    run(kind, &data[..len]);
                }
            }
        }
    }
}

//! Containers as their own tools make them: Debian's `clamav-testfiles`, which all hold one small program, and those
//! beside this file in `fixtures`, which hold a mark.

#![expect(clippy::unwrap_used, reason = "a test outside of #[test] functions")]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use vscan_scan::limits::Limits;
use vscan_scan::object::{Engine, Hit, Object, Part, scan};
use vscan_scan::report::{Report, Verdict};
use vscan_scan::wire::ObjectKind;

/// Where Debian's package puts them.
const CLAMAV: &str = "/usr/share/clamav-testfiles";

/// Finds parts that are these bytes and nothing else, as a hash would.
struct Exactly(Vec<u8>);

impl Engine for Exactly {
    fn name(&self) -> &'static str {
        "exactly"
    }

    fn scan(&mut self, part: &Part<'_>, hits: &mut Vec<Hit>) -> Result<(), String> {
        if part.data == self.0 {
            hits.push("Exactly".into());
        }
        Ok(())
    }
}

fn report(engine: &mut dyn Engine, data: &[u8]) -> Report {
    let deadline = Instant::now() + Duration::from_secs(60);
    scan(engine, &Limits::default(), &Object::new(ObjectKind::File, data, deadline))
}

/// Programs packed or built by others: no containers of files that this scanner opens.
const NOT_CONTAINERS: &[&str] = &[
    // PE packers
    "clam-aspack.exe",
    "clam-fsg.exe",
    "clam-mew.exe",
    "clam-pespin.exe",
    "clam-petite.exe",
    "clam-upack.exe",
    "clam-upx.exe",
    "clam-wwpack.exe",
    "clam-yc.exe",
    // AutoIt
    "clam.ea05.exe",
    "clam.ea06.exe",
    // InstallShield
    "clam_IScab_ext.exe",
    "clam_IScab_int.exe",
    "clam_ISmsi_ext.exe",
    "clam_ISmsi_int.exe",
    "clam.exe.binhex",
    "clam.tnef",
];

fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir);
    let entries =
        entries.unwrap_or_else(|e| panic!("{}: {e}: run `cargo xtask setup`", dir.display()));
    let mut files: Vec<PathBuf> = entries.map(|e| e.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn debians_containers_are_opened() {
    let program = std::fs::read(Path::new(CLAMAV).join("clam.exe")).unwrap();
    let mut engine = Exactly(program);
    let mut missed = Vec::new();
    for path in files(Path::new(CLAMAV)) {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let report = report(&mut engine, &std::fs::read(&path).unwrap());
        if report.verdict != Verdict::Infected && !NOT_CONTAINERS.contains(&&*name) {
            missed.push(format!("{name}: {} {:?}", report.kind, report.unread));
        }
    }
    assert!(missed.is_empty(), "{missed:#?}");
}

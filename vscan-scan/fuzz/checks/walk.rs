//! What holds for any bytes: the walk ends, within its limits, and calls nothing clean that it did not read.

use std::time::{Duration, Instant};
use vscan_scan::limits::Limits;
use vscan_scan::object::{Engine, Hit, Object, Part, scan, scan_as};
use vscan_scan::report::{Report, Verdict};
use vscan_scan::sniff::Kind;
use vscan_scan::wire::ObjectKind;

struct Nothing;

impl Engine for Nothing {
    fn name(&self) -> &'static str {
        "nothing"
    }

    fn scan(&mut self, _: &Part<'_>, _: &mut Vec<Hit>) -> Result<(), String> {
        Ok(())
    }
}

fn limits() -> Limits {
    Limits { object_size: 1 << 20, unpacked_size: 4 << 20, members: 1000, ..Limits::default() }
}

/// Any bytes as an object of this kind.
pub(crate) fn walk(kind: ObjectKind, data: &[u8]) {
    let limits = limits();
    let deadline = Instant::now() + Duration::from_secs(60);
    let report = scan(&mut Nothing, &limits, &Object::new(kind, data, deadline));
    holds(&report, data.len(), &limits);
}

/// Any bytes as a file that these passwords may open.
pub(crate) fn walk_with(passwords: &[String], data: &[u8]) {
    let limits = limits();
    let deadline = Instant::now() + Duration::from_secs(60);
    let object = Object { passwords, ..Object::new(ObjectKind::File, data, deadline) };
    let report = scan(&mut Nothing, &limits, &object);
    holds(&report, data.len(), &limits);
}

fn holds(report: &Report, len: usize, limits: &Limits) {
    assert!(report.parts <= limits.members);
    // A part may be read whole before it is found to exceed what is left of the limit.
    assert!(report.bytes <= len as u64 + limits.unpacked_size + limits.object_size);
    assert_eq!(report.verdict == Verdict::Clean, report.unread.is_empty());
}

/// What lies before the bytes: an image of a disc begins with 16 sectors that say nothing.
fn before(kind: Kind) -> Vec<u8> {
    if kind == Kind::Iso { vec![0; 32 * 1024] } else { Vec::new() }
}

/// The decoder of this type by itself, whatever the bytes begin with.
pub(crate) fn walk_as(kind: Kind, data: &[u8]) {
    let limits = limits();
    let data = [&before(kind)[..], data].concat();
    let deadline = Instant::now() + Duration::from_secs(60);
    let object = Object::new(ObjectKind::File, &data, deadline);
    let report = scan_as(&mut Nothing, &limits, &object, kind);
    holds(&report, data.len(), &limits);
}

//! The decoders that have a target and a corpus of their own: each is given its bytes whatever they begin with.

#[path = "walk.rs"]
mod walk;

use std::time::{Duration, Instant};
use vscan_scan::limits::Limits;
use vscan_scan::object::{Object, scan_as};
use vscan_scan::sniff::Kind;
use vscan_scan::wire::ObjectKind;

/// What lies before the bytes: an image of a disc begins with 16 sectors that say nothing.
pub(crate) fn before(kind: Kind) -> Vec<u8> {
    if kind == Kind::Iso { vec![0; 32 * 1024] } else { Vec::new() }
}

pub(crate) fn walk_as(kind: Kind, data: &[u8]) {
    let limits =
        Limits { object_size: 1 << 20, unpacked_size: 4 << 20, members: 1000, ..Limits::default() };
    let data = [&before(kind)[..], data].concat();
    let deadline = Instant::now() + Duration::from_secs(60);
    let object = Object::new(ObjectKind::File, &data, deadline);
    let report = scan_as(&mut walk::Nothing, &limits, &object, kind);
    walk::holds(&report, data.len(), &limits);
}

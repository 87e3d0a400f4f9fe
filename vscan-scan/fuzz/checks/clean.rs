//! What holds for the cleaning of any file: it ends, and what it makes is no larger than allowed.

use std::time::{Duration, Instant};
use vscan_scan::limits::Limits;
use vscan_scan::object::{Object, repair};
use vscan_scan::repair::{Answer, Order, Plan, Remedy};
use vscan_scan::wire::ObjectKind;

/// The first byte chooses the parts that are to be cleaned; the file follows.
pub(crate) fn clean(data: &[u8]) {
    let [parts, file @ ..] = data else { return };
    let orders = (0..8)
        .filter(|i| parts >> i & 1 != 0)
        .map(|part| Order { part, remedies: vec![Remedy::Clean] })
        .collect();
    let plan = Plan { orders, size_max: 2 * file.len() as u64 + 4096, ..Plan::default() };
    let limits =
        Limits { object_size: 1 << 20, unpacked_size: 4 << 20, members: 1000, ..Limits::default() };
    let deadline = Instant::now() + Duration::from_secs(60);
    let object = Object::new(ObjectKind::File, file, deadline);
    let Answer::Repaired(repaired) = repair(&limits, &object, &plan) else { return };
    assert!(repaired.done.iter().all(|done| done.remedy == Remedy::Clean));
    assert!(repaired.apply(file).len() as u64 <= plan.size_max);
}

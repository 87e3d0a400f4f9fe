//! What holds for the repair of any message: it ends, its edits are in order and inside the object, and the edited
//! object is no larger than allowed.

use std::time::{Duration, Instant};
use vscan_scan::limits::Limits;
use vscan_scan::object::{Object, repair as ask};
use vscan_scan::repair::{Answer, Order, Plan, Remedy};
use vscan_scan::wire::ObjectKind;

/// The first byte chooses the parts that are to be treated, the second the remedies or a substitute; the message follows.
pub(crate) fn repair(data: &[u8]) {
    let [parts, choice, message @ ..] = data else { return };
    let all = [Remedy::Clean, Remedy::Scramble, Remedy::Replace, Remedy::Strip];
    let remedies: Vec<Remedy> = (0..4).filter(|i| choice >> i & 1 != 0).map(|i| all[i]).collect();
    let orders = (0..8)
        .filter(|i| parts >> i & 1 != 0)
        .map(|part| Order { part, remedies: remedies.clone() })
        .collect();
    let plan = Plan {
        orders,
        notice: "It was removed.\n--b\nFrom here.".into(),
        fields: vec![("X-Vscan".into(), "treated".into())],
        subject_prefix: Some("[treated] ".into()),
        edit_signed: remedies.len() > 2,
        substitute: choice & 0x80 != 0,
        size_max: 2 * message.len() as u64 + 4096,
    };
    let limits =
        Limits { object_size: 1 << 20, unpacked_size: 4 << 20, members: 1000, ..Limits::default() };
    let deadline = Instant::now() + Duration::from_secs(60);
    let object = Object::new(ObjectKind::Message, message, deadline);
    let Answer::Repaired(repaired) = ask(&limits, &object, &plan) else { return };
    let mut at = 0;
    for edit in &repaired.edits {
        assert!(edit.at >= at, "edits overlap");
        at = edit.at + edit.len;
    }
    assert!(at <= message.len() as u64, "an edit behind the end");
    let edited = repaired.apply(message);
    assert!(edited.len() as u64 <= plan.size_max);
    assert!(edited.windows(8).any(|w| w == b"X-Vscan:"));
}

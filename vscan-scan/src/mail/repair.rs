//! Repairs of messages.

use crate::limits::Limits;
use crate::object::Object;
use crate::repair::{Answer, Plan};

/// See [`crate::object::repair`].
pub(crate) fn repair(_limits: &Limits, _object: &Object<'_>, _plan: &Plan) -> Answer {
    Answer::Unrepairable { why: "this scanner repairs nothing".to_owned() }
}

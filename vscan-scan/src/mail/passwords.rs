//! Candidates for passwords, as the text of a message tells them.

use crate::limits::Limits;
use crate::wire::ObjectKind;

/// Candidates that a message tells.
pub(crate) fn told(_limits: &Limits, _object: &[u8], _kind: ObjectKind) -> Vec<String> {
    Vec::new()
}

//! Archives: each decoder hands its members to the walk, which keeps the limits and notes what was not read.
//!
//! Where two views of an archive are possible, both are taken: what the directory says and what lies in
//! between. A member that was read twice costs time; one that was not read at all costs more.

pub(crate) mod ar;
pub(crate) mod stream;
pub(crate) mod tar;
pub(crate) mod zip;

/// A member's name for a report: bytes that are not UTF-8 are replaced.
pub(crate) fn name(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

//! RPM packages (version 3 and 4): lead, signature, header, and the payload, a compressed cpio archive.

use crate::bytes::{clipped, u32_be};
use crate::object::{Place, Walk};
use crate::report::Reason;
use crate::sniff;

const LEAD: usize = 96;
const HEADER_MAGIC: &[u8] = b"\x8e\xad\xe8\x01";

pub(crate) fn open(walk: &mut Walk<'_>, data: &[u8]) {
    let payload = || {
        // The signature is padded to 8 bytes, the header is not.
        let header = section(data, LEAD)?.next_multiple_of(8);
        section(data, header)
    };
    match payload() {
        Some(at) => {
            // The scripts of a package are in its header, as they are.
            walk.part("header", &data[LEAD..at], Place::File);
            let payload = &data[at..];
            let kind = sniff::sniff(payload);
            if kind.is_leaf() && !payload.is_empty() {
                walk.note(Reason::Malformed, "rpm package with a payload of no known form");
            }
            walk.part_as("payload", payload, kind, Place::File);
        }
        None => {
            walk.note(Reason::Malformed, "rpm package without a header");
            walk.part("after-rpm", clipped(data, LEAD, data.len()), Place::File);
        }
    }
}

/// Where the header section at `at` ends.
fn section(data: &[u8], at: usize) -> Option<usize> {
    if !data.get(at..)?.starts_with(HEADER_MAGIC) {
        return None;
    }
    let (entries, store) = (u32_be(data, at + 8)? as usize, u32_be(data, at + 12)? as usize);
    let end = at.checked_add(16)?.checked_add(entries.checked_mul(16)?)?.checked_add(store)?;
    (end <= data.len()).then_some(end)
}

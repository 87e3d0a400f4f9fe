//! RAR, versions 1.5 to 5, by libarchive ([`super::libarchive`]).

use super::libarchive::Rar;
use crate::object::{Place, Walk};
use crate::report::Reason;

const MAGIC_4: &[u8] = b"Rar!\x1a\x07\0";
const MAGIC_5: &[u8] = b"Rar!\x1a\x07\x01\0";

/// True when an archive lies here: the magic, and behind it the header of an archive.
pub(crate) fn begins(data: &[u8]) -> bool {
    // RAR 4: the main header has type 0x73 and 13 bytes at least. RAR 5: its type is 1, or 4 for encrypted headers, behind
    // a checksum and a size of one byte.
    data.starts_with(MAGIC_5) && matches!(data.get(13), Some(1 | 4))
        || data.starts_with(MAGIC_4) && data.get(9) == Some(&0x73)
}

pub(crate) fn open(walk: &mut Walk<'_>, data: &[u8]) {
    let mut rar = match Rar::open(data) {
        Ok(rar) => rar,
        Err(e) => return walk.failed("rar", &e),
    };
    let mut any = false;
    loop {
        if walk.stopped() {
            return;
        }
        match rar.next() {
            // libarchive takes what is cut off behind its first header for an empty archive.
            Ok(None) if !any => {
                walk.note(Reason::Malformed, "rar archive without a member");
                break;
            }
            Ok(None) => break,
            Ok(Some(member)) if member.encrypted => walk.within(&member.name, |walk| {
                walk.note(Reason::Encrypted, "encrypted rar member");
            }),
            Ok(Some(member)) if member.file => {
                walk.decoded(&member.name, data.len() as u64, &mut rar);
            }
            // Links and directories.
            Ok(Some(_)) => {}
            Err(_) if rar.encrypted() => {
                return walk.note(Reason::Encrypted, "encrypted rar archive");
            }
            Err(e) => {
                walk.failed("rar", &e);
                break;
            }
        }
        any = true;
    }
    // A second archive, or anything else, may follow the end block.
    if let Some(at) = end_of(data).filter(|&at| data[at..].iter().any(|&b| b != 0)) {
        walk.part("behind the end", &data[at..], Place::File);
    }
}

/// Behind the end block, where it has its usual form without fields: RAR 4's has 7 bytes, RAR 5's 8.
fn end_of(data: &[u8]) -> Option<usize> {
    let (block, len): (&[u8], usize) = if data.starts_with(MAGIC_5) {
        (b"\x1d\x77\x56\x51\x03\x05\x04\0", 8)
    } else {
        (b"\xc4\x3d\x7b\0\x40\x07\0", 7)
    };
    memchr::memmem::rfind(data, block).map(|at| at + len)
}

//! Installation files of Symbian OS up to version 8 (`.sis`): files stored or packed by zlib.

use crate::bytes::{clipped, u16_le, u32_le, utf16};
use crate::object::Walk;
use crate::report::Reason;
use flate2::read::ZlibDecoder;

/// The third UID of the format (EPOC release 6), and the one of release 5.
const UIDS: [u32; 2] = [0x1000_3a12, 0x1000_006d];
const MAGIC: u32 = 0x1000_0419;
/// Option bit: files are not packed.
const STORED: u16 = 8;

pub(crate) fn begins(data: &[u8]) -> bool {
    u32_le(data, 8) == Some(MAGIC) && u32_le(data, 4).is_some_and(|uid| UIDS.contains(&uid))
}

pub(crate) fn open(walk: &mut Walk<'_>, data: &[u8]) {
    let header = || {
        let (languages, files) = (u16_le(data, 18)?, u16_le(data, 20)?);
        Some((languages, files, u16_le(data, 36)?, u32_le(data, 52)? as usize))
    };
    let Some((languages, files, options, mut at)) = header() else {
        return walk.note(Reason::Malformed, "sis file with a wrong header");
    };
    if files == 0 {
        walk.note(Reason::Malformed, "sis file without files");
    }
    for _ in 0..files {
        if walk.stopped() {
            return;
        }
        let field = |i: usize| u32_le(data, at + i * 4).map(|n| n as usize);
        // A record: kind, type, details, source name, target name, then for each language length and place, and the
        // lengths unpacked. Kind 1 has a file for each language, the others one.
        let Some(kind) = field(0) else {
            return walk.note(Reason::Malformed, "sis file with a wrong list of files");
        };
        let count = match kind {
            0 => 1,
            1 => usize::from(languages),
            // Options, conditions and packages inside carry no files in these records.
            _ => return walk.note(Reason::Unsupported, "sis record that cannot be opened"),
        };
        let name = (field(6).zip(field(5)))
            .map(|(at, len)| utf16(clipped(data, at, len), false))
            .unwrap_or_default();
        for i in 0..count {
            let (Some(len), Some(place)) = (field(7 + i), field(7 + count + i)) else { break };
            let packed = clipped(data, place, len);
            if packed.len() < len {
                walk.within(&name, |walk| {
                    walk.note(Reason::Malformed, "the sis member is cut off")
                });
            }
            if options & STORED != 0 {
                walk.decoded(&name, len as u64, &mut &packed[..]);
            } else if !packed.is_empty() {
                walk.decoded(&name, len as u64, &mut ZlibDecoder::new(packed));
            }
        }
        // Behind the three lists come length and place of the file's MIME type.
        at += (7 + 3 * count + 2) * 4;
    }
}

//! gzip (RFC 1952): all members, and what follows the last one.

use crate::object::{Place, Walk};
use crate::report::Reason;
use flate2::bufread::GzDecoder;

pub(crate) fn open(walk: &mut Walk<'_>, data: &[u8]) {
    let mut rest = data;
    while rest.starts_with(b"\x1f\x8b") && !walk.stopped() {
        let before = rest.len();
        let name = member_name(rest);
        let mut decoder = GzDecoder::new(rest);
        walk.decoded(&name, before as u64, &mut decoder);
        rest = decoder.into_inner();
        if rest.len() == before {
            break;
        }
    }
    // gzip(1) ignores zeros after the last member (tapes) and warns of other bytes.
    if rest.len() < data.len() && rest.iter().any(|&b| b != 0) {
        walk.part("after-gzip", rest, Place::File);
    } else if rest.len() == data.len() {
        walk.note(Reason::Malformed, "no gzip member");
    }
}

/// The file name in the header (RFC 1952 section 2.3, FNAME), if there is one.
fn member_name(data: &[u8]) -> String {
    const FEXTRA: u8 = 4;
    const FNAME: u8 = 8;
    let name = || {
        let flags = *data.get(3)?;
        if flags & FNAME == 0 {
            return None;
        }
        let mut at = 10;
        if flags & FEXTRA != 0 {
            at += 2 + usize::from(u16::from_le_bytes([*data.get(10)?, *data.get(11)?]));
        }
        let rest = data.get(at..)?;
        Some(super::name(&rest[..memchr::memchr(0, &rest[..rest.len().min(1024)])?]))
    };
    name().unwrap_or_else(|| "gzip".to_owned())
}

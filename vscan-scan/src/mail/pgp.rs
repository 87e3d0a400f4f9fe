//! OpenPGP messages in ASCII armour (RFC 9580 section 6). Whether one is encrypted is told by its first packet.

use super::encoding;
use crate::object::{Place, Walk};
use crate::report::Reason;
use memchr::memmem;

/// Looks into the armoured message at the start of `data`.
pub(crate) fn armoured(walk: &mut Walk<'_>, data: &[u8], place: Place) {
    // Up to its end line or to the next armour, so that many beginnings are not read to the end each.
    let begin = memmem::find(&data[1..], b"-----BEGIN ").map_or(data.len(), |i| i + 1);
    let block = &data[..begin];
    let block = &block[..memmem::find(block, b"-----END PGP MESSAGE-----").unwrap_or(begin)];
    // The armour's header ends at a blank line; the base64 follows, then `=` and the checksum.
    let body = memmem::find(block, b"\n\n")
        .map(|i| i + 2)
        .or_else(|| memmem::find(block, b"\n\r\n").map(|i| i + 3));
    let decoded = body.map(|at| encoding::base64(&block[at..]).data).unwrap_or_default();
    match decoded.first().map(|&b| tag(b)) {
        // Session keys and encrypted data (RFC 9580 section 5).
        Some(Some(1 | 3 | 9 | 18 | 20)) => {
            walk.note(place.encrypted(), "OpenPGP encrypted message")
        }
        _ => {
            walk.note(Reason::Unsupported, "OpenPGP message that is not encrypted");
            walk.part("pgp", &decoded, place);
        }
    }
}

/// True for text with a clear signature (RFC 9580 section 7).
pub(crate) fn is_signed(data: &[u8]) -> bool {
    data.starts_with(b"-----BEGIN PGP SIGNED MESSAGE-----")
        || memmem::find(data, b"\n-----BEGIN PGP SIGNED MESSAGE-----").is_some()
}

fn tag(byte: u8) -> Option<u8> {
    match byte {
        0..0x80 => None,
        0x80..0xc0 => Some(byte >> 2 & 0x0f),
        0xc0.. => Some(byte & 0x3f),
    }
}

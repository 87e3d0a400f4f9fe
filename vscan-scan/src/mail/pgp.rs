//! OpenPGP messages in ASCII armour (RFC 9580 section 6). Whether one is encrypted is told by its first
//! packet; what is only signed or compressed is opened.

use super::encoding;
use crate::archive::caught;
use crate::limits::RATIO_FLOOR;
use crate::object::{Place, Walk};
use crate::report::Reason;
use flate2::read::{DeflateDecoder, ZlibDecoder};
use memchr::memmem;
use std::borrow::Cow;
use std::io::Read;

/// Looks into the armoured message at the start of `data`.
pub(crate) fn armoured(walk: &mut Walk<'_>, data: &[u8], place: Place) {
    // Up to its end line or to the next armour, so that many beginnings are not read to the end each.
    let begin = memmem::find(data.get(1..).unwrap_or_default(), b"-----BEGIN ")
        .map_or(data.len(), |i| i + 1);
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
            if !packets(walk, &decoded, place, 0) {
                walk.note(Reason::Unsupported, "OpenPGP message that is not encrypted");
            }
            walk.part("pgp", &decoded, place);
        }
    }
}

/// Opens what is signed or only compressed: literal data, alone or between signatures. False: there is none.
fn packets(walk: &mut Walk<'_>, mut data: &[u8], place: Place, depth: u32) -> bool {
    let mut found = false;
    while let Some((tag, body, rest)) = packet(data) {
        data = rest;
        match tag {
            COMPRESSED if depth < 4 => {
                let Some((&how, packed)) = body.split_first() else { continue };
                let Some(plain) = decompressed(walk, how, packed) else { continue };
                found |= packets(walk, &plain, place, depth + 1);
            }
            // Its format, a name, a date, then the bytes.
            LITERAL => {
                let len = usize::from(body.get(1).copied().unwrap_or(0));
                let name = body.get(2..2 + len).unwrap_or_default();
                let name = String::from_utf8_lossy(name);
                let name = if name.is_empty() { "literal" } else { &name };
                walk.part(name, body.get(2 + len + 4..).unwrap_or_default(), place);
                found = true;
            }
            1 | 3 | 9 | 18 | 20 => {
                walk.note(place.encrypted(), "OpenPGP encrypted message");
                found = true;
            }
            _ => {}
        }
    }
    found
}

const COMPRESSED: u8 = 8;
const LITERAL: u8 = 11;

/// Tag and contents of a packet, and what follows it.
type Packet<'a> = (u8, Cow<'a, [u8]>, &'a [u8]);

/// The packet that the data begins with, its parts joined (RFC 9580 section 4.2).
fn packet(data: &[u8]) -> Option<Packet<'_>> {
    let (&first, rest) = data.split_first()?;
    let tag = tag(first)?;
    let cut = |rest: &'_ [u8], len: usize| len.min(rest.len());
    if first & 0x40 == 0 {
        let (len, rest) = match (first & 3, rest) {
            (0, [a, rest @ ..]) => (usize::from(*a), rest),
            (1, [a, b, rest @ ..]) => (usize::from(u16::from_be_bytes([*a, *b])), rest),
            (2, [a, b, c, d, rest @ ..]) => (u32::from_be_bytes([*a, *b, *c, *d]) as usize, rest),
            (3, rest) => (rest.len(), rest),
            _ => return None,
        };
        let (body, rest) = rest.split_at(cut(rest, len));
        return Some((tag, Cow::Borrowed(body), rest));
    }
    let mut joined: Option<Vec<u8>> = None;
    let mut rest = rest;
    loop {
        let (len, partial, tail) = match rest {
            [a @ 0..=191, tail @ ..] => (usize::from(*a), false, tail),
            [a @ 192..=223, b, tail @ ..] => {
                (((usize::from(*a) - 192) << 8) + usize::from(*b) + 192, false, tail)
            }
            [255, a, b, c, d, tail @ ..] => {
                (u32::from_be_bytes([*a, *b, *c, *d]) as usize, false, tail)
            }
            [a @ 224..=254, tail @ ..] => (1 << (a & 0x1f), true, tail),
            // Cut off: what is there is taken.
            _ => return joined.map(|body| (tag, Cow::Owned(body), &rest[rest.len()..])),
        };
        let (body, tail) = tail.split_at(cut(tail, len));
        rest = tail;
        match (&mut joined, partial) {
            (None, false) => return Some((tag, Cow::Borrowed(body), rest)),
            (Some(joined), _) => joined.extend_from_slice(body),
            (None, true) => joined = Some(body.to_vec()),
        }
        if !partial {
            return joined.map(|body| (tag, Cow::Owned(body), rest));
        }
    }
}

/// Compression by zlib (RFC 1950), of CMS too (RFC 3274).
pub(super) const ZLIB: u8 = 2;

/// Undoes the compression of a packet (RFC 9580 section 5.6), within the limits. None: it is noted.
pub(super) fn decompressed(walk: &mut Walk<'_>, how: u8, packed: &[u8]) -> Option<Vec<u8>> {
    let mut reader: Box<dyn Read> = match how {
        0 => Box::new(packed),
        1 => Box::new(DeflateDecoder::new(packed)),
        ZLIB => Box::new(ZlibDecoder::new(packed)),
        3 => Box::new(bzip2::read::BzDecoder::new(packed)),
        _ => {
            walk.note(Reason::Unsupported, "a compression that is not known");
            return None;
        }
    };
    let ratio = (packed.len() as u64).saturating_mul(walk.limits.ratio.into()).max(RATIO_FLOOR);
    let most = ratio.min(walk.limits.object_size);
    let mut plain = Vec::new();
    // One that is cut off is read as far as it goes.
    let read = caught(|| reader.by_ref().take(most + 1).read_to_end(&mut plain));
    if plain.len() as u64 > most {
        let reason = if most == ratio { Reason::Ratio } else { Reason::Size };
        walk.note(reason, &format!("more than {most} bytes from {}", packed.len()));
        plain.truncate(most as usize);
    } else if let Err(e) = read {
        walk.note(Reason::Malformed, &format!("compressed data: {e}"));
    }
    Some(plain)
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

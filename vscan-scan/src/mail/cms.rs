//! CMS (RFC 5652), the format of S/MIME: what is encrypted is noted, what is only signed is opened.

use super::pgp;
use crate::object::{Place, Walk};
use crate::report::Reason;
use crate::sniff::{self, Kind};

/// What a ContentInfo holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    Data,
    Signed,
    Encrypted,
    Compressed,
    Other,
}

/// Object identifiers `pkcs7` (1.2.840.113549.1.7) and `id-smime-ct` (1.2.840.113549.1.9.16.1) in DER.
const PKCS7: &[u8] = b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07";
const SMIME_CT: &[u8] = b"\x06\x0b\x2a\x86\x48\x86\xf7\x0d\x01\x09\x10\x01";

pub(crate) fn is_cms(data: &[u8]) -> bool {
    content(data).is_some()
}

fn content(data: &[u8]) -> Option<Content> {
    let (0x30, _, inner) = element(data)? else { return None };
    if let Some(rest) = inner.strip_prefix(PKCS7) {
        return Some(match rest.first()? {
            1 => Content::Data,
            2 => Content::Signed,
            3 | 4 | 6 => Content::Encrypted,
            _ => Content::Other,
        });
    }
    Some(match inner.strip_prefix(SMIME_CT)?.first()? {
        9 => Content::Compressed,
        23 => Content::Encrypted,
        _ => Content::Other,
    })
}

/// Opens a CMS object.
pub(crate) fn open(walk: &mut Walk<'_>, data: &[u8], place: Place) {
    match content(data) {
        Some(Content::Encrypted) => walk.note(place.encrypted(), "CMS (S/MIME) encrypted data"),
        Some(Content::Compressed) => {
            if !inner(walk, data, place, true) {
                walk.note(Reason::Unsupported, "CMS (S/MIME) compressed data");
            }
        }
        // In a detached signature there is no content.
        Some(Content::Data | Content::Signed) => drop(inner(walk, data, place, false)),
        Some(Content::Other) | None => {}
    }
}

/// Contents in one CMS object that are looked at; a signed message has one.
const CONTENTS_MAX: usize = 64;

/// The content that was signed or compressed (RFC 3274): an OCTET STRING behind the identifier of plain data.
/// False: there is none.
fn inner(walk: &mut Walk<'_>, data: &[u8], place: Place, compressed: bool) -> bool {
    let mut found = false;
    let oid = [PKCS7, b"\x01"].concat();
    let mut number = 0;
    for at in memchr::memmem::find_iter(data, &oid) {
        let Some((0xa0, _, inner)) = element(&data[at + oid.len()..]) else { continue };
        number += 1;
        if number > CONTENTS_MAX {
            walk.note(Reason::Members, "more CMS contents than are opened");
            break;
        }
        let mut octets = Vec::new();
        // In a detached signature the signer's certificates follow here: no content.
        if !octet_string(inner, &mut octets, 0) {
            continue;
        }
        if compressed {
            let Some(plain) = pgp::decompressed(walk, pgp::ZLIB, &octets) else { continue };
            octets = plain;
        }
        found = true;
        let kind = match sniff::sniff(&octets) {
            // A MIME part, which begins with a MIME field.
            Kind::Text if octets.get(..8).is_some_and(|b| b.eq_ignore_ascii_case(b"content-")) => {
                Kind::Message
            }
            kind => kind,
        };
        walk.part_as(if compressed { "compressed" } else { "signed" }, &octets, kind, place);
    }
    found
}

/// Joins the pieces of an OCTET STRING, primitive or constructed (BER). False when it is none.
fn octet_string(data: &[u8], out: &mut Vec<u8>, depth: u32) -> bool {
    match element(data) {
        Some((0x04, _, body)) => {
            out.extend_from_slice(body);
            true
        }
        Some((0x24, _, mut body)) if depth < 4 => {
            while let Some((0x04 | 0x24, len, _)) = element(body) {
                octet_string(&body[..len], out, depth + 1);
                body = &body[len..];
            }
            true
        }
        _ => false,
    }
}

/// A BER element at the start of the data: its tag, its whole length and its contents, as far as they are there.
/// For the indefinite form the contents are all that follows and the length ends at the matching end mark.
fn element(data: &[u8]) -> Option<(u8, usize, &[u8])> {
    let (&tag, &first) = (data.first()?, data.get(1)?);
    let (header, len) = match first {
        0..0x80 => (2, usize::from(first)),
        0x80 => {
            let body = &data[2..];
            return Some((tag, 2 + indefinite(body, 0)?, body));
        }
        _ => {
            let count = usize::from(first & 0x7f);
            let bytes = data.get(2..2 + count).filter(|_| count <= 8)?;
            (
                2 + count,
                bytes
                    .iter()
                    .try_fold(0usize, |n, &b| n.checked_mul(256)?.checked_add(usize::from(b)))?,
            )
        }
    };
    let end = header.saturating_add(len).min(data.len());
    Some((tag, end, &data[header..end]))
}

/// The length of contents in the indefinite form, end mark included.
fn indefinite(data: &[u8], depth: u32) -> Option<usize> {
    if depth > 16 {
        return None;
    }
    let mut at = 0;
    loop {
        match data.get(at..) {
            Some([0, 0, ..]) => return Some(at + 2),
            Some([_, 0x80, inner @ ..]) => at += 2 + indefinite(inner, depth + 1)?,
            Some(rest @ [_, _, ..]) => {
                let (_, len, _) = element(rest)?;
                at += len;
            }
            // Cut off: what is there is taken.
            _ => return Some(data.len()),
        }
    }
}

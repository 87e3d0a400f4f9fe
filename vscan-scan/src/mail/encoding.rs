//! Transfer encodings, decoded leniently: what some mail reader would decode is decoded.

use super::headers::Encoding;
use super::uu;
use crate::object::Walk;
use crate::report::Reason;
use std::borrow::Cow;

/// Decodes a body. What is no such encoding at all is noted; it is scanned raw with the whole message.
pub(crate) fn decode<'a>(walk: &mut Walk<'_>, encoding: Encoding, body: &'a [u8]) -> Cow<'a, [u8]> {
    match encoding {
        Encoding::Identity | Encoding::Unknown => Cow::Borrowed(body),
        Encoding::QuotedPrintable => Cow::Owned(quoted_printable(body)),
        Encoding::Base64 => {
            let decoded = base64(body);
            // Some junk is passed over by every reader; when a quarter is junk, nobody knows what is meant.
            // Blanks between every few letters are those of words.
            if decoded.junk * 4 > decoded.letters + decoded.junk
                || decoded.blanks * 10 > decoded.letters
            {
                walk.note(Reason::Malformed, "called base64, but is not");
            }
            Cow::Owned(decoded.data)
        }
        Encoding::Uuencode => match uu::sections(body).next() {
            Some(section) => Cow::Owned(section.data),
            None => {
                if !body.trim_ascii().is_empty() {
                    walk.note(Reason::Malformed, "called uuencoded, but is not");
                }
                Cow::Borrowed(body)
            }
        },
    }
}

/// The outcome of decoding base64.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Base64 {
    pub(crate) data: Vec<u8>,
    /// Bytes of the alphabet.
    pub(crate) letters: usize,
    /// Bytes that are neither of the alphabet nor padding nor white space, before the last padding.
    pub(crate) junk: usize,
    /// Spaces and tabs, before the last padding.
    pub(crate) blanks: usize,
}

const NONE: u8 = 0xff;
const SPACE: u8 = 0xfe;
const PAD: u8 = 0xfd;

/// Values of the base64 alphabet (RFC 4648 section 4).
pub(crate) const ALPHABET: [u8; 256] = {
    let mut table = [NONE; 256];
    let letters = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut i = 0;
    while i < 64 {
        table[letters[i] as usize] = i as u8;
        i += 1;
    }
    table[b'\r' as usize] = SPACE;
    table[b'\n' as usize] = SPACE;
    table[b' ' as usize] = SPACE;
    table[b'\t' as usize] = SPACE;
    table[0] = SPACE;
    table[b'=' as usize] = PAD;
    table
};

/// Decodes base64: junk is passed over, padding ends a quantum and decoding goes on behind it.
pub(crate) fn base64(body: &[u8]) -> Base64 {
    let mut out = Base64 { data: Vec::with_capacity(body.len() / 4 * 3 + 3), ..Base64::default() };
    let (mut bits, mut count) = (0u32, 0u8);
    let (mut junk, mut blanks, mut padded) = (0, 0, false);
    let mut rest = body;
    while !rest.is_empty() {
        // Whole quanta without anything in between: nearly all of a body.
        if count == 0 {
            while let Some((&[a, b, c, d], tail)) = rest.split_first_chunk::<4>() {
                let (a, b, c, d) = (
                    ALPHABET[a as usize],
                    ALPHABET[b as usize],
                    ALPHABET[c as usize],
                    ALPHABET[d as usize],
                );
                if (a | b | c | d) & 0x80 != 0 {
                    break;
                }
                let quantum =
                    u32::from(a) << 18 | u32::from(b) << 12 | u32::from(c) << 6 | u32::from(d);
                out.data.extend_from_slice(&quantum.to_be_bytes()[1..]);
                out.letters += 4;
                rest = tail;
                padded = false;
            }
        }
        let Some((&byte, tail)) = rest.split_first() else { break };
        rest = tail;
        match ALPHABET[byte as usize] {
            NONE => junk += 1,
            SPACE => blanks += usize::from(byte == b' ' || byte == b'\t'),
            PAD => {
                flush(&mut out.data, bits, count);
                (bits, count) = (0, 0);
                padded = true;
                out.junk += std::mem::take(&mut junk);
                out.blanks += std::mem::take(&mut blanks);
            }
            value => {
                bits = bits << 6 | u32::from(value);
                count += 1;
                out.letters += 1;
                if count == 4 {
                    out.data.extend_from_slice(&bits.to_be_bytes()[1..]);
                    (bits, count) = (0, 0);
                }
            }
        }
    }
    flush(&mut out.data, bits, count);
    // Text behind the padding is a mailing list's footer, which readers drop.
    if !padded && out.letters > 0 || out.letters == 0 {
        out.junk += junk;
        out.blanks += blanks;
    }
    out
}

fn flush(data: &mut Vec<u8>, bits: u32, count: u8) {
    match count {
        2 => data.push((bits >> 4) as u8),
        3 => data.extend_from_slice(&[(bits >> 10) as u8, (bits >> 2) as u8]),
        _ => {}
    }
}

/// Decodes quoted-printable (RFC 2045 section 6.7); what is no escape stays as it is.
pub(crate) fn quoted_printable(body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(body.len());
    let mut rest = body;
    while let Some(i) = memchr::memchr(b'=', rest) {
        out.extend_from_slice(&rest[..i]);
        rest = &rest[i..];
        let hex = |b: u8| (b as char).to_digit(16);
        if let Some((hi, lo)) = rest.get(1..3).and_then(|h| Some((hex(h[0])?, hex(h[1])?))) {
            out.push((hi << 4 | lo) as u8);
            rest = &rest[3..];
            continue;
        }
        // A soft line break, white space before its line end included.
        let blank = rest[1..].iter().take_while(|&&b| b == b' ' || b == b'\t').count();
        let after = &rest[1 + blank..];
        if let Some(next) = after.strip_prefix(b"\r\n").or_else(|| after.strip_prefix(b"\n")) {
            rest = next;
        } else if after.is_empty() {
            rest = after;
        } else {
            out.push(b'=');
            rest = &rest[1..];
        }
    }
    out.extend_from_slice(rest);
    out
}

/// UTF-16 text as UTF-8, so that patterns in plain ASCII find it.
pub(crate) fn narrow(data: &[u8], big_endian: bool) -> Vec<u8> {
    let units = data.chunks_exact(2).map(|p| {
        let pair = [p[0], p[1]];
        if big_endian { u16::from_be_bytes(pair) } else { u16::from_le_bytes(pair) }
    });
    char::decode_utf16(units)
        .map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER))
        .collect::<String>()
        .into_bytes()
}

//! Transfer encodings, decoded leniently: what some mail reader would decode is decoded.

use super::headers::Encoding;
use super::uu;
use std::borrow::Cow;

/// A decoded body.
#[derive(Clone, Debug)]
pub(crate) struct Decoded<'a> {
    /// As most readers decode it.
    pub(crate) data: Cow<'a, [u8]>,
    /// Why this is no such encoding, if it is none. The raw bytes are scanned with the whole message.
    pub(crate) note: Option<&'static str>,
    /// As other readers decode it.
    pub(crate) others: Vec<Vec<u8>>,
}

/// Decodes a body in every way that is plausible.
pub(crate) fn decode(encoding: Encoding, body: &[u8]) -> Decoded<'_> {
    let plain = |data| Decoded { data, note: None, others: Vec::new() };
    match encoding {
        Encoding::Identity | Encoding::Unknown => plain(Cow::Borrowed(body)),
        Encoding::QuotedPrintable => plain(Cow::Owned(quoted_printable(body))),
        Encoding::Base64 => {
            let decoded = base64(body);
            // Some junk is passed over by every reader; when a quarter is junk, nobody knows what is meant.
            // Blanks between every few letters are those of words.
            let words = decoded.junk * 4 > decoded.letters + decoded.junk
                || decoded.blanks * 10 > decoded.letters;
            let mut others = Vec::new();
            if let Some(padding) = decoded.padding {
                // Readers stop at the padding, or pass over it without ending the quantum.
                others.push(decoded.data[..padding].to_vec());
                let unpadded: Vec<u8> = body.iter().copied().filter(|&b| b != b'=').collect();
                others.push(base64(&unpadded).data);
                others.dedup();
                others.retain(|other| *other != decoded.data);
            }
            Decoded {
                data: Cow::Owned(decoded.data),
                note: words.then_some("called base64, but is not"),
                others,
            }
        }
        Encoding::Uuencode => {
            let mut sections = uu::sections(body);
            match sections.next() {
                Some(section) => Decoded {
                    data: Cow::Owned(section.data),
                    note: None,
                    others: sections.map(|section| section.data).collect(),
                },
                None => Decoded {
                    data: Cow::Borrowed(body),
                    note: (!body.trim_ascii().is_empty()).then_some("called uuencoded, but is not"),
                    others: Vec::new(),
                },
            }
        }
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
    /// Bytes decoded before the first padding, where more follow it.
    pub(crate) padding: Option<usize>,
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
    let mut first_padding = None;
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
                first_padding.get_or_insert(out.data.len());
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
    out.padding = first_padding.filter(|&at| at < out.data.len());
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

/// Encodes base64 with lines of `line` letters, a multiple of four, between which `ending` stands.
pub(crate) fn to_base64(data: &[u8], line: usize, ending: &str) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(data.len() / 3 * 4 + data.len() / 57 * ending.len() + 8);
    let mut in_line = 0;
    for chunk in data.chunks(3) {
        if in_line >= line {
            out.push_str(ending);
            in_line = 0;
        }
        let n = chunk.iter().fold(0u32, |n, &b| n << 8 | u32::from(b)) << (8 * (3 - chunk.len()));
        for k in 0..4 {
            let letter = char::from(LETTERS[(n >> (18 - 6 * k)) as usize & 63]);
            out.push(if k > chunk.len() { '=' } else { letter });
        }
        in_line += 4;
    }
    out
}

/// Encodes text as quoted-printable: lines of at most 76 characters, and none that begins like a delimiter, a
/// mailbox's separator or a lone dot. What is not called text has no lines: its line ends are escaped.
pub(crate) fn to_quoted_printable(data: &[u8], ending: &str, text: bool) -> String {
    let mut out = String::with_capacity(data.len() * 5 / 4);
    let lines: Vec<&[u8]> = if text { data.split(|&b| b == b'\n').collect() } else { vec![data] };
    for (i, line) in lines.iter().enumerate() {
        if i > 0 {
            out.push_str(ending);
        }
        let line =
            if i + 1 < lines.len() { line.strip_suffix(b"\r").unwrap_or(line) } else { line };
        let mut column = 0;
        for (k, &b) in line.iter().enumerate() {
            let last = k + 1 == line.len();
            let plain = match b {
                b' ' | b'\t' => !last,
                b'=' => false,
                b'-' | b'.' | b'F' => column > 0,
                _ => b.is_ascii_graphic(),
            };
            if column + if plain { 1 } else { 3 } > 75 {
                out.push('=');
                out.push_str(ending);
                column = 0;
            }
            if plain && (column > 0 || !matches!(b, b'-' | b'.' | b'F')) {
                out.push(char::from(b));
                column += 1;
            } else {
                out.push_str(&format!("={b:02X}"));
                column += 3;
            }
        }
    }
    out
}

/// UTF-32 text as UTF-8.
pub(crate) fn narrow32(data: &[u8], big_endian: bool) -> Vec<u8> {
    let units = data.chunks_exact(4).map(|p| {
        let four = [p[0], p[1], p[2], p[3]];
        if big_endian { u32::from_be_bytes(four) } else { u32::from_le_bytes(four) }
    });
    units
        .map(|u| char::from_u32(u).unwrap_or(char::REPLACEMENT_CHARACTER))
        .collect::<String>()
        .into_bytes()
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

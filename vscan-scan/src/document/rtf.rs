//! RTF: what its destinations carry as hexadecimal digits: embedded objects (`\objdata`, MS-OLEDS 2.2), and the data
//! of `\themedata` and `\datastore`.
//!
//! Word passes over nearly anything between the digits, and so does this.

use super::ole;
use crate::bytes::{clipped, u32_le};
use crate::object::{Place, Walk};

/// Destinations that are read.
const DESTINATIONS: &[&[u8]] = &[b"objdata", b"themedata", b"datastore", b"colorschememapping"];

pub(crate) fn open(walk: &mut Walk<'_>, data: &[u8]) {
    let mut from = 0;
    while let Some(slash) = memchr::memchr(b'\\', data.get(from..).unwrap_or_default()) {
        from += slash + 1;
        let rest = &data[from..];
        let word = &rest[..rest.iter().take_while(|b| b.is_ascii_alphabetic()).count()];
        if !DESTINATIONS.contains(&word) {
            // An escaped backslash begins nothing.
            from += usize::from(rest.first() == Some(&b'\\'));
            continue;
        }
        if walk.stopped() {
            return;
        }
        let (bytes, len) = digits(&rest[word.len()..]);
        from += word.len() + len;
        if !bytes.is_empty() {
            walk.part(&super::super::archive::name(word), &bytes, Place::File);
            object(walk, &bytes);
        }
    }
}

/// The bytes up to the end of the group, and how much of `data` that is.
fn digits(data: &[u8]) -> (Vec<u8>, usize) {
    let mut out = Vec::new();
    let mut half: Option<u8> = None;
    let (mut at, mut depth) = (0, 0);
    while let Some(&byte) = data.get(at) {
        at += 1;
        match byte {
            b'{' => depth += 1,
            b'}' if depth == 0 => break,
            b'}' => depth -= 1,
            b'\\' => {
                let rest = &data[at..];
                let word = rest.iter().take_while(|b| b.is_ascii_alphabetic()).count();
                if word == 0 {
                    // A symbol; `\'` has two digits that are a character, not data.
                    at += if rest.first() == Some(&b'\'') { 3 } else { 1 };
                    continue;
                }
                let number = &rest[word..];
                let sign = usize::from(number.first() == Some(&b'-'));
                let len = sign + number[sign..].iter().take_while(|b| b.is_ascii_digit()).count();
                let value =
                    std::str::from_utf8(&number[..len]).ok().and_then(|n| n.parse::<usize>().ok());
                at += word + len;
                // A blank ends the control word and belongs to it.
                at += usize::from(data.get(at) == Some(&b' '));
                if &rest[..word] == b"bin" {
                    let raw = clipped(data, at, value.unwrap_or(0));
                    out.extend_from_slice(raw);
                    at += raw.len();
                }
            }
            _ => {
                let Some(digit) = char::from(byte).to_digit(16) else { continue };
                match half.take() {
                    Some(high) => out.push(high << 4 | digit as u8),
                    None => half = Some(digit as u8),
                }
            }
        }
    }
    (out, at.min(data.len()))
}

/// An embedded object: version, format, three strings with lengths, the native data (MS-OLEDS 2.2.5).
fn object(walk: &mut Walk<'_>, data: &[u8]) {
    let native = || {
        let mut at = 8;
        let mut class = &[][..];
        for i in 0..3 {
            let len = u32_le(data, at)? as usize;
            let string = data.get(at + 4..(at + 4).checked_add(len)?)?;
            if i == 0 {
                class = string;
            }
            at += 4 + len;
        }
        let len = u32_le(data, at)? as usize;
        Some((class, clipped(data, at + 4, len)))
    };
    if let Some((class, native)) = native().filter(|(_, n)| !n.is_empty()) {
        let class =
            super::super::archive::name(class.split(|&b| b == 0).next().unwrap_or_default());
        match ole::package(native) {
            Some((label, file)) if class.eq_ignore_ascii_case("package") => {
                walk.part(&label, file, Place::File);
            }
            _ => walk.part(&class, native, Place::File),
        }
        return;
    }
    // Lengths that are wrong keep nobody from finding the compound file.
    if let Some(at) = memchr::memmem::find(data, ole::MAGIC).filter(|&at| at > 0) {
        walk.part("object", &data[at..], Place::File);
    }
}

//! Words of header fields: character sets, encoded words (RFC 2047) and parameters (RFC 2045, RFC 2231), read in
//! every way in which some reader reads them.

use super::encoding;
use crate::archive::caught;
use mail_parser::decoders::charsets::map::charset_decoder;

/// Text in a named character set. Where the name is unknown: UTF-8 if it is valid, else Latin-1.
pub(crate) fn decode(charset: &[u8], text: &[u8]) -> String {
    // RFC 2231 section 5: a language may follow the name.
    let name = charset.split(|&b| b == b'*').next().unwrap_or_default();
    let name = name.to_ascii_lowercase();
    match charset_decoder(&name) {
        Some(decoder) if !matches!(&name[..], b"utf-8" | b"us-ascii" | b"") => {
            caught(|| Ok(decoder(text))).unwrap_or_default()
        }
        _ => match std::str::from_utf8(text) {
            Ok(text) => text.to_owned(),
            Err(_) => text.iter().map(|&b| char::from(b)).collect(),
        },
    }
}

/// A field's text with its encoded words decoded, wherever they stand: readers decode them inside quotes and
/// words too. Blanks between two encoded words are left out.
pub(crate) fn decode_words(text: &[u8]) -> String {
    let mut out = String::new();
    let mut rest = text;
    let mut after_word = false;
    while let Some(at) = memchr::memmem::find(rest, b"=?") {
        let Some((decoded, len)) = encoded_word(&rest[at..]) else {
            out.push_str(&decode(b"", &rest[..at + 2]));
            rest = &rest[at + 2..];
            after_word = false;
            continue;
        };
        if !(after_word && rest[..at].iter().all(u8::is_ascii_whitespace)) {
            out.push_str(&decode(b"", &rest[..at]));
        }
        out.push_str(&decoded);
        rest = &rest[at + len..];
        after_word = true;
    }
    out.push_str(&decode(b"", rest));
    out
}

/// The encoded word at the start of the text, and its length.
fn encoded_word(text: &[u8]) -> Option<(String, usize)> {
    let inner = text.strip_prefix(b"=?")?;
    let charset_end = memchr::memchr(b'?', inner)?;
    let how = *inner.get(charset_end + 1)?;
    if inner.get(charset_end + 2) != Some(&b'?') || charset_end > 64 {
        return None;
    }
    let body = &inner[charset_end + 3..];
    let end = memchr::memmem::find(body, b"?=")?;
    let bytes = match how.to_ascii_lowercase() {
        b'b' => encoding::base64(&body[..end]).data,
        b'q' => {
            let spaced: Vec<u8> =
                body[..end].iter().map(|&b| if b == b'_' { b' ' } else { b }).collect();
            encoding::quoted_printable(&spaced)
        }
        _ => return None,
    };
    Some((decode(&inner[..charset_end], &bytes), 2 + charset_end + 3 + end + 2))
}

/// The value of a structured field without comments, then its parameters: names in lower case, values without
/// quotes. A value that holds blanks and no quotes comes twice: whole, and up to the first blank.
pub(crate) fn parameters(value: &[u8]) -> (Vec<u8>, Vec<(String, Vec<u8>)>) {
    let mut pieces = vec![Vec::new()];
    let (mut quoted, mut depth) = (false, 0u32);
    let mut bytes = value.iter().copied();
    while let Some(b) = bytes.next() {
        let Some(piece) = pieces.last_mut() else { break };
        match b {
            b'\r' | b'\n' | 0 => {}
            b'\\' if quoted || depth > 0 => {
                if let Some(next) = bytes.next()
                    && depth == 0
                {
                    piece.extend([b'\\', next]);
                }
            }
            b'"' if depth == 0 => {
                quoted = !quoted;
                piece.push(b);
            }
            b'(' if !quoted => depth += 1,
            b')' if !quoted && depth > 0 => depth -= 1,
            _ if depth > 0 => {}
            b';' if !quoted => {
                if pieces.len() > PARAMETERS_MAX {
                    break;
                }
                pieces.push(Vec::new());
            }
            _ => piece.push(b),
        }
    }
    let mut pieces = pieces.into_iter();
    let head = pieces.next().unwrap_or_default().trim_ascii().to_vec();
    let mut parameters = Vec::new();
    for piece in pieces {
        let Some(equals) = memchr::memchr(b'=', &piece) else { continue };
        let name = String::from_utf8_lossy(piece[..equals].trim_ascii()).to_ascii_lowercase();
        let value = piece[equals + 1..].trim_ascii();
        let plain = unquoted(value);
        if let Some(blank) = plain.iter().position(u8::is_ascii_whitespace)
            && !value.starts_with(b"\"")
        {
            parameters.push((name.clone(), plain[..blank].to_vec()));
        }
        parameters.push((name, plain));
    }
    (head, parameters)
}

/// Parameters of one field that are looked at.
const PARAMETERS_MAX: usize = 64;

fn unquoted(value: &[u8]) -> Vec<u8> {
    let Some(inner) = value.strip_prefix(b"\"") else { return value.to_vec() };
    let mut out = Vec::new();
    let mut bytes = inner.iter().copied();
    while let Some(b) = bytes.next() {
        match b {
            b'"' => break,
            b'\\' => out.extend(bytes.next()),
            _ => out.push(b),
        }
    }
    out
}

/// Every value that a reader may take for the parameter: plain, with encoded words, in the extended form
/// (RFC 2231 section 4), and put together from numbered pieces, in the sequence of the numbers and as they stand.
pub(crate) fn values(parameters: &[(String, Vec<u8>)], name: &str) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    let mut pieces: Vec<(u32, bool, &[u8])> = Vec::new();
    let mut plain = Vec::new();
    for (key, value) in parameters {
        let Some(rest) = key.strip_prefix(name) else { continue };
        if rest.is_empty() {
            plain.push(decode_words(value));
            plain.push(decode(b"", value));
        } else if rest == "*" {
            out.push(extended(value));
        } else if let Some(number) = rest.strip_prefix('*') {
            let (number, escaped) = match number.strip_suffix('*') {
                Some(number) => (number, true),
                None => (number, false),
            };
            if let Ok(number) = number.parse() {
                pieces.push((number, escaped, value));
            }
        }
    }
    for sorted in [true, false] {
        if sorted {
            pieces.sort_by_key(|p| p.0);
        }
        let joined: Vec<u8> = pieces.iter().flat_map(|p| p.2).copied().collect();
        if !joined.is_empty() {
            out.push(if pieces.iter().any(|p| p.1) {
                extended(&joined)
            } else {
                decode_words(&joined)
            });
        }
    }
    out.extend(plain);
    let mut seen = Vec::new();
    for value in out {
        let value: String = value.chars().filter(|&c| c != '\0').collect();
        if !value.is_empty() && !seen.contains(&value) {
            seen.push(value);
        }
    }
    seen
}

/// `charset'language'text` with percent escapes.
fn extended(value: &[u8]) -> String {
    let mut parts = value.splitn(3, |&b| b == b'\'');
    let (charset, text) = match (parts.next(), parts.next(), parts.next()) {
        (Some(charset), Some(_), Some(text)) => (charset, text),
        _ => (&b""[..], value),
    };
    decode(charset, &percent(text))
}

/// Decodes percent escapes; what is none stays as it is.
pub(crate) fn percent(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&b, tail)) = rest.split_first() {
        let hex = |i: usize| tail.get(i).and_then(|&b| char::from(b).to_digit(16));
        if let (b'%', Some(hi), Some(lo)) = (b, hex(0), hex(1)) {
            out.push((hi << 4 | lo) as u8);
            rest = &tail[2..];
        } else {
            out.push(b);
            rest = tail;
        }
    }
    out
}

/// Text as encoded words (RFC 2047) where it is not plain ASCII. Blanks at its end stay inside the last word.
pub(crate) fn encode_words(text: &str) -> String {
    if text.bytes().all(|b| (0x20..0x7f).contains(&b)) && !text.contains("=?") {
        return text.to_owned();
    }
    // An encoded word has at most 75 characters: 45 bytes make 60 letters and leave room for the frame.
    let mut words = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.floor_char_boundary(45.min(rest.len()));
        let letters = encoding::to_base64(&rest.as_bytes()[..end], usize::MAX, "");
        words.push(format!("=?utf-8?B?{letters}?="));
        rest = &rest[end..];
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_decoded_as_readers_do() {
        for (text, expected) in [
            ("plain", "plain"),
            ("=?utf-8?B?bcO8LmNvbQ==?=", "m\u{fc}.com"),
            ("=?iso-8859-1?q?m=FC_x?= =?utf-8?q?y?= z", "m\u{fc} xy z"),
            ("a=?utf-8?q?b?=c", "abc"),
            ("=?utf-8?x?b?= =?", "=?utf-8?x?b?= =?"),
            ("=?utf-8*en?q?b?=", "b"),
        ] {
            assert_eq!(decode_words(text.as_bytes()), expected, "{text}");
        }
        for text in ["[gef\u{e4}hrlich] ", "plain", &"\u{20ac}".repeat(100), "=?utf-8?q?x?="] {
            assert_eq!(decode_words(encode_words(text).as_bytes()), text);
            assert!(encode_words(text).split(' ').all(|w| w.len() <= 75));
        }
    }

    #[test]
    fn parameters_give_every_plausible_value() {
        let name = |value: &str| {
            let (_, parameters) = parameters(value.as_bytes());
            values(&parameters, "name")
        };
        assert_eq!(name("a/b; name=x.exe"), ["x.exe"]);
        assert_eq!(name("a/b; NAME = \"a;b\\\"c\" (comment)"), ["a;b\"c"]);
        assert_eq!(name("a/b; name=two words.exe"), ["two", "two words.exe"]);
        assert_eq!(name("a/b; name*1=b.exe; name*0=a"), ["ab.exe",]);
        assert_eq!(name("a/b; name=a.txt; name*=utf-8''b%2eexe"), ["b.exe", "a.txt"]);
        assert_eq!(name("a/b; name*0*=iso-8859-1'de'%FC; name*1=\".exe\""), ["\u{fc}.exe"]);
        assert_eq!(name("a/b; name=\"=?utf-8?q?a=2Eexe?=\""), ["a.exe", "=?utf-8?q?a=2Eexe?="]);
        let (head, _) = parameters(b" (one) multipart/(two)mixed ; x=y");
        assert_eq!(head, b"multipart/mixed");
    }
}

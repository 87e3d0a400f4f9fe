//! Bytes from the wire as text: for logs and events (JSON escapes the rest), and for terminals.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Text for events: UTF-8 stays, every byte that is none becomes `\xNN`.
#[must_use]
pub fn text(bytes: &[u8]) -> Cow<'_, str> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Cow::Borrowed(text),
        Err(_) => {
            let mut out = String::with_capacity(bytes.len() + 16);
            for chunk in bytes.utf8_chunks() {
                out.push_str(chunk.valid());
                for byte in chunk.invalid() {
                    let _ = write!(out, "\\x{byte:02x}");
                }
            }
            Cow::Owned(out)
        }
    }
}

/// Text that is safe on a terminal: what could move the cursor, change colours, reverse the reading direction or
/// hide becomes a visible escape.
#[must_use]
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_unsafe) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            '\t' => out.push_str("\\t"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            c if is_unsafe(c) && u32::from(c) < 0x100 => {
                let _ = write!(out, "\\x{:02x}", u32::from(c));
            }
            c if is_unsafe(c) => {
                let _ = write!(out, "\\u{{{:x}}}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    Cow::Owned(out)
}

/// Control characters (C0, C1), bidirectional controls (Unicode TR 9), line and paragraph separators, characters
/// without width, variation selectors, tags, interlinear annotations and private use.
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(u32::from(c),
            0xad | 0x61c | 0x115f | 0x1160 | 0x17b4 | 0x17b5 | 0x180b..=0x180f
            | 0x200b..=0x200f | 0x2028..=0x202e | 0x2060..=0x206f | 0x3164
            | 0xfe00..=0xfe0f | 0xfeff | 0xffa0 | 0xfff0..=0xfffb
            | 0xe000..=0xf8ff | 0xe0000..=0x10_ffff)
}

#[cfg(test)]
mod tests {
    use super::{printable, text};

    #[test]
    fn invalid_bytes_are_visible_and_valid_ones_kept() {
        assert_eq!(text("Grüße.txt".as_bytes()), "Grüße.txt");
        assert_eq!(text(b"a\xffb\xc3"), "a\\xffb\\xc3");
    }

    #[test]
    fn nothing_reaches_the_terminal_that_can_steer_it() {
        for (name, expected) in [
            ("plain name.txt", "plain name.txt"),
            ("日本語.txt", "日本語.txt"),
            ("\x1b[2Jgone", "\\x1b[2Jgone"),
            ("a\0b\x7f", "a\\x00b\\x7f"),
            ("csi\u{9b}31m", "csi\\x9b31m"),
            ("invoice\u{202e}fdp.exe", "invoice\\u{202e}fdp.exe"),
            ("line\r\nnext\tcolumn", "line\\r\\nnext\\tcolumn"),
            ("zero\u{200b}width\u{feff}", "zero\\u{200b}width\\u{feff}"),
        ] {
            assert_eq!(printable(name), expected);
        }
    }

    #[test]
    fn every_character_comes_out_harmless() {
        for c in '\0'..=char::MAX {
            assert!(!printable(&c.to_string()).chars().any(char::is_control), "{c:?}");
        }
    }
}

//! Folder names: Unicode in the configuration and on the screen, modified UTF-7 on the wire (RFC 3501 5.1.3), or UTF-8 where
//! the server was told to (RFC 6855). Here they are always kept in modified UTF-7, so that what is remembered of a
//! folder does not depend on how its server speaks today.

use std::fmt;

/// A folder, by its name in modified UTF-7.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FolderName(String);

impl FolderName {
    /// The folder of this name in Unicode.
    #[must_use]
    pub fn from_unicode(name: &str) -> Self {
        if name.eq_ignore_ascii_case("inbox") {
            Self("INBOX".to_owned())
        } else {
            Self(encode(name))
        }
    }

    /// The folder as the server names it; `utf8`: the connection speaks UTF-8. Servers that send UTF-8 unasked are
    /// understood.
    #[must_use]
    pub fn from_wire(name: &str, utf8: bool) -> Self {
        if utf8 || !name.is_ascii() { Self::from_unicode(name) } else { Self::from_wire_str(name) }
    }

    /// The folder of this name in modified UTF-7.
    #[must_use]
    pub fn from_wire_str(name: &str) -> Self {
        if name.eq_ignore_ascii_case("inbox") {
            Self("INBOX".to_owned())
        } else {
            Self(name.to_owned())
        }
    }

    /// As a command carries it.
    #[must_use]
    pub fn on_wire(&self, utf8: bool) -> String {
        if utf8 { self.to_string() } else { self.0.clone() }
    }

    /// In modified UTF-7, as most servers have it on the wire.
    #[must_use]
    pub fn as_wire_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for FolderName {
    /// In Unicode, as its user knows it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match decode(&self.0) {
            Some(name) => f.pad(&name),
            None => f.pad(&self.0),
        }
    }
}

/// The alphabet of base64 with `,` in the place of `/`.
const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+,";

fn encode(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    let mut run: Vec<u16> = Vec::new();
    let flush = |run: &mut Vec<u16>, out: &mut String| {
        if run.is_empty() {
            return;
        }
        out.push('&');
        let (mut bits, mut held) = (0_u32, 0);
        for unit in run.drain(..) {
            bits = bits << 16 | u32::from(unit);
            held += 16;
            while held >= 6 {
                held -= 6;
                out.push(char::from(ALPHABET[(bits >> held) as usize & 63]));
            }
            bits &= (1 << held) - 1;
        }
        if held > 0 {
            out.push(char::from(ALPHABET[(bits << (6 - held)) as usize & 63]));
        }
        out.push('-');
    };
    for c in name.chars() {
        match c {
            ' '..='~' => {
                flush(&mut run, &mut out);
                out.push(c);
                if c == '&' {
                    out.push('-');
                }
            }
            _ => run.extend(c.encode_utf16(&mut [0; 2]).iter()),
        }
    }
    flush(&mut run, &mut out);
    out
}

/// `None` for what is no modified UTF-7.
fn decode(name: &str) -> Option<String> {
    let mut out = String::with_capacity(name.len());
    let mut rest = name;
    while let Some(at) = rest.find('&') {
        out.push_str(&rest[..at]);
        let end = at + rest[at..].find('-')?;
        let run = &rest[at + 1..end];
        if run.is_empty() {
            out.push('&');
        } else {
            let (mut bits, mut held, mut units) = (0_u32, 0, Vec::new());
            for byte in run.bytes() {
                let value = ALPHABET.iter().position(|b| *b == byte)?;
                bits = bits << 6 | u32::try_from(value).ok()?;
                held += 6;
                if held >= 16 {
                    held -= 16;
                    units.push(u16::try_from(bits >> held & 0xffff).ok()?);
                    bits &= (1 << held) - 1;
                }
            }
            out.push_str(&String::from_utf16(&units).ok()?);
        }
        rest = &rest[end + 1..];
    }
    out.push_str(rest);
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_of_the_rfc() {
        for (unicode, wire) in [
            ("~peter/mail/台北/日本語", "~peter/mail/&U,BTFw-/&ZeVnLIqe-"),
            ("Gelöschte Objekte", "Gel&APY-schte Objekte"),
            ("A & B", "A &- B"),
            ("\u{1f4e7}", "&2D3c5w-"),
            ("inbox", "INBOX"),
            ("", ""),
        ] {
            let name = FolderName::from_unicode(unicode);
            assert_eq!(name.as_wire_str(), wire);
            if unicode != "inbox" {
                assert_eq!(name.to_string(), unicode);
                assert_eq!(FolderName::from_wire(unicode, true), name);
                assert_eq!(name.on_wire(true), unicode);
            }
            assert_eq!(FolderName::from_wire(wire, false), name);
        }
    }

    #[test]
    fn what_cannot_be_decoded_is_shown_as_it_is() {
        for wire in ["&", "&x", "&!-", "&2D0-"] {
            assert_eq!(FolderName(wire.to_owned()).to_string(), wire);
        }
    }
}

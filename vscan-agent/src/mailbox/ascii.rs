//! Makes what a server sends ASCII outside of literals, where IMAP wants it (RFC 3501 9, `TEXT-CHAR`, `QUOTED-CHAR`) and
//! servers do not always keep to it: Dovecot names folders in UTF-8 in its answers, others pass raw file names of
//! attachments on. Nothing that a scan needs is in there; messages are literals.

/// Digits of a literal's length: an u64's.
const DIGITS_MAX: usize = 20;

/// Where in a response the next byte is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum At {
    #[default]
    Line,
    /// Behind `{` and so many digits.
    Length(u64, usize),
    /// Behind `{n` and `+`, or `}`.
    Closing(u64, bool),
    /// Behind `{n}` and CR.
    Return(u64),
    /// In a literal, with this many bytes left.
    Literal(u64),
}

/// The filter; it keeps its place from one piece of input to the next.
#[derive(Debug, Default)]
pub(super) struct Ascii(At);

impl Ascii {
    /// Replaces in place what is no ASCII by `?`.
    pub(super) fn clean(&mut self, bytes: &mut [u8]) {
        let mut at = 0;
        while at < bytes.len() {
            if let At::Literal(left) = self.0 {
                let there = bytes.len() - at;
                let skipped = usize::try_from(left).map_or(there, |left| left.min(there));
                let left = left - skipped as u64;
                self.0 = if left == 0 { At::Line } else { At::Literal(left) };
                at += skipped;
                continue;
            }
            if !bytes[at].is_ascii() {
                bytes[at] = b'?';
            }
            self.0 = self.0.next(bytes[at]);
            at += 1;
        }
    }
}

impl At {
    fn next(self, byte: u8) -> Self {
        match (self, byte) {
            (Self::Length(length, digits), b'0'..=b'9') if digits < DIGITS_MAX => {
                let length = length.saturating_mul(10).saturating_add(u64::from(byte - b'0'));
                Self::Length(length, digits + 1)
            }
            (Self::Length(length, 1..), b'+') => Self::Closing(length, false),
            (Self::Length(length, 1..) | Self::Closing(length, false), b'}') => {
                Self::Closing(length, true)
            }
            (Self::Closing(length, true), b'\r') => Self::Return(length),
            (Self::Return(length) | Self::Closing(length, true), b'\n') if length > 0 => {
                Self::Literal(length)
            }
            (_, b'{') => Self::Length(0, 0),
            _ => Self::Line,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cleaned(input: &[u8], split: usize) -> Vec<u8> {
        let mut bytes = input.to_vec();
        let mut ascii = Ascii::default();
        let (head, tail) = bytes.split_at_mut(split);
        ascii.clean(head);
        ascii.clean(tail);
        bytes
    }

    #[test]
    fn literals_stay_and_all_else_becomes_ascii() {
        let long = "* 1 FETCH (X {99999999999999999999999}\r\n\u{e9})\r\n";
        for (input, expected) in [
            ("a NO Quarant\u{e4}ne\r\n".as_bytes(), &b"a NO Quarant??ne\r\n"[..]),
            (
                b"* 1 FETCH (B {3}\r\n\xff\xfe\xfd \xff)\r\n",
                b"* 1 FETCH (B {3}\r\n\xff\xfe\xfd ?)\r\n",
            ),
            (b"* 1 FETCH (B ~{2+}\r\n\xff\xfe)\r\n\xff", b"* 1 FETCH (B ~{2+}\r\n\xff\xfe)\r\n?"),
            (b"* OK {3} \xff\r\n\xff\xff\xff", b"* OK {3} ?\r\n???"),
            (b"* OK {}\r\n\xff{x}\r\n\xff{0}\r\n\xff", b"* OK {}\r\n?{x}\r\n?{0}\r\n?"),
            (b"({2}\r\n\xff\xff {1}\r\n\xff \xff", b"({2}\r\n\xff\xff {1}\r\n\xff ?"),
            (long.as_bytes(), b"* 1 FETCH (X {99999999999999999999999}\r\n??)\r\n"),
        ] {
            for split in 0..=input.len() {
                assert_eq!(cleaned(input, split), expected, "{}", input.escape_ascii());
            }
        }
    }
}

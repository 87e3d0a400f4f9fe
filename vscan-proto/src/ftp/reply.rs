//! Replies of the server, line by line, and the FEAT answer without what a gateway cannot follow
//! (RFC 959 section 4.2, RFC 2389).

use bytes::Bytes;

use crate::line::{LineSplitter, TooLong};

/// Longest reply line in bytes, CRLF included: a 257 quotes a path with every quote doubled.
pub const REPLY_LINE_LIMIT: usize = 16 * 1024;

/// One line of a reply, as it arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplyLine {
    /// The line with its ending.
    pub raw: Bytes,
    /// The reply's code, 100 to 599; `None` for a line that belongs to no reply.
    pub code: Option<u16>,
    /// Whether the reply is complete with this line.
    pub last: bool,
}

/// A complete reply that was kept back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// 100 to 599.
    pub code: u16,
    /// All its lines as they arrived.
    pub raw: Bytes,
}

impl Reply {
    /// Whether the server refuses (4yz and 5yz).
    pub fn is_refusal(&self) -> bool {
        self.code >= 400
    }
}

/// Splits what the server says into lines and knows which of them end a reply.
#[derive(Debug)]
pub struct Replies {
    lines: LineSplitter,
    /// Code of the multi-line reply that is open.
    open: Option<u16>,
}

impl Default for Replies {
    fn default() -> Self {
        Self::new()
    }
}

impl Replies {
    /// A reader at the start of the dialogue.
    pub fn new() -> Self {
        Self { lines: LineSplitter::new(REPLY_LINE_LIMIT), open: None }
    }

    /// Adds bytes that arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        self.lines.push(bytes);
    }

    /// Whether the server is between two replies.
    pub fn is_settled(&self) -> bool {
        self.open.is_none() && self.lines.is_empty()
    }

    /// Takes what is buffered of an incomplete line.
    pub fn take_rest(&mut self) -> Bytes {
        self.lines.take_rest()
    }

    /// The next complete line; `Ok(None)` when more bytes are needed.
    ///
    /// # Errors
    /// [`TooLong`] for a line over [`REPLY_LINE_LIMIT`].
    pub fn next_line(&mut self) -> Result<Option<ReplyLine>, TooLong> {
        let Some(line) = self.lines.next_line()? else { return Ok(None) };
        let said = code(line.content());
        let (code, last) = match (self.open, said) {
            // Only the same code without a hyphen ends a multi-line reply.
            (Some(open), Some((code, false))) if code == open => {
                self.open = None;
                (Some(open), true)
            }
            (Some(open), _) => (Some(open), false),
            (None, Some((code, true))) => {
                self.open = Some(code);
                (Some(code), false)
            }
            (None, Some((code, false))) => (Some(code), true),
            (None, None) => (None, false),
        };
        Ok(Some(ReplyLine { raw: line.into_raw(), code, last }))
    }
}

/// The code at the front of a line and whether a hyphen follows it.
fn code(content: &[u8]) -> Option<(u16, bool)> {
    let [a @ b'1'..=b'5', b @ b'0'..=b'9', c @ b'0'..=b'9', rest @ ..] = content else {
        return None;
    };
    let digit = |byte: u8| u16::from(byte - b'0');
    let code = digit(*a) * 100 + digit(*b) * 10 + digit(*c);
    match rest.first() {
        Some(b'-') => Some((code, true)),
        Some(b' ' | b'\r' | b'\t') | None => Some((code, false)),
        Some(_) => None,
    }
}

/// Whether a line of the FEAT answer names something that vscan does not let through: restart
/// positions, compression, and (where TLS is refused) the security extensions.
pub fn is_hidden_feature(line: &[u8], hide_tls: bool) -> bool {
    // RFC 2389: feature lines begin with one space.
    if !line.starts_with(b" ") {
        return false;
    }
    let text = line.trim_ascii().to_ascii_uppercase();
    let mut words = text.split(|byte| byte.is_ascii_whitespace());
    match words.next() {
        Some(b"REST") => true,
        Some(b"MODE") => words.next().is_some_and(|mode| mode.starts_with(b"Z")),
        Some(b"AUTH" | b"PBSZ" | b"PROT" | b"CCC" | b"SSCN" | b"ADAT" | b"ENC" | b"MIC") => {
            hide_tls
        }
        Some(b"LPRT" | b"LPSV" | b"CPSV" | b"SPSV" | b"APPE") => true,
        Some(_) | None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(input: &str, expect: &[(&str, Option<u16>, bool)]) {
        let input = input.as_bytes();
        for cut in 0..=input.len() {
            let mut replies = Replies::new();
            let mut said = Vec::new();
            for part in [&input[..cut], &input[cut..]] {
                replies.push(part);
                while let Some(line) = replies.next_line().unwrap() {
                    said.push((
                        String::from_utf8(line.raw.to_vec()).unwrap(),
                        line.code,
                        line.last,
                    ));
                }
            }
            let said: Vec<_> =
                said.iter().map(|(text, code, last)| (&text[..], *code, *last)).collect();
            assert_eq!(said, expect, "cut at {cut}");
        }
    }

    #[test]
    fn single_and_multi_line() {
        check(
            "220 hi\r\n221\r\n200\tok\r\n",
            &[
                ("220 hi\r\n", Some(220), true),
                ("221\r\n", Some(221), true),
                ("200\tok\r\n", Some(200), true),
            ],
        );
        check(
            "211-Features\r\n MDTM\r\n200 no end\r\n211-again\r\n211 End\r\n",
            &[
                ("211-Features\r\n", Some(211), false),
                (" MDTM\r\n", Some(211), false),
                ("200 no end\r\n", Some(211), false),
                ("211-again\r\n", Some(211), false),
                ("211 End\r\n", Some(211), true),
            ],
        );
    }

    #[test]
    fn lines_that_are_no_reply() {
        check(
            "hello\r\n2200 x\r\n600 y\r\n220 hi\n",
            &[
                ("hello\r\n", None, false),
                ("2200 x\r\n", None, false),
                ("600 y\r\n", None, false),
                ("220 hi\n", Some(220), true),
            ],
        );
    }

    #[test]
    fn hidden_features() {
        let hidden = |line: &str, tls| is_hidden_feature(line.as_bytes(), tls);
        for line in [" REST STREAM\r\n", " rest stream\r\n", " MODE Z\r\n", " MODE Z;level\r\n"] {
            assert!(hidden(line, false), "{line}");
        }
        for line in [" AUTH TLS\r\n", " AUTH TLS;SSL;\r\n", " PBSZ\r\n", " PROT\r\n"] {
            assert!(hidden(line, true), "{line}");
            assert!(!hidden(line, false), "{line}");
        }
        for line in
            ["211-REST\r\n", "211 End\r\n", " MDTM\r\n", " UTF8\r\n", " MODE S\r\n", " \r\n"]
        {
            assert!(!hidden(line, true), "{line}");
        }
    }
}

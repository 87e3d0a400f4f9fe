//! Replies of the server, line by line, and the FEAT answer without what a gateway cannot follow
//! (RFC 959 section 4.2, RFC 2389).

use bytes::{BufMut, Bytes, BytesMut};

use crate::line::{Line, LineSplitter, TooLong};

/// Longest reply line in bytes, CRLF included: a 257 quotes a path with every quote doubled.
pub const REPLY_LINE_LIMIT: usize = 16 * 1024;

/// One line of a reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplyLine {
    /// The line with its ending, as it arrived unless clients might read another end of the reply
    /// in it: see [`Replies`].
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
    /// All its lines.
    pub raw: Bytes,
}

impl Reply {
    /// Whether a transfer may end with this code (RFC 959 section 5.4), and no command that needs no file system.
    pub fn is_about_transfer(code: u16) -> bool {
        matches!(code, 226 | 250 | 551..=553) || (400..500).contains(&code) && code != 421
    }

    /// Whether the server refuses (4yz and 5yz).
    pub fn is_refusal(&self) -> bool {
        self.code >= 400
    }
}

/// Splits what the server says into lines and knows which of them end a reply.
///
/// Clients do not agree on that: some end a reply at any line with a code and a space, some at a
/// bare CR. A server that knows its client could so have one reply of ours taken for several, with
/// a 227 of its own among them. So that all read the same, a line inside a reply that begins with
/// three digits gets a space in front (RFC 959 section 4.2), and a CR inside a line becomes one, unless
/// it is Telnet's CR NUL: no code begins with a NUL.
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
        let inside = self.open;
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
        let pad = match (inside, said) {
            (Some(_), _) if last => false,
            (Some(open), Some((same, true))) if same == open => false,
            (inside, _) => inside.is_some() && begins_like_a_reply(line.content()),
        };
        let raw =
            if pad || has_bare_cr(line.content()) { plain(&line, pad) } else { line.into_raw() };
        Ok(Some(ReplyLine { raw, code, last }))
    }
}

fn begins_like_a_reply(content: &[u8]) -> bool {
    content.get(..3).is_some_and(|code| code.iter().all(u8::is_ascii_digit))
}

/// Whether a CR stands inside the line without the NUL that Telnet puts behind it (RFC 854).
fn has_bare_cr(content: &[u8]) -> bool {
    memchr::memchr_iter(b'\r', content).any(|at| content.get(at + 1) != Some(&0))
}

/// The line without a bare CR inside, behind a space if it is to be padded.
fn plain(line: &Line, pad: bool) -> Bytes {
    let content = line.content();
    let mut raw = BytesMut::with_capacity(line.raw().len() + 1);
    if pad {
        raw.put_u8(b' ');
    }
    for (at, &byte) in content.iter().enumerate() {
        raw.put_u8(if byte == b'\r' && content.get(at + 1) != Some(&0) { b' ' } else { byte });
    }
    raw.put_slice(&line.raw()[content.len()..]);
    raw.freeze()
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

/// What the FEAT answer may say of security extensions (RFC 2228, 4217).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Security {
    /// All that the server says.
    Shown,
    /// Nothing.
    Hidden,
    /// TLS as it is by RFC 4217, and no other mechanism.
    TlsAlone,
    /// The same, where TLS has begun already.
    WithoutAuth,
}

/// A line of the FEAT answer as the client gets it; `None` for one that names something that vscan does not let
/// through: parts of files, compression, and (where they are refused) restart positions or security extensions.
pub fn feature(line: Bytes, security: Security, hide_restart: bool) -> Option<Bytes> {
    // RFC 2389: feature lines begin with one space.
    if !line.starts_with(b" ") {
        return Some(line);
    }
    let text = line.trim_ascii().to_ascii_uppercase();
    let mut words = text.split(|byte| byte.is_ascii_whitespace());
    let ours = matches!(security, Security::TlsAlone | Security::WithoutAuth);
    let hidden = match words.next() {
        Some(b"REST" | b"APPE") => hide_restart,
        Some(b"MODE") => words.next().is_some_and(|mode| mode.starts_with(b"Z")),
        Some(b"AUTH") if security == Security::TlsAlone => return mechanisms(line),
        Some(b"AUTH") => security != Security::Shown,
        Some(b"PBSZ" | b"PROT" | b"CCC") => security == Security::Hidden,
        // What changes the roles in TLS, or wraps commands.
        Some(b"SSCN" | b"ADAT" | b"ENC" | b"MIC" | b"CONF") => ours || security == Security::Hidden,
        Some(b"REIN") => security == Security::WithoutAuth,
        Some(
            b"LPRT" | b"LPSV" | b"CPSV" | b"SPSV" | b"SPAS" | b"SPOR" | b"COMB" | b"RANG" | b"ERET"
            | b"ESTO" | b"THMB",
        ) => true,
        Some(_) | None => false,
    };
    (!hidden).then_some(line)
}

/// An AUTH line with those mechanisms alone that end here: ` AUTH TLS;SSL;`. `None` if there is none.
fn mechanisms(line: Bytes) -> Option<Bytes> {
    let text = line.trim_ascii().get(4..)?.trim_ascii();
    let kept: Vec<&[u8]> = text
        .split(|byte| *byte == b';')
        .map(<[u8]>::trim_ascii)
        .filter(|name| name.eq_ignore_ascii_case(b"TLS") || name.eq_ignore_ascii_case(b"SSL"))
        .collect();
    let count = text.split(|byte| *byte == b';').filter(|name| !name.is_empty()).count();
    match kept.len() {
        0 => None,
        all if all == count => Some(line),
        _ => {
            let mut short = BytesMut::from(&b" AUTH "[..]);
            for name in kept {
                short.put_slice(name);
                short.put_u8(b';');
            }
            short.put_slice(b"\r\n");
            Some(short.freeze())
        }
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
                (" 200 no end\r\n", Some(211), false),
                ("211-again\r\n", Some(211), false),
                ("211 End\r\n", Some(211), true),
            ],
        );
    }

    #[test]
    fn no_client_reads_another_end_of_a_reply() {
        check(
            "200-a\r\n227 (1,2,3,4,5,6)\r\n200x\r\n227-b\r\n200-c\r\n200\rd\r\n",
            &[
                ("200-a\r\n", Some(200), false),
                (" 227 (1,2,3,4,5,6)\r\n", Some(200), false),
                (" 200x\r\n", Some(200), false),
                (" 227-b\r\n", Some(200), false),
                ("200-c\r\n", Some(200), false),
                ("200 d\r\n", Some(200), true),
            ],
        );
        check(
            "200 ok\r227 (1,2,3,4,5,6)\r\n200-\r\r\n\r227 x\n200 e\n",
            &[
                ("200 ok 227 (1,2,3,4,5,6)\r\n", Some(200), true),
                ("200- \r\n", Some(200), false),
                (" 227 x\n", Some(200), false),
                ("200 e\n", Some(200), true),
            ],
        );
    }

    #[test]
    fn a_name_with_a_cr_stays_as_telnet_writes_it() {
        check(
            "257 \"a\r\0b\"\r\n213-x\r\0\r\n\r\x00213 y\r\n213 z\r\n",
            &[
                ("257 \"a\r\0b\"\r\n", Some(257), true),
                ("213-x\r\0\r\n", Some(213), false),
                ("\r\x00213 y\r\n", Some(213), false),
                ("213 z\r\n", Some(213), true),
            ],
        );
        check("257 a\r\0b\rc\r\n", &[("257 a\r\0b c\r\n", Some(257), true)]);
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

    fn shown(line: &str, security: Security, hide_restart: bool) -> Option<String> {
        let line = Bytes::copy_from_slice(line.as_bytes());
        feature(line, security, hide_restart).map(|l| String::from_utf8(l.to_vec()).unwrap())
    }

    #[test]
    fn hidden_features() {
        use Security::{Hidden, Shown, TlsAlone, WithoutAuth};
        for line in [" RANG STREAM\r\n", " MODE Z\r\n", " MODE Z;level\r\n"] {
            assert_eq!(shown(line, Shown, false), None, "{line}");
        }
        for line in [" REST STREAM\r\n", " rest stream\r\n", " APPE\r\n"] {
            assert_eq!(shown(line, Shown, true), None, "{line}");
            assert_eq!(shown(line, Hidden, false).as_deref(), Some(line));
        }
        for line in [" AUTH TLS\r\n", " AUTH TLS;SSL;\r\n", " PBSZ\r\n", " PROT\r\n"] {
            assert_eq!(shown(line, Hidden, false), None, "{line}");
            assert_eq!(shown(line, Shown, false).as_deref(), Some(line));
            assert_eq!(shown(line, TlsAlone, false).as_deref(), Some(line));
        }
        for line in
            ["211-REST\r\n", "211 End\r\n", " MDTM\r\n", " UTF8\r\n", " MODE S\r\n", " \r\n"]
        {
            for security in [Shown, Hidden, TlsAlone, WithoutAuth] {
                assert_eq!(shown(line, security, false).as_deref(), Some(line));
            }
        }
    }

    #[test]
    fn mechanisms_that_do_not_end_here_are_not_shown() {
        use Security::{Hidden, Shown, TlsAlone, WithoutAuth};
        let check = |line: &str, expect: Option<&str>| {
            assert_eq!(shown(line, TlsAlone, false).as_deref(), expect, "{line}");
            assert_eq!(shown(line, WithoutAuth, false), None, "{line}");
        };
        check(" AUTH TLS;TLS-C;SSL;TLS-P;\r\n", Some(" AUTH TLS;SSL;\r\n"));
        check(" auth GSSAPI;tls\r\n", Some(" AUTH tls;\r\n"));
        check(" AUTH GSSAPI\r\n", None);
        check(" AUTH\r\n", None);
        for line in [" SSCN\r\n", " ADAT\r\n"] {
            assert_eq!(shown(line, TlsAlone, false), None);
            assert_eq!(shown(line, Hidden, false), None);
            assert_eq!(shown(line, Shown, false).as_deref(), Some(line));
        }
    }
}

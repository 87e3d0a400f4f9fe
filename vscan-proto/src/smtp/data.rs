//! Framing of a message between DATA and its end, byte-exact.
//!
//! Only `CRLF . CRLF` (or `. CRLF` at the very start, the CRLF before it being that of DATA) ends
//! a message: RFC 5321 sections 2.3.8 and 4.1.1.4. What other software has been seen to take for
//! an end is a *look-alike* and is reported, never acted upon. Nothing is copied: the decoder
//! hands out slices of its input.

use memchr::{memchr_iter, memchr2_iter};

/// What ends a message, behind the CRLF of its last line.
pub const END: &[u8] = b".\r\n";

/// Finds the end of a message in a stream of bytes cut anywhere.
///
/// The bytes handed out are those on the wire, dot-stuffing included, up to and including the CRLF
/// in front of the final dot.
#[derive(Debug, Clone)]
pub struct Decoder {
    at: At,
    stuffed: bool,
    look_alike: bool,
    odd_dot: bool,
}

/// What one call of [`Decoder::decode`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decoded<'a> {
    /// Bytes held back by an earlier call that turned out to be text: they come before `body`.
    pub carry: &'static [u8],
    /// Message bytes.
    pub body: &'a [u8],
    /// Bytes of the input that belong to the message or its end. All of it unless `end`.
    pub consumed: usize,
    /// Whether the end was found. What follows it is the next command.
    pub end: bool,
}

/// Where in the text the decoder stands: what the bytes so far end with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// The start, or CRLF.
    LineStart,
    /// CR.
    Cr,
    /// LF without CR.
    Lf,
    /// One of the above and then NULs, which some software drops.
    Nul,
    /// Anything else.
    Text,
    /// A dot at a line start, held back.
    Dot,
    /// A dot at a line start and CR, both held back.
    DotCr,
    /// A dot, with or without NULs behind it, that some software could take for a line start's;
    /// not held back.
    OddDot,
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Decoder {
    /// A decoder that stands right behind the CRLF of DATA.
    pub fn new() -> Self {
        Self { at: At::LineStart, stuffed: false, look_alike: false, odd_dot: false }
    }

    /// Whether a dot at a line start was seen that the receiver takes away (RFC 5321 section
    /// 4.5.2). If not, the bytes handed out are the message itself.
    pub fn stuffed(&self) -> bool {
        self.stuffed
    }

    /// Whether something was seen that is no end of data but that some software takes for one:
    /// a dot between two of CR, LF, CRLF, with or without NULs beside it.
    pub fn look_alike(&self) -> bool {
        self.look_alike
    }

    /// Whether a dot was seen behind a bare LF. Servers that take a bare LF for a line end (Postfix
    /// with `smtpd_forbid_bare_newline = no`, Exim) take that dot away as well: their message is what
    /// [`Unstuffer::lenient`] makes of it.
    pub fn odd_dot(&self) -> bool {
        self.odd_dot
    }

    /// Reads on. Not to be called again after `end`.
    pub fn decode<'a>(&mut self, input: &'a [u8]) -> Decoded<'a> {
        let carry = self.held();
        // Where in the input the dot stands that is held back; none if it came earlier.
        let mut dot = None;
        let mut at = 0;
        while let Some(&byte) = input.get(at) {
            match (self.at, byte) {
                (At::Dot, b'\r') => {
                    self.at = At::DotCr;
                    at += 1;
                }
                (At::DotCr, b'\n') => {
                    let (carry, body) = cut(carry, input, dot);
                    return Decoded { carry, body, consumed: at + 1, end: true };
                }
                // From here on the byte stays unread unless `at` moves.
                (At::Dot, _) => {
                    self.stuffed = true;
                    self.at = At::OddDot;
                }
                (At::DotCr, _) => {
                    self.stuffed = true;
                    self.look_alike = true;
                    self.at = At::Cr;
                }
                (At::OddDot, 0) => at += 1,
                (At::OddDot, b'\r' | b'\n') => {
                    self.look_alike = true;
                    self.at = At::Text;
                }
                (At::OddDot, _) => self.at = At::Text,
                (At::LineStart | At::Cr | At::Lf | At::Nul | At::Text, _) => {
                    at = self.scan(input, at);
                    if self.at == At::Dot {
                        dot = Some(at - 1);
                    }
                }
            }
        }
        let (carry, body) =
            if self.held().is_empty() { (carry, input) } else { cut(carry, input, dot) };
        Decoded { carry, body, consumed: input.len(), end: false }
    }

    fn held(&self) -> &'static [u8] {
        match self.at {
            At::Dot => b".",
            At::DotCr => b".\r",
            At::LineStart | At::Cr | At::Lf | At::Nul | At::Text | At::OddDot => b"",
        }
    }

    /// Runs from `from` to behind the next dot that matters and says what it is by `self.at`, or
    /// to the end of the input.
    fn scan(&mut self, input: &[u8], from: usize) -> usize {
        let text = &input[from..];
        for dot in memchr_iter(b'.', text) {
            self.at = match before(self.at, &text[..dot]) {
                At::LineStart => At::Dot,
                At::Lf => {
                    self.odd_dot = true;
                    At::OddDot
                }
                At::Cr | At::Nul => At::OddDot,
                At::Text | At::Dot | At::DotCr | At::OddDot => continue,
            };
            return from + dot + 1;
        }
        self.at = before(self.at, text);
        input.len()
    }
}

/// What the bytes up to the end of `text` end with, when they ended with `at` before it.
fn before(at: At, text: &[u8]) -> At {
    match *text {
        [] => at,
        [.., b'\r', b'\n'] => At::LineStart,
        [b'\n'] if at == At::Cr => At::LineStart,
        [.., b'\n'] => At::Lf,
        [.., b'\r'] => At::Cr,
        [.., 0] => {
            let end = text.iter().rposition(|&byte| byte != 0);
            match end.map_or(at, |end| before(at, &text[..=end])) {
                At::Text => At::Text,
                At::LineStart | At::Cr | At::Lf | At::Nul | At::Dot | At::DotCr | At::OddDot => {
                    At::Nul
                }
            }
        }
        [..] => At::Text,
    }
}

/// The text in front of the dot that is held back, which stands at `dot` or came earlier.
fn cut<'a>(carry: &'static [u8], input: &'a [u8], dot: Option<usize>) -> (&'static [u8], &'a [u8]) {
    dot.map_or((&[], &[]), |dot| (carry, &input[..dot]))
}

/// Looks for a CR without LF behind it or an LF without CR before it, in bytes cut anywhere.
#[derive(Debug, Clone, Default)]
pub struct BareNewlines {
    after_cr: bool,
    found: bool,
}

impl BareNewlines {
    /// Looks through the next bytes of the message.
    pub fn check(&mut self, bytes: &[u8]) {
        let (Some(first), false) = (bytes.first(), self.found) else { return };
        // A pair is judged at its second byte; a CR at the end waits for the next call.
        self.found = self.after_cr && *first != b'\n';
        for at in memchr2_iter(b'\r', b'\n', bytes) {
            let bare = if bytes[at] == b'\r' {
                bytes.get(at + 1).is_some_and(|next| *next != b'\n')
            } else if at == 0 {
                !self.after_cr
            } else {
                bytes[at - 1] != b'\r'
            };
            if bare {
                self.found = true;
                return;
            }
        }
        self.after_cr = bytes.ends_with(b"\r");
    }

    /// Whether one was found.
    pub fn found(&self) -> bool {
        self.found
    }
}

/// Takes dot-stuffing away: the dot at each line start (RFC 5321 section 4.5.2).
#[derive(Debug, Clone)]
pub struct Unstuffer {
    at: At,
    lenient: bool,
}

impl Default for Unstuffer {
    fn default() -> Self {
        Self::new()
    }
}

impl Unstuffer {
    /// An unstuffer at the start of a message.
    pub fn new() -> Self {
        Self { at: At::LineStart, lenient: false }
    }

    /// One that takes away the dot behind a bare LF too, as some servers do.
    pub fn lenient() -> Self {
        Self { lenient: true, ..Self::new() }
    }

    /// Gives `out` the pieces of `bytes`, as a [`Decoder`] handed them out, without the stuffing.
    pub fn unstuff<'a>(&mut self, bytes: &'a [u8], mut out: impl FnMut(&'a [u8])) {
        let mut from = 0;
        for dot in memchr_iter(b'.', bytes) {
            let at = before(self.at, &bytes[from..dot]);
            if at == At::LineStart || self.lenient && at == At::Lf {
                if dot > from {
                    out(&bytes[from..dot]);
                }
                from = dot + 1;
                self.at = At::Text;
            }
        }
        self.at = before(self.at, &bytes[from..]);
        if from < bytes.len() {
            out(&bytes[from..]);
        }
    }
}

#[cfg(test)]
mod tests;

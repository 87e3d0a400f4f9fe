//! Bounded, incremental line splitting over a `BytesMut`, shared by FTP and SMTP.
//!
//! Lives here: where a line ends and how long it may be. Not here: what a line means, message
//! data (`smtp::data` has its own framing), Telnet commands (`ftp::command`).
//!
//! A line is handed out as the very bytes that arrived, its ending included, so that it can be
//! relayed unchanged. CRLF ends a line (RFC 959 section 5.3.1, RFC 5321 section 2.3.8); a bare LF
//! does too, but such a line says so ([`Ending::Lf`]) and the caller decides what it is worth.

use bytes::{Bytes, BytesMut};

/// How a line ended on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// CR LF, as the protocols want it.
    Crlf,
    /// LF without a CR before it.
    Lf,
}

impl Ending {
    /// Length of the ending in bytes.
    pub const fn len(self) -> usize {
        match self {
            Self::Crlf => 2,
            Self::Lf => 1,
        }
    }

    /// Always false: a line without an ending is not a line yet.
    pub const fn is_empty(self) -> bool {
        false
    }
}

/// One complete line, as it arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    raw: Bytes,
    ending: Ending,
}

impl Line {
    /// The line with its ending, byte for byte.
    pub fn raw(&self) -> &Bytes {
        &self.raw
    }

    /// The line with its ending, byte for byte, by value.
    pub fn into_raw(self) -> Bytes {
        self.raw
    }

    /// The line without its ending.
    pub fn content(&self) -> &[u8] {
        &self.raw[..self.raw.len() - self.ending.len()]
    }

    /// The line without its ending, sharing the same memory.
    pub fn content_bytes(&self) -> Bytes {
        self.raw.slice(..self.raw.len() - self.ending.len())
    }

    /// How the line ended.
    pub fn ending(&self) -> Ending {
        self.ending
    }

    /// Whether a CR stands inside the line, which is neither CRLF nor text.
    pub fn has_bare_cr(&self) -> bool {
        memchr::memchr(b'\r', self.content()).is_some()
    }
}

/// A line, ending included, is longer than the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("line longer than {limit} bytes")]
pub struct TooLong {
    /// The limit in bytes, ending included.
    pub limit: usize,
}

/// Splits a stream of bytes into lines.
///
/// Feed it with [`push`](Self::push), then call [`next_line`](Self::next_line) until it gives
/// `Ok(None)`. What stays buffered between two calls is less than the limit. An empty splitter
/// holds no heap memory.
#[derive(Debug)]
pub struct LineSplitter {
    buffer: BytesMut,
    /// Bytes at the front of `buffer` that are known to hold no LF.
    scanned: usize,
    limit: usize,
    /// The rest of an over-long line is thrown away up to its LF.
    skipping: bool,
}

impl LineSplitter {
    /// A splitter for lines of at most `limit` bytes, ending included.
    pub fn new(limit: usize) -> Self {
        Self { buffer: BytesMut::new(), scanned: 0, limit, skipping: false }
    }

    /// The longest line in bytes, ending included.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Changes the longest line in bytes; a line already begun is measured by the new limit.
    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// Bytes that arrived and belong to no line handed out yet.
    pub fn buffered(&self) -> &[u8] {
        &self.buffer
    }

    /// Whether nothing is buffered.
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// Adds bytes that arrived. `bytes` may be of any size and cut anywhere.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Takes everything that is buffered, for a caller that stops reading lines (message data,
    /// a blind relay).
    pub fn take_rest(&mut self) -> Bytes {
        self.scanned = 0;
        std::mem::take(&mut self.buffer).freeze()
    }

    /// The next complete line; `Ok(None)` when more bytes are needed.
    ///
    /// # Errors
    /// [`TooLong`], once for each line over the limit: as soon as it is known to be too long, not
    /// when it ends. Its bytes are thrown away up to its LF, then lines go on as usual.
    pub fn next_line(&mut self) -> Result<Option<Line>, TooLong> {
        let Some(lf) = self.find_lf() else {
            return self.incomplete();
        };
        if std::mem::take(&mut self.skipping) {
            self.take(lf + 1);
            return self.next_line(); // no longer skipping: once at most
        }
        let raw = self.take(lf + 1);
        if raw.len() > self.limit {
            return Err(TooLong { limit: self.limit });
        }
        let ending = if raw.ends_with(b"\r\n") { Ending::Crlf } else { Ending::Lf };
        Ok(Some(Line { raw, ending }))
    }

    fn find_lf(&mut self) -> Option<usize> {
        let found = memchr::memchr(b'\n', &self.buffer[self.scanned..]).map(|at| self.scanned + at);
        self.scanned = if found.is_some() { 0 } else { self.buffer.len() };
        found
    }

    fn incomplete(&mut self) -> Result<Option<Line>, TooLong> {
        if self.skipping {
            self.release();
            return Ok(None);
        }
        // At the limit without an LF: one more byte at least is to come.
        if self.buffer.len() >= self.limit {
            self.skipping = true;
            self.release();
            return Err(TooLong { limit: self.limit });
        }
        if self.buffer.is_empty() {
            self.release();
        }
        Ok(None)
    }

    fn take(&mut self, length: usize) -> Bytes {
        self.scanned = 0;
        if length == self.buffer.len() {
            return std::mem::take(&mut self.buffer).freeze();
        }
        self.buffer.split_to(length).freeze()
    }

    fn release(&mut self) {
        self.scanned = 0;
        self.buffer = BytesMut::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMIT: usize = 12;

    /// Everything the splitter says about `chunks`, endings and errors included.
    fn split<'a>(chunks: impl IntoIterator<Item = &'a [u8]>) -> (Vec<String>, Vec<u8>) {
        let mut splitter = LineSplitter::new(LIMIT);
        let mut said = Vec::new();
        for chunk in chunks {
            splitter.push(chunk);
            loop {
                match splitter.next_line() {
                    Ok(Some(line)) => said.push(format!(
                        "{:?} {}",
                        line.ending(),
                        String::from_utf8_lossy(line.content())
                    )),
                    Ok(None) => break,
                    Err(error) => said.push(error.to_string()),
                }
            }
            assert!(splitter.buffered().len() < LIMIT);
        }
        (said, splitter.take_rest().to_vec())
    }

    fn check(input: &[u8], expect: &[&str], rest: &[u8]) {
        for cut in 0..=input.len() {
            let (head, tail) = input.split_at(cut);
            let (said, left) = split([head, tail]);
            assert_eq!(said, expect, "cut at {cut}");
            assert_eq!(left, rest, "cut at {cut}");
        }
        let (said, left) = split(input.chunks(1));
        assert_eq!(said, expect, "byte by byte");
        assert_eq!(left, rest, "byte by byte");
    }

    #[test]
    fn lines_and_their_endings() {
        check(b"NOOP\r\nA\nB\r", &["Crlf NOOP", "Lf A"], b"B\r");
        check(b"\r\n\n\r\r\n", &["Crlf ", "Lf ", "Crlf \r"], b"");
        check(b"", &[], b"");
    }

    #[test]
    fn the_limit_counts_the_ending() {
        check(b"0123456789\r\nX\r\n", &["Crlf 0123456789", "Crlf X"], b"");
        check(b"01234567890\r\nX\r\n", &["line longer than 12 bytes", "Crlf X"], b"");
    }

    #[test]
    fn an_over_long_line_is_reported_once_and_skipped() {
        let mut input = vec![b'x'; 100];
        input.extend_from_slice(b"\nQUIT\r\n");
        check(&input, &["line longer than 12 bytes", "Crlf QUIT"], b"");
        check(&[b'x'; 100], &["line longer than 12 bytes"], b"");
    }

    #[test]
    fn bare_cr_is_seen() {
        let mut splitter = LineSplitter::new(LIMIT);
        splitter.push(b"A\rB\r\nC\r\n");
        let mut bare = || splitter.next_line().unwrap().unwrap().has_bare_cr();
        assert!(bare());
        assert!(!bare());
    }

    #[test]
    fn nothing_is_held_when_idle() {
        let mut splitter = LineSplitter::new(LIMIT);
        splitter.push(b"NOOP\r\nQU");
        assert!(splitter.next_line().unwrap().is_some());
        assert!(splitter.next_line().unwrap().is_none());
        splitter.push(b"IT\r\n");
        assert!(splitter.next_line().unwrap().is_some());
        assert_eq!(splitter.buffer.capacity(), 0);
    }

    proptest! {
        #[test]
        fn no_byte_is_lost(lines in proptest::collection::vec("[a-z\r]{0,9}", 0..8), size in 1usize..9) {
            let input = lines.iter().fold(Vec::new(), |mut all, line| {
                all.extend_from_slice(line.as_bytes());
                all.push(b'\n');
                all
            });
            let mut splitter = LineSplitter::new(LIMIT);
            let mut out = Vec::new();
            for chunk in input.chunks(size) {
                splitter.push(chunk);
                while let Some(line) = splitter.next_line().unwrap() {
                    out.extend_from_slice(line.raw());
                }
            }
            prop_assert_eq!(out, input);
        }
    }
}

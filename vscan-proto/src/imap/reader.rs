//! Where a response ends: at a CRLF that no literal (`{n}` CRLF and n bytes) stands before.
//!
//! A response over the limit is read over and told of, so that the connection goes on; what is held of it is bounded
//! all the same. A bare LF ends a line too: some servers pass on what they were sent.

use bytes::{Bytes, BytesMut};
use memchr::memchr;

/// The end of a line that decides whether a literal follows: `~{`, the digits of an u64, `+}`, CR.
const TAIL_MAX: usize = 26;

/// The beginning of a response that tells a status from data: a tag or `*`, and a word.
const HEAD_MAX: usize = 64;

/// A response as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Raw {
    /// All its bytes, literals included, without the CRLF at its end.
    Whole(Bytes),
    /// It was longer than the limit, and has been read over. Its beginning.
    TooLong(Bytes),
}

/// Cuts a stream into responses.
///
/// Feed it with [`push`](Self::push), then call [`next`](Self::next_response) until it gives `None`. Between two calls it
/// holds less than the limit, and what was pushed last.
#[derive(Debug)]
pub struct Reader {
    buffer: BytesMut,
    /// Bytes of `buffer` that belong to complete lines and literals of this response.
    done: usize,
    /// Bytes behind `done` that hold no LF.
    scanned: usize,
    /// Bytes of a literal that are still to come, behind `done`.
    literal: u64,
    limit: usize,
    /// The beginning of a response that is read over.
    skipped: Option<Bytes>,
}

impl Reader {
    /// A reader for responses of at most `limit` bytes.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        let limit = limit.max(HEAD_MAX + TAIL_MAX);
        Self { buffer: BytesMut::new(), done: 0, scanned: 0, literal: 0, limit, skipped: None }
    }

    /// Adds bytes that arrived, cut anywhere.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Bytes that belong to no response handed out yet.
    #[must_use]
    pub fn buffered(&self) -> usize {
        self.buffer.len()
    }

    /// The next response; `None` when more bytes are needed.
    pub fn next_response(&mut self) -> Option<Raw> {
        loop {
            if self.literal > 0 && !self.pass_literal() {
                return None;
            }
            let Some(lf) = memchr(b'\n', &self.buffer[self.done + self.scanned..]) else {
                self.scanned = self.buffer.len() - self.done;
                if self.buffer.len() > self.limit || self.skipped.is_some() {
                    self.skip_line();
                }
                if self.buffer.is_empty() {
                    // What a large response took is given back.
                    self.buffer = BytesMut::new();
                }
                return None;
            };
            let end = self.done + self.scanned + lf;
            self.scanned = 0;
            let line = self.buffer[self.done..end].strip_suffix(b"\r");
            let line = line.unwrap_or(&self.buffer[self.done..end]);
            let head = self.skipped.as_deref().unwrap_or(&self.buffer);
            let literal = if is_status(head) { None } else { announced(line) };
            let length = self.done + line.len();
            if let Some(literal) = literal {
                self.done = end + 1;
                self.literal = literal;
                if self.skipped.is_some() || literal > self.limit.saturating_sub(self.done) as u64 {
                    self.skip(self.done);
                }
                continue;
            }
            let whole = self.buffer.split_to(end + 1).freeze();
            self.done = 0;
            if let Some(head) = self.skipped.take() {
                return Some(Raw::TooLong(head));
            }
            if whole.len() > self.limit {
                return Some(Raw::TooLong(whole.slice(..HEAD_MAX)));
            }
            return Some(Raw::Whole(whole.slice(..length)));
        }
    }

    /// Goes on to the end of the literal; false: more bytes are needed.
    fn pass_literal(&mut self) -> bool {
        let there = self.buffer.len() - self.done;
        let passed = usize::try_from(self.literal).map_or(there, |literal| literal.min(there));
        self.done += passed;
        self.literal -= passed as u64;
        if self.skipped.is_some() {
            let _ = self.buffer.split_to(self.done);
            self.done = 0;
        }
        self.literal == 0
    }

    /// From here on the response is read over; `known` bytes of it are sure to be there, however it was cut.
    fn skip(&mut self, known: usize) {
        if self.skipped.is_none() {
            let head = known.min(HEAD_MAX);
            self.skipped = Some(Bytes::copy_from_slice(&self.buffer[..head]));
        }
        let _ = self.buffer.split_to(self.done);
        self.done = 0;
    }

    /// Reads over a line that has not ended, but for its last bytes.
    fn skip_line(&mut self) {
        if self.skipped.is_none() {
            self.skip(self.buffer.len());
        }
        let over = self.buffer.len().saturating_sub(TAIL_MAX);
        let _ = self.buffer.split_to(over);
        self.scanned = self.buffer.len();
    }
}

/// Whether this is the beginning of a status or a continuation, whose text is no grammar: `{3}` at its end is text.
fn is_status(head: &[u8]) -> bool {
    // Its first line alone: what stands behind may be here or not.
    let line = head.split(|byte| matches!(byte, b'\r' | b'\n')).next().unwrap_or_default();
    let mut words = line.splitn(3, |byte| *byte == b' ');
    let (tag, word) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    tag == b"+"
        || [&b"OK"[..], b"NO", b"BAD", b"BYE", b"PREAUTH"]
            .iter()
            .any(|kind| word.eq_ignore_ascii_case(kind))
}

/// The length of the literal that this line announces at its end.
fn announced(line: &[u8]) -> Option<u64> {
    let inner = line.strip_suffix(b"}")?;
    let inner = inner.strip_suffix(b"+").unwrap_or(inner);
    let digits = inner.iter().rev().take_while(|byte| byte.is_ascii_digit()).count();
    let at = inner.len() - digits;
    if digits == 0 || inner[..at].last() != Some(&b'{') {
        return None;
    }
    std::str::from_utf8(&inner[at..]).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: usize = 100;

    fn read(input: &[u8], cut: usize) -> Vec<Raw> {
        let mut reader = Reader::new(LIMIT);
        let mut all = Vec::new();
        for piece in input.chunks(cut) {
            reader.push(piece);
            while let Some(raw) = reader.next_response() {
                all.push(raw);
            }
            assert!(reader.buffered() <= LIMIT, "{} bytes are held", reader.buffered());
        }
        all
    }

    fn check(input: &[u8], expect: &[&[u8]]) {
        for cut in 1..=input.len() {
            let got: Vec<Vec<u8>> = read(input, cut)
                .into_iter()
                .map(|raw| match raw {
                    Raw::Whole(bytes) => bytes.to_vec(),
                    Raw::TooLong(head) => [b"LONG ", &head[..4.min(head.len())]].concat(),
                })
                .collect();
            assert_eq!(got, expect, "{} cut at every {cut}", input.escape_ascii());
        }
    }

    #[test]
    fn literals_belong_to_their_response() {
        check(
            b"* OK {3}\r\n* 1 FETCH (X {4}\r\n\r\n)( Y {0}\r\n Z ~{1+}\r\n\n)\n+ go {9}\r\na1 OK done\r\n",
            &[
                b"* OK {3}",
                b"* 1 FETCH (X {4}\r\n\r\n)( Y {0}\r\n Z ~{1+}\r\n\n)",
                b"+ go {9}",
                b"a1 OK done",
            ],
        );
        check(
            b"\r\n+\r\n* X {}\r\n* X {a}\r\n* X 3}\r\n",
            &[b"", b"+", b"* X {}", b"* X {a}", b"* X 3}"],
        );
    }

    #[test]
    fn what_is_too_long_is_read_over_and_the_next_response_is_read() {
        let long = "x".repeat(400);
        for middle in [
            long.clone(),
            format!("({{300}}\r\n{})", &long[..300]),
            format!("{long} {{5}}\r\n\r\n\r\n) {{3}}\r\nabc)"),
            format!("({{60}}\r\n{} {{50}}\r\n{} ", &long[..60], &long[..50]),
        ] {
            let input = format!("* 1 FETCH {middle}\r\na2 OK\r\n");
            check(input.as_bytes(), &[b"LONG * 1 ", b"a2 OK"]);
        }
        // A length that nobody can send is waited for, and holds nothing.
        check(b"* 1 FETCH {18446744073709551615}\r\nabc\r\na OK\r\n", &[]);
        // One that does not fit a number is none.
        check(b"* X {18446744073709551616}\r\na OK\r\n", &[b"* X {18446744073709551616}", b"a OK"]);
    }
}

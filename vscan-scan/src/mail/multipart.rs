//! The delimiter lines of a multipart body (RFC 2046 section 5.1.1), exact ones and those that lenient readers take.

use std::ops::Range;

/// A delimiter line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Delimiter {
    /// Where it begins, the line end before it included.
    pub(crate) start: usize,
    /// Where what follows it begins.
    pub(crate) end: usize,
    /// It closes the multipart.
    pub(crate) close: bool,
    /// Which line end is before it: CRLF, else LF alone. None at the very beginning.
    crlf: Option<bool>,
}

/// The delimiter lines of one boundary in a body.
#[derive(Clone, Debug, Default)]
pub(crate) struct Delimiters {
    /// Lines that are a delimiter by the letter.
    pub(crate) exact: Vec<Delimiter>,
    /// Besides them those with something behind the boundary, and those after a bare CR.
    pub(crate) loose: Vec<Delimiter>,
}

/// What lies between two delimiters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    Preamble,
    Part,
    /// Behind a closing delimiter.
    Epilogue,
}

/// A piece of a multipart body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) what: What,
    pub(crate) range: Range<usize>,
    /// Where the delimiter before it begins; for the preamble where that begins itself.
    pub(crate) delimiter: usize,
}

/// Finds the delimiter lines, at most `most` of them.
pub(crate) fn delimiters(body: &[u8], boundary: &[u8], most: usize) -> Delimiters {
    let mut found = Delimiters::default();
    let mark = [b"--", boundary].concat();
    for at in memchr::memmem::find_iter(body, &mark) {
        let (start, crlf, after_cr) = match at.checked_sub(1).map(|i| body[i]) {
            None => (at, None, false),
            Some(b'\n') if at > 1 && body[at - 2] == b'\r' => (at - 2, Some(true), false),
            Some(b'\n') => (at - 1, Some(false), false),
            Some(b'\r') => (at - 1, Some(false), true),
            Some(_) => continue,
        };
        let tail_at = at + mark.len();
        let line = memchr::memchr(b'\n', &body[tail_at..]).map_or(body.len(), |i| tail_at + i + 1);
        let tail = &body[tail_at..line];
        let clean = tail.trim_ascii_end();
        let end = match memchr::memchr(b'\r', tail) {
            // A bare CR ends the line for those who took one for its beginning.
            Some(i) if after_cr || !clean.is_empty() && i + 2 < tail.len() => tail_at + i + 1,
            _ => line,
        };
        let delimiter = Delimiter { start, end, close: clean.starts_with(b"--"), crlf };
        if !after_cr && (clean.is_empty() || clean == b"--") {
            found.exact.push(Delimiter { end: line, ..delimiter.clone() });
        }
        found.loose.push(delimiter);
        if found.loose.len() >= most {
            break;
        }
    }
    found
}

impl Delimiters {
    /// True when all readers agree on them: none is loose, the last one alone closes, all have the line ends
    /// of the message.
    pub(crate) fn sure(&self, crlf: bool) -> bool {
        self.exact == self.loose
            && self.exact.iter().rev().skip(1).all(|d| !d.close)
            && self.exact.iter().all(|d| d.crlf.is_none_or(|c| c == crlf))
    }
}

/// The pieces of a body of `len` bytes.
pub(crate) fn segments(delimiters: &[Delimiter], len: usize) -> Vec<Segment> {
    let mut out = Vec::with_capacity(delimiters.len() + 1);
    let (mut at, mut before, mut what) = (0, 0, What::Preamble);
    for delimiter in delimiters {
        // The line end before a delimiter belongs to it; where two follow each other it is that of the first.
        let end = delimiter.start.max(at);
        out.push(Segment { what, range: at..end, delimiter: before });
        what = if delimiter.close { What::Epilogue } else { What::Part };
        (at, before) = (delimiter.end.max(at), end);
    }
    out.push(Segment { what, range: at..len.max(at), delimiter: before });
    out
}

/// A boundary that no field announces: the first line of the form `--x` with a MIME field in the next line.
pub(crate) fn guessed<'a>(body: &'a [u8], known: &[Vec<u8>]) -> Option<&'a [u8]> {
    let mut at = 0;
    for line in body.split_inclusive(|&b| b == b'\n').take(GUESS_LINES) {
        at += line.len();
        let text = line.trim_ascii_end();
        if let Some(name) = text.strip_prefix(b"--")
            && !name.is_empty()
            && body[at..].get(..8).is_some_and(|l| l.eq_ignore_ascii_case(b"content-"))
        {
            return (!known.iter().any(|k| name.starts_with(k) && !k.is_empty())).then_some(name);
        }
    }
    None
}

/// Lines of a body that are looked at for a boundary: a preamble is shorter.
const GUESS_LINES: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delimiters_are_lines() {
        let body = b"pre\r\n--b\r\none\r\n--b \t\r\ntwo\r\nx--b\r\n--bx\r\nthree\r\n--b--\r\nend";
        let found = delimiters(body, b"b", 100);
        assert_eq!((found.exact.len(), found.loose.len()), (3, 4));
        assert!(!found.sure(true));
        let text = |s: &Segment| String::from_utf8_lossy(&body[s.range.clone()]).into_owned();
        let segments = segments(&found.exact, body.len());
        let texts: Vec<_> = segments.iter().map(|s| (s.what, text(s))).collect();
        assert_eq!(
            texts,
            [
                (What::Preamble, "pre".to_owned()),
                (What::Part, "one".to_owned()),
                (What::Part, "two\r\nx--b\r\n--bx\r\nthree".to_owned()),
                (What::Epilogue, "end".to_owned()),
            ]
        );
        assert!(delimiters(b"--b\r\n\r\nx\r\n--b--\r\n", b"b", 9).sure(true));
        assert!(!delimiters(b"--b\r\n\r\nx\n--b--\r\n", b"b", 9).sure(true), "mixed line ends");
        assert!(!delimiters(b"--b\r\nx\r\n--b--\r\n--b\r\n", b"b", 9).sure(true), "after the end");
        assert!(!delimiters(b"--b\r\nx\r--b\r\n--b--\r\n", b"b", 9).sure(true), "after a CR");
    }

    #[test]
    fn delimiters_that_touch_have_nothing_in_between() {
        let body = b"--b\r\n--b\r\n--b--\r\n";
        let found = delimiters(body, b"b", 100);
        let segments = segments(&found.exact, body.len());
        assert!(segments.iter().all(|s| s.range.start <= s.range.end && s.range.is_empty()));
        assert_eq!(segments.len(), 4);
    }
}

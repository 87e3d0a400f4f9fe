//! The grammar that nearly all responses share: atoms, quoted strings, literals, NIL, and lists of them (RFC 9051 section 9).
//! An atom is whatever is nothing else, brackets with what is in them included: `BODY[HEADER.FIELDS (TO)]<0>` is one.

use bytes::Bytes;
use thiserror::Error;

/// Values of one response; a large folder's listing of flags or a structure with thousands of portions stays below it.
pub const VALUES_MAX: usize = 100_000;

/// Lists inside lists; MIME structures are as deep as their message, which servers limit to about 100.
pub const DEPTH_MAX: usize = 200;

/// One value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// `NIL`
    Nil,
    /// A word, a number, a flag.
    Atom(Bytes),
    /// A quoted string without its quotes and backslashes, or a literal.
    Text(Bytes),
    /// In parentheses.
    List(Vec<Value>),
}

/// A response that is not made of values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ValueError {
    /// It ends inside of a string, a literal or a list.
    #[error("it ends too early")]
    Unfinished,
    /// More than [`VALUES_MAX`] values.
    #[error("too many values")]
    TooMany,
    /// More than [`DEPTH_MAX`] lists inside each other.
    #[error("lists too deep inside each other")]
    TooDeep,
    /// A closing parenthesis that was not opened.
    #[error("a parenthesis too many")]
    Unopened,
}

impl Value {
    /// Its bytes, unless it is a list or NIL.
    #[must_use]
    pub fn bytes(&self) -> Option<&Bytes> {
        match self {
            Self::Atom(bytes) | Self::Text(bytes) => Some(bytes),
            Self::Nil | Self::List(_) => None,
        }
    }

    /// Whether it is this word, in whatever case.
    #[must_use]
    pub fn is(&self, word: &str) -> bool {
        self.bytes().is_some_and(|bytes| bytes.eq_ignore_ascii_case(word.as_bytes()))
    }

    /// Its number.
    #[must_use]
    pub fn number<T: std::str::FromStr>(&self) -> Option<T> {
        number(self.bytes()?)
    }

    /// Its members, if it is a list.
    #[must_use]
    pub fn list(&self) -> Option<&[Value]> {
        match self {
            Self::List(values) => Some(values),
            Self::Nil | Self::Atom(_) | Self::Text(_) => None,
        }
    }
}

/// A number in decimal digits, nothing else around it.
#[must_use]
pub fn number<T: std::str::FromStr>(bytes: &[u8]) -> Option<T> {
    if bytes.is_empty() || !bytes.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(bytes).ok()?.parse().ok()
}

/// Takes `input` apart.
///
/// # Errors
/// [`ValueError`]
pub fn values(input: &Bytes) -> Result<Vec<Value>, ValueError> {
    let mut parser = Parser { input, at: 0, count: 0 };
    // The lists that are open, the outermost first.
    let mut open: Vec<Vec<Value>> = Vec::new();
    let mut current = Vec::new();
    while let Some(byte) = parser.input.get(parser.at).copied() {
        let value = match byte {
            b' ' | b'\r' | b'\n' | b'\t' => {
                parser.at += 1;
                continue;
            }
            b'(' => {
                parser.at += 1;
                parser.counted()?;
                if open.len() == DEPTH_MAX {
                    return Err(ValueError::TooDeep);
                }
                open.push(std::mem::take(&mut current));
                continue;
            }
            b')' => {
                parser.at += 1;
                let outer = open.pop().ok_or(ValueError::Unopened)?;
                Value::List(std::mem::replace(&mut current, outer))
            }
            _ => {
                parser.counted()?;
                parser.single(byte)?
            }
        };
        current.push(value);
    }
    if open.is_empty() { Ok(current) } else { Err(ValueError::Unfinished) }
}

struct Parser<'a> {
    input: &'a Bytes,
    at: usize,
    count: usize,
}

impl Parser<'_> {
    fn counted(&mut self) -> Result<(), ValueError> {
        self.count += 1;
        if self.count > VALUES_MAX { Err(ValueError::TooMany) } else { Ok(()) }
    }

    fn single(&mut self, first: u8) -> Result<Value, ValueError> {
        let rest = &self.input[self.at..];
        if first == b'"' {
            return self.quoted();
        }
        let braces = if first == b'~' { 1 } else { 0 };
        if rest.get(braces) == Some(&b'{')
            && let Some((skip, length)) = literal(&rest[braces..])
        {
            let begin = self.at + braces + skip;
            let end = usize::try_from(length).ok().and_then(|length| begin.checked_add(length));
            let end = end.filter(|end| *end <= self.input.len()).ok_or(ValueError::Unfinished)?;
            self.at = end;
            return Ok(Value::Text(self.input.slice(begin..end)));
        }
        Ok(self.atom())
    }

    fn quoted(&mut self) -> Result<Value, ValueError> {
        let begin = self.at + 1;
        let mut escaped = false;
        let mut at = begin;
        loop {
            match self.input.get(at).ok_or(ValueError::Unfinished)? {
                b'"' => break,
                b'\\' => {
                    escaped = true;
                    at += 2;
                }
                _ => at += 1,
            }
        }
        self.at = at + 1;
        if !escaped {
            return Ok(Value::Text(self.input.slice(begin..at)));
        }
        let mut plain = Vec::with_capacity(at - begin);
        let mut bytes = self.input[begin..at].iter();
        while let Some(byte) = bytes.next() {
            plain.push(if *byte == b'\\' { *bytes.next().unwrap_or(byte) } else { *byte });
        }
        Ok(Value::Text(plain.into()))
    }

    fn atom(&mut self) -> Value {
        let begin = self.at;
        let mut brackets = 0_usize;
        while let Some(byte) = self.input.get(self.at) {
            match byte {
                b'[' => brackets += 1,
                b']' => brackets = brackets.saturating_sub(1),
                b'\r' | b'\n' => break,
                b' ' | b'(' | b')' | b'"' if brackets == 0 => break,
                _ => {}
            }
            self.at += 1;
        }
        if self.at == begin {
            // A byte that begins nothing.
            self.at += 1;
        }
        let bytes = self.input.slice(begin..self.at);
        if bytes.eq_ignore_ascii_case(b"NIL") { Value::Nil } else { Value::Atom(bytes) }
    }
}

/// `{n}` CRLF at the beginning of `rest`: how long that is, and n.
fn literal(rest: &[u8]) -> Option<(usize, u64)> {
    let digits = rest[1..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let length = number(&rest[1..=digits])?;
    let mut at = 1 + digits;
    if rest.get(at) == Some(&b'+') {
        at += 1;
    }
    if rest.get(at) != Some(&b'}') {
        return None;
    }
    at += 1;
    if rest.get(at) == Some(&b'\r') {
        at += 1;
    }
    (rest.get(at) == Some(&b'\n')).then_some((at + 1, length))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(values: &[Value]) -> String {
        let one = |value: &Value| match value {
            Value::Nil => "NIL".to_owned(),
            Value::Atom(bytes) => format!("{}", bytes.escape_ascii()),
            Value::Text(bytes) => format!("\"{}\"", bytes.escape_ascii()),
            Value::List(values) => format!("({})", show(values)),
        };
        values.iter().map(one).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn every_kind_of_value() {
        for (input, expect) in [
            (
                &b"1 FETCH (UID 7 FLAGS (\\Seen $x) X NIL)"[..],
                "1 FETCH (UID 7 FLAGS (\\\\Seen $x) X NIL)",
            ),
            (
                b"BODY[HEADER.FIELDS (TO \"x y\")]<0> {3}\r\na)b \"q\\\"\\\\\"",
                "BODY[HEADER.FIELDS (TO \\\"x y\\\")]<0> \"a)b\" \"q\\\"\\\\\"",
            ),
            (b"~{2}\r\n\r\n {0}\r\n\"\"", "\"\\r\\n\" \"\" \"\""),
            (b"(()(\"a\"\"b\"))", "(() (\"a\" \"b\"))"),
            (b"nil Nil NILS {x} {3} ]x a]b", "NIL NIL NILS {x} {3} ]x a]b"),
            (b"", ""),
        ] {
            let got = values(&Bytes::from_static(input)).unwrap();
            assert_eq!(show(&got), expect, "{}", input.escape_ascii());
        }
    }

    #[test]
    fn what_is_not_made_of_values() {
        for (input, expect) in [
            (&b"(a"[..], ValueError::Unfinished),
            (b"\"a", ValueError::Unfinished),
            (b"\"a\\", ValueError::Unfinished),
            (b"{4}\r\nabc", ValueError::Unfinished),
            (b"{18446744073709551615}\r\nabc", ValueError::Unfinished),
            (b"a)", ValueError::Unopened),
        ] {
            assert_eq!(values(&Bytes::from_static(input)), Err(expect), "{}", input.escape_ascii());
        }
        let deep = "(".repeat(DEPTH_MAX + 1).into_bytes();
        assert_eq!(values(&deep.into()), Err(ValueError::TooDeep));
        let many = "()".repeat(VALUES_MAX + 1).into_bytes();
        assert_eq!(values(&many.into()), Err(ValueError::TooMany));
    }
}

//! The client's side of the grammar: command lines (RFC 5321 section 4.1.1).
//!
//! Only as much is parsed as the session machine has to know; the line itself is relayed as it
//! came. Verbs are matched exactly. What a lenient server might take for one of them
//! ([`Command::is_inexact`]) is not for the server: it would take part in a dialogue that vscan does
//! not follow.

/// A command that the session machine tells apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// HELO.
    Helo,
    /// EHLO.
    Ehlo,
    /// LHLO (RFC 2033): behind it a message has as many replies as recipients.
    Lhlo,
    /// MAIL, and its forefathers SEND, SOML and SAML (RFC 821 section 3.4).
    Mail,
    /// RCPT.
    Rcpt,
    /// DATA.
    Data,
    /// BDAT (RFC 3030).
    Bdat,
    /// RSET.
    Rset,
    /// NOOP, VRFY, EXPN, HELP, ETRN: one line, one reply, nothing for vscan to do.
    Plain,
    /// QUIT.
    Quit,
    /// AUTH (RFC 4954), the only command with long lines.
    Auth,
    /// STARTTLS (RFC 3207) and Exchange's X-ANONYMOUSTLS, which works alike.
    StartTls,
    /// Commands that would take a message past vscan: TURN and ATRN (RFC 2645) reverse the roles,
    /// BURL (RFC 4468) has the server fetch the message elsewhere, XEXCH50 sends a binary blob.
    Forbidden,
    /// Anything else.
    Other,
}

const VERBS: &[(&[u8], Verb)] = &[
    (b"HELO", Verb::Helo),
    (b"EHLO", Verb::Ehlo),
    (b"LHLO", Verb::Lhlo),
    (b"MAIL", Verb::Mail),
    (b"SEND", Verb::Mail),
    (b"SOML", Verb::Mail),
    (b"SAML", Verb::Mail),
    (b"RCPT", Verb::Rcpt),
    (b"DATA", Verb::Data),
    (b"BDAT", Verb::Bdat),
    (b"RSET", Verb::Rset),
    (b"NOOP", Verb::Plain),
    (b"VRFY", Verb::Plain),
    (b"EXPN", Verb::Plain),
    (b"HELP", Verb::Plain),
    (b"ETRN", Verb::Plain),
    (b"QUIT", Verb::Quit),
    (b"AUTH", Verb::Auth),
    (b"STARTTLS", Verb::StartTls),
    (b"X-ANONYMOUSTLS", Verb::StartTls),
    (b"TURN", Verb::Forbidden),
    (b"ATRN", Verb::Forbidden),
    (b"BURL", Verb::Forbidden),
    (b"XEXCH50", Verb::Forbidden),
];

/// A command line, taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Command<'a> {
    /// Which command.
    pub verb: Verb,
    /// What follows the verb, without white space around it.
    pub argument: &'a [u8],
}

impl<'a> Command<'a> {
    /// Takes a line, without its ending, apart. Every line is a command of some kind.
    pub fn parse(line: &'a [u8]) -> Self {
        let end = memchr::memchr2(b' ', b'\t', line).unwrap_or(line.len());
        let (word, argument) = line.split_at(end);
        let verb = VERBS
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(word))
            .map_or(Verb::Other, |(_, verb)| *verb);
        Self { verb, argument: argument.trim_ascii() }
    }

    /// Whether a line with an unknown verb is what a lenient server takes for a known one: white
    /// space or control characters in front of it (Postfix), or something else than a space behind.
    pub fn is_inexact(line: &[u8]) -> bool {
        let start = line.iter().position(u8::is_ascii_alphabetic).unwrap_or(line.len());
        VERBS.iter().any(|(name, _)| {
            let word = line[start..].get(..name.len());
            word.is_some_and(|word| name.eq_ignore_ascii_case(word))
        })
    }

    /// The address of a MAIL or RCPT as it stands on the wire, without angle brackets; empty for
    /// the null sender. None if it is not plain where it begins and ends: servers that are lenient
    /// may find another one in the line.
    pub fn path(&self) -> Option<&'a [u8]> {
        let colon = memchr::memchr(b':', self.argument)?;
        let (word, argument) = (&self.argument[..colon], self.argument[colon + 1..].trim_ascii());
        let known = if self.verb == Verb::Rcpt { &b"TO"[..] } else { b"FROM" };
        if !word.trim_ascii().eq_ignore_ascii_case(known) {
            return None;
        }
        let (address, rest) = path(argument);
        let ends = rest.first().is_none_or(|byte| matches!(byte, b' ' | b'\t'));
        let bracketed = argument.starts_with(b"<");
        let closed = if bracketed {
            argument.len() - rest.len() == address.len() + 2
        } else {
            !argument.is_empty() && memchr::memchr2(b'<', b'>', address).is_none()
        };
        (ends && closed).then_some(address)
    }

    /// The number of a `SIZE=` parameter (RFC 1870 section 6); [`u64::MAX`] if it does not fit.
    pub fn size(&self) -> Option<u64> {
        let colon = memchr::memchr(b':', self.argument)?;
        let (_, parameters) = path(self.argument[colon + 1..].trim_ascii_start());
        parameters
            .split(|byte| *byte == b' ' || *byte == b'\t')
            .filter(|parameter| parameter.len() > 5)
            .find(|parameter| parameter[..5].eq_ignore_ascii_case(b"SIZE="))
            .and_then(|parameter| number(&parameter[5..]))
    }

    /// The chunk that a BDAT announces (RFC 3030 section 2). None without a length: then nobody
    /// knows what follows.
    pub fn chunk(&self) -> Option<Chunk> {
        let end = memchr::memchr2(b' ', b'\t', self.argument).unwrap_or(self.argument.len());
        let (length, rest) = self.argument.split_at(end);
        let kind = match rest.trim_ascii() {
            b"" => ChunkKind::More,
            word if word.eq_ignore_ascii_case(b"LAST") => ChunkKind::Last,
            _ => ChunkKind::Malformed,
        };
        number(length).map(|length| Chunk { length, kind })
    }
}

/// A BDAT chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    /// Its length in bytes; [`u64::MAX`] if it does not fit.
    pub length: u64,
    /// What else the command says.
    pub kind: ChunkKind,
}

/// What a BDAT says besides the length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChunkKind {
    /// Nothing: more chunks follow.
    More,
    /// LAST: the message ends with this chunk.
    Last,
    /// Something that RFC 3030 does not know.
    Malformed,
}

/// Splits `<path> parameters`; a quoted local part may hold a `>` (RFC 5321 section 4.1.2).
fn path(argument: &[u8]) -> (&[u8], &[u8]) {
    let Some(inner) = argument.strip_prefix(b"<") else {
        let end = memchr::memchr2(b' ', b'\t', argument).unwrap_or(argument.len());
        return argument.split_at(end);
    };
    let mut quoted = false;
    let mut escaped = false;
    for (at, &byte) in inner.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'>' if !quoted => return (&inner[..at], &inner[at + 1..]),
            _ => {}
        }
    }
    (inner, &[])
}

fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |sum, digit| {
        let digit = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
        Some(sum.saturating_mul(10).saturating_add(digit))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verb(line: &[u8]) -> Verb {
        Command::parse(line).verb
    }

    #[test]
    fn verbs_in_any_case_but_exact() {
        assert_eq!(verb(b"data"), Verb::Data);
        assert_eq!(verb(b"DATA "), Verb::Data);
        assert_eq!(verb(b"MaiL FROM:<>"), Verb::Mail);
        assert_eq!(verb(b"rcpt\tTO:<a@b>"), Verb::Rcpt);
        assert_eq!(verb(b"X-AnonymousTLS"), Verb::StartTls);
        for line in [&b" DATA"[..], b"DATA\0", b"DATAX", b"DAT", b"", b"MAILFROM:<>"] {
            assert_eq!(verb(line), Verb::Other, "{}", line.escape_ascii());
        }
    }

    #[test]
    fn what_lenient_servers_take_for_a_verb() {
        for line in
            [&b" DATA"[..], b"DATA\0", b"\tbdat 5", b"MAILFROM:<>", b"RCPT:TO:<a>", b"\0Ehlo c"]
        {
            assert!(Command::is_inexact(line), "{}", line.escape_ascii());
        }
        for line in [&b""[..], b".", b"XCLIENT ADDR=1.2.3.4", b"XDATA", b"354 go", b"DAT", b"*"] {
            assert!(!Command::is_inexact(line), "{}", line.escape_ascii());
        }
    }

    fn path(line: &[u8]) -> Option<&[u8]> {
        Command::parse(line).path()
    }

    #[test]
    fn paths() {
        assert_eq!(path(b"MAIL FROM:<a@b.example> SIZE=5"), Some(&b"a@b.example"[..]));
        assert_eq!(path(b"MAIL FROM: <>"), Some(&b""[..]));
        assert_eq!(path(b"MAIL FROM:a@b BODY=8BITMIME"), Some(&b"a@b"[..]));
        assert_eq!(path(b"MAIL FROM:<\"a>\\\"b\"@c>"), Some(&b"\"a>\\\"b\"@c"[..]));
        assert_eq!(path(b"saml from : <a@b>"), Some(&b"a@b"[..]));
        assert_eq!(path(b"RCPT TO:<a@b> NOTIFY=NEVER"), Some(&b"a@b"[..]));
        for line in [
            &b"MAIL"[..],
            b"MAIL FROM:",
            b"MAIL FROM:<a@b",
            b"RCPT <a@b>",
            b"RCPT FROM:<a@b>",
            b"RCPT x TO:<a@b>",
            b"RCPT TO:a@b<c@d>",
            b"RCPT TO:<a@b>c@d",
            b"RCPT TO:<a@b><c@d>",
        ] {
            assert_eq!(path(line), None, "{}", line.escape_ascii());
        }
    }

    #[test]
    fn sizes() {
        let size = |line| Command::parse(line).size();
        assert_eq!(size(b"MAIL FROM:<a@b> BODY=8BITMIME size=1000"), Some(1000));
        assert_eq!(size(b"MAIL FROM:<a@b>SIZE=7"), Some(7));
        assert_eq!(size(b"MAIL FROM:<SIZE=7@b>"), None);
        assert_eq!(size(b"MAIL FROM:<a@b> SIZE=-1"), None);
        assert_eq!(size(b"MAIL FROM:<a@b> SIZE=99999999999999999999999"), Some(u64::MAX));
    }

    #[test]
    fn chunks() {
        let chunk = |line| Command::parse(line).chunk().map(|chunk| (chunk.length, chunk.kind));
        assert_eq!(chunk(b"BDAT 1000"), Some((1000, ChunkKind::More)));
        assert_eq!(chunk(b"BDAT 0 last"), Some((0, ChunkKind::Last)));
        assert_eq!(chunk(b"BDAT  7  LAST  "), Some((7, ChunkKind::Last)));
        assert_eq!(chunk(b"BDAT 7 LAST 8"), Some((7, ChunkKind::Malformed)));
        assert_eq!(chunk(b"BDAT 7 FIRST"), Some((7, ChunkKind::Malformed)));
        assert_eq!(chunk(b"BDAT 99999999999999999999999 LAST"), Some((u64::MAX, ChunkKind::Last)));
        assert_eq!(chunk(b"BDAT -1"), None);
        assert_eq!(chunk(b"BDAT LAST"), None);
        assert_eq!(chunk(b"BDAT"), None);
    }
}

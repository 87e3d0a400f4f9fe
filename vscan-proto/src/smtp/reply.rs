//! The server's side of the grammar: reply lines (RFC 5321 section 4.2), the EHLO answer's
//! extensions, and the replies that vscan gives itself.

/// One line of a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplyLine {
    /// The reply code, 200 to 599.
    pub code: u16,
    /// Whether another line of the same reply follows.
    pub more: bool,
}

impl ReplyLine {
    /// Parses a line, without its ending. None if it is no reply line.
    pub fn parse(line: &[u8]) -> Option<Self> {
        let [first @ b'2'..=b'5', second @ b'0'..=b'9', third @ b'0'..=b'9', rest @ ..] = line
        else {
            return None;
        };
        let more = match rest.first() {
            None | Some(b' ') => false,
            Some(b'-') => true,
            Some(_) => return None,
        };
        let digit = |byte: &u8| u16::from(byte - b'0');
        Some(Self { code: digit(first) * 100 + digit(second) * 10 + digit(third), more })
    }
}

/// Extensions that let a message past vscan or change the framing in a way that it does not
/// follow. They are taken out of the EHLO answer, so that no client uses them.
///
/// - BURL (RFC 4468): the server fetches the message from an IMAP server.
/// - CHECKPOINT (RFC 1845): a transfer begun again in mid-message.
/// - ATRN (RFC 2645), TURN (RFC 821): client and server change places.
/// - XEXCH50: Exchange's binary blob behind the command.
/// - PRDR (draft-hall-prdr): several replies to one message.
pub const HIDDEN_EXTENSIONS: &[&str] = &["BURL", "CHECKPOINT", "ATRN", "TURN", "XEXCH50", "PRDR"];

/// What to hide in an EHLO answer.
#[derive(Debug, Clone, Copy)]
pub struct EhloFilter<'a> {
    /// Take out STARTTLS and X-ANONYMOUSTLS too.
    pub hide_tls: bool,
    /// Add STARTTLS if it is missing.
    pub add_tls: bool,
    /// Each leg has a TLS session of its own: take out what would bind the client to the server's (SASL mechanisms with
    /// channel binding, RFC 5802 section 6; EXTERNAL, which goes by the client's certificate, RFC 4422 appendix A).
    pub two_sessions: bool,
    /// Take out REQUIRETLS (RFC 8689): the server's certificate is not believed.
    pub hide_require_tls: bool,
    /// What else to take out, besides [`HIDDEN_EXTENSIONS`]: keywords in any case. Without CHUNKING
    /// there is no BINARYMIME either (RFC 3030 section 3).
    pub hide: &'a [String],
    /// The greatest SIZE to announce, in bytes.
    pub max_size: u64,
}

/// What an EHLO answer offers, as far as vscan has to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offer {
    /// CHUNKING (RFC 3030): the server takes BDAT.
    pub chunking: bool,
    /// STARTTLS (RFC 3207).
    pub starttls: bool,
    /// SIZE (RFC 1870): the largest message that the server takes, in bytes.
    pub size: Option<u64>,
}

impl Offer {
    /// Reads a complete EHLO answer, as it came or filtered.
    pub fn parse(reply: &[u8]) -> Self {
        let mut offer = Self::default();
        for line in reply.split_inclusive(|byte| *byte == b'\n').skip(1) {
            let content = line.trim_ascii_end();
            if keyword(content).eq_ignore_ascii_case(b"CHUNKING") {
                offer.chunking = true;
            } else if keyword(content).eq_ignore_ascii_case(b"STARTTLS") {
                offer.starttls = true;
            } else if let Some(end) = behind_size(content) {
                offer.size = size(&content[end..]);
            }
        }
        offer
    }
}

impl EhloFilter<'_> {
    /// Filters a complete EHLO answer, line endings included. What is not hidden stays as it is,
    /// but for the last line's `-`.
    pub fn apply(&self, reply: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(reply.len());
        let mut last = 0;
        for (index, line) in reply.split_inclusive(|byte| *byte == b'\n').enumerate() {
            if index > 0 && self.hides(keyword(line)) {
                continue;
            }
            last = out.len();
            match index {
                0 => out.extend_from_slice(line),
                _ if self.two_sessions && keyword(line).eq_ignore_ascii_case(b"AUTH") => {
                    copy_unbound(line, &mut out);
                }
                _ => self.copy(line, &mut out),
            }
        }
        let wanted = self.add_tls && !self.hides(b"STARTTLS");
        if wanted && out.ends_with(b"\n") && !Offer::parse(&out).starttls {
            if let Some(separator) = out.get_mut(last + 3)
                && *separator == b' '
            {
                *separator = b'-';
            }
            last = out.len();
            out.extend_from_slice(b"250 STARTTLS\r\n");
        }
        // The server's last line may be gone.
        if let Some(separator) = out.get_mut(last + 3)
            && *separator == b'-'
        {
            *separator = b' ';
        }
        out
    }

    fn hides(&self, keyword: &[u8]) -> bool {
        let is = |name: &str| keyword.eq_ignore_ascii_case(name.as_bytes());
        let hidden = |name: &str| self.hide.iter().any(|hidden| hidden.eq_ignore_ascii_case(name));
        HIDDEN_EXTENSIONS.iter().any(|name| is(name))
            || self.hide.iter().any(|name| is(name))
            || (self.hide_tls && (is("STARTTLS") || is("X-ANONYMOUSTLS")))
            || (self.hide_require_tls && is("REQUIRETLS"))
            || (is("BINARYMIME") && hidden("CHUNKING"))
    }

    /// Copies the line; a SIZE (RFC 1870 section 3) becomes the smaller one. No number and 0 mean
    /// no limit.
    fn copy(&self, line: &[u8], out: &mut Vec<u8>) {
        let content = line.trim_ascii_end();
        let Some(end) = behind_size(content) else { return out.extend_from_slice(line) };
        match size(&content[end..]) {
            Some(announced) if announced <= self.max_size => out.extend_from_slice(line),
            _ => {
                out.extend_from_slice(&content[..end]);
                out.extend_from_slice(format!(" {}", self.max_size).as_bytes());
                out.extend_from_slice(&line[content.len()..]);
            }
        }
    }
}

/// Copies a line `250-AUTH mechanisms` without those that would bind the client to the server's TLS session.
fn copy_unbound(line: &[u8], out: &mut Vec<u8>) {
    let content = line.trim_ascii_end();
    let mut from = 0;
    for (at, byte) in content.iter().enumerate().chain([(content.len(), &b' ')]) {
        if !matches!(byte, b' ' | b'\t') {
            continue;
        }
        let word = content[from..at].trim_ascii();
        let bound = word.len() > 5 && word[word.len() - 5..].eq_ignore_ascii_case(b"-PLUS");
        if !bound && !word.eq_ignore_ascii_case(b"EXTERNAL") {
            out.extend_from_slice(&content[from..at]);
        }
        from = at;
    }
    out.extend_from_slice(&line[content.len()..]);
}

/// Where the number of a line `250-SIZE number` begins; none if it is another line.
fn behind_size(content: &[u8]) -> Option<usize> {
    let text = content.get(4..)?.trim_ascii_start();
    let is_size = keyword(content).eq_ignore_ascii_case(b"SIZE");
    is_size.then(|| content.len() - text.len() + 4)
}

/// The number behind SIZE; none if there is no limit (RFC 1870 section 3).
fn size(number: &[u8]) -> Option<u64> {
    std::str::from_utf8(number).ok()?.trim().parse().ok().filter(|number| *number > 0)
}

/// The extension's keyword of a line `250-KEYWORD parameters`.
fn keyword(line: &[u8]) -> &[u8] {
    let text = line.get(4..).unwrap_or_default().trim_ascii();
    // Some old servers write AUTH=LOGIN.
    let end = memchr::memchr3(b' ', b'=', b'\t', text).unwrap_or(text.len());
    &text[..end]
}

/// The longest text in a reply of vscan's own, in bytes: with code and ending well inside the 512
/// of RFC 5321 section 4.5.3.1.5.
const TEXT_MAX: usize = 400;

/// A reply of one line: `code enhanced text CRLF`. The text may come from anywhere: what is not
/// printable ASCII becomes `?`, and it is cut to fit a reply line.
pub fn compose(code: u16, enhanced: &str, text: &str) -> Vec<u8> {
    let mut reply = format!("{code} {enhanced} ").into_bytes();
    let printable = text.chars().map(|char| match char {
        ' '..='~' => char as u8,
        _ => b'?',
    });
    reply.extend(printable.take(TEXT_MAX));
    reply.extend_from_slice(b"\r\n");
    reply
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reply_lines() {
        let parse = |line: &[u8]| ReplyLine::parse(line).map(|line| (line.code, line.more));
        assert_eq!(parse(b"250-PIPELINING"), Some((250, true)));
        assert_eq!(parse(b"354 go on"), Some((354, false)));
        assert_eq!(parse(b"250"), Some((250, false)));
        for line in [&b"25"[..], b"", b"2x0 a", b"650 a", b"150 a", b"2500", b"SSH-2.0-x"] {
            assert_eq!(parse(line), None, "{}", line.escape_ascii());
        }
    }

    const NOTHING: EhloFilter<'static> = EhloFilter {
        hide_tls: false,
        add_tls: false,
        two_sessions: false,
        hide_require_tls: false,
        hide: &[],
        max_size: 1,
    };

    fn filter(reply: &str) -> String {
        let filter = EhloFilter { max_size: 1000, ..NOTHING };
        String::from_utf8(filter.apply(reply.as_bytes())).unwrap()
    }

    #[test]
    fn hidden_extensions_are_taken_out() {
        assert_eq!(
            filter("250-mx.example\r\n250-PIPELINING\r\n250-PRDR\r\n250-8BITMIME\r\n250 DSN\r\n"),
            "250-mx.example\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 DSN\r\n"
        );
        assert_eq!(
            filter("250-mx\r\n250-starttls\r\n250-checkpoint\r\n250 Turn\r\n"),
            "250-mx\r\n250 starttls\r\n"
        );
        assert_eq!(filter("250-mx\r\n250-BURL imap\r\n250 ATRN\r\n"), "250 mx\r\n");
        // The first line is the server's name, whatever it is called.
        assert_eq!(
            filter("250-BURL greets you\r\n250 DSN\r\n"),
            "250-BURL greets you\r\n250 DSN\r\n"
        );
    }

    #[test]
    fn more_is_hidden_on_request() {
        let hide = ["chunking".to_owned(), "X-Own".to_owned()];
        let filter = EhloFilter { hide: &hide, ..NOTHING };
        assert_eq!(
            filter.apply(b"250-mx\r\n250-CHUNKING\r\n250-DSN\r\n250-x-own 1\r\n250 BINARYMIME\r\n"),
            b"250-mx\r\n250 DSN\r\n"
        );
    }

    #[test]
    fn what_is_offered() {
        let offer = |reply: &str| Offer::parse(reply.as_bytes());
        assert_eq!(
            offer("250-SIZE 5\r\n250-Chunking\r\n250 size 1000\r\n"),
            Offer { chunking: true, starttls: false, size: Some(1000) }
        );
        assert_eq!(offer("250-CHUNKING\r\n250 SIZE 0\r\n"), Offer::default());
    }

    #[test]
    fn starttls_is_hidden_on_request() {
        let filter = EhloFilter { hide_tls: true, ..NOTHING };
        assert_eq!(
            filter.apply(b"250-mx\r\n250-DSN\r\n250 STARTTLS\r\n"),
            b"250-mx\r\n250 DSN\r\n"
        );
    }

    #[test]
    fn starttls_is_added_on_request() {
        let filter = EhloFilter { add_tls: true, ..NOTHING };
        for (reply, expect) in [
            ("250-mx\r\n250 DSN\r\n", "250-mx\r\n250-DSN\r\n250 STARTTLS\r\n"),
            ("250 mx\r\n", "250-mx\r\n250 STARTTLS\r\n"),
            ("250-mx\r\n250 BURL\r\n", "250-mx\r\n250 STARTTLS\r\n"),
            ("250-mx\r\n250 starttls\r\n", "250-mx\r\n250 starttls\r\n"),
        ] {
            let got = filter.apply(reply.as_bytes());
            assert_eq!(
                got.escape_ascii().to_string(),
                expect.as_bytes().escape_ascii().to_string()
            );
        }
    }

    #[test]
    fn what_binds_to_a_tls_session_is_hidden_where_there_are_two() {
        let filter = EhloFilter { two_sessions: true, hide_require_tls: true, ..NOTHING };
        let reply =
            b"250-mx\r\n250-AUTH PLAIN SCRAM-SHA-256-PLUS  external LOGIN\r\n250-REQUIRETLS\r\n\
            250-AUTH=external\r\n250 AUTH EXTERNAL\r\n";
        assert_eq!(
            filter.apply(reply).escape_ascii().to_string(),
            b"250-mx\r\n250-AUTH PLAIN  LOGIN\r\n250-AUTH=external\r\n250 AUTH\r\n"
                .escape_ascii()
                .to_string()
        );
    }

    #[test]
    fn the_smaller_size_is_announced() {
        assert_eq!(filter("250-mx\r\n250 SIZE 999\r\n"), "250-mx\r\n250 SIZE 999\r\n");
        assert_eq!(filter("250-mx\r\n250 Size 1001\r\n"), "250-mx\r\n250 Size 1000\r\n");
        assert_eq!(
            filter("250-mx\r\n250-SIZE\r\n250 DSN\r\n"),
            "250-mx\r\n250-SIZE 1000\r\n250 DSN\r\n"
        );
        assert_eq!(filter("250-mx\r\n250 SIZE 0\n"), "250-mx\r\n250 SIZE 1000\n");
        assert_eq!(filter("250-mx\r\n250  SIZE 9999\n"), "250-mx\r\n250  SIZE 1000\n");
    }

    #[test]
    fn short_and_odd_lines_survive() {
        assert_eq!(filter("250\r\n"), "250\r\n");
        assert_eq!(filter("250-\r\n250-\r\nxy\r\n250 \r\n"), "250-\r\n250-\r\nxy\r\n250 \r\n");
        assert_eq!(filter(""), "");
    }

    #[test]
    fn composed_replies_are_one_line() {
        let reply = compose(550, "5.7.1", &format!("a\r\nb\u{e9}{}", "x".repeat(1000)));
        assert!(reply.starts_with(b"550 5.7.1 a??b?xxx"));
        assert!(reply.len() < 512);
        assert_eq!(reply.iter().filter(|byte| **byte == b'\n').count(), 1);
    }
}

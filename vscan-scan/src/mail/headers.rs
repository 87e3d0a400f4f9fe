//! The header of a message or part, read in every way that some reader takes: where it ends, and what its MIME
//! fields say. Of a repeated field every value counts.

use super::words;
use crate::archive::caught;
use crate::limits::Limits;
use crate::report::{OTHER_NAMES_MAX, Reason};
use mail_parser::{HeaderValue, MessageParser};
use std::borrow::Cow;
use std::sync::LazyLock;

/// A media type, in lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Type {
    pub(crate) main: String,
    pub(crate) sub: String,
    pub(crate) charset: String,
}

/// A transfer encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encoding {
    Identity,
    Base64,
    QuotedPrintable,
    Uuencode,
    /// A word that is not known: read as it is, and searched for encoded sections.
    Unknown,
}

/// What the header of a message or part says about its body.
#[derive(Clone, Debug, Default)]
pub(crate) struct Headers {
    pub(crate) types: Vec<Type>,
    pub(crate) boundaries: Vec<Vec<u8>>,
    pub(crate) encodings: Vec<Encoding>,
    /// All names, the one that most readers show first.
    pub(crate) names: Vec<String>,
    /// Every reader sees the same in it: no field twice, nothing that is no field, one kind of line ends.
    pub(crate) regular: bool,
    /// Limits that were exceeded.
    pub(crate) notes: Vec<(Reason, String)>,
}

/// One way of telling a header from its body.
#[derive(Clone, Debug)]
pub(crate) struct View<'a> {
    /// The header, as its reader would see it.
    pub(crate) head: Cow<'a, [u8]>,
    /// Where it ends, and where the body begins.
    pub(crate) head_end: usize,
    pub(crate) body: usize,
}

/// MIME fields looked at in one header; more of them are counted as an exceeded limit.
const FIELDS_MAX: usize = 32;

/// Boundaries tried for one body; each costs a pass over it.
const BOUNDARIES_MAX: usize = 8;

static PARSER: LazyLock<MessageParser> = LazyLock::new(|| MessageParser::new().with_mime_headers());

/// The ways of telling header from body, the usual one first: it ends at the first blank line. Where the first line
/// is no field there is no header.
pub(crate) fn views<'a>(data: &'a [u8], limits: &Limits) -> Vec<View<'a>> {
    let plain = |head_end, body| View { head: Cow::Borrowed(&data[..head_end]), head_end, body };
    let usual = split(data);
    let mut views = vec![plain(usual.end, usual.body)];
    // A line of blanks continues the field before it, by the letter; and what is no field ends the header.
    let strict = usual.blank.then(|| strict(data, usual.body));
    for (end, body) in [strict, usual.other.map(|at| (at, at))].into_iter().flatten() {
        views.push(plain(end, body));
    }
    // A first line that is no field: some pass over it.
    if usual.body == 0 {
        let (end, body) = self::strict(&data[..data.len().min(limits.header_bytes as usize)], 0);
        let mime = fields(&data[..end])
            .take(FIELDS_MAX)
            .any(|f| f.get(..8).is_some_and(|name| name.eq_ignore_ascii_case(b"content-")));
        if mime && end > 0 {
            views.push(plain(end, body));
        }
    }
    let first = &data[..usual.body.min(limits.header_bytes as usize)];
    if first.contains(&0) {
        let head = data[..usual.end].iter().copied().filter(|&b| b != 0).collect();
        views.push(View { head: Cow::Owned(head), ..plain(usual.end, usual.body) });
    }
    if bare_cr(first) {
        let most = data.len().min(limits.header_bytes as usize);
        let lines = lines_of(&data[..most]);
        let split = split(&lines);
        let (head_end, body) = (split.end, split.body);
        views.push(View { head: Cow::Owned(lines[..head_end].to_vec()), head_end, body });
    }
    views
}

/// The same bytes with every bare CR made a line end: as many, at the same places.
pub(crate) fn lines_of(data: &[u8]) -> Vec<u8> {
    let mut out = data.to_vec();
    for at in memchr::memchr_iter(b'\r', data) {
        if data.get(at + 1) != Some(&b'\n') {
            out[at] = b'\n';
        }
    }
    out
}

fn bare_cr(data: &[u8]) -> bool {
    memchr::memchr_iter(b'\r', data).any(|at| data.get(at + 1).is_some_and(|&b| b != b'\n'))
}

struct Split {
    end: usize,
    body: usize,
    /// The line between them has blanks in it.
    blank: bool,
    /// The first line before `end` that is no field.
    other: Option<usize>,
}

fn split(data: &[u8]) -> Split {
    let mut at = 0;
    let mut other = None;
    while at < data.len() {
        let end = memchr::memchr(b'\n', &data[at..]).map_or(data.len(), |i| at + i + 1);
        let whole = &data[at..end];
        let line = whole.trim_ascii_end();
        if line.is_empty() {
            let blank = !matches!(whole, b"\n" | b"\r\n");
            return Split { end: at, body: end, blank, other };
        }
        let from = line.starts_with(b"From ") || line.starts_with(b">From ");
        let field = from || memchr::memchr(b':', line).is_some();
        if at == 0 && !field {
            return Split { end: 0, body: 0, blank: false, other: None };
        }
        let name = line.split(|&b| b == b':').next().unwrap_or_default().trim_ascii_end();
        let named = field && name.iter().all(u8::is_ascii_graphic);
        if at > 0 && other.is_none() && !named && !matches!(line[0], b' ' | b'\t') {
            other = Some(at);
        }
        at = end;
    }
    Split { end: data.len(), body: data.len(), blank: false, other }
}

/// Header and body told apart by a line that is really empty, from `at` on.
fn strict(data: &[u8], mut at: usize) -> (usize, usize) {
    while at < data.len() {
        let end = memchr::memchr(b'\n', &data[at..]).map_or(data.len(), |i| at + i + 1);
        if matches!(&data[at..end], b"\n" | b"\r\n") {
            return (at, end);
        }
        at = end;
    }
    (data.len(), data.len())
}

impl Headers {
    /// Reads the MIME fields within the limits.
    pub(crate) fn parse(limits: &Limits, mut head: &[u8]) -> Self {
        let mut headers = Self { regular: regular(head), ..Self::default() };
        if head.len() > limits.header_bytes as usize {
            headers.notes.push((Reason::Headers, format!("a header of {} bytes", head.len())));
            head = &head[..limits.header_bytes as usize];
        }
        let (mut count, mut mime) = (0u32, [0usize; KNOWN.len()]);
        for field in fields(head) {
            count += 1;
            if count > limits.headers {
                let detail = format!("more than {} header fields", limits.headers);
                headers.notes.push((Reason::Headers, detail));
                break;
            }
            let Some(colon) = memchr::memchr(b':', field) else { continue };
            let name = field[..colon].trim_ascii();
            let known = KNOWN.iter().position(|k| name.eq_ignore_ascii_case(k.as_bytes()));
            let Some(which) = known else { continue };
            mime[which] += 1;
            if mime.iter().sum::<usize>() > FIELDS_MAX {
                let detail = format!("more than {FIELDS_MAX} MIME fields in one header");
                headers.notes.push((Reason::Headers, detail));
                break;
            }
            headers.take(which, &field[colon + 1..]);
        }
        if headers.boundaries.len() > BOUNDARIES_MAX {
            let detail = format!("more than {BOUNDARIES_MAX} boundaries of one body");
            headers.notes.push((Reason::Headers, detail));
            headers.boundaries.truncate(BOUNDARIES_MAX);
        }
        headers.regular &= mime.iter().all(|&n| n <= 1)
            && headers.boundaries.len() <= 1
            && headers.types.len() <= 1
            && headers.notes.is_empty();
        headers
    }

    fn take(&mut self, which: usize, value: &[u8]) {
        if which == ENCODING {
            let encoding = encoding(value);
            if !self.encodings.contains(&encoding) {
                self.encodings.push(encoding);
            }
            self.regular &= !value.contains(&b'(');
            return;
        }
        let (head, parameters) = words::parameters(value);
        let mut names = words::values(&parameters, "filename");
        names.extend(words::values(&parameters, "name"));
        if which == TYPE {
            self.regular &= !head.is_empty() && !unquoted(value).contains(&b'(');
            raw_boundaries(value, &mut self.boundaries);
            for boundary in words::values(&parameters, "boundary") {
                add_boundary(&mut self.boundaries, boundary.as_bytes());
            }
            let charset = words::values(&parameters, "charset").into_iter().next();
            self.add_type(&String::from_utf8_lossy(&head), &charset.unwrap_or_default());
        }
        self.other_opinion(which, value, &mut names);
        // The disposition's name is the one that mail readers save under.
        let at = if which == DISPOSITION { 0 } else { self.names.len() };
        names.retain(|name| !self.names.contains(name));
        self.names.splice(at..at, names);
        self.names.dedup();
        self.names.truncate(OTHER_NAMES_MAX + 1);
    }

    /// What the crate mail-parser sees in the field.
    fn other_opinion(&mut self, which: usize, value: &[u8], names: &mut Vec<String>) {
        let mut field = b"Content-Type:".to_vec();
        field.extend_from_slice(value);
        field.extend_from_slice(b"\r\n\r\n");
        let Ok(Some(message)) = caught(|| Ok(PARSER.parse_headers(&field))) else { return };
        for header in message.parts.first().map(|p| &p.headers[..]).unwrap_or_default() {
            let HeaderValue::ContentType(parsed) = &header.value else { continue };
            for name in ["filename", "name"] {
                if let Some(value) = parsed.attribute(name).filter(|v| !v.is_empty())
                    && !names.iter().any(|n| n == value)
                {
                    names.push(value.to_owned());
                }
            }
            if which == TYPE {
                for attribute in parsed.attributes().unwrap_or_default() {
                    if attribute.name.eq_ignore_ascii_case("boundary") {
                        add_boundary(&mut self.boundaries, attribute.value.as_bytes());
                    }
                }
                let whole = format!("{}/{}", parsed.ctype(), parsed.subtype().unwrap_or_default());
                self.add_type(&whole, parsed.attribute("charset").unwrap_or_default());
            }
        }
    }

    fn add_type(&mut self, whole: &str, charset: &str) {
        let clean: String = whole.chars().filter(|c| c.is_ascii_graphic()).collect();
        let (main, sub) = clean.split_once('/').unwrap_or((&clean, ""));
        let new = Type {
            main: main.to_ascii_lowercase(),
            sub: sub.to_ascii_lowercase(),
            charset: charset.to_ascii_lowercase(),
        };
        let known = |t: &Type| t.main == new.main && t.sub == new.sub;
        if !new.main.is_empty() && !self.types.iter().any(known) {
            self.types.push(new);
        }
    }

    /// The encodings to try, at least one.
    pub(crate) fn encodings(&self) -> Vec<Encoding> {
        if self.encodings.is_empty() { vec![Encoding::Identity] } else { self.encodings.clone() }
    }

    /// True when a type of these words is declared; an empty `sub` stands for any.
    pub(crate) fn is(&self, main: &str, sub: &str) -> bool {
        self.types.iter().any(|t| t.main == main && (sub.is_empty() || t.sub == sub))
    }

    pub(crate) fn has_charset(&self, prefix: &str) -> bool {
        self.types.iter().any(|t| t.charset.starts_with(prefix))
    }

    /// The first type, e.g. `text/plain`; empty where none is declared.
    pub(crate) fn declared(&self) -> String {
        self.types.first().map_or_else(String::new, |t| format!("{}/{}", t.main, t.sub))
    }

    /// The file name, else a word for the type.
    pub(crate) fn path_name(&self) -> &str {
        match (self.names.first(), self.types.first()) {
            (Some(name), _) => name,
            (None, Some(t)) if t.main == "message" => "message",
            (None, Some(t)) if t.main == "multipart" => "multipart",
            (None, Some(t)) if t.sub == "html" => "html",
            (None, Some(t)) if t.main != "text" => "attachment",
            (None, _) => "text",
        }
    }
}

const KNOWN: [&str; 3] = ["content-type", "content-transfer-encoding", "content-disposition"];
const TYPE: usize = 0;
const ENCODING: usize = 1;
const DISPOSITION: usize = 2;

/// True when no two readers can disagree on where its fields begin and end.
fn regular(head: &[u8]) -> bool {
    let crlf = memchr::memchr(b'\n', head).is_some_and(|i| i > 0 && head[i - 1] == b'\r');
    let mut first = true;
    for line in head.split_inclusive(|&b| b == b'\n') {
        let Some(text) = line.strip_suffix(if crlf { &b"\r\n"[..] } else { b"\n" }) else {
            return false;
        };
        let fine = match text {
            _ if text.iter().any(|b| matches!(b, 0 | b'\r')) => false,
            [b' ' | b'\t', rest @ ..] => !first && !rest.trim_ascii().is_empty(),
            _ if first && (text.starts_with(b"From ") || text.starts_with(b">From ")) => true,
            _ => {
                let name = text.iter().take_while(|&&b| b.is_ascii_graphic() && b != b':').count();
                name > 0 && text.get(name) == Some(&b':')
            }
        };
        if !fine {
            return false;
        }
        first = false;
    }
    true
}

fn unquoted(value: &[u8]) -> Vec<u8> {
    let mut quoted = false;
    value
        .iter()
        .copied()
        .filter(|&b| {
            quoted ^= b == b'"';
            !quoted
        })
        .collect()
}

/// The fields of a header with their continuation lines.
pub(crate) fn fields(head: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut at = 0;
    std::iter::from_fn(move || {
        if at >= head.len() {
            return None;
        }
        let start = at;
        loop {
            at = memchr::memchr(b'\n', &head[at..]).map_or(head.len(), |i| at + i + 1);
            if !matches!(head.get(at), Some(b' ' | b'\t')) {
                return Some(&head[start..at]);
            }
        }
    })
}

fn encoding(value: &[u8]) -> Encoding {
    let text: Vec<u8> = uncomment(value)
        .into_iter()
        .filter(|b| b.is_ascii_alphanumeric())
        .map(|b| b.to_ascii_lowercase())
        .collect();
    match &text[..] {
        b"" | b"7bit" | b"8bit" | b"binary" => Encoding::Identity,
        b"base64" => Encoding::Base64,
        b"quotedprintable" => Encoding::QuotedPrintable,
        b"xuuencode" | b"uuencode" | b"xuue" | b"uue" => Encoding::Uuencode,
        // Parameters or several words behind a known one.
        text if text.starts_with(b"base64") => Encoding::Base64,
        text if text.starts_with(b"quotedprintable") => Encoding::QuotedPrintable,
        _ => Encoding::Unknown,
    }
}

fn uncomment(value: &[u8]) -> Vec<u8> {
    let mut depth = 0u32;
    let mut out = Vec::new();
    for &b in value {
        match b {
            b'(' => depth += 1,
            b')' if depth > 0 => depth -= 1,
            _ if depth == 0 => out.push(b),
            _ => {}
        }
    }
    out
}

fn add_boundary(boundaries: &mut Vec<Vec<u8>>, boundary: &[u8]) {
    // Readers in C end at a NUL, others leave it out.
    if let Some(nul) = memchr::memchr(0, boundary) {
        add_boundary(boundaries, &boundary[..nul]);
        let without: Vec<u8> = boundary.iter().copied().filter(|&b| b != 0).collect();
        add_boundary(boundaries, &without);
    }
    let boundary = boundary.trim_ascii_end();
    if !boundary.is_empty()
        && !boundaries.iter().any(|b| b == boundary)
        && boundaries.len() <= BOUNDARIES_MAX
    {
        boundaries.push(boundary.to_vec());
    }
}

/// Every parameter `boundary`, also in RFC 2231 pieces, quoted or not, wherever it stands in the value.
fn raw_boundaries(value: &[u8], boundaries: &mut Vec<Vec<u8>>) {
    let lower = value.to_ascii_lowercase();
    let mut pieces = Vec::new();
    let mut at = 0;
    while let Some(found) = memchr::memmem::find(&lower[at..], b"boundary") {
        at += found + 8;
        let mut i = at;
        let mut piece = false;
        while matches!(value.get(i), Some(b'*' | b'0'..=b'9')) {
            piece = true;
            i += 1;
        }
        while value.get(i).is_some_and(u8::is_ascii_whitespace) {
            i += 1;
        }
        if value.get(i) != Some(&b'=') {
            continue;
        }
        i += 1;
        while value.get(i).is_some_and(u8::is_ascii_whitespace) {
            i += 1;
        }
        let rest = &value[i..];
        let text = if let Some(quoted) = rest.strip_prefix(b"\"") {
            let mut text = Vec::new();
            let mut bytes = quoted.iter().copied();
            while let Some(b) = bytes.next() {
                match b {
                    b'"' => break,
                    b'\\' => text.extend(bytes.next()),
                    b'\r' | b'\n' => {}
                    b => text.push(b),
                }
            }
            text
        } else {
            let end = rest
                .iter()
                .position(|&b| b == b';' || b.is_ascii_whitespace())
                .unwrap_or(rest.len());
            rest[..end].to_vec()
        };
        if piece {
            pieces.extend_from_slice(&text);
        } else {
            add_boundary(boundaries, &text);
        }
    }
    add_boundary(boundaries, &pieces);
}

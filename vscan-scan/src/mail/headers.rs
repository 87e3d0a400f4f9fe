//! The MIME fields of a header, all of them: of a repeated field every value counts.

use crate::object::Walk;
use crate::report::Reason;
use mail_parser::{HeaderValue, MessageParser};
use std::sync::LazyLock;

/// A media type, in lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Type {
    pub(crate) main: String,
    pub(crate) sub: String,
    pub(crate) utf16: bool,
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
    encodings: Vec<Encoding>,
    name: Option<String>,
}

/// MIME fields looked at in one header; more of them are counted as an exceeded limit.
const FIELDS_MAX: usize = 32;

/// Boundaries tried for one body; each costs a pass over it.
const BOUNDARIES_MAX: usize = 8;

static PARSER: LazyLock<MessageParser> = LazyLock::new(|| MessageParser::new().with_mime_headers());

/// Splits at the first blank line. Where the first line is no field there is no header.
pub(crate) fn split(data: &[u8]) -> (&[u8], &[u8]) {
    let mut at = 0;
    while at < data.len() {
        let end = memchr::memchr(b'\n', &data[at..]).map_or(data.len(), |i| at + i + 1);
        let line = data[at..end].trim_ascii_end();
        if line.is_empty() {
            return (&data[..at], &data[end..]);
        }
        if at == 0
            && memchr::memchr(b':', line).is_none()
            && !line.starts_with(b"From ")
            && !line.starts_with(b">From ")
        {
            return (&data[..0], data);
        }
        at = end;
    }
    (data, &data[data.len()..])
}

impl Headers {
    /// Reads the MIME fields within the limits, which are noted when they are exceeded.
    pub(crate) fn parse(walk: &mut Walk<'_>, mut head: &[u8]) -> Self {
        let mut headers = Self::default();
        if head.len() > walk.limits.header_bytes as usize {
            walk.note(Reason::Headers, &format!("a header of {} bytes", head.len()));
            head = &head[..walk.limits.header_bytes as usize];
        }
        let (mut count, mut mime) = (0u32, 0);
        for field in fields(head) {
            count += 1;
            if count > walk.limits.headers {
                walk.note(
                    Reason::Headers,
                    &format!("more than {} header fields", walk.limits.headers),
                );
                break;
            }
            let Some(colon) = memchr::memchr(b':', field) else { continue };
            let name = field[..colon].trim_ascii();
            let known = ["content-type", "content-transfer-encoding", "content-disposition"];
            let Some(which) = known.iter().position(|k| name.eq_ignore_ascii_case(k.as_bytes()))
            else {
                continue;
            };
            mime += 1;
            if mime > FIELDS_MAX {
                walk.note(
                    Reason::Headers,
                    &format!("more than {FIELDS_MAX} MIME fields in one header"),
                );
                break;
            }
            headers.take(which, &field[colon + 1..]);
        }
        if headers.boundaries.len() > BOUNDARIES_MAX {
            walk.note(
                Reason::Headers,
                &format!("more than {BOUNDARIES_MAX} boundaries of one body"),
            );
            headers.boundaries.truncate(BOUNDARIES_MAX);
        }
        headers
    }

    fn take(&mut self, which: usize, value: &[u8]) {
        match which {
            1 => {
                let encoding = encoding(value);
                if !self.encodings.contains(&encoding) {
                    self.encodings.push(encoding);
                }
                return;
            }
            0 => raw_boundaries(value, &mut self.boundaries),
            _ => {}
        }
        let mut field = b"Content-Type:".to_vec();
        field.extend_from_slice(value);
        field.extend_from_slice(b"\r\n\r\n");
        let Some(message) = PARSER.parse_headers(&field) else { return };
        for header in message.parts.first().map(|p| &p.headers[..]).unwrap_or_default() {
            let HeaderValue::ContentType(parsed) = &header.value else { continue };
            for name in ["filename", "name"] {
                if let Some(value) = parsed.attribute(name).filter(|v| !v.is_empty()) {
                    // The disposition's name is the one that mail readers save under.
                    if which == 2 || self.name.is_none() {
                        self.name = Some(value.to_owned());
                    }
                }
            }
            if which == 0 {
                for attribute in parsed.attributes().unwrap_or_default() {
                    if attribute.name.eq_ignore_ascii_case("boundary") {
                        add_boundary(&mut self.boundaries, attribute.value.as_bytes());
                    }
                }
                self.types.push(Type {
                    main: parsed.ctype().to_ascii_lowercase(),
                    sub: parsed.subtype().unwrap_or_default().to_ascii_lowercase(),
                    utf16: parsed.attribute("charset").is_some_and(|c| {
                        c.get(..6).is_some_and(|c| c.eq_ignore_ascii_case("utf-16"))
                    }),
                });
            }
        }
    }

    /// The encodings to try, at least one.
    pub(crate) fn encodings(&self) -> Vec<Encoding> {
        if self.encodings.is_empty() { vec![Encoding::Identity] } else { self.encodings.clone() }
    }

    pub(crate) fn is_utf16(&self) -> bool {
        self.types.iter().any(|t| t.utf16)
    }

    /// The file name, else a word for the type.
    pub(crate) fn path_name(&self) -> &str {
        match (&self.name, self.types.first()) {
            (Some(name), _) => name,
            (None, Some(t)) if t.main == "message" => "message",
            (None, Some(t)) if t.main == "multipart" => "multipart",
            (None, Some(t)) if t.sub == "html" => "html",
            (None, Some(t)) if t.main != "text" => "attachment",
            (None, _) => "text",
        }
    }
}

/// The fields of a header with their continuation lines.
fn fields(head: &[u8]) -> impl Iterator<Item = &[u8]> {
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

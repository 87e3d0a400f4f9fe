//! Internet messages (RFC 5322) and MIME (RFC 2045 to 2047): every leaf decoded and scanned by itself.
//!
//! The tree is split here, within the limits and by byte ranges, because mail readers disagree on
//! malformed messages and each way of reading has to be taken: several boundaries, several transfer
//! encodings, no closing boundary, text where a boundary was announced. The values of the MIME fields are
//! parsed by the crate mail-parser. What no structure covers is searched for encoded sections
//! ([`sweep`]).

pub(crate) mod cms;
pub(crate) mod encoding;
pub(crate) mod headers;
pub(crate) mod pgp;
pub(crate) mod repair;
pub(crate) mod sweep;
pub(crate) mod uu;

use crate::object::{Place, Walk};
use crate::report::Reason;
use crate::sniff::{self, Kind};
use headers::{Encoding, Headers};
use std::borrow::Cow;

/// Opens a message.
pub(crate) fn message(walk: &mut Walk<'_>, data: &[u8]) {
    // A message whose lines end in CR alone is read by some clients; nothing else would be found in it.
    if memchr::memchr(b'\n', data).is_none() && memchr::memchr(b'\r', data).is_some() {
        let lines: Vec<u8> = data.iter().map(|&b| if b == b'\r' { b'\n' } else { b }).collect();
        return entity(walk, &lines, false);
    }
    entity(walk, data, false);
}

/// Opens a file of messages, each of which begins with a line `From `.
pub(crate) fn mbox(walk: &mut Walk<'_>, data: &[u8]) {
    let mut start = 0;
    while start < data.len() && !walk.stopped() {
        let end = memchr::memmem::find(&data[start + 1..], b"\nFrom ")
            .map_or(data.len(), |i| start + 1 + i + 1);
        let one = &data[start..end];
        let body = memchr::memchr(b'\n', one).map_or(&one[..0], |i| &one[i + 1..]);
        walk.part_as("message", body, Kind::Message, Place::Mail);
        start = end;
    }
}

/// A message or a part of one: header, blank line, body. `digest`: a part without type is a message (RFC 2046 section 5.1.5).
fn entity(walk: &mut Walk<'_>, data: &[u8], digest: bool) {
    let (head, body) = headers::split(data);
    let headers = Headers::parse(walk, head);
    let multipart = headers.types.iter().any(|t| t.main == "multipart");
    if multipart && multiparts(walk, &headers, body) {
        return;
    }
    if multipart {
        walk.within(headers.path_name(), |walk| undelimited(walk, &headers, body));
        return;
    }
    leaf(walk, &headers, body, digest);
}

/// Opens a multipart body by every boundary that it really has. False: it has none.
fn multiparts(walk: &mut Walk<'_>, headers: &Headers, body: &[u8]) -> bool {
    let digest = headers.types.iter().any(|t| t.sub == "digest");
    let mut found = false;
    let mut boundaries: Vec<Cow<'_, [u8]>> =
        headers.boundaries.iter().map(|b| Cow::Borrowed(&b[..])).collect();
    boundaries.extend(guessed_boundary(body, &headers.boundaries).map(Cow::Borrowed));
    for boundary in boundaries {
        if walk.stopped() {
            return true;
        }
        if memchr::memmem::find(body, &boundary).is_none() {
            continue;
        }
        // Exact delimiter lines first; readers that compare only the beginning of the line find the others.
        for exact in [true, false] {
            let segments =
                Segments { data: body, at: 0, boundary: &boundary, exact, state: Before::Preamble };
            let mut delimited = false;
            for (before, segment) in segments {
                if walk.stopped() {
                    return true;
                }
                match before {
                    Before::Preamble if segment.len() == body.len() => {}
                    Before::Preamble | Before::Epilogue => sweep::text(walk, segment),
                    Before::Part => {
                        delimited = true;
                        walk.deeper(|walk| entity(walk, segment, digest));
                    }
                }
            }
            found |= delimited;
            if delimited {
                break;
            }
        }
    }
    found
}

/// A boundary that no field announces: the first line of the form `--x` with a MIME field in the next line.
fn guessed_boundary<'a>(body: &'a [u8], known: &[Vec<u8>]) -> Option<&'a [u8]> {
    let mut at = 0;
    for line in body.split_inclusive(|&b| b == b'\n').take(64) {
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

/// What lies before the next delimiter line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Before {
    Preamble,
    Part,
    Epilogue,
}

/// The segments of a multipart body (RFC 2046 section 5.1.1). Delimiters after the closing one count too.
struct Segments<'a> {
    data: &'a [u8],
    at: usize,
    boundary: &'a [u8],
    exact: bool,
    state: Before,
}

impl<'a> Iterator for Segments<'a> {
    type Item = (Before, &'a [u8]);

    fn next(&mut self) -> Option<(Before, &'a [u8])> {
        if self.at > self.data.len() {
            return None;
        }
        let start = self.at;
        let before = self.state;
        let mut from = start;
        loop {
            // A delimiter begins a line.
            let line = if from == start && self.data[from..].starts_with(b"--") {
                from
            } else {
                match memchr::memchr(b'\n', &self.data[from..]) {
                    Some(i) if self.data[from + i + 1..].starts_with(b"--") => from + i + 1,
                    Some(i) => {
                        from += i + 1;
                        continue;
                    }
                    None => {
                        self.at = self.data.len() + 1;
                        return Some((before, &self.data[start..]));
                    }
                }
            };
            let rest = &self.data[line + 2..];
            let end = memchr::memchr(b'\n', rest).map_or(rest.len(), |i| i + 1);
            if let Some(tail) = rest[..end].strip_prefix(self.boundary) {
                let tail = tail.trim_ascii_end();
                if !self.exact || tail.is_empty() || tail == b"--" {
                    self.state =
                        if tail.starts_with(b"--") { Before::Epilogue } else { Before::Part };
                    self.at = line + 2 + end;
                    if self.at >= self.data.len() {
                        self.at = self.data.len() + 1;
                    }
                    let segment = &self.data[start..line.max(start)];
                    // The line end before the delimiter belongs to the delimiter.
                    let segment = segment.strip_suffix(b"\n").unwrap_or(segment);
                    return Some((before, segment.strip_suffix(b"\r").unwrap_or(segment)));
                }
            }
            from = line + 1;
        }
    }
}

/// A multipart body without its boundary: as text, and by every encoding that might be meant.
fn undelimited(walk: &mut Walk<'_>, headers: &Headers, body: &[u8]) {
    for encoding in headers.encodings() {
        if matches!(encoding, Encoding::Base64 | Encoding::QuotedPrintable) {
            let decoded = encoding::decode(walk, encoding, body);
            if !decoded.is_empty() {
                walk.part_as("decoded", &decoded, Kind::Message, Place::Mail);
            }
        }
    }
    walk.part("body", body, Place::Mail);
    sweep::quoted_printable(walk, body);
}

/// A leaf: decoded in every way its header offers, then scanned; attached messages are opened.
fn leaf(walk: &mut Walk<'_>, headers: &Headers, body: &[u8], digest: bool) {
    let attached = digest && headers.types.is_empty()
        || headers
            .types
            .iter()
            .any(|t| t.main == "message" && matches!(&*t.sub, "rfc822" | "global" | "news"));
    if headers.types.iter().any(|t| t.main == "message" && t.sub == "partial") {
        walk.within(headers.path_name(), |walk| {
            walk.note(Reason::Unsupported, "a fragment of a message (message/partial)");
        });
    }
    for encoding in headers.encodings() {
        if walk.stopped() {
            return;
        }
        let decoded =
            walk.within(headers.path_name(), |walk| encoding::decode(walk, encoding, body));
        if attached {
            walk.part_as(headers.path_name(), &decoded, Kind::Message, Place::Mail);
            continue;
        }
        let kind = sniff::sniff(&decoded);
        walk.part_as(headers.path_name(), &decoded, kind, Place::Mail);
        if headers.is_utf16() && kind == Kind::Data {
            let text = encoding::narrow(&decoded, false);
            walk.part(headers.path_name(), &text, Place::Mail);
        }
        // The label or the bytes may lie: what is called text is read as text too.
        if encoding == Encoding::Unknown
            || headers.types.iter().any(|t| t.main == "text") && !kind.is_text()
        {
            sweep::text(walk, &decoded);
        }
    }
}

#[cfg(test)]
mod tests;

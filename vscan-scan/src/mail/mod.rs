//! Internet messages (RFC 5322) and MIME (RFC 2045 to 2047): every leaf decoded and scanned by itself.
//!
//! The tree is split here, within the limits and by byte ranges, because mail readers disagree on
//! malformed messages and each way of reading has to be taken: several boundaries, several transfer
//! encodings, no closing boundary, text where a boundary was announced. The values of the MIME fields are
//! read by our own lenient parser and by the crate mail-parser; all that either sees is tried. What no
//! structure covers is searched for encoded sections ([`sweep`]).
//!
//! Each leaf carries how it lies in its message ([`Portion`]), and whether all readers agree on that: only then
//! is it edited ([`repair`]).

mod binhex;
pub(crate) mod cms;
pub(crate) mod encoding;
pub(crate) mod facts;
pub(crate) mod headers;
mod multipart;
pub(crate) mod passwords;
pub(crate) mod pgp;
pub(crate) mod repair;
pub(crate) mod sweep;
pub(crate) mod tnef;
pub(crate) mod uu;
mod words;
mod yenc;

use crate::object::{About, Origin, Place, Walk};
use crate::report::Reason;
use crate::sniff::{self, Kind};
use encoding::Decoded;
use headers::{Encoding, Headers, View};
use multipart::What;
use std::borrow::Cow;
use std::ops::Range;
use std::rc::Rc;
use sweep::Lies;

/// How an entity lies in a message. All places are in the bytes of that message.
#[derive(Clone, Debug)]
pub(crate) struct Portion {
    /// Header, blank line and body.
    pub(crate) segment: Range<usize>,
    /// Where the delimiter line before it begins, with the line end before that. None: it is the message.
    pub(crate) delimiter: Option<usize>,
    /// The header.
    pub(crate) head: Range<usize>,
    /// The body, as it is encoded.
    pub(crate) body: Range<usize>,
    /// The encoding of the body, where all readers agree on header, body and encoding.
    pub(crate) encoding: Option<Encoding>,
    /// The multipart that it belongs to, by the number that the walk gave it.
    pub(crate) multipart: usize,
    /// All readers agree on where the entity begins and ends.
    pub(crate) sure: bool,
    /// All readers agree on where its header ends and what its fields are.
    pub(crate) regular: bool,
    /// It is inside a signature, or is one.
    pub(crate) signed: bool,
}

/// An entity on its way through the tree.
#[derive(Clone, Debug)]
struct Entity<'a> {
    /// The bytes of the message that it belongs to.
    whole: &'a [u8],
    segment: Range<usize>,
    delimiter: Option<usize>,
    multipart: usize,
    sure: bool,
    signed: bool,
    /// A part without type is a message (RFC 2046 section 5.1.5).
    digest: bool,
    /// Where readers disagree on this entity: the innermost one around it on which they agree.
    around: Option<Rc<Portion>>,
}

/// Opens a message.
pub(crate) fn message(walk: &mut Walk<'_>, data: &[u8]) {
    // A message whose lines end in CR alone is read by some clients; nothing else would be found in it.
    let lines;
    let (whole, sure) =
        if memchr::memchr(b'\n', data).is_none() && memchr::memchr(b'\r', data).is_some() {
            lines = headers::lines_of(data);
            (&lines[..], false)
        } else {
            (data, true)
        };
    let segment = 0..whole.len();
    let (delimiter, multipart, signed, digest, around) = (None, 0, false, false, None);
    entity(walk, &Entity { whole, segment, delimiter, multipart, sure, signed, digest, around });
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

/// A message or a part of one: header, blank line, body, told apart in every way that fits.
fn entity(walk: &mut Walk<'_>, entity: &Entity<'_>) {
    let views = headers::views(&entity.whole[entity.segment.clone()], walk.limits);
    let single = views.len() == 1;
    for view in views {
        if walk.stopped() {
            return;
        }
        seen(walk, entity, &view, single);
    }
}

/// An entity in one view of its header.
fn seen(walk: &mut Walk<'_>, entity: &Entity<'_>, view: &View<'_>, single: bool) {
    let mut headers = Headers::parse(walk.limits, &view.head);
    let start = entity.segment.start;
    let head = start..start + view.head_end;
    let body = start + view.body..entity.segment.end;
    // A header that nothing follows has no blank line: whether there is a body is not sure.
    headers.regular &= single && view.head_end < view.body;
    let portion = Portion {
        segment: entity.segment.clone(),
        delimiter: entity.delimiter,
        head,
        body,
        encoding: None,
        multipart: entity.multipart,
        sure: entity.sure,
        regular: headers.regular,
        signed: entity.signed,
    };
    let mut opened = false;
    if headers.is("multipart", "") {
        opened = multiparts(walk, entity, &headers, &portion);
        for (reason, detail) in headers.notes.iter().filter(|_| opened) {
            walk.note(*reason, detail);
        }
        let identity = headers.encodings().iter().all(|e| *e == Encoding::Identity);
        if !opened || !identity {
            undelimited(walk, entity, &headers, &portion);
            opened = true;
        }
    }
    if !opened || headers.types.iter().any(|t| t.main != "multipart") {
        leaf(walk, entity, &headers, &portion);
    }
}

/// Opens a multipart body by every boundary that it really has. False: it has none.
fn multiparts(
    walk: &mut Walk<'_>,
    entity: &Entity<'_>,
    headers: &Headers,
    portion: &Portion,
) -> bool {
    let body = &entity.whole[portion.body.clone()];
    let mut boundaries: Vec<Cow<'_, [u8]>> =
        headers.boundaries.iter().map(|b| Cow::Borrowed(&b[..])).collect();
    boundaries.extend(multipart::guessed(body, &headers.boundaries).map(Cow::Borrowed));
    let sure = headers.regular && boundaries.len() == 1 && headers.boundaries.len() == 1;
    let mut found = false;
    for boundary in boundaries {
        if walk.stopped() {
            return true;
        }
        found |= delimited(walk, entity, headers, portion, &boundary, sure);
    }
    found
}

/// What looks like MIME in a text without being announced is read as MIME, besides as text.
fn guess(walk: &mut Walk<'_>, text: &[u8]) {
    let Some(boundary) = multipart::guessed(text, &[]) else { return };
    let entity = Entity {
        whole: text,
        segment: 0..text.len(),
        delimiter: None,
        multipart: 0,
        sure: false,
        signed: false,
        digest: false,
        around: None,
    };
    let portion = Portion {
        segment: 0..text.len(),
        delimiter: None,
        head: 0..0,
        body: 0..text.len(),
        encoding: None,
        multipart: 0,
        sure: false,
        regular: false,
        signed: false,
    };
    delimited(walk, &entity, &Headers::default(), &portion, boundary, false);
}

/// Opens the parts between the delimiter lines of one boundary: the exact lines, and where they differ also
/// the lines that lenient readers take. False: there are none.
fn delimited(
    walk: &mut Walk<'_>,
    entity: &Entity<'_>,
    headers: &Headers,
    portion: &Portion,
    boundary: &[u8],
    sure: bool,
) -> bool {
    let body = &entity.whole[portion.body.clone()];
    let most = walk.limits.members as usize + 2;
    let delimiters = multipart::delimiters(body, boundary, most);
    let head = &entity.whole[portion.head.clone()];
    let crlf = memchr::memmem::find(head, b"\r\n").is_some();
    let sure = sure && entity.sure && delimiters.sure(crlf);
    let mut found = false;
    let loose = (delimiters.exact != delimiters.loose).then_some(&delimiters.loose);
    for view in [Some(&delimiters.exact), loose].into_iter().flatten() {
        let segments = multipart::segments(view, body.len());
        let parts = segments.iter().filter(|s| s.what == What::Part).count();
        if parts == 0 {
            continue;
        }
        found = true;
        let number = walk.multipart(parts);
        let around = match (sure, portion.sure && portion.delimiter.is_some()) {
            (true, _) => None,
            (false, true) => Some(Rc::new(portion.clone())),
            (false, false) => entity.around.clone(),
        };
        for segment in segments {
            if walk.stopped() {
                return true;
            }
            let start = portion.body.start;
            let range = start + segment.range.start..start + segment.range.end;
            match segment.what {
                What::Preamble | What::Epilogue => {
                    let origin = if sure && !portion.signed {
                        Lies::Within(range.clone())
                    } else {
                        Lies::Anywhere
                    };
                    sweep::text(walk, &entity.whole[range.clone()], &origin);
                    sweep::quoted_printable(walk, &entity.whole[range]);
                }
                What::Part => {
                    let inner = Entity {
                        whole: entity.whole,
                        segment: range,
                        delimiter: Some(start + segment.delimiter),
                        multipart: number,
                        sure,
                        signed: entity.signed || headers.is("multipart", "signed"),
                        digest: headers.is("multipart", "digest"),
                        around: around.clone(),
                    };
                    walk.deeper(|walk| self::entity(walk, &inner));
                }
            }
        }
    }
    found
}

/// A multipart body without its boundary, or called encoded: as text, and by every encoding that might be meant.
fn undelimited(walk: &mut Walk<'_>, entity: &Entity<'_>, headers: &Headers, portion: &Portion) {
    let body = &entity.whole[portion.body.clone()];
    let about = about(entity, headers, portion.clone());
    walk.part_with("body", body, sniff::sniff(body), Place::Mail, about, &mut |walk| {
        sweep::quoted_printable(walk, body);
        for encoding in headers.encodings() {
            if matches!(encoding, Encoding::Base64 | Encoding::QuotedPrintable) {
                let decoded = encoding::decode(encoding, body);
                if !decoded.data.is_empty() {
                    walk.part_as("decoded", &decoded.data, Kind::Message, Place::Mail);
                }
            }
        }
    });
}

/// A leaf: decoded in every way its header offers, then scanned; attached messages are opened.
fn leaf(walk: &mut Walk<'_>, entity: &Entity<'_>, headers: &Headers, portion: &Portion) {
    let attached = entity.digest && headers.types.is_empty()
        || headers
            .types
            .iter()
            .any(|t| t.main == "message" && matches!(&*t.sub, "rfc822" | "global" | "news"));
    let body = &entity.whole[portion.body.clone()];
    let encodings = headers.encodings();
    for &encoding in &encodings {
        if walk.stopped() {
            return;
        }
        let Decoded { data, note, others } = encoding::decode(encoding, body);
        let sniffed = sniff::sniff(&data);
        let kind = if attached { Kind::Message } else { sniffed };
        let certain = headers.regular
            && encodings.len() == 1
            && others.is_empty()
            && note.is_none()
            && encoding != Encoding::Unknown;
        let signed = kind == Kind::Cms || pgp::is_signed(&data);
        let portion = Portion {
            encoding: certain.then_some(encoding),
            signed: portion.signed || signed,
            ..portion.clone()
        };
        let mut about = about(entity, headers, portion);
        let malformed = note.is_some();
        about.notes.extend(note.map(|detail| (Reason::Malformed, detail.to_owned())));
        if headers.is("message", "partial") {
            about.notes.push((Reason::Partial, "a fragment of a message".to_owned()));
        }
        if headers.is("message", "external-body") {
            about.notes.push((Reason::External, "the content is elsewhere".to_owned()));
        }
        let name = headers.path_name();
        walk.part_with(name, &data, kind, Place::Mail, about, &mut |walk| {
            for other in &others {
                walk.part(name, other, Place::Mail);
            }
            if attached && sniffed != Kind::Message && !sniffed.is_text() {
                walk.part(name, &data, Place::Mail);
            }
            charsets(walk, headers, name, &data);
            if kind.is_text() {
                guess(walk, &data);
            }
            // The label or the bytes may lie: what is called text is read as text too.
            if encoding == Encoding::Unknown || headers.is("text", "") && !kind.is_text() {
                sweep::text(walk, &data, &Lies::Here);
            }
            if encoding == Encoding::Unknown {
                sweep::quoted_printable(walk, &data);
            }
            if malformed {
                sweep::text(walk, body, &Lies::Anywhere);
            } else if encoding == Encoding::Base64 {
                sweep::sections(walk, body, Place::Mail, &Lies::Anywhere);
            }
        });
    }
}

/// Text in character sets that do not look like text: patterns are written for plain text.
fn charsets(walk: &mut Walk<'_>, headers: &Headers, name: &str, data: &[u8]) {
    if headers.has_charset("utf-16") || headers.has_charset("utf-32") {
        for big_endian in [false, true] {
            let narrow = if headers.has_charset("utf-32") {
                encoding::narrow32(data, big_endian)
            } else {
                encoding::narrow(data, big_endian)
            };
            // Read the wrong way round, plain text has hardly any ASCII.
            if narrow.iter().filter(|b| b.is_ascii()).count() * 2 > narrow.len() {
                walk.part(name, &narrow, Place::Mail);
            }
        }
    }
    if headers.has_charset("utf-7") || headers.has_charset("unicode-1-1-utf-7") {
        walk.part(name, words::decode(b"utf-7", data).as_bytes(), Place::Mail);
    }
}

fn about(entity: &Entity<'_>, headers: &Headers, portion: Portion) -> About {
    // A repair falls back to what is sure.
    let portion = match &entity.around {
        Some(around) if !portion.sure => {
            let signed = around.signed || portion.signed;
            Portion { signed, encoding: None, ..Portion::clone(around) }
        }
        _ => portion,
    };
    About {
        declared: headers.declared(),
        other_names: headers.names.iter().skip(1).cloned().collect(),
        origin: Origin::Portion(portion),
        notes: headers.notes.clone(),
    }
}

#[cfg(test)]
mod evasions;
#[cfg(test)]
mod tests;

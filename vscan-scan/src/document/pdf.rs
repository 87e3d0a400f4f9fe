//! PDF (ISO 32000-1): every stream that lies in the file, whether its tables lead to it or not, embedded files and
//! object streams among them; JavaScript in strings.
//!
//! Viewers rebuild files whose tables are broken by searching for objects, each a little differently. Here nothing
//! else is done: a stream is what lies between `stream` and `endstream`, and its dictionary what lies before it.

use super::pdf_filter::{FILTERS_MAX, Filter, Filtered, undo};
use crate::archive::caught;
use crate::bytes::clipped;
use crate::object::{Place, Walk};
use crate::report::Reason;
use lopdf::{Document, LoadOptions};
use memchr::memmem;
use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::io::Read;

/// Bytes of an object that another one refers to; those of real files have below 2 KiB.
const OBJECT_MAX: usize = 64 * 1024;
/// Bytes of a line at whose end a comment is looked for before `stream`.
const LINE_MAX: usize = 1024;
/// Pictures are looked at up to here: their pixels carry no file.
const PICTURE_MAX: u64 = 64 * 1024;
/// Dictionaries of embedded files that are looked at.
const MENTIONS_MAX: usize = 10_000;
/// Bytes of such a dictionary, which has a few references in it.
const MENTION_MAX: usize = 4096;
/// Passwords that are tried on one file, which is parsed anew for each.
const PASSWORDS_MAX: usize = 16;
/// Objects whose place is kept: a PDF of this many has a gigabyte.
const OBJECTS_MAX: usize = 1 << 20;

pub(crate) fn open(walk: &mut Walk<'_>, data: &[u8]) {
    let mut file = Pdf { data, objects: objects(data), embedded: HashSet::new() };
    if file.objects.len() > OBJECTS_MAX {
        walk.note(Reason::Members, "too many objects in a PDF");
    }
    file.mentions(walk, &outside_streams(data));
    if file.encrypted() {
        return file.encrypted_streams(walk);
    }
    file.streams(walk);
}

struct Pdf<'a> {
    data: &'a [u8],
    /// Where the content of each object begins.
    objects: HashMap<u32, usize>,
    /// Objects that some dictionary names as embedded files.
    embedded: HashSet<u32>,
}

struct Stream<'a> {
    number: u32,
    dictionary: Cow<'a, [u8]>,
    content: &'a [u8],
}

impl<'a> Pdf<'a> {
    fn streams(&mut self, walk: &mut Walk<'_>) {
        let mut pictures = Vec::new();
        let mut at = 0;
        while let Some(stream) = self.next(&mut at) {
            if walk.stopped() {
                return;
            }
            if is_picture(&stream.dictionary) {
                pictures.push(stream);
            } else {
                self.stream(walk, &stream);
            }
        }
        // What is called a picture, but is an embedded file as well, is read as one.
        for picture in pictures {
            if walk.stopped() {
                return;
            }
            if self.embedded.contains(&picture.number) {
                self.stream(walk, &picture);
            } else {
                self.picture(walk, &picture);
            }
        }
    }

    /// Streams but those that hold the file together.
    fn count(&self) -> usize {
        let mut at = 0;
        std::iter::from_fn(|| self.next(&mut at))
            .filter(|stream| {
                let kind = value(&stream.dictionary, b"Type").unwrap_or_default();
                !kind.starts_with(b"/ObjStm") && !kind.starts_with(b"/XRef")
            })
            .count()
    }

    fn stream(&mut self, walk: &mut Walk<'_>, stream: &Stream<'_>) {
        let name = format!("object-{}", stream.number);
        let filters = self.filters(&stream.dictionary);
        if filters.len() > FILTERS_MAX {
            let what = format!("a PDF stream with more than {FILTERS_MAX} filters");
            walk.within(&name, |walk| walk.note(Reason::Depth, &what));
        }
        // A comment may hide a filter, and a string may look like a comment: both ways are taken.
        let other = uncommented(&stream.dictionary).map(|plain| self.filters(&plain));
        for filters in
            [Some(&filters), other.as_ref().filter(|o| **o != filters)].into_iter().flatten()
        {
            self.decode(walk, stream, &name, filters);
        }
    }

    fn decode(&mut self, walk: &mut Walk<'_>, stream: &Stream<'_>, name: &str, filters: &[Filter]) {
        let encoded = stream.content.len() as u64;
        match undo(stream.content, filters) {
            // Object streams hold dictionaries with scripts and the names of embedded files.
            Filtered::Reader(mut reader) if value(&stream.dictionary, b"ObjStm").is_some() => {
                let objects = walk.decoded_too(name, encoded, &mut reader);
                self.mentions(walk, &objects);
            }
            Filtered::Reader(mut reader) | Filtered::Picture(mut reader) => {
                walk.decoded(name, encoded, &mut reader);
            }
            Filtered::Encrypted => walk.within(name, |walk| {
                walk.note(Reason::Encrypted, "encrypted PDF stream");
            }),
        }
    }

    fn picture(&self, walk: &mut Walk<'_>, stream: &Stream<'_>) {
        let (Filtered::Reader(reader) | Filtered::Picture(reader)) =
            undo(stream.content, &self.filters(&stream.dictionary))
        else {
            return;
        };
        let mut pixels = Vec::new();
        // These readers do not fail.
        let _ = reader.take(PICTURE_MAX).read_to_end(&mut pixels);
        if !pixels.is_empty() {
            walk.part(&format!("object-{}", stream.number), &pixels, Place::File);
        }
    }

    /// The stream whose keyword comes next at or after `at`, which is set behind it.
    fn next(&self, at: &mut usize) -> Option<Stream<'a>> {
        let floor = *at;
        loop {
            let found = *at + memmem::find(self.data.get(*at..)?, b"stream")?;
            *at = found + 6;
            let before = trim_end(&self.data[..found]);
            if !before.ends_with(b">>") {
                continue;
            }
            // The object begins at the last `obj` before it, behind the last stream.
            let from = memmem::rfind(before.get(floor..).unwrap_or_default(), b"obj")
                .map_or(floor, |i| floor + i + 3);
            let dictionary = plain_names(&before[from.min(before.len())..]);
            let begin = match self.data.get(*at..)? {
                [b'\r', b'\n', ..] => 2,
                [b'\r' | b'\n', ..] => 1,
                _ => 0,
            } + *at;
            let content = self.data.get(begin..)?;
            let content = &content[..self.end(content, &dictionary)];
            *at = begin + content.len();
            return Some(Stream { number: number_before(&self.data[..from]), dictionary, content });
        }
    }

    /// Where a stream ends: by its length, if `endstream` follows there; else at the next `endstream`.
    fn end(&self, content: &[u8], dictionary: &[u8]) -> usize {
        let told = value(dictionary, b"Length").and_then(|v| self.number(v)).filter(|&len| {
            content.get(len as usize..).is_some_and(|rest| {
                rest[..rest.len().min(32)].trim_ascii_start().starts_with(b"endstream")
            })
        });
        match told {
            Some(len) => len as usize,
            None => memmem::find(content, b"endstream")
                .or_else(|| memmem::find(content, b"endobj"))
                .unwrap_or(content.len()),
        }
    }

    /// A number, or the object that holds it.
    fn number(&self, value: &[u8]) -> Option<u32> {
        let (number, rest) = integer(value)?;
        match reference(value) {
            Some(object) => integer(self.object(object)?).map(|(n, _)| n),
            None => Some(number).filter(|_| !rest.starts_with(b".")),
        }
    }

    fn object(&self, number: u32) -> Option<&'a [u8]> {
        let at = *self.objects.get(&number)?;
        Some(clipped(trim(&self.data[at..]), 0, OBJECT_MAX))
    }

    /// A value, or that of the object to which it refers.
    fn resolved<'v>(&self, value: &'v [u8]) -> &'v [u8]
    where
        'a: 'v,
    {
        reference(value).and_then(|object| self.object(object)).unwrap_or(value)
    }

    fn filters(&self, dictionary: &[u8]) -> Vec<Filter> {
        let Some(names) = value(dictionary, b"Filter").or_else(|| value(dictionary, b"F")) else {
            return Vec::new();
        };
        let names = plain_names(extent(self.resolved(names)));
        let parameters = value(dictionary, b"DecodeParms").or_else(|| value(dictionary, b"DP"));
        let parameters =
            parameters.map(|p| plain_names(extent(self.resolved(p)))).unwrap_or_default();
        // One dictionary, or an array with one (or null) for each filter.
        let each = dictionaries(&parameters);
        let names = names.split(|&b| b == b'/').skip(1).take(FILTERS_MAX + 1);
        names
            .enumerate()
            .map(|(i, name)| {
                let parameters = each.get(i).copied().unwrap_or_default();
                let number = |key: &[u8], default| {
                    value(parameters, key).and_then(|v| self.number(v)).unwrap_or(default)
                };
                Filter {
                    name: name[..name.iter().take_while(|b| is_regular(**b)).count()].to_vec(),
                    predictor: number(b"Predictor", 1),
                    columns: number(b"Columns", 1),
                    colors: number(b"Colors", 1),
                    bits: number(b"BitsPerComponent", 8),
                    early_change: number(b"EarlyChange", 1) != 0,
                }
            })
            .collect()
    }

    fn encrypted(&self) -> bool {
        // In the trailer, or in the dictionary of a cross-reference stream, which `outside_streams` has as well.
        memmem::find_iter(self.data, b"/Encrypt").any(|at| {
            let rest = self.data[at + 8..].trim_ascii_start();
            reference(rest).is_some() || rest.starts_with(b"<<")
        })
    }

    /// Many files are encrypted with an empty password, so that viewers show but do not print them.
    fn encrypted_streams(&mut self, walk: &mut Walk<'_>) {
        let known = walk.passwords();
        let passwords = std::iter::once("").chain(known.iter().map(|p| &p[..]));
        let opened = passwords.take(PASSWORDS_MAX).find_map(|password| {
            caught(|| {
                let mut document = Document::load_mem_with_options(
                    self.data,
                    LoadOptions::with_password(password),
                )
                .map_err(|e| std::io::Error::other(e.to_string()))?;
                if document.is_encrypted() {
                    return Err(std::io::ErrorKind::PermissionDenied.into());
                }
                let mut plain = Vec::new();
                document.save_to(&mut plain)?;
                Ok(plain)
            })
            .ok()
        });
        match opened {
            Some(plain) => {
                let embedded = HashSet::new();
                let mut file = Pdf { data: &plain, objects: objects(&plain), embedded };
                // Viewers that rebuild a file may find objects that the tables do not lead to.
                if file.count() < self.count() {
                    walk.note(Reason::Malformed, "an encrypted PDF with objects out of reach");
                }
                file.mentions(walk, &outside_streams(&plain));
                file.streams(walk);
            }
            None => walk.note(Reason::Encrypted, "encrypted PDF"),
        }
    }

    /// Takes scripts and the numbers of embedded files out of what is no stream.
    fn mentions(&mut self, walk: &mut Walk<'_>, text: &[u8]) {
        let text = plain_names(text);
        for (number, at) in memmem::find_iter(&text, b"/EF").enumerate() {
            if walk.stopped() {
                return;
            }
            if number >= MENTIONS_MAX {
                walk.note(Reason::Members, "too many embedded files in a PDF");
                break;
            }
            let rest = clipped(trim(&text[at + 3..]), 0, MENTION_MAX);
            let files = self.resolved(rest);
            let files = extent(&files[..files.len().min(MENTION_MAX)]);
            if files.len() == MENTION_MAX && !files.ends_with(b">>") {
                walk.note(Reason::Size, "a dictionary of embedded files longer than is read");
            }
            self.embedded.extend(references(files));
        }
        // Scripts and forms in streams are read, whatever else these say that they are.
        for key in [&b"/JS"[..], b"/XFA"] {
            for (number, at) in memmem::find_iter(&text, key).enumerate() {
                if number >= MENTIONS_MAX {
                    walk.note(Reason::Members, "too many scripts in a PDF");
                    break;
                }
                let rest = clipped(trim(&text[at + key.len()..]), 0, MENTION_MAX);
                self.embedded.extend(references(extent(rest)));
            }
        }
        let mut at = 0;
        while let Some(found) = memmem::find(&text[at..], b"/JS") {
            if walk.stopped() {
                return;
            }
            at += found + 3;
            let rest = trim(&text[at..]);
            let Some((script, len)) = string(rest) else { continue };
            // What lies inside the string is no further script.
            at = text.len() - rest.len() + len;
            if !script.is_empty() {
                walk.part("javascript", &script, Place::File);
            }
        }
    }
}

/// Where each `N G obj` has its content; the last of the same number counts, as after an update.
fn objects(data: &[u8]) -> HashMap<u32, usize> {
    memmem::find_iter(data, b"obj")
        .filter(|&at| !data[..at].ends_with(b"end"))
        .take(OBJECTS_MAX + 1)
        .map(|at| (number_before(&data[..at + 3]), at + 3))
        .collect()
}

/// The object number in the `N G obj` that ends the data; 0, which no object has, if there is none.
fn number_before(data: &[u8]) -> u32 {
    let tail = &data[data.len().saturating_sub(32)..];
    let Some(tail) = tail.strip_suffix(b"obj") else { return 0 };
    let mut words = tail.rsplit(|b| b.is_ascii_whitespace()).filter(|w| !w.is_empty());
    words.next();
    let number = words.next().and_then(|w| std::str::from_utf8(w).ok());
    // Junk may stand right before the number.
    let number = number.map(|n| n.trim_start_matches(|c: char| !c.is_ascii_digit()));
    number.and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// The file without the content of its streams: dictionaries and strings.
fn outside_streams(data: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = data;
    while let Some(at) = memmem::find(rest, b"stream") {
        let (before, content) = rest.split_at(at);
        out.extend_from_slice(before);
        rest = if before.trim_ascii_end().ends_with(b">>") {
            &content[memmem::find(content, b"endstream").map_or(content.len(), |end| end + 9)..]
        } else {
            &content[6..]
        };
    }
    out.extend_from_slice(rest);
    out
}

fn is_picture(dictionary: &[u8]) -> bool {
    value(dictionary, b"Subtype").is_some_and(|v| v.starts_with(b"/Image"))
        && value(dictionary, b"Width").is_some()
        && value(dictionary, b"Height").is_some()
}

/// True for the characters of names (7.2.2).
fn is_regular(byte: u8) -> bool {
    !byte.is_ascii_whitespace() && byte != 0 && !b"()<>[]{}/%".contains(&byte)
}

/// Names without their escapes `#xx` (7.3.5).
fn plain_names(data: &[u8]) -> Cow<'_, [u8]> {
    if memchr::memchr(b'#', data).is_none() {
        return Cow::Borrowed(data);
    }
    let mut out = Vec::with_capacity(data.len());
    let mut rest = data;
    while let Some(at) = memchr::memchr(b'#', rest) {
        out.extend_from_slice(&rest[..at]);
        let digit = |i: usize| char::from(*rest.get(at + i)?).to_digit(16);
        match (digit(1), digit(2)) {
            (Some(high), Some(low)) => {
                out.push((high << 4 | low) as u8);
                rest = &rest[at + 3..];
            }
            _ => {
                out.push(b'#');
                rest = &rest[at + 1..];
            }
        }
    }
    out.extend_from_slice(rest);
    Cow::Owned(out)
}

/// Without blanks and comments (7.2.3, 7.2.4) at the beginning.
fn trim(mut data: &[u8]) -> &[u8] {
    loop {
        let blanks = data.iter().take_while(|b| is_blank(**b)).count();
        data = &data[blanks..];
        if data.first() != Some(&b'%') {
            return data;
        }
        data = &data[line_end(data)..];
    }
}

/// Without blanks and comments at the end.
fn trim_end(mut data: &[u8]) -> &[u8] {
    loop {
        let blanks = data.iter().rev().take_while(|b| is_blank(**b)).count();
        data = &data[..data.len() - blanks];
        if data.ends_with(b">>") {
            return data;
        }
        let tail = &data[data.len().saturating_sub(LINE_MAX)..];
        let line = tail.iter().rposition(|b| matches!(b, b'\r' | b'\n')).map_or(0, |i| i + 1);
        match memchr::memchr(b'%', &tail[line..]) {
            Some(at) => data = &data[..data.len() - (tail.len() - line - at)],
            None => return data,
        }
    }
}

fn is_blank(byte: u8) -> bool {
    matches!(byte, 0 | b'\t' | b'\n' | 0x0c | b'\r' | b' ')
}

/// Bytes up to the end of the line.
fn line_end(data: &[u8]) -> usize {
    memchr::memchr2(b'\r', b'\n', data).unwrap_or(data.len())
}

/// A dictionary without its comments; None: it has none. Strings keep what looks like one.
fn uncommented(dictionary: &[u8]) -> Option<Vec<u8>> {
    memchr::memchr(b'%', dictionary)?;
    let mut out = Vec::with_capacity(dictionary.len());
    let mut at = 0;
    while let Some(&byte) = dictionary.get(at) {
        let len = match byte {
            b'%' => {
                at += line_end(&dictionary[at..]);
                continue;
            }
            b'(' => 1 + literal(&dictionary[at + 1..]).1,
            _ => 1,
        };
        out.extend_from_slice(clipped(dictionary, at, len));
        at += len;
    }
    Some(out)
}

/// What follows a key.
fn value<'d>(dictionary: &'d [u8], key: &[u8]) -> Option<&'d [u8]> {
    memmem::find_iter(dictionary, key).find_map(|at| {
        let behind = &dictionary[at + key.len()..];
        let named = at > 0 && dictionary[at - 1] == b'/';
        let ends = behind.first().is_none_or(|&b| !is_regular(b));
        (named && ends).then(|| trim(behind))
    })
}

/// The value at the beginning, up to its end as far as that is told by brackets; other values up to the next key.
fn extent(data: &[u8]) -> &[u8] {
    let (open, close): (&[u8], &[u8]) = match data {
        [b'[', ..] => (b"[", b"]"),
        [b'<', b'<', ..] => (b"<<", b">>"),
        [b'/', rest @ ..] => {
            return &data[..1 + rest.iter().take_while(|b| is_regular(**b)).count()];
        }
        _ => return &data[..data.iter().take_while(|b| **b != b'/' && **b != b'>').count()],
    };
    let (mut depth, mut at) = (0usize, 0);
    while at < data.len() {
        if data[at..].starts_with(open) {
            depth += 1;
            at += open.len();
        } else if data[at..].starts_with(close) {
            depth -= 1;
            at += close.len();
            if depth == 0 {
                break;
            }
        } else {
            at += 1;
        }
    }
    &data[..at]
}

/// The dictionaries of an array, a `null` among them as an empty one; or the one that it is.
fn dictionaries(data: &[u8]) -> Vec<&[u8]> {
    let Some(mut rest) = data.strip_prefix(b"[") else { return vec![data] };
    let mut found = Vec::new();
    loop {
        rest = rest.trim_ascii_start();
        let len = if rest.starts_with(b"<<") {
            let dictionary = extent(rest);
            found.push(dictionary);
            dictionary.len()
        } else if rest.starts_with(b"null") {
            found.push(&rest[..0]);
            4
        } else if found.len() >= FILTERS_MAX || rest.is_empty() {
            return found;
        } else {
            1
        };
        rest = &rest[len..];
    }
}

fn integer(data: &[u8]) -> Option<(u32, &[u8])> {
    let len = data.iter().take_while(|b| b.is_ascii_digit()).count();
    let number = std::str::from_utf8(&data[..len]).ok()?.parse().ok()?;
    Some((number, &data[len..]))
}

/// The number of the object in `N G R`.
fn reference(data: &[u8]) -> Option<u32> {
    let (number, rest) = integer(data)?;
    let (_, rest) = integer(trim(rest))?;
    trim(rest).starts_with(b"R").then_some(number)
}

/// All references in a value.
fn references(data: &[u8]) -> Vec<u32> {
    let mut found = Vec::new();
    for i in 0..data.len() {
        if data[i].is_ascii_digit() && (i == 0 || !data[i - 1].is_ascii_digit()) {
            found.extend(reference(&data[i..]));
        }
    }
    found
}

/// A string at the beginning (7.3.4), as plain text when it is in UTF-16, and its length in the file.
fn string(data: &[u8]) -> Option<(Vec<u8>, usize)> {
    let (bytes, len) = match data {
        [b'(', rest @ ..] => literal(rest),
        [b'<', rest @ ..] if !rest.starts_with(b"<") => hexadecimal(rest),
        _ => return None,
    };
    let text = match &bytes[..] {
        [0xfe, 0xff, rest @ ..] => crate::bytes::utf16(rest, true).into_bytes(),
        [0xff, 0xfe, rest @ ..] => crate::bytes::utf16(rest, false).into_bytes(),
        _ => bytes,
    };
    Some((text, 1 + len))
}

fn hexadecimal(data: &[u8]) -> (Vec<u8>, usize) {
    let len = memchr::memchr(b'>', data).unwrap_or(data.len());
    let digits: Vec<u32> = data[..len].iter().filter_map(|&b| char::from(b).to_digit(16)).collect();
    let byte = |d: &[u32]| (d[0] << 4 | d.get(1).copied().unwrap_or(0)) as u8;
    (digits.chunks(2).map(byte).collect(), len)
}

fn literal(data: &[u8]) -> (Vec<u8>, usize) {
    let mut out = Vec::new();
    let (mut depth, mut at) = (0, 0);
    while let Some(&byte) = data.get(at) {
        at += 1;
        match byte {
            b'(' => depth += 1,
            b')' if depth == 0 => break,
            b')' => depth -= 1,
            b'\\' => {
                let Some(&escaped) = data.get(at) else { break };
                at += 1;
                out.push(match escaped {
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'b' => 8,
                    b'f' => 12,
                    // A line that goes on.
                    b'\n' => continue,
                    b'\r' => {
                        at += usize::from(data.get(at) == Some(&b'\n'));
                        continue;
                    }
                    b'0'..=b'7' => {
                        let mut code = u32::from(escaped - b'0');
                        for _ in 0..2 {
                            let Some(&digit @ b'0'..=b'7') = data.get(at) else { break };
                            code = code * 8 + u32::from(digit - b'0');
                            at += 1;
                        }
                        code as u8
                    }
                    other => other,
                });
                continue;
            }
            _ => {}
        }
        out.push(byte);
    }
    (out, at)
}

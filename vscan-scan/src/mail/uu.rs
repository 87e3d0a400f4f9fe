//! uuencode (POSIX uuencode(1)), the historical and the base64 form.

use super::encoding;
use std::ops::Range;

/// Bytes of a name that are kept for the report.
const NAME_MAX: usize = 1024;

/// A section, decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Section {
    pub(crate) name: String,
    pub(crate) data: Vec<u8>,
    /// It has its last line.
    pub(crate) ended: bool,
    /// Its lines in the text, the first and the last included.
    pub(crate) range: Range<usize>,
}

/// The line `begin MODE NAME` at the start of the data: its name, its length and whether the form is base64. However long the
/// name or the mode is: what decodes it does not mind. The mode may be missing, as some mail readers have it; then, and with a
/// mode of an unusual length, only a first line that is whole shows that the word begins a section.
pub(crate) fn begin_line(data: &[u8]) -> Option<(String, usize, bool)> {
    let (rest, base64) = match data.strip_prefix(b"begin-base64") {
        Some(rest) => (rest.strip_prefix(b"-encoded").unwrap_or(rest), true),
        None => (data.strip_prefix(b"begin")?, false),
    };
    if rest.first() != Some(&b' ') {
        return None;
    }
    let end = data.len() - rest.len() + memchr::memchr(b'\n', rest)?;
    let rest = data[data.len() - rest.len()..end].trim_ascii();
    let digits = rest.iter().take_while(|b| (b'0'..=b'7').contains(b)).count();
    let mode = digits > 0 && rest.get(digits).is_none_or(|&b| b == b' ');
    if base64 && !mode {
        return None;
    }
    let name = if mode { rest[digits..].trim_ascii_start() } else { rest };
    let name = &name[..name.len().min(NAME_MAX)];
    // The word begins many a line of a letter; a section goes on with a line of the right form.
    let first = &data[end + 1..];
    if !base64 {
        let len = line_len(first)?;
        let line = &first[..memchr::memchr(b'\n', first).unwrap_or(first.len())];
        let whole = len > 0 && line.trim_ascii_end().len() > len.div_ceil(3) * 4;
        let usual = mode && matches!(digits, 3..=4);
        if name.is_empty() || !(usual || whole) {
            return None;
        }
    }
    Some((String::from_utf8_lossy(name).into_owned(), end + 1, base64))
}

/// All sections in a text, wherever a line begins one.
pub(crate) fn sections(data: &[u8]) -> impl Iterator<Item = Section> {
    let mut at = 0;
    std::iter::from_fn(move || {
        while at < data.len() {
            let start = at;
            if let Some((name, skip, base64)) = begin_line(&data[start..]) {
                let (mut section, end) = section(name, &data[start + skip..], base64);
                at = start + skip + end;
                // The last line, and before it that of a section without bytes.
                let mut last = at;
                if section.ended {
                    let rest = &data[at..];
                    last += memchr::memchr(b'\n', rest).map_or(rest.len(), |i| i + 1);
                }
                section.range = start..last;
                return Some(section);
            }
            at = memchr::memmem::find(&data[start..], b"\nbegin")
                .map_or(data.len(), |i| start + i + 1);
        }
        None
    })
}

fn section(name: String, body: &[u8], base64: bool) -> (Section, usize) {
    if base64 {
        let end = memchr::memmem::find(body, b"====");
        let text = &body[..end.unwrap_or(body.len())];
        return (
            Section { name, data: encoding::base64(text).data, ended: end.is_some(), range: 0..0 },
            text.len(),
        );
    }
    let mut data = Vec::new();
    let mut at = 0;
    loop {
        let rest = &body[at..];
        let Some(len) = line_len(rest) else {
            let ended = rest.starts_with(b"end");
            return (Section { name, data, ended, range: 0..0 }, at);
        };
        let line = &rest[..memchr::memchr(b'\n', rest).unwrap_or(rest.len())];
        let mut line_data = Vec::with_capacity(48);
        let value = |i: usize| line.get(i).map_or(0, |&b| b.wrapping_sub(0x20) & 0x3f);
        for i in (1..).step_by(4).take(len.div_ceil(3)) {
            let (a, b, c, d) = (value(i), value(i + 1), value(i + 2), value(i + 3));
            line_data.extend_from_slice(&[a << 2 | b >> 4, b << 4 | c >> 2, c << 6 | d]);
        }
        line_data.truncate(len);
        data.extend_from_slice(&line_data);
        at = (at + line.len() + 1).min(body.len());
        if at == body.len() {
            return (Section { name, data, ended: false, range: 0..0 }, at);
        }
    }
}

/// Encodes a section of these bytes; `ending` ends each line.
pub(crate) fn encode(name: &str, data: &[u8], ending: &str) -> String {
    let letter = |v: u8| if v == 0 { '`' } else { char::from(v + 0x20) };
    let mut out = format!("begin 644 {name}{ending}");
    for line in data.chunks(45) {
        out.push(letter(line.len() as u8));
        for c in line.chunks(3) {
            let (a, b, c) = (c[0], c.get(1).copied().unwrap_or(0), c.get(2).copied().unwrap_or(0));
            out.extend(
                [a >> 2, (a << 4 | b >> 4) & 63, (b << 2 | c >> 6) & 63, c & 63].map(letter),
            );
        }
        out.push_str(ending);
    }
    out + "`" + ending + "end" + ending
}

/// The number of bytes that a line stands for; None when it is no line of a section.
fn line_len(rest: &[u8]) -> Option<usize> {
    let line = rest
        [..memchr::memchr(b'\n', &rest[..rest.len().min(256)]).unwrap_or(rest.len().min(256))]
        .trim_ascii_end();
    let &first = line.first()?;
    if line == b"end"
        || !(0x20..=0x60).contains(&first)
        || line.iter().any(|b| !(0x20..=0x60).contains(b))
    {
        return None;
    }
    let len = usize::from((first - 0x20) & 0x3f);
    // Trailing spaces are often lost on the way; a checksum letter may follow.
    let full = 1 + len.div_ceil(3) * 4;
    (line.len() <= full + 2 && (len == 0 || line.len() > 1)).then_some(len)
}

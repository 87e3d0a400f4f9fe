//! What takes the place of a portion: notices, empty texts, and bytes that cannot be opened any more.

use super::super::headers;
use super::super::{Portion, encoding};
use super::{Why, edit, end_of, line_end};
use crate::repair::Edit;

/// A part of a multipart with this text: header, blank line, body.
pub(super) fn portion(notice: &str, ending: &str) -> Vec<u8> {
    let (fields, body) = body(notice, ending);
    format!("{fields}{ending}{body}").into_bytes()
}

/// The edits that make this the text of a message that is one portion. Its other fields stay.
///
/// # Errors
/// When readers may disagree on where its header ends.
pub(super) fn single(whole: &[u8], portion: &Portion, notice: &str) -> Result<Vec<Edit>, Why> {
    if !portion.regular {
        return Err("a header on which mail readers disagree".into());
    }
    let ending = line_end(whole);
    let (fields, mut body) = body(notice, ending);
    let mut edits = Vec::new();
    let mut at = portion.head.start;
    let mut versioned = false;
    for field in headers::fields(&whole[portion.head.clone()]) {
        let name = field.split(|&b| b == b':').next().unwrap_or_default().trim_ascii();
        if name.get(..8).is_some_and(|n| n.eq_ignore_ascii_case(b"content-")) {
            edits.push(edit(at..at + field.len(), Vec::new()));
        }
        versioned |= name.eq_ignore_ascii_case(b"mime-version");
        at += field.len();
    }
    let version = if versioned { String::new() } else { format!("MIME-Version: 1.0{ending}") };
    let end = portion.head.end;
    edits.push(edit(end..end, format!("{version}{fields}").into_bytes()));
    let last = end_of(whole, portion.body.clone());
    if last == whole.len() && !body.is_empty() {
        body.push_str(ending);
    }
    edits.push(edit(portion.body.start..last, body.into_bytes()));
    Ok(edits)
}

/// Fields and body for a text, without the line end behind it.
pub(super) fn body(notice: &str, ending: &str) -> (String, String) {
    let lines: Vec<&str> = notice.trim_end().split('\n').map(|l| l.trim_end()).collect();
    let text = lines.join("\r\n");
    let plain = lines.iter().all(|l| {
        l.len() <= LINE_MAX
            && l.bytes().all(|b| (0x20..0x7f).contains(&b) || b == b'\t')
            // Like a delimiter, or the first line of a mailbox's next message.
            && !l.starts_with("--")
            && !l.starts_with("From ")
    });
    let (transfer, body) = if plain {
        ("7bit", text.replace("\r\n", ending))
    } else {
        ("quoted-printable", encoding::to_quoted_printable(text.as_bytes(), ending, true))
    };
    let charset = if plain { "us-ascii" } else { "utf-8" };
    let fields = format!(
        "Content-Type: text/plain; charset={charset}{ending}Content-Transfer-Encoding: {transfer}{ending}"
    );
    (fields, body)
}

/// Characters of a line that is sent as it is (RFC 5322 section 2.1.1 recommends 78).
const LINE_MAX: usize = 78;

/// Lines in the place of a section of a text whose character set is not ours to choose.
pub(super) fn section(notice: &str, ending: &str) -> Vec<u8> {
    let mut out = Vec::new();
    for line in notice.trim_end().lines() {
        let line: Vec<u8> = line
            .chars()
            .map(|c| if c == '\t' || (' '..='~').contains(&c) { c as u8 } else { b'?' })
            .collect();
        // No line of it begins a section, a delimiter or a mailbox's next message.
        if line.starts_with(b"--") || line.starts_with(b"From ") || line.starts_with(b"begin") {
            out.push(b' ');
        }
        out.extend_from_slice(line.trim_ascii_end());
        out.extend_from_slice(ending.as_bytes());
    }
    out
}

/// Every byte that is no line end becomes a letter that all encodings know.
pub(super) fn scrambled(body: &[u8]) -> Vec<u8> {
    body.iter().map(|&b| if matches!(b, b'\r' | b'\n') { b } else { b'A' }).collect()
}

/// The same for uuencoded and yEnc sections: their first and last lines stay, and the lengths of the others.
pub(super) fn scrambled_sections(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let yenc = text.starts_with(b"=y");
    for line in text.split_inclusive(|&b| b == b'\n') {
        let frame: &[&[u8]] = if yenc { &[b"=y"] } else { &[b"begin", b"end", b"====", b"("] };
        if frame.iter().any(|f| line.starts_with(f)) {
            out.extend_from_slice(line);
            continue;
        }
        let kept = usize::from(!yenc).min(line.len());
        out.extend_from_slice(&line[..kept]);
        let zero = if yenc { b'*' } else { b'`' };
        out.extend(line[kept..].iter().map(|&b| if matches!(b, b'\r' | b'\n') { b } else { zero }));
    }
    out
}

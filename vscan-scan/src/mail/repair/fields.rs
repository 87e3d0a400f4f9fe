//! Edits of a message's header: fields on top, a tag before the subject.

use super::super::{headers, words};
use super::{edit, line_end};
use crate::repair::{Edit, Plan};

/// The edits for [`Plan::fields`] and [`Plan::subject_prefix`].
pub(super) fn edits(data: &[u8], plan: &Plan) -> Vec<Edit> {
    let ending = line_end(data);
    let (head, body) = ends(data);
    let mut top = String::new();
    for (name, value) in &plan.fields {
        if is_name(name) {
            top.push_str(&field(name, value, ending));
        }
    }
    let mut edits = Vec::new();
    let (mut at, mut tagged) = (0, false);
    let mut first = 0;
    for line in headers::fields(&data[..head]) {
        let name = line.split(|&b| b == b':').next().unwrap_or_default().trim_ascii();
        if at == 0 && (line.starts_with(b"From ") || line.starts_with(b">From ")) {
            first = line.len();
        } else if plan.fields.iter().any(|(n, _)| name.eq_ignore_ascii_case(n.as_bytes())) {
            edits.push(edit(at..at + line.len(), Vec::new()));
        } else if name.eq_ignore_ascii_case(b"subject")
            && let Some(prefix) = &plan.subject_prefix
        {
            tagged = true;
            edits.extend(tag(line, at, prefix, ending));
        }
        at += line.len();
    }
    if let Some(prefix) = &plan.subject_prefix
        && !tagged
    {
        top.push_str(&field("Subject", prefix.trim_end(), ending));
    }
    if !top.is_empty() {
        // Where there is no header at all, a blank line has to end the new one.
        if head == 0 && body == 0 {
            top.push_str(ending);
        }
        edits.push(edit(first..first, top.into_bytes()));
    }
    edits
}

/// What stays of the header of a message that gives way to a notice (RFC 5322 3.6): who wrote to whom, when, in which
/// thread, and by which way it came.
const KEPT: [&str; 14] = [
    "received",
    "return-path",
    "date",
    "from",
    "sender",
    "reply-to",
    "to",
    "cc",
    "message-id",
    "in-reply-to",
    "references",
    "subject",
    "auto-submitted",
    "list-id",
];

/// Bytes of header that stay at most.
const KEPT_MAX: usize = 64 << 10;

/// The message that takes the place of this one: [`Plan::notice`] below what stays of the header.
pub(super) fn substitute(data: &[u8], plan: &Plan) -> Vec<u8> {
    let ending = line_end(data);
    let mut out = Vec::new();
    for (name, value) in plan.fields.iter().filter(|(name, _)| is_name(name)) {
        out.extend_from_slice(field(name, value, ending).as_bytes());
    }
    let (head, _) = ends(data);
    let mut kept = 0;
    for line in headers::fields(&data[..head]) {
        let name = line.split(|&b| b == b':').next().unwrap_or_default().trim_ascii();
        let text = line.strip_suffix(ending.as_bytes()).unwrap_or_default();
        // What some reader might take for the end of the header does not stay.
        let odd = text.is_empty()
            || text.contains(&0)
            || text.split(|&b| b == b'\n').any(|l| {
                let l = l.strip_suffix(b"\r").unwrap_or(l);
                l.contains(&b'\r') || l.trim_ascii().is_empty()
            });
        if !odd
            && kept + line.len() <= KEPT_MAX
            && KEPT.iter().any(|k| name.eq_ignore_ascii_case(k.as_bytes()))
        {
            kept += line.len();
            out.extend_from_slice(line);
        }
    }
    let (fields, body) = super::text::body(&plan.notice, ending);
    out.extend_from_slice(
        format!("MIME-Version: 1.0{ending}{fields}{ending}{body}{ending}").as_bytes(),
    );
    out
}

/// Where the header ends and the body begins, as most readers see it.
fn ends(data: &[u8]) -> (usize, usize) {
    let limits = crate::limits::Limits::default();
    let views = headers::views(data, &limits);
    views.first().map_or((0, 0), |view| (view.head_end, view.body))
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_graphic() && b != b':')
}

/// A field, folded at blanks (RFC 5322 section 2.2.3).
fn field(name: &str, value: &str, ending: &str) -> String {
    let value: String = value.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let mut out = format!("{name}:");
    let mut column = out.len();
    for word in words::encode_words(value.trim()).split(' ').filter(|w| !w.is_empty()) {
        if column + 1 + word.len() > LINE_MAX && column > name.len() + 1 {
            out.push_str(ending);
            column = 0;
        }
        out.push(' ');
        out.push_str(word);
        column += 1 + word.len();
    }
    out + ending
}

/// RFC 5322 section 2.1.1: no line should be longer, and none may have more than 998.
const LINE_MAX: usize = 78;

/// The edit that puts a tag before a subject, unless it is there already.
fn tag(line: &[u8], at: usize, prefix: &str, ending: &str) -> Option<Edit> {
    let colon = memchr::memchr(b':', line)?;
    let value = &line[colon + 1..];
    let blank = value.iter().take_while(|b| b.is_ascii_whitespace()).count();
    let prefix: String = prefix.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if words::decode_words(value.trim_ascii()).starts_with(prefix.trim_end()) {
        return None;
    }
    let text = &value[blank..];
    if text.is_empty() {
        // The blanks are the line's end.
        let place = at + colon + 1;
        let word = words::encode_words(prefix.trim_end());
        return Some(edit(place..place, format!(" {word}").into_bytes()));
    }
    // Readers drop blanks between two encoded words, so the tag's own is inside it there.
    let inside = text.starts_with(b"=?") && !prefix.is_ascii();
    let word = words::encode_words(if inside { &prefix } else { prefix.trim_end() });
    let first = memchr::memchr(b'\n', text).unwrap_or(text.len());
    let long = colon + blank + first + word.len() > LINE_MAX;
    let gap = if long { format!("{ending} ") } else { " ".to_owned() };
    let lead = if blank == 0 { " " } else { "" };
    let place = at + colon + 1 + blank;
    Some(edit(place..place, format!("{lead}{word}{gap}").into_bytes()))
}

//! HTML and what is read like it: `data:` URIs (RFC 2397) and scripts.

use crate::mail::encoding::base64;
use crate::object::{Place, Walk};
use crate::report::Reason;
use memchr::memmem;

/// The media type of a `data:` URI with its parameters; longer ones are not looked at, and told.
const TYPE_MAX: usize = 16 * 1024;

/// Bytes at the beginning of other files in which a page shows.
const SHOWS: usize = 4096;

/// True where the beginning of the data has tags of a page in it.
pub(crate) fn shows(data: &[u8]) -> bool {
    let head = &data[..data.len().min(SHOWS)];
    const TAGS: &[&[u8]] = &[
        b"<html",
        b"<!doctype",
        b"<head",
        b"<body",
        b"<script",
        b"<svg",
        b"<a ",
        b"<img",
        b"<iframe",
        b"<object",
        b"<embed",
        b"<meta",
        b"<link",
        b"<form",
        b"<table",
        b"<div",
        b"<p",
        b"<br",
        b"<style",
        b"<title",
        b"<!--",
    ];
    TAGS.iter().any(|tag| find(head, tag, 0).is_some())
}

/// True for text that may carry something.
pub(crate) fn may_carry(data: &[u8]) -> bool {
    find(data, b"data:", 0).is_some() || find(data, b"<script", 0).is_some()
}

pub(crate) fn open(walk: &mut Walk<'_>, data: &[u8]) {
    let mut from = 0;
    while let Some(at) = find(data, b"data:", from) {
        if walk.stopped() {
            return;
        }
        from = at + 5;
        let head = &data[from..data.len().min(from + TYPE_MAX)];
        let comma = memchr::memchr(b',', head);
        let kind = &head[..comma.unwrap_or(head.len())];
        // In prose the word is followed by a blank.
        if kind.iter().any(|b| b.is_ascii_control() || b"<>\"'".contains(b))
            || kind.starts_with(b" ")
        {
            continue;
        }
        let Some(comma) = comma else {
            if head.len() == TYPE_MAX {
                walk.note(Reason::Size, "a data: URI with a longer media type than is read");
                from += TYPE_MAX;
            }
            continue;
        };
        let encoded = memmem::find(&kind.to_ascii_lowercase(), b"base64").is_some();
        if !encoded && !kind.is_empty() && memchr::memchr(b'/', kind).is_none() {
            continue;
        }
        from += comma + 1;
        let body = &data[from..];
        let end = body.iter().position(|b| b"\"'<>)".contains(b)).unwrap_or(body.len());
        from += end;
        let body = percent(&body[..end]);
        let decoded = if encoded { base64(&body).data } else { body };
        if !decoded.is_empty() {
            walk.part("data", &decoded, Place::File);
        }
    }
    let mut from = 0;
    while let Some(at) = find(data, b"<script", from) {
        if walk.stopped() {
            return;
        }
        from = at + 7;
        let Some(open) = memchr::memchr(b'>', &data[from..]) else { return };
        let begin = from + open + 1;
        let end = find(data, b"</script", begin).unwrap_or(data.len());
        from = end;
        if !data[begin..end].trim_ascii().is_empty() {
            walk.part("script", &data[begin..end], Place::File);
        }
    }
}

/// The place of a word from `from` on, in whatever case. It is looked for by its byte that is no letter, which is
/// rarer than letters are.
fn find(data: &[u8], word: &[u8], from: usize) -> Option<usize> {
    let anchor = word.iter().position(|b| !b.is_ascii_alphabetic()).unwrap_or(0);
    let rest = data.get(from..)?;
    memchr::memchr_iter(word[anchor], rest)
        .filter_map(|at| at.checked_sub(anchor))
        .find(|&at| rest[at..].get(..word.len()).is_some_and(|w| w.eq_ignore_ascii_case(word)))
        .map(|at| from + at)
}

/// Undoes percent encoding (RFC 3986 section 2.1).
fn percent(data: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(data.len());
    let mut rest = data;
    while let Some((&byte, behind)) = rest.split_first() {
        let digit = |i: usize| char::from(*behind.get(i)?).to_digit(16);
        match (byte, digit(0), digit(1)) {
            (b'%', Some(high), Some(low)) => {
                out.push((high << 4 | low) as u8);
                rest = &behind[2..];
            }
            _ => {
                out.push(byte);
                rest = behind;
            }
        }
    }
    out
}

//! Relationships of OOXML documents (ECMA-376 part 2, 8.3): templates, frames and objects that are fetched from elsewhere.

use crate::bytes::clipped;
use crate::object::{Place, Walk};

/// Bytes of one element; targets are URIs.
const ELEMENT_MAX: usize = 64 * 1024;

/// True for the XML of a relationships part.
pub(crate) fn is_relationships(data: &[u8]) -> bool {
    let head = &data[..data.len().min(1024)];
    memchr::memmem::find(head, b"/package/2006/relationships").is_some()
}

/// Gives all external targets as one text, a line for each: its type, a space, the target with its entities resolved. Rules
/// can match that, however the XML is written.
pub(crate) fn external(walk: &mut Walk<'_>, data: &[u8]) {
    let mut lines = String::new();
    for element in elements(data) {
        if attribute(element, b"TargetMode").is_some_and(|m| m.eq_ignore_ascii_case("external"))
            && let Some(target) = attribute(element, b"Target")
        {
            let kind = attribute(element, b"Type").unwrap_or_default();
            let kind = kind.rsplit('/').next().unwrap_or_default();
            lines.push_str(&format!("{kind} {target}\n"));
        }
    }
    if !lines.is_empty() {
        walk.part("external-targets", lines.as_bytes(), Place::File);
    }
}

/// The Relationship elements, between `<` and `>`.
fn elements(data: &[u8]) -> impl Iterator<Item = &[u8]> {
    memchr::memmem::find_iter(data, b"Relationship ").map(|at| {
        let rest = clipped(data, at, ELEMENT_MAX);
        &rest[..memchr::memchr(b'>', rest).unwrap_or(rest.len())]
    })
}

fn attribute(element: &[u8], name: &[u8]) -> Option<String> {
    let mut from = 0;
    loop {
        let at = from + memchr::memmem::find(&element[from..], name)?;
        from = at + name.len();
        if at == 0 || !element[at - 1].is_ascii_whitespace() {
            continue;
        }
        let rest = element[from..].trim_ascii_start();
        let Some(rest) = rest.strip_prefix(b"=") else { continue };
        let (&quote, rest) = rest.trim_ascii_start().split_first()?;
        let value = &rest[..memchr::memchr(quote, rest)?];
        return Some(entities(&String::from_utf8_lossy(value)));
    }
}

/// Resolves the entities of XML (XML 1.0, 4.1 and 4.6).
pub(super) fn entities(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, behind)) = rest.split_once('&') {
        out.push_str(before);
        let resolved = behind.split_once(';').and_then(|(name, after)| {
            let c = match name {
                "amp" => '&',
                "lt" => '<',
                "gt" => '>',
                "quot" => '"',
                "apos" => '\'',
                _ => {
                    let number = name.strip_prefix('#')?;
                    let code = match number.strip_prefix(['x', 'X']) {
                        Some(hex) => u32::from_str_radix(hex, 16).ok()?,
                        None => number.parse().ok()?,
                    };
                    char::from_u32(code)?
                }
            };
            Some((c, after))
        });
        match resolved {
            Some((c, after)) => {
                out.push(c);
                rest = after;
            }
            None => {
                out.push('&');
                rest = behind;
            }
        }
    }
    out.push_str(rest);
    out
}

//! Unix archives (ar(5)), GNU and BSD names: Debian packages, static libraries.

use crate::object::{Place, Walk};
use crate::report::Reason;

const HEADER: usize = 60;

pub(crate) fn open(walk: &mut Walk<'_>, data: &[u8]) {
    let mut at = 8;
    while at < data.len() && !walk.stopped() {
        let Some(header) = data.get(at..at + HEADER).filter(|h| h.ends_with(b"`\n")) else {
            walk.note(Reason::Malformed, "ar member without a header");
            walk.part("after-ar", &data[at..], Place::File);
            return;
        };
        let size =
            std::str::from_utf8(&header[48..58]).ok().and_then(|s| s.trim().parse::<usize>().ok());
        let body = &data[at + HEADER..];
        let Some(size) = size.filter(|&s| s <= body.len()) else {
            walk.note(Reason::Malformed, "ar member of a wrong size");
            walk.part("after-ar", body, Place::File);
            return;
        };
        let mut body = &body[..size];
        let mut name = header[..16].trim_ascii_end();
        // BSD: `#1/LEN`, the name is the first LEN bytes of the body.
        if let Some(len) = name
            .strip_prefix(b"#1/")
            .and_then(|l| std::str::from_utf8(l).ok()?.parse::<usize>().ok())
            && len <= body.len()
        {
            (name, body) = body.split_at(len);
        }
        let name = name.strip_suffix(b"/").unwrap_or(name);
        walk.part(&super::name(name), body, Place::File);
        at += HEADER + size + size % 2;
    }
}

//! Encoded sections in text, found without any structure around them: uuencode, base64, armour.
//!
//! This is the second view of a message: what a wrong or doubled boundary, a split parameter or a missing
//! field hides from the tree lies in some text, and is found here.

use super::encoding::{self, ALPHABET};
use super::{pgp, uu};
use crate::object::{Place, Walk};
use crate::report::Reason;
use memchr::memmem;

/// Letters of a base64 run below which it is not decoded: 60 bytes hold no malware, and long words and
/// addresses are many.
const RUN_MIN: usize = 80;

/// Opens all encoded sections of a text.
pub(crate) fn text(walk: &mut Walk<'_>, data: &[u8]) {
    sections(walk, data, Place::Mail);
    for at in line_starts(data, b"-----BEGIN PGP MESSAGE-----") {
        pgp::armoured(walk, &data[at..], Place::Mail);
    }
    for (mark, name) in
        [(&b"=ybegin "[..], "yEnc"), (b"(This file must be converted with BinHex", "BinHex")]
    {
        if line_starts(data, mark).next().is_some() {
            walk.note(Reason::Unsupported, &format!("{name} section"));
        }
    }
    base64_runs(walk, data);
}

/// Opens the uuencoded sections of a text.
pub(crate) fn sections(walk: &mut Walk<'_>, data: &[u8], place: Place) {
    for section in uu::sections(data) {
        if walk.stopped() {
            return;
        }
        if !section.ended {
            walk.within(&section.name, |walk| {
                walk.note(Reason::Malformed, "uuencoded section without an end")
            });
        }
        walk.part(&section.name, &section.data, place);
    }
}

/// Decodes a text as quoted-printable if it looks like that.
pub(crate) fn quoted_printable(walk: &mut Walk<'_>, data: &[u8]) {
    let decoded = encoding::quoted_printable(data);
    if decoded.len() < data.len() {
        walk.part("quoted-printable", &decoded, Place::Mail);
    }
}

/// Every run of base64 letters, over line ends, that is long enough.
fn base64_runs(walk: &mut Walk<'_>, data: &[u8]) {
    let (mut start, mut letters) = (0, 0usize);
    for (i, &byte) in data.iter().enumerate() {
        if ALPHABET[byte as usize] < 64 {
            letters += 1;
            continue;
        }
        if matches!(byte, b'\r' | b'\n') && letters > 0 {
            continue;
        }
        if letters >= RUN_MIN {
            run(walk, &data[start..i]);
            if walk.stopped() {
                return;
            }
        }
        (start, letters) = (i + 1, 0);
    }
    if letters >= RUN_MIN {
        run(walk, &data[start..]);
    }
}

/// A word may stand in the line before the run: the run is also read from its first long line.
fn run(walk: &mut Walk<'_>, run: &[u8]) {
    let decoded = encoding::base64(run).data;
    walk.part("base64", &decoded, Place::Mail);
    let mut at = 0;
    let mut letters = 0;
    for line in run.split_inclusive(|&b| b == b'\n') {
        let len = line.trim_ascii_end().len();
        if len >= 40 {
            break;
        }
        letters += len;
        at += line.len();
    }
    // A number of letters before it that is no multiple of four shifts all that follows.
    if at > 0 && at < run.len() && letters % 4 != 0 {
        let decoded = encoding::base64(&run[at..]).data;
        walk.part("base64", &decoded, Place::Mail);
    }
}

fn line_starts<'a>(data: &'a [u8], mark: &'a [u8]) -> impl Iterator<Item = usize> + 'a {
    memmem::find_iter(data, mark).filter(move |&i| i == 0 || data[i - 1] == b'\n').take(64)
}

//! Encoded sections in text, found without any structure around them: uuencode, base64, armour.
//!
//! This is the second view of a message: what a wrong or doubled boundary, a split parameter or a missing
//! field hides from the tree lies in some text, and is found here.

use super::encoding::{self, ALPHABET};
use super::{binhex, pgp, uu, yenc};
use crate::object::{About, Origin, Place, Walk};
use crate::report::Reason;
use crate::sniff;
use memchr::memmem;
use std::ops::Range;

/// Letters of a base64 run below which it is not decoded: 60 bytes hold no malware, and long words and
/// addresses are many.
const RUN_MIN: usize = 80;

/// Armoured messages of one text that are opened; each is looked at to the end of the text.
const ARMOURS_MAX: usize = 64;

/// How the text that is searched lies in the part that is being opened.
#[derive(Clone, Debug)]
pub(crate) enum Lies {
    /// It is that part: a section can be cut out of it.
    Here,
    /// It is these bytes of that part, which nobody needs: text before the first part of a multipart.
    Within(Range<usize>),
    /// It is another form of the part.
    Anywhere,
}

impl Lies {
    fn of(&self, section: Range<usize>) -> Origin {
        match self {
            Lies::Here => Origin::Section(section),
            Lies::Within(range) => Origin::Section(range.clone()),
            Lies::Anywhere => Origin::Inside,
        }
    }
}

/// Opens all encoded sections of a text.
pub(crate) fn text(walk: &mut Walk<'_>, data: &[u8], lies: &Lies) {
    sections(walk, data, Place::Mail, lies);
    for (number, at) in line_starts(data, b"-----BEGIN PGP MESSAGE-----").enumerate() {
        if number >= ARMOURS_MAX {
            walk.note(Reason::Members, "more OpenPGP messages in a text than are opened");
            break;
        }
        pgp::armoured(walk, &data[at..], Place::Mail);
    }
    base64_runs(walk, data);
}

/// A section that was found in a text.
#[derive(Clone, Debug)]
pub(crate) struct Section {
    pub(crate) name: String,
    pub(crate) data: Vec<u8>,
    /// Its lines in the text, from its first to its last.
    pub(crate) range: Range<usize>,
    /// Why it was not read whole.
    pub(crate) note: Option<(Reason, &'static str)>,
}

/// Opens the uuencoded, yEnc and BinHex sections of a text.
pub(crate) fn sections(walk: &mut Walk<'_>, data: &[u8], place: Place, lies: &Lies) {
    for section in uu::sections(data) {
        let note =
            (!section.ended).then_some((Reason::Malformed, "uuencoded section without an end"));
        let (name, range) = (section.name, section.range);
        found(walk, Section { name, data: section.data, range, note }, place, lies);
    }
    for section in yenc::sections(data).into_iter().chain(binhex::sections(data)) {
        found(walk, section, place, lies);
    }
}

fn found(walk: &mut Walk<'_>, section: Section, place: Place, lies: &Lies) {
    if walk.stopped() {
        return;
    }
    let about = About {
        origin: lies.of(section.range),
        notes: section.note.map(|(reason, why)| (reason, why.to_owned())).into_iter().collect(),
        ..About::default()
    };
    let kind = sniff::sniff(&section.data);
    walk.part_with(&section.name, &section.data, kind, place, about, &mut |_| {});
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
    memmem::find_iter(data, mark).filter(move |&i| i == 0 || data[i - 1] == b'\n')
}

//! yEnc 1.3, the encoding of the news network: `=ybegin`, `=ypart`, lines of shifted bytes, `=yend`.

use super::sweep::Section;
use crate::report::Reason;
use memchr::{memchr, memmem};

/// The sections of a text. Parts of one file that stand in it are joined; of a file whose other parts are
/// elsewhere the part is read and the rest is said to be missing.
pub(crate) fn sections(data: &[u8]) -> Vec<Section> {
    let mut out: Vec<Section> = Vec::new();
    let mut joined: Option<Joined> = None;
    let mut more = false;
    let mut at = 0;
    while let Some(found) = memmem::find(&data[at..], BEGIN) {
        let start = at + found;
        at = start + BEGIN.len();
        if start > 0 && data[start - 1] != b'\n' {
            continue;
        }
        let Some(part) = part(&data[start..]) else { continue };
        if out.len() >= SECTIONS_MAX {
            more = true;
            break;
        }
        let range = start..start + part.len;
        at = range.end;
        let note = if !part.ended {
            Some((Reason::Malformed, "yEnc section without an end"))
        } else if part.total_size.is_some_and(|size| size != part.data.len() as u64) {
            match part.begins {
                Some(_) => Some((Reason::Partial, "a part of a yEnc file")),
                None => Some((Reason::Malformed, "yEnc section of another size than it says")),
            }
        } else {
            None
        };
        if let (Some(begins), Some(size)) = (part.begins, part.total_size) {
            let join = joined.get_or_insert_with(|| Joined::new(&part.name, size));
            join.add(&part.name, size, begins, &part.data, out.len());
        }
        out.push(Section { name: part.name, data: part.data, range, note });
    }
    if let Some(joined) = joined.filter(Joined::whole) {
        for &i in &joined.sections {
            out[i].note = None;
        }
        let (first, last) = (joined.sections[0], joined.sections[joined.sections.len() - 1]);
        let range = out[first].range.start..out[last].range.end;
        out.push(Section { name: joined.name, data: joined.data, range, note: None });
    }
    if let Some(last) = out.last_mut().filter(|_| more) {
        last.note = Some((Reason::Members, "more yEnc sections than are opened"));
    }
    out
}

const BEGIN: &[u8] = b"=ybegin ";

/// Sections of one text that are opened.
const SECTIONS_MAX: usize = 1000;

/// Parts of one file, as far as they follow each other.
struct Joined {
    name: String,
    size: u64,
    data: Vec<u8>,
    sections: Vec<usize>,
}

impl Joined {
    fn new(name: &str, size: u64) -> Self {
        Self { name: name.to_owned(), size, data: Vec::new(), sections: Vec::new() }
    }

    fn add(&mut self, name: &str, size: u64, begins: u64, data: &[u8], section: usize) {
        // Counted from 1.
        if (name, size, begins) == (&self.name, self.size, self.data.len() as u64 + 1) {
            self.data.extend_from_slice(data);
            self.sections.push(section);
        }
    }

    fn whole(&self) -> bool {
        self.sections.len() > 1 && self.data.len() as u64 == self.size
    }
}

struct Part {
    name: String,
    data: Vec<u8>,
    /// Bytes of the section in the text.
    len: usize,
    ended: bool,
    /// Size of the whole file, as the first line says.
    total_size: Option<u64>,
    /// Where the part begins in the file, counted from 1, for a part of several.
    begins: Option<u64>,
}

/// The section that the data begins with.
fn part(data: &[u8]) -> Option<Part> {
    let line_end = |at: usize| memchr(b'\n', &data[at..]).map_or(data.len(), |i| at + i + 1);
    let mut at = line_end(0);
    let begin = data[..at].trim_ascii_end();
    // `line=` makes it one; the name is the last, and goes to the end of the line.
    number(begin, b" line=").or_else(|| number(begin, b" size="))?;
    let name = memmem::find(begin, b" name=").map_or(&b""[..], |i| &begin[i + 6..]);
    let mut part = Part {
        name: String::from_utf8_lossy(name.trim_ascii()).into_owned(),
        data: Vec::new(),
        len: 0,
        ended: false,
        total_size: number(begin, b" size="),
        begins: None,
    };
    if data[at..].starts_with(b"=ypart ") {
        let end = line_end(at);
        part.begins = number(&data[at..end], b" begin=");
        at = end;
    }
    while at < data.len() {
        let end = line_end(at);
        let line = &data[at..end];
        at = end;
        if line.starts_with(b"=yend") {
            part.ended = true;
            break;
        }
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let mut bytes = line.iter().copied();
        while let Some(b) = bytes.next() {
            part.data.push(match b {
                b'=' => match bytes.next() {
                    Some(b) => b.wrapping_sub(64).wrapping_sub(42),
                    None => break,
                },
                b => b.wrapping_sub(42),
            });
        }
    }
    part.len = at;
    Some(part)
}

fn number(line: &[u8], key: &[u8]) -> Option<u64> {
    let at = memmem::find(line, key)? + key.len();
    let digits = line[at..].iter().take_while(|b| b.is_ascii_digit()).count();
    std::str::from_utf8(&line[at..at + digits]).ok()?.parse().ok()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The lines of a section's bytes.
    pub(crate) fn lines(data: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        for chunk in data.chunks(100) {
            for &b in chunk {
                match b.wrapping_add(42) {
                    c @ (0 | b'\n' | b'\r' | b'=' | b'.') => {
                        out.extend([b'=', c.wrapping_add(64)]);
                    }
                    c => out.push(c),
                }
            }
            out.extend(b"\r\n");
        }
        out
    }

    pub(crate) fn encode(name: &str, data: &[u8]) -> Vec<u8> {
        let size = data.len();
        let begin = format!("=ybegin line=100 size={size} name={name}\r\n");
        [begin.as_bytes(), &lines(data), format!("=yend size={size}\r\n").as_bytes()].concat()
    }

    #[test]
    fn sections_are_read() {
        let data: Vec<u8> = (0..=255).cycle().take(700).collect();
        let text = [b"see:\r\n", &encode("a b.bin", &data)[..], b"bye\r\n"].concat();
        let sections = sections(&text);
        assert_eq!(sections.len(), 1);
        assert_eq!((&*sections[0].name, &sections[0].data), ("a b.bin", &data));
        assert_eq!(sections[0].range, 6..text.len() - 5);
        assert_eq!(sections[0].note, None);
    }

    #[test]
    fn parts_are_joined_or_said_to_be_parts() {
        let data: Vec<u8> = (0..=255).cycle().take(700).collect();
        let part = |n: usize, range: std::ops::Range<usize>| {
            [
                format!(
                    "=ybegin part={n} total=2 line=100 size=700 name=x\r\n=ypart begin={} end={}\r\n",
                    range.start + 1,
                    range.end
                )
                .as_bytes(),
                &lines(&data[range.clone()]),
                format!("=yend size={} part={n}\r\n", range.len()).as_bytes(),
            ]
            .concat()
        };
        let both = [part(1, 0..300), part(2, 300..700)].concat();
        let found = sections(&both);
        assert_eq!(found.len(), 3);
        assert_eq!((&found[2].data, found[2].range.clone()), (&data, 0..both.len()));
        assert!(found.iter().all(|s| s.note.is_none()));
        let found = sections(&part(2, 300..700));
        assert_eq!(found[0].note.map(|n| n.0), Some(Reason::Partial));
        assert_eq!(found[0].data, &data[300..]);
    }

    #[test]
    fn words_about_yenc_are_none() {
        assert!(sections(b"=ybegin is how it begins\r\n").is_empty());
        assert!(sections(b"a =ybegin line=1 size=2 name=x\r\n").is_empty());
        let cut = sections(b"=ybegin line=100 size=2 name=x\r\nab");
        assert_eq!(cut[0].note.map(|n| n.0), Some(Reason::Malformed));
    }
}

//! TNEF (MS-OXTNEF): what Outlook puts into winmail.dat. Attachments, messages inside them, and bodies.

use crate::object::{Place, Walk};
use crate::report::Reason;

/// `0x223e9f78`, little-endian.
const SIGNATURE: &[u8] = b"\x78\x9f\x3e\x22";

// Attribute numbers (MS-OXTNEF section 2.1.3.2).
const BODY: u32 = 0x0002_800c;
const ATTACH_DATA: u32 = 0x0006_800f;
const ATTACH_TITLE: u32 = 0x0001_8010;
const ATTACH_META: u32 = 0x0006_9001;
const ATTACH_BEGIN: u32 = 0x0006_9002;
const MESSAGE_PROPERTIES: u32 = 0x0006_9003;
const ATTACH_PROPERTIES: u32 = 0x0006_9005;

// Property numbers (MS-OXPROPS).
const PR_BODY: u16 = 0x1000;
const PR_RTF_COMPRESSED: u16 = 0x1009;
const PR_HTML: u16 = 0x1013;
const PR_ATTACH_DATA: u16 = 0x3701;
const PR_ATTACH_LONG_FILENAME: u16 = 0x3707;

/// Attachments whose bytes wait for their name.
#[derive(Default)]
struct Attachment {
    name: String,
    data: Vec<Vec<u8>>,
}

/// Opens a TNEF stream.
pub(crate) fn open(walk: &mut Walk<'_>, data: &[u8], place: Place) {
    // Signature and key come first.
    let mut rest = data.get(SIGNATURE.len() + 2..).unwrap_or_default();
    let mut attachment = Attachment::default();
    while !rest.is_empty() && !walk.stopped() {
        let Some((id, body, tail)) = attribute(rest) else {
            walk.note(Reason::Malformed, "TNEF attribute that is cut off");
            // What is there is looked at all the same.
            walk.part("tnef", rest, place);
            break;
        };
        rest = tail;
        match id {
            ATTACH_BEGIN => flush(walk, &mut attachment, place),
            ATTACH_TITLE if attachment.name.is_empty() => attachment.name = text(body),
            ATTACH_DATA | ATTACH_META => attachment.data.push(body.to_vec()),
            BODY => walk.part("body", body, place),
            MESSAGE_PROPERTIES | ATTACH_PROPERTIES => {
                let whole = properties(body, &mut |id, value| match id {
                    PR_BODY => walk.part("body", value, place),
                    PR_HTML => walk.part("html", value, place),
                    PR_RTF_COMPRESSED => match rtf(value, walk.limits.object_size) {
                        Some(rtf) => walk.part("body.rtf", &rtf, place),
                        None => walk.note(Reason::Malformed, "compressed RTF"),
                    },
                    PR_ATTACH_LONG_FILENAME => attachment.name = text(value),
                    // An object has the identifier of its interface before it (MS-OXTNEF section 2.1.3.5).
                    PR_ATTACH_DATA => match value.get(16..) {
                        Some(object) if object.starts_with(SIGNATURE) || ole(object) => {
                            attachment.data.push(object.to_vec());
                        }
                        _ => attachment.data.push(value.to_vec()),
                    },
                    _ => {}
                });
                if !whole {
                    walk.note(Reason::Malformed, "TNEF properties that are cut off");
                    walk.part("tnef", body, place);
                }
            }
            _ => {}
        }
    }
    flush(walk, &mut attachment, place);
}

fn ole(data: &[u8]) -> bool {
    data.starts_with(b"\xd0\xcf\x11\xe0")
}

fn flush(walk: &mut Walk<'_>, attachment: &mut Attachment, place: Place) {
    let Attachment { name, data } = std::mem::take(attachment);
    let name = if name.is_empty() { "attachment" } else { &name };
    for one in data {
        walk.part(name, &one, place);
    }
}

/// Text that ends in NUL, in 8 or 16 bits a character.
fn text(bytes: &[u8]) -> String {
    let wide = bytes.len() >= 4 && bytes.chunks_exact(2).all(|p| p[1] == 0 || p[0] == 0);
    let text = if wide {
        String::from_utf8_lossy(&super::encoding::narrow(bytes, false)).into_owned()
    } else {
        super::words::decode(b"", bytes)
    };
    text.trim_end_matches('\0').to_owned()
}

/// The attribute that the stream begins with: level, number, length, bytes, checksum.
fn attribute(rest: &[u8]) -> Option<(u32, &[u8], &[u8])> {
    let (header, body) = rest.split_at_checked(9)?;
    let id = u32::from_le_bytes([header[1], header[2], header[3], header[4]]);
    let len = u32::from_le_bytes([header[5], header[6], header[7], header[8]]) as usize;
    let (body, tail) = body.split_at_checked(len)?;
    Some((id, body, tail.get(2..)?))
}

/// Walks a list of properties (MS-OXTNEF section 2.1.3.4). False: it is cut off.
fn properties(data: &[u8], take: &mut dyn FnMut(u16, &[u8])) -> bool {
    let mut reader = Reader(data);
    let Some(count) = reader.u32() else { return false };
    for _ in 0..count {
        if reader.property(take).is_none() {
            return false;
        }
    }
    true
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(bytes)
    }

    fn u16(&mut self) -> Option<u16> {
        self.bytes(2).map(|b| u16::from_le_bytes([b[0], b[1]]))
    }

    fn u32(&mut self) -> Option<u32> {
        self.bytes(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
    }

    /// Bytes behind their length, filled up to a multiple of four.
    fn padded(&mut self) -> Option<&'a [u8]> {
        let len = self.u32()? as usize;
        let bytes = self.bytes(len)?;
        self.bytes((4 - len % 4) % 4)?;
        Some(bytes)
    }

    fn property(&mut self, take: &mut dyn FnMut(u16, &[u8])) -> Option<()> {
        let (kind, id) = (self.u16()?, self.u16()?);
        if id >= 0x8000 {
            // A named property: a GUID, then a number or a name.
            self.bytes(16)?;
            match self.u32()? {
                0 => drop(self.u32()?),
                _ => drop(self.padded()?),
            }
        }
        let fixed: usize = match kind & 0x0fff {
            0x02 | 0x03 | 0x04 | 0x0a | 0x0b => 4,
            0x05 | 0x06 | 0x07 | 0x14 | 0x40 => 8,
            0x48 => 16,
            0x01 => 0,
            0x0d | 0x1e | 0x1f | 0x102 => {
                for _ in 0..self.u32()? {
                    take(id, self.padded()?);
                }
                return Some(());
            }
            _ => return None,
        };
        let count = if kind & 0x1000 != 0 { self.u32()? as usize } else { 1 };
        self.bytes(fixed.checked_mul(count)?)?;
        Some(())
    }
}

/// What the dictionary of compressed RTF begins with (MS-OXRTFCP section 2.1.2.1).
const DICTIONARY: &[u8] = b"{\\rtf1\\ansi\\mac\\deff0\\deftab720{\\fonttbl;}{\\f0\\fnil \\froman \\fswiss \\fmodern \\fscript \\fdecor MS Sans SerifSymbolArialTimes New RomanCourier{\\colortbl\\red0\\green0\\blue0\r\n\\par \\pard\\plain\\f0\\fs20\\b\\i\\u\\tab\\tx";

/// Decompresses RTF (MS-OXRTFCP). None: it is none.
pub(crate) fn rtf(data: &[u8], most: u64) -> Option<Vec<u8>> {
    let mut reader = Reader(data);
    reader.u32()?;
    let raw = u64::from(reader.u32()?);
    let kind = reader.u32()?;
    reader.u32()?;
    let body = reader.0;
    match kind {
        // MELA: not compressed.
        0x414c_454d => return Some(body.to_vec()),
        // LZFu.
        0x7546_5a4c => {}
        _ => return None,
    }
    let mut window = [0u8; 4096];
    window[..DICTIONARY.len()].copy_from_slice(DICTIONARY);
    let mut at = DICTIONARY.len();
    let mut out = Vec::new();
    let mut bytes = body.iter().copied();
    let mut put = |b: u8, at: &mut usize, window: &mut [u8; 4096]| {
        out.push(b);
        window[*at] = b;
        *at = (*at + 1) % 4096;
        out.len() as u64 >= raw.min(most)
    };
    'run: while let Some(control) = bytes.next() {
        for bit in 0..8 {
            if control >> bit & 1 == 0 {
                let Some(b) = bytes.next() else { break 'run };
                if put(b, &mut at, &mut window) {
                    break 'run;
                }
                continue;
            }
            let (Some(hi), Some(lo)) = (bytes.next(), bytes.next()) else { break 'run };
            let from = usize::from(hi) << 4 | usize::from(lo >> 4);
            // A reference to the place of writing ends it.
            if from == at {
                break 'run;
            }
            for i in 0..usize::from(lo & 0x0f) + 2 {
                if put(window[(from + i) % 4096], &mut at, &mut window) {
                    break 'run;
                }
            }
        }
    }
    Some(out)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::limits::Limits;
    use crate::object::tests::{MARK, reasons, scan_with};
    use crate::report::Verdict;
    use crate::wire::ObjectKind;

    fn attribute(level: u8, id: u32, body: &[u8]) -> Vec<u8> {
        let mut out = vec![level];
        out.extend(id.to_le_bytes());
        out.extend((body.len() as u32).to_le_bytes());
        out.extend(body);
        out.extend(body.iter().fold(0u16, |n, &b| n.wrapping_add(u16::from(b))).to_le_bytes());
        out
    }

    fn stream(attributes: &[Vec<u8>]) -> Vec<u8> {
        [SIGNATURE, &[1, 0], &attributes.concat()].concat()
    }

    fn property(kind: u16, id: u16, value: &[u8]) -> Vec<u8> {
        let mut out = [kind.to_le_bytes(), id.to_le_bytes()].concat();
        out.extend(1u32.to_le_bytes());
        out.extend((value.len() as u32).to_le_bytes());
        out.extend(value);
        out.resize(out.len().next_multiple_of(4), 0);
        out
    }

    fn list(properties: &[Vec<u8>]) -> Vec<u8> {
        [&(properties.len() as u32).to_le_bytes()[..], &properties.concat()].concat()
    }

    pub(crate) fn winmail(name: &str, data: &[u8]) -> Vec<u8> {
        stream(&[
            attribute(1, 0x0008_9006, &0x0001_0000u32.to_le_bytes()),
            attribute(2, ATTACH_BEGIN, &[0; 14]),
            attribute(2, ATTACH_TITLE, format!("{name}\0").as_bytes()),
            attribute(2, ATTACH_DATA, data),
        ])
    }

    fn scanned(data: &[u8]) -> crate::report::Report {
        scan_with(&Limits::default(), ObjectKind::File, data)
    }

    #[test]
    fn attachments_are_opened() {
        let report = scanned(&winmail("a.com", MARK));
        assert_eq!((report.verdict, &*report.kind), (Verdict::Infected, "tnef"));
        assert_eq!(report.findings[0].path.last().unwrap(), "a.com");
        // A message inside, behind the identifier of its interface; the long name counts.
        let inner = winmail("b.com", MARK);
        let name: Vec<u8> = "long name.msg\0".encode_utf16().flat_map(u16::to_le_bytes).collect();
        let properties = list(&[
            property(0x1f, PR_ATTACH_LONG_FILENAME, &name),
            property(0x0d, PR_ATTACH_DATA, &[&[7; 16][..], &inner].concat()),
        ]);
        let outer = stream(&[
            attribute(2, ATTACH_BEGIN, &[0; 14]),
            attribute(2, ATTACH_PROPERTIES, &properties),
        ]);
        let report = scanned(&outer);
        assert_eq!(report.findings[0].path[1..], ["long name.msg", "b.com"], "{report:?}");
    }

    #[test]
    fn bodies_are_opened() {
        // The mark as literals, eight to a control byte.
        let mut rtf_body = Vec::new();
        for chunk in MARK.chunks(8) {
            rtf_body.push(0);
            rtf_body.extend(chunk);
        }
        let mut packed = (rtf_body.len() as u32 + 12).to_le_bytes().to_vec();
        packed.extend((MARK.len() as u32).to_le_bytes());
        packed.extend(b"LZFu\0\0\0\0");
        packed.extend(rtf_body);
        for (id, body) in [(PR_RTF_COMPRESSED, &packed[..]), (PR_HTML, MARK), (PR_BODY, MARK)] {
            let named = [
                &[0x03, 0, 0x01, 0x80][..],
                &[0; 16],
                &1u32.to_le_bytes(),
                &5u32.to_le_bytes(),
                b"named\0\0\0",
                &9u32.to_le_bytes(),
            ]
            .concat();
            let properties = list(&[named, property(0x102, id, body)]);
            let report = scanned(&stream(&[attribute(1, MESSAGE_PROPERTIES, &properties)]));
            assert_eq!(report.verdict, Verdict::Infected, "{id:x} {report:?}");
        }
    }

    #[test]
    fn compressed_rtf_follows_its_standard() {
        // MS-OXRTFCP section 4.1.1, example 1.
        let data = b"\x2d\0\0\0\x2b\0\0\0LZFu\xf1\xc5\xc7\xa7\x03\0\x0a\0rcpg125B2\x0a\xf3 hel\x09\0\x20bw\x05\xb0ld}\x0a\x80\x0f\xa0";
        let plain = b"{\\rtf1\\ansi\\ansicpg1252\\pard hello world}\r\n";
        assert_eq!(rtf(data, 1 << 20).unwrap(), plain);
        assert_eq!(rtf(b"\0\0\0\0\x01\0\0\0MELA\0\0\0\0x", 9).unwrap(), b"x");
        assert_eq!(rtf(b"", 9), None);
    }

    #[test]
    fn what_is_cut_off_is_said_and_still_searched() {
        let whole = winmail("a.com", MARK);
        let report = scanned(&whole[..whole.len() - 1]);
        assert!(reasons(&report).contains(&Reason::Malformed), "{report:?}");
        for len in 4..whole.len() {
            let _ = scanned(&whole[..len]);
        }
    }
}

//! BinHex 4.0 (RFC 1741): six bits a letter, repetitions packed, a data fork and a resource fork.

use super::sweep::Section;
use crate::bytes::clipped;
use crate::report::Reason;
use memchr::memmem;

const MARK: &[u8] = b"(This file must be converted with BinHex";

/// Sections of one text that are opened.
const SECTIONS_MAX: usize = 100;

/// Bytes between the first line and the encoded ones: a blank line, by the letter. Within them any line that begins with a
/// colon is taken for the first.
const GAP_MAX: usize = 4096;

/// Letters in the first line: 64 with the colon.
const LINE: usize = 63;

/// Bytes that all sections of a text may unpack to: a repetition makes 255 of three, and files of that time fit
/// many times.
const SIZE_MAX: usize = 64 << 20;

/// The sections of a text: each fork is one, and the decoded whole where its header is not right.
pub(crate) fn sections(data: &[u8]) -> Vec<Section> {
    let mut out: Vec<Section> = Vec::new();
    let mut room = SIZE_MAX;
    // The next line with a colon at its beginning: looked for once for all marks before it.
    let mut next: Option<usize> = None;
    for start in memmem::find_iter(data, MARK) {
        if start > 0 && data[start - 1] != b'\n' {
            continue;
        }
        // The encoded lines are between two colons, the first of which begins a line.
        if next.is_none_or(|at| at < start) {
            next = memmem::find(&data[start..], b"\n:").map(|i| start + i);
        }
        let Some(colon) = next.map(|at| at + 2) else { break };
        // Further away it is one if what follows looks like it.
        let line = clipped(data, colon, LINE);
        let looks = line.len() == LINE && line.iter().all(|&b| VALUES[usize::from(b)] != 0xff);
        if colon > start + GAP_MAX && !looks {
            continue;
        }
        if let Some(last) = (out.len() >= SECTIONS_MAX).then(|| out.last_mut()).flatten() {
            last.note = Some((Reason::Members, "more BinHex sections than are opened"));
            break;
        }
        let (packed, len, ended) = letters(&data[colon..]);
        let mut end = colon + len;
        end += data[end..].iter().take_while(|b| matches!(b, b'\r' | b'\n')).count().min(2);
        let unpacked = unpack(&packed, room);
        let range = start..end;
        let note = if unpacked.len() >= room {
            Some((Reason::Size, "BinHex sections of more than 64 MiB"))
        } else {
            (!ended).then_some((Reason::Malformed, "BinHex section without an end"))
        };
        room -= unpacked.len().min(room);
        match forks(&unpacked) {
            Some((name, forks)) => {
                for fork in forks.into_iter().filter(|f| !f.is_empty()) {
                    let (name, data, range) = (name.clone(), fork.to_vec(), range.clone());
                    out.push(Section { name, data, range, note });
                }
            }
            None => {
                let note = Some((Reason::Malformed, "BinHex section with a wrong header"));
                out.push(Section { name: "binhex".into(), data: unpacked, range, note });
            }
        }
    }
    out
}

const LETTERS: &[u8; 64] = b"!\"#$%&'()*+,-012345689@ABCDEFGHIJKLMNPQRSTUVXYZ[`abcdefhijklmpqr";

const VALUES: [u8; 256] = {
    let mut table = [0xff; 256];
    let mut i = 0;
    while i < 64 {
        table[LETTERS[i] as usize] = i as u8;
        i += 1;
    }
    table
};

/// Decodes letters up to the closing colon: the bytes, the length in the text, and whether there was one.
fn letters(text: &[u8]) -> (Vec<u8>, usize, bool) {
    let mut out = Vec::new();
    let (mut bits, mut count) = (0u32, 0);
    for (i, &b) in text.iter().enumerate() {
        match VALUES[b as usize] {
            0xff if b == b':' => return (out, i + 1, true),
            0xff if b.is_ascii_whitespace() => {}
            0xff => return (out, i, false),
            value => {
                bits = bits << 6 | u32::from(value);
                count += 6;
                if count >= 8 {
                    count -= 8;
                    out.push((bits >> count) as u8);
                    bits &= (1 << count) - 1;
                }
            }
        }
    }
    (out, text.len(), false)
}

/// Undoes the packing: 0x90 and a count repeat the byte before; a count of 0 stands for 0x90 itself.
fn unpack(packed: &[u8], most: usize) -> Vec<u8> {
    let mut out = Vec::new();
    let mut bytes = packed.iter().copied();
    while let Some(b) = bytes.next() {
        if out.len() >= most {
            break;
        }
        if b != 0x90 {
            out.push(b);
            continue;
        }
        match bytes.next() {
            Some(0) | None => out.push(0x90),
            Some(count) => {
                if let Some(&last) = out.last() {
                    out.extend(std::iter::repeat_n(last, usize::from(count) - 1));
                }
            }
        }
    }
    out.truncate(most);
    out
}

/// Name and forks: length and name, version, type, creator, flags, two lengths, checksum; each fork has its
/// checksum behind it. Checksums are not looked at: readers differ on that, and the bytes are what counts.
fn forks(data: &[u8]) -> Option<(String, [&[u8]; 2])> {
    let name_len = usize::from(*data.first()?);
    let name = data.get(1..=name_len)?;
    let header = data.get(name_len + 1..)?;
    let length = |at: usize| {
        header.get(at..at + 4).map(|b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]) as usize)
    };
    let (data_len, resource_len) = (length(11)?, length(15)?);
    let body = header.get(21..)?;
    if name_len == 0 || name_len > 63 || data_len > body.len() {
        return None;
    }
    let resource = body.get(data_len + 2..).unwrap_or_default();
    let resource = &resource[..resource_len.min(resource.len())];
    Some((String::from_utf8_lossy(name).into_owned(), [&body[..data_len], resource]))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn encode(name: &str, data: &[u8]) -> String {
        let mut plain = vec![name.len() as u8];
        plain.extend(name.as_bytes());
        plain.extend(b"\0TEXTttxt\0\0");
        plain.extend((data.len() as u32).to_be_bytes());
        plain.extend([0; 4]);
        plain.extend([0; 2]);
        plain.extend(data);
        plain.extend([0; 4]);
        let mut packed = Vec::new();
        for &b in &plain {
            packed.push(b);
            if b == 0x90 {
                packed.push(0);
            }
        }
        let mut out = "(This file must be converted with BinHex 4.0)\r\n\r\n:".to_owned();
        for (i, chunk) in packed.chunks(3).enumerate() {
            if i > 0 && i % 16 == 0 {
                out.push_str("\r\n");
            }
            let n =
                chunk.iter().fold(0u32, |n, &b| n << 8 | u32::from(b)) << (8 * (3 - chunk.len()));
            for k in 0..=chunk.len() {
                out.push(char::from(LETTERS[(n >> (18 - 6 * k)) as usize & 63]));
            }
        }
        out + ":\r\n"
    }

    #[test]
    fn sections_are_read() {
        let data: Vec<u8> = (0..=255).cycle().take(700).collect();
        let text = format!("see\r\n{}bye", encode("a.bin", &data));
        let sections = sections(text.as_bytes());
        assert_eq!(sections.len(), 1);
        assert_eq!((&*sections[0].name, &sections[0].data), ("a.bin", &data));
        assert_eq!(sections[0].range, 5..text.len() - 3);
        assert_eq!(sections[0].note, None);
        assert_eq!(unpack(&[1, 0x90, 4, 0x90, 0, 2], 99), [1, 1, 1, 1, 0x90, 2]);
        assert_eq!(unpack(&[1, 0x90, 255, 0x90, 255], 300), [1; 300]);
        assert_eq!(unpack(&[0x90, 4, 0x90], 99), [0x90]);
    }

    #[test]
    fn cut_off_sections_are_said() {
        let text = encode("a.bin", &[1; 300]);
        let cut = &text[..text.len() - 20];
        let found = sections(cut.as_bytes());
        assert!(found.iter().all(|s| s.note.is_some()) && found.len() == 1, "{found:?}");
        assert!(sections(b"(This file must be converted with BinHex 4.0)\r\nno\r\n").is_empty());
    }
}

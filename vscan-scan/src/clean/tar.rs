//! tar archives (POSIX ustar, GNU, pax) without some of their members.

use super::Fate;
use crate::archive::tar::checksum_agrees;
use std::ops::Range;

const BLOCK: usize = 512;

/// A member.
#[derive(Clone, Debug)]
pub(super) struct Member {
    /// Its blocks, those with its long name or its pax fields before it included.
    record: Range<usize>,
    /// Its bytes.
    pub(super) data: Range<usize>,
}

/// An archive that is regular up to the zeros at its end.
pub(super) struct Archive<'a> {
    data: &'a [u8],
    pub(super) members: Vec<Member>,
    end: usize,
}

impl<'a> Archive<'a> {
    /// # Errors
    /// What is irregular, in words.
    pub(super) fn parse(data: &'a [u8]) -> Result<Self, String> {
        let irregular = || "an irregular tar archive".to_owned();
        let mut members = Vec::new();
        let (mut at, mut start) = (0, 0);
        while let Some(header) = data.get(at..at + BLOCK) {
            if header.iter().all(|&b| b == 0) {
                break;
            }
            let size = size(&header[124..136]).ok_or_else(irregular)?;
            let body = at + BLOCK;
            let next = size.checked_next_multiple_of(BLOCK).and_then(|s| body.checked_add(s));
            let next = next.filter(|&n| n <= data.len()).ok_or_else(irregular)?;
            if !checksum_agrees(header) {
                return Err(irregular());
            }
            match header[156] {
                // Names and fields for the next member.
                b'L' | b'K' | b'x' => {}
                // Sparse files have maps, continued ones other volumes.
                b'S' | b'M' | b'V' => return Err(irregular()),
                _ => {
                    members.push(Member { record: start..next, data: body..body + size });
                    start = next;
                }
            }
            at = next;
        }
        if at != start || data[at.min(data.len())..].iter().any(|&b| b != 0) {
            return Err(irregular());
        }
        Ok(Self { data, members, end: at })
    }

    /// The archive with the members that are kept. None is replaced: its size may stand in several places.
    pub(super) fn rebuilt(&self, fates: &[Fate]) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.data.len());
        for (member, fate) in self.members.iter().zip(fates) {
            match fate {
                Fate::Kept => out.extend_from_slice(&self.data[member.record.clone()]),
                Fate::Dropped | Fate::Cleaned(_) => {}
            }
        }
        out.extend_from_slice(&self.data[self.end..]);
        out
    }
}

/// A size in octal digits, or in binary with the first bit set (GNU).
fn size(field: &[u8]) -> Option<usize> {
    if field[0] & 0x80 != 0 {
        let high = field[..field.len() - 8].iter().skip(1).any(|&b| b != 0) || field[0] != 0x80;
        let bytes: [u8; 8] = field[field.len() - 8..].try_into().ok()?;
        return usize::try_from(u64::from_be_bytes(bytes)).ok().filter(|_| !high);
    }
    let text = std::str::from_utf8(field).ok()?;
    usize::from_str_radix(text.trim_matches(['\0', ' ']), 8).ok()
}

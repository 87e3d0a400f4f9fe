//! ISO 9660 images (ECMA-119) with their Joliet view and Rock Ridge names.
//!
//! The views share most files, which are read once; a file that only one of them names is read as well.

use crate::bytes::{clipped, u16_le, u32_le, utf16};
use crate::object::{Place, Walk};
use crate::report::Reason;
use std::collections::HashSet;

pub(crate) const SECTOR: usize = 2048;
/// The first volume descriptor's sector.
const DESCRIPTORS: usize = 16;
/// Volume descriptors of one image; a disc has two to four.
const DESCRIPTORS_MAX: usize = 64;
const DIRECTORY: u8 = 2;
const MULTI_EXTENT: u8 = 0x80;
/// Bytes of one directory: room for 50,000 files.
const DIRECTORY_MAX: usize = 8 << 20;

pub(crate) fn begins(data: &[u8]) -> bool {
    data.get(DESCRIPTORS * SECTOR + 1..).is_some_and(|d| d.starts_with(b"CD001"))
}

pub(crate) fn open(walk: &mut Walk<'_>, data: &[u8]) {
    let mut seen = Seen::default();
    for sector in DESCRIPTORS..DESCRIPTORS + DESCRIPTORS_MAX {
        let descriptor = clipped(data, sector * SECTOR, SECTOR);
        if descriptor.get(1..6) != Some(b"CD001") || descriptor.len() < SECTOR {
            if sector == DESCRIPTORS {
                walk.note(Reason::Malformed, "the volume descriptor is cut off");
            }
            return;
        }
        let joliet = match descriptor[0] {
            1 => false,
            // Its escape sequence tells Joliet from other supplementary volumes.
            2 => descriptor[88..90] == *b"%/",
            255 => return,
            _ => continue,
        };
        if let Some(root) = Record::parse(&descriptor[156..190], joliet) {
            volume(walk, data, root, joliet, &mut seen);
        }
    }
    walk.note(Reason::Members, "more volume descriptors than are read");
}

#[derive(Default)]
struct Seen {
    directories: HashSet<(u32, u32, bool)>,
    files: HashSet<(u32, u32)>,
}

struct Record {
    extent: u32,
    size: u32,
    flags: u8,
    name: String,
    /// The directory itself or the one above: names of one byte, 0 and 1 (ECMA-119 6.8.2.2).
    known: bool,
    /// Bytes of the record itself.
    len: usize,
}

impl Record {
    fn parse(data: &[u8], joliet: bool) -> Option<Self> {
        let len = usize::from(*data.first()?);
        let record = data.get(..len.max(34))?;
        let name_len = usize::from(record[32]);
        let name = record.get(33..33 + name_len)?;
        let known = matches!(name, [0 | 1]);
        let system_use = record.get((33 + name_len).next_multiple_of(2)..).unwrap_or_default();
        let name = rock_ridge(system_use)
            .unwrap_or_else(|| if joliet { utf16(name, true) } else { super::name(name) });
        Some(Self {
            extent: u32_le(record, 2)?.saturating_add(record[1].into()),
            size: u32_le(record, 10)?,
            flags: record[25],
            // The version behind a semicolon is no part of the name.
            known,
            name: name.split(';').next().unwrap_or_default().to_owned(),
            len,
        })
    }
}

/// The name in the NM entries of the system use area (SUSP, RRIP 4.1.4).
fn rock_ridge(mut area: &[u8]) -> Option<String> {
    let mut name: Option<Vec<u8>> = None;
    while let Some(&[a, b, len, _]) = area.first_chunk() {
        if len < 4 {
            break;
        }
        let entry = area.get(..usize::from(len))?;
        if (a, b) == (b'N', b'M') {
            name.get_or_insert_default().extend(entry.get(5..)?);
        }
        area = &area[entry.len()..];
    }
    name.map(|name| super::name(&name))
}

fn volume(walk: &mut Walk<'_>, data: &[u8], root: Record, joliet: bool, seen: &mut Seen) {
    let mut directories = vec![(root, String::new())];
    while let Some((directory, path)) = directories.pop() {
        if !seen.directories.insert((directory.extent, directory.size, joliet)) {
            continue;
        }
        if seen.directories.len() > walk.limits.members as usize {
            return walk.note(Reason::Members, "too many directories");
        }
        let start = directory.extent as usize * SECTOR;
        let content = clipped(data, start, (directory.size as usize).min(DIRECTORY_MAX));
        if content.len() < directory.size as usize {
            walk.within(&path, |walk| walk.note(Reason::Malformed, "a directory is cut off"));
        }
        // Records do not cross sectors.
        for sector in content.chunks(SECTOR) {
            let mut rest = sector;
            let mut pieces: Vec<u8> = Vec::new();
            while rest.first().is_some_and(|&len| len >= 34) {
                if walk.stopped() {
                    return;
                }
                let Some(record) = Record::parse(rest, joliet) else {
                    walk.within(&path, |walk| {
                        walk.note(Reason::Malformed, "a directory record is wrong")
                    });
                    break;
                };
                rest = &rest[record.len..];
                if record.flags & DIRECTORY != 0 {
                    if !record.known {
                        let inner = format!("{path}{}/", record.name);
                        directories.push((record, inner));
                    }
                    continue;
                }
                let name = format!("{path}{}", record.name);
                let body = clipped(data, record.extent as usize * SECTOR, record.size as usize);
                if body.len() < record.size as usize {
                    walk.within(&name, |walk| walk.note(Reason::Malformed, "the file is cut off"));
                }
                if record.flags & MULTI_EXTENT != 0 || !pieces.is_empty() {
                    if pieces.len() as u64 <= walk.limits.object_size {
                        pieces.extend_from_slice(body);
                    }
                    if record.flags & MULTI_EXTENT == 0 {
                        let whole = std::mem::take(&mut pieces);
                        walk.decoded(&name, whole.len() as u64, &mut &whole[..]);
                    }
                } else if !body.is_empty() && seen.files.insert((record.extent, record.size)) {
                    walk.part(&name, body, Place::File);
                }
            }
            if rest.first().is_some_and(|&len| len > 0) {
                walk.within(&path, |walk| {
                    walk.note(Reason::Malformed, "a directory record is wrong")
                });
            }
            if !pieces.is_empty() {
                walk.part(&path, &pieces, Place::File);
            }
        }
    }
}

/// Marks of a UDF file system in the volume recognition area (ECMA-167 2/9).
pub(crate) fn has_udf(data: &[u8]) -> bool {
    (DESCRIPTORS..DESCRIPTORS + DESCRIPTORS_MAX)
        .any(|sector| matches!(clipped(data, sector * SECTOR + 1, 5), b"NSR02" | b"NSR03"))
}

/// The 16 bits at the beginning of every descriptor of UDF (ECMA-167 3/7.2), with its checksum checked.
pub(crate) fn udf_tag(descriptor: &[u8]) -> Option<u16> {
    let tag = descriptor.get(..16)?;
    let sum =
        tag.iter().enumerate().filter(|&(i, _)| i != 4).fold(0u8, |s, (_, &b)| s.wrapping_add(b));
    if sum == tag[4] { u16_le(tag, 0) } else { None }
}

//! UDF file systems (ECMA-167, OSTA UDF) of optical discs and images: sectors of 2048 bytes, plain partitions.

use super::iso::{SECTOR, udf_tag};
use crate::bytes::{clipped, u16_le, u32_le, u64_le, utf16};
use crate::object::{Place, Walk};
use crate::report::Reason;
use std::collections::HashSet;

/// Tags of descriptors (ECMA-167 3/7.2.1 and 4/7.2.1).
const ANCHOR: u16 = 2;
const PARTITION: u16 = 5;
const LOGICAL_VOLUME: u16 = 6;
const TERMINATOR: u16 = 8;
const FILE_SET: u16 = 256;
const FILE_IDENTIFIER: u16 = 257;
const FILE_ENTRY: u16 = 261;
const EXTENDED_FILE_ENTRY: u16 = 266;

/// File type of a directory (ECMA-167 4/14.6.6).
const DIRECTORY: u8 = 4;
/// File characteristics (ECMA-167 4/14.4.3).
const PARENT: u8 = 8;

/// Descriptors of a volume; discs have below 16.
const DESCRIPTORS_MAX: usize = 256;
/// Extents of a file; a sparse or fragmented one on a disc has a few hundred.
const EXTENTS_MAX: usize = 64 * 1024;

pub(crate) fn open(walk: &mut Walk<'_>, data: &[u8]) {
    let Some(volume) = Volume::find(data) else {
        return walk.note(Reason::Malformed, "UDF without a usable volume");
    };
    if volume.starts.is_empty() {
        return walk.note(Reason::Unsupported, "UDF partition of a kind that cannot be opened");
    }
    let root = volume
        .block(volume.file_set)
        .filter(|d| udf_tag(d) == Some(FILE_SET))
        .and_then(|d| address(d, 400));
    let Some(root) = root else {
        return walk.note(Reason::Malformed, "UDF without a root directory");
    };
    let mut seen = HashSet::new();
    let mut entries = vec![(root, String::new())];
    while let Some((at, path)) = entries.pop() {
        if walk.stopped() {
            return;
        }
        if !seen.insert(at) {
            continue;
        }
        if seen.len() > walk.limits.members as usize {
            return walk.note(Reason::Members, "too many files");
        }
        let Some((directory, content)) = volume.file(at, walk.limits.object_size) else {
            walk.within(&path, |walk| walk.note(Reason::Malformed, "UDF file without an entry"));
            continue;
        };
        if directory {
            let room = (walk.limits.members as usize + 1).saturating_sub(entries.len());
            let (names, whole) = names(&content, &path);
            if !whole {
                walk.within(&path, |walk| {
                    walk.note(Reason::Malformed, "a directory record is wrong")
                });
            }
            if names.len() > room {
                walk.note(Reason::Members, "too many files");
            }
            entries.extend(names.into_iter().take(room));
        } else if !content.is_empty() {
            walk.part(&path, &content, Place::File);
        }
        if content.cut {
            walk.within(&path, |walk| walk.note(Reason::Malformed, "the file is cut off"));
        }
    }
}

/// A block within a partition, by the number of the partition's map.
type Address = (u32, u16);

/// A long allocation descriptor's address (ECMA-167 4/14.14.2).
fn address(data: &[u8], at: usize) -> Option<Address> {
    Some((u32_le(data, at + 4)?, u16_le(data, at + 8)?))
}

struct Volume<'a> {
    data: &'a [u8],
    /// Where the partition of each map begins, in sectors.
    starts: Vec<u32>,
    file_set: Address,
}

struct Content {
    bytes: Vec<u8>,
    cut: bool,
}

impl std::ops::Deref for Content {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl<'a> Volume<'a> {
    fn find(data: &'a [u8]) -> Option<Self> {
        let last = data.len() / SECTOR;
        // The anchor lies in two of these places.
        let anchors = [256, last.saturating_sub(1), last.saturating_sub(257), 512];
        anchors.into_iter().find_map(|sector| {
            let anchor = clipped(data, sector * SECTOR, SECTOR);
            if udf_tag(anchor) != Some(ANCHOR) {
                return None;
            }
            // The main sequence of descriptors, else its reserve copy.
            [16, 24].into_iter().find_map(|at| {
                let (len, start) = (u32_le(anchor, at)? as usize, u32_le(anchor, at + 4)? as usize);
                Self::sequence(data, start, len / SECTOR)
            })
        })
    }

    fn sequence(data: &'a [u8], start: usize, count: usize) -> Option<Self> {
        let mut partitions = Vec::new();
        let mut volume = None;
        for sector in start..start.saturating_add(count.min(DESCRIPTORS_MAX)) {
            let descriptor = clipped(data, sector.checked_mul(SECTOR)?, SECTOR);
            match udf_tag(descriptor) {
                Some(PARTITION) => {
                    partitions.push((u16_le(descriptor, 22)?, u32_le(descriptor, 188)?))
                }
                Some(LOGICAL_VOLUME) => volume = Some(descriptor),
                Some(TERMINATOR) => break,
                _ => {}
            }
        }
        let volume = volume.filter(|v| u32_le(v, 212) == Some(SECTOR as u32))?;
        let file_set = address(volume, 248)?;
        let mut starts = Vec::new();
        let mut maps = volume.get(440..)?;
        for _ in 0..u32_le(volume, 268)? {
            let (kind, len) = (*maps.first()?, usize::from(*maps.get(1)?));
            let map = maps.get(..len)?;
            // Kind 1: the partition as it is. Of the others only the sparable one (UDF 2.2.9) lies as it is as well.
            let number = match kind {
                1 => u16_le(map, 4),
                2 if map.get(5..).is_some_and(|m| m.starts_with(b"*UDF Sparable Partition")) => {
                    u16_le(map, 38)
                }
                _ => return Some(Self { data, starts: Vec::new(), file_set }),
            };
            let number = number?;
            starts.push(partitions.iter().find(|p| p.0 == number)?.1);
            maps = maps.get(len.max(1)..)?;
        }
        Some(Self { data, starts, file_set })
    }

    fn bytes(&self, (block, partition): Address, len: usize) -> Option<&'a [u8]> {
        let start = *self.starts.get(usize::from(partition))?;
        Some(clipped(
            self.data,
            (start as usize).checked_add(block as usize)?.checked_mul(SECTOR)?,
            len,
        ))
    }

    fn block(&self, at: Address) -> Option<&'a [u8]> {
        self.bytes(at, SECTOR)
    }

    /// A file's content by its entry, and whether it is a directory.
    fn file(&self, at: Address, most: u64) -> Option<(bool, Content)> {
        let entry = self.block(at)?;
        let header = match udf_tag(entry)? {
            FILE_ENTRY => 176,
            EXTENDED_FILE_ENTRY => 216,
            _ => return None,
        };
        let size = u64_le(entry, 56)?;
        let attributes = u32_le(entry, header - 8)? as usize;
        let len = u32_le(entry, header - 4)? as usize;
        let area = clipped(entry, header.checked_add(attributes)?, len);
        let directory = entry[27] == DIRECTORY;
        let kind = u16_le(entry, 34)? & 7;
        let mut content = Content { bytes: Vec::new(), cut: size > most };
        let size = size.min(most) as usize;
        if kind == 3 {
            content.bytes.extend_from_slice(clipped(area, 0, size));
        } else {
            self.extents(area, kind, at.1, size, &mut content);
        }
        content.cut |= content.bytes.len() < size;
        Some((directory, content))
    }

    /// Gathers a file from its extents: short (kind 0) or long (kind 1) allocation descriptors.
    fn extents(
        &self,
        area: &'a [u8],
        kind: u16,
        partition: u16,
        size: usize,
        content: &mut Content,
    ) {
        let step = match kind {
            0 => 8,
            1 => 16,
            _ => return,
        };
        let (mut area, mut i) = (area, 0);
        for _ in 0..EXTENTS_MAX {
            if content.bytes.len() >= size {
                return;
            }
            let (Some(len), Some(block)) = (u32_le(area, i), u32_le(area, i + 4)) else { return };
            let partition = if kind == 1 { u16_le(area, i + 8).unwrap_or(0) } else { partition };
            i += step;
            // The upper two bits: recorded, allocated, neither, or more descriptors elsewhere.
            let (recorded, len) = (len >> 30, (len & 0x3fff_ffff) as usize);
            let room = len.min(size - content.bytes.len());
            match (recorded, len) {
                (_, 0) => return,
                (0, _) => {
                    let Some(bytes) = self.bytes((block, partition), room) else { return };
                    content.bytes.extend_from_slice(bytes);
                    if bytes.len() < room {
                        return;
                    }
                }
                (1 | 2, _) => content.bytes.resize(content.bytes.len() + room, 0),
                _ => {
                    let Some(next) = self.bytes((block, partition), len) else { return };
                    // An allocation extent descriptor (ECMA-167 4/14.5) comes first.
                    area = clipped(next, 24, u32_le(next, 20).unwrap_or(0) as usize);
                    i = 0;
                }
            }
        }
    }
}

/// The files that a directory names, and whether all of it could be read.
fn names(directory: &[u8], path: &str) -> (Vec<(Address, String)>, bool) {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(entry) = directory.get(at..).filter(|e| udf_tag(e) == Some(FILE_IDENTIFIER)) {
        let (Some(&[characteristics, name]), Some(used)) =
            (entry.get(18..20).and_then(|b| b.first_chunk()), u16_le(entry, 36))
        else {
            break;
        };
        let used = usize::from(used);
        if characteristics & PARENT == 0 {
            let name = match clipped(entry, 38 + used, name.into()) {
                [16, rest @ ..] => utf16(rest, true),
                [_, rest @ ..] => rest.iter().map(|&b| char::from(b)).collect(),
                [] => String::new(),
            };
            let path = if path.is_empty() { name } else { format!("{path}/{name}") };
            found.extend(address(entry, 20).map(|a| (a, path)));
        }
        at += (38 + used + usize::from(name)).next_multiple_of(4);
    }
    let rest = directory.get(at..).unwrap_or_default();
    (found, rest.iter().all(|&b| b == 0))
}

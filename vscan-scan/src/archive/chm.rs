//! Compiled HTML Help (`.chm`, the ITSF format): the files of both content sections, the second packed by LZX.

use super::cab::lzx_window;
use super::guard::caught;
use crate::bytes::{clipped, u32_le, u64_le};
use crate::object::{Place, Walk};
use crate::report::Reason;
use lzxd::Lzxd;

/// Bytes that one step of LZX decodes.
const FRAME: u64 = 32 * 1024;
const CONTENT: &str = "::DataSpace/Storage/MSCompressed/Content";
const CONTROL: &str = "::DataSpace/Storage/MSCompressed/ControlData";
const RESETS: &str = "::DataSpace/Storage/MSCompressed/Transform/\
                      {7FC28940-9D31-11D0-9B27-00A0C91E9C7C}/InstanceData/ResetTable";

struct Entry {
    name: String,
    section: u64,
    offset: u64,
    len: u64,
}

pub(crate) fn open(walk: &mut Walk<'_>, data: &[u8]) {
    let Some((entries, content)) = directory(data, walk.limits.members as usize) else {
        return walk.note(Reason::Malformed, "help file without a directory");
    };
    if entries.is_empty() {
        walk.note(Reason::Malformed, "help file without files");
    }
    if entries.len() > walk.limits.members as usize {
        walk.note(Reason::Members, "too many entries in the directory of a help file");
    }
    let stored = |entry: &Entry| {
        let at = usize::try_from(entry.offset).ok()?.checked_add(content)?;
        Some(clipped(data, at, usize::try_from(entry.len).ok()?))
    };
    for entry in entries.iter().filter(|e| e.section == 0 && e.len > 0) {
        if walk.stopped() {
            return;
        }
        let body = stored(entry).unwrap_or_default();
        if !body.is_empty() {
            walk.part(&entry.name, body, Place::File);
        }
        if (body.len() as u64) < entry.len {
            walk.within(&entry.name, |walk| walk.note(Reason::Malformed, "the file is cut off"));
        }
    }
    let mut packed: Vec<&Entry> = entries.iter().filter(|e| e.section == 1 && e.len > 0).collect();
    if packed.is_empty() {
        return;
    }
    packed.sort_by_key(|e| e.offset);
    let named = |name: &str| entries.iter().find(|e| e.name == name).and_then(stored);
    let lzx = || Lzx::new(named(CONTENT)?, named(CONTROL)?, named(RESETS)?);
    let Some(mut lzx) = lzx() else {
        return walk.note(Reason::Malformed, "help file without what its packed section needs");
    };
    let Some(size) = packed.iter().map(|e| e.offset.saturating_add(e.len)).max() else { return };
    let (whole, failed) = lzx.decode(size.min(walk.limits.object_size));
    for entry in packed {
        if walk.stopped() {
            return;
        }
        let (at, len) = (usize::try_from(entry.offset), usize::try_from(entry.len));
        let (Ok(at), Ok(len)) = (at, len) else { continue };
        let body = clipped(&whole, at, len);
        if !body.is_empty() {
            walk.part(&entry.name, body, Place::File);
        }
        if body.len() < len {
            let reason = if failed { Reason::Malformed } else { Reason::Size };
            walk.within(&entry.name, |walk| {
                walk.note(reason, "not all of the help file was decoded")
            });
        }
    }
}

/// The entries of all listing chunks, and where the content of section 0 begins.
fn directory(data: &[u8], most: usize) -> Option<(Vec<Entry>, usize)> {
    // The header: two sections, the second of which is the directory; from version 3 on the place of the content.
    let start = usize::try_from(u64_le(data, 0x48)?).ok()?;
    let content = usize::try_from(u64_le(data, 0x58)?).ok()?;
    let header = data.get(start..)?;
    if !header.starts_with(b"ITSP") {
        return None;
    }
    let header_len = u32_le(header, 8)? as usize;
    let chunk_len = u32_le(header, 16)? as usize;
    if chunk_len < 32 {
        return None;
    }
    let mut entries = Vec::new();
    // Readers go from chunk to chunk by number: what is none may lie among them, as index chunks do.
    let count = u32_le(header, 44)? as usize;
    for chunk in header.get(header_len..)?.chunks(chunk_len).take(count) {
        if !chunk.starts_with(b"PMGL") {
            continue;
        }
        let quick = u32_le(chunk, 4)? as usize;
        let mut rest = chunk.get(20..chunk.len().saturating_sub(quick).max(20)).unwrap_or_default();
        while let Some(entry) = entry(&mut rest) {
            entries.push(entry);
            if entries.len() > most {
                return Some((entries, content));
            }
        }
    }
    Some((entries, content))
}

fn entry(rest: &mut &[u8]) -> Option<Entry> {
    let len = usize::try_from(number(rest)?).ok()?;
    let (name, behind) = rest.split_at_checked(len).filter(|(n, _)| !n.is_empty())?;
    *rest = behind;
    Some(Entry {
        name: super::name(name),
        section: number(rest)?,
        offset: number(rest)?,
        len: number(rest)?,
    })
}

/// A number of seven bits in each byte, the highest first; the upper bit says that more follow.
fn number(rest: &mut &[u8]) -> Option<u64> {
    let mut number = 0u64;
    for i in 0..10 {
        let byte = *rest.get(i)?;
        number = number << 7 | u64::from(byte & 0x7f);
        if byte & 0x80 == 0 {
            *rest = &rest[i + 1..];
            return Some(number);
        }
    }
    None
}

struct Lzx<'a> {
    packed: &'a [u8],
    window: lzxd::WindowSize,
    /// Decoded bytes between two resets of the decoder.
    interval: u64,
    /// Where each block of the reset table begins in the packed bytes.
    blocks: Vec<u64>,
    block_len: u64,
    size: u64,
}

impl<'a> Lzx<'a> {
    fn new(packed: &'a [u8], control: &[u8], resets: &[u8]) -> Option<Self> {
        if control.get(4..8)? != b"LZXC" {
            return None;
        }
        // From version 2 on interval and window are counted in frames.
        let unit = if u32_le(control, 8)? >= 2 { FRAME } else { 1 };
        let interval = u64::from(u32_le(control, 12)?) * unit;
        let window = u64::from(u32_le(control, 16)?) * unit;
        let window = lzx_window(window.checked_ilog2().filter(|_| window.is_power_of_two())?)?;
        let (count, width) = (u32_le(resets, 4)? as usize, u32_le(resets, 8)?);
        let (header, size) = (u32_le(resets, 12)? as usize, u64_le(resets, 16)?);
        let block_len = u64_le(resets, 32)?;
        if block_len != FRAME || interval == 0 || interval % FRAME != 0 {
            return None;
        }
        let table = resets.get(header..)?;
        let blocks: Vec<u64> = match width {
            4 => (0..count).map_while(|i| u32_le(table, i * 4).map(u64::from)).collect(),
            8 => (0..count).map_while(|i| u64_le(table, i * 8)).collect(),
            _ => return None,
        };
        Some(Self { packed, window, interval, blocks, block_len, size })
    }

    /// The first `most` bytes, or what can be decoded of them; true: there was an error, and bytes after it are
    /// zero where decoding could begin anew.
    fn decode(&mut self, most: u64) -> (Vec<u8>, bool) {
        let most = most.min(self.size);
        let mut out: Vec<u8> = Vec::new();
        let mut failed = false;
        let mut lzx = Lzxd::new(self.window);
        let mut broken = false;
        for (i, &at) in self.blocks.iter().enumerate() {
            let begin = i as u64 * self.block_len;
            if begin >= most {
                break;
            }
            if begin.is_multiple_of(self.interval) {
                lzx = Lzxd::new(self.window);
                broken = false;
            }
            let end = self.blocks.get(i + 1).copied().unwrap_or(self.packed.len() as u64);
            let packed = clipped(self.packed, at as usize, end.saturating_sub(at) as usize);
            let len = self.block_len.min(self.size - begin) as usize;
            let decoded = if broken {
                Err(std::io::ErrorKind::InvalidData.into())
            } else {
                caught(|| match lzx.decompress_next(packed, len) {
                    Ok(block) => {
                        out.extend_from_slice(block);
                        Ok(())
                    }
                    Err(e) => Err(std::io::Error::other(e.to_string())),
                })
            };
            if decoded.is_err() {
                (failed, broken) = (true, true);
                out.resize((begin + self.block_len).min(most) as usize, 0);
            }
        }
        (out, failed)
    }
}

//! ZIP archives (APPNOTE.TXT 6.3) without some of their members. Only archives all of whose bytes their directory
//! accounts for: nothing before, between or behind the members, no disks, no ZIP64, nothing encrypted.

use super::Fate;
use crate::archive::zip_method;
use crate::bytes::{u16_le, u32_le};
use flate2::write::DeflateEncoder;
use flate2::{Compression, Crc};
use std::io::{Read, Write};
use std::ops::Range;

const END: usize = 22;
const CENTRAL: usize = 46;
const LOCAL: usize = 30;
const ENCRYPTED: u16 = 1;
const DESCRIPTOR: u16 = 1 << 3;

/// A member.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) name: String,
    flags: u16,
    method: u16,
    crc: u32,
    size: u32,
    /// Its record in the directory.
    central: Range<usize>,
    /// Its local header, its bytes, and a descriptor behind them.
    record: Range<usize>,
    /// Its bytes, packed.
    packed: Range<usize>,
}

/// An archive that is regular throughout.
pub(super) struct Archive<'a> {
    data: &'a [u8],
    /// In the sequence of the directory.
    pub(super) entries: Vec<Entry>,
    end: usize,
}

impl<'a> Archive<'a> {
    /// # Errors
    /// What is irregular, in words.
    pub(super) fn parse(data: &'a [u8]) -> Result<Self, String> {
        let irregular = || "an irregular zip archive".to_owned();
        let end = memchr::memmem::rfind(data, b"PK\x05\x06").ok_or_else(irregular)?;
        let at = |offset| u16_le(data, end + offset).ok_or_else(irregular);
        let count = at(10)?;
        if (at(4)?, at(6)?, at(8)?) != (0, 0, count)
            || end + END + usize::from(at(20)?) != data.len()
        {
            return Err(irregular());
        }
        let size = u32_le(data, end + 12).ok_or_else(irregular)? as usize;
        let start = u32_le(data, end + 16).ok_or_else(irregular)? as usize;
        if start.checked_add(size) != Some(end) {
            return Err(irregular());
        }
        let mut entries = Vec::new();
        let mut place = start;
        for _ in 0..count {
            let entry = Self::entry(data, place, end).ok_or_else(irregular)?;
            place = entry.central.end;
            entries.push(entry);
        }
        // The records follow each other from the first byte to the directory.
        let mut sequence: Vec<usize> = (0..entries.len()).collect();
        sequence.sort_by_key(|&i| entries[i].record.start);
        let mut next = start;
        for &i in sequence.iter().rev() {
            let entry = &mut entries[i];
            let gap = next.checked_sub(entry.record.end).ok_or_else(irregular)?;
            if !(gap == 0 || matches!(gap, 12 | 16) && entry.flags & DESCRIPTOR != 0) {
                return Err(irregular());
            }
            entry.record.end = next;
            next = entry.record.start;
        }
        if place != end || next != 0 {
            return Err(irregular());
        }
        Ok(Self { data, entries, end })
    }

    /// The entry whose record in the directory is here, if its local header tells the same.
    fn entry(data: &[u8], at: usize, end: usize) -> Option<Entry> {
        let central = data.get(at..end)?.get(..CENTRAL)?;
        let half = |offset| u16_le(central, offset);
        let word = |offset| u32_le(central, offset);
        let lengths = [half(28)?, half(30)?, half(32)?].map(usize::from);
        let central_end = at + CENTRAL + lengths.iter().sum::<usize>();
        let name = data.get(at + CENTRAL..at + CENTRAL + lengths[0])?;
        let start = word(42)? as usize;
        let local = data.get(start..)?;
        let packed =
            start + LOCAL + usize::from(u16_le(local, 26)?) + usize::from(u16_le(local, 28)?);
        let entry = Entry {
            name: String::from_utf8_lossy(name).into_owned(),
            flags: half(8)?,
            method: half(10)?,
            crc: word(16)?,
            size: word(24)?,
            central: at..central_end,
            record: start..packed + word(20)? as usize,
            packed: packed..packed + word(20)? as usize,
        };
        let same = central.starts_with(b"PK\x01\x02")
            && local.starts_with(b"PK\x03\x04")
            && central_end <= end
            && entry.record.end <= end
            && half(34) == Some(0)
            && entry.flags & ENCRYPTED == 0
            && u16_le(local, 6) == Some(entry.flags)
            && u16_le(local, 8) == Some(entry.method)
            && local.get(LOCAL..LOCAL + usize::from(u16_le(local, 26)?)) == Some(name)
            && (entry.flags & DESCRIPTOR != 0
                || u32_le(local, 18) == word(20) && u32_le(local, 22) == word(24));
        same.then_some(entry)
    }

    /// The bytes of a member, at most `most`.
    ///
    /// # Errors
    /// When they are not those that the directory describes.
    pub(super) fn content(&self, entry: &Entry, most: u64) -> Result<Vec<u8>, String> {
        let packed = &self.data[entry.packed.clone()];
        let wrong = |why: &str| format!("{}: {why}", entry.name);
        if u64::from(entry.size) > most {
            return Err(wrong("too large to be unpacked"));
        }
        let mut content = Vec::new();
        if entry.method == 0 {
            content.extend_from_slice(packed);
        } else {
            let size = u64::from(entry.size);
            let reader = zip_method::reader(entry.method, entry.flags, packed, Some(size));
            let reader = reader.ok_or_else(|| wrong("an unknown method"))?;
            let mut reader = reader.map_err(|e| wrong(&e.to_string()))?.take(size + 1);
            reader.read_to_end(&mut content).map_err(|e| wrong(&e.to_string()))?;
        }
        let mut crc = Crc::new();
        crc.update(&content);
        if content.len() as u64 != u64::from(entry.size) || crc.sum() != entry.crc {
            return Err(wrong("other bytes than the directory says"));
        }
        Ok(content)
    }

    /// The archive with the fates of its members come true; records of those that are kept stay as they are.
    ///
    /// # Errors
    /// When it would be too large for the format.
    pub(super) fn rebuilt(&self, fates: &[Fate]) -> Result<Vec<u8>, String> {
        let mut sequence: Vec<usize> = (0..self.entries.len()).collect();
        sequence.sort_by_key(|&i| self.entries[i].record.start);
        let mut out = Vec::with_capacity(self.data.len());
        let mut central = vec![Vec::new(); self.entries.len()];
        for i in sequence {
            let entry = &self.entries[i];
            let at = (out.len() as u32).to_le_bytes();
            let mut record = self.data[entry.central.clone()].to_vec();
            record[42..46].copy_from_slice(&at);
            match fates.get(i) {
                Some(Fate::Dropped) => continue,
                Some(Fate::Cleaned(content)) => self.put(&mut out, &mut record, entry, content)?,
                Some(Fate::Kept) | None => {
                    out.extend_from_slice(&self.data[entry.record.clone()]);
                }
            }
            central[i] = record;
        }
        let start = out.len();
        out.extend(central.iter().flatten());
        let count = central.iter().filter(|c| !c.is_empty()).count() as u16;
        let size = u32::try_from(out.len() - start).map_err(|_| "too large for zip")?;
        let start = u32::try_from(start).map_err(|_| "too large for zip")?;
        let mut end = self.data[self.end..].to_vec();
        end[8..10].copy_from_slice(&count.to_le_bytes());
        end[10..12].copy_from_slice(&count.to_le_bytes());
        end[12..16].copy_from_slice(&size.to_le_bytes());
        end[16..20].copy_from_slice(&start.to_le_bytes());
        out.extend(end);
        Ok(out)
    }

    /// Writes a member anew, deflated, without the extra fields of its local header.
    fn put(
        &self,
        out: &mut Vec<u8>,
        record: &mut [u8],
        entry: &Entry,
        content: &[u8],
    ) -> Result<(), String> {
        let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(content).map_err(|e| e.to_string())?;
        let packed = encoder.finish().map_err(|e| e.to_string())?;
        let mut crc = Crc::new();
        crc.update(content);
        let flags = entry.flags & !(DESCRIPTOR | 0b110);
        record[8..10].copy_from_slice(&flags.to_le_bytes());
        record[10..12].copy_from_slice(&8u16.to_le_bytes());
        record[16..20].copy_from_slice(&crc.sum().to_le_bytes());
        record[20..24].copy_from_slice(&(packed.len() as u32).to_le_bytes());
        record[24..28].copy_from_slice(&(content.len() as u32).to_le_bytes());
        // Local and central header have the fields from the version on in the same sequence.
        let name_len = u16_le(record, 28).unwrap_or(0);
        out.extend(b"PK\x03\x04");
        out.extend_from_slice(&record[6..30]);
        out.extend(0u16.to_le_bytes());
        out.extend_from_slice(&record[CENTRAL..CENTRAL + usize::from(name_len)]);
        out.extend(packed);
        Ok(())
    }
}

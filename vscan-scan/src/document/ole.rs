//! OLE2 compound files (MS-CFB): every stream of the directory, whether the tree leads to it or not; VBA source
//! (MS-OVBA), packaged files (`\u{1}Ole10Native`), objects of presentations (MS-PPT 2.10.34).

use super::vba;
use crate::bytes::{clipped, u16_le, u32_le, u64_le, utf16};
use crate::object::{Place, Walk};
use crate::report::Reason;
use flate2::read::ZlibDecoder;
use std::collections::{BTreeSet, HashSet};

pub(crate) const MAGIC: &[u8] = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1";

const HEADER: usize = 512;
/// From here on sector numbers have a meaning of their own (MS-CFB 2.1).
const SECTOR_MAX: u32 = 0xffff_fffa;
/// Streams below this lie in the mini stream (MS-CFB 2.2).
const MINI_CUTOFF: u64 = 4096;
const MINI_SECTOR: usize = 64;
const STORAGE: u8 = 1;
const STREAM: u8 = 2;
const ROOT: u8 = 5;

pub(crate) fn open(walk: &mut Walk<'_>, data: &[u8]) {
    let Some(file) = File::parse(data) else {
        return walk.note(Reason::Malformed, "OLE2 file with a wrong header");
    };
    let most = walk.limits.members as usize;
    let entries = file.entries(most + 1);
    if entries.len() > most {
        walk.note(Reason::Members, "too many entries in the OLE2 directory");
    }
    if entries.iter().all(|e| e.kind != STREAM) {
        walk.note(Reason::Malformed, "OLE2 file without streams");
    }
    let root = entries.iter().find(|e| e.kind == ROOT);
    let mini = root.map(|r| file.chain(r.start, r.size)).unwrap_or_default();
    let mut offsets = BTreeSet::new();
    let mut streams = Vec::new();
    for entry in entries.iter().filter(|e| e.kind == STREAM && e.size > 0) {
        if walk.stopped() {
            return;
        }
        let content = if entry.size < MINI_CUTOFF {
            file.mini_chain(&mini, entry.start, entry.size)
        } else {
            file.chain(entry.start, entry.size.min(data.len() as u64))
        };
        if (content.len() as u64) < entry.size {
            walk.within(&entry.name, |walk| {
                walk.note(Reason::Malformed, "the OLE2 stream is cut off")
            });
        }
        if entry.name.eq_ignore_ascii_case("dir") {
            let dir = vba::decompress(&content);
            if dir.as_ref().is_some_and(|dir| dir.cut) {
                walk.note(Reason::Size, "a VBA project's directory is longer than is read");
            }
            offsets.extend(vba::modules(&dir.map(|dir| dir.text).unwrap_or_default()));
            if offsets.len() > MODULES_MAX {
                walk.note(Reason::Members, "more VBA modules than are looked for");
                offsets = offsets.into_iter().take(MODULES_MAX).collect();
            }
        }
        streams.push((&entry.name, content));
        // Streams cannot hold more than the file, unless they share sectors.
        if streams.iter().map(|s| s.1.len() as u64).sum::<u64>()
            > 2 * data.len() as u64 + MINI_CUTOFF
        {
            walk.note(Reason::Malformed, "OLE2 streams that share their sectors");
            break;
        }
    }
    for (name, content) in &streams {
        if walk.stopped() {
            return;
        }
        encrypted(walk, name, content);
        walk.part(name, content, Place::File);
        carried(walk, name, content);
        sources(walk, name, content, &offsets);
    }
}

/// Notes documents that are encrypted, by the marks of their programs.
fn encrypted(walk: &mut Walk<'_>, name: &str, content: &[u8]) {
    let what = match name {
        // MS-OFFCRYPTO 2.3.4
        "EncryptedPackage" => "encrypted Office document",
        // MS-DOC 2.5.2: the flag fEncrypted; fObfuscated beside it is encryption as well.
        "WordDocument" if u16_le(content, 10).is_some_and(|f| f & 0x0100 != 0) => {
            "encrypted Word document"
        }
        // MS-PPT 2.3.2: headerToken of the CurrentUserAtom.
        "Current User" if u32_le(content, 12) == Some(0xf3d1_c4df) => "encrypted presentation",
        "Workbook" | "Book" if xls_encrypted(content) => "encrypted workbook",
        _ => return,
    };
    walk.within(name, |walk| walk.note(Reason::Encrypted, what));
}

/// True when FilePass (MS-XLS 2.4.117) is among the first records.
fn xls_encrypted(content: &[u8]) -> bool {
    const FILE_PASS: u16 = 0x2f;
    const RECORDS: usize = 16;
    let mut at = 0;
    for _ in 0..RECORDS {
        let (Some(kind), Some(len)) = (u16_le(content, at), u16_le(content, at + 2)) else {
            return false;
        };
        if kind == FILE_PASS {
            return true;
        }
        at += 4 + usize::from(len);
    }
    false
}

/// Takes out what a stream carries in a wrapping of its own.
fn carried(walk: &mut Walk<'_>, name: &str, content: &[u8]) {
    if name.eq_ignore_ascii_case("\u{1}Ole10Native") {
        // A length, then the package.
        match package(content.get(4..).unwrap_or_default()) {
            Some((label, file)) => walk.part(&label, file, Place::File),
            None => walk.part("Ole10Native", content.get(4..).unwrap_or_default(), Place::File),
        }
    }
    if name == "PowerPoint Document" {
        // ExOleObjStg and the like: header, then with instance 1 a size and zlib, with 0 the object as it is.
        for at in memchr::memmem::find_iter(content, b"\x11\x10").filter_map(|at| at.checked_sub(2))
        {
            let (Some(instance), Some(len)) = (u16_le(content, at), u32_le(content, at + 4)) else {
                continue;
            };
            let body = clipped(content, at + 8, len as usize);
            match instance {
                0x10 if body.len() > 4 => {
                    walk.decoded("object", body.len() as u64, &mut ZlibDecoder::new(&body[4..]));
                }
                0x00 if body.starts_with(MAGIC) => walk.part("object", body, Place::File),
                _ => {}
            }
        }
    }
}

/// A packaged file as OLE's packager writes it: flags, label, path, ..., temporary path, length, the file.
pub(super) fn package(data: &[u8]) -> Option<(String, &[u8])> {
    let mut at = 2;
    let string = |at: &mut usize| {
        let rest = data.get(*at..)?;
        let end = memchr::memchr(0, rest)?;
        *at += end + 1;
        Some(&rest[..end])
    };
    let label = string(&mut at)?;
    string(&mut at)?;
    at += 4;
    let temporary = u32_le(data, at)? as usize;
    at = at.checked_add(4)?.checked_add(temporary)?;
    let len = u32_le(data, at)? as usize;
    let file = clipped(data, at + 4, len);
    (!file.is_empty()).then(|| (String::from_utf8_lossy(label).into_owned(), file))
}

/// Modules of one project whose places are tried; projects have a few dozen.
const MODULES_MAX: usize = 1000;

/// VBA source: where the project says that it is, and wherever it can be recognised.
fn sources(walk: &mut Walk<'_>, name: &str, content: &[u8], offsets: &BTreeSet<usize>) {
    let mut seen: HashSet<Vec<u8>> = HashSet::new();
    // By any module's offset: names are in the project's code page, and a wrong one decodes to nothing.
    let told = offsets.iter().filter_map(|&at| vba::decompress(content.get(at..)?));
    for source in told.chain(vba::search(content)) {
        if walk.stopped() {
            return;
        }
        let name = format!("{name}.bas");
        if source.cut {
            walk.within(&name, |walk| walk.note(Reason::Size, "VBA source longer than is read"));
        }
        if seen.insert(source.text.clone()) {
            walk.part(&name, &source.text, Place::File);
        }
    }
}

struct Entry {
    name: String,
    kind: u8,
    start: u32,
    size: u64,
}

struct File<'a> {
    data: &'a [u8],
    sector: usize,
    /// The sector that follows each one.
    fat: Vec<u32>,
    mini_fat: Vec<u32>,
    directory: u32,
    /// Version 3: sizes have 32 bits (MS-CFB 2.6.3).
    short: bool,
}

impl<'a> File<'a> {
    fn parse(data: &'a [u8]) -> Option<Self> {
        let shift = u16_le(data, 30)?;
        if !(7..=16).contains(&shift) {
            return None;
        }
        let mut file = Self {
            data,
            sector: 1 << shift,
            fat: Vec::new(),
            mini_fat: Vec::new(),
            directory: u32_le(data, 48)?,
            short: u16_le(data, 26)? < 4,
        };
        // The sectors of the FAT: 109 in the header, the rest in a chain of their own.
        let mut sectors: Vec<u32> = (0..109).filter_map(|i| u32_le(data, 76 + i * 4)).collect();
        let mut next = u32_le(data, 68)?;
        let per = file.sector / 4 - 1;
        let all = data.len() / file.sector + 1;
        for _ in 0..all {
            let Some(sector) = file.sector_at(next) else { break };
            sectors.extend((0..per).filter_map(|i| u32_le(sector, i * 4)));
            next = u32_le(sector, per * 4).unwrap_or(u32::MAX);
        }
        for number in sectors.into_iter().filter(|&s| s < SECTOR_MAX).take(all) {
            // A missing sector keeps its place, or all that follow would shift.
            let sector = file.sector_at(number).unwrap_or_default();
            let numbers = (0..file.sector / 4).map(|i| u32_le(sector, i * 4).unwrap_or(u32::MAX));
            file.fat.extend(numbers);
        }
        let mini_fat = file.chain(u32_le(data, 60)?, data.len() as u64);
        file.mini_fat = mini_fat.as_chunks().0.iter().map(|&n| u32::from_le_bytes(n)).collect();
        Some(file)
    }

    fn sector_at(&self, number: u32) -> Option<&'a [u8]> {
        if number >= SECTOR_MAX {
            return None;
        }
        // The header takes the place of sector -1, whatever the size of sectors.
        let at = (number as usize).checked_add(1)?.checked_mul(self.sector)?;
        let sector = clipped(self.data, at.max(HEADER), self.sector);
        (!sector.is_empty()).then_some(sector)
    }

    fn chain(&self, start: u32, size: u64) -> Vec<u8> {
        let mut out = Vec::new();
        let mut next = start;
        // A chain that is longer than the file goes round in circles.
        for _ in 0..=self.data.len() / self.sector {
            if out.len() as u64 >= size {
                break;
            }
            let Some(sector) = self.sector_at(next) else { break };
            out.extend_from_slice(sector);
            next = self.fat.get(next as usize).copied().unwrap_or(u32::MAX);
        }
        out.truncate(usize::try_from(size).unwrap_or(usize::MAX));
        out
    }

    fn mini_chain(&self, mini: &[u8], start: u32, size: u64) -> Vec<u8> {
        let mut out = Vec::new();
        let mut next = start;
        while (out.len() as u64) < size && next < SECTOR_MAX {
            let sector = clipped(mini, (next as usize).saturating_mul(MINI_SECTOR), MINI_SECTOR);
            if sector.is_empty() {
                break;
            }
            out.extend_from_slice(sector);
            next = self.mini_fat.get(next as usize).copied().unwrap_or(u32::MAX);
        }
        out.truncate(size as usize);
        out
    }

    /// All entries of the directory in their order; the tree over them is left aside.
    fn entries(&self, most: usize) -> Vec<Entry> {
        let directory = self.chain(self.directory, self.data.len() as u64);
        let entries = directory.chunks_exact(128).filter_map(|entry| {
            let name = clipped(entry, 0, usize::from(u16_le(entry, 64)?).min(64));
            let size = u64_le(entry, 120)?;
            let size = if self.short { size & 0xffff_ffff } else { size };
            let name = msi_name(utf16(name, false).trim_end_matches('\0'));
            Some(Entry { name, kind: entry[66], start: u32_le(entry, 116)?, size })
        });
        entries.filter(|e| matches!(e.kind, STORAGE | STREAM | ROOT)).take(most).collect()
    }
}

/// Windows Installer packs two letters of a stream's name into one; unpacked here.
fn msi_name(name: &str) -> String {
    const LETTERS: &[u8] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz._";
    let letter = |i: u32| char::from(LETTERS[(i & 63) as usize]);
    let mut out = String::new();
    for c in name.chars() {
        match u32::from(c) {
            packed @ 0x3800..0x4800 => {
                out.extend([letter(packed - 0x3800), letter((packed - 0x3800) >> 6)]);
            }
            packed @ 0x4800..0x4840 => out.push(letter(packed - 0x4800)),
            0x4840 => {}
            _ => out.push(c),
        }
    }
    out
}

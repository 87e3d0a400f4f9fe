//! What can be told of a Windows program without yara-x's parse of all of it: the hash of its imports, as `pe.imphash()`
//! gives it, and the names of its exports. Many rules ask for nothing else, and of every program.
//!
//! The headers are read in yara-x's way to the letter, mistaken ones as well. Where that would take its tables of names
//! for ordinals, or long, nothing is said; then yara-x is asked.

use md5::{Digest, Md5};

/// What is known of the imports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Imphash {
    /// The hash, in lower case.
    Is(String),
    /// No program: there is no hash.
    None,
    /// yara-x has to tell.
    Unknown,
}

/// Most sections, descriptors of libraries and functions of one, and names of exports, as in yara-x.
const SECTIONS_MAX: usize = 96;
const IMPORTS_MAX: usize = 16384;
const EXPORTS_MAX: usize = 16384;

/// Longest names, as in yara-x: longer ones are cut.
const LIBRARY_NAME_MAX: usize = 512;
const FUNCTION_NAME_MAX: usize = 1024;

/// Most functions that are looked at, and bytes that are hashed: programs have a tenth of it.
const STEPS_MAX: usize = 1 << 16;
const HASHED_MAX: usize = 1 << 20;

/// Libraries of which yara-x knows what the ordinals are called.
const NAMED: [&str; 3] = ["ws2_32.dll", "wsock32.dll", "oleaut32.dll"];

/// The hash of the imports.
pub(crate) fn imphash(data: &[u8]) -> Imphash {
    let Some(program) = Program::parse(data) else { return Imphash::None };
    let mut hash = Hash::default();
    match program.imports(&mut hash) {
        // Where there is no table of imports, nothing is hashed.
        Some(()) | None if !hash.unknown => {
            let digest = hash.md5.finalize();
            Imphash::Is(digest.iter().map(|b| format!("{b:02x}")).collect())
        }
        _ => Imphash::Unknown,
    }
}

/// Whether the program may export something of this name, in any case: its table has a name that is equal. yara-x has more
/// to ask of a table before it believes it.
pub(crate) fn may_export(data: &[u8], name: &[u8]) -> bool {
    let names = || {
        let program = Program::parse(data)?;
        let address = u32_at(program.directory, 0)?;
        let table = program.at(address)?.get(..40)?;
        let count = (u32_at(table, 24)? as usize).min(EXPORTS_MAX);
        let names = program.at(u32_at(table, 32)?)?.chunks_exact(4).take(count);
        let mut names = names.filter_map(|at| program.at(u32_at(at, 0)?));
        let equal = |there: &[u8]| {
            let begin = there.get(..name.len());
            begin.is_some_and(|begin| begin.eq_ignore_ascii_case(name))
                && there.get(name.len()).is_none_or(|&b| b == 0)
        };
        Some(names.any(equal))
    };
    name.len() >= FUNCTION_NAME_MAX || names().unwrap_or(false)
}

#[derive(Default)]
struct Hash {
    md5: Md5,
    any: bool,
    bytes: usize,
    unknown: bool,
}

impl Hash {
    fn add(&mut self, library: &[u8], function: &[u8]) {
        if std::mem::replace(&mut self.any, true) {
            self.md5.update(b",");
        }
        self.md5.update(library.to_ascii_lowercase());
        self.md5.update(b".");
        self.md5.update(function.to_ascii_lowercase());
        self.bytes += library.len() + function.len();
        self.unknown |= self.bytes > HASHED_MAX;
    }
}

struct Section {
    address: u32,
    size: u32,
    offset: u32,
    raw_size: u32,
}

struct Program<'a> {
    data: &'a [u8],
    /// From the directory to the end of the file.
    directory: &'a [u8],
    wide: bool,
    sections: Vec<Section>,
    section_alignment: u32,
    file_alignment: u32,
}

fn u16_at(data: &[u8], at: usize) -> Option<u16> {
    data.get(at..)?.first_chunk().map(|b| u16::from_le_bytes(*b))
}

fn u32_at(data: &[u8], at: usize) -> Option<u32> {
    data.get(at..)?.first_chunk().map(|b| u32::from_le_bytes(*b))
}

fn u64_at(data: &[u8], at: usize) -> Option<u64> {
    data.get(at..)?.first_chunk().map(|b| u64::from_le_bytes(*b))
}

impl<'a> Program<'a> {
    fn parse(data: &'a [u8]) -> Option<Self> {
        if !data.starts_with(b"MZ") {
            return None;
        }
        let pe = data.get(u32_at(data, 60)? as usize..)?;
        if !pe.starts_with(b"PE\0\0") || pe.len() < 24 {
            return None;
        }
        let (count, optional_len) = (u16_at(pe, 6)?, u16_at(pe, 20)?);
        let optional = &pe[24..];
        let wide = u16_at(optional, 0) == Some(0x20b);
        // A header that is not whole has no directory.
        let whole = optional.get(if wide { 112 } else { 96 }..);
        let alignment = |at| if whole.is_some() { u32_at(optional, at) } else { Some(0) };
        let table = pe.get(24 + usize::from(optional_len)..).unwrap_or_default();
        let sections = table.chunks_exact(40).take(usize::from(count).min(SECTIONS_MAX));
        let sections = sections.map(|section| {
            let [virtual_size, address, raw_size, offset] =
                [8, 12, 16, 20].map(|at| u32_at(section, at).unwrap_or(0));
            Section { address, size: virtual_size.max(raw_size), offset, raw_size }
        });
        Some(Self {
            data,
            directory: whole.unwrap_or_default(),
            wide: wide && whole.is_some(),
            sections: sections.collect(),
            section_alignment: alignment(32)?,
            file_alignment: alignment(36)?,
        })
    }

    /// Where in the file this address is.
    fn offset(&self, address: u32) -> Option<u32> {
        let lowest = self.sections.iter().map(|section| section.address).min();
        if lowest.is_some_and(|lowest| address < lowest) {
            return Some(address);
        }
        let (mut begin, mut offset, mut size) = (0, 0, 0);
        // The last of several with the highest address.
        for section in &self.sections {
            let end = section.address.saturating_add(section.size);
            if begin <= section.address && (section.address..end).contains(&address) {
                begin = section.address;
                offset = self.aligned(section.offset);
                size = section.raw_size;
            }
        }
        let within = address.saturating_sub(begin);
        (within < size).then(|| offset.saturating_add(within))
    }

    fn aligned(&self, offset: u32) -> u32 {
        let rest = offset.checked_rem(self.file_alignment.min(0x200)).unwrap_or(0);
        let offset = offset - rest;
        if self.section_alignment >= 0x1000 { offset - offset % 0x200 } else { offset }
    }

    fn at(&self, address: u32) -> Option<&'a [u8]> {
        self.data.get(self.offset(address)? as usize..)
    }

    /// None where there is no table of imports.
    fn imports(&self, hash: &mut Hash) -> Option<()> {
        let address = u32_at(self.directory, 8)?;
        u32_at(self.directory, 12)?;
        if address == 0 {
            return None;
        }
        let table = self.at(address)?;
        let (mut steps, mut functions) = (0, 0);
        for descriptor in table.chunks_exact(20).take(IMPORTS_MAX) {
            let [names, name, addresses] =
                [0, 12, 16].map(|at| u32_at(descriptor, at).unwrap_or(0));
            if name == 0 || (names == 0 && addresses == 0) {
                break;
            }
            steps += 1;
            let Some(library) = self.library(name) else { continue };
            let listed = if names > 0 { self.at(names) } else { None };
            let Some(thunks) = listed.or_else(|| self.at(addresses)) else { continue };
            let before = functions;
            let width = if self.wide { 8 } else { 4 };
            for thunk in thunks.chunks_exact(width).take(IMPORTS_MAX) {
                let thunk = if self.wide {
                    u64_at(thunk, 0).unwrap_or(0)
                } else {
                    u64::from(u32_at(thunk, 0).unwrap_or(0))
                };
                if thunk == 0 {
                    break;
                }
                steps += 1;
                if steps > STEPS_MAX || hash.unknown {
                    hash.unknown = true;
                    return Some(());
                }
                functions += u32::from(self.function(library, thunk, hash));
            }
            if functions > before && !library.is_ascii() {
                // Its lower case is that of Unicode.
                hash.unknown = true;
            }
            if functions as usize >= IMPORTS_MAX {
                break;
            }
        }
        Some(())
    }

    /// The name of a library; none if it is none.
    fn library(&self, address: u32) -> Option<&'a [u8]> {
        let name = until_zero(self.at(address)?, LIBRARY_NAME_MAX);
        let good = |b: &u8| !b.is_ascii_control() && !b" \"*<>?|".contains(b);
        (std::str::from_utf8(name).is_ok() && name.iter().all(good)).then_some(name)
    }

    /// Hashes what a thunk stands for, if it is something.
    fn function(&self, library: &[u8], thunk: u64, hash: &mut Hash) -> bool {
        let by_ordinal = 1 << if self.wide { 63 } else { 31 };
        if thunk > by_ordinal | 0xffff {
            return false;
        }
        let short = library_name(library);
        if thunk & by_ordinal != 0 {
            hash.unknown |= NAMED.iter().any(|n| library.eq_ignore_ascii_case(n.as_bytes()));
            hash.add(short, format!("ord{}", thunk & 0xffff).as_bytes());
            return true;
        }
        let name = u32::try_from(thunk).ok().and_then(|address| self.at(address));
        let name = name.and_then(|hint| hint.get(2..));
        let name = name.map(|name| until_zero(name, FUNCTION_NAME_MAX));
        match name {
            Some(name) if !name.is_empty() && name.iter().all(u8::is_ascii_graphic) => {
                hash.add(short, name);
                true
            }
            _ => false,
        }
    }
}

/// Up to a zero, the end, or so many bytes.
fn until_zero(data: &[u8], most: usize) -> &[u8] {
    let data = &data[..data.len().min(most)];
    &data[..data.iter().position(|&b| b == 0).unwrap_or(data.len())]
}

/// Without its ending.
fn library_name(name: &[u8]) -> &[u8] {
    let stem = name.len().saturating_sub(4);
    let ending = |e: &&[u8]| name.len() >= 4 && name[stem..].eq_ignore_ascii_case(e);
    if [&b".dll"[..], b".sys", b".ocx"].iter().any(ending) { &name[..stem] } else { name }
}

#[cfg(test)]
mod tests;

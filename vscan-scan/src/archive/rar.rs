//! RAR, versions 1.5 to 5, by libarchive ([`super::libarchive`]).

use super::libarchive::Rar;
use crate::bytes::{u16_le, u32_le};
use crate::object::{Place, Walk};
use crate::report::Reason;

const MAGIC_4: &[u8] = b"Rar!\x1a\x07\0";
const MAGIC_5: &[u8] = b"Rar!\x1a\x07\x01\0";

/// True when an archive lies here: the magic, and behind it the header of an archive.
pub(crate) fn begins(data: &[u8]) -> bool {
    // RAR 4: the main header has type 0x73 and 13 bytes at least. RAR 5: its type is 1, or 4 for encrypted headers, behind
    // a checksum and a size of one byte.
    data.starts_with(MAGIC_5) && matches!(data.get(13), Some(1 | 4))
        || data.starts_with(MAGIC_4) && data.get(9) == Some(&0x73)
}

/// Opens what begins the data. `begins` says that nothing stands before it: else what follows is the walk's to look at.
pub(crate) fn open(walk: &mut Walk<'_>, data: &[u8], begins: bool) {
    let mut rar = match Rar::open(data) {
        Ok(rar) => rar,
        Err(e) => return walk.failed("rar", &e),
    };
    let survey = Survey::new(data);
    // libarchive gives an encrypted member as it lies there, and does not say in every version that it is encrypted.
    if survey.encrypted {
        return walk.note(Reason::Encrypted, "encrypted rar archive");
    }
    let mut files = survey.files.iter().copied();
    let mut seen = 0;
    loop {
        if walk.stopped() {
            return;
        }
        match rar.next() {
            // libarchive takes what is cut off behind its first header for an empty archive.
            Ok(None) if seen == 0 => {
                walk.note(Reason::Malformed, "rar archive without a member");
                break;
            }
            Ok(None) => break,
            Ok(Some(member)) => {
                let file = files.next().unwrap_or_default();
                if file.encrypted || member.encrypted {
                    walk.within(&member.name, |walk| {
                        walk.note(Reason::Encrypted, "encrypted rar member");
                    });
                } else if member.file {
                    walk.decoded(&member.name, data.len() as u64, &mut rar);
                }
                // The others are links and directories.
                if file.split {
                    walk.within(&member.name, |walk| {
                        walk.note(Reason::Malformed, "the rar member goes on in another volume")
                    });
                }
            }
            Err(_) if rar.encrypted() => {
                return walk.note(Reason::Encrypted, "encrypted rar archive");
            }
            Err(e) => {
                walk.failed("rar", &e);
                break;
            }
        }
        seen += 1;
    }
    if seen < survey.files.len() && !walk.stopped() {
        walk.note(Reason::Malformed, "rar members behind one that cannot be read");
    }
    // A second archive, or anything else, may follow the end block.
    let end = survey.end.filter(|_| begins);
    if let Some(at) = end.filter(|&at| data[at..].iter().any(|&b| b != 0)) {
        walk.part("behind the end", &data[at..], Place::File);
    }
}

/// What the header of a file tells.
#[derive(Clone, Copy, Debug, Default)]
struct File {
    encrypted: bool,
    /// A part of it lies in another volume.
    split: bool,
}

/// What the headers alone tell, in the order of the files.
#[derive(Debug, Default)]
struct Survey {
    files: Vec<File>,
    /// The headers themselves are encrypted.
    encrypted: bool,
    /// Behind the end block, if the headers lead to one.
    end: Option<usize>,
}

impl Survey {
    fn new(data: &[u8]) -> Self {
        let mut survey = Self::default();
        // None: a header that is cut off.
        let end =
            if data.starts_with(MAGIC_5) { survey.version_5(data) } else { survey.version_4(data) };
        survey.end = end.filter(|&at| at <= data.len());
        survey
    }

    fn version_4(&mut self, data: &[u8]) -> Option<usize> {
        const FILE: u8 = 0x74;
        const SERVICE: u8 = 0x7a;
        const END: u8 = 0x7b;
        const SPLIT: u16 = 1 | 2;
        const PASSWORD: u16 = 4;
        const LARGE: u16 = 0x100;
        const HAS_DATA: u16 = 0x8000;
        let mut at = MAGIC_4.len();
        loop {
            let kind = *data.get(at + 2)?;
            let (flags, len) = (u16_le(data, at + 3)?, usize::from(u16_le(data, at + 5)?));
            let mut body = 0;
            if flags & HAS_DATA != 0 || matches!(kind, FILE | SERVICE) {
                body = u64::from(u32_le(data, at + 7)?);
                if flags & LARGE != 0 && matches!(kind, FILE | SERVICE) {
                    body |= u64::from(u32_le(data, at + 32)?) << 32;
                }
            }
            if kind == FILE {
                let encrypted = flags & PASSWORD != 0;
                self.files.push(File { encrypted, split: flags & SPLIT != 0 });
            }
            at = at.checked_add(len.max(7))?.checked_add(usize::try_from(body).ok()?)?;
            if kind == END {
                return Some(at);
            }
        }
    }

    fn version_5(&mut self, data: &[u8]) -> Option<usize> {
        const FILE: u64 = 2;
        const END: u64 = 5;
        const EXTRA: u64 = 1;
        const HAS_DATA: u64 = 2;
        const SPLIT: u64 = 8 | 16;
        const ENCRYPTED: u64 = 4;
        let mut at = MAGIC_5.len();
        loop {
            at = at.checked_add(4)?;
            let len = number(data, &mut at)?;
            let next = at.checked_add(usize::try_from(len).ok()?)?;
            let (kind, flags) = (number(data, &mut at)?, number(data, &mut at)?);
            if kind == ENCRYPTED {
                self.encrypted = true;
                return None;
            }
            let extra = if flags & EXTRA != 0 { number(data, &mut at)? } else { 0 };
            let body = if flags & HAS_DATA != 0 { number(data, &mut at)? } else { 0 };
            if kind == FILE {
                // The extra area ends the header.
                let extra = next.checked_sub(usize::try_from(extra).ok()?)?;
                let encrypted = has_encryption(data.get(extra..next)?);
                self.files.push(File { encrypted, split: flags & SPLIT != 0 });
            }
            at = next.checked_add(usize::try_from(body).ok()?)?;
            if kind == END {
                return Some(at);
            }
        }
    }
}

/// True when one of the records of an extra area is that of encryption.
fn has_encryption(area: &[u8]) -> bool {
    const ENCRYPTION: u64 = 1;
    let mut at = 0;
    while let Some(len) = number(area, &mut at) {
        let next = usize::try_from(len).ok().and_then(|len| at.checked_add(len));
        if number(area, &mut at) == Some(ENCRYPTION) {
            return true;
        }
        let Some(next) = next else { return false };
        at = next;
    }
    false
}

/// A number of seven bits in each byte, the lowest first.
fn number(data: &[u8], at: &mut usize) -> Option<u64> {
    let mut number = 0;
    for shift in (0..63).step_by(7) {
        let byte = *data.get(*at)?;
        *at += 1;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

//! Microsoft cabinets (MS-CAB): every folder is decoded once, its files are cut out of it.
//!
//! Stored, MSZIP (MS-MCI) and LZX folders are opened. A folder that begins or ends in another cabinet of a set
//! is read as far as it lies in this one.

use super::guard::caught;
use crate::bytes::{clipped, u16_le, u32_le};
use crate::object::{Place, Walk};
use crate::report::Reason;
use flate2::{Decompress, FlushDecompress, Status};
use lzxd::{Lzxd, WindowSize};
use std::io::{self, Read};

pub(crate) const MAGIC: &[u8] = b"MSCF\0\0\0\0";

const PREVIOUS: u16 = 1;
const NEXT: u16 = 2;
const RESERVE: u16 = 4;
/// Folder numbers from here on: the file goes on in the previous or the next cabinet.
const CONTINUED: u16 = 0xfffd;
/// A data block holds at most this much when unpacked (MS-CAB 2.4).
const BLOCK: usize = 32 * 1024;

struct Folder {
    first: usize,
    blocks: u16,
    method: u16,
}

struct File {
    name: String,
    size: u32,
    offset: u32,
    folder: u16,
}

struct Cabinet {
    folders: Vec<Folder>,
    files: Vec<File>,
    /// Bytes reserved in the header of every data block.
    reserved: usize,
    /// What the header says of its length.
    len: usize,
    /// Not all files of the header could be read.
    cut: bool,
}

/// True when a cabinet's header lies here, one of the only version that exists.
pub(crate) fn begins(data: &[u8]) -> bool {
    data.starts_with(MAGIC) && data.get(24..26) == Some(&[3, 1]) && parse(data).is_some()
}

/// Opens what begins the data. `begins` says that nothing stands before it: else what follows is the walk's to look at.
pub(crate) fn open(walk: &mut Walk<'_>, data: &[u8], begins: bool) {
    let Some(cabinet) = parse(data) else {
        return walk.note(Reason::Malformed, "cabinet with a wrong header");
    };
    if cabinet.cut {
        walk.note(Reason::Malformed, "the header of the cabinet is cut off");
    }
    if cabinet.files.is_empty() {
        walk.note(Reason::Malformed, "a cabinet without files");
    }
    let mut files = vec![Vec::new(); cabinet.folders.len()];
    for (i, file) in cabinet.files.iter().enumerate() {
        let folder = match file.folder {
            CONTINUED => 0,
            0xfffe.. => cabinet.folders.len() - 1,
            folder => usize::from(folder),
        };
        match files.get_mut(folder) {
            Some(files) => files.push(i),
            None => walk.within(&file.name, |walk| {
                walk.note(Reason::Malformed, "a file of no folder");
            }),
        }
    }
    for (folder, mut files) in cabinet.folders.iter().zip(files) {
        if walk.stopped() {
            return;
        }
        files.sort_by_key(|&i| cabinet.files[i].offset);
        match Blocks::new(data, folder, cabinet.reserved) {
            Ok(blocks) => folder_files(walk, &cabinet, &files, blocks),
            Err(what) => {
                for &i in &files {
                    let name = &cabinet.files[i].name;
                    walk.within(name, |walk| walk.note(Reason::Unsupported, what));
                }
            }
        }
    }
    let rest = data.get(cabinet.len..).filter(|_| begins);
    if let Some(rest) = rest.filter(|r| r.iter().any(|&b| b != 0)) {
        walk.part("behind the end", rest, Place::File);
    }
}

/// Decodes a folder and takes its files out of it. Their places may overlap or be anywhere in it.
fn folder_files(walk: &mut Walk<'_>, cabinet: &Cabinet, files: &[usize], mut blocks: Blocks<'_>) {
    // The decoded folder from `start` on.
    let (mut decoded, mut start) = (Vec::new(), 0u64);
    let mut failed = false;
    for (i, &file) in files.iter().enumerate() {
        if walk.stopped() {
            return;
        }
        let file = &cabinet.files[file];
        let begin = u64::from(file.offset);
        // What lies before this file, no later one wants.
        let gone = (begin - start).min(decoded.len() as u64);
        decoded.drain(..gone as usize);
        start += gone;
        let next = files.get(i + 1).map(|&n| u64::from(cabinet.files[n].offset));
        let mut reader = Cut {
            blocks: &mut blocks,
            decoded: &mut decoded,
            start: &mut start,
            at: begin,
            end: begin + u64::from(file.size),
            keep: next,
            ended: false,
        };
        if file.size > 0 {
            walk.decoded(&file.name, blocks_len(&reader), &mut reader);
            if reader.ended && !failed {
                failed = true;
                walk.within(&file.name, |walk| {
                    walk.note(Reason::Malformed, "the folder is cut off")
                });
            }
        }
    }
}

fn blocks_len(cut: &Cut<'_, '_>) -> u64 {
    cut.blocks.data.len() as u64
}

/// One file of a folder.
struct Cut<'b, 'd> {
    blocks: &'b mut Blocks<'d>,
    decoded: &'b mut Vec<u8>,
    start: &'b mut u64,
    at: u64,
    end: u64,
    /// From here on later files want what is decoded.
    keep: Option<u64>,
    ended: bool,
}

impl Read for Cut<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at < self.end {
            if let Some(from) = self.at.checked_sub(*self.start)
                && let Some(have) = self.decoded.get(from as usize..).filter(|h| !h.is_empty())
            {
                let n = buffer.len().min(have.len()).min((self.end - self.at) as usize);
                buffer[..n].copy_from_slice(&have[..n]);
                self.at += n as u64;
                return Ok(n);
            }
            let unwanted = self.at.min(self.keep.unwrap_or(self.at)) - *self.start;
            let gone = (unwanted as usize).min(self.decoded.len());
            self.decoded.drain(..gone);
            *self.start += gone as u64;
            if !self.blocks.next(self.decoded)? {
                self.ended = true;
                return Ok(0);
            }
        }
        Ok(0)
    }
}

enum Method {
    Stored,
    MsZip { history: Vec<u8> },
    Lzx(Box<Lzxd>),
}

/// The data blocks of one folder.
struct Blocks<'d> {
    data: &'d [u8],
    at: usize,
    left: u16,
    reserved: usize,
    method: Method,
}

impl<'d> Blocks<'d> {
    fn new(data: &'d [u8], folder: &Folder, reserved: usize) -> Result<Self, &'static str> {
        let method = match folder.method & 15 {
            0 => Method::Stored,
            1 => Method::MsZip { history: Vec::new() },
            2 => return Err("a Quantum folder cannot be opened"),
            3 => {
                let window = lzx_window(u32::from(folder.method >> 8 & 31));
                Method::Lzx(Box::new(Lzxd::new(window.ok_or("an LZX window that does not exist")?)))
            }
            _ => return Err("a folder of an unknown method"),
        };
        Ok(Self { data, at: folder.first, left: folder.blocks, reserved, method })
    }

    /// Appends the next block. False: there is none.
    fn next(&mut self, out: &mut Vec<u8>) -> io::Result<bool> {
        if self.left == 0 {
            return Ok(false);
        }
        self.left -= 1;
        let (Some(packed), Some(size)) =
            (u16_le(self.data, self.at + 4), u16_le(self.data, self.at + 6))
        else {
            return Ok(false);
        };
        let body = self.at + 8 + self.reserved;
        let packed = clipped(self.data, body, packed.into());
        self.at = body + packed.len();
        // In the last block of a cabinet that goes on in the next one, the size is zero; the rest is there.
        let size = if size == 0 { BLOCK } else { usize::from(size) };
        match &mut self.method {
            Method::Stored => out.extend_from_slice(packed),
            Method::MsZip { history } => {
                let packed = packed.strip_prefix(b"CK").ok_or_else(|| {
                    super::pump::malformed("an MSZIP block without its signature")
                })?;
                let block = inflate_behind(history, packed)?;
                out.extend_from_slice(&block);
                history.extend_from_slice(&block);
                let gone = history.len().saturating_sub(BLOCK);
                history.drain(..gone);
            }
            Method::Lzx(lzx) => caught(|| {
                let block = lzx
                    .decompress_next(packed, size.min(BLOCK))
                    .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.to_string()))?;
                out.extend_from_slice(block);
                Ok(())
            })?,
        }
        Ok(true)
    }
}

/// The window of LZX by its bits, as in cabinets and help files.
pub(crate) fn lzx_window(bits: u32) -> Option<WindowSize> {
    Some(match bits {
        15 => WindowSize::KB32,
        16 => WindowSize::KB64,
        17 => WindowSize::KB128,
        18 => WindowSize::KB256,
        19 => WindowSize::KB512,
        20 => WindowSize::MB1,
        21 => WindowSize::MB2,
        22 => WindowSize::MB4,
        23 => WindowSize::MB8,
        24 => WindowSize::MB16,
        25 => WindowSize::MB32,
        _ => return None,
    })
}

/// Inflates a block that refers back into what was decoded before it. The history is given to the decoder as a
/// stored block in front.
fn inflate_behind(history: &[u8], packed: &[u8]) -> io::Result<Vec<u8>> {
    let mut inflate = Decompress::new(false);
    let mut out = Vec::with_capacity(history.len() + BLOCK);
    if !history.is_empty() {
        let len = history.len() as u16;
        let mut stored = vec![0];
        stored.extend(len.to_le_bytes());
        stored.extend((!len).to_le_bytes());
        stored.extend(history);
        inflate.decompress_vec(&stored, &mut out, FlushDecompress::None)?;
    }
    let begin = history.len();
    let mut at = 0;
    while out.len() < out.capacity() {
        let before = (inflate.total_in(), out.len());
        let status = inflate.decompress_vec(&packed[at..], &mut out, FlushDecompress::None)?;
        at += (inflate.total_in() - before.0) as usize;
        if matches!(status, Status::StreamEnd) || (inflate.total_in(), out.len()) == before {
            break;
        }
    }
    Ok(out.split_off(begin.min(out.len())))
}

fn parse(data: &[u8]) -> Option<Cabinet> {
    let len = u32_le(data, 8)? as usize;
    let mut at = u32_le(data, 16)? as usize;
    let (folder_count, file_count) = (u16_le(data, 26)?, u16_le(data, 28)?);
    let flags = u16_le(data, 30)?;
    let (mut folder_at, mut folder_reserved, mut reserved) = (36, 0, 0);
    if flags & RESERVE != 0 {
        folder_at += 4 + usize::from(u16_le(data, 36)?);
        (folder_reserved, reserved) = (usize::from(*data.get(38)?), usize::from(*data.get(39)?));
    }
    // The neighbours' names: cabinet and disk.
    for flag in [PREVIOUS, NEXT] {
        if flags & flag != 0 {
            for _ in 0..2 {
                folder_at += memchr::memchr(0, data.get(folder_at..)?)? + 1;
            }
        }
    }
    let mut folders = Vec::new();
    for _ in 0..folder_count {
        let first = u32_le(data, folder_at)? as usize;
        let (blocks, method) = (u16_le(data, folder_at + 4)?, u16_le(data, folder_at + 6)?);
        folders.push(Folder { first, blocks, method });
        folder_at += 8 + folder_reserved;
    }
    let mut files = Vec::new();
    let mut file = || {
        let (size, offset, folder) =
            (u32_le(data, at)?, u32_le(data, at + 4)?, u16_le(data, at + 8)?);
        let name = data.get(at + 16..)?;
        let name = &name[..memchr::memchr(0, &name[..name.len().min(1024)])?];
        at += 16 + name.len() + 1;
        Some(File { name: super::name(name), size, offset, folder })
    };
    files.extend((0..file_count).map_while(|_| file()));
    let cut = files.len() < usize::from(file_count);
    (!folders.is_empty()).then_some(Cabinet { folders, files, reserved, len, cut })
}

//! LZ4 frames (lz4_Frame_format.md 1.6), those of its first version among them. Checksums are not looked at: what the blocks
//! decode to is what counts.

use super::pump::{Decode, Pump, STEP_MAX, copy_back, malformed};
use crate::bytes::{u32_le, u64_le};
use crate::object::{Place, Walk};
use crate::report::Reason;
use std::cell::Cell;
use std::io;

pub(crate) const MAGIC: &[u8] = b"\x04\x22\x4d\x18";
pub(crate) const LEGACY: &[u8] = b"\x02\x21\x4c\x18";

/// Bytes that a block of the first version decodes to, at most.
const LEGACY_BLOCK: usize = 8 << 20;
/// Every block ends with literals; a match has at least this many bytes.
const MATCH_MIN: usize = 4;
/// The upper bit of a block's length: its bytes are as they were.
const STORED: u32 = 1 << 31;

pub(crate) fn open(walk: &mut Walk<'_>, data: &[u8]) {
    let end = Cell::new(0);
    let dictionary = Cell::new(false);
    let lz4 = Lz4 {
        data,
        at: 0,
        frame: Frame::None,
        block: &[],
        stored: false,
        literals: &[],
        copy: (0, 0),
        written: 0,
        room: 0,
        end: &end,
        dictionary: &dictionary,
    };
    walk.decoded("lz4", data.len() as u64, &mut Pump::new(lz4));
    if dictionary.get() {
        walk.note(Reason::Unsupported, "lz4 frame with a dictionary that is elsewhere");
    }
    if let Some(rest) = data.get(end.get()..).filter(|r| end.get() > 0 && r.iter().any(|&b| b != 0))
    {
        walk.part("behind the end", rest, Place::File);
    }
}

/// The frame that is being read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Frame {
    None,
    /// Its blocks go up to the end of the file, or to the next magic.
    Legacy,
    Current {
        /// Bytes that a block decodes to, at most.
        block: usize,
        /// Blocks, or the whole, have a checksum behind them.
        block_sum: bool,
        content_sum: bool,
    },
}

struct Lz4<'a> {
    data: &'a [u8],
    at: usize,
    frame: Frame,
    /// What is left of the block.
    block: &'a [u8],
    stored: bool,
    /// What is still to come of the sequence: literals, then the match, as distance and length.
    literals: &'a [u8],
    copy: (usize, usize),
    /// Bytes since the frame began.
    written: usize,
    /// Bytes that the block may still decode to.
    room: usize,
    /// Where the last frame ends, when all is read.
    end: &'a Cell<usize>,
    /// A frame refers to a dictionary.
    dictionary: &'a Cell<bool>,
}

impl<'a> Lz4<'a> {
    fn bytes(&mut self, len: usize) -> io::Result<&'a [u8]> {
        let end = self.at.checked_add(len).ok_or(io::ErrorKind::UnexpectedEof)?;
        let bytes = self.data.get(self.at..end).ok_or(io::ErrorKind::UnexpectedEof)?;
        self.at = end;
        Ok(bytes)
    }

    fn number(&mut self) -> io::Result<u32> {
        let bytes = self.bytes(4)?;
        u32_le(bytes, 0).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    /// Reads the header of the next frame. False: none begins here.
    fn header(&mut self) -> io::Result<bool> {
        let rest = &self.data[self.at.min(self.data.len())..];
        self.written = 0;
        if rest.starts_with(LEGACY) {
            self.at += LEGACY.len();
            self.frame = Frame::Legacy;
            return Ok(true);
        }
        if let Some(&[0x50..0x60, 0x2a, 0x4d, 0x18, a, b, c, d]) = rest.first_chunk() {
            self.at += 8;
            self.bytes(u32::from_le_bytes([a, b, c, d]) as usize)?;
            return Ok(true);
        }
        if !rest.starts_with(MAGIC) {
            self.end.set(self.at);
            return Ok(false);
        }
        self.at += MAGIC.len();
        let (flags, sizes) = match self.bytes(2)? {
            &[flags, sizes] => (flags, sizes),
            _ => return Err(io::ErrorKind::UnexpectedEof.into()),
        };
        if flags >> 6 != 1 {
            return Err(malformed("an lz4 frame of an unknown version"));
        }
        if flags & 1 << 3 != 0 {
            let size = self.bytes(8)?;
            u64_le(size, 0).ok_or(io::ErrorKind::UnexpectedEof)?;
        }
        if flags & 1 != 0 {
            self.bytes(4)?;
            self.dictionary.set(true);
        }
        // The header's checksum.
        self.bytes(1)?;
        let block = match sizes >> 4 & 7 {
            size @ 4.. => 1usize << (2 * size + 8),
            _ => return Err(malformed("an lz4 block size that does not exist")),
        };
        let (block_sum, content_sum) = (flags & 1 << 4 != 0, flags & 1 << 2 != 0);
        self.frame = Frame::Current { block, block_sum, content_sum };
        Ok(true)
    }

    /// Goes on to the next block, of this frame or of the next one. False: there is none.
    fn next(&mut self) -> io::Result<bool> {
        match self.frame {
            Frame::None => self.header(),
            Frame::Legacy => {
                let rest = &self.data[self.at..];
                if rest.is_empty() || rest.starts_with(MAGIC) || rest.starts_with(LEGACY) {
                    self.frame = Frame::None;
                    return Ok(true);
                }
                let len = self.number()?;
                (self.stored, self.room) = (false, LEGACY_BLOCK);
                self.block = self.bytes(len as usize)?;
                Ok(true)
            }
            Frame::Current { block, block_sum, content_sum } => {
                let len = self.number()?;
                if len == 0 {
                    if content_sum {
                        self.bytes(4)?;
                    }
                    self.frame = Frame::None;
                    return Ok(true);
                }
                (self.stored, self.room) = (len & STORED != 0, block);
                self.block = self.bytes((len & !STORED) as usize)?;
                if block_sum {
                    self.bytes(4)?;
                }
                Ok(true)
            }
        }
    }

    /// The rest of a length whose four bits are all set.
    fn length(&mut self, bits: u8) -> io::Result<usize> {
        let mut len = usize::from(bits);
        if bits == 15 {
            loop {
                let (&more, rest) = self.block.split_first().ok_or(io::ErrorKind::UnexpectedEof)?;
                self.block = rest;
                len += usize::from(more);
                if more != 255 {
                    break;
                }
            }
        }
        Ok(len)
    }

    /// Reads the next sequence of the block.
    fn sequence(&mut self) -> io::Result<()> {
        if self.stored {
            self.literals = std::mem::take(&mut self.block);
            return self.fits(self.literals.len());
        }
        let (&token, rest) = self.block.split_first().ok_or(io::ErrorKind::UnexpectedEof)?;
        self.block = rest;
        let len = self.length(token >> 4)?;
        (self.literals, self.block) =
            self.block.split_at_checked(len).ok_or(io::ErrorKind::UnexpectedEof)?;
        self.fits(len)?;
        // The last sequence of a block has no match.
        if self.block.is_empty() {
            return Ok(());
        }
        let (&distance, rest) =
            self.block.split_first_chunk().ok_or(io::ErrorKind::UnexpectedEof)?;
        self.block = rest;
        let len = self.length(token & 15)? + MATCH_MIN;
        let distance = usize::from(u16::from_le_bytes(distance));
        let before = self.written + self.literals.len();
        if distance == 0 || distance > before && !self.dictionary.get() {
            return Err(malformed("an lz4 match before the beginning"));
        }
        self.copy = (distance, len);
        self.fits(len)
    }

    fn fits(&mut self, len: usize) -> io::Result<()> {
        self.room = self
            .room
            .checked_sub(len)
            .ok_or_else(|| malformed("an lz4 block of more bytes than the frame allows"))?;
        Ok(())
    }
}

impl Decode for Lz4<'_> {
    fn step(&mut self, out: &mut Vec<u8>) -> io::Result<bool> {
        let before = out.len();
        if !self.literals.is_empty() {
            let (now, later) = self.literals.split_at(self.literals.len().min(STEP_MAX));
            out.extend_from_slice(now);
            self.literals = later;
        } else if self.copy.1 > 0 {
            let (distance, len) = self.copy;
            let now = len.min(STEP_MAX);
            copy_back(out, distance, now, 0);
            self.copy.1 -= now;
        } else if self.block.is_empty() {
            return self.next();
        } else {
            self.sequence()?;
        }
        self.written += out.len() - before;
        Ok(true)
    }
}

//! compress(1), `.Z`: LZW with codes of 9 to 16 bits.

use super::pump::{Decode, Pump, STEP_MAX, malformed};
use crate::bytes::{Bits, First};
use crate::object::Walk;
use std::io;

/// The third byte: bits of the longest code.
const BITS_MASK: u8 = 0x1f;
/// The third byte: code 256 clears the table.
const BLOCK_MODE: u8 = 0x80;
const CLEAR: usize = 256;

pub(crate) fn open(walk: &mut Walk<'_>, data: &[u8]) {
    match Lzw::new(data) {
        Ok(lzw) => walk.decoded("compress", data.len() as u64, &mut Pump::new(lzw)),
        Err(e) => walk.failed("compress", &e),
    }
}

struct Lzw<'a> {
    bits: Bits<'a>,
    width: u32,
    width_max: u32,
    block_mode: bool,
    /// The entry before each one, its last byte and its length; the first 256 are the bytes themselves.
    table: Vec<(u16, u8, u32)>,
    previous: Option<usize>,
    /// Where the codes of this width begin, in bits: they are written in groups of eight.
    group: u64,
}

impl<'a> Lzw<'a> {
    fn new(data: &'a [u8]) -> io::Result<Self> {
        let (&[_, _, flags], packed) =
            data.split_first_chunk().ok_or(io::ErrorKind::UnexpectedEof)?;
        let width_max = u32::from(flags & BITS_MASK);
        if !(9..=16).contains(&width_max) {
            return Err(malformed("compress: codes are of 9 to 16 bits"));
        }
        let mut lzw = Self {
            bits: Bits::new(packed, First::Low),
            width: 9,
            width_max,
            block_mode: flags & BLOCK_MODE != 0,
            table: (0..=255).map(|byte| (0, byte, 1)).collect(),
            previous: None,
            group: 0,
        };
        lzw.clear();
        Ok(lzw)
    }

    fn clear(&mut self) {
        self.table.truncate(256);
        if self.block_mode {
            self.table.push((0, 0, 0));
        }
        self.previous = None;
    }

    /// A change of width ends a group of eight codes, whose rest is unused.
    fn align(&mut self) {
        let group = u64::from(self.width) * 8;
        let used = (self.bits.at() - self.group) % group;
        if used != 0 {
            self.bits.skip((group - used) as u32);
        }
        self.group = self.bits.at();
    }

    fn append(&self, mut code: usize, out: &mut Vec<u8>) -> io::Result<u8> {
        let len = self.table[code].2 as usize;
        if len > STEP_MAX {
            return Err(malformed("compress: a string that no table holds"));
        }
        let start = out.len();
        out.resize(start + len, 0);
        for byte in out[start..].iter_mut().rev() {
            *byte = self.table[code].1;
            code = self.table[code].0.into();
        }
        Ok(out[start])
    }
}

impl Decode for Lzw<'_> {
    fn step(&mut self, out: &mut Vec<u8>) -> io::Result<bool> {
        // The width grows with the table, once the next entry would not fit.
        if self.width < self.width_max && self.table.len() >= 1 << self.width {
            self.align();
            self.width += 1;
        }
        let code = self.bits.take(self.width) as usize;
        if self.bits.overrun() {
            return Ok(false);
        }
        if self.block_mode && code == CLEAR {
            self.align();
            self.width = 9;
            self.clear();
            return Ok(true);
        }
        let Some(previous) = self.previous else {
            if code > 255 {
                return Err(malformed("compress: the first code is no byte"));
            }
            out.push(code as u8);
            self.previous = Some(code);
            return Ok(true);
        };
        if code > self.table.len() || (code == self.table.len() && self.full()) {
            return Err(malformed("compress: a code that the table does not have"));
        }
        let first = if code == self.table.len() {
            // The string that is being defined: the previous one and its own first byte.
            let first = self.append(previous, out)?;
            out.push(first);
            first
        } else {
            self.append(code, out)?
        };
        if !self.full() {
            self.table.push((previous as u16, first, self.table[previous].2 + 1));
        }
        self.previous = Some(code);
        Ok(true)
    }
}

impl Lzw<'_> {
    fn full(&self) -> bool {
        self.table.len() >= 1 << self.width_max
    }
}

//! Files of Microsoft's compress.exe: SZDD (LZSS), and the older form with the magic `SZ `.

use super::pump::{Decode, Pump, copy_back};
use crate::bytes::u32_le;
use crate::object::Walk;
use std::io;

/// The dictionary is a ring of 4096 spaces.
const RING: usize = 4096;
const FILLER: u8 = b' ';

pub(crate) fn open(walk: &mut Walk<'_>, data: &[u8]) {
    // SZDD: magic 8, mode, the last letter of the name, size 4; QBasic's: magic 8, size 4. They differ in where
    // the ring begins.
    let (header, start) = if data.starts_with(b"SZDD") { (14, RING - 16) } else { (12, RING - 18) };
    let packed = data.get(header..).unwrap_or_default();
    let size = u32_le(data, header - 4).map_or(usize::MAX, |size| size as usize);
    let lzss = Lzss { packed, at: 0, start, written: 0, size };
    walk.decoded("szdd", packed.len() as u64, &mut Pump::new(lzss));
}

struct Lzss<'a> {
    packed: &'a [u8],
    at: usize,
    start: usize,
    written: usize,
    /// What the header says that is written in the end.
    size: usize,
}

impl Lzss<'_> {
    fn next(&mut self) -> Option<u8> {
        let byte = self.packed.get(self.at).copied();
        self.at += 1;
        byte
    }

    fn end(&self) -> io::Result<bool> {
        if self.written < self.size { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(false) }
    }
}

impl Decode for Lzss<'_> {
    fn step(&mut self, out: &mut Vec<u8>) -> io::Result<bool> {
        let Some(flags) = self.next() else { return self.end() };
        for bit in 0..8 {
            let before = out.len();
            let Some(first) = self.next() else { return self.end() };
            if flags >> bit & 1 == 1 {
                out.push(first);
            } else {
                let Some(second) = self.next() else { return self.end() };
                let place = usize::from(first) | usize::from(second & 0xf0) << 4;
                let len = usize::from(second & 15) + 3;
                // A place in the ring, as the distance from the place that is written next.
                let here = (self.start + self.written) % RING;
                let distance = (here + RING - place - 1) % RING + 1;
                copy_back(out, distance, len, FILLER);
            }
            self.written += out.len() - before;
        }
        Ok(true)
    }
}

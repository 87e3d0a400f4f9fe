//! ARJ: main and local headers, members stored or packed by methods 1 to 4.

use super::pump::{Decode, Pump, copy_back, malformed};
use crate::bytes::{Bits, First, clipped, u16_le, u32_le};
use crate::object::{Place, Walk};
use crate::report::Reason;
use std::io;

/// The largest header that ARJ writes or reads.
const HEADER_MAX: usize = 2600;
/// Flag: the data is encrypted.
const GARBLED: u8 = 1;
/// Flag: the member goes on in the next volume.
const VOLUME: u8 = 4;
/// The file type of a directory; all others may have data.
const DIRECTORY: u8 = 3;

pub(crate) const MAGIC: &[u8] = b"\x60\xea";
/// The file type in the header of the archive itself.
const MAIN: u8 = 2;

/// True when the header of an archive lies here, not that of a member.
pub(crate) fn archive_begins(data: &[u8]) -> bool {
    begins(data) && data.get(4 + 6) == Some(&MAIN)
}

/// True when an ARJ header begins the data: a plausible size, first size and host system, and the right checksum.
pub(crate) fn begins(data: &[u8]) -> bool {
    header(data).is_some_and(|h| {
        h.len() >= 30 && h[0] >= 30 && h[3] < 12 && u32_le(data, 4 + h.len()) == Some(crc32(h))
    })
}

/// The basic header at the beginning, without its magic and size.
fn header(data: &[u8]) -> Option<&[u8]> {
    if !data.starts_with(MAGIC) {
        return None;
    }
    let size = usize::from(u16_le(data, 2)?);
    if size == 0 || size > HEADER_MAX {
        return None;
    }
    data.get(4..4 + size)
}

fn crc32(data: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(data);
    crc.sum()
}

/// Bytes of a header with its magic, size, checksum and extended headers.
fn whole(data: &[u8], basic: usize) -> Option<usize> {
    let mut at = 4 + basic + 4;
    loop {
        let extended = usize::from(u16_le(data, at)?);
        at += 2;
        if extended == 0 {
            return Some(at);
        }
        at += extended + 4;
    }
}

pub(crate) fn open(walk: &mut Walk<'_>, data: &[u8]) {
    let mut at = 0;
    let mut main = true;
    loop {
        if walk.stopped() {
            return;
        }
        let rest = data.get(at..).unwrap_or_default();
        if let Some(behind) = rest.strip_prefix(b"\x60\xea\0\0") {
            if behind.iter().any(|&b| b != 0) {
                walk.part("behind the end", behind, Place::File);
            }
            return;
        }
        let (Some(header), Some(begin)) =
            (header(rest), header(rest).and_then(|h| whole(rest, h.len())))
        else {
            walk.note(Reason::Malformed, "arj member without a header");
            if !rest.is_empty() && !main {
                walk.part("after-arj", rest, Place::File);
            }
            return;
        };
        at += begin;
        if std::mem::take(&mut main) {
            continue;
        }
        let Some((flags, method, kind, packed, size)) = (|| {
            let (packed, size) = (u32_le(header, 12)?, u32_le(header, 16)?);
            Some((*header.get(4)?, *header.get(5)?, *header.get(6)?, packed, size))
        })() else {
            walk.note(Reason::Malformed, "arj header too short");
            return;
        };
        let name = header.get(usize::from(header[0])..).unwrap_or_default();
        let name = super::name(&name[..memchr::memchr(0, name).unwrap_or(name.len())]);
        let body = clipped(data, at, packed as usize);
        at += packed as usize;
        if body.len() < packed as usize || flags & VOLUME != 0 {
            walk.within(&name, |walk| walk.note(Reason::Malformed, "the arj member is cut off"));
        }
        if kind == DIRECTORY || body.is_empty() {
            continue;
        }
        if flags & GARBLED != 0 {
            walk.within(&name, |walk| walk.note(Reason::Encrypted, "encrypted arj member"));
            continue;
        }
        let encoded = u64::from(packed);
        match method {
            0 => walk.decoded(&name, encoded, &mut &body[..]),
            1..=3 => walk.decoded(&name, encoded, &mut Pump::new(Huffman::new(body, size))),
            4 => walk.decoded(&name, encoded, &mut Pump::new(Fastest::new(body, size))),
            _ => walk.within(&name, |walk| {
                walk.note(Reason::Unsupported, &format!("arj method {method} cannot be opened"));
            }),
        }
    }
}

/// A canonical Huffman code as a table by the next bits.
struct Table {
    width: u32,
    entries: Vec<(u16, u8)>,
}

/// No code of LHA and ARJ is longer.
const CODE_MAX: u32 = 16;

impl Table {
    fn new(lengths: &[u8]) -> io::Result<Self> {
        let mut entries = vec![(0, 0); 1 << CODE_MAX];
        let mut code = 0usize;
        for len in 1..=CODE_MAX {
            for (symbol, _) in lengths.iter().enumerate().filter(|(_, l)| u32::from(**l) == len) {
                let span = 1usize << (CODE_MAX - len);
                entries
                    .get_mut(code..code + span)
                    .ok_or_else(|| malformed("a code tree is wrong"))?
                    .fill((symbol as u16, len as u8));
                code += span;
            }
        }
        Ok(Self { width: CODE_MAX, entries })
    }

    /// A code of one symbol, which takes no bits.
    fn single(symbol: u32) -> Self {
        Self { width: 0, entries: vec![(symbol as u16, 0)] }
    }

    fn next(&self, bits: &mut Bits<'_>) -> io::Result<usize> {
        let (symbol, len) = self.entries[bits.peek(self.width) as usize];
        if len == 0 && self.width > 0 {
            return Err(malformed("a code that the tree does not have"));
        }
        bits.skip(len.into());
        bits.check()?;
        Ok(symbol.into())
    }
}

/// Methods 1 to 3: those of LHA's `-lh6-`, with a dictionary of 26,624 bytes.
struct Huffman<'a> {
    bits: Bits<'a>,
    left: u64,
    /// Codes until the next trees.
    block: u32,
    codes: Table,
    distances: Table,
}

/// Literals and lengths: 256 bytes and lengths of 3 to 256.
const CODES: usize = 510;
/// Distances, by their bits.
const DISTANCES: usize = 17;
/// Lengths of code lengths.
const LENGTHS: usize = 19;

impl<'a> Huffman<'a> {
    fn new(data: &'a [u8], size: u32) -> Self {
        let (codes, distances) = (Table::single(0), Table::single(0));
        Self { bits: Bits::new(data, First::High), left: size.into(), block: 0, codes, distances }
    }

    /// The lengths of a small tree. Behind the third comes a gap of up to three zeros, in the tree of lengths.
    fn small(&mut self, symbols: usize, count_bits: u32, gap: bool) -> io::Result<Table> {
        let count = self.bits.take(count_bits) as usize;
        if count == 0 {
            return Ok(Table::single(self.bits.take(count_bits)));
        }
        let mut lengths = Vec::new();
        while lengths.len() < count.min(symbols) {
            let mut len = self.bits.take(3);
            if len == 7 {
                while self.bits.take(1) == 1 {
                    len += 1;
                    if len > CODE_MAX {
                        return Err(malformed("a code length is wrong"));
                    }
                }
            }
            lengths.push(len as u8);
            if gap && lengths.len() == 3 {
                lengths.resize(3 + self.bits.take(2) as usize, 0);
            }
        }
        self.bits.check()?;
        Table::new(&lengths)
    }

    fn trees(&mut self) -> io::Result<()> {
        self.block = self.bits.take(16);
        let lengths = self.small(LENGTHS, 5, true)?;
        let count = self.bits.take(9) as usize;
        if count == 0 {
            self.codes = Table::single(self.bits.take(9));
        } else {
            let mut codes = Vec::new();
            while codes.len() < count.min(CODES) {
                match lengths.next(&mut self.bits)? {
                    0 => codes.push(0),
                    1 => codes.resize(codes.len() + self.bits.take(4) as usize + 3, 0),
                    2 => codes.resize(codes.len() + self.bits.take(9) as usize + 20, 0),
                    len => codes.push(len as u8 - 2),
                }
            }
            self.codes = Table::new(&codes)?;
        }
        self.distances = self.small(DISTANCES, 5, false)?;
        self.bits.check()
    }
}

impl Decode for Huffman<'_> {
    fn step(&mut self, out: &mut Vec<u8>) -> io::Result<bool> {
        if self.left == 0 {
            return Ok(false);
        }
        if self.block == 0 {
            self.trees()?;
            if self.block == 0 {
                return Err(malformed("a block without codes"));
            }
        }
        self.block -= 1;
        let code = self.codes.next(&mut self.bits)?;
        if code < 256 {
            out.push(code as u8);
            self.left -= 1;
            return Ok(true);
        }
        let len = (code - 256 + 3).min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let distance = match self.distances.next(&mut self.bits)? {
            0 => 0,
            bits => (1 << (bits - 1)) + self.bits.take(bits as u32 - 1),
        };
        self.bits.check()?;
        copy_back(out, distance as usize + 1, len, b' ');
        self.left -= len as u64;
        Ok(true)
    }
}

/// Method 4: lengths and distances as numbers in unary steps, literals as they are.
struct Fastest<'a> {
    bits: Bits<'a>,
    left: u64,
}

impl<'a> Fastest<'a> {
    fn new(data: &'a [u8], size: u32) -> Self {
        Self { bits: Bits::new(data, First::High), left: size.into() }
    }

    /// Ones up to a zero, at most `most - first`, count the bits that follow from `first` on.
    fn number(&mut self, first: u32, most: u32) -> u32 {
        let (mut width, mut base) = (first, 0);
        while width < most && self.bits.take(1) == 1 {
            base += 1 << width;
            width += 1;
        }
        base + self.bits.take(width)
    }
}

impl Decode for Fastest<'_> {
    fn step(&mut self, out: &mut Vec<u8>) -> io::Result<bool> {
        if self.left == 0 {
            return Ok(false);
        }
        let len = self.number(0, 7);
        if len == 0 {
            let byte = self.bits.take(8);
            self.bits.check()?;
            out.push(byte as u8);
            self.left -= 1;
            return Ok(true);
        }
        let distance = self.number(9, 13);
        self.bits.check()?;
        let len = u64::from(len + 2).min(self.left);
        copy_back(out, distance as usize + 1, len as usize, b' ');
        self.left -= len;
        Ok(true)
    }
}

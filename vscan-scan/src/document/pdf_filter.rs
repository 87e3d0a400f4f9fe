//! The filters of PDF streams (ISO 32000-1, 7.4), decoded as leniently as viewers do: what comes before an error counts.

use crate::archive::{Pump, PumpDecode, malformed};
use crate::bytes::{Bits, First};
use flate2::read::DeflateDecoder;
use std::io::{self, Read};

/// What a stream's dictionary says of one filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Filter {
    pub(super) name: Vec<u8>,
    pub(super) predictor: u32,
    pub(super) columns: u32,
    pub(super) colors: u32,
    pub(super) bits: u32,
    pub(super) early_change: bool,
}

/// What comes out of the filters of one stream.
pub(super) enum Filtered<'a> {
    /// All of them were undone.
    Reader(Box<dyn Read + 'a>),
    /// The one of this name remains: a picture's.
    Picture(Box<dyn Read + 'a>),
    /// The stream is encrypted by itself.
    Encrypted,
}

/// Bytes of a row that a predictor may have.
const ROW_MAX: u64 = 1 << 20;
/// A filter may be named several times; none is useful more often.
pub(super) const FILTERS_MAX: usize = 16;

pub(super) fn undo<'a>(data: &'a [u8], filters: &[Filter]) -> Filtered<'a> {
    let mut reader: Box<dyn Read + 'a> = Box::new(data);
    for filter in filters.iter().take(FILTERS_MAX) {
        reader = match &filter.name[..] {
            b"FlateDecode" | b"Fl" => predicted(Box::new(Flate::new(reader)), filter),
            b"LZWDecode" | b"LZW" => {
                predicted(Box::new(Whole::new(reader, lzw(filter.early_change))), filter)
            }
            b"ASCII85Decode" | b"A85" => Box::new(Whole::new(reader, ascii85)),
            b"ASCIIHexDecode" | b"AHx" => Box::new(Whole::new(reader, ascii_hex)),
            b"RunLengthDecode" | b"RL" => Box::new(Whole::new(reader, run_length)),
            b"Crypt" => return Filtered::Encrypted,
            _ => return Filtered::Picture(Box::new(Lenient(reader))),
        };
    }
    Filtered::Reader(Box::new(Lenient(reader)))
}

/// Ends where its reader fails, as viewers do. Not so where it is we who stop reading.
struct Lenient<'a>(Box<dyn Read + 'a>);

impl Read for Lenient<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.0.read(buffer) {
            Err(e) if e.kind() == io::ErrorKind::OutOfMemory => Err(e),
            other => Ok(other.unwrap_or(0)),
        }
    }
}

/// Deflate behind the two bytes of zlib; the checksum at the end is of interest to nobody.
struct Flate<'a> {
    inflate: DeflateDecoder<Box<dyn Read + 'a>>,
    header: bool,
}

impl<'a> Flate<'a> {
    fn new(reader: Box<dyn Read + 'a>) -> Self {
        Self { inflate: DeflateDecoder::new(reader), header: true }
    }
}

impl Read for Flate<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if std::mem::take(&mut self.header) {
            let mut header = [0; 2];
            let source = self.inflate.get_mut();
            source.read_exact(&mut header)?;
            // White space may stand before the data when the line behind `stream` ended oddly.
            if header[0].is_ascii_whitespace() {
                header = [header[1], 0];
                source.read_exact(&mut header[1..])?;
            }
        }
        self.inflate.read(buffer)
    }
}

/// A filter that wants all its input before it gives anything: what it decodes is at most a few times as much.
struct Whole<'a, F> {
    source: Option<(Box<dyn Read + 'a>, F)>,
    out: io::Cursor<Vec<u8>>,
    /// There was more than is decoded.
    cut: bool,
}

/// Input of such a filter, and what it gives, at most. Streams in ASCII or LZW are small or old.
const WHOLE_MAX: usize = 64 << 20;

impl<'a, F: FnOnce(&[u8]) -> Vec<u8>> Whole<'a, F> {
    fn new(source: Box<dyn Read + 'a>, decode: F) -> Self {
        Self { source: Some((source, decode)), out: io::Cursor::default(), cut: false }
    }
}

impl<F: FnOnce(&[u8]) -> Vec<u8>> Read for Whole<'_, F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Some((source, decode)) = self.source.take() {
            let mut input = Vec::new();
            // What came before an error is decoded all the same.
            let read = source.take(WHOLE_MAX as u64).read_to_end(&mut input);
            let out = decode(&input);
            self.cut = input.len() >= WHOLE_MAX
                || out.len() >= WHOLE_MAX
                || read.is_err_and(|e| e.kind() == io::ErrorKind::OutOfMemory);
            self.out = io::Cursor::new(out);
        }
        match self.out.read(buffer)? {
            0 if self.cut && !buffer.is_empty() => Err(io::ErrorKind::OutOfMemory.into()),
            n => Ok(n),
        }
    }
}

fn ascii_hex(data: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(data.len() / 2);
    let mut half = None;
    for &byte in data.iter().take_while(|&&b| b != b'>') {
        let Some(digit) = char::from(byte).to_digit(16) else { continue };
        match half.take() {
            Some(high) => out.push((high << 4 | digit) as u8),
            None => half = Some(digit),
        }
    }
    out.extend(half.map(|high| (high << 4) as u8));
    out
}

fn ascii85(data: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(data.len() / 5 * 4);
    let data = data.strip_prefix(b"<~").unwrap_or(data);
    let (mut number, mut count) = (0u32, 0);
    for &byte in data {
        match byte {
            b'z' if count == 0 => out.extend([0; 4]),
            b'!'..=b'u' => {
                number = number.wrapping_mul(85).wrapping_add(u32::from(byte - b'!'));
                count += 1;
                if count == 5 {
                    out.extend(number.to_be_bytes());
                    (number, count) = (0, 0);
                }
            }
            b'~' => break,
            _ => {}
        }
    }
    if count > 1 {
        for _ in count..5 {
            number = number.wrapping_mul(85).wrapping_add(84);
        }
        out.extend(&number.to_be_bytes()[..count - 1]);
    }
    out
}

fn run_length(mut data: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    while let Some((&len, rest)) = data.split_first().filter(|_| out.len() < WHOLE_MAX) {
        data = match len {
            128 => break,
            0..128 => {
                let (literal, rest) = rest.split_at(rest.len().min(usize::from(len) + 1));
                out.extend_from_slice(literal);
                rest
            }
            129.. => {
                let Some((&byte, rest)) = rest.split_first() else { break };
                out.resize(out.len() + 257 - usize::from(len), byte);
                rest
            }
        };
    }
    out
}

/// LZW with codes of 9 to 12 bits, the highest bit first (7.4.4). The width grows one code early, if so chosen.
fn lzw(early_change: bool) -> impl FnOnce(&[u8]) -> Vec<u8> {
    move |data| {
        let mut out = Vec::new();
        let lzw = Lzw {
            bits: Bits::new(data, First::High),
            early: usize::from(early_change),
            table: Vec::new(),
            previous: None,
        };
        let _ = Pump::new(lzw).take(WHOLE_MAX as u64).read_to_end(&mut out);
        out
    }
}

struct Lzw<'a> {
    bits: Bits<'a>,
    early: usize,
    /// Entries from 258 on: what they begin with, and their last byte, as a string.
    table: Vec<Vec<u8>>,
    previous: Option<Vec<u8>>,
}

impl PumpDecode for Lzw<'_> {
    fn step(&mut self, out: &mut Vec<u8>) -> io::Result<bool> {
        let next = 258 + self.table.len();
        let width = match next + self.early {
            ..512 => 9,
            512..1024 => 10,
            1024..2048 => 11,
            _ => 12,
        };
        let code = self.bits.take(width) as usize;
        if self.bits.overrun() || code == 257 {
            return Ok(false);
        }
        if code == 256 {
            self.table.clear();
            self.previous = None;
            return Ok(true);
        }
        let entry = match code {
            ..256 => vec![code as u8],
            _ => match (self.table.get(code - 258), &self.previous) {
                (Some(entry), _) => entry.clone(),
                (None, Some(previous)) if code == next => {
                    let mut entry = previous.clone();
                    entry.push(previous[0]);
                    entry
                }
                _ => return Err(malformed("a code that the table does not have")),
            },
        };
        out.extend_from_slice(&entry);
        if let Some(mut previous) = self.previous.take()
            && next < 4096
        {
            previous.push(entry[0]);
            self.table.push(previous);
        }
        self.previous = Some(entry);
        Ok(true)
    }
}

/// Undoes the predictor of a filter, if it has one (7.4.4.4).
fn predicted<'a>(reader: Box<dyn Read + 'a>, filter: &Filter) -> Box<dyn Read + 'a> {
    if filter.predictor < 2 {
        return reader;
    }
    let bits = u64::from(filter.colors) * u64::from(filter.bits);
    let row = bits.saturating_mul(filter.columns.into()).div_ceil(8);
    if row == 0 || row > ROW_MAX {
        return reader;
    }
    let pixel = bits.div_ceil(8).max(1) as usize;
    let tiff = filter.predictor == 2;
    if tiff && filter.bits != 8 {
        return reader;
    }
    Box::new(Predictor { reader, row: vec![0; row as usize], at: row as usize, pixel, tiff })
}

struct Predictor<'a> {
    reader: Box<dyn Read + 'a>,
    /// The row that is given out, once undone the one above the next.
    row: Vec<u8>,
    at: usize,
    pixel: usize,
    tiff: bool,
}

impl Predictor<'_> {
    /// False: there is no further row.
    fn next(&mut self) -> io::Result<bool> {
        let mut kind = [0];
        if !self.tiff && fill(&mut self.reader, &mut kind)? == 0 {
            return Ok(false);
        }
        let mut row = vec![0; self.row.len()];
        let len = fill(&mut self.reader, &mut row)?;
        if len == 0 {
            return Ok(false);
        }
        row.truncate(len);
        for i in 0..len {
            let left = if i >= self.pixel { row[i - self.pixel] } else { 0 };
            let (up, corner) = (
                self.row.get(i).copied().unwrap_or(0),
                i.checked_sub(self.pixel).and_then(|i| self.row.get(i)).copied().unwrap_or(0),
            );
            let guess = match kind[0] {
                _ if self.tiff => left,
                1 => left,
                2 => up,
                3 => (u16::from(left).midpoint(u16::from(up))) as u8,
                4 => paeth(left, up, corner),
                _ => 0,
            };
            row[i] = row[i].wrapping_add(guess);
        }
        self.row = row;
        self.at = 0;
        Ok(true)
    }
}

/// PNG (RFC 2083 section 6.6).
fn paeth(left: u8, up: u8, corner: u8) -> u8 {
    let (a, b, c) = (i16::from(left), i16::from(up), i16::from(corner));
    let estimate = a + b - c;
    let distance = |n: i16| (estimate - n).abs();
    if distance(a) <= distance(b) && distance(a) <= distance(c) {
        left
    } else if distance(b) <= distance(c) {
        up
    } else {
        corner
    }
}

fn fill(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut len = 0;
    while len < buffer.len() {
        match reader.read(&mut buffer[len..]) {
            Ok(0) => break,
            Ok(n) => len += n,
            // What was read belongs to the row.
            Err(_) if len > 0 => break,
            Err(e) => return Err(e),
        }
    }
    Ok(len)
}

impl Read for Predictor<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at >= self.row.len() && !self.next()? {
            return Ok(0);
        }
        let n = buffer.len().min(self.row.len() - self.at);
        buffer[..n].copy_from_slice(&self.row[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(name: &str) -> Filter {
        let name = name.as_bytes().to_vec();
        Filter { name, predictor: 1, columns: 1, colors: 1, bits: 8, early_change: true }
    }

    fn decoded(data: &[u8], filters: &[Filter]) -> Vec<u8> {
        let mut out = Vec::new();
        match undo(data, filters) {
            Filtered::Reader(mut r) => r.read_to_end(&mut out).unwrap(),
            _ => panic!("not all filters were undone"),
        };
        out
    }

    #[test]
    fn filters_follow_the_standard() {
        assert_eq!(decoded(b"48 65 6c6C 6f7>x", &[filter("AHx")]), b"Hellop");
        assert_eq!(decoded(b"87cURD]i,\"Ebo80~>", &[filter("ASCII85Decode")]), b"Hello World!");
        assert_eq!(decoded(b"z87cUR~>", &[filter("A85")]), b"\0\0\0\0Hell");
        assert_eq!(decoded(b"\x02abc\xfed\x80zz", &[filter("RL")]), b"abcddd");
        // ISO 32000-1, 7.4.4.2, example 2
        let lzw = [0x80, 0x0b, 0x60, 0x50, 0x22, 0x0c, 0x0c, 0x85, 0x01];
        let text = [45, 45, 45, 45, 45, 65, 45, 45, 45, 66];
        assert_eq!(decoded(&lzw, &[filter("LZWDecode")]), text);
        let hex: String = lzw.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(decoded(hex.as_bytes(), &[filter("AHx"), filter("LZW")]), text);
    }

    #[test]
    fn predictors_are_undone() {
        use std::io::Write;
        let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
        zlib.write_all(&[2, 1, 2, 3, 2, 1, 1, 1, 1, 5, 1, 1]).unwrap();
        let png = Filter { predictor: 12, columns: 3, ..filter("Fl") };
        let packed = zlib.finish().unwrap();
        assert_eq!(decoded(&packed, std::slice::from_ref(&png)), [1, 2, 3, 2, 3, 4, 5, 6, 7]);
        // A stream that is cut off gives what it has.
        assert!(!decoded(&packed[..packed.len() - 5], &[png]).is_empty());
    }
}

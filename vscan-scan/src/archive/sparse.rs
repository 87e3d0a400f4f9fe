//! Sparse tar members: pieces with holes between them, GNU's old form and its three forms in pax.

use super::tar::{number, pax_all};
use std::io::{self, Read};

const BLOCK: usize = 512;
/// Pieces of one file; past it the map is taken to be wrong.
const PIECES_MAX: usize = 1 << 20;

/// Where a piece lies in the file, and its bytes.
type Piece = (u64, u64);

/// The member with its holes.
pub(crate) struct Sparse<'a> {
    pieces: std::vec::IntoIter<Piece>,
    data: &'a [u8],
    at: u64,
    /// Bytes of the current piece.
    left: u64,
    next: Option<Piece>,
    size: u64,
}

impl<'a> Sparse<'a> {
    fn new(pieces: Vec<Piece>, data: &'a [u8], size: u64) -> Self {
        let mut pieces = pieces.into_iter();
        let next = pieces.next();
        Self { pieces, data, at: 0, left: 0, next, size }
    }

    /// GNU's old form (type `S`): four pieces in the header, 21 more in each block that follows it. Gives the
    /// bytes of those blocks as well; the member's data is behind them.
    pub(crate) fn old(header: &[u8], behind: &'a [u8], len: u64) -> Option<(Self, usize)> {
        let mut pieces = Vec::new();
        let mut take = |table: &[u8]| {
            for entry in table.chunks_exact(24) {
                if entry[0] != 0 {
                    pieces.push((number(&entry[..12])?, number(&entry[12..])?));
                }
            }
            Some(())
        };
        take(&header[386..482])?;
        let (mut more, mut at) = (header[482] != 0, 0);
        while more {
            let block = behind.get(at..at + BLOCK)?;
            take(&block[..504])?;
            more = block[504] != 0;
            at += BLOCK;
        }
        let data = &behind[at..];
        let data = &data[..usize::try_from(len).unwrap_or(usize::MAX).min(data.len())];
        Some((Self::new(pieces, data, number(&header[483..495])?), at))
    }

    /// The forms of pax: 0.0 (records of offsets and lengths), 0.1 (a record with the map), 1.0 (the map before
    /// the data). None: the records are those of no sparse file.
    pub(crate) fn pax(records: &[u8], body: &'a [u8]) -> Option<Self> {
        let text =
            |key: &[u8]| pax_all(records, key).pop().and_then(|v| std::str::from_utf8(v).ok());
        let decimal = |value: &[u8]| std::str::from_utf8(value).ok()?.trim().parse::<u64>().ok();
        let size = text(b"GNU.sparse.realsize").or(text(b"GNU.sparse.size"));
        let size = size.and_then(|s| s.parse().ok());
        let mut pieces: Vec<u64> = Vec::new();
        let mut data = body;
        if text(b"GNU.sparse.major") == Some("1") {
            let mut line = || {
                let end = memchr::memchr(b'\n', &data[..data.len().min(24)])?;
                let number = decimal(&data[..end])?;
                data = &data[end + 1..];
                Some(number)
            };
            let count = usize::try_from(line()?).ok().filter(|&n| n <= PIECES_MAX)?;
            for _ in 0..count * 2 {
                pieces.push(line()?);
            }
            let map = (body.len() - data.len()).next_multiple_of(BLOCK);
            data = body.get(map..)?;
        } else if let Some(map) = text(b"GNU.sparse.map") {
            pieces.extend(map.split(',').map_while(|n| n.parse::<u64>().ok()));
        } else {
            let offsets = pax_all(records, b"GNU.sparse.offset");
            let lengths = pax_all(records, b"GNU.sparse.numbytes");
            for (offset, len) in offsets.into_iter().zip(lengths) {
                pieces.extend([decimal(offset)?, decimal(len)?]);
            }
        }
        let pieces: Vec<Piece> = pieces.as_chunks().0.iter().map(|&[at, len]| (at, len)).collect();
        let end = pieces.last().map(|&(at, len)| at.saturating_add(len))?;
        Some(Self::new(pieces, data, size.unwrap_or(end)))
    }
}

impl Read for Sparse<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if self.left > 0 {
                let n = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
                let n = n.min(self.data.len());
                if n == 0 {
                    return if buffer.is_empty() {
                        Ok(0)
                    } else {
                        Err(io::ErrorKind::UnexpectedEof.into())
                    };
                }
                let (bytes, rest) = self.data.split_at(n);
                buffer[..n].copy_from_slice(bytes);
                self.data = rest;
                self.left -= n as u64;
                self.at += n as u64;
                return Ok(n);
            }
            // A hole up to the next piece, or to the end.
            let until = self.next.map_or(self.size, |(at, _)| at);
            if self.at < until {
                let n = buffer.len().min(usize::try_from(until - self.at).unwrap_or(usize::MAX));
                buffer[..n].fill(0);
                self.at += n as u64;
                return Ok(n);
            }
            let Some((_, len)) = self.next else { return Ok(0) };
            self.left = len;
            self.next = self.pieces.next();
        }
    }
}

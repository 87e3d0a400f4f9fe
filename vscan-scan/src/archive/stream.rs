//! Compressed streams of one file: gzip (RFC 1952), bzip2, xz, lzma, lzip, Zstandard (RFC 8878).
//!
//! Streams that follow one another are one file, as their own tools unpack them; what follows the last one
//! and is no stream is a part by itself.

use crate::bytes::u32_le;
use crate::object::{Place, Walk};
use crate::report::Reason;
use crate::sniff::Kind;
use bzip2::bufread::BzDecoder;
use flate2::bufread::GzDecoder;
use lzma_rust2::{LzipReader, LzmaReader, XzReader};
use ruzstd::decoding::errors::FrameDecoderError;
use ruzstd::decoding::{FrameDecoder, StreamingDecoder};
use std::io::{self, Read};

/// What begins a gzip member, its method included: there is no other than 8, and gzip(1), 7-Zip, libarchive and zlib refuse
/// them. The two bytes of its magic alone are chance in one of 65,536 files.
pub(crate) const GZIP: &[u8] = b"\x1f\x8b\x08";

/// Memory for a dictionary or window, in KiB: 64 MiB is that of `xz -9`, 128 MiB that of `zstd --long`; what
/// needs more is said to be over the limit.
pub(crate) const WINDOW_KIB: u32 = 160 * 1024;

pub(crate) fn open(walk: &mut Walk<'_>, data: &[u8], kind: Kind) {
    let size = data.len() as u64;
    let rest = match kind {
        Kind::Gzip => {
            let name = member_name(data);
            let mut chain = Chain::new(data, gzip, GzDecoder::into_inner);
            walk.decoded(&name, size, &mut chain);
            chain.rest
        }
        Kind::Bzip2 => {
            let mut chain = Chain::new(data, bzip2_stream, BzDecoder::into_inner);
            walk.decoded("bzip2", size, &mut chain);
            chain.rest
        }
        Kind::Zstd => {
            let mut chain = Chain::new(data, zstd, StreamingDecoder::into_inner);
            walk.decoded("zstd", size, &mut chain);
            chain.rest
        }
        Kind::Xz => {
            walk.decoded("xz", size, &mut XzReader::new_mem_limit(data, true, WINDOW_KIB));
            &[]
        }
        Kind::Lzip => {
            match lzip_dictionary(data) {
                Some(dictionary) if dictionary > u64::from(WINDOW_KIB) * 1024 => {
                    let what = format!("lzip dictionary of {dictionary} bytes");
                    walk.within("lzip", |walk| walk.note(Reason::Memory, &what));
                }
                _ => walk.decoded("lzip", size, &mut LzipReader::new(data)),
            }
            &[]
        }
        Kind::Lzma => {
            let dictionary = u32_le(data, 1).unwrap_or(0);
            if dictionary / 1024 > WINDOW_KIB {
                let what = format!("LZMA dictionary of {dictionary} bytes");
                walk.within("lzma", |walk| walk.note(Reason::Memory, &what));
                return;
            }
            match LzmaReader::new_mem_limit(data, WINDOW_KIB, None) {
                Ok(mut reader) => walk.decoded("lzma", size, &mut reader),
                Err(e) => walk.failed("lzma", &e),
            }
            &[]
        }
        _ => &[],
    };
    // gzip(1) ignores zeros after the last member (tapes) and warns of other bytes.
    if rest.len() < data.len() && rest.iter().any(|&b| b != 0) {
        walk.part("behind the end", rest, Place::File);
    }
}

/// The dictionary of a lzip file: a power of two less some sixteenths of it.
fn lzip_dictionary(data: &[u8]) -> Option<u64> {
    let coded = *data.get(5)?;
    let base = 1u64 << (coded & 31);
    Some(base - (base / 16) * u64::from(coded >> 5))
}

/// Reads streams one behind the other.
pub(crate) struct Chain<'a, D> {
    rest: &'a [u8],
    current: Option<D>,
    opened: bool,
    /// None: no further stream begins here.
    open: fn(&'a [u8]) -> Option<io::Result<D>>,
    into_inner: fn(D) -> &'a [u8],
}

impl<'a, D: Read> Chain<'a, D> {
    pub(crate) fn new(
        data: &'a [u8],
        open: fn(&'a [u8]) -> Option<io::Result<D>>,
        into_inner: fn(D) -> &'a [u8],
    ) -> Self {
        Self { rest: data, current: None, opened: false, open, into_inner }
    }
}

impl<D: Read> Read for Chain<'_, D> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some(decoder) = &mut self.current {
                match decoder.read(buffer)? {
                    0 => {}
                    n => return Ok(n),
                }
            }
            if let Some(decoder) = self.current.take() {
                self.rest = (self.into_inner)(decoder);
                // A million streams of nothing: the caller looks at the clock and comes again.
                return Err(io::ErrorKind::Interrupted.into());
            }
            // Frames that are to be skipped (RFC 8878 section 3.1.2).
            while let Some((&[0x50..0x60, 0x2a, 0x4d, 0x18, a, b, c, d], behind)) =
                self.rest.split_first_chunk::<8>()
            {
                let len = u32::from_le_bytes([a, b, c, d]) as usize;
                self.rest = behind.get(len..).ok_or(io::ErrorKind::UnexpectedEof)?;
            }
            // Streams of nothing: the decoder of each would clear megabytes for it.
            while let Some((
                &[b'B', b'Z', b'h', _, 0x17, 0x72, 0x45, 0x38, 0x50, 0x90, 0, 0, 0, 0],
                behind,
            )) = self.rest.split_first_chunk::<14>()
            {
                (self.rest, self.opened) = (behind, true);
            }
            match (self.open)(self.rest) {
                Some(decoder) => self.current = Some(decoder?),
                None if self.opened || self.rest.is_empty() => return Ok(0),
                None => {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "no stream begins here",
                    ));
                }
            }
            self.opened = true;
        }
    }
}

fn gzip(data: &[u8]) -> Option<io::Result<GzDecoder<&[u8]>>> {
    data.starts_with(GZIP).then(|| Ok(GzDecoder::new(data)))
}

pub(crate) fn bzip2_stream(data: &[u8]) -> Option<io::Result<BzDecoder<&[u8]>>> {
    data.starts_with(b"BZh").then(|| Ok(BzDecoder::new(data)))
}

pub(crate) fn zstd(data: &[u8]) -> Option<io::Result<StreamingDecoder<&[u8], FrameDecoder>>> {
    data.starts_with(b"\x28\xb5\x2f\xfd").then(|| {
        StreamingDecoder::new_with_max_window_size(data, u64::from(WINDOW_KIB) * 1024).map_err(
            |e| match e {
                FrameDecoderError::WindowSizeTooBig { .. } => {
                    io::Error::new(io::ErrorKind::OutOfMemory, e.to_string())
                }
                e => io::Error::new(io::ErrorKind::InvalidData, e.to_string()),
            },
        )
    })
}

/// The file name in the header (RFC 1952 section 2.3, FNAME), if there is one.
fn member_name(data: &[u8]) -> String {
    const FEXTRA: u8 = 4;
    const FNAME: u8 = 8;
    let name = || {
        let flags = *data.get(3)?;
        if flags & FNAME == 0 {
            return None;
        }
        let mut at = 10;
        if flags & FEXTRA != 0 {
            at += 2 + usize::from(u16::from_le_bytes([*data.get(10)?, *data.get(11)?]));
        }
        let rest = data.get(at..)?;
        Some(super::name(&rest[..memchr::memchr(0, &rest[..rest.len().min(1024)])?]))
    };
    name().unwrap_or_else(|| "gzip".to_owned())
}

impl Walk<'_> {
    /// Notes a decoder that does not even begin.
    pub(crate) fn failed(&mut self, name: &str, error: &io::Error) {
        let reason = if error.kind() == io::ErrorKind::OutOfMemory {
            Reason::Memory
        } else {
            Reason::Malformed
        };
        self.within(name, |walk| walk.note(reason, &error.to_string()));
    }
}

//! The methods of zip members (APPNOTE.TXT 4.4.5).

use super::guard::Guarded;
use super::implode::Implode;
use super::pump::Pump;
use super::stream::{Chain, WINDOW_KIB, bzip2_stream, zstd};
use bzip2::bufread::BzDecoder;
use deflate64::Deflate64Decoder;
use explode::ExplodeReader;
use flate2::read::DeflateDecoder;
use lzma_rust2::{LzmaReader, XzReader, lzma_get_memory_usage_by_props};
use ppmd_rust::{Ppmd8Decoder, RestoreMethod};
use ruzstd::decoding::StreamingDecoder;
use std::io::{self, Read};

/// Method 14: the data ends by a mark of its own, not by its size (APPNOTE.TXT 4.4.4, bit 1).
const LZMA_END_MARK: u16 = 1 << 1;

/// The decoder of a member's packed data; None for a method without one. `size` is that of the decoded data.
pub(crate) fn reader(
    method: u16,
    flags: u16,
    data: &[u8],
    size: Option<u64>,
) -> Option<io::Result<Box<dyn Read + '_>>> {
    Some(match method {
        6 => imploded(data, flags, size),
        8 => boxed(DeflateDecoder::new(data)),
        9 => boxed(Deflate64Decoder::with_buffer(data)),
        10 => boxed(ExplodeReader::new(data)),
        12 => boxed(Chain::new(data, bzip2_stream, BzDecoder::into_inner)),
        14 => lzma(data, if flags & LZMA_END_MARK == 0 { size } else { None }),
        20 | 93 => boxed(Chain::new(data, zstd, StreamingDecoder::into_inner)),
        95 => boxed(XzReader::new_mem_limit(data, true, WINDOW_KIB)),
        98 => ppmd(data, size),
        _ => return None,
    })
}

fn boxed<'a>(reader: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    Ok(Box::new(Guarded(reader)))
}

/// Implode does not say where it ends; without a size in the header nothing can be told from the padding.
fn imploded(data: &[u8], flags: u16, size: Option<u64>) -> io::Result<Box<dyn Read + '_>> {
    boxed(Pump::new(Implode::new(data, flags, size.unwrap_or(u64::MAX))?))
}

/// A version, the length of the properties, the properties, LZMA (APPNOTE.TXT 5.8.8).
fn lzma(data: &[u8], size: Option<u64>) -> io::Result<Box<dyn Read + '_>> {
    let (&[_, _, 5, 0, props, a, b, c, d], packed) =
        data.split_first_chunk().ok_or(io::ErrorKind::UnexpectedEof)?
    else {
        return Err(super::pump::malformed("LZMA properties of another size than 5"));
    };
    let dictionary = u32::from_le_bytes([a, b, c, d]);
    if dictionary / 1024 > WINDOW_KIB
        || lzma_get_memory_usage_by_props(dictionary, props)? > WINDOW_KIB
    {
        return Err(io::Error::new(
            io::ErrorKind::OutOfMemory,
            format!("LZMA dictionary of {dictionary} bytes"),
        ));
    }
    boxed(LzmaReader::new_with_props(packed, size.unwrap_or(u64::MAX), props, dictionary, None)?)
}

/// Two bytes of parameters, then PPMd of variant I, revision 1 (APPNOTE.TXT 5.10).
fn ppmd(data: &[u8], size: Option<u64>) -> io::Result<Box<dyn Read + '_>> {
    let (&parameters, packed) = data.split_first_chunk().ok_or(io::ErrorKind::UnexpectedEof)?;
    let parameters = u16::from_le_bytes(parameters);
    let order = u32::from(parameters & 15) + 1;
    let memory = (u32::from(parameters >> 4 & 0xff) + 1) << 20;
    let restore = match parameters >> 12 {
        0 => RestoreMethod::Restart,
        1 => RestoreMethod::CutOff,
        _ => return Err(super::pump::malformed("a PPMd model that does not exist")),
    };
    if memory / 1024 > WINDOW_KIB {
        return Err(io::Error::new(
            io::ErrorKind::OutOfMemory,
            format!("PPMd model of {memory} bytes"),
        ));
    }
    let decoder = Ppmd8Decoder::new(packed, order, memory, restore)
        .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.to_string()))?;
    boxed(decoder.take(size.unwrap_or(u64::MAX)))
}

//! Installers of NSIS: the files behind the program, each packed by itself or all in one stream; deflate and LZMA.

use super::stream::WINDOW_KIB;
use crate::bytes::{clipped, u32_le};
use crate::object::{Place, Walk};
use crate::report::Reason;
use flate2::read::DeflateDecoder;
use lzma_rust2::{LzmaReader, filter::bcj::BcjReader, lzma_get_memory_usage_by_props};
use std::io::{self, Read};

/// What stands behind the flags of the first header.
pub(crate) const MAGIC: &[u8] = b"\xef\xbe\xad\xdeNullsoftInst";
/// Flags, magic, length of the header, length of all that follows.
const FIRST_HEADER: usize = 28;
/// The upper bit of a block's length: it is packed.
const PACKED: u32 = 1 << 31;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Method {
    Deflate,
    Lzma,
    /// LZMA behind a byte that says whether the filter for x86 code follows it.
    FilteredLzma,
    Bzip2,
}

/// True when the first header lies here, with lengths that can be.
pub(crate) fn begins(data: &[u8]) -> bool {
    data.get(4..).is_some_and(|d| d.starts_with(MAGIC))
        && u32_le(data, 24).is_some_and(|len| len as usize > FIRST_HEADER)
}

pub(crate) fn open(walk: &mut Walk<'_>, data: &[u8]) {
    let len = u32_le(data, 24).unwrap_or(0) as usize;
    let all = clipped(data, 0, len);
    let body = all.get(FIRST_HEADER..).unwrap_or_default();
    let Some(first) = u32_le(body, 0) else {
        return walk.note(Reason::Malformed, "NSIS installer without its header");
    };
    // Files by themselves: the first block, the header's, begins with its length, and is packed.
    let inner = first & !PACKED;
    if first & PACKED != 0 && (inner as usize) < body.len() {
        let method = method(&body[4..]);
        return blocks(walk, body, |walk, name, block, packed| match packed {
            true => unpack(walk, name, block, method),
            false => walk.part(name, block, Place::File),
        });
    }
    let whole = match decoder(body, method(body)) {
        Ok(mut reader) => walk.decoded_too("stream", body.len() as u64, &mut reader),
        Err(e) => return walk.failed("stream", &e),
    };
    blocks(walk, &whole, |walk, name, block, _| walk.part(name, block, Place::File));
}

/// Hands each block, behind its length, to `each`, with whether it is packed. What is no block ends it: a
/// checksum, or a signature.
fn blocks(
    walk: &mut Walk<'_>,
    data: &[u8],
    mut each: impl FnMut(&mut Walk<'_>, &str, &[u8], bool),
) {
    let (mut at, mut number) = (0, 0);
    while let Some(len) = u32_le(data, at) {
        let size = (len & !PACKED) as usize;
        let Some(block) = data.get(at + 4..(at + 4).saturating_add(size)) else { break };
        if walk.stopped() {
            return;
        }
        let name = if number == 0 { "header".to_owned() } else { format!("file-{number}") };
        if !block.is_empty() {
            each(walk, &name, block, len & PACKED != 0);
        }
        number += 1;
        at += 4 + size;
    }
    if number < 2 {
        walk.note(Reason::Malformed, "NSIS installer without files");
    }
}

fn unpack(walk: &mut Walk<'_>, name: &str, block: &[u8], method: Method) {
    match decoder(block, method) {
        Ok(mut reader) => walk.decoded(name, block.len() as u64, &mut reader),
        Err(e) if e.kind() == io::ErrorKind::Unsupported => {
            walk.within(name, |walk| walk.note(Reason::Unsupported, &e.to_string()));
        }
        Err(e) => walk.failed(name, &e),
    }
}

/// The method, which no field names, by how the packed header begins.
fn method(data: &[u8]) -> Method {
    match data {
        [0x5d, 0, 0, _, _, 0, ..] => Method::Lzma,
        [0 | 1, 0x5d, 0, 0, _, _, 0, ..] => Method::FilteredLzma,
        [0x31, ..14, ..] => Method::Bzip2,
        _ => Method::Deflate,
    }
}

fn decoder(data: &[u8], method: Method) -> io::Result<Box<dyn Read + '_>> {
    let (filter, data) = match (method, data) {
        (Method::Deflate, _) => return Ok(Box::new(DeflateDecoder::new(data))),
        (Method::Bzip2, _) => {
            let what = "bzip2 as NSIS changed it cannot be opened";
            return Err(io::Error::new(io::ErrorKind::Unsupported, what));
        }
        (Method::FilteredLzma, [filter, data @ ..]) => (*filter == 1, data),
        _ => (false, data),
    };
    let (&[props, a, b, c, d], packed) =
        data.split_first_chunk().ok_or(io::ErrorKind::UnexpectedEof)?;
    let dictionary = u32::from_le_bytes([a, b, c, d]);
    if dictionary / 1024 > WINDOW_KIB
        || lzma_get_memory_usage_by_props(dictionary, props)? > WINDOW_KIB
    {
        return Err(io::ErrorKind::OutOfMemory.into());
    }
    let reader = LzmaReader::new_with_props(packed, u64::MAX, props, dictionary, None)?;
    Ok(if filter { Box::new(BcjReader::new_x86(reader, 0)) } else { Box::new(reader) })
}

//! VBA source in compressed containers (MS-OVBA 2.4.1), and where it lies in a project (2.3.4).

use crate::bytes::{clipped, u16_le, u32_le};

/// Bytes that one chunk decodes to, at most (MS-OVBA 2.4.1.1.3).
const CHUNK: usize = 4096;
/// Bytes of one module; the editor takes 65,534 lines. A chunk of two bytes makes thousands.
const SOURCE_MAX: usize = 16 << 20;

/// A container's content.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) text: Vec<u8>,
    /// There is more of it than is decoded.
    pub(crate) cut: bool,
}

/// Decompresses the container at the beginning of `data` as far as it goes. None: there is none.
pub(crate) fn decompress(data: &[u8]) -> Option<Source> {
    container(data).map(|(source, _)| source)
}

/// What the container at the beginning decodes to, and its length.
fn container(data: &[u8]) -> Option<(Source, usize)> {
    let mut rest = data.strip_prefix(&[1])?;
    let mut out = Vec::new();
    let mut cut = false;
    while let Some(header) = u16_le(rest, 0) {
        // Three bits of signature.
        if header >> 12 & 7 != 3 {
            break;
        }
        cut = out.len() >= SOURCE_MAX;
        if cut {
            break;
        }
        let body = clipped(rest, 2, usize::from(header & 0xfff) + 1);
        if header & 0x8000 == 0 {
            out.extend_from_slice(clipped(body, 0, CHUNK));
        } else if !chunk(body, &mut out) {
            break;
        }
        rest = &rest[2 + body.len()..];
    }
    (!out.is_empty()).then_some((Source { text: out, cut }, data.len() - rest.len()))
}

/// Decodes the tokens of one chunk (MS-OVBA 2.4.1.3.2). False: they are wrong.
fn chunk(mut body: &[u8], out: &mut Vec<u8>) -> bool {
    let start = out.len();
    while let Some((&flags, rest)) = body.split_first() {
        body = rest;
        for bit in 0..8 {
            if flags >> bit & 1 == 0 {
                let Some((&byte, rest)) = body.split_first() else { return true };
                out.push(byte);
                body = rest;
            } else {
                let Some(token) = u16_le(body, 0) else { return true };
                body = &body[2..];
                let written = out.len() - start;
                // The more is written, the more bits the offset has: at least 4, at most 12.
                let bits = usize::BITS - written.saturating_sub(1).leading_zeros();
                let bits = bits.clamp(4, 12);
                let offset = usize::from(token >> (16 - bits)) + 1;
                let len = usize::from(token & (0xffff >> bits)) + 3;
                if offset > written || written + len > CHUNK {
                    return false;
                }
                for _ in 0..len {
                    out.push(out[out.len() - offset]);
                }
            }
        }
    }
    true
}

/// Where the source begins in the streams of the modules, by the decompressed `dir` stream: MODULEOFFSET
/// (2.3.4.2.3.2.5).
pub(crate) fn modules(dir: &[u8]) -> Vec<usize> {
    const OFFSET: u16 = 0x31;
    const PROJECT_VERSION: u16 = 0x09;
    let mut found = Vec::new();
    let mut at = 0;
    while let (Some(id), Some(len)) = (u16_le(dir, at), u32_le(dir, at + 2)) {
        // The version's length is said to be 4, but it has 6 bytes.
        let len = if id == PROJECT_VERSION { 6 } else { len as usize };
        if id == OFFSET {
            found.extend(u32_le(dir, at + 6).map(|offset| offset as usize));
        }
        let Some(next) = at.checked_add(6 + len) else { break };
        at = next;
    }
    found
}

/// The sources of a stream without regard to the project's directory: containers whose text begins as every
/// module does, `Attribut`, then `e VB_Nam`.
pub(crate) fn search(stream: &[u8]) -> Vec<Source> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(hit) = memchr::memmem::find(&stream[at..], b"\0Attribut\0e ") {
        at += hit;
        // A signature byte, a chunk header of two, a flag byte of 0, eight letters.
        match at.checked_sub(3).and_then(|at| container(&stream[at..])) {
            Some((source, len)) => {
                found.push(source);
                at += len.max(1);
            }
            None => at += 1,
        }
        at = at.min(stream.len());
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_of_the_standard_are_decompressed() {
        // MS-OVBA 3.2.1 to 3.2.3
        let none = b"\x01\x19\xb0\x00\x61\x62\x63\x64\x65\x66\x67\x68\x00\x69\x6a\x6b\x6c\x6d\x6e\x6f\x70\x00\x71\x72\x73\x74\x75\x76\x2e";
        assert_eq!(decompress(none).unwrap().text, b"abcdefghijklmnopqrstuv.");
        let normal = b"\x01\x2f\xb0\x00\x23\x61\x61\x61\x62\x63\x64\x65\x82\x66\x00\x70\x61\x67\x68\x69\x6a\x01\x38\x08\x61\x6b\x6c\x00\x30\x6d\x6e\x6f\x70\x06\x71\x02\x70\x04\x10\x72\x73\x74\x75\x76\x10\x77\x78\x79\x7a\x00\x3c";
        assert_eq!(
            decompress(normal).unwrap().text,
            b"#aaabcdefaaaaghijaaaaaklaaamnopqaaaaaaaaaaaarstuvwxyzaaa"
        );
        assert_eq!(decompress(b"\x01\x03\xb0\x02\x61\x45\x00").unwrap().text, [b'a'; 73]);
        assert!(decompress(b"\x02\x03\xb0").is_none());
    }
}

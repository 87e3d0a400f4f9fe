//! tar: ustar, GNU long names, pax and sparse files; every header block whose checksum agrees begins a member.

use super::sparse::Sparse;
use crate::object::{Place, Walk};
use crate::report::Reason;

const BLOCK: usize = 512;

pub(crate) fn open(walk: &mut Walk<'_>, data: &[u8]) {
    let mut at = 0;
    let mut long_name: Option<Vec<u8>> = None;
    let mut pax_size: Option<u64> = None;
    let mut pax_records: &[u8] = &[];
    while let Some(header) = data.get(at..at + BLOCK) {
        if walk.stopped() {
            return;
        }
        // Two blocks of zeros end an archive, but `tar -i` and concatenated archives go on after them.
        if header.iter().all(|&b| b == 0) {
            at += BLOCK;
            continue;
        }
        if !checksum_agrees(header) {
            walk.note(Reason::Malformed, "tar header with a wrong checksum");
            walk.part("after-tar", &data[at..], Place::File);
            return;
        }
        let Some(mut size) = number(&header[124..136]) else {
            walk.note(Reason::Malformed, "tar member without a size");
            walk.part("after-tar", &data[at..], Place::File);
            return;
        };
        let kind = header[156];
        if !matches!(kind, b'x' | b'g' | b'L' | b'K') {
            size = pax_size.take().unwrap_or(size);
        }
        let rest = &data[at + BLOCK..];
        let truncated = size > rest.len() as u64;
        let body = &rest[..size.min(rest.len() as u64) as usize];
        match kind {
            b'L' => long_name = Some(trim_nul(body).to_vec()),
            b'K' | b'g' => {}
            b'x' => {
                if let Some(path) = pax(body, b"GNU.sparse.name").or(pax(body, b"path")) {
                    long_name = Some(path.to_vec());
                }
                pax_records = body;
                pax_size =
                    pax(body, b"size").and_then(|s| std::str::from_utf8(s).ok()?.parse().ok());
            }
            _ => {
                let name = long_name.take().unwrap_or_else(|| trim_nul(&header[..100]).to_vec());
                let name = super::name(&name);
                // As stored it is read as well, as by those who know nothing of sparse files.
                if !body.is_empty() {
                    walk.part(&name, body, Place::File);
                }
                if kind == b'S' {
                    match Sparse::old(header, rest, size) {
                        Some((mut sparse, maps)) => {
                            walk.decoded(&name, size, &mut sparse);
                            at = at.saturating_add(maps);
                        }
                        None => walk.within(&name, |walk| {
                            walk.note(Reason::Malformed, "the map of a sparse tar member is wrong");
                        }),
                    }
                } else {
                    let records = std::mem::take(&mut pax_records);
                    match Sparse::pax(records, body) {
                        Some(mut sparse) => walk.decoded(&name, size, &mut sparse),
                        None if memchr::memmem::find(records, b" GNU.sparse.").is_some() => walk
                            .within(&name, |walk| {
                                walk.note(
                                    Reason::Malformed,
                                    "the map of a sparse tar member is wrong",
                                );
                            }),
                        None => {}
                    }
                }
                if truncated {
                    walk.within(&name, |walk| {
                        walk.note(Reason::Malformed, "the tar member is cut off")
                    });
                }
            }
        }
        at = at.saturating_add(BLOCK).saturating_add(body.len().next_multiple_of(BLOCK));
    }
}

/// True when the checksum field agrees with the header: the sum of its bytes, its own taken as spaces.
pub(crate) fn checksum_agrees(header: &[u8]) -> bool {
    let Some(wanted) = number(&header[148..156]) else { return false };
    let sum: u64 = header[..148].iter().chain(&header[156..]).map(|&b| u64::from(b)).sum();
    let signed: i64 =
        header[..148].iter().chain(&header[156..]).map(|&b| i64::from(b.cast_signed())).sum();
    // Historic writers summed signed bytes.
    sum + 256 == wanted || u64::try_from(signed + 256) == Ok(wanted)
}

/// An octal number, or one in base 256 (GNU) when the highest bit of the field is set.
pub(super) fn number(field: &[u8]) -> Option<u64> {
    if field[0] & 0x80 != 0 {
        return field[field.len() - 8..].iter().try_fold(0u64, |n, &b| Some(n << 8 | u64::from(b)));
    }
    let text: Vec<u8> = field.iter().copied().filter(|b| !matches!(b, b' ' | 0)).collect();
    if text.is_empty() {
        return Some(0);
    }
    text.iter().try_fold(0u64, |n, &b| match b {
        b'0'..=b'7' => n.checked_mul(8)?.checked_add(u64::from(b - b'0')),
        _ => None,
    })
}

/// The value of a pax record; of several the last one counts.
fn pax<'a>(body: &'a [u8], key: &[u8]) -> Option<&'a [u8]> {
    pax_all(body, key).pop()
}

/// The values of the pax records `LEN KEY=VALUE\n` with this key.
pub(super) fn pax_all<'a>(mut body: &'a [u8], key: &[u8]) -> Vec<&'a [u8]> {
    let mut found = Vec::new();
    while let Some(space) = memchr::memchr(b' ', &body[..body.len().min(21)]) {
        let len = std::str::from_utf8(&body[..space]).ok().and_then(|n| n.parse::<usize>().ok());
        let Some((record, rest)) = len.and_then(|len| body.split_at_checked(len)) else { break };
        let Some(record) = record.get(space + 1..) else { break };
        if let Some(value) = record.strip_prefix(key).and_then(|r| r.strip_prefix(b"=")) {
            found.push(value.strip_suffix(b"\n").unwrap_or(value));
        }
        body = rest;
    }
    found
}

fn trim_nul(bytes: &[u8]) -> &[u8] {
    &bytes[..memchr::memchr(0, bytes).unwrap_or(bytes.len())]
}

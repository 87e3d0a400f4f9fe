//! cpio: the old binary form in both byte orders, odc (POSIX.1-2008, `pax`), newc and crc (SVR4).

use crate::bytes::{clipped, u16_be, u16_le};
use crate::object::{Place, Walk};
use crate::report::Reason;

/// A header, as far as it matters.
struct Header {
    /// Bytes of the header itself.
    len: usize,
    /// Bytes of the name, its NUL included.
    name: usize,
    size: u64,
    /// Name and body each end at a multiple of this.
    align: usize,
    /// What is aligned: in newc, header and name together.
    from_start: bool,
}

/// Names in cpio archives; PATH_MAX is 4096.
const NAME_MAX: usize = 64 * 1024;

/// True when a header begins the data.
pub(crate) fn begins(data: &[u8]) -> bool {
    header(data).is_some_and(|h| {
        (2..=NAME_MAX).contains(&h.name)
            // The old binary form has a magic of two bytes only: the name must end where it says.
            && data.get(h.len + h.name - 1).is_none_or(|&b| b == 0)
            && data.get(h.len).is_some_and(|&b| b >= 0x20)
    })
}

pub(crate) fn open(walk: &mut Walk<'_>, data: &[u8]) {
    let mut at = 0;
    while at < data.len() && !walk.stopped() {
        let rest = &data[at..];
        let Some(header) = header(rest).filter(|h| h.name <= NAME_MAX) else {
            // Archives are padded to the block size of a tape.
            if rest.iter().any(|&b| b != 0) {
                walk.note(Reason::Malformed, "cpio member without a header");
                walk.part("after-cpio", rest, Place::File);
            }
            return;
        };
        let aligned = |n: usize| n.next_multiple_of(header.align);
        let name = clipped(rest, header.len, header.name);
        let name = &name[..memchr::memchr(0, name).unwrap_or(name.len())];
        let body = if header.from_start {
            aligned(header.len + header.name)
        } else {
            header.len + aligned(header.name)
        };
        if name == b"TRAILER!!!" {
            // Several archives may lie one behind the other; the next one begins behind padding.
            let behind = rest.get(body..).unwrap_or_default();
            let Some(next) = behind.iter().position(|&b| b != 0) else { return };
            at += body + next;
            continue;
        }
        if body > rest.len() {
            walk.note(Reason::Malformed, "the cpio archive is cut off in a name");
            return;
        }
        let size = usize::try_from(header.size).unwrap_or(usize::MAX);
        let content = clipped(rest, body, size);
        let name = super::name(name);
        if !content.is_empty() {
            walk.part(&name, content, Place::File);
        }
        if content.len() < size {
            walk.within(&name, |walk| walk.note(Reason::Malformed, "the cpio member is cut off"));
            return;
        }
        at = at.saturating_add(body).saturating_add(aligned(size));
    }
}

fn header(data: &[u8]) -> Option<Header> {
    if data.starts_with(b"070701") || data.starts_with(b"070702") {
        let field = |i: usize| digits(data.get(6 + i * 8..14 + i * 8)?, 16);
        let (size, name) = (field(6)?, usize::try_from(field(11)?).ok()?);
        return Some(Header { len: 110, name, size, align: 4, from_start: true });
    }
    if data.starts_with(b"070707") {
        let name = usize::try_from(digits(data.get(59..65)?, 8)?).ok()?;
        let size = digits(data.get(65..76)?, 8)?;
        return Some(Header { len: 76, name, size, align: 1, from_start: false });
    }
    let word: fn(&[u8], usize) -> Option<u16> = match data {
        [0xc7, 0x71, ..] => u16_le,
        [0x71, 0xc7, ..] => u16_be,
        _ => return None,
    };
    // Numbers of 32 bits are two words, the higher first, in both orders.
    let size = u64::from(word(data, 22)?) << 16 | u64::from(word(data, 24)?);
    Some(Header { len: 26, name: word(data, 20)?.into(), size, align: 2, from_start: false })
}

fn digits(field: &[u8], radix: u32) -> Option<u64> {
    u64::from_str_radix(std::str::from_utf8(field).ok()?, radix).ok()
}

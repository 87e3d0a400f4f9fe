//! ZIP (APPNOTE.TXT 6.3): the members of the central directory and, besides them, every local header that
//! the directory leaves out.
//!
//! Unpackers disagree on which of the two counts when they differ, so both are read. Every method in use is
//! opened ([`super::zip_method`]), encrypted members too where a candidate for the password fits
//! ([`super::zip_crypto`]); the others are noted.

use super::guard::{Whole, shorter};
use super::zip_crypto::{self, Keys, Sealed};
use super::zip_method;
use crate::bytes::{u16_le as u16_at, u32_le as u32_at, u64_le as u64_at};
use crate::object::Walk;
use crate::report::Reason;
use memchr::memmem;
use std::collections::HashSet;

/// A member, as far as a header describes it.
#[derive(Clone, Debug)]
struct Member {
    name: String,
    flags: u16,
    method: u16,
    /// Bytes of the packed data; None where a data descriptor behind it says so.
    packed: Option<u64>,
    /// Bytes of the decoded data, as far as that is known: some methods do not say it themselves.
    size: Option<u64>,
    /// Where the local header begins.
    local: usize,
    /// Time of the last change, and checksum.
    time: u16,
    crc: u32,
    /// The extra field, as offset and length.
    extra: (usize, usize),
}

const ENCRYPTED: u16 = 1;
const DESCRIPTOR: u16 = 1 << 3;
/// All but those that are reserved or unused.
const FLAGS_KNOWN: u16 = 0x2c7f;
const LOCAL: &[u8] = b"PK\x03\x04";
const CENTRAL: &[u8] = b"PK\x01\x02";

/// Opens the archive. `begins` says that the data begins as one: only then is an unusable archive worth a note.
pub(crate) fn open(walk: &mut Walk<'_>, data: &[u8], begins: bool) {
    // The places of packed data with the way they were opened, so that nothing is opened twice the same way.
    let mut opened: HashSet<(usize, bool, u16, Option<u64>)> = HashSet::new();
    let mut keys = Keys::default();
    let mut covered = Vec::new();
    let most = walk.limits.members as usize;
    let directory = central(data, most);
    if directory.len() > most {
        walk.note(Reason::Members, "too many entries in the zip directory");
    }
    let mut any = false;
    // Members that do not lie where the directory says; the second view may find them.
    let mut missing: Vec<&str> = Vec::new();
    let mut names: HashSet<String> = HashSet::new();
    for member in &directory {
        if walk.stopped() {
            return;
        }
        any = true;
        match local_at(data, member.local) {
            Some((local, body)) => {
                covered
                    .push(member.local..body.saturating_add(member.packed.unwrap_or(0) as usize));
                open_member(walk, data, member, body, &mut opened, &mut keys);
                // A local header that tells another story than the directory.
                if local.method != member.method
                    || local.flags & ENCRYPTED != member.flags & ENCRYPTED
                    || local.packed.is_some_and(|p| Some(p) != member.packed && p != 0xffff_ffff)
                {
                    open_member(walk, data, &local, body, &mut opened, &mut keys);
                }
            }
            None => missing.push(&member.name[..]),
        }
    }
    covered.sort_by_key(|r| r.start);
    let mut at = 0;
    let mut next_covered = 0;
    let local = memmem::Finder::new(LOCAL);
    while let Some(found) = local.find(&data[at..]) {
        if walk.stopped() {
            return;
        }
        let start = at + found;
        while covered.get(next_covered).is_some_and(|r| r.end <= start) {
            next_covered += 1;
        }
        if let Some(range) = covered.get(next_covered).filter(|r| r.contains(&start)) {
            at = range.end.max(start + 4);
            if at >= data.len() {
                break;
            }
            continue;
        }
        at = start + 4;
        // The four bytes may be chance: only plausible headers count.
        let Some((member, body)) = local_at(data, start).filter(|(m, _)| plausible(data, m)) else {
            continue;
        };
        any = true;
        open_member(walk, data, &member, body, &mut opened, &mut keys);
        if !missing.is_empty() {
            names.insert(member.name.clone());
        }
        if let Some(packed) = member.packed {
            at = at.max(body.saturating_add(packed as usize).min(data.len()));
        }
    }
    for name in missing.into_iter().filter(|name| !names.contains(*name)) {
        walk.within(name, |walk| {
            walk.note(Reason::Malformed, "the zip directory points to no member")
        });
    }
    if begins && !any && !data.starts_with(b"PK\x05\x06") {
        walk.note(Reason::Malformed, "zip archive without a usable member");
    }
}

/// True when the four bytes are no chance: a method that exists, and a version (APPNOTE.TXT 4.4.3) and flags
/// (4.4.4) that programs write. Names say nothing, not even empty ones or such with a NUL.
fn plausible(data: &[u8], member: &Member) -> bool {
    let version = data.get(member.local + 4..member.local + 6).unwrap_or_default();
    matches!(member.method, 0..=20 | 93..=99)
        && matches!(version, [..=63, ..=20])
        && member.flags & !FLAGS_KNOWN == 0
}

fn open_member(
    walk: &mut Walk<'_>,
    data: &[u8],
    member: &Member,
    body: usize,
    opened: &mut HashSet<(usize, bool, u16, Option<u64>)>,
    keys: &mut Keys,
) {
    if !opened.insert((body, member.flags & ENCRYPTED != 0, member.method, member.packed)) {
        return;
    }
    let rest = &data[body..];
    if member.flags & ENCRYPTED != 0 || member.method == 99 {
        // Without its length it goes to the end at most, where no check of a cipher agrees.
        let len = member.packed.map_or(rest.len(), |len| rest.len().min(len as usize));
        let (extra, extra_len) = member.extra;
        let sealed = Sealed {
            name: &member.name,
            flags: member.flags,
            method: member.method,
            crc: member.crc,
            time: member.time,
            size: member.size,
            extra: data.get(extra..extra + extra_len).unwrap_or_default(),
            packed: &rest[..len],
        };
        return zip_crypto::open(walk, &sealed, keys);
    }
    let packed = match member.packed {
        Some(len) if len > rest.len() as u64 => {
            walk.within(&member.name, |walk| {
                walk.note(Reason::Malformed, "the zip member is cut off")
            });
            rest
        }
        Some(len) => &rest[..len as usize],
        None => rest,
    };
    match member.method {
        0 => {
            // Stored with a descriptor and without a directory entry: up to the next signature that can follow.
            let end = if member.packed.is_some() { packed.len() } else { stored_end(packed) };
            if end > 0 {
                walk.decoded(&member.name, end as u64, &mut &packed[..end]);
            } else if member.size.is_some_and(|size| size > 0) {
                walk.failed(&member.name, &shorter());
            }
        }
        _ if packed.is_empty() && member.size.is_some_and(|size| size > 0) => {
            walk.failed(&member.name, &shorter());
        }
        _ if packed.is_empty() => {}
        method => match zip_method::reader(method, member.flags, packed, member.size) {
            Some(Ok(reader)) => {
                let mut reader = Whole::new(reader, member.size);
                walk.decoded(&member.name, packed.len() as u64, &mut reader);
            }
            Some(Err(e)) => walk.failed(&member.name, &e),
            None => walk.within(&member.name, |walk| {
                walk.note(Reason::Unsupported, &format!("zip method {method} cannot be opened"));
            }),
        },
    }
}

fn stored_end(data: &[u8]) -> usize {
    let mut end = data.len();
    for signature in [&b"PK\x07\x08"[..], LOCAL, CENTRAL] {
        end = memmem::find(&data[..end], signature).unwrap_or(end);
    }
    end
}

/// The entries of the central directory, by the last end record that leads to one.
fn central(data: &[u8], most: usize) -> Vec<Member> {
    let floor = data.len().saturating_sub(22 + 65_535);
    let mut upto = data.len();
    // Looked for once for all end records that follow it: a file may have thousands of them.
    let mut zip64 = memmem::rfind(data, b"PK\x06\x06");
    while let Some(found) = memmem::rfind(&data[floor..upto], b"PK\x05\x06") {
        let end = floor + found;
        upto = end;
        let (Some(size), Some(offset)) = (u32_at(data, end + 12), u32_at(data, end + 16)) else {
            continue;
        };
        // The directory lies right before the end record; the offset in it is wrong when something was put in
        // front of the archive. ZIP64 puts two more records between.
        let (size, offset) = (u64::from(size), u64::from(offset));
        let mut starts = vec![((end as u64).saturating_sub(size), offset), (offset, offset)];
        if zip64.is_some_and(|at| at > end) {
            zip64 = memmem::rfind(&data[..end], b"PK\x06\x06");
        }
        if let Some(zip64) = zip64
            && let (Some(size), Some(offset)) = (u64_at(data, zip64 + 40), u64_at(data, zip64 + 48))
        {
            starts.splice(..0, [((zip64 as u64).saturating_sub(size), offset), (offset, offset)]);
        }
        for (start, offset) in starts {
            let Ok(start) = usize::try_from(start) else { continue };
            if data.get(start..).is_some_and(|d| d.starts_with(CENTRAL)) {
                // What precedes the archive, for example the program of a self-extracting one.
                let shift =
                    usize::try_from(offset).map_or(0, |offset| start.saturating_sub(offset));
                return entries(data, start, shift, most);
            }
        }
    }
    Vec::new()
}

/// At most one entry more than `most`, so that the caller sees that there are too many.
fn entries(data: &[u8], mut at: usize, shift: usize, most: usize) -> Vec<Member> {
    let mut members = Vec::new();
    while members.len() <= most && data.get(at..).is_some_and(|d| d.starts_with(CENTRAL)) {
        let (Some(flags), Some(method), Some(packed), Some(local)) = (
            u16_at(data, at + 8),
            u16_at(data, at + 10),
            u32_at(data, at + 20),
            u32_at(data, at + 42),
        ) else {
            break;
        };
        let (Some(name), Some(extra), Some(comment)) =
            (u16_at(data, at + 28), u16_at(data, at + 30), u16_at(data, at + 32))
        else {
            break;
        };
        let (name, extra, comment) = (usize::from(name), usize::from(extra), usize::from(comment));
        let Some(name_bytes) = data.get(at + 46..at + 46 + name) else { break };
        let extra_bytes = data.get(at + 46 + name..at + 46 + name + extra).unwrap_or_default();
        let size = u32_at(data, at + 24).unwrap_or(0);
        let (time, crc) = zip_crypto::fields(data, at + 12);
        let (mut size, mut packed, mut local) =
            (u64::from(size), u64::from(packed), u64::from(local));
        zip64(extra_bytes, [&mut size, &mut packed, &mut local]);
        members.push(Member {
            name: super::name(name_bytes),
            flags,
            method,
            packed: Some(packed),
            size: Some(size),
            local: usize::try_from(local).unwrap_or(usize::MAX).saturating_add(shift),
            time,
            crc,
            extra: (at + 46 + name, extra),
        });
        at += 46 + name + extra + comment;
    }
    members
}

/// Replaces sizes of all ones by those of the ZIP64 extra field (APPNOTE.TXT 4.5.3).
fn zip64(mut extra: &[u8], fields: [&mut u64; 3]) {
    while let (Some(id), Some(len)) = (u16_at(extra, 0), u16_at(extra, 2)) {
        let Some(body) = extra.get(4..4 + usize::from(len)) else { return };
        if id == 1 {
            let mut at = 0;
            for field in fields {
                if *field == u64::from(u32::MAX) {
                    if let Some(value) = u64_at(body, at) {
                        *field = value;
                    }
                    at += 8;
                }
            }
            return;
        }
        extra = &extra[4 + usize::from(len)..];
    }
}

/// The local header at an offset, with the offset of the data behind it.
fn local_at(data: &[u8], at: usize) -> Option<(Member, usize)> {
    if !data.get(at..)?.starts_with(LOCAL) {
        return None;
    }
    let (flags, method) = (u16_at(data, at + 6)?, u16_at(data, at + 8)?);
    let packed = u32_at(data, at + 18)?;
    let (name, extra) = (usize::from(u16_at(data, at + 26)?), usize::from(u16_at(data, at + 28)?));
    let name_bytes = data.get(at + 30..at + 30 + name)?;
    let body = at + 30 + name + extra;
    let extra_bytes = data.get(at + 30 + name..body)?;
    let (mut size, mut long) = (u64::from(u32_at(data, at + 22)?), u64::from(packed));
    zip64(extra_bytes, [&mut size, &mut long, &mut 0]);
    // In the descriptor behind the data.
    let later = flags & DESCRIPTOR != 0;
    let size = (!later || size != 0).then_some(size);
    let packed = (!later || packed != 0).then_some(long);
    let (time, crc) = zip_crypto::fields(data, at + 10);
    let (name, extra) = (super::name(name_bytes), (at + 30 + name, extra));
    Some((Member { name, flags, method, packed, size, local: at, time, crc, extra }, body))
}

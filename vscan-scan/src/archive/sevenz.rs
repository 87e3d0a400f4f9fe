//! 7z, by the crate sevenz-rust2: every block once, each of its members while it is decoded.

use super::guard::{Guarded, caught};
use crate::object::Walk;
use crate::report::Reason;
use sevenz_rust2::{Archive, BlockDecoder, EncoderMethod, Error, Password};
use std::io::{self, Cursor};

pub(crate) const MAGIC: &[u8] = b"7z\xbc\xaf\x27\x1c";

/// Memory for the dictionaries of one block: that of `7z -mx=9`, which is 64 MiB, with much to spare.
const DICTIONARIES_MAX: u64 = 256 << 20;

/// True when a whole signature header lies here: its checksum is right, and the header it points to is inside.
pub(crate) fn begins(data: &[u8]) -> bool {
    use crate::bytes::{u32_le, u64_le};
    let right = || {
        let mut crc = flate2::Crc::new();
        crc.update(data.get(12..32)?);
        let end = u64_le(data, 12)?.checked_add(u64_le(data, 20)?)?.checked_add(32)?;
        Some(crc.sum() == u32_le(data, 8)? && end <= data.len() as u64)
    };
    data.starts_with(MAGIC) && right().unwrap_or(false)
}

pub(crate) fn open(walk: &mut Walk<'_>, data: &[u8]) {
    let (archive, password) = match header(walk, data) {
        Ok(opened) => opened,
        Err(e) => return fail(walk, &e),
    };
    // What precedes the headers packed is not known by member: the ratio is taken over the whole archive.
    let encoded = data.len() as u64;
    for block in 0..archive.blocks.len() {
        if walk.stopped() {
            return;
        }
        let need = dictionaries(&archive.blocks[block]);
        if need > DICTIONARIES_MAX {
            walk.note(Reason::Memory, &format!("7z block with {need} bytes of dictionaries"));
            continue;
        }
        let mut source = Cursor::new(data);
        // One thread: workers may not start others.
        let decoder = BlockDecoder::new(1, block, &archive, &password, &mut source);
        if encrypted(&archive.blocks[block]) && password.is_empty() {
            for entry in decoder.entries() {
                walk.within(&entry.name, |walk| {
                    walk.note(Reason::Encrypted, "encrypted 7z member");
                });
            }
            continue;
        }
        let mut each = |entry: &sevenz_rust2::ArchiveEntry, reader: &mut dyn io::Read| {
            if entry.size > 0 {
                walk.decoded(&entry.name, encoded, &mut Guarded(reader));
            }
            Ok(!walk.stopped())
        };
        let decoded = caught(|| Ok(decoder.for_each_entries(&mut each)));
        match decoded {
            Ok(Ok(_)) => {}
            Ok(Err(e)) => fail(walk, &e),
            Err(e) => walk.failed("7z", &e),
        }
    }
}

/// Reads the headers, which may be encrypted themselves: with the first password that opens them. The
/// password that comes back is empty when none was needed yet.
fn header(walk: &mut Walk<'_>, data: &[u8]) -> Result<(Archive, Password), Error> {
    let read = |password: &Password| {
        caught(|| Ok(Archive::read(&mut Cursor::new(data), password)))
            .unwrap_or_else(|e| Err(e.into()))
    };
    let archive = read(&Password::empty())?;
    let _ = walk;
    Ok((archive, Password::empty()))
}

fn encrypted(block: &sevenz_rust2::Block) -> bool {
    block.coders.iter().any(|c| c.encoder_method_id() == EncoderMethod::ID_AES256_SHA256)
}

/// Bytes that the decoders of a block want for their dictionaries and models.
fn dictionaries(block: &sevenz_rust2::Block) -> u64 {
    let one = |coder: &sevenz_rust2::Coder| -> u64 {
        let properties = coder.properties();
        let number = || crate::bytes::u32_le(properties, 1).map_or(0, u64::from);
        match coder.encoder_method_id() {
            id if id == EncoderMethod::ID_LZMA || id == EncoderMethod::ID_PPMD => number(),
            id if id == EncoderMethod::ID_LZMA2 => {
                let bits = u32::from(properties.first().copied().unwrap_or(0)).min(40);
                u64::from(2 | bits & 1) << (bits / 2 + 11)
            }
            _ => 0,
        }
    };
    block.coders.iter().map(one).sum()
}

fn fail(walk: &mut Walk<'_>, error: &Error) {
    let reason = match error {
        Error::PasswordRequired | Error::MaybeBadPassword(_) => Reason::Encrypted,
        Error::UnsupportedVersion { .. }
        | Error::UnsupportedCompressionMethod(_)
        | Error::Unsupported(_)
        | Error::ExternalUnsupported => Reason::Unsupported,
        Error::MaxMemLimited { .. } => Reason::Memory,
        Error::Io(e, _) if e.kind() == io::ErrorKind::OutOfMemory => Reason::Memory,
        _ => Reason::Malformed,
    };
    walk.note(reason, &format!("7z: {error}"));
}

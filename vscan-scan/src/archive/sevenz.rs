//! 7z, by the crate sevenz-rust2: every block once, each of its members while it is decoded.

use super::guard::{caught, shorter};
use crate::bytes::{u32_le, u64_le};
use crate::object::{Place, Walk};
use crate::report::Reason;
use sevenz_rust2::{Archive, ArchiveEntry, BlockDecoder, EncoderMethod, Error, Password};
use std::io::{self, Cursor, Read};

pub(crate) const MAGIC: &[u8] = b"7z\xbc\xaf\x27\x1c";

/// Memory for the dictionaries of one block: that of `7z -mx=9`, which is 64 MiB, with much to spare.
const DICTIONARIES_MAX: u64 = 256 << 20;

/// True when a whole signature header lies here: its checksum is right, and the header it points to is inside.
pub(crate) fn begins(data: &[u8]) -> bool {
    let right = || {
        let mut crc = flate2::Crc::new();
        crc.update(data.get(12..32)?);
        let end = u64_le(data, 12)?.checked_add(u64_le(data, 20)?)?.checked_add(32)?;
        // An archive of nothing has no header, and is no reason to look behind other bytes.
        Some(u64_le(data, 20)? > 0 && crc.sum() == u32_le(data, 8)? && end <= data.len() as u64)
    };
    data.starts_with(MAGIC) && right().unwrap_or(false)
}

pub(crate) fn open(walk: &mut Walk<'_>, data: &[u8]) {
    if data.get(12..32) == Some(&[0; 20]) {
        // An archive of nothing.
        return walk.part("behind the end", &data[32..], Place::File);
    }
    let (archive, known) = match header(walk, data) {
        Ok(opened) => opened,
        Err(e) => return fail(walk, &e),
    };
    // How much of the archive is of one member cannot be told: the ratio is taken over the whole of it.
    let encoded = data.len() as u64;
    for (number, block) in archive.blocks.iter().enumerate() {
        if walk.stopped() {
            return;
        }
        let need = dictionaries(block);
        if need > DICTIONARIES_MAX {
            walk.note(Reason::Memory, &format!("7z block with {need} bytes of dictionaries"));
            continue;
        }
        let password = match &known {
            Some(password) => Some(password.clone()),
            None if encrypted(block) => password(walk, data, &archive, number),
            None => Some(Password::empty()),
        };
        let mut source = Cursor::new(data);
        let empty = Password::empty();
        // One thread: workers may not start others.
        let opened = password.as_ref().unwrap_or(&empty);
        let decoder = BlockDecoder::new(1, number, &archive, opened, &mut source);
        if password.is_none() {
            for entry in decoder.entries() {
                walk.within(&entry.name, |walk| {
                    walk.note(Reason::Encrypted, "encrypted 7z member");
                });
            }
            continue;
        }
        let mut each = |entry: &ArchiveEntry, reader: &mut dyn Read| {
            if entry.size > 0 {
                let mut member = Member { reader, left: entry.size, wrong: None, broken: false };
                walk.decoded(&entry.name, encoded, &mut member);
                if member.broken {
                    // A decoder that failed is not asked again, which the crate would do to reach the next member.
                    return Err(io::Error::other("the rest of a block is out of reach").into());
                }
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

/// Reads a member. The crate's reader gives a wrong checksum instead of the bytes that it read last: here they come first.
struct Member<'a> {
    reader: &'a mut dyn Read,
    /// Bytes to come.
    left: u64,
    /// What is told at the end.
    wrong: Option<io::Error>,
    /// The decoder failed.
    broken: bool,
}

impl Read for Member<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Some(wrong) = self.wrong.take() {
            return Err(wrong);
        }
        match caught(|| self.reader.read(buffer)) {
            Ok(0) if self.left > 0 && !buffer.is_empty() => {
                self.left = 0;
                Err(shorter())
            }
            Ok(length) => {
                self.left = self.left.saturating_sub(length as u64);
                Ok(length)
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => Err(e),
            Err(e) => {
                let inner = e.get_ref().and_then(|inner| inner.downcast_ref());
                match (inner, usize::try_from(self.left)) {
                    (Some(Error::ChecksumVerificationFailed), Ok(left)) if left <= buffer.len() => {
                        self.wrong = Some(e);
                        self.left = 0;
                        Ok(left)
                    }
                    _ => {
                        self.broken = true;
                        Err(e)
                    }
                }
            }
        }
    }
}

/// Passwords that are tried on one archive: making the key of each takes a tenth of a second.
const PASSWORDS_MAX: usize = 32;

/// Reads the headers. Where they are encrypted themselves, with the first password that opens them.
fn header(walk: &mut Walk<'_>, data: &[u8]) -> Result<(Archive, Option<Password>), Error> {
    let read = |password: &Password| {
        caught(|| Ok(Archive::read(&mut Cursor::new(data), password)))
            .unwrap_or_else(|e| Err(e.into()))
    };
    match read(&Password::empty()) {
        Err(Error::PasswordRequired) => {}
        other => return other.map(|archive| (archive, None)),
    }
    for password in walk.passwords().iter().take(PASSWORDS_MAX) {
        if walk.stopped() {
            break;
        }
        let password = Password::from(&password[..]);
        if let Ok(archive) = read(&password) {
            return Ok((archive, Some(password)));
        }
    }
    Err(Error::PasswordRequired)
}

/// The password that opens a block: its first member comes out whole, with the right checksum.
fn password(walk: &mut Walk<'_>, data: &[u8], archive: &Archive, block: usize) -> Option<Password> {
    let most = walk.limits.object_size;
    for password in walk.passwords().iter().take(PASSWORDS_MAX) {
        if walk.stopped() {
            return None;
        }
        let password = Password::from(&password[..]);
        let mut source = Cursor::new(data);
        let decoder = BlockDecoder::new(1, block, archive, &password, &mut source);
        let mut first = |entry: &ArchiveEntry, reader: &mut dyn Read| {
            io::copy(&mut reader.take(most), &mut io::sink())?;
            Ok(entry.size == 0)
        };
        if matches!(caught(|| Ok(decoder.for_each_entries(&mut first))), Ok(Ok(_))) {
            return Some(password);
        }
    }
    None
}

fn encrypted(block: &sevenz_rust2::Block) -> bool {
    block.coders.iter().any(|c| c.encoder_method_id() == EncoderMethod::ID_AES256_SHA256)
}

/// Bytes that the decoders of a block want for their dictionaries and models.
fn dictionaries(block: &sevenz_rust2::Block) -> u64 {
    let one = |coder: &sevenz_rust2::Coder| -> u64 {
        let properties = coder.properties();
        let number = || u32_le(properties, 1).map_or(0, u64::from);
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

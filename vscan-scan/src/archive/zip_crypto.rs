//! Encrypted zip members: the traditional cipher (APPNOTE.TXT 6.1) and WinZip's AES (AE-1 and AE-2), with candidates
//! for the password.

use super::zip_method;
use crate::bytes::{u16_le, u32_le};
use crate::object::Walk;
use crate::report::Reason;
use aes::cipher::{BlockCipherEncrypt, KeyInit};
use flate2::Crc;
use sha1::{Digest, Sha1};
use std::io::Read;

/// What an encrypted member's headers say.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sealed<'a> {
    pub(super) name: &'a str,
    pub(super) flags: u16,
    pub(super) method: u16,
    /// Checksum of the plain bytes; 0 where it stands behind the data.
    pub(super) crc: u32,
    /// Time of the last change: with a descriptor its upper byte checks the password.
    pub(super) time: u16,
    /// Bytes of the plain data, as far as they are known.
    pub(super) size: Option<u64>,
    pub(super) extra: &'a [u8],
    pub(super) packed: &'a [u8],
}

/// Candidates for one archive, and how they fared.
#[derive(Debug, Default)]
pub(super) struct Keys {
    /// The one that opened a member: members of an archive mostly share it.
    good: Option<usize>,
    /// Members that none opened.
    shut: u32,
}

/// Members on which all candidates are tried; after that only one that has opened something is. Deriving an AES
/// key takes a millisecond, and archives have thousands of members.
const SHUT_MAX: u32 = 8;

const DESCRIPTOR: u16 = 1 << 3;

/// Opens a member with the first candidate that fits, or notes that it is encrypted.
pub(super) fn open(walk: &mut Walk<'_>, sealed: &Sealed<'_>, keys: &mut Keys) {
    let passwords = walk.passwords();
    let all = keys.shut < SHUT_MAX;
    let first = keys.good.into_iter();
    let order: Vec<usize> =
        first.chain((0..passwords.len()).filter(|i| all && Some(*i) != keys.good)).collect();
    for i in order {
        if walk.stopped() {
            return;
        }
        let Some((method, plain)) = decrypted(sealed, passwords[i].as_bytes()) else { continue };
        let most = walk.limits.object_size.min(walk.limits.unpacked_size);
        if !fits(sealed, method, &plain, most) {
            continue;
        }
        keys.good = Some(i);
        let encoded = plain.len() as u64;
        match reader(sealed, method, &plain) {
            Some(Ok(mut reader)) => walk.decoded(sealed.name, encoded, &mut reader),
            Some(Err(e)) => walk.failed(sealed.name, &e),
            None => walk.within(sealed.name, |walk| {
                walk.note(Reason::Unsupported, &format!("zip method {method} cannot be opened"));
            }),
        }
        return;
    }
    keys.shut += 1;
    walk.within(sealed.name, |walk| walk.note(Reason::Encrypted, "encrypted zip member"));
}

type Opened<'a> = Option<std::io::Result<Box<dyn Read + 'a>>>;

fn reader<'a>(sealed: &Sealed<'_>, method: u16, plain: &'a [u8]) -> Opened<'a> {
    match method {
        0 => Some(Ok(Box::new(plain))),
        method => zip_method::reader(method, sealed.flags, plain, sealed.size),
    }
}

/// Whether the decrypted bytes are those that were encrypted. AES has a checksum of its own; the other cipher is checked
/// by one byte, so that one in 256 wrong passwords gets here.
fn fits(sealed: &Sealed<'_>, method: u16, plain: &[u8], most: u64) -> bool {
    if sealed.method == AES || zip_method::reader(method, 0, &[], None).is_none() && method != 0 {
        return true;
    }
    let Some(Ok(reader)) = reader(sealed, method, plain) else { return false };
    let mut reader = reader.take(most);
    let (mut crc, mut buffer) = (Crc::new(), [0; 16 * 1024]);
    loop {
        match reader.read(&mut buffer) {
            // What exceeds the limit is told by the walk.
            Ok(0) if reader.limit() == 0 => return true,
            Ok(0) => return sealed.crc == 0 || crc.sum() == sealed.crc,
            Ok(n) => crc.update(&buffer[..n]),
            Err(_) => return false,
        }
    }
}

/// Method of members in WinZip's AES.
const AES: u16 = 99;

/// The packed bytes and their method, if the password passes the cipher's own check.
fn decrypted(sealed: &Sealed<'_>, password: &[u8]) -> Option<(u16, Vec<u8>)> {
    if sealed.method == AES {
        return aes(sealed, password);
    }
    let mut keys = Traditional::new(password);
    let (header, packed) = sealed.packed.split_first_chunk::<12>()?;
    let check = header.map(|b| keys.decrypt(b))[11];
    let by_crc = (sealed.crc >> 24) as u8;
    let by_time = (sealed.time >> 8) as u8;
    // Programs differ on which of the two it is with a descriptor.
    if check != by_crc && !(sealed.flags & DESCRIPTOR != 0 && check == by_time) {
        return None;
    }
    Some((sealed.method, packed.iter().map(|&b| keys.decrypt(b)).collect()))
}

/// The traditional cipher (APPNOTE.TXT 6.1.5).
struct Traditional([u32; 3]);

const CRC_TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        let mut value = i as u32;
        let mut bit = 0;
        while bit < 8 {
            value = if value & 1 != 0 { value >> 1 ^ 0xedb8_8320 } else { value >> 1 };
            bit += 1;
        }
        table[i] = value;
        i += 1;
    }
    table
};

impl Traditional {
    fn new(password: &[u8]) -> Self {
        let mut keys = Self([0x1234_5678, 0x2345_6789, 0x3456_7890]);
        for &b in password {
            keys.update(b);
        }
        keys
    }

    fn update(&mut self, b: u8) {
        let crc = |key: u32, b: u8| CRC_TABLE[usize::from(key as u8 ^ b)] ^ key >> 8;
        let [a, m, c] = &mut self.0;
        *a = crc(*a, b);
        *m = m.wrapping_add(*a & 0xff).wrapping_mul(134_775_813).wrapping_add(1);
        *c = crc(*c, (*m >> 24) as u8);
    }

    fn stream(&self) -> u8 {
        let t = self.0[2] as u16 | 2;
        (t.wrapping_mul(t ^ 1) >> 8) as u8
    }

    fn decrypt(&mut self, b: u8) -> u8 {
        let plain = b ^ self.stream();
        self.update(plain);
        plain
    }
}

/// WinZip's AES: salt, two bytes that check the password, the data, ten bytes of HMAC-SHA1.
fn aes(sealed: &Sealed<'_>, password: &[u8]) -> Option<(u16, Vec<u8>)> {
    let (strength, method) = aes_field(sealed.extra)?;
    let key_len = match strength {
        1 => 16,
        2 => 24,
        3 => 32,
        _ => return None,
    };
    let (salt, rest) = sealed.packed.split_at_checked(key_len / 2)?;
    let (check, rest) = rest.split_at_checked(2)?;
    let (data, code) = rest.split_at_checked(rest.len().checked_sub(10)?)?;
    let keys = pbkdf2(password, salt, 2 * key_len + 2);
    if &keys[2 * key_len..] != check {
        return None;
    }
    if &hmac(&keys[key_len..2 * key_len], &[data])[..10] != code {
        return None;
    }
    Some((method, counter(&keys[..key_len], data)?))
}

/// Strength and inner method in the extra field 0x9901.
fn aes_field(mut extra: &[u8]) -> Option<(u8, u16)> {
    while let (Some(id), Some(len)) = (u16_le(extra, 0), u16_le(extra, 2)) {
        let body = extra.get(4..4 + usize::from(len))?;
        if id == 0x9901 {
            return Some((*body.get(4)?, u16_le(body, 5)?));
        }
        extra = &extra[4 + usize::from(len)..];
    }
    None
}

/// AES in counter mode, the counter little-endian and from 1.
fn counter(key: &[u8], data: &[u8]) -> Option<Vec<u8>> {
    enum Cipher {
        Aes128(Box<aes::Aes128>),
        Aes192(Box<aes::Aes192>),
        Aes256(Box<aes::Aes256>),
    }
    let cipher = match key.len() {
        16 => Cipher::Aes128(Box::new(aes::Aes128::new_from_slice(key).ok()?)),
        24 => Cipher::Aes192(Box::new(aes::Aes192::new_from_slice(key).ok()?)),
        _ => Cipher::Aes256(Box::new(aes::Aes256::new_from_slice(key).ok()?)),
    };
    let mut out = Vec::with_capacity(data.len());
    for (chunk, number) in data.chunks(16).zip(1u128..) {
        let mut block = number.to_le_bytes().into();
        match &cipher {
            Cipher::Aes128(cipher) => cipher.encrypt_block(&mut block),
            Cipher::Aes192(cipher) => cipher.encrypt_block(&mut block),
            Cipher::Aes256(cipher) => cipher.encrypt_block(&mut block),
        }
        out.extend(chunk.iter().zip(block.iter()).map(|(a, b)| a ^ b));
    }
    Some(out)
}

/// HMAC-SHA1 (RFC 2104) with its two keyed states.
struct Hmac {
    inner: Sha1,
    outer: Sha1,
}

impl Hmac {
    fn new(key: &[u8]) -> Self {
        let mut block = [0u8; 64];
        if key.len() > 64 {
            block[..20].copy_from_slice(&Sha1::digest(key));
        } else {
            block[..key.len()].copy_from_slice(key);
        }
        let keyed = |pad: u8| Sha1::new_with_prefix(block.map(|b| b ^ pad));
        Self { inner: keyed(0x36), outer: keyed(0x5c) }
    }

    fn sum(&self, pieces: &[&[u8]]) -> [u8; 20] {
        let (mut inner, mut outer) = (self.inner.clone(), self.outer.clone());
        for piece in pieces {
            inner.update(piece);
        }
        outer.update(inner.finalize());
        outer.finalize().into()
    }
}

fn hmac(key: &[u8], pieces: &[&[u8]]) -> [u8; 20] {
    Hmac::new(key).sum(pieces)
}

/// PBKDF2 (RFC 8018 section 5.2) with HMAC-SHA1 and the 1000 iterations of WinZip.
fn pbkdf2(password: &[u8], salt: &[u8], len: usize) -> Vec<u8> {
    let hmac = Hmac::new(password);
    let mut out = Vec::with_capacity(len + 20);
    for block in 1u32.. {
        if out.len() >= len {
            break;
        }
        let mut last = hmac.sum(&[salt, &block.to_be_bytes()]);
        let mut sum = last;
        for _ in 1..1000 {
            last = hmac.sum(&[&last]);
            for (s, l) in sum.iter_mut().zip(last) {
                *s ^= l;
            }
        }
        out.extend(sum);
    }
    out.truncate(len);
    out
}

/// The parts of a record in the directory, or of a local header, that a sealed member needs.
pub(super) fn fields(record: &[u8], at: usize) -> (u16, u32) {
    (u16_le(record, at).unwrap_or(0), u32_le(record, at + 4).unwrap_or(0))
}

#[cfg(test)]
#[path = "zip_crypto/tests.rs"]
mod tests;

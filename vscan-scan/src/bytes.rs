//! Numbers at a place of a buffer that may be too short for them; and reading bit by bit.

use std::io;

macro_rules! at {
    ($name:ident, $type:ty, $from:ident, $what:literal) => {
        #[doc = $what]
        pub(crate) fn $name(data: &[u8], at: usize) -> Option<$type> {
            const LEN: usize = size_of::<$type>();
            Some(<$type>::$from(data.get(at..at.checked_add(LEN)?)?.try_into().ok()?))
        }
    };
}

at!(u16_le, u16, from_le_bytes, "The 16 bits at `at`, little-endian.");
at!(u32_le, u32, from_le_bytes, "The 32 bits at `at`, little-endian.");
at!(u64_le, u64, from_le_bytes, "The 64 bits at `at`, little-endian.");
at!(u16_be, u16, from_be_bytes, "The 16 bits at `at`, big-endian.");
at!(u32_be, u32, from_be_bytes, "The 32 bits at `at`, big-endian.");

/// The `len` bytes at `at`, or what there is of them.
pub(crate) fn clipped(data: &[u8], at: usize, len: usize) -> &[u8] {
    let rest = data.get(at..).unwrap_or_default();
    &rest[..len.min(rest.len())]
}

/// UTF-16 as text; what is none is replaced.
pub(crate) fn utf16(data: &[u8], big_endian: bool) -> String {
    let (units, _) = data.as_chunks::<2>();
    let units = units
        .iter()
        .map(|&unit| if big_endian { u16::from_be_bytes(unit) } else { u16::from_le_bytes(unit) });
    char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
}

/// Which bit of a byte comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum First {
    /// The highest: ARJ, LHA.
    High,
    /// The lowest: deflate, implode, compress.
    Low,
}

/// Bits of a buffer, one after the other. Behind the end come zeros, for decoders look ahead;
/// [`Bits::overrun`] tells.
#[derive(Clone, Debug)]
pub(crate) struct Bits<'a> {
    data: &'a [u8],
    /// In bits.
    at: u64,
    first: First,
}

impl<'a> Bits<'a> {
    pub(crate) fn new(data: &'a [u8], first: First) -> Self {
        Self { data, at: 0, first }
    }

    /// The next `count` bits, at most 24, without taking them. With the highest bit first the first bit is
    /// the highest of the number; else it is the lowest.
    pub(crate) fn peek(&self, count: u32) -> u32 {
        let byte = (self.at / 8) as usize;
        let shift = (self.at % 8) as u32;
        let mut window = [0; 4];
        let have = clipped(self.data, byte, 4);
        window[..have.len()].copy_from_slice(have);
        let mask = (1u32 << count) - 1;
        match self.first {
            First::High => u32::from_be_bytes(window) << shift >> (32 - count.max(1)) & mask,
            First::Low => u32::from_le_bytes(window) >> shift & mask,
        }
    }

    pub(crate) fn skip(&mut self, count: u32) {
        self.at += u64::from(count);
    }

    /// The next `count` bits, at most 24.
    pub(crate) fn take(&mut self, count: u32) -> u32 {
        let bits = self.peek(count);
        self.skip(count);
        bits
    }

    /// The place of the next bit, in bits.
    pub(crate) fn at(&self) -> u64 {
        self.at
    }

    /// True when bits were taken from behind the end.
    pub(crate) fn overrun(&self) -> bool {
        self.at > self.data.len() as u64 * 8
    }

    /// An error when bits were taken from behind the end.
    pub(crate) fn check(&self) -> io::Result<()> {
        if self.overrun() { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_come_in_both_orders() {
        let data = [0b1100_0001, 0b1010_0000];
        let mut high = Bits::new(&data, First::High);
        assert_eq!((high.take(2), high.take(6), high.take(3)), (0b11, 1, 0b101));
        let mut low = Bits::new(&data, First::Low);
        assert_eq!((low.take(2), low.take(6), low.take(8)), (1, 0b11_0000, 0b1010_0000));
        assert!(!low.overrun());
        assert_eq!((low.peek(0), low.take(9), low.overrun()), (0, 0, true));
        assert!(low.check().is_err());
    }
}

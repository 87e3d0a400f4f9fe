//! The Bloom filters of the windows, and the look at a block of data: which steps of it have to be looked at closely.
//!
//! Hashes are of 32 bits, so that eight windows are probed at once where the processor can (AVX2, `wide`); the
//! portable way here gives the same.

use super::{BLOCK, FOLD, LONG, STEP, wide};

/// Words of the Bloom filter of long windows, by how many windows there are: at most about two in a word, while the
/// whole stays in the second-level cache.
const LONG_WORDS: [usize; 4] = [1 << 11, 1 << 14, 1 << 16, 1 << 17];

/// Words of the Bloom filters of middle and of short windows: 32 KiB each, which the first-level cache holds.
pub(super) const SMALL_WORDS: usize = 1 << 13;

/// The same of triples: many have a third byte that may be any.
pub(super) const TRIPLE_WORDS: usize = 1 << 15;

/// Odd numbers with many bits, for the halves of a window.
pub(super) const LONG_LO: u32 = 0x9e37_79b1;
pub(super) const LONG_HI: u32 = 0x85eb_ca77;
pub(super) const MIDDLE_LO: u32 = 0xc2b2_ae3d;
pub(super) const MIDDLE_HI: u32 = 0x27d4_eb2f;
pub(super) const SHORT_ALL: u32 = 0x1656_67b1;
pub(super) const TRIPLE_ALL: u32 = 0x9e48_5565;
pub(super) const SHORT_XOR_ALL: u32 = 0x7feb_352d;
pub(super) const XOR_LO: u32 = 0xcc9e_2d51;
pub(super) const XOR_HI: u32 = 0x1b87_3593;

/// The Bloom filters; those of kinds that no literal has are empty.
#[derive(Debug, Default)]
pub(super) struct Tables {
    /// Long windows, and the differences of literals under XOR keys.
    pub(super) long: Vec<u32>,
    pub(super) middle: Vec<u32>,
    pub(super) short: Vec<u32>,
    /// The differences of short literals under XOR keys.
    pub(super) short_xor: Vec<u32>,
    /// Three bytes that pairs of shapes begin.
    pub(super) triples: Vec<u32>,
    /// There are literals under XOR keys.
    pub(super) xor: bool,
}

impl Tables {
    /// Room for so many long windows.
    pub(super) fn long_for(windows: usize) -> Vec<u32> {
        let words = LONG_WORDS.into_iter().find(|words| windows <= words * 2);
        vec![0; words.unwrap_or(LONG_WORDS[LONG_WORDS.len() - 1])]
    }

    /// Distance by which a hash is shifted to a place in the table of long windows.
    pub(super) fn long_shift(&self) -> u32 {
        32 - self.long.len().trailing_zeros()
    }

    /// For each step of the block, which has at least [`BLOCK`] + [`LONG`] + 1 bytes: whether a window that begins in
    /// it may be one of a literal; and whether a pair may be one of a shape.
    #[inline(always)]
    pub(super) fn steps(&self, block: &[u8]) -> [u32; 2] {
        let mut steps = [0; 2];
        for i in 0..BLOCK / STEP {
            let Some(bytes) = block[i * STEP..].first_chunk::<LONG>() else { break };
            let [literal, pair] = self.step(u64::from_le_bytes(*bytes));
            steps[0] |= u32::from(literal) << i;
            steps[1] |= u32::from(pair) << i;
        }
        steps
    }

    /// Whether there may be a window, and a pair, in the step that begins with these bytes.
    #[inline(always)]
    fn step(&self, window: u64) -> [bool; 2] {
        let mut pair = false;
        let folded = window | FOLD;
        let mut any = !self.long.is_empty() && self.has_long(long_hash(folded));
        if !self.middle.is_empty() {
            any |= has(&self.middle, middle_hash(folded));
        }
        if self.xor {
            any |= self.has_long(xor_hash(window));
        }
        if !self.short_xor.is_empty() {
            any |= has(&self.short_xor, short_xor_hash(window));
        }
        for skip in 0..STEP {
            if !self.short.is_empty() {
                any |= has(&self.short, short_hash((folded >> (8 * skip)) as u32));
            }
            if !self.triples.is_empty() {
                pair |= has_triple(&self.triples, triple_hash((window >> (8 * skip)) as u32));
            }
        }
        [any, pair]
    }

    /// Whether the table of long windows has the hash.
    #[inline(always)]
    pub(super) fn has_long(&self, hash: u32) -> bool {
        let mask = mask(hash);
        self.long[(hash >> self.long_shift()) as usize] & mask == mask
    }

    /// All steps that are to be looked at, called with the place of each and what for.
    #[inline(always)]
    pub(super) fn scan(&self, data: &[u8], mut look: impl FnMut(usize, Found)) {
        let mut at = match wide::Wide::of(self) {
            Some(wide) => wide.scan(data, &mut look),
            None => 0,
        };
        // The last windows reach over the end of the block.
        while let Some(block) = data.get(at..at + BLOCK + LONG + 1) {
            each(self.steps(block), at, &mut look);
            at += BLOCK;
        }
        for at in (at..data.len()).step_by(STEP) {
            look(at, Found::Literal);
            look(at, Found::Pair);
        }
    }
}

/// What a step is to be looked at for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// A window of a literal.
    Literal,
    /// A pair of a shape.
    Pair,
}

/// Calls `look` with each step of the block at `at`.
#[inline(always)]
pub(super) fn each(steps: [u32; 2], at: usize, look: &mut impl FnMut(usize, Found)) {
    for (mut steps, found) in steps.into_iter().zip([Found::Literal, Found::Pair]) {
        while steps != 0 {
            look(at + steps.trailing_zeros() as usize * STEP, found);
            steps &= steps - 1;
        }
    }
}

/// Of a folded window.
#[inline(always)]
pub(super) fn long_hash(folded: u64) -> u32 {
    mixed(folded, LONG_LO, LONG_HI)
}

/// Of the first [`super::MIDDLE`] bytes of a folded window.
#[inline(always)]
pub(super) fn middle_hash(folded: u64) -> u32 {
    mixed(folded & 0xff_ffff_ffff, MIDDLE_LO, MIDDLE_HI)
}

/// Of a folded short window.
#[inline(always)]
pub(super) fn short_hash(folded: u32) -> u32 {
    folded.wrapping_mul(SHORT_ALL)
}

/// Of the first three bytes.
#[inline(always)]
pub(super) fn triple_hash(window: u32) -> u32 {
    (window & 0xff_ffff).wrapping_mul(TRIPLE_ALL)
}

/// Of the differences of neighbours in a window: the same whatever key the window is XORed with.
#[inline(always)]
pub(super) fn xor_hash(window: u64) -> u32 {
    mixed((window ^ window >> 8) & 0xff_ffff_ffff_ffff, XOR_LO, XOR_HI)
}

/// Of the three differences in a short window.
#[inline(always)]
pub(super) fn short_xor_hash(window: u64) -> u32 {
    ((window ^ window >> 8) as u32 & 0xff_ffff).wrapping_mul(SHORT_XOR_ALL)
}

#[inline(always)]
fn mixed(window: u64, lo: u32, hi: u32) -> u32 {
    (window as u32).wrapping_mul(lo).wrapping_add(((window >> 32) as u32).wrapping_mul(hi))
}

/// Two bits in a word, by bits of the hash that the place in the table does not depend on.
#[inline(always)]
pub(super) fn mask(hash: u32) -> u32 {
    1 << (hash >> 10 & 31) | 1 << (hash >> 5 & 31)
}

/// Whether a table of [`SMALL_WORDS`] has the hash.
#[inline(always)]
pub(super) fn has(table: &[u32], hash: u32) -> bool {
    let mask = mask(hash);
    table[small_index(hash)] & mask == mask
}

/// The same of a table of [`TRIPLE_WORDS`].
#[inline(always)]
pub(super) fn has_triple(table: &[u32], hash: u32) -> bool {
    let mask = mask(hash);
    table[triple_index(hash)] & mask == mask
}

#[inline(always)]
pub(super) fn triple_index(hash: u32) -> usize {
    (hash >> (32 - TRIPLE_WORDS.trailing_zeros())) as usize
}

#[inline(always)]
pub(super) fn small_index(hash: u32) -> usize {
    (hash >> (32 - SMALL_WORDS.trailing_zeros())) as usize
}

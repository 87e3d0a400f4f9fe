//! The literal filter: which of many thousand literals occur in a stream of bytes.
//!
//! A sampled q-gram filter. Of each literal a few consecutive windows of 8 bytes are put into a Bloom filter and a
//! table. The scan looks at a window of the data at every fourth offset only: wherever a literal of at
//! least 11 bytes lies, one of its four windows lies there. Literals of at least 8 bytes have windows of 5 bytes, in
//! the same way. Still shorter ones, and those whose windows would be runs of zeros or spaces, have one window of 4
//! bytes, their rarest, that is looked for at every offset. What the Bloom filters let through is
//! looked up in the table and compared with the whole literal, so that nothing is reported that is not there.
//!
//! Windows are folded to lower case (coarsely, by one OR), so that literals with and without regard to case share
//! one table. Literals under an unknown XOR key are found by the differences of neighbouring bytes, which the key
//! does not change.

use super::needle::{How, NEEDLE_MAX, Needle};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// Distance of the windows of the data.
const STEP: usize = 4;

/// Length of the long windows, and shortest literal that has [`STEP`] of them.
const LONG: usize = 8;
const LONG_MIN: usize = LONG + STEP - 1;

/// Length of the middle windows, and shortest literal that has [`STEP`] of them.
const MIDDLE: usize = 5;
const MIDDLE_MIN: usize = MIDDLE + STEP - 1;

/// Length of the short windows.
const SHORT: usize = 4;

/// Bytes of which the windows are looked at before it is asked whether any was hit.
const BLOCK: usize = 32;

/// A bit that lower case letters have and upper case letters do not, in each byte.
const FOLD: u64 = 0x2020_2020_2020_2020;

/// An odd number with many bits (2^64 divided by the golden ratio).
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// Another one, for short windows and for differences.
const SPREAD_MIDDLE: u64 = 0x8ebc_6af0_9c88_c6e3;
const SPREAD_SHORT: u64 = 0xd6e8_feb8_6659_fd93;
const SPREAD_XOR: u64 = 0xa076_1d64_78bd_642f;

/// Words of the Bloom filter of long windows, by how many windows there are: at most about 3.5 windows in a word of
/// 64 bits, while the whole stays in the second-level cache.
const WORDS_0: usize = 1 << 10;
const WORDS_1: usize = 1 << 13;
const WORDS_2: usize = 1 << 15;
const WORDS_3: usize = 1 << 16;
const LONG_WORDS: [usize; 4] = [WORDS_0, WORDS_1, WORDS_2, WORDS_3];

/// Words of the Bloom filter of middle windows, and of that of short windows: 64 KiB each.
const SMALL_WORDS: usize = 1 << 13;

/// A set of literals, ready to be looked for. Shared between threads and processes.
#[derive(Debug, Default)]
pub struct Filter {
    /// Bloom filter of the long windows and of the differences.
    long: Vec<u64>,
    /// Bloom filters of the middle and the short windows; empty if there are none.
    middle: Vec<u64>,
    short: Vec<u64>,
    /// There are literals under XOR keys.
    xor: bool,
    /// Open addressing: upper half of the window's hash, and one more than its first place in `entries`.
    slots: Vec<(u32, u32)>,
    /// Literals by window; the last of each window is marked.
    entries: Vec<Entry>,
    /// All literals, one behind the other.
    bytes: Vec<u8>,
    literals: Vec<Literal>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    literal: u32,
    /// Offset of the window in the literal.
    offset: u8,
    last: bool,
}

#[derive(Clone, Copy, Debug)]
struct Literal {
    start: u32,
    len: u8,
    how: How,
}

/// Which literals were seen.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    bits: Vec<u64>,
    list: Vec<u32>,
}

impl Seen {
    /// Room for the literals of a filter.
    pub fn new(filter: &Filter) -> Self {
        Self { bits: vec![0; filter.literals.len().div_ceil(64)], list: Vec::new() }
    }

    /// The literals by their place in the slice that the filter was built of, in the order in which they were seen.
    pub fn list(&self) -> &[u32] {
        &self.list
    }

    /// Forgets all of them.
    pub fn clear(&mut self) {
        for literal in self.list.drain(..) {
            self.bits[literal as usize / 64] = 0;
        }
    }

    fn has(&self, literal: u32) -> bool {
        self.bits[literal as usize / 64] >> (literal % 64) & 1 != 0
    }

    fn insert(&mut self, literal: u32) {
        self.bits[literal as usize / 64] |= 1 << (literal % 64);
        self.list.push(literal);
    }
}

/// A stream on its way through a filter.
#[derive(Clone, Debug, Default)]
pub struct Stream {
    /// The end of what has passed: what a literal may begin in.
    carry: Vec<u8>,
}

impl Stream {
    /// Looks at the next bytes.
    pub fn feed(&mut self, filter: &Filter, chunk: &[u8], seen: &mut Seen) {
        const CARRY: usize = NEEDLE_MAX - 1;
        // Over the border: all that begins before it and ends behind it.
        let head = chunk.len().min(CARRY);
        if !self.carry.is_empty() {
            let kept = self.carry.len();
            self.carry.extend_from_slice(&chunk[..head]);
            filter.scan(&self.carry, seen);
            if chunk.len() <= CARRY {
                let surplus = self.carry.len().saturating_sub(CARRY);
                self.carry.drain(..surplus);
                return;
            }
            self.carry.truncate(kept);
        }
        filter.scan(chunk, seen);
        self.carry.clear();
        self.carry.extend_from_slice(&chunk[chunk.len().saturating_sub(CARRY)..]);
    }
}

/// By which windows a literal is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice {
    kind: Kind,
    /// Where the first of them begins in the literal.
    offset: u8,
}

/// What a window of a literal is put in by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Kind {
    Long,
    Middle,
    Short,
    Xor,
}

/// Chooses the windows of each literal: those that the fewest others have, and that say the most.
pub fn choose(needles: &[Needle]) -> Vec<Choice> {
    let mut counts: HashMap<u64, u32, Mix> = HashMap::default();
    for needle in needles {
        for &kind in kinds(needle) {
            for (hash, _) in windows(needle, kind) {
                *counts.entry(hash).or_default() += 1;
            }
        }
    }
    let choose = |needle: &Needle| {
        // The first kind whose windows say something, or the last.
        let mut choice = None;
        for &kind in kinds(needle) {
            let all: Vec<u32> = windows(needle, kind)
                .map(|(hash, poor)| poor + counts.get(&hash).copied().unwrap_or(0))
                .collect();
            let cost = |at: usize| all[at..at + kind.windows()].iter().sum::<u32>();
            let best =
                (0..(all.len() + 1).saturating_sub(kind.windows())).min_by_key(|&at| cost(at));
            if let Some(best) = best {
                choice = Some(Choice { kind, offset: best as u8 });
                if cost(best) < POOR {
                    break;
                }
            }
        }
        choice
    };
    // A literal that is shorter than it may be has no window, and is not found.
    needles.iter().map(|n| choose(n).unwrap_or(Choice { kind: Kind::Short, offset: 0 })).collect()
}

impl Kind {
    /// How many consecutive windows are put in.
    fn windows(self) -> usize {
        match self {
            Kind::Short => 1,
            Kind::Long | Kind::Middle | Kind::Xor => STEP,
        }
    }
}

impl Filter {
    /// A filter for literals of at least [`super::needle::NEEDLE_MIN`] and at most [`NEEDLE_MAX`] bytes.
    pub fn new(needles: &[Needle]) -> Self {
        Self::of(needles, &choose(needles))
    }

    /// The same with windows that were chosen before.
    pub fn of(needles: &[Needle], choices: &[Choice]) -> Self {
        let mut filter = Filter::default();
        let mut chosen: Vec<(u64, Kind, u32, u8)> = Vec::new();
        for (i, (needle, &Choice { kind, offset })) in needles.iter().zip(choices).enumerate() {
            filter.literals.push(Literal {
                start: filter.bytes.len() as u32,
                len: needle.bytes.len() as u8,
                how: needle.how,
            });
            filter.bytes.extend_from_slice(&needle.bytes);
            filter.xor |= kind == Kind::Xor;
            let all =
                windows(needle, kind).enumerate().skip(usize::from(offset)).take(kind.windows());
            chosen.extend(all.map(|(offset, (hash, _))| (hash, kind, i as u32, offset as u8)));
        }
        filter.fill(chosen);
        filter
    }

    fn fill(&mut self, mut chosen: Vec<(u64, Kind, u32, u8)>) {
        let long = chosen.iter().filter(|c| matches!(c.1, Kind::Long | Kind::Xor)).count();
        let words = LONG_WORDS.into_iter().find(|words| long * 2 <= words * 7);
        self.long = vec![0; words.unwrap_or(LONG_WORDS[LONG_WORDS.len() - 1])];
        for (kind, words) in [(Kind::Middle, &mut self.middle), (Kind::Short, &mut self.short)] {
            if chosen.iter().any(|c| c.1 == kind) {
                *words = vec![0; SMALL_WORDS];
            }
        }
        chosen.sort_unstable_by_key(|c| (c.0, c.2));
        let distinct = chosen.chunk_by(|a, b| a.0 == b.0).count();
        self.slots = vec![(0, 0); (distinct * 2).next_power_of_two()];
        for group in chosen.chunk_by(|a, b| a.0 == b.0) {
            let hash = group[0].0;
            let first = self.entries.len() as u32;
            for (i, &(_, kind, literal, offset)) in group.iter().enumerate() {
                match kind {
                    Kind::Short => self.short[small_index(hash)] |= small_mask(hash),
                    Kind::Middle => self.middle[small_index(hash)] |= small_mask(hash),
                    Kind::Long | Kind::Xor => {
                        let index = (hash >> (64 - self.long.len().trailing_zeros())) as usize;
                        self.long[index] |= long_mask(hash);
                    }
                }
                self.entries.push(Entry { literal, offset, last: i + 1 == group.len() });
            }
            let mask = self.slots.len() - 1;
            let mut at = slot(hash) & mask;
            while self.slots[at].1 != 0 {
                at = (at + 1) & mask;
            }
            self.slots[at] = ((hash >> 32) as u32, first + 1);
        }
    }

    /// Number of literals.
    pub fn literals(&self) -> usize {
        self.literals.len()
    }

    /// Looks for all literals in `data`, as a whole.
    pub fn scan(&self, data: &[u8], seen: &mut Seen) {
        match self.long.len() {
            0 => {}
            WORDS_0 => self.scan_sized::<WORDS_0>(data, seen),
            WORDS_1 => self.scan_sized::<WORDS_1>(data, seen),
            WORDS_2 => self.scan_sized::<WORDS_2>(data, seen),
            _ => self.scan_sized::<WORDS_3>(data, seen),
        }
    }

    fn scan_sized<const WORDS: usize>(&self, data: &[u8], seen: &mut Seen) {
        match (self.middle.is_empty(), self.short.is_empty(), self.xor) {
            (true, true, false) => self.scan_as::<WORDS, false, false, false>(data, seen),
            (true, true, true) => self.scan_as::<WORDS, false, false, true>(data, seen),
            (true, false, false) => self.scan_as::<WORDS, false, true, false>(data, seen),
            (true, false, true) => self.scan_as::<WORDS, false, true, true>(data, seen),
            (false, true, false) => self.scan_as::<WORDS, true, false, false>(data, seen),
            (false, true, true) => self.scan_as::<WORDS, true, false, true>(data, seen),
            (false, false, false) => self.scan_as::<WORDS, true, true, false>(data, seen),
            (false, false, true) => self.scan_as::<WORDS, true, true, true>(data, seen),
        }
    }

    fn scan_as<const WORDS: usize, const MIDDLES: bool, const SHORTS: bool, const XOR: bool>(
        &self,
        data: &[u8],
        seen: &mut Seen,
    ) {
        let Some(long) = self.long.as_array::<WORDS>() else { return };
        let none = [0; SMALL_WORDS];
        let middle = self.middle.as_array::<SMALL_WORDS>().unwrap_or(&none);
        let short = self.short.as_array::<SMALL_WORDS>().unwrap_or(&none);
        // The last windows reach over the end of the block.
        let mut at = 0;
        while let Some(block) = data.get(at..at + BLOCK + LONG + 1) {
            let mut hit = 0;
            for i in 0..BLOCK / STEP {
                let Some(bytes) = block[i * STEP..].first_chunk::<LONG>() else { break };
                let window = u64::from_le_bytes(*bytes);
                let folded = window | FOLD;
                let hash = folded.wrapping_mul(SPREAD);
                let word = long[(hash >> (64 - WORDS.trailing_zeros())) as usize];
                let mut any = tested(word, long_mask(hash));
                if MIDDLES {
                    let hash = middle_hash(folded);
                    any |= tested(middle[small_index(hash)], small_mask(hash));
                }
                if SHORTS {
                    for shift in 0..STEP {
                        let hash = short_hash((folded >> (8 * shift)) as u32);
                        any |= tested(short[small_index(hash)], small_mask(hash));
                    }
                }
                if XOR {
                    let hash = xor_hash(window);
                    let word = long[(hash >> (64 - WORDS.trailing_zeros())) as usize];
                    any |= tested(word, long_mask(hash));
                }
                hit |= any << i;
            }
            while hit != 0 {
                self.look(data, at + hit.trailing_zeros() as usize * STEP, seen);
                hit &= hit - 1;
            }
            at += BLOCK;
        }
        for at in (at..data.len()).step_by(STEP) {
            self.look(data, at, seen);
        }
    }

    /// Looks up every window that begins in the [`STEP`] bytes from `at` on, whatever the Bloom filters said of them
    /// together; they are asked again, one by one.
    #[cold]
    #[inline(never)]
    fn look(&self, data: &[u8], at: usize, seen: &mut Seen) {
        let mut bytes = [0; LONG];
        let there = &data[at..data.len().min(at + LONG)];
        bytes[..there.len()].copy_from_slice(there);
        let window = u64::from_le_bytes(bytes);
        let folded = window | FOLD;
        if there.len() == LONG {
            let shift = 64 - self.long.len().trailing_zeros();
            let hash = folded.wrapping_mul(SPREAD);
            if tested(self.long[(hash >> shift) as usize], long_mask(hash)) != 0 {
                self.verify(data, at, hash, seen);
            }
            if self.xor {
                let hash = xor_hash(window);
                if tested(self.long[(hash >> shift) as usize], long_mask(hash)) != 0 {
                    self.verify(data, at, hash, seen);
                }
            }
        }
        if !self.middle.is_empty() && there.len() >= MIDDLE {
            let hash = middle_hash(folded);
            if tested(self.middle[small_index(hash)], small_mask(hash)) != 0 {
                self.verify(data, at, hash, seen);
            }
        }
        if !self.short.is_empty() {
            for skip in (0..STEP).take_while(|skip| skip + SHORT <= there.len()) {
                let hash = short_hash((folded >> (8 * skip)) as u32);
                if tested(self.short[small_index(hash)], small_mask(hash)) != 0 {
                    self.verify(data, at + skip, hash, seen);
                }
            }
        }
    }

    /// A window with this hash lies at `at`: which literals does it belong to?
    fn verify(&self, data: &[u8], at: usize, hash: u64, seen: &mut Seen) {
        let mask = self.slots.len() - 1;
        let mut place = slot(hash) & mask;
        loop {
            match self.slots[place] {
                (_, 0) => return,
                // Another window may have the same upper half: on to the end of the chain.
                (upper, first) if upper == (hash >> 32) as u32 => {
                    self.compare(data, at, first as usize - 1, seen);
                }
                _ => {}
            }
            place = (place + 1) & mask;
        }
    }

    /// Compares the literals from this entry on with what lies around `at`.
    fn compare(&self, data: &[u8], at: usize, first: usize, seen: &mut Seen) {
        for entry in &self.entries[first..] {
            if !seen.has(entry.literal)
                && let Some(start) = at.checked_sub(usize::from(entry.offset))
                && self.lies(entry.literal, &data[start..])
            {
                seen.insert(entry.literal);
            }
            if entry.last {
                return;
            }
        }
    }

    fn lies(&self, literal: u32, data: &[u8]) -> bool {
        let literal = self.literals[literal as usize];
        let (start, len) = (literal.start as usize, usize::from(literal.len));
        let bytes = &self.bytes[start..start + len];
        let Some(there) = data.get(..len) else { return false };
        match literal.how {
            How::Exact => there == bytes,
            How::Nocase => there.eq_ignore_ascii_case(bytes),
            How::Xor => {
                let key = there[0] ^ bytes[0];
                there.iter().zip(bytes).all(|(a, b)| a ^ b == key)
            }
        }
    }
}

/// Cost of windows from which on the next kind is tried: two of few different bytes.
const POOR: u32 = 1000;

/// The kinds of windows by which a literal can be found, the best first.
fn kinds(needle: &Needle) -> &'static [Kind] {
    match needle.bytes.len() {
        _ if needle.how == How::Xor => &[Kind::Xor],
        LONG_MIN.. => &[Kind::Long, Kind::Short],
        MIDDLE_MIN.. => &[Kind::Middle, Kind::Short],
        _ => &[Kind::Short],
    }
}

/// The hashes of all windows of a literal, and how poor each is: few different bytes are found in many places.
fn windows(needle: &Needle, kind: Kind) -> impl Iterator<Item = (u64, u32)> {
    let len = match kind {
        Kind::Long | Kind::Xor => LONG,
        Kind::Middle => MIDDLE,
        Kind::Short => SHORT,
    };
    needle.bytes.windows(len).map(move |window| {
        let mut bytes = [0; LONG];
        bytes[..len].copy_from_slice(window);
        let word = u64::from_le_bytes(bytes);
        let hash = match kind {
            Kind::Long => (word | FOLD).wrapping_mul(SPREAD),
            Kind::Middle => middle_hash(word | FOLD),
            Kind::Short => short_hash((word | FOLD) as u32),
            Kind::Xor => xor_hash(word),
        };
        let mut different = [0u64; 4];
        for b in window {
            different[usize::from(b >> 6)] |= 1 << ((b | 0x20) & 63);
        }
        let poor = match different.iter().map(|set| set.count_ones()).sum::<u32>() {
            1 => 100 * POOR,
            2 => POOR,
            3 => POOR / 50,
            _ => 0,
        };
        (hash, poor)
    })
}

/// Of the differences of neighbours in a window: the same whatever key the window is XORed with.
#[inline(always)]
fn xor_hash(window: u64) -> u64 {
    ((window ^ window >> 8) << 8).wrapping_mul(SPREAD_XOR)
}

/// Of the first [`MIDDLE`] bytes of a folded window.
#[inline(always)]
fn middle_hash(folded: u64) -> u64 {
    (folded << (8 * (LONG - MIDDLE))).wrapping_mul(SPREAD_MIDDLE)
}

#[inline(always)]
fn short_hash(window: u32) -> u64 {
    u64::from(window).wrapping_mul(SPREAD_SHORT)
}

/// The upper bits of a product depend on all bits of the window; the lower ones are not used.
#[inline(always)]
fn small_index(hash: u64) -> usize {
    (hash >> (64 - SMALL_WORDS.trailing_zeros())) as usize
}

#[inline(always)]
fn small_mask(hash: u64) -> u64 {
    1 << (hash >> 45 & 63) | 1 << (hash >> 39 & 63)
}

#[inline(always)]
fn long_mask(hash: u64) -> u64 {
    1 << (hash >> 42 & 63) | 1 << (hash >> 36 & 63) | 1 << (hash >> 30 & 63)
}

/// Not zero if the word has all bits of the mask.
#[inline(always)]
fn tested(word: u64, mask: u64) -> u64 {
    u64::from(word & mask == mask)
}

#[inline(always)]
fn slot(hash: u64) -> usize {
    (hash ^ hash >> 29).wrapping_mul(SPREAD_XOR).wrapping_shr(20) as usize
}

/// Hashes that are spread already.
#[derive(Clone, Copy, Default)]
struct Mix;

impl std::hash::BuildHasher for Mix {
    type Hasher = Mixer;
    fn build_hasher(&self) -> Mixer {
        Mixer(0)
    }
}

struct Mixer(u64);

impl std::hash::Hasher for Mixer {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for &b in bytes {
            self.0 = (self.0 ^ u64::from(b)).wrapping_mul(SPREAD);
        }
    }
    fn write_u64(&mut self, hash: u64) {
        self.0 = hash ^ hash >> 32;
    }
}

#[cfg(test)]
#[path = "filter/tests.rs"]
mod tests;

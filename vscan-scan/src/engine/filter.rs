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
//! does not change: seven of them, or three where the literal is shorter than 11 bytes.

mod probe;
mod wide;
mod windows;

use super::needle::{How, NEEDLE_MAX, Needle};
use super::shape::{Around, Shape};
use probe::{
    Found, SMALL_WORDS, TRIPLE_WORDS, Tables, has, has_triple, long_hash, mask, middle_hash,
    short_hash, short_xor_hash, small_index, triple_hash, triple_index, xor_hash,
};
use windows::{Kind, Window, windows};

pub(crate) use windows::rarity;
pub use windows::{Choice, choose};

/// Distance of the windows of the data.
const STEP: usize = 4;

/// Where a range may begin.
pub(super) const PLACE: usize = STEP;

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

/// Steps that may go into shapes, for each byte and beside: ordinary files take a tenth of it.
const WORK_EACH: usize = 2;
const WORK_FREE: usize = 64 << 10;

/// A bit that lower case letters have and upper case letters do not, in each byte.
const FOLD: u64 = 0x2020_2020_2020_2020;

/// An odd number with many bits (2^64 divided by the golden ratio).
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// A set of literals, ready to be looked for. Shared between threads and processes.
#[derive(Debug, Default)]
pub struct Filter {
    tables: Tables,
    /// Open addressing: upper half of the window's hash, and one more than its first place in `entries`.
    slots: Vec<(u32, u32)>,
    /// A byte of each slot's hash, 0 where there is none: a quarter of the second-level cache, where the slots are twice it.
    tags: Vec<u8>,
    /// Literals by window; the last of each window is marked.
    entries: Vec<Entry>,
    /// All literals, one behind the other.
    bytes: Vec<u8>,
    literals: Vec<Literal>,
    /// Shapes, numbered behind the literals, and by pair of bytes.
    shapes: Vec<Shape>,
    pairs: Pairs,
    /// How far behind a window's beginning anything may reach that is looked for by it.
    reach: usize,
}

/// Lists of shapes by pair of bytes.
#[derive(Debug, Default)]
struct Pairs {
    starts: Vec<u32>,
    shapes: Vec<Quick>,
}

/// A shape, and what the bytes around its pair are like, all at once: most places are told by that.
#[derive(Clone, Copy, Debug)]
struct Quick {
    shape: u32,
    around: Around,
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
    /// What shapes took, in steps, and from when on they are taken for seen.
    work: usize,
    work_max: usize,
}

impl Seen {
    /// Room for the literals of a filter.
    pub fn new(filter: &Filter) -> Self {
        Self { bits: vec![0; filter.literals().div_ceil(64)], ..Self::default() }
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

    /// Knows what this one has seen, and lists only what it sees itself.
    pub(super) fn beside(&self) -> Self {
        Self { bits: self.bits.clone(), ..Self::default() }
    }

    /// Adds what another one has seen; true if any of it is new.
    pub(super) fn join(&mut self, other: &Seen) -> bool {
        let before = self.list.len();
        for &literal in &other.list {
            if !self.has(literal) {
                self.insert(literal);
            }
        }
        self.list.len() > before
    }

    fn has(&self, literal: u32) -> bool {
        self.bits[literal as usize / 64] >> (literal % 64) & 1 != 0
    }

    /// Work for so many bytes.
    fn allow(&mut self, bytes: usize) {
        self.work_max = self.work.saturating_add(bytes * WORK_EACH + WORK_FREE);
    }

    fn insert(&mut self, literal: u32) {
        self.bits[literal as usize / 64] |= 1 << (literal % 64);
        self.list.push(literal);
    }
}

/// Something on its way through a filter while it grows.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stream {
    /// What begins before this was looked at.
    at: usize,
}

impl Stream {
    /// Looks at what came since, of all the bytes that are there now, but for the last ones: what begins in them may go on
    /// behind them. At most `most` bytes are looked at; how many were.
    pub fn grown(&mut self, filter: &Filter, data: &[u8], seen: &mut Seen, most: usize) -> usize {
        let to = data.len().saturating_sub(filter.reach).min(self.at.saturating_add(most));
        let to = to / PLACE * PLACE;
        if to <= self.at {
            return 0;
        }
        filter.scan_range(data, self.at, to, seen);
        to - std::mem::replace(&mut self.at, to)
    }

    /// Looks at the rest: these are all the bytes, and what [`Filter::scan`] sees in them has been seen then.
    pub fn ended(&mut self, filter: &Filter, data: &[u8], seen: &mut Seen) {
        filter.scan_range(data, self.at, data.len(), seen);
        self.at = data.len();
    }

    /// Where the next look begins.
    pub fn at(&self) -> usize {
        self.at
    }
}

impl Filter {
    /// A filter for literals of at least [`super::needle::NEEDLE_MIN`] and at most [`NEEDLE_MAX`] bytes.
    pub fn new(needles: &[Needle]) -> Self {
        Self::of(needles, &choose(needles), &[])
    }

    /// The same with windows that were chosen before, and shapes.
    pub(super) fn of(needles: &[Needle], choices: &[Choice], shapes: &[Shape]) -> Self {
        let mut filter = Filter::default();
        let mut chosen: Vec<Chosen> = Vec::new();
        for (i, (needle, &Choice { kind, offset })) in needles.iter().zip(choices).enumerate() {
            filter.literals.push(Literal {
                start: filter.bytes.len() as u32,
                len: needle.bytes.len() as u8,
                how: needle.how,
            });
            filter.bytes.extend_from_slice(&needle.bytes);
            filter.tables.xor |= kind == Kind::Xor;
            let all =
                windows(needle, kind).enumerate().skip(usize::from(offset)).take(kind.windows());
            chosen.extend(all.map(|(offset, (first, window, _))| Chosen {
                window,
                first,
                literal: i as u32,
                offset: offset as u8,
            }));
        }
        filter.fill(chosen);
        filter.fill_pairs(shapes);
        filter.reach = shapes.iter().map(Shape::reach).fold(NEEDLE_MAX, usize::max);
        filter
    }

    fn fill_pairs(&mut self, shapes: &[Shape]) {
        let mut all: Vec<(u16, u32)> = Vec::new();
        for (i, shape) in shapes.iter().enumerate() {
            all.extend(shape.pairs().map(|pair| (pair, i as u32)));
        }
        if all.is_empty() {
            return;
        }
        all.sort_unstable();
        all.dedup();
        self.tables.triples = vec![0; TRIPLE_WORDS];
        for triple in shapes.iter().flat_map(Shape::triples) {
            let hash = triple_hash(triple);
            self.tables.triples[triple_index(hash)] |= mask(hash);
        }
        self.pairs.starts = vec![0; (1 << 16) + 1];
        for &(pair, _) in &all {
            self.pairs.starts[usize::from(pair) + 1] += 1;
        }
        for i in 0..1 << 16 {
            self.pairs.starts[i + 1] += self.pairs.starts[i];
        }
        let around: Vec<Around> = shapes.iter().map(Shape::around).collect();
        let quick = |(_, shape): (u16, u32)| Quick { shape, around: around[shape as usize] };
        self.pairs.shapes = all.into_iter().map(quick).collect();
        self.shapes = shapes.to_vec();
    }

    fn fill(&mut self, mut chosen: Vec<Chosen>) {
        let of = |kind: Kind| chosen.iter().filter(|c| c.window.kind == kind).count();
        self.tables.long = Tables::long_for(of(Kind::Long) + of(Kind::Xor));
        for (kind, words) in [
            (Kind::Middle, &mut self.tables.middle),
            (Kind::Short, &mut self.tables.short),
            (Kind::ShortXor, &mut self.tables.short_xor),
        ] {
            if of(kind) > 0 {
                *words = vec![0; SMALL_WORDS];
            }
        }
        chosen.sort_unstable_by_key(|c| (c.window, c.literal, c.offset));
        let distinct = chosen.chunk_by(|a, b| a.window == b.window).count();
        self.slots = vec![(0, 0); (distinct * 2).next_power_of_two()];
        self.tags = vec![0; self.slots.len()];
        for group in chosen.chunk_by(|a, b| a.window == b.window) {
            let first = self.entries.len() as u32;
            for (i, c) in group.iter().enumerate() {
                let hash = c.window.bloom(c.first);
                match c.window.kind {
                    Kind::Short => self.tables.short[small_index(hash)] |= mask(hash),
                    Kind::Middle => self.tables.middle[small_index(hash)] |= mask(hash),
                    Kind::ShortXor => self.tables.short_xor[small_index(hash)] |= mask(hash),
                    Kind::Long | Kind::Xor => {
                        let at = (hash >> self.tables.long_shift()) as usize;
                        self.tables.long[at] |= mask(hash);
                    }
                }
                self.entries.push(Entry {
                    literal: c.literal,
                    offset: c.offset,
                    last: i + 1 == group.len(),
                });
            }
            let (place, upper) = slot(group[0].window);
            let mask = self.slots.len() - 1;
            let mut at = place & mask;
            while self.slots[at].1 != 0 {
                at = (at + 1) & mask;
            }
            self.slots[at] = (upper, first + 1);
            self.tags[at] = tag(upper);
        }
    }

    /// Number of literals and shapes.
    pub fn literals(&self) -> usize {
        self.literals.len() + self.shapes.len()
    }

    /// Looks for all literals in `data`, as a whole.
    pub fn scan(&self, data: &[u8], seen: &mut Seen) {
        self.scan_range(data, 0, data.len(), seen);
    }

    /// The same, of what begins to be looked at from `from` up to `to`, multiples of [`PLACE`] or the end. Ranges that make up
    /// the whole see together what [`scan`](Self::scan) sees: they look at the same windows, and compare around them beyond their
    /// ends.
    pub(super) fn scan_range(&self, data: &[u8], from: usize, to: usize, seen: &mut Seen) {
        debug_assert!(from.is_multiple_of(PLACE) && (to.is_multiple_of(PLACE) || to == data.len()));
        if self.literals() > 0 {
            seen.allow(to - from);
            self.tables.scan(&data[from..to], |at, found| match found {
                Found::Literal => self.look(data, from + at, seen),
                Found::Pair => self.look_pairs(data, from + at, seen),
            });
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
        let first = u64::from_le_bytes(bytes);
        let folded = first | FOLD;
        let tables = &self.tables;
        if there.len() == LONG {
            if tables.has_long(long_hash(folded)) {
                self.verify(data, at, Window::of(Kind::Long, first), seen);
            }
            if tables.xor && tables.has_long(xor_hash(first)) {
                self.verify(data, at, Window::of(Kind::Xor, first), seen);
            }
        }
        if !tables.middle.is_empty()
            && there.len() >= MIDDLE
            && has(&tables.middle, middle_hash(folded))
        {
            self.verify(data, at, Window::of(Kind::Middle, first), seen);
        }
        if !tables.short_xor.is_empty()
            && there.len() >= SHORT
            && has(&tables.short_xor, short_xor_hash(first))
        {
            self.verify(data, at, Window::of(Kind::ShortXor, first), seen);
        }
        if !tables.short.is_empty() {
            for skip in (0..STEP).take_while(|skip| skip + SHORT <= there.len()) {
                if has(&tables.short, short_hash((folded >> (8 * skip)) as u32)) {
                    let window = Window::of(Kind::Short, first >> (8 * skip));
                    self.verify(data, at + skip, window, seen);
                }
            }
        }
    }

    /// Looks up the pairs that begin in the [`STEP`] bytes from `at` on.
    #[inline(never)]
    fn look_pairs(&self, data: &[u8], at: usize, seen: &mut Seen) {
        let triples = &self.tables.triples;
        if triples.is_empty() {
            return;
        }
        for at in at..(at + STEP).min(data.len().saturating_sub(1)) {
            let pair = u16::from_le_bytes([data[at], data[at + 1]]);
            let third = data.get(at + 2);
            let hash = third.map(|&third| triple_hash(u32::from(pair) | u32::from(third) << 16));
            if hash.is_none_or(|hash| has_triple(triples, hash)) {
                self.verify_pair(data, at, pair, seen);
            }
        }
    }

    /// This pair lies at `at`: does one of its shapes lie around it?
    fn verify_pair(&self, data: &[u8], at: usize, pair: u16, seen: &mut Seen) {
        let [from, to] = [0, 1].map(|i| self.pairs.starts[usize::from(pair) + i] as usize);
        for quick in &self.pairs.shapes[from..to] {
            let number = self.literals.len() as u32 + quick.shape;
            if quick.around.may_lie(data, at) && !seen.has(number) {
                let shape = &self.shapes[quick.shape as usize];
                if seen.work > seen.work_max || shape.lies(data, at, &mut seen.work) {
                    seen.insert(number);
                }
            }
        }
    }

    /// This window lies at `at`, or one of the same hash: which literals does it belong to?
    fn verify(&self, data: &[u8], at: usize, window: Window, seen: &mut Seen) {
        let mask = self.slots.len() - 1;
        let (place, upper) = slot(window);
        let mut place = place & mask;
        loop {
            match self.tags[place] {
                0 => return,
                // Another window may have the same byte, or the same upper half: on to the end of the chain.
                byte if byte == tag(upper) => {
                    let (other, first) = self.slots[place];
                    if other == upper {
                        self.compare(data, at, first as usize - 1, seen);
                    }
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
            How::Xor(first, last) => {
                let key = there[0] ^ bytes[0];
                (first..=last).contains(&key) && there.iter().zip(bytes).all(|(a, b)| a ^ b == key)
            }
        }
    }
}

/// A window that was chosen, and whose it is.
struct Chosen {
    window: Window,
    /// The first bytes of it, not folded.
    first: u64,
    literal: u32,
    /// Offset of the window in the literal.
    offset: u8,
}

/// The byte that marks a slot.
#[inline(always)]
fn tag(upper: u32) -> u8 {
    (upper >> 24) as u8 | 1
}

/// Where a window's slot is looked for first, and what marks it there.
#[inline(always)]
fn slot(window: Window) -> (usize, u32) {
    let hash = (window.bytes ^ (window.kind as u64) << 61).wrapping_mul(SPREAD);
    let hash = (hash ^ hash >> 29).wrapping_mul(SPREAD);
    ((hash >> 20) as usize, (hash >> 32) as u32)
}

#[cfg(test)]
#[path = "filter/tests.rs"]
mod tests;

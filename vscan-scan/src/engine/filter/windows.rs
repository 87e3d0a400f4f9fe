//! By which windows a literal is looked for: those that the fewest others have, and that are seldom in files.

use super::probe::{long_hash, middle_hash, short_hash, short_xor_hash, xor_hash};
use super::{FOLD, LONG, LONG_MIN, MIDDLE, MIDDLE_MIN, SHORT, STEP};
use crate::engine::needle::{How, Needle};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// By which windows a literal is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice {
    pub(super) kind: Kind,
    /// Where the first of them begins in the literal.
    pub(super) offset: u8,
}

/// What a window of a literal is put in by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) enum Kind {
    Long,
    Middle,
    Short,
    Xor,
    ShortXor,
}

/// A window of a literal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Window {
    pub(super) kind: Kind,
    /// Its bytes, folded where its kind is; or its differences.
    pub(super) bytes: u64,
}

impl Window {
    /// Of the bytes from a place on, of which there are enough.
    #[inline(always)]
    pub(super) fn of(kind: Kind, bytes: u64) -> Self {
        let folded = bytes | FOLD;
        let bytes = match kind {
            Kind::Long => folded,
            Kind::Middle => folded & 0xff_ffff_ffff,
            Kind::Short => folded & 0xffff_ffff,
            Kind::Xor => (bytes ^ bytes >> 8) & 0xff_ffff_ffff_ffff,
            Kind::ShortXor => (bytes ^ bytes >> 8) & 0xff_ffff,
        };
        Self { kind, bytes }
    }

    /// Its hash in the Bloom filter.
    pub(super) fn bloom(self, first: u64) -> u32 {
        match self.kind {
            Kind::Long => long_hash(first | FOLD),
            Kind::Middle => middle_hash(first | FOLD),
            Kind::Short => short_hash((first | FOLD) as u32),
            Kind::Xor => xor_hash(first),
            Kind::ShortXor => short_xor_hash(first),
        }
    }
}

impl Kind {
    /// How many consecutive windows are put in.
    pub(super) fn windows(self) -> usize {
        match self {
            Kind::Short => 1,
            Kind::Long | Kind::Middle | Kind::Xor | Kind::ShortXor => STEP,
        }
    }

    fn len(self) -> usize {
        match self {
            Kind::Long | Kind::Xor => LONG,
            Kind::Middle => MIDDLE,
            Kind::Short | Kind::ShortXor => SHORT,
        }
    }
}

/// Cost of windows from which on the next kind is tried: two of few different bytes.
const POOR: u64 = 1 << 40;

/// Chooses the windows of each literal.
pub fn choose(needles: &[Needle]) -> Vec<Choice> {
    let mut counts: HashMap<Window, u32> = HashMap::new();
    for needle in needles {
        for &kind in kinds(needle) {
            for (_, window, _) in windows(needle, kind) {
                *counts.entry(window).or_default() += 1;
            }
        }
    }
    let choose = |needle: &Needle| {
        // The first kind whose windows say something, or the last.
        let mut choice = None;
        for &kind in kinds(needle) {
            let all: Vec<u64> = windows(needle, kind)
                .map(|(_, window, cost)| {
                    cost + u64::from(counts.get(&window).copied().unwrap_or(0))
                })
                .collect();
            let cost = |at: usize| all[at..at + kind.windows()].iter().sum::<u64>();
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

/// The kinds of windows by which a literal can be found, the best first.
fn kinds(needle: &Needle) -> &'static [Kind] {
    match needle.bytes.len() {
        LONG_MIN.. if matches!(needle.how, How::Xor(..)) => &[Kind::Xor],
        _ if matches!(needle.how, How::Xor(..)) => &[Kind::ShortXor],
        LONG_MIN.. => &[Kind::Long, Kind::Short],
        MIDDLE_MIN.. => &[Kind::Middle, Kind::Short],
        _ => &[Kind::Short],
    }
}

/// All windows of a literal: its first bytes, what it is looked up by, and how often it is seen in files, in 2^-40.
pub(super) fn windows(needle: &Needle, kind: Kind) -> impl Iterator<Item = (u64, Window, u64)> {
    let len = kind.len();
    needle.bytes.windows(len).map(move |window| {
        let mut bytes = [0; LONG];
        bytes[..len].copy_from_slice(window);
        let word = u64::from_le_bytes(bytes);
        let mut different = [0u64; 4];
        for b in window {
            different[usize::from(b >> 6)] |= 1 << ((b | 0x20) & 63);
        }
        let rare: u32 = window.iter().map(|&b| u32::from(rarity(b))).sum();
        let cost = match different.iter().map(|set| set.count_ones()).sum::<u32>() {
            // A run of one byte is everywhere; two in turn, in every table.
            1 => 100 * POOR,
            2 => POOR,
            3 => POOR >> (rare / 2).min(40),
            _ => POOR >> rare.min(40),
        };
        (word, Window::of(kind, word), cost)
    })
}

/// How seldom a byte is: one in two to the power of this, in that of ELF files, Windows programs and texts which has
/// most of it. Measured over 60 MB of each in Debian.
pub(crate) fn rarity(byte: u8) -> u8 {
    RARITY[usize::from(byte)]
}

#[rustfmt::skip]
const RARITY: [u8; 256] = [
    1, 5, 6, 6, 6, 6, 6, 8, 7, 7, 5, 8, 8, 8, 7, 6,
    7, 8, 9, 8, 8, 9, 9, 9, 8, 9, 9, 9, 9, 10, 10, 8,
    3, 9, 7, 8, 5, 9, 10, 9, 7, 7, 7, 10, 7, 7, 7, 6,
    7, 7, 8, 8, 9, 8, 9, 10, 8, 8, 8, 8, 7, 7, 7, 10,
    8, 6, 8, 7, 7, 6, 8, 8, 4, 7, 9, 9, 6, 8, 7, 7,
    7, 9, 7, 6, 7, 8, 9, 9, 8, 9, 10, 9, 9, 9, 10, 5,
    9, 5, 7, 5, 6, 4, 6, 7, 6, 5, 10, 7, 5, 6, 5, 5,
    6, 10, 5, 5, 4, 6, 7, 8, 8, 7, 10, 9, 9, 9, 10, 10,
    8, 9, 10, 7, 7, 7, 10, 10, 9, 5, 11, 6, 9, 6, 10, 10,
    8, 9, 11, 10, 9, 11, 11, 11, 10, 10, 11, 11, 10, 10, 11, 8,
    9, 11, 11, 11, 11, 11, 11, 11, 10, 11, 11, 11, 10, 11, 11, 11,
    10, 11, 11, 11, 10, 11, 9, 11, 9, 10, 9, 10, 9, 10, 9, 10,
    7, 8, 9, 8, 9, 9, 9, 8, 9, 9, 10, 11, 8, 11, 11, 11,
    9, 10, 9, 10, 11, 11, 10, 11, 9, 10, 10, 10, 11, 11, 10, 9,
    9, 10, 10, 11, 10, 10, 10, 10, 6, 8, 10, 8, 9, 9, 9, 9,
    9, 10, 10, 9, 10, 10, 9, 9, 8, 9, 9, 9, 9, 9, 8, 5,
];

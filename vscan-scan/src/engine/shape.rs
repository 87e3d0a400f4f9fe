//! The shape of a pattern that has no long literal: which bytes may stand where, with gaps, around a pair of bytes that
//! the filter looks for.
//!
//! As in [`super::needle`] everything is a necessary condition: what cannot be said in this way is left open.

use super::filter::rarity;
use super::needle::{forms, parse};
use memchr::arch::all::packedpair::HeuristicFrequencyRank;
use memchr::memmem;
use regex_syntax::hir::{Class, Hir, HirKind};
use serde::{Deserialize, Serialize};
use std::cell::Cell;
use yara_x_parser::ast::{HexSubPattern, HexToken, Pattern};

/// Widest gap that is searched; a wider one ends the shape.
const GAP_MAX: usize = 1000;

/// Most elements of a shape. What is behind them is left open.
const ELEMENTS_MAX: usize = 96;

/// Most shapes of one pattern, and most pairs of one shape.
const SHAPES_MAX: usize = 16;
const PAIRS_MAX: usize = 16;

/// Longest string that is searched to confirm a literal, and what looking around one costs, in bytes that are searched.
const RUN_MAX: usize = 16;
const CONFIRM_COST: usize = 64;

/// Steps of one comparison; behind them the answer is yes.
const STEPS_MAX: u32 = 1000;

/// What a comparison takes that is soon told, in steps.
const LOOK_STEPS: usize = 4;

/// How seldom the pairs of a shape together have to be: one in two to the power of this.
const PAIR_RARE: u32 = 9;

/// How much what lies around the pair at fixed distances has to say, in bits.
const RUN_RARE: u32 = 13;

/// Bytes that lie in long runs.
const RUNS: [u8; 10] = [0, 0xff, 0x20, 0x90, 0xcc, b'-', b'=', b'*', b'#', b'.'];

/// How much a shape has to say, in bits.
const SHAPE_RARE: u32 = 14;

/// A set of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
struct Set([u64; 4]);

impl Set {
    const ANY: Set = Set([u64::MAX; 4]);
    const NONE: Set = Set([0; 4]);

    fn of(bytes: impl IntoIterator<Item = u8>) -> Self {
        let mut set = Set::NONE;
        for byte in bytes {
            set.0[usize::from(byte >> 6)] |= 1 << (byte & 63);
        }
        set
    }

    fn has(&self, byte: u8) -> bool {
        self.0[usize::from(byte >> 6)] >> (byte & 63) & 1 != 0
    }

    fn bytes(&self) -> impl Iterator<Item = u8> {
        (0..=255).filter(|&byte| self.has(byte))
    }

    fn len(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }

    fn union(self, other: Self) -> Self {
        Set(std::array::from_fn(|i| self.0[i] | other.0[i]))
    }
}

/// Bytes of a set, at least and at most so many.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
struct Element {
    set: Set,
    min: u16,
    max: u16,
}

impl Element {
    fn one(set: Set) -> Self {
        Self { set, min: 1, max: 1 }
    }

    fn is_one(&self) -> bool {
        (self.min, self.max) == (1, 1)
    }
}

/// What lies around a pair of bytes wherever the pattern matches.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Shape {
    elements: Vec<Element>,
    /// The first of two elements of one byte each that the filter looks for.
    anchor: u16,
}

/// What lies around a byte string wherever the pattern matches: searched for where a literal of the pattern was seen that is
/// a small part of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Confirm {
    #[serde(with = "serde_bytes")]
    run: Vec<u8>,
    /// Its anchor is where the string begins.
    shape: Shape,
}

impl Confirm {
    /// Whether it may lie in the data. The bytes that are searched are taken from the budget; without any it may.
    pub(crate) fn may_lie(&self, data: &[u8], budget: &Cell<usize>) -> bool {
        let finder = memmem::FinderBuilder::new().build_forward_with_ranker(Ranks, &self.run);
        let mut from = 0;
        loop {
            let there = &data[from..];
            let found = finder.find(there);
            let cost = found.map_or(there.len(), |at| at + CONFIRM_COST);
            budget.set(budget.get().saturating_sub(cost));
            let Some(at) = found else { return false };
            let mut work = 0;
            if budget.get() == 0 || self.shape.lies(data, from + at, &mut work) {
                return true;
            }
            budget.set(budget.get().saturating_sub(work * CONFIRM_COST / 4));
            from += at + 1;
        }
    }
}

/// How often bytes are, for the search: in programs and texts, not in texts alone.
struct Ranks;

impl HeuristicFrequencyRank for Ranks {
    fn rank(&self, byte: u8) -> u8 {
        255 - 16 * rarity(byte)
    }
}

/// What lies around byte strings, of which each match of the pattern has one; none if that says little.
pub(crate) fn confirms(pattern: &Pattern<'_>) -> Option<Vec<Confirm>> {
    let pieces = pieces(pattern)?;
    if pieces.len() > SHAPES_MAX {
        return None;
    }
    let confirms: Option<Vec<Confirm>> = pieces.into_iter().map(Pieces::confirm).collect();
    confirms.filter(|confirms| !confirms.is_empty())
}

/// The shapes of which each match of the pattern has one; none if nothing useful can be said.
pub(crate) fn shapes(pattern: &Pattern<'_>) -> Option<Vec<Shape>> {
    let pieces = pieces(pattern)?;
    if pieces.len() > SHAPES_MAX {
        return None;
    }
    let shapes: Option<Vec<Shape>> = pieces.into_iter().map(Pieces::best).collect();
    shapes.filter(|shapes| !shapes.is_empty())
}

/// The forms of a pattern.
fn pieces(pattern: &Pattern<'_>) -> Option<Vec<Pieces>> {
    let modifiers = pattern.modifiers();
    if modifiers.xor().is_some() || modifiers.base64().is_some() || modifiers.base64wide().is_some()
    {
        return None;
    }
    let (wide, ascii) = (modifiers.wide().is_some(), modifiers.ascii().is_some());
    let mut pieces: Vec<Pieces> = Vec::new();
    match pattern {
        Pattern::Text(text) => {
            for form in forms(text) {
                let fold = |b: u8| {
                    let other = if b.is_ascii_alphabetic() { b ^ 0x20 } else { b };
                    Set::of([b, if modifiers.nocase().is_some() { other } else { b }])
                };
                let mut all = Pieces::default();
                form.iter().for_each(|&b| all.push(Element::one(fold(b))));
                pieces.push(all);
            }
        }
        Pattern::Hex(hex) => {
            let mut all = Pieces::default();
            of_hex(&hex.sub_patterns, &mut all);
            pieces.push(all);
        }
        Pattern::Regexp(regexp) => {
            let hir = parse(regexp)?;
            let branches: Vec<&Hir> = match hir.kind() {
                HirKind::Alternation(branches) => branches.iter().collect(),
                _ => vec![&hir],
            };
            for branch in branches {
                let mut all = Pieces::default();
                of_hir(branch, &mut all);
                if wide {
                    pieces.push(all.widened());
                }
                if !wide || ascii {
                    pieces.push(all);
                }
            }
        }
    }
    Some(pieces)
}

/// Stretches of a pattern between which anything may lie.
#[derive(Clone, Debug)]
struct Pieces(Vec<Vec<Element>>);

impl Default for Pieces {
    fn default() -> Self {
        Self(vec![Vec::new()])
    }
}

impl Pieces {
    fn push(&mut self, element: Element) {
        if element.max > 0
            && let Some(last) = self.0.last_mut()
        {
            last.push(element);
        }
    }

    /// Anything may follow, of any length.
    fn cut(&mut self) {
        self.0.push(Vec::new());
    }

    /// Anything between these lengths.
    fn gap(&mut self, min: usize, max: Option<usize>) {
        match max {
            Some(max) if max <= GAP_MAX && min <= max => {
                self.push(Element { set: Set::ANY, min: min as u16, max: max as u16 });
            }
            _ => self.cut(),
        }
    }

    /// The sets of a stretch of fixed length.
    fn sets(&self) -> Option<Vec<Set>> {
        let [one] = &self.0[..] else { return None };
        one.iter().map(|e| e.is_one().then_some(e.set)).collect()
    }

    /// One of the branches: byte by byte where all are of one length, else a gap.
    fn either(&mut self, branches: &[Pieces], lengths: impl Fn() -> (usize, Option<usize>)) {
        let sets: Option<Vec<Vec<Set>>> = branches.iter().map(Pieces::sets).collect();
        if let Some(sets) = sets
            && let Some(first) = sets.first()
            && sets.iter().all(|branch| branch.len() == first.len())
        {
            for i in 0..first.len() {
                let union = sets.iter().fold(Set::NONE, |union, branch| union.union(branch[i]));
                self.push(Element::one(union));
            }
            return;
        }
        let (min, max) = lengths();
        self.gap(min, max);
    }

    /// Each byte with a zero behind it.
    fn widened(&self) -> Self {
        let zero = Element::one(Set::of([0]));
        let mut wide = Self::default();
        for (i, piece) in self.0.iter().enumerate() {
            if i > 0 {
                wide.cut();
            }
            for element in piece {
                for _ in 0..element.min.min(ELEMENTS_MAX as u16) {
                    wide.push(Element::one(element.set));
                    wide.push(zero);
                }
                if usize::from(element.min) > ELEMENTS_MAX {
                    wide.cut();
                } else if element.max > element.min {
                    wide.gap(0, Some(2 * usize::from(element.max - element.min)));
                }
            }
        }
        wide
    }

    /// The stretch that says most, around the rarest string in it.
    fn confirm(self) -> Option<Confirm> {
        let piece = self.0.into_iter().max_by_key(|piece| bits(piece))?;
        let byte = |e: &Element| (e.is_one() && e.set.len() == 1).then(|| e.set.bytes().next());
        let mut best: Option<(u32, usize, Vec<u8>)> = None;
        let mut run = Vec::new();
        for i in 0..=piece.len() {
            match piece.get(i).and_then(byte).flatten() {
                Some(byte) if run.len() < RUN_MAX => run.push(byte),
                ends => {
                    let rare: u32 = run.iter().map(|&b| u32::from(rarity(b))).sum();
                    if run.len() > 1 && best.as_ref().is_none_or(|(most, ..)| rare > *most) {
                        best = Some((rare, i - run.len(), run.clone()));
                    }
                    run.clear();
                    run.extend(ends);
                }
            }
        }
        let (_, at, run) = best?;
        let from = at.saturating_sub(ELEMENTS_MAX);
        let elements = piece[from..piece.len().min(at + ELEMENTS_MAX)].to_vec();
        // The string alone says nothing more than a literal.
        (elements.len() > run.len())
            .then(|| Confirm { run, shape: Shape { elements, anchor: (at - from) as u16 } })
    }

    /// The stretch with the rarest pair.
    fn best(self) -> Option<Shape> {
        let mut best: Option<(u32, Shape)> = None;
        for piece in self.0 {
            if bits(&piece) < SHAPE_RARE {
                continue;
            }
            for (i, two) in piece.windows(2).enumerate() {
                let count = (two[0].set.len() * two[1].set.len()) as usize;
                if !two.iter().all(Element::is_one) || count > PAIRS_MAX || count == 0 {
                    continue;
                }
                // In 2^-24 of all places.
                let each =
                    |set: &Set| -> u64 { set.bytes().map(|b| 1 << 12 >> rarity(b).min(12)).sum() };
                let often = each(&two[0].set) * each(&two[1].set);
                // Common bytes lie in runs.
                let common = |set: &Set| set.bytes().any(|b| RUNS.contains(&b));
                let runs = two[0].set == two[1].set && common(&two[0].set);
                let often = if runs { often << 6 } else { often };
                let rare = 24 - (often | 1).ilog2().min(24);
                // The third byte, by which the pair is looked for, may be any of its set.
                let third = piece.get(i + 2).filter(|e| e.is_one());
                let said = third.map_or(0, |e| {
                    12 - (each(&e.set) | 1).ilog2().min(12).max(e.set.len().ilog2())
                });
                // What is told without a search.
                let fixed = |e: &&Element| e.min == e.max;
                let before = piece[..i].iter().rev().take_while(fixed).count();
                let behind = piece[i..].iter().take_while(fixed).count();
                let run = bits(&piece[i - before..i + behind]);
                if rare >= PAIR_RARE
                    && run >= RUN_RARE
                    && best.as_ref().is_none_or(|(most, _)| rare + said > *most)
                {
                    let from = i.saturating_sub(ELEMENTS_MAX / 2);
                    let to = piece.len().min(i + 2 + ELEMENTS_MAX / 2);
                    let elements = piece[from..to].to_vec();
                    best = Some((rare + said, Shape { elements, anchor: (i - from) as u16 }));
                }
            }
        }
        best.map(|(_, shape)| shape)
    }
}

/// How much elements say, in bits: each by how seldom its bytes are, and how few.
fn bits(elements: &[Element]) -> u32 {
    let bits = |e: &Element| -> u32 {
        let rare = e.set.bytes().map(|b| u32::from(rarity(b))).min().unwrap_or(0);
        let narrow = 8 - e.set.len().max(1).ilog2();
        // Behind a gap there are as many places as it is wide.
        rare.min(narrow).saturating_sub((e.max - e.min + 1).ilog2())
    };
    elements.iter().filter(|e| e.min > 0).map(bits).sum()
}

fn of_hex(pattern: &HexSubPattern, out: &mut Pieces) {
    for token in pattern.iter() {
        match token {
            HexToken::Byte(byte) => {
                let set = Set::of((0..=255).filter(|b| b & byte.mask == byte.value & byte.mask));
                out.push(Element::one(set));
            }
            HexToken::NotByte(byte) => {
                let set = Set::of((0..=255).filter(|b| b & byte.mask != byte.value & byte.mask));
                out.push(Element::one(set));
            }
            HexToken::Jump(jump) => {
                out.gap(jump.start.unwrap_or(0) as usize, jump.end.map(|end| end as usize));
            }
            HexToken::Alternative(alternative) => {
                let branches: Vec<Pieces> = alternative
                    .alternatives
                    .iter()
                    .map(|branch| {
                        let mut pieces = Pieces::default();
                        of_hex(branch, &mut pieces);
                        pieces
                    })
                    .collect();
                out.either(&branches, || {
                    let length = |pieces: &Pieces| -> Option<(usize, usize)> {
                        let [one] = &pieces.0[..] else { return None };
                        let sum =
                            |f: fn(&Element) -> u16| one.iter().map(|e| usize::from(f(e))).sum();
                        Some((sum(|e| e.min), sum(|e| e.max)))
                    };
                    let lengths: Option<Vec<_>> = branches.iter().map(length).collect();
                    lengths.map_or((0, None), |all| {
                        let min = all.iter().map(|l| l.0).min().unwrap_or(0);
                        (min, all.iter().map(|l| l.1).max())
                    })
                });
            }
        }
    }
}

fn of_hir(hir: &Hir, out: &mut Pieces) {
    match hir.kind() {
        HirKind::Empty | HirKind::Look(_) => {}
        HirKind::Literal(literal) => {
            literal.0.iter().for_each(|&b| out.push(Element::one(Set::of([b]))));
        }
        HirKind::Class(Class::Bytes(class)) => {
            let bytes = class.iter().flat_map(|range| range.start()..=range.end());
            out.push(Element::one(Set::of(bytes)));
        }
        HirKind::Class(Class::Unicode(_)) => out.cut(),
        HirKind::Capture(capture) => of_hir(&capture.sub, out),
        HirKind::Concat(parts) => parts.iter().for_each(|part| of_hir(part, out)),
        HirKind::Alternation(parts) => {
            let branches: Vec<Pieces> = parts
                .iter()
                .map(|part| {
                    let mut pieces = Pieces::default();
                    of_hir(part, &mut pieces);
                    pieces
                })
                .collect();
            let known = hir.properties();
            out.either(&branches, || (known.minimum_len().unwrap_or(0), known.maximum_len()));
        }
        HirKind::Repetition(repetition) => {
            let mut inner = Pieces::default();
            of_hir(&repetition.sub, &mut inner);
            let (min, max) = (repetition.min as usize, repetition.max.map(|max| max as usize));
            if let Some([set]) = inner.sets().as_deref() {
                let most = max.filter(|&max| max <= GAP_MAX);
                if min <= GAP_MAX {
                    let max = most.unwrap_or(min) as u16;
                    out.push(Element { set: *set, min: min as u16, max });
                }
                if most.is_none() {
                    out.cut();
                }
                return;
            }
            let copies = min.min(ELEMENTS_MAX);
            (0..copies).for_each(|_| of_hir(&repetition.sub, out));
            let each = repetition.sub.properties().maximum_len();
            match (max, each) {
                (Some(max), _) if max == copies => {}
                (Some(max), Some(each)) if copies == min => {
                    out.gap(0, (max - min).checked_mul(each));
                }
                _ => out.cut(),
            }
        }
    }
}

impl Shape {
    /// How seldom it lies anywhere, roughly, in the measure of [`super::needle::worth`].
    pub(crate) fn worth(&self) -> u32 {
        bits(&self.elements) / 3
    }

    /// The pairs of which one lies at the anchor.
    pub(crate) fn pairs(&self) -> impl Iterator<Item = u16> {
        let at = usize::from(self.anchor);
        let (first, second) = (self.elements[at].set, self.elements[at + 1].set);
        let first: Vec<u8> = first.bytes().collect();
        let second: Vec<u8> = second.bytes().collect();
        first
            .into_iter()
            .flat_map(move |a| second.clone().into_iter().map(move |b| u16::from_le_bytes([a, b])))
    }

    /// Most bytes from the beginning of its pair to its end.
    pub(crate) fn reach(&self) -> usize {
        self.elements[usize::from(self.anchor)..].iter().map(|e| usize::from(e.max)).sum()
    }

    /// The first three bytes wherever it lies, from the anchor on; numbers of 24 bits.
    pub(crate) fn triples(&self) -> impl Iterator<Item = u32> {
        let third = self.elements.get(usize::from(self.anchor) + 2);
        let third = third.filter(|e| e.is_one()).map_or(Set::ANY, |e| e.set);
        let third: Vec<u8> = third.bytes().collect();
        self.pairs().flat_map(move |pair| {
            third.clone().into_iter().map(move |b| u32::from(pair) | u32::from(b) << 16)
        })
    }

    /// What the bytes around the anchor are like.
    pub(crate) fn around(&self) -> Around {
        let anchor = usize::from(self.anchor);
        let before = self.elements[..anchor].iter().rev().take_while(|e| e.is_one()).count();
        let each = |back: usize| {
            let mut around = Around { back: back as u8, ..Around::default() };
            let run = self.elements[anchor - back..].iter().take(8).take_while(|e| e.is_one());
            for (i, element) in run.enumerate() {
                let (mut all, mut any) = (0xff, 0);
                element.set.bytes().for_each(|b| (all, any) = (all & b, any | b));
                // Bits that are the same in all bytes of the set.
                let mask = !(all ^ any);
                around.mask |= u64::from(mask) << (8 * i);
                around.value |= u64::from(all & mask) << (8 * i);
            }
            around
        };
        // The place of the eight bytes where they say most.
        let all = (0..=before.min(6)).map(each);
        all.max_by_key(|around| around.mask.count_ones()).unwrap_or_default()
    }

    /// Whether it may lie around `at`, where one of its pairs is. Adds what it took to `work`.
    pub(crate) fn lies(&self, data: &[u8], at: usize, work: &mut usize) -> bool {
        let anchor = usize::from(self.anchor);
        let mut steps = STEPS_MAX;
        let (ahead, behind) = (&self.elements[anchor + 2..], &self.elements[..anchor]);
        let mut next = |i: usize| data.get(at + 2 + i).copied();
        let mut last = |i: usize| at.checked_sub(i + 1).and_then(|at| data.get(at)).copied();
        let fixed = |e: &&Element| e.min == e.max;
        // What lies at fixed distances first: it is soon told.
        let lies = fits(ahead.iter().take_while(fixed), &mut next, 0, &mut steps)
            && fits(behind.iter().rev().take_while(fixed), &mut last, 0, &mut steps)
            && fits(ahead.iter(), &mut next, 0, &mut steps)
            && fits(behind.iter().rev(), &mut last, 0, &mut steps);
        *work += LOOK_STEPS + (STEPS_MAX - steps) as usize;
        lies
    }
}

/// Eight bytes, of which some bits are known, from so many before a pair on.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Around {
    value: u64,
    mask: u64,
    back: u8,
}

impl Around {
    /// Whether what lies around the pair at `at` is like this; it may be where there are no eight bytes.
    #[inline(always)]
    pub(crate) fn may_lie(&self, data: &[u8], at: usize) -> bool {
        let there = at.checked_sub(usize::from(self.back)).and_then(|from| data.get(from..));
        match there.and_then(|there| there.first_chunk()) {
            Some(bytes) => u64::from_le_bytes(*bytes) & self.mask == self.value,
            None => true,
        }
    }
}

/// Whether the elements fit what `byte` gives from `at` on.
fn fits<'e>(
    mut elements: impl Iterator<Item = &'e Element> + Clone,
    byte: &mut dyn FnMut(usize) -> Option<u8>,
    mut at: usize,
    steps: &mut u32,
) -> bool {
    while let Some(element) = elements.next() {
        let mut left = element.min;
        if left > 1 && element.set == Set::ANY {
            // Whatever they are: it is enough that they are there.
            if byte(at + usize::from(left) - 1).is_none() {
                return false;
            }
            at += usize::from(std::mem::take(&mut left));
        }
        *steps = steps.saturating_sub(u32::from(left) / 8);
        for _ in 0..left {
            match byte(at) {
                Some(byte) if element.set.has(byte) => at += 1,
                Some(_) => return false,
                None => return false,
            }
        }
        if element.max > element.min {
            for _ in element.min..=element.max {
                *steps = steps.saturating_sub(1);
                if *steps == 0 || fits(elements.clone(), byte, at, steps) {
                    return true;
                }
                match byte(at) {
                    Some(byte) if element.set.has(byte) => at += 1,
                    Some(_) => return false,
                    None => return false,
                }
            }
            return false;
        }
    }
    true
}

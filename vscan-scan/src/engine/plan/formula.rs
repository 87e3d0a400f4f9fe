//! What has to hold for a rule to match, as far as it can be told before any rule runs.
//!
//! A formula says "may match" or "cannot match". It has no negation: what negates, counts downwards, or asks a
//! module for more than its presence, is [`Formula::Maybe`]. So it errs on one side only.

use super::facts::{Facts, Text};
use serde::{Deserialize, Serialize};

/// A necessary condition of a rule.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum Formula {
    /// Nothing is known.
    Maybe,
    /// Never true.
    Never,
    /// One literal of this pattern is in the data; patterns are numbered through the whole rule set.
    Pattern(u32),
    /// What surrounds a literal of a pattern lies there; numbered through the whole rule set.
    Confirm(u32),
    /// What a module says of the data; numbered through the whole rule set.
    Probe(u32),
    /// What one of the variables of a rule has to be like.
    Text(Text),
    /// The hash of the imports of a Windows program, in lower case.
    Imphash(String),
    /// The name of an export of a Windows program, in any case.
    Export(String),
    /// One of the byte strings, each byte with its mask, lies at this offset.
    At(Int, Vec<Vec<(u8, u8)>>),
    /// One of them begins between these offsets, both included.
    Within(Int, Int, Vec<Vec<(u8, u8)>>),
    /// A comparison of integers.
    Compare(Int, Order, Int),
    /// All of them.
    And(Vec<Formula>),
    /// One of them.
    Or(Vec<Formula>),
    /// At least so many of them.
    AtLeast(u32, Vec<Formula>),
}

/// An integer that the data's bytes and length decide.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum Int {
    /// A constant.
    Const(i64),
    /// The length of the data.
    Filesize,
    /// `uint16be(at)` and its like; undefined past the end.
    Read {
        /// 1, 2 or 4 bytes.
        width: u8,
        /// Most significant byte first.
        big: bool,
        /// `int16` and its like.
        signed: bool,
        /// Offset.
        at: Box<Int>,
    },
    /// A calculation of two integers.
    Calc(Calc, Box<Int>, Box<Int>),
}

/// How two integers are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum Order {
    /// `==`
    Eq,
    /// `!=`
    Ne,
    /// `<`
    Lt,
    /// `<=`
    Le,
    /// `>`
    Gt,
    /// `>=`
    Ge,
}

/// What is calculated of two integers. Division is left out: its errors make a rule undefined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum Calc {
    /// `+`
    Add,
    /// `-`
    Sub,
    /// `*`
    Mul,
    /// `&`
    And,
    /// `|`
    Or,
    /// `^`
    Xor,
}

impl Formula {
    /// All of the formulas, without those that say nothing.
    pub(crate) fn all(parts: impl IntoIterator<Item = Formula>) -> Self {
        let mut rest = Vec::new();
        for part in parts {
            match part {
                Formula::Maybe => {}
                Formula::Never => return Formula::Never,
                Formula::And(inner) => rest.extend(inner),
                part => rest.push(part),
            }
        }
        // What is cheap to ask, and most often false, first.
        rest.sort_by_key(Formula::cost);
        rest.dedup();
        match rest.len() {
            0 => Formula::Maybe,
            1 => rest.remove(0),
            _ => Formula::And(rest),
        }
    }

    /// One of the formulas.
    pub(crate) fn any(parts: impl IntoIterator<Item = Formula>) -> Self {
        let mut rest = Vec::new();
        for part in parts {
            match part {
                Formula::Maybe => return Formula::Maybe,
                Formula::Never => {}
                Formula::Or(inner) => rest.extend(inner),
                part => rest.push(part),
            }
        }
        rest.sort_by_key(Formula::cost);
        rest.dedup();
        match rest.len() {
            0 => Formula::Never,
            1 => rest.remove(0),
            _ => Formula::Or(rest),
        }
    }

    /// At least `n` of the formulas, more than none.
    pub(crate) fn at_least(n: usize, parts: Vec<Formula>) -> Self {
        let free = parts.iter().filter(|p| **p == Formula::Maybe).count();
        let rest: Vec<Formula> =
            parts.into_iter().filter(|p| !matches!(p, Formula::Maybe | Formula::Never)).collect();
        match n.saturating_sub(free) {
            0 => Formula::Maybe,
            n if n > rest.len() => Formula::Never,
            1 => Self::any(rest),
            n if n == rest.len() => Self::all(rest),
            n => Formula::AtLeast(n as u32, rest),
        }
    }

    fn cost(&self) -> u32 {
        match self {
            Formula::Maybe | Formula::Never => 0,
            Formula::Pattern(_) => 1,
            Formula::Compare(..) => 2,
            Formula::At(..) => 3,
            Formula::Text(_) => 4,
            Formula::Within(..) => 100,
            // The first one asked reads the imports.
            Formula::Imphash(_) => 50,
            Formula::Export(_) => 60,
            // Searches the data.
            Formula::Confirm(_) => 5000,
            // The first one asked takes longest.
            Formula::Probe(_) => 1 << 20,
            Formula::And(parts) => {
                // The costly ones are seldom reached behind something that is seldom true.
                let seldom = |part: &Formula| {
                    use Formula::{Export, Imphash, Pattern, Text};
                    matches!(part, Pattern(_) | Imphash(_) | Export(_) | Text(_))
                };
                let sum = parts.iter().fold(4, |sum: u32, part| sum.saturating_add(part.cost()));
                if parts.iter().any(seldom) { (sum >> 10).max(4) } else { sum }
            }
            Formula::Or(parts) | Formula::AtLeast(_, parts) => {
                parts.iter().fold(4, |sum: u32, part| sum.saturating_add(part.cost()))
            }
        }
    }

    /// Whether the formula may be true of the data; `seen` tells which patterns have a literal in it, `confirmed`
    /// what surrounds it, and `probed` what
    /// probes say.
    pub(crate) fn may_hold(
        &self,
        facts: &Facts<'_>,
        seen: &impl Fn(u32) -> bool,
        confirmed: &impl Fn(u32) -> bool,
        probed: &impl Fn(u32) -> bool,
    ) -> bool {
        let data = facts.data;
        match self {
            Formula::Text(text) => facts.may_be(text),
            Formula::Export(name) => facts.may_export(name),
            Formula::Imphash(hash) => facts.may_have_imports(hash),
            Formula::Probe(probe) => probed(*probe),
            Formula::Confirm(shapes) => confirmed(*shapes),
            Formula::Maybe => true,
            Formula::Never => false,
            Formula::Pattern(pattern) => seen(*pattern),
            Formula::At(at, forms) => at.value(data).is_some_and(|at| {
                let there = usize::try_from(at).ok().and_then(|at| data.get(at..));
                there.is_some_and(|there| forms.iter().any(|form| begins(there, form)))
            }),
            Formula::Within(from, to, forms) => {
                let (Some(from), Some(to)) = (from.value(data), to.value(data)) else {
                    return false;
                };
                let from = usize::try_from(from.max(0)).unwrap_or(usize::MAX);
                let to = usize::try_from(to.saturating_add(1)).unwrap_or(0).min(data.len());
                if to.saturating_sub(from) > WITHIN_MAX {
                    return true;
                }
                (from..to).any(|at| forms.iter().any(|form| begins(&data[at..], form)))
            }
            Formula::Compare(a, order, b) => match (a.value(data), b.value(data)) {
                (Some(a), Some(b)) => order.holds(a, b),
                _ => false,
            },
            Formula::And(parts) => {
                parts.iter().all(|part| part.may_hold(facts, seen, confirmed, probed))
            }
            Formula::Or(parts) => {
                parts.iter().any(|part| part.may_hold(facts, seen, confirmed, probed))
            }
            Formula::AtLeast(n, parts) => {
                let mut left = *n;
                parts.iter().any(|part| {
                    left -= u32::from(part.may_hold(facts, seen, confirmed, probed));
                    left == 0
                })
            }
        }
    }

    /// Whether it can hold only where a literal was seen: then nothing has to be asked where none was.
    pub(crate) fn needs_literal(&self) -> bool {
        match self {
            Formula::Maybe
            | Formula::Probe(_)
            | Formula::Confirm(_)
            | Formula::Text(_)
            | Formula::Imphash(_)
            | Formula::Export(_)
            | Formula::At(..)
            | Formula::Within(..)
            | Formula::Compare(..) => false,
            Formula::Never | Formula::Pattern(_) => true,
            Formula::And(parts) => parts.iter().any(Formula::needs_literal),
            Formula::Or(parts) => parts.iter().all(Formula::needs_literal),
            Formula::AtLeast(n, parts) => {
                let free = parts.iter().filter(|part| !part.needs_literal()).count();
                free < *n as usize
            }
        }
    }

    /// How seldom it holds, roughly: the [`worth`](crate::engine::needle::worth) of the literals it takes at least.
    pub(crate) fn strength(&self, of_pattern: &impl Fn(u32) -> u32) -> u32 {
        match self {
            Formula::Maybe => 0,
            Formula::Never => u32::MAX,
            Formula::Pattern(pattern) => of_pattern(*pattern),
            Formula::Imphash(_) => IMPHASH_STRENGTH,
            Formula::Text(_) | Formula::Export(_) => TEXT_STRENGTH,
            // What is seldom in a probe, names and hashes, stands beside it.
            Formula::Probe(_) => PROBE_STRENGTH,
            Formula::Confirm(_) | Formula::At(..) | Formula::Within(..) | Formula::Compare(..) => 0,
            Formula::And(parts) => {
                parts.iter().map(|part| part.strength(of_pattern)).max().unwrap_or(0)
            }
            Formula::Or(parts) => {
                parts.iter().map(|part| part.strength(of_pattern)).min().unwrap_or(0)
            }
            Formula::AtLeast(n, parts) => {
                let mut all: Vec<u32> =
                    parts.iter().map(|part| part.strength(of_pattern)).collect();
                all.sort_unstable();
                all.get(*n as usize - 1).copied().unwrap_or(u32::MAX)
            }
        }
    }

    /// Calls `f` with every pattern in it.
    pub(crate) fn patterns(&self, f: &mut impl FnMut(u32)) {
        match self {
            Formula::Pattern(pattern) => f(*pattern),
            Formula::And(parts) | Formula::Or(parts) | Formula::AtLeast(_, parts) => {
                parts.iter().for_each(|part| part.patterns(f));
            }
            Formula::Maybe
            | Formula::Never
            | Formula::Probe(_)
            | Formula::Confirm(_)
            | Formula::Text(_)
            | Formula::Imphash(_)
            | Formula::Export(_)
            | Formula::At(..)
            | Formula::Within(..)
            | Formula::Compare(..) => {}
        }
    }
}

/// How seldom a program has certain imports.
const IMPHASH_STRENGTH: u32 = 24;

/// How seldom what a module is asked for holds.
const PROBE_STRENGTH: u32 = 8;

/// How seldom an object, or what it exports, has a certain name; it may be a common one.
const TEXT_STRENGTH: u32 = 16;

/// Widest range that is searched.
const WITHIN_MAX: usize = 4096;

fn begins(data: &[u8], form: &[(u8, u8)]) -> bool {
    data.len() >= form.len() && form.iter().zip(data).all(|(&(value, mask), b)| b & mask == value)
}

impl Order {
    fn holds(self, a: i64, b: i64) -> bool {
        match self {
            Order::Eq => a == b,
            Order::Ne => a != b,
            Order::Lt => a < b,
            Order::Le => a <= b,
            Order::Gt => a > b,
            Order::Ge => a >= b,
        }
    }

    /// The same with the sides exchanged.
    pub(crate) fn turned(self) -> Self {
        match self {
            Order::Eq => Order::Eq,
            Order::Ne => Order::Ne,
            Order::Lt => Order::Gt,
            Order::Le => Order::Ge,
            Order::Gt => Order::Lt,
            Order::Ge => Order::Le,
        }
    }
}

impl Int {
    fn value(&self, data: &[u8]) -> Option<i64> {
        match self {
            Int::Const(n) => Some(*n),
            Int::Filesize => i64::try_from(data.len()).ok(),
            Int::Read { width, big, signed, at } => {
                let at = usize::try_from(at.value(data)?).ok()?;
                let bytes = data.get(at..)?.get(..usize::from(*width))?;
                let mut value = 0u32;
                for i in 0..bytes.len() {
                    value =
                        value << 8 | u32::from(bytes[if *big { i } else { bytes.len() - 1 - i }]);
                }
                Some(match (width, signed) {
                    (1, true) => i64::from(value as u8 as i8),
                    (2, true) => i64::from(value as u16 as i16),
                    (_, true) => i64::from(value as i32),
                    (_, false) => i64::from(value),
                })
            }
            Int::Calc(calc, a, b) => {
                let (a, b) = (a.value(data)?, b.value(data)?);
                Some(match calc {
                    Calc::Add => a.wrapping_add(b),
                    Calc::Sub => a.wrapping_sub(b),
                    Calc::Mul => a.wrapping_mul(b),
                    Calc::And => a & b,
                    Calc::Or => a | b,
                    Calc::Xor => a ^ b,
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(width: u8, big: bool, signed: bool, at: i64) -> Int {
        Int::Read { width, big, signed, at: Box::new(Int::Const(at)) }
    }

    #[test]
    fn integers_are_read_as_yara_reads_them() {
        let data = b"\x80\x01\xff\xfe\x05";
        for (int, value) in [
            (read(1, false, false, 0), Some(0x80)),
            (read(1, false, true, 0), Some(-128)),
            (read(2, false, false, 0), Some(0x0180)),
            (read(2, true, false, 0), Some(0x8001)),
            (read(2, true, true, 2), Some(-2)),
            (read(4, false, false, 1), Some(0x05fe_ff01)),
            (read(4, true, true, 1), Some(0x01ff_fe05)),
            (read(4, false, false, 2), None),
            (read(1, false, false, -1), None),
            (read(1, false, false, i64::MAX), None),
            (Int::Filesize, Some(5)),
        ] {
            assert_eq!(int.value(data), value, "{int:?}");
        }
    }

    #[test]
    fn what_is_undefined_does_not_hold_and_what_is_unknown_may() {
        let none = |_: u32| false;
        let past = Formula::Compare(read(4, false, false, 100), Order::Ne, Int::Const(1));
        let of = |data| Facts::unnamed(data);
        assert!(!past.may_hold(&of(b"abc"), &none, &none, &none));
        let at = Formula::At(Int::Const(1), vec![vec![(b'B', 0xdf), (b'c', 0xff)]]);
        assert!(
            at.may_hold(&of(b"abc"), &none, &none, &none)
                && at.may_hold(&of(b"aBc"), &none, &none, &none)
        );
        assert!(
            !at.may_hold(&of(b"ab"), &none, &none, &none)
                && !at.may_hold(&of(b"abC"), &none, &none, &none)
        );
        assert_eq!(Formula::any([at.clone(), Formula::Maybe]), Formula::Maybe);
        assert_eq!(Formula::all([at.clone(), Formula::Maybe]), at);
    }

    #[test]
    fn at_least_counts_what_is_unknown_for_it() {
        use Formula::{Maybe, Never, Pattern};
        assert_eq!(Formula::at_least(1, vec![Maybe, Pattern(0)]), Maybe);
        assert_eq!(Formula::at_least(2, vec![Maybe, Pattern(0)]), Pattern(0));
        assert_eq!(Formula::at_least(3, vec![Maybe, Pattern(0)]), Never);
        let two = Formula::at_least(2, vec![Pattern(0), Pattern(1), Pattern(2)]);
        assert!(two.needs_literal());
        let of = |data| Facts::unnamed(data);
        let none = |_: u32| false;
        assert!(
            !two.may_hold(&of(b""), &|p| p == 1, &none, &|_| true)
                && two.may_hold(&of(b""), &|p| p != 1, &none, &|_| false)
        );
    }
}

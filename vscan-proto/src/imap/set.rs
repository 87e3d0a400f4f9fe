//! Sets of numbers, `1:3,7` (RFC 9051 section 9, `sequence-set`).

use std::fmt;
use std::ops::RangeInclusive;

/// Ranges in one set that is read; what servers send about a folder of a million messages stays below it.
const RANGES_MAX: usize = 200_000;

/// A set of message numbers or identifiers, as ranges in the order they came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NumberSet(Vec<RangeInclusive<u32>>);

impl NumberSet {
    /// The shortest set of these numbers; `numbers` ascends.
    #[must_use]
    pub fn of(numbers: &[u32]) -> Self {
        let mut ranges: Vec<RangeInclusive<u32>> = Vec::new();
        for &number in numbers {
            match ranges.last_mut() {
                Some(last) if last.end().checked_add(1) == Some(number) => {
                    *last = *last.start()..=number;
                }
                _ => ranges.push(number..=number),
            }
        }
        Self(ranges)
    }

    /// Reads a set; `None` if it is none, has `*` in it, or is too long.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let mut ranges = Vec::new();
        for range in bytes.split(|byte| *byte == b',') {
            if ranges.len() == RANGES_MAX {
                return None;
            }
            let mut ends = range.splitn(2, |byte| *byte == b':');
            let first: u32 = super::value::number(ends.next()?)?;
            let last = ends.next().map_or(Some(first), super::value::number)?;
            ranges.push(first.min(last)..=first.max(last));
        }
        Some(Self(ranges))
    }

    /// Whether a number is in it.
    #[must_use]
    pub fn contains(&self, number: u32) -> bool {
        self.0.iter().any(|range| range.contains(&number))
    }

    /// How many numbers it has, doubled ones counted twice.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.iter().map(|range| u64::from(range.end() - range.start()) + 1).sum()
    }

    /// Its numbers, range by range. A few bytes may stand for four thousand million: see [`count`](Self::count).
    pub fn numbers(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.iter().cloned().flatten()
    }

    /// Adds another set's numbers; false, and nothing is added: it would become too long.
    #[must_use]
    pub fn extend(&mut self, other: &Self) -> bool {
        let fits = self.0.len() + other.0.len() <= RANGES_MAX;
        if fits {
            self.0.extend(other.0.iter().cloned());
        }
        fits
    }

    /// Sets of at most `ranges` ranges each that make up this one: command lines have limits.
    pub fn split(&self, ranges: usize) -> impl Iterator<Item = Self> + '_ {
        self.0.chunks(ranges.max(1)).map(|chunk| Self(chunk.to_vec()))
    }
}

impl fmt::Display for NumberSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, range) in self.0.iter().enumerate() {
            let comma = if n == 0 { "" } else { "," };
            let (first, last) = (range.start(), range.end());
            if first == last {
                write!(f, "{comma}{first}")?;
            } else {
                write!(f, "{comma}{first}:{last}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_as_short_as_can_be_and_read_as_written() {
        for (numbers, text) in [
            (&[1, 2, 3, 7, 9, 10][..], "1:3,7,9:10"),
            (&[u32::MAX - 1, u32::MAX], "4294967294:4294967295"),
            (&[5], "5"),
        ] {
            let set = NumberSet::of(numbers);
            assert_eq!(set.to_string(), text);
            assert_eq!(NumberSet::parse(text.as_bytes()), Some(set.clone()));
            assert_eq!(set.numbers().collect::<Vec<_>>(), numbers);
            assert_eq!(set.count(), numbers.len() as u64);
        }
        let backwards = NumberSet::parse(b"9:7").unwrap();
        assert!(backwards.contains(8) && !backwards.contains(6));
        assert_eq!(NumberSet::parse(b"1:4294967295").unwrap().count(), u64::from(u32::MAX));
        for bad in ["", "1,", "*", "1:*", "-1", "4294967296", "1:2:3", "a"] {
            assert_eq!(NumberSet::parse(bad.as_bytes()), None, "{bad}");
        }
        assert_eq!(
            NumberSet::of(&[1, 3, 5]).split(2).map(|s| s.to_string()).collect::<Vec<_>>(),
            ["1,3", "5"]
        );
    }
}

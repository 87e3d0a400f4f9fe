//! What is let pass though something is found in it: files by their hash, detections by their name, both until a day.
//!
//! Lists are text in `*.allow`: on each line `hash HASH [SIZE]` or `name PATTERN`, with `until YYYY-MM-DD` behind it. The
//! day is the last on which the line counts (UTC); without one it counts until it is removed. ClamAV's `.fp` and `.sfp`
//! are lists of hashes without an end.

use super::hashes::{self, Asked, Entry, Hashes};
use crate::glob::{Case, Glob};
use std::collections::BTreeMap;

/// Seconds of a day.
const DAY: i64 = 86_400;

/// The lines of all lists.
#[derive(Debug, Default)]
pub struct Allowed {
    /// Patterns of names and the last day of each, counted from 1970-01-01. Letters match their own case: what lets
    /// something pass is to let pass what it says.
    names: Vec<(Glob, Option<i64>)>,
    /// Hashes by their last day.
    hashes: BTreeMap<Option<i64>, Vec<Entry>>,
    built: Vec<(Option<i64>, Hashes)>,
    count: u64,
}

impl Allowed {
    /// Reads a list; its lines with what is wrong with them.
    pub fn read(&mut self, text: &[u8]) -> Vec<(usize, String)> {
        let mut wrong = Vec::new();
        for (number, line) in text.split(|&b| b == b'\n').enumerate() {
            let line = String::from_utf8_lossy(line);
            if let Err(message) = self.line(line.trim()) {
                wrong.push((number + 1, message));
            }
        }
        wrong
    }

    fn line(&mut self, line: &str) -> Result<(), String> {
        if line.is_empty() || line.starts_with('#') {
            return Ok(());
        }
        let (rest, until) = match line.rsplit_once(" until ") {
            Some((rest, date)) => (
                rest,
                Some(day(date.trim()).ok_or_else(|| format!("`{date}` is no date YYYY-MM-DD"))?),
            ),
            None => (line, None),
        };
        match rest.split_once(char::is_whitespace) {
            Some(("name", pattern)) => {
                self.names.push((Glob::with(pattern.trim(), Case::Exact), until));
                self.count += 1;
                Ok(())
            }
            Some(("hash", hash)) => {
                let entry = hashes::line(hash)?.ok_or("no hash")?;
                self.add(vec![entry], until);
                Ok(())
            }
            Some(_) | None => Err("neither `hash HASH [SIZE]` nor `name PATTERN`".into()),
        }
    }

    /// Adds hashes.
    pub fn add(&mut self, entries: Vec<Entry>, until: Option<i64>) {
        self.count += entries.len() as u64;
        self.hashes.entry(until).or_default().extend(entries);
    }

    /// Makes the lists ready to be asked.
    ///
    /// # Errors
    /// None that the lists themselves could cause.
    pub fn finish(&mut self) -> Result<(), String> {
        for (until, entries) in std::mem::take(&mut self.hashes) {
            self.built.push((until, Hashes::of_image(hashes::image(entries))?));
        }
        Ok(())
    }

    /// Number of lines.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Whether a detection of this name counts, at this time in seconds since 1970.
    #[must_use]
    pub fn name(&self, name: &str, now: i64) -> bool {
        self.names.iter().any(|(pattern, until)| valid(*until, now) && pattern.matches(name))
    }

    /// Whether detections in this file count.
    #[must_use]
    pub fn file(&self, data: &[u8], now: i64) -> bool {
        let mut asked = Asked::new(data);
        self.built.iter().any(|(until, list)| valid(*until, now) && asked.of(list).is_some())
    }
}

fn valid(until: Option<i64>, now: i64) -> bool {
    until.is_none_or(|day| now < (day + 1) * DAY)
}

/// A date as the number of days since 1970-01-01, in the Gregorian calendar.
fn day(date: &str) -> Option<i64> {
    let mut fields = date.split('-');
    let mut number = |len: usize| {
        let field = fields.next().filter(|f| f.len() == len)?;
        field.parse::<i64>().ok()
    };
    let (year, month, day) = (number(4)?, number(2)?, number(2)?);
    if fields.next().is_some() || year < 1970 {
        return None;
    }
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let lengths = [31, if leap { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let month = usize::try_from(month).ok().filter(|m| (1..=12).contains(m))?;
    if !(1..=lengths[month - 1]).contains(&day) {
        return None;
    }
    let before = year - 1;
    let years = (year - 1970) * 365 + (before / 4 - before / 100 + before / 400)
        - (1969 / 4 - 1969 / 100 + 1969 / 400);
    Some(years + lengths[..month - 1].iter().sum::<i64>() + day - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_those_of_the_calendar() {
        for (date, number) in [
            ("1970-01-01", Some(0)),
            ("1972-03-01", Some(790)),
            ("2000-02-29", Some(11_016)),
            ("2026-11-22", Some(20_779)),
            ("2100-03-01", Some(47_541)),
            ("2100-02-29", None),
            ("2026-13-01", None),
            ("2026-1-1", None),
            ("2026-01-01-01", None),
        ] {
            assert_eq!(day(date), number, "{date}");
        }
    }

    #[test]
    fn a_line_counts_through_its_last_day() {
        let mut allowed = Allowed::default();
        let text = b"# ours\nname Test_*_? until 2026-11-22\nname Always\n\
            hash 5d41402abc4b2a76b9719d911017c592 5 until 1970-01-02\n";
        assert_eq!(allowed.read(text), []);
        allowed.finish().unwrap();
        let day = 20_779 * DAY;
        assert!(allowed.name("Test_of_1", day) && allowed.name("Test_of_1", day + DAY - 1));
        assert!(!allowed.name("Test_of_1", day + DAY) && allowed.name("Always", day + DAY));
        assert!(!allowed.name("Test_of_12", day));
        assert!(allowed.file(b"hello", DAY) && !allowed.file(b"hello", 2 * DAY));
        assert!(!allowed.file(b"hallo", 0));
        assert_eq!(allowed.count(), 3);
        for wrong in ["name", "file x", "hash zz", "name x until tomorrow"] {
            assert_eq!(Allowed::default().read(wrong.as_bytes()).len(), 1, "{wrong}");
        }
    }
}

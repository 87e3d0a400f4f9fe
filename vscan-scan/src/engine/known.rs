//! What the engines have found in parts that came before: the attachments of a mass mailing, the library in every
//! package. What allow lists take away is not applied to it yet, for that changes from day to day; and what rules find that
//! ask for the time is not in it.
//!
//! Each worker has its own, for one that was taken over by what it read must not speak for the others.

use crate::object::{Hit, Part};
use std::collections::HashMap;

/// More detections in one part are not remembered: room is for what is clean, or has its one name.
const HITS_MAX: usize = 8;

/// Everything that shapes what engines say of a part: its bytes and what rules can ask of it besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key([u8; 32]);

impl Key {
    pub(super) fn of(part: &Part<'_>) -> Self {
        Self::of_begun(part, blake3::Hasher::new(), 0)
    }

    /// The same of a part of whose bytes so many are in the hash already.
    pub(super) fn of_begun(part: &Part<'_>, mut hasher: blake3::Hasher, begun: usize) -> Self {
        hasher.update(&part.data[begun..]);
        // Lengths stand behind, so that nothing can be taken for the bytes before it.
        let mut frame = |bytes: &[u8]| {
            hasher.update(bytes).update(&(bytes.len() as u64).to_le_bytes());
        };
        part.path.iter().for_each(|name| frame(name.as_bytes()));
        frame(part.name.as_bytes());
        frame(part.kind.label().as_bytes());
        frame(&[u8::from(part.detail)]);
        hasher.update(&(part.path.len() as u64).to_le_bytes());
        hasher.update(&(part.data.len() as u64).to_le_bytes());
        Self(*hasher.finalize().as_bytes())
    }
}

/// Two halves: what is asked for stays in the young one, the old one is forgotten as a whole.
#[derive(Debug, Default)]
pub(super) struct Known {
    young: HashMap<Key, Box<[Hit]>>,
    old: HashMap<Key, Box<[Hit]>>,
    /// Parts in one half.
    half: usize,
    /// Answers since the last [`Known::take_count`].
    answers: u32,
}

impl Known {
    /// Remembers `most` parts; 0: none.
    pub(super) fn new(most: u32) -> Self {
        Self { half: most as usize / 2, ..Self::default() }
    }

    /// Whether it remembers anything at all.
    pub(super) fn is_on(&self) -> bool {
        self.half > 0
    }

    /// Appends what was found in the part, if it came before.
    pub(super) fn recall(&mut self, key: &Key, hits: &mut Vec<Hit>) -> bool {
        if let Some(found) = self.young.get(key) {
            hits.extend_from_slice(found);
        } else if let Some(found) = self.old.remove(key) {
            hits.extend_from_slice(&found);
            self.put(*key, found);
        } else {
            return false;
        }
        self.answers += 1;
        true
    }

    /// Remembers what was found in a part by engines of which none failed.
    pub(super) fn remember(&mut self, key: Key, hits: &[Hit]) {
        if self.is_on() && hits.len() <= HITS_MAX && hits.iter().all(|hit| hit.detail.is_none()) {
            self.put(key, hits.into());
        }
    }

    fn put(&mut self, key: Key, found: Box<[Hit]>) {
        if self.young.len() >= self.half {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, found);
    }

    /// How many parts it knew since this was asked last.
    pub(super) fn take_count(&mut self) -> u32 {
        std::mem::take(&mut self.answers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sniff::Kind;

    fn key(n: u32) -> Key {
        let data = n.to_le_bytes();
        Key::of(&Part { data: &data, kind: Kind::Data, name: "", path: &[], detail: false })
    }

    #[test]
    fn what_is_asked_for_stays_and_the_rest_is_forgotten_in_time() {
        let mut known = Known::new(8);
        let mut hits = Vec::new();
        known.remember(key(0), &[Hit::from("A")]);
        for n in 1..100 {
            known.remember(key(n), &[]);
            assert!(known.recall(&key(0), &mut hits), "asked for each time, gone at {n}");
            assert!(known.young.len() + known.old.len() <= 8);
        }
        assert_eq!((hits.len(), hits[0].name.as_str()), (99, "A"));
        assert!(!known.recall(&key(1), &mut hits));
        assert_eq!((known.take_count(), known.take_count()), (99, 0));
    }

    #[test]
    fn nothing_is_remembered_when_it_is_off_or_too_long() {
        let mut known = Known::new(0);
        known.remember(key(0), &[]);
        assert!(!known.recall(&key(0), &mut Vec::new()));
        let mut known = Known::new(8);
        known.remember(key(0), &vec![Hit::from("A"); HITS_MAX + 1]);
        known.remember(key(1), &[Hit { detail: Some(Default::default()), ..Hit::from("A") }]);
        assert!(known.young.is_empty());
    }

    #[test]
    fn everything_that_a_rule_can_ask_for_makes_another_key() {
        let names = ["a".to_owned(), "b".to_owned()];
        let joined = ["ab".to_owned()];
        let part = Part { data: b"x", kind: Kind::Text, name: "b", path: &names, detail: false };
        let others = [
            Part { data: b"y", ..part },
            Part { data: b"", ..part },
            Part { kind: Kind::Data, ..part },
            Part { name: "c", ..part },
            Part { path: &joined, ..part },
            Part { path: &[], ..part },
            Part { detail: true, ..part },
        ];
        let mut keys: Vec<Key> = others.iter().chain([&part]).map(Key::of).collect();
        assert_eq!(Key::of(&part), keys[others.len()]);
        keys.sort_by_key(|key| key.0);
        keys.dedup();
        assert_eq!(keys.len(), others.len() + 1);
    }
}

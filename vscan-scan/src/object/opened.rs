//! What was opened of an object so far, to know it again where it lies plainly in a container: a stored member is found by
//! the container's directory, and once more by its first bytes.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

/// Bytes by which archives are told apart at first: the header of a cabinet; no archive of files is shorter.
const START: usize = 36;

/// Different archives with one beginning that are kept; those of more are opened again.
const SAME_START_MAX: usize = 8;

/// Archives that were opened, by length and hash of their bytes.
#[derive(Debug)]
pub(super) struct Opened {
    /// Its keys are this walk's own: an object cannot be made to collide.
    state: RandomState,
    archives: HashMap<u64, Vec<(usize, u64)>>,
    /// Bytes that may still be hashed to know one again.
    budget: u64,
}

impl Opened {
    /// `budget`: bytes that may be hashed to know archives again; past it nothing is known.
    pub(super) fn new(budget: u64) -> Self {
        Self { state: RandomState::new(), archives: HashMap::new(), budget }
    }

    fn start(&self, data: &[u8]) -> u64 {
        self.state.hash_one(&data[..data.len().min(START)])
    }

    /// Keeps that these bytes were opened.
    pub(super) fn keep(&mut self, data: &[u8]) {
        let archives = self.archives.entry(self.start(data)).or_default();
        if archives.len() < SAME_START_MAX {
            archives.push((data.len(), self.state.hash_one(data)));
        }
    }

    /// Whether the data begins with something that was opened.
    pub(super) fn knows(&mut self, data: &[u8]) -> bool {
        let Some(archives) = self.archives.get(&self.start(data)) else { return false };
        archives.iter().any(|&(len, hash)| {
            let Some(data) = data.get(..len).filter(|_| len as u64 <= self.budget) else {
                return false;
            };
            self.budget -= len as u64;
            self.state.hash_one(data) == hash
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_opened_is_known_where_it_lies_and_nothing_else() {
        let mut opened = Opened::new(10_000);
        let archive: Vec<u8> = (0..1000u32).map(|i| (i * 7) as u8).collect();
        opened.keep(&archive);
        let around = [&archive[..], b"more"].concat();
        assert!(opened.knows(&archive) && opened.knows(&around));
        assert!(!opened.knows(&around[1..]) && !opened.knows(&archive[..999]));
        let mut other = around.clone();
        other[999] ^= 1;
        assert!(!opened.knows(&other));
        // The budget is used up in the end.
        assert!((0..20).any(|_| !opened.knows(&archive)));
    }
}

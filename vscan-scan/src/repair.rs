//! What a repair is asked for and what it answers with: orders for parts in, edits of the object out.
//!
//! The types alone, for both sides of the socket. How a portion is found, removed, replaced or cleaned is in
//! `mail::repair`. The edits are applied by whoever holds the object; the result is a new object that has
//! to be scanned like any other.

use serde::{Deserialize, Serialize};

/// What may be done with an infected portion of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Remedy {
    /// The infection is taken out and the portion stays: macros out of documents, members out of archives.
    Clean,
    /// The portion's content is overwritten; its place, its fields and its length stay.
    Scramble,
    /// A text takes the portion's place.
    Replace,
    /// The portion is removed with its delimiter.
    Strip,
}

impl Remedy {
    /// The word for it, as in the configuration, e.g. `strip`.
    pub fn as_str(self) -> &'static str {
        match self {
            Remedy::Clean => "clean",
            Remedy::Scramble => "scramble",
            Remedy::Replace => "replace",
            Remedy::Strip => "strip",
        }
    }
}

/// What is to be done with one part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// Its number, as in [`crate::report::Finding::part`] or [`crate::report::Unread::part`].
    pub part: u32,
    /// The remedies to try, in this order; the first that is possible is taken.
    pub remedies: Vec<Remedy>,
}

/// All that is to be done with an object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// One order for each part that must not stay as it is. May be empty: then only the header is changed.
    pub orders: Vec<Order>,
    /// The text that takes the place of a portion ([`Remedy::Replace`]), ready to be read; any line ends.
    pub notice: String,
    /// Header fields put on top of the message, name and value; fields of these names that are there already
    /// are removed. Files have no header: there these are left out.
    pub fields: Vec<(String, String)>,
    /// Put in front of the subject.
    pub subject_prefix: Option<String>,
    /// Whether portions inside signatures may be edited (multipart/signed, S/MIME, OpenPGP).
    pub edit_signed: bool,
    /// The notice takes the place of the whole message, whatever it is: of its header only what tells who wrote what to
    /// whom and when stays. There are no orders then.
    pub substitute: bool,
    /// Bytes that the edited object may have at most.
    pub size_max: u64,
}

/// A change of the object: `len` bytes from offset `at` become `with`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Edit {
    /// Offset in the original object.
    pub at: u64,
    /// Bytes taken away there; may be 0.
    pub len: u64,
    /// What takes their place; may be empty.
    #[serde(with = "serde_bytes")]
    pub with: Vec<u8>,
}

/// What was done about one order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// The part of the order.
    pub part: u32,
    /// Name of the portion that was changed, which is the part or holds it.
    pub name: String,
    /// The remedy that was taken.
    pub remedy: Remedy,
    /// What it did, in words, e.g. `macros removed`.
    pub detail: String,
}

/// A repair that is possible.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repaired {
    /// Sorted by place, not overlapping, inside the object.
    pub edits: Vec<Edit>,
    /// What was done, in the sequence of the orders.
    pub done: Vec<Done>,
}

/// The answer to a [`Plan`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// These edits do what was asked for.
    Repaired(Repaired),
    /// It cannot be done: the next treatment is to be tried.
    Unrepairable {
        /// Why, in words.
        why: String,
    },
}

impl Repaired {
    /// The edited object.
    ///
    /// Edits that are out of order or out of bounds, which [`Answer::Repaired`] never has, are left out.
    pub fn apply(&self, object: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(object.len());
        let mut at = 0;
        for edit in &self.edits {
            let (Ok(start), Ok(len)) = (usize::try_from(edit.at), usize::try_from(edit.len)) else {
                continue;
            };
            let Some(end) = start.checked_add(len).filter(|&e| e <= object.len() && start >= at)
            else {
                continue;
            };
            out.extend_from_slice(&object[at..start]);
            out.extend_from_slice(&edit.with);
            at = end;
        }
        out.extend_from_slice(&object[at..]);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_are_applied_where_they_say() {
        let edit = |at, len, with: &str| Edit { at, len, with: with.as_bytes().to_vec() };
        let repaired = Repaired {
            edits: vec![edit(0, 0, "top "), edit(1, 2, ""), edit(4, 1, "xyz"), edit(6, 0, "!")],
            done: vec![],
        };
        assert_eq!(repaired.apply(b"abcdef"), b"top adxyzf!");
        // What no answer contains must not panic either.
        let wrong = Repaired { edits: vec![edit(4, 9, "a"), edit(u64::MAX, 1, "")], done: vec![] };
        assert_eq!(wrong.apply(b"abcdef"), b"abcdef");
    }
}

//! Taking an infection out of a document or an archive, so that the rest of it stays usable.

use crate::sniff::Kind;

/// A part on the way from a portion down to what is infected.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Member<'a> {
    /// Its name in its container.
    pub(crate) name: &'a str,
    /// Its type.
    pub(crate) kind: Kind,
    /// [`crate::object::hash`] of its bytes.
    pub(crate) hash: u64,
}

/// Cleans `content`; each chain leads from one of its members to something infected, and is empty where the
/// content itself is. Gives the new content and what was done.
///
/// # Errors
/// Why it cannot be cleaned, in words.
pub(crate) fn clean(
    kind: Kind,
    _content: &[u8],
    _chains: &[Vec<Member<'_>>],
    _most: u64,
) -> Result<(Vec<u8>, String), String> {
    Err(format!("{} cannot be cleaned", kind.label()))
}

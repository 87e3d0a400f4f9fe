//! `[scan.cache]`: how much is remembered of what was scanned. What that is, is `crate::scanner::cache`'s business.

use super::read::{Reader, Table, Wrong};
use super::value::{OrNone, Size};

/// `[scan.cache]`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cache {
    /// Bytes of reports that are kept; none: everything is scanned anew.
    pub memory: Option<u64>,
}

/// Below this a cache holds a handful of reports, or none.
const MEMORY_MIN: u64 = 1 << 20;

impl Default for Cache {
    /// 64 MiB: some 60,000 reports on mail with an attachment.
    fn default() -> Self {
        Self { memory: Some(64 << 20) }
    }
}

pub(super) fn read(r: &mut Reader<'_>, scan: &mut Table<'_, '_>) -> Cache {
    let mut t = scan.table(r, "cache");
    let memory = match t.opt::<OrNone<Size>>(r, "memory").map(OrNone::into_option) {
        Some(memory) => memory.map(|Size(bytes)| bytes),
        None => Cache::default().memory,
    };
    if memory.is_some_and(|bytes| bytes < MEMORY_MIN) {
        let wrong = Wrong::new("`scan.cache.memory` must be at least 1 MiB");
        r.report(t.span_of("memory"), wrong.help("\"none\" turns it off"));
    }
    t.finish(r);
    Cache { memory }
}

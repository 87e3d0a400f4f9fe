//! How much of an object is read. Reaching a limit is never `clean`: it is reported with its reason.

use serde::{Deserialize, Serialize};

/// The limits of a scan. Serialised by the supervisor, read by the scanner process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Bytes of the object and of any one part. 256 MiB: above what mail servers accept and what
    /// attackers send, below what would hold a worker for longer than a minute.
    pub object_size: u64,
    /// Bytes of all parts of an object together, the object itself not counted. Twice `object_size`.
    pub unpacked_size: u64,
    /// Decoded bytes for each encoded byte of one part. Deflate reaches 1032 at best; documents and
    /// logs stay below 100. Looked at above [`RATIO_FLOOR`] only.
    pub ratio: u32,
    /// Parts inside parts: attached messages, multiparts, archives. Real mail stays below 15.
    pub depth: u32,
    /// Parts of one object. A large software archive has a few thousand.
    pub members: u32,
    /// Header fields of one message or MIME part. Mailing-list mail has below 200.
    pub headers: u32,
    /// Bytes of the header of one message or MIME part. Postfix reads 100 KiB.
    pub header_bytes: u32,
    /// Seconds of wall-clock time for one object. The gateway kills the worker a little later.
    pub seconds: u32,
    /// Bytes of memory that a worker may take beyond what it shares with the zygote. Room for
    /// `unpacked_size`, because parts of nested archives exist at the same time, and as much again
    /// for the engines.
    pub memory: u64,
    /// Parts whose findings a worker remembers, so that the attachment of a mass mailing goes through its engines
    /// once; 0: none. At some 100 bytes each, 1.6 MB of `memory`.
    pub known_parts: u32,
}

/// Decoded bytes below which [`Limits::ratio`] is not looked at: 8 MiB of zeros harm nobody.
pub const RATIO_FLOOR: u64 = 8 << 20;

/// The same for all parts of an object together, over the bytes of the object: many small bombs are a large one.
pub const RATIO_FLOOR_ALL: u64 = 64 << 20;

/// Most threads of one worker. A part seldom needs more than a dozen units of rules, and the longest of them bounds the
/// whole.
pub const THREADS_MAX: u32 = 16;

impl Default for Limits {
    fn default() -> Self {
        Self {
            object_size: 256 << 20,
            unpacked_size: 512 << 20,
            ratio: 250,
            depth: 32,
            members: 10_000,
            headers: 1_000,
            header_bytes: 1 << 20,
            seconds: 60,
            memory: 1 << 30,
            known_parts: 16_384,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_limits_are_refused_and_missing_ones_are_defaults() {
        let limits: Limits = serde_json::from_str(r#"{"depth": 3}"#).unwrap();
        assert_eq!(limits, Limits { depth: 3, ..Limits::default() });
        assert!(serde_json::from_str::<Limits>(r#"{"dpeth": 3}"#).is_err());
    }
}

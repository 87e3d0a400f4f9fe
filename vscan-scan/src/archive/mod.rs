//! Archives: each decoder hands its members to the walk, which keeps the limits and notes what was not read.
//!
//! Where two views of an archive are possible, both are taken: what the directory says and what lies in
//! between. A member that was read twice costs time; one that was not read at all costs more.

pub(crate) mod ar;
pub(crate) mod arj;
pub(crate) mod cab;
pub(crate) mod chm;
pub(crate) mod compress;
pub(crate) mod cpio;
mod guard;
mod implode;
pub(crate) mod iso;
pub(crate) mod lha;
#[expect(unsafe_code, reason = "RAR has no free decoder but libarchive's, which is C")]
mod libarchive;
pub(crate) mod lz4;
pub(crate) mod nsis;
mod pump;
pub(crate) mod rar;
pub(crate) mod rpm;
pub(crate) mod sevenz;
pub(crate) mod sis;
mod sparse;
pub(crate) mod stream;
pub(crate) mod szdd;
pub(crate) mod tar;
pub(crate) mod udf;
pub(crate) mod zip;
mod zip_crypto;
pub(crate) mod zip_method;

pub(crate) use guard::caught;
pub(crate) use pump::{Decode as PumpDecode, Pump, malformed};

#[cfg(feature = "engine")]
pub(crate) use libarchive::prepare;

/// A member's name for a report: bytes that are not UTF-8 are replaced.
pub(crate) fn name(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

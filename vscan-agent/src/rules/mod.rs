//! New sets of rules: fetched ([`fetch`]), unpacked ([`unpack`]), and kept side by side, one of them in force ([`store`]).
//!
//! What a set is worth is not decided here: the command loads it with the scanner and tries it on clean files before it
//! puts it in force. Nothing of a set is looked at before its checksum and signature agree.

pub mod fetch;
pub mod store;
pub mod unpack;

use std::io;
use std::path::PathBuf;

/// Why a set was not taken.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file system failed.
    #[error("{path}: {error}")]
    Io {
        /// Where.
        path: PathBuf,
        /// How.
        error: io::Error,
    },
    /// The server failed, or cannot be reached.
    #[error("{url}: {error}")]
    Http {
        /// What was asked for.
        url: String,
        /// How.
        error: Box<ureq::Error>,
    },
    /// Nothing would tell who made it.
    #[error(
        "http can be altered on its way: name an https URL, a public key (scan.update.public_key) or --sha256"
    )]
    Unprotected,
    /// A signature is wanted and not there.
    #[error("there is no signature at {0}")]
    Unsigned(String),
    /// The signature is not one of this key over these bytes.
    #[error("the signature does not agree: {0}")]
    Signature(minisign_verify::Error),
    /// The signature is older than that of the set in force.
    #[error("was signed before the set in force: --force takes it all the same")]
    Older,
    /// The checksum is another one.
    #[error("the SHA-256 is {is}, and {told} tells another one")]
    Checksum {
        /// Of what is here.
        is: String,
        /// Who says otherwise.
        told: String,
    },
    /// It is larger than it may be.
    #[error("is larger than {0} bytes (scan.update.size_max)")]
    TooLarge(u64),
    /// It cannot be unpacked.
    #[error("{0}")]
    Malformed(String),
    /// Another update is under way.
    #[error("another update is under way")]
    Busy,
}

/// For errors of the file system, with their place.
pub(crate) fn at(path: &std::path::Path) -> impl FnOnce(io::Error) -> Error + use<'_> {
    move |error| Error::Io { path: path.to_owned(), error }
}

#[cfg(test)]
mod tests;

//! The scanner: objects in, reports out.
//!
//! With neither feature only [`formats`], [`glob`], [`report`], [`repair`], [`limits`] and [`wire`] exist: what a client of the scanner process
//! needs. `decode` adds the decoders; they hold no unsafe code. `engine` adds yara-x and the scanner process.

#![deny(unsafe_code)]

pub mod channel;
pub mod formats;
pub mod glob;
pub mod limits;
pub mod repair;
pub mod report;
pub mod wire;

#[cfg(feature = "decode")]
mod archive;
#[cfg(feature = "decode")]
mod bytes;
#[cfg(feature = "decode")]
mod clean;
#[cfg(feature = "decode")]
mod document;
#[cfg(feature = "decode")]
mod mail;
#[cfg(feature = "decode")]
pub mod object;
#[cfg(feature = "decode")]
pub mod sniff;

#[cfg(feature = "engine")]
pub mod engine;
#[cfg(feature = "engine")]
pub mod process;

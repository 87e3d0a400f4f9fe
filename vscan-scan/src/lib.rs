//! The scanner: objects in, reports out.
//!
//! Without the feature `engine` only [`report`] and [`wire`] exist: what a client of the scanner process needs.

pub mod report;
pub mod wire;

//! The client of the scanner process.

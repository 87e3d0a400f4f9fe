//! Decoders of other crates may panic over hostile bytes. Here that is an error of theirs like any other: what was
//! decoded before still counts, and the rest of the object is still read.

use std::io::{self, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// A reader that ends with an error when the one inside panics. It must not be used after that.
pub(crate) struct Guarded<R>(pub(crate) R);

impl<R: Read> Read for Guarded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        caught(|| self.0.read(buffer))
    }
}

/// Runs `f`; a panic of it is an error.
pub(crate) fn caught<T>(f: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    catch_unwind(AssertUnwindSafe(f))
        .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::InvalidData, "the decoder panicked")))
}

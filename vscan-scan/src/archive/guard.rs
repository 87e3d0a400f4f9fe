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

/// A reader of so many bytes: it ends with an error when there are less. A decoder that is led astray often ends like one
/// that has read all.
pub(crate) struct Whole<R> {
    reader: R,
    left: u64,
}

impl<R: Read> Whole<R> {
    /// `size`: what is declared; none where nothing is.
    pub(crate) fn new(reader: R, size: Option<u64>) -> Self {
        Self { reader, left: size.unwrap_or(0) }
    }
}

impl<R: Read> Read for Whole<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.reader.read(buffer)? {
            0 if self.left > 0 && !buffer.is_empty() => {
                self.left = 0;
                Err(shorter())
            }
            n => {
                self.left = self.left.saturating_sub(n as u64);
                Ok(n)
            }
        }
    }
}

/// What [`Whole`] says.
pub(crate) fn shorter() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "shorter than its size says")
}

/// Runs `f`; a panic of it is an error.
pub(crate) fn caught<T>(f: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    catch_unwind(AssertUnwindSafe(f))
        .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::InvalidData, "the decoder panicked")))
}

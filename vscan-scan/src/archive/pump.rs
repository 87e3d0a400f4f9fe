//! Decoders that go step by step and refer back to what they gave out, made readers.

use std::io::{self, Read};

/// A decoder whose output is its own dictionary.
pub(crate) trait Decode {
    /// Appends what comes next to `out`, at most [`STEP_MAX`] bytes, and gives whether anything can follow. The last
    /// [`KEPT`] bytes of `out` are what was given before.
    fn step(&mut self, out: &mut Vec<u8>) -> io::Result<bool>;
}

/// Bytes that one step gives at most.
pub(crate) const STEP_MAX: usize = 64 * 1024;

/// Bytes that a decoder may refer back; no format here reaches further than 64 KiB.
pub(crate) const KEPT: usize = 64 * 1024;

/// Bytes gathered between two reads.
const GATHERED: usize = 32 * 1024;

/// Reads what a decoder gives. What comes before an error is given before it.
pub(crate) struct Pump<D> {
    decoder: D,
    out: Vec<u8>,
    given: usize,
    state: State,
}

enum State {
    Running,
    Ended,
    Failed(Option<io::Error>),
}

impl<D: Decode> Pump<D> {
    pub(crate) fn new(decoder: D) -> Self {
        Self { decoder, out: Vec::new(), given: 0, state: State::Running }
    }

    fn fill(&mut self) {
        if self.out.len() > 4 * KEPT {
            let gone = self.out.len() - KEPT;
            self.out.drain(..gone);
            self.given -= gone;
        }
        while self.out.len() - self.given < GATHERED {
            match self.decoder.step(&mut self.out) {
                Ok(true) => {}
                Ok(false) => return self.state = State::Ended,
                Err(e) => return self.state = State::Failed(Some(e)),
            }
        }
    }
}

impl<D: Decode> Read for Pump<D> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.given == self.out.len() {
            match &mut self.state {
                State::Running => self.fill(),
                State::Ended => return Ok(0),
                State::Failed(error) => return error.take().map_or(Ok(0), Err),
            }
            if self.given == self.out.len() {
                // Nothing more came: the end, or the error.
                return if matches!(self.state, State::Running) {
                    Ok(0)
                } else {
                    self.read(buffer)
                };
            }
        }
        let n = buffer.len().min(self.out.len() - self.given);
        buffer[..n].copy_from_slice(&self.out[self.given..self.given + n]);
        self.given += n;
        Ok(n)
    }
}

/// Appends `len` bytes from `distance` bytes back. Before the beginning there are `filler`s, as in the
/// dictionaries of the time.
pub(crate) fn copy_back(out: &mut Vec<u8>, distance: usize, len: usize, filler: u8) {
    for _ in 0..len {
        let byte = out.len().checked_sub(distance).and_then(|at| out.get(at)).copied();
        out.push(byte.unwrap_or(filler));
    }
}

pub(crate) fn malformed(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

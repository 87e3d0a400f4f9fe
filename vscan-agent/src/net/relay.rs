//! Moving bytes from socket to socket inside the kernel (splice(2)), with backpressure.
//!
//! For bytes that nobody reads: listings, excluded types, TLS that passes through.

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};
use tokio::{
    io::{AsyncWriteExt, Interest},
    net::TcpStream,
};

/// Size asked for a relay's pipe, in bytes; the kernel's default ceiling for unprivileged processes
/// (`fs.pipe-max-size`). A smaller pipe works too, at a lower speed.
const PIPE_SIZE: usize = 1 << 20;

/// Moves all bytes from `from` to `to` until `from` ends, then ends `to`'s write side.
///
/// Returns the number of bytes moved; `progress` gets those of each step. `to` is not closed: its reader may
/// still answer.
///
/// # Errors
/// Either leg's reset. What was read but not yet written is lost with it: the caller resets the other leg.
pub async fn relay(
    from: &TcpStream,
    to: &mut TcpStream,
    mut progress: impl FnMut(u64),
) -> io::Result<u64> {
    let pipe = Pipe::new()?;
    let mut moved = 0;
    loop {
        let filled = pipe.fill(from).await?;
        if filled == 0 {
            to.shutdown().await?;
            return Ok(moved);
        }
        pipe.empty(to, filled).await?;
        moved += filled as u64;
        progress(filled as u64);
    }
}

/// Relays both directions at once until both have ended, each end of stream passed on as such.
///
/// `progress` gets the bytes moved from the first to the second leg, and the other way round.
/// No pipe is held while a direction is idle.
///
/// # Errors
/// Either leg's reset; the caller resets both.
pub async fn relay_both(
    first: &TcpStream,
    second: &TcpStream,
    forward: impl FnMut(u64),
    backward: impl FnMut(u64),
) -> io::Result<()> {
    tokio::try_join!(one_way(first, second, forward), one_way(second, first, backward))?;
    Ok(())
}

async fn one_way(
    from: &TcpStream,
    to: &TcpStream,
    mut progress: impl FnMut(u64),
) -> io::Result<()> {
    loop {
        from.readable().await?;
        let pipe = Pipe::new()?;
        // As long as bytes keep coming without a wait, the pipe is kept.
        loop {
            match pipe.try_fill(from) {
                Ok(0) => {
                    // tokio's shutdown wants &mut; both directions share the stream.
                    rustix::net::shutdown(to.as_fd(), rustix::net::Shutdown::Write)?;
                    return Ok(());
                }
                Ok(filled) => {
                    pipe.empty(to, filled).await?;
                    progress(filled as u64);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
    }
}

struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    size: usize,
}

impl Pipe {
    fn new() -> io::Result<Self> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // Refused above the user's soft limit: then the default size serves.
        let size = fcntl_setpipe_size(&write, PIPE_SIZE)
            .or_else(|_| rustix::pipe::fcntl_getpipe_size(&write))?;
        Ok(Self { read, write, size })
    }

    async fn fill(&self, from: &TcpStream) -> io::Result<usize> {
        loop {
            from.readable().await?;
            match self.try_fill(from) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return result,
            }
        }
    }

    fn try_fill(&self, from: &TcpStream) -> io::Result<usize> {
        let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
        from.try_io(Interest::READABLE, || {
            splice(from.as_fd(), None, &self.write, None, self.size, flags).map_err(io::Error::from)
        })
    }

    async fn empty(&self, to: &TcpStream, mut left: usize) -> io::Result<()> {
        let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
        while left > 0 {
            to.writable().await?;
            let written = to.try_io(Interest::WRITABLE, || {
                splice(&self.read, None, to.as_fd(), None, left, flags).map_err(io::Error::from)
            });
            match written {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => left -= count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::{io::AsyncReadExt, net::TcpListener};

    async fn connected() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (client, accepted) =
            tokio::try_join!(TcpStream::connect(address), listener.accept()).unwrap();
        (client, accepted.0)
    }

    fn pattern(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i * 31 % 251) as u8).collect()
    }

    #[tokio::test]
    async fn one_way_moves_every_byte_and_the_end() {
        let (mut sender, from) = connected().await;
        let (mut to, mut receiver) = connected().await;
        let sent = pattern(3_000_001);
        let expected = sent.clone();
        let writer = tokio::spawn(async move {
            sender.write_all(&sent).await.unwrap();
            sender.shutdown().await.unwrap();
        });
        let reader = tokio::spawn(async move {
            let mut received = Vec::new();
            receiver.read_to_end(&mut received).await.unwrap();
            received
        });
        let mut seen = 0;
        let moved = relay(&from, &mut to, |bytes| seen += bytes).await.unwrap();
        writer.await.unwrap();
        assert_eq!((moved, seen), (3_000_001, 3_000_001));
        assert!(reader.await.unwrap() == expected, "bytes differ");
    }

    #[tokio::test]
    async fn both_ways_pass_half_closes_on() {
        let (mut client, first) = connected().await;
        let (second, mut server) = connected().await;
        let relaying = tokio::spawn(async move {
            relay_both(&first, &second, |_| {}, |_| {}).await.unwrap();
        });
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut question = Vec::new();
        server.read_to_end(&mut question).await.unwrap();
        assert_eq!(question, b"question");
        server.write_all(b"answer after the half-close").await.unwrap();
        server.shutdown().await.unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"answer after the half-close");
        relaying.await.unwrap();
    }

    #[tokio::test]
    async fn a_slow_receiver_slows_the_sender() {
        let (sender, from) = connected().await;
        let (mut to, receiver) = connected().await;
        let relaying = tokio::spawn(async move { relay(&from, &mut to, |_| {}).await });
        let mut accepted: usize = 0;
        let chunk = vec![0; 1 << 20];
        // Nobody reads: the sender must come to a halt within what buffers and the pipe hold.
        while let Ok(result) =
            tokio::time::timeout(std::time::Duration::from_millis(500), sender.writable()).await
        {
            result.unwrap();
            match sender.try_write(&chunk) {
                Ok(written) => accepted += written,
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
            assert!(accepted < 64 << 20, "no backpressure");
        }
        relaying.abort();
        drop(receiver);
    }
}

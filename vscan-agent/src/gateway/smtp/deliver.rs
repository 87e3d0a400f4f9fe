//! A held message: without its dot-stuffing for the scanner, as it came for the server.

use crate::{
    blocking,
    spool::{CHUNK, Object, Spool, SpoolError},
    tls::Wire,
};
use std::{
    cell::RefCell,
    io::{self, IoSlice},
    os::fd::{AsFd, OwnedFd},
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::{
    io::{AsyncWrite, Interest},
    net::TcpStream,
};
use vscan_proto::smtp::data::{Decoder, Unstuffer};

/// Bytes that one sendfile(2) call may move before the session gets its turn.
const SENDFILE_STEP: usize = 1 << 20;

thread_local! {
    /// A piece of a message that is to be encrypted.
    static PIECE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A copy without dot-stuffing: the message as its receiver has it, which is what is scanned.
///
/// Only for messages that have stuffed dots; few do. The others are scanned as they came.
///
/// # Errors
/// There is no room for it, or the spool failed.
pub(super) fn unstuffed(
    spool: &Spool,
    wire: &Object,
    mut unstuffer: Unstuffer,
) -> Result<Object, SpoolError> {
    let mut writer = spool.writer();
    let mut result = Ok(());
    let mut piece = |bytes: &[u8]| {
        unstuffer.unstuff(bytes, |piece| {
            if result.is_ok() {
                result = writer.write(piece);
            }
        });
    };
    if let Some(bytes) = wire.inline() {
        piece(bytes);
    } else {
        blocking::in_place(|| -> io::Result<()> {
            let mut buffer = vec![0; CHUNK];
            let mut offset = 0;
            loop {
                let count = wire.read_at(&mut buffer, offset)?;
                if count == 0 {
                    return Ok(());
                }
                piece(&buffer[..count]);
                offset += count as u64;
            }
        })?;
    }
    result?;
    writer.finish()
}

/// A message as it goes over the wire: dots at line starts doubled, a line end behind the last line
/// (RFC 5321 4.5.2). The counterpart of [`unstuffed`], for messages that were treated.
///
/// # Errors
/// There is no room for it, or the spool failed.
pub(super) fn stuffed(spool: &Spool, message: &Object) -> Result<Object, SpoolError> {
    blocking::in_place(|| {
        let mut writer = spool.writer();
        let mut buffer = vec![0; CHUNK];
        let mut offset = 0;
        // The last two bytes; a message begins as a line does.
        let mut last = *b"\r\n";
        loop {
            let count = message.read_at(&mut buffer, offset)?;
            if count == 0 {
                break;
            }
            offset += count as u64;
            let bytes = &buffer[..count];
            let mut from = 0;
            for dot in memchr::memchr_iter(b'.', bytes) {
                let before = match dot {
                    0 => last,
                    1 => [last[1], bytes[0]],
                    _ => [bytes[dot - 2], bytes[dot - 1]],
                };
                if before == *b"\r\n" {
                    writer.write(&bytes[from..dot])?;
                    writer.write(b".")?;
                    from = dot;
                }
            }
            writer.write(&bytes[from..])?;
            last = match *bytes {
                [.., a, b] => [a, b],
                [b] => [last[1], b],
                [] => last,
            };
        }
        if last != *b"\r\n" {
            // Of a half line end only the other half is missing.
            writer.write(if last[1] == b'\r' { b"\n" } else { b"\r\n" })?;
        }
        writer.finish()
    })
}

/// What reads the message on the wire again, to its end: whether something looks like that end and is none, or is read
/// in another way by some servers. What is received is looked through as it comes; this is for what vscan has made
/// itself.
///
/// # Errors
/// The spool failed.
pub(super) fn decoded(wire: &Object) -> Result<Decoder, SpoolError> {
    let mut decoder = Decoder::new();
    let mut buffer = vec![0; CHUNK];
    let mut offset = 0;
    blocking::in_place(|| {
        loop {
            let count = wire.read_at(&mut buffer, offset)?;
            if count == 0 {
                return Ok(decoder);
            }
            offset += count as u64;
            decoder.decode(&buffer[..count]);
        }
    })
}

/// A message on its way to the server, and what follows it.
#[derive(Debug)]
pub(super) struct Delivery {
    source: Source,
    end: &'static [u8],
    /// Bytes of message and end that are written.
    written: u64,
}

#[derive(Debug)]
enum Source {
    Inline(Object),
    File { file: OwnedFd, len: u64 },
}

impl Delivery {
    /// A delivery of `object` from its first byte, and of `end`.
    ///
    /// # Errors
    /// No descriptors left.
    pub(super) fn new(object: Object, end: &'static [u8]) -> io::Result<Self> {
        let source = match object.descriptor()? {
            Some(file) => Source::File { file, len: object.len() },
            None => Source::Inline(object),
        };
        Ok(Self { source, end, written: 0 })
    }

    /// Writes on, until all is written.
    pub(super) fn poll(
        &mut self,
        upstream: &mut Wire,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let rest = match self.rest_of_end() {
                Some([]) => return Pin::new(upstream).poll_flush(cx),
                rest => rest,
            };
            let written = match (&self.source, rest) {
                (_, Some(rest)) => ready!(Pin::new(&mut *upstream).poll_write(cx, rest))?,
                (Source::Inline(object), None) => {
                    let start = usize::try_from(self.written).unwrap_or(usize::MAX);
                    let message = object.inline().and_then(|all| all.get(start..));
                    let parts = [IoSlice::new(message.unwrap_or_default()), IoSlice::new(self.end)];
                    ready!(Pin::new(&mut *upstream).poll_write_vectored(cx, &parts))?
                }
                (Source::File { file, len }, None) => {
                    let sent = match upstream {
                        Wire::Plain(tcp) => poll_send(file, self.written, *len, tcp, cx),
                        Wire::Tls(_) => poll_encrypt(file, self.written, upstream, cx),
                    };
                    match ready!(sent)? {
                        0 => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                        sent => sent,
                    }
                }
            };
            self.written += written as u64;
        }
    }

    /// What is still to be written of the end; none while there is message left.
    fn rest_of_end(&self) -> Option<&'static [u8]> {
        let len = match &self.source {
            Source::Inline(object) => object.len(),
            Source::File { len, .. } => *len,
        };
        let at = usize::try_from(self.written.checked_sub(len)?).unwrap_or(usize::MAX);
        Some(self.end.get(at..).unwrap_or_default())
    }
}

fn poll_encrypt(
    file: &OwnedFd,
    offset: u64,
    upstream: &mut Wire,
    cx: &mut Context<'_>,
) -> Poll<io::Result<usize>> {
    // What the socket has not taken yet is to be read once.
    ready!(Pin::new(&mut *upstream).poll_flush(cx))?;
    PIECE.with_borrow_mut(|piece| {
        piece.resize(CHUNK, 0);
        let count = blocking::in_place(|| rustix::io::pread(file, &mut piece[..], offset))?;
        Pin::new(upstream).poll_write(cx, &piece[..count])
    })
}

fn poll_send(
    file: &OwnedFd,
    mut offset: u64,
    len: u64,
    upstream: &TcpStream,
    cx: &mut Context<'_>,
) -> Poll<io::Result<usize>> {
    let step = usize::try_from(len - offset).unwrap_or(usize::MAX).min(SENDFILE_STEP);
    loop {
        ready!(upstream.poll_write_ready(cx))?;
        let sent = upstream.try_io(Interest::WRITABLE, || {
            rustix::fs::sendfile(upstream.as_fd(), file, Some(&mut offset), step)
                .map_err(io::Error::from)
        });
        match sent {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            sent => return Poll::Ready(sent),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;

    fn object(spool: &Spool, bytes: &[u8]) -> Object {
        let mut writer = spool.writer();
        writer.write(bytes).unwrap();
        writer.finish().unwrap()
    }

    fn content(object: &Object) -> Vec<u8> {
        let mut bytes = Vec::new();
        object.reader().read_to_end(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn dots_are_doubled_at_line_starts_only_and_the_last_line_ends() {
        let directory = tempfile::tempdir().unwrap();
        let spool = Spool::new(directory.path(), 1 << 20, 8 << 20, 8 << 20).unwrap();
        for (message, wire) in [
            (&b""[..], &b""[..]),
            (b".", b"..\r\n"),
            (b".\r\n.", b"..\r\n..\r\n"),
            (b"a.\r\n..b\r\n", b"a.\r\n...b\r\n"),
            (b"\n.\r.\r\n", b"\n.\r.\r\n"),
            (b"a\r", b"a\r\n"),
            (b"\r\n.\r\n", b"\r\n..\r\n"),
        ] {
            let got = content(&stuffed(&spool, &object(&spool, message)).unwrap());
            assert_eq!(got, wire, "{}", message.escape_ascii());
        }
    }

    /// Wherever the pieces that are read at a time begin and end.
    #[test]
    fn unstuffing_gives_the_message_back() {
        let directory = tempfile::tempdir().unwrap();
        let spool = Spool::new(directory.path(), 1 << 20, 8 << 20, 8 << 20).unwrap();
        for shift in 0..8 {
            let mut message = vec![b'x'; CHUNK - 4 + shift];
            message.extend_from_slice(b"\r\n.\r\n..\r\n");
            let original = object(&spool, &message);
            let wire = stuffed(&spool, &original).unwrap();
            assert_eq!(wire.len(), original.len() + 2, "{shift}");
            assert!(
                content(&unstuffed(&spool, &wire, Unstuffer::new()).unwrap()) == message,
                "{shift}"
            );
        }
    }
}

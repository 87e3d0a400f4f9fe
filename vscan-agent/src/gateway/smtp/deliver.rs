//! A held message: without its dot-stuffing for the scanner, as it came for the server.

use crate::{
    blocking,
    spool::{CHUNK, Object, Spool, SpoolError},
};
use std::{
    io::{self, IoSlice},
    os::fd::{AsFd, OwnedFd},
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::{
    io::{AsyncWrite, Interest},
    net::TcpStream,
};
use vscan_proto::smtp::data::{END, Unstuffer};

/// Bytes that one sendfile(2) call may move before the session gets its turn.
const SENDFILE_STEP: usize = 1 << 20;

/// A copy without dot-stuffing: the message as its receiver has it, which is what is scanned.
///
/// Only for messages that have stuffed dots; few do. The others are scanned as they came.
///
/// # Errors
/// There is no room for it, or the spool failed.
pub(super) fn unstuffed(spool: &Spool, wire: &Object) -> Result<Object, SpoolError> {
    let mut writer = spool.writer();
    let mut unstuffer = Unstuffer::new();
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

/// A message on its way to the server, its end behind it.
#[derive(Debug)]
pub(super) struct Delivery {
    source: Source,
    /// Bytes of message and end that are written.
    written: u64,
}

#[derive(Debug)]
enum Source {
    Inline(Object),
    File { file: OwnedFd, len: u64 },
}

impl Delivery {
    /// A delivery of `object` from its first byte.
    ///
    /// # Errors
    /// No descriptors left.
    pub(super) fn new(object: Object) -> io::Result<Self> {
        let source = match object.descriptor()? {
            Some(file) => Source::File { file, len: object.len() },
            None => Source::Inline(object),
        };
        Ok(Self { source, written: 0 })
    }

    /// Writes on, until all is written.
    pub(super) fn poll(
        &mut self,
        upstream: &mut TcpStream,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let rest = match self.rest_of_end() {
                Some([]) => return Poll::Ready(Ok(())),
                rest => rest,
            };
            let written = match (&self.source, rest) {
                (_, Some(rest)) => ready!(Pin::new(&mut *upstream).poll_write(cx, rest))?,
                (Source::Inline(object), None) => {
                    let start = usize::try_from(self.written).unwrap_or(usize::MAX);
                    let message = object.inline().and_then(|all| all.get(start..));
                    let parts = [IoSlice::new(message.unwrap_or_default()), IoSlice::new(END)];
                    ready!(Pin::new(&mut *upstream).poll_write_vectored(cx, &parts))?
                }
                (Source::File { file, len }, None) => {
                    match ready!(poll_send(file, self.written, *len, upstream, cx))? {
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
        Some(END.get(at..).unwrap_or_default())
    }
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

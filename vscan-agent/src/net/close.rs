//! How legs end: by a reset, unless the end is meant.
//!
//! Every leg carries `SO_LINGER {1, 0}` for the session's life, so that the kernel resets it when the
//! process dies at any moment; only [`close_gracefully`] takes that away.

use socket2::{SockRef, TcpKeepalive};
use std::{io, os::fd::AsFd, time::Duration};
use tokio::{io::AsyncWriteExt, net::TcpStream};

/// How long a closing leg waits for the peer's own end of stream before it is reset.
pub const CLOSE_TIMEOUT: Duration = Duration::from_secs(30);

/// Bytes that a closing leg may still receive; a peer that goes on talking past them is reset.
pub const DISCARD_MAX: usize = 4 << 20;

/// Silence after which a peer is asked whether it lives. Home routers forget connections after some minutes, few
/// after less than two (RFC 5382 REQ-5 wants two hours).
const KEEP_ALIVE_AFTER: Duration = Duration::from_secs(60);

/// Unanswered questions in a row before a peer is taken for gone.
const KEEP_ALIVE_PROBES: u32 = 10;

/// Bytes read at a time, and thrown away, while waiting for the peer's end of stream.
const DISCARD_BUFFER: usize = 4096;

/// Prepares a connected leg: no Nagle delay, and a reset when it is dropped or its process dies.
///
/// # Errors
/// What setsockopt(2) returns; the connection is then unusable.
pub fn prepare_leg(stream: &impl AsFd) -> io::Result<()> {
    let socket = SockRef::from(stream);
    socket.set_tcp_nodelay(true)?;
    socket.set_linger(Some(Duration::ZERO))
}

/// Makes the kernel ask a silent peer whether it still lives (RFC 1122 section 4.2.3.6).
///
/// For connections that are silent for as long as others work, as an FTP dialogue during a transfer: the routers on
/// its way, ours included, do not forget it, and a peer that is gone is noticed.
///
/// # Errors
/// What setsockopt(2) returns.
pub fn keep_alive(stream: &TcpStream) -> io::Result<()> {
    let probes = TcpKeepalive::new()
        .with_time(KEEP_ALIVE_AFTER)
        .with_interval(KEEP_ALIVE_AFTER)
        .with_retries(KEEP_ALIVE_PROBES);
    SockRef::from(stream).set_tcp_keepalive(&probes)
}

/// Ends a leg with a reset: the peer sees ECONNRESET, never an end of file.
pub fn abort(stream: TcpStream) {
    // Setting the option again cannot fail on a live socket; on a dead one there is nothing to reset.
    let _ = stream.set_zero_linger();
    drop(stream);
}

/// Ends a leg cleanly: sends FIN behind what was written, waits for the peer's FIN, then closes.
///
/// Without the wait, unread bytes of the peer would turn the close into a reset that overtakes our
/// last bytes (RFC 1122 4.2.2.13).
///
/// # Errors
/// The peer reset the connection, did not close within [`CLOSE_TIMEOUT`], or sent more than
/// [`DISCARD_MAX`] bytes meanwhile (the leg is then reset).
pub async fn close_gracefully(mut stream: TcpStream) -> io::Result<()> {
    stream.shutdown().await?;
    close_ended(stream).await
}

/// The second half of [`close_gracefully`]: FIN has been sent.
///
/// # Errors
/// As there.
pub async fn close_ended(stream: TcpStream) -> io::Result<()> {
    let drained = tokio::time::timeout(CLOSE_TIMEOUT, drain(&stream)).await;
    match drained {
        Ok(Ok(())) => close_done(&stream),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "peer does not close")),
    }
}

/// The last step of [`close_gracefully`]: both FIN are there, and it does not end with a reset.
///
/// # Errors
/// As setsockopt(2).
pub fn close_done(stream: &TcpStream) -> io::Result<()> {
    SockRef::from(stream).set_linger(None)
}

async fn drain(stream: &TcpStream) -> io::Result<()> {
    let mut discarded = 0;
    loop {
        if discarded > DISCARD_MAX {
            return Err(io::Error::other("peer goes on sending"));
        }
        stream.readable().await?;
        let mut buffer = [0; DISCARD_BUFFER];
        match stream.try_read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => discarded += count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

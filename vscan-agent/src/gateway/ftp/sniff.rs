//! Looks at the first bytes of a file before it is settled whether it is scanned: table look-ups, no parsing.
//!
//! The bytes stay in the socket, or with the TLS over it: whoever takes the leg next, to splice or to receive it, gets the whole file.

use super::Place;
use crate::{policy::types, tls::Wire};
use std::{cell::RefCell, future::poll_fn, io, time::Duration};
use tokio::{io::Interest, net::TcpStream, time::timeout};
use vscan_scan::formats::HEAD;

/// The first bytes have this long to come; then the file is scanned. Clients wait longer for a 150.
const PATIENCE: Duration = Duration::from_secs(10);

thread_local! {
    /// One for each worker thread: nothing stays in it between two looks.
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; HEAD]);
}

/// Whether the file that comes on this leg passes unscanned.
pub(super) async fn passes(place: Place<'_>, wire: &mut Wire, name: &[u8]) -> bool {
    let scan = &place.config.scan;
    if !types::may_skip(scan, name) {
        return false;
    }
    // a leg that breaks, or is too slow: what receives the file finds out about that
    let judge = |head: &[u8]| types::skips(scan, name, head);
    let looked = async {
        match wire {
            Wire::Plain(tcp) => look(tcp, judge).await,
            Wire::Tls(tls) => {
                poll_fn(|cx| tls.poll_head(cx, HEAD)).await.map(|()| judge(tls.head()))
            }
        }
    };
    timeout(PATIENCE, looked).await.is_ok_and(|looked| looked.unwrap_or(false))
}

/// Waits until as many bytes are here as tell everything, or the end of data, and shows them.
async fn look(stream: &TcpStream, judge: impl Fn(&[u8]) -> bool) -> io::Result<bool> {
    loop {
        let ready = stream.ready(Interest::READABLE).await?;
        // the end of data is behind what is here (tcp(7), EPOLLRDHUP)
        let ended = ready.is_read_closed();
        let looked = stream.try_io(Interest::READABLE, || {
            BUFFER.with_borrow_mut(|buffer| {
                let flags = rustix::net::RecvFlags::PEEK;
                let (_, count) = rustix::net::recv(stream, &mut buffer[..], flags)?;
                if count < HEAD && !ended {
                    // As if nothing were here: the next readiness is that of further bytes.
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                Ok(judge(&buffer[..count]))
            })
        });
        match looked {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            looked => return looked,
        }
    }
}

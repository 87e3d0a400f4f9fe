//! What follows the server's 234, or begins on port 990: TLS, relayed without a look at it.
//!
//! Only its first bytes are looked at: both sides must begin with a TLS record, else plain text
//! would pass under the name of TLS.

use super::{Place, transfer::Watch};
use crate::net::{self, relay};
use rustix::net::RecvFlags;
use std::{io, pin::pin};
use tokio::{
    io::{AsyncWriteExt, Interest},
    net::TcpStream,
};
use vscan_proto::ftp::is_tls_record;

/// Bytes read at a time until the server has begun, too.
const READ_SIZE: usize = 4 << 10;

/// Relays both control connections to their end. `received` was read of the client already.
pub(super) async fn relay(
    place: Place<'_>,
    mut client: TcpStream,
    mut upstream: TcpStream,
    received: Vec<u8>,
) {
    let (flow, watch) = (place.flow, Watch::default());
    flow.set_tls_passed();
    let begun = watch.over(
        place.config.gateway.connect_timeout,
        begin(place, &mut client, &mut upstream, &watch, received),
    );
    match begun.await {
        Ok(true) => {}
        Ok(false) => {
            flow.anomaly("ftp_no_tls_record", "AUTH was accepted, TLS did not follow");
            return;
        }
        Err(_) => return,
    }
    let relaying = relay::relay_both(
        &client,
        &upstream,
        |bytes| {
            watch.moved(bytes);
            flow.add_bytes(bytes, 0);
        },
        |bytes| {
            watch.moved(bytes);
            flow.add_bytes(0, bytes);
        },
    );
    if watch.over(place.config.gateway.idle_timeout, pin!(relaying)).await.is_ok() {
        // Both have ended already.
        let _ = tokio::join!(net::close_gracefully(client), net::close_gracefully(upstream));
    }
}

/// Relays until the server has sent its first bytes; `false` when either side does not begin with
/// a TLS record.
async fn begin(
    place: Place<'_>,
    client: &mut TcpStream,
    upstream: &mut TcpStream,
    watch: &Watch,
    received: Vec<u8>,
) -> io::Result<bool> {
    let mut begun = !received.is_empty();
    if begun {
        watch.moved(received.len() as u64);
        place.flow.add_bytes(received.len() as u64, 0);
        upstream.write_all(&received).await?;
    }
    loop {
        let mut buffer = [0; READ_SIZE];
        tokio::select! {
            biased;
            readable = upstream.readable() => {
                readable?;
                let mut first = [0; 2];
                // Readiness may be left over from the dialogue, so this must not wait.
                let peeked = upstream.try_io(Interest::READABLE, || {
                    let (count, _) = rustix::net::recv(&*upstream, &mut first, RecvFlags::PEEK)?;
                    Ok(count)
                });
                match peeked {
                    Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                    Ok(count) => return Ok(begun && is_tls_record(&first[..count])),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
            }
            readable = client.readable() => {
                readable?;
                match client.try_read(&mut buffer) {
                    Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                    Ok(count) => {
                        if !begun && !is_tls_record(&buffer[..count]) {
                            return Ok(false);
                        }
                        begun = true;
                        watch.moved(count as u64);
                        place.flow.add_bytes(count as u64, 0);
                        upstream.write_all(&buffer[..count]).await?;
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
            }
        }
    }
}

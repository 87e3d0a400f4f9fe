//! The session behind STARTTLS: bytes that nobody reads.

use crate::{net, observe::FlowHandle};
use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};
use tokio::net::TcpStream;

/// Relays both ways until both have ended, or both are silent for `idle`.
pub(super) async fn relay(
    client: TcpStream,
    upstream: TcpStream,
    idle: Duration,
    flow: &FlowHandle,
) {
    flow.set_tls_passed();
    let start = Instant::now();
    // Milliseconds from start to the last byte.
    let last = AtomicU64::new(0);
    let moved = |from_client, from_server| {
        flow.add_bytes(from_client, from_server);
        let now = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
        last.store(now, Ordering::Relaxed);
    };
    let silence = async {
        loop {
            let due = start + Duration::from_millis(last.load(Ordering::Relaxed)) + idle;
            if due <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(due.into()).await;
        }
    };
    let ended = tokio::select! {
        result = net::relay::relay_both(&client, &upstream, |n| moved(n, 0), |n| moved(0, n)) => {
            result.is_ok()
        }
        () = silence => false,
    };
    if ended {
        // Both have said all that they had to say.
        let _ = tokio::join!(net::close_gracefully(client), net::close_gracefully(upstream));
    } else {
        net::abort(client);
        net::abort(upstream);
    }
}

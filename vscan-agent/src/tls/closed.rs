//! Whose TLS cannot be opened, as was found out: clients that show servers a certificate of their own.

use quick_cache::sync::Cache;
use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

/// Pairs of clients and servers that are remembered.
const KEPT: usize = 4096;

/// For how long: then it is found out again, which costs the client an attempt.
const LASTS: Duration = Duration::from_secs(86_400);

/// Clients that show servers a certificate of their own.
#[derive(Debug)]
pub struct ClosedBook(Cache<(IpAddr, SocketAddr), Instant>);

impl Default for ClosedBook {
    fn default() -> Self {
        Self(Cache::new(KEPT))
    }
}

impl ClosedBook {
    /// This client has a certificate for this server.
    pub fn note(&self, client: IpAddr, server: SocketAddr) {
        self.0.insert((client, server), Instant::now());
    }

    /// Whether it is known to have one.
    #[must_use]
    pub fn has(&self, client: IpAddr, server: SocketAddr) -> bool {
        self.0.get(&(client, server)).is_some_and(|noted| noted.elapsed() < LASTS)
    }
}

//! What was found out about peers, and holds for a while.

use quick_cache::sync::Cache;
use std::{
    fmt,
    hash::Hash,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

/// Peers that are remembered.
const KEPT: usize = 4096;

/// For how long: then it is found out again, which costs a client an attempt.
const LASTS: Duration = Duration::from_secs(86_400);

/// Clients that show servers a certificate of their own: their TLS cannot be opened.
pub type ClosedBook = Book<(IpAddr, SocketAddr)>;

/// Servers that have refused the STARTTLS that they announce: their clients wait for the answer.
pub type Reluctant = Book<SocketAddr>;

/// Peers of whom something is known.
pub struct Book<K>(Cache<K, Instant>);

impl<K: Eq + Hash + Clone> Default for Book<K> {
    fn default() -> Self {
        Self(Cache::new(KEPT))
    }
}

impl<K: Eq + Hash + Clone> fmt::Debug for Book<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Book").field(&self.0.len()).finish()
    }
}

impl<K: Eq + Hash + Clone> Book<K> {
    /// It is so.
    pub fn note(&self, peer: K) {
        self.0.insert(peer, Instant::now());
    }

    /// Whether it was found out, not too long ago.
    #[must_use]
    pub fn has(&self, peer: &K) -> bool {
        self.0.get(peer).is_some_and(|noted| noted.elapsed() < LASTS)
    }
}

//! TLS that is opened: what clients are shown, what servers have to show, and the stream of a leg.
//!
//! `material` reads keys and certificates, in the supervisor; `store` are the operator's certificates, `authority` makes
//! those for servers of others, `identity` is what a client is shown. `upstream` is the way to servers, `hello` the
//! client's first message, `policy` what is opened, `wire` the stream. What comes before and behind a handshake in FTP
//! and SMTP is their drivers' business.

mod authority;
mod book;
mod clients;
mod facts;
mod hello;
mod identity;
mod material;
mod policy;
mod store;
mod upstream;
mod wire;

#[cfg(test)]
pub(crate) mod tests;

pub use authority::MintError;
pub use book::{ClosedBook, Reluctant};
pub use hello::{Hello, HelloError};
pub use identity::Shown;
pub use material::{Material, MaterialError};
pub use policy::{About, Decision};
pub use upstream::Upstream;
pub use wire::{Answer, Settled, TlsWire, Wire, give_up, wants_certificate};

use crate::config::{Config, UpstreamTls};
use authority::Authority;
use facts::Facts;
use quick_cache::sync::Cache;
use rustls::crypto::CryptoProvider;
use std::{
    io,
    net::IpAddr,
    sync::{Arc, LazyLock},
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use store::Store;
use upstream::Roots;

/// The cryptography that all TLS here is made of.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> =
        LazyLock::new(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
    Arc::clone(&PROVIDER)
}

/// Everything that `[tls]` comes to. A session keeps the one that it began with.
#[derive(Debug, Default)]
pub struct Tls {
    store: Store,
    authority: Option<Authority>,
    roots: Roots,
    ages: Vec<Age>,
    remembered: Remembered,
}

/// What clients were shown last, by server and by the name that they asked for.
struct Remembered(Cache<(IpAddr, Option<String>), Arc<Shown>>);

/// Servers whose clients' certificates are remembered. More, in turns, have their clients' answers made later.
const REMEMBERED_MAX: usize = 4096;

impl Default for Remembered {
    fn default() -> Self {
        Self(Cache::new(REMEMBERED_MAX))
    }
}

impl std::fmt::Debug for Remembered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Remembered").field(&self.0.len()).finish()
    }
}

/// When a certificate of the operator's expires.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Age {
    /// Its file.
    pub file: String,
    /// Its names; for an authority none.
    pub names: Vec<String>,
    /// Valid from, in seconds since 1970.
    pub not_before: i64,
    /// Valid until, in seconds since 1970.
    pub not_after: i64,
}

impl Age {
    /// Seconds until it expires; negative when it has.
    #[must_use]
    pub fn left(&self) -> i64 {
        self.not_after - now()
    }

    /// What is to be complained about, if anything; `warning` is the time before the end.
    #[must_use]
    pub fn complaint(&self, warning: Duration) -> Option<String> {
        let (left, file) = (self.left(), &self.file);
        let days = left.div_euclid(86_400);
        if self.not_before > now() {
            Some(format!("{file}: the certificate is not valid yet"))
        } else if left <= 0 {
            Some(format!("{file}: the certificate has expired {} days ago", -days))
        } else if left <= i64::try_from(warning.as_secs()).unwrap_or(i64::MAX) {
            Some(format!("{file}: the certificate expires in {days} days"))
        } else {
            None
        }
    }
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

impl Tls {
    /// # Errors
    /// A certificate and its key do not go together, or are of no use.
    pub fn new(config: &Config, material: &Material) -> Result<Self, MaterialError> {
        let store = Store::new(&config.tls, &material.certificates)?;
        let authority = match (&config.tls.authority, &material.authority) {
            (Some(authority), Some(identity)) => {
                Some(Authority::new(authority, config.tls.min_version, identity)?)
            }
            _ => None,
        };
        let mut ages = Vec::new();
        for identity in material.certificates.iter().chain(&material.authority) {
            for der in &identity.chain {
                let facts =
                    Facts::of(der).map_err(|error| MaterialError::new(&identity.file, error))?;
                ages.push(Age {
                    file: identity.file.clone(),
                    names: if facts.is_authority { Vec::new() } else { facts.names },
                    not_before: facts.not_before,
                    not_after: facts.not_after,
                });
            }
        }
        let roots = Roots::new(material, upstream::needs_public(config));
        Ok(Self { store, authority, roots, ages, remembered: Remembered::default() })
    }

    /// Reads what the configuration names, and proves it.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn load(config: &Config) -> Result<(Self, Material), MaterialError> {
        let material = Material::load(config)?;
        Ok((Self::new(config, &material)?, material))
    }

    /// When the operator's certificates expire.
    #[must_use]
    pub fn ages(&self) -> &[Age] {
        &self.ages
    }

    /// Whether clients of this server can be shown any certificate at all.
    #[must_use]
    pub fn can_show(&self, server_is_inside: bool) -> bool {
        self.authority.is_some() || (server_is_inside && !self.store.is_empty())
    }

    /// How the session's handshakes with its server are made; `name` is what the client asks for.
    ///
    /// # Errors
    /// As rustls.
    pub fn upstream(
        &self,
        config: &Config,
        server: IpAddr,
        name: Option<&str>,
    ) -> Result<Upstream, rustls::Error> {
        let (upstream, fixed) = config.tls.upstream_of(server, name);
        Upstream::new(&self.roots, upstream, server, fixed.or(name))
    }

    /// Whether a server may be spoken to without TLS where a client uses it.
    #[must_use]
    pub fn may_be_plain(&self, config: &Config, server: IpAddr, name: Option<&str>) -> bool {
        config.tls.upstream_of(server, name).0.tls == UpstreamTls::Offered
    }

    /// The certificate that a client is shown: the operator's for this server or this name, or one that is made with
    /// the names of the server's own. `upstream` is the handshake with the server, if there was one.
    ///
    /// # Errors
    /// There is none that could be shown.
    pub fn shown(
        &self,
        config: &Config,
        server: IpAddr,
        hello: &Hello,
        upstream: Option<&Upstream>,
    ) -> Result<Arc<Shown>, NothingToShow> {
        let name = hello.server_name.as_deref();
        let inside = config.is_inside(server);
        let any = inside;
        if let Some(shown) = self.store.find(server.to_canonical(), name, &hello.schemes, any) {
            return Ok(shown);
        }
        let authority = self.authority.as_ref().ok_or(NothingToShow::NoCertificate)?;
        let (names, trusted) = match upstream {
            Some(upstream) if !upstream.names().is_empty() => {
                (upstream.names().to_vec(), upstream.is_trusted())
            }
            // A server without TLS, or without a name: it is what the client takes it for.
            Some(_) | None => match name {
                Some(name) => (vec![name.to_owned()], false),
                None => (vec![server.to_string()], false),
            },
        };
        let shown = authority.certificate(&names, trusted)?;
        let about = (server.to_canonical(), hello.server_name.clone());
        if self.remembered.0.get(&about).is_none_or(|last| !Arc::ptr_eq(&last, &shown)) {
            self.remembered.0.insert(about, Arc::clone(&shown));
        }
        Ok(shown)
    }

    /// The answer that a client gets if this server is what it was the last time: made while the server is asked, so that
    /// its time is not lost. What is shown is decided by [`Self::shown`] as ever, and [`Expected::or_another`] compares.
    #[must_use]
    pub fn expect(&self, config: &Config, server: IpAddr, hello: &Hello) -> Option<Expected> {
        let name = hello.server_name.as_deref();
        let server = server.to_canonical();
        let own = self.store.find(server, name, &hello.schemes, config.is_inside(server));
        let shown = match own {
            Some(shown) => shown,
            None => self.remembered.0.get(&(server, hello.server_name.clone()))?,
        };
        let answer = Answer::new(shown.config(false).ok()?, hello.bytes.clone()).ok()?;
        Some(Expected { shown, answer })
    }
}

/// An answer to a client's first message, made in advance.
#[derive(Debug)]
pub struct Expected {
    shown: Arc<Shown>,
    answer: Answer,
}

impl Expected {
    /// The answer of this certificate's; if `asks`, the client is asked for one of its own.
    ///
    /// # Errors
    /// As [`Shown::config`] and [`Answer::new`].
    pub fn or_another(
        expected: Option<Self>,
        shown: &Arc<Shown>,
        asks: bool,
        hello: Vec<u8>,
    ) -> io::Result<Answer> {
        match expected {
            Some(expected) if !asks && Arc::ptr_eq(&expected.shown, shown) => Ok(expected.answer),
            Some(_) | None => Answer::new(shown.config(asks).map_err(io::Error::other)?, hello),
        }
    }
}

/// Why a client can be shown no certificate.
#[derive(Debug, thiserror::Error)]
pub enum NothingToShow {
    /// The operator has none for this server, and no authority.
    #[error("there is no certificate for this server")]
    NoCertificate,
    /// None can be made.
    #[error(transparent)]
    Mint(#[from] MintError),
}

//! What a client is shown: one certificate, and the resumption of sessions that were begun with it.

use super::{clients::AnyClient, provider};
use crate::config::TlsVersion;
use rustls::{
    ServerConfig, SignatureScheme, SupportedProtocolVersion,
    server::{ClientHello, NoServerSessionStorage, ResolvesServerCert},
    sign::CertifiedKey,
};
use std::sync::{Arc, OnceLock};

/// A certificate with all that a handshake needs.
///
/// Tickets are its own: a session that was begun with one certificate is never resumed where another would be shown,
/// so that a client's trust goes no further than what it has seen.
#[derive(Debug)]
pub struct Shown {
    key: Arc<CertifiedKey>,
    least: TlsVersion,
    config: Arc<ServerConfig>,
    /// The same, which asks the client for a certificate.
    asking: OnceLock<Arc<ServerConfig>>,
}

impl Shown {
    /// # Errors
    /// No random numbers, or none of the provider's algorithms for these versions.
    pub(super) fn new(least: TlsVersion, key: Arc<CertifiedKey>) -> Result<Self, rustls::Error> {
        let mut config = base(least, &key, false)?;
        config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new()?;
        Ok(Self { key, least, config: Arc::new(config), asking: OnceLock::new() })
    }

    /// For a handshake with a client. If `asks`, the client is asked for a certificate, any, which it may refuse; and
    /// it gets no tickets, so that it has to say so each time.
    ///
    /// # Errors
    /// As with its making.
    pub fn config(&self, asks: bool) -> Result<Arc<ServerConfig>, rustls::Error> {
        if !asks {
            return Ok(Arc::clone(&self.config));
        }
        if let Some(asking) = self.asking.get() {
            return Ok(Arc::clone(asking));
        }
        let mut config = base(self.least, &self.key, true)?;
        config.send_tls13_tickets = 0;
        Ok(Arc::clone(self.asking.get_or_init(|| Arc::new(config))))
    }

    /// Whether its key can sign in a way that the client can check.
    pub(super) fn can_sign(&self, schemes: &[SignatureScheme]) -> bool {
        self.key.key.choose_scheme(schemes).is_some()
    }

    /// The certificate, DER.
    #[cfg(test)]
    pub(super) fn certificate(&self) -> &rustls::pki_types::CertificateDer<'static> {
        &self.key.cert[0]
    }
}

/// What all handshakes with clients have in common.
fn base(
    least: TlsVersion,
    key: &Arc<CertifiedKey>,
    asks: bool,
) -> Result<ServerConfig, rustls::Error> {
    let builder =
        ServerConfig::builder_with_provider(provider()).with_protocol_versions(versions(least))?;
    let builder = if asks {
        builder.with_client_cert_verifier(Arc::new(AnyClient::new()))
    } else {
        builder.with_no_client_auth()
    };
    let mut config = builder.with_cert_resolver(Arc::new(Fixed(Arc::clone(key))));
    // What is to be known of a session is in its ticket. Each resumes one connection (RFC 8446 appendix C.4), which brings
    // the next: more would serve a client that opens several at once, and cost every other one.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 1;
    Ok(config)
}

pub(super) fn versions(least: TlsVersion) -> &'static [&'static SupportedProtocolVersion] {
    match least {
        TlsVersion::Tls12 => rustls::ALL_VERSIONS,
        TlsVersion::Tls13 => &TLS13_ALONE,
    }
}

static TLS13_ALONE: [&SupportedProtocolVersion; 1] = [&rustls::version::TLS13];

#[derive(Debug)]
struct Fixed(Arc<CertifiedKey>);

impl ResolvesServerCert for Fixed {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

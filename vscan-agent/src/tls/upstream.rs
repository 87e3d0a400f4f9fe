//! Towards servers: what is asked of their certificates, and what a handshake with them showed.

use super::{facts::Facts, identity::versions, material::Material, provider};
use crate::config::{self, Config, Verify};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        ClientSessionMemoryCache, ResolvesClientCert, Resumption, UnbufferedClientConnection,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor, verify_server_name,
    },
    crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::ParsedCertificate,
    sign::CertifiedKey,
};
use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

/// Servers of one session whose TLS sessions are kept for resumption: it has one, in FTP under one or two names.
const SESSIONS: usize = 4;

/// The authorities that servers' certificates are looked at with.
#[derive(Debug)]
pub(super) struct Roots {
    /// Those of the system; none if the configuration asks for none.
    public: Arc<RootCertStore>,
    /// By file.
    pinned: HashMap<String, Arc<RootCertStore>>,
}

impl Default for Roots {
    fn default() -> Self {
        Self { public: Arc::new(RootCertStore::empty()), pinned: HashMap::new() }
    }
}

impl Roots {
    /// With `system` also those that the system trusts.
    pub(super) fn new(material: &Material, system: bool) -> Self {
        let mut public = RootCertStore::empty();
        if system {
            let found = rustls_native_certs::load_native_certs();
            for error in &found.errors {
                tracing::warn!("public authorities: {error}");
            }
            public.add_parsable_certificates(found.certs);
        }
        let pinned = material.pinned.iter().map(|(file, certificates)| {
            let mut store = RootCertStore::empty();
            store.add_parsable_certificates(
                certificates.iter().map(|der| CertificateDer::from(der.as_slice())),
            );
            (file.clone(), Arc::new(store))
        });
        Self { public: Arc::new(public), pinned: pinned.collect() }
    }

    fn of(&self, upstream: &config::Upstream) -> Arc<RootCertStore> {
        let pinned = upstream.ca.as_ref().and_then(|file| self.pinned.get(&file.to_string()));
        Arc::clone(match (upstream.verify, pinned) {
            (Verify::Pinned, Some(pinned)) => pinned,
            (Verify::Pinned | Verify::Public | Verify::Opportunistic, _) => &self.public,
        })
    }
}

/// Whether the configuration needs the system's authorities.
pub(super) fn needs_public(config: &Config) -> bool {
    config.opens_tls()
        && config.tls.upstreams().any(|upstream| match upstream.verify {
            Verify::Public => true,
            // To tell the client what to think of the server.
            Verify::Opportunistic => config.tls.authority.is_some(),
            Verify::Pinned => false,
        })
}

/// Handshakes of one session with its server. All of them share the TLS sessions: an FTP data connection resumes that
/// of its dialogue.
#[derive(Clone, Debug)]
pub struct Upstream {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    seen: Arc<Seen>,
}

/// What a handshake showed.
#[derive(Debug, Default)]
struct Seen {
    /// The server asked for a certificate.
    asked: AtomicBool,
    /// The server's certificate: its names, and whether it is believed.
    certificate: OnceLock<(Vec<String>, bool)>,
    /// Why it was refused.
    refused: Mutex<Option<String>>,
}

impl Upstream {
    /// For a server, by the name that it is asked for; without a name its certificate may have any.
    ///
    /// # Errors
    /// None of the provider's algorithms is for these versions.
    pub(super) fn new(
        roots: &Roots,
        upstream: &config::Upstream,
        server: IpAddr,
        name: Option<&str>,
    ) -> Result<Self, Error> {
        let named = name.and_then(|name| ServerName::try_from(name.to_owned()).ok());
        let seen = Arc::new(Seen::default());
        let verifier = Verifier {
            roots: roots.of(upstream),
            lenient: upstream.verify == Verify::Opportunistic,
            named: named.is_some(),
            algorithms: provider().signature_verification_algorithms,
            seen: Arc::clone(&seen),
        };
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(versions(upstream.min_version))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(Arc::new(Asked(Arc::clone(&seen))));
        config.resumption = Resumption::store(Arc::new(ClientSessionMemoryCache::new(SESSIONS)));
        // An address is not sent.
        let name = named.unwrap_or_else(|| ServerName::IpAddress(server.into()));
        Ok(Self { config: Arc::new(config), name, seen })
    }

    /// A connection whose handshake is to begin.
    ///
    /// # Errors
    /// As rustls.
    pub fn connection(&self) -> Result<UnbufferedClientConnection, Error> {
        UnbufferedClientConnection::new(Arc::clone(&self.config), self.name.clone())
    }

    /// Whether the server asked for a certificate in any handshake.
    #[must_use]
    pub fn asked_for_certificate(&self) -> bool {
        self.seen.asked.load(Ordering::Relaxed)
    }

    /// The names of the server's certificate; none before the first handshake.
    #[must_use]
    pub fn names(&self) -> &[String] {
        self.seen.certificate.get().map_or(&[], |(names, _)| names)
    }

    /// Whether the server's certificate is from an authority that is believed, and for the name it was asked for.
    #[must_use]
    pub fn is_trusted(&self) -> bool {
        self.seen.certificate.get().is_some_and(|(_, trusted)| *trusted)
    }

    /// Why the server's certificate was refused, if it was.
    #[must_use]
    pub fn refusal(&self) -> Option<String> {
        self.seen.refused.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[derive(Debug)]
struct Asked(Arc<Seen>);

impl ResolvesClientCert for Asked {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.asked.store(true, Ordering::Relaxed);
        None
    }

    fn has_certs(&self) -> bool {
        // Otherwise it is not asked.
        true
    }
}

#[derive(Debug)]
struct Verifier {
    roots: Arc<RootCertStore>,
    /// Whatever it is, it is taken, and only noted.
    lenient: bool,
    /// Whether the name is one that the certificate has to have.
    named: bool,
    algorithms: WebPkiSupportedAlgorithms,
    seen: Arc<Seen>,
}

impl Verifier {
    fn verify(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), Error> {
        let parsed = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &self.roots,
            intermediates,
            now,
            self.algorithms.all,
        )?;
        if self.named {
            verify_server_name(&parsed, name)?;
        }
        Ok(())
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = self.verify(end_entity, intermediates, server_name, now);
        if let Err(error) = &verified {
            let mut refused = self.seen.refused.lock().unwrap_or_else(PoisonError::into_inner);
            *refused = Some(error.to_string());
        }
        let names = Facts::of(end_entity).map(|facts| facts.names).unwrap_or_default();
        let _ = self.seen.certificate.set((names, verified.is_ok()));
        match verified {
            Err(error) if !self.lenient => Err(error),
            // What nobody can read is nothing to be lenient about.
            Err(error @ Error::InvalidCertificate(CertificateError::BadEncoding)) => Err(error),
            Ok(()) | Err(_) => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

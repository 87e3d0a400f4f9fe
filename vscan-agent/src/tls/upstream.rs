//! Towards servers: what is asked of their certificates, and what a handshake with them showed.

use super::{facts::Facts, identity::versions, material::Material, provider};
use crate::config::{self, Config, Verify};
use quick_cache::sync::Cache;
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

/// Chains that are remembered to be good. More servers than this, in turns, cost two signatures each to verify.
const KNOWN_MAX: usize = 4096;

/// The authorities that servers' certificates are looked at with.
#[derive(Debug)]
pub(super) struct Roots {
    /// Those of the system; none if the configuration asks for none.
    public: Arc<Trust>,
    /// By file.
    pinned: HashMap<String, Arc<Trust>>,
}

impl Default for Roots {
    fn default() -> Self {
        Self { public: Arc::new(Trust::new(RootCertStore::empty())), pinned: HashMap::new() }
    }
}

/// Authorities, and which chains are known to lead to them.
struct Trust {
    authorities: RootCertStore,
    /// By the certificates and the name that they were shown for.
    known: Cache<blake3::Hash, Arc<Known>>,
}

/// A chain that leads to an authority. Besides its certificates that depends on the time alone.
struct Known {
    names: Vec<String>,
    /// When all of its certificates are valid, in seconds since 1970.
    from: i64,
    to: i64,
}

impl std::fmt::Debug for Trust {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (authorities, known) = (self.authorities.len(), self.known.len());
        f.debug_struct("Trust").field("authorities", &authorities).field("known", &known).finish()
    }
}

impl Trust {
    fn new(authorities: RootCertStore) -> Self {
        Self { authorities, known: Cache::new(KNOWN_MAX) }
    }
}

/// What a chain is remembered under: whose it is, and for which name, if that matters.
fn identity(
    end_entity: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    name: Option<&ServerName<'_>>,
) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    let name = name.map(ServerName::to_str).unwrap_or_default();
    let certificates = std::iter::once(end_entity).chain(intermediates);
    for part in std::iter::once(name.as_bytes()).chain(certificates.map(AsRef::as_ref)) {
        // Its length keeps what belongs to it from being taken for a part of the next.
        hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
    }
    hasher.finalize()
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
            (file.clone(), Arc::new(Trust::new(store)))
        });
        Self { public: Arc::new(Trust::new(public)), pinned: pinned.collect() }
    }

    fn of(&self, upstream: &config::Upstream) -> Arc<Trust> {
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
            trust: roots.of(upstream),
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
    trust: Arc<Trust>,
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
            &self.trust.authorities,
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
        let key = identity(end_entity, intermediates, self.named.then_some(server_name));
        let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        let known = self.trust.known.get(&key);
        if let Some(known) = known.filter(|known| (known.from..=known.to).contains(&seconds)) {
            let _ = self.seen.certificate.set((known.names.clone(), true));
            return Ok(ServerCertVerified::assertion());
        }
        let verified = self.verify(end_entity, intermediates, server_name, now);
        if let Err(error) = &verified {
            let mut refused = self.seen.refused.lock().unwrap_or_else(PoisonError::into_inner);
            *refused = Some(error.to_string());
        }
        let facts = Facts::of(end_entity);
        let names = facts.as_ref().map(|facts| facts.names.clone()).unwrap_or_default();
        if let (Ok(()), Ok(facts)) = (&verified, facts)
            && let Ok(others) =
                intermediates.iter().map(|der| Facts::of(der)).collect::<Result<Vec<_>, _>>()
        {
            let all = || others.iter().chain([&facts]);
            let from = all().map(|facts| facts.not_before).max().unwrap_or(i64::MAX);
            let to = all().map(|facts| facts.not_after).min().unwrap_or(i64::MIN);
            self.trust.known.insert(key, Arc::new(Known { names: facts.names.clone(), from, to }));
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
    use std::time::Duration;

    const DAY: u64 = 86_400;

    /// An authority, and a certificate for `mx.example` from 2020-01-02 to 2020-01-12.
    fn chain() -> (RootCertStore, CertificateDer<'static>) {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, "Lab CA");
        let key = KeyPair::generate().unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(params.self_signed(&key).unwrap().der().clone()).unwrap();
        let issuer = Issuer::new(params, key);
        let mut params = CertificateParams::new(vec!["mx.example".to_owned()]).unwrap();
        params.not_before = date_time_ymd(2020, 1, 2);
        params.not_after = date_time_ymd(2020, 1, 12);
        let leaf = params.signed_by(&KeyPair::generate().unwrap(), &issuer).unwrap();
        (roots, leaf.der().clone())
    }

    /// Days behind the beginning of 2020.
    fn on_day(day: u64) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(18_262 * DAY + day * DAY))
    }

    #[test]
    fn a_chain_that_is_remembered_is_worth_what_it_was() {
        let (roots, leaf) = chain();
        let trust = Arc::new(Trust::new(roots));
        let verify = |name: &'static str, day| {
            let seen = Arc::new(Seen::default());
            let verifier = Verifier {
                trust: Arc::clone(&trust),
                lenient: false,
                named: true,
                algorithms: provider().signature_verification_algorithms,
                seen: Arc::clone(&seen),
            };
            let name = ServerName::try_from(name).unwrap();
            let verified = verifier.verify_server_cert(&leaf, &[], &name, &[], on_day(day));
            assert_eq!(seen.certificate.get().is_some_and(|it| it.1), verified.is_ok());
            assert_eq!(seen.certificate.get().unwrap().0, ["mx.example"]);
            verified.is_ok()
        };
        assert!(!verify("mx.example", 0), "not valid yet");
        assert_eq!(trust.known.len(), 0, "a refusal is not kept");
        assert!(verify("mx.example", 5));
        assert!(verify("mx.example", 6));
        assert_eq!(trust.known.len(), 1);
        assert!(!verify("other.example", 6), "another name");
        assert!(!verify("mx.example", 0) && !verify("mx.example", 20), "another time");
        // Whose certificate it is: that of another authority, of the same name, has nothing of it.
        let (_, stranger) = chain();
        let name = ServerName::try_from("mx.example").unwrap();
        assert_ne!(identity(&leaf, &[], Some(&name)), identity(&stranger, &[], Some(&name)));
        assert_ne!(identity(&leaf, &[], Some(&name)), identity(&leaf, &[], None));
        let pair = [stranger.clone()];
        assert_ne!(identity(&leaf, &pair, None), identity(&leaf, &[], None));
    }
}

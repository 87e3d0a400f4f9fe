//! Certificates for servers of others, made with the operator's authority.

use super::{
    identity::Shown,
    material::{Identity, MaterialError},
    provider,
};
use crate::config::{self, TlsVersion};
use quick_cache::sync::Cache;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair,
    KeyUsagePurpose, SerialNumber,
};
use rustls::{
    pki_types::{CertificateDer, PrivateKeyDer},
    sign::{CertifiedKey, SigningKey},
};
use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Made certificates that are kept. More servers than this, in turns, cost a signature each.
const KEPT: usize = 4096;

/// How far a certificate's beginning lies back: clients' clocks are late.
const SKEW: Duration = Duration::from_secs(86_400);

/// The longest common name (RFC 5280 appendix A, `ub-common-name`).
const COMMON_NAME_MAX: usize = 64;

/// What makes certificates.
pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Behind each certificate: the authority's own and those above it.
    above: Vec<CertificateDer<'static>>,
    not_after: i64,
    /// Makes certificates that nobody believes, for servers whose own are not believed.
    nobody: Issuer<'static, KeyPair>,
    /// The key of all made certificates: ECDSA over P-256.
    key: KeyPair,
    /// The same key.
    signer: Arc<dyn SigningKey>,
    lifetime: Duration,
    least: TlsVersion,
    made: Cache<Wanted, Made>,
}

/// What a certificate is made for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Wanted {
    names: Vec<String>,
    trusted: bool,
}

#[derive(Clone)]
struct Made {
    shown: Arc<Shown>,
    /// From this second on another one is made.
    until: i64,
}

/// A certificate that cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum MintError {
    /// There is no name that it could have, or the authority's key does not sign.
    #[error("no certificate can be made: {0}")]
    Certificate(#[from] rcgen::Error),
    /// It is of no use for TLS.
    #[error("no certificate can be made: {0}")]
    Key(#[from] rustls::Error),
}

impl std::fmt::Debug for Authority {
    /// Without keys.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("made", &self.made.len()).finish_non_exhaustive()
    }
}

impl Authority {
    pub(super) fn new(
        config: &config::TlsAuthority,
        least: TlsVersion,
        identity: &Identity,
    ) -> Result<Self, MaterialError> {
        let wrong = |what: &dyn ToString| MaterialError::new(&identity.file, what.to_string());
        let failed = |error: rcgen::Error| wrong(&error);
        let (_, facts) = super::store::certified(identity)?;
        if !facts.is_authority {
            return Err(wrong(
                &"is not the certificate of an authority (basicConstraints CA, keyUsage keyCertSign)",
            ));
        }
        let key = KeyPair::try_from(&identity.key.der()).map_err(failed)?;
        let chain: Vec<CertificateDer<'static>> =
            identity.chain.iter().map(|der| der.clone().into()).collect();
        let issuer = Issuer::from_ca_cert_der(&chain[0], key).map_err(failed)?;
        let mut nobody = CertificateParams::default();
        nobody.distinguished_name = DistinguishedName::new();
        nobody.distinguished_name.push(DnType::CommonName, "vscan: the server is not trusted");
        let leaf = KeyPair::generate().map_err(failed)?;
        let signer = provider()
            .key_provider
            .load_private_key(PrivateKeyDer::Pkcs8(leaf.serialize_der().into()))
            .map_err(|error| wrong(&error))?;
        Ok(Self {
            issuer,
            above: chain,
            not_after: facts.not_after,
            nobody: Issuer::new(nobody, KeyPair::generate().map_err(failed)?),
            key: leaf,
            signer,
            lifetime: config.lifetime,
            least,
            made: Cache::new(KEPT),
        })
    }

    /// A certificate with these names: of the authority if the server's is `trusted`, else of nobody.
    ///
    /// # Errors
    /// There is no name that a certificate can have.
    pub(super) fn certificate(
        &self,
        names: &[String],
        trusted: bool,
    ) -> Result<Arc<Shown>, MintError> {
        let wanted = Wanted { names: names.to_vec(), trusted };
        let now = seconds(SystemTime::now());
        if let Some(made) = self.made.get(&wanted).filter(|made| now < made.until) {
            return Ok(made.shown);
        }
        let made = self.make(&wanted, now)?;
        let shown = Arc::clone(&made.shown);
        self.made.insert(wanted, made);
        Ok(shown)
    }

    fn make(&self, wanted: &Wanted, now: i64) -> Result<Made, MintError> {
        let mut params = CertificateParams::new(wanted.names.clone())?;
        params.distinguished_name = DistinguishedName::new();
        let common = wanted.names.iter().find(|name| name.len() <= COMMON_NAME_MAX);
        if let Some(name) = common {
            params.distinguished_name.push(DnType::CommonName, name.as_str());
        }
        let lifetime = i64::try_from(self.lifetime.as_secs()).unwrap_or(i64::MAX);
        let skew = i64::try_from(SKEW.as_secs()).unwrap_or_default();
        let (from, to) = (now - skew, (now + lifetime).min(self.not_after));
        params.not_before = rcgen::date_time_ymd(1970, 1, 1) + since_1970(from);
        params.not_after = rcgen::date_time_ymd(1970, 1, 1) + since_1970(to);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        // All have the same key: the number must tell them apart (RFC 5280 section 4.1.2.2).
        let mut serial = [0; 16];
        provider()
            .secure_random
            .fill(&mut serial)
            .map_err(|_| rustls::Error::FailedToGetRandomBytes)?;
        serial[0] &= 0x7f;
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        let issuer = if wanted.trusted { &self.issuer } else { &self.nobody };
        let certificate = params.signed_by(&self.key, issuer)?;
        let mut chain = vec![certificate.der().clone()];
        if wanted.trusted {
            chain.extend(self.above.iter().cloned());
        }
        let key = CertifiedKey::new(chain, Arc::clone(&self.signer));
        let shown = Shown::new(self.least, Arc::new(key))?;
        // A client that was shown it may look at it again for as long as half of it.
        Ok(Made { shown: Arc::new(shown), until: now + (to - now) / 2 })
    }
}

fn seconds(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|since| i64::try_from(since.as_secs()).ok())
        .unwrap_or_default()
}

fn since_1970(seconds: i64) -> Duration {
    Duration::from_secs(u64::try_from(seconds).unwrap_or_default())
}

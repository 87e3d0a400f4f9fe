//! The operator's own certificates: which one a client is shown.

use super::{
    facts::{self, Facts},
    identity::Shown,
    material::{Identity, MaterialError},
    provider,
};
use crate::config::{self, within};
use ipnet::IpNet;
use rustls::{SignatureScheme, pki_types::CertificateDer, sign::CertifiedKey};
use std::{net::IpAddr, sync::Arc};

/// The operator's certificates, in the order of the configuration.
#[derive(Debug, Default)]
pub(super) struct Store(Vec<Entry>);

#[derive(Debug)]
struct Entry {
    names: Vec<String>,
    servers: Vec<IpNet>,
    shown: Arc<Shown>,
}

impl Store {
    pub(super) fn new(
        config: &config::Tls,
        identities: &[Identity],
    ) -> Result<Self, MaterialError> {
        identities
            .iter()
            .zip(&config.certificates)
            .map(|(identity, certificate)| {
                let (key, facts) = certified(identity)?;
                Ok(Entry {
                    names: facts.names,
                    servers: certificate.servers.clone(),
                    shown: Arc::new(
                        Shown::new(config.min_version, key)
                            .map_err(|error| MaterialError::new(&identity.file, error))?,
                    ),
                })
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The certificate for a server, by the name that the client asks for. If `any` is set, one that does not have the
    /// name is better than none.
    pub(super) fn find(
        &self,
        server: IpAddr,
        name: Option<&str>,
        schemes: &[SignatureScheme],
        any: bool,
    ) -> Option<Arc<Shown>> {
        let suits =
            |entry: &&Entry| within(&entry.servers, server) && entry.shown.can_sign(schemes);
        let named = |entry: &&Entry| {
            name.is_none_or(|name| entry.names.iter().any(|has| facts::covers(has, name)))
        };
        // one that was written for this server before one that is for all
        let own = self.0.iter().filter(|entry| !entry.servers.is_empty());
        let all = self.0.iter().filter(|entry| entry.servers.is_empty());
        let found = own.clone().chain(all.clone()).filter(suits).find(named);
        let found = match found {
            Some(entry) if name.is_some() || any || !entry.servers.is_empty() => Some(entry),
            _ if any => own.chain(all).find(suits),
            _ => own.filter(suits).find(named),
        };
        found.map(|entry| Arc::clone(&entry.shown))
    }
}

/// A key that can sign, with its certificate, which is proven to be its own.
pub(super) fn certified(identity: &Identity) -> Result<(Arc<CertifiedKey>, Facts), MaterialError> {
    let wrong = |what: &dyn ToString| MaterialError::new(&identity.file, what.to_string());
    let leaf = identity.chain.first().ok_or_else(|| wrong(&"no certificate"))?;
    let facts = Facts::of(leaf).map_err(|error| wrong(&error))?;
    let key = provider()
        .key_provider
        .load_private_key(identity.key.der())
        .map_err(|error| wrong(&format!("its key is of no use: {error}")))?;
    let chain = identity.chain.iter().map(|der| CertificateDer::from(der.clone())).collect();
    let certified = CertifiedKey::new(chain, key);
    match certified.keys_match() {
        Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {
            Ok((Arc::new(certified), facts))
        }
        Err(_) => Err(wrong(&"the key is not that of the certificate")),
    }
}

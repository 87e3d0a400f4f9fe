//! Keys and certificates on their way from the disk to the gateway: read by the supervisor, which checks them, and
//! handed over in a sealed memfd. The gateway opens no file of keys.

use crate::config::{self, Config, KeyFile, Verify};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use serde::{Deserialize, Serialize};
use std::{fs, io::Read};

/// A larger file holds no certificates, in bytes. A bundle of all public authorities has a quarter of a MiB.
const FILE_MAX: u64 = 4 << 20;

/// What `[tls]` names, read.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Material {
    /// In the order of `[[tls.certificate]]`.
    pub(super) certificates: Vec<Identity>,
    pub(super) authority: Option<Identity>,
    /// The authorities of each file that is named for pinning.
    pub(super) pinned: Vec<(String, Vec<Vec<u8>>)>,
}

/// A certificate, those above it, and its key; DER.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    /// The file of the chain, for messages.
    pub(super) file: String,
    pub(super) chain: Vec<Vec<u8>>,
    pub(super) key: Key,
}

/// A private key. One that lies in a token or a key service would be a variant of its own, for which
/// [`super::store`] makes a `rustls::sign::SigningKey`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Key {
    Pkcs8(Vec<u8>),
    Pkcs1(Vec<u8>),
    Sec1(Vec<u8>),
}

impl Key {
    pub(super) fn der(&self) -> PrivateKeyDer<'static> {
        match self {
            Self::Pkcs8(der) => PrivateKeyDer::Pkcs8(der.clone().into()),
            Self::Pkcs1(der) => PrivateKeyDer::Pkcs1(der.clone().into()),
            Self::Sec1(der) => PrivateKeyDer::Sec1(der.clone().into()),
        }
    }
}

/// What is wrong with a file of `[tls]`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}: {what}")]
pub struct MaterialError {
    pub(super) file: String,
    pub(super) what: String,
}

impl MaterialError {
    pub(super) fn new(file: impl ToString, what: impl ToString) -> Self {
        Self { file: file.to_string(), what: what.to_string() }
    }
}

impl Material {
    /// Reads all files that the configuration names.
    ///
    /// # Errors
    /// The first file that cannot be read or is none of certificates or keys.
    pub fn load(config: &Config) -> Result<Self, MaterialError> {
        let tls = &config.tls;
        let certificates = tls
            .certificates
            .iter()
            .map(|config::TlsCertificate { chain, key, .. }| Identity::load(chain, key))
            .collect::<Result<_, _>>()?;
        let authority = tls
            .authority
            .as_ref()
            .map(|config::TlsAuthority { certificate, key, .. }| Identity::load(certificate, key))
            .transpose()?;
        let mut pinned: Vec<(String, Vec<Vec<u8>>)> = Vec::new();
        for upstream in tls.upstreams().filter(|it| it.verify == Verify::Pinned) {
            let Some(ca) = &upstream.ca else { continue };
            if pinned.iter().all(|(file, _)| *file != ca.to_string()) {
                pinned.push((ca.to_string(), certificates_of(ca)?));
            }
        }
        Ok(Self { certificates, authority, pinned })
    }

    /// For a descriptor.
    ///
    /// # Errors
    /// Never, with what [`Self::load`] gives.
    pub fn to_bytes(&self) -> std::io::Result<Vec<u8>> {
        postcard::to_stdvec(self).map_err(std::io::Error::other)
    }

    /// From a descriptor.
    ///
    /// # Errors
    /// Not what [`Self::to_bytes`] gave.
    pub fn from_bytes(bytes: &[u8]) -> std::io::Result<Self> {
        postcard::from_bytes(bytes).map_err(std::io::Error::other)
    }
}

impl std::fmt::Debug for Material {
    /// Without keys.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Material")
            .field("certificates", &self.certificates.len())
            .field("authority", &self.authority.is_some())
            .finish_non_exhaustive()
    }
}

impl Identity {
    fn load(chain: &KeyFile, key: &KeyFile) -> Result<Self, MaterialError> {
        let file = chain.to_string();
        let chain = certificates_of(chain)?;
        let pem = read(key)?;
        let der = PrivateKeyDer::from_pem_slice(&pem).map_err(|error| {
            let what = match error {
                rustls::pki_types::pem::Error::NoItemsFound => {
                    "no private key in it (PEM, not encrypted)".to_owned()
                }
                error => format!("{error}"),
            };
            MaterialError::new(key, what)
        })?;
        let key = match der {
            PrivateKeyDer::Pkcs8(der) => Key::Pkcs8(der.secret_pkcs8_der().to_vec()),
            PrivateKeyDer::Pkcs1(der) => Key::Pkcs1(der.secret_pkcs1_der().to_vec()),
            PrivateKeyDer::Sec1(der) => Key::Sec1(der.secret_sec1_der().to_vec()),
            _ => return Err(MaterialError::new(key, "a kind of key that is not known")),
        };
        Ok(Self { file, chain, key })
    }
}

fn certificates_of(file: &KeyFile) -> Result<Vec<Vec<u8>>, MaterialError> {
    let pem = read(file)?;
    let certificates: Vec<Vec<u8>> = CertificateDer::pem_slice_iter(&pem)
        .map(|der| der.map(|der| der.to_vec()).map_err(|error| MaterialError::new(file, error)))
        .collect::<Result<_, _>>()?;
    if certificates.is_empty() {
        return Err(MaterialError::new(file, "no certificate in it (PEM)"));
    }
    Ok(certificates)
}

fn read(file: &KeyFile) -> Result<Vec<u8>, MaterialError> {
    let path = file.path().ok_or_else(|| {
        MaterialError::new(
            file,
            "there are no credentials: they are systemd's to hand over, by LoadCredential= in the unit",
        )
    })?;
    let mut bytes = Vec::new();
    fs::File::open(path)
        .and_then(|opened| opened.take(FILE_MAX + 1).read_to_end(&mut bytes))
        .map_err(|error| MaterialError::new(file, error))?;
    if bytes.len() as u64 > FILE_MAX {
        return Err(MaterialError::new(file, "is larger than 4 MiB"));
    }
    Ok(bytes)
}

//! TLS to the mail server: whose certificates are believed, and STARTTLS.

use super::connection::Error;
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, pem::PemObject},
};
use std::{path::Path, sync::Arc};
use thiserror::Error as ThisError;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// The longest greeting or answer to STARTTLS, in bytes: one line (RFC 9051 has no limit, servers stay below 1 KiB).
const LINE_MAX: usize = 8 << 10;

/// Lines before the answer to STARTTLS.
const LINES_MAX: usize = 20;

/// How a connection is protected.
#[derive(Clone, Debug)]
pub enum Security {
    /// TLS from the first byte (RFC 8314).
    Tls(Arc<ClientConfig>),
    /// TLS after STARTTLS (RFC 9051 6.2.1), or no connection.
    StartTls(Arc<ClientConfig>),
    /// None: passwords and mail travel in the clear.
    None,
}

/// There are no certificates to believe.
#[derive(Debug, ThisError)]
pub enum RootsError {
    /// The file of the configuration.
    #[error("{path}: {why}")]
    File {
        /// Which.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// Those of the system.
    #[error("the system's certificates: {0}")]
    System(String),
}

/// What is believed of a server: signed by one of the certificates in `file` (PEM), or by one that this system trusts.
///
/// # Errors
/// [`RootsError`]: there is not one certificate.
pub fn client_config(file: Option<&Path>) -> Result<Arc<ClientConfig>, RootsError> {
    let roots = match file {
        Some(path) => roots_of(path)?,
        None => system_roots()?,
    };
    let provider = Arc::new(aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| RootsError::System(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

fn roots_of(path: &Path) -> Result<RootCertStore, RootsError> {
    let wrong = |why: String| RootsError::File { path: path.display().to_string(), why };
    let mut roots = RootCertStore::empty();
    for certificate in
        CertificateDer::pem_file_iter(path).map_err(|error| wrong(error.to_string()))?
    {
        let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
        roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(wrong("no certificate is in it".to_owned()));
    }
    Ok(roots)
}

fn system_roots() -> Result<RootCertStore, RootsError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    // Some systems carry certificates that rustls does not take; the others serve.
    let (good, _) = roots.add_parsable_certificates(found.certs);
    if good == 0 {
        let errors: Vec<String> = found.errors.iter().map(ToString::to_string).collect();
        let why = if errors.is_empty() { "there are none".to_owned() } else { errors.join("; ") };
        return Err(RootsError::System(why));
    }
    Ok(roots)
}

/// The plaintext part of STARTTLS: the greeting, the command, its answer, and not one byte more.
pub(super) async fn start(stream: &mut TcpStream) -> Result<(), Error> {
    let greeting = line(stream).await?;
    let upper = greeting.to_ascii_uppercase();
    if upper.starts_with("* PREAUTH") {
        // STARTTLS is not allowed any more, and what comes is not protected.
        return Err(Error::Missing("STARTTLS: the connection is somebody's already"));
    }
    if !upper.starts_with("* OK") {
        return Err(Error::Bye(greeting));
    }
    stream.write_all(b"vscan STARTTLS\r\n").await?;
    for _ in 0..LINES_MAX {
        let answer = line(stream).await?;
        let upper = answer.to_ascii_uppercase();
        if upper.starts_with("VSCAN OK") {
            return Ok(());
        }
        if !upper.starts_with("* ") {
            return Err(Error::Missing("STARTTLS"));
        }
    }
    Err(Error::Endless("STARTTLS"))
}

/// Reads one line and nothing behind it, so that TLS begins where the server began it: what was put behind the answer in
/// plaintext is then no TLS record, and the handshake fails.
async fn line(stream: &mut TcpStream) -> Result<String, Error> {
    let mut line = Vec::new();
    loop {
        let byte = stream.read_u8().await?;
        match byte {
            b'\n' => break,
            byte if line.len() < LINE_MAX => line.push(byte),
            _ => return Err(Error::Malformed("a line without end".to_owned())),
        }
    }
    Ok(String::from_utf8_lossy(line.trim_ascii_end()).into_owned())
}

//! The client's first message, read before anything is answered: which server it asks for.

use rustls::{
    SignatureScheme,
    server::{AcceptedAlert, Acceptor},
};
use std::io;
use tokio::{io::AsyncWriteExt, net::TcpStream};

/// The longest ClientHello that is read, with all its records, in bytes. Post-quantum keys make two KiB of it.
const HELLO_MAX: usize = 32 << 10;

/// Bytes read at a time.
const READ_SIZE: usize = 4 << 10;

/// A ClientHello.
#[derive(Debug)]
pub struct Hello {
    /// All bytes that were read, which are to be handled once more: by the handshake, or by the server.
    pub bytes: Vec<u8>,
    /// The host that the client asks for (RFC 6066 section 3), in lower case.
    pub server_name: Option<String>,
    /// The signatures that it can check.
    pub schemes: Vec<SignatureScheme>,
}

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub enum HelloError {
    /// The client does not speak TLS.
    #[error("no TLS record")]
    NotTls,
    /// It does it wrong, or in a way that is not supported: it was told by an alert.
    #[error("{0}")]
    Refused(#[from] rustls::Error),
    /// It is longer than anything in use.
    #[error("ClientHello longer than {HELLO_MAX} bytes")]
    TooLong,
    /// The connection is gone.
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl Hello {
    /// Reads it. `bytes` were read before.
    ///
    /// # Errors
    /// [`HelloError`]; it may take for ever.
    pub async fn read(client: &mut TcpStream, bytes: Vec<u8>) -> Result<Self, HelloError> {
        let mut acceptor = Acceptor::default();
        let mut hello = Self { bytes, server_name: None, schemes: Vec::new() };
        let mut fed = 0;
        loop {
            if !looks_like_tls(&hello.bytes) {
                return Err(HelloError::NotTls);
            }
            while fed < hello.bytes.len() {
                fed += acceptor.read_tls(&mut &hello.bytes[fed..])?;
                match acceptor.accept() {
                    Ok(Some(accepted)) => {
                        let said = accepted.client_hello();
                        hello.server_name = said.server_name().map(str::to_ascii_lowercase);
                        hello.schemes = said.signature_schemes().to_vec();
                        return Ok(hello);
                    }
                    Ok(None) => {}
                    Err((error, alert)) => {
                        tell(client, alert).await;
                        return Err(error.into());
                    }
                }
            }
            if hello.bytes.len() >= HELLO_MAX {
                return Err(HelloError::TooLong);
            }
            client.readable().await?;
            let mut buffer = [0; READ_SIZE];
            match client.try_read(&mut buffer) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                Ok(count) => hello.bytes.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

async fn tell(client: &mut TcpStream, mut alert: AcceptedAlert) {
    let mut bytes = Vec::new();
    if alert.write_all(&mut bytes).is_ok() {
        // It may be gone.
        let _ = client.write_all(&bytes).await;
    }
}

/// Whether the bytes are, or may become, a record with a handshake: type 22, major version 3 (RFC 8446 section 5.1).
fn looks_like_tls(bytes: &[u8]) -> bool {
    bytes.iter().zip([22, 3]).all(|(byte, expected)| *byte == expected)
}

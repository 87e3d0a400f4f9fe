//! A leg's stream: TCP, or TLS over it.

mod records;
mod secured;

use crate::net;
use std::{
    future::poll_fn,
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::TcpStream,
};

pub use secured::{Answer, Settled, TlsWire};

/// A leg's stream. Reading gives the end of the stream only where the peer has ended it: with TLS by close_notify; an end
/// of the TCP stream alone is `UnexpectedEof`.
#[derive(Debug)]
pub enum Wire {
    /// TCP.
    Plain(TcpStream),
    /// TLS over TCP, behind its handshake.
    Tls(Box<TlsWire>),
}

impl Wire {
    /// The TCP stream.
    #[must_use]
    pub fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(tcp) => tcp,
            Self::Tls(tls) => &tls.tcp,
        }
    }

    /// Version and cipher, if it is TLS.
    #[must_use]
    pub fn settled(&self) -> Option<Settled> {
        match self {
            Self::Plain(_) => None,
            Self::Tls(tls) => Some(tls.settled()),
        }
    }

    /// Ends the leg with a reset, without close_notify: the peer does not take what it has for all there is.
    pub fn abort(self) {
        match self {
            Self::Plain(tcp) => net::abort(tcp),
            Self::Tls(tls) => net::abort(tls.tcp),
        }
    }

    /// Ends the leg cleanly: close_notify and FIN behind what was written, then as [`net::close_gracefully`].
    ///
    /// # Errors
    /// As there.
    pub async fn close_gracefully(self) -> io::Result<()> {
        match self {
            Self::Plain(tcp) => net::close_gracefully(tcp).await,
            Self::Tls(mut tls) => {
                let end = async {
                    poll_fn(|cx| tls.poll_end(cx)).await?;
                    tls.hear_out().await;
                    Ok::<_, io::Error>(())
                };
                tokio::time::timeout(net::close::CLOSE_TIMEOUT, end)
                    .await
                    .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
                if tls.has_met_fin() {
                    return net::close::close_done(&tls.tcp);
                }
                net::close::close_ended(tls.tcp).await
            }
        }
    }

    /// As [`TlsWire::catch_up`]; of no use without TLS.
    pub fn catch_up(&mut self, cx: &mut Context<'_>) {
        match self {
            Self::Plain(_) => {}
            Self::Tls(tls) => tls.catch_up(cx),
        }
    }

    /// Reads into the buffer; 0 at the end of the stream.
    ///
    /// # Errors
    /// The connection failed, or was cut off.
    pub fn poll_read(&mut self, cx: &mut Context<'_>, out: &mut [u8]) -> Poll<io::Result<usize>> {
        match self {
            Self::Plain(tcp) => {
                let mut read = ReadBuf::new(out);
                ready!(Pin::new(tcp).poll_read(cx, &mut read))?;
                Poll::Ready(Ok(read.filled().len()))
            }
            Self::Tls(tls) => tls.poll_read(cx, out),
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_read(cx, buffer),
            Self::Tls(tls) => {
                let count = ready!(tls.poll_read(cx, buffer.initialize_unfilled()))?;
                buffer.advance(count);
                Poll::Ready(Ok(()))
            }
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_write(cx, bytes),
            Self::Tls(tls) => tls.poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_write_vectored(cx, parts),
            Self::Tls(tls) => tls.poll_write_vectored(cx, parts),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Self::Tls(tls) => tls.poll_outgoing(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Self::Tls(tls) => tls.poll_end(cx),
        }
    }
}

impl From<TcpStream> for Wire {
    fn from(tcp: TcpStream) -> Self {
        Self::Plain(tcp)
    }
}

/// Whether this end of a connection was the server's word on a client's certificate that is missing (RFC 8446 section
/// 4.4.2.4; the other alerts are those of TLS 1.2 and of servers that have their own mind).
#[must_use]
pub fn wants_certificate(error: &io::Error) -> bool {
    use rustls::AlertDescription as Alert;
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>());
    matches!(
        cause,
        Some(rustls::Error::AlertReceived(
            Alert::CertificateRequired
                | Alert::NoCertificate
                | Alert::BadCertificate
                | Alert::HandshakeFailure
        ))
    )
}

/// Ends an attempt that came to nothing: what was written arrives, as an alert, then the leg is reset.
pub async fn give_up(mut tcp: TcpStream) {
    // The peer may be gone.
    let _ = tcp.shutdown().await;
    let _ = net::close_gracefully(tcp).await;
}

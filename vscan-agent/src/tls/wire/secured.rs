//! TLS over TCP.
//!
//! With rustls' unbuffered connections: records are read into a buffer of the thread and decrypted there, and what is
//! written is encrypted into another one. A silent leg keeps its keys and nothing else.

use super::records::{Ended, Heard, handle, invalid};
use crate::{net, tls::Upstream};
use rustix::net::SendFlags;
use rustls::{
    HandshakeKind, ProtocolVersion, ServerConfig, client::UnbufferedClientConnection,
    server::UnbufferedServerConnection,
};
use std::{
    cell::RefCell,
    future::poll_fn,
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::TcpStream,
};

/// Bytes of records that are read at a time.
const READ_MAX: usize = 128 << 10;

/// Bytes that are encrypted at a time.
const WRITE_MAX: usize = 128 << 10;

/// Bytes in a record at most (RFC 8446 section 5.1).
const RECORD_MAX: usize = 16 << 10;

/// More than a record adds: header, nonce, type and tag (RFC 5246 section 6.2.3, RFC 8446 section 5.2).
const RECORD_OVERHEAD: usize = 64;

/// Room for what is encrypted at a time.
const SEALED_MAX: usize = WRITE_MAX + (WRITE_MAX / RECORD_MAX + 1) * RECORD_OVERHEAD;

/// Reads that a handshake may take: a slow link needs dozens. What is more are records of a byte each.
const HANDSHAKE_READS_MAX: u32 = 70_000;

thread_local! {
    static RECORDS: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    static SEALED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    static GATHERED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// TLS over TCP, behind its handshake.
#[derive(Debug)]
pub struct TlsWire {
    pub(super) tcp: TcpStream,
    side: Side,
    /// Records that are not handled: a part of one.
    incoming: Vec<u8>,
    /// What was decrypted, and how much of it was taken.
    plain: Vec<u8>,
    taken: usize,
    /// Records that are to be written, and how much of them is.
    outgoing: Vec<u8>,
    written: usize,
    /// While `outgoing` is no longer than this, it can wait for what is written next: tickets.
    patient: usize,
    ended: Ended,
    /// close_notify was sent.
    closed: bool,
    /// And FIN.
    shut: bool,
}

enum Side {
    Client(Box<UnbufferedClientConnection>),
    Server(Box<UnbufferedServerConnection>),
}

impl std::fmt::Debug for Side {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Client(_) => "Client",
            Self::Server(_) => "Server",
        })
    }
}

/// The same with either side's connection.
macro_rules! either {
    ($side:expr, $connection:ident => $what:expr) => {
        match $side {
            Side::Client($connection) => $what,
            Side::Server($connection) => $what,
        }
    };
}

/// What a handshake has settled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settled {
    /// `TLSv1.2` or `TLSv1.3`.
    pub version: &'static str,
    /// The cipher suite, by its name in IANA's registry.
    pub cipher: String,
    /// Whether an earlier session was resumed.
    pub resumed: bool,
}

impl TlsWire {
    /// The server's leg: a handshake as its client, and `words` behind it, if there are any. They go out with the last
    /// message of the handshake where that is the client's (RFC 8446 section 2).
    ///
    /// # Errors
    /// The handshake failed, of which the server was told, or the connection did. It may take for ever.
    pub async fn connect(
        tcp: TcpStream,
        upstream: &Upstream,
        words: &[u8],
    ) -> io::Result<Box<Self>> {
        let connection = upstream.connection().map_err(io::Error::other)?;
        Begun::new(Side::Client(Box::new(connection)), Vec::new()).finish(tcp, words).await
    }

    /// The client's leg: a handshake as its server. `received` was read before, as by [`crate::tls::Hello`].
    ///
    /// # Errors
    /// The handshake failed, of which the client was told, or the connection did. It may take for ever.
    pub async fn accept(
        tcp: TcpStream,
        config: Arc<ServerConfig>,
        received: Vec<u8>,
    ) -> io::Result<Box<Self>> {
        Answer::new(config, received)?.give(tcp).await
    }

    /// `words` are empty once they are in `outgoing`.
    fn poll_handshake(&mut self, cx: &mut Context<'_>, words: &mut &[u8]) -> Poll<io::Result<()>> {
        for _ in 0..HANDSHAKE_READS_MAX {
            if !self.is_handshaking() && self.ends_with_tickets() {
                self.patient = self.outgoing.len();
                return Poll::Ready(Ok(()));
            }
            if !self.is_handshaking() && !words.is_empty() {
                let mut sealed = vec![0; words.len() + RECORD_OVERHEAD];
                let length = self.seal(Sealing::Bytes(words), &mut sealed)?;
                self.outgoing.extend_from_slice(&sealed[..length]);
                *words = &[];
            }
            let written = self.poll_outgoing(cx)?;
            if !self.is_handshaking() {
                return written.map(Ok);
            }
            ready!(self.poll_fill(cx, &mut []))?;
            if self.ended != Ended::No && self.is_handshaking() {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
        }
        Poll::Ready(Err(io::Error::other("a handshake without end")))
    }

    fn is_handshaking(&self) -> bool {
        either!(&self.side, connection => connection.is_handshaking())
    }

    /// Whether all that a server has still to say behind a handshake is tickets: what of its flight comes before the
    /// client's last message, the client has had (RFC 8446 section 2).
    fn ends_with_tickets(&self) -> bool {
        match &self.side {
            Side::Server(connection) => {
                connection.protocol_version() == Some(ProtocolVersion::TLSv1_3)
            }
            Side::Client(_) => false,
        }
    }

    /// Which version and cipher are in use.
    #[must_use]
    pub fn settled(&self) -> Settled {
        either!(&self.side, connection => Settled {
            version: match connection.protocol_version() {
                Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
                Some(_) | None => "TLSv1.2",
            },
            cipher: connection
                .negotiated_cipher_suite()
                .and_then(|suite| suite.suite().as_str())
                .map(|name| name.replacen("TLS13_", "TLS_", 1))
                .unwrap_or_default(),
            resumed: connection.handshake_kind() == Some(HandshakeKind::Resumed),
        })
    }

    /// Whether the peer has shown a certificate.
    #[must_use]
    pub fn has_peer_certificate(&self) -> bool {
        either!(&self.side, connection => connection.peer_certificates().is_some())
    }

    /// The TCP stream, and what was read of it behind the peer's close_notify.
    #[must_use]
    pub fn into_plain(self) -> (TcpStream, Vec<u8>) {
        (self.tcp, self.incoming)
    }

    /// The TCP stream.
    #[must_use]
    pub fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    /// Reads: 0 bytes at the end that the peer has made by close_notify.
    pub(super) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        if self.taken < self.plain.len() {
            let count = out.len().min(self.plain.len() - self.taken);
            out[..count].copy_from_slice(&self.plain[self.taken..self.taken + count]);
            self.taken += count;
            if self.taken == self.plain.len() {
                self.plain = Vec::new();
                self.taken = 0;
            }
            return Poll::Ready(Ok(count));
        }
        loop {
            match self.ended {
                Ended::No => {}
                Ended::Properly => return Poll::Ready(Ok(0)),
                Ended::Cut => {
                    let error = "the peer ended the connection without close_notify";
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::UnexpectedEof, error)));
                }
                Ended::Failed => return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into())),
            }
            let filled = self.poll_fill(cx, out);
            self.speak_up(cx);
            match ready!(filled)? {
                0 => {}
                count => return Poll::Ready(Ok(count)),
            }
        }
    }

    /// Decrypts until this many bytes, or the end of the stream, are here; [`Self::head`] shows them, and whoever reads
    /// next gets them too.
    ///
    /// # Errors
    /// The connection failed.
    pub fn poll_head(&mut self, cx: &mut Context<'_>, count: usize) -> Poll<io::Result<()>> {
        while self.ended == Ended::No && self.head().len() < count {
            let filled = self.poll_fill(cx, &mut []);
            self.speak_up(cx);
            ready!(filled)?;
        }
        Poll::Ready(Ok(()))
    }

    /// What is decrypted and was not read.
    #[must_use]
    pub fn head(&self) -> &[u8] {
        &self.plain[self.taken..]
    }

    /// Handles what the peer said without being asked, if anything is here: tickets, on a leg that is only written to. The
    /// next connection resumes with them, each of which is good for one (RFC 8446 appendix C.4).
    pub fn catch_up(&mut self, cx: &mut Context<'_>) {
        while self.ended == Ended::No && self.head().len() < READ_MAX {
            match self.poll_fill(cx, &mut []) {
                Poll::Ready(Ok(_)) => {}
                // It is met again by whoever writes next.
                Poll::Ready(Err(_)) | Poll::Pending => return,
            }
        }
    }

    /// Reads to the end and throws away what comes, but for tickets; a peer that goes on and on is not heard out.
    pub(super) async fn hear_out(&mut self) {
        let mut discarded = 0;
        while discarded <= net::close::DISCARD_MAX {
            // Not of the future, which every session has.
            let read = poll_fn(|cx| self.poll_read(cx, &mut [0; RECORD_MAX]));
            match read.await {
                Ok(count) if count > 0 => discarded += count,
                Ok(_) | Err(_) => return,
            }
        }
    }

    /// Waits for the peer's close_notify, behind which nothing may be left unread.
    ///
    /// # Errors
    /// The connection failed or was cut off, or the peer still had something to say.
    pub async fn ended(&mut self) -> io::Result<()> {
        let mut byte = [0];
        match poll_fn(|cx| self.poll_read(cx, &mut byte)).await? {
            0 => Ok(()),
            _ => Err(invalid("the peer goes on speaking")),
        }
    }

    /// Writes what reading gave rise to: alerts, answers to key updates. If they cannot be written now, they are with what
    /// is written next.
    fn speak_up(&mut self, cx: &mut Context<'_>) {
        if self.outgoing.len() > self.patient {
            let _ = self.poll_outgoing(cx);
        }
    }

    /// Reads once from the socket and handles what came; tells how many bytes of `out` are filled. What does not fit
    /// there is kept.
    fn poll_fill(&mut self, cx: &mut Context<'_>, out: &mut [u8]) -> Poll<io::Result<usize>> {
        RECORDS.with_borrow_mut(|records| {
            records.resize(READ_MAX, 0);
            let kept = self.incoming.len();
            let mut read = ReadBuf::new(&mut records[kept.min(READ_MAX)..]);
            if read.remaining() == 0 {
                return Poll::Ready(Err(invalid("a record longer than it may be")));
            }
            ready!(Pin::new(&mut self.tcp).poll_read(cx, &mut read))?;
            let count = read.filled().len();
            if count == 0 {
                self.ended = Ended::Cut;
                return Poll::Ready(Ok(0));
            }
            records[..kept].copy_from_slice(&self.incoming);
            let records = &mut records[..kept + count];
            let (used, filled) = self.handle(records, out)?;
            self.incoming = records[used..].to_vec();
            Poll::Ready(Ok(filled))
        })
    }

    /// Handles records. Tells how many bytes of them are done with, and how many of `out` are filled.
    fn handle(&mut self, records: &mut [u8], out: &mut [u8]) -> io::Result<(usize, usize)> {
        let Self { side, plain, outgoing, ended, .. } = self;
        let mut heard = Heard { out, filled: 0, plain, outgoing, ended };
        let used = either!(side, connection => {
            handle(connection.as_mut(), records, &mut heard, &mut |_| Ok(()))
        });
        Ok((used?, heard.filled))
    }

    /// Has the connection encrypt into `sealed`; what it has to say itself is in `outgoing` then, and goes first.
    fn seal(&mut self, bytes: Sealing<'_>, sealed: &mut [u8]) -> io::Result<usize> {
        let mut incoming = std::mem::take(&mut self.incoming);
        let Self { side, plain, outgoing, ended, .. } = self;
        let mut heard = Heard { out: &mut [], filled: 0, plain, outgoing, ended };
        let mut length = None;
        let used = either!(side, connection => {
            handle(connection.as_mut(), &mut incoming, &mut heard, &mut |traffic| {
                length = Some(match bytes {
                    Sealing::Bytes(bytes) => traffic.encrypt(bytes, sealed),
                    Sealing::CloseNotify => traffic.queue_close_notify(sealed),
                }.map_err(|error| invalid(&error.to_string()))?);
                Ok(())
            })
        })?;
        incoming.drain(..used);
        self.incoming = incoming;
        length.ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    pub(super) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.outgoing.len() > self.patient {
            ready!(self.poll_outgoing(cx))?;
        }
        let bytes = &bytes[..bytes.len().min(WRITE_MAX)];
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        SEALED.with_borrow_mut(|sealed| {
            sealed.resize(SEALED_MAX, 0);
            let length = self.seal(Sealing::Bytes(bytes), sealed)?;
            let sealed = &sealed[..length];
            // Taken all the same if it cannot be written: the rest is before anything else is taken.
            if self.outgoing.is_empty() {
                let written = match Pin::new(&mut self.tcp).poll_write(cx, sealed) {
                    Poll::Ready(written) => written?,
                    Poll::Pending => 0,
                };
                self.outgoing.extend_from_slice(&sealed[written..]);
            } else {
                self.outgoing.extend_from_slice(sealed);
                if let Poll::Ready(written) = self.poll_outgoing(cx) {
                    written?;
                }
            }
            Poll::Ready(Ok(bytes.len()))
        })
    }

    pub(super) fn poll_write_vectored(
        &mut self,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        GATHERED.with_borrow_mut(|gathered| {
            gathered.clear();
            for part in parts {
                let room = WRITE_MAX - gathered.len();
                gathered.extend_from_slice(&part[..part.len().min(room)]);
            }
            self.poll_write(cx, gathered)
        })
    }

    pub(super) fn poll_outgoing(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.outgoing.len() {
            let rest = &self.outgoing[self.written..];
            match ready!(Pin::new(&mut self.tcp).poll_write(cx, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.written += count,
            }
        }
        if !self.outgoing.is_empty() {
            self.outgoing = Vec::new();
            self.written = 0;
            self.patient = 0;
        }
        Poll::Ready(Ok(()))
    }

    /// Writes close_notify and FIN behind all that was written.
    pub(super) fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.shut {
            return Poll::Ready(Ok(()));
        }
        if !self.closed && self.ended != Ended::Failed && self.outgoing.is_empty() {
            let mut notice = [0; RECORD_OVERHEAD];
            let length = self.seal(Sealing::CloseNotify, &mut notice)?;
            let notice = &notice[..length];
            self.closed = true;
            // In one segment with the FIN, which goes at once; whoever waits for the end is woken once.
            let flags = SendFlags::MORE | SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            let sent = self
                .tcp
                .try_io(Interest::WRITABLE, || Ok(rustix::net::send(&self.tcp, notice, flags)?));
            let written = match sent {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
                Err(error) => return Poll::Ready(Err(error)),
            };
            self.outgoing.extend_from_slice(&notice[written..]);
        }
        ready!(self.poll_close_notify(cx))?;
        ready!(Pin::new(&mut self.tcp).poll_shutdown(cx))?;
        self.shut = true;
        Poll::Ready(Ok(()))
    }

    /// Whether the peer's FIN is here.
    pub(super) fn has_met_fin(&self) -> bool {
        self.ended == Ended::Cut
    }

    /// Writes close_notify behind all that was written. Only the sending side is closed by it (RFC 8446 section 6.1).
    pub fn poll_close_notify(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.closed && self.ended != Ended::Failed {
            let mut notice = [0; RECORD_OVERHEAD];
            let length = self.seal(Sealing::CloseNotify, &mut notice)?;
            self.outgoing.extend_from_slice(&notice[..length]);
            self.closed = true;
        }
        self.poll_outgoing(cx)
    }
}

/// A connection that has something to say, before it has anybody to say it to.
struct Begun {
    side: Side,
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
    ended: Ended,
    outcome: io::Result<()>,
}

impl Begun {
    /// Handles what was received, if anything was.
    fn new(mut side: Side, mut incoming: Vec<u8>) -> Self {
        let (mut outgoing, mut ended, mut plain) = (Vec::new(), Ended::No, Vec::new());
        let mut heard = Heard {
            out: &mut [],
            filled: 0,
            // Nothing is before the handshake is over: early data are not allowed.
            plain: &mut plain,
            outgoing: &mut outgoing,
            ended: &mut ended,
        };
        let used = either!(&mut side, connection => {
            handle(connection.as_mut(), &mut incoming, &mut heard, &mut |_| Ok(()))
        });
        let outcome = used.map(|used| drop(incoming.drain(..used)));
        Self { side, incoming, outgoing, ended, outcome }
    }

    /// The handshake, and `words` of at most a record behind it.
    async fn finish(self, tcp: TcpStream, mut words: &[u8]) -> io::Result<Box<TlsWire>> {
        debug_assert!(words.len() <= RECORD_MAX);
        let Self { side, incoming, outgoing, ended, outcome } = self;
        let mut wire = Box::new(TlsWire {
            tcp,
            side,
            incoming,
            plain: Vec::new(),
            taken: 0,
            outgoing,
            written: 0,
            patient: 0,
            ended,
            closed: false,
            shut: false,
        });
        let outcome = match outcome {
            Ok(()) => poll_fn(|cx| wire.poll_handshake(cx, &mut words)).await,
            Err(error) => Err(error),
        };
        if outcome.is_err() {
            // The alert; who does not read it needs none.
            poll_fn(|cx| Poll::Ready(wire.poll_outgoing(cx).is_ready())).await;
        }
        outcome.map(|()| wire)
    }
}

/// The answer to a client's first message. It costs a signature, and can be made before it is certain that it is the
/// right one.
pub struct Answer(Begun);

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Answer").field(&self.0.side).finish()
    }
}

impl Answer {
    /// As [`TlsWire::accept`].
    ///
    /// # Errors
    /// The configuration is of no use. What is wrong with what was received is told to the client.
    pub fn new(config: Arc<ServerConfig>, received: Vec<u8>) -> io::Result<Self> {
        let connection = UnbufferedServerConnection::new(config).map_err(io::Error::other)?;
        Ok(Self(Begun::new(Side::Server(Box::new(connection)), received)))
    }

    /// Gives it, and goes on with the handshake.
    ///
    /// # Errors
    /// As [`TlsWire::accept`].
    pub async fn give(self, tcp: TcpStream) -> io::Result<Box<TlsWire>> {
        self.0.finish(tcp, &[]).await
    }
}

/// What is to be encrypted.
#[derive(Clone, Copy)]
enum Sealing<'a> {
    Bytes(&'a [u8]),
    CloseNotify,
}

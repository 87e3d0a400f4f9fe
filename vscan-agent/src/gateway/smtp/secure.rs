//! Opens TLS: the handshakes with server and client, in this order, and what is done where they do not come about.
//!
//! The client's first message is read before the server's handshake: it says which server the client asks for, so that rules
//! can go by it, and the server is asked for the same. The client gets its answer when the server's handshake is made;
//! so it never ends up inside of TLS with nobody behind.

use super::blind;
use crate::{
    config::{self, Config, TlsAction},
    gateway::Gateway,
    net,
    observe::{FlowHandle, Side, TlsRecord},
    tls::{About, Decision, Expected, Hello, HelloError, Tls, TlsWire, Upstream, Wire, give_up},
};
use std::{
    io,
    sync::atomic::{AtomicBool, Ordering},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use vscan_proto::smtp::{Anomaly, Secured, reply::ReplyLine};

/// The longest answer of a server that is dialled anew or was asked for TLS, in bytes. An EHLO answer has some hundred.
const ANSWER_MAX: usize = 16 << 10;

/// AlertDescription access_denied and handshake_failure, RFC 8446 section 6.2.
const ACCESS_DENIED: u8 = 49;
const HANDSHAKE_FAILURE: u8 = 40;

/// How TLS begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way<'a> {
    /// With the connection.
    Implicit,
    /// By STARTTLS, behind this EHLO line.
    StartTls {
        hello: &'a [u8],
        /// The server's answer is to come; the client has its own.
        asked: bool,
    },
    /// By STARTTLS that the server does not have.
    Alone,
}

/// A session whose TLS is to be opened.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) gateway: &'a Gateway,
    pub(super) config: &'a Config,
    pub(super) tls: &'a Tls,
    pub(super) flow: &'a FlowHandle,
    /// Whether rules of `[[access]]` have to be kept, so that nothing may pass unread.
    pub(super) ruled: bool,
}

/// What came of it.
pub(super) enum Opened {
    /// The session goes on inside.
    Inside { client: Wire, upstream: Wire, secured: Secured },
    /// It is over, and so are its legs.
    Over,
}

/// What is done with a session's TLS.
pub(super) fn about(config: &Config, flow: &FlowHandle) -> About {
    let opened = flow.opened();
    About {
        protocol: config::Protocol::Smtp,
        direction: opened.direction,
        client: opened.client.ip(),
        server: opened.real_server.ip(),
        otherwise: config.smtp.starttls,
    }
}

impl Place<'_> {
    /// Opens it, or relays the session blindly to its end, or ends it.
    pub(super) async fn open(self, way: Way<'_>, client: TcpStream, upstream: TcpStream) -> Opened {
        let limit = self.config.tls.handshake_timeout;
        let due = AtomicBool::new(matches!(way, Way::StartTls { asked: true, .. }));
        let step = Box::pin(self.handshakes(way, client, upstream, &due));
        match tokio::time::timeout(limit, step).await {
            Ok(Step::Inside(client, upstream, secured)) => {
                Opened::Inside { client, upstream, secured }
            }
            Ok(Step::Blind(client, upstream)) => {
                let idle = self.config.gateway.idle_timeout;
                blind::relay(client, upstream, idle, self.flow).await;
                Opened::Over
            }
            Ok(Step::Over) => Opened::Over,
            Err(_) => {
                if due.load(Ordering::Relaxed) {
                    // The next one waits for it as long as for any answer.
                    self.gateway.reluctant.note(self.flow.opened().real_server);
                }
                self.flow.anomaly("tls_handshake_timeout", format!("no handshake in {limit:?}"));
                Opened::Over
            }
        }
    }

    async fn handshakes(
        self,
        way: Way<'_>,
        mut client: TcpStream,
        mut upstream: TcpStream,
        due: &AtomicBool,
    ) -> Step {
        let (from, server) = (self.flow.opened().client, self.flow.opened().real_server);
        let begun = tokio::try_join!(
            async { Hello::read(&mut client, Vec::new()).await.map_err(NotBegun::Client) },
            self.agreement(due, &mut upstream),
        );
        let (hello, refusal) = match begun {
            Ok(begun) => begun,
            Err(NotBegun::Client(HelloError::NotTls)) => {
                self.flow.anomaly("smtp_not_tls", "what followed STARTTLS is no TLS, reset");
                return self.over(client, upstream);
            }
            Err(NotBegun::Client(error)) => {
                self.flow.tls_failed(Side::Client, &error);
                net::abort(upstream);
                give_up(client).await;
                return Step::Over;
            }
            Err(NotBegun::Behind) => {
                let anomaly = Anomaly::PlaintextBehindStartTls;
                self.flow.anomaly(anomaly.name(), anomaly);
                return self.over(client, upstream);
            }
            Err(NotBegun::Server(error)) => {
                self.gateway.reluctant.note(server);
                self.flow.tls_failed(Side::Server, error);
                return self.over(client, upstream);
            }
        };
        let name = hello.server_name.clone();
        let about = about(self.config, self.flow);
        let by_name = about.decide(self.config) == Decision::ByName;
        let action = about.named(self.config, name.as_slice());
        let closed = self.gateway.closed_book.has(&(from.ip(), server));
        let (way, upstream) = match refusal {
            None => (way, upstream),
            Some(why) => {
                net::abort(upstream);
                let opened = action == TlsAction::Terminate && !closed;
                match self.refused_by_server(&why, opened, name.as_deref()).await {
                    Some(upstream) => (Way::Alone, upstream),
                    None => {
                        alert(&mut client, HANDSHAKE_FAILURE).await;
                        give_up(client).await;
                        return Step::Over;
                    }
                }
            }
        };
        // Without a name the server's own decide, which its certificate has.
        let later = by_name && name.is_none() && way != Way::Alone;
        match action {
            TlsAction::Terminate => {}
            TlsAction::Pass if later => {}
            TlsAction::Pass => return self.pass(way, client, upstream, &hello).await,
            TlsAction::Refuse | TlsAction::Strip => {
                return self.refuse(client, upstream, "tls_refused", "refused by a rule").await;
            }
        }
        if closed {
            let what = "the client has a certificate for this server, which cannot be handed on";
            self.flow.anomaly("tls_client_certificate", what);
            return self.pass(way, client, upstream, &hello).await;
        }
        let theirs = match self.tls.upstream(self.config, server.ip(), name.as_deref()) {
            Ok(theirs) => theirs,
            Err(error) => {
                return self
                    .refuse(client, upstream, "tls_server_failed", &error.to_string())
                    .await;
            }
        };
        let mut expected = None;
        // What nearly every client says next: its answer is here then. A server whose names are still to decide may not
        // be the one that the session goes on with.
        let greeting: &[u8] = match way {
            Way::StartTls { hello, .. } if !later => hello,
            Way::StartTls { .. } | Way::Implicit | Way::Alone => b"",
        };
        let upstream = if way == Way::Alone {
            Wire::Plain(upstream)
        } else {
            let made = tokio::join!(
                biased;
                self.with_server(way, upstream, &theirs, name.as_deref(), greeting),
                async { expected = self.tls.expect(self.config, server.ip(), &hello) },
            );
            match made.0 {
                Ok(upstream) => upstream,
                // A server that insists on a certificate: only its client can have one.
                Err(_) if theirs.asked_for_certificate() && theirs.refusal().is_none() => {
                    self.gateway.closed_book.note((from.ip(), server));
                    let what = "the server wants a certificate of the client's";
                    self.flow.anomaly("tls_client_certificate", what);
                    return self.pass_anew(way, client, &hello).await;
                }
                Err(error) => {
                    let why = theirs.refusal().unwrap_or_else(|| error.to_string());
                    self.flow.tls_failed(Side::Server, why);
                    alert(&mut client, HANDSHAKE_FAILURE).await;
                    give_up(client).await;
                    return Step::Over;
                }
            }
        };
        if later {
            match about.named(self.config, theirs.names()) {
                TlsAction::Terminate => {}
                TlsAction::Pass => {
                    upstream.abort();
                    return self.pass_anew(way, client, &hello).await;
                }
                TlsAction::Refuse | TlsAction::Strip => {
                    upstream.abort();
                    self.flow.anomaly("tls_refused", "refused by a rule");
                    alert(&mut client, ACCESS_DENIED).await;
                    give_up(client).await;
                    return Step::Over;
                }
            }
        }
        let greeted = !greeting.is_empty() && matches!(upstream, Wire::Tls(_));
        self.with_client(client, upstream, hello, theirs, expected, greeted).await
    }

    /// The server's answer to STARTTLS, if it is still to come: its words if it refuses.
    async fn agreement(
        self,
        due: &AtomicBool,
        upstream: &mut TcpStream,
    ) -> Result<Option<String>, NotBegun> {
        if !due.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let answer = answer(upstream, 220).await;
        due.store(false, Ordering::Relaxed);
        match answer {
            Ok(count) => {
                self.flow.add_bytes(0, count as u64);
                Ok(None)
            }
            Err(error @ AnswerError::Another(_)) => Ok(Some(error.to_string())),
            Err(AnswerError::Behind) => Err(NotBegun::Behind),
            Err(AnswerError::Lost(error)) => Err(NotBegun::Server(error)),
        }
    }

    /// The server has refused the TLS that it announces. A new connection to it in the clear, if the session is opened and
    /// that may be: nothing that was said on the old one, before TLS, may count inside.
    async fn refused_by_server(
        self,
        why: &str,
        opened: bool,
        name: Option<&str>,
    ) -> Option<TcpStream> {
        let server = self.flow.opened().real_server;
        if !(opened && self.tls.may_be_plain(self.config, server.ip(), name)) {
            self.gateway.reluctant.note(server);
            self.flow.tls_failed(Side::Server, why);
            return None;
        }
        let upstream = self.in_the_clear(why).await;
        upstream.inspect_err(|error| self.flow.tls_failed(Side::Server, error)).ok()
    }

    /// Another connection to a server with which TLS did not come about, up to its greeting.
    async fn in_the_clear(self, why: &str) -> io::Result<TcpStream> {
        self.flow.tls_failed(Side::Server, format!("{why}; it is spoken to in the clear"));
        let mut upstream = self.redial().await?;
        answer(&mut upstream, 220).await?;
        Ok(upstream)
    }

    /// The handshake with the server, and the greeting behind it; without either if it has to be, and may be.
    async fn with_server(
        self,
        way: Way<'_>,
        upstream: TcpStream,
        theirs: &Upstream,
        name: Option<&str>,
        greeting: &[u8],
    ) -> io::Result<Wire> {
        let error = match TlsWire::connect(upstream, theirs, greeting).await {
            Ok(wire) => return Ok(Wire::Tls(wire)),
            Err(error) => error,
        };
        let server = self.flow.opened().real_server;
        let plain = matches!(way, Way::StartTls { .. })
            && !theirs.asked_for_certificate()
            && self.tls.may_be_plain(self.config, server.ip(), name);
        if !plain {
            return Err(error);
        }
        Ok(Wire::Plain(self.in_the_clear(&error.to_string()).await?))
    }

    async fn with_client(
        self,
        mut client: TcpStream,
        upstream: Wire,
        hello: Hello,
        theirs: Upstream,
        expected: Option<Expected>,
        greeted: bool,
    ) -> Step {
        let (from, server) = (self.flow.opened().client, self.flow.opened().real_server);
        let seen = matches!(upstream, Wire::Tls(_)).then_some(&theirs);
        let shown = self
            .tls
            .shown(self.config, server.ip(), &hello, seen)
            .map_err(|error| error.to_string())
            .and_then(|shown| {
                let asks = theirs.asked_for_certificate();
                Expected::or_another(expected, &shown, asks, hello.bytes)
                    .map_err(|error| error.to_string())
            });
        let answer = match shown {
            Ok(answer) => answer,
            Err(error) => {
                self.flow.anomaly("tls_no_certificate", error);
                upstream.abort();
                alert(&mut client, HANDSHAKE_FAILURE).await;
                give_up(client).await;
                return Step::Over;
            }
        };
        let sni = hello.server_name;
        let client = match answer.give(client).await {
            Ok(client) => client,
            Err(error) => {
                self.flow.tls_failed(Side::Client, error);
                upstream.abort();
                return Step::Over;
            }
        };
        let record = TlsRecord {
            sni,
            client: Some(client.settled().into()),
            server: upstream.settled().map(Into::into),
            trusted: theirs.is_trusted(),
        };
        self.flow.set_tls(record);
        if client.has_peer_certificate() {
            self.gateway.closed_book.note((from.ip(), server));
            self.flow.anomaly(
                "tls_client_certificate",
                "the client has a certificate for the server, which cannot be handed on: it is passed from now on",
            );
            upstream.abort();
            let mut client = Wire::Tls(client);
            let reply = b"421 4.7.0 TLS with your certificate cannot be inspected, try again\r\n";
            if client.write_all(reply).await.is_ok() {
                // It may be gone already; there is nothing left to tell it.
                let _ = client.close_gracefully().await;
            }
            return Step::Over;
        }
        let secured = Secured { trusted: theirs.is_trusted(), greeted };
        Step::Inside(Wire::Tls(client), upstream, secured)
    }

    /// The session goes on unread.
    async fn pass(
        self,
        way: Way<'_>,
        client: TcpStream,
        mut upstream: TcpStream,
        hello: &Hello,
    ) -> Step {
        if self.ruled || way == Way::Alone {
            // Behind TLS no rule could be kept; and a server without TLS has nothing that could pass.
            return self.refuse(client, upstream, "tls_refused", "it may not pass unread").await;
        }
        match upstream.write_all(&hello.bytes).await {
            Ok(()) => {
                self.flow.add_bytes(hello.bytes.len() as u64, 0);
                Step::Blind(client, upstream)
            }
            Err(_) => self.over(client, upstream),
        }
    }

    /// The same with a server that has to be dialled anew, since a handshake was begun with it.
    async fn pass_anew(self, way: Way<'_>, mut client: TcpStream, hello: &Hello) -> Step {
        let upstream = match self.redial().await {
            Ok(mut upstream) => greet(&mut upstream, way).await.map(|()| upstream),
            Err(error) => Err(error),
        };
        match upstream {
            Ok(upstream) => self.pass(way, client, upstream, hello).await,
            Err(error) => {
                self.flow.tls_failed(Side::Server, error);
                alert(&mut client, HANDSHAKE_FAILURE).await;
                give_up(client).await;
                Step::Over
            }
        }
    }

    async fn redial(self) -> io::Result<TcpStream> {
        let opened = self.flow.opened();
        self.gateway.redial(opened.client, opened.real_server).await
    }

    async fn refuse(
        self,
        mut client: TcpStream,
        upstream: TcpStream,
        anomaly: &'static str,
        why: &str,
    ) -> Step {
        self.flow.anomaly(anomaly, why);
        net::abort(upstream);
        alert(&mut client, ACCESS_DENIED).await;
        give_up(client).await;
        Step::Over
    }

    fn over(self, client: TcpStream, upstream: TcpStream) -> Step {
        net::abort(client);
        net::abort(upstream);
        Step::Over
    }
}

enum Step {
    Inside(Wire, Wire, Secured),
    Blind(TcpStream, TcpStream),
    Over,
}

/// A fatal alert in the clear, in answer to a ClientHello (RFC 8446 section 6).
async fn alert(client: &mut TcpStream, description: u8) {
    // It may be gone.
    let _ = client.write_all(&[21, 3, 3, 0, 2, 2, description]).await;
}

/// Brings a server that was dialled anew to where its client is.
async fn greet(upstream: &mut TcpStream, way: Way<'_>) -> io::Result<()> {
    let Way::StartTls { hello, .. } = way else { return Ok(()) };
    answer(upstream, 220).await?;
    if !hello.is_empty() {
        upstream.write_all(hello).await?;
        answer(upstream, 250).await?;
    }
    upstream.write_all(b"STARTTLS\r\n").await?;
    answer(upstream, 220).await?;
    Ok(())
}

/// Reads a reply, which must have this code, and nothing behind it. Its length in bytes.
async fn answer(upstream: &mut TcpStream, code: u16) -> Result<usize, AnswerError> {
    let mut reply = Vec::new();
    let mut start = 0;
    while reply.len() < ANSWER_MAX {
        if upstream.read_buf(&mut reply).await? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        while let Some(end) = memchr::memchr(b'\n', &reply[start..]).map(|at| start + at + 1) {
            let line = reply[start..end].trim_ascii_end();
            start = end;
            match ReplyLine::parse(line) {
                Some(line) if line.code == code && line.more => {}
                Some(line) if line.code == code && end == reply.len() => return Ok(end),
                Some(line) if line.code == code => return Err(AnswerError::Behind),
                _ => return Err(AnswerError::Another(line.escape_ascii().to_string())),
            }
        }
    }
    Err(io::Error::other("the server talks too much").into())
}

/// Why a reply is not the one that is wanted.
#[derive(Debug, thiserror::Error)]
enum AnswerError {
    #[error(transparent)]
    Lost(#[from] io::Error),
    /// By its first line that differs.
    #[error("the server answers: {0}")]
    Another(String),
    #[error("the server goes on speaking behind its answer")]
    Behind,
}

impl From<AnswerError> for io::Error {
    fn from(error: AnswerError) -> Self {
        match error {
            AnswerError::Lost(error) => error,
            AnswerError::Another(_) | AnswerError::Behind => Self::other(error),
        }
    }
}

/// Why handshakes cannot begin.
enum NotBegun {
    Client(HelloError),
    Server(io::Error),
    /// The server has said something behind its 220, in the clear.
    Behind,
}

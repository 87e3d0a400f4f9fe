//! TLS that ends here: the handshakes of both control connections, and of the data connections that resume them.
//!
//! The client speaks first: its first message says which server it asks for. The server's handshake comes next, so that
//! what the client is shown can be made from it, and the client's own is completed last: whatever fails, no client is
//! inside TLS with a server that is not.

use super::Place;
use crate::{
    access::Rules,
    config::{Protocol, TlsAction},
    net,
    observe::{Side, TlsRecord},
    tls::{self, Expected, Hello, HelloError, TlsWire, Upstream, Wire, give_up},
};
use rustls::ServerConfig;
use std::{io, sync::Arc};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use vscan_proto::ftp::Leg;

/// A fatal handshake_failure, in the clear (RFC 8446 section 6): there is no server to speak to.
const HANDSHAKE_FAILURE: [u8; 7] = [0x15, 3, 3, 0, 2, 2, 40];

/// The longest answer of a server that is dialled anew, in bytes: its greeting.
const ANSWER_MAX: usize = 16 << 10;

/// What the data connections of a session resume.
pub(super) struct Security {
    upstream: Upstream,
    client: Arc<ServerConfig>,
}

impl Security {
    /// Takes notice of why the server has ended the dialogue: with TLS 1.3 it looks for the client's certificate when its
    /// handshake is over for us.
    pub(super) fn lost(&self, place: Place<'_>, error: &io::Error) {
        if self.upstream.asked_for_certificate() && tls::wants_certificate(error) {
            insists(place);
        }
    }
}

/// What a change of both control connections came to.
pub(super) enum Change {
    /// Both are TLS: client, upstream.
    Secured { client: Wire, upstream: Wire, security: Arc<Security> },
    /// Both are plain again; these bytes of the client came behind its last word in TLS.
    Cleared { client: Wire, upstream: Wire, received: Vec<u8> },
    /// The session is not to be opened; these bytes of the client were read.
    Passes { client: TcpStream, upstream: TcpStream, received: Vec<u8> },
    /// It failed on this leg; both are gone.
    Failed(Leg),
}

/// What is done with TLS of this session, before the client has named a server; none: that depends on the name.
pub(super) fn decide(place: Place<'_>) -> Option<TlsAction> {
    match about(place).decide(place.config) {
        tls::Decision::Is(action) => Some(action),
        tls::Decision::ByName => None,
    }
}

fn has_rules(place: Place<'_>) -> bool {
    let (client, dialled) = (place.client.ip(), place.dialled.ip());
    Rules::of(place.config, Protocol::Ftp, client, dialled).is_some()
}

fn about(place: Place<'_>) -> tls::About {
    tls::About {
        protocol: Protocol::Ftp,
        direction: place.config.direction(place.client.ip(), place.server.ip()),
        client: place.client.ip(),
        server: place.server.ip(),
        otherwise: place.config.ftp.tls.into(),
    }
}

/// Makes TLS of both control connections.
pub(super) async fn secure(place: Place<'_>, client: TcpStream, upstream: TcpStream) -> Change {
    let limit = place.config.tls.handshake_timeout;
    let change = timeout(limit, Box::pin(handshakes(place, client, upstream))).await;
    change.unwrap_or_else(|_| {
        place.flow.anomaly("ftp_tls_timeout", format!("no handshake in {limit:?}"));
        Change::Failed(Leg::Client)
    })
}

async fn handshakes(place: Place<'_>, mut client: TcpStream, upstream: TcpStream) -> Change {
    let failed = |leg, error: &dyn std::fmt::Display| {
        tracing::debug!(flow = %place.flow.id(), ?leg, "TLS: {error}");
        let side = if leg == Leg::Client { Side::Client } else { Side::Server };
        place.flow.tls_failed(side, error);
        Change::Failed(leg)
    };
    let hello = match Hello::read(&mut client, Vec::new()).await {
        Ok(hello) => hello,
        Err(HelloError::NotTls) => {
            place.flow.anomaly("ftp_no_tls_record", "AUTH was accepted, TLS did not follow");
            return Change::Failed(Leg::Client);
        }
        Err(error) => {
            give_up(client).await;
            return failed(Leg::Client, &error);
        }
    };
    let names: Vec<String> = hello.server_name.iter().cloned().collect();
    match about(place).named(place.config, &names) {
        TlsAction::Terminate => {}
        // Behind TLS no rule could be kept.
        TlsAction::Pass if !has_rules(place) => {
            return Change::Passes { client, upstream, received: hello.bytes };
        }
        TlsAction::Pass | TlsAction::Refuse | TlsAction::Strip => {
            refuse(client).await;
            return failed(Leg::Client, &"refused by policy");
        }
    }
    let tls = place.tls;
    let server = place.server.ip();
    if place.gateway.closed_book.has(&(place.client.ip(), place.server)) && may_pass(place) {
        let what = "the client has a certificate for this server, which cannot be handed on";
        place.flow.anomaly("tls_client_certificate", what);
        return Change::Passes { client, upstream, received: hello.bytes };
    }
    let way = match tls.upstream(place.config, server, hello.server_name.as_deref()) {
        Ok(way) => way,
        Err(error) => return failed(Leg::Upstream, &error),
    };
    let mut expected = None;
    let made = tokio::join!(
        biased;
        TlsWire::connect(upstream, &way, b""),
        async { expected = tls.expect(place.config, server, &hello) },
    );
    let upstream = match made.0 {
        Ok(upstream) => upstream,
        // A server that insists on a certificate: only its client can have one.
        Err(error) if way.asked_for_certificate() && way.refusal().is_none() => {
            insists(place);
            let anew = if may_pass(place) { dial_anew(place).await } else { Err(error) };
            return match anew {
                Ok(upstream) => Change::Passes { client, upstream, received: hello.bytes },
                Err(error) => {
                    refuse(client).await;
                    failed(Leg::Upstream, &error)
                }
            };
        }
        Err(error) => {
            refuse(client).await;
            let why = way.refusal().unwrap_or_else(|| error.to_string());
            return failed(Leg::Upstream, &why);
        }
    };
    let shown = match tls.shown(place.config, server, &hello, Some(&way)) {
        Ok(shown) => shown,
        Err(error) => {
            refuse(client).await;
            return failed(Leg::Client, &error);
        }
    };
    // vsftpd asks every client, and does not mind. Whether a server insists is found out: asking the client as well would
    // leave its data connections without a session to resume.
    let answer = Expected::or_another(expected, &shown, false, hello.bytes);
    let (config, answer) = match (shown.config(false), answer) {
        (Ok(config), Ok(answer)) => (config, answer),
        (Err(error), _) => return failed(Leg::Client, &error),
        (_, Err(error)) => return failed(Leg::Client, &error),
    };
    match answer.give(client).await {
        Ok(client) => {
            place.flow.set_tls(TlsRecord {
                sni: hello.server_name,
                client: Some(client.settled().into()),
                server: Some(upstream.settled().into()),
                trusted: way.is_trusted(),
            });
            Change::Secured {
                client: Wire::Tls(client),
                upstream: Wire::Tls(upstream),
                security: Arc::new(Security { upstream: way, client: config }),
            }
        }
        Err(error) => failed(Leg::Client, &error),
    }
}

/// The server insists on a certificate of the client's.
fn insists(place: Place<'_>) {
    if may_pass(place) {
        place.gateway.closed_book.note((place.client.ip(), place.server));
        let what = "the server wants a certificate of the client's, who passes from now on";
        place.flow.anomaly("tls_client_certificate", what);
    } else {
        let what = "the server wants a certificate of the client's, which cannot be handed on; \
                    never_open would let it pass";
        place.flow.anomaly("tls_client_certificate", what);
    }
}

/// Whether sessions may pass because their server says that it wants a certificate: a server of others could say so to
/// have its files pass unread.
fn may_pass(place: Place<'_>) -> bool {
    place.config.is_inside(place.server.ip()) && !has_rules(place)
}

/// Another connection to the server, as far as its client has come: TLS is to begin.
async fn dial_anew(place: Place<'_>) -> io::Result<TcpStream> {
    let mut upstream = place.gateway.redial(place.client, place.server).await?;
    if !place.config.ftp.is_implicit(place.server.port()) {
        answer(&mut upstream, b"220").await?;
        upstream.write_all(b"AUTH TLS\r\n").await?;
        answer(&mut upstream, b"234").await?;
    }
    Ok(upstream)
}

/// Reads a reply, which must have this code, and nothing behind it.
async fn answer(upstream: &mut TcpStream, code: &[u8; 3]) -> io::Result<()> {
    let mut reply = Vec::new();
    while reply.len() < ANSWER_MAX {
        if upstream.read_buf(&mut reply).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut lines = reply.split_inclusive(|byte| *byte == b'\n');
        let Some(first) = lines.next().filter(|line| line.ends_with(b"\n")) else { continue };
        // Several lines begin with the code and a hyphen, and end with one that has it and a space (RFC 959 section 4.2).
        let ended = match first.strip_prefix(code).and_then(<[u8]>::first) {
            Some(b'-') => lines.any(|line| {
                line.starts_with(code) && line.get(3) == Some(&b' ') && line.ends_with(b"\n")
            }),
            Some(_) => true,
            None => return Err(io::Error::other("the server has another answer this time")),
        };
        match (ended, lines.next()) {
            (true, None) => return Ok(()),
            (true, Some(_)) => return Err(io::Error::other("the server talks too much")),
            (false, _) => {}
        }
    }
    Err(io::Error::other("the server talks too much"))
}

/// Tells a client in the middle of its handshake that there is no way to the server.
async fn refuse(mut client: TcpStream) {
    // It may be gone.
    let _ = client.write_all(&HANDSHAKE_FAILURE).await;
    give_up(client).await;
}

/// A data connection on which TLS begins: as the server of the client, once that has begun, or as the client of the
/// server. Both resume the sessions of the dialogue, which some peers insist on.
///
/// # Errors
/// The handshake failed or took too long.
pub(super) async fn data(
    place: Place<'_>,
    security: &Security,
    leg: Leg,
    tcp: TcpStream,
) -> io::Result<Wire> {
    let wire = async {
        match leg {
            Leg::Client => TlsWire::accept(tcp, Arc::clone(&security.client), Vec::new()).await,
            Leg::Upstream => TlsWire::connect(tcp, &security.upstream, b"").await,
        }
    };
    let made = match timeout(place.config.tls.handshake_timeout, Box::pin(wire)).await {
        Ok(made) => made,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    };
    match made {
        Ok(wire) => Ok(Wire::Tls(wire)),
        Err(error) => {
            let side = if leg == Leg::Client { "client" } else { "server" };
            place.flow.anomaly("ftp_tls_data", format!("{side}: {error}"));
            Err(error)
        }
    }
}

/// Waits until the client has said something on its data connection. Some say nothing before the 150, which may take as
/// long as a scan; the time for the handshake runs from then on.
pub(super) async fn begun(tcp: &TcpStream) -> io::Result<()> {
    tcp.readable().await
}

/// Ends TLS on both control connections: our close_notify, then the peer's. What it says behind that is plain.
pub(super) async fn clear(place: Place<'_>, client: Wire, upstream: Wire) -> Change {
    let limit = place.config.tls.handshake_timeout;
    let both = async {
        let client = plain(client).await.map_err(|error| (Leg::Client, error))?;
        let upstream = plain(upstream).await.map_err(|error| (Leg::Upstream, error))?;
        if upstream.1.is_empty() {
            return Ok::<_, (Leg, io::Error)>((client.0, upstream.0, client.1));
        }
        // Nobody has asked it anything.
        Err((Leg::Upstream, io::Error::other("the server speaks without being asked")))
    };
    match timeout(limit, Box::pin(both)).await {
        Ok(Ok((client, upstream, received))) => Change::Cleared { client, upstream, received },
        Ok(Err((leg, error))) => {
            place.flow.anomaly("ftp_ccc", &error);
            Change::Failed(leg)
        }
        Err(_) => {
            place.flow.anomaly("ftp_ccc", "no close_notify");
            Change::Failed(Leg::Client)
        }
    }
}

/// The TCP stream, and what was read of it behind the peer's close_notify.
async fn plain(wire: Wire) -> io::Result<(Wire, Vec<u8>)> {
    match wire {
        Wire::Plain(tcp) => Ok((Wire::Plain(tcp), Vec::new())),
        Wire::Tls(mut tls) => {
            std::future::poll_fn(|cx| tls.poll_close_notify(cx)).await?;
            tls.ended().await?;
            let (tcp, received) = tls.into_plain();
            Ok((Wire::Plain(tcp), received))
        }
    }
}

/// Ends what is left of a failed session.
pub(super) fn reset(leg: Option<Wire>) {
    match leg {
        Some(Wire::Plain(tcp)) => net::abort(tcp),
        Some(wire @ Wire::Tls(_)) => wire.abort(),
        None => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::tests::connected;

    /// What comes of these words of a server, whichever way they are cut.
    async fn answered(words: &'static [u8]) -> bool {
        let mut results = Vec::new();
        for cut in 0..words.len() {
            let (mut server, mut gateway) = connected().await;
            let said = async {
                server.set_nodelay(true).unwrap();
                server.write_all(&words[..cut]).await.unwrap();
                tokio::task::yield_now().await;
                server.write_all(&words[cut..]).await.unwrap();
                server.shutdown().await.unwrap();
            };
            let (_, result) = tokio::join!(said, answer(&mut gateway, b"220"));
            results.push(result.is_ok());
        }
        assert!(results.windows(2).all(|two| two[0] == two[1]), "{results:?}");
        results[0]
    }

    #[tokio::test]
    async fn a_server_that_is_dialled_anew_has_to_answer_as_before() {
        for good in
            [&b"220 ready\r\n"[..], b"220\r\n", b"220-a\r\n 220 not yet\r\n220-b\r\n220 ready\r\n"]
        {
            assert!(answered(good).await, "{}", good.escape_ascii());
        }
        for bad in [&b"421 full\r\n"[..], b"220-a\r\n", b"220-a\r\n221 b\r\n", b"220 no line"] {
            assert!(!answered(bad).await, "{}", bad.escape_ascii());
        }
        // Cut behind the first reply, the second has not come.
        let (mut server, mut gateway) = connected().await;
        server.write_all(b"220 ready\r\n220 twice\r\n").await.unwrap();
        assert!(answer(&mut gateway, b"220").await.is_err());
    }
}

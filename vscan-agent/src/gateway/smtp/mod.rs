//! Drives the SMTP session machine on real sockets.
//!
//! `driver` moves bytes between the two legs, the machine, the spool and the scanner; `deliver`
//! writes a held message to the server; `secure` opens TLS, `blind` is what is left of a session whose TLS is not opened.
//! What SMTP means is `vscan_proto::smtp`'s business.

mod blind;
mod deliver;
mod driver;
mod secure;

use super::{Closing, Gateway};
use crate::{
    access::Rules,
    config,
    config::{TlsAction, UpstreamTls},
    net::{self, Dialling},
    observe::FlowHandle,
    tls::{Decision, Wire},
};
use driver::{Driver, End};
use secure::{Opened, Place, Way};
use std::{future::poll_fn, io, sync::Arc, time::Duration};
use tokio::{io::AsyncWriteExt, net::TcpStream};
use vscan_proto::smtp::{BareNewline, Config, Permit, Secured, Server, StartTls};

/// From the client's final dot to its final reply: RFC 5321 4.5.3.2.6 gives a client 10 minutes to wait, and the
/// reply has to reach it.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(570);

/// From the end of a message to its verdict. A server that gets the message then has more than four minutes for
/// its answer before the client loses patience.
const RULING_TIMEOUT: Duration = Duration::from_secs(300);

/// Serves one SMTP session until all is said.
pub async fn run(
    gateway: &Gateway,
    client: TcpStream,
    upstream: io::Result<Dialling>,
    flow: &FlowHandle,
) -> Option<Closing> {
    let config = gateway.config();
    let server = flow.opened().real_server;
    // Boxed, as all that an idle session does not need: its future has room for the driver alone.
    let upstream = match Box::pin(gateway.connected(upstream, server)).await {
        Ok(upstream) => upstream,
        Err(error) => {
            Box::pin(unreachable(client, flow, error)).await;
            return None;
        }
    };
    let speaks = Speaks {
        lmtp: config.smtp.speaks_lmtp(server.port()),
        tls: config.smtp.begins_with_tls(server.port()),
    };
    serve(gateway, &config, flow, speaks, client, upstream).await
}

/// What a server speaks, by its port.
#[derive(Clone, Copy, Debug, Default)]
struct Speaks {
    lmtp: bool,
    /// TLS from the first byte on.
    tls: bool,
}

/// Serves a session whose legs are connected.
async fn serve(
    gateway: &Gateway,
    config: &config::Config,
    flow: &FlowHandle,
    speaks: Speaks,
    client: TcpStream,
    upstream: TcpStream,
) -> Option<Closing> {
    let mut legs = (Wire::Plain(client), Wire::Plain(upstream));
    let mut secured = None;
    if speaks.tls {
        let (client, upstream, now) = Box::pin(implicit(gateway, config, flow, legs)).await?;
        legs = (client, upstream);
        secured = Some(now);
    }
    let machine = machine(gateway, config, flow, speaks.lmtp, secured);
    let mut driver = Driver::new(gateway, config, flow, machine, legs.0, legs.1);
    loop {
        let end = poll_fn(|cx| driver.poll(cx)).await;
        let End::Secure(server) = end else {
            let (client, upstream) = driver.into_legs();
            return Box::pin(finish(end, client, upstream, config, flow)).await;
        };
        driver = Box::pin(secure(gateway, config, flow, driver, server)).await?;
    }
}

/// Opens TLS where a connection begins with it; `None` if the session is over.
async fn implicit(
    gateway: &Gateway,
    config: &config::Config,
    flow: &FlowHandle,
    legs: (Wire, Wire),
) -> Option<(Wire, Wire, Secured)> {
    let (Wire::Plain(client), Wire::Plain(upstream)) = legs else { return None };
    let ruled = rules(config, flow).is_some();
    match secure::about(config, flow).decide(config) {
        Decision::Is(TlsAction::Pass) if !ruled => {
            blind::relay(client, upstream, config.gateway.idle_timeout, flow).await;
            None
        }
        Decision::Is(TlsAction::Pass | TlsAction::Refuse | TlsAction::Strip) => {
            flow.anomaly("tls_refused", "the port speaks TLS, which is refused");
            net::abort(client);
            net::abort(upstream);
            None
        }
        Decision::Is(TlsAction::Terminate) | Decision::ByName => {
            flow.set_state("handshake");
            let tls = gateway.tls();
            let place = Place { gateway, config, tls: &tls, flow, ruled };
            match place.open(Way::Implicit, client, upstream).await {
                Opened::Inside { client, upstream, secured } => Some((client, upstream, secured)),
                Opened::Over => None,
            }
        }
    }
}

/// Opens TLS behind STARTTLS; `None` if the session is over.
async fn secure<'a>(
    gateway: &'a Gateway,
    config: &'a config::Config,
    flow: &'a FlowHandle,
    driver: Driver<'a>,
    server: Server,
) -> Option<Driver<'a>> {
    flow.set_state("handshake");
    let hello = driver.hello().to_vec();
    let (paused, client, upstream) = driver.pause();
    let (Wire::Plain(client), Wire::Plain(upstream)) = (client, upstream) else { return None };
    let tls = gateway.tls();
    let ruled = rules(config, flow).is_some();
    let place = Place { gateway, config, tls: &tls, flow, ruled };
    let way = match server {
        Server::Absent => Way::Alone,
        Server::Agreed => Way::StartTls { hello: &hello, asked: false },
        Server::Asked => Way::StartTls { hello: &hello, asked: true },
    };
    match place.open(way, client, upstream).await {
        Opened::Inside { client, upstream, secured } => {
            Some(paused.resume(client, upstream, secured))
        }
        Opened::Over => None,
    }
}

fn rules(config: &config::Config, flow: &FlowHandle) -> Option<Arc<Rules>> {
    let (client, server) = (flow.opened().client.ip(), flow.opened().server.ip());
    Rules::of(config, config::Protocol::Smtp, client, server)
}

/// What becomes of STARTTLS in a session that begins in the clear.
fn starttls(
    gateway: &Gateway,
    config: &config::Config,
    flow: &FlowHandle,
    ruled: bool,
) -> StartTls {
    let server = flow.opened().real_server;
    let inside = config.is_inside(server.ip());
    let at_once = !gateway.reluctant.has(&server);
    match secure::about(config, flow).decide(config) {
        Decision::Is(TlsAction::Pass) if !ruled => StartTls::Pass,
        // Behind TLS no rule could be kept.
        Decision::Is(TlsAction::Pass | TlsAction::Refuse) => StartTls::Refuse,
        Decision::Is(TlsAction::Strip) => StartTls::Strip,
        Decision::ByName => StartTls::Open { always: false, at_once },
        Decision::Is(TlsAction::Terminate) if !gateway.tls().can_show(inside) => {
            flow.anomaly("tls_no_certificate", "there is no certificate for this server");
            StartTls::Refuse
        }
        Decision::Is(TlsAction::Terminate) => {
            let (upstream, _) = config.tls.upstream_of(server.ip(), None);
            // A server of others is not made to look as if it had TLS.
            let always = inside && upstream.tls == UpstreamTls::Offered;
            StartTls::Open { always, at_once }
        }
    }
}

fn machine(
    gateway: &Gateway,
    config: &config::Config,
    flow: &FlowHandle,
    lmtp: bool,
    secured: Option<Secured>,
) -> Arc<Config> {
    let rules = rules(config, flow);
    Arc::new(Config {
        starttls: starttls(gateway, config, flow, rules.is_some()),
        secured,
        bare_newline: match config.smtp.bare_newline {
            config::BareNewline::Pass => BareNewline::Pass,
            config::BareNewline::Lookalikes => BareNewline::LookAlikes,
            config::BareNewline::Refuse => BareNewline::Refuse,
        },
        permit: rules.map(|rules| rules as Arc<dyn Permit>),
        lmtp,
        hide_extensions: config.smtp.hide_extensions.clone(),
        hold_max: config.spool.hold_max,
        keepalive: config.smtp.noop_interval,
        idle_timeout: config.gateway.idle_timeout,
        ruling_timeout: RULING_TIMEOUT,
        answer_timeout: ANSWER_TIMEOUT,
    })
}

async fn finish(
    end: End,
    client: Wire,
    upstream: Wire,
    config: &config::Config,
    flow: &FlowHandle,
) -> Option<Closing> {
    // A leg that does not end in order is reset; there is nobody left to tell.
    match end {
        End::Close => return Some(Closing { client, upstream }),
        End::CloseClient => {
            flow.set_state("closing");
            upstream.abort();
            let _ = client.close_gracefully().await;
        }
        End::Reset | End::Secure(_) => {
            client.abort();
            upstream.abort();
        }
        End::Blind => {
            // Only what is in the clear can become TLS.
            if let (Wire::Plain(client), Wire::Plain(upstream)) = (client, upstream) {
                blind::relay(client, upstream, config.gateway.idle_timeout, flow).await;
            }
        }
    }
    None
}

/// Tells the client that there is no server, and why.
async fn unreachable(mut client: TcpStream, flow: &FlowHandle, error: io::Error) {
    flow.anomaly("smtp_server_unreachable", &error);
    let why = match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused",
        io::ErrorKind::TimedOut => "connection timed out",
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => "no route",
        _ => "connection failed",
    };
    let reply = format!("421 4.4.1 Cannot reach the server: {why}\r\n");
    if client.write_all(reply.as_bytes()).await.is_ok() {
        // The client may be gone already; there is nothing left to tell it.
        let _ = net::close_gracefully(client).await;
    }
}

#[cfg(test)]
mod tests;

//! Drives the SMTP session machine on real sockets.
//!
//! `driver` moves bytes between the two legs, the machine, the spool and the scanner; `deliver`
//! writes a held message to the server; `blind` is what is left of a session behind STARTTLS.
//! What SMTP means is `vscan_proto::smtp`'s business.

mod blind;
mod deliver;
mod driver;

use super::{Accepted, Gateway};
use crate::{access::Rules, config, net, observe::FlowHandle};
use driver::{Driver, End};
use std::{future::poll_fn, io, sync::Arc, time::Duration};
use tokio::{io::AsyncWriteExt, net::TcpStream};
use vscan_proto::smtp::{BareNewline, Config, Permit, StartTls};

/// From the client's final dot to its final reply: RFC 5321 4.5.3.2.6 gives a client 10 minutes to wait, and the
/// reply has to reach it.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(570);

/// From the end of a message to its verdict. A server that gets the message then has more than four minutes for
/// its answer before the client loses patience.
const RULING_TIMEOUT: Duration = Duration::from_secs(300);

/// Serves one SMTP session to its end.
pub async fn run(gateway: &Arc<Gateway>, conn: Accepted, flow: FlowHandle) {
    let config = gateway.config();
    // Boxed, as all that an idle session does not need: its future has room for the driver alone.
    let upstream = match Box::pin(gateway.connect_upstream(&conn)).await {
        Ok(upstream) => upstream,
        Err(error) => return Box::pin(unreachable(conn.client, &flow, error)).await,
    };
    let lmtp = config.smtp.speaks_lmtp(conn.server.port());
    serve(gateway, &config, &flow, lmtp, conn.client, upstream).await;
}

/// Serves a session whose legs are connected.
async fn serve(
    gateway: &Gateway,
    config: &config::Config,
    flow: &FlowHandle,
    lmtp: bool,
    client: TcpStream,
    upstream: TcpStream,
) {
    let machine = machine(config, flow, lmtp);
    let mut driver = Driver::new(gateway, config, flow, machine, client, upstream);
    let end = poll_fn(|cx| driver.poll(cx)).await;
    let (client, upstream) = driver.into_legs();
    Box::pin(finish(end, client, upstream, config, flow)).await;
}

fn machine(config: &config::Config, flow: &FlowHandle, lmtp: bool) -> Arc<Config> {
    let (client, server) = (flow.opened().client.ip(), flow.opened().server.ip());
    let rules = Rules::of(config, config::Protocol::Smtp, client, server);
    Arc::new(Config {
        starttls: match config.smtp.starttls {
            config::TlsAction::Pass if rules.is_none() => StartTls::Pass,
            // Behind TLS no rule could be kept.
            config::TlsAction::Pass | config::TlsAction::Refuse | config::TlsAction::Terminate => {
                StartTls::Refuse
            }
            config::TlsAction::Strip => StartTls::Strip,
        },
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
    client: TcpStream,
    upstream: TcpStream,
    config: &config::Config,
    flow: &FlowHandle,
) {
    // A leg that does not end in order is reset; there is nobody left to tell.
    match end {
        End::Close => {
            flow.set_state("closing");
            let _ = tokio::join!(net::close_gracefully(client), net::close_gracefully(upstream));
        }
        End::CloseClient => {
            flow.set_state("closing");
            net::abort(upstream);
            let _ = net::close_gracefully(client).await;
        }
        End::Reset => {
            net::abort(client);
            net::abort(upstream);
        }
        End::Blind => blind::relay(client, upstream, config.gateway.idle_timeout, flow).await,
    }
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

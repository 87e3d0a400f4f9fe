//! Drives the FTP session machine of `vscan-proto` on real sockets.
//!
//! `control` moves the dialogue and carries out what the machine asks for, `data` owns the data
//! channels and what runs on them, `transfer` and `passing` move a file, `judging` says whether it may
//! go on, `memory` is what sessions know from one another, `secure` makes TLS of legs, `tls` relays what is not opened. No FTP
//! is understood here.

mod ascii;
mod control;
mod data;
mod judging;
mod memory;
mod partial;
mod passing;
mod secure;
mod sniff;
mod tls;
mod transfer;

#[cfg(test)]
mod tests;

use super::{Closing, Gateway, refuse};
use crate::{
    access::Rules,
    config::{Config, Protocol, TlsAction},
    net::{self, Dialling},
    observe::{FlowHandle, FlowOpen},
    tls::Wire,
};
use control::{Control, Ended};
use data::Protected;
pub use memory::Memory;
use socket2::SockRef;
use std::{io, net::SocketAddr, sync::Arc};
use tokio::net::TcpStream;
use vscan_proto::ftp::{Permit, Settings, Sniff, Timing, Tls};

/// What every part of one session's driver needs.
#[derive(Clone, Copy)]
struct Place<'a> {
    gateway: &'a Gateway,
    config: &'a Config,
    flow: &'a FlowHandle,
    client: SocketAddr,
    dialled: SocketAddr,
    server: SocketAddr,
    /// The gateway's end of the upstream leg: the client's address and another port.
    upstream: SocketAddr,
    /// What clients are shown, and how servers are verified.
    tls: &'a crate::tls::Tls,
}

/// Serves one FTP session until all is said.
pub async fn run(
    gateway: &Gateway,
    client: TcpStream,
    upstream: io::Result<Dialling>,
    flow: &FlowHandle,
) -> Option<Closing> {
    let config = gateway.config();
    let &FlowOpen { client: client_addr, server: dialled, real_server: server, .. } = flow.opened();
    // The data mark of a Telnet Synch must stay in its place.
    if SockRef::from(&client).set_out_of_band_inline(true).is_err() {
        return None;
    }
    // Boxed: what happens once must not make every idle session larger.
    let upstream = match Box::pin(gateway.connected(upstream, server)).await {
        Ok(upstream) => upstream,
        Err(error) => {
            flow.set_state("refused");
            let why = format!("The server cannot be reached: {}", error.kind());
            Box::pin(refuse(client, Protocol::Ftp, &why)).await;
            return None;
        }
    };
    let prepared = net::keep_alive(&client).and_then(|()| net::keep_alive(&upstream));
    let local = prepared.and_then(|()| upstream.local_addr()).ok()?;
    let tls = gateway.tls();
    let place = Place {
        gateway,
        config: &config,
        flow,
        client: client_addr,
        dialled,
        server,
        upstream: local,
        tls: &tls,
    };
    let settings = settings(place);
    let (client, upstream, protected) = if config.ftp.is_implicit(server.port()) {
        Box::pin(implicit(place, &settings, client, upstream)).await?
    } else {
        (Wire::Plain(client), Wire::Plain(upstream), Protected::default())
    };
    let mut control = Control::new(place, settings, client, upstream, protected);
    let ended = control.run().await;
    let (client, upstream, received) = control.into_legs();
    match (ended, client, upstream) {
        (Ended::Closed, Some(client), Some(upstream)) => {
            return Some(Closing { client, upstream });
        }
        (
            Ended::Blind | Ended::BlindBehind,
            Some(Wire::Plain(client)),
            Some(Wire::Plain(upstream)),
        ) => Box::pin(tls::relay(place, client, upstream, received)).await,
        (Ended::Closed | Ended::Reset | Ended::Blind | Ended::BlindBehind, client, upstream) => {
            secure::reset(client);
            secure::reset(upstream);
        }
    }
    None
}

/// A connection that begins with TLS (port 990): both handshakes, unless it is not opened or refused. None: it is over.
async fn implicit<'a>(
    place: Place<'a>,
    settings: &Settings,
    client: TcpStream,
    upstream: TcpStream,
) -> Option<(Wire, Wire, Protected)> {
    match settings.tls {
        Tls::Implicit => {}
        Tls::Pass => {
            tls::relay(place, client, upstream, Vec::new()).await;
            return None;
        }
        Tls::Refuse | Tls::Terminate => {
            place.flow.set_state("refused");
            net::abort(client);
            net::abort(upstream);
            return None;
        }
    }
    place.flow.set_state("tls handshake");
    match secure::secure(place, client, upstream).await {
        secure::Change::Secured { client, upstream, security } => {
            let protected = Protected { private: true, security: Some(security) };
            Some((client, upstream, protected))
        }
        secure::Change::Passes { client, upstream, received } => {
            tls::relay(place, client, upstream, received).await;
            None
        }
        secure::Change::Cleared { .. } | secure::Change::Failed(_) => None,
    }
}

/// The machine's settings.
fn settings(place: Place<'_>) -> Settings {
    let config = place.config;
    let rules = Rules::of(config, Protocol::Ftp, place.client.ip(), place.dialled.ip());
    Settings {
        tls: match (secure::decide(place), config.ftp.is_implicit(place.server.port())) {
            // The name decides later.
            (Some(TlsAction::Terminate) | None, false) => Tls::Terminate,
            (Some(TlsAction::Terminate) | None, true) => Tls::Implicit,
            // Behind TLS no rule could be kept.
            (Some(TlsAction::Pass), _) if rules.is_none() => Tls::Pass,
            (Some(TlsAction::Pass | TlsAction::Refuse | TlsAction::Strip), _) => Tls::Refuse,
        },
        permit: rules.map(|rules| rules as Arc<dyn Permit>),
        delivery: partial::delivery(config.ftp.delivery),
        resume: partial::resume(config.ftp.resume),
        skip_extensions: config.scan.skip_extensions.clone(),
        sniff: match (config.scan.skip_types.is_empty(), config.scan.verify_type) {
            (false, _) => Sniff::All,
            (true, true) => Sniff::Skipped,
            (true, false) => Sniff::Never,
        },
        timing: Timing {
            patience: config
                .ftp
                .server_patience
                .or_else(|| place.gateway.memory.patience(place.server)),
            keep_awake: config.ftp.noop_interval,
            idle: config.gateway.idle_timeout,
            ..Timing::default()
        },
    }
}

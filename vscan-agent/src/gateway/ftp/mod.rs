//! Drives the FTP session machine of `vscan-proto` on real sockets.
//!
//! `control` moves the dialogue and carries out what the machine asks for, `data` owns the data
//! channels and what runs on them, `transfer` and `passing` move a file, `judging` says whether it may
//! go on, `memory` is what sessions know from one another, `tls` relays what is encrypted. No FTP is understood here.

mod ascii;
mod control;
mod data;
mod judging;
mod memory;
mod partial;
mod passing;
mod sniff;
mod tls;
mod transfer;

#[cfg(test)]
mod tests;

use super::{Accepted, Gateway, refuse};
use crate::{
    access::Rules,
    config::{Config, FtpTls, Protocol},
    net,
    observe::FlowHandle,
};
use control::{Control, Ended};
pub use memory::Memory;
use socket2::SockRef;
use std::{net::SocketAddr, sync::Arc};
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
}

/// Serves one FTP session to its end.
pub async fn run(gateway: &Arc<Gateway>, conn: Accepted, flow: FlowHandle) {
    let config = gateway.config();
    // The data mark of a Telnet Synch must stay in its place.
    if SockRef::from(&conn.client).set_out_of_band_inline(true).is_err() {
        return;
    }
    // Boxed: what happens once must not make every idle session larger.
    let upstream = match Box::pin(gateway.connect_upstream(&conn)).await {
        Ok(upstream) => upstream,
        Err(error) => {
            flow.set_state("refused");
            let why = format!("The server cannot be reached: {}", error.kind());
            return Box::pin(refuse(conn.client, Protocol::Ftp, &why)).await;
        }
    };
    let prepared = net::keep_alive(&conn.client).and_then(|()| net::keep_alive(&upstream));
    let Ok(local) = prepared.and_then(|()| upstream.local_addr()) else { return };
    let Accepted { client, client_addr, dialled, server } = conn;
    let place = Place {
        gateway,
        config: &config,
        flow: &flow,
        client: client_addr,
        dialled,
        server,
        upstream: local,
    };
    let mut control = Control::new(place, settings(place), client, upstream);
    let ended = control.run().await;
    let (client, upstream) = control.into_legs();
    match ended {
        Ended::Closed => {
            // Each leg waits for its peer; that one of them is gone already changes nothing.
            let _ = Box::pin(async {
                tokio::join!(net::close_gracefully(client), net::close_gracefully(upstream))
            })
            .await;
        }
        Ended::Reset => {
            net::abort(client);
            net::abort(upstream);
        }
        Ended::Blind => Box::pin(tls::relay(place, client, upstream)).await,
    }
}

/// The machine's settings.
fn settings(place: Place<'_>) -> Settings {
    let config = place.config;
    let rules = Rules::of(config, Protocol::Ftp, place.client.ip(), place.dialled.ip());
    Settings {
        tls: match config.ftp.tls {
            // Behind TLS no rule could be kept.
            FtpTls::Pass if rules.is_none() => Tls::Pass,
            FtpTls::Pass | FtpTls::Refuse => Tls::Refuse,
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

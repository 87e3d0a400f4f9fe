//! The way into TLS: the blind relay, where what follows the 220 to STARTTLS must be TLS on both legs, and the session
//! that goes on inside of TLS, which the driver has opened (RFC 3207).
//!
//! The records themselves are nobody's business here.

use std::time::Instant;

use crate::line::Line;
use crate::smtp::reply::Offer;

use super::{Anomaly, Leg, Output, Pending, Secured, Server, Session, StartTls, State};

/// ContentType handshake, RFC 8446 section 5.1.
const HANDSHAKE: u8 = 22;

/// ContentType alert: a server may refuse at once.
const ALERT: u8 = 21;

/// The major version in every record of SSL 3.0 and TLS.
const MAJOR: u8 = 3;

/// Bytes of the first record header that are checked.
const CHECKED: u8 = 2;

/// How much of the first record was seen, on each leg.
#[derive(Debug, Default)]
pub(super) struct Opening {
    client: u8,
    upstream: u8,
}

impl Session {
    /// The server has agreed.
    pub(super) fn start_tls(&mut self) {
        self.state = match (self.client, self.config.starttls) {
            (Leg::Ended | Leg::Lost, _) => State::Commands,
            (Leg::Open, StartTls::Open { .. }) => return self.secure(Server::Agreed),
            (Leg::Open, StartTls::Pass | StartTls::Refuse | StartTls::Strip) => {
                State::Tls(Opening::default())
            }
        };
    }

    /// If the client has its 220 without the server, which has answered everything else.
    pub(super) fn secure_alone(&mut self) {
        if self.securing_alone && self.pending.iter().all(Pending::is_ours) {
            self.securing_alone = false;
            self.secure(Server::Absent);
        }
    }

    /// Whether the client can have its 220 before the server's: that has announced just this, is in no transaction, and owes
    /// nothing else.
    pub(super) fn may_secure_at_once(&self, line: &Line) -> bool {
        self.offer.starttls
            && line.content().eq_ignore_ascii_case(b"STARTTLS")
            && self.transaction.is_none()
            && self.pending.is_empty()
            && self.upstream_lines.is_empty()
    }

    /// The client has its 220.
    pub(super) fn secure(&mut self, server: Server) {
        self.actions.push_back(Output::Secure(server));
        self.state = State::Securing;
    }

    /// The EHLO or LHLO line, with which the server may be greeted by vscan.
    pub(super) fn remember(&mut self, line: &Line) {
        if matches!(self.config.starttls, StartTls::Open { .. }) && self.secured.is_none() {
            self.hello = line.raw()[..].into();
        }
    }

    /// The client's last EHLO or LHLO line before STARTTLS, with its ending; empty if there was none.
    pub fn hello(&self) -> &[u8] {
        &self.hello
    }

    /// The client has sent something behind STARTTLS before it could know that TLS begins: it is not known whose words
    /// these are (CVE-2011-0411).
    pub fn handle_injection(&mut self) {
        self.anomaly(Anomaly::CommandsBehindStartTls);
        self.reset();
    }

    /// The handshakes are made: the dialogue begins anew, and nothing is left of what was said before (RFC 3207 section
    /// 4.2), but for the line that the server was greeted with.
    pub fn handle_secured(&mut self, now: Instant, secured: Secured) {
        if !matches!(self.state, State::Securing) {
            return;
        }
        self.state = State::Commands;
        self.secured = Some(secured);
        if secured.greeted {
            self.pending.push_back(Pending::OurEhlo);
        } else {
            self.hello = Box::default();
        }
        self.transaction = None;
        self.ahead = None;
        self.offer = Offer::default();
        self.greeted = false;
        self.per_recipient = false;
        self.access.authenticated = false;
        self.activity = now;
        self.proceed();
    }

    pub(super) fn client_tls(&mut self, bytes: &[u8]) {
        self.to_upstream.extend_from_slice(bytes);
        if let State::Tls(opening) = &mut self.state {
            let is_tls = begins_record(&mut opening.client, &[HANDSHAKE], bytes);
            self.after_opening(is_tls);
        }
    }

    pub(super) fn upstream_tls(&mut self, bytes: &[u8]) {
        self.to_client.extend_from_slice(bytes);
        if let State::Tls(opening) = &mut self.state {
            let is_tls = begins_record(&mut opening.upstream, &[HANDSHAKE, ALERT], bytes);
            self.after_opening(is_tls);
        }
    }

    fn after_opening(&mut self, is_tls: bool) {
        if !is_tls {
            self.anomaly(Anomaly::NotTls);
            self.reset();
        } else if matches!(self.state, State::Tls(Opening { client: CHECKED, upstream: CHECKED })) {
            self.state = State::Blind;
            self.actions.push_back(Output::Blind);
        }
    }
}

fn begins_record(seen: &mut u8, types: &[u8], bytes: &[u8]) -> bool {
    for byte in bytes {
        match *seen {
            0 if types.contains(byte) => {}
            1 if *byte == MAJOR => {}
            CHECKED.. => break,
            _ => return false,
        }
        *seen += 1;
    }
    true
}

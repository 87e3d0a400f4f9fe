//! The way into the blind relay: what follows the 220 to STARTTLS must be TLS on both legs.
//!
//! The records themselves are nobody's business here.

use super::{Anomaly, Leg, Output, Session, State};

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
    pub(super) fn start_tls(&mut self) {
        self.state = match self.client {
            Leg::Open => State::Tls(Opening::default()),
            Leg::Ended | Leg::Lost => State::Commands,
        };
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

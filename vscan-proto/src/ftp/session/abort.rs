//! ABOR of a transfer that the server knows of.
//!
//! The client gets two final replies, for the transfer and for the ABOR (RFC 959 section 4.1.3). Servers do not agree on
//! how many they give: most two, Pure-FTPd one to a download and two without a 226 to an upload. A NOOP behind the
//! first tells where they end.

use std::time::Instant;

use bytes::Bytes;

use super::core::{Core, Expect};
use super::{State, text};
use crate::ftp::reply::Reply;

/// Final replies that ABOR can have: the transfer's and its own.
const REPLIES: usize = 2;

/// What NOOP is answered by (RFC 959 section 5.4), and neither a transfer nor ABOR.
const NOOP_OK: u16 = 200;

#[derive(Debug)]
pub(super) struct Abort {
    pub(super) until: Instant,
    said: Vec<Reply>,
}

impl Abort {
    pub(super) fn begin(core: &mut Core, now: Instant) -> Box<Self> {
        core.forget_transfer();
        core.tell_upstream(now, &b"ABOR\r\n"[..], Expect::Abort);
        Box::new(Self { until: now + core.settings.timing.close, said: Vec::new() })
    }

    /// Takes a final reply.
    pub(super) fn replied(
        mut self: Box<Self>,
        core: &mut Core,
        now: Instant,
        reply: Reply,
    ) -> State {
        if self.said.len() == REPLIES || !self.said.is_empty() && reply.code == NOOP_OK {
            core.expect.pop_front();
            self.tell(core);
            return State::Idle;
        }
        if self.said.is_empty() {
            core.tell_upstream_more(now, &b"NOOP\r\n"[..]);
        }
        self.said.push(reply);
        State::Abort(self)
    }

    fn tell(self, core: &mut Core) {
        let mut said = self.said.into_iter();
        let (first, second) = (said.next(), said.next());
        let (transfer, abort) = match (first, second) {
            // It was complete before the server heard of the ABOR, but not at the client.
            (Some(first), Some(second)) if !first.is_refusal() => (None, Some(second.raw)),
            (Some(first), Some(second)) => (Some(first.raw), Some(second.raw)),
            (Some(only), None) if only.is_refusal() => (Some(only.raw), None),
            (only, None) | (None, only) => (None, only.map(|only| only.raw)),
        };
        core.tell_client(transfer.unwrap_or(Bytes::from_static(text::TRANSFER_ABORTED)));
        core.tell_client(abort.unwrap_or(Bytes::from_static(text::ABOR_OK)));
    }
}

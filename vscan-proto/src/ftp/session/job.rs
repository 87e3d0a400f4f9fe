//! What downloads, uploads and unscanned transfers have in common.

use std::time::Instant;

use bytes::Bytes;

use super::State;
use super::api::{Begin, Leg, Outcome, Output};
use super::core::{ClientChannel, Core, Expect, UpstreamChannel};
use super::text;
use crate::ftp::command::Command;
use crate::ftp::reply::Reply;

/// A transfer command and what the server said about it.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) command: Command,
    /// The command is with the server.
    pub(super) offered: bool,
    /// The server's 1yz.
    pub(super) opening: Option<Bytes>,
    /// The server's last word.
    pub(super) done: Option<Reply>,
    /// Begin of the present wait for a peer.
    pub(super) since: Instant,
    /// A failed data connection to the server was tried again.
    retried: bool,
}

/// State of the way to the server.
pub(super) enum Way {
    Ready,
    Pending,
    /// None; the reply that says so.
    None(Bytes),
}

impl Job {
    pub(super) fn begin(
        core: &mut Core,
        now: Instant,
        command: Command,
        source: Leg,
        inspected: bool,
    ) -> Self {
        core.output(Output::Begin(Box::new(Begin {
            verb: command.verb,
            name: command.argument().clone(),
            source,
            asked: core.asked,
            inspected,
        })));
        Self { command, offered: false, opening: None, done: None, since: now, retried: false }
    }

    /// Looks after a data connection with the server.
    pub(super) fn way(&mut self, core: &mut Core, now: Instant) -> Way {
        if core.upstream_is_ready(now) {
            return Way::Ready;
        }
        if core.is_arranging() {
            return Way::Pending;
        }
        match &core.upstream {
            UpstreamChannel::Failed(Some(reply)) => return Way::None(reply.raw.clone()),
            UpstreamChannel::Failed(None) if self.retried => {
                return Way::None(Bytes::from_static(text::NO_DATA_CONNECTION));
            }
            UpstreamChannel::Failed(None) => self.retried = true,
            UpstreamChannel::None
            | UpstreamChannel::Connected { .. }
            | UpstreamChannel::Asking(_)
            | UpstreamChannel::Binding
            | UpstreamChannel::Waiting
            | UpstreamChannel::Dialling => {}
        }
        core.arrange(now);
        Way::Pending
    }

    /// Gives the command to the server.
    pub(super) fn offer(&mut self, core: &mut Core, now: Instant) {
        self.offered = true;
        self.since = now;
        core.tell_upstream(now, self.command.wire().clone(), Expect::Transfer);
    }

    /// Takes a reply to the command.
    pub(super) fn replied(&mut self, now: Instant, reply: Reply) {
        self.since = now;
        if reply.code < 200 {
            self.opening.get_or_insert(reply.raw);
        } else {
            self.done = Some(reply);
        }
    }

    /// The server's refusal, if that was its last word.
    pub(super) fn refusal(&self) -> Option<Bytes> {
        self.done.as_ref().filter(|reply| reply.is_refusal()).map(|reply| reply.raw.clone())
    }

    /// Whether the server goes along: it opened the transfer, or even ended it well.
    pub(super) fn is_accepted(&self) -> bool {
        self.opening.is_some() || self.done.as_ref().is_some_and(|reply| !reply.is_refusal())
    }

    /// Ends the transfer. `reset`: the data legs are torn, not closed.
    pub(super) fn finish(core: &mut Core, outcome: Outcome, reply: Bytes, reset: bool) -> State {
        core.drop_client(reset);
        core.drop_upstream(reset);
        core.synchronise();
        core.tell_client(reply);
        core.output(Output::End(outcome));
        State::Idle
    }
}

/// Whether the client's data connection failed for good.
pub(super) fn client_failed(core: &Core) -> bool {
    matches!(core.client, ClientChannel::Failed | ClientChannel::None)
}

//! What downloads, uploads and unscanned transfers have in common.

use std::time::Instant;

use bytes::Bytes;

use super::State;
use super::api::{Begin, Leg, Outcome, Output};
use super::core::{ClientChannel, Core, Expect, Position, UpstreamChannel};
use super::text;
use crate::ftp::command::{Command, Verb};
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
    /// The restart position that the client asked for.
    pub(super) restart: u64,
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
        let restart = std::mem::take(&mut core.restart);
        core.output(Output::Begin(Box::new(Begin {
            verb: command.verb,
            name: command.argument().clone(),
            source,
            asked: core.asked,
            inspected,
            restart,
            path: core.path(command.argument()),
            ascii: core.ascii,
            private: core.private,
        })));
        Self {
            command,
            offered: false,
            opening: None,
            done: None,
            since: now,
            retried: false,
            restart,
        }
    }

    /// Looks after a data connection with the server, and the position `at` there.
    pub(super) fn way_to(&mut self, core: &mut Core, now: Instant, at: u64) -> Way {
        match self.way(core, now) {
            Way::Ready => core.begin_at(now, at),
            way @ (Way::Pending | Way::None(_)) => way,
        }
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
        self.offer_as(core, now, self.command.wire().clone());
    }

    /// Gives another command about the same file to the server.
    pub(super) fn offer_as(&mut self, core: &mut Core, now: Instant, wire: Bytes) {
        self.offered = true;
        self.since = now;
        if core.position != Position::At(0) && self.moves_files() {
            core.position = Position::Unknown;
        }
        core.tell_upstream(now, wire, Expect::Transfer);
    }

    /// Whether a restart position concerns the command: it does no listing.
    pub(super) fn moves_files(&self) -> bool {
        matches!(self.command.verb, Verb::Retr | Verb::Stor | Verb::Appe | Verb::Stou)
    }

    /// Forgets what the server said: it is asked once more.
    pub(super) fn again(&mut self, core: &mut Core) {
        core.synchronise();
        self.offered = false;
        self.opening = None;
        self.done = None;
        self.retried = false;
    }

    /// Takes a reply to the command.
    pub(super) fn replied(&mut self, core: &mut Core, now: Instant, reply: Reply) {
        self.since = now;
        if reply.code < 200 {
            self.opening.get_or_insert(reply.raw);
        } else {
            if !reply.is_refusal() && core.position == Position::Unknown && self.moves_files() {
                core.position = Position::At(0);
            }
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
        if let Some(words) = core.announced.take()
            && outcome == Outcome::Delivered
        {
            core.tell_client(text::announcement(&words, &reply));
        }
        core.tell_client(reply);
        core.output(Output::End(outcome));
        State::Idle
    }
}

/// Whether the client's data connection failed for good.
pub(super) fn client_failed(core: &Core) -> bool {
    matches!(core.client, ClientChannel::Failed | ClientChannel::None)
}

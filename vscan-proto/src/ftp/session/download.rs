//! RETR in hold: the whole file is here and judged before the client gets its 150.

use std::time::Instant;

use bytes::Bytes;

use super::State;
use super::api::{Broken, Judgement, Leg, Outcome, Output};
use super::core::Core;
use super::job::{Job, Way, client_failed};
use super::text;
use crate::ftp::command::Command;

#[derive(Debug)]
enum Body {
    /// The server has not opened the transfer, or its data connection does not stand.
    Waiting,
    Receiving,
    Scanning,
    /// Broken off; the server's last word is awaited.
    Lost,
    Clean,
    Refused(String),
    Sending,
    Sent,
    /// The client's data connection broke.
    Unsent,
}

#[derive(Debug)]
pub(super) struct Download {
    pub(super) job: Job,
    body: Body,
    /// The client got its 150.
    opened: bool,
    open_by: Instant,
}

impl Download {
    pub(super) fn begin(core: &mut Core, now: Instant, command: Command) -> Box<Self> {
        let job = Job::begin(core, now, command, Leg::Upstream, true);
        let open_by = now + core.settings.timing.opening;
        Box::new(Self { job, body: Body::Waiting, opened: false, open_by })
    }

    pub(super) fn received(&mut self, core: &mut Core, now: Instant, result: Result<(), Broken>) {
        if !matches!(self.body, Body::Receiving) {
            return;
        }
        self.job.since = now;
        core.upstream = super::core::UpstreamChannel::None;
        self.body = if result.is_ok() {
            core.output(Output::Inspect);
            Body::Scanning
        } else {
            Body::Lost
        };
    }

    pub(super) fn judged(&mut self, now: Instant, judgement: Judgement) {
        match (&self.body, judgement) {
            (Body::Scanning, Judgement::Release) => {
                self.job.since = now;
                self.body = Body::Clean;
            }
            (Body::Scanning | Body::Receiving, Judgement::Refuse { reason }) => {
                self.body = Body::Refused(reason);
            }
            _ => {}
        }
    }

    pub(super) fn sent(&mut self, core: &mut Core, result: Result<(), Broken>) {
        if matches!(self.body, Body::Sending) {
            core.client = super::core::ClientChannel::None;
            self.body = if result.is_ok() { Body::Sent } else { Body::Unsent };
        }
    }

    pub(super) fn advance(mut self: Box<Self>, core: &mut Core, now: Instant) -> State {
        if !self.job.offered {
            match self.job.way(core, now) {
                Way::Ready => self.job.offer(core, now),
                Way::Pending => return State::Download(self),
                Way::None(reply) => {
                    return Job::finish(core, Outcome::ServerRefused, reply, false);
                }
            }
        }
        if let Some(reply) = self.job.refusal() {
            // Before the 150 nothing was promised; after it, the data end in a reset.
            return Job::finish(core, Outcome::ServerRefused, reply, self.opened);
        }
        if matches!(self.body, Body::Waiting) && self.job.is_accepted() {
            core.client_connects();
            if core.upstream_is_connected() {
                core.output(Output::Receive(Leg::Upstream));
                self.body = Body::Receiving;
            }
        }
        if let Body::Refused(reason) = &self.body {
            let reply = text::refused(&self.job.command, reason);
            return self.fail(core, Outcome::Blocked, reply);
        }
        match self.body {
            Body::Sent | Body::Unsent => {}
            Body::Waiting
            | Body::Receiving
            | Body::Scanning
            | Body::Lost
            | Body::Clean
            | Body::Sending
            | Body::Refused(_) => {
                if client_failed(core) {
                    let reply = Bytes::from_static(text::NO_DATA_CONNECTION);
                    return self.fail(core, Outcome::Broken, reply);
                }
            }
        }
        if now >= self.open_by && self.job.opening.is_some() {
            self.open(core);
        }
        let Some(done) = &self.job.done else { return State::Download(self) };
        let done = done.raw.clone();
        match self.body {
            Body::Clean => {
                if self.open(core) && core.client_connects() {
                    core.output(Output::Send(Leg::Client));
                    self.body = Body::Sending;
                }
                State::Download(self)
            }
            Body::Sent => Job::finish(core, Outcome::Delivered, done, false),
            Body::Lost | Body::Unsent => {
                let reply = Bytes::from_static(text::TRANSFER_ABORTED);
                self.fail(core, Outcome::Broken, reply)
            }
            Body::Waiting | Body::Receiving | Body::Scanning | Body::Refused(_) | Body::Sending => {
                State::Download(self)
            }
        }
    }

    /// Gives the client its 150, in the server's words; `true` when it has it.
    fn open(&mut self, core: &mut Core) -> bool {
        if !self.opened && core.client_may_hear_opening() {
            self.opened = true;
            core.tell_client(self.job.opening.clone().unwrap_or(Bytes::from_static(text::OPENING)));
        }
        self.opened
    }

    fn fail(self: Box<Self>, core: &mut Core, outcome: Outcome, reply: Bytes) -> State {
        // What the server still sends is not waited for.
        core.drop_upstream(true);
        Job::finish(core, outcome, reply, self.opened)
    }

    pub(super) fn deadline(&self, core: &Core) -> Option<Instant> {
        let timing = &core.settings.timing;
        let opening =
            (!self.opened && self.job.opening.is_some() && core.client_may_hear_opening())
                .then_some(self.open_by);
        let wait = match self.body {
            Body::Waiting => Some(self.job.since + timing.reply),
            Body::Lost => Some(self.job.since + timing.close),
            Body::Clean if self.job.done.is_none() => Some(self.job.since + timing.reply),
            Body::Clean => Some(self.job.since + timing.connect),
            Body::Receiving
            | Body::Scanning
            | Body::Refused(_)
            | Body::Sending
            | Body::Sent
            | Body::Unsent => None,
        };
        opening.into_iter().chain(wait).min()
    }

    pub(super) fn expired(self: Box<Self>, core: &mut Core, now: Instant) -> State {
        let timing = core.settings.timing;
        let reply = match self.body {
            Body::Clean if self.job.done.is_some() && now >= self.job.since + timing.connect => {
                text::NO_DATA_CONNECTION
            }
            Body::Lost if now >= self.job.since + timing.close => text::TRANSFER_ABORTED,
            Body::Waiting | Body::Clean if now >= self.job.since + timing.reply => {
                return super::end_with(core, now, text::SERVER_SILENT, Some(Outcome::TimedOut));
            }
            _ => return self.advance(core, now),
        };
        self.fail(core, Outcome::TimedOut, Bytes::from_static(reply))
    }

    /// Whether the server waits for us and may fall asleep.
    pub(super) fn keeps_server_waiting(&self) -> bool {
        self.job.done.is_some()
    }

    pub(super) fn opened(&self) -> bool {
        self.opened
    }

    pub(super) fn phase(&self) -> &'static str {
        match self.body {
            Body::Waiting => "waiting for the server",
            Body::Receiving | Body::Lost => "being fetched from the server",
            Body::Scanning | Body::Refused(_) => "being scanned",
            Body::Clean | Body::Sending | Body::Sent | Body::Unsent => "being sent",
        }
    }
}

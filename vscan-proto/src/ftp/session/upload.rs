//! STOR and STOU in hold: the client sends everything to vscan; the server sees the command only
//! when the file is clean, and its answer is the client's final reply.

use std::time::Instant;

use bytes::Bytes;

use super::State;
use super::api::{Broken, Judgement, Leg, Outcome, Output};
use super::core::{ClientChannel, Core, UpstreamChannel};
use super::job::{Job, Way};
use super::text;
use crate::ftp::command::{Command, Verb};

#[derive(Debug)]
enum Body {
    /// The client's data connection does not stand.
    Opening,
    Receiving,
    /// The client broke off.
    Lost,
    Scanning {
        answer_by: Instant,
    },
    Refused(String),
    /// To be given to the server.
    Clean,
    Sending,
    Sent,
    /// The server's data connection broke.
    Unsent,
}

#[derive(Debug)]
pub(super) struct Upload {
    pub(super) job: Job,
    body: Body,
    /// The client got its 150.
    opened: bool,
}

impl Upload {
    pub(super) fn begin(core: &mut Core, now: Instant, command: Command) -> Box<Self> {
        let job = Job::begin(core, now, command, Leg::Client, true);
        Box::new(Self { job, body: Body::Opening, opened: false })
    }

    pub(super) fn received(&mut self, core: &mut Core, now: Instant, result: Result<(), Broken>) {
        if !matches!(self.body, Body::Receiving) {
            return;
        }
        core.client = ClientChannel::None;
        self.body = if result.is_ok() {
            core.output(Output::Inspect);
            Body::Scanning { answer_by: now + core.settings.timing.verdict }
        } else {
            Body::Lost
        };
    }

    pub(super) fn judged(&mut self, now: Instant, judgement: Judgement) {
        if !matches!(self.body, Body::Scanning { .. }) {
            return;
        }
        self.job.since = now;
        self.body = match judgement {
            Judgement::Release => Body::Clean,
            Judgement::Refuse { reason } => Body::Refused(reason),
        };
    }

    pub(super) fn sent(&mut self, core: &mut Core, now: Instant, result: Result<(), Broken>) {
        if matches!(self.body, Body::Sending) {
            core.upstream = UpstreamChannel::None;
            self.job.since = now;
            self.body = if result.is_ok() { Body::Sent } else { Body::Unsent };
        }
    }

    pub(super) fn advance(mut self: Box<Self>, core: &mut Core, now: Instant) -> State {
        let command = &self.job.command;
        match &self.body {
            Body::Opening => {
                if core.client == ClientChannel::Failed {
                    let reply = Bytes::from_static(text::NO_DATA_CONNECTION);
                    return Job::finish(core, Outcome::Broken, reply, false);
                }
                let connected = core.client_connects();
                if !self.opened && core.client_may_hear_opening() {
                    self.opened = true;
                    core.tell_client(text::SEND_DATA);
                }
                if connected {
                    core.output(Output::Receive(Leg::Client));
                    self.body = Body::Receiving;
                }
                State::Upload(self)
            }
            Body::Receiving | Body::Scanning { .. } => State::Upload(self),
            Body::Lost => {
                let reply = Bytes::from_static(text::TRANSFER_ABORTED);
                Job::finish(core, Outcome::Broken, reply, false)
            }
            Body::Refused(reason) => {
                let reply = text::refused(command, reason);
                Job::finish(core, Outcome::Blocked, reply, false)
            }
            Body::Clean | Body::Sending | Body::Sent | Body::Unsent => self.deliver(core, now),
        }
    }

    fn deliver(mut self: Box<Self>, core: &mut Core, now: Instant) -> State {
        if !self.job.offered {
            match self.job.way(core, now) {
                Way::Ready => self.job.offer(core, now),
                Way::Pending => return State::Upload(self),
                Way::None(reply) => {
                    return Job::finish(core, Outcome::ServerRefused, reply, false);
                }
            }
        }
        if let Some(reply) = self.job.refusal() {
            return Job::finish(core, Outcome::ServerRefused, reply, true);
        }
        match (&self.body, &self.job.done) {
            (Body::Clean, _) if self.job.is_accepted() && core.upstream_is_connected() => {
                core.output(Output::Send(Leg::Upstream));
                self.body = Body::Sending;
                State::Upload(self)
            }
            (Body::Sent, Some(done)) => {
                let reply = match &self.job.opening {
                    // The 150 that names the file (RFC 1123 section 4.1.2.9) was kept from the client.
                    Some(opening) if self.job.command.verb == Verb::Stou => {
                        text::stored_as(opening, done)
                    }
                    Some(_) | None => done.raw.clone(),
                };
                Job::finish(core, Outcome::Delivered, reply, false)
            }
            (Body::Unsent, Some(_)) => {
                // An acceptance of what did not arrive whole is not passed on.
                let reply = text::server_broke_off(&self.job.command);
                Job::finish(core, Outcome::Broken, reply, true)
            }
            _ => State::Upload(self),
        }
    }

    pub(super) fn deadline(&self, core: &Core) -> Option<Instant> {
        let timing = &core.settings.timing;
        match self.body {
            Body::Opening => Some(self.job.since + timing.connect),
            Body::Scanning { answer_by } => Some(answer_by),
            Body::Clean | Body::Sent => Some(self.job.since + timing.reply),
            Body::Unsent => Some(self.job.since + timing.close),
            Body::Receiving | Body::Lost | Body::Refused(_) | Body::Sending => None,
        }
    }

    pub(super) fn expired(self: Box<Self>, core: &mut Core, now: Instant) -> State {
        if self.deadline(core).is_none_or(|deadline| now < deadline) {
            return self.advance(core, now);
        }
        let reply = match self.body {
            Body::Opening => Bytes::from_static(text::NO_DATA_CONNECTION),
            Body::Scanning { .. } => text::takes_too_long(&self.job.command),
            Body::Unsent => text::server_broke_off(&self.job.command),
            Body::Clean | Body::Sent => {
                return super::end_with(core, now, text::SERVER_SILENT, Some(Outcome::TimedOut));
            }
            Body::Receiving | Body::Lost | Body::Refused(_) | Body::Sending => {
                return self.advance(core, now);
            }
        };
        Job::finish(core, Outcome::TimedOut, reply, true)
    }

    /// Whether the server waits for us and may fall asleep.
    pub(super) fn keeps_server_waiting(&self) -> bool {
        !self.job.offered
    }

    pub(super) fn opened(&self) -> bool {
        self.opened
    }

    pub(super) fn phase(&self) -> &'static str {
        match self.body {
            Body::Opening | Body::Receiving | Body::Lost => "being received",
            Body::Scanning { .. } | Body::Refused(_) => "being scanned",
            Body::Clean | Body::Sending | Body::Sent | Body::Unsent => "being given to the server",
        }
    }
}

//! Listings and files of excluded types: the data pass without a scan, in either direction. Where the first bytes have a
//! word in it, a file that turns out not to be excluded goes on as a download or an upload.

use std::time::Instant;

use bytes::Bytes;

use super::State;
use super::api::{Broken, Leg, Outcome, Output};
use super::core::{ClientChannel, Core, UpstreamChannel};
use super::download::Download;
use super::job::{Job, Way, client_failed};
use super::text;
use super::upload::Upload;
use crate::ftp::command::{Command, Verb};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Body {
    /// One of the data connections does not stand.
    Waiting,
    /// The first bytes are looked at.
    Sniffing,
    Passing,
    Passed,
    Broken,
}

#[derive(Debug)]
pub(super) struct Unscanned {
    pub(super) job: Job,
    body: Body,
    source: Leg,
    /// Whether the first bytes still have to say that the file passes; false: they say that it does not.
    sniff: Option<bool>,
    /// The client got its 150.
    opened: bool,
}

impl Unscanned {
    pub(super) fn begin(core: &mut Core, now: Instant, command: Command, source: Leg) -> Box<Self> {
        let job = Job::begin(core, now, command, source, false);
        Box::new(Self { job, body: Body::Waiting, source, sniff: None, opened: false })
    }

    /// As [`begin`](Self::begin), if the first bytes agree.
    pub(super) fn begin_if(
        core: &mut Core,
        now: Instant,
        command: Command,
        source: Leg,
    ) -> Box<Self> {
        let job = Job::begin(core, now, command, source, true);
        Box::new(Self { job, body: Body::Waiting, source, sniff: Some(true), opened: false })
    }

    pub(super) fn sniffed(&mut self, now: Instant, skip: bool) {
        if self.body == Body::Sniffing {
            self.body = Body::Waiting;
            self.job.since = now;
            self.sniff = if skip { None } else { Some(false) };
        }
    }

    /// Gets at the first bytes: of a download when the server sends them, of an upload when the client does, before the
    /// server knows of it.
    fn reached(mut self: Box<Self>, core: &mut Core, now: Instant) -> State {
        if self.sniff == Some(false) {
            return match self.source {
                Leg::Upstream => Download::taken_over(core, now, self.job).advance(core, now),
                Leg::Client => {
                    Upload::taken_over(core, now, self.job, self.opened).advance(core, now)
                }
            };
        }
        if self.body == Body::Sniffing {
            return State::Unscanned(self);
        }
        if client_failed(core) {
            core.drop_upstream(true);
            let reply = Bytes::from_static(text::NO_DATA_CONNECTION);
            return Job::finish(core, Outcome::Broken, reply, false);
        }
        let connected = core.client_connects();
        let there = match self.source {
            Leg::Upstream => core.upstream_is_connected(),
            Leg::Client => {
                if !self.opened && core.client_may_hear_opening() {
                    self.opened = true;
                    core.tell_client(text::SEND_DATA);
                }
                connected
            }
        };
        if there {
            core.output(Output::Sniff(self.source));
            self.body = Body::Sniffing;
        }
        State::Unscanned(self)
    }

    pub(super) fn spliced(&mut self, core: &mut Core, now: Instant, result: Result<(), Broken>) {
        if self.body == Body::Passing {
            core.client = ClientChannel::None;
            core.upstream = UpstreamChannel::None;
            self.job.since = now;
            self.body = if result.is_ok() { Body::Passed } else { Body::Broken };
        }
    }

    pub(super) fn advance(mut self: Box<Self>, core: &mut Core, now: Instant) -> State {
        if self.sniff.is_some() && self.source == Leg::Client {
            return self.reached(core, now);
        }
        if !self.job.offered {
            let has_place = matches!(self.job.command.verb, Verb::Retr | Verb::Stor);
            let way = if has_place {
                self.job.way_to(core, now, self.job.restart)
            } else {
                self.job.way(core, now)
            };
            match way {
                Way::Ready => self.job.offer(core, now),
                Way::Pending => return State::Unscanned(self),
                Way::None(reply) => {
                    return Job::finish(core, Outcome::ServerRefused, reply, false);
                }
            }
        }
        if let Some(reply) = self.job.refusal() {
            return Job::finish(core, Outcome::ServerRefused, reply, self.body == Body::Passing);
        }
        if self.sniff.is_some() && self.job.is_accepted() {
            return self.reached(core, now);
        }
        if self.body == Body::Waiting && self.job.is_accepted() {
            if client_failed(core) {
                core.drop_upstream(true);
                let reply = Bytes::from_static(text::NO_DATA_CONNECTION);
                return Job::finish(core, Outcome::Broken, reply, false);
            }
            let connected = core.client_connects();
            if !self.opened && core.client_may_hear_opening() {
                self.opened = true;
                let opening = self.job.opening.clone();
                core.tell_client(opening.unwrap_or(Bytes::from_static(text::OPENING)));
            }
            if connected && core.upstream_is_connected() {
                core.output(Output::Splice(self.source));
                self.body = Body::Passing;
            }
        }
        match (self.body, &self.job.done) {
            (Body::Passed, Some(done)) => {
                Job::finish(core, Outcome::Delivered, done.raw.clone(), false)
            }
            (Body::Broken, Some(_)) => {
                let reply = Bytes::from_static(text::TRANSFER_ABORTED);
                Job::finish(core, Outcome::Broken, reply, true)
            }
            (Body::Waiting | Body::Sniffing | Body::Passing | Body::Passed | Body::Broken, _) => {
                State::Unscanned(self)
            }
        }
    }

    pub(super) fn deadline(&self, core: &Core) -> Option<Instant> {
        let timing = &core.settings.timing;
        match self.body {
            Body::Waiting if self.waits_for_client(core) => Some(self.job.since + timing.connect),
            Body::Waiting | Body::Passed => Some(self.job.since + timing.reply),
            Body::Broken => Some(self.job.since + timing.close),
            Body::Sniffing | Body::Passing => None,
        }
    }

    fn waits_for_client(&self, core: &Core) -> bool {
        let wanted = self.job.is_accepted() || self.sniff.is_some() && self.source == Leg::Client;
        wanted && core.client != ClientChannel::Connected
    }

    pub(super) fn expired(self: Box<Self>, core: &mut Core, now: Instant) -> State {
        if self.deadline(core).is_none_or(|deadline| now < deadline) {
            return self.advance(core, now);
        }
        let reply = match self.body {
            Body::Waiting if self.waits_for_client(core) => text::NO_DATA_CONNECTION,
            Body::Broken => text::TRANSFER_ABORTED,
            Body::Waiting | Body::Sniffing | Body::Passed | Body::Passing => {
                return super::end_with(core, text::SERVER_SILENT, Some(Outcome::TimedOut));
            }
        };
        Job::finish(core, Outcome::TimedOut, Bytes::from_static(reply), true)
    }

    pub(super) fn opened(&self) -> bool {
        self.opened
    }
}

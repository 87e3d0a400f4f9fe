//! RETR: nothing goes to the client before the whole file is here and judged (`hold`), all but the
//! last bytes do (`stream`), or the piece that it asked for does, as far as it is of a file that was
//! judged before.

use std::time::Instant;

use bytes::Bytes;

use super::State;
use super::api::{BLOCK, Broken, Delivery, Judgement, Leg, Outcome, Output, Recalled};
use super::core::{ClientChannel, Core, UpstreamChannel};
use super::job::{Job, Way, client_failed};
use super::text;
use crate::ftp::command::Command;

/// What is fetched from the server, and when it goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Plan {
    /// The whole file; after its verdict the client gets what it asked for.
    Whole,
    /// The whole file, which goes on while it arrives.
    Stream,
    /// What the client asked for, checked against the version that is known.
    Piece,
}

#[derive(Debug)]
enum Body {
    /// The driver looks up what is known of the file.
    Recalling,
    /// The server has not opened the transfer, or its data connection does not stand; for plans that
    /// pass bytes on, the client's neither.
    Waiting,
    Receiving,
    /// Bytes arrive and go on.
    Passing,
    Scanning,
    /// Broken off; the server's last word is awaited.
    Lost,
    Clean,
    Refused(Bytes),
    Sending,
    Sent,
    /// The client's data connection broke.
    Unsent,
}

#[derive(Debug)]
pub(super) struct Download {
    pub(super) job: Job,
    plan: Plan,
    body: Body,
    /// The client got its 150.
    opened: bool,
    open_by: Instant,
}

impl Download {
    pub(super) fn begin(core: &mut Core, now: Instant, command: Command) -> Box<Self> {
        let job = Job::begin(core, now, command, Leg::Upstream, true);
        Self::taken_over(core, now, job)
    }

    /// A download that has begun already.
    pub(super) fn taken_over(core: &mut Core, now: Instant, job: Job) -> Box<Self> {
        let open_by = now + core.settings.timing.opening;
        let recalls = job.restart > 0 || core.settings.delivery == Delivery::Stream;
        if recalls {
            core.output(Output::Recall);
        }
        let body = if recalls { Body::Recalling } else { Body::Waiting };
        Box::new(Self { job, plan: Plan::Whole, body, opened: false, open_by })
    }

    pub(super) fn recalled(&mut self, core: &Core, now: Instant, recalled: Recalled) {
        if !matches!(self.body, Body::Recalling) {
            return;
        }
        self.job.since = now;
        self.body = Body::Waiting;
        self.plan = match (recalled, core.settings.delivery) {
            (Recalled::Scanned, _) if self.job.restart > 0 => Plan::Piece,
            // A piece of something unknown, or of something that was caught, is never streamed.
            (Recalled::Nothing | Recalled::Scanned, Delivery::Stream) if self.job.restart == 0 => {
                Plan::Stream
            }
            (
                Recalled::Nothing | Recalled::Scanned | Recalled::Suspect | Recalled::Busy,
                Delivery::Hold | Delivery::Stream,
            ) => Plan::Whole,
        };
    }

    pub(super) fn received(&mut self, core: &mut Core, now: Instant, result: Result<(), Broken>) {
        if !matches!(self.body, Body::Receiving | Body::Passing) {
            return;
        }
        self.job.since = now;
        core.upstream = UpstreamChannel::None;
        self.body = match result {
            Ok(()) => {
                core.output(Output::Inspect);
                Body::Scanning
            }
            Err(Broken { leg: Leg::Upstream }) => Body::Lost,
            Err(Broken { leg: Leg::Client }) => {
                core.client = ClientChannel::None;
                Body::Unsent
            }
        };
    }

    pub(super) fn judged(&mut self, now: Instant, judgement: Judgement) {
        match (&self.body, judgement) {
            (Body::Scanning, Judgement::Release) => {
                self.job.since = now;
                self.body = Body::Clean;
            }
            (Body::Scanning | Body::Receiving | Body::Passing, Judgement::Refuse { reason }) => {
                self.body = Body::Refused(text::refused(&self.job.command, &reason));
            }
            (
                Body::Recalling
                | Body::Waiting
                | Body::Receiving
                | Body::Passing
                | Body::Lost
                | Body::Clean
                | Body::Refused(_)
                | Body::Sending
                | Body::Sent
                | Body::Unsent,
                Judgement::Release | Judgement::Refuse { .. },
            ) => {}
        }
    }

    /// The piece is of another version than the one that is known.
    pub(super) fn mismatched(&mut self, core: &mut Core, now: Instant, released: bool) {
        if !matches!(self.body, Body::Passing) || self.plan != Plan::Piece {
            return;
        }
        core.upstream = UpstreamChannel::None;
        if released {
            self.body = Body::Refused(text::changed(&self.job.command));
            return;
        }
        self.job.again(core);
        self.job.since = now;
        self.plan = Plan::Whole;
        self.body = Body::Waiting;
    }

    pub(super) fn sent(&mut self, core: &mut Core, now: Instant, result: Result<(), Broken>) {
        match (&self.body, self.plan, result) {
            (Body::Sending, _, result) => {
                core.client = ClientChannel::None;
                self.body = if result.is_ok() { Body::Sent } else { Body::Unsent };
            }
            (Body::Passing, Plan::Piece, result) => {
                core.upstream = UpstreamChannel::None;
                self.job.since = now;
                self.body = match result {
                    Ok(()) => Body::Sent,
                    Err(Broken { leg: Leg::Upstream }) => Body::Lost,
                    Err(Broken { leg: Leg::Client }) => Body::Unsent,
                };
                if !matches!(self.body, Body::Lost) {
                    core.client = ClientChannel::None;
                }
            }
            (
                Body::Recalling
                | Body::Waiting
                | Body::Receiving
                | Body::Passing
                | Body::Scanning
                | Body::Lost
                | Body::Clean
                | Body::Refused(_)
                | Body::Sent
                | Body::Unsent,
                Plan::Whole | Plan::Stream | Plan::Piece,
                Ok(()) | Err(_),
            ) => {}
        }
    }

    pub(super) fn advance(mut self: Box<Self>, core: &mut Core, now: Instant) -> State {
        if matches!(self.body, Body::Recalling) {
            return State::Download(self);
        }
        if !self.job.offered {
            match self.job.way_to(core, now, self.from()) {
                Way::Ready => self.job.offer(core, now),
                Way::Pending => return State::Download(self),
                Way::None(_) if self.plan == Plan::Piece && core.upstream_is_ready(now) => {
                    // It begins at no block's border; it may still give the whole.
                    self.plan = Plan::Whole;
                    return self.advance(core, now);
                }
                Way::None(reply) => {
                    return Job::finish(core, Outcome::ServerRefused, reply, self.opened);
                }
            }
        }
        if let Some(reply) = self.job.refusal() {
            // Before the 150 nothing was promised; after it, the data end in a reset.
            return Job::finish(core, Outcome::ServerRefused, reply, self.opened);
        }
        if matches!(self.body, Body::Waiting) && self.job.is_accepted() {
            self.take_in(core);
        }
        if let Body::Refused(reply) = &self.body {
            let reply = reply.clone();
            return self.fail(core, Outcome::Blocked, reply);
        }
        match self.body {
            Body::Sent | Body::Unsent => {}
            Body::Recalling
            | Body::Waiting
            | Body::Receiving
            | Body::Passing
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
        if matches!(self.body, Body::Unsent) {
            // Whether the server has still more to say does not matter: some have nothing.
            let reply = Bytes::from_static(text::TRANSFER_ABORTED);
            return self.fail(core, Outcome::Broken, reply);
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
            Body::Recalling
            | Body::Waiting
            | Body::Receiving
            | Body::Passing
            | Body::Scanning
            | Body::Refused(_)
            | Body::Sending => State::Download(self),
        }
    }

    /// The byte that the server begins at.
    fn from(&self) -> u64 {
        match self.plan {
            Plan::Whole | Plan::Stream => 0,
            Plan::Piece => self.job.restart / BLOCK * BLOCK,
        }
    }

    /// The server has opened the transfer: takes the data as soon as the legs stand.
    fn take_in(&mut self, core: &mut Core) {
        let connected = core.client_connects();
        let output = match self.plan {
            Plan::Whole => Output::Receive(Leg::Upstream),
            Plan::Stream => Output::Stream(Leg::Upstream),
            Plan::Piece => Output::Check,
        };
        let passes = self.plan != Plan::Whole;
        if passes {
            self.open(core);
        }
        if core.upstream_is_connected() && (connected || !passes) {
            core.output(output);
            self.body = if passes { Body::Passing } else { Body::Receiving };
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

    /// Whether bytes go on while they arrive, for which both legs are needed.
    fn waits_for_client(&self, core: &Core) -> bool {
        self.plan != Plan::Whole
            && self.job.is_accepted()
            && core.client != ClientChannel::Connected
    }

    pub(super) fn deadline(&self, core: &Core) -> Option<Instant> {
        let timing = &core.settings.timing;
        let opening =
            (!self.opened && self.job.opening.is_some() && core.client_may_hear_opening())
                .then_some(self.open_by);
        let wait = match self.body {
            Body::Waiting if self.waits_for_client(core) => Some(self.job.since + timing.connect),
            Body::Recalling | Body::Waiting => Some(self.job.since + timing.reply),
            Body::Lost | Body::Unsent => Some(self.job.since + timing.close),
            Body::Clean | Body::Sent if self.job.done.is_none() => {
                Some(self.job.since + timing.reply)
            }
            Body::Clean => Some(self.job.since + timing.connect),
            Body::Receiving
            | Body::Passing
            | Body::Scanning
            | Body::Refused(_)
            | Body::Sending
            | Body::Sent => None,
        };
        opening.into_iter().chain(wait).min()
    }

    pub(super) fn expired(self: Box<Self>, core: &mut Core, now: Instant) -> State {
        let timing = core.settings.timing;
        let waited = |time| now >= self.job.since + time;
        let reply = match self.body {
            Body::Clean if self.job.done.is_some() && waited(timing.connect) => {
                text::NO_DATA_CONNECTION
            }
            Body::Waiting if self.waits_for_client(core) && waited(timing.connect) => {
                text::NO_DATA_CONNECTION
            }
            Body::Lost | Body::Unsent if waited(timing.close) => text::TRANSFER_ABORTED,
            Body::Recalling | Body::Waiting | Body::Clean | Body::Sent if waited(timing.reply) => {
                return super::end_with(core, text::SERVER_SILENT, Some(Outcome::TimedOut));
            }
            Body::Recalling
            | Body::Waiting
            | Body::Receiving
            | Body::Passing
            | Body::Scanning
            | Body::Lost
            | Body::Clean
            | Body::Refused(_)
            | Body::Sending
            | Body::Sent
            | Body::Unsent => return self.advance(core, now),
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
            Body::Recalling | Body::Waiting => "waiting for the server",
            Body::Receiving | Body::Lost => "being fetched from the server",
            Body::Passing => "in progress",
            Body::Scanning | Body::Refused(_) => "being scanned",
            Body::Clean | Body::Sending | Body::Sent | Body::Unsent => "being sent",
        }
    }
}

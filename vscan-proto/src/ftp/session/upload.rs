//! STOR, STOU and APPE. In `hold` the client sends everything to vscan; the server sees the command
//! only when the file is clean, or when it would not wait for that any longer, and its bytes never
//! before. In `stream` all but the last bytes go on while they arrive. What is added to a file is
//! inspected joined with what the server has of it. The server's answer is the client's final reply.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::State;
use super::api::{Base, Broken, Delivery, Judgement, Leg, Outcome, Output, Recalled, Resume};
use super::core::{ClientChannel, Core, Expect, UpstreamChannel};
use super::job::{Job, Way, client_failed};
use super::remains::{Existing, Question};
use super::text;
use crate::ftp::command::{Command, Verb};
use crate::ftp::reply::Reply;

/// A server that leaves sooner has another reason than waiting: none is configured to so little.
const IMPATIENT_FROM: Duration = Duration::from_secs(20);

/// How the file gets to the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Plan {
    /// After its verdict.
    Hold,
    /// As `Hold`, judged together with what the server has.
    Join,
    /// While it arrives.
    Stream,
}

#[derive(Debug)]
enum Body {
    /// The driver looks up what is known of the file.
    Recalling,
    /// Another upload to the same file is under way.
    Busy,
    /// What the server has under the name is asked for.
    Asking,
    /// What the server has is fetched.
    Fetching,
    /// It is here; the server's last word on it is not.
    Fetched,
    /// Broken off while it was fetched.
    Unfetched,
    /// The client's data connection does not stand.
    Opening,
    Receiving,
    /// Bytes arrive and go on.
    Passing,
    /// The client broke off.
    Lost,
    Scanning {
        answer_by: Instant,
    },
    Refused(String),
    /// To be given to the server, if the file that it joins is still what it was.
    Clean,
    Sending,
    Sent,
    /// The server's data connection broke.
    Unsent,
    /// It is refused, and the server has had the command: what is left there is taken away.
    Clearing(Clearing),
}

/// What is still to be said to both sides of a file that the server began to store.
#[derive(Debug)]
struct Clearing {
    outcome: Outcome,
    reason: String,
    /// Bytes of it may be there.
    began: bool,
    /// DELE is with the server, or was answered so.
    deleted: Option<Option<bool>>,
}

#[derive(Debug)]
pub(super) struct Upload {
    pub(super) job: Job,
    plan: Plan,
    body: Body,
    existing: Existing,
    /// What was fetched, or will not be, has been told to the driver.
    based: bool,
    /// The file was looked at once more before the piece is added.
    confirmed: bool,
    /// The client got its 150.
    opened: bool,
    begun: Instant,
}

impl Upload {
    pub(super) fn begin(core: &mut Core, now: Instant, command: Command) -> Box<Self> {
        let job = Job::begin(core, now, command, Leg::Client, true);
        Self::taken_over(core, now, job, false)
    }

    /// An upload that has begun already; perhaps the client got its 150.
    pub(super) fn taken_over(core: &mut Core, now: Instant, job: Job, opened: bool) -> Box<Self> {
        let stores = job.command.verb == Verb::Stor;
        let plan = if job.command.verb == Verb::Appe || stores && job.restart > 0 {
            Plan::Join
        } else if stores && core.settings.delivery == Delivery::Stream {
            Plan::Stream
        } else {
            // A STOU's name is not known before the server has chosen it.
            Plan::Hold
        };
        let recalls = plan != Plan::Hold || core.settings.resume == Resume::Whole && stores;
        if recalls {
            core.output(Output::Recall);
        }
        Box::new(Self {
            job,
            plan,
            body: if recalls { Body::Recalling } else { Body::Opening },
            existing: Existing::default(),
            based: false,
            confirmed: false,
            opened,
            begun: now,
        })
    }

    pub(super) fn recalled(&mut self, now: Instant, recalled: Recalled) {
        if !matches!(self.body, Body::Recalling) {
            return;
        }
        self.job.since = now;
        self.body = match (recalled, self.plan) {
            (Recalled::Busy, _) => Body::Busy,
            (Recalled::Suspect, Plan::Stream) => {
                self.plan = Plan::Hold;
                Body::Opening
            }
            (Recalled::Nothing | Recalled::Scanned | Recalled::Suspect, Plan::Hold) => {
                Body::Opening
            }
            (Recalled::Nothing | Recalled::Scanned | Recalled::Suspect, Plan::Join)
            | (Recalled::Nothing | Recalled::Scanned, Plan::Stream) => Body::Asking,
        };
    }

    /// The answer to a question about the file.
    pub(super) fn probed(&mut self, core: &mut Core, now: Instant, reply: &Reply) {
        self.job.since = now;
        self.existing.answered(core, now, &self.job.command, reply);
    }

    /// The answer to DELE.
    pub(super) fn deleted(&mut self, deleted: bool) {
        if let Body::Clearing(clearing) = &mut self.body {
            clearing.deleted = Some(Some(deleted));
        }
    }

    pub(super) fn received(&mut self, core: &mut Core, now: Instant, result: Result<(), Broken>) {
        let answer_by = now + core.settings.timing.verdict;
        match (&self.body, result) {
            (Body::Fetching, result) => {
                core.upstream = UpstreamChannel::None;
                self.job.since = now;
                self.body = if result.is_ok() { Body::Fetched } else { Body::Unfetched };
            }
            (Body::Receiving | Body::Passing, Ok(())) => {
                core.client = ClientChannel::None;
                core.output(Output::Inspect);
                self.body = Body::Scanning { answer_by };
            }
            (Body::Receiving | Body::Passing, Err(Broken { leg: Leg::Client })) => {
                core.client = ClientChannel::None;
                self.body = Body::Lost;
            }
            (Body::Receiving | Body::Passing, Err(Broken { leg: Leg::Upstream })) => {
                core.upstream = UpstreamChannel::None;
                self.job.since = now;
                self.body = Body::Unsent;
            }
            (
                Body::Recalling
                | Body::Busy
                | Body::Asking
                | Body::Fetched
                | Body::Unfetched
                | Body::Opening
                | Body::Lost
                | Body::Scanning { .. }
                | Body::Refused(_)
                | Body::Clean
                | Body::Sending
                | Body::Sent
                | Body::Unsent
                | Body::Clearing(_),
                Ok(()) | Err(_),
            ) => {}
        }
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
        match &self.body {
            Body::Recalling => State::Upload(self),
            Body::Busy => {
                let reply = text::busy(&self.job.command);
                Job::finish(core, Outcome::Blocked, reply, false)
            }
            Body::Asking if self.existing.ask(core, now, &self.job.command) == Question::Open => {
                State::Upload(self)
            }
            Body::Asking if self.plan == Plan::Stream => {
                self.body = Body::Opening;
                self.advance(core, now)
            }
            Body::Asking if self.existing.is_absent() => self.join(core, now, Base::Absent),
            Body::Asking | Body::Fetching | Body::Fetched | Body::Unfetched => {
                self.fetch(core, now)
            }
            Body::Opening if self.plan == Plan::Stream => self.open_stream(core, now),
            Body::Opening => self.open(core),
            Body::Receiving | Body::Passing | Body::Scanning { .. } => self.go_on(core, now),
            Body::Lost if self.job.offered && self.plan != Plan::Stream => {
                // The server has an empty file, and the client's half is of no use to anybody.
                self.clear(core, now, Outcome::Broken, String::new())
            }
            Body::Lost => {
                let reply = Bytes::from_static(text::TRANSFER_ABORTED);
                Job::finish(core, Outcome::Broken, reply, self.job.offered)
            }
            Body::Refused(reason) => {
                let reason = reason.clone();
                self.clear(core, now, Outcome::Blocked, reason)
            }
            Body::Clearing(_) => self.clearing(core, now),
            Body::Clean | Body::Sending | Body::Sent | Body::Unsent => self.deliver(core, now),
        }
    }

    /// Fetches what the server has, to be joined with what the client sends.
    fn fetch(mut self: Box<Self>, core: &mut Core, now: Instant) -> State {
        if !self.job.offered {
            match self.job.way_to(core, now, 0) {
                Way::Ready => {
                    let wire = self.job.command.with_verb(Verb::Retr.as_str());
                    self.job.offer_as(core, now, wire);
                }
                Way::Pending => return State::Upload(self),
                Way::None(reply) => {
                    return Job::finish(core, Outcome::ServerRefused, reply, false);
                }
            }
        }
        if self.job.refusal().is_some() {
            core.drop_upstream(false);
            return self.join(core, now, Base::Unreadable);
        }
        if matches!(self.body, Body::Asking)
            && self.job.is_accepted()
            && core.upstream_is_connected()
        {
            core.output(Output::Receive(Leg::Upstream));
            self.body = Body::Fetching;
        }
        if self.job.done.is_none() {
            return State::Upload(self);
        }
        match self.body {
            Body::Fetched => self.join(core, now, Base::Received),
            Body::Unfetched => {
                let reply = text::server_broke_off(&self.job.command);
                Job::finish(core, Outcome::Broken, reply, true)
            }
            Body::Recalling
            | Body::Busy
            | Body::Asking
            | Body::Fetching
            | Body::Opening
            | Body::Receiving
            | Body::Passing
            | Body::Lost
            | Body::Scanning { .. }
            | Body::Refused(_)
            | Body::Clean
            | Body::Sending
            | Body::Sent
            | Body::Unsent
            | Body::Clearing(_) => State::Upload(self),
        }
    }

    /// What the server has is here, or never will be: the client may send its piece.
    fn join(mut self: Box<Self>, core: &mut Core, now: Instant, base: Base) -> State {
        core.output(Output::Join(base));
        self.based = true;
        self.job.again(core);
        self.job.since = now;
        self.body = Body::Opening;
        self.advance(core, now)
    }

    /// The client may send: the server does not know of it yet.
    fn open(mut self: Box<Self>, core: &mut Core) -> State {
        if client_failed(core) {
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

    /// The client may send as soon as the server takes it.
    fn open_stream(mut self: Box<Self>, core: &mut Core, now: Instant) -> State {
        if let Some(reply) = self.offer(core, now) {
            return Job::finish(core, Outcome::ServerRefused, reply, false);
        }
        if !self.job.is_accepted() {
            return State::Upload(self);
        }
        if client_failed(core) {
            return self.clear(core, now, Outcome::Broken, String::new());
        }
        let connected = core.client_connects();
        if !self.opened && core.client_may_hear_opening() {
            self.opened = true;
            let opening = self.job.opening.clone();
            core.tell_client(opening.unwrap_or(Bytes::from_static(text::SEND_DATA)));
        }
        if connected && core.upstream_is_connected() {
            core.output(Output::Stream(Leg::Client));
            self.body = Body::Passing;
        }
        State::Upload(self)
    }

    /// While the client sends or the scanner reads.
    fn go_on(mut self: Box<Self>, core: &mut Core, now: Instant) -> State {
        if self.plan == Plan::Stream {
            if let Some(reply) = self.job.refusal() {
                return Job::finish(core, Outcome::ServerRefused, reply, true);
            }
        } else if self.opens_early_at(core).is_some_and(|at| now >= at) || self.job.offered {
            // A refusal is heard when the client has said all: before, it would try again for ever.
            if self.existing.ask(core, now, &self.job.command) == Question::Answered {
                let _heard_later = self.offer(core, now);
            }
        }
        State::Upload(self)
    }

    /// Gives the command to the server; its refusal, if that is its answer.
    fn offer(&mut self, core: &mut Core, now: Instant) -> Option<Bytes> {
        if !self.job.offered {
            let at = if self.job.command.verb == Verb::Stor { self.job.restart } else { 0 };
            match self.job.way_to(core, now, at) {
                Way::Ready => self.job.offer(core, now),
                Way::Pending => return None,
                Way::None(reply) => return Some(reply),
            }
        }
        self.job.refusal()
    }

    fn deliver(mut self: Box<Self>, core: &mut Core, now: Instant) -> State {
        if self.plan == Plan::Join && !self.job.offered && !self.confirmed {
            match self.existing.confirm(core, now, &self.job.command) {
                Question::Open => return State::Upload(self),
                Question::Answered => self.confirmed = true,
                Question::Changed => {
                    let reply = text::changed(&self.job.command);
                    return Job::finish(core, Outcome::Blocked, reply, false);
                }
            }
        }
        if let Some(reply) = self.offer(core, now) {
            return Job::finish(core, Outcome::ServerRefused, reply, true);
        }
        if matches!(self.body, Body::Clean)
            && self.job.is_accepted()
            && core.upstream_is_connected()
        {
            core.output(Output::Send(Leg::Upstream));
            self.body = Body::Sending;
        }
        let Some(done) = &self.job.done else { return State::Upload(self) };
        match self.body {
            Body::Sent => {
                let reply = match &self.job.opening {
                    // The 150 that names the file (RFC 1123 section 4.1.2.9) was kept from the client.
                    Some(opening) if self.job.command.verb == Verb::Stou => {
                        text::stored_as(opening, done)
                    }
                    Some(_) | None => done.raw.clone(),
                };
                Job::finish(core, Outcome::Delivered, reply, false)
            }
            Body::Unsent => {
                // An acceptance of what did not arrive whole is not passed on.
                let reply = text::server_broke_off(&self.job.command);
                Job::finish(core, Outcome::Broken, reply, true)
            }
            Body::Recalling
            | Body::Busy
            | Body::Asking
            | Body::Fetching
            | Body::Fetched
            | Body::Unfetched
            | Body::Opening
            | Body::Receiving
            | Body::Passing
            | Body::Lost
            | Body::Scanning { .. }
            | Body::Refused(_)
            | Body::Clean
            | Body::Sending
            | Body::Clearing(_) => State::Upload(self),
        }
    }

    /// The upload ends without being stored: what the server has of it is taken away first.
    fn clear(
        mut self: Box<Self>,
        core: &mut Core,
        now: Instant,
        outcome: Outcome,
        reason: String,
    ) -> State {
        core.drop_upstream(self.job.offered);
        self.job.since = now;
        // A transfer that was opened left something behind, even if the server broke it off since.
        let began =
            self.job.offered && (self.job.opening.is_some() || self.job.refusal().is_none());
        self.body = Body::Clearing(Clearing { outcome, reason, began, deleted: None });
        self.clearing(core, now)
    }

    fn clearing(mut self: Box<Self>, core: &mut Core, now: Instant) -> State {
        let Body::Clearing(clearing) = &mut self.body else { return State::Upload(self) };
        if clearing.began {
            if self.job.done.is_none() {
                return State::Upload(self);
            }
            match clearing.deleted {
                None if self.existing.is_absent() => {
                    clearing.deleted = Some(None);
                    let wire = self.job.command.with_verb("DELE");
                    core.tell_upstream(now, wire, Expect::Delete);
                    return State::Upload(self);
                }
                Some(None) => return State::Upload(self),
                None | Some(Some(_)) => {}
            }
        }
        let (outcome, reply) = self.last_word();
        Job::finish(core, outcome, reply, false)
    }

    /// What the client hears of an upload that was not stored.
    fn last_word(&self) -> (Outcome, Bytes) {
        let command = &self.job.command;
        let Body::Clearing(clearing) = &self.body else {
            return (Outcome::Broken, Bytes::from_static(text::TRANSFER_ABORTED));
        };
        let reply = match clearing {
            Clearing { outcome: Outcome::Broken, .. } => Bytes::from_static(text::TRANSFER_ABORTED),
            Clearing { began: true, deleted, reason, .. } if *deleted != Some(Some(true)) => {
                text::refused_late(command, reason)
            }
            Clearing { reason, .. } => text::refused(command, reason),
        };
        (clearing.outcome, reply)
    }

    /// When the server's patience with a held upload is over.
    fn opens_early_at(&self, core: &Core) -> Option<Instant> {
        let held = matches!(self.body, Body::Receiving | Body::Scanning { .. })
            && self.plan == Plan::Hold
            && !self.job.offered
            // A name that the server chooses cannot be taken back.
            && self.job.command.verb == Verb::Stor;
        held.then_some(core.settings.timing.patience).flatten().map(|time| self.begun + time)
    }

    fn gives_up_at(&self, core: &Core) -> Option<Instant> {
        let timing = &core.settings.timing;
        match self.body {
            Body::Opening if self.plan == Plan::Stream && !self.job.is_accepted() => {
                Some(self.job.since + timing.reply)
            }
            Body::Opening => Some(self.job.since + timing.connect),
            Body::Scanning { answer_by } => Some(answer_by),
            Body::Recalling | Body::Asking | Body::Fetched | Body::Clean | Body::Sent => {
                Some(self.job.since + timing.reply)
            }
            Body::Unfetched | Body::Unsent | Body::Clearing(_) => {
                Some(self.job.since + timing.close)
            }
            Body::Busy
            | Body::Fetching
            | Body::Receiving
            | Body::Passing
            | Body::Lost
            | Body::Refused(_)
            | Body::Sending => None,
        }
    }

    pub(super) fn deadline(&self, core: &Core) -> Option<Instant> {
        // While the server is being asked, its answer is what is waited for.
        let early = self.opens_early_at(core).filter(|_| !self.existing.is_asked());
        self.gives_up_at(core).into_iter().chain(early).min()
    }

    pub(super) fn expired(self: Box<Self>, core: &mut Core, now: Instant) -> State {
        if self.gives_up_at(core).is_none_or(|deadline| now < deadline) {
            return self.advance(core, now);
        }
        let reply = match &self.body {
            Body::Opening if self.plan == Plan::Stream && !self.job.is_accepted() => {
                return super::end_with(core, text::SERVER_SILENT, Some(Outcome::TimedOut));
            }
            Body::Opening if self.job.offered => {
                return self.clear(core, now, Outcome::Broken, String::new());
            }
            Body::Opening => Bytes::from_static(text::NO_DATA_CONNECTION),
            Body::Scanning { .. } => {
                return self.clear(core, now, Outcome::TimedOut, text::TAKES_TOO_LONG.to_owned());
            }
            Body::Unfetched | Body::Unsent => text::server_broke_off(&self.job.command),
            Body::Clearing(_) => {
                let (outcome, reply) = self.last_word();
                return Job::finish(core, outcome, reply, true);
            }
            Body::Recalling | Body::Asking | Body::Fetched | Body::Clean | Body::Sent => {
                return super::end_with(core, text::SERVER_SILENT, Some(Outcome::TimedOut));
            }
            Body::Busy
            | Body::Fetching
            | Body::Receiving
            | Body::Passing
            | Body::Lost
            | Body::Refused(_)
            | Body::Sending => return self.advance(core, now),
        };
        Job::finish(core, Outcome::TimedOut, reply, true)
    }

    /// Whether the server waits for us and may fall asleep.
    pub(super) fn keeps_server_waiting(&self) -> bool {
        !self.job.offered
    }

    /// How long the server has waited for a STOR, if it still does.
    pub(super) fn waited(&self, now: Instant) -> Option<Duration> {
        let held = matches!(self.body, Body::Receiving | Body::Scanning { .. });
        let waited = now.saturating_duration_since(self.begun);
        (held && !self.job.offered && waited >= IMPATIENT_FROM).then_some(waited)
    }

    pub(super) fn opened(&self) -> bool {
        self.opened
    }

    pub(super) fn phase(&self) -> &'static str {
        match self.body {
            Body::Recalling
            | Body::Busy
            | Body::Asking
            | Body::Fetching
            | Body::Fetched
            | Body::Unfetched
            | Body::Opening
            | Body::Receiving
            | Body::Lost => "being received",
            Body::Passing => "in progress",
            Body::Scanning { .. } | Body::Refused(_) | Body::Clearing(_) => "being scanned",
            Body::Clean | Body::Sending | Body::Sent | Body::Unsent => "being given to the server",
        }
    }
}

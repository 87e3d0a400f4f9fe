//! The session machine: one FTP dialogue over its two legs.
//!
//! Bytes of both sides, the driver's events and the time go in; outputs come out. A command is
//! worked off when the one before has its final reply; what the client pipelines waits its turn.
//! Replies go through in the server's own bytes. Data connections are vscan's own on both sides,
//! so PASV, EPSV, PORT and EPRT are answered here and asked anew upstream.
//!
//! The states of a transfer have a module each; what they share is in `core` and `job`.

mod abort;
mod api;
mod core;
mod download;
mod job;
mod paths;
mod remains;
mod server;
mod start;
mod text;
mod unscanned;
mod upload;

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use bytes::{Bytes, BytesMut};

pub use api::{
    Addresses, BLOCK, Base, Begin, Broken, Delivery, Event, Judgement, Leg, Note, Outcome, Output,
    Recalled, Resume, Settings, Sniff, Timing, Tls, is_tls_record,
};

use self::abort::Abort;
use self::core::{ClientChannel, Core, Expect, Protection, UpstreamChannel};
use self::download::Download;
use self::unscanned::Unscanned;
use self::upload::Upload;
use super::command::{COMMAND_LIMIT, Command, Verb, VerbName};
use super::reply::Replies;
use crate::line::{Ending, LineSplitter};

/// Most commands that wait their turn; more stay unread. Clients pipeline a handful, but some say NOOP
/// every few seconds for as long as a transfer takes, and an ABOR behind those has to be heard.
const QUEUE_LIMIT: usize = 1024;

/// Most bytes of commands that wait their turn.
const QUEUE_BYTES_LIMIT: usize = 16 * 1024;

/// Most unread bytes of the client before the driver shall stop reading.
const BACKLOG_LIMIT: usize = 16 * 1024;

/// Consecutive lines that are no commands before the session is ended: whatever is there, it does
/// not speak FTP.
const MALFORMED_LIMIT: u8 = 10;

/// Where the dialogue stands.
#[derive(Debug)]
enum State {
    /// The client has the word.
    Idle,
    /// The server has the word: greeting, or the answer to a relayed command.
    Relay {
        quit: bool,
    },
    /// PASV, EPSV, PORT or EPRT is being answered.
    Prepare(Verb),
    Download(Box<Download>),
    Upload(Box<Upload>),
    Unscanned(Box<Unscanned>),
    /// ABOR of a transfer is with the server.
    Abort(Box<Abort>),
    /// TLS begins or ends on both legs.
    Changing,
    /// The last word was said; the server closes, or we do.
    Ending {
        until: Instant,
    },
    Blind,
    Over,
}

/// A transfer, for what is done about each kind.
#[derive(Debug)]
enum Transfer<'a> {
    Download(&'a mut Download),
    Upload(&'a mut Upload),
    Unscanned(&'a mut Unscanned),
}

impl State {
    /// The transfer that goes on.
    fn transfer(&mut self) -> Option<Transfer<'_>> {
        match self {
            Self::Download(download) => Some(Transfer::Download(download)),
            Self::Upload(upload) => Some(Transfer::Upload(upload)),
            Self::Unscanned(unscanned) => Some(Transfer::Unscanned(unscanned)),
            Self::Idle
            | Self::Relay { .. }
            | Self::Prepare(_)
            | Self::Abort(_)
            | Self::Changing
            | Self::Ending { .. }
            | Self::Blind
            | Self::Over => None,
        }
    }
}

#[derive(Debug)]
enum Queued {
    Command(Command),
    Malformed,
}

impl Queued {
    fn len(&self) -> usize {
        match self {
            Self::Command(command) => command.wire().len(),
            Self::Malformed => 0,
        }
    }
}

/// The machine.
#[derive(Debug)]
pub struct Session {
    core: Core,
    state: State,
    lines: LineSplitter,
    replies: Replies,
    /// What arrived of a reply that is kept back.
    kept: BytesMut,
    queue: VecDeque<Queued>,
    /// Bytes of the commands in `queue`.
    queued: usize,
    malformed: u8,
    draining: bool,
    /// The last command that was begun.
    command: VerbName,
}

impl Session {
    /// A session whose two control connections stand; the server's greeting comes next.
    pub fn new(now: Instant, settings: Arc<Settings>, addresses: Addresses) -> Self {
        Self {
            core: Core::new(now, settings, addresses),
            state: State::Relay { quit: false },
            lines: LineSplitter::new(COMMAND_LIMIT),
            replies: Replies::new(),
            kept: BytesMut::new(),
            queue: VecDeque::new(),
            queued: 0,
            malformed: 0,
            draining: false,
            command: VerbName::default(),
        }
    }

    /// Whether the driver should read from the client; otherwise it leaves the bytes in the kernel.
    pub fn wants_client(&self) -> bool {
        self.lines.buffered().len() < BACKLOG_LIMIT && !self.core.client_ended
    }

    /// What the session is doing, for the flow table.
    pub fn state_name(&self) -> &'static str {
        match &self.state {
            State::Idle => "idle",
            State::Relay { .. } => "command",
            State::Prepare(_) => "opening data",
            State::Download(_) => "download",
            State::Upload(_) => "upload",
            State::Unscanned(_) => "unscanned transfer",
            State::Abort(_) => "abort",
            State::Changing => "tls handshake",
            State::Ending { .. } | State::Over => "ending",
            State::Blind => "tls",
        }
    }

    /// The command that is being worked off, for the flow table.
    pub fn command(&self) -> Option<VerbName> {
        match &self.state {
            State::Relay { .. }
            | State::Prepare(_)
            | State::Download(_)
            | State::Upload(_)
            | State::Unscanned(_)
            | State::Abort(_) => Some(self.command).filter(|name| !name.as_str().is_empty()),
            State::Idle | State::Changing | State::Ending { .. } | State::Blind | State::Over => {
                None
            }
        }
    }

    /// Whether the session is between two commands with nothing under way.
    pub fn is_idle(&self) -> bool {
        matches!(self.state, State::Idle) && self.queue.is_empty()
    }

    /// Bytes of the client's control connection.
    pub fn handle_client(&mut self, now: Instant, bytes: &[u8]) {
        self.core.now = now;
        if matches!(self.state, State::Over | State::Blind | State::Changing | State::Ending { .. })
        {
            return;
        }
        if self.is_idle() {
            // The server's idle timer is the client's affair, ours begins with its command.
            self.core.spoke = now;
        }
        self.lines.push(bytes);
        self.pump(now);
    }

    /// Bytes of the server's control connection.
    pub fn handle_upstream(&mut self, now: Instant, bytes: &[u8]) {
        self.core.now = now;
        if matches!(self.state, State::Over | State::Blind | State::Changing) {
            return;
        }
        self.core.spoke = now;
        self.replies.push(bytes);
        loop {
            match self.replies.next_line() {
                Ok(Some(line)) => self.on_reply_line(now, line),
                Ok(None) => break,
                Err(_) => {
                    self.core.anomaly("ftp_reply_too_long", b"");
                    self.abandon(Outcome::ServerRefused);
                    self.finish(now, text::SERVER_GARBLED);
                    self.close();
                }
            }
            if matches!(self.state, State::Over | State::Blind | State::Changing) {
                return;
            }
        }
        self.pump(now);
    }

    /// The client's control connection ended or broke.
    pub fn handle_client_closed(&mut self, now: Instant) {
        self.core.now = now;
        self.core.client_ended = true;
        match self.state {
            State::Download(_) | State::Upload(_) | State::Unscanned(_) => {
                self.abandon(Outcome::Aborted);
                self.close();
            }
            State::Ending { .. } | State::Changing => self.close(),
            State::Idle
            | State::Relay { .. }
            | State::Prepare(_)
            | State::Abort(_)
            | State::Blind
            | State::Over => self.pump(now),
        }
    }

    /// The server's control connection ended or broke.
    pub fn handle_upstream_closed(&mut self, now: Instant) {
        self.core.now = now;
        let rest = self.replies.take_rest();
        match self.state {
            State::Over => return,
            // Half of a handshake: there are no words for it.
            State::Changing => {}
            State::Idle | State::Ending { .. } | State::Blind => {
                self.core.tell_client(rest);
            }
            State::Relay { .. } if self.core.expect.front() == Some(&Expect::Greeting) => {
                self.core.tell_client(rest);
            }
            State::Relay { quit: true } => self.core.tell_client(rest),
            State::Relay { .. }
            | State::Prepare(_)
            | State::Download(_)
            | State::Upload(_)
            | State::Unscanned(_)
            | State::Abort(_) => {
                self.abandon(Outcome::ServerRefused);
                self.finish(now, text::SERVER_GONE);
            }
        }
        self.close();
    }

    /// Something happened that the driver was asked for.
    pub fn handle_event(&mut self, now: Instant, event: Event) {
        self.core.now = now;
        if matches!(self.state, State::Over | State::Blind) {
            return;
        }
        let core = &mut self.core;
        match event {
            Event::Listening(Leg::Upstream, here) => core.upstream_listening(now, here),
            Event::Listening(Leg::Client, here) => {
                if core.client == ClientChannel::Binding {
                    core.client = here.map_or(ClientChannel::Failed, |here| {
                        ClientChannel::Listening(here.port())
                    });
                }
            }
            Event::Connected(Leg::Client) => match core.client {
                ClientChannel::Listening(_) | ClientChannel::Connecting => {
                    core.client = ClientChannel::Connected;
                }
                ClientChannel::None
                | ClientChannel::Binding
                | ClientChannel::Active(_)
                | ClientChannel::Connected
                | ClientChannel::Failed => {}
            },
            Event::Connected(Leg::Upstream) => match core.upstream {
                UpstreamChannel::Dialling | UpstreamChannel::Waiting => {
                    core.upstream = UpstreamChannel::Connected { since: now };
                }
                UpstreamChannel::None
                | UpstreamChannel::Asking(_)
                | UpstreamChannel::Binding
                | UpstreamChannel::Connected { .. }
                | UpstreamChannel::Failed(_) => {}
            },
            Event::ConnectFailed(Leg::Client) => {
                if core.client != ClientChannel::None {
                    core.client = ClientChannel::Failed;
                }
            }
            Event::ConnectFailed(Leg::Upstream) => {
                if core.upstream != UpstreamChannel::None {
                    core.dial_failed();
                }
            }
            Event::Recalled(recalled) => match self.state.transfer() {
                Some(Transfer::Download(download)) => download.recalled(core, now, recalled),
                Some(Transfer::Upload(upload)) => upload.recalled(now, recalled),
                Some(Transfer::Unscanned(_)) | None => {}
            },
            Event::Mismatched { released } => {
                if let State::Download(download) = &mut self.state {
                    download.mismatched(core, now, released);
                }
            }
            Event::Received(result) => match self.state.transfer() {
                Some(Transfer::Download(download)) => download.received(core, now, result),
                Some(Transfer::Upload(upload)) => upload.received(core, now, result),
                Some(Transfer::Unscanned(_)) | None => {}
            },
            Event::Judged { judgement, words } => {
                core.announced = (!words.is_empty()).then(|| words.into_boxed_str());
                match self.state.transfer() {
                    Some(Transfer::Download(download)) => download.judged(now, judgement),
                    Some(Transfer::Upload(upload)) => upload.judged(now, judgement),
                    Some(Transfer::Unscanned(_)) | None => {}
                }
            }
            Event::Sent(result) => match self.state.transfer() {
                Some(Transfer::Download(download)) => download.sent(core, now, result),
                Some(Transfer::Upload(upload)) => upload.sent(core, now, result),
                Some(Transfer::Unscanned(_)) | None => {}
            },
            Event::Sniffed(skip) => {
                if let State::Unscanned(unscanned) = &mut self.state {
                    unscanned.sniffed(now, skip);
                }
            }
            Event::Spliced(result) => {
                if let State::Unscanned(unscanned) = &mut self.state {
                    unscanned.spliced(core, now, result);
                }
            }
            Event::Secured(result) => self.changed_wire(Protection::Tls, result),
            Event::Cleared(result) => self.changed_wire(Protection::Cleared, result),
        }
        self.pump(now);
    }

    /// A moment given by [`poll_timeout`](Self::poll_timeout) has come. Harmless at other times.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.core.now = now;
        self.core.sync_expired(now);
        if self.keep_awake_at().is_some_and(|at| now >= at) {
            self.core.tell_upstream(now, &b"NOOP\r\n"[..], Expect::Swallow);
        }
        let state = std::mem::replace(&mut self.state, State::Over);
        let core = &mut self.core;
        let late = state_deadline(&state, core).is_some_and(|at| now >= at);
        self.state = match state {
            State::Download(download) => download.expired(core, now),
            State::Upload(upload) => upload.expired(core, now),
            State::Unscanned(unscanned) => unscanned.expired(core, now),
            State::Idle if late && !core.expect.is_empty() => {
                end_with(core, text::SERVER_SILENT, None)
            }
            State::Idle if late => end_with(core, text::IDLE, None),
            State::Relay { .. } | State::Prepare(_) | State::Abort(_) if late => {
                end_with(core, text::SERVER_SILENT, None)
            }
            State::Ending { .. } if late => {
                core.output(Output::Close);
                State::Over
            }
            state @ (State::Idle
            | State::Relay { .. }
            | State::Prepare(_)
            | State::Abort(_)
            | State::Changing
            | State::Ending { .. }
            | State::Blind
            | State::Over) => state,
        };
        self.pump(now);
    }

    /// Ends the session as soon as nothing is under way: the agent shuts down.
    pub fn drain(&mut self, now: Instant) {
        self.core.now = now;
        self.draining = true;
        self.pump(now);
    }

    /// What to do next; `None` when there is nothing more before the next `handle_*`.
    pub fn poll_output(&mut self) -> Option<Output> {
        let output = self.core.outputs.pop_front();
        if output.is_none() && self.core.outputs.capacity() > 8 {
            self.core.outputs = VecDeque::new();
        }
        output
    }

    /// When [`handle_timeout`](Self::handle_timeout) is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let deadline = state_deadline(&self.state, &self.core);
        deadline.into_iter().chain(self.keep_awake_at()).chain(self.core.sync_until()).min()
    }

    fn keep_awake_at(&self) -> Option<Instant> {
        let waits = match &self.state {
            State::Download(download) => download.keeps_server_waiting(),
            State::Upload(upload) => upload.keeps_server_waiting(),
            State::Idle
            | State::Relay { .. }
            | State::Prepare(_)
            | State::Unscanned(_)
            | State::Abort(_)
            | State::Changing
            | State::Ending { .. }
            | State::Blind
            | State::Over => false,
        };
        (waits && self.core.expect.is_empty())
            .then(|| self.core.spoke + self.core.settings.timing.keep_awake)
    }

    /// Takes every step that is possible now.
    fn pump(&mut self, now: Instant) {
        loop {
            self.advance(now);
            self.read_commands(now);
            if !matches!(self.state, State::Idle) || !self.core.expect.is_empty() {
                return;
            }
            if self.draining {
                self.finish(now, text::SHUTTING_DOWN);
                self.close();
                return;
            }
            let next = self.queue.pop_front();
            self.queued -= next.as_ref().map_or(0, Queued::len);
            match next {
                Some(Queued::Command(command)) => {
                    self.malformed = 0;
                    self.command = command.name();
                    self.state = start::start(&mut self.core, now, command);
                    if self.core.client_ended && self.in_transfer() {
                        // Nobody is left to take or to send the file.
                        self.abandon(Outcome::Aborted);
                        self.close();
                        return;
                    }
                }
                Some(Queued::Malformed) => self.refuse_malformed(now),
                None => {
                    self.queue = VecDeque::new();
                    if self.core.client_ended {
                        self.close();
                    }
                    return;
                }
            }
        }
    }

    fn advance(&mut self, now: Instant) {
        let state = std::mem::replace(&mut self.state, State::Over);
        let core = &mut self.core;
        self.state = match state {
            State::Prepare(verb) => start::prepare(core, verb),
            State::Download(download) => download.advance(core, now),
            State::Upload(upload) => upload.advance(core, now),
            State::Unscanned(unscanned) => unscanned.advance(core, now),
            state @ (State::Idle
            | State::Relay { .. }
            | State::Abort(_)
            | State::Changing
            | State::Ending { .. }
            | State::Blind
            | State::Over) => state,
        };
    }

    /// Reads commands into the queue; ABOR and STAT are heard during a transfer.
    fn read_commands(&mut self, now: Instant) {
        while self.queue.len() < QUEUE_LIMIT
            && self.queued < QUEUE_BYTES_LIMIT
            && !matches!(
                self.state,
                State::Over | State::Blind | State::Changing | State::Ending { .. }
            )
        {
            let line = match self.lines.next_line() {
                Ok(Some(line)) => line,
                Ok(None) => return,
                Err(_) => {
                    self.core.anomaly("ftp_line_too_long", b"");
                    self.abandon(Outcome::Aborted);
                    self.finish(now, text::LINE_TOO_LONG);
                    self.close();
                    return;
                }
            };
            if line.ending() == Ending::Lf {
                self.core.anomaly("ftp_bare_lf", line.content());
            }
            match Command::parse(&line) {
                Err(_) => {
                    self.core.anomaly("ftp_malformed_command", line.content());
                    self.queue.push_back(Queued::Malformed);
                }
                Ok(command) if command.verb == Verb::Abor && self.in_transfer() => self.abort(now),
                Ok(command) => match self.status_during_transfer(&command) {
                    Some(status) => self.core.tell_client(status),
                    None => {
                        let queued = Queued::Command(command);
                        self.queued += queued.len();
                        self.queue.push_back(queued);
                    }
                },
            }
        }
    }

    fn in_transfer(&self) -> bool {
        matches!(self.state, State::Download(_) | State::Upload(_) | State::Unscanned(_))
    }

    /// STAT without argument, between a transfer's 150 and its final reply (RFC 959 section 4.1.3).
    fn status_during_transfer(&self, command: &Command) -> Option<Bytes> {
        if command.verb != Verb::Stat || !command.argument().is_empty() {
            return None;
        }
        let (job, phase) = match &self.state {
            State::Download(download) if download.opened() => (&download.job, download.phase()),
            State::Upload(upload) if upload.opened() => (&upload.job, upload.phase()),
            State::Unscanned(unscanned) if unscanned.opened() => (&unscanned.job, "in progress"),
            State::Download(_)
            | State::Upload(_)
            | State::Unscanned(_)
            | State::Idle
            | State::Relay { .. }
            | State::Prepare(_)
            | State::Abort(_)
            | State::Changing
            | State::Ending { .. }
            | State::Blind
            | State::Over => return None,
        };
        Some(text::status(&job.command, phase))
    }

    fn abort(&mut self, now: Instant) {
        let due = self.core.transfer_is_due();
        self.core.drop_client(true);
        self.core.drop_upstream(true);
        self.core.output(Output::End(Outcome::Aborted));
        if due {
            self.state = State::Abort(Abort::begin(&mut self.core, now));
        } else {
            self.core.tell_client(text::ABORTED);
            self.state = State::Idle;
        }
    }

    fn refuse_malformed(&mut self, now: Instant) {
        self.malformed += 1;
        if self.malformed < MALFORMED_LIMIT {
            self.core.tell_client(text::NOT_A_COMMAND);
        } else {
            self.finish(now, text::TOO_MANY_ERRORS);
            self.close();
        }
    }

    /// Breaks off a transfer: its data legs are reset.
    fn abandon(&mut self, outcome: Outcome) {
        let transfer = self.in_transfer();
        if let (State::Upload(upload), Outcome::ServerRefused) = (&self.state, outcome)
            && let Some(waited) = upload.waited(self.core.spoke)
        {
            self.core.note(Note::Impatient(waited));
        }
        self.core.drop_client(transfer);
        self.core.drop_upstream(transfer);
        if transfer {
            self.core.swallow_transfer();
            self.core.output(Output::End(outcome));
            self.state = State::Idle;
        }
    }

    /// Says the last word; the server is given a moment to close by itself.
    fn finish(&mut self, now: Instant, text: &[u8]) {
        self.core.tell_client(Bytes::copy_from_slice(text));
        self.state = State::Ending { until: now + self.core.settings.timing.close };
    }

    fn close(&mut self) {
        if !matches!(self.state, State::Over) {
            self.core.drop_client(false);
            self.core.drop_upstream(false);
            self.core.output(Output::Close);
            self.state = State::Over;
        }
    }
}

/// Says the last word and closes at once: the server does not answer.
fn end_with(core: &mut Core, text: &'static [u8], transfer: Option<Outcome>) -> State {
    core.drop_client(transfer.is_some());
    core.drop_upstream(transfer.is_some());
    core.tell_client(text);
    if let Some(outcome) = transfer {
        core.output(Output::End(outcome));
    }
    core.output(Output::Close);
    State::Over
}

fn state_deadline(state: &State, core: &Core) -> Option<Instant> {
    let timing = &core.settings.timing;
    match state {
        State::Idle if !core.expect.is_empty() => Some(core.spoke + timing.close),
        // Nobody waits for the answer any more.
        State::Relay { .. } | State::Prepare(_) if core.client_ended => {
            Some(core.spoke + timing.close)
        }
        State::Relay { .. } if core.expect.front() == Some(&Expect::Greeting) => {
            Some(core.spoke + timing.reply)
        }
        State::Idle | State::Relay { .. } => Some(core.spoke + timing.idle),
        State::Prepare(_) => Some(core.spoke + timing.reply),
        State::Download(download) => download.deadline(core),
        State::Upload(upload) => upload.deadline(core),
        State::Unscanned(unscanned) => unscanned.deadline(core),
        State::Abort(abort) => Some(abort.until),
        State::Ending { until } => Some(*until),
        // The driver has a deadline for it.
        State::Changing | State::Blind | State::Over => None,
    }
}

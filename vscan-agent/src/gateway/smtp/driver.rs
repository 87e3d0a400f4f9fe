//! One session: its two legs, the machine between them, the message in hand.
//!
//! Written as one `poll` function: an idle session is this struct and nothing else. Bytes are read
//! into one buffer per thread, never into one per session.

use super::deliver::{Delivery, decoded, stuffed, unstuffed};
use crate::{
    config::{BareNewline, Config, verdict_str},
    gateway::{
        Gateway,
        inspect::{About, Inspection, Outcome},
    },
    net::close::CLOSE_TIMEOUT,
    observe::{Denied, EventKind, FlowHandle, wire},
    spool::{Object, SpoolError, Writer},
    tls::Wire,
};
use serde::Serialize;
use std::{
    borrow::Cow,
    cell::RefCell,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};
use tokio::{io::AsyncWrite, time::Sleep};
use vscan_proto::smtp::data::Unstuffer;
use vscan_proto::smtp::{
    self, Anomaly, Finished, Form, Message, Outcome as Fate, Output, Ruling, Secured, Server,
    Session,
};
use vscan_scan::{report::Verdict, wire::ObjectKind};

/// Bytes read at a time. A message of this size is read in one go and stays on the heap.
const READ_MAX: usize = 64 << 10;

/// Answers in bytes that a client may leave unread, beyond what its socket holds, before it is heard
/// no more.
const UNREAD_MAX: usize = 64 << 10;

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_MAX]);
}

type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// How a session's legs are to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Both in order.
    Close,
    /// The client's in order, the server's by a reset.
    CloseClient,
    /// Both by a reset.
    Reset,
    /// Not yet: from here on they are relayed blindly.
    Blind,
    /// Not yet: TLS is to be opened, the server being so far. The session goes on with the new legs.
    Secure(Server),
}

/// A session that runs.
pub(super) struct Driver<'a> {
    gateway: &'a Gateway,
    config: &'a Config,
    flow: &'a FlowHandle,
    machine: Session,
    client: Leg,
    upstream: Leg,
    /// Bytes of the client that the machine cannot use yet. While there are any, none are read.
    early: Vec<u8>,
    hold: Hold,
    inspection: Option<Boxed<'a, Inspection>>,
    delivery: Option<Delivery>,
    verdict: Option<Verdict>,
    /// The upstream leg's sending side is to be shut when all is written.
    shutdown_upstream: bool,
    end: Option<End>,
    /// TLS is to be opened when all is written; as [`End::Secure`].
    secure: Option<Server>,
    timer: Pin<Box<Sleep>>,
    /// When the timer fires; what is due may be later.
    armed: Instant,
    /// When the legs are reset that do not take what is to be written before they close.
    close_due: Option<Instant>,
    /// Completes when the session is to end at its next safe point.
    drain: Option<Boxed<'a, ()>>,
    state: &'static str,
}

/// The message in hand.
#[derive(Default)]
enum Hold {
    #[default]
    None,
    Receiving(Writer),
    Complete(Object),
}

struct Leg {
    stream: Wire,
    out: Vec<u8>,
    written: usize,
    /// The peer sends no more, or the leg is lost.
    ended: bool,
}

/// A session between STARTTLS and its handshakes.
pub(super) struct Paused<'a> {
    gateway: &'a Gateway,
    config: &'a Config,
    flow: &'a FlowHandle,
    machine: Session,
    drain: Option<Boxed<'a, ()>>,
}

impl<'a> Paused<'a> {
    /// It goes on inside.
    pub(super) fn resume(mut self, client: Wire, upstream: Wire, secured: Secured) -> Driver<'a> {
        let now = Instant::now();
        self.machine.handle_secured(now, secured);
        Driver::with(self, client, upstream, now)
    }
}

/// What a step of writing came to.
#[derive(PartialEq, Eq)]
enum Wrote {
    Nothing,
    All,
    Lost,
}

impl<'a> Driver<'a> {
    pub(super) fn new(
        gateway: &'a Gateway,
        config: &'a Config,
        flow: &'a FlowHandle,
        machine: Arc<smtp::Config>,
        client: Wire,
        upstream: Wire,
    ) -> Self {
        let now = Instant::now();
        let mut draining = gateway.draining();
        let drain: Boxed<'a, ()> = Box::pin(async move {
            // An error means that the gateway is gone, and the session with it.
            let _ = draining.wait_for(|draining| *draining).await;
        });
        let machine = Session::new(machine, now);
        let new = Paused { gateway, config, flow, machine, drain: Some(drain) };
        Self::with(new, client, upstream, now)
    }

    fn with(session: Paused<'a>, client: Wire, upstream: Wire, now: Instant) -> Self {
        let Paused { gateway, config, flow, machine, drain } = session;
        let armed = machine.poll_timeout().unwrap_or(now);
        Self {
            gateway,
            config,
            flow,
            machine,
            client: Leg::new(client),
            upstream: Leg::new(upstream),
            early: Vec::new(),
            hold: Hold::None,
            inspection: None,
            delivery: None,
            verdict: None,
            shutdown_upstream: false,
            end: None,
            secure: None,
            timer: Box::pin(tokio::time::sleep_until(armed.into())),
            armed,
            close_due: None,
            drain,
            state: "",
        }
    }

    /// The client's and the server's leg.
    pub(super) fn into_legs(self) -> (Wire, Wire) {
        (self.client.stream, self.upstream.stream)
    }

    /// The client's EHLO line, with which the server may be greeted by vscan.
    pub(super) fn hello(&self) -> &[u8] {
        self.machine.hello()
    }

    /// The session without its legs, which get TLS meanwhile.
    pub(super) fn pause(self) -> (Paused<'a>, Wire, Wire) {
        let Self { client, upstream, .. } = self;
        let paused = Paused {
            gateway: self.gateway,
            config: self.config,
            flow: self.flow,
            machine: self.machine,
            drain: self.drain,
        };
        (paused, client.stream, upstream.stream)
    }

    /// Runs the session until its legs are to end.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        loop {
            self.outputs();
            if self.secure.is_some() && !self.early.is_empty() {
                self.secure = None;
                self.machine.handle_injection();
                continue;
            }
            if self.end == Some(End::Reset) {
                return Poll::Ready(End::Reset);
            }
            if self.poll_write(cx) || self.poll_deliver(cx) {
                continue;
            }
            if let Some(end) = self.end
                && self.client.out.is_empty()
                && self.upstream.out.is_empty()
            {
                return Poll::Ready(end);
            }
            if let Some(server) = self.secure
                && self.client.out.is_empty()
                && self.upstream.out.is_empty()
            {
                return Poll::Ready(End::Secure(server));
            }
            // What comes behind the machine's last word is the blind relay's to read, or the handshake's.
            let reads = self.end != Some(End::Blind) && self.secure.is_none();
            let read = reads
                && (self.poll_read_upstream(cx) || self.feed_early() || self.poll_read_client(cx));
            let moved =
                read || self.poll_inspection(cx) || self.poll_timer(cx) || self.poll_drain(cx);
            if !moved {
                self.show_state();
                return Poll::Pending;
            }
        }
    }

    /// Does what the machine says, except for writing.
    fn outputs(&mut self) {
        while let Some(output) = self.machine.poll_output() {
            match output {
                Output::ToClient(bytes) => self.client.push(bytes),
                Output::ToUpstream(bytes) => self.upstream.push(bytes),
                Output::Sender(sender) => self.flow.set_user(&sender),
                Output::Denied { recipient, address, tell } => {
                    self.flow.denied(&Denied::smtp(recipient, &address), tell);
                }
                Output::Inspect(form) => self.inspect(form),
                Output::SendMessage { end } => self.deliver(end),
                Output::Discard => self.discard(),
                Output::Finished(finished) => self.finished(&finished),
                Output::Anomaly(anomaly) => {
                    match anomaly {
                        Anomaly::DoubledMail => self.gateway.observer.metrics.mail_doubled(),
                        Anomaly::FinalReplyLost => self.gateway.observer.metrics.mail_doubtful(),
                        _ => {}
                    }
                    self.flow.anomaly(anomaly.name(), anomaly);
                }
                Output::Secure(server) => {
                    self.secure = Some(server);
                    self.close_due = Some(Instant::now() + CLOSE_TIMEOUT);
                }
                Output::Blind => self.end_by(End::Blind),
                Output::ShutdownUpstream => self.shutdown_upstream = true,
                Output::Close => self.end_by(End::Close),
                Output::CloseClient => self.end_by(End::CloseClient),
                Output::Reset => self.end_by(End::Reset),
            }
        }
    }

    fn end_by(&mut self, end: End) {
        self.end = Some(end);
        self.close_due = Some(Instant::now() + CLOSE_TIMEOUT);
        if end == End::CloseClient {
            self.upstream.out = Vec::new();
        }
        self.discard();
    }

    /// Writes what waits to be written; whether something came of it.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> bool {
        let client = self.client.poll_write(cx);
        match client {
            Wrote::Nothing => {}
            Wrote::All => self.machine.handle_client_written(),
            Wrote::Lost => self.machine.handle_client_lost(),
        }
        let upstream = self.upstream.poll_write(cx);
        if upstream == Wrote::Lost {
            self.upstream_lost(cx);
        }
        if self.shutdown_upstream && self.upstream.out.is_empty() {
            // Fails on a leg that is lost, which reading will tell.
            let shut = Pin::new(&mut self.upstream.stream).poll_shutdown(cx);
            self.shutdown_upstream = shut.is_pending();
        }
        // What was written in full waits for nothing but an answer.
        client == Wrote::Lost || upstream == Wrote::Lost
    }

    /// A write to the server failed; its last words may be there still.
    fn upstream_lost(&mut self, cx: &mut Context<'_>) {
        while self.poll_read_upstream(cx) {}
        self.upstream.ended = true;
        self.delivery = None;
        self.machine.handle_upstream_lost();
    }

    fn poll_deliver(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(delivery) = self.delivery.as_mut().filter(|_| self.upstream.out.is_empty()) else {
            return false;
        };
        match delivery.poll(&mut self.upstream.stream, cx) {
            Poll::Pending => return false,
            Poll::Ready(Ok(())) => {
                self.delivery = None;
                self.hold = Hold::None;
                self.machine.handle_message_sent();
            }
            Poll::Ready(Err(error)) => {
                tracing::debug!(flow = %self.flow.id(), "message not sent: {error}");
                self.upstream_lost(cx);
            }
        }
        true
    }

    fn poll_read_upstream(&mut self, cx: &mut Context<'_>) -> bool {
        // A client that does not read stops the server.
        if self.upstream.ended || !self.client.out.is_empty() {
            return false;
        }
        BUFFER.with_borrow_mut(|buffer| match self.upstream.poll_read(cx, buffer) {
            Poll::Pending => false,
            Poll::Ready(Ok([])) => {
                self.machine.handle_upstream_eof();
                true
            }
            Poll::Ready(Ok(bytes)) => {
                self.flow.add_bytes(0, bytes.len() as u64);
                self.machine.handle_upstream(Instant::now(), bytes);
                true
            }
            Poll::Ready(Err(_)) => {
                self.machine.handle_upstream_lost();
                true
            }
        })
    }

    fn poll_read_client(&mut self, cx: &mut Context<'_>) -> bool {
        // A server that does not read stops the client, and so do many answers that it has not read: not
        // all of them are the server's. What the machine cannot use yet is read once, to see whether the
        // client is still there.
        if self.client.ended
            || self.client.out.len() >= UNREAD_MAX
            || !self.upstream.out.is_empty()
            || !self.early.is_empty()
        {
            return false;
        }
        BUFFER.with_borrow_mut(|buffer| match self.client.poll_read(cx, buffer) {
            Poll::Pending => false,
            Poll::Ready(Ok([])) => {
                self.machine.handle_client_eof();
                true
            }
            Poll::Ready(Ok(bytes)) => {
                self.flow.add_bytes(bytes.len() as u64, 0);
                let used = self.feed(bytes);
                self.early = bytes[used..].to_vec();
                true
            }
            Poll::Ready(Err(_)) => {
                self.machine.handle_client_lost();
                true
            }
        })
    }

    fn feed_early(&mut self) -> bool {
        if self.early.is_empty()
            || self.client.out.len() >= UNREAD_MAX
            || !self.machine.wants_client()
        {
            return false;
        }
        let mut early = std::mem::take(&mut self.early);
        let used = self.feed(&early);
        early.drain(..used);
        if !early.is_empty() {
            self.early = early;
        }
        true
    }

    /// Gives the client's bytes to the machine as far as it wants them.
    fn feed(&mut self, bytes: &[u8]) -> usize {
        let mut used = 0;
        while used < bytes.len() && self.machine.wants_client() {
            let taken = self.machine.handle_client(Instant::now(), &bytes[used..]);
            used += taken.consumed;
            self.store(taken.message);
            self.outputs();
        }
        used
    }

    fn store(&mut self, message: Message<'_>) {
        if message.is_empty() {
            return;
        }
        if !matches!(self.hold, Hold::Receiving(_)) {
            self.hold = Hold::Receiving(self.gateway.spool.writer());
        }
        let Hold::Receiving(writer) = &mut self.hold else { return };
        let stored = match message.carry {
            [] => writer.write(message.body),
            carry => writer.write(carry).and_then(|()| writer.write(message.body)),
        };
        if let Err(error) = stored {
            self.spool_failed(&error);
        }
    }

    /// There is no room, or the disk failed: the machine refuses the message at its end.
    fn spool_failed(&mut self, error: &SpoolError) {
        let received = match &self.hold {
            Hold::Receiving(writer) => writer.len(),
            Hold::Complete(object) => object.len(),
            Hold::None => 0,
        };
        let sender = self.machine.envelope().map_or(Box::default(), |e| e.sender.into());
        self.tell_unheld(error, received, &sender);
        self.hold = Hold::None;
        self.machine.handle_spool_failed();
    }

    fn tell_unheld(&mut self, error: &SpoolError, received: u64, sender: &[u8]) {
        let kind = ObjectKind::Message;
        let about = About { kind, from_client: true, name: sender, recipients: &[], stored: None };
        let inspection =
            self.gateway.inspect_unheld(self.config, self.flow, error, received, about);
        self.verdict = Some(inspection.verdict);
    }

    /// The message is complete: has it looked at.
    fn inspect(&mut self, form: Form) {
        let writer = match std::mem::take(&mut self.hold) {
            Hold::Receiving(writer) => writer,
            Hold::None | Hold::Complete(_) => self.gateway.spool.writer(),
        };
        let shown = writer.finish().and_then(|object| {
            self.hold = Hold::Complete(object.clone());
            match form {
                Form::Stuffed => unstuffed(&self.gateway.spool, &object, Unstuffer::new()),
                Form::Plain | Form::Chunked => Ok(object.clone()),
            }
            .and_then(|shown| {
                let lenient = self
                    .machine
                    .is_ambiguous()
                    .then(|| unstuffed(&self.gateway.spool, &object, Unstuffer::lenient()));
                Ok((shown, lenient.transpose()?))
            })
        });
        let (object, lenient) = match shown {
            Ok(object) => object,
            Err(error) => return self.spool_failed(&error),
        };
        let Some(envelope) = self.machine.envelope() else { return };
        let (opened, accepted) = (self.flow.opened(), envelope.accepted);
        if self.gateway.mail_message(self.config, opened, accepted) {
            return self.machine.handle_ruling(Ruling::TooMuch);
        }
        let (sender, recipients) = (envelope.sender.to_vec(), envelope.recipients.to_vec());
        let (gateway, config, flow) = (self.gateway, self.config, self.flow);
        self.inspection = Some(Box::pin(async move {
            let about = About {
                kind: ObjectKind::Message,
                from_client: true,
                name: &sender,
                recipients: &recipients,
                stored: None,
            };
            // What a lenient server makes of it has to pass as well.
            if let Some(lenient) = &lenient {
                let inspection = gateway.inspect(config, flow, lenient, about).await;
                if !matches!(inspection.outcome, Outcome::Pass) {
                    return inspection;
                }
            }
            gateway.inspect(config, flow, &object, about).await
        }));
    }

    fn poll_inspection(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(inspection) = &mut self.inspection else { return false };
        let Poll::Ready(inspection) = inspection.as_mut().poll(cx) else { return false };
        self.inspection = None;
        self.verdict = Some(inspection.verdict);
        match &inspection.outcome {
            Outcome::Deliver(treated) => self.deliver_instead(treated),
            Outcome::Pass | Outcome::Block { .. } => {
                self.machine.handle_ruling(ruling(inspection));
            }
        }
        true
    }

    /// A treated message goes to the server, in the form that the client's came in.
    fn deliver_instead(&mut self, treated: &Object) {
        let spool = &self.gateway.spool;
        let wire = match self.machine.form() {
            Some(Form::Plain | Form::Stuffed) => {
                let pass = self.config.smtp.bare_newline == BareNewline::Pass;
                stuffed(spool, treated).and_then(|wire| {
                    let decoder = decoded(&wire)?;
                    Ok((decoder.odd_dot() || decoder.look_alike() && !pass, wire))
                })
            }
            Some(Form::Chunked) => Ok((false, treated.clone())),
            None => return,
        };
        match wire {
            Ok((true, _)) => {
                tracing::error!(flow = %self.flow.id(), "a treated message has a bare newline beside a dot");
                self.machine.handle_ruling(Ruling::Failed { permanent: true });
            }
            Ok((false, wire)) => {
                let size = wire.len();
                self.hold = Hold::Complete(wire);
                self.machine.handle_ruling(Ruling::Deliver { size });
            }
            Err(error) => self.spool_failed(&error),
        }
    }

    fn deliver(&mut self, end: &'static [u8]) {
        let Hold::Complete(object) = &self.hold else { return };
        match Delivery::new(object.clone(), end) {
            Ok(delivery) => self.delivery = Some(delivery),
            Err(error) => {
                // The server waits for a message that cannot be had: it must not take its absence for an end.
                tracing::error!(flow = %self.flow.id(), "held message cannot be read: {error}");
                self.upstream.ended = true;
                self.machine.handle_upstream_lost();
            }
        }
    }

    fn discard(&mut self) {
        self.inspection = None;
        self.delivery = None;
        self.hold = Hold::None;
    }

    fn finished(&mut self, finished: &Finished) {
        self.discard();
        if finished.outcome == Fate::TooLarge {
            let limit = self.config.spool.hold_max;
            self.tell_unheld(&SpoolError::TooLarge { limit }, finished.size, &finished.sender);
        }
        self.flow.event(
            EventKind::Smtp,
            &MessageFields {
                sender: wire::text(&finished.sender),
                recipients: finished.recipients,
                delivered: finished.delivered,
                size: finished.size,
                outcome: finished.outcome.name(),
                verdict: self.verdict.take().map(verdict_str),
                reply: finished.code,
            },
        );
    }

    fn poll_timer(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(due) = self.close_due.or_else(|| self.machine.poll_timeout()) else {
            return false;
        };
        // A timer that fires early costs one look; moving it with every byte would cost more.
        if due < self.armed {
            self.arm(due);
        }
        while self.timer.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            if now >= due {
                if self.close_due.is_some() {
                    self.end = Some(End::Reset);
                } else {
                    self.machine.handle_timeout(now);
                    self.arm(self.machine.poll_timeout().unwrap_or(now + CLOSE_TIMEOUT));
                }
                return true;
            }
            self.arm(due);
        }
        false
    }

    fn arm(&mut self, due: Instant) {
        self.armed = due;
        self.timer.as_mut().reset(due.into());
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(drain) = &mut self.drain else { return false };
        if drain.as_mut().poll(cx).is_pending() {
            return false;
        }
        self.drain = None;
        self.machine.handle_drain();
        true
    }

    fn show_state(&mut self) {
        let state = self.machine.state_name();
        if state != self.state {
            self.state = state;
            self.flow.set_state(state);
        }
    }
}

impl Leg {
    fn new(stream: Wire) -> Self {
        Self { stream, out: Vec::new(), written: 0, ended: false }
    }

    fn push(&mut self, bytes: Vec<u8>) {
        if self.out.is_empty() {
            self.out = bytes;
        } else {
            self.out.extend_from_slice(&bytes);
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Wrote {
        if self.out.is_empty() {
            return Wrote::Nothing;
        }
        while self.written < self.out.len() {
            let rest = &self.out[self.written..];
            match Pin::new(&mut self.stream).poll_write(cx, rest) {
                Poll::Pending => return Wrote::Nothing,
                Poll::Ready(Ok(count)) if count > 0 => self.written += count,
                Poll::Ready(_) => {
                    self.clear();
                    self.ended = true;
                    return Wrote::Lost;
                }
            }
        }
        match Pin::new(&mut self.stream).poll_flush(cx) {
            Poll::Pending => return Wrote::Nothing,
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(_)) => {
                self.clear();
                self.ended = true;
                return Wrote::Lost;
            }
        }
        self.clear();
        Wrote::All
    }

    /// Everything is written: gives the memory back.
    fn clear(&mut self) {
        self.out = Vec::new();
        self.written = 0;
    }

    fn poll_read<'b>(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &'b mut [u8],
    ) -> Poll<io::Result<&'b [u8]>> {
        let count = match self.stream.poll_read(cx, buffer) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Ok(count)) => count,
            // TLS that ends without close_notify, as many peers have it behind QUIT. A message says itself where it
            // ends: one that is cut off is none.
            Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => 0,
            Poll::Ready(Err(error)) => {
                self.ended = true;
                return Poll::Ready(Err(error));
            }
        };
        self.ended = count == 0;
        Poll::Ready(Ok(&buffer[..count]))
    }
}

fn ruling(inspection: Inspection) -> Ruling {
    let Inspection { outcome, verdict, name, .. } = inspection;
    match (outcome, verdict) {
        (Outcome::Pass, _) => Ruling::Pass,
        (Outcome::Deliver(treated), _) => Ruling::Deliver { size: treated.len() },
        (Outcome::Block { .. }, Verdict::Unscannable) => Ruling::Unscannable { reason: name },
        (Outcome::Block { temporary }, Verdict::Error) => Ruling::Failed { permanent: !temporary },
        (Outcome::Block { .. }, Verdict::Infected | Verdict::Clean) => Ruling::Infected { name },
    }
}

/// Fields of an `smtp` event.
#[derive(Serialize)]
struct MessageFields<'a> {
    sender: Cow<'a, str>,
    /// Accepted recipients.
    recipients: u32,
    /// Those for whom the server accepted the message.
    delivered: u32,
    /// Bytes on the wire.
    size: u64,
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    verdict: Option<&'static str>,
    /// Code of the final reply.
    #[serde(skip_serializing_if = "Option::is_none")]
    reply: Option<u16>,
}

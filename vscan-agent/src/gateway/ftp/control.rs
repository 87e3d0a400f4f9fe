//! The two control connections: bytes into the machine, outputs out of it.
//!
//! An idle session holds two sockets and the machine, no buffers: it waits for readiness, reads
//! into the stack, and writes what a step produced in one call.

use super::{
    Place,
    data::{Data, Protected},
    secure::{self, Change},
};
use crate::{
    observe::{Denied, wire},
    tls::Wire,
};
use bytes::BytesMut;
use std::{
    future::poll_fn,
    io,
    mem::MaybeUninit,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf},
    time::{Sleep, sleep_until, timeout},
};
use vscan_proto::ftp::{Addresses, Broken, Event, Leg, Note, Output, Session, Settings, VerbName};

/// Bytes read at a time; commands and replies are short.
const READ_SIZE: usize = 8 << 10;

/// Unwritten bytes towards one peer past which the other is not read, nor the client at all.
const PENDING_MAX: usize = 64 << 10;

/// How long a peer may take to accept the last words of a session.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// How a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// Everything was said.
    Closed,
    /// Something was wrong: nobody shall take what arrived for whole.
    Reset,
    /// TLS begins, and is not opened.
    Blind,
    /// The same; the client's first record was read already.
    BlindBehind,
}

pub(super) struct Control<'a> {
    place: Place<'a>,
    session: Session,
    client: Line,
    upstream: Line,
    data: Option<Box<Data<'a>>>,
    /// How data connections are made.
    protected: Protected,
    /// TLS is to begin, or to end, when what was said is out.
    due: Option<Due>,
    /// TLS begins or ends.
    changing: Option<Pin<Box<dyn Future<Output = Change> + Send + 'a>>>,
    /// What was read of a client whose session is relayed.
    received: Vec<u8>,
    /// Fires at the machine's deadline, or before one that has moved since.
    timer: Option<Pin<Box<Sleep>>>,
    /// What the flow table was told: state and command.
    state: (&'static str, Option<VerbName>),
    ended: Option<Ended>,
}

/// A change of both control connections.
#[derive(Clone, Copy)]
enum Due {
    Secure,
    Clear,
}

/// One control connection.
struct Line {
    /// None while it changes, and when that has failed.
    wire: Option<Wire>,
    /// Bytes to be written.
    pending: BytesMut,
    /// The peer may still send.
    open: bool,
    /// Why it does not, if that was no end in order.
    error: Option<io::Error>,
    /// The peer may send urgent data, at whose mark a read stops short (ABOR with a Synch).
    urgent: bool,
}

impl Line {
    fn new(wire: Wire, urgent: bool) -> Self {
        Self { wire: Some(wire), pending: BytesMut::new(), open: true, error: None, urgent }
    }

    fn is_full(&self) -> bool {
        self.pending.len() >= PENDING_MAX
    }

    /// Reads what is there into the stack and hands it on; `None` at the end of the stream.
    fn poll_read<T>(
        &mut self,
        cx: &mut Context<'_>,
        handle: impl FnOnce(Option<&[u8]>) -> T,
    ) -> Poll<T> {
        let Some(wire) = &mut self.wire else { return Poll::Pending };
        let mut space = [MaybeUninit::uninit(); READ_SIZE];
        let mut buffer = ReadBuf::uninit(&mut space);
        let read = match wire {
            Wire::Plain(tcp) if self.urgent => loop {
                let ready = ready!(tcp.poll_read_ready(cx));
                match ready.and_then(|()| tcp.try_read_buf(&mut buffer)) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    read => break read.map(drop),
                }
            },
            // After a short read this knows that nothing is left.
            wire => ready!(AsyncRead::poll_read(Pin::new(wire), cx, &mut buffer)),
        };
        let bytes = buffer.filled();
        let ended = match read {
            Err(error) => {
                self.error = Some(error);
                true
            }
            Ok(()) => bytes.is_empty(),
        };
        if ended {
            self.open = false;
            return Poll::Ready(handle(None));
        }
        Poll::Ready(handle(Some(bytes)))
    }

    /// Writes what is pending as soon as the socket takes it.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(wire) = &mut self.wire else { return Poll::Ready(()) };
        while !self.pending.is_empty() {
            match ready!(Pin::new(&mut *wire).poll_write(cx, &self.pending)) {
                Ok(count) => drop(self.pending.split_to(count)),
                // A broken connection is noticed by reading it.
                Err(_) => self.pending.clear(),
            }
        }
        self.pending = BytesMut::new();
        Pin::new(wire).poll_flush(cx).map(|_noticed_by_reading| ())
    }
}

impl<'a> Control<'a> {
    pub(super) fn new(
        place: Place<'a>,
        settings: Settings,
        client: Wire,
        upstream: Wire,
        protected: Protected,
    ) -> Self {
        let addresses = Addresses { client: place.client, dialled: place.dialled };
        Self {
            place,
            session: Session::new(Instant::now(), Arc::new(settings), addresses),
            client: Line::new(client, true),
            upstream: Line::new(upstream, false),
            data: None,
            protected,
            due: None,
            changing: None,
            received: Vec::new(),
            timer: None,
            state: ("", None),
            ended: None,
        }
    }

    /// Serves the session until it ends; then [`into_legs`](Self::into_legs) gives the control
    /// connections back. Data channels that are left are reset.
    pub(super) async fn run(&mut self) -> Ended {
        let mut draining = self.place.gateway.draining();
        let mut drain = pin!(draining.wait_for(|draining| *draining));
        let mut drained = false;
        let ended = poll_fn(|cx| {
            // The gateway outlives its sessions, so that no answer is no error.
            if !drained && drain.as_mut().poll(cx).is_ready() {
                drained = true;
                self.session.drain(Instant::now());
            }
            self.poll(cx)
        })
        .await;
        if ended != Ended::Reset {
            Box::pin(self.last_words()).await;
        }
        ended
    }

    /// Goes on for as long as something happens.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Ended> {
        loop {
            self.execute(cx);
            // Whether all was written matters only before a change: a full leg stops the other's reading.
            let out = (self.client.poll_flush(cx), self.upstream.poll_flush(cx));
            if let Some(ended) = self.ended {
                return Poll::Ready(ended);
            }
            if self.due.is_some() || self.changing.is_some() {
                if out.0.is_ready() && out.1.is_ready() {
                    self.change();
                }
                ready!(self.poll_change(cx));
            } else {
                ready!(self.poll_event(cx));
            }
        }
    }

    /// Begins the change that is due.
    fn change(&mut self) {
        let Some(due) = self.due.take() else { return };
        let (Some(client), Some(upstream)) = (self.client.wire.take(), self.upstream.wire.take())
        else {
            return;
        };
        let place = self.place;
        self.changing = match (due, client, upstream) {
            (Due::Secure, Wire::Plain(client), Wire::Plain(upstream)) => {
                Some(Box::pin(secure::secure(place, client, upstream)))
            }
            (_, client, upstream) => Some(Box::pin(secure::clear(place, client, upstream))),
        };
    }

    /// Nothing is read from either leg until the change is over.
    fn poll_change(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(changing) = &mut self.changing else { return Poll::Pending };
        let change = ready!(changing.as_mut().poll(cx));
        self.changing = None;
        let event = match change {
            Change::Secured { client, upstream, security } => {
                (self.client.wire, self.upstream.wire) = (Some(client), Some(upstream));
                self.protected.security = Some(security);
                Event::Secured(Ok(()))
            }
            Change::Cleared { client, upstream, received } => {
                (self.client.wire, self.upstream.wire) = (Some(client), Some(upstream));
                self.session.handle_event(Instant::now(), Event::Cleared(Ok(())));
                if !received.is_empty() {
                    self.place.flow.add_bytes(received.len() as u64, 0);
                    self.session.handle_client(Instant::now(), &received);
                }
                return Poll::Ready(());
            }
            Change::Passes { client, upstream, received } => {
                self.client.wire = Some(Wire::Plain(client));
                self.upstream.wire = Some(Wire::Plain(upstream));
                self.received = received;
                self.ended = Some(Ended::BlindBehind);
                return Poll::Ready(());
            }
            Change::Failed(leg) => Event::Secured(Err(Broken { leg })),
        };
        self.session.handle_event(Instant::now(), event);
        Poll::Ready(())
    }

    /// Hands the next thing that happens to the machine.
    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let now = Instant::now();
        let (session, flow) = (&mut self.session, self.place.flow);
        if let Some(data) = &mut self.data
            && let Poll::Ready(event) = data.poll(cx)
        {
            session.handle_event(now, event);
            return Poll::Ready(());
        }
        if self.upstream.open && !self.client.is_full() {
            let read = self.upstream.poll_read(cx, |bytes| match bytes {
                Some(bytes) => {
                    flow.add_bytes(0, bytes.len() as u64);
                    session.handle_upstream(now, bytes);
                }
                None => session.handle_upstream_closed(now),
            });
            if let (Some(error), Some(security)) =
                (self.upstream.error.take(), &self.protected.security)
            {
                security.lost(self.place, &error);
            }
            if read.is_ready() {
                return read;
            }
        }
        // Much of what a client asks is answered here: one that reads no answers is not heard.
        let takes = !self.client.is_full() && !self.upstream.is_full();
        if self.client.open && session.wants_client() && takes {
            let read = self.client.poll_read(cx, |bytes| match bytes {
                Some(bytes) => {
                    flow.add_bytes(bytes.len() as u64, 0);
                    session.handle_client(now, bytes);
                }
                None => session.handle_client_closed(now),
            });
            if read.is_ready() {
                return read;
            }
        }
        self.arm();
        if let Some(timer) = &mut self.timer {
            ready!(timer.as_mut().poll(cx));
            self.timer = None;
            self.session.handle_timeout(now);
            return Poll::Ready(());
        }
        Poll::Pending
    }

    /// The control connections, client and upstream, and what was read of the client's beyond the dialogue. None are left
    /// where a handshake failed.
    pub(super) fn into_legs(self) -> (Option<Wire>, Option<Wire>, Vec<u8>) {
        (self.client.wire, self.upstream.wire, self.received)
    }

    /// Carries out what the machine asks for, in its order.
    fn execute(&mut self, cx: &mut Context<'_>) {
        while let Some(output) = self.session.poll_output() {
            match output {
                Output::ToClient(bytes) => self.client.pending.extend_from_slice(&bytes),
                Output::ToUpstream(bytes) => self.upstream.pending.extend_from_slice(&bytes),
                Output::Note(note) => match *note {
                    Note::Impatient(after) => {
                        self.place.gateway.memory.gave_up(self.place.server, after);
                        self.place.flow.anomaly("ftp_server_impatient", after.as_secs());
                    }
                    Note::User(user) => self.place.flow.set_user(&user),
                    Note::Denied { command, what, tell } => {
                        let denied = Denied::ftp(command.as_deref(), &what);
                        self.place.flow.denied(&denied, tell);
                    }
                    Note::Anomaly { name, detail } => {
                        self.place.flow.anomaly(name, wire::text(&detail));
                    }
                },
                Output::Secure => self.due = Some(Due::Secure),
                Output::Clear => self.due = Some(Due::Clear),
                Output::Protect(private) => self.protected.private = private,
                Output::Blind => self.ended = Some(Ended::Blind),
                Output::Close => self.ended = Some(Ended::Closed),
                Output::Reset => self.ended = Some(Ended::Reset),
                output @ (Output::Listen(_)
                | Output::Recall
                | Output::Join(_)
                | Output::Stream(_)
                | Output::Check
                | Output::ConnectClient(_)
                | Output::DialUpstream(_)
                | Output::Receive(_)
                | Output::Inspect
                | Output::Send(_)
                | Output::Sniff(_)
                | Output::Splice(_)
                | Output::CloseData(_)
                | Output::ResetData(_)
                | Output::Begin(_)
                | Output::End(_)) => self.execute_data(cx, output),
            }
        }
        if self.data.as_ref().is_some_and(|data| data.is_idle()) {
            self.data = None;
        }
        let state = (self.session.state_name(), self.session.command());
        if state != self.state {
            self.state = state;
            self.place.flow.set_command(state.0, state.1);
        }
    }

    fn execute_data(&mut self, cx: &mut Context<'_>, output: Output) {
        let data = self.data.get_or_insert_with(|| Box::new(Data::new(self.place)));
        data.protected.clone_from(&self.protected);
        let sends = matches!(output, Output::Send(Leg::Client));
        let mut event = data.execute(output);
        // A small file is written at once, and both its replies then go out together.
        if sends
            && event.is_none()
            && let Poll::Ready(sent) = data.poll(cx)
        {
            event = Some(sent);
        }
        if let Some(event) = event {
            self.session.handle_event(Instant::now(), event);
        }
    }

    /// Sets the timer for the machine's deadline. A deadline that only moved away (each command
    /// moves the idle one) leaves the timer alone: firing early is harmless.
    fn arm(&mut self) {
        let Some(deadline) = self.session.poll_timeout().map(tokio::time::Instant::from_std) else {
            self.timer = None;
            return;
        };
        match &mut self.timer {
            Some(timer) if timer.deadline() <= deadline => {}
            Some(timer) => timer.as_mut().reset(deadline),
            None => self.timer = Some(Box::pin(sleep_until(deadline))),
        }
    }

    /// Writes what is still pending before the connections are closed or handed on.
    async fn last_words(&mut self) {
        for leg in [&mut self.client, &mut self.upstream] {
            let pending = std::mem::take(&mut leg.pending);
            if let Some(wire) = &mut leg.wire
                && !pending.is_empty()
            {
                // A peer that takes nothing any more does not hear the rest.
                let _ = timeout(LAST_WORDS, wire.write_all(&pending)).await;
            }
        }
    }
}

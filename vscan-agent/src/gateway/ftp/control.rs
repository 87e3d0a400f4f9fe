//! The two control connections: bytes into the machine, outputs out of it.
//!
//! An idle session holds two sockets and the machine, no buffers: it waits for readiness, reads
//! into the stack, and writes what a step produced in one call.

use super::{Place, data::Data};
use crate::observe::wire;
use bytes::BytesMut;
use std::{
    future::poll_fn,
    io,
    pin::Pin,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};
use tokio::{
    io::AsyncWriteExt,
    net::TcpStream,
    sync::watch,
    time::{Sleep, sleep_until, timeout},
};
use vscan_proto::ftp::{Addresses, Note, Output, Session, Settings};

/// Bytes read at a time; commands and replies are short.
const READ_SIZE: usize = 8 << 10;

/// Unwritten bytes towards one peer past which the other is not read.
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
    /// TLS begins.
    Blind,
}

/// What the session waits for.
enum Wake {
    Client,
    Upstream,
    Written,
    Data(vscan_proto::ftp::Event),
    Timer,
    Drain,
}

pub(super) struct Control<'a> {
    place: Place<'a>,
    session: Session,
    client: Leg,
    upstream: Leg,
    data: Option<Box<Data<'a>>>,
    /// Fires at the machine's deadline, or before one that has moved since.
    timer: Option<Pin<Box<Sleep>>>,
    draining: watch::Receiver<bool>,
    state: &'static str,
    ended: Option<Ended>,
}

struct Leg {
    stream: TcpStream,
    /// Bytes to be written.
    pending: BytesMut,
    /// The peer may still send.
    open: bool,
}

impl Leg {
    fn new(stream: TcpStream) -> Self {
        Self { stream, pending: BytesMut::new(), open: true }
    }

    /// Writes what the socket takes now. A broken connection is noticed by reading it.
    fn flush(&mut self) {
        while !self.pending.is_empty() {
            match self.stream.try_write(&self.pending) {
                Ok(count) => drop(self.pending.split_to(count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => self.pending.clear(),
            }
        }
        // No memory stays with an idle session.
        self.pending = BytesMut::new();
    }

    fn is_full(&self) -> bool {
        self.pending.len() >= PENDING_MAX
    }

    /// Reads what is there into the stack and hands it on; `false` at the end of the stream.
    fn read(&mut self, handle: impl FnOnce(&[u8])) -> bool {
        let mut buffer = [0; READ_SIZE];
        match self.stream.try_read(&mut buffer) {
            Ok(0) => self.open = false,
            Ok(count) => handle(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => self.open = false,
        }
        self.open
    }
}

impl<'a> Control<'a> {
    pub(super) fn new(
        place: Place<'a>,
        settings: Settings,
        client: TcpStream,
        upstream: TcpStream,
    ) -> Self {
        let addresses = Addresses { client: place.client, dialled: place.dialled };
        Self {
            place,
            session: Session::new(Instant::now(), Arc::new(settings), addresses),
            client: Leg::new(client),
            upstream: Leg::new(upstream),
            data: None,
            timer: None,
            draining: place.gateway.draining(),
            state: "",
            ended: None,
        }
    }

    /// Serves the session until it ends; then [`into_legs`](Self::into_legs) gives the control
    /// connections back. Data channels that are left are reset.
    pub(super) async fn run(&mut self) -> Ended {
        if *self.draining.borrow_and_update() {
            self.session.drain(Instant::now());
        }
        loop {
            self.execute();
            self.client.flush();
            self.upstream.flush();
            if let Some(ended) = self.ended {
                if ended != Ended::Reset {
                    Box::pin(self.last_words()).await;
                }
                return ended;
            }
            self.arm();
            let wake = self.wake().await;
            let now = Instant::now();
            match wake {
                Wake::Client => self.read_client(now),
                Wake::Upstream => self.read_upstream(now),
                Wake::Written => {}
                Wake::Data(event) => self.session.handle_event(now, event),
                Wake::Timer => {
                    self.timer = None;
                    self.session.handle_timeout(now);
                }
                Wake::Drain => self.session.drain(now),
            }
        }
    }

    /// The control connections: client, upstream.
    pub(super) fn into_legs(self) -> (TcpStream, TcpStream) {
        (self.client.stream, self.upstream.stream)
    }

    fn read_client(&mut self, now: Instant) {
        let (session, flow) = (&mut self.session, self.place.flow);
        let open = self.client.read(|bytes| {
            flow.add_bytes(bytes.len() as u64, 0);
            session.handle_client(now, bytes);
        });
        if !open {
            self.session.handle_client_closed(now);
        }
    }

    fn read_upstream(&mut self, now: Instant) {
        let (session, flow) = (&mut self.session, self.place.flow);
        let open = self.upstream.read(|bytes| {
            flow.add_bytes(0, bytes.len() as u64);
            session.handle_upstream(now, bytes);
        });
        if !open {
            self.session.handle_upstream_closed(now);
        }
    }

    /// Carries out what the machine asks for, in its order.
    fn execute(&mut self) {
        while let Some(output) = self.session.poll_output() {
            match output {
                Output::ToClient(bytes) => self.client.pending.extend_from_slice(&bytes),
                Output::ToUpstream(bytes) => self.upstream.pending.extend_from_slice(&bytes),
                Output::Note(note) => match *note {
                    Note::User(user) => self.place.flow.set_user(&user),
                    Note::Anomaly { name, detail } => {
                        self.place.flow.anomaly(name, wire::text(&detail));
                    }
                },
                Output::Blind => self.ended = Some(Ended::Blind),
                Output::Close => self.ended = Some(Ended::Closed),
                Output::Reset => self.ended = Some(Ended::Reset),
                output @ (Output::Listen(_)
                | Output::ConnectClient(_)
                | Output::DialUpstream(_)
                | Output::Receive(_)
                | Output::Inspect
                | Output::Send(_)
                | Output::Splice(_)
                | Output::CloseData(_)
                | Output::ResetData(_)
                | Output::Begin(_)
                | Output::End(_)) => {
                    // What was said before is heard before the data move.
                    self.client.flush();
                    let data = self.data.get_or_insert_with(|| Box::new(Data::new(self.place)));
                    if let Some(event) = data.execute(output) {
                        self.session.handle_event(Instant::now(), event);
                    }
                }
            }
        }
        if self.data.as_ref().is_some_and(|data| data.is_idle()) {
            self.data = None;
        }
        let state = self.session.state_name();
        if state != self.state {
            self.state = state;
            self.place.flow.set_state(state);
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

    async fn wake(&mut self) -> Wake {
        let reads_client =
            self.client.open && self.session.wants_client() && !self.upstream.is_full();
        let reads_upstream = self.upstream.open && !self.client.is_full();
        let Self { client, upstream, data, timer, draining, .. } = self;
        tokio::select! {
            biased;
            event = poll_fn(|cx| data.as_mut().map_or(Poll::Pending, |data| data.poll(cx))) => {
                Wake::Data(event)
            }
            _ = upstream.stream.readable(), if reads_upstream => Wake::Upstream,
            _ = client.stream.readable(), if reads_client => Wake::Client,
            _ = client.stream.writable(), if !client.pending.is_empty() => Wake::Written,
            _ = upstream.stream.writable(), if !upstream.pending.is_empty() => Wake::Written,
            () = poll_fn(|cx| timer.as_mut().map_or(Poll::Pending, |timer| timer.as_mut().poll(cx))) => {
                Wake::Timer
            }
            // The gateway outlives its sessions, so this is no error.
            _ = draining.changed() => Wake::Drain,
        }
    }

    /// Writes what is still pending before the connections are closed or handed on.
    async fn last_words(&mut self) {
        for leg in [&mut self.client, &mut self.upstream] {
            let pending = std::mem::take(&mut leg.pending);
            if !pending.is_empty() {
                // A peer that takes nothing any more does not hear the rest.
                let _ = timeout(LAST_WORDS, leg.stream.write_all(&pending)).await;
            }
        }
    }
}

//! The data channels of a session: listeners, dialled connections, and the one piece of work that
//! runs on them at a time.
//!
//! Whatever is dropped here without having been closed in order is reset: every leg carries
//! `SO_LINGER {1, 0}`.

use super::{
    Place,
    judging::{Case, Judged},
    partial::{self, Found, Partial},
    passing::{self, Checked, Streamed},
    secure::{self, Security},
    sniff,
    transfer::{self, Held, Record, Watch},
};
use crate::{
    kernel::marks::Marks,
    net::{self, DataListener},
    tls::Wire,
};
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tokio::{net::TcpStream, runtime::Handle};
use vscan_proto::ftp::{Broken, Event, Leg, Output, Recalled};

/// The port that servers call from in active mode (RFC 959 section 3.2).
const FTP_DATA: u16 = 20;

/// Legs of one session that wait for their peer's end at the same time. A client that never closes
/// its own would else hold a descriptor here for each transfer.
const CLOSING_MAX: usize = 64;

/// Strangers at one data port that are reported: whoever knocks for ever fills no log.
const STRANGERS_TOLD: u32 = 8;

type Pending<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The address that the server knows the client by: what the dialogue itself was translated to. Where conntrack does
/// not know, the client's own, or, where a private one must have been masqueraded on its way to a public server, the one
/// that this host calls that server from.
async fn known_as(place: Place<'_>) -> IpAddr {
    if let Some(known) = place.gateway.translation.known_as(place.upstream, place.server).await {
        return known;
    }
    let (client, server) = (place.client.ip(), place.server.ip());
    if !is_private(client) || is_private(server) {
        return client;
    }
    // Connecting a datagram socket sends nothing; it asks the routing table for the source address.
    let outside = UdpSocket::bind(match server {
        IpAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        IpAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    })
    .and_then(|socket| socket.connect(place.server).and_then(|()| socket.local_addr()));
    outside.map_or(client, |address| address.ip())
}

/// Addresses that no public server ever sees: RFC 1918, RFC 4193, RFC 3927, RFC 6598.
fn is_private(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            let shared = v4.octets()[0] == 100 && v4.octets()[1] & 0xc0 == 64;
            v4.is_private() || v4.is_link_local() || shared
        }
        IpAddr::V6(v6) => v6.is_unique_local() || v6.is_unicast_link_local(),
    }
}

/// One data channel.
enum Channel<'a> {
    None,
    /// Finding out where to listen; `None` comes out when nothing could be bound.
    Binding(Pending<'a, Option<(SocketAddr, DataListener)>>),
    /// Listening or connecting; `None` comes out when it failed.
    Pending(Pending<'a, Option<Wire>>),
    Open(Wire),
}

impl Channel<'_> {
    fn take(&mut self) -> Option<Wire> {
        match std::mem::replace(self, Channel::None) {
            Channel::Open(stream) => Some(stream),
            Channel::None | Channel::Binding(_) | Channel::Pending(_) => None,
        }
    }
}

/// What the work came to.
pub(super) enum Done {
    /// With the leg, if it still has to be closed.
    Received(Result<(Held, Option<Wire>), Broken>),
    /// With what is sent in the place of the object, if it was treated.
    Recalled(Found),
    /// From this leg.
    Streamed(Leg, Result<Streamed, Broken>),
    Checked(Checked),
    Judged(Judged),
    /// With the leg, which still has to be closed.
    Sent(Result<Wire, Broken>),
    /// With the receiving leg, which still has to be closed, as may the other.
    Spliced(Result<(Wire, Option<Wire>), Broken>),
    /// Whether the file that comes on this leg passes unscanned.
    Sniffed(Leg, Result<Wire, Broken>, bool),
}

struct Work<'a> {
    future: Pending<'a, Done>,
    /// Whether it holds a leg: client, upstream.
    legs: [bool; 2],
}

/// How data connections are made.
#[derive(Clone, Default)]
pub(super) struct Protected {
    /// With TLS (PROT P).
    pub(super) private: bool,
    /// What they resume then.
    pub(super) security: Option<Arc<Security>>,
}

impl Protected {
    /// Makes TLS of a leg where it is to be and is not yet. The server begins when it has the command, clients at the 150
    /// or before.
    async fn protect(self, place: Place<'_>, leg: Leg, wire: Wire) -> io::Result<Wire> {
        match (wire, self.security) {
            (Wire::Plain(tcp), Some(security)) if self.private => {
                secure::data(place, &security, leg, tcp).await
            }
            // Without what is to be resumed there is no TLS on the dialogue either.
            (Wire::Plain(_), None) if self.private => Err(io::ErrorKind::NotConnected.into()),
            (wire, _) => Ok(wire),
        }
    }
}

pub(super) struct Data<'a> {
    place: Place<'a>,
    pub(super) protected: Protected,
    client: Channel<'a>,
    upstream: Channel<'a>,
    work: Option<Work<'a>>,
    held: Option<Held>,
    record: Option<Record>,
    partial: Partial,
    /// Legs that have said all and wait for their peer's end.
    closing: Vec<Pending<'static, ()>>,
}

impl Drop for Data<'_> {
    fn drop(&mut self) {
        // A peer may take its time, longer than the session. Where the runtime itself ends, the
        // legs are reset.
        if let Ok(runtime) = Handle::try_current() {
            for leg in self.closing.drain(..) {
                runtime.spawn(leg);
            }
        }
    }
}

impl<'a> Data<'a> {
    pub(super) fn new(place: Place<'a>) -> Self {
        Self {
            place,
            protected: Protected::default(),
            client: Channel::None,
            upstream: Channel::None,
            work: None,
            held: None,
            record: None,
            partial: Partial::default(),
            closing: Vec::new(),
        }
    }

    /// Whether there is nothing to keep.
    pub(super) fn is_idle(&self) -> bool {
        matches!((&self.client, &self.upstream), (Channel::None, Channel::None))
            && self.work.is_none()
            && self.held.is_none()
            && self.record.is_none()
            && self.closing.is_empty()
    }

    /// Carries out an output that concerns data; what is known at once comes back as an event.
    pub(super) fn execute(&mut self, output: Output) -> Option<Event> {
        match output {
            Output::Listen(Leg::Client) => return Some(self.listen_for_client()),
            Output::Listen(Leg::Upstream) => self.listen_for_server(),
            Output::ConnectClient(to) => self.client = self.connect_client(to),
            Output::DialUpstream(port) => self.upstream = self.dial(port),
            Output::Receive(leg) => return self.receive(leg),
            Output::Recall => return self.recall(),
            Output::Join(base) => {
                let held = self.held.take();
                self.partial.join(base, held);
            }
            Output::Stream(from) => return self.stream(from),
            Output::Check => return self.check(),
            Output::Inspect => self.inspect(),
            Output::Send(leg) => return self.send(leg),
            Output::Sniff(leg) => return self.sniff(leg),
            Output::Splice(from) => return self.splice(from),
            Output::CloseData(leg) => self.end(leg, false),
            Output::ResetData(leg) => self.end(leg, true),
            Output::Begin(begin) => {
                self.place.flow.set_object(&begin.name);
                let record = Record::new(*begin);
                self.place.flow.begin_transfer(record.watch().counter());
                self.partial = Partial::begin(self.place, &record.begin);
                self.record = Some(record);
            }
            Output::End(outcome) => {
                self.work = None;
                self.held = None;
                self.partial = Partial::default();
                self.place.flow.end_transfer();
                if let Some(record) = self.record.take() {
                    record.report(self.place.flow, outcome);
                }
            }
            Output::ToClient(_)
            | Output::ToUpstream(_)
            | Output::Note(_)
            | Output::Secure
            | Output::Clear
            | Output::Protect(_)
            | Output::Blind
            | Output::Close
            | Output::Reset => {}
        }
        None
    }

    /// The next thing that happens.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        self.closing.retain_mut(|leg| leg.as_mut().poll(cx).is_pending());
        if let Channel::Binding(binding) = &mut self.upstream
            && let Poll::Ready(bound) = binding.as_mut().poll(cx)
        {
            let (place, here) = (self.place, bound.as_ref().map(|(here, _)| *here));
            self.upstream = bound.map_or(Channel::None, |(_, listener)| {
                Channel::Pending(Box::pin(accept(place, listener, place.server.ip())))
            });
            return Poll::Ready(Event::Listening(Leg::Upstream, here));
        }
        for leg in [Leg::Upstream, Leg::Client] {
            let channel = self.channel(leg);
            if let Channel::Pending(pending) = channel
                && let Poll::Ready(stream) = pending.as_mut().poll(cx)
            {
                let made = stream.is_some();
                *channel = stream.map_or(Channel::None, Channel::Open);
                return Poll::Ready(if made {
                    Event::Connected(leg)
                } else {
                    Event::ConnectFailed(leg)
                });
            }
        }
        let Some(work) = &mut self.work else { return Poll::Pending };
        let Poll::Ready(done) = work.future.as_mut().poll(cx) else { return Poll::Pending };
        self.work = None;
        let event = match done {
            Done::Received(Ok((held, leg))) => {
                self.held = Some(held);
                self.close_left(leg);
                Event::Received(Ok(()))
            }
            Done::Received(Err(broken)) => Event::Received(Err(broken)),
            Done::Recalled(found) => Event::Recalled(self.partial.found(found)),
            Done::Streamed(from, Ok(streamed)) => {
                self.held = Some(streamed.held);
                self.close_left(streamed.from);
                self.partial.sent = streamed.sent;
                *self.channel(from.other()) = Channel::Open(streamed.to);
                Event::Received(Ok(()))
            }
            Done::Streamed(_, Err(broken)) => Event::Received(Err(broken)),
            Done::Checked(Checked::Belongs(leg, from)) => {
                self.close(leg);
                self.close_left(from);
                Event::Sent(Ok(()))
            }
            Done::Checked(Checked::Differs { client, released }) => {
                self.client = Channel::Open(client);
                Event::Mismatched { released }
            }
            Done::Checked(Checked::Broken(broken)) => Event::Sent(Err(broken)),
            Done::Judged(judged) => {
                if let Some(treated) = judged.treated {
                    self.held = Some(Held::Object(treated));
                }
                if let Some(record) = &mut self.record {
                    record.verdict = Some(judged.verdict);
                }
                let announces = self.place.config.ftp.announce;
                let words = if announces { judged.words } else { String::new() };
                Event::Judged { judgement: judged.judgement, words }
            }
            Done::Sent(result) => Event::Sent(result.map(|leg| self.close(leg))),
            Done::Sniffed(leg, wire, skip) => {
                // One that broke is found out about by whoever takes it next.
                *self.channel(leg) = wire.map_or(Channel::None, Channel::Open);
                if let Some(record) = &mut self.record {
                    record.begin.inspected = !skip;
                }
                Event::Sniffed(skip)
            }
            Done::Spliced(result) => Event::Spliced(result.map(|(to, from)| {
                self.close(to);
                self.close_left(from);
            })),
        };
        Poll::Ready(event)
    }

    fn channel(&mut self, leg: Leg) -> &mut Channel<'a> {
        match leg {
            Leg::Client => &mut self.client,
            Leg::Upstream => &mut self.upstream,
        }
    }

    fn listen_for_client(&mut self) -> Event {
        let place = self.place;
        // Behind a port forward the client arrives at either address.
        let bound = bind(place, &[place.dialled.ip(), place.server.ip()]);
        let here = bound.as_ref().map(|(here, _)| *here);
        let protected = self.protected.clone();
        self.client = bound.map_or(Channel::None, |(_, listener)| {
            Channel::Pending(Box::pin(async move {
                let wire = accept(place, listener, place.client.ip()).await?;
                if !protected.private {
                    return Some(wire);
                }
                // Some clients do not wait for the 150.
                secure::begun(wire.tcp()).await.ok()?;
                protected.protect(place, Leg::Client, wire).await.ok()
            }))
        });
        Event::Listening(Leg::Client, here)
    }

    fn listen_for_server(&mut self) {
        let place = self.place;
        self.upstream =
            Channel::Binding(Box::pin(async move { bind(place, &[known_as(place).await]) }));
    }

    fn connect_client(&self, to: SocketAddr) -> Channel<'a> {
        let place = self.place;
        Channel::Pending(Box::pin(async move {
            let from = SocketAddr::new(place.dialled.ip(), FTP_DATA);
            let gateway = &place.config.gateway;
            let mark = Marks::of(&gateway.marks).active;
            let connected = net::connect_from(from, to, mark, gateway.connect_timeout).await;
            made(place, connected)
        }))
    }

    fn dial(&self, port: u16) -> Channel<'a> {
        let place = self.place;
        Channel::Pending(Box::pin(async move {
            // The address in a 227 is of no use: private, 0.0.0.0, or another host's.
            let to = SocketAddr::new(place.server.ip(), port);
            let gateway = &place.config.gateway;
            let mark = gateway.marks.upstream;
            let timeout = gateway.connect_timeout;
            let connected =
                async { net::dial_upstream(place.client, to, mark)?.connected(timeout).await };
            made(place, connected.await)
        }))
    }

    fn watch(&self) -> Watch {
        self.record.as_ref().map(Record::watch).unwrap_or_default()
    }

    fn receive(&mut self, leg: Leg) -> Option<Event> {
        let Some(wire) = self.channel(leg).take() else {
            return Some(Event::Received(Err(Broken { leg })));
        };
        let (place, watch, protected) = (self.place, self.watch(), self.protected.clone());
        let intake = self.partial.intake(leg, self.record.as_ref().map(|record| &record.begin));
        self.begin([leg == Leg::Client, leg == Leg::Upstream], async move {
            let received = async {
                let wire = protected.protect(place, leg, wire).await?;
                transfer::receive(place, wire, leg, watch, intake).await
            };
            Done::Received(received.await.map_err(|_| Broken { leg }))
        });
        None
    }

    fn inspect(&mut self) {
        let (Some(held), Some(record)) = (&self.held, &self.record) else { return };
        let (place, held, begin) = (self.place, held.clone(), record.begin.clone());
        let case = Case {
            place,
            memory: &place.gateway.memory,
            key: partial::key(place, &begin),
            remembers: partial::remembers(place, &begin),
            begin,
            begun: record.started,
            streamed: self.partial.sent > 0,
        };
        self.begin([false, false], async move { Done::Judged(case.judge(&held).await) });
    }

    fn recall(&mut self) -> Option<Event> {
        let Some(record) = &self.record else { return Some(Event::Recalled(Recalled::Nothing)) };
        let (place, begin) = (self.place, record.begin.clone());
        if let Some(recalled) = self.partial.recall_now(place, &begin) {
            return Some(Event::Recalled(recalled));
        }
        self.begin(
            [false, false],
            async move { Done::Recalled(partial::look_up(place, begin).await) },
        );
        None
    }

    fn stream(&mut self, leg: Leg) -> Option<Event> {
        let (from, to) = (self.channel(leg).take(), self.channel(leg.other()).take());
        let (Some(from), Some(to)) = (from, to) else {
            return Some(Event::Received(Err(Broken { leg })));
        };
        let (place, watch, protected) = (self.place, self.watch(), self.protected.clone());
        let remembered = self.record.as_ref().filter(|r| partial::remembers(place, &r.begin));
        let trail = remembered.map(|r| (partial::key(place, &r.begin), r.started));
        self.begin([true, true], async move {
            let streamed = async {
                let (from, to) = protect_both(place, protected, leg, from, to).await?;
                passing::stream(place, from, to, leg, watch, trail).await
            };
            Done::Streamed(leg, streamed.await)
        });
        None
    }

    fn check(&mut self) -> Option<Event> {
        let (from, to) = (self.upstream.take(), self.client.take());
        let (Some(from), Some(to), Some(version), Some(record)) =
            (from, to, self.partial.version(), &self.record)
        else {
            return Some(Event::Sent(Err(Broken { leg: Leg::Upstream })));
        };
        let (place, watch, restart) = (self.place, self.watch(), record.begin.restart);
        let protected = self.protected.clone();
        let key = partial::key(place, &record.begin);
        self.begin([true, true], async move {
            let legs = match protect_both(place, protected, Leg::Upstream, from, to).await {
                Ok(legs) => legs,
                Err(broken) => return Done::Checked(Checked::Broken(broken)),
            };
            let memory = &place.gateway.memory;
            let checked = passing::check(place, memory, &key, &version, restart, legs, watch);
            Done::Checked(checked.await)
        });
        None
    }

    fn send(&mut self, leg: Leg) -> Option<Event> {
        let wire = self.channel(leg).take();
        let (object, from) = match &self.held {
            Some(held @ Held::Object(object)) => (Some(object.clone()), self.send_from(held)),
            Some(held @ Held::Joined(joined)) => {
                (Some(joined.object.clone()), self.send_from(held))
            }
            Some(Held::Refused { .. } | Held::Unheld(..)) | None => (None, 0),
        };
        let (Some(wire), Some(object)) = (wire, object) else {
            return Some(Event::Sent(Err(Broken { leg })));
        };
        let (place, protected) = (self.place, self.protected.clone());
        self.begin([leg == Leg::Client, leg == Leg::Upstream], async move {
            let sent = async {
                let wire = protected.protect(place, leg, wire).await?;
                transfer::send(place, &object, from, wire).await
            };
            Done::Sent(sent.await.map_err(|_| Broken { leg }))
        });
        None
    }

    fn send_from(&self, held: &Held) -> u64 {
        self.partial.send_from(held, self.record.as_ref().map(|record| &record.begin))
    }

    fn sniff(&mut self, leg: Leg) -> Option<Event> {
        let (Some(wire), Some(record)) = (self.channel(leg).take(), &self.record) else {
            return Some(Event::Sniffed(false));
        };
        let (place, name) = (self.place, record.begin.name.clone());
        let protected = self.protected.clone();
        self.begin([leg == Leg::Client, leg == Leg::Upstream], async move {
            match protected.protect(place, leg, wire).await {
                Ok(mut wire) => {
                    let skip = sniff::passes(place, &mut wire, &name).await;
                    Done::Sniffed(leg, Ok(wire), skip)
                }
                Err(_) => Done::Sniffed(leg, Err(Broken { leg }), false),
            }
        });
        None
    }

    fn splice(&mut self, leg: Leg) -> Option<Event> {
        let (from, to) = (self.channel(leg).take(), self.channel(leg.other()).take());
        let (Some(from), Some(to)) = (from, to) else {
            return Some(Event::Spliced(Err(Broken { leg })));
        };
        let (place, watch, protected) = (self.place, self.watch(), self.protected.clone());
        self.begin([true, true], async move {
            let spliced = async {
                let (from, to) = protect_both(place, protected, leg, from, to).await?;
                let spliced = transfer::splice(place, from, to, leg, watch).await;
                spliced.map_err(|_| Broken { leg })
            };
            Done::Spliced(spliced.await)
        });
        None
    }

    fn begin(&mut self, legs: [bool; 2], work: impl Future<Output = Done> + Send + 'a) {
        self.work = Some(Work { future: Box::pin(work), legs });
    }

    /// Gives up a channel and the work that uses it.
    fn end(&mut self, leg: Leg, reset: bool) {
        let index = usize::from(leg == Leg::Upstream);
        if self.work.as_ref().is_some_and(|work| work.legs[index]) {
            // In the middle of its bytes a leg can only be reset.
            self.work = None;
        }
        if let Channel::Open(wire) = std::mem::replace(self.channel(leg), Channel::None)
            && !reset
        {
            self.close(wire);
        }
    }

    /// Closes a leg that may be left.
    fn close_left(&mut self, leg: Option<Wire>) {
        if let Some(leg) = leg {
            self.close(leg);
        }
    }

    /// Closes a leg in good order, beside what follows: its peer may take its time.
    fn close(&mut self, leg: Wire) {
        if self.closing.len() == CLOSING_MAX {
            drop(self.closing.remove(0));
        }
        // A peer that resets instead has what it wanted.
        self.closing.push(Box::pin(async move { drop(leg.close_gracefully().await) }));
    }
}

/// Makes TLS of both legs where it is to be; `source` is the leg of `from`.
async fn protect_both(
    place: Place<'_>,
    protected: Protected,
    source: Leg,
    from: Wire,
    to: Wire,
) -> Result<(Wire, Wire), Broken> {
    let broken = |leg| move |_: io::Error| Broken { leg };
    let (from, to) = tokio::join!(
        protected.clone().protect(place, source, from),
        protected.protect(place, source.other(), to)
    );
    Ok((from.map_err(broken(source))?, to.map_err(broken(source.other()))?))
}

/// Listens on these addresses; the first is where the peer is told to go.
fn bind(place: Place<'_>, addresses: &[IpAddr]) -> Option<(SocketAddr, DataListener)> {
    match DataListener::bind(addresses) {
        Ok(listener) => {
            let address = addresses.first()?;
            Some((SocketAddr::new(*address, listener.port()), listener))
        }
        Err(error) => {
            tracing::warn!(flow = %place.flow.id(), "no data listener: {error}");
            None
        }
    }
}

/// Takes the first connection of the right peer; the listener closes with it.
async fn accept(place: Place<'_>, listener: DataListener, peer: IpAddr) -> Option<Wire> {
    let mut strangers = 0;
    loop {
        match listener.accept().await {
            Ok((stream, from)) if from.ip().to_canonical() == peer.to_canonical() => {
                return made(place, Ok(stream));
            }
            Ok((stream, from)) => {
                if strangers < STRANGERS_TOLD {
                    strangers += 1;
                    place.flow.anomaly("ftp_data_stranger", from);
                }
                net::abort(stream);
            }
            Err(error) => return made(place, Err(error)),
        }
    }
}

fn made(place: Place<'_>, stream: io::Result<TcpStream>) -> Option<Wire> {
    match stream {
        Ok(stream) => Some(Wire::Plain(stream)),
        Err(error) => {
            tracing::debug!(flow = %place.flow.id(), "no data connection: {error}");
            None
        }
    }
}

//! What runs on data channels: receiving into the spool, sending, splicing. And the record of a
//! transfer that becomes its event.

use super::{Place, memory::Caught};
use crate::{
    blocking,
    config::verdict_str,
    net::relay,
    observe::{Blind, EventKind, FlowHandle, wire},
    spool::{Object, SpoolError, Writer},
    tls::Wire,
};
use serde::Serialize;
use socket2::SockRef;
use std::{
    cell::RefCell,
    future::poll_fn,
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Poll, ready},
    time::{Duration, Instant},
};
use tokio::{io::AsyncWriteExt, time::sleep};
use vscan_proto::ftp::{Begin, Leg, Outcome, Verb};
use vscan_scan::report::Verdict;

/// Bytes read at a time: large enough that hashing and system calls cost little for each.
pub(super) const BUFFER_SIZE: usize = 256 << 10;

thread_local! {
    /// One for each worker thread, not for each session: nothing stays in it between two reads.
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; BUFFER_SIZE]);
}

/// Why a restart position is refused.
pub(super) const BEHIND_THE_END: &str = "the restart position lies behind the end of the file";

/// What was received.
#[derive(Clone)]
pub(super) enum Held {
    Object(Object),
    /// The piece of an upload, joined with what the server has.
    Joined(Box<Joined>),
    /// It is refused without a look at the whole.
    Refused {
        reason: String,
        verdict: Verdict,
    },
    /// It could not be held, so it cannot be scanned or sent.
    Unheld(Arc<SpoolError>, u64),
}

/// An upload that adds to a file.
#[derive(Clone)]
pub(super) struct Joined {
    /// The file from its first byte to the last one of the piece.
    pub(super) object: Object,
    /// The same with what the server has behind it.
    pub(super) with_rest: Option<Object>,
    /// First byte of the piece.
    pub(super) start: u64,
    /// Whether what the server has could be read.
    pub(super) readable: bool,
}

/// Bytes that a transfer has moved; also says whether it still lives.
#[derive(Clone, Debug, Default)]
pub(super) struct Watch(Arc<AtomicU64>);

impl Watch {
    pub(super) fn moved(&self, bytes: u64) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }

    /// The count itself, for the flow table.
    pub(super) fn counter(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.0)
    }

    pub(super) fn total(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Does `work` for as long as bytes move: after `patience` without one it is given up.
    pub(super) async fn over<T>(
        &self,
        patience: Duration,
        work: impl Future<Output = io::Result<T>>,
    ) -> io::Result<T> {
        let silence = async {
            let mut seen = self.total();
            loop {
                sleep(patience).await;
                if self.total() == seen {
                    return;
                }
                seen = self.total();
            }
        };
        tokio::select! {
            biased;
            result = work => result,
            () = silence => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

/// A transfer, for its event.
pub(super) struct Record {
    pub(super) begin: Begin,
    pub(super) verdict: Option<Verdict>,
    pub(super) started: Instant,
    watch: Watch,
}

impl Record {
    pub(super) fn new(begin: Begin) -> Self {
        Self { begin, verdict: None, started: Instant::now(), watch: Watch::default() }
    }

    pub(super) fn watch(&self) -> Watch {
        self.watch.clone()
    }

    pub(super) fn report(self, flow: &FlowHandle, outcome: Outcome) {
        #[derive(Serialize)]
        struct Transfer<'a> {
            command: &'static str,
            name: &'a str,
            source: &'static str,
            data: &'static str,
            bytes: u64,
            inspected: bool,
            tls: bool,
            verdict: Option<&'static str>,
            outcome: &'static str,
            seconds: f64,
        }
        let is_file = matches!(self.begin.verb, Verb::Retr | Verb::Stor | Verb::Appe | Verb::Stou);
        if is_file && !self.begin.inspected && self.watch.total() > 0 {
            flow.object_unread(Blind::ExcludedType, self.watch.total());
        }
        flow.event(
            EventKind::Ftp,
            &Transfer {
                command: self.begin.verb.as_str(),
                name: &wire::text(&self.begin.name),
                source: match self.begin.source {
                    Leg::Client => "client",
                    Leg::Upstream => "server",
                },
                data: self.begin.asked.as_str(),
                bytes: self.watch.total(),
                inspected: self.begin.inspected,
                tls: self.begin.private,
                verdict: self.verdict.map(verdict_str),
                outcome: outcome.as_str(),
                seconds: self.started.elapsed().as_secs_f64(),
            },
        );
    }
}

/// What a read has brought.
pub(super) enum Step {
    Bytes,
    End,
}

/// What an upload adds to.
#[derive(Clone)]
pub(super) enum Base {
    Object(Object),
    Absent,
    Unreadable,
}

/// How what a leg sends is taken in.
#[derive(Default)]
pub(super) struct Intake {
    /// It belongs behind this, from this byte on (`None`: its end).
    pub(super) base: Option<(Base, Option<u64>)>,
    /// What was caught under this name.
    pub(super) suspect: Option<Arc<Caught>>,
}

/// Reads a leg to its end.
///
/// An object that cannot be held is refused later, as is one that begins like what was caught under its
/// name. A server is left at once then (its leg is reset), a client is heard to its end: some clients try
/// again for ever when they are cut.
///
/// # Errors
/// The leg was reset, or was silent for too long.
pub(super) async fn receive(
    place: Place<'_>,
    mut wire: Wire,
    leg: Leg,
    watch: Watch,
    intake: Intake,
) -> io::Result<(Held, Option<Wire>)> {
    let mut spooling = Spooling::begin(place, intake);
    let reading = async {
        loop {
            let step = read(place, leg, &mut wire, |bytes| {
                watch.moved(bytes.len() as u64);
                spooling.write(bytes);
            });
            match step.await? {
                Step::Bytes if spooling.failed() && leg == Leg::Upstream => return Ok(false),
                Step::Bytes => {}
                Step::End => return Ok(true),
            }
        }
    };
    let ended = watch.over(place.config.gateway.idle_timeout, reading).await?;
    let left = if ended { end(wire)? } else { None };
    Ok((spooling.finish(&watch), left))
}

/// Reads once into the thread's buffer and hands on what came.
///
/// # Errors
/// The leg was reset, or TLS was cut off on it: it ended without close_notify, and its peer is none of those that never
/// say it (RFC 8446 section 6.1).
pub(super) async fn read(
    place: Place<'_>,
    leg: Leg,
    wire: &mut Wire,
    mut handle: impl FnMut(&[u8]),
) -> io::Result<Step> {
    let count = poll_fn(|cx| {
        with_buffer(|buffer| {
            let read = ready!(wire.poll_read(cx, buffer));
            if let Ok(count) = read
                && count > 0
            {
                count_bytes(place, leg, count as u64);
                handle(&buffer[..count]);
            }
            Poll::Ready(read)
        })
    });
    match count.await {
        Ok(0) => Ok(Step::End),
        Ok(_) => Ok(Step::Bytes),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => cut_off(place, leg, error),
        Err(error) => Err(error),
    }
}

/// TLS ended without close_notify: whether that is an end.
fn cut_off(place: Place<'_>, leg: Leg, error: io::Error) -> io::Result<Step> {
    let peer = match leg {
        Leg::Client => place.client.ip(),
        Leg::Upstream => place.server.ip(),
    };
    let peer = peer.to_canonical();
    let lenient = place.config.ftp.no_close_notify.iter().any(|net| net.contains(&peer));
    place.flow.anomaly("ftp_tls_truncated", format!("{peer}: {error}"));
    if lenient { Ok(Step::End) } else { Err(error) }
}

/// A leg whose data have ended. A plain one is closed by it: both directions are at their end, so that nothing is left
/// to wait for. Behind TLS the peer still waits for our close_notify.
pub(super) fn end(wire: Wire) -> io::Result<Option<Wire>> {
    match wire {
        Wire::Plain(tcp) => {
            SockRef::from(&tcp).set_linger(None)?;
            Ok(None)
        }
        wire @ Wire::Tls(_) => Ok(Some(wire)),
    }
}

/// An object that is being received.
struct Spooling<'a> {
    place: Place<'a>,
    writer: Result<Writer, SpoolError>,
    intake: Intake,
    /// The first byte that was received itself.
    start: u64,
    refused: Option<(String, Verdict)>,
}

impl<'a> Spooling<'a> {
    fn begin(place: Place<'a>, intake: Intake) -> Self {
        let writer = Ok(place.gateway.spool.writer());
        let mut spooling = Self { place, writer, intake, start: 0, refused: None };
        let Some((base, from)) = &spooling.intake.base else { return spooling };
        let there = match base {
            Base::Object(object) => object.len(),
            Base::Absent | Base::Unreadable => 0,
        };
        let from = from.unwrap_or(there);
        match base {
            Base::Object(_) | Base::Absent if from > there => {
                spooling.refused = Some((BEHIND_THE_END.to_owned(), Verdict::Error));
            }
            Base::Object(object) => {
                spooling.start = from;
                spooling.writer = spooling.writer.and_then(|mut writer| {
                    blocking::in_place(|| writer.copy_from(object, 0, from)).map(|()| writer)
                });
            }
            Base::Absent | Base::Unreadable => {}
        }
        spooling
    }

    fn write(&mut self, bytes: &[u8]) {
        if self.refused.is_some() {
            return;
        }
        let Ok(writer) = &mut self.writer else { return };
        if let Err(error) = writer.write(bytes) {
            // What it held is given back at once.
            self.writer = Err(error);
            return;
        }
        if let Some(suspect) = &self.intake.suspect
            && let Some(prefix) = writer.prefix()
        {
            if suspect.begins(&prefix) {
                self.refused = Some((suspect.reason.clone(), Verdict::Infected));
                self.writer = Ok(self.place.gateway.spool.writer());
            }
            self.intake.suspect = None;
        }
    }

    fn failed(&self) -> bool {
        self.writer.is_err() || self.refused.is_some()
    }

    fn finish(self, watch: &Watch) -> Held {
        if let Some((reason, verdict)) = self.refused {
            return Held::Refused { reason, verdict };
        }
        let joined = self.writer.and_then(|writer| {
            let object = writer.finish()?;
            Ok(match self.intake.base {
                None => Held::Object(object),
                Some((base, _)) => Held::Joined(Box::new(Joined {
                    with_rest: with_rest(self.place, &object, &base)?,
                    readable: !matches!(base, Base::Unreadable),
                    start: self.start,
                    object,
                })),
            })
        });
        joined.unwrap_or_else(|error| Held::Unheld(Arc::new(error), watch.total()))
    }
}

/// What the server has if it keeps what lies behind the piece, as most do.
fn with_rest(place: Place<'_>, object: &Object, base: &Base) -> Result<Option<Object>, SpoolError> {
    let Base::Object(base) = base else { return Ok(None) };
    if base.len() <= object.len() {
        return Ok(None);
    }
    let mut writer = place.gateway.spool.writer();
    blocking::in_place(|| {
        writer.copy_from(object, 0, object.len())?;
        writer.copy_from(base, object.len(), base.len())
    })?;
    writer.finish().map(Some)
}

/// Writes an object from this byte on, and the end of data; the leg still has to be closed.
///
/// # Errors
/// The receiver reset the leg.
pub(super) async fn send(
    place: Place<'_>,
    object: &Object,
    from: u64,
    mut stream: Wire,
) -> io::Result<Wire> {
    // A receiver that takes nothing for as long as a session may be silent is given up, also while
    // its window is closed (tcp(7)).
    SockRef::from(stream.tcp()).set_tcp_user_timeout(Some(place.config.gateway.idle_timeout))?;
    object.copy_to(&mut stream, from).await?;
    catch_up(&mut stream).await;
    stream.shutdown().await?;
    Ok(stream)
}

/// Relays from one leg to the other up to the end of data; the receiving leg comes back and still
/// has to be closed, as may the other.
///
/// # Errors
/// Either leg was reset, or nothing moved for too long; both are reset then.
pub(super) async fn splice(
    place: Place<'_>,
    mut from: Wire,
    mut to: Wire,
    source: Leg,
    watch: Watch,
) -> io::Result<(Wire, Option<Wire>)> {
    let idle = place.config.gateway.idle_timeout;
    if let (Wire::Plain(from), Wire::Plain(to)) = (&from, &mut to) {
        let relaying = relay::relay(from, to, |bytes| {
            watch.moved(bytes);
            count_bytes(place, source, bytes);
        });
        watch.over(idle, relaying).await?;
    } else {
        watch.over(idle, recode(place, &mut from, &mut to, source, &watch)).await?;
    }
    Ok((to, end(from)?))
}

/// Decrypts and encrypts again: many records at a time, each read as large as what the sender has ready.
async fn recode(
    place: Place<'_>,
    from: &mut Wire,
    to: &mut Wire,
    source: Leg,
    watch: &Watch,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_SIZE];
    loop {
        let count = match poll_fn(|cx| from.poll_read(cx, &mut buffer)).await {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                cut_off(place, source, error).map(|_end| 0)
            }
            read => read,
        }?;
        if count == 0 {
            catch_up(to).await;
            return to.shutdown().await;
        }
        watch.moved(count as u64);
        count_bytes(place, source, count as u64);
        to.write_all(&buffer[..count]).await?;
    }
}

/// Takes the tickets of a leg that was written to: the session's next data connection resumes with one of them. Those of
/// a leg that is reset are left alone: servers forget a session that did not end in order.
async fn catch_up(wire: &mut Wire) {
    poll_fn(|cx| {
        wire.catch_up(cx);
        Poll::Ready(())
    })
    .await;
}

/// Lends the thread's buffer.
pub(super) fn with_buffer<T>(work: impl FnOnce(&mut Vec<u8>) -> T) -> T {
    BUFFER.with_borrow_mut(work)
}

pub(super) fn count_bytes(place: Place<'_>, source: Leg, bytes: u64) {
    match source {
        Leg::Client => place.flow.add_bytes(bytes, 0),
        Leg::Upstream => place.flow.add_bytes(0, bytes),
    }
}

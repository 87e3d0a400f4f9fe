//! What runs on data channels: receiving into the spool, inspecting, sending, splicing. And the
//! record of a transfer that becomes its event.

use super::Place;
use crate::{
    config::verdict_str,
    gateway::inspect::{About, Inspection, Outcome as Ruling},
    net::relay,
    observe::{EventKind, FlowHandle, wire},
    spool::{Object, SpoolError},
};
use serde::Serialize;
use socket2::SockRef;
use std::{
    cell::RefCell,
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{io::AsyncWriteExt, net::TcpStream, time::sleep};
use vscan_proto::ftp::{Begin, Judgement, Leg, Outcome};
use vscan_scan::{report::Verdict, wire::ObjectKind};

/// Bytes read at a time: large enough that hashing and system calls cost little for each.
const BUFFER_SIZE: usize = 256 << 10;

thread_local! {
    /// One for each worker thread, not for each session: nothing stays in it between two reads.
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; BUFFER_SIZE]);
}

/// What was received.
#[derive(Clone)]
pub(super) enum Held {
    Object(Object),
    /// It could not be held, so it cannot be scanned or sent.
    Unheld(Arc<SpoolError>, u64),
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

    fn total(&self) -> u64 {
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
    started: Instant,
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
            verdict: Option<&'static str>,
            outcome: &'static str,
            seconds: f64,
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
                verdict: self.verdict.map(verdict_str),
                outcome: outcome.as_str(),
                seconds: self.started.elapsed().as_secs_f64(),
            },
        );
    }
}

enum Step {
    Bytes,
    Wait,
    End,
}

/// Reads a leg to its end.
///
/// An object that cannot be held is refused later. A server is left at once then (its leg is
/// reset), a client is heard to its end: some clients try again for ever when they are cut.
///
/// # Errors
/// The leg was reset, or was silent for too long.
pub(super) async fn receive(
    place: Place<'_>,
    stream: TcpStream,
    leg: Leg,
    watch: Watch,
) -> io::Result<Held> {
    let mut writer = Ok(place.gateway.spool.writer());
    let reading = async {
        loop {
            stream.readable().await?;
            let step = BUFFER.with_borrow_mut(|buffer| match stream.try_read(buffer) {
                Ok(0) => Ok(Step::End),
                Ok(count) => {
                    let bytes = count as u64;
                    watch.moved(bytes);
                    count_bytes(place, leg, bytes);
                    if let Ok(open) = &mut writer
                        && let Err(error) = open.write(&buffer[..count])
                    {
                        // What it held is given back at once.
                        writer = Err(error);
                    }
                    Ok(Step::Bytes)
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Step::Wait),
                Err(error) => Err(error),
            })?;
            match step {
                Step::Bytes if writer.is_err() && leg == Leg::Upstream => return Ok(false),
                Step::Bytes | Step::Wait => {}
                Step::End => return Ok(true),
            }
        }
    };
    let ended = watch.over(place.config.gateway.idle_timeout, reading).await?;
    if ended {
        // Both directions are at their end now, so that nothing is left to wait for.
        SockRef::from(&stream).set_linger(None)?;
    }
    drop(stream);
    Ok(match writer.and_then(|writer| writer.finish()) {
        Ok(object) => Held::Object(object),
        Err(error) => Held::Unheld(Arc::new(error), watch.total()),
    })
}

/// Inspects what was received; what is to be sent in its place if it was treated.
pub(super) async fn inspect(
    place: Place<'_>,
    held: &Held,
    begin: &Begin,
) -> (Judgement, Verdict, Option<Object>) {
    let about = About {
        kind: ObjectKind::File,
        from_client: begin.source == Leg::Client,
        name: &begin.name,
        recipients: &[],
    };
    let (gateway, config, flow) = (place.gateway, place.config, place.flow);
    match held {
        Held::Object(object) => {
            let inspection = gateway.inspect(config, flow, object, about).await;
            let treated = match &inspection.outcome {
                Ruling::Deliver(treated) => Some(treated.clone()),
                Ruling::Pass | Ruling::Block { .. } => None,
            };
            (judgement(&inspection), inspection.verdict, treated)
        }
        Held::Unheld(error, received) => {
            let inspection = gateway.inspect_unheld(config, flow, error, *received, about);
            // Whatever the policy says: what is not here cannot be delivered.
            let reason = reason(&inspection);
            (Judgement::Refuse { reason }, inspection.verdict, None)
        }
    }
}

fn judgement(inspection: &Inspection) -> Judgement {
    match inspection.outcome {
        Ruling::Pass | Ruling::Deliver(_) => Judgement::Release,
        // FTP clients repeat an upload after a 4yz for ever: the reply is a 550 all the same.
        Ruling::Block { temporary: _ } => Judgement::Refuse { reason: reason(inspection) },
    }
}

fn reason(inspection: &Inspection) -> String {
    match inspection.verdict {
        Verdict::Infected => format!("blocked by vscan: {}", inspection.name),
        Verdict::Unscannable => {
            format!("blocked by vscan: cannot be scanned: {}", inspection.name)
        }
        Verdict::Error => "could not be scanned, try again later".to_owned(),
        Verdict::Clean => "blocked by vscan: by policy".to_owned(),
    }
}

/// Writes an object and the end of data; the leg still has to be closed.
///
/// # Errors
/// The receiver reset the leg.
pub(super) async fn send(
    place: Place<'_>,
    object: &Object,
    mut stream: TcpStream,
) -> io::Result<TcpStream> {
    // A receiver that takes nothing for as long as a session may be silent is given up, also while
    // its window is closed (tcp(7)).
    SockRef::from(&stream).set_tcp_user_timeout(Some(place.config.gateway.idle_timeout))?;
    object.copy_to(&mut stream, 0).await?;
    stream.shutdown().await?;
    Ok(stream)
}

/// Relays from one leg to the other up to the end of data; the receiving leg comes back and still
/// has to be closed.
///
/// # Errors
/// Either leg was reset, or nothing moved for too long; both are reset then.
pub(super) async fn splice(
    place: Place<'_>,
    from: TcpStream,
    mut to: TcpStream,
    source: Leg,
    watch: Watch,
) -> io::Result<TcpStream> {
    let relaying = relay::relay(&from, &mut to, |bytes| {
        watch.moved(bytes);
        count_bytes(place, source, bytes);
    });
    watch.over(place.config.gateway.idle_timeout, relaying).await?;
    SockRef::from(&from).set_linger(None)?;
    drop(from);
    Ok(to)
}

fn count_bytes(place: Place<'_>, source: Leg, bytes: u64) {
    match source {
        Leg::Client => place.flow.add_bytes(bytes, 0),
        Leg::Upstream => place.flow.add_bytes(0, bytes),
    }
}

//! A worker: takes one request at a time from its socket, scans, answers. It ends when its socket does.

use super::crew::Cores;
use super::sys::{self, Mapping};
use crate::channel;
use crate::engine::Engines;
use crate::engine::ahead::Ahead;
use crate::limits::Limits;
use crate::object::{self, Object};
use crate::repair;
use crate::report::{Hashes, Report};
use crate::wire::{Answer, Ask, Content, DATAGRAM_MAX, INLINE_MAX, Request};
use rustix::time::{ClockId, clock_gettime};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// Exit code of a worker whose client is gone.
pub const EXIT_CLIENT_GONE: i32 = 0;
/// Exit code of a worker that received what is no request.
pub const EXIT_PROTOCOL: i32 = 76;
/// Exit code of a worker that panicked over an object, which it has reported as `error`.
pub const EXIT_PANIC: i32 = 70;

/// Serves requests until the socket ends. Never returns.
pub fn serve(
    socket: BorrowedFd<'_>,
    engines: &mut Engines<'_>,
    cores: Cores,
    limits: &Limits,
    version: &str,
) -> ! {
    let mut buffer = vec![0; DATAGRAM_MAX];
    let mut arriving = Arriving::default();
    loop {
        let (request, descriptor) = match channel::recv::<Request>(socket, &mut buffer) {
            Ok(Some(message)) => message,
            Ok(None) => sys::exit(EXIT_CLIENT_GONE),
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => sys::exit(EXIT_CLIENT_GONE),
            Err(_) => sys::exit(EXIT_PROTOCOL),
        };
        let id = request.id;
        cores.work(true);
        let scanned = catch_unwind(AssertUnwindSafe(|| {
            answer(engines, &mut arriving, limits, version, &request, descriptor)
        }));
        cores.work(false);
        let panicked = scanned.is_err();
        let answer = scanned.unwrap_or_else(|_| {
            failed(version, &request.ask, "the scanner panicked over this object".into())
        });
        let Ok(mut responses) = answer.responses(id) else { sys::exit(EXIT_PANIC) };
        if responses.any(|response| channel::send(socket, &response, None).is_err()) {
            sys::exit(EXIT_CLIENT_GONE);
        }
        if panicked {
            sys::exit(EXIT_PANIC);
        }
    }
}

/// The answer when there is none.
fn failed(version: &str, ask: &Ask, why: String) -> Answer {
    match ask {
        Ask::Ahead => Answer::Ahead(0),
        Ask::Report { .. } => {
            Answer::Report(Box::new(Report { rules: version.to_owned(), ..Report::error(why) }))
        }
        Ask::Repair(_) => Answer::Repair(repair::Answer::Unrepairable { why }),
        Ask::Allowed { .. } => Answer::Allowed(false),
    }
}

fn answer(
    engines: &mut Engines<'_>,
    arriving: &mut Arriving,
    limits: &Limits,
    version: &str,
    request: &Request,
    descriptor: Option<OwnedFd>,
) -> Answer {
    let (started, cpu) = (Instant::now(), cpu_micros());
    let limit = Duration::from_millis(request.time_limit_ms)
        .min(Duration::from_secs(u64::from(limits.seconds)));
    let mut looked = 0;
    let mut work = |data: &[u8]| {
        let object = Object {
            name: request.name.as_deref(),
            passwords: &request.passwords,
            ..Object::new(request.kind, data, started + limit)
        };
        match &request.ask {
            Ask::Ahead => {
                let Some(number) = request.object else { return Answer::Ahead(0) };
                let mut ahead = arriving.take(number).unwrap_or_else(|| engines.arriving());
                let looked = engines.look_ahead(&mut ahead, data);
                arriving.keep(number, ahead);
                Answer::Ahead(looked as u64)
            }
            Ask::Report { detail } => {
                if let Some(ahead) = request.object.and_then(|number| arriving.take(number)) {
                    looked = engines.arrived(ahead, data);
                }
                let details = detail.then_some(hashes as fn(&[u8]) -> Hashes);
                let report = object::scan(engines, limits, &Object { details, ..object });
                Answer::Report(Box::new(report))
            }
            Ask::Repair(plan) => Answer::Repair(object::repair(limits, &object, plan)),
            Ask::Allowed { name } => Answer::Allowed(engines.allows(data, name)),
        }
    };
    let mut answer = match (&request.content, descriptor) {
        (Content::Inline(data), _) => work(data),
        (Content::Descriptor { len }, Some(file)) => match open(&file, *len, &request.ask) {
            Ok(Bytes::Copied(data)) => work(&data),
            Ok(Bytes::Mapped(mapping)) => work(mapping.bytes()),
            Err(e) => failed(version, &request.ask, format!("the object cannot be read: {e}")),
        },
        (Content::Descriptor { .. }, None) => {
            failed(version, &request.ask, "a request without its descriptor".into())
        }
    };
    engines.forget_ahead();
    if let Answer::Report(report) = &mut answer {
        report.ahead = looked as u64;
        report.known = engines.take_known();
        report.timely = engines.take_timely();
        report.micros = cpu_micros().saturating_sub(cpu);
        report.rules = version.to_owned();
    }
    answer
}

/// Objects that arrive, the one that was looked at last behind the others. Those that never came to be whole are
/// forgotten when there are more.
#[derive(Default)]
struct Arriving(Vec<(u64, Ahead)>);

/// Objects that arrive at a time of which one worker keeps what it saw: some ten kilobytes each.
const ARRIVING_MAX: usize = 64;

impl Arriving {
    fn take(&mut self, number: u64) -> Option<Ahead> {
        let place = self.0.iter().position(|(one, _)| *one == number)?;
        Some(self.0.remove(place).1)
    }

    fn keep(&mut self, number: u64, ahead: Ahead) {
        if self.0.len() >= ARRIVING_MAX {
            self.0.remove(0);
        }
        self.0.push((number, ahead));
    }
}

fn hashes(data: &[u8]) -> Hashes {
    use sha2::Digest;
    let sha256 = sha2::Sha256::digest(data);
    Hashes {
        blake3: blake3::hash(data).to_hex().to_string(),
        sha256: sha256.iter().map(|byte| format!("{byte:02x}")).collect(),
    }
}

enum Bytes {
    Copied(Vec<u8>),
    Mapped(Mapping),
}

/// The object's bytes, without touching the offset that the descriptor shares with the gateway's. One that arrives is looked
/// at in part.
fn open(file: impl AsFd, len: u64, ask: &Ask) -> io::Result<Bytes> {
    let size = rustix::fs::fstat(&file)?.st_size;
    if u64::try_from(size).is_ok_and(|size| size < len) {
        return Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            format!("{size} bytes instead of {len}"),
        ));
    }
    let len = usize::try_from(len).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
    if matches!(ask, Ask::Ahead) && len > 0 {
        return Mapping::sparse(file, len).map(Bytes::Mapped);
    }
    if len > INLINE_MAX {
        return Mapping::new(file, len).map(Bytes::Mapped);
    }
    // A copy costs less than a mapping up to here.
    let mut data = vec![0; len];
    let mut at = 0;
    while at < len {
        match rustix::io::pread(&file, &mut data[at..], at as u64)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => at += n,
        }
    }
    Ok(Bytes::Copied(data))
}

/// Of all threads: helpers work for nobody else.
fn cpu_micros() -> u64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000
        + u64::try_from(time.tv_nsec).unwrap_or(0) / 1000
}

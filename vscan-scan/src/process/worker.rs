//! A worker: takes one request at a time from its socket, scans, answers. It ends when its socket does.

use super::sys::{self, Mapping};
use crate::channel;
use crate::engine::yara::Yara;
use crate::limits::Limits;
use crate::object::{self, Object};
use crate::report::Report;
use crate::wire::{Content, DATAGRAM_MAX, INLINE_MAX, Request, Response};
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
pub fn serve(socket: BorrowedFd<'_>, yara: &mut Yara<'_>, limits: &Limits, version: &str) -> ! {
    let mut buffer = vec![0; DATAGRAM_MAX];
    loop {
        let (request, descriptor) = match channel::recv::<Request>(socket, &mut buffer) {
            Ok(Some(message)) => message,
            Ok(None) => sys::exit(EXIT_CLIENT_GONE),
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => sys::exit(EXIT_CLIENT_GONE),
            Err(_) => sys::exit(EXIT_PROTOCOL),
        };
        let id = request.id;
        let scanned =
            catch_unwind(AssertUnwindSafe(|| answer(yara, limits, version, &request, descriptor)));
        let panicked = scanned.is_err();
        let report = scanned.unwrap_or_else(|_| Report {
            rules: version.to_owned(),
            ..Report::error("the scanner panicked over this object")
        });
        match channel::send(socket, &Response { id, report }, None) {
            Ok(()) if panicked => sys::exit(EXIT_PANIC),
            Ok(()) => {}
            Err(_) => sys::exit(EXIT_CLIENT_GONE),
        }
    }
}

fn answer(
    yara: &mut Yara<'_>,
    limits: &Limits,
    version: &str,
    request: &Request,
    descriptor: Option<OwnedFd>,
) -> Report {
    let (started, cpu) = (Instant::now(), cpu_micros());
    let limit = Duration::from_millis(request.time_limit_ms)
        .min(Duration::from_secs(u64::from(limits.seconds)));
    let mut scan = |data: &[u8]| {
        let object = Object {
            data,
            kind: request.kind,
            name: request.name.as_deref(),
            deadline: started + limit,
        };
        object::scan(yara, limits, &object)
    };
    let mut report = match (&request.content, descriptor) {
        (Content::Inline(data), _) => scan(data),
        (Content::Descriptor { len }, Some(file)) => match open(&file, *len) {
            Ok(Bytes::Copied(data)) => scan(&data),
            Ok(Bytes::Mapped(mapping)) => scan(mapping.bytes()),
            Err(e) => Report::error(format!("the object cannot be read: {e}")),
        },
        (Content::Descriptor { .. }, None) => Report::error("a request without its descriptor"),
    };
    report.micros = cpu_micros().saturating_sub(cpu);
    report.rules = version.to_owned();
    report
}

enum Bytes {
    Copied(Vec<u8>),
    Mapped(Mapping),
}

/// The object's bytes, without touching the offset that the descriptor shares with the gateway's.
fn open(file: impl AsFd, len: u64) -> io::Result<Bytes> {
    let size = rustix::fs::fstat(&file)?.st_size;
    if u64::try_from(size).is_ok_and(|size| size < len) {
        return Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            format!("{size} bytes instead of {len}"),
        ));
    }
    let len = usize::try_from(len).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
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

fn cpu_micros() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000
        + u64::try_from(time.tv_nsec).unwrap_or(0) / 1000
}

//! `[scan.clamd]`: a clamd that is asked about every object beside the scanner. How it is asked is `crate::clamd`'s
//! business.

use super::read::{Reader, Scalar, Table, Wrong};
use super::sections::{positive, size};
use super::terms::{ClamdLarger, ClamdMode};
use std::fmt;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;
use toml::de::DeValue;
use vscan_scan::glob::Glob;

/// `[scan.clamd]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clamd {
    /// Where it listens.
    pub address: ClamdAddress,
    /// How objects reach it.
    pub mode: ClamdMode,
    /// Wall-clock time for one object, waiting for a connection included.
    pub deadline: Duration,
    /// Connections at one time; more objects wait. clamd's own bound is `MaxThreads`.
    pub connections: NonZeroUsize,
    /// Larger objects are not given to it, in bytes.
    pub size_max: u64,
    /// What becomes of those.
    pub larger: ClamdLarger,
    /// Names of detections that do not count.
    pub ignore: Vec<Glob>,
}

/// Where clamd listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClamdAddress {
    /// `LocalSocket`
    Unix(PathBuf),
    /// `TCPAddr` and `TCPSocket`, as `host:port`.
    Tcp(String),
}

impl fmt::Display for ClamdAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "{}", path.display()),
            Self::Tcp(address) => f.write_str(address),
        }
    }
}

impl Scalar for ClamdAddress {
    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        let text = String::read(value)?;
        if text.starts_with('/') {
            return PathBuf::read(value).map(Self::Unix);
        }
        let port = text.rsplit_once(':').filter(|(host, _)| {
            let bracketed = host.starts_with('[') && host.ends_with(']');
            !host.is_empty() && (bracketed || !host.contains([':', '/', ' ']))
        });
        match port.map(|(_, port)| port.parse::<u16>()) {
            Some(Ok(port)) if port > 0 => Ok(Self::Tcp(text)),
            Some(_) | None => {
                Err(Wrong::new(format!("{text:?} is neither a socket's path nor host:port"))
                    .help("write \"/run/clamav/clamd.ctl\" or \"127.0.0.1:3310\""))
            }
        }
    }
}

/// What Debian's clamd takes by `INSTREAM` (`StreamMaxLength`).
const SIZE_MAX: u64 = 25 << 20;

/// Longer than clamd's own deadlines for ordinary files, shorter than FTP clients wait for a download to begin.
const DEADLINE: Duration = Duration::from_secs(30);

/// Below the ten threads that clamd has by default, so that others find one too.
const CONNECTIONS: NonZeroUsize = NonZeroUsize::new(8).unwrap();

pub(super) fn read(r: &mut Reader<'_>, scan: &mut Table<'_, '_>) -> Option<Clamd> {
    let there = scan.has("clamd");
    let mut t = scan.table(r, "clamd");
    if there && !t.has("address") {
        let wrong = Wrong::new("`scan.clamd.address` is missing")
            .help("write address = \"/run/clamav/clamd.ctl\" below [scan.clamd]");
        r.report(t.span(), wrong);
    }
    let address: Option<ClamdAddress> = t.opt(r, "address");
    let mode = t.get(r, "mode", ClamdMode::Auto);
    let deadline = positive(r, &mut t, "deadline", DEADLINE);
    let connections = t.get(r, "connections", CONNECTIONS);
    let size_max = size(r, &mut t, "size_max", SIZE_MAX);
    let larger = t.get(r, "larger", ClamdLarger::Unscannable);
    let ignore = t.list(r, "ignore", Vec::new());
    if mode == ClamdMode::Fildes && matches!(address, Some(ClamdAddress::Tcp(_))) {
        let wrong = Wrong::new("`scan.clamd.mode`: descriptors do not pass over TCP")
            .help("write \"instream\", or the path of a unix socket as address");
        r.report(t.span_of("mode"), wrong);
    }
    t.finish(r);
    Some(Clamd { address: address?, mode, deadline, connections, size_max, larger, ignore })
}

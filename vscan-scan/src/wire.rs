//! How the gateway talks to the scanner process.
//!
//! Two kinds of `AF_UNIX` `SOCK_SEQPACKET` sockets, one message a datagram, bodies encoded by postcard:
//!
//! * the **control** socket, one per scanner process, between gateway and zygote. The zygote announces
//!   each worker it forks by [`ToGateway::Worker`] with that worker's socket attached (`SCM_RIGHTS`);
//!   the gateway asks for a worker's end by [`ToZygote::Kill`].
//! * the **worker** sockets: one [`Request`] at a time, answered by one [`crate::report::Report`].
//!
//! A third channel, the **status** pipe, tells the supervisor one [`Status`] line of JSON: the rules
//! loaded and the workers are forked, or why not.

use crate::report::Report;
use serde::{Deserialize, Serialize};

/// Objects up to this many bytes travel inside the request; larger ones as a descriptor.
///
/// A copy of this size costs less than memfd_create, seals and mmap.
pub const INLINE_MAX: usize = 64 * 1024;

/// Upper bound of a datagram on any of these sockets, in bytes; both ends set SO_SNDBUF to twice this.
pub const DATAGRAM_MAX: usize = INLINE_MAX + 64 * 1024;

/// Zygote to gateway, on the control socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToGateway {
    /// A worker is ready; its socket is attached.
    Worker {
        /// Which of the fixed number of places it fills.
        slot: u32,
        /// Its process id, for the log.
        pid: i32,
    },
    /// A worker ended. Its socket reports end of file too; this says why. What a gateway did not read while
    /// workers came and went is not kept: it may name a worker that was never announced, and of several ends
    /// in one place only the last is told.
    Exited {
        /// The place it filled.
        slot: u32,
        /// Its process id; 0 when a worker could not be forked, which is tried again.
        pid: i32,
        /// How it ended, e.g. `signal 11` or `memory limit`.
        cause: String,
    },
}

/// Gateway to zygote, on the control socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToZygote {
    /// End this worker (it is over its deadline) and fork a new one.
    Kill {
        /// The place it fills.
        slot: u32,
        /// Its process id, so that a successor is not hit.
        pid: i32,
    },
}

/// What an object is to be read as, beyond what its bytes say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ObjectKind {
    /// A file; its type is sniffed.
    File,
    /// An Internet message (RFC 5322), whatever its bytes look like.
    Message,
}

/// Where the object's bytes are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Content {
    /// In this request.
    Inline(#[serde(with = "serde_bytes")] Vec<u8>),
    /// In the attached descriptor (sealed memfd or read-only file): this many bytes from offset 0.
    Descriptor {
        /// Length in bytes.
        len: u64,
    },
}

/// One object for a worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Echoed in the [`Response`].
    pub id: u64,
    /// What it is.
    pub kind: ObjectKind,
    /// Its name as the peer gave it, if any.
    pub name: Option<String>,
    /// The worker stops by itself after this many milliseconds of wall-clock time (`Reason::Time`).
    pub time_limit_ms: u64,
    /// The bytes.
    pub content: Content,
}

/// A worker's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Response {
    /// [`Request::id`].
    pub id: u64,
    /// What was found.
    pub report: Report,
}

/// One line of JSON on the status pipe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "lowercase")]
pub enum Status {
    /// The rules are loaded and the first workers are forked.
    Ready {
        /// Number of rules.
        rules: u64,
        /// Identity of engine and rules, as in `Report::rules`.
        version: String,
        /// What was ignored or is doubtful.
        warnings: Vec<String>,
        /// Milliseconds it took to load.
        millis: u64,
    },
    /// Nothing was loaded; the process ends.
    Failed {
        /// What, where, and what to do.
        error: String,
    },
}

//! How the gateway talks to the scanner process.
//!
//! Two kinds of `AF_UNIX` `SOCK_SEQPACKET` sockets, one message a datagram, bodies encoded by postcard:
//!
//! * the **control** socket, one per scanner process, between gateway and zygote. The zygote announces
//!   each worker it forks by [`ToGateway::Worker`] with that worker's socket attached (`SCM_RIGHTS`);
//!   the gateway asks for a worker's end by [`ToZygote::Kill`].
//! * the **worker** sockets: one [`Request`] at a time, answered by one [`Answer`] in as many [`Response`]
//!   datagrams as it takes. A worker can neither make nor grow a file, so no descriptor comes back.
//!
//! A third channel, the **status** pipe, tells the supervisor one [`Status`] line of JSON: the rules
//! loaded and the workers are forked, or why not.

use crate::repair::{self, Plan};
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

/// What is wanted of an object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ask {
    /// Nothing yet: the object arrives, and so many of its bytes are there, which stay as they are. The worker looks at what
    /// it can, soon answers [`Answer::Ahead`], and keeps what it saw under [`Request::object`], for a while.
    Ahead,
    /// What is in it: [`Answer::Report`].
    Report {
        /// With hashes of the parts, tags and metadata of the findings, and the long tree.
        detail: bool,
    },
    /// Edits: [`Answer::Repair`]. Kind, name and passwords must be those of the scan, or the parts get
    /// other numbers.
    Repair(Plan),
    /// Whether the allow lists let the object pass though something called `name` was found in it by somebody else:
    /// [`Answer::Allowed`].
    Allowed {
        /// The name of the detection.
        name: String,
    },
}

/// One object for a worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Echoed in the [`Response`].
    pub id: u64,
    /// The object's number, if this worker was told of it by [`Ask::Ahead`].
    pub object: Option<u64>,
    /// What is wanted.
    pub ask: Ask,
    /// What it is.
    pub kind: ObjectKind,
    /// Its name as the peer gave it, if any.
    pub name: Option<String>,
    /// Passwords to try on encrypted parts, besides those that the object itself tells.
    pub passwords: Vec<String>,
    /// The worker stops by itself after this many milliseconds of wall-clock time (`Reason::Time`).
    pub time_limit_ms: u64,
    /// The bytes.
    pub content: Content,
}

/// A piece of a worker's answer: one datagram.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Response {
    /// [`Request::id`].
    pub id: u64,
    /// Another piece follows.
    pub more: bool,
    /// The next bytes of the [`Answer`] as postcard writes it; at most [`PIECE_MAX`].
    #[serde(with = "serde_bytes")]
    pub piece: Vec<u8>,
}

/// Bytes of an answer in one [`Response`].
pub const PIECE_MAX: usize = DATAGRAM_MAX - 64;

/// Bytes of the longest answer besides the bytes of its edits: a report with the long tree, each part of which
/// has nine names and two hashes.
pub const ANSWER_MAX: usize = crate::report::TREE_DETAIL_MAX
    * ((crate::report::OTHER_NAMES_MAX + 1) * crate::report::NAME_MAX + 512)
    + (1 << 20);

/// A worker's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// So many bytes were looked at.
    Ahead(u64),
    /// What was found.
    Report(Box<Report>),
    /// What can be done.
    Repair(repair::Answer),
    /// Whether it may pass.
    Allowed(bool),
}

impl Answer {
    /// The datagrams that carry it.
    ///
    /// # Errors
    /// Those of postcard, which this type does not have.
    pub fn responses(&self, id: u64) -> Result<impl Iterator<Item = Response>, postcard::Error> {
        let bytes = postcard::to_stdvec(self)?;
        let mut at = 0;
        let mut ended = false;
        Ok(std::iter::from_fn(move || {
            if ended {
                return None;
            }
            let end = (at + PIECE_MAX).min(bytes.len());
            let piece = bytes[at..end].to_vec();
            at = end;
            ended = at == bytes.len();
            Some(Response { id, more: !ended, piece })
        }))
    }
}

/// Why an answer could not be put together.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    /// The piece belongs to another request.
    #[error("answer to another request")]
    OtherRequest,
    /// More bytes than the answer may have.
    #[error("answer of more than {0} bytes")]
    TooLong(usize),
    /// The bytes are no answer.
    #[error("answer not understood: {0}")]
    NotUnderstood(#[from] postcard::Error),
}

/// Puts an [`Answer`] together from its [`Response`]s.
#[derive(Debug)]
pub struct Pieces {
    id: u64,
    most: usize,
    bytes: Vec<u8>,
}

impl Pieces {
    /// For the answer to the request `id`, which may have `most` bytes.
    pub fn new(id: u64, most: usize) -> Self {
        Self { id, most, bytes: Vec::new() }
    }

    /// Takes the next datagram; the answer, when it was the last one.
    ///
    /// # Errors
    /// [`AnswerError`]; the worker then is in an unknown state.
    pub fn push(&mut self, response: Response) -> Result<Option<Answer>, AnswerError> {
        if response.id != self.id {
            return Err(AnswerError::OtherRequest);
        }
        if self.bytes.len() + response.piece.len() > self.most {
            return Err(AnswerError::TooLong(self.most));
        }
        if self.bytes.is_empty() && !response.more {
            return Ok(Some(postcard::from_bytes(&response.piece)?));
        }
        self.bytes.extend_from_slice(&response.piece);
        if response.more { Ok(None) } else { Ok(Some(postcard::from_bytes(&self.bytes)?)) }
    }
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
        /// When the youngest file of rules was changed, in seconds since 1970.
        newest: Option<i64>,
        /// Milliseconds it took to load.
        millis: u64,
    },
    /// Nothing was loaded; the process ends.
    Failed {
        /// What, where, and what to do.
        error: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repair::{Edit, Repaired};

    #[test]
    fn a_long_answer_comes_in_pieces() {
        let edit = Edit { at: 1, len: 2, with: vec![0xa5; 3 * DATAGRAM_MAX] };
        let repaired = Repaired { edits: vec![edit], done: vec![] };
        let answer = Answer::Repair(repair::Answer::Repaired(repaired));
        let mut pieces = Pieces::new(7, ANSWER_MAX);
        let responses: Vec<Response> = answer.responses(7).unwrap().collect();
        assert_eq!(responses.len(), 4);
        for (i, response) in responses.iter().enumerate() {
            assert!(postcard::to_stdvec(response).unwrap().len() <= DATAGRAM_MAX);
            let got = pieces.push(response.clone()).unwrap();
            assert_eq!(got.is_some(), i == 3);
            assert!(got.is_none_or(|got| got == answer));
        }
        let mut short = Pieces::new(7, 3 * DATAGRAM_MAX);
        let last = responses.iter().map(|r| short.push(r.clone())).find(Result::is_err);
        assert!(matches!(last, Some(Err(AnswerError::TooLong(_)))));
        let other = Pieces::new(8, ANSWER_MAX).push(responses[0].clone());
        assert!(matches!(other, Err(AnswerError::OtherRequest)));
    }
}

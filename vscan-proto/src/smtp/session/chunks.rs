//! A message by BDAT (RFC 3030): any number of chunks, with commands between them.
//!
//! vscan collects the chunks and answers all but the last itself; the server gets the whole message
//! as one. A chunk that is refused is read and forgotten: its bytes are never commands.

use crate::line::Line;
use crate::smtp::command::{Chunk, ChunkKind, Command, Verb};
use crate::smtp::reply::compose;

use super::hold::{Fate, Framing, Receiving, Why};
use super::{Anomaly, Asked, Message, Outcome, Output, Pending, Session, State};

/// A part of a message is here, and the client says what comes next.
#[derive(Debug)]
pub(super) struct Between {
    pub(super) receiving: Receiving,
    /// The next chunk, which waits for replies to earlier commands.
    pub(super) next: Option<Chunk>,
}

/// The rest of a chunk that is refused.
#[derive(Debug)]
pub(super) struct Unwanted {
    left: u64,
    refusal: Vec<u8>,
}

impl Session {
    /// The first chunk of a message, or one that belongs to none.
    pub(super) fn bdat(&mut self, chunk: Option<Chunk>) {
        match chunk {
            None => self.answer(compose(501, "5.5.4", "BDAT needs a chunk size")),
            Some(chunk) if chunk.kind == ChunkKind::Malformed => {
                self.refuse_chunk(chunk, malformed());
            }
            Some(chunk) => {
                self.state = State::Deciding(Asked::Chunk(chunk));
                self.proceed();
            }
        }
    }

    /// BDAT was read and all earlier replies are in.
    pub(super) fn decide_chunk(&mut self, chunk: Chunk) {
        // Asked only now: a client that remembers the offer pipelines even the EHLO (Exim's
        // PIPECONNECT).
        if !self.offer.chunking {
            self.anomaly_once(Anomaly::ChunkedTransfer);
            return self.refuse_chunk(chunk, compose(502, "5.5.1", "BDAT was not offered"));
        }
        match self.transaction.take() {
            Some(transaction) if transaction.accepted > 0 => {
                let receiving = self.receiving(transaction, framing(chunk));
                self.begin_chunk(receiving, chunk);
            }
            transaction => {
                self.transaction = transaction;
                let refusal = compose(503, "5.5.1", "BDAT needs a sender and a valid recipient");
                self.refuse_chunk(chunk, refusal);
            }
        }
    }

    /// A command while a part of a message is in hand. Between chunks only BDAT and what leaves the
    /// transaction alone makes sense (RFC 3030 section 2).
    pub(super) fn between_chunks(&mut self, line: &Line, command: Command<'_>) {
        match command.verb {
            Verb::Bdat => match command.chunk() {
                None => self.answer(compose(501, "5.5.4", "BDAT needs a chunk size")),
                Some(chunk) if chunk.kind == ChunkKind::Malformed => {
                    self.abandon_message();
                    self.rset();
                    self.refuse_chunk(chunk, malformed());
                }
                Some(chunk) => {
                    if let State::Between(between) = &mut self.state {
                        between.next = Some(chunk);
                    }
                    self.proceed();
                }
            },
            Verb::Plain => self.relay(line, Pending::Plain),
            Verb::Rset | Verb::Quit => {
                self.abandon_message();
                self.command(line, command);
            }
            Verb::Helo
            | Verb::Ehlo
            | Verb::Lhlo
            | Verb::Mail
            | Verb::Rcpt
            | Verb::Data
            | Verb::Auth
            | Verb::StartTls
            | Verb::Forbidden
            | Verb::Other => {
                self.answer(compose(503, "5.5.1", "The message is not complete: BDAT or RSET"));
            }
        }
    }

    /// The next chunk of the message in hand.
    pub(super) fn begin_chunk(&mut self, mut receiving: Receiving, chunk: Chunk) {
        receiving.framing = framing(chunk);
        let too_large = receiving.size.saturating_add(chunk.length) > self.config.hold_max;
        if too_large && matches!(receiving.fate, Fate::Hold) {
            receiving.fate = Fate::Refuse(Why::TooLarge);
            self.anomaly(Anomaly::MessageTooLarge);
            self.actions.push_back(Output::Discard);
        }
        self.state = State::Receiving(receiving);
        if chunk.length == 0 {
            self.chunk_end();
        }
    }

    /// Takes bytes of a chunk: how many, and what is to be stored.
    pub(super) fn chunk_bytes<'a>(&mut self, input: &'a [u8]) -> (usize, Message<'a>) {
        let State::Receiving(receiving) = &mut self.state else { return (0, Message::default()) };
        let Framing::Chunk { left, .. } = &mut receiving.framing else {
            return (0, Message::default());
        };
        let body = &input[..clamp(*left, input.len())];
        *left -= body.len() as u64;
        receiving.size += body.len() as u64;
        let message = match receiving.fate {
            Fate::Hold => Message { carry: b"", body },
            Fate::Refuse(_) | Fate::ServerLost(_) => Message::default(),
        };
        if *left == 0 {
            self.chunk_end();
        }
        (body.len(), message)
    }

    fn chunk_end(&mut self) {
        match std::mem::replace(&mut self.state, State::Closed) {
            State::Receiving(receiving) => match (&receiving.fate, &receiving.framing) {
                (Fate::Hold, Framing::Chunk { length, last: false, .. }) => {
                    let text = format!("{length} bytes received");
                    self.state = State::Between(Between { receiving, next: None });
                    self.answer(compose(250, "2.0.0", &text));
                }
                _ => self.message_end(receiving),
            },
            other => self.state = other,
        }
    }

    /// The client does not want its message to be sent.
    fn abandon_message(&mut self) {
        if let Some((transaction, size)) = self.take_message() {
            self.finished(transaction, size, Outcome::Abandoned, None);
            self.state = State::Commands;
        }
    }

    fn refuse_chunk(&mut self, chunk: Chunk, refusal: Vec<u8>) {
        self.state = State::Chunk(Unwanted { left: chunk.length, refusal });
        self.unwanted_bytes(&[]);
    }

    /// Takes bytes of a refused chunk: how many. The refusal follows the last.
    pub(super) fn unwanted_bytes(&mut self, input: &[u8]) -> usize {
        let State::Chunk(unwanted) = &mut self.state else { return 0 };
        let length = clamp(unwanted.left, input.len());
        unwanted.left -= length as u64;
        if unwanted.left == 0 {
            let refusal = std::mem::take(&mut unwanted.refusal);
            self.state = State::Commands;
            self.answer(refusal);
        }
        length
    }
}

fn framing(chunk: Chunk) -> Framing {
    let last = chunk.kind == ChunkKind::Last;
    Framing::Chunk { length: chunk.length, left: chunk.length, last }
}

fn malformed() -> Vec<u8> {
    compose(501, "5.5.4", "BDAT takes a size and LAST, nothing else")
}

fn clamp(left: u64, available: usize) -> usize {
    usize::try_from(left).unwrap_or(usize::MAX).min(available)
}

//! A message until it is ruled on: received, inspected, and refused if it has to be.
//!
//! vscan gives the 354 itself, once a recipient is accepted. The server waits meanwhile and gets
//! NOOPs; it hears of the message when that has passed: see `answer`.

use std::time::Instant;

use crate::smtp::data::{BareNewlines, Decoder};
use crate::smtp::reply::compose;

use super::answer::{Answering, Offering, Sending};
use super::chunks::Between;
use super::{
    Anomaly, Asked, BareNewline, Finished, Form, Leg, Message, Outcome, Output, Pending, Ruling,
    Session, State, Transaction,
};

const GO_AHEAD: &[u8] = b"354 End data with <CR><LF>.<CR><LF>\r\n";

/// A message that is being received.
#[derive(Debug)]
pub(super) struct Receiving {
    transaction: Transaction,
    pub(super) framing: Framing,
    pub(super) size: u64,
    pub(super) fate: Fate,
    /// When the server gets its next NOOP.
    pub(super) keepalive: Instant,
}

/// Where a message ends.
#[derive(Debug)]
pub(super) enum Framing {
    /// At a lone dot, after DATA.
    Dots {
        decoder: Decoder,
        /// Only where bare newlines are refused.
        bare: Option<BareNewlines>,
    },
    /// With the last of its chunks. This is the one that is being read.
    Chunk { length: u64, left: u64, last: bool },
}

/// What becomes of the message at its end.
#[derive(Debug)]
pub(super) enum Fate {
    Hold,
    Refuse(Why),
    /// The server is gone: the reply for the client.
    ServerLost(Vec<u8>),
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Why {
    TooLarge,
    LookAlike,
    BareNewline,
    NoRoom,
}

/// A complete message, or one that goes no further.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) transaction: Transaction,
    /// Size in bytes as it came.
    pub(super) size: u64,
    pub(super) form: Form,
    /// Some servers read it in another way than it says.
    ambiguous: bool,
    /// How many replies the client waits for.
    pub(super) answers: u32,
    pub(super) keepalive: Instant,
    /// When it must have its ruling.
    pub(super) ruling_due: Instant,
    /// When the client must have its final reply.
    pub(super) deadline: Instant,
}

impl Session {
    /// Whether servers that take a bare LF for a line end have another message than the one that is
    /// held for the ruling: see [`Decoder::odd_dot`].
    pub fn is_ambiguous(&self) -> bool {
        matches!(&self.state, State::Checking(held) if held.ambiguous)
    }

    /// The ruling on the message that was to be inspected. Ignored if nothing is held any more.
    pub fn handle_ruling(&mut self, ruling: Ruling) {
        if !self.is_checking() {
            return;
        }
        let (outcome, code, enhanced, text) = match ruling {
            Ruling::Pass => return self.offer_message(None),
            Ruling::Deliver { size } if self.offer.size.is_some_and(|most| size > most) => {
                let text = "The treated message is larger than the server takes".to_owned();
                (Outcome::TooLarge, 552, "5.3.4", text)
            }
            Ruling::Deliver { size } => return self.offer_message(Some(size)),
            Ruling::TooMuch => {
                let text = "Too much mail from this host, try again later";
                self.refuse(Outcome::TooMuch, 421, "4.7.0", text);
                return self.close();
            }
            Ruling::Infected { name } => {
                (Outcome::Blocked, 550, "5.7.1", format!("Message blocked by vscan: {name}"))
            }
            Ruling::Unscannable { reason } => {
                let text = format!("Message could not be scanned by vscan: {reason}");
                (Outcome::Blocked, 550, "5.7.1", text)
            }
            Ruling::Failed { permanent: false } => {
                let text = "Message could not be scanned, try again later".to_owned();
                (Outcome::Failed, 451, "4.7.1", text)
            }
            Ruling::Failed { permanent: true } => {
                let text = "Message could not be scanned by vscan".to_owned();
                (Outcome::Failed, 554, "5.7.1", text)
            }
        };
        self.refuse(outcome, code, enhanced, &text);
    }

    /// The message could not be stored: it is read to its end and refused with 452.
    pub fn handle_spool_failed(&mut self) {
        match &mut self.state {
            State::Receiving(receiving) | State::Between(Between { receiving, .. }) => {
                if matches!(receiving.fate, Fate::Hold) {
                    receiving.fate = Fate::Refuse(Why::NoRoom);
                    self.actions.push_back(Output::Discard);
                }
            }
            State::Checking(_) => self.refuse_for(Why::NoRoom),
            State::Commands
            | State::Barrier
            | State::Challenge
            | State::Chunk(_)
            | State::Deciding(_)
            | State::Offering(_)
            | State::Sending(_)
            | State::Answer(_)
            | State::Tls(_)
            | State::Securing
            | State::Blind
            | State::Closed => {}
        }
    }

    /// Goes on where a state waits for the last outstanding reply.
    pub(super) fn proceed(&mut self) {
        if !self.pending.is_empty() {
            return;
        }
        match &mut self.state {
            State::Deciding(Asked::Data) => self.decide(),
            State::Deciding(Asked::Chunk(chunk)) => {
                let chunk = *chunk;
                self.decide_chunk(chunk);
            }
            State::Between(Between { next: Some(_), .. }) => {
                if let State::Between(Between { receiving, next: Some(chunk) }) =
                    std::mem::replace(&mut self.state, State::Closed)
                {
                    self.begin_chunk(receiving, chunk);
                }
            }
            State::Commands if self.draining => {
                self.close_with(compose(421, "4.3.2", "Service shutting down"));
            }
            State::Offering(offering) if !offering.asked => {
                offering.asked = true;
                self.ask_server();
            }
            State::Commands
            | State::Barrier
            | State::Challenge
            | State::Chunk(_)
            | State::Between(_)
            | State::Receiving(_)
            | State::Checking(_)
            | State::Offering(_)
            | State::Sending(_)
            | State::Answer(_)
            | State::Tls(_)
            | State::Securing
            | State::Blind
            | State::Closed => {}
        }
    }

    /// DATA was read and all earlier replies are in.
    fn decide(&mut self) {
        match self.transaction.take() {
            Some(transaction) if transaction.accepted > 0 => {
                self.to_client.extend_from_slice(GO_AHEAD);
                let bare =
                    (self.config.bare_newline == BareNewline::Refuse).then(BareNewlines::default);
                let framing = Framing::Dots { decoder: Decoder::new(), bare };
                self.state = State::Receiving(self.receiving(transaction, framing));
            }
            transaction => {
                // The server has its own words for this. Should it want a message all the same
                // (RFC 2920 section 3.1 lets it), vscan sends it the lone dot, not the client.
                self.transaction = transaction;
                self.to_upstream.extend_from_slice(b"DATA\r\n");
                self.pending.push_back(Pending::NoData);
                self.state = State::Barrier;
            }
        }
    }

    /// A message that begins now.
    pub(super) fn receiving(&self, transaction: Transaction, framing: Framing) -> Receiving {
        let keepalive = self.activity + self.config.keepalive;
        Receiving { transaction, framing, size: 0, fate: Fate::Hold, keepalive }
    }

    /// Takes message bytes: how many, and what is to be stored.
    pub(super) fn message_bytes<'a>(&mut self, input: &'a [u8]) -> (usize, Message<'a>) {
        let State::Receiving(receiving) = &mut self.state else {
            return (0, Message::default());
        };
        let Framing::Dots { decoder, bare } = &mut receiving.framing else {
            return self.chunk_bytes(input);
        };
        let decoded = decoder.decode(input);
        let mut message = Message { carry: decoded.carry, body: decoded.body };
        receiving.size += (message.carry.len() + message.body.len()) as u64;
        if let Some(bare) = bare {
            bare.check(message.carry);
            bare.check(message.body);
        }
        if matches!(receiving.fate, Fate::Hold)
            && let Some((why, anomaly)) =
                receiving.objection(self.config.bare_newline, self.config.hold_max)
        {
            receiving.fate = Fate::Refuse(why);
            self.actions.push_back(Output::Anomaly(anomaly));
            self.actions.push_back(Output::Discard);
        }
        if !matches!(receiving.fate, Fate::Hold) {
            message = Message::default();
        }
        if decoded.end
            && let State::Receiving(receiving) = std::mem::replace(&mut self.state, State::Closed)
        {
            self.message_end(receiving);
        }
        (decoded.consumed, message)
    }

    /// No more of the message comes.
    pub(super) fn message_end(&mut self, receiving: Receiving) {
        let Receiving { transaction, framing, size, fate, keepalive } = receiving;
        let ambiguous = matches!(&framing, Framing::Dots { decoder, .. } if decoder.odd_dot());
        let (form, whole) = match framing {
            Framing::Dots { decoder, .. } if decoder.stuffed() => (Form::Stuffed, true),
            Framing::Dots { .. } => (Form::Plain, true),
            Framing::Chunk { last, .. } => (Form::Chunked, last),
        };
        self.state = State::Checking(Held {
            // A refused chunk that is not the last has one reply, as any of its kind.
            answers: if self.per_recipient && whole { transaction.accepted } else { 1 },
            transaction,
            size,
            form,
            ambiguous,
            keepalive,
            ruling_due: self.activity + self.config.ruling_timeout,
            deadline: self.activity + self.config.answer_timeout,
        });
        match fate {
            Fate::Hold => self.actions.push_back(Output::Inspect(form)),
            Fate::Refuse(why) => self.refuse_for(why),
            Fate::ServerLost(reply) => self.lose(reply),
        }
    }

    fn refuse_for(&mut self, why: Why) {
        let (outcome, code, enhanced, text) = match why {
            Why::TooLarge => (Outcome::TooLarge, 552, "5.3.4", "Message too large to be scanned"),
            Why::LookAlike => (
                Outcome::BareNewline,
                550,
                "5.6.0",
                "Message refused by vscan: a bare newline looks like the end of data",
            ),
            Why::BareNewline => {
                (Outcome::BareNewline, 550, "5.6.0", "Message refused by vscan: bare newline")
            }
            Why::NoRoom => (Outcome::NoRoom, 452, "4.3.1", "No room to hold the message"),
        };
        self.refuse(outcome, code, enhanced, text);
    }

    pub(super) fn ruling_overdue(&mut self) {
        self.refuse(Outcome::Failed, 451, "4.7.1", "Message could not be scanned in time");
    }

    /// Refuses the message that is being checked. The server forgets the transaction too.
    fn refuse(&mut self, outcome: Outcome, code: u16, enhanced: &str, text: &str) {
        let answers = self.answers_due();
        let Some((transaction, size)) = self.take_message() else { return };
        self.say(&compose(code, enhanced, text), answers);
        self.finished(transaction, size, outcome, Some(code));
        self.state = State::Commands;
        self.rset();
    }

    /// The server says 421 while a message is held.
    pub(super) fn server_leaves(&mut self, reply: Vec<u8>) {
        // A client in mid-message hears of it at the end.
        if let State::Receiving(receiving) = &mut self.state {
            if !matches!(receiving.fate, Fate::ServerLost(_)) {
                receiving.fate = Fate::ServerLost(reply);
                self.actions.push_back(Output::Discard);
            }
        } else {
            self.lose(reply);
        }
    }

    /// The message goes no further; `code` was said to the client.
    pub(super) fn give_up_message(&mut self, code: Option<u16>) {
        if let Some((transaction, size)) = self.take_message() {
            self.finished(transaction, size, Outcome::ClientLost, code);
        }
    }

    /// Both legs are cut off for what the server did.
    pub(super) fn reset_with_message(&mut self) {
        if let Some((transaction, size)) = self.take_message() {
            self.finished(transaction, size, Outcome::ServerLost, None);
        }
        self.reset();
    }

    pub(super) fn has_message(&self) -> bool {
        self.message_transaction().is_some()
    }

    /// A NOOP for the server, unless it still owes the answer to the last one.
    pub(super) fn keep_alive(&mut self) {
        if self.upstream == Leg::Open && self.pending.is_empty() {
            self.to_upstream.extend_from_slice(b"NOOP\r\n");
            self.pending.push_back(Pending::Ours);
        }
    }

    pub(super) fn rset(&mut self) {
        if self.upstream == Leg::Open {
            self.to_upstream.extend_from_slice(b"RSET\r\n");
            self.pending.push_back(Pending::OurRset);
        }
    }

    pub(super) fn message_transaction(&self) -> Option<&Transaction> {
        match &self.state {
            State::Receiving(receiving) | State::Between(Between { receiving, .. }) => {
                Some(&receiving.transaction)
            }
            State::Checking(held)
            | State::Offering(Offering { held, .. })
            | State::Sending(Sending { held, .. })
            | State::Answer(Answering { held, .. }) => Some(&held.transaction),
            State::Commands
            | State::Barrier
            | State::Challenge
            | State::Chunk(_)
            | State::Deciding(_)
            | State::Tls(_)
            | State::Securing
            | State::Blind
            | State::Closed => None,
        }
    }

    /// Takes the message out of the state, which becomes [`State::Closed`]; leaves any other.
    pub(super) fn take_message(&mut self) -> Option<(Transaction, u64)> {
        match std::mem::replace(&mut self.state, State::Closed) {
            State::Receiving(receiving) | State::Between(Between { receiving, .. }) => {
                Some((receiving.transaction, receiving.size))
            }
            State::Checking(held)
            | State::Offering(Offering { held, .. })
            | State::Sending(Sending { held, .. })
            | State::Answer(Answering { held, .. }) => Some((held.transaction, held.size)),
            other => {
                self.state = other;
                None
            }
        }
    }

    /// Reports the end of a message that the server has for nobody.
    pub(super) fn finished(
        &mut self,
        transaction: Transaction,
        size: u64,
        outcome: Outcome,
        code: Option<u16>,
    ) {
        self.actions.push_back(Output::Finished(Finished {
            sender: transaction.sender,
            recipients: transaction.accepted,
            size,
            outcome,
            delivered: 0,
            code,
        }));
    }
}

impl Receiving {
    /// Why the message, as far as it is here, cannot be taken.
    fn objection(&self, bare_newline: BareNewline, hold_max: u64) -> Option<(Why, Anomaly)> {
        if self.size > hold_max {
            Some((Why::TooLarge, Anomaly::MessageTooLarge))
        } else if let Framing::Dots { decoder, bare } = &self.framing {
            if decoder.look_alike() && bare_newline != BareNewline::Pass {
                Some((Why::LookAlike, Anomaly::EndOfDataLookAlike))
            } else if bare.as_ref().is_some_and(BareNewlines::found) {
                Some((Why::BareNewline, Anomaly::BareNewline))
            } else {
                None
            }
        } else {
            None
        }
    }
}

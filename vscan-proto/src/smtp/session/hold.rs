//! The life of a message: received, inspected, offered to the server, sent, answered.
//!
//! vscan gives the 354 itself, once a recipient is accepted. The server waits meanwhile and gets
//! NOOPs; it sees DATA when the message has passed, and its answer is the client's final reply.

use std::time::Instant;

use crate::smtp::data::{BareNewlines, Decoder};
use crate::smtp::reply::compose;

use super::{
    Anomaly, BareNewline, Finished, Leg, Message, Outcome, Output, Pending, Ruling, Session, State,
    Transaction,
};

const GO_AHEAD: &[u8] = b"354 End data with <CR><LF>.<CR><LF>\r\n";
const SERVER_LOST: &str = "Connection to the server lost";

/// A message that is being received.
#[derive(Debug)]
pub(super) struct Receiving {
    transaction: Transaction,
    decoder: Decoder,
    /// Only where bare newlines are refused.
    bare: Option<BareNewlines>,
    size: u64,
    fate: Fate,
    /// When the server gets its next NOOP.
    pub(super) keepalive: Instant,
}

/// What becomes of the message at its end.
#[derive(Debug)]
enum Fate {
    Hold,
    Refuse(Why),
    /// The server is gone: the reply for the client.
    ServerLost(Vec<u8>),
}

#[derive(Debug, Clone, Copy)]
enum Why {
    TooLarge,
    LookAlike,
    BareNewline,
    NoRoom,
}

/// A complete message.
#[derive(Debug)]
pub(super) struct Held {
    transaction: Transaction,
    size: u64,
    pub(super) keepalive: Instant,
    /// When the client must have its final reply.
    pub(super) deadline: Instant,
}

/// A message that has passed; DATA goes to the server when no reply is outstanding.
#[derive(Debug)]
pub(super) struct Offering {
    pub(super) held: Held,
    asked: bool,
}

/// A message that the driver is writing to the server.
#[derive(Debug)]
pub(super) struct Sending {
    pub(super) held: Held,
    /// The server's final reply, given before the message was sent.
    early: Option<(u16, Vec<u8>)>,
}

impl Session {
    /// The ruling on the message that was to be inspected. Ignored if nothing is held any more.
    pub fn handle_ruling(&mut self, ruling: Ruling) {
        if !self.is_checking() {
            return;
        }
        let (outcome, code, enhanced, text) = match ruling {
            Ruling::Pass => {
                if let State::Checking(held) = std::mem::replace(&mut self.state, State::Closed) {
                    self.state = State::Offering(Offering { held, asked: false });
                }
                return self.proceed();
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
            State::Receiving(receiving) => {
                if matches!(receiving.fate, Fate::Hold) {
                    receiving.fate = Fate::Refuse(Why::NoRoom);
                    self.actions.push_back(Output::Discard);
                }
            }
            State::Checking(_) => self.refuse_for(Why::NoRoom),
            State::Commands
            | State::Barrier
            | State::Challenge
            | State::Chunk { .. }
            | State::Deciding
            | State::Offering(_)
            | State::Sending(_)
            | State::Answer(_)
            | State::Tls(_)
            | State::Blind
            | State::Closed => {}
        }
    }

    /// The message and its end are written to the server.
    pub fn handle_message_sent(&mut self) {
        match std::mem::replace(&mut self.state, State::Closed) {
            State::Sending(Sending { held, early: None }) => self.state = State::Answer(held),
            State::Sending(Sending { held, early: Some((code, text)) }) => {
                self.conclude(held, code, &text);
            }
            other => self.state = other,
        }
    }

    /// Goes on where a state waits for the last outstanding reply.
    pub(super) fn proceed(&mut self) {
        if !self.pending.is_empty() {
            return;
        }
        match &mut self.state {
            State::Deciding => self.decide(),
            State::Commands if self.draining => {
                self.close_with(compose(421, "4.3.2", "Service shutting down"));
            }
            State::Offering(offering) if !offering.asked => {
                offering.asked = true;
                self.to_upstream.extend_from_slice(b"DATA\r\n");
                self.pending.push_back(Pending::Offer);
            }
            State::Commands
            | State::Barrier
            | State::Challenge
            | State::Chunk { .. }
            | State::Receiving(_)
            | State::Checking(_)
            | State::Offering(_)
            | State::Sending(_)
            | State::Answer(_)
            | State::Tls(_)
            | State::Blind
            | State::Closed => {}
        }
    }

    /// DATA was read and all earlier replies are in.
    fn decide(&mut self) {
        match self.transaction.take() {
            Some(transaction) if transaction.accepted > 0 => {
                self.to_client.extend_from_slice(GO_AHEAD);
                self.state = State::Receiving(Receiving {
                    transaction,
                    decoder: Decoder::new(),
                    bare: (self.config.bare_newline == BareNewline::Refuse)
                        .then(BareNewlines::default),
                    size: 0,
                    fate: Fate::Hold,
                    keepalive: self.activity + self.config.keepalive,
                });
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

    /// Takes message bytes: how many, and what is to be stored.
    pub(super) fn message_bytes<'a>(&mut self, input: &'a [u8]) -> (usize, Message<'a>) {
        let State::Receiving(receiving) = &mut self.state else {
            return (0, Message::default());
        };
        let decoded = receiving.decoder.decode(input);
        let mut message = Message { carry: decoded.carry, body: decoded.body };
        receiving.size += (message.carry.len() + message.body.len()) as u64;
        if let Some(bare) = &mut receiving.bare {
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
        if decoded.end {
            self.message_end();
        }
        (decoded.consumed, message)
    }

    fn message_end(&mut self) {
        match std::mem::replace(&mut self.state, State::Closed) {
            State::Receiving(Receiving { transaction, decoder, size, fate, keepalive, .. }) => {
                let deadline = self.activity + self.config.answer_timeout;
                self.state = State::Checking(Held { transaction, size, keepalive, deadline });
                match fate {
                    Fate::Hold => {
                        self.actions.push_back(Output::Inspect { stuffed: decoder.stuffed() });
                    }
                    Fate::Refuse(why) => self.refuse_for(why),
                    Fate::ServerLost(reply) => self.lose(reply),
                }
            }
            other => self.state = other,
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
        let Some((transaction, size)) = self.take_message() else { return };
        self.to_client.extend_from_slice(&compose(code, enhanced, text));
        self.finished(transaction, size, outcome, Some(code));
        self.state = State::Commands;
        self.rset();
    }

    /// The server's answer to DATA.
    pub(super) fn offer_reply(&mut self, code: u16, text: &[u8]) {
        match std::mem::replace(&mut self.state, State::Closed) {
            State::Offering(Offering { held, .. }) if code == 354 => {
                self.pending.push_back(Pending::Final);
                self.state = State::Sending(Sending { held, early: None });
                self.actions.push_back(Output::SendMessage);
            }
            State::Offering(Offering { held, .. }) if code >= 400 => {
                self.to_client.extend_from_slice(text);
                self.finished(held.transaction, held.size, Outcome::RefusedByServer, Some(code));
                self.state = State::Commands;
                // To the client the transaction is over; the server may think otherwise.
                if code != 421 {
                    self.rset();
                }
            }
            other => {
                self.state = other;
                self.anomaly(Anomaly::BogusDataReply);
                self.lose(compose(421, "4.5.0", "Unexpected answer of the server to DATA"));
            }
        }
    }

    /// The server's answer to the end of the message.
    pub(super) fn final_reply(&mut self, code: u16, text: Vec<u8>) {
        match std::mem::replace(&mut self.state, State::Closed) {
            State::Answer(held) => self.conclude(held, code, &text),
            State::Sending(Sending { held, .. }) => {
                let accepted = code < 400;
                self.state = State::Sending(Sending { held, early: Some((code, text)) });
                if accepted {
                    self.anomaly(Anomaly::EarlyAcceptance);
                    self.lose(compose(421, "4.5.0", "Unexpected answer of the server"));
                }
            }
            other => self.state = other,
        }
    }

    fn conclude(&mut self, held: Held, code: u16, text: &[u8]) {
        let delivered = (200..300).contains(&code);
        let heard = match self.client {
            Leg::Open | Leg::Ended => {
                self.to_client.extend_from_slice(text);
                Some(code)
            }
            Leg::Lost => None,
        };
        if delivered {
            match self.client {
                Leg::Open => self.unwritten_acceptance = true,
                Leg::Ended | Leg::Lost => self.anomaly(Anomaly::DoubledMail),
            }
        }
        let outcome = if delivered { Outcome::Delivered } else { Outcome::RefusedByServer };
        self.finished(held.transaction, held.size, outcome, heard);
        match (self.client, self.upstream) {
            (Leg::Open, Leg::Open) => {
                self.state = State::Commands;
                self.proceed();
            }
            _ => self.close(),
        }
    }

    /// The server is lost, or as good as lost, for the message: the client gets `reply`, a 421.
    pub(super) fn lose(&mut self, reply: Vec<u8>) {
        let in_data = matches!(self.state, State::Offering(_) | State::Sending(_));
        let sent = matches!(self.state, State::Answer(_));
        let Some((transaction, size)) = self.take_message() else { return };
        if sent {
            self.anomaly(Anomaly::FinalReplyLost);
        }
        let code = (self.client != Leg::Lost).then_some(421);
        self.finished(transaction, size, Outcome::ServerLost, code);
        self.to_client.extend_from_slice(&reply);
        self.state = State::Closed;
        // A message that is under way must not end as if it were complete.
        let close = if in_data || sent { Output::CloseClient } else { Output::Close };
        self.actions.push_back(close);
    }

    /// The server says 421 while a message is held.
    pub(super) fn server_leaves(&mut self, reply: Vec<u8>) {
        if let State::Receiving(receiving) = &mut self.state {
            if !matches!(receiving.fate, Fate::ServerLost(_)) {
                receiving.fate = Fate::ServerLost(reply);
                self.actions.push_back(Output::Discard);
            }
        } else {
            self.lose(reply);
        }
    }

    /// The upstream leg has come to its end: what that means for a message.
    pub(super) fn upstream_gone(&mut self) {
        match std::mem::replace(&mut self.state, State::Closed) {
            State::Sending(Sending { held, early: Some((code, text)) }) => {
                self.conclude(held, code, &text);
            }
            other => {
                self.state = other;
                if self.has_message() {
                    self.server_leaves(compose(421, "4.4.2", SERVER_LOST));
                }
            }
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

    fn rset(&mut self) {
        if self.upstream == Leg::Open {
            self.to_upstream.extend_from_slice(b"RSET\r\n");
            self.pending.push_back(Pending::OurRset);
        }
    }

    pub(super) fn message_transaction(&self) -> Option<&Transaction> {
        match &self.state {
            State::Receiving(receiving) => Some(&receiving.transaction),
            State::Checking(held)
            | State::Offering(Offering { held, .. })
            | State::Sending(Sending { held, .. })
            | State::Answer(held) => Some(&held.transaction),
            State::Commands
            | State::Barrier
            | State::Challenge
            | State::Chunk { .. }
            | State::Deciding
            | State::Tls(_)
            | State::Blind
            | State::Closed => None,
        }
    }

    /// Takes the message out of the state, which becomes [`State::Closed`]; leaves any other.
    fn take_message(&mut self) -> Option<(Transaction, u64)> {
        match std::mem::replace(&mut self.state, State::Closed) {
            State::Receiving(Receiving { transaction, size, .. }) => Some((transaction, size)),
            State::Checking(held)
            | State::Offering(Offering { held, .. })
            | State::Sending(Sending { held, .. })
            | State::Answer(held) => Some((held.transaction, held.size)),
            other => {
                self.state = other;
                None
            }
        }
    }

    fn finished(
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
            code,
        }));
    }
}

impl Receiving {
    /// Why the message, as far as it is here, cannot be taken.
    fn objection(&self, bare_newline: BareNewline, hold_max: u64) -> Option<(Why, Anomaly)> {
        if self.size > hold_max {
            Some((Why::TooLarge, Anomaly::MessageTooLarge))
        } else if self.decoder.look_alike() && bare_newline != BareNewline::Pass {
            Some((Why::LookAlike, Anomaly::EndOfDataLookAlike))
        } else if self.bare.as_ref().is_some_and(BareNewlines::found) {
            Some((Why::BareNewline, Anomaly::BareNewline))
        } else {
            None
        }
    }
}

//! A message that has passed: offered to the server, sent, answered. And the server that is lost.
//!
//! A message that came by DATA goes by DATA, one that came by BDAT as one chunk. Whatever the server
//! answers is the client's final reply; with LMTP (RFC 2033 section 4.2) there is one for each
//! accepted recipient, and each is the client's as soon as it is here.

use crate::smtp::data::END;
use crate::smtp::reply::compose;

use super::hold::Held;
use super::{Anomaly, Finished, Form, Leg, Outcome, Output, Pending, Session, State};

const SERVER_LOST: &str = "Connection to the server lost";

/// The most that a server may say before it has the whole message, in bytes. One reply of a line or
/// two, or with LMTP one for each recipient.
const EARLY_MAX: usize = 64 << 10;

/// A message that has passed; the server is asked when no reply is outstanding.
#[derive(Debug)]
pub(super) struct Offering {
    pub(super) held: Held,
    /// Size in bytes of what is to be sent.
    size: u64,
    pub(super) asked: bool,
}

/// A message that the driver is writing to the server.
#[derive(Debug)]
pub(super) struct Sending {
    pub(super) held: Held,
    early: Early,
}

/// Refusals of the server from before the message was sent.
#[derive(Debug, Default)]
struct Early {
    text: Vec<u8>,
    /// Of the last one.
    code: u16,
    count: u32,
}

/// A message that is sent: the server's final replies are to come.
#[derive(Debug)]
pub(super) struct Answering {
    pub(super) held: Held,
    /// Replies that the client has.
    answered: u32,
    /// How many of them accept the message.
    accepted: u32,
    /// Of the last one.
    code: u16,
}

impl Session {
    /// The message has passed; `size` is that of the treated one, if it is delivered instead.
    pub(super) fn offer_message(&mut self, size: Option<u64>) {
        match std::mem::replace(&mut self.state, State::Closed) {
            State::Checking(held) => {
                let size = size.unwrap_or(held.size);
                self.state = State::Offering(Offering { held, size, asked: false });
                self.proceed();
            }
            other => self.state = other,
        }
    }

    /// DATA for the server, or the message as one chunk: Postfix and Exim take no empty chunk, so
    /// that a last one of its own is no way to end a message.
    pub(super) fn ask_server(&mut self) {
        match std::mem::replace(&mut self.state, State::Closed) {
            State::Offering(Offering { held, size, .. }) if held.form == Form::Chunked => {
                let command = format!("BDAT {size} LAST\r\n");
                self.to_upstream.extend_from_slice(command.as_bytes());
                self.pending.push_back(Pending::Final);
                self.state = State::Sending(Sending { held, early: Early::default() });
                if size == 0 {
                    // The command is all there is: its answer may come at once.
                    self.handle_message_sent();
                } else {
                    self.actions.push_back(Output::SendMessage { end: b"" });
                }
            }
            other => {
                self.state = other;
                self.to_upstream.extend_from_slice(b"DATA\r\n");
                self.pending.push_back(Pending::Offer);
            }
        }
    }

    /// The message and its end are written to the server.
    pub fn handle_message_sent(&mut self) {
        match std::mem::replace(&mut self.state, State::Closed) {
            State::Sending(Sending { held, early }) => {
                let Early { text, code, count } = early;
                if count > 0 && self.client != Leg::Lost {
                    self.to_client.extend_from_slice(&text);
                }
                self.progress(Answering { held, answered: count, accepted: 0, code });
            }
            other => self.state = other,
        }
    }

    /// The server's answer to DATA.
    pub(super) fn offer_reply(&mut self, code: u16, text: &[u8]) {
        match std::mem::replace(&mut self.state, State::Closed) {
            State::Offering(Offering { held, .. }) if code == 354 => {
                self.pending.push_back(Pending::Final);
                self.state = State::Sending(Sending { held, early: Early::default() });
                self.actions.push_back(Output::SendMessage { end: END });
            }
            State::Offering(Offering { held, .. }) if code >= 400 => {
                self.say(text, held.answers);
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

    /// The server's answer to the end of the message, or one of them.
    pub(super) fn final_reply(&mut self, code: u16, text: Vec<u8>) {
        match std::mem::replace(&mut self.state, State::Closed) {
            State::Answer(answering) if (300..400).contains(&code) => {
                self.state = State::Answer(answering);
                self.anomaly(Anomaly::BogusDataReply);
                self.lose(compose(421, "4.5.0", "Unexpected answer of the server"));
            }
            State::Answer(mut answering) => {
                if self.client != Leg::Lost {
                    self.to_client.extend_from_slice(&text);
                }
                answering.answered += 1;
                answering.code = code;
                if code < 300 {
                    answering.accepted += 1;
                    if self.client == Leg::Open {
                        self.unwritten_acceptance = true;
                    }
                }
                self.progress(answering);
            }
            State::Sending(mut sending) => {
                let early = &mut sending.early;
                early.text.extend_from_slice(&text);
                early.code = code;
                early.count += 1;
                let (more, bounded) =
                    (early.count < sending.held.answers, early.text.len() <= EARLY_MAX);
                self.state = State::Sending(sending);
                if code < 400 || !bounded {
                    self.anomaly(Anomaly::EarlyAcceptance);
                    self.lose(compose(421, "4.5.0", "Unexpected answer of the server"));
                } else if more {
                    self.pending.push_front(Pending::Final);
                }
            }
            other => self.state = other,
        }
    }

    /// Waits for the next final reply, or ends the message with the last.
    fn progress(&mut self, answering: Answering) {
        if answering.answered >= answering.held.answers {
            return self.conclude(answering);
        }
        if self.pending.is_empty() {
            self.pending.push_front(Pending::Final);
        }
        self.state = State::Answer(answering);
    }

    /// All final replies are here.
    fn conclude(&mut self, answering: Answering) {
        let Answering { held, accepted, code, .. } = answering;
        if accepted > 0 && self.client != Leg::Open {
            self.anomaly(Anomaly::DoubledMail);
        }
        let delivered =
            if self.per_recipient || accepted == 0 { accepted } else { held.transaction.accepted };
        self.actions.push_back(Output::Finished(Finished {
            sender: held.transaction.sender,
            recipients: held.transaction.accepted,
            size: held.size,
            outcome: if accepted > 0 { Outcome::Delivered } else { Outcome::RefusedByServer },
            delivered,
            code: (self.client != Leg::Lost).then_some(code),
        }));
        match (self.client, self.upstream) {
            (Leg::Open, Leg::Open) => {
                self.state = State::Commands;
                self.proceed();
            }
            _ => self.close(),
        }
    }

    /// The server is lost, or as good as lost, for the message: the client gets `reply`, a 421, for
    /// every answer that it waits for.
    pub(super) fn lose(&mut self, reply: Vec<u8>) {
        let in_data = matches!(self.state, State::Offering(_) | State::Sending(_));
        let sent = matches!(self.state, State::Answer(_));
        let delivered =
            if let State::Answer(answering) = &self.state { answering.accepted } else { 0 };
        let answers = self.answers_due();
        let Some((transaction, size)) = self.take_message() else { return };
        if sent {
            self.anomaly(Anomaly::FinalReplyLost);
        }
        let code = (self.client != Leg::Lost).then_some(421);
        self.actions.push_back(Output::Finished(Finished {
            sender: transaction.sender,
            recipients: transaction.accepted,
            size,
            outcome: Outcome::ServerLost,
            delivered,
            code,
        }));
        self.say(&reply, answers);
        self.state = State::Closed;
        // A message that is under way must not end as if it were complete.
        let close = if in_data || sent { Output::CloseClient } else { Output::Close };
        self.actions.push_back(close);
    }

    /// The upstream leg has come to its end: what that means for a message.
    pub(super) fn upstream_gone(&mut self) {
        match std::mem::replace(&mut self.state, State::Closed) {
            // The server did not want to hear the rest.
            State::Sending(Sending { held, early }) if early.count >= held.answers => {
                self.state = State::Sending(Sending { held, early });
                self.handle_message_sent();
            }
            other => {
                self.state = other;
                if self.has_message() {
                    self.server_leaves(compose(421, "4.4.2", SERVER_LOST));
                }
            }
        }
    }

    /// How many replies to the message the client waits for.
    pub(super) fn answers_due(&self) -> u32 {
        match &self.state {
            State::Checking(held) | State::Offering(Offering { held, .. }) => held.answers,
            State::Sending(Sending { held, .. }) => held.answers,
            State::Answer(Answering { held, answered, .. }) => held.answers - answered,
            State::Commands
            | State::Barrier
            | State::Challenge
            | State::Chunk(_)
            | State::Deciding(_)
            | State::Receiving(_)
            | State::Between(_)
            | State::Tls(_)
            | State::Securing
            | State::Blind
            | State::Closed => 1,
        }
    }

    /// Says the same to the client for every answer that it waits for.
    pub(super) fn say(&mut self, reply: &[u8], times: u32) {
        for _ in 0..times {
            self.to_client.extend_from_slice(reply);
        }
    }
}

//! The server's half of the machine: replies, in the order of the commands, and its end.

use std::time::Instant;

use crate::line::Line;
use crate::smtp::data::END;
use crate::smtp::reply::{EhloFilter, Offer, ReplyLine, compose};

use super::{Ahead, Anomaly, Leg, Output, Pending, Session, StartTls, State, Transaction};

/// The longest reply that is not relayed line by line, in bytes: an EHLO answer, a final reply.
const HELD_REPLY_MAX: usize = 16 << 10;

impl Session {
    /// Takes bytes of the server, all of them.
    pub fn handle_upstream(&mut self, now: Instant, bytes: &[u8]) {
        match self.state {
            State::Tls(_) => return self.upstream_tls(bytes),
            State::Securing | State::Blind | State::Closed => return,
            // Answers to NOOPs do not excuse a silent client.
            State::Receiving(_) | State::Between(_) => {}
            State::Commands
            | State::Barrier
            | State::Challenge
            | State::Chunk(_)
            | State::Deciding(_)
            | State::Checking(_)
            | State::Offering(_)
            | State::Sending(_)
            | State::Answer(_) => self.activity = now,
        }
        self.upstream_lines.push(bytes);
        while !matches!(self.state, State::Tls(_) | State::Securing | State::Closed) {
            match self.upstream_lines.next_line() {
                Ok(Some(line)) => self.reply_line(&line),
                Ok(None) => return,
                Err(_) => {
                    self.anomaly(Anomaly::ReplyTooLong);
                    return self.reset_with_message();
                }
            }
        }
        let rest = self.upstream_lines.take_rest();
        if !rest.is_empty() && matches!(self.state, State::Tls(_) | State::Securing) {
            self.anomaly(Anomaly::PlaintextBehindStartTls);
            self.reset();
        }
    }

    /// The server has closed its sending side; all that it sent was given.
    pub fn handle_upstream_eof(&mut self) {
        if self.upstream != Leg::Open {
            return;
        }
        self.upstream = Leg::Ended;
        self.upstream_gone();
        match self.state {
            State::Commands
            | State::Barrier
            | State::Challenge
            | State::Chunk(_)
            | State::Deciding(_)
            | State::Tls(_)
            | State::Securing => {
                let rest = self.upstream_lines.take_rest();
                self.to_client.extend_from_slice(&rest);
                self.close();
            }
            State::Receiving(_)
            | State::Between(_)
            | State::Checking(_)
            | State::Offering(_)
            | State::Sending(_)
            | State::Answer(_)
            | State::Blind
            | State::Closed => {}
        }
    }

    /// The server's leg is gone: reset, or a write failed. What it sent before should have been
    /// given.
    pub fn handle_upstream_lost(&mut self) {
        if self.upstream == Leg::Lost {
            return;
        }
        self.upstream = Leg::Lost;
        self.upstream_gone();
        match self.state {
            State::Commands
            | State::Barrier
            | State::Challenge
            | State::Chunk(_)
            | State::Deciding(_)
            | State::Tls(_)
            | State::Securing => self.reset(),
            State::Receiving(_)
            | State::Between(_)
            | State::Checking(_)
            | State::Offering(_)
            | State::Sending(_)
            | State::Answer(_)
            | State::Blind
            | State::Closed => {}
        }
    }

    fn reply_line(&mut self, line: &Line) {
        let parsed = ReplyLine::parse(line.content());
        match parsed {
            None => self.anomaly_once(Anomaly::MalformedReply),
            Some(ReplyLine { code: 354, .. })
                if !matches!(self.pending.front(), Some(Pending::Offer | Pending::NoData)) =>
            {
                self.anomaly(Anomaly::UnexpectedGoAhead);
                return self.reset_with_message();
            }
            Some(_) => {}
        }
        if !self.holds_reply() {
            self.to_client.extend_from_slice(line.raw());
        } else if self.held_reply.len() + line.raw().len() <= HELD_REPLY_MAX {
            self.held_reply.extend_from_slice(line.raw());
        } else {
            self.anomaly(Anomaly::ReplyTooLong);
            return self.reset_with_message();
        }
        if let Some(ReplyLine { code, more: false }) = parsed {
            let text = std::mem::take(&mut self.held_reply);
            self.replied(code, text);
        }
    }

    /// Acts on a complete reply, and on what waited for it; `text` is empty if the client has it already.
    pub(super) fn replied(&mut self, code: u16, text: Vec<u8>) {
        self.reply(code, text);
        self.after_reply();
    }

    /// Whether the reply that is being read is looked at before the client gets it.
    fn holds_reply(&self) -> bool {
        match self.pending.front() {
            Some(
                Pending::Ehlo { .. }
                | Pending::NoData
                | Pending::LoneDot
                | Pending::Offer
                | Pending::Final
                | Pending::Ours
                | Pending::OurRset
                | Pending::OurEhlo,
            ) => true,
            Some(
                Pending::Greeting
                | Pending::Helo
                | Pending::Mail { .. }
                | Pending::Rcpt { .. }
                | Pending::Rset
                | Pending::Plain
                | Pending::Opaque
                | Pending::StartTls
                | Pending::Answer(_),
            ) => false,
            None => self.has_message(),
        }
    }

    fn reply(&mut self, code: u16, text: Vec<u8>) {
        let positive = (200..300).contains(&code);
        match self.pending.pop_front() {
            Some(Pending::Greeting | Pending::Plain) => {}
            Some(Pending::Answer(reply)) => self.to_client.extend_from_slice(&reply),
            Some(Pending::Ehlo { lmtp }) if positive => {
                let filter = EhloFilter {
                    hide_tls: self.config.starttls == StartTls::Strip || self.secured.is_some(),
                    add_tls: matches!(self.config.starttls, StartTls::Open { always: true, .. })
                        && self.secured.is_none(),
                    two_sessions: self.secured.is_some(),
                    hide_require_tls: self.secured.is_some_and(|it| !it.trusted),
                    hide: &self.config.hide_extensions,
                    max_size: self.config.hold_max,
                };
                let reply = filter.apply(&text);
                // Its limit is the server's own; CHUNKING may be hidden.
                let theirs = Offer::parse(&text);
                self.offer =
                    Offer { size: theirs.size, starttls: theirs.starttls, ..Offer::parse(&reply) };
                self.greeted = true;
                self.per_recipient = lmtp;
                self.to_client.extend_from_slice(&reply);
                self.transaction = None;
            }
            Some(Pending::Ehlo { .. }) => self.to_client.extend_from_slice(&text),
            Some(Pending::Helo) if positive => {
                self.offer = Offer::default();
                self.per_recipient = false;
                self.transaction = None;
            }
            Some(Pending::Rset) if positive => self.transaction = None,
            Some(Pending::Helo | Pending::Rset) => {}
            Some(Pending::Mail { sender }) if positive => {
                self.actions.push_back(Output::Sender(sender.clone()));
                self.transaction = Some(Transaction { sender, ..Transaction::default() });
            }
            Some(Pending::Mail { .. }) => {}
            Some(Pending::Rcpt { recipient }) => {
                if let Some(transaction) = self.transaction.as_mut().filter(|_| positive) {
                    transaction.add(recipient);
                }
            }
            Some(Pending::Opaque) => {
                self.access.authenticated |= code == 235;
                // XCLIENT (Postfix' XCLIENT_README): the server greets anew, whoever it was before.
                if code == 220 {
                    self.access.authenticated = false;
                    self.offer = Offer::default();
                    self.per_recipient = false;
                    self.transaction = None;
                }
                self.after_barrier(if code == 334 { State::Challenge } else { State::Commands });
            }
            Some(Pending::StartTls) if code == 220 => self.start_tls(),
            Some(Pending::StartTls) => self.after_barrier(State::Commands),
            Some(Pending::NoData) if code == 354 => {
                self.to_upstream.extend_from_slice(END);
                self.pending.push_back(Pending::LoneDot);
            }
            Some(Pending::NoData | Pending::LoneDot) => {
                self.no_recipients_reply(code, &text);
                self.after_barrier(State::Commands);
            }
            Some(Pending::Offer) => self.offer_reply(code, &text),
            Some(Pending::Final) => self.final_reply(code, text),
            Some(Pending::Ours | Pending::OurRset | Pending::OurEhlo) if code == 421 => {
                self.unsolicited(code, text);
            }
            // What was pipelined behind it may have begun the next transaction.
            Some(Pending::OurRset) => {
                let idle = self.pending.iter().all(|it| matches!(it, Pending::Answer(_)));
                self.ahead = (positive && idle).then(|| Box::new(Ahead::Rset(text)));
            }
            Some(Pending::OurEhlo) => self.ahead = Some(Box::new(Ahead::Ehlo(code, text))),
            Some(Pending::Ours) => {}
            None => self.unsolicited(code, text),
        }
    }

    /// A reply to DATA that had no recipients, or to the lone dot that had to end it. Nothing was
    /// accepted, whatever the server says.
    fn no_recipients_reply(&mut self, code: u16, text: &[u8]) {
        if code < 400 {
            self.anomaly_once(Anomaly::BogusDataReply);
            self.to_client.extend_from_slice(&compose(554, "5.5.1", "No valid recipients"));
        } else {
            self.to_client.extend_from_slice(text);
        }
    }

    fn after_barrier(&mut self, next: State) {
        if matches!(self.state, State::Barrier) {
            self.state = next;
        }
    }

    fn after_reply(&mut self) {
        while let Some(Pending::Answer(_)) = self.pending.front() {
            if let Some(Pending::Answer(reply)) = self.pending.pop_front() {
                self.to_client.extend_from_slice(&reply);
            }
        }
        self.secure_alone();
        self.proceed();
    }

    /// A reply that answers no command of the client's; 421 may come at any time (RFC 5321 section
    /// 3.8).
    fn unsolicited(&mut self, code: u16, text: Vec<u8>) {
        if code != 421 {
            return self.anomaly_once(Anomaly::UnsolicitedReply);
        }
        if self.has_message() {
            self.server_leaves(text);
        } else {
            self.to_client.extend_from_slice(&text);
        }
    }
}

//! The client's half of the machine: commands, SASL responses, and its end.

use std::time::Instant;

use crate::line::{Ending, Line};
use crate::smtp::command::{Command, Verb};
use crate::smtp::reply::compose;

use super::{
    Ahead, Anomaly, Asked, Leg, Message, Output, PATH_MAX, Pending, Server, Session, StartTls,
    State, Taken,
};

/// The longest command line but AUTH in bytes. RFC 5321 section 4.5.3.1.4 says 512, extensions add
/// to it. As in other servers (Postfix, sendmail): what one of them cut off here could be a command.
const COMMAND_MAX: usize = 2048;

/// Commands that may wait for their replies; then the client has to wait. Bounds the queue.
const PENDING_MAX: usize = 256;

/// Lines that are refused by vscan itself before it hangs up: a client that sends garbage.
const ERRORS_MAX: u8 = 20;

/// The text of a 220 to STARTTLS that is vscan's own.
const READY: &str = "Ready to start TLS";

/// Recipients of an LMTP message, each of which has a reply of its own: bounds what a message is
/// answered. Four times what RFC 5321 section 4.5.3.1.8 asks of a server.
const LMTP_RECIPIENTS_MAX: u32 = 400;

impl Session {
    /// Takes bytes of the client, as many as can be used now.
    ///
    /// It stops behind each piece of a message, too: store the piece, call
    /// [`poll_output`](Self::poll_output) until it is empty, and give what is left again while
    /// [`wants_client`](Self::wants_client) holds.
    pub fn handle_client<'a>(&mut self, now: Instant, input: &'a [u8]) -> Taken<'a> {
        self.activity = now;
        let mut consumed = 0;
        while consumed < input.len() {
            let rest = &input[consumed..];
            let stalled = self.is_stalled();
            match &mut self.state {
                State::Commands | State::Challenge if !stalled => {
                    consumed += self.client_bytes(rest);
                }
                State::Between(between) if !stalled && between.next.is_none() => {
                    consumed += self.client_bytes(rest);
                }
                State::Chunk(_) => consumed += self.unwanted_bytes(rest),
                State::Receiving(_) => {
                    let (used, message) = self.message_bytes(rest);
                    return Taken { consumed: consumed + used, message };
                }
                State::Tls(_) => {
                    self.client_tls(rest);
                    consumed = input.len();
                }
                State::Closed => consumed = input.len(),
                State::Commands
                | State::Challenge
                | State::Barrier
                | State::Between(_)
                | State::Deciding(_)
                | State::Checking(_)
                | State::Offering(_)
                | State::Sending(_)
                | State::Answer(_)
                | State::Securing
                | State::Blind => break,
            }
        }
        Taken { consumed, message: Message::default() }
    }

    /// The client has closed its sending side; all that it sent was consumed.
    ///
    /// While a message is being inspected or offered this means that the client has given up (one
    /// that only ends its side early has sent QUIT before, which then is not consumed yet): the
    /// message is dropped before the server has it.
    pub fn handle_client_eof(&mut self) {
        if self.client != Leg::Open {
            return;
        }
        self.client = Leg::Ended;
        match self.state {
            State::Commands
            | State::Barrier
            | State::Challenge
            | State::Chunk(_)
            | State::Deciding(_) => {
                self.state = State::Commands;
                self.actions.push_back(Output::ShutdownUpstream);
            }
            State::Receiving(_) | State::Between(_) => {
                self.anomaly(Anomaly::ClientGoneInMessage);
                self.give_up_message(None);
                self.end_after_client();
            }
            State::Checking(_) => {
                self.give_up_message(None);
                self.end_after_client();
            }
            State::Offering(_) | State::Sending(_) => {
                self.give_up_message(None);
                self.reset();
            }
            // The server's word is wanted still, for the count of doubled mails.
            State::Answer(_) => {}
            State::Tls(_) | State::Securing => self.reset(),
            State::Blind | State::Closed => {}
        }
    }

    /// The client's leg is gone: reset, or a write failed.
    pub fn handle_client_lost(&mut self) {
        if self.client == Leg::Lost {
            return;
        }
        self.client = Leg::Lost;
        if std::mem::take(&mut self.unwritten_acceptance) {
            self.anomaly(Anomaly::DoubledMail);
        }
        match self.state {
            State::Answer(_) | State::Blind | State::Closed => {}
            State::Receiving(_) | State::Between(_) => {
                self.anomaly(Anomaly::ClientGoneInMessage);
                self.give_up_message(None);
                self.reset();
            }
            State::Checking(_) | State::Offering(_) | State::Sending(_) => {
                self.give_up_message(None);
                self.reset();
            }
            State::Commands
            | State::Barrier
            | State::Challenge
            | State::Chunk(_)
            | State::Deciding(_)
            | State::Tls(_)
            | State::Securing => self.reset(),
        }
    }

    /// The client is gone and its message with it: what is left is to end the upstream leg, as the
    /// client did its own.
    fn end_after_client(&mut self) {
        if self.upstream == Leg::Open {
            self.state = State::Commands;
            self.actions.push_back(Output::ShutdownUpstream);
        } else {
            self.close();
        }
    }

    /// Whether commands have to wait: too many are under way, or one of vscan's own, behind which
    /// nothing may be pipelined (RFC 2920 section 3.1; the server may not know PIPELINING).
    pub(super) fn is_stalled(&self) -> bool {
        self.pending.len() >= PENDING_MAX || self.pending.back().is_some_and(Pending::is_ours)
    }

    /// Takes one line, or what there is of it.
    fn client_bytes(&mut self, bytes: &[u8]) -> usize {
        let used = memchr::memchr(b'\n', bytes).map_or(bytes.len(), |lf| lf + 1);
        self.client_lines.push(&bytes[..used]);
        match self.client_lines.next_line() {
            Ok(Some(line)) => self.client_line(&line),
            Ok(None) => {}
            Err(_) => {
                self.anomaly(Anomaly::CommandTooLong);
                self.close_with(compose(421, "4.7.0", "Line too long"));
            }
        }
        used
    }

    fn client_line(&mut self, line: &Line) {
        if self.pending.front() == Some(&Pending::Greeting) {
            // Relayed all the same, at once: servers have tests of their own for this (Postfix'
            // postscreen, Exim's pregreeting check), which must see what the client does.
            self.anomaly_once(Anomaly::EarlyTalker);
        }
        if line.ending() == Ending::Lf || line.has_bare_cr() {
            self.anomaly_once(Anomaly::BareNewlineInCommand);
            return self.refuse_line("5.5.2", "Lines must end with CR LF");
        }
        if matches!(self.state, State::Challenge) {
            return self.forward(line, Pending::Opaque, State::Barrier);
        }
        let command = Command::parse(line.content());
        if line.raw().len() > COMMAND_MAX && command.verb != Verb::Auth {
            self.anomaly_once(Anomaly::CommandTooLong);
            return self.refuse_line("5.5.2", "Line too long");
        }
        if matches!(self.state, State::Between(_)) {
            return self.between_chunks(line, command);
        }
        self.command(line, command);
    }

    /// A command outside of a message.
    pub(super) fn command(&mut self, line: &Line, command: Command<'_>) {
        if self.denies(&command, line.content()) {
            return;
        }
        match command.verb {
            Verb::Ehlo => self.ehlo(line, false),
            Verb::Lhlo if self.config.lmtp => self.ehlo(line, true),
            Verb::Helo => self.forward(line, Pending::Helo, State::Commands),
            Verb::Mail => match command.size() {
                Some(size) if size > self.config.hold_max => {
                    self.answer(compose(552, "5.3.4", "Message size exceeds fixed limit"));
                }
                _ => {
                    let sender = command.path().filter(|path| path.len() <= PATH_MAX);
                    let sender = sender.unwrap_or_default().into();
                    self.forward(line, Pending::Mail { sender }, State::Commands);
                }
            },
            Verb::Rcpt if self.has_too_many_recipients() => {
                self.answer(compose(452, "4.5.3", "Too many recipients"));
            }
            Verb::Rcpt => {
                let recipient = command.path().filter(|path| path.len() <= PATH_MAX);
                // Without a name it still counts: no rule for somebody else may speak for it.
                let recipient = recipient.unwrap_or_default().to_vec();
                self.forward(line, Pending::Rcpt { recipient }, State::Commands);
            }
            Verb::Rset => match self.ahead.take().map(|ahead| *ahead) {
                Some(Ahead::Rset(reply)) => self.answer(reply),
                Some(Ahead::Ehlo(..)) | None => self.forward(line, Pending::Rset, State::Commands),
            },
            Verb::Plain | Verb::Quit => self.forward(line, Pending::Plain, State::Commands),
            Verb::Data if command.argument.is_empty() => {
                self.state = State::Deciding(Asked::Data);
                self.proceed();
            }
            Verb::Data => self.answer(compose(501, "5.5.4", "DATA takes no parameter")),
            Verb::Bdat => self.bdat(command.chunk()),
            Verb::Other if Command::is_inexact(line.content()) => {
                self.anomaly_once(Anomaly::InexactCommand);
                self.refuse_line("5.5.2", "Command not recognized");
            }
            Verb::Auth | Verb::Other => self.forward(line, Pending::Opaque, State::Barrier),
            Verb::StartTls if self.secured.is_some() => {
                self.answer(compose(503, "5.5.1", "TLS is in use already"));
            }
            Verb::StartTls => match self.config.starttls {
                StartTls::Open { always: true, .. } if self.greeted && !self.offer.starttls => {
                    self.answer(compose(220, "2.0.0", READY));
                    self.state = State::Barrier;
                    self.securing_alone = true;
                    self.secure_alone();
                }
                StartTls::Open { at_once: true, .. } if self.may_secure_at_once(line) => {
                    self.to_upstream.extend_from_slice(line.raw());
                    self.to_client.extend_from_slice(&compose(220, "2.0.0", READY));
                    self.secure(Server::Asked);
                }
                StartTls::Pass | StartTls::Open { .. } => {
                    self.forward(line, Pending::StartTls, State::Barrier)
                }
                StartTls::Refuse => self.answer(compose(454, "4.7.0", "TLS is not available here")),
                StartTls::Strip => self.answer(compose(502, "5.5.1", "Command not implemented")),
            },
            Verb::Forbidden | Verb::Lhlo => {
                self.anomaly_once(Anomaly::ForbiddenCommand);
                self.answer(compose(502, "5.5.1", "Command not available through this gateway"));
            }
        }
    }

    /// EHLO, or LHLO.
    fn ehlo(&mut self, line: &Line, lmtp: bool) {
        if let Some(Ahead::Ehlo(code, text)) = self.ahead.take().map(|ahead| *ahead)
            && line.raw()[..] == self.hello[..]
        {
            self.pending.push_back(Pending::Ehlo { lmtp });
            return self.replied(code, text);
        }
        self.remember(line);
        self.forward(line, Pending::Ehlo { lmtp }, State::Commands);
    }

    fn has_too_many_recipients(&self) -> bool {
        let transaction = self.transaction.as_ref();
        self.per_recipient && transaction.is_some_and(|it| it.accepted >= LMTP_RECIPIENTS_MAX)
    }

    fn forward(&mut self, line: &Line, pending: Pending, next: State) {
        self.relay(line, pending);
        self.state = next;
    }

    /// Gives a command to the server, as it came.
    pub(super) fn relay(&mut self, line: &Line, pending: Pending) {
        self.ahead = None;
        self.to_upstream.extend_from_slice(line.raw());
        self.pending.push_back(pending);
    }

    /// Answers the client, behind the replies that it still waits for.
    pub(super) fn answer(&mut self, reply: Vec<u8>) {
        if self.pending.iter().all(Pending::is_ours) {
            self.to_client.extend_from_slice(&reply);
        } else {
            self.pending.push_back(Pending::Answer(reply));
        }
    }

    fn refuse_line(&mut self, enhanced: &str, text: &str) {
        self.errors += 1;
        // A server that waits for a SASL response would take the next command for it.
        if self.errors > ERRORS_MAX || matches!(self.state, State::Challenge) {
            self.anomaly(Anomaly::TooManyErrors);
            return self.close_with(compose(421, "4.7.0", "Too many errors"));
        }
        self.answer(compose(500, enhanced, text));
    }
}

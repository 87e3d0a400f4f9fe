//! The session machine: one SMTP dialogue over its two legs.
//!
//! Bytes of either leg, rulings, progress of writes and the time go in by `handle_*`; what the
//! driver has to do comes out of [`Session::poll_output`]. The machine relays commands and replies
//! as they came, keeps back a message until it is ruled on, and gives it to the server only then:
//! the server never sees DATA for a message that is refused.
//!
//! Here: the interface, the states and the clock. `client`: commands. `upstream`: replies.
//! `hold`: a message until it is ruled on, `chunks`: what is different where it comes by BDAT,
//! `answer`: its way to the server and the server's answer. `tls`: the way into the blind relay.

mod anomaly;
mod answer;
mod chunks;
mod client;
mod hold;
mod permit;
mod tls;
mod upstream;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::line::LineSplitter;

use super::command::Chunk;
use super::reply::{Offer, compose};
use answer::{Answering, Offering, Sending};
use chunks::{Between, Unwanted};
use hold::{Held, Receiving};
use permit::Access;
use tls::Opening;

pub use anomaly::Anomaly;
pub use permit::Permit;

/// The longest client line in bytes: that of a SASL response, RFC 4954 section 4.
const CLIENT_LINE_MAX: usize = 12288;

/// The longest reply line in bytes. RFC 5321 section 4.5.3.1.5 says 512; servers write more.
const REPLY_LINE_MAX: usize = 8192;

/// Accepted recipients whose addresses are kept; beyond it they are counted. Ten times what RFC
/// 5321 section 4.5.3.1.8 asks of a server.
const RECIPIENTS_KEPT: usize = 1000;

/// The longest address that is kept in bytes, RFC 5321 section 4.5.3.1.3.
const PATH_MAX: usize = 256;

/// What a session does, from the configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// What becomes of STARTTLS.
    pub starttls: StartTls,
    /// TLS is there since the first byte, on the client's leg at least: the driver has opened it.
    pub secured: Option<Secured>,
    /// What becomes of a message with bare CR or LF in it.
    pub bare_newline: BareNewline,
    /// Which sender may write to which recipient; none: the server alone decides.
    pub permit: Option<Arc<dyn Permit>>,
    /// Whether the server speaks LMTP (RFC 2033).
    pub lmtp: bool,
    /// What is taken out of the EHLO answer, besides [`super::reply::HIDDEN_EXTENSIONS`]: keywords.
    pub hide_extensions: Vec<String>,
    /// The largest message that is held, in bytes on the wire.
    pub hold_max: u64,
    /// How often a waiting server gets a NOOP. Under the 5 minutes of RFC 5321 section 4.5.3.2.7,
    /// but no oftener than that asks for: a server hangs up after so many in a session (Exim:
    /// `smtp_accept_max_nonmail` 10, Postfix: `smtpd_junk_command_limit` 100), and the message of
    /// a slow client would never arrive.
    pub keepalive: Duration,
    /// How long both legs may be silent.
    pub idle_timeout: Duration,
    /// From the end of the message to its ruling. So much under `answer_timeout` that a server has
    /// time to answer: what it accepts too late comes twice.
    pub ruling_timeout: Duration,
    /// From the end of the message to the final reply. Under the 10 minutes that RFC 5321 section
    /// 4.5.3.2.6 gives a client to wait.
    pub answer_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            starttls: StartTls::Pass,
            secured: None,
            bare_newline: BareNewline::LookAlikes,
            permit: None,
            lmtp: false,
            hide_extensions: Vec::new(),
            hold_max: 64 << 20,
            keepalive: Duration::from_secs(240),
            idle_timeout: Duration::from_secs(600),
            ruling_timeout: Duration::from_secs(300),
            answer_timeout: Duration::from_secs(570),
        }
    }
}

/// What becomes of STARTTLS (RFC 3207).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartTls {
    /// Relayed; then the session is a blind relay.
    Pass,
    /// Relayed; then the driver opens it on both legs, and the session goes on inside.
    Open {
        /// Announced also where the server does not; then it is opened on the client's leg alone.
        always: bool,
        /// The client has its 220 from vscan while the server is asked, where that has announced it: its first message is
        /// here when the server's 220 is.
        at_once: bool,
    },
    /// Announced as the server does, but answered 454 (RFC 3207 section 4): the client decides
    /// whether it goes on without TLS.
    Refuse,
    /// Not announced; the command is answered 502, as by a server that does not know it.
    Strip,
}

/// How far the server is as the handshakes begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Server {
    /// It has agreed.
    Agreed,
    /// It was sent STARTTLS. Its answer is the driver's to read: it may be a refusal.
    Asked,
    /// It does not take part.
    Absent,
}

/// What the driver has made of STARTTLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Secured {
    /// The server's certificate is believed.
    pub trusted: bool,
    /// The server was sent [`Session::hello`] inside of TLS already, before the client's handshake was over: nearly every
    /// client says the same once more (RFC 3207 section 4.2), and finds the answer here.
    pub greeted: bool,
}

/// What becomes of a message with CR or LF outside of CRLF.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BareNewline {
    /// Nothing: the server gets it as it is.
    Pass,
    /// Refused if it could be taken for the end of the message.
    LookAlikes,
    /// Refused.
    Refuse,
}

/// What the driver has to do. Bytes for a leg come before anything else, so that they are written
/// before a leg is shut or a message sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Write to the client, then call [`Session::handle_client_written`].
    ToClient(Vec<u8>),
    /// Write to the server.
    ToUpstream(Vec<u8>),
    /// A sender was accepted by the server: the address as on the wire, empty for `<>`.
    Sender(Box<[u8]>),
    /// The access rules refused a MAIL or RCPT.
    Denied {
        /// The recipient, not the sender.
        recipient: bool,
        /// The address as on the wire, shortened.
        address: Box<[u8]>,
        /// Whether it is one of the session's first.
        tell: bool,
    },
    /// The message is complete: have it inspected and call [`Session::handle_ruling`].
    Inspect(Form),
    /// Write the message as it was handed out, or the one that [`Ruling::Deliver`] was about, to the
    /// server, then call [`Session::handle_message_sent`]. Go on reading from the server meanwhile.
    SendMessage {
        /// What follows the message: [`super::data::END`], or nothing behind BDAT.
        end: &'static [u8],
    },
    /// What was stored of the message is not needed any more; no more of it will come.
    Discard,
    /// A message has come to its end, whichever. What was stored of it is not needed any more.
    Finished(Finished),
    /// Something odd was seen.
    Anomaly(Anomaly),
    /// The client has its 220 to STARTTLS: make the handshakes, then call [`Session::handle_secured`], or drop the session.
    /// Write what is to be written before, and read nothing meanwhile. What the client has said behind STARTTLS already
    /// was not encrypted: see [`Session::handle_injection`].
    Secure(Server),
    /// From here on relay bytes blindly, both ways, to the end. The last output.
    Blind,
    /// Shut the sending side of the upstream leg: the client has nothing more to say.
    ShutdownUpstream,
    /// Close both legs gracefully. The last output.
    Close,
    /// Close the client's leg gracefully and reset the server's. The last output.
    CloseClient,
    /// Reset both legs. The last output.
    Reset,
}

/// What the bytes that were handed out are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// The message, up to the CRLF before the final dot.
    Plain,
    /// The same, with dots stuffed (RFC 5321 section 4.5.2): the message is what they are unstuffed.
    Stuffed,
    /// The message, by BDAT: any bytes.
    Chunked,
}

/// Whose message it is, and for whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Envelope<'a> {
    /// The sender as on the wire, without angle brackets.
    pub sender: &'a [u8],
    /// The recipients that the server accepted; the first 1000 of them. If there are more, or some
    /// whose address cannot be told from the command, the last one is empty.
    pub recipients: &'a [Vec<u8>],
    /// How many the server accepted.
    pub accepted: u32,
}

/// A message that has come to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    /// The sender as on the wire, without angle brackets.
    pub sender: Box<[u8]>,
    /// Recipients that the server accepted.
    pub recipients: u32,
    /// Size in bytes on the wire, without the final dot.
    pub size: u64,
    /// What became of it.
    pub outcome: Outcome,
    /// Recipients for whom the server accepted it. With LMTP (RFC 2033) each has its own answer, and
    /// [`Outcome::Delivered`] means at least one.
    pub delivered: u32,
    /// The final reply's code as the client got it; none if there was nobody to give it to.
    pub code: Option<u16>,
}

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The server accepted it.
    Delivered,
    /// The server refused it, at DATA or at the end.
    RefusedByServer,
    /// Blocked by its ruling.
    Blocked,
    /// It could not be inspected.
    Failed,
    /// The client has sent too much.
    TooMuch,
    /// Larger than `hold_max`.
    TooLarge,
    /// It holds a look-alike of the end of data, or a bare newline.
    BareNewline,
    /// There was no room to hold it.
    NoRoom,
    /// The server was lost before its final reply, or gave none in time.
    ServerLost,
    /// The client was lost before the message was given to the server.
    ClientLost,
    /// The client took it back between two chunks, by RSET for instance.
    Abandoned,
}

impl Outcome {
    /// Its name in events, snake_case.
    pub fn name(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::RefusedByServer => "refused_by_server",
            Self::Blocked => "blocked",
            Self::Failed => "failed",
            Self::TooMuch => "too_much",
            Self::TooLarge => "too_large",
            Self::BareNewline => "bare_newline",
            Self::NoRoom => "no_room",
            Self::ServerLost => "server_lost",
            Self::ClientLost => "client_lost",
            Self::Abandoned => "abandoned",
        }
    }
}

/// What is to be done with a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ruling {
    /// Give it to the server.
    Pass,
    /// Give another one to the server in its place: treated, inspected, in the same form on the
    /// wire.
    Deliver {
        /// Its size in bytes on the wire, without the final dot.
        size: u64,
    },
    /// 421, and the session ends: the client has sent too much.
    TooMuch,
    /// 550: a detection, by name.
    Infected {
        /// The detection.
        name: String,
    },
    /// 550: not read whole.
    Unscannable {
        /// Why, in words.
        reason: String,
    },
    /// 451, or 554 if it is of no use to try again: the scanner failed.
    Failed {
        /// Whether trying again is of no use.
        permanent: bool,
    },
}

/// Bytes of a message, as on the wire between DATA and the final dot, or of a BDAT chunk. Two pieces, one of them
/// mostly empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Message<'a> {
    /// Comes first: a dot, or a dot and CR, that had to be held back.
    pub carry: &'static [u8],
    /// A slice of the input.
    pub body: &'a [u8],
}

impl Message<'_> {
    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.carry.is_empty() && self.body.is_empty()
    }
}

/// What [`Session::handle_client`] did with its input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken<'a> {
    /// Bytes that were used. The others are given again when [`Session::wants_client`] says so.
    pub consumed: usize,
    /// Bytes for the spool, to be stored before the next output is polled.
    pub message: Message<'a>,
}

/// One SMTP session.
#[derive(Debug)]
pub struct Session {
    config: Arc<Config>,
    state: State,
    client: Leg,
    upstream: Leg,
    client_lines: LineSplitter,
    upstream_lines: LineSplitter,
    to_client: Vec<u8>,
    to_upstream: Vec<u8>,
    /// What the next replies answer, in order.
    pending: VecDeque<Pending>,
    /// Lines of the reply that is being read, if it is not relayed at once.
    held_reply: Vec<u8>,
    /// The server's transaction.
    transaction: Option<Transaction>,
    actions: VecDeque<Output>,
    /// What the server has answered to a command of vscan's that clients often give next, until their next one. Boxed: most
    /// sessions have none most of the time.
    ahead: Option<Box<Ahead>>,
    /// Anomalies that are reported once only, by bit.
    noted: u32,
    access: Access,
    /// What the server has offered.
    offer: Offer,
    /// The server has answered EHLO, so that its offer is known.
    greeted: bool,
    /// The client has TLS, which the driver has opened.
    secured: Option<Secured>,
    /// The client gets its 220 to STARTTLS from vscan, behind the replies that are outstanding.
    securing_alone: bool,
    /// The client's last EHLO line before STARTTLS: the server may be greeted with it by vscan.
    hello: Box<[u8]>,
    /// The server has accepted LHLO: a message has as many final replies as recipients.
    per_recipient: bool,
    /// Lines refused so far.
    errors: u8,
    /// An acceptance was given out that is not written to the client yet.
    unwritten_acceptance: bool,
    draining: bool,
    /// When a leg last said something.
    activity: Instant,
}

/// How far a leg is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leg {
    Open,
    /// The peer sends no more.
    Ended,
    /// Reset, or a write failed.
    Lost,
}

/// What the client's next bytes are.
#[derive(Debug)]
enum State {
    /// Commands.
    Commands,
    /// Not to be read before the reply to the last command is here.
    Barrier,
    /// A SASL response, which is no command (RFC 4954 section 4).
    Challenge,
    /// Bytes of a BDAT chunk that is refused.
    Chunk(Unwanted),
    /// DATA or BDAT was read; replies to earlier commands are outstanding.
    Deciding(Asked),
    /// A message, or a chunk of it.
    Receiving(Receiving),
    /// Commands, with a part of a message in hand.
    Between(Between),
    /// Not to be read: the message is being inspected.
    Checking(Held),
    /// Not to be read: DATA goes to the server.
    Offering(Offering),
    /// Not to be read: the driver writes the message to the server.
    Sending(Sending),
    /// Not to be read: the server's final reply is to come.
    Answer(Answering),
    /// TLS, which has to show itself.
    Tls(Opening),
    /// Not to be read: the driver makes the handshakes.
    Securing,
    /// The driver's.
    Blind,
    /// Of no interest.
    Closed,
}

/// How a client wants to give a message.
#[derive(Debug, Clone, Copy)]
enum Asked {
    Data,
    Chunk(Chunk),
}

/// The MAIL transaction that the server is in.
#[derive(Debug, Default)]
struct Transaction {
    sender: Box<[u8]>,
    /// The first [`RECIPIENTS_KEPT`] that were accepted, and an empty one for all that are not
    /// named.
    recipients: Vec<Vec<u8>>,
    accepted: u32,
}

impl Transaction {
    /// The server has accepted a recipient; empty if its address is not known.
    fn add(&mut self, recipient: Vec<u8>) {
        self.accepted = self.accepted.saturating_add(1);
        let unnamed = self.recipients.last().is_some_and(Vec::is_empty);
        let named = self.recipients.len() - usize::from(unnamed);
        if !recipient.is_empty() && named < RECIPIENTS_KEPT {
            self.recipients.insert(named, recipient);
        } else if !unnamed {
            self.recipients.push(Vec::new());
        }
    }
}

/// A command whose reply is to come, or a reply of vscan's own that waits for its turn.
#[derive(Debug, PartialEq, Eq)]
enum Pending {
    Greeting,
    Ehlo {
        /// LHLO.
        lmtp: bool,
    },
    Helo,
    Mail {
        sender: Box<[u8]>,
    },
    Rcpt {
        recipient: Vec<u8>,
    },
    Rset,
    Plain,
    /// AUTH and SASL responses, and commands that vscan does not know.
    Opaque,
    StartTls,
    /// DATA without accepted recipients.
    NoData,
    /// The lone dot after it, if the server wants one.
    LoneDot,
    /// DATA for a held message.
    Offer,
    /// The end of a held message; with LMTP once for all its replies.
    Final,
    /// NOOP by vscan: the client does not see the reply.
    Ours,
    /// RSET by vscan, behind a refused message.
    OurRset,
    /// EHLO ahead of the client's, behind the handshake with the server.
    OurEhlo,
    /// To the client, by vscan.
    Answer(Vec<u8>),
}

/// The server's reply to a command that vscan has given ahead of the client.
#[derive(Debug)]
enum Ahead {
    /// To the RSET behind a refused message. The client's is answered with it: a second one would be one too many for
    /// servers that count them (Exim's `smtp_accept_max_nonmail`).
    Rset(Vec<u8>),
    /// To the EHLO behind the handshake with the server, with its code.
    Ehlo(u16, Vec<u8>),
}

impl Pending {
    /// Whether the client knows nothing of it.
    fn is_ours(&self) -> bool {
        matches!(self, Self::Ours | Self::OurRset | Self::OurEhlo)
    }
}

impl Session {
    /// A session whose two legs are connected; the server's greeting is to come.
    pub fn new(config: Arc<Config>, now: Instant) -> Self {
        let secured = config.secured;
        Self {
            config,
            secured,
            hello: Box::default(),
            greeted: false,
            securing_alone: false,
            state: State::Commands,
            client: Leg::Open,
            upstream: Leg::Open,
            client_lines: LineSplitter::new(CLIENT_LINE_MAX),
            upstream_lines: LineSplitter::new(REPLY_LINE_MAX),
            to_client: Vec::new(),
            to_upstream: Vec::new(),
            pending: VecDeque::from([Pending::Greeting]),
            held_reply: Vec::new(),
            transaction: None,
            actions: VecDeque::new(),
            ahead: None,
            offer: Offer::default(),
            per_recipient: false,
            noted: 0,
            access: Access::default(),
            errors: 0,
            unwritten_acceptance: false,
            draining: false,
            activity: now,
        }
    }

    /// Whether the client's next bytes can be used now. If not, the driver should leave them in
    /// the socket.
    pub fn wants_client(&self) -> bool {
        if self.client != Leg::Open {
            return false;
        }
        match &self.state {
            State::Commands | State::Challenge => !self.is_stalled(),
            State::Between(between) => between.next.is_none() && !self.is_stalled(),
            State::Chunk(_) | State::Receiving(_) | State::Tls(_) => true,
            State::Barrier
            | State::Deciding(_)
            | State::Checking(_)
            | State::Offering(_)
            | State::Sending(_)
            | State::Answer(_)
            | State::Securing
            | State::Blind
            | State::Closed => false,
        }
    }

    /// Whether a message is held for the ruling.
    pub fn is_checking(&self) -> bool {
        matches!(self.state, State::Checking(_))
    }

    /// What form the message has that is held for the ruling.
    pub fn form(&self) -> Option<Form> {
        if let State::Checking(held) = &self.state { Some(held.form) } else { None }
    }

    /// The envelope of the message that is being received, inspected or sent.
    pub fn envelope(&self) -> Option<Envelope<'_>> {
        let transaction = self.message_transaction()?;
        Some(Envelope {
            sender: &transaction.sender,
            recipients: &transaction.recipients,
            accepted: transaction.accepted,
        })
    }

    /// A word for the state, for the flow table.
    pub fn state_name(&self) -> &'static str {
        match &self.state {
            State::Commands | State::Barrier | State::Challenge | State::Chunk(_) => {
                match (self.pending.front(), &self.transaction) {
                    (Some(Pending::Greeting), _) => "greeting",
                    (_, Some(_)) => "mail",
                    (_, None) => "command",
                }
            }
            State::Deciding(_) => "mail",
            State::Receiving(_) | State::Between(_) => "data",
            State::Checking(_) => "scan",
            State::Offering(_) | State::Sending(_) => "deliver",
            State::Answer(_) => "answer",
            State::Tls(_) | State::Blind => "tls",
            State::Securing => "handshake",
            State::Closed => "closed",
        }
    }

    /// What to do next; none if the machine waits.
    pub fn poll_output(&mut self) -> Option<Output> {
        if !self.to_client.is_empty() {
            return Some(Output::ToClient(std::mem::take(&mut self.to_client)));
        }
        if !self.to_upstream.is_empty() {
            return Some(Output::ToUpstream(std::mem::take(&mut self.to_upstream)));
        }
        self.actions.pop_front()
    }

    /// When to call [`Self::handle_timeout`], at the latest. May move with every call.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let idle = self.activity + self.config.idle_timeout;
        match &self.state {
            State::Closed | State::Blind | State::Securing => None,
            State::Receiving(receiving) | State::Between(Between { receiving, .. }) => {
                Some(idle.min(receiving.keepalive))
            }
            State::Checking(held) => Some(held.ruling_due.min(held.keepalive)),
            State::Offering(Offering { held, .. })
            | State::Sending(Sending { held, .. })
            | State::Answer(Answering { held, .. }) => Some(held.deadline),
            State::Commands
            | State::Barrier
            | State::Challenge
            | State::Chunk(_)
            | State::Deciding(_)
            | State::Tls(_) => Some(idle),
        }
    }

    /// Acts on what is due at `now`.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.poll_timeout().is_none_or(|due| now < due) {
            return;
        }
        let idle = now >= self.activity + self.config.idle_timeout;
        match &mut self.state {
            State::Receiving(receiving) | State::Between(Between { receiving, .. }) if !idle => {
                receiving.keepalive = now + self.config.keepalive;
                self.keep_alive();
            }
            State::Checking(held) if now < held.ruling_due => {
                held.keepalive = now + self.config.keepalive;
                self.keep_alive();
            }
            State::Checking(_) => self.ruling_overdue(),
            State::Offering(_) | State::Sending(_) | State::Answer(_) => {
                self.lose(compose(421, "4.4.2", "The server did not answer in time"));
            }
            State::Tls(_) => self.reset(),
            State::Receiving(_) | State::Between(_) => {
                self.give_up_message(Some(421));
                self.close_with(compose(421, "4.4.2", "Idle for too long"));
            }
            State::Commands
            | State::Barrier
            | State::Challenge
            | State::Chunk(_)
            | State::Deciding(_) => self.close_with(compose(421, "4.4.2", "Idle for too long")),
            State::Securing | State::Blind | State::Closed => {}
        }
    }

    /// The session is to end at its next safe point: before a command, with 421 (RFC 5321 section
    /// 3.8), all replies and messages that are under way being through.
    pub fn handle_drain(&mut self) {
        self.draining = true;
        self.proceed();
    }

    /// All that was to be written to the client is written.
    pub fn handle_client_written(&mut self) {
        self.unwritten_acceptance = false;
    }

    fn anomaly(&mut self, anomaly: Anomaly) {
        self.actions.push_back(Output::Anomaly(anomaly));
    }

    /// Reports an anomaly that a peer can repeat without end.
    fn anomaly_once(&mut self, anomaly: Anomaly) {
        let bit = 1 << (anomaly as u32);
        if self.noted & bit == 0 {
            self.noted |= bit;
            self.anomaly(anomaly);
        }
    }

    /// Closes both legs after a last reply.
    fn close_with(&mut self, reply: Vec<u8>) {
        self.to_client.extend_from_slice(&reply);
        self.close();
    }

    fn close(&mut self) {
        self.state = State::Closed;
        self.actions.push_back(Output::Close);
    }

    fn reset(&mut self) {
        self.state = State::Closed;
        self.to_client = Vec::new();
        self.to_upstream = Vec::new();
        self.actions.push_back(Output::Reset);
    }
}

#[cfg(test)]
mod tests;

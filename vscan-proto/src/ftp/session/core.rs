//! What all states of a session share: outputs, the queue of replies that are due, and the two
//! data channels.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

use super::api::{Addresses, Leg, Note, Output, Settings, Tls};
use super::job::Way;
use super::paths;
use crate::ftp::address;
use crate::ftp::command::Verb;
use crate::ftp::permit::{Identity, Login};
use crate::ftp::reply::Reply;

/// Most bytes of a reply that is kept back. Replies that are only relayed may be longer.
pub(super) const KEPT_REPLY_LIMIT: usize = 64 * 1024;

/// Most bytes of an anomaly's detail.
const DETAIL_LIMIT: usize = 64;

/// Most anomalies that one session reports: a peer that floods does not flood the log.
const ANOMALY_LIMIT: u8 = 32;

/// How long a server may take to say that a transfer broke when it has answered a NOOP behind it already: pyftpdlib
/// works on both at once, Pure-FTPd says nothing about a download.
const LATE_REPLY: Duration = Duration::from_secs(3);

/// What the server has said since a transfer was broken off.
#[derive(Debug, Clone, Copy, Default)]
struct Sync {
    /// Something about the transfer.
    told: bool,
    /// Its answer to the NOOP.
    answered: Option<Instant>,
}

/// What the next complete reply of the server answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expect {
    /// The greeting: relayed.
    Greeting,
    /// A command that was relayed.
    Relay,
    /// USER, PASS, ACCT or REIN: relayed, and the reply says who the client is.
    Login(Login),
    /// FEAT: relayed without some lines.
    Feat,
    /// AUTH: relayed, 234 ends our reading, or what is read in the clear.
    Auth,
    /// CCC: relayed, and with a 2yz TLS ends.
    Ccc,
    /// PASV, EPSV, PORT or EPRT of our own.
    Arrange,
    /// A transfer command: kept back.
    Transfer,
    /// REST of our own.
    Position,
    /// SIZE or MLST of our own.
    Probe,
    /// DELE of our own.
    Delete,
    /// ABOR of a transfer: kept back.
    Abort,
    /// Nobody waits for it: NOOP of our own, or a transfer of a session that ends.
    Swallow,
    /// NOOP of our own behind a transfer that we broke off. Nobody waits for the transfer's reply any more, but it must
    /// not pass for another's; and Pure-FTPd gives none to a broken download.
    Sync,
}

impl Expect {
    /// Whether the client may get the reply.
    pub(super) fn is_heard(self) -> bool {
        match self {
            Self::Greeting
            | Self::Relay
            | Self::Feat
            | Self::Auth
            | Self::Ccc
            | Self::Login(_)
            | Self::Transfer
            | Self::Abort => true,
            Self::Arrange
            | Self::Position
            | Self::Probe
            | Self::Delete
            | Self::Swallow
            | Self::Sync => false,
        }
    }
}

/// The data channel towards the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ClientChannel {
    None,
    /// The driver was asked to listen.
    Binding,
    /// Announced; the client has not come yet.
    Listening(u16),
    /// PORT or EPRT was accepted; not dialled yet.
    Active(SocketAddr),
    Connecting,
    Connected,
    Failed,
}

/// Ways to a data connection with the server, in the order in which they are tried.
///
/// PASV comes first on IPv4: every server knows it, and so does every firewall on the way that
/// follows the dialogue; its weak point, the address, is ignored. EPSV is the only passive command
/// on IPv6. Active is the last resort.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Method {
    Pasv,
    Epsv,
    Active,
}

/// The data channel towards the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum UpstreamChannel {
    None,
    /// Our PASV, EPSV, PORT or EPRT is with the server.
    Asking(Method),
    /// The driver was asked to listen for the server.
    Binding,
    /// PORT or EPRT was accepted; the server connects when the transfer begins.
    Waiting,
    Dialling,
    Connected {
        since: Instant,
    },
    /// Nothing worked. The reply is the server's refusal, if that was the cause.
    Failed(Option<Reply>),
}

/// Where the server begins the next transfer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Position {
    At(u64),
    /// A transfer that began elsewhere than at the first byte failed: some servers forget the
    /// position then, some do not.
    Unknown,
    /// A REST of ours is with the server.
    Asking(u64),
    /// The server refused it.
    Refused(u64, Bytes),
}

/// What a relayed command changes if the server accepts it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Effect {
    Restart(u64),
    Ascii(bool),
    Directory(Bytes),
    Parent,
    /// PROT: whether data connections are TLS.
    Protect(bool),
    /// RNFR: whether the file that is renamed next passes unscanned.
    RenamesSkipped(bool),
    /// Back to the beginning (REIN).
    Reset,
}

/// What protects the session. Both legs always have the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protection {
    None,
    /// TLS on the control connections.
    Tls,
    /// No more since CCC; data connections may still be TLS.
    Cleared,
}

#[derive(Debug)]
pub(super) struct Core {
    pub(super) settings: Arc<Settings>,
    pub(super) addresses: Addresses,
    pub(super) outputs: VecDeque<Output>,
    pub(super) expect: VecDeque<Expect>,
    pub(super) client: ClientChannel,
    /// The client's last word on its data channel: PASV, EPSV, PORT or EPRT.
    pub(super) asked: Verb,
    pub(super) upstream: UpstreamChannel,
    /// The first method worth trying with this server.
    pub(super) method: Method,
    /// What is known of the place behind a broken transfer.
    sync: Sync,
    /// The time of what is being handled.
    pub(super) now: Instant,
    /// When the server was last spoken to.
    pub(super) spoke: Instant,
    /// EPSV ALL was given (RFC 2428 section 4).
    pub(super) epsv_only: bool,
    /// The client will send no more commands.
    pub(super) client_ended: bool,
    /// The position that the client's next transfer begins at.
    pub(super) restart: u64,
    pub(super) position: Position,
    /// TYPE A, also before any TYPE (RFC 959 section 3.1.1.1).
    pub(super) ascii: bool,
    /// The server's directory, as the client's commands tell it.
    directory: Vec<u8>,
    /// Of the command that is being relayed.
    pub(super) effect: Option<Effect>,
    pub(super) protection: Protection,
    /// Data connections are TLS.
    pub(super) private: bool,
    anomalies: u8,
    /// Whom the server takes the client for; kept where access rules ask for it.
    pub(super) identity: Identity,
    denials: u8,
    /// The last RNFR that the server accepted named a file that passes unscanned.
    pub(super) renames_skipped: bool,
    /// What the client shall hear of the file in hand when it is delivered.
    pub(super) announced: Option<Box<str>>,
}

impl Core {
    pub(super) fn new(now: Instant, settings: Arc<Settings>, addresses: Addresses) -> Self {
        let method = if addresses.dialled.is_ipv4() { Method::Pasv } else { Method::Epsv };
        let implicit = settings.tls == Tls::Implicit;
        Self {
            protection: if implicit { Protection::Tls } else { Protection::None },
            // What RFC 4217 section 9 has for a session that begins with AUTH; port 990 has always meant both.
            private: implicit,
            settings,
            addresses,
            outputs: VecDeque::new(),
            expect: VecDeque::from([Expect::Greeting]),
            client: ClientChannel::None,
            asked: Verb::Pasv,
            upstream: UpstreamChannel::None,
            method,
            sync: Sync::default(),
            now,
            spoke: now,
            epsv_only: false,
            client_ended: false,
            restart: 0,
            position: Position::At(0),
            ascii: true,
            directory: Vec::new(),
            effect: None,
            anomalies: 0,
            identity: Identity::default(),
            denials: 0,
            renames_skipped: false,
            announced: None,
        }
    }

    pub(super) fn output(&mut self, output: Output) {
        self.outputs.push_back(output);
    }

    /// Says something to the client; consecutive pieces become one write.
    pub(super) fn tell_client(&mut self, bytes: impl Into<Bytes>) {
        let bytes = bytes.into();
        if let Some(Output::ToClient(pending)) = self.outputs.back_mut() {
            *pending = joined(std::mem::take(pending), &bytes);
        } else {
            self.outputs.push_back(Output::ToClient(bytes));
        }
    }

    /// Says something to the server.
    pub(super) fn tell_upstream(&mut self, now: Instant, bytes: impl Into<Bytes>, expect: Expect) {
        self.spoke = now;
        self.expect.push_back(expect);
        self.outputs.push_back(Output::ToUpstream(bytes.into()));
    }

    /// Says something more to the server, whose reply belongs to what is expected last.
    pub(super) fn tell_upstream_more(&mut self, now: Instant, bytes: impl Into<Bytes>) {
        self.spoke = now;
        self.outputs.push_back(Output::ToUpstream(bytes.into()));
    }

    pub(super) fn note(&mut self, note: Note) {
        self.outputs.push_back(Output::Note(Box::new(note)));
    }

    pub(super) fn anomaly(&mut self, name: &'static str, detail: &[u8]) {
        if self.anomalies == ANOMALY_LIMIT {
            return;
        }
        self.anomalies += 1;
        let detail = Bytes::copy_from_slice(&detail[..detail.len().min(DETAIL_LIMIT)]);
        self.note(Note::Anomaly { name, detail });
    }

    /// The access rules refused a login or a command.
    pub(super) fn denied(&mut self, command: Option<&[u8]>, what: &[u8]) {
        let tell = self.denials < ANOMALY_LIMIT;
        self.denials = self.denials.saturating_add(1);
        let what = Bytes::copy_from_slice(&what[..what.len().min(DETAIL_LIMIT)]);
        self.note(Note::Denied { command: command.map(Bytes::copy_from_slice), what, tell });
    }

    /// Whether a reply to a transfer command is still due.
    pub(super) fn transfer_is_due(&self) -> bool {
        self.expect.contains(&Expect::Transfer)
    }

    /// The session ends; the reply of its transfer, if it still comes, interests nobody.
    pub(super) fn swallow_transfer(&mut self) {
        for expect in &mut self.expect {
            if *expect == Expect::Transfer {
                *expect = Expect::Swallow;
            }
        }
    }

    /// Expects no reply to the transfer any more; `true` if one was due.
    pub(super) fn forget_transfer(&mut self) -> bool {
        let due = self.transfer_is_due();
        self.expect.retain(|expect| *expect != Expect::Transfer);
        due
    }

    /// The transfer is decided, and broken off if the server is still at it: finds the place behind what the server says
    /// about that.
    pub(super) fn synchronise(&mut self) {
        if self.forget_transfer() {
            self.sync = Sync::default();
            self.tell_upstream(self.now, &b"NOOP\r\n"[..], Expect::Sync);
        }
    }

    fn is_synchronising(&self) -> bool {
        self.expect.front() == Some(&Expect::Sync)
    }

    /// A reply with this code begins: if it is neither the transfer's nor the NOOP's, the transfer had none.
    pub(super) fn sync_before(&mut self, code: u16) {
        if self.is_synchronising()
            && self.sync.answered.is_some()
            && code >= 200
            && !Reply::is_about_transfer(code)
        {
            self.expect.pop_front();
        }
    }

    /// Takes a final reply while synchronising.
    pub(super) fn synchronised(&mut self, now: Instant, code: u16) {
        if Reply::is_about_transfer(code) {
            self.sync.told = true;
        } else {
            self.sync.answered = Some(now);
        }
        if self.sync.told && self.sync.answered.is_some() {
            self.expect.pop_front();
        }
    }

    /// When a transfer that the server has not spoken of has no reply.
    pub(super) fn sync_until(&self) -> Option<Instant> {
        self.sync.answered.filter(|_| self.is_synchronising()).map(|at| at + LATE_REPLY)
    }

    /// The moment of [`sync_until`](Self::sync_until) may have come.
    pub(super) fn sync_expired(&mut self, now: Instant) {
        if self.sync_until().is_some_and(|until| now >= until) {
            self.expect.pop_front();
        }
    }

    /// A relayed command was answered: what it asked for is so now, or is not.
    pub(super) fn took_effect(&mut self, accepted: bool) {
        match self.effect.take().filter(|_| accepted) {
            Some(Effect::Restart(at)) => {
                self.restart = at;
                self.position = Position::At(at);
            }
            Some(Effect::Ascii(ascii)) => self.ascii = ascii,
            Some(Effect::Directory(to)) => self.directory = paths::below(&self.directory, &to),
            Some(Effect::Parent) => self.directory = paths::below(&self.directory, b".."),
            Some(Effect::Protect(private)) => self.protect(private),
            Some(Effect::RenamesSkipped(skipped)) => self.renames_skipped = skipped,
            Some(Effect::Reset) => {
                self.ascii = true;
                self.directory = Vec::new();
                self.restart = 0;
                // Not every server takes a position for a part of the login.
                self.position = Position::Unknown;
            }
            None => {}
        }
    }

    /// Data connections are TLS from now on, or are not. Those that stand are neither's.
    pub(super) fn protect(&mut self, private: bool) {
        if self.private != private {
            self.drop_client(false);
            self.drop_upstream(false);
            self.private = private;
            self.output(Output::Protect(private));
        }
    }

    /// The name of a file below the session's directory.
    pub(super) fn path(&self, name: &[u8]) -> Bytes {
        paths::below(&self.directory, name).into()
    }

    /// Makes the server begin its next transfer at this byte.
    pub(super) fn begin_at(&mut self, now: Instant, at: u64) -> Way {
        match &self.position {
            Position::At(position) if *position == at => Way::Ready,
            Position::Asking(_) => Way::Pending,
            Position::Refused(position, reply) if *position == at => {
                let reply = reply.clone();
                self.position = Position::Unknown;
                Way::None(reply)
            }
            Position::At(_) | Position::Unknown | Position::Refused(..) => {
                self.position = Position::Asking(at);
                self.tell_upstream(now, format!("REST {at}\r\n"), Expect::Position);
                Way::Pending
            }
        }
    }

    /// The answer to a REST of ours.
    pub(super) fn positioned(&mut self, reply: Reply) {
        if let Position::Asking(at) = self.position {
            self.position = if reply.is_refusal() {
                Position::Refused(at, reply.raw)
            } else {
                Position::At(at)
            };
        }
    }

    /// Gives up the client's data channel.
    pub(super) fn drop_client(&mut self, reset: bool) {
        if std::mem::replace(&mut self.client, ClientChannel::None) != ClientChannel::None {
            self.drop_leg(Leg::Client, reset);
        }
    }

    /// Gives up the server's data channel.
    pub(super) fn drop_upstream(&mut self, reset: bool) {
        if !matches!(
            std::mem::replace(&mut self.upstream, UpstreamChannel::None),
            UpstreamChannel::None
        ) {
            self.drop_leg(Leg::Upstream, reset);
        }
    }

    fn drop_leg(&mut self, leg: Leg, reset: bool) {
        self.output(if reset { Output::ResetData(leg) } else { Output::CloseData(leg) });
    }

    /// Opens the way to the client once a transfer needs it; `true` when it stands.
    pub(super) fn client_connects(&mut self) -> bool {
        if let ClientChannel::Active(address) = self.client {
            self.client = ClientChannel::Connecting;
            self.output(Output::ConnectClient(address));
        }
        self.client == ClientChannel::Connected
    }

    /// Whether the client's side is passive (or already stands), so that a 150 may go out.
    pub(super) fn client_may_hear_opening(&self) -> bool {
        matches!(self.client, ClientChannel::Listening(_) | ClientChannel::Connected)
    }

    /// Whether a data connection with the server stands, or will when the transfer begins, and is
    /// not too old to be trusted.
    pub(super) fn upstream_is_ready(&self, now: Instant) -> bool {
        match self.upstream {
            UpstreamChannel::Connected { since } => {
                now.saturating_duration_since(since) < self.settings.timing.fresh
            }
            UpstreamChannel::Waiting => true,
            UpstreamChannel::None
            | UpstreamChannel::Asking(_)
            | UpstreamChannel::Binding
            | UpstreamChannel::Dialling
            | UpstreamChannel::Failed(_) => false,
        }
    }

    pub(super) fn upstream_is_connected(&self) -> bool {
        matches!(self.upstream, UpstreamChannel::Connected { .. })
    }

    /// Whether the server's side is being arranged at this moment.
    pub(super) fn is_arranging(&self) -> bool {
        match self.upstream {
            UpstreamChannel::Asking(_) | UpstreamChannel::Binding | UpstreamChannel::Dialling => {
                true
            }
            UpstreamChannel::None
            | UpstreamChannel::Waiting
            | UpstreamChannel::Connected { .. }
            | UpstreamChannel::Failed(_) => false,
        }
    }

    /// Begins to arrange a data connection with the server, giving up an old one.
    pub(super) fn arrange(&mut self, now: Instant) {
        self.drop_upstream(false);
        self.ask(now, self.method);
    }

    fn ask(&mut self, now: Instant, method: Method) {
        let command: &'static [u8] = match method {
            Method::Pasv => b"PASV\r\n",
            Method::Epsv => b"EPSV\r\n",
            Method::Active => {
                self.upstream = UpstreamChannel::Binding;
                self.output(Output::Listen(Leg::Upstream));
                return;
            }
        };
        self.upstream = UpstreamChannel::Asking(method);
        self.tell_upstream(now, command, Expect::Arrange);
    }

    /// The driver listens for the server, or cannot.
    pub(super) fn upstream_listening(&mut self, now: Instant, here: Option<SocketAddr>) {
        if self.upstream != UpstreamChannel::Binding {
            return;
        }
        let Some(here) = here else {
            self.upstream = UpstreamChannel::Failed(None);
            return;
        };
        let command = match address::format_port(here) {
            Some(argument) => format!("PORT {argument}\r\n"),
            None => format!("EPRT {}\r\n", address::format_eprt(here)),
        };
        self.upstream = UpstreamChannel::Asking(Method::Active);
        self.tell_upstream(now, command, Expect::Arrange);
    }

    /// The server's answer to our PASV, EPSV, PORT or EPRT.
    pub(super) fn arranged(&mut self, now: Instant, reply: Reply) {
        let UpstreamChannel::Asking(method) = self.upstream else { return };
        let port = match (method, reply.code) {
            (Method::Pasv, 227) => address::parse_227(&reply.raw).map(|address| address.port()),
            (Method::Epsv, 229) => address::parse_229(&reply.raw),
            (Method::Active, 200..=299) => {
                self.upstream = UpstreamChannel::Waiting;
                return;
            }
            (Method::Pasv | Method::Epsv | Method::Active, _) => None,
        };
        if let Some(port) = port.filter(|&port| port != 0) {
            self.upstream = UpstreamChannel::Dialling;
            self.method = method;
            self.output(Output::DialUpstream(port));
            return;
        }
        if !reply.is_refusal() {
            self.anomaly("ftp_passive_reply", &reply.raw);
        }
        // 530: not logged in. That is no matter of the method.
        if reply.code == 530 || !self.next_method(now, method) {
            if method == Method::Active {
                self.drop_upstream(false);
            }
            // Only a refusal may be the client's answer.
            self.upstream = UpstreamChannel::Failed(reply.is_refusal().then_some(reply));
        }
    }

    /// The dialled data connection could not be made.
    pub(super) fn dial_failed(&mut self) {
        // What the server announced cannot be reached: the other passive command would not help.
        if self.upstream == UpstreamChannel::Dialling && self.method != Method::Active {
            self.method = Method::Active;
        }
        self.upstream = UpstreamChannel::Failed(None);
    }

    fn next_method(&mut self, now: Instant, method: Method) -> bool {
        let next = match method {
            Method::Pasv => Method::Epsv,
            Method::Epsv => Method::Active,
            Method::Active => return false,
        };
        self.ask(now, next);
        true
    }
}

fn joined(first: Bytes, second: &[u8]) -> Bytes {
    // Takes the memory back without a copy when nobody else holds it.
    let mut all = BytesMut::from(first);
    all.extend_from_slice(second);
    all.freeze()
}

//! What goes into a session and what comes out of it: the words that machine and driver share.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::ftp::command::Verb;
use crate::ftp::permit::Permit;

/// What is done about AUTH TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tls {
    /// The server decides; after its 234 the session is relayed blindly.
    Pass,
    /// Refused with 534 and not offered in FEAT.
    Refuse,
    /// The server decides; after its 234 both legs are TLS that ends here, and the dialogue goes on inside.
    Terminate,
    /// Both legs are TLS that ends here from their first byte on (port 990).
    Implicit,
}

/// Bytes of a block of a file: a piece is checked against what is known of the whole file block by
/// block, so it is fetched from a multiple of this on.
pub const BLOCK: u64 = 64 * 1024;

/// How files are delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// Nothing of a file before its verdict.
    Hold,
    /// Bytes go on while they arrive, the last ones wait for the verdict: partial protection.
    Stream,
}

/// What is done about REST and APPE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resume {
    /// The file is scanned whole, whatever piece of it is transferred.
    Whole,
    /// Refused with 502.
    Refuse,
}

/// How long things may take. Defaults are measured against real clients and servers.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// From RETR to the 150 at the latest. tnftp gives up after 60 s, curl after 120 s.
    pub opening: Duration,
    /// From the end of an upload to its final reply while the scan is not done. curl and tnftp give
    /// up after 60 s.
    pub verdict: Duration,
    /// Between two NOOPs to a server that waits for a verdict.
    pub keep_awake: Duration,
    /// For the client's data connection after the transfer command.
    pub connect: Duration,
    /// For a reply of the server that is due.
    pub reply: Duration,
    /// For the server's part in ending a transfer or a session.
    pub close: Duration,
    /// How long an unused data connection to the server is taken to be good.
    pub fresh: Duration,
    /// Without a command, or without a reply to one.
    pub idle: Duration,
    /// How long the server waits for a STOR while NOOPs keep it awake; then a held upload's STOR is
    /// opened before the verdict. `None`: for as long as it takes.
    pub patience: Option<Duration>,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            opening: Duration::from_secs(45),
            verdict: Duration::from_secs(55),
            keep_awake: Duration::from_secs(30),
            connect: Duration::from_secs(60),
            reply: Duration::from_secs(300),
            close: Duration::from_secs(30),
            fresh: Duration::from_secs(10),
            idle: Duration::from_secs(3600),
            patience: None,
        }
    }
}

/// What all sessions share.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What is done about AUTH TLS.
    pub tls: Tls,
    /// How files are delivered.
    pub delivery: Delivery,
    /// What is done about REST and APPE.
    pub resume: Resume,
    /// Extensions, lower case and without the dot, of files that pass unscanned.
    pub skip_extensions: Vec<String>,
    /// Whether the first bytes have a word in that: [`Output::Sniff`].
    pub sniff: Sniff,
    /// Who may give which command; none: the server alone decides.
    pub permit: Option<Arc<dyn Permit>>,
    /// Time limits.
    pub timing: Timing,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            tls: Tls::Pass,
            delivery: Delivery::Hold,
            resume: Resume::Whole,
            skip_extensions: Vec::new(),
            sniff: Sniff::Never,
            permit: None,
            timing: Timing::default(),
        }
    }
}

/// Whose first bytes are looked at before it is settled whether a file is scanned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sniff {
    /// Nobody's: extensions decide.
    Never,
    /// Those of files with an extension that passes unscanned.
    Skipped,
    /// Those of all files.
    All,
}

/// The two ends of the control connection.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    /// The client's own address.
    pub client: SocketAddr,
    /// The address that the client dialled: the one announced to it.
    pub dialled: SocketAddr,
}

/// One side of the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Leg {
    /// Towards the client.
    Client,
    /// Towards the server.
    Upstream,
}

impl Leg {
    /// The opposite side.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Client => Self::Upstream,
            Self::Upstream => Self::Client,
        }
    }
}

/// A data connection that ended otherwise than by an orderly end of data on both sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Broken {
    /// The side that broke.
    pub leg: Leg,
}

/// What inspection and policy say about the object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Judgement {
    /// It may go on.
    Release,
    /// It may not: `reason` follows the file's name in the 550.
    Refuse {
        /// Words for the client, e.g. `blocked by vscan: EICAR`.
        reason: String,
    },
}

impl Event {
    /// The object was judged, and the client hears nothing of it but what is done.
    pub fn judged(judgement: Judgement) -> Self {
        Self::Judged { judgement, words: String::new() }
    }
}

/// What the driver remembers of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recalled {
    /// Nothing that helps.
    Nothing,
    /// A version of it was scanned whole and found clean: [`Output::Check`] can tell whether a piece
    /// belongs to it.
    Scanned,
    /// A file of this name was caught: nothing of it is released before the verdict.
    Suspect,
    /// Another upload to the same file is under way, and one of the two needs what the server has.
    Busy,
}

/// What the server has under the name that an upload adds to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    /// What was received last.
    Received,
    /// There is no such file.
    Absent,
    /// It cannot be read, so the whole cannot be scanned.
    Unreadable,
}

/// What the driver tells the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Outcome of [`Output::Listen`]: where the peer reaches the listener, or nothing could be bound.
    /// Towards the client only the port counts: it knows the server by the address that it dialled.
    Listening(Leg, Option<SocketAddr>),
    /// A data connection stands: accepted or dialled.
    Connected(Leg),
    /// A data connection could not be made.
    ConnectFailed(Leg),
    /// Outcome of [`Output::Recall`].
    Recalled(Recalled),
    /// Outcome of [`Output::Receive`] and of [`Output::Stream`]: the sender's end of data arrived, or the connection broke.
    Received(Result<(), Broken>),
    /// Outcome of [`Output::Inspect`]; may also come in the middle of [`Output::Receive`] from the
    /// server, for an object that is refused before its end (its size).
    Judged {
        /// What is to be done.
        judgement: Judgement,
        /// What the client hears of it in front of the server's last word on a file that is delivered: one line of
        /// printable ASCII, e.g. `scanned, clean`. Empty: nothing.
        words: String,
    },
    /// Outcome of [`Output::Check`]: the piece is of another version, or ends elsewhere. The leg to the
    /// server is gone, the client's is not.
    Mismatched {
        /// Bytes of the version that was recalled have gone to the client.
        released: bool,
    },
    /// Outcome of [`Output::Send`], and of [`Output::Check`] of a piece that belongs: all bytes and the end of data are with the receiver's kernel.
    Sent(Result<(), Broken>),
    /// Outcome of [`Output::Sniff`]: whether the file passes unscanned.
    Sniffed(bool),
    /// Outcome of [`Output::Splice`], likewise.
    Spliced(Result<(), Broken>),
    /// Outcome of [`Output::Secure`]: both legs are TLS now, or this one could not be.
    Secured(Result<(), Broken>),
    /// Outcome of [`Output::Clear`]: both legs are plain again, or this one broke.
    Cleared(Result<(), Broken>),
}

/// The transfer that begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Begin {
    /// The command.
    pub verb: Verb,
    /// Its argument: a file's name, wire bytes; may be empty.
    pub name: Bytes,
    /// The side that sends the data.
    pub source: Leg,
    /// How the client asked for the data connection: PASV, EPSV, PORT or EPRT.
    pub asked: Verb,
    /// Whether the data are scanned: not for listings and excluded types.
    pub inspected: bool,
    /// Restart position: the transfer begins at this byte of the file (RFC 3659 section 5).
    pub restart: u64,
    /// The name below the session's directory, as far as the dialogue tells: the same for the same
    /// file as long as clients spell it alike. Never to be trusted.
    pub path: Bytes,
    /// Line ends are recoded on the way (TYPE A): the receiver stores other bytes than it receives.
    pub ascii: bool,
    /// The data connections are TLS (PROT P).
    pub private: bool,
}

/// How a transfer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Delivered, and the server says so.
    Delivered,
    /// Refused by vscan's verdict.
    Blocked,
    /// The server refused or broke off.
    ServerRefused,
    /// A data connection broke or never came.
    Broken,
    /// The client stopped it: ABOR, or its control connection went.
    Aborted,
    /// A deadline passed.
    TimedOut,
}

impl Outcome {
    /// Name for events and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Blocked => "blocked",
            Self::ServerRefused => "server_refused",
            Self::Broken => "broken",
            Self::Aborted => "aborted",
            Self::TimedOut => "timed_out",
        }
    }
}

/// Something for the log, not for the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    /// The client named its user; wire bytes.
    User(Bytes),
    /// The access rules refused something: a login (no command) or a command, with its verb and argument; wire bytes,
    /// shortened.
    Denied {
        /// The command; none: the user's login.
        command: Option<Bytes>,
        /// The user or the command's argument.
        what: Bytes,
        /// Whether it is one of the session's first: a peer that goes on and on does not flood the log.
        tell: bool,
    },
    /// The server gave up waiting for a STOR, although NOOPs kept the session awake, after this time.
    Impatient(Duration),
    /// A peer did something odd. `name` is snake_case.
    Anomaly {
        /// Name of the anomaly.
        name: &'static str,
        /// What was seen; wire bytes, shortened.
        detail: Bytes,
    },
}

/// What the driver must do, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Write to the client's control connection.
    ToClient(Bytes),
    /// Write to the server's control connection.
    ToUpstream(Bytes),
    /// Listen for one data connection: of the client on the address that it dialled, or of the
    /// server on the client's own address. Accept from the session's peer only.
    Listen(Leg),
    /// Connect to the client's active address, from port 20 of the address that it dialled.
    ConnectClient(SocketAddr),
    /// Dial this port at the server, from the client's address.
    DialUpstream(u16),
    /// Look up what is known of the file of the transfer that begins.
    Recall,
    /// Read the leg to its end into the spool, then close it in good order.
    Receive(Leg),
    /// The file grows: what is received from the client next is inspected behind this, up to the
    /// restart position where there is one, and sent without it.
    Join(Base),
    /// Relay from this leg to the other while it arrives in the spool, but for the last bytes, up to
    /// the end of data. The receiving leg stays open for [`Output::Send`].
    Stream(Leg),
    /// Relay the piece from the server to the client, each block when it proves to be of the version
    /// that was recalled. The server sends from the block's border below the restart position on.
    Check,
    /// Inspect what was received.
    Inspect,
    /// Write what was received, from the restart position on and but for what was relayed already, then
    /// the end of data.
    Send(Leg),
    /// Look at the first bytes on the leg, and leave them there, to say whether the file passes unscanned. In doubt, or
    /// when they do not come soon, it does not.
    Sniff(Leg),
    /// Relay unscanned, from this leg to the other, up to the end of data.
    Splice(Leg),
    /// Stop listening, connecting or transferring on the leg and close it in good order.
    CloseData(Leg),
    /// The same, but with a reset, so that nobody takes what arrived for a whole file.
    ResetData(Leg),
    /// A transfer begins.
    Begin(Box<Begin>),
    /// The transfer is over: forget what was received.
    End(Outcome),
    /// Something for the log.
    Note(Box<Note>),
    /// Make TLS of both control connections: nothing was read of either behind what was said last. Once that is out, the
    /// client's first record comes. The driver may go over to relaying blindly instead; then the session is over.
    Secure,
    /// End TLS on both control connections in good order, behind what was said last; both stay open (RFC 4217 section 7).
    Clear,
    /// Data connections of either side that are made from now on are TLS (PROT P), or are not (PROT C).
    Protect(bool),
    /// From now on relay blindly what either side sends; TLS records must come first.
    Blind,
    /// Write what is pending, close both control connections in good order. The session is over.
    Close,
    /// Reset both control connections. The session is over.
    Reset,
}

/// Whether bytes may be the beginning of a TLS record of a handshake or an alert (RFC 8446 5.1).
/// `true` for an empty slice.
pub fn is_tls_record(bytes: &[u8]) -> bool {
    const ALERT: u8 = 0x15;
    const HANDSHAKE: u8 = 0x16;
    const MAJOR: u8 = 0x03;
    matches!(bytes, [] | [ALERT | HANDSHAKE] | [ALERT | HANDSHAKE, MAJOR, ..])
}

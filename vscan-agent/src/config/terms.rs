//! The words of configuration, policy and events: small enums, each written as one lower-case word.

use super::read::{Scalar, Wrong, kind, nearest};
use serde::{Deserialize, Serialize};
use std::fmt;
use toml::de::DeValue;
use vscan_scan::report::{Reason, Verdict};

/// Declares an enum whose values are words, and words that are known but not available here.
macro_rules! words {
    (
        $(#[$meta:meta])*
        $name:ident { $($(#[$vmeta:meta])* $variant:ident = $word:literal),+ $(,)? }
        $(unavailable { $($other:literal => $why:literal),+ $(,)? })?
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum $name { $($(#[$vmeta])* #[serde(rename = $word)] $variant),+ }

        impl $name {
            /// All values, in the order of their numbers (`as usize`).
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The word that stands for it in configuration, events and metrics.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl Scalar for $name {
            fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
                let pairs = &[$(($word, Self::$variant)),+];
                word(value, pairs, &[$($(($other, $why)),+)?])
            }
        }
    };
}

/// Finds the word in the list, or says what is possible.
pub(super) fn word<T: Copy>(
    value: &DeValue<'_>,
    pairs: &[(&'static str, T)],
    unavailable: &[(&str, &str)],
) -> Result<T, Wrong> {
    let known: Vec<&str> = pairs.iter().map(|(w, _)| *w).collect();
    let list = known.iter().map(|w| format!("\"{w}\"")).collect::<Vec<_>>().join(", ");
    let Some(word) = value.as_str() else {
        return Err(Wrong::new(format!("must be one of {list}, this is {}", kind(value))));
    };
    if let Some((_, found)) = pairs.iter().find(|(w, _)| *w == word) {
        return Ok(*found);
    }
    if let Some((_, why)) = unavailable.iter().find(|(w, _)| *w == word) {
        return Err(Wrong::new(format!("this version does not have \"{word}\": {why}"))
            .help(format!("choose one of {list}")));
    }
    let help = match nearest(word, &known) {
        Some(near) => format!("did you mean \"{near}\"?"),
        None => format!("choose one of {list}"),
    };
    Err(Wrong::new(format!("{word:?} is not known here")).help(help))
}

words! {
    /// How objects reach clamd.
    ClamdMode {
        /// As a descriptor where that is possible, else as bytes.
        Auto = "auto",
        /// As a descriptor (`FILDES`).
        Fildes = "fildes",
        /// As bytes (`INSTREAM`).
        Instream = "instream",
    }
}

words! {
    /// What becomes of objects that clamd does not get because they are too large.
    ClamdLarger {
        /// They are unscannable: size.
        Unscannable = "unscannable",
        /// The scanner's own verdict holds.
        Skip = "skip",
    }
}

words! {
    /// The protocol of a session.
    Protocol {
        /// File Transfer Protocol, RFC 959.
        Ftp = "ftp",
        /// Simple Mail Transfer Protocol, RFC 5321.
        Smtp = "smtp",
        /// Mail that lies on a server, by IMAP, RFC 9051.
        Mailbox = "mailbox",
    }
}

impl Protocol {
    /// Those whose connections cross the gateway.
    pub const INTERCEPTED: &[Self] = &[Self::Ftp, Self::Smtp];
}

words! {
    /// Where bytes go, by sender and receiver.
    Direction {
        /// From outside to inside.
        Inbound = "inbound",
        /// From inside to outside.
        Outbound = "outbound",
        /// Between two inside addresses.
        Internal = "internal",
        /// Between two outside addresses.
        Transit = "transit",
    }
}

words! {
    /// What the kernel does with new connections while the agent is dead or hangs.
    OnAgentDown {
        /// They pass uninspected, and are counted.
        Open = "open",
        /// They are refused.
        Closed = "closed",
    }
}

words! {
    /// How connections are steered to the gateway.
    Steering {
        /// BPF and nftables where BPF can be loaded, else nftables alone.
        Auto = "auto",
        /// BPF and nftables, or no start.
        Bpf = "bpf",
        /// nftables alone.
        Nft = "nft",
    }
}

words! {
    /// How the BPF program is attached to an interface.
    Attach {
        /// tcx from Linux 6.6 on, clsact before.
        Auto = "auto",
        /// tcx links.
        Tcx = "tcx",
        /// A clsact qdisc and a filter.
        Clsact = "clsact",
    }
}

words! {
    /// What an access rule says.
    Permission {
        /// The connection is intercepted and relayed.
        Allow = "allow",
        /// The connection is left to the firewall.
        Deny = "deny",
    }
}

words! {
    /// FTP commands by what they do to files.
    CommandGroup {
        /// Downloads.
        Read = "read",
        /// Uploads, new directories, renaming, changes of attributes.
        Write = "write",
        /// Deleting files and directories.
        Delete = "delete",
        /// Listings and facts about files.
        List = "list",
    }
}

words! {
    /// What becomes of a host that sends too much mail.
    OutboundAction {
        /// Its connections and messages are refused with 421.
        Refuse = "refuse",
        /// Its sessions are reset, and the kernel refuses its new connections.
        Cut = "cut",
        /// An event, nothing else.
        Alert = "alert",
    }
}

words! {
    /// How an object is delivered.
    Delivery {
        /// Nothing of it before its verdict.
        Hold = "hold",
    }
    unavailable { "stream" => "objects are always held until their verdict" }
}

words! {
    /// How a file is delivered over FTP.
    FtpDelivery {
        /// Nothing of it before its verdict.
        Hold = "hold",
        /// While it arrives, but for its last bytes: partial protection.
        Stream = "stream",
    }
}

words! {
    /// What happens when an FTP client asks for TLS (`AUTH`).
    FtpTls {
        /// The session goes on uninspected, counted and shown as such.
        Pass = "pass",
        /// It is opened, inspected, and closed again towards the server.
        Terminate = "terminate",
        /// `AUTH` is refused; clients that insist on TLS cannot connect.
        Refuse = "refuse",
    }
}

impl From<FtpTls> for TlsAction {
    fn from(tls: FtpTls) -> Self {
        match tls {
            FtpTls::Pass => Self::Pass,
            FtpTls::Terminate => Self::Terminate,
            FtpTls::Refuse => Self::Refuse,
        }
    }
}

words! {
    /// What happens when an FTP client resumes a transfer (`REST`, `APPE`).
    Resume {
        /// The whole file is fetched and scanned, and the client gets the piece that it asked for.
        Whole = "whole",
        /// Refused with 502; the client starts again from the first byte.
        Refuse = "refuse",
    }
}

words! {
    /// What happens with TLS: `STARTTLS`, `AUTH TLS`, or a connection that begins with it.
    TlsAction {
        /// The session goes on uninspected, counted and shown as such.
        Pass = "pass",
        /// It is opened, inspected, and closed again towards the server.
        Terminate = "terminate",
        /// Offered, but refused when it is used.
        Refuse = "refuse",
        /// Taken out of the server's offer, and refused.
        Strip = "strip",
    }
}

words! {
    /// Whether TLS is a must between the gateway and a server.
    UpstreamTls {
        /// Yes: clients are offered TLS where the server offers it, and without it there is no session.
        Require = "require",
        /// Where the server offers it. Clients are offered TLS for servers inside that do not, too.
        Offered = "offered",
    }
}

words! {
    /// What a server's certificate has to be.
    Verify {
        /// Made by an authority that the system trusts.
        Public = "public",
        /// Made by one of the authorities in a file.
        Pinned = "pinned",
        /// Anything. A client sees a certificate that nobody vouches for where the server's is such a one.
        Opportunistic = "opportunistic",
    }
}

words! {
    /// A version of TLS.
    TlsVersion {
        /// RFC 5246.
        Tls12 = "1.2",
        /// RFC 8446.
        Tls13 = "1.3",
    }
}

words! {
    /// Which messages with a bare CR or LF are refused (550 5.6.0).
    BareNewline {
        /// Those in which it could be taken for the end of the message.
        Lookalikes = "lookalikes",
        /// All.
        Refuse = "refuse",
        /// None. Servers behind the gateway must be safe against SMTP smuggling themselves.
        Pass = "pass",
    }
}

words! {
    /// What is done with an object or a portion of it, from the mildest to the strictest.
    Treatment {
        /// It is delivered as it came.
        Pass = "pass",
        /// It is delivered as it came, with a header field that warns of it.
        Warn = "warn",
        /// The same, and the subject says so too.
        Tag = "tag",
        /// The infection is taken out of the portion: macros out of documents, members out of archives.
        Clean = "clean",
        /// The portion is made unreadable; its name and length stay.
        Scramble = "scramble",
        /// A text takes the portion's place.
        Replace = "replace",
        /// The portion is removed.
        Strip = "strip",
        /// A copy is kept, and a notice is delivered in the message's place.
        Substitute = "substitute",
        /// It is refused.
        Block = "block",
        /// It is refused, and a copy is kept.
        Quarantine = "quarantine",
    }
}

impl Treatment {
    /// Whether it is possible with every object, so that nothing can come behind it.
    #[must_use]
    pub const fn is_certain(self) -> bool {
        match self {
            Self::Pass | Self::Block | Self::Quarantine => true,
            Self::Warn
            | Self::Tag
            | Self::Clean
            | Self::Scramble
            | Self::Replace
            | Self::Strip
            | Self::Substitute => false,
        }
    }

    /// Whether it is possible with messages only.
    #[must_use]
    pub const fn needs_mail(self) -> bool {
        match self {
            Self::Warn
            | Self::Tag
            | Self::Scramble
            | Self::Replace
            | Self::Strip
            | Self::Substitute => true,
            Self::Pass | Self::Clean | Self::Block | Self::Quarantine => false,
        }
    }

    /// Whether what was found is still there when it is delivered.
    #[must_use]
    pub const fn leaves_it(self) -> bool {
        matches!(self, Self::Pass | Self::Warn | Self::Tag)
    }

    /// Whether nothing is delivered.
    #[must_use]
    pub const fn refuses(self) -> bool {
        matches!(self, Self::Block | Self::Quarantine)
    }
}

words! {
    /// Who is told of an object.
    Party {
        /// The recipients that are inside.
        Recipient = "recipient",
        /// All recipients, wherever they are.
        Addressees = "addressees",
        /// The sender, if it is inside.
        Sender = "sender",
        /// The administrators.
        Admin = "admin",
    }
}

words! {
    /// Whether the connection to the relay of notices is encrypted.
    RelayTls {
        /// When the relay offers it; its certificate is not looked at.
        Offered = "offered",
        /// Always, with a certificate for its name; otherwise notices wait.
        Always = "always",
        /// Never.
        Never = "never",
    }
}

words! {
    /// How the connection to a mail server is protected.
    MailboxSecurity {
        /// TLS from the first byte (RFC 8314).
        Tls = "tls",
        /// TLS after STARTTLS, or no connection.
        Starttls = "starttls",
        /// Not at all, to a server on this machine.
        None = "none",
        /// Not at all, wherever the server is: passwords and mail travel in the clear.
        Insecure = "insecure",
    }
}

words! {
    /// How to log in to a mail server.
    MailboxAuth {
        /// With a password: AUTHENTICATE PLAIN where the server offers it, else LOGIN.
        Auto = "auto",
        /// With a password: AUTHENTICATE PLAIN.
        Plain = "plain",
        /// With a password: LOGIN.
        Login = "login",
        /// With an access token: AUTHENTICATE XOAUTH2.
        Xoauth2 = "xoauth2",
    }
}

words! {
    /// Which messages of a mailbox are scanned.
    Which {
        /// Those that nobody has read.
        Unread = "unread",
        /// All.
        All = "all",
    }
}

words! {
    /// Where the log goes and how it looks.
    LogFormat {
        /// Journal priorities under systemd, text elsewhere.
        Auto = "auto",
        /// Text on standard error.
        Text = "text",
        /// JSON lines on standard error.
        Json = "json",
        /// Text on standard error, each line begun with its syslog priority (`<6>`).
        Journal = "journal",
    }
}

impl Scalar for Verdict {
    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        word(
            value,
            &[
                ("infected", Verdict::Infected),
                ("unscannable", Verdict::Unscannable),
                ("error", Verdict::Error),
            ],
            &[("clean", "a clean object always passes")],
        )
    }
}

impl Scalar for Reason {
    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        let pairs: Vec<(&'static str, Reason)> = REASONS.iter().map(|r| (r.as_str(), *r)).collect();
        word(value, &pairs, &[])
    }
}

/// All reasons why something is not read.
pub const REASONS: &[Reason] = &[
    Reason::Size,
    Reason::Unpacked,
    Reason::Ratio,
    Reason::Depth,
    Reason::Members,
    Reason::Headers,
    Reason::Time,
    Reason::Memory,
    Reason::Encrypted,
    Reason::EncryptedMail,
    Reason::Malformed,
    Reason::Unsupported,
    Reason::Partial,
    Reason::External,
];

/// The word that stands for a verdict in configuration, events and metrics.
#[must_use]
pub fn verdict_str(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Clean => "clean",
        Verdict::Error => "error",
        Verdict::Unscannable => "unscannable",
        Verdict::Infected => "infected",
    }
}

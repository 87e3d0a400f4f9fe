//! `[[access]]`: who may use the gateway for what. What a rule means for a session is `crate::access`'s business.

use super::read::{Reader, Scalar, Table, Wrong, kind};
use super::terms::{CommandGroup, Permission, Protocol};
use ipnet::IpNet;
use std::fmt;
use toml::de::DeValue;
use vscan_scan::glob::Glob;

/// `[[access]]`: who may use the gateway for what. An empty list matches everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// What the rule says.
    pub action: Permission,
    /// Clients.
    pub from: Vec<IpNet>,
    /// Servers, as dialled.
    pub to: Vec<IpNet>,
    /// Protocols.
    pub protocol: Vec<Protocol>,
    /// FTP: the user's name.
    pub user: Vec<Glob>,
    /// FTP: commands.
    pub commands: Vec<Commands>,
    /// SMTP: the sender's address.
    pub sender: Vec<Glob>,
    /// SMTP: a recipient's address.
    pub recipient: Vec<Glob>,
    /// SMTP: whether the client has authenticated itself to the server; none: either.
    pub auth: Option<bool>,
}

impl Access {
    /// Whether the rule asks for something that only the dialogue shows. Whoever sees no more than addresses and
    /// ports has to take an `allow` for a perhaps, and must draw no conclusion from a `deny`.
    #[must_use]
    pub fn is_conditional(&self) -> bool {
        !self.user.is_empty()
            || !self.commands.is_empty()
            || !self.sender.is_empty()
            || !self.recipient.is_empty()
            || self.auth.is_some()
    }

    /// Whether the rule speaks of this protocol.
    #[must_use]
    pub fn speaks_of(&self, protocol: Protocol) -> bool {
        self.protocol.is_empty() || self.protocol.contains(&protocol)
    }
}

/// FTP commands that a rule names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Commands {
    /// All of a group.
    Group(CommandGroup),
    /// One, in capitals.
    Verb(String),
}

impl fmt::Display for Commands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Group(group) => group.fmt(f),
            Self::Verb(verb) => f.pad(verb),
        }
    }
}

impl Scalar for Commands {
    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        const HELP: &str =
            "write read, write, delete or list, or a single command in capitals, as in \"SITE\"";
        let Some(text) = value.as_str() else {
            return Err(Wrong::new(format!("must be a string, this is {}", kind(value))).help(HELP));
        };
        if let Some(group) = CommandGroup::ALL.iter().find(|group| group.as_str() == text) {
            return Ok(Self::Group(*group));
        }
        // the longest verb that the FTP session takes for one
        if (3..=12).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_uppercase()) {
            return Ok(Self::Verb(text.to_owned()));
        }
        Err(Wrong::new(format!("{text:?} is neither a group of commands nor a command")).help(HELP))
    }
}

/// Keys of rules that concern one protocol only.
const FTP_KEYS: [&str; 2] = ["user", "commands"];
const SMTP_KEYS: [&str; 3] = ["sender", "recipient", "auth"];

pub(super) fn read(r: &mut Reader<'_>, mut t: Table<'_, '_>) -> Access {
    let mut access = Access {
        action: t.get(r, "action", Permission::Allow),
        from: t.one_or_more(r, "from"),
        to: t.one_or_more(r, "to"),
        protocol: t.one_or_more(r, "protocol"),
        user: t.one_or_more(r, "user"),
        commands: t.one_or_more(r, "commands"),
        sender: t.one_or_more(r, "sender"),
        recipient: t.one_or_more(r, "recipient"),
        auth: t.opt(r, "auth"),
    };
    if access.protocol.contains(&Protocol::Mailbox) {
        let wrong =
            Wrong::new(format!("`{}`: no connection is of \"mailbox\"", t.name("protocol")))
                .help("connections are of \"ftp\" or \"smtp\"");
        r.report(t.span_of("protocol"), wrong);
    }
    let of = |keys: &[&'static str]| keys.iter().copied().find(|key| t.has(key));
    let (ftp, smtp) = (of(&FTP_KEYS), of(&SMTP_KEYS));
    if let (Some(ftp), Some(smtp)) = (ftp, smtp) {
        let wrong = Wrong::new(format!(
            "`{}` is for FTP and `{}` for SMTP: no connection is both",
            t.name(ftp),
            t.name(smtp)
        ))
        .help("write two rules");
        r.report(t.span_of(smtp), wrong);
    }
    for (key, protocol) in [(ftp, Protocol::Ftp), (smtp, Protocol::Smtp)] {
        let Some(key) = key else { continue };
        if access.protocol.is_empty() {
            access.protocol = vec![protocol];
        } else if access.protocol != [protocol] {
            let wrong = Wrong::new(format!(
                "`{}` is for protocol \"{protocol}\", and this rule is not for that alone",
                t.name(key)
            ))
            .help(format!("write protocol = [\"{protocol}\"], or leave it out"));
            r.report(t.span_of(key), wrong);
        }
    }
    t.finish(r);
    access
}

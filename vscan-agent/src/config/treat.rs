//! `[[treat]]`: what is done with objects that are not clean.

use super::notify::Address;
use super::read::{Reader, Table, Wrong};
use super::terms::{Direction, Party, Protocol, Treatment};
use super::value::{Extension, Size};
use ipnet::IpNet;
use vscan_scan::glob::Glob;
use vscan_scan::report::{Reason, Verdict};

/// What stands in front of the subject of a tagged message unless a rule says something else.
const SUBJECT: &str = "[vscan]";

/// Bytes that the words in front of a subject may have: a header line has 998 (RFC 5322 2.1.1), and
/// the subject itself wants most of them.
const SUBJECT_MAX: usize = 60;

/// A rule: an empty list matches everything.
#[derive(Clone, Debug, PartialEq)]
pub struct Treat {
    /// Protocols.
    pub protocol: Vec<Protocol>,
    /// Directions of the transfer.
    pub direction: Vec<Direction>,
    /// Verdicts.
    pub verdict: Vec<Verdict>,
    /// Reasons for not having read something.
    pub reason: Vec<Reason>,
    /// Names of detections.
    pub detection: Vec<Glob>,
    /// Extensions of the names of the object and of the parts that hold what was found.
    pub extension: Vec<String>,
    /// Names of the object and of the parts that hold what was found; a path matches as a whole or by its last name.
    pub name: Vec<Glob>,
    /// Types by content, of the object or of the part that was found.
    pub r#type: Vec<Glob>,
    /// The object has at least this many bytes.
    pub min_size: Option<u64>,
    /// The object has at most this many bytes.
    pub max_size: Option<u64>,
    /// Clients.
    pub from: Vec<IpNet>,
    /// Servers.
    pub to: Vec<IpNet>,
    /// FTP users, accounts of mailboxes.
    pub user: Vec<Glob>,
    /// Folders of mailboxes.
    pub folder: Vec<Glob>,
    /// Senders of mail.
    pub sender: Vec<Mailboxes>,
    /// Recipients of mail; each of them is decided on by itself.
    pub recipient: Vec<Mailboxes>,
    /// What is done: the first that is possible. Never empty; behind the last one stands `block`.
    pub action: Vec<Treatment>,
    /// Whether a copy of the object as it came is kept in the quarantine before anything is changed.
    pub keep: bool,
    /// Who gets the original, attached to a message of the gateway's own.
    pub redirect: Option<Address>,
    /// What stands in front of the subject of a tagged message.
    pub subject: String,
    /// Whether portions inside of signatures may be changed.
    pub edit_signed: bool,
    /// Who is told.
    pub notify: Vec<Party>,
}

/// A pattern for mail addresses: `bob@example.com`, `*@example.com`, a domain alone, or `<>` for the null sender.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mailboxes(Glob);

impl Mailboxes {
    /// Every string is a pattern.
    #[must_use]
    pub fn new(pattern: &str) -> Self {
        Self(match pattern {
            "<>" => Glob::new("<>"),
            address if address.contains('@') => Glob::new(address),
            domain => Glob::new(&format!("*@{domain}")),
        })
    }

    /// Whether an address matches, bare as the dialogue has it; empty for the null sender.
    #[must_use]
    pub fn matches(&self, address: &[u8]) -> bool {
        let address = if address.is_empty() { b"<>" } else { address };
        self.0.matches(&String::from_utf8_lossy(address))
    }
}

impl super::read::Scalar for Mailboxes {
    fn read(value: &toml::de::DeValue<'_>) -> Result<Self, Wrong> {
        let pattern: Glob = Glob::read(value)?;
        let text = pattern.as_str();
        if text.chars().any(|c| c.is_whitespace() || (matches!(c, '<' | '>') && text != "<>")) {
            return Err(Wrong::new(format!("{text:?} is no pattern for addresses")).help(
                "write \"bob@example.com\", \"*@example.com\", \"example.com\", or \"<>\" for the null sender",
            ));
        }
        Ok(Self::new(text))
    }
}

/// Reads all rules.
pub(super) fn rules(r: &mut Reader<'_>, root: &mut Table<'_, '_>) -> Vec<Treat> {
    root.tables(r, "treat").into_iter().filter_map(|t| rule(r, t)).collect()
}

fn rule(r: &mut Reader<'_>, mut t: Table<'_, '_>) -> Option<Treat> {
    let action: Vec<Treatment> = t.one_or_more(r, "action");
    if !t.has("action") {
        let wrong = Wrong::new(format!("`{}` is missing", t.name("action"))).help(
            "write action = \"block\", or a list such as [\"clean\", \"replace\", \"block\"]",
        );
        r.report(t.span(), wrong);
    }
    let extensions: Vec<Extension> = t.one_or_more(r, "extension");
    let size = |Size(bytes)| bytes;
    let treat = Treat {
        protocol: t.one_or_more(r, "protocol"),
        direction: t.one_or_more(r, "direction"),
        verdict: t.one_or_more(r, "verdict"),
        reason: t.one_or_more(r, "reason"),
        detection: t.one_or_more(r, "detection"),
        extension: extensions.into_iter().map(|Extension(e)| e).collect(),
        name: t.one_or_more(r, "name"),
        r#type: t.one_or_more(r, "type"),
        min_size: t.opt(r, "min_size").map(size),
        max_size: t.opt(r, "max_size").map(size),
        from: t.one_or_more(r, "from"),
        to: t.one_or_more(r, "to"),
        user: t.one_or_more(r, "user"),
        folder: t.one_or_more(r, "folder"),
        sender: t.one_or_more(r, "sender"),
        recipient: t.one_or_more(r, "recipient"),
        keep: t.get(r, "keep", false),
        redirect: t.opt(r, "redirect"),
        subject: t.get(r, "subject", SUBJECT.to_owned()),
        edit_signed: t.get(r, "edit_signed", false),
        notify: t.one_or_more(r, "notify"),
        action,
    };
    check_verdicts(r, &t, &treat);
    check_protocols(r, &t, &treat);
    check_actions(r, &t, &treat);
    if treat.min_size.zip(treat.max_size).is_some_and(|(min, max)| min > max) {
        let wrong = Wrong::new(format!("`{}` is more than `max_size`", t.name("min_size")));
        r.report(t.span_of("min_size"), wrong);
    }
    let printable = |text: &str| !text.chars().any(char::is_control);
    if treat.subject.len() > SUBJECT_MAX || !printable(&treat.subject) {
        let wrong = Wrong::new(format!(
            "`{}` must be at most {SUBJECT_MAX} bytes without control characters",
            t.name("subject")
        ));
        r.report(t.span_of("subject"), wrong);
    }
    t.finish(r);
    (!treat.action.is_empty()).then_some(treat)
}

/// Keys that only match verdicts which the rule excludes.
fn check_verdicts(r: &mut Reader<'_>, t: &Table<'_, '_>, treat: &Treat) {
    for (key, verdict, used) in [
        ("reason", Verdict::Unscannable, !treat.reason.is_empty()),
        ("detection", Verdict::Infected, !treat.detection.is_empty()),
    ] {
        if used && !treat.verdict.is_empty() && !treat.verdict.contains(&verdict) {
            let wrong = Wrong::new(format!(
                "`{}` only matches verdict \"{}\", which this rule excludes",
                t.name(key),
                super::terms::verdict_str(verdict)
            ))
            .help("leave out `verdict`, or add that one to it");
            r.report(t.span_of(key), wrong);
        }
    }
}

/// Keys that mean nothing to the only protocol of the rule.
fn check_protocols(r: &mut Reader<'_>, t: &Table<'_, '_>, treat: &Treat) {
    let [only] = treat.protocol[..] else { return };
    let parties = treat.notify.iter().any(|p| *p != Party::Admin);
    let folder = ("folder", !treat.folder.is_empty());
    let keys: &[(&str, bool)] = match only {
        Protocol::Ftp => &[
            ("sender", !treat.sender.is_empty()),
            ("recipient", !treat.recipient.is_empty()),
            ("notify", parties),
            folder,
        ],
        Protocol::Smtp => &[("user", !treat.user.is_empty()), folder],
        Protocol::Mailbox => &[],
    };
    for (key, used) in keys {
        if *used {
            let help = match *key {
                "notify" => "leave it out; for files only \"admin\" can be told",
                _ => "leave it out",
            };
            let wrong = Wrong::new(format!("`{}` means nothing to {only}", t.name(key))).help(help);
            r.report(t.span_of(key), wrong);
        }
    }
}

/// What stands behind an action that is always possible would never be tried.
fn check_actions(r: &mut Reader<'_>, t: &Table<'_, '_>, treat: &Treat) {
    let all = &treat.action;
    let last = all.len().saturating_sub(1);
    for (n, action) in all.iter().enumerate() {
        if n < last && action.is_certain() {
            let wrong = Wrong::new(format!(
                "`{}`: \"{action}\" is always possible, what stands behind it is never tried",
                t.name("action")
            ));
            r.report(t.span_of("action"), wrong);
        }
        if all[..n].contains(action) {
            let wrong = Wrong::new(format!("`{}` names \"{action}\" twice", t.name("action")));
            r.report(t.span_of("action"), wrong);
        }
    }
    if let [only] = treat.protocol[..]
        && only == Protocol::Ftp
        && let Some(action) = all.iter().find(|a| a.needs_mail())
    {
        let wrong = Wrong::new(format!("`{}`: \"{action}\" is for mail only", t.name("action")))
            .help("for files there are pass, clean, block and quarantine");
        r.report(t.span_of("action"), wrong);
    }
}

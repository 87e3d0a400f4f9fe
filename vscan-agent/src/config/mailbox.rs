//! `[mailbox.NAME]`: mail that is scanned where it lies, on a mail server. How it is scanned is `crate::mailbox`'s business.

use super::read::{Reader, Scalar, Table, Wrong, kind};
use super::terms::{MailboxAuth, MailboxSecurity, Which};
use super::value::OrNone;
use std::net::IpAddr;
use std::num::{NonZeroU16, NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;
use toml::de::DeValue;
use vscan_scan::glob::Glob;

/// `[mailbox.NAME]`: one account, or those of many users of one server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mailbox {
    /// Its name in the configuration.
    pub name: String,
    /// The server.
    pub host: String,
    /// Its port.
    pub port: NonZeroU16,
    /// How the connection is protected.
    pub security: MailboxSecurity,
    /// A file with the certificates that sign the server's; none: those of the system.
    pub ca: Option<PathBuf>,
    /// How to log in.
    pub auth: MailboxAuth,
    /// Who logs in, and where.
    pub identity: Identity,
    /// What stands behind a user's name in his mail address, where his name is none.
    pub domain: Option<String>,
    /// The folders that are scanned. Never empty.
    pub folders: Vec<Glob>,
    /// Those of them that are not.
    pub exclude: Vec<Glob>,
    /// Which messages are scanned.
    pub which: Which,
    /// Whether a message whose structure shows nothing but plain text is settled by that, without being fetched.
    pub skip_plain: bool,
    /// Time between two looks at a folder.
    pub interval: Duration,
    /// Whether the server is asked to tell of new mail at once.
    pub idle: bool,
    /// Connections to the server at one time.
    pub connections: NonZeroUsize,
    /// Messages of each account that the buffer holds.
    pub remember: NonZeroUsize,
    /// Whether messages stay in the buffer that were read meanwhile.
    pub remember_read: bool,
    /// A keyword that marks scanned messages on the server; none: they are not marked.
    pub keyword: Option<String>,
    /// What is scanned again by new rules; none: nothing.
    pub rescan: Option<Rescan>,
    /// The folder of the server that takes what is quarantined; none: the gateway's quarantine takes it.
    pub quarantine_folder: Option<String>,
    /// Whether other accounts of this server are searched for copies of what was found in one.
    pub copies: bool,
    /// Whether treatments are only told of.
    pub dry_run: bool,
}

/// Whose mail is scanned, and who logs in for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// One account.
    One {
        /// Its user.
        user: String,
        /// His password or token.
        secret: Secret,
    },
    /// An administrator logs in on behalf of users.
    Behalf {
        /// The administrator.
        admin: String,
        /// His password.
        secret: Secret,
        /// How the server is told.
        master: Master,
        /// The users that are named here.
        users: Vec<String>,
        /// A file with more of them, one a line.
        file: Option<PathBuf>,
    },
    /// Many accounts with passwords of their own, in a file: a user, white space and his password on each line.
    File(PathBuf),
}

/// How a server is told on whose behalf an administrator logs in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Master {
    /// By the authorization identity of AUTHENTICATE PLAIN (RFC 4616 2).
    Authzid,
    /// By a user name of both with this between: `ann*admin`.
    Separator(String),
}

/// Where a secret is. It is read anew for each login, so that it can be changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Secret {
    /// In a file, its first line.
    File(PathBuf),
    /// A credential of systemd (`$CREDENTIALS_DIRECTORY`, systemd.exec(5)).
    Credential(String),
    /// What a command prints, its first line: for access tokens that expire.
    Command(Vec<String>),
}

/// `rescan_age`, `rescan_folders`, `rescan_rate`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rescan {
    /// Messages that were scanned longer ago are not scanned again.
    pub age: Duration,
    /// In which folders; empty: in all that are scanned.
    pub folders: Vec<Glob>,
    /// How many a minute, of all accounts together.
    pub rate: NonZeroU32,
}

impl Mailbox {
    /// Whether the server is this machine, so that nobody can listen on the way.
    fn is_local(host: &str) -> bool {
        host.eq_ignore_ascii_case("localhost")
            || host.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
    }

    /// A user's mail address; none: it is not known.
    #[must_use]
    pub fn address(&self, user: &str) -> Option<String> {
        match &self.domain {
            _ if user.contains('@') => Some(user.to_owned()),
            Some(domain) => Some(format!("{user}@{domain}")),
            None => None,
        }
    }
}

impl Scalar for Master {
    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        const HELP: &str = "write \"authzid\", or what stands between the two names, as in \"*\"";
        let Some(text) = value.as_str() else {
            return Err(Wrong::new(format!("must be a string, this is {}", kind(value))).help(HELP));
        };
        if text == "authzid" {
            return Ok(Self::Authzid);
        }
        let sign = |c: char| c.is_ascii_punctuation();
        if (1..=4).contains(&text.len()) && text.chars().all(sign) {
            return Ok(Self::Separator(text.to_owned()));
        }
        Err(Wrong::new(format!("{text:?} is no way to log in for others")).help(HELP))
    }
}

/// A flag's name of a server (RFC 9051 9, `flag-keyword`: an atom).
struct Keyword(String);

impl Scalar for Keyword {
    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        let text = String::read(value)?;
        let atom = |c: char| c.is_ascii_graphic() && !"(){%*\"\\]".contains(c);
        if text.is_empty() || text.len() > 100 || !text.chars().all(atom) {
            return Err(Wrong::new(format!("{text:?} cannot be a keyword of IMAP"))
                .help("write a word such as \"$VscanScanned\""));
        }
        Ok(Self(text))
    }
}

/// Reads `[mailbox.NAME]`.
pub(super) fn sections(r: &mut Reader<'_>, root: &mut Table<'_, '_>) -> Vec<Mailbox> {
    root.subtables(r, "mailbox").into_iter().filter_map(|(name, t)| section(r, name, t)).collect()
}

fn section(r: &mut Reader<'_>, name: String, mut t: Table<'_, '_>) -> Option<Mailbox> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if name.is_empty() || name.starts_with('.') || name.len() > 64 || !name.chars().all(plain) {
        let wrong = Wrong::new(format!("`{}` cannot be the name of a mailbox", t.name("")))
            .help("use letters, digits, `-`, `_` and `.`, 64 at most");
        r.report(t.span(), wrong);
    }
    let host: Option<String> = needed(r, &mut t, "host", "\"imap.example.org\"");
    let security = t.get(r, "security", MailboxSecurity::Tls);
    let port = match security {
        MailboxSecurity::Tls => 993,
        MailboxSecurity::Starttls | MailboxSecurity::None | MailboxSecurity::Insecure => 143,
    };
    let auth = t.get(r, "auth", MailboxAuth::Auto);
    let identity = identity(r, &mut t, auth);
    let rescan = rescan(r, &mut t);
    let mailbox = host.zip(identity).map(|(host, identity)| Mailbox {
        name,
        host,
        port: t.get(r, "port", NonZeroU16::new(port).unwrap_or(NonZeroU16::MIN)),
        security,
        ca: t.opt(r, "ca"),
        auth,
        identity,
        domain: t.opt(r, "domain"),
        folders: t.list(r, "folders", vec![Glob::new("INBOX")]),
        exclude: t.list(r, "exclude", Vec::new()),
        which: t.get(r, "which", Which::Unread),
        skip_plain: t.get(r, "skip_plain", false),
        interval: t.get(r, "interval", Duration::from_secs(30)),
        idle: t.get(r, "idle", true),
        connections: t.get(r, "connections", NonZeroUsize::MIN.saturating_add(3)),
        remember: t.get(r, "remember", NonZeroUsize::MIN.saturating_add(99_999)),
        remember_read: t.get(r, "remember_read", rescan.is_some()),
        keyword: t.opt(r, "keyword").map(|Keyword(word)| word),
        rescan,
        quarantine_folder: t.opt(r, "quarantine_folder"),
        copies: t.get(r, "copies", true),
        dry_run: t.get(r, "dry_run", false),
    });
    if let Some(mailbox) = &mailbox {
        check(r, &t, mailbox);
        t.finish(r);
    }
    mailbox
}

fn check(r: &mut Reader<'_>, t: &Table<'_, '_>, mailbox: &Mailbox) {
    if mailbox.security == MailboxSecurity::None && !Mailbox::is_local(&mailbox.host) {
        let wrong = Wrong::new(format!(
            "`{}`: the password would travel to {} in the clear",
            t.name("security"),
            mailbox.host
        ))
        .help("write \"tls\" or \"starttls\", or \"insecure\" if that is what you want");
        r.report(t.span_of("security"), wrong);
    }
    if mailbox.interval < Duration::from_secs(1) {
        let wrong = Wrong::new(format!("`{}` must be at least 1s", t.name("interval")));
        r.report(t.span_of("interval"), wrong);
    }
    if mailbox.folders.is_empty() {
        let wrong = Wrong::new(format!("`{}` must not be empty", t.name("folders")));
        r.report(t.span_of("folders"), wrong);
    }
    if mailbox.rescan.is_some() && !mailbox.remember_read {
        let wrong = Wrong::new(format!(
            "`{}`: what is scanned again has to be remembered",
            t.name("remember_read")
        ))
        .help("leave it out");
        r.report(t.span_of("remember_read"), wrong);
    }
}

/// A key without which there is no mailbox.
fn needed<T: Scalar>(
    r: &mut Reader<'_>,
    t: &mut Table<'_, '_>,
    key: &'static str,
    example: &str,
) -> Option<T> {
    if !t.has(key) {
        let wrong = Wrong::new(format!("`{}` is missing", t.name(key)))
            .help(format!("write {key} = {example}"));
        r.report(t.span(), wrong);
    }
    t.opt(r, key)
}

fn identity(r: &mut Reader<'_>, t: &mut Table<'_, '_>, auth: MailboxAuth) -> Option<Identity> {
    let file: Option<PathBuf> = t.opt(r, "accounts_file");
    let users: Vec<String> = t.list(r, "users", Vec::new());
    let users_file: Option<PathBuf> = t.opt(r, "users_file");
    let behalf = t.has("users") || users_file.is_some();
    let master = t.opt(r, "master");
    let secret = secret(r, t, file.is_none());
    if let Some(file) = file {
        let user: Option<String> = t.opt(r, "user");
        if user.is_some() || secret.is_some() || behalf || master.is_some() {
            let wrong = Wrong::new(format!(
                "`{}` has users and passwords: no other can be given beside it",
                t.name("accounts_file")
            ));
            r.report(t.span_of("accounts_file"), wrong);
        }
        return Some(Identity::File(file));
    }
    let user = needed(r, t, "user", "\"support@example.org\"");
    if !behalf {
        if master.is_some() {
            let wrong =
                Wrong::new(format!("`{}` is for logins on behalf of users", t.name("master")))
                    .help("name them by users = [\"ann\", \"bob\"] or users_file = \"...\"");
            r.report(t.span_of("master"), wrong);
        }
        let (user, secret) = user.zip(secret)?;
        return Some(Identity::One { user, secret });
    }
    if auth == MailboxAuth::Xoauth2 {
        let wrong = Wrong::new(format!("`{}`: a token is for one user's mailbox", t.name("auth")))
            .help("log in with an administrator's password, or name one user alone");
        r.report(t.span_of("auth"), wrong);
    }
    let master = master.unwrap_or(Master::Authzid);
    if auth == MailboxAuth::Login && master == Master::Authzid {
        let wrong = Wrong::new(format!("`{}`: LOGIN names one user only", t.name("auth")))
            .help("write master = \"*\", or whatever the server wants between the names");
        r.report(t.span_of("auth"), wrong);
    }
    let (admin, secret) = user.zip(secret)?;
    Some(Identity::Behalf { admin, secret, master, users, file: users_file })
}

/// The secret; `wanted`: that there is none is reported.
fn secret(r: &mut Reader<'_>, t: &mut Table<'_, '_>, wanted: bool) -> Option<Secret> {
    let file = t.opt::<PathBuf>(r, "secret_file").map(Secret::File);
    let credential = t.opt::<String>(r, "credential").map(Secret::Credential);
    let command = t.list::<String>(r, "secret_command", Vec::new());
    if t.has("secret_command") && command.first().is_none_or(|program| !program.starts_with('/')) {
        let wrong = Wrong::new(format!("`{}` must begin with a program", t.name("secret_command")))
            .help("write secret_command = [\"/usr/bin/...\", \"...\"]: no shell reads it");
        r.report(t.span_of("secret_command"), wrong);
    }
    if let Some(Secret::Credential(name)) = &credential
        && (name.is_empty() || name.contains('/') || name.starts_with('.'))
    {
        let wrong = Wrong::new(format!("`{}`: {name:?} is no credential", t.name("credential")))
            .help("write the name that LoadCredential= of the unit gives it");
        r.report(t.span_of("credential"), wrong);
    }
    let command = (!command.is_empty()).then_some(Secret::Command(command));
    let all: Vec<Secret> = file.into_iter().chain(credential).chain(command).collect();
    if all.len() > 1 {
        let wrong = Wrong::new(format!(
            "more than one of `{}`, `credential` and `secret_command` is given",
            t.name("secret_file")
        ))
        .help("keep one of them");
        r.report(t.span(), wrong);
    }
    if all.is_empty() && wanted && !t.has("secret_command") {
        let wrong = Wrong::new(format!("`{}` is missing", t.name("secret_file"))).help(
            "write secret_file = \"/etc/vscan/secrets/...\", credential = \"...\", or secret_command = [\"...\"]",
        );
        r.report(t.span(), wrong);
    }
    all.into_iter().next()
}

fn rescan(r: &mut Reader<'_>, t: &mut Table<'_, '_>) -> Option<Rescan> {
    let age = t.opt::<OrNone<Duration>>(r, "rescan_age").and_then(OrNone::into_option);
    let folders = t.list(r, "rescan_folders", Vec::new());
    let rate = t.opt(r, "rescan_rate");
    if age.is_none() && (rate.is_some() || t.has("rescan_folders")) {
        let key = if rate.is_some() { "rescan_rate" } else { "rescan_folders" };
        let wrong = Wrong::new(format!("`{}` means nothing without `rescan_age`", t.name(key)))
            .help("write rescan_age = \"7d\"");
        r.report(t.span_of(key), wrong);
    }
    let rate = rate.unwrap_or(NonZeroU32::MIN.saturating_add(59));
    Some(Rescan { age: age?, folders, rate })
}

#[cfg(test)]
mod tests;

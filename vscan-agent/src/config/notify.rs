//! `[notify]`: notices by mail, and the relay that takes them.

use super::read::{Reader, Scalar, Table, Wrong, kind};
use super::terms::{Party, RelayTls};
use super::value::{OrNone, Size};
use super::{Config, treat::Treat};
use std::fmt;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;
use toml::de::DeValue;

/// Notices that may wait: at a few KiB each some tens of MiB on disk.
const QUEUE_MAX: usize = 10_000;

/// `[notify]`
#[derive(Clone, Debug, PartialEq)]
pub struct Notify {
    /// The mail server that takes notices; none: there are no notices.
    pub relay: Option<Relay>,
    /// Whether the connection to it is encrypted.
    pub tls: RelayTls,
    /// Name to log in with; none: no login.
    pub login: Option<String>,
    /// File that holds the password, on its first line.
    pub password_file: Option<PathBuf>,
    /// This gateway's name in notices, headers and greetings; none: the system's host name.
    pub name: Option<String>,
    /// What stands in From; none: `postmaster@` and the name.
    pub from: Option<Address>,
    /// The administrators' addresses.
    pub admin: Vec<Address>,
    /// Mail domains that are inside; empty: an address is inside when its side of the connection is.
    pub domains: Vec<String>,
    /// Whether senders outside are told as well: most of them are forged, and get what they never caused.
    pub outside_senders: bool,
    /// Directory with templates that take the place of the built-in ones.
    pub templates: Option<PathBuf>,
    /// The same detection between the same parties is told once in this time.
    pub interval: Duration,
    /// Notices that one address gets in an hour at most; none: as many as there are.
    pub per_hour: Option<NonZeroUsize>,
    /// Notices that may wait.
    pub queue_max: NonZeroUsize,
    /// A larger original is not attached to a redirected message, in bytes.
    pub attach_max: u64,
    /// Pause after a failed attempt; it doubles with each, up to an hour.
    pub retry: Duration,
    /// How long a notice is tried before it is given up.
    pub expire: Duration,
}

impl Default for Notify {
    fn default() -> Self {
        Self {
            relay: None,
            tls: RelayTls::Offered,
            login: None,
            password_file: None,
            name: None,
            from: None,
            admin: Vec::new(),
            domains: Vec::new(),
            outside_senders: false,
            templates: None,
            interval: Duration::from_secs(3600),
            per_hour: NonZeroUsize::new(20),
            queue_max: NonZeroUsize::new(QUEUE_MAX).unwrap_or(NonZeroUsize::MIN),
            attach_max: 10 << 20,
            retry: Duration::from_secs(60),
            expire: Duration::from_secs(3 * 86_400),
        }
    }
}

/// A mail server: a name or an address, and its port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relay {
    /// Host name or address, without brackets.
    pub host: String,
    /// Port; 25 if none was given.
    pub port: u16,
}

impl fmt::Display for Relay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl Scalar for Relay {
    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        let wrong = |text: &str| {
            Wrong::new(format!("{text:?} is not a mail server"))
                .help("write \"mail.example.com\", \"192.0.2.25:25\" or \"[2001:db8::25]:25\"")
        };
        let Some(text) = value.as_str() else {
            return Err(wrong(kind(value)));
        };
        let (host, port) = match text.strip_prefix('[').and_then(|t| t.split_once(']')) {
            Some((host, "")) => (host, None),
            Some((host, rest)) => (host, Some(rest.strip_prefix(':').ok_or_else(|| wrong(text))?)),
            None => match text.rsplit_once(':') {
                Some((host, port)) if !host.contains(':') => (host, Some(port)),
                _ => (text, None),
            },
        };
        let port = match port {
            None => 25,
            Some(port) => port.parse().ok().filter(|p| *p != 0).ok_or_else(|| wrong(text))?,
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '%');
        if host.is_empty() || !host.chars().all(plain) {
            return Err(wrong(text));
        }
        Ok(Self { host: host.to_owned(), port })
    }
}

/// A mail address that can be written to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Address(lettre::Address);

impl Address {
    /// None when the text is no address.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        text.parse().ok().map(Self)
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.as_ref()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl Scalar for Address {
    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        let text = String::read(value)?;
        Self::new(&text).ok_or_else(|| {
            Wrong::new(format!("{text:?} is not a mail address"))
                .help("write it bare, as in \"postmaster@example.com\"")
        })
    }
}

/// A mail domain or host name, in lower case.
struct Domain(String);

impl Scalar for Domain {
    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        let text = String::read(value)?;
        let plain = |c: char| c.is_alphanumeric() || matches!(c, '.' | '-' | '_');
        if text.is_empty() || text.len() > 255 || !text.chars().all(plain) {
            return Err(
                Wrong::new(format!("{text:?} is not a domain")).help("write it as \"example.com\"")
            );
        }
        Ok(Self(text.to_lowercase()))
    }
}

/// Reads the section.
pub(super) fn section(r: &mut Reader<'_>, root: &mut Table<'_, '_>) -> Notify {
    let mut t = root.table(r, "notify");
    let d = Notify::default();
    let notify = Notify {
        relay: t.opt::<OrNone<Relay>>(r, "relay").and_then(OrNone::into_option),
        tls: t.get(r, "tls", d.tls),
        login: t.opt(r, "login"),
        password_file: t.opt(r, "password_file"),
        name: t.opt::<Domain>(r, "name").map(|Domain(name)| name),
        from: t.opt(r, "from"),
        admin: t.one_or_more(r, "admin"),
        domains: t
            .list::<Domain>(r, "domains", Vec::new())
            .into_iter()
            .map(|Domain(d)| d)
            .collect(),
        outside_senders: t.get(r, "outside_senders", d.outside_senders),
        templates: t.opt(r, "templates"),
        interval: t.get(r, "interval", d.interval),
        per_hour: t.opt::<OrNone<_>>(r, "per_hour").map_or(d.per_hour, OrNone::into_option),
        queue_max: t.get(r, "queue_max", d.queue_max),
        attach_max: t.get(r, "attach_max", Size(d.attach_max)).0,
        retry: super::sections::positive(r, &mut t, "retry", d.retry),
        expire: super::sections::positive(r, &mut t, "expire", d.expire),
    };
    if notify.login.is_some() != notify.password_file.is_some() {
        let wrong = Wrong::new("`notify.login` and `notify.password_file` go together");
        r.report(t.span_of(if notify.login.is_some() { "login" } else { "password_file" }), wrong);
    }
    if notify.login.is_some() && notify.tls != RelayTls::Always {
        let wrong = Wrong::new("`notify.login` would send the password in the clear")
            .help("write tls = \"always\"");
        r.report(t.span_of("login"), wrong);
    }
    t.finish(r);
    notify
}

/// What the rules need of this section.
pub(super) fn between(r: &mut Reader<'_>, root: &Table<'_, '_>, c: &Config) {
    let told = |treat: &Treat| !treat.notify.is_empty() || treat.redirect.is_some();
    if c.notify.relay.is_none() && c.treat.iter().any(told) {
        let wrong =
            Wrong::new("a rule of `[[treat]]` sends notices, and `notify.relay` is missing")
                .help("write relay = \"mail.example.com\" below [notify]");
        r.report(root.table_span("notify", "relay"), wrong);
    }
    if c.notify.admin.is_empty() && c.treat.iter().any(|t| t.notify.contains(&Party::Admin)) {
        let wrong =
            Wrong::new("a rule of `[[treat]]` tells \"admin\", and `notify.admin` is missing")
                .help("write admin = [\"postmaster@example.com\"] below [notify]");
        r.report(root.table_span("notify", "admin"), wrong);
    }
}

//! The configuration file, parsed into types that cannot be wrong.
//!
//! One TOML file. Every section but `[gateway]` may be left out, unknown keys are refused, and all errors are
//! reported at once, each with its place. Nothing here opens any other file or looks at the system, but for
//! whose directories are the defaults: whether an interface exists or rules compile is asked by those who need them.

mod access;
mod cache;
mod clamd;
mod error;
mod forbid;
mod mailbox;
mod notify;
mod outbound;
mod read;
mod sections;
mod terms;
mod tls;
mod treat;
mod types;
mod update;
mod value;

#[cfg(test)]
mod tests;

pub use access::{Access, Commands};
pub use cache::Cache;
pub use clamd::{Clamd, ClamdAddress};
pub use error::{ConfigErrors, Problem};
pub use forbid::{Forbidden, Types};
pub use mailbox::{Identity, Mailbox, Master, Rescan, Secret};
pub use notify::{Address, Notify, Relay};
pub use outbound::Outbound;
pub use terms::{
    Attach, BareNewline, ClamdLarger, ClamdMode, CommandGroup, Delivery, Direction, FtpDelivery,
    FtpTls, LogFormat, MailboxAuth, MailboxSecurity, OnAgentDown, OutboundAction, Party,
    Permission, Protocol, REASONS, RelayTls, Resume, Steering, TlsAction, TlsVersion, Treatment,
    UpstreamTls, Verify, Which, verdict_str,
};
pub(crate) use tls::within;
pub use tls::{
    Authority as TlsAuthority, Certificate as TlsCertificate, Destination, KeyFile, Peer, Tls,
    TlsRule, Upstream,
};
pub use treat::{Mailboxes, Treat};
pub use types::{
    Config, Ftp, Gateway, HOLD_BACK_MIN, Interface, Log, Marks, Metrics, Paths, Published,
    Quarantine, RateLimit, Scan, Smtp, Spool, TableNumber, extension,
};
pub use update::{Origin, Update};
pub use vscan_scan::glob::Glob;

use read::{Reader, Table, Wrong};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use toml::Spanned;
use toml::de::DeTable;

/// The configuration file unless another is named.
pub const DEFAULT_PATH: &str = "/etc/vscan/vscan.toml";

/// A larger configuration file is refused: it is none, in bytes.
const FILE_MAX: u64 = 16 << 20;

impl Config {
    /// Reads and parses the file.
    ///
    /// # Errors
    /// [`ConfigErrors::Unreadable`] or all that is wrong with it.
    pub fn load(path: &Path) -> Result<Self, ConfigErrors> {
        Self::parse(&read_text(path)?, path)
    }

    /// The defaults, for commands that work without a configuration file: no gateway, as it has no interfaces and no
    /// inside.
    #[must_use]
    pub fn defaults() -> Self {
        Self {
            gateway: Gateway::default(),
            paths: Paths::default(),
            access: Vec::new(),
            ftp: Ftp::default(),
            smtp: Smtp::default(),
            scan: Scan::default(),
            treat: Vec::new(),
            types: Types::default(),
            outbound: Outbound::default(),
            quarantine: Quarantine::default(),
            spool: Spool::default(),
            metrics: Metrics::default(),
            log: Log::default(),
            notify: Notify::default(),
            mailboxes: Vec::new(),
            tls: Tls::default(),
        }
    }

    /// The secret that authenticates compiled rules.
    #[must_use]
    pub fn rules_key(&self) -> PathBuf {
        self.scan.rules_key.clone().unwrap_or_else(|| self.paths.state_dir.join("rules.key"))
    }

    /// Where `vscan rules update` keeps its sets.
    #[must_use]
    pub fn rules_sets(&self) -> PathBuf {
        let update = &self.scan.update;
        update.directory.clone().unwrap_or_else(|| self.paths.state_dir.join("rules"))
    }

    /// Where the control socket is, of a configuration that may be wrong everywhere else: a running agent can be asked
    /// also while its file is being edited.
    ///
    /// # Errors
    /// The file cannot be read, is no TOML, or is wrong in `[paths]`.
    pub fn control_socket(path: &Path) -> Result<PathBuf, ConfigErrors> {
        let text = read_text(path)?;
        let mut reader = Reader::new(&text);
        let control = document(&mut reader, &text).map(|d| {
            let mut root = Table::new("", Some(d.get_ref()), 0..0);
            sections::paths(&mut reader, &mut root).control
        });
        match (control, reader.finish()) {
            (Some(control), problems) if problems.is_empty() => Ok(control),
            (_, problems) => Err(ConfigErrors::Invalid { file: path.to_owned(), problems }),
        }
    }

    /// Parses the text of a configuration; `file` is its name in messages.
    ///
    /// # Errors
    /// [`ConfigErrors::Invalid`] with all that is wrong.
    pub fn parse(text: &str, file: &Path) -> Result<Self, ConfigErrors> {
        let mut reader = Reader::new(text);
        let config = document(&mut reader, text).map(|d| {
            let root = Table::new("", Some(d.get_ref()), 0..0);
            sections::document(&mut reader, root)
        });
        match (config, reader.finish()) {
            (Some(config), problems) if problems.is_empty() => Ok(config),
            (_, problems) => Err(ConfigErrors::Invalid { file: file.to_owned(), problems }),
        }
    }

    /// Whether the address belongs to the networks that the gateway protects.
    #[must_use]
    pub fn is_inside(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.gateway.inside.iter().any(|net| net.contains(&address))
    }

    /// The direction of bytes that go from one address to another.
    #[must_use]
    pub fn direction(&self, sender: IpAddr, receiver: IpAddr) -> Direction {
        match (self.is_inside(sender), self.is_inside(receiver)) {
            (false, true) => Direction::Inbound,
            (true, false) => Direction::Outbound,
            (true, true) => Direction::Internal,
            (false, false) => Direction::Transit,
        }
    }

    /// Whether any connection's TLS may be opened.
    #[must_use]
    pub fn opens_tls(&self) -> bool {
        self.tls.rules.iter().any(|rule| rule.action == TlsAction::Terminate)
            || self.smtp.starttls == TlsAction::Terminate
            || self.ftp.tls == FtpTls::Terminate
    }

    /// The protocol that is spoken on a server's port, if it is one of ours.
    #[must_use]
    pub fn protocol(&self, port: u16) -> Option<Protocol> {
        let has = |ports: &[std::num::NonZeroU16]| ports.iter().any(|p| p.get() == port);
        if has(&self.ftp.ports) || self.ftp.is_implicit(port) {
            Some(Protocol::Ftp)
        } else if self.smtp.all_ports().any(|p| p.get() == port) {
            Some(Protocol::Smtp)
        } else {
            None
        }
    }
}

/// Reads the file of a configuration.
///
/// # Errors
/// [`ConfigErrors::Unreadable`]: not there, no permission, too large, or not UTF-8.
pub fn read_text(path: &Path) -> Result<String, ConfigErrors> {
    let unreadable = |reason: String| ConfigErrors::Unreadable { path: path.to_owned(), reason };
    let length = std::fs::metadata(path).map(|m| m.len());
    if length.is_ok_and(|n| n > FILE_MAX) {
        return Err(unreadable("is larger than 16 MiB: this is no configuration file".to_owned()));
    }
    let bytes = std::fs::read(path).map_err(|e| {
        unreadable(match e.kind() {
            std::io::ErrorKind::NotFound => {
                "no such file; name the configuration with --config".to_owned()
            }
            std::io::ErrorKind::PermissionDenied => "permission denied; run as root".to_owned(),
            _ => e.to_string(),
        })
    })?;
    String::from_utf8(bytes)
        .map_err(|e| unreadable(format!("is not UTF-8 at byte {}", e.utf8_error().valid_up_to())))
}

/// The tables of the text; none, and the syntax errors reported, when it is no TOML.
fn document<'t>(reader: &mut Reader<'_>, text: &'t str) -> Option<Spanned<DeTable<'t>>> {
    let (document, syntax) = DeTable::parse_recoverable(text);
    let right = syntax.is_empty();
    // after a syntax error the tables are a guess: what follows from them would mislead
    for error in syntax {
        reader.report(error.span().unwrap_or(0..0), Wrong::new(error.message().trim().to_owned()));
    }
    right.then_some(document)
}

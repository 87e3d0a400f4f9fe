//! `[tls]`: certificates, the authority, which connections are opened, and how servers are verified. What is done with
//! it is `crate::tls`'s business.

use super::read::{Reader, Scalar, Table, Wrong, kind};
use super::sections::positive;
use super::terms::{Direction, FtpTls, Protocol, TlsAction, TlsVersion, UpstreamTls, Verify};
use super::types::Config;
use ipnet::IpNet;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;
use toml::de::DeValue;
use vscan_scan::glob::Glob;

/// `[tls]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// The operator's own certificates. The first one that suits is shown.
    pub certificates: Vec<Certificate>,
    /// What certificates for foreign servers are made with.
    pub authority: Option<Authority>,
    /// What is opened; first match wins, then the key of the protocol's section decides.
    pub rules: Vec<TlsRule>,
    /// What is never opened, whatever the rules say.
    pub never_open: Vec<Peer>,
    /// How servers are spoken to unless an entry of `destinations` says otherwise.
    pub upstream: Upstream,
    /// The same for some servers; first match wins.
    pub destinations: Vec<Destination>,
    /// The oldest version that clients may use.
    pub min_version: TlsVersion,
    /// How long both handshakes together may take.
    pub handshake_timeout: Duration,
    /// From this time before a certificate expires on, it is complained about.
    pub expiry_warning: Duration,
}

/// `[[tls.certificate]]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// The certificate and its intermediates, PEM.
    pub chain: KeyFile,
    /// Its private key, PEM.
    pub key: KeyFile,
    /// Servers that it is shown for; empty: all.
    pub servers: Vec<IpNet>,
}

/// `[tls.authority]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authority {
    /// The authority's certificate, perhaps with those above it, PEM.
    pub certificate: KeyFile,
    /// Its private key, PEM.
    pub key: KeyFile,
    /// How long a certificate made with it is valid.
    pub lifetime: Duration,
}

/// `[[tls.rule]]`: an empty list matches everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsRule {
    /// What is done.
    pub action: TlsAction,
    /// Protocols.
    pub protocol: Vec<Protocol>,
    /// From client to server.
    pub direction: Vec<Direction>,
    /// Clients.
    pub from: Vec<IpNet>,
    /// Servers.
    pub to: Vec<IpNet>,
    /// The name that the client asks for, or else those of the server's certificate.
    pub server_name: Vec<Glob>,
}

/// A host, as an address, a network, or a pattern for names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// By address.
    Net(IpNet),
    /// By the name that the client asks for, or else those of the server's certificate.
    Name(Glob),
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Net(net) if net.prefix_len() == net.max_prefix_len() => {
                write!(f, "{}", net.addr())
            }
            Self::Net(net) => write!(f, "{net}"),
            Self::Name(glob) => f.write_str(glob.as_str()),
        }
    }
}

/// How a server is spoken to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// Whether TLS is a must.
    pub tls: UpstreamTls,
    /// What its certificate has to be.
    pub verify: Verify,
    /// The authorities that may have made it, PEM; there if `verify` is [`Verify::Pinned`].
    pub ca: Option<KeyFile>,
    /// The oldest version of TLS.
    pub min_version: TlsVersion,
}

/// `[[tls.destination]]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    /// Servers; empty: all.
    pub to: Vec<IpNet>,
    /// The name that the client asks for; empty: any, or none.
    pub server_name: Vec<Glob>,
    /// The name that the server is asked for and has to have, whatever the client asks for.
    pub name: Option<String>,
    /// How it is spoken to.
    pub upstream: Upstream,
}

/// Where a key or a certificate is: a path, or `credential:NAME` for one that systemd hands over (`LoadCredential=`).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum KeyFile {
    /// A path.
    Path(PathBuf),
    /// A file of `$CREDENTIALS_DIRECTORY`.
    Credential(String),
}

impl KeyFile {
    /// The file, if there is such a place: credentials need systemd.
    #[must_use]
    pub fn path(&self) -> Option<PathBuf> {
        match self {
            Self::Path(path) => Some(path.clone()),
            Self::Credential(name) => {
                std::env::var_os("CREDENTIALS_DIRECTORY").map(|dir| PathBuf::from(dir).join(name))
            }
        }
    }
}

impl fmt::Display for KeyFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(f, "{}", path.display()),
            Self::Credential(name) => write!(f, "credential:{name}"),
        }
    }
}

impl Tls {
    /// How a server is spoken to, and the name that it is asked for if that is fixed.
    #[must_use]
    pub fn upstream_of(&self, server: IpAddr, name: Option<&str>) -> (&Upstream, Option<&str>) {
        let server = server.to_canonical();
        let found = self.destinations.iter().find(|destination| {
            let names = &destination.server_name;
            within(&destination.to, server)
                && (names.is_empty()
                    || name.is_some_and(|name| names.iter().any(|glob| glob.matches(name))))
        });
        found.map_or((&self.upstream, None), |it| (&it.upstream, it.name.as_deref()))
    }

    /// Whether there is anything to show clients.
    #[must_use]
    pub fn has_certificates(&self) -> bool {
        !self.certificates.is_empty() || self.authority.is_some()
    }

    /// All ways in which servers are spoken to.
    pub fn upstreams(&self) -> impl Iterator<Item = &Upstream> {
        self.destinations.iter().map(|it| &it.upstream).chain([&self.upstream])
    }
}

/// Whether the address is in one of the networks, or there are none.
pub(crate) fn within(nets: &[IpNet], address: IpAddr) -> bool {
    nets.is_empty() || nets.iter().any(|net| net.contains(&address))
}

impl Default for Upstream {
    fn default() -> Self {
        Self {
            tls: UpstreamTls::Require,
            verify: Verify::Opportunistic,
            ca: None,
            min_version: TlsVersion::Tls12,
        }
    }
}

impl Default for Tls {
    fn default() -> Self {
        Self {
            certificates: Vec::new(),
            authority: None,
            rules: Vec::new(),
            never_open: Vec::new(),
            upstream: Upstream::default(),
            destinations: Vec::new(),
            min_version: TlsVersion::Tls12,
            handshake_timeout: Duration::from_secs(30),
            expiry_warning: Duration::from_secs(21 * 86_400),
        }
    }
}

/// How long a made certificate is valid by default: long enough for a client that looks at it again, short enough to
/// be of no use to a thief.
const LIFETIME: Duration = Duration::from_secs(7 * 86_400);

/// The shortest lifetime: clients' clocks are wrong by hours.
const LIFETIME_MIN: Duration = Duration::from_secs(86_400);

/// The longest lifetime that clients accept of a certificate (CA/Browser Forum, Apple).
const LIFETIME_MAX: Duration = Duration::from_secs(397 * 86_400);

impl Scalar for KeyFile {
    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        if let Some(name) = value.as_str().and_then(|text| text.strip_prefix("credential:")) {
            // systemd.exec(5): a file name, at most NAME_MAX bytes
            if name.is_empty() || name.len() > 255 || name.contains('/') || name.starts_with('.') {
                return Err(Wrong::new(format!("{name:?} cannot be the name of a credential"))
                    .help("write the name that stands in LoadCredential=NAME:PATH"));
            }
            return Ok(Self::Credential(name.to_owned()));
        }
        PathBuf::read(value).map(Self::Path)
    }
}

impl Scalar for Peer {
    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        let text = String::read(value)?;
        if text.contains(['/', ':']) || text.parse::<IpAddr>().is_ok() {
            return IpNet::read(value).map(Self::Net);
        }
        Ok(Self::Name(HostName::read(value)?.0))
    }
}

/// A pattern for host names.
struct HostName(Glob);

impl Scalar for HostName {
    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        let Some(text) = value.as_str() else {
            return Err(Wrong::new(format!("must be a host name, this is {}", kind(value))));
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '*' | '?');
        if text.is_empty() || !text.chars().all(plain) {
            return Err(Wrong::new(format!("{text:?} is no pattern for host names"))
                .help("write it as \"mail.example.com\" or \"*.example.com\""));
        }
        Ok(Self(Glob::new(text)))
    }
}

/// A name that a server can be asked for.
struct ServerName(String);

impl Scalar for ServerName {
    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        let text = String::read(value)?;
        match rustls::pki_types::DnsName::try_from(text.as_str()) {
            Ok(_) => Ok(Self(text)),
            Err(_) => Err(Wrong::new(format!("{text:?} is no host name"))
                .help("write it as \"mail.example.com\"")),
        }
    }
}

fn names(r: &mut Reader<'_>, t: &mut Table<'_, '_>, key: &'static str) -> Vec<Glob> {
    t.one_or_more::<HostName>(r, key).into_iter().map(|HostName(glob)| glob).collect()
}

pub(super) fn read(r: &mut Reader<'_>, root: &mut Table<'_, '_>) -> Tls {
    let mut t = root.table(r, "tls");
    let d = Tls::default();
    let tls = Tls {
        certificates: {
            let tables = t.tables(r, "certificate");
            tables.into_iter().filter_map(|t| certificate(r, t)).collect()
        },
        authority: authority(r, &mut t),
        rules: t.tables(r, "rule").into_iter().filter_map(|t| rule(r, t)).collect(),
        never_open: t.list(r, "never_open", d.never_open),
        upstream: upstream(r, &mut t, "server_min_version", d.upstream),
        destinations: Vec::new(),
        min_version: t.get(r, "min_version", d.min_version),
        handshake_timeout: positive(r, &mut t, "handshake_timeout", d.handshake_timeout),
        expiry_warning: t.get(r, "expiry_warning", d.expiry_warning),
    };
    let tables = t.tables(r, "destination");
    let destinations =
        tables.into_iter().map(|t| destination(r, t, tls.upstream.clone())).collect();
    t.finish(r);
    Tls { destinations, ..tls }
}

fn certificate(r: &mut Reader<'_>, mut t: Table<'_, '_>) -> Option<Certificate> {
    let (chain, key) = (t.opt(r, "chain"), t.opt(r, "key"));
    missing(r, &t, &["chain", "key"]);
    let servers = t.one_or_more(r, "servers");
    t.finish(r);
    Some(Certificate { chain: chain?, key: key?, servers })
}

fn authority(r: &mut Reader<'_>, t: &mut Table<'_, '_>) -> Option<Authority> {
    if !t.has("authority") {
        let _ = t.raw("authority");
        return None;
    }
    let mut t = t.table(r, "authority");
    let (certificate, key) = (t.opt(r, "certificate"), t.opt(r, "key"));
    missing(r, &t, &["certificate", "key"]);
    let lifetime = t.get(r, "lifetime", LIFETIME);
    if !(LIFETIME_MIN..=LIFETIME_MAX).contains(&lifetime) {
        let wrong = Wrong::new(format!("`{}` must be from 1d to 397d", t.name("lifetime")));
        r.report(t.span_of("lifetime"), wrong);
    }
    t.finish(r);
    Some(Authority { certificate: certificate?, key: key?, lifetime })
}

fn missing(r: &mut Reader<'_>, t: &Table<'_, '_>, keys: &[&'static str]) {
    for key in keys.iter().filter(|key| !t.has(key)) {
        let wrong = Wrong::new(format!("`{}` is missing", t.name(key)))
            .help("write the path of a PEM file, or \"credential:NAME\"");
        r.report(t.span(), wrong);
    }
}

fn rule(r: &mut Reader<'_>, mut t: Table<'_, '_>) -> Option<TlsRule> {
    let action: Option<TlsAction> = t.opt(r, "action");
    if !t.has("action") {
        let wrong = Wrong::new(format!("`{}` is missing", t.name("action")))
            .help("write action = \"pass\", \"terminate\", \"refuse\" or \"strip\"");
        r.report(t.span(), wrong);
    }
    let (protocol, direction) = (t.one_or_more(r, "protocol"), t.one_or_more(r, "direction"));
    let (from, to) = (t.one_or_more(r, "from"), t.one_or_more(r, "to"));
    let server_name = names(r, &mut t, "server_name");
    if action == Some(TlsAction::Strip) && !server_name.is_empty() {
        let wrong = Wrong::new("\"strip\" cannot depend on `server_name`").help(
            "the name is known only when the client has begun with TLS: write \"refuse\", or leave server_name out",
        );
        r.report(t.span_of("action"), wrong);
    }
    t.finish(r);
    Some(TlsRule { action: action?, protocol, direction, from, to, server_name })
}

fn upstream(
    r: &mut Reader<'_>,
    t: &mut Table<'_, '_>,
    version: &'static str,
    d: Upstream,
) -> Upstream {
    let ca = t.opt(r, "ca");
    let upstream = Upstream {
        tls: t.get(r, "upstream_tls", d.tls),
        verify: t.get(r, "verify", d.verify),
        ca: if t.has("ca") { ca } else { d.ca },
        min_version: t.get(r, version, d.min_version),
    };
    match (upstream.verify, &upstream.ca) {
        (Verify::Pinned, None) => {
            let wrong = Wrong::new(format!("`{}` is missing", t.name("ca")))
                .help("verify = \"pinned\" needs the PEM file of the authorities");
            r.report(t.span_of("verify"), wrong);
        }
        (Verify::Public | Verify::Opportunistic, Some(_)) if t.has("ca") => {
            let wrong = Wrong::new(format!("`{}` is only for verify = \"pinned\"", t.name("ca")));
            r.report(t.span_of("ca"), wrong);
        }
        _ => {}
    }
    upstream
}

fn destination(r: &mut Reader<'_>, mut t: Table<'_, '_>, d: Upstream) -> Destination {
    let (to, server_name) = (t.one_or_more(r, "to"), names(r, &mut t, "server_name"));
    let name = t.opt::<ServerName>(r, "name").map(|ServerName(name)| name);
    let upstream = upstream(r, &mut t, "min_version", d);
    t.finish(r);
    Destination { to, server_name, name, upstream }
}

/// What must hold between this section and the others.
pub(super) fn between(r: &mut Reader<'_>, root: &Table<'_, '_>, c: &Config) {
    if c.opens_tls() && !c.tls.has_certificates() {
        let wrong = Wrong::new("TLS is to be opened, and there is no certificate to show clients")
            .help(
                "write [[tls.certificate]] with chain and key for servers of your own, \
                 [tls.authority] with certificate and key for those of others",
            );
        let at = if c.tls.rules.iter().any(|rule| rule.action == TlsAction::Terminate) {
            root.table_span("tls", "rule")
        } else if c.ftp.tls == FtpTls::Terminate {
            root.table_span("ftp", "tls")
        } else {
            root.table_span("smtp", "starttls")
        };
        r.report(at, wrong);
    }
}

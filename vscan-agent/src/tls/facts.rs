//! What a certificate says of itself: names and dates. Whether it is to be believed is not asked here.

use x509_parser::{
    certificate::X509Certificate,
    extensions::{GeneralName, ParsedExtension},
    prelude::FromDer,
};

/// Names of a certificate that are taken notice of. Few have more than a hundred.
const NAMES_MAX: usize = 256;

/// What a certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    /// Host names, perhaps with a `*` as their first label, and addresses as text: the subject's alternative names, or
    /// without any its common name.
    pub(super) names: Vec<String>,
    /// Valid from, in seconds since 1970.
    pub(super) not_before: i64,
    /// Valid until.
    pub(super) not_after: i64,
    /// Whether it may make others.
    pub(super) is_authority: bool,
}

impl Facts {
    pub(super) fn of(der: &[u8]) -> Result<Self, String> {
        let (_, certificate) = X509Certificate::from_der(der)
            .map_err(|error| format!("is no certificate: {error}"))?;
        let validity = certificate.validity();
        let is_authority = certificate.is_ca()
            && certificate
                .key_usage()
                .ok()
                .flatten()
                .is_none_or(|usage| usage.value.key_cert_sign());
        Ok(Self {
            names: names(&certificate),
            not_before: validity.not_before.timestamp(),
            not_after: validity.not_after.timestamp(),
            is_authority,
        })
    }
}

fn names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let mut names = Vec::new();
    for extension in certificate.extensions() {
        let ParsedExtension::SubjectAlternativeName(alternative) = extension.parsed_extension()
        else {
            continue;
        };
        for name in &alternative.general_names {
            match name {
                GeneralName::DNSName(name) if plain(name) => names.push(name.to_ascii_lowercase()),
                GeneralName::IPAddress(bytes) => names.extend(address(bytes)),
                _ => {}
            }
        }
    }
    if names.is_empty() {
        let common = certificate.subject().iter_common_name().filter_map(|it| it.as_str().ok());
        names.extend(common.filter(|name| plain(name)).map(str::to_ascii_lowercase));
    }
    names.truncate(NAMES_MAX);
    names
}

fn plain(name: &str) -> bool {
    let label = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '*');
    (1..=253).contains(&name.len()) && name.chars().all(label)
}

fn address(bytes: &[u8]) -> Option<String> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(std::net::Ipv4Addr::from(v4).to_string());
    }
    <[u8; 16]>::try_from(bytes).ok().map(|v6| std::net::Ipv6Addr::from(v6).to_string())
}

/// Whether a certificate's name is, or covers, the one that is asked for (RFC 6125 section 6.4.3): a `*` stands for one
/// whole label, the first.
pub(super) fn covers(has: &str, name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    match has.strip_prefix("*.") {
        Some(domain) => name
            .split_once('.')
            .is_some_and(|(label, rest)| !label.is_empty() && rest.eq_ignore_ascii_case(domain)),
        None => has.eq_ignore_ascii_case(name),
    }
}

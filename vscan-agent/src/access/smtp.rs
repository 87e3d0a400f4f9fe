//! SMTP: which sender may write to which recipient.

use super::{Match, Rules};
use crate::config::{Access, Glob, Permission};
use vscan_proto::smtp::Permit;

impl Permit for Rules {
    fn sender(&self, sender: &[u8], authenticated: bool) -> bool {
        self.decide(|rule| match (fits(rule, sender, authenticated), rule.recipient.is_empty()) {
            (false, _) => Match::No,
            (true, true) => Match::Yes,
            (true, false) => Match::Maybe,
        })
    }

    fn recipient(&self, sender: &[u8], recipient: &[u8], authenticated: bool) -> bool {
        self.decide(|rule| {
            if fits(rule, sender, authenticated) && matches(rule, &rule.recipient, recipient) {
                Match::Yes
            } else {
                Match::No
            }
        })
    }
}

fn fits(rule: &Access, sender: &[u8], authenticated: bool) -> bool {
    rule.auth.is_none_or(|wanted| wanted == authenticated) && matches(rule, &rule.sender, sender)
}

/// Whether an address matches the patterns, as far as that is plain.
///
/// One that servers may read in different ways is in nobody's favour: each rule that denies holds for it, and none that
/// allows.
fn matches(rule: &Access, patterns: &[Glob], address: &[u8]) -> bool {
    if patterns.is_empty() {
        return true;
    }
    match plain(address) {
        Some(address) => patterns.iter().any(|glob| glob.matches(&address)),
        None => rule.action == Permission::Deny,
    }
}

/// The address without what changes nothing about it: a source route (RFC 5321 appendix C), needless quotes, the dot at
/// the end of the domain. None if it is not plain then: routed by `%` or `!`, with white space or control characters.
#[must_use]
pub fn plain(address: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(address).ok()?;
    let routed = text.starts_with('@').then(|| text.split_once(':')).flatten();
    let text = routed.map_or(text, |(_, mailbox)| mailbox);
    let (local, domain) = text.rsplit_once('@').unwrap_or((text, ""));
    let quoted = local.strip_prefix('"').and_then(|local| local.strip_suffix('"'));
    let local = match quoted {
        Some(inner) => inner.replace('\\', ""),
        None => local.to_owned(),
    };
    let odd = |c: char| {
        c.is_whitespace()
            || c.is_control()
            || matches!(c, '%' | '!' | '"' | '@' | '\\' | ',' | '<' | '>')
    };
    if local.contains(odd) || domain.contains(odd) {
        return None;
    }
    let domain = domain.strip_suffix('.').unwrap_or(domain);
    Some(if domain.is_empty() { local } else { format!("{local}@{domain}") })
}

#[cfg(test)]
mod tests {
    use super::plain;

    #[test]
    fn addresses_are_read_as_servers_read_them() {
        for (address, expected) in [
            ("", Some("")),
            ("joe@example.org", Some("joe@example.org")),
            ("joe@example.org.", Some("joe@example.org")),
            ("\"joe\"@example.org", Some("joe@example.org")),
            ("\"j\\oe\"@example.org", Some("joe@example.org")),
            ("@relay.example,@b.example:joe@example.org", Some("joe@example.org")),
            ("postmaster", Some("postmaster")),
            ("joe%other.example@example.org", None),
            ("other.example!joe@example.org", None),
            ("\"joe@other.example\"@example.org", None),
            ("\"joe \"@example.org", None),
        ] {
            assert_eq!(plain(address.as_bytes()).as_deref(), expected, "{address}");
        }
        assert_eq!(plain(b"j\xff@example.org"), None);
    }
}

//! What the list of rules comes to, in words: for `vscan check`.

use crate::config::{Access, Config, Permission, Protocol};
use std::fmt::Display;

/// What there is to say about a rule, or the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remark {
    /// Whether it is probably not what was meant.
    pub doubtful: bool,
    /// In words.
    pub text: String,
}

/// Says of each rule what it does, and of each that does nothing why.
#[must_use]
pub fn explain(config: &Config) -> Vec<Remark> {
    let rules = &config.access;
    let mut remarks = Vec::new();
    if rules.is_empty() {
        remarks.push(note("no [[access]]: clients inside may reach every server".to_owned()));
        return remarks;
    }
    for (index, rule) in rules.iter().enumerate() {
        remarks.push(note(format!("access[{index}]: {}", sentence(rule))));
        let earlier = rules[..index].iter().position(|other| covers(other, rule));
        if let Some(earlier) = earlier {
            remarks.push(doubt(format!(
                "access[{index}] never decides anything: access[{earlier}] comes first and matches all of it"
            )));
            continue;
        }
        let allowed_later = rules[index + 1..]
            .iter()
            .any(|later| later.action == Permission::Allow && overlaps(later, rule));
        if rule.action == Permission::Deny && rule.is_conditional() && !allowed_later {
            remarks.push(doubt(format!(
                "access[{index}] denies a part, and no rule behind it allows the rest: so everything is denied there"
            )));
        }
    }
    for protocol in Protocol::INTERCEPTED {
        let of = |rule: &&Access| rule.speaks_of(*protocol);
        if rules.iter().filter(of).any(Access::is_conditional) {
            let command = match protocol {
                Protocol::Ftp => "AUTH",
                Protocol::Smtp | Protocol::Mailbox => "STARTTLS",
            };
            remarks.push(note(format!(
                "{protocol}: {command} is refused where rules with conditions hold, which could not be kept behind TLS"
            )));
        }
        if !rules.iter().filter(of).any(|rule| rule.action == Permission::Allow) {
            remarks.push(doubt(format!(
                "{protocol}: no rule allows any connection of clients inside"
            )));
        }
    }
    let rest = "what no rule matches is denied: the connection is left to the firewall, in a session it is refused";
    remarks.push(note(rest.to_owned()));
    remarks
}

fn note(text: String) -> Remark {
    Remark { doubtful: false, text }
}

fn doubt(text: String) -> Remark {
    Remark { doubtful: true, text }
}

/// `allow ftp from 10.0.0.0/8 to anywhere, user anonymous, commands read, list: connections are intercepted, ...`
fn sentence(rule: &Access) -> String {
    let protocol = list(&rule.protocol).unwrap_or_else(|| "everything".to_owned());
    let mut text = format!(
        "{} {protocol} from {} to {}",
        rule.action,
        list(&rule.from).unwrap_or_else(|| "anywhere".to_owned()),
        list(&rule.to).unwrap_or_else(|| "anywhere".to_owned()),
    );
    for (name, values) in [
        ("user", list(&rule.user)),
        ("commands", list(&rule.commands)),
        ("sender", list(&rule.sender)),
        ("recipient", list(&rule.recipient)),
    ] {
        if let Some(values) = values {
            text.push_str(&format!(", {name} {values}"));
        }
    }
    match rule.auth {
        Some(true) => text.push_str(", authenticated"),
        Some(false) => text.push_str(", not authenticated"),
        None => {}
    }
    text.push_str(match (rule.action, rule.is_conditional()) {
        (Permission::Allow, false) => ": intercepted and scanned",
        (Permission::Allow, true) => {
            ": intercepted and scanned, the rest is left to the rules below"
        }
        (Permission::Deny, false) => ": not intercepted, left to the firewall",
        (Permission::Deny, true) => ": refused in the session",
    });
    text
}

fn list<T: Display>(values: &[T]) -> Option<String> {
    (!values.is_empty())
        .then(|| values.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))
}

/// Whether the first of two rules matches all that the second does, whatever the dialogue shows.
fn covers(first: &Access, second: &Access) -> bool {
    let nets = |outer: &[ipnet::IpNet], inner: &[ipnet::IpNet]| {
        outer.is_empty()
            || (!inner.is_empty() && inner.iter().all(|net| outer.iter().any(|o| o.contains(net))))
    };
    !first.is_conditional()
        && nets(&first.from, &second.from)
        && nets(&first.to, &second.to)
        && Protocol::INTERCEPTED.iter().all(|p| first.speaks_of(*p) || !second.speaks_of(*p))
}

/// Whether some connection is matched by both.
fn overlaps(one: &Access, other: &Access) -> bool {
    let nets = |a: &[ipnet::IpNet], b: &[ipnet::IpNet]| {
        a.is_empty()
            || b.is_empty()
            || a.iter().any(|a| b.iter().any(|b| a.contains(b) || b.contains(a)))
    };
    nets(&one.from, &other.from)
        && nets(&one.to, &other.to)
        && Protocol::INTERCEPTED.iter().any(|p| one.speaks_of(*p) && other.speaks_of(*p))
}

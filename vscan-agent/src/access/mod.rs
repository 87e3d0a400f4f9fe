//! What the `[[access]]` rules permit in a session. Pure: no sockets, no clock.
//!
//! Who may open a connection at all is settled by the firewall's rules that `kernel::ruleset` makes of the same list.
//! They see addresses and ports only: a rule that asks for a user, a command or an address of mail lets the connection
//! be intercepted, and is decided on here, when the dialogue shows what it asks for.
//!
//! As there, the first rule that matches decides, and no match means no. A session that no rule concerns came to the
//! gateway because it needs none: a public service, or a list without rules.

pub mod explain;
mod ftp;
mod smtp;

pub use smtp::plain;

#[cfg(test)]
mod tests;

use crate::config::{Access, Config, Permission, Protocol};
use std::net::IpAddr;
use std::sync::Arc;

/// The rules that concern one session, in their order.
#[derive(Debug)]
pub struct Rules(Vec<Access>);

impl Rules {
    /// The rules for a connection, by its addresses: `server` is the one that was dialled. None if nothing in the
    /// dialogue matters to them.
    #[must_use]
    pub fn of(
        config: &Config,
        protocol: Protocol,
        client: IpAddr,
        server: IpAddr,
    ) -> Option<Arc<Self>> {
        let (client, server) = (client.to_canonical(), server.to_canonical());
        let within = |nets: &[ipnet::IpNet], address: &IpAddr| {
            nets.is_empty() || nets.iter().any(|net| net.contains(address))
        };
        let mut rules = Vec::new();
        for rule in &config.access {
            if !rule.speaks_of(protocol)
                || !within(&rule.from, &client)
                || !within(&rule.to, &server)
            {
                continue;
            }
            rules.push(rule.clone());
            if !rule.is_conditional() {
                // it decides whatever gets so far
                break;
            }
        }
        rules.iter().any(Access::is_conditional).then(|| Arc::new(Self(rules)))
    }

    /// Goes by the first rule that matches; `matches` says of each rule whether it does, or only may.
    fn decide(&self, matches: impl Fn(&Access) -> Match) -> bool {
        for rule in &self.0 {
            match (matches(rule), rule.action) {
                (Match::Yes | Match::Maybe, Permission::Allow) => return true,
                (Match::Yes, Permission::Deny) => return false,
                (Match::No, _) | (Match::Maybe, Permission::Deny) => {}
            }
        }
        false
    }
}

/// Whether a rule matches as far as can be seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Match {
    Yes,
    /// Something that the rule asks for is not known yet. To be permitted so far, that is enough.
    Maybe,
    No,
}

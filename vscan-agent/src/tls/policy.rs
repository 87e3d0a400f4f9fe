//! What is done with a connection's TLS: the rules of `[tls]`, before and after the name is known that the client asks
//! for.

use crate::config::{Config, Direction, Peer, Protocol, TlsAction, TlsRule, within};
use std::net::IpAddr;

/// A connection, as far as rules ask for it.
#[derive(Clone, Copy, Debug)]
pub struct About {
    /// Its protocol.
    pub protocol: Protocol,
    /// From client to server.
    pub direction: Direction,
    /// The client.
    pub client: IpAddr,
    /// The server, behind any port forward.
    pub server: IpAddr,
    /// What is done if no rule matches: the key of the protocol's section.
    pub otherwise: TlsAction,
}

/// What is done, as far as it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// This.
    Is(TlsAction),
    /// It depends on the name that the client asks for: STARTTLS is offered as the server does, and [`About::named`]
    /// decides.
    ByName,
}

impl About {
    /// What is known before the client has said a word.
    #[must_use]
    pub fn decide(&self, config: &Config) -> Decision {
        let client = self.client.to_canonical();
        let server = self.server.to_canonical();
        let mut by_name = config.tls.never_open.iter().any(|peer| matches!(peer, Peer::Name(_)));
        let listed = config.tls.never_open.iter().any(|peer| match peer {
            Peer::Net(net) => net.contains(&server),
            Peer::Name(_) => false,
        });
        if listed {
            return Decision::Is(TlsAction::Pass);
        }
        let mut certain = self.otherwise;
        let mut conditional = Vec::new();
        for rule in config.tls.rules.iter().filter(|rule| self.fits(rule, client, server)) {
            if rule.server_name.is_empty() {
                certain = rule.action;
                break;
            }
            conditional.push(rule.action);
        }
        // A list of names matters only where something would be opened.
        by_name &= certain == TlsAction::Terminate || conditional.contains(&TlsAction::Terminate);
        if by_name || conditional.iter().any(|action| *action != certain) {
            Decision::ByName
        } else {
            Decision::Is(certain)
        }
    }

    /// What is done when the name is known, or that there is none. `names` are the name that the client asks for, or
    /// those of the server's certificate. Never [`TlsAction::Strip`]: it is too late for that.
    #[must_use]
    pub fn named(&self, config: &Config, names: &[String]) -> TlsAction {
        let client = self.client.to_canonical();
        let server = self.server.to_canonical();
        let listed = config.tls.never_open.iter().any(|peer| match peer {
            Peer::Net(net) => net.contains(&server),
            Peer::Name(glob) => names.iter().any(|name| glob.matches(name)),
        });
        if listed {
            return TlsAction::Pass;
        }
        let rule =
            config.tls.rules.iter().filter(|rule| self.fits(rule, client, server)).find(|rule| {
                let globs = &rule.server_name;
                globs.is_empty()
                    || names.iter().any(|name| globs.iter().any(|glob| glob.matches(name)))
            });
        match rule.map_or(self.otherwise, |rule| rule.action) {
            TlsAction::Strip => TlsAction::Refuse,
            action => action,
        }
    }

    fn fits(&self, rule: &TlsRule, client: IpAddr, server: IpAddr) -> bool {
        (rule.protocol.is_empty() || rule.protocol.contains(&self.protocol))
            && (rule.direction.is_empty() || rule.direction.contains(&self.direction))
            && within(&rule.from, client)
            && within(&rule.to, server)
    }
}

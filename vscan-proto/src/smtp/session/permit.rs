//! Access rules in the dialogue: which sender may write to which recipient. What the rules are is the driver's business.

use std::fmt;

use crate::smtp::command::{Command, Verb};
use crate::smtp::reply::compose;

use super::{Output, PATH_MAX, Pending, Session};

/// Access rules, as far as they concern one session.
pub trait Permit: fmt::Debug + Send + Sync {
    /// Whether this sender may write to anybody; the address as on the wire, without angle brackets.
    fn sender(&self, sender: &[u8], authenticated: bool) -> bool;

    /// Whether this sender may write to this recipient.
    fn recipient(&self, sender: &[u8], recipient: &[u8], authenticated: bool) -> bool;
}

/// Refusals that one session reports one by one: a peer that goes on and on does not flood the log.
const TOLD: u8 = 32;

/// What a session keeps for its access rules.
#[derive(Debug, Default)]
pub(super) struct Access {
    /// The server has accepted an AUTH (235, RFC 4954 section 6).
    pub(super) authenticated: bool,
    denials: u8,
}

impl Session {
    /// Refuses a MAIL or RCPT that the access rules do not permit; `line` is the whole of it.
    pub(super) fn denies(&mut self, command: &Command<'_>, line: &[u8]) -> bool {
        let Some(permit) = self.config.permit.clone() else { return false };
        // Of an address that is not plain nobody knows whether it is permitted.
        let plain = command.path().filter(|address| address.len() <= PATH_MAX);
        let permitted = |authenticated| match command.verb {
            Verb::Mail => plain.is_some_and(|address| permit.sender(address, authenticated)),
            Verb::Rcpt => plain.is_some_and(|address| {
                self.senders().all(|sender| permit.recipient(sender, address, authenticated))
            }),
            // What a lenient server may take for one of them must not go past the rules.
            Verb::Other => !looks_like_an_envelope(line),
            _ => true,
        };
        if permitted(self.access.authenticated) {
            return false;
        }
        let reply = if command.verb == Verb::Other {
            compose(500, "5.5.2", "Command not recognized")
        } else if !self.access.authenticated && permitted(true) {
            compose(530, "5.7.0", "Authentication required by vscan")
        } else if command.verb == Verb::Mail {
            compose(550, "5.7.1", "This sender is not permitted here by vscan")
        } else {
            compose(550, "5.7.1", "This recipient is not permitted here by vscan")
        };
        let tell = self.access.denials < TOLD;
        self.access.denials = self.access.denials.saturating_add(1);
        let address = command.path().unwrap_or(command.argument);
        let address = address[..address.len().min(PATH_MAX)].into();
        let recipient = command.verb == Verb::Rcpt;
        self.actions.push_back(Output::Denied { recipient, address, tell });
        self.answer(reply);
        true
    }

    /// All whom the server may take for the sender of the next recipient: of several MAIL commands it may have refused
    /// any.
    fn senders(&self) -> impl Iterator<Item = &[u8]> {
        let known = self.transaction.iter().map(|transaction| &transaction.sender[..]);
        known.chain(self.pending.iter().filter_map(|pending| {
            if let Pending::Mail { sender } = pending { Some(&sender[..]) } else { None }
        }))
    }
}

fn looks_like_an_envelope(line: &[u8]) -> bool {
    let start = line.iter().position(u8::is_ascii_alphabetic).unwrap_or(line.len());
    line[start..].get(..4).is_some_and(|word| {
        [b"MAIL", b"RCPT", b"SEND", b"SOML", b"SAML"]
            .iter()
            .any(|verb| word.eq_ignore_ascii_case(*verb))
    })
}

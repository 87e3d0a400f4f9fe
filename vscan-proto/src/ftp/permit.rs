//! Who may give which command: the session's side of access rules. What the rules are is the driver's business.

use std::fmt;

use bytes::Bytes;

/// Access rules, as far as they concern one session.
pub trait Permit: fmt::Debug + Send + Sync {
    /// Whether anything is permitted to this user; wire bytes.
    fn login(&self, user: &[u8]) -> bool;

    /// Whether the user may give this command; wire bytes. No user: nobody is logged in.
    fn command(&self, user: Option<&[u8]>, verb: &[u8], argument: &[u8]) -> bool;
}

/// Whom the server takes the client for.
///
/// Between a USER and its 230 that is not certain: servers that refuse the change go on with the former user. A command
/// has to be permitted to both then.
#[derive(Debug, Default)]
pub(super) struct Identity {
    /// Logged in.
    known: Option<Bytes>,
    /// Named by a USER whose login is not complete.
    asked: Option<Bytes>,
}

impl Identity {
    /// A USER goes to the server.
    pub(super) fn asks(&mut self, user: Bytes) {
        self.asked = Some(user);
    }

    /// The final reply to a USER, PASS, ACCT or REIN.
    pub(super) fn replied(&mut self, command: Login, code: u16) {
        match (command, code) {
            (Login::Rein, 200..=299) => *self = Self::default(),
            (Login::User | Login::Pass, 200..=299) => {
                if let Some(user) = self.asked.take() {
                    self.known = Some(user);
                }
            }
            // 331, 332: more is wanted; 350: so it was before
            (Login::User | Login::Pass, 300..=399) | (Login::Rein, _) => {}
            (Login::User | Login::Pass, _) => self.asked = None,
        }
    }

    /// Whether `permitted` holds for whomever the client may be.
    pub(super) fn all(&self, permitted: impl Fn(Option<&[u8]>) -> bool) -> bool {
        match (&self.known, &self.asked) {
            (None, None) => permitted(None),
            (known, asked) => known.iter().chain(asked).all(|user| permitted(Some(user))),
        }
    }

    /// Whether somebody is logged in, or about to be.
    pub(super) fn is_somebody(&self) -> bool {
        self.known.is_some() || self.asked.is_some()
    }
}

/// Commands that change who the client is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Login {
    /// USER.
    User,
    /// PASS or ACCT.
    Pass,
    /// REIN.
    Rein,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn who(identity: &Identity) -> Vec<String> {
        let seen = std::cell::RefCell::new(Vec::new());
        identity.all(|user| {
            let user =
                user.map_or("nobody".to_owned(), |u| String::from_utf8_lossy(u).into_owned());
            seen.borrow_mut().push(user);
            true
        });
        seen.into_inner()
    }

    #[test]
    fn a_refused_change_of_user_changes_nothing() {
        let mut identity = Identity::default();
        assert_eq!(who(&identity), ["nobody"]);
        identity.asks("alice".into());
        identity.replied(Login::User, 331);
        assert_eq!(who(&identity), ["alice"]);
        identity.replied(Login::Pass, 230);
        identity.asks("bob".into());
        assert_eq!(who(&identity), ["alice", "bob"], "until the server has said whom it believes");
        identity.replied(Login::User, 331);
        assert_eq!(who(&identity), ["alice", "bob"]);
        identity.replied(Login::Pass, 530);
        assert_eq!(who(&identity), ["alice"]);
        identity.asks("bob".into());
        identity.replied(Login::User, 530);
        assert_eq!(who(&identity), ["alice"]);
        identity.asks("bob".into());
        identity.replied(Login::User, 230);
        assert_eq!(who(&identity), ["bob"]);
        identity.replied(Login::Rein, 502);
        assert_eq!(who(&identity), ["bob"]);
        identity.replied(Login::Rein, 220);
        assert_eq!(who(&identity), ["nobody"]);
    }
}

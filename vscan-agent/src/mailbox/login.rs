//! Logging in: with a password by AUTHENTICATE PLAIN or LOGIN, with a token by XOAUTH2; and what is turned on
//! behind it.

use super::connection::{Connection, Error, finished};
use std::fmt;
use vscan_proto::imap::{Command, Data, Kind, Response, Status};

/// A password or token: never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// This one.
    #[must_use]
    pub fn new(secret: String) -> Self {
        Self(secret)
    }

    /// The secret itself.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

/// Who logs in, and how.
#[derive(Clone, Debug)]
pub enum Login {
    /// With a password.
    Password {
        /// By which mechanism.
        mechanism: Mechanism,
        /// Whose mailbox it is (the authorization identity of PLAIN); empty: that of `user`.
        on_behalf_of: String,
        /// Who logs in.
        user: String,
        /// The password.
        password: Secret,
    },
    /// AUTHENTICATE XOAUTH2, with an access token.
    XOAuth2 {
        /// Whose mailbox it is.
        user: String,
        /// The token.
        token: Secret,
    },
}

/// How a password is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mechanism {
    /// By PLAIN where the server offers it, else by LOGIN.
    #[default]
    Any,
    /// AUTHENTICATE PLAIN (RFC 4616).
    Plain,
    /// The command LOGIN (RFC 9051 6.2.3).
    Login,
}

impl Connection {
    /// Logs in, and turns on what serves a scan: QRESYNC (RFC 7162) and UTF-8 (RFC 6855).
    pub(super) async fn log_in(&mut self, login: &Login) -> Result<(), Error> {
        self.capability().await?;
        match login {
            Login::Password { mechanism, on_behalf_of, user, password } => {
                let plain = match mechanism {
                    Mechanism::Any => self.has("AUTH=PLAIN") || !on_behalf_of.is_empty(),
                    Mechanism::Plain => true,
                    Mechanism::Login => false,
                };
                if plain {
                    if !self.has("AUTH=PLAIN") {
                        return Err(Error::Missing("AUTH=PLAIN"));
                    }
                    let secret = format!("{on_behalf_of}\0{user}\0{}", password.expose());
                    self.authenticate("PLAIN", &secret, b"*").await?;
                } else if self.has("LOGINDISABLED") {
                    return Err(Error::Missing("LOGIN on this connection (LOGINDISABLED)"));
                } else {
                    let command = Command::new("LOGIN")
                        .string(user, false)
                        .and_then(|command| command.string(password.expose(), false))
                        .ok_or_else(|| {
                            Error::Unspeakable("the user name or password".to_owned())
                        })?;
                    self.run("LOGIN", command, |_| {}).await.map_err(refused)?;
                }
            }
            Login::XOAuth2 { user, token } => {
                if !self.has("AUTH=XOAUTH2") {
                    return Err(Error::Missing("AUTH=XOAUTH2"));
                }
                let secret = format!("user={user}\u{1}auth=Bearer {}\u{1}\u{1}", token.expose());
                // A second question is a report of what is wrong; it is answered by nothing, then comes the refusal.
                self.authenticate("XOAUTH2", &secret, b"").await?;
            }
        }
        // Servers offer more to those they know.
        self.capability().await?;
        self.enable().await
    }

    /// Runs AUTHENTICATE; a question behind the first is answered by `again`.
    async fn authenticate(
        &mut self,
        mechanism: &str,
        secret: &str,
        again: &[u8],
    ) -> Result<(), Error> {
        const COMMAND: &str = "AUTHENTICATE";
        self.begin();
        let tag = self.tag();
        let mut secret = Some(base64(secret.as_bytes()));
        let initial = self.has("SASL-IR").then(|| secret.take()).flatten();
        let initial = initial.map_or(String::new(), |secret| format!(" {secret}"));
        self.send(COMMAND, &[format!("{tag} AUTHENTICATE {mechanism}{initial}\r\n").as_bytes()])
            .await?;
        loop {
            match self.response(COMMAND).await? {
                Response::Continue(_) => {
                    let answer = secret.take().map_or(again.to_vec(), String::into_bytes);
                    self.send(COMMAND, &[&answer, b"\r\n"]).await?;
                }
                Response::Tagged { tag: ended, status } if ended == tag.as_bytes() => {
                    return finished(COMMAND, status).map(drop).map_err(refused);
                }
                Response::Status(Status { kind: Kind::Bye, text, .. }) => {
                    return Err(Error::Bye(text));
                }
                Response::Tagged { .. }
                | Response::Status(_)
                | Response::Data(_)
                | Response::Unreadable(_) => {}
            }
        }
    }

    /// Asks what the server can do.
    async fn capability(&mut self) -> Result<(), Error> {
        let mut capabilities = Vec::new();
        self.run("CAPABILITY", Command::new("CAPABILITY"), |data| {
            if let Data::Capability(list) = data {
                capabilities = list;
            }
        })
        .await?;
        self.capabilities = capabilities;
        Ok(())
    }

    async fn enable(&mut self) -> Result<(), Error> {
        if !self.has("ENABLE") {
            return Ok(());
        }
        let utf8 = self.has("UTF8=ACCEPT") || self.has("UTF8=ONLY");
        let wanted = [(self.has("QRESYNC"), " QRESYNC"), (utf8, " UTF8=ACCEPT")];
        let names: String = wanted.iter().filter(|(has, _)| *has).map(|(_, name)| *name).collect();
        if names.is_empty() {
            return Ok(());
        }
        let mut enabled = Vec::new();
        let result = self
            .run("ENABLE", Command::new("ENABLE").text(&names), |data| {
                if let Data::Enabled(list) = data {
                    enabled.extend(list);
                }
            })
            .await;
        match result {
            // Whoever announces and refuses is served without.
            Err(error) if error.is_refusal() => Ok(()),
            result => {
                self.enabled = enabled;
                result.map(drop)
            }
        }
    }
}

fn refused(error: Error) -> Error {
    match error {
        Error::No { text, .. } | Error::Bad { text, .. } => Error::Login(text),
        other => other,
    }
}

/// RFC 4648 section 4.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let byte = |at: usize| u32::from(chunk.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for digit in 0..4 {
            let shown = digit <= chunk.len();
            let value = (bits >> (18 - 6 * digit)) as usize & 63;
            out.push(if shown { char::from(ALPHABET[value]) } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_of_the_rfc() {
        for (plain, encoded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("\0ann\0\u{ff}", "AGFubgDDvw=="),
        ] {
            assert_eq!(base64(plain.as_bytes()), encoded);
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        assert_eq!(format!("{:?}", Secret::new("hush".to_owned())), "[secret]");
    }
}

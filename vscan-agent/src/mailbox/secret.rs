//! Who logs in, and with which secret: read anew for each login from where the configuration says that it is.

use super::{
    account::Credentials,
    login::{Login, Mechanism, Secret as Hidden},
};
use crate::config::{Identity, Mailbox, MailboxAuth, Master, Secret};
use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// Bytes of a secret: access tokens have a few thousand.
const SECRET_MAX: u64 = 64 << 10;

/// Bytes of a file with users or accounts.
const USERS_FILE_MAX: u64 = 64 << 20;

/// How long a command may take to print a token.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);

/// How often it is looked whether the command has ended.
const COMMAND_POLL: Duration = Duration::from_millis(20);

/// An account of a section, and how it logs in.
#[derive(Clone, Debug)]
pub struct Named {
    /// Its name here: that of the section, or `section/user`.
    pub name: String,
    /// Its user.
    pub user: String,
    /// How it logs in.
    pub credentials: Configured,
}

/// Credentials by the configuration.
#[derive(Clone, Debug)]
pub struct Configured {
    auth: MailboxAuth,
    on_behalf_of: String,
    user: String,
    source: Source,
}

#[derive(Clone, Debug)]
enum Source {
    Secret(Secret),
    /// The line of this user in a file of accounts.
    Accounts(PathBuf),
}

impl Credentials for Configured {
    fn login(&self) -> Result<Login, String> {
        let secret = match &self.source {
            Source::Secret(secret) => read(secret)?,
            Source::Accounts(file) => lines(file)?
                .into_iter()
                .filter_map(|line| account(&line))
                .find(|(user, _)| *user == self.user)
                .map(|(_, password)| password)
                .ok_or_else(|| format!("{}: {} is not in it", file.display(), self.user))?,
        };
        let mechanism = match self.auth {
            MailboxAuth::Auto => Mechanism::Any,
            MailboxAuth::Plain => Mechanism::Plain,
            MailboxAuth::Login => Mechanism::Login,
            MailboxAuth::Xoauth2 => {
                return Ok(Login::XOAuth2 { user: self.user.clone(), token: Hidden::new(secret) });
            }
        };
        Ok(Login::Password {
            mechanism,
            on_behalf_of: self.on_behalf_of.clone(),
            user: self.user.clone(),
            password: Hidden::new(secret),
        })
    }
}

/// The accounts of a section, each name once.
///
/// # Errors
/// In words: a file with users or accounts cannot be read, or has none.
pub fn accounts(mailbox: &Mailbox) -> Result<Vec<Named>, String> {
    let section = &mailbox.name;
    let named = |user: &str, on_behalf_of: &str, login: &str, source| Named {
        name: format!("{section}/{user}"),
        user: user.to_owned(),
        credentials: Configured {
            auth: mailbox.auth,
            on_behalf_of: on_behalf_of.to_owned(),
            user: login.to_owned(),
            source,
        },
    };
    let mut all: Vec<Named> = match &mailbox.identity {
        Identity::One { user, secret } => {
            let one = named(user, "", user, Source::Secret(secret.clone()));
            return Ok(vec![Named { name: section.clone(), ..one }]);
        }
        Identity::Behalf { admin, secret, master, users, file } => {
            let listed = file.as_deref().map_or(Ok(Vec::new()), lines)?;
            let users = users.iter().chain(&listed);
            let one = |user: &String| {
                let source = Source::Secret(secret.clone());
                match master {
                    Master::Authzid => named(user, user, admin, source),
                    Master::Separator(sign) => {
                        named(user, "", &format!("{user}{sign}{admin}"), source)
                    }
                }
            };
            users.map(one).collect()
        }
        Identity::File(file) => lines(file)?
            .iter()
            .enumerate()
            .map(|(n, line)| {
                let (user, _) = account(line).ok_or_else(|| {
                    format!("{}: entry {} has no password", file.display(), n + 1)
                })?;
                Ok(named(&user, "", &user, Source::Accounts(file.clone())))
            })
            .collect::<Result<_, String>>()?,
    };
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all.dedup_by(|a, b| a.name == b.name);
    if all.is_empty() { Err("no users are named".to_owned()) } else { Ok(all) }
}

/// The files that hold a section's secrets.
#[must_use]
pub fn files(mailbox: &Mailbox) -> Vec<PathBuf> {
    let of = |secret: &Secret| match secret {
        Secret::File(path) => Some(path.clone()),
        Secret::Credential(name) => credential(name).ok(),
        Secret::Command(_) => None,
    };
    match &mailbox.identity {
        Identity::One { secret, .. } | Identity::Behalf { secret, .. } => {
            of(secret).into_iter().collect()
        }
        Identity::File(path) => vec![path.clone()],
    }
}

/// Why a file with secrets is none: others than its owner can read it.
///
/// # Errors
/// It is not there.
pub fn exposed(path: &Path) -> io::Result<bool> {
    Ok(path.metadata()?.permissions().mode() & 0o077 != 0)
}

fn read(secret: &Secret) -> Result<String, String> {
    let (text, whence) = match secret {
        Secret::File(path) => (read_file(path, SECRET_MAX)?, path.display().to_string()),
        Secret::Credential(name) => {
            let path = credential(name)?;
            (read_file(&path, SECRET_MAX)?, path.display().to_string())
        }
        Secret::Command(argv) => (run(argv)?, argv.first().cloned().unwrap_or_default()),
    };
    let line = text.lines().next().unwrap_or_default();
    if line.is_empty() {
        return Err(format!("{whence}: its first line is empty"));
    }
    Ok(line.to_owned())
}

fn credential(name: &str) -> Result<PathBuf, String> {
    let directory = std::env::var_os("CREDENTIALS_DIRECTORY").ok_or_else(|| {
        format!("there are no credentials of systemd: name {name} in LoadCredential= of the unit")
    })?;
    Ok(PathBuf::from(directory).join(name))
}

/// The lines of a file that are neither empty nor comments.
fn lines(path: &Path) -> Result<Vec<String>, String> {
    let text = read_file(path, USERS_FILE_MAX)?;
    let lines =
        text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    Ok(lines.map(str::to_owned).collect())
}

/// A user and his password, with white space between.
fn account(line: &str) -> Option<(String, String)> {
    let (user, password) = line.split_once(char::is_whitespace)?;
    let password = password.trim_start();
    (!password.is_empty()).then(|| (user.to_owned(), password.to_owned()))
}

fn read_file(path: &Path, most: u64) -> Result<String, String> {
    let failed = |error: io::Error| format!("{}: {error}", path.display());
    let mut text = String::new();
    File::open(path).and_then(|file| file.take(most).read_to_string(&mut text)).map_err(failed)?;
    Ok(text)
}

/// What a command prints. It gets none of our capabilities.
fn run(argv: &[String]) -> Result<String, String> {
    let Some((program, arguments)) = argv.split_first() else {
        return Err("no command is given".to_owned());
    };
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    // Capabilities belong to threads (capabilities(7)): this one gives up its own before it starts the command.
    let running = thread::scope(|scope| {
        let unprivileged = move || {
            caps::clear(None, caps::CapSet::Ambient).map_err(io::Error::other)?;
            command.spawn()
        };
        scope.spawn(unprivileged).join()
    });
    let failed = |error: io::Error| format!("{program}: {error}");
    let mut child = match running {
        Ok(started) => started.map_err(failed)?,
        Err(_) => return Err(format!("{program}: it cannot be started")),
    };
    let mut text = String::new();
    let output = child.stdout.take();
    let reader = thread::spawn(move || {
        let mut text = String::new();
        let output = output.map(|output| output.take(SECRET_MAX).read_to_string(&mut text));
        output.unwrap_or(Ok(0)).map(|_| text)
    });
    let until = Instant::now() + COMMAND_TIMEOUT;
    loop {
        match child.try_wait().map_err(failed)? {
            Some(status) if status.success() => break,
            Some(status) => return Err(format!("{program}: {status}")),
            None if Instant::now() >= until => {
                // It has ended meanwhile, or does now.
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("{program}: it takes more than {COMMAND_TIMEOUT:?}"));
            }
            None => thread::sleep(COMMAND_POLL),
        }
    }
    if let Ok(printed) = reader.join() {
        text = printed.map_err(failed)?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn mailbox(text: &str) -> Mailbox {
        let text = format!("[mailbox.m]\nhost = \"h\"\n{text}");
        Config::parse(&text, Path::new("t")).unwrap().mailboxes.remove(0)
    }

    fn said(login: &Result<Login, String>) -> String {
        match login {
            Ok(Login::Password { mechanism, on_behalf_of, user, password }) => {
                format!("{mechanism:?} {on_behalf_of} {user} {}", password.expose())
            }
            Ok(Login::XOAuth2 { user, token }) => format!("token {user} {}", token.expose()),
            Err(error) => error.clone(),
        }
    }

    #[test]
    fn secrets_are_read_anew_for_each_login() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("secret");
        let text = format!("user = \"ann\"\nsecret_file = \"{}\"\n", file.display());
        let accounts = accounts(&mailbox(&text)).unwrap();
        let [one] = &accounts[..] else { panic!("{accounts:?}") };
        assert_eq!(one.name, "m");
        assert!(said(&one.credentials.login()).contains("No such file"));
        std::fs::write(&file, "first\n").unwrap();
        assert_eq!(said(&one.credentials.login()), "Any  ann first");
        std::fs::write(&file, "second word\r\nmore\n").unwrap();
        assert_eq!(said(&one.credentials.login()), "Any  ann second word");
        std::fs::write(&file, "\nx").unwrap();
        assert!(said(&one.credentials.login()).contains("its first line is empty"));
    }

    #[test]
    fn commands_print_tokens() {
        let run = |argv: &str| {
            let text = format!("user = \"ann\"\nauth = \"xoauth2\"\nsecret_command = {argv}\n");
            said(&accounts(&mailbox(&text)).unwrap()[0].credentials.login())
        };
        assert_eq!(run("[\"/bin/echo\", \"a token\"]"), "token ann a token");
        assert!(run("[\"/bin/false\"]").contains("exit status: 1"));
        assert!(run("[\"/nowhere/token\"]").contains("/nowhere/token: No such file"));
    }

    #[test]
    fn many_accounts() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("users");
        std::fs::write(&file, "# staff\nbob\n\n carol\nann\n").unwrap();
        let shown = |text: &str| -> Vec<String> {
            let all = accounts(&mailbox(text)).unwrap();
            all.iter().map(|a| format!("{} {}", a.name, said(&a.credentials.login()))).collect()
        };
        let text = format!(
            "user = \"admin\"\nsecret_command = [\"/bin/echo\", \"x\"]\nusers = [\"ann\", \"dave\"]\nusers_file = \"{}\"\n",
            file.display()
        );
        assert_eq!(
            shown(&text),
            [
                "m/ann Any ann admin x",
                "m/bob Any bob admin x",
                "m/carol Any carol admin x",
                "m/dave Any dave admin x"
            ]
        );
        let starred = format!("{text}master = \"*\"\n");
        assert_eq!(shown(&starred)[1], "m/bob Any  bob*admin x");
        std::fs::write(&file, "bob  pass word\nann x\n").unwrap();
        let own = format!("accounts_file = \"{}\"\nauth = \"login\"\n", file.display());
        assert_eq!(shown(&own), ["m/ann Login  ann x", "m/bob Login  bob pass word"]);
        std::fs::write(&file, "bob\n").unwrap();
        assert!(accounts(&mailbox(&own)).unwrap_err().contains("entry 1 has no password"));
        std::fs::write(&file, "").unwrap();
        assert_eq!(accounts(&mailbox(&own)).unwrap_err(), "no users are named");
    }
}

//! Mail on an IMAP server, as its user sees it: by Python's imaplib, which knows nothing of us.

use crate::host::Host;
use crate::wait;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::fs;
use std::net::IpAddr;
use std::time::Duration;

/// Appends, lists, marks; says what there is as JSON.
const SCRIPT: &str = r#"
import imaplib, json, sys
host, user, password, folder, what = sys.argv[1:6]
imap = imaplib.IMAP4(host)
imap.login(user, password)
def check(answer):
    if answer[0] != "OK":
        raise SystemExit(str(answer))
    return answer[1]
if what == "append":
    for path in sys.argv[7:]:
        with open(path, "rb") as file:
            date = '"01-Mar-2024 12:34:56 +0530"'
            check(imap.append(folder, sys.argv[6], date, file.read()))
elif what == "store":
    check(imap.select(folder))
    check(imap.uid("STORE", sys.argv[6], "+FLAGS", sys.argv[7]))
else:
    mails = []
    if imap.select(folder, readonly=True)[0] == "OK":
        found = check(imap.uid("SEARCH", "ALL"))[0].split()
        for uid in found:
            answer = check(imap.uid("FETCH", uid, "(UID FLAGS INTERNALDATE BODY.PEEK[])"))
            # What comes unasked has no literal; what has vanished meanwhile has nothing else.
            data = next((part for part in answer if isinstance(part, tuple)), None)
            if data is None:
                continue
            flags = [flag.decode() for flag in imaplib.ParseFlags(data[0])]
            date = data[0].decode("latin1").split('INTERNALDATE "')[1].split('"')[0]
            mails.append({"uid": int(uid), "flags": sorted(f for f in flags if f != "\\Recent"),
                          "date": date, "text": data[1].decode("latin1")})
    print(json.dumps(mails))
imap.logout()
"#;

/// A message in a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mail {
    /// Its identifier.
    pub uid: u32,
    /// Its flags, sorted, without `\Recent`.
    pub flags: Vec<String>,
    /// When it arrived.
    pub date: String,
    /// Its bytes, as Latin-1.
    pub text: String,
}

impl Mail {
    fn of(mail: &Value) -> Option<Self> {
        let text = |name: &str| mail[name].as_str().map(str::to_owned);
        let flags = mail["flags"].as_array()?.iter().map(|flag| flag.as_str().map(str::to_owned));
        Some(Self {
            uid: mail["uid"].as_u64()?.try_into().ok()?,
            flags: flags.collect::<Option<_>>()?,
            date: text("date")?,
            text: text("text")?,
        })
    }

    /// Its subject.
    pub fn subject(&self) -> &str {
        let line = self.text.lines().find_map(|line| line.strip_prefix("Subject: "));
        line.unwrap_or_default()
    }

    /// Whether a reader sees it as unread.
    pub fn is_unread(&self) -> bool {
        !self.flags.iter().any(|flag| flag == "\\Seen")
    }
}

/// A user's mailbox, seen from a host.
#[derive(Clone, Copy, Debug)]
pub struct Mailbox<'a> {
    /// Where the user sits.
    pub from: &'a Host,
    /// The server.
    pub server: IpAddr,
    /// The user.
    pub user: &'a str,
}

impl Mailbox<'_> {
    fn run(&self, folder: &str, arguments: &[&str]) -> Result<String> {
        let server = self.server.to_string();
        let argv = ["python3", "-c", SCRIPT, &server, self.user, "secret", folder];
        let output = self.from.run([&argv[..], arguments].concat())?;
        ensure!(output.success(), "imaplib: {}{}", output.out, output.err);
        Ok(output.out)
    }

    /// Puts messages into a folder, with these flags.
    pub fn append(&self, folder: &str, flags: &str, messages: &[&[u8]]) -> Result<()> {
        let mut paths = Vec::new();
        for (n, message) in messages.iter().enumerate() {
            let path = self.from.dir().join(format!("append-{}-{n}.eml", self.user));
            let text = String::from_utf8_lossy(message).replace("\r\n", "\n").replace('\n', "\r\n");
            fs::write(&path, text)?;
            paths.push(path.display().to_string());
        }
        let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
        let flags = format!("({flags})");
        self.run(folder, &[&["append", &flags][..], &paths].concat()).map(drop)
    }

    /// Adds flags to a message.
    pub fn flag(&self, folder: &str, uid: u32, flags: &str) -> Result<()> {
        self.run(folder, &["store", &uid.to_string(), &format!("({flags})")]).map(drop)
    }

    /// All messages of a folder; none if it does not exist.
    pub fn list(&self, folder: &str) -> Result<Vec<Mail>> {
        let text = self.run(folder, &["list"])?;
        let mails: Vec<Value> = serde_json::from_str(&text).with_context(|| text.clone())?;
        mails.iter().map(|mail| Mail::of(mail).with_context(|| mail.to_string())).collect()
    }

    /// Waits until the folder is as wanted.
    pub fn wait(
        &self,
        folder: &str,
        what: &str,
        wanted: impl Fn(&[Mail]) -> bool,
    ) -> Result<Vec<Mail>> {
        let mut last = Vec::new();
        let found = wait::until(what, Duration::from_secs(20), || {
            last = self.list(folder)?;
            Ok(wanted(&last).then(|| last.clone()))
        });
        let shown: Vec<(u32, &str)> = last.iter().map(|mail| (mail.uid, mail.subject())).collect();
        found.with_context(|| format!("{folder} of {}: {shown:?}", self.user))
    }
}

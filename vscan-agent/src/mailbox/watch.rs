//! Waiting for a server to tell of changes: IDLE in one folder (RFC 2177), NOTIFY for many (RFC 5465).

use super::{
    connection::{Connection, Error, finished},
    name::FolderName,
};
use std::time::Duration;
use tokio::time::{Instant, timeout_at};
use vscan_proto::imap::{Code, Command, Data, Kind, Response, Status};

/// Folders that NOTIFY is asked for at most: servers have limits (Dovecot none, Oracle's 1,000), and so have command lines.
pub(super) const NOTIFY_MAX: usize = 100;

/// What woke us.
enum Woken {
    Data(Data),
    Overflow,
    Ended(Status),
    Continue,
    Nothing,
}

impl Connection {
    /// Waits in IDLE until the server tells of new mail or changed flags in the folder that is open, or until `most` is over.
    /// True: something changed. Servers may end an IDLE after 30 minutes, so `most` is to be shorter.
    ///
    /// # Errors
    /// As [`Connection::run`].
    pub async fn idle(&mut self, most: Duration) -> Result<bool, Error> {
        const COMMAND: &str = "IDLE";
        let until = Instant::now() + most;
        self.begin();
        let tag = self.tag();
        self.send(COMMAND, &[format!("{tag} IDLE\r\n").as_bytes()]).await?;
        let mut changed = false;
        // DONE may only be sent behind the server's go-ahead.
        let mut allowed = false;
        loop {
            let woken = match timeout_at(until, self.woken()).await {
                Ok(woken) => woken?,
                Err(_) => break,
            };
            match woken {
                Woken::Continue => allowed = true,
                Woken::Ended(status) => return finished(COMMAND, status).map(|_| changed),
                Woken::Data(Data::Exists(_) | Data::Fetch(_)) => changed = true,
                Woken::Data(_) | Woken::Overflow | Woken::Nothing => {}
            }
            if changed && allowed {
                break;
            }
        }
        self.begin();
        if allowed {
            self.send(COMMAND, &[b"DONE\r\n"]).await?;
        }
        loop {
            match sorted(self.response(COMMAND).await?)? {
                Woken::Ended(status) => return finished(COMMAND, status).map(|_| changed),
                Woken::Continue if !allowed => {
                    allowed = true;
                    self.send(COMMAND, &[b"DONE\r\n"]).await?;
                }
                Woken::Data(Data::Exists(_) | Data::Fetch(_)) => changed = true,
                Woken::Data(_) | Woken::Overflow | Woken::Continue | Woken::Nothing => {}
            }
        }
    }

    /// Whether [`watch`](Self::watch) can be used.
    #[must_use]
    pub fn can_watch(&self) -> bool {
        self.has("NOTIFY") && (self.has("UNSELECT") || self.has("IMAP4REV2"))
    }

    /// Waits by NOTIFY until the server tells of changes in one of these folders, or until `most` is over; which they are. No
    /// folder is open afterwards.
    ///
    /// # Errors
    /// As [`Connection::run`]; [`Error::No`] where the server does not want to be asked for these folders.
    pub async fn watch(
        &mut self,
        folders: &[FolderName],
        most: Duration,
    ) -> Result<Vec<FolderName>, Error> {
        const COMMAND: &str = "NOTIFY";
        let until = Instant::now() + most;
        match self.run("UNSELECT", Command::new("UNSELECT"), |_| {}).await {
            // None was open.
            Err(Error::Bad { .. } | Error::No { .. }) => {}
            result => drop(result?),
        }
        let utf8 = self.is_enabled("UTF8=ACCEPT");
        const EVENTS: &str = "(MessageNew MessageExpunge FlagChange)";
        // Dovecot 2.3 takes names that are encoded here for other ones: these are among all of the user's folders.
        let (named, encoded): (Vec<_>, Vec<_>) = folders
            .iter()
            .take(NOTIFY_MAX)
            .partition(|folder| folder.as_wire_str() == folder.to_string());
        let mut command = Command::new("NOTIFY SET");
        if !named.is_empty() {
            command = command.text(" (mailboxes (");
            for (n, folder) in named.into_iter().enumerate() {
                command = command
                    .text(if n > 0 { " " } else { "" })
                    .quoted(folder.as_wire_str())
                    .ok_or_else(|| Error::Unspeakable(format!("the folder name {folder}")))?;
            }
            command = command.text(&format!(") {EVENTS})"));
        }
        if !encoded.is_empty() {
            command = command.text(&format!(" (personal {EVENTS})"));
        }
        let wanted = |name: &str| {
            let name = FolderName::from_wire(name, utf8);
            folders.contains(&name).then_some(name)
        };
        let mut changed = Vec::new();
        // Changes between the command and its answer count too.
        self.run(COMMAND, command, |data| {
            if let Data::Status { name, .. } = data {
                changed.extend(wanted(&name));
            }
        })
        .await?;
        self.begin();
        while changed.is_empty() {
            match timeout_at(until, self.woken()).await {
                Ok(woken) => match woken? {
                    Woken::Data(Data::Status { name, .. }) => changed.extend(wanted(&name)),
                    // Which ones is not known any more.
                    Woken::Overflow => changed.extend_from_slice(folders),
                    Woken::Data(_) | Woken::Ended(_) | Woken::Continue | Woken::Nothing => {}
                },
                Err(_) => break,
            }
        }
        self.run(COMMAND, Command::new("NOTIFY NONE"), |data| {
            if let Data::Status { name, .. } = data {
                changed.extend(wanted(&name));
            }
        })
        .await?;
        changed.sort();
        changed.dedup();
        Ok(changed)
    }

    async fn woken(&mut self) -> Result<Woken, Error> {
        sorted(self.news().await?)
    }
}

fn sorted(response: Response) -> Result<Woken, Error> {
    match response {
        Response::Status(Status { kind: Kind::Bye, text, .. }) => Err(Error::Bye(text)),
        Response::Status(Status { code: Some(Code::NotificationOverflow), .. }) => {
            Ok(Woken::Overflow)
        }
        Response::Status(_) | Response::Unreadable(_) => Ok(Woken::Nothing),
        Response::Data(data) => Ok(Woken::Data(data)),
        Response::Continue(_) => Ok(Woken::Continue),
        Response::Tagged { status, .. } => Ok(Woken::Ended(status)),
    }
}

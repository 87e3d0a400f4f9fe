//! What was judged is noted in the buffer, and what was sentenced is carried out on the server.

use super::{
    Entry, Error, FAILURES_MAX, FolderState, Judge, Pass, PassError, Sentence, Status, Summary,
    Uid, flag,
};
use crate::mailbox::{
    folder::Store,
    replace::{self, Place, Replaced},
};

impl<J: Judge> Pass<'_, J> {
    /// Notes what was judged; the messages that are settled by that.
    pub(super) fn flush(&mut self, state: Option<FolderState>) -> Result<Vec<Uid>, PassError> {
        if self.scope.leaves_no_note() {
            self.noted.clear();
        }
        if self.noted.is_empty() && state.is_none() {
            return Ok(Vec::new());
        }
        let account = self.scope.account;
        self.buffer.note(account, self.folder, self.validity, &self.noted, state)?;
        let settled = |(_, entry): &(Uid, Entry)| match entry.status {
            Status::Failed(count) => count >= FAILURES_MAX,
            Status::Told => false,
            Status::Clean | Status::Plain | Status::Left | Status::Treated => true,
        };
        let uids = self.noted.drain(..).filter(settled).map(|(uid, _)| uid);
        Ok(uids.collect())
    }

    /// Treats what was sentenced and marks what is settled, in the folder opened for changes; then it is only looked at again.
    pub(super) async fn carry_out(&mut self, marked: &mut Vec<Uid>) -> Result<(), PassError> {
        if self.scope.keyword.is_none() || self.scope.dry_run {
            marked.clear();
        }
        if self.sentenced.is_empty() && marked.is_empty() {
            return Ok(());
        }
        self.held = 0;
        let opened = self.connection.select(self.folder).await?;
        if opened.uid_validity != Some(self.validity) {
            // Nobody knows which message is which any more: the next look begins anew.
            return Err(Error::Missing("the former UIDVALIDITY").into());
        }
        for (summary, entry, sentence) in std::mem::take(&mut self.sentenced) {
            self.treat_one(opened.writable, summary, entry, sentence).await?;
        }
        marked.append(&mut self.flush(None)?);
        if let (Some(keyword), true) = (self.scope.keyword, opened.takes_keywords) {
            let flag = flag(keyword)?;
            for uid in marked.drain(..) {
                match self.connection.store(uid, Store::Add, std::slice::from_ref(&flag)).await {
                    Err(error) if !error.is_refusal() => return Err(error.into()),
                    _ => {}
                }
            }
        }
        marked.clear();
        self.connection.examine(self.folder).await?;
        Ok(())
    }

    pub(super) async fn treat_one(
        &mut self,
        writable: bool,
        summary: Summary,
        mut entry: Entry,
        sentence: Sentence,
    ) -> Result<(), PassError> {
        let uid = summary.uid;
        let done = if writable {
            self.treat(&summary, sentence).await
        } else {
            Err(PassError::Server(Error::No {
                command: "SELECT",
                text: "the folder is read-only".to_owned(),
                over_quota: false,
            }))
        };
        match done {
            Ok(new) => {
                self.tally.treated += 1;
                entry.status = Status::Treated;
                if let Some(new) = new {
                    self.noted.push((new, entry));
                }
                self.buffer.forget(self.scope.account, self.folder, self.validity, &[uid])?;
            }
            Err(PassError::Server(error))
                if error.is_refusal() || matches!(error, Error::Missing(_)) =>
            {
                self.judge.failed(self.folder, uid, &error.to_string());
                let again = matches!(entry.status, Status::Failed(count) if count < FAILURES_MAX);
                self.unfinished |= again;
                self.noted.push((uid, entry));
            }
            Err(error) => {
                self.flush(None)?;
                return Err(error);
            }
        }
        Ok(())
    }

    pub(super) async fn treat(
        &mut self,
        summary: &Summary,
        sentence: Sentence,
    ) -> Result<Option<Uid>, PassError> {
        let place =
            Place { account: self.scope.account, folder: self.folder, validity: self.validity };
        match sentence {
            Sentence::Leave | Sentence::Again => Ok(Some(summary.uid)),
            Sentence::Replace { with, token } => {
                let (connection, buffer) = (&mut *self.connection, self.buffer);
                let with = with.into();
                match replace::replace(connection, buffer, place, summary, &token, with).await? {
                    Replaced::By(new) => Ok(new),
                    Replaced::Gone => Ok(None),
                }
            }
            Sentence::Move(folder) => {
                self.connection.move_to(summary.uid, &folder).await?;
                Ok(None)
            }
            Sentence::Remove => {
                self.connection.remove(summary.uid).await?;
                Ok(None)
            }
        }
    }
}

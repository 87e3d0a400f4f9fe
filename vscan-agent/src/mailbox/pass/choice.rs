//! Which messages of a folder are looked at: what the server says has changed, beside what the buffer knows.

use super::{
    Change, Entry, FAILURES_MAX, FolderState, Judge, Pass, PassError, SearchKey, Status, Uid, flag,
    now,
};
use crate::mailbox::buffer::BufferError;
use std::{
    collections::{HashMap, HashSet},
    num::NonZeroU32,
};

impl<J: Judge> Pass<'_, J> {
    pub(super) fn known(&self) -> Result<HashMap<Uid, Entry>, BufferError> {
        let known = self.buffer.known(self.scope.account, self.folder, self.validity)?;
        Ok(known.into_iter().collect())
    }

    /// The change up to which everything is known, where the server says what has changed since.
    pub(super) fn since(&self, last: Option<FolderState>, now: FolderState) -> Option<u64> {
        let last = last.filter(|last| {
            last.uid_validity == now.uid_validity
                && last.scope == now.scope
                && self.scope.keyword.is_none()
                && !self.scope.anew
        })?;
        now.highest_modseq.and(last.highest_modseq)
    }

    /// Of the messages that have changed: those that are looked at, ascending, and those that are not any more.
    pub(super) async fn changed(
        &mut self,
        since: u64,
        now: FolderState,
    ) -> Result<(Vec<Uid>, HashSet<Uid>), PassError> {
        if now.highest_modseq == Some(since) {
            return Ok((Vec::new(), HashSet::new()));
        }
        let changes = self.connection.changes(since).await?;
        let unread = self.scope.unread;
        let left_out = |change: &&Change| change.deleted || (unread && change.seen);
        let uid = |change: &Change| change.uid;
        let listed = changes.changed.iter().filter(|change| !left_out(change)).map(uid).collect();
        let left = changes.changed.iter().filter(left_out).map(uid);
        let vanished = changes.vanished.unwrap_or_default();
        let known = self.buffer.known(self.scope.account, self.folder, self.validity)?;
        let vanished = known.iter().map(|(uid, _)| *uid).filter(|uid| vanished.contains(uid.get()));
        Ok((listed, left.chain(vanished).collect()))
    }

    /// The messages that are looked at, ascending.
    pub(super) async fn listed(&mut self) -> Result<Vec<Uid>, PassError> {
        let mut keys = vec![SearchKey::Undeleted];
        if self.scope.unread {
            keys.push(SearchKey::Unseen);
        }
        if let (Some(keyword), false) = (self.scope.keyword, self.scope.anew) {
            keys.push(SearchKey::Unkeyword(flag(keyword)?));
        }
        Ok(self.connection.search(self.tally.messages, &keys).await?)
    }

    /// What the buffer knows of the folder under its former identifiers, by header.
    pub(super) fn former(&self, last: FolderState) -> Result<HashMap<[u8; 16], Entry>, PassError> {
        let Some(validity) = NonZeroU32::new(last.uid_validity) else { return Ok(HashMap::new()) };
        let known = self.buffer.known(self.scope.account, self.folder, validity)?;
        let uids: Vec<Uid> = known.iter().map(|(uid, _)| *uid).collect();
        self.buffer.forget(self.scope.account, self.folder, validity, &uids)?;
        Ok(known.into_iter().map(|(_, entry)| (entry.digest, entry)).collect())
    }

    pub(super) fn wants(&self, known: &HashMap<Uid, Entry>, uid: Uid) -> bool {
        self.scope.anew
            || match known.get(&uid).map(|entry| entry.status) {
                None => true,
                Some(Status::Failed(count)) => count < FAILURES_MAX,
                Some(Status::Told) => !self.scope.dry_run,
                Some(Status::Plain) => !self.scope.skip_plain,
                Some(Status::Clean | Status::Left | Status::Treated) => false,
            }
    }

    /// Messages that were scanned by other rules, the youngest first.
    pub(super) fn rescans_due(&self, known: &HashMap<Uid, Entry>, rules: u64) -> Vec<Uid> {
        let Some(age) = self.scope.rescan_age else { return Vec::new() };
        let since = now().saturating_sub(age);
        let mut due: Vec<Uid> = known
            .iter()
            .filter(|(_, entry)| entry.rules != rules && entry.at >= since)
            .map(|(uid, _)| *uid)
            .collect();
        due.sort_unstable_by(|a, b| b.cmp(a));
        due
    }
}

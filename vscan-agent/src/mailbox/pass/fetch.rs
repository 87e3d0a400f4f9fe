//! Messages are fetched piece by piece into the spool, small ones several at a time.

use super::{Entry, Judge, Pass, PassError, Summary, Uid, digest};
use crate::spool::{Object, SpoolError};
use bytes::Bytes;
use std::{collections::HashMap, num::NonZeroU32};

/// Bytes of a message that are fetched at a time: what is in memory of it, whatever its length.
const PIECE: NonZeroU32 = NonZeroU32::new(1 << 20).unwrap();

/// Messages below this many bytes are fetched several at a time.
const SMALL: NonZeroU32 = NonZeroU32::new(64 << 10).unwrap();

/// Pieces of a message that end before they should: a server that goes on like that never comes to an end.
const SHORT_MAX: u32 = 4;

/// What came of fetching a message.
pub(super) enum Retrieved {
    /// Its bytes, or why they could not be held.
    Object(Result<Object, SpoolError>),
    /// It has vanished.
    Gone,
    /// The server does not give it out: why not.
    Refused(String),
}

impl<J: Judge> Pass<'_, J> {
    /// Fetches the small ones of these messages in few commands, ahead of their turn: most of the time that a small message takes
    /// is the way to the server and back.
    pub(super) async fn fetch_ahead(
        &mut self,
        summaries: &[Summary],
        renumbered: &HashMap<[u8; 16], Entry>,
    ) -> Result<(), PassError> {
        self.ahead.clear();
        let settled = |summary: &Summary| {
            (self.scope.skip_plain && summary.plain == Some(true))
                || renumbered.contains_key(&digest(summary))
        };
        let small: Vec<Uid> = summaries
            .iter()
            .take_while(|summary| summary.size < u64::from(SMALL.get()))
            .filter(|summary| !settled(summary))
            .map(|summary| summary.uid)
            .collect();
        match self.connection.pieces(&small, 0, SMALL).await {
            Ok(pieces) => self.ahead = pieces,
            // Then one by one, so that it shows which of them the server does not give out.
            Err(error) if error.is_refusal() => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Fetches a message piece by piece.
    pub(super) async fn retrieve(&mut self, summary: &Summary) -> Result<Retrieved, PassError> {
        let mut writer = self.spool.writer();
        let mut offset = 0_u32;
        let mut short = 0;
        loop {
            let (piece, asked) = match self.ahead.remove(&summary.uid) {
                Some(piece) => (Some(piece), SMALL),
                None => match self.connection.piece(summary.uid, offset, PIECE).await {
                    Ok(piece) => (piece, PIECE),
                    // Some servers refuse what lies behind the end.
                    Err(error) if error.is_refusal() && short > 0 => (Some(Bytes::new()), PIECE),
                    Err(error) if error.is_refusal() => {
                        return Ok(Retrieved::Refused(error.to_string()));
                    }
                    Err(error) => return Err(error.into()),
                },
            };
            self.judge.moved(self.connection.take_moved());
            let Some(piece) = piece else { return Ok(Retrieved::Gone) };
            let length = u32::try_from(piece.len()).unwrap_or(u32::MAX);
            if let Err(error) = writer.write(&piece) {
                return Ok(Retrieved::Object(Err(error)));
            }
            let Some(next) = offset.checked_add(length) else {
                let limit = u64::from(u32::MAX);
                return Ok(Retrieved::Object(Err(SpoolError::TooLarge { limit })));
            };
            offset = next;
            // Where a piece is short the message ends, unless there should be more of it: not all servers count right, so
            // one that announced more is asked until nothing comes.
            let is_short = length < asked.get();
            if length == 0 || (is_short && u64::from(offset) >= summary.size) {
                return Ok(Retrieved::Object(writer.finish()));
            }
            short += u32::from(is_short);
            if short > SHORT_MAX {
                let why = "the server gives it out in pieces without end".to_owned();
                return Ok(Retrieved::Refused(why));
            }
        }
    }
}

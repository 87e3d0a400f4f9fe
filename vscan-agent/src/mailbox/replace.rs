//! Putting a treated message in the place of another one on the server, so that at every moment at least one of them
//! exists, and after a restart exactly one.
//!
//! IMAP cannot change a message (RFC 9051 2.3.1.1): the new one is added, then the old one is removed. In between
//! stands the journal:
//!
//! | journal | server | after a restart |
//! |---|---|---|
//! | begun | old | nothing has happened: struck, the message is scanned again |
//! | begun | old and new | the new one is found by its token: the old one is removed |
//! | has new | old and new | the old one is removed |
//! | has new | new | struck |

use super::{
    buffer::{Buffer, BufferError, Replacement},
    connection::{Connection, Error},
    folder::{SearchKey, Summary, Uid},
    name::FolderName,
};
use bytes::Bytes;
use std::num::NonZeroU32;
use thiserror::Error as ThisError;

/// The header field by which a replacement is found again.
pub const TOKEN_FIELD: &str = "X-Vscan-Replacement";

/// Why a message was not replaced. The old one is where it was.
#[derive(Debug, ThisError)]
pub enum ReplaceError {
    /// The server, or the connection to it.
    #[error(transparent)]
    Server(#[from] Error),
    /// The journal.
    #[error(transparent)]
    Journal(#[from] BufferError),
}

/// Where a message lies.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The account, as the buffer names it.
    pub account: &'a str,
    /// The folder; the connection has it selected.
    pub folder: &'a FolderName,
    /// The validity of its identifiers.
    pub validity: NonZeroU32,
}

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replaced {
    /// Another one has its place; its identifier, if it could be found out.
    By(Option<Uid>),
    /// It was gone before: whoever removed it does not want it back.
    Gone,
}

/// Replaces a message by another one with the same date, and the flags that it has now. `message` carries `token` in its
/// field [`TOKEN_FIELD`].
///
/// # Errors
/// [`ReplaceError`]. The old message still exists then; the new one may, and is dealt with by [`resume`].
pub async fn replace(
    connection: &mut Connection,
    buffer: &Buffer,
    place: Place<'_>,
    old: &Summary,
    token: &str,
    message: Bytes,
) -> Result<Replaced, ReplaceError> {
    // Its reader may have flagged or removed it while it was scanned.
    let Some(old) = connection.summaries(&[old.uid], false, false).await?.pop() else {
        return Ok(Replaced::Gone);
    };
    let number = u64::from(old.uid.get());
    let mut replacement = Replacement {
        folder: place.folder.as_wire_str().to_owned(),
        uid_validity: place.validity.get(),
        old: old.uid.get(),
        token: token.to_owned(),
        new: None,
    };
    buffer.journal(place.account, number, &replacement)?;
    let appended = connection.append(place.folder, &old.flags, old.date.as_deref(), message).await;
    let new = match appended {
        Ok(Some(new)) => Some(new),
        Ok(None) => find(connection, token).await?,
        Err(error) => {
            if error.is_refusal() {
                // The server has nothing of it.
                buffer.strike(place.account, number)?;
            }
            return Err(error.into());
        }
    };
    replacement.new = new.map(Uid::get);
    buffer.journal(place.account, number, &replacement)?;
    connection.remove(old.uid).await?;
    buffer.strike(place.account, number)?;
    Ok(Replaced::By(new))
}

/// Completes what was begun before a restart, or before the connection broke. Calls `done` for each message whose
/// replacement is complete, with the identifiers of the old and the new one.
///
/// # Errors
/// [`ReplaceError`]; what is left stays in the journal.
pub async fn resume(
    connection: &mut Connection,
    buffer: &Buffer,
    account: &str,
    mut done: impl FnMut(&Replacement),
) -> Result<(), ReplaceError> {
    for (number, replacement) in buffer.pending(account)? {
        let folder = FolderName::from_wire_str(&replacement.folder);
        let opened = match connection.select(&folder).await {
            Ok(opened) => opened,
            // The folder is gone, and both messages with it.
            Err(error) if error.is_refusal() => {
                buffer.strike(account, number)?;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let same = opened.uid_validity.map(NonZeroU32::get) == Some(replacement.uid_validity);
        let new = find(connection, &replacement.token).await?;
        let old = Uid::new(replacement.old);
        if let (true, Some(_), Some(old)) = (same, new, old) {
            connection.remove(old).await?;
            done(&replacement);
        }
        // Without the new message nothing has happened, and the old one is scanned again. With other identifiers nobody
        // can say which message is the old one: it is scanned and treated again.
        buffer.strike(account, number)?;
    }
    Ok(())
}

/// The message of the selected folder that carries the token.
async fn find(connection: &mut Connection, token: &str) -> Result<Option<Uid>, Error> {
    let found = connection
        .search(0, &[SearchKey::Header(TOKEN_FIELD.to_owned(), token.to_owned())])
        .await?;
    Ok(found.last().copied())
}

//! The mailbox scanner's own parts against real mail servers, Dovecot and Cyrus, and against servers that are up to no good.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod faults;
mod hostile;
mod login;
mod scale;
mod scan;
mod stage;
mod sync;

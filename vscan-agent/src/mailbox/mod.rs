//! The mailbox scanner: mail that already lies on a server, read by IMAP and scanned where it lies.
//!
//! [`connection`] runs IMAP's commands, [`tls`] and [`login`] begin it, [`folder`] has the commands that a scan needs, [`buffer`] remembers what was scanned,
//! [`pass`] looks at one folder, [`replace`] changes a message on the server, [`account`] does all that again and again
//! for one account.

pub mod account;
pub mod buffer;
pub mod connection;
pub mod folder;
pub mod login;
pub mod name;
pub mod pass;
pub mod replace;
pub mod status;
pub mod tls;
mod watch;

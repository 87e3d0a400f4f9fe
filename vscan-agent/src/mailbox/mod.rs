//! The mailbox scanner: mail that already lies on a server, read by IMAP and scanned where it lies.
//!
//! [`connection`] runs IMAP's commands, [`tls`] and [`login`] begin it, [`folder`] has the commands that a scan needs,
//! [`buffer`] remembers what was scanned, [`pass`] looks at one folder, [`judge`] decides on a message, [`replace`] changes
//! one on the server, [`account`] does all that again and again for one account, [`service`] has all accounts, whose secrets
//! are read by [`secret`].

pub mod account;
pub mod buffer;
pub mod connection;
pub mod folder;
pub mod judge;
pub mod login;
pub mod name;
pub mod orders;
pub mod pass;
pub mod replace;
pub mod secret;
pub mod service;
pub mod status;
pub mod tls;
mod watch;

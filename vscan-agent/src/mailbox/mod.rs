//! The mailbox scanner: mail that already lies on a server, read by IMAP and scanned where it lies.

pub mod buffer;
pub mod connection;
pub mod folder;
pub mod name;
pub mod pass;
pub mod replace;

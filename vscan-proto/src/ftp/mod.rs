//! FTP (RFC 959, 1123, 2228, 2389, 2428, 3659): what commands, replies and addresses mean, and the
//! machine that stands between a client and its server.
//!
//! Nothing here owns a socket or reads a clock: the agent's driver moves the bytes and tells the
//! time.

pub mod address;
pub mod command;
mod permit;
pub mod reply;
pub mod session;

pub use command::{Command, Verb, VerbName};
pub use permit::Permit;
pub use session::{
    Addresses, BLOCK, Base, Begin, Broken, Delivery, Event, Judgement, Leg, Note, Outcome, Output,
    Recalled, Resume, Session, Settings, Sniff, Timing, Tls, is_tls_record,
};

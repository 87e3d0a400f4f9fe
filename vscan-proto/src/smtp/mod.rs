//! SMTP: the session machine between a mail client and its server.
//!
//! [`session`] holds the machine, [`command`] and [`reply`] the two grammars, [`data`] the framing
//! of a message. Sockets, the spool and the scanner are the driver's.

pub mod command;
pub mod data;
pub mod reply;
pub mod session;

pub use session::{
    Anomaly, BareNewline, Config, Envelope, Finished, Form, Message, Outcome, Output, Permit,
    Ruling, Secured, Server, Session, StartTls, Taken,
};

//! IMAP, the client's half: what commands look like on the wire and what responses say (RFC 3501, RFC 9051).
//!
//! [`reader`] cuts the stream into responses and never holds more than a limit, [`value`] takes a response apart into
//! atoms, strings and lists, [`response`] says what it means, [`structure`] what a message is made of, [`command`] writes
//! commands, [`set`] has sets of numbers. Which commands a scan needs, TLS and patience are the driver's.
//!
//! The reader is tolerant on purpose: a server passes on what senders wrote (names of attachments, addresses, broken MIME),
//! and one message that makes it say something odd must not keep a whole folder from being read.

pub mod command;
pub mod reader;
pub mod response;
pub mod set;
pub mod structure;
pub mod value;

pub use command::Command;
pub use reader::{Raw, Reader};
pub use response::{Code, Data, Envelope, Fetch, Flag, Kind, Response, Status};
pub use set::NumberSet;

//! Sans-IO session machines for FTP and SMTP, and IMAP's grammar.
//!
//! Bytes, replies, reports and the time go in; actions come out. No sockets, no clock, no threads.
#![forbid(unsafe_code)]

pub mod ftp;
pub mod imap;
pub mod line;
pub mod smtp;

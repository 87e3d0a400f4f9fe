//! The program `vscan`: supervisor, gateway and command line.

pub mod access;
pub mod blocking;
pub mod blocks;
pub mod clamd;
pub mod cli;
pub mod config;
pub mod gateway;
pub mod kernel;
pub mod mailbox;
pub mod net;
pub mod notify;
pub mod observe;
pub mod outbound;
pub mod policy;
pub mod quarantine;
pub mod rules;
pub mod scanner;
pub mod spool;
pub mod supervisor;
pub mod tls;

//! The lab: what the end-to-end tests, the demonstration and the benchmarks stand on.
//!
//! A [`lab::Lab`] is a client, a gateway and a server, each in namespaces of its own, joined by virtual
//! cables. [`peers`] starts real servers in it with private configuration, [`agent::Vscan`] starts the
//! program under test on the gateway, and [`ftp`], [`smtp`] and [`raw`] are small peers of our own for what
//! real ones cannot show: exact bytes, resets, load without a bottleneck.
//!
//! Nothing here touches the machine outside of these namespaces and one directory per lab under `/tmp`;
//! when the process that made a lab goes away, however it goes, the lab goes too.

pub mod agent;
pub mod fixtures;
pub mod ftp;
pub mod ftp_matrix;
pub mod ftps;
pub mod host;
pub mod imap;
pub mod imap_server;
pub mod lab;
pub mod load;
pub mod load_tls;
pub mod peers;
pub mod raw;
pub mod smtp;
pub mod smtp_matrix;
pub mod smtps;
pub mod wait;

pub use anyhow::Result;

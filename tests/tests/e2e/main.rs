//! End-to-end tests: `vscan run` between real clients and servers, in namespaces.
//!
//! One program, so that all tests run side by side. Most run twice, with either steering
//! ([`vscan_tests::on_both`]).
#![expect(clippy::print_stdout, reason = "measured times belong into a test's output")]

mod access;
mod agent_down;
mod bad_input;
mod clamav;
mod clamd;
mod firewall;
mod ftp;
mod ftp_delivery;
mod ftp_dialogue;
mod ftp_matrix;
mod ftp_names;
mod ftp_network;
mod ftp_resume;
mod ftp_tls;
mod lab;
mod mailbox;
mod notify;
mod observe;
mod outbound;
mod processes;
mod scanner;
mod smtp;
mod smtp_loss;
mod smtp_matrix;
mod smtp_relays;
mod smtp_smuggling;
mod smtp_tls;
mod smtp_tls_faults;
mod smtp_tls_odd;
mod treat;
mod types;

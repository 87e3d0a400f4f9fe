//! Replays the committed fuzz corpus: each input goes through the check of its target.

#[path = "../fuzz/checks/ftp.rs"]
mod ftp;
#[path = "../fuzz/checks/imap.rs"]
mod imap;
#[path = "../fuzz/checks/smtp.rs"]
mod smtp;

use std::path::Path;

fn replay(target: &str, run: fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut inputs = 0;
    for entry in std::fs::read_dir(&corpus).expect("the corpus is committed") {
        let path = entry.expect("a directory entry").path();
        run(&std::fs::read(&path).expect("a readable file"));
        inputs += 1;
    }
    assert!(inputs > 2, "{} is nearly empty", corpus.display());
}

#[test]
fn lines() {
    replay("line", ftp::line);
}

#[test]
fn ftp_commands() {
    replay("ftp_command", ftp::command);
}

#[test]
fn ftp_replies() {
    replay("ftp_reply", ftp::reply);
}

#[test]
fn ftp_addresses() {
    replay("ftp_address", ftp::address);
}

#[test]
fn ftp_sessions() {
    replay("ftp_session", ftp::session);
}

#[test]
fn smtp_data() {
    replay("smtp_data", smtp::data);
}

#[test]
fn smtp_commands() {
    replay("smtp_command", smtp::command);
}

#[test]
fn smtp_replies() {
    replay("smtp_reply", smtp::reply);
}

#[test]
fn smtp_sessions() {
    replay("smtp_session", smtp::session);
}

#[test]
fn imap_responses() {
    replay("imap_response", imap::response);
}

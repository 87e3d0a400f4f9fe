//! Replays the committed fuzz corpus of lines and FTP.

#[path = "../fuzz/checks/ftp.rs"]
mod checks;

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
    replay("line", checks::line);
}

#[test]
fn commands() {
    replay("ftp_command", checks::command);
}

#[test]
fn replies() {
    replay("ftp_reply", checks::reply);
}

#[test]
fn addresses() {
    replay("ftp_address", checks::address);
}

#[test]
fn sessions() {
    replay("ftp_session", checks::session);
}

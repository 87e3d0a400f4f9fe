//! Replays the committed fuzz corpus of SMTP.

#[path = "../fuzz/checks/smtp.rs"]
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
fn data() {
    replay("smtp_data", checks::data);
}

#[test]
fn commands() {
    replay("smtp_command", checks::command);
}

#[test]
fn replies() {
    replay("smtp_reply", checks::reply);
}

#[test]
fn sessions() {
    replay("smtp_session", checks::session);
}

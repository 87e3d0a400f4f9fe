//! Access rules: what is refused here never reaches the server.

use super::*;
use crate::ftp::permit::Permit;

/// `mallory` may not log in, `writer` may do everything, others may read.
#[derive(Debug)]
struct ReadOnly;

impl Permit for ReadOnly {
    fn login(&self, user: &[u8]) -> bool {
        user != b"mallory"
    }

    fn command(&self, user: Option<&[u8]>, verb: &[u8], _argument: &[u8]) -> bool {
        user == Some(b"writer")
            || ![&b"STOR"[..], b"DELE", b"SITE"].iter().any(|v| v.eq_ignore_ascii_case(verb))
    }
}

fn check(script: Script<'_>) {
    let longest = script.iter().map(|(step, _)| step.len()).max().unwrap_or(0);
    let cuts = (0..longest).map(Cut::After);
    for cut in [Cut::Whole, Cut::Bytes].into_iter().chain(cuts) {
        let mut rig = Rig::new(CLIENT4, SERVER4, Tls::Pass);
        let settings = Settings { permit: Some(Arc::new(ReadOnly)), ..settings(Tls::Pass) };
        rig.session = Session::new(rig.now, Arc::new(settings), rig.session.core.addresses);
        rig.step("s 220 ready", Cut::Whole);
        rig.said();
        run(rig, script, cut);
    }
}

#[test]
fn a_login_is_refused_and_another_goes_through() {
    check(&[
        ("c SITE CHMOD 777 x", &["c 530 Please log in with USER and PASS."]),
        (
            "c user mallory",
            &["denied login mallory", "c 530 This user is not permitted here by vscan."],
        ),
        ("c USER joe", &["user joe", "s USER joe"]),
        ("s 331 Password", &["c 331 Password"]),
        ("c PASS x¶CWD pub", &["s PASS x"]),
        ("s 230 in", &["c 230 in", "s CWD pub"]),
        ("s 250 ok", &["c 250 ok"]),
        (
            "c dele pub¶NOOP",
            &["denied dele pub", "c 550 DELE is not permitted here by vscan.", "s NOOP"],
        ),
        ("s 200 ok", &["c 200 ok"]),
    ]);
}

#[test]
fn a_user_that_the_server_does_not_take_gives_no_rights() {
    check(&[
        ("c USER joe", &["user joe", "s USER joe"]),
        ("s 230 in", &["c 230 in"]),
        ("c USER writer", &["user writer", "s USER writer"]),
        ("s 331 Password", &["c 331 Password"]),
        // vsftpd and others stay with the first user whatever comes then
        ("c DELE x", &["denied DELE x", "c 550 DELE is not permitted here by vscan."]),
        ("c PASS wrong", &["s PASS wrong"]),
        ("s 530 no", &["c 530 no"]),
        ("c DELE x", &["denied DELE x", "c 550 DELE is not permitted here by vscan."]),
        ("c USER writer", &["user writer", "s USER writer"]),
        ("s 331 Password", &["c 331 Password"]),
        ("c PASS right", &["s PASS right"]),
        ("s 230 in", &["c 230 in"]),
        ("c DELE x", &["s DELE x"]),
        ("s 250 gone", &["c 250 gone"]),
    ]);
}

#[test]
fn no_data_connection_is_used_by_a_refused_upload() {
    check(&[
        ("c USER joe", &["user joe", "s USER joe"]),
        ("s 230 in", &["c 230 in"]),
        ("c PASV", &["listen Client", "s PASV"]),
        ("! listening client 4000", &[]),
        (
            "s 227 ok (1,2,3,4,8,0)",
            &["dial 2048", "c 227 Entering Passive Mode (192,0,2,1,15,160)."],
        ),
        ("c STOR x", &["denied STOR x", "c 550 STOR is not permitted here by vscan."]),
        ("! connected upstream", &[]),
        ("! connected client", &[]),
        ("c RETR x", &["begin RETR x Upstream", "s RETR x"]),
    ]);
}

//! Sessions whose TLS ends here: AUTH, PBSZ, PROT, CCC, and port 990.

use super::*;

fn check_terminated(script: Script<'_>) {
    let mut all: Vec<(&str, &[&str])> = vec![("s 220 ready", &["c 220 ready"])];
    all.extend_from_slice(script);
    check_with(CLIENT4, SERVER4, Tls::Terminate, &all);
}

/// A session that is inside TLS.
fn check_inside(script: Script<'_>) {
    let mut all: Vec<(&str, &[&str])> = vec![
        ("c AUTH TLS", &["s AUTH TLS"]),
        ("s 234 go", &["c 234 go", "secure"]),
        ("! secured ok", &[]),
    ];
    all.extend_from_slice(script);
    check_terminated(&all);
}

#[test]
fn auth_makes_tls_of_both_legs_or_of_none() {
    check_inside(&[
        ("c USER joe", &["user joe", "s USER joe"]),
        ("s 331 Password", &["c 331 Password"]),
        ("c AUTH TLS", &["c 503 TLS has begun already."]),
        ("c REIN", &["c 502 REIN is not available inside TLS."]),
        ("c PBSZ 0", &["s PBSZ 0"]),
        ("s 200 PBSZ=0", &["c 200 PBSZ=0"]),
    ]);
    // The server has none: the client hears so in its words.
    check_terminated(&[
        ("c AUTH SSL", &["s AUTH TLS"]),
        ("s 502 what?", &["c 502 what?"]),
        ("c PBSZ 0", &["c 503 Use AUTH TLS first."]),
        ("c PROT P", &["c 503 Use AUTH TLS first."]),
        ("c CCC", &["c 503 Use AUTH TLS first."]),
        ("c AUTH TLS-C", &["c 504 Obsolete: use AUTH TLS, and PROT C or PROT P."]),
        ("c AUTH tls-p", &["c 504 Obsolete: use AUTH TLS, and PROT C or PROT P."]),
        ("c AUTH GSSAPI", &["c 504 Unknown security mechanism."]),
        ("c NOOP", &["s NOOP"]),
        ("s 200 ok", &["c 200 ok"]),
    ]);
    check_terminated(&[
        ("c AUTH TLS", &["s AUTH TLS"]),
        ("s 234 go", &["c 234 go", "secure"]),
        ("! secured client", &["anomaly ftp_tls_failed", "CLOSE"]),
    ]);
}

#[test]
fn nothing_that_was_sent_in_the_clear_is_taken_for_protected() {
    check_terminated(&[
        ("c AUTH TLS¶USER x", &["s AUTH TLS"]),
        ("s 234 go", &["c 234 go", "anomaly ftp_plaintext_behind_auth", "RESET"]),
    ]);
    // The client's first record, ahead of the server's word.
    check_terminated(&[
        ("c AUTH TLS¶\\x16\\x03\\x01~", &["s AUTH TLS"]),
        ("s 234 go", &["c 234 go", "anomaly ftp_plaintext_behind_auth", "RESET"]),
    ]);
    let injected: &[&str] = &["c 234 go", "anomaly ftp_plaintext_behind_auth", "RESET"];
    let mut rig = Rig::new(CLIENT4, SERVER4, Tls::Terminate);
    for (step, said) in [
        ("s 220 ready", &["c 220 ready"][..]),
        ("c AUTH TLS", &["s AUTH TLS"]),
        ("s 234 go¶230 you are in", injected),
    ] {
        rig.step(step, Cut::Whole);
        assert_eq!(rig.said(), said);
    }
}

#[test]
fn bytes_that_come_while_the_wire_changes_are_nobodys() {
    check_terminated(&[
        ("c AUTH TLS", &["s AUTH TLS"]),
        ("s 234 go", &["c 234 go", "secure"]),
        ("c QUIT", &[]),
        ("s 230 in", &[]),
        ("! secured ok", &[]),
        ("c NOOP", &["s NOOP"]),
        ("s 200 ok", &["c 200 ok"]),
    ]);
}

#[test]
fn both_legs_have_the_same_protection() {
    check_inside(&[
        ("c PROT P", &["s PROT P"]),
        ("s 534 no", &["c 534 no"]),
        ("c PROT P", &["s PROT P"]),
        ("s 200 private", &["c 200 private", "protect true"]),
        ("c PROT S", &["c 536 Only PROT C and PROT P are available with TLS."]),
        ("c PROT E", &["c 536 Only PROT C and PROT P are available with TLS."]),
        ("c PROT X", &["c 504 Unknown protection level."]),
        ("c PROT PC", &["c 504 Unknown protection level."]),
        ("c PASV", &["listen Client", "s PASV"]),
        ("s 227 (1,2,3,4,8,0)", &["dial 2048"]),
        ("! listening client 5000", &["c 227 Entering Passive Mode (192,0,2,1,19,136)."]),
        ("! connected upstream", &[]),
        ("! connected client", &[]),
        ("c RETR x", &["begin RETR x Upstream private", "s RETR x"]),
        ("s 150 go", &["receive Upstream"]),
        ("! received ok", &["inspect"]),
        ("s 226 done", &[]),
        ("! judged release", &["c 150 go", "send Client"]),
        ("! sent ok", &["c 226 done", "end delivered"]),
    ]);
    // What stands is of neither kind.
    check_inside(&[
        ("c PASV", &["listen Client", "s PASV"]),
        ("s 227 (1,2,3,4,8,0)", &["dial 2048"]),
        ("! listening client 5000", &["c 227 Entering Passive Mode (192,0,2,1,19,136)."]),
        ("! connected upstream", &[]),
        ("c prot p", &["s prot p"]),
        ("s 200 private", &["c 200 private", "close Client", "close Upstream", "protect true"]),
        ("c RETR x", &["c 425 Use PORT or PASV first."]),
        ("c PROT C", &["s PROT C"]),
        ("s 200 clear", &["c 200 clear", "protect false"]),
    ]);
}

#[test]
fn the_control_connection_can_go_on_in_the_clear() {
    check_inside(&[
        ("c PROT P", &["s PROT P"]),
        ("s 200 private", &["c 200 private", "protect true"]),
        ("c CCC", &["s CCC"]),
        ("s 534 no", &["c 534 no"]),
        ("c CCC", &["s CCC"]),
        ("s 200 clear", &["c 200 clear", "clear"]),
        ("! cleared ok", &[]),
        ("c CCC", &["c 503 The control connection is clear already."]),
        ("c REIN", &["c 502 REIN is not available inside TLS."]),
        ("c AUTH TLS", &["c 503 TLS has begun already."]),
        ("c PROT C", &["s PROT C"]),
        ("s 200 clear", &["c 200 clear", "protect false"]),
    ]);
    check_inside(&[
        ("c CCC¶NOOP", &["s CCC"]),
        ("s 200 clear", &["c 200 clear", "anomaly ftp_pipelined_behind_ccc", "RESET"]),
    ]);
}

#[test]
fn port_990_begins_inside() {
    check_with(
        CLIENT4,
        SERVER4,
        Tls::Implicit,
        &[
            ("s 220 hi", &["c 220 hi"]),
            ("c AUTH TLS", &["c 503 TLS has begun already."]),
            ("c FEAT", &["s FEAT"]),
            (
                "s 211-x¶ AUTH TLS;TLS-C;¶ PBSZ¶ PROT¶ SSCN¶211 End",
                &["c 211-x", "c  PBSZ", "c  PROT", "c 211 End"],
            ),
            ("c PROT P", &["s PROT P"]),
            ("s 200 ok", &["c 200 ok"]),
            ("c PROT C", &["s PROT C"]),
            ("s 200 ok", &["c 200 ok", "protect false"]),
        ],
    );
}

#[test]
fn features_are_those_that_end_here() {
    check_terminated(&[
        ("c FEAT", &["s FEAT"]),
        (
            "s 211-x¶ AUTH TLS;TLS-C;SSL;TLS-P;¶ PBSZ¶ PROT¶ SSCN¶ CCC¶211 End",
            &["c 211-x", "c  AUTH TLS;SSL;", "c  PBSZ", "c  PROT", "c  CCC", "c 211 End"],
        ),
        ("c SSCN ON", &["c 502 Not available through this gateway."]),
        ("c CPSV", &["c 502 Not available through this gateway."]),
        ("c ENC abc", &["c 503 No security exchange of that kind took place."]),
        ("c mic abc", &["c 503 No security exchange of that kind took place."]),
    ]);
}

//! Data connections and transfers.

use super::{CLIENT4, Cut, Rig, SERVER4, Tls, check, check_v6};

/// PASV of the client up to the point where both data connections stand.
macro_rules! passive {
    ($($step:expr),* $(,)?) => {
        check(&[
            ("c PASV", &["listen Client", "s PASV"]),
            ("! listening client 2000", &[]),
            ("s 227 (10,9,9,9,4,1)", &["dial 1025", "c 227 Entering Passive Mode (192,0,2,1,7,208)."]),
            ("! connected upstream", &[]),
            ("! connected client", &[]),
            $($step),*
        ])
    };
}

#[test]
fn a_clean_download() {
    passive!(
        ("c RETR a.txt", &["begin RETR a.txt Upstream", "s RETR a.txt"]),
        ("s 150 coming", &["receive Upstream"]),
        ("! received ok", &["inspect"]),
        ("s 226 done", &[]),
        ("! judged release", &["c 150 coming", "send Client"]),
        ("c NOOP", &[]),
        ("! sent ok", &["c 226 done", "end delivered", "s NOOP"]),
        ("s 200 ok", &["c 200 ok"]),
        ("c RETR again", &["c 425 Use PORT or PASV first."]),
    );
}

#[test]
fn the_scanner_s_words_come_in_front_of_the_last_one() {
    passive!(
        ("c RETR a.txt", &["begin RETR a.txt Upstream", "s RETR a.txt"]),
        ("s 150 coming", &["receive Upstream"]),
        ("! received ok", &["inspect"]),
        ("! judged announced clean", &[]),
        ("s 226-do¶226 ne", &["c 150 coming", "send Client"]),
        ("! sent ok", &["c 226-vscan: clean", "c 226-do", "c 226 ne", "end delivered"]),
        // Only of that file.
        ("c NOOP", &["s NOOP"]),
        ("s 200 ok", &["c 200 ok"]),
    );
    // What was not delivered is not praised.
    passive!(
        ("c RETR a.txt", &["begin RETR a.txt Upstream", "s RETR a.txt"]),
        ("s 150 coming", &["receive Upstream"]),
        ("! received ok", &["inspect"]),
        ("! judged announced clean", &[]),
        ("s 451 disk", &["close Client", "c 451 disk", "end server_refused"]),
    );
}

#[test]
fn the_final_reply_is_awaited_and_may_be_late() {
    passive!(
        ("c RETR a.txt", &["begin RETR a.txt Upstream", "s RETR a.txt"]),
        ("s 150 coming", &["receive Upstream"]),
        ("! received ok", &["inspect"]),
        ("! judged release", &[]),
        ("s 226-do¶226 ne", &["c 150 coming", "send Client"]),
        ("! sent ok", &["c 226-do", "c 226 ne", "end delivered"]),
    );
    // What the server itself calls broken is not delivered.
    passive!(
        ("c RETR a.txt", &["begin RETR a.txt Upstream", "s RETR a.txt"]),
        ("s 150 coming", &["receive Upstream"]),
        ("! received ok", &["inspect"]),
        ("! judged release", &[]),
        ("s 451 disk", &["close Client", "c 451 disk", "end server_refused"]),
    );
}

#[test]
fn an_infected_download() {
    passive!(
        ("c RETR a\\xff\\xffb", &["begin RETR a\\xffb Upstream", "s RETR a\\xff\\xffb"]),
        ("s 150 coming¶226 done", &["receive Upstream"]),
        ("! received ok", &["inspect"]),
        ("! judged eicar", &["close Client", "c 550 a\\xff\\xffb: eicar", "end blocked"]),
        ("c NOOP", &["s NOOP"]),
    );
}

#[test]
fn an_opening_that_cannot_be_held_longer() {
    passive!(
        ("c RETR a", &["begin RETR a Upstream", "s RETR a"]),
        ("s 150 coming", &["receive Upstream"]),
        ("+ 44", &[]),
        ("+ 1", &["c 150 coming"]),
        ("c STAT", &["c 211 RETR a: being fetched from the server"]),
        ("! received ok", &["inspect"]),
        ("s 226 done", &[]),
        ("! judged eicar", &["reset Client", "c 550 a: eicar", "end blocked"]),
    );
    passive!(
        ("c RETR a", &["begin RETR a Upstream", "s RETR a"]),
        ("s 150 coming", &["receive Upstream"]),
        ("+ 45", &["c 150 coming"]),
        ("! received ok", &["inspect"]),
        ("! judged release", &[]),
        ("s 551 late", &["reset Client", "c 551 late", "end server_refused"]),
    );
}

#[test]
fn a_download_that_is_too_large() {
    passive!(
        ("c RETR a", &["begin RETR a Upstream", "s RETR a"]),
        ("s 150 coming", &["receive Upstream"]),
        // After minutes without a word of the server, its answer to the reset still has time.
        ("+ 100", &["c 150 coming"]),
        (
            "! judged size",
            &["reset Upstream", "reset Client", "s NOOP", "c 550 a: size", "end blocked"]
        ),
        ("+ 29", &[]),
        ("c PWD", &[]),
        // Said once or twice.
        ("s 451-broken¶451 in 100 seconds", &[]),
        ("s 426 cut¶150 in 100 seconds¶200 zzz", &["s PWD"]),
        ("s 257 \"/\"", &["c 257 \\\"/\\\""]),
    );
    // By pyftpdlib behind its answer to the NOOP, by Pure-FTPd not at all.
    let cut = [
        ("c RETR a", &["begin RETR a Upstream", "s RETR a"][..]),
        ("s 150 coming", &["receive Upstream"]),
        (
            "! judged size",
            &["reset Upstream", "close Client", "s NOOP", "c 550 a: size", "end blocked"],
        ),
        ("c PWD", &[]),
        ("s 200 zzz", &[]),
    ];
    passive!(cut[0], cut[1], cut[2], cut[3], cut[4], ("s 426 cut", &["s PWD"]));
    passive!(cut[0], cut[1], cut[2], cut[3], cut[4], ("+ 2", &[]), ("+ 1", &["s PWD"]));
}

#[test]
fn a_download_that_breaks() {
    passive!(
        ("c RETR a", &["begin RETR a Upstream", "s RETR a"]),
        ("s 150 coming", &["receive Upstream"]),
        ("! received upstream", &[]),
        (
            "s 226 fine",
            &["close Client", "c 426 Connection closed; transfer aborted.", "end broken",]
        ),
    );
    passive!(
        ("c RETR a", &["begin RETR a Upstream", "s RETR a"]),
        ("s 150 coming", &["receive Upstream"]),
        ("! received upstream", &[]),
        ("s 426 oh", &["close Client", "c 426 oh", "end server_refused"]),
    );
    passive!(
        ("c RETR a", &["begin RETR a Upstream", "s RETR a"]),
        ("s 150 coming¶226 ok", &["receive Upstream"]),
        ("! received ok", &["inspect"]),
        ("! judged release", &["c 150 coming", "send Client"]),
        ("! sent client", &["c 426 Connection closed; transfer aborted.", "end broken"]),
    );
    passive!(
        ("c RETR a", &["begin RETR a Upstream", "s RETR a"]),
        (
            "s 550 no such file",
            &["close Client", "close Upstream", "c 550 no such file", "end server_refused"]
        ),
    );
}

#[test]
fn a_client_that_leaves() {
    passive!(
        ("c RETR a", &["begin RETR a Upstream", "s RETR a"]),
        ("s 150 coming", &["receive Upstream"]),
        ("c-closed", &["reset Client", "reset Upstream", "end aborted", "CLOSE"]),
    );
    passive!(
        ("c STOR a", &["begin STOR a Client", "c 150 Ok to send data.", "receive Client"]),
        ("! received ok", &["inspect"]),
        ("! judged release", &["s STOR a"]),
        ("s 150 go", &["send Upstream"]),
        ("c-closed", &["reset Upstream", "end aborted", "CLOSE"]),
    );
}

#[test]
fn a_server_that_leaves() {
    passive!(
        ("c RETR a", &["begin RETR a Upstream", "s RETR a"]),
        ("s 150 coming", &["receive Upstream"]),
        (
            "s-closed",
            &[
                "reset Client",
                "reset Upstream",
                "end server_refused",
                "c 421 The server closed the connection.",
                "CLOSE",
            ]
        ),
    );
    passive!(
        ("c STOR a", &["begin STOR a Client", "c 150 Ok to send data.", "receive Client"]),
        ("s 421 idle", &["reset Client", "reset Upstream", "end server_refused", "c 421 idle"]),
        ("s-closed", &["CLOSE"]),
    );
}

#[test]
fn a_clean_upload() {
    passive!(
        ("c STOR a", &["begin STOR a Client", "c 150 Ok to send data.", "receive Client"]),
        ("! received ok", &["inspect"]),
        ("! judged release", &["s STOR a"]),
        ("s 150 go", &["send Upstream"]),
        ("! sent ok", &[]),
        ("s 226 stored", &["c 226 stored", "end delivered"]),
    );
    passive!(
        ("c STOU", &["begin STOU  Client", "c 150 Ok to send data.", "receive Client"]),
        ("! received ok", &["inspect"]),
        ("! judged release", &["s STOU"]),
        ("s 150 FILE: x¶226-ok¶226 done", &["send Upstream"]),
        ("! sent ok", &["c 226-FILE: x", "c 226-ok", "c 226 done", "end delivered"]),
    );
}

#[test]
fn an_infected_upload_never_reaches_the_server() {
    passive!(
        ("c STOR a", &["begin STOR a Client", "c 150 Ok to send data.", "receive Client"]),
        ("! received ok", &["inspect"]),
        ("! judged eicar", &["close Upstream", "c 550 a: eicar", "end blocked"]),
        ("c STOU", &["c 425 Use PORT or PASV first."]),
    );
}

#[test]
fn a_server_that_refuses_an_upload_late() {
    passive!(
        ("c STOR a", &["begin STOR a Client", "c 150 Ok to send data.", "receive Client"]),
        ("! received ok", &["inspect"]),
        ("! judged release", &["s STOR a"]),
        ("s 553 no", &["reset Upstream", "c 553 no", "end server_refused"]),
    );
    passive!(
        ("c STOR a", &["begin STOR a Client", "c 150 Ok to send data.", "receive Client"]),
        ("! received ok", &["inspect"]),
        ("! judged release", &["s STOR a"]),
        ("s 150 go", &["send Upstream"]),
        ("s 452 full", &["reset Upstream", "c 452 full", "end server_refused"]),
    );
    // An acceptance of half a file is none.
    passive!(
        ("c STOR a", &["begin STOR a Client", "c 150 Ok to send data.", "receive Client"]),
        ("! received ok", &["inspect"]),
        ("! judged release", &["s STOR a"]),
        ("s 150 go", &["send Upstream"]),
        ("! sent upstream", &[]),
        ("s 226 ok", &["c 550 a: the server broke off the transfer", "end broken"]),
    );
}

#[test]
fn the_server_is_kept_awake_during_an_upload() {
    passive!(
        ("c STOR a", &["begin STOR a Client", "c 150 Ok to send data.", "receive Client"]),
        ("+ 29", &[]),
        ("+ 1", &["s NOOP"]),
        ("+ 60", &[]),
        ("s 200 ok", &[]),
        ("+ 30", &["s NOOP"]),
        ("s 500 what", &[]),
        ("! received ok", &["inspect"]),
        // The old data connection is no longer trusted.
        ("! judged release", &["close Upstream", "s PASV"]),
        ("s 227 (10,9,9,9,4,2)", &["dial 1026"]),
        ("! connected upstream", &["s STOR a"]),
        ("s 150 go", &["send Upstream"]),
    );
}

#[test]
fn an_upload_whose_scan_takes_too_long() {
    passive!(
        ("c STOR a", &["begin STOR a Client", "c 150 Ok to send data.", "receive Client"]),
        ("! received ok", &["inspect"]),
        ("+ 30", &["s NOOP"]),
        ("s 200 ok", &[]),
        (
            "+ 25",
            &[
                "close Upstream",
                "c 550 a: not yet scanned, not stored; try again later",
                "end timed_out",
            ]
        ),
        ("! judged release", &[]),
    );
}

#[test]
fn an_upload_that_breaks_off() {
    passive!(
        ("c STOR a", &["begin STOR a Client", "c 150 Ok to send data.", "receive Client"]),
        (
            "! received client",
            &["close Upstream", "c 426 Connection closed; transfer aborted.", "end broken",]
        ),
    );
    check(&[
        ("c PASV", &["listen Client", "s PASV"]),
        ("! listening client 2000", &[]),
        ("s 227 (10,9,9,9,4,1)", &["dial 1025", "c 227 Entering Passive Mode (192,0,2,1,7,208)."]),
        ("c STOR a", &["begin STOR a Client", "c 150 Ok to send data."]),
        (
            "+ 60",
            &[
                "s NOOP",
                "reset Client",
                "reset Upstream",
                "c 425 Can't open data connection.",
                "end timed_out",
            ],
        ),
    ]);
}

#[test]
fn listings_and_excluded_types_pass_unscanned() {
    passive!(
        ("c LIST -a", &["begin LIST -a Upstream unscanned", "s LIST -a"]),
        ("s 150 here", &["c 150 here", "splice Upstream"]),
        ("s 226 done", &[]),
        ("! spliced ok", &["c 226 done", "end delivered"]),
    );
    passive!(
        ("c RETR a.ISO", &["begin RETR a.ISO Upstream unscanned", "s RETR a.ISO"]),
        ("s 150 here", &["c 150 here", "splice Upstream"]),
        ("! spliced upstream", &[]),
        ("s 226 done", &["c 426 Connection closed; transfer aborted.", "end broken"]),
    );
    passive!(
        ("c STOR a.iso", &["begin STOR a.iso Client unscanned", "s STOR a.iso"]),
        ("s 150 go", &["c 150 go", "splice Client"]),
        ("s 452 full", &["reset Client", "reset Upstream", "c 452 full", "end server_refused"]),
    );
    passive!(
        ("c NLST", &["begin NLST  Upstream unscanned", "s NLST"]),
        ("s 550 none", &["close Client", "close Upstream", "c 550 none", "end server_refused"]),
    );
}

#[test]
fn abor_stops_both_sides() {
    passive!(
        ("c RETR a", &["begin RETR a Upstream", "s RETR a"]),
        ("s 150 coming", &["receive Upstream"]),
        (
            "c \\xff\\xf4\\xff\\xf2ABOR",
            &["reset Client", "reset Upstream", "end aborted", "s ABOR"]
        ),
        ("c PWD", &[]),
        ("s 426 cut¶226 aborted", &["s NOOP"]),
        ("s 200 zzz", &["c 426 cut", "c 226 aborted", "s PWD"]),
    );
    // Pure-FTPd, where it hears ABOR before it sees the reset: two replies, neither of them a 226.
    passive!(
        ("c STOR a.iso", &["begin STOR a.iso Client unscanned", "s STOR a.iso"]),
        ("s 150 go", &["c 150 go", "splice Client"]),
        ("c ABOR¶PWD", &["reset Client", "reset Upstream", "end aborted", "s ABOR"]),
        ("s 426 aborted", &["s NOOP"]),
        ("s 451-Transfer aborted¶451 in 1 second", &[]),
        ("s 200 zzz", &["c 426 aborted", "c 451-Transfer aborted", "c 451 in 1 second", "s PWD"]),
    );
    // And to a download: one.
    passive!(
        ("c RETR a", &["begin RETR a Upstream", "s RETR a"]),
        ("s 150 coming", &["receive Upstream"]),
        ("c ABOR", &["reset Client", "reset Upstream", "end aborted", "s ABOR"]),
        ("s 150 0.2 seconds¶226 aborted", &["s NOOP"]),
        ("s 200 zzz", &["c 426 Connection closed; transfer aborted.", "c 226 aborted"]),
    );
    // A server that knows neither.
    passive!(
        ("c RETR a", &["begin RETR a Upstream", "s RETR a"]),
        ("s 150 coming", &["receive Upstream"]),
        ("c ABOR", &["reset Client", "reset Upstream", "end aborted", "s ABOR"]),
        ("s 426 cut", &["s NOOP"]),
        ("s 502 what¶502 what", &["c 426 cut", "c 502 what"]),
    );
    // Complete upstream, but never at the client.
    passive!(
        ("c RETR a", &["begin RETR a Upstream", "s RETR a"]),
        ("s 150 coming", &["receive Upstream"]),
        ("c ABOR", &["reset Client", "reset Upstream", "end aborted", "s ABOR"]),
        ("s 226 sent¶225 nothing", &["s NOOP"]),
        ("s 200 zzz", &["c 426 Connection closed; transfer aborted.", "c 225 nothing"]),
    );
    passive!(
        ("c STOR a", &["begin STOR a Client", "c 150 Ok to send data.", "receive Client"]),
        (
            "c ABOR",
            &[
                "reset Client",
                "reset Upstream",
                "end aborted",
                "c 426 Connection closed; transfer aborted.",
                "c 226 ABOR command successful.",
            ]
        ),
        ("c NOOP", &["s NOOP"]),
    );
    passive!(
        ("c RETR a", &["begin RETR a Upstream", "s RETR a"]),
        ("c ABOR", &["reset Client", "reset Upstream", "end aborted", "s ABOR"]),
        ("+ 30", &["c 421 The server does not answer.", "CLOSE"]),
    );
}

#[test]
fn an_hour_without_a_word() {
    // Whatever moves data, in either direction, times nothing out.
    let hour = ("+ 3600", &[][..]);
    passive!(
        ("c RETR a", &["begin RETR a Upstream", "s RETR a"]),
        ("s 150 coming", &["receive Upstream"]),
        ("+ 3600", &["c 150 coming"]),
        hour,
        ("! received ok", &["inspect"]),
        ("s 226 done", &[]),
        ("! judged release", &["send Client"]),
        // The server has nothing to do any more, and might fall asleep.
        ("+ 3600", &["s NOOP"]),
        ("s 200 ok", &[]),
        ("! sent ok", &["c 226 done", "end delivered"]),
        ("c NOOP", &["s NOOP"]),
    );
    passive!(
        ("c STOR a", &["begin STOR a Client", "c 150 Ok to send data.", "receive Client"]),
        ("+ 3600", &["s NOOP"]),
        ("s 200 ok", &[]),
        ("! received ok", &["inspect"]),
        ("! judged release", &["close Upstream", "s PASV"]),
        ("s 227 (10,9,9,9,4,2)", &["dial 1026"]),
        ("! connected upstream", &["s STOR a"]),
        ("s 150 go", &["send Upstream"]),
        hour,
        ("! sent ok", &[]),
        ("s 226 stored", &["c 226 stored", "end delivered"]),
    );
    passive!(
        ("c RETR a.iso", &["begin RETR a.iso Upstream unscanned", "s RETR a.iso"]),
        ("s 150 here", &["c 150 here", "splice Upstream"]),
        hour,
        ("! spliced ok", &[]),
        ("s 226 done", &["c 226 done", "end delivered"]),
    );
}

#[test]
fn noops_during_a_transfer_wait_and_abor_behind_them_does_not() {
    let mut rig = Rig::new(CLIENT4, SERVER4, Tls::Pass);
    for step in [
        "s 220 ready",
        "c PASV",
        "! listening client 2000",
        "s 227 (10,9,9,9,4,1)",
        "! connected upstream",
        "! connected client",
        "c RETR a",
        "s 150 coming",
    ] {
        rig.step(step, Cut::Whole);
    }
    rig.said();
    // One every ten seconds for two hours.
    for _ in 0..720 {
        rig.step("c NOOP", Cut::Whole);
        assert_eq!(rig.said(), [""; 0]);
    }
    rig.step("c ABOR", Cut::Whole);
    assert_eq!(rig.said(), ["reset Client", "reset Upstream", "end aborted", "s ABOR"]);
    rig.step("s 426 cut¶226 aborted¶200 zzz", Cut::Whole);
    assert_eq!(rig.said(), ["s NOOP", "c 426 cut", "c 226 aborted", "s NOOP"]);
    for _ in 0..719 {
        rig.step("s 200 ok", Cut::Whole);
        assert_eq!(rig.said(), ["c 200 ok", "s NOOP"]);
    }
    rig.step("s 200 ok", Cut::Whole);
    assert_eq!(rig.said(), ["c 200 ok"]);
}

#[test]
fn a_server_that_says_226_before_the_data_end() {
    passive!(
        ("c RETR a", &["begin RETR a Upstream", "s RETR a"]),
        ("s 150 coming¶226 done", &["receive Upstream"]),
        ("! received ok", &["inspect"]),
        ("! judged release", &["c 150 coming", "send Client"]),
        ("! sent ok", &["c 226 done", "end delivered"]),
    );
    passive!(
        ("c LIST", &["begin LIST  Upstream unscanned", "s LIST"]),
        ("s 150 coming¶226 done", &["c 150 coming", "splice Upstream"]),
        ("! spliced ok", &["c 226 done", "end delivered"]),
    );
    passive!(
        ("c STOR a", &["begin STOR a Client", "c 150 Ok to send data.", "receive Client"]),
        ("! received ok", &["inspect"]),
        ("! judged release", &["s STOR a"]),
        ("s 150 go¶226 stored", &["send Upstream"]),
        ("! sent ok", &["c 226 stored", "end delivered"]),
    );
    // Without a word before it, or after: both are well-formed.
    passive!(
        ("c RETR a", &["begin RETR a Upstream", "s RETR a"]),
        ("s 226 done", &["receive Upstream"]),
        ("! received ok", &["inspect"]),
        ("! judged release", &["c 150 Opening data connection.", "send Client"]),
        ("! sent ok", &["c 226 done", "end delivered"]),
    );
}

#[test]
fn an_active_client() {
    check(&[
        ("c PORT 10,0,0,1,8,1", &["s PASV"]),
        ("s 227 (0,0,0,0,4,1)", &["dial 1025", "c 200 PORT command successful."]),
        ("! connected upstream", &[]),
        ("c RETR a", &["begin RETR a Upstream", "s RETR a"]),
        ("s 150 coming¶226 ok", &["connect 10.0.0.1:2049", "receive Upstream"]),
        ("! connected client", &[]),
        ("! received ok", &["inspect"]),
        ("! judged release", &["c 150 coming", "send Client"]),
        ("! sent ok", &["c 226 ok", "end delivered"]),
    ]);
    check(&[
        ("c EPRT |1|10.0.0.1|2049|", &["s PASV"]),
        ("s 227 (0,0,0,0,4,1)", &["dial 1025", "c 200 EPRT command successful."]),
        ("c STOR a", &["begin STOR a Client", "connect 10.0.0.1:2049"]),
        (
            "! failed client",
            &["close Client", "close Upstream", "c 425 Can't open data connection.", "end broken"],
        ),
    ]);
}

#[test]
fn addresses_that_are_not_the_clients() {
    let bounce: &[&str] = &["anomaly ftp_bounce", "c 501 The address must be your own."];
    check(&[
        ("c PORT 10,0,0,2,8,1", bounce),
        ("c PORT 10,0,0,1,0,21", bounce),
        ("c PORT 10,0,0,1", &["c 501 Illegal address."]),
        ("c EPRT |2|::1|x|", &["c 501 Illegal address."]),
        ("c EPRT !2!::1!2049!", &["c 522 Network protocol not supported, use (1)."]),
        ("c EPRT !7!x!2049!", &["c 522 Network protocol not supported, use (1)."]),
        ("c EPSV 2", &["c 522 Network protocol not supported, use (1)."]),
    ]);
    check_v6(&[
        ("c EPRT !2!2001:db8::2!2049!", bounce),
        ("c EPRT !1!10.0.0.1!2049!", &["c 522 Network protocol not supported, use (2)."]),
        ("c PASV", &["c 501 Not possible over IPv6; use EPSV or EPRT."]),
        ("c PORT 10,0,0,1,8,1", &["c 501 Not possible over IPv6; use EPSV or EPRT."]),
    ]);
}

#[test]
fn epsv_and_epsv_all() {
    check_v6(&[
        ("c EPSV", &["listen Client", "s EPSV"]),
        ("s 229 ok (|||1025|)", &["dial 1025"]),
        ("! listening client 2000", &["c 229 Entering Extended Passive Mode (|||2000|)."]),
        ("c EPSV ALL", &["c 200 EPSV ALL ok."]),
        ("c EPRT !2!2001:db8::1!2049!", &["c 503 Only EPSV is allowed after EPSV ALL."]),
        // The server's side is still being arranged, so it is not asked again.
        ("c EPSV 2", &["close Client", "listen Client"]),
        ("! listening client 2001", &["c 229 Entering Extended Passive Mode (|||2001|)."]),
    ]);
}

#[test]
fn a_server_that_refuses_passive() {
    check(&[
        ("c PASV", &["listen Client", "s PASV"]),
        ("! listening client 2000", &[]),
        ("s 502 no", &["s EPSV"]),
        ("s 502 no", &["listen Upstream"]),
        ("! listening upstream 3000", &["s PORT 10,0,0,1,11,184"]),
        ("s 200 ok", &["c 227 Entering Passive Mode (192,0,2,1,7,208)."]),
        ("! connected client", &[]),
        ("c RETR a", &["begin RETR a Upstream", "s RETR a"]),
        ("s 150 coming", &[]),
        ("! connected upstream", &["receive Upstream"]),
    ]);
    check_v6(&[
        ("c EPSV", &["listen Client", "s EPSV"]),
        ("! listening client 2000", &[]),
        ("s 500 no", &["listen Upstream"]),
        ("! listening upstream 3000", &["s EPRT |2|2001:db8::1|3000|"]),
        ("s 500 no", &["close Upstream", "close Client", "c 500 no"]),
    ]);
    check(&[
        ("c PASV", &["listen Client", "s PASV"]),
        ("! listening client 2000", &[]),
        ("s 530 log in", &["close Client", "c 530 log in"]),
    ]);
}

#[test]
fn a_passive_port_that_cannot_be_reached() {
    check(&[
        ("c PASV", &["listen Client", "s PASV"]),
        ("! listening client 2000", &[]),
        ("s 227 (10,9,9,9,4,1)", &["dial 1025", "c 227 Entering Passive Mode (192,0,2,1,7,208)."]),
        ("! failed upstream", &[]),
        ("! connected client", &[]),
        ("c LIST", &["begin LIST  Upstream unscanned", "close Upstream", "listen Upstream"]),
        ("! listening upstream 3000", &["s PORT 10,0,0,1,11,184"]),
        ("s 200 ok", &["s LIST"]),
        ("s 150 here", &["c 150 here"]),
        ("! connected upstream", &["splice Upstream"]),
    ]);
}

//! Files of excluded types whose first bytes have to agree.

use super::*;

fn check(sniff: Sniff, script: Script<'_>) {
    let longest = script.iter().map(|(step, _)| step.len()).max().unwrap_or(0);
    let cuts = (0..longest).map(Cut::After);
    for cut in [Cut::Whole, Cut::Bytes].into_iter().chain(cuts) {
        let mut rig = Rig::new(CLIENT4, SERVER4, Tls::Pass);
        let settings = Settings { sniff, ..settings(Tls::Pass) };
        rig.session = Session::new(rig.now, Arc::new(settings), rig.session.core.addresses);
        for step in [
            "s 220 ready",
            "c PASV",
            "! listening client 4000",
            "s 227 ok (1,2,3,4,8,0)",
            "! connected upstream",
        ] {
            rig.step(step, Cut::Whole);
            rig.said();
        }
        run(rig, script, cut);
    }
}

#[test]
fn a_download_that_is_what_it_says_is_spliced() {
    check(
        Sniff::Skipped,
        &[
            ("c RETR a.iso", &["begin RETR a.iso Upstream", "s RETR a.iso"]),
            ("! connected client", &[]),
            ("s 150 here", &["sniff Upstream"]),
            ("! sniffed skip", &["c 150 here", "splice Upstream"]),
            ("! spliced ok", &[]),
            ("s 226 done", &["c 226 done", "end delivered"]),
        ],
    );
}

#[test]
fn a_download_that_lies_is_held_and_scanned() {
    check(
        Sniff::Skipped,
        &[
            ("c RETR a.iso", &["begin RETR a.iso Upstream", "s RETR a.iso"]),
            ("s 150 here", &["sniff Upstream"]),
            // a small file: the server is done before it is looked at
            ("s 226 done", &[]),
            ("! sniffed scan", &["receive Upstream"]),
            ("! connected client", &[]),
            ("! received ok", &["inspect"]),
            ("! judged no", &["close Client", "c 550 a.iso: no", "end blocked"]),
        ],
    );
}

#[test]
fn an_upload_that_is_what_it_says_goes_on_without_a_scan() {
    check(
        Sniff::All,
        &[
            ("c STOR a.png", &["begin STOR a.png Client", "c 150 Ok to send data."]),
            ("! connected client", &["sniff Client"]),
            ("! sniffed skip", &["s STOR a.png"]),
            ("s 150 go", &["splice Client"]),
            ("! spliced ok", &[]),
            ("s 226 stored", &["c 226 stored", "end delivered"]),
        ],
    );
}

#[test]
fn an_upload_that_lies_never_reaches_the_server() {
    check(
        Sniff::Skipped,
        &[
            ("c STOR a.iso", &["begin STOR a.iso Client", "c 150 Ok to send data."]),
            ("! connected client", &["sniff Client"]),
            ("! sniffed scan", &["receive Client"]),
            ("! received ok", &["inspect"]),
            ("! judged no", &["close Upstream", "c 550 a.iso: no", "end blocked"]),
        ],
    );
}

#[test]
fn others_are_scanned_without_a_look() {
    check(
        Sniff::Skipped,
        &[
            ("c RETR a.exe", &["begin RETR a.exe Upstream", "s RETR a.exe"]),
            ("s 150 here", &["receive Upstream"]),
        ],
    );
}

#[test]
fn an_abort_while_it_is_looked_at_leaves_nothing_open() {
    check(
        Sniff::All,
        &[
            ("c STOR a.png", &["begin STOR a.png Client", "c 150 Ok to send data."]),
            ("! connected client", &["sniff Client"]),
            ("c-closed", &["reset Client", "reset Upstream", "end aborted", "CLOSE"]),
        ],
    );
}

#[test]
fn renaming_is_no_way_around_the_scan() {
    check(
        Sniff::Skipped,
        &[
            ("c RNFR a.iso", &["s RNFR a.iso"]),
            ("s 350 to", &["c 350 to"]),
            (
                "c rnto a.exe",
                &[
                    "c 550 vscan does not scan one of these names: transfer the file under its new one.",
                ],
            ),
            ("c RNFR a.iso", &["s RNFR a.iso"]),
            ("s 350 to", &["c 350 to"]),
            ("c RNTO b.ISO", &["s RNTO b.ISO"]),
            ("s 250 ok", &["c 250 ok"]),
            ("c RNFR a.exe", &["s RNFR a.exe"]),
            ("s 350 to", &["c 350 to"]),
            // Some servers keep the file that was named before one that they refuse.
            ("c RNFR none.iso", &["s RNFR none.iso"]),
            ("s 550 no", &["c 550 no"]),
            (
                "c RNTO a.iso",
                &[
                    "c 550 vscan does not scan one of these names: transfer the file under its new one.",
                ],
            ),
        ],
    );
}

//! Pieces of files, streamed delivery, and uploads that the server will not wait for.

use super::*;

fn hold() -> Settings {
    Settings { skip_extensions: vec!["iso".into()], ..Settings::default() }
}

fn stream() -> Settings {
    Settings { delivery: Delivery::Stream, ..hold() }
}

/// TYPE I and PASV of the client, up to the point where both data connections stand.
fn passive(settings: &Settings, script: Script<'_>) {
    let mut all: Vec<(&str, &[&str])> = vec![
        ("s 220 ready", &["c 220 ready"]),
        ("c TYPE I", &["s TYPE I"]),
        ("s 200 I", &["c 200 I"]),
        ("c PASV", &["listen Client", "s PASV"]),
        ("! listening client 2000", &[]),
        ("s 227 (10,9,9,9,4,1)", &["dial 1025", "c 227 Entering Passive Mode (192,0,2,1,7,208)."]),
        ("! connected upstream", &[]),
        ("! connected client", &[]),
    ];
    all.extend_from_slice(script);
    check_in(CLIENT4, SERVER4, settings, &all);
}

/// REST, accepted by the server.
const REST: (&str, &[&str]) = ("c REST 100000", &["s REST 100000"]);
const ACCEPTED: (&str, &[&str]) = ("s 350 go", &["c 350 go"]);

#[test]
fn a_resumed_download_is_fetched_whole() {
    passive(
        &hold(),
        &[
            REST,
            ACCEPTED,
            ("c RETR a", &["begin RETR a Upstream from 100000", "recall"]),
            ("! recalled nothing", &["s REST 0"]),
            ("s 350 ok", &["s RETR a"]),
            ("s 150 coming", &["receive Upstream"]),
            ("! received ok", &["inspect"]),
            ("s 226 done", &[]),
            ("! judged release", &["c 150 coming", "send Client"]),
            ("! sent ok", &["c 226 done", "end delivered"]),
        ],
    );
    // Its position counts once.
    passive(
        &hold(),
        &[
            REST,
            ACCEPTED,
            ("c LIST", &["begin LIST  Upstream from 100000 unscanned", "s LIST"]),
            ("s 150 x¶226 y", &["c 150 x", "splice Upstream"]),
            ("! spliced ok", &["c 226 y", "end delivered"]),
            ("c PASV", &["listen Client", "s PASV"]),
            ("! listening client 2000", &[]),
            (
                "s 227 (1,2,3,4,4,2)",
                &["dial 1026", "c 227 Entering Passive Mode (192,0,2,1,7,208)."],
            ),
            ("! connected upstream", &[]),
            // The server may remember what the client has forgotten.
            ("c RETR a", &["begin RETR a Upstream", "s REST 0"]),
            ("s 350 ok", &["s RETR a"]),
        ],
    );
}

#[test]
fn restart_positions_are_the_servers_to_accept() {
    passive(
        &hold(),
        &[
            ("c REST x", &["c 501 Not a restart position."]),
            ("c REST", &["c 501 Not a restart position."]),
            ("c REST 9223372036854775808", &["c 501 Not a restart position."]),
            ("c REST  007 ", &["s REST 7"]),
            ("s 502 no", &["c 502 no"]),
            ("c RETR a", &["begin RETR a Upstream", "s RETR a"]),
            ("s 150 coming", &["receive Upstream"]),
        ],
    );
    check_in(
        CLIENT4,
        SERVER4,
        &hold(),
        &[
            ("s 220 hi", &["c 220 hi"]),
            ("c PASV", &["listen Client", "s PASV"]),
            ("! listening client 2000", &[]),
            (
                "s 227 (1,2,3,4,4,1)",
                &["dial 1025", "c 227 Entering Passive Mode (192,0,2,1,7,208)."],
            ),
            REST,
            ACCEPTED,
            ("c RETR a", &["c 501 Restart positions need TYPE I."]),
            ("c FEAT", &["s FEAT"]),
            ("s 211-x¶ REST STREAM¶211 y", &["c 211-x", "c  REST STREAM", "c 211 y"]),
        ],
    );
}

#[test]
fn a_piece_of_a_known_version_is_checked() {
    let begin: [(&str, &[&str]); 5] = [
        REST,
        ACCEPTED,
        ("c RETR a", &["begin RETR a Upstream from 100000", "recall"]),
        // The border of the block that the position lies in.
        ("! recalled scanned", &["s REST 65536"]),
        ("s 350 ok", &["s RETR a"]),
    ];
    let with = |rest: Script<'_>| passive(&hold(), &[&begin[..], rest].concat());
    with(&[
        ("s 150 coming", &["c 150 coming", "check"]),
        ("s 226 done", &[]),
        ("! sent ok", &["c 226 done", "end delivered"]),
    ]);
    with(&[
        ("s 150 coming", &["c 150 coming", "check"]),
        ("! sent ok", &[]),
        ("s 226 done", &["c 226 done", "end delivered"]),
    ]);
    // Another version, seen at once: the whole is fetched as if nothing had been known.
    with(&[
        ("s 150 coming", &["c 150 coming", "check"]),
        ("! mismatched unreleased", &["s NOOP", "s PASV"]),
        ("s 426 broken¶200 ok¶227 (1,2,3,4,4,2)", &["dial 1026"]),
        ("! connected upstream", &["s REST 0"]),
        ("s 350 ok", &["s RETR a"]),
        ("s 150 coming again¶226 done", &["receive Upstream"]),
        ("! received ok", &["inspect"]),
        ("! judged release", &["send Client"]),
        ("! sent ok", &["c 226 done", "end delivered"]),
    ]);
    // Seen too late: the client must not take what comes now for the rest of what it has.
    with(&[
        ("s 150 coming", &["c 150 coming", "check"]),
        (
            "! mismatched released",
            &[
                "reset Client",
                "s NOOP",
                "c 550 a: the file changed on the server; transfer it from its beginning",
                "end blocked",
            ],
        ),
        ("s 426 broken¶200 ok", &[]),
        ("c NOOP", &["s NOOP"]),
    ]);
    with(&[
        ("s 150 coming", &["c 150 coming", "check"]),
        ("! sent client", &["s NOOP", "c 426 Connection closed; transfer aborted.", "end broken"]),
        ("s 426 broken¶200 ok", &[]),
    ]);
    with(&[
        ("s 150 coming", &["c 150 coming", "check"]),
        ("! sent upstream", &[]),
        (
            "s 226 done",
            &["reset Client", "c 426 Connection closed; transfer aborted.", "end broken"],
        ),
    ]);
    // A server that does not like the border.
    passive(
        &hold(),
        &[
            REST,
            ACCEPTED,
            ("c RETR a", &["begin RETR a Upstream from 100000", "recall"]),
            ("! recalled scanned", &["s REST 65536"]),
            ("s 501 what", &["s REST 0"]),
            ("s 350 ok", &["s RETR a"]),
            ("s 150 coming", &["receive Upstream"]),
        ],
    );
}

#[test]
fn an_excluded_file_is_resumed_as_it_is() {
    passive(
        &hold(),
        &[
            REST,
            ACCEPTED,
            ("c RETR a.iso", &["begin RETR a.iso Upstream from 100000 unscanned", "s RETR a.iso"]),
            ("s 150 go", &["c 150 go", "splice Upstream"]),
            ("! spliced ok", &[]),
            ("s 226 x", &["c 226 x", "end delivered"]),
        ],
    );
}

/// PASV again, after the first data connection with the server was used.
const AGAIN: (&str, &[&str]) = ("s 227 (1,2,3,4,4,2)", &["dial 1026"]);

#[test]
fn an_appended_piece_is_joined_with_what_the_server_has() {
    passive(
        &hold(),
        &[
            ("c APPE a", &["begin APPE a Client", "recall"]),
            ("! recalled nothing", &["s SIZE a"]),
            ("s 213 10", &["s RETR a"]),
            ("s 150 coming", &["receive Upstream"]),
            ("! received ok", &[]),
            ("s 226 done", &["join Received", "c 150 Ok to send data.", "receive Client"]),
            ("! received ok", &["inspect"]),
            ("! judged release", &["s SIZE a"]),
            ("s 213 10", &["s PASV"]),
            AGAIN,
            ("! connected upstream", &["s APPE a"]),
            ("s 150 go", &["send Upstream"]),
            ("! sent ok", &[]),
            ("s 226 stored", &["c 226 stored", "end delivered"]),
        ],
    );
}

#[test]
fn a_resumed_upload_goes_where_the_client_wants_it() {
    passive(
        &hold(),
        &[
            REST,
            ACCEPTED,
            ("c STOR a", &["begin STOR a Client from 100000", "recall"]),
            ("! recalled nothing", &["s SIZE a"]),
            ("s 213 100000", &["s REST 0"]),
            ("s 350 ok", &["s RETR a"]),
            ("s 150 coming¶226 done", &["receive Upstream"]),
            ("! received ok", &["join Received", "c 150 Ok to send data.", "receive Client"]),
            ("! received ok", &["inspect"]),
            ("! judged release", &["s SIZE a"]),
            ("s 213 100000", &["s PASV"]),
            AGAIN,
            ("! connected upstream", &["s REST 100000"]),
            ("s 350 ok", &["s STOR a"]),
            ("s 150 go", &["send Upstream"]),
            ("! sent ok", &[]),
            ("s 226 stored", &["c 226 stored", "end delivered"]),
        ],
    );
}

#[test]
fn what_cannot_be_joined() {
    // No such file: the piece is the whole.
    passive(
        &hold(),
        &[
            ("c APPE a", &["begin APPE a Client", "recall"]),
            ("! recalled nothing", &["s SIZE a"]),
            (
                "s 550 a: No such file or directory",
                &["join Absent", "c 150 Ok to send data.", "receive Client"],
            ),
            ("! received ok", &["inspect"]),
            ("! judged infected", &["close Upstream", "c 550 a: infected", "end blocked"]),
        ],
    );
    // A file that may not be read: a refusal that only says no proves nothing.
    passive(
        &hold(),
        &[
            ("c APPE a", &["begin APPE a Client", "recall"]),
            ("! recalled nothing", &["s SIZE a"]),
            ("s 550 Operation not permitted", &["s MLST a"]),
            ("s 550 Operation not permitted", &["s RETR a"]),
            (
                "s 550 Permission denied",
                &["close Upstream", "join Unreadable", "c 150 Ok to send data.", "receive Client"],
            ),
            ("! received ok", &["inspect"]),
            ("! judged unreadable", &["c 550 a: unreadable", "end blocked"]),
        ],
    );
    // Changed while the client was sending.
    passive(
        &hold(),
        &[
            ("c APPE a", &["begin APPE a Client", "recall"]),
            ("! recalled nothing", &["s SIZE a"]),
            ("s 213 10", &["s RETR a"]),
            ("s 150 coming¶226 done", &["receive Upstream"]),
            ("! received ok", &["join Received", "c 150 Ok to send data.", "receive Client"]),
            ("! received ok", &["inspect"]),
            ("! judged release", &["s SIZE a"]),
            (
                "s 213 11",
                &[
                    "c 550 a: the file changed on the server; transfer it from its beginning",
                    "end blocked",
                ],
            ),
        ],
    );
    // Another session is at it.
    passive(
        &hold(),
        &[
            ("c APPE a", &["begin APPE a Client", "recall"]),
            (
                "! recalled busy",
                &[
                    "close Client",
                    "close Upstream",
                    "c 450 a: another upload of this file is under way; try again later",
                    "end blocked",
                ],
            ),
        ],
    );
}

#[test]
fn pieces_are_refused_where_that_is_wanted() {
    let settings = Settings { resume: Resume::Refuse, ..hold() };
    passive(
        &settings,
        &[
            ("c REST 10", &["c 502 Restart positions are not available."]),
            ("c REST 0", &["s REST 0"]),
            ("s 350 ok", &["c 350 ok"]),
            ("c APPE x", &["c 502 Appending is not available."]),
            ("c RETR a", &["begin RETR a Upstream", "s RETR a"]),
        ],
    );
}

#[test]
fn a_streamed_download() {
    let begin: [(&str, &[&str]); 3] = [
        ("c RETR a", &["begin RETR a Upstream", "recall"]),
        ("! recalled nothing", &["s RETR a"]),
        ("s 150 coming", &["c 150 coming", "stream Upstream"]),
    ];
    let with = |rest: Script<'_>| passive(&stream(), &[&begin[..], rest].concat());
    with(&[
        ("! received ok", &["inspect"]),
        ("s 226 done", &[]),
        ("! judged release", &["send Client"]),
        ("! sent ok", &["c 226 done", "end delivered"]),
    ]);
    with(&[
        ("! received ok", &["inspect"]),
        ("! judged eicar", &["reset Client", "s NOOP", "c 550 a: eicar", "end blocked"]),
        ("s 226 done¶200 ok", &[]),
        ("c NOOP", &["s NOOP"]),
    ]);
    // In the middle: over the limit.
    with(&[
        (
            "! judged size",
            &["reset Upstream", "reset Client", "s NOOP", "c 550 a: size", "end blocked"],
        ),
        ("s 426 cut¶200 ok", &[]),
    ]);
    with(&[
        ("! received upstream", &[]),
        ("s 426 oh", &["reset Client", "c 426 oh", "end server_refused"]),
    ]);
    with(&[
        (
            "! received client",
            &["s NOOP", "c 426 Connection closed; transfer aborted.", "end broken"],
        ),
        ("s 426 oh¶200 ok", &[]),
        ("c NOOP", &["s NOOP"]),
    ]);
    with(&[("c-closed", &["reset Client", "reset Upstream", "end aborted", "CLOSE"])]);
}

#[test]
fn what_was_caught_is_not_streamed_again() {
    passive(
        &stream(),
        &[
            ("c RETR a", &["begin RETR a Upstream", "recall"]),
            ("! recalled suspect", &["s RETR a"]),
            ("s 150 coming", &["receive Upstream"]),
            (
                "! judged caught",
                &["reset Upstream", "close Client", "s NOOP", "c 550 a: caught", "end blocked"],
            ),
        ],
    );
    passive(
        &stream(),
        &[
            REST,
            ACCEPTED,
            ("c RETR a", &["begin RETR a Upstream from 100000", "recall"]),
            ("! recalled nothing", &["s REST 0"]),
            ("s 350 ok", &["s RETR a"]),
            ("s 150 coming", &["receive Upstream"]),
        ],
    );
    passive(
        &stream(),
        &[
            ("c STOR a", &["begin STOR a Client", "recall"]),
            ("! recalled suspect", &["c 150 Ok to send data.", "receive Client"]),
        ],
    );
}

#[test]
fn a_streamed_upload() {
    let begin: [(&str, &[&str]); 4] = [
        ("c STOR a", &["begin STOR a Client", "recall"]),
        ("! recalled nothing", &["s SIZE a"]),
        ("s 550 Could not get file size.", &["s STOR a"]),
        ("s 150 go", &["c 150 go", "stream Client"]),
    ];
    let with = |rest: Script<'_>| passive(&stream(), &[&begin[..], rest].concat());
    with(&[
        ("! received ok", &["inspect"]),
        ("! judged release", &["send Upstream"]),
        ("! sent ok", &[]),
        ("s 226 stored", &["c 226 stored", "end delivered"]),
    ]);
    // What the server got of it is taken away.
    with(&[
        ("! received ok", &["inspect"]),
        ("! judged eicar", &["reset Upstream"]),
        ("s 426 cut", &["s DELE a"]),
        ("s 250 gone", &["c 550 a: eicar", "end blocked"]),
    ]);
    with(&[
        ("! received ok", &["inspect"]),
        ("! judged eicar", &["reset Upstream"]),
        ("s 226 I took that for the end", &["s DELE a"]),
        ("s 550 no", &["c 550 a: eicar; a part of it is left on the server", "end blocked"]),
    ]);
    with(&[
        ("! received ok", &["inspect"]),
        ("! judged eicar", &["reset Upstream"]),
        ("+ 30", &["s NOOP", "c 550 a: eicar; a part of it is left on the server", "end blocked"]),
    ]);
    with(&[(
        "s 452 full",
        &["reset Client", "reset Upstream", "c 452 full", "end server_refused"],
    )]);
    with(&[
        ("! received upstream", &[]),
        ("s 226 ok", &["reset Client", "c 550 a: the server broke off the transfer", "end broken"]),
    ]);
    with(&[(
        "! received client",
        &["reset Upstream", "s NOOP", "c 426 Connection closed; transfer aborted.", "end broken"],
    )]);
}

#[test]
fn a_file_that_was_there_before_is_not_deleted() {
    passive(
        &stream(),
        &[
            ("c STOR a", &["begin STOR a Client", "recall"]),
            ("! recalled nothing", &["s SIZE a"]),
            ("s 213 7", &["s STOR a"]),
            ("s 150 go", &["c 150 go", "stream Client"]),
            ("! received ok", &["inspect"]),
            ("! judged eicar", &["reset Upstream"]),
            ("s 426 cut", &["c 550 a: eicar; a part of it is left on the server", "end blocked"]),
        ],
    );
    // Nor where it is not known.
    passive(
        &stream(),
        &[
            ("c STOR a", &["begin STOR a Client", "recall"]),
            ("! recalled nothing", &["s SIZE a"]),
            ("s 500 what", &["s MLST a"]),
            ("s 500 what", &["s STOR a"]),
            ("s 553 no", &["close Client", "close Upstream", "c 553 no", "end server_refused"]),
        ],
    );
}

#[test]
fn a_server_that_does_not_wait() {
    let mut settings = hold();
    settings.timing.patience = Some(Duration::from_secs(40));
    let begin: [(&str, &[&str]); 7] = [
        ("c STOR a", &["begin STOR a Client", "recall"]),
        ("! recalled nothing", &["c 150 Ok to send data.", "receive Client"]),
        ("+ 39", &["s NOOP"]),
        ("s 200 ok", &[]),
        ("+ 1", &["s SIZE a"]),
        ("s 550 no such file", &["close Upstream", "s PASV"]),
        AGAIN,
    ];
    let with = |rest: Script<'_>| passive(&settings, &[&begin[..], rest].concat());
    with(&[
        ("! connected upstream", &["s STOR a"]),
        ("s 150 go", &[]),
        ("+ 100", &[]),
        ("! received ok", &["inspect"]),
        ("! judged release", &["send Upstream"]),
        ("! sent ok", &[]),
        ("s 226 stored", &["c 226 stored", "end delivered"]),
    ]);
    with(&[
        ("! connected upstream", &["s STOR a"]),
        ("s 150 go", &[]),
        ("! received ok", &["inspect"]),
        ("! judged eicar", &["reset Upstream"]),
        ("s 426 cut", &["s DELE a"]),
        ("s 250 gone", &["c 550 a: eicar", "end blocked"]),
    ]);
    // The server waited for data no longer: what it made of the command is there all the same.
    with(&[
        ("! connected upstream", &["s STOR a"]),
        ("s 150 go", &[]),
        ("s 426 timeout", &[]),
        ("! received ok", &["inspect"]),
        ("! judged eicar", &["reset Upstream", "s DELE a"]),
        ("s 250 gone", &["c 550 a: eicar", "end blocked"]),
    ]);
    // The client is heard to its end before it learns of the server's refusal.
    with(&[
        ("! connected upstream", &["s STOR a"]),
        ("s 553 not here", &[]),
        ("! received ok", &["inspect"]),
        ("! judged release", &["reset Upstream", "c 553 not here", "end server_refused"]),
    ]);
    with(&[
        ("! connected upstream", &["s STOR a"]),
        ("s 150 go", &[]),
        ("! received client", &["reset Upstream"]),
        ("s 426 cut", &["s DELE a"]),
        ("s 250 gone", &["c 426 Connection closed; transfer aborted.", "end broken"]),
    ]);
}

#[test]
fn a_server_that_gives_up_is_remembered() {
    passive(
        &hold(),
        &[
            ("c STOR a", &["begin STOR a Client", "recall"]),
            ("! recalled nothing", &["c 150 Ok to send data.", "receive Client"]),
            ("+ 30", &["s NOOP"]),
            ("s 200 ok", &[]),
            ("+ 25", &[]),
            (
                "s 421 No transfer timeout",
                &[
                    "impatient 55",
                    "reset Client",
                    "reset Upstream",
                    "end server_refused",
                    "c 421 No transfer timeout",
                ],
            ),
        ],
    );
}

#[test]
fn a_position_does_not_outlive_the_login() {
    passive(
        &hold(),
        &[
            REST,
            ACCEPTED,
            ("c REIN", &["close Client", "close Upstream", "s REIN"]),
            ("s 220 again", &["c 220 again"]),
            ("c TYPE I", &["s TYPE I"]),
            ("s 200 I", &["c 200 I"]),
            ("c PASV", &["listen Client", "s PASV"]),
            ("! listening client 2000", &[]),
            (
                "s 227 (1,2,3,4,4,2)",
                &["dial 1026", "c 227 Entering Passive Mode (192,0,2,1,7,208)."],
            ),
            ("! connected upstream", &[]),
            // The server may remember what the client has forgotten.
            ("c STOR a", &["begin STOR a Client", "recall"]),
            ("! recalled nothing", &["c 150 Ok to send data."]),
            ("! connected client", &["receive Client"]),
            ("! received ok", &["inspect"]),
            ("! judged release", &["s REST 0"]),
            ("s 350 ok", &["s STOR a"]),
        ],
    );
}

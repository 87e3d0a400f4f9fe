//! Messages by BDAT.

use super::*;

/// A session with a sender and a recipient, whose server offers CHUNKING.
fn offered() -> Vec<Step> {
    let mut steps = opened();
    steps[2] = s("250-mx\r\n250-CHUNKING\r\n250 SIZE 100\r\n");
    steps
}

/// The log of [`offered`].
fn offered_log() -> String {
    OPENED.replace("< 250 mx", "< 250-mx\n< 250-CHUNKING\n< 250 SIZE 100")
}

/// Behind [`offered`].
fn check_chunks(steps: &[Step], expect: &str) {
    check(&[&offered(), steps].concat(), &then(&offered_log(), expect));
}

#[test]
fn one_chunk() {
    check_chunks(
        &[c("BDAT 5 LAST\r\n\r\n.\r\nQUIT\r\n"), pass(), Sent, s("250 queued\r\n")],
        "! Inspect a chunked one
        > BDAT 5 LAST
        ! SendMessage
        > [message]
        < 250 queued
        ! finished delivered 250 from a@b to 1 5
        > QUIT",
    );
}

#[test]
fn many_chunks_become_one() {
    check_chunks(
        &[
            c("BDAT 3\r\nab\nBDAT 0\r\nbdat 4\r\nQUITNOOP\r\nBDAT 0 last\r\n"),
            s("250 awake\r\n"),
            pass(),
            Sent,
            s("250-queued\r\n250 as 1\r\n"),
            c("RSET\r\n"),
        ],
        "< 250 2.0.0 3 bytes received
        < 250 2.0.0 0 bytes received
        < 250 2.0.0 4 bytes received
        > NOOP
        < 250 awake
        ! Inspect a chunked one
        > BDAT 7 LAST
        ! SendMessage
        > [message]
        < 250-queued
        < 250 as 1
        ! finished delivered 250 from a@b to 1 7
        > RSET",
    );
}

/// Nothing is a line, a dot or a look-alike in there; nothing is taken off or added.
#[test]
fn any_byte_may_be_in_a_chunk() {
    let bytes: Vec<u8> = (0..=255).chain(*b"\n.\n\r.\r\r\n.\r\n").collect();
    let mut bench = Bench::new(Config { bare_newline: BareNewline::Refuse, ..Config::default() });
    offered().iter().for_each(|step| bench.step(step));
    let (first, second) = bytes.split_at(100);
    for (chunk, last) in [(first, ""), (second, " LAST")] {
        bench.step(&c(format!("BDAT {}{last}\r\n", chunk.len())));
        bench.step(&C(chunk.to_vec()));
    }
    assert_eq!(bench.message, bytes);
    bench.step(&pass());
    bench.step(&Sent);
    bench.step(&s("250 ok\r\n"));
    let sent = [format!("BDAT {} LAST\r\n", bytes.len()).as_bytes(), &bytes].concat();
    assert!(bench.upstream.ends_with(&sent), "{}", bench.upstream.escape_ascii());
}

#[test]
fn an_empty_message_is_the_servers_to_judge() {
    check_chunks(
        &[c("BDAT 0 LAST\r\n"), pass(), s("551 no empty chunks\r\n")],
        "! Inspect a chunked one
        > BDAT 0 LAST
        < 551 no empty chunks
        ! finished refused_by_server 551 from a@b to 1 0",
    );
}

/// The chunk comes with the recipients, before it is known whether there are any (RFC 2920).
#[test]
fn pipelined_with_the_envelope() {
    let steps = [
        s("220 mx\r\n"),
        c("EHLO c\r\n"),
        s("250-mx\r\n250 CHUNKING\r\n"),
        c("MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nBDAT 4\r\nNOOPBDAT 2 LAST\r\nxyQUIT\r\n"),
    ];
    let log = "< 220 mx
        > EHLO c
        < 250-mx
        < 250 CHUNKING
        > MAIL FROM:<a@b>
        > RCPT TO:<c@d>
        < 250 ok";
    check(
        &[&steps[..], &[s("250 ok\r\n250 ok\r\n"), infected(), s("250 reset\r\n")]].concat(),
        &then(
            log,
            "< 250 ok
            ! sender <a@b>
            < 250 2.0.0 4 bytes received
            ! Inspect a chunked one
            < 550 5.7.1 Message blocked by vscan: EICAR
            > RSET
            ! finished blocked 550 from a@b to 1 6
            > QUIT",
        ),
    );
    check(
        &[&steps[..], &[s("250 ok\r\n550 nobody\r\n")]].concat(),
        &then(
            log,
            "< 550 nobody
            ! sender <a@b>
            < 503 5.5.1 BDAT needs a sender and a valid recipient
            < 503 5.5.1 BDAT needs a sender and a valid recipient
            > QUIT",
        ),
    );
}

/// A client that remembers what the server offers does not wait for it: Exim's PIPECONNECT.
#[test]
fn pipelined_with_the_greeting() {
    check(
        &[
            c("EHLO c\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nBDAT 4 LAST\r\nNOOP"),
            s("220 mx\r\n250-mx\r\n250-PIPECONNECT\r\n250 CHUNKING\r\n250 ok\r\n250 ok\r\n"),
            pass(),
            Sent,
            s("250 taken\r\n"),
        ],
        "> EHLO c
        > MAIL FROM:<a@b>
        > RCPT TO:<c@d>
        ! smtp_early_talker
        < 220 mx
        < 250-mx
        < 250-PIPECONNECT
        < 250 CHUNKING
        < 250 ok
        < 250 ok
        ! sender <a@b>
        ! Inspect a chunked one
        > BDAT 4 LAST
        ! SendMessage
        > [message]
        < 250 taken
        ! finished delivered 250 from a@b to 1 4",
    );
}

/// Behind the RSET that follows a refused chunk the client may have begun the next transaction when
/// the server answers it: the client's own RSET is about that one.
#[test]
fn the_answer_to_an_old_rset_is_not_kept() {
    check_chunks(
        &[
            c("BDAT 4\r\nDATA"),
            c("NOOP\r\nBDAT 0 FIRST\r\nMAIL FROM:<e@f>\r\n"),
            s("250 noop\r\n250 reset\r\n250 ok\r\n"),
            c("RSET\r\n"),
            s("250 reset again\r\n"),
        ],
        "< 250 2.0.0 4 bytes received
        > NOOP
        > RSET
        > MAIL FROM:<e@f>
        ! finished abandoned - from a@b to 1 4
        < 250 noop
        < 501 5.5.4 BDAT takes a size and LAST, nothing else
        < 250 ok
        ! sender <e@f>
        > RSET
        < 250 reset again",
    );
}

#[test]
fn refused_chunks_are_never_commands() {
    check(
        &[
            s("220 mx\r\n"),
            c("EHLO c\r\n"),
            s("250 mx\r\n"),
            c("NOOP\r\nBDAT 16 LAST\r\nQUIT\r\nDATA\r\nxx\r\nNOOP\r\nBDAT x\r\nBDAT 0\r\n"),
            s("250 one\r\n"),
            s("250 two\r\n"),
        ],
        "< 220 mx
        > EHLO c
        < 250 mx
        > NOOP
        < 250 one
        ! smtp_chunked_transfer
        < 502 5.5.1 BDAT was not offered
        > NOOP
        < 250 two
        < 501 5.5.4 BDAT needs a chunk size
        < 502 5.5.1 BDAT was not offered",
    );
    check_chunks(
        &[
            c("BDAT 4 FIRST\r\nQUITBDAT 4\r\nQUITBDAT 5 FIRST\r\nQUIT\n"),
            s("250 reset\r\n"),
            c("BDAT 4 LAST\r\nQUITNOOP\r\n"),
        ],
        "< 501 5.5.4 BDAT takes a size and LAST, nothing else
        < 250 2.0.0 4 bytes received
        < 501 5.5.4 BDAT takes a size and LAST, nothing else
        > RSET
        ! finished abandoned - from a@b to 1 4
        < 503 5.5.1 BDAT needs a sender and a valid recipient
        > NOOP",
    );
}

#[test]
fn helo_offers_no_chunking() {
    let mut steps = offered();
    steps.extend([c("HELO c\r\n"), s("250 mx\r\n"), c("BDAT 4 LAST\r\nQUIT")]);
    check(
        &steps,
        &then(
            &offered_log(),
            "> HELO c\n< 250 mx\n< 502 5.5.1 BDAT was not offered\n! smtp_chunked_transfer",
        ),
    );
}

#[test]
fn between_chunks() {
    check_chunks(
        &[
            c("BDAT 2\r\nab"),
            c("MAIL FROM:<x>\r\nRCPT TO:<x>\r\nDATA\r\nEHLO x\r\nSTARTTLS\r\nAUTH X\r\nXX\r\n"),
            c("RSET\r\nBDAT 2\r\nab"),
            s("250 reset\r\n"),
        ],
        &format!(
            "< 250 2.0.0 2 bytes received\n{}
            > RSET
            ! finished abandoned - from a@b to 1 2
            < 250 reset
            < 503 5.5.1 BDAT needs a sender and a valid recipient",
            "< 503 5.5.1 The message is not complete: BDAT or RSET\n".repeat(7)
        ),
    );
    check_chunks(
        &[c("BDAT 2\r\nabQUIT\r\n"), s("221 bye\r\n"), UpstreamEof],
        "< 250 2.0.0 2 bytes received
        > QUIT
        ! finished abandoned - from a@b to 1 2
        < 221 bye
        ! Close",
    );
}

/// Too much in all is refused where it becomes too much, and what is behind it is no message.
#[test]
fn too_large() {
    let config = Config { hold_max: 5, ..Config::default() };
    check_with(
        config.clone(),
        &[
            &offered()[..],
            &[c("BDAT 3\r\nabcBDAT 3\r\ndefBDAT 3 LAST\r\nghiNOOP\r\n"), s("250 reset\r\n")],
        ]
        .concat(),
        &then(
            &offered_log().replace("SIZE 100", "SIZE 5"),
            "< 250 2.0.0 3 bytes received
            < 552 5.3.4 Message too large to be scanned
            > RSET
            ! smtp_message_too_large
            ! Discard
            ! finished too_large 552 from a@b to 1 6
            < 503 5.5.1 BDAT needs a sender and a valid recipient
            > NOOP",
        ),
    );
    let mut bench = Bench::new(config);
    offered().iter().for_each(|step| bench.step(step));
    bench.step(&c("BDAT 99999999999999999999 LAST\r\n"));
    bench.step(&C(vec![b'x'; 100_000]));
    assert!(bench.message.is_empty() && bench.session.wants_client());
    bench.step(&ClientEof);
    assert!(bench.actions.contains(&"smtp_client_gone_in_message".to_owned()));
}

#[test]
fn no_room() {
    // Behind the first chunk, behind the answer to it: the next one says so.
    check_chunks(
        &[c("BDAT 2\r\nab"), NoRoom, c("BDAT 2 LAST\r\ncd"), s("250 reset\r\n"), c("NOOP\r\n")],
        "< 250 2.0.0 2 bytes received
        ! Discard
        < 452 4.3.1 No room to hold the message
        > RSET
        ! finished no_room 452 from a@b to 1 4
        > NOOP",
    );
}

#[test]
fn the_server_is_kept_awake_between_chunks() {
    check_chunks(
        &[
            c("BDAT 2\r\nab"),
            Wait(130),
            s("250 awake\r\n"),
            Wait(120),
            c("BDAT 1 LAST\r\nc"),
            s("250 awake\r\n"),
            pass(),
            Sent,
            s("250 queued\r\n"),
        ],
        "< 250 2.0.0 2 bytes received
        > NOOP
        > NOOP
        ! Inspect a chunked one
        > BDAT 3 LAST
        ! SendMessage
        > [message]
        < 250 queued
        ! finished delivered 250 from a@b to 1 3",
    );
    check_chunks(
        &[c("BDAT 2\r\nab"), Wait(110), c("NOOP\r\n"), s("250 ok\r\n"), Wait(601)],
        "< 250 2.0.0 2 bytes received
        > NOOP
        < 250 ok
        > NOOP
        < 421 4.4.2 Idle for too long
        ! finished client_lost 421 from a@b to 1 2
        ! Close",
    );
}

#[test]
fn a_server_that_does_not_want_the_chunk() {
    // Its word comes while the message is on its way, which is sent to its end all the same: the
    // server counts its bytes.
    check_chunks(
        &[
            c("BDAT 4 LAST\r\nQUIT"),
            pass(),
            s("452 no room\r\n"),
            Sent,
            c("NOOP\r\n"),
            s("250 ok\r\n"),
        ],
        "! Inspect a chunked one
        > BDAT 4 LAST
        ! SendMessage
        > [message]
        < 452 no room
        ! finished refused_by_server 452 from a@b to 1 4
        > NOOP
        < 250 ok",
    );
    check_chunks(
        &[c("BDAT 4 LAST\r\nQUIT"), pass(), s("250 ok\r\n")],
        "! Inspect a chunked one
        > BDAT 4 LAST
        ! SendMessage
        < 421 4.5.0 Unexpected answer of the server
        ! smtp_early_acceptance
        ! finished server_lost 421 from a@b to 1 4
        ! CloseClient",
    );
}

#[test]
fn the_server_is_lost() {
    let lost = "< 421 4.4.2 Connection to the server lost
        ! finished server_lost 421 from a@b to 1";
    for gone in [UpstreamEof, UpstreamLost] {
        // In a chunk it is told at the end of it, between two of them at once.
        check_chunks(
            &[c("BDAT 4\r\nab"), gone.clone(), c("cd")],
            &format!("! Discard\n{lost} 4\n! Close"),
        );
        check_chunks(
            &[c("BDAT 4\r\nabcd"), gone.clone()],
            &format!("< 250 2.0.0 4 bytes received\n{lost} 4\n! Close"),
        );
        check_chunks(
            &[c("BDAT 4 LAST\r\nabcd"), pass(), gone],
            &format!(
                "! Inspect a chunked one\n> BDAT 4 LAST\n! SendMessage\n{lost} 4\n! CloseClient"
            ),
        );
    }
}

#[test]
fn the_client_is_lost() {
    let lost = "! smtp_client_gone_in_message\n! finished client_lost - from a@b to 1 4";
    for (gone, end) in [(ClientEof, "! ShutdownUpstream"), (ClientLost, "! Reset")] {
        check_chunks(&[c("BDAT 5\r\nabcd"), gone.clone()], &format!("{lost}\n{end}"));
        check_chunks(
            &[c("BDAT 4\r\nabcd"), gone],
            &format!("< 250 2.0.0 4 bytes received\n{lost}\n{end}"),
        );
    }
}

/// What is delivered instead has its own length, and must fit into what the server takes.
#[test]
fn a_treated_message() {
    check_chunks(
        &[c("BDAT 4 LAST\r\nQUIT"), Ruled(Ruling::Deliver { size: 100 }), Sent, s("250 ok\r\n")],
        "! Inspect a chunked one
        > BDAT 100 LAST
        ! SendMessage
        > [message]
        < 250 ok
        ! finished delivered 250 from a@b to 1 4",
    );
    check_chunks(
        &[c("BDAT 4 LAST\r\nQUIT"), Ruled(Ruling::Deliver { size: 101 })],
        "! Inspect a chunked one
        < 552 5.3.4 The treated message is larger than the server takes
        > RSET
        ! finished too_large 552 from a@b to 1 4",
    );
    let deliver = Ruled(Ruling::Deliver { size: 1 << 40 });
    check(
        &[received(), vec![deliver, s("354 go\r\n"), Sent, s("250 ok\r\n")]].concat(),
        &then(&sent_log(), "< 250 ok\n! finished delivered 250 from a@b to 1 4"),
    );
}

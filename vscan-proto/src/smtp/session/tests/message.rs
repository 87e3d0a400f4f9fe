//! Messages: held, ruled on, offered, refused, lost.

use super::*;

const FINAL: &str = "< 250 queued
    ! finished delivered 250 from a@b to 1 4";

#[test]
fn a_clean_message() {
    check(&[sent(), vec![s("250 queued\r\n")]].concat(), &then(&sent_log(), FINAL));
}

#[test]
fn pipelined_as_rfc_2920_has_it() {
    check(
        &[
            s("220 mx\r\n"),
            c("EHLO c\r\n"),
            s("250-mx\r\n250 PIPELINING\r\n"),
            c("MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nRCPT TO:<e@f>\r\nDATA\r\n"),
            s("250 sender\r\n550 no such\r\n250 ok\r\n"),
            c("Subject: x\r\n\r\n..dot\r\n.\r\nMAIL FROM:<>\r\nRCPT TO:<c@d>\r\nDATA\r\n"),
            pass(),
            s("354 go\r\n"),
            Sent,
            s("250-queued\r\n250 as 1\r\n"),
            s("250 sender\r\n250 ok\r\n"),
            c(".\r\nQUIT\r\n"),
            infected(),
            s("250 reset\r\n"),
            s("221 bye\r\n"),
            UpstreamEof,
        ],
        "< 220 mx
        > EHLO c
        < 250-mx
        < 250 PIPELINING
        > MAIL FROM:<a@b>
        > RCPT TO:<c@d>
        > RCPT TO:<e@f>
        < 250 sender
        < 550 no such
        < 250 ok
        < 354 End data with <CR><LF>.<CR><LF>
        ! sender <a@b>
        ! Inspect { stuffed: true }
        > DATA
        ! SendMessage
        > [message]
        < 250-queued
        < 250 as 1
        ! finished delivered 250 from a@b to 1 21
        > MAIL FROM:<>
        > RCPT TO:<c@d>
        < 250 sender
        < 250 ok
        < 354 End data with <CR><LF>.<CR><LF>
        ! sender <>
        ! Inspect { stuffed: false }
        < 550 5.7.1 Message blocked by vscan: EICAR
        > RSET
        ! finished blocked 550 from  to 1 0
        > QUIT
        < 221 bye
        ! Close",
    );
}

#[test]
fn data_without_recipients_is_the_servers_to_answer() {
    let steps = [
        s("220 mx\r\n"),
        c("MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\ndata\r\nNOOP\r\n"),
        s("250 ok\r\n550 no\r\n"),
    ];
    let log = "< 220 mx
        > MAIL FROM:<a@b>
        > RCPT TO:<c@d>
        < 250 ok
        < 550 no
        > DATA
        ! sender <a@b>";
    check(
        &[&steps[..], &[s("503 no recipients\r\n")]].concat(),
        &then(log, "< 503 no recipients\n> NOOP"),
    );
    check(
        &[&steps[..], &[s("354 go\r\n"), s("554 no recipients\r\n")]].concat(),
        &then(log, "> .\n< 554 no recipients\n> NOOP"),
    );
    check(
        &[&steps[..], &[s("354 go\r\n"), s("250 ok\r\n")]].concat(),
        &then(log, "> .\n< 554 5.5.1 No valid recipients\n! smtp_bogus_data_reply\n> NOOP"),
    );
}

#[test]
fn rulings_and_their_replies() {
    let cases = [
        (infected(), "550 5.7.1 Message blocked by vscan: EICAR", "blocked 550"),
        (
            Ruled(Ruling::Unscannable { reason: "encrypted".into() }),
            "550 5.7.1 Message could not be scanned by vscan: encrypted",
            "blocked 550",
        ),
        (
            Ruled(Ruling::Failed { permanent: false }),
            "451 4.7.1 Message could not be scanned, try again later",
            "failed 451",
        ),
        (
            Ruled(Ruling::Failed { permanent: true }),
            "554 5.7.1 Message could not be scanned by vscan",
            "failed 554",
        ),
        (NoRoom, "452 4.3.1 No room to hold the message", "no_room 452"),
        (Wait(301), "451 4.7.1 Message could not be scanned in time", "failed 451"),
    ];
    for (step, reply, outcome) in cases {
        let noops = if matches!(step, Wait(_)) { "> NOOP\n" } else { "" };
        let rset = format!("{noops}< {reply}\n> RSET\n! finished {outcome} from a@b to 1 4\n");
        check(
            // The session goes on behind the server's answer to RSET.
            &[
                received(),
                vec![
                    step,
                    c("NOOP\r\n"),
                    s("250 reset\r\n".repeat(1 + noops.len() / 7)),
                    s("250 ok\r\n"),
                ],
            ]
            .concat(),
            &then(&received_log(), &format!("{rset}> NOOP\n< 250 ok")),
        );
    }
}

#[test]
fn the_server_never_sees_data_of_what_is_refused() {
    let mut bench = Bench::new(Config::default());
    received().iter().for_each(|step| bench.step(step));
    bench.step(&infected());
    assert!(!bench.upstream.windows(4).any(|word| word == b"DATA"));
}

#[test]
fn look_alikes_are_refused_at_the_true_end() {
    let smuggled = "Hi\r\n\n.\r\nMAIL FROM:<evil@x>\r\nDATA\r\nevil\r\n.\r\nNOOP\r\n";
    check(
        &[opened(), vec![c("DATA\r\n"), c(smuggled), s("250 reset\r\n")]].concat(),
        &then(
            OPENED,
            "< 354 End data with <CR><LF>.<CR><LF>
            < 550 5.6.0 Message refused by vscan: a bare newline looks like the end of data
            > RSET
            ! smtp_end_of_data_look_alike
            ! Discard
            ! finished bare_newline 550 from a@b to 1 40
            > NOOP",
        ),
    );
    let pass = Config { bare_newline: BareNewline::Pass, ..Config::default() };
    check_with(
        pass,
        &[opened(), vec![c("DATA\r\n"), c("a\n.\nb\r\n.\r\n")]].concat(),
        &then(OPENED, "< 354 End data with <CR><LF>.<CR><LF>\n! Inspect { stuffed: false }"),
    );
    let refuse = Config { bare_newline: BareNewline::Refuse, ..Config::default() };
    check_with(
        refuse,
        &[opened(), vec![c("DATA\r\n"), c("a\nb\r\n.\r\n")]].concat(),
        &then(
            OPENED,
            "< 354 End data with <CR><LF>.<CR><LF>
            < 550 5.6.0 Message refused by vscan: bare newline
            > RSET
            ! smtp_bare_newline
            ! Discard
            ! finished bare_newline 550 from a@b to 1 5",
        ),
    );
}

#[test]
fn too_large_messages() {
    let config = Config { hold_max: 5, ..Config::default() };
    check_with(
        config.clone(),
        &[opened(), vec![c("DATA\r\n"), c("123456\r\n\r\n.\r\nNOOP\r\n"), s("250 reset\r\n")]]
            .concat(),
        &then(
            OPENED,
            "< 354 End data with <CR><LF>.<CR><LF>
            < 552 5.3.4 Message too large to be scanned
            > RSET
            ! smtp_message_too_large
            ! Discard
            ! finished too_large 552 from a@b to 1 10
            > NOOP",
        ),
    );
    check_with(
        config,
        &[s("220 mx\r\n"), c("MAIL FROM:<a@b> SIZE=6\r\nMAIL FROM:<a@b> SIZE=5\r\n")],
        "< 220 mx
        < 552 5.3.4 Message size exceeds fixed limit
        > MAIL FROM:<a@b> SIZE=5",
    );
}

#[test]
fn the_server_is_kept_awake_and_data_waits_for_the_last_noop() {
    check(
        &[
            opened(),
            vec![
                c("DATA\r\n"),
                c("H"),
                Wait(121),
                s("250 awake\r\n"),
                c("i\r\n.\r\n"),
                Wait(120),
                pass(),
                s("250 awake\r\n"),
                s("354 go\r\n"),
                Sent,
                s("250 queued\r\n"),
            ],
        ]
        .concat(),
        &then(
            OPENED,
            "< 354 End data with <CR><LF>.<CR><LF>
            > NOOP
            ! Inspect { stuffed: false }
            > NOOP
            > DATA
            ! SendMessage
            > [message]
            < 250 queued
            ! finished delivered 250 from a@b to 1 4",
        ),
    );
}

#[test]
fn a_client_that_stalls_in_data_is_not_kept_for_ever() {
    let answered = (0..4).flat_map(|_| [Wait(120), s("250 awake\r\n")]);
    let steps = opened().into_iter().chain([c("DATA\r\n"), c("Hi")]).chain(answered);
    check(
        &steps.chain([Wait(121)]).collect::<Vec<_>>(),
        &then(
            OPENED,
            "< 354 End data with <CR><LF>.<CR><LF>
            > NOOP
            > NOOP
            > NOOP
            > NOOP
            < 421 4.4.2 Idle for too long
            ! finished client_lost 421 from a@b to 1 2
            ! Close",
        ),
    );
}

#[test]
fn data_refused_by_the_server() {
    check(
        &[
            received(),
            vec![pass(), s("451-greylisted\r\n451 later\r\n"), c("NOOP\r\n"), s("250 reset\r\n")],
        ]
        .concat(),
        &then(
            &received_log(),
            "> DATA
            < 451-greylisted
            < 451 later
            > RSET
            ! finished refused_by_server 451 from a@b to 1 4
            > NOOP",
        ),
    );
    check(
        &[received(), vec![pass(), s("250 odd\r\n")]].concat(),
        &then(
            &received_log(),
            "> DATA
            < 421 4.5.0 Unexpected answer of the server to DATA
            ! smtp_bogus_data_reply
            ! finished server_lost 421 from a@b to 1 4
            ! CloseClient",
        ),
    );
}

#[test]
fn message_refused_by_the_server() {
    check(
        &[sent(), vec![s("550 spam\r\n"), c("NOOP\r\n")]].concat(),
        &then(
            &sent_log(),
            "< 550 spam
            ! finished refused_by_server 550 from a@b to 1 4
            > NOOP",
        ),
    );
}

/// Drops of the server at every stage of a message: never a 2xx, always a last word.
#[test]
fn the_server_is_lost() {
    let lost = "< 421 4.4.2 Connection to the server lost
        ! finished server_lost 421 from a@b to 1 4";
    for gone in [UpstreamEof, UpstreamLost] {
        check(
            &[opened(), vec![c("DATA\r\n"), c("Hi"), gone.clone(), c("\r\n.\r\n")]].concat(),
            &then(
                OPENED,
                &format!("< 354 End data with <CR><LF>.<CR><LF>\n! Discard\n{lost}\n! Close"),
            ),
        );
        check(
            &[received(), vec![gone.clone(), pass()]].concat(),
            &then(&received_log(), &format!("{lost}\n! Close")),
        );
        check(
            &[received(), vec![pass(), gone.clone()]].concat(),
            &then(&received_log(), &format!("> DATA\n{lost}\n! CloseClient")),
        );
        check(
            &[received(), vec![pass(), s("354 go\r\n"), gone.clone()]].concat(),
            &then(&received_log(), &format!("> DATA\n! SendMessage\n{lost}\n! CloseClient")),
        );
        let lost = lost.replacen("!", "! smtp_final_reply_lost\n!", 1);
        check(
            &[sent(), vec![s("250 que"), gone]].concat(),
            &then(&sent_log(), &format!("{lost}\n! CloseClient")),
        );
    }
}

#[test]
fn the_servers_own_farewell_is_kept() {
    check(
        &[
            opened(),
            vec![c("DATA\r\n"), c("Hi"), s("421 timeout\r\n"), UpstreamEof, c("\r\n.\r\n")],
        ]
        .concat(),
        &then(
            OPENED,
            "< 354 End data with <CR><LF>.<CR><LF>
            ! Discard
            < 421 timeout
            ! finished server_lost 421 from a@b to 1 4
            ! Close",
        ),
    );
    check(
        &[received(), vec![Wait(121), s("421 enough\r\n")]].concat(),
        &then(
            &received_log(),
            "> NOOP
            < 421 enough
            ! finished server_lost 421 from a@b to 1 4
            ! Close",
        ),
    );
    // Refused in mid-message: the early reply is the final one.
    check(
        &[received(), vec![pass(), s("354 go\r\n"), s("552 too big\r\n"), UpstreamLost]].concat(),
        &then(
            &received_log(),
            "> DATA
            ! SendMessage
            < 552 too big
            ! finished refused_by_server 552 from a@b to 1 4
            ! Close",
        ),
    );
    check(
        &[received(), vec![pass(), s("354 go\r\n"), s("552 too big\r\n"), Sent, c("NOOP\r\n")]]
            .concat(),
        &then(
            &received_log(),
            "> DATA
            ! SendMessage
            > [message]
            < 552 too big
            ! finished refused_by_server 552 from a@b to 1 4
            > NOOP",
        ),
    );
    check(
        &[received(), vec![pass(), s("354 go\r\n"), s("250 ok\r\n")]].concat(),
        &then(
            &received_log(),
            "> DATA
            ! SendMessage
            < 421 4.5.0 Unexpected answer of the server
            ! smtp_early_acceptance
            ! finished server_lost 421 from a@b to 1 4
            ! CloseClient",
        ),
    );
}

#[test]
fn the_server_is_silent() {
    check(
        &[sent(), vec![Wait(571)]].concat(),
        &then(
            &sent_log(),
            "< 421 4.4.2 The server did not answer in time
            ! smtp_final_reply_lost
            ! finished server_lost 421 from a@b to 1 4
            ! CloseClient",
        ),
    );
}

/// Drops of the client at every stage of a message: the server never gets what nobody waits for.
#[test]
fn the_client_is_lost() {
    let lost = "! finished client_lost - from a@b to 1";
    for (gone, end) in [(ClientEof, "! ShutdownUpstream"), (ClientLost, "! Reset")] {
        check(
            &[opened(), vec![c("DATA\r\n"), c("Hi\r\n"), gone.clone()]].concat(),
            &then(
                OPENED,
                &format!(
                    "< 354 End data with <CR><LF>.<CR><LF>
                    ! smtp_client_gone_in_message\n{lost} 4\n{end}"
                ),
            ),
        );
        check(
            &[received(), vec![gone.clone(), pass()]].concat(),
            &then(&received_log(), &format!("{lost} 4\n{end}")),
        );
        check(
            &[received(), vec![pass(), gone.clone()]].concat(),
            &then(&received_log(), &format!("> DATA\n{lost} 4\n! Reset")),
        );
        check(
            &[received(), vec![pass(), s("354 go\r\n"), gone]].concat(),
            &then(&received_log(), &format!("> DATA\n! SendMessage\n{lost} 4\n! Reset")),
        );
    }
}

#[test]
fn a_mail_that_may_come_twice_is_counted() {
    check(
        &[sent(), vec![ClientLost, s("250 queued\r\n")]].concat(),
        &then(
            &sent_log(),
            "! smtp_doubled_mail
            ! finished delivered - from a@b to 1 4
            ! Close",
        ),
    );
    check(
        &[sent(), vec![ClientEof, s("250 queued\r\n")]].concat(),
        &then(
            &sent_log(),
            "< 250 queued
            ! smtp_doubled_mail
            ! finished delivered 250 from a@b to 1 4
            ! Close",
        ),
    );
    // Accepted, but the reply could not be written.
    let mut bench = Bench::new(Config::default());
    sent().iter().for_each(|step| bench.step(step));
    bench.session.handle_upstream(bench.now, b"250 queued\r\n");
    bench.session.handle_client_lost();
    bench.drain();
    assert!(bench.actions.contains(&"smtp_doubled_mail".to_owned()));
}

#[test]
fn a_client_that_said_quit_and_closed_its_side_is_served() {
    check(
        &[
            opened(),
            vec![
                c("DATA\r\n"),
                c("Hi\r\n.\r\nQUIT\r\n"),
                ClientEof,
                pass(),
                s("354 go\r\n"),
                Sent,
                s("250 queued\r\n"),
                s("221 bye\r\n"),
                UpstreamEof,
            ],
        ]
        .concat(),
        &then(
            OPENED,
            "< 354 End data with <CR><LF>.<CR><LF>
            ! Inspect { stuffed: false }
            > DATA
            ! SendMessage
            > [message]
            < 250 queued
            ! finished delivered 250 from a@b to 1 4
            > QUIT
            ! ShutdownUpstream
            < 221 bye
            ! Close",
        ),
    );
}

#[test]
fn no_room_while_receiving() {
    check(
        &[opened(), vec![c("DATA\r\n"), c("Hi"), NoRoom, c("\r\n.\r\n")]].concat(),
        &then(
            OPENED,
            "< 354 End data with <CR><LF>.<CR><LF>
            ! Discard
            < 452 4.3.1 No room to hold the message
            > RSET
            ! finished no_room 452 from a@b to 1 4",
        ),
    );
}

/// A refused message must not leave its recipients to the next one.
#[test]
fn transactions_do_not_leak() {
    check(
        &[received(), vec![infected(), c("DATA\r\n"), s("250 reset\r\n"), s("503 no mail\r\n")]]
            .concat(),
        &then(
            &received_log(),
            "< 550 5.7.1 Message blocked by vscan: EICAR
            > RSET
            ! finished blocked 550 from a@b to 1 4
            > DATA
            < 503 no mail",
        ),
    );
    check(
        &[opened(), vec![c("RSET\r\nDATA\r\n"), s("250 reset\r\n"), s("503 no mail\r\n")]].concat(),
        &then(OPENED, "> RSET\n< 250 reset\n> DATA\n< 503 no mail"),
    );
}

#[test]
fn a_drain_lets_the_message_through_and_then_says_so() {
    check(
        &[received(), vec![Drain, pass(), s("354 go\r\n"), Sent, s("250 queued\r\n")]].concat(),
        &then(
            &sent_log(),
            "< 250 queued
            < 421 4.3.2 Service shutting down
            ! finished delivered 250 from a@b to 1 4
            ! Close",
        ),
    );
    check(
        &[opened(), vec![c("RCPT TO:<x@y>\r\n"), Drain, s("250 ok\r\n")]].concat(),
        &then(
            OPENED,
            "> RCPT TO:<x@y>
            < 250 ok
            < 421 4.3.2 Service shutting down
            ! Close",
        ),
    );
    check(
        &[received(), vec![Drain, infected(), s("250 reset\r\n")]].concat(),
        &then(
            &received_log(),
            "< 550 5.7.1 Message blocked by vscan: EICAR
            > RSET
            ! finished blocked 550 from a@b to 1 4
            < 421 4.3.2 Service shutting down
            ! Close",
        ),
    );
}

#[test]
fn the_envelope_is_known_while_the_message_is() {
    let mut bench = Bench::new(Config::default());
    received().iter().for_each(|step| bench.step(step));
    let envelope = bench.session.envelope().unwrap();
    assert_eq!(envelope.sender, b"a@b");
    assert_eq!(envelope.recipients, [b"c@d".to_vec()]);
    bench.step(&infected());
    assert_eq!(bench.session.envelope(), None);
}

/// A recipient whose address is not known must not hide behind those that are: the envelope says so.
#[test]
fn recipients_that_cannot_be_named_are_shown() {
    let long = format!("RCPT TO:<@{}:c@d>\r\n", "r".repeat(PATH_MAX));
    for command in ["RCPT TO:e@f<c@d>\r\n", "RCPT <c@d>\r\n", &long] {
        let mut bench = Bench::new(Config::default());
        let steps = [
            opened(),
            vec![c(command), s("250 ok\r\n"), c(command), s("250 ok\r\n")],
            vec![c("RCPT TO:<g@h>\r\n"), s("250 ok\r\n"), c("DATA\r\n"), c("Hi\r\n.\r\n")],
        ];
        steps.concat().iter().for_each(|step| bench.step(step));
        let envelope = bench.session.envelope().unwrap();
        assert_eq!(envelope.recipients, [&b"c@d"[..], b"g@h", b""], "{command}");
        assert_eq!(envelope.accepted, 4);
    }
}

#[test]
fn the_first_recipients_are_named() {
    let mut bench = Bench::new(Config::default());
    opened().iter().for_each(|step| bench.step(step));
    for number in 1..RECIPIENTS_KEPT + 3 {
        bench.step(&c(format!("RCPT TO:<{number}@d>\r\n")));
        bench.step(&s("250 ok\r\n"));
    }
    bench.step(&c("DATA\r\nHi"));
    let envelope = bench.session.envelope().unwrap();
    assert_eq!(envelope.recipients.len(), RECIPIENTS_KEPT + 1);
    assert_eq!(envelope.recipients[RECIPIENTS_KEPT - 1], b"999@d");
    assert_eq!(envelope.recipients[RECIPIENTS_KEPT], b"");
    assert_eq!(envelope.accepted as usize, RECIPIENTS_KEPT + 3);
}

/// Clients like Python's smtplib say RSET behind a refusal; the server has had one by then.
#[test]
fn one_rset_is_enough() {
    check(
        &[
            received(),
            vec![
                infected(),
                c("RSET\r\n"),
                s("250 2.0.0 reset\r\n"),
                c("RSET\r\n"),
                s("250 again\r\n"),
            ],
        ]
        .concat(),
        &then(
            &received_log(),
            "< 550 5.7.1 Message blocked by vscan: EICAR
            > RSET
            ! finished blocked 550 from a@b to 1 4
            < 250 2.0.0 reset
            > RSET
            < 250 again",
        ),
    );
}

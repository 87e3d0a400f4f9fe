//! LMTP (RFC 2033): one reply for each recipient behind a message.

use super::*;

fn lmtp() -> Config {
    Config { lmtp: true, ..two_minutes() }
}

/// Three recipients, two of them accepted, and a message.
fn received_for_two() -> Vec<Step> {
    vec![
        s("220 lda\r\n"),
        c("LHLO c\r\n"),
        s("250-lda\r\n250-PIPELINING\r\n250-CHUNKING\r\n250 PRDR\r\n"),
        c("MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nRCPT TO:<no@d>\r\nRCPT TO:<e@d>\r\nDATA\r\n"),
        s("250 ok\r\n250 ok\r\n550 no\r\n250 ok\r\n"),
        c("Hi\r\n.\r\n"),
    ]
}

const RECEIVED: &str = "
    < 220 lda
    > LHLO c
    < 250-lda
    < 250-PIPELINING
    < 250 CHUNKING
    > MAIL FROM:<a@b>
    > RCPT TO:<c@d>
    > RCPT TO:<no@d>
    > RCPT TO:<e@d>
    < 250 ok
    < 250 ok
    < 550 no
    < 250 ok
    < 354 End data with <CR><LF>.<CR><LF>
    ! sender <a@b>
    ! Inspect { stuffed: false }
";

const SENT: &str = "
    > DATA
    ! SendMessage
    > [message]
";

fn check_lmtp(steps: &[Step], expect: &str) {
    check_with(lmtp(), &[&received_for_two(), steps].concat(), &then(RECEIVED, expect));
}

fn check_sent(steps: &[Step], expect: &str) {
    check_lmtp(&[&[pass(), s("354 go\r\n"), Sent], steps].concat(), &then(SENT, expect));
}

#[test]
fn each_recipient_has_an_answer() {
    check_sent(
        &[s("250 for c\r\n"), s("452-full\r\n452 box\r\n"), c("NOOP\r\n"), s("250 ok\r\n")],
        "< 250 for c
        < 452-full
        < 452 box
        ! finished delivered 452 from a@b to 2 4 for 1
        > NOOP
        < 250 ok",
    );
    check_sent(
        &[s("550 no\r\n550 no\r\n"), c("QUIT\r\n"), s("221 bye\r\n"), UpstreamEof],
        "< 550 no
        < 550 no
        ! finished refused_by_server 550 from a@b to 2 4
        > QUIT
        < 221 bye
        ! Close",
    );
}

#[test]
fn a_refusal_is_said_to_each() {
    check_lmtp(
        &[infected(), s("250 reset\r\n"), c("DATA\r\n"), s("503 no\r\n")],
        "< 550 5.7.1 Message blocked by vscan: EICAR
        < 550 5.7.1 Message blocked by vscan: EICAR
        > RSET
        ! finished blocked 550 from a@b to 2 4
        > DATA
        < 503 no",
    );
    check_lmtp(
        &[pass(), s("451 later\r\n")],
        "> DATA
        < 451 later
        < 451 later
        > RSET
        ! finished refused_by_server 451 from a@b to 2 4",
    );
}

/// What was answered stays; who is left hears that the server is gone.
#[test]
fn the_server_is_lost_between_two_answers() {
    for gone in [UpstreamEof, UpstreamLost] {
        check_sent(
            &[s("250 for c\r\n"), gone.clone()],
            "< 250 for c
            < 421 4.4.2 Connection to the server lost
            ! smtp_final_reply_lost
            ! finished server_lost 421 from a@b to 2 4 for 1
            ! CloseClient",
        );
        check_sent(
            &[gone],
            "< 421 4.4.2 Connection to the server lost
            < 421 4.4.2 Connection to the server lost
            ! smtp_final_reply_lost
            ! finished server_lost 421 from a@b to 2 4
            ! CloseClient",
        );
    }
}

#[test]
fn early_refusals_wait_for_the_end_of_the_message() {
    check_lmtp(
        &[pass(), s("354 go\r\n"), s("552 c\r\n"), Sent, s("250 e\r\n")],
        "> DATA
        ! SendMessage
        > [message]
        < 552 c
        < 250 e
        ! finished delivered 250 from a@b to 2 4 for 1",
    );
    check_lmtp(
        &[pass(), s("354 go\r\n"), s("552 c\r\n552 e\r\n"), Sent],
        "> DATA
        ! SendMessage
        > [message]
        < 552 c
        < 552 e
        ! finished refused_by_server 552 from a@b to 2 4",
    );
}

#[test]
fn by_chunks() {
    let mut steps = received_for_two();
    steps[3] = c("MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nRCPT TO:<no@d>\r\nRCPT TO:<e@d>\r\n");
    steps[5] = c("BDAT 1\r\naBDAT 1 LAST\r\nb");
    let log = RECEIVED.replace("    < 354 End data with <CR><LF>.<CR><LF>\n", "").replace(
        "    ! Inspect { stuffed: false }\n",
        "    < 250 2.0.0 1 bytes received\n    ! Inspect a chunked one\n",
    );
    check_with(
        lmtp(),
        &[&steps[..], &[pass(), Sent, s("250 c\r\n250 e\r\n")]].concat(),
        &then(
            &log,
            "> BDAT 2 LAST
            ! SendMessage
            > [message]
            < 250 c
            < 250 e
            ! finished delivered 250 from a@b to 2 2",
        ),
    );
}

#[test]
fn lhlo_is_for_lmtp_ports_and_ehlo_keeps_one_answer() {
    check(
        &[s("220 mx\r\n"), c("LHLO c\r\n")],
        "< 220 mx
        < 502 5.5.1 Command not available through this gateway
        ! smtp_forbidden_command",
    );
    // A server that takes both, and a client that changes its mind.
    let mut steps = received_for_two();
    steps.splice(3..3, [c("EHLO c\r\n"), s("250 mx\r\n")]);
    let mut bench = Bench::new(lmtp());
    steps.iter().for_each(|step| bench.step(step));
    bench.step(&infected());
    let refusals = String::from_utf8_lossy(&bench.client).matches("550 5.7.1").count();
    assert_eq!(refusals, 1);
}

#[test]
fn recipients_are_bounded() {
    let mut bench = Bench::new(lmtp());
    bench.step(&s("220 lda\r\n"));
    bench.step(&c("LHLO c\r\n"));
    bench.step(&s("250 lda\r\n"));
    bench.step(&c("MAIL FROM:<>\r\n"));
    bench.step(&s("250 ok\r\n"));
    for _ in 0..400 {
        bench.step(&c("RCPT TO:<c@d>\r\n"));
        bench.step(&s("250 ok\r\n"));
    }
    bench.step(&c("RCPT TO:<c@d>\r\n"));
    assert!(bench.client.ends_with(b"452 4.5.3 Too many recipients\r\n"));
    bench.step(&c("DATA\r\nx\r\n.\r\n"));
    bench.step(&infected());
    assert_eq!(String::from_utf8_lossy(&bench.client).matches("550 5.7.1").count(), 400);
}

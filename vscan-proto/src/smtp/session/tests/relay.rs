//! The dialogue around the messages.

use super::*;

#[test]
fn dialogue_is_relayed_verbatim() {
    check(
        &[
            s("220-mx.example\r\n220 ready\r\n"),
            c("ehlo  Client.example \r\n"),
            s("250-mx.example greets you\r\n250-PIPELINING\r\n250 HELP\r\n"),
            c("vrfy x\r\n"),
            s("252 try\r\n"),
            c("EXPN list\r\n"),
            s("250-a\r\n250 b\r\n"),
            c("HELP\r\n"),
            s("214-one\r\n214 two\r\n"),
            c("ETRN x\r\n"),
            s("458 no\r\n"),
            c("XCLIENT NAME=x\r\n"),
            s("220 again\r\n"),
            c("QUIT\r\n"),
            s("221 bye\r\n"),
            UpstreamEof,
        ],
        "< 220-mx.example
        < 220 ready
        > ehlo  Client.example
        < 250-mx.example greets you
        < 250-PIPELINING
        < 250 HELP
        > vrfy x
        < 252 try
        > EXPN list
        < 250-a
        < 250 b
        > HELP
        < 214-one
        < 214 two
        > ETRN x
        < 458 no
        > XCLIENT NAME=x
        < 220 again
        > QUIT
        < 221 bye
        ! Close",
    );
}

#[test]
fn extensions_are_hidden() {
    check(
        &[
            s("220 mx\r\n"),
            c("EHLO c\r\n"),
            s("250-mx\r\n250-SIZE 0\r\n250-CHUNKING\r\n250-BURL imap\r\n250 BINARYMIME\r\n"),
        ],
        "< 220 mx
        > EHLO c
        < 250-mx
        < 250-SIZE 67108864
        < 250-CHUNKING
        < 250 BINARYMIME",
    );
    check_with(
        Config { hide_extensions: vec!["chunking".into(), "dsn".into()], ..Config::default() },
        &[
            s("220 mx\r\n"),
            c("EHLO c\r\n"),
            s("250-mx\r\n250-CHUNKING\r\n250-BINARYMIME\r\n250 DSN\r\n"),
            c("BDAT 4\r\nQUITNOOP\r\n"),
        ],
        "< 220 mx
        > EHLO c
        < 250 mx
        < 502 5.5.1 BDAT was not offered
        > NOOP
        ! smtp_chunked_transfer",
    );
}

#[test]
fn commands_that_lead_past_the_gateway_are_refused() {
    check(
        &[s("220 mx\r\n"), c("TURN\r\nATRN x\r\nBURL imap://x LAST\r\nXEXCH50 9 2\r\n")],
        "< 220 mx
        < 502 5.5.1 Command not available through this gateway
        < 502 5.5.1 Command not available through this gateway
        < 502 5.5.1 Command not available through this gateway
        < 502 5.5.1 Command not available through this gateway
        ! smtp_forbidden_command",
    );
}

#[test]
fn sasl_responses_are_no_commands() {
    check(
        &[
            s("220 mx\r\n"),
            c("AUTH LOGIN\r\n"),
            s("334 VXNlcm5hbWU6\r\n"),
            c("DATA\r\n"),
            s("334 UGFzc3dvcmQ6\r\n"),
            c("BDAT 99\r\n"),
            s("235 ok\r\n"),
            c("NOOP\r\n"),
            s("250 ok\r\n"),
        ],
        "< 220 mx
        > AUTH LOGIN
        < 334 VXNlcm5hbWU6
        > DATA
        < 334 UGFzc3dvcmQ6
        > BDAT 99
        < 235 ok
        > NOOP
        < 250 ok",
    );
}

#[test]
fn long_sasl_lines_pass_and_long_commands_do_not() {
    let auth = format!("AUTH PLAIN {}\r\n", "x".repeat(12000));
    let mut bench = Bench::new(Config::default());
    bench.step(&s("220 mx\r\n"));
    bench.step(&c(&auth));
    assert_eq!(bench.upstream, auth.as_bytes());
    bench.step(&s("535 no\r\n"));
    bench.step(&c(format!("NOOP {}\r\n", "x".repeat(5000))));
    assert!(bench.client.ends_with(b"535 no\r\n500 5.5.2 Line too long\r\n"));
    assert_eq!(bench.actions, ["smtp_command_too_long"]);
    bench.step(&c("x".repeat(100_000)));
    assert!(bench.client.ends_with(b"421 4.7.0 Line too long\r\n"));
    assert_eq!(bench.actions[1..], ["smtp_command_too_long", "Close"]);
}

#[test]
fn commands_with_bare_newlines_are_not_relayed() {
    check(
        &[s("220 mx\r\n"), c("NOOP\nDATA\r\n"), s("503 first\r\n"), c("NOOP\rDATA\r\nQUIT\r\n")],
        "< 220 mx
        < 500 5.5.2 Lines must end with CR LF
        > DATA
        ! smtp_bare_newline_in_command
        < 503 first
        < 500 5.5.2 Lines must end with CR LF
        > QUIT",
    );
}

#[test]
fn garbage_is_refused_and_then_hung_up_on() {
    let mut bench = Bench::new(Config::default());
    bench.step(&s("220 mx\r\n"));
    bench.step(&c("\x16\x03\x01\n".repeat(100)));
    assert!(bench.client.ends_with(b"421 4.7.0 Too many errors\r\n"));
    assert_eq!(bench.client.split(|byte| *byte == b'\n').count(), 1 + 20 + 1 + 1);
    assert_eq!(bench.upstream, b"");
    assert_eq!(bench.actions.last().map(String::as_str), Some("Close"));
}

#[test]
fn unknown_commands_wait_for_their_reply() {
    // A server that takes XDATA for DATA would swallow what is pipelined behind it.
    check(
        &[s("220 mx\r\n"), c("XDATA\r\nevil\r\n.\r\n"), s("354 go\r\n")],
        "< 220 mx
        > XDATA
        ! smtp_unexpected_go_ahead
        ! Reset",
    );
    check(
        &[s("220 mx\r\n"), c("XYZ\r\nNOOP\r\n"), s("500 what\r\n")],
        "< 220 mx
        > XYZ
        < 500 what
        > NOOP",
    );
}

/// Postfix skips white space in front of a command and ends it at a NUL: it would accept recipients
/// that no rule is asked about, and LMTP would have answers that nobody waits for.
#[test]
fn what_a_lenient_server_takes_for_a_command_is_not_relayed() {
    check(
        &[
            opened(),
            vec![
                c(" RCPT TO:<x@y>\r\n\tDATA\r\nBDAT\0 5\r\n"),
                c(" BURL imap://x LAST\r\n STARTTLS\r\n\0LHLO c\r\nXCLIENT A=B\r\n"),
            ],
        ]
        .concat(),
        &then(
            OPENED,
            "< 500 5.5.2 Command not recognized
            < 500 5.5.2 Command not recognized
            < 500 5.5.2 Command not recognized
            ! smtp_inexact_command
            < 500 5.5.2 Command not recognized
            < 500 5.5.2 Command not recognized
            < 500 5.5.2 Command not recognized
            > XCLIENT A=B",
        ),
    );
}

#[test]
fn early_talkers_are_relayed_at_once() {
    check(
        &[c("EHLO c\r\nMAIL FROM:<>\r\n"), s("220 mx\r\n"), s("250 mx\r\n250 ok\r\n")],
        "> EHLO c
        > MAIL FROM:<>
        ! smtp_early_talker
        < 220 mx
        < 250 mx
        < 250 ok
        ! sender <>",
    );
}

#[test]
fn the_client_waits_when_too_much_is_pipelined() {
    let mut bench = Bench::new(Config::default());
    bench.step(&s("220 mx\r\n"));
    bench.step(&c("NOOP\r\n".repeat(1000)));
    assert_eq!(bench.upstream.len(), 256 * 6);
    assert!(!bench.session.wants_client());
    bench.step(&s("250 ok\r\n".repeat(256)));
    assert_eq!(bench.upstream.len(), 512 * 6);
}

fn starttls(policy: StartTls) -> Config {
    Config { starttls: policy, ..Config::default() }
}

const TLS_HELLO: &[u8] = b"\x16\x03\x01\x00\x05hello";

#[test]
fn starttls_becomes_a_blind_relay() {
    check(
        &[
            s("220 mx\r\n"),
            c("EHLO c\r\n"),
            s("250-mx\r\n250 STARTTLS\r\n"),
            c("STARTTLS\r\n"),
            s("220 go\r\n"),
            c(b"\x16\x03"),
            s(b"\x16\x03"),
        ],
        "< 220 mx
        > EHLO c
        < 250-mx
        < 250 STARTTLS
        > STARTTLS
        < 220 go
        > \\x16\\x03
        < \\x16\\x03
        ! Blind",
    );
}

#[test]
fn starttls_may_be_declined() {
    check(
        &[s("220 mx\r\n"), c("STARTTLS\r\nNOOP\r\n"), s("454 no\r\n")],
        "< 220 mx
        > STARTTLS
        < 454 no
        > NOOP",
    );
}

#[test]
fn plaintext_behind_starttls_resets() {
    // Of the client: pipelined in the same segment, RFC 3207 section 4.2 and CVE-2011-0411.
    check(
        &[s("220 mx\r\n"), c("STARTTLS\r\nRSET\r\n"), s("220 go\r\n")],
        "< 220 mx
        > STARTTLS
        < 220 go
        ! smtp_not_tls
        ! Reset",
    );
    let mut bench = Bench::new(Config::default());
    for step in [s("220 mx\r\n"), c("STARTTLS\r\n"), s("220 go\r\n250 evil\r\n")] {
        bench.step(&step);
    }
    assert_eq!(bench.actions, ["smtp_plaintext_behind_starttls", "Reset"]);
    check(
        &[s("220 mx\r\n"), c("STARTTLS\r\n"), s("220 go\r\n"), c(TLS_HELLO), s("250 x\r\n")],
        "< 220 mx
        > STARTTLS
        < 220 go
        > \\x16\\x03\\x01\\x00\\x05hello
        ! smtp_not_tls
        ! Reset",
    );
}

#[test]
fn starttls_refused_and_stripped() {
    let steps = [
        s("220 mx\r\n"),
        c("EHLO c\r\n"),
        s("250-mx\r\n250-STARTTLS\r\n250 DSN\r\n"),
        c("STARTTLS\r\nNOOP\r\n"),
    ];
    let before = "< 220 mx\n> EHLO c\n< 250-mx\n";
    check_with(
        starttls(StartTls::Refuse),
        &steps,
        &format!(
            "{before}< 250-STARTTLS\n< 250 DSN\n< 454 4.7.0 TLS is not available here\n> NOOP"
        ),
    );
    check_with(
        starttls(StartTls::Strip),
        &steps,
        &format!("{before}< 250 DSN\n< 502 5.5.1 Command not implemented\n> NOOP"),
    );
}

#[test]
fn ends_are_passed_on() {
    check(
        &[s("220 mx\r\n"), c("QUIT\r\n"), ClientEof, s("221 bye\r\n"), UpstreamEof],
        "< 220 mx
        > QUIT
        ! ShutdownUpstream
        < 221 bye
        ! Close",
    );
    check(
        &[s("220 mx\r\n"), s("421 closing\r\n"), UpstreamEof],
        "< 220 mx\n< 421 closing\n! Close",
    );
    check(&[s("220 mx\r\n"), UpstreamLost], "< 220 mx\n! Reset");
    check(&[s("220 mx\r\n"), ClientLost], "< 220 mx\n! Reset");
    check(&[UpstreamEof], "! Close");
    check(&[s("554 no\r\n"), UpstreamEof], "< 554 no\n! Close");
    check(
        &[s("220 mx\r\n"), c("QUIT\r\n"), s("221 bye"), UpstreamEof],
        "< 220 mx\n> QUIT\n< 221 bye\n! Close",
    );
}

#[test]
fn a_server_that_leaves_in_mid_dialogue() {
    let config = Config::default();
    for (index, _) in opened().iter().enumerate() {
        let mut bench = Bench::new(config.clone());
        opened()[..=index].iter().for_each(|step| bench.step(step));
        bench.step(&s("421 4.3.2 shutting down\r\n"));
        bench.step(&UpstreamEof);
        assert!(bench.client.ends_with(b"421 4.3.2 shutting down\r\n"), "after step {index}");
        assert_eq!(bench.actions.last().map(String::as_str), Some("Close"));
    }
}

#[test]
fn silence_ends_the_session() {
    check(&[s("220 mx\r\n"), Wait(601)], "< 220 mx\n< 421 4.4.2 Idle for too long\n! Close");
    check(&[s("220 mx\r\n"), Wait(599), c("NOOP\r\n"), Wait(599)], "< 220 mx\n> NOOP");
}

/// Greylisting, tarpits, late banners: the server takes its time at each stage, within what RFC 5321
/// section 4.5.3.2 gives it, and changes its mind.
#[test]
fn a_slow_server_is_waited_for() {
    check(
        &[
            Wait(299),
            s("220-a moment\r\n"),
            Wait(299),
            s("220 mx\r\n"),
            c("EHLO c\r\n"),
            Wait(299),
            s("250 mx\r\n"),
            c("MAIL FROM:<a@b>\r\n"),
            s("250 ok\r\n"),
            c("RCPT TO:<c@d>\r\n"),
            Wait(299),
            s("451 4.7.1 greylisted\r\n"),
            c("RCPT TO:<e@f>\r\n"),
            Wait(299),
            s("250 ok\r\n"),
            c("DATA\r\nHi\r\n.\r\n"),
            pass(),
            Wait(119),
            s("354 go\r\n"),
            Sent,
            Wait(449),
            s("451 4.7.1 later\r\n"),
        ],
        "< 220-a moment
        < 220 mx
        > EHLO c
        < 250 mx
        > MAIL FROM:<a@b>
        < 250 ok
        ! sender <a@b>
        > RCPT TO:<c@d>
        < 451 4.7.1 greylisted
        > RCPT TO:<e@f>
        < 250 ok
        < 354 End data with <CR><LF>.<CR><LF>
        ! Inspect { stuffed: false }
        > DATA
        ! SendMessage
        > [message]
        < 451 4.7.1 later
        ! finished refused_by_server 451 from a@b to 1 4",
    );
}

#[test]
fn odd_replies() {
    check(
        &[s("220 mx\r\n"), s("250 nobody asked\r\n250 really\r\n")],
        "< 220 mx
        < 250 nobody asked
        < 250 really
        ! smtp_unsolicited_reply",
    );
    check(
        &[s("SSH-2.0-x\r\n"), s("220 mx\n")],
        "< SSH-2.0-x
        ! smtp_malformed_reply
        < 220 mx\\n",
    );
    let mut bench = Bench::new(Config::default());
    bench.step(&S(vec![b'x'; 10_000]));
    assert_eq!(bench.actions, ["smtp_reply_too_long", "Reset"]);
    let mut bench = Bench::new(Config::default());
    bench.step(&s("220 mx\r\n"));
    bench.step(&c("EHLO c\r\n"));
    bench.step(&s("250-X\r\n".repeat(10_000)));
    assert_eq!(bench.actions, ["smtp_reply_too_long", "Reset"]);
}

//! STARTTLS that is opened: the way into TLS, and the dialogue inside.

use super::*;

fn open(always: bool) -> Config {
    Config { starttls: StartTls::Open { always, at_once: false }, ..Config::default() }
}

/// Up to the handshakes.
fn begun() -> Vec<Step> {
    vec![
        s("220 mx\r\n"),
        c("EHLO out\r\n"),
        s("250-mx\r\n250-CHUNKING\r\n250 STARTTLS\r\n"),
        c("STARTTLS\r\n"),
        s("220 go\r\n"),
    ]
}

/// The log of [`begun`].
const BEGUN: &str = "
    < 220 mx
    > EHLO out
    < 250-mx
    < 250-CHUNKING
    < 250 STARTTLS
    > STARTTLS
    < 220 go
    ! Secure(Agreed)
";

#[test]
fn the_dialogue_begins_anew_inside() {
    check_with(
        open(false),
        &[
            begun(),
            vec![
                Handshakes(true),
                c("BDAT 5\r\nhello"),
                c("EHLO in\r\n"),
                s("250-mx\r\n250-AUTH PLAIN SCRAM-SHA-1-PLUS\r\n250-REQUIRETLS\r\n250 STARTTLS\r\n"),
                c("STARTTLS\r\n"),
                c("MAIL FROM:<a@b>\r\n"),
                s("250 ok\r\n"),
            ],
        ]
        .concat(),
        &then(
            BEGUN,
            "= TLS
            < 502 5.5.1 BDAT was not offered
            ! smtp_chunked_transfer
            > EHLO in
            < 250-mx
            < 250-AUTH PLAIN
            < 250 REQUIRETLS
            < 503 5.5.1 TLS is in use already
            > MAIL FROM:<a@b>
            < 250 ok
            ! sender <a@b>",
        ),
    );
}

#[test]
fn a_server_that_is_not_believed_cannot_promise_tls() {
    check_with(
        open(false),
        &[
            begun(),
            vec![
                Handshakes(false),
                c("EHLO in\r\n"),
                s("250-mx\r\n250 REQUIRETLS\r\n"),
                c("QUIT\r\n"),
            ],
        ]
        .concat(),
        &then(BEGUN, "= TLS\n> EHLO in\n< 250 mx\n> QUIT"),
    );
}

#[test]
fn a_transaction_from_before_is_forgotten() {
    let mut bench = Bench::new(open(false));
    let before = [
        s("220 mx\r\n"),
        c("EHLO c\r\n"),
        s("250-mx\r\n250 STARTTLS\r\n"),
        c("MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\n"),
        s("250 ok\r\n250 ok\r\n"),
        c("STARTTLS\r\n"),
        s("220 go\r\n"),
        Handshakes(true),
        c("DATA\r\n"),
    ];
    before.iter().for_each(|step| bench.step(step));
    assert_eq!(bench.log.last().unwrap(), "> DATA", "no message was asked for: {:?}", bench.log);
    assert!(bench.session.envelope().is_none());
}

#[test]
fn a_server_without_tls_is_not_made_to_look_as_if_it_had_it() {
    let steps =
        [s("220 mx\r\n"), c("EHLO c\r\n"), s("250 mx\r\n"), c("STARTTLS\r\n"), s("502 no\r\n")];
    check_with(
        open(false),
        &steps,
        "< 220 mx
        > EHLO c
        < 250 mx
        > STARTTLS
        < 502 no",
    );
}

#[test]
fn the_client_alone_where_it_is_told_so() {
    check_with(
        open(true),
        &[
            s("220 mx\r\n"),
            c("EHLO c\r\n"),
            s("250-mx\r\n250 DSN\r\n"),
            c("NOOP\r\nSTARTTLS\r\n"),
            s("250 noop\r\n"),
            Handshakes(true),
            c("EHLO c\r\n"),
            s("250-mx\r\n250 DSN\r\n"),
        ],
        "< 220 mx
        > EHLO c
        < 250-mx
        < 250-DSN
        < 250 STARTTLS
        > NOOP
        < 250 noop
        < 220 2.0.0 Ready to start TLS
        ! Secure(Absent)
        = TLS
        > EHLO c
        < 250-mx
        < 250 DSN",
    );
    // A server that has it is asked for it.
    check_with(open(true), &begun(), BEGUN);
}

#[test]
fn plaintext_of_the_server_behind_its_220_resets() {
    let mut bench = Bench::new(open(false));
    let mut steps = begun();
    steps.pop();
    steps.push(s("220 go\r\n250 injected\r\n"));
    steps.iter().for_each(|step| bench.step(step));
    assert_eq!(bench.actions, ["Secure(Agreed)", "smtp_plaintext_behind_starttls", "Reset"]);
}

#[test]
fn plaintext_of_the_client_behind_starttls_resets() {
    let mut bench = Bench::new(open(false));
    let mut steps = begun();
    steps[3] = c("STARTTLS\r\nMAIL FROM:<injected@x>\r\n");
    steps.iter().for_each(|step| bench.step(step));
    // The driver has it still, and says so.
    assert_eq!(bench.held, b"MAIL FROM:<injected@x>\r\n");
    assert!(!bench.session.wants_client());
    bench.session.handle_injection();
    bench.drain();
    assert_eq!(bench.actions, ["Secure(Agreed)", "smtp_commands_behind_starttls", "Reset"]);
}

#[test]
fn the_last_ehlo_is_remembered_until_tls_begins() {
    let mut bench = Bench::new(open(false));
    begun().iter().for_each(|step| bench.step(step));
    assert_eq!(bench.session.hello(), b"EHLO out\r\n");
    bench.step(&Handshakes(true));
    assert_eq!(bench.session.hello(), b"");
}

#[test]
fn tls_since_the_first_byte() {
    check_with(
        Config { secured: Some(Secured { trusted: false, greeted: false }), ..open(true) },
        &[
            s("220 mx\r\n"),
            c("EHLO c\r\n"),
            s("250-mx\r\n250-STARTTLS\r\n250 REQUIRETLS\r\n"),
            c("STARTTLS\r\n"),
        ],
        "< 220 mx
        > EHLO c
        < 250 mx
        < 503 5.5.1 TLS is in use already",
    );
}

#[test]
fn a_draining_session_ends_inside() {
    check_with(
        open(false),
        &[begun(), vec![Drain, Handshakes(true)]].concat(),
        &then(BEGUN, "= TLS\n< 421 4.3.2 Service shutting down\n! Close"),
    );
}

/// The server's answer inside of TLS, and the client's that is made of it.
const INSIDE: &str = "250-mx\r\n250-STARTTLS\r\n250 SIZE 1000\r\n";

#[test]
fn a_server_that_is_greeted_already_is_not_greeted_again() {
    let inside = "= TLS
        < 250-mx
        < 250 SIZE 1000
        > MAIL FROM:<a@b>";
    let (ehlo, mail) = (c("EHLO out\r\n"), c("MAIL FROM:<a@b>\r\n"));
    // Whoever is faster.
    for steps in
        [[Greeted, s(INSIDE), ehlo.clone(), mail.clone()], [Greeted, ehlo, s(INSIDE), mail]]
    {
        check_with(open(false), &[begun(), steps.to_vec()].concat(), &then(BEGUN, inside));
    }
}

#[test]
fn an_ehlo_that_is_another_one_is_for_the_server() {
    let steps = [
        Greeted,
        c("EHLO other\r\n"),
        s(INSIDE),
        s("250-mx\r\n250 DSN\r\n"),
        // The answer of before serves for nobody any more.
        c("EHLO out\r\n"),
        s("250 mx\r\n"),
    ];
    let inside = "= TLS
        > EHLO other
        < 250-mx
        < 250 DSN
        > EHLO out
        < 250 mx";
    check_with(open(false), &[begun(), steps.to_vec()].concat(), &then(BEGUN, inside));
}

#[test]
fn a_client_that_does_not_greet_again_hears_nothing_of_it() {
    let steps = [Greeted, c("NOOP\r\n"), s(INSIDE), s("250 noop\r\n")];
    let inside = "= TLS\n> NOOP\n< 250 noop";
    check_with(open(false), &[begun(), steps.to_vec()].concat(), &then(BEGUN, inside));
}

#[test]
fn a_greeting_that_is_refused_is_refused_to_who_makes_it() {
    let refused = [Greeted, s("550 not you\r\n"), c("EHLO out\r\n"), c("EHLO again\r\n")];
    let inside = "= TLS\n< 550 not you\n> EHLO again";
    check_with(open(false), &[begun(), refused.to_vec()].concat(), &then(BEGUN, inside));
    let leaves = [Greeted, s("421 overloaded\r\n"), UpstreamEof];
    let inside = "= TLS\n< 421 overloaded\n! Close";
    check_with(open(false), &[begun(), leaves.to_vec()].concat(), &then(BEGUN, inside));
}

#[test]
fn a_draining_session_waits_for_the_answer_to_what_it_said() {
    let steps = [Drain, Greeted, s(INSIDE)];
    let inside = "= TLS\n< 421 4.3.2 Service shutting down\n! Close";
    check_with(open(false), &[begun(), steps.to_vec()].concat(), &then(BEGUN, inside));
}

fn at_once() -> Config {
    Config { starttls: StartTls::Open { always: false, at_once: true }, ..Config::default() }
}

#[test]
fn the_client_need_not_wait_for_a_server_that_has_announced_it() {
    let greeted = [s("220 mx\r\n"), c("EHLO c\r\n"), s("250-mx\r\n250 STARTTLS\r\n")];
    let steps = [&greeted[..], &[c("STARTTLS\r\n"), Handshakes(true), c("NOOP\r\n")]].concat();
    let log = "< 220 mx
        > EHLO c
        < 250-mx
        < 250 STARTTLS
        < 220 2.0.0 Ready to start TLS
        > STARTTLS
        ! Secure(Asked)
        = TLS
        > NOOP";
    check_with(at_once(), &steps, log);
}

#[test]
fn a_server_that_owes_an_answer_is_waited_for() {
    let steps = [
        s("220 mx\r\n"),
        c("EHLO c\r\n"),
        s("250-mx\r\n250 STARTTLS\r\n"),
        c("NOOP\r\nSTARTTLS\r\n"),
        s("250 noop\r\n220 go\r\n"),
    ];
    let log = "< 220 mx
        > EHLO c
        < 250-mx
        < 250 STARTTLS
        > NOOP
        > STARTTLS
        < 250 noop
        < 220 go
        ! Secure(Agreed)";
    check_with(at_once(), &steps, log);
    // And one that has not announced it, or has something on its lips; or if the client asks for something else.
    let announced = "250-mx\r\n250 STARTTLS\r\n";
    for (answer, command) in [
        ("250 mx\r\n".to_owned(), "STARTTLS"),
        (format!("{announced}25"), "STARTTLS"),
        (announced.to_owned(), "STARTTLS x"),
        (announced.to_owned(), "X-ANONYMOUSTLS"),
    ] {
        let steps = [s("220 mx\r\n"), c("EHLO c\r\n"), s(&answer), c(format!("{command}\r\n"))];
        let mut bench = Bench::new(at_once());
        steps.iter().for_each(|step| bench.step(step));
        assert_eq!(*bench.log.last().unwrap(), format!("> {command}"), "{:?}", bench.log);
    }
    let mut bench = Bench::new(at_once());
    let steps = [
        s("220 mx\r\n"),
        c("EHLO c\r\n"),
        s(announced),
        c("MAIL FROM:<a@b>\r\n"),
        s("250 ok\r\n"),
        c("STARTTLS\r\n"),
    ];
    steps.iter().for_each(|step| bench.step(step));
    assert_eq!(bench.log.last().unwrap(), "> STARTTLS", "in a transaction: {:?}", bench.log);
}

#[test]
fn what_is_said_behind_starttls_is_no_less_an_injection() {
    let mut bench = Bench::new(at_once());
    let steps = [
        s("220 mx\r\n"),
        c("EHLO c\r\n"),
        s("250-mx\r\n250 STARTTLS\r\n"),
        c("STARTTLS\r\nMAIL FROM:<evil@x>\r\n"),
    ];
    steps.iter().for_each(|step| bench.step(step));
    assert_eq!(bench.held, b"MAIL FROM:<evil@x>\r\n", "not read as a command");
    bench.session.handle_injection();
    bench.drain();
    assert_eq!(bench.actions, ["Secure(Asked)", "smtp_commands_behind_starttls", "Reset"]);
}

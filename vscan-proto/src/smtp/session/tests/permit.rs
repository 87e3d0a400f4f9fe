//! Access rules: what is refused here never reaches the server.

use super::*;

/// `own` may write to everybody, others to `postmaster`, the authenticated to everybody but `boss`.
#[derive(Debug)]
struct Own;

impl Permit for Own {
    fn sender(&self, sender: &[u8], _authenticated: bool) -> bool {
        sender != b"eve"
    }

    fn recipient(&self, sender: &[u8], recipient: &[u8], authenticated: bool) -> bool {
        sender == b"own" || recipient == b"postmaster" || authenticated && recipient != b"boss"
    }
}

fn checked(steps: &[Step], expect: &str) {
    check_with(Config { permit: Some(Arc::new(Own)), ..two_minutes() }, steps, expect);
}

#[test]
fn senders_and_recipients_are_refused_in_their_turn() {
    checked(
        &[
            s("220 mx\r\n"),
            c("MAIL FROM:<eve>\r\nMAIL FROM:<joe>\r\nRCPT TO:<x>\r\nRCPT TO:<postmaster>\r\n"),
            s("250 sender\r\n"),
            s("250 recipient\r\n"),
        ],
        "< 220 mx
        < 550 5.7.1 This sender is not permitted here by vscan
        > MAIL FROM:<joe>
        > RCPT TO:<postmaster>
        ! Denied { recipient: false, address: [101, 118, 101], tell: true }
        ! Denied { recipient: true, address: [120], tell: true }
        < 250 sender
        < 530 5.7.0 Authentication required by vscan
        ! sender <joe>
        < 250 recipient",
    );
}

#[test]
fn authentication_counts_when_the_server_has_accepted_it() {
    checked(
        &[
            s("220 mx\r\n"),
            c("AUTH PLAIN x\r\n"),
            s("535 no\r\n"),
            c("MAIL FROM:<joe>\r\n"),
            s("250 ok\r\n"),
            c("RCPT TO:<x>\r\n"),
            c("AUTH LOGIN\r\n"),
            s("334 who\r\n"),
            c("am9l\r\n"),
            s("235 in\r\n"),
            c("RCPT TO:<x>\r\n"),
            s("250 ok\r\n"),
            c("RCPT TO:<boss>\r\n"),
        ],
        "< 220 mx
        > AUTH PLAIN x
        < 535 no
        > MAIL FROM:<joe>
        < 250 ok
        ! sender <joe>
        < 530 5.7.0 Authentication required by vscan
        ! Denied { recipient: true, address: [120], tell: true }
        > AUTH LOGIN
        < 334 who
        > am9l
        < 235 in
        > RCPT TO:<x>
        < 250 ok
        < 550 5.7.1 This recipient is not permitted here by vscan
        ! Denied { recipient: true, address: [98, 111, 115, 115], tell: true }",
    );
}

/// Behind XCLIENT the server knows nothing of who was there before.
#[test]
fn a_session_that_begins_anew_is_not_authenticated() {
    checked(
        &[
            s("220 mx\r\n"),
            c("AUTH PLAIN x\r\n"),
            s("235 in\r\n"),
            c("XCLIENT ADDR=192.0.2.1\r\n"),
            s("220 mx\r\n"),
            c("MAIL FROM:<joe>\r\n"),
            s("250 ok\r\n"),
            c("RCPT TO:<x>\r\n"),
        ],
        "< 220 mx
        > AUTH PLAIN x
        < 235 in
        > XCLIENT ADDR=192.0.2.1
        < 220 mx
        > MAIL FROM:<joe>
        < 250 ok
        ! sender <joe>
        < 530 5.7.0 Authentication required by vscan
        ! Denied { recipient: true, address: [120], tell: true }",
    );
}

#[test]
fn a_second_sender_that_the_server_may_refuse_gives_no_rights() {
    checked(
        &[
            s("220 mx\r\n"),
            c("MAIL FROM:<joe>\r\n"),
            s("250 ok\r\n"),
            c("MAIL FROM:<own>\r\nRCPT TO:<x>\r\n"),
            s("503 nested\r\n"),
        ],
        "< 220 mx
        > MAIL FROM:<joe>
        < 250 ok
        ! sender <joe>
        > MAIL FROM:<own>
        ! Denied { recipient: true, address: [120], tell: true }
        < 503 nested
        < 530 5.7.0 Authentication required by vscan",
    );
}

#[test]
fn what_only_looks_like_an_envelope_is_not_relayed() {
    checked(
        &[s("220 mx\r\n"), c(" RCPT TO:<x>\r\n"), c("RCPTTO:<x>\r\n"), c("XFOO\r\n")],
        "< 220 mx
        < 500 5.5.2 Command not recognized
        ! Denied { recipient: false, address: [82, 67, 80, 84, 32, 84, 79, 58, 60, 120, 62], tell: true }
        < 500 5.5.2 Command not recognized
        ! Denied { recipient: false, address: [], tell: true }
        > XFOO",
    );
}

/// Of two addresses in a command servers may take either.
#[test]
fn an_address_that_is_not_plain_is_not_permitted() {
    checked(
        &[s("220 mx\r\n"), c("MAIL FROM:<own><eve>\r\nMAIL FROM:<own>\r\nRCPT <x>\r\n")],
        "< 220 mx
        < 550 5.7.1 This sender is not permitted here by vscan
        > MAIL FROM:<own>
        ! Denied { recipient: false, address: [70, 82, 79, 77, 58, 60, 111, 119, 110, 62, 60, 101, 118, 101, 62], tell: true }
        ! Denied { recipient: true, address: [60, 120, 62], tell: true }",
    );
}

#[test]
fn a_host_that_sends_too_much_hears_421_and_is_closed() {
    check(
        &[
            s("220 mx\r\n"),
            c("MAIL FROM:<a>\r\nRCPT TO:<b>\r\nDATA\r\n"),
            s("250 ok\r\n250 ok\r\n"),
            c("x\r\n.\r\nMAIL FROM:<a>\r\n"),
            Ruled(Ruling::TooMuch),
        ],
        "< 220 mx
        > MAIL FROM:<a>
        > RCPT TO:<b>
        < 250 ok
        < 250 ok
        < 354 End data with <CR><LF>.<CR><LF>
        ! sender <a>
        ! Inspect { stuffed: false }
        < 421 4.7.0 Too much mail from this host, try again later
        > RSET
        ! finished too_much 421 from a to 1 3
        ! Close",
    );
}

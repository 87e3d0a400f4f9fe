//! Transcripts (each also cut at every offset), and a scripted pair with a fake clock in `pair`.

mod pair;
mod partial;
mod permit;
mod sniff;
mod tls;
mod transfers;

use super::*;
use std::net::SocketAddr;
use std::time::Duration;

const CLIENT4: &str = "10.0.0.1:4000";
const SERVER4: &str = "192.0.2.1:21";
const CLIENT6: &str = "[2001:db8::1]:4000";
const SERVER6: &str = "[2001:db8:1::1]:21";

/// A machine with a fake clock, driven and read as text.
struct Rig {
    session: Session,
    now: Instant,
}

fn settings(tls: Tls) -> Settings {
    Settings {
        tls,
        resume: Resume::Refuse,
        skip_extensions: vec!["iso".into()],
        ..Settings::default()
    }
}

impl Rig {
    fn new(client: &str, dialled: &str, tls: Tls) -> Self {
        Self::with(client, dialled, settings(tls))
    }

    fn with(client: &str, dialled: &str, settings: Settings) -> Self {
        let now = Instant::now();
        let addresses =
            Addresses { client: client.parse().unwrap(), dialled: dialled.parse().unwrap() };
        Self { session: Session::new(now, Arc::new(settings), addresses), now }
    }

    /// Carries out one step; the control bytes of `c` and `s` steps are cut after `cut` bytes.
    fn step(&mut self, step: &str, cut: Cut) {
        let (kind, rest) = step.split_once(' ').unwrap_or((step, ""));
        let now = self.now;
        let bytes = unescape(rest);
        match kind {
            "c" => cut.feed(&bytes, |part| self.session.handle_client(now, part)),
            "s" => cut.feed(&bytes, |part| self.session.handle_upstream(now, part)),
            "c-closed" => self.session.handle_client_closed(now),
            "s-closed" => self.session.handle_upstream_closed(now),
            "drain" => self.session.drain(now),
            "+" => {
                self.now += Duration::from_secs(rest.parse().unwrap());
                self.session.handle_timeout(self.now);
            }
            "!" => {
                let event = event(rest, &self.session.core.addresses);
                self.session.handle_event(now, event);
            }
            other => panic!("no such step: {other}"),
        }
    }

    fn said(&mut self) -> Vec<String> {
        let mut said = Vec::new();
        while let Some(output) = self.session.poll_output() {
            describe(&output, &mut said);
        }
        said
    }
}

#[derive(Debug, Clone, Copy)]
enum Cut {
    Whole,
    After(usize),
    Bytes,
}

impl Cut {
    fn feed(self, bytes: &[u8], mut feed: impl FnMut(&[u8])) {
        match self {
            Self::Whole => feed(bytes),
            Self::After(at) => {
                let (head, tail) = bytes.split_at(at.min(bytes.len()));
                feed(head);
                feed(tail);
            }
            Self::Bytes => bytes.chunks(1).for_each(feed),
        }
    }
}

/// `¶` separates lines, `\xNN` is a byte; a CRLF is added unless the text ends with `~`.
fn unescape(text: &str) -> Vec<u8> {
    let (text, end) = text.strip_suffix('~').map_or((text, "\r\n"), |text| (text, ""));
    let mut bytes = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        if let Some(hex) = rest.strip_prefix("\\x") {
            bytes.push(u8::from_str_radix(&hex[..2], 16).unwrap());
            rest = &hex[2..];
        } else if let Some(line) = rest.strip_prefix('¶') {
            bytes.extend_from_slice(b"\r\n");
            rest = line;
        } else {
            bytes.extend_from_slice(first.to_string().as_bytes());
            rest = &rest[first.len_utf8()..];
        }
    }
    bytes.extend_from_slice(end.as_bytes());
    bytes
}

fn leg(word: &str) -> Leg {
    if word == "client" { Leg::Client } else { Leg::Upstream }
}

/// Where the driver listens on a leg: on the address that the peer expects.
fn listening(leg: Leg, addresses: &Addresses, port: u16) -> SocketAddr {
    let ip = match leg {
        Leg::Client => addresses.dialled.ip(),
        Leg::Upstream => addresses.client.ip(),
    };
    SocketAddr::new(ip, port)
}

fn event(text: &str, addresses: &Addresses) -> Event {
    let words: Vec<&str> = text.split(' ').collect();
    let result = |word: &str| match word {
        "ok" => Ok(()),
        word => Err(Broken { leg: leg(word) }),
    };
    match words[..] {
        ["listening", side, port] => {
            let leg = leg(side);
            let here = port.parse().ok().map(|port| listening(leg, addresses, port));
            Event::Listening(leg, here)
        }
        ["connected", side] => Event::Connected(leg(side)),
        ["failed", side] => Event::ConnectFailed(leg(side)),
        ["received", word] => Event::Received(result(word)),
        ["sent", word] => Event::Sent(result(word)),
        ["sniffed", word] => Event::Sniffed(word == "skip"),
        ["secured", word] => Event::Secured(result(word)),
        ["cleared", word] => Event::Cleared(result(word)),
        ["spliced", word] => Event::Spliced(result(word)),
        ["recalled", word] => Event::Recalled(match word {
            "nothing" => Recalled::Nothing,
            "scanned" => Recalled::Scanned,
            "suspect" => Recalled::Suspect,
            "busy" => Recalled::Busy,
            other => panic!("recalled {other}?"),
        }),
        ["mismatched", word] => Event::Mismatched { released: word == "released" },
        ["judged", "release"] => Event::judged(Judgement::Release),
        ["judged", "announced", words] => {
            Event::Judged { judgement: Judgement::Release, words: words.into() }
        }
        ["judged", reason] => Event::judged(Judgement::Refuse { reason: reason.into() }),
        _ => panic!("no such event: {text}"),
    }
}

fn describe(output: &Output, said: &mut Vec<String>) {
    let mut lines = |who: &str, bytes: &Bytes| {
        for line in bytes.split_inclusive(|&byte| byte == b'\n') {
            let text = line.strip_suffix(b"\r\n").unwrap_or(line);
            said.push(format!("{who} {}", text.escape_ascii()).replace("\\'", "'"));
        }
    };
    match output {
        Output::ToClient(bytes) => lines("c", bytes),
        Output::ToUpstream(bytes) => lines("s", bytes),
        Output::Listen(leg) => said.push(format!("listen {leg:?}")),
        Output::ConnectClient(address) => said.push(format!("connect {address}")),
        Output::DialUpstream(port) => said.push(format!("dial {port}")),
        Output::Receive(leg) => said.push(format!("receive {leg:?}")),
        Output::Inspect => said.push("inspect".into()),
        Output::Send(leg) => said.push(format!("send {leg:?}")),
        Output::Recall => said.push("recall".into()),
        Output::Join(base) => said.push(format!("join {base:?}")),
        Output::Stream(leg) => said.push(format!("stream {leg:?}")),
        Output::Check => said.push("check".into()),
        Output::Sniff(leg) => said.push(format!("sniff {leg:?}")),
        Output::Splice(leg) => said.push(format!("splice {leg:?}")),
        Output::CloseData(leg) => said.push(format!("close {leg:?}")),
        Output::ResetData(leg) => said.push(format!("reset {leg:?}")),
        Output::Begin(begin) => said.push(format!(
            "begin {} {} {:?}{}{}",
            begin.verb.as_str(),
            begin.name.escape_ascii(),
            begin.source,
            if begin.restart > 0 { format!(" from {}", begin.restart) } else { String::new() },
            match (begin.inspected, begin.private) {
                (true, false) => "",
                (false, false) => " unscanned",
                (true, true) => " private",
                (false, true) => " unscanned private",
            }
        )),
        Output::End(outcome) => said.push(format!("end {}", outcome.as_str())),
        Output::Note(note) => match &**note {
            Note::User(user) => said.push(format!("user {}", user.escape_ascii())),
            Note::Impatient(after) => said.push(format!("impatient {}", after.as_secs())),
            Note::Anomaly { name, .. } => said.push(format!("anomaly {name}")),
            Note::Denied { command, what, .. } => said.push(format!(
                "denied {} {}",
                command.as_deref().unwrap_or(b"login").escape_ascii(),
                what.escape_ascii()
            )),
        },
        Output::Secure => said.push("secure".into()),
        Output::Clear => said.push("clear".into()),
        Output::Protect(private) => said.push(format!("protect {private}")),
        Output::Blind => said.push("blind".into()),
        Output::Close => said.push("CLOSE".into()),
        Output::Reset => said.push("RESET".into()),
    }
}

type Script<'a> = &'a [(&'a str, &'a [&'a str])];

fn run(mut rig: Rig, script: Script<'_>, cut: Cut) {
    for (step, expect) in script {
        rig.step(step, cut);
        assert_eq!(rig.said(), *expect, "after {step:?}, {cut:?}");
    }
}

fn check_with(client: &str, dialled: &str, tls: Tls, script: Script<'_>) {
    check_in(client, dialled, &settings(tls), script);
}

fn check_in(client: &str, dialled: &str, settings: &Settings, script: Script<'_>) {
    let longest = script.iter().map(|(step, _)| step.len()).max().unwrap_or(0);
    let cuts = (0..longest).map(Cut::After);
    for cut in [Cut::Whole, Cut::Bytes].into_iter().chain(cuts) {
        run(Rig::with(client, dialled, settings.clone()), script, cut);
    }
}

/// An IPv4 session after its greeting.
fn check(script: Script<'_>) {
    let mut all: Vec<(&str, &[&str])> = vec![("s 220 ready", &["c 220 ready"])];
    all.extend_from_slice(script);
    check_with(CLIENT4, SERVER4, Tls::Pass, &all);
}

fn check_v6(script: Script<'_>) {
    let mut all: Vec<(&str, &[&str])> = vec![("s 220 ready", &["c 220 ready"])];
    all.extend_from_slice(script);
    check_with(CLIENT6, SERVER6, Tls::Pass, &all);
}

#[test]
fn the_dialogue_is_relayed() {
    check_with(
        CLIENT4,
        SERVER4,
        Tls::Pass,
        &[
            // What the client says before the greeting waits for it.
            ("c USER joe", &[]),
            ("s 120 soon", &[]),
            (
                "s 220-Hello¶ 220 inside¶220 there",
                &["c 220-Hello", "c  220 inside", "c 220 there", "user joe", "s USER joe"],
            ),
            ("s 331 Password", &["c 331 Password"]),
            ("c PASS a b", &["s PASS a b"]),
            ("s 230 in", &["c 230 in"]),
            ("c rnfr  x\u{e9}", &["s rnfr  x\\xc3\\xa9"]),
            ("s 350 go on", &["c 350 go on"]),
            ("c QUIT", &["s QUIT"]),
            ("s 221 bye", &["c 221 bye"]),
            ("s-closed", &["CLOSE"]),
            ("c NOOP", &[]),
        ],
    );
}

#[test]
fn pipelined_commands_take_turns() {
    check(&[
        ("c NOOP~", &[]),
        ("c ¶TYPE I¶SIZE x", &["s NOOP"]),
        ("s 200 a", &["c 200 a", "s TYPE I"]),
        ("s 200-b¶200 b", &["c 200-b", "c 200 b", "s SIZE x"]),
        ("c-closed", &[]),
        ("s 213 1", &["c 213 1", "CLOSE"]),
    ]);
}

#[test]
fn telnet_and_line_ends() {
    check(&[
        ("c \\xff\\xf4\\xff\\xf2ABOR", &["s ABOR"]),
        ("s 225 nothing", &["c 225 nothing"]),
        ("c NOOP\\x0a~", &["anomaly ftp_bare_lf", "s NOOP"]),
        ("s 200 ok", &["c 200 ok"]),
        ("c NOOP\\x0dSTOR x", &["anomaly ftp_malformed_command", "c 500 Not understood."]),
        ("c SIZE a\\x0d\\x00b\\xff\\xffc", &["s SIZE a\\r\\x00b\\xff\\xffc"]),
        ("s 213 3", &["c 213 3"]),
    ]);
}

#[test]
fn garbage_ends_the_session() {
    let bad =
        ("c \\x16\\x03\\x01", &["anomaly ftp_malformed_command", "c 500 Not understood."][..]);
    let mut script = vec![bad; usize::from(MALFORMED_LIMIT) - 1];
    script.push((bad.0, &["anomaly ftp_malformed_command", "c 421 Too many errors.", "CLOSE"]));
    check(&script);
    let endless = format!("c {}~", "x".repeat(COMMAND_LIMIT));
    let mut rig = Rig::new(CLIENT4, SERVER4, Tls::Pass);
    rig.step("s 220 ready", Cut::Whole);
    rig.said();
    rig.step(&endless, Cut::Whole);
    assert_eq!(rig.said(), ["anomaly ftp_line_too_long", "c 500 Command line too long.", "CLOSE"]);
}

#[test]
fn anomalies_and_backlog_are_bounded() {
    let mut rig = Rig::new(CLIENT4, SERVER4, Tls::Pass);
    // No greeting yet: nothing can be worked off.
    while rig.session.wants_client() {
        rig.step("c NOOP\\x0a~", Cut::Whole);
    }
    assert!(rig.session.lines.buffered().len() <= BACKLOG_LIMIT + 5);
    assert_eq!(rig.session.queue.len(), QUEUE_LIMIT);
    let mut long = Rig::new(CLIENT4, SERVER4, Tls::Pass);
    while long.session.wants_client() {
        long.step(&format!("c SIZE {}", "x".repeat(4096)), Cut::Whole);
    }
    assert!(long.session.queued < QUEUE_BYTES_LIMIT + COMMAND_LIMIT);
    assert_eq!(long.session.queued, long.session.queue.iter().map(Queued::len).sum::<usize>());
    rig.step("s 220 ready", Cut::Whole);
    for _ in 0..100 {
        rig.step("s 200 ok", Cut::Whole);
    }
    let anomalies = rig.said().iter().filter(|line| line.starts_with("anomaly")).count();
    assert_eq!(anomalies, 32);
}

#[test]
fn a_reply_without_end_ends_the_session() {
    let mut rig = Rig::new(CLIENT4, SERVER4, Tls::Pass);
    rig.step(&format!("s 220-{}~", "x".repeat(20_000)), Cut::Whole);
    let last = ["anomaly ftp_reply_too_long", "c 421 The server's reply is too long.", "CLOSE"];
    assert_eq!(rig.said(), last);
}

#[test]
fn one_reply_to_each_command() {
    let stray = &["anomaly ftp_unexpected_reply"][..];
    check(&[
        ("s 227 Entering Passive Mode (192,0,2,9,4,1)", stray),
        ("s 220 again", stray),
        ("c PWD", &["s PWD"]),
        ("s 150 soon", &[]),
        ("s 150-soon¶150 soon", &[]),
        ("s 200x¶229y (|||9|)", &["anomaly ftp_malformed_reply", "anomaly ftp_malformed_reply"]),
        ("s 257 \"/\"\\x0d229 (|||9|)", &["c 257 \\\"/\\\" 229 (|||9|)"]),
    ]);
    // The address would be taken for the answer to the PASV behind it.
    let unasked =
        &["anomaly ftp_unasked_address", "c 421 Unexpected answer of the server.", "CLOSE"][..];
    check(&[("c TYPE I", &["s TYPE I"]), ("s 227 (192,0,2,9,4,1)", unasked)]);
    check(&[("c PWD", &["s PWD"]), ("s 229-x¶229 (|||9|)", unasked)]);
}

#[test]
fn only_a_refusal_answers_for_the_servers_address() {
    check(&[
        ("c PASV", &["listen Client", "s PASV"]),
        ("! listening client 5000", &[]),
        ("s 300 (192,0,2,9,4,1)", &["anomaly ftp_passive_reply", "s EPSV"]),
        ("s 300 (192,0,2,9,4,1)", &["anomaly ftp_passive_reply", "listen Upstream"]),
        ("! listening upstream 5001", &["s PORT 10,0,0,1,19,137"]),
        (
            "s 300 (192,0,2,9,4,1)",
            &[
                "anomaly ftp_passive_reply",
                "close Upstream",
                "c 227 Entering Passive Mode (192,0,2,1,19,136).",
            ],
        ),
    ]);
}

#[test]
fn features_that_cannot_be_followed_are_hidden() {
    let feat = "s 211-Features¶ MDTM¶ REST STREAM¶ MODE Z¶ AUTH TLS¶ PROT¶211 End";
    check(&[
        ("c FEAT", &["s FEAT"]),
        (feat, &["c 211-Features", "c  MDTM", "c  AUTH TLS", "c  PROT", "c 211 End"]),
    ]);
    check_with(
        CLIENT4,
        SERVER4,
        Tls::Refuse,
        &[
            ("s 220 hi", &["c 220 hi"]),
            ("c FEAT", &["s FEAT"]),
            (feat, &["c 211-Features", "c  MDTM", "c 211 End"]),
            ("c AUTH TLS", &["c 534 TLS is refused by policy."]),
        ],
    );
}

#[test]
fn what_is_refused_here() {
    check(&[
        ("c REST 10", &["c 502 Restart positions are not available."]),
        ("c REST 0", &["s REST 0"]),
        ("s 350 ok", &["c 350 ok"]),
        ("c REST +0", &["c 501 Not a restart position."]),
        ("c APPE x", &["c 502 Appending is not available."]),
        ("c MODE z", &["c 504 Only MODE S is available."]),
        ("c MODE s", &["s MODE s"]),
        ("s 200 ok", &["c 200 ok"]),
        ("c STRU P", &["c 504 Only STRU F is available."]),
        ("c TYPE E", &["c 504 Only TYPE A, TYPE I and TYPE L 8 are available."]),
        ("c type l 36", &["c 504 Only TYPE A, TYPE I and TYPE L 8 are available."]),
        ("c TYPE L 8", &["s TYPE L 8"]),
        ("s 200 ok", &["c 200 ok"]),
        ("c TYPE A N", &["s TYPE A N"]),
        ("s 200 ok", &["c 200 ok"]),
        ("c TYPE", &["s TYPE"]),
        ("s 501 which?", &["c 501 which?"]),
        ("c THMB JPG 10 10 x", &["c 502 Not available through this gateway."]),
        ("c LPSV", &["c 502 Not available through this gateway."]),
        ("c RANG 0 10", &["c 502 Not available through this gateway."]),
        ("c spas", &["c 502 Not available through this gateway."]),
        ("c COMB whole part1 part2", &["c 502 Not available through this gateway."]),
        ("c PASVX", &["anomaly ftp_malformed_command", "c 500 Not understood."]),
        ("c AUTH GSSAPI", &["c 504 Unknown security mechanism."]),
        ("c RETR x", &["c 425 Use PORT or PASV first."]),
        ("c STOR x", &["c 425 Use PORT or PASV first."]),
    ]);
}

#[test]
fn tls_is_relayed_blindly_after_the_servers_234() {
    check(&[
        ("c AUTH TLS", &["s AUTH TLS"]),
        ("s 431 no", &["c 431 no"]),
        ("c auth tls", &["s auth tls"]),
        ("s 234 go", &["c 234 go", "blind"]),
        ("c anything", &[]),
    ]);
    check(&[
        ("c AUTH TLS¶USER x", &["s AUTH TLS"]),
        ("s 234 go", &["c 234 go", "anomaly ftp_plaintext_behind_auth", "RESET"]),
    ]);
    assert!(is_tls_record(b"") && is_tls_record(b"\x16\x03\x01") && is_tls_record(b"\x15\x03"));
    assert!(!is_tls_record(b"USER") && !is_tls_record(b"\x16\x02"));
}

#[test]
fn goodbyes() {
    check(&[("s-closed", &["CLOSE"])]);
    check(&[("c-closed", &["CLOSE"])]);
    check(&[("s 421 timeout", &["c 421 timeout"]), ("s-closed", &["CLOSE"])]);
    check(&[("s 421 timeout", &["c 421 timeout"]), ("+ 30", &["CLOSE"])]);
    check(&[
        ("c NOOP", &["s NOOP"]),
        ("s-closed", &["c 421 The server closed the connection.", "CLOSE"]),
    ]);
    check(&[("drain", &["c 421 Service is shutting down.", "CLOSE"])]);
    check(&[("+ 3600", &["c 421 Timeout.", "CLOSE"])]);
    check(&[("c NOOP", &["s NOOP"]), ("+ 3600", &["c 421 The server does not answer.", "CLOSE"])]);
    check(&[
        ("c NOOP", &["s NOOP"]),
        ("c-closed", &[]),
        ("+ 30", &["c 421 The server does not answer.", "CLOSE"]),
    ]);
    check_with(
        CLIENT4,
        SERVER4,
        Tls::Pass,
        &[("s 421 Too many users", &["c 421 Too many users"]), ("s-closed", &["CLOSE"])],
    );
    check_with(
        CLIENT4,
        SERVER4,
        Tls::Pass,
        &[("+ 300", &["c 421 The server does not answer.", "CLOSE"])],
    );
}

//! What the fuzz targets for SMTP check. An ordinary test (`tests/smtp_corpus.rs`) runs the same on
//! the committed corpus.
//!
//! Every function takes arbitrary bytes and panics when an invariant does not hold.

use std::sync::Arc;
use std::time::{Duration, Instant};

use vscan_proto::smtp::command::Command;
use vscan_proto::smtp::data::{Decoder, Unstuffer};
use vscan_proto::smtp::reply::{EhloFilter, HIDDEN_EXTENSIONS, Offer, ReplyLine, compose};
use vscan_proto::smtp::{Config, Output, Ruling, Secured, Session, StartTls};

/// Framing: the message, its end and the marks are those of the definition, wherever it is cut.
pub(crate) fn data(data: &[u8]) {
    let (size, stream) = data.split_first().map_or((1, data), |(first, rest)| (*first, rest));
    let end =
        (0..stream.len()).find(|&at| line_start(stream, at) && stream[at..].starts_with(b".\r\n"));
    let text = &stream[..end.unwrap_or(stream.len())];
    let mut decoder = Decoder::new();
    let (mut message, mut used, mut ended) = (Vec::new(), 0, false);
    for chunk in stream.chunks(usize::from(size % 32) + 1) {
        let decoded = decoder.decode(chunk);
        message.extend_from_slice(decoded.carry);
        message.extend_from_slice(decoded.body);
        used += decoded.consumed;
        ended = decoded.end;
        if ended {
            break;
        }
    }
    assert_eq!(ended, end.is_some());
    assert_eq!(used, end.map_or(stream.len(), |end| end + 3));
    if ended {
        assert_eq!(message, text);
    } else {
        // At most a dot and a CR may be the beginning of the end.
        assert!(text.starts_with(&message) && text.len() - message.len() <= 2);
        assert!(b".\r\n".starts_with(&text[message.len()..]));
    }
    let dots = || (0..message.len()).filter(|&at| text[at] == b'.');
    assert_eq!(decoder.stuffed(), dots().any(|at| line_start(text, at)));
    assert_eq!(decoder.look_alike(), dots().any(|at| is_look_alike(text, at)));

    let mut unstuffer = Unstuffer::new();
    let mut plain = Vec::new();
    for chunk in message.chunks(usize::from(size / 32) + 1) {
        unstuffer.unstuff(chunk, |piece| plain.extend_from_slice(piece));
    }
    let expect = (0..message.len()).filter(|&at| message[at] != b'.' || !line_start(&message, at));
    assert_eq!(plain, expect.map(|at| message[at]).collect::<Vec<_>>());
}

fn line_start(text: &[u8], at: usize) -> bool {
    at == 0 || text[..at].ends_with(b"\r\n")
}

fn is_look_alike(text: &[u8], dot: usize) -> bool {
    let before = text[..dot].iter().rev().find(|byte| **byte != 0);
    let after = text[dot + 1..].iter().find(|byte| **byte != 0);
    matches!(before, None | Some(b'\r' | b'\n')) && matches!(after, Some(b'\r' | b'\n'))
}

/// Command lines: what is taken out of them is a part of them.
pub(crate) fn command(data: &[u8]) {
    let command = Command::parse(data);
    assert!(command.argument.len() <= data.len());
    assert_eq!(command.argument, command.argument.trim_ascii());
    if let Some(path) = command.path() {
        assert!(path.len() < data.len());
    }
    if command.size().is_some() {
        assert!(data.len() > 5);
    }
    command.chunk();
}

/// Replies: an EHLO answer keeps its shape and loses what is hidden, nothing else.
pub(crate) fn reply(data: &[u8]) {
    if let Some(line) = ReplyLine::parse(data) {
        assert!((200..600).contains(&line.code));
    }
    let hide = ["DSN".to_owned()];
    let even = data.len().is_multiple_of(2);
    let filter = EhloFilter {
        hide_tls: even,
        add_tls: !even,
        two_sessions: data.len().is_multiple_of(3),
        hide_require_tls: even,
        hide: &hide,
        max_size: 1000,
    };
    let out = filter.apply(data);
    assert_eq!(Offer::parse(&out).chunking, Offer::parse(data).chunking);
    assert!(Offer::parse(&out).size.is_none_or(|size| size <= 1000));
    for line in out.split_inclusive(|byte| *byte == b'\n').skip(1) {
        let text = line.get(4..).unwrap_or_default().trim_ascii();
        for name in HIDDEN_EXTENSIONS.iter().chain(&["DSN"]) {
            let rest = text.get(..name.len()).filter(|w| w.eq_ignore_ascii_case(name.as_bytes()));
            let next = rest.and_then(|_| text.get(name.len()));
            assert!(rest.is_none() || next.is_some_and(|byte| !b" =\t".contains(byte)));
        }
    }
    // What is filtered needs no filter.
    assert_eq!(filter.apply(&out), out);
    let composed = compose(550, "5.7.1", &String::from_utf8_lossy(data));
    assert!(composed.len() <= 512 && composed.ends_with(b"\r\n"));
    assert!(composed[..composed.len() - 2].iter().all(|byte| (b' '..=b'~').contains(byte)));
}

/// Sessions: steps of one byte that says what happens and, where bytes are sent, one for how many.
///
/// However the peers behave, the server gets a message only after a ruling that let it pass, the
/// machine stays within its bounds, and says one last thing at most.
pub(crate) fn session(data: &[u8]) {
    let mut now = Instant::now();
    let starttls = match data.len() % 4 {
        0 => StartTls::Open { always: true, at_once: data.len() % 8 < 4 },
        1 => StartTls::Open { always: false, at_once: data.len() % 8 < 4 },
        _ => StartTls::Pass,
    };
    let config = Config { starttls, hold_max: 4096, lmtp: true, ..Config::default() };
    let mut bench = Bench {
        session: Session::new(Arc::new(config), now),
        early: Vec::new(),
        checking: false,
        passed: false,
        sending: false,
        last: false,
        stored: 0,
        treated: None,
        now,
    };
    let mut rest = data;
    while let Some((&step, tail)) = rest.split_first() {
        rest = tail;
        match step % 16 {
            0..=3 => {
                let bytes = take(&mut rest);
                bench.early.extend_from_slice(bytes);
            }
            4..=7 => bench.session.handle_upstream(now, take(&mut rest)),
            8 => {
                bench.passed = bench.checking;
                bench.treated = (step >= 128).then_some(u64::from(step));
                bench.session.handle_ruling(match bench.treated {
                    Some(size) => Ruling::Deliver { size },
                    None => Ruling::Pass,
                });
            }
            9 => bench.session.handle_ruling(Ruling::Infected { name: "x".into() }),
            10 if bench.sending => {
                bench.sending = false;
                bench.session.handle_message_sent();
            }
            10 | 11 => {
                now += Duration::from_secs(u64::from(step));
                bench.now = now;
                bench.session.handle_timeout(now);
            }
            12 => bench.session.handle_spool_failed(),
            13 if bench.early.is_empty() => bench.session.handle_client_eof(),
            13 => bench.session.handle_client_lost(),
            14 => bench.session.handle_upstream_eof(),
            _ => bench.session.handle_upstream_lost(),
        }
        bench.drain();
        bench.feed(now);
    }
}

struct Bench {
    session: Session,
    early: Vec<u8>,
    checking: bool,
    passed: bool,
    sending: bool,
    last: bool,
    /// Bytes of the message in hand that were handed out.
    stored: u64,
    /// Size of the one that is delivered instead.
    treated: Option<u64>,
    now: Instant,
}

impl Bench {
    fn feed(&mut self, now: Instant) {
        while !self.early.is_empty() && self.session.wants_client() {
            let taken = self.session.handle_client(now, &self.early);
            assert!(taken.consumed > 0 && taken.consumed <= self.early.len());
            assert!(taken.message.carry.len() + taken.message.body.len() <= taken.consumed + 2);
            self.stored += (taken.message.carry.len() + taken.message.body.len()) as u64;
            assert!(self.stored <= 4096 + 256, "more than hold_max is handed out");
            self.early.drain(..taken.consumed);
            self.drain();
        }
    }

    fn drain(&mut self) {
        while let Some(output) = self.session.poll_output() {
            match output {
                Output::Inspect(_) => {
                    self.checking = true;
                    self.passed = false;
                }
                Output::SendMessage { .. } => {
                    assert!(self.passed, "sent without a ruling");
                    self.sending = true;
                }
                Output::Finished(_) => {
                    (self.checking, self.passed, self.sending) = (false, false, false);
                    self.stored = 0;
                }
                Output::Blind | Output::Close | Output::CloseClient | Output::Reset => {
                    assert!(!self.last, "two last words");
                    self.last = true;
                }
                Output::ToClient(bytes) => {
                    // A reply of its own for each recipient of an LMTP message.
                    assert!(bytes.len() < 1 << 18);
                    self.session.handle_client_written();
                }
                Output::ToUpstream(bytes) => {
                    assert!(bytes.len() < 1 << 16);
                    // The machine's own chunk: its length is that of what follows.
                    if bytes.starts_with(b"BDAT ") && self.passed {
                        let expect =
                            format!("BDAT {} LAST\r\n", self.treated.unwrap_or(self.stored));
                        assert_eq!(bytes, expect.as_bytes());
                    }
                }
                Output::Discard => self.stored = 0,
                Output::Secure(_) if self.early.is_empty() => {
                    let hello = self.session.hello();
                    let secured =
                        Secured { trusted: self.stored == 0, greeted: hello.len() % 2 == 1 };
                    self.session.handle_secured(self.now, secured);
                    assert!(self.session.envelope().is_none(), "a transaction from before TLS");
                }
                Output::Secure(_) => self.session.handle_injection(),
                Output::Sender(_)
                | Output::Denied { .. }
                | Output::Anomaly(_)
                | Output::ShutdownUpstream => {}
            }
        }
    }
}

/// A length in one byte, and as many bytes.
fn take<'a>(rest: &mut &'a [u8]) -> &'a [u8] {
    let Some((&length, tail)) = rest.split_first() else { return &[] };
    let (bytes, tail) = tail.split_at(tail.len().min(usize::from(length)));
    *rest = tail;
    bytes
}

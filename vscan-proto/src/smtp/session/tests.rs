//! Transcripts. Each is run whole, with every input split at every offset, and byte by byte.

use super::*;

mod chunks;
mod lmtp;
mod message;
mod pair;
mod permit;
mod relay;
mod starttls;

/// One thing that happens to the session.
#[derive(Debug, Clone)]
enum Step {
    /// The client sends.
    C(Vec<u8>),
    /// The server sends.
    S(Vec<u8>),
    ClientEof,
    ClientLost,
    UpstreamEof,
    UpstreamLost,
    Ruled(Ruling),
    /// The driver has written the message.
    Sent,
    NoRoom,
    /// The driver has made the handshakes; whether the server is believed.
    Handshakes(bool),
    /// The same with a server that is believed, to which it has said EHLO.
    Greeted,
    Drain,
    /// Seconds pass.
    Wait(u64),
}
use Step::*;

fn c(text: impl AsRef<[u8]>) -> Step {
    C(text.as_ref().to_vec())
}

fn s(text: impl AsRef<[u8]>) -> Step {
    S(text.as_ref().to_vec())
}

fn pass() -> Step {
    Ruled(Ruling::Pass)
}

fn infected() -> Step {
    Ruled(Ruling::Infected { name: "EICAR".into() })
}

/// A driver without sockets: what the session said, and what it still has to be given.
struct Bench {
    session: Session,
    now: Instant,
    held: Vec<u8>,
    client_eof: bool,
    client: Vec<u8>,
    upstream: Vec<u8>,
    message: Vec<u8>,
    /// What follows the message that is being sent.
    end: &'static [u8],
    actions: Vec<String>,
    /// All of it in order: `<` to the client, `>` to the server, `!` actions.
    log: Vec<String>,
}

impl Bench {
    fn new(config: Config) -> Self {
        let now = Instant::now();
        Self {
            session: Session::new(Arc::new(config), now),
            now,
            held: Vec::new(),
            client_eof: false,
            client: Vec::new(),
            upstream: Vec::new(),
            message: Vec::new(),
            end: b"",
            actions: Vec::new(),
            log: Vec::new(),
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            C(bytes) => self.held.extend_from_slice(bytes),
            S(bytes) => self.session.handle_upstream(self.now, bytes),
            ClientEof => self.client_eof = true,
            ClientLost => self.session.handle_client_lost(),
            UpstreamEof => self.session.handle_upstream_eof(),
            UpstreamLost => self.session.handle_upstream_lost(),
            Ruled(ruling) => self.session.handle_ruling(ruling.clone()),
            Sent => {
                self.upstream.extend_from_slice(&self.message);
                self.upstream.extend_from_slice(self.end);
                self.log.push("> [message]".into());
                self.session.handle_message_sent();
            }
            Drain => self.session.handle_drain(),
            NoRoom => self.session.handle_spool_failed(),
            Handshakes(trusted) => {
                self.log.push("= TLS".into());
                let secured = Secured { trusted: *trusted, greeted: false };
                self.session.handle_secured(self.now, secured);
            }
            Greeted => {
                self.log.push("= TLS".into());
                self.session.handle_secured(self.now, Secured { trusted: true, greeted: true });
            }
            Wait(seconds) => {
                let until = self.now + Duration::from_secs(*seconds);
                while let Some(due) = self.session.poll_timeout().filter(|due| *due <= until) {
                    self.now = due.max(self.now);
                    self.session.handle_timeout(self.now);
                    self.drain();
                }
                self.now = until;
            }
        }
        self.drain();
        self.feed_client();
        if self.client_eof && self.held.is_empty() {
            self.client_eof = false;
            self.session.handle_client_eof();
            self.drain();
        }
    }

    fn feed_client(&mut self) {
        while !self.held.is_empty() && self.session.wants_client() {
            let taken = self.session.handle_client(self.now, &self.held);
            self.message.extend_from_slice(taken.message.carry);
            self.message.extend_from_slice(taken.message.body);
            assert!(taken.consumed > 0, "wants the client and takes nothing");
            self.held.drain(..taken.consumed);
            self.drain();
        }
    }

    fn drain(&mut self) {
        while let Some(output) = self.session.poll_output() {
            match output {
                Output::ToClient(bytes) => {
                    self.lines("<", &bytes);
                    self.client.extend(bytes);
                    self.session.handle_client_written();
                }
                Output::ToUpstream(bytes) => {
                    self.lines(">", &bytes);
                    self.upstream.extend(bytes);
                }
                other => {
                    let text = match other {
                        Output::Sender(sender) => format!("sender <{}>", sender.escape_ascii()),
                        Output::Anomaly(anomaly) => anomaly.name().to_owned(),
                        Output::Finished(f) => format!(
                            "finished {} {} from {} to {} {}{}",
                            f.outcome.name(),
                            f.code.map_or("-".into(), |code| code.to_string()),
                            f.sender.escape_ascii(),
                            f.recipients,
                            f.size,
                            match f.delivered {
                                n if n == 0 || n == f.recipients => String::new(),
                                n => format!(" for {n}"),
                            }
                        ),
                        Output::Inspect(Form::Chunked) => "Inspect a chunked one".to_owned(),
                        Output::Inspect(form) => {
                            format!("Inspect {{ stuffed: {} }}", form == Form::Stuffed)
                        }
                        Output::SendMessage { end } => {
                            self.end = end;
                            "SendMessage".to_owned()
                        }
                        other => format!("{other:?}"),
                    };
                    self.log.push(format!("! {text}"));
                    self.actions.push(text);
                }
            }
        }
    }

    fn lines(&mut self, mark: &str, bytes: &[u8]) {
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            let line = line.strip_suffix(b"\r\n").unwrap_or(line);
            let line = format!("{mark} {}", line.escape_ascii());
            self.log.push(line.trim_end().to_owned());
        }
    }
}

/// Runs the steps and compares the log with `expect`, a line each; then runs them cut up and
/// compares what each leg got.
fn check_with(config: Config, steps: &[Step], expect: &str) {
    let mut whole = Bench::new(config.clone());
    steps.iter().for_each(|step| whole.step(step));
    let expect: Vec<&str> = expect.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    assert_eq!(whole.log, expect);

    let cut_one = (0..steps.len()).flat_map(|index| {
        let (C(bytes) | S(bytes)) = &steps[index] else { return Vec::new() };
        (1..bytes.len())
            .map(|at| cut(steps, |i, _| if i == index { vec![at] } else { vec![] }))
            .collect()
    });
    let bytewise = cut(steps, |_, bytes| (1..bytes.len()).collect());
    for steps in cut_one.chain([bytewise]) {
        let mut parts = Bench::new(config.clone());
        steps.iter().for_each(|step| parts.step(step));
        assert_eq!(
            parts.client.escape_ascii().to_string(),
            whole.client.escape_ascii().to_string()
        );
        assert_eq!(
            parts.upstream.escape_ascii().to_string(),
            whole.upstream.escape_ascii().to_string()
        );
        assert_eq!(parts.actions, whole.actions);
    }
}

fn cut(steps: &[Step], at: impl Fn(usize, &[u8]) -> Vec<usize>) -> Vec<Step> {
    let mut out = Vec::new();
    for (index, step) in steps.iter().enumerate() {
        let (C(bytes) | S(bytes)) = step else {
            out.push(step.clone());
            continue;
        };
        let mut from = 0;
        for to in at(index, bytes).into_iter().chain([bytes.len()]) {
            let piece = bytes[from..to].to_vec();
            out.push(if matches!(step, C(_)) { C(piece) } else { S(piece) });
            from = to;
        }
    }
    out
}

fn check(steps: &[Step], expect: &str) {
    check_with(two_minutes(), steps, expect);
}

/// NOOPs every two minutes.
fn two_minutes() -> Config {
    Config { keepalive: Duration::from_secs(120), ..Config::default() }
}

/// A session in which the server has accepted a sender and a recipient; see [`OPENED`].
fn opened() -> Vec<Step> {
    vec![
        s("220 mx\r\n"),
        c("EHLO c\r\n"),
        s("250 mx\r\n"),
        c("MAIL FROM:<a@b>\r\n"),
        s("250 ok\r\n"),
        c("RCPT TO:<c@d>\r\n"),
        s("250 ok\r\n"),
    ]
}

/// The log of [`opened`].
const OPENED: &str = "
    < 220 mx
    > EHLO c
    < 250 mx
    > MAIL FROM:<a@b>
    < 250 ok
    ! sender <a@b>
    > RCPT TO:<c@d>
    < 250 ok
";

/// The same, with the message `Hi` received.
fn received() -> Vec<Step> {
    [opened(), vec![c("DATA\r\n"), c("Hi\r\n.\r\n")]].concat()
}

/// The log of [`received`].
fn received_log() -> String {
    format!("{OPENED}\n< 354 End data with <CR><LF>.<CR><LF>\n! Inspect {{ stuffed: false }}\n")
}

/// The same, with the message passed and sent.
fn sent() -> Vec<Step> {
    [received(), vec![pass(), s("354 go\r\n"), Sent]].concat()
}

/// The log of [`sent`].
fn sent_log() -> String {
    format!("{}> DATA\n! SendMessage\n> [message]\n", received_log())
}

fn then(before: &str, after: &str) -> String {
    format!("{before}\n{after}")
}

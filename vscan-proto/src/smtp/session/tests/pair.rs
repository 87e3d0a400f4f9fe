//! Both ends with a fake clock, in any order: what the client sends arrives, once, unchanged.

use proptest::prelude::*;

use super::*;

/// A server that follows RFC 5321 byte by byte, without PIPELINING of its own making.
#[derive(Default)]
struct Server {
    input: Vec<u8>,
    in_data: bool,
    /// Bytes of a chunk that are to come.
    chunk: Option<usize>,
    recipients: usize,
    output: Vec<u8>,
    accepted: Vec<Vec<u8>>,
}

impl Server {
    fn read(&mut self, bytes: &[u8]) {
        self.input.extend_from_slice(bytes);
        loop {
            if let Some(length) = self.chunk {
                if self.input.len() < length {
                    return;
                }
                self.chunk = None;
                self.finish(length, length);
                continue;
            }
            let end: &[u8] = if self.in_data { b"\r\n.\r\n" } else { b"\r\n" };
            let immediate = self.in_data && self.input.starts_with(b".\r\n");
            let Some(at) = self.input.windows(end.len()).position(|window| window == end) else {
                if !immediate {
                    return;
                }
                self.finish(0, 3);
                continue;
            };
            if immediate {
                self.finish(0, 3);
            } else if self.in_data {
                self.finish(at + 2, at + 5);
            } else {
                let line: Vec<u8> = self.input.drain(..at + 2).collect();
                self.command(&line);
            }
        }
    }

    fn finish(&mut self, message: usize, end: usize) {
        self.accepted.push(self.input[..message].to_vec());
        self.input.drain(..end);
        self.in_data = false;
        self.recipients = 0;
        self.output.extend_from_slice(b"250 queued\r\n");
    }

    fn command(&mut self, line: &[u8]) {
        let reply: &[u8] = match &line[..4] {
            b"RCPT" if line.starts_with(b"RCPT TO:<bad") => b"550 no\r\n",
            b"RCPT" => {
                self.recipients += 1;
                b"250 ok\r\n"
            }
            b"BDAT" => {
                let text = std::str::from_utf8(line).unwrap();
                assert!(text.ends_with(" LAST\r\n") && self.recipients > 0, "{text}");
                self.chunk = text.split(' ').nth(1).map(|length| length.parse().unwrap());
                b""
            }
            b"EHLO" => b"250-mx\r\n250 CHUNKING\r\n",
            b"DATA" if self.recipients == 0 => b"503 no recipients\r\n",
            b"DATA" => {
                self.in_data = true;
                b"354 go\r\n"
            }
            b"RSET" | b"MAIL" => {
                self.recipients = 0;
                b"250-o\r\n250 k\r\n"
            }
            _ => b"250 ok\r\n",
        };
        self.output.extend_from_slice(reply);
    }
}

#[derive(Debug, Clone)]
struct Mail {
    body: Vec<u8>,
    bad_recipients: usize,
    infected: bool,
    /// Sent in chunks of this size.
    chunk: Option<usize>,
}

fn mail() -> impl Strategy<Value = Mail> {
    let piece = prop_oneof![
        Just(b"\r\n".to_vec()),
        Just(b"\r\n..".to_vec()),
        Just(b"\r\n.x".to_vec()),
        proptest::collection::vec(
            any::<u8>().prop_filter("no newline", |b| !b"\r\n".contains(b)),
            0..40
        ),
    ];
    (
        proptest::collection::vec(piece, 0..8),
        0usize..3,
        any::<bool>(),
        proptest::option::of(1usize..60),
    )
        .prop_map(|(pieces, bad_recipients, infected, chunk)| {
            let mut body = pieces.concat();
            if !body.is_empty() {
                if body[0] == b'.' {
                    body.insert(0, b'.');
                }
                body.extend_from_slice(b"\r\n");
            }
            Mail { body, bad_recipients, infected, chunk }
        })
}

/// What a client with PIPELINING sends, in the groups between which it waits.
fn groups(mails: &[Mail]) -> Vec<Vec<u8>> {
    let mut groups = vec![b"EHLO c\r\n".to_vec()];
    let mut group = Vec::new();
    for mail in mails {
        group.extend_from_slice(b"MAIL FROM:<a@b>\r\n");
        group.extend_from_slice(&b"RCPT TO:<bad@x>\r\n".repeat(mail.bad_recipients));
        group.extend_from_slice(b"RCPT TO:<c@d>\r\n");
        if let Some(size) = mail.chunk {
            for piece in mail.body.chunks(size) {
                group.extend_from_slice(format!("BDAT {}\r\n", piece.len()).as_bytes());
                group.extend_from_slice(piece);
            }
            group.extend_from_slice(b"BDAT 0 LAST\r\n");
            continue;
        }
        group.extend_from_slice(b"DATA\r\n");
        groups.push(std::mem::take(&mut group));
        group.extend_from_slice(&mail.body);
        group.extend_from_slice(b".\r\n");
    }
    group.extend_from_slice(b"QUIT\r\n");
    groups.push(group);
    groups
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn mails_arrive_once_and_unchanged(
        mails in proptest::collection::vec(mail(), 1..4),
        cuts in proptest::collection::vec(1usize..60, 1..20),
        waits in proptest::collection::vec(0u64..130, 1..8),
    ) {
        let mut bench = Bench::new(Config::default());
        let mut server = Server::default();
        server.output.extend_from_slice(b"220 mx\r\n");
        let mut cuts = cuts.iter().cycle();
        let mut waits = waits.iter().cycle();
        let (mut sent_up, mut inspected, mut shown) = (0, 0, 0);
        let mut replies = 0;
        for group in groups(&mails) {
            let mut rest = &group[..];
            let mut moved = true;
            while moved || !rest.is_empty() {
                moved = false;
                if !rest.is_empty() {
                    let (head, tail) = rest.split_at(rest.len().min(*cuts.next().unwrap()));
                    bench.step(&c(head));
                    rest = tail;
                }
                let up = bench.upstream[sent_up..].to_vec();
                sent_up = bench.upstream.len();
                server.read(&up);
                if !server.output.is_empty() {
                    let length = server.output.len().min(*cuts.next().unwrap());
                    let piece: Vec<u8> = server.output.drain(..length).collect();
                    bench.step(&S(piece));
                    moved = true;
                }
                let actions = bench.actions[shown..].to_vec();
                for action in actions {
                    shown += 1;
                    if action.starts_with("Inspect") {
                        let seconds = Wait(*waits.next().unwrap());
                        bench.step(&seconds);
                        let ruling = if mails[inspected].infected { infected() } else { pass() };
                        prop_assert_eq!(&bench.message, &mails[inspected].body);
                        inspected += 1;
                        bench.step(&ruling);
                        moved = true;
                    } else if action == "SendMessage" {
                        bench.step(&Sent);
                        moved = true;
                    } else if action.starts_with("finished") {
                        bench.message.clear();
                    }
                }
                moved |= sent_up < bench.upstream.len();
            }
            // The client has its replies before it sends the next group.
            let text = String::from_utf8_lossy(&bench.client).into_owned();
            let count = text.lines().filter(|line| line.as_bytes().get(3) == Some(&b' ')).count();
            prop_assert!(count > replies, "no reply to {:?}", group.escape_ascii());
            replies = count;
        }
        let expect: Vec<_> = mails.iter().filter(|mail| !mail.infected).map(|mail| mail.body.clone()).collect();
        prop_assert_eq!(&server.accepted, &expect);
        let blocked = mails.iter().filter(|mail| mail.infected).count();
        prop_assert_eq!(String::from_utf8_lossy(&bench.client).matches("550 5.7.1").count(), blocked);
        prop_assert!(bench.client.ends_with(b"250 ok\r\n"));
        prop_assert_eq!(bench.held.len(), 0);
    }

    #[test]
    fn nothing_makes_it_panic_or_hoard(
        steps in proptest::collection::vec(
            prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..50).prop_map(C),
                proptest::collection::vec(any::<u8>(), 0..50).prop_map(S),
                Just(c("MAIL FROM:<a@b>\r\n")),
                Just(c("RCPT TO:<a@b>\r\n")),
                Just(c("DATA\r\n")),
                Just(c("x\r\n.\r\n")),
                Just(c("EHLO c\r\n")),
                Just(c("LHLO c\r\n")),
                Just(c("BDAT 0\r\n")),
                Just(c("BDAT 3\r\nabc")),
                Just(c("BDAT 9 LAST\r\n")),
                Just(c("RSET\r\n")),
                Just(s("250-x\r\n250 CHUNKING\r\n")),
                Just(Ruled(Ruling::Deliver { size: 7 })),
                Just(c("STARTTLS\r\n")),
                Just(c("AUTH X\r\n")),
                Just(s("250 ok\r\n")),
                Just(s("354 ok\r\n")),
                Just(s("220 ok\r\n")),
                Just(s("421 ok\r\n")),
                Just(pass()),
                Just(infected()),
                Just(Sent),
                Just(NoRoom),
                Just(Drain),
                Just(Wait(100)),
                Just(ClientEof),
                Just(ClientLost),
                Just(UpstreamEof),
                Just(UpstreamLost),
            ],
            0..40,
        ),
    ) {
        let mut bench = Bench::new(Config { lmtp: true, ..Config::default() });
        for step in &steps {
            bench.step(step);
        }
        prop_assert!(bench.session.pending.len() <= 258);
        prop_assert!(bench.session.held_reply.len() <= 16 << 10);
        // A 2xx or a refusal is never invented for a message that has not come to its end.
        let last = bench.actions.iter().filter(|a| ["Close", "CloseClient", "Reset", "Blind"].contains(&a.as_str())).count();
        prop_assert!(last <= 1);
    }
}

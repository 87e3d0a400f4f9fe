//! The driver on real sockets, in one process, with a scanner of a few lines.

use super::*;
use crate::{
    config::{Config, Direction, Protocol},
    gateway::heard_no_more,
    net::{Seqpacket, seqpacket},
    observe::{FlowOpen, Observer},
    quarantine,
    spool::Spool,
};
use std::io::{IoSlice, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Mutex;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::JoinHandle,
};
use vscan_scan::{
    report::{Finding, Report, Verdict},
    wire::{Answer, Content, DATAGRAM_MAX, Request, ToGateway},
};

/// What is found in a message.
const DETECTION: &[u8] = b"EVIL";

/// A message with this in it is never answered for.
const TARPIT: &[u8] = b"TARPIT";

/// A gateway and one session through it.
struct Rig {
    gateway: Arc<Gateway>,
    client: TcpStream,
    server: TcpStream,
    session: JoinHandle<()>,
    /// What the scanner was shown.
    shown: Arc<Mutex<Vec<Vec<u8>>>>,
    _directory: tempfile::TempDir,
}

impl Rig {
    async fn new(change: impl FnOnce(&mut Config)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut config = Config::defaults();
        config.spool.hold_max = 16 << 20;
        change(&mut config);
        let spool = &config.spool;
        let spool = Spool::new(directory.path(), spool.memory, spool.disk, spool.hold_max).unwrap();
        let store = quarantine::Store::open(&directory.path().join("q"), config.quarantine.clone())
            .unwrap();
        let gateway = Gateway::new(config, Observer::without_events(), spool, store);
        let (shown, scanner) = scanner();
        let rules = crate::scanner::process::Rules { version: "test".into(), ..Default::default() };
        gateway.scanner.attach(scanner, rules).unwrap();
        let gateway = Arc::new(gateway);
        let (client, client_leg) = connected().await;
        let (server, upstream) = connected().await;
        for leg in [&client_leg, &upstream] {
            net::close::prepare_leg(leg).unwrap();
        }
        let address = server.local_addr().unwrap();
        let flow = gateway.observer.flows.open(FlowOpen {
            protocol: Protocol::Smtp,
            client: client.local_addr().unwrap(),
            server: address,
            real_server: address,
            direction: Direction::Inbound,
        });
        let session = tokio::spawn({
            let gateway = Arc::clone(&gateway);
            async move {
                let config = gateway.config();
                let lmtp = config.smtp.speaks_lmtp(24);
                let speaks = Speaks { lmtp, ..Speaks::default() };
                if let Some(closing) =
                    serve(&gateway, &config, &flow, speaks, client_leg, upstream).await
                {
                    closing.closed().await;
                }
            }
        });
        Self { gateway, client, server, session, shown, _directory: directory }
    }

    /// The client says this and the server hears it.
    async fn up(&mut self, text: &[u8]) {
        self.client.write_all(text).await.unwrap();
        expect(&mut self.server, text).await;
    }

    /// The server says this and the client hears it.
    async fn down(&mut self, text: &[u8]) {
        self.server.write_all(text).await.unwrap();
        expect(&mut self.client, text).await;
    }

    /// Greeting, sender, recipient, and DATA, which the server does not see.
    async fn open_mail(&mut self) {
        self.down(b"220 mx\r\n").await;
        self.up(b"EHLO c\r\n").await;
        self.down(b"250 mx\r\n").await;
        self.envelope().await;
    }

    async fn envelope(&mut self) {
        self.client.write_all(b"MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\n").await.unwrap();
        expect(&mut self.server, b"MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\n").await;
        self.server.write_all(b"250 ok\r\n250 ok\r\n").await.unwrap();
        expect(&mut self.client, b"250 ok\r\n250 ok\r\n").await;
        expect(&mut self.client, b"354 End data with <CR><LF>.<CR><LF>\r\n").await;
    }

    /// The message goes to the server as it came.
    async fn delivered(&mut self, message: &[u8]) {
        let wire = [message, b".\r\n"].concat();
        let (client, server) = (&mut self.client, &mut self.server);
        tokio::join!(async { client.write_all(&wire).await.unwrap() }, async {
            expect(server, b"DATA\r\n").await;
            server.write_all(b"354 go\r\n").await.unwrap();
            expect(server, &wire).await;
        });
        self.down(b"250 queued\r\n").await;
    }

    async fn quit(mut self) {
        self.up(b"QUIT\r\n").await;
        self.down(b"221 bye\r\n").await;
        drop(self.server);
        assert_eq!(self.client.read(&mut [0]).await.unwrap(), 0, "closed in order");
        drop(self.client);
        self.session.await.unwrap();
        assert!(self.gateway.observer.flows.is_empty());
        assert_eq!(self.gateway.spool.used(), (0, 0));
    }

    fn metric(&self, line: &str) -> bool {
        String::from_utf8(self.gateway.observer.metrics.render()).unwrap().contains(line)
    }
}

async fn connected() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (near, far) = tokio::try_join!(TcpStream::connect(address), listener.accept()).unwrap();
    (near, far.0)
}

async fn expect(stream: &mut TcpStream, text: &[u8]) {
    let mut buffer = vec![0; text.len()];
    let read = stream.read_exact(&mut buffer);
    tokio::time::timeout(Duration::from_secs(20), read).await.expect("in time").unwrap();
    assert!(
        buffer == text,
        "got {} for {}",
        buffer[..buffer.len().min(300)].escape_ascii(),
        text[..text.len().min(300)].escape_ascii()
    );
}

/// Reads to the end; none if the connection is reset.
async fn rest(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut all = Vec::new();
    let read = stream.read_to_end(&mut all);
    let read = tokio::time::timeout(Duration::from_secs(20), read).await.expect("in time");
    read.ok().map(|_| all)
}

/// A scanner process with two workers, as far as the gateway can tell.
fn scanner() -> (Arc<Mutex<Vec<Vec<u8>>>>, OwnedFd) {
    let shown = Arc::new(Mutex::new(Vec::new()));
    let (near, far) = seqpacket::pair(DATAGRAM_MAX).unwrap();
    let control = Seqpacket::new(far).unwrap();
    let log = Arc::clone(&shown);
    tokio::spawn(async move {
        for slot in 0..2 {
            let (theirs, ours) = seqpacket::pair(DATAGRAM_MAX).unwrap();
            let announcement = ToGateway::Worker { slot, pid: 1 };
            let announcement = postcard::to_stdvec(&announcement).unwrap();
            control.send(&[IoSlice::new(&announcement)], &[theirs.as_fd()]).await.unwrap();
            tokio::spawn(worker(Seqpacket::new(ours).unwrap(), Arc::clone(&log)));
        }
        // The end of the control socket would be the end of the process.
        while control.receive(&mut vec![0; DATAGRAM_MAX]).await.is_ok_and(|got| got.len > 0) {}
    });
    (shown, near)
}

async fn worker(socket: Seqpacket, shown: Arc<Mutex<Vec<Vec<u8>>>>) {
    let mut buffer = vec![0; DATAGRAM_MAX];
    loop {
        let Ok(mut received) = socket.receive(&mut buffer).await else { return };
        if received.len == 0 {
            return;
        }
        let request: Request = postcard::from_bytes(&buffer[..received.len]).unwrap();
        let bytes = match request.content {
            Content::Inline(bytes) => bytes,
            Content::Descriptor { len } => {
                let mut bytes = Vec::new();
                let file = std::fs::File::from(received.descriptors.pop().unwrap());
                file.take(len).read_to_end(&mut bytes).unwrap();
                bytes
            }
        };
        let holds = |what: &[u8]| bytes.windows(what.len()).any(|window| window == what);
        if holds(TARPIT) {
            continue;
        }
        let mut report = Report { verdict: Verdict::Clean, error: None, ..Report::error("") };
        if holds(DETECTION) {
            report.verdict = Verdict::Infected;
            report.findings =
                vec![Finding { name: "Evil".into(), engine: "test".into(), ..Finding::default() }];
        }
        shown.lock().unwrap().push(bytes);
        let answer = Answer::Report(Box::new(report));
        let response = answer.responses(request.id).unwrap().next().unwrap();
        let answer = postcard::to_stdvec(&response).unwrap();
        socket.send(&[IoSlice::new(&answer)], &[]).await.unwrap();
    }
}

fn message(size: usize) -> Vec<u8> {
    let line = b"..A line that begins with a dot, and \x00\x80\xff bytes in it.\r\nand one that does not\r\n";
    let mut message: Vec<u8> = line.iter().copied().cycle().take(size).collect();
    if !message.is_empty() {
        message.truncate(size - 2);
        // No lone CR, and no lone dot, where it was cut.
        message.extend_from_slice(b"x\r\n");
    }
    message
}

#[tokio::test(flavor = "multi_thread")]
async fn clean_messages_arrive_byte_for_byte() {
    let mut rig = Rig::new(|_| {}).await;
    rig.down(b"220 mx\r\n").await;
    rig.up(b"EHLO c\r\n").await;
    rig.down(b"250 mx\r\n").await;
    // On the heap, in a memfd, on disk; see the spool.
    for size in [0, 100, 60_000, 65_536, 70_000, 1_000_000, 9_000_000] {
        let message = message(size);
        rig.envelope().await;
        rig.delivered(&message).await;
        let shown = rig.shown.lock().unwrap().pop().unwrap();
        let text = message.strip_prefix(b".").unwrap_or(&message);
        let text = String::from_utf8_lossy(text).replace("\r\n..", "\r\n.");
        assert!(String::from_utf8_lossy(&shown) == text, "{size}: dot-stuffing was scanned");
    }
    rig.quit().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_infected_message_is_refused_and_the_session_goes_on() {
    let mut rig = Rig::new(|_| {}).await;
    rig.open_mail().await;
    rig.client.write_all(b"EVIL\r\n.\r\n").await.unwrap();
    expect(&mut rig.client, b"550 5.7.1 Message blocked by vscan: Evil\r\n").await;
    expect(&mut rig.server, b"RSET\r\n").await;
    rig.server.write_all(b"250 reset\r\n").await.unwrap();
    rig.envelope().await;
    rig.delivered(b"good\r\n").await;
    assert!(rig.metric("infected"));
    rig.quit().await;
}

/// Behind EHLO to a server that offers CHUNKING: sender and recipient.
async fn chunking() -> Rig {
    let mut rig = Rig::new(|_| {}).await;
    rig.down(b"220 mx\r\n").await;
    rig.up(b"EHLO c\r\n").await;
    rig.down(b"250-mx\r\n250 CHUNKING\r\n").await;
    rig
}

async fn recipient(rig: &mut Rig) {
    rig.up(b"MAIL FROM:<a@b> BODY=BINARYMIME\r\nRCPT TO:<c@d>\r\n").await;
    rig.down(b"250 ok\r\n250 ok\r\n").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_arrive_as_one_and_byte_for_byte() {
    let mut rig = chunking().await;
    for size in [1, 100, 65_536, 70_000, 1_000_000, 9_000_000] {
        let message: Vec<u8> =
            b"\r\n.\r\n\n.\n\0\xff\r".iter().copied().cycle().take(size).collect();
        recipient(&mut rig).await;
        for chunk in message.chunks(size / 3 + 1) {
            let command = format!("BDAT {}\r\n", chunk.len());
            rig.client.write_all(&[command.as_bytes(), chunk].concat()).await.unwrap();
            let answer = format!("250 2.0.0 {} bytes received\r\n", chunk.len());
            expect(&mut rig.client, answer.as_bytes()).await;
        }
        rig.client.write_all(b"BDAT 0 LAST\r\n").await.unwrap();
        expect(&mut rig.server, format!("BDAT {size} LAST\r\n").as_bytes()).await;
        expect(&mut rig.server, &message).await;
        rig.down(b"250 queued\r\n").await;
        assert!(
            rig.shown.lock().unwrap().pop().unwrap() == message,
            "{size}: not what was scanned"
        );
    }
    recipient(&mut rig).await;
    rig.client.write_all(b"BDAT 2\r\nEVBDAT 2 LAST\r\nIL").await.unwrap();
    expect(&mut rig.client, b"250 2.0.0 2 bytes received\r\n").await;
    expect(&mut rig.client, b"550 5.7.1 Message blocked by vscan: Evil\r\n").await;
    expect(&mut rig.server, b"RSET\r\n").await;
    rig.server.write_all(b"250 reset\r\n").await.unwrap();
    rig.quit().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_lost_in_mid_chunk() {
    let mut rig = chunking().await;
    recipient(&mut rig).await;
    let message = message(9_000_000);
    let command = format!("BDAT {} LAST\r\n", message.len());
    let (client, server) = (&mut rig.client, &mut rig.server);
    tokio::join!(
        async {
            client.write_all(command.as_bytes()).await.unwrap();
            client.write_all(&message).await.unwrap();
        },
        async {
            expect(server, command.as_bytes()).await;
            expect(server, &message[..1000]).await;
        }
    );
    net::abort(rig.server);
    let heard = rest(&mut rig.client).await.expect("closed in order");
    assert_eq!(heard, b"421 4.4.2 Connection to the server lost\r\n");
    drop(rig.client);
    rig.session.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn lmtp_answers_for_each_recipient() {
    let mut rig = Rig::new(|config| config.smtp.lmtp_ports = [24.try_into().unwrap()].into()).await;
    rig.down(b"220 lda\r\n").await;
    rig.up(b"LHLO c\r\n").await;
    rig.down(b"250 lda\r\n").await;
    for (text, refused) in [(&b"good\r\n.\r\n"[..], false), (b"EVIL\r\n.\r\n", true)] {
        let envelope = b"MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nRCPT TO:<e@f>\r\n";
        rig.client.write_all(&[envelope, &b"DATA\r\n"[..]].concat()).await.unwrap();
        expect(&mut rig.server, envelope).await;
        rig.down(b"250 ok\r\n250 ok\r\n250 ok\r\n").await;
        expect(&mut rig.client, b"354 End data with <CR><LF>.<CR><LF>\r\n").await;
        rig.client.write_all(text).await.unwrap();
        if refused {
            let refusal = b"550 5.7.1 Message blocked by vscan: Evil\r\n";
            expect(&mut rig.client, &refusal.repeat(2)).await;
            expect(&mut rig.server, b"RSET\r\n").await;
            rig.server.write_all(b"250 reset\r\n").await.unwrap();
        } else {
            expect(&mut rig.server, b"DATA\r\n").await;
            rig.server.write_all(b"354 go\r\n").await.unwrap();
            expect(&mut rig.server, text).await;
            rig.down(b"250 c\r\n").await;
            rig.down(b"452 e\r\n").await;
        }
    }
    rig.quit().await;
}

/// `E` and `VIL` in different lines' starts: what the receiver reads is what is scanned.
#[tokio::test(flavor = "multi_thread")]
async fn stuffing_hides_nothing() {
    let mut rig = Rig::new(|_| {}).await;
    rig.open_mail().await;
    rig.client.write_all(b"x\r\n.EVIL\r\n.\r\n").await.unwrap();
    expect(&mut rig.client, b"550 5.7.1 Message blocked by vscan: Evil\r\n").await;
    assert_eq!(*rig.shown.lock().unwrap(), [b"x\r\nEVIL\r\n".to_vec()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_in_many_small_segments() {
    let mut rig = Rig::new(|_| {}).await;
    rig.open_mail().await;
    let message = b"a\r\n..\r\n.b\r\n\r\n";
    for byte in [&message[..], b".\r\n"].concat() {
        rig.client.write_all(&[byte]).await.unwrap();
    }
    expect(&mut rig.server, b"DATA\r\n").await;
    rig.server.write_all(b"354 go\r\n").await.unwrap();
    expect(&mut rig.server, message).await;
    expect(&mut rig.server, b".\r\n").await;
    rig.down(b"250 queued\r\n").await;
    rig.quit().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_pipelined_behind_a_message_waits_for_it() {
    let mut rig = Rig::new(|_| {}).await;
    rig.open_mail().await;
    let behind = b"MAIL FROM:<>\r\nRCPT TO:<c@d>\r\nDATA\r\n";
    rig.client.write_all(&[b"one\r\n.\r\n", &behind[..]].concat()).await.unwrap();
    expect(&mut rig.server, b"DATA\r\n").await;
    rig.server.write_all(b"354 go\r\n").await.unwrap();
    expect(&mut rig.server, b"one\r\n.\r\n").await;
    rig.down(b"250 queued\r\n").await;
    expect(&mut rig.server, b"MAIL FROM:<>\r\nRCPT TO:<c@d>\r\n").await;
    rig.server.write_all(b"250 ok\r\n250 ok\r\n").await.unwrap();
    expect(&mut rig.client, b"250 ok\r\n250 ok\r\n354 End data with <CR><LF>.<CR><LF>\r\n").await;
    rig.delivered(b"two\r\n").await;
    rig.quit().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_reset_resets_the_server() {
    let mut rig = Rig::new(|_| {}).await;
    rig.open_mail().await;
    rig.client.write_all(b"half a mess").await.unwrap();
    net::abort(rig.client);
    assert_eq!(rest(&mut rig.server).await, None, "never a clean end");
    rig.session.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_while_its_message_is_scanned() {
    let mut rig = Rig::new(|_| {}).await;
    rig.open_mail().await;
    rig.client.write_all(b"TARPIT\r\n.\r\n").await.unwrap();
    rig.client.shutdown().await.unwrap();
    assert_eq!(rest(&mut rig.server).await.as_deref(), Some(&b""[..]), "neither DATA nor a byte");
    drop(rig.server);
    rig.session.await.unwrap();
    assert_eq!(rig.gateway.spool.used(), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_lost_never_becomes_a_250() {
    for (stage, reset) in [(0, false), (0, true), (1, false), (1, true), (2, false), (2, true)] {
        let mut rig = Rig::new(|_| {}).await;
        rig.open_mail().await;
        let message: &[u8] = if stage == 0 { b"TARPIT\r\n.\r\n" } else { b"good\r\n.\r\n" };
        rig.client.write_all(message).await.unwrap();
        if stage > 0 {
            expect(&mut rig.server, b"DATA\r\n").await;
        }
        if stage > 1 {
            rig.server.write_all(b"354 go\r\n").await.unwrap();
            expect(&mut rig.server, message).await;
        }
        if reset {
            net::abort(rig.server);
        } else {
            drop(rig.server);
        }
        let heard = rest(&mut rig.client).await;
        let heard = heard.expect("closed in order");
        assert_eq!(
            heard.escape_ascii().to_string(),
            r"421 4.4.2 Connection to the server lost\r\n",
            "stage {stage}, reset {reset}"
        );
        drop(rig.client);
        rig.session.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_refuses_in_mid_message() {
    let mut rig = Rig::new(|_| {}).await;
    rig.open_mail().await;
    let wire = [&message(9_000_000)[..], b".\r\n"].concat();
    let (client, server) = (&mut rig.client, &mut rig.server);
    tokio::join!(async { client.write_all(&wire).await.unwrap() }, async {
        expect(server, b"DATA\r\n").await;
        server.write_all(b"354 go\r\n").await.unwrap();
        expect(server, &wire[..1000]).await;
        server.write_all(b"552 too big\r\n").await.unwrap();
    });
    net::abort(rig.server);
    assert_eq!(rest(&mut rig.client).await.as_deref(), Some(&b"552 too big\r\n"[..]));
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_is_relayed_blindly_and_shown_as_such() {
    let mut rig = Rig::new(|_| {}).await;
    rig.down(b"220 mx\r\n").await;
    rig.up(b"STARTTLS\r\n").await;
    rig.down(b"220 go\r\n").await;
    rig.up(b"\x16\x03\x01\x00\x01x").await;
    rig.down(b"\x16\x03\x03\x00\x01y").await;
    let bulk = message(3_000_000);
    let (client, server) = (&mut rig.client, &mut rig.server);
    tokio::join!(async { client.write_all(&bulk).await.unwrap() }, expect(server, &bulk));
    rig.down(b"DATA\r\n354\r\n").await;
    let flow = rig.gateway.observer.flows.intercepted().pop().unwrap();
    assert_eq!(flow.uninspected.as_deref(), Some("tls"));
    assert!(flow.bytes_from_client > 3_000_000);
    rig.client.shutdown().await.unwrap();
    assert_eq!(rest(&mut rig.server).await.as_deref(), Some(&b""[..]));
    rig.server.write_all(b"late").await.unwrap();
    drop(rig.server);
    assert_eq!(rest(&mut rig.client).await.as_deref(), Some(&b"late"[..]));
    drop(rig.client);
    rig.session.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn no_room_is_temporary_and_too_large_is_not() {
    let mut rig = Rig::new(|config| {
        config.spool.memory = 1000;
        config.spool.disk = 1000;
        config.spool.hold_max = 100_000;
    })
    .await;
    rig.open_mail().await;
    rig.client.write_all(&[&message(50_000)[..], b".\r\n"].concat()).await.unwrap();
    expect(&mut rig.client, b"452 4.3.1 No room to hold the message\r\n").await;
    expect(&mut rig.server, b"RSET\r\n").await;
    rig.server.write_all(b"250 reset\r\n").await.unwrap();
    rig.envelope().await;
    rig.client.write_all(&[&b"x".repeat(200_000)[..], b"\r\n.\r\n"].concat()).await.unwrap();
    // There is no room for the first bytes already, before it is known to be too large.
    expect(&mut rig.client, b"452 4.3.1 No room to hold the message\r\n").await;
    expect(&mut rig.server, b"RSET\r\n").await;
    rig.server.write_all(b"250 reset\r\n").await.unwrap();
    rig.envelope().await;
    rig.delivered(b"small\r\n").await;
    rig.quit().await;

    let mut rig = Rig::new(|config| config.spool.hold_max = 100_000).await;
    rig.open_mail().await;
    rig.client.write_all(&[&b"x".repeat(200_000)[..], b"\r\n.\r\n"].concat()).await.unwrap();
    expect(&mut rig.client, b"552 5.3.4 Message too large to be scanned\r\n").await;
    expect(&mut rig.server, b"RSET\r\n").await;
    rig.server.write_all(b"250 reset\r\n").await.unwrap();
    assert!(rig.metric("unscannable"));
    rig.quit().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draining_gateway_finishes_the_message() {
    let mut rig = Rig::new(|_| {}).await;
    rig.open_mail().await;
    rig.client.write_all(b"good").await.unwrap();
    rig.gateway.drain();
    rig.client.write_all(b"\r\n.\r\n").await.unwrap();
    expect(&mut rig.server, b"DATA\r\n").await;
    rig.server.write_all(b"354 go\r\n").await.unwrap();
    expect(&mut rig.server, b"good\r\n.\r\n").await;
    rig.down(b"250 queued\r\n").await;
    let bye = rest(&mut rig.client).await.unwrap();
    assert_eq!(bye, b"421 4.3.2 Service shutting down\r\n");
    assert_eq!(rest(&mut rig.server).await.as_deref(), Some(&b""[..]));
}

#[tokio::test(flavor = "multi_thread")]
async fn silence_and_a_client_that_does_not_read() {
    let mut rig = Rig::new(|config| config.gateway.idle_timeout = Duration::from_millis(300)).await;
    rig.down(b"220 mx\r\n").await;
    assert_eq!(
        rest(&mut rig.client).await.as_deref(),
        Some(&b"421 4.4.2 Idle for too long\r\n"[..])
    );

    // A server that floods a client that does not read is stopped by the client's window.
    let mut rig = Rig::new(|_| {}).await;
    rig.down(b"220 mx\r\n").await;
    let flood = b"250-x\r\n".repeat(10_000);
    let mut taken = 0;
    while let Ok(result) =
        tokio::time::timeout(Duration::from_millis(500), rig.server.writable()).await
    {
        result.unwrap();
        taken += rig.server.try_write(&flood).unwrap_or(0);
        assert!(taken < 64 << 20, "no backpressure");
    }
    rig.session.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_reads_no_answers_is_heard_no_more() {
    let mut rig = Rig::new(|_| ()).await;
    rig.down(b"220 mx\r\n").await;
    // Answered by the gateway itself.
    heard_no_more(&rig.client, b"TURN\r\n").await;
    let Rig { client, server: _server, session, .. } = rig;
    net::abort(client);
    session.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_kept_awake() {
    let mut rig = Rig::new(|config| config.smtp.noop_interval = Duration::from_millis(100)).await;
    rig.open_mail().await;
    rig.client.write_all(b"TARPIT\r\n.\r\n").await.unwrap();
    for _ in 0..3 {
        expect(&mut rig.server, b"NOOP\r\n").await;
        rig.server.write_all(b"250 awake\r\n").await.unwrap();
    }
    rig.session.abort();
    assert!(rig.session.await.unwrap_err().is_cancelled());
    assert_eq!(rest(&mut rig.server).await, None, "an aborted session resets");
    assert_eq!(rest(&mut rig.client).await, None, "both legs");
}

/// What a session costs that does nothing, but for its sockets and the flow table.
#[tokio::test]
async fn an_idle_session_is_small() {
    let directory = tempfile::tempdir().unwrap();
    let config = Config::defaults();
    let spool = Spool::new(directory.path(), 1 << 20, 1 << 20, 1 << 20).unwrap();
    let store =
        quarantine::Store::open(&directory.path().join("q"), config.quarantine.clone()).unwrap();
    let gateway = Arc::new(Gateway::new(config, Observer::without_events(), spool, store));
    let (client, client_leg) = connected().await;
    let address = client.local_addr().unwrap();
    let flow = gateway.observer.flows.open(FlowOpen {
        protocol: Protocol::Smtp,
        client: address,
        server: address,
        real_server: address,
        direction: Direction::Inbound,
    });
    let upstream = Err(io::ErrorKind::ConnectionRefused.into());
    let future = run(&gateway, client_leg, upstream, &flow);
    assert!(size_of_val(&future) <= 1536, "{} bytes", size_of_val(&future));
}

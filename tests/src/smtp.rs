//! SMTP peers of our own: a sink that keeps exact bytes, and a client without a bottleneck.

use crate::host::Host;
use crate::raw;
use anyhow::{Context, Result, ensure};
use memchr::memmem;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Reads and writes of the sink's sessions wait at most this long.
const LIMIT: Duration = Duration::from_secs(60);

/// What ends a message.
const END: &[u8] = b"\r\n.\r\n";

/// How a sink behaves.
#[derive(Clone, Debug)]
pub struct Behaviour {
    /// Lines of the EHLO reply after the first.
    pub extensions: Vec<String>,
    /// The reply to a message.
    pub after_message: String,
    /// The reply to RCPT, but for recipients that begin with `no`: they are refused.
    pub rcpt: String,
    /// LMTP (RFC 2033): each recipient has a reply behind a message; that of `full` is a temporary refusal.
    pub lmtp: bool,
    /// The reply to DATA.
    pub data: String,
    /// Whether commands and messages are kept; a benchmark does not want that.
    pub keep: bool,
}

impl Default for Behaviour {
    fn default() -> Self {
        let extensions = ["PIPELINING", "SIZE 104857600", "8BITMIME", "ENHANCEDSTATUSCODES"];
        Self {
            extensions: extensions.map(str::to_owned).to_vec(),
            after_message: "250 2.0.0 queued as SINK".to_owned(),
            rcpt: "250 2.1.5 recipient ok".to_owned(),
            lmtp: false,
            data: "354 go ahead".to_owned(),
            keep: true,
        }
    }
}

/// One session as the sink saw it.
#[derive(Clone, Debug, Default)]
pub struct Session {
    /// The client's address.
    pub from: Option<SocketAddr>,
    /// All command lines without CRLF.
    pub commands: Vec<String>,
    /// Messages exactly as on the wire, from after DATA up to and with the final CRLF.CRLF; of a BDAT
    /// message the bytes of its chunks.
    pub messages: Vec<Vec<u8>>,
    /// Whether it ended by QUIT.
    pub quit: bool,
    /// Whether the connection is gone.
    pub closed: bool,
    /// Whether it was reset.
    pub reset: bool,
}

/// A server that takes every mail.
#[derive(Debug)]
pub struct Sink {
    sessions: Arc<Mutex<Vec<Session>>>,
}

impl Sink {
    /// Listens on the host's `port`, both families.
    pub fn start(host: &Host, port: u16, behaviour: Behaviour) -> Result<Self> {
        let listener = raw::listen(host, port)?;
        let sessions = Arc::new(Mutex::new(Vec::new()));
        let sink = Self { sessions: Arc::clone(&sessions) };
        let behaviour = Arc::new(behaviour);
        std::thread::spawn(move || serve(&listener, &sessions, &behaviour));
        Ok(sink)
    }

    /// All sessions so far.
    pub fn sessions(&self) -> Vec<Session> {
        lock(&self.sessions).clone()
    }

    /// All messages of all sessions so far.
    pub fn messages(&self) -> Vec<Vec<u8>> {
        self.sessions().into_iter().flat_map(|session| session.messages).collect()
    }

    /// All commands of all sessions so far.
    pub fn commands(&self) -> Vec<String> {
        self.sessions().into_iter().flat_map(|session| session.commands).collect()
    }
}

fn lock(sessions: &Mutex<Vec<Session>>) -> MutexGuard<'_, Vec<Session>> {
    sessions.lock().unwrap_or_else(PoisonError::into_inner)
}

fn serve(listener: &TcpListener, sessions: &Arc<Mutex<Vec<Session>>>, behaviour: &Arc<Behaviour>) {
    for stream in listener.incoming() {
        let Ok(stream) = stream else { return };
        let number = {
            let mut sessions = lock(sessions);
            let from = stream.peer_addr().ok().map(raw::plain);
            sessions.push(Session { from, ..Session::default() });
            sessions.len() - 1
        };
        let note = Note { sessions: Arc::clone(sessions), number };
        let behaviour = Arc::clone(behaviour);
        std::thread::spawn(move || {
            // How the connection ended is the only thing that an error tells here.
            let ended = session(stream, &behaviour, &note);
            let reset =
                ended.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset);
            note.change(|session| {
                session.closed = true;
                session.reset = reset;
            });
        });
    }
}

/// Where one session's record is.
struct Note {
    sessions: Arc<Mutex<Vec<Session>>>,
    number: usize,
}

impl Note {
    fn change(&self, change: impl FnOnce(&mut Session)) {
        if let Some(session) = lock(&self.sessions).get_mut(self.number) {
            change(session);
        }
    }
}

fn session(mut stream: TcpStream, behaviour: &Behaviour, note: &Note) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(b"220 sink.example ESMTP\r\n")?;
    let mut held = Vec::with_capacity(256 * 1024);
    let mut out = Vec::new();
    let mut buffer = vec![0; 128 * 1024];
    let mut chunks = Vec::new();
    let mut recipients = Vec::new();
    loop {
        let Some(end) = memchr::memchr(b'\n', &held) else {
            stream.write_all(&out)?;
            out.clear();
            let count = stream.read(&mut buffer)?;
            if count == 0 {
                return Ok(());
            }
            held.extend_from_slice(&buffer[..count]);
            continue;
        };
        let line: Vec<u8> = held.drain(..=end).collect();
        let line = String::from_utf8_lossy(&line).trim_end().to_owned();
        if behaviour.keep {
            note.change(|session| session.commands.push(line.clone()));
        }
        let verb: String = line.chars().take(4).collect::<String>().to_ascii_uppercase();
        match verb.as_str() {
            "EHLO" | "LHLO" if behaviour.lmtp == (verb == "LHLO") => {
                let lines =
                    [&["sink.example".to_owned()], behaviour.extensions.as_slice()].concat();
                for (number, line) in lines.iter().enumerate() {
                    let mark = if number + 1 == lines.len() { ' ' } else { '-' };
                    reply(&mut out, &format!("250{mark}{line}"));
                }
            }
            "RCPT" if line.contains("<no") => reply(&mut out, "550 5.1.1 nobody"),
            "RCPT" => {
                reply(&mut out, &behaviour.rcpt);
                recipients.push(line);
            }
            "DATA" => {
                reply(&mut out, &behaviour.data);
                stream.write_all(&out)?;
                out.clear();
                if !behaviour.data.starts_with("354") {
                    continue;
                }
                let message = message(&mut stream, &mut held, &mut buffer)?;
                if behaviour.keep {
                    note.change(|session| session.messages.push(message));
                }
                let recipients = std::mem::take(&mut recipients);
                if !behaviour.lmtp {
                    reply(&mut out, &behaviour.after_message);
                    continue;
                }
                for recipient in &recipients {
                    let full = recipient.contains("<full");
                    let refusal = "452 4.2.2 mailbox full";
                    reply(&mut out, if full { refusal } else { &behaviour.after_message });
                }
            }
            "BDAT" => {
                let mut words = line.split_ascii_whitespace().skip(1);
                let length = words.next().and_then(|word| word.parse::<usize>().ok()).unwrap_or(0);
                while held.len() < length {
                    let count = stream.read(&mut buffer)?;
                    if count == 0 {
                        return Err(std::io::ErrorKind::UnexpectedEof.into());
                    }
                    held.extend_from_slice(&buffer[..count]);
                }
                chunks.extend(held.drain(..length));
                if words.next().is_some_and(|word| word.eq_ignore_ascii_case("LAST")) {
                    let message = std::mem::take(&mut chunks);
                    if behaviour.keep {
                        note.change(|session| session.messages.push(message));
                    }
                    reply(&mut out, &behaviour.after_message);
                } else {
                    reply(&mut out, "250 2.0.0 chunk");
                }
            }
            "QUIT" => {
                reply(&mut out, "221 2.0.0 bye");
                stream.write_all(&out)?;
                note.change(|session| session.quit = true);
                stream.shutdown(std::net::Shutdown::Write)?;
                return Ok(());
            }
            "HELO" | "MAIL" | "RSET" => {
                recipients.clear();
                reply(&mut out, "250 2.0.0 ok");
            }
            "NOOP" => reply(&mut out, "250 2.0.0 ok"),
            _ => reply(&mut out, "500 5.5.1 what?"),
        }
    }
}

fn reply(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(text.as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// Reads a message up to its end; what comes after stays in `held`.
fn message(
    stream: &mut TcpStream,
    held: &mut Vec<u8>,
    buffer: &mut [u8],
) -> std::io::Result<Vec<u8>> {
    let mut seen = 0;
    loop {
        if held.starts_with(b".\r\n") {
            return Ok(held.drain(..3).collect());
        }
        let from = seen_from(seen);
        if let Some(at) = memmem::find(&held[from..], END) {
            return Ok(held.drain(..from + at + END.len()).collect());
        }
        seen = held.len();
        let count = stream.read(buffer)?;
        if count == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        held.extend_from_slice(&buffer[..count]);
    }
}

fn seen_from(seen: usize) -> usize {
    seen.saturating_sub(END.len() - 1)
}

/// Published ways to hide a second mail in a first: what some server takes for the end of the data, with a name to be
/// read. From the research on SMTP smuggling of 2023 and what followed it.
pub const SMUGGLING: [(&str, &[u8]); 12] = [
    ("LF . LF", b"\n.\n"),
    ("LF . CRLF", b"\n.\r\n"),
    ("CRLF . LF", b"\r\n.\n"),
    ("CR . CR", b"\r.\r"),
    ("CR . CRLF", b"\r.\r\n"),
    ("CRLF . CR", b"\r\n.\r"),
    ("LF . CR", b"\n.\r"),
    ("CR . LF", b"\r.\n"),
    ("CRLF . CR CRLF", b"\r\n.\r\r\n"),
    ("CR CRLF . CR CRLF", b"\r\r\n.\r\r\n"),
    ("CRLF NUL . CRLF", b"\r\n\0.\r\n"),
    ("CRLF . NUL CRLF", b"\r\n.\0\r\n"),
];

/// A client that sends prepared messages over one session.
#[derive(Debug)]
pub struct Client {
    peer: raw::Peer,
}

impl Client {
    /// Connects from a host and says EHLO.
    pub fn connect(from: &Host, to: SocketAddr) -> Result<Self> {
        Self::greet(raw::Peer::connect(from, to)?)
    }

    /// Takes over a connected stream and says EHLO.
    pub fn on(stream: TcpStream) -> Result<Self> {
        Self::greet(raw::Peer::new(stream)?)
    }

    fn greet(mut peer: raw::Peer) -> Result<Self> {
        peer.expect("220")?;
        peer.ask("EHLO client.example", "250")?;
        Ok(Self { peer })
    }

    /// The connection, for what is not offered here.
    pub fn peer(&mut self) -> &mut raw::Peer {
        &mut self.peer
    }

    /// Sends a message that is ready for the wire (dots stuffed, ends in CRLF.CRLF) and gives the final
    /// reply. MAIL, RCPT and DATA go in one segment.
    pub fn send(&mut self, wire: &[u8]) -> Result<String> {
        ensure!(wire.ends_with(END) || wire == b".\r\n", "this message has no end");
        self.peer
            .send("MAIL FROM:<alice@client.example>\r\nRCPT TO:<bob@server.example>\r\nDATA\r\n")?;
        self.peer.expect("250").context("MAIL")?;
        self.peer.expect("250").context("RCPT")?;
        self.peer.expect("354").context("DATA")?;
        self.peer.send(wire)?;
        self.peer.reply()
    }

    /// As [`Client::send_in_steps`] with this sender and these recipients, which may be empty (`<>`).
    pub fn send_as(&mut self, from: &str, to: &[&str], wire: &[u8]) -> Result<String> {
        ensure!(wire.ends_with(END) || wire == b".\r\n", "this message has no end");
        self.peer.ask(&format!("MAIL FROM:<{from}>"), "250")?;
        for to in to {
            self.peer.ask(&format!("RCPT TO:<{to}>"), "250")?;
        }
        self.peer.ask("DATA", "354")?;
        self.peer.send(wire)?;
        self.peer.reply()
    }

    /// As [`Client::send`], each command after the reply to the one before.
    pub fn send_in_steps(&mut self, wire: &[u8]) -> Result<String> {
        ensure!(wire.ends_with(END) || wire == b".\r\n", "this message has no end");
        self.peer.ask("MAIL FROM:<alice@client.example>", "250")?;
        self.peer.ask("RCPT TO:<bob@server.example>", "250")?;
        self.peer.ask("DATA", "354")?;
        self.peer.send(wire)?;
        self.peer.reply()
    }

    /// Says QUIT and waits for a clean end.
    pub fn quit(mut self) -> Result<()> {
        self.peer.ask("QUIT", "221")?;
        let (rest, end) = self.peer.drain()?;
        ensure!(rest.is_empty() && end == raw::End::Fin, "after QUIT: {rest:?} {end:?}");
        Ok(())
    }
}

/// A message as it goes over the wire: dots stuffed, end of data added.
pub fn wire(message: &[u8]) -> Vec<u8> {
    let mut wire = Vec::with_capacity(message.len() + 64);
    for line in message.split_inclusive(|&byte| byte == b'\n') {
        if line.starts_with(b".") {
            wire.push(b'.');
        }
        wire.extend_from_slice(line);
    }
    wire.extend_from_slice(if wire.ends_with(b"\r\n") || wire.is_empty() { b".\r\n" } else { END });
    wire
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dots_are_stuffed_and_the_end_is_added() {
        assert_eq!(wire(b"a\r\n.b\r\n"), b"a\r\n..b\r\n.\r\n");
        assert_eq!(wire(b"a"), b"a\r\n.\r\n");
        assert_eq!(wire(b""), b".\r\n");
    }
}

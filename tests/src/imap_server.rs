//! An IMAP server of our own: folders of any size that take no room, and answers that no real server gives.
//!
//! It knows what a scan says, for reading only. A thread for each connection, of a small stack: thousands of idle
//! connections cost little.

use anyhow::{Context, Result};
use memchr::memmem;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Stack of a connection's thread, in bytes.
const STACK: usize = 64 << 10;

/// What is said instead of the server's own answer to a command line; none: its own.
pub type Instead = dyn Fn(&str) -> Option<Vec<u8>> + Send + Sync;

/// How a server behaves.
#[derive(Clone)]
pub struct Behaviour {
    /// The greeting.
    pub greeting: String,
    /// What it offers.
    pub capabilities: String,
    /// Messages in each folder; their identifiers are 1, 2, 3 and so on.
    pub messages: u32,
    /// A message, by its identifier.
    pub message: Arc<dyn Fn(u32) -> Vec<u8> + Send + Sync>,
    /// The folder's last change.
    pub modseq: u64,
    /// Whether the structure of messages is plain text.
    pub plain: bool,
    /// Folders, as LIST names them.
    pub folders: Vec<String>,
    /// See [`Instead`]; gets the line without its tag, the answer may have `TAG` in it.
    pub instead: Arc<Instead>,
    /// Whether command lines are kept.
    pub keep: bool,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            greeting: "* OK ready".to_owned(),
            capabilities: "IMAP4rev1 AUTH=PLAIN AUTH=XOAUTH2 SASL-IR IDLE UIDPLUS ESEARCH"
                .to_owned(),
            messages: 0,
            message: Arc::new(|uid| {
                format!(
                    "Subject: {uid}\r\nMessage-ID: <{uid}@imap.example>\r\n\r\nnumber {uid}\r\n"
                )
                .into_bytes()
            }),
            modseq: 1,
            plain: false,
            folders: vec!["INBOX".to_owned()],
            instead: Arc::new(|_| None),
            keep: true,
        }
    }
}

#[derive(Default)]
struct Heard {
    commands: Mutex<Vec<String>>,
    /// Connections that wait in IDLE.
    idle: Mutex<usize>,
}

/// A server; it ends with the process.
pub struct Server {
    address: SocketAddr,
    heard: Arc<Heard>,
    behaviour: Arc<Mutex<Behaviour>>,
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Server {
    /// Serves on a port of 127.0.0.1 of the network that this thread is in.
    pub fn start(behaviour: Behaviour) -> Result<Self> {
        Self::on(TcpListener::bind("127.0.0.1:0")?, behaviour)
    }

    /// Serves on a listener.
    pub fn on(listener: TcpListener, behaviour: Behaviour) -> Result<Self> {
        let address = listener.local_addr()?;
        let heard = Arc::new(Heard::default());
        let behaviour = Arc::new(Mutex::new(behaviour));
        let server = Self { address, heard: Arc::clone(&heard), behaviour: Arc::clone(&behaviour) };
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let heard = Arc::clone(&heard);
                let behaviour = held(&behaviour).clone();
                let serve = move || {
                    // A client that is gone is no error here.
                    let _ = Session::serve(stream, &behaviour, &heard);
                };
                if std::thread::Builder::new().stack_size(STACK).spawn(serve).is_err() {
                    return;
                }
            }
        });
        Ok(server)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From the next connection on it behaves otherwise.
    pub fn change(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut held(&self.behaviour));
    }

    /// All command lines so far, without their tags; then they are forgotten.
    pub fn take_commands(&self) -> Vec<String> {
        std::mem::take(&mut held(&self.heard.commands))
    }

    /// Connections that wait in IDLE.
    pub fn idle(&self) -> usize {
        *held(&self.heard.idle)
    }
}

struct Session<'a> {
    reader: BufReader<TcpStream>,
    behaviour: &'a Behaviour,
    out: Vec<u8>,
}

impl<'a> Session<'a> {
    fn serve(stream: TcpStream, behaviour: &'a Behaviour, heard: &Heard) -> Result<()> {
        stream.set_nodelay(true)?;
        let reader = BufReader::with_capacity(4 << 10, stream);
        let mut session = Self { reader, behaviour, out: Vec::new() };
        session.out.extend(format!("{}\r\n", behaviour.greeting).bytes());
        loop {
            session.flush()?;
            let Some(line) = session.line()? else { return Ok(()) };
            let (tag, command) = line.split_once(' ').context("no tag")?;
            if behaviour.keep {
                held(&heard.commands).push(command.to_owned());
            }
            if let Some(answer) = (behaviour.instead)(command) {
                let answer = replace(&answer, b"TAG", tag.as_bytes());
                session.out.extend(answer);
                continue;
            }
            if command.eq_ignore_ascii_case("LOGOUT") {
                session.out.extend(format!("* BYE\r\n{tag} OK\r\n").bytes());
                return session.flush();
            }
            if command.eq_ignore_ascii_case("IDLE") {
                *held(&heard.idle) += 1;
                session.out.extend(b"+ idling\r\n");
                let ended = session.flush().and_then(|()| session.line());
                *held(&heard.idle) -= 1;
                if ended?.is_none() {
                    return Ok(());
                }
            } else {
                session.answer(command)?;
            }
            session.out.extend(format!("{tag} OK done\r\n").bytes());
        }
    }

    fn flush(&mut self) -> Result<()> {
        self.reader.get_mut().write_all(&self.out)?;
        self.out.clear();
        // What a large answer took is given back before the connection idles.
        self.out.shrink_to(4 << 10);
        Ok(())
    }

    /// A line without its end; literals in it are asked for and become part of it.
    fn line(&mut self) -> Result<Option<String>> {
        let mut line = Vec::new();
        loop {
            if self.reader.read_until(b'\n', &mut line)? == 0 {
                return Ok(None);
            }
            let text = String::from_utf8_lossy(&line);
            let Some(length) = text.trim_end().strip_suffix('}').and_then(|t| t.rsplit_once('{'))
            else {
                return Ok(Some(text.trim_end().to_owned()));
            };
            let mut literal = vec![0; length.1.parse()?];
            self.reader.get_mut().write_all(b"+ go on\r\n")?;
            self.reader.read_exact(&mut literal)?;
            line.extend(literal);
        }
    }

    fn answer(&mut self, command: &str) -> Result<()> {
        let Behaviour { capabilities, messages, modseq, folders, .. } = self.behaviour;
        let upper = command.to_ascii_uppercase();
        let words: Vec<&str> = upper.split(' ').collect();
        let said = match words.as_slice() {
            ["CAPABILITY"] => format!("* CAPABILITY {capabilities}\r\n"),
            ["ENABLE", what @ ..] => format!("* ENABLED {}\r\n", what.join(" ")),
            ["LIST", ..] => {
                folders.iter().map(|f| format!("* LIST () \"/\" \"{f}\"\r\n")).collect()
            }
            ["EXAMINE" | "SELECT", ..] => format!(
                "* {messages} EXISTS\r\n* 0 RECENT\r\n* FLAGS (\\Seen)\r\n* OK [UIDVALIDITY 1]\r\n\
                 * OK [UIDNEXT {}]\r\n{}",
                messages + 1,
                if capabilities.contains("CONDSTORE") {
                    format!("* OK [HIGHESTMODSEQ {modseq}]\r\n")
                } else {
                    String::new()
                }
            ),
            ["UID", "SEARCH", rest @ ..] => {
                let range = rest.iter().find_map(|word| word.split_once(':'));
                let number = |text: &str| text.parse().unwrap_or(*messages).min(*messages);
                let (first, last) = range.map_or((1, *messages), |(a, b)| (number(a), number(b)));
                if *messages == 0 {
                    "* ESEARCH UID\r\n".to_owned()
                } else if rest.first() == Some(&"RETURN") {
                    format!("* ESEARCH UID ALL {first}:{last}\r\n")
                } else {
                    let mut found = "* SEARCH".to_owned();
                    for uid in first..=last {
                        write!(found, " {uid}")?;
                    }
                    found + "\r\n"
                }
            }
            ["UID", "FETCH", set, ..] => return self.fetch(set, &upper),
            ["AUTHENTICATE", _] => {
                self.out.extend(b"+ \r\n");
                self.flush()?;
                self.line()?.context("no answer")?;
                String::new()
            }
            _ => String::new(),
        };
        self.out.extend(said.bytes());
        Ok(())
    }

    fn fetch(&mut self, set: &str, items: &str) -> Result<()> {
        for range in set.split(',') {
            let (first, last) = range.split_once(':').unwrap_or((range, range));
            let number = |text: &str| text.parse().unwrap_or(self.behaviour.messages);
            for uid in number(first)..=number(last).min(self.behaviour.messages) {
                self.message(uid, items)?;
                if self.out.len() > 64 << 10 {
                    self.flush()?;
                }
            }
        }
        Ok(())
    }

    fn message(&mut self, uid: u32, items: &str) -> Result<()> {
        let message = (self.behaviour.message)(uid);
        let header = memmem::find(&message, b"\r\n\r\n").map_or(message.len(), |at| at + 4);
        write!(self.out, "* {uid} FETCH (UID {uid}")?;
        if items.contains("FLAGS") {
            write!(self.out, " FLAGS ()")?;
        }
        if items.contains("RFC822.SIZE") {
            write!(self.out, " INTERNALDATE \"01-Mar-2024 12:34:56 +0000\"")?;
            write!(self.out, " RFC822.SIZE {}", message.len())?;
        }
        if items.contains("BODYSTRUCTURE") {
            let subtype = if self.behaviour.plain { "plain" } else { "html" };
            write!(self.out, " BODYSTRUCTURE (\"text\" \"{subtype}\" NIL NIL NIL \"7bit\" 9 1)")?;
        }
        if items.contains("BODY.PEEK[HEADER]") {
            write!(self.out, " BODY[HEADER]<0> {{{header}}}\r\n")?;
            self.out.extend(&message[..header]);
        }
        if let Some(at) = items.find("BODY.PEEK[]") {
            let rest = &items[at + "BODY.PEEK[]".len()..];
            let piece = rest.strip_prefix('<').and_then(|rest| rest.split_once('>'));
            match piece.and_then(|(piece, _)| piece.split_once('.')) {
                Some((offset, length)) => {
                    let (offset, length): (usize, usize) = (offset.parse()?, length.parse()?);
                    let begin = offset.min(message.len());
                    let end = offset.saturating_add(length).min(message.len());
                    write!(self.out, " BODY[]<{offset}> {{{}}}\r\n", end - begin)?;
                    self.out.extend(&message[begin..end]);
                }
                None => {
                    write!(self.out, " BODY[] {{{}}}\r\n", message.len())?;
                    self.out.extend(&message);
                }
            }
        }
        self.out.extend(b")\r\n");
        Ok(())
    }
}

fn replace(text: &[u8], what: &[u8], with: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut from = 0;
    for at in memmem::find_iter(text, what) {
        out.extend(&text[from..at]);
        out.extend(with);
        from = at + what.len();
    }
    out.extend(&text[from..]);
    out
}

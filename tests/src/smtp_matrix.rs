//! Real mail servers and real clients in every combination of address families and topologies: what is combined, how
//! one cell is run, and the README's table of it.

use crate::fixtures;
use crate::host::Output;
use crate::lab::{FAMILIES, Family, Lab, Topology};
use crate::peers::{Aiosmtpd, Exim, EximRelay, OpenSmtpd, Postfix, PostfixRelay};
use crate::raw::Peer;
use crate::smtp::wire;
use crate::wait;
use anyhow::{Context, Result, ensure};
use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

/// A mail is delivered, or refused, within this time.
const LIMIT: Duration = Duration::from_secs(10);

/// Where client and server are.
pub const TOPOLOGIES: [Topology; 3] = [Topology::Plain, Topology::Masquerade, Topology::Forward];

/// The extensions that are looked at.
pub const EXTENSIONS: [&str; 7] =
    ["PIPELINING", "SIZE", "8BITMIME", "SMTPUTF8", "DSN", "CHUNKING", "AUTH"];

/// A server program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Servers {
    /// Postfix.
    Postfix,
    /// Exim.
    Exim,
    /// OpenSMTPD.
    OpenSmtpd,
    /// aiosmtpd.
    Aiosmtpd,
}

/// All server programs.
pub const SERVERS: [Servers; 4] =
    [Servers::Postfix, Servers::Exim, Servers::OpenSmtpd, Servers::Aiosmtpd];

impl Servers {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Postfix => "Postfix",
            Self::Exim => "Exim",
            Self::OpenSmtpd => "OpenSMTPD",
            Self::Aiosmtpd => "aiosmtpd",
        }
    }

    /// Where it listens.
    pub fn port(self) -> u16 {
        match self {
            Self::Postfix => 25,
            Self::Exim => 2526,
            Self::OpenSmtpd => 2527,
            Self::Aiosmtpd => 2528,
        }
    }

    /// The extensions that it offers, of those that clients use here.
    pub fn offers(self) -> &'static [&'static str] {
        match self {
            Self::Postfix => &["PIPELINING", "SIZE", "8BITMIME", "SMTPUTF8", "DSN", "CHUNKING"],
            Self::Exim => {
                &["PIPELINING", "SIZE", "8BITMIME", "SMTPUTF8", "DSN", "CHUNKING", "AUTH"]
            }
            Self::OpenSmtpd => &["SIZE", "8BITMIME", "DSN"],
            Self::Aiosmtpd => &["SIZE", "8BITMIME", "SMTPUTF8", "AUTH"],
        }
    }

    fn has(self, extension: &str) -> bool {
        self.offers().contains(&extension)
    }

    /// Starts it.
    pub fn start(self, lab: &Lab) -> Result<Running> {
        Ok(match self {
            Self::Postfix => Running::Postfix(Postfix::start(lab.server())?),
            Self::Exim => Running::Exim(Exim::start(lab.server(), self.port())?),
            Self::OpenSmtpd => Running::OpenSmtpd(OpenSmtpd::start(lab.server(), self.port())?),
            Self::Aiosmtpd => Running::Aiosmtpd(Aiosmtpd::start(lab.server(), self.port())?),
        })
    }
}

/// A server that runs.
#[derive(Debug)]
pub enum Running {
    /// Postfix.
    Postfix(Postfix),
    /// Exim.
    Exim(Exim),
    /// OpenSMTPD.
    OpenSmtpd(OpenSmtpd),
    /// aiosmtpd.
    Aiosmtpd(Aiosmtpd),
}

impl Running {
    /// All messages that it has delivered, in no order.
    pub fn inbox(&self) -> Result<Vec<Vec<u8>>> {
        match self {
            Self::Postfix(server) => server.inbox(),
            Self::Exim(server) => server.inbox(),
            Self::OpenSmtpd(server) => server.inbox(),
            Self::Aiosmtpd(server) => server.inbox(),
        }
    }

    /// Its log.
    pub fn log(&self) -> String {
        match self {
            Self::Postfix(server) => server.log(),
            Self::Exim(server) => server.log(),
            Self::OpenSmtpd(server) => server.log(),
            Self::Aiosmtpd(server) => server.log(),
        }
    }
}

/// A client program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clients {
    /// swaks.
    Swaks,
    /// curl.
    Curl,
    /// msmtp.
    Msmtp,
    /// Python's smtplib.
    Smtplib,
    /// Postfix, which relays.
    Postfix,
    /// Exim, which relays.
    Exim,
}

/// All client programs.
pub const CLIENTS: [Clients; 6] = [
    Clients::Swaks,
    Clients::Curl,
    Clients::Msmtp,
    Clients::Smtplib,
    Clients::Postfix,
    Clients::Exim,
];

impl Clients {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Swaks => "swaks",
            Self::Curl => "curl",
            Self::Msmtp => "msmtp",
            Self::Smtplib => "smtplib",
            Self::Postfix => "Postfix as relay",
            Self::Exim => "Exim as relay",
        }
    }

    /// The extensions that it uses where they are offered.
    pub fn uses(self) -> &'static [&'static str] {
        match self {
            Self::Swaks => &["PIPELINING", "AUTH"],
            Self::Curl => &["SIZE", "SMTPUTF8"],
            Self::Msmtp => &["PIPELINING", "SIZE", "DSN", "AUTH"],
            Self::Smtplib => &["SIZE", "8BITMIME", "AUTH"],
            Self::Postfix => &["PIPELINING", "SIZE", "8BITMIME", "DSN"],
            Self::Exim => &["PIPELINING", "SIZE", "8BITMIME", "DSN", "CHUNKING"],
        }
    }
}

/// One client with one server over one family.
#[derive(Clone, Copy, Debug)]
pub struct Cell {
    /// The client.
    pub client: Clients,
    /// The server.
    pub server: Servers,
    /// The family.
    pub family: Family,
}

/// All cells of one server.
pub fn cells(server: Servers) -> impl Iterator<Item = Cell> {
    CLIENTS.into_iter().flat_map(move |client| {
        FAMILIES.into_iter().map(move |family| Cell { client, server, family })
    })
}

/// What relays on the client's host: they know where each cell's mail goes.
#[derive(Debug)]
pub struct Relays<'lab> {
    postfix: PostfixRelay,
    exim: EximRelay<'lab>,
}

impl<'lab> Relays<'lab> {
    /// Starts them.
    pub fn start(lab: &'lab Lab) -> Result<Self> {
        let routes: Vec<_> = SERVERS
            .into_iter()
            .flat_map(cells)
            .map(|cell| (cell.recipient(), lab.dial(cell.family, cell.server.port())))
            .collect();
        Ok(Self {
            postfix: PostfixRelay::start(lab.client(), &routes)?,
            exim: EximRelay::new(lab.client(), &routes)?,
        })
    }
}

/// What the README says: servers with what they offer, clients with what they use.
pub fn table() -> String {
    let columns = EXTENSIONS;
    let mut text =
        format!("| | {} |\n|---{}|\n", columns.join(" | "), "|---".repeat(columns.len()));
    let mut row = |name: &str, has: &[&str], word: &str| {
        let marks = columns.map(|column| if has.contains(&column) { word } else { "" });
        let _ = writeln!(text, "| {name} | {} |", marks.join(" | "));
    };
    for server in SERVERS {
        row(server.name(), server.offers(), "offers");
    }
    for client in CLIENTS {
        row(client.name(), client.uses(), "uses");
    }
    text
}

/// How a client's attempt went.
#[derive(Debug)]
struct Attempt {
    accepted: bool,
    said: String,
}

impl From<Output> for Attempt {
    fn from(output: Output) -> Self {
        Self { accepted: output.success(), said: format!("{}{}", output.out, output.err) }
    }
}

impl Cell {
    /// Its name, which is part of its mails.
    pub fn name(self) -> String {
        let name = format!("{}-{:?}-{}", self.client.name(), self.family, self.server.name());
        name.to_lowercase().replace(" as ", "-")
    }

    /// Whom its mails are for.
    pub fn recipient(self) -> String {
        let accent = if self.both("SMTPUTF8") { "é" } else { "" };
        format!("{}{accent}@server.example", self.name())
    }

    /// Whether the client uses and the server offers this.
    fn both(self, extension: &str) -> bool {
        self.client.uses().contains(&extension) && self.server.has(extension)
    }

    /// Two clean mails and an infected one: the clean ones arrive once, byte for byte, the infected one is refused and
    /// does not.
    pub fn run(self, lab: &Lab, relays: &Relays<'_>, server: &Running) -> Result<()> {
        let here = lab.client().dir().join(self.name());
        fs::create_dir(&here)?;
        let write = |name: &str, message: &[u8]| -> Result<std::path::PathBuf> {
            // Those that read a file of this system want its line ends; so do the servers' boxes.
            let crlf = matches!(self.client, Clients::Curl | Clients::Smtplib | Clients::Postfix);
            let path = here.join(name);
            let mut bytes = if crlf { message.to_vec() } else { unix(message) };
            if self.client == Clients::Swaks {
                // It adds the last line end.
                bytes.pop();
            }
            fs::write(&path, bytes)?;
            Ok(path)
        };
        let clean = [self.message("small", 1), self.message("large", 4000)];
        let bad = fixtures::message_with_attachment(
            &format!("bad {}", self.name()),
            "invoice.com",
            &fixtures::eicar(),
        );
        let bad = write("bad", &bad)?;
        for (number, message) in clean.iter().enumerate() {
            let attempt = self.send(lab, relays, &write(&number.to_string(), message)?)?;
            ensure!(attempt.accepted, "refused: {}", attempt.said);
        }
        let attempt = self.send(lab, relays, &bad)?;
        let told = ["550", "Message blocked by vscan: "].iter().all(|it| attempt.said.contains(it));
        ensure!(!attempt.accepted && told, "not refused: {}", attempt.said);
        let mine = || -> Result<Vec<Vec<u8>>> {
            let name = self.name().into_bytes();
            let mut inbox: Vec<_> = server.inbox()?.iter().map(|message| unix(message)).collect();
            inbox.retain(|message| memchr::memmem::find(message, &name).is_some());
            Ok(inbox)
        };
        wait::until("not delivered", LIMIT, || Ok((mine()?.len() >= clean.len()).then_some(())))
            .with_context(|| server.log())?;
        let got = mine()?;
        ensure!(got.len() == clean.len(), "{} mails instead of {}", got.len(), clean.len());
        for message in clean {
            let message = unix(&message);
            ensure!(
                got.iter().filter(|got| got.ends_with(&message)).count() == 1,
                "{} bytes were changed on the way: {}",
                message.len(),
                String::from_utf8_lossy(&got[0][..got[0].len().min(2000)])
            );
        }
        Ok(())
    }

    fn message(self, kind: &str, lines: usize) -> Vec<u8> {
        let mut text = format!(
            "From: Alice <alice@client.example>\r\nTo: Bob <bob@server.example>\r\n\
             Subject: {kind} {}\r\nMessage-ID: <{kind}-{}@client.example>\r\n\
             Date: Sun, 22 Nov 2026 02:00:00 +0000\r\nMIME-Version: 1.0\r\n\
             Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n",
            self.name(),
            self.name(),
        );
        for line in 0..lines {
            let _ = write!(
                text,
                ".dot {line}\r\n..\r\n.\r\n\r\ngr\u{fc}n \u{65e5}\u{672c} \t{line}\r\n"
            );
        }
        text.into_bytes()
    }

    fn send(self, lab: &Lab, relays: &Relays<'_>, message: &Path) -> Result<Attempt> {
        let host = lab.client();
        let to = lab.dial(self.family, self.server.port());
        let (address, port) = (to.ip().to_string(), to.port().to_string());
        let (from, recipient) = ("alice@client.example", self.recipient());
        let file = message.display();
        let script = match self.client {
            Clients::Swaks => {
                let auth = if self.both("AUTH") { "-a LOGIN -au alice -ap secret" } else { "" };
                format!(
                    "swaks --server '{address}' --port {port} -{} --pipeline {auth} --ehlo client.example \
                     --from {from} --to {recipient} --data @{file}",
                    if self.family == Family::V4 { 4 } else { 6 },
                )
            }
            Clients::Curl => format!(
                "curl -sS -v smtp://{to}/client.example --mail-from {from} --mail-rcpt {recipient} -T {file}"
            ),
            Clients::Msmtp => {
                let auth = if self.both("AUTH") {
                    "--auth=plain --user=alice --passwordeval='echo secret'"
                } else {
                    "--auth=off"
                };
                let dsn =
                    if self.both("DSN") { "--dsn-notify=failure --dsn-return=hdrs" } else { "" };
                format!(
                    "msmtp --host={address} --port={port} --tls=off {auth} {dsn} --domain=client.example \
                     --from={from} {recipient} < {file}"
                )
            }
            Clients::Smtplib => {
                let login =
                    if self.both("AUTH") { "smtp.login('alice', 'secret')" } else { "pass" };
                let program = format!(
                    "import smtplib\nsmtp = smtplib.SMTP('{address}', {port}, 'client.example', timeout=30)\n\
                     smtp.ehlo()\nassert smtp.has_extn('8bitmime')\n{login}\n\
                     smtp.sendmail('{from}', '{recipient}', open('{file}', 'rb').read(), ['BODY=8BITMIME'])\n\
                     smtp.quit()\n"
                );
                return Ok(host.run(["/usr/bin/python3", "-c", &program])?.into());
            }
            Clients::Postfix => return self.by_postfix(lab, relays, message),
            Clients::Exim => {
                let said = relays.exim.send(from, &recipient, message)?;
                return Ok(Attempt { accepted: said.contains(" => "), said });
            }
        };
        Ok(host.run(["sh", "-c", &script])?.into())
    }

    fn by_postfix(self, lab: &Lab, relays: &Relays<'_>, message: &Path) -> Result<Attempt> {
        let mark = format!("to=<{}>", self.recipient());
        let said = || -> Vec<String> {
            let log = relays.postfix.log();
            log.lines().filter(|line| line.contains(&mark)).map(str::to_owned).collect()
        };
        let before = said().len();
        let to = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), PostfixRelay::PORT);
        let mut peer = Peer::connect(lab.client(), to)?;
        peer.expect("220")?;
        peer.ask("EHLO client.example", "250")?;
        peer.ask("MAIL FROM:<alice@client.example> BODY=8BITMIME RET=HDRS", "250")?;
        peer.ask(&format!("RCPT TO:<{}> NOTIFY=FAILURE", self.recipient()), "250")?;
        peer.ask("DATA", "354")?;
        peer.send(wire(&fs::read(message)?))?;
        peer.expect("250")?;
        peer.ask("QUIT", "221")?;
        let line =
            wait::until("the relay has not tried", LIMIT, || Ok(said().get(before).cloned()))
                .with_context(|| relays.postfix.log())?;
        Ok(Attempt { accepted: line.contains("status=sent"), said: line })
    }
}

/// With the line ends of this system.
fn unix(message: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(message.len());
    for (at, &byte) in message.iter().enumerate() {
        if byte != b'\r' || message.get(at + 1) != Some(&b'\n') {
            out.push(byte);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_readme_says_what_is_tested() {
        let readme = std::fs::read_to_string(crate::agent::repository().join("README.md")).unwrap();
        let table = super::table();
        assert!(readme.contains(&table), "the README lacks this table:\n{table}");
    }
}

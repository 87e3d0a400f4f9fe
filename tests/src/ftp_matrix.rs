//! Real FTP servers and real clients in every combination of data modes, address families and topologies: what is
//! combined, how one cell is run, and the README's table of it.

use crate::fixtures;
use crate::ftp::Mode;
use crate::host::{Host, Output};
use crate::lab::{Family, Lab, Topology, outside};
use crate::peers::{ProFtpd, PureFtpd, PyFtpd, Vsftpd};
use anyhow::{Context, Result, ensure};
use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A client is done with its part of a cell within this time.
const CLIENT_LIMIT: Duration = Duration::from_secs(60);

/// Where client and server are.
pub const TOPOLOGIES: [Topology; 3] = [Topology::Plain, Topology::Masquerade, Topology::Forward];

/// A server program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Servers {
    /// vsftpd.
    Vsftpd,
    /// ProFTPD.
    ProFtpd,
    /// Pure-FTPd.
    PureFtpd,
    /// pyftpdlib.
    PyFtpd,
}

/// All server programs.
pub const SERVERS: [Servers; 4] =
    [Servers::Vsftpd, Servers::ProFtpd, Servers::PureFtpd, Servers::PyFtpd];

impl Servers {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Vsftpd => "vsftpd",
            Self::ProFtpd => "ProFTPD",
            Self::PureFtpd => "Pure-FTPd",
            Self::PyFtpd => "pyftpdlib",
        }
    }

    /// The port that it listens on, so that all run on one host.
    pub const fn port(self) -> u16 {
        match self {
            Self::Vsftpd => 21,
            Self::ProFtpd => 2121,
            Self::PureFtpd => 2122,
            Self::PyFtpd => 2123,
        }
    }

    /// Starts it.
    pub fn start(self, lab: &Lab) -> Result<Running> {
        let (host, port) = (lab.server(), self.port());
        Ok(match self {
            Self::Vsftpd => Running::Vsftpd(Vsftpd::start(host, port)?),
            Self::ProFtpd => Running::ProFtpd(ProFtpd::start(host, port)?),
            Self::PureFtpd => Running::PureFtpd(PureFtpd::start(host, port)?),
            Self::PyFtpd => {
                let own = match lab.topology() {
                    Topology::Forward | Topology::ForwardFromOtherPort => crate::lab::inside,
                    Topology::Plain
                    | Topology::Masquerade
                    | Topology::OnGateway
                    | Topology::FromGateway => outside,
                };
                let addresses = crate::lab::FAMILIES.map(|family| own(family).to_string());
                Running::PyFtpd(PyFtpd::start(host, port, &addresses)?)
            }
        })
    }
}

/// A running server.
#[derive(Debug)]
pub enum Running {
    /// vsftpd.
    Vsftpd(Vsftpd),
    /// ProFTPD.
    ProFtpd(ProFtpd),
    /// Pure-FTPd.
    PureFtpd(PureFtpd),
    /// pyftpdlib.
    PyFtpd(PyFtpd),
}

impl Running {
    /// The directory that clients see as `/`.
    pub fn files(&self) -> &Path {
        match self {
            Self::Vsftpd(server) => server.files(),
            Self::ProFtpd(server) => server.files(),
            Self::PureFtpd(server) => server.files(),
            Self::PyFtpd(server) => server.files(),
        }
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        match self {
            Self::Vsftpd(server) => server.log(),
            Self::ProFtpd(server) => server.log(),
            Self::PureFtpd(server) => server.log(),
            Self::PyFtpd(server) => server.log(),
        }
    }
}

/// A client program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clients {
    /// curl.
    Curl,
    /// lftp.
    Lftp,
    /// tnftp, the ftp(1) of NetBSD, macOS and Debian.
    Tnftp,
    /// ncftpget, ncftpput and ncftpls: IPv4 only.
    Ncftp,
    /// wget: downloads only.
    Wget,
    /// Python's ftplib.
    Ftplib,
}

/// All client programs.
pub const CLIENTS: [Clients; 6] =
    [Clients::Curl, Clients::Lftp, Clients::Tnftp, Clients::Ncftp, Clients::Wget, Clients::Ftplib];

impl Clients {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Curl => "curl",
            Self::Lftp => "lftp",
            Self::Tnftp => "tnftp",
            Self::Ncftp => "ncftp",
            Self::Wget => "wget",
            Self::Ftplib => "ftplib",
        }
    }

    /// Whether it can upload.
    pub const fn uploads(self) -> bool {
        !matches!(self, Self::Wget)
    }

    /// The ways of asking for data connections that it has.
    pub const fn modes(self, family: Family) -> &'static [Mode] {
        match (self, family) {
            (Self::Curl | Self::Tnftp, Family::V4) => {
                &[Mode::Pasv, Mode::Epsv, Mode::Port, Mode::Eprt]
            }
            (Self::Lftp, Family::V4) => &[Mode::Pasv, Mode::Epsv, Mode::Port],
            (Self::Ncftp | Self::Wget | Self::Ftplib, Family::V4) => &[Mode::Pasv, Mode::Port],
            (Self::Ncftp, Family::V6) => &[],
            (Self::Curl | Self::Tnftp | Self::Lftp | Self::Wget | Self::Ftplib, Family::V6) => {
                &[Mode::Epsv, Mode::Eprt]
            }
        }
    }
}

/// One client in one mode over one family.
#[derive(Clone, Copy, Debug)]
pub struct Cell {
    /// The client.
    pub client: Clients,
    /// How it asks for data connections.
    pub mode: Mode,
    /// The network.
    pub family: Family,
}

/// Every cell.
pub fn cells() -> impl Iterator<Item = Cell> {
    CLIENTS.into_iter().flat_map(|client| {
        crate::lab::FAMILIES.into_iter().flat_map(move |family| {
            client.modes(family).iter().map(move |&mode| Cell { client, mode, family })
        })
    })
}

/// What the README says: which servers, then a table of clients.
pub fn table() -> String {
    let servers = SERVERS.map(Servers::name).join(", ");
    let ways = TOPOLOGIES.map(|topology| format!("{topology:?}").to_lowercase()).join(", ");
    format!("Servers: {servers}. Topologies: {ways}.\n\n{}", clients())
}

fn clients() -> String {
    let columns = [
        ("PASV", Family::V4, Mode::Pasv),
        ("EPSV", Family::V4, Mode::Epsv),
        ("PORT", Family::V4, Mode::Port),
        ("EPRT", Family::V4, Mode::Eprt),
        ("EPSV, IPv6", Family::V6, Mode::Epsv),
        ("EPRT, IPv6", Family::V6, Mode::Eprt),
    ];
    let mut text = String::from("|");
    for (name, _, _) in columns {
        let _ = write!(text, " | {name}");
    }
    text.push_str(" |\n|---|---|---|---|---|---|---|\n");
    for client in CLIENTS {
        let _ = write!(text, "| {}", client.name());
        for (_, family, mode) in columns {
            text.push_str(match (client.modes(family).contains(&mode), client.uploads()) {
                (true, true) => " | both ways",
                (true, false) => " | downloads",
                (false, _) => " |",
            });
        }
        text.push_str(" |\n");
    }
    text
}

impl Cell {
    /// Its name, which is part of all its files' names.
    pub fn name(self) -> String {
        format!("{}-{:?}-{:?}", self.client.name(), self.mode, self.family).to_lowercase()
    }

    /// Downloads, uploads and lists; what is infected must not come through and must be refused aloud.
    pub fn run(self, lab: &Lab, kind: Servers, server: &Running) -> Result<()> {
        let name = self.name();
        let good = fixtures::random(150_000 + name.len(), name.len() as u64);
        let there = |file: &str| server.files().join(format!("{file}-{name}"));
        fs::write(there("good"), &good)?;
        fs::write(there("bad"), fixtures::eicar())?;
        let here = lab.client().dir().join(format!("{}-{name}", kind.port()));
        fs::create_dir(&here)?;
        fs::write(here.join("up"), &good)?;
        fs::write(here.join("up-bad"), fixtures::eicar())?;
        let script = Script {
            host: lab.client(),
            here,
            to: lab.dial(self.family, kind.port()),
            mode: self.mode,
            name: name.clone(),
        };
        let said = match self.client {
            Clients::Curl => script.curl(),
            Clients::Lftp => script.lftp(),
            Clients::Tnftp => script.tnftp(),
            Clients::Ncftp => script.ncftp(),
            Clients::Wget => script.wget(),
            Clients::Ftplib => script.ftplib(),
        }?;
        let here = &script.here;
        let told = || format!("\n{said}\n{}", server.log());
        let got = fs::read(here.join("got")).with_context(told)?;
        ensure!(got == good, "the download was changed: {}", told());
        ensure!(
            fs::read(here.join("got-bad")).map_or(true, |bytes| bytes.is_empty()),
            "something of the infected file came: {}",
            told()
        );
        let listing = fs::read(here.join("listing")).with_context(told)?;
        ensure!(
            String::from_utf8_lossy(&listing).contains(&format!("good-{}", script.name)),
            "no listing: {}",
            told()
        );
        if self.client.uploads() {
            let put = fs::read(there("up")).with_context(told)?;
            ensure!(put == good, "the upload was changed: {}", told());
            ensure!(!there("up-bad").exists(), "the infected upload is there: {}", told());
        }
        Ok(())
    }
}

/// What the clients' command lines are made of.
struct Script<'a> {
    host: &'a Host,
    here: PathBuf,
    to: SocketAddr,
    mode: Mode,
    name: String,
}

impl Script<'_> {
    fn passive(&self) -> bool {
        matches!(self.mode, Mode::Pasv | Mode::Epsv)
    }

    fn url(&self, file: &str) -> String {
        if file.is_empty() {
            return format!("ftp://{}/", self.to);
        }
        format!("ftp://{}/{file}-{}", self.to, self.name)
    }

    /// Runs a program in the cell's directory.
    fn run(&self, program: &str, args: &[&str], input: &str) -> Result<Output> {
        let mut command = self.host.command("/usr/bin/env");
        command.args(["-C".as_ref(), self.here.as_os_str()]).arg(program).args(args);
        crate::host::output(command, Some(input.as_bytes()), CLIENT_LIMIT)
    }

    fn curl(&self) -> Result<String> {
        let mode: &[&str] = match self.mode {
            Mode::Pasv => &["--disable-epsv"],
            Mode::Epsv => &[],
            Mode::Port => &["-P", "-", "--disable-eprt"],
            Mode::Eprt => &["-P", "-"],
        };
        let curl = |args: &[&str]| {
            let common = ["-sS", "-g", "--max-time", "30", "-u", "alice:secret"];
            self.run("curl", &[&common[..], mode, args].concat(), "")
        };
        let (good, list, up) = (self.url("good"), self.url(""), self.url("up"));
        let clean = curl(&["-o", "got", &good, "-o", "listing", &list])?;
        ensure!(clean.success(), "{clean:?}");
        let put = curl(&["-T", "up", &up])?;
        ensure!(put.success(), "{put:?}");
        let get = curl(&["-o", "got-bad", &self.url("bad")])?;
        ensure!(get.code() == 78 && !self.here.join("got-bad").exists(), "{get:?}");
        let put = curl(&["-w", "%{response_code}", "-T", "up-bad", &self.url("up-bad")])?;
        ensure!(!put.success() && put.out == "550", "{put:?}");
        Ok(format!("{clean:?} {get:?} {put:?}"))
    }

    fn lftp(&self) -> Result<String> {
        let name = &self.name;
        let script = format!(
            "set net:timeout 20; set net:max-retries 1; set ftp:ssl-allow no; set cmd:fail-exit no; \
             set ftp:passive-mode {}; set ftp:prefer-epsv {}; \
             open -u alice,secret -p {} {}; get good-{name} -o got; put up -o up-{name}; \
             ls > listing; get bad-{name} -o got-bad; put up-bad -o up-bad-{name}; true",
            self.passive(),
            self.mode == Mode::Epsv,
            self.to.port(),
            self.to.ip(),
        );
        let output = self.run("lftp", &["-c", &script], "")?;
        ensure!(output.err.matches("blocked by vscan").count() == 2, "{output:?}");
        Ok(format!("{output:?}"))
    }

    fn tnftp(&self) -> Result<String> {
        let name = &self.name;
        // It begins with EPSV and EPRT, also on IPv4.
        let old = matches!(self.mode, Mode::Pasv | Mode::Port);
        let script = format!(
            "{}user alice secret\nbinary\nget good-{name} got\nput up up-{name}\nls . listing\n\
             get bad-{name} got-bad\nput up-bad up-bad-{name}\nquit\n",
            if old { "epsv4\n" } else { "" }
        );
        let (address, port) = (self.to.ip().to_string(), self.to.port().to_string());
        let way = if self.passive() { "-p" } else { "-A" };
        let output = self.run("tnftp", &["-n", "-i", "-v", way, &address, &port], &script)?;
        ensure!(output.out.matches("blocked by vscan").count() == 2, "{output:?}");
        Ok(format!("{output:?}"))
    }

    fn ncftp(&self) -> Result<String> {
        let name = &self.name;
        let (address, port) = (self.to.ip().to_string(), self.to.port().to_string());
        let way = if self.passive() { "-F" } else { "-E" };
        let common = ["-u", "alice", "-p", "secret", "-P", &port, "-t", "20", way];
        let run =
            |program: &str, more: &[&str]| self.run(program, &[&common[..], more].concat(), "");
        let files = ["good", "bad"].map(|file| format!("/{file}-{name}"));
        let get = run("ncftpget", &["-V", "-r", "1", &address, ".", &files[0]])?;
        ensure!(get.success(), "{get:?}");
        fs::rename(self.here.join(format!("good-{name}")), self.here.join("got"))?;
        for file in ["up", "up-bad"] {
            fs::rename(self.here.join(file), self.here.join(format!("{file}-{name}")))?;
        }
        let put = run("ncftpput", &["-V", "-r", "1", &address, "/", &format!("up-{name}")])?;
        ensure!(put.success(), "{put:?}");
        let list = run("ncftpls", &["-l", "-r", "1", &format!("ftp://{address}/")])?;
        ensure!(list.success(), "{list:?}");
        fs::write(self.here.join("listing"), &list.out)?;
        let get = run("ncftpget", &["-V", "-r", "1", &address, ".", &files[1]])?;
        let put = run("ncftpput", &["-V", "-r", "1", &address, "/", &format!("up-bad-{name}")])?;
        // It shows the text of a refused download only.
        ensure!(!get.success() && get.err.contains("blocked by vscan"), "{get:?}");
        ensure!(!put.success(), "{put:?}");
        let left = self.here.join(format!("bad-{name}"));
        if left.exists() {
            fs::rename(left, self.here.join("got-bad"))?;
        }
        Ok(format!("{get:?} {put:?} {list:?}"))
    }

    fn wget(&self) -> Result<String> {
        let mode: &[&str] = if self.passive() { &[] } else { &["--no-passive-ftp"] };
        let wget = |to: &str, url: &str| {
            let common = ["-S", "-t", "1", "-T", "20", "--user=alice", "--password=secret", "-O"];
            self.run("wget", &[&common[..], &[to], mode, &[url]].concat(), "")
        };
        let get = wget("got", &self.url("good"))?;
        ensure!(get.success(), "{get:?}");
        let list = wget("listing", &self.url(""))?;
        ensure!(list.success(), "{list:?}");
        let bad = wget("got-bad", &self.url("bad"))?;
        ensure!(bad.code() == 8 && bad.err.contains("blocked by vscan"), "{bad:?}");
        Ok(format!("{get:?} {list:?} {bad:?}"))
    }

    fn ftplib(&self) -> Result<String> {
        const SCRIPT: &str = r#"
import ftplib, sys
host, port, passive, name = sys.argv[1:]
ftp = ftplib.FTP(timeout=20)
ftp.connect(host, int(port))
ftp.login("alice", "secret")
ftp.set_pasv(passive == "true")
with open("got", "wb") as got:
    ftp.retrbinary("RETR good-" + name, got.write)
ftp.storbinary("STOR up-" + name, open("up", "rb"))
with open("listing", "w") as listing:
    ftp.retrlines("LIST", lambda line: listing.write(line + "\n"))
bad = open("got-bad", "wb")
for refused in (lambda: ftp.retrbinary("RETR bad-" + name, bad.write),
                lambda: ftp.storbinary("STOR up-bad-" + name, open("up-bad", "rb"))):
    try:
        refused()
        sys.exit("not refused")
    except ftplib.error_perm as error:
        assert "blocked by vscan" in str(error), error
ftp.quit()
"#;
        let (address, port) = (self.to.ip().to_string(), self.to.port().to_string());
        let passive = self.passive().to_string();
        let args = ["-c", SCRIPT, &address, &port, &passive, &self.name];
        let output = self.run("python3", &args, "")?;
        ensure!(output.success(), "{output:?}");
        Ok(format!("{output:?}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_readme_shows_what_is_tested() {
        let readme = fs::read_to_string(crate::agent::repository().join("README.md")).unwrap();
        let table = table();
        assert!(readme.contains(&table), "the README lacks this table:\n{table}");
    }
}

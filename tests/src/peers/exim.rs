//! Exim: as the mail server of `server.example`, whose mail lands in one Maildir, and as a relay.

use super::{BOB, maildir};
use crate::host::{Host, Process};
use anyhow::{Context, Result};
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};

/// What both have in common; `DIR` is the directory of the one.
const COMMON: &str = "\
spool_directory = DIR/spool
log_file_path = DIR/%slog
pid_file_path = DIR/exim.pid
log_selector = +8bitmime +smtp_no_mail +smtp_syntax_error
primary_hostname = mail.HOST.example
host_lookup =
rfc1413_hosts =
keep_environment =
message_size_limit = 128M
smtp_accept_max = 0
smtp_accept_queue = 0
smtp_accept_queue_per_connection = 0
disable_ipv6 = no
";

/// As a server it has no TLS.
const NO_TLS: &str = "tls_advertise_hosts =\n";

/// The server's. Its user is `alice` with password `secret`, by any mechanism.
const SERVER: &str = "
daemon_smtp_ports = PORT
local_interfaces = <; 0.0.0.0 ; ::0
acl_smtp_rcpt = accept
acl_smtp_data = accept
acl_smtp_vrfy = accept
chunking_advertise_hosts = *
dsn_advertise_hosts = *
smtputf8_advertise_hosts = *
auth_advertise_hosts = *
begin routers
all:
  driver = accept
  transport = inbox
begin transports
inbox:
  driver = appendfile
  directory = DIR/inbox
  maildir_format
  user = bob
  group = bob
begin authenticators
plain:
  driver = plaintext
  public_name = PLAIN
  server_prompts = :
  server_condition = ${if and{{eq{$auth2}{alice}}{eq{$auth3}{secret}}}}
  server_set_id = $auth2
login:
  driver = plaintext
  public_name = LOGIN
  server_prompts = Username:: : Password::
  server_condition = ${if and{{eq{$auth1}{alice}}{eq{$auth2}{secret}}}}
  server_set_id = $auth1
cram:
  driver = cram_md5
  public_name = CRAM-MD5
  server_secret = ${if eq{$auth1}{alice}{secret}fail}
  server_set_id = $auth1
";

/// The relay's: each recipient's mail goes to one server, what could not be delivered to nobody.
const RELAY: &str = "
begin routers
bounces:
  driver = redirect
  senders = :
  data = :blackhole:
all:
  driver = manualroute
  transport = server
  route_data = ${lookup{$local_part@$domain}lsearch{DIR/addresses}}
  self = send
begin transports
server:
  driver = smtp
  port = ${lookup{$local_part@$domain}lsearch{DIR/ports}}
  hosts_try_chunking = *
begin retry
* * F,1m,1m
";

/// A running Exim.
#[derive(Debug)]
pub struct Exim {
    process: Process,
    dir: PathBuf,
}

impl Exim {
    /// Starts it on this port, both families, and waits until it listens.
    pub fn start(host: &Host, port: u16) -> Result<Self> {
        Self::start_with(host, port, NO_TLS)
    }

    /// The same with further options, among them those of TLS.
    pub fn start_with(host: &Host, port: u16, more: &str) -> Result<Self> {
        let dir = host.dir().join("exim");
        let inbox = dir.join("inbox");
        fs::create_dir_all(&inbox)?;
        chown(&inbox, Some(BOB), Some(BOB))?;
        configure(
            host,
            &dir,
            "server",
            &[more, &SERVER.replace("PORT", &port.to_string())].concat(),
        )?;
        let mut command = host.command("/usr/sbin/exim4");
        command.args(["-bdf", "-v"]);
        let process = host.start("exim", command)?;
        host.wait_for_port(port).with_context(|| process.log())?;
        Ok(Self { process, dir })
    }

    /// All messages delivered so far, in no order, as Exim has stored them.
    pub fn inbox(&self) -> Result<Vec<Vec<u8>>> {
        maildir(&self.dir.join("inbox"))
    }

    /// Its logs.
    pub fn log(&self) -> String {
        logs(&self.dir)
    }

    /// The running daemon.
    pub fn process(&self) -> &Process {
        &self.process
    }
}

/// Exim as a client's relay.
#[derive(Debug)]
pub struct EximRelay<'host> {
    host: &'host Host,
    dir: PathBuf,
}

impl<'host> EximRelay<'host> {
    /// A relay that sends each of these recipients' mail to one address.
    pub fn new(host: &'host Host, routes: &[(String, SocketAddr)]) -> Result<Self> {
        Self::with_transport(host, routes, "")
    }

    /// The same with further options of its transport.
    pub fn with_transport(
        host: &'host Host,
        routes: &[(String, SocketAddr)],
        more: &str,
    ) -> Result<Self> {
        let dir = host.dir().join("exim-relay");
        let relay = RELAY.replace("begin retry", &format!("{more}begin retry"));
        configure(host, &dir, "client", &[NO_TLS, &relay].concat())?;
        let table = |value: &dyn Fn(&SocketAddr) -> String| -> String {
            routes.iter().map(|(to, at)| format!("{to}: {}\n", value(at))).collect()
        };
        // In a list of Exim's a colon is written twice.
        fs::write(dir.join("addresses"), table(&|at| at.ip().to_string().replace(':', "::")))?;
        fs::write(dir.join("ports"), table(&|at| at.port().to_string()))?;
        Ok(Self { host, dir })
    }

    /// Takes a message and tries to deliver it, once; gives the log of that.
    pub fn send(&self, from: &str, to: &str, message: &Path) -> Result<String> {
        let script = format!("exim4 -odf -oi -oee -f '{from}' '{to}' < {}", message.display());
        let output = self.host.run(["sh", "-c", &script])?;
        let log = logs(&self.dir);
        let mark = format!(" {to} ");
        let tried = log.lines().rfind(|line| line.contains(&mark));
        Ok(tried.with_context(|| format!("exim: {}{}\n{log}", output.out, output.err))?.to_owned())
    }
}

/// Writes the configuration where Exim looks for it by itself: only then may it take its users' rights.
fn configure(host: &Host, dir: &Path, name: &str, more: &str) -> Result<()> {
    fs::create_dir_all(dir.join("spool"))?;
    let id = super::id(host, "passwd", "Debian-exim")?;
    for place in [dir.to_owned(), dir.join("spool")] {
        chown(place, Some(id), Some(id))?;
    }
    let text = [COMMON, more].concat();
    let text = text.replace("DIR", &dir.display().to_string()).replace("HOST", name);
    let config = dir.join("exim.conf");
    fs::write(&config, text)?;
    host.sh(&format!(
        "mount -t tmpfs tmpfs /etc/exim4; cp {} /etc/exim4/exim4.conf",
        config.display()
    ))?;
    Ok(())
}

fn logs(dir: &Path) -> String {
    let read = |name: &str| fs::read_to_string(dir.join(name)).unwrap_or_default();
    [read("mainlog"), read("rejectlog"), read("paniclog")].concat()
}

//! Postfix: as the mail server of `server.example`, whose mail lands in one Maildir, and as a relay.

use super::{BOB, id, maildir};
use crate::host::{Host, Process};
use anyhow::{Context, Result};
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

/// Its services but for the listening one; none in a chroot.
const MASTER: &str = "\
discard unix - - n - - discard
lmtp unix - - n - - lmtp
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
proxymap unix - - n - - proxymap
smtp unix - - n - - smtp
error unix - - n - - error
retry unix - - n - - error
virtual unix - n n - - virtual
anvil unix - - n - 1 anvil
postlog unix-dgram n - n - 1 postlogd
tlsmgr unix - - n 1000? 1 tlsmgr
";

/// A running Postfix on port 25, both families.
#[derive(Debug)]
pub struct Postfix {
    process: Process,
    dir: PathBuf,
}

impl Postfix {
    /// Starts it and waits until it listens.
    pub fn start(host: &Host) -> Result<Self> {
        Self::start_with(host, "")
    }

    /// As [`Postfix::start`] with further lines for `main.cf`.
    pub fn start_with(host: &Host, more: &str) -> Result<Self> {
        let dir = host.dir().join("postfix");
        let config = format!(
            "inet_interfaces = all\nmyhostname = mail.server.example\nmynetworks = 127.0.0.0/8\n\
             local_recipient_maps =\nlocal_transport = error:no local delivery\n\
             virtual_mailbox_domains = server.example\nvirtual_mailbox_base = {dir}/mail\n\
             virtual_mailbox_maps = static:inbox/\nvirtual_minimum_uid = 100\n\
             virtual_uid_maps = static:{BOB}\nvirtual_gid_maps = static:{BOB}\n\
             smtpd_relay_restrictions = permit_mynetworks, reject_unauth_destination\n\
             smtpd_forbid_bare_newline = no\n{more}",
            dir = dir.display(),
        );
        let process = run(host, &dir, &config, "smtp", 25)?;
        Ok(Self { process, dir })
    }

    /// All messages delivered so far, in no order, as Postfix has stored them.
    pub fn inbox(&self) -> Result<Vec<Vec<u8>>> {
        maildir(&self.dir.join("mail/inbox"))
    }

    /// Its log.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("maillog")).unwrap_or_default()
    }

    /// The running master process.
    pub fn process(&self) -> &Process {
        &self.process
    }
}

/// Postfix as a client's relay: takes mail on port 2500 of its own host.
#[derive(Debug)]
pub struct PostfixRelay {
    _process: Process,
    dir: PathBuf,
}

impl PostfixRelay {
    /// Where it takes mail.
    pub const PORT: u16 = 2500;

    /// Starts a relay that sends each of these recipients' mail to one address: by LMTP if its port is 24.
    pub fn start(host: &Host, routes: &[(String, SocketAddr)]) -> Result<Self> {
        Self::start_with(host, routes, "smtp_tls_security_level = none\n")
    }

    /// The same with further lines for `main.cf`, among them the level of TLS.
    pub fn start_with(host: &Host, routes: &[(String, SocketAddr)], more: &str) -> Result<Self> {
        let dir = host.dir().join("postfix-relay");
        fs::create_dir_all(&dir)?;
        let routes: String = routes
            .iter()
            .map(|(recipient, to)| {
                let protocol = if to.port() == 24 { "lmtp" } else { "smtp" };
                format!("{recipient} {protocol}:[{}]:{}\n", to.ip(), to.port())
            })
            .collect();
        // Nobody reads what it returns.
        fs::write(dir.join("routes"), format!("{routes}client.example discard:\n"))?;
        let config = format!(
            "inet_interfaces = loopback-only\nmyhostname = relay.client.example\n\
             mynetworks = 127.0.0.0/8\nmydestination =\n\
             transport_maps = texthash:{dir}/routes\n\
             smtpd_relay_restrictions = permit_mynetworks, reject\n\
             smtp_host_lookup = native\nsmtp_bind_address =\n{more}\
             minimal_backoff_time = 600s\n",
            dir = dir.display(),
        );
        let process = run(host, &dir, &config, &Self::PORT.to_string(), Self::PORT)?;
        Ok(Self { _process: process, dir })
    }

    /// Its log.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("maillog")).unwrap_or_default()
    }
}

/// Starts an instance in `dir` and waits until it listens.
fn run(host: &Host, dir: &Path, more: &str, service: &str, port: u16) -> Result<Process> {
    let config = dir.join("config");
    for sub in ["config", "data", "mail", "queue"] {
        fs::create_dir_all(dir.join(sub))?;
    }
    let [postfix, postdrop] = [id(host, "passwd", "postfix")?, id(host, "group", "postdrop")?];
    chown(dir.join("data"), Some(postfix), None)?;
    chown(dir.join("mail"), Some(BOB), Some(BOB))?;
    for sub in [
        "active", "bounce", "corrupt", "defer", "deferred", "flush", "hold", "incoming", "private",
        "saved", "trace",
    ] {
        directory(&dir.join("queue").join(sub), postfix, None, 0o700)?;
    }
    directory(&dir.join("queue/pid"), 0, None, 0o755)?;
    directory(&dir.join("queue/public"), postfix, Some(postdrop), 0o710)?;
    directory(&dir.join("queue/maildrop"), postfix, Some(postdrop), 0o730)?;
    fs::write(
        config.join("main.cf"),
        format!(
            "compatibility_level = 3.6\n\
             queue_directory = {dir}/queue\ndata_directory = {dir}/data\n\
             command_directory = /usr/sbin\ndaemon_directory = /usr/lib/postfix/sbin\n\
             shlib_directory = /usr/lib/postfix\nmeta_directory = {dir}/config\n\
             mail_owner = postfix\nsetgid_group = postdrop\n\
             maillog_file = {dir}/maillog\nmaillog_file_prefixes = /tmp\n\
             inet_protocols = all\nalias_maps =\nmydestination =\nsmtpd_peername_lookup = no\n\
             message_size_limit = 134217728\nmailbox_size_limit = 0\nvirtual_mailbox_limit = 0\n\
             smtpd_client_connection_count_limit = 0\nsmtpd_client_connection_rate_limit = 0\n\
             {more}",
            dir = dir.display(),
        ),
    )?;
    fs::write(config.join("master.cf"), format!("{service} inet n - n - - smtpd\n{MASTER}"))?;
    let mut command = host.command("/usr/lib/postfix/sbin/master");
    command.arg("-d").arg("-c").arg(&config).env("MAIL_CONFIG", &config);
    let name = dir.file_name().and_then(|name| name.to_str()).unwrap_or("postfix");
    let process = host.start(name, command)?;
    host.wait_for_port(port).with_context(|| process.log())?;
    Ok(process)
}

/// Makes a directory with this owner and mode.
fn directory(path: &Path, owner: u32, group: Option<u32>, mode: u32) -> Result<()> {
    fs::create_dir(path)?;
    chown(path, Some(owner), group)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    Ok(())
}

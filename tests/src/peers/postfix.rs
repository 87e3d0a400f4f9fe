//! Postfix as the mail server of `server.example`: every recipient's mail lands in one Maildir.

use super::BOB;
use crate::host::{Host, Process};
use anyhow::{Context, Result};
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

/// Its services; none in a chroot.
const MASTER: &str = "\
smtp inet n - n - - smtpd
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
        let dir = host.dir().join("postfix");
        let config = dir.join("config");
        for sub in ["config", "data", "mail", "queue"] {
            fs::create_dir_all(dir.join(sub))?;
        }
        let [postfix, postdrop] = [id(host, "passwd", "postfix")?, id(host, "group", "postdrop")?];
        chown(dir.join("data"), Some(postfix), None)?;
        chown(dir.join("mail"), Some(BOB), Some(BOB))?;
        for sub in [
            "active", "bounce", "corrupt", "defer", "deferred", "flush", "hold", "incoming",
            "private", "saved", "trace",
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
                 inet_interfaces = all\ninet_protocols = all\n\
                 myhostname = mail.server.example\nmydestination =\nmynetworks = 127.0.0.0/8\n\
                 alias_maps =\nlocal_recipient_maps =\nlocal_transport = error:no local delivery\n\
                 virtual_mailbox_domains = server.example\nvirtual_mailbox_base = {dir}/mail\n\
                 virtual_mailbox_maps = static:inbox/\nvirtual_minimum_uid = 100\n\
                 virtual_uid_maps = static:{BOB}\nvirtual_gid_maps = static:{BOB}\n\
                 smtpd_relay_restrictions = permit_mynetworks, reject_unauth_destination\n\
                 smtpd_peername_lookup = no\nsmtpd_forbid_bare_newline = no\n\
                 message_size_limit = 134217728\nmailbox_size_limit = 0\nvirtual_mailbox_limit = 0\n\
                 smtpd_client_connection_count_limit = 0\nsmtpd_client_connection_rate_limit = 0\n",
                dir = dir.display(),
            ),
        )?;
        fs::write(config.join("master.cf"), MASTER)?;
        let mut command = host.command("/usr/lib/postfix/sbin/master");
        command.arg("-d").arg("-c").arg(&config).env("MAIL_CONFIG", &config);
        let process = host.start("postfix", command)?;
        host.wait_for_port(25).with_context(|| process.log())?;
        Ok(Self { process, dir })
    }

    /// All messages delivered so far, in no order, as Postfix has stored them.
    pub fn inbox(&self) -> Result<Vec<Vec<u8>>> {
        let new = self.dir.join("mail/inbox/new");
        if !new.exists() {
            return Ok(Vec::new());
        }
        fs::read_dir(new)?.map(|entry| Ok(fs::read(entry?.path())?)).collect()
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

/// Makes a directory with this owner and mode.
fn directory(path: &Path, owner: u32, group: Option<u32>, mode: u32) -> Result<()> {
    fs::create_dir(path)?;
    chown(path, Some(owner), group)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    Ok(())
}

/// The number of a user or group on this host.
fn id(host: &Host, table: &str, name: &str) -> Result<u32> {
    let table = fs::read_to_string(host.dir().join("etc").join(table))?;
    table
        .lines()
        .filter_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .find_map(|rest| rest.split(':').nth(1)?.parse().ok())
        .with_context(|| format!("no {name} on {}", host.name()))
}

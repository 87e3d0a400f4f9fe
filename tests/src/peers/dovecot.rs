//! Dovecot: any user, password `secret`; `admin`, password `master`, logs in for everybody.

use super::BOB;
use crate::host::{Host, Process};
use anyhow::{Context, Result};
use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};

/// A running Dovecot on port 143.
#[derive(Debug)]
pub struct Dovecot {
    process: Process,
    dir: PathBuf,
}

impl Dovecot {
    /// Starts it and waits until it listens.
    pub fn start(host: &Host) -> Result<Self> {
        Self::start_with(host, None, "")
    }

    /// As [`start`](Self::start); with TLS on port 993 and STARTTLS by this certificate and key, and with more settings.
    pub fn start_with(host: &Host, tls: Option<(&Path, &Path)>, more: &str) -> Result<Self> {
        let dir = host.dir().join("dovecot");
        for sub in ["run", "state", "mail"] {
            fs::create_dir_all(dir.join(sub))?;
        }
        chown(dir.join("mail"), Some(BOB), Some(BOB))?;
        let ssl = tls.map_or("ssl = no\n".to_owned(), |(certificate, key)| {
            let (certificate, key) = (certificate.display(), key.display());
            format!("ssl = yes\nssl_cert = <{certificate}\nssl_key = <{key}\n")
        });
        let config = dir.join("dovecot.conf");
        fs::write(
            &config,
            format!(
                "base_dir = {dir}/run\nstate_dir = {dir}/state\nlog_path = {dir}/log\n\
                 protocols = imap\ndisable_plaintext_auth = no\nauth_mechanisms = plain login\n\
                 auth_master_user_separator = *\n{ssl}\
                 default_internal_user = dovecot\ndefault_login_user = dovenull\n\
                 mail_location = maildir:{dir}/mail/%u\nfirst_valid_uid = 1\n\
                 mail_max_userip_connections = 0\n\
                 passdb {{\n driver = static\n args = user=admin password=master\n master = yes\n \
                 result_success = continue\n}}\n\
                 passdb {{\n driver = static\n args = password=secret\n}}\n\
                 userdb {{\n driver = static\n args = uid={BOB} gid={BOB} home={dir}/mail/%u\n}}\n\
                 service imap-login {{\n inet_listener imap {{\n  port = 143\n }}\n}}\n\
                 service imap {{\n process_limit = 2000\n}}\n{more}",
                dir = dir.display(),
            ),
        )?;
        let mut command = host.command("dovecot");
        command.arg("-F").arg("-c").arg(&config);
        let process = host.start("dovecot", command)?;
        host.wait_for_port(143).with_context(|| process.log())?;
        Ok(Self { process, dir })
    }

    /// Its log.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    /// The running master process.
    pub fn process(&self) -> &Process {
        &self.process
    }
}

//! ProFTPD, for user `alice`, password `secret`.

use super::{ALICE, SECRET_HASH};
use crate::host::{Host, Process};
use anyhow::{Context, Result};
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::PathBuf;

/// A running ProFTPD, both families.
#[derive(Debug)]
pub struct ProFtpd {
    process: Process,
    files: PathBuf,
    commands: PathBuf,
}

impl ProFtpd {
    /// Starts it on this port and waits until it listens.
    pub fn start(host: &Host, port: u16) -> Result<Self> {
        Self::start_with(host, port, "")
    }

    /// As [`ProFtpd::start`] with further lines of configuration.
    pub fn start_with(host: &Host, port: u16, more: &str) -> Result<Self> {
        let dir = host.dir().join(format!("proftpd-{port}"));
        let files = dir.join("files");
        fs::create_dir_all(&files)?;
        chown(&files, Some(ALICE), Some(ALICE))?;
        let users = dir.join("passwd");
        fs::write(
            &users,
            format!("alice:{SECRET_HASH}:{ALICE}:{ALICE}::{}:/bin/sh\n", files.display()),
        )?;
        fs::set_permissions(&users, fs::Permissions::from_mode(0o600))?;
        let config = dir.join("proftpd.conf");
        let dir_text = dir.display();
        // An address that is there; without one it asks for the machine's name.
        fs::write(
            &config,
            format!(
                "ModulePath /usr/lib/proftpd\nServerName lab\nServerType standalone\n\
                 DefaultAddress 127.0.0.1\nDefaultServer on\nUseIPv6 on\nPort {port}\n\
                 User alice\nGroup alice\nAuthOrder mod_auth_file.c\nAuthUserFile {users}\n\
                 RequireValidShell off\nDefaultRoot ~\nUseReverseDNS off\nWtmpLog off\n\
                 PidFile {dir_text}/pid\nScoreboardFile {dir_text}/scoreboard\nDelayTable none\n\
                 MaxInstances 200\nAllowOverwrite on\nAllowStoreRestart on\n\
                 AllowRetrieveRestart on\nSystemLog {dir_text}/system.log\n\
                 LogFormat all \"%a %r -> %s\"\nExtendedLog {dir_text}/commands.log ALL all\n{more}",
                users = users.display(),
            ),
        )?;
        let mut command = host.command("proftpd");
        command.arg("--nodaemon").arg("--config").arg(&config);
        let process = host.start(&format!("proftpd-{port}"), command)?;
        host.wait_for_port(port).with_context(|| process.log())?;
        Ok(Self { process, files, commands: dir.join("commands.log") })
    }

    /// The directory that clients see as `/`.
    pub fn files(&self) -> &PathBuf {
        &self.files
    }

    /// Its log: the client's address, commands, codes of replies.
    pub fn log(&self) -> String {
        let commands = fs::read_to_string(&self.commands).unwrap_or_default();
        format!("{}{commands}", self.process.log())
    }
}

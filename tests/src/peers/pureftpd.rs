//! Pure-FTPd, for user `alice`, password `secret`.

use super::{ALICE, SECRET_HASH};
use crate::host::{Host, Process};
use anyhow::{Context, Result};
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

/// A running Pure-FTPd, both families.
#[derive(Debug)]
pub struct PureFtpd {
    process: Process,
    files: PathBuf,
    transfers: PathBuf,
}

impl PureFtpd {
    /// Starts it on this port and waits until it listens.
    pub fn start(host: &Host, port: u16) -> Result<Self> {
        Self::start_with(host, port, None)
    }

    /// As [`PureFtpd::start`]; offers TLS with this certificate and its key in one file.
    pub fn start_with(host: &Host, port: u16, certificate: Option<&Path>) -> Result<Self> {
        let dir = host.dir().join(format!("pureftpd-{port}"));
        let files = dir.join("files");
        fs::create_dir_all(&files)?;
        chown(&files, Some(ALICE), Some(ALICE))?;
        let users = dir.join("passwd");
        let home = files.display();
        fs::write(&users, format!("alice:{SECRET_HASH}:{ALICE}:{ALICE}::{home}/./::::::::::::\n"))?;
        fs::set_permissions(&users, fs::Permissions::from_mode(0o600))?;
        let (dir_text, passwd) = (dir.display(), users.display());
        host.sh(&format!("pure-pw mkdb {dir_text}/users.pdb -f {passwd}"))?;
        let transfers = dir.join("transfers.log");
        let mut command = host.command("pure-ftpd");
        command
            .arg(format!("--bind=,{port}"))
            .arg(format!("--login=puredb:{dir_text}/users.pdb"))
            .arg(format!("--pidfile={dir_text}/pid"))
            .arg(format!("--altlog=clf:{}", transfers.display()))
            .args(["--chrooteveryone", "--noanonymous", "--dontresolve", "--minuid=100"])
            .args(["--maxclientsnumber=200", "--maxclientsperip=200"]);
        if let Some(certificate) = certificate {
            command.arg("--tls=1").arg(format!("--certfile={}", certificate.display()));
        }
        let process = host.start(&format!("pureftpd-{port}"), command)?;
        host.wait_for_port(port).with_context(|| process.log())?;
        Ok(Self { process, files, transfers })
    }

    /// The directory that clients see as `/`.
    pub fn files(&self) -> &PathBuf {
        &self.files
    }

    /// Its log: the client's address and what it transferred.
    pub fn log(&self) -> String {
        let transfers = fs::read_to_string(&self.transfers).unwrap_or_default();
        format!("{}{transfers}", self.process.log())
    }
}

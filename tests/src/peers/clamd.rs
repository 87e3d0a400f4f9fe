//! clamd with a database of its own, of a few signatures.

use crate::host::{Host, Process};
use anyhow::{Context, Result};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

/// A running clamd, on a unix socket and on a port of 127.0.0.1.
#[derive(Debug)]
pub struct Clamd {
    process: Process,
    directory: PathBuf,
}

/// What [`Clamd`] finds and nobody else does.
pub const CLAMD_ONLY: &[u8] = b"what only a clamd knows: 4f6e6c79";

/// How it calls it.
pub const CLAMD_NAME: &str = "Lab.Only.Clamd.UNOFFICIAL";

/// The largest stream that it takes.
pub const CLAMD_STREAM_MAX: u64 = 2 << 20;

impl Clamd {
    /// The port.
    pub const PORT: u16 = 3310;

    /// Starts it and waits until it listens.
    pub fn start(host: &Host) -> Result<Self> {
        let directory = host.dir().join("clamd");
        let database = directory.join("db");
        fs::create_dir_all(&database)?;
        let mut hex = String::new();
        for byte in CLAMD_ONLY {
            write!(hex, "{byte:02x}")?;
        }
        fs::write(database.join("lab.ndb"), format!("Lab.Only.Clamd:0:*:{hex}\n"))?;
        let (dir, port) = (directory.display(), Self::PORT);
        let config = format!(
            "Foreground yes\nUser root\nDatabaseDirectory {dir}/db\nTemporaryDirectory {dir}\n\
             LocalSocket {dir}/clamd.ctl\nFixStaleSocket yes\nTCPSocket {port}\nTCPAddr 127.0.0.1\n\
             StreamMaxLength {CLAMD_STREAM_MAX}\nAlertEncrypted yes\nAlertExceedsMax yes\n\
             MaxThreads 4\nLogVerbose yes\nSelfCheck 0\n"
        );
        let file = directory.join("clamd.conf");
        fs::write(&file, config)?;
        let process = Self::run(host, &file)?;
        Ok(Self { process, directory })
    }

    fn run(host: &Host, config: &Path) -> Result<Process> {
        let mut command = host.command("clamd");
        command.arg("--config-file").arg(config);
        let process = host.start("clamd", command)?;
        host.wait_for_port(Self::PORT).with_context(|| process.log())?;
        Ok(process)
    }

    /// Starts it again after it was killed.
    pub fn restart(&mut self, host: &Host) -> Result<()> {
        self.process = Self::run(host, &self.directory.join("clamd.conf"))?;
        Ok(())
    }

    /// Its unix socket.
    pub fn socket(&self) -> PathBuf {
        self.directory.join("clamd.ctl")
    }

    /// Its directory of signatures.
    pub fn database(&self) -> PathBuf {
        self.directory.join("db")
    }

    /// The process.
    pub fn process(&self) -> &Process {
        &self.process
    }
}

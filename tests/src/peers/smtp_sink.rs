//! Postfix's smtp-sink: a mail server that takes every message and keeps none.

use crate::host::{Host, Process};
use anyhow::{Context, Result};

/// A running smtp-sink on port 25, both families. One process, one thread, every session in it.
#[derive(Debug)]
pub struct SmtpSink {
    process: Process,
}

impl SmtpSink {
    /// Starts it and waits until it listens.
    pub fn start(host: &Host) -> Result<Self> {
        let mut command = host.command("smtp-sink");
        command.args(["-u", "postfix", "-h", "mail.server.example", ":25", "1024"]);
        let process = host.start("smtp-sink", command)?;
        host.wait_for_port(25).with_context(|| process.log())?;
        Ok(Self { process })
    }

    /// The running program.
    pub fn process(&self) -> &Process {
        &self.process
    }
}

//! Starting `vscan-scanner`: the child process, its control socket, and its first words.

use crate::{
    config,
    net::seqpacket,
    supervisor::privileges::{self, confine, inherited_number},
};
use serde::{Deserialize, Serialize};
use std::{
    io,
    os::fd::OwnedFd,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::unix::pipe,
};
use vscan_scan::wire::{DATAGRAM_MAX, Status};

/// How long rules may take to load. Six thousand rules take seconds from source on a slow machine.
pub const LOAD_TIMEOUT: Duration = Duration::from_secs(300);

/// What to start.
#[derive(Clone, Debug)]
pub struct Spec {
    /// The program `vscan-scanner`.
    pub program: PathBuf,
    /// Rule files and directories.
    pub rules: Vec<PathBuf>,
    /// The key that authenticates compiled rules.
    pub rules_key: PathBuf,
    /// The limits, as the JSON that the scanner takes.
    pub limits: String,
    /// Number of workers.
    pub workers: usize,
    /// Most threads of one of them.
    pub threads: usize,
    /// The clamd that is asked too, by whoever asks the scanner.
    pub clamd: Option<config::Clamd>,
}

/// The rules that a scanner has loaded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rules {
    /// Identity of engine and rules.
    pub version: String,
    /// Number of rules.
    pub count: u64,
    /// When the youngest of their files was changed, in seconds since 1970.
    pub newest: Option<i64>,
}

impl Rules {
    /// How old the youngest of their files is now, in seconds.
    #[must_use]
    pub fn age(&self) -> Option<u64> {
        let now = jiff::Timestamp::now().as_second();
        self.newest.map(|newest| u64::try_from(now.saturating_sub(newest)).unwrap_or(0))
    }
}

/// A scanner process that has loaded its rules.
#[derive(Debug)]
pub struct Process {
    /// The zygote.
    pub child: Child,
    /// Our end of the control socket. The process ends when every copy of it is closed and it is idle.
    pub control: Option<OwnedFd>,
    /// What it has loaded.
    pub rules: Rules,
    /// What the scanner thinks doubtful about the rules.
    pub warnings: Vec<String>,
    /// Milliseconds it took to load them.
    pub millis: u64,
}

/// Why there is no scanner.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The program cannot be run.
    #[error("{program}: {error}; it is installed beside vscan, or named by `scan.program`")]
    Program {
        /// The program.
        program: PathBuf,
        /// What execve(2) says.
        error: io::Error,
    },
    /// The scanner refuses its rules or limits.
    #[error("{0}")]
    Refused(String),
    /// It ended or fell silent before it was ready.
    #[error("the scanner did not become ready: {0}")]
    NotReady(String),
}

/// The scanner program that belongs to this `vscan`: the file beside it.
///
/// # Errors
/// /proc is not there.
pub fn beside_this_program() -> io::Result<PathBuf> {
    Ok(std::env::current_exe()?.with_file_name("vscan-scanner"))
}

/// A scanner process that is loading its rules.
#[derive(Debug)]
pub struct Starting {
    child: Child,
    control: OwnedFd,
    status: pipe::Receiver,
}

/// Starts a scanner. Its life is bound to the calling thread's (`PR_SET_PDEATHSIG`).
///
/// # Errors
/// [`StartError::Program`].
pub fn spawn(spec: &Spec) -> Result<Starting, StartError> {
    let program = |error| StartError::Program { program: spec.program.clone(), error };
    let (control, theirs) = seqpacket::pair(DATAGRAM_MAX).map_err(program)?;
    let (status, status_theirs) = io::pipe().map_err(program)?;
    let status_theirs = OwnedFd::from(status_theirs);
    let mut command = Command::new(&spec.program);
    for path in &spec.rules {
        command.arg("--rules").arg(path);
    }
    command
        .arg("--rules-key")
        .arg(&spec.rules_key)
        .args(["--limits", &spec.limits])
        .args(["--workers", &spec.workers.to_string()])
        .args(["--threads", &spec.threads.to_string()])
        .args(["--control-fd", &inherited_number(&theirs)])
        .args(["--status-fd", &inherited_number(&status_theirs)])
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    confine(&mut command, privileges::SCANNER, vec![theirs, status_theirs]);
    let child = command.spawn().map_err(program)?;
    let status = pipe::Receiver::from_owned_fd(status.into()).map_err(program)?;
    Ok(Starting { child, control, status })
}

impl Starting {
    /// Waits until the rules are loaded.
    ///
    /// # Errors
    /// [`StartError::Refused`], [`StartError::NotReady`]; no process is left then.
    pub async fn ready(mut self) -> Result<Process, StartError> {
        let mut line = String::new();
        let mut status = BufReader::new(self.status);
        let read = tokio::time::timeout(LOAD_TIMEOUT, status.read_line(&mut line)).await;
        let failure = match read {
            Err(_) => StartError::NotReady("its rules do not finish loading".to_owned()),
            Ok(Err(error)) => StartError::NotReady(error.to_string()),
            Ok(Ok(0)) => StartError::NotReady("it ended at once; the log says why".to_owned()),
            Ok(Ok(_)) => match serde_json::from_str(&line) {
                Ok(Status::Ready { rules, version, warnings, millis, newest }) => {
                    let (child, control) = (self.child, Some(self.control));
                    let rules = Rules { version, count: rules, newest };
                    return Ok(Process { child, control, rules, warnings, millis });
                }
                Ok(Status::Failed { error }) => StartError::Refused(error),
                Err(error) => StartError::NotReady(format!("{error} in {line:?}")),
            },
        };
        // It may have ended by itself: then there is nothing to kill, only to reap.
        let _ = self.child.kill();
        let _ = self.child.wait();
        Err(failure)
    }
}

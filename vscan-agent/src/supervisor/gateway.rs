//! The gateway's process, as the supervisor sees it.

use super::{
    channel::{
        Channel, DESCRIPTOR_VARIABLE, Duty, ToGateway, ToSupervisor, bytes_to_descriptor,
        text_to_descriptor,
    },
    privileges::{self, confine, inherited_number},
};
use std::{
    io,
    os::{fd::AsFd, unix::process::CommandExt},
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};
use tokio::time::Instant;

/// A gateway that has not beaten for this long hangs: it is killed, its connections are reset.
pub const HUNG_AFTER: Duration = Duration::from_secs(10);

/// How long a gateway may take to listen. It opens sockets and files, nothing else.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// A running gateway.
#[derive(Debug)]
pub struct Gateway {
    child: Child,
    /// The channel to it.
    pub channel: Channel,
    /// When it beat last.
    pub last_beat: Instant,
    /// When it was started.
    pub started: Instant,
}

/// Why there is no gateway.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// It says so itself.
    #[error("{error}")]
    Failed {
        /// An exit code of sysexits.h.
        code: u8,
        /// What, where, and what to do.
        error: String,
    },
    /// The process could not be started or spoken to.
    #[error("the gateway process cannot be started: {0}")]
    Io(#[from] io::Error),
}

impl Gateway {
    /// Starts the gateway and waits until it listens. Its life is bound to the calling thread's.
    ///
    /// # Errors
    /// [`GatewayError`]; no process is left then.
    pub async fn start(
        file: &Path,
        text: &str,
        keys: &[u8],
        duty: Duty,
    ) -> Result<Self, GatewayError> {
        let (channel, theirs) = Channel::pair()?;
        let mut command = Command::new("/proc/self/exe");
        command
            .arg0("vscan")
            .arg("gateway")
            .env(DESCRIPTOR_VARIABLE, inherited_number(&theirs))
            .env_remove("NOTIFY_SOCKET")
            .env_remove("WATCHDOG_USEC")
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let capabilities = match duty {
            Duty::Everything => privileges::GATEWAY,
            Duty::Mailboxes => privileges::SCANNER,
        };
        confine(&mut command, capabilities, vec![theirs]);
        let child = command.spawn()?;
        drop(command);
        let now = Instant::now();
        let mut gateway = Self { child, channel, last_beat: now, started: now };
        let listening = async {
            let (text, keys) = (text_to_descriptor(text)?, bytes_to_descriptor(keys)?);
            let start = ToGateway::Start { file: file.to_owned(), duty };
            gateway.channel.send(&start, &[text.as_fd(), keys.as_fd()]).await?;
            loop {
                match gateway.channel.receive().await? {
                    Some((ToSupervisor::Listening, _)) => return Ok(()),
                    Some((ToSupervisor::Failed { code, error }, _)) => {
                        return Err(GatewayError::Failed { code, error });
                    }
                    Some((
                        ToSupervisor::Beat
                        | ToSupervisor::Reload
                        | ToSupervisor::KnownAs { .. }
                        | ToSupervisor::Cut { .. }
                        | ToSupervisor::Uncut { .. },
                        _,
                    )) => {}
                    None => {
                        return Err(GatewayError::Io(io::Error::other(
                            "it ended at once; see the log",
                        )));
                    }
                }
            }
        };
        let outcome = tokio::time::timeout(START_TIMEOUT, listening).await.unwrap_or_else(|_| {
            Err(GatewayError::Io(io::Error::other("it does not become ready")))
        });
        match outcome {
            Ok(()) => {
                gateway.last_beat = Instant::now();
                Ok(gateway)
            }
            Err(error) => {
                gateway.kill();
                Err(error)
            }
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has ended, and how.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Whether it has stopped making progress.
    pub fn hangs(&self) -> bool {
        self.last_beat.elapsed() > HUNG_AFTER
    }

    /// Ends it at once; the kernel resets its connections.
    pub fn kill(&mut self) {
        // It may have ended by itself: then there is nothing to kill, only to reap.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.kill();
    }
}

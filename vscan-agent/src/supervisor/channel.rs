//! The messages between supervisor and gateway, over an inherited socket pair.

use crate::scanner::process::Rules;
use crate::{
    kernel::{Counts, Seen},
    net::{Seqpacket, seqpacket},
};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    fs::File,
    io::{self, IoSlice, Read, Seek, Write},
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::PathBuf,
    time::Duration,
};

/// Environment variable that tells the gateway its descriptor number.
pub const DESCRIPTOR_VARIABLE: &str = "VSCAN_CHANNEL_FD";

/// Upper bound of a message, in bytes. Long texts travel as descriptors.
const MESSAGE_MAX: usize = 32 * 1024;

/// Connections in one [`ToGateway::Passing`]: a hundred bytes each fit into a message.
pub const PASSING_MAX: usize = 250;

/// What a supervisor and its gateway are there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Duty {
    /// `vscan run`: the connections that are steered here, and mailboxes.
    Everything,
    /// `vscan mailbox run`: mailboxes alone, without any privilege.
    Mailboxes,
}

/// Supervisor to gateway.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToGateway {
    /// The first message. Attached: the text of the configuration, and the keys and certificates that it names.
    Start {
        /// The file it came from, for messages.
        file: PathBuf,
        /// What it has to do.
        duty: Duty,
    },
    /// A scanner process is ready. Attached: its control socket.
    Scanner {
        /// What it has loaded.
        rules: Rules,
    },
    /// Kernel state is installed. Attached: the map descriptors.
    Kernel {
        /// What each descriptor is.
        names: Vec<String>,
        /// How connections are steered, in words, e.g. `bpf (tcx)`.
        steering: String,
    },
    /// What passed without the gateway, where nftables steers alone and there are no maps to read.
    Passing {
        /// What the rules counted.
        counts: Counts,
        /// Connections that pass now, at most [`PASSING_MAX`].
        seen: Vec<Seen>,
    },
    /// What became of a [`ToSupervisor::KnownAs`].
    KnownAs {
        /// Which one.
        question: u64,
        /// The address; none where it is not known.
        address: Option<IpAddr>,
    },
    /// A configuration that the supervisor has checked. Attached: its text, and the keys and certificates that it
    /// names, read anew.
    Reload {
        /// The file it came from.
        file: PathBuf,
    },
    /// What became of a [`ToSupervisor::Reload`].
    Reloaded {
        /// What was wrong; the former configuration and rules go on.
        error: Option<String>,
    },
    /// Take no more connections, let sessions come to an end, then exit.
    Drain,
}

/// Gateway to supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToSupervisor {
    /// Connections are accepted.
    Listening,
    /// The gateway cannot start, and exits.
    Failed {
        /// An exit code of sysexits.h.
        code: u8,
        /// What, where, and what to do.
        error: String,
    },
    /// Session workers make progress.
    Beat,
    /// By which address does the peer of this connection know the gateway's end? Answered by [`ToGateway::KnownAs`].
    KnownAs {
        /// A number for the answer.
        question: u64,
        /// The gateway's end.
        local: SocketAddr,
        /// The peer.
        peer: SocketAddr,
    },
    /// A host sends too much mail: its new SMTP connections are to be refused.
    Cut {
        /// The host.
        host: IpAddr,
        /// For how long.
        time: Duration,
    },
    /// It may send again.
    Uncut {
        /// The host.
        host: IpAddr,
    },
    /// An operator asks for a reload; answered by [`ToGateway::Reloaded`].
    Reload,
}

/// One end of the channel.
#[derive(Debug)]
pub struct Channel {
    socket: Seqpacket,
}

impl Channel {
    /// Makes a channel: this process's end, and the descriptor for the other process.
    ///
    /// # Errors
    /// What socketpair(2) returns.
    pub fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = seqpacket::pair(MESSAGE_MAX)?;
        Ok((Self::new(ours)?, theirs))
    }

    /// Takes over an inherited end.
    ///
    /// # Errors
    /// It is not a socket that can be polled.
    pub fn new(descriptor: OwnedFd) -> io::Result<Self> {
        Ok(Self { socket: Seqpacket::new(descriptor)? })
    }

    /// Sends a message.
    ///
    /// # Errors
    /// The other process is gone.
    pub async fn send<T: Serialize>(
        &self,
        message: &T,
        descriptors: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        let bytes = postcard::to_stdvec(message).map_err(io::Error::other)?;
        self.socket.send(&[IoSlice::new(&bytes)], descriptors).await
    }

    /// Receives a message; `None` when the other process is gone.
    ///
    /// # Errors
    /// Not a message of this build.
    pub async fn receive<T: DeserializeOwned>(&self) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        let mut buffer = vec![0; MESSAGE_MAX];
        let received = match self.socket.receive(&mut buffer).await {
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
            received => received?,
        };
        if received.len == 0 {
            return Ok(None);
        }
        let message = postcard::from_bytes(&buffer[..received.len]).map_err(io::Error::other)?;
        Ok(Some((message, received.descriptors)))
    }
}

/// Puts a text into a sealed memfd, to be attached to a message.
///
/// # Errors
/// No memory or descriptors left.
pub fn text_to_descriptor(text: &str) -> io::Result<OwnedFd> {
    bytes_to_descriptor(text.as_bytes())
}

/// Puts bytes into a sealed memfd, to be attached to a message.
///
/// # Errors
/// No memory or descriptors left.
pub fn bytes_to_descriptor(bytes: &[u8]) -> io::Result<OwnedFd> {
    let memfd = memfd_create("vscan-text", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut file = File::from(memfd);
    file.write_all(bytes)?;
    fcntl_add_seals(
        file.as_fd(),
        SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL,
    )?;
    Ok(file.into())
}

/// Reads what [`text_to_descriptor`] wrote.
///
/// # Errors
/// Not UTF-8, or not readable.
pub fn descriptor_to_text(descriptor: OwnedFd) -> io::Result<String> {
    String::from_utf8(descriptor_to_bytes(descriptor)?)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Reads what [`bytes_to_descriptor`] wrote.
///
/// # Errors
/// Not readable.
pub fn descriptor_to_bytes(descriptor: OwnedFd) -> io::Result<Vec<u8>> {
    let mut file = File::from(descriptor);
    file.rewind()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn messages_and_texts_cross_the_channel() {
        let (ours, theirs) = Channel::pair().unwrap();
        let theirs = Channel::new(theirs).unwrap();
        let text = "key = 1\n".repeat(50_000);
        let descriptor = text_to_descriptor(&text).unwrap();
        let file = "/etc/vscan/vscan.toml".into();
        let start = ToGateway::Start { file, duty: Duty::Everything };
        ours.send(&start, &[descriptor.as_fd()]).await.unwrap();
        let (message, mut descriptors) = theirs.receive::<ToGateway>().await.unwrap().unwrap();
        assert_eq!(message, start);
        assert!(descriptor_to_text(descriptors.remove(0)).unwrap() == text);
        theirs.send(&ToSupervisor::Beat, &[]).await.unwrap();
        let (beat, _) = ours.receive::<ToSupervisor>().await.unwrap().unwrap();
        assert_eq!(beat, ToSupervisor::Beat);
        drop(theirs);
        assert!(ours.receive::<ToSupervisor>().await.unwrap().is_none());
    }
}

//! `SOCK_SEQPACKET` sockets that carry messages with descriptors (unix(7), `SCM_RIGHTS`).
//!
//! Used between supervisor, gateway and scanner. One message is one datagram.

use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
        SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg,
        sendmsg, socketpair,
    },
};
use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};
use tokio::io::{Interest, unix::AsyncFd};

/// Descriptors that one message may carry.
pub const DESCRIPTORS_MAX: usize = 16;

/// One end of a socket pair, registered with the runtime.
#[derive(Debug)]
pub struct Seqpacket<F: Descriptor = OwnedFd> {
    fd: AsyncFd<F>,
}

/// A received message: how many bytes were written into the caller's buffer, and what came with it.
#[derive(Debug)]
pub struct Received {
    /// Length of the message in bytes; 0 is the end of the stream.
    pub len: usize,
    /// Descriptors that came with it, close-on-exec.
    pub descriptors: Vec<OwnedFd>,
}

/// What a [`Seqpacket`] may be made of.
pub trait Descriptor: AsFd + AsRawFd + sealed::Sealed {}
impl Descriptor for OwnedFd {}
impl Descriptor for BorrowedFd<'_> {}

mod sealed {
    pub trait Sealed {}
    impl Sealed for std::os::fd::OwnedFd {}
    impl Sealed for std::os::fd::BorrowedFd<'_> {}
}

/// Makes a connected, close-on-exec, non-blocking pair whose buffers hold messages of `message_max` bytes.
///
/// # Errors
/// What socketpair(2) returns.
pub fn pair(message_max: usize) -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (a, b) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    for end in [&a, &b] {
        rustix::net::sockopt::set_socket_send_buffer_size(end, 2 * message_max)?;
    }
    Ok((a, b))
}

impl Seqpacket {
    /// Takes over one end of a pair.
    ///
    /// # Errors
    /// The descriptor cannot be polled, or there is no runtime.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        Self::register(fd)
    }
}

impl<F: Descriptor> Seqpacket<F> {
    /// Registers a descriptor that does not block with the runtime of the calling task, until it is dropped.
    ///
    /// # Errors
    /// As [`Seqpacket::new`].
    pub fn register(fd: F) -> io::Result<Self> {
        // SAFETY: these always return the same descriptor, and it stays open until they are dropped.
        let registered = unsafe { AsyncFd::register(fd) };
        Ok(Self { fd: registered.map_err(|error| error.into_parts().1)? })
    }

    /// Registers a descriptor that is only received from, as [`Self::register`]: room in its buffer, which comes and goes
    /// with every message, wakes nobody.
    ///
    /// # Errors
    /// As [`Seqpacket::new`].
    pub fn register_receiver(fd: F) -> io::Result<Self> {
        // SAFETY: as in `register`.
        let registered = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
        Ok(Self { fd: registered.map_err(|error| error.into_parts().1)? })
    }

    /// Sends one message; not by one that was registered as a receiver.
    ///
    /// # Errors
    /// `EPIPE` when the other end is gone, `EMSGSIZE` when the message exceeds the socket's buffer.
    pub async fn send(
        &self,
        parts: &[IoSlice<'_>],
        descriptors: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        loop {
            match send(self.fd.get_ref().as_fd(), parts, descriptors) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let mut guard = self.fd.writable().await?;
                    match guard.try_io(|fd| send(fd.get_ref().as_fd(), parts, descriptors)) {
                        Ok(result) => return result,
                        Err(_would_block) => {}
                    }
                }
                result => return result,
            }
        }
    }

    /// Sends one message if the other end can take it at once.
    ///
    /// # Errors
    /// As [`Self::send`], and `WouldBlock`.
    pub fn try_send(
        &self,
        parts: &[IoSlice<'_>],
        descriptors: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        send(self.fd.get_ref().as_fd(), parts, descriptors)
    }

    /// Receives one message into `buffer`.
    ///
    /// # Errors
    /// `InvalidData` when the message is larger than `buffer` or carries more than
    /// [`DESCRIPTORS_MAX`] descriptors; what recvmsg(2) returns.
    pub async fn receive(&self, buffer: &mut [u8]) -> io::Result<Received> {
        loop {
            let mut guard = self.fd.readable().await?;
            match guard.try_io(|fd| receive(fd.get_ref().as_fd(), buffer)) {
                Ok(result) => return result,
                Err(_would_block) => {}
            }
        }
    }

    /// The descriptor itself, e.g. to keep a duplicate.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.get_ref().as_fd()
    }
}

fn send(
    fd: BorrowedFd<'_>,
    parts: &[IoSlice<'_>],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    if descriptors.len() > DESCRIPTORS_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors"));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    loop {
        match sendmsg(fd, parts, &mut ancillary, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
            Ok(_whole) => return Ok(()),
        }
    }
}

fn receive(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Received> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let message = loop {
        match recvmsg(fd, &mut [IoSliceMut::new(buffer)], &mut ancillary, flags) {
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
            Ok(message) => break message,
        }
    };
    let mut descriptors = Vec::new();
    for received in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = received {
            descriptors.extend(rights);
        }
    }
    if message.flags.contains(ReturnFlags::TRUNC) || message.flags.contains(ReturnFlags::CTRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "message truncated"));
    }
    Ok(Received { len: message.bytes, descriptors })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_message_arrives_whole_with_its_descriptors() {
        let (a, b) = pair(64 * 1024).unwrap();
        let (a, b) = (Seqpacket::new(a).unwrap(), Seqpacket::new(b).unwrap());
        let null = std::fs::File::open("/dev/null").unwrap();
        a.send(&[IoSlice::new(b"head"), IoSlice::new(&[7; 50_000])], &[null.as_fd()])
            .await
            .unwrap();
        a.send(&[IoSlice::new(b"second")], &[]).await.unwrap();
        let mut buffer = vec![0; 64 * 1024];
        let first = b.receive(&mut buffer).await.unwrap();
        assert_eq!((first.len, first.descriptors.len()), (50_004, 1));
        assert_eq!(&buffer[..4], b"head");
        let second = b.receive(&mut buffer).await.unwrap();
        assert_eq!(&buffer[..second.len], b"second");
        drop(a);
        assert_eq!(b.receive(&mut buffer).await.unwrap().len, 0);
    }

    #[tokio::test]
    async fn a_message_larger_than_the_buffer_is_an_error() {
        let (a, b) = pair(1024).unwrap();
        let (a, b) = (Seqpacket::new(a).unwrap(), Seqpacket::new(b).unwrap());
        a.send(&[IoSlice::new(&[1; 100])], &[]).await.unwrap();
        let error = b.receive(&mut [0; 10]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[tokio::test]
    async fn a_full_socket_waits_for_its_reader() {
        let (a, b) = pair(4096).unwrap();
        let (a, b) = (Seqpacket::new(a).unwrap(), Seqpacket::new(b).unwrap());
        let writer = tokio::spawn(async move {
            for n in 0..500_u32 {
                a.send(&[IoSlice::new(&n.to_le_bytes()), IoSlice::new(&[0; 2000])], &[])
                    .await
                    .unwrap();
            }
        });
        let mut buffer = vec![0; 4096];
        for n in 0..500_u32 {
            assert_eq!(b.receive(&mut buffer).await.unwrap().len, 2004);
            assert_eq!(buffer[..4], n.to_le_bytes());
        }
        writer.await.unwrap();
    }
}

//! Messages of [`crate::wire`] over a `SOCK_SEQPACKET` socket: one datagram each, at most one descriptor with it.
//!
//! Blocking or not is the socket's own; nothing here waits otherwise.

use crate::wire::{Answer, DATAGRAM_MAX, Pieces, Response};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg,
    sendmsg, socketpair, sockopt,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// A connected pair of sockets, close-on-exec, blocking, with room for the largest datagram.
///
/// # Errors
/// Those of socketpair(2).
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let pair = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    for end in [&pair.0, &pair.1] {
        // A smaller value where net.core.wmem_max is smaller: its default takes a largest datagram too.
        sockopt::set_socket_send_buffer_size(end, 2 * DATAGRAM_MAX)?;
    }
    Ok(pair)
}

/// Sends one message.
///
/// # Errors
/// Those of sendmsg(2): `WouldBlock` on a non-blocking socket without room, `BrokenPipe` when the other end
/// is closed. `InvalidInput` when the message is larger than [`DATAGRAM_MAX`].
pub fn send<T: Serialize>(
    socket: impl AsFd,
    message: &T,
    descriptor: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let bytes =
        postcard::to_stdvec(message).map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))?;
    if bytes.len() > DATAGRAM_MAX {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "message larger than DATAGRAM_MAX",
        ));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = descriptor.as_slice();
    if !descriptors.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    loop {
        match sendmsg(&socket, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// Receives one message; None at the end of file. `buffer` is of [`DATAGRAM_MAX`] bytes and reused.
///
/// # Errors
/// Those of recvmsg(2), among them `WouldBlock`; `InvalidData` for what is no such message.
pub fn recv<T: DeserializeOwned>(
    socket: impl AsFd,
    buffer: &mut [u8],
) -> io::Result<Option<(T, Option<OwnedFd>)>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        match recvmsg(
            &socket,
            &mut [IoSliceMut::new(buffer)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        ) {
            Err(Errno::INTR) => {}
            other => break other?,
        }
    };
    let mut descriptor = None;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(mut descriptors) = message {
            descriptor = descriptors.next();
        }
    }
    if received.bytes == 0 {
        return Ok(None);
    }
    if received.flags.contains(ReturnFlags::TRUNC) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "datagram larger than DATAGRAM_MAX",
        ));
    }
    let message = postcard::from_bytes(&buffer[..received.bytes])
        .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
    Ok(Some((message, descriptor)))
}

/// Receives the answer to the request `id` in all its pieces; None when the worker has ended. Blocks.
///
/// # Errors
/// As [`recv`]; `InvalidData` for what is no answer to this request.
pub fn recv_answer(socket: impl AsFd, buffer: &mut [u8], id: u64) -> io::Result<Option<Answer>> {
    let mut pieces = Pieces::new(id, usize::MAX);
    while let Some((response, _)) = recv::<Response>(&socket, buffer)? {
        let answer =
            pieces.push(response).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
        if answer.is_some() {
            return Ok(answer);
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Ask, Content, ObjectKind, Request};

    #[test]
    fn the_largest_inline_object_and_a_descriptor_pass_without_a_reader() {
        let (a, b) = pair().unwrap();
        let request = Request {
            id: 7,
            object: None,
            kind: ObjectKind::File,
            ask: Ask::Report { detail: false },
            name: Some("x".repeat(4096)),
            passwords: vec!["p".repeat(64); 16],
            time_limit_ms: 1,
            content: Content::Inline(vec![0xa5; crate::wire::INLINE_MAX]),
        };
        rustix::io::ioctl_fionbio(&a, true).unwrap();
        send(&a, &request, Some(b.as_fd())).unwrap();
        let mut buffer = vec![0; DATAGRAM_MAX];
        let (got, descriptor) = recv::<Request>(&b, &mut buffer).unwrap().unwrap();
        assert_eq!(got, request);
        assert!(descriptor.is_some());
        drop(a);
        assert!(recv::<Request>(&b, &mut buffer).unwrap().is_none());
    }
}

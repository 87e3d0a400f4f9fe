//! Messages to and from the kernel over netlink: building, sending, reading. What they say is said elsewhere.
//!
//! Formats: netlink(7), rtnetlink(7), `linux/netlink.h`, `linux/netfilter/nfnetlink.h`.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink::SocketAddrNetlink,
};

/// Which part of the kernel a socket speaks to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    /// Links, routes, rules, queueing disciplines.
    Route,
    /// nftables and conntrack.
    Netfilter,
}

/// Larger than any answer: the kernel makes dumps of at most 32 KiB (`NLMSG_GOODSIZE` and `netlink_dump`).
const BUFFER: usize = 64 * 1024;
/// Length of `struct nlmsghdr`.
const HEADER: usize = 16;
/// Flag of an attribute that contains others.
const NESTED: u16 = 1 << 15;

/// A netlink socket.
#[derive(Debug)]
pub(super) struct Socket {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

/// A message being built.
#[derive(Clone, Debug)]
pub(super) struct Message {
    bytes: Vec<u8>,
}

impl Message {
    /// A message of this type and flags, with the fixed header of its family behind the common one.
    pub(super) fn new(kind: u16, flags: i32, fixed: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(128);
        bytes.extend(0_u32.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        // flags are 16 bits wide, libc declares them as int
        bytes.extend(((flags | libc::NLM_F_REQUEST) as u16).to_ne_bytes());
        bytes.extend([0; 8]);
        bytes.extend(fixed);
        Self { bytes }
    }

    /// Adds an attribute.
    pub(super) fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        self.begin(kind, value.len());
        self.bytes.extend(value);
        self.pad();
        self
    }

    /// Adds an attribute that contains what `inner` adds.
    pub(super) fn nested(mut self, kind: u16, inner: impl FnOnce(Self) -> Self) -> Self {
        let at = self.bytes.len();
        self.begin(kind | NESTED, 0);
        let mut this = inner(self);
        let length = (this.bytes.len() - at) as u16;
        this.bytes[at..at + 2].copy_from_slice(&length.to_ne_bytes());
        this
    }

    /// Adds a string attribute, with its terminating zero.
    pub(super) fn string(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attribute(kind, &bytes)
    }

    fn begin(&mut self, kind: u16, length: usize) {
        self.bytes.extend(((4 + length) as u16).to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// A message that came: its type and what stands behind the common header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Received {
    /// Type.
    pub(super) kind: u16,
    /// Fixed header of the family, then attributes.
    pub(super) payload: Vec<u8>,
}

impl Received {
    /// The attributes behind a fixed header of this length.
    pub(super) fn attributes(&self, fixed: usize) -> Attributes<'_> {
        Attributes(self.payload.get(fixed..).unwrap_or_default())
    }
}

/// Attributes, one after the other; ends at the first that is malformed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attributes<'a>(pub(super) &'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(u16::from_ne_bytes(self.0.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(self.0.get(2..4)?.try_into().ok()?);
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind & 0x3fff, value))
    }
}

impl<'a> Attributes<'a> {
    /// The value of the first attribute of this kind.
    pub(super) fn find(mut self, kind: u16) -> Option<&'a [u8]> {
        Iterator::find(&mut self, |(k, _)| *k == kind).map(|(_, value)| value)
    }

    /// A number in host order.
    pub(super) fn u32(self, kind: u16) -> Option<u32> {
        Some(u32::from_ne_bytes(self.find(kind)?.get(..4)?.try_into().ok()?))
    }
}

impl Socket {
    /// A socket that receives answers, and what is sent to these multicast groups (`RTMGRP_*` bits).
    pub(super) fn open(family: Family, groups: u32) -> io::Result<Self> {
        let protocol = match family {
            // NETLINK_ROUTE is protocol 0
            Family::Route => None,
            Family::Netfilter => Some(rustix::net::netlink::NETFILTER),
        };
        let fd = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            protocol,
        )?;
        // 0: the kernel chooses the address
        rustix::net::bind(&fd, &SocketAddrNetlink::new(0, groups))?;
        Ok(Self { fd, sequence: 0, buffer: vec![0; BUFFER] })
    }

    /// Sends one message and waits until the kernel says that it is done.
    pub(super) fn request(&mut self, message: Message) -> io::Result<()> {
        self.batch(vec![message], 0)
    }

    /// Sends messages in one piece and waits for the answer to the one at `acknowledged`; the first error wins.
    pub(super) fn batch(&mut self, messages: Vec<Message>, acknowledged: usize) -> io::Result<()> {
        let mut bytes = Vec::new();
        let mut last = 0;
        for (i, mut message) in messages.into_iter().enumerate() {
            self.sequence = self.sequence.wrapping_add(1);
            let flags = &mut message.bytes[6..8];
            if i == acknowledged {
                flags[0] |= libc::NLM_F_ACK as u8;
                last = self.sequence;
            }
            finish(&mut message.bytes, self.sequence);
            bytes.extend(message.bytes);
        }
        rustix::net::send(&self.fd, &bytes, SendFlags::empty())?;
        let mut first_error = None;
        loop {
            for (received, sequence) in self.receive(RecvFlags::empty())? {
                let Some(code) = error_code(&received) else { continue };
                if code != 0 {
                    first_error.get_or_insert(io::Error::from_raw_os_error(-code));
                }
                if sequence == last || code != 0 {
                    // whatever else comes belongs to this batch: read away before the next request
                    while !self.receive(RecvFlags::DONTWAIT).unwrap_or_default().is_empty() {}
                    return first_error.map_or(Ok(()), Err);
                }
            }
        }
    }

    /// Sends a dump request and gives all messages of the answer.
    pub(super) fn dump(&mut self, mut message: Message) -> io::Result<Vec<Received>> {
        self.sequence = self.sequence.wrapping_add(1);
        let sequence = self.sequence;
        let flags = u16::from_ne_bytes([message.bytes[6], message.bytes[7]]);
        let flags = flags | libc::NLM_F_DUMP as u16;
        message.bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        finish(&mut message.bytes, sequence);
        rustix::net::send(&self.fd, &message.bytes, SendFlags::empty())?;
        let mut all = Vec::new();
        loop {
            for (received, answers) in self.receive(RecvFlags::empty())? {
                if answers != sequence {
                    continue;
                }
                if i32::from(received.kind) == libc::NLMSG_DONE {
                    return Ok(all);
                }
                match error_code(&received) {
                    Some(0) => return Ok(all),
                    Some(code) => return Err(io::Error::from_raw_os_error(-code)),
                    None => all.push(received),
                }
            }
        }
    }

    /// Sends one question and gives the message that answers it.
    pub(super) fn ask(&mut self, mut message: Message) -> io::Result<Received> {
        self.sequence = self.sequence.wrapping_add(1);
        let sequence = self.sequence;
        finish(&mut message.bytes, sequence);
        rustix::net::send(&self.fd, &message.bytes, SendFlags::empty())?;
        loop {
            for (received, answers) in self.receive(RecvFlags::empty())? {
                if answers != sequence {
                    continue;
                }
                return match error_code(&received) {
                    Some(code) => Err(io::Error::from_raw_os_error(-code)),
                    None => Ok(received),
                };
            }
        }
    }

    /// What has come, without waiting: for sockets that are members of groups. An overrun (`ENOBUFS`) is an error.
    pub(super) fn poll(&mut self) -> io::Result<Vec<Received>> {
        match self.receive(RecvFlags::DONTWAIT) {
            Ok(messages) => Ok(messages.into_iter().map(|(received, _)| received).collect()),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(Vec::new()),
            Err(e) => Err(e),
        }
    }

    fn receive(&mut self, flags: RecvFlags) -> io::Result<Vec<(Received, u32)>> {
        let (length, _) = loop {
            match rustix::net::recv(&self.fd, &mut self.buffer[..], flags) {
                Err(rustix::io::Errno::INTR) => {}
                other => break other?,
            }
        };
        let mut rest = &self.buffer[..length];
        let mut messages = Vec::new();
        while rest.len() >= HEADER {
            let word = |at: usize| {
                u32::from_ne_bytes([rest[at], rest[at + 1], rest[at + 2], rest[at + 3]])
            };
            let length = word(0) as usize;
            if length < HEADER || length > rest.len() {
                break;
            }
            let kind = u16::from_ne_bytes([rest[4], rest[5]]);
            messages.push((Received { kind, payload: rest[HEADER..length].to_vec() }, word(8)));
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(messages)
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn finish(bytes: &mut [u8], sequence: u32) {
    let length = bytes.len() as u32;
    bytes[..4].copy_from_slice(&length.to_ne_bytes());
    bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
}

/// The code of an answer: 0 done, negative an error; none if the message is no answer.
fn error_code(message: &Received) -> Option<i32> {
    if i32::from(message.kind) != libc::NLMSG_ERROR {
        return None;
    }
    Some(i32::from_ne_bytes(message.payload.get(..4)?.try_into().ok()?))
}

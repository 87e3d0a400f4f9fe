//! What rustls makes of records: bytes that were decrypted, what is to be said, and how the peer's stream has ended.

use rustls::{
    client::{ClientConnectionData, UnbufferedClientConnection},
    server::{ServerConnectionData, UnbufferedServerConnection},
    unbuffered::{ConnectionState, EncodeError, UnbufferedStatus, WriteTraffic},
};
use std::io;

/// How the peer's stream has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    No,
    /// By close_notify.
    Properly,
    /// With the TCP stream alone: somebody may have cut it off.
    Cut,
    /// By an error, which was told.
    Failed,
}

/// Where goes what is heard.
pub(super) struct Heard<'a> {
    pub(super) out: &'a mut [u8],
    pub(super) filled: usize,
    /// What does not fit into `out`.
    pub(super) plain: &'a mut Vec<u8>,
    pub(super) outgoing: &'a mut Vec<u8>,
    pub(super) ended: &'a mut Ended,
}

impl Heard<'_> {
    fn plain(&mut self, payload: &[u8]) {
        let room = self.out.len() - self.filled;
        // In order: once something is kept, so is all that follows.
        let fits = if self.plain.is_empty() { payload.len().min(room) } else { 0 };
        self.out[self.filled..self.filled + fits].copy_from_slice(&payload[..fits]);
        self.filled += fits;
        self.plain.extend_from_slice(&payload[fits..]);
    }

    fn say(&mut self, mut encode: impl FnMut(&mut [u8]) -> Result<usize, EncodeError>) {
        if let Err(EncodeError::InsufficientSize(needed)) = encode(&mut []) {
            let start = self.outgoing.len();
            self.outgoing.resize(start + needed.required_size, 0);
            let length = encode(&mut self.outgoing[start..]).unwrap_or_default();
            self.outgoing.truncate(start + length);
        }
    }
}

/// Either side's connection.
pub(super) trait Records {
    type Data;

    fn process<'c, 'i>(&'c mut self, records: &'i mut [u8])
    -> UnbufferedStatus<'c, 'i, Self::Data>;
}

impl Records for UnbufferedClientConnection {
    type Data = ClientConnectionData;

    fn process<'c, 'i>(
        &'c mut self,
        records: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(records)
    }
}

impl Records for UnbufferedServerConnection {
    type Data = ServerConnectionData;

    fn process<'c, 'i>(
        &'c mut self,
        records: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(records)
    }
}

/// Has the connection handle records, as far as they are complete, and then calls `write` if it may write. Tells how
/// many bytes of the records are done with.
pub(super) fn handle<R: Records>(
    connection: &mut R,
    records: &mut [u8],
    heard: &mut Heard<'_>,
    write: &mut dyn FnMut(&mut WriteTraffic<'_, R::Data>) -> io::Result<()>,
) -> io::Result<usize> {
    let mut used = 0;
    loop {
        let UnbufferedStatus { discard, state, .. } = connection.process(&mut records[used..]);
        let more = match state {
            Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                while let Some(record) = traffic.next_record() {
                    heard.plain(record.map_err(failed)?.payload);
                }
                true
            }
            Ok(ConnectionState::EncodeTlsData(mut data)) => {
                heard.say(|out| data.encode(out));
                true
            }
            // It is in `outgoing`.
            Ok(ConnectionState::TransmitTlsData(data)) => {
                data.done();
                true
            }
            Ok(ConnectionState::PeerClosed) => {
                *heard.ended = Ended::Properly;
                true
            }
            Ok(ConnectionState::WriteTraffic(mut traffic)) => {
                write(&mut traffic)?;
                false
            }
            // Early data is not allowed.
            Ok(_) => false,
            Err(error) => {
                *heard.ended = Ended::Failed;
                used += discard;
                alert(connection, &mut records[used..], heard);
                return Err(failed(error));
            }
        };
        used += discard;
        if !more {
            return Ok(used);
        }
    }
}

/// What a connection that has failed wants to tell its peer.
fn alert<R: Records>(connection: &mut R, records: &mut [u8], heard: &mut Heard<'_>) {
    // The alert, in plaintext or encrypted, and that it is written.
    for _ in 0..2 {
        match connection.process(records).state {
            Ok(ConnectionState::EncodeTlsData(mut data)) => heard.say(|out| data.encode(out)),
            Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
            Ok(_) | Err(_) => return,
        }
    }
}

fn failed(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

pub(super) fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

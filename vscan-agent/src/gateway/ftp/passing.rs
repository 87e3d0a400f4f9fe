//! Bytes that go on while they arrive: a streamed file, and the piece of a version that is known.

use super::{
    Place,
    memory::{Key, Memory, Version},
    transfer::{BUFFER_SIZE, Held, Step, Watch, count_bytes, with_buffer},
};
use crate::{blocks::BLOCK, spool::SpoolError};
use socket2::SockRef;
use std::{io, sync::Arc};
use tokio::{io::AsyncWriteExt, net::TcpStream};
use vscan_proto::ftp::{Broken, Leg};

/// A streamed file that has arrived, but for its last bytes also at the receiver.
pub(super) struct Streamed {
    pub(super) held: Held,
    /// The receiving leg; the rest is still to be written to it.
    pub(super) to: TcpStream,
    /// Bytes that went on.
    pub(super) sent: u64,
}

/// Reads `from` to its end into the spool, and relays to `to` all but the last `hold_back` bytes.
///
/// What the receiver does not take is not read from the sender. A file that begins like one that was
/// caught is not relayed at all. One that cannot be held is not relayed any further; its sender is left as
/// in [`receive`](super::transfer::receive).
///
/// # Errors
/// The leg that was reset, or was silent for too long. A client that sends is heard to its end even then.
pub(super) async fn stream(
    place: Place<'_>,
    from: TcpStream,
    to: TcpStream,
    source: Leg,
    watch: Watch,
) -> Result<Streamed, Broken> {
    let mut flow = Flow {
        place,
        source,
        watch: watch.clone(),
        from,
        to,
        sent: 0,
        relays: true,
        looked: false,
        receiver_broke: false,
    };
    let idle = place.config.gateway.idle_timeout;
    let held = watch.over(idle, flow.run()).await.map_err(|_| Broken { leg: source })?;
    if flow.receiver_broke {
        return Err(Broken { leg: source.other() });
    }
    Ok(Streamed { held, to: flow.to, sent: flow.sent })
}

struct Flow<'a> {
    place: Place<'a>,
    source: Leg,
    watch: Watch,
    from: TcpStream,
    to: TcpStream,
    sent: u64,
    /// Bytes go on.
    relays: bool,
    /// The first block was looked up.
    looked: bool,
    receiver_broke: bool,
}

impl Flow<'_> {
    async fn run(&mut self) -> io::Result<Held> {
        let hold_back = self.place.config.ftp.hold_back;
        let mut writer = Ok(self.place.gateway.spool.writer());
        loop {
            self.from.readable().await?;
            let step = with_buffer(|buffer| match self.from.try_read(buffer) {
                Ok(0) => Ok(Step::End),
                Ok(count) => {
                    self.watch.moved(count as u64);
                    count_bytes(self.place, self.source, count as u64);
                    if let Ok(open) = &mut writer
                        && let Err(error) = open.write(&buffer[..count])
                    {
                        writer = Err(error);
                    }
                    Ok(Step::Bytes)
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Step::Wait),
                Err(error) => Err(error),
            })?;
            match step {
                Step::Wait => continue,
                Step::End => break,
                Step::Bytes => {}
            }
            let Ok(open) = &writer else {
                if self.source == Leg::Upstream {
                    return Ok(unheld(writer, &self.watch));
                }
                continue;
            };
            if let Some(prefix) = open.prefix().filter(|_| !self.looked) {
                self.looked = true;
                self.relays &= !self.place.gateway.memory.caught_beginning(&prefix);
            }
            let until = open.len().saturating_sub(hold_back);
            // Few large writes: the border moves on by what one read may bring.
            if self.relays && until >= self.sent + (BUFFER_SIZE as u64) / 4 {
                if open.send(&mut self.to, self.sent, until).await.is_ok() {
                    self.sent = until;
                } else if self.source == Leg::Upstream {
                    self.receiver_broke = true;
                    // The server's leg is reset with it.
                    return Ok(unheld(writer, &self.watch));
                } else {
                    // Some clients try again for ever when they are cut.
                    self.receiver_broke = true;
                    self.relays = false;
                }
            }
        }
        SockRef::from(&self.from).set_linger(None)?;
        Ok(unheld(writer, &self.watch))
    }
}

fn unheld(writer: Result<crate::spool::Writer, SpoolError>, watch: &Watch) -> Held {
    match writer.and_then(|writer| writer.finish()) {
        Ok(object) => Held::Object(object),
        Err(error) => Held::Unheld(Arc::new(error), watch.total()),
    }
}

/// What became of a piece.
pub(super) enum Checked {
    /// It belongs to the version and is at the client, whose leg still has to be closed.
    Belongs(TcpStream),
    /// It does not; the client's leg, and whether bytes of the version have gone there.
    Differs { client: TcpStream, released: bool },
    /// A leg broke.
    Broken(Broken),
}

/// Relays the piece from `restart` on from the server to the client, each block when its hash has shown
/// that it is of this version. The server sends from the border below `restart` on.
pub(super) async fn check(
    place: Place<'_>,
    memory: &Memory,
    key: &Key,
    version: &Version,
    restart: u64,
    legs: (TcpStream, TcpStream),
    watch: Watch,
) -> Checked {
    let (from, to) = legs;
    let mut piece = Piece { place, version, from, to, watch: watch.clone(), released: false };
    let end = watch.over(place.config.gateway.idle_timeout, piece.run(restart)).await;
    match end {
        Ok(End::Whole) => {
            // Nothing more comes from the server, so that nothing is to be waited for.
            match SockRef::from(&piece.from).set_linger(None) {
                Ok(()) => Checked::Belongs(piece.to),
                Err(_) => Checked::Broken(Broken { leg: Leg::Upstream }),
            }
        }
        Ok(End::Short) => {
            // Broken off, or shorter by now: the next try fetches the whole.
            memory.forget(key);
            Checked::Broken(Broken { leg: Leg::Upstream })
        }
        Ok(End::Other) => {
            memory.forget(key);
            Checked::Differs { client: piece.to, released: piece.released }
        }
        Ok(End::Broken(leg)) => Checked::Broken(Broken { leg }),
        Err(_) => Checked::Broken(Broken { leg: Leg::Upstream }),
    }
}

enum End {
    Whole,
    /// It ended before the version does, and is of it so far.
    Short,
    Other,
    Broken(Leg),
}

struct Piece<'a> {
    place: Place<'a>,
    version: &'a Version,
    from: TcpStream,
    to: TcpStream,
    watch: Watch,
    released: bool,
}

impl Piece<'_> {
    async fn run(&mut self, restart: u64) -> io::Result<End> {
        let mut index = restart / BLOCK as u64;
        // Not asked for, but needed for the hash of the first block.
        let mut skip = usize::try_from(restart % BLOCK as u64).unwrap_or_default();
        let mut at = index * BLOCK as u64;
        let mut block = Vec::with_capacity(BLOCK);
        loop {
            if let Err(leg) = self.fill(&mut block).await {
                return Ok(End::Broken(leg));
            }
            let ended = block.len() < BLOCK;
            if ended && at + (block.len() as u64) < self.version.len() {
                return Ok(End::Short);
            }
            if block.is_empty() {
                let whole = at == self.version.len();
                return self.finish(whole).await;
            }
            if !self.version.has_block(index, &block) {
                return Ok(End::Other);
            }
            if self.to.write_all(block.get(skip..).unwrap_or_default()).await.is_err() {
                return Ok(End::Broken(Leg::Client));
            }
            self.released |= skip < block.len();
            skip = 0;
            at += block.len() as u64;
            index += 1;
            if ended {
                return self.finish(true).await;
            }
            block.clear();
        }
    }

    async fn finish(&mut self, whole: bool) -> io::Result<End> {
        if !whole {
            return Ok(End::Other);
        }
        Ok(if self.to.shutdown().await.is_ok() { End::Whole } else { End::Broken(Leg::Client) })
    }

    /// Reads a block, or what is left of the data.
    async fn fill(&mut self, block: &mut Vec<u8>) -> Result<(), Leg> {
        while block.len() < BLOCK {
            self.from.readable().await.map_err(|_| Leg::Upstream)?;
            let before = block.len();
            let read = with_buffer(|buffer| {
                let count = self.from.try_read(&mut buffer[..BLOCK - before])?;
                block.extend_from_slice(&buffer[..count]);
                Ok::<_, io::Error>(count)
            });
            match read {
                Ok(0) => return Ok(()),
                Ok(count) => {
                    self.watch.moved(count as u64);
                    count_bytes(self.place, Leg::Upstream, count as u64);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return Err(Leg::Upstream),
            }
        }
        Ok(())
    }
}

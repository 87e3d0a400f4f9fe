//! Bytes that go on while they arrive: a streamed file, and the piece of a version that is known.

use super::{
    Place,
    memory::{Key, Memory, Version},
    transfer::{self, BUFFER_SIZE, Held, Step, Watch},
};
use crate::{
    blocks::BLOCK,
    spool::{Object, SpoolError, Writer},
    tls::Wire,
};
use std::{io, sync::Arc, time::Instant};
use tokio::io::AsyncWriteExt;
use vscan_proto::ftp::{Broken, Leg};

/// A streamed file that has arrived, but for its last bytes also at the receiver.
pub(super) struct Streamed {
    pub(super) held: Held,
    /// The receiving leg; the rest is still to be written to it.
    pub(super) to: Wire,
    /// The sending leg, if it is still to be closed.
    pub(super) from: Option<Wire>,
    /// Bytes that went on.
    pub(super) sent: u64,
}

/// What has arrived of a streamed file. However the stream ends, what the receiver may have got of it is remembered:
/// what it gets later has to be of the same file.
struct Trail<'a> {
    place: Place<'a>,
    /// Under this name, of a transfer begun then; none: no pieces of it can be asked for.
    key: Option<(Key, Instant)>,
    writer: Option<Result<Writer, SpoolError>>,
    sent: u64,
    received: Option<Object>,
}

impl Trail<'_> {
    fn end(&mut self, watch: &Watch) -> Held {
        let writer = self.writer.take().unwrap_or_else(|| Ok(self.place.gateway.spool.writer()));
        match writer.and_then(Writer::finish) {
            Ok(object) => {
                self.received = Some(object.clone());
                Held::Object(object)
            }
            Err(error) => Held::Unheld(Arc::new(error), watch.total()),
        }
    }
}

impl Drop for Trail<'_> {
    fn drop(&mut self) {
        let Some((key, begun)) = self.key.take().filter(|_| self.sent > 0) else { return };
        if let Some(Ok(writer)) = self.writer.take() {
            self.received = writer.finish().ok();
        }
        let client = self.place.client.ip();
        self.place.gateway.memory.streamed(client, key, begun, self.received.as_ref());
    }
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
    from: Wire,
    to: Wire,
    source: Leg,
    watch: Watch,
    key: Option<(Key, Instant)>,
) -> Result<Streamed, Broken> {
    let writer = Some(Ok(place.gateway.spool.writer()));
    let mut trail = Trail { place, key, writer, sent: 0, received: None };
    let mut flow = Flow {
        place,
        source,
        watch: watch.clone(),
        from,
        to,
        relays: true,
        looked: false,
        receiver_broke: false,
        ended: false,
    };
    let idle = place.config.gateway.idle_timeout;
    let held = watch.over(idle, flow.run(&mut trail)).await.map_err(|_| Broken { leg: source })?;
    if flow.receiver_broke {
        return Err(Broken { leg: source.other() });
    }
    // A server whose file could not be held is in the middle of its bytes: reset.
    let from = if flow.ended { transfer::end(flow.from) } else { Ok(None) };
    let from = from.map_err(|_| Broken { leg: source })?;
    Ok(Streamed { held, to: flow.to, from, sent: trail.sent })
}

struct Flow<'a> {
    place: Place<'a>,
    source: Leg,
    watch: Watch,
    from: Wire,
    to: Wire,
    /// Bytes go on.
    relays: bool,
    /// The first block was looked up.
    looked: bool,
    receiver_broke: bool,
    /// The sender has said all.
    ended: bool,
}

impl Flow<'_> {
    async fn run(&mut self, trail: &mut Trail<'_>) -> io::Result<Held> {
        let hold_back = self.place.config.ftp.hold_back;
        loop {
            let step = transfer::read(self.place, self.source, &mut self.from, |bytes| {
                self.watch.moved(bytes.len() as u64);
                if let Some(Ok(open)) = &mut trail.writer
                    && let Err(error) = open.write(bytes)
                {
                    trail.writer = Some(Err(error));
                }
            });
            match step.await? {
                Step::End => break,
                Step::Bytes => {}
            }
            let Some(Ok(open)) = &trail.writer else {
                if self.source == Leg::Upstream {
                    return Ok(trail.end(&self.watch));
                }
                continue;
            };
            if let Some(prefix) = open.prefix().filter(|_| !self.looked) {
                self.looked = true;
                self.relays &= !self.place.gateway.memory.caught_beginning(&prefix);
            }
            let until = open.len().saturating_sub(hold_back);
            // Few large writes: the border moves on by what one read may bring.
            if self.relays && until >= trail.sent + (BUFFER_SIZE as u64) / 4 {
                let from = std::mem::replace(&mut trail.sent, until);
                if open.send(&mut self.to, from, until).await.is_err() {
                    self.receiver_broke = true;
                    if self.source == Leg::Upstream {
                        // The server's leg is reset with it.
                        return Ok(trail.end(&self.watch));
                    }
                    // Some clients try again for ever when they are cut.
                    self.relays = false;
                }
            }
        }
        self.ended = true;
        Ok(trail.end(&self.watch))
    }
}

/// What became of a piece.
pub(super) enum Checked {
    /// It belongs to the version and is at the client, whose leg still has to be closed, as may the server's.
    Belongs(Wire, Option<Wire>),
    /// It does not; the client's leg, and whether bytes of the version have gone there.
    Differs { client: Wire, released: bool },
    /// A leg broke.
    Broken(Broken),
}

/// Relays the piece from `restart` on from the server to the client, each block when its hash has shown
/// that it is of this version. The server sends from the border below `restart` on.
pub(super) async fn check(
    place: Place<'_>,
    memory: &Memory,
    key: &Key,
    version: &Arc<Version>,
    restart: u64,
    legs: (Wire, Wire),
    watch: Watch,
) -> Checked {
    let (from, to) = legs;
    let mut piece = Piece {
        place,
        memory,
        key,
        version,
        from,
        to,
        watch: watch.clone(),
        released: false,
        ahead: Vec::new(),
    };
    let end = watch.over(place.config.gateway.idle_timeout, piece.run(restart)).await;
    match end {
        Ok(End::Whole) => {
            // Nothing more comes from the server, so that nothing is to be waited for.
            match transfer::end(piece.from) {
                Ok(from) => Checked::Belongs(piece.to, from),
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
    memory: &'a Memory,
    key: &'a Key,
    version: &'a Arc<Version>,
    from: Wire,
    to: Wire,
    watch: Watch,
    released: bool,
    /// What came behind the block.
    ahead: Vec<u8>,
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
            let client = self.place.client.ip();
            if !self.released && !self.memory.checked(client, self.key, restart, self.version) {
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
        block.append(&mut self.ahead);
        while block.len() < BLOCK {
            let step = transfer::read(self.place, Leg::Upstream, &mut self.from, |bytes| {
                self.watch.moved(bytes.len() as u64);
                block.extend_from_slice(bytes);
            });
            match step.await {
                Ok(Step::Bytes) => {}
                Ok(Step::End) => return Ok(()),
                Err(_) => return Err(Leg::Upstream),
            }
        }
        self.ahead = block.split_off(BLOCK);
        Ok(())
    }
}

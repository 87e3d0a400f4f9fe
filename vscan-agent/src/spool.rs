//! Bytes of objects on their way: in memory first, then in an unlinked file, within one budget.
//!
//! A [`Writer`] takes the bytes as they arrive and hashes them (BLAKE3); [`Writer::finish`] turns them
//! into an [`Object`] that can be read any number of times. Nothing here knows what the bytes mean.
//!
//! | size | kept in | given to the scanner as |
//! |---|---|---|
//! | up to 64 KiB | the heap | bytes in the request |
//! | up to [`MEMFD_MAX`] | a memfd, sealed when complete | a read-only descriptor |
//! | more, or memory budget used up | an unlinked file (`O_TMPFILE`) | a read-only descriptor |

use crate::{
    blocking,
    blocks::{BlockHash, BlockHasher},
    scanner::{Ahead, Scanner},
    tls::Wire,
};
use rustix::{
    fs::{MemfdFlags, Mode, OFlags, SealFlags, fcntl_add_seals, memfd_create, open},
    io::Errno,
};
use std::{
    fs::File,
    io::{self, Read},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::fs::FileExt,
    },
    path::{Path, PathBuf},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::{io::AsyncWriteExt, net::TcpStream};
use vscan_scan::wire::INLINE_MAX;

/// Objects above this many bytes go to disk even while memory is left: one object must not
/// take what a thousand small ones need.
pub const MEMFD_MAX: u64 = 8 << 20;

/// Bytes that one sendfile(2) call may move before the runtime gets its turn.
const SENDFILE_STEP: usize = 1 << 20;

/// Bytes copied at a time when an object leaves memory; a multiple of BLAKE3's 1 KiB chunks.
pub const CHUNK: usize = 64 * 1024;

/// Why bytes could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// The object is larger than one object may be; it is `unscannable: size`.
    #[error("object exceeds {limit} bytes")]
    TooLarge {
        /// `spool.hold_max`, in bytes.
        limit: u64,
    },
    /// Memory and disk budget are used up, or the file system is full. Temporary.
    #[error("spool is full: {0}")]
    Full(String),
    /// The file system failed.
    #[error("spool: {0}")]
    Io(#[from] io::Error),
}

/// The budgets and the directory, shared by all sessions.
#[derive(Clone, Debug)]
pub struct Spool {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    directory: PathBuf,
    memory: Budget,
    disk: Budget,
    object_max: u64,
    /// Whose workers look at large objects while they arrive.
    scanner: OnceLock<Scanner>,
}

/// Bytes in use, of at most `limit`.
#[derive(Debug)]
struct Budget {
    limit: u64,
    used: AtomicU64,
}

impl Budget {
    fn take(&self, bytes: u64) -> bool {
        let mut used = self.used.load(Ordering::Relaxed);
        loop {
            let Some(wanted) = used.checked_add(bytes).filter(|sum| *sum <= self.limit) else {
                return false;
            };
            match self.used.compare_exchange_weak(
                used,
                wanted,
                Ordering::Relaxed,
                Ordering::Relaxed,
            ) {
                Ok(_) => return true,
                Err(now) => used = now,
            }
        }
    }

    fn give_back(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Spool {
    /// A spool with `memory` and `disk` bytes at most, whose objects have at most `object_max` bytes.
    ///
    /// # Errors
    /// `directory` cannot be made, or cannot hold unlinked files.
    pub fn new(directory: &Path, memory: u64, disk: u64, object_max: u64) -> io::Result<Self> {
        std::fs::create_dir_all(directory)?;
        unlinked_file(directory)?;
        Ok(Self {
            shared: Arc::new(Shared {
                directory: directory.to_owned(),
                memory: Budget { limit: memory, used: AtomicU64::new(0) },
                disk: Budget { limit: disk, used: AtomicU64::new(0) },
                object_max,
                scanner: OnceLock::new(),
            }),
        })
    }

    /// From now on large objects are looked at by this scanner while they arrive. The first one that is named stays.
    pub fn look_ahead(&self, scanner: &Scanner) {
        let _ = self.shared.scanner.set(scanner.clone());
    }

    /// Starts an object.
    pub fn writer(&self) -> Writer {
        Writer {
            ahead: None,
            store: Store::Heap(Vec::new()),
            len: 0,
            hasher: None,
            claim: Claim { shared: Arc::clone(&self.shared), memory: 0, disk: 0 },
        }
    }

    /// Bytes in use: in memory, on disk.
    pub fn used(&self) -> (u64, u64) {
        let load = |budget: &Budget| budget.used.load(Ordering::Relaxed);
        (load(&self.shared.memory), load(&self.shared.disk))
    }
}

/// What an object holds of the budgets; given back when it is dropped.
#[derive(Debug)]
struct Claim {
    shared: Arc<Shared>,
    memory: u64,
    disk: u64,
}

impl Claim {
    fn memory(&mut self, bytes: u64) -> bool {
        let taken = self.shared.memory.take(bytes);
        if taken {
            self.memory += bytes;
        }
        taken
    }

    fn disk(&mut self, bytes: u64) -> Result<(), SpoolError> {
        if !self.shared.disk.take(bytes) {
            return Err(SpoolError::Full(format!("{} bytes are on disk", self.shared.disk.limit)));
        }
        self.disk += bytes;
        Ok(())
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.shared.memory.give_back(self.memory);
        self.shared.disk.give_back(self.disk);
    }
}

#[derive(Debug)]
enum Store {
    Heap(Vec<u8>),
    Memfd(File),
    Disk(File),
}

/// An object that is being received.
#[derive(Debug)]
pub struct Writer {
    store: Store,
    len: u64,
    /// Small objects are hashed at once when they are complete.
    hasher: Option<Box<BlockHasher>>,
    claim: Claim,
    /// Who looks at it meanwhile, once it is on disk.
    ahead: Option<Ahead>,
}

impl Writer {
    /// Appends bytes.
    ///
    /// # Errors
    /// [`SpoolError`]; the writer then holds what came before and takes no more.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), SpoolError> {
        let limit = self.claim.shared.object_max;
        let added = bytes.len() as u64;
        let len = self.len + added;
        if len > limit {
            return Err(SpoolError::TooLarge { limit });
        }
        if let Store::Heap(heap) = &mut self.store {
            if len <= INLINE_MAX as u64 && self.claim.memory(added) {
                heap.extend_from_slice(bytes);
                self.len = len;
                return Ok(());
            }
            self.leave_heap()?;
        }
        if let Store::Memfd(_) = &self.store
            && (len > MEMFD_MAX || !self.claim.memory(added))
        {
            self.leave_memory()?;
        }
        if let Store::Disk(_) = &self.store {
            self.claim.disk(added)?;
        }
        match &self.store {
            Store::Heap(_) => {}
            Store::Memfd(file) => file.write_all_at(bytes, self.len)?,
            Store::Disk(file) => write_to_disk(file, bytes, self.len)?,
        }
        self.hasher.get_or_insert_default().update(bytes);
        self.len = len;
        // Not in memory: what is mapped elsewhere may not be sealed at once, and small objects are soon scanned.
        if let (Store::Disk(file), Some(scanner)) = (&self.store, self.claim.shared.scanner.get()) {
            self.ahead.get_or_insert_with(|| Ahead::new(scanner)).grown(file, len);
        }
        Ok(())
    }

    /// Bytes so far.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The object is complete: seals it.
    ///
    /// # Errors
    /// The kernel refused the seals.
    pub fn finish(self) -> Result<Object, SpoolError> {
        let (hash, blocks) = match (&self.store, self.hasher) {
            (Store::Heap(heap), None) => (blake3::hash(heap), Vec::new()),
            (_, Some(hasher)) => hasher.finish(),
            (_, None) => (blake3::hash(&[]), Vec::new()),
        };
        if let Store::Memfd(file) = &self.store {
            let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
            fcntl_add_seals(file, seals).map_err(io::Error::from)?;
        }
        let inner = Inner {
            store: self.store,
            len: self.len,
            hash,
            blocks,
            ahead: self.ahead,
            _claim: Some(self.claim),
        };
        Ok(Object { inner: Arc::new(inner) })
    }

    /// Hash of the first block, once bytes behind it have come: see [`Object::prefix`].
    pub fn prefix(&self) -> Option<BlockHash> {
        self.hasher.as_ref()?.first()
    }

    /// Appends the bytes of another object from `from` up to `to`.
    ///
    /// # Errors
    /// As [`write`](Self::write); `UnexpectedEof` when it has fewer.
    pub fn copy_from(&mut self, object: &Object, from: u64, to: u64) -> Result<(), SpoolError> {
        let mut buffer = vec![0; CHUNK];
        let mut at = from;
        while at < to {
            let want = usize::try_from(to - at).unwrap_or(usize::MAX).min(CHUNK);
            let count = object.read_at(&mut buffer[..want], at)?;
            if count == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            self.write(&buffer[..count])?;
            at += count as u64;
        }
        Ok(())
    }

    /// Sends the bytes from `from` up to `to`, which have been written already.
    ///
    /// # Errors
    /// The leg's reset.
    pub async fn send(&self, leg: &mut Wire, from: u64, to: u64) -> io::Result<()> {
        let end = to.min(self.len);
        match &self.store {
            // Not by sendfile(2): pages that the network still holds keep a memfd from being sealed
            // (EBUSY, fcntl(2) on F_SEAL_WRITE).
            Store::Memfd(file) => copy_file(file, from, end, leg).await,
            Store::Heap(_) | Store::Disk(_) => send_store(&self.store, from, end, leg).await,
        }
    }

    fn leave_heap(&mut self) -> Result<(), SpoolError> {
        let Store::Heap(heap) = &mut self.store else { return Ok(()) };
        let heap = std::mem::take(heap);
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | MemfdFlags::NOEXEC_SEAL;
        let memfd = memfd_create("vscan-object", flags)
            // Before Linux 6.3 there is no NOEXEC_SEAL.
            .or_else(|_| memfd_create("vscan-object", flags - MemfdFlags::NOEXEC_SEAL))
            .map_err(io::Error::from)?;
        let file = File::from(memfd);
        file.write_all_at(&heap, 0)?;
        self.hasher.get_or_insert_default().update(&heap);
        self.store = Store::Memfd(file);
        Ok(())
    }

    fn leave_memory(&mut self) -> Result<(), SpoolError> {
        let Store::Memfd(memfd) = &self.store else { return Ok(()) };
        self.claim.disk(self.len)?;
        let disk = unlinked_file(&self.claim.shared.directory)?;
        let mut offset = 0;
        let mut buffer = vec![0; CHUNK];
        while offset < self.len {
            let count = memfd.read_at(&mut buffer, offset)?;
            if count == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            write_to_disk(&disk, &buffer[..count], offset)?;
            offset += count as u64;
        }
        self.store = Store::Disk(disk);
        let shared = Arc::clone(&self.claim.shared);
        shared.memory.give_back(std::mem::take(&mut self.claim.memory));
        Ok(())
    }
}

/// A complete object. Cloning shares it; the last clone frees memory and budget.
#[derive(Clone, Debug)]
pub struct Object {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    store: Store,
    len: u64,
    hash: blake3::Hash,
    /// Of objects that left the heap.
    blocks: Vec<BlockHash>,
    /// Who looked at it while it arrived.
    ahead: Option<Ahead>,
    _claim: Option<Claim>,
}

impl Object {
    /// A file that lies on disk already, for scanning by hand. Whoever changes it meanwhile spoils
    /// the result, nothing else.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn of_file(mut file: File) -> io::Result<Self> {
        let len = file.metadata()?.len();
        let (store, hash) = if len <= INLINE_MAX as u64 {
            let mut heap = Vec::new();
            file.read_to_end(&mut heap)?;
            let hash = blake3::hash(&heap);
            (Store::Heap(heap), hash)
        } else {
            let mut hasher = blake3::Hasher::new();
            io::copy(&mut file, &mut hasher)?;
            (Store::Disk(file), hasher.finalize())
        };
        let len = match &store {
            Store::Heap(heap) => heap.len() as u64,
            Store::Memfd(_) | Store::Disk(_) => len,
        };
        let inner = Inner { store, len, hash, blocks: Vec::new(), ahead: None, _claim: None };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.inner.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.inner.len == 0
    }

    /// BLAKE3 of the bytes.
    pub fn hash(&self) -> blake3::Hash {
        self.inner.hash
    }

    /// Hashes of the blocks (see [`crate::blocks`]); one block has the object's own.
    pub fn blocks(&self) -> Vec<BlockHash> {
        if self.inner.blocks.is_empty() {
            vec![*self.inner.hash.as_bytes()]
        } else {
            self.inner.blocks.clone()
        }
    }

    /// Hash of the first block: what objects with the same beginning have in common.
    pub fn prefix(&self) -> BlockHash {
        self.inner.blocks.first().copied().unwrap_or(*self.inner.hash.as_bytes())
    }

    /// The bytes, where they are on the heap (up to 64 KiB).
    pub fn inline(&self) -> Option<&[u8]> {
        match &self.inner.store {
            Store::Heap(heap) => Some(heap),
            Store::Memfd(_) | Store::Disk(_) => None,
        }
    }

    /// A fresh read-only descriptor with an offset of its own; `None` for objects on the heap.
    ///
    /// # Errors
    /// No descriptors left, or no /proc.
    pub fn descriptor(&self) -> io::Result<Option<OwnedFd>> {
        self.file().map(reopen).transpose()
    }

    /// Who looked at it while it arrived.
    pub(crate) fn ahead(&self) -> Option<&Ahead> {
        self.inner.ahead.as_ref()
    }

    /// Reads at `offset` into `buffer`; 0 at the end.
    ///
    /// # Errors
    /// What pread(2) returns.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        match &self.inner.store {
            Store::Heap(heap) => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX).min(heap.len());
                let count = buffer.len().min(heap.len() - start);
                buffer[..count].copy_from_slice(&heap[start..start + count]);
                Ok(count)
            }
            Store::Memfd(file) | Store::Disk(file) => file.read_at(buffer, offset),
        }
    }

    /// A reader over the bytes, from the first.
    pub fn reader(&self) -> Reader {
        Reader { object: self.clone(), offset: 0 }
    }

    /// Writes the bytes from `offset` on to `to`: from memory, or by sendfile(2) where nothing is to be encrypted.
    ///
    /// # Errors
    /// The leg's reset; `UnexpectedEof` when the file has lost bytes.
    pub async fn copy_to(&self, to: &mut Wire, offset: u64) -> io::Result<()> {
        send_store(&self.inner.store, offset, self.inner.len, to).await
    }

    fn file(&self) -> Option<&File> {
        match &self.inner.store {
            Store::Heap(_) => None,
            Store::Memfd(file) | Store::Disk(file) => Some(file),
        }
    }
}

/// A read-only descriptor with an offset of its own: one that is passed shares its offset and its access mode.
pub(crate) fn reopen(file: &File) -> io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
    Ok(open(path.as_str(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Reads an [`Object`] from its first byte to its last.
#[derive(Debug)]
pub struct Reader {
    object: Object,
    offset: u64,
}

impl io::Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.object.read_at(buffer, self.offset)?;
        self.offset += count as u64;
        Ok(count)
    }
}

async fn send_store(store: &Store, from: u64, end: u64, to: &mut Wire) -> io::Result<()> {
    match store {
        Store::Heap(heap) => {
            let index = |at: u64| usize::try_from(at).unwrap_or(usize::MAX).min(heap.len());
            to.write_all(heap.get(index(from)..index(end)).unwrap_or_default()).await
        }
        Store::Memfd(file) | Store::Disk(file) => match to {
            Wire::Plain(tcp) => send_file(file, from, end, tcp).await,
            Wire::Tls(_) => copy_file(file, from, end, to).await,
        },
    }
}

/// Reads and writes: what has to be encrypted, or must not be held by the network.
async fn copy_file(file: &File, from: u64, end: u64, to: &mut Wire) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut at = from;
    while at < end {
        let want = usize::try_from(end - at).unwrap_or(usize::MAX).min(CHUNK);
        let count = file.read_at(&mut buffer[..want], at)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        to.write_all(&buffer[..count]).await?;
        at += count as u64;
    }
    Ok(())
}

async fn send_file(file: &File, offset: u64, len: u64, to: &TcpStream) -> io::Result<()> {
    let mut position = offset;
    while position < len {
        to.writable().await?;
        let step = usize::try_from(len - position).unwrap_or(usize::MAX).min(SENDFILE_STEP);
        let sent = to.try_io(tokio::io::Interest::WRITABLE, || {
            rustix::fs::sendfile(to.as_fd(), file, Some(&mut position), step)
                .map_err(io::Error::from)
        });
        match sent {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn unlinked_file(directory: &Path) -> io::Result<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    match open(directory, flags, Mode::RUSR | Mode::WUSR) {
        Ok(file) => Ok(File::from(file)),
        // Some file systems (overlayfs on old kernels, NFS) have no O_TMPFILE.
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => tempfile::tempfile_in(directory),
        Err(error) => Err(error.into()),
    }
}

fn write_to_disk(file: &File, bytes: &[u8], offset: u64) -> Result<(), SpoolError> {
    // Page cache takes it at memory speed until the disk falls behind; then the runtime's other
    // sessions must not wait with us.
    let written = blocking::in_place(|| file.write_all_at(bytes, offset));
    written.map_err(|error| match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            SpoolError::Full(error.to_string())
        }
        _ => SpoolError::Io(error),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i / 7 % 253) as u8).collect()
    }

    fn spool(directory: &Path) -> Spool {
        Spool::new(directory, 32 << 20, 64 << 20, 40 << 20).unwrap()
    }

    fn write(spool: &Spool, bytes: &[u8], step: usize) -> Object {
        let mut writer = spool.writer();
        for piece in bytes.chunks(step) {
            writer.write(piece).unwrap();
        }
        writer.finish().unwrap()
    }

    #[test]
    fn every_store_gives_back_what_it_took() {
        let directory = tempfile::tempdir().unwrap();
        let spool = spool(directory.path());
        for (len, step, inline) in [
            (0, 1, true),
            (1, 1, true),
            (INLINE_MAX, 1000, true),
            (INLINE_MAX + 1, 1000, false),
            (3_000_000, 65_536, false),
            (MEMFD_MAX as usize + 1, 65_536, false),
            (20_000_000, 1 << 20, false),
        ] {
            let bytes = pattern(len);
            let object = write(&spool, &bytes, step);
            assert_eq!(object.len(), len as u64);
            assert_eq!(object.hash(), blake3::hash(&bytes), "{len}");
            assert_eq!(object.inline().is_some(), inline, "{len}");
            let mut back = Vec::new();
            object.reader().read_to_end(&mut back).unwrap();
            assert!(back == bytes, "{len}: bytes differ");
            if let Some(descriptor) = object.descriptor().unwrap() {
                let mut back = Vec::new();
                let mut file = File::from(descriptor);
                file.read_to_end(&mut back).unwrap();
                assert!(back == bytes, "{len}: bytes of the descriptor differ");
                assert!(file.write_all_at(b"x", 0).is_err(), "{len}: descriptor is writable");
            }
        }
        assert_eq!(spool.used(), (0, 0));
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_sealed_object_cannot_change() {
        let directory = tempfile::tempdir().unwrap();
        let object = write(&spool(directory.path()), &pattern(100_000), 65_536);
        let Store::Memfd(file) = &object.inner.store else { panic!("not a memfd") };
        assert!(file.write_all_at(b"x", 0).is_err());
        assert!(file.set_len(0).is_err());
    }

    #[test]
    fn memory_used_up_means_disk_and_disk_used_up_means_full() {
        let directory = tempfile::tempdir().unwrap();
        let spool = Spool::new(directory.path(), 200_000, 300_000, 1 << 20).unwrap();
        let first = write(&spool, &pattern(150_000), 50_000);
        let second = write(&spool, &pattern(150_000), 50_000);
        assert_eq!(spool.used(), (150_000, 150_000));
        let mut third = spool.writer();
        third.write(&pattern(50_000)).unwrap();
        third.write(&pattern(50_000)).unwrap_or_else(|error| panic!("{error}"));
        let error = third.write(&pattern(100_000)).unwrap_err();
        assert!(matches!(error, SpoolError::Full(_)), "{error}");
        drop((first, second, third));
        assert_eq!(spool.used(), (0, 0));
    }

    #[test]
    fn an_object_over_the_limit_is_too_large() {
        let directory = tempfile::tempdir().unwrap();
        let spool = Spool::new(directory.path(), 1 << 20, 1 << 20, 1000).unwrap();
        let mut writer = spool.writer();
        writer.write(&[0; 1000]).unwrap();
        assert!(matches!(writer.write(&[0]), Err(SpoolError::TooLarge { limit: 1000 })));
        assert_eq!(writer.len(), 1000);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn objects_are_sent_whole_and_from_an_offset() {
        let directory = tempfile::tempdir().unwrap();
        let spool = spool(directory.path());
        for len in [1000, 500_000, 12_000_000] {
            let bytes = pattern(len);
            let object = write(&spool, &bytes, 65_536);
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let reader = tokio::task::spawn_blocking(move || {
                let mut stream = std::net::TcpStream::connect(address).unwrap();
                let mut received = Vec::new();
                stream.read_to_end(&mut received).unwrap();
                received
            });
            let mut stream = Wire::Plain(listener.accept().await.unwrap().0);
            object.copy_to(&mut stream, 0).await.unwrap();
            object.copy_to(&mut stream, 500).await.unwrap();
            drop(stream);
            let received = reader.await.unwrap();
            assert!(received[..len] == bytes && received[len..] == bytes[500..], "{len}");
        }
    }
}

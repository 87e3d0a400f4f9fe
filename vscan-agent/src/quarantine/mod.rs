//! Where blocked objects are kept: a directory with two files for each, content and description.
//!
//! Works on the directory alone, so the command line can use it while no agent runs. Nothing here is asynchronous:
//! callers on a runtime use `spawn_blocking`.
//!
//! | file | what |
//! |---|---|
//! | `ID.json` | the description; the entry exists when this does |
//! | `ID.object` | the bytes as they came, mode 0600 |
//! | `audit.jsonl` | one line for each release and removal |
//! | `.lock` | held while entries are changed or removed |
//! | `.new-*` | being written; swept when left behind |

mod entry;
#[cfg(test)]
mod tests;

pub use entry::{About, Entry, EntryId, NotAnEntryId, Released};

use crate::config;
pub use crate::observe::Usage;
use crate::observe::wire;
use jiff::Timestamp;
use rustix::fs::{FlockOperation, flock};
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};
use vscan_scan::report::Verdict;

/// Files that were being written this long ago are left over from a crash.
const STALE: Duration = Duration::from_secs(3600);

/// Bytes moved at a time.
const CHUNK: usize = 64 << 10;

/// A larger description is none of ours, in bytes.
const DESCRIPTION_MAX: u64 = 4 << 20;

/// Why the quarantine could not do something.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is no room: the object is not kept.
    #[error("the quarantine is full: {0}")]
    Full(String),
    /// There is no such entry.
    #[error("there is no entry {0} in the quarantine")]
    NoSuchEntry(EntryId),
    /// The target of a release exists and is something else.
    #[error("{} exists and is another file; name one that does not exist", .0.display())]
    TargetExists(PathBuf),
    /// The bytes are not the ones that were put there.
    #[error("the content of {0} is not what was put there (SHA-256 differs); it is not released")]
    Altered(EntryId),
    /// A description cannot be read.
    #[error("{}: not a description of an entry: {reason}", path.display())]
    BadDescription {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The file system failed.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

impl StoreError {
    fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::Full(format!("{}: {source}", path.display()))
            }
            _ => Self::Io { path: path.to_owned(), source },
        }
    }
}

/// What retention did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retained {
    /// Entries that were removed.
    pub removed: u64,
    /// What is left.
    pub usage: Usage,
}

/// The outcome of a release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Release {
    /// The entry.
    pub id: EntryId,
    /// Where its copy is.
    pub to: PathBuf,
    /// False: the very copy was there already, and nothing was done.
    pub written: bool,
}

/// The quarantine.
#[derive(Debug)]
pub struct Store {
    directory: PathBuf,
    limits: config::Quarantine,
    /// Bytes of content, as far as this process knows; corrected by [`Store::retain`].
    bytes: AtomicU64,
}

impl Store {
    /// Opens the directory; creates it for its owner alone if it does not exist.
    ///
    /// # Errors
    /// It cannot be created or read.
    pub fn open(directory: &Path, limits: config::Quarantine) -> Result<Self, StoreError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(StoreError::io(directory))?;
        let store = Self { directory: directory.to_owned(), limits, bytes: AtomicU64::new(0) };
        store.bytes.store(store.usage()?.bytes, Ordering::Relaxed);
        Ok(store)
    }

    /// Keeps an object. When this returns, it survives a loss of power.
    ///
    /// # Errors
    /// [`StoreError::Full`] when there is no room within `max_size` or before `min_free`; then nothing is left behind.
    pub fn put(&self, about: &About<'_>, content: &mut dyn Read) -> Result<Entry, StoreError> {
        self.make_room(about.size)?;
        let time = Timestamp::now();
        let mut file = self.temporary()?;
        let (size, sha256, blake3) = copy(content, file.as_file_mut(), &self.directory)?;
        file.as_file().sync_all().map_err(StoreError::io(&self.directory))?;
        let report = about.report;
        let detection = match report.verdict {
            Verdict::Infected => report.findings.first().map(|f| f.name.clone()),
            _ => report.unread.first().map(|u| u.reason.as_str().to_owned()),
        };
        let text = |bytes: &[u8]| wire::text(bytes).into_owned();
        let mut entry = Entry {
            id: EntryId::new(time, Some(about.flow)),
            time,
            flow_id: about.flow,
            protocol: about.protocol,
            direction: about.direction,
            client: about.client,
            server: about.server,
            user: about.user.map(text),
            recipients: about
                .recipients
                .iter()
                .filter(|r| !r.is_empty())
                .map(|r| text(r))
                .collect(),
            name: text(about.name),
            kind: about.kind.to_owned(),
            r#type: report.kind.clone(),
            size,
            sha256,
            blake3,
            verdict: report.verdict,
            detection: detection.or_else(|| report.error.clone()),
            findings: report.findings.clone(),
            rules: report.rules.clone(),
            released: Vec::new(),
        };
        loop {
            match file.persist_noclobber(self.object(&entry.id)) {
                Ok(_) => break,
                Err(e) if e.error.kind() == io::ErrorKind::AlreadyExists => {
                    file = e.file;
                    entry.id = EntryId::new(Timestamp::now(), Some(about.flow));
                }
                Err(e) => return Err(StoreError::io(&self.directory)(e.error)),
            }
        }
        if let Err(e) = self.describe(&entry) {
            // without its description it would only take room
            let _ = std::fs::remove_file(self.object(&entry.id));
            return Err(e);
        }
        self.bytes.fetch_add(size, Ordering::Relaxed);
        Ok(entry)
    }

    /// All entries, the oldest first, and the descriptions that cannot be read.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn list(&self) -> Result<(Vec<Entry>, Vec<StoreError>), StoreError> {
        let (mut entries, mut unreadable) = (Vec::new(), Vec::new());
        for id in self.ids()? {
            match self.show(&id) {
                Ok(entry) => entries.push(entry),
                // removed since the directory was read
                Err(StoreError::NoSuchEntry(_)) => {}
                Err(e) => unreadable.push(e),
            }
        }
        Ok((entries, unreadable))
    }

    /// One entry.
    ///
    /// # Errors
    /// There is none of that name, or its description cannot be read.
    pub fn show(&self, id: &EntryId) -> Result<Entry, StoreError> {
        let path = self.description(id);
        let file = match File::open(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(StoreError::NoSuchEntry(id.clone()));
            }
            other => other.map_err(StoreError::io(&path))?,
        };
        let mut text = Vec::new();
        file.take(DESCRIPTION_MAX).read_to_end(&mut text).map_err(StoreError::io(&path))?;
        serde_json::from_slice(&text)
            .map_err(|e| StoreError::BadDescription { path, reason: e.to_string() })
    }

    /// The bytes of an entry.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn content(&self, id: &EntryId) -> Result<File, StoreError> {
        let path = self.object(id);
        match File::open(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                Err(StoreError::NoSuchEntry(id.clone()))
            }
            other => other.map_err(StoreError::io(&path)),
        }
    }

    /// Writes a copy of the object to `to` and notes it in the description and the audit trail.
    ///
    /// Doing it again is no error: a target that is the very copy stays as it is. The entry remains.
    ///
    /// # Errors
    /// The target exists and is something else, the content was altered, or the file system failed; then no target
    /// was written.
    pub fn release(&self, id: &EntryId, to: &Path) -> Result<Release, StoreError> {
        let _lock = self.lock()?;
        let mut entry = self.show(id)?;
        let mut content = self.content(id)?;
        let name = || Release { id: id.clone(), to: to.to_owned(), written: false };
        if to.symlink_metadata().is_ok() {
            let same = File::open(to).ok().is_some_and(|mut file| {
                let mut nowhere = io::sink();
                copy(&mut file, &mut nowhere, to).is_ok_and(|(_, sha256, _)| sha256 == entry.sha256)
            });
            return if same { Ok(name()) } else { Err(StoreError::TargetExists(to.to_owned())) };
        }
        let parent = match to.parent() {
            Some(p) if !p.as_os_str().is_empty() => p,
            _ => Path::new("."),
        };
        let mut file = tempfile::Builder::new()
            .prefix(".vscan-")
            .tempfile_in(parent)
            .map_err(StoreError::io(parent))?;
        let (_, sha256, _) = copy(&mut content, file.as_file_mut(), to)?;
        if sha256 != entry.sha256 {
            return Err(StoreError::Altered(id.clone()));
        }
        file.as_file().sync_all().map_err(StoreError::io(to))?;
        let released = Released {
            time: Timestamp::now(),
            to: std::path::absolute(to).unwrap_or_else(|_| to.to_owned()).display().to_string(),
            by: invoker(),
        };
        // first the trail, then the copy: none leaves without a trace
        self.audit("release", &entry, Some(&released.to))?;
        file.persist_noclobber(to).map_err(|e| StoreError::io(to)(e.error))?;
        entry.released.push(released);
        self.describe(&entry)?;
        Ok(Release { written: true, ..name() })
    }

    /// Removes an entry.
    ///
    /// # Errors
    /// There is none of that name, or the file system failed.
    pub fn delete(&self, id: &EntryId) -> Result<Entry, StoreError> {
        let _lock = self.lock()?;
        let entry = self.show(id)?;
        self.audit("delete", &entry, None)?;
        self.remove(&entry.id, entry.size)?;
        Ok(entry)
    }

    /// Removes what is too old or too much, and what a crash left behind. To be called now and then.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn retain(&self, now: Timestamp) -> Result<Retained, StoreError> {
        self.shrink(now, self.limits.max_size)
    }

    /// What is kept, by the sizes of the files.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn usage(&self) -> Result<Usage, StoreError> {
        let mut usage = Usage::default();
        for id in self.ids()? {
            if let Ok(meta) = self.object(&id).metadata() {
                usage.objects += 1;
                usage.bytes += meta.len();
            }
        }
        Ok(usage)
    }

    fn shrink(&self, now: Timestamp, max_size: Option<u64>) -> Result<Retained, StoreError> {
        let _lock = self.lock()?;
        self.sweep()?;
        let mut kept = Vec::new();
        let mut result = Retained::default();
        for id in self.ids()? {
            let Ok(meta) = self.object(&id).metadata() else { continue };
            let age = self.show(&id).ok().map(|e| now.duration_since(e.time).unsigned_abs());
            if let (Some(age), Some(max_age)) = (age, self.limits.max_age)
                && age > max_age
            {
                self.expire(&id, meta.len(), "max_age")?;
                result.removed += 1;
                continue;
            }
            result.usage.objects += 1;
            result.usage.bytes += meta.len();
            kept.push((id, meta.len()));
        }
        for (id, size) in kept {
            if max_size.is_none_or(|max| result.usage.bytes <= max) {
                break;
            }
            self.expire(&id, size, "max_size")?;
            result.removed += 1;
            result.usage.objects -= 1;
            result.usage.bytes -= size;
        }
        self.bytes.store(result.usage.bytes, Ordering::Relaxed);
        Ok(result)
    }

    /// Sees to it that `size` more bytes fit, or says why not.
    fn make_room(&self, size: u64) -> Result<(), StoreError> {
        if let Some(max) = self.limits.max_size {
            if size > max {
                return Err(StoreError::Full(format!(
                    "an object of {size} bytes is larger than quarantine.max_size, {max} bytes"
                )));
            }
            if self.bytes.load(Ordering::Relaxed).saturating_add(size) > max {
                // a tenth more than needed, so that the next objects do not read the directory again
                let room = max - size;
                self.shrink(Timestamp::now(), Some(room.min(max - max / 10)))?;
            }
        }
        let disk = rustix::fs::statvfs(&self.directory)
            .map_err(|e| StoreError::io(&self.directory)(e.into()))?;
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        if free < self.limits.min_free.saturating_add(size) {
            return Err(StoreError::Full(format!(
                "{}: {free} bytes are free, an object of {size} bytes would leave less than quarantine.min_free, {} bytes",
                self.directory.display(),
                self.limits.min_free
            )));
        }
        Ok(())
    }

    fn expire(&self, id: &EntryId, size: u64, why: &str) -> Result<(), StoreError> {
        // a full disk must not keep retention from making room
        if let Ok(entry) = self.show(id) {
            let _ = self.audit(why, &entry, None);
        }
        self.remove(id, size)
    }

    /// The description goes first: what it does not describe is swept later.
    fn remove(&self, id: &EntryId, size: u64) -> Result<(), StoreError> {
        for path in [self.description(id), self.object(id)] {
            match std::fs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(StoreError::io(&path)(e));
                }
                _ => {}
            }
        }
        let _ = self
            .bytes
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |b| Some(b.saturating_sub(size)));
        Ok(())
    }

    /// Removes what was being written, or lost its description, an hour ago.
    fn sweep(&self) -> Result<(), StoreError> {
        for file in std::fs::read_dir(&self.directory).map_err(StoreError::io(&self.directory))? {
            let Ok(file) = file else { continue };
            let name = file.file_name();
            let name = name.to_string_lossy();
            let orphan = name
                .strip_suffix(".object")
                .and_then(|id| id.parse().ok())
                .is_some_and(|id| !self.description(&id).exists());
            let old = || {
                let modified =
                    file.metadata().and_then(|m| m.modified()).unwrap_or(SystemTime::now());
                modified.elapsed().is_ok_and(|age| age > STALE)
            };
            if (orphan || name.starts_with(".new-")) && old() {
                let _ = std::fs::remove_file(file.path());
            }
        }
        Ok(())
    }

    /// The names of all entries, in the order of time.
    fn ids(&self) -> Result<Vec<EntryId>, StoreError> {
        let directory =
            std::fs::read_dir(&self.directory).map_err(StoreError::io(&self.directory))?;
        let mut ids: Vec<EntryId> = directory
            .filter_map(|file| file.ok()?.file_name().to_str()?.strip_suffix(".json")?.parse().ok())
            .collect();
        ids.sort();
        Ok(ids)
    }

    fn describe(&self, entry: &Entry) -> Result<(), StoreError> {
        let path = self.description(&entry.id);
        let mut file = self.temporary()?;
        let mut text = serde_json::to_vec_pretty(entry).map_err(|e| {
            StoreError::BadDescription { path: path.clone(), reason: e.to_string() }
        })?;
        text.push(b'\n');
        file.write_all(&text).map_err(StoreError::io(&path))?;
        file.as_file().sync_all().map_err(StoreError::io(&path))?;
        file.persist(&path).map_err(|e| StoreError::io(&path)(e.error))?;
        // the names survive a loss of power only when the directory was written too (fsync(2))
        File::open(&self.directory)
            .and_then(|d| d.sync_all())
            .map_err(StoreError::io(&self.directory))
    }

    fn audit(&self, action: &str, entry: &Entry, to: Option<&str>) -> Result<(), StoreError> {
        #[derive(Serialize)]
        struct Line<'a> {
            time: String,
            action: &'a str,
            id: &'a EntryId,
            by: String,
            #[serde(skip_serializing_if = "Option::is_none")]
            to: Option<&'a str>,
            name: &'a str,
            sha256: &'a str,
            detection: Option<&'a str>,
        }
        let path = self.directory.join("audit.jsonl");
        let line = Line {
            time: format!("{:.6}", Timestamp::now()),
            action,
            id: &entry.id,
            by: invoker(),
            to,
            name: &entry.name,
            sha256: &entry.sha256,
            detection: entry.detection.as_deref(),
        };
        let mut text = serde_json::to_vec(&line).unwrap_or_default();
        text.push(b'\n');
        OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&path)
            .and_then(|mut file| file.write_all(&text).and_then(|()| file.sync_all()))
            .map_err(StoreError::io(&path))
    }

    fn lock(&self) -> Result<File, StoreError> {
        let path = self.directory.join(".lock");
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(StoreError::io(&path))?;
        flock(&file, FlockOperation::LockExclusive).map_err(|e| StoreError::io(&path)(e.into()))?;
        Ok(file)
    }

    fn temporary(&self) -> Result<tempfile::NamedTempFile, StoreError> {
        tempfile::Builder::new()
            .prefix(".new-")
            .permissions(std::fs::Permissions::from_mode(0o600))
            .tempfile_in(&self.directory)
            .map_err(StoreError::io(&self.directory))
    }

    fn object(&self, id: &EntryId) -> PathBuf {
        self.directory.join(format!("{id}.object"))
    }

    fn description(&self, id: &EntryId) -> PathBuf {
        self.directory.join(format!("{id}.json"))
    }
}

/// Copies everything; gives the size, SHA-256 and BLAKE3.
fn copy(
    from: &mut dyn Read,
    to: &mut dyn Write,
    path: &Path,
) -> Result<(u64, String, String), StoreError> {
    let (mut sha256, mut blake3) = (Sha256::new(), blake3::Hasher::new());
    let mut buffer = vec![0; CHUNK];
    let mut size = 0;
    loop {
        let n = match from.read(&mut buffer) {
            Ok(0) => break,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            other => other.map_err(StoreError::io(path))?,
        };
        to.write_all(&buffer[..n]).map_err(StoreError::io(path))?;
        sha256.update(&buffer[..n]);
        blake3.update(&buffer[..n]);
        size += n as u64;
    }
    let mut hex = String::with_capacity(64);
    for byte in sha256.finalize() {
        use std::fmt::Write as _;
        let _ = write!(hex, "{byte:02x}");
    }
    Ok((size, hex, blake3.finalize().to_hex().to_string()))
}

/// Who asks: the login behind sudo, if there is one, and the user id.
fn invoker() -> String {
    let uid = rustix::process::getuid().as_raw();
    match std::env::var("SUDO_USER") {
        Ok(user) => format!("{user} (uid {uid})"),
        Err(_) => format!("uid {uid}"),
    }
}

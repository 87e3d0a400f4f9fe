//! Sets of rules on disk: each in a directory of its own below `sets`, and `current`, a link to the one in force.
//!
//! Changing the link is one rename(2): whoever reads rules sees the old set or the new one. Nothing is changed in a set
//! once it has its name, but for the times of its files, which tell when it was last known to be the newest.

use super::{Error, at};
use jiff::Timestamp;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use walkdir::WalkDir;

/// The link to the set in force.
pub const CURRENT: &str = "current";

/// The file in a set that tells what it is; no scanner takes it for rules.
const MANIFEST: &str = "set.json";

/// Where files of a set lie, in it.
const SETS: &str = "sets";

/// What is brought here, until it has a name.
const STAGING: &str = "new";

/// The SHA-256 of sets that were rolled back, one a line.
const REFUSED: &str = "refused";

/// What a set is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Where it came from.
    pub source: String,
    /// Its SHA-256, as it came.
    pub sha256: String,
    /// When it was signed, in seconds since 1970.
    pub signed: Option<i64>,
    /// The identity of all rules with it, when it was tried.
    pub version: String,
    /// The number of all rules with it, when it was tried.
    pub rules: u64,
    /// When it was put here.
    pub installed: Timestamp,
    /// The set that it replaced.
    pub former: Option<String>,
}

/// A set on disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Set {
    /// The name of its directory.
    pub name: String,
    /// What it is.
    #[serde(flatten)]
    pub manifest: Manifest,
}

/// All sets, for one process at a time.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    _lock: File,
}

impl Store {
    /// Opens the sets in this directory, which is made if it is not there.
    ///
    /// # Errors
    /// [`Error::Busy`], [`Error::Io`].
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let sets = dir.join(SETS);
        fs::create_dir_all(&sets).map_err(at(&sets))?;
        let place = dir.join("lock");
        let lock = File::options().create(true).append(true).open(&place).map_err(at(&place))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(Error::Busy),
            Err(e) => return Err(at(&place)(e.into())),
        }
        let store = Self { dir: dir.to_owned(), _lock: lock };
        // What an update left that was killed.
        store.sweep()?;
        Ok(store)
    }

    /// The path of the set in force, for `scan.rules`.
    #[must_use]
    pub fn current_path(&self) -> PathBuf {
        self.dir.join(CURRENT)
    }

    /// The path of a set.
    #[must_use]
    pub fn path(&self, set: &Set) -> PathBuf {
        self.dir.join(SETS).join(&set.name)
    }

    /// The set in force.
    #[must_use]
    pub fn current(&self) -> Option<Set> {
        let link = fs::read_link(self.current_path()).ok()?;
        self.set(link.file_name()?.to_str()?)
    }

    /// The set that the one in force replaced, if it is still here.
    #[must_use]
    pub fn former(&self) -> Option<Set> {
        self.set(self.current()?.manifest.former?.as_str())
    }

    fn set(&self, name: &str) -> Option<Set> {
        let text = fs::read(self.dir.join(SETS).join(name).join(MANIFEST)).ok()?;
        let manifest = serde_json::from_slice(&text).ok()?;
        Some(Set { name: name.to_owned(), manifest })
    }

    /// An empty directory for what is on its way.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn staging(&self) -> Result<PathBuf, Error> {
        self.sweep()?;
        let staging = self.dir.join(STAGING);
        fs::create_dir(&staging).map_err(at(&staging))?;
        Ok(staging)
    }

    /// Removes what is on its way.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn sweep(&self) -> Result<(), Error> {
        let staging = self.dir.join(STAGING);
        match fs::remove_dir_all(&staging) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(at(&staging)(e)),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Gives unpacked files a name; they are not in force yet.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn add(&self, files: &Path, mut manifest: Manifest) -> Result<Set, Error> {
        manifest.former = self.current().map(|set| set.name);
        let time = manifest.installed.strftime("%Y%m%dT%H%M%SZ");
        let short = manifest.sha256.get(..12).unwrap_or(&manifest.sha256);
        let mut name = format!("{time}-{short}");
        let mut path = self.dir.join(SETS).join(&name);
        for n in 2.. {
            if !path.exists() {
                break;
            }
            name = format!("{time}-{short}-{n}");
            path = self.dir.join(SETS).join(&name);
        }
        let text =
            serde_json::to_vec_pretty(&manifest).map_err(|e| at(&path)(io::Error::other(e)))?;
        let place = files.join(MANIFEST);
        fs::write(&place, text).map_err(at(&place))?;
        sync_tree(files)?;
        fs::rename(files, &path).map_err(at(&path))?;
        sync(&self.dir.join(SETS))?;
        Ok(Set { name, manifest })
    }

    /// Puts a set in force: from here on whoever reads rules sees it.
    ///
    /// # Errors
    /// [`Error::Io`]; then the former one stays.
    pub fn put_in_force(&self, set: &Set) -> Result<(), Error> {
        let new = self.dir.join("current.new");
        match fs::remove_file(&new) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(at(&new)(e)),
            Ok(()) | Err(_) => {}
        }
        std::os::unix::fs::symlink(Path::new(SETS).join(&set.name), &new).map_err(at(&new))?;
        fs::rename(&new, self.current_path()).map_err(at(&new))?;
        sync(&self.dir)
    }

    /// No set is in force any more.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn put_none_in_force(&self) -> Result<(), Error> {
        fs::remove_file(self.current_path()).map_err(at(&self.current_path()))?;
        sync(&self.dir)
    }

    /// Removes a set that is not in force.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn remove(&self, set: &Set) -> Result<(), Error> {
        let path = self.path(set);
        fs::remove_dir_all(&path).map_err(at(&path))
    }

    /// Marks a set as the newest as of now: the age of its files begins anew.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn touch(&self, set: &Set) -> Result<(), Error> {
        let now = SystemTime::now();
        for entry in WalkDir::new(self.path(set)).into_iter().flatten() {
            if entry.file_type().is_file() {
                let touched = File::options()
                    .write(true)
                    .open(entry.path())
                    .and_then(|file| file.set_modified(now));
                touched.map_err(at(entry.path()))?;
            }
        }
        Ok(())
    }

    /// Whether this set was rolled back once.
    #[must_use]
    pub fn is_refused(&self, sha256: &str) -> bool {
        self.refused().contains(sha256)
    }

    /// Remembers a set that was rolled back, or forgets it.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn refuse(&self, sha256: &str, refused: bool) -> Result<(), Error> {
        let mut all = self.refused();
        let changed = if refused { all.insert(sha256.to_owned()) } else { all.remove(sha256) };
        if !changed {
            return Ok(());
        }
        let text: String = all.iter().map(|one| format!("{one}\n")).collect();
        let (place, new) = (self.dir.join(REFUSED), self.dir.join("refused.new"));
        fs::write(&new, text).map_err(at(&new))?;
        fs::rename(&new, &place).map_err(at(&place))
    }

    fn refused(&self) -> BTreeSet<String> {
        let text = fs::read_to_string(self.dir.join(REFUSED)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Removes old sets: what is left are the one in force, and this many former ones.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn prune(&self, keep: usize) -> Result<(), Error> {
        let Some(current) = self.current() else { return Ok(()) };
        let former = current.manifest.former.clone();
        let sets = self.dir.join(SETS);
        let mut names: Vec<String> = fs::read_dir(&sets)
            .map_err(at(&sets))?
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| *name != current.name && Some(name) != former.as_ref())
            .collect();
        // Their names begin with the time.
        names.sort_unstable_by(|a, b| b.cmp(a));
        let kept = keep.saturating_sub(usize::from(former.is_some()));
        for name in names.into_iter().skip(kept) {
            let path = sets.join(name);
            fs::remove_dir_all(&path).map_err(at(&path))?;
        }
        Ok(())
    }
}

/// The directories of a tree on disk: the files are there already.
fn sync_tree(dir: &Path) -> Result<(), Error> {
    for entry in WalkDir::new(dir).into_iter().flatten() {
        let name = entry.file_name();
        if entry.file_type().is_dir() || name == MANIFEST {
            sync(entry.path())?;
        }
    }
    Ok(())
}

fn sync(path: &Path) -> Result<(), Error> {
    File::open(path).and_then(|file| file.sync_all()).map_err(at(path))
}

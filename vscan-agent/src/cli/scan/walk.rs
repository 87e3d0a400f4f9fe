//! What there is to scan: files under paths, and what is left out.

use crate::spool::Object;
use rustix::fs::{Mode, OFlags, open as open_file};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use tokio::sync::mpsc;
use walkdir::WalkDir;

/// The path that stands for standard input.
pub(super) const STDIN: &str = "-";

/// Files that are found ahead of the scan.
const FOUND_MAX: usize = 256;

/// Something under the paths.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) path: PathBuf,
    pub(super) what: What,
}

/// What it is.
#[derive(Debug)]
pub(super) enum What {
    /// A file that was named: links to it are followed.
    Named,
    /// A file in a directory.
    Inside,
    /// Standard input.
    Stdin,
    /// It cannot be looked at.
    Unreadable(io::Error),
    /// Nothing that a transfer could carry, and what it is instead.
    LeftOut(&'static str),
}

/// Looks for files, on a thread of its own: the sequence is that of the arguments, and of names in a directory.
pub(super) fn start(paths: Vec<PathBuf>) -> mpsc::Receiver<Found> {
    let (sender, files) = mpsc::channel(FOUND_MAX);
    std::thread::spawn(move || {
        for path in paths {
            // Nobody waits for what is sent to a scan that failed.
            if look(path, &sender).is_err() {
                return;
            }
        }
    });
    files
}

fn look(root: PathBuf, to: &mpsc::Sender<Found>) -> Result<(), mpsc::error::SendError<Found>> {
    if root.as_os_str() == STDIN {
        return to.blocking_send(Found { path: root, what: What::Stdin });
    }
    for entry in WalkDir::new(&root).sort_by_file_name() {
        let found = match entry {
            Err(error) => {
                let path = error.path().unwrap_or(&root).to_owned();
                let text = error.to_string();
                let error = error.into_io_error().unwrap_or_else(|| io::Error::other(text));
                Found { path, what: What::Unreadable(error) }
            }
            Ok(entry) if entry.depth() == 0 && !entry.file_type().is_dir() => {
                Found { path: entry.into_path(), what: What::Named }
            }
            Ok(entry) => {
                let kind = entry.file_type();
                let what = if kind.is_dir() {
                    continue;
                } else if kind.is_file() {
                    What::Inside
                } else if kind.is_symlink() {
                    What::LeftOut("symbolic link")
                } else {
                    What::LeftOut("special file")
                };
                Found { path: entry.into_path(), what }
            }
        };
        to.blocking_send(found)?;
    }
    Ok(())
}

/// Opens what was found, and reads all of it once, for its hash. Of standard input no more than `size_max` bytes and
/// one are read.
pub(super) fn open(found: &Found, size_max: u64) -> io::Result<Object> {
    match &found.what {
        What::Stdin => {
            let mut file = tempfile::tempfile()?;
            io::copy(&mut io::stdin().lock().take(size_max.saturating_add(1)), &mut file)?;
            io::Seek::rewind(&mut file)?;
            Object::of_file(file)
        }
        What::Named => Object::of_file(regular(&found.path, OFlags::empty())?),
        // It may have become something else since it was found.
        What::Inside => Object::of_file(regular(&found.path, OFlags::NOFOLLOW)?),
        What::Unreadable(error) => Err(match error.raw_os_error() {
            Some(code) => io::Error::from_raw_os_error(code),
            None => io::Error::new(error.kind(), error.to_string()),
        }),
        What::LeftOut(why) => Err(io::Error::other(*why)),
    }
}

/// A file, and nothing that would be waited for.
fn regular(path: &Path, flags: OFlags) -> io::Result<File> {
    let flags = flags | OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = File::from(open_file(path, flags, Mode::empty())?);
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::other("is no file: neither devices nor pipes nor sockets are scanned"))
    }
}

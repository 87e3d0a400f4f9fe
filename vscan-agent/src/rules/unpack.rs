//! Unpacks a set: tar, tar.gz, or one file of signatures.

use super::fetch::Fetched;
use super::{Error, at};
use flate2::read::MultiGzDecoder;
use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::path::{Component, Path, PathBuf};

/// Files in an archive.
const FILES_MAX: usize = 100_000;

/// Directories in each other.
const DEPTH_MAX: usize = 16;

/// Unpacks into the directory `to`, which does not exist yet; the files are on disk when this returns. Only files and
/// directories are made, nothing outside of `to`, and no more than `most` bytes.
///
/// # Errors
/// [`Error`]; what was unpacked so far is of no use.
pub fn unpack(fetched: &Fetched, to: &Path, most: u64) -> Result<(), Error> {
    if fetched.path.is_dir() {
        return fs::rename(&fetched.path, to).map_err(at(to));
    }
    fs::create_dir(to).map_err(at(to))?;
    let place = &fetched.path;
    let open = || File::open(place).map(BufReader::new).map_err(at(place));
    let head = head(open()?).map_err(at(place))?;
    if head.starts_with(b"PK\x03\x04") {
        return Err(Error::Malformed("zip archives are not unpacked: make a tar.gz of it".into()));
    }
    if head.starts_with(b"\x1f\x8b") {
        let inside = self::head(MultiGzDecoder::new(open()?))
            .map_err(|e| Error::Malformed(format!("cannot be unpacked: {e}")))?;
        if is_tar(&inside) {
            return archive(MultiGzDecoder::new(open()?), to, most);
        }
        let name = fetched.name.strip_suffix(".gz").unwrap_or(&fetched.name);
        return write(&mut MultiGzDecoder::new(open()?), &to.join(name), most).map(|_| ());
    }
    if is_tar(&head) {
        return archive(open()?, to, most);
    }
    write(&mut open()?, &to.join(&fetched.name), most).map(|_| ())
}

/// The first bytes.
fn head(from: impl Read) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    from.take(512).read_to_end(&mut head)?;
    Ok(head)
}

/// POSIX and GNU headers have this at 257 (pax(1)).
fn is_tar(head: &[u8]) -> bool {
    head.get(257..262) == Some(b"ustar")
}

fn archive(from: impl Read, to: &Path, most: u64) -> Result<(), Error> {
    let wrong = |e: io::Error| Error::Malformed(format!("cannot be unpacked: {e}"));
    let mut archive = tar::Archive::new(from);
    let (mut left, mut files) = (most, 0);
    for entry in archive.entries().map_err(wrong)? {
        let mut entry = entry.map_err(wrong)?;
        let path = entry.path().map_err(wrong)?.into_owned();
        let kind = entry.header().entry_type();
        // What archives tell of themselves.
        if kind.is_pax_global_extensions() {
            continue;
        }
        let inside = inside(&path)?;
        let to = to.join(&inside);
        files += 1;
        if files > FILES_MAX {
            return Err(Error::Malformed(format!("has more than {FILES_MAX} files")));
        }
        if kind.is_dir() {
            fs::create_dir_all(&to).map_err(at(&to))?;
        } else if kind.is_file() {
            if let Some(parent) = to.parent() {
                fs::create_dir_all(parent).map_err(at(parent))?;
            }
            let told = entry.size();
            let size = write(&mut entry, &to, left).map_err(|e| match e {
                Error::TooLarge(_) => Error::TooLarge(most),
                e => e,
            })?;
            if size != told {
                return Err(Error::Malformed(format!("ends within {}", path.display())));
            }
            left -= size;
        } else {
            return Err(Error::Malformed(format!(
                "{} is neither a file nor a directory",
                path.display()
            )));
        }
    }
    // An archive that was cut off has no end.
    if files == 0 { Err(Error::Malformed("is an empty archive".into())) } else { Ok(()) }
}

/// A path that leads nowhere but below.
fn inside(path: &Path) -> Result<PathBuf, Error> {
    let mut inside = PathBuf::new();
    let mut depth = 0;
    for component in path.components() {
        match component {
            Component::Normal(name) => {
                inside.push(name);
                depth += 1;
            }
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => {
                return Err(Error::Malformed(format!(
                    "{} leads out of the archive",
                    path.display()
                )));
            }
        }
    }
    if depth > DEPTH_MAX {
        return Err(Error::Malformed(format!("{} is too deep", path.display())));
    }
    Ok(inside)
}

/// Writes a new file, with at most `most` bytes; their number.
fn write(from: &mut impl Read, to: &Path, most: u64) -> Result<u64, Error> {
    let mut file = File::options().write(true).create_new(true).open(to).map_err(at(to))?;
    let wrong = |e: io::Error| Error::Malformed(format!("cannot be unpacked: {e}"));
    let size = io::copy(&mut from.take(most.saturating_add(1)), &mut file).map_err(wrong)?;
    if size > most {
        return Err(Error::TooLarge(most));
    }
    file.sync_all().map_err(at(to))?;
    Ok(size)
}

//! Where signatures come from: files and directories, by the endings of their names.

use serde::Serialize;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Largest file of rules in text; a larger one is a mistake in the path, not a rule set. The big public sets in one
/// file have 20 MiB.
const TEXT_MAX: u64 = 64 << 20;

/// Largest file of hashes or ClamAV's signatures; a compiled list has no such bound.
const LIST_MAX: u64 = 1 << 30;

/// Directories inside directories that are looked at.
const DEPTH_MAX: u32 = 16;

/// Something wrong with the rules, with its place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    /// The file or directory.
    pub file: PathBuf,
    /// The line, from 1, where it is known.
    pub line: Option<usize>,
    /// The column, from 1, where it is known.
    pub column: Option<usize>,
    /// What is wrong, in one line.
    pub message: String,
    /// The same with the lines of the source, for a terminal; may be empty.
    pub excerpt: String,
}

impl Diagnostic {
    /// One without a place in the file.
    #[must_use]
    pub fn of_file(file: &Path, message: String) -> Self {
        Self { file: file.to_owned(), line: None, column: None, message, excerpt: String::new() }
    }
}

impl std::fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        write!(f, ": {}", self.message)
    }
}

/// What a file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Format {
    /// Rules as text.
    Yara,
    /// Rules compiled by `vscan rules build`.
    Bundle,
    /// A hash list as text.
    HashText,
    /// A hash list compiled by `vscan rules hashes`.
    HashList,
    /// What is let pass.
    Allow,
    /// Names of ClamAV's signatures that are left out.
    ClamIgnored,
    /// ClamAV's signatures, one a line.
    ClamText,
    /// ClamAV's databases, which hold such files.
    ClamDatabase,
}

/// Endings of ClamAV's signatures that are read.
pub(super) const CLAM_TEXT: &[&str] = &[
    "hdb", "hsb", "hdu", "hsu", "mdb", "msb", "mdu", "msu", "ndb", "ndu", "ldb", "ldu", "fp", "sfp",
];

/// Endings of ClamAV's other signatures, in its databases: counted.
pub(super) const CLAM_OTHER: &[&str] = &[
    "cbc", "cdb", "crb", "cfg", "ftm", "idb", "pdb", "wdb", "gdb", "imp", "pwdb", "db", "zmd",
    "rmd", "cat",
];

impl Format {
    /// What it is called in listings.
    pub(super) fn word(self) -> &'static str {
        match self {
            Format::Yara => "yara",
            Format::Bundle => "bundle",
            Format::HashText | Format::HashList => "hashes",
            Format::Allow => "allow",
            Format::ClamIgnored => "clamav-ignored",
            Format::ClamText => "clamav",
            Format::ClamDatabase => "clamav-database",
        }
    }

    /// The format that the ending of a name stands for.
    fn of(path: &Path) -> Option<Self> {
        let ending = path.extension()?.to_str()?.to_ascii_lowercase();
        Some(match &*ending {
            "yar" | "yara" => Format::Yara,
            "vrb" => Format::Bundle,
            "hashes" | "sha256" | "sha1" | "md5" => Format::HashText,
            "vhl" => Format::HashList,
            "allow" => Format::Allow,
            "ign" | "ign2" => Format::ClamIgnored,
            "cvd" | "cld" | "cud" => Format::ClamDatabase,
            ending if CLAM_TEXT.contains(&ending) => Format::ClamText,
            _ => return None,
        })
    }
}

/// When a file was changed, in seconds since 1970; none: not to be known.
pub(super) fn changed(path: &Path) -> Option<i64> {
    use std::os::unix::fs::MetadataExt as _;
    fs::metadata(path).ok().map(|meta| meta.mtime())
}

/// All files under the paths: files as they are, directories with all that has a known ending. A file that is named
/// itself and has no known ending is taken for YARA rules.
pub(super) fn collect(
    paths: &[PathBuf],
    errors: &mut Vec<Diagnostic>,
) -> BTreeSet<(Format, PathBuf)> {
    let mut files = BTreeSet::new();
    for path in paths {
        below(path, 0, true, &mut files, errors);
    }
    files
}

fn below(
    path: &Path,
    depth: u32,
    named: bool,
    files: &mut BTreeSet<(Format, PathBuf)>,
    errors: &mut Vec<Diagnostic>,
) {
    let mut fail = |path: &Path, message: String| errors.push(Diagnostic::of_file(path, message));
    let meta = match fs::metadata(path) {
        Ok(meta) => meta,
        Err(e) => return fail(path, format!("cannot be read: {e}")),
    };
    if meta.is_dir() {
        if depth >= DEPTH_MAX {
            return fail(path, "too many directories inside each other".into());
        }
        let entries = match fs::read_dir(path) {
            Ok(entries) => entries,
            Err(e) => return fail(path, format!("cannot be read: {e}")),
        };
        for entry in entries {
            match entry {
                Ok(entry) => below(&entry.path(), depth + 1, false, files, errors),
                Err(e) => {
                    errors.push(Diagnostic::of_file(path, format!("cannot be read: {e}")));
                }
            }
        }
    } else if let Some(format) = Format::of(path).or(named.then_some(Format::Yara)) {
        files.insert((format, path.to_owned()));
    }
}

/// The text of a rule file, within its bound.
pub(super) fn text(file: &Path) -> Result<Vec<u8>, String> {
    whole(file, TEXT_MAX)
}

/// The content of a list or database, within its bound.
pub(super) fn list(file: &Path) -> Result<Vec<u8>, String> {
    whole(file, LIST_MAX)
}

fn whole(file: &Path, most: u64) -> Result<Vec<u8>, String> {
    let meta = fs::metadata(file).map_err(|e| format!("cannot be read: {e}"))?;
    if !meta.is_file() {
        return Err("is no file".into());
    }
    if meta.len() > most {
        return Err(format!("is larger than {most} bytes"));
    }
    fs::read(file).map_err(|e| format!("cannot be read: {e}"))
}

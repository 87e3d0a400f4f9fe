//! `[scan.update]`: where new rules come from. How they get in is `crate::rules`' business.

use super::read::{Reader, Scalar, Table, Wrong};
use super::sections::{number, size};
use std::fmt;
use std::path::PathBuf;
use toml::de::DeValue;

/// `[scan.update]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Update {
    /// Where sets come from, unless the command names another place.
    pub source: Option<Origin>,
    /// The minisign public key that sets have to be signed with.
    pub public_key: Option<String>,
    /// Where sets are kept; none: `rules` in the state directory.
    pub directory: Option<PathBuf>,
    /// Bytes of a set, packed and unpacked.
    pub size_max: u64,
    /// Directories of clean files, in which a set must not find anything.
    pub corpus: Vec<PathBuf>,
    /// Former sets that are kept.
    pub keep: u32,
}

/// Where a set of rules comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A directory, an archive, or one file of signatures.
    Path(PathBuf),
    /// `http:` or `https:`
    Url(String),
}

impl Origin {
    /// Reads a path, or a URL of `https`, `http` or `file`.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn parse(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("file://") {
            return match path.strip_prefix("localhost").unwrap_or(path) {
                path if path.starts_with('/') => Ok(Self::Path(path.into())),
                _ => Err(format!("{text:?} names no file of this machine")),
            };
        }
        match text.split_once("://") {
            Some(("https" | "http", rest)) if !rest.is_empty() && !rest.starts_with('/') => {
                Ok(Self::Url(text.to_owned()))
            }
            Some((scheme, _)) => Err(format!("{scheme:?} URLs are not fetched: https, http, file")),
            None if text.is_empty() => Err("an empty path".into()),
            None => Ok(Self::Path(text.into())),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(f, "{}", path.display()),
            Self::Url(url) => f.write_str(url),
        }
    }
}

impl Scalar for Origin {
    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        let help = "write \"https://example.com/rules.tar.gz\" or a whole path";
        match Self::parse(&String::read(value)?) {
            Ok(Self::Path(path)) if !path.is_absolute() => {
                Err(Wrong::new(format!("{:?} is a relative path", path.display().to_string()))
                    .help(help))
            }
            Ok(origin) => Ok(origin),
            Err(wrong) => Err(Wrong::new(wrong).help(help)),
        }
    }
}

impl Default for Update {
    fn default() -> Self {
        Self {
            source: None,
            public_key: None,
            directory: None,
            // ten times the largest public sets
            size_max: 1 << 30,
            corpus: Vec::new(),
            keep: 3,
        }
    }
}

pub(super) fn read(r: &mut Reader<'_>, scan: &mut Table<'_, '_>) -> Update {
    let mut t = scan.table(r, "update");
    let d = Update::default();
    let update = Update {
        source: t.opt(r, "source"),
        public_key: t.opt(r, "public_key"),
        directory: t.opt(r, "directory"),
        size_max: size(r, &mut t, "size_max", d.size_max),
        corpus: t.list(r, "corpus", d.corpus),
        keep: number(r, &mut t, "keep", d.keep),
    };
    if let Some(key) = &update.public_key
        && let Err(e) = minisign_verify::PublicKey::from_base64(key)
    {
        let wrong = Wrong::new(format!("`scan.update.public_key`: {e}"))
            .help("write the second line of minisign.pub, which begins with RW");
        r.report(t.span_of("public_key"), wrong);
    }
    t.finish(r);
    update
}

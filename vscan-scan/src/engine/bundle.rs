//! Bundles: rules that are compiled already, so that thousands of them are there in milliseconds.
//!
//! A bundle holds machine code, which yara-x runs as it finds it. So it is bound to the machine that built it: a BLAKE3
//! hash keyed with a secret of this machine is over the whole file, and nothing of the file is looked at before it
//! agrees. Versions and features of the processor are inside: what another version built is refused, not misread.
//! Rules travel as text, signed by who wrote them; bundles do not travel.

use super::plan::Table;
use super::yara::{Set, YARA_X};
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use yara_x::Rules;

/// What a bundle begins with; the last byte is the version of this form.
const MAGIC: &[u8; 8] = b"VSCANRB\x04";

/// Largest bundle: ten times what the biggest public rule sets make.
const BUNDLE_MAX: u64 = 1 << 30;

/// Why a bundle is not loaded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call failed.
    #[error("{0}: {1}")]
    Io(&'static str, #[source] io::Error),
    /// There is no key.
    #[error("a bundle needs the key that it was built with (scan.rules_key)")]
    NoKey,
    /// The key's file is not fit to be one.
    #[error("the key {0}")]
    BadKey(&'static str),
    /// No bundle, or one of another version of this program.
    #[error("is no bundle of this version; build it again with `vscan rules build`")]
    NoBundle,
    /// The hash does not agree.
    #[error("was altered, or built with another key; build it again with `vscan rules build`")]
    Forged,
    /// Built for something else.
    #[error("was built for {0}, this is {1}; build it again with `vscan rules build`")]
    Foreign(String, String),
    /// yara-x refuses what is inside.
    #[error("yara-x: {0}")]
    Yara(String),
}

/// The secret that bundles are authenticated with.
#[derive(Clone)]
pub struct Key([u8; 32]);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key")
    }
}

impl Key {
    /// Reads a key: 32 bytes in a file that only its owner and group can read, and only its owner can change.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::BadKey`].
    pub fn read(path: &Path) -> Result<Self, Error> {
        let file = File::open(path).map_err(|e| Error::Io("the key", e))?;
        let meta = file.metadata().map_err(|e| Error::Io("the key", e))?;
        if meta.mode() & 0o027 != 0 {
            return Err(Error::BadKey("can be read or changed by others: chmod 640"));
        }
        let mut bytes = Vec::new();
        file.take(33).read_to_end(&mut bytes).map_err(|e| Error::Io("the key", e))?;
        bytes.try_into().map(Self).map_err(|_| Error::BadKey("does not have 32 bytes"))
    }

    /// Reads a key, or makes one where there is no file.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_or_make(path: &Path) -> Result<Self, Error> {
        let made = OpenOptions::new().write(true).create_new(true).mode(0o640).open(path);
        match made {
            Ok(mut file) => {
                let mut bytes = [0; 32];
                File::open("/dev/urandom")
                    .and_then(|mut random| random.read_exact(&mut bytes))
                    .and_then(|()| file.write_all(&bytes))
                    .and_then(|()| file.sync_all())
                    .map_err(|e| Error::Io("a new key", e))?;
                Ok(Self(bytes))
            }
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Self::read(path),
            Err(e) => Err(Error::Io("a new key", e)),
        }
    }
}

/// What lies behind the hash.
#[derive(Serialize, Deserialize)]
struct Content<'a> {
    /// yara-x and processor that it was built for.
    platform: String,
    /// Identity of the rules.
    version: String,
    /// When the youngest of their files was changed, in seconds since 1970.
    newest: Option<i64>,
    table: Table,
    #[serde(borrow)]
    units: Vec<&'a serde_bytes::Bytes>,
}

/// A bundle that was read.
pub struct Bundle {
    /// The rules.
    pub set: Set,
    /// Identity of the rules: the version that they were loaded with when it was built.
    pub version: String,
    /// When the youngest of their files was changed, in seconds since 1970.
    pub newest: Option<i64>,
}

/// Writes a bundle of one set, in place of what was there; a reader sees the old or the new one. `version` and `newest`
/// are those of the signatures that the set was loaded with.
///
/// # Errors
/// [`Error::Io`], [`Error::Yara`].
pub fn write(
    set: &Set,
    version: &str,
    newest: Option<i64>,
    key: &Key,
    path: &Path,
) -> Result<u64, Error> {
    let units = set.compiled().map(Rules::serialize).collect::<Result<Vec<_>, _>>();
    let units = units.map_err(|e| Error::Yara(e.to_string()))?;
    let content = Content {
        platform: platform(),
        version: version.to_owned(),
        newest,
        table: set.plan.table().clone(),
        units: units.iter().map(|unit| serde_bytes::Bytes::new(unit)).collect(),
    };
    let body = postcard::to_stdvec(&content).map_err(|e| Error::Yara(e.to_string()))?;
    let io = |e| Error::Io("cannot be written", e);
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    let written = (|| {
        let mut file = File::create(&new)?;
        file.write_all(MAGIC)?;
        file.write_all(mac(key, &body).as_bytes())?;
        file.write_all(&body)?;
        file.sync_all()?;
        fs::rename(&new, path)
    })();
    if written.is_err() {
        // What is wrong is said already.
        let _ = fs::remove_file(&new);
    }
    written.map_err(io)?;
    Ok(body.len() as u64)
}

/// Reads a bundle.
///
/// # Errors
/// All of [`Error`].
pub fn read(path: &Path, key: Option<&Key>) -> Result<Bundle, Error> {
    let io = |e| Error::Io("cannot be read", e);
    let key = key.ok_or(Error::NoKey)?;
    let mut file = File::open(path).map_err(io)?;
    let len = file.metadata().map_err(io)?.len();
    if len > BUNDLE_MAX {
        return Err(Error::NoBundle);
    }
    let mut bytes = Vec::with_capacity(len as usize);
    file.read_to_end(&mut bytes).map_err(io)?;
    let rest = bytes.strip_prefix(MAGIC).ok_or(Error::NoBundle)?;
    let (told, body) = rest.split_first_chunk::<32>().ok_or(Error::NoBundle)?;
    // The comparison takes the same time wherever they differ.
    if mac(key, body) != blake3::Hash::from_bytes(*told) {
        return Err(Error::Forged);
    }
    let content: Content<'_> = postcard::from_bytes(body).map_err(|_| Error::NoBundle)?;
    let here = platform();
    if content.platform != here {
        return Err(Error::Foreign(content.platform, here));
    }
    let units = content.units.iter().map(Rules::deserialize).collect::<Result<Vec<_>, _>>();
    let units = units.map_err(|e| Error::Yara(e.to_string()))?;
    Ok(Bundle {
        set: Set::new(units, content.table),
        version: content.version,
        newest: content.newest,
    })
}

fn mac(key: &Key, body: &[u8]) -> blake3::Hash {
    blake3::keyed_hash(&key.0, body)
}

/// yara-x, the architecture, and the processor's features that its compiler uses.
fn platform() -> String {
    let mut text = format!("yara-x {YARA_X} {}", std::env::consts::ARCH);
    #[cfg(target_arch = "x86_64")]
    {
        macro_rules! features {
            ($($name:tt),*) => {
                $(if std::is_x86_feature_detected!($name) { text.push_str(concat!(" ", $name)); })*
            };
        }
        features!(
            "sse3",
            "ssse3",
            "sse4.1",
            "sse4.2",
            "popcnt",
            "avx",
            "avx2",
            "fma",
            "bmi1",
            "bmi2",
            "lzcnt",
            "avx512f",
            "avx512dq",
            "avx512vl",
            "avx512bitalg",
            "avx512vbmi"
        );
    }
    #[cfg(target_arch = "aarch64")]
    {
        macro_rules! features {
            ($($name:tt),*) => {
                $(if std::arch::is_aarch64_feature_detected!($name) { text.push_str(concat!(" ", $name)); })*
            };
        }
        features!("lse", "paca", "fp16");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Engines, Signatures};
    use crate::object::{Engine, Part};
    use crate::sniff::Kind;
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    fn built(dir: &Path) -> (PathBuf, Key) {
        let rules = dir.join("a.yar");
        fs::write(&rules, "rule a { strings: $x = \"a needle in here\" condition: $x }").unwrap();
        let key = Key::read_or_make(&dir.join("key")).unwrap();
        let loaded = Signatures::load(&[rules], None).unwrap_or_else(|e| panic!("{e:?}"));
        let path = dir.join("a.vrb");
        write(&loaded.rules[0], &loaded.version, loaded.newest, &key, &path).unwrap();
        (path, key)
    }

    #[test]
    fn a_bundle_finds_what_its_rules_find() {
        let dir = tempfile::tempdir().unwrap();
        let (path, key) = built(dir.path());
        let loaded = Signatures::load(&[path], Some(&key)).unwrap_or_else(|e| panic!("{e:?}"));
        assert_eq!(loaded.count, 1);
        let rules = fs::metadata(dir.path().join("a.yar")).unwrap().mtime();
        assert_eq!(loaded.newest, Some(rules), "the age of its rules, not its own");
        let mut engines = Engines::new(&loaded);
        let mut hits = Vec::new();
        let part = Part {
            data: b".. a needle in here ..",
            kind: Kind::Data,
            name: "x",
            path: &[],
            detail: false,
        };
        engines.scan(&part, &mut hits).unwrap();
        assert_eq!(hits.len(), 1);
        assert_eq!(engines.needed(b"nothing"), (0, 1));
    }

    #[test]
    fn nothing_of_an_altered_bundle_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let (path, key) = built(dir.path());
        let good = fs::read(&path).unwrap();
        let places = (0..good.len()).step_by(97).chain([8, 39, 40, good.len() - 1]);
        for place in places {
            let mut bad = good.clone();
            bad[place] ^= 1;
            fs::write(&path, &bad).unwrap();
            let error = read(&path, Some(&key)).err();
            assert!(matches!(error, Some(Error::Forged | Error::NoBundle)), "{place}: {error:?}");
        }
        for len in [0, 7, 8, 39, 40, good.len() - 1] {
            fs::write(&path, &good[..len]).unwrap();
            let error = read(&path, Some(&key)).err();
            assert!(matches!(error, Some(Error::Forged | Error::NoBundle)), "{len}: {error:?}");
        }
        fs::write(&path, &good).unwrap();
        assert!(read(&path, Some(&key)).is_ok());
        assert!(matches!(read(&path, None), Err(Error::NoKey)));
        let other = Key::read_or_make(&dir.path().join("other")).unwrap();
        assert!(matches!(read(&path, Some(&other)), Err(Error::Forged)));
    }

    #[test]
    fn a_bundle_of_another_version_or_processor_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (path, key) = built(dir.path());
        let content = Content {
            platform: "yara-x 0.0.1 pdp11".into(),
            version: String::new(),
            newest: None,
            table: Table::default(),
            units: Vec::new(),
        };
        let body = postcard::to_stdvec(&content).unwrap();
        fs::write(&path, [&MAGIC[..], mac(&key, &body).as_bytes(), &body].concat()).unwrap();
        assert!(matches!(read(&path, Some(&key)), Err(Error::Foreign(..))));
    }

    #[test]
    fn a_key_that_others_can_read_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        Key::read_or_make(&path).unwrap();
        assert!(Key::read(&path).is_ok());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(Key::read(&path), Err(Error::BadKey(_))));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, b"short").unwrap();
        assert!(matches!(Key::read(&path), Err(Error::BadKey(_))));
    }
}

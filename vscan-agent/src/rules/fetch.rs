//! Brings a set here, and checks that it is what it shall be.

use super::{Error, at};
use crate::config::Origin;
use minisign_verify::{PublicKey, Signature};
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use ureq::tls::{RootCerts, TlsConfig};
use walkdir::WalkDir;

/// Time for one file, from the name's look-up to its last byte, where nobody says otherwise.
pub const FETCH_TIMEOUT: Duration = Duration::from_secs(600);

/// Time until a server answers.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// Bytes of the longest checksum file or signature.
const BESIDE_MAX: u64 = 1 << 20;

/// Files of a directory.
const FILES_MAX: usize = 100_000;

/// What a set has to be.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Its SHA-256, in hexadecimal.
    pub sha256: Option<String>,
    /// The key that it is signed with.
    pub public_key: Option<String>,
    /// Bytes that it may have, packed and unpacked.
    pub size_max: u64,
    /// Time for each of its files.
    pub patience: Duration,
}

/// A set that is here, and what is known of it.
#[derive(Debug)]
pub struct Fetched {
    /// The file, or the directory.
    pub path: PathBuf,
    /// The name of the file at its origin.
    pub name: String,
    /// Its SHA-256; of a directory that of the list of its files.
    pub sha256: String,
    /// When it was signed, in seconds since 1970, as the trusted comment tells.
    pub signed: Option<i64>,
}

/// Brings a set into the directory `into`, and checks it.
///
/// # Errors
/// [`Error`]; what was brought so far is of no use.
pub fn fetch(origin: &Origin, wanted: &Wanted, into: &Path) -> Result<Fetched, Error> {
    match origin {
        Origin::Path(path) if fs::metadata(path).map_err(at(path))?.is_dir() => {
            directory(path, wanted, into)
        }
        Origin::Path(_) | Origin::Url(_) => file(origin, wanted, into),
    }
}

fn file(origin: &Origin, wanted: &Wanted, into: &Path) -> Result<Fetched, Error> {
    if let Origin::Url(url) = origin
        && url.starts_with("http://")
        && wanted.public_key.is_none()
        && wanted.sha256.is_none()
    {
        return Err(Error::Unprotected);
    }
    let path = into.join("fetched");
    let Some(sha256) = bring(origin, "", &path, wanted.size_max, wanted.patience)? else {
        return Err(Error::Io {
            path: origin.to_string().into(),
            error: io::ErrorKind::NotFound.into(),
        });
    };
    let name = name(origin);
    agrees(&sha256, wanted)?;
    if let Some(told) = beside(origin, ".sha256", into, wanted.patience)? {
        // `HASH`, or `HASH  NAME` as sha256sum(1) writes it.
        let told = told.split_ascii_whitespace().next().unwrap_or_default();
        if !told.eq_ignore_ascii_case(&sha256) {
            return Err(Error::Checksum { is: sha256, told: format!("{origin}.sha256") });
        }
    }
    let signed = match &wanted.public_key {
        None => None,
        Some(key) => {
            let signature = beside(origin, ".minisig", into, wanted.patience)?
                .ok_or_else(|| Error::Unsigned(format!("{origin}.minisig")))?;
            verify(&path, &signature, key)?
        }
    };
    Ok(Fetched { path, name, sha256, signed })
}

/// Copies a directory's files. What vouches for them is `SHA256SUMS` in it, and `SHA256SUMS.minisig` for that.
fn directory(from: &Path, wanted: &Wanted, into: &Path) -> Result<Fetched, Error> {
    let path = into.join("directory");
    fs::create_dir(&path).map_err(at(&path))?;
    let (mut sums, mut size) = (Vec::new(), 0);
    for entry in WalkDir::new(from).sort_by_file_name() {
        let entry = entry.map_err(|e| Error::Io {
            path: e.path().unwrap_or(from).to_owned(),
            error: e.into_io_error().unwrap_or_else(|| io::Error::other("a loop")),
        })?;
        let Ok(relative) = entry.path().strip_prefix(from) else { continue };
        let to = path.join(relative);
        if entry.file_type().is_dir() {
            fs::create_dir_all(&to).map_err(at(&to))?;
        } else if entry.file_type().is_file() {
            let name = relative.to_string_lossy().into_owned();
            let left = wanted.size_max.saturating_sub(size);
            let source = File::open(entry.path()).map_err(at(entry.path()))?;
            let (copied, sha256) = copy(source, &to, left, at(entry.path()))?;
            size += copied;
            sums.push((name, sha256));
            if sums.len() > FILES_MAX {
                return Err(Error::Malformed(format!("has more than {FILES_MAX} files")));
            }
        } else {
            return Err(Error::Malformed(format!(
                "{} is neither a file nor a directory",
                entry.path().display()
            )));
        }
    }
    let list = path.join("SHA256SUMS");
    let told = fs::read_to_string(&list).ok();
    let own = ["SHA256SUMS", "SHA256SUMS.minisig"];
    sums.retain(|(name, _)| !own.contains(&name.as_str()));
    if let Some(told) = &told {
        listed(told, &sums)?;
    }
    let signed = match (&wanted.public_key, &told) {
        (None, _) => None,
        (Some(_), None) => return Err(Error::Unsigned(format!("{}/SHA256SUMS", from.display()))),
        (Some(key), Some(_)) => {
            let place = path.join("SHA256SUMS.minisig");
            let signature = fs::read_to_string(&place)
                .map_err(|_| Error::Unsigned(format!("{}/SHA256SUMS.minisig", from.display())))?;
            verify(&list, &signature, key)?
        }
    };
    let mut hasher = Sha256::new();
    for (name, sha256) in &sums {
        hasher.update(format!("{sha256}  {name}\n"));
    }
    let sha256 = hex(&hasher.finalize());
    agrees(&sha256, wanted)?;
    Ok(Fetched { path, name: String::new(), sha256, signed })
}

/// Whether a list tells of all files, and rightly.
fn listed(told: &str, sums: &[(String, String)]) -> Result<(), Error> {
    let mut lines: Vec<(&str, &str)> = told
        .lines()
        .filter_map(|line| line.split_once(char::is_whitespace))
        .map(|(hash, name)| (name.trim_start_matches([' ', '*']), hash))
        .collect();
    for (name, is) in sums {
        let Some(at) = lines.iter().position(|(listed, _)| listed.trim_start_matches("./") == name)
        else {
            return Err(Error::Malformed(format!("SHA256SUMS does not list {name}")));
        };
        let (_, hash) = lines.swap_remove(at);
        if !hash.eq_ignore_ascii_case(is) {
            let told = format!("SHA256SUMS, for {name},");
            return Err(Error::Checksum { is: is.clone(), told });
        }
    }
    match lines.first() {
        Some((name, _)) => {
            Err(Error::Malformed(format!("{name} is missing, which SHA256SUMS lists")))
        }
        None => Ok(()),
    }
}

fn agrees(sha256: &str, wanted: &Wanted) -> Result<(), Error> {
    match &wanted.sha256 {
        Some(told) if !told.eq_ignore_ascii_case(sha256) => {
            Err(Error::Checksum { is: sha256.to_owned(), told: "--sha256".to_owned() })
        }
        Some(_) | None => Ok(()),
    }
}

/// Checks a signature over a whole file; when it was made, as its trusted comment tells.
fn verify(path: &Path, signature: &str, key: &str) -> Result<Option<i64>, Error> {
    let key = PublicKey::from_base64(key).map_err(Error::Signature)?;
    let signature = Signature::decode(signature).map_err(Error::Signature)?;
    let mut verifier = key.verify_stream(&signature).map_err(Error::Signature)?;
    let mut file = File::open(path).map_err(at(path))?;
    let mut piece = vec![0; 1 << 16];
    loop {
        match file.read(&mut piece).map_err(at(path))? {
            0 => break,
            count => verifier.update(&piece[..count]),
        }
    }
    verifier.finalize().map_err(Error::Signature)?;
    let comment = signature.trusted_comment();
    Ok(comment
        .split_ascii_whitespace()
        .find_map(|word| word.strip_prefix("timestamp:")?.parse().ok()))
}

/// A small file beside the set; none if it is not there.
fn beside(
    origin: &Origin,
    ending: &str,
    into: &Path,
    patience: Duration,
) -> Result<Option<String>, Error> {
    let to = into.join(format!("fetched{ending}"));
    match bring(origin, ending, &to, BESIDE_MAX, patience)? {
        Some(_) => fs::read_to_string(&to).map(Some).map_err(at(&to)),
        None => Ok(None),
    }
}

/// Brings what lies at the origin with `ending` behind its name; its SHA-256, or none if it is not there.
fn bring(
    origin: &Origin,
    ending: &str,
    to: &Path,
    most: u64,
    patience: Duration,
) -> Result<Option<String>, Error> {
    match origin {
        Origin::Path(path) => {
            let mut name = path.clone().into_os_string();
            name.push(ending);
            let path = PathBuf::from(name);
            match File::open(&path) {
                Ok(file) => copy(file, to, most, at(&path)).map(|(_, sha256)| Some(sha256)),
                Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(e) => Err(at(&path)(e)),
            }
        }
        Origin::Url(url) => {
            let (place, query) = match url.split_once('?') {
                Some((place, query)) => (place, format!("?{query}")),
                None => (url.as_str(), String::new()),
            };
            let url = format!("{place}{ending}{query}");
            let failed = |error| Error::Http { url: url.clone(), error: Box::new(error) };
            let chunked;
            let body = match agent(url.starts_with("https://"), patience).get(&url).call() {
                Ok(response) => {
                    let coding = response.headers().get("transfer-encoding");
                    chunked = coding.is_some_and(|coding| coding.as_bytes().ends_with(b"chunked"));
                    response.into_body()
                }
                // What a server says of a file that it does not have, or does not show.
                Err(ureq::Error::StatusCode(403 | 404 | 410)) => return Ok(None),
                Err(error) => return Err(failed(error)),
            };
            // Where the end of the connection is the end of the file, whoever cuts it makes half a file look whole.
            if body.content_length().is_none() && !chunked {
                let what = "the server does not say how long the file is";
                return Err(failed(ureq::Error::Io(io::Error::other(what))));
            }
            // What fails to be read failed on its way, not on the disk.
            let lost = |error| failed(ureq::Error::Io(error));
            copy(body.into_reader(), to, most, lost).map(|(_, sha256)| Some(sha256))
        }
    }
}

fn agent(https_only: bool, patience: Duration) -> ureq::Agent {
    let tls = TlsConfig::builder()
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .root_certs(RootCerts::PlatformVerifier)
        .build();
    let config = ureq::Agent::config_builder()
        .tls_config(tls)
        .https_only(https_only)
        .timeout_connect(Some(CONNECT_TIMEOUT.min(patience)))
        .timeout_recv_response(Some(CONNECT_TIMEOUT.min(patience)))
        .timeout_global(Some(patience))
        .user_agent(concat!("vscan/", env!("CARGO_PKG_VERSION")))
        .build();
    ureq::Agent::new_with_config(config)
}

/// Copies up to `most` bytes into a new file on disk; their number and SHA-256. `lost` says what it means when the source
/// cannot be read.
fn copy(
    mut from: impl Read,
    to: &Path,
    most: u64,
    lost: impl FnOnce(io::Error) -> Error,
) -> Result<(u64, String), Error> {
    let mut file = File::create(to).map_err(at(to))?;
    let (mut size, mut hasher) = (0, Sha256::new());
    let mut piece = vec![0; 1 << 16];
    loop {
        let count = match from.read(&mut piece) {
            Ok(0) => break,
            Ok(count) => count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(lost(e)),
        };
        size += count as u64;
        if size > most {
            return Err(Error::TooLarge(most));
        }
        hasher.update(&piece[..count]);
        file.write_all(&piece[..count]).map_err(at(to))?;
    }
    file.sync_all().map_err(at(to))?;
    Ok((size, hex(&hasher.finalize())))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The last name of a path or URL.
fn name(origin: &Origin) -> String {
    let text = origin.to_string();
    let place = match origin {
        Origin::Path(_) => text.as_str(),
        Origin::Url(_) => text.split(['?', '#']).next().unwrap_or_default(),
    };
    let last = place.rsplit('/').find(|part| !part.is_empty()).unwrap_or("rules");
    let name: String =
        last.chars().map(|c| if c.is_ascii_graphic() { c } else { '_' }).take(100).collect();
    if name.starts_with('.') { format!("_{name}") } else { name }
}

//! Hash lists: known files by SHA-256, SHA-1 or MD5, and their sizes.
//!
//! A list is one image of bytes, in a file that is mapped or in memory: for each algorithm its hashes sorted, with
//! the size and the name of each, and an index of their first two bytes. Ten million SHA-256 take 410 MB of address
//! space, and of memory the pages that are asked for. A file is hashed only if the list knows its size, or hashes
//! of unknown size.
//!
//! ```text
//! magic 8 | identity 32 | names: count u32, length u32 | three tables: count u64, sizes u64, any u64
//! per table: index 65,537 x u32 | sizes: sorted u64 | entries: hash, size u40, name u32
//! names: offsets (count + 1) x u32 | text
//! ```
//! All numbers are little-endian; a size of 2^40-1 stands for any, a name of 2^32-1 for none.

use super::source::Diagnostic;
use crate::process::sys::Mapping;
use md5::Digest as _;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

/// What a list begins with; the last byte is the version of this form.
const MAGIC: &[u8; 8] = b"VSCANHL\x01";

/// Length of what comes before the first table.
const HEAD: usize = 8 + 32 + 8 + 3 * 24;

/// Length of the index of a table.
const INDEX: usize = 65_537 * 4;

/// Bytes of an entry behind its hash.
const TAIL: usize = 5 + 4;

/// A size that is not known.
const ANY_SIZE: u64 = (1 << 40) - 1;

/// No name.
const NO_NAME: u32 = u32::MAX;

/// The algorithms, in the order of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Algorithm {
    /// SHA-256 (FIPS 180-4).
    Sha256,
    /// SHA-1 (FIPS 180-4).
    Sha1,
    /// MD5 (RFC 1321).
    Md5,
}

impl Algorithm {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Sha256, Self::Sha1, Self::Md5];

    /// Bytes of a hash.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha1 => 20,
            Self::Md5 => 16,
        }
    }

    /// The algorithm whose hashes have this many bytes.
    fn of_len(len: usize) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.bytes() == len)
    }

    /// The hash of some bytes.
    #[must_use]
    pub fn hash(self, data: &[u8]) -> Vec<u8> {
        match self {
            Self::Sha256 => {
                use sha2::Digest as _;
                sha2::Sha256::digest(data).to_vec()
            }
            Self::Sha1 => sha1::Sha1::digest(data).to_vec(),
            Self::Md5 => md5::Md5::digest(data).to_vec(),
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Sha256 => "SHA256",
            Self::Sha1 => "SHA1",
            Self::Md5 => "MD5",
        }
    }
}

/// One line of a list.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// Its algorithm, which the hash's length tells.
    pub algorithm: Algorithm,
    /// The hash.
    pub hash: Vec<u8>,
    /// The size of the file, if it is told.
    pub size: Option<u64>,
    /// The name of the detection; may be empty.
    pub name: String,
}

/// Reads one line of a list: `HASH`, `HASH SIZE`, `HASH NAME`, `HASH SIZE NAME`, with blanks or colons between them, as
/// ClamAV's `.hdb` and `.hsb` and the output of sha256sum(1) have it. A size may be `*`. None for what says nothing: an
/// empty line, or one that begins with `#`.
///
/// # Errors
/// What is wrong with it, in words.
pub fn line(line: &str) -> Result<Option<Entry>, String> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    let end = line.find(|c: char| c == ':' || c.is_whitespace()).unwrap_or(line.len());
    let (hash, rest) = line.split_at(end);
    let bytes = hex(hash).ok_or_else(|| format!("`{}` is no hash", clipped(hash)))?;
    let algorithm = Algorithm::of_len(bytes.len()).ok_or_else(|| {
        format!("a hash of {} bytes is neither SHA-256, SHA-1 nor MD5", bytes.len())
    })?;
    let between = |c: char| c == ':' || c.is_whitespace();
    let rest = rest.trim_start_matches(between);
    let end = rest.find(between).unwrap_or(rest.len());
    let (size, name) = match rest[..end].parse::<u64>() {
        Ok(size) if size < ANY_SIZE => (Some(size), &rest[end..]),
        Ok(_) => return Err("the size is larger than any file".into()),
        Err(_) if &rest[..end] == "*" => (None, &rest[end..]),
        Err(_) => (None, rest),
    };
    let name = name.trim_start_matches(between);
    // ClamAV appends levels of its engine to the name.
    let name = name.split(':').next().unwrap_or_default().trim();
    Ok(Some(Entry { algorithm, hash: bytes, size, name: name.to_owned() }))
}

pub(super) fn hex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    if digits.is_empty() || !digits.len().is_multiple_of(2) {
        return None;
    }
    digits
        .chunks(2)
        .map(|pair| {
            let high = (pair[0] as char).to_digit(16)?;
            let low = (pair[1] as char).to_digit(16)?;
            u8::try_from(high << 4 | low).ok()
        })
        .collect()
}

fn clipped(text: &str) -> &str {
    &text[..text.floor_char_boundary(80.min(text.len()))]
}

/// Reads lists of hashes as text into one image, with the number of its hashes and the lines that say nothing.
///
/// # Errors
/// Files that cannot be read.
pub fn compile(lists: &[PathBuf]) -> Result<(Vec<u8>, u64, Vec<Diagnostic>), Vec<Diagnostic>> {
    let (mut entries, mut errors, mut doubts) = (Vec::new(), Vec::new(), Vec::new());
    for path in lists {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(e) => {
                errors.push(Diagnostic::of_file(path, format!("cannot be read: {e}")));
                continue;
            }
        };
        for (number, text) in BufReader::new(file).split(b'\n').enumerate() {
            match text.map(|text| line(&String::from_utf8_lossy(&text))) {
                Ok(Ok(entry)) => entries.extend(entry),
                Ok(Err(message)) if doubts.len() < DOUBTS_MAX => doubts.push(Diagnostic {
                    line: Some(number + 1),
                    ..Diagnostic::of_file(path, message)
                }),
                Ok(Err(_)) => {}
                Err(e) => {
                    errors.push(Diagnostic::of_file(path, format!("cannot be read: {e}")));
                    break;
                }
            }
        }
    }
    if entries.is_empty() && errors.is_empty() {
        let first = lists.first().cloned().unwrap_or_default();
        errors.push(Diagnostic::of_file(&first, "has no hash".into()));
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    let image = image(entries);
    let count = Algorithm::ALL.iter().enumerate().map(|(i, _)| u64_at(&image, 48 + 24 * i)).sum();
    Ok((image, count, doubts))
}

/// Most lines without a hash that are told.
const DOUBTS_MAX: usize = 1000;

/// The image of a list.
#[must_use]
pub fn image(mut entries: Vec<Entry>) -> Vec<u8> {
    entries.sort();
    entries.dedup_by(|b, a| (a.algorithm, &a.hash, a.size) == (b.algorithm, &b.hash, b.size));
    let mut names: Vec<&str> = Vec::new();
    let mut places: HashMap<&str, u32> = HashMap::new();
    let mut tables = Vec::new();
    let mut counts = Vec::new();
    for algorithm in Algorithm::ALL {
        let own = entries.iter().filter(|entry| entry.algorithm == algorithm);
        let mut sizes: Vec<u64> = own.clone().filter_map(|entry| entry.size).collect();
        sizes.sort_unstable();
        sizes.dedup();
        let mut index = vec![0u32; 65_537];
        let (mut count, mut any) = (0u64, 0u64);
        let mut rows = Vec::new();
        for entry in own {
            let first = usize::from(u16::from_be_bytes([entry.hash[0], entry.hash[1]]));
            index[first + 1] += 1;
            count += 1;
            any += u64::from(entry.size.is_none());
            rows.extend_from_slice(&entry.hash);
            rows.extend_from_slice(&entry.size.unwrap_or(ANY_SIZE).to_le_bytes()[..5]);
            let name = if entry.name.is_empty() {
                NO_NAME
            } else {
                *places.entry(&entry.name).or_insert_with(|| {
                    names.push(&entry.name);
                    names.len() as u32 - 1
                })
            };
            rows.extend_from_slice(&name.to_le_bytes());
        }
        for i in 0..65_536 {
            index[i + 1] += index[i];
        }
        counts.push([count, sizes.len() as u64, any]);
        tables.extend(index.iter().flat_map(|n| n.to_le_bytes()));
        tables.extend(sizes.iter().flat_map(|n| n.to_le_bytes()));
        tables.extend(rows);
    }
    let text: usize = names.iter().map(|name| name.len()).sum();
    let mut body = Vec::with_capacity(HEAD + tables.len() + names.len() * 4 + 4 + text);
    body.extend((names.len() as u32).to_le_bytes());
    body.extend((text as u32).to_le_bytes());
    body.extend(counts.iter().flatten().flat_map(|n| n.to_le_bytes()));
    body.extend(tables);
    let mut offset = 0u32;
    body.extend(offset.to_le_bytes());
    for name in &names {
        offset += name.len() as u32;
        body.extend(offset.to_le_bytes());
    }
    names.iter().for_each(|name| body.extend(name.as_bytes()));
    [&MAGIC[..], blake3::hash(&body).as_bytes(), &body].concat()
}

/// Writes a list in place of what was there; a reader sees the old or the new one.
///
/// # Errors
/// Those of the file system.
pub fn write(image: &[u8], path: &Path) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    let mut file = File::create(&new)?;
    file.write_all(image)?;
    file.sync_all()?;
    std::fs::rename(&new, path)
}

#[derive(Debug)]
enum Image {
    Memory(Vec<u8>),
    File(Mapping),
}

/// Where a table lies in the image.
#[derive(Clone, Copy, Debug, Default)]
struct Table {
    index: usize,
    sizes: (usize, usize),
    rows: (usize, usize),
    any: bool,
}

/// A list, ready to be asked.
#[derive(Debug)]
pub struct Hashes {
    image: Image,
    tables: [Table; 3],
    names: (usize, usize),
    count: u64,
}

impl Hashes {
    /// A list in memory.
    ///
    /// # Errors
    /// In words, when the bytes are no image.
    pub fn of_image(image: Vec<u8>) -> Result<Self, String> {
        Self::of(Image::Memory(image))
    }

    /// A list in a file, which is mapped: it has to be replaced, not written to.
    ///
    /// # Errors
    /// In words, when it cannot be read or is no list.
    pub fn open(path: &Path) -> Result<Self, String> {
        let file = File::open(path).map_err(|e| format!("cannot be read: {e}"))?;
        let len = file.metadata().map_err(|e| format!("cannot be read: {e}"))?.len();
        let len = usize::try_from(len).map_err(|_| "is too large")?;
        if len < HEAD {
            return Err("is no hash list of this version".into());
        }
        let mapping = Mapping::sparse(&file, len).map_err(|e| format!("cannot be mapped: {e}"))?;
        Self::of(Image::File(mapping))
    }

    fn of(image: Image) -> Result<Self, String> {
        let mut hashes = Self { image, tables: [Table::default(); 3], names: (0, 0), count: 0 };
        let bytes = hashes.bytes();
        let wrong = || "is no hash list of this version".to_owned();
        if !bytes.starts_with(MAGIC) || bytes.len() < HEAD {
            return Err(wrong());
        }
        let usize_at = |at| usize::try_from(u64_at(bytes, at)).map_err(|_| wrong());
        let names = u32_at(bytes, 40) as usize;
        let text = u32_at(bytes, 44) as usize;
        let mut tables = [Table::default(); 3];
        let (mut at, mut total) = (HEAD, 0);
        for (i, algorithm) in Algorithm::ALL.into_iter().enumerate() {
            let (count, sizes) = (usize_at(48 + 24 * i)?, usize_at(56 + 24 * i)?);
            total += count as u64;
            let end_of = |from: usize, count: usize, each: usize| {
                count.checked_mul(each).and_then(|len| from.checked_add(len)).ok_or_else(wrong)
            };
            let sizes_at = end_of(at, 1, INDEX)?;
            let rows_at = end_of(sizes_at, sizes, 8)?;
            let end = end_of(rows_at, count, algorithm.bytes() + TAIL)?;
            if end > bytes.len() {
                return Err(wrong());
            }
            let any = usize_at(64 + 24 * i)? > 0;
            tables[i] = Table { index: at, sizes: (sizes_at, sizes), rows: (rows_at, count), any };
            at = end;
        }
        let end = names.checked_mul(4).and_then(|n| n.checked_add(at + 4 + text));
        if end != Some(bytes.len()) {
            return Err(wrong());
        }
        hashes.tables = tables;
        hashes.names = (at, names);
        hashes.count = total;
        Ok(hashes)
    }

    /// Number of hashes.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// What tells this list from others: the hash that was made when it was built.
    #[must_use]
    pub fn identity(&self) -> &[u8] {
        &self.bytes()[8..40]
    }

    /// Whether anything of this size is known by this algorithm: else it need not be hashed.
    #[must_use]
    pub fn knows_size(&self, algorithm: Algorithm, size: u64) -> bool {
        let table = self.tables[algorithm as usize];
        let (at, count) = table.sizes;
        table.any || search(count, |i| u64_at(self.bytes(), at + 8 * i).cmp(&size)).is_some()
    }

    /// Whether the list has hashes of this algorithm.
    #[must_use]
    pub fn has(&self, algorithm: Algorithm) -> bool {
        self.tables[algorithm as usize].rows.1 > 0
    }

    /// The name of the detection of this hash and size.
    #[must_use]
    pub fn find(&self, algorithm: Algorithm, hash: &[u8], size: u64) -> Option<String> {
        let bytes = self.bytes();
        let table = self.tables[algorithm as usize];
        let each = algorithm.bytes() + TAIL;
        let first = usize::from(u16::from_be_bytes([*hash.first()?, *hash.get(1)?]));
        let from = u32_at(bytes, table.index + 4 * first) as usize;
        let to = (u32_at(bytes, table.index + 4 * first + 4) as usize).min(table.rows.1);
        let row = |i: usize| &bytes[table.rows.0 + each * i..][..each];
        let own = |i: usize| &row(i)[..algorithm.bytes()];
        let found = search(to.saturating_sub(from), |i| own(from + i).cmp(hash))?;
        // Entries of the same hash and several sizes lie together.
        let mut i = from + found;
        while i > from && own(i - 1) == hash {
            i -= 1;
        }
        while i < to && own(i) == hash {
            let tail = &row(i)[algorithm.bytes()..];
            let known = u64::from_le_bytes([tail[0], tail[1], tail[2], tail[3], tail[4], 0, 0, 0]);
            if known == ANY_SIZE || known == size {
                let name = u32::from_le_bytes([tail[5], tail[6], tail[7], tail[8]]);
                return Some(self.name(name).unwrap_or_else(|| {
                    let start: String = hash.iter().take(4).map(|b| format!("{b:02x}")).collect();
                    format!("Hash.{}.{start}", algorithm.word())
                }));
            }
            i += 1;
        }
        None
    }

    fn name(&self, name: u32) -> Option<String> {
        let bytes = self.bytes();
        let (at, count) = self.names;
        let i = name as usize;
        if i >= count {
            return None;
        }
        let text = at + 4 * (count + 1);
        let from = text + u32_at(bytes, at + 4 * i) as usize;
        let to = text + u32_at(bytes, at + 4 * i + 4) as usize;
        bytes.get(from..to).map(|name| String::from_utf8_lossy(name).into_owned())
    }

    fn bytes(&self) -> &[u8] {
        match &self.image {
            Image::Memory(bytes) => bytes,
            Image::File(mapping) => mapping.bytes(),
        }
    }
}

/// Binary search: `order` compares the element with what is looked for.
fn search(count: usize, order: impl Fn(usize) -> std::cmp::Ordering) -> Option<usize> {
    let (mut from, mut to) = (0, count);
    while from < to {
        let middle = from + (to - from) / 2;
        match order(middle) {
            std::cmp::Ordering::Less => from = middle + 1,
            std::cmp::Ordering::Greater => to = middle,
            std::cmp::Ordering::Equal => return Some(middle),
        }
    }
    None
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u32::from_le_bytes(*b))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u64::from_le_bytes(*b))
}

/// The algorithms by which any of the lists may know a file of this size.
pub(super) fn asked(lists: &[Hashes], size: u64) -> Vec<Algorithm> {
    let by = |a: &Algorithm| lists.iter().any(|list| list.has(*a) && list.knows_size(*a, size));
    Algorithm::ALL.into_iter().filter(by).collect()
}

/// Hashes of one file by the places of their algorithms.
pub(super) type Made = [Option<Vec<u8>>; 3];

/// Hashes of one file, each made when it is first asked for.
pub(super) struct Asked<'d> {
    data: &'d [u8],
    made: Made,
}

impl<'d> Asked<'d> {
    pub(super) fn new(data: &'d [u8]) -> Self {
        Self::with(data, Made::default())
    }

    /// Some of which were made already.
    pub(super) fn with(data: &'d [u8], made: Made) -> Self {
        Self { data, made }
    }

    /// The name by which a list knows the file.
    pub(super) fn of(&mut self, list: &Hashes) -> Option<String> {
        let size = self.data.len() as u64;
        Algorithm::ALL.into_iter().filter(|&a| list.has(a) && list.knows_size(a, size)).find_map(
            |algorithm| {
                let made = &mut self.made[algorithm as usize];
                let hash = made.get_or_insert_with(|| algorithm.hash(self.data));
                list.find(algorithm, hash, size)
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn list(text: &str) -> Hashes {
        let entries = text.lines().filter_map(|l| line(l).unwrap()).collect();
        Hashes::of_image(image(entries)).unwrap()
    }

    #[test]
    fn lists_are_read_in_every_common_form() {
        let md5 = "5d41402abc4b2a76b9719d911017c592";
        let sha1 = "aaf4c61ddcc5e8a2dabede0f3b482cd9aea9434d";
        let sha256 = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
        for (text, name) in [
            (format!("{md5}:5:Hello.Known"), "Hello.Known"),
            (format!("{sha1}:*:Hello.Known:73"), "Hello.Known"),
            (sha256.to_owned(), "Hash.SHA256.2cf24dba"),
            (format!("{sha256}  hello.txt"), "hello.txt"),
            (format!("{} 5", sha256.to_uppercase()), "Hash.SHA256.2cf24dba"),
            (format!("# a comment\n\n{md5} * Two words\r\n"), "Two words"),
        ] {
            let list = list(&text);
            assert_eq!(Asked::new(b"hello").of(&list).as_deref(), Some(name), "{text}");
            assert_eq!(Asked::new(b"hallo").of(&list), None, "{text}");
        }
        let other_size = list(&format!("{md5}:6:Hello.Known"));
        assert_eq!(Asked::new(b"hello").of(&other_size), None);
        assert!(!other_size.knows_size(Algorithm::Md5, 5));
        for wrong in ["xyz", "abcd", "5d41402abc4b2a76b9719d911017c592:99999999999999:x"] {
            assert!(line(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn one_hash_may_have_several_sizes() {
        let md5 = "5d41402abc4b2a76b9719d911017c592";
        let list = list(&format!("{md5}:4:four\n{md5}:5:five\n{md5}:6:six"));
        assert_eq!(Asked::new(b"hello").of(&list).as_deref(), Some("five"));
    }

    proptest! {
        #[test]
        fn every_hash_of_a_list_is_found_and_no_other(
            files in proptest::collection::btree_set(proptest::collection::vec(any::<u8>(), 0..20), 1..200),
            others in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..20), 0..50),
        ) {
            let entries: Vec<Entry> = files.iter().enumerate().map(|(i, file)| {
                let algorithm = Algorithm::ALL[i % 3];
                let size = (i % 2 == 0).then_some(file.len() as u64);
                Entry { algorithm, hash: algorithm.hash(file), size, name: format!("n{}", i % 7) }
            }).collect();
            let list = Hashes::of_image(image(entries)).unwrap();
            prop_assert_eq!(list.count(), files.len() as u64);
            for (i, file) in files.iter().enumerate() {
                prop_assert_eq!(Asked::new(file).of(&list), Some(format!("n{}", i % 7)));
            }
            for other in others.iter().filter(|other| !files.contains(*other)) {
                prop_assert_eq!(Asked::new(other).of(&list), None);
            }
        }
    }

    #[test]
    fn a_file_is_mapped_and_a_broken_one_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.vhl");
        let entry = line("5d41402abc4b2a76b9719d911017c592:5:Hello.Known").unwrap().unwrap();
        let image = image(vec![entry]);
        write(&image, &path).unwrap();
        let list = Hashes::open(&path).unwrap();
        assert_eq!(Asked::new(b"hello").of(&list).as_deref(), Some("Hello.Known"));
        for len in (0..image.len()).step_by(997).chain([image.len() - 1]) {
            assert!(Hashes::of_image(image[..len].to_vec()).is_err(), "{len}");
        }
        // Numbers that lie: no answer, or a wrong one, but no end of the process.
        for place in (8..image.len()).step_by(1009).chain(40..HEAD) {
            let mut bad = image.clone();
            bad[place] ^= 0x81;
            if let Ok(list) = Hashes::of_image(bad) {
                let _ = Asked::new(b"hello").of(&list);
            }
        }
    }
}

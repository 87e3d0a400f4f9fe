//! What is scanned: files of the system and of packages, the same choice at each run.

use anyhow::{Result, ensure};
use flate2::{
    Compression,
    write::{DeflateEncoder, GzEncoder},
};
use std::io::Write;
use std::path::{Path, PathBuf};

/// A file.
pub(crate) struct File {
    /// Its name.
    pub(crate) name: String,
    /// Its bytes.
    pub(crate) data: Vec<u8>,
}

/// Larger files are left out: a few would decide everything.
const FILE_MAX: u64 = 3 << 20;

/// Directories with ELF files, and with texts.
const ELF: &[&str] = &["/usr/bin", "/usr/sbin", "/usr/lib"];
const TEXTS: &[&str] = &["/usr/share", "/usr/include", "/usr/lib", "/etc"];

/// ELF files of the system, about so many bytes.
pub(crate) fn elf(bytes: u64) -> Result<Vec<File>> {
    chosen(ELF, bytes, |data| data.starts_with(b"\x7fELF"))
}

/// Windows programs and libraries below a directory, about so many bytes.
pub(crate) fn pe(dir: &Path, bytes: u64) -> Result<Vec<File>> {
    chosen(&[dir], bytes, |data| data.starts_with(b"MZ"))
}

/// Texts and source, about so many bytes.
pub(crate) fn texts(bytes: u64) -> Result<Vec<File>> {
    chosen(TEXTS, bytes, |data| {
        data.len() > 200 && std::str::from_utf8(data).is_ok() && !data.contains(&0)
    })
}

/// Files of a kind: all are listed, and as many of them taken, at even distances, as the bytes allow.
fn chosen(
    dirs: &[impl AsRef<Path>],
    bytes: u64,
    wanted: impl Fn(&[u8]) -> bool,
) -> Result<Vec<File>> {
    let mut paths = Vec::new();
    for dir in dirs {
        list(dir.as_ref(), &mut paths);
    }
    paths.sort();
    // Spread over the whole list by a step that has no common divisor with its length.
    let count = paths.len();
    ensure!(count > 0, "nothing to scan");
    let step = (count * 618 / 1000..).find(|&step| gcd(step.max(1), count) == 1).unwrap_or(1);
    let (mut files, mut sum) = (Vec::new(), 0);
    for i in 0..count {
        let path = &paths[i * step % count];
        let Ok(data) = std::fs::read(path) else { continue };
        if !wanted(&data) {
            continue;
        }
        sum += data.len() as u64;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        files.push(File { name, data });
        if sum >= bytes {
            break;
        }
    }
    ensure!(!files.is_empty(), "nothing to scan");
    Ok(files)
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

fn list(dir: &Path, paths: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let Ok(meta) = entry.path().symlink_metadata() else { continue };
        if meta.is_dir() {
            list(&entry.path(), paths);
        } else if meta.is_file() && (1..FILE_MAX).contains(&meta.len()) {
            paths.push(entry.path());
        }
    }
}

/// Archives of several kinds, each of a share of the files: zip, tar.gz, gzip, plain tar.
pub(crate) fn archives(files: Vec<File>) -> Result<Vec<File>> {
    let mut archives = Vec::new();
    for (i, share) in files.chunks(8).enumerate() {
        let (name, data) = match i % 4 {
            0 => ("a.zip", zip(share)?),
            1 => ("a.tar.gz", gzip(&tar(share))?),
            2 => ("a.zip", zip(&[File { name: "inner.tar.gz".into(), data: gzip(&tar(share))? }])?),
            _ => ("a.tar", tar(share)),
        };
        archives.push(File { name: name.into(), data });
    }
    Ok(archives)
}

fn gzip(data: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(data)?;
    Ok(encoder.finish()?)
}

/// The old form of tar: names of up to 99 bytes.
fn tar(files: &[File]) -> Vec<u8> {
    let mut out = Vec::new();
    for (i, file) in files.iter().enumerate() {
        let mut head = [0u8; 512];
        let name = format!(
            "{i}-{}",
            file.name.chars().filter(char::is_ascii).take(80).collect::<String>()
        );
        head[..name.len()].copy_from_slice(name.as_bytes());
        head[100..108].copy_from_slice(b"0000644\0");
        head[108..116].copy_from_slice(b"0000000\0");
        head[116..124].copy_from_slice(b"0000000\0");
        head[124..136].copy_from_slice(format!("{:011o}\0", file.data.len()).as_bytes());
        head[136..148].copy_from_slice(b"00000000000\0");
        head[148..156].fill(b' ');
        head[156] = b'0';
        head[257..265].copy_from_slice(b"ustar\x0000");
        let sum: u32 = head.iter().map(|&b| u32::from(b)).sum();
        head[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        out.extend_from_slice(&head);
        out.extend_from_slice(&file.data);
        out.resize(out.len().next_multiple_of(512), 0);
    }
    out.resize(out.len() + 1024, 0);
    out
}

fn zip(files: &[File]) -> Result<Vec<u8>> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for (i, file) in files.iter().enumerate() {
        let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(&file.data)?;
        let packed = encoder.finish()?;
        let mut crc = flate2::Crc::new();
        crc.update(&file.data);
        let name = format!("{i}-{}", file.name);
        let mut common = vec![20, 0, 0, 0, 8, 0, 0, 0, 0x21, 0x50];
        common.extend(crc.sum().to_le_bytes());
        common.extend(u32::try_from(packed.len())?.to_le_bytes());
        common.extend(u32::try_from(file.data.len())?.to_le_bytes());
        common.extend(u16::try_from(name.len())?.to_le_bytes());
        common.extend([0, 0]);
        directory.extend(b"PK\x01\x02\x14\0");
        directory.extend(&common);
        directory.extend([0; 10]);
        directory.extend(u32::try_from(out.len())?.to_le_bytes());
        directory.extend(name.as_bytes());
        out.extend(b"PK\x03\x04");
        out.extend(&common);
        out.extend(name.as_bytes());
        out.extend(packed);
    }
    let at = u32::try_from(out.len())?;
    out.extend(&directory);
    out.extend(b"PK\x05\x06\0\0\0\0");
    let count = u16::try_from(files.len())?.to_le_bytes();
    out.extend(count);
    out.extend(count);
    out.extend(u32::try_from(directory.len())?.to_le_bytes());
    out.extend(at.to_le_bytes());
    out.extend([0, 0]);
    Ok(out)
}

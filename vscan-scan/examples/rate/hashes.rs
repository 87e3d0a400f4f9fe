//! Ten million hashes: what the scanner's processes take with them, how soon they are there, and what a look-up takes.

use crate::process::{Process, corpus, memory_of};
use crate::{Places, tell};
use anyhow::{Context, Result, anyhow, ensure};
use std::hint::black_box;
use std::time::Instant;
use vscan_scan::engine::hashes::{Algorithm, Entry, Hashes, image, write};

/// Hashes of the list.
const COUNT: u64 = 10_000_000;

/// Look-ups, half of which find something.
const LOOKUPS: u64 = 1_000_000;

/// Sizes of files that the list knows: about all there are, so that every part is hashed and looked up.
const SIZES: u64 = 1 << 20;

/// A hash by its number.
fn hash(number: u64) -> [u8; 32] {
    *blake3::hash(&number.to_le_bytes()).as_bytes()
}

/// `hashes-10m`: mebibytes of all scanner processes together.
pub(crate) fn memory(places: &Places) -> Result<()> {
    let work = places.scanner.with_file_name(format!("rate-{}", std::process::id()));
    std::fs::create_dir_all(&work)?;
    let measured = measured(places, &work);
    std::fs::remove_dir_all(&work)?;
    tell(measured?, None);
    Ok(())
}

fn measured(places: &Places, work: &std::path::Path) -> Result<f64> {
    let list = work.join("ten-million.vhl");
    let entries = (0..COUNT).map(|n| Entry {
        algorithm: Algorithm::Sha256,
        hash: hash(n).to_vec(),
        size: Some(n % SIZES),
        name: String::new(),
    });
    write(&image(entries.collect()), &list)?;
    let started = Instant::now();
    let hashes = Hashes::open(&list).map_err(|e| anyhow!(e))?;
    let opened = started.elapsed();
    ensure!(hashes.count() == COUNT, "{} hashes", hashes.count());
    // Every other one is behind the last that the list has.
    let asked: Vec<(u64, [u8; 32])> =
        (0..LOOKUPS).map(|n| n * 20 % (2 * COUNT)).map(|n| (n, hash(n))).collect();
    let started = Instant::now();
    let found = asked
        .iter()
        .filter(|(n, hash)| black_box(hashes.find(Algorithm::Sha256, hash, n % SIZES)).is_some())
        .count() as u64;
    let took = started.elapsed();
    let expected = asked.iter().filter(|(n, _)| *n < COUNT).count() as u64;
    ensure!(found == expected, "{found} of {expected} were found");
    drop(hashes);
    let started = Instant::now();
    let process = Process::start(&places.scanner, work).context("the scanner with the list")?;
    let loaded = started.elapsed();
    let memory = memory_of(process, &corpus(places)?)?;
    eprintln!(
        "hashes-10m: opened in {opened:?}, the scanner ready in {loaded:?}, {} ns a look-up",
        took.as_nanos() / u128::from(LOOKUPS)
    );
    Ok(memory)
}

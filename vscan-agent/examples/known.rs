//! `known NAME SCANNER RULES`: what a verdict takes, by the gateway's own client of the scanner process. Prints one JSON
//! object with `value` and `baseline`. Used by `cargo xtask bench`.
#![expect(clippy::print_stdout, reason = "a program for the terminal")]

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use vscan_agent::{
    blocks::BlockHasher,
    scanner::{Job, Scanner, process},
    spool::{CHUNK, Object, Spool},
};
use vscan_scan::{
    limits::Limits,
    report::{Report, Verdict},
    wire::ObjectKind,
};

/// Bytes of the content that was seen before: an attachment.
const LARGE: usize = 1 << 20;

/// Contents, one after the other, so that each comes out of memory and not of the processor's cache.
const CONTENTS: usize = 64;

/// Bytes of a small message.
const SMALL: usize = 2 << 10;

/// Small messages of each kind that are sent, in turns.
const MESSAGES: usize = 4000;

const DEADLINE: Duration = Duration::from_secs(20);

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [name, scanner, rules] = &args[..] else { bail!("known NAME SCANNER RULES") };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (scanner, rules) = (Path::new(scanner), Path::new(rules));
    let [value, baseline] = match name.as_str() {
        "cached-object" => runtime.block_on(cached_object(scanner, rules))?,
        "scan-round-trip-2k" => runtime.block_on(round_trip(scanner, rules))?,
        _ => bail!("there is no measurement {name}"),
    };
    println!("{}", serde_json::json!({ "value": value, "baseline": baseline }));
    Ok(())
}

async fn start(scanner: &Path, rules: &[PathBuf]) -> Result<(Scanner, process::Process)> {
    // Each message is a new one for the engines.
    let limits = Limits { known_parts: 0, ..Limits::default() };
    let spec = process::Spec {
        program: scanner.to_owned(),
        rules: rules.to_vec(),
        rules_key: PathBuf::from("/nonexistent"),
        limits: serde_json::to_string(&limits)?,
        workers: 1,
        threads: 1,
        clamd: None,
    };
    Ok(Scanner::start_local(&spec).await?)
}

fn random(len: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

fn spooled(spool: &Spool, bytes: &[u8]) -> Result<Object> {
    let mut writer = spool.writer();
    writer.write(bytes)?;
    Ok(writer.finish()?)
}

/// Megabytes a second from the bytes to the verdict, when their report is kept: they are hashed as they come, in the
/// gateway's pieces and blocks, and looked up. Against BLAKE3 over the same bytes at once.
async fn cached_object(scanner: &Path, rules: &Path) -> Result<[f64; 2]> {
    let (scanner, _process) = start(scanner, &[rules.to_owned()]).await?;
    scanner.remember(Some(64 << 20));
    let directory = tempfile::tempdir()?;
    let spool = Spool::new(directory.path(), 256 << 20, 1 << 30, 256 << 20)?;
    let contents: Vec<Vec<u8>> = (0..CONTENTS).map(|n| random(LARGE, n as u64)).collect();
    let jobs = contents
        .iter()
        .map(|content| Ok(Job::new(ObjectKind::File, spooled(&spool, content)?)))
        .collect::<Result<Vec<Job>>>()?;
    for job in &jobs {
        clean(&scanner.scan(job.clone(), DEADLINE).await)?;
    }
    let before = scanner.status().cache;
    let (mut known, mut plain) = (Vec::new(), Vec::new());
    for _ in 0..15 {
        let started = Instant::now();
        for (job, content) in jobs.iter().zip(&contents) {
            let mut hasher = BlockHasher::default();
            content.chunks(CHUNK).for_each(|piece| hasher.update(piece));
            ensure!(hasher.finish().0 == job.object.hash(), "two hashes of one content");
            clean(&scanner.scan(job.clone(), DEADLINE).await)?;
        }
        known.push(started.elapsed().as_secs_f64());
        let started = Instant::now();
        for (job, content) in jobs.iter().zip(&contents) {
            ensure!(blake3::hash(content) == job.object.hash(), "two hashes of one content");
        }
        plain.push(started.elapsed().as_secs_f64());
    }
    let after = scanner.status().cache;
    ensure!(after.misses == before.misses, "something was scanned");
    let rate = |seconds| (CONTENTS * LARGE) as f64 / 1e6 / median(seconds);
    Ok([rate(known), rate(plain)])
}

/// Microseconds from a small message to its report, by the median: with a rule that costs nothing, and with those given.
/// The difference is what the rules cost.
async fn round_trip(scanner: &Path, rules: &Path) -> Result<[f64; 2]> {
    let directory = tempfile::tempdir()?;
    let empty = directory.path().join("empty.yar");
    std::fs::write(&empty, "rule Nothing { condition: false }")?;
    let (plain, _process) = start(scanner, &[empty]).await?;
    let (whole, _process) = start(scanner, &[rules.to_owned()]).await?;
    let spool = Spool::new(directory.path(), 1 << 20, 1 << 20, 1 << 20)?;
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for number in 0..MESSAGES {
        let job = Job::new(ObjectKind::Message, spooled(&spool, &message(number as u64))?);
        for (scanner, times) in [(&plain, &mut without), (&whole, &mut with)] {
            let started = Instant::now();
            clean(&scanner.scan(job.clone(), DEADLINE).await)?;
            times.push(started.elapsed().as_secs_f64() * 1e6);
        }
    }
    Ok([median(without), median(with)])
}

/// A message with a small attachment, unlike all others.
fn message(number: u64) -> Vec<u8> {
    let mut text = format!(
        "From: Alice <alice@client.example>\r\nTo: Bob <bob@server.example>\r\nSubject: number {number}\r\n\
         Message-ID: <{number}@client.example>\r\nDate: Sun, 22 Nov 2026 02:00:00 +0000\r\nMIME-Version: 1.0\r\n\
         Content-Type: multipart/mixed; boundary=\"=-part\"\r\n\r\n--=-part\r\n\
         Content-Type: text/plain; charset=utf-8\r\n\r\nSee the attachment.\r\n--=-part\r\n\
         Content-Type: application/octet-stream; name=\"data.bin\"\r\n\
         Content-Disposition: attachment; filename=\"data.bin\"\r\nContent-Transfer-Encoding: base64\r\n\r\n"
    );
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let letters = random(SMALL.saturating_sub(text.len() + 40) * 76 / 78, number);
    for line in letters.chunks(76) {
        text.extend(line.iter().map(|byte| char::from(LETTERS[usize::from(byte & 63)])));
        text.push_str("\r\n");
    }
    text.push_str("--=-part--\r\n");
    text.into_bytes()
}

fn clean(report: &Report) -> Result<()> {
    ensure!(report.verdict == Verdict::Clean, "{report:?}");
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

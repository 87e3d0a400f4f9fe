//! The real scanner process: its workers side by side, and its memory.

use crate::corpus::{self, File};
use crate::{Places, tell};
use anyhow::{Context, Result, bail, ensure};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;
use vscan_scan::channel;
use vscan_scan::report::Report;
use vscan_scan::wire::{
    Answer, Ask, Content, DATAGRAM_MAX, INLINE_MAX, ObjectKind, Request, ToGateway,
};

const WORKERS: usize = 4;
const BYTES: u64 = 96 << 20;
const ROUNDS: usize = 5;

pub(crate) struct Process {
    child: Child,
    workers: Vec<(i32, OwnedFd)>,
    control: OwnedFd,
}

impl Process {
    pub(crate) fn start(scanner: &Path, rules: &Path) -> Result<Self> {
        Self::start_with(scanner, rules, WORKERS, &[])
    }

    fn start_with(scanner: &Path, rules: &Path, count: usize, more: &[&str]) -> Result<Self> {
        let (control, theirs) = channel::pair()?;
        let mut child = Command::new("sh")
            .args(["-c", "exec \"$0\" \"$@\" 3<&0 4>&1 </dev/null"])
            .arg(scanner)
            .args(["--control-fd", "3", "--status-fd", "4", "--workers", &count.to_string()])
            .args(more)
            .arg("--rules")
            .arg(rules)
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        let status = child.stdout.take().context("stdout")?;
        std::io::BufRead::read_line(&mut std::io::BufReader::new(status), &mut line)?;
        ensure!(line.contains("\"ready\""), "{line}");
        let mut buffer = vec![0; DATAGRAM_MAX];
        let mut workers = Vec::new();
        while workers.len() < count {
            match channel::recv::<ToGateway>(&control, &mut buffer)? {
                Some((ToGateway::Worker { pid, .. }, Some(socket))) => workers.push((pid, socket)),
                other => bail!("{other:?}"),
            }
        }
        Ok(Self { child, workers, control })
    }

    fn end(self) -> Result<()> {
        drop((self.control, self.workers));
        let mut child = self.child;
        child.wait()?;
        Ok(())
    }
}

fn memfd(data: &[u8]) -> Result<OwnedFd> {
    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
    let fd = memfd_create("object", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut rest = data;
    while !rest.is_empty() {
        rest = &rest[rustix::io::write(&fd, rest)?..];
    }
    fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE)?;
    Ok(fd)
}

fn scan(worker: &OwnedFd, buffer: &mut [u8], file: &File) -> Result<Report> {
    let inline = file.data.len() <= INLINE_MAX;
    let descriptor = if inline { None } else { Some(memfd(&file.data)?) };
    scan_file(worker, buffer, file, descriptor.as_ref())
}

/// The same of a file whose bytes lie in the descriptor already, if there is one.
fn scan_file(
    worker: &OwnedFd,
    buffer: &mut [u8],
    file: &File,
    descriptor: Option<&OwnedFd>,
) -> Result<Report> {
    let content = match descriptor {
        Some(_) => Content::Descriptor { len: file.data.len() as u64 },
        None => Content::Inline(file.data.clone()),
    };
    let request = Request {
        id: 0,
        object: None,
        ask: Ask::Report { detail: false },
        kind: ObjectKind::File,
        name: Some(file.name.clone()),
        passwords: Vec::new(),
        time_limit_ms: 60_000,
        content,
    };
    channel::send(worker, &request, descriptor.map(AsFd::as_fd))?;
    match channel::recv_answer(worker, buffer, 0)?.context("the worker ended")? {
        Answer::Report(report) => {
            ensure!(report.error.is_none(), "{:?}", report.error);
            Ok(*report)
        }
        other => bail!("{other:?}"),
    }
}

/// Lets so many of the workers scan all files; seconds.
fn all(process: &Process, files: &[File], workers: usize) -> Result<f64> {
    let next = AtomicUsize::new(0);
    let started = Instant::now();
    let work = |worker: &OwnedFd| -> Result<()> {
        let mut buffer = vec![0; DATAGRAM_MAX];
        while let Some(file) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
            scan(worker, &mut buffer, file)?;
        }
        Ok(())
    };
    let work = &work;
    std::thread::scope(|scope| {
        let threads: Vec<_> = process.workers[..workers]
            .iter()
            .map(|(_, worker)| scope.spawn(move || work(worker)))
            .collect();
        threads
            .into_iter()
            .try_for_each(|t| t.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })?;
    Ok(started.elapsed().as_secs_f64())
}

pub(crate) fn corpus(places: &Places) -> Result<Vec<File>> {
    let mut files = corpus::elf(BYTES / 3)?;
    files.extend(corpus::pe(&places.programs, BYTES / 3)?);
    files.extend(corpus::texts(BYTES / 3)?);
    Ok(files)
}

/// Four workers against one, in MB/s.
pub(crate) fn threads(places: &Places) -> Result<()> {
    // Nobody helps the one, and nothing is remembered: the same files come again.
    let alone = ["--threads", "1", "--limits", r#"{"known_parts": 0}"#];
    let process = Process::start_with(&places.scanner, &places.rules, WORKERS, &alone)?;
    let files = corpus(places)?;
    let bytes: usize = files.iter().map(|file| file.data.len()).sum();
    all(&process, &files, WORKERS)?;
    let mut ratios = Vec::new();
    for _ in 0..ROUNDS {
        let one = all(&process, &files, 1)?;
        let many = all(&process, &files, WORKERS)?;
        ratios.push((one / many, one, many));
    }
    ratios.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (_, one, many) = ratios[ROUNDS / 2];
    tell(bytes as f64 / many / 1e6, Some(bytes as f64 / one / 1e6));
    process.end()
}

/// Bytes of a large object.
const LARGE: usize = 96 << 20;

/// One object of many files of a kind, one behind the other.
fn joined(name: &str, files: Vec<File>) -> File {
    let mut data: Vec<u8> = files.into_iter().flat_map(|file| file.data).collect();
    data.truncate(LARGE);
    File { name: name.into(), data }
}

/// One for each kind of file, without what is opened: parts inside it would be scanned by themselves.
pub(crate) fn large_objects(programs: &Path) -> Result<[File; 3]> {
    let mut texts = corpus::texts(3 * LARGE as u64)?;
    texts.retain(|text| !text.data.contains(&b'<'));
    Ok([
        joined("elf", corpus::elf(LARGE as u64)?),
        joined("pe", corpus::pe(programs, LARGE as u64)?),
        joined("text", texts),
    ])
}

/// One worker with four threads against one with one, over large objects, in MB/s. Both find the same.
pub(crate) fn large(places: &Places) -> Result<()> {
    let objects = large_objects(&places.programs)?;
    let bytes: usize = objects.iter().map(|object| object.data.len()).sum();
    // Nothing is remembered: the same objects come again.
    let start = |threads: &str| {
        let more = ["--threads", threads, "--limits", r#"{"known_parts": 0}"#];
        Process::start_with(&places.scanner, &places.rules, 1, &more)
    };
    let processes = [start("1")?, start("4")?];
    let mut buffer = vec![0; DATAGRAM_MAX];
    let mut all = |process: &Process| -> Result<(f64, Vec<Report>)> {
        let (mut seconds, mut reports) = (0.0, Vec::new());
        for object in &objects {
            let file = memfd(&object.data)?;
            let started = Instant::now();
            let report = scan_file(&process.workers[0].1, &mut buffer, object, Some(&file))?;
            seconds += started.elapsed().as_secs_f64();
            ensure!(report.parts == 1, "{} has {} parts", object.name, report.parts);
            reports.push(Report { micros: 0, ..report });
        }
        Ok((seconds, reports))
    };
    let mut ratios = Vec::new();
    for round in 0..=ROUNDS {
        let (one, alone) = all(&processes[0])?;
        let (many, together) = all(&processes[1])?;
        ensure!(alone == together, "four threads find something else");
        // The first time memory is set up.
        if round > 0 {
            ratios.push((one / many, one, many));
        }
    }
    ratios.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (_, one, many) = ratios[ROUNDS / 2];
    tell(bytes as f64 / many / 1e6, Some(bytes as f64 / one / 1e6));
    processes.into_iter().try_for_each(Process::end)
}

/// Seconds from the last byte of large objects to their report: looked at while they arrived, against not. Bytes without
/// any pattern, as compressed ones are, and programs.
pub(crate) fn last_byte(places: &Places) -> Result<()> {
    let mut noise = vec![0; LARGE];
    blake3::Hasher::new().finalize_xof().fill(&mut noise);
    let objects =
        [joined("elf", corpus::elf(LARGE as u64)?), File { name: "noise".into(), data: noise }];
    let more = ["--limits", r#"{"known_parts": 0}"#];
    let process = Process::start_with(&places.scanner, &places.rules, 1, &more)?;
    let worker = &process.workers[0].1;
    let mut buffer = vec![0; DATAGRAM_MAX];
    let mut number = 0;
    let mut times = Vec::new();
    for round in 0..=ROUNDS {
        let mut both = [0.0, 0.0];
        for object in &objects {
            let file = memfd(&object.data)?;
            let mut reports = Vec::new();
            for (arrives, seconds) in [true, false].into_iter().zip(&mut both) {
                number += 1;
                for len in (STEP..object.data.len()).step_by(STEP).filter(|_| arrives) {
                    let look = asked(object, Ask::Ahead, number, len);
                    channel::send(worker, &look, Some(file.as_fd()))?;
                    match channel::recv_answer(worker, &mut buffer, 0)? {
                        Some(Answer::Ahead(_)) => {}
                        other => bail!("{other:?}"),
                    }
                }
                let started = Instant::now();
                let ask = Ask::Report { detail: false };
                let whole = asked(object, ask, number, object.data.len());
                channel::send(worker, &whole, Some(file.as_fd()))?;
                match channel::recv_answer(worker, &mut buffer, 0)? {
                    Some(Answer::Report(report)) => {
                        ensure!((report.ahead > 0) == arrives, "{} looked at", report.ahead);
                        reports.push(Report { micros: 0, ahead: 0, ..*report });
                    }
                    other => bail!("{other:?}"),
                }
                *seconds += started.elapsed().as_secs_f64();
            }
            ensure!(reports[0] == reports[1], "{}: another report", object.name);
        }
        if round > 0 {
            times.push((both[0] / both[1], both));
        }
    }
    times.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (_, [looked_at, not]) = times[ROUNDS / 2];
    tell(looked_at / objects.len() as f64, Some(not / objects.len() as f64));
    process.end()
}

/// So many bytes are looked at at a time, as the gateway has it.
const STEP: usize = 4 << 20;

/// A question about an object that lies in a descriptor.
fn asked(object: &File, ask: Ask, number: u64, len: usize) -> Request {
    Request {
        id: 0,
        object: Some(number),
        ask,
        kind: ObjectKind::File,
        name: Some(object.name.clone()),
        passwords: Vec::new(),
        time_limit_ms: 60_000,
        content: Content::Descriptor { len: len as u64 },
    }
}

/// Memory of all its processes after they have scanned, in MiB, each page by its share: the larger of what it is with rules
/// as text and with a bundle of them.
pub(crate) fn memory(places: &Places) -> Result<()> {
    let files = corpus(places)?;
    let text = memory_of(Process::start(&places.scanner, &places.rules)?, &files)?;
    let work = places.scanner.with_file_name(format!("rate-{}", std::process::id()));
    std::fs::create_dir_all(&work)?;
    let (key, bundle) = (work.join("key"), work.join("rules.vrb"));
    let built = Command::new(&places.scanner)
        .args([Path::new("--build"), &bundle, Path::new("--rules-key"), &key])
        .args([Path::new("--rules"), &places.rules])
        .stdout(Stdio::null())
        .status()?;
    ensure!(built.success(), "no bundle");
    let with_key = ["--rules-key", key.to_str().context("a path")?];
    let process = Process::start_with(&places.scanner, &bundle, WORKERS, &with_key);
    std::fs::remove_dir_all(&work)?;
    let bundle = memory_of(process?, &files)?;
    eprintln!("rss-6k: {text:.0} MiB with rules as text, {bundle:.0} MiB with a bundle");
    tell(text.max(bundle), None);
    Ok(())
}

/// Mebibytes of a scanner's processes together, shared pages by their shares, when each worker has scanned all files.
pub(crate) fn memory_of(process: Process, files: &[File]) -> Result<f64> {
    // Each worker scans everything.
    std::thread::scope(|scope| {
        let threads: Vec<_> = process
            .workers
            .iter()
            .map(|(_, worker)| {
                scope.spawn(|| -> Result<()> {
                    let mut buffer = vec![0; DATAGRAM_MAX];
                    files.iter().try_for_each(|file| scan(worker, &mut buffer, file).map(drop))
                })
            })
            .collect();
        threads
            .into_iter()
            .try_for_each(|t| t.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })?;
    let zygote = i32::try_from(process.child.id())?;
    let mut sum = 0.0;
    for pid in process.workers.iter().map(|(pid, _)| *pid).chain([zygote]) {
        let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        let pss = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).context("no Pss")?;
        sum += pss.split_whitespace().next().context("no Pss")?.parse::<f64>()?;
    }
    process.end()?;
    Ok(sum / 1024.0)
}

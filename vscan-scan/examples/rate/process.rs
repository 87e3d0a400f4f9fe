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
use vscan_scan::wire::{
    Answer, Ask, Content, DATAGRAM_MAX, INLINE_MAX, ObjectKind, Request, ToGateway,
};

const WORKERS: usize = 4;
const BYTES: u64 = 96 << 20;
const ROUNDS: usize = 5;

struct Process {
    child: Child,
    workers: Vec<(i32, OwnedFd)>,
    control: OwnedFd,
}

impl Process {
    fn start(scanner: &Path, rules: &Path) -> Result<Self> {
        let (control, theirs) = channel::pair()?;
        let mut child = Command::new("sh")
            .args(["-c", "exec \"$0\" \"$@\" 3<&0 4>&1 </dev/null"])
            .arg(scanner)
            .args(["--control-fd", "3", "--status-fd", "4", "--workers", &WORKERS.to_string()])
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
        while workers.len() < WORKERS {
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

fn scan(worker: &OwnedFd, buffer: &mut [u8], file: &File) -> Result<()> {
    let inline = file.data.len() <= INLINE_MAX;
    let descriptor = if inline { None } else { Some(memfd(&file.data)?) };
    let content = if inline {
        Content::Inline(file.data.clone())
    } else {
        Content::Descriptor { len: file.data.len() as u64 }
    };
    let request = Request {
        id: 0,
        ask: Ask::Report { detail: false },
        kind: ObjectKind::File,
        name: Some(file.name.clone()),
        passwords: Vec::new(),
        time_limit_ms: 60_000,
        content,
    };
    channel::send(worker, &request, descriptor.as_ref().map(AsFd::as_fd))?;
    match channel::recv_answer(worker, buffer, 0)?.context("the worker ended")? {
        Answer::Report(report) => ensure!(report.error.is_none(), "{:?}", report.error),
        other => bail!("{other:?}"),
    }
    Ok(())
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

fn corpus(places: &Places) -> Result<Vec<File>> {
    let mut files = corpus::elf(BYTES / 3)?;
    files.extend(corpus::pe(&places.programs, BYTES / 3)?);
    files.extend(corpus::texts(BYTES / 3)?);
    Ok(files)
}

/// Four workers against one, in MB/s.
pub(crate) fn threads(places: &Places) -> Result<()> {
    let process = Process::start(&places.scanner, &places.rules)?;
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

/// Memory of all its processes after they have scanned, in MiB: each page by its share.
pub(crate) fn memory(places: &Places) -> Result<()> {
    let process = Process::start(&places.scanner, &places.rules)?;
    let files = corpus(places)?;
    // Each worker scans everything.
    std::thread::scope(|scope| {
        let threads: Vec<_> = process
            .workers
            .iter()
            .map(|(_, worker)| {
                scope.spawn(|| -> Result<()> {
                    let mut buffer = vec![0; DATAGRAM_MAX];
                    files.iter().try_for_each(|file| scan(worker, &mut buffer, file))
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
    tell(sum / 1024.0, None);
    process.end()
}

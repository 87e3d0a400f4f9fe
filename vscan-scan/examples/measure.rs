//! Measures the scanner: `measure files RULES PATH...` scans files in this process and sums up what was found
//! (false positives); `measure speed SCANNER RULES` times the real process, `vscan-scanner` at SCANNER.

#![expect(clippy::print_stdout, reason = "a program for the terminal")]

use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use vscan_scan::channel;
use vscan_scan::engine::{Engines, Signatures};
use vscan_scan::limits::Limits;
use vscan_scan::object::{self, Object};
use vscan_scan::report::{Report, Verdict};
use vscan_scan::wire::{
    Answer, Ask, Content, DATAGRAM_MAX, INLINE_MAX, ObjectKind, Request, ToGateway,
};

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["files", rules, ref paths @ ..] => files(Path::new(rules), paths),
        ["speed", scanner, rules] => speed(Path::new(scanner), Path::new(rules)),
        _ => bail!("measure files RULES PATH... | measure speed SCANNER RULES"),
    }
}

fn files(rules: &Path, paths: &[&str]) -> Result<()> {
    let loaded =
        Signatures::load(&[rules.to_owned()], None).map_err(|e| anyhow::anyhow!("{}", e[0]))?;
    let mut engines = Engines::new(&loaded);
    let limits = Limits::default();
    let (mut count, mut bytes, mut scanned) = (0u64, 0u64, 0u64);
    let mut verdicts: BTreeMap<String, u64> = BTreeMap::new();
    let started = Instant::now();
    let mut stack: Vec<PathBuf> = paths.iter().map(PathBuf::from).collect();
    while let Some(path) = stack.pop() {
        let Ok(meta) = std::fs::symlink_metadata(&path) else { continue };
        if meta.is_dir() {
            stack.extend(std::fs::read_dir(&path)?.filter_map(|e| Some(e.ok()?.path())));
            continue;
        }
        if !meta.is_file() {
            continue;
        }
        let Ok(data) = std::fs::read(&path) else { continue };
        let deadline = Instant::now() + Duration::from_secs(60);
        let name = path.file_name().and_then(|n| n.to_str());
        let report = object::scan(
            &mut engines,
            &limits,
            &Object { name, ..Object::new(ObjectKind::File, &data, deadline) },
        );
        count += 1;
        bytes += data.len() as u64;
        scanned += report.bytes;
        for finding in &report.findings {
            println!("{}: {} {:?}", path.display(), finding.name, finding.path);
        }
        for unread in &report.unread {
            *verdicts
                .entry(format!("{}: {}", unread.reason.as_str(), unread.detail))
                .or_default() += 1;
            if std::env::var_os("VERBOSE").is_some() {
                println!("{}: {} {}", path.display(), unread.reason.as_str(), unread.detail);
            }
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "{count} files, {bytes} bytes, {scanned} scanned, {seconds:.1} s, {:.0} MB/s",
        scanned as f64 / seconds / 1e6
    );
    println!("unread: {verdicts:#?}");
    Ok(())
}

struct Process {
    child: Child,
    control: OwnedFd,
    buffer: Vec<u8>,
}

impl Process {
    fn start(scanner: &Path, rules: &Path, workers: u32) -> Result<(Self, String)> {
        let (control, theirs) = channel::pair()?;
        let mut child = Command::new("sh")
            .args(["-c", "exec \"$0\" \"$@\" 3<&0 4>&1 </dev/null"])
            .arg(scanner)
            .args([
                "--control-fd",
                "3",
                "--status-fd",
                "4",
                "--workers",
                &workers.to_string(),
                "--rules",
            ])
            .arg(rules)
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        std::io::BufRead::read_line(
            &mut std::io::BufReader::new(child.stdout.take().context("stdout")?),
            &mut line,
        )?;
        Ok((Self { child, control, buffer: vec![0; DATAGRAM_MAX] }, line))
    }

    fn worker(&mut self) -> Result<(i32, OwnedFd)> {
        match channel::recv::<ToGateway>(&self.control, &mut self.buffer)? {
            Some((ToGateway::Worker { pid, .. }, Some(socket))) => Ok((pid, socket)),
            other => bail!("{other:?}"),
        }
    }

    fn scan(&mut self, worker: &OwnedFd, kind: ObjectKind, data: &[u8]) -> Result<Report> {
        let inline = data.len() <= INLINE_MAX;
        let file = if inline { None } else { Some(memfd(data)?) };
        let content = if inline {
            Content::Inline(data.to_vec())
        } else {
            Content::Descriptor { len: data.len() as u64 }
        };
        let request = Request {
            id: 0,
            ask: Ask::Report { detail: false },
            kind,
            name: Some("measured".into()),
            passwords: Vec::new(),
            time_limit_ms: 60_000,
            content,
        };
        channel::send(worker, &request, file.as_ref().map(AsFd::as_fd))?;
        match channel::recv_answer(worker, &mut self.buffer, 0)?.context("the worker ended")? {
            Answer::Report(report) => Ok(*report),
            other => bail!("{other:?}"),
        }
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

fn memory(pid: i32) -> Result<String> {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let field = |name: &str| {
        rollup.lines().find_map(|l| l.strip_prefix(name)).unwrap_or("?").trim().to_owned()
    };
    Ok(format!(
        "rss {}, pss {}, private dirty {}",
        field("Rss:"),
        field("Pss:"),
        field("Private_Dirty:")
    ))
}

fn speed(scanner: &Path, rules: &Path) -> Result<()> {
    let started = Instant::now();
    let (mut process, status) = Process::start(scanner, rules, 4)?;
    println!(
        "start with 4 workers: {:.1} ms; {}",
        started.elapsed().as_secs_f64() * 1e3,
        status.trim()
    );
    let (pid, worker) = process.worker()?;
    println!("zygote {}", memory(process.child.id() as i32)?);
    println!("worker, idle: {}", memory(pid)?);
    let mut random = vec![0u8; 1 << 20];
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    for byte in &mut random {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        *byte = (state >> 24) as u8;
    }
    let words = b"The quick brown fox jumps over the lazy dog; cmd and scripts, from base64 to powershell.\r\n";
    let text: Vec<u8> = words.iter().copied().cycle().take(1 << 20).collect();
    let encoded: Vec<u8> = random
        .iter()
        .map(|b| {
            b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"[*b as usize & 63]
        })
        .collect();
    let message = |size: usize| {
        let lines: Vec<u8> =
            encoded[..size].chunks(76).flat_map(|l| [l, b"\r\n"].concat()).collect();
        let mut message = b"Received: from a.example (a.example [192.0.2.1])\r\n\tby b.example; Mon, 1 Jan 2024 00:00:00 +0000\r\n\
            From: a@example.org\r\nTo: b@example.org\r\nSubject: a message\r\nMIME-Version: 1.0\r\n\
            Content-Type: multipart/mixed; boundary=\"=_b\"\r\n\r\n--=_b\r\nContent-Type: text/plain\r\n\r\nHello.\r\n\
            --=_b\r\nContent-Type: application/octet-stream; name=a.bin\r\nContent-Transfer-Encoding: base64\r\n\r\n".to_vec();
        message.extend(lines);
        message.extend(b"--=_b--\r\n");
        message
    };
    let cases: [(&str, ObjectKind, Vec<u8>); 8] = [
        ("empty file", ObjectKind::File, Vec::new()),
        ("10 KiB random", ObjectKind::File, random[..10 << 10].to_vec()),
        ("64 KiB random", ObjectKind::File, random[..64 << 10].to_vec()),
        ("1 MiB random", ObjectKind::File, random.clone()),
        ("1 MiB text", ObjectKind::File, text),
        ("2 KiB message", ObjectKind::Message, message(1500)),
        ("100 KiB message", ObjectKind::Message, message(98_000)),
        ("1 MiB message", ObjectKind::Message, message(1_000_000)),
    ];
    for (name, kind, data) in &cases {
        let (mut rounds, mut cpu, started) = (0u32, 0, Instant::now());
        while started.elapsed() < Duration::from_millis(700) {
            let report = process.scan(&worker, *kind, data)?;
            if report.verdict != Verdict::Clean {
                bail!("{name}: {report:?}");
            }
            cpu += report.micros;
            rounds += 1;
        }
        let each = started.elapsed().as_secs_f64() / f64::from(rounds);
        let cpu = cpu as f64 / f64::from(rounds);
        println!(
            "{name:16} {:8.1} us a round trip, {cpu:8.1} us of it CPU in the worker, {:6.0} MB/s, CPU alone {:6.0} MB/s",
            each * 1e6,
            data.len() as f64 / each / 1e6,
            data.len() as f64 / cpu
        );
    }
    println!("worker, used: {}", memory(pid)?);
    drop(process.control);
    process.child.wait()?;
    Ok(())
}

//! Large files that are held until their verdict: how long that takes beside what has to be done anyhow,
//! how often their bytes are copied, and how much memory the gateway takes for eight of them.
//!
//! No ratio to plain forwarding is meant here: a held file is transferred twice, one leg after the other,
//! with its scan between them. Less is better in all three.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use vscan_tests::{
    agent::{Settings, Steering, Vscan},
    lab::{Lab, Topology},
    load,
    peers::Vsftpd,
    wait,
};

use crate::Output;

/// The large file, of random bytes.
const FILE: &str = "random.bin";
const BYTES: u64 = 1 << 30;

/// Measured so often; the median counts.
const ROUNDS: usize = 3;

/// Transfers at once.
const PARALLEL: usize = 8;

/// How often memory is looked at.
const SAMPLE: Duration = Duration::from_millis(20);

/// Seconds from RETR to the 226, against both legs and the scan by themselves.
pub(super) const TIME: &str = "ftp-hold-1g";
/// Bytes that go through the gateway's own memory besides their reception, for each byte of the file.
pub(super) const COPIES: &str = "ftp-hold-copies";
/// MiB of resident memory.
pub(super) const MEMORY: &str = "ftp-8x1g-memory";
pub(super) const NAMES: [&str; 3] = [TIME, COPIES, MEMORY];

/// Runs those that are wanted.
pub(super) fn run(wanted: impl Fn(&str) -> bool, output: Output) -> Result<()> {
    if !NAMES.iter().any(|name| wanted(name)) {
        return Ok(());
    }
    let labs = [Lab::new(Topology::Plain)?, Lab::new(Topology::Plain)?];
    let servers = [serve(&labs[0])?, serve(&labs[1])?];
    let vscan = Vscan::start(&labs[0], &settings())?;
    if wanted(TIME) {
        let mut times = [Vec::new(), Vec::new()];
        for _ in 0..ROUNDS {
            let plain = load::download(&labs[1], FILE)?.seconds;
            fresh(&labs[0], &servers[0])?;
            let before = vscan.metrics()?.sum("vscan_scan_seconds_sum", &[]);
            let held = load::download(&labs[0], FILE)?.seconds;
            let scan = vscan.metrics()?.sum("vscan_scan_seconds_sum", &[]) - before;
            ensure!(scan > 0.0, "nothing was scanned");
            times[0].push(held);
            times[1].push(2.0 * plain + scan);
        }
        let [held, parts] = times.map(super::median);
        super::report_less(output, TIME, "s", held, Some(parts), 1.1);
    }
    if wanted(COPIES) {
        let copies = copies(&labs[0], vscan.processes().gateway)?;
        super::report_less(output, COPIES, "copies", copies, None, 1.05);
    }
    if wanted(MEMORY) {
        let memory = memory(&labs[0], vscan.processes().gateway)?;
        super::report_less(output, MEMORY, "MiB", memory, None, 128.0);
    }
    Ok(())
}

/// The shipped rules, and limits that let such a file be held and scanned.
fn settings() -> Settings {
    let mut settings = Settings::new(Steering::Bpf)
        .with("scan", "deadline = \"60s\"")
        .with("scan.limits", "object_size = \"2 GiB\"\nunpacked_size = \"4 GiB\"")
        .with("spool", "disk = \"12 GiB\"\nhold_max = \"2 GiB\"");
    settings.tell = false;
    settings
}

fn serve(lab: &Lab) -> Result<Vsftpd> {
    load::prepare(lab)?;
    let server = load::vsftpd(lab.server(), &[16], ("large.iso", 0))?;
    let path = server.files().join(FILE);
    lab.server().sh(&format!(
        "head -c {BYTES} /dev/urandom > {path}; chmod 644 {path}",
        path = path.display()
    ))?;
    Ok(server)
}

/// Makes the file one that nobody has seen.
fn fresh(lab: &Lab, server: &Vsftpd) -> Result<()> {
    let path = server.files().join(FILE);
    lab.server().sh(&format!(
        "head -c 64 /dev/urandom | dd of={} bs=64 conv=notrunc status=none",
        path.display()
    ))?;
    Ok(())
}

/// Counts what the gateway's system calls moved between its memory and the kernel, but for reading the
/// sender's leg. sendfile(2) copies nothing into it.
fn copies(lab: &Lab, pid: u32) -> Result<f64> {
    let log = lab.gateway.dir().join("strace");
    let mut strace = Command::new("strace")
        .args(["-f", "-qq", "-e", "signal=none", "-s", "0", "-o"])
        .arg(&log)
        .args(["-e", "trace=read,pread64,write,pwrite64,writev,sendto,sendmsg,sendfile,splice"])
        .args(["-p", &pid.to_string()])
        .stderr(Stdio::null())
        .spawn()
        .context("strace, which `cargo xtask setup` installs")?;
    wait::until_true("strace is not there", Duration::from_secs(10), || {
        fs::read_dir(format!("/proc/{pid}/task"))
            .is_ok_and(|mut tasks| tasks.all(|task| task.is_ok_and(|task| is_traced(&task.path()))))
    })?;
    let done = load::download(lab, FILE);
    let stopped = Command::new("kill").args(["-INT", &strace.id().to_string()]).status()?;
    strace.wait()?;
    ensure!(stopped.success() && done?.count == BYTES as f64, "the download was cut");
    let text = fs::read_to_string(&log)?;
    let (mut copied, mut sent) = (0, 0);
    for (name, bytes) in text.lines().filter_map(call) {
        match name {
            "sendfile" | "splice" => sent += bytes,
            _ => copied += bytes,
        }
    }
    ensure!(sent >= BYTES, "only {sent} bytes went out by sendfile(2), {copied} by copies");
    Ok(copied as f64 / BYTES as f64)
}

fn is_traced(task: &Path) -> bool {
    fs::read_to_string(task.join("status")).is_ok_and(|status| !status.contains("TracerPid:\t0\n"))
}

/// Name and result of a system call that succeeded, in either of strace's forms.
fn call(line: &str) -> Option<(&str, u64)> {
    let (_, call) = line.split_once(' ')?;
    let call = call.trim_start();
    let call = call.strip_prefix("<... ").unwrap_or(call);
    let name = call.split(|letter: char| !letter.is_ascii_alphanumeric()).next()?;
    let (_, result) = call.rsplit_once("= ")?;
    Some((name, result.split(' ').next()?.parse().ok()?))
}

/// The most that the gateway had in memory while all transfers were going on.
fn memory(lab: &Lab, pid: u32) -> Result<f64> {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let sampler = scope.spawn(|| -> Result<f64> {
            let mut most: f64 = 0.0;
            while !over.load(Ordering::Relaxed) {
                most = most.max(load::resident(pid)?);
                std::thread::sleep(SAMPLE);
            }
            Ok(most / 1024.0)
        });
        let start = Instant::now();
        let transfers: Vec<_> =
            (0..PARALLEL).map(|_| scope.spawn(|| load::download(lab, FILE))).collect();
        let done: Result<Vec<_>> = transfers
            .into_iter()
            .map(|transfer| {
                transfer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
            .collect();
        over.store(true, Ordering::Relaxed);
        let most = sampler.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        let bytes: f64 = done?.iter().map(|done| done.count).sum();
        ensure!(
            bytes == (PARALLEL as u64 * BYTES) as f64,
            "{bytes} bytes in {:?}",
            start.elapsed()
        );
        Ok(most)
    })
}

#[cfg(test)]
mod tests {
    use super::call;

    #[test]
    fn both_forms_of_a_call_are_read() {
        assert_eq!(call("123 pwrite64(7, \"\"..., 4096, 0) = 4096"), Some(("pwrite64", 4096)));
        assert_eq!(call("123 <... sendfile resumed>, [5]) = 99"), Some(("sendfile", 99)));
        assert_eq!(call("123 sendfile(5, 7, [0], 9 <unfinished ...>"), None);
        assert_eq!(
            call("123 read(5, 0x1, 9) = -1 EAGAIN (Resource temporarily unavailable)"),
            None
        );
    }
}

//! A host: a network namespace and a mount namespace, and the processes in them.
//!
//! The namespaces have no name in the file system; they live as long as a small holder process, and that
//! lives as long as this process holds the other end of its standard input. So even a killed test run
//! leaves no namespace, no device, no process and no directory behind.
//! In the mount namespace, `/usr` and `/etc` are overlays: private copies of the peers' programs
//! ([`crate::peers`]) over the machine's own.

use crate::wait;
use anyhow::{Context, Result, bail, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Directories of labs begin with this; the rest is the process id and a number.
const PREFIX: &str = "vscan-lab-";

/// A program run to its end takes at most this long unless told otherwise.
const RUN_LIMIT: Duration = Duration::from_secs(60);

/// What the holder does: set the namespace up, wait for end of file, kill what is left.
const HOLDER: &str = r#"
set -e
mount -t sysfs sysfs /sys
mount -t bpf bpf /sys/fs/bpf
mount -t overlay overlay -o ro,lowerdir="$USR":/usr /usr
mount -t overlay overlay -o ro,lowerdir="$ETC":/etc /etc
cd /proc/sys/net
echo 0 > ipv6/conf/default/accept_dad; echo 0 > ipv6/conf/all/accept_dad
echo 0 > ipv6/conf/default/disable_ipv6; echo 0 > ipv6/conf/all/disable_ipv6
echo 0 > ipv6/conf/default/accept_ra; echo 0 > ipv6/conf/default/router_solicitations
echo 1 > ipv6/conf/all/forwarding; echo 1 > ipv4/ip_forward
echo 0 > ipv4/conf/all/rp_filter; echo 0 > ipv4/conf/default/rp_filter
ip link set lo up
cd /
echo ready
read -r _ || true
id=$(readlink /proc/self/ns/net | tr -dc 0-9)
for round in 1 2 3; do
  for p in $(find /proc/[0-9]*/ns/net -lname "net:?$id?" 2>/dev/null); do
    p=${p#/proc/}; p=${p%%/*}
    [ "$p" = $$ ] || kill -9 "$p" 2>/dev/null || true
  done
done
cd /
rm -rf "$LAB"
"#;

/// A directory for one lab, removed on drop; those of runs that were killed are swept on the way.
#[derive(Debug)]
pub struct LabDir(PathBuf);

impl LabDir {
    /// Makes a new one, readable by all users because some servers drop their rights.
    pub fn new() -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        static SWEEP: std::sync::Once = std::sync::Once::new();
        SWEEP.call_once(sweep);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = PathBuf::from(format!("/tmp/{PREFIX}{}-{number}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path))
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for LabDir {
    fn drop(&mut self) {
        if std::thread::panicking() && std::env::var_os("VSCAN_LAB_KEEP").is_some() {
            return;
        }
        // Best effort: a directory that stays is swept by the next run.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Removes the directories of processes that are gone.
fn sweep() {
    let Ok(entries) = fs::read_dir("/tmp") else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(rest) = name.to_str().and_then(|name| name.strip_prefix(PREFIX)) else { continue };
        let owner = rest.split('-').next().unwrap_or_default();
        if owner.parse::<u32>().is_ok() && !Path::new("/proc").join(owner).exists() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// One host of a lab.
#[derive(Debug)]
pub struct Host {
    name: String,
    dir: PathBuf,
    holder: Child,
    keep: Option<ChildStdin>,
    namespaces: Arc<Namespaces>,
}

#[derive(Debug)]
struct Namespaces {
    net: OwnedFd,
    mount: OwnedFd,
    id: PathBuf,
}

impl Host {
    /// Makes a host called `name` with its own directory under `lab`. `hosts` is its `/etc/hosts`.
    pub fn new(name: &str, lab: &LabDir, hosts: &str) -> Result<Self> {
        crate::peers::ready()?;
        let dir = lab.path().join(name);
        fs::create_dir(&dir)?;
        let etc = dir.join("etc");
        fs::create_dir(&etc)?;
        fs::write(etc.join("hosts"), format!("127.0.0.1 localhost\n::1 localhost\n{hosts}"))?;
        fs::write(etc.join("hostname"), format!("{name}\n"))?;
        crate::peers::users(&etc)?;
        // Nobody here asks a name server.
        fs::write(etc.join("resolv.conf"), "")?;
        let peers = crate::peers::root();
        let usr = peers.join("usr");
        let etc = format!("{}:{}", etc.display(), peers.join("etc").display());
        let mut holder = Command::new("unshare")
            .args(["--net", "--mount", "--uts", "sh", "-c", HOLDER])
            // A Ctrl-C at the terminal is for us; the holder tidies up after us.
            .process_group(0)
            .env("LAB", lab.path())
            .env("USR", usr)
            .env("ETC", etc)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start unshare (package util-linux)")?;
        let keep = holder.stdin.take();
        let mut ready = String::new();
        if let Some(stdout) = holder.stdout.take() {
            BufReader::new(stdout).read_line(&mut ready)?;
        }
        if ready.trim() != "ready" {
            let mut said = String::new();
            if let Some(stderr) = holder.stderr.as_mut() {
                stderr.read_to_string(&mut said)?;
            }
            let _ = holder.wait();
            bail!("cannot make the namespaces of host {name} (root?): {said}");
        }
        let ns = PathBuf::from(format!("/proc/{}/ns", holder.id()));
        let namespaces = Namespaces {
            net: File::open(ns.join("net"))?.into(),
            mount: File::open(ns.join("mnt"))?.into(),
            id: fs::read_link(ns.join("net"))?,
        };
        Ok(Self { name: name.to_owned(), dir, holder, keep, namespaces: Arc::new(namespaces) })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A directory of its own, seen under the same path by all hosts.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The process whose namespaces these are, e.g. for `ip link ... netns PID`.
    pub fn pid(&self) -> u32 {
        self.holder.id()
    }

    /// A command that will run on this host, in its directory, with a plain environment.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("LANG", "C.UTF-8")
            .env("HOME", &self.dir)
            .stdin(Stdio::null())
            .process_group(0);
        let namespaces = Arc::clone(&self.namespaces);
        let dir = self.dir.clone();
        let enter = move || {
            move_into_link_name_space(namespaces.mount.as_fd(), Some(LinkNameSpaceType::Mount))?;
            move_into_link_name_space(namespaces.net.as_fd(), Some(LinkNameSpaceType::Network))?;
            Ok(rustix::process::chdir(&dir)?)
        };
        // SAFETY: the closure makes three system calls on values made beforehand; it allocates nothing
        // but a path shorter than rustix's stack buffer, and takes no lock.
        unsafe { command.pre_exec(enter) };
        command
    }

    /// Runs a program to its end and gives what it said; whatever its exit code.
    pub fn run<I: AsRef<OsStr>>(&self, argv: impl IntoIterator<Item = I>) -> Result<Output> {
        self.run_for(RUN_LIMIT, argv)
    }

    /// As [`Host::run`], killed after `limit` (an error then).
    pub fn run_for<I: AsRef<OsStr>>(
        &self,
        limit: Duration,
        argv: impl IntoIterator<Item = I>,
    ) -> Result<Output> {
        let mut argv = argv.into_iter();
        let program = argv.next().context("an empty command")?;
        let mut command = self.command(program);
        command.args(argv);
        output(command, None, limit)
    }

    /// Runs a shell script that has to succeed; gives its standard output.
    pub fn sh(&self, script: &str) -> Result<String> {
        let output = self.run(["sh", "-e", "-c", script])?;
        ensure!(output.success(), "on {}: {script}\n{}{}", self.name, output.out, output.err);
        Ok(output.out)
    }

    /// Loads a ruleset; an error names what nft found wrong.
    pub fn nft(&self, ruleset: &str) -> Result<()> {
        let mut command = self.command("nft");
        command.args(["-f", "-"]);
        let output = output(command, Some(ruleset.as_bytes()), RUN_LIMIT)?;
        ensure!(output.success(), "nft on {}: {}\n{ruleset}", self.name, output.err);
        Ok(())
    }

    /// Runs `work` on a thread whose new sockets belong to this host; they may be used anywhere.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                self.enter()?;
                work()
            });
            match thread.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Moves the calling thread into this host's network for good.
    pub fn enter(&self) -> Result<()> {
        move_into_link_name_space(self.namespaces.net.as_fd(), Some(LinkNameSpaceType::Network))
            .context("cannot enter a network namespace")
    }

    /// A thing that can enter this host's network from threads that outlive the borrow.
    pub fn door(&self) -> Door {
        Door(Arc::clone(&self.namespaces))
    }

    /// Starts a program that goes on until it is dropped; its output goes to a log.
    pub fn start(&self, name: &str, mut command: Command) -> Result<Process> {
        let log = self.dir.join(format!("{name}.log"));
        let file = File::create(&log)?;
        let child = command
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("cannot start {name} on {}", self.name))?;
        Ok(Process { name: name.to_owned(), child: Mutex::new(child), log })
    }

    /// Ids of all processes in this host's network, the holder's left out.
    pub fn processes(&self) -> Vec<u32> {
        let holder = self.pid();
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            if pid != holder
                && fs::read_link(entry.path().join("ns/net"))
                    .is_ok_and(|ns| ns == self.namespaces.id)
            {
                found.push(pid);
            }
        }
        found
    }

    /// Waits until something listens on TCP `port`, any address.
    pub fn wait_for_port(&self, port: u16) -> Result<()> {
        let wanted = format!(":{port:04X} ");
        let holder = self.pid();
        wait::until_true(
            &format!("nothing listens on port {port} of {}", self.name),
            Duration::from_secs(15),
            || {
                ["tcp", "tcp6"].iter().any(|file| {
                    fs::read_to_string(format!("/proc/{holder}/net/{file}")).is_ok_and(|table| {
                        table.lines().any(|line| {
                            let mut fields = line.split_ascii_whitespace();
                            let local = fields.nth(1).unwrap_or_default();
                            let state = fields.nth(1).unwrap_or_default();
                            state == "0A" && format!("{local} ").ends_with(&wanted)
                        })
                    })
                })
            },
        )
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let me = std::process::id();
        for _ in 0..50 {
            // A thread of ours that entered the namespace keeps its process elsewhere.
            let left: Vec<_> = self.processes().into_iter().filter(|&pid| pid != me).collect();
            if left.is_empty() {
                break;
            }
            for pid in left {
                signal(pid, rustix::process::Signal::KILL);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        drop(self.keep.take());
        // Its own search for processes is for the case that we are not there to do it.
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// Enters a host's network; see [`Host::door`].
#[derive(Clone, Debug)]
pub struct Door(Arc<Namespaces>);

impl Door {
    /// Moves the calling thread into the host's network for good.
    pub fn enter(&self) -> Result<()> {
        move_into_link_name_space(self.0.net.as_fd(), Some(LinkNameSpaceType::Network))
            .context("cannot enter a network namespace")
    }
}

/// Sends a signal; a process that is gone already is no error.
pub fn signal(pid: u32, signal: rustix::process::Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) {
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// Kills a child of [`Host::command`] with all that it started.
fn kill_group(child: &Child) {
    if let Some(pid) = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw) {
        let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
    }
}

/// What a program said and how it ended.
#[derive(Debug, Clone)]
pub struct Output {
    /// Its exit status.
    pub status: ExitStatus,
    /// Standard output, invalid UTF-8 replaced.
    pub out: String,
    /// Standard error, likewise.
    pub err: String,
}

impl Output {
    /// Exit code 0.
    pub fn success(&self) -> bool {
        self.status.success()
    }

    /// The exit code; 128 + signal number when killed, as shells have it.
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| 128 + self.status.signal().unwrap_or_default())
    }
}

/// Runs a command to its end with this standard input.
pub fn output(mut command: Command, input: Option<&[u8]>, limit: Duration) -> Result<Output> {
    let what = command.get_program().to_string_lossy().into_owned();
    if input.is_some() {
        command.stdin(Stdio::piped());
    }
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {what}"))?;
    let stdin = child.stdin.take();
    let mut stdout = child.stdout.take().context("no standard output")?;
    let mut stderr = child.stderr.take().context("no standard error")?;
    std::thread::scope(|scope| {
        if let (Some(mut stdin), Some(input)) = (stdin, input) {
            // A program that does not read all of its input ends in a broken pipe here.
            scope.spawn(move || stdin.write_all(input));
        }
        let out = scope.spawn(move || {
            let mut bytes = Vec::new();
            let _ = stdout.read_to_end(&mut bytes);
            bytes
        });
        let err = scope.spawn(move || {
            let mut bytes = Vec::new();
            let _ = stderr.read_to_end(&mut bytes);
            bytes
        });
        let start = Instant::now();
        let (status, late) = loop {
            if let Some(status) = child.try_wait()? {
                break (status, false);
            }
            if start.elapsed() > limit {
                kill_group(&child);
                break (child.wait()?, true);
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        let text = |bytes: std::thread::Result<Vec<u8>>| {
            String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned()
        };
        let output = Output { status, out: text(out.join()), err: text(err.join()) };
        ensure!(
            !late,
            "{what} did not end within {:.0} s: {}{}",
            limit.as_secs_f32(),
            output.out,
            output.err
        );
        Ok(output)
    })
}

/// A program that goes on; killed on drop.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Mutex<Child>,
    log: PathBuf,
}

impl Process {
    fn child(&self) -> std::sync::MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child().id()
    }

    /// All that it has written so far.
    pub fn log(&self) -> String {
        fs::read(&self.log)
            .map(|log| String::from_utf8_lossy(&log).into_owned())
            .unwrap_or_default()
    }

    /// Waits for a line in its log that contains `text`; an error if it ends before.
    pub fn wait_for_log(&self, text: &str, limit: Duration) -> Result<()> {
        wait::until(&format!("{} did not say «{text}»", self.name), limit, || {
            if self.log().contains(text) {
                return Ok(Some(()));
            }
            if let Some(status) = self.exited()? {
                bail!("{} ended ({status}):\n{}", self.name, self.log());
            }
            Ok(None)
        })
    }

    /// Its exit status if it has ended.
    pub fn exited(&self) -> Result<Option<ExitStatus>> {
        Ok(self.child().try_wait()?)
    }

    /// Sends it a signal.
    pub fn signal(&self, which: rustix::process::Signal) {
        signal(self.pid(), which);
    }

    /// Waits for its end.
    pub fn wait(&self, limit: Duration) -> Result<ExitStatus> {
        wait::until(&format!("{} did not end", self.name), limit, || self.exited())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let mut child = self.child();
        if matches!(child.try_wait(), Ok(None)) {
            kill_group(&child);
            let _ = child.wait();
        }
    }
}

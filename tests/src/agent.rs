//! The program under test: `vscan run` on a lab's gateway, and what it says about itself.

use crate::host::{Host, Output, Process, signal};
use crate::lab::{Lab, Topology};
use crate::{peers, wait};
use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

/// `vscan run` is ready within this time: rules are compiled, processes started.
const START_LIMIT: Duration = Duration::from_secs(30);

/// A stop takes at most this long: the drain time of these configurations and some more.
const STOP_LIMIT: Duration = Duration::from_secs(15);

/// Where `/metrics` is served on the gateway.
const METRICS: &str = "127.0.0.1:9464";

/// How connections are steered; most tests run with each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Steering {
    /// BPF programs and nftables.
    Bpf,
    /// nftables alone.
    Nft,
}

impl Steering {
    /// Its word in the configuration.
    pub fn word(self) -> &'static str {
        match self {
            Self::Bpf => "bpf",
            Self::Nft => "nft",
        }
    }
}

/// Makes two tests of one function over [`Steering`], in a module of its name.
#[macro_export]
macro_rules! on_both {
    ($($(#[$meta:meta])* $name:ident),+ $(,)?) => {$(
        $(#[$meta])*
        mod $name {
            #[test]
            fn bpf() -> $crate::Result<()> {
                super::$name($crate::agent::Steering::Bpf)
            }
            #[test]
            fn nft() -> $crate::Result<()> {
                super::$name($crate::agent::Steering::Nft)
            }
        }
    )+};
}

/// A configuration: what tests vary. Paths are always the lab's own.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How connections are steered.
    pub steering: Steering,
    /// `on_agent_down = "open"`, else `"closed"`.
    pub open: bool,
    /// Further lines for sections, by section name; `""` for whole tables at the end.
    pub more: BTreeMap<&'static str, String>,
    /// Variables of its environment.
    pub env: Vec<(&'static str, String)>,
    /// Whether the log is written to the test's output when the agent is dropped.
    pub tell: bool,
}

impl Settings {
    /// The defaults of the product with this steering.
    pub fn new(steering: Steering) -> Self {
        Self { steering, open: false, more: BTreeMap::new(), env: Vec::new(), tell: true }
    }

    /// New connections pass while the agent is down.
    #[must_use]
    pub fn open(mut self) -> Self {
        self.open = true;
        self
    }

    /// Adds lines to a section.
    #[must_use]
    pub fn with(mut self, section: &'static str, lines: &str) -> Self {
        let text = self.more.entry(section).or_default();
        text.push_str(lines);
        text.push('\n');
        self
    }

    /// Sets a variable of its environment.
    #[must_use]
    pub fn with_env(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.env.push((name, value.into()));
        self
    }

    /// Writes the configuration for this lab and gives its path.
    pub fn write(&self, lab: &Lab) -> Result<PathBuf> {
        let dir = lab.gateway.dir();
        let more = |section: &str| self.more.get(section).map_or("", String::as_str);
        let mut text = format!(
            "[gateway]\ninterfaces = [\"lan0\", \"wan0\"]\n\
             inside = [\"10.1.0.0/16\", \"fd00:1::/32\"]\n\
             steering = \"{}\"\non_agent_down = \"{}\"\ndrain = \"2s\"\n",
            self.steering.word(),
            if self.open { "open" } else { "closed" },
        );
        match lab.topology() {
            Topology::OnGateway => {
                text.push_str("publish = [\"192.0.2.1\", \"2001:db8:2::1\"]\n");
            }
            Topology::FromGateway if more("smtp").contains("own_mail") => {}
            Topology::FromGateway => text.push_str("intercept_own = true\n"),
            Topology::Plain
            | Topology::Masquerade
            | Topology::Forward
            | Topology::ForwardFromOtherPort => {}
        }
        text.push_str(more("gateway"));
        let dir_text = dir.display();
        text.push_str(&format!(
            "[paths]\nrun_dir = \"{dir_text}/run\"\nstate_dir = \"{dir_text}/state\"\n\
             bpffs = \"/sys/fs/bpf/vscan\"\nevents = \"{dir_text}/events.json\"\n{}",
            more("paths")
        ));
        let rules = repository().join("deploy/rules");
        let scan = more("scan");
        text.push_str("[scan]\n");
        if !scan.contains("rules =") {
            text.push_str(&format!("rules = [\"{}\"]\n", rules.display()));
        }
        if !scan.contains("workers =") {
            text.push_str("workers = 2\n");
        }
        text.push_str(scan);
        // The space of the machine's disk is not what is tested.
        text.push_str(&format!("[quarantine]\nmin_free = \"1 MiB\"\n{}", more("quarantine")));
        text.push_str(&format!("[metrics]\nlisten = \"{METRICS}\"\n"));
        for section in ["ftp", "smtp", "types", "outbound", "scan.limits", "spool", "log", "notify"]
        {
            if !more(section).is_empty() {
                text.push_str(&format!("[{section}]\n{}", more(section)));
            }
        }
        text.push_str(more(""));
        if lab.firewall().forward_drop && !more("").contains("[[access]]") {
            // Behind a firewall that refuses by default vscan wants to be told whom it lets through.
            text.push_str("[[access]]\nfrom = [\"10.1.0.2\", \"fd00:1::2\"]\n");
        }
        let path = dir.join("vscan.toml");
        fs::write(&path, text)?;
        Ok(path)
    }
}

/// The root of the repository.
pub fn repository() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// A program of the workspace, built by `cargo xtask build`.
pub fn program(name: &str) -> Result<PathBuf> {
    let path = peers::target_dir().join("release").join(name);
    ensure!(path.exists(), "{} is missing: run `cargo xtask build`", path.display());
    Ok(path)
}

/// A running agent.
#[derive(Debug)]
pub struct Vscan<'lab> {
    host: &'lab Host,
    config: PathBuf,
    process: Process,
    tell: bool,
}

impl<'lab> Vscan<'lab> {
    /// Starts it on the lab's gateway and waits until it says by sd_notify that it is ready.
    pub fn start(lab: &'lab Lab, settings: &Settings) -> Result<Self> {
        let config = settings.write(lab)?;
        Self::start_with(lab, settings, config)
    }

    /// Starts it again with the configuration that it had.
    pub fn start_with(lab: &'lab Lab, settings: &Settings, config: PathBuf) -> Result<Self> {
        Self::launch(&lab.gateway, &["run"], &settings.env, settings.tell, config)
    }

    /// Starts `vscan mailbox run` on a host.
    pub fn start_mailboxes(host: &'lab Host, config: PathBuf) -> Result<Self> {
        Self::launch(host, &["mailbox", "run"], &[], true, config)
    }

    fn launch(
        host: &'lab Host,
        command: &[&str],
        env: &[(&'static str, String)],
        tell: bool,
        config: PathBuf,
    ) -> Result<Self> {
        let words = command;
        let notify = host.dir().join("notify.sock");
        let _ = fs::remove_file(&notify);
        let socket = UnixDatagram::bind(&notify)?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let mut command = host.command(program("vscan")?);
        command.args(words).arg("--config").arg(&config).env("NOTIFY_SOCKET", &notify);
        command.envs(env.iter().map(|(name, value)| (name, value)));
        let process = host.start("vscan", command)?;
        let agent = Self { host, config, process, tell };
        let start = Instant::now();
        let mut buffer = [0; 4096];
        loop {
            if let Ok(count) = socket.recv(&mut buffer)
                && buffer[..count].split(|&byte| byte == b'\n').any(|line| line == b"READY=1")
            {
                return Ok(agent);
            }
            if let Some(status) = agent.process.exited()? {
                bail!("vscan {} ended ({status}):\n{}", words.join(" "), agent.log());
            }
            ensure!(start.elapsed() < START_LIMIT, "vscan is not ready:\n{}", agent.log());
        }
    }

    /// The gateway host.
    pub fn host(&self) -> &Host {
        self.host
    }

    /// The configuration file.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// The supervisor process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Runs a command of the program on the gateway, with this agent's configuration.
    pub fn cli(&self, args: &[&str]) -> Result<Output> {
        cli(self.host, &self.config, args)
    }

    /// A listing as JSON; the command has to succeed.
    pub fn json(&self, args: &[&str]) -> Result<Value> {
        let mut all = args.to_vec();
        all.extend(["-o", "json"]);
        let output = self.cli(&all)?;
        ensure!(output.success(), "vscan {}: {}{}", args.join(" "), output.out, output.err);
        json(&output.out)
    }

    /// The flow table: open flows, and closed ones as far as they are kept.
    pub fn flows(&self) -> Result<Vec<Value>> {
        list(self.json(&["flows", "--last", "1000"])?)
    }

    /// All lines of the event log.
    pub fn events(&self) -> Result<Vec<Value>> {
        let path = self.host.dir().join("events.json");
        let text = fs::read_to_string(path).unwrap_or_default();
        text.lines()
            .filter(|line| line.ends_with('}'))
            .map(|line| serde_json::from_str(line).with_context(|| format!("event: {line}")))
            .collect()
    }

    /// Waits for an event of this type for which `wanted` holds.
    pub fn wait_for_event(&self, kind: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        wait::until(&format!("no such event of type {kind}"), Duration::from_secs(5), || {
            Ok(self
                .events()?
                .into_iter()
                .find(|event| event["event_type"] == kind && wanted(event)))
        })
        .with_context(|| {
            let events: Vec<_> =
                self.events().unwrap_or_default().iter().map(Value::to_string).collect();
            format!("events:\n{}", events.join("\n"))
        })
    }

    /// The metrics, as served.
    pub fn metrics(&self) -> Result<Metrics> {
        let body = http(self.host, "/metrics")?;
        Ok(Metrics(body))
    }

    /// The agent's processes: supervisor, gateway, scanner zygote, workers.
    pub fn processes(&self) -> Processes {
        let mut found = Processes { supervisor: self.process.pid(), ..Processes::default() };
        let mut scanners = Vec::new();
        for pid in self.host.processes() {
            let Ok(line) = fs::read(format!("/proc/{pid}/cmdline")) else { continue };
            let mut words = line.split(|&byte| byte == 0).map(String::from_utf8_lossy);
            let program = words.next().unwrap_or_default().into_owned();
            if program.ends_with("vscan-scanner") {
                scanners.push(pid);
            } else if pid != found.supervisor
                && program.ends_with("vscan")
                && words.any(|word| word == "gateway")
            {
                found.gateway = pid;
            }
        }
        for &pid in &scanners {
            match parent(pid) {
                Some(parent) if scanners.contains(&parent) => found.workers.push(pid),
                _ => found.scanner = pid,
            }
        }
        found
    }

    /// Waits until all processes are there again, none of them in `old`.
    pub fn wait_for_processes(&self, old: &[u32]) -> Result<Processes> {
        wait::until("the processes are not complete", Duration::from_secs(15), || {
            let now = self.processes();
            let fresh =
                ![now.gateway, now.scanner].iter().chain(&now.workers).any(|pid| old.contains(pid));
            Ok((now.gateway != 0 && now.scanner != 0 && now.workers.len() == 2 && fresh)
                .then_some(now))
        })
    }

    /// Asks it to stop, waits for its end, and gives the exit status and what it has left behind.
    pub fn stop(self) -> Result<(ExitStatus, Vec<String>)> {
        self.process.signal(Signal::TERM);
        let status = self.process.wait(STOP_LIMIT).with_context(|| self.log())?;
        Ok((status, leftovers(self.host)?))
    }
}

impl Drop for Vscan<'_> {
    #[expect(clippy::print_stderr, reason = "cargo shows it with the failure of a test only")]
    fn drop(&mut self) {
        if self.tell {
            eprintln!("--- log of vscan\n{}--- end of log", self.log());
        }
    }
}

/// The agent's processes; 0: not there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Processes {
    /// `vscan run`.
    pub supervisor: u32,
    /// `vscan gateway`.
    pub gateway: u32,
    /// The zygote of `vscan-scanner`.
    pub scanner: u32,
    /// Its workers.
    pub workers: Vec<u32>,
}

/// A process's parent.
fn parent(pid: u32) -> Option<u32> {
    status_field(pid, "PPid").ok()?.parse().ok()
}

/// A field of `/proc/PID/status`.
pub fn status_field(pid: u32, field: &str) -> Result<String> {
    fs::read_to_string(format!("/proc/{pid}/status"))?
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
        .map(|value| value.trim().to_owned())
        .with_context(|| format!("no {field} for process {pid}"))
}

/// Runs a command of the program on a host with this configuration.
pub fn cli(host: &Host, config: &Path, args: &[&str]) -> Result<Output> {
    let program = program("vscan")?;
    let mut argv = vec![program.as_os_str()];
    let (command, rest) = args.split_first().context("no command")?;
    argv.push(command.as_ref());
    argv.push("--config".as_ref());
    argv.push(config.as_os_str());
    argv.extend(rest.iter().map(AsRef::<std::ffi::OsStr>::as_ref));
    host.run(argv)
}

/// What a stopped agent left on a host: table, rules, routes, pins, filters, processes, sockets.
pub fn leftovers(host: &Host) -> Result<Vec<String>> {
    let mut left = Vec::new();
    let mut look = |what: &str, script: &str| -> Result<()> {
        let found = host.sh(script)?;
        if !found.trim().is_empty() {
            left.push(format!("{what}: {}", found.trim()));
        }
        Ok(())
    };
    look("nft", "nft list tables | grep vscan || true")?;
    look(
        "rule",
        "{ ip rule; ip -6 rule; } | grep -v 'lookup \\(local\\|main\\|default\\)' || true",
    )?;
    look("route", "{ ip route show table 181; ip -6 route show table 181; } 2>/dev/null || true")?;
    // A fresh bpffs has two iterators of the kernel's own (bpf_preload).
    look("pins", "find /sys/fs/bpf -mindepth 1 ! -name '*.debug'")?;
    look(
        "filters",
        "for i in lan0 wan0; do tc filter show dev $i ingress; done; tc qdisc | grep clsact || true",
    )?;
    look("socket", "find . -name control.sock")?;
    for pid in host.processes() {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        if name.starts_with("vscan") {
            left.push(format!("process {pid}: {}", name.trim()));
        }
    }
    Ok(left)
}

/// Kills a process and waits until it is gone.
pub fn kill(pid: u32) -> Result<()> {
    signal(pid, Signal::KILL);
    wait_until_gone(pid)
}

/// Waits until a process has ended that was killed, or whose parent was.
pub fn wait_until_gone(pid: u32) -> Result<()> {
    wait::until_true("a killed process is still there", Duration::from_secs(5), || {
        !Path::new(&format!("/proc/{pid}/ns/net")).exists()
            || fs::read_link(format!("/proc/{pid}/ns/net")).is_err()
    })
}

/// One JSON document, or JSON lines, as a value (lines become an array).
pub fn json(text: &str) -> Result<Value> {
    serde_json::from_str(text).or_else(|_| {
        let lines: Result<Vec<Value>, _> = text.lines().map(serde_json::from_str).collect();
        lines.map(Value::Array).with_context(|| format!("no JSON: {text}"))
    })
}

/// A listing's entries.
fn list(value: Value) -> Result<Vec<Value>> {
    match value {
        Value::Array(entries) => Ok(entries),
        Value::Object(_) => Ok(vec![value]),
        other => bail!("no list: {other}"),
    }
}

/// Gets a page of the agent's HTTP server; the body.
pub fn http(host: &Host, path: &str) -> Result<String> {
    host.within(|| {
        let mut stream = std::net::TcpStream::connect(METRICS)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
        ensure!(head.starts_with("HTTP/1.1 200"), "{head}\n{body}");
        Ok(body.to_owned())
    })
}

/// Metrics in the text form of Prometheus.
#[derive(Clone, Debug)]
pub struct Metrics(pub String);

impl Metrics {
    /// The sum of all samples of this name whose labels contain all of `labels`.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.0
            .lines()
            .filter_map(|line| line.strip_prefix(name))
            .filter(|rest| rest.starts_with('{') || rest.starts_with(' '))
            .filter(|rest| {
                labels.iter().all(|(key, value)| rest.contains(&format!("{key}=\"{value}\"")))
            })
            .filter_map(|rest| rest.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }
}

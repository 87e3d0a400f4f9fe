//! `fuzz`: the fuzz targets of vscan-proto and vscan-scan: built by cargo-fuzz, run side by side, one line told of each.
//!
//! What a run finds stays below target/fuzz: the grown corpora, an artifact for each failure, and libFuzzer's own log of
//! each target. The corpora in the repository are read, and written only by `--minimise`.

use std::{
    collections::VecDeque,
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::run::{Cmd, root, target_dir, which};

/// What to run, and how far.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// Only the targets of these names.
    targets: Vec<String>,
    /// How long each target runs.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Targets that run side by side; without it one a processor.
    #[arg(short, long)]
    jobs: Option<usize>,
    /// Seconds after which one input counts as a failure.
    #[arg(long, default_value_t = 10)]
    timeout: u64,
    /// Megabytes of memory above which one input counts as a failure.
    #[arg(long, default_value_t = 2048)]
    memory: u64,
    /// The largest input, in bytes.
    #[arg(long, default_value_t = 64 * 1024)]
    largest: u64,
    /// Tell the names of the targets and run nothing.
    #[arg(long)]
    list: bool,
    /// Afterwards add to the committed corpora what small inputs of the runs cover beyond them.
    #[arg(long)]
    minimise: bool,
}

/// The crates with a fuzz/ directory.
const CRATES: [&str; 2] = ["vscan-proto", "vscan-scan"];

/// The version of cargo-fuzz that is installed where there is none.
const CARGO_FUZZ_VERSION: &str = "0.13.2";

/// The largest input that `--minimise` takes into a committed corpus, in bytes: tests cut and change each of them
/// hundreds of times.
const COMMITTED_MAX: &str = "1024";

/// A fuzz target, with where its files are.
#[derive(Debug, Clone)]
struct Target {
    name: String,
    /// `fuzz/` of its crate.
    dir: PathBuf,
    /// Below target/.
    scratch: PathBuf,
}

impl Target {
    /// The corpus in the repository.
    fn committed(&self) -> PathBuf {
        self.dir.join("corpus").join(&self.name)
    }

    /// The corpus that grows.
    fn grown(&self) -> PathBuf {
        self.scratch.join("corpus").join(&self.name)
    }

    fn artifacts(&self) -> PathBuf {
        self.scratch.join("artifacts").join(&self.name)
    }

    fn log(&self) -> PathBuf {
        self.scratch.join("log").join(format!("{}.log", self.name))
    }
}

/// Builds all targets and runs those that were asked for.
pub(crate) fn run(options: &Options) -> Result<()> {
    let scratch = target_dir().join("fuzz");
    let mut targets = Vec::new();
    for crate_name in CRATES {
        targets.extend(targets_in(crate_name, &scratch)?);
    }
    if let Some(unknown) = options.targets.iter().find(|t| targets.iter().all(|k| k.name != **t)) {
        bail!("there is no fuzz target {unknown}; `cargo xtask fuzz --list` tells them");
    }
    if !options.targets.is_empty() {
        targets.retain(|t| options.targets.contains(&t.name));
    }
    if options.list {
        for target in &targets {
            println!("{}", target.name);
        }
        return Ok(());
    }
    let cargo_fuzz = cargo_fuzz()?;
    let toolchain = Toolchain::find()?;
    for crate_name in CRATES {
        let dir = root().join(crate_name).join("fuzz");
        let wanted: Vec<_> = targets.iter().filter(|t| t.dir == dir).collect();
        build(&cargo_fuzz, &toolchain, &dir, &scratch, &wanted)?;
    }
    let jobs =
        options.jobs.unwrap_or_else(|| thread::available_parallelism().map_or(1, Into::into));
    println!(
        "fuzz: {} targets, {} s each, {jobs} at a time; logs in {}",
        targets.len(),
        options.seconds,
        scratch.join("log").display()
    );
    println!("{HEADING}");
    let failed = side_by_side(&targets, jobs.max(1), options)?;
    if options.minimise {
        for target in &targets {
            minimise(target, options)?;
        }
    }
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}

/// The targets of one crate, by the files of fuzz_targets/.
fn targets_in(crate_name: &str, scratch: &Path) -> Result<Vec<Target>> {
    let dir = root().join(crate_name).join("fuzz");
    let files = dir.join("fuzz_targets");
    let mut targets = Vec::new();
    for entry in fs::read_dir(&files).with_context(|| files.display().to_string())? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "rs")
            && let Some(stem) = path.file_stem()
        {
            let name = stem.to_string_lossy().into_owned();
            targets.push(Target { name, dir: dir.clone(), scratch: scratch.to_owned() });
        }
    }
    targets.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(targets)
}

/// The directory of cargo-fuzz, or None where it is on `PATH`; built below target/ where there is none.
fn cargo_fuzz() -> Result<Option<PathBuf>> {
    let tools = target_dir().join("tools");
    let bin = tools.join("bin");
    if bin.join("cargo-fuzz").is_file() {
        return Ok(Some(bin));
    }
    if which("cargo-fuzz").is_some() {
        return Ok(None);
    }
    println!("fuzz: building cargo-fuzz {CARGO_FUZZ_VERSION} into {}", tools.display());
    Cmd::new("cargo")
        .args(["install", "--quiet", "cargo-fuzz", "--version", CARGO_FUZZ_VERSION, "--locked"])
        .arg("--root")
        .arg(&tools)
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .run()
        .context("cargo-fuzz could not be built")?;
    Ok(Some(bin))
}

/// What compiles with libFuzzer's instrumentation, which is behind an unstable flag.
#[derive(Debug)]
enum Toolchain {
    /// rustup's nightly.
    Nightly,
    /// The pinned stable toolchain, told to take unstable flags.
    Stable,
}

impl Toolchain {
    fn find() -> Result<Self> {
        if which("c++").is_none() {
            bail!("libFuzzer is C++: please install a compiler (Debian: g++)");
        }
        let has_runtime = |sysroot: &str, name: &str| {
            let dir = Path::new(sysroot.trim()).join("lib/rustlib");
            let host = format!("{}-unknown-linux-gnu/lib", std::env::consts::ARCH);
            dir.join(host).join(format!("librustc-{name}_rt.asan.a")).is_file()
        };
        let sysroot = |toolchain: &str| {
            Cmd::new("rustc")
                .env("RUSTUP_TOOLCHAIN", toolchain)
                .args(["--print", "sysroot"])
                .output()
        };
        if which("rustup").is_some() && sysroot("nightly").is_ok_and(|s| has_runtime(&s, "nightly"))
        {
            return Ok(Self::Nightly);
        }
        let stable = Cmd::new("rustc").args(["--print", "sysroot"]).output();
        if stable.is_ok_and(|s| has_runtime(&s, "stable")) {
            return Ok(Self::Stable);
        }
        bail!(
            "no compiler with the runtime of the address sanitizer: `rustup toolchain install nightly`"
        )
    }

    /// cargo of this toolchain.
    fn cargo(&self, tools: Option<&Path>) -> Cmd {
        let cmd = Cmd::new("cargo");
        let cmd = match self {
            Self::Nightly => cmd.env("RUSTUP_TOOLCHAIN", "nightly"),
            Self::Stable => cmd.env("RUSTC_BOOTSTRAP", "1"),
        };
        let Some(tools) = tools else { return cmd };
        let path = std::env::var_os("PATH").unwrap_or_default();
        let all = std::iter::once(tools.to_owned()).chain(std::env::split_paths(&path));
        match std::env::join_paths(all) {
            Ok(path) => cmd.env("PATH", path),
            Err(_) => cmd,
        }
    }
}

/// Builds these targets of one crate: all by one call, one by one where only some are wanted.
fn build(
    cargo_fuzz: &Option<PathBuf>,
    toolchain: &Toolchain,
    dir: &Path,
    scratch: &Path,
    wanted: &[&Target],
) -> Result<()> {
    let all = fs::read_dir(dir.join("fuzz_targets"))?.count() == wanted.len();
    let names = if all { vec![None] } else { wanted.iter().map(|t| Some(&t.name)).collect() };
    for name in names {
        toolchain
            .cargo(cargo_fuzz.as_deref())
            .args(["fuzz", "build", "--fuzz-dir"])
            .arg(dir)
            .arg("--target-dir")
            .arg(scratch)
            .args(name)
            .run()?;
    }
    Ok(())
}

const HEADING: &str =
    "  target              seconds         runs  runs/s  coverage  corpus  slowest   memory";

/// Runs the targets, so many at a time; the names of those that failed.
fn side_by_side(targets: &[Target], jobs: usize, options: &Options) -> Result<Vec<String>> {
    let queue = Mutex::new(targets.iter().collect::<VecDeque<_>>());
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    let done = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while let Some(target) = next() {
                    let result = one(target, options);
                    if let Ok((line, _)) = &result {
                        println!("{line}");
                    }
                    let failed = result.map(|(_, clean)| (!clean).then(|| target.name.clone()));
                    done.lock().unwrap_or_else(PoisonError::into_inner).push(failed);
                }
            });
        }
    });
    let done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.into_iter().filter_map(Result::transpose).collect()
}

/// The program of a target.
fn program(target: &Target) -> PathBuf {
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    target.scratch.join(triple).join("release").join(&target.name)
}

/// Runs one target to its end; a line about it, and whether nothing was found.
fn one(target: &Target, options: &Options) -> Result<(String, bool)> {
    let (grown, artifacts) = (target.grown(), target.artifacts());
    let log = target.log();
    for dir in [&grown, &artifacts, &target.scratch.join("log")] {
        fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    }
    let known = entries(&artifacts);
    let committed = target.committed();
    let file = fs::File::create(&log).with_context(|| log.display().to_string())?;
    let started = Instant::now();
    let mut command = std::process::Command::new(program(target));
    command.arg(&grown);
    if committed.is_dir() {
        command.arg(&committed);
    }
    let dictionary = target.dir.join("dictionaries").join(format!("{}.dict", target.name));
    if dictionary.is_file() {
        command.arg(format!("-dict={}", dictionary.display()));
    }
    let status = command
        .arg(format!("-max_total_time={}", options.seconds))
        .arg(format!("-timeout={}", options.timeout))
        .arg(format!("-rss_limit_mb={}", options.memory))
        .arg(format!("-max_len={}", options.largest))
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .arg("-print_final_stats=1")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(file)
        .status()
        .with_context(|| program(target).display().to_string())?;
    let text = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
    let new: Vec<_> = entries(&artifacts).into_iter().filter(|a| !known.contains(a)).collect();
    let mut line = Stats::of(&text).line(&target.name, started.elapsed());
    if !status.success() {
        line.push_str(&format!("\n    FAILED: {}", cause(&text)));
    }
    for artifact in &new {
        line.push_str(&format!("\n    {}", artifact.display()));
    }
    Ok((line, status.success()))
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok);
    entries.map(|e| e.path()).collect()
}

/// What libFuzzer says at the end of a run.
#[derive(Debug, Default, PartialEq, Eq)]
struct Stats {
    runs: u64,
    coverage: u64,
    corpus: u64,
    slowest: u64,
    memory: u64,
}

impl Stats {
    /// From the log: its last status line and the final statistics.
    fn of(log: &str) -> Self {
        let mut stats = Self::default();
        for line in log.lines() {
            let number = |key: &str| {
                let (_, rest) = line.split_once(key)?;
                let digits = rest.trim_start().split(|c: char| !c.is_ascii_digit()).next()?;
                digits.parse().ok()
            };
            let mut take = |field: fn(&mut Self) -> &mut u64, key| {
                if let Some(value) = number(key) {
                    *field(&mut stats) = value;
                }
            };
            if line.starts_with('#') {
                take(|s| &mut s.runs, "#");
                take(|s| &mut s.coverage, " cov: ");
                take(|s| &mut s.corpus, " corp: ");
            }
            if line.starts_with("stat::") {
                take(|s| &mut s.runs, "number_of_executed_units:");
                take(|s| &mut s.slowest, "slowest_unit_time_sec:");
                take(|s| &mut s.memory, "peak_rss_mb:");
            }
        }
        stats
    }

    fn line(&self, name: &str, took: Duration) -> String {
        let seconds = took.as_secs();
        let each = self.runs / seconds.max(1);
        format!(
            "  {name:<18} {seconds:>8} {:>12} {each:>7} {:>9} {:>7} {:>6} s {:>5} MB",
            self.runs, self.coverage, self.corpus, self.slowest, self.memory
        )
    }
}

/// Why a run ended, in the words of libFuzzer, the sanitizer or the panic.
fn cause(log: &str) -> String {
    let panicked = log.lines().position(|l| l.contains("panicked at"));
    if let Some(at) = panicked {
        return log.lines().skip(at).take(2).collect::<Vec<_>>().join(" ");
    }
    let error = log.lines().find_map(|l| l.split_once("ERROR: ")).map(|(_, error)| error);
    error.unwrap_or("it ended without a word").to_owned()
}

/// Merges what the runs found into the committed corpus: small inputs alone, and of those the ones that cover more.
fn minimise(target: &Target, options: &Options) -> Result<()> {
    let committed = target.committed();
    fs::create_dir_all(&committed).with_context(|| committed.display().to_string())?;
    let before = entries(&committed).len();
    let log = target.scratch.join("log").join(format!("{}.merge.log", target.name));
    let status = std::process::Command::new(program(target))
        .arg("-merge=1")
        .arg(format!("-max_len={COMMITTED_MAX}"))
        .arg(format!("-timeout={}", options.timeout))
        .args([&committed, &target.grown()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(fs::File::create(&log).with_context(|| log.display().to_string())?)
        .status()?;
    if !status.success() {
        bail!("{}: merging failed; see {}", target.name, log.display());
    }
    println!("  {:<18} {before} -> {} inputs", target.name, entries(&committed).len());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_of_a_log_counts() {
        let log = "INFO: seed corpus: files: 4\n\
            #5\tINITED cov: 300 ft: 310 corp: 4/1Kb exec/s: 0 rss: 60Mb\n\
            #1024\tpulse  cov: 512 ft: 900 corp: 37/9Kb lim: 8 exec/s: 512 rss: 90Mb\n\
            stat::number_of_executed_units: 1500\n\
            stat::slowest_unit_time_sec:    3\n\
            stat::peak_rss_mb:              95\n";
        let stats = Stats { runs: 1500, coverage: 512, corpus: 37, slowest: 3, memory: 95 };
        assert_eq!(Stats::of(log), stats);
        assert_eq!(Stats::of(""), Stats::default());
        let line = stats.line("zip", Duration::from_secs(3));
        let heads: Vec<_> = HEADING.split_whitespace().collect();
        assert_eq!(
            line.split_whitespace().filter(|w| !matches!(*w, "s" | "MB")).count(),
            heads.len()
        );
    }

    #[test]
    fn failures_are_told_in_their_own_words() {
        let panic = "x\nthread '<unnamed>' (1) panicked at src/a.rs:1:2:\nindex out of bounds\nnote: y\n\
            ==1== ERROR: libFuzzer: deadly signal\n";
        assert_eq!(
            cause(panic),
            "thread '<unnamed>' (1) panicked at src/a.rs:1:2: index out of bounds"
        );
        let slow = "ALARM: working on the last Unit for 11 seconds\n==1== ERROR: libFuzzer: timeout after 11 seconds\n";
        assert_eq!(cause(slow), "libFuzzer: timeout after 11 seconds");
        assert_eq!(cause(""), "it ended without a word");
    }

    /// cargo-fuzz builds what Cargo.toml lists: a target that is missing there would never run.
    #[test]
    fn every_target_is_listed_and_has_a_corpus() {
        for crate_name in CRATES {
            let manifest =
                fs::read_to_string(root().join(crate_name).join("fuzz/Cargo.toml")).unwrap();
            let targets = targets_in(crate_name, Path::new("")).unwrap();
            assert!(!targets.is_empty());
            for target in targets {
                let name = format!("name = \"{}\"", target.name);
                assert!(manifest.contains(&name), "{}", target.name);
                assert!(!entries(&target.committed()).is_empty(), "{}", target.name);
            }
        }
    }
}

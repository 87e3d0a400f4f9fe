//! The scanner process. Started by `vscan run` and `vscan scan`, not by hand; `--check` compiles rules only.
//!
//! Exit codes are those of sysexits.h: 64 wrong arguments, 65 wrong rules, 71 the sandbox does not stand.

use rustix::fs::{Mode, OFlags};
use serde::Serialize;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Write;
use std::os::fd::{OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;
use vscan_scan::engine::bundle::{self, Key};
use vscan_scan::engine::hashes::{self, Hashes};
use vscan_scan::engine::measure::{self, Timed};
use vscan_scan::engine::plan::Shares;
use vscan_scan::engine::source::Diagnostic;
use vscan_scan::engine::yara::Set;
use vscan_scan::engine::{Holding, Signatures};
use vscan_scan::limits::{Limits, THREADS_MAX};
use vscan_scan::process::sys;
use vscan_scan::process::zygote::{Config, Zygote};
use vscan_scan::wire::Status;

const USAGE: &str = "usage: vscan-scanner --rules PATH... [--rules-key PATH] --control-fd N [--status-fd N] [--limits JSON] [--workers N] [--threads N]
       vscan-scanner --check --rules PATH... [--rules-key PATH]
       vscan-scanner --build BUNDLE --rules PATH... --rules-key PATH
       vscan-scanner --hashes LIST --rules PATH...
       vscan-scanner --measure DIR... --rules PATH... [--rules-key PATH]";

const EX_USAGE: u8 = 64;
const EX_DATAERR: u8 = 65;
const EX_OSERR: u8 = 71;

/// More workers than any machine has cores for.
const WORKERS_MAX: u32 = 1024;

#[derive(Debug, Default)]
struct Args {
    rules: Vec<PathBuf>,
    key: Option<PathBuf>,
    build: Option<PathBuf>,
    hashes: Option<PathBuf>,
    measure: Vec<PathBuf>,
    limits: Limits,
    workers: Option<u32>,
    threads: Option<u32>,
    control: Option<RawFd>,
    status: Option<RawFd>,
    check: bool,
}

/// What `--check` prints.
#[derive(Default, Serialize)]
struct Checked<'a> {
    rules: u64,
    version: &'a str,
    /// Of each set of YARA rules.
    shares: Vec<Shares>,
    /// Hashes of files and of sections of Windows programs.
    hashes: u64,
    /// Lines of lists of what is let pass.
    allowed: u64,
    /// Signatures of ClamAV that are not used, by the reason.
    skipped: BTreeMap<&'static str, u64>,
    /// The same by their names, if they are asked for.
    skipped_names: &'a [(String, &'static str)],
    /// What each file holds.
    sources: &'a [Holding],
    /// When the youngest file was changed, in seconds since 1970.
    newest: Option<i64>,
    /// What each rule took, of a corpus.
    times: Vec<Timed>,
    /// Length of the bundle or list that was built.
    bytes: u64,
    errors: &'a [Diagnostic],
    warnings: &'a [Diagnostic],
}

fn main() -> ExitCode {
    sys::forget_backtrace();
    let args = match parse(std::env::args_os().skip(1)) {
        Ok(args) => args,
        Err(e) => return refuse(EX_USAGE, &format!("{e}\n{USAGE}")),
    };
    match (&args.build, &args.hashes) {
        (Some(path), _) => build(&args, path),
        (None, Some(path)) => hash_list(&args, path),
        (None, None) if !args.measure.is_empty() => measure(&args),
        (None, None) if args.check => check(&args),
        (None, None) => serve(args),
    }
}

fn parse(args: impl Iterator<Item = OsString>) -> Result<Args, String> {
    let mut parsed = Args::default();
    let mut args = args.peekable();
    while let Some(name) = args.next() {
        let name = name.into_string().map_err(|n| format!("what is {}?", n.display()))?;
        if name == "--check" {
            parsed.check = true;
            continue;
        }
        if name == "--measure" {
            while let Some(path) = args.next_if(|a| !a.as_encoded_bytes().starts_with(b"--")) {
                parsed.measure.push(path.into());
            }
            continue;
        }
        if name == "--rules" {
            while let Some(path) = args.next_if(|a| !a.as_encoded_bytes().starts_with(b"--")) {
                parsed.rules.push(path.into());
            }
            continue;
        }
        let value = args.next().and_then(|v| v.into_string().ok());
        let value = value.ok_or_else(|| format!("{name} wants a value"))?;
        let number =
            || value.parse::<u32>().map_err(|_| format!("{name} wants a number, not {value}"));
        match &*name {
            "--limits" => {
                parsed.limits =
                    serde_json::from_str(&value).map_err(|e| format!("--limits: {e}"))?
            }
            "--rules-key" => parsed.key = Some(value.into()),
            "--hashes" => parsed.hashes = Some(value.into()),
            "--build" => parsed.build = Some(value.into()),
            "--workers" => parsed.workers = Some(number()?),
            "--threads" => parsed.threads = Some(number()?),
            "--control-fd" => parsed.control = Some(number()?.cast_signed()),
            "--status-fd" => parsed.status = Some(number()?.cast_signed()),
            _ => return Err(format!("what is {name}?")),
        }
    }
    if parsed.rules.is_empty() {
        return Err("--rules is missing".into());
    }
    if parsed.build.is_some() && parsed.key.is_none() {
        return Err("--rules-key is missing".into());
    }
    let serves = !parsed.check
        && parsed.measure.is_empty()
        && parsed.build.is_none()
        && parsed.hashes.is_none();
    if parsed.control.is_none() && serves {
        return Err("--control-fd is missing".into());
    }
    if parsed.control.is_some() && parsed.control == parsed.status {
        return Err("--control-fd and --status-fd are the same".into());
    }
    if parsed.workers.is_some_and(|n| n == 0 || n > WORKERS_MAX) {
        return Err(format!("--workers wants 1 to {WORKERS_MAX}"));
    }
    if parsed.threads.is_some_and(|n| n == 0 || n > THREADS_MAX) {
        return Err(format!("--threads wants 1 to {THREADS_MAX}"));
    }
    Ok(parsed)
}

/// The key, if there is one: only bundles need it, and say so.
fn key(args: &Args) -> Result<Option<Key>, bundle::Error> {
    match &args.key {
        Some(path) if path.exists() => Key::read(path).map(Some),
        Some(_) | None => Ok(None),
    }
}

fn load(args: &Args) -> Result<Signatures, Vec<Diagnostic>> {
    let place = args.key.clone().unwrap_or_default();
    let key = key(args).map_err(|e| vec![Diagnostic::of_file(&place, e.to_string())])?;
    Signatures::load(&args.rules, key.as_ref())
}

fn check(args: &Args) -> ExitCode {
    let (checked, code) = match &load(args) {
        Ok(loaded) => report(loaded, 0),
        Err(errors) => refusal(errors),
    };
    print(checked, code)
}

/// Measures each rule.
fn measure(args: &Args) -> ExitCode {
    let place = args.key.clone().unwrap_or_default();
    let loaded = key(args)
        .map_err(|e| vec![Diagnostic::of_file(&place, e.to_string())])
        .and_then(|key| Signatures::load_apart(&args.rules, key.as_ref()));
    let (checked, code) = match &loaded {
        Ok(loaded) => match measure::measure(&loaded.rules, &args.measure) {
            Ok(times) => {
                (serde_json::to_string(&Checked { times, ..checked(loaded, 0) }), ExitCode::SUCCESS)
            }
            Err(e) => refusal(&[Diagnostic::of_file(&args.measure[0], e)]),
        },
        Err(errors) => refusal(errors),
    };
    print(checked, code)
}

/// Compiles the rules into a bundle.
fn build(args: &Args, path: &Path) -> ExitCode {
    let Some(place) = &args.key else { return refuse(EX_USAGE, USAGE) };
    let key = match Key::read_or_make(place) {
        Ok(key) => key,
        Err(e) => return refuse(EX_OSERR, &format!("{}: {e}", place.display())),
    };
    let (checked, code) = match &Signatures::load(&args.rules, Some(&key)) {
        Ok(loaded) => match &loaded.rules[..] {
            [set] if loaded.count == set.count => match bundle::write(set, &loaded.version, loaded.newest, &key, path) {
                Ok(bytes) => report(loaded, bytes),
                Err(e) => refusal(&[Diagnostic::of_file(path, e.to_string())]),
            },
            _ => refusal(&[Diagnostic::of_file(
                path,
                "a bundle is built of rules as text; bundles and other signatures are loaded beside it".into(),
            )]),
        },
        Err(errors) => refusal(errors),
    };
    print(checked, code)
}

/// Compiles hash lists into one.
fn hash_list(args: &Args, path: &Path) -> ExitCode {
    let (checked, code) = match hashes::compile(&args.rules) {
        Ok((image, count, warnings)) => match hashes::write(&image, path) {
            Ok(()) => {
                let bytes = image.len() as u64;
                let checked =
                    Checked { hashes: count, bytes, warnings: &warnings, ..Checked::default() };
                (serde_json::to_string(&checked), ExitCode::SUCCESS)
            }
            Err(e) => refusal(&[Diagnostic::of_file(path, format!("cannot be written: {e}"))]),
        },
        Err(errors) => refusal(&errors),
    };
    print(checked, code)
}

fn report(loaded: &Signatures, bytes: u64) -> (serde_json::Result<String>, ExitCode) {
    (serde_json::to_string(&checked(loaded, bytes)), ExitCode::SUCCESS)
}

fn checked(loaded: &Signatures, bytes: u64) -> Checked<'_> {
    Checked {
        rules: loaded.count,
        version: &loaded.version,
        shares: loaded.rules.iter().map(Set::shares).collect(),
        hashes: loaded.hashes.iter().chain(&loaded.sections).map(Hashes::count).sum(),
        allowed: loaded.allowed.count(),
        skipped: loaded.skipped.clone(),
        skipped_names: &loaded.skipped_names,
        sources: &loaded.sources,
        newest: loaded.newest,
        times: Vec::new(),
        bytes,
        errors: &[],
        warnings: &loaded.warnings,
    }
}

fn refusal(errors: &[Diagnostic]) -> (serde_json::Result<String>, ExitCode) {
    let checked = Checked { errors, ..Checked::default() };
    (serde_json::to_string(&checked), ExitCode::from(EX_DATAERR))
}

fn print(checked: serde_json::Result<String>, code: ExitCode) -> ExitCode {
    match checked
        .map_err(std::io::Error::from)
        .and_then(|json| writeln!(std::io::stdout(), "{json}"))
    {
        Ok(()) => code,
        Err(e) => refuse(EX_OSERR, &format!("cannot print: {e}")),
    }
}

fn serve(args: Args) -> ExitCode {
    let started = Instant::now();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_target(false)
        // lopdf tells what is wrong with each PDF: that is the report's business.
        .with_env_filter(if std::env::var_os("VSCAN_DEBUG").is_some() {
            "debug,lopdf=off"
        } else {
            "info,lopdf=off"
        })
        .init();
    let taken = |fd: Option<RawFd>, name| {
        fd.map(|fd| sys::inherited(fd).map_err(|e| format!("{name}: {e}"))).transpose()
    };
    let (control, status) =
        match (taken(args.control, "--control-fd"), taken(args.status, "--status-fd")) {
            (Ok(Some(control)), Ok(status)) => (control, status),
            (Ok(None), _) => return refuse(EX_USAGE, USAGE),
            (Err(e), _) | (_, Err(e)) => return refuse(EX_USAGE, &e),
        };
    if let Err(e) = detach() {
        return failed(status, EX_OSERR, format!("/dev/null: {e}"));
    }
    let loaded = match load(&args).and_then(|loaded| loaded.compacted().map_err(|e| vec![e])) {
        // Nobody asks a running scanner for them.
        Ok(loaded) => Signatures { skipped_names: Vec::new(), sources: Vec::new(), ..loaded },
        Err(errors) => {
            let lines: Vec<String> = errors.iter().map(Diagnostic::to_string).collect();
            return failed(status, EX_DATAERR, lines.join("\n"));
        }
    };
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
    let workers = args.workers.unwrap_or(cores);
    let threads = args.threads.unwrap_or(cores.min(THREADS_MAX));
    let config = Config { limits: args.limits, workers, threads, control };
    let (zygote, mut warnings) = match Zygote::start(&loaded, config) {
        Ok(started) => started,
        Err(e) => return failed(status, EX_OSERR, e.to_string()),
    };
    warnings.extend(loaded.warnings.iter().take(WARNINGS_MAX).map(Diagnostic::to_string));
    tell(
        status,
        &Status::Ready {
            rules: loaded.count,
            version: loaded.version.clone(),
            warnings,
            newest: loaded.newest,
            millis: started.elapsed().as_millis() as u64,
        },
    );
    match zygote.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => refuse(EX_OSERR, &e.to_string()),
    }
}

/// Warnings told to the supervisor; big public rule sets have hundreds, `--check` lists all.
const WARNINGS_MAX: usize = 20;

/// Input and output to /dev/null: a terminal or pipe of the caller is no business of the workers.
fn detach() -> rustix::io::Result<()> {
    let null = rustix::fs::open("/dev/null", OFlags::RDWR, Mode::empty())?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)
}

/// One line on the status pipe, which is closed by it. A supervisor that is gone needs no status.
fn tell(status: Option<OwnedFd>, line: &Status) {
    if let (Some(status), Ok(mut line)) = (status, serde_json::to_vec(line)) {
        line.push(b'\n');
        let _ = std::fs::File::from(status).write_all(&line);
    }
}

fn failed(status: Option<OwnedFd>, code: u8, error: String) -> ExitCode {
    let code = refuse(code, &error);
    tell(status, &Status::Failed { error });
    code
}

fn refuse(code: u8, error: &str) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "vscan-scanner: {error}");
    ExitCode::from(code)
}

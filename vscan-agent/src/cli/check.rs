//! `vscan check`: everything that `vscan run` would complain about, without starting it.

mod blind;

use super::args::Output;
use super::failure::{EX_CONFIG, EX_DATAERR, EX_UNAVAILABLE, Failure};
use crate::config::{self, Config, ConfigErrors};
use crate::mailbox::service;
use crate::notify::Templates;
use crate::observe::wire::printable;
use crate::tls::{Age, Tls};
use crate::{access, clamd};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// One complaint.
#[derive(Debug, Serialize)]
struct Complaint {
    /// `error`, `warning` or `note`.
    severity: &'static str,
    /// `configuration`, `access`, `blind spot`, `rules`, `clamd` or `system`.
    about: &'static str,
    file: Option<PathBuf>,
    line: Option<usize>,
    column: Option<usize>,
    message: String,
}

/// What `vscan-scanner --check` and `--build` print.
#[derive(Debug, Deserialize)]
pub(super) struct Checked {
    pub(super) rules: u64,
    pub(super) version: String,
    pub(super) shares: Vec<Shares>,
    pub(super) hashes: u64,
    pub(super) allowed: u64,
    pub(super) skipped: BTreeMap<String, u64>,
    pub(super) skipped_names: Vec<(String, String)>,
    pub(super) sources: Vec<Holding>,
    pub(super) newest: Option<i64>,
    pub(super) times: Vec<Timed>,
    pub(super) bytes: u64,
    pub(super) errors: Vec<Diagnostic>,
    pub(super) warnings: Vec<Diagnostic>,
}

/// What one file holds.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Holding {
    pub(super) path: PathBuf,
    pub(super) format: String,
    pub(super) count: u64,
    pub(super) skipped: u64,
}

/// What one rule, or rules that refer to each other, took.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Timed {
    pub(super) rules: Vec<String>,
    pub(super) micros: u64,
    pub(super) runs: u64,
}

/// How many rules of one set run on which objects.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
pub(super) struct Shares {
    pub(super) by_literal: u32,
    pub(super) by_header: u32,
    pub(super) always: u32,
    pub(super) literals: u32,
    pub(super) units: u32,
}

#[derive(Debug, Deserialize)]
pub(super) struct Diagnostic {
    file: PathBuf,
    line: Option<usize>,
    column: Option<usize>,
    message: String,
    excerpt: String,
}

impl std::fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", printable(&self.file.to_string_lossy()))?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        write!(f, ": {}", printable(&self.message))
    }
}

pub(super) fn run(path: &Path, output: Output, out: &mut dyn Write) -> Result<(), Failure> {
    let mut complaints = Vec::new();
    let mut code = 0;
    let mut rules = 0;
    match Config::load(path) {
        Err(errors) => {
            if output != Output::Json {
                return Err(errors.into());
            }
            code = errors.exit_code();
            complaints.extend(of_config(&errors, path));
        }
        Ok(config) => {
            match check_rules(&config, &config.scan.rules, Task::Check) {
                Ok(checked) => {
                    rules = checked.rules;
                    if !checked.errors.is_empty() {
                        code = EX_DATAERR;
                    }
                    complaints.extend(too_old(&config, checked.newest));
                    complaints.extend(checked.errors.iter().map(|d| of_rules(d, "error")));
                    complaints.extend(checked.warnings.iter().map(|d| of_rules(d, "warning")));
                }
                Err(failure) => {
                    code = failure.code;
                    complaints.push(system(failure.message));
                }
            }
            for mailbox in &config.mailboxes {
                if let Err(error) = service::check(mailbox) {
                    code = if code == 0 { EX_CONFIG } else { code };
                    complaints.push(system(format!("mailbox.{}: {error}", mailbox.name)));
                }
            }
            if !config.gateway.interfaces.is_empty() {
                complaints.extend(blind::spots(&config));
            }
            if let Some(clamd) = &config.scan.clamd {
                let (complaint, found) = of_clamd(clamd);
                code = if code == 0 { found } else { code };
                complaints.push(complaint);
            }
            complaints.extend(access::explain::explain(&config).into_iter().map(|remark| {
                Complaint {
                    severity: if remark.doubtful { "warning" } else { "note" },
                    about: "access",
                    file: None,
                    line: None,
                    column: None,
                    message: remark.text,
                }
            }));
            match Tls::load(&config) {
                Ok((tls, _)) => complaints.extend(ages(&config, &tls)),
                Err(error) => {
                    code = if code == 0 { EX_CONFIG } else { code };
                    complaints.push(of_tls("error", error.to_string()));
                }
            }
            if let Err(error) = Templates::load(config.notify.templates.as_deref()) {
                code = if code == 0 { EX_CONFIG } else { code };
                complaints.push(system(error.to_string()));
            }
            for interface in &config.gateway.interfaces {
                if !Path::new("/sys/class/net").join(interface.as_str()).exists() {
                    code = if code == 0 { EX_CONFIG } else { code };
                    complaints.push(system(format!(
                        "there is no interface {interface}; `ip link` lists those that exist (gateway.interfaces)"
                    )));
                }
            }
        }
    }
    if output == Output::Json {
        super::json(&complaints, out)?;
    } else {
        for c in &complaints {
            let place = match (&c.file, c.line) {
                (Some(file), Some(line)) => format!("{}:{line}: ", file.display()),
                (Some(file), None) => format!("{}: ", file.display()),
                (None, _) => String::new(),
            };
            writeln!(out, "{}: {}{}", c.severity, printable(&place), lines(&c.message))?;
        }
        if code == 0 {
            writeln!(out, "{} is right, {rules} rules", path.display())?;
        }
    }
    if code == 0 { Ok(()) } else { Err(Failure { code, message: String::new() }) }
}

/// Line ends of excerpts stay, everything else that steers a terminal does not.
fn lines(text: &str) -> String {
    text.trim_end().lines().map(printable).collect::<Vec<_>>().join("\n")
}

fn of_config(errors: &ConfigErrors, path: &Path) -> Vec<Complaint> {
    if errors.problems().is_empty() {
        return vec![system(errors.to_string())];
    }
    errors
        .problems()
        .iter()
        .map(|p| Complaint {
            severity: "error",
            about: "configuration",
            file: Some(path.to_owned()),
            line: (p.line > 0).then_some(p.line),
            column: (p.line > 0).then_some(p.column),
            message: match &p.help {
                Some(help) => format!("{}; {help}", p.message),
                None => p.message.clone(),
            },
        })
        .collect()
}

fn of_rules(d: &Diagnostic, severity: &'static str) -> Complaint {
    Complaint {
        severity,
        about: "rules",
        file: Some(d.file.clone()),
        line: d.line,
        column: d.column,
        message: if d.excerpt.is_empty() {
            d.message.clone()
        } else {
            format!("{}\n{}", d.message, d.excerpt)
        },
    }
}

/// A warning, if no file of rules is younger than it should be.
fn too_old(config: &Config, newest: Option<i64>) -> Option<Complaint> {
    let max = config.scan.rules_age_max?;
    let age = jiff::Timestamp::now().as_second().checked_sub(newest?)?;
    let age = Duration::from_secs(u64::try_from(age).ok()?);
    (age > max).then(|| Complaint {
        severity: "warning",
        about: "rules",
        file: None,
        line: None,
        column: None,
        message: format!(
            "no file of rules is younger than {} days (scan.rules_age_max): `vscan rules update` renews them",
            age.as_secs() / 86_400
        ),
    })
}

/// Whether clamd answers, with what it is, and the exit code that this makes.
fn of_clamd(config: &config::Clamd) -> (Complaint, u8) {
    let place = format!("clamd at {}", config.address);
    let (severity, message, code) = match clamd::version_now(config) {
        Ok(version) => ("note", format!("{place} answers: {version}"), 0),
        Err(error) => {
            let help = match &error {
                clamd::Error::Connect(e) if e.kind() == std::io::ErrorKind::PermissionDenied => {
                    "its socket has to be open for this user (LocalSocketMode in clamd.conf)"
                }
                clamd::Error::Connect(_) => "start it, or correct scan.clamd.address",
                _ => "see its log",
            };
            let message = format!("{place} {error}; {help}: without it objects are refused");
            ("error", message, EX_UNAVAILABLE)
        }
    };
    (Complaint { severity, about: "clamd", file: None, line: None, column: None, message }, code)
}

/// Certificates that have expired, or will soon.
fn ages(config: &Config, tls: &Tls) -> Vec<Complaint> {
    let complaint = |age: &Age| age.complaint(config.tls.expiry_warning);
    tls.ages().iter().filter_map(complaint).map(|text| of_tls("warning", text)).collect()
}

fn of_tls(severity: &'static str, message: String) -> Complaint {
    Complaint { severity, about: "tls", file: None, line: None, column: None, message }
}

fn system(message: String) -> Complaint {
    Complaint { severity: "error", about: "system", file: None, line: None, column: None, message }
}

/// The scanner's program: the configured one, or the one beside this program.
pub(super) fn scanner(config: &Config) -> Result<PathBuf, Failure> {
    match &config.paths.scanner {
        Some(path) => Ok(path.clone()),
        None => crate::scanner::process::beside_this_program()
            .map_err(|e| Failure::new(EX_UNAVAILABLE, format!("/proc/self/exe: {e}"))),
    }
}

/// What the scanner's program does with rules without scanning.
#[derive(Clone, Copy, Debug)]
pub(super) enum Task<'a> {
    /// Compiles them.
    Check,
    /// Compiles them into a bundle.
    Build(&'a Path),
    /// Makes one list of lists of hashes.
    Hashes(&'a Path),
    /// Measures each rule on the files of these directories.
    Measure(&'a [PathBuf]),
}

/// Has the scanner's program do it.
pub(super) fn check_rules(
    config: &Config,
    rules: &[PathBuf],
    task: Task<'_>,
) -> Result<Checked, Failure> {
    let scanner = scanner(config)?;
    let mut command = Command::new(&scanner);
    match task {
        Task::Check => command.arg("--check"),
        Task::Build(bundle) => command.arg("--build").arg(bundle),
        Task::Hashes(list) => command.arg("--hashes").arg(list),
        Task::Measure(corpus) => command.arg("--measure").args(corpus),
    };
    command.arg("--rules").args(rules).arg("--rules-key").arg(config.rules_key());
    let result = command.stdin(Stdio::null()).stderr(Stdio::piped()).output().map_err(|e| {
        Failure::new(
            EX_UNAVAILABLE,
            format!(
                "{}: {e}; it is installed beside vscan, or named by paths.scanner",
                scanner.display()
            ),
        )
    })?;
    serde_json::from_slice(&result.stdout).map_err(|_| {
        let said = String::from_utf8_lossy(&result.stderr);
        Failure::new(EX_CONFIG, format!("{} failed: {}", scanner.display(), said.trim()))
    })
}

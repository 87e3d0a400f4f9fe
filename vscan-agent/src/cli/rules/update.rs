//! `vscan rules update`: a new set of rules, or the former one again.

use super::super::args::{Output, UpdateArgs};
use super::super::check::{Task, check_rules};
use super::super::client;
use super::super::failure::{
    EX_CANTCREAT, EX_DATAERR, EX_TEMPFAIL, EX_UNAVAILABLE, EX_USAGE, Failure,
};
use super::trial;
use crate::config::{Config, Origin};
use crate::observe::control::Request;
use crate::observe::wire::printable;
use crate::rules::fetch::{self, Wanted};
use crate::rules::store::{Manifest, Set, Store};
use crate::rules::{Error, unpack};
use jiff::Timestamp;
use serde::Serialize;
use std::io::Write;
use std::path::{Path, PathBuf};

/// A set that is still the newest has its files marked as such when they are older, in seconds.
const TOUCH_AFTER: i64 = 86_400;

/// What became of it.
#[derive(Debug, Serialize)]
struct Told {
    /// `updated`, `unchanged` or `rolled back`.
    outcome: &'static str,
    /// The set that is in force now.
    set: Set,
    /// Whether a running gateway has it.
    reloaded: bool,
    /// Whether `scan.rules` names the directory.
    in_use: bool,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let code = match &error {
            Error::Io { error, .. } if error.kind() == std::io::ErrorKind::NotFound => {
                EX_UNAVAILABLE
            }
            Error::Io { .. } => EX_CANTCREAT,
            Error::Http { .. } => EX_UNAVAILABLE,
            Error::Unprotected => EX_USAGE,
            Error::Unsigned(_)
            | Error::Signature(_)
            | Error::Older
            | Error::Checksum { .. }
            | Error::TooLarge(_)
            | Error::Malformed(_) => EX_DATAERR,
            Error::Busy => EX_TEMPFAIL,
        };
        Self::new(code, error)
    }
}

pub(super) fn run(
    args: &UpdateArgs,
    config: &Config,
    control: &dyn Fn() -> Result<PathBuf, Failure>,
    output: Output,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let store = Store::open(&config.rules_sets())?;
    let job = Job { args, config, control, store };
    let outcome = if args.rollback { job.roll_back() } else { job.update() };
    // Whatever came of it, and whatever is wrong with what was brought.
    let swept = job.store.sweep();
    let told = outcome?;
    swept?;
    if output == Output::Json {
        return Ok(super::super::json(&told, out)?);
    }
    let manifest = &told.set.manifest;
    writeln!(
        out,
        "{}: {} of {}, {} rules in all, {}",
        told.outcome,
        told.set.name,
        printable(&manifest.source),
        manifest.rules,
        manifest.version
    )?;
    if !told.in_use {
        let current = job.store.current_path();
        writeln!(out, "it is not used: scan.rules does not name {}", current.display())?;
    } else if told.reloaded {
        writeln!(out, "the running gateway has it")?;
    }
    Ok(())
}

struct Job<'a> {
    args: &'a UpdateArgs,
    config: &'a Config,
    control: &'a dyn Fn() -> Result<PathBuf, Failure>,
    store: Store,
}

impl Job<'_> {
    fn update(&self) -> Result<Told, Failure> {
        let settings = &self.config.scan.update;
        let origin = match (&self.args.from, &settings.source) {
            (Some(text), _) => Origin::parse(text).map_err(|e| Failure::new(EX_USAGE, e))?,
            (None, Some(origin)) => origin.clone(),
            (None, None) => {
                let what = "where from? name it by --from or scan.update.source";
                return Err(Failure::new(EX_USAGE, what));
            }
        };
        let wanted = Wanted {
            sha256: self.args.sha256.clone(),
            public_key: self.args.public_key.clone().or_else(|| settings.public_key.clone()),
            size_max: settings.size_max,
            patience: fetch::FETCH_TIMEOUT,
        };
        let staging = self.store.staging()?;
        let fetched = fetch::fetch(&origin, &wanted, &staging).map_err(|e| about(&origin, e))?;
        let current = self.store.current();
        if !self.args.force {
            if self.store.is_refused(&fetched.sha256) {
                let what = format!("{origin} was rolled back: --force takes it again");
                return Err(Failure::new(EX_DATAERR, what));
            }
            if let Some(set) = &current {
                if set.manifest.sha256 == fetched.sha256 {
                    return self.unchanged(set.clone());
                }
                let older =
                    fetched.signed.zip(set.manifest.signed).is_some_and(|(new, old)| new < old);
                if older {
                    return Err(about(&origin, Error::Older));
                }
            }
        }
        let files = staging.join("files");
        unpack::unpack(&fetched, &files, settings.size_max).map_err(|e| about(&origin, e))?;

        let rules = self.rules_with(&files);
        let refused = |failure: Failure| {
            Failure::new(failure.code, format!("{origin} is not taken: {failure}"))
        };
        let checked = check_rules(self.config, &rules, Task::Check).map_err(refused)?;
        super::refuse(&checked).map_err(refused)?;
        // All rules together may load though the set has none.
        let own = check_rules(self.config, std::slice::from_ref(&files), Task::Check)?;
        super::refuse(&own).map_err(refused)?;
        let corpus = if self.args.corpus.is_empty() { &settings.corpus } else { &self.args.corpus };
        let trial = trial::on(self.config, &rules, corpus).map_err(refused)?;
        if let Some(hit) = trial.hits.first() {
            let more = match trial.hits.len() {
                1 => String::new(),
                count => format!(", and {} more rules do", count - 1),
            };
            let what = format!(
                "{origin} is not taken: {} finds something in {} clean files, such as {}{more}",
                printable(&hit.name),
                hit.files,
                printable(hit.examples.first().map_or("?", String::as_str)),
            );
            return Err(Failure::new(EX_DATAERR, what));
        }
        let manifest = Manifest {
            source: origin.to_string(),
            sha256: fetched.sha256,
            signed: fetched.signed,
            version: checked.version,
            rules: checked.rules,
            installed: Timestamp::now(),
            former: None,
        };
        let set = self.store.add(&files, manifest)?;
        self.store.put_in_force(&set)?;
        match self.reload() {
            Ok(reloaded) => {
                self.store.refuse(&set.manifest.sha256, false)?;
                self.store.prune(settings.keep as usize)?;
                Ok(self.told("updated", set, reloaded))
            }
            Err(failure) => {
                match &current {
                    Some(former) => self.store.put_in_force(former)?,
                    None => self.store.put_none_in_force()?,
                }
                self.store.remove(&set)?;
                let what = format!(
                    "the former set is back: the running gateway refused the new one: {failure}"
                );
                Err(Failure::new(failure.code, what))
            }
        }
    }

    /// What is in force is what is there: so it is no older than today.
    fn unchanged(&self, set: Set) -> Result<Told, Failure> {
        let link = self.store.path(&set);
        let known = std::fs::metadata(link.join("set.json")).and_then(|meta| meta.modified());
        let old = known.ok().and_then(|at| Timestamp::try_from(at).ok()).is_none_or(|at| {
            Timestamp::now().as_second().saturating_sub(at.as_second()) >= TOUCH_AFTER
        });
        let mut reloaded = false;
        if old {
            self.store.touch(&set)?;
            reloaded = self.reload()?;
        }
        Ok(self.told("unchanged", set, reloaded))
    }

    fn roll_back(&self) -> Result<Told, Failure> {
        let nothing = |what: &str| Failure::new(EX_DATAERR, what);
        let current = self.store.current().ok_or_else(|| nothing("no set is in force"))?;
        let former = self
            .store
            .former()
            .ok_or_else(|| nothing("the set that the one in force replaced is not here"))?;
        let rules = self.rules_with(&self.store.path(&former));
        super::refuse(&check_rules(self.config, &rules, Task::Check)?)?;
        self.store.put_in_force(&former)?;
        match self.reload() {
            Ok(reloaded) => {
                self.store.refuse(&current.manifest.sha256, true)?;
                Ok(self.told("rolled back", former, reloaded))
            }
            Err(failure) => {
                self.store.put_in_force(&current)?;
                Err(failure)
            }
        }
    }

    /// The configured rules, as they would be with the set whose files lie there.
    fn rules_with(&self, files: &Path) -> Vec<PathBuf> {
        let current = self.store.current_path();
        let mut rules: Vec<PathBuf> = Vec::new();
        for path in &self.config.scan.rules {
            match path.strip_prefix(&current) {
                Ok(rest) if rest.as_os_str().is_empty() => rules.push(files.to_owned()),
                Ok(rest) => rules.push(files.join(rest)),
                // What is not there yet, such as /etc/vscan/rules.d on a machine without one, is of no use to anybody.
                Err(_) => rules.push(path.clone()),
            }
        }
        if !self.in_use() {
            rules.push(files.to_owned());
        }
        rules
    }

    fn in_use(&self) -> bool {
        let current = self.store.current_path();
        self.config.scan.rules.iter().any(|path| path.starts_with(&current))
    }

    fn told(&self, outcome: &'static str, set: Set, reloaded: bool) -> Told {
        Told { outcome, set, reloaded, in_use: self.in_use() }
    }

    /// Has a running gateway take up the rules; whether there is one.
    fn reload(&self) -> Result<bool, Failure> {
        if self.args.no_reload || !self.in_use() {
            return Ok(false);
        }
        let Ok(control) = (self.control)() else { return Ok(false) };
        if std::os::unix::net::UnixStream::connect(&control).is_err() {
            return Ok(false);
        }
        client::ask_once(&control, &Request::Reload).map(|_| true)
    }
}

fn about(origin: &Origin, error: Error) -> Failure {
    let named = matches!(error, Error::Http { .. });
    let failure = Failure::from(error);
    if named {
        return failure;
    }
    Failure::new(failure.code, format!("{origin}: {failure}"))
}

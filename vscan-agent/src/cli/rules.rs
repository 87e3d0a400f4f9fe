//! `vscan rules`: what the scanner makes of rules, without a gateway. Rules are compiled by the scanner's program.

mod trial;
mod update;

use super::args::{Output, RulesCommand};
use super::check::{Checked, Holding, Shares, Task, check_rules};
use super::failure::{EX_DATAERR, Failure};
use super::table::age;
use crate::config::Config;
use crate::observe::wire::printable;
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;

/// What `list` and `build` tell in JSON.
#[derive(Serialize)]
struct Told<'a> {
    rules: u64,
    version: &'a str,
    shares: &'a [Shares],
    hashes: u64,
    allowed: u64,
    skipped: &'a BTreeMap<String, u64>,
    /// Name and reason, where they are asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    skipped_names: Option<&'a [(String, String)]>,
    sources: &'a [Holding],
    /// When the youngest file was changed, in seconds since 1970.
    newest: Option<i64>,
    written_bytes: Option<u64>,
    warnings: usize,
}

pub(super) fn run(
    command: &RulesCommand,
    config: &Config,
    control: &dyn Fn() -> Result<PathBuf, Failure>,
    output: Output,
    out: &mut dyn Write,
) -> Result<u8, Failure> {
    let (rules, task) = match command {
        RulesCommand::Build { rules, to } => (rules, Task::Build(to)),
        RulesCommand::List { rules, .. } => (rules, Task::Check),
        RulesCommand::Hashes { lists, to } => (lists, Task::Hashes(to)),
        RulesCommand::Test { rules, corpus, slowest } => {
            return trial::run(config, rules, corpus, *slowest, output, out);
        }
        RulesCommand::Update(args) => {
            return update::run(args, config, control, output, out).map(|()| 0);
        }
    };
    let names = matches!(command, RulesCommand::List { skipped: true, .. });
    let written = match task {
        Task::Check | Task::Measure(_) => None,
        Task::Build(to) | Task::Hashes(to) => Some(to),
    };
    let rules: &[PathBuf] = if rules.is_empty() { &config.scan.rules } else { rules };
    let checked = check_rules(config, rules, task)?;
    refuse(&checked)?;
    if output == Output::Json {
        let told = Told {
            rules: checked.rules,
            version: &checked.version,
            shares: &checked.shares,
            hashes: checked.hashes,
            allowed: checked.allowed,
            skipped: &checked.skipped,
            skipped_names: names.then_some(&checked.skipped_names),
            sources: &checked.sources,
            newest: checked.newest,
            written_bytes: written.is_some().then_some(checked.bytes),
            warnings: checked.warnings.len(),
        };
        super::json(&told, out)?;
        return Ok(0);
    }
    if !matches!(task, Task::Hashes(_)) {
        writeln!(out, "{} rules and signatures, {}", checked.rules, checked.version)?;
    }
    if let Some(newest) = checked.newest {
        let seconds = jiff::Timestamp::now().as_second().saturating_sub(newest).max(0);
        #[expect(clippy::cast_precision_loss, reason = "seconds below 2^53")]
        writeln!(out, "  the youngest file is {} old", age(seconds as f64))?;
    }
    let width = checked.sources.iter().map(|s| s.count.to_string().len()).max().unwrap_or(0);
    for source in &checked.sources {
        let path = source.path.to_string_lossy();
        let skipped = match source.skipped {
            0 => String::new(),
            skipped => format!(", {skipped} more are not used"),
        };
        writeln!(
            out,
            "  {:width$}  {}  {}{skipped}",
            source.count,
            source.format,
            printable(&path)
        )?;
    }
    for shares in &checked.shares {
        writeln!(
            out,
            "  {} run where one of {} literals is seen, {} by what files begin with or how large they are, {} always; \
             in {} units",
            shares.by_literal, shares.literals, shares.by_header, shares.always, shares.units
        )?;
    }
    if checked.hashes > 0 {
        writeln!(out, "  {} hashes", checked.hashes)?;
    }
    if checked.allowed > 0 {
        writeln!(out, "  {} hashes and names are let pass", checked.allowed)?;
    }
    for (reason, count) in &checked.skipped {
        writeln!(out, "  {count} signatures of ClamAV are not used: {reason}")?;
    }
    if names {
        for (name, reason) in &checked.skipped_names {
            writeln!(out, "    {}: {reason}", printable(name))?;
        }
    }
    if !checked.warnings.is_empty() {
        writeln!(out, "{} warnings; `vscan check` shows them", checked.warnings.len())?;
    }
    if let Some(to) = written {
        writeln!(out, "{} is written, {} bytes", to.display(), checked.bytes)?;
    }
    Ok(0)
}

/// Rules that do not compile.
fn refuse(checked: &Checked) -> Result<(), Failure> {
    if checked.errors.is_empty() {
        return Ok(());
    }
    let lines: Vec<String> = checked.errors.iter().map(ToString::to_string).collect();
    Err(Failure::new(EX_DATAERR, lines.join("\n")))
}

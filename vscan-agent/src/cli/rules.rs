//! `vscan rules`: what the scanner makes of rules, without a gateway. Rules are compiled by the scanner's program.

use super::args::{Output, RulesCommand};
use super::check::{Checked, Shares, Task, check_rules};
use super::failure::{EX_DATAERR, Failure};
use crate::config::Config;
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
    written_bytes: Option<u64>,
    warnings: usize,
}

pub(super) fn run(
    command: &RulesCommand,
    config: &Config,
    output: Output,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let (rules, task) = match command {
        RulesCommand::Build { rules, to } => (rules, Task::Build(to)),
        RulesCommand::List { rules } => (rules, Task::Check),
        RulesCommand::Hashes { lists, to } => (lists, Task::Hashes(to)),
    };
    let written = match task {
        Task::Check => None,
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
            written_bytes: written.is_some().then_some(checked.bytes),
            warnings: checked.warnings.len(),
        };
        return Ok(super::json(&told, out)?);
    }
    if !matches!(task, Task::Hashes(_)) {
        writeln!(out, "{} rules and signatures, {}", checked.rules, checked.version)?;
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
    if !checked.warnings.is_empty() {
        writeln!(out, "{} warnings; `vscan check` shows them", checked.warnings.len())?;
    }
    if let Some(to) = written {
        writeln!(out, "{} is written, {} bytes", to.display(), checked.bytes)?;
    }
    Ok(())
}

/// Rules that do not compile.
fn refuse(checked: &Checked) -> Result<(), Failure> {
    if checked.errors.is_empty() {
        return Ok(());
    }
    let lines: Vec<String> = checked.errors.iter().map(ToString::to_string).collect();
    Err(Failure::new(EX_DATAERR, lines.join("\n")))
}

//! `vscan rules`: what the scanner makes of rules, without a gateway. Rules are compiled by the scanner's program.

use super::args::{Output, RulesCommand};
use super::check::{Checked, Shares, check_rules};
use super::failure::{EX_DATAERR, Failure};
use crate::config::Config;
use serde::Serialize;
use std::io::Write;
use std::path::PathBuf;

/// What `list` and `build` tell in JSON.
#[derive(Serialize)]
struct Told<'a> {
    rules: u64,
    version: &'a str,
    shares: &'a [Shares],
    bundle_bytes: Option<u64>,
    warnings: usize,
}

pub(super) fn run(
    command: &RulesCommand,
    config: &Config,
    output: Output,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let (rules, bundle) = match command {
        RulesCommand::Build { rules, to } => (rules, Some(to)),
        RulesCommand::List { rules } => (rules, None),
    };
    let rules: &[PathBuf] = if rules.is_empty() { &config.scan.rules } else { rules };
    let checked = check_rules(config, rules, bundle.map(PathBuf::as_path))?;
    refuse(&checked)?;
    if output == Output::Json {
        let told = Told {
            rules: checked.rules,
            version: &checked.version,
            shares: &checked.shares,
            bundle_bytes: bundle.is_some().then_some(checked.bytes),
            warnings: checked.warnings.len(),
        };
        return Ok(super::json(&told, out)?);
    }
    writeln!(out, "{} rules, {}", checked.rules, checked.version)?;
    for shares in &checked.shares {
        writeln!(
            out,
            "  {} run where one of {} literals is seen, {} by what files begin with or how large they are, {} always; \
             in {} units",
            shares.by_literal, shares.literals, shares.by_header, shares.always, shares.units
        )?;
    }
    if !checked.warnings.is_empty() {
        writeln!(out, "{} warnings; `vscan check` shows them", checked.warnings.len())?;
    }
    if let Some(bundle) = bundle {
        writeln!(out, "{} is written, {} bytes", bundle.display(), checked.bytes)?;
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

//! `vscan doctor` and `vscan cleanup`: the kernel's side, for people.

use super::args::Output;
use super::failure::{EX_OSERR, EX_TEMPFAIL, EX_UNAVAILABLE, Failure};
use super::table::{Colour, Screen};
use crate::config::{self, Config};
use crate::kernel::{self, probe};
use crate::mailbox::{secret, service};
use crate::observe::wire::printable;
use probe::{Check, Level};
use serde::Serialize;
use std::io::{self, Write};

#[derive(Serialize)]
struct Row<'a> {
    name: &'a str,
    level: &'static str,
    found: &'a str,
    advice: &'a str,
}

fn word(level: Level) -> &'static str {
    match level {
        Level::Good => "good",
        Level::Warning => "warning",
        Level::Bad => "bad",
    }
}

/// The exit code is 0 when nothing is bad.
pub(super) fn run(config: &Config, output: Output, out: &mut dyn Write) -> Result<(), Failure> {
    // Without a gateway the kernel has no part in it.
    let mut checks =
        if config.gateway.interfaces.is_empty() { Vec::new() } else { probe::run(config) };
    checks.extend(mailboxes(config)?);
    checks.extend(config.scan.clamd.as_ref().map(clamd));
    print(&checks, output, Screen::of_stdout(), out)?;
    if checks.iter().any(|c| c.level == Level::Bad) {
        return Err(Failure { code: EX_UNAVAILABLE, message: String::new() });
    }
    Ok(())
}

/// Whether the first account of each section can be reached and opened.
fn mailboxes(config: &Config) -> Result<Vec<Check>, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(EX_OSERR, error))?;
    let mut checks = Vec::new();
    for mailbox in &config.mailboxes {
        let (level, found, advice) = match runtime.block_on(service::probe(mailbox)) {
            Ok(found) => (Level::Good, found, String::new()),
            Err(error) => {
                let advice = format!("see [mailbox.{}] of the configuration", mailbox.name);
                (Level::Bad, error, advice)
            }
        };
        checks.push(Check { name: "mailbox", level, found, advice });
        for file in secret::files(mailbox) {
            if secret::exposed(&file).unwrap_or(false) {
                let found = format!("{} can be read by others than its owner", file.display());
                let advice = format!("chmod 600 {}", file.display());
                checks.push(Check { name: "mailbox", level: Level::Warning, found, advice });
            }
        }
    }
    Ok(checks)
}

/// Whether the clamd that is to be asked can be.
fn clamd(config: &config::Clamd) -> Check {
    match crate::clamd::version_now(config) {
        Ok(version) => Check {
            name: "clamd",
            level: Level::Good,
            found: format!("{version} at {}", config.address),
            advice: String::new(),
        },
        Err(error) => Check {
            name: "clamd",
            level: Level::Bad,
            found: format!("the one at {} {error}", config.address),
            advice: "without it objects are refused: start it, or correct scan.clamd.address"
                .to_owned(),
        },
    }
}

fn print(checks: &[Check], output: Output, screen: Screen, out: &mut dyn Write) -> io::Result<()> {
    if output == Output::Json {
        let rows: Vec<Row<'_>> = checks
            .iter()
            .map(|c| Row { name: c.name, level: word(c.level), found: &c.found, advice: &c.advice })
            .collect();
        return super::json(&rows, out);
    }
    let width = checks.iter().map(|c| c.name.len()).max().unwrap_or(0);
    for c in checks {
        let colour = match c.level {
            Level::Good => Colour::Green,
            Level::Warning => Colour::Yellow,
            Level::Bad => Colour::Red,
        };
        let level = colour.paint(&format!("{:7}", word(c.level)), screen);
        writeln!(out, "{level}  {:width$}  {}", c.name, indented(&c.found, 11 + width))?;
        if !c.advice.is_empty() {
            writeln!(out, "{:w$}{}", "", indented(&c.advice, 11 + width), w = 11 + width)?;
        }
    }
    Ok(())
}

/// Names of foreign chains and interfaces are somebody else's text; lines stay lines, below the first one.
fn indented(text: &str, by: usize) -> String {
    let lines: Vec<_> = text.trim_end().lines().map(printable).collect();
    lines.join(&format!("\n{:by$}", ""))
}

/// Removes what an agent that died left in the kernel.
pub(super) fn cleanup(config: &Config, output: Output, out: &mut dyn Write) -> Result<(), Failure> {
    let control = &config.paths.control;
    if std::os::unix::net::UnixStream::connect(control).is_ok() {
        return Err(Failure::new(
            EX_TEMPFAIL,
            format!(
                "an agent is running (it answers at {}); stop it first, it cleans up by itself",
                control.display()
            ),
        ));
    }
    let mut removed = kernel::cleanup(config).map_err(|e| Failure::new(e.exit_code(), e))?;
    match std::fs::remove_file(control) {
        Ok(()) => removed.push(format!("control socket {}", control.display())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(Failure::file(control, &e)),
    }
    if output == Output::Json {
        return Ok(super::json(&removed, out)?);
    }
    if removed.is_empty() {
        writeln!(out, "nothing of vscan is in the kernel")?;
    }
    for what in removed {
        writeln!(out, "removed {}", printable(&what))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_stands_below_what_was_found() {
        let checks = [
            Check {
                name: "kernel",
                level: Level::Good,
                found: "Linux 6.18".to_owned(),
                advice: String::new(),
            },
            Check {
                name: "firewall",
                level: Level::Bad,
                found: "ip filter \x1b[0mINPUT drops".to_owned(),
                advice: "add:\n  nft add rule".to_owned(),
            },
        ];
        let mut out = Vec::new();
        print(&checks, Output::Table, Screen { colour: false, width: None }, &mut out).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "\
good     kernel    Linux 6.18
bad      firewall  ip filter \\x1b[0mINPUT drops
                   add:
                     nft add rule
"
        );
    }
}

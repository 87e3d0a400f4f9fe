//! `vscan quarantine`: works on the directory, whether an agent runs or not.

use super::args::{Output, QuarantineCommand};
use super::failure::Failure;
use super::table::{Cell, Colour, Column, Screen, Table, bytes};
use crate::config::{self, verdict_str};
use crate::observe::wire::printable;
use crate::quarantine::{Entry, Store};
use std::io::{self, Write};
use std::path::Path;

pub(super) fn run(
    directory: &Path,
    command: &QuarantineCommand,
    output: Output,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    // not created here: a wrong path would look like an empty quarantine
    if let Err(e) = std::fs::read_dir(directory) {
        return Err(Failure::file(directory, &e));
    }
    // its limits are the agent's affair: nothing is put here, and nothing expires by looking at it
    let store = Store::open(directory, config::Quarantine::default())?;
    let screen = Screen::of_stdout();
    match command {
        QuarantineCommand::List => {
            let (entries, unreadable) = store.list()?;
            list(&entries, output, screen, out)?;
            if let Some(first) = unreadable.into_iter().next() {
                return Err(first.into());
            }
        }
        QuarantineCommand::Show { id } => show(&store.show(id)?, output, out)?,
        QuarantineCommand::Release { id, to } => {
            let release = store.release(id, to)?;
            if output == Output::Json {
                super::json(&release, out)?;
            } else if release.written {
                writeln!(out, "{id} is written to {}", to.display())?;
            } else {
                writeln!(out, "{id} is in {} already; nothing was written", to.display())?;
            }
        }
        QuarantineCommand::Delete { ids } => {
            let mut deleted = Vec::new();
            let mut failure = None;
            for id in ids {
                match store.delete(id) {
                    Ok(entry) => deleted.push(entry.id),
                    Err(e) => {
                        failure = Some(e);
                        break;
                    }
                }
            }
            if output == Output::Json {
                super::json(&deleted, out)?;
            } else {
                for id in &deleted {
                    writeln!(out, "{id} is deleted")?;
                }
            }
            if let Some(e) = failure {
                return Err(e.into());
            }
        }
    }
    Ok(())
}

const COLUMNS: &[Column] = &[
    Column { name: "ID", right: false, shrinks_to: None, least: 24, drops: 0 },
    Column { name: "PROTO", right: false, shrinks_to: None, least: 5, drops: 2 },
    Column { name: "CLIENT", right: false, shrinks_to: None, least: 0, drops: 0 },
    Column { name: "SERVER", right: false, shrinks_to: None, least: 0, drops: 0 },
    Column { name: "USER", right: false, shrinks_to: Some(12), least: 0, drops: 1 },
    Column { name: "NAME", right: false, shrinks_to: Some(16), least: 0, drops: 0 },
    Column { name: "SIZE", right: true, shrinks_to: None, least: 0, drops: 0 },
    Column { name: "RELEASED", right: false, shrinks_to: None, least: 0, drops: 3 },
    Column { name: "DETECTION", right: false, shrinks_to: Some(16), least: 0, drops: 0 },
];

fn list(entries: &[Entry], output: Output, screen: Screen, out: &mut dyn Write) -> io::Result<()> {
    match output {
        Output::Json => super::json(entries, out),
        Output::Compact => entries.iter().try_for_each(|e| {
            writeln!(
                out,
                "{} {} {} -> {} {} {} {}",
                e.id,
                e.protocol,
                e.client,
                e.server,
                printable(&about(e)),
                e.size,
                printable(e.detection.as_deref().unwrap_or("-"))
            )
        }),
        Output::Table => {
            let mut table = Table::new(COLUMNS);
            for e in entries {
                table.row(vec![
                    Cell::new(e.id.as_str()),
                    Cell::new(e.protocol.as_str()),
                    Cell::new(&e.client.ip().to_string()),
                    Cell::new(&e.server.to_string()),
                    Cell::new(e.user.as_deref().unwrap_or_default()),
                    Cell::new(&about(e)),
                    Cell::new(&bytes(e.size)),
                    Cell::new(if e.released.is_empty() { "" } else { "yes" }),
                    Cell::new(e.detection.as_deref().unwrap_or_default()).colour(Colour::Red),
                ]);
            }
            table.write(out, screen)
        }
    }
}

/// What the object is known by: a file by its name, a message by its recipients.
fn about(e: &Entry) -> String {
    if e.recipients.is_empty() { e.name.clone() } else { format!("to {}", e.recipients.join(", ")) }
}

fn show(e: &Entry, output: Output, out: &mut dyn Write) -> io::Result<()> {
    if output == Output::Json {
        return super::json(e, out);
    }
    let recipients = e.recipients.join(", ");
    let mut lines = vec![
        ("id", e.id.to_string()),
        ("time", format!("{:.3}", e.time)),
        ("flow", e.flow_id.to_string()),
        ("protocol", format!("{}, {}", e.protocol, e.direction)),
        ("client", e.client.to_string()),
        ("server", e.server.to_string()),
        ("user", e.user.clone().unwrap_or_default()),
        ("recipients", recipients),
        ("name", e.name.clone()),
        ("type", format!("{} ({})", e.kind, e.r#type)),
        ("size", format!("{} bytes", e.size)),
        ("sha256", e.sha256.clone()),
        ("blake3", e.blake3.clone()),
        ("verdict", verdict_str(e.verdict).to_owned()),
        ("detection", e.detection.clone().unwrap_or_default()),
    ];
    for finding in &e.findings {
        let place = finding.path.join(" > ");
        lines.push(("finding", format!("{} ({}) {place}", finding.name, finding.engine)));
    }
    lines.push(("rules", e.rules.clone()));
    for r in &e.released {
        lines.push(("released", format!("{:.3} to {} by {}", r.time, r.to, r.by)));
    }
    for (name, value) in lines {
        if !value.is_empty() {
            writeln!(out, "{name:>10}  {}", printable(value.trim_end()))?;
        }
    }
    Ok(())
}

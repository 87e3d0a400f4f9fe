//! `vscan flows`: one record, four ways to print it.

use super::args::{FlowsArgs, Output};
use super::failure::{EX_UNAVAILABLE, Failure};
use super::table::{Cell, Colour, Column, Screen, Table, age, bytes};
use crate::config::verdict_str;
use crate::observe::control::{Answer, Request};
use crate::observe::wire::printable;
use crate::observe::{Change, FlowChange, FlowRecord, TransferRecord};
use jiff::{SignedDuration, Timestamp};
use std::io::Write;
use std::path::Path;
use vscan_scan::report::Verdict;

/// Closed flows that are asked for: all that the gateway keeps.
const CLOSED: usize = usize::MAX;

pub(super) fn run(
    args: &FlowsArgs,
    control: &Path,
    output: Output,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let mut answers =
        super::client::ask(control, &Request::Flows { closed: CLOSED, follow: args.follow })?;
    let wanted = |flow: &FlowRecord| {
        args.filters.matches(flow) && args.since.is_none_or(|since| active_at(flow) >= since.0)
    };
    let mut flows = Vec::new();
    // following, the listing ends at the first change; what is there already is shown at once
    let mut follow = Follow::new(output);
    for answer in &mut answers {
        match answer? {
            Answer::Flow(flow) if args.follow && args.last.is_none() && flow.ended.is_some() => {}
            Answer::Flow(flow) if wanted(&flow) => flows.push(flow),
            Answer::Flow(_) => {}
            Answer::Listed if args.follow => {
                follow.begin(&last(std::mem::take(&mut flows), args.last), out)?;
            }
            Answer::Change(change) => {
                if wanted(&change.flow) {
                    follow.change(&change, out)?;
                }
            }
            Answer::Missed { changes } => follow.missed(changes, out)?,
            Answer::Done if args.follow => {
                return Err(Failure::new(EX_UNAVAILABLE, "the gateway has ended"));
            }
            Answer::Done => {
                return Ok(listing(&last(flows, args.last), output, Screen::of_stdout(), out)?);
            }
            Answer::Listed
            | Answer::Status(_)
            | Answer::Sender(_)
            | Answer::Notice(_)
            | Answer::Mailbox(_)
            | Answer::Looked { .. } => {}
            Answer::Error { error } => return Err(Failure::new(EX_UNAVAILABLE, error)),
        }
    }
    Err(Failure::new(EX_UNAVAILABLE, "the gateway ended before its answer did"))
}

/// When a flow was last known to be active.
fn active_at(flow: &FlowRecord) -> Timestamp {
    flow.ended.unwrap_or_else(|| {
        SignedDuration::try_from_secs_f64(flow.age)
            .ok()
            .and_then(|age| flow.started.checked_add(age).ok())
            .unwrap_or(flow.started)
    })
}

fn last(mut flows: Vec<FlowRecord>, last: Option<usize>) -> Vec<FlowRecord> {
    if let Some(n) = last {
        flows.drain(..flows.len().saturating_sub(n));
    }
    flows
}

const COLUMNS: &[Column] = &[
    Column { name: "ID", right: false, shrinks_to: None, least: 12, drops: 0 },
    Column { name: "AGE", right: true, shrinks_to: None, least: 6, drops: 4 },
    Column { name: "PROTO", right: false, shrinks_to: None, least: 5, drops: 3 },
    Column { name: "STATE", right: false, shrinks_to: None, least: 8, drops: 2 },
    Column { name: "CLIENT", right: false, shrinks_to: None, least: 15, drops: 0 },
    Column { name: "SERVER", right: false, shrinks_to: None, least: 15, drops: 0 },
    Column { name: "USER", right: false, shrinks_to: Some(12), least: 9, drops: 1 },
    Column { name: "OBJECT", right: false, shrinks_to: Some(16), least: 16, drops: 0 },
    Column { name: "COMMAND", right: false, shrinks_to: None, least: 4, drops: 5 },
    Column { name: "MOVED", right: true, shrinks_to: None, least: 5, drops: 6 },
    Column { name: "RATE", right: true, shrinks_to: None, least: 6, drops: 7 },
    Column { name: "BYTES↑", right: true, shrinks_to: None, least: 6, drops: 9 },
    Column { name: "BYTES↓", right: true, shrinks_to: None, least: 6, drops: 8 },
    Column { name: "VERDICT", right: false, shrinks_to: Some(14), least: 14, drops: 0 },
];

fn row(flow: &FlowRecord) -> Vec<Cell> {
    let closed = flow.ended.is_some();
    let faded = |cell: Cell| if closed { cell.colour(Colour::Dim) } else { cell };
    let (verdict, colour) = verdict(flow);
    vec![
        faded(Cell::new(&flow.id.map(|id| id.to_string()).unwrap_or_default())),
        faded(Cell::new(&age(flow.age))),
        faded(Cell::new(flow.protocol.as_str())),
        faded(Cell::new(&flow.state)),
        faded(Cell::new(&flow.client.to_string())),
        faded(Cell::new(&flow.server.to_string())),
        faded(Cell::new(flow.user.as_deref().unwrap_or_default())),
        faded(Cell::new(flow.object.as_deref().unwrap_or_default())),
        faded(Cell::new(flow.command.as_deref().unwrap_or_default())),
        faded(Cell::new(&flow.transfer.map(|t| bytes(t.bytes)).unwrap_or_default())),
        faded(Cell::new(&flow.transfer.map(rate).unwrap_or_default())),
        faded(Cell::new(&bytes(flow.bytes_from_client))),
        faded(Cell::new(&bytes(flow.bytes_from_server))),
        Cell::new(&verdict).colour(colour),
    ]
}

/// `3.4M/s`
fn rate(transfer: TransferRecord) -> String {
    format!("{}/s", bytes(transfer.rate as u64))
}

/// The verdict in words, and its colour.
fn verdict(flow: &FlowRecord) -> (String, Colour) {
    let (word, colour) = match (flow.verdict, &flow.uninspected) {
        (Some(verdict), _) => {
            let colour = match verdict {
                Verdict::Clean => Colour::Green,
                Verdict::Infected => Colour::Red,
                Verdict::Unscannable => Colour::Yellow,
                Verdict::Error => Colour::Magenta,
            };
            (verdict_str(verdict).to_owned(), colour)
        }
        (None, Some(reason)) => return (format!("uninspected: {reason}"), Colour::Yellow),
        (None, None) => return (String::new(), Colour::Dim),
    };
    match &flow.detection {
        Some(detection) => (format!("{word} {detection}"), colour),
        None => (word, colour),
    }
}

fn listing(
    flows: &[FlowRecord],
    output: Output,
    screen: Screen,
    out: &mut dyn Write,
) -> std::io::Result<()> {
    match output {
        Output::Json => super::json(flows, out),
        Output::Compact => {
            flows.iter().try_for_each(|flow| writeln!(out, "{}", compact(flow, screen)))
        }
        Output::Table => {
            let mut table = Table::new(COLUMNS);
            flows.iter().for_each(|flow| table.row(row(flow)));
            table.write(out, screen)
        }
    }
}

/// `TIME ID ftp CLIENT -> SERVER state user x command z object y moved 5 rate 9 up 1 down 2 infected NAME`
fn compact(flow: &FlowRecord, screen: Screen) -> String {
    use std::fmt::Write as _;
    let time = flow.ended.unwrap_or(flow.started);
    let id = flow.id.map_or_else(|| "-".to_owned(), |id| id.to_string());
    let mut line = format!(
        "{time:.3} {id} {} {} -> {} {}",
        flow.protocol,
        flow.client,
        flow.server,
        printable(&flow.state)
    );
    for (name, value) in
        [("user", &flow.user), ("command", &flow.command), ("object", &flow.object)]
    {
        if let Some(value) = value {
            let _ = write!(line, " {name} {}", printable(value));
        }
    }
    if let Some(transfer) = flow.transfer {
        let _ = write!(line, " moved {} rate {:.0}", transfer.bytes, transfer.rate);
    }
    let _ = write!(line, " up {} down {}", flow.bytes_from_client, flow.bytes_from_server);
    let (verdict, colour) = verdict(flow);
    if !verdict.is_empty() {
        let _ = write!(line, " {}", colour.paint(&printable(&verdict), screen));
    }
    line
}

/// Prints changes as they come.
struct Follow {
    output: Output,
    screen: Screen,
    table: Table,
    widths: Vec<usize>,
}

impl Follow {
    fn new(output: Output) -> Self {
        Self { output, screen: Screen::of_stdout(), table: Table::new(COLUMNS), widths: Vec::new() }
    }

    fn begin(&mut self, flows: &[FlowRecord], out: &mut dyn Write) -> std::io::Result<()> {
        match self.output {
            Output::Json => {
                for flow in flows {
                    serde_json::to_writer(&mut *out, flow)?;
                    writeln!(out)?;
                }
            }
            Output::Compact => {
                for flow in flows {
                    writeln!(out, "{}", compact(flow, self.screen))?;
                }
            }
            Output::Table => {
                for flow in flows {
                    self.table.row(row(flow));
                }
                // later rows keep these widths
                self.widths = self.table.widths_to_fill(self.screen);
                self.table.write_with(out, &self.widths, self.screen)?;
            }
        }
        out.flush()
    }

    fn change(&mut self, change: &FlowChange, out: &mut dyn Write) -> std::io::Result<()> {
        match self.output {
            Output::Json => {
                serde_json::to_writer(&mut *out, change)?;
                writeln!(out)?;
            }
            Output::Compact => {
                writeln!(out, "{} {}", word(change.change), compact(&change.flow, self.screen))?;
            }
            Output::Table => {
                self.table.line(out, &row(&change.flow), &self.widths, self.screen)?;
            }
        }
        out.flush()
    }

    fn missed(&self, changes: u64, out: &mut dyn Write) -> std::io::Result<()> {
        if self.output == Output::Json {
            serde_json::to_writer(&mut *out, &Answer::Missed { changes })?;
            writeln!(out)?;
        } else {
            let text = format!("... {changes} changes are missing here: this reader is too slow");
            writeln!(out, "{}", Colour::Yellow.paint(&text, self.screen))?;
        }
        out.flush()
    }
}

fn word(change: Change) -> &'static str {
    match change {
        Change::Opened => "opened",
        Change::Judged => "judged",
        Change::Closed => "closed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Direction, Protocol};

    fn flow() -> FlowRecord {
        FlowRecord {
            id: Some("89abc0000001".parse().unwrap()),
            protocol: Protocol::Ftp,
            direction: Direction::Outbound,
            state: "transfer".to_owned(),
            client: "10.1.0.2:45678".parse().unwrap(),
            server: "192.0.2.1:21".parse().unwrap(),
            real_server: "192.0.2.1:21".parse().unwrap(),
            command: Some("RETR".to_owned()),
            transfer: Some(TransferRecord { bytes: 120_000, seconds: 2.0, rate: 60_000.0 }),
            user: Some("anonymous".to_owned()),
            object: Some("/pub/\u{202e}gpj.exe".to_owned()),
            objects: 1,
            bytes_from_client: 300,
            bytes_from_server: 123_456,
            verdict: Some(Verdict::Infected),
            detection: Some("EICAR_Test_File".to_owned()),
            uninspected: None,
            tls: None,
            started: "2026-11-22T02:00:00Z".parse().unwrap(),
            ended: None,
            age: 12.3,
        }
    }

    fn printed(flows: &[FlowRecord], output: Output) -> String {
        let mut out = Vec::new();
        listing(flows, output, Screen { colour: false, width: None }, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_table_lines_up_and_is_harmless() {
        let passed = FlowRecord {
            id: None,
            protocol: Protocol::Smtp,
            state: "passing".to_owned(),
            command: None,
            transfer: None,
            user: None,
            object: None,
            verdict: None,
            detection: None,
            uninspected: Some("exempt".to_owned()),
            ..flow()
        };
        assert_eq!(
            printed(&[flow(), passed], Output::Table),
            "\
ID               AGE  PROTO  STATE     CLIENT           SERVER           USER       OBJECT                COMMAND  MOVED    RATE  BYTES↑  BYTES↓  VERDICT
89abc0000001     12s  ftp    transfer  10.1.0.2:45678   192.0.2.1:21     anonymous  /pub/\\u{202e}gpj.exe  RETR      117K   59K/s     300    121K  infected EICAR_Test_File
-                12s  smtp   passing   10.1.0.2:45678   192.0.2.1:21     -          -                     -            -       -     300    121K  uninspected: exempt
"
        );
    }

    #[test]
    fn compact_has_everything_in_one_line() {
        assert_eq!(
            printed(&[flow()], Output::Compact),
            "2026-11-22T02:00:00.000Z 89abc0000001 ftp 10.1.0.2:45678 -> 192.0.2.1:21 transfer user anonymous \
             command RETR object /pub/\\u{202e}gpj.exe moved 120000 rate 60000 up 300 down 123456 infected EICAR_Test_File\n"
        );
    }

    #[test]
    fn json_is_one_array_that_reads_back() {
        let text = printed(&[flow()], Output::Json);
        assert_eq!(serde_json::from_str::<Vec<FlowRecord>>(&text).unwrap(), [flow()]);
        assert!(text.contains("\"verdict\": \"infected\""), "{text}");
    }
}

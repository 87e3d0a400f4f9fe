//! `vscan flows --top-senders`: what hosts inside send by mail.

use super::args::Output;
use super::failure::{EX_UNAVAILABLE, Failure};
use super::table::{Cell, Colour, Column, Screen, Table, age};
use crate::observe::control::{Answer, Request};
use crate::outbound::{Numbers, Sender};
use std::io::{self, Write};
use std::path::Path;

pub(super) fn run(
    first: Option<usize>,
    control: &Path,
    output: Output,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let mut senders = Vec::new();
    for answer in super::client::ask(control, &Request::Senders)? {
        match answer? {
            Answer::Sender(sender) => senders.push(sender),
            Answer::Done => {
                senders.truncate(first.unwrap_or(usize::MAX));
                return Ok(listing(&senders, output, Screen::of_stdout(), out)?);
            }
            Answer::Error { error } => return Err(Failure::new(EX_UNAVAILABLE, error)),
            Answer::Status(_)
            | Answer::Flow(_)
            | Answer::Notice(_)
            | Answer::Mailbox(_)
            | Answer::Looked { .. }
            | Answer::Listed
            | Answer::Change(_)
            | Answer::Missed { .. } => {}
        }
    }
    Err(Failure::new(EX_UNAVAILABLE, "the gateway ended before its answer did"))
}

const COLUMNS: &[Column] = &[
    Column { name: "HOST", right: false, shrinks_to: None, least: 15, drops: 0 },
    Column { name: "STATE", right: false, shrinks_to: None, least: 8, drops: 0 },
    Column { name: "CONN/MIN", right: true, shrinks_to: None, least: 8, drops: 0 },
    Column { name: "MSG/MIN", right: true, shrinks_to: None, least: 7, drops: 0 },
    Column { name: "RCPT/MIN", right: true, shrinks_to: None, least: 8, drops: 0 },
    Column { name: "INF/MIN", right: true, shrinks_to: None, least: 7, drops: 0 },
    Column { name: "CONNS", right: true, shrinks_to: None, least: 5, drops: 3 },
    Column { name: "MSGS", right: true, shrinks_to: None, least: 4, drops: 2 },
    Column { name: "RCPTS", right: true, shrinks_to: None, least: 5, drops: 2 },
    Column { name: "INFECTED", right: true, shrinks_to: None, least: 8, drops: 1 },
    Column { name: "IDLE", right: true, shrinks_to: None, least: 6, drops: 4 },
];

fn listing(
    senders: &[Sender],
    output: Output,
    screen: Screen,
    out: &mut dyn Write,
) -> io::Result<()> {
    match output {
        Output::Json => super::json(senders, out),
        Output::Compact => senders.iter().try_for_each(|s| {
            let Numbers { connections, messages, recipients, infected } = s.minute;
            writeln!(
                out,
                "{} {} connections {connections} messages {messages} recipients {recipients} infected {infected}",
                s.host,
                state(s)
            )
        }),
        Output::Table => {
            let mut table = Table::new(COLUMNS);
            senders.iter().for_each(|sender| table.row(row(sender)));
            table.write(out, screen)
        }
    }
}

/// `blocked 9m30s (messages)`
fn state(sender: &Sender) -> String {
    match (sender.blocked_for, sender.over) {
        (Some(seconds), Some(what)) => {
            format!("{} {} ({})", sender.state, age(seconds), what.as_str())
        }
        _ => sender.state.clone(),
    }
}

fn row(sender: &Sender) -> Vec<Cell> {
    let state = Cell::new(&state(sender));
    let (minute, total) = (sender.minute, sender.total);
    let number = |n: u64| Cell::new(&n.to_string());
    vec![
        Cell::new(&sender.host.to_string()),
        if sender.over.is_some() { state.colour(Colour::Red) } else { state },
        number(minute.connections),
        number(minute.messages),
        number(minute.recipients),
        number(minute.infected),
        number(total.connections),
        number(total.messages),
        number(total.recipients),
        number(total.infected),
        Cell::new(&age(sender.idle)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbound::What;

    #[test]
    fn a_blocked_host_says_why_and_for_how_long() {
        let sender = Sender {
            host: "10.0.0.7".parse().unwrap(),
            state: "blocked".to_owned(),
            over: Some(What::Messages),
            blocked_for: Some(570.0),
            minute: Numbers { connections: 3, messages: 11, recipients: 40, infected: 0 },
            total: Numbers { connections: 9, messages: 30, recipients: 90, infected: 1 },
            idle: 4.0,
        };
        let quiet =
            Sender { over: None, blocked_for: None, state: "quiet".to_owned(), ..sender.clone() };
        let mut out = Vec::new();
        let screen = Screen { colour: false, width: None };
        listing(&[sender.clone(), quiet], Output::Table, screen, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        let lines: Vec<Vec<&str>> = text.lines().map(|l| l.split_whitespace().collect()).collect();
        assert_eq!(
            lines[1],
            [
                "10.0.0.7",
                "blocked",
                "9m30s",
                "(messages)",
                "3",
                "11",
                "40",
                "0",
                "9",
                "30",
                "90",
                "1",
                "4.0s"
            ]
        );
        assert_eq!(lines[2][1..3], ["quiet", "3"]);
        let mut out = Vec::new();
        listing(&[sender], Output::Compact, screen, &mut out).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "10.0.0.7 blocked 9m30s (messages) connections 3 messages 11 recipients 40 infected 0\n"
        );
    }
}

//! `vscan notices`: asks the running gateway, or opens the queue while none runs.

use super::args::{NoticesCommand, Output};
use super::failure::{EX_UNAVAILABLE, Failure};
use super::table::{Cell, Colour, Column, Screen, Table, age};
use crate::notify::{Notice, Queue, State};
use crate::observe::control::{self, Answer, Request};
use crate::observe::wire::printable;
use jiff::Timestamp;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

pub(super) fn run(
    control: &Path,
    queue: &dyn Fn() -> Result<PathBuf, Failure>,
    command: &NoticesCommand,
    output: Output,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let source = match control::ask(control, &Request::Status) {
        Ok(_) => Source::Gateway(control),
        Err(_) => Source::File(Box::new(open(&queue()?)?)),
    };
    let screen = Screen::of_stdout();
    match command {
        NoticesCommand::List => list(&source.all()?, output, screen, out)?,
        NoticesCommand::Show { id } => {
            let found = source.all()?.into_iter().find(|notice| notice.id == *id);
            let missing = || Failure::new(EX_UNAVAILABLE, format!("there is no notice {id}"));
            show(&found.ok_or_else(missing)?, output, out)?;
        }
        NoticesCommand::Retry { ids } => {
            let tried = source.retry(ids)?;
            if output == Output::Json {
                super::json(&tried, out)?;
            } else {
                for id in tried {
                    writeln!(out, "{id} is tried again")?;
                }
            }
        }
        NoticesCommand::Delete { ids } => {
            source.delete(ids)?;
            if output == Output::Json {
                super::json(ids, out)?;
            } else {
                for id in ids {
                    writeln!(out, "{id} is deleted")?;
                }
            }
        }
    }
    Ok(())
}

/// Where the notices are.
enum Source<'a> {
    Gateway(&'a Path),
    File(Box<Queue>),
}

impl Source<'_> {
    fn all(&self) -> Result<Vec<Notice>, Failure> {
        match self {
            Self::Gateway(control) => ask(control, &Request::Notices),
            Self::File(queue) => queue.list().map_err(failure),
        }
    }

    fn retry(&self, ids: &[u64]) -> Result<Vec<u64>, Failure> {
        match self {
            Self::Gateway(control) => {
                let notices = ask(control, &Request::RetryNotices { ids: ids.to_vec() })?;
                Ok(notices.into_iter().map(|notice| notice.id).collect())
            }
            Self::File(queue) => queue.retry(ids, Timestamp::now()).map_err(failure),
        }
    }

    fn delete(&self, ids: &[u64]) -> Result<(), Failure> {
        match self {
            Self::Gateway(control) => {
                ask(control, &Request::DeleteNotices { ids: ids.to_vec() }).map(drop)
            }
            Self::File(queue) => queue.delete(ids).map_err(failure),
        }
    }
}

/// Not created here: a wrong path would look like an empty queue.
fn open(path: &Path) -> Result<Queue, Failure> {
    std::fs::File::open(path).map_err(|error| Failure::file(path, &error))?;
    Queue::open(path).map_err(failure)
}

fn ask(control: &Path, request: &Request) -> Result<Vec<Notice>, Failure> {
    let mut notices = Vec::new();
    for answer in super::client::ask(control, request)? {
        match answer? {
            Answer::Notice(notice) => notices.push(*notice),
            Answer::Error { error } => return Err(Failure::new(EX_UNAVAILABLE, error)),
            Answer::Status(_)
            | Answer::Sender(_)
            | Answer::Flow(_)
            | Answer::Mailbox(_)
            | Answer::Looked { .. }
            | Answer::Listed
            | Answer::Change(_)
            | Answer::Missed { .. }
            | Answer::Done => {}
        }
    }
    Ok(notices)
}

fn failure(error: crate::notify::QueueError) -> Failure {
    Failure::new(EX_UNAVAILABLE, error.to_string())
}

const COLUMNS: &[Column] = &[
    Column { name: "ID", right: true, shrinks_to: None, least: 3, drops: 0 },
    Column { name: "TO", right: false, shrinks_to: Some(16), least: 0, drops: 0 },
    Column { name: "ROLE", right: false, shrinks_to: None, least: 0, drops: 2 },
    Column { name: "AGE", right: true, shrinks_to: None, least: 0, drops: 0 },
    Column { name: "STATE", right: false, shrinks_to: None, least: 0, drops: 0 },
    Column { name: "TRIES", right: true, shrinks_to: None, least: 0, drops: 3 },
    Column { name: "NEXT", right: true, shrinks_to: None, least: 0, drops: 1 },
    Column { name: "DETECTION", right: false, shrinks_to: Some(12), least: 0, drops: 4 },
    Column { name: "ERROR", right: false, shrinks_to: Some(16), least: 0, drops: 0 },
];

fn list(notices: &[Notice], output: Output, screen: Screen, out: &mut dyn Write) -> io::Result<()> {
    let now = Timestamp::now();
    match output {
        Output::Json => super::json(notices, out),
        Output::Compact => notices.iter().try_for_each(|n| {
            writeln!(
                out,
                "{} {} {} {:.0} {} {} tries, {}: {}",
                n.id,
                n.to,
                n.role,
                n.created,
                word(n.state),
                n.attempts,
                printable(&n.detection),
                printable(n.error.as_deref().unwrap_or("-"))
            )
        }),
        Output::Table => {
            let mut table = Table::new(COLUMNS);
            for n in notices {
                let state = Cell::new(word(n.state));
                let (state, next) = match n.state {
                    State::Waiting => (state, age(left(n.next, now))),
                    State::Dead => (state.colour(Colour::Red), String::new()),
                };
                table.row(vec![
                    Cell::new(&n.id.to_string()),
                    Cell::new(&n.to),
                    Cell::new(&n.role),
                    Cell::new(&age(left(now, n.created))),
                    state,
                    Cell::new(&n.attempts.to_string()),
                    Cell::new(&next),
                    Cell::new(&n.detection),
                    Cell::new(n.error.as_deref().unwrap_or_default()),
                ]);
            }
            table.write(out, screen)
        }
    }
}

fn word(state: State) -> &'static str {
    match state {
        State::Waiting => "waiting",
        State::Dead => "given up",
    }
}

/// Seconds from one time to a later one.
fn left(later: Timestamp, earlier: Timestamp) -> f64 {
    later.duration_since(earlier).as_secs_f64().max(0.0)
}

fn show(n: &Notice, output: Output, out: &mut dyn Write) -> io::Result<()> {
    if output == Output::Json {
        return super::json(n, out);
    }
    let lines = [
        ("id", n.id.to_string()),
        ("created", format!("{:.3}", n.created)),
        ("to", format!("{} ({})", n.to, n.role)),
        ("flow", n.flow_id.clone()),
        ("detection", n.detection.clone()),
        ("attached", n.attach.as_ref().map(ToString::to_string).unwrap_or_default()),
        ("state", format!("{}, {} tries", word(n.state), n.attempts)),
        ("next", if n.state == State::Waiting { format!("{:.3}", n.next) } else { String::new() }),
        ("error", n.error.clone().unwrap_or_default()),
        ("subject", n.subject.clone()),
    ];
    for (name, value) in lines {
        if !value.is_empty() {
            writeln!(out, "{name:>10}  {}", printable(&value))?;
        }
    }
    writeln!(out)?;
    n.body.lines().try_for_each(|line| writeln!(out, "{}", printable(line)))
}

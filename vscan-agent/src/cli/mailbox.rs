//! `vscan mailbox status` and `scan`: what the running agent knows of mailboxes, and what it does when asked.

use super::args::{MailboxCommand, Output};
use super::failure::{EX_UNAVAILABLE, EX_USAGE, Failure};
use super::table::{Cell, Colour, Column, Screen, Table, age};
use crate::mailbox::orders::{Looked, Progress};
use crate::mailbox::status::{AccountRecord, State};
use crate::observe::control::{Answer, Request};
use crate::observe::wire::printable;
use jiff::Timestamp;
use serde::Serialize;
use std::io::{self, Write};
use std::path::Path;

/// The exit code: 0, or with `scan` 1 (infected) or 2 (something could not be scanned).
pub(super) fn run(
    command: &MailboxCommand,
    control: &Path,
    output: Output,
    out: &mut dyn Write,
) -> Result<u8, Failure> {
    match command {
        MailboxCommand::Run => {
            Err(Failure::new(EX_USAGE, "`vscan mailbox run` is a program of its own"))
        }
        MailboxCommand::Status { name, folders } => {
            let mut accounts = records(control)?;
            if let Some(part) = name {
                accounts.retain(|account| account.account.contains(part.as_str()));
            }
            list(&accounts, *folders, output, Screen::of_stdout(), out)?;
            Ok(0)
        }
        MailboxCommand::Scan { what, dry_run } => {
            let request = Request::ScanMailbox { what: what.clone(), dry_run: *dry_run };
            let mut scan = Scan::new(*dry_run, output, Screen::of_stdout(), out);
            for answer in super::client::ask(control, &request)? {
                match answer? {
                    Answer::Looked { progress } => scan.show(progress)?,
                    Answer::Error { error } => return Err(Failure::new(EX_UNAVAILABLE, error)),
                    Answer::Done => return scan.end(),
                    Answer::Status(_)
                    | Answer::Flow(_)
                    | Answer::Sender(_)
                    | Answer::Notice(_)
                    | Answer::Mailbox(_)
                    | Answer::Listed
                    | Answer::Change(_)
                    | Answer::Missed { .. } => {}
                }
            }
            Err(Failure::new(EX_UNAVAILABLE, "the agent ended before the scan did"))
        }
    }
}

fn records(control: &Path) -> Result<Vec<AccountRecord>, Failure> {
    let mut accounts = Vec::new();
    for answer in super::client::ask(control, &Request::Mailboxes)? {
        match answer? {
            Answer::Mailbox(account) => accounts.push(*account),
            Answer::Done => return Ok(accounts),
            Answer::Error { error } => return Err(Failure::new(EX_UNAVAILABLE, error)),
            Answer::Status(_)
            | Answer::Flow(_)
            | Answer::Sender(_)
            | Answer::Notice(_)
            | Answer::Looked { .. }
            | Answer::Listed
            | Answer::Change(_)
            | Answer::Missed { .. } => {}
        }
    }
    Err(Failure::new(EX_UNAVAILABLE, "the agent ended before its answer did"))
}

const COLUMNS: &[Column] = &[
    Column { name: "ACCOUNT", right: false, shrinks_to: Some(16), least: 0, drops: 0 },
    Column { name: "STATE", right: false, shrinks_to: None, least: 0, drops: 0 },
    Column { name: "LOOKED", right: true, shrinks_to: None, least: 0, drops: 0 },
    Column { name: "MESSAGES", right: true, shrinks_to: None, least: 0, drops: 3 },
    Column { name: "SCANNED", right: true, shrinks_to: None, least: 0, drops: 2 },
    Column { name: "KNOWN", right: true, shrinks_to: None, least: 0, drops: 4 },
    Column { name: "BACKLOG", right: true, shrinks_to: None, least: 0, drops: 1 },
    Column { name: "INFECTED", right: true, shrinks_to: None, least: 0, drops: 0 },
    Column { name: "TREATED", right: true, shrinks_to: None, least: 0, drops: 1 },
    Column { name: "ERROR", right: false, shrinks_to: Some(16), least: 0, drops: 0 },
];

fn list(
    accounts: &[AccountRecord],
    folders: bool,
    output: Output,
    screen: Screen,
    out: &mut dyn Write,
) -> io::Result<()> {
    match output {
        Output::Json => super::json(accounts, out),
        Output::Compact => accounts.iter().try_for_each(|account| compact(account, out)),
        Output::Table => {
            let now = Timestamp::now();
            let mut table = Table::new(COLUMNS);
            for account in accounts {
                table.row(row(account, now));
                if folders {
                    account.folders.iter().for_each(|folder| {
                        let count = |n: u32| Cell::new(&n.to_string());
                        let none = || Cell::new("");
                        table.row(vec![
                            Cell::new(&format!("  {}", folder.folder)),
                            none(),
                            Cell::new(&since(Some(folder.looked), now)),
                            count(folder.messages),
                            none(),
                            Cell::new(&format!("to {}", folder.position)),
                            count(folder.backlog),
                            none(),
                            none(),
                            Cell::new(folder.error.as_deref().unwrap_or_default())
                                .colour(Colour::Red),
                        ]);
                    });
                }
            }
            table.write(out, screen)
        }
    }
}

fn compact(account: &AccountRecord, out: &mut dyn Write) -> io::Result<()> {
    let looked = account.looked.map_or_else(|| "never".to_owned(), |looked| format!("{looked:.0}"));
    write!(
        out,
        "{} {} looked {looked} scanned {} settled {} known {} backlog {} infected {} unscannable {} treated {} untreated {}",
        printable(&account.account),
        account.state.as_str(),
        account.scanned,
        account.settled,
        account.remembered,
        backlog(account),
        account.infected,
        account.unscannable,
        account.treated,
        account.untreated
    )?;
    if let Some((when, error)) = &account.error {
        write!(out, " error {when:.0} {}", printable(error))?;
    }
    writeln!(out)
}

fn backlog(account: &AccountRecord) -> u64 {
    account.folders.iter().map(|folder| u64::from(folder.backlog)).sum()
}

fn since(then: Option<Timestamp>, now: Timestamp) -> String {
    then.map_or_else(String::new, |then| age(now.duration_since(then).as_secs_f64().max(0.0)))
}

fn row(account: &AccountRecord, now: Timestamp) -> Vec<Cell> {
    let number = |n: u64| Cell::new(&n.to_string());
    let alarming = |n: u64| {
        if n > 0 { number(n).colour(Colour::Red) } else { number(n) }
    };
    let state = Cell::new(account.state.as_str());
    let failed = account.state == State::Failed;
    let error = account
        .error
        .as_ref()
        .map(|(when, error)| format!("{} ago: {error}", since(Some(*when), now)));
    let messages = account.folders.iter().map(|folder| u64::from(folder.messages)).sum();
    vec![
        Cell::new(&account.account),
        if failed { state.colour(Colour::Red) } else { state },
        Cell::new(&since(account.looked, now)),
        number(messages),
        number(account.scanned),
        number(account.remembered),
        number(backlog(account)),
        alarming(account.infected),
        number(account.treated),
        Cell::new(error.as_deref().unwrap_or_default()).colour(if failed {
            Colour::Red
        } else {
            Colour::Plain
        }),
    ]
}

/// A scan, as it is told of.
struct Scan<'a> {
    dry_run: bool,
    output: Output,
    screen: Screen,
    out: &'a mut dyn Write,
    all: Vec<Progress>,
    infected: bool,
    unsure: bool,
}

impl<'a> Scan<'a> {
    fn new(dry_run: bool, output: Output, screen: Screen, out: &'a mut dyn Write) -> Self {
        Self { dry_run, output, screen, out, all: Vec::new(), infected: false, unsure: false }
    }

    fn show(&mut self, progress: Progress) -> io::Result<()> {
        match &progress {
            Progress::Message(looked) => {
                self.infected |= looked.verdict == "infected";
                self.unsure |= matches!(looked.verdict.as_str(), "unscannable" | "error");
            }
            Progress::Failed { .. } => self.unsure = true,
            Progress::Folder { .. } => {}
        }
        if self.output == Output::Json {
            self.all.push(progress);
            return Ok(());
        }
        match progress {
            Progress::Message(looked) => self.message(&looked)?,
            Progress::Folder { folder, tally } => writeln!(
                self.out,
                "{}: {} messages, {} scanned, {} not clean, {} treated",
                printable(&folder),
                tally.messages,
                tally.scanned,
                tally.found,
                tally.treated
            )?,
            Progress::Failed { error } => {
                let error = printable(&error).into_owned();
                writeln!(self.out, "{}", Colour::Red.paint(&error, self.screen))?;
            }
        }
        self.out.flush()
    }

    fn message(&mut self, looked: &Looked) -> io::Result<()> {
        // Of thousands of clean messages each one would hide the others.
        if looked.verdict == "clean" && self.output == Output::Table {
            return Ok(());
        }
        let colour = match looked.verdict.as_str() {
            "clean" => Colour::Green,
            "infected" => Colour::Red,
            _ => Colour::Yellow,
        };
        let would = if self.dry_run { "would " } else { "" };
        let verdict = colour.paint(&looked.verdict, self.screen);
        let (folder, from) = (printable(&looked.folder), printable(&looked.from));
        write!(self.out, "{folder} {} from {from}: {verdict} ", looked.uid)?;
        write!(self.out, "{}", printable(&looked.detection))?;
        if looked.verdict == "clean" {
            writeln!(self.out)
        } else {
            writeln!(self.out, ", {would}{}", looked.action)
        }
    }

    fn end(self) -> Result<u8, Failure> {
        if self.output == Output::Json {
            #[derive(Serialize)]
            struct Document<'a> {
                dry_run: bool,
                scan: &'a [Progress],
            }
            super::json(&Document { dry_run: self.dry_run, scan: &self.all }, self.out)?;
        }
        Ok(if self.infected {
            1
        } else if self.unsure {
            2
        } else {
            0
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mailbox::pass::Tally;

    const PLAIN: Screen = Screen { colour: false, width: None };

    #[test]
    fn accounts_say_what_is_wrong_and_names_are_harmless() {
        let now = Timestamp::now();
        let account = AccountRecord {
            account: "company/ann\u{1b}[2J".to_owned(),
            state: State::Failed,
            scanned: 12,
            infected: 1,
            error: Some((now, "login refused: no\r\n".to_owned())),
            ..AccountRecord::default()
        };
        let shown = |output| {
            let mut out = Vec::new();
            list(std::slice::from_ref(&account), true, output, PLAIN, &mut out).unwrap();
            String::from_utf8(out).unwrap()
        };
        let table = shown(Output::Table);
        assert!(table.contains("company/ann\\x1b[2J  failed"), "{table}");
        assert!(table.contains("ago: login refused: no\\r\\n"), "{table}");
        assert!(shown(Output::Compact).contains(" looked never scanned 12 "));
        assert!(shown(Output::Json).contains("\"state\": \"failed\""));
    }

    #[test]
    fn a_scan_shows_what_is_not_clean_and_says_so_by_its_exit_code() {
        let looked = |verdict: &str, uid| {
            Progress::Message(Looked {
                account: "ann".to_owned(),
                folder: "INBOX".to_owned(),
                uid,
                from: "eve@example.org".to_owned(),
                verdict: verdict.to_owned(),
                action: "quarantine".to_owned(),
                detection: "EICAR".to_owned(),
            })
        };
        let mut out = Vec::new();
        let mut scan = Scan::new(true, Output::Table, PLAIN, &mut out);
        let tally = Tally { messages: 2, scanned: 2, found: 1, ..Tally::default() };
        for progress in [
            looked("clean", 1),
            looked("infected", 2),
            Progress::Folder { folder: "INBOX".to_owned(), tally },
        ] {
            scan.show(progress).unwrap();
        }
        assert_eq!(scan.end().unwrap(), 1);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "INBOX 2 from eve@example.org: infected EICAR, would quarantine\n\
             INBOX: 2 messages, 2 scanned, 1 not clean, 0 treated\n"
        );
    }
}

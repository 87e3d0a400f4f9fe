//! What `vscan scan` prints, its progress, and its exit code.

use super::super::args::Output;
use super::super::failure::Failure;
use super::super::table::{Colour, Screen, bytes};
use super::{Outcome, Scanned};
use crate::config::verdict_str;
use crate::observe::wire::printable;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::time::{Duration, Instant};
use vscan_scan::report::{Report, Verdict};

/// What was left out, in JSON.
#[derive(Serialize)]
struct LeftOut<'a> {
    path: &'a str,
    left_out: &'static str,
}

/// Prints results as they come, and keeps count.
pub(super) struct Printer<'a> {
    output: Output,
    quiet: bool,
    screen: Screen,
    out: &'a mut dyn Write,
    bar: Progress,
    documents: u64,
    started: Instant,
    counts: Counts,
}

#[derive(Debug, Default)]
struct Counts {
    clean: u64,
    infected: u64,
    unscannable: u64,
    error: u64,
    links: u64,
    special: u64,
    bytes: u64,
}

/// A bar on the terminal, if there is one.
#[derive(Clone, Debug)]
pub(super) struct Progress(ProgressBar);

impl Progress {
    fn new(wanted: bool) -> Self {
        if !wanted || !io::stderr().is_terminal() {
            return Self(ProgressBar::hidden());
        }
        let bar = ProgressBar::new(0);
        let style =
            ProgressStyle::with_template("{bar:24} {pos}/{len} files, {per_sec}  {wide_msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.enable_steady_tick(Duration::from_millis(250));
        Self(bar)
    }

    /// So many files were found so far.
    pub(super) fn found(&self, files: u64) {
        self.0.set_length(files);
    }
}

impl<'a> Printer<'a> {
    pub(super) fn new(output: Output, quiet: bool, out: &'a mut dyn Write) -> Self {
        Self {
            output,
            quiet,
            screen: Screen::of_stdout(),
            out,
            bar: Progress::new(output != Output::Json || !io::stdout().is_terminal()),
            documents: 0,
            started: Instant::now(),
            counts: Counts::default(),
        }
    }

    pub(super) fn progress(&self) -> Progress {
        self.bar.clone()
    }

    pub(super) fn print(&mut self, result: &Outcome) -> Result<(), Failure> {
        match result {
            Outcome::Scanned(scanned) => self.scanned(scanned),
            Outcome::LeftOut { path, why } => self.left_out(path, why),
        }
    }

    fn scanned(&mut self, scanned: &Scanned) -> Result<(), Failure> {
        let report = &scanned.report;
        let (colour, count) = match report.verdict {
            Verdict::Clean => (Colour::Green, &mut self.counts.clean),
            Verdict::Infected => (Colour::Red, &mut self.counts.infected),
            Verdict::Unscannable => (Colour::Yellow, &mut self.counts.unscannable),
            Verdict::Error => (Colour::Magenta, &mut self.counts.error),
        };
        *count += 1;
        self.counts.bytes += scanned.size.unwrap_or(0);
        self.bar.0.inc(1);
        if self.quiet && report.verdict == Verdict::Clean {
            return Ok(());
        }
        if self.output == Output::Json {
            return self.document(scanned);
        }
        let verdict = colour.paint(verdict_str(report.verdict), self.screen);
        let details = details(report);
        let space = if details.is_empty() { "" } else { " " };
        let (path, details) = (printable(&scanned.path), printable(&details));
        let line = format!("{path}: {verdict}{space}{details}");
        self.bar.0.set_message(path.into_owned());
        self.line(&line)
    }

    fn left_out(&mut self, path: &Path, why: &'static str) -> Result<(), Failure> {
        match why {
            "symbolic link" => self.counts.links += 1,
            _ => self.counts.special += 1,
        }
        if self.output == Output::Json && !self.quiet {
            return self.document(&LeftOut { path: &path.to_string_lossy(), left_out: why });
        }
        Ok(())
    }

    /// The next element of one array.
    fn document(&mut self, document: &impl Serialize) -> Result<(), Failure> {
        let text = serde_json::to_string_pretty(document).map_err(io::Error::from)?;
        let before = if self.documents == 0 { "[" } else { "," };
        self.documents += 1;
        self.line(&format!("{before}{text}"))
    }

    fn line(&mut self, line: &str) -> Result<(), Failure> {
        let out = &mut *self.out;
        Ok(self.bar.0.suspend(|| {
            writeln!(out, "{line}")?;
            out.flush()
        })?)
    }

    /// The exit code: of what was met the worst, in the sequence in which verdicts are worse: 1 infected, 3
    /// unscannable, 2 error, 0 clean.
    pub(super) fn end(self) -> Result<u8, Failure> {
        self.bar.0.finish_and_clear();
        if self.output == Output::Json {
            writeln!(self.out, "{}", if self.documents == 0 { "[]" } else { "]" })?;
        } else if self.counts.files() + self.counts.links + self.counts.special != 1 {
            // Beside the listing, which others read.
            let _ = writeln!(io::stderr(), "{}", self.counts.words(self.started.elapsed()));
        }
        Ok(self.counts.code())
    }
}

impl Counts {
    fn files(&self) -> u64 {
        self.clean + self.infected + self.unscannable + self.error
    }

    fn words(&self, time: Duration) -> String {
        let mut text = format!(
            "{} files, {}, in {:.1} s: {} clean, {} infected, {} unscannable, {} errors",
            self.files(),
            bytes(self.bytes),
            time.as_secs_f64(),
            self.clean,
            self.infected,
            self.unscannable,
            self.error
        );
        if self.links + self.special > 0 {
            text.push_str(&format!(
                "; left out: {} symbolic links, {} special files",
                self.links, self.special
            ));
        }
        text
    }

    fn code(&self) -> u8 {
        match self {
            Self { infected: 1.., .. } => 1,
            Self { unscannable: 1.., .. } => 3,
            Self { error: 1.., .. } => 2,
            _ => 0,
        }
    }
}

/// What was found, what was not read and why, and what failed.
fn details(report: &Report) -> String {
    let place = |path: &[String]| match path {
        [] | [_] => String::new(),
        path => format!(" in {}", path.join(" > ")),
    };
    let findings = report.findings.iter().map(|f| format!("{}{}", f.name, place(&f.path)));
    let unread = report
        .unread
        .iter()
        .map(|u| format!("{}: {}{}", u.reason.as_str(), u.detail, place(&u.path)));
    let details: Vec<String> = findings.chain(unread).chain(report.error.clone()).collect();
    details.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_verdict_makes_the_exit_code() {
        let none = || Counts { clean: 1, ..Counts::default() };
        assert_eq!(none().code(), 0);
        assert_eq!(Counts { error: 2, ..none() }.code(), 2);
        assert_eq!(Counts { error: 1, unscannable: 1, ..none() }.code(), 3);
        assert_eq!(Counts { infected: 1, error: 1, unscannable: 1, ..none() }.code(), 1);
    }

    #[test]
    fn what_steers_a_terminal_is_shown_and_not_obeyed() {
        let mut out = Vec::new();
        let mut printer = Printer::new(Output::Table, false, &mut out);
        printer.screen = Screen { colour: false, width: None };
        let mut report = Report::error("x\u{1b}]0;y\u{7}");
        report.add_finding("E\u{1b}[2JV", "clamd", &["a".into(), "b\r\nc".into()], 0);
        let scanned =
            Scanned { path: "n\u{1b}[31m\u{202e}.exe".into(), size: Some(1), seconds: 0.0, report };
        printer.scanned(&scanned).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(
            !text.trim_end().contains(char::is_control) && !text.contains('\u{202e}'),
            "{text:?}"
        );
        assert!(text.contains("infected E"), "{text}");
    }

    #[test]
    fn documents_are_one_array() {
        for count in 0..3 {
            let mut out = Vec::new();
            let mut printer = Printer::new(Output::Json, false, &mut out);
            for n in 0..count {
                let path = format!("/x/{n}");
                printer.left_out(Path::new(&path), "symbolic link").unwrap();
            }
            printer.end().unwrap();
            let array: serde_json::Value = serde_json::from_slice(&out).unwrap();
            assert_eq!(array.as_array().unwrap().len(), count);
        }
    }
}

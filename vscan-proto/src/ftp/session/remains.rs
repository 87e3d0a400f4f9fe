//! What the server has under a name: asked before an upload that may have to be taken back, or that
//! adds to it.

use std::time::Instant;

use super::core::{Core, Expect};
use crate::ftp::command::Command;
use crate::ftp::reply::Reply;

/// Words of servers that looked and found nothing. Others that say 550 may mean that we must not look.
const ABSENT: [&str; 7] = [
    "no such file",
    "not found",
    "cannot find",
    "does not exist",
    "doesn't exist",
    // vsftpd, where stat(2) fails
    "could not get file size",
    // Pure-FTPd, likewise
    "can't check for file existence",
];

/// What is known of the name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    /// A file, of this size if the server says so.
    File(Option<u64>),
    /// No file.
    Absent,
    /// The server does not tell.
    Hidden,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Unasked,
    /// SIZE (RFC 3659 section 4) is with the server.
    Size,
    /// MLST (RFC 3659 section 7) is.
    Facts,
    Done(Known),
}

/// What the server has, and how far it was asked.
#[derive(Debug)]
pub(super) struct Existing {
    step: Step,
    /// The answer of the first time, when it is asked twice.
    before: Option<Known>,
}

/// How a question stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Question {
    Open,
    Answered,
    /// Answered otherwise than the first time.
    Changed,
}

impl Default for Existing {
    fn default() -> Self {
        Self { step: Step::Unasked, before: None }
    }
}

impl Existing {
    /// Asks, if that was not done yet.
    pub(super) fn ask(&mut self, core: &mut Core, now: Instant, command: &Command) -> Question {
        match self.step {
            Step::Unasked => {
                // Servers refuse SIZE where line ends are recoded.
                let (verb, step) =
                    if core.ascii { ("MLST", Step::Facts) } else { ("SIZE", Step::Size) };
                core.tell_upstream(now, command.with_verb(verb), Expect::Probe);
                self.step = step;
                Question::Open
            }
            Step::Size | Step::Facts => Question::Open,
            Step::Done(_) => Question::Answered,
        }
    }

    /// Asks once more whether everything is as it was.
    pub(super) fn confirm(&mut self, core: &mut Core, now: Instant, command: &Command) -> Question {
        if self.before.is_none()
            && let Step::Done(known) = self.step
        {
            self.before = Some(known);
            self.step = Step::Unasked;
        }
        match self.ask(core, now, command) {
            Question::Answered if self.before != self.known() => Question::Changed,
            question => question,
        }
    }

    /// Takes the server's answer.
    pub(super) fn answered(
        &mut self,
        core: &mut Core,
        now: Instant,
        command: &Command,
        reply: &Reply,
    ) {
        self.step = match (self.step, reply.code) {
            (Step::Size, 213) => Step::Done(Known::File(size(&reply.raw))),
            (Step::Facts, 200..=299) => Step::Done(Known::File(None)),
            (Step::Size | Step::Facts, 550) if says_absent(&reply.raw) => Step::Done(Known::Absent),
            (Step::Size, _) => {
                core.tell_upstream(now, command.with_verb("MLST"), Expect::Probe);
                Step::Facts
            }
            (Step::Facts, _) => Step::Done(Known::Hidden),
            (step @ (Step::Unasked | Step::Done(_)), _) => step,
        };
    }

    fn known(&self) -> Option<Known> {
        match self.step {
            Step::Done(known) => Some(known),
            Step::Unasked | Step::Size | Step::Facts => None,
        }
    }

    /// Whether there certainly is no such file.
    pub(super) fn is_absent(&self) -> bool {
        self.before.or(self.known()) == Some(Known::Absent)
    }

    /// Whether a question is with the server, or was answered.
    pub(super) fn is_asked(&self) -> bool {
        self.step != Step::Unasked
    }
}

fn size(reply: &[u8]) -> Option<u64> {
    std::str::from_utf8(reply.get(4..)?).ok()?.trim().parse().ok()
}

fn says_absent(reply: &[u8]) -> bool {
    let text = String::from_utf8_lossy(reply).to_ascii_lowercase();
    ABSENT.iter().any(|words| text.contains(words))
}

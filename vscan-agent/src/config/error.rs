//! Everything that is wrong with a configuration file, each with its place and what to do.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// One thing that is wrong with the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Line, counted from 1; 0 when the problem has no place.
    pub line: usize,
    /// Column in characters, counted from 1.
    pub column: usize,
    /// The line of the file, without its end; empty when there is no place.
    pub excerpt: String,
    /// Columns that are wrong, from `column`; at least 1.
    pub width: usize,
    /// What is wrong, with the key's full name.
    pub message: String,
    /// What to do, if there is something to say.
    pub help: Option<String>,
}

/// Why there is no configuration.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ConfigErrors {
    /// The file cannot be read (sysexits: `EX_NOINPUT`).
    #[error("{}: {reason}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The operating system's reason, and what to do.
        reason: String,
    },
    /// The file is read, and wrong (sysexits: `EX_CONFIG`).
    #[error("{}", Listing { file, problems })]
    Invalid {
        /// The file's name as the user gave it.
        file: PathBuf,
        /// All that is wrong, in the order of the file. Never empty.
        problems: Vec<Problem>,
    },
}

impl ConfigErrors {
    /// The exit code of sysexits.h that says this: 66 or 78.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Unreadable { .. } => 66,
            Self::Invalid { .. } => 78,
        }
    }

    /// The single problems; empty when the file could not be read.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        match self {
            Self::Unreadable { .. } => &[],
            Self::Invalid { problems, .. } => problems,
        }
    }
}

struct Listing<'a> {
    file: &'a Path,
    problems: &'a [Problem],
}

impl fmt::Display for Listing<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = self.file.display();
        for (n, p) in self.problems.iter().enumerate() {
            if n > 0 {
                writeln!(f)?;
            }
            if p.line == 0 {
                write!(f, "{file}: {}", p.message)?;
            } else {
                writeln!(f, "{file}:{}:{}: {}", p.line, p.column, p.message)?;
                let number = p.line.to_string();
                writeln!(f, "  {number} | {}", p.excerpt)?;
                write!(
                    f,
                    "  {:w$} | {:c$}{}",
                    "",
                    "",
                    "^".repeat(p.width),
                    w = number.len(),
                    c = p.column - 1
                )?;
            }
            if let Some(help) = &p.help {
                write!(f, "\n  help: {help}")?;
            }
        }
        Ok(())
    }
}

/// Turns a byte range of `source` into a place and puts the message there.
pub(super) fn problem(
    source: &str,
    span: Option<Range<usize>>,
    message: impl Into<String>,
    help: Option<String>,
) -> Problem {
    let message = message.into();
    let Some(span) = span else {
        return Problem { line: 0, column: 1, excerpt: String::new(), width: 1, message, help };
    };
    let start = floor(source, span.start);
    let line_start = source[..start].rfind('\n').map_or(0, |i| i + 1);
    let line_end = source[start..].find('\n').map_or(source.len(), |i| start + i);
    let end = floor(source, span.end).clamp(start, line_end);
    Problem {
        line: source[..start].matches('\n').count() + 1,
        column: source[line_start..start].chars().count() + 1,
        // a tab would move the marker away from its place
        excerpt: source[line_start..line_end].trim_end_matches('\r').replace('\t', " "),
        width: source[start..end].trim_end().chars().count().max(1),
        message,
        help,
    }
}

fn floor(source: &str, index: usize) -> usize {
    let mut index = index.min(source.len());
    while !source.is_char_boundary(index) {
        index -= 1;
    }
    index
}

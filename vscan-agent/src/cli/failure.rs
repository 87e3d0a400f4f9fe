//! Why a command failed, with the exit code of sysexits.h that says so.

use crate::config::ConfigErrors;
use crate::quarantine::StoreError;
use std::fmt;
use std::io;
use std::path::Path;

/// `EX_USAGE`: wrong arguments.
pub(super) const EX_USAGE: u8 = 64;
/// `EX_DATAERR`: rules that do not compile.
pub(super) const EX_DATAERR: u8 = 65;
/// `EX_NOINPUT`: a file that cannot be read.
pub(super) const EX_NOINPUT: u8 = 66;
/// `EX_UNAVAILABLE`: no agent answers, or something that is needed is missing.
pub(super) const EX_UNAVAILABLE: u8 = 69;
/// `EX_SOFTWARE`: a defect.
pub(super) const EX_SOFTWARE: u8 = 70;
/// `EX_OSERR`: the operating system refused.
pub(super) const EX_OSERR: u8 = 71;
/// `EX_CANTCREAT`: something cannot be written.
pub(super) const EX_CANTCREAT: u8 = 73;
/// `EX_IOERR`: reading or writing failed.
pub(super) const EX_IOERR: u8 = 74;
/// `EX_TEMPFAIL`: not now.
pub(super) const EX_TEMPFAIL: u8 = 75;
/// `EX_NOPERM`: no permission.
pub(super) const EX_NOPERM: u8 = 77;
/// `EX_CONFIG`: a wrong configuration.
pub(super) const EX_CONFIG: u8 = 78;

/// What to print and how to exit.
#[derive(Debug)]
pub(super) struct Failure {
    /// The exit code.
    pub(super) code: u8,
    /// What happened and what to do; empty when everything was said already.
    pub(super) message: String,
}

impl Failure {
    pub(super) fn new(code: u8, message: impl fmt::Display) -> Self {
        Self { code, message: message.to_string() }
    }

    /// A file that the user named.
    pub(super) fn file(path: &Path, error: &io::Error) -> Self {
        let code = match error.kind() {
            io::ErrorKind::NotFound => EX_NOINPUT,
            io::ErrorKind::PermissionDenied => EX_NOPERM,
            _ => EX_IOERR,
        };
        Self::new(code, format!("{}: {error}", path.display()))
    }
}

/// Only for standard output: what else is read or written says its name by itself.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            // `vscan flows | head`: the reader has seen enough
            io::ErrorKind::BrokenPipe => Self { code: 0, message: String::new() },
            _ => Self::new(EX_IOERR, format!("standard output: {error}")),
        }
    }
}

impl From<ConfigErrors> for Failure {
    fn from(errors: ConfigErrors) -> Self {
        Self { code: errors.exit_code(), message: errors.to_string() }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let code = match &error {
            StoreError::NoSuchEntry(_) => EX_NOINPUT,
            StoreError::TargetExists(_) | StoreError::Full(_) => EX_CANTCREAT,
            StoreError::Altered(_) | StoreError::BadDescription { .. } => EX_DATAERR,
            StoreError::Io { source, .. } => match source.kind() {
                io::ErrorKind::PermissionDenied => EX_NOPERM,
                io::ErrorKind::NotFound => EX_NOINPUT,
                _ => EX_IOERR,
            },
        };
        Self::new(code, error)
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        match error.downcast::<Self>() {
            Ok(failure) => failure,
            Err(error) => Self::new(EX_SOFTWARE, format!("{error:#}")),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

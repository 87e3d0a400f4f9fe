//! Asking the running gateway.

use super::failure::{EX_CONFIG, EX_NOPERM, EX_UNAVAILABLE, Failure};
use crate::observe::control::{self, Answer, Request};
use std::io;
use std::path::Path;

/// The answers, with errors that say what to do.
pub(super) fn ask(
    control: &Path,
    request: &Request,
) -> Result<impl Iterator<Item = Result<Answer, Failure>> + use<>, Failure> {
    let path = control.to_owned();
    let failed = move |e: io::Error| {
        let path = path.display();
        match e.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Failure::new(
                EX_UNAVAILABLE,
                format!(
                    "no agent answers at {path}; is `vscan run` running with this configuration?"
                ),
            ),
            io::ErrorKind::PermissionDenied => Failure::new(
                EX_NOPERM,
                format!(
                    "{path}: permission denied; run as root or as a member of the socket's group"
                ),
            ),
            _ => Failure::new(EX_UNAVAILABLE, format!("{path}: {e}")),
        }
    };
    let asked = control::ask(control, request).map_err(&failed)?;
    Ok(asked.map(move |answer| answer.map_err(&failed)))
}

/// For requests with one answer.
pub(super) fn ask_once(control: &Path, request: &Request) -> Result<Answer, Failure> {
    match ask(control, request)?.next() {
        // what is wrong with the files, or no such flow
        Some(Ok(Answer::Error { error })) => {
            let code = if *request == Request::Reload { EX_CONFIG } else { EX_UNAVAILABLE };
            Err(Failure::new(code, error))
        }
        Some(answer) => answer,
        None => Err(Failure::new(EX_UNAVAILABLE, "the gateway ended before it answered")),
    }
}

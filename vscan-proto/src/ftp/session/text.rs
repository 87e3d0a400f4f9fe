//! Replies that vscan gives by itself.

use std::net::SocketAddr;

use bytes::{BufMut, Bytes, BytesMut};

use crate::ftp::address;
use crate::ftp::command::{Command, Verb};
use crate::ftp::reply::Reply;

pub(super) const NO_DATA_COMMAND: &[u8] = b"425 Use PORT or PASV first.\r\n";
pub(super) const NO_DATA_CONNECTION: &[u8] = b"425 Can't open data connection.\r\n";
pub(super) const NO_LISTENER: &[u8] = b"425 Can't open passive connection.\r\n";
pub(super) const TRANSFER_ABORTED: &[u8] = b"426 Connection closed; transfer aborted.\r\n";
pub(super) const ABORTED: &[u8] =
    b"426 Connection closed; transfer aborted.\r\n226 ABOR command successful.\r\n";
pub(super) const ABOR_OK: &[u8] = b"226 ABOR command successful.\r\n";
pub(super) const SEND_DATA: &[u8] = b"150 Ok to send data.\r\n";
pub(super) const OPENING: &[u8] = b"150 Opening data connection.\r\n";
pub(super) const NOT_A_COMMAND: &[u8] = b"500 Not understood.\r\n";
pub(super) const LINE_TOO_LONG: &[u8] = b"500 Command line too long.\r\n";
pub(super) const TOO_MANY_ERRORS: &[u8] = b"421 Too many errors.\r\n";
pub(super) const SERVER_GONE: &[u8] = b"421 The server closed the connection.\r\n";
pub(super) const SERVER_SILENT: &[u8] = b"421 The server does not answer.\r\n";
pub(super) const SERVER_GARBLED: &[u8] = b"421 The server's reply is too long.\r\n";
pub(super) const UNASKED_ADDRESS: &[u8] = b"421 Unexpected answer of the server.\r\n";
pub(super) const IDLE: &[u8] = b"421 Timeout.\r\n";
pub(super) const SHUTTING_DOWN: &[u8] = b"421 Service is shutting down.\r\n";
pub(super) const NOT_AVAILABLE: &[u8] = b"502 Not available through this gateway.\r\n";
pub(super) const NO_RESTART: &[u8] = b"502 Restart positions are not available.\r\n";
pub(super) const BAD_RESTART: &[u8] = b"501 Not a restart position.\r\n";
pub(super) const RESTART_NEEDS_IMAGE: &[u8] = b"501 Restart positions need TYPE I.\r\n";
pub(super) const NO_APPEND: &[u8] = b"502 Appending is not available.\r\n";
pub(super) const ONLY_STREAM: &[u8] = b"504 Only MODE S is available.\r\n";
pub(super) const ONLY_BYTES: &[u8] = b"504 Only TYPE A, TYPE I and TYPE L 8 are available.\r\n";
pub(super) const ONLY_FILE: &[u8] = b"504 Only STRU F is available.\r\n";
pub(super) const TLS_REFUSED: &[u8] = b"534 TLS is refused by policy.\r\n";
pub(super) const UNKNOWN_MECHANISM: &[u8] = b"504 Unknown security mechanism.\r\n";
pub(super) const OBSOLETE_MECHANISM: &[u8] =
    b"504 Obsolete: use AUTH TLS, and PROT C or PROT P.\r\n";
pub(super) const ALREADY_TLS: &[u8] = b"503 TLS has begun already.\r\n";
pub(super) const NO_TLS: &[u8] = b"503 Use AUTH TLS first.\r\n";
pub(super) const ALREADY_CLEAR: &[u8] = b"503 The control connection is clear already.\r\n";
pub(super) const NO_EXCHANGE: &[u8] = b"503 No security exchange of that kind took place.\r\n";
pub(super) const NO_SUCH_LEVEL: &[u8] = b"536 Only PROT C and PROT P are available with TLS.\r\n";
pub(super) const UNKNOWN_LEVEL: &[u8] = b"504 Unknown protection level.\r\n";
pub(super) const NO_REIN: &[u8] = b"502 REIN is not available inside TLS.\r\n";
pub(super) const EPSV_ALL: &[u8] = b"200 EPSV ALL ok.\r\n";
pub(super) const EPSV_ONLY: &[u8] = b"503 Only EPSV is allowed after EPSV ALL.\r\n";
pub(super) const USE_EPSV: &[u8] = b"501 Not possible over IPv6; use EPSV or EPRT.\r\n";
pub(super) const BAD_ADDRESS: &[u8] = b"501 Illegal address.\r\n";
pub(super) const NOT_YOUR_ADDRESS: &[u8] = b"501 The address must be your own.\r\n";
pub(super) const PORT_OK: &[u8] = b"200 PORT command successful.\r\n";
pub(super) const EPRT_OK: &[u8] = b"200 EPRT command successful.\r\n";
pub(super) const USER_DENIED: &[u8] = b"530 This user is not permitted here by vscan.\r\n";
pub(super) const RENAME_ACROSS: &[u8] =
    b"550 vscan does not scan one of these names: transfer the file under its new one.\r\n";
pub(super) const NOT_LOGGED_IN: &[u8] = b"530 Please log in with USER and PASS.\r\n";
/// Why an upload whose scan outlasts the client's patience is refused.
pub(super) const TAKES_TOO_LONG: &str = "not yet scanned, not stored; try again later";
const CHANGED: &str = "the file changed on the server; transfer it from its beginning";
const BUSY: &str = "another upload of this file is under way; try again later";
const LEFT_BEHIND: &str = "a part of it is left on the server";
const SERVER_BROKE_OFF: &str = "the server broke off the transfer";

/// 522 with the family that works here.
pub(super) fn wrong_family(is_ipv4: bool) -> Bytes {
    let family = if is_ipv4 { 1 } else { 2 };
    format!("522 Network protocol not supported, use ({family}).\r\n").into()
}

/// The answer to PASV or EPSV.
pub(super) fn passive(verb: Verb, here: SocketAddr) -> Bytes {
    match address::format_port(here) {
        Some(numbers) if verb == Verb::Pasv => {
            format!("227 Entering Passive Mode ({numbers}).\r\n").into()
        }
        Some(_) | None => {
            format!("229 Entering Extended Passive Mode (|||{}|).\r\n", here.port()).into()
        }
    }
}

/// 550 for a file.
pub(super) fn refused(command: &Command, reason: &str) -> Bytes {
    let name = command.argument();
    let mut text = BytesMut::with_capacity(name.len() + reason.len() + 12);
    text.put_slice(b"550 ");
    put_name(&mut text, if name.is_empty() { command.verb.as_str().as_bytes() } else { name });
    text.put_slice(b": ");
    text.extend(reason.bytes().map(printable));
    text.put_slice(b"\r\n");
    text.freeze()
}

/// 550 for a command that the access rules do not permit.
pub(super) fn command_denied(verb: &[u8]) -> Bytes {
    let verb = String::from_utf8_lossy(verb).to_ascii_uppercase();
    format!("550 {verb} is not permitted here by vscan.\r\n").into()
}

/// 550 for a file of which nothing, a part, or an unknown part is left on the server.
pub(super) fn refused_late(command: &Command, reason: &str) -> Bytes {
    refused(command, &format!("{reason}; {LEFT_BEHIND}"))
}

/// 550 for a piece that is not of the file that the pieces before it were of.
pub(super) fn changed(command: &Command) -> Bytes {
    refused(command, CHANGED)
}

/// 450 for an upload that would meet another.
pub(super) fn busy(command: &Command) -> Bytes {
    let mut text = BytesMut::from(&refused(command, BUSY)[..]);
    text[..3].copy_from_slice(b"450");
    text.freeze()
}

/// 550 for an upload that the server cut without a reply of its own that says so.
pub(super) fn server_broke_off(command: &Command) -> Bytes {
    refused(command, SERVER_BROKE_OFF)
}

/// The server's last word on an upload, with what its 150 said put in front of it.
pub(super) fn stored_as(opening: &[u8], done: &Reply) -> Bytes {
    let said = opening.get(4..).unwrap_or_default();
    let said = said.split(|&byte| byte == b'\n').next().unwrap_or_default().trim_ascii_end();
    let mut text = BytesMut::with_capacity(said.len() + done.raw.len() + 6);
    text.put_slice(format!("{}-", done.code).as_bytes());
    text.put_slice(said);
    text.put_slice(b"\r\n");
    text.put_slice(&done.raw);
    text.freeze()
}

/// What the scanner says of a file, as a first line of the reply that tells of its delivery (RFC 959 section 4.2).
pub(super) fn announcement(words: &str, reply: &[u8]) -> Bytes {
    let mut text = BytesMut::with_capacity(words.len() + 14);
    text.put_slice(reply.get(..3).unwrap_or(b"226"));
    text.put_slice(b"-vscan: ");
    text.put_slice(words.as_bytes());
    text.put_slice(b"\r\n");
    text.freeze()
}

/// The answer to STAT during a transfer.
pub(super) fn status(command: &Command, phase: &str) -> Bytes {
    let mut text = BytesMut::new();
    text.put_slice(b"211 ");
    text.put_slice(command.verb.as_str().as_bytes());
    text.put_u8(b' ');
    put_name(&mut text, command.argument());
    text.put_slice(b": ");
    text.put_slice(phase.as_bytes());
    text.put_slice(b"\r\n");
    text.freeze()
}

fn put_name(text: &mut BytesMut, name: &[u8]) {
    for &byte in name {
        text.put_u8(printable(byte));
        // Telnet escaping (RFC 854).
        if byte == 0xff {
            text.put_u8(byte);
        }
    }
}

/// Names keep their bytes, whatever their encoding, but for controls.
fn printable(byte: u8) -> u8 {
    if byte.is_ascii_control() { b'?' } else { byte }
}

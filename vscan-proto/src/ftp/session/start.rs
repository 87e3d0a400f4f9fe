//! What each command of the client sets going.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use bytes::Bytes;

use super::State;
use super::api::{Leg, Note, Output, Resume, Sniff, Tls};
use super::core::{ClientChannel, Core, Effect, Expect, Protection, UpstreamChannel};
use super::download::Download;
use super::text;
use super::unscanned::Unscanned;
use super::upload::Upload;
use crate::ftp::address::{self, AddressError};
use crate::ftp::command::{Command, Verb};
use crate::ftp::permit::Login;

/// Ports below belong to services: no client listens for data there (RFC 2577 section 3).
const FIRST_CLIENT_PORT: u16 = 1024;

/// Begins a command. Every state but `Idle` comes back when it has its final reply.
pub(super) fn start(core: &mut Core, now: Instant, command: Command) -> State {
    if let Some(reply) = denied(core, &command) {
        return answer(core, reply);
    }
    if renames_across(core, &command) {
        return answer(core, text::RENAME_ACROSS);
    }
    match command.verb {
        Verb::Pasv | Verb::Epsv => passive(core, now, &command),
        Verb::Port | Verb::Eprt => active(core, now, &command),
        Verb::Appe if core.settings.resume == Resume::Refuse => answer(core, text::NO_APPEND),
        Verb::Retr
        | Verb::List
        | Verb::Nlst
        | Verb::Mlsd
        | Verb::Stor
        | Verb::Stou
        | Verb::Appe => transfer(core, now, command),
        // Data connections past us, or files in pieces that are clean one by one.
        Verb::Lprt
        | Verb::Lpsv
        | Verb::Cpsv
        | Verb::Sscn
        | Verb::Spsv
        | Verb::Spas
        | Verb::Spor
        | Verb::Comb
        | Verb::Rang
        | Verb::Eret
        | Verb::Esto
        | Verb::Thmb => answer(core, text::NOT_AVAILABLE),
        // Commands in a wrapping that is not looked into.
        Verb::Adat => answer(core, text::NO_EXCHANGE),
        Verb::Type if !is_read_as_sent(command.argument()) => answer(core, text::ONLY_BYTES),
        Verb::Rest => restart(core, now, &command),
        Verb::Mode if !is_word(command.argument(), b"S") => answer(core, text::ONLY_STREAM),
        Verb::Stru if !is_word(command.argument(), b"F") => answer(core, text::ONLY_FILE),
        Verb::Auth => auth(core, now, &command),
        Verb::Pbsz | Verb::Prot | Verb::Ccc if core.protection == Protection::None => {
            answer(core, text::NO_TLS)
        }
        Verb::Ccc if core.protection == Protection::Cleared => answer(core, text::ALREADY_CLEAR),
        Verb::Ccc => relay(core, now, &command, Expect::Ccc),
        Verb::Prot => protect(core, now, &command),
        // Servers do not agree on whether TLS ends with it.
        Verb::Rein if core.protection != Protection::None => answer(core, text::NO_REIN),
        Verb::Feat => relay(core, now, &command, Expect::Feat),
        Verb::User => {
            core.note(Note::User(command.argument().clone()));
            core.identity.asks(command.argument().clone());
            relay(core, now, &command, Expect::Login(Login::User))
        }
        Verb::Cwd => {
            core.effect = Some(Effect::Directory(command.argument().clone()));
            relay(core, now, &command, Expect::Relay)
        }
        Verb::Cdup => {
            core.effect = Some(Effect::Parent);
            relay(core, now, &command, Expect::Relay)
        }
        Verb::Type => {
            let first = command.argument().trim_ascii().first().map(u8::to_ascii_uppercase);
            core.effect = Some(Effect::Ascii(!matches!(first, Some(b'I' | b'L'))));
            relay(core, now, &command, Expect::Relay)
        }
        Verb::Rein => {
            core.drop_client(false);
            core.drop_upstream(false);
            core.effect = Some(Effect::Reset);
            relay(core, now, &command, Expect::Login(Login::Rein))
        }
        Verb::Quit => {
            relay(core, now, &command, Expect::Relay);
            State::Relay { quit: true }
        }
        Verb::Other if is_password(&command) => {
            relay(core, now, &command, Expect::Login(Login::Pass))
        }
        Verb::Mode | Verb::Stru | Verb::Abor | Verb::Stat | Verb::Pbsz | Verb::Other => {
            relay(core, now, &command, Expect::Relay)
        }
    }
}

/// The refusal of what the access rules do not permit.
fn denied(core: &mut Core, command: &Command) -> Option<Bytes> {
    let permit = core.settings.permit.clone()?;
    if command.verb == Verb::User {
        if permit.login(command.argument()) {
            return None;
        }
        core.denied(None, command.argument());
        return Some(Bytes::from_static(text::USER_DENIED));
    }
    let (verb, argument) = (command.word(), command.argument());
    if core.identity.all(|user| permit.command(user, verb, argument)) {
        return None;
    }
    if !core.identity.is_somebody() {
        return Some(Bytes::from_static(text::NOT_LOGGED_IN));
    }
    core.denied(Some(verb), argument);
    Some(text::command_denied(verb))
}

fn is_password(command: &Command) -> bool {
    [&b"PASS"[..], b"ACCT"].iter().any(|word| command.word().eq_ignore_ascii_case(word))
}

/// Answers PASV, EPSV, PORT or EPRT as soon as both sides are known to work.
pub(super) fn prepare(core: &mut Core, verb: Verb) -> State {
    match &core.upstream {
        UpstreamChannel::Asking(_) | UpstreamChannel::Binding => return State::Prepare(verb),
        // The server's own words, e.g. 530 before the login.
        UpstreamChannel::Failed(Some(reply)) => {
            let reply = reply.raw.clone();
            core.upstream = UpstreamChannel::None;
            core.drop_client(false);
            return answer(core, reply);
        }
        UpstreamChannel::None
        | UpstreamChannel::Waiting
        | UpstreamChannel::Dialling
        | UpstreamChannel::Connected { .. }
        | UpstreamChannel::Failed(None) => {}
    }
    match core.client {
        ClientChannel::Binding => State::Prepare(verb),
        ClientChannel::Listening(port) => {
            let here = SocketAddr::new(core.addresses.dialled.ip(), port);
            answer(core, text::passive(verb, here))
        }
        // Whoever connected before the port was announced is not welcome.
        ClientChannel::Connected | ClientChannel::Failed | ClientChannel::None => {
            core.drop_client(false);
            answer(core, text::NO_LISTENER)
        }
        ClientChannel::Active(_) | ClientChannel::Connecting => {
            answer(core, if verb == Verb::Port { text::PORT_OK } else { text::EPRT_OK })
        }
    }
}

fn answer(core: &mut Core, reply: impl Into<Bytes>) -> State {
    core.tell_client(reply);
    State::Idle
}

fn relay(core: &mut Core, now: Instant, command: &Command, expect: Expect) -> State {
    core.tell_upstream(now, command.wire().clone(), expect);
    State::Relay { quit: false }
}

fn passive(core: &mut Core, now: Instant, command: &Command) -> State {
    let is_ipv4 = core.addresses.dialled.is_ipv4();
    if command.verb == Verb::Epsv {
        let argument = command.argument().trim_ascii();
        if argument.eq_ignore_ascii_case(b"ALL") {
            core.epsv_only = true;
            return answer(core, text::EPSV_ALL);
        }
        let own: &[u8] = if is_ipv4 { b"1" } else { b"2" };
        if !argument.is_empty() && argument != own {
            return answer(core, text::wrong_family(is_ipv4));
        }
    } else if core.epsv_only {
        return answer(core, text::EPSV_ONLY);
    } else if !is_ipv4 {
        return answer(core, text::USE_EPSV);
    }
    core.drop_client(false);
    core.client = ClientChannel::Binding;
    core.asked = command.verb;
    core.output(Output::Listen(Leg::Client));
    ensure_upstream(core, now);
    State::Prepare(command.verb)
}

fn active(core: &mut Core, now: Instant, command: &Command) -> State {
    let is_ipv4 = core.addresses.dialled.is_ipv4();
    if core.epsv_only {
        return answer(core, text::EPSV_ONLY);
    }
    let address = if command.verb == Verb::Eprt {
        address::parse_eprt(command.argument())
    } else if is_ipv4 {
        address::parse_port(command.argument())
    } else {
        return answer(core, text::USE_EPSV);
    };
    let address = match address {
        Ok(address) if address.is_ipv4() == is_ipv4 => address,
        Ok(_) | Err(AddressError::Protocol) => return answer(core, text::wrong_family(is_ipv4)),
        Err(AddressError::Syntax) => return answer(core, text::BAD_ADDRESS),
    };
    if !same_host(address.ip(), core.addresses.client.ip()) || address.port() < FIRST_CLIENT_PORT {
        core.anomaly("ftp_bounce", command.argument());
        return answer(core, text::NOT_YOUR_ADDRESS);
    }
    core.drop_client(false);
    // The control connection's own address: it may carry a scope that EPRT cannot.
    let address = match core.addresses.client {
        SocketAddr::V4(_) => address,
        SocketAddr::V6(mut client) => {
            client.set_port(address.port());
            client.into()
        }
    };
    core.client = ClientChannel::Active(address);
    core.asked = command.verb;
    ensure_upstream(core, now);
    State::Prepare(command.verb)
}

/// Compared as addresses: a connection tracking helper on the way rewrites their spelling.
fn same_host(one: IpAddr, other: IpAddr) -> bool {
    one.to_canonical() == other.to_canonical()
}

/// The server's side is asked while the client's is answered, so that a transfer command finds
/// both ready.
fn ensure_upstream(core: &mut Core, now: Instant) {
    if !core.upstream_is_ready(now) && !core.is_arranging() {
        core.arrange(now);
    }
}

/// REST is the server's to accept; where the transfer really begins is decided when its command comes.
fn restart(core: &mut Core, now: Instant, command: &Command) -> State {
    let Some(at) = number(command.argument()) else { return answer(core, text::BAD_RESTART) };
    if at > 0 && core.settings.resume == Resume::Refuse {
        return answer(core, text::NO_RESTART);
    }
    core.effect = Some(Effect::Restart(at));
    // In our own spelling: nobody shall read another number in it.
    core.tell_upstream(now, format!("REST {at}\r\n"), Expect::Relay);
    State::Relay { quit: false }
}

fn transfer(core: &mut Core, now: Instant, command: Command) -> State {
    match core.client {
        ClientChannel::Listening(_) | ClientChannel::Connected | ClientChannel::Active(_) => {}
        ClientChannel::None
        | ClientChannel::Binding
        | ClientChannel::Connecting
        | ClientChannel::Failed => {
            core.client = ClientChannel::None;
            return answer(core, text::NO_DATA_COMMAND);
        }
    }
    let skipped = is_skipped(core, &command);
    if core.ascii && core.restart > 0 && matches!(command.verb, Verb::Retr | Verb::Stor) {
        // Servers do not agree on what a position means where line ends are recoded.
        core.restart = 0;
        return answer(core, text::RESTART_NEEDS_IMAGE);
    }
    // What begins in mid-file shows nothing by its first bytes.
    let whole = core.restart == 0;
    let sniffed = match core.settings.sniff {
        Sniff::Never => false,
        Sniff::Skipped => skipped,
        Sniff::All => true,
    };
    if sniffed && whole && command.verb == Verb::Retr {
        return State::Unscanned(Unscanned::begin_if(core, now, command, Leg::Upstream));
    }
    if sniffed && whole && command.verb == Verb::Stor {
        return State::Unscanned(Unscanned::begin_if(core, now, command, Leg::Client));
    }
    let file = matches!(command.verb, Verb::Retr | Verb::Stor | Verb::Appe);
    let skipped = skipped && (core.settings.sniff == Sniff::Never || !file);
    if command.verb == Verb::Stou || !skipped && matches!(command.verb, Verb::Stor | Verb::Appe) {
        State::Upload(Upload::begin(core, now, command))
    } else if matches!(command.verb, Verb::Stor | Verb::Appe) {
        State::Unscanned(Unscanned::begin(core, now, command, Leg::Client))
    } else if command.verb == Verb::Retr && !skipped {
        State::Download(Download::begin(core, now, command))
    } else {
        State::Unscanned(Unscanned::begin(core, now, command, Leg::Upstream))
    }
}

/// Whether the extension is one of those that pass unscanned.
fn is_skipped(core: &Core, command: &Command) -> bool {
    command.extension().is_some_and(|extension| {
        core.settings.skip_extensions.iter().any(|skip| skip.eq_ignore_ascii_case(extension))
    })
}

/// A rename between names that are scanned and names that are not: a file would come in under one and out under the other.
fn renames_across(core: &mut Core, command: &Command) -> bool {
    if core.settings.skip_extensions.is_empty() {
        return false;
    }
    let word = command.word();
    if word.eq_ignore_ascii_case(b"RNFR") {
        core.effect = Some(Effect::RenamesSkipped(is_skipped(core, command)));
    }
    word.eq_ignore_ascii_case(b"RNTO") && core.renames_skipped != is_skipped(core, command)
}

fn auth(core: &mut Core, now: Instant, command: &Command) -> State {
    let mechanism = command.argument().trim_ascii();
    let is = |name: &[u8]| mechanism.eq_ignore_ascii_case(name);
    match core.settings.tls {
        Tls::Refuse => answer(core, text::TLS_REFUSED),
        Tls::Pass if is(b"TLS") || is(b"SSL") || is(b"TLS-C") || is(b"TLS-P") => {
            relay(core, now, command, Expect::Auth)
        }
        Tls::Terminate | Tls::Implicit if core.protection != Protection::None => {
            answer(core, text::ALREADY_TLS)
        }
        Tls::Terminate if is(b"TLS") || is(b"SSL") => {
            // To some servers AUTH SSL means PROT P as well; what it means to the client nobody can tell.
            core.tell_upstream(now, &b"AUTH TLS\r\n"[..], Expect::Auth);
            State::Relay { quit: false }
        }
        Tls::Terminate if is(b"TLS-C") || is(b"TLS-P") => answer(core, text::OBSOLETE_MECHANISM),
        Tls::Pass | Tls::Terminate | Tls::Implicit => answer(core, text::UNKNOWN_MECHANISM),
    }
}

/// PROT: the server decides, for both legs.
fn protect(core: &mut Core, now: Instant, command: &Command) -> State {
    let private = match command.argument().trim_ascii() {
        [b'C' | b'c'] => false,
        [b'P' | b'p'] => true,
        // Levels that TLS does not have (RFC 4217 section 9).
        [b'S' | b's' | b'E' | b'e'] => return answer(core, text::NO_SUCH_LEVEL),
        _ => return answer(core, text::UNKNOWN_LEVEL),
    };
    core.effect = Some(Effect::Protect(private));
    relay(core, now, command, Expect::Relay)
}

/// A restart position: digits, and no more than file offsets have (`off_t`).
fn number(argument: &[u8]) -> Option<u64> {
    let digits = argument.trim_ascii();
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    i64::try_from(number).is_ok().then_some(number)
}

/// Whether a TYPE leaves the bytes of a file as they are scanned, but for line ends: EBCDIC and other
/// byte sizes than 8 are encodings that the receiver undoes (RFC 959 section 3.1.1).
fn is_read_as_sent(argument: &[u8]) -> bool {
    // By the first letter, as some servers read it.
    match argument.trim_ascii().split_first() {
        Some((b'E' | b'e', _)) => false,
        Some((b'L' | b'l', size)) => size.trim_ascii() == b"8",
        // ASCII, with any carriage control, and image; what is none of these the server refuses.
        Some(_) | None => true,
    }
}

fn is_word(argument: &[u8], word: &[u8]) -> bool {
    argument.trim_ascii().eq_ignore_ascii_case(word)
}

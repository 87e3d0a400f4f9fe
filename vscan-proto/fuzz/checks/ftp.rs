//! What the fuzz targets for lines and FTP check. An ordinary test (`tests/ftp_corpus.rs`) runs the
//! same on the committed corpus.
//!
//! Every function takes arbitrary bytes and panics when an invariant does not hold.

use std::sync::Arc;
use std::time::{Duration, Instant};

use vscan_proto::ftp::address::{parse_227, parse_229, parse_eprt, parse_port};
use vscan_proto::ftp::command::{COMMAND_LIMIT, Command};
use vscan_proto::ftp::reply::{REPLY_LINE_LIMIT, Replies};
use vscan_proto::ftp::{
    Addresses, Broken, Delivery, Event, Judgement, Leg, Output, Recalled, Session, Settings, Tls,
};
use vscan_proto::line::LineSplitter;

/// Lines: nothing is lost, nothing grows past the limit, wherever the input is cut.
pub(crate) fn line(data: &[u8]) {
    const LIMIT: usize = 64;
    let size = usize::from(data.first().copied().unwrap_or(1) % 16) + 1;
    let mut lines = LineSplitter::new(LIMIT);
    let (mut out, mut lost) = (Vec::new(), false);
    for chunk in data.chunks(size) {
        lines.push(chunk);
        loop {
            match lines.next_line() {
                Ok(Some(line)) => {
                    assert!(line.raw().len() <= LIMIT);
                    out.extend_from_slice(line.raw());
                }
                Ok(None) => break,
                Err(_) => lost = true,
            }
        }
        assert!(lines.buffered().len() < LIMIT);
    }
    out.extend_from_slice(&lines.take_rest());
    assert!(lost || out == data);
}

/// Commands: what is relayed reads the same at the server.
pub(crate) fn command(data: &[u8]) {
    let mut lines = LineSplitter::new(COMMAND_LIMIT);
    lines.push(data);
    while let Ok(Some(line)) = lines.next_line() {
        let Ok(command) = Command::parse(&line) else { continue };
        let _ = command.extension();
        let mut again = LineSplitter::new(COMMAND_LIMIT + 1);
        again.push(command.wire());
        let line = again.next_line().ok().flatten();
        assert_eq!(line.and_then(|line| Command::parse(&line).ok()), Some(command));
        assert!(again.is_empty());
    }
}

/// Replies: no line over the limit, every byte accounted for, and every client reads the same end.
pub(crate) fn reply(data: &[u8]) {
    let mut replies = Replies::new();
    let (mut read, mut padded) = (0, 0);
    let mut inside = false;
    for chunk in data.chunks(7) {
        replies.push(chunk);
        while let Ok(Some(line)) = replies.next_line() {
            let code = line.raw.get(..3).filter(|code| code.iter().all(u8::is_ascii_digit));
            assert!(!(line.last && code.is_none()));
            assert!(!(inside && !line.last && code.is_some()) || line.raw[3] == b'-');
            let content = line.raw.strip_suffix(b"\n").unwrap_or(&line.raw);
            let content = content.strip_suffix(b"\r").unwrap_or(content);
            for (at, &byte) in content.iter().enumerate() {
                assert!(byte != b'\r' || content.get(at + 1) == Some(&0));
            }
            let pad = usize::from(inside && !line.last && line.raw.starts_with(b" "));
            assert!(line.raw.len() <= REPLY_LINE_LIMIT + pad);
            (read, padded) = (read + line.raw.len(), padded + pad);
            inside = line.code.is_some() && !line.last;
        }
    }
    assert!(read <= data.len() + padded);
}

/// Addresses: arbitrary arguments and replies.
pub(crate) fn address(data: &[u8]) {
    let _ = (parse_port(data), parse_eprt(data), parse_227(data), parse_229(data));
}

/// A session under arbitrary steps, `kind, length, bytes` each. As every judgement is a refusal,
/// nothing that was received may be sent.
pub(crate) fn session(data: &[u8]) {
    let mut now = Instant::now();
    let settings = Settings {
        skip_extensions: vec!["iso".into()],
        delivery: if data.len().is_multiple_of(2) { Delivery::Hold } else { Delivery::Stream },
        tls: match data.len() % 5 {
            0 => Tls::Refuse,
            1 | 2 => Tls::Terminate,
            3 => Tls::Implicit,
            _ => Tls::Pass,
        },
        ..Settings::default()
    };
    let addresses =
        Addresses { client: ([10, 0, 0, 1], 4000).into(), dialled: ([192, 0, 2, 1], 21).into() };
    let mut session = Session::new(now, Arc::new(settings), addresses);
    let mut over = false;
    let mut rest = data;
    while let [kind, length, tail @ ..] = rest
        && !over
    {
        let (bytes, tail) = tail.split_at(usize::from(*length).min(tail.len()));
        rest = tail;
        step(&mut session, &mut now, *kind, *length, bytes);
        let mut changes = false;
        while let Some(output) = session.poll_output() {
            assert!(!changes, "{output:?} while both wires change");
            changes |= matches!(output, Output::Secure | Output::Clear);
            assert!(!matches!(output, Output::Send(_)), "only refusals were given");
            assert!(!matches!(output, Output::Check), "no version is known");
            over |= matches!(output, Output::Close | Output::Reset | Output::Blind);
        }
        if changes {
            let result = if *kind & 0x20 == 0 { Ok(()) } else { Err(Broken { leg: Leg::Client }) };
            session.handle_event(now, Event::Secured(result));
        }
    }
}

/// What may be known of a file: no version, for a piece of one may be passed on.
const RECALLED: [Recalled; 3] = [Recalled::Nothing, Recalled::Suspect, Recalled::Busy];

fn step(session: &mut Session, now: &mut Instant, kind: u8, length: u8, bytes: &[u8]) {
    let leg = if kind & 0x80 == 0 { Leg::Client } else { Leg::Upstream };
    let result = if kind & 0x40 == 0 { Ok(()) } else { Err(Broken { leg }) };
    match kind & 0x0f {
        0..4 => session.handle_client(*now, bytes),
        4..7 => session.handle_upstream(*now, bytes),
        7 => session.handle_event(*now, Event::Listening(leg, Some(([10, 0, 0, 1], 2000).into()))),
        8 => session.handle_event(*now, Event::Connected(leg)),
        9 => session.handle_event(*now, Event::ConnectFailed(leg)),
        10 => session.handle_event(*now, Event::Received(result)),
        11 => {
            let reason = String::from_utf8_lossy(bytes).into_owned();
            session.handle_event(*now, Event::judged(Judgement::Refuse { reason }));
        }
        12 => session.handle_event(*now, Event::Sent(result)),
        13 => session.handle_event(*now, Event::Spliced(result)),
        14 if length.is_multiple_of(2) => session.handle_client_closed(*now),
        14 => session.handle_event(
            *now,
            Event::Recalled(RECALLED[usize::from(*bytes.first().unwrap_or(&0)) % 3]),
        ),
        _ => {
            *now += Duration::from_secs(u64::from(length));
            session.handle_timeout(*now);
        }
    }
}

//! The FTP dialogue with real servers, compared with what they say without a gateway; ABOR; names of every kind.

use anyhow::{Context, Result, ensure};
use socket2::SockRef;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;
use vscan_tests::agent::{Settings, Steering, Vscan};
use vscan_tests::fixtures;
use vscan_tests::ftp_matrix::{Running, SERVERS, Servers};
use vscan_tests::lab::{Family, Lab, Topology};
use vscan_tests::raw::{self, Peer};

/// What is asked, in this order. `>` sends a file by this command, `<` takes data.
const DIALOGUE: [&str; 62] = [
    "USER alice",
    "PASS wrong",
    "PWD",
    "PASV",
    "USER alice",
    "PASS secret",
    "SYST",
    "FEAT",
    "OPTS UTF8 ON",
    "OPTS UTF8 OFF",
    "OPTS MLST type;size;",
    "OPTS WHAT ever",
    "PWD",
    "TYPE A",
    "<LIST",
    "TYPE I",
    "TYPE L 8",
    "TYPE X",
    "MODE S",
    "MODE X",
    "STRU F",
    "STRU X",
    "ALLO 1000",
    "NOOP",
    "XYZZY",
    "SITE WHAT",
    "HELP",
    "ABOR",
    "MKD quo\"te",
    "MKD quo\"te",
    "CWD quo\"te",
    "PWD",
    "CDUP",
    "RMD quo\"te",
    "RMD quo\"te",
    "CWD missing",
    ">STOR file",
    ">STOR empty",
    ">STOR with space",
    ">STOR missing/file",
    "SIZE file",
    "SIZE missing",
    "MDTM missing",
    "MLST missing",
    "STAT file",
    "<NLST",
    "<NLST file",
    "<RETR file",
    "<RETR empty",
    "<RETR with space",
    "<RETR missing",
    "<LIST missing",
    "DELE missing",
    "RNFR missing",
    "RNTO nowhere",
    "RNFR file",
    "RNTO other",
    "DELE other",
    "DELE empty",
    "DELE with space",
    "ALLO x",
    "QUIT",
];

/// The commands whose answers are the gateway's own, as the README says, or name an address.
const OWN: [&str; 3] = ["PASV", "MODE X", "STRU X"];

/// Each server says through the gateway what it says without it.
#[test]
fn replies_are_the_servers_own() -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let servers = SERVERS
        .into_iter()
        .map(|kind| Ok((kind, kind.start(&lab)?)))
        .collect::<Result<Vec<(Servers, Running)>>>()?;
    let said_by_all = || -> Result<Vec<Vec<String>>> {
        std::thread::scope(|scope| {
            let threads: Vec<_> =
                servers.iter().map(|(kind, _)| scope.spawn(|| dialogue(&lab, *kind))).collect();
            threads
                .into_iter()
                .map(|thread| {
                    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                })
                .collect()
        })
    };
    let direct = said_by_all()?;
    let ports = SERVERS.map(|server| server.port().to_string()).join(", ");
    let settings = Settings::new(Steering::Bpf).with("ftp", &format!("ports = [{ports}]"));
    let vscan = Vscan::start(&lab, &settings)?;
    let through = said_by_all()?;
    ensure!(vscan.metrics()?.sum("vscan_sessions_total", &[("protocol", "ftp")]) >= 4.0);
    for (((kind, _), direct), through) in servers.iter().zip(&direct).zip(&through) {
        for ((command, direct), through) in DIALOGUE.iter().zip(direct).zip(through) {
            let name = kind.name();
            if *command == "FEAT" {
                features(direct, through).with_context(|| name)?;
            } else if !OWN.contains(command) {
                ensure!(
                    direct == through,
                    "{name}, {command}: direct\n{direct}\nthrough vscan\n{through}"
                );
            }
        }
    }
    Ok(())
}

/// Nothing is missing of the list of features but what the gateway does not let through, and nothing is new.
fn features(direct: &str, through: &str) -> Result<()> {
    let hidden = ["REST", "RANG", "MODE Z", "THMB", "SPSV"];
    for line in direct.lines() {
        let feature = line.trim();
        let is_hidden = hidden.iter().any(|word| feature.starts_with(word));
        let is_shown = through.lines().any(|shown| shown == line);
        ensure!(is_shown || is_hidden, "{line:?} is missing in {through}");
    }
    for line in through.lines() {
        ensure!(direct.lines().any(|known| known == line), "{line:?} is new: {direct}");
    }
    Ok(())
}

/// Has the dialogue; what was said to each command, data included, without what differs from run to run.
fn dialogue(lab: &Lab, kind: Servers) -> Result<Vec<String>> {
    let mut control = Peer::connect(lab.client(), lab.dial(Family::V4, kind.port()))?;
    control.set_limit(Duration::from_secs(20))?;
    control.expect("220")?;
    DIALOGUE
        .iter()
        .map(|command| {
            let said = match command.strip_prefix(['<', '>']) {
                None => {
                    control.send(format!("{command}\r\n"))?;
                    control.reply()?
                }
                Some(transfer) => data(lab, &mut control, transfer, command.starts_with('>'))?,
            };
            Ok(plain(command, &said))
        })
        .collect::<Result<_>>()
        .with_context(|| format!("{} of {}", kind.name(), kind.port()))
}

/// One transfer: its replies (but for the 1yz, which vscan may say itself) and what came.
fn data(lab: &Lab, control: &mut Peer, command: &str, upload: bool) -> Result<String> {
    let mut data = open(lab, control)?;
    control.send(format!("{command}\r\n"))?;
    let content: &[u8] = if command.ends_with("empty") { b"" } else { b"one\r\ntwo\r\n" };
    let mut came = String::new();
    let mut reply = control.reply()?;
    if reply.starts_with('1') {
        if upload {
            data.write_all(content)?;
            data.shutdown(std::net::Shutdown::Write)?;
        }
        data.read_to_string(&mut came)?;
        drop(data);
        reply = control.reply()?;
    }
    Ok(format!("{came}{reply}"))
}

/// Asks for a passive data connection and makes it.
fn open(lab: &Lab, control: &mut Peer) -> Result<TcpStream> {
    let reply = control.ask("EPSV", "229")?;
    let port = reply.split('|').nth(3).context("no port in the 229")?.parse()?;
    let to = SocketAddr::new(control.stream().peer_addr()?.ip(), port);
    let limit = Duration::from_secs(20);
    let stream = lab.client().within(|| raw::connect(None, to, limit))?;
    stream.set_read_timeout(Some(limit))?;
    Ok(stream)
}

/// Without times of day, speeds and numbers of processes and sessions.
fn plain(command: &str, said: &str) -> String {
    let times = matches!(command, "<LIST" | "STAT file") || said.contains("CPU time");
    let lines = said.split_inclusive('\n').filter(|line| !line.contains("per second"));
    lines.flat_map(str::chars).filter(|character| !times || !character.is_ascii_digit()).collect()
}

/// ABOR as real clients send it stops a transfer at each server, and the session goes on.
#[test]
fn abor_in_the_middle_of_a_transfer() -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let ports = SERVERS.map(|server| server.port().to_string()).join(", ");
    let settings = Settings::new(Steering::Bpf)
        .with("ftp", &format!("ports = [{ports}]"))
        .with("scan", "skip_extensions = [\"iso\"]\nverify_type = false")
        .with("spool", "hold_max = \"20 MiB\"");
    let vscan = Vscan::start(&lab, &settings)?;
    std::thread::scope(|scope| {
        let threads = SERVERS.map(|kind| {
            let lab = &lab;
            scope.spawn(move || aborts(lab, kind).with_context(|| kind.name()))
        });
        threads.into_iter().try_for_each(|thread| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    })?;
    vscan.wait_for_event("ftp", |event| event["ftp"]["outcome"] == "aborted")?;
    Ok(())
}

/// How ABOR is sent: bytes in the stream, or the last of a part as urgent data.
const ABORTS: [(&[u8], &[u8]); 4] = [
    // As curl does.
    (b"", b"ABOR\r\n"),
    // RFC 959 section 4.1.3 with RFC 854: IP, then a Synch whose data mark is urgent.
    (b"\xff\xf4\xff\xf2", b"ABOR\r\n"),
    // 4.4BSD's ftp and its descendants: the IAC is urgent, the data mark follows in the stream.
    (b"\xff\xf4\xff", b"\xf2ABOR\r\n"),
    // Python's ftplib: the whole line is urgent, that is, its line feed.
    (b"ABOR\r\n", b""),
];

fn aborts(lab: &Lab, kind: Servers) -> Result<()> {
    let server = kind.start(lab)?;
    // More than the sockets on the way can hold.
    let large = fixtures::random(18_000_000, 2);
    // Spliced: as nobody reads, the server is in the middle of it. Held: the gateway is.
    fs::write(server.files().join("large.iso"), &large)?;
    fs::write(server.files().join("large.bin"), &large)?;
    fs::write(server.files().join("huge.bin"), [&large[..], &large].concat())?;
    fs::write(server.files().join("small"), b"small")?;
    let mut control = Peer::connect(lab.client(), lab.dial(Family::V4, kind.port()))?;
    control.expect("220")?;
    control.ask("USER alice", "331")?;
    control.ask("PASS secret", "230")?;
    control.ask("TYPE I", "200")?;
    for (urgent, rest) in ABORTS {
        for command in ["RETR large.iso", "RETR large.bin", "STOR up.bin", "STOR up.iso"] {
            let what = || format!("{command} {:?}\n{}", urgent.escape_ascii(), server.log());
            let mut data = open(lab, &mut control)?;
            control.send(format!("{command}\r\n"))?;
            control.expect("1").with_context(what)?;
            if command.starts_with("STOR") {
                data.write_all(&large[..100_000])?;
            } else {
                data.read_exact(&mut [0; 1000])?;
            }
            if !urgent.is_empty() {
                let sent = SockRef::from(control.stream()).send_out_of_band(urgent)?;
                ensure!(sent == urgent.len());
            }
            control.send(rest)?;
            let stopped = control.reply().with_context(what)?;
            ensure!(
                stopped.starts_with("426") || stopped.starts_with("451"),
                "{stopped} {}",
                what()
            );
            let done = control.reply().with_context(what)?;
            // Pure-FTPd says 451 to an ABOR that it hears before the data connection breaks.
            let ends = ["226", "225", "451"];
            ensure!(ends.iter().any(|code| done.starts_with(code)), "{done} {}", what());
            // Nobody takes what came for the whole file.
            let mut came = Vec::new();
            let ended = data.read_to_end(&mut came);
            ensure!(ended.is_err(), "an orderly end of data: {}", what());
        }
        // The gateway itself breaks off what is too large to be held.
        drop(open(lab, &mut control)?);
        let too_large = control.ask("RETR huge.bin", "550").with_context(|| server.log())?;
        ensure!(too_large.contains("size"), "{too_large}");
        if kind == Servers::PyFtpd {
            // Now and then it answers 125 to a transfer and sends nothing: its own dialogue goes on all the same.
            control.ask("SIZE small", "213 5")?;
            continue;
        }
        let mut data = open(lab, &mut control)?;
        control.send("RETR small\r\n")?;
        control.expect("1").with_context(|| server.log())?;
        let mut small = String::new();
        data.read_to_string(&mut small)?;
        drop(data);
        control.expect("226")?;
        ensure!(small == "small");
    }
    control.ask("QUIT", "221")?;
    ensure!(!server.files().join("up.bin").exists(), "a held upload that was aborted is there");
    Ok(())
}

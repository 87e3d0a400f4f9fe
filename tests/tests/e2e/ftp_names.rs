//! Names of every kind arrive as they were sent, and are harmless where they are shown; oddities of either side are
//! named and counted.

use anyhow::{Context, Result, ensure};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use vscan_tests::agent::{Settings, Steering, Vscan, repository};
use vscan_tests::ftp_matrix::{Running, SERVERS, Servers};
use vscan_tests::lab::{Family, Lab, Topology, inside_second, outside};
use vscan_tests::raw::{self, Peer};
use vscan_tests::{fixtures, wait};

const LIMIT: Duration = Duration::from_secs(20);

/// As they go over the wire: a CR has its NUL, a 0xFF its second (RFC 854).
const NAMES: [&[u8]; 16] = [
    b"plain",
    b"with space",
    b" leading",
    b"trailing ",
    b"quo\"te's",
    b"semi;colon&|$`*?[]",
    b"%s%n%x",
    b"-dash",
    b"tab\there",
    b"bell\x07escape\x1b[2Jdelete\x7f",
    b"latin \xe9",
    b"utf-8 \xc3\xa9 \xe2\x80\xae",
    b"broken \xc3",
    b"cr\r\0inside",
    b"cr at end\r\0",
    b"iac \xff\xff inside",
];

/// A file stored through the gateway has, for each server, the name that it has without one.
#[test]
fn names_arrive_as_without_a_gateway() -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let servers = SERVERS
        .into_iter()
        .map(|kind| Ok((kind, kind.start(&lab)?)))
        .collect::<Result<Vec<(Servers, Running)>>>()?;
    for (kind, server) in &servers {
        store_all(&lab, *kind, server.files(), "direct").with_context(|| kind.name())?;
    }
    let ports = SERVERS.map(|server| server.port().to_string()).join(", ");
    let settings = Settings::new(Steering::Bpf).with("ftp", &format!("ports = [{ports}]"));
    let vscan = Vscan::start(&lab, &settings)?;
    for (kind, server) in &servers {
        let direct = store_all(&lab, *kind, server.files(), "through");
        direct.with_context(|| format!("{} {}", kind.name(), server.log()))?;
        let names = |dir| listed(&server.files().join(dir));
        let (direct, through) = (names("direct")?, names("through")?);
        ensure!(direct == through, "{}: {direct:?} became {through:?}", kind.name());
        ensure!(direct.len() >= 10, "{}: {direct:?}", kind.name());
    }
    // Every name was scanned, and none of them does anything to a terminal or breaks a line of the log.
    let objects = vscan.metrics()?.sum("vscan_objects_total", &[("verdict", "clean")]);
    let sent: usize = SERVERS.map(|kind| names(kind).count()).iter().sum();
    ensure!(objects == sent as f64, "{objects} of {sent}");
    for output in ["table", "compact", "json"] {
        let shown = vscan.cli(&["flows", "--last", "10", "-o", output])?.out;
        ensure!(shown.chars().all(|c| c == '\n' || !c.is_control()), "{output}: {shown:?}");
        ensure!(!shown.contains('\u{202e}') || output == "json", "{output}: {shown:?}");
    }
    for name in ["bell\x07escape\x1b[2Jdelete\x7f", "latin \\xe9", "cr\rinside", "iac \\xff inside"]
    {
        vscan.wait_for_event("ftp", |event| event["ftp"]["name"] == name)?;
    }
    let log = fs::read(lab.gateway.dir().join("events.json"))?;
    ensure!(log.iter().all(|&byte| byte == b'\n' || byte >= b' '), "controls in the event log");
    Ok(())
}

/// The names that this server survives: pyftpdlib hangs up on a NUL and on what is no UTF-8, also without a gateway.
fn names(kind: Servers) -> impl Iterator<Item = &'static [u8]> {
    let survives = move |name: &&[u8]| {
        kind != Servers::PyFtpd || std::str::from_utf8(name).is_ok() && !name.contains(&0)
    };
    NAMES.into_iter().filter(survives)
}

fn listed(dir: &Path) -> Result<BTreeSet<OsString>> {
    fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name())).collect()
}

/// Stores a file under each name in a directory of its own; what the server says to it must not depend on the way.
fn store_all(lab: &Lab, kind: Servers, files: &Path, dir: &str) -> Result<()> {
    let mut control = Peer::connect(lab.client(), lab.dial(Family::V4, kind.port()))?;
    control.expect("220")?;
    control.ask("USER alice", "331")?;
    control.ask("PASS secret", "230")?;
    control.ask("TYPE I", "200")?;
    control.ask(&format!("MKD {dir}"), "257")?;
    control.ask(&format!("CWD {dir}"), "250")?;
    let content = fixtures::random(500, 4);
    for name in names(kind) {
        let port = control.ask("EPSV", "229")?.split('|').nth(3).context("no port")?.parse()?;
        let to = SocketAddr::new(outside(Family::V4), port);
        let mut data = lab.client().within(|| raw::connect(None, to, LIMIT))?;
        control.send([b"STOR ", name, b"\r\n"].concat())?;
        let mut reply = control.reply()?;
        if reply.starts_with('1') {
            data.write_all(&content)?;
            drop(data);
            reply = control.reply()?;
        }
        let stored = reply.starts_with("226");
        let (count, name) = (fs::read_dir(files.join(dir))?.count(), name.escape_ascii());
        ensure!(stored || reply.starts_with('5'), "{name}: {reply}, {count} files");
    }
    control.ask("QUIT", "221")?;
    for name in listed(&files.join(dir))? {
        let stored = fs::read(files.join(dir).join(&name))?;
        ensure!(stored == content, "{:?} was changed", name.into_vec().escape_ascii().to_string());
    }
    Ok(())
}

/// A server that follows a script: greets, notes every line as it came, and answers by its first letters.
struct Scripted {
    heard: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Scripted {
    fn start(
        lab: &Lab,
        port: u16,
        greeting: String,
        answers: &'static [(&'static str, &'static str)],
    ) -> Result<Self> {
        let listener = raw::listen(lab.server(), port)?;
        let heard = Arc::<Mutex<Vec<Vec<u8>>>>::default();
        let noted = Arc::clone(&heard);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // Its end is the peer's to judge.
                let _ = talk(stream, &greeting, answers, &noted);
            }
        });
        Ok(Self { heard })
    }
}

fn talk(
    mut stream: TcpStream,
    greeting: &str,
    answers: &[(&str, &str)],
    heard: &Mutex<Vec<Vec<u8>>>,
) -> Result<()> {
    stream.write_all(greeting.as_bytes())?;
    let mut lines = BufReader::new(stream.try_clone()?);
    loop {
        let mut line = Vec::new();
        if lines.read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        let answer = answers.iter().find(|(begin, _)| line.starts_with(begin.as_bytes()));
        if let Ok(mut heard) = heard.lock() {
            heard.push(line);
        }
        stream.write_all(answer.map_or("200 ok\r\n", |(_, answer)| answer).as_bytes())?;
    }
}

/// A name of 4096 bytes, each of them doubled, and replies of some length and many lines go through byte by byte.
#[test]
fn long_names_and_replies_are_unchanged() -> Result<()> {
    const MANY: &str = "213-Status\r\n a\r\0b \u{e9}\r\n -rw 213 x\r\n213-\r\n213 End\r\n";
    let lab = Lab::new(Topology::Plain)?;
    let server = Scripted::start(&lab, 21, "220 hi\r\n".to_owned(), &[("STAT", MANY)])?;
    let _vscan = Vscan::start(&lab, &Settings::new(Steering::Bpf))?;
    let mut control = Peer::connect(lab.client(), lab.dial(Family::V4, 21))?;
    control.expect("220")?;
    let mut sent = Vec::new();
    for name in [vec![b'x'; 4096], vec![0xff; 2 * 4096], b"\r\0".repeat(2000)] {
        for verb in ["SIZE", "mlst", "RNFR", "SITE CHMOD 644", "XYZZY"] {
            let line = [verb.as_bytes(), b" ", &name, b"\r\n"].concat();
            control.send(&line)?;
            control.expect("200").with_context(|| format!("{verb} of {}", name.len()))?;
            sent.push(line);
        }
    }
    control.send("STAT /\r\n")?;
    ensure!(control.take(MANY.len())? == MANY.as_bytes());
    sent.push(b"STAT /\r\n".to_vec());
    let heard = server.heard.lock().map_err(|_| anyhow::anyhow!("the server panicked"))?.clone();
    ensure!(heard == sent, "lines were changed");
    Ok(())
}

/// An oddity: its name, how the server begins, what it answers, and what the client sends.
struct Oddity {
    name: &'static str,
    greeting: &'static str,
    answers: &'static [(&'static str, &'static str)],
    client: &'static [u8],
}

const ODDITIES: [Oddity; 10] = [
    Oddity { name: "ftp_bare_lf", greeting: "220 hi\r\n", answers: &[], client: b"NOOP\n" },
    Oddity {
        name: "ftp_malformed_command",
        greeting: "220 hi\r\n",
        answers: &[],
        client: b"\x01\x02 RETR x\r\n",
    },
    Oddity {
        name: "ftp_bounce",
        greeting: "220 hi\r\n",
        answers: &[],
        client: b"PORT 192,0,2,2,8,1\r\n",
    },
    Oddity {
        name: "ftp_malformed_reply",
        greeting: "220 hi\r\n",
        answers: &[("NOOP", "no code\r\n200 ok\r\n")],
        client: b"NOOP\r\n",
    },
    Oddity {
        name: "ftp_unexpected_reply",
        greeting: "220 hi\r\n200 to what?\r\n",
        answers: &[],
        client: b"",
    },
    Oddity {
        name: "ftp_unasked_address",
        greeting: "220 hi\r\n",
        answers: &[("NOOP", "227 Entering Passive Mode (192,0,2,9,4,1)\r\n")],
        client: b"NOOP\r\n",
    },
    Oddity {
        name: "ftp_passive_reply",
        greeting: "220 hi\r\n",
        answers: &[("PASV", "227 somewhere\r\n"), ("EPSV", "500 no\r\n"), ("PORT", "500 no\r\n")],
        client: b"PASV\r\n",
    },
    Oddity {
        name: "ftp_plaintext_behind_auth",
        greeting: "220 hi\r\n",
        answers: &[("AUTH", "234 go\r\n")],
        client: b"AUTH TLS\r\nUSER joe\r\n",
    },
    Oddity {
        name: "ftp_line_too_long",
        greeting: "220 hi\r\n",
        answers: &[],
        client: &[b'x'; 10_000],
    },
    Oddity { name: "ftp_reply_too_long", greeting: "long", answers: &[], client: b"" },
];

/// Each oddity is counted under its name, once, and written to the event log; the README names them all.
#[test]
fn oddities_are_named_and_counted() -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let ports: Vec<u16> = (2121..).take(ODDITIES.len() + 2).collect();
    let listed = ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ");
    let settings = Settings::new(Steering::Bpf).with("ftp", &format!("ports = [{listed}]"));
    let vscan = Vscan::start(&lab, &settings)?;
    let readme = fs::read_to_string(repository().join("README.md"))?;
    let counted = |name: &'static str| -> Result<()> {
        wait::until(&format!("{name} is not counted"), Duration::from_secs(5), || {
            let count = vscan.metrics()?.sum("vscan_anomalies_total", &[("name", name)]);
            Ok((count == 1.0).then_some(()))
        })?;
        vscan.wait_for_event("anomaly", |event| event["anomaly"]["event"] == name)?;
        ensure!(readme.contains(&format!("| `{name}` |")), "the README does not name {name}");
        Ok(())
    };
    for (oddity, &port) in ODDITIES.iter().zip(&ports) {
        let greeting = match oddity.greeting {
            "long" => format!("220-{}", "x".repeat(20_000)),
            usual => usual.to_owned(),
        };
        let _server = Scripted::start(&lab, port, greeting, oddity.answers)?;
        let mut control = Peer::connect(lab.client(), lab.dial(Family::V4, port))?;
        if oddity.greeting != "long" {
            control.expect("220")?;
        }
        // The gateway may have had enough before it has read everything.
        let _ = control.send(oddity.client);
        counted(oddity.name)?;
    }
    // Two that take more than a line.
    let (tls, data) = (ports[ports.len() - 2], ports[ports.len() - 1]);
    let _server = Scripted::start(&lab, tls, "220 hi\r\n".to_owned(), &[("AUTH", "234 go\r\n")])?;
    let mut control = Peer::connect(lab.client(), lab.dial(Family::V4, tls))?;
    control.expect("220")?;
    control.ask("AUTH TLS", "234")?;
    control.send("USER joe\r\n")?;
    counted("ftp_no_tls_record")?;
    let answers = &[("PASV", "500 no\r\n"), ("EPSV", "500 no\r\n")];
    let _server = Scripted::start(&lab, data, "220 hi\r\n".to_owned(), answers)?;
    let mut control = Peer::connect(lab.client(), lab.dial(Family::V4, data))?;
    control.expect("220")?;
    let port = control.ask("EPSV", "229")?.split('|').nth(3).context("no port")?.parse()?;
    let to = SocketAddr::new(outside(Family::V4), port);
    let second = Some(inside_second(Family::V4));
    // It is reset, perhaps before it knows that it was connected.
    let _ = lab.client().within(|| raw::connect(second, to, LIMIT));
    counted("ftp_data_stranger")?;
    let all = vscan.metrics()?.sum("vscan_anomalies_total", &[]);
    ensure!(all == (ODDITIES.len() + 2) as f64, "others were counted: {}", vscan.metrics()?.0);
    Ok(())
}

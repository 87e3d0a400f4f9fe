//! Mail that lies on a server: how fast messages are looked at that were scanned before, against a loop that only fetches
//! them; and what a thousand accounts take that wait for mail.

use std::{
    fmt::Write as _,
    fs,
    net::SocketAddr,
    os::unix::fs::chown,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use vscan_tests::{
    agent::{Vscan, repository},
    host::Host,
    imap_server::{Behaviour, Server},
    lab::{self, Lab, Topology},
    load,
    peers::{self, Dovecot},
    raw, wait,
};

use crate::Output;

/// Messages each second.
const KNOWN: &str = "mailbox-known";
/// Of the rate of the loop.
const KNOWN_GOAL: f64 = 0.8;
/// MiB that the accounts take.
const IDLE: &str = "mailbox-1000-idle";
/// 64 KiB for each.
const IDLE_GOAL: f64 = 64.0;

pub(super) const NAMES: [&str; 2] = [KNOWN, IDLE];

/// Messages in the folder, and bytes of each.
const MESSAGES: usize = 2000;
const BYTES: usize = 6 << 10;

/// Measured so often in turns; the medians count.
const ROUNDS: usize = 5;

/// Accounts that wait.
const ACCOUNTS: usize = 1000;

/// Everything is there after this at the latest.
const PATIENCE: Duration = Duration::from_secs(120);

/// Runs those that are wanted.
pub(super) fn run(wanted: impl Fn(&str) -> bool, output: Output) -> Result<()> {
    if wanted(KNOWN) {
        let (rate, baseline) = known()?;
        super::report(output, KNOWN, "messages/s", rate, Some(baseline), Some(KNOWN_GOAL));
    }
    if wanted(IDLE) {
        super::report(output, IDLE, "MiB", idle()?, None, Some(IDLE_GOAL));
    }
    Ok(())
}

/// `vscan mailbox run` with the shipped rules and one mailbox section, of these users.
fn start<'lab>(lab: &'lab Lab, users: &[String], more: &str) -> Result<Vscan<'lab>> {
    let host = &lab.gateway;
    let dir = host.dir().display();
    fs::write(host.dir().join("secret"), "master\n")?;
    fs::write(host.dir().join("users"), users.join("\n"))?;
    let rules = repository().join("deploy/rules");
    let text = format!(
        "[paths]\nrun_dir = \"{dir}/run\"\nstate_dir = \"{dir}/state\"\nevents = \"{dir}/events.json\"\n\
         [scan]\nrules = [\"{}\"]\nworkers = 2\n[quarantine]\nmin_free = \"1 MiB\"\n\
         [mailbox.bench]\nhost = \"{}\"\nsecurity = \"insecure\"\nuser = \"admin\"\n\
         secret_file = \"{dir}/secret\"\nusers_file = \"{dir}/users\"\ninterval = \"1h\"\n{more}\n",
        rules.display(),
        server().ip(),
    );
    let config: PathBuf = host.dir().join("mailbox.toml");
    fs::write(&config, text)?;
    Vscan::start_mailboxes(host, config)
}

fn server() -> SocketAddr {
    SocketAddr::new(lab::outside(lab::Family::V4), 143)
}

fn known() -> Result<(f64, f64)> {
    let lab = Lab::new(Topology::Plain)?;
    let _dovecot = Dovecot::start(lab.server())?;
    fill(lab.server())?;
    let vscan = start(&lab, &["bench".to_owned()], "which = \"all\"")?;
    // The first look scans them, and fills the verdict cache.
    wait::until_true("the first look", PATIENCE, || {
        vscan.json(&["mailbox", "status", "bench"]).is_ok_and(|all| all[0]["scanned"] == MESSAGES)
    })?;
    let mut rates = [Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        let began = Instant::now();
        let scanned = vscan.cli(&["mailbox", "scan", "bench/bench/INBOX"])?;
        ensure!(scanned.success(), "{}{}", scanned.out, scanned.err);
        rates[0].push(MESSAGES as f64 / began.elapsed().as_secs_f64());
        rates[1].push(MESSAGES as f64 / fetch_all(&lab)?.as_secs_f64());
    }
    let [rate, baseline] = rates.map(super::median);
    Ok((rate, baseline))
}

/// Puts the messages into the Maildir of `bench`.
fn fill(host: &Host) -> Result<()> {
    let new = host.dir().join("dovecot/mail/bench/new");
    fs::create_dir_all(&new)?;
    for number in 0..MESSAGES {
        let mut text = format!(
            "From: a@example.org\r\nTo: bench@example.org\r\nSubject: {number}\r\n\
             Message-ID: <{number}@example.org>\r\n\r\n"
        );
        while text.len() < BYTES {
            write!(text, "line {} of message {number}, which says little\r\n", text.len())?;
        }
        fs::write(new.join(format!("{number}.bench")), text)?;
    }
    let owner = Some(peers::MAIL_OWNER);
    let root = host.dir().join("dovecot/mail/bench");
    for path in [root.clone(), new.clone()] {
        chown(path, owner, owner)?;
    }
    for sub in ["cur", "tmp"] {
        fs::create_dir_all(root.join(sub))?;
        chown(root.join(sub), owner, owner)?;
    }
    for file in fs::read_dir(new)? {
        chown(file?.path(), owner, owner)?;
    }
    Ok(())
}

/// One message after the other, and nothing done with them.
fn fetch_all(lab: &Lab) -> Result<Duration> {
    let mut peer = raw::Peer::connect(&lab.gateway, server())?;
    peer.line()?;
    let ended = |peer: &mut raw::Peer, tag: &str| -> Result<()> {
        loop {
            let line = peer.line()?;
            if line.starts_with(tag) {
                ensure!(line.contains(" OK"), "{line}");
                return Ok(());
            }
        }
    };
    let began = Instant::now();
    peer.send("a LOGIN bench secret\r\n")?;
    ended(&mut peer, "a ")?;
    peer.send("b EXAMINE INBOX\r\n")?;
    ended(&mut peer, "b ")?;
    for number in 1..=MESSAGES {
        peer.send(format!("c UID FETCH {number} (BODY.PEEK[])\r\n"))?;
        let line = peer.line()?;
        let length = line.trim_end().strip_suffix('}').and_then(|line| line.rsplit_once('{'));
        let (_, length) = length.with_context(|| line.clone())?;
        peer.take(length.parse()?)?;
        ended(&mut peer, "c ")?;
    }
    Ok(began.elapsed())
}

fn idle() -> Result<f64> {
    let take = |accounts: usize| -> Result<f64> {
        let lab = Lab::new(Topology::Plain)?;
        let listener = raw::listen(lab.server(), 143)?;
        let behaviour = Behaviour { messages: 10, keep: false, ..Behaviour::default() };
        let server = Server::on(listener, behaviour)?;
        let users: Vec<String> = (0..accounts).map(|number| format!("user{number}")).collect();
        let vscan = start(&lab, &users, &format!("connections = {}", ACCOUNTS + 1))?;
        wait::until_true("all accounts wait", PATIENCE, || server.idle() == accounts)?;
        load::resident(vscan.processes().gateway)
    };
    Ok((take(ACCOUNTS)? - take(1)?) / 1024.0)
}

//! No mail is lost: each process, the client and the server die at each stage of a message. The client hears 250 only
//! if the server has said it, and the server never sees the end of a message that is not whole.

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use std::io::ErrorKind;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::Duration;
use vscan_tests::agent::{self, Settings, Steering, Vscan};
use vscan_tests::host::signal;
use vscan_tests::lab::{Family, Lab, Topology};
use vscan_tests::raw::{self, End, Peer};
use vscan_tests::smtp::{self, Behaviour, Sink};
use vscan_tests::{on_both, wait};

on_both!(a_client_dies, a_server_dies, the_scanner_dies, the_gateway_dies, the_supervisor_dies);

/// What has just happened when somebody dies: the server has this before it and has not answered, or the client is as
/// far as this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Connected,
    Ehlo,
    Mail,
    Rcpt,
    /// The client has sent half of its message.
    Half,
    /// The server has DATA.
    Offered,
    /// The server reads no more of the message.
    Sending,
    /// The server has the message.
    Sent,
    /// The client has sent its message, and the scanner has it.
    Scanned,
}

/// The last one stops the scanner: it comes when the others have been served.
const STAGES: [Stage; 9] = [
    Stage::Connected,
    Stage::Ehlo,
    Stage::Mail,
    Stage::Rcpt,
    Stage::Half,
    Stage::Offered,
    Stage::Sending,
    Stage::Sent,
    Stage::Scanned,
];

impl Stage {
    /// A server for each, so that they are told apart.
    fn port(self) -> u16 {
        2500 + self as u16
    }

    /// Larger than what two sockets hold.
    fn message(self) -> Vec<u8> {
        let text = format!("Subject: {self:?}\r\n\r\n");
        let line = format!("{}\r\n", "x".repeat(70));
        let lines = if self == Stage::Sending { 300_000 } else { 100 };
        [text.as_bytes(), line.repeat(lines).as_bytes(), b"the end\r\n.\r\n"].concat()
    }
}

/// What a server has seen.
#[derive(Debug, Default)]
struct Seen {
    /// Between its 354 and the end of the message or of the connection.
    message: Vec<u8>,
    /// The end of the message was there.
    whole: bool,
    /// It has said 250 to it.
    accepted: bool,
    /// How the connection ended, if it was not the server that ended it.
    end: Option<End>,
}

/// Where a peer waits for its order, at one stage.
struct Gate {
    stage: Option<Stage>,
    reached: Sender<()>,
    orders: Receiver<()>,
}

impl Gate {
    fn pass(&self, at: Stage) -> Result<()> {
        if self.stage == Some(at) {
            self.reached.send(())?;
            self.orders.recv_timeout(Duration::from_secs(30))?;
        }
        Ok(())
    }
}

/// Serves one session.
fn serve(listener: &TcpListener, gate: &Gate, stream: &Sender<TcpStream>) -> Result<Seen> {
    let (mut peer, _) = raw::accept(listener)?;
    stream.send(peer.stream().try_clone()?)?;
    let mut seen = Seen::default();
    gate.pass(Stage::Connected)?;
    let mut dialogue = || -> Result<()> {
        peer.send("220 lossy\r\n")?;
        loop {
            let line = peer.line()?;
            match line.get(..4) {
                Some("EHLO") => gate.pass(Stage::Ehlo)?,
                Some("MAIL") => gate.pass(Stage::Mail)?,
                Some("RCPT") => gate.pass(Stage::Rcpt)?,
                _ => {}
            }
            if !line.starts_with("DATA") {
                peer.send(if line.starts_with("QUIT") { "221 bye\r\n" } else { "250 ok\r\n" })?;
                continue;
            }
            gate.pass(Stage::Offered)?;
            peer.send("354 go\r\n")?;
            gate.pass(Stage::Sending)?;
            while !seen.whole {
                let line = peer.line()?;
                seen.message.extend_from_slice(line.as_bytes());
                seen.whole = line == ".\r\n";
            }
            gate.pass(Stage::Sent)?;
            seen.accepted = true;
            peer.send(TAKEN)?;
        }
    };
    // A reset is told once, to whoever reads or writes next.
    let Err(error) = dialogue() else { return Ok(seen) };
    let reset = error.downcast_ref::<std::io::Error>().is_some_and(|error| {
        matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe)
    });
    seen.end = Some(if reset { End::Reset } else { End::Fin });
    Ok(seen)
}

/// Where a server shows whether the gateway serves again.
const PROBE: u16 = 2600;

/// The gateway notices what happens to a connection within this time.
const LIMIT: Duration = Duration::from_secs(10);

const TAKEN: &str = "250 2.0.0 taken\r\n";

/// Sends one message; the final reply, or none if there was an end before it.
fn send(mut peer: Peer, message: &[u8], gate: &Gate) -> Option<String> {
    let mut dialogue = || -> Result<String> {
        peer.expect("220")?;
        peer.ask("EHLO client.example", "250")?;
        peer.ask("MAIL FROM:<a@client.example>", "250")?;
        peer.ask("RCPT TO:<b@server.example>", "250")?;
        peer.ask("DATA", "354")?;
        let (first, second) = message.split_at(message.len() / 2);
        peer.send(first)?;
        gate.pass(Stage::Half)?;
        peer.send(second)?;
        let reply = peer.reply()?;
        peer.ask("QUIT", "221")?;
        Ok(reply)
    };
    dialogue().ok()
}

/// A client and a server at work.
struct Session<'scope> {
    stage: Stage,
    client: TcpStream,
    server: TcpStream,
    reached: Receiver<()>,
    orders: [Sender<()>; 2],
    heard: ScopedJoinHandle<'scope, Option<String>>,
    seen: ScopedJoinHandle<'scope, Result<Seen>>,
}

impl<'scope> Session<'scope> {
    /// Begins, with a stage at which it waits.
    fn start<'env>(
        scope: &'scope Scope<'scope, 'env>,
        lab: &Lab,
        listener: &'env TcpListener,
        stage: Stage,
        waits: bool,
    ) -> Result<Self> {
        let (reached, reach) = channel();
        let gates = [(), ()].map(|()| {
            let (order, orders) = channel();
            (order, Gate { stage: waits.then_some(stage), reached: reached.clone(), orders })
        });
        let [(first, at_client), (second, at_server)] = gates;
        let (stream, streams) = channel();
        let seen = scope.spawn(move || serve(listener, &at_server, &stream));
        let peer = Peer::connect(lab.client(), lab.dial(Family::V4, stage.port()))?;
        let client = peer.stream().try_clone()?;
        let heard = scope.spawn(move || send(peer, &stage.message(), &at_client));
        let server = streams.recv_timeout(Duration::from_secs(10))?;
        Ok(Self { stage, client, server, reached: reach, orders: [first, second], heard, seen })
    }

    fn wait(&self) -> Result<()> {
        self.reached
            .recv_timeout(Duration::from_secs(20))
            .with_context(|| format!("{:?} does not come", self.stage))
    }

    /// Both may go on, as far as they can.
    fn go_on(&self) {
        for order in &self.orders {
            // Who does not wait does not listen.
            let _ = order.send(());
        }
    }

    /// What the client has heard, what the server has seen.
    fn end(self) -> Result<(Stage, Option<String>, Seen)> {
        self.go_on();
        let Self { stage, client, server, heard, seen, .. } = self;
        // These two held the connections open.
        drop((client, server));
        let heard = heard.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let seen = seen.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok((stage, heard, seen.with_context(|| format!("{stage:?}"))?))
    }
}

/// Who dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Client,
    Server,
    Scanner,
    Gateway,
    Supervisor,
}

fn a_client_dies(steering: Steering) -> Result<()> {
    dies(steering, Victim::Client)
}

fn a_server_dies(steering: Steering) -> Result<()> {
    dies(steering, Victim::Server)
}

fn the_scanner_dies(steering: Steering) -> Result<()> {
    dies(steering, Victim::Scanner)
}

fn the_gateway_dies(steering: Steering) -> Result<()> {
    dies(steering, Victim::Gateway)
}

fn the_supervisor_dies(steering: Steering) -> Result<()> {
    dies(steering, Victim::Supervisor)
}

/// One session for each stage, all at once; then somebody dies.
fn dies(steering: Steering, victim: Victim) -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let listeners = STAGES.map(|stage| raw::listen(lab.server(), stage.port()));
    let listeners: Vec<TcpListener> = listeners.into_iter().collect::<Result<_>>()?;
    let ports = STAGES.map(|stage| stage.port().to_string()).join(", ");
    let settings = Settings::new(steering).with("smtp", &format!("ports = [{ports}, {PROBE}]"));
    let _probed = Sink::start(lab.server(), PROBE, Behaviour::default())?;
    let mut vscan = Vscan::start(&lab, &settings)?;
    let before = vscan.processes();
    let ends = std::thread::scope(|scope| -> Result<Vec<(Stage, Option<String>, Seen)>> {
        let mut sessions = Vec::new();
        for (stage, listener) in STAGES.into_iter().zip(&listeners) {
            if stage != Stage::Scanned {
                sessions.push(Session::start(scope, &lab, listener, stage, true)?);
                continue;
            }
            sessions.iter().try_for_each(Session::wait)?;
            before.workers.iter().for_each(|pid| signal(*pid, Signal::STOP));
            sessions.push(Session::start(scope, &lab, listener, stage, true)?);
            wait::until("nothing is scanned", Duration::from_secs(10), || {
                Ok(vscan.flows()?.iter().any(|flow| flow["state"] == "scan").then_some(()))
            })?;
        }
        match victim {
            Victim::Client => {
                sessions.iter().try_for_each(|it| it.client.shutdown(Shutdown::Both))?;
                // A server that takes the message before the gateway knows would get it all the same.
                let early = [Stage::Offered, Stage::Sending].map(|stage| stage.port().to_string());
                wait::until("the gateway goes on without a client", LIMIT, || {
                    let flows = vscan.flows()?;
                    let mut meant = flows.iter().filter(|flow| {
                        let server = flow["real_server"].as_str().unwrap_or_default();
                        early.iter().any(|port| server.rsplit(':').next() == Some(port))
                    });
                    Ok(meant.all(|flow| !flow["ended"].is_null()).then_some(()))
                })?;
            }
            Victim::Server => {
                sessions.iter().try_for_each(|it| it.server.shutdown(Shutdown::Both))?;
            }
            Victim::Scanner => agent::kill(before.scanner)?,
            Victim::Gateway => agent::kill(before.gateway)?,
            Victim::Supervisor => {
                agent::kill(before.supervisor)?;
                // Its end is the gateway's, which comes a moment later.
                agent::wait_until_gone(before.gateway)?;
            }
        }
        before.workers.iter().for_each(|pid| signal(*pid, Signal::CONT));
        // The server answers to a whole message when all others have come to their end.
        sessions.sort_by_key(|session| session.stage == Stage::Sent);
        sessions.iter().filter(|it| it.stage != Stage::Sent).for_each(Session::go_on);
        sessions.into_iter().map(Session::end).collect()
    })?;
    for (stage, heard, seen) in &ends {
        check(victim, *stage, heard.as_deref(), seen)
            .with_context(|| format!("{victim:?} died at {stage:?}, client heard {heard:?}"))?;
    }
    match victim {
        Victim::Client => counted(&vscan, "vscan_mail_doubled_total", "smtp_doubled_mail")?,
        Victim::Server => counted(&vscan, "vscan_mail_doubtful_total", "smtp_final_reply_lost")?,
        Victim::Scanner => {}
        Victim::Gateway => {
            vscan.wait_for_processes(&[before.gateway])?;
        }
        Victim::Supervisor => {
            let config = vscan.config().to_owned();
            vscan = Vscan::start_with(&lab, &settings, config)?;
        }
    }
    wait::until("no new connection is served", Duration::from_secs(10), || {
        Ok(smtp::Client::connect(lab.client(), lab.dial(Family::V4, PROBE)).ok().map(drop))
    })?;
    // Who has heard no 250 tries again, and that is the end of it.
    std::thread::scope(|scope| -> Result<()> {
        for (stage, listener) in STAGES.into_iter().zip(&listeners) {
            let (_, heard, seen) = Session::start(scope, &lab, listener, stage, false)?.end()?;
            ensure!(heard.as_deref() == Some(TAKEN), "{stage:?}: {heard:?}");
            ensure!(seen.message == stage.message(), "{stage:?}: not what was sent");
        }
        Ok(())
    })?;
    drop(vscan);
    Ok(())
}

fn check(victim: Victim, stage: Stage, heard: Option<&str>, seen: &Seen) -> Result<()> {
    let accepted = heard.is_some_and(|reply| reply.starts_with('2'));
    ensure!(!accepted || seen.accepted, "an acceptance that is not the server's");
    if victim == Victim::Scanner {
        ensure!(
            accepted && seen.message == stage.message(),
            "it needs no scanner any more, or a new one"
        );
        return Ok(());
    }
    ensure!(!accepted, "nobody was there to accept it");
    ensure!(seen.whole == (stage == Stage::Sent), "whole: {}", seen.whole);
    if matches!(victim, Victim::Gateway | Victim::Supervisor) {
        ensure!(heard.is_none(), "who said that?");
        ensure!(
            seen.end == Some(End::Reset),
            "a dead gateway's connection ended by {:?}",
            seen.end
        );
    }
    if stage == Stage::Sending && victim != Victim::Server {
        ensure!(seen.end == Some(End::Reset), "half a message ended by {:?}", seen.end);
    }
    if victim == Victim::Server && heard.is_some() {
        ensure!(heard.is_some_and(|reply| reply.starts_with("421 4.4.2")), "not temporary");
    }
    Ok(())
}

/// What may come twice is counted and told.
fn counted(vscan: &Vscan<'_>, metric: &str, anomaly: &str) -> Result<()> {
    vscan.wait_for_event("anomaly", |event| event["anomaly"]["event"] == anomaly)?;
    ensure!(vscan.metrics()?.sum(metric, &[]) == 1.0, "{metric} is not 1");
    Ok(())
}

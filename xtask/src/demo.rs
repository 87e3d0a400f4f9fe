//! `demo`: the main job, shown in namespaces of its own.

use std::{
    fmt::Write as _,
    fs,
    io::{IsTerminal as _, Write as _},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use serde::Serialize;
use vscan_tests::{
    agent::{Settings, Steering, Vscan},
    fixtures,
    host::Output as Ran,
    imap::{Mail, Mailbox},
    lab::{Firewall, Lab, Topology},
    peers::{self, Dovecot, Postfix, Vsftpd},
    wait,
};

use crate::Output;

/// Where the mailboxes are.
const IMAP_SERVER: &str = "192.0.2.2";

/// Installs what the peers of the demo, the tests and the benchmarks need.
pub(crate) fn setup() -> Result<()> {
    peers::install(&mut |what| println!("setup: {what}"))
}

/// What a command that runs agents needs: everything installed and built. Quiet where JSON is wanted, for
/// then standard output belongs to it.
pub(crate) fn prepare(output: Output) -> Result<()> {
    match output {
        Output::Text => {
            crate::setup::run()?;
            crate::build::run(false)
        }
        Output::Json => {
            // The same, with their words on standard error.
            let program = std::env::current_exe()?;
            for command in ["setup", "build"] {
                let ran = std::process::Command::new(&program)
                    .arg(command)
                    .stdout(std::io::stderr())
                    .status()?;
                ensure!(ran.success(), "cargo xtask {command} failed");
            }
            Ok(())
        }
    }
}

/// One line of the result.
#[derive(Debug, Serialize)]
struct Step {
    step: String,
    protocol: &'static str,
    direction: &'static str,
    expected: &'static str,
    outcome: String,
}

/// What a sent thing is and what has to become of it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Clean,
    Infected,
}

impl Kind {
    fn expected(self) -> &'static str {
        match self {
            Self::Clean => "delivered",
            Self::Infected => "blocked",
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Clean => "a clean",
            Self::Infected => "an EICAR",
        }
    }
}

/// Runs the demo; an outcome other than the expected one is an error.
pub(crate) fn run(output: Output) -> Result<()> {
    prepare(output)?;
    let begin = Instant::now();
    let mut show = Show::new(output);
    let mut steps = Vec::new();
    perform(&mut show, &mut steps)?;

    let wrong = steps.iter().filter(|step| step.outcome != step.expected).count();
    show.line("");
    let summary = format!(
        "{} of {} steps as expected, {:.1} s",
        steps.len() - wrong,
        steps.len(),
        begin.elapsed().as_secs_f32()
    );
    let summary = if wrong == 0 { show.good(&summary) } else { show.bad(&summary) };
    show.line(&summary);
    if output == Output::Json {
        println!("{}", serde_json::to_string_pretty(&steps)?);
    }
    ensure!(wrong == 0, "{wrong} outcomes differ from what was expected");
    Ok(())
}

fn perform(show: &mut Show, steps: &mut Vec<Step>) -> Result<()> {
    show.section("A router, a client behind it, a server before it");
    let firewall = Firewall { forward_drop: true, input_drop: true };
    let lab = Lab::with_firewall(Topology::Masquerade, firewall)?;
    show.line("    client                     gateway                         server");
    show.line(
        "    10.1.0.2     ───────▶  lan0    vscan    wan0  ───────▶     192.0.2.2     vsftpd",
    );
    show.line(
        "    fd00:1::2              masquerade, policy drop             2001:db8:2::2 Postfix",
    );
    show.line("");
    let ftp = Vsftpd::start(lab.server(), 21)?;
    let smtp = Postfix::start(lab.server())?;
    let _imap = Dovecot::start(lab.server())?;
    fs::write(lab.gateway.dir().join("secret"), "secret\n")?;
    let start = Instant::now();
    let mut settings = Settings::new(Steering::Bpf);
    settings.tell = false;
    let settings = settings
        .with(
            "",
            "[[treat]]\nprotocol = \"smtp\"\nverdict = \"infected\"\naction = \"quarantine\"\n\
             [[treat]]\nprotocol = \"mailbox\"\nverdict = \"infected\"\naction = \"replace\"\n",
        )
        .with(
            "",
            &format!(
                "[mailbox.bob]\nhost = \"{IMAP_SERVER}\"\nsecurity = \"insecure\"\nuser = \"bob\"\n\
                 secret_file = \"{}/secret\"\ninterval = \"1s\"\n",
                lab.gateway.dir().display()
            ),
        );
    let vscan = Vscan::start(&lab, &settings)?;
    show.line(&format!("    vscan run: ready after {:.2} s", start.elapsed().as_secs_f32()));
    let all = vscan.processes();
    show.line(&show.dim(&format!(
        "    supervisor {}, gateway {}, scanner {} with {} workers",
        all.supervisor,
        all.gateway,
        all.scanner,
        all.workers.len()
    )));

    show.section("FTP: curl");
    let stage = Stage { lab: &lab, ftp: &ftp, smtp: &smtp, vscan: &vscan };
    stage.files()?;
    for (passive, family) in
        [(true, "--ipv4"), (false, "--ipv4"), (true, "--ipv6"), (false, "--ipv6")]
    {
        for kind in [Kind::Clean, Kind::Infected] {
            for up in [true, false] {
                stage.transfer(show, steps, passive, family, kind, up)?;
            }
        }
    }

    show.section("SMTP: swaks");
    for (attached, kind) in
        [(false, Kind::Clean), (false, Kind::Infected), (true, Kind::Clean), (true, Kind::Infected)]
    {
        stage.mail(show, steps, attached, kind)?;
    }

    show.section("IMAP: mail that never crossed the gateway, in Bob's mailbox on the server");
    for kind in [Kind::Clean, Kind::Infected] {
        stage.mailbox(show, steps, kind)?;
    }
    show.output(&vscan.cli(&["mailbox", "status"])?);

    show.section("What the server has");
    stage.server_has(show)?;
    show.section("vscan flows");
    show.output(&vscan.cli(&["flows", "--last", "30"])?);
    show.section("vscan quarantine list");
    show.output(&vscan.cli(&["quarantine", "list"])?);
    show.section("Events (alerts)");
    let blocked = steps.iter().filter(|step| step.outcome == "blocked").count();
    // The log is written a moment later, in batches.
    let alerts = wait::until("an alert is missing", Duration::from_secs(5), || {
        let mut events = vscan.events()?;
        events.retain(|event| event["event_type"] == "alert");
        Ok((events.len() >= blocked).then_some(events))
    })?;
    for event in &alerts {
        let text = |value: &serde_json::Value| {
            value.as_str().map_or_else(|| value.to_string(), str::to_owned)
        };
        show.line(&format!(
            "    {}  {}  {:<4}  {} {} -> {}  {}",
            text(&event["timestamp"]).get(11..23).unwrap_or_default(),
            text(&event["flow_id"]),
            text(&event["app_proto"]),
            text(&event["alert"]["action"]),
            text(&event["src_ip"]),
            text(&event["dest_ip"]),
            text(&event["alert"]["signature"]),
        ));
    }
    show.section("Metrics");
    let metrics = vscan.metrics()?;
    for line in metrics.0.lines().filter(|line| {
        ["vscan_objects_total", "vscan_bytes_total", "vscan_sessions_total", "vscan_kernel_count"]
            .iter()
            .any(|name| line.starts_with(name))
            && !line.ends_with(" 0")
    }) {
        show.line(&format!("    {line}"));
    }

    show.section("Stop");
    let (status, left) = vscan.stop()?;
    ensure!(status.success(), "vscan ended with {status}");
    ensure!(left.is_empty(), "vscan left something behind: {left:?}");
    show.line("    SIGTERM: no table, no rule, no route, no pin, no process left");
    Ok(())
}

/// The parties of the play.
struct Stage<'a> {
    lab: &'a Lab,
    ftp: &'a Vsftpd,
    smtp: &'a Postfix,
    vscan: &'a Vscan<'a>,
}

impl Stage<'_> {
    /// Puts the files where client and server expect them.
    fn files(&self) -> Result<()> {
        let here = self.lab.client().dir();
        for dir in [here, self.ftp.files()] {
            fs::write(dir.join("report.bin"), fixtures::random(2_000_000, 1))?;
            fs::write(dir.join("invoice.com"), fixtures::eicar())?;
        }
        Ok(())
    }

    fn transfer(
        &self,
        show: &mut Show,
        steps: &mut Vec<Step>,
        passive: bool,
        family: &str,
        kind: Kind,
        up: bool,
    ) -> Result<()> {
        let (name, content) = match kind {
            Kind::Clean => ("report.bin", fixtures::random(2_000_000, 1)),
            Kind::Infected => ("invoice.com", fixtures::eicar()),
        };
        let here = self.lab.client().dir();
        let target = format!("{}-{name}", steps.len());
        let url = "ftp://alice:x@server.example";
        let mut argv = vec!["curl", "-sS", family];
        if !passive {
            argv.extend(["-P", "-"]);
        }
        let (there, url) = if up {
            argv.extend(["-T", name]);
            (self.ftp.files().join(&target), format!("{url}/{target}"))
        } else {
            argv.extend(["-o", &target]);
            (here.join(&target), format!("{url}/{name}"))
        };
        argv.push(&url);
        // The dialogue tells which reply curl met; in active mode its own words for a refused upload mislead.
        let ran = self.lab.client().run([&argv[..], &["-v"]].concat())?;
        let reply = ran
            .err
            .lines()
            .filter_map(|line| line.strip_prefix("< "))
            .rfind(|line| line.starts_with("226") || line.starts_with('5') || line.starts_with('4'))
            .unwrap_or_default();
        let outcome = match fs::read(&there) {
            Ok(bytes) if bytes == content && ran.success() => "delivered".to_owned(),
            Ok(bytes) => format!("{} bytes arrived, curl {}: {reply}", bytes.len(), ran.code()),
            Err(_) if !ran.success() && reply.starts_with("550 ") => "blocked".to_owned(),
            Err(_) => format!("nothing arrived, curl {}: {reply}", ran.code()),
        };
        let step = Step {
            step: format!(
                "{} of {} file, {}, {}",
                if up { "upload" } else { "download" },
                kind.word(),
                if passive { "passive" } else { "active" },
                if family == "--ipv4" { "IPv4" } else { "IPv6" },
            ),
            protocol: "ftp",
            direction: if up { "outbound" } else { "inbound" },
            expected: kind.expected(),
            outcome,
        };
        let said = match ran.code() {
            0 => reply.to_owned(),
            code => format!("{reply}   (curl ends with {code})"),
        };
        show.step(&step, &argv.join(" "), &said);
        steps.push(step);
        Ok(())
    }

    fn mail(
        &self,
        show: &mut Show,
        steps: &mut Vec<Step>,
        attached: bool,
        kind: Kind,
    ) -> Result<()> {
        let before = self.smtp.inbox()?.len();
        let subject = format!("mail number {}", steps.len());
        let header = format!("Subject: {subject}");
        let mut argv = vec![
            "swaks",
            "--server",
            "mail.server.example",
            "--from",
            "alice@client.example",
            "--to",
            "bob@server.example",
            "--header",
            &header,
        ];
        let body = match (attached, kind) {
            (false, Kind::Infected) => "@invoice.com",
            _ => "Dear Bob, here it is.",
        };
        argv.extend(["--body", body]);
        if attached {
            let file = match kind {
                Kind::Clean => "@report.bin",
                Kind::Infected => "@invoice.com",
            };
            argv.extend(["--attach", file]);
        }
        let ran = self.lab.client().run(&argv)?;
        // swaks marks what it received by "<-", errors by "<**".
        let answer = ran
            .out
            .lines()
            .rev()
            .filter_map(|line| line.trim_start().strip_prefix('<'))
            .map(|line| line.trim_start_matches(['-', '*', '~', ' ']))
            .find(|line| !line.starts_with("221"))
            .unwrap_or_default()
            .to_owned();
        let outcome = if ran.success() {
            let arrived = wait::until("the mail did not arrive", Duration::from_secs(10), || {
                let inbox = self.smtp.inbox()?;
                Ok((inbox.len() > before).then_some(inbox))
            })?;
            let whole = arrived.iter().any(|mail| find(mail, subject.as_bytes()));
            if whole { "delivered".to_owned() } else { "accepted, but not in the inbox".to_owned() }
        } else if answer.starts_with("550 5.7.1") && self.smtp.inbox()?.len() == before {
            "blocked".to_owned()
        } else {
            format!("swaks {}: {answer}", ran.code())
        };
        let step = Step {
            step: format!(
                "mail with {} {}",
                kind.word(),
                if attached { "attachment (base64)" } else { "text" },
            ),
            protocol: "smtp",
            direction: "outbound",
            expected: kind.expected(),
            outcome,
        };
        show.step(&step, &argv.join(" "), &answer);
        steps.push(step);
        Ok(())
    }

    /// Puts a message straight into the mailbox, as a mail server does, and looks at what becomes of it.
    fn mailbox(&self, show: &mut Show, steps: &mut Vec<Step>, kind: Kind) -> Result<()> {
        let bob = Mailbox { from: &self.lab.outside, server: IMAP_SERVER.parse()?, user: "bob" };
        let subject = format!("mail number {}", steps.len());
        let message = match kind {
            Kind::Clean => fixtures::message(&subject, "Dear Bob, here it is."),
            Kind::Infected => {
                fixtures::message_with_attachment(&subject, "invoice.com", &fixtures::eicar())
            }
        };
        let scanned = || -> Result<u64> {
            let accounts = self.vscan.json(&["mailbox", "status"])?;
            Ok(accounts[0]["scanned"].as_u64().unwrap_or_default())
        };
        let before = scanned()?;
        bob.append("INBOX", "", &[&message])?;
        let found = |mails: &[Mail]| mails.iter().find(|mail| mail.subject() == subject).cloned();
        let mail = wait::until("the mailbox is not scanned", Duration::from_secs(20), || {
            // A treated message is another one, which is there before the first one goes.
            let mails = bob.list("INBOX")?;
            let alone = mails.iter().filter(|mail| mail.subject() == subject).count() == 1;
            let treated = mails.iter().any(|mail| mail.text.contains("X-Vscan: "));
            let over = scanned()? > before && alone && (kind == Kind::Clean || treated);
            Ok(over.then(|| found(&mails)).flatten())
        })?;
        let field = mail.text.lines().find(|line| line.starts_with("X-Vscan:")).unwrap_or_default();
        let outcome = match (mail.is_unread(), field) {
            (true, "") => "unread as before",
            (true, _) => "treated, unread",
            (false, _) => "marked as read",
        };
        let step = Step {
            step: format!("{} message in the mailbox", kind.word()),
            protocol: "imap",
            direction: "inbound",
            expected: match kind {
                Kind::Clean => "unread as before",
                Kind::Infected => "treated, unread",
            },
            outcome: outcome.to_owned(),
        };
        show.step(&step, "imaplib: APPEND INBOX", field);
        steps.push(step);
        Ok(())
    }

    fn server_has(&self, show: &mut Show) -> Result<()> {
        let mut names: Vec<_> = fs::read_dir(self.ftp.files())?
            .map(|entry| {
                let entry = entry?;
                Ok((entry.file_name().to_string_lossy().into_owned(), entry.metadata()?.len()))
            })
            .collect::<Result<_>>()?;
        names.sort_by_key(|(name, _)| {
            name.split('-').next().and_then(|number| number.parse::<u32>().ok())
        });
        for (name, length) in names {
            let note = if name.contains('-') { "uploaded" } else { "was there before" };
            show.line(&format!("    {name:<16} {length:>9} bytes   {}", show.dim(note)));
        }
        for mail in self.smtp.inbox()? {
            let text = String::from_utf8_lossy(&mail).into_owned();
            let subject =
                text.lines().find(|line| line.starts_with("Subject:")).unwrap_or_default();
            show.line(&format!(
                "    {subject:<26} {:>9} bytes   {}",
                mail.len(),
                show.dim("in Bob's inbox")
            ));
        }
        let log = self.ftp.log();
        let clients = ["192.0.2.1", "2001:db8:2::1"];
        ensure!(clients.iter().any(|client| log.contains(client)), "vsftpd's log names no client");
        Ok(())
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

/// Where the words go, and whether in colour.
struct Show {
    json: bool,
    colour: bool,
    number: usize,
}

impl Show {
    fn new(output: Output) -> Self {
        let json = output == Output::Json;
        let terminal =
            if json { std::io::stderr().is_terminal() } else { std::io::stdout().is_terminal() };
        Self { json, colour: terminal && std::env::var_os("NO_COLOR").is_none(), number: 0 }
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    fn dim(&self, text: &str) -> String {
        self.paint("2", text)
    }

    fn good(&self, text: &str) -> String {
        self.paint("1;32", text)
    }

    fn bad(&self, text: &str) -> String {
        self.paint("1;31", text)
    }

    fn line(&self, text: &str) {
        // Nobody is left to tell if the terminal is gone.
        let _ = if self.json {
            writeln!(std::io::stderr().lock(), "{text}")
        } else {
            writeln!(std::io::stdout().lock(), "{text}")
        };
    }

    fn section(&self, title: &str) {
        let rule = "─".repeat(76_usize.saturating_sub(title.chars().count()));
        self.line("");
        self.line(&self.paint("1;36", &format!("── {title} {rule}")));
    }

    /// A step: what it was, what came of it; below, what the client ran and what it saw.
    fn step(&mut self, step: &Step, command: &str, said: &str) {
        self.number += 1;
        let right = step.outcome == step.expected;
        let mark = if right { self.good("✓") } else { self.bad("✗") };
        let outcome = match (right, step.outcome.as_str()) {
            (true, "blocked") => self.paint("33", "blocked"),
            (true, outcome) => self.paint("32", outcome),
            (false, outcome) => self.bad(&format!("{outcome} (expected: {})", step.expected)),
        };
        self.line(&format!(
            " {:>2} {mark} {:<42} {:<9} {outcome}",
            self.number, step.step, step.direction
        ));
        let mut detail = String::new();
        // Writing to a string does not fail.
        let _ = write!(detail, "      $ {command}");
        self.line(&self.dim(&detail));
        for line in said.lines().filter(|line| !line.is_empty()) {
            self.line(&self.dim(&format!("        {line}")));
        }
    }

    fn output(&self, ran: &Ran) {
        for line in ran.out.lines().chain(ran.err.lines()) {
            self.line(&format!("    {line}"));
        }
    }
}

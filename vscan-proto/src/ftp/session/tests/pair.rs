//! A scripted client, server and driver around one machine, in every order that chance gives.

use super::*;
use proptest::prelude::*;
use std::collections::VecDeque;

/// What the server does with this session.
#[derive(Debug, Clone, Copy)]
struct Server {
    passive: bool,
    active: bool,
    dialable: bool,
    refuses_transfers: bool,
    breaks_off: bool,
    has_files: bool,
    refuses_restart: bool,
}

/// What the driver is set to and remembers.
#[derive(Debug, Clone, Copy)]
struct Driver {
    delivery: Delivery,
    resume: Resume,
    recalled: Recalled,
    /// A piece is of the version that is known; if not, whether that shows late.
    belongs: bool,
    released: bool,
    patience: bool,
}

/// The world around the machine.
struct World {
    rig: Rig,
    server: Server,
    driver: Driver,
    infected: bool,
    client_breaks: bool,
    /// Bytes on their way to the machine.
    from_client: VecDeque<u8>,
    from_server: VecDeque<u8>,
    /// Events on their way to the machine.
    events: VecDeque<Event>,
    /// What the server will say once it has all data.
    last_word: Option<&'static str>,
    upstream_listens: bool,
    heard: Vec<u8>,
    delivered_infected: bool,
    stored_upstream: bool,
    over: bool,
}

impl World {
    fn new(
        server: Server,
        driver: Driver,
        infected: bool,
        client_breaks: bool,
        commands: &[u8],
    ) -> Self {
        let mut settings = settings(Tls::Pass);
        settings.delivery = driver.delivery;
        settings.resume = driver.resume;
        settings.timing.patience = driver.patience.then_some(Duration::from_secs(1));
        Self {
            rig: Rig::with(CLIENT4, SERVER4, settings),
            server,
            driver,
            infected,
            client_breaks,
            from_client: commands.iter().copied().collect(),
            from_server: b"220 hi\r\n".iter().copied().collect(),
            events: VecDeque::new(),
            last_word: None,
            upstream_listens: false,
            heard: Vec::new(),
            delivered_infected: false,
            stored_upstream: false,
            over: false,
        }
    }

    fn server_says(&mut self, text: &str) {
        self.from_server.extend(text.bytes());
    }

    fn server_hears(&mut self, line: &[u8]) {
        let line = std::str::from_utf8(line).unwrap();
        let server = self.server;
        match line.split([' ', '\r']).next().unwrap() {
            "PASV" if server.passive => self.server_says("227 ok (1,2,3,4,8,0)\r\n"),
            "EPSV" if server.passive => self.server_says("229 ok (|||2048|)\r\n"),
            "PORT" if server.active => self.server_says("200 ok\r\n"),
            "PASV" | "EPSV" | "PORT" => self.server_says("502 no\r\n"),
            "REST" if server.refuses_restart => self.server_says("502 no\r\n"),
            "REST" => self.server_says("350 ok\r\n"),
            "SIZE" if server.has_files => self.server_says("213 5\r\n"),
            "SIZE" | "MLST" => self.server_says("550 no such file\r\n"),
            "RETR" | "LIST" | "STOR" | "APPE" => {
                self.stored_upstream |= !matches!(&line[..4], "RETR" | "LIST");
                if server.refuses_transfers {
                    self.server_says("550 no\r\n");
                    return;
                }
                if self.upstream_listens {
                    self.upstream_listens = false;
                    self.events.push_back(Event::Connected(Leg::Upstream));
                }
                self.server_says("150 go\r\n");
                self.last_word =
                    Some(if server.breaks_off { "426 cut\r\n" } else { "226 done\r\n" });
            }
            "ABOR" => {
                if self.last_word.take().is_some() {
                    self.server_says("426 aborted\r\n");
                }
                self.server_says("226 abor\r\n");
            }
            "QUIT" => self.server_says("221 bye\r\n"),
            _ => self.server_says("200-ok\r\n200 ok\r\n"),
        }
    }

    fn server_has_the_data(&mut self) {
        if let Some(word) = self.last_word.take() {
            self.server_says(word);
        }
    }

    fn execute(&mut self, output: Output) {
        let broken = Err(Broken { leg: Leg::Client });
        match output {
            Output::ToClient(bytes) => self.heard.extend_from_slice(&bytes),
            Output::ToUpstream(bytes) => self.server_hears(&bytes),
            Output::Listen(leg) => {
                self.upstream_listens |= leg == Leg::Upstream;
                self.events.push_back({
                    let here = SocketAddr::from(([10, 0, 0, 1], 3000));
                    Event::Listening(leg, Some(here))
                });
                if leg == Leg::Client {
                    self.events.push_back(Event::Connected(leg));
                }
            }
            Output::ConnectClient(_) => self.events.push_back(Event::Connected(Leg::Client)),
            Output::DialUpstream(_) => self.events.push_back(if self.server.dialable {
                Event::Connected(Leg::Upstream)
            } else {
                Event::ConnectFailed(Leg::Upstream)
            }),
            Output::Recall => self.events.push_back(Event::Recalled(self.driver.recalled)),
            Output::Join(_) => {}
            Output::Check => {
                let belongs = self.driver.belongs && !self.infected;
                self.events.push_back(if belongs {
                    Event::Sent(if self.client_breaks { broken } else { Ok(()) })
                } else {
                    Event::Mismatched { released: self.driver.released }
                });
                self.server_has_the_data();
            }
            Output::Stream(leg) => {
                self.events.push_back(Event::Received(if self.client_breaks {
                    broken
                } else {
                    Ok(())
                }));
                if leg == Leg::Upstream || self.client_breaks {
                    self.server_has_the_data();
                }
            }
            Output::Receive(Leg::Upstream) => {
                self.events.push_back(Event::Received(Ok(())));
                self.server_has_the_data();
            }
            Output::Receive(Leg::Client) => self
                .events
                .push_back(Event::Received(if self.client_breaks { broken } else { Ok(()) })),
            Output::Inspect => self.events.push_back(Event::judged(if self.infected {
                Judgement::Refuse { reason: "eicar".into() }
            } else {
                Judgement::Release
            })),
            Output::Send(leg) => {
                self.delivered_infected |= self.infected;
                let broken = self.client_breaks && leg == Leg::Client;
                self.events.push_back(Event::Sent(if broken {
                    Err(Broken { leg })
                } else {
                    Ok(())
                }));
                if leg == Leg::Upstream {
                    self.server_has_the_data();
                }
            }
            Output::Sniff(_) => self.events.push_back(Event::Sniffed(!self.infected)),
            Output::Splice(_) => {
                self.events.push_back(Event::Spliced(if self.client_breaks {
                    broken
                } else {
                    Ok(())
                }));
                self.server_has_the_data();
            }
            Output::CloseData(leg) | Output::ResetData(leg) => {
                if leg == Leg::Upstream {
                    // The server notices, and has a last word.
                    self.server_has_the_data();
                }
                self.events.retain(|event| match event {
                    Event::Listening(side, _)
                    | Event::Connected(side)
                    | Event::ConnectFailed(side) => *side != leg,
                    _ => true,
                });
                self.upstream_listens &= leg != Leg::Upstream;
            }
            Output::End(_) => self.events.retain(|event| {
                !matches!(
                    event,
                    Event::Received(_)
                        | Event::Recalled(_)
                        | Event::Mismatched { .. }
                        | Event::Judged { .. }
                        | Event::Sent(_)
                        | Event::Spliced(_)
                )
            }),
            Output::Begin(_) | Output::Note(_) => {}
            Output::Secure => self.events.push_back(Event::Secured(Ok(()))),
            Output::Clear => self.events.push_back(Event::Cleared(Ok(()))),
            Output::Protect(_) => {}
            Output::Blind | Output::Close | Output::Reset => self.over = true,
        }
    }

    /// One thing happens; `false` when nothing can but the passing of time.
    fn step(&mut self, choice: u8) -> bool {
        let now = self.rig.now;
        let size = usize::from(choice / 4 % 16) + 1;
        let session = &mut self.rig.session;
        let sources = [
            !self.from_client.is_empty() && session.wants_client(),
            !self.from_server.is_empty(),
            !self.events.is_empty(),
        ];
        let Some(source) =
            (0..3).map(|turn| (usize::from(choice % 4) + turn) % 3).find(|&at| sources[at])
        else {
            return false;
        };
        let take = |queue: &mut VecDeque<u8>| -> Vec<u8> {
            let size = size.min(queue.len());
            queue.drain(..size).collect()
        };
        match source {
            0 => session.handle_client(now, &take(&mut self.from_client)),
            1 => session.handle_upstream(now, &take(&mut self.from_server)),
            _ => {
                if let Some(event) = self.events.pop_front() {
                    session.handle_event(now, event);
                }
            }
        }
        while let Some(output) = self.rig.session.poll_output() {
            self.execute(output);
        }
        true
    }

    fn run(&mut self, choices: &[u8]) {
        let mut choices = choices.iter().copied().cycle();
        let mut idle_rounds = 0;
        while !self.over && idle_rounds < 50 {
            if self.step(choices.next().unwrap_or(0)) {
                idle_rounds = 0;
                continue;
            }
            if self.rig.session.is_idle() && self.from_client.is_empty() {
                return;
            }
            // Nothing under way: only a deadline can help, and there must be one.
            idle_rounds += 1;
            let due = self.rig.session.poll_timeout().expect("a session that waits has a deadline");
            self.rig.now = due.max(self.rig.now);
            self.rig.session.handle_timeout(self.rig.now);
            while let Some(output) = self.rig.session.poll_output() {
                self.execute(output);
            }
        }
        assert!(self.over, "the session is stuck: {:?}", self.rig.session.state);
    }

    /// Codes of the final replies that the client heard.
    fn finals(&self) -> Vec<u16> {
        let mut replies = Replies::new();
        replies.push(&self.heard);
        let mut codes = Vec::new();
        while let Ok(Some(line)) = replies.next_line() {
            assert!(line.code.is_some(), "torn reply: {:?}", line.raw);
            codes.extend(line.code.filter(|&code| line.last && code >= 200));
        }
        codes
    }
}

fn server() -> impl Strategy<Value = Server> {
    any::<[bool; 7]>().prop_map(
        |[passive, active, dialable, refuses_transfers, breaks_off, has_files, refuses_restart]| {
            Server {
                passive,
                active,
                dialable,
                refuses_transfers,
                breaks_off,
                has_files,
                refuses_restart,
            }
        },
    )
}

fn driver() -> impl Strategy<Value = Driver> {
    (any::<[bool; 5]>(), 0usize..4).prop_map(
        |([streams, whole, belongs, released, patience], recalled)| Driver {
            delivery: if streams { Delivery::Stream } else { Delivery::Hold },
            resume: if whole { Resume::Whole } else { Resume::Refuse },
            recalled: [Recalled::Nothing, Recalled::Scanned, Recalled::Suspect, Recalled::Busy]
                [recalled],
            belongs,
            released,
            patience,
        },
    )
}

const COMMANDS: [&str; 16] = [
    "NOOP",
    "PASV",
    "PORT 10,0,0,1,8,1",
    "EPSV",
    "RETR a",
    "STOR a",
    "LIST",
    "RETR a.iso",
    "STOR a.iso",
    "STAT",
    "FEAT",
    "\u{1}",
    "REST 5",
    "USER x",
    "TYPE I",
    "APPE a",
];

fn dialogue() -> impl Strategy<Value = Vec<usize>> {
    proptest::collection::vec(0..COMMANDS.len(), 1..14)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn every_command_is_answered_once(
        server in server(), driver in driver(), infected: bool, client_breaks: bool,
        dialogue in dialogue(), choices in proptest::collection::vec(any::<u8>(), 1..64),
    ) {
        let text: String = dialogue.iter().map(|&at| format!("{}\r\n", COMMANDS[at])).collect();
        let mut world = World::new(server, driver, infected, client_breaks, text.as_bytes());
        world.run(&choices);
        prop_assert!(!world.delivered_infected);
        prop_assert!(!world.over, "{:?}", String::from_utf8_lossy(&world.heard));
        // The greeting and one for each command.
        prop_assert_eq!(world.finals().len(), 1 + dialogue.len());
        let scanned_only = !dialogue.iter().any(|&at| COMMANDS[at] == "STOR a.iso");
        // A server that is out of patience, or the stream, has the command and no byte, or not the last.
        let held = driver.delivery == Delivery::Hold && !driver.patience;
        prop_assert!(!(infected && scanned_only && held && world.stored_upstream));
    }

    #[test]
    fn abort_and_quit_at_any_moment_leave_nothing_waiting(
        server in server(), driver in driver(), infected: bool, dialogue in dialogue(),
        choices in proptest::collection::vec(any::<u8>(), 1..64), abort_at in 0usize..14, leave: bool,
    ) {
        let mut text: Vec<String> =
            dialogue.iter().map(|&at| format!("{}\r\n", COMMANDS[at])).collect();
        text.insert(abort_at.min(text.len()), "ABOR\r\n".into());
        text.push("QUIT\r\n".into());
        let mut world = World::new(server, driver, infected, false, text.concat().as_bytes());
        if leave {
            for &choice in &choices {
                world.step(choice);
            }
            let now = world.rig.now;
            world.rig.session.handle_client_closed(now);
            while let Some(output) = world.rig.session.poll_output() {
                world.execute(output);
            }
            world.from_client.clear();
        }
        world.run(&choices);
        prop_assert!(!world.delivered_infected);
        prop_assert!(world.over || leave);
        world.finals();
    }

    #[test]
    fn no_input_panics(steps in proptest::collection::vec((0u8..11, any::<u8>(), "[A-Z0-9 ,|()\r\n\u{ff}-]{0,30}"), 0..40)) {
        let mut settings = settings(Tls::Pass);
        settings.resume = Resume::Whole;
        if steps.len().is_multiple_of(2) {
            settings.delivery = Delivery::Stream;
        }
        let mut rig = Rig::with(CLIENT4, SERVER4, settings);
        for (kind, choice, text) in steps {
            arbitrary_step(&mut rig, kind, choice, text.as_bytes());
            while rig.session.poll_output().is_some() {}
        }
    }
}

fn arbitrary_step(rig: &mut Rig, kind: u8, choice: u8, text: &[u8]) {
    let now = rig.now;
    let session = &mut rig.session;
    let leg = if choice.is_multiple_of(2) { Leg::Client } else { Leg::Upstream };
    let result = if choice.is_multiple_of(3) { Err(Broken { leg }) } else { Ok(()) };
    match kind {
        0 => session.handle_client(now, text),
        1 => session.handle_upstream(now, text),
        2 => session.handle_event(now, {
            let here = listening(leg, &session.core.addresses, 2000);
            Event::Listening(leg, (choice > 9).then_some(here))
        }),
        3 => session.handle_event(now, Event::Connected(leg)),
        4 => session.handle_event(now, Event::Received(result)),
        5 => session.handle_event(now, Event::judged(Judgement::Release)),
        6 => session.handle_event(now, Event::Sent(result)),
        7 => session.handle_event(now, Event::Spliced(result)),
        8 => session.handle_event(
            now,
            Event::Recalled(match choice % 4 {
                0 => Recalled::Nothing,
                1 => Recalled::Scanned,
                2 => Recalled::Suspect,
                _ => Recalled::Busy,
            }),
        ),
        9 => session.handle_event(now, Event::Mismatched { released: choice > 9 }),
        _ => {
            rig.now += Duration::from_secs(u64::from(choice));
            session.handle_timeout(rig.now);
        }
    }
}

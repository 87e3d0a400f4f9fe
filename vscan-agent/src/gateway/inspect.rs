//! What happens to one object: scan, decide, keep, tell.

use super::Gateway;
use crate::{
    blocking,
    config::{Config, Direction, Treatment},
    observe::{FlowHandle, Judged},
    policy::{self, Facts},
    quarantine,
    scanner::Job,
    spool::{Object, SpoolError},
};
use std::{
    collections::{HashMap, VecDeque},
    sync::PoisonError,
    time::Instant,
};
use vscan_scan::{
    report::{Reason, Report, Verdict},
    wire::ObjectKind,
};

/// After this many errors on the same content its refusal is permanent: a sender that tries again
/// for days would meet the same error each time.
pub const ERRORS_MAX: u32 = 3;

/// Contents whose errors are remembered; the oldest are forgotten first.
const LEDGER_MAX: usize = 4096;

/// What the driver knows of an object.
#[derive(Clone, Copy, Debug)]
pub struct About<'a> {
    /// File or message.
    pub kind: ObjectKind,
    /// Whether the client sends it: upload or mail. Otherwise the server does.
    pub from_client: bool,
    /// Its name on the wire; for a message its sender.
    pub name: &'a [u8],
    /// The forward-paths of a message that the server accepted; none for files.
    pub recipients: &'a [Vec<u8>],
}

/// What the driver has to do.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// Deliver it.
    Pass,
    /// Deliver this in its place: it is treated, scanned again, and final. A message is as its
    /// receiver is to have it, without dot-stuffing.
    Deliver(Object),
    /// Refuse it: for good, or so that it may come again.
    Block {
        /// 4xx instead of 5xx, where the protocol's clients stand it.
        temporary: bool,
    },
}

/// The outcome for an object, and why.
#[derive(Clone, Debug)]
pub struct Inspection {
    /// What to do.
    pub outcome: Outcome,
    /// The verdict.
    pub verdict: Verdict,
    /// The detection, the reason for not having read something, or the error; empty for clean ones.
    /// Printable ASCII, for replies.
    pub name: String,
}

impl Gateway {
    /// Scans an object, decides on it, keeps a copy if the policy says so, and tells everybody.
    pub async fn inspect(
        &self,
        config: &Config,
        flow: &FlowHandle,
        object: &Object,
        about: About<'_>,
    ) -> Inspection {
        let started = Instant::now();
        let job = Job {
            name: (about.kind == ObjectKind::File)
                .then(|| String::from_utf8_lossy(about.name).into_owned()),
            ..Job::new(about.kind, object.clone())
        };
        let report = self.scan(config, job).await;
        self.observer.metrics.scanned(started.elapsed().as_secs_f64(), report.micros);
        self.judge(config, flow, report, Some(object), object.len(), about, started)
    }

    /// Decides on an object that could not be held, and so not be scanned: too large, or the spool is full.
    ///
    /// `received` is how many of its bytes came, as far as they were counted.
    pub fn inspect_unheld(
        &self,
        config: &Config,
        flow: &FlowHandle,
        error: &SpoolError,
        received: u64,
        about: About<'_>,
    ) -> Inspection {
        let report = match error {
            SpoolError::TooLarge { limit } => {
                let mut report =
                    Report { verdict: Verdict::Clean, error: None, ..Report::error("") };
                let detail = format!("larger than hold_max = {limit} bytes");
                report.add_unread(Reason::Size, &detail, &[], 0);
                report
            }
            SpoolError::Full(_) | SpoolError::Io(_) => {
                self.observer.metrics.spool_refused();
                tracing::error!("{error}");
                Report::error(error.to_string())
            }
        };
        self.judge(config, flow, report, None, received, about, Instant::now())
    }

    /// Decides on an object that is one part of what would have to be read; `report` says what is not here.
    pub fn inspect_unread(
        &self,
        config: &Config,
        flow: &FlowHandle,
        report: Report,
        object: &Object,
        about: About<'_>,
    ) -> Inspection {
        self.judge(config, flow, report, Some(object), object.len(), about, Instant::now())
    }

    #[expect(clippy::too_many_arguments, reason = "the callers above are all there are")]
    fn judge(
        &self,
        config: &Config,
        flow: &FlowHandle,
        report: Report,
        object: Option<&Object>,
        size: u64,
        about: About<'_>,
        started: Instant,
    ) -> Inspection {
        let opened = *flow.opened();
        let (client, server) = (opened.client.ip(), opened.real_server.ip());
        let direction = if about.from_client {
            config.direction(client, server)
        } else {
            config.direction(server, client)
        };
        let facts = Facts {
            protocol: opened.protocol,
            direction,
            client,
            server: opened.server.ip(),
            name: if about.kind == ObjectKind::File { about.name } else { b"" },
            report: &report,
        };
        let infected =
            report.verdict == Verdict::Infected && !policy::types::only_forbidden(&report);
        if about.kind == ObjectKind::Message && infected {
            self.mail_infected(config, &opened);
        }
        let decision = policy::decide(config, &facts);
        let hash = object.map(Object::hash);
        let temporary = match hash {
            _ if !decision.temporary => false,
            Some(hash) => {
                let mut ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
                ledger.error(hash) < ERRORS_MAX
            }
            None => true,
        };
        let quarantine = match (decision.action, object) {
            (Treatment::Quarantine, Some(object)) => {
                self.keep(flow, object, &report, about, direction)
            }
            (Treatment::Quarantine | Treatment::Pass | Treatment::Block, _) => None,
        };
        let hash = hash.map(|hash| hash.to_hex());
        if about.kind == ObjectKind::Message {
            flow.set_object(&addressees(about.recipients));
        }
        flow.judged(&Judged {
            name: about.name,
            kind: kind_word(about.kind),
            direction,
            size,
            blake3: hash.as_deref().unwrap_or_default(),
            report: &report,
            action: decision.action,
            rule: &decision.rule,
            quarantine: quarantine.as_deref(),
            seconds: started.elapsed().as_secs_f64(),
        });
        Inspection {
            outcome: match decision.action {
                Treatment::Pass => Outcome::Pass,
                Treatment::Block | Treatment::Quarantine => Outcome::Block { temporary },
            },
            verdict: report.verdict,
            name: for_reply(report.explanation().unwrap_or_default()),
        }
    }

    /// Puts a copy into the quarantine; its name there. A copy that cannot be kept changes nothing
    /// about the refusal: it is counted and logged.
    fn keep(
        &self,
        flow: &FlowHandle,
        object: &Object,
        report: &Report,
        about: About<'_>,
        direction: Direction,
    ) -> Option<String> {
        let opened = flow.opened();
        let user = flow.user();
        let entry = quarantine::About {
            flow: flow.id(),
            protocol: opened.protocol,
            direction,
            client: opened.client,
            server: opened.server,
            user: user.as_deref(),
            recipients: about.recipients,
            name: about.name,
            kind: kind_word(about.kind),
            size: object.len(),
            report,
        };
        match blocking::in_place(|| self.quarantine.put(&entry, &mut object.reader())) {
            Ok(kept) => Some(kept.id.as_str().to_owned()),
            Err(error) => {
                self.observer.metrics.quarantine_failed();
                tracing::error!(flow = %flow.id(), "no copy is kept: {error}");
                None
            }
        }
    }
}

fn kind_word(kind: ObjectKind) -> &'static str {
    match kind {
        ObjectKind::File => "file",
        ObjectKind::Message => "message",
    }
}

/// What a message is known by in the flow table: its first recipient, and how many there are besides.
fn addressees(recipients: &[Vec<u8>]) -> Vec<u8> {
    let Some((first, more)) = recipients.split_first() else { return Vec::new() };
    let mut text = [b"to ", first.as_slice()].concat();
    if !more.is_empty() {
        text.extend_from_slice(format!(" and {} more", more.len()).as_bytes());
    }
    text
}

/// A text as a reply line may carry it: printable ASCII (RFC 5321 4.2 `textstring`), bounded.
fn for_reply(text: &str) -> String {
    const REPLY_TEXT_MAX: usize = 200;
    text.chars()
        .map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' })
        .take(REPLY_TEXT_MAX)
        .collect()
}

/// How often the scanner has failed on which content.
#[derive(Debug, Default)]
pub(super) struct ErrorLedger {
    counts: HashMap<blake3::Hash, u32>,
    order: VecDeque<blake3::Hash>,
}

impl ErrorLedger {
    /// Counts an error; returns how many there have been on this content.
    fn error(&mut self, hash: blake3::Hash) -> u32 {
        if let Some(count) = self.counts.get_mut(&hash) {
            *count = count.saturating_add(1);
            return *count;
        }
        if self.order.len() >= LEDGER_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.counts.remove(&oldest);
        }
        self.order.push_back(hash);
        self.counts.insert(hash, 1);
        1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ledger_counts_each_content_and_forgets_the_oldest() {
        let mut ledger = ErrorLedger::default();
        let hash = |n: usize| blake3::hash(&n.to_le_bytes());
        assert_eq!(
            [ledger.error(hash(0)), ledger.error(hash(0)), ledger.error(hash(1))],
            [1, 2, 1]
        );
        for n in 2..=LEDGER_MAX {
            ledger.error(hash(n));
        }
        assert_eq!(ledger.counts.len(), LEDGER_MAX);
        assert_eq!(ledger.error(hash(0)), 1, "forgotten, so counted from the start");
    }

    #[test]
    fn replies_carry_no_line_ends() {
        assert_eq!(for_reply("A\r\n250 b\u{1b}[31m ü"), "A??250 b?[31m ?");
        assert_eq!(for_reply(&"x".repeat(1000)).len(), 200);
    }
}

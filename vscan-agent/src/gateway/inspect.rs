//! What happens to one object: scan, decide, treat (`super::treat`), tell.

use super::{
    Gateway,
    treat::{Case, Settled, kind_word},
};
use crate::{
    config::{Config, Treatment},
    notify,
    observe::{FlowHandle, Judged},
    policy::{self, Decision},
    quarantine,
    scanner::Job,
    spool::{Object, SpoolError},
};
use serde::Serialize;
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
    /// The forward-paths of a message that the server accepted, an empty one for those that are not
    /// named; none for files.
    pub recipients: &'a [Vec<u8>],
    /// Where the message lies, if it is no longer on its way.
    pub stored: Option<Stored<'a>>,
}

/// A message that lies in a mailbox.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Stored<'a> {
    /// The account.
    pub account: &'a str,
    /// The folder.
    pub folder: &'a str,
    /// The message's identifier in it.
    pub uid: u32,
    /// Its Message-ID.
    pub message_id: &'a str,
    /// Whether it is only told what would be done.
    pub dry_run: bool,
    /// To whom its header says that it went.
    #[serde(skip)]
    pub addressees: &'a [Vec<u8>],
    /// A header field for what takes its place: name and value.
    #[serde(skip)]
    pub mark: (&'static str, &'a str),
    /// Whether what is quarantined goes to a folder of its server, so that no copy has to be kept here.
    #[serde(skip)]
    pub moves: bool,
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
    /// The treatment in the end.
    pub action: Treatment,
    /// The detection, the reason for not having read something, or the error, and under which name a copy is kept; empty
    /// for clean ones. Printable ASCII, for replies.
    pub name: String,
    /// What the scanner says of an object that is delivered, in words for its receiver. Printable ASCII.
    pub words: String,
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
        self.observer.metrics.looked_ahead(report.ahead);
        let case = self.case(config, flow, &report, Some(object), object.len(), about);
        let mut decision = policy::decide(config, &case.facts(&report));
        if about.stored.is_some() && report.verdict == Verdict::Error {
            // It stays where it is, and is scanned again.
            decision.refuse();
        }
        let settled = case.settle(&mut decision).await;
        self.conclude(&case, &decision, settled, started)
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
        let case = self.case(config, flow, &report, None, received, about);
        let mut decision = policy::decide(config, &case.facts(&report));
        // What is not here cannot be delivered.
        decision.refuse();
        let settled = case.settle_unread(&mut decision);
        self.conclude(&case, &decision, settled, Instant::now())
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
        let case = self.case(config, flow, &report, Some(object), object.len(), about);
        let mut decision = policy::decide(config, &case.facts(&report));
        let settled = case.settle_unread(&mut decision);
        self.conclude(&case, &decision, settled, Instant::now())
    }

    fn case<'a>(
        &'a self,
        config: &'a Config,
        flow: &'a FlowHandle,
        report: &'a Report,
        object: Option<&'a Object>,
        size: u64,
        about: About<'a>,
    ) -> Case<'a> {
        let opened = flow.opened();
        let (client, server) = (opened.client.ip(), opened.real_server.ip());
        let direction = if about.stored.is_some() {
            notify::written_by(config, about.name)
        } else if about.from_client {
            config.direction(client, server)
        } else {
            config.direction(server, client)
        };
        // A message's sender may have changed since the flow learned of one.
        let has_user = about.kind == ObjectKind::File || about.stored.is_some();
        let user = has_user.then(|| flow.user()).flatten();
        Case { gateway: self, config, flow, about, direction, user, object, size, report }
    }

    /// Tells everybody what became of the object.
    fn conclude(
        &self,
        case: &Case<'_>,
        decision: &Decision<'_>,
        settled: Settled,
        started: Instant,
    ) -> Inspection {
        let (about, report) = (case.about, case.report);
        let infected =
            report.verdict == Verdict::Infected && !policy::types::only_forbidden(report);
        if about.kind == ObjectKind::Message && about.stored.is_none() && infected {
            self.mail_infected(case.config, case.flow.opened());
        }
        // First those whom the rules name: what follows tells the world that it is done.
        let dry_run = about.stored.is_some_and(|stored| stored.dry_run);
        if !dry_run {
            case.tell(decision, &settled);
        }
        let hash = case.object.map(Object::hash);
        let temporary = match hash {
            _ if !settled.temporary => false,
            Some(hash) => {
                let mut ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
                ledger.error(hash) < ERRORS_MAX
            }
            None => true,
        };
        if let Some(stored) = about.stored {
            case.flow.set_object(format!("{} {}", stored.folder, stored.uid).as_bytes());
        } else if about.kind == ObjectKind::Message {
            case.flow.set_object(&addressees(about.recipients));
        }
        let hash = hash.map(|hash| hash.to_hex());
        case.flow.judged(&Judged {
            name: about.name,
            kind: kind_word(about.kind),
            direction: case.direction,
            size: case.size,
            blake3: hash.as_deref().unwrap_or_default(),
            report,
            action: settled.action,
            rule: &decision.rule(),
            treated: &settled.treated,
            quarantine: settled.kept.as_ref().filter(|_| !dry_run).map(quarantine::EntryId::as_str),
            stored: about.stored.as_ref(),
            seconds: started.elapsed().as_secs_f64(),
        });
        let mut name = for_reply(report.explanation().unwrap_or_default());
        let words = for_reply(&match settled.action {
            _ if report.verdict == Verdict::Clean => "scanned, clean".to_owned(),
            action if action.leaves_it() => format!("NOT CLEAN, delivered by policy: {name}"),
            action => format!("treated ({action}): {name}"),
        });
        if let Some(id) = settled.kept.as_ref().filter(|_| settled.action.refuses()) {
            // Where the copy is and what it is called, for whoever has to ask for it.
            name.push_str(&for_reply(&format!("; kept as {id} on {}", notify::name(case.config))));
        }
        Inspection {
            outcome: match settled.instead {
                Some(object) => Outcome::Deliver(object),
                None if settled.action.refuses() => Outcome::Block { temporary },
                None => Outcome::Pass,
            },
            verdict: report.verdict,
            action: settled.action,
            name,
            words,
        }
    }
}

/// What a message is known by in the flow table: its first recipient, and how many there are besides.
fn addressees(recipients: &[Vec<u8>]) -> Vec<u8> {
    let Some((first, more)) = recipients.split_first() else { return Vec::new() };
    let first = if first.is_empty() { b"?" } else { first.as_slice() };
    let mut text = [b"to ", first].concat();
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

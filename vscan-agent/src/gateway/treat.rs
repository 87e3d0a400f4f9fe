//! Carries a decision out: keeps copies, has objects repaired, scans them again, falls back to the next treatment.
//!
//! What is to be done is [`crate::policy`]'s to say, how a portion is changed the scanner's. Here edits become a new
//! object, and no object leaves that was not scanned as it leaves.

use super::{Gateway, inspect::About};
use crate::{
    blocking,
    config::{Config, Direction, Party, Treatment, verdict_str},
    notify::{self, Occasion, TREATED, Text},
    observe::{FlowHandle, wire},
    policy::{self, Change, Decision, Step},
    quarantine::{self, EntryId},
    scanner::Job,
    spool::{CHUNK, Object, Spool, SpoolError},
};
use jiff::Timestamp;
use serde::Serialize;
use vscan_scan::{
    repair::{Answer, Edit, Order, Plan, Remedy, Repaired},
    report::Report,
    wire::ObjectKind,
};

/// Names in the header field of a treated message; the rest is counted.
const NAMED_MAX: usize = 3;

/// Characters of a name in that field: with [`NAMED_MAX`] of them it stays a line (RFC 5322 2.1.1).
const NAME_MAX: usize = 100;

/// Findings and recipients in a notice; the rest is in the event log.
const LISTED_MAX: usize = 50;

/// An object with everything that decisions on it need.
pub(super) struct Case<'a> {
    pub(super) gateway: &'a Gateway,
    pub(super) config: &'a Config,
    pub(super) flow: &'a FlowHandle,
    pub(super) about: About<'a>,
    pub(super) direction: Direction,
    /// FTP user.
    pub(super) user: Option<Box<[u8]>>,
    /// None: it could not be held.
    pub(super) object: Option<&'a Object>,
    pub(super) size: u64,
    pub(super) report: &'a Report,
}

/// What became of the object.
pub(super) struct Settled {
    /// What is delivered in its place.
    pub(super) instead: Option<Object>,
    /// The treatment in the end.
    pub(super) action: Treatment,
    /// It may come again.
    pub(super) temporary: bool,
    /// What was done to its portions.
    pub(super) treated: Vec<Treated>,
    /// Its name in the quarantine.
    pub(super) kept: Option<EntryId>,
}

/// What was done to one portion.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Treated {
    /// The part's number in the report.
    pub part: u32,
    /// Its name.
    pub name: String,
    /// What was done.
    pub remedy: Remedy,
    /// In words.
    pub detail: String,
}

/// A treatment that came to nothing.
struct Failed {
    cause: &'static str,
    why: String,
    /// Remedies that were taken, and did not help.
    taken: Vec<(u32, Treatment)>,
}

impl Failed {
    fn new(cause: &'static str, why: impl ToString) -> Self {
        Self { cause, why: why.to_string(), taken: Vec::new() }
    }
}

/// An object that may be delivered.
struct Changed {
    object: Object,
    treated: Vec<Treated>,
}

impl<'a> Case<'a> {
    pub(super) fn facts<'f>(&'f self, report: &'f Report) -> policy::Facts<'f> {
        let opened = self.flow.opened();
        let message = self.about.kind == ObjectKind::Message;
        policy::Facts {
            protocol: opened.protocol,
            direction: self.direction,
            client: opened.client.ip(),
            server: opened.server.ip(),
            name: if message { b"" } else { self.about.name },
            user: self.user.as_deref(),
            folder: self.about.stored.map(|stored| stored.folder),
            sender: message.then_some(self.about.name),
            recipients: self.about.recipients,
            size: self.size,
            report,
        }
    }

    /// Carries the decision out, treatment by treatment until one is possible; the last is a refusal.
    pub(super) async fn settle(&self, decision: &mut Decision<'a>) -> Settled {
        let mut kept = None;
        if decision.keeps() {
            kept = self.keep();
            if kept.is_none() {
                // What was to be kept must not be lost.
                decision.refuse();
            }
        }
        loop {
            let step = decision.step();
            let changed = match &step {
                Step::Deliver => {
                    let action = decision.action();
                    return Settled {
                        instead: None,
                        action,
                        temporary: false,
                        treated: Vec::new(),
                        kept,
                    };
                }
                Step::Refuse { keep, temporary } => {
                    let moves = self.about.stored.is_some_and(|stored| stored.moves);
                    if *keep && kept.is_none() && !moves {
                        kept = self.keep();
                        if kept.is_none() && self.about.stored.is_some() {
                            // The only copy there is stays where it is.
                            decision.refuse();
                            continue;
                        }
                    }
                    let (action, temporary) = (decision.action(), *temporary);
                    return Settled { instead: None, action, temporary, treated: Vec::new(), kept };
                }
                Step::Substitute => {
                    if kept.is_none() {
                        kept = self.keep();
                    }
                    match &kept {
                        Some(id) => self.substitute(id).await,
                        None => Err(Failed::new("no_copy", "no copy could be kept")),
                    }
                }
                Step::Change(change) => self.change(change, kept.as_ref()).await,
            };
            match changed {
                Ok(Changed { object, treated }) => {
                    let done = treated.iter().map(|t| treatment(t.remedy)).max();
                    let action = match step {
                        Step::Substitute => Treatment::Substitute,
                        _ => done.unwrap_or_else(|| decision.action()),
                    };
                    for one in &treated {
                        self.gateway.observer.metrics.portion_treated(one.remedy.as_str());
                    }
                    return Settled {
                        instead: Some(object),
                        action,
                        temporary: false,
                        treated,
                        kept,
                    };
                }
                Err(failed) => {
                    self.gateway.observer.metrics.treatment_failed(failed.cause);
                    tracing::info!(flow = %self.flow.id(), "treatment not possible: {}", failed.why);
                    decision.fail(&failed.taken);
                }
            }
        }
    }

    /// Carries the decision out on what is not whole, and so cannot be changed: it passes or it does not.
    pub(super) fn settle_unread(&self, decision: &mut Decision<'_>) -> Settled {
        if decision.step() != Step::Deliver {
            decision.refuse();
        }
        let mut kept = if decision.keeps() { self.keep() } else { None };
        if decision.keeps() && kept.is_none() {
            decision.refuse();
        }
        let temporary = match decision.step() {
            Step::Refuse { keep, temporary } => {
                if keep && kept.is_none() {
                    kept = self.keep();
                }
                temporary
            }
            Step::Deliver | Step::Change(_) | Step::Substitute => false,
        };
        let action = decision.action();
        Settled { instead: None, action, temporary, treated: Vec::new(), kept }
    }

    /// A notice in the place of the message, below its own From, To, Subject, Date and Message-ID.
    async fn substitute(&self, id: &EntryId) -> Result<Changed, Failed> {
        let gateway = notify::name(self.config);
        let facts = self.words("kept", Some(id), Vec::new());
        let field = format!("substituted ({}), kept as {id} by {gateway}", self.named());
        let plan = Plan {
            orders: Vec::new(),
            substitute: true,
            notice: self.gateway.notifier.render(Text::Substitute, &facts),
            fields: self.fields(field),
            subject_prefix: None,
            edit_signed: false,
            size_max: self.size_max(),
        };
        let repaired = self.repair(&plan).await?;
        let object = self.apply(&repaired)?;
        self.check(&object, &[]).await?;
        Ok(Changed { object, treated: Vec::new() })
    }

    async fn change(&self, change: &Change<'_>, kept: Option<&EntryId>) -> Result<Changed, Failed> {
        let orders = change.parts.iter().map(|(part, remedies)| Order {
            part: *part,
            remedies: remedies.iter().filter_map(|action| remedy(*action)).collect(),
        });
        let orders: Vec<Order> = orders.collect();
        let facts = self.words("treated", kept, Vec::new());
        // What the header says is known when the remedies are; most often they are the first of each list.
        let hoped: Vec<Remedy> =
            orders.iter().filter_map(|o| o.remedies.first().copied()).collect();
        let message = self.about.kind == ObjectKind::Message;
        let fields = |taken: &[Remedy]| {
            if message { self.fields(self.field(taken, &change.warned)) } else { Vec::new() }
        };
        let mut plan = Plan {
            orders,
            notice: self.gateway.notifier.render(Text::Replaced, &facts),
            fields: fields(&hoped),
            subject_prefix: change.subject.map(|subject| format!("{} ", subject.trim_end())),
            edit_signed: change.edit_signed,
            substitute: false,
            size_max: self.size_max(),
        };
        let mut repaired = self.repair(&plan).await?;
        let taken: Vec<Remedy> = repaired.done.iter().map(|done| done.remedy).collect();
        if message && taken != hoped {
            for order in &mut plan.orders {
                if let Some(done) = repaired.done.iter().find(|done| done.part == order.part) {
                    order.remedies = vec![done.remedy];
                }
            }
            plan.fields = fields(&taken);
            repaired = self.repair(&plan).await?;
        }
        let object = self.apply(&repaired)?;
        let taken: Vec<(u32, Treatment)> =
            repaired.done.iter().map(|done| (done.part, treatment(done.remedy))).collect();
        self.check(&object, &taken).await?;
        let treated = repaired.done.into_iter().map(|done| Treated {
            part: done.part,
            name: done.name,
            remedy: done.remedy,
            detail: done.detail,
        });
        Ok(Changed { object, treated: treated.collect() })
    }

    fn job(&self, object: &Object) -> Job {
        let name = (self.about.kind == ObjectKind::File)
            .then(|| String::from_utf8_lossy(self.about.name).into_owned());
        Job { name, ..Job::new(self.about.kind, object.clone()) }
    }

    async fn repair(&self, plan: &Plan) -> Result<Repaired, Failed> {
        let Some(object) = self.object else {
            return Err(Failed::new("unrepairable", "the object could not be held"));
        };
        let deadline = self.config.scan.deadline;
        match self.gateway.scanner.repair(self.job(object), plan.clone(), deadline).await {
            Answer::Repaired(repaired) => Ok(repaired),
            Answer::Unrepairable { why } => Err(Failed::new("unrepairable", why)),
        }
    }

    fn apply(&self, repaired: &Repaired) -> Result<Object, Failed> {
        let Some(object) = self.object else {
            return Err(Failed::new("unrepairable", "the object could not be held"));
        };
        let edited = blocking::in_place(|| apply(&self.gateway.spool, object, &repaired.edits));
        let edited = edited.map_err(|error| Failed::new("spool", error))?;
        if edited.len() > self.size_max() {
            return Err(Failed::new("size", format!("{} bytes are too many", edited.len())));
        }
        Ok(edited)
    }

    /// Scans the object as it would be delivered: what is still found in it has to be what rules let pass.
    async fn check(&self, object: &Object, taken: &[(u32, Treatment)]) -> Result<(), Failed> {
        let report = self.gateway.scan(self.config, self.job(object)).await;
        let facts = policy::Facts { size: object.len(), ..self.facts(&report) };
        if policy::decide(self.config, &facts).delivers() {
            return Ok(());
        }
        let what = report.explanation().unwrap_or_default();
        let why = format!("after it there still is {what}");
        Err(Failed { taken: taken.to_vec(), ..Failed::new("not_clean", why) })
    }

    /// The most that the object's receiver takes.
    fn size_max(&self) -> u64 {
        self.config.spool.hold_max
    }

    /// The header fields of a message that was changed.
    fn fields(&self, treated: String) -> Vec<(String, String)> {
        let mark = self.about.stored.map(|stored| stored.mark);
        let mark = mark.map(|(name, value)| (name.to_owned(), value.to_owned()));
        std::iter::once((TREATED.to_owned(), treated)).chain(mark).collect()
    }

    /// What was done, for the header: `replaced 1 portion (EICAR_Test_File) by gw.example`.
    fn field(&self, taken: &[Remedy], warned: &[String]) -> String {
        let mut text = String::new();
        for (remedy, word) in [
            (Remedy::Clean, "cleaned"),
            (Remedy::Scramble, "made unreadable"),
            (Remedy::Replace, "replaced"),
            (Remedy::Strip, "removed"),
        ] {
            let count = taken.iter().filter(|r| **r == remedy).count();
            if count > 0 {
                let portions = if count == 1 { "portion" } else { "portions" };
                let comma = if text.is_empty() { "" } else { ", " };
                text.push_str(&format!("{comma}{word} {count} {portions}"));
            }
        }
        if !taken.is_empty() {
            text.push_str(&format!(" ({})", self.named()));
        }
        if !warned.is_empty() {
            let comma = if text.is_empty() { "" } else { ", " };
            text.push_str(&format!("{comma}NOT CLEAN ({}), delivered as it came", listed(warned)));
        }
        text.push_str(&format!(" by {}", notify::name(self.config)));
        text
    }

    /// The names of all that was found.
    fn named(&self) -> String {
        let found: Vec<String> = self.found().into_iter().map(|(what, _)| what).collect();
        listed(&found)
    }

    /// What was found, and in which portion.
    fn found(&self) -> Vec<(String, String)> {
        let report = self.report;
        let portion = |path: &[String]| match path {
            [_, inner @ ..] => inner.join(" > "),
            [] => String::new(),
        };
        let findings = report.findings.iter().map(|f| (f.name.clone(), portion(&f.path)));
        let unread = report.unread.iter().map(|u| (u.reason.as_str().to_owned(), portion(&u.path)));
        let error = report.error.iter().map(|_| ("not scanned".to_owned(), String::new()));
        let mut found: Vec<(String, String)> = findings.chain(unread).chain(error).collect();
        // The same in the whole message and in its portion is one thing.
        let inner: Vec<String> =
            found.iter().filter(|(_, p)| !p.is_empty()).map(|(what, _)| what.clone()).collect();
        found.retain(|(what, portion)| !portion.is_empty() || !inner.contains(what));
        found.dedup();
        found
    }

    /// Puts a copy into the quarantine; its name there. That it cannot be kept is counted and logged.
    fn keep(&self) -> Option<EntryId> {
        let object = self.object?;
        if self.about.stored.is_some_and(|stored| stored.dry_run) {
            return Some(EntryId::new(Timestamp::now(), Some(self.flow.id())));
        }
        let opened = self.flow.opened();
        let user = self.flow.user();
        let entry = quarantine::About {
            flow: self.flow.id(),
            protocol: opened.protocol,
            direction: self.direction,
            client: opened.client,
            server: opened.server,
            user: user.as_deref(),
            recipients: self.about.recipients,
            name: self.about.name,
            kind: kind_word(self.about.kind),
            size: object.len(),
            report: self.report,
        };
        match blocking::in_place(|| self.gateway.quarantine.put(&entry, &mut object.reader())) {
            Ok(kept) => Some(kept.id),
            Err(error) => {
                self.gateway.observer.metrics.quarantine_failed();
                tracing::error!(flow = %self.flow.id(), "no copy is kept: {error}");
                None
            }
        }
    }

    /// Tells those whom the rules name.
    pub(super) fn tell(&self, decision: &Decision<'_>, settled: &Settled) {
        let parties: Vec<Party> =
            Party::ALL.iter().copied().filter(|party| decision.tells(*party)).collect();
        let redirects: Vec<_> = if settled.kept.is_some() {
            decision.redirects().cloned().collect()
        } else {
            Vec::new()
        };
        if parties.is_empty() && redirects.is_empty() {
            return;
        }
        let message = self.about.kind == ObjectKind::Message;
        let mail = &self.report.mail;
        let done = match settled.action {
            Treatment::Pass | Treatment::Warn | Treatment::Tag => "delivered as it came",
            Treatment::Clean | Treatment::Scramble | Treatment::Replace | Treatment::Strip => {
                "treated"
            }
            Treatment::Substitute => "replaced by a notice",
            Treatment::Block if self.about.stored.is_some() => "deleted",
            Treatment::Block => "blocked",
            Treatment::Quarantine => "quarantined",
        };
        let treated = settled.treated.iter().map(|t| line(&format!("{}: {}", t.name, t.detail)));
        let mut facts = self.words(done, settled.kept.as_ref(), treated.collect());
        facts.rule = decision.rule();
        let occasion = Occasion {
            facts,
            parties,
            redirects,
            sender: message.then_some(self.about.name),
            recipients: self.about.recipients,
            addressees: self.about.stored.map_or(&[], |stored| stored.addressees),
            direction: self.direction,
            automatic: mail.automatic,
            token: if message { &mail.notice } else { "" },
            kept: settled.kept.clone(),
        };
        self.gateway.notifier.tell(self.config, &occasion);
    }

    /// What templates can say of it.
    fn words(
        &self,
        done: &'static str,
        kept: Option<&EntryId>,
        treated: Vec<String>,
    ) -> notify::Facts {
        let opened = self.flow.opened();
        let message = self.about.kind == ObjectKind::Message;
        let text = |bytes: &[u8]| line(&wire::text(bytes));
        let found = self.found().into_iter().take(LISTED_MAX);
        notify::Facts {
            gateway: notify::name(self.config),
            contact: self.config.notify.admin.first().map(ToString::to_string),
            time: format!("{:.0}", Timestamp::now()),
            protocol: opened.protocol.as_str(),
            direction: self.direction.as_str(),
            kind: kind_word(self.about.kind),
            client: opened.client.ip().to_string(),
            server: opened.server.to_string(),
            user: self.user.as_deref().map(text),
            sender: if message { text(self.about.name) } else { String::new() },
            recipients: self
                .about
                .recipients
                .iter()
                .filter(|recipient| !recipient.is_empty())
                .take(LISTED_MAX)
                .map(|recipient| text(recipient))
                .collect(),
            name: if message { String::new() } else { text(self.about.name) },
            size: self.size,
            verdict: verdict_str(self.report.verdict),
            detection: line(self.report.explanation().unwrap_or_default()),
            findings: found
                .map(|(what, portion)| notify::Found { what: line(&what), portion: line(&portion) })
                .collect(),
            done,
            treated,
            quarantine: kept.map(ToString::to_string),
            flow_id: self.flow.id().to_string(),
            ..notify::Facts::default()
        }
    }
}

/// Text for a mail: one line, without anything that steers its reader.
fn line(text: &str) -> String {
    wire::printable(text).into_owned()
}

pub(super) fn kind_word(kind: ObjectKind) -> &'static str {
    match kind {
        ObjectKind::File => "file",
        ObjectKind::Message => "message",
    }
}

/// Names as a header field may carry them: printable ASCII (RFC 5322 2.2), bounded, each once.
fn listed(names: &[String]) -> String {
    let mut distinct: Vec<String> = Vec::new();
    for name in names {
        let plain = |c: char| if c.is_ascii_graphic() || c == ' ' { c } else { '?' };
        let name: String = name.chars().map(plain).take(NAME_MAX).collect();
        if !distinct.contains(&name) {
            distinct.push(name);
        }
    }
    let more = distinct.len().saturating_sub(NAMED_MAX);
    distinct.truncate(NAMED_MAX);
    let mut text = distinct.join(", ");
    if more > 0 {
        text.push_str(&format!(" and {more} more"));
    }
    text
}

fn remedy(action: Treatment) -> Option<Remedy> {
    match action {
        Treatment::Clean => Some(Remedy::Clean),
        Treatment::Scramble => Some(Remedy::Scramble),
        Treatment::Replace => Some(Remedy::Replace),
        Treatment::Strip => Some(Remedy::Strip),
        Treatment::Pass
        | Treatment::Warn
        | Treatment::Tag
        | Treatment::Substitute
        | Treatment::Block
        | Treatment::Quarantine => None,
    }
}

fn treatment(remedy: Remedy) -> Treatment {
    match remedy {
        Remedy::Clean => Treatment::Clean,
        Remedy::Scramble => Treatment::Scramble,
        Remedy::Replace => Treatment::Replace,
        Remedy::Strip => Treatment::Strip,
    }
}

/// The object with the edits in it. They are sorted, do not overlap and lie inside: the scanner's client has seen to it.
fn apply(spool: &Spool, object: &Object, edits: &[Edit]) -> Result<Object, SpoolError> {
    let mut writer = spool.writer();
    let mut buffer = vec![0; CHUNK];
    let mut copy =
        |writer: &mut crate::spool::Writer, from: u64, to: u64| -> Result<(), SpoolError> {
            let mut at = from;
            while at < to {
                let most = usize::try_from(to - at).unwrap_or(CHUNK).min(CHUNK);
                let count = object.read_at(&mut buffer[..most], at)?;
                if count == 0 {
                    return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
                }
                writer.write(&buffer[..count])?;
                at += count as u64;
            }
            Ok(())
        };
    let mut at = 0;
    for edit in edits {
        copy(&mut writer, at, edit.at)?;
        for piece in edit.with.chunks(CHUNK) {
            writer.write(piece)?;
        }
        at = edit.at.saturating_add(edit.len);
    }
    copy(&mut writer, at, object.len())?;
    writer.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;

    #[test]
    fn edits_make_a_new_object_in_memory_and_on_disk() {
        let directory = tempfile::tempdir().unwrap();
        let spool = Spool::new(directory.path(), 1 << 20, 64 << 20, 64 << 20).unwrap();
        for len in [0usize, 10, CHUNK, CHUNK + 1, 3 * CHUNK + 7, 9 << 20] {
            let original: Vec<u8> = (0..len).map(|n| (n % 251) as u8).collect();
            let mut writer = spool.writer();
            writer.write(&original).unwrap();
            let object = writer.finish().unwrap();
            let edit = |at: usize, len: usize, with: &[u8]| Edit {
                at: at as u64,
                len: len as u64,
                with: with.to_vec(),
            };
            let middle = len / 2;
            let edits = [
                edit(0, 0, b"top"),
                edit(middle, len.min(3) / 2, &[7; 100_000]),
                edit(len, 0, b"end"),
            ];
            let edited = apply(&spool, &object, &edits).unwrap();
            let mut got = Vec::new();
            edited.reader().read_to_end(&mut got).unwrap();
            let repaired = Repaired { edits: edits.to_vec(), done: Vec::new() };
            assert!(got == repaired.apply(&original), "{len}");
        }
    }

    #[test]
    fn names_in_the_header_are_bounded_and_ascii() {
        let names: Vec<String> =
            ["A\r\nBcc: x", "A\r\nBcc: x", "ü", "b", "c", "d"].map(str::to_owned).to_vec();
        assert_eq!(listed(&names), "A??Bcc: x, ?, b and 2 more");
        assert!(listed(&["x".repeat(5000)]).len() <= NAME_MAX);
    }

    #[test]
    fn remedies_and_treatments_are_the_same_words() {
        for remedy in [Remedy::Clean, Remedy::Scramble, Remedy::Replace, Remedy::Strip] {
            assert_eq!(treatment(remedy).as_str(), remedy.as_str());
            assert_eq!(super::remedy(treatment(remedy)), Some(remedy));
        }
    }
}

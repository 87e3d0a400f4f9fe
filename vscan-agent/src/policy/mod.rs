//! From report to treatment: the `[[treat]]` rules, first match wins. Pure: no sockets, no clock.
//!
//! [`decide`] gives each thing that was found its list of treatments; [`Decision::step`] says what the object
//! as a whole comes to, and [`Decision::fail`] goes on to the next treatment where one was not possible.

use crate::access::plain;
use crate::config::{Config, Direction, Party, Protocol, Treat, Treatment, extension};
use std::net::IpAddr;
use vscan_scan::report::{Part, Reason, Report, Verdict};

pub mod types;

#[cfg(test)]
mod tests;

/// Recipients that a session names at most. There may be more when there are this many.
const RECIPIENTS_MAX: usize = 1000;

/// What is known of an object when it has to be decided on.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// Protocol that carries it.
    pub protocol: Protocol,
    /// From its sender to its receiver.
    pub direction: Direction,
    /// The client of the session.
    pub client: IpAddr,
    /// The server as dialled.
    pub server: IpAddr,
    /// Its name on the wire; empty if it has none.
    pub name: &'a [u8],
    /// The FTP user, the account of a mailbox; none if unknown.
    pub user: Option<&'a [u8]>,
    /// The folder of a mailbox.
    pub folder: Option<&'a str>,
    /// The sender of a message, empty for the null sender; none for files.
    pub sender: Option<&'a [u8]>,
    /// The recipients of a message.
    pub recipients: &'a [Vec<u8>],
    /// Bytes.
    pub size: u64,
    /// What the scanner says.
    pub report: &'a Report,
}

/// What is done with an object: one entry for each thing that keeps it from being clean.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision<'c> {
    points: Vec<Decided<'c>>,
    message: bool,
    /// The object lies in a mailbox: nobody is there to be refused, and nothing is lost but by a rule that says so.
    stored: bool,
}

/// What is done about one thing that was found.
#[derive(Clone, Debug, PartialEq)]
struct Decided<'c> {
    /// The part that it was found in; none where the scanner failed.
    part: Option<u32>,
    rule: Option<(usize, &'c Treat)>,
    actions: &'c [Treatment],
    /// A refusal is temporary: the object may come again, and may then pass.
    temporary: bool,
    /// What it is called.
    what: String,
    /// The same was found deeper inside this part, and is dealt with there.
    deeper: bool,
}

/// What the object as a whole comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step<'c> {
    /// It is delivered as it is.
    Deliver,
    /// It is delivered changed.
    Change(Change<'c>),
    /// A copy is kept, a notice goes in its place.
    Substitute,
    /// It is refused.
    Refuse {
        /// With a copy of it kept.
        keep: bool,
        /// It may come again.
        temporary: bool,
    },
}

/// What is changed of an object before it is delivered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change<'c> {
    /// Parts, and the remedies to try on each in this order.
    pub parts: Vec<(u32, Vec<Treatment>)>,
    /// What stays in it, and has to be warned of.
    pub warned: Vec<String>,
    /// What goes in front of the subject.
    pub subject: Option<&'c str>,
    /// Portions inside of signatures may be changed.
    pub edit_signed: bool,
}

const BLOCK: &[Treatment] = &[Treatment::Block];
const PASS: &[Treatment] = &[Treatment::Pass];
const QUARANTINE: &[Treatment] = &[Treatment::Quarantine];

/// Decides on an object by its report.
///
/// Every finding and every unread part is decided on by itself, and for each recipient by itself; the strictest
/// treatment wins: a rule that lets one detection pass does not let another one in the same object pass with it.
#[must_use]
pub fn decide<'c>(config: &'c Config, facts: &Facts<'_>) -> Decision<'c> {
    let report = facts.report;
    let message = facts.sender.is_some();
    let stored = facts.protocol == Protocol::Mailbox;
    if report.verdict == Verdict::Clean {
        return Decision { points: Vec::new(), message, stored };
    }
    let mut points: Vec<Point<'_>> = Vec::new();
    for finding in &report.findings {
        let deeper = report.findings.iter().any(|other| {
            other.name == finding.name
                && other.path.len() > finding.path.len()
                && other.path.starts_with(&finding.path)
        });
        let part = Some(finding.part);
        points.push(Point {
            what: What::Infected(&finding.name),
            part,
            path: &finding.path,
            deeper,
        });
    }
    points.extend(report.unread.iter().map(|u| Point {
        what: What::Unscannable(u.reason),
        part: Some(u.part),
        path: &u.path,
        deeper: false,
    }));
    let whole = |what| Point { what, part: None, path: &[], deeper: false };
    if report.error.is_some() {
        points.push(whole(What::Error));
    }
    if points.is_empty() {
        points.push(whole(match report.verdict {
            Verdict::Infected => What::Infected(""),
            Verdict::Unscannable => What::Unscannable(Reason::Malformed),
            Verdict::Clean | Verdict::Error => What::Error,
        }));
    }
    let points = points.iter().map(|p| decide_point(config, facts, p)).collect();
    Decision { points, message, stored }
}

impl<'c> Decision<'c> {
    /// What the object as a whole comes to, of what is left to try.
    #[must_use]
    pub fn step(&self) -> Step<'c> {
        let heads = || self.points.iter().map(|p| (p, self.head(p)));
        let Some(strictest) = heads().map(|(_, head)| head).max() else { return Step::Deliver };
        if strictest.refuses() {
            let refusing = || heads().filter(|(_, head)| head.refuses());
            return Step::Refuse {
                keep: strictest == Treatment::Quarantine,
                temporary: refusing().all(|(p, _)| p.temporary),
            };
        }
        if strictest == Treatment::Substitute {
            return Step::Substitute;
        }
        let mut change = Change { edit_signed: true, ..Change::default() };
        let remedied = || heads().filter(|(_, head)| is_remedy(*head));
        // Where a part is inside another one and both show the same, the inner one is treated.
        let inner = remedied().any(|(p, _)| !p.deeper);
        for (point, _) in remedied().filter(|(p, _)| !p.deeper || !inner) {
            change.edit_signed &= point.rule.is_some_and(|(_, rule)| rule.edit_signed);
            if let Some(part) = point.part {
                let remedies = self.rest(point).take_while(|a| is_remedy(*a)).collect();
                merge(&mut change.parts, part, remedies);
            }
        }
        for (point, head) in heads() {
            if !matches!(head, Treatment::Warn | Treatment::Tag) {
                continue;
            }
            if !change.warned.contains(&point.what) {
                change.warned.push(point.what.clone());
            }
            if head == Treatment::Tag {
                change.subject = point.rule.map(|(_, rule)| rule.subject.as_str());
            }
        }
        match change {
            Change { ref parts, ref warned, .. } if parts.is_empty() && warned.is_empty() => {
                Step::Deliver
            }
            change => Step::Change(change),
        }
    }

    /// The step was not possible, or did not help: goes on to the next one.
    ///
    /// `taken` tells which remedies were taken on which parts, if any was; those before them were not possible.
    pub fn fail(&mut self, taken: &[(u32, Treatment)]) {
        let step = self.step();
        let remedies = matches!(&step, Step::Change(change) if !change.parts.is_empty());
        let message = self.message;
        for point in &mut self.points {
            let part = point.part;
            let skip = |action: Treatment| match action {
                Treatment::Clean | Treatment::Scramble | Treatment::Replace | Treatment::Strip => {
                    remedies
                }
                // Where nothing else was changed it is the mark that was not possible.
                Treatment::Warn | Treatment::Tag => !remedies && matches!(step, Step::Change(_)),
                Treatment::Substitute => step == Step::Substitute,
                Treatment::Pass | Treatment::Block | Treatment::Quarantine => false,
            };
            point.actions = possible(point, message);
            let last = taken.iter().find(|(p, _)| Some(*p) == part).map(|(_, action)| *action);
            while let [head, rest @ ..] = point.actions {
                if !skip(*head) {
                    break;
                }
                point.actions = rest;
                if Some(*head) == last {
                    break;
                }
            }
        }
    }

    /// Nothing else is to be tried: the object is refused, or stays in its mailbox.
    pub fn refuse(&mut self) {
        if self.stored {
            for point in &mut self.points {
                point.actions = PASS;
            }
            return;
        }
        let refused: Vec<bool> = self.points.iter().map(|p| self.head(p).refuses()).collect();
        for (point, refused) in self.points.iter_mut().zip(refused) {
            if !refused {
                point.actions = BLOCK;
            }
        }
    }

    /// Whether the object may be delivered as it is now.
    #[must_use]
    pub fn delivers(&self) -> bool {
        self.points.iter().all(|p| self.head(p).leaves_it())
    }

    /// The strictest treatment, for events and metrics.
    #[must_use]
    pub fn action(&self) -> Treatment {
        self.leading().map_or(Treatment::Pass, |p| self.head(p))
    }

    /// Which rule gave the strictest treatment: `treat[2]`, or `default`, or `clean`.
    #[must_use]
    pub fn rule(&self) -> String {
        match self.leading().map(|p| p.rule) {
            None => "clean".to_owned(),
            Some(None) => "default".to_owned(),
            Some(Some((n, _))) => format!("treat[{n}]"),
        }
    }

    /// Whether a rule wants the original kept, whatever is done.
    #[must_use]
    pub fn keeps(&self) -> bool {
        self.rules().any(|rule| rule.keep || rule.redirect.is_some())
    }

    /// Where rules send the original.
    pub fn redirects(&self) -> impl Iterator<Item = &'c crate::config::Address> {
        self.rules().filter_map(|rule| rule.redirect.as_ref())
    }

    /// Whether a rule tells this party.
    #[must_use]
    pub fn tells(&self, party: Party) -> bool {
        self.rules().any(|rule| rule.notify.contains(&party))
    }

    fn rules(&self) -> impl Iterator<Item = &'c Treat> {
        self.points.iter().filter_map(|p| p.rule).map(|(_, rule)| rule)
    }

    fn leading(&self) -> Option<&Decided<'c>> {
        // Of equal treatments a permanent one, then the first.
        self.points.iter().rev().max_by_key(|p| (self.head(p), !p.temporary))
    }

    /// What is left to try, without what is not possible with such an object.
    fn rest(&self, point: &Decided<'c>) -> impl Iterator<Item = Treatment> + 'c {
        let (part, message) = (point.part.is_some(), self.message);
        point.actions.iter().copied().filter(move |a| is_possible(*a, part, message))
    }

    fn head(&self, point: &Decided<'c>) -> Treatment {
        let head = self.rest(point).next();
        // What a rule for connections refuses would be deleted here, without anybody having been told of it.
        let meant = |(_, rule): (usize, &Treat)| rule.protocol.contains(&Protocol::Mailbox);
        match head {
            None | Some(Treatment::Block) if self.stored => {
                match point.rule.filter(|r| meant(*r)) {
                    Some(_) if head.is_some() => Treatment::Block,
                    Some(_) | None => Treatment::Quarantine,
                }
            }
            None => Treatment::Block,
            Some(head) => head,
        }
    }
}

/// From the first treatment on that is possible.
fn possible<'c>(point: &Decided<'c>, message: bool) -> &'c [Treatment] {
    let actions = point.actions;
    let first = actions.iter().position(|a| is_possible(*a, point.part.is_some(), message));
    first.map_or(&[], |first| &actions[first..])
}

fn is_possible(action: Treatment, part: bool, message: bool) -> bool {
    (message || !action.needs_mail()) && (part || !is_remedy(action))
}

const fn is_remedy(action: Treatment) -> bool {
    matches!(action, Treatment::Clean | Treatment::Scramble | Treatment::Replace | Treatment::Strip)
}

/// Adds the remedies for a part. Where there are some already, by another finding in it, the stricter list holds.
fn merge(parts: &mut Vec<(u32, Vec<Treatment>)>, part: u32, remedies: Vec<Treatment>) {
    match parts.iter_mut().find(|(p, _)| *p == part) {
        Some((_, there)) => {
            if remedies > *there {
                *there = remedies;
            }
        }
        None => parts.push((part, remedies)),
    }
}

/// One thing that keeps an object from being clean.
#[derive(Clone, Copy, Debug)]
struct Point<'a> {
    what: What<'a>,
    part: Option<u32>,
    path: &'a [String],
    deeper: bool,
}

#[derive(Clone, Copy, Debug)]
enum What<'a> {
    Infected(&'a str),
    Unscannable(Reason),
    Error,
}

impl What<'_> {
    fn verdict(self) -> Verdict {
        match self {
            Self::Infected(_) => Verdict::Infected,
            Self::Unscannable(_) => Verdict::Unscannable,
            Self::Error => Verdict::Error,
        }
    }

    fn text(self) -> String {
        match self {
            Self::Infected(name) => name.to_owned(),
            Self::Unscannable(reason) => reason.as_str().to_owned(),
            Self::Error => "not scanned".to_owned(),
        }
    }
}

fn decide_point<'c>(config: &'c Config, facts: &Facts<'_>, point: &Point<'_>) -> Decided<'c> {
    let unnamed: &[u8] = b"";
    let for_one = |recipient: Option<&[u8]>| {
        let found = config.treat.iter().position(|t| matches(t, facts, point, recipient));
        found.map(|n| (n, &config.treat[n]))
    };
    let actions = |rule: Option<(usize, &'c Treat)>| match rule {
        Some((_, rule)) => rule.action.as_slice(),
        None => by_default(facts, point),
    };
    let by_recipient = config.treat.iter().any(|t| !t.recipient.is_empty());
    let rule = if by_recipient && !facts.recipients.is_empty() {
        // Past those that are named there may be anybody.
        let more = (facts.recipients.len() >= RECIPIENTS_MAX).then_some(unnamed);
        let all = facts.recipients.iter().map(Vec::as_slice).chain(more);
        // Of equal ones the first.
        let strictest = |a: Option<(usize, &'c Treat)>, b: Option<(usize, &'c Treat)>| {
            if rank(actions(b)).gt(rank(actions(a))) { b } else { a }
        };
        all.map(|recipient| for_one(Some(recipient))).reduce(strictest).flatten()
    } else {
        for_one(None)
    };
    Decided {
        part: point.part,
        rule,
        actions: actions(rule),
        temporary: matches!(point.what, What::Error),
        what: point.what.text(),
        deeper: point.deeper,
    }
}

/// How strict a list is: by its first treatment, then the next, with a refusal behind the last.
fn rank(actions: &[Treatment]) -> impl Iterator<Item = Treatment> {
    actions.iter().copied().chain([Treatment::Block])
}

/// Mail that is encrypted end to end passes, and is counted: nobody on the way could ever read it.
fn by_default(facts: &Facts<'_>, point: &Point<'_>) -> &'static [Treatment] {
    if facts.protocol == Protocol::Mailbox {
        return match point.what {
            What::Infected(_) => QUARANTINE,
            // It has been delivered: most of it is protected by a password, and wanted.
            What::Unscannable(_) | What::Error => PASS,
        };
    }
    match point.what {
        What::Unscannable(Reason::EncryptedMail) if facts.protocol == Protocol::Smtp => PASS,
        What::Infected(_) | What::Unscannable(_) | What::Error => BLOCK,
    }
}

fn matches(treat: &Treat, facts: &Facts<'_>, point: &Point<'_>, recipient: Option<&[u8]>) -> bool {
    fn any<T>(list: &[T], is: impl Fn(&T) -> bool) -> bool {
        list.is_empty() || list.iter().any(is)
    }
    let reason = match point.what {
        What::Unscannable(reason) => Some(reason),
        What::Infected(_) | What::Error => None,
    };
    let detection = match point.what {
        What::Infected(name) => Some(name),
        What::Unscannable(_) | What::Error => None,
    };
    let user = facts.user.map(String::from_utf8_lossy);
    any(&treat.protocol, |p| *p == facts.protocol)
        && any(&treat.direction, |d| *d == facts.direction)
        && any(&treat.verdict, |v| *v == point.what.verdict())
        && any(&treat.reason, |r| Some(*r) == reason)
        && any(&treat.detection, |g| detection.is_some_and(|name| g.matches(name)))
        && any(&treat.from, |n| n.contains(&facts.client.to_canonical()))
        && any(&treat.to, |n| n.contains(&facts.server.to_canonical()))
        && any(&treat.user, |g| user.as_ref().is_some_and(|user| g.matches(user)))
        && any(&treat.folder, |g| facts.folder.is_some_and(|folder| g.matches(folder)))
        && any(&treat.sender, |m| facts.sender.is_some_and(|sender| m.matches(sender)))
        && any(&treat.recipient, |m| {
            recipient.is_some_and(|address| match plain(address) {
                Some(address) if !address.is_empty() => m.matches(address.as_bytes()),
                // It may be anybody: what refuses somebody's mail holds for it, and nothing else.
                _ => treat.action.first().is_some_and(|action| action.refuses()),
            })
        })
        && treat.min_size.is_none_or(|min| facts.size >= min)
        && treat.max_size.is_none_or(|max| facts.size <= max)
        && matches_names(treat, facts, point)
        && any(&treat.r#type, |g| {
            g.matches(&facts.report.kind)
                || holders(facts.report, point).any(|p| g.matches(&p.kind))
        })
}

/// Whether a name of the object, or of the parts that hold what was found, is one of the rule's.
fn matches_names(treat: &Treat, facts: &Facts<'_>, point: &Point<'_>) -> bool {
    if treat.extension.is_empty() && treat.name.is_empty() {
        return true;
    }
    let own = String::from_utf8_lossy(facts.name);
    // The first name is the object's: for a message a word, for a file the name again.
    let inner = point.path.iter().skip(1).map(String::as_str);
    let held = holders(facts.report, point)
        .flat_map(|p| std::iter::once(&p.name).chain(&p.other_names))
        .map(String::as_str);
    let names: Vec<&str> = std::iter::once(&*own).chain(inner).chain(held).collect();
    let has_extension = || {
        names
            .iter()
            .filter_map(|name| extension(name.as_bytes()))
            .any(|found| treat.extension.iter().any(|wanted| wanted.as_bytes() == found))
    };
    let has_name = || {
        names.iter().filter(|name| !name.is_empty()).any(|name| {
            let last = name.rsplit(['/', '\\']).next().unwrap_or(name);
            treat.name.iter().any(|g| g.matches(name) || g.matches(last))
        })
    };
    (treat.extension.is_empty() || has_extension()) && (treat.name.is_empty() || has_name())
}

/// The part that holds what was found, and the parts around it, without the object itself.
fn holders<'a>(report: &'a Report, point: &Point<'_>) -> impl Iterator<Item = &'a Part> {
    let find = |number: u32| report.tree.iter().find(|part| part.number == number);
    let first = point.part.filter(|part| *part != 0).and_then(find);
    // A part's number is higher than its parent's: this ends.
    std::iter::successors(first, move |part| {
        part.parent.filter(|parent| *parent != 0 && *parent < part.number).and_then(find)
    })
}

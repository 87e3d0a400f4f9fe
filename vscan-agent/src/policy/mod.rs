//! From report to treatment: the `[[treat]]` rules, first match wins. Pure: no sockets, no clock.

use crate::config::{Config, Direction, Protocol, Treat, Treatment, extension};
use std::net::IpAddr;
use vscan_scan::report::{Reason, Report, Verdict};

pub mod types;

#[cfg(test)]
mod tests;

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
    /// What the scanner says.
    pub report: &'a Report,
}

/// What is done with an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The treatment.
    pub action: Treatment,
    /// Which rule decided: `treat[2]`, or `default`, or `clean`.
    pub rule: String,
    /// Whether a refusal is temporary: the object may come again, and may then pass.
    pub temporary: bool,
}

/// Decides on an object by its report.
///
/// Every finding and every unread part is decided on by itself, and the strictest treatment wins: a rule that lets
/// one detection pass does not let another one in the same object pass with it.
#[must_use]
pub fn decide(config: &Config, facts: &Facts<'_>) -> Decision {
    let report = facts.report;
    if report.verdict == Verdict::Clean {
        return Decision { action: Treatment::Pass, rule: "clean".to_owned(), temporary: false };
    }
    let mut points: Vec<Point<'_>> = Vec::new();
    points.extend(report.findings.iter().map(|f| Point::Infected(&f.name)));
    points.extend(report.unread.iter().map(|u| Point::Unscannable(u.reason)));
    if report.error.is_some() {
        points.push(Point::Error);
    }
    if points.is_empty() {
        points.push(match report.verdict {
            Verdict::Infected => Point::Infected(""),
            Verdict::Unscannable => Point::Unscannable(Reason::Malformed),
            Verdict::Clean | Verdict::Error => Point::Error,
        });
    }
    points.iter().map(|point| decide_point(config, facts, *point)).reduce(stricter).unwrap_or_else(
        || Decision { action: Treatment::Block, rule: "default".to_owned(), temporary: false },
    )
}

/// The stricter of two decisions; of equal treatments a permanent one, then the first.
fn stricter(a: Decision, b: Decision) -> Decision {
    let rank = |d: &Decision| (d.action, !d.temporary);
    if rank(&b) > rank(&a) { b } else { a }
}

/// One thing that keeps an object from being clean.
#[derive(Clone, Copy, Debug)]
enum Point<'a> {
    Infected(&'a str),
    Unscannable(Reason),
    Error,
}

impl Point<'_> {
    fn verdict(self) -> Verdict {
        match self {
            Self::Infected(_) => Verdict::Infected,
            Self::Unscannable(_) => Verdict::Unscannable,
            Self::Error => Verdict::Error,
        }
    }
}

fn decide_point(config: &Config, facts: &Facts<'_>, point: Point<'_>) -> Decision {
    let (action, rule) = match config.treat.iter().position(|t| matches(t, facts, point)) {
        Some(n) => (config.treat[n].action, format!("treat[{n}]")),
        None => (by_default(facts, point), "default".to_owned()),
    };
    let temporary = action != Treatment::Pass && matches!(point, Point::Error);
    Decision { action, rule, temporary }
}

/// Mail that is encrypted end to end passes, tagged and counted: nobody on the way could ever read it.
fn by_default(facts: &Facts<'_>, point: Point<'_>) -> Treatment {
    match point {
        Point::Unscannable(Reason::EncryptedMail) if facts.protocol == Protocol::Smtp => {
            Treatment::Pass
        }
        Point::Infected(_) | Point::Unscannable(_) | Point::Error => Treatment::Block,
    }
}

fn matches(treat: &Treat, facts: &Facts<'_>, point: Point<'_>) -> bool {
    fn any<T>(list: &[T], is: impl Fn(&T) -> bool) -> bool {
        list.is_empty() || list.iter().any(is)
    }
    let reason = match point {
        Point::Unscannable(reason) => Some(reason),
        Point::Infected(_) | Point::Error => None,
    };
    let detection = match point {
        Point::Infected(name) => Some(name),
        Point::Unscannable(_) | Point::Error => None,
    };
    any(&treat.protocol, |p| *p == facts.protocol)
        && any(&treat.direction, |d| *d == facts.direction)
        && any(&treat.verdict, |v| *v == point.verdict())
        && any(&treat.reason, |r| Some(*r) == reason)
        && any(&treat.detection, |g| detection.is_some_and(|name| g.matches(name)))
        && any(&treat.from, |n| n.contains(&facts.client.to_canonical()))
        && any(&treat.to, |n| n.contains(&facts.server.to_canonical()))
        && (treat.extension.is_empty()
            || extension(facts.name)
                .is_some_and(|e| treat.extension.iter().any(|x| x.as_bytes() == e)))
}

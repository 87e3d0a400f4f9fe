//! Large parts on several cores: the literal filter in ranges, units of rules and hashes each by themselves.
//!
//! What comes out is what one thread finds. A unit runs once, on the whole part. The ranges of the filter look at the
//! windows that one pass looks at, and compare beyond their ends ([`Filter::scan_range`](super::filter::Filter::scan_range)).
//! Units begin as soon as a literal that needs them was seen; which are needed is decided anew when all ranges are done, by
//! the plan as ever, so that an early beginning can add work and nothing else.
//!
//! Scanners of yara-x stay on the thread that made them. A helper makes one for each unit that it takes and drops it, so
//! that sleeping helpers hold no memory.

use super::filter::{PLACE, Seen};
use super::hashes::{Algorithm, Made};
use super::plan::Gate;
use super::plan::facts::{Facts, Names};
use super::yara::{self, Set, Yara};
use crate::object::{Hit, Part};
use crate::process::crew::{Crew, Helper};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use yara_x::Scanner;

/// Parts of at least so many bytes are large. One thread looks at them for some hundredth of a second; to wake the
/// others and make their scanners takes about a thousandth.
pub(super) const LARGE: usize = 4 << 20;

/// Bytes of a range: a few thousandths of a second, and ranges enough that threads end together.
pub(super) const RANGE: usize = 1 << 20;

/// What the rules of one set found, each with its place.
type Found = Result<Vec<(u32, Hit)>, String>;

/// The threads that help, and with what.
pub(super) struct Help {
    crew: Crew,
    pub(super) large: usize,
    range: usize,
}

impl Help {
    pub(super) fn new(crew: Crew, large: usize, range: usize) -> Self {
        Self { crew, large, range: range.max(1).next_multiple_of(PLACE) }
    }

    /// The hashes that are asked for, and what each set finds.
    pub(super) fn scan(
        &self,
        part: &Part<'_>,
        sets: &mut [Yara<'_>],
        asked: &[Algorithm],
    ) -> (Made, Vec<Found>) {
        let each = sets.iter_mut().map(|yara| {
            let at = yara.gate.begin().at();
            Progress {
                gate: Some(std::mem::take(&mut yara.gate)),
                at,
                first: true,
                taken: vec![false; yara.set.plan.table().units as usize],
                found: Vec::new(),
            }
        });
        let board = Board {
            hashes: asked.to_vec(),
            made: Made::default(),
            sets: each.collect(),
            units: Vec::new(),
            ranges: 0,
            phase: Phase::Filtering,
            failed: false,
        };
        let schedule = Schedule {
            part,
            names: Names::new(part.name, part.path, part.kind),
            sets: sets.iter().map(|yara| yara.set).collect(),
            range: self.range,
            board: Mutex::new(board),
            changed: Condvar::new(),
        };
        let help = |helper: &Helper<'_>| {
            schedule.work(&mut Guest, &mut |_| !helper.is_in_the_way());
        };
        self.crew.lend(&help, || {
            let mut call = |more| {
                if more {
                    self.crew.call();
                }
                true
            };
            schedule.work(&mut Own(sets), &mut call);
        });
        let board = schedule.board.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut found = Vec::new();
        for (yara, mut progress) in sets.iter_mut().zip(board.sets) {
            if let Some(gate) = progress.gate {
                yara.gate = gate;
            }
            // One after the other in the order in which one thread runs them.
            progress.found.sort_by_key(|(unit, _)| *unit);
            let all: Result<Vec<_>, String> = progress.found.into_iter().map(|(_, f)| f).collect();
            found.push(all.map(|all| all.into_iter().flatten().collect()));
        }
        (board.made, found)
    }
}

/// Who works: what differs between the thread that has scanners of its own and those that have none.
trait Hand {
    /// Runs a unit of a set.
    fn unit(
        &mut self,
        set: (usize, &Set),
        unit: usize,
        part: &Part<'_>,
        names: &Names<'_>,
    ) -> Found;

    /// Asks modules.
    fn probe(&mut self, set: (usize, &Set), data: &[u8]) -> Vec<bool>;
}

/// The worker's own thread.
struct Own<'a, 's>(&'a mut [Yara<'s>]);

impl Hand for Own<'_, '_> {
    fn unit(
        &mut self,
        (number, _): (usize, &Set),
        unit: usize,
        part: &Part<'_>,
        names: &Names<'_>,
    ) -> Found {
        let Yara { set, scanners, .. } = &mut self.0[number];
        yara::run(set, scanners.of(unit), part, names)
    }

    fn probe(&mut self, (number, _): (usize, &Set), data: &[u8]) -> Vec<bool> {
        let Yara { set, probe, .. } = &mut self.0[number];
        yara::ask(set, probe, data)
    }
}

/// A helper.
struct Guest;

impl Hand for Guest {
    fn unit(
        &mut self,
        (_, set): (usize, &Set),
        unit: usize,
        part: &Part<'_>,
        names: &Names<'_>,
    ) -> Found {
        let mut scanner: Scanner<'_> = yara::scanner_of(&set.units[unit]);
        yara::run(set, &mut scanner, part, names)
    }

    fn probe(&mut self, (_, set): (usize, &Set), data: &[u8]) -> Vec<bool> {
        yara::ask(set, &mut None, data)
    }
}

/// One part on its way through all threads.
struct Schedule<'a> {
    part: &'a Part<'a>,
    names: Names<'a>,
    sets: Vec<&'a Set>,
    range: usize,
    board: Mutex<Board>,
    /// Something was done that others may wait for.
    changed: Condvar,
}

/// What is to be done, and what was found.
struct Board {
    /// Hashes to be made.
    hashes: Vec<Algorithm>,
    made: Made,
    sets: Vec<Progress>,
    /// Units to be run: set and unit.
    units: Vec<(usize, usize)>,
    /// Ranges that are being looked at.
    ranges: usize,
    phase: Phase,
    /// Somebody panicked: nothing more is begun.
    failed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Ranges are left, or under way.
    Filtering,
    /// Somebody decides which units are needed.
    Deciding,
    /// All units are known.
    Decided,
}

struct Progress {
    /// Not there while somebody decides.
    gate: Option<Gate>,
    /// Where the next range begins.
    at: usize,
    /// No range is done yet.
    first: bool,
    /// Units that run, or ran.
    taken: Vec<bool>,
    found: Vec<(usize, Found)>,
}

enum Task {
    Hash(Algorithm),
    Unit(usize, usize),
    Range { set: usize, from: usize, to: usize, seen: Seen },
    Decide(Vec<Option<Gate>>),
}

impl Board {
    /// The next thing to be done. Hashes take longest; a unit may take as long as the rest together.
    fn task(&mut self, len: usize, range: usize) -> Option<Task> {
        if let Some(algorithm) = self.hashes.pop() {
            return Some(Task::Hash(algorithm));
        }
        if let Some((set, unit)) = self.units.pop() {
            return Some(Task::Unit(set, unit));
        }
        if self.phase != Phase::Filtering {
            return None;
        }
        let left = self.sets.iter_mut().enumerate().find(|(_, progress)| progress.at < len);
        if let Some((set, progress)) = left {
            let from = progress.at;
            progress.at = len.min(from + range);
            let seen = progress.gate.as_ref().map(|gate| gate.seen.beside()).unwrap_or_default();
            self.ranges += 1;
            return Some(Task::Range { set, from, to: progress.at, seen });
        }
        if self.ranges > 0 {
            return None;
        }
        self.phase = Phase::Deciding;
        Some(Task::Decide(self.sets.iter_mut().map(|progress| progress.gate.take()).collect()))
    }

    /// Whether there will be nothing more to begin.
    fn is_over(&self) -> bool {
        self.failed
            || self.phase == Phase::Decided && self.units.is_empty() && self.hashes.is_empty()
    }

    /// Units that the gate of a set wants are to be run, if they are not yet.
    fn want(&mut self, set: usize) {
        let Progress { gate: Some(gate), taken, .. } = &mut self.sets[set] else { return };
        for (unit, _) in gate.units.iter().enumerate().filter(|(_, needed)| **needed) {
            if !std::mem::replace(&mut taken[unit], true) {
                self.units.push((set, unit));
            }
        }
    }
}

impl<'a> Schedule<'a> {
    fn lock(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does one thing after the other until there is nothing more, or `goes_on` says no. It is told whether others would
    /// find something to do.
    fn work(&self, hand: &mut dyn Hand, goes_on: &mut dyn FnMut(bool) -> bool) {
        let mut board = self.lock();
        while !board.is_over() {
            let Some(task) = board.task(self.part.data.len(), self.range) else {
                board = self.changed.wait(board).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            drop(board);
            let mut begun = Begun { schedule: self, done: false };
            self.run(task, hand);
            begun.done = true;
            drop(begun);
            board = self.lock();
            let more = !board.units.is_empty() || board.phase == Phase::Filtering;
            drop(board);
            if !goes_on(more) {
                return;
            }
            board = self.lock();
        }
    }

    fn run(&self, task: Task, hand: &mut dyn Hand) {
        let data = self.part.data;
        match task {
            Task::Hash(algorithm) => {
                let made = algorithm.hash(data);
                self.lock().made[algorithm as usize] = Some(made);
            }
            Task::Unit(set, unit) => {
                let found = hand.unit((set, self.sets[set]), unit, self.part, &self.names);
                self.lock().sets[set].found.push((unit, found));
            }
            Task::Range { set, from, to, mut seen } => {
                let own = self.sets[set];
                own.plan.filter().scan_range(data, from, to, &mut seen);
                let mut board = self.lock();
                board.ranges -= 1;
                let Progress { gate, first, .. } = &mut board.sets[set];
                if let Some(gate) = gate
                    && (gate.seen.join(&seen) | std::mem::take(first))
                {
                    own.plan.begin(&Facts::new(data, &self.names), gate);
                    board.want(set);
                }
            }
            Task::Decide(gates) => {
                let decided = gates.into_iter().enumerate().map(|(set, gate)| {
                    let mut gate = gate?;
                    let own = self.sets[set];
                    let probe = || hand.probe((set, own), data);
                    own.plan.decide(&Facts::new(data, &self.names), &mut gate, probe);
                    Some(gate)
                });
                let decided: Vec<Option<Gate>> = decided.collect();
                let mut board = self.lock();
                for (set, gate) in decided.into_iter().enumerate() {
                    board.sets[set].gate = gate;
                    board.want(set);
                }
                board.phase = Phase::Decided;
            }
        }
    }
}

/// A task that was begun: whoever waits learns of its end, also if that is a panic.
struct Begun<'a> {
    schedule: &'a Schedule<'a>,
    done: bool,
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        if !self.done {
            self.schedule.lock().failed = true;
        }
        self.schedule.changed.notify_all();
    }
}

#[cfg(test)]
mod tests;

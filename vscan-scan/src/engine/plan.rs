//! The planner: splits a rule set, when it is built, into units that are run only where they can match.
//!
//! From each rule it takes a necessary condition (`formula`): magic numbers and sizes, and patterns of which a
//! literal must be there ([`super::needle`]). Rules that refer to each other, or that a global rule bounds, stay
//! together; the condition of such a component is that of any of its rules. Components are compiled in units of a
//! few dozen rules. For an object, the literal filter tells which literals it has; components whose condition then
//! may hold are candidates, and the units of the candidates run on the whole object, nothing else does.
//!
//! What is found is the same as if all rules ran: a unit that does not run has no rule that could match.

pub(crate) mod condition;
pub(crate) mod facts;
pub(crate) mod formula;
mod probe;
mod program;
mod split;

use super::filter::{Choice, Filter, Seen, Stream};
use super::needle::Needle;
use super::shape::{Confirm, Shape};
use facts::Facts;
use formula::Formula;
use serde::{Deserialize, Serialize};
use std::cell::{Cell, OnceCell};

pub(crate) use split::{Source, UnitSource, split};

/// How often the data may be searched for what confirms literals, all in all: behind that they are believed.
const CONFIRM_PASSES: usize = 16;

/// Bytes that may be searched beside, however small the data is.
const CONFIRM_FREE: usize = 64 << 10;

/// When which unit runs.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    filter: Filter,
    table: Table,
    /// Literal to patterns, and pattern to components that need a literal.
    patterns: Lists,
    components: Lists,
    /// Components that need no literal.
    free: Vec<u32>,
}

/// The part of a plan that is kept in a bundle; the rest follows from it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Table {
    /// The literals of all patterns, each once.
    pub(crate) needles: Vec<Needle>,
    /// How each of them is looked for.
    pub(crate) choices: Vec<Choice>,
    /// What stands for patterns that have no literals.
    pub(crate) shapes: Vec<Shape>,
    /// What lies around literals that are a small part of their patterns: one of each list, wherever its pattern matches.
    pub(crate) confirms: Vec<Vec<Confirm>>,
    /// The literals of each pattern, by their places in `needles`, or its shapes, numbered behind them.
    pub(crate) patterns: Vec<Vec<u32>>,
    /// The components: when they are candidates, and in which unit they are.
    pub(crate) components: Vec<Component>,
    /// Number of units.
    pub(crate) units: u32,
    /// There are rules by which modules are asked.
    pub(crate) probes: bool,
    /// Namespace and name of each rule, in the order in which they were written down.
    pub(crate) order: Vec<(String, String)>,
}

/// Rules that stay together.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Component {
    /// What has to hold for any of its rules to match.
    pub(crate) formula: Formula,
    /// The unit that its rules are compiled in.
    pub(crate) unit: u32,
    /// Number of its rules.
    pub(crate) rules: u32,
}

/// How much of a rule set can be spared, for `rules list`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shares {
    /// Rules that run only where a literal was seen.
    pub by_literal: u32,
    /// Rules that run only where magic numbers or sizes agree.
    pub by_header: u32,
    /// Rules that always run.
    pub always: u32,
    /// Literals that are looked for.
    pub literals: u32,
    /// Units that the rules are compiled in.
    pub units: u32,
}

/// Lists of numbers behind each other.
#[derive(Debug, Default)]
struct Lists {
    starts: Vec<u32>,
    items: Vec<u32>,
}

impl Lists {
    fn new(mut pairs: Vec<(u32, u32)>, lists: usize) -> Self {
        pairs.sort_unstable();
        pairs.dedup();
        let mut starts = vec![0; lists + 1];
        for &(list, _) in &pairs {
            starts[list as usize + 1] += 1;
        }
        for i in 0..lists {
            starts[i + 1] += starts[i];
        }
        Self { starts, items: pairs.into_iter().map(|(_, item)| item).collect() }
    }

    fn list(&self, i: u32) -> &[u32] {
        let i = i as usize;
        &self.items[self.starts[i] as usize..self.starts[i + 1] as usize]
    }
}

/// What a scanner keeps from one object to the next, and of the next one what was seen before.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    pub(crate) seen: Seen,
    /// What was seen already of the data that comes next, and how far.
    ahead: Option<(Seen, Stream)>,
    patterns: Vec<bool>,
    touched_patterns: Vec<u32>,
    components: Vec<bool>,
    touched_components: Vec<u32>,
    pub(crate) units: Vec<bool>,
}

impl Gate {
    /// The data that comes next was looked at already, as far as that.
    pub(crate) fn go_on(&mut self, seen: Seen, at: Stream) {
        self.ahead = Some((seen, at));
    }

    /// New data: how much of it was looked at, and in `seen` what was seen in that.
    pub(crate) fn begin(&mut self) -> Stream {
        self.seen.clear();
        match self.ahead.take() {
            Some((seen, at)) => {
                self.seen = seen;
                at
            }
            None => Stream::default(),
        }
    }
}

impl Plan {
    pub(crate) fn new(table: Table) -> Self {
        let filter = Filter::of(&table.needles, &table.choices, &table.shapes);
        let patterns = Lists::new(
            table
                .patterns
                .iter()
                .enumerate()
                .flat_map(|(p, needles)| needles.iter().map(move |&n| (n, p as u32)))
                .collect(),
            table.needles.len() + table.shapes.len(),
        );
        let (mut pairs, mut free) = (Vec::new(), Vec::new());
        for (c, component) in table.components.iter().enumerate() {
            if component.formula.needs_literal() {
                component.formula.patterns(&mut |p| pairs.push((p, c as u32)));
            } else {
                free.push(c as u32);
            }
        }
        let components = Lists::new(pairs, table.patterns.len());
        Self { filter, table, patterns, components, free }
    }

    pub(crate) fn table(&self) -> &Table {
        &self.table
    }

    pub(crate) fn shares(&self) -> Shares {
        let mut shares = Shares {
            literals: self.filter.literals() as u32,
            units: self.table.units,
            ..Shares::default()
        };
        for component in &self.table.components {
            *match component.formula {
                Formula::Maybe => &mut shares.always,
                _ if component.formula.needs_literal() => &mut shares.by_literal,
                _ => &mut shares.by_header,
            } += component.rules;
        }
        shares
    }

    /// Memory for [`Self::units`].
    pub(crate) fn gate(&self) -> Gate {
        Gate {
            seen: Seen::new(&self.filter),
            ahead: None,
            patterns: vec![false; self.table.patterns.len()],
            touched_patterns: Vec::new(),
            components: vec![false; self.table.components.len()],
            touched_components: Vec::new(),
            units: vec![false; self.table.units as usize],
        }
    }

    /// The units that have to run on this data, as flags by unit. `probe` tells, if it is asked, which probes hold.
    pub(crate) fn units<'g>(
        &self,
        facts: &Facts<'_>,
        gate: &'g mut Gate,
        probe: impl FnOnce() -> Vec<bool>,
    ) -> &'g [bool] {
        gate.begin().ended(&self.filter, facts.data, &mut gate.seen);
        self.decide(facts, gate, probe);
        &gate.units
    }

    pub(crate) fn filter(&self) -> &Filter {
        &self.filter
    }

    /// The same of literals that were looked for already.
    pub(crate) fn decide(
        &self,
        facts: &Facts<'_>,
        gate: &mut Gate,
        probe: impl FnOnce() -> Vec<bool>,
    ) {
        let budget = Cell::new(facts.data.len().saturating_mul(CONFIRM_PASSES) + CONFIRM_FREE);
        let confirmed = |k: u32| {
            let any = |forms: &Vec<Confirm>| forms.iter().any(|c| c.may_lie(facts.data, &budget));
            self.table.confirms.get(k as usize).is_none_or(any)
        };
        let answers = OnceCell::new();
        let probe = Cell::new(Some(probe));
        let probed = |k: u32| {
            let answers =
                answers.get_or_init(|| probe.take().map(|probe| probe()).unwrap_or_default());
            // What was not answered may hold.
            answers.get(k as usize).copied().unwrap_or(true)
        };
        self.weigh(facts, gate, &confirmed, &probed);
    }

    /// The same of literals of which some may be missing yet: units of which it is certain, without what takes long to
    /// find out.
    pub(crate) fn begin(&self, facts: &Facts<'_>, gate: &mut Gate) {
        self.weigh(&facts.at_once(), gate, &|_| false, &|_| false);
    }

    fn weigh(
        &self,
        facts: &Facts<'_>,
        gate: &mut Gate,
        confirmed: &impl Fn(u32) -> bool,
        probed: &impl Fn(u32) -> bool,
    ) {
        for p in gate.touched_patterns.drain(..) {
            gate.patterns[p as usize] = false;
        }
        for c in gate.touched_components.drain(..) {
            gate.components[c as usize] = false;
        }
        gate.units.fill(false);
        for &literal in gate.seen.list() {
            for &p in self.patterns.list(literal) {
                if !std::mem::replace(&mut gate.patterns[p as usize], true) {
                    gate.touched_patterns.push(p);
                    for &c in self.components.list(p) {
                        if !std::mem::replace(&mut gate.components[c as usize], true) {
                            gate.touched_components.push(c);
                        }
                    }
                }
            }
        }
        let patterns = &gate.patterns;
        let seen = |p: u32| patterns[p as usize];
        for &c in self.free.iter().chain(&gate.touched_components) {
            let component = &self.table.components[c as usize];
            let unit = &mut gate.units[component.unit as usize];
            *unit = *unit || component.formula.may_hold(facts, &seen, confirmed, probed);
        }
    }
}

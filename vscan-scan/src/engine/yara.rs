//! The YARA engine: rules compiled by yara-x, and scanners that are reused.
//!
//! No time-out of yara-x is set: it would start a thread, which the sandbox does not allow and a fork does
//! not copy. Whoever waits for the scan ends the process at its deadline.

use super::clamav;
use super::plan::facts::{Facts, Names};
use super::plan::{self, Gate, Plan, Shares, Source, Table, UnitSource};
use super::source::Diagnostic;
use crate::object::{Engine, Hit, Part};
use crate::process::sys::trim;
use crate::report::Detail;
use crate::sniff::sniff;
use std::collections::HashMap;
use std::path::Path;
use yara_x::{Compiler, MetaValue, Rules, Scanner, SourceCode};

/// Matches kept per pattern: conditions count, reports do not list them. yara-x keeps a million by default.
const MATCHES_MAX: usize = 10_000;

/// Compiled rules, in the units that [`super::plan`] makes.
pub struct Set {
    pub(super) units: Vec<Rules>,
    /// Rules by which modules are asked; they are not told of.
    probes: Option<Rules>,
    pub(super) plan: Plan,
    /// Of each unit, whether it imports the module that tells the time: what it finds is no matter of the bytes alone.
    timely: Vec<bool>,
    /// The place of each rule, by namespace and name: findings are told in this order.
    order: HashMap<(String, String), u32>,
    /// Number of rules.
    pub count: u64,
}

/// Compiles rule files. Each has a namespace of its own, so that equal names in different sets do not collide and a
/// `global` rule bounds its own file only. What is wrong is appended to `errors`; then the set is not whole.
/// With `apart` each component is a unit of its own.
pub(super) fn build(
    sources: &[Source],
    apart: bool,
    errors: &mut Vec<Diagnostic>,
    warnings: &mut Vec<Diagnostic>,
) -> Set {
    let (mut table, texts, probes) = plan::split(sources, apart);
    let mut units: Vec<Rules> =
        texts.iter().map(|unit| compile(sources, unit, errors, warnings)).collect();
    let mut compiler = compiler();
    // Where they cannot be compiled, their rules cannot either, and that error is told.
    table.probes = probes.is_some_and(|text| compiler.add_source(text.as_str()).is_ok());
    if table.probes {
        units.push(compiler.build());
    }
    Set::new(units, table)
}

impl Set {
    /// Of the units of a table, and the rules by which modules are asked behind them.
    pub(super) fn new(mut units: Vec<Rules>, table: Table) -> Self {
        let probes = if table.probes { units.pop() } else { None };
        let count = units.iter().map(|unit: &Rules| unit.iter().len() as u64).sum();
        let timely = units.iter().map(|unit| unit.imports().any(|name| name == "time")).collect();
        let order = table.order.iter().cloned().zip(0..).collect();
        Self { units, probes, plan: Plan::new(table), timely, order, count }
    }

    /// Whether what some of its rules find changes with the time.
    pub(super) fn is_timely(&self) -> bool {
        self.timely.contains(&true)
    }

    /// The same, as a bundle of it would be: compiling leaves memory behind between what is kept.
    ///
    /// # Errors
    /// In yara-x's words, when it does not read what it wrote.
    pub(super) fn compacted(self) -> Result<Self, String> {
        let units: Result<Vec<_>, _> = self.compiled().map(Rules::serialize).collect();
        let units = units.map_err(|e| e.to_string())?;
        let table = self.plan.table().clone();
        drop(self);
        trim();
        let units: Result<Vec<_>, _> = units.iter().map(Rules::deserialize).collect();
        Ok(Self::new(units.map_err(|e| e.to_string())?, table))
    }

    /// All that [`Self::new`] takes.
    pub(super) fn compiled(&self) -> impl Iterator<Item = &Rules> {
        self.units.iter().chain(&self.probes)
    }

    /// All rules, unit by unit.
    pub fn rules(&self) -> impl Iterator<Item = yara_x::Rule<'_, '_>> {
        self.units.iter().flat_map(Rules::iter)
    }

    /// The rules of one unit.
    pub fn unit(&self, unit: usize) -> impl Iterator<Item = yara_x::Rule<'_, '_>> {
        self.units[unit].iter()
    }

    /// How many of the rules run on which objects.
    pub fn shares(&self) -> Shares {
        self.plan.shares()
    }
}

/// Compiles one unit; what is wrong with it is appended.
fn compile(
    sources: &[Source],
    unit: &[UnitSource],
    errors: &mut Vec<Diagnostic>,
    warnings: &mut Vec<Diagnostic>,
) -> Rules {
    let mut compiler = compiler();
    let (mut failed, mut warned) = (0, 0);
    for part in unit {
        let file = &sources[part.source].path;
        let origin = file.to_string_lossy().into_owned();
        compiler.new_namespace(&origin);
        // Its error is among all errors of the file, which follow.
        let _ = compiler.add_source(SourceCode::from(&part.text[..]).with_origin(origin));
        for error in &compiler.errors()[failed..] {
            let at = error.labels().next().map(|l| l.span().start());
            errors.push(diagnostic(file, &part.text, at, error.title(), &error.to_string()));
        }
        failed = compiler.errors().len();
        for warning in &compiler.warnings()[warned..] {
            let at = warning.labels().next().map(|l| l.span().start());
            warnings.push(diagnostic(file, &part.text, at, warning.title(), &warning.to_string()));
        }
        warned = compiler.warnings().len();
    }
    compiler.build()
}

/// The version of yara-x, pinned in the workspace.
pub const YARA_X: &str = "1.22.1";

fn compiler() -> Compiler<'static> {
    let mut compiler = Compiler::new();
    compiler.relaxed_re_syntax(true).colorize_errors(false).max_warnings(1000);
    // A matter of style, and wrong where a rule file must not contain what it detects.
    let _ = compiler.switch_warning("text_as_hex", false);
    // The variables that the public rule sets expect; set anew for each part.
    for variable in ["filename", "filepath", "extension", "filetype", "owner"] {
        #[expect(clippy::expect_used, reason = "the names are valid and different")]
        compiler.define_global(variable, "").expect("a valid variable");
    }
    compiler
}

fn diagnostic(
    file: &Path,
    source: &[u8],
    at: Option<usize>,
    title: &str,
    excerpt: &str,
) -> Diagnostic {
    let place = at.and_then(|at| source.get(..at)).map(|before| {
        let line = before.iter().filter(|&&b| b == b'\n').count() + 1;
        let column = before.iter().rev().take_while(|&&b| b != b'\n').count() + 1;
        (line, column)
    });
    Diagnostic {
        file: file.to_owned(),
        line: place.map(|p| p.0),
        column: place.map(|p| p.1),
        message: title.to_owned(),
        excerpt: excerpt.to_owned(),
    }
}

/// A scanner over loaded rules, for one thread.
pub struct Yara<'r> {
    pub(super) set: &'r Set,
    pub(super) gate: Gate,
    pub(super) scanners: Scanners<'r>,
    /// The one that asks modules.
    pub(super) probe: Option<Scanner<'r>>,
}

impl<'r> Yara<'r> {
    /// A scanner; its memory is set up as units run for the first time.
    pub fn new(set: &'r Set) -> Self {
        Self { set, gate: set.plan.gate(), scanners: Scanners::new(&set.units), probe: None }
    }

    /// See [`Set::is_timely`].
    pub(super) fn is_timely(&self) -> bool {
        self.set.is_timely()
    }

    /// The units that would run on the data, of all units.
    pub fn needed(&mut self, data: &[u8]) -> (usize, usize) {
        let probe = || ask(self.set, &mut self.probe, data);
        let units = self.set.plan.units(&Facts::unnamed(data), &mut self.gate, probe);
        (units.iter().filter(|&&needed| needed).count(), units.len())
    }

    /// Runs the units that the data needs, and calls `ran` after the filter, with none, and after each: for measurements.
    pub fn each(&mut self, data: &[u8], ran: &mut dyn FnMut(Option<usize>)) {
        let names = Names::new("", &[], sniff(data));
        let facts = Facts::new(data, &names);
        let probe = || ask(self.set, &mut self.probe, data);
        let units = self.set.plan.units(&facts, &mut self.gate, probe);
        ran(None);
        for (unit, _) in units.iter().enumerate().filter(|(_, needed)| **needed) {
            let scanner = self.scanners.of(unit);
            let _ = scanner.scan(data);
            ran(Some(unit));
        }
    }
}

/// The scanners of units, of those that ran last. A scanner keeps what its modules told of its last object, and its
/// share of memory grows with its rules.
pub(super) struct Scanners<'r> {
    units: &'r [Rules],
    /// By unit; with the time of its last use.
    all: Vec<Option<(u64, Scanner<'r>)>>,
    count: usize,
    time: u64,
}

/// Most scanners that are kept. Most units run seldom, and making a scanner takes less than a run.
const SCANNERS_MAX: usize = 24;

impl<'r> Scanners<'r> {
    fn new(units: &'r [Rules]) -> Self {
        Self { units, all: units.iter().map(|_| None).collect(), count: 0, time: 0 }
    }

    pub(super) fn of(&mut self, unit: usize) -> &mut Scanner<'r> {
        if self.all[unit].is_none() {
            if self.count == SCANNERS_MAX {
                let used = |one: &&mut Option<(u64, Scanner<'r>)>| one.as_ref().map(|(at, _)| *at);
                if let Some(oldest) =
                    self.all.iter_mut().filter(|one| one.is_some()).min_by_key(used)
                {
                    *oldest = None;
                    self.count -= 1;
                }
            }
            self.count += 1;
        }
        self.time += 1;
        let (time, units) = (self.time, self.units);
        let (at, scanner) = self.all[unit].get_or_insert_with(|| (time, scanner_of(&units[unit])));
        *at = time;
        scanner
    }
}

/// What modules say of the data, by the numbers of the probes; nothing where they cannot be asked.
pub(super) fn ask<'r>(set: &'r Set, probe: &mut Option<Scanner<'r>>, data: &[u8]) -> Vec<bool> {
    let Some(rules) = &set.probes else { return Vec::new() };
    let scanner = probe.get_or_insert_with(|| scanner_of(rules));
    let Ok(results) = scanner.scan(data) else { return Vec::new() };
    let mut answers = vec![false; rules.iter().len()];
    for rule in results.matching_rules() {
        let number = rule.identifier().strip_prefix('p').and_then(|n| n.parse::<usize>().ok());
        if let Some(answer) = number.and_then(|n| answers.get_mut(n)) {
            *answer = true;
        }
    }
    answers
}

pub(super) fn scanner_of(rules: &Rules) -> Scanner<'_> {
    let mut scanner = Scanner::new(rules);
    scanner.fast_scan(true).max_matches_per_pattern(MATCHES_MAX);
    scanner
}

impl Engine for Yara<'_> {
    fn name(&self) -> &'static str {
        "yara"
    }

    fn scan(&mut self, part: &Part<'_>, hits: &mut Vec<Hit>) -> Result<(), String> {
        let mut timely = Vec::new();
        let result = self.apart(part, Some(hits), &mut timely);
        hits.append(&mut timely);
        result.map(|_| ())
    }
}

impl Yara<'_> {
    /// Scans, and tells what rules that ask for the time find apart from what the others do, which do not run where nobody
    /// wants to know. Gives whether any of the former ran.
    ///
    /// # Errors
    /// As [`Engine::scan`].
    pub(super) fn apart(
        &mut self,
        part: &Part<'_>,
        lasting: Option<&mut Vec<Hit>>,
        timely: &mut Vec<Hit>,
    ) -> Result<bool, String> {
        let names = Names::new(part.name, part.path, part.kind);
        let facts = Facts::new(part.data, &names);
        let mut found: [Vec<(u32, Hit)>; 2] = [Vec::new(), Vec::new()];
        let mut asked = false;
        let probe = || ask(self.set, &mut self.probe, part.data);
        let units = self.set.plan.units(&facts, &mut self.gate, probe);
        for (unit, _) in units.iter().enumerate().filter(|(_, needed)| **needed) {
            let now = self.set.timely[unit];
            asked |= now;
            if !now && lasting.is_none() {
                continue;
            }
            let found = &mut found[usize::from(now)];
            found.extend(run(self.set, self.scanners.of(unit), part, &names)?);
        }
        let [others, now] = found;
        if let Some(hits) = lasting {
            tell(others, hits);
        }
        tell(now, timely);
        Ok(asked)
    }
}

/// Runs one unit of the set: what it finds, each with the place of its rule.
pub(super) fn run(
    set: &Set,
    scanner: &mut Scanner<'_>,
    part: &Part<'_>,
    names: &Names<'_>,
) -> Result<Vec<(u32, Hit)>, String> {
    for (variable, value) in names.variables() {
        scanner.set_global(variable, value).map_err(|e| format!("yara: {variable}: {e}"))?;
    }
    let results = scanner.scan(part.data).map_err(|e| format!("yara: {e}"))?;
    let found = results.matching_rules().map(|rule| {
        let key = (rule.namespace().to_owned(), rule.identifier().to_owned());
        let place = set.order.get(&key).copied().unwrap_or(u32::MAX);
        let detail = part.detail.then(|| detail(&rule));
        // Rules made of ClamAV's signatures bear their names.
        let clamav = rule.metadata().find_map(|(key, value)| match value {
            MetaValue::String(name) if key == clamav::NAME_KEY => Some(name.to_owned()),
            _ => None,
        });
        let engine = Some(if clamav.is_some() { "clamav" } else { "yara" });
        (place, Hit { name: clamav.unwrap_or(key.1), engine, detail })
    });
    Ok(found.collect())
}

/// Appends what the units of a set found, one after the other, in the order of their rules.
pub(super) fn tell(mut found: Vec<(u32, Hit)>, hits: &mut Vec<Hit>) {
    found.sort_by_key(|(place, _)| *place);
    hits.extend(found.into_iter().map(|(_, hit)| hit));
}

/// What a rule says of itself, and where its first match begins.
fn detail(rule: &yara_x::Rule<'_, '_>) -> Detail {
    let offset = rule
        .patterns()
        .flat_map(|pattern| pattern.matches().map(|found| found.range().start as u64).min())
        .min();
    let value = |value: MetaValue<'_>| match value {
        MetaValue::Integer(n) => n.to_string(),
        MetaValue::Float(n) => n.to_string(),
        MetaValue::Bool(b) => b.to_string(),
        MetaValue::String(text) => text.to_owned(),
        MetaValue::Bytes(bytes) => String::from_utf8_lossy(bytes).into_owned(),
    };
    Detail {
        tags: rule.tags().map(|tag| tag.identifier().to_owned()).collect(),
        meta: rule.metadata().map(|(name, v)| (name.to_owned(), value(v))).collect(),
        offset,
    }
}

#[cfg(test)]
mod tests;

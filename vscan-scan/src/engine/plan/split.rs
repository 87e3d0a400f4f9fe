//! Which rules form a component, and which components a unit.

use super::condition::{MODULES, Reader};
use super::facts::Facts;
use super::formula::Formula;
use super::probe::Probes;
use super::{Component, Table};
use crate::engine::filter;
use crate::engine::needle::{NEEDLE_MIN, Needle, good, needles, worth};
use crate::engine::shape::{Confirm, Shape, confirms, shapes};
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use yara_x_parser::Parser;
use yara_x_parser::ast::{AST, Item, Pattern, Rule, RuleFlags, WithSpan};
use yara_x_parser::cst::{Event, SyntaxKind};

/// A rule file.
#[derive(Debug)]
pub(crate) struct Source {
    /// Where it lies; names its namespace.
    pub(crate) path: PathBuf,
    /// Its text.
    pub(crate) text: Vec<u8>,
}

/// What one unit takes of one file. All of it lies at the same lines and columns as in the file.
#[derive(Debug)]
pub(crate) struct UnitSource {
    /// The file, by its place among the sources.
    pub(crate) source: usize,
    /// The text.
    pub(crate) text: Vec<u8>,
}

/// Rules in a unit whose rules need literals. A unit costs its share of memory, and a few dozen rules
/// with few candidates among them are scanned at memory speed.
const UNIT_RULES: u32 = 128;

/// Length of literals that are seldom enough.
const ENOUGH: usize = 8;

/// The same for rules whose literals are short or plain: other rules of their unit would run with them often.
const UNIT_WEAK: u32 = 2;
const UNIT_WEAKEST: u32 = 1;

/// The same for rules that sizes alone keep from running.
const UNIT_BOUNDED: u32 = 2;

/// [`Formula::strength`] from which on a rule is seldom a candidate by chance, and up to which it is one often.
const STRONG: u32 = 20;
const WEAKEST: u32 = 14;

/// Rules of one file that stay together.
struct Group {
    source: usize,
    /// Spans of its rules in the file; none: the whole file.
    spans: Vec<(usize, usize)>,
    formula: Formula,
    rules: u32,
    /// Nothing is searched for them.
    bare: bool,
    /// A module parses the data for them.
    parses: bool,
}

/// Splits the sources into units, and makes the rules by which modules are asked. Files that cannot be parsed are left
/// whole: their errors are the compiler's to tell. With `apart` each component is a unit of its own.
pub(crate) fn split(
    sources: &[Source],
    apart: bool,
) -> (Table, Vec<Vec<UnitSource>>, Option<String>) {
    let literals = RefCell::new(Literals::default());
    let probes = RefCell::new(Probes::default());
    let (mut groups, mut order) = (Vec::new(), Vec::new());
    for (i, source) in sources.iter().enumerate() {
        file(i, source, &literals, &probes, &mut groups, &mut order);
    }
    let mut literals = literals.into_inner();
    let units = if apart {
        (0..groups.len()).map(|g| vec![g]).collect()
    } else {
        assign(&groups, &literals)
    };
    let count = literals.needles.len() as u32;
    let numbered = |n: &mut u32| {
        if *n & SHAPE != 0 {
            *n = (*n & !SHAPE) + count;
        }
    };
    literals.patterns.iter_mut().flatten().for_each(numbered);
    let mut table = Table {
        choices: filter::choose(&literals.needles),
        needles: literals.needles,
        shapes: literals.shapes,
        confirms: literals.confirms,
        patterns: literals.patterns,
        components: Vec::new(),
        units: units.len() as u32,
        probes: probes.borrow().rules().is_some(),
        order,
    };
    let mut texts = Vec::new();
    let imports: Vec<_> = sources.iter().map(|source| imports(&source.text)).collect();
    for (u, unit) in units.iter().enumerate() {
        let mut of_file: BTreeMap<usize, Vec<(usize, usize)>> = BTreeMap::new();
        for &g in unit {
            let group = &groups[g];
            of_file.entry(group.source).or_default().extend(&group.spans);
            table.components.push(Component {
                formula: group.formula.clone(),
                unit: u as u32,
                rules: group.rules,
            });
        }
        texts.push(
            of_file
                .into_iter()
                .map(|(source, spans)| UnitSource {
                    source,
                    text: extract(&sources[source].text, &imports[source], spans),
                })
                .collect(),
        );
    }
    (table, texts, probes.borrow().rules())
}

/// What a rule's patterns are looked for by: the first with which it needs one that is seldom.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Least {
    /// Literals of [`ENOUGH`] bytes.
    Enough,
    /// Short ones too.
    Short,
    /// Shapes where there is no literal or a weak one.
    Shape,
}

/// The literals of all patterns, each set once.
#[derive(Default)]
struct Literals {
    needles: Vec<Needle>,
    places: HashMap<Needle, u32>,
    shapes: Vec<Shape>,
    shape_places: HashMap<Shape, u32>,
    confirms: Vec<Vec<Confirm>>,
    confirm_places: HashMap<Vec<Confirm>, u32>,
    patterns: Vec<Vec<u32>>,
    sets: HashMap<Vec<u32>, u32>,
}

/// Marks the number of a shape until it is known how many literals there are.
const SHAPE: u32 = 1 << 31;

impl Literals {
    /// What stands for a pattern. One whose literals may be shorter than `least` is left open.
    fn formula(&mut self, pattern: &Pattern<'_>, least: Least) -> Formula {
        let found = self.found(pattern, least);
        let text = matches!(pattern, Pattern::Text(_));
        if found == Formula::Maybe || text || self.strength(&found) >= STRONG {
            return found;
        }
        let Some(confirms) = confirms(pattern) else { return found };
        let number = *self.confirm_places.entry(confirms).or_insert_with_key(|confirms| {
            self.confirms.push(confirms.clone());
            self.confirms.len() as u32 - 1
        });
        Formula::all([found, Formula::Confirm(number)])
    }

    fn found(&mut self, pattern: &Pattern<'_>, least: Least) -> Formula {
        let found = needles(pattern);
        let weak = |found: &Vec<Needle>| {
            !matches!(pattern, Pattern::Text(_)) && found.iter().any(|n| worth(&n.bytes) < WEAKEST)
        };
        // A literal that is a small part of its pattern is in many files where the pattern is not.
        let shaped = least == Least::Shape && found.as_ref().is_none_or(weak);
        if shaped && let Some(shapes) = shapes(pattern) {
            let number = |shape: Shape| {
                let entry = self.shape_places.entry(shape);
                *entry.or_insert_with_key(|shape| {
                    self.shapes.push(shape.clone());
                    SHAPE | (self.shapes.len() as u32 - 1)
                })
            };
            let set = shapes.into_iter().map(number).collect();
            return self.pattern(set);
        }
        let Some(found) = found else { return Formula::Maybe };
        let least = if least == Least::Enough { ENOUGH } else { NEEDLE_MIN };
        if found.iter().any(|needle| needle.bytes.len() < least) {
            return Formula::Maybe;
        }
        self.of_needles(Some(found))
    }

    /// What stands for literals of which one has to be there.
    fn of_needles(&mut self, needles: Option<Vec<Needle>>) -> Formula {
        let Some(needles) = needles else { return Formula::Maybe };
        let set = needles
            .into_iter()
            .map(|needle| {
                *self.places.entry(needle).or_insert_with_key(|needle| {
                    self.needles.push(needle.clone());
                    self.needles.len() as u32 - 1
                })
            })
            .collect();
        self.pattern(set)
    }

    /// How seldom a formula holds: by the poorest literal of those of which it needs one.
    fn strength(&self, formula: &Formula) -> u32 {
        formula.strength(&|p| {
            let worth = |&n: &u32| match n & SHAPE {
                0 => worth(&self.needles[n as usize].bytes),
                _ => self.shapes[(n & !SHAPE) as usize].worth(),
            };
            self.patterns[p as usize].iter().map(worth).min().unwrap_or(0)
        })
    }

    /// The pattern with this set.
    fn pattern(&mut self, mut set: Vec<u32>) -> Formula {
        set.sort_unstable();
        set.dedup();
        let (sets, patterns) = (&mut self.sets, &mut self.patterns);
        Formula::Pattern(*sets.entry(set).or_insert_with_key(|set| {
            patterns.push(set.clone());
            patterns.len() as u32 - 1
        }))
    }
}

fn file(
    i: usize,
    source: &Source,
    literals: &RefCell<Literals>,
    probes: &RefCell<Probes>,
    groups: &mut Vec<Group>,
    order: &mut Vec<(String, String)>,
) {
    let spans = rule_spans(&source.text);
    let ast = AST::from(Parser::new(&source.text));
    let rules: Vec<&Rule<'_>> = ast.rules().collect();
    let namespace = source.path.to_string_lossy();
    order.extend(
        rules.iter().map(|r| (namespace.clone().into_owned(), r.identifier.name.to_owned())),
    );
    let included = ast.items().any(|item| matches!(item, Item::Include(_)));
    let names: HashSet<&str> = rules.iter().map(|rule| rule.identifier.name).collect();
    let whole = included || rules.len() != spans.len() || names.len() != rules.len();
    if !ast.errors().is_empty() || whole {
        let rules = spans.len().max(1) as u32;
        groups.push(Group {
            source: i,
            spans: Vec::new(),
            formula: Formula::Maybe,
            rules,
            bare: false,
            parses: true,
        });
        return;
    }
    let mut formulas: HashMap<&str, Formula> = HashMap::new();
    let mut own = Vec::new();
    for rule in &rules {
        let mut formula = Formula::Maybe;
        // Short literals are in every other file and cost the filter most: only where it does not go without.
        for least in [Least::Enough, Least::Short, Least::Shape] {
            let patterns: Vec<(&Pattern<'_>, Formula)> = rule
                .patterns
                .iter()
                .flatten()
                .map(|p| (p, literals.borrow_mut().formula(p, least)))
                .collect();
            let reader = Reader {
                rules: &formulas,
                patterns: &patterns,
                text: &source.text,
                probes,
                literals: &|needles| literals.borrow_mut().of_needles(good(needles)),
            };
            formula = reader.read(rule);
            if formula.needs_literal()
                && (least == Least::Enough || literals.borrow().strength(&formula) >= WEAKEST)
            {
                break;
            }
        }
        formulas.insert(rule.identifier.name, formula.clone());
        own.push(formula);
    }
    let mut union = Union::new(rules.len());
    if rules.iter().any(|rule| rule.flags.contains(RuleFlags::Global)) {
        (1..rules.len()).for_each(|r| union.join(0, r));
    }
    let places: HashMap<&str, usize> =
        rules.iter().enumerate().map(|(r, rule)| (rule.identifier.name, r)).collect();
    for (r, &(from, to)) in spans.iter().enumerate() {
        for word in words(&source.text[from..to]) {
            if let Some(&other) = places.get(word) {
                union.join(r, other);
            }
        }
    }
    let mut members: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for r in 0..rules.len() {
        members.entry(union.root(r)).or_default().push(r);
    }
    for members in members.into_values() {
        let told = members.iter().filter(|&&r| !rules[r].flags.contains(RuleFlags::Private));
        groups.push(Group {
            source: i,
            formula: Formula::any(told.map(|&r| own[r].clone())),
            rules: members.len() as u32,
            bare: members.iter().all(|&r| rules[r].patterns.is_none()),
            parses: members.iter().any(|&r| parses(&source.text[spans[r].0..spans[r].1])),
            spans: members.into_iter().map(|r| spans[r]).collect(),
        });
    }
}

/// Where the rules of a file lie, with their modifiers.
fn rule_spans(text: &[u8]) -> Vec<(usize, usize)> {
    Parser::new(text)
        .filter_map(|event| match event {
            Event::Begin { kind: SyntaxKind::RULE_DECL, span } => Some((span.start(), span.end())),
            _ => None,
        })
        .collect()
}

/// The rule names a module that parses the data wherever a rule of its unit runs.
fn parses(rule: &[u8]) -> bool {
    words(rule).any(|word| MODULES.iter().any(|(name, _)| word == *name))
}

/// Everything that could be a name, comments and strings included: rules that seem to refer to each other do no harm.
fn words(text: &[u8]) -> impl Iterator<Item = &str> {
    text.split(|b| !b.is_ascii_alphanumeric() && *b != b'_')
        .filter(|word| !word.is_empty() && !word[0].is_ascii_digit())
        .filter_map(|word| std::str::from_utf8(word).ok())
}

/// Where the imports of a file lie, and what they import.
fn imports(text: &[u8]) -> Vec<(String, (usize, usize))> {
    let place = |import: &yara_x_parser::ast::Import<'_>| {
        let span = import.span();
        (import.module_name.to_owned(), (span.start(), span.end()))
    };
    AST::from(Parser::new(text)).imports().map(place).collect()
}

/// The spans of a text and the imports that they seem to use, at their lines and columns, and nothing else of it. No
/// spans: the text as it is.
fn extract(
    text: &[u8],
    imports: &[(String, (usize, usize))],
    mut spans: Vec<(usize, usize)>,
) -> Vec<u8> {
    if spans.is_empty() {
        return text.to_vec();
    }
    let used = imports.iter().filter(|(name, _)| {
        spans.iter().any(|&(from, to)| words(&text[from..to]).any(|word| word == name))
    });
    let used: Vec<(usize, usize)> = used.map(|(_, span)| *span).collect();
    spans.extend(used);
    spans.sort_unstable();
    let mut out = Vec::new();
    let mut done = 0;
    for (from, to) in spans {
        let between = &text[done..from];
        out.extend(between.iter().filter(|&&b| b == b'\n'));
        let column = between.iter().rev().take_while(|&&b| b != b'\n').count();
        out.resize(out.len() + column, b' ');
        out.extend_from_slice(&text[from..to]);
        done = to;
    }
    out
}

/// Puts the groups into units: those that need a literal in the order of their files, which keeps related rules
/// together, but the weak ones, which are candidates often, apart and in smaller units; the others by what they run on.
fn assign(groups: &[Group], literals: &Literals) -> Vec<Vec<usize>> {
    let (mut strong, mut weak, mut weakest) = (Vec::new(), Vec::new(), Vec::new());
    let mut by_header: BTreeMap<(Option<usize>, bool, bool), Vec<usize>> = BTreeMap::new();
    for (g, group) in groups.iter().enumerate() {
        let strength = literals.strength(&group.formula);
        if group.formula.needs_literal() || strength >= WEAKEST {
            match strength {
                STRONG.. => strong.push((group.parses, 0, g)),
                WEAKEST.. => weak.push((group.parses, strength, g)),
                _ => weakest.push((group.parses, strength, g)),
            }
        } else {
            // On text means on everything. Rules for the rest are few and lie together.
            let first = HEADS.iter().position(|head| {
                group.formula.may_hold(
                    &Facts::unnamed(&sample(head)),
                    &|_| false,
                    &|_| true,
                    &|_| true,
                )
            });
            by_header.entry((first, group.bare, group.parses)).or_default().push(g);
        }
    }
    // A module does not parse the data for rules that do without.
    for list in [&mut weakest, &mut weak, &mut strong] {
        list.sort_unstable();
    }
    let mut units = Vec::new();
    let mut always = Vec::new();
    for unit in by_header.into_values() {
        // What only a size keeps from running runs alone, where it does.
        let (bare, bounded): (Vec<usize>, Vec<usize>) =
            unit.into_iter().partition(|&g| groups[g].formula == Formula::Maybe);
        if bare.is_empty() {
            units.push(bounded);
        } else {
            units.push(bare);
            always.extend(bounded.into_iter().map(|g| (groups[g].parses, 0, g)));
        }
    }
    for (list, most) in
        [(always, UNIT_BOUNDED), (weakest, UNIT_WEAKEST), (weak, UNIT_WEAK), (strong, UNIT_RULES)]
    {
        let (mut filled, mut parsing) = (most, false);
        for (parses, _, g) in list {
            if filled + groups[g].rules > most || parses != parsing {
                parsing = parses;
                units.push(Vec::new());
                filled = 0;
            }
            filled += groups[g].rules;
            if let Some(unit) = units.last_mut() {
                unit.push(g);
            }
        }
    }
    units.retain(|unit| !unit.is_empty());
    units
}

/// Heads of files by which rules without literals are told apart; the first is that of no format at all.
const HEADS: &[&[u8]] =
    &[b"text", b"MZ", b"\x7fELF", b"PK\x03\x04", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", b"%PDF-"];

/// Something that begins like this, of the size of a small file.
fn sample(head: &[u8]) -> Vec<u8> {
    let mut data = head.to_vec();
    data.resize(400, b'.');
    data
}

/// Sets that grow together.
struct Union {
    parents: Vec<usize>,
}

impl Union {
    fn new(n: usize) -> Self {
        Self { parents: (0..n).collect() }
    }

    fn root(&mut self, i: usize) -> usize {
        let mut i = i;
        while self.parents[i] != i {
            self.parents[i] = self.parents[self.parents[i]];
            i = self.parents[i];
        }
        i
    }

    fn join(&mut self, a: usize, b: usize) {
        let (a, b) = (self.root(a), self.root(b));
        self.parents[a.max(b)] = a.min(b);
    }
}

//! From the condition of a rule to its [`Formula`].

use super::formula::{Calc, Formula, Int, Order};
use crate::engine::needle;
use std::cell::RefCell;
use std::collections::HashMap;
use yara_x_parser::ast::{
    Expr, FuncCall, Ident, MatchAnchor, OfItems, Pattern, PatternMatch, PatternSet, Quantifier,
    Rule, WithSpan,
};

/// Reads the conditions of the rules of one namespace.
pub(crate) struct Reader<'a, 'src> {
    /// Formulas of the rules before this one.
    pub(crate) rules: &'a HashMap<&'src str, Formula>,
    /// Patterns of this rule: what stands for each in a formula.
    pub(crate) patterns: &'a [(&'a Pattern<'src>, Formula)],
    /// The text of the file, and what modules are asked in it.
    pub(crate) text: &'src [u8],
    pub(crate) probes: &'a RefCell<Probes>,
}

/// What modules are asked: expressions that need nothing but the data, each once. All of them are answered at once by
/// rules of their own, when the first answer is needed.
#[derive(Debug, Default)]
pub(crate) struct Probes {
    places: HashMap<String, u32>,
    texts: Vec<String>,
}

/// Most expressions; what is more is left open.
const PROBES_MAX: usize = 4096;

impl Probes {
    fn number(&mut self, text: &str) -> Option<u32> {
        if let Some(&number) = self.places.get(text) {
            return Some(number);
        }
        if self.texts.len() == PROBES_MAX {
            return None;
        }
        let number = self.texts.len() as u32;
        self.places.insert(text.to_owned(), number);
        self.texts.push(text.to_owned());
        Some(number)
    }

    /// The rules that answer, one for each probe, in order.
    pub(crate) fn rules(&self) -> Option<String> {
        let imports = MODULES.iter().map(|(name, _)| format!("import \"{name}\"\n"));
        let imports = imports.filter(|import| {
            let name = import.split('"').nth(1).unwrap_or_default();
            self.texts.iter().any(|text| text.contains(name))
        });
        let rules = self.texts.iter().enumerate();
        let rules = rules.map(|(i, text)| format!("rule p{i} {{ condition: {text} }}\n"));
        (!self.texts.is_empty()).then(|| imports.chain(rules).collect())
    }
}

/// What surrounds an expression.
#[derive(Clone, Copy, Default)]
struct Scope {
    /// The pattern that `$`, `#`, `@` and `!` stand for.
    current: Option<usize>,
    /// Inside a loop or `with`, whose variables may hide rules.
    variables: bool,
}

/// Deepest nesting that is looked into.
const DEPTH_MAX: u32 = 64;

/// Fields of modules exist only where the module could parse the data, which begins like this.
const MODULES: &[(&str, &[u8])] = &[("pe", b"MZ"), ("dotnet", b"MZ"), ("elf", b"\x7fELF")];

/// Functions whose value is undefined where the module could not parse the data.
const UNDEFINED: &[(&str, &str)] = &[("pe", "imphash")];

/// Functions whose value is undefined or 0 there.
const COUNTS: &[(&str, &str)] = &[("pe", "imports"), ("pe", "toolid"), ("pe", "version")];

/// Functions that are false or undefined there.
const FALSE: &[(&str, &str)] = &[
    ("pe", "imports"),
    ("pe", "exports"),
    ("pe", "is_dll"),
    ("pe", "is_32bit"),
    ("pe", "is_64bit"),
    ("pe", "toolid"),
    ("pe", "version"),
];

/// Functions that are asked by probes: undefined or false where the module could not parse the data, and seldom true
/// elsewhere.
const CALLS: &[(&str, &str)] =
    &[("pe", "imphash"), ("pe", "exports"), ("pe", "imports"), ("pe", "section_index")];

/// Functions that read an integer from the data, and are undefined where their offset is.
const READS: &[&str] = &[
    "uint8", "uint16", "uint32", "uint64", "uint8be", "uint16be", "uint32be", "uint64be", "int8",
    "int16", "int32", "int64", "int8be", "int16be", "int32be", "int64be",
];

impl<'a, 'src> Reader<'a, 'src> {
    /// The formula of a rule's condition.
    pub(crate) fn read(&self, rule: &Rule<'src>) -> Formula {
        self.formula(&rule.condition, Scope::default(), 0)
    }

    fn formula(&self, expr: &Expr<'src>, scope: Scope, depth: u32) -> Formula {
        if depth > DEPTH_MAX {
            return Formula::Maybe;
        }
        if let Some(probe) = self.probe(expr) {
            return probe;
        }
        let inner = |expr: &Expr<'src>| self.formula(expr, scope, depth + 1);
        match expr {
            Expr::False { .. } => Formula::Never,
            Expr::Ident(ident) if !scope.variables => {
                self.rules.get(ident.name).cloned().unwrap_or(Formula::Maybe)
            }
            Expr::PatternMatch(found) => self.found(found, scope),
            Expr::PatternCount(count) => self.pattern(&count.identifier, scope),
            Expr::PatternOffset(place) | Expr::PatternLength(place) => {
                self.pattern(&place.identifier, scope)
            }
            Expr::And(parts) => Formula::all(parts.operands().map(inner)),
            Expr::Or(parts) => Formula::any(parts.operands().map(inner)),
            Expr::Eq(b) => self.compare(&b.lhs, Order::Eq, &b.rhs, scope),
            Expr::Ne(b) => self.compare(&b.lhs, Order::Ne, &b.rhs, scope),
            Expr::Lt(b) => self.compare(&b.lhs, Order::Lt, &b.rhs, scope),
            Expr::Le(b) => self.compare(&b.lhs, Order::Le, &b.rhs, scope),
            Expr::Gt(b) => self.compare(&b.lhs, Order::Gt, &b.rhs, scope),
            Expr::Ge(b) => self.compare(&b.lhs, Order::Ge, &b.rhs, scope),
            Expr::Contains(b)
            | Expr::IContains(b)
            | Expr::StartsWith(b)
            | Expr::IStartsWith(b)
            | Expr::EndsWith(b)
            | Expr::IEndsWith(b)
            | Expr::IEquals(b)
            | Expr::Matches(b) => {
                Formula::all([self.defined(&b.lhs, scope, 0), self.defined(&b.rhs, scope, 0)])
            }
            Expr::FieldAccess(access) => {
                match (root(access.first()), access.last()) {
                    // `pe.is_pe` and what else is false or undefined.
                    (Some(module), Expr::Ident(_)) => parsed(module),
                    (Some(module), Expr::FuncCall(call)) if is(FALSE, module, call) => {
                        parsed(module)
                    }
                    _ => Formula::Maybe,
                }
            }
            Expr::FuncCall(call) => match call.object.as_ref().and_then(root) {
                Some(module) if is(FALSE, module, call) => parsed(module),
                _ => Formula::Maybe,
            },
            Expr::Of(of) => {
                let parts: Vec<Formula> = match &of.items {
                    OfItems::PatternSet(set) => {
                        self.set(set).map(|i| self.anchored(i, of.anchor.as_ref(), scope)).collect()
                    }
                    OfItems::BoolExprTuple(parts) => parts.iter().map(inner).collect(),
                };
                quantified(&of.quantifier, parts)
            }
            Expr::ForOf(of) => {
                let parts = self
                    .set(&of.pattern_set)
                    .map(|i| {
                        let scope = Scope { current: Some(i), ..scope };
                        self.formula(&of.body, scope, depth + 1)
                    })
                    .collect();
                quantified(&of.quantifier, parts)
            }
            Expr::ForIn(of) => {
                if of.variables.iter().any(|v| MODULES.iter().any(|(name, _)| v.name == *name)) {
                    return Formula::Maybe;
                }
                let scope = Scope { variables: true, ..scope };
                let body = self.formula(&of.body, scope, depth + 1);
                // Once is enough, and necessary, for all but `all` and `none`, which nothing satisfies as well.
                match &of.quantifier {
                    Quantifier::Any { .. } => body,
                    Quantifier::Expr(n) if constant(n).is_some_and(|n| n > 0) => body,
                    Quantifier::Expr(_)
                    | Quantifier::Percentage(_)
                    | Quantifier::All { .. }
                    | Quantifier::None { .. } => Formula::Maybe,
                }
            }
            Expr::With(with) => {
                let names = with.declarations.iter().map(|d| d.identifier.name);
                if names.clone().any(|v| MODULES.iter().any(|(name, _)| v == *name)) {
                    return Formula::Maybe;
                }
                self.formula(&with.body, Scope { variables: true, ..scope }, depth + 1)
            }
            Expr::True { .. }
            | Expr::Filesize { .. }
            | Expr::Entrypoint { .. }
            | Expr::LiteralString(_)
            | Expr::LiteralInteger(_)
            | Expr::LiteralFloat(_)
            | Expr::Regexp(_)
            | Expr::Ident(_)
            | Expr::Lookup(_)
            | Expr::Defined(_)
            | Expr::Not(_)
            | Expr::Minus(_)
            | Expr::Add(_)
            | Expr::Sub(_)
            | Expr::Mul(_)
            | Expr::Div(_)
            | Expr::Mod(_)
            | Expr::BitwiseNot(_)
            | Expr::Shl(_)
            | Expr::Shr(_)
            | Expr::BitwiseAnd(_)
            | Expr::BitwiseOr(_)
            | Expr::BitwiseXor(_) => Formula::Maybe,
        }
    }

    /// What modules alone decide: a call, or the comparison of one with a constant.
    fn probe(&self, expr: &Expr<'src>) -> Option<Formula> {
        // Counts are 0 where the module could not parse the data: a comparison that 0 satisfies is none for a probe.
        let more = |expr: &Expr<'src>, than: i64| constant(expr).is_some_and(|n| n > than);
        let is_text = |expr: &Expr<'src>| matches!(expr, Expr::LiteralString(_));
        let (called, compared) = match expr {
            Expr::Eq(b) if is_text(&b.rhs) || more(&b.rhs, 0) => (&b.lhs, Some(("==", &b.rhs))),
            Expr::Ge(b) if more(&b.rhs, 0) => (&b.lhs, Some((">=", &b.rhs))),
            Expr::Gt(b) if more(&b.rhs, -1) => (&b.lhs, Some((">", &b.rhs))),
            expr => (expr, None),
        };
        let (module, call) = asked(called)?;
        let literal = |expr: &Expr<'src>| {
            let span = expr.span();
            std::str::from_utf8(self.text.get(span.start()..span.end())?).ok()
        };
        let arguments: Vec<&str> = call.args.iter().map(literal).collect::<Option<_>>()?;
        let mut text = format!("{module}.{}({})", call.identifier.name, arguments.join(", "));
        if let Some((order, with)) = compared {
            text += &format!(" {order} {}", literal(with)?);
        }
        let number = self.probes.borrow_mut().number(&text)?;
        Some(Formula::all([parsed(module), Formula::Probe(number)]))
    }

    /// The pattern that `$name`, `#name`, `@name` or `!name` stands for.
    fn index(&self, ident: &Ident<'_>, scope: Scope) -> Option<usize> {
        let name = ident.name.get(1..)?;
        if name.is_empty() {
            return scope.current;
        }
        self.patterns.iter().position(|(p, _)| p.identifier().name.get(1..) == Some(name))
    }

    fn pattern(&self, ident: &Ident<'_>, scope: Scope) -> Formula {
        self.index(ident, scope).map_or(Formula::Maybe, |i| self.patterns[i].1.clone())
    }

    fn found(&self, found: &PatternMatch<'src>, scope: Scope) -> Formula {
        match self.index(&found.identifier, scope) {
            Some(i) => self.anchored(i, found.anchor.as_ref(), scope),
            None => Formula::Maybe,
        }
    }

    fn anchored(&self, i: usize, anchor: Option<&MatchAnchor<'src>>, scope: Scope) -> Formula {
        let (pattern, formula) = &self.patterns[i];
        let at = match anchor {
            Some(MatchAnchor::At(at)) => match (self.int(&at.expr, 0), needle::heads(pattern)) {
                (Some(at), Some(heads)) => Formula::At(at, heads),
                _ => self.defined(&at.expr, scope, 0),
            },
            Some(MatchAnchor::In(within)) => {
                let range = &within.range;
                match (self.int(&range.lower_bound, 0), self.int(&range.upper_bound, 0)) {
                    (Some(from), Some(to)) => needle::heads(pattern)
                        .map_or(Formula::Maybe, |heads| Formula::Within(from, to, heads)),
                    _ => Formula::Maybe,
                }
            }
            None => Formula::Maybe,
        };
        Formula::all([at, formula.clone()])
    }

    fn set(&self, set: &PatternSet<'src>) -> impl Iterator<Item = usize> {
        let chosen: Vec<usize> = (0..self.patterns.len())
            .filter(|&i| match set {
                PatternSet::Them { .. } => true,
                PatternSet::Set(items) => {
                    items.iter().any(|item| item.matches(self.patterns[i].0.identifier()))
                }
            })
            .collect();
        chosen.into_iter()
    }

    fn compare(&self, a: &Expr<'src>, order: Order, b: &Expr<'src>, scope: Scope) -> Formula {
        if let (Some(a), Some(b)) = (self.int(a, 0), self.int(b, 0)) {
            return Formula::Compare(a, order, b);
        }
        if let (Expr::Ident(variable), Order::Eq, Expr::LiteralString(text)) = (a, order, b)
            && variable.name == "filename"
            && !scope.variables
            && let Ok(name) = std::str::from_utf8(text.value.as_ref())
        {
            return Formula::Named(name.to_owned());
        }
        // `#a > 2`, `pe.imports("x.dll") >= 1`: false of none.
        for (counted, order, other) in [(a, order, b), (b, order.turned(), a)] {
            let positive = match (order, constant(other)) {
                (Order::Eq | Order::Ge, Some(n)) => n > 0,
                (Order::Gt, Some(n)) => n >= 0,
                (Order::Ne, Some(n)) => n == 0,
                // `#a > #b + #c`
                (Order::Gt, None) => is_count(other),
                (Order::Lt | Order::Le, _) | (Order::Eq | Order::Ge | Order::Ne, None) => false,
            };
            if positive && let Some(formula) = self.counted(counted, scope) {
                return formula;
            }
        }
        Formula::all([self.defined(a, scope, 0), self.defined(b, scope, 0)])
    }

    /// What has to hold for a count, or a sum of counts, not to be 0 or undefined.
    fn counted(&self, expr: &Expr<'src>, scope: Scope) -> Option<Formula> {
        match expr {
            Expr::PatternCount(count) => Some(self.pattern(&count.identifier, scope)),
            Expr::Add(parts) => {
                let parts: Option<Vec<_>> =
                    parts.operands().map(|part| self.counted(part, scope)).collect();
                parts.map(Formula::any)
            }
            Expr::FuncCall(call) => {
                let module = call.object.as_ref().and_then(root)?;
                is(COUNTS, module, call).then(|| parsed(module))
            }
            _ => None,
        }
    }

    /// `pe.signatures[i].issuer` and its like.
    fn is_signature(&self, expr: &Expr<'src>) -> bool {
        let span = expr.span();
        let text = self.text.get(span.start()..span.end()).unwrap_or_default();
        text.starts_with(b"pe.signatures[")
    }

    /// The data is a program with a signature: without one the fields of its signatures have no value.
    fn signed(&self) -> Formula {
        let number = self.probes.borrow_mut().number("pe.number_of_signatures > 0");
        Formula::all([parsed("pe"), number.map_or(Formula::Maybe, Formula::Probe)])
    }

    /// What has to hold for an expression to have a value at all: without one each comparison is false.
    fn defined(&self, expr: &Expr<'src>, scope: Scope, depth: u32) -> Formula {
        if depth > DEPTH_MAX {
            return Formula::Maybe;
        }
        match expr {
            Expr::PatternOffset(place) | Expr::PatternLength(place) => {
                self.pattern(&place.identifier, scope)
            }
            Expr::FieldAccess(_) if self.is_signature(expr) => self.signed(),
            Expr::FieldAccess(access) => match (root(access.first()), access.last()) {
                (Some(module), Expr::Ident(_)) => parsed_but_for_flag(module, access.last()),
                (Some(module), Expr::FuncCall(call)) if is(UNDEFINED, module, call) => {
                    parsed(module)
                }
                _ => Formula::Maybe,
            },
            Expr::FuncCall(call) => match call.object.as_ref().and_then(root) {
                Some(module) if is(UNDEFINED, module, call) => parsed(module),
                // `uint32(@a + 4)`
                None if call.object.is_none() && READS.contains(&call.identifier.name) => {
                    Formula::all(call.args.iter().map(|e| self.defined(e, scope, depth + 1)))
                }
                _ => Formula::Maybe,
            },
            Expr::Lookup(lookup) => self.defined(&lookup.primary, scope, depth + 1),
            Expr::Add(parts) | Expr::Sub(parts) | Expr::Mul(parts) => {
                Formula::all(parts.operands().map(|e| self.defined(e, scope, depth + 1)))
            }
            Expr::BitwiseAnd(b) | Expr::BitwiseOr(b) | Expr::BitwiseXor(b) => Formula::all(
                [&b.lhs, &b.rhs].into_iter().map(|e| self.defined(e, scope, depth + 1)),
            ),
            _ => Formula::Maybe,
        }
    }

    /// The expression as an integer that needs no more than the data.
    fn int(&self, expr: &Expr<'src>, depth: u32) -> Option<Int> {
        if depth > DEPTH_MAX {
            return None;
        }
        let calc = |calc: Calc, parts: &mut dyn Iterator<Item = &Expr<'src>>| -> Option<Int> {
            let mut sum = self.int(parts.next()?, depth + 1)?;
            for part in parts {
                sum = Int::Calc(calc, Box::new(sum), Box::new(self.int(part, depth + 1)?));
            }
            Some(sum)
        };
        match expr {
            Expr::Filesize { .. } => Some(Int::Filesize),
            Expr::LiteralInteger(n) if !n.is_unsigned => Some(Int::Const(n.value)),
            Expr::Add(parts) => calc(Calc::Add, &mut parts.operands()),
            Expr::Sub(parts) => calc(Calc::Sub, &mut parts.operands()),
            Expr::Mul(parts) => calc(Calc::Mul, &mut parts.operands()),
            Expr::BitwiseAnd(b) => calc(Calc::And, &mut [&b.lhs, &b.rhs].into_iter()),
            Expr::BitwiseOr(b) => calc(Calc::Or, &mut [&b.lhs, &b.rhs].into_iter()),
            Expr::BitwiseXor(b) => calc(Calc::Xor, &mut [&b.lhs, &b.rhs].into_iter()),
            Expr::FuncCall(call) if call.object.is_none() => {
                let name = call.identifier.name;
                let (name, big) = match name.strip_suffix("be") {
                    Some(name) => (name, true),
                    None => (name, false),
                };
                let (width, signed) = match name {
                    "uint8" => (1, false),
                    "uint16" => (2, false),
                    "uint32" => (4, false),
                    "int8" => (1, true),
                    "int16" => (2, true),
                    "int32" => (4, true),
                    _ => return None,
                };
                let [at] = &call.args[..] else { return None };
                Some(Int::Read { width, big, signed, at: Box::new(self.int(at, depth + 1)?) })
            }
            _ => None,
        }
    }
}

/// The module whose function is called, with constants only: `pe.exports("name")`.
fn asked<'e, 'src>(expr: &'e Expr<'src>) -> Option<(&'src str, &'e FuncCall<'src>)> {
    let (module, call) = match expr {
        Expr::FieldAccess(access) => match access.last() {
            Expr::FuncCall(call) if call.object.is_none() => (root(access.first())?, call),
            _ => return None,
        },
        Expr::FuncCall(call) => match call.object.as_ref()? {
            Expr::Ident(module) => (module.name, call),
            _ => return None,
        },
        _ => return None,
    };
    let plain = CALLS.contains(&(module, call.identifier.name)) && call.args.iter().all(is_literal);
    plain.then_some((module, call))
}

fn is_literal(expr: &Expr<'_>) -> bool {
    matches!(expr, Expr::LiteralString(_) | Expr::LiteralInteger(_))
}

fn constant(expr: &Expr<'_>) -> Option<i64> {
    match expr {
        Expr::LiteralInteger(n) if !n.is_unsigned => Some(n.value),
        _ => None,
    }
}

/// A count, or a sum of counts: never negative.
fn is_count(expr: &Expr<'_>) -> bool {
    match expr {
        Expr::PatternCount(_) => true,
        Expr::Add(parts) => parts.operands().all(is_count),
        _ => false,
    }
}

/// The module at the root of `pe.sections[0].name`.
fn root<'src>(expr: &Expr<'src>) -> Option<&'src str> {
    match expr {
        Expr::Ident(ident) => Some(ident.name),
        Expr::FieldAccess(access) => root(access.first()),
        Expr::Lookup(lookup) => root(&lookup.primary),
        _ => None,
    }
}

fn is(list: &[(&str, &str)], module: &str, call: &FuncCall<'_>) -> bool {
    list.contains(&(module, call.identifier.name))
}

/// The module could parse the data.
fn parsed(module: &str) -> Formula {
    let Some((_, magic)) = MODULES.iter().find(|(name, _)| *name == module) else {
        return Formula::Maybe;
    };
    Formula::At(Int::Const(0), vec![magic.iter().map(|&b| (b, 0xff)).collect()])
}

/// As [`parsed`], but `pe.is_pe` and `dotnet.is_dotnet` have a value without it, and can be compared with false.
fn parsed_but_for_flag(module: &str, field: &Expr<'_>) -> Formula {
    match field {
        Expr::Ident(field) if !field.name.starts_with("is_") => parsed(module),
        _ => Formula::Maybe,
    }
}

fn quantified(quantifier: &Quantifier<'_>, parts: Vec<Formula>) -> Formula {
    let n = match quantifier {
        Quantifier::None { .. } => return Formula::Maybe,
        Quantifier::All { .. } => parts.len(),
        Quantifier::Any { .. } => 1,
        // Rounded up.
        Quantifier::Percentage(p) => match constant(p) {
            Some(p @ 1..=100) => (parts.len() * p as usize).div_ceil(100),
            _ => return Formula::Maybe,
        },
        Quantifier::Expr(n) => match constant(n) {
            Some(n) if n > 0 => usize::try_from(n).unwrap_or(usize::MAX),
            _ => return Formula::Maybe,
        },
    };
    if n == 0 { Formula::Maybe } else { Formula::at_least(n, parts) }
}

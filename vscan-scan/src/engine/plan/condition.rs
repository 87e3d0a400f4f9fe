//! From the condition of a rule to its [`Formula`].

use super::facts::{Place, Text, Variable};
use super::formula::{Calc, Formula, Int, Order};
use super::probe::{Probes, probe};
use crate::engine::needle::{self, How, Needle};
use std::cell::RefCell;
use std::collections::HashMap;
use yara_x_parser::ast::{
    Expr, FuncCall, Ident, MatchAnchor, OfItems, Pattern, PatternMatch, PatternModifier,
    PatternSet, Quantifier, Rule, WithSpan,
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
    /// What stands for literals of which one is in the data; [`Formula::Maybe`] where they are too plain to look for.
    pub(crate) literals: &'a dyn Fn(Vec<Needle>) -> Formula,
}

/// What surrounds an expression.
#[derive(Clone, Copy, Default)]
struct Scope {
    /// The pattern that `$`, `#`, `@` and `!` stand for.
    current: Option<usize>,
    /// Inside a loop or `with`, whose variables may hide rules.
    variables: bool,
    /// Inside of what a probe answers as a whole: only what is cheaper to ask is wanted of it.
    probed: bool,
}

/// Deepest nesting that is looked into.
const DEPTH_MAX: u32 = 64;

/// Fields of modules exist only where the module could parse the data, which begins like this.
pub(super) const MODULES: &[(&str, &[u8])] =
    &[("pe", b"MZ"), ("dotnet", b"MZ"), ("elf", b"\x7fELF")];

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

/// How expressions begin that speak of signatures, sections and versions.
const SIGNATURE: &[u8] = b"pe.signatures[";
const SIGNATURES: &[u8] = b"pe.number_of_signatures";
const SECTIONS: &[u8] = b"pe.sections[";
const VERSION: &[u8] = b"pe.version_info[";

/// Libraries whose functions bear names that yara-x knows by their ordinals: those are not in the data.
const ORDINALS: &[&str] = &["ws2_32.dll", "wsock32.dll", "oleaut32.dll"];

/// What each signature of a program contains: the object identifier of PKCS #7's signedData (RFC 2315, section 14).
const SIGNED_DATA: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x01\x07\x02";

/// Functions that read an integer from the data, and are undefined where their offset is.
pub(super) const READS: &[&str] = &[
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
        if !scope.probed
            && !scope.variables
            && let Some(text) = probe(expr, self.text)
        {
            // What is cheaper to ask than the module goes before it.
            let cheaper = self.formula(expr, Scope { probed: true, ..scope }, depth + 1);
            let number = self.probes.borrow_mut().number(&text);
            return Formula::all([cheaper, number.map_or(Formula::Maybe, Formula::Probe)]);
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
            Expr::Eq(b) => match self.text(expr, scope) {
                Some(text) => text,
                None => self.compare(&b.lhs, Order::Eq, &b.rhs, scope),
            },
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
            | Expr::Matches(b) => self.text(expr, scope).unwrap_or_else(|| {
                Formula::all([self.defined(&b.lhs, scope, 0), self.defined(&b.rhs, scope, 0)])
            }),
            Expr::FieldAccess(access) => {
                if let Some(call) = called(expr) {
                    return self.call(call);
                }
                match (root(access.first()), access.last()) {
                    // `pe.is_pe` and what else is false or undefined.
                    (Some(module), Expr::Ident(_)) => parsed(module),
                    (Some(module), Expr::FuncCall(call)) if is(FALSE, module, call) => {
                        parsed(module)
                    }
                    _ => Formula::Maybe,
                }
            }
            Expr::FuncCall(_) => called(expr).map_or(Formula::Maybe, |call| self.call(call)),
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

    /// What has to hold for a call to be true: the names that it asks for are in the data.
    fn call(&self, (module, call): (&'src str, &FuncCall<'src>)) -> Formula {
        if !is(FALSE, module, call) {
            return Formula::Maybe;
        }
        let text = |expr: &Expr<'src>| match expr {
            Expr::LiteralString(text) => Some(text.value.to_ascii_lowercase()),
            _ => None,
        };
        let in_data = |bytes: Vec<u8>| (self.literals)(vec![Needle { bytes, how: How::Nocase }]);
        let names = match (call.identifier.name, &call.args[..]) {
            ("exports", [name]) => text(name).map_or(Formula::Maybe, |name| {
                let export = String::from_utf8(name.clone()).map(Formula::Export);
                Formula::all([in_data(name), export.unwrap_or(Formula::Maybe)])
            }),
            ("imports", [library]) => text(library).map_or(Formula::Maybe, in_data),
            ("imports", [library, function]) => match (text(library), text(function)) {
                (Some(library), Some(function)) => {
                    let named = ORDINALS.iter().any(|name| library == name.as_bytes())
                        || function.starts_with(b"ord");
                    let function = if named { Formula::Maybe } else { in_data(function) };
                    Formula::all([in_data(library), function])
                }
                (Some(library), None) => in_data(library),
                (None, _) => Formula::Maybe,
            },
            _ => Formula::Maybe,
        };
        Formula::all([parsed(module), names])
    }

    /// What has to hold for an operation on a text: on a variable, or on what programs say of their version.
    fn text(&self, expr: &Expr<'src>, scope: Scope) -> Option<Formula> {
        let (b, place, nocase) = match expr {
            Expr::Eq(b) => (b, Place::Whole, false),
            Expr::IEquals(b) => (b, Place::Whole, true),
            Expr::Contains(b) => (b, Place::Anywhere, false),
            Expr::IContains(b) => (b, Place::Anywhere, true),
            Expr::StartsWith(b) => (b, Place::Start, false),
            Expr::IStartsWith(b) => (b, Place::Start, true),
            Expr::EndsWith(b) => (b, Place::End, false),
            Expr::IEndsWith(b) => (b, Place::End, true),
            Expr::Matches(b) => (b, Place::Anywhere, false),
            _ => return None,
        };
        let texts = match (&b.rhs, expr) {
            (Expr::Regexp(regexp), Expr::Matches(_)) => needle::of_expression(regexp)?,
            (Expr::LiteralString(text), _) => {
                let bytes: &[u8] = text.value.as_ref();
                // Lower case beyond ASCII is yara-x's to know.
                if nocase && !bytes.is_ascii() {
                    return None;
                }
                let how = if nocase { How::Nocase } else { How::Exact };
                vec![Needle { bytes: bytes.to_vec(), how }]
            }
            _ => return None,
        };
        match &b.lhs {
            Expr::Ident(ident) if !scope.variables => {
                let variable = Variable::of(ident.name)?;
                Some(Formula::Text(Text { variable, place, texts }))
            }
            Expr::FieldAccess(_) | Expr::Lookup(_) => self.version(&b.lhs, texts, nocase),
            _ => None,
        }
    }

    /// `pe.version_info["key"]` has one of the texts: UTF-16 in the data, as the key is.
    fn version(&self, expr: &Expr<'src>, texts: Vec<Needle>, nocase: bool) -> Option<Formula> {
        let lookup = match expr {
            Expr::Lookup(lookup) => lookup,
            Expr::FieldAccess(access) => match access.last() {
                Expr::Lookup(lookup) => lookup,
                _ => return None,
            },
            _ => return None,
        };
        let Expr::LiteralString(key) = &lookup.index else { return None };
        if !self.is_of(expr, VERSION) {
            return None;
        }
        let wide = |needle: Needle| {
            let ascii = needle.bytes.is_ascii() && needle.how != How::Xor(0, 255);
            let bytes = needle.bytes.iter().flat_map(|&b| [b, 0]).collect();
            ascii.then_some(Needle { bytes, how: needle.how })
        };
        let key = wide(Needle { bytes: key.value.to_vec(), how: How::Exact });
        // The lower case of other letters may be ASCII.
        let texts = if nocase { None } else { texts.into_iter().map(wide).collect() };
        let in_data = |needles: Option<Vec<Needle>>| needles.map_or(Formula::Maybe, self.literals);
        Some(Formula::all([parsed("pe"), in_data(key.map(|key| vec![key])), in_data(texts)]))
    }

    fn is_text(&self, expr: &Expr<'src>, text: &[u8]) -> bool {
        let span = expr.span();
        self.text.get(span.start()..span.end()) == Some(text)
    }

    /// Whether the expression's text begins like this.
    fn is_of(&self, expr: &Expr<'src>, begin: &[u8]) -> bool {
        let span = expr.span();
        self.text.get(span.start()..span.end()).unwrap_or_default().starts_with(begin)
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
        if let (Order::Eq, Expr::LiteralString(hash)) = (order, b)
            && called(a).is_some_and(|(m, call)| (m, call.identifier.name) == ("pe", "imphash"))
        {
            let hash = hash.value.to_ascii_lowercase();
            return match String::from_utf8(hash) {
                Ok(hash) => Formula::all([parsed("pe"), Formula::Imphash(hash)]),
                Err(_) => parsed("pe"),
            };
        }
        if let (Order::Eq, Expr::LiteralString(name), Expr::FieldAccess(access)) = (order, b, a)
            && self.is_of(a, SECTIONS)
            && matches!(access.last(), Expr::Ident(field) if field.name == "name")
        {
            let needle = Needle { bytes: name.value.to_vec(), how: How::Exact };
            return Formula::all([parsed("pe"), (self.literals)(vec![needle])]);
        }
        if let Some(formula) = self.other_keys(a, order, b) {
            return formula;
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
            if positive && self.is_text(counted, SIGNATURES) {
                return self.signed();
            }
        }
        Formula::all([self.defined(a, scope, 0), self.defined(b, scope, 0)])
    }

    /// `#a > #b`, where `$a` is under any key what `$b` is without one: it is there under another key than none.
    fn other_keys(&self, a: &Expr<'src>, order: Order, b: &Expr<'src>) -> Option<Formula> {
        let (Expr::PatternCount(a), Order::Gt, Expr::PatternCount(b)) = (a, order, b) else {
            return None;
        };
        // In a range some of them may be left out.
        let text = |count: &yara_x_parser::ast::IdentWithRange<'src>| {
            let name = count.identifier.name.get(1..).filter(|name| !name.is_empty())?;
            let found =
                self.patterns.iter().find(|(p, _)| p.identifier().name.get(1..) == Some(name));
            match found {
                Some((Pattern::Text(text), _)) if count.range.is_none() => Some(text),
                _ => None,
            }
        };
        let (a, b) = (text(a)?, text(b)?);
        let ascii = |m: &PatternModifier<'_>| matches!(m, PatternModifier::Ascii { .. });
        let xor = |m: &PatternModifier<'_>| matches!(m, PatternModifier::Xor { start: 0, .. });
        let same = a.text.value == b.text.value
            && b.modifiers.iter().all(ascii)
            && a.modifiers.iter().all(|m| ascii(m) || xor(m));
        let last = a.modifiers.iter().find_map(|m| match m {
            PatternModifier::Xor { start: 0, end, .. } => Some(*end),
            _ => None,
        })?;
        let needle = Needle { bytes: a.text.value.to_vec(), how: How::Xor(1, last) };
        (same && last > 0).then(|| (self.literals)(vec![needle]))
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
            Expr::FuncCall(_) | Expr::FieldAccess(_) => {
                let (module, call) = called(expr)?;
                is(COUNTS, module, call).then(|| self.call((module, call)))
            }
            _ => None,
        }
    }

    /// The data is a program with a signature: without one the fields of its signatures have no value.
    fn signed(&self) -> Formula {
        let needle = Needle { bytes: SIGNED_DATA.to_vec(), how: How::Exact };
        Formula::all([parsed("pe"), (self.literals)(vec![needle])])
    }

    /// `pe.section_index("name")`, which has no value where there is no such section.
    fn section(&self, expr: &Expr<'src>) -> Option<Formula> {
        let (module, call) = called(expr)?;
        let ("pe", "section_index", [Expr::LiteralString(name)]) =
            (module, call.identifier.name, &call.args[..])
        else {
            return None;
        };
        let needle = Needle { bytes: name.value.to_vec(), how: How::Exact };
        Some(Formula::all([parsed(module), (self.literals)(vec![needle])]))
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
            Expr::FieldAccess(_) if self.is_of(expr, SIGNATURE) => self.signed(),
            Expr::FieldAccess(_) | Expr::FuncCall(_) if self.section(expr).is_some() => {
                self.section(expr).unwrap_or(Formula::Maybe)
            }
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

/// The module whose function is called: `pe.exports("name")`.
fn called<'e, 'src>(expr: &'e Expr<'src>) -> Option<(&'src str, &'e FuncCall<'src>)> {
    match expr {
        Expr::FieldAccess(access) => match access.last() {
            Expr::FuncCall(call) if call.object.is_none() => Some((root(access.first())?, call)),
            _ => None,
        },
        Expr::FuncCall(call) => Some((root(call.object.as_ref()?)?, call)),
        _ => None,
    }
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

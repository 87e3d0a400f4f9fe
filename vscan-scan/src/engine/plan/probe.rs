//! What modules are asked by rules of their own: expressions, or parts of conditions, that need nothing but the data and
//! a module. All of them are answered at once, when the first answer is needed.

use super::condition::{MODULES, READS};
use std::collections::HashMap;
use yara_x_parser::ast::{Expr, FuncCall, Iterable, Quantifier, WithSpan};

/// The expressions, each once.
#[derive(Debug, Default)]
pub(crate) struct Probes {
    places: HashMap<String, u32>,
    texts: Vec<String>,
}

/// Most expressions; what is more is left open.
const PROBES_MAX: usize = 4096;

impl Probes {
    pub(super) fn number(&mut self, text: &str) -> Option<u32> {
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

/// Functions that look at all of the data.
const COSTLY: &[&str] = &["calculate_checksum"];

/// Deepest nesting that is written down.
const DEPTH_MAX: u32 = 64;

/// The expression, written anew with all its parentheses, if it asks a module and needs nothing else but the data.
///
/// `source` is the text of its file. That of the expression itself does not do: the spans of some leave out what is
/// around them.
pub(super) fn probe(expr: &Expr<'_>, source: &[u8]) -> Option<String> {
    let mut writer = Writer { source, text: String::new(), locals: Vec::new(), asks: false };
    writer.expr(expr, 0)?;
    writer.asks.then_some(writer.text)
}

struct Writer<'s, 'src> {
    source: &'s [u8],
    text: String,
    /// Variables of loops around the place.
    locals: Vec<&'src str>,
    asks: bool,
}

impl<'src> Writer<'_, 'src> {
    fn expr(&mut self, expr: &Expr<'src>, depth: u32) -> Option<()> {
        if depth > DEPTH_MAX {
            return None;
        }
        let depth = depth + 1;
        match expr {
            Expr::True { .. } => self.text.push_str("true"),
            Expr::False { .. } => self.text.push_str("false"),
            Expr::Filesize { .. } => self.text.push_str("filesize"),
            Expr::LiteralString(_)
            | Expr::LiteralInteger(_)
            | Expr::LiteralFloat(_)
            | Expr::Regexp(_) => {
                let span = expr.span();
                let text = self.source.get(span.start()..span.end())?;
                self.text.push_str(std::str::from_utf8(text).ok()?);
            }
            Expr::Ident(ident) => {
                let module = MODULES.iter().any(|(name, _)| *name == ident.name);
                if !module && !self.locals.contains(&ident.name) {
                    return None;
                }
                self.asks |= module;
                self.text.push_str(ident.name);
            }
            Expr::FieldAccess(access) => {
                self.expr(access.first(), depth)?;
                for field in access.operands().skip(1) {
                    self.text.push('.');
                    match field {
                        Expr::Ident(ident) => self.text.push_str(ident.name),
                        Expr::Lookup(lookup) => {
                            let Expr::Ident(ident) = &lookup.primary else { return None };
                            self.text.push_str(ident.name);
                            self.index(&lookup.index, depth)?;
                        }
                        Expr::FuncCall(call) if call.object.is_none() => self.call(call, depth)?,
                        _ => return None,
                    }
                }
            }
            Expr::Lookup(lookup) => {
                self.expr(&lookup.primary, depth)?;
                self.index(&lookup.index, depth)?;
            }
            Expr::FuncCall(call) => {
                match &call.object {
                    Some(object) => {
                        self.expr(object, depth)?;
                        self.text.push('.');
                    }
                    None if READS.contains(&call.identifier.name) => {}
                    None => return None,
                }
                self.call(call, depth)?;
            }
            Expr::Defined(e) => self.prefixed("defined ", &e.operand, depth)?,
            Expr::Not(e) => self.prefixed("not ", &e.operand, depth)?,
            Expr::Minus(e) => self.prefixed("-", &e.operand, depth)?,
            Expr::BitwiseNot(e) => self.prefixed("~", &e.operand, depth)?,
            Expr::And(parts) => self.joined(" and ", parts.operands(), depth)?,
            Expr::Or(parts) => self.joined(" or ", parts.operands(), depth)?,
            Expr::Add(parts) => self.joined(" + ", parts.operands(), depth)?,
            Expr::Sub(parts) => self.joined(" - ", parts.operands(), depth)?,
            Expr::Mul(parts) => self.joined(" * ", parts.operands(), depth)?,
            Expr::Div(parts) => self.joined(" \\ ", parts.operands(), depth)?,
            Expr::Mod(parts) => self.joined(" % ", parts.operands(), depth)?,
            Expr::Shl(b) => self.joined(" << ", [&b.lhs, &b.rhs], depth)?,
            Expr::Shr(b) => self.joined(" >> ", [&b.lhs, &b.rhs], depth)?,
            Expr::BitwiseAnd(b) => self.joined(" & ", [&b.lhs, &b.rhs], depth)?,
            Expr::BitwiseOr(b) => self.joined(" | ", [&b.lhs, &b.rhs], depth)?,
            Expr::BitwiseXor(b) => self.joined(" ^ ", [&b.lhs, &b.rhs], depth)?,
            Expr::Eq(b) => self.joined(" == ", [&b.lhs, &b.rhs], depth)?,
            Expr::Ne(b) => self.joined(" != ", [&b.lhs, &b.rhs], depth)?,
            Expr::Lt(b) => self.joined(" < ", [&b.lhs, &b.rhs], depth)?,
            Expr::Le(b) => self.joined(" <= ", [&b.lhs, &b.rhs], depth)?,
            Expr::Gt(b) => self.joined(" > ", [&b.lhs, &b.rhs], depth)?,
            Expr::Ge(b) => self.joined(" >= ", [&b.lhs, &b.rhs], depth)?,
            Expr::Contains(b) => self.joined(" contains ", [&b.lhs, &b.rhs], depth)?,
            Expr::IContains(b) => self.joined(" icontains ", [&b.lhs, &b.rhs], depth)?,
            Expr::StartsWith(b) => self.joined(" startswith ", [&b.lhs, &b.rhs], depth)?,
            Expr::IStartsWith(b) => self.joined(" istartswith ", [&b.lhs, &b.rhs], depth)?,
            Expr::EndsWith(b) => self.joined(" endswith ", [&b.lhs, &b.rhs], depth)?,
            Expr::IEndsWith(b) => self.joined(" iendswith ", [&b.lhs, &b.rhs], depth)?,
            Expr::IEquals(b) => self.joined(" iequals ", [&b.lhs, &b.rhs], depth)?,
            Expr::Matches(b) => self.joined(" matches ", [&b.lhs, &b.rhs], depth)?,
            Expr::ForIn(of) => {
                self.text.push_str("for ");
                match &of.quantifier {
                    Quantifier::Any { .. } => self.text.push_str("any"),
                    Quantifier::All { .. } => self.text.push_str("all"),
                    Quantifier::None { .. } => self.text.push_str("none"),
                    Quantifier::Expr(n @ Expr::LiteralInteger(_)) => self.expr(n, depth)?,
                    Quantifier::Expr(_) | Quantifier::Percentage(_) => return None,
                }
                let names: Vec<&'src str> = of.variables.iter().map(|v| v.name).collect();
                self.text.push_str(&format!(" {} in ", names.join(", ")));
                match &of.iterable {
                    Iterable::Range(range) => {
                        self.text.push('(');
                        self.part(&range.lower_bound, depth)?;
                        self.text.push_str(" .. ");
                        self.part(&range.upper_bound, depth)?;
                        self.text.push(')');
                    }
                    Iterable::ExprTuple(parts) => {
                        self.text.push('(');
                        self.joined(", ", parts, depth)?;
                        self.text.push(')');
                    }
                    Iterable::Expr(e) => self.expr(e, depth)?,
                }
                self.text.push_str(" : (");
                let known = self.locals.len();
                self.locals.extend(names);
                self.expr(&of.body, depth)?;
                self.locals.truncate(known);
                self.text.push(')');
            }
            Expr::Entrypoint { .. }
            | Expr::PatternMatch(_)
            | Expr::PatternCount(_)
            | Expr::PatternOffset(_)
            | Expr::PatternLength(_)
            | Expr::Of(_)
            | Expr::ForOf(_)
            | Expr::With(_) => return None,
        }
        Some(())
    }

    /// In parentheses, where it could do without them in some places only.
    fn part(&mut self, expr: &Expr<'src>, depth: u32) -> Option<()> {
        let simple = matches!(
            expr,
            Expr::True { .. }
                | Expr::False { .. }
                | Expr::Filesize { .. }
                | Expr::LiteralString(_)
                | Expr::LiteralInteger(_)
                | Expr::LiteralFloat(_)
                | Expr::Regexp(_)
                | Expr::Ident(_)
                | Expr::FieldAccess(_)
                | Expr::Lookup(_)
                | Expr::FuncCall(_)
        );
        if simple {
            return self.expr(expr, depth);
        }
        self.text.push('(');
        self.expr(expr, depth)?;
        self.text.push(')');
        Some(())
    }

    fn joined<'e>(
        &mut self,
        with: &str,
        parts: impl IntoIterator<Item = &'e Expr<'src>>,
        depth: u32,
    ) -> Option<()>
    where
        'src: 'e,
    {
        for (i, part) in parts.into_iter().enumerate() {
            if i > 0 {
                self.text.push_str(with);
            }
            self.part(part, depth)?;
        }
        Some(())
    }

    fn prefixed(&mut self, word: &str, expr: &Expr<'src>, depth: u32) -> Option<()> {
        self.text.push_str(word);
        self.part(expr, depth)
    }

    fn index(&mut self, index: &Expr<'src>, depth: u32) -> Option<()> {
        self.text.push('[');
        self.part(index, depth)?;
        self.text.push(']');
        Some(())
    }

    fn call(&mut self, call: &FuncCall<'src>, depth: u32) -> Option<()> {
        if COSTLY.contains(&call.identifier.name) {
            return None;
        }
        self.text.push_str(call.identifier.name);
        self.text.push('(');
        self.joined(", ", &call.args, depth)?;
        self.text.push(')');
        Some(())
    }
}

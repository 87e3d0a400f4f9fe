//! What bytes must be there for a pattern to match: one of a set of literals.
//!
//! Everything here is a necessary condition, never a sufficient one. A pattern of which nothing sure can be said
//! has no set, and rules that depend on it always run.

use regex_syntax::hir::{self, Class, Hir, HirKind};
use yara_x_parser::ast::{
    HexSubPattern, HexToken, LiteralString, Pattern, PatternModifier, Regexp, RegexpPattern,
    TextPattern,
};

/// Shortest literal that the filter looks for. Shorter ones are in every other file.
pub const NEEDLE_MIN: usize = 4;

/// Shortest literal that the filter looks for under any key: a window of differences is a byte shorter than its bytes, and
/// there have to be four of three differences.
pub const XOR_MIN: usize = 7;

/// Longest literal: what is longer is cut. Bounds what the filter carries over between chunks.
pub const NEEDLE_MAX: usize = 64;

/// Most literals for one pattern. Alternations with more say little.
const NEEDLES_MAX: usize = 64;

/// Most strings that a sequence of small classes is multiplied out to.
const PRODUCT_MAX: usize = 16;

/// A literal.
#[derive(
    Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
pub struct Needle {
    /// Its bytes; lower case where `how` is [`How::Nocase`].
    #[serde(with = "serde_bytes")]
    pub bytes: Vec<u8>,
    /// How it is compared.
    pub how: How,
}

/// How a literal is compared with the data.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
pub enum How {
    /// Byte by byte.
    Exact,
    /// ASCII letters in either case.
    Nocase,
    /// Under any key of one byte that all its bytes are XORed with, from the first to the second.
    Xor(u8, u8),
}

/// The literals of which each match of a pattern contains one; none if nothing can be said.
pub(crate) fn needles(pattern: &Pattern<'_>) -> Option<Vec<Needle>> {
    let needles = match pattern {
        Pattern::Text(text) => of_text(text)?,
        Pattern::Hex(hex) => {
            let runs = of_hex(&hex.sub_patterns).required()?;
            runs.into_iter().map(Run::into_needle).collect()
        }
        Pattern::Regexp(regexp) => of_regexp(regexp)?,
    };
    good(needles)
}

/// The literals, each once, if all of them are seldom enough to be looked for.
pub(crate) fn good(mut needles: Vec<Needle>) -> Option<Vec<Needle>> {
    needles.iter_mut().for_each(cut);
    needles.sort();
    needles.dedup();
    let good = |n: &Needle| {
        let least = if matches!(n.how, How::Xor(..)) { XOR_MIN } else { NEEDLE_MIN };
        n.bytes.len() >= least && worth(&n.bytes) >= WORTH_MIN
    };
    let few = !needles.is_empty() && needles.len() <= NEEDLES_MAX;
    (few && needles.iter().all(good)).then_some(needles)
}

/// Texts of which each match of a regular expression contains one; none if nothing can be said.
pub(crate) fn of_expression(regexp: &Regexp<'_>) -> Option<Vec<Needle>> {
    let runs = of_hir(&expression(regexp, false)?).required()?;
    Some(runs.into_iter().map(Run::into_needle).collect())
}

/// The byte strings of which one lies where a match begins, with masks; none if there is no such thing.
///
/// For `$a at 0` with an `$a` too short to look for anywhere else.
pub(crate) fn heads(pattern: &Pattern<'_>) -> Option<Vec<Vec<(u8, u8)>>> {
    match pattern {
        Pattern::Text(text) => {
            let m = &text.modifiers;
            if m.xor().is_some() || m.base64().is_some() || m.base64wide().is_some() {
                return None;
            }
            let masked = |bytes: &[u8]| -> Vec<(u8, u8)> {
                let fold = |b: u8| {
                    if m.nocase().is_some() && b.is_ascii_alphabetic() { 0xdf } else { 0xff }
                };
                bytes.iter().take(NEEDLE_MAX).map(|&b| (b & fold(b), fold(b))).collect()
            };
            Some(forms(text).iter().map(|form| masked(form)).collect())
        }
        Pattern::Hex(hex) => {
            let head: Vec<(u8, u8)> = hex
                .sub_patterns
                .iter()
                .map_while(|token| match token {
                    HexToken::Byte(byte) => Some((byte.value & byte.mask, byte.mask)),
                    HexToken::NotByte(_) | HexToken::Alternative(_) | HexToken::Jump(_) => None,
                })
                .take(NEEDLE_MAX)
                .collect();
            (!head.is_empty()).then(|| vec![head])
        }
        Pattern::Regexp(_) => None,
    }
}

/// The plain and the wide form of a text, as its modifiers ask.
pub(super) fn forms(text: &TextPattern<'_>) -> Vec<Vec<u8>> {
    let bytes: &[u8] = text.text.value.as_ref();
    let (wide, ascii) = (text.modifiers.wide().is_some(), text.modifiers.ascii().is_some());
    let mut forms = Vec::new();
    if wide {
        forms.push(widened(bytes));
    }
    if !wide || ascii {
        forms.push(bytes.to_vec());
    }
    forms
}

fn of_text(text: &TextPattern<'_>) -> Option<Vec<Needle>> {
    let how = if let Some(PatternModifier::Xor { start, end, .. }) = text.modifiers.xor() {
        How::Xor(*start, *end)
    } else if text.modifiers.nocase().is_some() {
        How::Nocase
    } else {
        How::Exact
    };
    let mut needles = Vec::new();
    for form in forms(text) {
        let (plain, wide) = (text.modifiers.base64(), text.modifiers.base64wide());
        if plain.is_none() && wide.is_none() {
            let bytes = if how == How::Nocase { form.to_ascii_lowercase() } else { form };
            needles.push(Needle { bytes, how });
            continue;
        }
        for modifier in [plain, wide].into_iter().flatten() {
            let (alphabet, is_wide) = match modifier {
                PatternModifier::Base64 { alphabet, .. } => (alphabet, false),
                PatternModifier::Base64Wide { alphabet, .. } => (alphabet, true),
                _ => return None,
            };
            for bytes in base64_forms(&form, alphabet.as_ref())? {
                let bytes = if is_wide { widened(&bytes) } else { bytes };
                needles.push(Needle { bytes, how });
            }
        }
    }
    Some(needles)
}

/// Each byte with a zero behind it.
fn widened(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().flat_map(|&b| [b, 0]).collect()
}

/// The three strings of which one is in the base64 of everything that contains `bytes`: encoded at each
/// alignment, without the characters at both ends that the neighbours decide on.
fn base64_forms(bytes: &[u8], alphabet: Option<&LiteralString<'_>>) -> Option<Vec<Vec<u8>>> {
    const STANDARD: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let alphabet: &[u8] = alphabet.map_or(STANDARD, |a| a.value.as_ref());
    if alphabet.len() != 64 {
        return None;
    }
    Some(
        (0..3)
            .map(|padding| {
                let bits = |i: usize| -> u8 {
                    // The byte before the literal is not known, nor used.
                    let byte = i / 8;
                    let value = if byte < padding { 0 } else { bytes[byte - padding] };
                    value >> (7 - i % 8) & 1
                };
                let first = (padding * 8).div_ceil(6);
                let last = (padding + bytes.len()) * 8 / 6;
                (first..last)
                    .map(|c| {
                        let index = (0..6).fold(0, |value, bit| value << 1 | bits(c * 6 + bit));
                        alphabet[usize::from(index)]
                    })
                    .collect()
            })
            .collect(),
    )
}

fn of_regexp(pattern: &RegexpPattern<'_>) -> Option<Vec<Needle>> {
    let hir = parse(pattern)?;
    let runs = of_hir(&hir).required()?;
    let (wide, ascii) = (pattern.modifiers.wide().is_some(), pattern.modifiers.ascii().is_some());
    let nocase = pattern.modifiers.nocase().is_some();
    let mut needles = Vec::new();
    for mut run in runs {
        if nocase {
            run.fold();
        }
        if wide {
            needles.push(Run { bytes: widened(&run.bytes), folded: run.folded }.into_needle());
        }
        if !wide || ascii {
            needles.push(run.into_needle());
        }
    }
    Some(needles)
}

/// The expression as yara-x reads it. What it reads in its relaxed way, which this does not repeat, gives none.
pub(super) fn parse(pattern: &RegexpPattern<'_>) -> Option<Hir> {
    expression(&pattern.regexp, pattern.modifiers.nocase().is_some())
}

fn expression(regexp: &Regexp<'_>, nocase: bool) -> Option<Hir> {
    // yara-x takes these for `<` and `>`.
    if regexp.src.contains("\\<") || regexp.src.contains("\\>") {
        return None;
    }
    let ast = regex_syntax::ast::parse::ParserBuilder::new()
        .empty_min_range(true)
        .build()
        .parse(regexp.src)
        .ok()?;
    hir::translate::TranslatorBuilder::new()
        .case_insensitive(regexp.case_insensitive || nocase)
        .dot_matches_new_line(regexp.dot_matches_new_line)
        .unicode(false)
        .utf8(false)
        .build()
        .translate(regexp.src, &ast)
        .ok()
}

/// A string, perhaps without regard to case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Run {
    bytes: Vec<u8>,
    folded: bool,
}

impl Run {
    fn fold(&mut self) {
        self.bytes.make_ascii_lowercase();
        self.folded = true;
    }

    fn followed_by(&self, next: &Run) -> Run {
        let mut run = Run { bytes: [&self.bytes[..], &next.bytes].concat(), folded: self.folded };
        if next.folded && !run.folded {
            run.fold();
        } else if run.folded {
            run.bytes.make_ascii_lowercase();
        }
        run
    }

    fn into_needle(self) -> Needle {
        let how = if self.folded { How::Nocase } else { How::Exact };
        Needle { bytes: self.bytes, how }
    }
}

/// What is known of an expression.
#[derive(Clone, Debug, Default)]
struct Known {
    /// It matches these strings and no others.
    exact: Option<Vec<Run>>,
    /// Every match contains one of these.
    best: Option<Vec<Run>>,
}

impl Known {
    fn exact(runs: Vec<Run>) -> Self {
        Self { exact: Some(runs), best: None }
    }

    fn required(self) -> Option<Vec<Run>> {
        match (self.exact, self.best) {
            (Some(exact), None) => Some(exact),
            (None, best) => best,
            (Some(exact), Some(best)) => Some(better(exact, best)),
        }
    }
}

/// The set whose poorest member is worth more.
fn better(a: Vec<Run>, b: Vec<Run>) -> Vec<Run> {
    if set_worth(&a) >= set_worth(&b) { a } else { b }
}

fn set_worth(runs: &[Run]) -> u32 {
    let poorest = runs.iter().map(|run| worth(&run.bytes)).min().unwrap_or(0);
    // More members are seen oftener; a few matter little.
    poorest.saturating_sub(runs.len().ilog2().saturating_sub(1))
}

/// A sequence: neighbouring exact parts grow together.
fn sequence(parts: impl Iterator<Item = Known>) -> Known {
    let mut run = vec![Run::default()];
    let mut best: Option<Vec<Run>> = None;
    let mut whole = true;
    let consider = |best: &mut Option<Vec<Run>>, runs: Vec<Run>| {
        *best = Some(match best.take() {
            Some(old) => better(old, runs),
            None => runs,
        });
    };
    for part in parts {
        match part.exact {
            Some(next) if run.len() * next.len() <= PRODUCT_MAX || next.len() == 1 => {
                let longest = |runs: &[Run]| runs.iter().map(|r| r.bytes.len()).max().unwrap_or(0);
                if longest(&run) + longest(&next) > 4 * NEEDLE_MAX {
                    consider(&mut best, std::mem::replace(&mut run, next));
                    whole = false;
                } else {
                    run = run
                        .iter()
                        .flat_map(|head| next.iter().map(|tail| head.followed_by(tail)))
                        .collect();
                }
            }
            Some(next) => {
                consider(&mut best, std::mem::replace(&mut run, next));
                whole = false;
            }
            None => {
                consider(&mut best, std::mem::replace(&mut run, vec![Run::default()]));
                if let Some(inner) = part.best {
                    consider(&mut best, inner);
                }
                whole = false;
            }
        }
    }
    if whole {
        return Known::exact(run);
    }
    consider(&mut best, run);
    Known { exact: None, best }
}

fn alternation(parts: impl Iterator<Item = Known>) -> Known {
    let (mut exact, mut best) = (Some(Vec::new()), Some(Vec::new()));
    for part in parts {
        exact = match (exact, &part.exact) {
            (Some(mut all), Some(more)) if all.len() + more.len() <= PRODUCT_MAX => {
                all.extend(more.iter().cloned());
                Some(all)
            }
            _ => None,
        };
        best = match (best, part.required()) {
            (Some(mut all), Some(more)) if all.len() + more.len() <= NEEDLES_MAX => {
                all.extend(more);
                Some(all)
            }
            _ => None,
        };
    }
    Known { exact, best }
}

fn of_hir(hir: &Hir) -> Known {
    match hir.kind() {
        HirKind::Empty | HirKind::Look(_) => Known::exact(vec![Run::default()]),
        HirKind::Literal(literal) => {
            Known::exact(vec![Run { bytes: literal.0.to_vec(), folded: false }])
        }
        HirKind::Class(class) => of_class(class),
        HirKind::Capture(capture) => of_hir(&capture.sub),
        HirKind::Concat(parts) => sequence(parts.iter().map(of_hir)),
        HirKind::Alternation(parts) => alternation(parts.iter().map(of_hir)),
        HirKind::Repetition(repetition) => {
            let inner = of_hir(&repetition.sub);
            match (repetition.min, repetition.max) {
                (0, _) => Known::default(),
                (n, Some(m)) if n == m && n as usize <= NEEDLE_MAX => {
                    sequence(std::iter::repeat_n(inner, n as usize))
                }
                (n, _) => {
                    let n = (n as usize).min(NEEDLE_MAX);
                    Known { exact: None, best: sequence(std::iter::repeat_n(inner, n)).required() }
                }
            }
        }
    }
}

fn of_class(class: &Class) -> Known {
    let Class::Bytes(class) = class else { return Known::default() };
    let members: Vec<u8> =
        class.iter().flat_map(|range| range.start()..=range.end()).take(PRODUCT_MAX + 1).collect();
    if let [upper, lower] = members[..]
        && upper != lower
        && upper.to_ascii_lowercase() == lower
    {
        return Known::exact(vec![Run { bytes: vec![lower], folded: true }]);
    }
    if members.is_empty() || members.len() > PRODUCT_MAX {
        return Known::default();
    }
    Known::exact(members.into_iter().map(|b| Run { bytes: vec![b], folded: false }).collect())
}

fn of_hex(pattern: &HexSubPattern) -> Known {
    sequence(pattern.iter().map(|token| match token {
        HexToken::Byte(byte) if byte.mask == 0xff => {
            Known::exact(vec![Run { bytes: vec![byte.value], folded: false }])
        }
        HexToken::Byte(_) | HexToken::NotByte(_) | HexToken::Jump(_) => Known::default(),
        HexToken::Alternative(alternative) => {
            alternation(alternative.alternatives.iter().map(of_hex))
        }
    }))
}

/// Least [`worth`] of a literal that is looked for: three different bytes, none of them a common one.
const WORTH_MIN: u32 = 6;

/// How seldom a literal may be, roughly: two for each different byte, one for the common ones, and one
/// for each repetition up to a few. Runs of zeros are everywhere, however long.
pub(crate) fn worth(bytes: &[u8]) -> u32 {
    let mut seen = [false; 256];
    let (mut sum, mut again) = (0, 0);
    for &b in bytes.iter().take(NEEDLE_MAX) {
        if std::mem::replace(&mut seen[usize::from(b)], true) {
            again += 1;
        } else {
            sum += match b {
                0 | 0xff | b' ' | 0x90 | 0xcc => 1,
                _ => 2,
            };
        }
    }
    if bytes.len() < NEEDLE_MIN { 0 } else { sum + (again / 2).min(sum / 2) }
}

/// Cuts a literal to [`NEEDLE_MAX`], to the stretch that is worth most.
fn cut(needle: &mut Needle) {
    if needle.bytes.len() <= NEEDLE_MAX {
        return;
    }
    let best = needle
        .bytes
        .windows(NEEDLE_MAX)
        .enumerate()
        .step_by(NEEDLE_MAX / 4)
        .max_by_key(|(_, window)| worth(window))
        .map_or(0, |(at, _)| at);
    needle.bytes.drain(..best);
    needle.bytes.truncate(NEEDLE_MAX);
}

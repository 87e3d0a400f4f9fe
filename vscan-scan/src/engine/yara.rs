//! The YARA engine: rules compiled from files and directories by yara-x, and a scanner that is reused.
//!
//! No time-out of yara-x is set: it would start a thread, which the sandbox does not allow and a fork does
//! not copy. Whoever waits for the scan ends the process at its deadline.

use super::plan::{self, Gate, Plan, Shares, Source, Table, UnitSource};
use crate::object::{Engine, Hit, Part};
use crate::report::Detail;
use serde::Serialize;
use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use yara_x::{Compiler, MetaValue, Rules, Scanner, SourceCode};

/// Largest rule file; a larger one is a mistake in the path, not a rule set. The big public sets in one
/// file have 20 MiB.
const RULE_FILE_MAX: u64 = 64 << 20;

/// Directories inside directories that are looked at for rules.
const RULE_DEPTH_MAX: u32 = 16;

/// Matches kept per pattern: conditions count, reports do not list them. yara-x keeps a million by default.
const MATCHES_MAX: usize = 10_000;

/// Something wrong with the rules, with its place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    /// The file or directory.
    pub file: PathBuf,
    /// The line, from 1, where it is known.
    pub line: Option<usize>,
    /// The column, from 1, where it is known.
    pub column: Option<usize>,
    /// What is wrong, in one line.
    pub message: String,
    /// The same with the lines of the source, for a terminal; may be empty.
    pub excerpt: String,
}

impl Diagnostic {
    /// One without a place in the file.
    fn of_file(file: &Path, message: String) -> Self {
        Self { file: file.to_owned(), line: None, column: None, message, excerpt: String::new() }
    }
}

impl std::fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        write!(f, ": {}", self.message)
    }
}

/// Compiled rules.
pub struct Loaded {
    /// The rules, in the units that [`super::plan`] makes.
    units: Vec<Rules>,
    plan: Plan,
    /// The place of each rule, by namespace and name: findings are told in this order.
    order: HashMap<(String, String), u32>,
    /// Number of rules.
    pub count: u64,
    /// Engine, version and the first bytes of the BLAKE3 hash of all sources: what a verdict depends on.
    pub version: String,
    /// What is doubtful in the rules.
    pub warnings: Vec<Diagnostic>,
}

/// Compiles all rules under the paths: files as they are, directories with all their `*.yar` and `*.yara`.
///
/// Each file has a namespace of its own, so that equal names in different sets do not collide and a
/// `global` rule bounds its own file only.
///
/// # Errors
/// Everything that is wrong in any file, at once; then nothing is loaded. Paths without any rule are an
/// error too: a scanner without rules calls everything clean.
pub fn load(paths: &[PathBuf]) -> Result<Loaded, Vec<Diagnostic>> {
    let mut errors = Vec::new();
    let mut files = BTreeSet::new();
    for path in paths {
        collect(path, 0, true, &mut files, &mut errors);
    }
    let mut hasher = blake3::Hasher::new();
    let mut sources = Vec::new();
    for path in files {
        match read(&path) {
            Ok(text) => {
                hasher.update(path.file_name().unwrap_or_default().as_encoded_bytes());
                hasher.update(&(text.len() as u64).to_le_bytes());
                hasher.update(&text);
                sources.push(Source { path, text });
            }
            Err(message) => errors.push(Diagnostic::of_file(&path, message)),
        }
    }
    if errors.is_empty() && sources.is_empty() {
        let first = paths.first().cloned().unwrap_or_default();
        let message = "no rules: neither a file nor a directory with *.yar or *.yara";
        errors.push(Diagnostic::of_file(&first, message.into()));
    }
    let (table, texts) = plan::split(&sources);
    let mut warnings = Vec::new();
    let units: Vec<Rules> =
        texts.iter().map(|unit| compile(&sources, unit, &mut errors, &mut warnings)).collect();
    if !errors.is_empty() {
        errors.sort_by(|a, b| (&a.file, a.line, a.column).cmp(&(&b.file, b.line, b.column)));
        return Err(errors);
    }
    warnings.sort_by(|a, b| (&a.file, a.line, a.column).cmp(&(&b.file, b.line, b.column)));
    let hash = hasher.finalize().to_hex();
    let version = format!("yara-x {YARA_X} {}", &hash[..16]);
    Ok(Loaded::new(units, table, version, warnings))
}

impl Loaded {
    fn new(units: Vec<Rules>, table: Table, version: String, warnings: Vec<Diagnostic>) -> Self {
        let rules = units.iter().flat_map(Rules::iter);
        let mut names: Vec<(String, String)> =
            rules.map(|r| (r.namespace().to_owned(), r.identifier().to_owned())).collect();
        let count = names.len() as u64;
        names.sort();
        let order = names.into_iter().zip(0..).collect();
        Self { units, plan: Plan::new(table), order, count, version, warnings }
    }

    /// All rules, unit by unit.
    pub fn rules(&self) -> impl Iterator<Item = yara_x::Rule<'_, '_>> {
        self.units.iter().flat_map(Rules::iter)
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

/// Collects rule files. `named`: the configuration names this path itself, so it is read whatever its ending.
fn collect(
    path: &Path,
    depth: u32,
    named: bool,
    files: &mut BTreeSet<PathBuf>,
    errors: &mut Vec<Diagnostic>,
) {
    let mut fail = |path: &Path, message: String| errors.push(Diagnostic::of_file(path, message));
    let meta = match fs::metadata(path) {
        Ok(meta) => meta,
        Err(e) => return fail(path, format!("cannot be read: {e}")),
    };
    if meta.is_dir() {
        if depth >= RULE_DEPTH_MAX {
            return fail(path, "too many directories inside each other".into());
        }
        let entries = match fs::read_dir(path) {
            Ok(entries) => entries,
            Err(e) => return fail(path, format!("cannot be read: {e}")),
        };
        for entry in entries {
            match entry {
                Ok(entry) => collect(&entry.path(), depth + 1, false, files, errors),
                Err(e) => {
                    errors.push(Diagnostic::of_file(path, format!("cannot be read: {e}")));
                }
            }
        }
    } else if named || path.extension().is_some_and(|e| e == "yar" || e == "yara") {
        files.insert(path.to_owned());
    }
}

fn read(file: &Path) -> Result<Vec<u8>, String> {
    let meta = fs::metadata(file).map_err(|e| format!("cannot be read: {e}"))?;
    if !meta.is_file() {
        return Err("is no file".into());
    }
    if meta.len() > RULE_FILE_MAX {
        return Err(format!("is larger than {RULE_FILE_MAX} bytes"));
    }
    fs::read(file).map_err(|e| format!("cannot be read: {e}"))
}

/// A scanner over loaded rules, for one thread.
pub struct Yara<'r> {
    loaded: &'r Loaded,
    gate: Gate,
    /// One for each unit that has run.
    scanners: Vec<Option<Scanner<'r>>>,
}

impl<'r> Yara<'r> {
    /// A scanner; its memory is set up as units run for the first time.
    pub fn new(loaded: &'r Loaded) -> Self {
        let scanners = loaded.units.iter().map(|_| None).collect();
        Self { loaded, gate: loaded.plan.gate(), scanners }
    }

    /// Sets up everything that would be set up as objects come.
    pub fn warm(&mut self) {
        for (unit, scanner) in self.scanners.iter_mut().enumerate() {
            scanner.get_or_insert_with(|| scanner_of(&self.loaded.units[unit]));
        }
    }

    /// The units that would run on the data, of all units.
    pub fn needed(&mut self, data: &[u8]) -> (usize, usize) {
        let units = self.loaded.plan.units(data, &mut self.gate);
        (units.iter().filter(|&&needed| needed).count(), units.len())
    }
}

fn scanner_of(rules: &Rules) -> Scanner<'_> {
    let mut scanner = Scanner::new(rules);
    scanner.fast_scan(true).max_matches_per_pattern(MATCHES_MAX);
    scanner
}

impl Engine for Yara<'_> {
    fn name(&self) -> &'static str {
        "yara"
    }

    fn scan(&mut self, part: &Part<'_>, hits: &mut Vec<Hit>) -> Result<(), String> {
        let filepath = part.path.join("/");
        let extension = extension(part.name);
        let filetype = part.kind.label().to_ascii_uppercase();
        let mut found: Vec<(u32, Hit)> = Vec::new();
        let units = self.loaded.plan.units(part.data, &mut self.gate);
        for (unit, _) in units.iter().enumerate().filter(|(_, needed)| **needed) {
            let scanner =
                self.scanners[unit].get_or_insert_with(|| scanner_of(&self.loaded.units[unit]));
            for (variable, value) in [
                ("filename", part.name),
                ("filepath", &filepath),
                ("extension", &extension),
                ("filetype", &filetype),
            ] {
                scanner
                    .set_global(variable, value)
                    .map_err(|e| format!("yara: {variable}: {e}"))?;
            }
            let results = scanner.scan(part.data).map_err(|e| format!("yara: {e}"))?;
            for rule in results.matching_rules() {
                let key = (rule.namespace().to_owned(), rule.identifier().to_owned());
                let place = self.loaded.order.get(&key).copied().unwrap_or(u32::MAX);
                let detail = part.detail.then(|| detail(&rule));
                found.push((place, Hit { name: key.1, detail }));
            }
        }
        found.sort_by_key(|(place, _)| *place);
        hits.extend(found.into_iter().map(|(_, hit)| hit));
        Ok(())
    }
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

/// The ending with its dot in lower case, `.exe`, as the public rule sets expect it; else empty.
fn extension(name: &str) -> String {
    let name = name.rsplit(['/', '\\']).next().unwrap_or_default();
    match name.rfind('.') {
        Some(dot) if dot > 0 => name[dot..].to_ascii_lowercase(),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests;

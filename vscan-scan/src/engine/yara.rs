//! The YARA engine: rules compiled from files and directories by yara-x, and a scanner that is reused.
//!
//! No time-out of yara-x is set: it would start a thread, which the sandbox does not allow and a fork does
//! not copy. Whoever waits for the scan ends the process at its deadline.

use crate::object::{Engine, Hit, Part};
use crate::report::Detail;
use serde::Serialize;
use std::collections::BTreeSet;
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
    /// The rules.
    pub rules: Rules,
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
    let mut compiler = compiler();
    let mut hasher = blake3::Hasher::new();
    let mut warned = 0;
    let mut warnings = Vec::new();
    for file in &files {
        let source = match read(file) {
            Ok(source) => source,
            Err(message) => {
                errors.push(Diagnostic {
                    file: file.clone(),
                    line: None,
                    column: None,
                    message,
                    excerpt: String::new(),
                });
                continue;
            }
        };
        hasher.update(file.file_name().unwrap_or_default().as_encoded_bytes());
        hasher.update(&(source.len() as u64).to_le_bytes());
        hasher.update(&source);
        let seen = compiler.errors().len();
        let origin = file.to_string_lossy().into_owned();
        compiler.new_namespace(&origin);
        // Its error is among all errors of the file, which follow.
        let _ = compiler.add_source(SourceCode::from(&source[..]).with_origin(origin));
        for error in &compiler.errors()[seen..] {
            let label = error.labels().next();
            let at = label.map(|l| l.span().start());
            errors.push(diagnostic(file, &source, at, error.title(), &error.to_string()));
        }
        for warning in &compiler.warnings()[warned..] {
            let at = warning.labels().next().map(|l| l.span().start());
            warnings.push(diagnostic(file, &source, at, warning.title(), &warning.to_string()));
        }
        warned = compiler.warnings().len();
    }
    if errors.is_empty() && files.is_empty() {
        errors.push(Diagnostic {
            file: paths.first().cloned().unwrap_or_default(),
            line: None,
            column: None,
            message: "no rules: neither a file nor a directory with *.yar or *.yara".into(),
            excerpt: String::new(),
        });
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    let rules = compiler.build();
    let count = rules.iter().len() as u64;
    let hash = hasher.finalize().to_hex();
    Ok(Loaded { rules, count, version: format!("yara-x {YARA_X} {}", &hash[..16]), warnings })
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
    let mut fail = |path: &Path, message: String| {
        errors.push(Diagnostic {
            file: path.to_owned(),
            line: None,
            column: None,
            message,
            excerpt: String::new(),
        });
    };
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
                    let message = format!("cannot be read: {e}");
                    errors.push(Diagnostic {
                        file: path.to_owned(),
                        line: None,
                        column: None,
                        message,
                        excerpt: String::new(),
                    });
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
    scanner: Scanner<'r>,
}

impl<'r> Yara<'r> {
    /// A scanner, with its memory set up: about a millisecond.
    pub fn new(rules: &'r Rules) -> Self {
        let mut scanner = Scanner::new(rules);
        scanner.fast_scan(true).max_matches_per_pattern(MATCHES_MAX);
        Self { scanner }
    }
}

impl Engine for Yara<'_> {
    fn name(&self) -> &'static str {
        "yara"
    }

    fn scan(&mut self, part: &Part<'_>, hits: &mut Vec<Hit>) -> Result<(), String> {
        let filepath = part.path.join("/");
        let extension = extension(part.name);
        let filetype = part.kind.label().to_ascii_uppercase();
        for (variable, value) in [
            ("filename", part.name),
            ("filepath", &filepath),
            ("extension", &extension),
            ("filetype", &filetype),
        ] {
            self.scanner
                .set_global(variable, value)
                .map_err(|e| format!("yara: {variable}: {e}"))?;
        }
        let results = self.scanner.scan(part.data).map_err(|e| format!("yara: {e}"))?;
        hits.extend(results.matching_rules().map(|rule| Hit {
            name: rule.identifier().to_owned(),
            detail: part.detail.then(|| detail(&rule)),
        }));
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

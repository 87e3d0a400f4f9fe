//! Engines: what tells infected bytes from others. Each implements [`crate::object::Engine`]; [`Engines`] is all of
//! them, over the [`Signatures`] that the files of [`source`] hold.
//!
//! In front of YARA rules stand a [literal filter](filter) and a [plan] of when which of them run.

pub mod bundle;
pub mod filter;
pub mod needle;
pub mod plan;
pub mod source;
pub mod yara;

use crate::object::{Engine, Hit, Part};
use bundle::Key;
use plan::Source;
use source::{Diagnostic, Format};
use std::path::PathBuf;
use yara::{Set, YARA_X, Yara};

/// Everything that objects are compared with.
pub struct Signatures {
    /// YARA rules: those that were compiled from text, and each bundle.
    pub rules: Vec<Set>,
    /// Number of rules and signatures.
    pub count: u64,
    /// Engines, their versions, and the first bytes of the BLAKE3 hash of all sources: what a verdict depends on.
    pub version: String,
    /// What is doubtful.
    pub warnings: Vec<Diagnostic>,
}

impl Signatures {
    /// Loads all signatures under the paths; `key` authenticates bundles.
    ///
    /// # Errors
    /// Everything that is wrong in any file, at once; then nothing is loaded. Paths without any signature are an
    /// error too: a scanner without them calls everything clean.
    pub fn load(paths: &[PathBuf], key: Option<&Key>) -> Result<Self, Vec<Diagnostic>> {
        let (mut errors, mut warnings) = (Vec::new(), Vec::new());
        let files = source::collect(paths, &mut errors);
        if errors.is_empty() && files.is_empty() {
            let first = paths.first().cloned().unwrap_or_default();
            let message = "no rules: neither a file nor a directory with *.yar or *.yara";
            errors.push(Diagnostic::of_file(&first, message.into()));
        }
        let mut hasher = blake3::Hasher::new();
        let mut sources = Vec::new();
        let mut rules = Vec::new();
        for (format, path) in files {
            let read = match format {
                Format::Yara => source::text(&path).map(|text| {
                    hasher.update(path.file_name().unwrap_or_default().as_encoded_bytes());
                    hasher.update(&(text.len() as u64).to_le_bytes());
                    hasher.update(&text);
                    sources.push(Source { path: path.clone(), text });
                }),
                Format::Bundle => {
                    bundle::read(&path, key).map_err(|e| e.to_string()).map(|bundle| {
                        hasher.update(bundle.version.as_bytes());
                        rules.push(bundle.set);
                    })
                }
            };
            if let Err(message) = read {
                errors.push(Diagnostic::of_file(&path, message));
            }
        }
        if !sources.is_empty() {
            rules.push(yara::build(&sources, &mut errors, &mut warnings));
        }
        let place = |d: &Diagnostic| (d.file.clone(), d.line, d.column);
        if !errors.is_empty() {
            errors.sort_by_key(place);
            return Err(errors);
        }
        warnings.sort_by_key(place);
        let count = rules.iter().map(|set| set.count).sum();
        let hash = hasher.finalize().to_hex();
        Ok(Self { rules, count, version: format!("yara-x {YARA_X} {}", &hash[..16]), warnings })
    }

    /// All YARA rules.
    pub fn rules(&self) -> impl Iterator<Item = yara_x::Rule<'_, '_>> {
        self.rules.iter().flat_map(Set::rules)
    }
}

/// All engines over all signatures, for one thread.
pub struct Engines<'s> {
    yara: Vec<Yara<'s>>,
}

impl<'s> Engines<'s> {
    /// Engines; their memory is set up as it is needed.
    pub fn new(signatures: &'s Signatures) -> Self {
        Self { yara: signatures.rules.iter().map(Yara::new).collect() }
    }

    /// Units of YARA rules that would run on the data, and all units.
    pub fn needed(&mut self, data: &[u8]) -> (usize, usize) {
        let each = self.yara.iter_mut().map(|yara| yara.needed(data));
        each.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
    }
}

impl Engine for Engines<'_> {
    fn name(&self) -> &'static str {
        "yara"
    }

    fn scan(&mut self, part: &Part<'_>, hits: &mut Vec<Hit>) -> Result<(), String> {
        let mut result = Ok(());
        for yara in &mut self.yara {
            // What the others find counts all the same.
            result = result.and(yara.scan(part, hits));
        }
        result
    }
}

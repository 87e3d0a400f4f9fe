//! Engines: what tells infected bytes from others. Each implements [`crate::object::Engine`]; [`Engines`] is all of
//! them, over the [`Signatures`] that the files of [`source`] hold.
//!
//! In front of YARA rules stand a [literal filter](filter) and a [plan] of when which of them run.

pub mod ahead;
pub mod allow;
pub mod bundle;
pub mod clamav;
pub mod filter;
pub mod hashes;
mod known;
pub mod measure;
pub mod needle;
mod parallel;
pub mod plan;
mod shape;
pub mod source;
pub mod yara;

use crate::object::{Engine, Hit, Part};
use crate::process::crew::Crew;
use ahead::Ahead;
use allow::Allowed;
use bundle::Key;
use clamav::Database;
use hashes::{Asked, Hashes, Made};
use known::{Key as PartKey, Known};
use parallel::Help;
use plan::Source;
use serde::Serialize;
use source::{CLAM_OTHER, Diagnostic, Format};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use yara::{Set, YARA_X, Yara};

/// Everything that objects are compared with.
pub struct Signatures {
    /// YARA rules: those that were compiled from text, and each bundle.
    pub rules: Vec<Set>,
    /// Hashes of files.
    pub hashes: Vec<Hashes>,
    /// Hashes of sections of Windows programs.
    pub sections: Option<Hashes>,
    /// What is let pass.
    pub allowed: Allowed,
    /// ClamAV's signatures that have no like here, by the reason.
    pub skipped: BTreeMap<&'static str, u64>,
    /// The same by their names, as far as they have any.
    pub skipped_names: Vec<(String, &'static str)>,
    /// How much of it each file holds, in the order of their paths.
    pub sources: Vec<Holding>,
    /// When the youngest of the files was changed, or made where it tells that itself, in seconds since 1970. Lists of
    /// what is let pass do not count.
    pub newest: Option<i64>,
    /// Number of rules and signatures.
    pub count: u64,
    /// Engines, their versions, and the first bytes of the BLAKE3 hash of all sources: what a verdict depends on.
    pub version: String,
    /// What is doubtful.
    pub warnings: Vec<Diagnostic>,
}

/// What one file holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Holding {
    /// The file.
    pub path: PathBuf,
    /// What its ending says that it is.
    pub format: &'static str,
    /// Rules, signatures, hashes, or lines that let pass.
    pub count: u64,
    /// ClamAV's signatures in it that have no like here.
    pub skipped: u64,
}

/// The files on their way to being signatures.
#[derive(Default)]
struct Loading {
    holdings: BTreeMap<PathBuf, Holding>,
    newest: Option<i64>,
    apart: bool,
    hasher: blake3::Hasher,
    sources: Vec<Source>,
    rules: Vec<Set>,
    lists: Vec<Hashes>,
    entries: Vec<hashes::Entry>,
    allowed: Allowed,
    clamav: Database,
    warnings: Vec<Diagnostic>,
}

impl Signatures {
    /// Loads all signatures under the paths; `key` authenticates bundles.
    ///
    /// # Errors
    /// Everything that is wrong in any file, at once; then nothing is loaded. Paths without any signature are an
    /// error too: a scanner without them calls everything clean.
    pub fn load(paths: &[PathBuf], key: Option<&Key>) -> Result<Self, Vec<Diagnostic>> {
        Self::load_with(paths, key, false)
    }

    /// The same with each rule in a unit of its own, or with those that it refers to: for [`measure`].
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_apart(paths: &[PathBuf], key: Option<&Key>) -> Result<Self, Vec<Diagnostic>> {
        Self::load_with(paths, key, true)
    }

    fn load_with(
        paths: &[PathBuf],
        key: Option<&Key>,
        apart: bool,
    ) -> Result<Self, Vec<Diagnostic>> {
        let mut errors = Vec::new();
        let files = source::collect(paths, &mut errors);
        let mut loading = Loading { apart, ..Loading::default() };
        // Names that are left out come first.
        let ignoring = |format: Format| format == Format::ClamIgnored;
        let (first, rest): (Vec<_>, Vec<_>) =
            files.into_iter().partition(|(format, _)| ignoring(*format));
        for (format, path) in first.into_iter().chain(rest) {
            let before = (loading.held(), loading.clamav.skipped_count());
            if let Err(message) = loading.read(format, &path, key) {
                errors.push(Diagnostic::of_file(&path, message));
            }
            let count = loading.held() - before.0;
            let skipped = loading.clamav.skipped_count() - before.1;
            let format = format.word();
            loading.holdings.insert(path.clone(), Holding { path, format, count, skipped });
        }
        let first = paths.first().cloned().unwrap_or_default();
        loading.finish(&first, errors)
    }

    /// The same in less memory, for a process that keeps it and forks.
    ///
    /// # Errors
    /// When yara-x does not read what it wrote: then there is nothing.
    pub fn compacted(mut self) -> Result<Self, Diagnostic> {
        let rules: Result<_, String> = self.rules.into_iter().map(Set::compacted).collect();
        self.rules = rules.map_err(|e| Diagnostic::of_file(Path::new("rules"), e))?;
        Ok(self)
    }

    /// All YARA rules.
    pub fn rules(&self) -> impl Iterator<Item = yara_x::Rule<'_, '_>> {
        self.rules.iter().flat_map(Set::rules)
    }
}

impl Loading {
    /// What was read so far; rules as text are counted when they are compiled.
    fn held(&self) -> u64 {
        let clamav = &self.clamav;
        let hashes = self.entries.len() + clamav.files.len() + clamav.sections.len();
        let allowed = clamav.allowed.len() + clamav.ignored.len();
        self.rules.iter().map(|set| set.count).sum::<u64>()
            + self.lists.iter().map(Hashes::count).sum::<u64>()
            + (hashes + allowed) as u64
            + self.allowed.count()
            + clamav.rule_count
    }

    /// The youngest file makes the age of all.
    fn made(&mut self, at: Option<i64>) {
        self.newest = self.newest.max(at);
    }

    fn read(&mut self, format: Format, path: &Path, key: Option<&Key>) -> Result<(), String> {
        match format {
            Format::Allow | Format::ClamIgnored | Format::Bundle | Format::ClamDatabase => {}
            Format::Yara | Format::HashText | Format::HashList | Format::ClamText => {
                self.made(source::changed(path));
            }
        }
        match format {
            Format::Yara => {
                let text = source::text(path)?;
                self.saw(path, &text);
                self.sources.push(Source { path: path.to_owned(), text });
            }
            Format::Bundle => {
                let bundle = bundle::read(path, key).map_err(|e| e.to_string())?;
                self.hasher.update(bundle.version.as_bytes());
                self.made(bundle.newest);
                self.rules.push(bundle.set);
            }
            Format::HashText => {
                let text = source::list(path)?;
                self.saw(path, &text);
                for (number, line) in text.split(|&b| b == b'\n').enumerate() {
                    match hashes::line(&String::from_utf8_lossy(line)) {
                        Ok(entry) => self.entries.extend(entry),
                        Err(message) => self.doubt(path, number + 1, message),
                    }
                }
            }
            Format::HashList => {
                let list = Hashes::open(path)?;
                self.hasher.update(list.identity());
                self.lists.push(list);
            }
            Format::Allow => {
                let text = source::text(path)?;
                self.saw(path, &text);
                let wrong = self.allowed.read(&text);
                // A line that does not count would let a file be refused, which tells of itself; one that
                // counts for longer than was meant would not.
                if let Some((line, message)) = wrong.into_iter().next() {
                    return Err(format!("line {line}: {message}"));
                }
            }
            Format::ClamIgnored => {
                let text = source::text(path)?;
                self.saw(path, &text);
                self.clamav.read_ignored(&text);
            }
            Format::ClamText => {
                let text = source::list(path)?;
                self.saw(path, &text);
                self.clam_text(path, &ending(path), &text);
            }
            Format::ClamDatabase => {
                let bytes = source::list(path)?;
                self.saw(path, &bytes);
                self.made(clamav::built(&bytes).or_else(|| source::changed(path)));
                let files = clamav::unpack(&bytes)?;
                let ignored = |name: &str| matches!(&*ending(Path::new(name)), "ign" | "ign2");
                for (_, text) in files.iter().filter(|(name, _)| ignored(name)) {
                    self.clamav.read_ignored(text);
                }
                for (name, text) in &files {
                    let ending = ending(Path::new(name));
                    if source::CLAM_TEXT.contains(&&*ending) {
                        self.clam_text(&path.join(name), &ending, text);
                    } else if CLAM_OTHER.contains(&&*ending) {
                        let lines =
                            text.split(|&b| b == b'\n').filter(|line| !line.is_empty()).count();
                        let kind =
                            if ending == "cbc" { "bytecode" } else { "other kinds of ClamAV" };
                        let count = if ending == "cbc" { 1 } else { lines as u64 };
                        self.clamav.skip_unnamed(kind, count);
                    } else if matches!(&*ending, "yar" | "yara") {
                        self.sources.push(Source { path: path.join(name), text: text.clone() });
                    }
                }
            }
        }
        Ok(())
    }

    fn clam_text(&mut self, path: &Path, ending: &str, text: &[u8]) {
        for (line, message) in self.clamav.read(ending, text) {
            self.doubt(path, line, message);
        }
    }

    /// What was read shapes every verdict.
    fn saw(&mut self, path: &Path, content: &[u8]) {
        self.hasher.update(path.file_name().unwrap_or_default().as_encoded_bytes());
        self.hasher.update(&(content.len() as u64).to_le_bytes());
        self.hasher.update(content);
    }

    fn doubt(&mut self, path: &Path, line: usize, message: String) {
        self.warnings.push(Diagnostic { line: Some(line), ..Diagnostic::of_file(path, message) });
    }

    fn finish(
        mut self,
        first: &Path,
        mut errors: Vec<Diagnostic>,
    ) -> Result<Signatures, Vec<Diagnostic>> {
        if self.clamav.rule_count > 0 {
            let text = format!("{}{}", clamav::IMPORTS, self.clamav.rules).into_bytes();
            self.sources.push(Source { path: PathBuf::from("ClamAV signatures"), text });
        }
        if !self.sources.is_empty() {
            self.rules.push(yara::build(
                &self.sources,
                self.apart,
                &mut errors,
                &mut self.warnings,
            ));
        }
        for rule in self.rules.iter().flat_map(Set::rules) {
            // Of bundles and ClamAV's signatures it is known already.
            if let Some(holding) = self.holdings.get_mut(Path::new(rule.namespace()))
                && holding.format == Format::Yara.word()
            {
                holding.count += 1;
            }
        }
        self.entries.append(&mut self.clamav.files);
        let mut made = |entries: Vec<hashes::Entry>| {
            let list = Hashes::of_image(hashes::image(entries));
            list.map_err(|e| errors.push(Diagnostic::of_file(first, e))).ok()
        };
        if !self.entries.is_empty() {
            self.lists.extend(made(std::mem::take(&mut self.entries)));
        }
        let sections = std::mem::take(&mut self.clamav.sections);
        let sections = if sections.is_empty() { None } else { made(sections) };
        self.allowed.add(std::mem::take(&mut self.clamav.allowed), None);
        if let Err(e) = self.allowed.finish() {
            errors.push(Diagnostic::of_file(first, e));
        }
        let count = self.rules.iter().map(|set| set.count).sum::<u64>()
            + self.lists.iter().chain(&sections).map(Hashes::count).sum::<u64>();
        if errors.is_empty() && count == 0 {
            let message =
                "no rules: neither a file nor a directory with *.yar, *.yara or other signatures";
            errors.push(Diagnostic::of_file(first, message.into()));
        }
        let place = |d: &Diagnostic| (d.file.clone(), d.line, d.column);
        if !errors.is_empty() {
            errors.sort_by_key(place);
            return Err(errors);
        }
        self.warnings.sort_by_key(place);
        let hash = self.hasher.finalize().to_hex();
        Ok(Signatures {
            rules: self.rules,
            hashes: self.lists,
            sections,
            allowed: self.allowed,
            skipped: self.clamav.skipped,
            skipped_names: self.clamav.skipped_names,
            sources: self.holdings.into_values().collect(),
            newest: self.newest,
            count,
            version: format!("yara-x {YARA_X} {}", &hash[..16]),
            warnings: self.warnings,
        })
    }
}

fn ending(path: &Path) -> String {
    path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase()
}

/// All engines over all signatures, for one thread.
pub struct Engines<'s> {
    signatures: &'s Signatures,
    yara: Vec<Yara<'s>>,
    known: Known,
    help: Option<Help>,
    ahead: Option<Ahead>,
    /// Rules that ask for the time have run.
    timely: bool,
}

impl<'s> Engines<'s> {
    /// Engines; their memory is set up as it is needed.
    pub fn new(signatures: &'s Signatures) -> Self {
        let yara = signatures.rules.iter().map(Yara::new).collect();
        let known = Known::default();
        Self { signatures, yara, known, help: None, ahead: None, timely: false }
    }

    /// The same, which these threads help with large parts.
    #[must_use]
    pub fn helped_by(self, crew: Crew) -> Self {
        self.helped_from(crew, parallel::LARGE, parallel::RANGE)
    }

    /// The same for parts of at least so many bytes, filtered in ranges of so many: for tests, where all is small. The
    /// length of a range is rounded up to what can be one.
    #[must_use]
    pub fn helped_from(mut self, crew: Crew, large: usize, range: usize) -> Self {
        self.help = (crew.helpers() > 0).then(|| Help::new(crew, large, range));
        self
    }

    /// The same, remembering what is found in so many parts.
    #[must_use]
    pub fn remembering(mut self, parts: u32) -> Self {
        self.known = Known::new(parts);
        self
    }

    /// How many parts came before, of those since this was asked last.
    pub fn take_known(&mut self) -> u32 {
        self.known.take_count()
    }

    /// Whether rules that ask for the time have run since this was asked last: what was found then may not be found later.
    pub fn take_timely(&mut self) -> bool {
        std::mem::take(&mut self.timely)
    }

    /// Nothing was looked at yet, of an object that begins to arrive.
    pub fn arriving(&self) -> Ahead {
        Ahead::new(&self.yara)
    }

    /// Looks at more of an object that arrives, of which these bytes are there; how many were looked at now.
    pub fn look_ahead(&self, ahead: &mut Ahead, data: &[u8]) -> usize {
        ahead.look(&self.yara, data)
    }

    /// The object is whole, and the part that is scanned next. How much of it was looked at.
    pub fn arrived(&mut self, mut ahead: Ahead, data: &[u8]) -> usize {
        let looked = ahead.whole(data);
        self.ahead = Some(ahead);
        looked
    }

    /// What was said to come did not, or is over.
    pub fn forget_ahead(&mut self) {
        self.ahead = None;
    }

    /// Units of YARA rules that would run on the data, and all units.
    pub fn needed(&mut self, data: &[u8]) -> (usize, usize) {
        let each = self.yara.iter_mut().map(|yara| yara.needed(data));
        each.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
    }

    /// Whether the allow lists let a file pass in which something of this name was found.
    pub fn allows(&self, data: &[u8], name: &str) -> bool {
        let allowed = &self.signatures.allowed;
        allowed.count() > 0 && {
            let now = now();
            allowed.name(name, now) || allowed.file(data, now)
        }
    }

    /// What hash lists know. `made`: hashes of the part that are there already.
    fn listed(&self, part: &Part<'_>, made: Made, hits: &mut Vec<Hit>) {
        let hit = |name| Hit { name, engine: Some("hash"), detail: None };
        if !self.signatures.hashes.is_empty() {
            let mut asked = Asked::with(part.data, made);
            hits.extend(self.signatures.hashes.iter().filter_map(|list| asked.of(list)).map(hit));
        }
        if let Some(list) = &self.signatures.sections {
            let sections = clamav::sections(part.data).into_iter();
            hits.extend(sections.filter_map(|section| Asked::new(section).of(list)).map(hit));
        }
    }
}

/// Seconds since 1970.
fn now() -> i64 {
    rustix::time::clock_gettime(rustix::time::ClockId::Realtime).tv_sec
}

impl Engine for Engines<'_> {
    fn name(&self) -> &'static str {
        "yara"
    }

    fn scan(&mut self, part: &Part<'_>, hits: &mut Vec<Hit>) -> Result<(), String> {
        let before = hits.len();
        let ahead = self.ahead.take().filter(|ahead| ahead.is_of(part.data));
        let key = self.known.is_on().then(|| match &ahead {
            Some(ahead) => ahead.key(part),
            None => PartKey::of(part),
        });
        let mut result = Ok(());
        // What rules find that ask for the time is never remembered.
        let mut timely = Vec::new();
        let recalled = key.is_some_and(|key| self.known.recall(&key, hits));
        let mut lasting = true;
        if let Some(ahead) = ahead.filter(|_| !recalled) {
            ahead.give(&mut self.yara);
        }
        match &self.help {
            Some(help) if !recalled && part.data.len() >= help.large => {
                // Which units found what is not told apart here.
                lasting = !self.yara.iter().any(Yara::is_timely);
                self.timely |= !lasting;
                let asked = hashes::asked(&self.signatures.hashes, part.data.len() as u64);
                let (made, found) = help.scan(part, &mut self.yara, &asked);
                self.listed(part, made, hits);
                for found in found {
                    result = result.and(found.map(|found| yara::tell(found, hits)));
                }
            }
            Some(_) | None => {
                if !recalled {
                    self.listed(part, Made::default(), hits);
                }
                for yara in self.yara.iter_mut().filter(|yara| !recalled || yara.is_timely()) {
                    let ran = yara.apart(part, (!recalled).then_some(&mut *hits), &mut timely);
                    // What the others find counts all the same.
                    result = result.and(ran.map(|asked| self.timely |= asked));
                }
            }
        }
        if let (Some(key), false, true, Ok(())) = (key, recalled, lasting, &result) {
            self.known.remember(key, &hits[before..]);
        }
        hits.append(&mut timely);
        let allowed = &self.signatures.allowed;
        if hits.len() > before && allowed.count() > 0 {
            let now = now();
            if allowed.file(part.data, now) {
                hits.truncate(before);
            }
            let mut place = 0;
            hits.retain(|hit| {
                place += 1;
                place <= before || !allowed.name(&hit.name, now)
            });
        }
        result
    }
}

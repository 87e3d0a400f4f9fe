//! The planner and its filter against plain yara-x, over the same files; what they find must be the same.

use crate::corpus::{self, File};
use crate::{Places, cpu, rate, rule_files, tell};
use anyhow::{Result, anyhow, ensure};
use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};
use vscan_scan::engine::{Engines, Signatures};
use vscan_scan::limits::Limits;
use vscan_scan::object::{self, Engine, Hit, Object, Part};
use vscan_scan::wire::ObjectKind;
use yara_x::{Compiler, Rules, Scanner, SourceCode};

/// Bytes of each corpus, and how often it is looked at.
const BYTES: u64 = 48 << 20;
const ROUNDS: usize = 3;

pub(crate) fn binaries(places: &Places) -> Result<()> {
    let mut files = corpus::elf(BYTES / 2)?;
    files.extend(corpus::pe(&places.programs, BYTES / 2)?);
    compare(&places.rules, &files, false)
}

pub(crate) fn text(places: &Places) -> Result<()> {
    compare(&places.rules, &corpus::texts(BYTES / 2)?, false)
}

pub(crate) fn archives(places: &Places) -> Result<()> {
    let mut files = corpus::elf(BYTES / 4)?;
    files.extend(corpus::pe(&places.programs, BYTES / 4)?);
    files.extend(corpus::texts(BYTES / 4)?);
    // Kinds mixed within each archive.
    let shuffled = (0..files.len()).map(|i| i * 7919 % files.len()).collect::<BTreeSet<_>>();
    ensure!(shuffled.len() == files.len(), "the number of files divides 7919");
    let order: Vec<usize> = (0..files.len()).map(|i| i * 7919 % files.len()).collect();
    let mut files: Vec<Option<File>> = files.into_iter().map(Some).collect();
    let files = order.into_iter().filter_map(|i| files[i].take()).collect();
    compare(&places.rules, &corpus::archives(files)?, true)
}

/// All rules in one, as yara-x runs them by itself.
pub(crate) fn plain(dir: &Path) -> Result<Rules> {
    let mut compiler = Compiler::new();
    compiler.relaxed_re_syntax(true);
    for variable in VARIABLES {
        compiler.define_global(variable, "")?;
    }
    for (path, text) in rule_files(dir)? {
        compiler.new_namespace(&path.to_string_lossy());
        compiler.add_source(SourceCode::from(&text[..]))?;
    }
    Ok(compiler.build())
}

const VARIABLES: [&str; 5] = ["filename", "filepath", "extension", "filetype", "owner"];

struct Plain<'r>(Scanner<'r>);

impl Engine for Plain<'_> {
    fn name(&self) -> &'static str {
        "yara"
    }

    fn scan(&mut self, part: &Part<'_>, hits: &mut Vec<Hit>) -> Result<(), String> {
        let extension = part.name.rfind('.').map_or("", |dot| &part.name[dot..]);
        for (variable, value) in [
            ("filename", part.name),
            ("filepath", &part.path.join("/")),
            ("extension", &extension.to_ascii_lowercase()),
            ("filetype", &part.kind.label().to_ascii_uppercase()),
        ] {
            self.0.set_global(variable, value).map_err(|e| e.to_string())?;
        }
        let results = self.0.scan(part.data).map_err(|e| e.to_string())?;
        hits.extend(results.matching_rules().map(|rule| Hit::from(rule.identifier())));
        Ok(())
    }
}

/// Time of both engines over the files; `walk`: with all that lies inside them.
fn compare(rules: &Path, files: &[File], walk: bool) -> Result<()> {
    let rules_plain = plain(rules)?;
    let loaded = Signatures::load(&[rules.to_owned()], None).map_err(|e| anyhow!("{}", e[0]))?;
    ensure!(loaded.count == rules_plain.iter().len() as u64, "not the same rules");
    let scanner = Scanner::new(&rules_plain);
    let mut engines: [Box<dyn Engine + '_>; 2] =
        [Box::new(Engines::new(&loaded)), Box::new(Plain(scanner))];
    let mut times = [Duration::ZERO; 2];
    let mut bytes = 0;
    for round in 0..=ROUNDS {
        for (i, file) in files.iter().enumerate() {
            let mut found: [BTreeSet<(Vec<String>, String)>; 2] = Default::default();
            let mut decoded = 0;
            for turn in [(round + i) % 2, (round + i + 1) % 2] {
                let started = cpu();
                (found[turn], decoded) = scan(&mut *engines[turn], file, walk)?;
                // The first round warms up.
                if round > 0 {
                    times[turn] += cpu() - started;
                }
            }
            bytes += if round > 0 { decoded } else { 0 };
            ensure!(found[0] == found[1], "{}: {:?}", file.name, found);
        }
    }
    let [value, baseline] = times.map(|time| rate(bytes, time));
    tell(value, Some(baseline));
    Ok(())
}

type Found = BTreeSet<(Vec<String>, String)>;

fn scan(engine: &mut dyn Engine, file: &File, walk: bool) -> Result<(Found, u64)> {
    let name = &*file.name;
    if walk {
        let deadline = Instant::now() + Duration::from_secs(600);
        let limits = Limits { seconds: 600, ..Limits::default() };
        let object =
            Object { name: Some(name), ..Object::new(ObjectKind::File, &file.data, deadline) };
        let report = object::scan(engine, &limits, &object);
        ensure!(report.error.is_none(), "{:?}", report.error);
        ensure!(report.unread.is_empty(), "{:?}", report.unread);
        let found = report.findings.into_iter().map(|f| (f.path, f.name)).collect();
        return Ok((found, report.bytes));
    }
    let kind = vscan_scan::sniff::sniff(&file.data);
    let path = [name.to_owned()];
    let part = Part { data: &file.data, kind, name, path: &path, detail: false };
    let mut hits = Vec::new();
    engine.scan(&part, &mut hits).map_err(anyhow::Error::msg)?;
    let found = hits.into_iter().map(|hit| (Vec::new(), hit.name)).collect();
    Ok((found, file.data.len() as u64))
}

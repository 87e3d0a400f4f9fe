//! How much time each rule takes by itself, for those who write rules.
//!
//! Rules are compiled apart for this, each with those that it refers to, and run on the files of a corpus on which they
//! would run in earnest. Bundles are compiled already: their rules are measured in the units that they have.

use super::plan::facts::{Facts, Names};
use super::yara::{Set, ask, scanner_of};
use crate::process::sys::Mapping;
use crate::sniff::sniff;
use serde::Serialize;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Rules that are named of one unit of a bundle.
const NAMES_MAX: usize = 8;

/// Larger files are left out: the time is that of many ordinary ones.
const FILE_MAX: u64 = 64 << 20;

/// What some rules took.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Timed {
    /// Their names: one, unless they refer to each other or come out of a bundle.
    pub rules: Vec<String>,
    /// Wall-clock time of all runs, in microseconds.
    pub micros: u64,
    /// Files on which they had to run.
    pub runs: u64,
}

/// Measures all rules of the sets on all files under the paths, the slowest first. Those that never had to run are left
/// out.
///
/// # Errors
/// In words, when a file of the corpus cannot be read.
pub fn measure(sets: &[Set], corpus: &[PathBuf]) -> Result<Vec<Timed>, String> {
    let mut files = Vec::new();
    for path in corpus {
        below(path, &mut files)?;
    }
    let mut timed = Vec::new();
    for set in sets {
        let (mut gate, mut probe) = (set.plan.gate(), None);
        let mut wanted: Vec<Vec<u32>> = vec![Vec::new(); set.units.len()];
        for (number, file) in (0..).zip(&files) {
            with(file, |data| {
                let name = file.file_name().unwrap_or_default().to_string_lossy();
                let probe = || ask(set, &mut probe, data);
                let names = Names::new(&name, &[name.to_string()], sniff(data));
                let units = set.plan.units(&Facts::new(data, &names), &mut gate, probe);
                for (unit, needed) in units.iter().enumerate() {
                    if *needed {
                        wanted[unit].push(number);
                    }
                }
            })?;
        }
        for (unit, numbers) in wanted.into_iter().enumerate().filter(|(_, n)| !n.is_empty()) {
            let rules = &set.units[unit];
            let mut scanner = scanner_of(rules);
            // What its first run sets up is no work of the rule.
            let _ = scanner.scan(b"");
            let mut one = Timed { runs: numbers.len() as u64, ..Timed::default() };
            one.rules =
                rules.iter().map(|rule| rule.identifier().to_owned()).take(NAMES_MAX).collect();
            let mut nanos = 0;
            for number in numbers {
                with(&files[number as usize], |data| {
                    let started = Instant::now();
                    let _ = scanner.scan(data);
                    nanos += started.elapsed().as_nanos();
                })?;
            }
            one.micros = u64::try_from(nanos / 1000).unwrap_or(u64::MAX);
            timed.push(one);
        }
    }
    timed.sort_by(|a, b| b.micros.cmp(&a.micros).then_with(|| a.rules.cmp(&b.rules)));
    Ok(timed)
}

fn below(path: &Path, files: &mut Vec<PathBuf>) -> Result<(), String> {
    let wrong = |e| format!("{}: {e}", path.display());
    let meta = fs::symlink_metadata(path).map_err(wrong)?;
    if meta.is_dir() {
        for entry in fs::read_dir(path).map_err(wrong)? {
            below(&entry.map_err(wrong)?.path(), files)?;
        }
    } else if meta.is_file() && meta.len() > 0 && meta.len() <= FILE_MAX {
        files.push(path.to_owned());
    }
    Ok(())
}

fn with(path: &Path, work: impl FnOnce(&[u8])) -> Result<(), String> {
    let wrong = |e| format!("{}: {e}", path.display());
    let file = File::open(path).map_err(wrong)?;
    let len = file.metadata().map_err(wrong)?.len();
    let len = usize::try_from(len).unwrap_or(0);
    if len > 0 {
        let mapping = Mapping::new(&file, len).map_err(wrong)?;
        work(mapping.bytes());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Signatures;

    #[test]
    fn each_rule_is_measured_where_it_runs() {
        let dir = tempfile::tempdir().unwrap();
        let (rules, corpus) = (dir.path().join("a.yar"), dir.path().join("corpus"));
        let text = "rule needs_it { strings: $x = \"a needle in here\" condition: $x }\n\
             rule never { strings: $x = \"nobody has this one\" condition: $x }\n\
             rule always { condition: filesize < 10MB }\n\
             rule friend { condition: always and filesize > 0 }";
        fs::write(&rules, text).unwrap();
        fs::create_dir(&corpus).unwrap();
        fs::write(corpus.join("one"), "... a needle in here ...").unwrap();
        fs::write(corpus.join("two"), "nothing".repeat(1000)).unwrap();
        let loaded = Signatures::load_apart(&[rules], None).unwrap_or_else(|e| panic!("{e:?}"));
        let mut timed = measure(&loaded.rules, &[corpus]).unwrap();
        timed.sort_by(|a, b| a.rules.cmp(&b.rules));
        let runs: Vec<(String, u64)> = timed.iter().map(|t| (t.rules.join(" "), t.runs)).collect();
        assert_eq!(runs, [("always friend".to_owned(), 2), ("needs_it".to_owned(), 1)]);
    }
}

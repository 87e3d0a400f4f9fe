//! Which units of the plan run on files, and what each costs.

use crate::{corpus, cpu, process, rate};
use anyhow::{Result, anyhow};
use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;
use vscan_scan::engine::Signatures;
use vscan_scan::engine::yara::Yara;

/// Rounds that are measured, behind one that warms up.
const ROUNDS: u32 = 10;

pub(crate) fn run(rules: &Path, paths: &[&str]) -> Result<()> {
    // Each rule in a unit of its own tells which of them would run.
    let apart = paths.first() == Some(&"apart");
    let paths = if apart { &paths[1..] } else { paths };
    let load = if apart { Signatures::load_apart } else { Signatures::load };
    let loaded = load(&[rules.to_owned()], None).map_err(|e| anyhow!("{}", e[0]))?;
    let mut files = Vec::new();
    match paths {
        ["elf"] => files = corpus::elf(24 << 20)?,
        ["text"] => files = corpus::texts(24 << 20)?,
        ["large", dir] => files = process::large_objects(Path::new(dir))?.into(),
        ["pe", dir] => files = corpus::pe(Path::new(dir), 24 << 20)?,
        _ => {
            for path in paths {
                files.push(corpus::File { name: (*path).into(), data: std::fs::read(path)? });
            }
        }
    }
    for set in &loaded.rules {
        let mut yara = Yara::new(set);
        println!("{:?}", set.shares());
        let mut spent: HashMap<usize, (u32, Duration)> = HashMap::new();
        let (mut bytes, mut filter, mut all) = (0, Duration::ZERO, Duration::ZERO);
        for round in 0..=ROUNDS {
            for file in &files {
                let started = cpu();
                let (mut decided, mut last) = (started, started);
                yara.each(&file.data, &mut |unit| {
                    let Some(unit) = unit else {
                        (decided, last) = (cpu(), cpu());
                        return;
                    };
                    let now = cpu();
                    if round > 0 {
                        let entry = spent.entry(unit).or_default();
                        entry.0 += 1;
                        entry.1 += now - last;
                    }
                    last = cpu();
                });
                if round > 0 {
                    filter += decided - started;
                    all += cpu() - started;
                    bytes += file.data.len() as u64;
                }
            }
        }
        println!(
            "{} files, {bytes} bytes; filter {:.0} MB/s, with units {:.0} MB/s; {:.2} units a file",
            files.len(),
            rate(bytes, filter),
            rate(bytes, all),
            f64::from(spent.values().map(|s| s.0).sum::<u32>())
                / f64::from(ROUNDS)
                / files.len() as f64
        );
        let mut spent: Vec<_> = spent.into_iter().collect();
        spent.sort_by_key(|(_, (_, time))| std::cmp::Reverse(*time));
        for (unit, (times, time)) in spent.iter().take(60) {
            let rules: Vec<&str> = set.unit(*unit).map(|rule| rule.identifier()).collect();
            println!(
                "unit {unit}: {times} times, {:.1} ms ({:.0} us each), {} rules: {}",
                time.as_secs_f64() * 1e3,
                time.as_secs_f64() * 1e6 / f64::from(*times),
                rules.len(),
                rules[..rules.len().min(6)].join(" ")
            );
        }
    }
    Ok(())
}

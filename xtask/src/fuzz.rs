//! `fuzz`: the fuzz targets of vscan-proto and vscan-scan, by cargo-fuzz.

use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::run::{Cmd, root};

/// Runs the targets of these names, or all, for `seconds` each.
pub(crate) fn run(targets: &[String], seconds: u64) -> Result<()> {
    let mut ran = 0;
    for crate_dir in ["vscan-proto", "vscan-scan"] {
        let dir = root().join(crate_dir).join("fuzz");
        for target in targets_in(&dir)? {
            if !targets.is_empty() && !targets.contains(&target) {
                continue;
            }
            println!("fuzz: {crate_dir} {target}, {seconds} s");
            Cmd::new("cargo")
                .args(["+nightly", "fuzz", "run", "--fuzz-dir"])
                .arg(&dir)
                .arg(&target)
                .arg("--")
                .arg(format!("-max_total_time={seconds}"))
                .run()?;
            ran += 1;
        }
    }
    if ran == 0 {
        bail!("no such fuzz target");
    }
    Ok(())
}

fn targets_in(dir: &Path) -> Result<Vec<String>> {
    let targets = dir.join("fuzz_targets");
    if !targets.is_dir() {
        return Ok(Vec::new());
    }
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&targets).with_context(|| targets.display().to_string())? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "rs")
            && let Some(stem) = path.file_stem()
        {
            names.push(stem.to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

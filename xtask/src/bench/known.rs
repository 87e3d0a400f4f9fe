//! What a verdict takes without the network: for content that was seen before, and for a small message through the
//! scanner process and back.
//!
//! The measurements are an example program of `vscan-agent`, which is built here. The round trip is measured with a rule
//! that costs nothing, in turns with the shipped rules: the time beside the value is what these take in addition.

use anyhow::{Context, Result};

use crate::{
    Output,
    run::{Cmd, root, target_dir},
};

/// Content seen before: hashed and looked up, against plain BLAKE3.
const CACHED: &str = "cached-object";
/// It has to be hashed, and nothing else of it should show.
const CACHED_GOAL: f64 = 0.9;

/// A message of 2 KiB to the scanner process and back, by the median.
const ROUND_TRIP: &str = "scan-round-trip-2k";
/// Microseconds, beside what the rules take.
const ROUND_TRIP_GOAL: f64 = 100.0;

pub(super) const NAMES: [&str; 2] = [CACHED, ROUND_TRIP];

/// Runs those that are wanted.
pub(super) fn run(wanted: impl Fn(&str) -> bool, output: Output) -> Result<()> {
    if !NAMES.iter().any(|name| wanted(name)) {
        return Ok(());
    }
    // With both packages, so that nothing is built with other features than the programs were.
    Cmd::new("cargo")
        .args(["build", "--release", "--locked", "--quiet"])
        .args(["--package", "vscan-agent", "--package", "vscan-scan", "--example", "known"])
        .run()?;
    let release = target_dir().join("release");
    for name in NAMES.into_iter().filter(|name| wanted(name)) {
        let said = Cmd::new(release.join("examples/known"))
            .arg(name)
            .arg(release.join("vscan-scanner"))
            .arg(root().join("deploy/rules"))
            .output()
            .context(name)?;
        let figures: serde_json::Value = serde_json::from_str(said.trim()).context(name)?;
        let figure = |key: &str| figures[key].as_f64().with_context(|| format!("{name}: no {key}"));
        let (value, baseline) = (figure("value")?, figure("baseline")?);
        if name == CACHED {
            super::report(output, name, "MB/s", value, Some(baseline), Some(CACHED_GOAL));
        } else {
            let figures = [Some(value), Some(baseline), None, Some(ROUND_TRIP_GOAL)];
            super::print(output, name, "us", figures, value > ROUND_TRIP_GOAL);
        }
    }
    Ok(())
}

//! `bench`: speed and memory against plain forwarding.

use anyhow::{Result, bail};

use crate::Output;

/// Runs the benchmarks of these names, or all.
pub(crate) fn run(_names: &[String], _output: Output) -> Result<()> {
    bail!("not available")
}

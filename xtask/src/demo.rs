//! `demo`: the main job, shown in namespaces of its own.

use anyhow::{Result, bail};

use crate::Output;

/// Runs the demo; an outcome other than the expected one is an error.
pub(crate) fn run(_output: Output) -> Result<()> {
    bail!("not available")
}

/// Installs what the peers of the demo, the tests and the benchmarks need.
pub(crate) fn setup() -> Result<()> {
    crate::setup::install(PEERS)
}

/// The clients and servers of the demo, the tests and the benchmarks.
const PEERS: &[crate::setup::Need] = &[];

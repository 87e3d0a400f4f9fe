//! `test`: the unit tests of every crate, then the end-to-end tests.

use anyhow::Result;

use crate::run::Cmd;

/// End-to-end tests at one time; most of their time is waiting, also on few cores.
const SIDE_BY_SIDE: &str = "4";

/// Runs the tests whose names contain one of `filters`, or all.
pub(crate) fn run(filters: &[String]) -> Result<()> {
    crate::setup::run()?;
    crate::build::run(false)?;
    let cargo = |args: &[&str]| Cmd::new("cargo").args(["test", "--release"]).args(args);
    println!("test: unit tests");
    cargo(&["--workspace", "--exclude", "vscan-tests", "--"]).args(filters).run()?;
    cargo(&["--package", "vscan-tests", "--lib", "--"]).args(filters).run()?;
    println!("test: end to end");
    cargo(&["--package", "vscan-tests", "--test", "e2e", "--", "--test-threads", SIDE_BY_SIDE])
        .args(filters)
        .run()
}

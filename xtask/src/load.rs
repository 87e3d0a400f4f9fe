//! `load` and `unload`: the BPF programs and the nftables table alone, for a look.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::run::{Cmd, target_dir};

/// Puts the kernel state in place and leaves it there; without an agent it beats for nobody, so
/// new connections go by `on_agent_down`.
pub(crate) fn load(config: Option<&Path>, interfaces: &[String]) -> Result<()> {
    crate::build::run(false)?;
    let config = match config {
        Some(config) => config.to_owned(),
        None => write_config(interfaces)?,
    };
    example().arg("load").arg(&config).run()
}

/// Takes it away again.
pub(crate) fn unload(config: Option<&Path>) -> Result<()> {
    let config = config.map_or_else(made_config, Path::to_owned);
    example().arg("unload").arg(config).run()
}

/// The agent's own kernel code, without the agent.
fn example() -> Cmd {
    Cmd::new("cargo").args(["run", "--quiet", "--release", "--package", "vscan-agent"]).args([
        "--example",
        "kernel",
        "--",
    ])
}

fn made_config() -> PathBuf {
    target_dir().join("load/vscan.toml")
}

fn write_config(interfaces: &[String]) -> Result<PathBuf> {
    let path = made_config();
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    }
    // private networks are inside; open: without an agent traffic goes on
    let text = format!(
        "[gateway]\ninterfaces = {interfaces:?}\ninside = [\"10.0.0.0/8\", \"172.16.0.0/12\", \
         \"192.168.0.0/16\", \"fc00::/7\"]\non_agent_down = \"open\"\n"
    );
    fs::write(&path, text).with_context(|| path.display().to_string())?;
    Ok(path)
}

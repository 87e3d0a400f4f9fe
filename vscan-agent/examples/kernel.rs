//! `kernel load|unload CONFIG`: the kernel state of an agent without the agent, for a look. Used by `cargo xtask load`.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool")]

use std::{path::Path, process::ExitCode};

use anyhow::{Result, bail};
use vscan_agent::{
    config::{Config, OnAgentDown},
    kernel::{self, Kernel},
};

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .init();
    let args: Vec<String> = std::env::args().skip(1).collect();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[String]) -> Result<()> {
    match args {
        [command, file] if command == "load" => load(&Config::load(Path::new(file))?),
        [command, file] if command == "unload" => unload(&Config::load(Path::new(file))?),
        _ => bail!("usage: kernel load|unload CONFIG"),
    }
}

fn load(config: &Config) -> Result<()> {
    // dropped without uninstalling: it stays
    let kernel = Kernel::install(config)?;
    println!("loaded: {}", kernel.steering());
    let down = match config.gateway.on_agent_down {
        OnAgentDown::Open => "pass uninspected",
        OnAgentDown::Closed => "are refused",
    };
    println!("No agent runs: new connections to our ports {down} (gateway.on_agent_down).");
    println!("Look: `nft list table inet vscan`, `ip rule`, `bpftool net`.");
    Ok(())
}

fn unload(config: &Config) -> Result<()> {
    let removed = kernel::cleanup(config)?;
    if removed.is_empty() {
        println!("nothing of vscan is in the kernel");
    }
    for what in removed {
        println!("removed: {what}");
    }
    Ok(())
}

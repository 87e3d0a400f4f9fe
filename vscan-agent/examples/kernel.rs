//! `kernel load|unload CONFIG`: the kernel state of an agent without the agent, for a look. Used by `cargo xtask load`.

use std::path::PathBuf;

use anyhow::{Result, bail};
use vscan_agent::{
    config::Config,
    kernel::{self, Kernel},
};

#[expect(clippy::print_stdout, reason = "a command-line tool")]
fn main() -> Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .init();
    let mut args = std::env::args().skip(1);
    let (Some(command), Some(file)) = (args.next(), args.next().map(PathBuf::from)) else {
        bail!("usage: kernel load|unload CONFIG");
    };
    let config = Config::load(&file)?;
    match command.as_str() {
        "load" => {
            // dropped without uninstalling: it stays
            let kernel = Kernel::install(&config)?;
            println!("loaded: {}", kernel.steering());
            println!(
                "`nft list table inet vscan` and `bpftool net` show it; without an agent new connections go by on_agent_down"
            );
        }
        "unload" => {
            for line in kernel::cleanup(&config)? {
                println!("removed: {line}");
            }
        }
        _ => bail!("usage: kernel load|unload CONFIG"),
    }
    Ok(())
}

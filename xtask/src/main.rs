//! The developer's commands: `cargo xtask setup | build | load | unload | demo | test | bench | fuzz`.
//!
//! This file only parses the command line; each command lives in a module of its name.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool")]

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand, ValueEnum};

mod bench;
mod build;
mod demo;
mod fuzz;
mod load;
mod run;
mod setup;
mod test;

/// The developer's commands of vscan.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    Text,
    /// For programs.
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Find or install what building, the demo and the tests need.
    ///
    /// On Debian and Ubuntu by apt, as root; elsewhere it names what is missing. bpf-linker is built below target/.
    /// What is there already is left alone.
    Setup,
    /// Build target/release/vscan and vscan-scanner, with the BPF programs in it.
    Build {
        /// Build without the BPF programs: steering by nftables alone.
        #[arg(long)]
        no_bpf: bool,
        /// Build the BPF programs and nothing else.
        #[arg(long, conflicts_with = "no_bpf")]
        only_bpf: bool,
    },
    /// Put the BPF programs and the nftables table in place, without an agent, for a look.
    ///
    /// In the network namespace that it is run in, by root. `ip netns exec` hides /sys/fs/bpf: mount a BPF file system
    /// there first (`mount -t bpf bpf /sys/fs/bpf`), or nftables steers alone.
    Load {
        /// The configuration file; without it one is made from the interfaces named.
        #[arg(short, long)]
        config: Option<PathBuf>,
        /// The interfaces to guard, when there is no configuration file.
        #[arg(required_unless_present = "config")]
        interfaces: Vec<String>,
    },
    /// Take away what `load` put in place.
    Unload {
        /// The configuration file that was loaded.
        #[arg(short, long)]
        config: Option<PathBuf>,
    },
    /// Show the main job in namespaces: clean and infected files and mails through a gateway.
    ///
    /// Runs `setup` and `build` first. Fails when an outcome is not the expected one.
    Demo {
        /// text, or one JSON array of the steps at the end.
        #[arg(short, long, value_enum, default_value_t = Output::Text)]
        output: Output,
    },
    /// Run the unit tests of every crate, then the end-to-end tests.
    ///
    /// Runs `setup` and `build` first.
    Test {
        /// Only tests whose name contains one of these.
        filters: Vec<String>,
    },
    /// Measure speed and memory against plain forwarding.
    ///
    /// Runs `setup` and `build` first. Figures mean something on a machine that does nothing else.
    Bench {
        /// Only the benchmarks of these names; those that end in -synthetic run only when they are named.
        names: Vec<String>,
        /// text, or one JSON object a line.
        #[arg(short, long, value_enum, default_value_t = Output::Text)]
        output: Output,
    },
    /// Run the fuzz targets for a while each, several at a time.
    ///
    /// Builds cargo-fuzz below target/ where there is none, and compiles with a nightly toolchain or, where there is none,
    /// with the pinned one. What is found stays below target/fuzz.
    Fuzz(fuzz::Options),
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Setup => setup::run(),
        Command::Build { only_bpf: true, .. } => build::bpf(),
        Command::Build { no_bpf, .. } => build::run(no_bpf),
        Command::Load { config, interfaces } => load::load(config.as_deref(), &interfaces),
        Command::Unload { config } => load::unload(config.as_deref()),
        Command::Demo { output } => demo::run(output),
        Command::Test { filters } => test::run(&filters),
        Command::Bench { names, output } => bench::run(&names, output),
        Command::Fuzz(options) => fuzz::run(&options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

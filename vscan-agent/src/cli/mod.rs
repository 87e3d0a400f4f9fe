//! Subcommands and their output: the only place that prints.
//!
//! What comes from the wire is made harmless before it reaches a terminal; JSON has it as it is, escaped by JSON.

pub mod args;
mod check;
mod client;
mod doctor;
mod failure;
pub mod filter;
mod flows;
mod mailbox;
mod notices;
mod pages;
mod quarantine;
mod rules;
mod scan;
mod senders;
mod status;
mod table;

use crate::config::{Config, ConfigErrors};
use crate::observe::{control::Request, logging};
use crate::supervisor::channel::Duty;
use crate::{gateway, notify, supervisor};
use args::{Cli, Command, MailboxCommand};
use clap::Parser;
use failure::{EX_USAGE, Failure};
use serde::Serialize;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

/// Runs the program: reads its arguments, does what they say, and gives the exit code.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            // nobody left to tell
            let _ = e.print();
            return if e.use_stderr() { ExitCode::from(EX_USAGE) } else { ExitCode::SUCCESS };
        }
    };
    match dispatch(&cli) {
        Ok(code) => code,
        Err(failure) => {
            if !failure.message.is_empty() {
                let _ = writeln!(io::stderr().lock(), "vscan: {failure}");
            }
            ExitCode::from(failure.code)
        }
    }
}

fn dispatch(cli: &Cli) -> Result<ExitCode, Failure> {
    let config = || Config::load(&cli.config);
    let control = || match &cli.control {
        Some(path) => Ok::<_, Failure>(path.clone()),
        None => Ok(Config::control_socket(&cli.config)?),
    };
    let mut stdout = io::BufWriter::new(io::stdout().lock());
    let out = &mut stdout;
    match &cli.command {
        Command::Run => {
            logging::init(&config()?.log);
            return Ok(supervisor::run(&cli.config, Duty::Everything));
        }
        Command::Mailbox(MailboxCommand::Run) => {
            logging::init(&config()?.log);
            return Ok(supervisor::run(&cli.config, Duty::Mailboxes));
        }
        Command::Mailbox(command) => {
            let code = mailbox::run(command, &control()?, cli.output, out)?;
            out.flush()?;
            return Ok(ExitCode::from(code));
        }
        Command::Gateway => return Ok(gateway::process::main()),
        Command::Check => check::run(&cli.config, cli.output, out)?,
        Command::Status => status::run(&control()?, cli.output, out)?,
        Command::Flows(args) if args.top_senders => {
            senders::run(args.last, &control()?, cli.output, out)?;
        }
        Command::Flows(args) => flows::run(args, &control()?, cli.output, out)?,
        Command::Kill { ids } => {
            let control = control()?;
            for id in ids {
                client::ask_once(&control, &Request::Kill { id: *id })?;
                writeln!(out, "{id} is ended")?;
            }
        }
        Command::Unblock { hosts } => {
            let control = control()?;
            for host in hosts {
                client::ask_once(&control, &Request::Unblock { host: *host })?;
                writeln!(out, "{host} may send again")?;
            }
        }
        Command::Scan(args) => {
            // without a configuration the defaults serve: scanning needs no gateway
            let config = match config() {
                Err(ConfigErrors::Unreadable { .. }) if !args.rules.is_empty() => {
                    Config::defaults()
                }
                other => other?,
            };
            let code = scan::run(args, &config, cli.output, out)?;
            out.flush()?;
            return Ok(ExitCode::from(code));
        }
        Command::Quarantine { directory, command } => {
            let directory: PathBuf = match directory {
                Some(path) => path.clone(),
                None => config()?.paths.quarantine,
            };
            quarantine::run(&directory, command, cli.output, out)?;
        }
        Command::Notices { command } => {
            let queue = || Ok(config()?.paths.state_dir.join(notify::QUEUE_FILE));
            notices::run(&control()?, &queue, command, cli.output, out)?;
        }
        Command::Rules(command) => {
            let config = match config() {
                Err(ConfigErrors::Unreadable { .. }) => Config::defaults(),
                other => other?,
            };
            let code = rules::run(command, &config, &control, cli.output, out)?;
            out.flush()?;
            return Ok(ExitCode::from(code));
        }
        Command::Reload => {
            client::ask_once(&control()?, &Request::Reload)?;
            writeln!(out, "configuration and rules are reloaded")?;
        }
        Command::Doctor => doctor::run(&config()?, cli.output, out)?,
        Command::Cleanup => {
            // also after the configuration is gone: then what the defaults would have made
            let config = match config() {
                Err(ConfigErrors::Unreadable { .. }) => Config::defaults(),
                other => other?,
            };
            doctor::cleanup(&config, cli.output, out)?;
        }
        Command::Completions { shell } => pages::completions(*shell, out),
        Command::Man { directory } => pages::manual(directory.as_deref(), out)?,
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

/// One JSON document and a line end.
fn json(value: &(impl Serialize + ?Sized), out: &mut dyn Write) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *out, value)?;
    writeln!(out)
}

//! Completion scripts and manual pages, made from the command line's own description.

use super::args::Cli;
use super::failure::{EX_CANTCREAT, Failure};
use clap::CommandFactory;
use clap_complete::Shell;
use std::io::{self, Write};
use std::path::Path;

pub(super) fn completions(shell: Shell, out: &mut dyn Write) {
    clap_complete::generate(shell, &mut Cli::command(), "vscan", &mut { out });
}

pub(super) fn manual(directory: Option<&Path>, out: &mut dyn Write) -> Result<(), Failure> {
    let Some(directory) = directory else {
        return Ok(page(Cli::command(), out)?);
    };
    let cannot =
        |path: &Path, e: io::Error| Failure::new(EX_CANTCREAT, format!("{}: {e}", path.display()));
    std::fs::create_dir_all(directory).map_err(|e| cannot(directory, e))?;
    let mut todo = vec![(Cli::command(), "vscan".to_owned())];
    while let Some((command, name)) = todo.pop() {
        for sub in command.get_subcommands().filter(|s| !s.is_hide_set() && s.get_name() != "help")
        {
            todo.push((sub.clone(), format!("{name}-{}", sub.get_name())));
        }
        let path = directory.join(format!("{name}.1"));
        let mut text = Vec::new();
        let static_name: &'static str = Box::leak(name.into_boxed_str());
        page(command.name(static_name).display_name(static_name), &mut text)?;
        std::fs::write(&path, text).map_err(|e| cannot(&path, e))?;
        writeln!(out, "{}", path.display())?;
    }
    Ok(())
}

fn page(command: clap::Command, out: &mut dyn Write) -> io::Result<()> {
    clap_mangen::Man::new(command).section("1").manual("vscan").render(&mut { out })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_subcommand_has_a_page() {
        let directory = tempfile::tempdir().unwrap();
        let mut out = Vec::new();
        manual(Some(directory.path()), &mut out).unwrap();
        let listed = String::from_utf8(out).unwrap();
        for name in ["vscan.1", "vscan-flows.1", "vscan-quarantine-release.1"] {
            assert!(listed.contains(name), "{listed}");
            let text = std::fs::read_to_string(directory.path().join(name)).unwrap();
            assert!(text.contains(".SH SYNOPSIS"), "{text}");
        }
        assert!(!listed.contains("gateway"));
    }

    #[test]
    fn completions_know_the_filters() {
        let mut out = Vec::new();
        completions(Shell::Bash, &mut out);
        assert!(String::from_utf8(out).unwrap().contains("--from-ip"));
    }
}

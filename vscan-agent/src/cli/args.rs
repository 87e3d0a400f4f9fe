//! The command line: subcommands, options, and what they are called in help and manual pages.

use super::filter::Filters;
use crate::config::DEFAULT_PATH;
use crate::observe::FlowId;
use crate::quarantine::EntryId;
use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};
use std::path::PathBuf;

/// Transparent antivirus gateway for FTP and SMTP.
///
/// vscan runs on a Linux router. It catches the FTP and SMTP connections that cross it, takes files and messages out of
/// them, scans them, and lets them through, blocks or quarantines them, as its configuration says. Nothing changes on
/// the clients and servers.
#[derive(Debug, Parser)]
#[command(name = "vscan", version, propagate_version = true, arg_required_else_help = true)]
#[command(after_long_help = "\
Exit codes are those of sysexits.h: 0 done, 64 wrong usage, 65 rules that do not compile, 66 a file that cannot be read, \
69 no agent answers or something that is needed is missing, 70 a defect, 71 the operating system refused, \
73 something cannot be written, 74 reading or writing failed, 75 not while an agent runs, 77 no permission, \
78 a wrong configuration. `vscan scan` has codes of its own.")]
pub struct Cli {
    /// Configuration file.
    #[arg(short, long, global = true, value_name = "PATH", default_value = DEFAULT_PATH)]
    #[arg(value_hint = ValueHint::FilePath, env = "VSCAN_CONFIG")]
    pub config: PathBuf,

    /// Control socket of the running gateway, instead of the configured one.
    #[arg(long, global = true, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub control: Option<PathBuf>,

    /// How listings look.
    #[arg(short, long, global = true, value_name = "FORMAT", default_value = "table")]
    pub output: Output,

    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// How listings look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Aligned columns for people.
    Table,
    /// One line each, every field in full.
    Compact,
    /// JSON: one array, or one object a line with --follow.
    Json,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the gateway.
    ///
    /// Installs the kernel state, starts the gateway and the scanner and watches them. Says READY=1 to systemd when
    /// connections are steered. SIGHUP reloads, SIGTERM lets sessions end (gateway.drain) and removes the kernel state.
    Run,

    /// The gateway process; started by `vscan run`.
    #[command(hide = true)]
    Gateway,

    /// Check configuration, rules and interfaces; change nothing.
    Check,

    /// Show how the running gateway fares.
    Status,

    /// List the flows: open ones, the last that ended, and those that pass uninspected.
    ///
    /// Filters of one kind are alternatives, filters of different kinds must all match. --not reverses the filter that
    /// follows it.
    Flows(FlowsArgs),

    /// Scan mail where it lies, on a mail server, by IMAP: the sections [mailbox.NAME] of the configuration.
    #[command(subcommand)]
    Mailbox(MailboxCommand),

    /// End flows: both sides of the connection are reset.
    Kill {
        /// Flows, as `vscan flows` shows them.
        #[arg(required = true, value_name = "ID")]
        ids: Vec<FlowId>,
    },

    /// Let hosts send mail again that were blocked for having sent too much; `vscan flows --top-senders` lists them.
    Unblock {
        /// Their addresses.
        #[arg(required = true, value_name = "ADDRESS")]
        hosts: Vec<std::net::IpAddr>,
    },

    /// Scan files with the gateway's scanner; no agent is needed.
    ///
    /// Reads archives and mail as the gateway does, and asks the clamd of [scan.clamd] too. Links that are named are
    /// followed, those in directories are not; neither they nor devices, pipes and sockets are scanned, and a summary
    /// tells how many there were. A file that cannot be read is an error and stops nothing.
    ///
    /// Exit codes: 0 all clean, 1 something is infected, 2 errors (a file or the scanner failed), 3 something is
    /// unscannable (encrypted, over a limit, broken); where there is more than one, the first of 1, 3, 2. 78: the rules
    /// or limits are wrong.
    ///
    /// With -o json one array with a document for each file: its parts with their types, sizes and hashes, findings
    /// with rule, tags, metadata and offset, what was not read and why, and the time that it took.
    Scan(ScanArgs),

    /// Look at what was blocked and kept; no agent is needed.
    Quarantine {
        /// Directory of the quarantine, instead of the configured one.
        #[arg(long, value_name = "PATH", value_hint = ValueHint::DirPath, global = true)]
        directory: Option<PathBuf>,

        /// What to do with it.
        #[command(subcommand)]
        command: QuarantineCommand,
    },

    /// Look at the notices that wait for the relay and at those that were given up.
    ///
    /// Works with the running gateway, or on the queue's file while none runs.
    Notices {
        /// What to do with them.
        #[command(subcommand)]
        command: NoticesCommand,
    },

    /// Compile, list and try rules; no agent is needed.
    #[command(subcommand)]
    Rules(RulesCommand),

    /// Make the running gateway read configuration and rules again; what is wrong changes nothing.
    Reload,

    /// Say what this machine offers, what is missing, and what would be in the way.
    Doctor,

    /// Remove every trace of vscan from the kernel: its nftables table, rules, routes and pins.
    Cleanup,

    /// Print a completion script.
    Completions {
        /// For this shell.
        shell: clap_complete::Shell,
    },

    /// Print the manual page, or write all of them.
    Man {
        /// Write the pages of all subcommands into this directory.
        #[arg(long, value_name = "PATH", value_hint = ValueHint::DirPath)]
        directory: Option<PathBuf>,
    },
}

/// `vscan flows`
#[derive(Debug, Args)]
pub struct FlowsArgs {
    /// Instead of flows, list the hosts inside by what they send by mail, the busiest first; see `[outbound]`.
    #[arg(long, conflicts_with_all = ["follow", "since"])]
    pub top_senders: bool,

    /// Go on with each change as it happens.
    #[arg(short, long)]
    pub follow: bool,

    /// Only the last N that match; of senders, the first N.
    #[arg(short = 'n', long, value_name = "N")]
    pub last: Option<usize>,

    /// Only those that were active since a time (2026-11-22T01:30:00Z) or for this long (5m).
    #[arg(long, value_name = "TIME")]
    pub since: Option<super::filter::Since>,

    /// What to list.
    #[command(flatten)]
    pub filters: Filters,
}

/// `vscan scan`
#[derive(Debug, Args)]
pub struct ScanArgs {
    /// Rules to scan with, files or directories, instead of the configured ones; may be given more than once.
    #[arg(long, value_name = "PATH", value_hint = ValueHint::AnyPath)]
    pub rules: Vec<PathBuf>,

    /// Read every file as a mail message, not only those that are called .eml.
    #[arg(long)]
    pub message: bool,

    /// Show only what is not clean.
    #[arg(short, long)]
    pub quiet: bool,

    /// Files, directories with all that is in them, and - for standard input.
    #[arg(required = true, value_name = "PATH", value_hint = ValueHint::AnyPath)]
    pub paths: Vec<PathBuf>,
}

/// `vscan rules`
#[derive(Debug, Subcommand)]
pub enum RulesCommand {
    /// Compile rules into a bundle, which loads in a fraction of the time.
    ///
    /// A bundle is bound to this machine: to its processor, to this version of vscan, and by a hash to the secret in
    /// scan.rules_key, which is made if there is none. Name the bundle in scan.rules instead of the files.
    Build {
        /// Files and directories of rules as text, instead of the configured ones; may be given more than once.
        #[arg(long, value_name = "PATH", value_hint = ValueHint::AnyPath)]
        rules: Vec<PathBuf>,

        /// The bundle to write; its name ends in .vrb. It replaces an older one at once, or not at all.
        #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
        to: PathBuf,
    },

    /// Make one list of lists of hashes, for millions of them: it is mapped, not read.
    ///
    /// Lines are `HASH [SIZE] [NAME]`, with blanks or colons between them, as ClamAV's .hdb and .hsb and the output of
    /// sha256sum have it: SHA-256, SHA-1 or MD5. A size spares hashing whatever has another one.
    Hashes {
        /// The lists.
        #[arg(required = true, value_name = "PATH", value_hint = ValueHint::FilePath)]
        lists: Vec<PathBuf>,

        /// The list to write; its name ends in .vhl. It replaces an older one at once, or not at all.
        #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
        to: PathBuf,
    },

    /// Show what is loaded: what each file holds, how many of the rules run on which objects, how old they are, and what
    /// of ClamAV's signatures is not used, by the reason.
    List {
        /// Files and directories of rules, instead of the configured ones; may be given more than once.
        #[arg(long, value_name = "PATH", value_hint = ValueHint::AnyPath)]
        rules: Vec<PathBuf>,

        /// Name all of ClamAV's signatures that are not used; bytecode has no names.
        #[arg(long)]
        skipped: bool,
    },

    /// Try rules on clean files: what they find there, and the time that each of them takes.
    ///
    /// Exit codes: 0 nothing is found, 1 a rule finds something in a clean file, 2 a file could not be scanned, 65 the
    /// rules do not compile.
    Test {
        /// Rules to try, files or directories, instead of the configured ones; may be given more than once.
        #[arg(long, value_name = "PATH", value_hint = ValueHint::AnyPath)]
        rules: Vec<PathBuf>,

        /// Directories of clean files, instead of scan.update.corpus; may be given more than once. Without any the
        /// rules are compiled only.
        #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
        corpus: Vec<PathBuf>,

        /// Measure each YARA rule by itself, and show the N that take most of the time; 0: measure nothing. Each is
        /// compiled by itself for that, which takes a minute for thousands.
        #[arg(long, value_name = "N", default_value = "10")]
        slowest: usize,
    },

    /// Fetch a new set of rules and put it in force, or bring back the former one.
    ///
    /// The set is an archive (tar, tar.gz), a directory or one file of signatures. It is fetched, its checksum
    /// (SOURCE.sha256; in a directory SHA256SUMS) and signature (SOURCE.minisig) are checked, it is loaded together with
    /// all other rules, and tried on clean files. Only then it takes the place of the former one, at once, and the
    /// running gateway reloads; if it cannot, the former set comes back. A set that was rolled back is not taken again.
    ///
    /// Exit codes: 0 the set is in force or was already, 65 it is not what it should be, does not load, or finds
    /// something in clean files, 69 it cannot be fetched, 75 another update is under way.
    Update(UpdateArgs),
}

/// `vscan rules update`
#[derive(Debug, Args)]
pub struct UpdateArgs {
    /// Where the set comes from, instead of scan.update.source: a path, or a URL of https, http or file.
    #[arg(long, value_name = "SOURCE")]
    pub from: Option<String>,

    /// The SHA-256 that the set has to have.
    #[arg(long, value_name = "HEX")]
    pub sha256: Option<String>,

    /// The minisign public key that the set has to be signed with, instead of scan.update.public_key.
    #[arg(long, value_name = "KEY")]
    pub public_key: Option<String>,

    /// Directories of clean files, instead of scan.update.corpus; may be given more than once.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub corpus: Vec<PathBuf>,

    /// Take also a set that is in force already, is older than that, or was rolled back.
    #[arg(long)]
    pub force: bool,

    /// Bring back the set that the one in force replaced.
    #[arg(long, conflicts_with_all = ["from", "sha256", "public_key", "corpus", "force"])]
    pub rollback: bool,

    /// Leave a running gateway with the rules that it has, until the next reload.
    #[arg(long)]
    pub no_reload: bool,
}

/// `vscan quarantine`
#[derive(Debug, Subcommand)]
pub enum QuarantineCommand {
    /// List all entries, the oldest first.
    List,

    /// Show everything about an entry.
    Show {
        /// The entry, as `list` shows it.
        id: EntryId,
    },

    /// Write a copy of an entry to a file, and note it in the audit trail.
    ///
    /// The entry stays. A second release to the same file does nothing.
    Release {
        /// The entry, as `list` shows it.
        id: EntryId,

        /// The file to write; it must not exist.
        #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
        to: PathBuf,
    },

    /// Delete entries.
    Delete {
        /// The entries, as `list` shows them.
        #[arg(required = true, value_name = "ID")]
        ids: Vec<EntryId>,
    },
}

/// `vscan mailbox`
#[derive(Debug, Subcommand)]
pub enum MailboxCommand {
    /// Scan the mailboxes of the configuration, and nothing else.
    ///
    /// Needs no privilege: any user can run it for his own account, with a configuration that has no `[gateway]`. Where one
    /// runs with the same configuration, `vscan run` scans its mailboxes already. SIGHUP reloads, SIGTERM ends it after the
    /// messages in hand.
    Run,

    /// List the accounts: what they do, what was scanned and found, what is left to do, and the last error.
    Status {
        /// Only accounts whose name contains this.
        #[arg(value_name = "NAME")]
        name: Option<String>,

        /// With the folders of each.
        #[arg(short, long)]
        folders: bool,
    },

    /// Scan all messages of a mailbox or a folder now, read ones too, by the running agent.
    ///
    /// Exit codes: 0 all clean, 1 something is infected, 2 something could not be scanned.
    Scan {
        /// The account, as `status` shows it, or one of its folders.
        #[arg(value_name = "ACCOUNT[/FOLDER]")]
        what: String,

        /// Only say what would be done.
        #[arg(long)]
        dry_run: bool,
    },
}

/// `vscan notices`
#[derive(Debug, Subcommand)]
pub enum NoticesCommand {
    /// List all notices, the oldest first.
    List,

    /// Show everything about a notice, with its text.
    Show {
        /// The notice, as `list` shows it.
        id: u64,
    },

    /// Try notices again at once; those that were given up get their whole time anew.
    Retry {
        /// The notices, as `list` shows them; none: all.
        #[arg(value_name = "ID")]
        ids: Vec<u64>,
    },

    /// Delete notices: nobody is told.
    Delete {
        /// The notices, as `list` shows them.
        #[arg(required = true, value_name = "ID")]
        ids: Vec<u64>,
    },
}

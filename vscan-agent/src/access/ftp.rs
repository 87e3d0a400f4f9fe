//! FTP: which user may give which command.

use super::{Match, Rules};
use crate::config::{Access, CommandGroup, Commands, Permission};
use vscan_proto::ftp::Permit;

impl Permit for Rules {
    fn login(&self, user: &[u8]) -> bool {
        self.decide(|rule| match (permits_name(rule, Some(user)), rule.commands.is_empty()) {
            (false, _) => Match::No,
            (true, true) => Match::Yes,
            (true, false) => Match::Maybe,
        })
    }

    fn command(&self, user: Option<&[u8]>, verb: &[u8], argument: &[u8]) -> bool {
        let verb = verb.to_ascii_uppercase();
        let Some(needs) = needs(&verb, argument) else { return true };
        self.decide(|rule| {
            let named = rule.commands.is_empty()
                || rule
                    .commands
                    .iter()
                    .any(|c| matches!(c, Commands::Verb(v) if v.as_bytes() == verb));
            let group = |group: &CommandGroup| rule.commands.contains(&Commands::Group(*group));
            let covered = match (needs, rule.action) {
                // one group that is forbidden is enough, one that is permitted is not
                (Needs::All(groups), Permission::Deny) => groups.iter().any(group),
                (Needs::All(groups), Permission::Allow) => groups.iter().all(group),
                // and the other way round for what serves several purposes
                (Needs::Any(groups), Permission::Deny) => groups.iter().all(group),
                (Needs::Any(groups), Permission::Allow) => groups.iter().any(group),
            };
            if permits_name(rule, user) && (named || covered) { Match::Yes } else { Match::No }
        })
    }
}

/// Whether a rule holds for this user, as far as its name goes.
///
/// A name that a server may read as another one (white space around it, control characters) is in nobody's favour: each
/// rule that denies holds for it, and none that allows.
fn permits_name(rule: &Access, user: Option<&[u8]>) -> bool {
    if rule.user.is_empty() {
        return true;
    }
    let Some(user) = user else { return false };
    let text = String::from_utf8_lossy(user);
    if text.trim() != text || text.chars().any(char::is_control) || text.is_empty() {
        return rule.action == Permission::Deny;
    }
    rule.user.iter().any(|glob| glob.matches(&text))
}

/// What a command does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Needs {
    /// All of this.
    All(&'static [CommandGroup]),
    /// One of these purposes.
    Any(&'static [CommandGroup]),
}

/// Commands of the dialogue itself, which touch no file.
const FREE: &[&[u8]] = &[
    b"USER", b"PASS", b"ACCT", b"REIN", b"QUIT", b"AUTH", b"ADAT", b"PBSZ", b"PROT", b"CCC",
    b"MIC", b"CONF", b"ENC", b"HOST", b"CLNT", b"CSID", b"LANG", b"FEAT", b"OPTS", b"HELP",
    b"SYST", b"NOOP", b"TYPE", b"MODE", b"STRU", b"PASV", b"EPSV", b"PORT", b"EPRT", b"LPRT",
    b"LPSV", b"CPSV", b"REST", b"ALLO", b"ABOR", b"CWD", b"XCWD", b"CDUP", b"XCUP", b"PWD",
    b"XPWD",
];

const READ: &[&[u8]] = &[
    b"RETR", b"ERET", b"HASH", b"XCRC", b"XMD5", b"XSHA", b"XSHA1", b"XSHA256", b"XSHA512", b"MD5",
    b"MMD5",
];

const WRITE: &[&[u8]] = &[
    b"STOR", b"STOU", b"APPE", b"ESTO", b"MKD", b"XMKD", b"RNFR", b"RNTO", b"MFMT", b"MFCT",
    b"MFF", b"SMNT",
];

const DELETE: &[&[u8]] = &[b"DELE", b"RMD", b"XRMD", b"RMDA"];

const LIST: &[&[u8]] = &[b"LIST", b"NLST", b"MLSD", b"STAT", b"AVBL", b"DSIZ"];

/// Facts about a file, which clients ask for before they transfer or list it.
const FACTS: &[&[u8]] = &[b"SIZE", b"MDTM", b"MLST", b"THMB"];

/// What a command in capitals needs; none: nothing.
fn needs(verb: &[u8], argument: &[u8]) -> Option<Needs> {
    use CommandGroup::{Delete, List, Read, Write};
    let is = |list: &[&[u8]]| list.contains(&verb);
    if is(FREE) || verb == b"STAT" && argument.trim_ascii().is_empty() {
        return None;
    }
    // MDTM YYYYMMDDHHMMSS name: sets the time, on servers that know no MFMT
    let stamp = argument.iter().take_while(|byte| byte.is_ascii_digit()).count();
    if verb == b"MDTM" && stamp == 14 && argument.get(14) == Some(&b' ') {
        return Some(Needs::All(&[Write]));
    }
    Some(if is(READ) {
        Needs::All(&[Read])
    } else if is(WRITE) {
        Needs::All(&[Write])
    } else if is(DELETE) {
        Needs::All(&[Delete])
    } else if is(LIST) {
        Needs::All(&[List])
    } else if is(FACTS) {
        Needs::Any(&[Read, List, Write])
    } else {
        // SITE and whatever else a server may know
        Needs::All(&[Read, Write, Delete, List])
    })
}

//! Real servers and clients, as private copies with private configuration.
//!
//! [`install`] takes Debian packages apart under `target/peers/root`; every [`crate::host::Host`] lays that
//! over its `/usr` and `/etc`. Nothing is installed on the machine, and no service of it is started,
//! stopped or configured.

mod aiosmtpd;
mod clamd;
mod cyrus;
mod dovecot;
mod exim;
mod opensmtpd;
mod postfix;
mod proftpd;
mod pureftpd;
mod pyftpd;
mod smtp_sink;
mod vsftpd;

pub use aiosmtpd::Aiosmtpd;
pub use clamd::{CLAMD_NAME, CLAMD_ONLY, CLAMD_STREAM_MAX, Clamd};
pub use cyrus::Cyrus;
pub use dovecot::Dovecot;
pub use exim::{Exim, EximRelay};
pub use opensmtpd::{OpenSmtpd, OpenSmtpdRelay};
pub use postfix::{Postfix, PostfixRelay};
pub use proftpd::ProFtpd;
pub use pureftpd::PureFtpd;
pub use pyftpd::PyFtpd;
pub use smtp_sink::SmtpSink;
pub use vsftpd::Vsftpd;

use crate::host::{Host, Output, output};
use anyhow::{Context, Result, ensure};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use std::time::Duration;

/// What the peers come from. Their dependencies are fetched too, as far as the machine lacks them.
///
/// Packages that conflict, as servers of one kind do, are in different sets: each set is fetched by
/// itself, and all are unpacked side by side.
pub const PACKAGES: &[&[&str]] = &[
    &[
        "clamav",
        "clamav-daemon",
        "curl",
        "dovecot-imapd",
        "haproxy",
        "lftp",
        "libio-socket-inet6-perl",
        "libnet-ssleay-perl",
        "msmtp",
        "ncftp",
        "openssl",
        "postfix",
        "python3",
        "python3-aiosmtpd",
        "python3-pyftpdlib",
        "swaks",
        "tnftp",
        "vsftpd",
        "wget",
    ],
    &["cyrus-imapd", "libsasl2-modules-db", "sasl2-bin"],
    &["exim4-daemon-light"],
    &["opensmtpd"],
    &["proftpd-core", "proftpd-mod-crypto"],
    &["pure-ftpd"],
];

/// Fetching packages takes at most this long.
const FETCH_LIMIT: Duration = Duration::from_secs(600);

/// Users that the servers run as, where the machine does not have them: name and number.
const USERS: &[(&str, u32)] = &[
    ("alice", ALICE),
    ("bob", BOB),
    ("postfix", 30_103),
    ("postdrop", 30_104),
    ("Debian-exim", 30_105),
    ("opensmtpd", 30_106),
    ("opensmtpq", 30_107),
    ("dovecot", 30_108),
    ("dovenull", 30_109),
    ("cyrus", 30_110),
];

/// The FTP user.
pub(crate) const ALICE: u32 = 30_101;

/// `secret`, hashed as crypt(3) does it.
const SECRET_HASH: &str = "$6$vscanlab$ZaHNX/0tnClwk8LQDNv.9VnpYw5ffdeVe2RwmZuOWMJQc1IUrdaWzecOvbHKRiZfsZ6D4B959OOCSvX5U3nCZ0";

/// The owner of mailboxes.
pub(crate) const BOB: u32 = 30_102;

/// The user and group whose files mailboxes are, for who puts mail straight into one.
pub const MAIL_OWNER: u32 = BOB;

/// The directory that cargo builds into (the one with `release/`), found from the running program.
pub fn target_dir() -> PathBuf {
    static DIR: LazyLock<PathBuf> = LazyLock::new(|| {
        let exe = std::env::current_exe().unwrap_or_default();
        exe.ancestors()
            .find(|dir| dir.file_name().is_some_and(|name| name == "release" || name == "debug"))
            .and_then(Path::parent)
            .map_or_else(|| PathBuf::from("target"), Path::to_path_buf)
    });
    DIR.clone()
}

/// Where the private copies are.
pub fn root() -> PathBuf {
    target_dir().join("peers/root")
}

/// Fetches and unpacks what is missing, once per process and silently: what a lab needs.
pub(crate) fn ready() -> Result<()> {
    static READY: LazyLock<Result<(), String>> =
        LazyLock::new(|| install(&mut |_| ()).map_err(|error| format!("{error:#}")));
    READY.clone().map_err(anyhow::Error::msg)
}

/// Fetches and unpacks what is missing; `say` hears what is done. Nothing to do is the usual case.
pub fn install(say: &mut dyn FnMut(&str)) -> Result<()> {
    let root = root();
    let stamp = root.join(".packages");
    let wanted = PACKAGES.concat().join(" ");
    if fs::read_to_string(&stamp).is_ok_and(|have| have == wanted) {
        return Ok(());
    }
    ensure!(
        Path::new("/usr/bin/apt-get").exists(),
        "the tests' servers and clients come from Debian packages, and there is no apt-get here: \
         on Debian or Ubuntu they are fetched by themselves ({wanted})"
    );
    let debs = target_dir().join("peers/debs");
    for dir in [&root, &debs] {
        if dir.exists() {
            fs::remove_dir_all(dir)?;
        }
    }
    fs::create_dir_all(debs.join("partial"))?;
    say(&format!("fetching private copies of {wanted} into {}", root.display()));
    let fetch = |set: &[&str]| {
        let mut command = Command::new("apt-get");
        command
            .args(["--yes", "--no-install-recommends", "--download-only", "-o"])
            .arg(format!("Dir::Cache::archives={}", debs.display()))
            .arg("install")
            .args(set)
            .env("DEBIAN_FRONTEND", "noninteractive");
        output(command, None, FETCH_LIMIT)
    };
    for set in PACKAGES {
        let mut fetched = fetch(set)?;
        if !fetched.success() {
            say("apt-get update");
            let mut update = Command::new("apt-get");
            update.arg("update");
            output(update, None, FETCH_LIMIT)?;
            fetched = fetch(set)?;
        }
        ensure!(fetched.success(), "apt-get: {}", fetched.err);
    }

    // The layout of a merged-/usr system, so that /lib of an old package lands in /usr/lib.
    for dir in ["bin", "lib", "lib64", "sbin"] {
        fs::create_dir_all(root.join("usr").join(dir))?;
        std::os::unix::fs::symlink(format!("usr/{dir}"), root.join(dir))?;
    }
    fs::create_dir_all(root.join("etc/pam.d"))?;
    for entry in fs::read_dir(&debs)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            // `dpkg -x` would replace the links by directories.
            let script =
                "dpkg-deb --fsys-tarfile \"$1\" | tar -x --keep-directory-symlink -C \"$2\"";
            let mut unpack = Command::new("sh");
            unpack.args(["-e", "-c", script, "unpack"]).arg(&path).arg(&root);
            let Output { status, err, .. } = output(unpack, None, FETCH_LIMIT)?;
            ensure!(status.success(), "cannot unpack {}: {err}", path.display());
        }
    }
    fs::write(
        root.join("etc/pam.d/vscan-lab"),
        "auth required pam_permit.so\naccount required pam_permit.so\nsession required pam_permit.so\n",
    )?;
    fs::write(stamp, wanted)?;
    Ok(())
}

/// The number of a user or group on this host.
pub(crate) fn id(host: &Host, table: &str, name: &str) -> Result<u32> {
    let table = fs::read_to_string(host.dir().join("etc").join(table))?;
    table
        .lines()
        .filter_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .find_map(|rest| rest.split(':').nth(1)?.parse().ok())
        .with_context(|| format!("no {name} on {}", host.name()))
}

/// All files of a Maildir's `new`, in no order.
fn maildir(inbox: &Path) -> Result<Vec<Vec<u8>>> {
    let new = inbox.join("new");
    if !new.exists() {
        return Ok(Vec::new());
    }
    fs::read_dir(new)?.map(|entry| Ok(fs::read(entry?.path())?)).collect()
}

/// Writes `passwd` and `group` for a host: the machine's, and the peers' users.
pub(crate) fn users(etc: &Path) -> Result<()> {
    let mut passwd = fs::read_to_string("/etc/passwd").context("/etc/passwd")?;
    let mut group = fs::read_to_string("/etc/group").context("/etc/group")?;
    let known =
        |table: &str, name: &str| table.lines().any(|line| line.starts_with(&format!("{name}:")));
    for (name, id) in USERS {
        if !known(&passwd, name) {
            writeln!(passwd, "{name}:x:{id}:{id}::/:/bin/sh")?;
        }
        if !known(&group, name) {
            writeln!(group, "{name}:x:{id}:")?;
        }
    }
    fs::write(etc.join("passwd"), passwd)?;
    fs::write(etc.join("group"), group)?;
    Ok(())
}

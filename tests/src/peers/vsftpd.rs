//! vsftpd, for user `alice` with any password.

use super::ALICE;
use crate::host::{Host, Process};
use anyhow::Result;
use std::fs;
use std::path::PathBuf;

/// A running vsftpd on port 21 (or another), both families.
#[derive(Debug)]
pub struct Vsftpd {
    process: Process,
    files: PathBuf,
    log: PathBuf,
}

impl Vsftpd {
    /// Starts it on this port and waits until it listens.
    pub fn start(host: &Host, port: u16) -> Result<Self> {
        Self::start_with(host, port, "")
    }

    /// As [`Vsftpd::start`] with further lines of configuration.
    pub fn start_with(host: &Host, port: u16, more: &str) -> Result<Self> {
        let dir = host.dir().join(format!("vsftpd-{port}"));
        let files = dir.join("files");
        let empty = dir.join("empty");
        fs::create_dir_all(&files)?;
        fs::create_dir_all(&empty)?;
        std::os::unix::fs::chown(&files, Some(ALICE), Some(ALICE))?;
        let log = dir.join("vsftpd.log");
        let config = dir.join("vsftpd.conf");
        fs::write(
            &config,
            format!(
                "listen=NO\nlisten_ipv6=YES\nlisten_port={port}\nbackground=NO\n\
                 anonymous_enable=NO\nlocal_enable=YES\nwrite_enable=YES\nlocal_umask=022\n\
                 local_root={files}\nchroot_local_user=YES\nallow_writeable_chroot=YES\n\
                 secure_chroot_dir={empty}\npam_service_name=vscan-lab\nsession_support=NO\n\
                 connect_from_port_20=YES\nport_enable=YES\npasv_enable=YES\ncheck_shell=NO\n\
                 xferlog_enable=YES\nxferlog_std_format=NO\nlog_ftp_protocol=YES\n\
                 vsftpd_log_file={log}\nmax_per_ip=0\nmax_clients=0\nseccomp_sandbox=NO\n{more}",
                files = files.display(),
                empty = empty.display(),
                log = log.display()
            ),
        )?;
        // A passive port in TIME_WAIT costs vsftpd a second. On a router few such sockets would break others'
        // connections.
        if host.name() != "gateway" {
            host.sh("echo 8 > /proc/sys/net/ipv4/tcp_max_tw_buckets")?;
        }
        let mut command = host.command("vsftpd");
        command.arg(&config);
        let process = host.start("vsftpd", command)?;
        host.wait_for_port(port)?;
        Ok(Self { process, files, log })
    }

    /// The directory that clients see as `/`.
    pub fn files(&self) -> &PathBuf {
        &self.files
    }

    /// Its log: commands, replies, transfers, with the peer's address.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The running program.
    pub fn process(&self) -> &Process {
        &self.process
    }
}

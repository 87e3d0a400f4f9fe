//! OpenSMTPD as the mail server of `server.example`: every recipient's mail lands in one Maildir.

use super::{BOB, maildir};
use crate::host::{Host, Process};
use anyhow::{Context, Result};
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};

/// A running OpenSMTPD.
#[derive(Debug)]
pub struct OpenSmtpd {
    process: Process,
    inbox: PathBuf,
}

impl OpenSmtpd {
    /// Starts it on this port, both families, and waits until it listens.
    pub fn start(host: &Host, port: u16) -> Result<Self> {
        let dir = host.dir().join("opensmtpd");
        let inbox = dir.join("inbox");
        fs::create_dir_all(&inbox)?;
        chown(&inbox, Some(BOB), Some(BOB))?;
        let config = dir.join("smtpd.conf");
        fs::write(
            &config,
            format!(
                "smtp max-message-size \"128M\"\n\
                 table users {{ \"@server.example\" = \"bob\" }}\n\
                 listen on 0.0.0.0 port {port} hostname mail.server.example\n\
                 listen on :: port {port} hostname mail.server.example\n\
                 action inbox maildir \"{}\" virtual <users>\n\
                 match from any for domain \"server.example\" action inbox\n",
                inbox.display()
            ),
        )?;
        let process = run(host, &config, port)?;
        Ok(Self { process, inbox })
    }

    /// All messages delivered so far, in no order, as OpenSMTPD has stored them.
    pub fn inbox(&self) -> Result<Vec<Vec<u8>>> {
        maildir(&self.inbox)
    }

    /// Its log, with the dialogue.
    pub fn log(&self) -> String {
        self.process.log()
    }
}

/// OpenSMTPD that sends all it gets to one server, over TLS or not at all.
///
/// It is tested as a client alone: as a server with TLS version 6.8, which Debian 12 has, fails in every handshake, whoever
/// the client is, since its way to a private key in another process is not that of OpenSSL 3 ("missing private key").
#[derive(Debug)]
pub struct OpenSmtpdRelay(Process);

impl OpenSmtpdRelay {
    /// Where it takes mail.
    pub const PORT: u16 = 2502;

    /// Starts it; it does not verify certificates.
    pub fn start(host: &Host, to: SocketAddr) -> Result<Self> {
        let dir = host.dir().join("opensmtpd-relay");
        fs::create_dir_all(&dir)?;
        let config = dir.join("smtpd.conf");
        fs::write(
            &config,
            format!(
                "listen on 127.0.0.1 port {}\n\
                 action out relay host \"smtp+tls://{to}\" tls no-verify\n\
                 match from any for any action out\n",
                Self::PORT
            ),
        )?;
        run(host, &config, Self::PORT).map(Self)
    }

    /// Its log.
    pub fn log(&self) -> String {
        self.0.log()
    }
}

fn run(host: &Host, config: &Path, port: u16) -> Result<Process> {
    // Its directories are where they were compiled in: this host gets its own.
    host.sh("for place in /run /var/spool /var/lib; do mount -t tmpfs tmpfs $place; done
        mkdir -p /run/opensmtpd /var/spool/smtpd /var/lib/opensmtpd/empty
        chmod 711 /var/spool/smtpd")?;
    let mut command = host.command("/usr/sbin/smtpd");
    command.args(["-d", "-v", "-T", "smtp", "-f"]).arg(config);
    let process = host.start("opensmtpd", command)?;
    host.wait_for_port(port).with_context(|| process.log())?;
    Ok(process)
}

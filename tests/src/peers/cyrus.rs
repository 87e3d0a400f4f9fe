//! Cyrus IMAP: `ann`, `bob` and `carol`, password `secret`; `admin`, password `master`, is an administrator and logs in for
//! everybody by the authorization identity of PLAIN.

use crate::host::{Host, Process};
use anyhow::{Context, Result};
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

/// A running Cyrus on port 143.
#[derive(Debug)]
pub struct Cyrus {
    process: Process,
    dir: PathBuf,
}

impl Cyrus {
    /// Starts it and waits until it listens.
    pub fn start(host: &Host) -> Result<Self> {
        Self::start_with(host, None, "")
    }

    /// As [`start`](Self::start); with TLS on port 993 and STARTTLS by this certificate and key, and with more settings.
    pub fn start_with(host: &Host, tls: Option<(&Path, &Path)>, more: &str) -> Result<Self> {
        let dir = host.dir().join("cyrus");
        let (user, group) =
            (super::id(host, "passwd", "cyrus")?, super::id(host, "group", "cyrus")?);
        for sub in ["", "conf", "mail", "run", "run/proc", "run/lock", "run/socket"] {
            fs::create_dir_all(dir.join(sub))?;
            chown(dir.join(sub), Some(user), Some(group))?;
        }
        let users = dir.join("users.db");
        let accounts =
            [("ann", "secret"), ("bob", "secret"), ("carol", "secret"), ("admin", "master")];
        for (name, password) in accounts {
            let mut command = host.command("saslpasswd2");
            command.args(["-p", "-c", "-u", "example", "-f"]).arg(&users).arg(name);
            command.stdin(std::process::Stdio::piped());
            let mut child = command.spawn().context("saslpasswd2")?;
            child.stdin.take().context("no input")?.write_all(password.as_bytes())?;
            anyhow::ensure!(child.wait()?.success(), "saslpasswd2");
        }
        chown(&users, Some(user), Some(group))?;
        let ssl = match tls {
            Some((certificate, key)) => {
                // It reads them as its own user.
                let own = dir.join("key.pem");
                fs::copy(key, &own)?;
                fs::set_permissions(&own, fs::Permissions::from_mode(0o600))?;
                chown(&own, Some(user), Some(group))?;
                format!(
                    "tls_server_cert: {}\ntls_server_key: {}\n",
                    certificate.display(),
                    own.display()
                )
            }
            None => String::new(),
        };
        let config = dir.join("imapd.conf");
        let text = "configdirectory: DIR/conf\nproc_path: DIR/run/proc\nmboxname_lockpath: DIR/run/lock\n\
             defaultpartition: default\npartition-default: DIR/mail\n\
             idlesocket: DIR/run/socket/idle\nlmtpsocket: DIR/run/socket/lmtp\n\
             notifysocket: DIR/run/socket/notify\n\
             admins: admin\nproxyservers: admin\nservername: example\ndefaultdomain: example\n\
             allowplaintext: yes\nsasl_pwcheck_method: auxprop\nsasl_auxprop_plugin: sasldb\n\
             sasl_sasldb_path: DIR/users.db\nsasl_mech_list: PLAIN\n\
             autocreate_quota: 0\nautocreate_quota_messages: -1\n\
             altnamespace: yes\nunixhierarchysep: yes\nhashimapspool: no\numask: 077\n\
             popminpoll: 0\nimapidlepoll: 1\nexpunge_mode: immediate\ndelete_mode: immediate\n";
        let text = [text, &ssl, more].concat().replace("DIR", &dir.display().to_string());
        fs::write(&config, text)?;
        let services = dir.join("cyrus.conf");
        let bin = "/usr/lib/cyrus/bin";
        let arguments = format!("-C {}", config.display());
        let imaps = if tls.is_some() {
            format!("  imaps cmd=\"{bin}/imapd -s {arguments}\" listen=\"0.0.0.0:993\" prefork=0\n")
        } else {
            String::new()
        };
        fs::write(
            &services,
            format!(
                "START {{\n  recover cmd=\"{bin}/ctl_cyrusdb {arguments} -r\"\n  \
                 idled cmd=\"{bin}/idled {arguments}\"\n}}\nSERVICES {{\n  \
                 imap cmd=\"{bin}/imapd {arguments}\" listen=\"0.0.0.0:143\" prefork=0\n{imaps}}}\n\
                 EVENTS {{\n  checkpoint cmd=\"{bin}/ctl_cyrusdb {arguments} -c\" period=30\n}}\n"
            ),
        )?;
        let mut command = host.command("/usr/lib/cyrus/bin/master");
        command.arg("-C").arg(&config).arg("-M").arg(&services);
        command.arg("-p").arg(dir.join("run/master.pid")).arg("-D");
        let process = host.start("cyrus", command)?;
        host.wait_for_port(143).with_context(|| process.log())?;
        Ok(Self { process, dir })
    }

    /// Where its files are.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The running master process.
    pub fn process(&self) -> &Process {
        &self.process
    }
}

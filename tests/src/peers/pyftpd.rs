//! pyftpdlib's server, for user `alice`, password `secret`, and for `anonymous`, who may write too.

use crate::host::{Host, Process};
use anyhow::Result;
use std::fs;
use std::path::PathBuf;

/// What it runs: one server per family, for pyftpdlib's own has no dual-stack socket in all versions.
const SCRIPT: &str = r#"
import logging, sys
from pyftpdlib.authorizers import DummyAuthorizer
from pyftpdlib.handlers import FTPHandler
from pyftpdlib.ioloop import IOLoop
from pyftpdlib.servers import FTPServer
logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)
port, files = int(sys.argv[1]), sys.argv[2]
authorizer = DummyAuthorizer()
authorizer.add_user("alice", "secret", files, perm="elradfmwMT")
authorizer.add_anonymous(files, perm="elradfmwMT")
FTPHandler.authorizer = authorizer
loop = IOLoop()
servers = [FTPServer((address, port), FTPHandler, ioloop=loop) for address in sys.argv[3:]]
servers[0].serve_forever()
"#;

/// A running pyftpdlib server.
#[derive(Debug)]
pub struct PyFtpd {
    process: Process,
    files: PathBuf,
}

impl PyFtpd {
    /// Starts it on these addresses and waits until it listens.
    pub fn start(host: &Host, port: u16, addresses: &[String]) -> Result<Self> {
        let dir = host.dir().join(format!("pyftpd-{port}"));
        let files = dir.join("files");
        fs::create_dir_all(&files)?;
        let script = dir.join("server.py");
        fs::write(&script, SCRIPT)?;
        let mut command = host.command("/usr/bin/python3");
        command.arg("-u").arg(&script).arg(port.to_string()).arg(&files).args(addresses);
        let process = host.start("pyftpd", command)?;
        host.wait_for_port(port)?;
        Ok(Self { process, files })
    }

    /// The directory that clients see as `/`.
    pub fn files(&self) -> &PathBuf {
        &self.files
    }

    /// Its log: commands, replies, with the peer's address.
    pub fn log(&self) -> String {
        self.process.log()
    }
}

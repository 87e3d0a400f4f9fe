//! aiosmtpd as a mail server that keeps what it gets, byte for byte.

use crate::host::{Host, Process};
use anyhow::{Context, Result};
use std::fs;
use std::path::PathBuf;

/// What it runs. Its user is `alice` with password `secret`.
const SCRIPT: &str = r#"
import asyncio, logging, pathlib, sys
from aiosmtpd.smtp import AuthResult, SMTP
logging.basicConfig(level=logging.INFO, stream=sys.stderr)
port, inbox = int(sys.argv[1]), pathlib.Path(sys.argv[2])
count = 0
class Keep:
    async def handle_DATA(self, server, session, envelope):
        global count
        count += 1
        name = inbox / "tmp"
        name.write_bytes(envelope.original_content)
        name.rename(inbox / f"{count}.eml")
        return "250 2.0.0 kept"
def login(server, session, envelope, mechanism, data):
    return AuthResult(success=(data.login, data.password) == (b"alice", b"secret"))
def session():
    return SMTP(Keep(), hostname="mail.server.example", enable_SMTPUTF8=True, loop=loop,
                authenticator=login, auth_require_tls=False, data_size_limit=1 << 27)
loop = asyncio.new_event_loop()
asyncio.set_event_loop(loop)
for address in ["0.0.0.0", "::"]:
    loop.run_until_complete(loop.create_server(session, address, port))
loop.run_forever()
"#;

/// A running aiosmtpd.
#[derive(Debug)]
pub struct Aiosmtpd {
    process: Process,
    inbox: PathBuf,
}

impl Aiosmtpd {
    /// Starts it on this port, both families, and waits until it listens.
    pub fn start(host: &Host, port: u16) -> Result<Self> {
        let dir = host.dir().join("aiosmtpd");
        let inbox = dir.join("inbox");
        fs::create_dir_all(&inbox)?;
        let script = dir.join("server.py");
        fs::write(&script, SCRIPT)?;
        let mut command = host.command("/usr/bin/python3");
        command.arg("-u").arg(&script).arg(port.to_string()).arg(&inbox);
        let process = host.start("aiosmtpd", command)?;
        host.wait_for_port(port).with_context(|| process.log())?;
        Ok(Self { process, inbox })
    }

    /// All messages so far, in no order, as they were on the wire without dot-stuffing.
    pub fn inbox(&self) -> Result<Vec<Vec<u8>>> {
        fs::read_dir(&self.inbox)?
            .filter_map(|entry| match entry {
                Ok(entry) if entry.path().extension().is_none() => None,
                entry => Some(entry),
            })
            .map(|entry| Ok(fs::read(entry?.path())?))
            .collect()
    }

    /// Its log.
    pub fn log(&self) -> String {
        self.process.log()
    }
}

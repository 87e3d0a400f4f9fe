//! FTPS: certificates for servers and for the gateway, servers that offer TLS, and scripts for what no program does.

use crate::host::{Host, Output, Process};
use crate::lab::Lab;
use crate::peers::{ProFtpd, PureFtpd, Vsftpd};
use anyhow::Result;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

/// The port of FTP that begins with TLS.
pub const IMPLICIT: u16 = 990;

/// Certificates of one lab: the servers' authority and its certificate for `server.example`, and the operator's
/// authority.
#[derive(Debug)]
pub struct Ftps {
    dir: PathBuf,
}

/// What Python is asked to do.
#[derive(Clone, Copy, Debug)]
pub enum Script {
    /// Up, down and infected by ftplib; arguments: host, port, version of TLS, 4 or 6, passive or active, and `ccc` to
    /// leave TLS on the dialogue.
    Client,
    /// An upload that ends without close_notify; arguments: host, port. Prints the last reply.
    CuttingClient,
}

impl Ftps {
    /// Makes all certificates.
    pub fn new(lab: &Lab) -> Result<Self> {
        let dir = lab.dir().join("pki");
        fs::create_dir_all(&dir)?;
        // The lab's hosts read it as other users.
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755))?;
        let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
        lab.server().sh(&format!(
            "cd {dir}; exec 2>&1
             for ca in theirs ours; do
               openssl req -x509 {key} -days 2 -subj /CN=$ca -keyout $ca.key -out $ca.pem
             done
             openssl req {key} -subj /CN=server.example -keyout server.key -out server.req
             printf 'subjectAltName=DNS:server.example,DNS:closed.example' > server.ext
             openssl x509 -req -in server.req -CA theirs.pem -CAkey theirs.key -CAcreateserial -days 2 \
               -extfile server.ext -out server.crt
             cat server.key server.crt > server.pem
             openssl req {key} -subj /CN=client.example -keyout client.key -out client.req
             openssl x509 -req -in client.req -CA theirs.pem -CAkey theirs.key -days 2 -extfile server.ext -out client.crt
             cat ours.pem theirs.pem > both.pem
             chmod 600 *.key *.pem; chmod 644 ours.pem theirs.pem both.pem client.key",
            dir = dir.display()
        ))?;
        Ok(Self { dir })
    }

    /// A file of it, as `both.pem`.
    pub fn path(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    /// The operator's authority, for clients.
    pub fn authority(&self) -> String {
        self.path("ours.pem")
    }

    /// The gateway's part: it makes certificates, and knows the servers' authority.
    pub fn settings(&self) -> String {
        format!(
            "[tls]\nverify = \"pinned\"\nca = \"{}\"\n[tls.authority]\ncertificate = \"{}\"\nkey = \"{}\"\n",
            self.path("theirs.pem"),
            self.path("ours.pem"),
            self.path("ours.key"),
        )
    }

    /// The gateway's part for servers inside: it has their certificate.
    pub fn inbound(&self) -> String {
        format!(
            "[tls]\nverify = \"pinned\"\nca = \"{}\"\n[[tls.certificate]]\nchain = \"{}\"\nkey = \"{}\"\n",
            self.path("theirs.pem"),
            self.path("server.crt"),
            self.path("server.key"),
        )
    }

    /// vsftpd that insists on TLS.
    pub fn vsftpd(&self, host: &Host, port: u16, more: &str) -> Result<Vsftpd> {
        let tls = format!(
            "ssl_enable=YES\nallow_anon_ssl=NO\nforce_local_data_ssl=YES\nforce_local_logins_ssl=YES\n\
             ssl_tlsv1=YES\nssl_ciphers=HIGH\nrsa_cert_file={path}\nrsa_private_key_file={path}\n{more}",
            path = self.path("server.pem")
        );
        Vsftpd::start_with(host, port, &tls)
    }

    /// ProFTPD as it is by default: data connections have to resume the dialogue's session.
    pub fn proftpd(&self, host: &Host, port: u16) -> Result<ProFtpd> {
        self.proftpd_with(host, port, "TLSProtocol TLSv1.2 TLSv1.3\n")
    }

    /// ProFTPD that begins with TLS.
    pub fn proftpd_implicit(&self, host: &Host, port: u16) -> Result<ProFtpd> {
        self.proftpd_with(host, port, "TLSProtocol TLSv1.2 TLSv1.3\nTLSOptions UseImplicitSSL\n")
    }

    /// The same with further lines, among them the versions of TLS.
    pub fn proftpd_with(&self, host: &Host, port: u16, more: &str) -> Result<ProFtpd> {
        let tls = format!(
            "LoadModule mod_tls.c\nTLSEngine on\nTLSRequired off\nTLSECCertificateFile {}\n\
             TLSECCertificateKeyFile {}\nTLSLog {}\n{more}",
            self.path("server.crt"),
            self.path("server.key"),
            self.path(&format!("proftpd-{port}.log")),
        );
        ProFtpd::start_with(host, port, &tls)
    }

    /// Pure-FTPd that offers TLS.
    pub fn pureftpd(&self, host: &Host, port: u16) -> Result<PureFtpd> {
        PureFtpd::start_with(host, port, Some(&self.dir.join("server.pem")))
    }

    /// A server that says what it has to say and closes its data connections without close_notify.
    pub fn cutting_server(&self, host: &Host, port: u16) -> Result<Process> {
        let script = self.dir.join("cutting_server.py");
        fs::write(&script, CUTTING_SERVER)?;
        let mut command = host.command("python3");
        command.arg(script).arg(port.to_string()).arg(self.path("server.pem"));
        let process = host.start("cutting-server", command)?;
        host.wait_for_port(port)?;
        Ok(process)
    }

    /// Runs a script to its end.
    pub fn python(&self, host: &Host, script: Script, arguments: &[&str]) -> Result<Output> {
        let text = match script {
            Script::Client => CLIENT,
            Script::CuttingClient => CUTTING_CLIENT,
        };
        let path = self.dir.join(format!("{script:?}.py"));
        fs::write(&path, text)?;
        let (path, ca) = (path.display().to_string(), self.authority());
        host.run([&["python3", &path, &ca][..], arguments].concat())
    }
}

const CLIENT: &str = r#"
import ftplib, io, ssl, sys
import socket
ca, host, port, version, family, mode, ccc = sys.argv[1:8]
context = ssl.create_default_context(cafile=ca)
context.minimum_version = context.maximum_version = {
    "1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}[version]
wanted, resolve = {"4": socket.AF_INET, "6": socket.AF_INET6}[family], socket.getaddrinfo
socket.getaddrinfo = lambda host, port, family=0, *more, **named: resolve(host, port, wanted, *more, **named)
ftp = ftplib.FTP_TLS(context=context, timeout=30)
ftp.connect(host, int(port))
ftp.set_pasv(mode == "passive")
ftp.auth()
ftp.login("alice", "secret")
ftp.prot_p()
if ccc:
    ftp.ccc()
    assert ftp.sendcmd("NOOP").startswith("200"), "no dialogue after CCC"
file = open("up", "rb").read()
assert ftp.storbinary("STOR by-python", io.BytesIO(file)).startswith("226")
got = []
assert ftp.retrbinary("RETR by-python", got.append).startswith("226")
assert b"".join(got) == file, "the download was changed"
try:
    ftp.storbinary("STOR bad-python", open("bad", "rb"))
    sys.exit("infected, and stored")
except ftplib.error_perm as refused:
    assert "blocked by vscan" in str(refused), refused
assert "by-python" in ftp.nlst()
try:
    ftp.prot_c()
    got = []
    ftp.retrbinary("RETR by-python", got.append)
    assert b"".join(got) == file, "the download in the clear was changed"
except ftplib.Error as refused:
    # vsftpd insists on protected data; behind CCC Pure-FTPd wants another PBSZ, which is of no use any more.
    assert str(refused)[:3] in ("522", "503"), refused
ftp.quit()
print("all is well")
"#;

const CUTTING_CLIENT: &str = r#"
import ftplib, socket, ssl, sys
ca, host, port = sys.argv[1:4]
ftp = ftplib.FTP_TLS(context=ssl.create_default_context(cafile=ca), timeout=30)
ftp.connect(host, int(port))
ftp.login("alice", "secret")
ftp.prot_p()
ftp.voidcmd("TYPE I")
data = ftp.transfercmd("STOR cut")
data.sendall(open("up", "rb").read())
# A FIN, and no close_notify before it.
data = socket.socket(fileno=data.detach())
data.shutdown(socket.SHUT_WR)
try:
    print(ftp.voidresp())
except ftplib.Error as refused:
    print(refused)
"#;

const CUTTING_SERVER: &str = r#"
import socket, ssl, sys, threading
port, pem = int(sys.argv[1]), sys.argv[2]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(pem)

def serve(peer):
    peer.sendall(b"220 cutting\r\n")
    lines, listener = peer.makefile("rb"), None
    say = lambda text: peer.sendall(text + b"\r\n")
    while line := lines.readline().decode().strip():
        verb = line.split()[0].upper()
        if verb == "AUTH":
            say(b"234 go")
            peer = context.wrap_socket(peer, server_side=True)
            lines = peer.makefile("rb")
        elif verb == "USER":
            say(b"331 more")
        elif verb == "PASS":
            say(b"230 in")
        elif verb == "PWD":
            say(b'257 "/"')
        elif verb in ("PASV", "EPSV"):
            listener = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
            at = listener.getsockname()[1]
            if verb == "PASV":
                say(b"227 (0,0,0,0,%d,%d)" % (at >> 8, at & 255))
            else:
                say(b"229 (|||%d|)" % at)
        elif verb == "SIZE":
            say(b"502 no")
        elif verb == "RETR":
            data, _ = listener.accept()
            say(b"150 here")
            data = context.wrap_socket(data, server_side=True)
            data.sendall(b"half of a file" * 1000)
            # A FIN, and no close_notify before it.
            data = socket.socket(fileno=data.detach())
            data.shutdown(socket.SHUT_WR)
            say(b"226 that was all")
        elif verb == "QUIT":
            return say(b"221 bye")
        else:
            say(b"200 ok")

server = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
while True:
    threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()
"#;

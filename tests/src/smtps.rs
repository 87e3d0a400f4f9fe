//! Mail over TLS: certificates for servers and for the gateway, servers that offer TLS, and a client that tells all it
//! sees.

use crate::host::{Host, Process};
use crate::lab::Lab;
use crate::peers::{Exim, Postfix};
use anyhow::{Context, Result};
use rustls::{ClientConnection, StreamOwned};
use serde_json::{Value, json};
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// The name of every server here.
pub const NAME: &str = "mail.server.example";

/// Certificates of one lab: those of the servers, by an authority of theirs, and those of the operator.
#[derive(Debug)]
pub struct Pki {
    dir: PathBuf,
}

impl Pki {
    /// Makes all certificates.
    pub fn new(lab: &Lab) -> Result<Self> {
        let dir = lab.dir().join("pki");
        fs::create_dir_all(&dir)?;
        // The lab's hosts read it as other users.
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755))?;
        let pki = Self { dir };
        lab.server().sh(&format!(
            "cd {dir}; exec 2>&1
             for ca in theirs ours; do
               openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 300 \
                 -subj /CN=$ca -keyout $ca.key -out $ca.pem
             done
             make() {{
               openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=$2 \
                 -keyout $1.key -out $1.req
               printf \"subjectAltName=DNS:$2\" > $1.ext
               openssl x509 -req -in $1.req -CA $3.pem -CAkey $3.key -CAcreateserial -days $4 -extfile $1.ext -out $1.pem
             }}
             make server {NAME} theirs 300
             make operator {NAME} ours 300
             make short {NAME} ours 3
             make client client.example theirs 300
             # Certificates of 55 and of 85 KiB.
             for size in 2600 4000; do
               printf 'subjectAltName=DNS:{NAME}' > $size.ext
               seq -f ',DNS:n%04.0f.server.example' $size | tr -d '\n' >> $size.ext
               openssl x509 -req -in server.req -CA theirs.pem -CAkey theirs.key -days 300 \
                 -extfile $size.ext -out server-$size.pem
             done
             openssl x509 -req -in operator.req -CA ours.pem -CAkey ours.key -days -1 \
               -extfile operator.ext -out expired.pem
             cp operator.key expired.key
             cat ours.pem theirs.pem > both.pem
             # Its users: root, and the mail servers.
             cp server.key readable.key
             chmod 600 *.key; chmod 644 readable.key client.key",
            dir = pki.dir.display()
        ))?;
        Ok(pki)
    }

    /// A file of it, as `ours.pem`.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// The gateway makes certificates, and knows the servers' authority.
    pub fn outbound(&self, more: &str) -> String {
        format!(
            "[tls]\nverify = \"pinned\"\nca = \"{}\"\n{more}\n[tls.authority]\ncertificate = \"{}\"\nkey = \"{}\"\n",
            self.text("theirs.pem"),
            self.text("ours.pem"),
            self.text("ours.key"),
        )
    }

    /// The gateway has the operator's certificate of this name: `operator` or `short`.
    pub fn inbound(&self, name: &str, more: &str) -> String {
        format!(
            "[tls]\n{more}\n[[tls.certificate]]\nchain = \"{}\"\nkey = \"{}\"\n",
            self.text(&format!("{name}.pem")),
            self.text(&format!("{name}.key")),
        )
    }

    /// Postfix that offers TLS on port 25.
    pub fn postfix(&self, host: &Host, more: &str) -> Result<Postfix> {
        let tls = format!(
            "smtpd_tls_security_level = may\nsmtpd_tls_cert_file = {}\nsmtpd_tls_key_file = {}\n\
             smtpd_tls_loglevel = 1\nsmtpd_tls_received_header = yes\n{more}",
            self.text("server.pem"),
            self.text("server.key"),
        );
        Postfix::start_with(host, &tls)
    }

    /// Exim that offers TLS.
    pub fn exim(&self, host: &Host, port: u16) -> Result<Exim> {
        let tls = format!(
            "tls_advertise_hosts = *\ntls_certificate = {}\ntls_privatekey = {}\n",
            self.text("server.pem"),
            self.text("readable.key"),
        );
        Exim::start_with(host, port, &tls)
    }

    /// A server that speaks TLS from the first byte on, and the plainest SMTP in it.
    pub fn implicit(&self, host: &Host, port: u16) -> Result<Process> {
        self.python_server(host, port, "implicit")
    }

    /// A server that offers STARTTLS and has a certificate with this many names: 2600 make 55 KiB, 4000 make 85.
    pub fn with_names(&self, host: &Host, port: u16, names: &str) -> Result<Process> {
        self.python_server(host, port, names)
    }

    /// A server that offers STARTTLS and then says something that is no TLS.
    pub fn broken(&self, host: &Host, port: u16) -> Result<Process> {
        self.python_server(host, port, "broken")
    }

    /// What was delivered to a server in Python, all messages one behind the other.
    pub fn inbox(&self, mode: &str, port: u16) -> Vec<u8> {
        fs::read(self.path(&format!("inbox-{mode}-{port}"))).unwrap_or_default()
    }

    /// TLS as a client that believes both authorities, on a connection where the server expects it.
    pub fn tls(&self, tcp: TcpStream) -> Result<StreamOwned<ClientConnection, TcpStream>> {
        crate::load_tls::client(self, tcp)
    }

    /// A server that offers STARTTLS and wants a certificate of the client's.
    pub fn demanding(&self, host: &Host, port: u16, version: &str) -> Result<Process> {
        self.python_server(host, port, version)
    }

    fn python_server(&self, host: &Host, port: u16, mode: &str) -> Result<Process> {
        let script = self.path(&format!("server-{mode}.py"));
        fs::write(&script, SERVER)?;
        let mut command = host.command("python3");
        command.arg(script).arg(port.to_string()).arg(&self.dir).arg(mode);
        let process = host.start(&format!("server-{mode}-{port}"), command)?;
        host.wait_for_port(port).with_context(|| process.log())?;
        Ok(process)
    }

    /// A client that verifies by the operator's authority.
    pub fn client<'a>(&'a self, host: &'a Host, to: SocketAddr) -> TlsClient<'a> {
        let job = json!({
            "host": to.ip().to_string(), "port": to.port(), "ca": self.text("ours.pem"), "sni": NAME,
            "way": "starttls", "messages": [], "dir": self.dir,
        });
        TlsClient { pki: self, host, job }
    }
}

/// A mail client that verifies certificates.
#[derive(Clone, Debug)]
pub struct TlsClient<'a> {
    pki: &'a Pki,
    host: &'a Host,
    job: Value,
}

impl TlsClient<'_> {
    /// Changes what it does: `ca` (null: nothing is verified), `sni` (null: none), `way` (`starttls`, `implicit`, `plain`),
    /// `version` (`1.2`), `certificate` (true: it has one of its own), `login`, `linger` (it waits behind the first line
    /// of the last message).
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.job[key] = value.into();
        self
    }

    /// Sends messages in one session; tells `error`, or `version`, `cipher`, `names`, `before` and `inside` (extensions),
    /// `replies`.
    pub fn send(&self, messages: &[&[u8]]) -> Result<Value> {
        let mut job = self.job.clone();
        let mut files = Vec::new();
        for (number, message) in messages.iter().enumerate() {
            let unique = format!("{}-{}-{number}.eml", self.host.name(), std::process::id());
            let unique =
                format!("{:?}-{unique}", std::thread::current().id()).replace(['(', ')'], "");
            let path = self.pki.path(&unique);
            fs::write(&path, message)?;
            files.push(path);
        }
        job["messages"] = json!(files);
        let script = self.pki.path("client.py");
        write_once(&script, CLIENT)?;
        let output =
            self.host.run(["python3".as_ref(), script.as_os_str(), job.to_string().as_ref()])?;
        serde_json::from_str(&output.out).with_context(|| format!("{}{}", output.out, output.err))
    }
}

fn write_once(path: &Path, text: &str) -> Result<()> {
    if !path.exists() {
        let new = path.with_extension(format!("{:?}", std::thread::current().id()));
        fs::write(&new, text)?;
        fs::rename(new, path)?;
    }
    Ok(())
}

const CLIENT: &str = r#"
import json, smtplib, socket, ssl, sys
job = json.loads(sys.argv[1])
out = {"replies": []}
def context():
    if job["ca"]:
        made = ssl.create_default_context(cafile=job["ca"])
        if not job["sni"]:
            made.check_hostname = False
    else:
        made = ssl._create_unverified_context()
    if job.get("version") == "1.2":
        made.maximum_version = ssl.TLSVersion.TLSv1_2
    if job.get("certificate"):
        made.load_cert_chain(job["dir"] + "/client.pem", job["dir"] + "/client.key")
    return made
try:
    tcp = socket.create_connection((job["host"], job["port"]), timeout=40)
    smtp = smtplib.SMTP(local_hostname="client.example", timeout=40)
    smtp.file = None
    smtp.sock = tcp
    if job["way"] == "implicit":
        smtp.sock = context().wrap_socket(tcp, server_hostname=job["sni"])
    out["greeting"] = smtp.getreply()[0]
    smtp.ehlo()
    out["before"] = sorted(smtp.esmtp_features)
    if job["way"] == "starttls":
        smtp._host = job["sni"]
        out["starttls"] = smtp.starttls(context=context())[0]
        if out["starttls"] == 220:
            smtp.ehlo()
    if isinstance(smtp.sock, ssl.SSLSocket):
        out["version"], out["cipher"] = smtp.sock.version(), smtp.sock.cipher()[0]
        peer = smtp.sock.getpeercert()
        out["names"] = [name for _, name in peer.get("subjectAltName", ())] if peer else []
    out["inside"] = {key: smtp.esmtp_features[key] for key in smtp.esmtp_features}
    if job.get("login"):
        smtp.login("alice", "secret")
    for file in job["messages"]:
        text = open(file, "rb").read()
        smtp.docmd("MAIL FROM:<alice@client.example>")
        smtp.docmd("RCPT TO:<bob@server.example>")
        if job.get("linger"):
            smtp.docmd("DATA")
            smtp.send(text[:100])
            print(json.dumps(out), flush=True)
            smtp.sock.recv(1)
        try:
            code, said = smtp.data(text)
        except smtplib.SMTPDataError as error:
            code, said = error.smtp_code, error.smtp_error
        out["replies"].append("%d %s" % (code, said.decode("utf-8", "replace")))
    smtp.quit()
except Exception as error:
    out["error"] = "%s: %s" % (type(error).__name__, error)
print(json.dumps(out))
"#;

const SERVER: &str = r#"
import socket, ssl, sys, threading
port, dir, mode = int(sys.argv[1]), sys.argv[2], sys.argv[3]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
many = "-" + mode if mode in ("2600", "4000") else ""
context.load_cert_chain(dir + "/server%s.pem" % many, dir + "/server.key")
if mode in ("1.2", "1.3"):
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(dir + "/theirs.pem")
    version = ssl.TLSVersion.TLSv1_2 if mode == "1.2" else ssl.TLSVersion.TLSv1_3
    context.minimum_version = context.maximum_version = version
def serve(tcp):
    try:
        sock = context.wrap_socket(tcp, server_side=True) if mode == "implicit" else tcp
        file = sock.makefile("rb")
        say = lambda text: sock.sendall(text.encode() + b"\r\n")
        say("220 server.example ESMTP")
        tls = mode == "implicit"
        while line := file.readline():
            verb = line[:4].upper()
            if verb == b"EHLO":
                say("250-server.example\r\n250 8BITMIME" if tls else "250-server.example\r\n250 STARTTLS")
            elif verb == b"STAR":
                say("220 go")
                if mode == "broken":
                    tcp.recv(1)
                    tcp.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                    return
                sock = context.wrap_socket(tcp, server_side=True)
                file, tls = sock.makefile("rb"), True
                print("client", (sock.getpeercert() or {}).get("subject"), flush=True)
            elif verb == b"DATA":
                say("354 go")
                text = b""
                while (line := file.readline()) not in (b".\r\n", b""):
                    text += line
                if line:
                    open("%s/inbox-%s-%d" % (dir, mode, port), "ab").write(text)
                    say("250 queued")
            elif verb == b"QUIT":
                say("221 bye")
                return
            else:
                say("250 ok")
    except OSError as error:
        print(error, flush=True)
    finally:
        tcp.close()
listener = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"#;

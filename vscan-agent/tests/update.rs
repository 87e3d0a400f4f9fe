//! `vscan rules update` from a server that is near, far, wrong, slow or hostile. By https: its certificate is one that the
//! system is told to trust (`SSL_CERT_FILE`), as an administrator tells it.

#![expect(clippy::unwrap_used, reason = "helpers of tests, outside of #[test] functions")]

use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use sha2::{Digest, Sha256};
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const FIRST: &str = include_str!("fixtures/a.yar");
const SECOND: &str = "rule b { strings: $a = \"the second set\" condition: $a }\n";

/// A key of minisign's, made for this test, and its signature over [`FIRST`].
const KEY: &str = include_str!("fixtures/minisign.pub");
const SIGNATURE: &str = include_str!("fixtures/a.yar.minisig");

/// How an answer comes, besides its status and its body.
#[derive(Clone, Copy, Debug, Default)]
struct Way {
    /// What it says of its length, instead of the truth; none: nothing.
    length: Option<usize>,
    /// The connection ends without a word of TLS.
    torn: bool,
    /// In chunks (RFC 9112 section 7.1), the last of which comes or does not.
    chunked: Option<bool>,
    /// Byte by byte, with so much time between them.
    pause: Duration,
}

/// What lies on the server: status and head fields, body, how it comes.
type Page = (String, Vec<u8>, Way);

/// A server by https on a port of its own, for a certificate of `localhost`.
struct Server {
    port: u16,
    root: PathBuf,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn start(dir: &Path) -> Self {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let root = dir.join("root.pem");
        fs::write(&root, made.cert.pem()).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let config = Arc::new(config);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&asked);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (config, log) = (Arc::clone(&config), Arc::clone(&log));
                // What a client breaks off is no matter of the server's.
                std::thread::spawn(move || serve(stream, config, port, &log));
            }
        });
        Self { port, root, asked }
    }

    fn url(&self, path: &str) -> String {
        format!("https://localhost:{}{path}", self.port)
    }

    fn take_asked(&self) -> Vec<String> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

fn serve(
    stream: TcpStream,
    config: Arc<ServerConfig>,
    port: u16,
    log: &Mutex<Vec<String>>,
) -> std::io::Result<()> {
    let connection = ServerConnection::new(config).map_err(std::io::Error::other)?;
    let mut tls = StreamOwned::new(connection, stream);
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        tls.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head);
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    log.lock().unwrap().push(path.clone());
    let (status, body, way) = page(&path, port);
    let length = match (way.chunked, way.torn, way.length) {
        (Some(_), ..) => "Transfer-Encoding: chunked\r\n".to_owned(),
        (_, true, None) => String::new(),
        (.., told) => format!("Content-Length: {}\r\n", told.unwrap_or(body.len())),
    };
    write!(tls, "HTTP/1.1 {status}\r\nConnection: close\r\n{length}\r\n")?;
    if way.chunked.is_some() {
        write!(tls, "{:x}\r\n", body.len())?;
    }
    if way.pause.is_zero() {
        tls.write_all(&body)?;
    } else {
        for byte in &body {
            tls.write_all(&[*byte])?;
            tls.flush()?;
            std::thread::sleep(way.pause);
        }
    }
    if way.chunked == Some(true) {
        write!(tls, "\r\n0\r\n\r\n")?;
    }
    tls.flush()?;
    if !way.torn {
        tls.conn.send_close_notify();
        tls.flush()?;
    }
    Ok(())
}

fn page(path: &str, port: u16) -> Page {
    let found = |body: &str| ("200 OK".to_owned(), body.as_bytes().to_vec(), Way::default());
    let moved = |to: String| (format!("302 Found\r\nLocation: {to}"), Vec::new(), Way::default());
    let set = |way: Way| ("200 OK".to_owned(), FIRST.as_bytes().to_vec(), way);
    match path {
        "/good/a.yar" | "/sum/a.yar" | "/unsigned/a.yar" => found(FIRST),
        "/good/a.yar.sha256" => found(&format!("{}  a.yar\n", sha256(FIRST))),
        "/good/a.yar.minisig" => found(SIGNATURE),
        "/second/a.yar" | "/forged/a.yar" => found(SECOND),
        // The signature of other bytes.
        "/forged/a.yar.minisig" => found(SIGNATURE),
        "/sum/a.yar.sha256" => found(&format!("{}  a.yar\n", sha256("others"))),
        "/sum/a.yar.minisig" => found(SIGNATURE),
        "/broken/a.yar" => found("rule broken { condition: }"),
        "/cut/a.yar" => set(Way { length: Some(FIRST.len() + 10), ..Way::default() }),
        "/torn/a.yar" => set(Way { torn: true, ..Way::default() }),
        "/chunk/a.yar" => set(Way { chunked: Some(false), ..Way::default() }),
        "/chunks/a.yar" => set(Way { chunked: Some(true), ..Way::default() }),
        "/slow/a.yar" => set(Way { pause: Duration::from_millis(20), ..Way::default() }),
        "/moved/a.yar" => moved("/good/a.yar".to_owned()),
        "/down/a.yar" => moved(format!("http://localhost:{port}/good/a.yar")),
        "/loop/a.yar" => moved("/loop/a.yar".to_owned()),
        "/large/a.yar" => found(&format!("{FIRST}{}", "// large\n".repeat(20_000))),
        "/failing/a.yar" => ("500 Oh".to_owned(), Vec::new(), Way::default()),
        _ => ("404 Not Found".to_owned(), Vec::new(), Way::default()),
    }
}

fn sha256(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A machine with a configuration, whose rules are the sets that updates bring.
struct Machine {
    dir: tempfile::TempDir,
}

impl Machine {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        fs::create_dir(&state).unwrap();
        let text = format!(
            "[gateway]\ninterfaces = [\"lo\"]\ninside = [\"192.0.2.0/24\"]\n\
             [paths]\nstate_dir = \"{0}\"\nrun_dir = \"{0}\"\n\
             [scan]\nrules = [\"{0}/rules/current\"]\n\
             [scan.update]\nsize_max = \"64KiB\"\n",
            state.display()
        );
        fs::write(dir.path().join("vscan.toml"), text).unwrap();
        Self { dir }
    }

    fn update(&self, root: Option<&Path>, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vscan"));
        command.arg("rules").arg("--config").arg(self.dir.path().join("vscan.toml"));
        command.arg("update").args(args).env_remove("SSL_CERT_DIR");
        match root {
            Some(root) => command.env("SSL_CERT_FILE", root),
            None => command.env_remove("SSL_CERT_FILE"),
        };
        command.output().unwrap()
    }

    /// The rules that are in force.
    fn in_force(&self) -> Option<String> {
        fs::read_to_string(self.dir.path().join("state/rules/current/a.yar")).ok()
    }

    /// What is left of updates that failed.
    fn leftovers(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir.path().join("state/rules")).unwrap();
        let names = entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned());
        names.filter(|name| name.contains("staging") || name.contains("new")).collect()
    }
}

#[track_caller]
fn ends(output: &Output, code: i32, word: &str) {
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    assert!(err.contains(word), "`{word}` in: {err}");
}

#[test]
fn only_what_a_trusted_server_gives_whole_is_taken() {
    let machine = Machine::new();
    let server = Server::start(machine.dir.path());
    let root = Some(&*server.root);
    let from = |path: &str| server.url(path);
    // Nobody vouches for it, or for another name.
    ends(&machine.update(None, &["--from", &from("/good/a.yar")]), 69, "ertificate");
    let other = from("/good/a.yar").replace("localhost", "127.0.0.1");
    ends(&machine.update(root, &["--from", &other]), 69, "ertificate");
    assert_eq!((machine.in_force(), server.take_asked()), (None, vec![]));

    let key = ["--public-key", KEY];
    let good = from("/good/a.yar");
    let taken = machine.update(root, &["--from", &good, key[0], key[1]]);
    assert!(taken.status.success(), "{taken:?}");
    assert_eq!(machine.in_force().as_deref(), Some(FIRST));
    assert_eq!(server.take_asked(), ["/good/a.yar", "/good/a.yar.sha256", "/good/a.yar.minisig"]);

    let second = machine.update(root, &["--from", &from("/second/a.yar")]);
    assert!(second.status.success(), "{second:?}");
    assert_eq!(machine.in_force().as_deref(), Some(SECOND));
    for (path, args, code, word) in [
        ("/sum/a.yar", &[][..], 65, "SHA-256"),
        ("/sum/a.yar", &key, 65, "SHA-256"),
        ("/good/a.yar", &["--sha256", "00"], 65, "SHA-256"),
        ("/forged/a.yar", &key, 65, "signature"),
        ("/unsigned/a.yar", &key, 65, "no signature"),
        ("/broken/a.yar", &[], 65, "not taken"),
        ("/cut/a.yar", &[], 69, "/cut/a.yar"),
        ("/torn/a.yar", &[], 69, "how long"),
        ("/chunk/a.yar", &[], 69, "/chunk/a.yar"),
        ("/down/a.yar", &[], 69, "/down/a.yar"),
        ("/loop/a.yar", &[], 69, "/loop/a.yar"),
        ("/failing/a.yar", &[], 69, "500"),
        ("/absent/a.yar", &[], 69, "/absent/a.yar"),
        ("/large/a.yar", &[], 65, "65536"),
    ] {
        let url = from(path);
        let output = machine.update(root, &[&["--from", &url][..], args].concat());
        ends(&output, code, word);
        assert_eq!(machine.in_force().as_deref(), Some(SECOND), "{path}");
        assert_eq!(machine.leftovers(), [""; 0], "{path}");
    }
    // A port where nobody listens.
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let nobody = format!("https://localhost:{}/a.yar", SocketAddr::port(&free));
    ends(&machine.update(root, &["--from", &nobody]), 69, &nobody);
}

#[test]
fn slow_servers_and_those_that_point_elsewhere_are_followed() {
    for path in ["/slow/a.yar", "/moved/a.yar", "/chunks/a.yar"] {
        let machine = Machine::new();
        let server = Server::start(machine.dir.path());
        let taken = machine.update(Some(&server.root), &["--from", &server.url(path)]);
        assert!(taken.status.success(), "{path}: {taken:?}");
        assert_eq!(machine.in_force().as_deref(), Some(FIRST), "{path}");
    }
}

#[test]
fn what_was_rolled_back_does_not_come_again_by_itself() {
    let machine = Machine::new();
    let server = Server::start(machine.dir.path());
    let root = Some(&*server.root);
    let (good, second) = (server.url("/good/a.yar"), server.url("/second/a.yar"));
    assert!(machine.update(root, &["--from", &good]).status.success());
    ends(&machine.update(root, &["--rollback"]), 65, "not here");
    assert!(machine.update(root, &["--from", &second]).status.success());
    assert!(machine.update(root, &["--rollback"]).status.success());
    assert_eq!(machine.in_force().as_deref(), Some(FIRST));
    ends(&machine.update(root, &["--from", &second]), 65, "rolled back");
    assert_eq!(machine.in_force().as_deref(), Some(FIRST));
    assert!(machine.update(root, &["--from", &second, "--force"]).status.success());
    assert_eq!(machine.in_force().as_deref(), Some(SECOND));
    // A set that is in force already is no new one.
    let again = machine.update(root, &["--from", &second]);
    let out = String::from_utf8_lossy(&again.stdout).into_owned();
    assert!(again.status.success() && out.starts_with("unchanged"), "{again:?}");
}

//! Load over TLS: clients and a server of our own, by rustls, whose handshakes are always whole.

use crate::host::{Host, Process};
use crate::lab::{Family, Lab};
use crate::load::{Done, mails, many, resident};
use crate::raw;
use crate::smtps::{NAME, Pki};
use anyhow::{Context, Result, ensure};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

/// The port where connections begin with TLS.
pub const IMPLICIT: u16 = 465;

/// Reads and writes wait at most this long.
const LIMIT: Duration = Duration::from_secs(30);

type ClientTls = rustls::StreamOwned<ClientConnection, TcpStream>;
type ServerTls = rustls::StreamOwned<ServerConnection, TcpStream>;

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// Listens on port 25, with STARTTLS, and on [`IMPLICIT`], and takes every mail.
pub fn serve(host: &Host, pki: &Pki) -> Result<()> {
    let chain = CertificateDer::pem_file_iter(pki.path("server.pem"))?.collect::<Result<_, _>>()?;
    let key = PrivateKeyDer::from_pem_file(pki.path("server.key"))?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.send_tls13_tickets = 0;
    let config = Arc::new(config);
    for port in [25, IMPLICIT] {
        let listener = raw::listen(host, port)?;
        let config = Arc::clone(&config);
        std::thread::spawn(move || accept(&listener, &config, port == IMPLICIT));
    }
    Ok(())
}

fn accept(listener: &TcpListener, config: &Arc<ServerConfig>, implicit: bool) {
    for stream in listener.incoming() {
        let Ok(stream) = stream else { return };
        let config = Arc::clone(config);
        // A client that goes away ends its session; nobody wants to know.
        std::thread::spawn(move || session(stream, config, implicit));
    }
}

fn session(mut tcp: TcpStream, config: Arc<ServerConfig>, implicit: bool) -> Result<()> {
    tcp.set_nodelay(true)?;
    tcp.set_read_timeout(Some(LIMIT))?;
    if !implicit {
        tcp.write_all(b"220 sink ESMTP\r\n")?;
        let mut lines = BufReader::new(tcp.try_clone()?);
        let mut line = String::new();
        lines.read_line(&mut line)?;
        tcp.write_all(b"250-sink\r\n250 STARTTLS\r\n")?;
        lines.read_line(&mut line)?;
        ensure!(line.ends_with("STARTTLS\r\n") && lines.buffer().is_empty());
        tcp.write_all(b"220 go\r\n")?;
    }
    let mut tls = BufReader::new(ServerTls::new(ServerConnection::new(config)?, tcp));
    if implicit {
        tls.get_mut().write_all(b"220 sink ESMTP\r\n")?;
    }
    let mut line = String::new();
    loop {
        line.clear();
        if tls.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let reply: &[u8] = match line.get(..4).unwrap_or_default() {
            "DATA" => {
                tls.get_mut().write_all(b"354 go\r\n")?;
                loop {
                    line.clear();
                    ensure!(tls.read_line(&mut line)? > 0);
                    if line == ".\r\n" {
                        break;
                    }
                }
                b"250 queued\r\n"
            }
            "QUIT" => b"221 bye\r\n",
            _ => b"250 ok\r\n",
        };
        tls.get_mut().write_all(reply)?;
    }
}

/// Clients that believe both authorities, and resume nothing.
fn clients(pki: &Pki) -> Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(pki.path("both.pem"))? {
        roots.add(certificate?)?;
    }
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

fn connect(config: &Arc<ClientConfig>, tcp: TcpStream) -> Result<BufReader<ClientTls>> {
    let name = ServerName::try_from(NAME)?;
    let connection = ClientConnection::new(Arc::clone(config), name)?;
    Ok(BufReader::new(ClientTls::new(connection, tcp)))
}

/// TLS on a connection where the server expects it.
pub(crate) fn client(pki: &Pki, tcp: TcpStream) -> Result<ClientTls> {
    tcp.set_nodelay(true)?;
    tcp.set_read_timeout(Some(LIMIT))?;
    Ok(connect(&clients(pki)?, tcp)?.into_inner())
}

/// Sessions that send MIME messages of about this size, each over a connection of its own with STARTTLS; messages.
pub fn messages(
    lab: &Lab,
    pki: &Pki,
    sessions: usize,
    size: usize,
    time: Duration,
) -> Result<Done> {
    let (mails, config) = (mails(size), clients(pki)?);
    many(sessions, time, |number| {
        lab.client().enter()?;
        let (mails, config, mut round) = (&mails, &config, number);
        Ok(move || {
            round += 1;
            let mut tls = connect(config, start_tls(lab.dial(Family::V4, 25))?)?;
            let mail = &mails[round % mails.len()];
            let steps: [(&[u8], &str); 6] = [
                (b"EHLO c\r\n", "250"),
                (b"MAIL FROM:<load@client.example>\r\n", "250"),
                (b"RCPT TO:<bob@server.example>\r\n", "250"),
                (b"DATA\r\n", "354"),
                (mail, "250"),
                (b"QUIT\r\n", "221"),
            ];
            for (command, code) in steps {
                tls.get_mut().write_all(command)?;
                reply(&mut tls, code)?;
            }
            Ok(())
        })
    })
}

fn reply(from: &mut impl BufRead, code: &str) -> Result<()> {
    let mut line = String::new();
    loop {
        line.clear();
        from.read_line(&mut line)?;
        ensure!(line.starts_with(code), "{line:?} instead of {code}");
        if line.as_bytes().get(3) != Some(&b'-') {
            return Ok(());
        }
    }
}

/// Opens idle sessions with STARTTLS on both legs and gives the process's growth for each, in KiB of resident memory.
pub fn idle(lab: &Lab, pki: &Pki, pid: u32, sessions: usize) -> Result<f64> {
    let config = clients(pki)?;
    let open = |count: usize| -> Result<Vec<BufReader<ClientTls>>> {
        lab.client().within(|| {
            (0..count)
                .map(|_| {
                    let to = lab.dial(Family::V4, 25);
                    let mut tls = connect(&config, start_tls(to)?)?;
                    tls.get_mut().write_all(b"EHLO c\r\n")?;
                    reply(&mut tls, "250")?;
                    Ok(tls)
                })
                .collect()
        })
    };
    // What is allocated once is not the sessions'.
    let first = open(8)?;
    let before = resident(pid)?;
    let held = open(sessions)?;
    let after = resident(pid)?;
    drop((first, held));
    ensure!(after > before, "the process did not grow: {before} to {after} KiB");
    Ok((after - before) / sessions as f64)
}

/// A connection up to the server's answer to STARTTLS.
fn start_tls(to: SocketAddr) -> Result<TcpStream> {
    let mut tcp = raw::connect(None, to, Duration::from_secs(5))?;
    tcp.set_nodelay(true)?;
    tcp.set_read_timeout(Some(LIMIT))?;
    let mut lines = BufReader::new(tcp.try_clone()?);
    reply(&mut lines, "220")?;
    for (command, code) in [("EHLO c\r\n", "250"), ("STARTTLS\r\n", "220")] {
        tcp.write_all(command.as_bytes())?;
        reply(&mut lines, code)?;
    }
    ensure!(lines.buffer().is_empty(), "plaintext behind STARTTLS");
    Ok(tcp)
}

/// Connections that begin with TLS and end behind the server's greeting; connections for each second of processor time that
/// the process between takes.
pub fn handshakes(
    lab: &Lab,
    pki: &Pki,
    to: SocketAddr,
    pid: u32,
    sessions: usize,
    time: Duration,
) -> Result<Done> {
    let config = clients(pki)?;
    let before = processor_time(pid)?;
    let done = many(sessions, time, |_| {
        lab.client().enter()?;
        let config = &config;
        Ok(move || {
            let tcp = raw::connect(None, to, Duration::from_secs(5))?;
            tcp.set_nodelay(true)?;
            tcp.set_read_timeout(Some(LIMIT))?;
            let mut tls = connect(config, tcp)?;
            reply(&mut tls, "220")?;
            let tls = tls.get_mut();
            tls.conn.send_close_notify();
            tls.flush()?;
            tls.sock.shutdown(std::net::Shutdown::Write)?;
            // The proxy ends its session.
            let _ = tls.sock.read_to_end(&mut Vec::new());
            Ok(())
        })
    })?;
    Ok(Done { count: done.count, seconds: processor_time(pid)? - before })
}

/// HAProxy on the gateway, which opens TLS on both legs with the operator's certificate, for clients that dial it.
pub fn haproxy(lab: &Lab, pki: &Pki) -> Result<Process> {
    let host = &lab.gateway;
    let both = [fs::read(pki.path("operator.pem"))?, fs::read(pki.path("operator.key"))?].concat();
    let pem = host.dir().join("haproxy.pem");
    fs::write(&pem, both)?;
    let config = host.dir().join("haproxy.cfg");
    fs::write(
        &config,
        format!(
            "global\n  maxconn 4096\ndefaults\n  mode tcp\n  timeout connect 10s\n  timeout client 60s\n  timeout server 60s\n\
             frontend in\n  bind :::{IMPLICIT} v4v6 ssl crt {}\n  default_backend out\n\
             backend out\n  server sink {} ssl verify none no-ssl-reuse sni str({NAME})\n",
            pem.display(),
            lab.dial(Family::V4, IMPLICIT),
        ),
    )?;
    let mut command = host.command("/usr/sbin/haproxy");
    command.arg("-db").arg("-f").arg(&config);
    let process = host.start("haproxy", command)?;
    host.wait_for_port(IMPLICIT).with_context(|| process.log())?;
    Ok(process)
}

/// Seconds that a process has used of all cores (proc(5), `/proc/pid/stat`, in hundredths).
fn processor_time(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let behind = stat.rsplit(')').next().context("stat")?;
    let fields: Vec<f64> =
        behind.split_ascii_whitespace().filter_map(|field| field.parse().ok()).collect();
    // Behind the name and the state, which is a letter: utime and stime are the 14th and 15th of all.
    let ticks = fields.get(10).zip(fields.get(11)).context("stat")?;
    Ok((ticks.0 + ticks.1) / 100.0)
}

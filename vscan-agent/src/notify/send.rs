//! Gives notices to the relay: one connection for all that are due, one at a time.
//!
//! The connection carries the mark of upstream legs, so that the gateway never intercepts its own.

use super::compose::{self, Mail};
use super::queue::{Attempt, Notice};
use crate::config::{Config, Relay, RelayTls};
use crate::gateway::Gateway;
use crate::quarantine;
use jiff::Timestamp;
use lettre::transport::smtp::authentication::{Credentials, DEFAULT_MECHANISMS};
use lettre::transport::smtp::client::{AsyncSmtpConnection, TlsParameters};
use lettre::transport::smtp::extension::ClientId;
use socket2::SockRef;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

/// Notices for one connection: their results are noted together.
const BATCH: usize = 20;

/// For the greeting, EHLO, STARTTLS and the login together (RFC 5321 4.5.3.2: 5 minutes for the greeting).
const GREETING_TIMEOUT: Duration = Duration::from_secs(300);

/// For one notice: RFC 5321 4.5.3.2 gives 5 minutes each for MAIL and RCPT, 2 for DATA, 10 for the end.
const SEND_TIMEOUT: Duration = Duration::from_secs(900);

/// A longer password file is none, in bytes.
const PASSWORD_MAX: u64 = 4096;

/// How long the sender waits when the queue itself fails.
const PAUSE: Duration = Duration::from_secs(60);

/// Sends what is due, for ever.
pub async fn run(gateway: Arc<Gateway>) {
    loop {
        let config = gateway.config();
        let notifier = &gateway.notifier;
        let Some(relay) = &config.notify.relay else {
            // Until a reload names one.
            notifier.woken(None).await;
            continue;
        };
        let queue = Arc::clone(&gateway);
        let due = blocking(move || queue.notifier.queue().due(Timestamp::now(), BATCH)).await;
        let notices = match due {
            Ok(notices) if notices.is_empty() => {
                notifier.woken(notifier.queue().next_due()).await;
                continue;
            }
            Ok(notices) => notices,
            Err(error) => {
                tracing::error!("{error}");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let attempts = send_all(&gateway, &config, relay, &notices).await;
        let (queue, settings) = (Arc::clone(&gateway), Arc::clone(&config));
        let noted = blocking(move || {
            let now = Timestamp::now();
            let noted = queue.notifier.queue().attempted(&attempts, &settings.notify, now);
            noted.map(|notices| (notices, attempts))
        });
        match noted.await {
            Ok((notices, attempts)) => notifier.attempted(&notices, &attempts),
            Err(error) => {
                // They are sent again, which the relay's users may see.
                tracing::error!("{error}");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

async fn send_all(
    gateway: &Gateway,
    config: &Config,
    relay: &Relay,
    notices: &[Notice],
) -> Vec<(u64, Attempt)> {
    let name = super::name(config);
    let mut connection: Option<AsyncSmtpConnection> = None;
    let mut attempts = Vec::with_capacity(notices.len());
    for (at, notice) in notices.iter().enumerate() {
        // A refusal ends the connection; the next notice gets a new one.
        let mut live = match connection.take().filter(|connection| !connection.has_broken()) {
            Some(live) => live,
            None => match timeout(GREETING_TIMEOUT, connect(config, relay, &name)).await {
                Ok(Ok(live)) => live,
                failed => {
                    let why = match failed {
                        Ok(Err(why)) => why,
                        Ok(Ok(_)) | Err(_) => "no answer".to_owned(),
                    };
                    attempts.extend(all_later(&notices[at..], &format!("relay {relay}: {why}")));
                    return attempts;
                }
            },
        };
        let attempt = match made(gateway, config, notice, &name) {
            Ok(mail) => send(&mut live, &mail).await,
            Err(attempt) => attempt,
        };
        attempts.push((notice.id, attempt));
        connection = Some(live);
    }
    if let Some(mut connection) = connection {
        // Whatever is said to a farewell changes nothing.
        let _ = timeout(GREETING_TIMEOUT, connection.quit()).await;
    }
    attempts
}

fn all_later(notices: &[Notice], why: &str) -> Vec<(u64, Attempt)> {
    notices.iter().map(|notice| (notice.id, Attempt::Later(why.to_owned()))).collect()
}

/// The mail for a notice, with the original that belongs to it as far as it is still there.
fn made(gateway: &Gateway, config: &Config, notice: &Notice, name: &str) -> Result<Mail, Attempt> {
    let attached = match &notice.attach {
        None => None,
        Some(id) => match read(&gateway.quarantine, id, config.notify.attach_max) {
            Ok(bytes) => bytes,
            Err(quarantine::StoreError::NoSuchEntry(_)) => None,
            Err(error) => return Err(Attempt::Later(error.to_string())),
        },
    };
    let gone = notice.attach.is_some() && attached.is_none();
    let mut notice = notice.clone();
    if gone {
        notice.body.push_str("\nThe original is not in the quarantine any more.\n");
    }
    let secret = gateway.notifier.queue().secret();
    let token = compose::token(secret, notice.id, &notice.to);
    compose::mail(&notice, attached, &config.notify, name, &token)
        .map_err(|error| Attempt::Refused(error.to_string()))
}

fn read(
    store: &quarantine::Store,
    id: &quarantine::EntryId,
    most: u64,
) -> Result<Option<Vec<u8>>, quarantine::StoreError> {
    let file = store.content(id)?;
    let mut bytes = Vec::new();
    crate::blocking::in_place(|| file.take(most.saturating_add(1)).read_to_end(&mut bytes))
        .map_err(|source| quarantine::StoreError::Io { path: id.as_str().into(), source })?;
    Ok((bytes.len() as u64 <= most).then_some(bytes))
}

async fn send(connection: &mut AsyncSmtpConnection, mail: &Mail) -> Attempt {
    match timeout(SEND_TIMEOUT, connection.send(&mail.envelope, &mail.bytes)).await {
        Ok(Ok(_)) => Attempt::Taken,
        // A relay that refuses for good (5yz) will not change its mind by itself.
        Ok(Err(error)) if error.is_permanent() => Attempt::Refused(explained(&error)),
        Ok(Err(error)) => Attempt::Later(explained(&error)),
        Err(_) => {
            connection.abort().await;
            Attempt::Later("the relay does not answer".to_owned())
        }
    }
}

async fn connect(
    config: &Config,
    relay: &Relay,
    name: &str,
) -> Result<AsyncSmtpConnection, String> {
    let stream = dial(config, relay).await.map_err(|error| error.to_string())?;
    let hello = ClientId::Domain(name.to_owned());
    let connected = AsyncSmtpConnection::connect_with_transport(Box::new(stream), &hello).await;
    let mut connection = connected.map_err(|error| explained(&error))?;
    let secure = match config.notify.tls {
        RelayTls::Never => false,
        RelayTls::Offered => connection.can_starttls(),
        RelayTls::Always if !connection.can_starttls() => {
            return Err("it offers no STARTTLS, and notify.tls is \"always\"".to_owned());
        }
        RelayTls::Always => true,
    };
    if secure {
        let checked = config.notify.tls == RelayTls::Always;
        let parameters = TlsParameters::builder(relay.host.clone())
            .dangerous_accept_invalid_certs(!checked)
            .dangerous_accept_invalid_hostnames(!checked)
            .build()
            .map_err(|error| explained(&error))?;
        connection.starttls(parameters, &hello).await.map_err(|error| explained(&error))?;
    }
    if let (Some(login), Some(file)) = (&config.notify.login, &config.notify.password_file) {
        let password = password(file).map_err(|error| format!("{}: {error}", file.display()))?;
        let credentials = Credentials::new(login.clone(), password);
        connection
            .auth(DEFAULT_MECHANISMS, &credentials)
            .await
            .map_err(|error| explained(&error))?;
    }
    Ok(connection)
}

async fn dial(config: &Config, relay: &Relay) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "it has no address");
    for address in tokio::net::lookup_host((relay.host.as_str(), relay.port)).await? {
        match dial_one(config, address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn dial_one(config: &Config, address: SocketAddr) -> io::Result<TcpStream> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    match SockRef::from(&socket).set_mark(config.gateway.marks.upstream) {
        // The scanner of mailboxes alone has no such privilege, and intercepts nothing.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
        marked => marked?,
    }
    timeout(config.gateway.connect_timeout, socket.connect(address))
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no answer"))?
}

/// The first line of the file.
fn password(file: &Path) -> io::Result<String> {
    let mut text = String::new();
    std::fs::File::open(file)?.take(PASSWORD_MAX).read_to_string(&mut text)?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

/// An error with its causes: lettre's own words are "transient error" and the like.
fn explained(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

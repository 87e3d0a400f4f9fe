//! Ways in: TLS, STARTTLS, and every way to log in.

use crate::stage::*;
use anyhow::{Context, Result};
use std::{
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    path::{Path, PathBuf},
    sync::Arc,
};
use vscan_agent::mailbox::{
    connection::{Connection, Endpoint, Error, Login, Mechanism, Secret, Security},
    tls,
};
use vscan_tests::{
    host::{Host, LabDir},
    imap_server::{Behaviour, Server},
    peers::{Cyrus, Dovecot},
};

/// An authority, and a certificate that it has signed for `localhost`, in files.
struct Certificates {
    authority: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
}

fn certificates(dir: &Path, name: &str) -> Result<Certificates> {
    let key = rcgen::KeyPair::generate()?;
    let mut authority = rcgen::CertificateParams::new(Vec::new())?;
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    authority.distinguished_name.push(rcgen::DnType::CommonName, format!("authority {name}"));
    let signed = authority.self_signed(&key)?;
    let issuer = rcgen::Issuer::new(authority, key);
    let own = rcgen::KeyPair::generate()?;
    let leaf = rcgen::CertificateParams::new(vec!["localhost".to_owned()])?;
    let leaf = leaf.signed_by(&own, &issuer)?;
    let write = |what: &str, text: String| -> Result<PathBuf> {
        let path = dir.join(format!("{name}-{what}.pem"));
        std::fs::write(&path, text)?;
        Ok(path)
    };
    Ok(Certificates {
        authority: write("authority", signed.pem())?,
        certificate: write("certificate", leaf.pem())?,
        key: write("key", own.serialize_pem())?,
    })
}

async fn open_tls(host: &str, port: u16, security: Security) -> Result<Connection, Error> {
    let endpoint = Endpoint { host: host.to_owned(), port, security };
    Connection::open(&endpoint, &password("ann", "secret"), PATIENCE).await
}

#[test]
fn tls_and_starttls_believe_the_named_authority_alone() -> Result<()> {
    for kind in [Kind::Dovecot, Kind::Cyrus] {
        let lab = LabDir::new()?;
        let host = Host::new("mail", &lab, "")?;
        let ours = certificates(lab.path(), "ours")?;
        let others = certificates(lab.path(), "others")?;
        let files = Some((ours.certificate.as_path(), ours.key.as_path()));
        let _server = match kind {
            Kind::Dovecot => (Some(Dovecot::start_with(&host, files, "")?), None),
            Kind::Cyrus => (None, Some(Cyrus::start_with(&host, files, "")?)),
        };
        host.wait_for_port(993)?;
        let config = tls::client_config(Some(&ours.authority))?;
        let wrong = tls::client_config(Some(&others.authority))?;
        within(&host, || async move {
            for (port, security) in [
                (993, Security::Tls(Arc::clone(&config))),
                (143, Security::StartTls(Arc::clone(&config))),
            ] {
                let mut connection = open_tls("localhost", port, security.clone()).await?;
                assert_eq!(connection.examine(&inbox()).await?.exists, 0);
                connection.log_out().await;
                // The same server by a name that its certificate is not for.
                let refused = open_tls("127.0.0.1", port, security).await;
                let Err(Error::Tls(why)) = refused else { panic!("{kind:?}: {refused:?}") };
                assert!(why.contains("not valid for"), "{why}");
            }
            for security in [
                (993, Security::Tls(Arc::clone(&wrong))),
                (143, Security::StartTls(Arc::clone(&wrong))),
            ] {
                let refused = open_tls("localhost", security.0, security.1).await;
                let Err(Error::Tls(why)) = refused else { panic!("{kind:?}: {refused:?}") };
                assert!(why.contains("UnknownIssuer"), "{why}");
            }
            // TLS where there is none.
            let refused = open_tls("localhost", 143, Security::Tls(config)).await;
            assert!(matches!(refused, Err(Error::Tls(_) | Error::Io(_))), "{refused:?}");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn files_without_certificates_are_named() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("empty.pem");
    assert!(tls::client_config(Some(&file)).unwrap_err().to_string().contains("empty.pem"));
    std::fs::write(&file, "nothing")?;
    let error = tls::client_config(Some(&file)).unwrap_err().to_string();
    assert!(error.contains("no certificate"), "{error}");
    Ok(())
}

/// A server that says these lines, one for the greeting and one for each line that it hears, and then only listens.
fn speaker(lines: &'static [&'static str]) -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    std::thread::spawn(move || -> Result<()> {
        let stream = listener.accept()?.0;
        let mut reader = BufReader::new(stream.try_clone()?);
        for line in lines {
            (&stream).write_all(line.as_bytes())?;
            reader.read_line(&mut String::new())?;
        }
        let mut rest = Vec::new();
        std::io::Read::read_to_end(&mut reader, &mut rest)?;
        Ok(())
    });
    Ok(port)
}

#[test]
fn starttls_cannot_be_tricked() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let ours = certificates(dir.path(), "ours")?;
    let config = tls::client_config(Some(&ours.authority))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let open = |lines| {
        let security = Security::StartTls(Arc::clone(&config));
        anyhow::Ok(runtime.block_on(open_tls("localhost", speaker(lines)?, security)))
    };
    // Plaintext behind the answer, as if the server had said it inside of TLS.
    let injected = open(&["* OK\r\n", "vscan OK\r\n* CAPABILITY IMAP4rev1 AUTH=PLAIN\r\n"])?;
    assert!(matches!(injected, Err(Error::Tls(_))), "{injected:?}");
    // A connection that claims to need no login never gets to TLS.
    let preauth = open(&["* PREAUTH you are ann\r\n"])?;
    assert!(matches!(preauth, Err(Error::Missing(_))), "{preauth:?}");
    for refusing in [
        &["* OK\r\n", "vscan NO not today\r\n"][..],
        &["* OK\r\n", "vscan BAD what?\r\n"],
        &["* OK\r\n", "+ go on\r\n"],
    ] {
        let refused = open(refusing)?;
        assert!(matches!(refused, Err(Error::Missing("STARTTLS"))), "{refused:?}");
    }
    let bye = open(&["* BYE overloaded\r\n"])?;
    assert!(matches!(bye, Err(Error::Bye(_))), "{bye:?}");
    Ok(())
}

/// How a login fares at a server of our own: what it heard, and the outcome.
fn at(behaviour: Behaviour, login: Login) -> Result<(Vec<String>, Result<Connection, Error>)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let server = Server::start(behaviour)?;
    let outcome = runtime.block_on(open_at(server.address().port(), login));
    Ok((server.take_commands(), outcome))
}

fn offering(capabilities: &str) -> Behaviour {
    Behaviour { capabilities: format!("IMAP4rev1 {capabilities}"), ..Behaviour::default() }
}

#[test]
fn every_way_to_log_in() -> Result<()> {
    let by = |mechanism| Login::Password {
        mechanism,
        on_behalf_of: String::new(),
        user: "ann".to_owned(),
        password: Secret::new("p\"\\".to_owned()),
    };
    // "\0ann\0p\"\\" in base64.
    const PLAIN: &str = "AGFubgBwIlw=";
    let (heard, done) = at(offering("AUTH=PLAIN SASL-IR"), by(Mechanism::Any))?;
    done?;
    assert_eq!(heard[1], format!("AUTHENTICATE PLAIN {PLAIN}"));
    let (heard, done) = at(offering("AUTH=PLAIN"), by(Mechanism::Any))?;
    done?;
    assert_eq!(heard[1], "AUTHENTICATE PLAIN", "and the secret behind the server's question");
    for (offered, mechanism) in [("X", Mechanism::Any), ("AUTH=PLAIN", Mechanism::Login)] {
        let (heard, done) = at(offering(offered), by(mechanism))?;
        done?;
        assert_eq!(heard[1], r#"LOGIN "ann" "p\"\\""#);
    }
    for (offered, mechanism) in [
        ("LOGINDISABLED STARTTLS", Mechanism::Any),
        ("LOGINDISABLED AUTH=PLAIN", Mechanism::Login),
        ("X", Mechanism::Plain),
    ] {
        let (heard, done) = at(offering(offered), by(mechanism))?;
        assert!(matches!(done, Err(Error::Missing(_))), "{done:?}");
        assert!(heard.len() == 1 && !heard[0].contains("LOGIN"), "no secret is sent: {heard:?}");
    }
    let token = || Login::XOAuth2 {
        user: "ann@x.example".to_owned(),
        token: Secret::new("ya29.token".to_owned()),
    };
    let (heard, done) = at(offering("AUTH=XOAUTH2 SASL-IR"), token())?;
    done?;
    // Google's example of the format: user=...^Aauth=Bearer ...^A^A
    assert_eq!(
        heard[1],
        "AUTHENTICATE XOAUTH2 dXNlcj1hbm5AeC5leGFtcGxlAWF1dGg9QmVhcmVyIHlhMjkudG9rZW4BAQ=="
    );
    let (_, done) = at(offering("AUTH=PLAIN"), token())?;
    assert!(matches!(done, Err(Error::Missing("AUTH=XOAUTH2"))), "{done:?}");
    // An error comes as a question, whose answer is nothing, and then as a refusal.
    let instead = |command: &str| match command {
        command if command.starts_with("AUTHENTICATE") => {
            Some(b"+ eyJzdGF0dXMiOiI0MDEifQ==\r\nTAG NO expired\r\n".to_vec())
        }
        _ => None,
    };
    let refusing = Behaviour { instead: Arc::new(instead), ..offering("AUTH=XOAUTH2 SASL-IR") };
    let (_, done) = at(refusing, token())?;
    let Err(Error::Login(why)) = done else { panic!("{done:?}") };
    assert_eq!(why, "expired");
    let preauth = Behaviour { greeting: "* PREAUTH hello".to_owned(), ..Behaviour::default() };
    let (heard, done) = at(preauth, by(Mechanism::Any))?;
    assert!(matches!(done, Err(Error::Missing(_))) && heard.is_empty(), "{done:?}");
    Ok(())
}

#[test]
fn an_administrator_logs_in_for_a_user_by_both_names_in_one() -> Result<()> {
    on(Kind::Dovecot, "", |_stage| async move {
        for mechanism in [Mechanism::Plain, Mechanism::Login] {
            let login = Login::Password {
                mechanism,
                on_behalf_of: String::new(),
                user: "carol*admin".to_owned(),
                password: Secret::new("master".to_owned()),
            };
            let mut connection = open(login).await?;
            connection.append(&inbox(), &[], None, mail("hello", "").into()).await?;
        }
        assert_eq!(snapshot("carol", &inbox()).await?.len(), 2);
        Ok(())
    })
}

#[test]
fn what_serves_a_scan_is_turned_on() -> Result<()> {
    let offered = "AUTH=PLAIN ENABLE QRESYNC UTF8=ACCEPT";
    let folders = vec!["Entw\u{fc}rfe".to_owned(), "A & B".to_owned()];
    let behaviour = Behaviour { folders, ..offering(offered) };
    let server = Server::start(behaviour)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut connection = open_at(server.address().port(), password("ann", "secret")).await?;
        assert!(connection.is_enabled("QRESYNC") && connection.is_enabled("UTF8=ACCEPT"));
        let names = connection.list("*").await?;
        let names: Vec<_> = names.iter().map(|listed| listed.name.as_wire_str()).collect();
        assert_eq!(names, ["Entw&APw-rfe", "A &- B"], "remembered the same with and without UTF-8");
        let name = vscan_agent::mailbox::name::FolderName::from_unicode("Entw\u{fc}rfe");
        connection.examine(&name).await?;
        let heard = server.take_commands();
        let last = heard.last().context("nothing was heard")?;
        assert_eq!(last, "EXAMINE \"Entw\u{fc}rfe\" (CONDSTORE)");
        Ok(())
    })
}

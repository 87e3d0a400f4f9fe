use super::*;
use crate::config::{self, Config, KeyFile, TlsVersion, Verify};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use std::{io, path::Path, task::Poll};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

pub(crate) async fn connected() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (client, accepted) =
        tokio::try_join!(TcpStream::connect(address), listener.accept()).unwrap();
    (client, accepted.0)
}

/// An authority in a directory: `ca.pem`, `ca.key`.
fn authority(dir: &Path) -> Issuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.distinguished_name.push(rcgen::DnType::CommonName, "Lab CA");
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    std::fs::write(dir.join("ca.pem"), certificate.pem()).unwrap();
    std::fs::write(dir.join("ca.key"), key.serialize_pem()).unwrap();
    Issuer::new(params, key)
}

/// `NAME.pem` and `NAME.key`.
fn certificate(dir: &Path, name: &str, issuer: &Issuer<'static, KeyPair>) {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    let certificate = params.signed_by(&key, issuer).unwrap();
    std::fs::write(dir.join(format!("{name}.pem")), certificate.pem()).unwrap();
    std::fs::write(dir.join(format!("{name}.key")), key.serialize_pem()).unwrap();
}

fn named(dir: &Path, name: &str) -> config::TlsCertificate {
    let file = |end: &str| KeyFile::Path(dir.join(format!("{name}.{end}")));
    config::TlsCertificate { chain: file("pem"), key: file("key"), servers: Vec::new() }
}

struct Lab {
    _dir: tempfile::TempDir,
    config: Config,
    tls: Tls,
}

/// Certificates for two names and an authority; servers' certificates are pinned to it.
fn lab(more: impl FnOnce(&mut Config)) -> Lab {
    let dir = tempfile::tempdir().unwrap();
    let issuer = authority(dir.path());
    let mut config = Config::defaults();
    config.gateway.inside = vec!["10.0.0.0/8".parse().unwrap()];
    for name in ["mx.example", "*.two.example"] {
        certificate(dir.path(), name, &issuer);
        config.tls.certificates.push(named(dir.path(), name));
    }
    let file = |name: &str| KeyFile::Path(dir.path().join(name));
    config.tls.authority = Some(config::TlsAuthority {
        certificate: file("ca.pem"),
        key: file("ca.key"),
        lifetime: Duration::from_secs(7 * 86_400),
    });
    config.tls.upstream.verify = Verify::Pinned;
    config.tls.upstream.ca = Some(file("ca.pem"));
    more(&mut config);
    let (tls, _) = Tls::load(&config).unwrap();
    Lab { _dir: dir, config, tls }
}

fn hello(name: Option<&str>) -> Hello {
    Hello {
        bytes: Vec::new(),
        server_name: name.map(str::to_owned),
        schemes: vec![rustls::SignatureScheme::ECDSA_NISTP256_SHA256],
    }
}

const INSIDE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
const OUTSIDE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

/// Both ends of a connection, our client with our server.
async fn pair(lab: &Lab, name: &str) -> (Wire, Wire) {
    let (client, server) = connected().await;
    let upstream = lab.tls.upstream(&lab.config, INSIDE, Some(name)).unwrap();
    let shown = lab.tls.shown(&lab.config, INSIDE, &hello(Some(name)), None).unwrap();
    let (client, server) = tokio::try_join!(
        TlsWire::connect(client, &upstream, b""),
        TlsWire::accept(server, shown.config(false).unwrap(), Vec::new())
    )
    .unwrap();
    assert!(upstream.is_trusted());
    (Wire::Tls(client), Wire::Tls(server))
}

#[tokio::test]
async fn bytes_cross_in_both_versions_and_the_end_is_told() {
    for least in [TlsVersion::Tls12, TlsVersion::Tls13] {
        let lab = lab(|config| config.tls.min_version = least);
        let (mut client, mut server) = pair(&lab, "mx.example").await;
        assert_eq!(client.settled().unwrap().version, "TLSv1.3");
        let sent: Vec<u8> = (0..3_000_001_u32).map(|n| (n % 251) as u8).collect();
        let expected = sent.clone();
        let writing = tokio::spawn(async move {
            client.write_all(&sent).await.unwrap();
            client.flush().await.unwrap();
            client.shutdown().await.unwrap();
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).await.unwrap();
            answer
        });
        let mut got = Vec::new();
        server.read_to_end(&mut got).await.unwrap();
        assert!(got == expected);
        server.write_all(b"half-closed").await.unwrap();
        server.close_gracefully().await.unwrap();
        assert_eq!(writing.await.unwrap(), b"half-closed");
    }
}

#[tokio::test]
async fn tls_1_2_where_the_peer_has_no_more() {
    let lab = lab(|_| {});
    let (client, server) = connected().await;
    let shown = lab.tls.shown(&lab.config, INSIDE, &hello(None), None).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(
        Material::load(&lab.config).unwrap().pinned[0].1.iter().map(|der| der.as_slice().into()),
    );
    let old = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(old));
    let (client, server) = tokio::join!(
        connector.connect("mx.example".try_into().unwrap(), client),
        TlsWire::accept(server, shown.config(false).unwrap(), Vec::new())
    );
    let (mut client, server) = (client.unwrap(), server.unwrap());
    assert_eq!(server.settled().version, "TLSv1.2");
    assert!(server.settled().cipher.starts_with("TLS_ECDHE_ECDSA_WITH_"), "{:?}", server.settled());
    let mut server = Wire::Tls(server);
    client.write_all(b"hello").await.unwrap();
    let mut got = [0; 5];
    server.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"hello");
}

#[tokio::test]
async fn an_end_without_close_notify_is_no_end() {
    let lab = lab(|_| {});
    let (mut client, mut server) = pair(&lab, "mx.example").await;
    client.write_all(b"most of a file").await.unwrap();
    client.flush().await.unwrap();
    let Wire::Tls(client) = client else { unreachable!() };
    let (mut tcp, _) = client.into_plain();
    tcp.shutdown().await.unwrap();
    let mut got = Vec::new();
    let error = server.read_to_end(&mut got).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    assert_eq!(got, b"most of a file");
}

/// Relays one way, a byte at a time, so that every record is split everywhere.
async fn drip(mut from: tokio::net::tcp::OwnedReadHalf, mut to: tokio::net::tcp::OwnedWriteHalf) {
    let mut byte = [0];
    while from.read_exact(&mut byte).await.is_ok() {
        if to.write_all(&byte).await.is_err() {
            return;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn records_split_at_every_byte() {
    let lab = lab(|_| {});
    let (client, ours) = connected().await;
    let (theirs, server) = connected().await;
    for stream in [&ours, &theirs] {
        stream.set_nodelay(true).unwrap();
    }
    let ((from_client, to_client), (from_server, to_server)) =
        (ours.into_split(), theirs.into_split());
    tokio::spawn(drip(from_client, to_server));
    tokio::spawn(drip(from_server, to_client));
    let upstream = lab.tls.upstream(&lab.config, INSIDE, Some("mx.example")).unwrap();
    let serving = async {
        let mut server = server;
        let hello = Hello::read(&mut server, Vec::new()).await.unwrap();
        assert_eq!(hello.server_name.as_deref(), Some("mx.example"));
        let shown = lab.tls.shown(&lab.config, INSIDE, &hello, None).unwrap();
        TlsWire::accept(server, shown.config(false).unwrap(), hello.bytes).await
    };
    let words = b"EHLO words\r\n";
    let connecting = TlsWire::connect(client, &upstream, words);
    let (client, server) = tokio::try_join!(connecting, serving).unwrap();
    let (mut client, mut server) = (Wire::Tls(client), Wire::Tls(server));
    let sent: Vec<u8> = (0..40_000_u32).map(|n| (n % 251) as u8).collect();
    let mut got = vec![0; words.len() + sent.len()];
    let (written, read) = tokio::join!(
        async {
            client.write_all(&sent).await?;
            client.flush().await
        },
        server.read_exact(&mut got)
    );
    written.unwrap();
    read.unwrap();
    assert!(got == [&words[..], &sent].concat());
}

#[tokio::test]
async fn garbage_is_told_from_tls() {
    let (mut client, mut server) = connected().await;
    client.write_all(b"EHLO injected\r\n").await.unwrap();
    assert!(matches!(Hello::read(&mut server, Vec::new()).await, Err(HelloError::NotTls)));
    // A record that says it is one.
    let (mut client, mut server) = connected().await;
    client.write_all(b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\xff").await.unwrap();
    let error = Hello::read(&mut server, Vec::new()).await.unwrap_err();
    assert!(matches!(error, HelloError::Refused(_)), "{error}");
    drop(server);
    let mut alert = Vec::new();
    let _ = client.read_to_end(&mut alert).await;
    assert_eq!(alert.first(), Some(&21), "no alert");
}

#[tokio::test]
async fn what_comes_behind_a_handshake_as_garbage_ends_it() {
    let lab = lab(|_| {});
    let (client, mut server) = pair(&lab, "mx.example").await;
    let Wire::Tls(client) = client else { unreachable!() };
    let (mut tcp, _) = client.into_plain();
    tcp.write_all(b"\x17\x03\x03\x00\x20this was never encrypted by anyone").await.unwrap();
    let mut got = Vec::new();
    let error = server.read_to_end(&mut got).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
    assert!(got.is_empty());
    let mut alert = [0; 1];
    tcp.read_exact(&mut alert).await.unwrap();
    // Session tickets come first, then the alert, which is encrypted in TLS 1.3.
    assert_eq!(alert, [0x17]);
}

#[tokio::test]
async fn a_server_with_another_certificate_is_refused_or_only_noted() {
    let other = lab(|_| {});
    for (verify, accepted) in [(Verify::Pinned, false), (Verify::Opportunistic, true)] {
        let lab = lab(|config| {
            config.tls.upstream.verify = verify;
            if accepted {
                config.tls.upstream.ca = None;
            }
        });
        let (client, server) = connected().await;
        let upstream = lab.tls.upstream(&lab.config, INSIDE, Some("mx.example")).unwrap();
        let shown = other.tls.shown(&other.config, INSIDE, &hello(Some("mx.example")), None);
        let (client, server) = tokio::join!(
            TlsWire::connect(client, &upstream, b""),
            TlsWire::accept(server, shown.unwrap().config(false).unwrap(), Vec::new())
        );
        assert_eq!(client.is_ok(), accepted);
        assert!(!upstream.is_trusted());
        assert!(upstream.refusal().is_some());
        if !accepted {
            let error = client.unwrap_err().to_string();
            assert!(error.contains("invalid peer certificate"), "{error}");
            // TLS 1.3: the server may be done before the client looks at its certificate.
            let told = match server {
                Ok(server) => Wire::Tls(server).read(&mut [0; 10]).await.unwrap_err(),
                Err(error) => error,
            };
            assert!(told.to_string().contains("received fatal alert"), "{told}");
        }
    }
}

#[tokio::test]
async fn the_name_decides_which_certificate_is_shown() {
    let lab = lab(|_| {});
    let names = |server, name: Option<&str>| {
        let shown = lab.tls.shown(&lab.config, server, &hello(name), None).unwrap();
        Facts::of(shown.certificate()).unwrap().names
    };
    assert_eq!(names(INSIDE, Some("mx.example")), ["mx.example"]);
    assert_eq!(names(INSIDE, Some("a.two.example")), ["*.two.example"]);
    assert_eq!(names(INSIDE, Some("a.b.two.example")), ["mx.example"], "one label");
    assert_eq!(names(INSIDE, None), ["mx.example"], "the first for who asks for nothing");
    assert_eq!(names(OUTSIDE, Some("foreign.example")), ["foreign.example"], "made");
    assert_eq!(names(OUTSIDE, None), ["192.0.2.1"], "never the operator's for a foreign server");
}

#[tokio::test]
async fn made_certificates_are_kept_and_believed_as_the_server_is() {
    let lab = lab(|_| {});
    let authority = lab.tls.authority.as_ref().unwrap();
    let names = ["foreign.example".to_owned(), "192.0.2.1".to_owned(), "*.x.example".to_owned()];
    let (first, second) = (
        authority.certificate(&names, true).unwrap(),
        authority.certificate(&names, true).unwrap(),
    );
    assert!(Arc::ptr_eq(&first, &second), "made twice");
    let doubtful = authority.certificate(&names, false).unwrap();
    for (shown, trusted) in [(first, true), (doubtful, false)] {
        let facts = Facts::of(shown.certificate()).unwrap();
        assert_eq!(facts.names, names);
        assert!(facts.not_before < now() - 80_000 && facts.not_after > now() + 6 * 86_400);
        let (client, server) = connected().await;
        let upstream = lab.tls.upstream(&lab.config, OUTSIDE, Some("foreign.example")).unwrap();
        let (client, _) = tokio::join!(
            TlsWire::connect(client, &upstream, b""),
            TlsWire::accept(server, shown.config(false).unwrap(), Vec::new())
        );
        assert_eq!((client.is_ok(), upstream.is_trusted()), (trusted, trusted));
    }
    assert!(authority.certificate(&[], true).is_ok(), "no name at all");
}

#[tokio::test]
async fn sessions_resume_with_the_same_certificate_only() {
    let lab = lab(|_| {});
    let upstream = lab.tls.upstream(&lab.config, INSIDE, Some("mx.example")).unwrap();
    let mine = lab.tls.shown(&lab.config, INSIDE, &hello(Some("mx.example")), None).unwrap();
    let names = ["mx.example".to_owned()];
    let made = lab.tls.authority.as_ref().unwrap().certificate(&names, true).unwrap();
    for (shown, resumed) in [(&mine, false), (&mine, true), (&made, false)] {
        let (client, server) = connected().await;
        let (client, server) = tokio::try_join!(
            TlsWire::connect(client, &upstream, b""),
            TlsWire::accept(server, shown.config(false).unwrap(), Vec::new())
        )
        .unwrap();
        assert_eq!((client.settled().resumed, server.settled().resumed), (resumed, resumed));
        // Tickets come behind the handshake.
        let (mut client, mut server) = (Wire::Tls(client), Wire::Tls(server));
        server.write_all(b"x").await.unwrap();
        client.read_exact(&mut [0; 1]).await.unwrap();
    }
}

#[tokio::test]
async fn a_server_that_asks_for_a_certificate_is_noticed() {
    let lab = lab(|_| {});
    for asks in [false, true] {
        let (client, server) = connected().await;
        let upstream = lab.tls.upstream(&lab.config, INSIDE, Some("mx.example")).unwrap();
        let shown = lab.tls.shown(&lab.config, INSIDE, &hello(None), None).unwrap();
        let (_, server) = tokio::try_join!(
            TlsWire::connect(client, &upstream, b""),
            TlsWire::accept(server, shown.config(asks).unwrap(), Vec::new())
        )
        .unwrap();
        assert_eq!(upstream.asked_for_certificate(), asks);
        assert!(!server.has_peer_certificate());
    }
}

#[tokio::test]
async fn a_reader_that_does_not_read_stops_the_writer() {
    let lab = lab(|_| {});
    let (mut client, _server) = pair(&lab, "mx.example").await;
    let chunk = vec![0; 1 << 20];
    let mut taken = 0;
    loop {
        let wrote = std::future::poll_fn(|cx| {
            Poll::Ready(std::pin::Pin::new(&mut client).poll_write(cx, &chunk))
        });
        match wrote.await {
            Poll::Ready(count) => taken += count.unwrap(),
            Poll::Pending => break,
        }
        assert!(taken < 64 << 20, "no backpressure");
        tokio::task::yield_now().await;
    }
}

use tokio::io::AsyncWrite as _;

#[test]
fn what_is_wrong_with_files_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let issuer = authority(dir.path());
    certificate(dir.path(), "a.example", &issuer);
    certificate(dir.path(), "b.example", &issuer);
    let error = |config: &Config| Tls::load(config).unwrap_err().to_string();
    let mut config = Config::defaults();
    config.tls.certificates = vec![named(dir.path(), "none")];
    assert!(error(&config).contains("none.pem: No such file"), "{}", error(&config));
    config.tls.certificates = vec![named(dir.path(), "a.example")];
    config.tls.certificates[0].key = KeyFile::Path(dir.path().join("b.example.key"));
    assert!(error(&config).ends_with("the key is not that of the certificate"));
    config.tls.certificates[0].key = KeyFile::Path(dir.path().join("b.example.pem"));
    assert!(error(&config).contains("no private key in it"));
    config.tls.certificates[0].key = KeyFile::Credential("mx.key".to_owned());
    assert!(error(&config).contains("LoadCredential="));
    config.tls.certificates.clear();
    config.tls.authority = Some(config::TlsAuthority {
        certificate: KeyFile::Path(dir.path().join("a.example.pem")),
        key: KeyFile::Path(dir.path().join("a.example.key")),
        lifetime: Duration::from_secs(86_400),
    });
    assert!(error(&config).contains("is not the certificate of an authority"));
}

#[test]
fn keys_cross_a_descriptor() {
    let lab = lab(|_| {});
    let material = Material::load(&lab.config).unwrap();
    let bytes = material.to_bytes().unwrap();
    assert!(Material::from_bytes(&bytes).unwrap() == material);
    assert!(!format!("{material:?}").contains("chain"), "keys in the log");
}

#[test]
fn ages_are_told() {
    let day = 86_400;
    let age = |before: i64, after: i64| Age {
        file: "mx.pem".to_owned(),
        names: Vec::new(),
        not_before: now() + before,
        not_after: now() + after,
    };
    let warning = Duration::from_secs(21 * 86_400);
    assert_eq!(age(-day, 30 * day).complaint(warning), None);
    let said = age(-day, 3 * day + 60).complaint(warning).unwrap();
    assert_eq!(said, "mx.pem: the certificate expires in 3 days");
    let said = age(-day, -2 * day + 60).complaint(warning).unwrap();
    assert_eq!(said, "mx.pem: the certificate has expired 2 days ago");
    assert!(age(day, 30 * day).complaint(warning).unwrap().ends_with("not valid yet"));
}

/// A handshake of the client's whose answer was made before the server's was over.
async fn with_expected(lab: &Lab, expected_trust: bool, trusted: bool) -> (bool, bool) {
    let authority = lab.tls.authority.as_ref().unwrap();
    let names = ["foreign.example".to_owned()];
    let last = authority.certificate(&names, expected_trust).unwrap();
    let key = (OUTSIDE, Some("foreign.example".to_owned()));
    lab.tls.remembered.0.insert(key, Arc::clone(&last));
    let (client, mut server) = connected().await;
    let upstream = lab.tls.upstream(&lab.config, OUTSIDE, Some("foreign.example")).unwrap();
    let serving = async {
        let hello = Hello::read(&mut server, Vec::new()).await.unwrap();
        let expected = lab.tls.expect(&lab.config, OUTSIDE, &hello);
        assert!(Arc::ptr_eq(&expected.as_ref().unwrap().shown, &last));
        let shown = authority.certificate(&names, trusted).unwrap();
        let answer = Expected::or_another(expected, &shown, false, hello.bytes).unwrap();
        answer.give(server).await
    };
    let (client, server) = tokio::join!(TlsWire::connect(client, &upstream, b""), serving);
    (client.is_ok(), server.is_ok() && upstream.is_trusted())
}

#[tokio::test]
async fn an_answer_that_was_made_in_advance_is_given_only_if_it_is_the_right_one() {
    let lab = lab(|_| {});
    assert_eq!(with_expected(&lab, true, true).await, (true, true));
    // The server is not what it was: what the client sees is what it is now.
    assert!(!with_expected(&lab, true, false).await.0);
    assert_eq!(with_expected(&lab, false, true).await, (true, true));
}

#[tokio::test]
async fn tickets_go_with_what_is_written_next() {
    let lab = lab(|_| {});
    let (client, mut server) = pair(&lab, "mx.example").await;
    let Wire::Tls(client) = client else { unreachable!() };
    let (tcp, _) = client.into_plain();
    let mut byte = [0];
    // The handshake is over on both sides, and the server has said nothing behind it, also when it reads.
    let read = std::future::poll_fn(|cx| Poll::Ready(server.poll_read(cx, &mut byte))).await;
    assert!(read.is_pending());
    let peeked = tokio::time::timeout(Duration::from_millis(50), tcp.peek(&mut byte)).await;
    assert!(peeked.is_err(), "tickets by themselves");
    server.write_all(b"220 hello\r\n").await.unwrap();
    let mut records = vec![0; 4096];
    tcp.readable().await.unwrap();
    let count = tcp.try_read(&mut records).unwrap();
    // Tickets in a record, and the greeting in another, written at once.
    let mut kinds = Vec::new();
    let mut at = 0;
    while at < count {
        kinds.push(records[at]);
        at += 5 + usize::from(u16::from_be_bytes([records[at + 3], records[at + 4]]));
    }
    assert_eq!((kinds, at), (vec![23, 23], count));
}

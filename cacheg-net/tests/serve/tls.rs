//! TLS with a certificate made for the test.

use std::sync::Arc;

use bytes::Bytes;
use cacheg_net::serve::Tls;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::support::{Running, Store, ask1, ask2, noise, request, settings};

#[tokio::test]
async fn both_protocols() {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (cert, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
    std::fs::write(&cert, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let large = noise(3_000_000);
    let store = Store::with(&[("a", large.clone())]);
    let tls = Tls::open(&cert, &key).unwrap();
    let server = Running::start(&store, settings(|all| all.tls = Some(tls))).await;
    assert!(server.url.starts_with("https://"));

    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    for protocol in ["h2", "http/1.1"] {
        let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots.clone())
            .with_no_client_auth();
        config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
        let stream = TcpStream::connect(server.address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(protocol.as_bytes()));
        let reply = match protocol {
            "h2" => ask2(stream, vec![request("GET", "https://localhost/a", &[], b"")]).await.remove(0),
            _ => ask1(stream, "GET", "/a", &[], b"").await,
        };
        assert!(reply.status == 200 && reply.body == large, "{protocol}");
    }
    // Plain text on a TLS port is turned away, and the server goes on.
    let answer = server.raw(b"GET /a HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(!answer.contains("200"), "{answer}");
}

#[tokio::test]
async fn a_peer_that_begins_no_handshake_is_cut() {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let both = folder.path().join("both.pem");
    std::fs::write(&both, made.signing_key.serialize_pem() + &made.cert.pem()).unwrap();
    let tls = Tls::open(&both, &both).unwrap();
    let server = Running::start(
        &Store::with(&[("a", Bytes::new())]),
        settings(|all| {
            all.tls = Some(tls);
            all.header_timeout = std::time::Duration::from_millis(200);
        }),
    )
    .await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    assert_eq!(stream.read(&mut [0]).await.unwrap_or(0), 0);
}

#[test]
fn wrong_files() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let one = rcgen::generate_simple_self_signed(["a".to_owned()]).unwrap();
    let two = rcgen::generate_simple_self_signed(["b".to_owned()]).unwrap();
    std::fs::write(at("cert"), one.cert.pem()).unwrap();
    std::fs::write(at("key"), one.signing_key.serialize_pem()).unwrap();
    std::fs::write(at("other"), two.signing_key.serialize_pem()).unwrap();
    std::fs::write(at("text"), "hello").unwrap();
    Tls::open(&at("cert"), &at("key")).unwrap();
    for (cert, key, says) in [
        ("none", "key", "none"),
        ("cert", "none", "none"),
        ("text", "key", "no certificate"),
        ("cert", "text", "no PEM"),
        ("key", "key", "no certificate"),
        ("cert", "cert", "no PEM"),
        ("cert", "other", "cert with"),
    ] {
        let message = Tls::open(&at(cert), &at(key)).unwrap_err().to_string();
        assert!(message.contains(says), "{cert} {key}: {message}");
    }
}

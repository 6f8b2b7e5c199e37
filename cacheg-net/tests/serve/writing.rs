//! Uploads.

use std::time::{Duration, Instant};

use bytes::Bytes;
use cacheg_net::serve::Settings;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::support::{Running, Store, ask2, noise, request, settings};

fn writable() -> Settings {
    settings(|all| {
        all.writable = true;
        all.max_object = 1 << 20;
    })
}

#[tokio::test]
async fn there_and_back() {
    let store = Store::with(&[]);
    let server = Running::start(&store, writable()).await;
    let bytes = noise(1 << 20);
    assert_eq!(server.ask("PUT", "/a/b", &[], &bytes).await.status, 204);
    assert!(server.get("/a/b", &[]).await.body == bytes);
    assert_eq!(server.ask("PUT", "/a/b", &[("if-none-match", "*")], b"x").await.status, 412);
    assert_eq!(server.ask("PUT", "/a/c", &[("if-none-match", "*")], b"x").await.status, 201);
    assert_eq!(server.ask("PUT", "/a/c", &[], b"").await.status, 204);
    assert_eq!(server.get("/a/c", &[]).await.body.len(), 0);
    assert_eq!(server.ask("DELETE", "/a/c", &[], b"").await.status, 204);
    assert_eq!(server.ask("DELETE", "/a/c", &[], b"").await.status, 204);
    assert_eq!(server.get("/a/c", &[]).await.status, 404);
    let chunked = "PUT /a/d HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n";
    let answer = server.raw(format!("{chunked}3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n").as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 204"), "{answer}");
    assert_eq!(store.bytes("a/d").unwrap(), "abcde");
    let stream = TcpStream::connect(server.address).await.unwrap();
    let put = |name: &str| request("PUT", &format!("{}/{name}", server.url), &[], &bytes);
    for reply in ask2(stream, vec![put("h2/a"), put("h2/b"), put("h2/c")]).await {
        assert_eq!(reply.status, 204);
    }
    assert!(store.bytes("h2/c").unwrap() == bytes);
}

#[tokio::test]
async fn only_where_it_is_allowed() {
    let store = Store::with(&[("a", Bytes::from_static(b"x"))]);
    let server = Running::start(&store, Settings::default()).await;
    for method in ["PUT", "DELETE", "COPY", "MKCOL", "POST", "PATCH", "MOVE", "TRACE", "FOO"] {
        let reply = server.ask(method, "/a", &[("destination", "/b")], b"").await;
        assert_eq!((reply.status, reply.header("allow")), (405, "GET, HEAD, OPTIONS, PROPFIND"), "{method}");
    }
    assert_eq!(store.bytes("a").unwrap(), "x");
    let server = Running::start(&store, writable()).await;
    for (method, path, status) in [
        ("PUT", "/-/health", 405),
        ("PUT", "/-/x", 404),
        ("PUT", "/", 405),
        ("PUT", "/a/", 405),
        ("PUT", "/../a", 400),
        ("DELETE", "/", 405),
        ("POST", "/a", 405),
    ] {
        assert_eq!(server.ask(method, path, &[], b"y").await.status, status, "{method} {path}");
    }
    for (header, status) in [
        (("content-range", "bytes 0-0/1"), 400),
        (("content-encoding", "gzip"), 415),
        (("if-match", "\"a\""), 501),
        (("if-none-match", "\"a\""), 501),
    ] {
        assert_eq!(server.ask("PUT", "/a", &[header], b"y").await.status, status, "{header:?}");
    }
    assert_eq!(store.bytes("a").unwrap(), "x");
}

#[tokio::test]
async fn too_large() {
    let store = Store::with(&[]);
    let server = Running::start(&store, writable()).await;
    // Refused for what it announces, before any of it was sent.
    let head = "PUT /a HTTP/1.1\r\nhost: x\r\nconnection: close\r\n";
    let announced = format!("{head}content-length: 1048577\r\nexpect: 100-continue\r\n\r\n");
    assert!(server.raw(announced.as_bytes()).await.starts_with("HTTP/1.1 413"));
    let mut body = format!("{head}transfer-encoding: chunked\r\n\r\n").into_bytes();
    for _ in 0..17 {
        body.extend_from_slice(b"10000\r\n");
        body.extend_from_slice(&[7; 0x1_0000]);
        body.extend_from_slice(b"\r\n");
    }
    let answer = server.raw(&body).await;
    assert!(answer.starts_with("HTTP/1.1 413") || answer.is_empty(), "{answer}");
    assert!(store.bytes("a").is_none());
}

#[tokio::test]
async fn an_upload_that_breaks_off_leaves_nothing() {
    let store = Store::with(&[]);
    let server = Running::start(
        &store,
        settings(|all| {
            all.writable = true;
            all.idle_timeout = Duration::from_millis(300);
        }),
    )
    .await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(b"PUT /a HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nhalf").await.unwrap();
    drop(stream);
    let answer = server.raw(b"PUT /b HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n5\r\nab").await;
    assert!(!answer.starts_with("HTTP/1.1 2"), "{answer}");
    assert!(store.bytes("a").is_none() && store.bytes("b").is_none());
}

#[tokio::test]
async fn uploads_wait_for_memory_and_not_for_ever() {
    let store = Store::with(&[]);
    let server = Running::start(
        &store,
        settings(|all| {
            all.writable = true;
            all.max_object = 1 << 20;
            all.queue_timeout = Duration::from_millis(300);
        }),
    )
    .await;
    let mut slow = TcpStream::connect(server.address).await.unwrap();
    slow.write_all(b"PUT /slow HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n").await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let start = Instant::now();
    let reply = server.ask("PUT", "/other", &[], &noise(100_000)).await;
    assert_eq!((reply.status, reply.header("retry-after")), (503, "1"));
    assert!(start.elapsed() >= Duration::from_millis(290));
    // Small ones still fit, and all do when the slow one is gone.
    assert_eq!(server.ask("PUT", "/small", &[], b"x").await.status, 204);
    drop(slow);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(server.ask("PUT", "/other", &[], &noise(1 << 20)).await.status, 204);
}

#[tokio::test]
async fn copies() {
    let store = Store::with(&[("a", Bytes::from_static(b"x")), ("taken", Bytes::from_static(b"y"))]);
    let server = Running::start(&store, writable()).await;
    for (from, headers, status) in [
        ("/a", &[("destination", "http://test/b/c")][..], 204),
        ("/a", &[("destination", "/taken"), ("overwrite", "F")], 412),
        ("/a", &[("destination", "/../x")], 400),
        ("/a", &[("destination", "/-/x")], 404),
        ("/a", &[("destination", "/d/")], 403),
        ("/a", &[], 400),
        ("/none", &[("destination", "/x")], 404),
    ] {
        assert_eq!(server.ask("COPY", from, headers, b"").await.status, status, "{from} {headers:?}");
    }
    assert_eq!(store.bytes("b/c").unwrap(), "x");
    assert_eq!(store.bytes("taken").unwrap(), "y");
}

//! Requests that no good client sends.

use std::time::{Duration, Instant};

use bytes::Bytes;
use cacheg_net::serve::Settings;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Running, Store, noise, settings};

async fn alive(server: &Running) {
    assert_eq!(server.get("/-/health", &[]).await.status, 200);
    assert_eq!(server.get("/a", &[]).await.text(), "x");
}

#[tokio::test]
async fn targets_that_lead_out() {
    let server =
        Running::start(&Store::with(&[("a", Bytes::from_static(b"x"))]), settings(|all| all.writable = true))
            .await;
    for target in [
        "/../a",
        "/../../etc/passwd",
        "/a/../a",
        "/%2e%2e/a",
        "/..%2fa",
        "/%2e%2e%2f%2e%2e%2fetc/passwd",
        "/%252e%252e/a",
        "/a%00",
        "/a\\..\\b",
        "/.git/config",
        "//a",
        "/a//b",
        "/%",
        "/%zz",
        "http://other/../a",
        "/a%0d%0aset-cookie:x",
    ] {
        for method in ["GET", "HEAD", "PUT", "DELETE", "PROPFIND", "COPY", "MKCOL"] {
            let request = format!("{method} {target} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
            let answer = server.raw(request.as_bytes()).await;
            assert!(answer.starts_with("HTTP/1.1 400"), "{method} {target}: {answer}");
            assert!(!answer.contains("set-cookie:x\r\n"));
        }
    }
    // The absolute form is good HTTP.
    let answer = server.raw(b"GET http://x/a HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    alive(&server).await;
}

#[tokio::test]
async fn what_is_no_http() {
    let server = Running::start(
        &Store::with(&[("a", Bytes::from_static(b"x"))]),
        settings(|all| all.idle_timeout = Duration::from_millis(300)),
    )
    .await;
    for (request, status) in [
        (&b"hello\r\n\r\n"[..], "400"),
        (b"GET\r\n\r\n", "400"),
        (b"GET /a HTTP/9.9\r\n\r\n", "400"),
        (b"GET /a b HTTP/1.1\r\n\r\n", "400"),
        (b"GET /a HTTP/1.1\r\nno colon\r\n\r\n", "400"),
        (b"GET /a HTTP/1.1\r\nx: \x00\r\n\r\n", "400"),
        (b"GET /a HTTP/1.1\r\ncontent-length: x\r\n\r\n", "400"),
        (b"PUT /a HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n", "400"),
        (b"PUT /a HTTP/1.1\r\ncontent-length: 99999999999999999999999\r\n\r\n", "400"),
        (b"CONNECT x:1 HTTP/1.1\r\nhost: x\r\n\r\n", "400"),
        (b"OPTIONS * HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", "204"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a TLS greeting \r\n\r\n", "400"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nthis is no frame at all, however long it may be", ""),
        (b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", ""),
        (b"\xff\xfe\xfd\r\n\r\n", "400"),
    ] {
        let answer = server.raw(request).await;
        let shown = String::from_utf8_lossy(request);
        assert!(
            status.is_empty() || answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{shown}: expected {status}, got {answer}"
        );
        assert!(!answer.starts_with("HTTP/1.1 200"), "{shown}: {answer}");
    }
    alive(&server).await;
}

#[tokio::test]
async fn headers_that_are_too_long_or_too_many() {
    let server = Running::start(
        &Store::with(&[("a", Bytes::from_static(b"x"))]),
        settings(|all| {
            all.max_header_bytes = 20_000;
            all.max_headers = 20;
        }),
    )
    .await;
    let get = |headers: &str| format!("GET /a HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}\r\n");
    let long = |length| get(&format!("x: {}\r\n", "y".repeat(length)));
    let many = |count| get(&"x: y\r\n".repeat(count));
    for (request, status) in [
        (long(10_000), "200"),
        (long(19_980), "431"),
        (long(100_000), "431"),
        (long(3_000_000), "431"),
        (many(18), "200"),
        (many(19), "431"),
        (many(99), "431"),
        (many(3_000), "431"),
        (format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(70_000)), "4"),
        (format!("GET /a?{} HTTP/1.1\r\nconnection: close\r\n\r\n", "a".repeat(19_999)), "431"),
        (get(&format!("range: bytes={}\r\n", "0-1,".repeat(2_000))), "200"),
        (get(&format!("if-none-match: {}\r\n", "\"q\",".repeat(2_000))), "200"),
    ] {
        let answer = server.raw(request.as_bytes()).await;
        let line = answer.lines().next().unwrap_or_default();
        // What is megabytes too long may be reset before the answer is read.
        let reset = answer.is_empty() && request.len() > 1_000_000;
        assert!(line.contains(&format!(" {status}")) || reset, "{} bytes: {line}", request.len());
    }
    alive(&server).await;
}

#[tokio::test]
async fn slow_requests_are_cut() {
    let server = Running::start(
        &Store::with(&[("a", Bytes::from_static(b"x"))]),
        settings(|all| {
            all.header_timeout = Duration::from_millis(400);
            all.idle_timeout = Duration::from_millis(800);
        }),
    )
    .await;
    // Nothing; half a request, byte by byte; half of HTTP/2's greeting; after a good request.
    let drip = async |first: &'static [u8], limit: u64| {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        let (start, mut sent) = (Instant::now(), first.iter().cycle());
        let mut buffer = [0; 4096];
        loop {
            match tokio::time::timeout(Duration::from_millis(20), stream.read(&mut buffer)).await {
                Ok(Ok(0) | Err(_)) => break,
                Ok(Ok(_)) => {}
                Err(_) => {
                    if let Some(byte) = sent.next() {
                        let _ = stream.write_all(&[*byte]).await;
                    }
                }
            }
            assert!(start.elapsed() < Duration::from_millis(limit), "{first:?} holds the connection");
        }
    };
    tokio::join!(drip(b"", 700), drip(b"G", 700), drip(b"PRI * HTTP/2.0", 700), async {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(b"GET /a HTTP/1.1\r\nhost: x\r\n\r\nGET /a").await.unwrap();
        let start = Instant::now();
        let mut all = Vec::new();
        let _ = stream.read_to_end(&mut all).await;
        assert!(start.elapsed() < Duration::from_millis(1_500));
    });
    alive(&server).await;
}

#[tokio::test]
async fn a_client_that_reads_nothing_is_cut() {
    let store = Store::with(&[("large", noise(64 << 20)), ("a", Bytes::from_static(b"x"))]);
    let server = Running::start(
        &store,
        settings(|all| {
            all.idle_timeout = Duration::from_millis(500);
            all.max_requests = 1;
        }),
    )
    .await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    // The only place is taken; others wait until the silent one is found out.
    let start = Instant::now();
    alive(&server).await;
    let waited = start.elapsed();
    assert!(waited < Duration::from_secs(2), "{waited:?}");
    drop(stream);
}

#[tokio::test]
async fn a_busy_server_says_so() {
    let store = Store::with(&[("a", noise(1 << 20))]);
    store.delay.store(200, std::sync::atomic::Ordering::Relaxed);
    let server = Running::start(
        &store,
        settings(|all| {
            all.max_requests = 1;
            all.queue_timeout = Duration::from_millis(300);
        }),
    )
    .await;
    let (first, second, health) = tokio::join!(
        server.get("/a", &[]),
        async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            server.get("/a", &[]).await
        },
        async {
            tokio::time::sleep(Duration::from_millis(150)).await;
            server.get("/-/health", &[]).await
        }
    );
    assert_eq!((first.status, first.body.len()), (200, 1 << 20));
    assert_eq!((second.status, second.header("retry-after")), (503, "1"));
    assert_eq!(health.status, 200);
}

#[tokio::test]
async fn connections_beyond_the_limit_wait() {
    let store = Store::with(&[("a", Bytes::from_static(b"x"))]);
    let server = Running::start(
        &store,
        settings(|all| {
            all.max_connections = 2;
            all.header_timeout = Duration::from_millis(300);
        }),
    )
    .await;
    let _silent = [
        TcpStream::connect(server.address).await.unwrap(),
        TcpStream::connect(server.address).await.unwrap(),
    ];
    let start = Instant::now();
    alive(&server).await;
    assert!(start.elapsed() >= Duration::from_millis(250) && start.elapsed() < Duration::from_secs(2));
}

#[tokio::test]
async fn an_abandoned_transfer_stops_reading() {
    let store = Store::with(&[("large", noise(64 << 20))]);
    store.delay.store(5, std::sync::atomic::Ordering::Relaxed);
    let server = Running::start(&store, Settings::default()).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let _ = stream.read(&mut [0; 4096]).await;
    drop(stream);
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let text = server.get("/-/metrics", &[]).await.text();
        if text.contains("cacheg_serve_requests_running 1\n") {
            return;
        }
    }
    panic!("the transfer still runs");
}

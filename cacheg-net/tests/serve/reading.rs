//! `GET` and `HEAD` against cases worked out by hand.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use cacheg_net::serve::Settings;
use tokio::net::TcpStream;

use crate::support::{Running, Store, ask2, noise, request};

const DATE: &str = "Sun, 06 Nov 1994 08:49:37 GMT";

fn small() -> [(&'static str, Bytes); 4] {
    [
        ("contexts/a/manifest.json", Bytes::from_static(b"0123456789")),
        ("chunks/ab/0.cgkv", Bytes::from_static(b"chunk")),
        ("profiles/cd.cgprof", Bytes::from_static(b"profile")),
        ("empty", Bytes::new()),
    ]
}

#[tokio::test]
async fn whole_objects_and_their_headers() {
    let server = Running::start(&Store::with(&small()), Settings::default()).await;
    for (method, body) in [("GET", "0123456789"), ("HEAD", "")] {
        let reply = server.ask(method, "/contexts/a/manifest.json", &[], b"").await;
        assert_eq!((reply.status, &*reply.text()), (200, body));
        assert_eq!(reply.header("content-length"), "10");
        assert_eq!(reply.header("accept-ranges"), "bytes");
        assert_eq!(reply.header("etag"), "\"v0\"");
        assert_eq!(reply.header("last-modified"), DATE);
        assert_eq!(reply.header("cache-control"), "no-cache");
        assert_eq!(reply.header("content-type"), "application/json");
        assert!(!reply.header("date").is_empty());
    }
    for path in ["/chunks/ab/0.cgkv", "/profiles/cd.cgprof"] {
        let reply = server.get(path, &[]).await;
        assert_eq!(reply.header("cache-control"), "public, max-age=31536000, immutable");
        assert_eq!(reply.header("content-type"), "application/octet-stream");
    }
    let reply = server.get("/empty", &[]).await;
    assert_eq!((reply.status, reply.header("content-length"), reply.body.len()), (200, "0", 0));
    for (method, path) in [("GET", "/none"), ("HEAD", "/none"), ("GET", "/"), ("GET", "/contexts/")] {
        let reply = server.ask(method, path, &[], b"").await;
        assert_eq!(reply.status, 404, "{method} {path}");
        assert!(!reply.text().contains("secret"), "{}", reply.text());
    }
}

#[tokio::test]
async fn ranges() {
    let server = Running::start(&Store::with(&small()), Settings::default()).await;
    let path = "/contexts/a/manifest.json";
    for (range, body, content_range) in [
        ("bytes=0-0", "0", "bytes 0-0/10"),
        ("bytes=3-5", "345", "bytes 3-5/10"),
        ("bytes=7-", "789", "bytes 7-9/10"),
        ("bytes=7-99", "789", "bytes 7-9/10"),
        ("bytes=-2", "89", "bytes 8-9/10"),
        ("bytes=-99", "0123456789", "bytes 0-9/10"),
        ("bytes=0-9", "0123456789", "bytes 0-9/10"),
    ] {
        let reply = server.get(path, &[("range", range)]).await;
        assert_eq!((reply.status, &*reply.text(), reply.header("content-range")), (206, body, content_range));
        assert_eq!(reply.header("content-length"), body.len().to_string());
        assert_eq!(reply.header("etag"), "\"v0\"");
    }
    for range in ["bytes=10-", "bytes=10-20", "bytes=-0", "bytes=99999999999999999999-"] {
        let reply = server.get(path, &[("range", range)]).await;
        assert_eq!((reply.status, reply.header("content-range")), (416, "bytes */10"), "{range}");
    }
    for range in ["bytes=5-3", "bytes=0-1,4-5", "bytes=x", "apples=0-1"] {
        let reply = server.get(path, &[("range", range)]).await;
        assert_eq!((reply.status, &*reply.text()), (200, "0123456789"), "{range}");
    }
    let reply = server.ask("HEAD", path, &[("range", "bytes=3-5")], b"").await;
    assert_eq!((reply.status, reply.header("content-length")), (200, "10"));
    for (range, status) in [("bytes=0-", 416), ("bytes=-5", 200)] {
        assert_eq!(server.get("/empty", &[("range", range)]).await.status, status, "{range}");
    }
}

#[tokio::test]
async fn conditions() {
    let store = Store::with(&small());
    let server = Running::start(&store, Settings::default()).await;
    let path = "/contexts/a/manifest.json";
    for (headers, status) in [
        (&[("if-none-match", "\"v0\"")][..], 304),
        (&[("if-none-match", "\"x\", \"v0\"")], 304),
        (&[("if-none-match", "\"x\"")], 200),
        (&[("if-modified-since", DATE)], 304),
        (&[("if-match", "\"v0\"")], 200),
        (&[("if-match", "\"x\"")], 412),
        (&[("if-unmodified-since", "Sun, 06 Nov 1994 08:49:36 GMT")], 412),
        (&[("range", "bytes=1-2"), ("if-range", "\"v0\"")], 206),
        (&[("range", "bytes=1-2"), ("if-range", "\"x\"")], 200),
        (&[("range", "bytes=1-2"), ("if-range", DATE)], 200),
        (&[("range", "bytes=99-"), ("if-range", "\"x\"")], 200),
        (&[("range", "bytes=1-2"), ("if-none-match", "\"v0\"")], 304),
    ] {
        let reply = server.get(path, headers).await;
        assert_eq!(reply.status, status, "{headers:?}");
        if status == 304 {
            assert_eq!((reply.header("etag"), reply.body.len()), ("\"v0\"", 0));
        }
    }
    // Replaced: the old tag is not valid any more.
    store.set("contexts/a/manifest.json", "other");
    assert_eq!(server.get(path, &[("if-none-match", "\"v0\"")]).await.text(), "other");
}

#[tokio::test]
async fn tags_for_stores_that_have_none() {
    let large = noise(1 << 20);
    let store = Store::with(&[("small", Bytes::from_static(b"one")), ("large", large.clone())]);
    store.tagless.store(true, Ordering::Relaxed);
    let server = Running::start(&store, Settings::default()).await;
    let first = server.get("/small", &[]).await;
    let tag = first.header("etag").to_owned();
    assert!(tag.len() == 34 && tag.starts_with('"'), "{tag}");
    assert_eq!(server.ask("HEAD", "/small", &[], b"").await.header("etag"), tag);
    assert_eq!(server.get("/small", &[("if-none-match", &tag)]).await.status, 304);
    let part = server.get("/small", &[("range", "bytes=1-1"), ("if-range", &tag)]).await;
    assert_eq!((part.status, &*part.text()), (206, "n"));
    store.set("small", "two");
    assert_eq!(server.get("/small", &[("if-none-match", &tag)]).await.text(), "two");
    let reply = server.get("/large", &[]).await;
    assert_eq!((reply.header("etag"), reply.body == large), ("", true));
}

#[tokio::test]
async fn large_objects_over_both_protocols() {
    let large = noise(5_000_000);
    let server = Running::start(&Store::with(&[("chunks/x", large.clone())]), Settings::default()).await;
    assert!(server.get("/chunks/x", &[]).await.body == large);
    let stream = TcpStream::connect(server.address).await.unwrap();
    let url = |path: &str| format!("{}{path}", server.url);
    let mut requests =
        vec![request("GET", &url("/chunks/x"), &[], b""), request("HEAD", &url("/chunks/x"), &[], b"")];
    for at in 0..98 {
        let range = format!("bytes={}-{}", at * 1000, at * 50_000 + 1000);
        requests.push(request("GET", &url("/chunks/x"), &[("range", &range)], b""));
    }
    let replies = ask2(stream, requests).await;
    assert!(replies[0].status == 200 && replies[0].body == large);
    assert_eq!((replies[1].header("content-length"), replies[1].body.len()), ("5000000", 0));
    for (at, reply) in replies[2..].iter().enumerate() {
        assert_eq!(reply.status, 206);
        assert!(reply.body == large.slice(at * 1000..=at * 50_000 + 1000), "{at}");
    }
}

#[tokio::test]
async fn a_store_that_fails_is_never_a_short_object() {
    let store = Store::with(&[("x", noise(200_000))]);
    store.broken.store(true, Ordering::Relaxed);
    let server = Running::start(&store, Settings::default()).await;
    let answer = server.raw(b"GET /x HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(answer.contains("content-length: 200000"), "{}", &answer[..200]);
    assert!(answer.len() < 190_000);
    assert!(!answer.contains("disk is gone"));
}

#[tokio::test]
async fn health_metrics_and_options() {
    let server = Running::start(&Store::with(&small()), Settings::default()).await;
    assert_eq!(server.get("/-/health", &[]).await.text(), "ok\n");
    server.get("/chunks/ab/0.cgkv", &[]).await;
    server.get("/none", &[]).await;
    let text = server.get("/-/metrics", &[]).await.text();
    for line in [
        "cacheg_serve_requests_total{method=\"GET\",status=\"404\"} 1",
        "cacheg_serve_requests_total{method=\"GET\",status=\"200\"} 2",
        "cacheg_serve_requests_running 1",
        "cacheg_serve_connections 1",
        "cacheg_serve_request_seconds_count 3",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    let sent = text.lines().find_map(|line| line.strip_prefix("cacheg_serve_sent_bytes_total "));
    assert_eq!(sent.unwrap(), (3 + 5 + "no such object\n".len()).to_string());
    let reply = server.ask("OPTIONS", "/x", &[], b"").await;
    assert_eq!((reply.status, reply.header("allow")), (204, "GET, HEAD, OPTIONS, PROPFIND"));
    assert_eq!(server.get("/-/other", &[]).await.status, 404);
}

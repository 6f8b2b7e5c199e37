//! What servers and networks do wrong.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use cacheg_core::{Error, ErrorKind, Key, Put, PutOutcome, Result, Transport};
use cacheg_net::serve::Tokens;
use cacheg_net::transport::{FileStore, MemoryStore};

use crate::fault_server::{Fault, FaultServer};
use crate::servers::{Http, open};

const PATIENCE: Duration = Duration::from_millis(300);

fn key() -> Key {
    Key::new("a/b").unwrap()
}

/// Not patient, so that tests are short.
fn impatient(url: &str) -> Arc<dyn Transport> {
    open(url, |options| (options.patience, options.retries) = (PATIENCE, 2))
}

async fn read(store: &dyn Transport, range: Option<std::ops::Range<u64>>) -> Result<Vec<u8>> {
    let mut body = store.get(&key(), range).await?;
    let mut all = Vec::new();
    while let Some(piece) = body.pieces.next().await? {
        all.extend_from_slice(&piece);
    }
    Ok(all)
}

async fn get(faults: &[Fault], range: Option<std::ops::Range<u64>>) -> (Result<Vec<u8>>, usize) {
    let server = FaultServer::start(faults).await;
    let start = Instant::now();
    let result = read(&*impatient(&server.url), range).await;
    assert!(start.elapsed() < PATIENCE * 2 + Duration::from_secs(1), "took {:?}", start.elapsed());
    if let Err(error) = &result {
        assert!(error.to_string().contains(&server.url), "{error}");
    }
    (result, server.count())
}

fn say(text: &str) -> Fault {
    Fault::Say(text.into())
}

fn kind<T: std::fmt::Debug>(result: Result<T>) -> ErrorKind {
    result.unwrap_err().kind()
}

#[tokio::test]
async fn lengths() {
    let whole = |head: &str, body: &str| say(&format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n{body}"));
    let part = |head: &str, body: &str| say(&format!("HTTP/1.1 206 Partial Content\r\n{head}\r\n\r\n{body}"));
    let (read, _) = get(&[whole("content-length: 5", "hello")], None).await;
    assert_eq!(read.unwrap(), b"hello");
    // Shorter: the connection ended in the middle.
    let (read, _) = get(&[whole("content-length: 500", "hello")], None).await;
    assert_eq!(kind(read), ErrorKind::Unavailable);
    let (read, _) = get(&[whole("content-length: 18446744073709551614", "hello")], None).await;
    assert_eq!(kind(read), ErrorKind::Unavailable, "and nothing is allocated for it");
    // Longer: what comes after the end is not looked at.
    let (read, _) = get(&[whole("content-length: 3", "hello")], None).await;
    assert_eq!(read.unwrap(), b"hel");
    let (read, _) = get(&[whole("transfer-encoding: chunked", "5\r\nhello\r\n0\r\n\r\n")], None).await;
    assert_eq!(kind(read), ErrorKind::Unsupported);
    let (read, _) = get(&[whole("content-length: five", "hello")], None).await;
    assert!(read.is_err());
    // Ranges.
    let good = part("content-range: bytes 1-3/5\r\ncontent-length: 3", "ell");
    assert_eq!(get(std::slice::from_ref(&good), Some(1..4)).await.0.unwrap(), b"ell");
    assert_eq!(kind(get(std::slice::from_ref(&good), Some(2..4)).await.0), ErrorKind::Corrupt, "other bytes");
    assert!(get(&[good], None).await.0.is_err(), "a part where the whole was wanted");
    let chunks = |body: &str| part("content-range: bytes 1-3/5\r\ntransfer-encoding: chunked", body);
    assert_eq!(get(&[chunks("3\r\nell\r\n0\r\n\r\n")], Some(1..4)).await.0.unwrap(), b"ell");
    assert_eq!(kind(get(&[chunks("2\r\nel\r\n0\r\n\r\n")], Some(1..4)).await.0), ErrorKind::Corrupt);
    assert_eq!(kind(get(&[chunks("4\r\nello\r\n0\r\n\r\n")], Some(1..4)).await.0), ErrorKind::Corrupt);
    for head in [
        "content-range: bytes 1-3/5\r\ncontent-length: 4",
        "content-range: bytes 1-3/*\r\ncontent-length: 3",
        "content-range: bytes 1-3/2\r\ncontent-length: 3",
        "content-length: 3",
        "content-range: bytes 1-18446744073709551615/18446744073709551615\r\ncontent-length: 3",
    ] {
        let (read, _) = get(&[part(head, "ello")], Some(1..4)).await;
        assert!(matches!(kind(read), ErrorKind::Corrupt | ErrorKind::InvalidData), "{head}");
    }
    // A server without ranges.
    let ignored = whole("content-length: 5", "hello");
    assert_eq!(get(std::slice::from_ref(&ignored), Some(1..4)).await.0.unwrap(), b"ell");
    assert_eq!(kind(get(&[ignored], Some(1..6)).await.0), ErrorKind::InvalidData);
}

#[tokio::test]
async fn silence_and_resets() {
    let head = "HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\nhello";
    let (read, count) = get(&[Fault::Stall(String::new())], None).await;
    assert_eq!((kind(read), count), (ErrorKind::Unavailable, 1), "no answer; not asked twice");
    assert_eq!(kind(get(&[Fault::Stall(head.into())], None).await.0), ErrorKind::Unavailable);
    let (read, count) = get(&[Fault::Reset(String::new())], None).await;
    assert_eq!((kind(read), count), (ErrorKind::Unavailable, 3), "a request and two more");
    assert_eq!(kind(get(&[Fault::Reset(head.into())], None).await.0), ErrorKind::Unavailable);
    // One that comes back.
    let good = say("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello");
    let busy = say("HTTP/1.1 503 Service Unavailable\r\nretry-after: 0\r\ncontent-length: 0\r\n\r\n");
    let (read, count) = get(&[Fault::Reset(String::new()), busy.clone(), good.clone()], None).await;
    assert_eq!((read.unwrap(), count), (b"hello".to_vec(), 3));
    assert_eq!(kind(get(&[busy], None).await.0), ErrorKind::Unavailable);
    // One that asks for more time than there is.
    let later = say("HTTP/1.1 429 Too Many Requests\r\nretry-after: 60\r\ncontent-length: 0\r\n\r\n");
    let (read, count) = get(&[later, good], None).await;
    assert_eq!((kind(read), count), (ErrorKind::Unavailable, 1));
    // None at all.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let store = impatient(&format!("http://{address}"));
    assert_eq!(kind(read_all(&store).await), ErrorKind::Unavailable);
}

async fn read_all(store: &Arc<dyn Transport>) -> Result<Vec<u8>> {
    read(&**store, None).await
}

#[tokio::test]
async fn refusals() {
    for (status, expected) in [
        ("400 Bad Request", ErrorKind::InvalidData),
        ("401 Unauthorized", ErrorKind::Denied),
        ("403 Forbidden", ErrorKind::Denied),
        ("404 Not Found", ErrorKind::NotFound),
        ("410 Gone", ErrorKind::NotFound),
        ("413 Content Too Large", ErrorKind::Limit),
        ("418 Teapot", ErrorKind::Unsupported),
        ("500 Internal Server Error", ErrorKind::Unavailable),
        ("501 Not Implemented", ErrorKind::Unsupported),
        ("302 Found", ErrorKind::Unsupported),
    ] {
        let answer = say(&format!("HTTP/1.1 {status}\r\ncontent-length: 4\r\n\r\nwhy."));
        let (read, _) = get(std::slice::from_ref(&answer), None).await;
        assert_eq!(kind(read), expected, "{status}");
        let server = FaultServer::start(&[answer]).await;
        let store = impatient(&server.url);
        assert_eq!(kind(store.head(&key()).await), expected, "{status}");
        let put = store.put(&key(), Bytes::from_static(b"x"), Put::Replace).await;
        assert_eq!(kind(put), expected, "{status}");
    }
    // A loop, and a server that repeats what it must not.
    let around = say("HTTP/1.1 302 Found\r\nlocation: /a/b\r\ncontent-length: 0\r\n\r\n");
    let (read, count) = get(&[around], None).await;
    assert!(read.is_err() && count < 10, "{count} requests");
    let parrot = say("HTTP/1.1 403 Forbidden\r\ncontent-length: 22\r\n\r\nno entry for swordfish");
    let server = FaultServer::start(&[parrot]).await;
    for url in [server.url.clone(), server.url.replace("http://", "http://user:swordfish@")] {
        let token = (!url.contains('@')).then(|| "swordfish".to_owned());
        let store = open(&url, |options| options.token = token);
        let error: Error = store.head(&key()).await.unwrap_err();
        let get = store.get(&key(), None).await.unwrap_err();
        for text in [error.to_string(), get.to_string(), store.url().to_owned(), format!("{store:?}")] {
            assert!(!text.contains("swordfish"), "{text}");
        }
    }
}

#[tokio::test]
async fn hostile_listings() {
    let list = async |body: &str, fault: fn(String) -> Fault| {
        let head = "HTTP/1.1 207 Multi-Status\r\nconnection: close\r\n\r\n";
        let server = FaultServer::start(&[fault(format!("{head}{body}"))]).await;
        let store = impatient(&format!("{}/base/", server.url));
        let mut listing = store.list(None);
        let mut names = Vec::new();
        while let Some(page) = listing.next().await? {
            names.extend(page.into_iter().map(|(key, meta)| format!("{key} {}", meta.size)));
        }
        Ok::<_, Error>(names)
    };
    let entry = |href: &str, size: &str| {
        format!(
            "<d:response><d:href>{href}</d:href><d:propstat><d:prop><d:getcontentlength>{size}</d:getcontentlength>\
             <d:quota/></d:prop><d:status>HTTP/1.1 200 OK</d:status></d:propstat><d:propstat><d:prop>\
             <d:getcontentlength>9</d:getcontentlength></d:prop><d:status>HTTP/1.1 404 Not Found</d:status>\
             </d:propstat></d:response>"
        )
    };
    let wrapped = |inner: &str| {
        format!("<?xml version='1.0'?><!-- x --><d:multistatus xmlns:d='DAV:'>{inner}</d:multistatus>")
    };
    // Names as they may be written; what is no key is not ours.
    let all = [
        entry("/base/a", "1"),
        entry("http://elsewhere/base/b%2Fc", "2"),
        entry("/base/&#100;/e", "3"),
        entry("/base/no%20key", "4"),
        entry("/base/", ""),
        entry("/base/../../etc/passwd", "5"),
    ];
    let names = list(&wrapped(&all.concat()), Fault::Say).await.unwrap();
    assert_eq!(names, ["a 1", "b/c 2", "d/e 3"]);
    let whole = wrapped(&entry("/base/a", "1"));
    for (body, expected) in [
        (wrapped(&entry("/other/a", "1")), ErrorKind::Corrupt),
        (wrapped(&entry("/base/a", "many")), ErrorKind::Corrupt),
        (wrapped(&entry("/base/a", "-1")), ErrorKind::Corrupt),
        ("this is no XML".into(), ErrorKind::Unavailable),
        ("<a></b>".into(), ErrorKind::Corrupt),
        ("<!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>".into(), ErrorKind::Corrupt),
        (wrapped(&entry("/base/&unknown;", "1")), ErrorKind::Corrupt),
        // Never whole if it is not.
        (whole[..whole.len() - 5].to_owned(), ErrorKind::Unavailable),
        (whole[..whole.len() / 2].to_owned(), ErrorKind::Unavailable),
        (wrapped(&entry(&format!("/base/{}", "a".repeat(1 << 20)), "1")), ErrorKind::Limit),
        (wrapped(&format!("<d:response>{}", "<x>y</x>".repeat(1 << 17))), ErrorKind::Limit),
    ] {
        let shown: String = body.chars().take(200).collect();
        assert_eq!(kind(list(&body, Fault::Say).await), expected, "{shown}");
    }
    assert_eq!(kind(list(&whole[..whole.len() / 2], Fault::Stall).await), ErrorKind::Unavailable);
    assert_eq!(kind(list(&whole[..whole.len() / 2], Fault::Reset).await), ErrorKind::Unavailable);
}

/// In the middle of a transfer the server is killed, and comes back at the same address.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed_and_restarted() {
    let folder = tempfile::tempdir().unwrap();
    let files = || Arc::new(FileStore::new(folder.path()).unwrap());
    let object: Bytes = (0..64_u32 << 20).map(|i| (i >> 12) as u8).collect::<Vec<u8>>().into();
    files().put(&key(), object.clone(), Put::Create).await.unwrap();
    let server = Http::start(files(), |_| ()).await;
    let (store, address) = (impatient(&server.url), server.address);
    let mut body = store.get(&key(), None).await.unwrap();
    let etag = body.meta.etag.clone();
    let mut got = body.pieces.next().await.unwrap().unwrap().to_vec();
    server.kill().await;
    let error = loop {
        match body.pieces.next().await {
            Ok(piece) => got.extend_from_slice(&piece.unwrap()),
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(got.len() < object.len() && object.starts_with(&got));
    assert!(body.pieces.next().await.is_err(), "the body does not end well afterwards");
    assert_eq!(kind(store.head(&key()).await), ErrorKind::Unavailable);
    let put = store.put(&Key::new("c").unwrap(), object.slice(..10), Put::Replace).await;
    assert_eq!(kind(put), ErrorKind::Unavailable);

    let server = Http::start_at(address, files(), |_| ()).await;
    let mut body = store.get(&key(), Some(got.len() as u64..object.len() as u64)).await.unwrap();
    assert_eq!(body.meta.etag, etag);
    while let Some(piece) = body.pieces.next().await.unwrap() {
        got.extend_from_slice(&piece);
    }
    assert!(object == got);
    server.kill().await;
}

/// Servers whose answers to uploads are lost.
#[tokio::test]
async fn lost_answers_to_uploads() {
    let create = async |faults: &[Fault]| {
        let server = FaultServer::start(faults).await;
        impatient(&server.url).put(&key(), Bytes::from_static(b"hello"), Put::Create).await
    };
    let taken = say("HTTP/1.1 412 Precondition Failed\r\ncontent-length: 0\r\n\r\n");
    let ours = say("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello");
    let theirs = say("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nother");
    let lost = Fault::Reset(String::new());
    assert_eq!(create(std::slice::from_ref(&taken)).await.unwrap(), PutOutcome::Exists);
    assert_eq!(create(&[lost.clone(), taken.clone(), ours]).await.unwrap(), PutOutcome::Written);
    assert_eq!(create(&[lost.clone(), taken, theirs]).await.unwrap(), PutOutcome::Exists);
    assert_eq!(kind(create(&[lost]).await), ErrorKind::Unavailable);
    assert_eq!(kind(create(&[Fault::Stall(String::new())]).await), ErrorKind::Unavailable);
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens() {
    let memory = Arc::new(MemoryStore::new());
    memory.put(&key(), Bytes::from_static(b"x"), Put::Create).await.unwrap();
    let tokens = "good\nold 2020-01-01T00:00:00Z\n";
    let server = Http::start(memory, |settings| settings.tokens = Some(Tokens::parse(tokens).unwrap())).await;
    let with = |token: Option<&str>| open(&server.url, |options| options.token = token.map(Into::into));
    assert_eq!(with(Some("good")).head(&key()).await.unwrap().size, 1);
    for token in [None, Some("bad"), Some("old")] {
        let store = with(token);
        assert_eq!(kind(store.head(&key()).await), ErrorKind::Denied);
        assert_eq!(kind(store.get(&key(), None).await), ErrorKind::Denied);
        assert_eq!(kind(store.put(&key(), Bytes::new(), Put::Create).await), ErrorKind::Denied);
        assert_eq!(kind(store.delete(&key()).await), ErrorKind::Denied);
        assert_eq!(kind(store.list(None).next().await), ErrorKind::Denied);
    }
    let read_only = Http::start(Arc::new(MemoryStore::new()), |settings| settings.writable = false).await;
    let put = open(&read_only.url, |_| ()).put(&key(), Bytes::new(), Put::Create).await;
    assert!(matches!(kind(put), ErrorKind::Denied | ErrorKind::Unsupported));
}

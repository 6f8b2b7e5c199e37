//! Redis, Debian's server: each test starts its own, in a folder of its own, and stops it.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use cacheg_core::{ErrorKind, Key, Put, PutOutcome, Result, Transport};
use cacheg_net::conformance::{self, Check};

use crate::conformance::BOTH;
use crate::servers::open;

struct Redis {
    child: Child,
    folder: tempfile::TempDir,
    port: u16,
}

impl Redis {
    fn start(arguments: &[&str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let folder = tempfile::tempdir().unwrap();
        let child = Self::spawn(&folder, port, arguments);
        Self { child, folder, port }
    }

    fn spawn(folder: &tempfile::TempDir, port: u16, arguments: &[&str]) -> Child {
        let mut command = Command::new("redis-server");
        command.args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--appendonly", "yes"]);
        command.args(["--appendfsync", "always", "--save", "", "--dir"]).arg(folder.path()).args(arguments);
        let mut child = command
            .stdout(Stdio::null())
            .spawn()
            .unwrap_or_else(|e| panic!("cannot run redis-server ({e}); `cargo xtask test-deps` installs it"));
        // It is ready when it takes connections.
        for _ in 0..600 {
            if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return child;
            }
            assert!(child.try_wait().unwrap().is_none(), "redis-server ended at once");
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("redis-server takes no connections");
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn restart(&mut self) {
        self.child = Self::spawn(&self.folder, self.port, &[]);
    }

    fn url(&self, rest: &str) -> String {
        format!("redis://127.0.0.1:{}{rest}", self.port)
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn key() -> Key {
    Key::new("a/b").unwrap()
}

fn kind<T: std::fmt::Debug>(result: Result<T>) -> ErrorKind {
    result.unwrap_err().kind()
}

#[tokio::test(flavor = "multi_thread")]
async fn conforms() -> Check {
    let server = Redis::start(&[]);
    let next = AtomicU32::new(0);
    conformance::run(&BOTH, async || {
        let name = next.fetch_add(1, Ordering::Relaxed);
        Ok(open(&server.url(&format!("/0/store{name}")), |_| ()))
    })
    .await
}

#[tokio::test]
async fn passwords_and_rights() {
    let server = Redis::start(&["--requirepass", "swordfish"]);
    for (user, expected) in [("", ErrorKind::Denied), (":wrong@", ErrorKind::Denied)] {
        let url = server.url("/0").replace("//", &format!("//{user}"));
        let store = open(&url, |options| options.patience = Duration::from_secs(3));
        let error = store.head(&key()).await.unwrap_err();
        assert_eq!(error.kind(), expected, "{error}");
        assert!(!error.to_string().contains("wrong@"), "{error}");
    }
    let url = server.url("/0").replace("//", "//:swordfish@");
    let store = open(&url, |_| ());
    assert_eq!(kind(store.head(&key()).await), ErrorKind::NotFound);
    assert!(!format!("{store:?} {}", store.url()).contains("swordfish"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed_and_restarted() {
    let mut server = Redis::start(&[]);
    let store = open(&server.url(""), |options| options.patience = Duration::from_secs(2));
    let object: Bytes = (0..8_u32 << 20).map(|i| (i >> 12) as u8).collect::<Vec<u8>>().into();
    store.put(&key(), object.clone(), Put::Replace).await.unwrap();
    let mut body = store.get(&key(), None).await.unwrap();
    let mut got = body.pieces.next().await.unwrap().unwrap().to_vec();
    server.kill();
    let error = body.pieces.next().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert_eq!(kind(store.head(&key()).await), ErrorKind::Unavailable);
    assert_eq!(kind(store.put(&key(), Bytes::new(), Put::Replace).await), ErrorKind::Unavailable);
    server.restart();
    // It reads its log first.
    for attempt in 0.. {
        match store.head(&key()).await {
            Ok(_) => break,
            Err(error) => assert!(attempt < 50 && error.kind() == ErrorKind::Unavailable, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // The same body goes on where it was.
    while let Some(piece) = body.pieces.next().await.unwrap() {
        got.extend_from_slice(&piece);
    }
    assert!(object == got);
}

#[tokio::test]
async fn silence_is_an_error() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("redis://{}", silent.local_addr().unwrap());
    let store = open(&url, |options| options.patience = Duration::from_millis(300));
    let start = std::time::Instant::now();
    assert_eq!(kind(store.head(&key()).await), ErrorKind::Unavailable);
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}

/// Readers of what was replaced have time; what nobody finished is gone after a while; a full server says so.
#[tokio::test]
async fn nothing_is_left_behind() {
    let server = Redis::start(&["--maxmemory", "64mb", "--maxmemory-policy", "noeviction"]);
    let store = open(&server.url(""), |_| ());
    let ask = async |words: &[&str]| {
        let client = redis::Client::open(server.url("")).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]);
        command.query_async::<i64>(&mut connection).await.unwrap()
    };
    store.put(&key(), vec![1; 3 << 20].into(), Put::Replace).await.unwrap();
    assert_eq!(ask(&["TTL", "cacheg:data:1"]).await, -1, "an object stays");
    let mut body = store.get(&key(), None).await.unwrap();
    store.put(&key(), vec![2; 3 << 20].into(), Put::Replace).await.unwrap();
    assert!((1..=600).contains(&ask(&["TTL", "cacheg:data:1"]).await));
    while let Some(piece) = body.pieces.next().await.unwrap() {
        assert!(piece.iter().all(|byte| *byte == 1));
    }
    assert_eq!(store.put(&key(), Bytes::from_static(b"x"), Put::Create).await.unwrap(), PutOutcome::Exists);
    assert_eq!(ask(&["EXISTS", "cacheg:data:3"]).await, 0);
    store.delete(&key()).await.unwrap();
    assert!((1..=600).contains(&ask(&["TTL", "cacheg:data:2"]).await));
    let full = store.put(&key(), vec![3; 100 << 20].into(), Put::Replace).await;
    assert_eq!(kind(full), ErrorKind::Io);
    assert_eq!(kind(store.head(&key()).await), ErrorKind::NotFound);
    assert!((1..=3600).contains(&ask(&["TTL", "cacheg:data:4"]).await), "the rest of an upload goes");
    let store: Arc<dyn Transport> = open(&server.url(""), |_| ());
    let large = store.put(&key(), vec![0; (512 << 20) + 1].into(), Put::Replace).await;
    assert_eq!(kind(large), ErrorKind::Limit);
}

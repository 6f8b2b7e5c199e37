//! Stopping.

use std::time::{Duration, Instant};

use cacheg_net::serve::Settings;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Running, Store, noise, settings};

#[tokio::test]
async fn transfers_are_finished() {
    let bytes = noise(2 << 20);
    let store = Store::with(&[("a", bytes.clone())]);
    store.delay.store(20, std::sync::atomic::Ordering::Relaxed);
    let mut server = Running::start(&store, Settings::default()).await;
    // One that is idle, one that has said nothing yet, and one in mid-transfer.
    let mut idle = TcpStream::connect(server.address).await.unwrap();
    idle.write_all(b"GET /-/health HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    assert!(idle.read(&mut [0; 1024]).await.unwrap() > 0);
    let _new = TcpStream::connect(server.address).await.unwrap();
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(b"GET /a HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut answer = vec![0; 1];
    stream.read_exact(&mut answer).await.unwrap();
    server.tell_to_stop();
    stream.read_to_end(&mut answer).await.unwrap();
    assert!(answer.ends_with(&bytes));
    let address = server.address;
    assert_eq!(server.stopped().await.broken_off, 0);
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn but_not_for_ever() {
    let store = Store::with(&[("a", noise(8 << 20))]);
    store.delay.store(100, std::sync::atomic::Ordering::Relaxed);
    let mut server = Running::start(&store, settings(|all| all.grace = Duration::from_millis(300))).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(b"GET /a HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    stream.read_exact(&mut [0; 100]).await.unwrap();
    let start = Instant::now();
    server.tell_to_stop();
    assert_eq!(server.stopped().await.broken_off, 1);
    assert!(start.elapsed() < Duration::from_secs(1));
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest).await;
    assert!(rest.len() < 8 << 20);
}

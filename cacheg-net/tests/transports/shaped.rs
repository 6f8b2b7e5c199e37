//! The shaped transport, on a clock that jumps: what is measured is exact.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cacheg_core::{ErrorKind, Key, Put, Transport};
use cacheg_net::trace::Trace;
use cacheg_net::transport::{MemoryStore, Shape, Shaped};
use tokio::time::Instant;

const PATIENCE: Duration = Duration::from_secs(10);

fn key() -> Key {
    Key::new("a").unwrap()
}

async fn store(size: usize, shape: Shape) -> Arc<Shaped> {
    let memory = MemoryStore::new();
    memory.put(&key(), vec![7; size].into(), Put::Create).await.unwrap();
    Arc::new(Shaped::new(Arc::new(memory), shape, PATIENCE))
}

async fn read(store: &Shaped) -> Duration {
    let start = Instant::now();
    let mut body = store.get(&key(), None).await.unwrap();
    while body.pieces.next().await.unwrap().is_some() {}
    start.elapsed()
}

fn near(took: Duration, expected: f64) {
    let ratio = took.as_secs_f64() / expected;
    assert!((0.98..1.02).contains(&ratio), "took {took:?}, not {expected} s");
}

#[tokio::test(start_paused = true)]
async fn rates() {
    for (rate, size) in [("1Mbps", 250_000), ("20Mbps", 5_000_000), ("1Gbps", 250_000_000)] {
        let store = store(size, Shape::parse(&format!("rate={rate}&latency=100ms")).unwrap()).await;
        near(read(&store).await, 2.1);
        // And again: nothing was saved up while it was busy.
        near(read(&store).await, 2.1);
        let start = Instant::now();
        store.put(&Key::new("b").unwrap(), vec![1; size].into(), Put::Replace).await.unwrap();
        near(start.elapsed(), 2.1);
    }
    let store = store(1 << 20, Shape::parse("latency=250ms").unwrap()).await;
    near(read(&store).await, 0.25);
    let start = Instant::now();
    store.head(&key()).await.unwrap();
    store.list(None).next().await.unwrap();
    store.delete(&key()).await.unwrap();
    near(start.elapsed(), 0.75);
}

#[tokio::test(start_paused = true)]
async fn a_burst_passes_at_once() {
    let store = store(1_000_000, Shape::parse("rate=8Mbps&burst=500kB").unwrap()).await;
    near(read(&store).await, 1.0);
    tokio::time::sleep(Duration::from_secs(60)).await;
    near(read(&store).await, 0.5);
}

#[tokio::test(start_paused = true)]
async fn a_link_is_shared_fairly() {
    // Four at once, one of them half as long, one that is abandoned, one that comes later.
    let store = store(1_000_000, Shape::parse("rate=8Mbps").unwrap()).await;
    let part = |end: u64, start: Duration| {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            tokio::time::sleep(start).await;
            let begin = Instant::now();
            let mut body = store.get(&key(), Some(0..end)).await.unwrap();
            while body.pieces.next().await.unwrap().is_some() {}
            begin.elapsed()
        })
    };
    let long = [part(1_000_000, Duration::ZERO), part(1_000_000, Duration::ZERO)];
    let short = part(500_000, Duration::ZERO);
    let late = part(100_000, Duration::from_millis(500));
    // Until 0.5 s three share; then four; the late one needs 0.4 s; then three until the short one has all.
    near(late.await.unwrap(), 0.4);
    near(short.await.unwrap(), 1.6);
    for one in long {
        near(one.await.unwrap(), 2.6);
    }
    // An abandoned transfer leaves the link to the others.
    let mut abandoned = store.get(&key(), None).await.unwrap();
    abandoned.pieces.next().await.unwrap();
    let other = part(500_000, Duration::ZERO);
    tokio::time::sleep(Duration::from_millis(100)).await;
    drop(abandoned);
    near(other.await.unwrap(), 0.5);
}

#[tokio::test(start_paused = true)]
async fn traces_and_outages() {
    // 1 MB/s for a second, nothing for two, then again.
    let trace = Trace::new([(Duration::from_secs(1), 1e6), (Duration::from_secs(2), 0.0)]).unwrap();
    let shape = || Shape { trace: Some(trace.clone()), ..Shape::default() };
    let slow = store(1_500_000, shape()).await;
    near(read(&slow).await, 3.5);
    // The link goes quiet for longer than anybody waits.
    let trace = Trace::new([(Duration::from_secs(1), 1e6), (Duration::from_secs(100), 0.0)]).unwrap();
    let dead = store(1_500_000, Shape { trace: Some(trace), ..Shape::default() }).await;
    let start = Instant::now();
    let mut body = dead.get(&key(), None).await.unwrap();
    let error = loop {
        match body.pieces.next().await {
            Ok(piece) => assert!(piece.is_some(), "it ends before its end"),
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    near(start.elapsed(), 11.0);
    let put = dead.put(&key(), Bytes::from_static(&[0; 100_000]), Put::Replace).await;
    assert!(put.is_ok(), "the other direction has a trace of its own");
}

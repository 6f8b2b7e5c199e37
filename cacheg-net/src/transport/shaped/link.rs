//! One direction of a link: a token bucket that is filled as a [`Trace`] says.

use std::sync::OnceLock;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{Instant, sleep_until};

use crate::trace::Trace;

/// How long a transfer may use the link before it is another one's turn.
const TURN: Duration = Duration::from_millis(2);
/// Bounds of that, in bytes: not a packet a turn on slow links, not a whole object on fast ones.
const LEAST: f64 = 1024.0;
const MOST: f64 = 262_144.0;
/// What a link gives without delay after a pause, unless told otherwise: what timers may oversleep, and so many bytes.
const SLACK: Duration = Duration::from_millis(4);
const BURST: f64 = 16_384.0;

pub(super) struct Link {
    trace: Trace,
    /// Bytes.
    burst: Option<u64>,
    /// When the trace begins: with the first transfer.
    start: OnceLock<Instant>,
    /// Who waits for it gets it in order.
    bucket: Mutex<Bucket>,
}

struct Bucket {
    /// Bytes that may pass at once; below zero, bytes that have passed before their time.
    tokens: f64,
    /// When that was so.
    at: Duration,
}

impl Link {
    pub(super) fn new(trace: Trace, burst: Option<u64>) -> Self {
        let bucket = Bucket { tokens: 0.0, at: Duration::ZERO };
        Self { trace, burst, start: OnceLock::new(), bucket: Mutex::new(bucket) }
    }

    fn start(&self) -> Instant {
        *self.start.get_or_init(Instant::now)
    }

    fn rate(&self, now: Duration) -> f64 {
        self.trace.rate_at(now)
    }

    /// How many bytes a transfer may send before it must ask again.
    pub(super) fn turn(&self) -> usize {
        let rate = self.rate(self.start().elapsed());
        (rate * TURN.as_secs_f64()).clamp(LEAST, MOST) as usize
    }

    /// Waits until that many bytes have passed. One that is dropped meanwhile has used what it waited for.
    pub(super) async fn carry(&self, bytes: usize) {
        let mut bucket = self.bucket.lock().await;
        let start = self.start();
        let now = start.elapsed();
        let most = self.burst.map_or((self.rate(now) * SLACK.as_secs_f64()).max(BURST), |burst| burst as f64);
        bucket.tokens = (bucket.tokens + self.trace.bytes_between(bucket.at, now)).min(most);
        bucket.at = now;
        bucket.tokens -= bytes as f64;
        if bucket.tokens < 0.0 {
            match self.trace.time_to_send(now, (-bucket.tokens).ceil() as u64) {
                Some(wait) => sleep_until(start + now + wait).await,
                None => std::future::pending().await,
            }
        }
    }
}

//! Is anything still happening on a connection?

use std::io::{IoSlice, Result};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Settings;

/// What a connection's watchman looks at. Bytes that a peer merely sends are no progress, so that one that trickles
/// headers or pings is found out; parts of bodies that went through are.
#[derive(Debug)]
pub(crate) struct Activity {
    start: Instant,
    /// When something last went on, in milliseconds since `start`.
    last: AtomicU64,
    /// Whether there was ever a request.
    asked: AtomicBool,
}

impl Activity {
    pub(crate) fn new() -> Self {
        Self { start: Instant::now(), last: AtomicU64::new(0), asked: AtomicBool::new(false) }
    }

    /// Something went on.
    pub(crate) fn progress(&self) {
        let now = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(now, Ordering::Relaxed);
    }

    /// A request came.
    pub(crate) fn begin(&self) {
        self.asked.store(true, Ordering::Relaxed);
        self.progress();
    }

    /// How long the connection may still stay as it is, or until it must be looked at again; zero: no longer.
    pub(crate) fn time_left(&self, settings: &Settings) -> Duration {
        let asked = self.asked.load(Ordering::Relaxed);
        let patience = if asked { settings.idle_timeout } else { settings.header_timeout };
        let last = Duration::from_millis(self.last.load(Ordering::Relaxed));
        // Nobody tells the watchman when the other patience begins to count.
        (last + patience).saturating_sub(self.start.elapsed()).min(settings.idle_timeout)
    }
}

/// A stream that reports when the peer takes bytes again that it had not wanted.
pub(crate) struct Watched<S> {
    inner: S,
    activity: Arc<Activity>,
    blocked: bool,
}

impl<S> Watched<S> {
    pub(crate) fn new(inner: S, activity: Arc<Activity>) -> Self {
        Self { inner, activity, blocked: false }
    }

    fn note<T>(&mut self, result: &Poll<Result<T>>) {
        if result.is_ready() && self.blocked {
            self.activity.progress();
        }
        self.blocked = result.is_pending();
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<Result<usize>> {
        let result = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.note(&result);
        result
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        let result = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.note(&result);
        result
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

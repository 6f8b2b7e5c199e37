//! Bodies whose bytes are counted, and what is noted of every request when it is over.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use cacheg_core::Error;
use http::{Method, StatusCode};
use http_body::{Body, Frame, SizeHint};
use tokio::sync::OwnedSemaphorePermit;

use super::activity::Activity;
use super::answer::Content;
use super::service::Shared;

/// Pieces are passed on in parts of at most this many bytes, so that what was counted was nearly sent.
const PART: usize = 256 << 10;

/// What clients are told that went away before they were answered; known from nginx.
const GONE: u16 = 499;

/// A request from its headers to the last byte of its answer, or to where it broke off.
pub(crate) struct Request {
    shared: Arc<Shared>,
    activity: Arc<Activity>,
    start: Instant,
    peer: SocketAddr,
    method: Method,
    path: String,
    status: Option<StatusCode>,
    error: Option<Error>,
    sent: u64,
    complete: bool,
    /// Its place among [`Settings::max_requests`](super::Settings::max_requests).
    pub(crate) place: Option<OwnedSemaphorePermit>,
}

impl Request {
    pub(crate) fn begin(
        shared: Arc<Shared>,
        activity: Arc<Activity>,
        peer: SocketAddr,
        method: Method,
        path: &str,
    ) -> Self {
        activity.begin();
        shared.metrics.running.inc();
        Self {
            shared,
            activity,
            start: Instant::now(),
            peer,
            method,
            path: path.chars().take(600).collect(),
            status: None,
            error: None,
            sent: 0,
            complete: false,
            place: None,
        }
    }

    /// Bytes of an upload came.
    pub(crate) fn received(&self, bytes: usize) {
        self.activity.progress();
        self.shared.metrics.bytes_in.inc_by(bytes as u64);
    }

    pub(crate) fn answered(&mut self, status: StatusCode, error: Option<Error>) {
        self.status = Some(status);
        self.error = error;
        self.activity.progress();
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        let (elapsed, metrics) = (self.start.elapsed(), &self.shared.metrics);
        let status = self.status.unwrap_or_else(|| StatusCode::from_u16(GONE).unwrap_or_default());
        metrics.running.dec();
        metrics.bytes_out.inc_by(self.sent);
        metrics.answered(&self.method, status, elapsed);
        self.activity.progress();
        let (method, key) = (self.method.as_str(), self.path.trim_start_matches('/'));
        let (status, bytes, peer) = (status.as_u16(), self.sent, self.peer);
        let ms = elapsed.as_secs_f64() * 1e3;
        let ms = (ms * 1e3).round() / 1e3;
        let complete = self.complete;
        match &self.error {
            Some(error) if status >= 500 || !complete => {
                tracing::warn!(target: "cacheg::serve", method, key, status, bytes, ms, %peer, complete, %error);
            }
            _ => tracing::info!(target: "cacheg::serve", method, key, status, bytes, ms, %peer, complete),
        }
    }
}

/// The body of every answer.
pub(crate) struct Counted {
    content: Content,
    /// Of a large piece.
    rest: Bytes,
    request: Request,
}

impl Counted {
    pub(crate) fn new(content: Content, mut request: Request) -> Self {
        request.complete = content.length == Some(0);
        Self { content, rest: Bytes::new(), request }
    }

    /// Passes bytes on; more than were announced are the store's fault.
    fn part(&mut self) -> Result<Frame<Bytes>, Error> {
        let part = self.rest.split_to(self.rest.len().min(PART));
        if let Some(left) = &mut self.content.length {
            *left = left
                .checked_sub(part.len() as u64)
                .ok_or_else(|| Error::corrupt("the store sends more than it announced"))?;
            self.request.complete = *left == 0;
        }
        self.request.sent += part.len() as u64;
        self.request.activity.progress();
        Ok(Frame::data(part))
    }
}

impl Body for Counted {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = &mut *self;
        let result = loop {
            if !this.rest.is_empty() {
                break this.part();
            }
            if this.content.length == Some(0) {
                return Poll::Ready(None);
            }
            match Pin::new(&mut this.content.inner).poll_frame(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Ok(frame))) => this.rest = frame.into_data().unwrap_or_default(),
                Poll::Ready(Some(Err(error))) => break Err(error),
                Poll::Ready(None) if this.content.length.is_some() => {
                    break Err(Error::corrupt("the store sends less than it announced"));
                }
                Poll::Ready(None) => {
                    this.request.complete = true;
                    return Poll::Ready(None);
                }
            }
        };
        Poll::Ready(Some(result.map_err(|error| {
            // The connection can only be broken off; the reason is for the log.
            this.request.complete = false;
            this.request.error = Some(error);
            Error::unavailable("the transfer broke off")
        })))
    }

    fn is_end_stream(&self) -> bool {
        self.content.length == Some(0) && self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        self.content.length.map_or_else(SizeHint::new, SizeHint::with_exact)
    }
}

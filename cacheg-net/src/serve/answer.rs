//! What handlers make: a head and a body of known or unknown length.

use bytes::Bytes;
use cacheg_core::Error;
use futures_util::{Stream, TryStreamExt};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use http::{Response, StatusCode};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};

use super::refusal::Refusal;

/// An answer on its way to the client.
pub(crate) type Answer = Response<Content>;

/// A body before its bytes are counted.
pub(crate) struct Content {
    pub(crate) inner: UnsyncBoxBody<Bytes, Error>,
    /// Bytes that will come, if that is known.
    pub(crate) length: Option<u64>,
}

impl Content {
    pub(crate) fn none() -> Self {
        Self { inner: Empty::new().map_err(|never| match never {}).boxed_unsync(), length: Some(0) }
    }

    pub(crate) fn bytes(bytes: Bytes) -> Self {
        let length = Some(bytes.len() as u64);
        Self { inner: Full::new(bytes).map_err(|never| match never {}).boxed_unsync(), length }
    }

    pub(crate) fn stream(
        pieces: impl Stream<Item = Result<Bytes, Error>> + Send + 'static,
        length: Option<u64>,
    ) -> Self {
        Self { inner: StreamBody::new(pieces.map_ok(Frame::data)).boxed_unsync(), length }
    }
}

/// A status and nothing else.
pub(crate) fn bare(status: StatusCode) -> Answer {
    let mut answer = Response::new(Content::none());
    *answer.status_mut() = status;
    answer
}

/// A short text.
pub(crate) fn text(status: StatusCode, kind: &'static str, text: String) -> Answer {
    let mut answer = Response::new(Content::bytes(text.into()));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}

impl Refusal {
    /// The answer and what is only for the log.
    pub(crate) fn into_answer(self) -> (Answer, Option<Error>) {
        let mut answer = text(self.status, "text/plain; charset=utf-8", self.message + "\n");
        answer.headers_mut().extend(self.headers.into_iter().map(|(name, value)| (Some(name), value)));
        (answer, self.cause)
    }
}

/// The answer to `HEAD`: what `GET` would say, without saying it.
pub(crate) fn without_body(answer: Answer) -> Answer {
    let (mut head, content) = answer.into_parts();
    if let Some(length) = content.length
        && !matches!(head.status, StatusCode::NOT_MODIFIED | StatusCode::NO_CONTENT)
    {
        head.headers.entry(CONTENT_LENGTH).or_insert(length.into());
    }
    Response::from_parts(head, Content::none())
}

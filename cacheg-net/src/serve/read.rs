//! `GET` and `HEAD`.

use bytes::{Bytes, BytesMut};
use cacheg_core::{Body, Error, Key, ObjectMeta, Pieces};
use futures_util::{Stream, stream};
use http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderMap, HeaderValue, IF_MATCH,
    IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_UNMODIFIED_SINCE, LAST_MODIFIED, RANGE,
};
use http::{Method, Response, StatusCode};

use super::answer::{Answer, Content, bare};
use super::conditions::{Validators, Verdict};
use super::etag;
use super::range::{Wanted, wanted};
use super::refusal::Refusal;
use super::service::Shared;

/// How often an object may change between two looks at it before the client is asked to come again.
const LOOKS: u32 = 3;

/// Answers from the store.
pub(crate) async fn read(
    shared: &Shared,
    method: &Method,
    key: &Key,
    headers: &HeaderMap,
) -> Result<Answer, Refusal> {
    for _ in 0..LOOKS {
        let found = find(shared, method, key, headers).await?;
        if let Some(answer) = answer(shared, method, key, headers, found).await? {
            return Ok(answer);
        }
    }
    Err(Refusal::unavailable("the object is being replaced again and again"))
}

/// What is known of an object, with as much of it as had to be fetched to know.
struct Found {
    meta: ObjectMeta,
    etag: Option<String>,
    got: Got,
}

enum Got {
    Nothing,
    Stream(Body),
    Whole(Bytes),
}

/// Plain `GET`s learn the metadata with the bytes; all others must know it first.
async fn find(shared: &Shared, method: &Method, key: &Key, headers: &HeaderMap) -> Result<Found, Refusal> {
    const FIRST: [http::HeaderName; 5] =
        [RANGE, IF_MATCH, IF_NONE_MATCH, IF_MODIFIED_SINCE, IF_UNMODIFIED_SINCE];
    let plain = method == Method::GET && !FIRST.iter().any(|name| headers.contains_key(name));
    let (meta, got) = if plain {
        let body = shared.transport.get(key, None).await?;
        (body.meta.clone(), Got::Stream(body))
    } else {
        (shared.transport.head(key).await?, Got::Nothing)
    };
    let etag = etag::of(key, &meta);
    if etag.is_some() || meta.size > etag::HASHED {
        return Ok(Found { meta, etag, got });
    }
    let body = match got {
        Got::Stream(body) => body,
        _ => shared.transport.get(key, None).await?,
    };
    let meta = body.meta.clone();
    let bytes = collect(body, etag::HASHED).await?;
    Ok(Found { meta, etag: Some(etag::hashed(&bytes)), got: Got::Whole(bytes) })
}

/// The whole of a body that may not be longer than `limit` bytes.
pub(crate) async fn collect(mut body: Body, limit: u64) -> Result<Bytes, Error> {
    let mut bytes = BytesMut::new();
    while let Some(piece) = body.pieces.next().await? {
        if (bytes.len() + piece.len()) as u64 > limit {
            return Err(Error::limit(format!("an object of more than {limit} bytes")));
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes.freeze())
}

/// `None` if the object was replaced after it was found.
async fn answer(
    shared: &Shared,
    method: &Method,
    key: &Key,
    headers: &HeaderMap,
    Found { meta, etag, got }: Found,
) -> Result<Option<Answer>, Refusal> {
    let validators = Validators { etag: etag.as_deref(), modified: meta.modified };
    let verdict = validators.check(headers);
    if verdict == Verdict::Failed {
        return Err(Refusal::new(StatusCode::PRECONDITION_FAILED, "the object is not the expected one"));
    }
    let mut all = HeaderMap::new();
    describe(&mut all, shared, key, &meta, etag.as_deref());
    if verdict == Verdict::NotModified {
        let mut answer = bare(StatusCode::NOT_MODIFIED);
        *answer.headers_mut() = all;
        return Ok(Some(answer));
    }
    // For `HEAD` the standard defines no ranges.
    let range = headers.get(RANGE).filter(|_| method == Method::GET && validators.range_holds(headers));
    let range =
        range.and_then(|value| value.to_str().ok()).map_or(Wanted::All, |value| wanted(value, meta.size));
    let (status, part) = match range {
        Wanted::All => (StatusCode::OK, 0..meta.size),
        Wanted::Part(part) => (StatusCode::PARTIAL_CONTENT, part),
        Wanted::Nothing => {
            let refusal = Refusal::new(StatusCode::RANGE_NOT_SATISFIABLE, "the object has no such bytes");
            return Err(refusal.with(CONTENT_RANGE, value(format!("bytes */{}", meta.size))));
        }
    };
    if status == StatusCode::PARTIAL_CONTENT {
        let last = part.end.saturating_sub(1);
        all.insert(CONTENT_RANGE, value(format!("bytes {}-{last}/{}", part.start, meta.size)));
    }
    let length = part.end - part.start;
    let content = match got {
        _ if method == Method::HEAD => Content { length: Some(length), ..Content::none() },
        Got::Whole(bytes) => {
            let at = |at: u64| usize::try_from(at).unwrap_or(usize::MAX).min(bytes.len());
            Content::bytes(bytes.slice(at(part.start)..at(part.end)))
        }
        Got::Stream(body) => Content::stream(stream(body.pieces), Some(length)),
        Got::Nothing => {
            let wanted = (status == StatusCode::PARTIAL_CONTENT).then(|| part.clone());
            let body = shared.transport.get(key, wanted).await;
            let body = match body {
                Ok(body) => body,
                // It became shorter, or went.
                Err(_) if shared.transport.head(key).await.is_ok_and(|now| now != meta) => return Ok(None),
                Err(error) => return Err(error.into()),
            };
            let other_tag = body.meta.etag.is_some() && meta.etag.is_some() && body.meta.etag != meta.etag;
            if other_tag || body.meta.size != meta.size || body.range != part {
                return Ok(None);
            }
            Content::stream(stream(body.pieces), Some(length))
        }
    };
    let mut answer = Response::new(content);
    *answer.status_mut() = status;
    *answer.headers_mut() = all;
    Ok(Some(answer))
}

/// The headers that an answer has with and without its body.
fn describe(all: &mut HeaderMap, shared: &Shared, key: &Key, meta: &ObjectMeta, etag: Option<&str>) {
    let kind = match key.as_str().rsplit_once('.') {
        Some((_, "json")) => "application/json",
        Some((_, "zst")) => "application/zstd",
        _ => "application/octet-stream",
    };
    all.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    all.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    let cache = match (etag::is_immutable(key), shared.settings.tokens.is_some()) {
        (true, false) => "public, max-age=31536000, immutable",
        // A shared cache would hand it to those who have no token.
        (true, true) => "private, max-age=31536000, immutable",
        (false, false) => "no-cache",
        (false, true) => "private, no-cache",
    };
    all.insert(CACHE_CONTROL, HeaderValue::from_static(cache));
    if let Some(etag) = etag {
        all.insert(ETAG, value(etag.to_owned()));
    }
    if let Some(modified) = meta.modified {
        all.insert(LAST_MODIFIED, value(httpdate::fmt_http_date(modified)));
    }
}

/// Of text that was made here, or checked.
fn value(text: String) -> HeaderValue {
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static(""))
}

fn stream(pieces: Box<dyn Pieces>) -> impl Stream<Item = Result<Bytes, Error>> + Send {
    stream::try_unfold(
        pieces,
        |mut pieces| async move { Ok(pieces.next().await?.map(|piece| (piece, pieces))) },
    )
}

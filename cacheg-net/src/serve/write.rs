//! `PUT`, `DELETE`, `COPY`, `MKCOL`: only where the server may write.

use bytes::{Bytes, BytesMut};
use cacheg_core::{Key, Put, PutOutcome};
use http::header::{
    CONTENT_ENCODING, CONTENT_RANGE, EXPECT, HeaderMap, IF_MATCH, IF_NONE_MATCH, IF_UNMODIFIED_SINCE,
};
use http::{HeaderName, StatusCode, Uri};
use http_body::Body;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use super::answer::{Answer, bare};
use super::body::Request;
use super::place::{Folder, Place, place};
use super::read::collect;
use super::refusal::Refusal;
use super::service::Shared;

const DESTINATION: HeaderName = HeaderName::from_static("destination");
const OVERWRITE: HeaderName = HeaderName::from_static("overwrite");

/// Stores a body: 204, or 201 if the client wanted the key to be free.
pub(crate) async fn put(
    shared: &Shared,
    key: &Key,
    headers: &HeaderMap,
    body: &mut Incoming,
    request: &Request,
) -> Result<Answer, Refusal> {
    for (header, status) in [
        (CONTENT_RANGE, StatusCode::BAD_REQUEST),
        (CONTENT_ENCODING, StatusCode::UNSUPPORTED_MEDIA_TYPE),
        (IF_MATCH, StatusCode::NOT_IMPLEMENTED),
        (IF_UNMODIFIED_SINCE, StatusCode::NOT_IMPLEMENTED),
    ] {
        if headers.contains_key(&header) {
            return Err(Refusal::new(status, format!("an upload cannot have `{header}`")));
        }
    }
    let mode = match headers.get(IF_NONE_MATCH) {
        None => Put::Replace,
        Some(value) if value.as_bytes().trim_ascii() == b"*" => Put::Create,
        Some(_) => return Err(Refusal::new(StatusCode::NOT_IMPLEMENTED, "`If-None-Match` can only be `*`")),
    };
    // Who asks first need not send what will not be taken.
    if mode == Put::Create && headers.contains_key(EXPECT) && shared.transport.head(key).await.is_ok() {
        return Err(taken());
    }
    let (bytes, _memory) = receive(shared, body, request).await?;
    store(shared, key, bytes, mode).await
}

/// Copies an object on the server's side.
pub(crate) async fn copy(shared: &Shared, key: &Key, headers: &HeaderMap) -> Result<Answer, Refusal> {
    let destination = headers.get(DESTINATION).and_then(|value| value.to_str().ok());
    let destination = destination
        .and_then(|value| value.parse::<Uri>().ok())
        .ok_or_else(|| Refusal::new(StatusCode::BAD_REQUEST, "`COPY` needs a `Destination`"))?;
    let Place::Object(destination, Folder::No) = place(&destination)? else {
        return Err(Refusal::new(StatusCode::FORBIDDEN, "the destination is no object"));
    };
    let mode = match headers.get(OVERWRITE).map(|value| value.as_bytes().trim_ascii()) {
        None | Some(b"T" | b"t") => Put::Replace,
        Some(b"F" | b"f") => Put::Create,
        Some(_) => return Err(Refusal::new(StatusCode::BAD_REQUEST, "`Overwrite` is T or F")),
    };
    let body = shared.transport.get(key, None).await?;
    let _memory = memory(shared, Some(body.meta.size)).await?;
    let size = body.meta.size;
    let bytes = collect(body, size).await?;
    store(shared, &destination, bytes, mode).await
}

/// Removes an object; also one that is not there.
pub(crate) async fn delete(shared: &Shared, key: &Key) -> Result<Answer, Refusal> {
    shared.transport.delete(key).await?;
    Ok(bare(StatusCode::NO_CONTENT))
}

async fn store(shared: &Shared, key: &Key, bytes: Bytes, mode: Put) -> Result<Answer, Refusal> {
    match (shared.transport.put(key, bytes, mode).await?, mode) {
        (PutOutcome::Exists, _) => Err(taken()),
        (PutOutcome::Written, Put::Create) => Ok(bare(StatusCode::CREATED)),
        (PutOutcome::Written, Put::Replace) => Ok(bare(StatusCode::NO_CONTENT)),
    }
}

fn taken() -> Refusal {
    Refusal::new(StatusCode::PRECONDITION_FAILED, "the key is taken")
}

/// Receives an upload. All that are received at a time share [`max_object`](super::Settings::max_object) bytes.
async fn receive(
    shared: &Shared,
    body: &mut Incoming,
    request: &Request,
) -> Result<(Bytes, OwnedSemaphorePermit), Refusal> {
    let size = body.size_hint();
    let announced = size.exact();
    let memory = memory(shared, announced).await?;
    let mut bytes = BytesMut::new();
    loop {
        let Ok(frame) = timeout(shared.settings.idle_timeout, body.frame()).await else {
            return Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, "the upload does not go on"));
        };
        let frame = match frame {
            None => return Ok((bytes.freeze(), memory)),
            Some(frame) => frame
                .map_err(|e| Refusal::new(StatusCode::BAD_REQUEST, format!("the upload broke off: {e}")))?,
        };
        let Ok(data) = frame.into_data() else { continue };
        request.received(data.len());
        let length = bytes.len() + data.len();
        if length as u64 > announced.unwrap_or(shared.settings.max_object) {
            return Err(too_large(shared));
        }
        if length > bytes.capacity() {
            // Grows with what came, to no more than what is to come.
            let goal = announced.unwrap_or(shared.settings.max_object);
            let goal = usize::try_from(goal).unwrap_or(usize::MAX);
            bytes.reserve(length.saturating_mul(2).min(goal).max(length) - bytes.len());
        }
        bytes.extend_from_slice(&data);
    }
}

/// Waits until there is memory for an object of that size; one of unknown size may become the largest.
async fn memory(shared: &Shared, size: Option<u64>) -> Result<OwnedSemaphorePermit, Refusal> {
    let most = shared.settings.max_object;
    let size = size.unwrap_or(most);
    if size > most {
        return Err(too_large(shared));
    }
    let units = shared.upload_units(size);
    let wait = std::sync::Arc::clone(&shared.uploads).acquire_many_owned(units);
    match timeout(shared.settings.queue_timeout, wait).await {
        Ok(Ok(permit)) => Ok(permit),
        _ => Err(Refusal::unavailable("too many uploads at a time")),
    }
}

fn too_large(shared: &Shared) -> Refusal {
    let most = shared.settings.max_object;
    Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, format!("objects may have at most {most} bytes here"))
}

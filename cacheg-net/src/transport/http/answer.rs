//! What a server's answers mean.

use std::ops::Range;
use std::time::Duration;

use cacheg_core::{Error, ObjectMeta, Result};
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderMap, LAST_MODIFIED, RETRY_AFTER};
use http::{HeaderName, HeaderValue, StatusCode};
use reqwest::Response;
use tokio::time::timeout;

/// How much of a refusal's text is shown, in bytes.
const MESSAGE: usize = 300;

/// Whether a status may be another one soon.
pub(super) fn is_passing(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::REQUEST_TIMEOUT
            | StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT
    )
}

/// How long a server wants to be left alone, if it says so in seconds.
pub(super) fn retry_after(response: &Response) -> Option<Duration> {
    text(response.headers(), &RETRY_AFTER)?.trim().parse().ok().map(Duration::from_secs)
}

/// The announced length of a body, in bytes.
pub(super) fn length(response: &Response) -> Option<u64> {
    text(response.headers(), &CONTENT_LENGTH)?.parse().ok()
}

/// What the headers say of an object of that size.
pub(super) fn object_meta(headers: &HeaderMap, object: &str, size: Option<u64>) -> Result<ObjectMeta> {
    let size =
        size.ok_or_else(|| Error::unsupported(format!("{object}: the server does not say how long it is")))?;
    let mut meta = ObjectMeta::new(size);
    meta.modified = text(headers, &LAST_MODIFIED).and_then(|text| httpdate::parse_http_date(text).ok());
    meta.etag = text(headers, &ETAG).map(str::to_owned);
    Ok(meta)
}

/// The bytes that come, and how many the object has.
pub(super) fn content_range(headers: &HeaderMap, object: &str) -> Result<(Range<u64>, u64)> {
    let value = text(headers, &CONTENT_RANGE).unwrap_or_default();
    let read = || {
        let (range, size) = value.trim().strip_prefix("bytes ")?.split_once('/')?;
        let (first, last) = range.split_once('-')?;
        let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
        let range = first..last.checked_add(1)?;
        let size = size.parse().ok()?;
        (range.start < range.end && range.end <= size).then_some((range, size))
    };
    read().ok_or_else(|| {
        let shown: String = value.chars().take(80).collect();
        Error::corrupt(format!(
            "{object}: `Content-Range: {shown}` names no bytes of an object of known size"
        ))
    })
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// The beginning of what a server says of its refusal, if it is text and does not repeat our secret.
pub(super) async fn message(mut response: Response, secret: Option<&HeaderValue>) -> String {
    let mut bytes = Vec::new();
    // Nice to have; not worth waiting for.
    let read = async {
        while let (Ok(Some(piece)), true) = (response.chunk().await, bytes.len() < MESSAGE) {
            bytes.extend_from_slice(&piece[..piece.len().min(MESSAGE)]);
        }
    };
    let _ = timeout(Duration::from_secs(1), read).await;
    let said: String = String::from_utf8_lossy(&bytes)
        .chars()
        .take(MESSAGE)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    let said = said.trim();
    let secret = secret.and_then(|secret| secret.to_str().ok()).and_then(|secret| secret.split_once(' '));
    let repeats = secret.is_some_and(|(_, secret)| said.contains(secret));
    if said.is_empty() || repeats || said.starts_with('<') { String::new() } else { format!(": {said}") }
}

/// The error for a status.
pub(super) fn error(status: StatusCode, object: &str, said: &str) -> Error {
    let text = format!("{object}: the server says {status}{said}");
    match status {
        StatusCode::UNAUTHORIZED => {
            Error::denied(format!("{text}; a token or password is missing, wrong or expired"))
        }
        StatusCode::FORBIDDEN | StatusCode::PROXY_AUTHENTICATION_REQUIRED => Error::denied(text),
        StatusCode::NOT_FOUND | StatusCode::GONE => Error::not_found(text),
        StatusCode::PAYLOAD_TOO_LARGE
        | StatusCode::URI_TOO_LONG
        | StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => Error::Limit(text),
        StatusCode::BAD_REQUEST | StatusCode::CONFLICT => Error::data(text),
        StatusCode::NOT_IMPLEMENTED => Error::unsupported(text),
        status if status.is_server_error() || is_passing(status) => Error::unavailable(text),
        _ => Error::unsupported(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges() {
        let read = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_RANGE, HeaderValue::from_static(value));
            content_range(&headers, "x").ok()
        };
        assert_eq!(read("bytes 0-0/1"), Some((0..1, 1)));
        assert_eq!(read("bytes 5-9/100"), Some((5..10, 100)));
        for bad in [
            "",
            "bytes 0-0/*",
            "bytes */5",
            "bytes 5-4/10",
            "bytes 5-10/10",
            "bytes 0-18446744073709551615/5",
            "0-1/2",
            "bytes a-b/c",
            "bytes -1/2",
            "bytes 0-1/-2",
        ] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }
}

//! One request: may it be asked, what is meant, who answers.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use cacheg_core::Transport;
use http::header::{ALLOW, AUTHORIZATION, CACHE_CONTROL, EXPECT, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use http::{HeaderName, Method, Response, StatusCode, Version};
use http_body::Body;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::activity::Activity;
use super::answer::{Answer, bare, text, without_body};
use super::body::{Counted, Request};
use super::metrics::{self, Metrics};
use super::place::{Folder, Place, place};
use super::refusal::Refusal;
use super::tokens::Worth;
use super::{Settings, listing, read, write};

/// What all connections share.
pub(crate) struct Shared {
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) settings: Settings,
    pub(crate) metrics: Metrics,
    requests: Arc<Semaphore>,
    /// Memory of uploads, in units of [`UPLOAD_UNIT`].
    pub(crate) uploads: Arc<Semaphore>,
}

/// Bytes.
const UPLOAD_UNIT: u64 = 4 << 10;

impl Shared {
    pub(crate) fn new(transport: Arc<dyn Transport>, settings: Settings) -> Self {
        let requests = Arc::new(Semaphore::new(settings.max_requests.clamp(1, Semaphore::MAX_PERMITS)));
        let units = usize::try_from(settings.max_object.div_ceil(UPLOAD_UNIT)).unwrap_or(usize::MAX);
        let units = units.clamp(1, (u32::MAX as usize).min(Semaphore::MAX_PERMITS));
        let uploads = Arc::new(Semaphore::new(units));
        Self { transport, settings, metrics: Metrics::new(), requests, uploads }
    }

    /// What an upload of that many bytes takes of [`uploads`](Self::uploads).
    pub(crate) fn upload_units(&self, bytes: u64) -> u32 {
        u32::try_from(bytes.div_ceil(UPLOAD_UNIT)).unwrap_or(u32::MAX).max(1)
    }
}

/// Answers. Whatever happens is an answer.
pub(crate) async fn serve(
    shared: Arc<Shared>,
    activity: Arc<Activity>,
    peer: SocketAddr,
    asked: http::Request<Incoming>,
) -> Result<Response<Counted>, Infallible> {
    let (head, mut body) = asked.into_parts();
    let mut request =
        Request::begin(Arc::clone(&shared), activity, peer, head.method.clone(), head.uri.path());
    let answer = respond(&shared, &head, &mut body, &mut request).await;
    let (answer, cause) = match answer {
        Ok(answer) => (answer, None),
        Err(refusal) => refusal.into_answer(),
    };
    let waits = head.headers.contains_key(EXPECT);
    if head.version < Version::HTTP_2 && !waits && !body.is_end_stream() {
        discard(&mut body, shared.settings.header_timeout).await;
    }
    let answer = if head.method == Method::HEAD { without_body(answer) } else { answer };
    request.answered(answer.status(), cause);
    let (mut head, content) = answer.into_parts();
    head.headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    Ok(Response::from_parts(head, Counted::new(content, request)))
}

async fn respond(
    shared: &Shared,
    head: &http::request::Parts,
    body: &mut Incoming,
    request: &mut Request,
) -> Result<Answer, Refusal> {
    within_limits(&shared.settings, head)?;
    let place = place(&head.uri)?;
    let method = head.method.as_str();
    // Health must be told when all is busy, and to balancers that know no token.
    if place == Place::Health {
        return match method {
            "GET" | "HEAD" => Ok(uncached(text(StatusCode::OK, "text/plain; charset=utf-8", "ok\n".into()))),
            _ => Err(not_allowed("GET, HEAD")),
        };
    }
    authorize(&shared.settings, &head.headers)?;
    let wait = Arc::clone(&shared.requests).acquire_owned();
    match timeout(shared.settings.queue_timeout, wait).await {
        Ok(Ok(permit)) => request.place = Some(permit),
        _ => return Err(Refusal::unavailable("too many requests at a time")),
    }
    let writable = shared.settings.writable;
    let headers = &head.headers;
    match (method, place) {
        ("GET" | "HEAD", Place::Object(key, Folder::No)) => {
            read::read(shared, &head.method, &key, headers).await
        }
        ("GET" | "HEAD", Place::Metrics) => {
            Ok(uncached(text(StatusCode::OK, metrics::CONTENT_TYPE, shared.metrics.text())))
        }
        ("GET" | "HEAD", Place::Root | Place::Object(..)) => {
            Err(Refusal::new(StatusCode::NOT_FOUND, "a folder has no bytes; list it with PROPFIND"))
        }
        ("PROPFIND", Place::Root) => listing::list(shared, None, headers).await,
        ("PROPFIND", Place::Object(key, folder)) => listing::list(shared, Some((key, folder)), headers).await,
        ("PUT", Place::Object(key, Folder::No)) if writable => {
            write::put(shared, &key, headers, body, request).await
        }
        ("DELETE", Place::Object(key, Folder::No)) if writable => write::delete(shared, &key).await,
        ("COPY", Place::Object(key, Folder::No)) if writable => write::copy(shared, &key, headers).await,
        // Folders are only what keys have in common.
        ("MKCOL", Place::Object(..)) if writable => Ok(bare(StatusCode::CREATED)),
        ("OPTIONS", place) => {
            let mut answer = bare(StatusCode::NO_CONTENT);
            answer.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed(&place, writable)));
            answer.headers_mut().insert(HeaderName::from_static("dav"), HeaderValue::from_static("1"));
            Ok(answer)
        }
        (_, place) => Err(not_allowed(allowed(&place, writable))),
    }
}

/// Reads what nobody wants. Closing a connection while its peer still sends would reset it, and with it what was
/// answered but not yet read: the peer would never know why.
async fn discard(body: &mut Incoming, time: Duration) {
    let all = async { while let Some(Ok(_)) = body.frame().await {} };
    let _ = timeout(time, all).await;
}

fn within_limits(settings: &Settings, head: &http::request::Parts) -> Result<(), Refusal> {
    let headers: usize = head.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    let line = head.uri.path().len() + head.uri.query().map_or(0, str::len);
    if head.headers.len() > settings.max_headers || headers + line > settings.max_header_bytes {
        let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
        return Err(Refusal::new(status, "too many headers, or too long ones"));
    }
    Ok(())
}

fn authorize(settings: &Settings, headers: &HeaderMap) -> Result<(), Refusal> {
    let Some(tokens) = &settings.tokens else { return Ok(()) };
    let given = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token = given
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    let (message, challenge) = match token.map(|(_, token)| tokens.worth(token.trim(), SystemTime::now())) {
        Some(Worth::Good) => return Ok(()),
        None => ("a bearer token is needed", "Bearer realm=\"cacheg\""),
        Some(Worth::Unknown) => {
            ("the token is not known", "Bearer realm=\"cacheg\", error=\"invalid_token\"")
        }
        Some(Worth::Expired) => (
            "the token has expired",
            "Bearer realm=\"cacheg\", error=\"invalid_token\", error_description=\"expired\"",
        ),
    };
    let refusal = Refusal::new(StatusCode::UNAUTHORIZED, message);
    Err(refusal.with(WWW_AUTHENTICATE, HeaderValue::from_static(challenge)))
}

fn allowed(place: &Place, writable: bool) -> &'static str {
    match (place, writable) {
        (Place::Health | Place::Metrics, _) => "GET, HEAD, OPTIONS",
        (Place::Root | Place::Server, _) | (Place::Object(..), false) => "GET, HEAD, OPTIONS, PROPFIND",
        (Place::Object(..), true) => "GET, HEAD, OPTIONS, PROPFIND, PUT, DELETE, COPY, MKCOL",
    }
}

fn not_allowed(allowed: &'static str) -> Refusal {
    let refusal = Refusal::new(StatusCode::METHOD_NOT_ALLOWED, format!("only {allowed} here"));
    refusal.with(ALLOW, HeaderValue::from_static(allowed))
}

fn uncached(mut answer: Answer) -> Answer {
    answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

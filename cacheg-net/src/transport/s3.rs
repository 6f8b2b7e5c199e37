//! `s3://BUCKET[/FOLDER]`: objects of S3 and its kin, by the `object_store` crate.
//!
//! Keys, region and endpoint are those of the environment (`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_REGION`,
//! `AWS_ENDPOINT`, … as `object_store` reads them) or of the machine. Creating without replacing needs a store that knows
//! `If-None-Match: *` for `PUT`, as S3 does since 2024. An object is sent by one request: at most 5 GiB on S3.

use std::fmt;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use cacheg_core::{
    Body, BoxFuture, Error, Key, Listing, ObjectMeta, OpenOptions, Page, Pieces, Put, PutOutcome, Result,
    Transport, TransportPlugin,
};
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::client::{
    ClientOptions, HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse,
    HttpResponseBody, HttpService,
};
use object_store::path::Path;
use object_store::{
    BackoffConfig, GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutMode, PutOptions, RetryConfig,
};
use tokio::time::{Sleep, sleep};

use super::check_range;
use super::client::{self, Failure};
use super::exact::Exact;

/// The plug-in.
pub(super) const PLUGIN: TransportPlugin = TransportPlugin {
    scheme: "s3",
    origin: super::ORIGIN,
    summary: "S3 or a server like it; keys and endpoint from AWS_… in the environment",
    usage: "s3://BUCKET[/FOLDER]",
    open: |url, options, _| Ok(Arc::new(S3Store::new(url, AmazonS3Builder::from_env(), options)?)),
};

/// Objects in a page of a listing.
const PAGE: usize = 1_000;

/// A bucket, or a folder of one.
pub struct S3Store {
    url: String,
    folder: Path,
    store: AmazonS3,
    patience: Duration,
}

impl S3Store {
    /// What the URL names, with what the builder says of keys, region and endpoint. Nothing is sent yet.
    ///
    /// # Errors
    /// `InvalidSetting` if the URL is not `s3://BUCKET[/FOLDER]`, or if something is missing or does not fit together.
    pub fn new(url: &str, builder: AmazonS3Builder, options: &OpenOptions) -> Result<Self> {
        let wrong = || Error::setting("this is no URL of a bucket (s3://BUCKET/FOLDER)");
        let rest = url.strip_prefix("s3://").ok_or_else(wrong)?;
        let (bucket, folder) = rest.split_once('/').unwrap_or((rest, ""));
        let plain = |b: u8| b.is_ascii_alphanumeric() || b".-_".contains(&b);
        if bucket.is_empty() || !bucket.bytes().all(plain) {
            return Err(wrong());
        }
        let folder = folder.trim_end_matches('/');
        if !folder.is_empty() {
            Key::new(folder)?;
        }
        let url = format!("s3://{rest}").trim_end_matches('/').to_owned();
        let folder = Path::parse(folder).map_err(|e| Error::setting(format!("{url}: {e}")))?;
        let endpoint = builder.get_config_value(&object_store::aws::AmazonS3ConfigKey::Endpoint);
        let plain_text = endpoint.is_some_and(|endpoint| endpoint.starts_with("http://"));
        let retry = RetryConfig {
            backoff: BackoffConfig::default(),
            max_retries: options.retries as usize,
            retry_timeout: options.patience,
        };
        let store = builder
            .with_bucket_name(bucket)
            .with_allow_http(plain_text)
            .with_retry(retry)
            .with_http_connector(Connector { options: options.clone(), plain_text })
            .build()
            .map_err(|e| Error::setting(format!("{url}: {}", client::chain(&e))))?;
        Ok(Self { url, folder, store, patience: options.patience })
    }

    fn path(&self, key: &Key) -> Result<Path> {
        let slash = if self.folder.as_ref().is_empty() { "" } else { "/" };
        Path::parse(format!("{}{slash}{key}", self.folder)).map_err(|e| Error::data(format!("{key}: {e}")))
    }

    fn failed(&self, key: &Key, error: object_store::Error) -> Error {
        failed(&super::at(&self.url, key), error)
    }

    async fn find(&self, key: &Key) -> Result<ObjectMeta> {
        let found = self.store.head(&self.path(key)?).await.map_err(|e| self.failed(key, e))?;
        Ok(object_meta(found))
    }

    async fn read(&self, key: &Key, range: Option<Range<u64>>) -> Result<Body> {
        let object = super::at(&self.url, key);
        let part = match &range {
            Some(range) if range.start < range.end => Some(GetRange::Bounded(range.clone())),
            // All of an empty object, if it is one.
            Some(range) if *range == (0..0) => None,
            Some(range) => {
                return Err(Error::data(format!("{object}: {}..{} is no range", range.start, range.end)));
            }
            None => None,
        };
        let options = GetOptions::new().with_range(part);
        let got = match self.store.get_opts(&self.path(key)?, options).await {
            Ok(got) => got,
            Err(error) => {
                let error = self.failed(key, error);
                // That there are no such bytes is nothing that `object_store` tells from other refusals.
                if let (Some(range), Error::Unavailable(_) | Error::Unsupported(_)) = (range, &error) {
                    let meta = self.find(key).await?;
                    check_range(&self.url, key, Some(range), meta.size)?;
                }
                return Err(error);
            }
        };
        let meta = object_meta(got.meta.clone());
        let wanted = check_range(&self.url, key, range, meta.size)?;
        if got.range != wanted {
            return Err(Error::corrupt(format!(
                "{object}: bytes {wanted:?} are asked for, {:?} come",
                got.range
            )));
        }
        let pieces = Incoming { stream: got.into_stream(), object: object.clone() };
        let exact = Exact::new(Box::new(pieces), wanted.end - wanted.start, self.patience, object);
        Ok(Body { meta, range: wanted, pieces: Box::new(exact) })
    }

    async fn write(&self, key: &Key, bytes: Bytes, mode: Put) -> Result<PutOutcome> {
        let mode = match mode {
            Put::Replace => PutMode::Overwrite,
            Put::Create => PutMode::Create,
        };
        let written = self.store.put_opts(&self.path(key)?, bytes.into(), PutOptions::from(mode)).await;
        match written {
            Ok(_) => Ok(PutOutcome::Written),
            Err(object_store::Error::AlreadyExists { .. }) => Ok(PutOutcome::Exists),
            Err(error) => Err(self.failed(key, error)),
        }
    }

    async fn remove(&self, key: &Key) -> Result<()> {
        match self.store.delete(&self.path(key)?).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.failed(key, error)),
        }
    }
}

impl fmt::Debug for S3Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Store").field("url", &self.url).finish_non_exhaustive()
    }
}

impl Transport for S3Store {
    fn url(&self) -> &str {
        &self.url
    }

    fn get<'a>(&'a self, key: &'a Key, range: Option<Range<u64>>) -> BoxFuture<'a, Result<Body>> {
        Box::pin(self.read(key, range))
    }

    fn put<'a>(&'a self, key: &'a Key, bytes: Bytes, mode: Put) -> BoxFuture<'a, Result<PutOutcome>> {
        Box::pin(self.write(key, bytes, mode))
    }

    fn head<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<ObjectMeta>> {
        Box::pin(self.find(key))
    }

    fn delete<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.remove(key))
    }

    fn list<'a>(&'a self, folder: Option<&'a Key>) -> Box<dyn Listing + 'a> {
        Box::new(Pages { store: self, folder, stream: None })
    }
}

fn object_meta(found: object_store::ObjectMeta) -> ObjectMeta {
    let mut meta = ObjectMeta::new(found.size);
    meta.modified = Some(found.last_modified.into());
    meta.etag = found.e_tag;
    meta
}

fn failed(object: &str, error: object_store::Error) -> Error {
    use object_store::Error as Theirs;
    let text = format!("{object}: {}", client::chain(&error));
    match error {
        Theirs::NotFound { .. } => Error::not_found(text),
        Theirs::PermissionDenied { .. } | Theirs::Unauthenticated { .. } => Error::denied(text),
        Theirs::NotSupported { .. } | Theirs::NotImplemented { .. } => Error::unsupported(text),
        Theirs::InvalidPath { .. } => Error::data(text),
        Theirs::UnknownConfigurationKey { .. } => Error::setting(text),
        // No connection, no answer, refusals of all kinds.
        _ => Error::unavailable(text),
    }
}

struct Incoming {
    stream: BoxStream<'static, object_store::Result<Bytes>>,
    object: String,
}

impl Pieces for Incoming {
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Bytes>>> {
        Box::pin(async move { self.stream.next().await.transpose().map_err(|e| failed(&self.object, e)) })
    }
}

struct Pages<'a> {
    store: &'a S3Store,
    folder: Option<&'a Key>,
    stream: Option<BoxStream<'static, object_store::Result<object_store::ObjectMeta>>>,
}

impl Listing for Pages<'_> {
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Page>>> {
        Box::pin(async move {
            let stream = match &mut self.stream {
                Some(stream) => stream,
                stream => {
                    let prefix =
                        self.folder.map_or(Ok(self.store.folder.clone()), |key| self.store.path(key))?;
                    stream.insert(self.store.store.list(Some(&prefix)))
                }
            };
            let skip = match self.store.folder.as_ref().len() {
                0 => 0,
                length => length + 1,
            };
            let mut page = Vec::new();
            while page.len() < PAGE {
                let Some(found) = stream.next().await else { break };
                let found = found.map_err(|e| failed(&self.store.url, e))?;
                // What is no key was not put there by us.
                let key = found.location.as_ref().get(skip..).and_then(|name| Key::new(name).ok());
                page.extend(key.map(|key| (key, object_meta(found))));
            }
            Ok((!page.is_empty()).then_some(page))
        })
    }
}

/// Gives `object_store` our client.
#[derive(Debug)]
struct Connector {
    options: OpenOptions,
    plain_text: bool,
}

impl HttpConnector for Connector {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        // Which server comes later; what matters of a URL here is its scheme.
        let url = if self.plain_text { "http://localhost" } else { "https://s3.amazonaws.com" };
        let generic = |source| object_store::Error::Generic { store: "S3", source };
        let url = url.parse().map_err(|e| generic(Box::new(e) as _))?;
        let client = client::client(&url, &self.options).map_err(|e| generic(Box::new(e) as _))?;
        Ok(HttpClient::new(Service { client, patience: self.options.patience }))
    }
}

#[derive(Debug)]
struct Service {
    client: reqwest::Client,
    patience: Duration,
}

impl Service {
    async fn answer(&self, request: HttpRequest) -> std::result::Result<HttpResponse, HttpError> {
        let (parts, body) = request.into_parts();
        let url = parts.uri.to_string().parse().map_err(|e| HttpError::new(HttpErrorKind::Unknown, e))?;
        let mut request = reqwest::Request::new(parts.method, url);
        *request.headers_mut() = parts.headers;
        let upload = body.collect().await?.to_bytes();
        let answer = client::send(&self.client, request, Some(upload), self.patience).await;
        let answer = answer.map_err(|failure| {
            let kind = match &failure {
                Failure::Silent(_) => HttpErrorKind::Timeout,
                Failure::Broken(e) if e.is_connect() => HttpErrorKind::Connect,
                Failure::Broken(e) if e.is_timeout() => HttpErrorKind::Timeout,
                Failure::Broken(_) => HttpErrorKind::Interrupted,
            };
            HttpError::new(kind, failure)
        })?;
        let answer: http::Response<reqwest::Body> = answer.into();
        let (parts, body) = answer.into_parts();
        Ok(HttpResponse::from_parts(parts, HttpResponseBody::new(Answer::new(body, self.patience))))
    }
}

impl HttpService for Service {
    // As `async_trait` writes it.
    fn call<'a, 'b>(
        &'a self,
        request: HttpRequest,
    ) -> BoxFuture<'b, std::result::Result<HttpResponse, HttpError>>
    where
        'a: 'b,
        Self: 'b,
    {
        Box::pin(self.answer(request))
    }
}

/// A body that fails when it is silent: `object_store` itself waits for the ends of small ones.
struct Answer {
    body: reqwest::Body,
    patience: Duration,
    /// Since when somebody has been waiting, and for how long.
    waiting: Option<Pin<Box<Sleep>>>,
}

impl Answer {
    fn new(body: reqwest::Body, patience: Duration) -> Self {
        Self { body, patience, waiting: None }
    }
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<std::result::Result<Frame<Bytes>, HttpError>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            self.waiting = None;
            let broken = |e: reqwest::Error| HttpError::new(HttpErrorKind::Interrupted, e.without_url());
            return Poll::Ready(frame.map(|frame| frame.map_err(broken)));
        }
        let patience = self.patience;
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(sleep(patience)));
        ready!(waiting.as_mut().poll(cx));
        Poll::Ready(Some(Err(HttpError::new(HttpErrorKind::Timeout, Failure::Silent(patience)))))
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

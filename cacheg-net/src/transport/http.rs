//! `http:` and `https:`: objects of a web server.
//!
//! Reading needs nothing but `GET` and `HEAD`; ranges, where a server ignores them, are cut out of the whole. Listing is
//! WebDAV's `PROPFIND` (`Depth: infinity`), writing is `PUT` (with `If-None-Match: *` to create) and `DELETE`, as
//! `cacheg serve` answers them. Folders are made by `MKCOL` where a server wants that.
//!
//! Why not the `object_store` crate's HTTP store: it cannot create without replacing, reads listings into memory as a
//! whole, gives listed objects below a URL with a path wrong names, and reconnects in the middle of bodies unseen, which
//! would hide from an adaptive client that its link has broken.
//!
//! Redirects are followed, but not from `https:` to `http:`. Proxies are those of the environment (`HTTPS_PROXY`,
//! `NO_PROXY`), never for loopback.

mod answer;
mod listing;

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cacheg_core::{
    Body, BoxFuture, Error, Key, Listing, ObjectMeta, OpenOptions, Pieces, Put, PutOutcome, Result,
    Transport, TransportPlugin, Transports,
};
use http::header::{AUTHORIZATION, IF_NONE_MATCH, RANGE};
use http::{HeaderName, HeaderValue, Method, StatusCode};
use reqwest::{Client, Request, Response, Url};
use tokio::time::sleep;

use super::check_range;
use super::client::{self, Failure};
use super::exact::Exact;

/// The plug-ins.
pub(super) const PLUGINS: [TransportPlugin; 2] = [
    TransportPlugin {
        scheme: "http",
        origin: super::ORIGIN,
        summary: "a web server; for writing `cacheg serve`, or another one with WebDAV",
        usage: "http://[USER:PASSWORD@]HOST[:PORT][/FOLDER]",
        open,
    },
    TransportPlugin {
        scheme: "https",
        origin: super::ORIGIN,
        summary: "a web server by TLS",
        usage: "https://[USER:PASSWORD@]HOST[:PORT][/FOLDER]",
        open,
    },
];

/// Before a larger object is sent to be created, the server is asked whether its key is free.
const LARGE: usize = 64 << 10;
/// The first wait before trying again; doubled each time.
const WAIT: Duration = Duration::from_millis(100);

fn open(url: &str, options: &OpenOptions, _: &Transports) -> Result<Arc<dyn Transport>> {
    Ok(Arc::new(HttpStore::new(url, options)?))
}

/// A web server's objects.
pub struct HttpStore {
    /// Without user, password and final slash.
    url: String,
    base: Url,
    client: Client,
    /// The value of `Authorization`.
    secret: Option<HeaderValue>,
    patience: Duration,
    retries: u32,
}

impl HttpStore {
    /// Of that URL. Nothing is sent yet.
    ///
    /// # Errors
    /// `InvalidSetting` if it is no `http:` or `https:` URL, or has a query or fragment; if there are both a token and a
    /// password, or a token that no header can hold; if certificate authorities cannot be read.
    pub fn new(url: &str, options: &OpenOptions) -> Result<Self> {
        // The URL itself may have a password and is not shown before that is gone.
        let mut base =
            Url::parse(url).map_err(|e| Error::setting(format!("this is no URL of a web server: {e}")))?;
        let password = (!base.username().is_empty() || base.password().is_some()).then(|| {
            let decoded =
                |text: &str| percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned();
            format!("{}:{}", decoded(base.username()), decoded(base.password().unwrap_or_default()))
        });
        // These fail on URLs without a host, which have no password either.
        let _ = base.set_username("");
        let _ = base.set_password(None);
        if base.host_str().is_none_or(str::is_empty) || !["http", "https"].contains(&base.scheme()) {
            return Err(Error::setting("this is no URL of a web server (http://HOST/FOLDER)"));
        }
        if base.query().is_some() || base.fragment().is_some() {
            base.set_query(None);
            base.set_fragment(None);
            return Err(Error::setting(format!("{base}: a store's URL has nothing after `?` or `#`")));
        }
        let folder = base.path().trim_end_matches('/').to_owned();
        base.set_path(&format!("{folder}/"));
        let secret = match (password, &options.token) {
            (Some(_), Some(_)) => {
                return Err(Error::setting(format!("{base}: give a password or a token, not both")));
            }
            (Some(password), None) => Some(format!("Basic {}", base64(password.as_bytes()))),
            (None, Some(token)) => Some(format!("Bearer {token}")),
            (None, None) => None,
        };
        let secret = secret.map(|text| {
            let mut value = HeaderValue::try_from(text).map_err(|_| {
                Error::setting(format!("{base}: the token has characters that cannot be sent"))
            })?;
            value.set_sensitive(true);
            Ok::<_, Error>(value)
        });
        let secret = secret.transpose()?;
        let client = client::client(&base, options)?;
        let url = base.as_str().trim_end_matches('/').to_owned();
        Ok(Self { url, base, client, secret, patience: options.patience, retries: options.retries })
    }

    fn at(&self, key: &Key) -> String {
        super::at(&self.url, key)
    }

    fn target(&self, path: &str) -> Result<Url> {
        // Nothing in a key needs to be escaped.
        Url::parse(&format!("{}{path}", self.base))
            .map_err(|e| Error::setting(format!("{}/{path}: {e}", self.url)))
    }

    /// Sends a request, again if it failed for a reason that may go away; not if the server was silent: who has waited
    /// once has waited long enough. Says whether an earlier attempt may have been carried out.
    async fn send(
        &self,
        method: &Method,
        path: &str,
        headers: &[(HeaderName, HeaderValue)],
        upload: Option<&Bytes>,
    ) -> Result<(Response, bool)> {
        let target = self.target(path)?;
        let mut ambiguous = false;
        let mut attempt = 0;
        loop {
            let mut request = Request::new(method.clone(), target.clone());
            request.headers_mut().extend(headers.iter().cloned());
            if let Some(secret) = &self.secret {
                request.headers_mut().insert(AUTHORIZATION, secret.clone());
            }
            let result = client::send(&self.client, request, upload.cloned(), self.patience).await;
            let (reason, asked) = match &result {
                Ok(response) if answer::is_passing(response.status()) => {
                    (format!("the server says {}", response.status()), answer::retry_after(response))
                }
                Ok(_) => return Ok((result.map_err(|e| self.failed(&target, &e))?, ambiguous)),
                Err(Failure::Broken(e)) if !e.is_timeout() && !e.is_redirect() && !e.is_builder() => {
                    ambiguous |= !e.is_connect();
                    (client::chain(e), None)
                }
                Err(e) => return Err(self.failed(&target, e)),
            };
            let wait = asked.unwrap_or_else(|| jittered(WAIT * 2_u32.saturating_pow(attempt.min(10))));
            if attempt >= self.retries || wait > self.patience {
                return Err(Error::unavailable(format!(
                    "{method} {target}: {reason}, also after {attempt} more attempts"
                )));
            }
            attempt += 1;
            tracing::info!(target: "cacheg::transport", %method, url = %target, reason, attempt, "trying again");
            sleep(wait).await;
        }
    }

    fn failed(&self, target: &Url, failure: &Failure) -> Error {
        Error::unavailable(format!("{target}: {failure}"))
    }

    async fn find(&self, key: &Key) -> Result<ObjectMeta> {
        let (response, _) = self.send(&Method::HEAD, key.as_str(), &[], None).await?;
        match response.status() {
            StatusCode::OK => {
                answer::object_meta(response.headers(), &self.at(key), answer::length(&response))
            }
            _ => Err(self.refused(response, key.as_str()).await),
        }
    }

    async fn read(&self, key: &Key, range: Option<Range<u64>>) -> Result<Body> {
        let mut headers = Vec::new();
        match &range {
            Some(range) if range.start < range.end => {
                let value = HeaderValue::try_from(format!("bytes={}-{}", range.start, range.end - 1));
                headers.push((RANGE, value.map_err(|e| Error::data(e.to_string()))?));
            }
            // All of an empty object, if it is one.
            Some(range) if *range == (0..0) => {}
            Some(range) => {
                return Err(Error::data(format!(
                    "{}: {}..{} is no range",
                    self.at(key),
                    range.start,
                    range.end
                )));
            }
            None => {}
        }
        let (response, _) = self.send(&Method::GET, key.as_str(), &headers, None).await?;
        let object = self.at(key);
        let length = answer::length(&response);
        match (response.status(), range) {
            (StatusCode::OK, range) => {
                let meta = answer::object_meta(response.headers(), &object, length)?;
                let range = check_range(&self.url, key, range, meta.size)?;
                if range != (0..meta.size) {
                    tracing::info!(target: "cacheg::transport", object, "the server sends more than the range");
                }
                let body = self.body(response, meta.size, object).part(range.start, range.end - range.start);
                Ok(Body { meta, range, pieces: Box::new(body) })
            }
            (StatusCode::PARTIAL_CONTENT, Some(wanted)) => {
                let (got, size) = answer::content_range(response.headers(), &object)?;
                check_range(&self.url, key, Some(wanted.clone()), size)?;
                if got != wanted || length.is_some_and(|length| length != got.end - got.start) {
                    return Err(Error::corrupt(format!(
                        "{object}: bytes {wanted:?} are asked for, {got:?} announced, {length:?} bytes sent"
                    )));
                }
                let meta = answer::object_meta(response.headers(), &object, Some(size))?;
                let body = self.body(response, got.end - got.start, object);
                Ok(Body { meta, range: got, pieces: Box::new(body) })
            }
            (StatusCode::RANGE_NOT_SATISFIABLE, Some(wanted)) => {
                Err(Error::data(format!("{object}: it has no bytes {}..{}", wanted.start, wanted.end)))
            }
            _ => Err(self.refused(response, key.as_str()).await),
        }
    }

    fn body(&self, response: Response, length: u64, object: String) -> Exact {
        let pieces = Incoming { response, object: object.clone() };
        Exact::new(Box::new(pieces), length, self.patience, object)
    }

    async fn write(&self, key: &Key, bytes: Bytes, mode: Put) -> Result<PutOutcome> {
        let mut headers = Vec::new();
        if mode == Put::Create {
            headers.push((IF_NONE_MATCH, HeaderValue::from_static("*")));
            if bytes.len() > LARGE && self.find(key).await.is_ok() {
                return Ok(PutOutcome::Exists);
            }
        }
        let mut made_folders = false;
        loop {
            let (response, ambiguous) = self.send(&Method::PUT, key.as_str(), &headers, Some(&bytes)).await?;
            return match response.status() {
                StatusCode::OK | StatusCode::CREATED | StatusCode::NO_CONTENT => Ok(PutOutcome::Written),
                StatusCode::PRECONDITION_FAILED if mode == Put::Create => {
                    // An attempt whose answer was lost may have been the one that took the key.
                    if ambiguous && self.holds(key, &bytes).await? {
                        return Ok(PutOutcome::Written);
                    }
                    Ok(PutOutcome::Exists)
                }
                // Servers of folders say so if there is none for it.
                StatusCode::CONFLICT | StatusCode::NOT_FOUND
                    if !made_folders && key.as_str().contains('/') =>
                {
                    made_folders = true;
                    for (end, _) in key.as_str().match_indices('/') {
                        let method =
                            Method::from_bytes(b"MKCOL").map_err(|e| Error::unsupported(e.to_string()))?;
                        // Whether that has helped shows below.
                        self.send(&method, &key.as_str()[..end], &[], None).await?;
                    }
                    continue;
                }
                _ => Err(self.refused(response, key.as_str()).await),
            };
        }
    }

    /// Whether an object has these bytes.
    async fn holds(&self, key: &Key, bytes: &[u8]) -> Result<bool> {
        let mut body = self.read(key, None).await?;
        let mut rest = bytes;
        while let Some(piece) = body.pieces.next().await? {
            match rest.strip_prefix(&piece[..]) {
                Some(more) => rest = more,
                None => return Ok(false),
            }
        }
        Ok(rest.is_empty())
    }

    async fn remove(&self, key: &Key) -> Result<()> {
        let (response, _) = self.send(&Method::DELETE, key.as_str(), &[], None).await?;
        match response.status() {
            status if status.is_success() => Ok(()),
            StatusCode::NOT_FOUND | StatusCode::GONE => Ok(()),
            _ => Err(self.refused(response, key.as_str()).await),
        }
    }

    /// What an answer that is none means.
    async fn refused(&self, response: Response, path: &str) -> Error {
        let status = response.status();
        let said = answer::message(response, self.secret.as_ref()).await;
        answer::error(status, &format!("{}/{path}", self.url), &said)
    }
}

impl fmt::Debug for HttpStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpStore").field("url", &self.url).finish_non_exhaustive()
    }
}

impl Transport for HttpStore {
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
        Box::new(listing::Pages::new(self, folder))
    }
}

struct Incoming {
    response: Response,
    object: String,
}

impl Pieces for Incoming {
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Bytes>>> {
        Box::pin(async move {
            self.response
                .chunk()
                .await
                .map_err(|e| Error::unavailable(format!("{}: {}", self.object, client::reason(e))))
        })
    }
}

/// Between half and all of it: many clients whose server comes back shall not come back all at once.
fn jittered(wait: Duration) -> Duration {
    let random = RandomState::new().hash_one(0) as u32;
    wait.mul_f64(0.5 + 0.5 * f64::from(random) / f64::from(u32::MAX))
}

fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for triple in bytes.chunks(3) {
        let word =
            triple.iter().fold(0_u32, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - triple.len()));
        for index in 0..4 {
            let letter = LETTERS[(word >> (18 - 6 * index)) as usize & 63];
            text.push(if index <= triple.len() { char::from(letter) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_by_hand() {
        for (plain, coded) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("user:pä?~", "dXNlcjpww6Q/fg==")]
        {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        let mut options = OpenOptions::default();
        let store = HttpStore::new("http://user:hush@127.0.0.1:1/a/", &options).unwrap();
        assert_eq!(store.url(), "http://127.0.0.1:1/a");
        assert!(!format!("{store:?}").contains("hush"));
        options.token = Some("whisper".into());
        let store = HttpStore::new("http://127.0.0.1:1", &options).unwrap();
        assert_eq!(store.url(), "http://127.0.0.1:1");
        assert!(!format!("{store:?}").contains("whisper"));
        options.token = Some("whisper\n".into());
        for url in [
            "http://user:hush@h/?sig=hush",
            "http://user:hush@h/#hush",
            "http://user:hush@h/",
            "http://:hush@",
            "http://user:hush@h:999999/",
            "ftp://user:hush@h/",
            "http://h/",
        ] {
            let error = HttpStore::new(url, &options).unwrap_err().to_string();
            assert!(!error.contains("hush") && !error.contains("whisper"), "{error}");
        }
    }
}

//! A store that can be slow or wrong, a server over it, and a client that says exactly what it is told.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use cacheg_core::{
    Body, BoxFuture, Error, Key, Listing, ObjectMeta, Pieces, Put, PutOutcome, Result, Transport,
};
use cacheg_net::serve::{Server, Settings, Stopped};
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Objects in memory, with faults.
#[derive(Debug, Default)]
pub(crate) struct Store {
    objects: Mutex<BTreeMap<Key, (Bytes, u64)>>,
    version: AtomicU64,
    /// Tells no tags.
    pub(crate) tagless: AtomicBool,
    /// Waits before each piece, in milliseconds.
    pub(crate) delay: AtomicU64,
    /// Bodies break off after the first piece.
    pub(crate) broken: AtomicBool,
    /// Pieces that were asked for.
    pub(crate) pieces: AtomicU64,
}

/// 1994-11-06T08:49:37Z
pub(crate) const MODIFIED: u64 = 784_111_777;
pub(crate) const PIECE: usize = 64 << 10;

impl Store {
    pub(crate) fn with(objects: &[(&str, Bytes)]) -> Arc<Self> {
        let store = Self::default();
        for (name, bytes) in objects {
            store.set(name, bytes.clone());
        }
        Arc::new(store)
    }

    pub(crate) fn set(&self, name: &str, bytes: impl Into<Bytes>) {
        let version = self.version.fetch_add(1, Ordering::Relaxed);
        self.objects.lock().unwrap().insert(Key::new(name).unwrap(), (bytes.into(), version));
    }

    pub(crate) fn bytes(&self, name: &str) -> Option<Bytes> {
        self.objects.lock().unwrap().get(&Key::new(name).unwrap()).map(|(bytes, _)| bytes.clone())
    }

    fn meta(&self, bytes: &Bytes, version: u64) -> ObjectMeta {
        let mut meta = ObjectMeta::new(bytes.len() as u64);
        meta.modified = Some(UNIX_EPOCH + Duration::from_secs(MODIFIED));
        if !self.tagless.load(Ordering::Relaxed) {
            meta.etag = Some(format!("v{version}"));
        }
        meta
    }

    fn find(&self, key: &Key) -> Result<(Bytes, ObjectMeta)> {
        let objects = self.objects.lock().unwrap();
        let (bytes, version) = objects.get(key).ok_or_else(|| Error::not_found(format!("secret: {key}")))?;
        Ok((bytes.clone(), self.meta(bytes, *version)))
    }
}

struct Slow {
    bytes: Bytes,
    delay: Duration,
    broken: bool,
    first: bool,
}

impl Pieces for Slow {
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Bytes>>> {
        Box::pin(async {
            tokio::time::sleep(self.delay).await;
            if self.broken && !std::mem::replace(&mut self.first, false) {
                return Err(Error::unavailable("the disk is gone"));
            }
            let piece = self.bytes.split_to(self.bytes.len().min(PIECE));
            Ok(Some(piece).filter(|piece| !piece.is_empty()))
        })
    }
}

struct Pages(Vec<(Key, ObjectMeta)>);

impl Listing for Pages {
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Vec<(Key, ObjectMeta)>>>> {
        let rest = self.0.split_off(self.0.len().min(3));
        let page = std::mem::replace(&mut self.0, rest);
        Box::pin(async { Ok(Some(page).filter(|page| !page.is_empty())) })
    }
}

impl Transport for Store {
    fn url(&self) -> &str {
        "test:secret"
    }

    fn get<'a>(&'a self, key: &'a Key, range: Option<Range<u64>>) -> BoxFuture<'a, Result<Body>> {
        Box::pin(async {
            let (bytes, meta) = self.find(key)?;
            let range = range.unwrap_or(0..meta.size);
            self.pieces.fetch_add(1, Ordering::Relaxed);
            let part = bytes.slice(range.start as usize..range.end as usize);
            let delay = Duration::from_millis(self.delay.load(Ordering::Relaxed));
            let broken = self.broken.load(Ordering::Relaxed);
            let pieces = Box::new(Slow { bytes: part, delay, broken, first: true });
            Ok(Body { meta, range, pieces })
        })
    }

    fn put<'a>(&'a self, key: &'a Key, bytes: Bytes, mode: Put) -> BoxFuture<'a, Result<PutOutcome>> {
        Box::pin(async move {
            if mode == Put::Create && self.find(key).is_ok() {
                return Ok(PutOutcome::Exists);
            }
            self.set(key.as_str(), bytes);
            Ok(PutOutcome::Written)
        })
    }

    fn head<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<ObjectMeta>> {
        Box::pin(async { Ok(self.find(key)?.1) })
    }

    fn delete<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<()>> {
        self.objects.lock().unwrap().remove(key);
        Box::pin(async { Ok(()) })
    }

    fn list<'a>(&'a self, folder: Option<&'a Key>) -> Box<dyn Listing + 'a> {
        let inside = |key: &Key| {
            folder.is_none_or(|folder| {
                key.as_str().strip_prefix(folder.as_str()).is_some_and(|rest| rest.starts_with('/'))
            })
        };
        let objects = self.objects.lock().unwrap();
        let found = objects.iter().filter(|(key, _)| inside(key));
        Box::new(Pages(found.map(|(key, (bytes, at))| (key.clone(), self.meta(bytes, *at))).collect()))
    }
}

/// A server that runs.
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    pub(crate) url: String,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<Stopped>,
}

impl Running {
    pub(crate) async fn start(store: &Arc<Store>, settings: Settings) -> Self {
        let transport: Arc<dyn Transport> = Arc::clone(store) as _;
        let server = Server::bind(transport, "127.0.0.1:0".parse().unwrap(), settings).await.unwrap();
        let (address, url) = (server.address(), server.url());
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(server.run(async {
            let _ = stopped.await;
        }));
        Self { address, url, stop: Some(stop), task }
    }

    pub(crate) fn tell_to_stop(&mut self) {
        let _ = self.stop.take().unwrap().send(());
    }

    pub(crate) async fn stopped(self) -> Stopped {
        self.task.await.unwrap()
    }

    /// One request over HTTP/1.1.
    pub(crate) async fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        let stream = TcpStream::connect(self.address).await.unwrap();
        ask1(stream, method, path, headers, body).await
    }

    pub(crate) async fn get(&self, path: &str, headers: &[(&str, &str)]) -> Reply {
        self.ask("GET", path, headers, b"").await
    }

    /// Bytes as they are, and all that comes back until the server closes.
    pub(crate) async fn raw(&self, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        // The server may answer and close before it has read all.
        let _ = stream.write_all(request).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    }
}

pub(crate) fn settings(change: impl FnOnce(&mut Settings)) -> Settings {
    let mut settings = Settings::default();
    change(&mut settings);
    settings
}

/// An answer, complete.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: hyper::HeaderMap,
    pub(crate) body: Bytes,
}

impl Reply {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body.to_vec()).unwrap()
    }

    async fn of(response: Response<hyper::body::Incoming>) -> Self {
        let (head, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Self { status: head.status.as_u16(), headers: head.headers, body }
    }
}

pub(crate) fn request(
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Request<Full<Bytes>> {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Full::new(Bytes::copy_from_slice(body))).unwrap()
}

pub(crate) async fn ask1(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Reply {
    let (mut send, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    let driver = tokio::spawn(connection);
    let headers: Vec<_> = [("host", "test")].iter().chain(headers).copied().collect();
    let reply = Reply::of(send.send_request(request(method, path, &headers, body)).await.unwrap()).await;
    drop(send);
    let _ = driver.await;
    reply
}

/// Sends all of these at once over one HTTP/2 connection.
pub(crate) async fn ask2(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    requests: Vec<Request<Full<Bytes>>>,
) -> Vec<Reply> {
    let (send, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let tasks: Vec<_> = requests
        .into_iter()
        .map(|request| {
            let mut send = send.clone();
            tokio::spawn(async move { Reply::of(send.send_request(request).await.unwrap()).await })
        })
        .collect();
    let mut replies = Vec::new();
    for task in tasks {
        replies.push(task.await.unwrap());
    }
    replies
}

/// Bytes that differ everywhere.
pub(crate) fn noise(length: usize) -> Bytes {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes.into()
}

/// In `seconds` from now, as token files say it.
pub(crate) fn later(seconds: u64) -> SystemTime {
    SystemTime::now() + Duration::from_secs(seconds)
}

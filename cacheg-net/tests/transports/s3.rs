//! S3: the protocol, its signatures and errors are those of the `s3s` crate's server, the objects are in memory. (The
//! server of files beside it, `s3s-fs`, neither creates atomically nor holds the longest keys.)

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use cacheg_core::{ErrorKind, Key, Put, PutOutcome, Result, Transport};
use cacheg_net::conformance::{self, Check};
use cacheg_net::transport::{MemoryStore, S3Store};
use futures_util::StreamExt;
use hyper_util::rt::{TokioExecutor, TokioIo};
use object_store::aws::AmazonS3Builder;
use s3s::auth::SimpleAuth;
use s3s::dto::{
    DeleteObjectInput, DeleteObjectOutput, DeleteObjectsInput, DeleteObjectsOutput, DeletedObject,
    GetObjectInput, GetObjectOutput, HeadObjectInput, HeadObjectOutput, ListObjectsV2Input,
    ListObjectsV2Output, Object, PutObjectInput, PutObjectOutput, StreamingBlob, Timestamp,
};
use s3s::service::S3ServiceBuilder;
use s3s::{S3, S3Request, S3Response, S3Result, s3_error};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::conformance::BOTH;
use crate::fault_server::{Fault, FaultServer};

struct Bucket(Arc<MemoryStore>);

fn key(name: &str) -> S3Result<Key> {
    Key::new(name).map_err(|_| s3_error!(InvalidArgument))
}

fn etag(meta: &cacheg_core::ObjectMeta) -> Option<String> {
    meta.etag.as_ref().map(|etag| format!("\"{etag}\""))
}

fn failed(error: cacheg_core::Error) -> s3s::S3Error {
    match error.kind() {
        ErrorKind::NotFound => s3_error!(NoSuchKey),
        ErrorKind::InvalidData => s3_error!(InvalidRange),
        _ => s3_error!(InternalError),
    }
}

impl Bucket {
    async fn remove(&self, name: &str) -> S3Result<()> {
        self.0.delete(&key(name)?).await.map_err(failed)
    }
}

#[async_trait::async_trait]
impl S3 for Bucket {
    async fn get_object(&self, req: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        let key = key(&req.input.key)?;
        let meta = self.0.head(&key).await.map_err(failed)?;
        let range = match req.input.range {
            Some(range) => Some(range.check(meta.size)?),
            None => None,
        };
        let body = self.0.get(&key, range.clone()).await.map_err(failed)?;
        let (meta, sent) = (body.meta, body.range);
        let pieces = futures_util::stream::unfold(body.pieces, |mut pieces| async move {
            let piece = pieces.next().await.transpose()?;
            Some((piece, pieces))
        });
        // What may be shared is asked for, though only one has it.
        let pieces = sync(pieces);
        Ok(S3Response::new(GetObjectOutput {
            content_length: Some((sent.end - sent.start) as i64),
            content_range: range.map(|_| format!("bytes {}-{}/{}", sent.start, sent.end - 1, meta.size)),
            e_tag: etag(&meta),
            last_modified: meta.modified.map(Timestamp::from),
            body: Some(StreamingBlob::wrap(pieces)),
            ..GetObjectOutput::default()
        }))
    }

    async fn head_object(&self, req: S3Request<HeadObjectInput>) -> S3Result<S3Response<HeadObjectOutput>> {
        let meta = self.0.head(&key(&req.input.key)?).await.map_err(failed)?;
        Ok(S3Response::new(HeadObjectOutput {
            content_length: Some(meta.size as i64),
            e_tag: etag(&meta),
            last_modified: meta.modified.map(Timestamp::from),
            ..HeadObjectOutput::default()
        }))
    }

    async fn put_object(&self, req: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        let key = key(&req.input.key)?;
        let mut bytes = BytesMut::new();
        if let Some(mut body) = req.input.body {
            while let Some(piece) = body.next().await {
                bytes.extend_from_slice(&piece.map_err(|_| s3_error!(IncompleteBody))?);
            }
        }
        if req.input.content_length.is_some_and(|length| length != bytes.len() as i64) {
            return Err(s3_error!(IncompleteBody));
        }
        let mode = match req.input.if_none_match.as_deref() {
            Some("*") => Put::Create,
            Some(_) => return Err(s3_error!(NotImplemented)),
            None => Put::Replace,
        };
        match self.0.put(&key, bytes.freeze(), mode).await.map_err(failed)? {
            PutOutcome::Written => {}
            PutOutcome::Exists => return Err(s3_error!(PreconditionFailed)),
        }
        let meta = self.0.head(&key).await.ok();
        Ok(S3Response::new(PutObjectOutput {
            e_tag: meta.as_ref().and_then(etag).or(Some("\"gone\"".into())),
            ..PutObjectOutput::default()
        }))
    }

    async fn delete_object(
        &self,
        req: S3Request<DeleteObjectInput>,
    ) -> S3Result<S3Response<DeleteObjectOutput>> {
        self.remove(&req.input.key).await?;
        Ok(S3Response::new(DeleteObjectOutput::default()))
    }

    async fn delete_objects(
        &self,
        req: S3Request<DeleteObjectsInput>,
    ) -> S3Result<S3Response<DeleteObjectsOutput>> {
        let mut deleted = Vec::new();
        for object in req.input.delete.objects {
            self.remove(&object.key).await?;
            deleted.push(DeletedObject { key: Some(object.key), ..DeletedObject::default() });
        }
        Ok(S3Response::new(DeleteObjectsOutput { deleted: Some(deleted), ..DeleteObjectsOutput::default() }))
    }

    async fn list_objects_v2(
        &self,
        req: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        let prefix = req.input.prefix.unwrap_or_default();
        let after = req.input.continuation_token.or(req.input.start_after).unwrap_or_default();
        let most = req.input.max_keys.unwrap_or(1_000).clamp(0, 1_000) as usize;
        let mut listing = self.0.list(None);
        let mut contents = Vec::new();
        let mut more = false;
        // In order, as this one lists.
        'all: while let Some(page) = listing.next().await.map_err(failed)? {
            for (key, meta) in page {
                if key.as_str() <= after.as_str() || !key.as_str().starts_with(&prefix) {
                    continue;
                }
                if contents.len() == most {
                    more = true;
                    break 'all;
                }
                contents.push(Object {
                    key: Some(key.to_string()),
                    size: Some(meta.size as i64),
                    e_tag: etag(&meta),
                    last_modified: meta.modified.or(Some(SystemTime::now())).map(Timestamp::from),
                    ..Object::default()
                });
            }
        }
        Ok(S3Response::new(ListObjectsV2Output {
            key_count: Some(contents.len() as i32),
            is_truncated: Some(more),
            next_continuation_token: contents.last().filter(|_| more).and_then(|object| object.key.clone()),
            contents: Some(contents),
            name: Some(req.input.bucket),
            prefix: Some(prefix),
            max_keys: Some(most as i32),
            ..ListObjectsV2Output::default()
        }))
    }
}

/// A stream that is only ever polled through `&mut`, and so as good as `Sync`.
fn sync(
    stream: impl futures_util::Stream<Item = Result<Bytes>> + Send + 'static,
) -> impl futures_util::Stream<Item = Result<Bytes>> + Send + Sync + 'static {
    let (send, receive) = tokio::sync::mpsc::channel(1);
    tokio::spawn(async move {
        let mut stream = std::pin::pin!(stream);
        while let Some(piece) = stream.next().await {
            if send.send(piece).await.is_err() {
                break;
            }
        }
    });
    futures_util::stream::unfold(receive, |mut receive| async move { Some((receive.recv().await?, receive)) })
}

struct Server {
    url: String,
    task: JoinHandle<()>,
}

impl Server {
    async fn start() -> Self {
        let mut builder = S3ServiceBuilder::new(Bucket(Arc::new(MemoryStore::new())));
        builder.set_auth(SimpleAuth::from_single("ours", "swordfish"));
        let service = builder.build().into_shared();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let service = service.clone();
                tokio::spawn(async move {
                    let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Self { url, task }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn open(endpoint: &str, secret: &str, folder: &str, patience: Duration) -> S3Store {
    let builder = AmazonS3Builder::new()
        .with_endpoint(endpoint)
        .with_region("us-east-1")
        .with_access_key_id("ours")
        .with_secret_access_key(secret);
    let mut options = cacheg_core::OpenOptions::default();
    (options.patience, options.retries) = (patience, 2);
    S3Store::new(&format!("s3://bucket{folder}"), builder, &options).unwrap()
}

const PATIENT: Duration = Duration::from_secs(10);
const IMPATIENT: Duration = Duration::from_millis(300);

#[tokio::test(flavor = "multi_thread")]
async fn conforms_in_a_bucket() -> Check {
    let servers = std::sync::Mutex::new(Vec::new());
    conformance::run(&BOTH, async || {
        let server = Server::start().await;
        let store = open(&server.url, "swordfish", "", PATIENT);
        servers.lock().unwrap().push(server);
        Ok(Arc::new(store) as Arc<dyn Transport>)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn conforms_in_folders() -> Check {
    let server = Server::start().await;
    let next = AtomicU32::new(0);
    // Shorter than a key may be: keys and folder together have at most S3's 1,024 bytes, but this server's 512.
    let folder = |number: u32| format!("/{number}");
    for check in ["objects", "folders"] {
        let store: Arc<dyn Transport> =
            Arc::new(open(&server.url, "swordfish", &folder(next.fetch_add(1, Ordering::Relaxed)), PATIENT));
        match check {
            "objects" => conformance::objects(&store, &BOTH).await?,
            _ => conformance::folders_are_whole_segments(&store, &BOTH).await?,
        }
    }
    Ok(())
}

#[tokio::test]
async fn faults() {
    let kind = |result: Result<()>| result.unwrap_err().kind();
    let name = Key::new("a/b").unwrap();
    let server = Server::start().await;
    let store = open(&server.url, "wrong", "", PATIENT);
    let error = store.head(&name).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    assert_eq!(kind(store.put(&name, Bytes::new(), Put::Create).await.map(drop)), ErrorKind::Denied);
    assert_eq!(kind(store.list(None).next().await.map(drop)), ErrorKind::Denied);
    let store = open(&server.url, "swordfish", "", PATIENT);
    assert_eq!(kind(store.head(&name).await.map(drop)), ErrorKind::NotFound);
    assert!(!format!("{store:?}").contains("swordfish"));

    let head =
        "HTTP/1.1 200 OK\r\nlast-modified: Sun, 06 Nov 1994 08:49:37 GMT\r\ncontent-length: 500\r\n\r\nhello";
    for fault in [
        Fault::Stall(String::new()),
        Fault::Stall(head.into()),
        Fault::Say(head.into()),
        Fault::Reset(head.into()),
        Fault::Reset(String::new()),
        Fault::Say("HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n".into()),
    ] {
        let server = FaultServer::start(&[fault]).await;
        let store = open(&server.url, "swordfish", "", IMPATIENT);
        let start = std::time::Instant::now();
        let read = async {
            let mut body = store.get(&name, None).await?;
            while body.pieces.next().await?.is_some() {}
            Ok(())
        };
        assert_eq!(kind(read.await), ErrorKind::Unavailable);
        assert_eq!(kind(store.list(None).next().await.map(drop)), ErrorKind::Unavailable);
        assert_eq!(
            kind(store.put(&name, Bytes::new(), Put::Replace).await.map(drop)),
            ErrorKind::Unavailable
        );
        assert!(start.elapsed() < Duration::from_secs(6), "{:?}", start.elapsed());
    }
}

#[test]
fn urls() {
    let options = cacheg_core::OpenOptions::default();
    for url in
        ["s3:", "s3://", "s3:///x", "s3://a@b/c", "s3://bucket/..", "s3://bucket/a//b", "s3://bucket?x"]
    {
        let builder = AmazonS3Builder::new().with_region("us-east-1");
        assert!(S3Store::new(url, builder, &options).is_err(), "{url}");
    }
    for (url, shown) in [("s3://bucket/", "s3://bucket"), ("s3://bucket/a/b/", "s3://bucket/a/b")] {
        let store = S3Store::new(url, AmazonS3Builder::new().with_region("us-east-1"), &options).unwrap();
        assert_eq!(store.url(), shown);
    }
}

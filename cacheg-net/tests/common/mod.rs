//! A small model's KV caches, stores, and a transport that fails when it is told to.

#![allow(dead_code, reason = "not every test needs all of it")]
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use cacheg_core::{
    Body, BoxFuture, Dtype, Error, Geometry, Key, KvCache, LayerGroup, Limits, Listing, ObjectMeta, Pipeline,
    Put, PutOutcome, Registry, Result, Shape, Transport,
};
use cacheg_net::store::{LevelSpec, Publication, Store};
use cacheg_net::transport::MemoryStore;

pub(crate) fn registry() -> Arc<Registry> {
    Arc::new(Registry::new(cacheg_quant::PLUGINS.iter().chain(cacheg_entropy::PLUGINS).copied()).unwrap())
}

pub(crate) fn geometry() -> Geometry {
    let shape = Some(Shape { heads: 2, head_dim: 16, dtype: Dtype::F16 });
    Geometry::new(vec![LayerGroup { repeat: 3, key: shape, value: shape, latent: None, rope: None }]).unwrap()
}

/// Rubbish of a seed, the same for the same token.
pub(crate) fn cache(tokens: usize, seed: u32) -> KvCache {
    KvCache::from_fn(&geometry(), tokens, |plane, token, channel| {
        let mixed = (plane.index as u32 * 977 + token as u32 * 131 + channel as u32 * 7 + seed * 3_331)
            .wrapping_mul(0x9e37_79b1);
        (mixed >> 8) as f32 / (1 << 24) as f32 - 0.5
    })
}

pub(crate) fn ids(tokens: usize) -> Option<Vec<u32>> {
    Some((0..tokens as u32).map(|i| i * 17 % 101).collect())
}

pub(crate) fn store() -> Store {
    Store::new(Arc::new(MemoryStore::new()), Limits::default())
}

pub(crate) fn publication(cache: &KvCache, chunk_tokens: usize, ids: Option<Vec<u32>>) -> Publication {
    let registry = registry();
    let level = |name: &str, spec: &str| LevelSpec {
        name: name.into(),
        pipeline: Pipeline::parse(&registry, spec).unwrap(),
    };
    let mut metadata = BTreeMap::from([("source".to_owned(), "test".to_owned())]);
    if let Some(ids) = ids {
        metadata.insert("token_ids".into(), serde_json::json!(ids).to_string());
    }
    Publication {
        source: Arc::new(cache.clone()),
        metadata,
        model: "test".into(),
        levels: vec![level("exact", "bytes|raw"), level("small", "uniform(bits=4;group=16)|raw")],
        profile: None,
        chunk_tokens,
        id: None,
        replace: false,
    }
}

/// All keys, sorted.
pub(crate) async fn keys(store: &Store) -> Vec<Key> {
    let mut keys = Vec::new();
    let mut listing = store.transport().list(None);
    while let Some(page) = listing.next().await.unwrap() {
        keys.extend(page.into_iter().map(|(key, _)| key));
    }
    keys.sort();
    keys
}

pub(crate) async fn get(store: &Store, key: &Key) -> Bytes {
    let mut body = store.transport().get(key, None).await.unwrap();
    let mut bytes = Vec::new();
    while let Some(piece) = body.pieces.next().await.unwrap() {
        bytes.extend_from_slice(&piece);
    }
    Bytes::from(bytes)
}

/// Damages one byte of an object.
pub(crate) async fn flip(store: &Store, key: &Key, at: usize) {
    let mut bytes = get(store, key).await.to_vec();
    bytes[at] ^= 0x10;
    store.transport().put(key, Bytes::from(bytes), Put::Replace).await.unwrap();
}

/// A store that takes so many objects and no more, until it is healed.
#[derive(Debug)]
pub(crate) struct Flaky {
    inner: MemoryStore,
    left: AtomicU64,
}

impl Flaky {
    pub(crate) fn new(puts: u64) -> Self {
        Self { inner: MemoryStore::new(), left: AtomicU64::new(puts) }
    }

    pub(crate) fn heal(&self) {
        self.left.store(u64::MAX, Ordering::SeqCst);
    }
}

impl Transport for Flaky {
    fn url(&self) -> &str {
        self.inner.url()
    }

    fn get<'a>(&'a self, key: &'a Key, range: Option<Range<u64>>) -> BoxFuture<'a, Result<Body>> {
        self.inner.get(key, range)
    }

    fn put<'a>(&'a self, key: &'a Key, bytes: Bytes, mode: Put) -> BoxFuture<'a, Result<PutOutcome>> {
        let left = self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        if left.is_err() {
            return Box::pin(async { Err(Error::unavailable("the disk is full")) });
        }
        self.inner.put(key, bytes, mode)
    }

    fn head<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<ObjectMeta>> {
        self.inner.head(key)
    }

    fn delete<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<()>> {
        self.inner.delete(key)
    }

    fn list<'a>(&'a self, folder: Option<&'a Key>) -> Box<dyn Listing + 'a> {
        self.inner.list(folder)
    }
}

//! `mem:NAME`: objects in memory, shared by name within the process.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use bytes::Bytes;
use cacheg_core::{
    Body, BoxFuture, Key, Listing, ObjectMeta, Page, Pieces, Put, PutOutcome, Result, Transport,
    TransportPlugin,
};

use super::check_range;

/// The plug-in.
pub(super) const PLUGIN: TransportPlugin = TransportPlugin {
    scheme: "mem",
    origin: super::ORIGIN,
    summary: "memory of this process, for tests; gone when it ends",
    usage: "mem:NAME",
    open: |url, _, _| Ok(MemoryStore::named(url.trim_start_matches("mem:").trim_start_matches('/'))),
};

/// How much of an object comes at once; what others do with 32 MiB objects in pieces shall be tested on this one, too.
const PIECE: usize = 256 << 10;
/// Objects in a page of a listing.
const PAGE: usize = 1_000;

type Objects = BTreeMap<Key, (ObjectMeta, Bytes)>;

/// A store in memory.
pub struct MemoryStore {
    url: String,
    objects: Mutex<Objects>,
    /// Counts what has been written, for entity tags.
    written: AtomicU64,
}

impl MemoryStore {
    /// A store of its own.
    pub fn new() -> Self {
        Self::with_url("mem:".into())
    }

    fn with_url(url: String) -> Self {
        Self { url, objects: Mutex::default(), written: AtomicU64::new(0) }
    }

    /// The one of that name, which lives as long as the process does. Without a name, a new one.
    pub fn named(name: &str) -> Arc<Self> {
        static ALL: LazyLock<Mutex<HashMap<String, Arc<MemoryStore>>>> = LazyLock::new(Mutex::default);
        if name.is_empty() {
            return Arc::new(Self::new());
        }
        let mut all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
        let store =
            all.entry(name.to_owned()).or_insert_with(|| Arc::new(Self::with_url(format!("mem:{name}"))));
        Arc::clone(store)
    }

    fn objects(&self) -> MutexGuard<'_, Objects> {
        // Nobody panics while holding it, and no change takes more than one step.
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, key: &Key) -> Result<(ObjectMeta, Bytes)> {
        self.objects().get(key).cloned().ok_or_else(|| super::missing(&self.url, key))
    }

    fn read(&self, key: &Key, range: Option<Range<u64>>) -> Result<Body> {
        let (meta, bytes) = self.find(key)?;
        let range = check_range(&self.url, key, range, meta.size)?;
        // Within the object's length, which is a usize.
        let rest = bytes.slice(range.start as usize..range.end as usize);
        Ok(Body { meta, range, pieces: Box::new(Rest(rest)) })
    }

    fn write(&self, key: &Key, bytes: Bytes, mode: Put) -> PutOutcome {
        let mut meta = ObjectMeta::new(bytes.len() as u64);
        meta.modified = Some(SystemTime::now());
        meta.etag = Some(self.written.fetch_add(1, Ordering::Relaxed).to_string());
        let mut objects = self.objects();
        if mode == Put::Create && objects.contains_key(key) {
            return PutOutcome::Exists;
        }
        objects.insert(key.clone(), (meta, bytes));
        PutOutcome::Written
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore").field("url", &self.url).finish_non_exhaustive()
    }
}

impl Transport for MemoryStore {
    fn url(&self) -> &str {
        &self.url
    }

    fn get<'a>(&'a self, key: &'a Key, range: Option<Range<u64>>) -> BoxFuture<'a, Result<Body>> {
        Box::pin(async move { self.read(key, range) })
    }

    fn put<'a>(&'a self, key: &'a Key, bytes: Bytes, mode: Put) -> BoxFuture<'a, Result<PutOutcome>> {
        Box::pin(async move { Ok(self.write(key, bytes, mode)) })
    }

    fn head<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<ObjectMeta>> {
        Box::pin(async move { Ok(self.find(key)?.0) })
    }

    fn delete<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            self.objects().remove(key);
            Ok(())
        })
    }

    fn list<'a>(&'a self, folder: Option<&'a Key>) -> Box<dyn Listing + 'a> {
        Box::new(Pages { store: self, prefix: folder.map(|folder| format!("{folder}/")), after: None })
    }
}

struct Rest(Bytes);

impl Pieces for Rest {
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Bytes>>> {
        let piece = self.0.split_to(PIECE.min(self.0.len()));
        Box::pin(async move { Ok((!piece.is_empty()).then_some(piece)) })
    }
}

struct Pages<'a> {
    store: &'a MemoryStore,
    /// With the final slash.
    prefix: Option<String>,
    after: Option<Key>,
}

impl Listing for Pages<'_> {
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Page>>> {
        Box::pin(async move {
            let objects = self.store.objects();
            let inside =
                |key: &Key| self.prefix.as_ref().is_none_or(|prefix| key.as_str().starts_with(prefix));
            let rest = match &self.after {
                Some(key) => objects.range((std::ops::Bound::Excluded(key), std::ops::Bound::Unbounded)),
                None => objects.range::<Key, _>(..),
            };
            let page: Vec<_> = rest
                .filter(|(key, _)| inside(key))
                .take(PAGE)
                .map(|(key, (meta, _))| (key.clone(), meta.clone()))
                .collect();
            drop(objects);
            self.after = page.last().map(|(key, _)| key.clone()).or(self.after.take());
            Ok((!page.is_empty()).then_some(page))
        })
    }
}

//! Where decoded chunks go.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use cacheg_core::{Error, KvCache, KvFileMut, KvView, KvViewMut, Result, canonical_json, kv_metadata};
use serde::{Deserialize, Serialize};

use crate::store::{Hash, Manifest};

/// Takes a context. Calls come from several threads, one at a time.
pub trait Receiver: Send {
    /// The context that is about to come, and its token ids, if the store has them. Says which chunks are here already.
    ///
    /// # Errors
    /// If there is no room for it.
    fn begin(&mut self, manifest: &Manifest, tokens: Option<&[u32]>) -> Result<Vec<usize>>;

    /// All of the context, to be written to.
    ///
    /// # Errors
    /// Before [`begin`](Self::begin).
    fn view(&mut self) -> Result<KvViewMut<'_>>;

    /// All of the context, as far as it has come.
    ///
    /// # Errors
    /// Before [`begin`](Self::begin).
    fn read(&self) -> Result<KvView<'_>>;

    /// The chunk's rows are there, at this level, or recomputed; an upgrade comes here again.
    ///
    /// # Errors
    /// What ends the request: nobody takes the context any more.
    fn arrived(&mut self, chunk: usize, level: Option<&str>) -> Result<()>;
}

/// A panic on another thread is no reason to lose what arrived.
pub(super) fn lock<T: ?Sized>(receiver: &Mutex<T>) -> MutexGuard<'_, T> {
    receiver.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Copies all rows of `from` to the rows of `to` from `row`.
pub(super) fn copy_rows(from: &KvView<'_>, to: &mut KvViewMut<'_>, row: usize) -> Result<()> {
    const ROWS: usize = 64;
    let same = |plane: &cacheg_core::Plane, other: &cacheg_core::Plane| plane.shape == other.shape;
    let planes = to.planes_mut();
    let fits = planes.len() == from.planes().len()
        && planes.iter().zip(from.planes()).all(|(to, from)| same(to.plane(), from));
    if !fits {
        return Err(Error::data("a KV cache of another model was computed"));
    }
    let mut values = Vec::new();
    for plane in planes {
        let (index, channels) = (plane.plane().index, plane.plane().channels());
        for first in (0..from.tokens()).step_by(ROWS) {
            let rows = ROWS.min(from.tokens() - first);
            values.resize(rows * channels, 0.0);
            from.load(index, first, rows, &mut values);
            plane.store(row + first, rows, &values);
        }
    }
    Ok(())
}

/// Keeps a context in memory.
#[derive(Debug, Default)]
pub struct MemoryReceiver {
    cache: Option<KvCache>,
}

impl MemoryReceiver {
    /// The KV cache; rows that have not come are zero. `None` before anything began.
    pub fn into_cache(self) -> Option<KvCache> {
        self.cache
    }

    /// As [`into_cache`](Self::into_cache), and leaves nothing.
    pub fn take(&mut self) -> Option<KvCache> {
        self.cache.take()
    }
}

fn not_begun() -> Error {
    Error::data("no context has begun to arrive")
}

impl Receiver for MemoryReceiver {
    fn begin(&mut self, manifest: &Manifest, _: Option<&[u32]>) -> Result<Vec<usize>> {
        let tokens =
            usize::try_from(manifest.tokens).map_err(|_| Error::limit("a context larger than memory"))?;
        self.cache = Some(KvCache::try_zeros(&manifest.geometry, tokens, manifest.position)?);
        Ok(Vec::new())
    }

    fn view(&mut self) -> Result<KvViewMut<'_>> {
        self.cache.as_mut().map(KvCache::view_mut).ok_or_else(not_begun)
    }

    fn read(&self) -> Result<KvView<'_>> {
        self.cache.as_ref().map(KvCache::view).ok_or_else(not_begun)
    }

    fn arrived(&mut self, _: usize, _: Option<&str>) -> Result<()> {
        Ok(())
    }
}

/// Writes a context into a safetensors file, each chunk as it comes.
///
/// Until [`finish`](Self::finish) the file is `NAME.part`, with a journal of the chunks that are in it beside,
/// `NAME.part.journal`: if the program is killed, another request for the same context goes on from there.
#[derive(Debug)]
pub struct FileReceiver {
    path: PathBuf,
    file: Option<KvFileMut>,
    journal: Option<File>,
    resumed: Vec<Resumed>,
}

/// A chunk that an earlier request had received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resumed {
    /// Its index.
    pub chunk: usize,
    /// Its level; `None` if it was recomputed.
    pub level: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct JournalHead {
    manifest: Hash,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct JournalLine {
    chunk: usize,
    level: Option<String>,
}

impl FileReceiver {
    /// Will write to this path.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), file: None, journal: None, resumed: Vec::new() }
    }

    /// What was there from an earlier request.
    pub fn resumed(&self) -> &[Resumed] {
        &self.resumed
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        let mut name = self.path.file_name().unwrap_or_default().to_owned();
        name.push(suffix);
        self.path.with_file_name(name)
    }

    /// Completes the file: gives it its name.
    ///
    /// # Errors
    /// If it cannot be written, or exists and `force` is not set; the parts stay then.
    pub fn finish(&mut self, force: bool) -> Result<()> {
        let Some(file) = self.file.take() else { return Err(not_begun()) };
        file.sync()?;
        drop(file);
        let failed = |e: std::io::Error| Error::io("writing", &self.path, e);
        if !force && self.path.exists() {
            let taken = std::io::Error::new(std::io::ErrorKind::AlreadyExists, "it appeared meanwhile");
            return Err(failed(taken));
        }
        std::fs::rename(self.beside(".part"), &self.path).map_err(failed)?;
        self.journal = None;
        // Without the file it says nothing; its absence is no failure.
        let _ = std::fs::remove_file(self.beside(".part.journal"));
        Ok(())
    }

    /// Chunks that an earlier request for the same context has left in the parts.
    fn journalled(&self, manifest: &Manifest, hash: &Hash) -> Vec<Resumed> {
        let Ok(file) = File::open(self.beside(".part.journal")) else { return Vec::new() };
        let mut lines = BufReader::new(file).lines().map_while(std::result::Result::ok);
        let head = lines.next().and_then(|line| serde_json::from_str::<JournalHead>(&line).ok());
        if head.is_none_or(|head| head.manifest != *hash) || !self.beside(".part").exists() {
            return Vec::new();
        }
        let mut chunks = BTreeMap::new();
        // A last line may be cut off: the process was killed while it wrote.
        for line in lines.map_while(|line| serde_json::from_str::<JournalLine>(&line).ok()) {
            let known = |level: &String| manifest.level(level).is_some();
            if line.chunk < manifest.chunks.len() && line.level.as_ref().is_none_or(known) {
                chunks.insert(line.chunk, line.level);
            }
        }
        chunks.into_iter().map(|(chunk, level)| Resumed { chunk, level }).collect()
    }
}

impl Receiver for FileReceiver {
    fn begin(&mut self, manifest: &Manifest, tokens: Option<&[u32]>) -> Result<Vec<usize>> {
        let count =
            usize::try_from(manifest.tokens).map_err(|_| Error::limit("a context larger than memory"))?;
        let hash = Hash::of(&canonical_json(manifest)?);
        let resumed = self.journalled(manifest, &hash);
        // What the geometry says of RoPE and positions, and over it the source's own words.
        let empty = KvCache::zeros(&manifest.geometry, 0, manifest.position);
        let mut metadata = kv_metadata(&empty.view());
        metadata.extend(manifest.metadata.clone());
        if let Some(tokens) = tokens {
            metadata.insert("token_ids".into(), serde_json::json!(tokens).to_string());
        }
        let part = self.beside(".part");
        let failed = |e: std::io::Error| Error::io("writing", &part, e);
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(resumed.is_empty());
        let file = options.open(&part).map_err(failed)?;
        let (geometry, position) = (&manifest.geometry, manifest.position);
        self.file = Some(KvFileMut::open(&file, &part, geometry, count, position, &metadata)?);
        let journal = self.beside(".part.journal");
        let mut options = File::options();
        // Begun anew: a line that was cut off must not swallow the next.
        options.write(true).create(true).truncate(true);
        let mut journal = options.open(&journal).map_err(|e| Error::io("writing", &journal, e))?;
        let mut text = canonical_json(&JournalHead { manifest: hash })?;
        text.push(b'\n');
        for Resumed { chunk, level } in &resumed {
            text.extend(canonical_json(&JournalLine { chunk: *chunk, level: level.clone() })?);
            text.push(b'\n');
        }
        journal.write_all(&text).map_err(failed)?;
        self.journal = Some(journal);
        let held = resumed.iter().map(|resumed| resumed.chunk).collect();
        self.resumed = resumed;
        Ok(held)
    }

    fn view(&mut self) -> Result<KvViewMut<'_>> {
        self.file.as_mut().ok_or_else(not_begun)?.view_mut()
    }

    fn read(&self) -> Result<KvView<'_>> {
        self.file.as_ref().ok_or_else(not_begun)?.view()
    }

    fn arrived(&mut self, chunk: usize, level: Option<&str>) -> Result<()> {
        let mut line = canonical_json(&JournalLine { chunk, level: level.map(str::to_owned) })?;
        line.push(b'\n');
        let journal = self.journal.as_mut().ok_or_else(not_begun)?;
        journal.write_all(&line).map_err(|e| Error::io("writing", &self.path, e))
    }
}

//! Writing a context: chunks × levels, manifest last.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use cacheg_core::{
    Chunk, Encoder, Error, ErrorKind, KvCache, KvFile, KvView, Pipeline, Profile, Put, PutOutcome, Registry,
    Result, ResultExt,
};
use tokio::task::{JoinSet, spawn_blocking};

use super::distortion::{NMSE, nmse};
use super::manifest::{Blob, ChunkObject, Level, Manifest, ManifestChunk, ModelName, Parts};
use super::{ContextId, Hash, PrefixChain, Store, fingerprint, gc, layout, read, text};

/// Objects on their way to the store at a time; each may be as large as a chunk.
const UPLOADS: usize = 4;

/// A KV cache that stays where it is while it is published.
pub trait KvSource: Send + Sync {
    /// Borrows it.
    fn view(&self) -> KvView<'_>;
}

impl KvSource for KvFile {
    fn view(&self) -> KvView<'_> {
        Self::view(self)
    }
}

impl KvSource for KvCache {
    fn view(&self) -> KvView<'_> {
        Self::view(self)
    }
}

/// A level to publish.
#[derive(Debug, Clone)]
pub struct LevelSpec {
    /// Its name: unique, of `A–Z a–z 0–9 . _ @ -`.
    pub name: String,
    /// How it is coded.
    pub pipeline: Pipeline,
}

/// What to publish, and how.
#[derive(Clone)]
pub struct Publication {
    /// The KV cache.
    pub source: Arc<dyn KvSource>,
    /// Of its file; token ids in it (`token_ids`, a JSON list) become the context's text.
    pub metadata: BTreeMap<String, String>,
    /// The model's name: contexts of different names share nothing.
    pub model: String,
    /// In any order; the manifest has the best first.
    pub levels: Vec<LevelSpec>,
    /// For levels that need one.
    pub profile: Option<Arc<Profile>>,
    /// Tokens of a chunk.
    pub chunk_tokens: usize,
    /// The context's name; by default the beginning of its last chunk's prefix key.
    pub id: Option<ContextId>,
    /// Replace another context of that name.
    pub replace: bool,
}

/// What [`publish`] did.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Published {
    /// The context as it is stored.
    pub manifest: Manifest,
    /// Chunk objects that were encoded and written.
    pub written: usize,
    /// Their bytes.
    pub written_bytes: u64,
    /// Chunk objects that were there already: of a context that begins alike, or of a publication that was interrupted.
    pub shared: usize,
    /// Their bytes.
    pub shared_bytes: u64,
}

/// Publishes a context; `done` is called with the number of tokens × levels that are through.
///
/// Encodes one chunk at one level at a time on all cores while earlier ones travel: memory is a few chunks, whatever the
/// context's length. An interrupted publication leaves nothing visible; doing it again takes up what is there already.
///
/// # Errors
/// Values that a level cannot code, no levels or two of one name, token ids of another number than tokens, a name
/// that another context has, and what the transport reports.
pub async fn publish(
    store: &Store,
    registry: &Arc<Registry>,
    publication: &Publication,
    done: &(dyn Fn(u64) + Sync),
) -> Result<Published> {
    let Publication { source, metadata, model, levels, profile, chunk_tokens, .. } = publication;
    if levels.is_empty() || *chunk_tokens == 0 {
        return Err(Error::setting("a publication has at least one level, and chunks at least one token"));
    }
    let (geometry, tokens, position) = {
        let view = source.view();
        (view.geometry().clone(), view.tokens(), view.first_position())
    };
    if tokens == 0 {
        return Err(Error::data("the KV cache has no tokens"));
    }
    let ids = token_ids(metadata, tokens)?;
    let mut workers = Vec::new();
    for (index, level) in levels.iter().enumerate() {
        let place = || format!("level `{}`", level.name);
        if !Level::is_name(&level.name) || levels[..index].iter().any(|other| other.name == level.name) {
            return Err(
                Error::setting("1 to 64 letters, digits and `._@-` expected, each name once").at(place())
            );
        }
        if level.pipeline.selects() {
            return Err(Error::setting("levels cannot drop tokens").at(place()));
        }
        let encoder = Encoder::new(level.pipeline.clone(), &geometry, profile.as_deref()).at(place)?;
        let worker = Worker {
            encoder,
            source: source.clone(),
            registry: registry.clone(),
            profile: profile.clone(),
            limits: store.limits().clone(),
        };
        workers.push((level, layout::stages_name(level.pipeline.specs())?, Arc::new(worker)));
    }
    let profile_blob = match profile {
        Some(profile) => Some(put_profile(store, profile).await?),
        None => None,
    };
    let fingerprint = fingerprint(&geometry, model)?;
    let profile_hash = profile_blob.as_ref().map(|blob| &blob.sha256);
    let mut chain = match ids {
        Some(_) => PrefixChain::of_tokens(&fingerprint, profile_hash, position),
        None => PrefixChain::of_content(&fingerprint, profile_hash, position),
    };

    let mut uploads: JoinSet<Result<()>> = JoinSet::new();
    let (mut chunks, mut shared, mut written) = (Vec::new(), (0usize, 0u64), (0usize, 0u64));
    // Prefixes that another context stands for already.
    let mut pointed = Vec::new();
    for first in (0..tokens).step_by(*chunk_tokens) {
        let range = first..(first + chunk_tokens).min(tokens);
        let key = match &ids {
            Some(ids) => chain.next(&ids[range.clone()]),
            None => {
                let (source, rows, mut ahead) = (source.clone(), range.clone(), chain.clone());
                let (next, key) = blocking(move || {
                    let key = ahead.next_rows(&source.view(), rows);
                    Ok((ahead, key))
                })
                .await?;
                chain = next;
                key
            }
        };
        let known = Known::find(store, &key, chunks.len()).await?;
        pointed.push(known.manifest.is_some());
        let mut objects = BTreeMap::new();
        for (level, stages, worker) in &workers {
            let place = || format!("tokens {}..{} at `{}`", range.start, range.end, level.name);
            let found = known.object(store, &key, stages, worker, &range).await.at(place)?;
            let object = if let Some(object) = found {
                shared = (shared.0 + 1, shared.1 + object.bytes);
                object
            } else {
                let (object, bytes) = worker.clone().encode(range.clone()).await.at(place)?;
                written = (written.0 + 1, written.1 + object.bytes);
                if uploads.len() >= UPLOADS {
                    finish_one(&mut uploads).await?;
                }
                let (transport, name) =
                    (store.transport().clone(), layout::chunk(&key, stages, &object.sha256)?);
                uploads.spawn(async move { transport.put(&name, bytes, Put::Create).await.map(drop) });
                object
            };
            objects.insert(level.name.clone(), object);
            done(range.len() as u64);
        }
        chunks.push(ManifestChunk { key, levels: objects, tokens: range.len() as u64 });
    }
    while !uploads.is_empty() {
        finish_one(&mut uploads).await?;
    }

    let last = chunks.last().map(|chunk| chunk.key.as_str()).unwrap_or_default();
    let id = match &publication.id {
        Some(id) => id.clone(),
        None => ContextId::new(&last[..32.min(last.len())])?,
    };
    let text = match &ids {
        Some(ids) => Some(put_text(store, &id, ids).await?),
        None => None,
    };
    let kept = |key: &str| key != "token_ids" && key != "continuation_ids";
    let parts = Parts {
        id,
        geometry,
        metadata: metadata.iter().filter(|(key, _)| kept(key)).map(|(k, v)| (k.clone(), v.clone())).collect(),
        model: ModelName { fingerprint, name: model.clone() },
        position,
        profile: profile_blob,
        text,
        distortion: NMSE,
        levels: best_first(levels, &chunks),
        chunks,
    };
    let manifest = Manifest::new(parts, store.limits())?;
    put_manifest(store, &manifest, publication.replace).await?;
    for (chunk, _) in manifest.chunks.iter().zip(pointed).filter(|(_, pointed)| !pointed) {
        gc::write_pointer(store, &chunk.key, &manifest.id).await?;
    }
    let (written, written_bytes, shared, shared_bytes) = (written.0, written.1, shared.0, shared.1);
    Ok(Published { manifest, written, written_bytes, shared, shared_bytes })
}

/// The levels by what they cost in quality, not by the order in which somebody named them.
fn best_first(levels: &[LevelSpec], chunks: &[ManifestChunk]) -> Vec<Level> {
    let distortion = |name: &str| -> f64 {
        let of = |chunk: &ManifestChunk| chunk.levels.get(name).map_or(0.0, |object| object.distortion);
        chunks.iter().map(|chunk| of(chunk) * chunk.tokens as f64).sum()
    };
    let mut sorted: Vec<(f64, Level)> = levels
        .iter()
        .map(|level| Level { name: level.name.clone(), pipeline: level.pipeline.specs().to_vec() })
        .map(|level| (distortion(&level.name), level))
        .collect();
    sorted.sort_by(|a, b| a.0.total_cmp(&b.0));
    sorted.into_iter().map(|(_, level)| level).collect()
}

/// The ids that a KV cache's file names, one for each token.
fn token_ids(metadata: &BTreeMap<String, String>, tokens: usize) -> Result<Option<Vec<u32>>> {
    let Some(text) = metadata.get("token_ids") else { return Ok(None) };
    let ids: Vec<u32> = serde_json::from_str(text)
        .map_err(|e| Error::data(format!("metadata `token_ids`: a JSON list of token ids expected: {e}")))?;
    if ids.len() != tokens {
        return Err(Error::data(format!("metadata `token_ids` has {} ids for {tokens} tokens", ids.len())));
    }
    Ok(Some(ids))
}

/// Encodes and measures chunks at one level.
struct Worker {
    encoder: Encoder,
    source: Arc<dyn KvSource>,
    registry: Arc<Registry>,
    profile: Option<Arc<Profile>>,
    limits: cacheg_core::Limits,
}

impl Worker {
    async fn encode(self: Arc<Self>, range: Range<usize>) -> Result<(ChunkObject, Bytes)> {
        blocking(move || {
            let encoded = self.encoder.encode(&self.source.view(), range.clone(), &|_| ())?;
            let bytes = encoded.to_vec();
            drop(encoded);
            // What cannot be read back must not be published.
            let distortion = self.measure(&bytes, range)?;
            let object = ChunkObject { bytes: bytes.len() as u64, distortion, sha256: Hash::of(&bytes) };
            Ok((object, Bytes::from(bytes)))
        })
        .await
    }

    fn measure(&self, bytes: &[u8], range: Range<usize>) -> Result<f64> {
        let chunk = Chunk::parse(bytes, &self.limits)?;
        let view = self.source.view();
        let here = chunk.tokens() == range
            && chunk.len() == bytes.len()
            && chunk.geometry() == view.geometry()
            && chunk.position() == view.first_position() + range.start as u64
            && chunk.rows() == range.len();
        if !here {
            return Err(Error::corrupt("a chunk of other tokens"));
        }
        let plan = chunk.bind(&self.registry, self.profile.as_deref())?;
        let mut cache = KvCache::try_zeros(view.geometry(), range.len(), chunk.position())?;
        chunk.decode(&plan, &mut cache.view_mut(), 0, &|_| ())?;
        Ok(nmse(&view, range, &cache))
    }
}

/// What the store has of a chunk before it is published.
struct Known {
    /// Of another context that shares it.
    manifest: Option<(Manifest, usize)>,
    /// Objects that nobody may refer to: of a publication that was interrupted.
    objects: Vec<(String, Hash, u64)>,
}

impl Known {
    async fn find(store: &Store, key: &Hash, index: usize) -> Result<Self> {
        let manifest = match store.pointer(key).await? {
            Some(id) => store.holding(&id, key, index + 1).await?,
            None => None,
        };
        let mut objects = Vec::new();
        let folder = layout::chunk_folder(key)?;
        let mut listing = store.transport().list(Some(&folder));
        while let Some(page) = listing.next().await? {
            objects.extend(page.into_iter().filter_map(|(key, meta)| match layout::parse(&key)? {
                layout::Object::Chunk { stages, content, .. } => Some((stages, content, meta.size)),
                _ => None,
            }));
        }
        // Which of several is taken must not depend on the order of a listing.
        objects.sort();
        Ok(Self { manifest: manifest.map(|manifest| (manifest, index)), objects })
    }

    /// The chunk at a level, if it is there and good.
    async fn object(
        &self,
        store: &Store,
        key: &Hash,
        stages: &str,
        worker: &Arc<Worker>,
        range: &Range<usize>,
    ) -> Result<Option<ChunkObject>> {
        for (_, content, size) in self.objects.iter().filter(|(of, ..)| of == stages) {
            if let Some(object) = self.said(stages, content)? {
                // Its name is its hash, and somebody vouches for it: its length is enough to see that it is whole.
                if object.bytes == *size {
                    return Ok(Some(object));
                }
                continue;
            }
            let name = layout::chunk(key, stages, content)?;
            let bytes = match read::exact(&**store.transport(), &name, *size, content).await {
                Ok(bytes) => bytes,
                Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::NotFound) => {
                    tracing::warn!(object = %name, %error, "encoding again");
                    store.transport().delete(&name).await?;
                    continue;
                }
                Err(error) => return Err(error),
            };
            let (worker, rows, sha256) = (worker.clone(), range.clone(), content.clone());
            let measured = blocking(move || {
                let distortion = worker.measure(&bytes, rows)?;
                Ok(ChunkObject { bytes: bytes.len() as u64, distortion, sha256 })
            });
            match measured.await {
                Ok(object) => return Ok(Some(object)),
                Err(error) => tracing::warn!(object = %name, %error, "of no use, encoding again"),
            }
        }
        Ok(None)
    }

    /// What another context's manifest says of an object.
    fn said(&self, stages: &str, content: &Hash) -> Result<Option<ChunkObject>> {
        let Some((manifest, index)) = &self.manifest else { return Ok(None) };
        let Some(chunk) = manifest.chunks.get(*index).filter(|_| manifest.distortion == NMSE) else {
            return Ok(None);
        };
        for level in &manifest.levels {
            let object = chunk.levels.get(&level.name).filter(|object| object.sha256 == *content);
            if let Some(object) = object
                && layout::stages_name(&level.pipeline)? == stages
            {
                return Ok(Some(object.clone()));
            }
        }
        Ok(None)
    }
}

/// Runs what takes long on a thread for such work.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

async fn finish_one(uploads: &mut JoinSet<Result<()>>) -> Result<()> {
    match uploads.join_next().await {
        None => Ok(()),
        Some(Ok(result)) => result,
        Some(Err(error)) => std::panic::resume_unwind(error.into_panic()),
    }
}

async fn put_profile(store: &Store, profile: &Profile) -> Result<Blob> {
    let sha256 = Hash::try_from(profile.hash().to_owned())?;
    let bytes = Bytes::copy_from_slice(profile.bytes());
    let blob = Blob { bytes: bytes.len() as u64, sha256 };
    store.transport().put(&layout::profile(&blob.sha256)?, bytes, Put::Create).await?;
    Ok(blob)
}

async fn put_text(store: &Store, id: &ContextId, ids: &[u32]) -> Result<Blob> {
    let bytes = Bytes::from(text::pack(ids)?);
    let blob = Blob { bytes: bytes.len() as u64, sha256: Hash::of(&bytes) };
    store.transport().put(&layout::text(id, &blob.sha256)?, bytes, Put::Create).await?;
    Ok(blob)
}

async fn put_manifest(store: &Store, manifest: &Manifest, replace: bool) -> Result<()> {
    let bytes = Bytes::from(manifest.to_bytes(store.limits())?);
    let key = layout::manifest(&manifest.id)?;
    let mode = if replace { Put::Replace } else { Put::Create };
    match store.transport().put(&key, bytes, mode).await? {
        PutOutcome::Written => Ok(()),
        // The same again is no conflict.
        PutOutcome::Exists if store.manifest(&manifest.id).await? == *manifest => Ok(()),
        PutOutcome::Exists => Err(taken(store, &manifest.id)),
    }
}

fn taken(store: &Store, id: &ContextId) -> Error {
    let url = store.transport().url();
    Error::setting(format!(
        "{url} has another context `{id}`; give this one another name, or replace that one"
    ))
}

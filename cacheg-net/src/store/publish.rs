//! Writing a context: chunks × levels, manifest last.

mod known;
mod worker;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use cacheg_core::{
    Encoder, Error, ErrorKind, Importance, KvCache, KvFile, KvView, Pipeline, Profile, Put, PutOutcome,
    Registry, Result, ResultExt,
};
use tokio::task::JoinSet;

use super::distortion::NMSE;
use super::manifest::{Blob, Level, Manifest, ManifestChunk, ModelName, Parts};
use super::{ContextId, Hash, PrefixChain, Store, fingerprint, gc, layout, text};
use known::Known;
use worker::{Worker, blocking};

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

/// A KV cache with how much attention its tokens got, for levels that go by it.
#[derive(Debug)]
pub struct WithImportance<S> {
    source: S,
    importance: Importance,
}

impl<S: KvSource> WithImportance<S> {
    /// Puts them together.
    ///
    /// # Errors
    /// If they are of different contexts or models.
    pub fn new(source: S, importance: Importance) -> Result<Self> {
        source.view().with_importance(&importance)?;
        Ok(Self { source, importance })
    }
}

impl<S: KvSource> KvSource for WithImportance<S> {
    fn view(&self) -> KvView<'_> {
        // They were checked.
        self.source.view().with_importance(&self.importance).unwrap_or_else(|_| self.source.view())
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
    still_there(store, &manifest).await?;
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

/// Whether all that a manifest refers to is in the store before anybody sees it: a collection whose grace period was too
/// short, or whose clock was wrong, takes what is being published for leftovers.
async fn still_there(store: &Store, manifest: &Manifest) -> Result<()> {
    let gone = |key: &dyn std::fmt::Display| {
        Error::unavailable(format!(
            "{key} was removed before the context was complete (by a `gc` with too short a grace period or a wrong \
             clock?); nothing was published: the same again goes on from what is left"
        ))
    };
    let mut blobs = Vec::new();
    if let Some(blob) = &manifest.profile {
        blobs.push(layout::profile(&blob.sha256)?);
    }
    if let Some(blob) = &manifest.text {
        blobs.push(layout::text(&manifest.id, &blob.sha256)?);
    }
    for key in blobs {
        match store.transport().head(&key).await {
            Err(error) if error.kind() == ErrorKind::NotFound => return Err(gone(&key)),
            other => other.map(drop)?,
        }
    }
    for (index, chunk) in manifest.chunks.iter().enumerate() {
        let mut there = BTreeSet::new();
        let folder = layout::chunk_folder(&chunk.key)?;
        let mut listing = store.transport().list(Some(&folder));
        while let Some(page) = listing.next().await? {
            there.extend(page.into_iter().map(|(key, meta)| (key, meta.size)));
        }
        for level in chunk.levels.keys() {
            if let Some((key, object)) = manifest.object(index, level)?
                && !there.contains(&(key.clone(), object.bytes))
            {
                return Err(gone(&key));
            }
        }
    }
    Ok(())
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

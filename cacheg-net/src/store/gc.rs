//! Removing what no context refers to.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use cacheg_core::{Error, ErrorKind, Key, ObjectMeta, Put, Result, ResultExt, canonical_json};

use super::layout::{self, Object};
use super::lookup::Pointer;
use super::{ContextId, Hash, Store};

/// What [`gc`] did, or would do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Collected {
    /// Objects that no context refers to: removed, with their lengths.
    pub removed: Vec<(Key, u64)>,
    /// Objects like them that are younger than the grace period: somebody may be publishing.
    pub young: usize,
    /// Objects that contexts refer to.
    pub used: usize,
    /// Objects that are not a store's; never touched.
    pub foreign: usize,
    /// Pointers from prefixes to contexts that are gone: now to others.
    pub repointed: usize,
    /// Bytes of interrupted writes, which are no objects, that were removed.
    pub swept: u64,
}

/// Removes chunks, profiles, texts and prefixes that no manifest refers to and that were written longer than `grace`
/// ago; where a transport does not know when, only a grace of zero removes anything. With `dry` nothing is changed.
///
/// The grace period must be longer than anybody takes to publish a context: its chunks are there before its manifest.
///
/// # Errors
/// If a manifest cannot be read, before anything is removed: nobody knows what it refers to.
pub async fn gc(store: &Store, grace: Duration, dry: bool) -> Result<Collected> {
    // Objects first, manifests second: what is published in between is then at most too well kept.
    let mut objects: Vec<(Key, ObjectMeta)> = Vec::new();
    let mut listing = store.transport().list(None);
    while let Some(page) = listing.next().await? {
        objects.extend(page);
    }
    drop(listing);
    let mut uses = Uses::default();
    uses.add(store).await?;
    let mut collected = Collected::default();
    let mut unused = Vec::new();
    let now = SystemTime::now();
    for (key, meta) in objects {
        match layout::parse(&key) {
            None => collected.foreign += 1,
            // A manifest that was not read has come or gone meanwhile.
            Some(Object::Manifest(_)) => collected.used += 1,
            Some(Object::Prefix(hash)) if uses.prefixes.contains_key(&hash) => {
                collected.used += 1;
                collected.repointed += usize::from(repoint(store, &hash, &uses.prefixes[&hash], dry).await?);
            }
            Some(_) if uses.objects.contains(&key) => collected.used += 1,
            Some(_) => {
                // A time in the future is a clock that jumped: young.
                let age = meta.modified.and_then(|modified| now.duration_since(modified).ok());
                if grace.is_zero() || age.is_some_and(|age| age >= grace) {
                    unused.push((key, meta.size));
                } else {
                    collected.young += 1;
                }
            }
        }
    }
    // Somebody may have published a context that shares old chunks.
    uses.add(store).await?;
    for (key, size) in unused {
        if uses.objects.contains(&key) {
            collected.used += 1;
            continue;
        }
        if !dry {
            store.transport().delete(&key).await?;
        }
        collected.removed.push((key, size));
    }
    if !dry {
        collected.swept = store.transport().sweep(grace).await?;
    }
    Ok(collected)
}

/// What manifests refer to.
#[derive(Default)]
struct Uses {
    read: BTreeSet<ContextId>,
    objects: BTreeSet<Key>,
    /// The contexts that have each prefix.
    prefixes: BTreeMap<Hash, Vec<ContextId>>,
}

impl Uses {
    /// Reads the manifests that were not read yet.
    async fn add(&mut self, store: &Store) -> Result<()> {
        for id in store.contexts().await? {
            if self.read.contains(&id) {
                continue;
            }
            let manifest = match store.manifest(&id).await {
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                read => {
                    read.at(|| "nothing was removed; first remove this context or repair its manifest")?
                }
            };
            if let Some(blob) = &manifest.text {
                self.objects.insert(layout::text(&id, &blob.sha256)?);
            }
            if let Some(blob) = &manifest.profile {
                self.objects.insert(layout::profile(&blob.sha256)?);
            }
            for (index, chunk) in manifest.chunks.iter().enumerate() {
                for level in chunk.levels.keys() {
                    self.objects.extend(manifest.object(index, level)?.map(|(key, _)| key));
                }
                self.prefixes.entry(chunk.key.clone()).or_default().push(id.clone());
            }
            self.read.insert(id);
        }
        Ok(())
    }
}

/// Lets a prefix whose context is gone, or no longer has it, point to one that does.
async fn repoint(store: &Store, prefix: &Hash, to: &[ContextId], dry: bool) -> Result<bool> {
    let pointed = store.pointer(prefix).await?;
    if pointed.is_some_and(|id| to.contains(&id)) {
        return Ok(false);
    }
    if let Some(to) = to.first().filter(|_| !dry) {
        write_pointer(store, prefix, to).await?;
    }
    Ok(true)
}

pub(super) async fn write_pointer(store: &Store, prefix: &Hash, to: &ContextId) -> Result<()> {
    let bytes = canonical_json(&Pointer { context: to.clone() })?;
    let key = layout::prefix(prefix)?;
    match store.transport().put(&key, Bytes::from(bytes), Put::Replace).await? {
        cacheg_core::PutOutcome::Written => Ok(()),
        cacheg_core::PutOutcome::Exists => Err(Error::corrupt(format!("{key} could not be replaced"))),
    }
}

//! Contexts in a store, whatever transport it is on: a folder, a bucket, a server (`FORMAT.md`, section 9).
//!
//! [`Store`] reads, finds, checks and removes; [`publish`] writes. Chunks are named by what their KV cache depends on
//! ([`PrefixChain`]) and by their content, so that contexts that begin alike share them, two publishers never
//! disturb each other, and nothing that somebody reads ever changes.

mod distortion;
mod gc;
mod layout;
mod lookup;
mod manifest;
mod prefix;
mod publish;
mod read;
mod text;
mod verify;

use std::sync::Arc;

use cacheg_core::{Error, ErrorKind, Key, Limits, Profile, Result, ResultExt, Transport};

pub use distortion::{NMSE, nmse};
pub use gc::{Collected, gc};
pub use layout::{ContextId, Hash};
pub use lookup::Found;
pub use manifest::{Blob, ChunkObject, Level, Manifest, ManifestChunk, ModelName};
pub use prefix::{PrefixChain, fingerprint};
pub use publish::{KvSource, LevelSpec, Publication, Published, WithImportance, publish};
pub use verify::{Fault, verify};

/// A store of contexts.
#[derive(Debug, Clone)]
pub struct Store {
    transport: Arc<dyn Transport>,
    limits: Limits,
}

impl Store {
    /// The store on this transport. Nothing is read yet.
    pub fn new(transport: Arc<dyn Transport>, limits: Limits) -> Self {
        Self { transport, limits }
    }

    /// What it is on.
    pub fn transport(&self) -> &Arc<dyn Transport> {
        &self.transport
    }

    /// What it takes at most.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The contexts that are there, in order of their names.
    ///
    /// # Errors
    /// What the transport reports.
    pub async fn contexts(&self) -> Result<Vec<ContextId>> {
        let mut contexts = Vec::new();
        let folder = Key::new("contexts")?;
        let mut listing = self.transport.list(Some(&folder));
        while let Some(page) = listing.next().await? {
            contexts.extend(page.iter().filter_map(|(key, _)| match layout::parse(key) {
                Some(layout::Object::Manifest(id)) => Some(id),
                _ => None,
            }));
        }
        contexts.sort();
        Ok(contexts)
    }

    /// What the store says of a context.
    ///
    /// # Errors
    /// `NotFound` if there is no such context; a manifest that cannot be read or is another context's.
    pub async fn manifest(&self, id: &ContextId) -> Result<Manifest> {
        let key = layout::manifest(id)?;
        let bytes = read::whole(&*self.transport, &key, u64::from(self.limits.max_header)).await;
        let bytes = bytes.map_err(|error| match error.kind() {
            ErrorKind::NotFound => Error::not_found(format!("context `{id}` in {}", self.transport.url())),
            _ => error,
        })?;
        let place = || format!("{key} in {}", self.transport.url());
        let manifest = Manifest::from_bytes(&bytes, &self.limits).at(place)?;
        if manifest.id != *id {
            return Err(Error::corrupt(format!("it is that of context `{}`", manifest.id)).at(place()));
        }
        Ok(manifest)
    }

    /// The profile of a context, if it needs one.
    ///
    /// # Errors
    /// If it is missing, damaged, or of another model.
    pub async fn profile(&self, manifest: &Manifest) -> Result<Option<Profile>> {
        let Some(blob) = &manifest.profile else { return Ok(None) };
        let key = layout::profile(&blob.sha256)?;
        let bytes = read::exact(&*self.transport, &key, blob.bytes, &blob.sha256).await?;
        let profile = Profile::from_bytes(bytes).at(|| format!("{key} in {}", self.transport.url()))?;
        Ok(Some(profile))
    }

    /// The token ids of a context, if the store has them.
    ///
    /// # Errors
    /// If they are missing or damaged.
    pub async fn tokens(&self, manifest: &Manifest) -> Result<Option<Vec<u32>>> {
        let Some(blob) = &manifest.text else { return Ok(None) };
        let key = layout::text(&manifest.id, &blob.sha256)?;
        let bytes = read::exact(&*self.transport, &key, blob.bytes, &blob.sha256).await?;
        text::unpack(&bytes, manifest.tokens).at(|| format!("{key} in {}", self.transport.url())).map(Some)
    }

    /// Removes a context, that is, its manifest: at no time half of it is visible. Its chunks and its text stay until
    /// they are [collected](gc); others may share them, and who is reading them may go on.
    ///
    /// # Errors
    /// `NotFound` if there is no such context, and what the transport reports.
    pub async fn remove(&self, id: &ContextId) -> Result<()> {
        let key = layout::manifest(id)?;
        self.transport.head(&key).await.map_err(|error| match error.kind() {
            ErrorKind::NotFound => Error::not_found(format!("context `{id}` in {}", self.transport.url())),
            _ => error,
        })?;
        self.transport.delete(&key).await
    }
}

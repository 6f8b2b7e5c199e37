//! Chunks that need not be published again.

use std::ops::Range;
use std::sync::Arc;

use cacheg_core::{ErrorKind, Result};

use super::worker::{Worker, blocking};
use crate::store::distortion::NMSE;
use crate::store::manifest::{ChunkObject, Manifest};
use crate::store::{Hash, Store, layout, read};

/// What the store has of a chunk before it is published.
pub(super) struct Known {
    /// Of another context that shares it.
    pub(super) manifest: Option<(Manifest, usize)>,
    /// Objects that nobody may refer to: of a publication that was interrupted.
    objects: Vec<(String, Hash, u64)>,
}

impl Known {
    /// Looks.
    pub(super) async fn find(store: &Store, key: &Hash, index: usize) -> Result<Self> {
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
    pub(super) async fn object(
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

//! Encoding a chunk and seeing what it has lost.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use cacheg_core::{Chunk, Encoder, Error, KvCache, Limits, Profile, Registry, Result};
use tokio::task::spawn_blocking;

use super::KvSource;
use crate::store::Hash;
use crate::store::distortion::nmse;
use crate::store::manifest::ChunkObject;

/// Encodes and measures chunks at one level.
pub(super) struct Worker {
    pub(super) encoder: Encoder,
    pub(super) source: Arc<dyn KvSource>,
    pub(super) registry: Arc<Registry>,
    pub(super) profile: Option<Arc<Profile>>,
    pub(super) limits: Limits,
}

impl Worker {
    /// One chunk, as it goes to the store.
    pub(super) async fn encode(self: Arc<Self>, range: Range<usize>) -> Result<(ChunkObject, Bytes)> {
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

    /// The distortion of an encoded chunk, which must be of these tokens.
    pub(super) fn measure(&self, bytes: &[u8], range: Range<usize>) -> Result<f64> {
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

/// Runs what takes long on a thread for such work.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

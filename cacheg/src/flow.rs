//! The whole story: KV cache → chunks → bytes → backend → KV cache, in traits only.

use std::collections::BTreeMap;
use std::io::Write;

use cacheg_core::{
    Backend, Chunk, Container, ContainerHeader, Encoder, Error, Kept, KvCache, KvView, Limits, Profile,
    Progress, Registry, Result, ResultExt,
};

/// Encodes a KV cache as a container, chunk by chunk; returns its length in bytes. Memory beyond the KV cache
/// and one encoded chunk is some scratch per thread, and one chunk of rows if tokens are dropped; which ones, depends on
/// the view's [importance](KvView::importance).
///
/// # Errors
/// Values that the pipeline cannot code, and what `out` reports.
pub fn encode(
    kv: &KvView<'_>,
    metadata: &BTreeMap<String, String>,
    encoder: &Encoder,
    chunk_tokens: usize,
    out: &mut dyn Write,
    progress: Progress<'_>,
) -> Result<u64> {
    if chunk_tokens == 0 {
        return Err(Error::setting("a chunk has at least one token"));
    }
    let failed = |source| Error::Io { context: "cannot write the container".into(), source };
    let header = ContainerHeader {
        chunks: kv.tokens().div_ceil(chunk_tokens) as u64,
        geometry: kv.geometry().clone(),
        metadata: metadata.clone(),
        position: kv.first_position(),
        tokens: kv.tokens() as u64,
    };
    let mut written = header.write_to(out).map_err(failed)? as u64;
    for first in (0..kv.tokens()).step_by(chunk_tokens) {
        let chunk = encoder.encode(kv, first..(first + chunk_tokens).min(kv.tokens()), progress)?;
        chunk.write_to(out).map_err(failed)?;
        written += chunk.len() as u64;
    }
    out.flush().map_err(failed)?;
    Ok(written)
}

/// What decoding needs beside the bytes.
#[derive(Clone, Copy)]
pub struct Decode<'a> {
    /// The stages that can be used.
    pub registry: &'a Registry,
    /// The profile that the container names, if it names one.
    pub profile: Option<&'a Profile>,
    /// The device.
    pub backend: &'a dyn Backend,
}

/// A decoded container.
#[derive(Debug)]
pub struct Decoded {
    /// The KV cache.
    pub cache: KvCache,
    /// Which tokens its rows are, if some were dropped: each head has kept its own.
    pub kept: Option<Kept>,
    /// Metadata of the file that was encoded.
    pub metadata: BTreeMap<String, String>,
}

impl Decoded {
    /// The KV cache with what is known of dropped tokens.
    ///
    /// # Errors
    /// Never, unless parts of other KV caches were put together here.
    pub fn view(&self) -> Result<KvView<'_>> {
        self.cache.view().with_kept(self.kept.as_ref())
    }
}

impl Decode<'_> {
    /// Decodes a container.
    ///
    /// # Errors
    /// Corrupt bytes, sizes over the limits, a missing or wrong profile, stages that are not linked.
    pub fn run(&self, bytes: &[u8], limits: &Limits, progress: Progress<'_>) -> Result<Decoded> {
        let container = Container::parse(bytes, limits)?;
        let kept = container.kept()?;
        let mut cache =
            KvCache::try_zeros(&container.header.geometry, container.rows(), container.header.position)?;
        let Container { header, chunks, .. } = container;
        let mut view = cache.view_mut();
        let starts = chunks.iter().scan(0, |row, chunk| {
            let start = *row;
            *row += chunk.rows();
            Some(start)
        });
        let placed: Vec<(&Chunk<'_>, usize)> = chunks.iter().zip(starts).collect();
        // Chunks that carry their own tables are bound one by one; the others share a decoder.
        let mut index = 0;
        for alike in placed.chunk_by(|(a, _), (b, _)| b.coded_like(a)) {
            let first = alike[0].0;
            let place = || format!("chunk {index} ({first})");
            let plan = first.bind(self.registry, self.profile).at(place)?;
            self.backend.decoder(plan).at(place)?.decode_all(alike, &mut view, progress)?;
            index += alike.len();
        }
        drop(view);
        Ok(Decoded { cache, kept, metadata: header.metadata })
    }
}

impl std::fmt::Debug for Decode<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decode").field("backend", &self.backend.name()).finish_non_exhaustive()
    }
}

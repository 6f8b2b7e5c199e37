//! KV caches in safetensors files: what engines, scripts and this workspace exchange.
//!
//! Read are `layers.{i}.key`, `.value` and `.latent`, each `[heads, tokens, head_dim]` or with a batch axis of
//! one before it, and LMCache's stacked tensor `kv`, `[2, layers, tokens, hidden]`,
//! `[layers, 2, tokens, heads, head_dim]` or, of latents, `[1, layers, tokens, latent]`. Written is always the
//! first form. Everything about the model comes from the tensors and the file's metadata:
//!
//! | key | meaning |
//! |---|---|
//! | `rope_theta` | base of RoPE; without it no RoPE is recorded |
//! | `rope_layout` | `rotate_half…` (default) or `interleaved` |
//! | `rope_dims`, `partial_rotary_factor` | rotated channels of a head, as a number or as a share; default: all |
//! | `rope_start` | first rotated channel of a head; default 0 |
//! | `rope_scaling` | JSON object as in Hugging Face configs: `linear`, `llama3`, `default` |
//! | `keys` | `post-RoPE` (default) or `pre-RoPE`, for which no RoPE is recorded |
//! | `position_offset` | position of the first token; default 0 |
//! | `kv_heads`, `head_dim` | how the `hidden` of a stacked tensor splits; default: one head |
//! | `dtype` | what a tensor of type U8 holds: `float8_e4m3fn` or `float8_e5m2` |
//! | `context_tokens`, `next_position` | of a KV cache with dropped tokens: how many the context had, what follows it |
//!
//! Each `rope_…` key (and `partial_rotary_factor`) may also be a JSON list with one value per layer, `null`
//! where the layer has none.
//!
//! Beside the planes, tensors may say more of the tokens: `layers.{i}.attention_sum` and `layers.{i}.attention_recent`,
//! `[query_heads, tokens]`, F32, how much attention they got ([`KvFile::importance`]), and `layers.{i}.positions`,
//! `[kv_heads, tokens]`, I64, ascending, where in the model's sequence they were, if others between them were dropped
//! ([`KvView::kept`]). The number of query heads is a multiple of the KV heads. Tensors of other names are passed over.

mod companions;
mod layout;
mod metadata;
mod mmap;
mod mutable;
mod write;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use crate::tensor_file::Header;
use crate::{Error, Geometry, Importance, Kept, KvView, Limits, Order, Result, ResultExt};
use layout::Layout;
use mmap::Bytes;

pub use metadata::kv_metadata;
pub use mutable::KvFileMut;
pub use write::{ExtraTensor, write_kv, write_kv_with};

/// A KV cache in a safetensors file, checked, its tensors not copied.
#[derive(Debug)]
pub struct KvFile {
    bytes: Bytes,
    header: Header,
    geometry: Geometry,
    tokens: usize,
    first_position: u64,
    order: Order,
    /// Where each plane is in `bytes`.
    planes: Vec<Range<usize>>,
    kept: Option<Kept>,
}

impl KvFile {
    /// Maps a file into memory. While the `KvFile` lives, nobody may overwrite or truncate the file in place
    /// (replacing it by a rename is fine): values would change under the reader, or the process be killed.
    ///
    /// # Errors
    /// If the file cannot be mapped, is not a safetensors file, holds no KV cache, or exceeds the limits.
    pub fn open(path: &Path, limits: &Limits) -> Result<Self> {
        mmap::map(path).and_then(|bytes| Self::new(bytes, limits).at(|| path.display()))
    }

    /// Reads a file that is already in memory: a `Vec<u8>`, or a `&'static` slice or array.
    ///
    /// # Errors
    /// If it is not a safetensors file, holds no KV cache, or exceeds the limits.
    pub fn from_bytes(bytes: impl Into<Cow<'static, [u8]>>, limits: &Limits) -> Result<Self> {
        Self::new(Bytes::Held(bytes.into()), limits)
    }

    fn new(bytes: Bytes, limits: &Limits) -> Result<Self> {
        let header = Header::parse(&bytes, limits)?;
        let Layout { mut layers, tokens, order, planes } = Layout::find(&header, limits)?;
        metadata::add_ropes(&header.metadata, &mut layers)?;
        let geometry = Geometry::new(layers)?;
        geometry.validate(limits)?;
        let total: u64 = planes.iter().map(|plane| plane.len() as u64).sum();
        if total > limits.max_output {
            return Err(Error::limit(format!("a KV cache of {total} bytes")));
        }
        let first_position = metadata::first_position(&header.metadata)?;
        if first_position.checked_add(tokens as u64).is_none() {
            return Err(Error::data(format!("{tokens} tokens from position {first_position}")));
        }
        let kept = companions::kept(&bytes, &header, &geometry, tokens, first_position)?;
        let file = Self { bytes, header, geometry, tokens, first_position, order, planes, kept };
        file.try_view()?;
        Ok(file)
    }

    fn try_view(&self) -> Result<KvView<'_>> {
        let planes = self.planes.iter().map(|range| &self.bytes[range.clone()]).collect();
        KvView::new(self.geometry.clone(), self.tokens, self.first_position, self.order, planes)?
            .with_kept(self.kept.as_ref())
    }

    /// How much attention the tokens got, if the file says it; for [`KvView::with_importance`].
    ///
    /// # Errors
    /// If the tensors that say it do not fit the KV cache, or hold numbers that are negative or not finite.
    pub fn importance(&self) -> Result<Option<Importance>> {
        companions::importance(&self.bytes, &self.header, &self.geometry, self.tokens)
    }

    /// Borrows the KV cache.
    #[expect(clippy::missing_panics_doc, reason = "`new` has built the same view before")]
    pub fn view(&self) -> KvView<'_> {
        #[expect(clippy::expect_used, reason = "`new` has built the same view before")]
        self.try_view().expect("the planes of an opened file fit its geometry")
    }

    /// The model's geometry.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Position of the first token in the model's sequence.
    pub fn first_position(&self) -> u64 {
        self.first_position
    }

    /// The file's metadata, as it is.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.header.metadata
    }
}

//! The stage kind that chooses which tokens of a chunk are coded at all.

use std::ops::Range;

use rayon::prelude::*;

use crate::kept::{Kept, heads};
use crate::{Error, Geometry, Importance, KvCache, KvView, Result, ResultExt, Stage};

/// First stage of a pipeline that drops tokens: each KV head keeps some of a chunk's tokens, and the other stages see
/// the chunk as if it had only those. What is dropped is gone: this is a stage for what a model hardly looks at.
///
/// Decoders do not ask it anything, as the chunk carries what was kept.
pub trait Select: Stage {
    /// Gets to know the model.
    ///
    /// # Errors
    /// If the model does not suit the settings.
    fn bind(&self, geometry: &Geometry) -> Result<Box<dyn BoundSelect>>;
}

/// A selection bound to a model.
pub trait BoundSelect: Send + Sync {
    /// How many tokens every head of every layer keeps of a chunk of that many, which are not 0; at least 1.
    fn kept(&self, tokens: usize) -> usize;

    /// Chooses [`kept`](Self::kept) tokens for one head: their numbers in the chunk, ascending. Called from several
    /// threads; equal inputs must give equal tokens on every machine.
    ///
    /// # Errors
    /// If what it needs to know is not there.
    fn select(&self, cx: &SelectCx<'_>, kept: &mut [u32]) -> Result<()>;
}

/// One KV head of one layer in one chunk.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct SelectCx<'a> {
    /// The layer.
    pub layer: usize,
    /// The KV head.
    pub head: usize,
    /// The chunk's first token, counted from the context's first.
    pub first: usize,
    /// Number of the chunk's tokens.
    pub tokens: usize,
    /// Position of the chunk's first token in the model's sequence.
    pub position: u64,
    /// Of the whole context and all heads, if anything is known.
    pub importance: Option<&'a Importance>,
}

impl<'a> SelectCx<'a> {
    /// Names a head in a chunk.
    ///
    /// # Panics
    /// If the importance is of another context or model.
    pub fn new(
        layer: usize,
        head: usize,
        tokens: Range<usize>,
        position: u64,
        importance: Option<&'a Importance>,
    ) -> Self {
        let inside = importance.is_none_or(|known| layer < known.layers() && tokens.end <= known.tokens());
        assert!(inside, "importance of another KV cache");
        Self { layer, head, first: tokens.start, tokens: tokens.len(), position, importance }
    }

    /// Attention weight that each of the chunk's tokens got from all queries of the context.
    ///
    /// # Errors
    /// If nothing is known.
    pub fn accumulated(&self) -> Result<&'a [f32]> {
        Ok(&self.require()?.accumulated(self.layer, self.head)[self.first..][..self.tokens])
    }

    /// The same from the recent queries.
    ///
    /// # Errors
    /// If nothing is known.
    pub fn recent(&self) -> Result<&'a [f32]> {
        Ok(&self.require()?.recent(self.layer, self.head)[self.first..][..self.tokens])
    }

    fn require(&self) -> Result<&'a Importance> {
        self.importance.ok_or_else(|| {
            Error::data(
                "nothing says how much attention each token of this KV cache got. A file says it by tensors \
                 `layers.{i}.attention_sum` and `layers.{i}.attention_recent`, as `cacheg-bench prefill \
                 --statistics` writes them",
            )
        })
    }
}

/// The selection of an encoder.
pub(crate) struct Selector {
    name: String,
    bound: Box<dyn BoundSelect>,
    /// Of each layer.
    heads: Vec<u32>,
}

impl Selector {
    pub(crate) fn new(select: &dyn Select, geometry: &Geometry) -> Result<Self> {
        let name = format!("stage `{}`", select.name());
        let bound = heads(geometry).and_then(|heads| Ok((select.bind(geometry)?, heads)));
        let (bound, heads) = bound.at(|| &name)?;
        Ok(Self { name, bound, heads })
    }

    /// What is kept of a chunk.
    pub(crate) fn choose(&self, view: &KvView<'_>, range: &Range<usize>) -> Result<Kept> {
        let tokens = range.len();
        let kept = if tokens == 0 { 0 } else { self.bound.kept(tokens) };
        if kept > tokens || (kept == 0 && tokens > 0) {
            return Err(Error::setting(format!("keeps {kept} of {tokens} tokens")).at(&self.name));
        }
        let position = view.first_position() + range.start as u64;
        let places = self.heads.iter().enumerate();
        let places: Vec<(usize, usize)> =
            places.flat_map(|(layer, heads)| (0..*heads as usize).map(move |head| (layer, head))).collect();
        let one = |(layer, head): (usize, usize)| {
            let cx = SelectCx::new(layer, head, range.clone(), position, view.importance());
            // Of no token, as whatever is not overwritten must show.
            let mut set = vec![u32::MAX; kept];
            if tokens > 0 {
                self.bound.select(&cx, &mut set)?;
            }
            Ok(set)
        };
        let sets: Result<Vec<Vec<u32>>> = places.into_par_iter().map(one).collect();
        sets.and_then(|sets| Kept::new(view.geometry(), position, tokens as u64, sets)).at(|| &self.name)
    }
}

impl std::fmt::Debug for Selector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Selector").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A chunk of what was kept: as many rows as every head has tokens, from the position of the chunk's first token.
pub(crate) fn compact(view: &KvView<'_>, range: &Range<usize>, kept: &Kept) -> Result<KvCache> {
    let position = view.first_position() + range.start as u64;
    let mut cache = KvCache::try_zeros(view.geometry(), kept.tokens(), position)?;
    let planes = view.planes();
    cache.planes_bytes_mut().par_iter_mut().zip(planes).for_each(|(out, plane)| {
        view.gather(plane.index, range.start, kept.of_layer(plane.layer as usize), out);
    });
    Ok(cache)
}

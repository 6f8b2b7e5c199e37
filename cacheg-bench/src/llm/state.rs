//! The KV cache that the model reads and extends.

use std::ops::Range;

use cacheg::core::{Dtype, Kept, Kind, LayerGroup, Order, Shape};
use cacheg::{Error, Geometry, KvCache, KvView, Result};
use rayon::prelude::*;

/// A KV cache that grows: per plane and head the rows of its tokens, in the plane's element type, keys after RoPE.
///
/// Tokens may be missing from it (dropped by a codec): a token's position is in its key, and
/// [`next_position`](Self::next_position) alone says where the text goes on. Layers that see only the last tokens have to
/// know the positions, though: those of a view that says which tokens it has, or else the last ones before the next.
#[derive(Debug, Clone, PartialEq)]
pub struct KvState {
    geometry: Geometry,
    tokens: usize,
    next_position: u64,
    /// Plane, head: `[tokens, head_dim]` in bytes.
    heads: Vec<Vec<Vec<u8>>>,
    /// By plane.
    shapes: Vec<Shape>,
    /// If tokens were dropped, by layer and head: positions of the first rows. Those behind them are in line up to the
    /// next position.
    kept: Vec<Vec<Vec<u64>>>,
}

impl KvState {
    /// An empty cache, at position 0.
    pub fn new(geometry: &Geometry) -> Self {
        let shapes: Vec<Shape> = geometry.planes().iter().map(|plane| plane.shape).collect();
        let heads = shapes.iter().map(|shape| vec![Vec::new(); shape.heads as usize]).collect();
        Self { geometry: geometry.clone(), tokens: 0, next_position: 0, heads, shapes, kept: Vec::new() }
    }

    /// An empty cache of f32, for measurements in which an engine's rounding would be noise.
    ///
    /// # Errors
    /// Never, for the geometry of a model.
    pub fn exact(geometry: &Geometry) -> Result<Self> {
        let f32 = |shape: Option<Shape>| shape.map(|shape| Shape { dtype: Dtype::F32, ..shape });
        let groups = geometry.groups().iter();
        let exact = groups.map(|group| LayerGroup {
            key: f32(group.key),
            value: f32(group.value),
            latent: f32(group.latent),
            ..*group
        });
        Ok(Self::new(&Geometry::new(exact)?))
    }

    /// A copy of a KV cache, bit for bit; the text goes on behind its last token, or, if the view says that tokens were
    /// dropped, behind the context's last one.
    pub fn of(view: &KvView<'_>) -> Self {
        let mut state = Self::new(view.geometry());
        state.push_view(view, 0..view.tokens());
        let positions = |kept: &Kept, layer: usize| -> Vec<Vec<u64>> {
            (0..kept.heads(layer)).map(|head| kept.positions(layer, head).collect()).collect()
        };
        state.kept = view
            .kept()
            .map_or_else(Vec::new, |kept| (0..kept.layers()).map(|layer| positions(kept, layer)).collect());
        let behind = view.first_position() + view.tokens() as u64;
        state.with_next_position(view.kept().map_or(behind, Kept::next_position))
    }

    /// Appends rows of a KV cache of the same geometry, bit for bit.
    ///
    /// # Errors
    /// If the geometry is another one, or there are no such rows.
    pub fn extend(&mut self, view: &KvView<'_>, rows: Range<usize>) -> Result<()> {
        if view.geometry() != &self.geometry {
            return Err(Error::data("a KV cache of another model, or of other element types"));
        }
        if rows.start > rows.end || rows.end > view.tokens() {
            return Err(Error::data(format!(
                "rows {}..{} of a KV cache of {} tokens",
                rows.start,
                rows.end,
                view.tokens()
            )));
        }
        self.push_view(view, rows);
        Ok(())
    }

    fn push_view(&mut self, view: &KvView<'_>, rows: Range<usize>) {
        let planes = self.heads.par_iter_mut().zip(&self.shapes).enumerate();
        planes.for_each(|(index, (heads, shape))| {
            let row = shape.head_dim as usize * shape.dtype.size();
            // What files and decoders make is laid out as it is here.
            if view.order() == Order::HeadMajor {
                let bytes = view.plane_bytes(index);
                for (head, out) in heads.iter_mut().enumerate() {
                    let first = head * view.tokens();
                    out.extend_from_slice(&bytes[(first + rows.start) * row..(first + rows.end) * row]);
                }
                return;
            }
            let mut values = vec![0.0; rows.len() * shape.head_dim as usize * heads.len()];
            view.load(index, rows.start, rows.len(), &mut values);
            push(heads, *shape, &values);
        });
        self.advance(rows.len());
    }

    /// Everything as one KV cache; its first position is that of the first token if none are missing.
    ///
    /// # Errors
    /// If more tokens are held than positions have passed.
    pub fn to_cache(&self) -> Result<KvCache> {
        self.rows_to_cache(0..self.tokens)
    }

    /// Some of its rows as a KV cache.
    ///
    /// # Errors
    /// If there are no such rows; if more tokens are held than positions have passed.
    pub fn rows_to_cache(&self, rows: Range<usize>) -> Result<KvCache> {
        let first = self.next_position.checked_sub(self.tokens as u64).ok_or_else(|| {
            Error::data(format!("{} tokens before position {}", self.tokens, self.next_position))
        })?;
        if rows.start > rows.end || rows.end > self.tokens {
            return Err(Error::data(format!("rows {}..{} of {} tokens", rows.start, rows.end, self.tokens)));
        }
        let mut cache = KvCache::zeros(&self.geometry, rows.len(), first + rows.start as u64);
        for (heads, plane) in self.heads.iter().zip(cache.view_mut().planes_mut()) {
            let shape = plane.plane().shape;
            let (dim, size) = (shape.head_dim as usize, shape.dtype.size());
            let mut values = vec![0.0; rows.len() * plane.plane().channels()];
            let mut head_rows = vec![0.0; rows.len() * dim];
            for (head, bytes) in heads.iter().enumerate() {
                shape.dtype.widen(&bytes[rows.start * dim * size..rows.end * dim * size], &mut head_rows);
                for (row, from) in values.chunks_exact_mut(heads.len() * dim).zip(head_rows.chunks_exact(dim))
                {
                    row[head * dim..][..dim].copy_from_slice(from);
                }
            }
            plane.store(0, rows.len(), &values);
        }
        Ok(cache)
    }

    /// What the cache looks like.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Tokens held.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Position of the token that comes next.
    pub fn next_position(&self) -> u64 {
        self.next_position
    }

    /// The same, going on with the text at this position, for caches from which tokens were dropped.
    #[must_use]
    pub fn with_next_position(mut self, position: u64) -> Self {
        self.next_position = position;
        self
    }

    /// Where the text goes on, for caches from which tokens were dropped.
    pub fn set_next_position(&mut self, position: u64) {
        self.next_position = position;
    }

    /// Forgets the last tokens, so that `tokens` remain; nothing if there are not more.
    pub fn truncate(&mut self, tokens: usize) {
        let gone = self.tokens.saturating_sub(tokens);
        self.tokens -= gone;
        self.next_position -= gone as u64;
        for (heads, shape) in self.heads.iter_mut().zip(&self.shapes) {
            let row = shape.head_dim as usize * shape.dtype.size();
            heads.iter_mut().for_each(|head| head.truncate(self.tokens * row));
        }
        self.kept.iter_mut().flatten().for_each(|positions| positions.truncate(self.tokens));
    }

    /// The first row of a head that a query at `position` sees if it sees `window` positions, its own included. Rows that
    /// are appended and not yet counted are in line.
    pub(super) fn first_within(&self, layer: usize, head: usize, position: u64, window: usize) -> usize {
        let oldest = (position + 1).saturating_sub(window as u64);
        let kept = self.kept.get(layer).and_then(|heads| heads.get(head)).map_or(&[][..], Vec::as_slice);
        let among = kept.partition_point(|position| *position < oldest);
        if among < kept.len() {
            return among;
        }
        let in_line = (oldest + self.tokens as u64).saturating_sub(self.next_position);
        usize::try_from(in_line).unwrap_or(usize::MAX).max(among)
    }

    /// Appends rows, `[rows, channels]`, to one plane. [`advance`](Self::advance) follows when all planes have them.
    pub(super) fn push_rows(&mut self, plane: usize, rows: &[f32]) {
        push(&mut self.heads[plane], self.shapes[plane], rows);
    }

    /// So many tokens were appended to all planes.
    pub(super) fn advance(&mut self, tokens: usize) {
        self.tokens += tokens;
        self.next_position += tokens as u64;
    }

    /// Index of a layer's plane: layers of models that run here have keys and values, nothing else.
    pub(super) fn plane(layer: usize, kind: Kind) -> usize {
        2 * layer + usize::from(kind == Kind::Value)
    }

    /// Element type of a plane.
    pub(super) fn dtype(&self, layer: usize, kind: Kind) -> Dtype {
        self.shapes[Self::plane(layer, kind)].dtype
    }

    /// The rows of one head.
    pub(super) fn head(&self, layer: usize, kind: Kind, head: usize) -> &[u8] {
        &self.heads[Self::plane(layer, kind)][head]
    }
}

/// Appends rows, `[rows, channels]`, to the heads of a plane.
fn push(heads: &mut [Vec<u8>], shape: Shape, rows: &[f32]) {
    let (dim, size) = (shape.head_dim as usize, shape.dtype.size());
    let channels = dim * heads.len();
    for (head, bytes) in heads.iter_mut().enumerate() {
        let mut at = bytes.len();
        bytes.resize(at + rows.len() / channels * dim * size, 0);
        for row in rows.chunks_exact(channels) {
            shape.dtype.narrow(&row[head * dim..][..dim], &mut bytes[at..][..dim * size]);
            at += dim * size;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn caches_go_in_and_out_bit_for_bit() {
        let shape = |heads, dtype| Some(Shape { heads, head_dim: 4, dtype });
        let layer = LayerGroup {
            repeat: 2,
            key: shape(2, Dtype::F16),
            value: shape(3, Dtype::F32),
            latent: None,
            rope: None,
        };
        let geometry = Geometry::new([layer]).unwrap();
        let cache = KvCache::from_fn(&geometry, 5, |plane, token, channel| {
            (plane.index * 31 + token * 7 + channel) as f32 * 0.37 - 3.0
        });
        let mut state = KvState::of(&cache.view());
        assert_eq!((state.tokens(), state.next_position()), (5, 5));
        assert_eq!(state.to_cache().unwrap(), cache);
        state.truncate(3);
        assert_eq!(state.next_position(), 3);
        assert_eq!(state.to_cache().unwrap(), KvCache::copy_of(&cache.view(), 0, 3));
        state.truncate(9);
        assert_eq!(state.tokens(), 3);
        state.set_next_position(2);
        assert!(state.to_cache().is_err());

        let mut state = KvState::new(&geometry);
        state.extend(&cache.view(), 0..2).unwrap();
        state.extend(&cache.view(), 2..5).unwrap();
        assert_eq!(state.to_cache().unwrap(), cache);
        let rows = state.rows_to_cache(3..5).unwrap();
        assert_eq!(rows, KvCache::copy_of(&cache.view(), 3, 2));
        assert!(state.rows_to_cache(3..6).is_err() && state.extend(&cache.view(), 5..6).is_err());
    }

    #[test]
    fn a_cache_with_dropped_tokens_goes_on_behind_its_context() {
        let shape = Some(Shape { heads: 2, head_dim: 4, dtype: Dtype::F16 });
        let layer = LayerGroup { repeat: 1, key: shape, value: shape, latent: None, rope: None };
        let geometry = Geometry::new([layer]).unwrap();
        let cache = KvCache::from_fn(&geometry, 3, |_, token, channel| (token * 8 + channel) as f32);
        let kept = Kept::new(&geometry, 0, 9, vec![vec![0, 7, 8], vec![2, 3, 8]]).unwrap();
        let mut state = KvState::of(&cache.view().with_kept(&kept).unwrap());
        assert_eq!((state.tokens(), state.next_position()), (3, 9));
        let same = KvState::of(&cache.view()).with_next_position(9);
        assert_eq!(state.to_cache().unwrap(), same.to_cache().unwrap());
        // What a token at 9 or 12 sees of positions 0, 7, 8 (2, 3, 8), and of those that follow from 9 on.
        let first = |head, position, window| state.first_within(0, head, position, window);
        assert_eq!((first(0, 9, 3), first(0, 9, 2), first(0, 9, 1), first(0, 9, 50)), (1, 2, 3, 0));
        assert_eq!((first(1, 9, 7), first(1, 9, 3), first(1, 12, 2)), (1, 2, 5));
        // Without knowing them: as if they were 6, 7, 8.
        assert_eq!((same.first_within(0, 0, 9, 3), same.first_within(0, 0, 12, 2)), (1, 5));
        // Whoever reads on appends at position 9, and may take it back.
        for plane in 0..2 {
            state.push_rows(plane, &[1.0; 8]);
        }
        state.advance(1);
        assert_eq!((state.tokens(), state.next_position()), (4, 10));
        state.truncate(3);
        assert_eq!((state.tokens(), state.next_position()), (3, 9));
    }
}

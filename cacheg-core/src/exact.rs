//! Exact tokens: rows at a context's ends that are stored bit for bit beside the tiles.
//!
//! Attention sinks (StreamingLLM, arXiv 2309.17453, section 3.1) get so much of everybody's attention that an error
//! in them counts like one in hundreds of other tokens; and they are unlike other tokens, so that they fit no
//! table. KVTC (arXiv 2511.01815) leaves the first 4 and the last 128 tokens as they are.

use std::ops::Range;

use crate::wire::Reader;
use crate::{Error, Geometry, KvView, KvViewMut, Result};

/// How many tokens at the ends of a context are stored exactly; none by default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ExactTokens {
    /// Those with the first positions of the model's sequence.
    pub first: u32,
    /// The last ones of the KV cache that is encoded.
    pub last: u32,
}

/// How many rows at a chunk's ends are exact.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct ExactRows {
    pub(crate) first: usize,
    pub(crate) last: usize,
}

impl ExactTokens {
    /// The exact rows of a chunk: of the tokens `range` of a view.
    pub(crate) fn rows(self, view: &KvView<'_>, range: &Range<usize>) -> ExactRows {
        let position = view.first_position().saturating_add(range.start as u64);
        let first = u64::from(self.first).saturating_sub(position).min(range.len() as u64) as usize;
        let from = view.tokens().saturating_sub(self.last as usize).max(range.start);
        let last = range.end.saturating_sub(from).min(range.len() - first);
        ExactRows { first, last }
    }
}

impl ExactRows {
    /// The rows of a chunk that are coded.
    pub(crate) fn inner(self, range: &Range<usize>) -> Range<usize> {
        range.start + self.first..range.end - self.last
    }

    pub(crate) fn is_empty(self) -> bool {
        self == Self::default()
    }

    /// As a chunk carries them: plane by plane, token by token, elements as in the KV cache.
    pub(crate) fn pack(self, view: &KvView<'_>, range: &Range<usize>) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.len(view.geometry()));
        let (mut values, inner) = (Vec::new(), self.inner(range));
        for plane in view.planes() {
            for rows in [range.start..inner.start, inner.end..range.end] {
                values.resize(rows.len() * plane.channels(), 0.0);
                view.load(plane.index, rows.start, rows.len(), &mut values);
                let at = out.len();
                out.resize(at + values.len() * plane.shape.dtype.size(), 0);
                plane.shape.dtype.narrow(&values, &mut out[at..]);
            }
        }
        out
    }

    /// Writes what [`pack`](Self::pack) made of a chunk of `tokens` tokens to the rows of `out` from `row`.
    pub(crate) fn unpack(
        self,
        bytes: &[u8],
        out: &mut KvViewMut<'_>,
        row: usize,
        tokens: usize,
    ) -> Result<()> {
        let mut reader = Reader::new(bytes);
        let mut values = Vec::new();
        for plane in out.planes_mut() {
            let (channels, dtype) = (plane.plane().channels(), plane.plane().shape.dtype);
            for (first, rows) in [(row, self.first), (row + tokens - self.last, self.last)] {
                values.resize(rows * channels, 0.0);
                dtype.widen(reader.take(values.len() * dtype.size())?, &mut values);
                plane.store(first, rows, &values);
            }
        }
        Ok(())
    }

    /// Bytes of [`pack`](Self::pack).
    pub(crate) fn len(self, geometry: &Geometry) -> usize {
        (self.first + self.last) * geometry.bytes_per_token() as usize
    }

    /// Checks what a chunk of `tokens` tokens claims.
    pub(crate) fn check(first: u64, last: u64, tokens: usize) -> Result<Self> {
        match first.checked_add(last) {
            Some(sum) if sum > 0 && sum <= tokens as u64 => {
                Ok(Self { first: first as usize, last: last as usize })
            }
            _ => Err(Error::corrupt(format!("{first} and {last} exact tokens of {tokens}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{KvCache, LayerGroup, Shape};

    fn cache(tokens: usize, position: u64) -> KvCache {
        let shape = Some(Shape { heads: 2, head_dim: 4, dtype: crate::Dtype::F16 });
        let layers = LayerGroup { repeat: 3, key: shape, value: shape, latent: None, rope: None };
        let geometry = Geometry::new([layers]).unwrap();
        let all = KvCache::from_fn(&geometry, tokens, |plane, token, channel| {
            (plane.index * 100 + token * 10 + channel) as f32
        });
        let mut cache = KvCache::zeros(&geometry, tokens, position);
        let mut values = vec![0.0; tokens * 8];
        for plane in cache.view_mut().planes_mut() {
            all.view().load(plane.plane().index, 0, tokens, &mut values);
            plane.store(0, tokens, &values);
        }
        cache
    }

    #[test]
    fn rows_follow_positions_and_the_end() {
        let exact = ExactTokens { first: 4, last: 3 };
        let at = |position, range: Range<usize>| {
            let ExactRows { first, last } = exact.rows(&cache(10, position).view(), &range);
            (first, last)
        };
        assert_eq!(at(0, 0..10), (4, 3));
        assert_eq!(at(3, 0..10), (1, 3));
        assert_eq!(at(4, 0..10), (0, 3));
        assert_eq!(at(0, 0..3), (3, 0));
        assert_eq!(at(0, 2..6), (2, 0));
        assert_eq!(at(0, 6..9), (0, 2));
        assert_eq!(at(0, 8..10), (0, 2));
        assert_eq!(at(0, 5..5), (0, 0));
        // Too short for both: the first ones come first.
        let short = cache(5, 0);
        assert_eq!(exact.rows(&short.view(), &(0..5)), ExactRows { first: 4, last: 1 });
        assert_eq!(ExactTokens::default().rows(&short.view(), &(0..5)), ExactRows::default());
    }

    #[test]
    fn rows_come_back_and_nothing_else_is_touched() {
        let cache = cache(10, 0);
        let (range, rows) = (1..9, ExactRows { first: 2, last: 1 });
        let bytes = rows.pack(&cache.view(), &range);
        assert_eq!(bytes.len(), rows.len(cache.geometry()));
        let mut out = KvCache::zeros(cache.geometry(), 10, 0);
        rows.unpack(&bytes, &mut out.view_mut(), 1, 8).unwrap();
        let (mut got, mut want) = (vec![0.0; 80], vec![0.0; 80]);
        for plane in cache.view().planes() {
            out.view().load(plane.index, 0, 10, &mut got);
            cache.view().load(plane.index, 0, 10, &mut want);
            for (token, (got, want)) in got.chunks(8).zip(want.chunks(8)).enumerate() {
                let kept = [1, 2, 8].contains(&token);
                assert_eq!(got, if kept { want } else { &[0.0; 8] }, "{token}");
            }
        }
        assert!(rows.unpack(&bytes[1..], &mut out.view_mut(), 1, 8).is_err());
    }

    #[test]
    fn claims_are_checked() {
        assert_eq!(ExactRows::check(4, 1, 5).unwrap(), ExactRows { first: 4, last: 1 });
        for (first, last) in [(4, 2), (0, 0), (u64::MAX, 1), (6, 0)] {
            assert!(ExactRows::check(first, last, 5).is_err());
        }
    }
}

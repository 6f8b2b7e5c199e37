//! Which tokens a KV cache still has, of a context from which every KV head dropped some of its own.

use crate::{Error, Geometry, Kind, Result};

/// The tokens that each KV head of each layer has kept: of every head the same number, but not the same ones.
///
/// Row `i` of a head in a KV cache with such a companion is the head's `i`-th kept token. Whoever goes on with the
/// text does so at [`next_position`](Self::next_position), not behind the number of rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    first_position: u64,
    context_tokens: u64,
    /// Of each head.
    tokens: usize,
    /// Of each layer.
    heads: Vec<u32>,
    /// Of each head, layer after layer: its tokens, counted from the context's first, ascending.
    sets: Vec<Vec<u32>>,
}

impl Kept {
    /// The kept tokens of each head, layer after layer, counted from the context's first token, which has this
    /// position in the model's sequence.
    ///
    /// # Errors
    /// If heads of a layer differ between its planes, if their number is not that of the sets, if sets have different
    /// lengths, are not ascending, or go beyond the context.
    pub fn new(
        geometry: &Geometry,
        first_position: u64,
        context_tokens: u64,
        sets: Vec<Vec<u32>>,
    ) -> Result<Self> {
        let heads = heads(geometry)?;
        if sets.len() as u64 != count(&heads) {
            return Err(Error::data(format!(
                "kept tokens of {} heads, not of {}",
                sets.len(),
                count(&heads)
            )));
        }
        if first_position.checked_add(context_tokens).is_none() {
            return Err(Error::data("positions beyond 64 bits"));
        }
        let tokens = sets.first().map_or(0, Vec::len);
        if sets.iter().any(|set| set.len() != tokens) {
            return Err(Error::data("heads that keep different numbers of tokens"));
        }
        for set in &sets {
            let ascending = set.windows(2).all(|pair| pair[0] < pair[1]);
            if !ascending || set.last().is_some_and(|last| u64::from(*last) >= context_tokens) {
                return Err(Error::data(format!(
                    "kept tokens that are not ascending, or beyond the context of {context_tokens} tokens"
                )));
            }
        }
        Ok(Self { first_position, context_tokens, tokens, heads, sets })
    }

    /// Nothing yet, of nothing: [`extend`](Self::extend) it.
    pub(crate) fn empty(heads: Vec<u32>, first_position: u64) -> Self {
        let sets = vec![Vec::new(); count(&heads) as usize];
        Self { first_position, context_tokens: 0, tokens: 0, heads, sets }
    }

    /// Appends the tokens that follow, of which these are kept; all of them if there are no bitmaps.
    pub(crate) fn extend(&mut self, tokens: usize, kept: Option<&Bitmaps<'_>>) {
        let first = self.context_tokens as u32;
        self.context_tokens += tokens as u64;
        self.tokens += kept.map_or(tokens, |kept| kept.kept);
        for (index, set) in self.sets.iter_mut().enumerate() {
            match kept {
                None => set.extend(first..first + tokens as u32),
                Some(kept) => {
                    set.reserve(kept.kept);
                    set.extend(kept.set(index).map(|token| first + token));
                }
            }
        }
    }

    /// Tokens that each head has: the rows of the KV cache.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Tokens that the context has, dropped ones too.
    pub fn context_tokens(&self) -> u64 {
        self.context_tokens
    }

    /// Position of the context's first token in the model's sequence, whether it was kept or not.
    pub fn first_position(&self) -> u64 {
        self.first_position
    }

    /// Position of the token that comes after the context.
    pub fn next_position(&self) -> u64 {
        self.first_position + self.context_tokens
    }

    /// Number of layers.
    pub fn layers(&self) -> usize {
        self.heads.len()
    }

    /// KV heads of a layer.
    ///
    /// # Panics
    /// If there is no such layer.
    pub fn heads(&self, layer: usize) -> usize {
        self.heads[layer] as usize
    }

    /// Positions of a head's tokens in the model's sequence, ascending: those of the rows of the KV cache.
    ///
    /// # Panics
    /// If there is no such layer or head.
    pub fn positions(&self, layer: usize, head: usize) -> impl ExactSizeIterator<Item = u64> + '_ {
        self.of_layer(layer)[head].iter().map(|token| self.first_position + u64::from(*token))
    }

    /// The sets of a layer's heads.
    pub(crate) fn of_layer(&self, layer: usize) -> &[Vec<u32>] {
        let first = count(&self.heads[..layer]) as usize;
        &self.sets[first..first + self.heads[layer] as usize]
    }

    /// As a chunk carries them.
    pub(crate) fn to_bitmaps(&self) -> Vec<u8> {
        let len = bitmap_len(self.context_tokens);
        let mut bytes = vec![0u8; len * self.sets.len()];
        for (bitmap, set) in bytes.chunks_exact_mut(len.max(1)).zip(&self.sets) {
            for token in set {
                bitmap[*token as usize / 8] |= 1 << (token % 8);
            }
        }
        bytes
    }

    /// Refuses what belongs to another KV cache.
    pub(crate) fn check(&self, geometry: &Geometry, tokens: usize, first_position: u64) -> Result<()> {
        if self.tokens == tokens && self.first_position == first_position && self.heads == heads(geometry)? {
            return Ok(());
        }
        Err(Error::data(format!(
            "kept tokens of another KV cache: {} from position {}, not {tokens} from {first_position}, or of other heads",
            self.tokens, self.first_position
        )))
    }
}

/// The same in a chunk, checked.
#[derive(Debug, Clone)]
pub(crate) struct Bitmaps<'a> {
    /// Of each layer.
    heads: Vec<u32>,
    kept: usize,
    /// Bytes of one.
    len: usize,
    bytes: &'a [u8],
}

impl<'a> Bitmaps<'a> {
    /// Refuses bitmaps that are not exactly what `kept` of `tokens` tokens need.
    pub(crate) fn new(geometry: &Geometry, tokens: usize, kept: usize, bytes: &'a [u8]) -> Result<Self> {
        let heads = heads(geometry)?;
        let len = bitmap_len(tokens as u64);
        if count(&heads).checked_mul(len as u64) != Some(bytes.len() as u64) {
            return Err(Error::corrupt(format!(
                "{} bytes of kept tokens where {} bitmaps of {len} are expected",
                bytes.len(),
                count(&heads)
            )));
        }
        for bitmap in bytes.chunks_exact(len.max(1)) {
            let found: usize = bitmap.iter().map(|byte| byte.count_ones() as usize).sum();
            let beyond =
                bitmap.last().is_some_and(|last| !tokens.is_multiple_of(8) && last >> (tokens % 8) != 0);
            if found != kept || beyond {
                return Err(Error::corrupt(format!(
                    "a head that keeps {found} of {tokens} tokens, or some beyond them, where {kept} are expected"
                )));
            }
        }
        Ok(Self { heads, kept, len, bytes })
    }

    /// Heads of each layer.
    pub(crate) fn heads(&self) -> &[u32] {
        &self.heads
    }

    /// Number of all heads.
    pub(crate) fn count(&self) -> u64 {
        count(&self.heads)
    }

    /// Tokens of one head, numbered through all layers, ascending.
    fn set(&self, head: usize) -> impl Iterator<Item = u32> + 'a {
        let bitmap = &self.bytes[head * self.len..][..self.len];
        (0u32..).zip(bitmap).flat_map(|(at, byte)| {
            let byte = *byte;
            (0..8).filter(move |bit| byte >> bit & 1 == 1).map(move |bit| 8 * at + bit)
        })
    }
}

const fn bitmap_len(tokens: u64) -> usize {
    tokens.div_ceil(8) as usize
}

fn count(heads: &[u32]) -> u64 {
    heads.iter().map(|heads| u64::from(*heads)).sum()
}

/// KV heads of each layer, if its planes agree on them.
pub(crate) fn heads(geometry: &Geometry) -> Result<Vec<u32>> {
    let mut heads = Vec::new();
    for group in geometry.groups() {
        let mut shapes = Kind::ALL.iter().filter_map(|kind| group.shape(*kind));
        let first = shapes.next().map_or(0, |shape| shape.heads);
        if shapes.any(|shape| shape.heads != first) {
            return Err(Error::unsupported(format!(
                "layer {} has other heads in its keys than in its values: tokens are dropped by KV head",
                heads.len()
            )));
        }
        heads.extend(std::iter::repeat_n(first, group.repeat as usize));
    }
    Ok(heads)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Dtype, ErrorKind, LayerGroup, Shape};

    fn geometry(key: u32, value: u32) -> Geometry {
        let shape = |heads| Some(Shape { heads, head_dim: 2, dtype: Dtype::F16 });
        let group = LayerGroup { repeat: 2, key: shape(key), value: shape(value), latent: None, rope: None };
        Geometry::new([group]).unwrap()
    }

    fn sets() -> Vec<Vec<u32>> {
        vec![vec![0, 8, 9], vec![1, 2, 3], vec![0, 1, 9], vec![7, 8, 9]]
    }

    #[test]
    fn sets_go_to_bitmaps_and_back_and_are_appended() {
        let geometry = geometry(2, 2);
        let kept = Kept::new(&geometry, 100, 10, sets()).unwrap();
        let bytes = kept.to_bitmaps();
        assert_eq!(bytes, [0x01, 0x03, 0x0e, 0x00, 0x03, 0x02, 0x80, 0x03]);
        let bitmaps = Bitmaps::new(&geometry, 10, 3, &bytes).unwrap();
        let mut back = Kept::empty(bitmaps.heads().to_vec(), 100);
        back.extend(10, Some(&bitmaps));
        assert_eq!(back, kept);
        back.extend(2, None);
        back.extend(10, Some(&bitmaps));
        assert_eq!((back.tokens(), back.context_tokens(), back.next_position()), (8, 22, 122));
        let of_head: Vec<u64> = back.positions(1, 0).collect();
        assert_eq!(of_head, [100, 101, 109, 110, 111, 112, 113, 121]);
        assert_eq!((back.layers(), back.heads(1)), (2, 2));
    }

    #[test]
    fn bitmaps_must_be_exact() {
        let geometry = geometry(2, 2);
        let good = Kept::new(&geometry, 0, 10, sets()).unwrap().to_bitmaps();
        let kind = |kept, bytes: &[u8]| Bitmaps::new(&geometry, 10, kept, bytes).unwrap_err().kind();
        assert_eq!(kind(2, &good), ErrorKind::Corrupt);
        assert_eq!(kind(3, &good[..7]), ErrorKind::Corrupt);
        assert_eq!(kind(3, &[&good[..], &[0]].concat()), ErrorKind::Corrupt);
        assert_eq!(kind(3, &[]), ErrorKind::Corrupt);
        for (at, byte) in [(0, 0x03), (0, 0x00), (1, 0x05), (7, 0x81)] {
            let mut bad = good.clone();
            bad[at] = byte;
            assert_eq!(kind(3, &bad), ErrorKind::Corrupt, "{at}");
        }
        assert!(Bitmaps::new(&geometry, 0, 0, &[]).is_ok());
    }

    #[test]
    fn impossible_sets_are_refused() {
        let geometry = geometry(2, 2);
        let refused = |sets: Vec<Vec<u32>>| assert!(Kept::new(&geometry, 0, 10, sets).is_err());
        refused(sets()[..3].to_vec());
        for set in [vec![0, 8], vec![0, 8, 8], vec![8, 0, 9], vec![0, 8, 10]] {
            let mut sets = sets();
            sets[1] = set;
            refused(sets);
        }
        assert!(Kept::new(&geometry, u64::MAX - 9, 10, sets()).is_err());
        let unequal = Kept::new(&self::geometry(2, 1), 0, 10, sets()).unwrap_err();
        assert_eq!(unequal.kind(), ErrorKind::Unsupported);
    }
}

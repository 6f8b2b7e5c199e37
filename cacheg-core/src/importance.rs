//! How much attention each token of a context got: what stages that keep, drop or favour tokens go by.

use crate::{Error, Geometry, Kind, LayerGroup, Result};

/// Attention weight that tokens got, by layer and KV head, summed over the query heads that share the KV head.
///
/// It is a KV cache's companion: [`KvView::with_importance`](crate::KvView::with_importance) takes it along by
/// reference, [`KvFile::importance`](crate::KvFile::importance) reads it from a file.
#[derive(Debug, Clone, PartialEq)]
pub struct Importance {
    tokens: usize,
    recent_queries: Option<u64>,
    layers: Vec<Layer>,
}

#[derive(Debug, Clone, PartialEq)]
struct Layer {
    heads: usize,
    /// `[heads, tokens]`.
    accumulated: Vec<f32>,
    /// `[heads, tokens]`.
    recent: Vec<f32>,
}

impl Importance {
    /// Of a context of `tokens` tokens, still without layers. `recent_queries` is how many of the last queries count
    /// as recent, if that is known.
    pub fn new(tokens: usize, recent_queries: Option<u64>) -> Self {
        Self { tokens, recent_queries, layers: Vec::new() }
    }

    /// Adds the next layer: attention weight that each token got from each query head, `[query_heads, tokens]`, summed
    /// over all queries and over the recent ones. Query heads `g·h` to `g·(h + 1) − 1` share KV head `h`.
    ///
    /// # Errors
    /// If the lengths do not fit, if query heads are no multiple of `kv_heads`, if a sum is negative or not finite.
    pub fn push_layer(&mut self, kv_heads: usize, accumulated: &[f32], recent: &[f32]) -> Result<()> {
        let layer = Layer {
            heads: kv_heads,
            accumulated: self.by_kv_head(kv_heads, accumulated)?,
            recent: self.by_kv_head(kv_heads, recent)?,
        };
        self.layers.push(layer);
        Ok(())
    }

    fn by_kv_head(&self, kv_heads: usize, sums: &[f32]) -> Result<Vec<f32>> {
        let query_heads = sums.len().checked_div(self.tokens).unwrap_or(0);
        let whole = query_heads * self.tokens == sums.len() && (self.tokens == 0 || query_heads > 0);
        if !whole || kv_heads == 0 || !query_heads.is_multiple_of(kv_heads) {
            return Err(Error::data(format!(
                "{} attention sums for {} tokens and {kv_heads} KV heads; query heads must be a multiple of KV heads",
                sums.len(),
                self.tokens
            )));
        }
        if let Some(at) = sums.iter().position(|sum| !sum.is_finite() || *sum < 0.0) {
            return Err(Error::data(format!(
                "{} at query head {}, token {}: sums of attention weights are finite and not negative",
                sums[at],
                at / self.tokens,
                at % self.tokens
            )));
        }
        let mut of_heads = vec![0.0; kv_heads * self.tokens];
        if self.tokens == 0 {
            return Ok(of_heads);
        }
        let group = query_heads / kv_heads * self.tokens;
        for (of_head, group) in of_heads.chunks_exact_mut(self.tokens).zip(sums.chunks_exact(group)) {
            for (token, sum) in of_head.iter_mut().enumerate() {
                let all = group.iter().skip(token).step_by(self.tokens).map(|x| f64::from(*x)).sum::<f64>();
                *sum = (all as f32).min(f32::MAX);
            }
        }
        Ok(of_heads)
    }

    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Number of layers.
    pub fn layers(&self) -> usize {
        self.layers.len()
    }

    /// How many of the last queries count as recent, if that is known.
    pub fn recent_queries(&self) -> Option<u64> {
        self.recent_queries
    }

    /// Attention weight that each token got from all queries.
    ///
    /// # Panics
    /// If there is no such layer or head.
    pub fn accumulated(&self, layer: usize, head: usize) -> &[f32] {
        &self.layers[layer].accumulated[head * self.tokens..][..self.tokens]
    }

    /// The same from the recent queries.
    ///
    /// # Panics
    /// If there is no such layer or head.
    pub fn recent(&self, layer: usize, head: usize) -> &[f32] {
        &self.layers[layer].recent[head * self.tokens..][..self.tokens]
    }

    /// Refuses what belongs to another KV cache.
    pub(crate) fn check(&self, geometry: &Geometry, tokens: usize) -> Result<()> {
        let same = self.layers.iter().map(|layer| layer.heads as u64).eq(kv_heads(geometry).map(u64::from));
        if self.tokens == tokens && same {
            return Ok(());
        }
        Err(Error::data(format!(
            "attention statistics of {} tokens and {} layers, or of other KV heads, for a KV cache of {tokens} tokens \
             and {} layers",
            self.tokens,
            self.layers.len(),
            geometry.layers()
        )))
    }
}

/// The heads that query heads share, layer by layer.
pub(crate) fn kv_heads(geometry: &Geometry) -> impl Iterator<Item = u32> {
    let heads = |group: &LayerGroup| {
        let shape = [Kind::Key, Kind::Latent, Kind::Value].iter().find_map(|kind| group.shape(*kind));
        shape.map_or(0, |shape| shape.heads)
    };
    geometry.groups().iter().flat_map(move |group| std::iter::repeat_n(heads(group), group.repeat as usize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn query_heads_are_summed_by_kv_head() {
        let mut importance = Importance::new(3, Some(2));
        let accumulated: Vec<f32> = (0..12).map(|i| i as f32).collect();
        let recent = [0.5; 12];
        importance.push_layer(2, &accumulated, &recent).unwrap();
        assert_eq!(importance.accumulated(0, 0), [3.0, 5.0, 7.0]);
        assert_eq!(importance.accumulated(0, 1), [15.0, 17.0, 19.0]);
        assert_eq!(importance.recent(0, 1), [1.0; 3]);
        assert_eq!((importance.tokens(), importance.layers(), importance.recent_queries()), (3, 1, Some(2)));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let refused = |kv_heads, accumulated: &[f32], recent: &[f32]| {
            Importance::new(3, None).push_layer(kv_heads, accumulated, recent).unwrap_err().to_string()
        };
        assert!(refused(2, &[0.0; 9], &[0.0; 9]).contains("multiple"));
        assert!(refused(1, &[0.0; 3], &[0.0; 4]).contains("4 attention sums for 3 tokens"));
        assert!(refused(0, &[0.0; 3], &[0.0; 3]).contains("0 KV heads"));
        assert!(refused(1, &[], &[]).contains("0 attention sums"));
        assert!(refused(1, &[0.0, 0.0, 0.0, -1.0, 0.0, 0.0], &[0.0; 6]).contains("query head 1, token 0"));
        assert!(refused(1, &[0.0; 3], &[0.0, f32::NAN, 0.0]).contains("NaN at query head 0, token 1"));
        assert!(Importance::new(0, None).push_layer(2, &[], &[]).is_ok());
        let mut large = Importance::new(1, None);
        large.push_layer(1, &[f32::MAX; 4], &[0.0; 4]).unwrap();
        assert_eq!(large.accumulated(0, 0), [f32::MAX]);
    }
}

//! Looking on while the model attends.

use std::sync::Mutex;

use super::Hyper;

/// Sees every attention weight. Called from several threads, but for one step, layer and KV head in order of queries.
pub trait Observer: Sync {
    /// Some queries of one KV head's group have attended.
    fn attention(&self, block: &AttentionBlock<'_>);

    /// A layer's attention was added to the residual stream, which is now `rows`, `[tokens, hidden]`, all steps' tokens
    /// one after the other.
    fn residual(&self, layer: usize, rows: &[f32]) {
        let _ = (layer, rows);
    }

    /// Before that, if a norm is behind a layer's attention (Gemma 3): what it multiplied each token's row by, besides its
    /// weights: one over the root mean square. All steps' tokens one after the other.
    fn normed(&self, layer: usize, scales: &[f32]) {
        let _ = (layer, scales);
    }
}

/// Consecutive query tokens of one KV head's query heads, and what they attended to.
///
/// A row is a (query token, query head of the group): row `t * group + g`.
#[derive(Debug, Clone, Copy)]
pub struct AttentionBlock<'a> {
    /// Which of the sequences that ran together.
    pub step: usize,
    /// The layer.
    pub layer: usize,
    /// The KV head; its query heads are `kv_head * group .. (kv_head + 1) * group`.
    pub kv_head: usize,
    /// Query heads per KV head.
    pub group: usize,
    /// Index in the cache of the first query's token.
    pub first: usize,
    /// Position of the first query's token; the others follow.
    pub position: u64,
    /// Tokens in the cache when the step is done.
    pub tokens: usize,
    /// After RoPE, `[rows, head_dim]`, times `1 / sqrt(head_dim)`.
    pub scaled_queries: &'a [f32],
    /// Sums to 1 in each row; `[rows, stride]`, of which each row holds its cached tokens (zeros for those
    /// outside of the layer's window) and then zeros.
    pub weights: &'a [f32],
    /// Length of a row of `weights`.
    pub stride: usize,
    /// What attention gave, `[rows, head_dim]`.
    pub outputs: &'a [f32],
}

/// Attention statistics, by which codecs guess which tokens matter.
#[derive(Debug)]
pub struct AttentionSums {
    heads: usize,
    head_dim: usize,
    tokens: usize,
    recent: usize,
    layers: Vec<Mutex<LayerAttention>>,
}

/// Of one layer.
#[derive(Debug, Clone, Default)]
pub struct LayerAttention {
    /// Weight that each token got from all queries so far, `[query_heads, tokens]`.
    pub accumulated: Vec<f32>,
    /// The same from the last queries only, `[query_heads, tokens]`.
    pub recent: Vec<f32>,
    /// The last queries, after RoPE, oldest first, `[query_heads, recent, head_dim]`.
    pub queries: Vec<f32>,
}

impl AttentionSums {
    /// For a context of `tokens` tokens; at the end the last `recent` queries (or all, if fewer) count as recent.
    pub fn new(hyper: &Hyper, tokens: usize, recent: usize) -> Self {
        let (heads, head_dim, recent) = (hyper.heads, hyper.head_dim, recent.min(tokens));
        let layer = || LayerAttention {
            accumulated: vec![0.0; heads * tokens],
            recent: vec![0.0; heads * tokens],
            queries: vec![0.0; heads * recent * head_dim],
        };
        let layers = (0..hyper.layers).map(|_| Mutex::new(layer())).collect();
        Self { heads, head_dim, tokens, recent, layers }
    }

    /// Tokens that statistics are kept of.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// How many queries count as recent.
    pub fn recent(&self) -> usize {
        self.recent
    }

    /// Query heads.
    pub fn heads(&self) -> usize {
        self.heads
    }

    /// The layers' statistics.
    pub fn into_layers(self) -> Vec<LayerAttention> {
        let inner = |layer: Mutex<_>| layer.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        self.layers.into_iter().map(inner).collect()
    }
}

impl Observer for AttentionSums {
    fn attention(&self, block: &AttentionBlock<'_>) {
        let mut layer = self.layers[block.layer].lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let layer = &mut *layer;
        let unscale = (self.head_dim as f32).sqrt();
        let rows =
            block.weights.chunks_exact(block.stride).zip(block.scaled_queries.chunks_exact(self.head_dim));
        for (row, (weights, query)) in rows.enumerate() {
            let index = block.first + row / block.group;
            if index >= self.tokens {
                break;
            }
            let head = block.kv_head * block.group + row % block.group;
            let seen = index + 1;
            let place = head * self.tokens..head * self.tokens + seen;
            add(&mut layer.accumulated[place.clone()], &weights[..seen]);
            let Some(late) = (index + self.recent).checked_sub(self.tokens) else { continue };
            add(&mut layer.recent[place], &weights[..seen]);
            let at = (head * self.recent + late) * self.head_dim;
            for (out, q) in layer.queries[at..at + self.head_dim].iter_mut().zip(query) {
                *out = q * unscale;
            }
        }
    }
}

fn add(sums: &mut [f32], values: &[f32]) {
    sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
}

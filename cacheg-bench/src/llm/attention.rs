//! Attention of new tokens to a KV cache that already holds them.

use cacheg::core::{Dtype, Kind};
use rayon::prelude::*;

use super::exp::exp_minus_max;
use super::matmul::matmul;
use super::{AttentionBlock, KvState, Observer};

/// Query tokens of one task: with a few query heads each, the left side of a product big enough to be fast.
const QUERIES: usize = 32;

/// Cached tokens that are widened at a time: 64 KiB of a head of 64 channels. Blocks lie at multiples of this in the
/// cache, so that a query adds its products up in the same order wherever its chunk begins.
const KEYS: usize = 256;

/// The new tokens of one sequence in one layer.
pub(super) struct Attend<'a> {
    pub(super) step: usize,
    pub(super) layer: usize,
    /// Holds the new tokens' keys and values already, at the end.
    pub(super) kv: &'a KvState,
    /// Tokens in the cache, the new ones included ([`KvState::tokens`] does not count those yet).
    pub(super) tokens: usize,
    /// Tokens that a query sees, its own included; all before it, if nothing.
    pub(super) window: Option<usize>,
    /// Query heads per KV head.
    pub(super) group: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    /// After RoPE: `[new tokens, query heads, head_dim]`.
    pub(super) queries: &'a [f32],
}

/// A task: some queries of one KV head's group.
#[derive(Clone, Copy)]
struct Task {
    kv_head: usize,
    /// Among the new tokens.
    first: usize,
    count: usize,
}

impl Attend<'_> {
    /// Attends; the result is `[new tokens, query heads, head_dim]`.
    pub(super) fn run(&self, observer: Option<&dyn Observer>) -> Vec<f32> {
        let width = self.kv_heads * self.group * self.head_dim;
        let new = self.queries.len() / width;
        let tasks: Vec<Vec<Task>> = (0..self.kv_heads)
            .map(|kv_head| {
                let starts = (0..new).step_by(QUERIES);
                starts.map(|first| Task { kv_head, first, count: QUERIES.min(new - first) }).collect()
            })
            .collect();
        // An observer is promised the queries of a head in order.
        let done: Vec<(Task, Vec<f32>)> = match observer {
            None => tasks.into_par_iter().flatten().map(|task| (task, self.task(task, None))).collect(),
            Some(_) => {
                let head = |tasks: Vec<Task>| -> Vec<_> {
                    tasks.into_iter().map(|task| (task, self.task(task, observer))).collect()
                };
                tasks.into_par_iter().map(head).flatten().collect()
            }
        };
        let mut out = vec![0.0; self.queries.len()];
        let row = self.group * self.head_dim;
        for (task, outputs) in done {
            for (token, values) in outputs.chunks_exact(row).take(task.count).enumerate() {
                out[(task.first + token) * width + task.kv_head * row..][..row].copy_from_slice(values);
            }
        }
        out
    }

    /// `[count, group, head_dim]`, and possibly a row of nothing behind.
    fn task(&self, task: Task, observer: Option<&dyn Observer>) -> Vec<f32> {
        let (dim, group, row) = (self.head_dim, self.group, self.group * self.head_dim);
        let rows = task.count * group;
        // A product of a single row would be added up in another order; see `Linear`.
        let padded = rows.max(2);
        let mut queries = vec![0.0; padded * dim];
        let scale = 1.0 / (dim as f32).sqrt();
        for (token, scaled) in queries.chunks_exact_mut(row).take(task.count).enumerate() {
            let from = ((task.first + token) * self.kv_heads + task.kv_head) * row;
            scaled.iter_mut().zip(&self.queries[from..from + row]).for_each(|(s, q)| *s = q * scale);
        }
        let new = self.queries.len() / (self.kv_heads * row);
        // Index in the cache of the first query's token: the newest that it sees.
        let newest = self.tokens - new + task.first;
        let seen = newest + task.count;
        let position = self.kv.next_position() + task.first as u64;
        // Where a query's window begins in the cache; a row of nothing looks like the last one.
        let oldest = |token: usize| {
            let position = position + token.min(task.count - 1) as u64;
            self.window.map_or(0, |window| self.kv.first_within(self.layer, task.kv_head, position, window))
        };
        // Blocks that nobody sees are left out. They would add zeros: nothing depends on who else is in the task.
        let begin = oldest(0) / KEYS * KEYS;
        let stride = seen.next_multiple_of(KEYS);
        let mut scores = vec![0.0; padded * stride];
        let (mut block, mut turned) = (vec![0.0; KEYS * dim], vec![0.0; KEYS * dim]);
        let mut part = vec![0.0; padded * KEYS];
        let keys = self.kv.head(self.layer, Kind::Key, task.kv_head);
        let dtype = self.dtype(Kind::Key);
        for first in (begin..seen).step_by(KEYS) {
            widen(dtype, keys, first..seen.min(first + KEYS), dim, &mut block);
            // Turned, as `gemm` has a path of its own, and another order of adding up, for few rows otherwise.
            for (token, key) in block.chunks_exact(dim).enumerate() {
                for (channel, value) in key.iter().enumerate() {
                    turned[channel * KEYS + token] = *value;
                }
            }
            matmul(&mut part, false, &queries, &turned, (padded, dim, KEYS));
            for (scores, part) in scores.chunks_exact_mut(stride).zip(part.chunks_exact(KEYS)) {
                scores[first..first + KEYS].copy_from_slice(part);
            }
        }
        let mut inverse = Vec::with_capacity(padded);
        for (index, scores) in scores.chunks_exact_mut(stride).enumerate() {
            let token = index / group;
            scores[(newest + token + 1).min(seen)..].fill(f32::NEG_INFINITY);
            scores[begin..oldest(token)].fill(f32::NEG_INFINITY);
            inverse.push(1.0 / exp_minus_max(&mut scores[begin..]));
        }
        let mut out = vec![0.0; padded * dim];
        let values = self.kv.head(self.layer, Kind::Value, task.kv_head);
        let dtype = self.dtype(Kind::Value);
        for first in (begin..seen).step_by(KEYS) {
            widen(dtype, values, first..seen.min(first + KEYS), dim, &mut block);
            for (scores, part) in scores.chunks_exact(stride).zip(part.chunks_exact_mut(KEYS)) {
                part.copy_from_slice(&scores[first..first + KEYS]);
            }
            matmul(&mut out, first > begin, &part, &block, (padded, KEYS, dim));
        }
        for (out, inverse) in out.chunks_exact_mut(dim).zip(&inverse) {
            out.iter_mut().for_each(|x| *x *= inverse);
        }
        if let Some(observer) = observer {
            for (scores, inverse) in scores.chunks_exact_mut(stride).zip(&inverse) {
                scores.iter_mut().for_each(|x| *x *= inverse);
            }
            observer.attention(&AttentionBlock {
                step: self.step,
                layer: self.layer,
                kv_head: task.kv_head,
                group,
                first: newest,
                position,
                tokens: self.tokens,
                scaled_queries: &queries[..rows * dim],
                weights: &scores[..rows * stride],
                stride,
                outputs: &out[..rows * dim],
            });
        }
        out
    }

    fn dtype(&self, kind: Kind) -> Dtype {
        self.kv.dtype(self.layer, kind)
    }
}

/// Rows `tokens` of a head as f32, zeros behind them.
fn widen(dtype: Dtype, bytes: &[u8], tokens: std::ops::Range<usize>, dim: usize, out: &mut [f32]) {
    let row = dim * dtype.size();
    let (some, rest) = out.split_at_mut(tokens.len() * dim);
    dtype.widen(&bytes[tokens.start * row..tokens.end * row], some);
    rest.fill(0.0);
}

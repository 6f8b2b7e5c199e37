//! Sums for the regression of a token's importance on what is cached of it.

use cacheg::core::Sums;
use rayon::prelude::*;

use super::Cached;
use crate::llm::matmul::{Matrix, product};

/// Added to squared norms and to mean squared attention before the logarithm.
const FLOOR: f64 = 1e-12;

/// Features before the key's channels.
const FIRST: usize = 4;

/// Adds all tokens but the first `sinks`. `attention` has by layer and KV head the mean squared attention weight that each
/// token got from the continuation.
pub(super) fn add(
    layers: &mut [Sums],
    cached: &Cached,
    attention: &[Vec<Vec<f64>>],
    sinks: usize,
    dim: usize,
) {
    layers.par_iter_mut().zip(attention).enumerate().for_each(|(layer, (sums, heads))| {
        for (head, attention) in heads.iter().enumerate() {
            let features = FIRST + dim;
            let mut rows = Vec::with_capacity((cached.tokens - sinks) * (features + 1));
            for (token, attention) in attention.iter().enumerate().take(cached.tokens).skip(sinks) {
                let at = (token * heads.len() + head) * dim;
                let key = cached.keys[layer][at..at + dim].iter().map(|x| f64::from(*x));
                let log_norm = |values: &[f32]| {
                    (values.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>() + FLOOR).ln()
                };
                let distance = (cached.tokens - token) as f64;
                let norms = [&cached.keys, &cached.values].map(|rows| log_norm(&rows[layer][at..at + dim]));
                rows.extend([1.0, norms[0], norms[1], distance.ln()]);
                rows.extend(key);
                rows.push((attention + FLOOR).ln());
            }
            let rows = Matrix::dense(&rows, features + 1);
            let (x, y) = (rows.columns(0, features), rows.columns(features, 1));
            let square = features * features;
            product(&mut sums.get_mut("importance.xx")[head * square..][..square], true, x.turned(), x);
            product(&mut sums.get_mut("importance.xy")[head * features..][..features], true, x.turned(), y);
            product(&mut sums.get_mut("importance.yy")[head..=head], true, y.turned(), y);
        }
    });
}

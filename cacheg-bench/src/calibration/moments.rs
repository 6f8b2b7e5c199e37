//! Sums and second moments of cached rows, and of rows with those of earlier layers.

use cacheg::core::Sums;
use rayon::prelude::*;

use super::Cached;
use crate::llm::matmul::{Matrix, product};

/// Tokens that are widened at a time: 23 MB for 11,520 channels.
const BLOCK: usize = 256;

/// Adds all tokens but the first `sinks`.
pub(super) fn add(layers: &mut [Sums], cached: &Cached, sinks: usize) {
    for first in (sinks..cached.tokens).step_by(BLOCK) {
        let tokens = BLOCK.min(cached.tokens - first);
        let rows: Vec<Rows> =
            (0..layers.len()).map(|layer| Rows::new(cached, layer, first, tokens)).collect();
        layers.par_iter_mut().enumerate().for_each(|(layer, sums)| {
            let row = &rows[layer];
            let (key, value) =
                (row.matrix().columns(0, row.keys), row.matrix().columns(row.keys, row.width - row.keys));
            add_columns(sums.get_mut("key.sum"), row, 0);
            add_columns(sums.get_mut("value.sum"), row, row.keys);
            product(sums.get_mut("key.moment"), true, key.turned(), key);
            product(sums.get_mut("value.moment"), true, value.turned(), value);
            product(sums.get_mut("value_key"), true, value.turned(), key);
            for back in 1..=layer {
                let sum = sums.get_mut(&format!("back.{back}"));
                if sum.is_empty() {
                    break;
                }
                product(sum, true, row.matrix().turned(), rows[layer - back].matrix());
            }
        });
    }
}

/// Rows of a layer, keys and values side by side.
struct Rows {
    keys: usize,
    width: usize,
    values: Vec<f64>,
}

impl Rows {
    fn new(cached: &Cached, layer: usize, first: usize, tokens: usize) -> Self {
        let (keys, values) = (&cached.keys[layer], &cached.values[layer]);
        let [of_keys, of_values] = [keys, values].map(|rows| rows.len() / cached.tokens);
        let width = of_keys + of_values;
        let mut out = Vec::with_capacity(tokens * width);
        for token in first..first + tokens {
            out.extend(keys[token * of_keys..][..of_keys].iter().map(|x| f64::from(*x)));
            out.extend(values[token * of_values..][..of_values].iter().map(|x| f64::from(*x)));
        }
        Self { keys: of_keys, width, values: out }
    }

    fn matrix(&self) -> Matrix<'_, f64> {
        Matrix::dense(&self.values, self.width)
    }
}

fn add_columns(sums: &mut [f64], rows: &Rows, first: usize) {
    for row in rows.values.chunks_exact(rows.width) {
        sums.iter_mut().zip(&row[first..]).for_each(|(sum, x)| *sum += x);
    }
}

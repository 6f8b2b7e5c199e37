//! What errors of cached rows cost, by Gauss-Newton from a forward pass: `FORMAT.md`, section 8.3.

use std::sync::{Mutex, PoisonError};

use cacheg::core::Sums;
use cacheg::{Error, Result};

use super::Cached;
use super::queries::Products;
use crate::llm::matmul::{Matrix, product};
use crate::llm::{AttentionBlock, Model, Observer};

/// Cached tokens whose sums of products are in hand at a time: 540 kB for heads of 64 channels.
const TOGETHER: usize = 64;

/// What attention's outputs do to the residual stream: `WᵀW` of every query head's part of the output projection, with
/// the weights of a norm behind it.
pub(super) struct Outputs {
    dim: usize,
    /// By layer: `[query heads, dim, dim]`.
    grams: Vec<Vec<f64>>,
}

impl Outputs {
    pub(super) fn new(model: &Model) -> Result<Self> {
        let dim = model.hyper().head_dim;
        let heads = model.hyper().heads;
        let mut grams = Vec::new();
        for layer in 0..model.hyper().layers {
            let weights =
                model.attention_output(layer)?.contiguous().and_then(|w| w.flatten_all()?.to_vec1::<f32>());
            let weights = weights.map_err(|e| Error::data(e.to_string()))?;
            let weights: Vec<f64> = weights.into_iter().map(f64::from).collect();
            let weights = Matrix::dense(&weights, heads * dim);
            let mut gram = vec![0.0; heads * dim * dim];
            for (head, gram) in gram.chunks_exact_mut(dim * dim).enumerate() {
                let part = weights.columns(head * dim, dim);
                product(gram, false, part.turned(), part);
            }
            grams.push(gram);
        }
        Ok(Self { dim, grams })
    }
}

/// Looks on while the continuation of one context is read.
pub(super) struct Sensitivity<'a> {
    outputs: &'a Outputs,
    tokens: usize,
    sinks: usize,
    group: usize,
    hidden: usize,
    /// By layer, as layers may rotate differently.
    products: Vec<Products>,
    /// By layer and KV head.
    heads: Vec<Vec<Mutex<Head>>>,
    /// By layer: mean squares of the residual stream, summed over tokens.
    residual: Vec<Mutex<f64>>,
    /// By layer: squares of what norms behind the output projection multiplied rows by, and how many rows.
    normed: Vec<Mutex<(f64, usize)>>,
}

/// One KV head of one layer.
struct Head {
    /// Cached values, `[tokens, dim]`.
    values: Vec<f32>,
    /// By query head of the group: `WᵀW`, and `vᵀWᵀW v` of every cached token.
    grams: Vec<Vec<f32>>,
    energies: Vec<Vec<f32>>,
    /// By query head of the group: squared attention weights of every cached token, summed over queries.
    squares: Vec<Vec<f64>>,
    /// Weighted sums of products of queries' channels: of sinks, of the others.
    queries: [Vec<f64>; 2],
}

impl<'a> Sensitivity<'a> {
    pub(super) fn new(model: &Model, outputs: &'a Outputs, cached: &Cached, sinks: usize) -> Self {
        let hyper = model.hyper();
        let (dim, kv_heads, group, tokens) = (hyper.head_dim, hyper.kv_heads, hyper.group(), cached.tokens);
        let products: Vec<Products> =
            (0..hyper.layers).map(|layer| Products::new(hyper.rope_of(layer), dim, tokens)).collect();
        let head = |layer: usize, head: usize| {
            let rows = cached.values[layer].chunks_exact(kv_heads * dim);
            let values: Vec<f32> = rows.flat_map(|row| &row[head * dim..][..dim]).copied().collect();
            let of_query = |query: usize| -> (Vec<f32>, Vec<f32>) {
                let gram = outputs.grams[layer][(head * group + query) * dim * dim..][..dim * dim].iter();
                let gram: Vec<f32> = gram.map(|x| *x as f32).collect();
                let mut moved = vec![0.0; values.len()];
                product(&mut moved, false, Matrix::dense(&values, dim), Matrix::dense(&gram, dim));
                let energies = moved.chunks_exact(dim).zip(values.chunks_exact(dim)).map(|(a, b)| dot(a, b));
                let energies = energies.collect();
                (gram, energies)
            };
            let (grams, energies) = (0..group).map(of_query).unzip();
            let sums = || vec![0.0; products[layer].len()];
            Mutex::new(Head {
                values,
                grams,
                energies,
                squares: vec![vec![0.0; tokens]; group],
                queries: [sums(), sums()],
            })
        };
        let heads = (0..hyper.layers).map(|layer| (0..kv_heads).map(|h| head(layer, h)).collect()).collect();
        let residual = (0..hyper.layers).map(|_| Mutex::new(0.0)).collect();
        let normed = (0..hyper.layers).map(|_| Mutex::new((0.0, 0))).collect();
        Self { outputs, tokens, sinks, group, hidden: hyper.hidden, products, heads, residual, normed }
    }

    /// Adds everything to the sums. The result is, by layer and KV head, the mean squared attention weight of every cached
    /// token.
    pub(super) fn finish(self, layers: &mut [Sums], continuation: usize) -> Vec<Vec<Vec<f64>>> {
        let dim = self.outputs.dim;
        let square = dim * dim;
        let mut attention = Vec::new();
        for (layer, ((sums, heads), residual)) in
            layers.iter_mut().zip(self.heads).zip(self.residual).enumerate()
        {
            sums.residual += residual.into_inner().unwrap_or_else(PoisonError::into_inner);
            let (squares, rows) = *self.normed[layer].lock().unwrap_or_else(PoisonError::into_inner);
            let scale = if rows > 0 { squares / rows as f64 } else { 1.0 };
            let mut of_layer = Vec::new();
            for (index, head) in heads.into_iter().enumerate() {
                let mut head = head.into_inner().unwrap_or_else(PoisonError::into_inner);
                head.queries.iter_mut().flatten().for_each(|sum| *sum *= scale);
                let place = index * square..(index + 1) * square;
                for (name, queries) in ["sink_sensitivity", "sensitivity"].into_iter().zip(&head.queries) {
                    self.products[layer]
                        .add_matrix(queries, &mut sums.get_mut(&format!("key.{name}"))[place.clone()]);
                }
                for (query, squares) in head.squares.iter().enumerate() {
                    let gram = &self.outputs.grams[layer][(index * self.group + query) * square..][..square];
                    let (sinks, others) = squares.split_at(self.sinks);
                    for (name, squares) in [("sink_sensitivity", sinks), ("sensitivity", others)] {
                        let weight = scale * squares.iter().sum::<f64>();
                        let out = &mut sums.get_mut(&format!("value.{name}"))[place.clone()];
                        out.iter_mut().zip(gram).for_each(|(sum, x)| *sum += weight * x);
                    }
                }
                let queries = (continuation * self.group) as f64;
                let mean = |token: usize| head.squares.iter().map(|of| of[token]).sum::<f64>() / queries;
                of_layer.push((0..self.tokens).map(mean).collect());
            }
            attention.push(of_layer);
        }
        attention
    }
}

impl Observer for Sensitivity<'_> {
    fn attention(&self, block: &AttentionBlock<'_>) {
        let mut head = self.heads[block.layer][block.kv_head].lock().unwrap_or_else(PoisonError::into_inner);
        let weights = head.weights(block, self.tokens);
        let of_channels = &self.products[block.layer];
        let (dim, len) = (self.outputs.dim, of_channels.len());
        let queries = block.scaled_queries.chunks_exact(dim);
        let mut products = vec![0.0; queries.len() * len];
        products.chunks_exact_mut(len).zip(queries).for_each(|(out, query)| of_channels.of(query, out));
        let products = Matrix::dense(&products, len);
        let weights = Matrix::dense(&weights, self.tokens);
        let mut sums = vec![0.0; TOGETHER.min(self.tokens) * len];
        for first in (0..self.tokens).step_by(TOGETHER) {
            let tokens = TOGETHER.min(self.tokens - first);
            let sums = &mut sums[..tokens * len];
            product(sums, false, weights.columns(first, tokens).turned(), products);
            for (token, sums) in (first..).zip(sums.chunks_exact(len)) {
                of_channels.add_turned(token, sums, &mut head.queries[usize::from(token >= self.sinks)]);
            }
        }
    }

    fn residual(&self, layer: usize, rows: &[f32]) {
        let mut sum = self.residual[layer].lock().unwrap_or_else(PoisonError::into_inner);
        let squares: f64 = rows.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
        *sum += squares / self.hidden as f64;
    }

    /// A norm divides by what the projection gave: taken as a constant, the mean over the continuation. That it also takes
    /// away the part of an error along the row is left out.
    fn normed(&self, layer: usize, scales: &[f32]) {
        let mut sums = self.normed[layer].lock().unwrap_or_else(PoisonError::into_inner);
        sums.0 += scales.iter().map(|scale| f64::from(*scale) * f64::from(*scale)).sum::<f64>();
        sums.1 += scales.len();
    }
}

impl Head {
    /// `a² |W (v − o)|²` of every query and cached token of the context, `[rows, tokens]`; notes `a²` on the way.
    fn weights(&mut self, block: &AttentionBlock<'_>, tokens: usize) -> Vec<f32> {
        let (group, dim) = (block.group, self.values.len() / tokens);
        let rows = block.outputs.len() / dim;
        let values = Matrix::dense(&self.values, dim);
        let outputs = Matrix::dense(block.outputs, group * dim);
        let mut weights = vec![0.0; rows * tokens];
        let mut moved = vec![0.0; rows / group * dim];
        let mut cross = vec![0.0; rows / group * tokens];
        for query in 0..group {
            product(
                &mut moved,
                false,
                outputs.columns(query * dim, dim),
                Matrix::dense(&self.grams[query], dim),
            );
            product(&mut cross, false, Matrix::dense(&moved, dim), values.turned());
            let squares = &mut self.squares[query];
            for (index, (moved, cross)) in moved.chunks_exact(dim).zip(cross.chunks_exact(tokens)).enumerate()
            {
                let row = index * group + query;
                let own = dot(moved, &block.outputs[row * dim..][..dim]);
                let attention = &block.weights[row * block.stride..][..tokens];
                let out = &mut weights[row * tokens..][..tokens];
                for token in 0..tokens {
                    let square = attention[token] * attention[token];
                    squares[token] += f64::from(square);
                    // A sum of squares, which rounding may take below 0.
                    let distance = (self.energies[query][token] - 2.0 * cross[token] + own).max(0.0);
                    out[token] = square * distance;
                }
            }
        }
        weights
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

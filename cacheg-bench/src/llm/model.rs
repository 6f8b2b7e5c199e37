//! The forward pass.

use std::path::Path;

use cacheg::core::{Kind, ResultExt};
use cacheg::{Error, Geometry, KvView, Result};
use candle_core::{Device, Tensor};
use rayon::prelude::*;

use super::attention::Attend;
use super::candle::computing;
use super::linear::Linear;
use super::ops::{Activation, gated, rms_norm, rms_norm_row, rms_scale};
use super::rope::Rotation;
use super::weights::{self, Part, Weights};
use super::{Block, Hyper, KvState, Observer};

/// Called with what is done and what there is to do.
pub type Progress<'a> = &'a dyn Fn(usize, usize);

/// Tokens that run at a time: enough for full speed, and activations stay small.
const CHUNK: usize = 512;

/// A Llama-type model or a Gemma 3 in memory, its weights in f32.
pub struct Model {
    hyper: Hyper,
    geometry: Geometry,
    types: Vec<(String, usize)>,
    /// `[vocabulary, hidden]`.
    embedding: Tensor,
    layers: Vec<Layer>,
    norm: Tensor,
    /// The embedding again, or a matrix of its own.
    output: Linear,
}

struct Layer {
    attention_norm: Tensor,
    /// Queries, keys, values side by side.
    qkv: Linear,
    attention_output: Linear,
    feed_forward_norm: Tensor,
    gate_up: Linear,
    down: Linear,
    more: Option<MoreNorms>,
}

/// Norms that only Gemma 3 has.
struct MoreNorms {
    /// Of a head, `[head_dim]`.
    query: Vec<f32>,
    key: Vec<f32>,
    /// Behind the output projections, `[hidden]`.
    attention: Tensor,
    feed_forward: Tensor,
}

/// One of several sequences that run together: its next tokens, and the cache that they see and extend.
#[derive(Debug)]
pub struct Step<'a> {
    /// The tokens.
    pub tokens: &'a [u32],
    /// The cache.
    pub kv: &'a mut KvState,
}

impl Model {
    /// Loads a GGUF file or a folder with `config.json` and safetensors files. `progress` counts layers.
    ///
    /// # Errors
    /// If files are missing, cut off or damaged, or need an architecture or quantisation that is not supported.
    pub fn open(path: &Path, progress: Progress<'_>) -> Result<Self> {
        let mut weights = weights::open(path)?;
        Self::build(&mut *weights, progress).at(|| path.display())
    }

    /// Reads the hyper-parameters and the element types of the tensors (with their number) only.
    ///
    /// # Errors
    /// As [`Model::open`].
    pub fn describe(path: &Path) -> Result<(Hyper, Vec<(String, usize)>)> {
        let weights = weights::open(path)?;
        Ok((weights.hyper().at(|| path.display())?, weights.types()))
    }

    fn build(weights: &mut dyn Weights, progress: Progress<'_>) -> Result<Self> {
        let hyper = weights.hyper()?;
        let types = weights.types();
        let Hyper { vocabulary, hidden, .. } = hyper;
        let embedding = weights::required(weights, &hyper, None, Part::Embedding, &[vocabulary, hidden])?;
        let norm = weights::required(weights, &hyper, None, Part::OutputNorm, &[hidden])?;
        let name = weights::Name { layer: None, part: Part::Output, bias: false };
        let output = weights.take(&name, &hyper)?;
        let output = match output {
            Some(output) => weights::check(&name, &output, &[vocabulary, hidden])?,
            None => embedding.clone(),
        };
        let output = Linear::new(&[output], &[None])?;
        let mut layers = Vec::new();
        for layer in 0..hyper.layers {
            progress(layer, hyper.layers);
            layers.push(Layer::load(weights, &hyper, layer)?);
        }
        progress(hyper.layers, hyper.layers);
        // A tensor that nobody asked for does something that this forward pass does not do.
        if let Some(name) = weights.left().first() {
            return Err(Error::unsupported(format!(
                "the tensor `{name}`; this is not quite a model of architecture `{}`",
                hyper.architecture
            )));
        }
        let geometry = hyper.geometry()?;
        Ok(Self { geometry, hyper, types, embedding, layers, norm, output })
    }

    /// The hyper-parameters.
    pub fn hyper(&self) -> &Hyper {
        &self.hyper
    }

    /// The KV cache that the model writes.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Element types of the file's tensors and how many have them.
    pub fn types(&self) -> &[(String, usize)] {
        &self.types
    }

    /// A KV cache for the model to read on from; element types may differ from the model's.
    ///
    /// # Errors
    /// If it is a KV cache of another model, as far as shapes and RoPE tell.
    pub fn state_of(&self, view: &KvView<'_>) -> Result<KvState> {
        self.check_view(view)?;
        Ok(KvState::of(view))
    }

    /// Refuses KV caches of other models, as far as shapes and RoPE tell.
    pub(super) fn check_view(&self, view: &KvView<'_>) -> Result<()> {
        let (ours, theirs) = (self.geometry.planes(), view.planes());
        if ours.len() != theirs.len() {
            let layers = (view.geometry().layers(), self.geometry.layers());
            return Err(Error::data(format!(
                "a KV cache of another model: {} planes in {} layers; this model has {} in {}",
                theirs.len(),
                layers.0,
                ours.len(),
                layers.1
            )));
        }
        for (our, their) in ours.iter().zip(theirs) {
            let shape = |plane: &cacheg::core::Plane| (plane.kind, plane.shape.heads, plane.shape.head_dim);
            if shape(our) != shape(their) {
                return Err(Error::data(format!(
                    "a KV cache of another model: {} heads of {} channels; this model has {} of {}",
                    their.shape.heads, their.shape.head_dim, our.shape.heads, our.shape.head_dim
                ))
                .at(our.name()));
            }
            if our.rope != their.rope {
                return Err(Error::data(format!(
                    "a KV cache with another RoPE: {:?}; this model has {:?}",
                    their.rope, our.rope
                ))
                .at(our.name()));
            }
        }
        Ok(())
    }

    /// Runs one sequence's next tokens, whose keys and values are appended to `kv`. The result is what the last layer
    /// leaves, after the final norm: `[tokens, hidden]`; [`logits`](Self::logits) makes predictions of it.
    ///
    /// # Errors
    /// If a token is not in the vocabulary, or `kv` is of another model.
    pub fn forward(&self, tokens: &[u32], kv: &mut KvState) -> Result<Tensor> {
        let mut hidden = self.forward_steps(&mut [Step { tokens, kv }], None)?;
        hidden.pop().ok_or_else(|| Error::data("no sequence"))
    }

    /// Runs a long text in pieces; only the last token's row is kept, `[1, hidden]`. `progress` counts tokens.
    ///
    /// # Errors
    /// As [`Model::forward`]; if there are no tokens.
    pub fn prefill(
        &self,
        tokens: &[u32],
        kv: &mut KvState,
        observer: Option<&dyn Observer>,
        progress: Progress<'_>,
    ) -> Result<Tensor> {
        let mut last = None;
        for (index, piece) in tokens.chunks(CHUNK).enumerate() {
            progress(index * CHUNK, tokens.len());
            let mut rows = self.forward_steps(&mut [Step { tokens: piece, kv: &mut *kv }], observer)?;
            last = rows.pop();
        }
        progress(tokens.len(), tokens.len());
        let rows = last.ok_or_else(|| Error::data("no tokens"))?;
        rows.narrow(0, rows.dim(0).map_err(computing)? - 1, 1).map_err(computing)
    }

    /// Runs several sequences together, each as [`forward`](Self::forward) would, bit for bit, but reading the weights
    /// once. An observer sees all attention.
    ///
    /// # Errors
    /// As [`Model::forward`].
    pub fn forward_steps(
        &self,
        steps: &mut [Step<'_>],
        observer: Option<&dyn Observer>,
    ) -> Result<Vec<Tensor>> {
        for step in steps.iter() {
            self.check(step)?;
        }
        let rows: Vec<usize> = steps.iter().map(|step| step.tokens.len()).collect();
        let ids: Vec<u32> = steps.iter().flat_map(|step| step.tokens.iter().copied()).collect();
        if ids.is_empty() {
            return Err(Error::data("no tokens"));
        }
        let rotations: Vec<Rotations> = steps.iter().map(|step| Rotations::of(&self.hyper, step)).collect();
        let (scale, activation) = match self.hyper.block {
            Block::Llama => (None, Activation::Silu),
            Block::Gemma3 => (Some((self.hyper.hidden as f64).sqrt()), Activation::Gelu),
        };
        let run = || -> candle_core::Result<Vec<Tensor>> {
            let ids = Tensor::new(ids, &Device::Cpu)?;
            let mut x = self.embedding.index_select(&ids, 0)?;
            if let Some(scale) = scale {
                x = (x * scale)?;
            }
            let epsilon = self.hyper.norm_epsilon as f32;
            for (index, layer) in self.layers.iter().enumerate() {
                let attended = self.attend(index, layer, &x, steps, &rotations, observer)?;
                let mut attended = layer.attention_output.forward(&attended)?;
                if let Some(more) = &layer.more {
                    if let Some(observer) = observer {
                        let rows = attended.to_vec2::<f32>()?;
                        let scales: Vec<f32> = rows.iter().map(|row| rms_scale(row, epsilon)).collect();
                        observer.normed(index, &scales);
                    }
                    attended = rms_norm(&attended, &more.attention, epsilon)?;
                }
                x = (x + attended)?;
                if let Some(observer) = observer {
                    observer.residual(index, &x.flatten_all()?.to_vec1::<f32>()?);
                }
                let inner = rms_norm(&x, &layer.feed_forward_norm, epsilon)?;
                let mut inner = layer.down.forward(&gated(&layer.gate_up.forward(&inner)?, activation)?)?;
                if let Some(more) = &layer.more {
                    inner = rms_norm(&inner, &more.feed_forward, epsilon)?;
                }
                x = (x + inner)?;
            }
            let x = rms_norm(&x, &self.norm, epsilon)?;
            let mut first = 0;
            let mut hidden = Vec::new();
            for rows in &rows {
                hidden.push(x.narrow(0, first, *rows)?);
                first += rows;
            }
            Ok(hidden)
        };
        let hidden = run().map_err(computing)?;
        for (step, rows) in steps.iter_mut().zip(rows) {
            step.kv.advance(rows);
        }
        Ok(hidden)
    }

    fn check(&self, step: &Step<'_>) -> Result<()> {
        if let Some(token) = step.tokens.iter().find(|token| **token as usize >= self.hyper.vocabulary) {
            return Err(Error::data(format!("token {token}; the vocabulary has {}", self.hyper.vocabulary)));
        }
        if step.kv.geometry() != &self.geometry {
            // The rare case: other element types, or a state that never went through `state_of`.
            let shapes = |geometry: &Geometry| {
                let planes = geometry.planes().into_iter();
                planes.map(|p| (p.kind, p.shape.heads, p.shape.head_dim)).collect::<Vec<_>>()
            };
            if shapes(step.kv.geometry()) != shapes(&self.geometry) {
                return Err(Error::data("a KV cache of another model"));
            }
        }
        Ok(())
    }

    /// Attention of one layer: keys and values go to the caches, the result is `[rows, heads * head_dim]`.
    fn attend(
        &self,
        index: usize,
        layer: &Layer,
        x: &Tensor,
        steps: &mut [Step<'_>],
        rotations: &[Rotations],
        observer: Option<&dyn Observer>,
    ) -> candle_core::Result<Tensor> {
        let Hyper { heads, kv_heads, head_dim, .. } = self.hyper;
        let epsilon = self.hyper.norm_epsilon as f32;
        let normed = rms_norm(x, &layer.attention_norm, epsilon)?;
        let qkv = layer.qkv.forward(&normed)?.flatten_all()?.to_vec1::<f32>()?;
        let (query, key) = (heads * head_dim, kv_heads * head_dim);
        let width = query + 2 * key;
        let mut out = Vec::with_capacity(qkv.len() / width * query);
        let mut rest = &qkv[..];
        for (number, (step, rotations)) in steps.iter_mut().zip(rotations).enumerate() {
            let rotation = rotations.at(&self.hyper, index);
            let (rows, after) = rest.split_at(step.tokens.len() * width);
            rest = after;
            let [mut queries, mut keys, mut values] =
                [query, key, key].map(|n| Vec::with_capacity(rows.len() / width * n));
            for (token, row) in rows.chunks_exact(width).enumerate() {
                let (q, kv) = row.split_at(query);
                let (k, v) = kv.split_at(key);
                queries.extend_from_slice(q);
                keys.extend_from_slice(k);
                values.extend_from_slice(v);
                let (q, k) = (&mut queries[token * query..], &mut keys[token * key..]);
                if let Some(more) = &layer.more {
                    q.chunks_exact_mut(head_dim).for_each(|head| rms_norm_row(head, &more.query, epsilon));
                    k.chunks_exact_mut(head_dim).for_each(|head| rms_norm_row(head, &more.key, epsilon));
                }
                rotation.rotate(token, q, head_dim);
                rotation.rotate(token, k, head_dim);
            }
            step.kv.push_rows(KvState::plane(index, Kind::Key), &keys);
            step.kv.push_rows(KvState::plane(index, Kind::Value), &values);
            let attend = Attend {
                step: number,
                layer: index,
                tokens: step.kv.tokens() + step.tokens.len(),
                kv: step.kv,
                window: self.hyper.window_of(index),
                group: self.hyper.group(),
                kv_heads,
                head_dim,
                queries: &queries,
            };
            out.extend(attend.run(observer));
        }
        Tensor::from_vec(out, (qkv.len() / width, query), &Device::Cpu)
    }

    /// Predictions from rows of [`forward`](Self::forward): `[rows, hidden]` to `[rows, vocabulary]`, not normalised.
    /// 256 rows of 49,152 are 50 MB: take a long text in pieces.
    ///
    /// # Errors
    /// If `hidden` is not such rows.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        self.output.forward(hidden).map_err(computing)
    }

    /// Natural logarithm of the probability that each row of `hidden` gives the token at its place in `next`; as many
    /// as the shorter of both has.
    ///
    /// # Errors
    /// As [`Model::logits`]; if a token is not in the vocabulary.
    pub fn log_likelihoods(&self, hidden: &Tensor, next: &[u32]) -> Result<Vec<f64>> {
        let logits = self.logits(hidden)?.to_vec2::<f32>().map_err(computing)?;
        let one = |(row, token): (&Vec<f32>, &u32)| {
            let at = row.get(*token as usize).ok_or_else(|| Error::data(format!("token {token}")))?;
            Ok(f64::from(*at) - log_sum_exp(row))
        };
        logits.par_iter().zip(next).map(one).collect()
    }

    /// The most likely tokens one after the other, for several texts at a time, as the weights are read once for all
    /// of them. `last` is the row of each text's last token, `[1, hidden]`; each of `kv` gets all of its new tokens
    /// but the last.
    ///
    /// # Errors
    /// As [`Model::forward`]; if there are not as many rows as caches.
    pub fn greedy(&self, last: &[Tensor], kv: &mut [&mut KvState], tokens: usize) -> Result<Vec<Vec<u32>>> {
        if last.len() != kv.len() {
            return Err(Error::data(format!("{} rows for {} caches", last.len(), kv.len())));
        }
        let mut out = vec![Vec::with_capacity(tokens); kv.len()];
        let mut last = last.to_vec();
        for _ in 0..tokens {
            let rows = Tensor::cat(&last, 0).map_err(computing)?;
            let logits = self.logits(&rows)?.to_vec2::<f32>().map_err(computing)?;
            out.iter_mut().zip(&logits).for_each(|(out, logits)| out.push(argmax(logits)));
            if out.first().is_some_and(|out| out.len() < tokens) {
                let mut steps: Vec<Step<'_>> = kv
                    .iter_mut()
                    .zip(&out)
                    .map(|(kv, out)| Step { tokens: &out[out.len() - 1..], kv })
                    .collect();
                last = self.forward_steps(&mut steps, None)?;
            }
        }
        Ok(out)
    }

    /// The output projection of a layer's attention, `[hidden, heads * head_dim]`; if a norm is behind it, times the norm's
    /// weights, so that what is left of the norm is to divide a token's row by a number ([`Observer::normed`]).
    ///
    /// # Errors
    /// If there is no such layer.
    pub fn attention_output(&self, layer: usize) -> Result<Tensor> {
        let found = self.layers.get(layer).ok_or_else(|| Error::data(format!("no layer {layer}")))?;
        let weight = || match &found.more {
            None => found.attention_output.weight(),
            Some(more) => found.attention_output.weight()?.broadcast_mul(&more.attention.unsqueeze(1)?),
        };
        weight().map_err(computing)
    }
}

/// Rotations of a step's tokens.
struct Rotations {
    global: Rotation,
    /// In local layers.
    local: Option<Rotation>,
}

impl Rotations {
    fn of(hyper: &Hyper, step: &Step<'_>) -> Self {
        let of = |rope| Rotation::new(rope, step.kv.next_position(), step.tokens.len());
        Self { global: of(hyper.rope), local: hyper.local.as_ref().map(|local| of(local.rope)) }
    }

    fn at(&self, hyper: &Hyper, layer: usize) -> &Rotation {
        let local = self.local.as_ref().filter(|_| hyper.window_of(layer).is_some());
        local.unwrap_or(&self.global)
    }
}

/// Logarithm of the sum of exponentials, by which logits become logarithms of probabilities.
pub fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|x| f64::from(x - max).exp()).sum();
    f64::from(max) + sum.ln()
}

/// Index of the largest; the first of equals.
pub fn argmax(logits: &[f32]) -> u32 {
    let better = |best: (usize, f32), (index, x): (usize, &f32)| if *x > best.1 { (index, *x) } else { best };
    logits.iter().enumerate().fold((0, f32::NEG_INFINITY), better).0 as u32
}

impl Layer {
    fn load(weights: &mut dyn Weights, hyper: &Hyper, layer: usize) -> Result<Self> {
        let (hidden, inner) = (hyper.hidden, hyper.feed_forward);
        let (query, key) = (hyper.heads * hyper.head_dim, hyper.kv_heads * hyper.head_dim);
        let mut linear = |parts: &[(Part, usize)], from: usize| -> Result<Linear> {
            let mut matrices = Vec::new();
            let mut biases = Vec::new();
            for (part, to) in parts {
                matrices.push(weights::required(weights, hyper, Some(layer), *part, &[*to, from])?);
                biases.push(weights::bias(weights, hyper, layer, *part, *to)?);
            }
            Linear::new(&matrices, &biases)
        };
        let qkv = linear(&[(Part::Query, query), (Part::Key, key), (Part::Value, key)], hidden)?;
        let attention_output = linear(&[(Part::AttentionOutput, hidden)], query)?;
        let gate_up = linear(&[(Part::Gate, inner), (Part::Up, inner)], hidden)?;
        let down = linear(&[(Part::Down, hidden)], inner)?;
        let mut norm = |part, len| weights::required(weights, hyper, Some(layer), part, &[len]);
        let attention_norm = norm(Part::AttentionNorm, hidden)?;
        let feed_forward_norm = norm(Part::FeedForwardNorm, hidden)?;
        let more = match hyper.block {
            Block::Llama => None,
            Block::Gemma3 => {
                let mut of_head = |part| norm(part, hyper.head_dim)?.to_vec1().map_err(computing);
                let (query, key) = (of_head(Part::QueryNorm)?, of_head(Part::KeyNorm)?);
                let attention = norm(Part::AttentionPostNorm, hidden)?;
                let feed_forward = norm(Part::FeedForwardPostNorm, hidden)?;
                Some(MoreNorms { query, key, attention, feed_forward })
            }
        };
        Ok(Self { attention_norm, feed_forward_norm, more, qkv, attention_output, gate_up, down })
    }
}

//! What calibration knows of a model beyond KV caches: moments, sensitivities, importance. `FORMAT.md`, section 8.
//!
//! Everything is a sum over contexts, so that statistics can be added up: [`Statistics::merge`]. Those who gather them
//! add to the [sums](Sums) of a layer; those who use them read means, covariances and sensitivities.

mod check;
mod file;
mod layout;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::tensor_file::quoted;
use crate::{Error, Geometry, Kind, Plane, Result};
use layout::Rule;

/// Most layers that cross moments may reach back.
const MAX_WINDOW: u32 = 64;

/// Statistics of one model over some contexts.
#[derive(Debug, Clone, PartialEq)]
pub struct Statistics {
    geometry: Geometry,
    planes: Vec<Plane>,
    sinks: u32,
    window: u32,
    counts: Counts,
    origins: Vec<Origin>,
    layers: Vec<Sums>,
    /// Of the file they were read from.
    hash: Option<String>,
}

/// How much was seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Contexts.
    pub contexts: u64,
    /// Tokens of all contexts, without sinks.
    pub tokens: u64,
    /// Tokens that were read behind the contexts.
    pub continuation_tokens: u64,
    /// Tokens × continuation tokens, over all contexts.
    pub pairs: u64,
}

/// Where a context comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    /// For people.
    pub name: String,
    /// SHA-256 of the token ids of context and continuation, u32 little-endian; lower-case hexadecimal.
    pub sha256: String,
}

/// The sums of one layer by name: `key.moment`, `back.1`, … as in `FORMAT.md`, section 8, without the layer.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sums {
    tensors: BTreeMap<String, Tensor>,
    /// Over continuation tokens: mean square over the channels of the residual stream.
    pub residual: f64,
}

#[derive(Debug, Clone, PartialEq)]
struct Tensor {
    shape: Vec<usize>,
    rule: Rule,
    values: Vec<f64>,
}

impl Sums {
    /// The tensor of that name, row-major; empty if this layer has none.
    pub fn get(&self, name: &str) -> &[f64] {
        self.tensors.get(name).map_or(&[], |tensor| &tensor.values)
    }

    /// The tensor of that name, to add to; empty if this layer has none.
    pub fn get_mut(&mut self, name: &str) -> &mut [f64] {
        self.tensors.get_mut(name).map_or(&mut [], |tensor| &mut tensor.values)
    }

    fn named(plane: &Plane, what: &str) -> String {
        format!("{}.{what}", plane.kind.name())
    }
}

/// Sums for the regression of one head's log-importance; see `FORMAT.md`, section 8.4.
#[derive(Debug, Clone, Copy)]
pub struct ImportanceSums<'a> {
    /// Features: 4 and the key's channels.
    pub features: usize,
    /// Σ x xᵀ, `[features, features]`.
    pub xx: &'a [f64],
    /// Σ x y, `[features]`.
    pub xy: &'a [f64],
    /// Σ y².
    pub yy: f64,
}

impl Statistics {
    /// Of nothing yet.
    ///
    /// # Errors
    /// If the model is so large, or `window`, that the sums would be.
    pub fn new(geometry: &Geometry, sinks: u32, window: u32) -> Result<Self> {
        let layouts = layout::layers(geometry, window)?;
        let zeros = |shape: &[usize]| vec![0.0; shape.iter().product()];
        let layers = layouts.into_iter().map(|tensors| Sums {
            tensors: tensors
                .into_iter()
                .map(|(name, (shape, rule))| (name, Tensor { values: zeros(&shape), shape, rule }))
                .collect(),
            residual: 0.0,
        });
        Ok(Self {
            geometry: geometry.clone(),
            planes: geometry.planes(),
            sinks,
            window,
            counts: Counts::default(),
            origins: Vec::new(),
            layers: layers.collect(),
            hash: None,
        })
    }

    /// The model's geometry.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Tokens left out at the beginning of each context.
    pub fn sinks(&self) -> u32 {
        self.sinks
    }

    /// Previous layers that cross moments reach back to.
    pub fn window(&self) -> u32 {
        self.window
    }

    /// How much was seen.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Where the contexts come from.
    pub fn origins(&self) -> &[Origin] {
        &self.origins
    }

    /// SHA-256 of the file that these statistics were read from, if they were and nothing was added since.
    pub fn hash(&self) -> Option<&str> {
        self.hash.as_deref()
    }

    /// Notes a context whose sums are, or will be, in the layers' sums.
    ///
    /// # Errors
    /// If it was noted before (it would count twice), or counts pass 64 bits.
    pub fn note(&mut self, origin: Origin, counts: Counts) -> Result<()> {
        if let Some(known) = self.origins.iter().find(|known| known.sha256 == origin.sha256) {
            let known = quoted(&known.name);
            return Err(Error::data(format!("these tokens are in the statistics already, as {known}"))
                .at(origin.name));
        }
        self.counts = self.counts.plus(counts)?;
        self.origins.push(origin);
        self.hash = None;
        Ok(())
    }

    /// The layers' sums, to add to.
    pub fn layers_mut(&mut self) -> &mut [Sums] {
        self.hash = None;
        &mut self.layers
    }

    /// A layer's sums; `None` behind the last layer.
    pub fn layer(&self, layer: usize) -> Option<&Sums> {
        self.layers.get(layer)
    }

    /// Adds the statistics of other contexts.
    ///
    /// # Errors
    /// If they are of another model or were taken in another way, or share a context with these.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        self.check_model(&other.geometry)?;
        for (what, a, b) in [("sinks", self.sinks, other.sinks), ("window", self.window, other.window)] {
            if a != b {
                return Err(Error::data(format!(
                    "statistics with `{what}` {b} do not add to those with {a}"
                )));
            }
        }
        let counts = self.counts.plus(other.counts)?;
        let mut merged = self.origins.clone();
        for origin in &other.origins {
            if merged.iter().any(|known| known.sha256 == origin.sha256) {
                return Err(Error::data(format!(
                    "both statistics have the context {}",
                    quoted(&origin.name)
                )));
            }
            merged.push(origin.clone());
        }
        for (ours, theirs) in self.layers.iter_mut().zip(&other.layers) {
            ours.residual += theirs.residual;
            for (ours, theirs) in ours.tensors.values_mut().zip(theirs.tensors.values()) {
                ours.values.iter_mut().zip(&theirs.values).for_each(|(a, b)| *a += b);
            }
        }
        (self.counts, self.origins, self.hash) = (counts, merged, None);
        Ok(())
    }

    /// Refuses another model: other planes or RoPE. Element types may differ.
    ///
    /// # Errors
    /// If it is another model.
    pub fn check_model(&self, geometry: &Geometry) -> Result<()> {
        let model = |plane: &Plane| (plane.layer, plane.kind, plane.shape.heads, plane.shape.head_dim);
        let theirs = geometry.planes();
        let same = self.planes.len() == theirs.len()
            && self.planes.iter().zip(&theirs).all(|(a, b)| model(a) == model(b) && a.rope == b.rope);
        if same {
            return Ok(());
        }
        let describe = |g: &Geometry| serde_json::to_string(g).unwrap_or_default();
        Err(Error::data(format!(
            "statistics of another model: their geometry is {}, the KV cache's {}",
            describe(&self.geometry),
            describe(geometry)
        )))
    }

    /// Mean of every channel of a plane, keys before RoPE.
    pub fn mean(&self, plane: &Plane) -> Vec<f64> {
        self.scaled(plane, "sum", self.tokens())
    }

    /// Covariance of a plane's channels, `[channels, channels]`, keys before RoPE.
    pub fn covariance(&self, plane: &Plane) -> Vec<f64> {
        let mean = self.mean(plane);
        centred(self.scaled(plane, "moment", self.tokens()), &mean, &mean)
    }

    /// Covariance of a layer's values with its keys, `[channels of values, channels of keys]`; empty if there are not
    /// both.
    pub fn value_key_covariance(&self, layer: usize) -> Vec<f64> {
        let plane = |kind| self.planes.iter().find(|p| p.layer as usize == layer && p.kind == kind);
        match (plane(Kind::Value), plane(Kind::Key), self.layers.get(layer)) {
            (Some(value), Some(key), Some(sums)) => {
                let moment = sums.get("value_key").iter().map(|x| x / self.tokens()).collect();
                centred(moment, &self.mean(value), &self.mean(key))
            }
            _ => Vec::new(),
        }
    }

    /// Covariance of a layer's row (its planes side by side) with that of the layer `back` before it, `[channels of the
    /// layer, channels of the earlier one]`; empty beyond the window.
    pub fn back_covariance(&self, layer: usize, back: usize) -> Vec<f64> {
        let Some(sums) = self.layers.get(layer).map(|sums| sums.get(&format!("back.{back}"))) else {
            return Vec::new();
        };
        let row = |layer: usize| -> Vec<f64> {
            let planes = self.planes.iter().filter(|plane| plane.layer as usize == layer);
            planes.flat_map(|plane| self.mean(plane)).collect()
        };
        if sums.is_empty() {
            return Vec::new();
        }
        centred(sums.iter().map(|x| x / self.tokens()).collect(), &row(layer), &row(layer - back))
    }

    /// What an error of a token's row costs, by head: `[heads, head_dim, head_dim]`, in units of the residual stream's
    /// mean square per channel, on average over tokens and continuation tokens. Keys before RoPE.
    pub fn sensitivity(&self, plane: &Plane) -> Vec<f64> {
        self.scaled(plane, "sensitivity", self.counts.pairs as f64 * self.residual(plane.layer as usize))
    }

    /// As [`sensitivity`](Self::sensitivity), of the tokens at the beginning of contexts that are left out elsewhere;
    /// zeros if there are none.
    pub fn sink_sensitivity(&self, plane: &Plane) -> Vec<f64> {
        let pairs = f64::from(self.sinks.max(1)) * self.counts.continuation_tokens as f64;
        self.scaled(plane, "sink_sensitivity", pairs * self.residual(plane.layer as usize))
    }

    /// Mean of all diagonal elements of a plane's sensitivity: what an error of one channel costs.
    pub fn mean_sensitivity(&self, plane: &Plane) -> f64 {
        mean_diagonal(&self.sensitivity(plane), plane.shape.head_dim as usize)
    }

    /// The same over all tokens, those at the beginning of contexts included: for codecs that do not spare them.
    pub fn mean_sensitivity_of_all(&self, plane: &Plane) -> f64 {
        let pairs = self.counts.pairs as f64;
        let sinks = f64::from(self.sinks) * self.counts.continuation_tokens as f64;
        let of_sinks = mean_diagonal(&self.sink_sensitivity(plane), plane.shape.head_dim as usize);
        (pairs * self.mean_sensitivity(plane) + sinks * of_sinks) / (pairs + sinks)
    }

    /// Mean square of a layer's residual stream, per channel.
    pub fn residual(&self, layer: usize) -> f64 {
        let sum = self.layers.get(layer).map_or(0.0, |sums| sums.residual);
        sum / self.counts.continuation_tokens.max(1) as f64
    }

    /// Regression sums of a head's log-importance; `None` in layers that have none.
    pub fn importance(&self, layer: usize, head: usize) -> Option<ImportanceSums<'_>> {
        let sums = self.layers.get(layer)?;
        let yy = *sums.get("importance.yy").get(head)?;
        let (xx, xy) = (sums.get("importance.xx"), sums.get("importance.xy"));
        let features = xy.len() / sums.get("importance.yy").len();
        let (from, square) = (head * features, features * features);
        Some(ImportanceSums { features, xx: &xx[head * square..][..square], xy: &xy[from..][..features], yy })
    }

    fn tokens(&self) -> f64 {
        self.counts.tokens.max(1) as f64
    }

    fn scaled(&self, plane: &Plane, what: &str, by: f64) -> Vec<f64> {
        let sums = self.layers.get(plane.layer as usize);
        let values = sums.map_or(&[][..], |sums| sums.get(&Sums::named(plane, what)));
        values.iter().map(|x| x / by).collect()
    }
}

impl Counts {
    fn plus(self, other: Self) -> Result<Self> {
        let add = |a: u64, b: u64| a.checked_add(b).ok_or_else(|| Error::limit("counts beyond 64 bits"));
        Ok(Self {
            contexts: add(self.contexts, other.contexts)?,
            tokens: add(self.tokens, other.tokens)?,
            continuation_tokens: add(self.continuation_tokens, other.continuation_tokens)?,
            pairs: add(self.pairs, other.pairs)?,
        })
    }
}

/// Mean of the diagonals of square matrices that lie one after the other.
fn mean_diagonal(matrices: &[f64], dim: usize) -> f64 {
    let rows = matrices.len() / dim.max(1);
    let diagonal = matrices.chunks_exact(dim.max(1)).enumerate().map(|(row, values)| values[row % dim]);
    diagonal.sum::<f64>() / rows.max(1) as f64
}

/// A moment without the product of the means.
fn centred(mut moment: Vec<f64>, rows: &[f64], cols: &[f64]) -> Vec<f64> {
    if !cols.is_empty() {
        for (values, row) in moment.chunks_exact_mut(cols.len()).zip(rows) {
            values.iter_mut().zip(cols).for_each(|(x, col)| *x -= row * col);
        }
    }
    moment
}

#[cfg(test)]
mod tests;

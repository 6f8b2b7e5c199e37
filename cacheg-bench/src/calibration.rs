//! Statistics of a model (`FORMAT.md`, section 8) from texts, context by context, in bounded memory.
//!
//! ```no_run
//! # use cacheg_bench::{calibration::Calibration, llm::Model};
//! # fn main() -> cacheg::Result<()> {
//! let model = Model::open("model.gguf".as_ref(), &|_, _| ())?;
//! let mut calibration = Calibration::new(&model, 4, 2)?;
//! let (context, continuation) = (&[1, 2, 3, 4, 5, 6], &[7, 8]);
//! calibration.add("a text", context, continuation, &|_, _| ())?;
//! let statistics = calibration.into_statistics();
//! # Ok(())
//! # }
//! ```

mod importance;
mod moments;
mod queries;
mod sensitivity;

use cacheg::core::{Counts, Kind, Origin, Statistics};
use cacheg::{Error, Result};
use sha2::{Digest, Sha256};

use crate::llm::rope::Rotation;
use crate::llm::{KvState, Model, Progress};
use sensitivity::{Outputs, Sensitivity};

/// Gathers statistics.
pub struct Calibration<'m> {
    model: &'m Model,
    outputs: Outputs,
    statistics: Statistics,
}

/// A context's cached rows, keys before RoPE.
struct Cached {
    tokens: usize,
    /// By layer: `[tokens, channels]`.
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
}

impl<'m> Calibration<'m> {
    /// Leaves out the first `sinks` tokens of every context; cross moments reach back `window` layers.
    ///
    /// # Errors
    /// If the sums would be too large.
    pub fn new(model: &'m Model, sinks: u32, window: u32) -> Result<Self> {
        let statistics = Statistics::new(model.geometry(), sinks, window)?;
        Ok(Self { model, outputs: Outputs::new(model)?, statistics })
    }

    /// Adds a context and what follows it. `progress` counts tokens.
    ///
    /// # Errors
    /// If the context is not longer than the sinks, nothing follows, a token is unknown, or the same tokens were added
    /// before.
    pub fn add(
        &mut self,
        name: &str,
        context: &[u32],
        continuation: &[u32],
        progress: Progress<'_>,
    ) -> Result<()> {
        let mut kv = KvState::new(self.model.geometry());
        self.add_from(name, context, continuation, &mut kv, progress)
    }

    /// Into an empty cache, whose element types may be others than an engine's.
    pub(crate) fn add_from(
        &mut self,
        name: &str,
        context: &[u32],
        continuation: &[u32],
        kv: &mut KvState,
        progress: Progress<'_>,
    ) -> Result<()> {
        let sinks = self.statistics.sinks() as usize;
        if context.len() <= sinks || continuation.is_empty() {
            return Err(Error::data(format!(
                "{} tokens of context and {} of continuation; more than {sinks} and at least 1 are needed",
                context.len(),
                continuation.len()
            ))
            .at(name));
        }
        let tokens = (context.len() - sinks) as u64;
        let counts = Counts {
            contexts: 1,
            tokens,
            continuation_tokens: continuation.len() as u64,
            pairs: tokens * continuation.len() as u64,
        };
        self.statistics.note(Origin { name: name.into(), sha256: hash(context, continuation) }, counts)?;
        let all = context.len() + continuation.len();
        self.model.prefill(context, kv, None, &|done, _| progress(done, all))?;
        let cached = Cached::of(kv, self.model)?;
        let observer = Sensitivity::new(self.model, &self.outputs, &cached, sinks);
        self.model
            .prefill(continuation, kv, Some(&observer), &|done, _| progress(context.len() + done, all))?;
        let layers = self.statistics.layers_mut();
        let attention = observer.finish(layers, continuation.len());
        importance::add(layers, &cached, &attention, sinks, self.model.hyper().head_dim);
        moments::add(layers, &cached, sinks);
        Ok(())
    }

    /// What was gathered.
    pub fn into_statistics(self) -> Statistics {
        self.statistics
    }
}

impl Cached {
    fn of(kv: &KvState, model: &Model) -> Result<Self> {
        let cache = kv.to_cache()?;
        let view = cache.view();
        let (tokens, dim) = (view.tokens(), model.hyper().head_dim);
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for plane in view.planes() {
            let mut rows = vec![0.0; tokens * plane.channels()];
            view.load(plane.index, 0, tokens, &mut rows);
            if plane.kind == Kind::Key {
                let rope = model.hyper().rope_of(plane.layer as usize);
                let rotation = Rotation::new(rope, view.first_position(), tokens).inverse();
                for (token, row) in rows.chunks_exact_mut(plane.channels()).enumerate() {
                    rotation.rotate(token, row, dim);
                }
                keys.push(rows);
            } else {
                values.push(rows);
            }
        }
        Ok(Self { tokens, keys, values })
    }
}

fn hash(context: &[u32], continuation: &[u32]) -> String {
    let mut hash = Sha256::new();
    context.iter().chain(continuation).for_each(|id| hash.update(id.to_le_bytes()));
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;

//! What a reconstruction does to predictions: the model reads on, reads the middle once more, and goes on alone.

use cacheg::{Error, Result};
use cacheg_bench::llm::{KvState, Model};
use candle_core::Tensor;

use super::measure::{Found, Judge, Lengths};
use super::metrics::{Predictions, agreement};

pub(super) struct Reading<'a> {
    model: &'a Model,
    /// What is read: what follows; the middle of the context.
    reads: [&'a [u32]; 2],
    references: [Predictions; 2],
    /// The row of the context's last token.
    last: Tensor,
    /// The model's own cache, until it has gone on alone.
    reference: Option<KvState>,
    alone: Vec<u32>,
    /// With so many tokens.
    greedy: usize,
}

impl<'a> Reading<'a> {
    /// `kv` is that of the first of `ids`.
    pub(super) fn new(
        model: &'a Model,
        ids: &'a [u32],
        lengths: Lengths,
        mut kv: KvState,
        last: Tensor,
    ) -> Result<Self> {
        let Lengths { tokens, continuation, greedy } = lengths;
        let (context, rest) = ids.split_at(tokens);
        let middle = &context[tokens / 2 - (continuation / 2).min(tokens / 2)..];
        let reads = [&rest[..continuation], &middle[..continuation.min(middle.len())]];
        let references = [predictions(model, reads[0], &mut kv)?, predictions(model, reads[1], &mut kv)?];
        Ok(Self { model, reads, references, last, reference: Some(kv), alone: Vec::new(), greedy })
    }
}

impl Judge for Reading<'_> {
    fn judge(&mut self, mut states: Vec<KvState>, done: &dyn Fn()) -> Result<Vec<Found>> {
        let mut damage = Vec::new();
        for state in &mut states {
            let mut of = |task: usize| {
                let read = self.reads[task];
                Ok::<_, Error>(
                    self.references[task].damage(&predictions(self.model, read, state)?, &read[1..]),
                )
            };
            damage.push((of(0)?, of(1)?));
            done();
        }
        let own = self.reference.take();
        let first_time = own.is_some();
        states.extend(own);
        // The first token is the prefill's, whatever the codec: it does not count.
        let mut caches: Vec<&mut KvState> = states.iter_mut().collect();
        let rows = vec![self.last.clone(); caches.len()];
        let mut texts = self.model.greedy(&rows, &mut caches, self.greedy + 1)?;
        if first_time {
            self.alone = texts.pop().unwrap_or_default();
        }
        let found = damage.into_iter().zip(&texts).map(|((continuation, reread), text)| Found::Reading {
            continuation,
            reread,
            greedy: agreement(&self.alone[1..], &text[1..]),
        });
        Ok(found.collect())
    }
}

/// Of every token of `read` on the cache, which is left as it was: what comes next.
pub(crate) fn predictions(model: &Model, read: &[u32], kv: &mut KvState) -> Result<Predictions> {
    let tokens = kv.tokens();
    let hidden = model.forward(read, kv)?;
    kv.truncate(tokens);
    let logits = model.logits(&hidden)?.to_vec2::<f32>();
    Ok(Predictions::new(logits.map_err(|e| Error::data(e.to_string()))?))
}

//! One context: its KV cache through every codec, and what the model makes of it.

use cacheg::{Error, Result};
use cacheg_bench::llm::{KvState, Model};
use candle_core::Tensor;

use super::codecs::Ready;
use super::metrics::{Damage, Predictions, agreement};
use super::parts::Parts;

/// Codecs whose reconstructions are in memory at a time; they share reading the weights while the model goes on alone.
const TOGETHER: usize = 8;

/// What the model reads on the KV cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Task {
    /// The text that follows.
    Continuation,
    /// The middle of the context once more: every token of it matters.
    Reread,
}

impl Task {
    pub(crate) const ALL: [Self; 2] = [Self::Continuation, Self::Reread];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Continuation => "continuation",
            Self::Reread => "reread",
        }
    }
}

/// A codec's result on a context.
pub(crate) struct Outcome {
    pub(crate) bits_per_value: f64,
    /// The same by what the bytes are for.
    pub(crate) parts: Parts<f64>,
    pub(crate) encode_s: f64,
    pub(crate) decode_s: f64,
    /// By [`Task`].
    pub(crate) damage: [Damage; 2],
    /// Tokens before the first that differs, and the share of places that agree, when the model goes on alone.
    pub(crate) greedy: (usize, f64),
}

/// How a context is used.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lengths {
    pub(crate) tokens: usize,
    pub(crate) continuation: usize,
    pub(crate) greedy: usize,
}

/// The model's cache after the first `tokens` of a text, and the row of the last one.
pub(crate) fn prefill(model: &Model, tokens: &[u32]) -> Result<(KvState, Tensor)> {
    let mut kv = KvState::new(model.geometry());
    let last = model.prefill(tokens, &mut kv, None, &|_, _| ())?;
    Ok((kv, last))
}

/// Called with the outcomes of a run of codecs and the index of the first.
pub(crate) type Finished<'a> = &'a mut dyn FnMut(usize, &[Outcome]) -> Result<()>;

/// Measures all codecs on one context; `done` is called after each, `finished` when a run of them is complete.
pub(crate) fn measure(
    model: &Model,
    ids: &[u32],
    lengths: Lengths,
    codecs: &[&Ready<'_>],
    done: &dyn Fn(),
    finished: Finished<'_>,
) -> Result<Vec<Outcome>> {
    let Lengths { tokens, continuation, greedy } = lengths;
    let (context, rest) = ids.split_at(tokens);
    let rest = &rest[..continuation];
    let middle = &context[tokens / 2 - (continuation / 2).min(tokens / 2)..];
    let reads = [rest, &middle[..continuation.min(middle.len())]];
    let (mut kv, last) = prefill(model, context)?;
    let cache = kv.to_cache()?;
    let values = model.geometry().values_per_token() as f64 * tokens as f64;
    let mut references = Vec::new();
    for read in reads {
        references.push(predictions(model, read, &mut kv)?);
    }
    let mut outcomes = Vec::new();
    let mut alone: Option<Vec<u32>> = None;
    let mut reference = Some(kv);
    for group in codecs.chunks(TOGETHER) {
        let mut states = Vec::new();
        let first = outcomes.len();
        for ready in group {
            let coded = ready.run(&cache.view())?;
            let mut state = model.state_of(&coded.cache.view())?;
            let mut damage = Vec::new();
            for (read, reference) in reads.iter().zip(&references) {
                damage.push(reference.damage(&predictions(model, read, &mut state)?, &read[1..]));
            }
            outcomes.push(Outcome {
                bits_per_value: coded.bytes as f64 * 8.0 / values,
                parts: coded.parts.per_value(values),
                encode_s: coded.encode_s,
                decode_s: coded.decode_s,
                damage: [damage[0], damage[1]],
                greedy: (0, 0.0),
            });
            states.push(state);
            done();
        }
        states.extend(reference.take());
        // The first token is the prefill's, whatever the codec: it does not count.
        let mut caches: Vec<&mut KvState> = states.iter_mut().collect();
        let mut texts = model.greedy(&vec![last.clone(); caches.len()], &mut caches, greedy + 1)?;
        let alone = &*alone.get_or_insert_with(|| texts.pop().unwrap_or_default());
        for (outcome, text) in outcomes[first..].iter_mut().zip(&texts) {
            outcome.greedy = agreement(&alone[1..], &text[1..]);
        }
        finished(first, &outcomes[first..])?;
    }
    Ok(outcomes)
}

/// Of every token of `read` on the cache, which is left as it was: what comes next.
fn predictions(model: &Model, read: &[u32], kv: &mut KvState) -> Result<Predictions> {
    let tokens = kv.tokens();
    let hidden = model.forward(read, kv)?;
    kv.truncate(tokens);
    let logits = model.logits(&hidden)?.to_vec2::<f32>();
    Ok(Predictions::new(logits.map_err(|e| Error::data(e.to_string()))?))
}

//! One context: its KV cache through every codec, and what the model makes of it.

use std::time::Instant;

use cacheg::core::Importance;
use cacheg::{Error, KvCache, Result};
use cacheg_bench::llm::{KvState, Model, Tokenizer};

use super::codecs::{Coded, Ready};
use super::metrics::{Damage, Predictions, agreement};
use super::parts::Parts;
use super::source::{self, Source};

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

/// What reconstructions are made from.
struct Original<'a> {
    model: &'a Model,
    tokenizer: &'a Tokenizer,
    context: &'a [u32],
    cache: KvCache,
    importance: Option<Importance>,
    /// KV caches of pruned contexts, by the share that was kept.
    pruned: Vec<(f64, KvCache)>,
}

/// A KV cache that somebody sent.
struct Received {
    bytes: u64,
    parts: Parts,
    encode_s: f64,
    decode_s: f64,
    state: KvState,
}

impl Original<'_> {
    fn send(&mut self, ready: &Ready<'_>) -> Result<Received> {
        let coded = match ready.codec.source {
            Source::Text => return self.text(),
            Source::Context => ready.run(&self.cache.view().with_importance(self.importance.as_ref())?)?,
            Source::Pruned(share) => ready.run(&self.pruned(share)?.view())?,
        };
        let state = self.model.state_of(&coded.decoded.view()?)?;
        let Coded { bytes, parts, encode_s, decode_s, .. } = coded;
        Ok(Received { bytes, parts, encode_s, decode_s, state })
    }

    fn pruned(&mut self, share: f64) -> Result<&KvCache> {
        let at = match self.pruned.iter().position(|(known, _)| *known == share) {
            Some(at) => at,
            None => {
                let information = source::information(self.model, self.context)?;
                let tokens = source::prune(self.context, &information, share);
                self.pruned.push((share, source::read(self.model, &tokens, false)?.kv.to_cache()?));
                self.pruned.len() - 1
            }
        };
        Ok(&self.pruned[at].1)
    }

    /// The text itself, compressed; whoever receives it prefills.
    fn text(&self) -> Result<Received> {
        let start = Instant::now();
        let text = self.tokenizer.decode(self.context)?;
        let bytes = zstd::bulk::compress(text.as_bytes(), 19).map_err(|e| Error::data(e.to_string()))?;
        let encode_s = start.elapsed().as_secs_f64();
        let start = Instant::now();
        let state = source::read(self.model, self.context, false)?.kv;
        let decode_s = start.elapsed().as_secs_f64();
        let parts = Parts::only_stream(bytes.len());
        Ok(Received { bytes: bytes.len() as u64, parts, encode_s, decode_s, state })
    }
}

/// Called with the outcomes of a run of codecs and the index of the first.
pub(crate) type Finished<'a> = &'a mut dyn FnMut(usize, &[Outcome]) -> Result<()>;

/// Measures all codecs on one context; `done` is called after each, `finished` when a run of them is complete.
pub(crate) fn measure(
    (model, tokenizer): (&Model, &Tokenizer),
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
    let selects = codecs.iter().any(|ready| ready.selects());
    let source::Read { mut kv, last, importance } = source::read(model, context, selects)?;
    let mut original =
        Original { model, tokenizer, context, cache: kv.to_cache()?, importance, pruned: Vec::new() };
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
            let Received { bytes, parts, encode_s, decode_s, mut state } = original.send(ready)?;
            let mut damage = Vec::new();
            for (read, reference) in reads.iter().zip(&references) {
                damage.push(reference.damage(&predictions(model, read, &mut state)?, &read[1..]));
            }
            outcomes.push(Outcome {
                bits_per_value: bytes as f64 * 8.0 / values,
                parts: parts.per_value(values),
                encode_s,
                decode_s,
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
pub(crate) fn predictions(model: &Model, read: &[u32], kv: &mut KvState) -> Result<Predictions> {
    let tokens = kv.tokens();
    let hidden = model.forward(read, kv)?;
    kv.truncate(tokens);
    let logits = model.logits(&hidden)?.to_vec2::<f32>();
    Ok(Predictions::new(logits.map_err(|e| Error::data(e.to_string()))?))
}

//! One context: its KV cache through every codec, and what the model makes of it.

use cacheg::Result;
use cacheg_bench::llm::{KvState, Model, Tokenizer};

use super::codecs::Ready;
use super::contexts::Context;
use super::metrics::Damage;
use super::parts::Parts;
use super::reading::Reading;
use super::received::{Original, Received};
use super::retrieval::{Answer, Retrieval};
use super::source;

/// Codecs whose reconstructions are in memory at a time; they share reading the weights while the model goes on alone.
const TOGETHER: usize = 8;

/// What the model has to do on the KV cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Task {
    /// Read the text that follows.
    Continuation,
    /// Read the middle of the context once more: every token of it matters.
    Reread,
    /// Answer a question about the context.
    Retrieval,
}

impl Task {
    pub(crate) const ALL: [Self; 3] = [Self::Continuation, Self::Reread, Self::Retrieval];

    const READING: [Self; 2] = [Self::Continuation, Self::Reread];
    const ASKING: [Self; 1] = [Self::Retrieval];

    /// What is measured on a context.
    pub(crate) fn of(context: &Context) -> &'static [Self] {
        if context.question.is_some() { &Self::ASKING } else { &Self::READING }
    }

    /// How many tasks are measured on a context together with the one of this name.
    pub(crate) fn together(name: &str) -> usize {
        if name == Self::Retrieval.name() { Self::ASKING.len() } else { Self::READING.len() }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Continuation => "continuation",
            Self::Reread => "reread",
            Self::Retrieval => "retrieval",
        }
    }
}

/// A codec's result on a context.
pub(crate) struct Outcome {
    pub(crate) bits_per_value: f64,
    /// Over the values that the model sees behind the context, if it has local layers.
    pub(crate) visible_bits_per_value: Option<f64>,
    /// The first by what the bytes are for.
    pub(crate) parts: Parts<f64>,
    pub(crate) encode_s: f64,
    pub(crate) decode_s: f64,
    pub(crate) found: Found,
}

/// What the model made of a reconstruction.
pub(crate) enum Found {
    Reading {
        continuation: Damage,
        reread: Damage,
        /// Tokens before the first that differs, and the share of places that agree, when the model goes on alone.
        greedy: (usize, f64),
    },
    Retrieval(Answer),
}

/// How a context is used.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lengths {
    pub(crate) tokens: usize,
    pub(crate) continuation: usize,
    pub(crate) greedy: usize,
}

/// What reconstructions are judged by; knows what the model does on its own cache.
pub(super) trait Judge {
    /// Of several at a time. `done` is called for each.
    fn judge(&mut self, states: Vec<KvState>, done: &dyn Fn()) -> Result<Vec<Found>>;
}

/// Called with the outcomes of a run of codecs and the index of the first.
pub(crate) type Finished<'a> = &'a mut dyn FnMut(usize, &[Outcome]) -> Result<()>;

/// Measures all codecs on one context; `done` is called after each, `finished` when a run of them is complete.
pub(crate) fn measure(
    (model, tokenizer): (&Model, &Tokenizer),
    whole: &Context,
    lengths: Lengths,
    codecs: &[&Ready<'_>],
    done: &dyn Fn(),
    finished: Finished<'_>,
) -> Result<Vec<Outcome>> {
    let context = &whole.ids[..lengths.tokens.min(whole.ids.len())];
    let wanted = codecs.iter().any(|ready| ready.wants_importance());
    let source::Read { kv, last, importance } = source::read(model, context, wanted)?;
    let cache = kv.to_cache()?;
    let mut original = Original { model, tokenizer, context, cache, importance, pruned: Vec::new() };
    let values = model.geometry().values_per_token() as f64 * context.len() as f64;
    let visible_values = model.hyper().visible_values(context.len()) as f64;
    let mut judge: Box<dyn Judge> = match &whole.question {
        None => Box::new(Reading::new(model, &whole.ids, lengths, kv, last)?),
        Some(question) => Box::new(Retrieval::new((model, tokenizer), question, kv)),
    };
    let mut outcomes = Vec::new();
    for group in codecs.chunks(TOGETHER) {
        let first = outcomes.len();
        let (mut sent, mut states) = (Vec::new(), Vec::new());
        for ready in group {
            let received = original.send(ready)?;
            let Received { bytes, visible_bytes, parts, encode_s, decode_s, state } = received;
            sent.push((bytes, visible_bytes, parts, encode_s, decode_s));
            states.push(state);
        }
        let found = judge.judge(states, done)?;
        outcomes.extend(sent.into_iter().zip(found).map(|(sent, found)| {
            let (bytes, visible_bytes, parts, encode_s, decode_s) = sent;
            let bits_per_value = bytes as f64 * 8.0 / values;
            let visible_bits_per_value = visible_bytes.map(|bytes| bytes * 8.0 / visible_values);
            let parts = parts.per_value(values);
            Outcome { bits_per_value, visible_bits_per_value, parts, encode_s, decode_s, found }
        }));
        finished(first, &outcomes[first..])?;
    }
    Ok(outcomes)
}

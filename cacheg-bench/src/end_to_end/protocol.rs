//! What the bench and its client say to each other.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A text and what follows it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Text {
    /// The context.
    pub(crate) tokens: Vec<u32>,
    /// What is read behind it; its first token is the request's last one.
    pub(crate) continuation: Vec<u32>,
}

/// First of all, to the client.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Setup {
    /// What will be asked for.
    pub(crate) texts: Vec<Text>,
    /// What clients of this model have already.
    pub(crate) profile: Option<PathBuf>,
}

/// The answer to it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Ready {
    /// Times to prefill the contexts.
    pub(crate) prefill_s: Vec<f64>,
    /// Time of the request's last token on a context that is there.
    pub(crate) token_s: f64,
    /// Perplexities of the continuations.
    pub(crate) perplexity: Vec<f64>,
}

/// A request to make.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Ask {
    /// The store.
    pub(crate) url: String,
    /// Which of the texts.
    pub(crate) text: usize,
    /// The context's name.
    pub(crate) context: String,
    /// How chunks are fetched; none: only the text is, and all is recomputed.
    pub(crate) policy: Option<String>,
    /// When the first token is due.
    pub(crate) slo_s: Option<f64>,
    /// Time to recompute a token, if chunks may be left to the model.
    pub(crate) recompute_s: Option<f64>,
    /// A picture of what was done when.
    pub(crate) timeline: Option<PathBuf>,
}

/// What came of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Answer {
    /// Which of the texts.
    pub(crate) text: usize,
    /// From the request to the logits of the first token.
    pub(crate) ttft_s: f64,
    /// Until all of the KV cache was there.
    pub(crate) fetch_s: f64,
    /// From there until the model had it.
    pub(crate) hand_over_s: f64,
    /// Bytes of chunks that came.
    pub(crate) bytes: u64,
    /// By chunk: the level's name, or `text`.
    pub(crate) levels: Vec<String>,
    /// Of the continuation on what arrived, against the reference.
    pub(crate) kl: f64,
    pub(crate) top1_percent: f64,
    pub(crate) delta_ppl_percent: f64,
    /// What went wrong and was got over.
    pub(crate) faults: Vec<String>,
}

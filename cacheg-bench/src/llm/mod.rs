//! A language model, of Llama's type or Gemma 3, whose KV cache is in our hands: read out, replaced by a reconstruction, extended.
//!
//! candle reads the files (GGUF of any quantisation it knows, safetensors) and does the matrix products; attention
//! runs here, over the cache as an engine would keep it: f16, keys after RoPE.
//!
//! ```no_run
//! # use std::path::Path;
//! # use cacheg_bench::llm::{KvState, Model, Tokenizer};
//! # fn main() -> cacheg::Result<()> {
//! let path = Path::new("model.gguf");
//! let (model, tokenizer) = (Model::open(path, &|_, _| ())?, Tokenizer::open(path)?);
//! let tokens = tokenizer.encode("Call me Ishmael.")?;
//! let mut kv = KvState::new(model.geometry());
//! model.forward(&tokens, &mut kv)?; // the context
//! let cache = kv.to_cache()?; // … which a codec may take and give back …
//! let mut kv = model.state_of(&cache.view())?;
//! let hidden = model.forward(&tokenizer.encode(" Some years ago")?, &mut kv)?; // … and the model reads on
//! let logits = model.logits(&hidden)?; // [tokens, vocabulary]
//! # Ok(())
//! # }
//! ```
//!
//! What a token's row becomes never depends on the rows it is computed with, bit for bit: one prefill, a prefill in
//! chunks, a batch of sequences, and a token at a time give the same numbers (`tests` has the proof). So a difference
//! between two runs is the codec's.

mod attention;
mod candle;
mod exp;
mod fetch;
mod gguf;
mod hyper;
mod linear;
pub(crate) mod matmul;
mod model;
mod observe;
mod ops;
mod pretokenizers;
mod recompute;
pub(crate) mod rope;
mod safetensors;
mod sentencepiece;
mod state;
mod tokenizer;
mod weights;

pub use fetch::{FETCHABLE, Fetchable, Fetched, Piece, cache_folder, fetch, model_hash, resolve};
pub use hyper::{Block, Hyper, Local};
pub use model::{Model, Progress, Step, argmax, log_sum_exp};
pub use observe::{AttentionBlock, AttentionSums, LayerAttention, Observer};
pub use recompute::Prefill;
pub use state::KvState;
pub use tokenizer::Tokenizer;

#[cfg(test)]
mod tests;
